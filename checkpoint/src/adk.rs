//! A checkpointer for [adk-graph](https://docs.rs/adk-graph).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use adk_graph::checkpoint::{Checkpointer, RetentionPolicy};
use adk_graph::error::GraphError;
use adk_graph::state::Checkpoint;
use async_trait::async_trait;
use chrono::Utc;
use pmcptask_client::{Lease, RedisBackend};

use crate::builder::SaverBuilder;
use crate::compression::RecordError;
use crate::error::Error;
use crate::ids::DatedId;
use crate::threads::{Policy, Stored, Threads, unreadable};

/// The start of all keys, unless another one is set.
const PREFIX: &str = "checkpoints";

/// Keeps the checkpoints of graphs. Takes the place of `MemoryCheckpointer` and `SqliteCheckpointer`, also inside a
/// `DeltaCheckpointer`.
///
/// | call | round trips | cost on the server |
/// |---|---|---|
/// | `save` | 1 | O(log n), n checkpoints of the thread |
/// | `load` | 1, and another one if reads refresh the TTL | O(log n) |
/// | `load_by_id` | 2, or 3 | O(1) |
/// | `list` | 1 for each 100 checkpoints, or 2 | O(n) |
/// | `delete`, `prune` | 3 for each 500 checkpoints, none of which is read | O(n log n) |
///
/// ```
/// use std::time::Duration;
///
/// use adk_graph::checkpoint::{Checkpointer as _, RetentionPolicy};
/// use adk_graph::state::{Checkpoint, State};
/// use pmcptask_checkpoint::adk::RedisCheckpointer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let day = Duration::from_secs(24 * 3_600);
/// let checkpointer = RedisCheckpointer::builder(&url).default_ttl(7 * day).connect().await?;
/// for step in 0..3 {
///     let checkpoint = Checkpoint::new("thread-1", State::new(), step, vec!["next".to_owned()]);
///     checkpointer.save(&checkpoint).await?;
/// }
/// assert_eq!(checkpointer.load("thread-1").await?.map(|latest| latest.step), Some(2));
/// assert_eq!(checkpointer.prune("thread-1", &RetentionPolicy::keep_last(1)).await?, 2);
/// # Ok(())
/// # }
/// ```
///
/// # What holds
///
/// - The order is that in which the server carried out the saves, also within a millisecond, whatever the clocks say. `load`
///   returns the checkpoint that was saved last.
/// - A checkpoint that is saved again, with its `created_at`, replaces the first one, and keeps its place. So a save whose
///   outcome is unknown can be repeated.
/// - `prune` never removes the checkpoint that was saved last. It counts by the order of saving, and takes the age from
///   `created_at`.
/// - A `DeltaCheckpointer` needs older checkpoints to read newer ones. With a TTL, it needs
///   [`refresh_on_read`](SaverBuilder::refresh_on_read) too: each of its calls reads the thread, so all of the thread lives as long as the
///   thread is used. Do not use it on threads with unreadable records, which lists leave out.
/// - Two keys `by-id` can be left that lead nowhere, if the process dies while a save is refused. They end with their TTL, or when the
///   same checkpoint is saved and deleted again.
/// - Thread ids and checkpoint ids may hold any text. If several threads have a checkpoint of the same id, `load_by_id`
///   returns the one of the thread that got it last.
/// - `load` and `load_by_id` refuse a record that is not a checkpoint. `list` leaves it out, counts it
///   ([`unreadable_records`](Self::unreadable_records)), and logs a warning.
/// - Errors keep their text in [`GraphError::CheckpointError`]. It says whether anything was written.
///
/// # Keys
///
/// `checkpoints:tasks:<thread>:<created>-<id>` and `checkpoints:idx:<thread>`, as for tasks. For `load_by_id`, there are
/// `checkpoints:by-id:tasks:<id>:<created>-<thread>` and `checkpoints:by-id:idx:<id>`. All have the same TTL. In the last part
/// of a key, `:` is written `%3A` and `%` is `%25`.
#[derive(Debug, Clone)]
pub struct RedisCheckpointer {
    threads: Threads,
    unreadable_records: Arc<AtomicU64>,
}

impl From<Threads> for RedisCheckpointer {
    fn from(threads: Threads) -> Self {
        Self { threads, unreadable_records: Arc::default() }
    }
}

impl RedisCheckpointer {
    /// Connects to the servers at `url`, with the default settings. [`RedisBackend::new`] explains the URL.
    ///
    /// # Errors
    ///
    /// Those of [`SaverBuilder::connect`].
    pub async fn new(url: &str) -> Result<Self, Error> {
        Self::builder(url).connect().await
    }

    /// Returns a builder, for settings other than the defaults.
    pub fn builder(url: &str) -> SaverBuilder<Self> {
        SaverBuilder::new(url, PREFIX)
    }

    /// Uses the connections and the prefix of a backend. That prefix should be used for nothing else, and the backend must not
    /// read from replicas, which may be behind.
    #[must_use]
    pub fn from_backend(backend: RedisBackend) -> Self {
        Threads::new(backend, Vec::new(), Policy::new()).into()
    }

    /// Acquires the lease of a thread, so that no other run of the thread can have it; None if another one has.
    /// See [`Lease::acquire`].
    ///
    /// # Errors
    ///
    /// Those of [`Lease::acquire`].
    pub async fn lease(&self, thread_id: &str, duration: Duration) -> Result<Option<Lease>, Error> {
        self.threads.lease(thread_id, duration).await
    }

    /// A checkpointer for the run that holds the lease of its thread. Its saves fail once the server does not have the
    /// lease any more, however late they come. Renew the lease meanwhile. Loads, deletions and prunes need no lease. In a cluster,
    /// saves to other threads than the lease's fail, those of subgraphs too (`CROSSSLOT`).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use adk_graph::checkpoint::Checkpointer as _;
    /// # use adk_graph::state::{Checkpoint, State};
    /// # use pmcptask_checkpoint::adk::RedisCheckpointer;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
    /// # let checkpointer = RedisCheckpointer::new(&server.url()).await?;
    /// # let checkpoint = Checkpoint::new("thread-1", State::new(), 0, Vec::new());
    /// let duration = Duration::from_secs(15);
    /// let lease = checkpointer.lease("thread-1", duration).await?.expect("no other run of this thread");
    /// let of_this_run = checkpointer.while_held(&lease);
    /// of_this_run.save(&checkpoint).await?;
    /// lease.release().await?;
    /// assert!(of_this_run.save(&checkpoint).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn while_held(&self, lease: &Lease) -> Self {
        Self { threads: self.threads.while_held(lease), ..self.clone() }
    }

    /// How many records `list` has left out since this checkpointer was made, because they are no checkpoints.
    #[must_use]
    pub fn unreadable_records(&self) -> u64 {
        self.unreadable_records.load(Ordering::Relaxed)
    }

    /// Checks that each server answers and has the module.
    ///
    /// # Errors
    ///
    /// Those of [`RedisBackend::check_health`].
    pub async fn check_health(&self) -> Result<(), Error> {
        self.threads.check_health().await
    }

    /// Gives what was read its whole TTL again, if reads do that.
    async fn refresh(&self, thread: &str, task_ids: &[String]) -> Result<(), Error> {
        let ids: Vec<_> = task_ids.iter().filter_map(|task_id| DatedId::read(task_id)).collect();
        let both = futures_util::future::try_join(
            self.threads.refresh(thread, task_ids),
            self.threads.refresh_pointers(thread, &ids),
        );
        both.await.map(drop)
    }

    async fn remove(&self, thread: &str, task_ids: &[String]) -> Result<usize, Error> {
        let ids: Vec<_> = task_ids.iter().filter_map(|task_id| DatedId::read(task_id)).collect();
        // First, so that nothing is left that no list shows.
        self.threads.remove_pointers(thread, &ids).await?;
        self.threads.remove_all(thread, task_ids).await
    }
}

/// The task id of a checkpoint. It has the creation time, so that `prune` need not read records.
fn dated_id(checkpoint: &Checkpoint) -> DatedId {
    DatedId { created_us: checkpoint.created_at.timestamp_micros(), text: checkpoint.checkpoint_id.clone() }
}

/// The checkpoint in a record.
fn checkpoint(thread: &str, stored: &Stored) -> Result<Checkpoint, Error> {
    let checkpoint = serde_json::from_slice(&stored.json).map_err(RecordError::from);
    checkpoint.map_err(|cause| unreadable(thread, &stored.task_id, cause))
}

impl From<Error> for GraphError {
    fn from(error: Error) -> Self {
        Self::CheckpointError(error.to_string())
    }
}

#[async_trait]
impl Checkpointer for RedisCheckpointer {
    async fn save(&self, checkpoint: &Checkpoint) -> Result<String, GraphError> {
        let json = serde_json::to_vec(checkpoint).map_err(Error::Unstorable)?;
        self.threads.save(&checkpoint.thread_id, &dated_id(checkpoint), json).await?;
        Ok(checkpoint.checkpoint_id.clone())
    }

    async fn load(&self, thread_id: &str) -> Result<Option<Checkpoint>, GraphError> {
        let Some(stored) = self.threads.newest(thread_id).await? else {
            return Ok(None);
        };
        let checkpoint = checkpoint(thread_id, &stored)?;
        self.refresh(thread_id, &[stored.task_id]).await?;
        Ok(Some(checkpoint))
    }

    async fn load_by_id(&self, checkpoint_id: &str) -> Result<Option<Checkpoint>, GraphError> {
        let Some((thread, stored)) = self.threads.find(checkpoint_id).await? else { return Ok(None) };
        let checkpoint = checkpoint(&thread, &stored)?;
        self.refresh(&thread, &[stored.task_id]).await?;
        Ok(Some(checkpoint))
    }

    async fn list(&self, thread_id: &str) -> Result<Vec<Checkpoint>, GraphError> {
        let listed = self.threads.list(thread_id).await?;
        let (mut checkpoints, mut task_ids) = (Vec::with_capacity(listed.len()), Vec::new());
        for stored in listed {
            let read = stored.and_then(|stored| Ok((checkpoint(thread_id, &stored)?, stored.task_id)));
            match read {
                Ok((checkpoint, task_id)) => {
                    checkpoints.push(checkpoint);
                    task_ids.push(task_id);
                }
                Err(error) => {
                    self.unreadable_records.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("left out of a list: {error}");
                }
            }
        }
        self.refresh(thread_id, &task_ids).await?;
        Ok(checkpoints)
    }

    async fn delete(&self, thread_id: &str) -> Result<(), GraphError> {
        let entries = self.threads.entries(thread_id).await?;
        let task_ids: Vec<_> = entries.into_iter().map(|entry| entry.task_id).collect();
        self.remove(thread_id, &task_ids).await?;
        Ok(())
    }

    async fn prune(&self, thread_id: &str, policy: &RetentionPolicy) -> Result<usize, GraphError> {
        if policy.is_unlimited() {
            return Ok(0);
        }
        let entries = self.threads.entries(thread_id).await?;
        let cutoff = policy
            .max_age
            .and_then(|age| Utc::now().checked_sub_signed(chrono::Duration::from_std(age).ok()?));
        let newest_first = entries.iter().rev().enumerate();
        // The newest one stays: a resume loads it.
        let ended = newest_first.skip(1).filter(|(place, entry)| {
            // What others wrote is left alone.
            let Some(id) = DatedId::read(&entry.task_id) else { return false };
            let is_beyond = policy.max_per_thread.is_some_and(|most| *place >= most);
            is_beyond || cutoff.is_some_and(|cutoff| id.created_us < cutoff.timestamp_micros())
        });
        let ended: Vec<_> = ended.map(|(_, entry)| entry.task_id.clone()).collect();
        Ok(self.remove(thread_id, &ended).await?)
    }
}
