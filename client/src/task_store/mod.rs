//! [`TaskStore`]: what a pmcp server keeps its tasks in.

mod attempt;
mod changes;
mod cursor;
mod failing;
mod found;
mod known;
mod mark;
mod near;
mod process_leases;
mod records;
mod tracking;
mod traits;
mod update;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::BoxStream;
use pmcp::server::task_store::{StoreConfig as ServerConfig, TaskStore as _};
use pmcp_tasks::store::backend::{StorageBackend, VersionedRecord, make_key};
use pmcp_tasks::{
    GenericTaskStore, ServerTaskStore, StorageError, StoreConfig, TaskError, TaskRecord, TaskSecurityConfig,
};
use tokio::time::{Instant, timeout};

use self::found::Found;
use self::records::{Records, Settings};
pub use self::worker::{Worker, WorkerError};
use crate::backend::RedisBackend;

/// Keeps the tasks of a pmcp server. Takes the place of `ServerTaskStore::new(GenericTaskStore::new(backend))`.
///
/// ```
/// use std::sync::Arc;
///
/// use pmcp::server::task_store::TaskStore as _;
/// use pmcp::types::tasks::TaskStatus;
/// use pmcptask_client::{RedisBackend, TaskStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let store = TaskStore::new(RedisBackend::new(&url).await?);
/// let server = pmcp::Server::builder()
///     .name("tasks")
///     .version("1.0.0")
///     .task_store(Arc::new(store.clone()))
///     .build()?;
///
/// let task = store.create("alice", None).await?;
/// store.set_status_message(&task.task_id, "alice", Some("half done".to_owned())).await?;
/// store.update_status(&task.task_id, "alice", TaskStatus::Completed, None).await?;
/// let (tasks, _) = store.list("alice", None).await?;
/// assert_eq!(tasks[0].status, TaskStatus::Completed);
/// # Ok(())
/// # }
/// ```
///
/// The store implements `pmcp::server::task_store::TaskStore`, which a server's `task_store(…)` takes, and
/// `pmcp_tasks::TaskStore`. All rules are those of `pmcp-tasks`, whose code runs here too: owners, transitions, limits, times,
/// the form of records. Other stores and the backends of `pmcp-tasks` may use the same data at the same time.
///
/// | call | round trips |
/// |---|---|
/// | `create` | 1, however many tasks the owner has |
/// | any change of a task | 1 if this store made the last change; 2 otherwise; 2 more for each conflict |
/// | any read of a task | 1; none if [`near_cache`](Self::near_cache) has the task |
/// | `list` | 1; reads one record more than the page has |
/// | [`changed`](Self::changed), [`wait_until_terminal`](Self::wait_until_terminal), [`changes`](Self::changes) | 2 to start to wait, and for each change; none while nothing changes |
///
/// Where both traits are in scope, a call names the one that is meant: `pmcp_tasks::TaskStore::get(&store, id, owner)`.
///
/// # Changes
///
/// A change that meets another writer's is made again: the task is read, all rules are checked against what it is now, and the
/// change is written. So a cancel and the progress messages of a worker do not make each other fail, and nothing is
/// overwritten. A call fails with `ConcurrentModification` after ten seconds of conflicts, which takes another writer that
/// writes more often than once in a round trip of this one, or connections or slots that change as often. A write whose outcome is unknown is not
/// repeated: the error says that it is unknown.
///
/// The store keeps the last record that it wrote of each task, to write over it without reading it first. It does so only if
/// the task is still at that version, and the connection is still the one over which the record was written: after a
/// failover, the same version may be another record. No record that is only remembered decides a refusal.
/// [`with_memory`](Self::with_memory) limits how much is kept.
///
/// # Different from `ServerTaskStore` over `InMemoryBackend`
///
/// - An expired task is gone at its millisecond: reads and changes fail with `NotFound` instead of `Expired`, and expired tasks
///   do not count against the owner's limit.
/// - A cursor that no list of this store returned is an error; there, the list starts over. Cursors outlive their task.
/// - A page is shorter where records cannot be read, and a list may end with an empty page.
/// - Tasks that were created in the same millisecond are listed in the order of their ids.
/// - Of a TTL that is too long and an owner who has too many tasks, the TTL is named.
/// - A list has the tasks of its owner only: not those of `alice:x` for `alice`.
///
/// # Limits
///
/// - A change may overwrite another record with the same version if the server has lost writes and the client cannot notice: a
///   proxy leads the same connection to another server, or the server is made a replica and a primary again while no
///   write of this backend meets the replica.
/// - If a task is deleted, and another with the same id is brought to the same version by other means than a store, a change
///   may overwrite that one. Stores never give an id twice.
/// - [`RedisBackendBuilder::read_from_replicas`](crate::RedisBackendBuilder::read_from_replicas) is for reads and first pages
///   of lists. Changes read from the primary.
#[derive(Clone)]
pub struct TaskStore {
    records: Arc<Records>,
    config: StoreConfig,
    security: TaskSecurityConfig,
    poll_interval: u64,
    /// The same settings as pmcp has them.
    server_config: ServerConfig,
    waits_for_results: Option<Duration>,
}

impl TaskStore {
    /// A store with the settings of `GenericTaskStore::new`: 100 tasks per owner, no anonymous owners, a TTL of 1 h if the
    /// client asks for none and 24 h at most, and a poll interval of 500 ms.
    #[must_use]
    pub fn new(backend: RedisBackend) -> Self {
        let (config, security, poll_interval) = (StoreConfig::default(), TaskSecurityConfig::default(), 500);
        Self {
            records: Arc::new(Records::new(backend, Settings::default())),
            config,
            security,
            poll_interval,
            server_config: ServerConfig::default(),
            waits_for_results: None,
        }
        .configured()
    }

    /// Sets the limits of TTLs and variables.
    #[must_use]
    pub fn with_config(self, config: StoreConfig) -> Self {
        Self { config, ..self }.configured()
    }

    /// Sets how many live tasks an owner may have, and whether anonymous owners may create tasks.
    #[must_use]
    pub fn with_security(self, security: TaskSecurityConfig) -> Self {
        Self { security, ..self }.configured()
    }

    /// Sets how often clients are told to poll a new task, in milliseconds. Default: 500.
    #[must_use]
    pub fn with_poll_interval(self, ms: u64) -> Self {
        Self { poll_interval: ms, ..self }.configured()
    }

    /// Sets how many bytes the last known records of tasks may take. Those not used for longest go first. Default: 16 MiB,
    /// shared by the clones of a store. 0: each change reads the task first, as with
    /// [`RedisBackend::with_connection`] in any case.
    #[must_use]
    pub fn with_memory(self, bytes: usize) -> Self {
        let settings = Settings { memory: bytes, ..self.records.settings };
        self.reading_with(settings)
    }

    /// Answers reads of a task from memory while the server has told of no change. Default: off. `bytes` is how much all
    /// records may take that the store remembers, as for [`with_memory`](Self::with_memory).
    ///
    /// ```
    /// use pmcp_tasks::TaskStore as _;
    /// use pmcptask_client::{RedisBackend, TaskStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
    /// # let url = server.url();
    /// let store = TaskStore::new(RedisBackend::new(&url).await?).near_cache(64 << 20);
    /// let id = store.create("alice", "tools/call", None).await?.task.task_id;
    /// for _ in 0..1_000 {
    ///     // The first poll asks the server, the others find the task in memory.
    ///     assert_eq!(store.get(&id, "alice").await?.version, 1);
    /// }
    /// let cancelled = store.cancel(&id, "alice").await?;
    /// assert_eq!(store.get(&id, "alice").await?.version, cancelled.version);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The first poll of a task reads it, the second one has the server track it (RESP3 `CLIENT TRACKING`, as for
    /// [`RedisBackend::changed`]), and from then on polls ask the server again only after a change. A task that this store wrote
    /// is tracked with the first poll, and stays so over the store's own writes: a task's life with a poll after each of five
    /// messages is 9 round trips instead of 15.
    ///
    /// - A store and its clones see their own writes at once, and never an older version of a task than one that they saw, unless
    ///   the server itself goes back, as after a failover that loses writes.
    /// - Anybody's change is seen as soon as the server tells of it: usually within a round trip. A half-open connection, which was
    ///   closed without the client being told, delays that by at most
    ///   [`keep_alive`](crate::RedisBackendBuilder::keep_alive) and
    ///   [`response_timeout`](crate::RedisBackendBuilder::response_timeout) together. The other limits of
    ///   [`RedisBackend::changed`] hold too: for moves of slots and primaries, and for `SWAPDB`.
    /// - An expired task is gone at its millisecond.
    /// - No refusal of a change comes from memory, and no list. A change of a task that polls find in memory is one round trip,
    ///   whoever made the last one.
    /// - A poll that is answered from memory is no call of the backend: it has no span and counts in no metric.
    ///
    /// # What it costs
    ///
    /// - A write over a polled task brings the record back in the same round trip, up to 16 KiB, until two writes in a row
    ///   were not followed by a poll.
    /// - With [`wait_for_replicas`](crate::RedisBackendBuilder::wait_for_replicas), the first poll after a write reads, and a change
    ///   of a polled task reads the task first: writes have a connection of their own, and it may lead to another server for
    ///   a moment.
    /// - The server keeps the name of each tracked task until the task changes or ends, in a table of
    ///   `tracking-table-max-keys` names. The name of a task that is deleted, instead of expiring, may stay if the
    ///   task is polled once more.
    /// - Polls of a task with a [worker](Self::work_on) ask once per duration of the worker's lease whether it lives (`PTTL`).
    /// - All reads of a task are of the primary, also with
    ///   [`read_from_replicas`](crate::RedisBackendBuilder::read_from_replicas).
    /// - If the server cannot tell of changes, every poll reads: with RESP2, with
    ///   [`RedisBackend::with_connection`], and without permission for `CLIENT TRACKING`, `CLIENT CACHING` or `PTTL`.
    #[must_use]
    pub fn near_cache(self, bytes: usize) -> Self {
        let settings = Settings { memory: bytes, is_near: true, ..self.records.settings };
        self.reading_with(settings)
    }

    /// Sets how long after the death of a process the tasks of its [workers](Self::work_on) fail at most. A process renews its
    /// lease after each third of this time. Default: 15 s. At least 10 ms.
    #[must_use]
    pub fn with_worker_lease(self, duration: Duration) -> Self {
        let settings = Settings { worker_lease: duration, ..self.records.settings };
        self.reading_with(settings)
    }

    fn reading_with(self, settings: Settings) -> Self {
        Self { records: Arc::new(Records::new(self.records.backend.clone(), settings)), ..self }
    }

    /// Makes `get_result` wait until the task is terminal, as the protocol of 2025-11-25 asks of `tasks/result`. After this
    /// time, it returns what it would without waiting. Default: off. Which reads come on top of this time:
    /// see [`wait_until_terminal`](Self::wait_until_terminal).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pmcp::server::task_store::TaskStore as _;
    /// use pmcp::types::tasks::TaskStatus;
    /// use pmcp::types::{CallToolResult, Content};
    /// use pmcptask_client::{RedisBackend, TaskStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
    /// # let url = server.url();
    /// let store = TaskStore::new(RedisBackend::new(&url).await?).wait_for_results(Duration::from_secs(60));
    /// let id = store.create("alice", None).await?.task_id;
    /// let work = async {
    ///     store.set_result(&id, "alice", CallToolResult::new(vec![Content::text("42")])).await?;
    ///     store.update_status(&id, "alice", TaskStatus::Completed, None).await
    /// };
    /// let (result, done) = tokio::join!(store.get_result(&id, "alice"), work);
    /// done?;
    /// assert_eq!(result?.content.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Only for servers that handle requests at the same time: `ServerCore`, and over HTTP those of
    /// `StreamableHttpServer::new_concurrent` and `with_config_concurrent` of pmcp 2.23. `StreamableHttpServer::new` and
    /// `with_config` have one lock around the server: while one `tasks/result` waits there, all other requests wait too.
    #[must_use]
    pub fn wait_for_results(self, limit: Duration) -> Self {
        Self { waits_for_results: Some(limit), ..self }
    }

    /// The backend, for what the store does not do: deleting tasks, for example.
    #[must_use]
    pub fn backend(&self) -> &RedisBackend {
        &self.records.backend
    }

    fn configured(mut self) -> Self {
        self.server_config =
            self.upstream(Found::nothing(), self.security.max_tasks_per_owner).config().clone();
        self
    }

    /// Upstream's store with these settings.
    fn upstream<B: StorageBackend + 'static>(&self, backend: B, max_tasks: usize) -> ServerTaskStore<B> {
        let security = self.security.clone().with_max_tasks_per_owner(max_tasks);
        let store = GenericTaskStore::new(backend).with_config(self.config.clone()).with_security(security);
        ServerTaskStore::new(store.with_poll_interval(self.poll_interval))
    }

    /// Upstream's store over what was read.
    fn over(&self, found: Found) -> ServerTaskStore<Found> {
        self.upstream(found, self.security.max_tasks_per_owner)
    }

    /// Upstream's store over a task that is read now.
    async fn over_task(&self, task_id: &str, owner_id: &str) -> ServerTaskStore<Found> {
        self.over(Found::task(self.records.task(&make_key(owner_id, task_id)).await))
    }

    /// The same, and the task is awaited if `get_result` waits.
    async fn over_result(&self, task_id: &str, owner_id: &str) -> ServerTaskStore<Found> {
        match self.waits_for_results {
            None => self.over_task(task_id, owner_id).await,
            Some(limit) => {
                // Boxed, so that a call that waits takes little memory.
                self.over(Found::task(Box::pin(self.terminal_within(task_id, owner_id, limit)).await))
            }
        }
    }

    /// A record as upstream reads it. `NotFound` if it has another owner.
    async fn record(
        &self,
        task_id: &str,
        owner_id: &str,
        record: Result<VersionedRecord, StorageError>,
    ) -> Result<TaskRecord, TaskError> {
        self.over(Found::task(record)).inner().get(task_id, owner_id).await
    }

    /// The task once it is terminal, or as it is when the time is over. It is read once before the wait, and once more if the
    /// time is over.
    async fn terminal_within(
        &self,
        task_id: &str,
        owner_id: &str,
        limit: Duration,
    ) -> Result<VersionedRecord, StorageError> {
        let (started, key) = (Instant::now(), make_key(owner_id, task_id));
        let record = self.records.task_to_await(&key).await?;
        // What upstream refuses needs no wait. Upstream waits for nothing here.
        let is_final = |record: &VersionedRecord| {
            let task = self.record(task_id, owner_id, Ok(record.clone())).now_or_never();
            task.is_none_or(|task| task.map_or(true, |task| task.task.status.is_terminal()))
        };
        if is_final(&record) {
            return Ok(record);
        }
        let left = limit.saturating_sub(started.elapsed());
        match timeout(left, self.records.wait_until(&key, &is_final)).await {
            Ok(ended) => ended?.ok_or(StorageError::NotFound { key }),
            Err(_) => self.records.task_at_primary(&key).await,
        }
    }
}

/// Waiting, without polling. The server tells of changes: see [`RedisBackend::changed`] for how, and for its limits.
impl TaskStore {
    /// Waits until a task's version is another than `version`, and returns the task. None: the task is gone, or was never
    /// there. Returns at once if that is so already. To stop waiting, drop the future.
    ///
    /// ```
    /// use pmcp_tasks::TaskStore as _;
    /// use pmcptask_client::{RedisBackend, TaskStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
    /// # let url = server.url();
    /// let store = TaskStore::new(RedisBackend::new(&url).await?);
    /// let task = store.create("alice", "tools/call", None).await?;
    /// let id = task.task.task_id.as_str();
    /// let (changed, cancelled) =
    ///     tokio::join!(store.changed(id, "alice", task.version), store.cancel(id, "alice"));
    /// assert_eq!(changed?.map(|task| task.version), Some(cancelled?.version));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `get`. Calling again with the same version misses nothing.
    pub async fn changed(
        &self,
        task_id: &str,
        owner_id: &str,
        version: u64,
    ) -> Result<Option<TaskRecord>, TaskError> {
        // Such an id would lead to another owner's tasks.
        if task_id.contains(':') {
            return Ok(None);
        }
        let Some(record) = self.records.changed(&make_key(owner_id, task_id), version).await.transpose()
        else {
            return Ok(None);
        };
        match self.record(task_id, owner_id, record).await {
            // It is another owner's.
            Err(TaskError::NotFound { .. }) => Ok(None),
            record => record.map(Some),
        }
    }

    /// Waits until a task is terminal, and returns the task.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pmcp_tasks::{TaskError, TaskStatus, TaskStore as _};
    /// use pmcptask_client::{RedisBackend, TaskStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
    /// # let url = server.url();
    /// let store = TaskStore::new(RedisBackend::new(&url).await?);
    /// let id = store.create("alice", "tools/call", None).await?.task.task_id;
    ///
    /// let too_early = store.wait_until_terminal(&id, "alice", Duration::from_millis(10)).await;
    /// assert!(matches!(too_early, Err(TaskError::NotReady { .. })));
    ///
    /// let a_minute = Duration::from_secs(60);
    /// let (task, cancelled) =
    ///     tokio::join!(store.wait_until_terminal(&id, "alice", a_minute), store.cancel(&id, "alice"));
    /// cancelled?;
    /// assert_eq!(task?.task.status, TaskStatus::Cancelled);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// `limit` is for the wait. The task is read once before the wait, and once more if the time is over: while the server is
    /// away, each of these reads takes as long as any call does. If the task changes more than once a second, its end is seen
    /// up to 1 s late, but within `limit`.
    ///
    /// # Errors
    ///
    /// [`TaskError::NotReady`] if the task is not terminal within `limit`, [`TaskError::NotFound`] if it is gone by then, and those
    /// of `get`.
    pub async fn wait_until_terminal(
        &self,
        task_id: &str,
        owner_id: &str,
        limit: Duration,
    ) -> Result<TaskRecord, TaskError> {
        let record = self.terminal_within(task_id, owner_id, limit).await;
        let record = self.record(task_id, owner_id, record).await?;
        let current_status = record.task.status;
        if current_status.is_terminal() {
            Ok(record)
        } else {
            Err(TaskError::NotReady { task_id: task_id.to_owned(), current_status })
        }
    }

    /// The changes of an owner's tasks from now on: each task that is new or at another version, as it is then. A task that
    /// changes faster than it can be read is yielded less often, at last as it is in the end. The end of a task is no change.
    ///
    /// ```
    /// use futures_util::StreamExt as _;
    /// use pmcp_tasks::TaskStore as _;
    /// use pmcptask_client::{RedisBackend, TaskStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
    /// # let url = server.url();
    /// let store = TaskStore::new(RedisBackend::new(&url).await?);
    /// let mut changes = store.changes("alice").await?;
    /// let id = store.create("alice", "tools/call", None).await?.task.task_id;
    /// store.cancel(&id, "alice").await?;
    /// while let Some(task) = changes.next().await {
    ///     // For example `notifications/tasks`.
    ///     if task?.task.status.is_terminal() {
    ///         break;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The stream ends with the runtime that `changes` was called on, and not before. An error does not end it: the stream goes on
    /// once the server is back, after a pause of at most 1 s, and no change is missed. After an error, none follows until the
    /// tasks could be listed again, however many of them meet the outage. Nothing is left when the stream is dropped.
    ///
    /// A task of its own reads for the stream, however slowly the stream is consumed. It keeps the last error and one record of
    /// each task until they are taken, and reads a task again when its record was taken.
    ///
    /// It costs one `PMCPTASK.LIST … NODATA` now and whenever a task has come or gone, two reads for each task of the owner to
    /// start with, and two for each change. If tasks come or go more often than once a second, a new task is yielded up
    /// to 1 s late.
    ///
    /// # Errors
    ///
    /// Those of `list`; also of the stream's items.
    pub async fn changes(
        &self,
        owner_id: &str,
    ) -> Result<BoxStream<'static, Result<TaskRecord, TaskError>>, TaskError> {
        changes::of_owner(self.clone(), owner_id.to_owned()).await
    }
}

impl fmt::Debug for TaskStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskStore")
            .field("backend", &self.records.backend)
            .field("config", &self.config)
            .field("security", &self.security)
            .field("poll_interval", &self.poll_interval)
            .field("waits_for_results", &self.waits_for_results)
            .finish_non_exhaustive()
    }
}
