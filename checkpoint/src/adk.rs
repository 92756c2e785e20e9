//! A checkpointer for [adk-graph](https://docs.rs/adk-graph).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use adk_graph::checkpoint::{Checkpointer, RetentionPolicy};
use adk_graph::error::GraphError;
use adk_graph::state::Checkpoint;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use pmcptask_client::{Lease, RedisBackend};

use crate::builder::SaverBuilder;
use crate::compression::RecordError;
use crate::error::Error;
use crate::ids::{escaped, unescaped};
use crate::threads::{Policy, Stored, Threads, unreadable};

/// The start of all keys, unless another one is set.
const PREFIX: &str = "checkpoints";

/// Keeps the checkpoints of graphs. Takes the place of `MemoryCheckpointer` and `SqliteCheckpointer`, also inside a
/// `DeltaCheckpointer`.
///
/// | call | round trips | cost on the server |
/// |---|---|---|
/// | `save` | 1; in a cluster, or with a lease, 2 | O(log n), n checkpoints of the thread |
/// | `load` | 1, and another one if reads refresh the TTL | O(log n) |
/// | `load_by_id` | 2, or 3 | O(1) |
/// | `list` | 1 for each 100 checkpoints, or 2 | O(n) |
/// | `delete`, `prune` | 4 for each 500 checkpoints, none of which is read | O(n log n) |
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
/// - A key `by-id` can be left that leads nowhere: if the process dies during a refused save, or if a thread is deleted while a save
///   to it is under way. It ends with its TTL, or when its id is saved and deleted again.
/// - Thread ids and checkpoint ids may hold any text. If two threads have a checkpoint of the same id, `load_by_id` returns
///   the one that was saved last.
/// - `load` and `load_by_id` refuse a record that is not a checkpoint. `list` leaves it out, counts it
///   ([`unreadable_records`](Self::unreadable_records)), and logs a warning.
/// - Errors keep their text in [`GraphError::CheckpointError`]. It says whether anything was written.
///
/// # Keys
///
/// `checkpoints:tasks:<thread>:<created>-<id>` and `checkpoints:idx:<thread>`, as for tasks, and for each checkpoint
/// `checkpoints:by-id:<id>`, which leads to its record. All have the same TTL. In the ids, `:` is written `%3A` and `%` is
/// `%25`.
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
        Threads::new(vec![backend], Policy::new()).into()
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

    async fn refresh(&self, thread: &str, checkpoints: &[Checkpoint]) -> Result<(), Error> {
        let named = checkpoints
            .iter()
            .map(|checkpoint| (TaskId::of(checkpoint).written(), Some(checkpoint.checkpoint_id.clone())));
        self.threads.refresh(thread, &named.collect::<Vec<_>>()).await
    }

    async fn remove(&self, thread: &str, ids: impl Iterator<Item = TaskId>) -> Result<usize, Error> {
        let named: Vec<_> = ids.map(|id| (id.written(), Some(id.checkpoint_id))).collect();
        self.threads.remove(thread, &named).await
    }
}

/// The task id of a checkpoint. It has the creation time, so that `prune` need not read records.
struct TaskId {
    created: DateTime<Utc>,
    checkpoint_id: String,
}

impl TaskId {
    fn of(checkpoint: &Checkpoint) -> Self {
        Self { created: checkpoint.created_at, checkpoint_id: checkpoint.checkpoint_id.clone() }
    }

    fn written(&self) -> String {
        format!("{}-{}", self.created.timestamp_micros(), escaped(&self.checkpoint_id))
    }

    /// None for a task id that is of no checkpoint.
    fn read(task_id: &str) -> Option<Self> {
        // The time may be before the epoch.
        let digits = task_id.strip_prefix('-').unwrap_or(task_id).find('-')?;
        let end = digits.checked_add(usize::from(task_id.starts_with('-')))?;
        let (micros, id) = task_id.split_at_checked(end)?;
        let created = DateTime::from_timestamp_micros(micros.parse().ok()?)?;
        Some(Self { created, checkpoint_id: unescaped(id.strip_prefix('-')?) })
    }
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
        let (thread, id) = (&checkpoint.thread_id, &checkpoint.checkpoint_id);
        let task_id = TaskId::of(checkpoint).written();
        self.threads.save(thread, &task_id, id, json).await?;
        Ok(id.clone())
    }

    async fn load(&self, thread_id: &str) -> Result<Option<Checkpoint>, GraphError> {
        let Some(stored) = self.threads.newest(thread_id).await? else {
            return Ok(None);
        };
        let checkpoint = checkpoint(thread_id, &stored)?;
        self.refresh(thread_id, std::slice::from_ref(&checkpoint)).await?;
        Ok(Some(checkpoint))
    }

    async fn load_by_id(&self, checkpoint_id: &str) -> Result<Option<Checkpoint>, GraphError> {
        let Some(key) = self.threads.find(checkpoint_id).await? else { return Ok(None) };
        let Some((thread, task_id)) = key.rsplit_once(':') else { return Ok(None) };
        let stored = self.threads.get(thread, task_id).await?;
        let Some(stored) = stored else { return Ok(None) };
        let checkpoint = checkpoint(thread, &stored)?;
        self.refresh(thread, std::slice::from_ref(&checkpoint)).await?;
        Ok(Some(checkpoint))
    }

    async fn list(&self, thread_id: &str) -> Result<Vec<Checkpoint>, GraphError> {
        let listed = self.threads.list(thread_id).await?;
        let mut checkpoints = Vec::with_capacity(listed.len());
        for stored in listed {
            match stored.and_then(|stored| checkpoint(thread_id, &stored)) {
                Ok(checkpoint) => checkpoints.push(checkpoint),
                Err(error) => {
                    self.unreadable_records.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("left out of a list: {error}");
                }
            }
        }
        self.refresh(thread_id, &checkpoints).await?;
        Ok(checkpoints)
    }

    async fn delete(&self, thread_id: &str) -> Result<(), GraphError> {
        let entries = self.threads.entries(thread_id).await?;
        let named: Vec<_> = entries
            .into_iter()
            .map(|entry| {
                let name = TaskId::read(&entry.task_id).map(|id| id.checkpoint_id);
                (entry.task_id, name)
            })
            .collect();
        self.threads.remove(thread_id, &named).await?;
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
        let expired = newest_first.skip(1).filter_map(|(place, entry)| {
            let id = TaskId::read(&entry.task_id)?;
            let is_beyond = policy.max_per_thread.is_some_and(|most| place >= most);
            let is_old = cutoff.is_some_and(|cutoff| id.created < cutoff);
            (is_beyond || is_old).then_some(id)
        });
        Ok(self.remove(thread_id, expired).await?)
    }
}
