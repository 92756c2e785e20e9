//! [`Checkpoints`]: a trait of our own, for who uses no framework.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use pmcptask_client::{Lease, RedisBackend, TaskPosition};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::task::unconstrained;

use crate::builder::SaverBuilder;
use crate::compression::RecordError;
use crate::error::Error;
use crate::ids::{escaped, unescaped};
use crate::threads::{Policy, Stored, Threads, Written, unreadable};

/// The start of all keys, unless another one is set.
pub(crate) const PREFIX: &str = "checkpoints";

/// How many of many calls are in flight at once.
const AT_ONCE: usize = 1_000;

/// A checkpoint to be saved.
#[derive(Debug, Clone, PartialEq)]
pub struct NewCheckpoint {
    /// Any text. Unique in its thread: a checkpoint that is saved again replaces the first one, and keeps its place.
    pub id: String,
    /// The id of the checkpoint that this one follows.
    pub parent: Option<String>,
    /// Whatever the caller wants to know about it.
    pub metadata: Map<String, Value>,
    /// The agent's state.
    pub state: Value,
}

impl NewCheckpoint {
    /// A checkpoint without parent and metadata.
    pub fn new(id: impl Into<String>, state: Value) -> Self {
        Self { id: id.into(), parent: None, metadata: Map::new(), state }
    }

    /// Sets the checkpoint that this one follows.
    #[must_use]
    pub fn with_parent(self, parent: impl Into<String>) -> Self {
        Self { parent: Some(parent.into()), ..self }
    }
}

/// A checkpoint that was saved.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The thread.
    pub thread: String,
    /// The checkpoint itself.
    pub saved: NewCheckpoint,
    /// 1, and one more with every save of this id.
    pub version: u64,
    /// Where the next page of a list starts. None if it was loaded by its id.
    pub position: Option<TaskPosition>,
}

/// What a thread has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadStats {
    /// How many checkpoints.
    pub checkpoints: usize,
    /// When the oldest one was saved first, in ms since the epoch, by the server's clock.
    pub oldest_ms: Option<i64>,
    /// The same of the newest one.
    pub newest_ms: Option<i64>,
}

/// Where checkpoints are kept. A thread has any number of them, in the order in which they were saved.
#[async_trait]
pub trait Checkpoints: Send + Sync {
    /// Saves a checkpoint, as the thread's newest one or over the one with its id. Returns its version.
    async fn save(&self, thread: &str, checkpoint: &NewCheckpoint) -> Result<u64, Error>;

    /// Saves many at once: those of a thread in their order, unless the connection is lost meanwhile. The results have their order,
    /// and each is that of its own `save`.
    async fn save_many(&self, checkpoints: &[(&str, &NewCheckpoint)]) -> Vec<Result<u64, Error>>;

    /// Saves a checkpoint over this version of it; 0: if there is none with its id. Returns the new version.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if it is at another version.
    async fn compare_and_swap(
        &self,
        thread: &str,
        checkpoint: &NewCheckpoint,
        expected_version: u64,
    ) -> Result<u64, Error>;

    /// Loads the checkpoint with this id, or the newest one.
    async fn load(&self, thread: &str, id: Option<&str>) -> Result<Option<Checkpoint>, Error>;

    /// Loads many at once: thread and id of each. The results have their order.
    async fn load_many(&self, wanted: &[(&str, Option<&str>)]) -> Vec<Result<Option<Checkpoint>, Error>>;

    /// Lists up to `limit` checkpoints, newest first, from behind a position if one is given. A record that cannot be read
    /// is an error in its place.
    async fn list(
        &self,
        thread: &str,
        limit: usize,
        before: Option<&TaskPosition>,
    ) -> Result<Vec<Result<Checkpoint, Error>>, Error>;

    /// Each checkpoint that is saved to the thread from now on, in the order in which they are saved. One that is saved again
    /// over its id is not shown again, unless it was deleted before. One that is deleted before it was read is left out. A record
    /// that cannot be read is an error in its place. No error ends the stream.
    async fn changes(&self, thread: &str) -> Result<BoxStream<'static, Result<Checkpoint, Error>>, Error>;

    /// Deletes the checkpoint with this id, or all of the thread. Returns how many there were.
    async fn delete(&self, thread: &str, id: Option<&str>) -> Result<usize, Error>;

    /// Keeps the thread's newest `keep` checkpoints, and reads none. Returns how many were removed.
    async fn prune(&self, thread: &str, keep: usize) -> Result<usize, Error>;

    /// Counts a thread's checkpoints, and reads none.
    async fn stats(&self, thread: &str) -> Result<ThreadStats, Error>;

    /// Checks that each server answers and has the module.
    async fn health(&self) -> Result<(), Error>;
}

/// Checkpoints in Redis or Valkey.
///
/// | call | round trips | cost on the server |
/// |---|---|---|
/// | `save`, `compare_and_swap` | 1 | O(log n), n checkpoints of the thread |
/// | `load` | 1, and another one if reads refresh the TTL | O(log n) |
/// | `list` | 1 | O(log n + limit) |
/// | `save_many`, `load_many` | 1 for each 1,000, in a cluster for each node | |
/// | `delete` of a thread, `prune` | 1 for each 1,000 checkpoints removed | O(n log n) |
/// | `stats` | 1 for each 500 checkpoints | O(n) |
/// | `changes` | 4, and 2 for each change; none while nothing changes | O(log n + what is new) |
///
/// ```
/// use pmcptask_checkpoint::{Checkpoints as _, NewCheckpoint, RedisCheckpoints};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let checkpoints = RedisCheckpoints::builder(&url).connect().await?;
/// checkpoints.save("thread-1", &NewCheckpoint::new("a", json!({"step": 1}))).await?;
/// let second = NewCheckpoint::new("b", json!({"step": 2})).with_parent("a");
/// checkpoints.save("thread-1", &second).await?;
///
/// let newest = checkpoints.load("thread-1", None).await?.expect("two were saved");
/// assert_eq!(newest.saved, second);
/// let older = checkpoints.list("thread-1", 10, newest.position.as_ref()).await?;
/// assert_eq!(older.len(), 1);
/// # Ok(())
/// # }
/// ```
///
/// Others can follow a thread:
///
/// ```
/// use futures_util::StreamExt as _;
/// use pmcptask_checkpoint::{Checkpoints as _, NewCheckpoint, RedisCheckpoints};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let checkpoints = RedisCheckpoints::builder(&url).connect().await?;
/// let mut changes = checkpoints.changes("thread-1").await?;
/// for id in ["a", "b"] {
///     checkpoints.save("thread-1", &NewCheckpoint::new(id, serde_json::json!({}))).await?;
/// }
/// assert_eq!(changes.next().await.expect("the stream does not end")?.saved.id, "a");
/// assert_eq!(changes.next().await.expect("the stream does not end")?.saved.id, "b");
/// # Ok(())
/// # }
/// ```
///
/// The server tells of changes, so such a stream makes no requests while nothing changes. It misses nothing while the
/// connection or the server is away, also if the thread is deleted and begun again meanwhile. [`RedisBackend::tail`] has
/// its limits, and says when the server has to be asked once a second. A read of the stream refreshes no TTL.
///
/// The order is that in which the server carried out the saves, whatever the clocks say. Keys are
/// `checkpoints:tasks:<thread>:<id>` and `checkpoints:idx:<thread>`, as for tasks, with `:` as `%3A` and `%` as `%25` in
/// the id. Give the checkpointers of frameworks another prefix.
#[derive(Debug, Clone)]
pub struct RedisCheckpoints {
    threads: Threads,
}

/// The JSON of a record.
#[derive(Serialize, Deserialize)]
struct Record {
    parent: Option<String>,
    metadata: Map<String, Value>,
    state: Value,
}

impl From<Threads> for RedisCheckpoints {
    fn from(threads: Threads) -> Self {
        Self { threads }
    }
}

impl RedisCheckpoints {
    /// Returns a builder. [`RedisBackend::new`] explains the URL.
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
    ///
    /// # Errors
    ///
    /// Those of [`Lease::acquire`].
    pub async fn lease(&self, thread: &str, duration: Duration) -> Result<Option<Lease>, Error> {
        self.threads.lease(thread, duration).await
    }

    /// The same checkpoints for the run that holds the lease of its thread: `save` and `save_many` fail once the server does
    /// not have the lease any more. `compare_and_swap` over a version is refused before
    /// it is sent, because the server has no such condition for it.
    #[must_use]
    pub fn while_held(&self, lease: &Lease) -> Self {
        Self { threads: self.threads.while_held(lease) }
    }
}

fn json(checkpoint: &NewCheckpoint) -> Result<Vec<u8>, Error> {
    let NewCheckpoint { parent, metadata, state, .. } = checkpoint.clone();
    serde_json::to_vec(&Record { parent, metadata, state }).map_err(Error::Unstorable)
}

fn checkpoint(thread: &str, stored: Stored) -> Result<Checkpoint, Error> {
    let record = serde_json::from_slice(&stored.json).map_err(RecordError::from);
    let Record { parent, metadata, state } =
        record.map_err(|cause| unreadable(thread, &stored.task_id, cause))?;
    let saved = NewCheckpoint { id: id_of(&stored.task_id), parent, metadata, state };
    Ok(Checkpoint { thread: thread.to_owned(), saved, version: stored.version, position: stored.position })
}

/// What stands for an empty id, which cannot be a task id. No escaped id is like this.
const EMPTY: &str = "%";

fn task_id(id: &str) -> String {
    if id.is_empty() { EMPTY.to_owned() } else { escaped(id) }
}

fn id_of(task_id: &str) -> String {
    if task_id == EMPTY { String::new() } else { unescaped(task_id) }
}

#[async_trait]
impl Checkpoints for RedisCheckpoints {
    async fn save(&self, thread: &str, checkpoint: &NewCheckpoint) -> Result<u64, Error> {
        self.threads.put(&self.threads.turn(), thread, &task_id(&checkpoint.id), json(checkpoint)?).await
    }

    async fn save_many(&self, checkpoints: &[(&str, &NewCheckpoint)]) -> Vec<Result<u64, Error>> {
        // One connection keeps the order of a thread's checkpoints.
        let turn = &self.threads.turn();
        let saved: Vec<_> = checkpoints
            .iter()
            .map(|(thread, checkpoint)| async move {
                self.threads.put(turn, thread, &task_id(&checkpoint.id), json(checkpoint)?).await
            })
            .collect();
        // Otherwise each 128th save would wait for tokio's next turn, and be sent after those behind it.
        unconstrained(stream::iter(saved).buffered(AT_ONCE).collect()).await
    }

    async fn compare_and_swap(
        &self,
        thread: &str,
        checkpoint: &NewCheckpoint,
        expected_version: u64,
    ) -> Result<u64, Error> {
        let (json, task_id) = (json(checkpoint)?, task_id(&checkpoint.id));
        let conflict = |actual| Error::Conflict {
            thread: thread.to_owned(),
            id: checkpoint.id.clone(),
            expected: expected_version,
            actual,
        };
        if expected_version == 0 {
            if self.threads.create(thread, &task_id, json).await? {
                return Ok(1);
            }
            return Err(conflict(self.threads.version(thread, &task_id).await?));
        }
        match self.threads.replace(thread, &task_id, json, expected_version).await? {
            Written::Yes { version } => Ok(version),
            Written::Conflict { actual } => Err(conflict(actual)),
            Written::Missing => Err(conflict(0)),
        }
    }

    async fn load(&self, thread: &str, id: Option<&str>) -> Result<Option<Checkpoint>, Error> {
        let stored = match id {
            Some(id) => self.threads.get(thread, &task_id(id)).await?,
            None => self.threads.newest(thread).await?,
        };
        let Some(stored) = stored else { return Ok(None) };
        let task_id = stored.task_id.clone();
        let checkpoint = checkpoint(thread, stored)?;
        self.threads.refresh(thread, &[task_id]).await?;
        Ok(Some(checkpoint))
    }

    async fn load_many(&self, wanted: &[(&str, Option<&str>)]) -> Vec<Result<Option<Checkpoint>, Error>> {
        let loaded: Vec<_> = wanted.iter().map(|(thread, id)| self.load(thread, *id)).collect();
        stream::iter(loaded).buffered(AT_ONCE).collect().await
    }

    async fn list(
        &self,
        thread: &str,
        limit: usize,
        before: Option<&TaskPosition>,
    ) -> Result<Vec<Result<Checkpoint, Error>>, Error> {
        let listed = self.threads.newest_of(thread, limit, before).await?;
        let mut read = Vec::new();
        let checkpoints = listed.into_iter().map(|stored| {
            let stored = stored?;
            let task_id = stored.task_id.clone();
            let checkpoint = checkpoint(thread, stored)?;
            read.push(task_id);
            Ok(checkpoint)
        });
        let checkpoints = checkpoints.collect();
        self.threads.refresh(thread, &read).await?;
        Ok(checkpoints)
    }

    async fn changes(&self, thread: &str) -> Result<BoxStream<'static, Result<Checkpoint, Error>>, Error> {
        let saved = self.threads.changes(thread).await?;
        let thread = thread.to_owned();
        Ok(saved.map(move |stored| checkpoint(&thread, stored?)).boxed())
    }

    async fn delete(&self, thread: &str, id: Option<&str>) -> Result<usize, Error> {
        match id {
            Some(id) => self.threads.remove(thread, &task_id(id)).await.map(usize::from),
            None => self.threads.trim(thread, 0).await,
        }
    }

    async fn prune(&self, thread: &str, keep: usize) -> Result<usize, Error> {
        self.threads.trim(thread, keep).await
    }

    async fn stats(&self, thread: &str) -> Result<ThreadStats, Error> {
        let entries = self.threads.entries(thread).await?;
        Ok(ThreadStats {
            checkpoints: entries.len(),
            oldest_ms: entries.first().map(|entry| entry.created_ms),
            newest_ms: entries.last().map(|entry| entry.created_ms),
        })
    }

    async fn health(&self) -> Result<(), Error> {
        self.threads.check_health().await
    }
}
