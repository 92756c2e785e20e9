//! Our savers behind one trait, so that runs and faults are the same for all of them. A step stands for a
//! checkpoint.

use std::sync::Arc;

use adk_graph::checkpoint::{Checkpointer, RetentionPolicy};
use adk_graph::error::GraphError;
use adk_graph::state::Checkpoint;
use async_trait::async_trait;
use chrono::DateTime;
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_checkpoint::pmcptask_client::{self, Applied, RedisBackendBuilder};
use pmcptask_checkpoint::{Checkpoints, Error, NewCheckpoint, RedisCheckpoints};
use serde_json::json;

use super::{named, steps};

/// A call that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What the error says about it.
    pub(crate) applied: Applied,
    pub(crate) text: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let applied = match &error {
            Error::Storage(error) => {
                pmcptask_client::Error::of(error).map_or(Applied::No, pmcptask_client::Error::was_applied)
            }
            _ => Applied::No,
        };
        Self { applied, text: error.to_string() }
    }
}

/// The errors of the framework hold text only.
impl From<GraphError> for Failure {
    fn from(error: GraphError) -> Self {
        let text = error.to_string();
        let applied = if text.contains("unknown") {
            Applied::Unknown
        } else if text.contains("was made") || text.contains("was saved") {
            Applied::Yes
        } else {
            Applied::No
        };
        Self { applied, text }
    }
}

#[async_trait]
pub(crate) trait Saver: Send + Sync {
    /// A step that is saved again is the same checkpoint.
    async fn save(&self, thread: &str, step: usize) -> Result<(), Failure>;

    /// The step that was saved last.
    async fn newest(&self, thread: &str) -> Result<Option<usize>, Failure>;

    /// All steps of a thread, oldest first.
    async fn steps(&self, thread: &str) -> Result<Vec<usize>, Failure>;

    /// Whether a step is found by its id.
    async fn finds(&self, thread: &str, step: usize) -> Result<bool, Failure>;

    /// Keeps the newest ones, and returns how many were removed.
    async fn keep(&self, thread: &str, newest: usize) -> Result<usize, Failure>;

    async fn delete(&self, thread: &str) -> Result<(), Failure>;
}

/// All of our savers, with the same settings of the client.
pub(crate) async fn all(
    url: &str,
    settings: impl Fn(RedisBackendBuilder) -> RedisBackendBuilder,
) -> [Arc<dyn Saver>; 2] {
    let of_framework = RedisCheckpointer::builder(url).client(&settings).connect().await.unwrap();
    let own = RedisCheckpoints::builder(url).prefix("own").client(&settings).connect().await.unwrap();
    [Arc::new(of_framework), Arc::new(own)]
}

#[async_trait]
impl Saver for RedisCheckpointer {
    async fn save(&self, thread: &str, step: usize) -> Result<(), Failure> {
        let created_at = DateTime::from_timestamp(i64::try_from(step).unwrap(), 0).unwrap();
        let checkpoint = Checkpoint { created_at, ..named(thread, &id(thread, step), step) };
        Checkpointer::save(self, &checkpoint).await?;
        Ok(())
    }

    async fn newest(&self, thread: &str) -> Result<Option<usize>, Failure> {
        Ok(self.load(thread).await?.map(|checkpoint| checkpoint.step))
    }

    async fn steps(&self, thread: &str) -> Result<Vec<usize>, Failure> {
        Ok(steps(&self.list(thread).await?))
    }

    async fn finds(&self, thread: &str, step: usize) -> Result<bool, Failure> {
        let found = self.load_by_id(&id(thread, step)).await?;
        Ok(found.is_some_and(|found| (found.thread_id.as_str(), found.step) == (thread, step)))
    }

    async fn keep(&self, thread: &str, newest: usize) -> Result<usize, Failure> {
        Ok(self.prune(thread, &RetentionPolicy::keep_last(newest)).await?)
    }

    async fn delete(&self, thread: &str) -> Result<(), Failure> {
        Ok(Checkpointer::delete(self, thread).await?)
    }
}

/// Unique among all threads.
fn id(thread: &str, step: usize) -> String {
    format!("{thread}-{step}")
}

#[async_trait]
impl Saver for RedisCheckpoints {
    async fn save(&self, thread: &str, step: usize) -> Result<(), Failure> {
        let checkpoint = NewCheckpoint::new(step.to_string(), json!(step));
        Checkpoints::save(self, thread, &checkpoint).await?;
        Ok(())
    }

    async fn newest(&self, thread: &str) -> Result<Option<usize>, Failure> {
        let newest = self.load(thread, None).await?;
        Ok(newest.map(|checkpoint| checkpoint.saved.id.parse().unwrap()))
    }

    async fn steps(&self, thread: &str) -> Result<Vec<usize>, Failure> {
        let (mut steps, mut before) = (Vec::new(), None);
        loop {
            let page = self.list(thread, 1_000, before.as_ref()).await?;
            let page = page.into_iter().collect::<Result<Vec<_>, _>>()?;
            let Some(last) = page.last() else { break };
            before.clone_from(&last.position);
            steps.extend(page.iter().map(|checkpoint| checkpoint.saved.id.parse::<usize>().unwrap()));
        }
        steps.reverse();
        Ok(steps)
    }

    async fn finds(&self, thread: &str, step: usize) -> Result<bool, Failure> {
        let found = self.load(thread, Some(&step.to_string())).await?;
        Ok(found.is_some_and(|found| found.saved.state == json!(step)))
    }

    async fn keep(&self, thread: &str, newest: usize) -> Result<usize, Failure> {
        Ok(self.prune(thread, newest).await?)
    }

    async fn delete(&self, thread: &str) -> Result<(), Failure> {
        Checkpoints::delete(self, thread, None).await?;
        Ok(())
    }
}
