//! Whole lives of tasks in the stores of a pmcp server: this project's task store, and pmcp's own over this project's
//! backend and over the Lua backend.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use pmcp::server::task_store::TaskStore as Store;
use pmcp::types::tasks::TaskStatus;
use pmcp::types::{CallToolResult, Content};
use pmcp_tasks::store::backend::StorageBackend;
use pmcp_tasks::{GenericTaskStore, ServerTaskStore, TaskSecurityConfig};
use pmcptask_client::{RedisBackend, TaskStore};
use pmcptask_tests::{Proxy, Server, ServerOptions, lua_backend};
use redis::aio::MultiplexedConnection;
use serde_json::Value;

use crate::comparison::progress_bar;
use crate::contest::{LUA, OURS, Servers};
use crate::figures::{Spread, short, write};
use crate::machine;
use crate::plot::{Bar, bars};
use crate::{Result, repeats};

const PROGRESS_MESSAGES: usize = 5;
const OWNERS: [usize; 2] = [1, 32];
const TASKS: [usize; 2] = [0, 50];
/// Lives that all owners together have in one run.
const LIVES: u32 = 640;

const NEAR: &str = "TaskStore, near cache";
const STORE: &str = "TaskStore";
const GENERIC: &str = "pmcp's store over RedisBackend";
const NAMES: [&str; 4] = [NEAR, STORE, GENERIC, LUA];

/// Owners at once, and the tasks that each has beside the one that lives.
type Cell = (usize, usize);

/// Lives per second of each store, repeat by repeat.
type Figures = BTreeMap<(Cell, &'static str), Vec<f64>>;

/// Measures all stores, and writes a table and a plot.
///
/// # Errors
///
/// If a step fails.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let cells: Vec<Cell> = OWNERS.into_iter().flat_map(|owners| TASKS.map(|tasks| (owners, tasks))).collect();
    let progress = progress_bar(repeats() * cells.len() * NAMES.len())?;
    let servers = Servers::start(&ServerOptions::default())?;
    let mut figures = Figures::new();
    for repeat in 0..repeats() {
        for cell in &cells {
            // Each time another store begins.
            for turn in 0..NAMES.len() {
                let name = NAMES[(repeat + turn) % NAMES.len()];
                servers.empty()?;
                let per_second = lives_per_second(name, &servers, *cell).await?;
                figures.entry((*cell, name)).or_default().push(per_second);
                progress.inc(1);
            }
        }
    }
    progress.finish_and_clear();
    let mut round_trips = Vec::new();
    for name in NAMES {
        round_trips.push(round_trips_of(name, &servers).await?);
    }
    let table = table(&figures, &cells, &round_trips, &machine::described(servers.of(OURS)))?;
    println!("{table}");
    write(folder, "lives.md", &table)?;
    draw(folder, &figures, &cells)
}

fn server<'s>(name: &str, servers: &'s Servers) -> &'s Server {
    servers.of(if name == LUA { LUA } else { OURS })
}

async fn store(name: &str, url: &str) -> Result<Arc<dyn Store>> {
    let security = TaskSecurityConfig::default().with_max_tasks_per_owner(1_000);
    let ours = async || RedisBackend::new(url).await;
    Ok(match name {
        NEAR => Arc::new(TaskStore::new(ours().await?).with_security(security).near_cache(64 << 20)),
        STORE => Arc::new(TaskStore::new(ours().await?).with_security(security)),
        GENERIC => over(ours().await?, security),
        _ => over(lua_backend(url).await?, security),
    })
}

fn over<B: StorageBackend + 'static>(backend: B, security: TaskSecurityConfig) -> Arc<dyn Store> {
    Arc::new(ServerTaskStore::new(GenericTaskStore::new(backend).with_security(security)))
}

/// One task from its creation to the last read of its result. Returns the task's id.
async fn live(store: &dyn Store, owner: &str) -> Result<String> {
    let id = store.create(owner, None).await?.task_id;
    for step in 0..PROGRESS_MESSAGES {
        store.set_status_message(&id, owner, Some(format!("step {step}"))).await?;
        store.get(&id, owner).await?;
    }
    store.set_result(&id, owner, CallToolResult::new(vec![Content::text("done")])).await?;
    store.update_status(&id, owner, TaskStatus::Completed, None).await?;
    store.get(&id, owner).await?;
    store.get_result(&id, owner).await?;
    Ok(id)
}

async fn lives_per_second(name: &str, servers: &Servers, (owners, tasks): Cell) -> Result<f64> {
    let url = server(name, servers).url();
    let store = store(name, &url).await?;
    let plain = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    for owner in 0..owners {
        for _ in 0..tasks {
            store.create(&name_of(owner), None).await?;
        }
    }
    let lives = (0..owners).map(|owner| {
        let (store, plain) = (store.clone(), plain.clone());
        async move {
            let (owner, mut lived) = (name_of(owner), Duration::ZERO);
            for _ in 0..LIVES as usize / owners {
                let born = Instant::now();
                let id = live(store.as_ref(), &owner).await?;
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

fn name_of(owner: usize) -> String {
    format!("owner{owner}")
}

/// Removes a task, so that the owner has as many as before. The same for all stores.
async fn remove(mut connection: MultiplexedConnection, owner: &str, id: &str) -> Result<()> {
    let mut both = redis::pipe();
    both.cmd("DEL").arg(format!("pmcp:tasks:{owner}:{id}"));
    both.cmd("ZREM").arg(format!("pmcp:idx:{owner}")).arg(id);
    Ok(both.exec_async(&mut connection).await?)
}

/// The round trips of a life: how many times something was sent.
async fn round_trips_of(name: &str, servers: &Servers) -> Result<usize> {
    servers.empty()?;
    let proxy = Proxy::to(server(name, servers).port());
    let store = store(name, &proxy.url()).await?;
    live(store.as_ref(), "owner").await?;
    let before = proxy.sent();
    live(store.as_ref(), "owner").await?;
    Ok(proxy.sent() - before)
}

/// Lives per second as a multiple of those with the Lua backend, for each repeat.
fn ratio(figures: &Figures, cell: Cell, name: &'static str) -> Option<Spread> {
    let (ours, lua) = (figures.get(&(cell, name))?, figures.get(&(cell, LUA))?);
    Some(Spread::of(&ours.iter().zip(lua).map(|(ours, lua)| ours / lua).collect::<Vec<_>>()))
}

fn table(figures: &Figures, cells: &[Cell], round_trips: &[usize], described: &Value) -> Result<String> {
    let mut table = "| store | round trips per life |".to_owned();
    for (owners, tasks) in cells {
        write!(table, " {owners} at once, {tasks} tasks each |")?;
    }
    writeln!(table, "\n|---|---|{}", "---|".repeat(cells.len()))?;
    for (name, round_trips) in NAMES.into_iter().zip(round_trips) {
        write!(table, "| {name} | {round_trips} |")?;
        for cell in cells {
            let lives = figures.get(&(*cell, name)).map(|lives| Spread::of(lives).median);
            let ratio = ratio(figures, *cell, name).map(|ratio| ratio.to_string());
            write!(table, " {} / s, {} |", short(lives.unwrap_or(f64::NAN)), ratio.unwrap_or_default())?;
        }
        writeln!(table)?;
    }
    writeln!(
        table,
        "\nLives per second, and how many times those of the Lua backend: median (minimum to maximum) of {} runs. \
         A life: create, five progress messages with a poll after each, result, completed, two reads.\n\n`{described}`",
        repeats()
    )?;
    Ok(table)
}

fn draw(folder: &Path, figures: &Figures, cells: &[Cell]) -> Result<()> {
    let rows = cells.iter().flat_map(|cell| [NEAR, STORE, GENERIC].map(|name| (*cell, name)));
    let rows = rows.filter_map(|(cell, name)| {
        let label = format!("{name}, {} at once, {} tasks", cell.0, cell.1);
        Some(Bar { label, figure: ratio(figures, cell, name)?.median })
    });
    bars(
        folder,
        "lives.svg",
        "Lives of tasks per second by those with the Lua backend",
        "x",
        &rows.collect::<Vec<_>>(),
    )
}
