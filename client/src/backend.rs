//! [`RedisBackend`]: the storage backend.

use std::collections::HashSet;
use std::fmt;

use async_trait::async_trait;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::{StorageBackend, VersionedRecord};
use pmcptask_schema::{Keyspace, PrefixError, split_composite};
use redis::Cmd;
use redis::aio::MultiplexedConnection;

use crate::address::Address;
use crate::breaker::Breaker;
use crate::commands::{self, Moments};
use crate::connection::{Connection, Live, Reply, Request};
use crate::error::{CallKind, Error};
use crate::observe;
use crate::replies::{self, CasOutcome, Listed};

/// How many tasks a list reads in one go, unless set.
pub(crate) const LIST_PAGE: usize = 1_000;

/// Whether keys carry their owner as a hash tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HashTags {
    /// `pmcp:tasks:alice:t1`: what `pmcp-tasks` writes, and the default but in a cluster, where it is refused unless
    /// the prefix is a hash tag itself.
    #[default]
    Off,
    /// `pmcp:tasks:{alice}:t1`, braces literal: in a cluster, all keys of an owner share a slot. An owner that is
    /// empty or starts with `}` stands after `_{_}` instead, because such a tag would be void.
    On,
}

impl HashTags {
    /// What fits, if the user does not say: in a cluster, task and index have to share a slot.
    pub(crate) fn of(address: &Address) -> Self {
        if matches!(address, Address::Cluster(_)) { Self::On } else { Self::Off }
    }

    pub(crate) fn keyspace(self, prefix: impl Into<String>) -> Result<Keyspace, PrefixError> {
        let keyspace = Keyspace::new(prefix)?;
        match self {
            Self::Off => Ok(keyspace),
            Self::On => keyspace.with_hash_tags(),
        }
    }
}

/// Keeps task records in Redis or Valkey, with one native command for each call.
///
/// Clones share one connection, in a cluster one to each node, and another one for writes that wait for replicas.
/// Calls that are made at the same time are pipelined on it; there is no pool, and none is needed.
///
/// | call | command | cost on the server |
/// |---|---|---|
/// | `get` | `PMCPTASK.GET` | O(1) |
/// | `put` | `PMCPTASK.PUT` | O(log n), n tasks of the owner |
/// | `put_if_version` | `PMCPTASK.CAS` | O(log n) |
/// | `delete` | `PMCPTASK.DEL` | O(log n) |
/// | `list_by_prefix` | `PMCPTASK.LIST` | O(n), one round trip for each 1,000 tasks |
/// | `cleanup_expired` | none | the server expires tasks by itself |
///
/// # Keys
///
/// A composite key `owner:task-id` is split at its **last** colon, so owners may hold colons and task ids
/// may not. A record's top-level `expiresAt` sets the task's expiry, to the millisecond, with every
/// write; a write without one removes it.
///
/// # Failures
///
/// The backend reconnects by itself. A write whose reply was lost is not repeated: the error says that
/// its outcome is unknown ([`Error::OutcomeUnknown`]). No error shows a record's data.
///
/// Connections live on the runtime of tokio on which the backend was made. Where that has ended, the next call connects
/// again on its own runtime: a backend may be kept in a `static` that many tests use.
#[derive(Clone)]
pub struct RedisBackend {
    connection: Connection,
    breaker: Breaker,
    keyspace: Result<Keyspace, PrefixError>,
    hash_tags: HashTags,
    list_page: usize,
}

impl RedisBackend {
    /// Uses a connection that is there already.
    ///
    /// Nothing is checked, and a connection made like this does not come back when it is lost, nor has it
    /// other timeouts than its own. Prefer [`RedisBackend::new`].
    #[must_use]
    pub fn with_connection(connection: MultiplexedConnection) -> Self {
        let (keyspace, hash_tags) = (Keyspace::default(), HashTags::default());
        Self::from_parts(
            Connection::Given(Live::given(connection)),
            Breaker::default(),
            keyspace,
            hash_tags,
            LIST_PAGE,
        )
    }

    /// Sets what all keys start with; `pmcp` unless set.
    ///
    /// With a prefix that no key can have (see [`RedisBackendBuilder::prefix`](crate::RedisBackendBuilder::prefix)),
    /// every call fails with [`Error::Settings`].
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.keyspace = self.hash_tags.keyspace(prefix);
        self
    }

    pub(crate) fn from_parts(
        connection: Connection,
        breaker: Breaker,
        keyspace: Keyspace,
        hash_tags: HashTags,
        list_page: usize,
    ) -> Self {
        Self { connection, breaker, keyspace: Ok(keyspace), hash_tags, list_page }
    }

    /// Makes sure that the server, or each primary of a cluster that can have a key with this prefix, answers and knows
    /// the module's commands: it gets a `PING` and a `PMCPTASK.GET`. A circuit breaker lets both through.
    ///
    /// # Errors
    ///
    /// [`StorageError::Backend`], with an [`Error`] as its source that says what is wrong.
    pub async fn check_health(&self) -> Result<(), StorageError> {
        /// More owners than it takes to hit the one slot of a shard that has no other.
        const OWNERS: u32 = 200_000;
        let keyspace = self.keyspace()?;
        // Where the prefix decides for all owners, all keys are at one server.
        let owners = if keyspace.prefix_is_hash_tag() { 1 } else { OWNERS };
        let keys = (0..owners).map(|owner| keyspace.task_key(&owner.to_string(), "health-check"));
        for task_key in self.connection.one_key_of_each_shard(keys) {
            self.check(&redis::cmd("PING"), &task_key).await?;
            // The only way to find out that works everywhere: hosted servers deny MODULE LIST.
            if let Some(reply) = self.check(&commands::get(&task_key), &task_key).await? {
                replies::record(reply.value)?;
            }
            if self.connection.waits_for_replicas()
                && self.check(&commands::wait(), &task_key).await?.is_none()
            {
                let expected = "writes that wait for replicas: expected a user who may WAIT, got another";
                return Err(Error::Settings(expected.to_owned()).into());
            }
        }
        Ok(())
    }

    /// The reply of the server that has a key; none where the user may not ask. Such a user may well do other
    /// things, and the server is there.
    async fn check(&self, command: &Cmd, task_key: &str) -> Result<Option<Reply>, StorageError> {
        let request = Request { command, kind: CallKind::PrimaryRead, key: task_key, routed_by: task_key };
        match self.connection.call(&request).await {
            Ok(reply) => Ok(Some(reply)),
            Err(error) if matches!(Error::of(&error), Some(Error::NoPermission { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read(&self, command: &Cmd, key: &str, routed_by: &str) -> Result<Reply, StorageError> {
        self.read_as(CallKind::Read, command, key, routed_by).await
    }

    async fn read_as(
        &self,
        kind: CallKind,
        command: &Cmd,
        key: &str,
        routed_by: &str,
    ) -> Result<Reply, StorageError> {
        let request = Request { command, kind, key, routed_by };
        self.breaker.guard(|| self.connection.call(&request)).await
    }

    async fn write(&self, command: &Cmd, key: &str, routed_by: &str) -> Result<Reply, StorageError> {
        let request = Request { command, kind: CallKind::Write, key, routed_by };
        self.breaker.guard(|| self.connection.call(&request)).await
    }

    fn keyspace(&self) -> Result<&Keyspace, Error> {
        self.keyspace.as_ref().map_err(|error| Error::Settings(error.to_string()))
    }

    /// Task key and index key of a composite key.
    fn keys_of(&self, key: &str) -> Result<(String, String), Error> {
        let keyspace = self.keyspace()?;
        let (owner, task_id) = split_composite(key)?;
        Ok((keyspace.task_key(owner, task_id), keyspace.index_key(owner)))
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The connection knows the password.
        f.debug_struct("RedisBackend")
            .field("keyspace", &self.keyspace)
            .field("hash_tags", &self.hash_tags)
            .finish_non_exhaustive()
    }
}

/// A task that was deleted and made anew between two pages is on both of them.
fn keep_last_of_each(tasks: &mut Vec<Listed>) {
    let mut seen = HashSet::with_capacity(tasks.len());
    let is_last: Vec<_> = tasks.iter().rev().map(|task| seen.insert(task.id.clone())).collect();
    let mut is_last = is_last.into_iter().rev();
    tasks.retain(|_| is_last.next().unwrap_or(true));
}

#[async_trait]
impl StorageBackend for RedisBackend {
    async fn get(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        observe::call("PMCPTASK.GET", key, || async move {
            let (task_key, _) = self.keys_of(key)?;
            let reply = self.read(&commands::get(&task_key), key, &task_key).await?;
            replies::record(reply.value)?.ok_or_else(|| StorageError::NotFound { key: key.to_owned() })
        })
        .await
    }

    async fn put(&self, key: &str, data: &[u8]) -> Result<u64, StorageError> {
        observe::call("PMCPTASK.PUT", key, || async move {
            let (task_key, index_key) = self.keys_of(key)?;
            let moments = Moments::of(data).map_err(Error::from)?;
            let put = commands::put(&task_key, &index_key, data, moments);
            let reply = self.write(&put, key, &task_key).await?;
            let too_few_replicas = reply.check_replicas(key);
            let version = replies::version("PMCPTASK.PUT", reply.value)?;
            Ok(too_few_replicas.map(|()| version)?)
        })
        .await
    }

    async fn put_if_version(
        &self,
        key: &str,
        data: &[u8],
        expected_version: u64,
    ) -> Result<u64, StorageError> {
        observe::call("PMCPTASK.CAS", key, || async move {
            let (task_key, index_key) = self.keys_of(key)?;
            let moments = Moments::of(data).map_err(Error::from)?;
            let cas = commands::cas(&task_key, &index_key, expected_version, data, moments);
            let reply = self.write(&cas, key, &task_key).await?;
            let too_few_replicas = reply.check_replicas(key);
            match replies::cas(reply.value)? {
                CasOutcome::Won(version) => Ok(too_few_replicas.map(|()| version)?),
                CasOutcome::Lost(actual) => Err(StorageError::VersionConflict {
                    key: key.to_owned(),
                    expected: expected_version,
                    actual,
                }),
            }
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<bool, StorageError> {
        observe::call("PMCPTASK.DEL", key, || async move {
            let (task_key, index_key) = self.keys_of(key)?;
            let del = commands::del(&task_key, &index_key);
            let reply = self.write(&del, key, &task_key).await?;
            let too_few_replicas = reply.check_replicas(key);
            let is_deleted = replies::deleted(reply.value)?;
            Ok(too_few_replicas.map(|()| is_deleted)?)
        })
        .await
    }

    async fn list_by_prefix(&self, prefix: &str) -> Result<Vec<(String, VersionedRecord)>, StorageError> {
        observe::call("PMCPTASK.LIST", prefix, || async move {
            let owner = prefix.strip_suffix(':').ok_or(Error::ListPrefix)?;
            let index_key = self.keyspace()?.index_key(owner);
            // One more than a page, so that a page is known to be the last.
            let count = self.list_page.saturating_add(1);
            let mut tasks = Vec::new();
            let mut pages = 0_usize;
            loop {
                let list = commands::list(&index_key, count, tasks.last());
                // A replica that is behind the one of the first page could end the list too early.
                let kind = if pages == 0 { CallKind::Read } else { CallKind::PrimaryRead };
                let reply = self.read_as(kind, &list, prefix, &index_key).await?;
                let page = replies::list(reply.value)?;
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
            let with_key = |task: Listed| ([prefix, &task.id].concat(), task.record);
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
        let listed = |id: &str, version| Listed {
            id: id.to_owned(),
            created_ms: 0,
            record: VersionedRecord { data: Vec::new(), version },
        };
        let mut tasks = vec![listed("a", 7), listed("b", 1), listed("c", 1), listed("a", 1)];
        keep_last_of_each(&mut tasks);
        let kept: Vec<_> = tasks.iter().map(|task| (task.id.as_str(), task.record.version)).collect();
        assert_eq!(kept, [("b", 1), ("c", 1), ("a", 1)]);
    }
}
