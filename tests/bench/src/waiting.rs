//! What waiting for changes costs: memory, the time from a write to the wake-up, and requests while nothing
//! changes. Also the time from a cancel to its worker, and the memory of the near cache, to which the server tells changes in the
//! same way.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use pmcp::server::task_store::TaskStore as _;
use pmcp_tasks::TaskSecurityConfig;
use pmcp_tasks::store::backend::StorageBackend as _;
use pmcptask_client::{RedisBackend, TaskStore, WorkerError};
use pmcptask_tests::{Server, Wire};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Result;
use crate::figures::{percentile, short, write};
use crate::machine;
use crate::records::record;

const WAITERS: usize = 10_000;
/// How often one waiter of many is woken at most.
const WAKE_UPS: usize = 1_000;
const IDLE: Duration = Duration::from_secs(5);
/// Longer than any wait here.
const LONG: Duration = Duration::from_hours(1);
/// Tasks in the near cache.
const CACHED: usize = 10_000;
const CANCELS: usize = 1_000;

/// The case that is no row.
const NEAR_CACHE: &str = "near-cache";
/// The command that reads a task.
const READ: &str = "pmcptask.get";

const OWNER: &str = "owner";
const BYTES: usize = 500;

/// What waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Backend,
    Changed,
    Terminal,
    /// As before, and the tasks have workers.
    TerminalOfWorkers,
}

impl Call {
    fn shown(self) -> &'static str {
        match self {
            Self::Backend => "`RedisBackend::changed`",
            Self::Changed => "`TaskStore::changed`",
            Self::Terminal => "`TaskStore::wait_until_terminal`",
            Self::TerminalOfWorkers => "the same, tasks with workers",
        }
    }

    fn waits_for_the_end(self) -> bool {
        matches!(self, Self::Terminal | Self::TerminalOfWorkers)
    }

    /// How often a waiter reads the task before it waits.
    fn reads(self) -> u64 {
        if self.waits_for_the_end() { 3 } else { 2 }
    }
}

/// The call, how many wait, and for how many tasks.
const CASES: [(Call, usize, usize); 6] = [
    (Call::Backend, 1, 1),
    (Call::Backend, WAITERS, WAITERS),
    (Call::Backend, WAITERS, 1),
    (Call::Changed, WAITERS, WAITERS),
    (Call::Terminal, WAITERS, WAITERS),
    (Call::TerminalOfWorkers, WAKE_UPS, WAKE_UPS),
];

/// What was measured.
#[derive(Default)]
struct Figures {
    client_bytes: u64,
    server_bytes: u64,
    idle_commands: u64,
    /// From the start of a write to the waiter's return, in ms.
    latencies: Vec<f64>,
}

/// Measures everything. What takes memory has a process of its own, which makes no tasks: what it has freed before would
/// hide what it takes.
///
/// # Errors
///
/// If a step fails.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let mut table = "| call | waiters | tasks | client, bytes per waiter | server, bytes per waiter | \
                     commands in 5 s without a change | write to wake-up, median | p99 | longest |\n\
                     |---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (number, (call, _, tasks)) in CASES.into_iter().enumerate() {
        let server = Server::start();
        let store = store(&server.url()).await?;
        put_all(store.backend(), tasks).await?;
        let mut workers = Vec::new();
        if call == Call::TerminalOfWorkers {
            for task in 0..tasks {
                workers.push(store.work_on(&task.to_string(), OWNER).await?);
            }
        }
        table.push_str(&in_process(&number.to_string(), &server)?);
    }
    let server = Server::start();
    put_all(store(&server.url()).await?.backend(), CACHED).await?;
    let cached = in_process(NEAR_CACHE, &server)?;
    let mut cancels = cancels(&server).await?;
    writeln!(
        table,
        "\nA cancel at one store until `Worker::cancelled` returns at another: {} ms (median), {} ms (p99), {} ms (longest of \
         {CANCELS}).\n\n{cached}\n`{}`",
        short(percentile(&mut cancels, 50)),
        short(percentile(&mut cancels, 99)),
        short(percentile(&mut cancels, 100)),
        machine::described(&server),
    )?;
    println!("{table}");
    write(folder, "waiting.md", &table)
}

/// What a process prints that measures a case with the tasks of this server.
fn in_process(case: &str, server: &Server) -> Result<String> {
    let mut process = Command::new(env::current_exe()?);
    let output = process.args(["waiting-case", &format!("{case}:{}", server.port())]);
    let output = output.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("the process of case {case} ended with {}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Measures a case, which is named with the port of the server, and prints what was measured.
///
/// # Errors
///
/// If a step fails.
pub(crate) async fn print_case(case_and_port: &str) -> Result<()> {
    let (case, port) = case_and_port.split_once(':').ok_or("expected CASE:PORT")?;
    let port = port.parse()?;
    if case == NEAR_CACHE {
        let [cached, tracked] = near_cache_bytes(port).await?;
        println!(
            "The near cache takes {cached} bytes per task of {BYTES} bytes in the process, and {tracked} at the server."
        );
        return Ok(());
    }
    let (call, waiters, tasks) = *CASES.get(case.parse::<usize>()?).ok_or("there is no such case")?;
    let mut figures = of(port, call, waiters, tasks).await?;
    // What a process takes once is too much for one waiter.
    let bytes = |bytes: u64| if waiters == 1 { String::new() } else { bytes.to_string() };
    let (client, server) = (bytes(figures.client_bytes), bytes(figures.server_bytes));
    let mut latency = |percent| short(percentile(&mut figures.latencies, percent));
    println!(
        "| {} | {waiters} | {tasks} | {client} | {server} | {} | {} ms | {} ms | {} ms |",
        call.shown(),
        figures.idle_commands,
        latency(50),
        latency(99),
        latency(100),
    );
    Ok(())
}

fn url_of(port: u16) -> String {
    format!("redis://127.0.0.1:{port}/")
}

async fn store(url: &str) -> Result<TaskStore> {
    let security = TaskSecurityConfig::default().with_max_tasks_per_owner(2 * WAITERS);
    Ok(TaskStore::new(RedisBackend::new(url).await?).with_security(security))
}

fn key_of(id: &str) -> String {
    format!("{OWNER}:{id}")
}

/// Puts so many tasks, which have the ids 0, 1, … and version 1.
async fn put_all(backend: &RedisBackend, tasks: usize) -> Result<()> {
    let (keys, data) = ((0..tasks).map(|task| key_of(&task.to_string())), record(OWNER, BYTES));
    let keys: Vec<_> = keys.collect();
    let records: Vec<_> = keys.iter().map(|key| (key.as_str(), data.as_slice())).collect();
    for put in backend.put_many(&records).await {
        put?;
    }
    Ok(())
}

async fn of(port: u16, call: Call, waiters: usize, tasks: usize) -> Result<Figures> {
    let (waiting, writing) = (Arc::new(store(&url_of(port)).await?), RedisBackend::new(&url_of(port)).await?);
    let mut wire = Wire::open(port)?;
    let mut last = String::from_utf8(record(OWNER, BYTES))?;
    if call.waits_for_the_end() {
        last = last.replace(r#""status":"working""#, r#""status":"completed""#);
    }
    let ids: &'static [String] = (0..tasks).map(|task| task.to_string()).collect::<Vec<_>>().leak();
    // What reading takes once is not counted as memory of the waiters.
    waiting.backend().get(&key_of(&ids[0])).await?;
    let (client, served) = (resident()?, memory_of(&mut wire));
    let mut woken = JoinSet::new();
    let before = wire.calls_of(READ);
    for waiter in 0..waiters {
        woken.spawn(wait(call, waiting.clone(), &ids[waiter % tasks], 1));
    }
    while wire.calls_of(READ) < before + call.reads() * waiters as u64 {
        sleep(Duration::from_millis(5)).await;
    }
    sleep(Duration::from_millis(500)).await;
    let mut figures = Figures {
        client_bytes: resident()?.saturating_sub(client) / waiters as u64,
        server_bytes: memory_of(&mut wire).saturating_sub(served) / waiters as u64,
        ..Figures::default()
    };
    let mut commands = || wire.info_number("stats", "total_commands_processed");
    let before = commands();
    sleep(IDLE).await;
    // Without the first count itself.
    figures.idle_commands = (commands() - before).saturating_sub(1);
    if tasks == 1 && waiters > 1 {
        let started = Instant::now();
        writing.put(&key_of(&ids[0]), last.as_bytes()).await?;
        while let Some(returned) = woken.join_next().await {
            figures.latencies.push((returned?? - started).as_secs_f64() * 1e3);
        }
        return Ok(figures);
    }
    for number in 0..WAKE_UPS {
        let id = &ids[number * 7 % tasks];
        let (key, started) = (key_of(id), Instant::now());
        let version = writing.put(&key, last.as_bytes()).await?;
        let returned = woken.join_next().await.ok_or("nobody waits")???;
        figures.latencies.push((returned - started).as_secs_f64() * 1e3);
        if call.waits_for_the_end() {
            continue;
        }
        let before = wire.calls_of(READ);
        woken.spawn(wait(call, waiting.clone(), id, version));
        while wire.calls_of(READ) < before + call.reads() {
            sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(figures)
}

/// Waits, and returns the time at which the wait was over. Boxed, so that each call takes only the memory that it needs.
fn wait(
    call: Call,
    store: Arc<TaskStore>,
    id: &'static str,
    version: u64,
) -> BoxFuture<'static, Result<Instant>> {
    match call {
        Call::Backend => Box::pin(async move {
            store.backend().changed(&key_of(id), version).await?;
            Ok(Instant::now())
        }),
        Call::Changed => Box::pin(async move {
            store.changed(id, OWNER, version).await?;
            Ok(Instant::now())
        }),
        Call::Terminal | Call::TerminalOfWorkers => Box::pin(async move {
            store.wait_until_terminal(id, OWNER, LONG).await?;
            Ok(Instant::now())
        }),
    }
}

/// From the start of a cancel at one store until a worker at another learns of it, in ms.
async fn cancels(server: &Server) -> Result<Vec<f64>> {
    let (working, cancelling) = (store(&server.url()).await?, store(&server.url()).await?);
    let mut latencies = Vec::new();
    for _ in 0..CANCELS {
        let id = working.create(OWNER, None).await?.task_id;
        let worker = working.work_on(&id, OWNER).await?;
        let before = server.calls_of(READ);
        let learning = tokio::spawn(async move {
            worker.cancelled().await;
            (Instant::now(), worker)
        });
        while server.calls_of(READ) < before + 2 {
            sleep(Duration::from_millis(1)).await;
        }
        let started = Instant::now();
        cancelling.cancel(&id, OWNER).await?;
        let (learnt, worker) = learning.await?;
        latencies.push((learnt - started).as_secs_f64() * 1e3);
        // A worker that is dropped before it was refused would read once more.
        if !matches!(worker.fail("cancelled").await, Err(WorkerError::Task(_))) {
            return Err("expected a task that cannot be failed after its cancel, got one that can".into());
        }
    }
    Ok(latencies)
}

/// What a task in the near cache takes: in this process, and at the server.
async fn near_cache_bytes(port: u16) -> Result<[u64; 2]> {
    let (store, mut wire) = (store(&url_of(port)).await?.near_cache(1 << 30), Wire::open(port)?);
    let poll = async |task: usize| store.get(&task.to_string(), OWNER).await;
    let (client, served) = (resident()?, memory_of(&mut wire));
    // The second poll of a task has it tracked.
    for task in (0..CACHED).chain(0..CACHED) {
        poll(task).await?;
    }
    let bytes = [resident()?.saturating_sub(client), memory_of(&mut wire).saturating_sub(served)];
    let before = wire.calls_of(READ);
    for task in 0..CACHED {
        poll(task).await?;
    }
    match wire.calls_of(READ) - before {
        0 => Ok(bytes.map(|bytes| bytes / CACHED as u64)),
        reads => Err(format!("expected no reads of cached tasks, got {reads}").into()),
    }
}

/// Memory of this process, in bytes.
fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn memory_of(wire: &mut Wire) -> u64 {
    wire.info_number("memory", "used_memory")
}
