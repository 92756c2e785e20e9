//! Numbers for planning: what tasks take of memory, processor, time to restart and network, by the size of a
//! record.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use indicatif::ProgressBar;
use pmcptask_tests::{Server, ServerOptions};

use crate::comparison::progress_bar;
use crate::contest::ours;
use crate::figures::{Spread, short, write};
use crate::growth::bytes_per_task;
use crate::lives::live;
use crate::pipeline::{Pipeline, Words, batches, words};
use crate::records::record;
use crate::stores::{STORE, store};
use crate::watched::{Commands, OWNER, Template};
use crate::{Result, is_quick, machine, repeats};

const RECORDS: [usize; 4] = [500, 2_000, 10_000, 100_000];
/// Tasks of an owner, where one kind of owner is enough.
const OWNERS_TASKS: usize = 100;
/// Enough for the server to keep their index as a skiplist.
const MANY: usize = 1_000;
/// Commands sent before their replies are read, as busy clients do.
const DEPTH: usize = 16;
/// Commands that this process encodes at a time.
const ENCODED: usize = 1_000;

/// Titles of the figures, in the order in which they are measured.
const ROWS: [&str; 14] = [
    "bytes per task",
    "bytes per task of an owner with more than 128",
    "bytes more per owner",
    "tasks per GB",
    "PUT, new: per second and core",
    "PUT, over",
    "CAS",
    "GET",
    "LIST of 10",
    "LIST of 100",
    "restart: seconds per million tasks, from an RDB file",
    "the same from an AOF that was never rewritten",
    "a task's life: bytes to the server",
    "bytes from the server",
];

/// All records of a measurement together, in bytes.
fn volume() -> usize {
    if is_quick() { 20_000_000 } else { 100_000_000 }
}

/// Tasks of a measurement: a multiple of what an owner has.
fn tasks_of(record: usize) -> usize {
    (volume() / record / MANY).max(1) * MANY
}

/// Measures everything and writes a page to a folder.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let server = Server::start();
    let progress = progress_bar(RECORDS.len() * (2 + repeats()))?;
    let mut columns = Vec::new();
    for size in RECORDS {
        let record = record(OWNER, size);
        let commands = Commands::of(&ours(&server).await?, server.port(), &record).await?;
        let mut figures = memory(&server, &commands.put, size)?;
        progress.inc(1);
        figures.extend(rates(&server, &commands, tasks_of(size), &progress)?);
        figures.extend(restarts(&commands.put, tasks_of(size))?);
        figures.extend(network(&server, size).await?);
        progress.inc(1);
        columns.push(figures);
    }
    progress.finish_and_clear();
    let page = page(&server, &columns)?;
    println!("{page}");
    write(folder, "planning.md", &page)
}

/// Fills a server with tasks, of owners with [`OWNERS_TASKS`] each.
fn fill(server: &Server, put: &Template, tasks: usize) -> Result<()> {
    run(&mut Pipeline::open(server.port())?, tasks, |n| on_task(put, n, 0))
}

fn on_task(command: &Template, n: usize, version: u64) -> Words {
    command.fill_for(&owner(n / OWNERS_TASKS), &id(n), version)
}

fn owner(number: usize) -> String {
    format!("owner-{number:06}")
}

/// As long as a UUID without dashes.
fn id(n: usize) -> String {
    format!("{n:032x}")
}

fn run(pipeline: &mut Pipeline, count: usize, mut command: impl FnMut(usize) -> Words) -> Result<()> {
    for first in (0..count).step_by(ENCODED) {
        let part: Vec<_> = (first..count.min(first + ENCODED)).map(&mut command).collect();
        pipeline.run(&batches(&part, DEPTH))?;
    }
    Ok(())
}

/// The first four rows.
fn memory(server: &Server, put: &Template, record: usize) -> Result<Vec<f64>> {
    let tasks = tasks_of(record).min(10 * MANY);
    let of_owners_with = |owners_tasks| bytes_per_task(server, put, tasks, owners_tasks);
    let (alone, some, many) = (of_owners_with(1)?, of_owners_with(OWNERS_TASKS)?, of_owners_with(MANY)?);
    Ok(vec![some, many, alone - some, 1e9 / some])
}

/// The next six rows: medians of all repeats.
fn rates(server: &Server, commands: &Commands, tasks: usize, progress: &ProgressBar) -> Result<Vec<f64>> {
    let list = |n: usize, count: &str| {
        words(&[
            "PMCPTASK.LIST",
            &format!("pmcp:idx:{}", owner(n * 7 % (tasks / OWNERS_TASKS))),
            "COUNT",
            count,
        ])
    };
    let mut rounds = Vec::new();
    for _ in 0..repeats() {
        server.wire().call(&["FLUSHALL"]);
        let rate = |count, command: &dyn Fn(usize) -> Words| per_core(server, count, command);
        rounds.push([
            rate(tasks, &|n| on_task(&commands.put, n, 0))?,
            rate(tasks, &|n| on_task(&commands.put, n, 0))?,
            // Two writes made the tasks.
            rate(tasks, &|n| on_task(&commands.put_if_version, n, 2))?,
            rate(tasks, &|n| on_task(&commands.get, n, 0))?,
            rate(tasks / 10, &|n| list(n, "10"))?,
            rate(tasks / 20, &|n| list(n, "100"))?,
        ]);
        progress.inc(1);
    }
    let median = |kind: usize| Spread::of(&rounds.iter().map(|round| round[kind]).collect::<Vec<_>>()).median;
    Ok((0..6).map(median).collect())
}

/// Commands by the processor time that the server takes for them, in seconds: the rate does not depend on who
/// else uses the machine.
#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn per_core(server: &Server, count: usize, command: &dyn Fn(usize) -> Words) -> Result<f64> {
    let (mut pipeline, before) = (Pipeline::open(server.port())?, processor_seconds(server)?);
    run(&mut pipeline, count, command)?;
    Ok(count as f64 / (processor_seconds(server)? - before))
}

fn processor_seconds(server: &Server) -> Result<f64> {
    let mut wire = server.wire();
    let mut seconds = |field| wire.info("cpu", field).parse::<f64>();
    Ok(seconds("used_cpu_user")? + seconds("used_cpu_sys")?)
}

/// The two rows of restarts.
fn restarts(put: &Template, tasks: usize) -> Result<Vec<f64>> {
    let with_aof = ServerOptions::default()
        .set("appendonly", "yes")
        .set("appendfsync", "no")
        .set("auto-aof-rewrite-percentage", "0");
    [ServerOptions::default(), with_aof].iter().map(|options| restart(options, put, tasks)).collect()
}

/// Seconds per million tasks by which a restart takes longer than that of an empty server.
#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn restart(options: &ServerOptions, put: &Template, tasks: usize) -> Result<f64> {
    let mut server = Server::try_start_with(options)?;
    let empty = seconds_to_restart(&mut server)?;
    fill(&server, put, tasks)?;
    let saved = server.wire().call(&["SAVE"]);
    if saved != "+OK\r\n" {
        return Err(format!("the server does not save its data: {saved}").into());
    }
    Ok((seconds_to_restart(&mut server)? - empty) * 1e6 / tasks as f64)
}

/// From the start of the process until it answers: the median of all repeats.
fn seconds_to_restart(server: &mut Server) -> Result<f64> {
    let keys = server.wire().call(&["DBSIZE"]);
    let mut seconds = Vec::new();
    for _ in 0..repeats() {
        server.kill();
        let started = Instant::now();
        server.restart();
        seconds.push(started.elapsed().as_secs_f64());
        let loaded = server.wire().call(&["DBSIZE"]);
        if loaded != keys {
            return Err(format!("expected {keys} keys after a restart, got {loaded}").into());
        }
    }
    Ok(Spread::of(&seconds).median)
}

/// The last two rows.
#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
async fn network(server: &Server, result: usize) -> Result<Vec<f64>> {
    const LIVES: u32 = 100;
    let (store, result) = (store(STORE, &server.url()).await?, "x".repeat(result));
    live(store.as_ref(), "owner", &result).await?;
    let mut wire = server.wire();
    let mut bytes =
        || ["input", "output"].map(|way| wire.info_number("stats", &format!("total_net_{way}_bytes")));
    let before = bytes();
    for _ in 0..LIVES {
        live(store.as_ref(), "owner", &result).await?;
    }
    let of_lives = bytes().into_iter().zip(before).map(|(after, before)| (after - before) as f64);
    Ok(of_lives.map(|bytes| bytes / f64::from(LIVES)).collect())
}

fn page(server: &Server, columns: &[Vec<f64>]) -> Result<String> {
    let described = machine::described(server);
    let mut page = format!(
        "# Numbers for planning\n\n{}, {}. By `make bench-planning`{}: medians of {} repeats.\n\n| records of, in bytes |",
        described["processor"].as_str().unwrap_or_default(),
        described["server"].as_str().unwrap_or_default(),
        if is_quick() { " with `BENCH_QUICK=1`" } else { "" },
        repeats(),
    );
    for size in RECORDS {
        write!(page, " {size} |")?;
    }
    writeln!(page, "\n|---|{}", "---|".repeat(RECORDS.len()))?;
    for (row, title) in ROWS.iter().enumerate() {
        let cells: Vec<_> = columns.iter().map(|figures| short(figures[row])).collect();
        writeln!(page, "| {title} | {} |", cells.join(" | "))?;
    }
    page.push_str(FORMULA);
    Ok(page)
}

const FORMULA: &str = "
- **Memory** = tasks × bytes per task + owners × bytes more per owner. An owner with more than 128 tasks \
(`zset-max-listpack-entries`) has the second row.
- **Cores** = the sum, over the kinds of commands, of commands per second / per second and core. A server runs commands on one core: \
from about 0.7 on, take a cluster. Measured is the server's processor time, with 16 commands in flight; a server that is less busy takes \
more for each.
- **Restart** = tasks / 1,000,000 × seconds. The server reads the file from the cache of the operating system, not from the disk. \
An RDB file is compressed, and these records are short once compressed.
- **Network** = lives per second × bytes. A life in a `TaskStore`: create, five progress messages with a poll after each, a result as \
large as the record, completed, two reads.
";
