//! How long a small load takes while a large state is saved and loaded all the time.

use std::time::{Duration, Instant};

use adk_graph::checkpoint::Checkpointer as _;
use adk_graph::state::{Checkpoint, State};
use pmcptask_checkpoint::Compression;
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_tests::Server;
use tokio::time::{MissedTickBehavior, interval};

use super::Page;
use crate::figures::{percentile, short};
use crate::{Result, is_quick, states};

const LARGE: usize = 10_000_000;
const SMALL: usize = 1_000;
/// A load begins this long after the one before began, or once it has ended. Without a pause, most loads would be
/// made while nothing large is on its way.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) async fn measure(page: &mut Page, server: &Server) -> Result<()> {
    page.section(
        "Connections",
        "The load of a state of 1 KB, every 5 ms, in ms, while one of 10 MB that is not compressed is saved and \
         loaded all the time.",
        &["large state", "connections", "p50", "p99", "longest"],
    );
    let large = states::of_text(LARGE);
    for (name, large, connections) in
        [("none", None, 1), ("10 MB", Some(&large), 1), ("10 MB", Some(&large), 4)]
    {
        server.wire().call(&["FLUSHALL"]);
        let saver = RedisCheckpointer::builder(&server.url()).compression(Compression::Off);
        let mut loads = small_loads(&saver.connections(connections).connect().await?, large).await?;
        let [p50, p99, longest] = [50, 99, 100].map(|percent| short(percentile(&mut loads, percent)));
        page.row(&[name, &connections.to_string(), &p50, &p99, &longest]);
    }
    Ok(())
}

/// The time of each small load, in ms.
async fn small_loads(saver: &RedisCheckpointer, large: Option<&State>) -> Result<Vec<f64>> {
    saver.save(&Checkpoint::new("small", states::of_text(SMALL), 0, Vec::new())).await?;
    let busy = large.map(|state| {
        let checkpoint = Checkpoint::new("large", state.clone(), 0, Vec::new());
        tokio::spawn(save_and_load(saver.clone(), checkpoint))
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
    if let Some(busy) = busy {
        if busy.is_finished() {
            // It ends only if it fails.
            return busy.await?;
        }
        busy.abort();
    }
    Ok(loads)
}

/// Saves and loads a checkpoint until it fails.
async fn save_and_load<T>(saver: RedisCheckpointer, checkpoint: Checkpoint) -> Result<T> {
    loop {
        saver.save(&checkpoint).await?;
        saver.load(&checkpoint.thread_id).await?;
    }
}
