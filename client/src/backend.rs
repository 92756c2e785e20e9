//! [`RedisBackend`]: the storage backend.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::{StorageBackend, VersionedRecord};
use pmcptask_schema::Keyspace;
use redis::aio::MultiplexedConnection;

use crate::breaker::Breaker;
use crate::commands::{self, RecordTimes};
use crate::connection::{Connection, Live, Request};
use crate::error::{CallKind, Error};
use crate::hash_tags::HashTags;
use crate::listing::{ListedTask, Order};
use crate::observe;
use crate::replies::{self, TrackedRecord};
use crate::session::Session;

/// The default number of tasks in one page of a list.
pub(crate) const LIST_PAGE: usize = 1_000;

/// Keeps task records in Redis or Valkey, with one native command for each call.
///
/// Clones share one connection to each server, and a second one for writes that wait for replicas. Concurrent
/// calls are pipelined, so no pool is needed.
///
/// | call | command | cost on the server |
/// |---|---|---|
/// | `get` | `PMCPTASK.GET` | O(1) |
/// | `put` | `PMCPTASK.PUT` | O(log n), n tasks of the owner |
/// | `put_if_version` | `PMCPTASK.CAS` | O(log n) |
/// | `delete` | `PMCPTASK.DEL` | O(log n) |
/// | `list_by_prefix` | `PMCPTASK.LIST` | O(n), one round trip for each 1,000 tasks |
/// | `cleanup_expired` | none | the server expires tasks by itself |
/// | `get_many`, `put_many`, `delete_many` | as `get`, `put`, `delete` | one round trip for each 1,000 |
/// | `create` | `PMCPTASK.PUT … NX` | O(log n) |
/// | `delete_if_version` | `PMCPTASK.DEL … VERSION` | O(log n) |
/// | `expire` | `PMCPTASK.EXPIRE` | O(1) |
/// | `trim` | `PMCPTASK.TRIM` | O(n), one round trip for each 1,000 removed tasks |
/// | `list_page`, `list_entries` | `PMCPTASK.LIST` | O(log n + count) |
/// | [`put_with`](Self::put_with), `create_with`, `put_if_version_with` | as `put`, `create`, `put_if_version` | O(log n) |
/// | [`changed`](Self::changed) | `PMCPTASK.GET` twice, the second tracked | nothing while the task stays as it is |
///
/// ```
/// use pmcp_tasks::store::backend::StorageBackend;
/// use pmcptask_client::RedisBackend;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let backend = RedisBackend::new(&url).await?; // redis://127.0.0.1:6379, say
/// let version = backend.put("alice:t1", br#"{"status":"working"}"#).await?;
/// backend.put_if_version("alice:t1", br#"{"status":"completed"}"#, version).await?;
/// assert_eq!(backend.get("alice:t1").await?.version, 2);
/// assert_eq!(backend.list_by_prefix("alice:").await?.len(), 1);
/// # Ok(())
/// # }
/// ```
///
/// # Keys
///
/// A composite key `owner:task-id` is split at its **last** colon: owners may contain colons, task ids may
/// not. Each write sets the task's expiry to the record's top-level `expiresAt`, to the millisecond, or
/// removes the expiry if the record has none.
///
/// # Failures
///
/// The backend reconnects by itself. A write whose reply was lost is not retried: the error says that the
/// outcome is unknown ([`Error::OutcomeUnknown`]). No error shows a record's data.
///
/// A writer that must not give up retries what was certainly not made, and reads the task after an unknown outcome:
///
/// ```
/// use pmcp_tasks::StorageError;
/// use pmcp_tasks::store::backend::StorageBackend;
/// use pmcptask_client::{Applied, Error, RedisBackend};
///
/// /// Writes a record over `version` of a task, and returns the task's new version.
/// async fn write(
///     backend: &RedisBackend,
///     key: &str,
///     record: &[u8],
///     version: u64,
/// ) -> Result<u64, StorageError> {
///     loop {
///         let error = match backend.put_if_version(key, record, version).await {
///             Ok(version) => return Ok(version),
///             Err(error) => error,
///         };
///         match Error::of(&error) {
///             // The server restarts, or the primary fails over.
///             Some(cause) if cause.was_applied() == Applied::No && cause.is_transient() => {
///                 tokio::time::sleep(std::time::Duration::from_millis(100)).await;
///             }
///             // The reply was lost. If nobody else writes this record, the task tells what happened.
///             Some(cause) if cause.outcome_is_unknown() => {
///                 let task = backend.get(key).await?;
///                 if task.data == record {
///                     return Ok(task.version);
///                 }
///             }
///             // A conflict: another writer was faster.
///             _ => return Err(error),
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let backend = RedisBackend::new(&url).await?;
/// let version = backend.put("alice:t1", b"working").await?;
/// assert_eq!(write(&backend, "alice:t1", b"completed", version).await?, 2);
/// let conflict = write(&backend, "alice:t1", b"cancelled", version).await;
/// assert!(matches!(conflict, Err(StorageError::VersionConflict { actual: 2, .. })));
/// # Ok(())
/// # }
/// ```
///
/// Connections live on the tokio runtime that made the backend. If that runtime has ended, the next call
/// reconnects on its own runtime, so many tests can use one backend in a `static`.
#[derive(Debug, Clone)]
pub struct RedisBackend {
    session: Session,
    list_page: usize,
}

impl RedisBackend {
    /// Uses an existing connection, which keeps its own timeouts. Prefer [`RedisBackend::new`].
    ///
    /// Nothing is checked. The backend does not reconnect when this connection is lost.
    #[must_use]
    pub fn with_connection(connection: MultiplexedConnection) -> Self {
        let connection = Connection::Given(Live::given(connection));
        let (keyspace, hash_tags) = (Keyspace::default(), HashTags::default());
        let session = Session::new(connection, Arc::default(), Breaker::default(), keyspace, hash_tags);
        Self::from_parts(session, LIST_PAGE)
    }

    /// Sets the start of all keys. Default: `pmcp`.
    ///
    /// With a prefix that no key can have (see
    /// [`RedisBackendBuilder::prefix`](crate::RedisBackendBuilder::prefix)), every call fails
    /// with [`Error::Settings`].
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.session.set_prefix(prefix);
        self
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Reads a task. This is no `async fn`, and neither is the next one, because their futures would take more memory.
    pub(crate) fn read_record(
        &self,
        key: &str,
        kind: CallKind,
    ) -> impl Future<Output = Result<VersionedRecord, StorageError>> {
        observe::call("PMCPTASK.GET", key, move || async move {
            let keys = self.session.keys_of(key)?;
            let command = &commands::get(&keys.task);
            let request = Request { command, kind, key, routed_by: &keys.task };
            let record = self.session.call(&request, replies::record).await?;
            record.ok_or_else(|| StorageError::NotFound { key: key.to_owned() })
        })
    }

    /// Writes over a version of a task. Returns also what was read behind the write, if the kind says so.
    pub(crate) fn compare_and_set(
        &self,
        key: &str,
        data: &[u8],
        expected_version: u64,
        kind: CallKind,
    ) -> impl Future<Output = Result<(u64, Option<TrackedRecord>), StorageError>> {
        observe::call("PMCPTASK.CAS", key, move || async move {
            let keys = self.session.keys_of(key)?;
            let times = RecordTimes::of(data).map_err(Error::from)?;
            let command = &commands::cas(&keys.task, &keys.index, expected_version, data, times);
            let request = Request { command, kind, key, routed_by: &keys.task };
            let (comparison, read) = self.session.call(&request, replies::comparison_and_read).await?;
            Ok((comparison.won(key, expected_version)?, read))
        })
    }

    pub(crate) fn from_parts(session: Session, list_page: usize) -> Self {
        Self { session, list_page }
    }

    /// Checks that the server answers and has the module. In a cluster, checks each primary that can have a
    /// key with this prefix. Each server gets a `PING` and a `PMCPTASK.GET`, and a `WAIT` if writes wait for
    /// replicas. The circuit breaker does not stop these checks. A user without permission for `PING` or
    /// `PMCPTASK.GET` passes, because the server does answer.
    ///
    /// # Errors
    ///
    /// [`StorageError::Backend`]; [`Error::of`] returns the [`Error`] that says what is wrong.
    pub async fn check_health(&self) -> Result<(), StorageError> {
        self.session.check_health().await
    }
}

/// Keeps the last copy of each task. A task that was deleted and created again between two pages is on both.
fn keep_last_of_each(tasks: &mut Vec<ListedTask>) {
    let mut seen = HashSet::with_capacity(tasks.len());
    let is_last: Vec<_> = tasks.iter().rev().map(|task| seen.insert(task.task_id.clone())).collect();
    let mut is_last = is_last.into_iter().rev();
    tasks.retain(|_| is_last.next().unwrap_or(true));
}

#[async_trait]
impl StorageBackend for RedisBackend {
    async fn get(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        self.read_record(key, CallKind::Read).await
    }

    async fn put(&self, key: &str, data: &[u8]) -> Result<u64, StorageError> {
        observe::call("PMCPTASK.PUT", key, || async move {
            let keys = self.session.keys_of(key)?;
            let times = RecordTimes::of(data).map_err(Error::from)?;
            let command = &commands::put(&keys.task, &keys.index, data, times);
            let request = Request { command, kind: CallKind::Write, key, routed_by: &keys.task };
            self.session.call(&request, |reply| replies::version("PMCPTASK.PUT", reply)).await
        })
        .await
    }

    async fn put_if_version(
        &self,
        key: &str,
        data: &[u8],
        expected_version: u64,
    ) -> Result<u64, StorageError> {
        let written = self.compare_and_set(key, data, expected_version, CallKind::Write).await;
        written.map(|(version, _)| version)
    }

    async fn delete(&self, key: &str) -> Result<bool, StorageError> {
        observe::call("PMCPTASK.DEL", key, || async move {
            let keys = self.session.keys_of(key)?;
            let command = &commands::del(&keys.task, &keys.index);
            let request = Request { command, kind: CallKind::Write, key, routed_by: &keys.task };
            self.session.call(&request, |reply| replies::yes_or_no("PMCPTASK.DEL", reply)).await
        })
        .await
    }

    async fn list_by_prefix(&self, prefix: &str) -> Result<Vec<(String, VersionedRecord)>, StorageError> {
        observe::call("PMCPTASK.LIST", prefix, || async move {
            let owner = prefix.strip_suffix(':').ok_or(Error::ListPrefix)?;
            let index_key = self.session.index_key(owner)?;
            // One more than a page, so that a shorter reply is known to be the last page.
            let count = self.list_page.saturating_add(1);
            let mut tasks = Vec::new();
            let mut pages = 0_usize;
            loop {
                let after = tasks.last().map(ListedTask::position);
                let command = &commands::list(&index_key, count, after.as_ref(), Order::OldestFirst);
                // A replica that is further behind than the first page's could end the list too early.
                let kind = if pages == 0 { CallKind::Read } else { CallKind::PrimaryRead };
                let request = Request { command, kind, key: prefix, routed_by: &index_key };
                let page = self.session.call(&request, replies::list).await?;
                let is_last = page.len() < count;
                tasks.extend(page);
                pages = pages.saturating_add(1);
                if is_last {
                    break;
                }
            }
            if pages > 1 {
                keep_last_of_each(&mut tasks);
            }
            let with_key = |task: ListedTask| ([prefix, &task.task_id].concat(), task.record);
            Ok(tasks.into_iter().map(with_key).collect())
        })
        .await
    }

    /// Always 0: the server expires tasks, and the module their index entries.
    async fn cleanup_expired(&self) -> Result<usize, StorageError> {
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_task_that_is_on_two_pages_the_later_record_counts() {
        let listed = |id: &str, version| ListedTask {
            task_id: id.to_owned(),
            created_ms: 0,
            record: VersionedRecord { data: Vec::new(), version },
        };
        let mut tasks = vec![listed("a", 7), listed("b", 1), listed("c", 1), listed("a", 1)];
        keep_last_of_each(&mut tasks);
        let kept: Vec<_> = tasks.iter().map(|task| (task.task_id.as_str(), task.record.version)).collect();
        assert_eq!(kept, [("b", 1), ("c", 1), ("a", 1)]);
    }
}
