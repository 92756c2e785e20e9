//! The calls of [`RedisBackend`] that `StorageBackend` does not have.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream::{self, StreamExt as _};
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::{StorageBackend, VersionedRecord};

use crate::backend::RedisBackend;
use crate::commands::{self, RecordTimes};
use crate::connection::Request;
use crate::error::{CallKind, Error};
use crate::listing::{ListedEntry, ListedTask, Order, TaskPosition};
use crate::observe;
use crate::replies;

/// How many tasks one `PMCPTASK.TRIM` removes, unless very many stay, so that it does not hold the server up.
const TRIMMED_AT_ONCE: usize = 1_000;

/// How many of many calls are in flight at once: the connection takes no more.
const AT_ONCE: usize = 1_000;

/// Calls that `StorageBackend` does not have. Their errors are those of the trait's calls.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use pmcp_tasks::store::backend::StorageBackend;
/// use pmcptask_client::{Order, RedisBackend};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let backend = RedisBackend::new(&url).await?;
/// assert!(backend.create("alice:t1", b"one").await?);
/// assert!(!backend.create("alice:t1", b"another").await?);
/// backend.put("alice:t2", b"two").await?;
///
/// let in_an_hour = SystemTime::now() + Duration::from_secs(3_600);
/// assert!(backend.expire("alice:t1", Some(in_an_hour)).await?);
///
/// let newest = backend.list_page("alice", None, 1, Order::NewestFirst).await?;
/// let after = newest[0].position();
/// let older = backend.list_page("alice", Some(&after), 1, Order::NewestFirst).await?;
/// assert_eq!(older[0].record.data, b"one");
///
/// let tasks = backend.get_many(&["alice:t1", "alice:t2", "alice:t3"]).await;
/// assert_eq!(tasks.iter().filter(|task| task.is_ok()).count(), 2);
///
/// assert_eq!(backend.trim("alice", 1).await?, 1);
/// backend.delete_if_version("alice:t2", 1).await?;
/// # Ok(())
/// # }
/// ```
impl RedisBackend {
    /// Gets many tasks in one round trip for each 1,000, in a cluster one for each node. The results have the
    /// order of the keys, and each is that of its own `get`.
    pub async fn get_many(&self, keys: &[&str]) -> Vec<Result<VersionedRecord, StorageError>> {
        stream::iter(keys).map(|key| self.get(key)).buffered(AT_ONCE).collect().await
    }

    /// Puts many records in one round trip for each 1,000, in a cluster one for each node. The results have
    /// the order of the records, and each is that of its own `put`: some may be made and others not. Of two
    /// records with one key, either may be the last.
    pub async fn put_many(&self, records: &[(&str, &[u8])]) -> Vec<Result<u64, StorageError>> {
        stream::iter(records).map(|(key, data)| self.put(key, data)).buffered(AT_ONCE).collect().await
    }

    /// Deletes many tasks in one round trip for each 1,000, in a cluster one for each node. The results have
    /// the order of the keys, and each is that of its own `delete`.
    pub async fn delete_many(&self, keys: &[&str]) -> Vec<Result<bool, StorageError>> {
        stream::iter(keys).map(|key| self.delete(key)).buffered(AT_ONCE).collect().await
    }

    /// Stores a new task, with `PMCPTASK.PUT … NX`. False if a live task with this key exists, which then
    /// stays as it is. O(log n), n tasks of the owner.
    ///
    /// # Errors
    ///
    /// Those of `put`.
    pub async fn create(&self, key: &str, data: &[u8]) -> Result<bool, StorageError> {
        self.create_within(key, data, None).await
    }

    /// The same, unless the owner has `max_tasks` live tasks: see [`says_owner_is_full`](crate::error::says_owner_is_full).
    pub(crate) async fn create_within(
        &self,
        key: &str,
        data: &[u8],
        max_tasks: Option<usize>,
    ) -> Result<bool, StorageError> {
        observe::call("PMCPTASK.PUT", key, || async move {
            let keys = self.session().keys_of(key)?;
            let times = RecordTimes::of(data).map_err(Error::from)?;
            let command = &commands::put_new(&keys.task, &keys.index, data, times, max_tasks);
            let request = Request { command, kind: CallKind::Write, key, routed_by: &keys.task };
            self.session().call(&request, |reply| replies::yes_or_no("PMCPTASK.PUT", reply)).await
        })
        .await
    }

    /// Deletes a task if it is at this version, with `PMCPTASK.DEL … VERSION`. O(log n), n tasks of the
    /// owner.
    ///
    /// # Errors
    ///
    /// [`StorageError::VersionConflict`] if the task is at another version, or missing (`actual` is 0 then).
    pub async fn delete_if_version(&self, key: &str, expected_version: u64) -> Result<(), StorageError> {
        observe::call("PMCPTASK.DEL", key, || async move {
            let keys = self.session().keys_of(key)?;
            let command = &commands::del_version(&keys.task, &keys.index, expected_version);
            let request = Request { command, kind: CallKind::Write, key, routed_by: &keys.task };
            let read = |reply| replies::comparison("PMCPTASK.DEL", reply);
            self.session().call(&request, read).await?.won(key, expected_version).map(drop)
        })
        .await
    }

    /// Sets when a task expires, with `PMCPTASK.EXPIRE`; None: never. Version and record stay, so the next
    /// write sets the expiry from its record again. A time that is past ends the task. False if there is no
    /// such task. Times are exact to the millisecond, rounded up. O(1).
    ///
    /// # Errors
    ///
    /// Those of `put`.
    pub async fn expire(&self, key: &str, at: Option<SystemTime>) -> Result<bool, StorageError> {
        observe::call("PMCPTASK.EXPIRE", key, || async move {
            let keys = self.session().keys_of(key)?;
            let command = &commands::expire(&keys.task, &keys.index, at.map(to_ms));
            let request = Request { command, kind: CallKind::Write, key, routed_by: &keys.task };
            self.session().call(&request, |reply| replies::yes_or_no("PMCPTASK.EXPIRE", reply)).await
        })
        .await
    }

    /// Keeps an owner's newest `keep` live tasks and removes the others, with one `PMCPTASK.TRIM` per 1,000
    /// removed tasks (a tenth of `keep`, if that is more, up to 10,000), oldest first. Returns how many tasks
    /// were removed. Each round is O(keep + m), m removed tasks.
    ///
    /// # Errors
    ///
    /// Those of `delete`. What an error says of the outcome is said of the last round: tasks of earlier
    /// rounds are gone, and others may be left. Calling again is safe.
    pub async fn trim(&self, owner: &str, keep: usize) -> Result<usize, StorageError> {
        observe::call("PMCPTASK.TRIM", owner, || async move {
            let index_key = self.session().index_key(owner)?;
            // Each round also passes over the tasks to keep, so few rounds are made if there are many of these.
            let at_once = (keep / 10).clamp(TRIMMED_AT_ONCE, 10 * TRIMMED_AT_ONCE);
            let command = &commands::trim(&index_key, keep, at_once);
            let key = &[owner, ":"].concat();
            let request = Request { command, kind: CallKind::Write, key, routed_by: &index_key };
            let mut removed = 0_usize;
            loop {
                let read = |reply| replies::count("PMCPTASK.TRIM", reply);
                let more = self.session().call(&request, read).await?;
                removed = removed.saturating_add(more);
                if more < at_once {
                    return Ok(removed);
                }
            }
        })
        .await
    }

    /// Lists up to `count` tasks of an owner, after a position if one is given, with one `PMCPTASK.LIST`.
    /// Each page is a consistent snapshot. O(log n + count), n tasks of the owner.
    ///
    /// # Errors
    ///
    /// Those of `list_by_prefix`.
    pub async fn list_page(
        &self,
        owner: &str,
        after: Option<&TaskPosition>,
        count: usize,
        order: Order,
    ) -> Result<Vec<ListedTask>, StorageError> {
        observe::call("PMCPTASK.LIST", owner, || async move {
            let index_key = self.session().index_key(owner)?;
            let command = &commands::list(&index_key, count, after, order);
            // A replica that is behind the one of the first page could leave out tasks of the next page.
            let kind = if after.is_none() { CallKind::Read } else { CallKind::PrimaryRead };
            let key = &[owner, ":"].concat();
            let request = Request { command, kind, key, routed_by: &index_key };
            self.session().call(&request, replies::list).await
        })
        .await
    }

    /// The same without the records, with `PMCPTASK.LIST … NODATA`. Never asks a replica.
    ///
    /// # Errors
    ///
    /// Those of `list_by_prefix`.
    pub async fn list_entries(
        &self,
        owner: &str,
        after: Option<&TaskPosition>,
        count: usize,
        order: Order,
    ) -> Result<Vec<ListedEntry>, StorageError> {
        observe::call("PMCPTASK.LIST", owner, || async move {
            let index_key = self.session().index_key(owner)?;
            let command = &commands::list_entries(&index_key, count, after, order);
            let key = &[owner, ":"].concat();
            let request = Request { command, kind: CallKind::PrimaryRead, key, routed_by: &index_key };
            self.session().call(&request, replies::entries).await
        })
        .await
    }
}

/// A time in ms since the epoch, rounded up; 0 for times before the epoch, which are just as past.
pub(crate) fn to_ms(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since_epoch.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}
