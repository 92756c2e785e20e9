//! How long a small load takes while large states are saved and loaded all the time.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use adk_graph::checkpoint::Checkpointer as _;
use adk_graph::state::{Checkpoint, State};
use pmcptask_checkpoint::Compression;
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_tests::Server;
use tokio::time::{MissedTickBehavior, interval};

use crate::figures::{percentile, short};
use crate::{Result, is_quick, states};

const LARGE: usize = 10_000_000;
const SMALL: usize = 1_000;
const CONNECTIONS: [usize; 2] = [1, 4];
/// A load begins this long after the one before began, or once it has ended. Without a pause, most loads would be made
/// while nothing large is on its way.
const PAUSE: Duration = Duration::from_millis(5);

/// A table of all kinds of large states.
pub(super) async fn table(server: &Server) -> Result<String> {
    let (text, noise) = (states::of_text(LARGE, 1), states::of_noise(LARGE));
    let cases = [
        ("none", None, Compression::default()),
        ("text, compressed", Some(&text), Compression::default()),
        ("noise, compressed", Some(&noise), Compression::default()),
        ("text, not compressed", Some(&text), Compression::Off),
    ];
    let mut table =
        "| large states | connections | p50 | p99 | longest | large saves and loads per second |\n\
                     |---|---|---|---|---|---|\n"
            .to_owned();
    for (large, state, compression) in cases {
        for connections in CONNECTIONS {
            server.wire().call(&["FLUSHALL"]);
            let saver = RedisCheckpointer::builder(&server.url());
            let saver = saver.connections(connections).compression(compression).connect().await?;
            let (mut loads, rounds) = small_loads(&saver, state).await?;
            let [p50, p99, longest] = [50, 99, 100].map(|percent| short(percentile(&mut loads, percent)));
            writeln!(table, "| {large} | {connections} | {p50} | {p99} | {longest} | {} |", short(rounds))?;
        }
    }
    Ok(table)
}

/// The time of each small load in ms, and how often in a second a large state was saved and loaded.
async fn small_loads(saver: &RedisCheckpointer, large: Option<&State>) -> Result<(Vec<f64>, f64)> {
    saver.save(&Checkpoint::new("small", states::of_text(SMALL, 1), 0, Vec::new())).await?;
    let rounds = Arc::new(AtomicUsize::new(0));
    let busy = large.map(|state| {
        let checkpoint = Checkpoint::new("large", state.clone(), 0, Vec::new());
        tokio::spawn(save_and_load(saver.clone(), checkpoint, Arc::clone(&rounds)))
    });
    let (mut loads, mut ticks) = (Vec::new(), interval(PAUSE));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (started, wanted) = (Instant::now(), Duration::from_secs(if is_quick() { 2 } else { 10 }));
    while started.elapsed() < wanted {
        ticks.tick().await;
        let begun = Instant::now();
        saver.load("small").await?;
        loads.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let rounds = rounds.load(Ordering::Relaxed);
    if let Some(busy) = busy {
        if busy.is_finished() {
            // It ends only if it fails.
            busy.await??;
        } else {
            busy.abort();
        }
    }
    Ok((loads, f64::from(u32::try_from(rounds)?) / wanted.as_secs_f64()))
}

/// Saves and loads a checkpoint all the time, and counts how often.
async fn save_and_load(
    saver: RedisCheckpointer,
    checkpoint: Checkpoint,
    rounds: Arc<AtomicUsize>,
) -> Result<Infallible> {
    loop {
        saver.save(&checkpoint).await?;
        saver.load(&checkpoint.thread_id).await?;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}
