//! Whole lives of tasks in the stores of a pmcp server: this project's task store, and pmcp's own over this project's
//! backend and over the Lua backend. Beside them, what no store over a server that has upstream's rules can beat: upstream's
//! store in memory, and round trips that do nothing.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use pmcp::server::task_store::TaskStore as Store;
use pmcp::types::tasks::TaskStatus;
use pmcp::types::{CallToolResult, Content};
use pmcptask_tests::{Proxy, ServerOptions};
use redis::aio::MultiplexedConnection;

use crate::contest::{LUA, OURS, Servers, connection};
use crate::figures::write;
use crate::machine;
use crate::plot::{Bar, bars};
use crate::rates::Rates;
use crate::stores::{GENERIC, NEAR, STORE, in_memory, server_of, store};
use crate::{Result, repeats};

const PROGRESS_MESSAGES: usize = 5;
const RESULT: &str = "done";
const OWNERS: [usize; 2] = [1, 32];
const TASKS: [usize; 2] = [0, 50];
/// Lives that all owners together have in one run.
const LIVES: u32 = 640;

/// As many PINGs, one after the other, as a life has round trips with the near cache.
const PINGS: &str = "PINGs only";
/// A life in memory, and these PINGs.
const BOUND: &str = "pmcp's store in memory, and PINGs";
const NAMES: [&str; 6] = [PINGS, BOUND, NEAR, STORE, GENERIC, LUA];

/// Owners at once, and the tasks that each has beside the one that lives.
type Cell = (usize, usize);

/// Measures all stores, and writes a table and a plot.
///
/// # Errors
///
/// If a step fails.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let cells: Vec<Cell> = OWNERS.into_iter().flat_map(|owners| TASKS.map(|tasks| (owners, tasks))).collect();
    let servers = Servers::start(&ServerOptions::default())?;
    let pings = round_trips_of(NEAR, &servers).await?;
    let rates = Rates::measure(&servers, &cells, &NAMES, async |name, cell| {
        lives_per_second(name, &servers, cell, pings).await
    });
    let rates = rates.await?;
    let mut table = "| store | round trips per life |".to_owned();
    for (owners, tasks) in &cells {
        write!(table, " {owners} at once, {tasks} tasks each |")?;
    }
    writeln!(table, "\n|---|---|{}", "---|".repeat(cells.len()))?;
    for name in NAMES {
        let round_trips =
            if [PINGS, BOUND].contains(&name) { pings } else { round_trips_of(name, &servers).await? };
        write!(table, "| {name} | {round_trips} |")?;
        for cell in &cells {
            write!(table, " {} |", rates.shown(*cell, name, LUA))?;
        }
        writeln!(table)?;
    }
    writeln!(
        table,
        "\nLives per second, and how many times those of the Lua backend: median (minimum to maximum) of {} runs. \
         A life: create, five progress messages with a poll after each, result, completed, two reads. {PINGS}: {pings} `PING`s one \
         after the other instead of a life. {BOUND}: a life in an empty `GenericTaskStore` over `InMemoryBackend`, and these `PING`s; \
         with so many round trips and the rules of pmcp's store, no store can be faster.\n\n`{}`",
        repeats(),
        machine::described(servers.of(OURS)),
    )?;
    println!("{table}");
    write(folder, "lives.md", &table)?;
    draw(folder, &rates, &cells)
}

/// One task from its creation to the last read of its result, which is this text. Returns the task's id.
pub(crate) async fn live(store: &dyn Store, owner: &str, result: &str) -> Result<String> {
    let id = store.create(owner, None).await?.task_id;
    for step in 0..PROGRESS_MESSAGES {
        store.set_status_message(&id, owner, Some(format!("step {step}"))).await?;
        store.get(&id, owner).await?;
    }
    store.set_result(&id, owner, CallToolResult::new(vec![Content::text(result)])).await?;
    store.update_status(&id, owner, TaskStatus::Completed, None).await?;
    store.get(&id, owner).await?;
    store.get_result(&id, owner).await?;
    Ok(id)
}

async fn lives_per_second(name: &str, servers: &Servers, (owners, tasks): Cell, pings: usize) -> Result<f64> {
    let server = server_of(name, servers);
    let plain = connection(&server.url()).await?;
    let is_bound = name == BOUND;
    let store = if [PINGS, BOUND].contains(&name) { None } else { Some(store(name, &server.url()).await?) };
    if let Some(store) = &store {
        for owner in 0..owners {
            for _ in 0..tasks {
                store.create(&name_of(owner), None).await?;
            }
        }
    }
    let lives = (0..owners).map(|owner| {
        let (store, plain) = (store.clone(), plain.clone());
        async move {
            let (owner, mut lived) = (name_of(owner), Duration::ZERO);
            for _ in 0..LIVES as usize / owners {
                // Empty, because a store that counts no tasks of the owner need not read them.
                let memory = in_memory();
                let born = Instant::now();
                let id = match &store {
                    Some(store) => live(store.as_ref(), &owner, RESULT).await?,
                    None => ping(plain.clone(), pings).await?,
                };
                if is_bound {
                    live(memory.as_ref(), &owner, RESULT).await?;
                }
                lived += born.elapsed();
                remove(plain.clone(), &owner, &id).await?;
            }
            Result::Ok(lived)
        }
    });
    let lived = try_join_all(lives.map(|life| async { tokio::spawn(life).await? })).await?;
    let each = lived.iter().sum::<Duration>().div_f64(f64::from(u32::try_from(owners)?));
    Ok(f64::from(LIVES) / each.as_secs_f64())
}

/// PINGs instead of a life. Returns the id of no task.
async fn ping(mut connection: MultiplexedConnection, times: usize) -> Result<String> {
    for _ in 0..times {
        redis::cmd("PING").exec_async(&mut connection).await?;
    }
    Ok("none".to_owned())
}

fn name_of(owner: usize) -> String {
    format!("owner{owner}")
}

/// Removes a task, so that the owner has as many as before. The same for all.
async fn remove(mut connection: MultiplexedConnection, owner: &str, id: &str) -> Result<()> {
    let mut both = redis::pipe();
    both.cmd("DEL").arg(format!("pmcp:tasks:{owner}:{id}"));
    both.cmd("ZREM").arg(format!("pmcp:idx:{owner}")).arg(id);
    Ok(both.exec_async(&mut connection).await?)
}

/// The round trips of a life: how many times something was sent.
async fn round_trips_of(name: &str, servers: &Servers) -> Result<usize> {
    servers.empty()?;
    let proxy = Proxy::to(server_of(name, servers).port());
    let store = store(name, &proxy.url()).await?;
    live(store.as_ref(), "owner", RESULT).await?;
    let before = proxy.sent();
    live(store.as_ref(), "owner", RESULT).await?;
    Ok(proxy.sent() - before)
}

fn draw(folder: &Path, rates: &Rates<Cell>, cells: &[Cell]) -> Result<()> {
    let rows = cells.iter().flat_map(|cell| [PINGS, BOUND, NEAR, STORE, GENERIC].map(|name| (*cell, name)));
    let rows = rows.filter_map(|(cell, name)| {
        let label = format!("{name}, {} at once, {} tasks", cell.0, cell.1);
        Some(Bar { label, figure: rates.ratio(cell, name, LUA)?.median })
    });
    bars(
        folder,
        "lives.svg",
        "Lives of tasks per second by those with the Lua backend",
        "x",
        &rows.collect::<Vec<_>>(),
    )
}
