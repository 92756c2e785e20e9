//! The savers of checkpoints that are compared, each as a checkpointer of adk-graph.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use adk_graph::checkpoint::{Checkpointer, MemoryCheckpointer, RetentionPolicy, SqliteCheckpointer};
use adk_graph::error::GraphError;
use adk_graph::state::Checkpoint;
use async_trait::async_trait;
use lc_langgraph::{Checkpointer as _, RedisCheckpointer as OfLangGraph, StateSchema};
use pmcptask_checkpoint::adk::RedisCheckpointer;
use redis_of_lc::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous};

use crate::Result;
use crate::contest::OURS;

pub(crate) const MEMORY: &str = "memory";
pub(crate) const SQLITE: &str = "SQLite";
pub(crate) const SQLITE_WAL: &str = "SQLite, WAL";
pub(crate) const LC: &str = "lc-langgraph";

/// The saver of this name, over the server at this URL or with a database in this folder.
pub(crate) async fn saver(name: &str, url: &str, folder: &Path) -> Result<Arc<dyn Checkpointer>> {
    let file = folder.join("checkpoints.db");
    Ok(match name {
        OURS => Arc::new(RedisCheckpointer::new(url).await?),
        MEMORY => Arc::new(MemoryCheckpointer::new()),
        SQLITE => Arc::new(SqliteCheckpointer::new(&format!("sqlite://{}?mode=rwc", file.display())).await?),
        SQLITE_WAL => {
            let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
            let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Normal);
            Arc::new(SqliteCheckpointer::from_pool(SqlitePool::connect_with(options).await?).await?)
        }
        _ => Arc::new(LangGraph::connect(url).await?),
    })
}

/// A checkpoint with its thread, id and step, which lc-langgraph saves as the state.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
struct Whole(Checkpoint);

impl StateSchema for Whole {}

/// lc-langgraph's saver, which is of one thread, for all threads over one connection.
struct LangGraph(MultiplexedConnection);

impl LangGraph {
    async fn connect(url: &str) -> Result<Self> {
        Ok(Self(redis_of_lc::Client::open(url)?.get_multiplexed_async_connection().await?))
    }

    async fn of_thread(&self, thread: &str) -> adk_graph::Result<OfLangGraph<Whole>> {
        OfLangGraph::with_connection(self.0.clone(), thread).await.map_err(failed)
    }
}

fn failed(error: impl std::fmt::Display) -> GraphError {
    GraphError::CheckpointError(error.to_string())
}

#[async_trait]
impl Checkpointer for LangGraph {
    async fn save(&self, checkpoint: &Checkpoint) -> adk_graph::Result<String> {
        let saver = self.of_thread(&checkpoint.thread_id).await?;
        saver.save(&Whole(checkpoint.clone()), checkpoint.step).await.map_err(failed)
    }

    async fn load(&self, thread: &str) -> adk_graph::Result<Option<Checkpoint>> {
        let last = self.of_thread(thread).await?.last().await.map_err(failed)?;
        Ok(last.map(|(whole, _)| whole.0))
    }

    async fn load_by_id(&self, _: &str) -> adk_graph::Result<Option<Checkpoint>> {
        Err(failed("lc-langgraph finds no checkpoint without its thread"))
    }

    async fn list(&self, thread: &str) -> adk_graph::Result<Vec<Checkpoint>> {
        let listed = self.of_thread(thread).await?.snapshots().await.map_err(failed)?;
        Ok(listed.into_iter().map(|info| info.state.0).collect())
    }

    async fn delete(&self, thread: &str) -> adk_graph::Result<()> {
        let saver = self.of_thread(thread).await?;
        for id in saver.list().await.map_err(failed)? {
            saver.delete(&id).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn prune(&self, thread: &str, policy: &RetentionPolicy) -> adk_graph::Result<usize> {
        let now = SystemTime::UNIX_EPOCH.elapsed().map_err(failed)?.as_secs();
        let now = i64::try_from(now).map_err(failed)?;
        self.of_thread(thread).await?.prune(thread, policy.max_per_thread, None, now).await.map_err(failed)
    }
}
