//! What waiting for changes costs: memory, the time from a write to the wake-up, and requests while nothing
//! changes.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use pmcp_tasks::store::backend::StorageBackend as _;
use pmcptask_client::RedisBackend;
use pmcptask_tests::Server;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Result;
use crate::figures::{percentile, short, write};
use crate::machine;
use crate::records::record;

const WAITERS: usize = 10_000;
/// How often one waiter of many is woken.
const WAKE_UPS: usize = 1_000;
const IDLE: Duration = Duration::from_secs(5);

/// What was measured.
#[derive(Default)]
struct Figures {
    client_bytes: u64,
    server_bytes: u64,
    idle_commands: u64,
    /// From the start of a write to the waiter's return, in ms.
    latencies: Vec<f64>,
}

/// Measures one waiter, many waiters of as many tasks, and as many of one task.
///
/// # Errors
///
/// If a step fails.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let mut table = "| waiters | tasks | client, bytes per waiter | server, bytes per waiter | commands in 5 s without a change | \
                     write to wake-up, median | p99 | longest |\n|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    let mut machine = None;
    for (waiters, tasks) in [(1, 1), (WAITERS, WAITERS), (WAITERS, 1)] {
        let server = Server::start();
        let mut figures = of(&server, waiters, tasks).await?;
        let mut latency = |percent| short(percentile(&mut figures.latencies, percent));
        writeln!(
            table,
            "| {waiters} | {tasks} | {} | {} | {} | {} ms | {} ms | {} ms |",
            figures.client_bytes,
            figures.server_bytes,
            figures.idle_commands,
            latency(50),
            latency(99),
            latency(100),
        )?;
        machine.get_or_insert_with(|| machine::described(&server));
    }
    write(folder, "waiting.md", &format!("{table}\n`{}`\n", machine.unwrap_or_default()))
}

async fn of(server: &Server, waiters: usize, tasks: usize) -> Result<Figures> {
    let [waiting, writing] =
        [RedisBackend::new(&server.url()).await?, RedisBackend::new(&server.url()).await?];
    let data = record("owner", 500);
    let keys: &'static [String] = (0..tasks).map(|task| format!("owner:{task}")).collect::<Vec<_>>().leak();
    let records: Vec<_> = keys.iter().map(|key| (key.as_str(), data.as_slice())).collect();
    for put in writing.put_many(&records).await {
        put?;
    }
    // What reading takes once is not counted as memory of the waiters.
    let names: Vec<_> = keys.iter().map(String::as_str).collect();
    drop(waiting.get_many(&names).await);
    let (client, served) = (resident()?, memory_of(server));
    let mut woken = JoinSet::new();
    let before = server.calls_of("pmcptask.get");
    for waiter in 0..waiters {
        wait(&mut woken, &waiting, &keys[waiter % tasks], 1);
    }
    while server.calls_of("pmcptask.get") < before + 2 * waiters as u64 {
        sleep(Duration::from_millis(5)).await;
    }
    sleep(Duration::from_millis(500)).await;
    let mut figures = Figures {
        client_bytes: resident()?.saturating_sub(client) / waiters as u64,
        server_bytes: memory_of(server).saturating_sub(served) / waiters as u64,
        ..Figures::default()
    };
    let commands = || server.wire().info_number("stats", "total_commands_processed");
    let before = commands();
    sleep(IDLE).await;
    // Without the two counts themselves.
    figures.idle_commands = (commands() - before).saturating_sub(1);
    if tasks == 1 && waiters > 1 {
        let started = Instant::now();
        writing.put(&keys[0], &data).await?;
        while let Some(returned) = woken.join_next().await {
            figures.latencies.push((returned??.1 - started).as_secs_f64() * 1e3);
        }
        return Ok(figures);
    }
    for number in 0..WAKE_UPS {
        let key = &keys[number * 7 % tasks];
        let started = Instant::now();
        let version = writing.put(key, &data).await?;
        let returned = woken.join_next().await.ok_or("nobody waits")???;
        figures.latencies.push((returned.1 - started).as_secs_f64() * 1e3);
        let before = server.calls_of("pmcptask.get");
        wait(&mut woken, &waiting, key, version);
        while server.calls_of("pmcptask.get") < before + 2 {
            sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(figures)
}

type Woken = std::result::Result<(u64, Instant), pmcp_tasks::StorageError>;

fn wait(woken: &mut JoinSet<Woken>, backend: &RedisBackend, key: &'static str, version: u64) {
    let backend = backend.clone();
    woken.spawn(async move {
        let task = backend.changed(key, version).await?;
        Ok((task.map_or(0, |task| task.version), Instant::now()))
    });
}

/// Memory of this process, in bytes.
fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn memory_of(server: &Server) -> u64 {
    server.wire().info_number("memory", "used_memory")
}
