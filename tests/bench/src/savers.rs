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
use pmcptask_tests::Server;
use redis_of_lc::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::contest::OURS;

pub(crate) const MEMORY: &str = "memory";
pub(crate) const SQLITE: &str = "SQLite";
pub(crate) const LC: &str = "lc-langgraph";

/// A checkpoint with its thread, id and step, which lc-langgraph saves as the state.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Whole(pub(crate) Checkpoint);

impl StateSchema for Whole {}

#[derive(Clone)]
pub(crate) struct Saver {
    pub(crate) checkpointer: Arc<dyn Checkpointer>,
    /// The same, if it is lc-langgraph's.
    lc: Option<LangGraph>,
}

impl Saver {
    pub(crate) fn of(checkpointer: impl Checkpointer + 'static) -> Self {
        Self { checkpointer: Arc::new(checkpointer), lc: None }
    }

    /// The saver of this name, with no checkpoints if the server has none. A database is in `folder`.
    pub(crate) async fn named(name: &str, server: &Server, folder: &Path) -> Result<Self> {
        Ok(match name {
            OURS => Self::of(RedisCheckpointer::new(&server.url()).await?),
            MEMORY => Self::of(MemoryCheckpointer::new()),
            SQLITE => {
                let (_, path) = tempfile::Builder::new().suffix(".db").tempfile_in(folder)?.keep()?;
                Self::of(SqliteCheckpointer::new(&format!("sqlite://{}", path.display())).await?)
            }
            _ => {
                let lc = LangGraph::connect(server).await?;
                Self { checkpointer: Arc::new(lc.clone()), lc: Some(lc) }
            }
        })
    }

    /// Saves a checkpoint. No saver has to copy it first.
    pub(crate) async fn save(&self, whole: &Whole) -> Result<()> {
        match &self.lc {
            Some(lc) => lc.save_whole(whole).await?,
            None => self.checkpointer.save(&whole.0).await?,
        };
        Ok(())
    }
}

/// lc-langgraph's saver, which is of one thread, for all threads over one connection.
#[derive(Clone)]
pub(crate) struct LangGraph(MultiplexedConnection);

impl LangGraph {
    pub(crate) async fn connect(server: &Server) -> Result<Self> {
        Ok(Self(redis_of_lc::Client::open(server.url())?.get_multiplexed_async_connection().await?))
    }

    async fn of_thread(&self, thread: &str) -> adk_graph::Result<OfLangGraph<Whole>> {
        OfLangGraph::with_connection(self.0.clone(), thread).await.map_err(failed)
    }

    async fn save_whole(&self, whole: &Whole) -> adk_graph::Result<String> {
        self.of_thread(&whole.0.thread_id).await?.save(whole, whole.0.step).await.map_err(failed)
    }

    /// Keeps the newest checkpoints of a thread; also none, unlike a policy of adk-graph.
    pub(crate) async fn keep(&self, thread: &str, count: Option<usize>) -> adk_graph::Result<usize> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        self.of_thread(thread).await?.prune(thread, count, None, now).await.map_err(failed)
    }
}

fn failed(error: impl std::fmt::Display) -> GraphError {
    GraphError::CheckpointError(error.to_string())
}

#[async_trait]
impl Checkpointer for LangGraph {
    async fn save(&self, checkpoint: &Checkpoint) -> adk_graph::Result<String> {
        self.save_whole(&Whole(checkpoint.clone())).await
    }

    async fn load(&self, thread: &str) -> adk_graph::Result<Option<Checkpoint>> {
        let last = self.of_thread(thread).await?.last().await.map_err(failed)?;
        Ok(last.map(|(whole, _)| whole.0))
    }

    async fn load_by_id(&self, _: &str) -> adk_graph::Result<Option<Checkpoint>> {
        Err(failed("no checkpoint is found without its thread"))
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
        self.keep(thread, policy.max_per_thread).await
    }
}
