//! What is left in the server once many threads have come and gone.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use adk_graph::checkpoint::Checkpointer;
use adk_graph::state::{Checkpoint, State};
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_checkpoint::{Checkpoints as _, NewCheckpoint, RedisCheckpoints};
use pmcptask_tests::{Server, holds_within, integer};
use serde_json::json;

use crate::contest::{OURS, Servers};
use crate::load::at_once;
use crate::savers::{LC, LangGraph};
use crate::{Result, is_quick, states};

const CHECKPOINTS: usize = 3;
const WORKERS: usize = 16;
/// Longer than all saves take.
const TTL: Duration = Duration::from_secs(20);
/// In this time the server makes its tables smaller and frees the buffers of connections.
const REST: Duration = Duration::from_secs(3);

fn threads() -> usize {
    if is_quick() { 1_000 } else { 10_000 }
}

/// A saver, and how its threads end.
enum Life {
    Deleted(Arc<dyn Checkpointer>),
    /// By their TTL.
    Expired(RedisCheckpointer),
    /// Until nothing is left, which a policy of adk-graph cannot ask for.
    PrunedToNone(RedisCheckpoints),
    LangGraphPrunedToNone(LangGraph),
}

impl Life {
    async fn save(&self, thread: &str, number: usize, state: &State) -> Result<()> {
        let checkpoint = Checkpoint::new(thread, state.clone(), number, Vec::new());
        match self {
            Self::Deleted(saver) => drop(saver.save(&checkpoint).await?),
            Self::Expired(saver) => drop(saver.save(&checkpoint).await?),
            Self::PrunedToNone(saver) => {
                saver.save(thread, &NewCheckpoint::new(number.to_string(), json!(state))).await?;
            }
            Self::LangGraphPrunedToNone(saver) => drop(saver.save(&checkpoint).await?),
        }
        Ok(())
    }

    async fn end(&self, thread: &str) -> Result<()> {
        match self {
            Self::Deleted(saver) => saver.delete(thread).await?,
            Self::Expired(_) => {}
            Self::PrunedToNone(saver) => drop(saver.prune(thread, 0).await?),
            Self::LangGraphPrunedToNone(saver) => drop(saver.keep(thread, Some(0)).await?),
        }
        Ok(())
    }
}

/// A table of all savers and ends.
pub(super) async fn table(servers: &Servers) -> Result<String> {
    let (ours, others) = (servers.of(OURS), servers.of(LC));
    let (adk, lc) = (RedisCheckpointer::new(&ours.url()).await?, LangGraph::connect(others).await?);
    let own = RedisCheckpoints::builder(&ours.url()).connect().await?;
    let expiring = RedisCheckpointer::builder(&ours.url()).default_ttl(TTL).connect().await?;
    let lives = [
        (OURS, "deleted", ours, Life::Deleted(Arc::new(adk))),
        (OURS, "pruned to 0", ours, Life::PrunedToNone(own)),
        (OURS, "expired", ours, Life::Expired(expiring)),
        (LC, "deleted", others, Life::Deleted(Arc::new(lc.clone()))),
        (LC, "pruned to 0", others, Life::LangGraphPrunedToNone(lc)),
    ];
    let mut table =
        "| saver | threads are | keys at most | keys left | bytes left |\n|---|---|---|---|---|\n".to_owned();
    for (name, end, server, life) in lives {
        let [most, left, bytes] = left_by(server, &Arc::new(life)).await?;
        writeln!(table, "| {name} | {end} | {most} | {left} | {bytes} |")?;
    }
    writeln!(table, "| {LC} | expired | has no TTL | | |")?;
    Ok(table)
}

/// The keys while all threads are there, and keys and bytes that are left once all are gone.
async fn left_by(server: &Server, life: &Arc<Life>) -> Result<[i64; 3]> {
    let state = Arc::new(states::of_text(1_000, 1));
    // The first of each command takes memory for good.
    life.save("first", 0, &state).await?;
    life.end("first").await?;
    server.wire().call(&["FLUSHALL"]);
    let before = memory_at_rest(server).await?;
    each_thread(life, &state, false).await?;
    let most = keys(server);
    each_thread(life, &state, true).await?;
    holds_within(TTL * 2, || keys(server) == 0 || !matches!(**life, Life::Expired(_)));
    Ok([most, keys(server), memory_at_rest(server).await? - before])
}

/// Saves the checkpoints of all threads, or ends the threads.
async fn each_thread(life: &Arc<Life>, state: &Arc<State>, is_end: bool) -> Result<()> {
    let workers = (0..WORKERS).map(|worker| {
        let (life, state) = (Arc::clone(life), Arc::clone(state));
        async move {
            for thread in (worker..threads()).step_by(WORKERS) {
                let thread = format!("thread-{thread}");
                if is_end {
                    life.end(&thread).await?;
                    continue;
                }
                for number in 0..CHECKPOINTS {
                    life.save(&thread, number, &state).await?;
                }
            }
            Ok(())
        }
    });
    at_once(workers).await?;
    Ok(())
}

fn keys(server: &Server) -> i64 {
    integer(&server.wire().call(&["DBSIZE"]))
}

async fn memory_at_rest(server: &Server) -> Result<i64> {
    tokio::time::sleep(REST).await;
    Ok(i64::try_from(server.wire().info_number("memory", "used_memory"))?)
}
