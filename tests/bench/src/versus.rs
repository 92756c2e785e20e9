//! Latency and throughput of all contestants in one run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use pmcptask_tests::{Server, ServerOptions};
use serde_json::json;

use crate::comparison::{Comparison, progress_bar};
use crate::contest::{self, BARE, Contestant, LUA, OURS, Servers, TRIO, contestants};
use crate::figures::{short, write};
use crate::lists::lists_and_creates;
use crate::load::{CALLS_FOR_P99, Operation, Sample, run, sample};
use crate::machine;
use crate::many::{PUTS, many_puts};
use crate::pipeline::{Batch, Pipeline, batches};
use crate::plot::{Bar, bars};
use crate::records::record;
use crate::watched::{Commands, OWNER};
use crate::{Result, is_quick, repeats};

/// How much is measured.
struct Extent {
    record_bytes: &'static [usize],
    list_lengths: &'static [usize],
    /// The most calls of one run with several in flight.
    most_calls: usize,
}

const WHOLE: Extent = Extent {
    record_bytes: &[500, 10_000, 100_000, 1_000_000],
    list_lengths: &LIST_LENGTHS,
    most_calls: 100_000,
};
const QUICK: Extent = Extent { record_bytes: &[500], list_lengths: &[100], most_calls: 20_000 };
const IN_FLIGHT: [usize; 3] = [1, 16, 256];
/// With AOF, more than this would make a log of tens of gigabytes.
const MOST_BYTES_LOGGED: usize = 32_000_000;
pub(crate) const LIST_LENGTHS: [usize; 3] = [10, 100, 1_000];
pub(crate) const LIST: &str = "list of";
pub(crate) const CREATE: &str = "create beside";

/// Numbers of tasks of an owner, and how many list or create calls are in flight.
fn lists(extent: &Extent) -> impl Iterator<Item = (usize, usize)> {
    let lengths = extent.list_lengths.iter();
    lengths.flat_map(|tasks| IN_FLIGHT.into_iter().map(move |in_flight| (*tasks, in_flight)))
}

fn in_flight(record_bytes: usize, aof: bool) -> impl Iterator<Item = usize> {
    IN_FLIGHT.into_iter().filter(move |in_flight| !aof || in_flight * record_bytes <= MOST_BYTES_LOGGED)
}

/// Calls of one run: for some tenths of a second or longer, but fewer for long records, which move more
/// bytes. Always enough for a 99th percentile.
fn calls(record_bytes: usize, in_flight: usize, most_calls: usize) -> usize {
    const MOST_BYTES: usize = 50_000_000;
    let most = if in_flight == 1 { 3_000 } else { most_calls };
    most.min(MOST_BYTES / record_bytes).max(in_flight).max(CALLS_FOR_P99)
}

/// What is compared, on which server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    aof: bool,
    what: String,
    record_bytes: usize,
    in_flight: usize,
}

type Figures = BTreeMap<Cell, Comparison>;

/// Servers with or without AOF, and the contestants connected to them.
struct Ground {
    aof: bool,
    servers: Servers,
    contestants: Vec<Contestant>,
}

impl Ground {
    async fn prepare(aof: bool) -> Result<Self> {
        // The AOF is rewritten between runs, never during one, where it would slow down one contestant
        // by chance.
        let options = ServerOptions::default()
            .set("appendonly", if aof { "yes" } else { "no" })
            .set("auto-aof-rewrite-percentage", "0");
        let servers = Servers::start(&options)?;
        let contestants = contestants(&servers).await?;
        Ok(Self { aof, servers, contestants })
    }

    /// Steps of the progress bar in one comparison.
    fn steps(&self, extent: &Extent) -> usize {
        let cells: usize = extent.record_bytes.iter().map(|bytes| in_flight(*bytes, self.aof).count()).sum();
        Operation::ALL.len() * cells * self.contestants.len() + 2 * 2 * lists(extent).count() + 8
    }
}

/// Measures everything and writes table, raw figures and a plot to a folder.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let extent = if is_quick() { QUICK } else { WHOLE };
    let mut figures = Figures::new();
    let mut grounds = [Ground::prepare(false).await?, Ground::prepare(true).await?];
    let described = machine::described(grounds[0].servers.of(OURS));
    let steps = repeats() * grounds.iter().map(|ground| ground.steps(&extent)).sum::<usize>();
    let progress = progress_bar(steps)?;
    for repeat in 0..repeats() {
        // Alternately, and in reverse order each time, so that changes of the machine do not look like an
        // effect of the AOF.
        for ground in &grounds {
            progress.set_message(if ground.aof { "with AOF" } else { "without AOF" });
            compare(ground, repeat, &extent, &progress, &mut figures).await?;
        }
        grounds.reverse();
    }
    progress.finish_and_clear();
    let table = table(&figures, &described);
    println!("{table}");
    write(folder, "throughput.md", &table)?;
    write(folder, "throughput.json", &(serde_json::to_string(&raw(&figures, &described))? + "\n"))?;
    draw(folder, &figures)
}

async fn compare(
    Ground { aof, servers, contestants }: &Ground,
    repeat: usize,
    extent: &Extent,
    progress: &ProgressBar,
    figures: &mut Figures,
) -> Result<()> {
    let aof = *aof;
    for &record_bytes in extent.record_bytes {
        let data = record("owner", record_bytes);
        for operation in Operation::ALL {
            for in_flight in in_flight(record_bytes, aof) {
                let what = operation.name().to_owned();
                let cell = Cell { aof, what, record_bytes, in_flight };
                // Each time another contestant begins.
                for turn in 0..contestants.len() {
                    let contestant = &contestants[(repeat + turn) % contestants.len()];
                    servers.empty()?;
                    let calls = calls(record_bytes, in_flight, extent.most_calls);
                    let sample = run(contestant, operation, calls, in_flight, &data).await?;
                    figures.entry(cell.clone()).or_default().add(contestant.name, sample);
                    progress.inc(1);
                }
            }
        }
    }
    for (tasks, in_flight) in lists(extent) {
        let cell = |what: &str| Cell { aof, what: format!("{what} {tasks}"), record_bytes: 500, in_flight };
        for name in ours_and_lua(repeat) {
            servers.empty()?;
            let [list, create] = lists_and_creates_of(name, servers, tasks, in_flight).await?;
            figures.entry(cell(LIST)).or_default().add(name, list);
            figures.entry(cell(CREATE)).or_default().add(name, create);
            progress.inc(2);
        }
    }
    for name in ours_and_lua(repeat) {
        servers.empty()?;
        let cell = |what: &str| Cell { aof, what: what.to_owned(), record_bytes: 500, in_flight: PUTS };
        let [concurrent, put_many] = many_puts(name, servers).await?;
        figures.entry(cell("puts at once, per batch")).or_default().add(name, concurrent);
        figures.entry(cell("put_many, per batch")).or_default().add(name, put_many);
        progress.inc(2);
    }
    for name in ours_and_lua(repeat) {
        servers.empty()?;
        pipelined(servers.of(name), aof, name, figures).await?;
        progress.inc(2);
    }
    Ok(())
}

/// The samples of this project or of the Lua backend.
pub(crate) async fn lists_and_creates_of(
    name: &str,
    servers: &Servers,
    tasks: usize,
    in_flight: usize,
) -> Result<[Sample; 2]> {
    let server = servers.of(name);
    if name == OURS {
        lists_and_creates(async || contest::ours(server).await, tasks, in_flight).await
    } else {
        lists_and_creates(async || contest::lua(server).await, tasks, in_flight).await
    }
}

/// Both names. Each time the other one comes first.
pub(crate) fn ours_and_lua(repeat: usize) -> [&'static str; 2] {
    if repeat.is_multiple_of(2) { [OURS, LUA] } else { [LUA, OURS] }
}

/// Sends a backend's commands as fast as the server takes them, without the client.
async fn pipelined(server: &Server, aof: bool, name: &'static str, figures: &mut Figures) -> Result<()> {
    const COMMANDS: usize = 100_000;
    /// Tasks of one owner: enough for the server to keep the index as a table, where no entry is found sooner
    /// than others.
    const TASKS: usize = 1_000;
    let data = record(OWNER, 500);
    let port = server.port();
    let commands = if name == OURS {
        Commands::of(&contest::ours(server).await?, port, &data).await?
    } else {
        Commands::of(&contest::lua(server).await?, port, &data).await?
    };
    let mut pipeline = Pipeline::open(port)?;
    let fresh: Vec<_> = (0..TASKS).map(|n| commands.put.fill(&n.to_string(), 0)).collect();
    pipeline.run(&batches(&fresh, 16))?;
    let won = |n: usize| commands.put_if_version.fill(&(n % TASKS).to_string(), (n / TASKS + 1) as u64);
    let cas: Vec<_> = (0..COMMANDS).map(won).collect();
    for (what, seconds) in [
        ("put over, redis-benchmark", redis_benchmark(port, &commands.put.fill("again", 0), COMMANDS)?),
        ("CAS won, pipelined", timed(&mut pipeline, &batches(&cas, 256))?),
    ] {
        let cell = Cell { aof, what: what.to_owned(), record_bytes: 500, in_flight: 256 };
        let sample = sample(vec![Duration::ZERO; COMMANDS], seconds, Duration::ZERO);
        figures.entry(cell).or_default().add(name, sample);
    }
    Ok(())
}

fn timed(pipeline: &mut Pipeline, batches: &[Batch]) -> Result<Duration> {
    let started = Instant::now();
    pipeline.run(batches)?;
    Ok(started.elapsed())
}

/// Runs the server's own benchmark with one command, on 16 connections with 16 commands in flight each.
fn redis_benchmark(port: u16, command: &[Vec<u8>], commands: usize) -> Result<Duration> {
    let program = std::env::var("PMCPTASK_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    let output = Command::new(program.replace("-server", "-benchmark"))
        .args(["-p", &port.to_string(), "-c", "16", "-P", "16", "-n", &commands.to_string(), "--csv"])
        .args(command.iter().map(|word| String::from_utf8_lossy(word).into_owned()))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text
        .lines()
        .last()
        .and_then(|line| line.rsplit("\",\"").nth(6)?.parse::<f64>().ok())
        .ok_or_else(|| format!("redis-benchmark tells no rate: {text}"))?;
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    Ok(Duration::from_secs_f64(commands as f64 / rate))
}

fn size(record_bytes: usize) -> String {
    if record_bytes < 1_000 { "0.5 KB".to_owned() } else { format!("{} KB", record_bytes / 1_000) }
}

fn table(figures: &Figures, described: &serde_json::Value) -> String {
    let text = |name: &str| described[name].as_str().unwrap_or_default().to_owned();
    let mut table = format!(
        "# Latency and throughput\n\n{}, {} cores, {}; pmcptask {}, pmcp-tasks {}. Calls per second of pmcptask by those of \
         the other, median of {} repeats (least to greatest): more is faster. One client, one connection; `bare` is \
         HSET for writes and HGETALL for reads, `trio` HSET, ZADD and PEXPIREAT in one pipeline, neither with versions, \
         conditions or checks. With AOF, 256 records of 1 MB in flight are left out: their log would be too long. Creations at once come in bursts, undone in between. Latency in µs at the median repeat.\n",
        text("processor"),
        described["cores"],
        text("server"),
        text("pmcptask"),
        text("pmcp-tasks"),
        repeats(),
    );
    for aof in [false, true] {
        let _ = write!(
            table,
            "\n## {} AOF\n\n| operation | record | in flight | : Lua | : bare | : trio | p50 | p99 | Lua p50 | Lua p99 | client µs per call | Lua client |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n",
            if aof { "With" } else { "Without" }
        );
        for (cell, comparison) in figures.iter().filter(|(cell, _)| cell.aof == aof) {
            let ratio = |other| comparison.ratio(other).map_or("-".to_owned(), |ratio| ratio.to_string());
            let median = |contestant, of| {
                let median = comparison.median(contestant, of).filter(|median| *median > 0.0);
                median.map_or("-".to_owned(), short)
            };
            let _ = writeln!(
                table,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                cell.what,
                size(cell.record_bytes),
                cell.in_flight,
                ratio(LUA),
                ratio(BARE),
                ratio(TRIO),
                median(OURS, |sample| Some(sample.p50)),
                median(OURS, |sample| sample.p99),
                median(LUA, |sample| Some(sample.p50)),
                median(LUA, |sample| sample.p99),
                median(OURS, |sample| Some(sample.client_us)),
                median(LUA, |sample| Some(sample.client_us)),
            );
        }
    }
    table
}

fn raw(figures: &Figures, described: &serde_json::Value) -> serde_json::Value {
    let cell = |(cell, comparison): (&Cell, &Comparison)| {
        json!({ "aof": cell.aof, "operation": cell.what, "record_bytes": cell.record_bytes,
                "in_flight": cell.in_flight, "contestants": comparison.raw() })
    };
    json!({ "machine": described, "cells": figures.iter().map(cell).collect::<Vec<_>>() })
}

fn draw(folder: &Path, figures: &Figures) -> Result<()> {
    let is_list = |cell: &Cell| cell.what.starts_with(LIST) || cell.what.starts_with(CREATE);
    let busy = figures.iter().filter(|(cell, _)| cell.in_flight == 256 && cell.record_bytes == 500);
    let busy = busy.filter(|(cell, _)| !is_list(cell)).filter_map(|(cell, comparison)| {
        let label = format!("{}{}", cell.what, if cell.aof { ", AOF" } else { "" });
        Some(Bar { label, figure: comparison.ratio(LUA)?.median })
    });
    bars(
        folder,
        "throughput.svg",
        "Calls per second by those of the Lua backend (256 in flight, 0.5 KB)",
        "x",
        &busy.collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_records_are_sent_less_often() {
        let calls = |record_bytes, in_flight| calls(record_bytes, in_flight, WHOLE.most_calls);
        assert_eq!(calls(500, 1), 3_000);
        assert_eq!(calls(500, 256), 100_000);
        assert_eq!(calls(100_000, 1), 500);
        assert_eq!(calls(1_000_000, 1), 100);
        assert_eq!(calls(1_000_000, 256), 256);
    }
}
