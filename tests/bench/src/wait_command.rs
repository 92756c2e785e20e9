//! What `PMCPTASK.WAIT` costs: the server's memory per blocked client and the time from a write to the answer, beside
//! those of `BLPOP`, and what other clients wait while all blocked clients are answered at once.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pmcptask_tests::{Server, ServerOptions, Wire};

use crate::Result;
use crate::figures::{percentile, short, write};
use crate::machine;

const WAITERS: usize = 10_000;
/// How often one waiter is woken.
const WAKE_UPS: usize = 2_000;
/// After this time, the server has shrunk the buffers of idle clients.
const SETTLING: Duration = Duration::from_secs(15);
/// Time before all are woken, in which the client that measures round trips gets going.
const BEFORE: Duration = Duration::from_millis(500);

/// Measures one waiter, many waiters of as many tasks, and as many of one task.
///
/// # Errors
///
/// If a step fails.
pub(crate) fn measure(folder: &Path) -> Result<()> {
    let maximum = (WAITERS + 100).to_string();
    let start = || Server::start_with(&ServerOptions::default().set("maxclients", &maximum));
    let server = start();
    let mut wait = one_waiter(&server, wait_and_put)?;
    let mut blpop = one_waiter(&server, blpop_and_rpush)?;
    let blpop_bytes =
        blocked(&start(), |_| vec!["BLPOP".to_owned(), "list".to_owned(), "0".to_owned()])?.bytes;
    let mut table = format!(
        "One client is blocked. From the start of a write to the answer: `PMCPTASK.WAIT` {} ms (median), {} ms (p99); `BLPOP` \
         {} ms, {} ms.\n\n\
         {WAITERS} clients are blocked by `BLPOP` on one key: {blpop_bytes} bytes per client at the server, with its connection. By `PMCPTASK.WAIT`:\n\n\
         | tasks | server, bytes per client | all answered after | `PING` of another client meanwhile, median | p99 | longest |\n\
         |---|---|---|---|---|---|\n",
        short(percentile(&mut wait, 50)),
        short(percentile(&mut wait, 99)),
        short(percentile(&mut blpop, 50)),
        short(percentile(&mut blpop, 99)),
    );
    for tasks in [WAITERS, 1] {
        let server = start();
        let Crowd { bytes, answered_ms, mut pings } = many_waiters(&server, tasks)?;
        let mut ping = |percent| short(percentile(&mut pings, percent));
        writeln!(
            table,
            "| {tasks} | {bytes} | {} ms | {} ms | {} ms | {} ms |",
            short(answered_ms),
            ping(50),
            ping(99),
            ping(100),
        )?;
    }
    write(folder, "wait_command.md", &format!("{table}\n`{}`\n", machine::described(&server)))
}

/// The key of a task, and that of its index.
fn keys(task: usize) -> [String; 2] {
    [format!("pmcp:tasks:o{task}:0f0e0d0c-0b0a-4908-8706-050403020100"), format!("pmcp:idx:o{task}")]
}

fn put(wire: &mut Wire, task: usize) -> Result<()> {
    let [task, index] = keys(task);
    let reply = wire.call(&["PMCPTASK.PUT", &task, &index, &"x".repeat(500)]);
    if reply.starts_with(':') { Ok(()) } else { Err(reply.into()) }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The command that blocks for the next change, and the write that ends it.
type Turn = fn(usize) -> [Vec<String>; 2];

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn wait_and_put(version: usize) -> [Vec<String>; 2] {
    let [task, index] = keys(0);
    [wait(&task, version), words(&["PMCPTASK.PUT", &task, &index, "x"])]
}

fn wait(task: &str, version: usize) -> Vec<String> {
    words(&["PMCPTASK.WAIT", task, &version.to_string(), "0"])
}

fn blpop_and_rpush(_: usize) -> [Vec<String>; 2] {
    [words(&["BLPOP", "list", "0"]), words(&["RPUSH", "list", "x"])]
}

fn one_waiter(server: &Server, turn: Turn) -> Result<Vec<f64>> {
    let (mut writing, mut waiting) = (server.wire(), server.wire());
    put(&mut writing, 0)?;
    let mut latencies = Vec::new();
    for number in 1..=WAKE_UPS {
        let [block, write] = turn(number);
        waiting.send(&block)?;
        while blocked_clients(&mut writing) != 1 {}
        let started = Instant::now();
        writing.send(&write)?;
        waiting.receive()?;
        latencies.push(milliseconds(started));
        writing.receive()?;
    }
    Ok(latencies)
}

fn blocked_clients(wire: &mut Wire) -> u64 {
    wire.info_number("clients", "blocked_clients")
}

/// Many blocked clients.
struct Blocked {
    clients: Vec<Wire>,
    /// The server's memory for each, with its connection.
    bytes: u64,
}

fn blocked(server: &Server, command: impl Fn(usize) -> Vec<String>) -> Result<Blocked> {
    let mut wire = server.wire();
    let before = wire.info_number("memory", "used_memory");
    let mut clients = Vec::new();
    for _ in 0..WAITERS {
        let mut client = Wire::open(server.port())?;
        client.call(&["PING"]);
        clients.push(client);
    }
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&command(number))?;
    }
    while blocked_clients(&mut wire) != WAITERS as u64 {}
    thread::sleep(SETTLING);
    let bytes = wire.info_number("memory", "used_memory").saturating_sub(before) / WAITERS as u64;
    Ok(Blocked { clients, bytes })
}

/// What many waiters cost.
struct Crowd {
    bytes: u64,
    /// From the start of the write to the last answer.
    answered_ms: f64,
    /// Round trips of another client, in ms.
    pings: Vec<f64>,
}

fn many_waiters(server: &Server, tasks: usize) -> Result<Crowd> {
    let mut writing = server.wire();
    for task in 0..tasks {
        put(&mut writing, task)?;
    }
    let Blocked { clients, bytes } = blocked(server, |number| wait(&keys(number % tasks)[0], 1))?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let pinging = scope.spawn(|| round_trips(server, &is_over));
        thread::sleep(BEFORE);
        let started = Instant::now();
        if tasks == 1 {
            put(&mut writing, 0)?;
        } else {
            writing.call(&["FLUSHALL"]);
        }
        for mut client in clients {
            client.receive()?;
        }
        let answered_ms = milliseconds(started);
        is_over.store(true, Ordering::Relaxed);
        let pings = pinging.join().map_err(|_| "the client that pings panicked")?;
        let meanwhile = |(sent, took): (Instant, f64)| (sent >= started).then_some(took);
        let pings = pings.into_iter().filter_map(meanwhile).collect();
        Ok(Crowd { bytes, answered_ms, pings })
    })
}

/// When each PING was sent, and how long its reply took, in ms.
fn round_trips(server: &Server, is_over: &AtomicBool) -> Vec<(Instant, f64)> {
    let mut wire = server.wire();
    let mut times = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let started = Instant::now();
        wire.call(&["PING"]);
        times.push((started, milliseconds(started)));
        thread::sleep(Duration::from_micros(200));
    }
    times
}
