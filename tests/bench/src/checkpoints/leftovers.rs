//! What is left in the server once many threads have come and gone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use adk_graph::checkpoint::Checkpointer;
use adk_graph::state::Checkpoint;
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_tests::{Server, holds_within, integer};

use super::Page;
use crate::contest::{OURS, Servers};
use crate::load::at_once;
use crate::savers::{LC, saver};
use crate::{Result, is_quick, states};

const CHECKPOINTS: usize = 3;
const WORKERS: usize = 16;
const TTL: Duration = Duration::from_secs(1);

pub(super) async fn count(page: &mut Page, servers: &Servers) -> Result<()> {
    let threads = if is_quick() { 1_000 } else { 10_000 };
    let about = format!(
        "{threads} threads with {CHECKPOINTS} checkpoints of 1 KB have come and gone. Bytes: `used_memory`, less \
         what it was before. lc-langgraph has no TTL.",
    );
    page.section("What is left", &about, &["saver", "threads", "keys left", "bytes left"]);
    for (name, expires) in [(OURS, false), (OURS, true), (LC, false)] {
        let server = servers.of(name);
        let saver = if expires {
            Arc::new(RedisCheckpointer::builder(&server.url()).default_ttl(TTL).connect().await?)
        } else {
            saver(name, &servers.of(name).url(), Path::new("")).await?
        };
        let (keys, bytes) = left_by(server, &saver, threads, expires).await?;
        let end = if expires { "expired" } else { "deleted" };
        page.row(&[name, end, &keys.to_string(), &bytes.to_string()]);
    }
    Ok(())
}

/// Keys and bytes that are left.
async fn left_by(
    server: &Server,
    saver: &Arc<dyn Checkpointer>,
    threads: usize,
    expires: bool,
) -> Result<(i64, i64)> {
    // The first of each command takes memory for good.
    come_and_go(saver, WORKERS, expires).await?;
    server.wire().call(&["FLUSHALL"]);
    let before = memory_at_rest(server).await?;
    come_and_go(saver, threads, expires).await?;
    if expires {
        holds_within(TTL * 10, || keys(server) == 0);
    }
    Ok((keys(server), memory_at_rest(server).await? - before))
}

async fn come_and_go(saver: &Arc<dyn Checkpointer>, threads: usize, expires: bool) -> Result<()> {
    let state = states::of_text(1_000);
    let workers = (0..WORKERS).map(|worker| {
        let (saver, state) = (Arc::clone(saver), state.clone());
        async move {
            for thread in (worker..threads).step_by(WORKERS) {
                let thread = format!("thread-{thread}");
                for step in 0..CHECKPOINTS {
                    saver.save(&Checkpoint::new(&thread, state.clone(), step, Vec::new())).await?;
                }
                if !expires {
                    saver.delete(&thread).await?;
                }
            }
            Ok(())
        }
    });
    at_once(workers).await.map(drop)
}

fn keys(server: &Server) -> i64 {
    integer(&server.wire().call(&["DBSIZE"]))
}

/// Meanwhile, the server makes its tables smaller, and frees the buffers of connections that rest for 2 s.
async fn memory_at_rest(server: &Server) -> Result<i64> {
    tokio::time::sleep(Duration::from_secs(if is_quick() { 1 } else { 3 })).await;
    Ok(i64::try_from(server.wire().info_number("memory", "used_memory"))?)
}
