//! What every layer above the connections shares: the keys, the connections with their breaker, and one way
//! to call.

use std::fmt;
use std::sync::Arc;

use pmcp_tasks::StorageError;
use pmcptask_schema::{IndexKey, Keyspace, PrefixError, owner_in_hash_tag, split_composite};
use redis::{Cmd, Value};

use crate::breaker::Breaker;
use crate::commands;
use crate::connection::{Connection, Reply, Request, Waiter, Waiters};
use crate::error::{CallKind, Error};
use crate::hash_tags::HashTags;
use crate::replies;

/// Clones share the connections and the breaker.
#[derive(Clone)]
pub(crate) struct Session {
    connection: Connection,
    waiters: Arc<Waiters>,
    breaker: Breaker,
    keyspace: Result<Keyspace, PrefixError>,
    hash_tags: HashTags,
}

/// The keys of one task.
pub(crate) struct TaskKeys {
    pub(crate) task: String,
    pub(crate) index: String,
}

impl Session {
    pub(crate) fn new(
        connection: Connection,
        waiters: Arc<Waiters>,
        breaker: Breaker,
        keyspace: Keyspace,
        hash_tags: HashTags,
    ) -> Self {
        Self { connection, waiters, breaker, keyspace: Ok(keyspace), hash_tags }
    }

    /// With a prefix that no key can have, every call fails with [`Error::Settings`].
    pub(crate) fn set_prefix(&mut self, prefix: impl Into<String>) {
        self.keyspace = self.hash_tags.keyspace(prefix);
    }

    /// The same connections, with the keys of leases. No prefix of tasks ends like this, unless somebody wants so.
    pub(crate) fn of_leases(&self) -> Result<Self, Error> {
        let prefix = [self.keyspace()?.prefix(), ":lease"].concat();
        let mut session = self.clone();
        session.set_prefix(prefix);
        Ok(session)
    }

    fn keyspace(&self) -> Result<&Keyspace, Error> {
        self.keyspace.as_ref().map_err(|error| Error::Settings(error.to_string()))
    }

    pub(crate) fn prefix(&self) -> Result<&str, Error> {
        Ok(self.keyspace()?.prefix())
    }

    /// The keys of the task with this composite key, `owner:task-id`.
    pub(crate) fn keys_of(&self, key: &str) -> Result<TaskKeys, Error> {
        let keyspace = self.keyspace()?;
        let (owner, task_id) = split_composite(key)?;
        Ok(TaskKeys { task: keyspace.task_key(owner, task_id), index: keyspace.index_key(owner) })
    }

    /// Adds a waiter for a change of the task with this composite key, until the returned value is dropped.
    pub(crate) fn add_waiter(&self, key: &str) -> Result<Waiter, Error> {
        Ok(self.waiters.add(self.keys_of(key)?.task))
    }

    /// Adds a waiter for tasks of an owner that come or go.
    pub(crate) fn add_waiter_of_owner(&self, owner: &str) -> Result<Waiter, Error> {
        Ok(self.waiters.add(self.index_key(owner)?))
    }

    /// See [`Waiters::epoch`].
    pub(crate) fn epoch(&self) -> u64 {
        self.waiters.epoch()
    }

    /// Whether writes wait for replicas.
    pub(crate) fn waits_for_replicas(&self) -> bool {
        self.connection.waits_for_replicas()
    }

    /// Whether what was read or written in an epoch may be remembered.
    pub(crate) fn has_epochs(&self) -> bool {
        self.connection.has_epochs()
    }

    pub(crate) fn index_key(&self, owner: &str) -> Result<String, Error> {
        Ok(self.keyspace()?.index_key(owner))
    }

    /// The owner whose index a key is; None if it is no index of this keyspace.
    pub(crate) fn owner_of_index(&self, key: &str) -> Result<Option<String>, Error> {
        let keyspace = self.keyspace()?;
        let index = IndexKey::parse(key.as_bytes()).ok();
        let index = index.filter(|index| index.prefix == keyspace.prefix().as_bytes());
        let part = index.and_then(|index| std::str::from_utf8(index.owner).ok());
        let owner = if keyspace.has_hash_tags() { part.and_then(owner_in_hash_tag) } else { part };
        Ok(owner.map(str::to_owned))
    }

    /// Sends a request and reads its reply, unless the breaker is open. A write that too few replicas have is
    /// an error, see [`Error::NotReplicated`].
    pub(crate) async fn call<T>(
        &self,
        request: &Request<'_>,
        read_reply: impl FnOnce(Value) -> Result<T, Error>,
    ) -> Result<T, StorageError> {
        let reply = self.breaker.guard(|| self.connection.call(request)).await?;
        let is_replicated = reply.check_replicas(request.key);
        let outcome = read_reply(reply.value)?;
        is_replicated?;
        Ok(outcome)
    }

    /// See [`RedisBackend::check_health`](crate::RedisBackend::check_health).
    pub(crate) async fn check_health(&self) -> Result<(), StorageError> {
        /// Enough owners to hit the slot of a shard that serves no other slot.
        const OWNERS: u32 = 200_000;
        let keyspace = self.keyspace()?;
        // With a hash tag in the prefix, one server has all keys.
        let owners = if keyspace.prefix_is_hash_tag() { 1 } else { OWNERS };
        let keys = (0..owners).map(|owner| keyspace.task_key(&owner.to_string(), "health-check"));
        for task_key in self.connection.one_key_of_each_shard(keys) {
            self.check(&redis::cmd("PING"), &task_key).await?;
            // Hosted servers deny MODULE LIST. A command of the module works everywhere.
            if let Some(reply) = self.check(&commands::get(&task_key), &task_key).await? {
                replies::record(reply.value)?;
            }
            if self.connection.waits_for_replicas()
                && self.check(&commands::probe_wait(), &task_key).await?.is_none()
            {
                let expected = "wait_for_replicas: expected a user with permission for WAIT, got one without";
                return Err(Error::Settings(expected.to_owned()).into());
            }
        }
        Ok(())
    }

    /// The reply of the server that has a key; none if the user lacks the permission. The server does answer
    /// then, and the user may have the permissions for other calls.
    async fn check(&self, command: &Cmd, task_key: &str) -> Result<Option<Reply>, StorageError> {
        let request = Request { command, kind: CallKind::PrimaryRead, key: task_key, routed_by: task_key };
        match self.connection.call(&request).await {
            Ok(reply) => Ok(Some(reply)),
            Err(error) if matches!(Error::of(&error), Some(Error::NoPermission { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The connection knows the password.
        f.debug_struct("Session")
            .field("keyspace", &self.keyspace)
            .field("hash_tags", &self.hash_tags)
            .finish_non_exhaustive()
    }
}
