//! What stays small while tasks and time grow: memory per task, an index over a day, time per command.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pmcptask_client::RedisBackend;
use pmcptask_tests::Server;
use serde_json::{Value, json};

use crate::Result;
use crate::contest::{LUA, OURS};
use crate::figures::{short, write};
use crate::load::sample;
use crate::machine;
use crate::pipeline::{Pipeline, Words, batches, words};
use crate::plot::{Bar, bars};
use crate::records::{record, record_for};
use crate::watched::{Commands, OWNER, Template};

const RECORD: usize = 500;
/// Tasks whose memory is measured, however many owners share them.
const MEASURED: usize = 10_000;
/// Rounds of the churn test: the hours of a day, much faster.
const HOURS: usize = 24;
const TASKS_PER_HOUR: usize = 2_000;

/// Commands sent before their replies are read. With one command at a time, most of the time would be the
/// processor's way into sleep and out of it.
const DEPTH: usize = 50;
const BATCHES: usize = 200;
/// Batches before timing starts.
const WARM_UP: usize = 20;

/// Measures everything and writes tables, raw figures and a plot to a folder.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let server = Server::start();
    let described = machine::described(&server);
    let progress = ProgressBar::new(6 + u64::try_from(HOURS)? + 5 + 9);
    progress.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}")?);
    progress.set_message("memory");
    let memory = memory(&server, &progress).await?;
    progress.set_message("a day of churn");
    let churn = churn(&server, &progress).await?;
    progress.set_message("growth");
    let growth = growth(&server, &progress).await?;
    progress.set_message("pages");
    let pages = pages(&server, &progress)?;
    progress.finish_and_clear();

    let mut table = format!(
        "# Memory and growth\n\n{}, {} cores, {}. Records of {RECORD} bytes.\n\n## Memory per task, in bytes\n\n\
         | tasks per owner | pmcptask | Lua backend |\n|---|---|---|\n",
        described["processor"].as_str().unwrap_or_default(),
        described["cores"],
        described["server"].as_str().unwrap_or_default(),
    );
    for (owners_tasks, ours, lua) in &memory {
        let _ = writeln!(table, "| {owners_tasks} | {} | {} |", short(*ours), short(*lua));
    }
    let _ = write!(
        table,
        "\n## A day of churn\n\n{TASKS_PER_HOUR} tasks an hour that live for a second, of 100 owners who never list. What is left:\n\n\
         | hour | index entries | memory, bytes | Lua: index entries | Lua: memory, bytes |\n|---|---|---|---|---|\n"
    );
    for (hour, [ours, lua]) in churn.iter().enumerate() {
        let _ = writeln!(table, "| {} | {} | {} | {} | {} |", hour + 1, ours.0, ours.1, lua.0, lua.1);
    }
    let _ = write!(
        table,
        "\n## Time per command, in µs\n\nOne connection, {DEPTH} commands at a time; median (99th percentile) of {BATCHES} batches, one kind of \
         command after the other in the order of the columns. Those of the last one add {} tasks.\n\n\
         | tasks | put, over | `HSET` | CAS of one task | get | `HGETALL` | page of 50 | put, new |\n\
         |---|---|---|---|---|---|---|---|\n",
        (WARM_UP + BATCHES) * DEPTH,
    );
    for (tasks, times) in &growth {
        let times: Vec<_> =
            times.iter().map(|(p50, p99)| format!("{} ({})", short(*p50), short(*p99))).collect();
        let _ = writeln!(table, "| {tasks} | {} |", times.join(" | "));
    }
    let _ = write!(
        table,
        "\n## Pages of an owner, in µs\n\nOne at a time; median (99th percentile) of {PAGES} pages of {PAGE} tasks. `HGETALL` of one \
         task, at the same time, takes {} µs.\n\n\
         | entries | creation times | first page | last page | last page, `REV` |\n|---|---|---|---|---|\n",
        short(pages.hash.0),
    );
    for (entries, kind, times) in &pages.rows {
        let times: Vec<_> =
            times.iter().map(|(p50, p99)| format!("{} ({})", short(*p50), short(*p99))).collect();
        let _ = writeln!(table, "| {entries} | {kind} | {} |", times.join(" | "));
    }
    println!("{table}");
    write(folder, "growth.md", &table)?;
    let raw: Value = json!({
        "machine": described, "memory": memory, "churn": churn, "growth": growth,
        "pages": { "rows": pages.rows, "hash": pages.hash },
    });
    write(folder, "growth.json", &(serde_json::to_string(&raw)? + "\n"))?;
    let left = churn.last().map_or([0; 2], |[ours, lua]| [ours.0, lua.0]);
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    let left = [(OURS, left[0]), (LUA, left[1])]
        .map(|(name, entries)| Bar { label: name.to_owned(), figure: entries as f64 });
    bars(folder, "churn.svg", "Index entries left after a day of short tasks", "entries", &left)
}

/// The commands of both backends for a record.
async fn both(server: &Server, record: &[u8]) -> Result<[Commands; 2]> {
    let ours = RedisBackend::new(&server.url()).await?;
    let lua = pmcp_tasks::RedisBackend::new(&server.url()).await?;
    Ok([Commands::of(&ours, server.port(), record).await?, Commands::of(&lua, server.port(), record).await?])
}

/// Memory per task, in bytes, if each owner has so many tasks. Removes all other data from the server.
#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
pub(crate) fn bytes_per_task(
    server: &Server,
    put: &Template,
    tasks: usize,
    owners_tasks: usize,
) -> Result<f64> {
    let mut wire = server.wire();
    wire.call(&["FLUSHALL"]);
    let before = wire.info_number("memory", "used_memory");
    let task = |n: usize| put.fill_for(&format!("owner-{:06}", n / owners_tasks), &format!("{n:032x}"), 0);
    let puts: Vec<_> = (0..tasks).map(task).collect();
    Pipeline::open(server.port())?.run(&batches(&puts, 64))?;
    // The server frees the connection's buffers with the connection.
    std::thread::sleep(Duration::from_millis(300));
    Ok(wire.info_number("memory", "used_memory").saturating_sub(before) as f64 / tasks as f64)
}

async fn memory(server: &Server, progress: &ProgressBar) -> Result<Vec<(usize, f64, f64)>> {
    let commands = both(server, &record(OWNER, RECORD)).await?;
    let mut rows = Vec::new();
    for owners_tasks in [1, 100, MEASURED] {
        let mut bytes = [0.0; 2];
        for (bytes, commands) in bytes.iter_mut().zip(&commands) {
            *bytes = bytes_per_task(server, &commands.put, MEASURED, owners_tasks)?;
            progress.inc(1);
        }
        rows.push((owners_tasks, bytes[0], bytes[1]));
    }
    Ok(rows)
}

/// Index entries and memory after each hour, for this project and for Lua.
async fn churn(server: &Server, progress: &ProgressBar) -> Result<Vec<[(u64, u64); 2]>> {
    // One server each: the module would also clean up after the Lua backend.
    let without = Server::start_with(&pmcptask_tests::ServerOptions::default().without_module());
    server.wire().call(&["FLUSHALL"]);
    let mut hours = Vec::new();
    for hour in 0..HOURS {
        let data = record_for(OWNER, RECORD, 1_000);
        let ours = Commands::of(&RedisBackend::new(&server.url()).await?, server.port(), &data).await?;
        let lua = pmcp_tasks::RedisBackend::new(&without.url()).await?;
        let lua = Commands::of(&lua, without.port(), &data).await?;
        for (server, commands) in [(server, &ours), (&without, &lua)] {
            let put =
                |n: usize| commands.put.fill_for(&format!("owner-{}", n % 100), &format!("{hour}-{n}"), 0);
            let puts: Vec<_> = (0..TASKS_PER_HOUR).map(put).collect();
            Pipeline::open(server.port())?.run(&batches(&puts, 64))?;
        }
        // One second for the tasks to live, one second for the module to remove what is left, and
        // some reserve.
        std::thread::sleep(Duration::from_millis(2_500));
        hours.push([server, &without].map(|server| {
            let mut wire = server.wire();
            let entries = (0..100).map(|owner| {
                let count = wire.call(&["ZCARD", &format!("pmcp:idx:owner-{owner}")]);
                count.trim().trim_start_matches(':').parse::<u64>().unwrap_or(0)
            });
            (entries.sum(), server.wire().info_number("memory", "used_memory"))
        }));
        progress.inc(1);
    }
    Ok(hours)
}

/// Median and 99th percentile of each command.
type Times = Vec<(f64, f64)>;

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
async fn growth(server: &Server, progress: &ProgressBar) -> Result<Vec<(String, Times)>> {
    let mut rows = Vec::new();
    let data = record(OWNER, RECORD);
    let ours = RedisBackend::new(&server.url()).await?;
    let ours = Commands::of(&ours, server.port(), &data).await?;
    let cases =
        [10, 1_000, 100_000, 1_000_000].map(|tasks| (tasks, false)).into_iter().chain([(1_000_000, true)]);
    for (tasks, own_owners) in cases {
        server.wire().call(&["FLUSHALL"]);
        let owner = |n: usize| if own_owners { format!("owner-{n}") } else { "owner".to_owned() };
        let mut pipeline = Pipeline::open(server.port())?;
        for first in (0..tasks).step_by(10_000) {
            let part = first..tasks.min(first + 10_000);
            let puts: Vec<_> = part.map(|n| ours.put.fill_for(&owner(n), &format!("task-{n}"), 0)).collect();
            pipeline.run(&batches(&puts, 100))?;
        }
        // Spread over all tasks, and over other tasks for each command: a task that a command has touched is
        // in the processor's caches.
        let some = |n: usize| n.wrapping_mul(7_919) % tasks;
        let key = |n: usize| format!("pmcp:tasks:{}:task-{}", owner(some(n)), some(n));
        let index = |n: usize| format!("pmcp:idx:{}", owner(some(n)));
        // One more task, with a known version.
        let mut version = 0;
        pipeline.run(&batches(&[ours.put.fill_for(&owner(0), "cas", 0)], 1))?;
        let mut cas = |_: usize| {
            version += 1;
            ours.put_if_version.fill_for(&owner(0), "cas", version)
        };
        // New tasks come last, because they increase the number of the owner's tasks.
        let newcomer = |n: usize| if own_owners { format!("new-owner-{n}") } else { "owner".to_owned() };
        let commands: [&mut dyn FnMut(usize) -> Words; 7] = [
            &mut |n| ours.put.fill_for(&owner(some(n)), &format!("task-{}", some(n)), 0),
            &mut |n| {
                let mut hset = words(&["HSET", &key(n), "version", "1", "data"]);
                hset.push(data.clone());
                hset
            },
            &mut cas,
            &mut |n| words(&["PMCPTASK.GET", &key(n)]),
            &mut |n| words(&["HGETALL", &key(n)]),
            &mut |n| words(&["PMCPTASK.LIST", &index(n), "COUNT", "50"]),
            &mut |n| ours.put.fill_for(&newcomer(n), &format!("new-{n}"), 0),
        ];
        let mut times = Times::new();
        for (turn, command) in commands.into_iter().enumerate() {
            let first = turn * (WARM_UP + BATCHES) * DEPTH;
            let calls: Vec<_> = (first..first + (WARM_UP + BATCHES) * DEPTH).map(command).collect();
            let batches = batches(&calls, DEPTH);
            let (warm_up, timed) = batches.split_at(WARM_UP);
            pipeline.run(warm_up)?;
            let mut times_per_command = Vec::with_capacity(BATCHES);
            for batch in timed {
                let started = Instant::now();
                pipeline.run(std::slice::from_ref(batch))?;
                times_per_command.push(started.elapsed().div_f64(DEPTH as f64));
            }
            let sample = sample(times_per_command, Duration::from_secs(1), Duration::ZERO);
            times.push((sample.p50, sample.p99.unwrap_or(f64::NAN)));
        }
        let owners = if own_owners { "an owner each" } else { "one owner" };
        rows.push((format!("{tasks}, {owners}"), times));
        progress.inc(1);
    }
    Ok(rows)
}

const PAGE: usize = 50;
const PAGES: usize = 100;

struct Pages {
    /// Number of entries, kind of creation times, and the times of each kind of page.
    rows: Vec<(usize, &'static str, Times)>,
    /// Of one `HGETALL`.
    hash: (f64, f64),
}

/// How long a page takes if creation times are distinct, if they are all equal, and if nine in ten entries
/// have no task.
fn pages(server: &Server, progress: &ProgressBar) -> Result<Pages> {
    let mut pipeline = Pipeline::open(server.port())?;
    let mut rows = Vec::new();
    let created = |kind, n: usize| if kind == "all equal" { 1_000_000 } else { 1_000_000 + n };
    for entries in [1_000, 10_000, 100_000] {
        for kind in ["distinct", "all equal", "distinct, nine in ten without a task"] {
            server.wire().call(&["FLUSHALL"]);
            let fill: Vec<_> = (0..entries)
                .map(|n| {
                    let (id, created) = (format!("task-{n:06}"), created(kind, n).to_string());
                    if kind.ends_with("task") && n % 10 != 0 {
                        return words(&["ZADD", "pmcp:idx:owner", &created, &id]);
                    }
                    let key = format!("pmcp:tasks:owner:{id}");
                    words(&["PMCPTASK.PUT", &key, "pmcp:idx:owner", "x", "PERSIST", "CREATED", &created])
                })
                .collect();
            pipeline.run(&batches(&fill, 100))?;
            // Far enough from the end for a full page, even if few entries have a task.
            let at = entries - PAGE * if kind.ends_with("task") { 10 } else { 1 } - 1;
            let position = |n: usize| [created(kind, n).to_string(), format!("task-{n:06}")];
            let ([created_ms, id], count) = (position(at), PAGE.to_string());
            let [first_ms, first_id] = position(entries - at);
            let list = ["PMCPTASK.LIST", "pmcp:idx:owner", "COUNT", &count];
            let kinds = [
                list.to_vec(),
                [&list[..], &["AFTER", &created_ms, &id]].concat(),
                [&list[..], &["REV", "AFTER", &first_ms, &first_id]].concat(),
            ];
            let times =
                kinds.iter().map(|command| time_one(&mut pipeline, command)).collect::<Result<_>>()?;
            rows.push((entries, kind, times));
            progress.inc(1);
        }
    }
    Ok(Pages { rows, hash: time_one(&mut pipeline, &["HGETALL", "pmcp:tasks:owner:task-000000"])? })
}

/// Median and 99th percentile of a command, one at a time.
fn time_one(pipeline: &mut Pipeline, command: &[&str]) -> Result<(f64, f64)> {
    let one = batches(&[words(command)], 1);
    pipeline.run(&one)?;
    let mut times = Vec::with_capacity(PAGES);
    for _ in 0..PAGES {
        let started = Instant::now();
        pipeline.run(&one)?;
        times.push(started.elapsed());
    }
    let sample = sample(times, Duration::from_secs(1), Duration::ZERO);
    Ok((sample.p50, sample.p99.unwrap_or(f64::NAN)))
}
