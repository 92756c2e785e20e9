//! What all savers share: the records of threads. A thread is an owner, a checkpoint is a task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::BoxStream;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend as _;
use pmcptask_client::{Lease, ListedEntry, ListedTask, Order, RedisBackend, TaskPosition, WriteTerms};

use crate::compression::{Compression, RecordError, check_length, decode, encode};
use crate::error::Error;

/// How many entries are listed, or removed, by one round trip. The server stands still for less than a millisecond each.
pub(crate) const PAGE: usize = 500;
/// How many records are listed by one call, because each may be long.
#[cfg(feature = "adk")]
const PAGE_OF_RECORDS: usize = 100;

/// What a saver does with each record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) ttl: Option<Duration>,
    pub(crate) refresh_on_read: bool,
    pub(crate) compression: Compression,
    /// The longest JSON that is read, in bytes.
    pub(crate) limit: u64,
}

/// Clones share the connections.
#[derive(Debug, Clone)]
pub(crate) struct Threads {
    connections: Arc<Connections>,
    policy: Policy,
    /// The lease that must be held for a save.
    lease: Option<WriteTerms>,
}

#[derive(Debug)]
struct Connections {
    first: Connection,
    others: Vec<Connection>,
}

/// One connection to each server.
#[derive(Debug)]
struct Connection {
    backend: RedisBackend,
    in_flight: AtomicUsize,
}

impl From<RedisBackend> for Connection {
    fn from(backend: RedisBackend) -> Self {
        Self { backend, in_flight: AtomicUsize::new(0) }
    }
}

/// A connection during a call.
pub(crate) struct Turn<'c>(&'c Connection);

impl Turn<'_> {
    pub(crate) fn backend(&self) -> &RedisBackend {
        &self.0.backend
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What came of a write over a version.
pub(crate) enum Written {
    Yes {
        version: u64,
    },
    /// The record is at another version.
    Conflict {
        actual: u64,
    },
    /// There is no record.
    Missing,
}

/// A stored checkpoint.
pub(crate) struct Stored {
    pub(crate) task_id: String,
    pub(crate) version: u64,
    pub(crate) json: Vec<u8>,
    /// None if the record was asked for by its id.
    pub(crate) position: Option<TaskPosition>,
}

impl Threads {
    pub(crate) fn new(first: RedisBackend, others: Vec<RedisBackend>, policy: Policy) -> Self {
        let others = others.into_iter().map(Connection::from).collect();
        let connections = Arc::new(Connections { first: first.into(), others });
        Self { connections, policy, lease: None }
    }

    /// The same, with saves that the server refuses once the lease has ended.
    pub(crate) fn while_held(&self, lease: &Lease) -> Self {
        Self { lease: Some(WriteTerms::new().while_held(lease)), ..self.clone() }
    }

    /// Acquires the lease of a thread.
    pub(crate) async fn lease(&self, thread: &str, duration: Duration) -> Result<Option<Lease>, Error> {
        Ok(Lease::acquire(self.of_leases(), thread, duration).await?)
    }

    pub(crate) async fn check_health(&self) -> Result<(), Error> {
        let Connections { first, others } = &*self.connections;
        let all = others.iter().chain([first]).map(|connection| connection.backend.check_health());
        try_join_all(all).await.map(drop).map_err(Error::from)
    }

    /// The connection with the fewest calls in flight, so that a short call does not wait behind a long one.
    pub(crate) fn turn(&self) -> Turn<'_> {
        let calls = |connection: &&Connection| connection.in_flight.load(Ordering::Relaxed);
        let Connections { first, others } = &*self.connections;
        let fewest = others.iter().min_by_key(calls).filter(|other| calls(other) < calls(&first));
        let connection = fewest.unwrap_or(first);
        connection.in_flight.fetch_add(1, Ordering::Relaxed);
        Turn(connection)
    }

    /// The connection of leases: of several, the last one, which large records take last.
    fn of_leases(&self) -> &RedisBackend {
        let Connections { first, others } = &*self.connections;
        &others.last().unwrap_or(first).backend
    }

    /// When what was read expires, if reads change that.
    pub(crate) fn expiry_after_read(&self) -> Option<SystemTime> {
        self.expiry().filter(|_| self.policy.refresh_on_read)
    }

    /// How a record is written that expires then.
    pub(crate) fn terms(&self, expiry: Option<SystemTime>) -> WriteTerms {
        expiring(self.lease.clone().unwrap_or_default().newest(), expiry)
    }

    pub(crate) fn expiry(&self) -> Option<SystemTime> {
        // A time beyond the clock is never.
        self.policy.ttl.and_then(|ttl| SystemTime::now().checked_add(ttl))
    }

    /// Stores a record as the thread's newest, or over the one with this id, and returns its version. One round trip. Records
    /// on one connection are stored in the order of the calls.
    pub(crate) async fn put(
        &self,
        turn: &Turn<'_>,
        thread: &str,
        task_id: &str,
        json: Vec<u8>,
    ) -> Result<u64, Error> {
        let data = self.encoded(json)?;
        let terms = self.terms(self.expiry());
        Ok(turn.backend().put_with(&composite(thread, task_id), &data, &terms).await?)
    }

    /// The same if there is no record with this id; false if there is one.
    pub(crate) async fn create(&self, thread: &str, task_id: &str, json: Vec<u8>) -> Result<bool, Error> {
        let data = self.encoded(json)?;
        let turn = self.turn();
        Ok(turn.backend().create_with(&composite(thread, task_id), &data, &self.terms(self.expiry())).await?)
    }

    /// Stores a record over one at this version. One round trip.
    pub(crate) async fn replace(
        &self,
        thread: &str,
        task_id: &str,
        json: Vec<u8>,
        version: u64,
    ) -> Result<Written, Error> {
        let data = self.encoded(json)?;
        let turn = self.turn();
        let key = composite(thread, task_id);
        match turn.backend().put_if_version_with(&key, &data, version, &self.terms(self.expiry())).await {
            Ok(version) => Ok(Written::Yes { version }),
            Err(StorageError::VersionConflict { actual: 0, .. }) => Ok(Written::Missing),
            Err(StorageError::VersionConflict { actual, .. }) => Ok(Written::Conflict { actual }),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores the only record of a thread; false if the thread has one. One round trip.
    #[cfg(feature = "graph-flow")]
    pub(crate) async fn create_only(&self, thread: &str, task_id: &str, json: &[u8]) -> Result<bool, Error> {
        let data = self.encoded(json.to_vec())?;
        let turn = self.turn();
        let terms = self.terms(self.expiry()).only_task();
        Ok(turn.backend().create_with(&composite(thread, task_id), &data, &terms).await?)
    }

    /// The thread's newest record. One round trip, and another one if reads refresh the TTL.
    pub(crate) async fn newest(&self, thread: &str) -> Result<Option<Stored>, Error> {
        let turn = self.turn();
        let newest = turn.backend().list_page(thread, None, 1, Order::NewestFirst).await?;
        newest.into_iter().next().map(|task| self.stored(thread, task)).transpose()
    }

    /// The record with this id.
    pub(crate) async fn get(&self, thread: &str, task_id: &str) -> Result<Option<Stored>, Error> {
        let turn = self.turn();
        let record = match turn.backend().get(&composite(thread, task_id)).await {
            Err(StorageError::NotFound { .. }) => return Ok(None),
            record => record?,
        };
        let task_id = task_id.to_owned();
        let json = self.decoded(thread, &task_id, record.data)?;
        Ok(Some(Stored { task_id, version: record.version, json, position: None }))
    }

    /// The version of the record with this id; 0 if there is none.
    pub(crate) async fn version(&self, thread: &str, task_id: &str) -> Result<u64, Error> {
        let turn = self.turn();
        match turn.backend().get(&composite(thread, task_id)).await {
            Err(StorageError::NotFound { .. }) => Ok(0),
            record => Ok(record?.version),
        }
    }

    /// All records of a thread, oldest first. A record that cannot be read is an error in its place.
    #[cfg(feature = "adk")]
    pub(crate) async fn list(&self, thread: &str) -> Result<Vec<Result<Stored, Error>>, Error> {
        let turn = self.turn();
        let (mut all, mut after): (Vec<_>, Option<TaskPosition>) = (Vec::new(), None);
        loop {
            let page =
                turn.backend().list_page(thread, after.as_ref(), PAGE_OF_RECORDS, Order::OldestFirst).await?;
            let is_last = page.len() < PAGE_OF_RECORDS;
            after = page.last().map(ListedTask::position);
            all.extend(page.into_iter().map(|task| self.stored(thread, task)));
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Up to `count` of a thread's records, newest first. One round trip. A record that cannot be read is an error in its
    /// place.
    pub(crate) async fn newest_of(
        &self,
        thread: &str,
        count: usize,
        before: Option<&TaskPosition>,
    ) -> Result<Vec<Result<Stored, Error>>, Error> {
        let turn = self.turn();
        let page = turn.backend().list_page(thread, before, count, Order::NewestFirst).await?;
        Ok(page.into_iter().map(|task| self.stored(thread, task)).collect())
    }

    /// The records that are saved to a thread from now on, in order. A record that cannot be read is an error in its place.
    pub(crate) async fn changes(
        &self,
        thread: &str,
    ) -> Result<BoxStream<'static, Result<Stored, Error>>, Error> {
        let backend = self.of_leases();
        let newest = backend.list_entries(thread, None, 1, Order::NewestFirst).await?;
        let last = newest.first().map(ListedEntry::position);
        let saved = backend.tail(thread, last.as_ref()).await?;
        let (threads, thread) = (self.clone(), thread.to_owned());
        Ok(saved.map(move |task| threads.stored(&thread, task?)).boxed())
    }

    /// Keeps a thread's newest `keep` records, which have no pointers, and returns how many it removed.
    pub(crate) async fn trim(&self, thread: &str, keep: usize) -> Result<usize, Error> {
        Ok(self.turn().backend().trim(thread, keep).await?)
    }

    /// All entries of a thread, oldest first, without their records.
    pub(crate) async fn entries(&self, thread: &str) -> Result<Vec<ListedEntry>, Error> {
        let (mut all, mut after): (Vec<_>, Option<TaskPosition>) = (Vec::new(), None);
        loop {
            let page =
                self.turn().backend().list_entries(thread, after.as_ref(), PAGE, Order::OldestFirst).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(ListedEntry::position);
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Removes the record with this id; false if there is none. One round trip.
    pub(crate) async fn remove(&self, thread: &str, task_id: &str) -> Result<bool, Error> {
        Ok(self.turn().backend().delete(&composite(thread, task_id)).await?)
    }

    /// The same for many, `PAGE` per round trip. Returns how many there were.
    #[cfg(feature = "adk")]
    pub(crate) async fn remove_all(&self, thread: &str, task_ids: &[String]) -> Result<usize, Error> {
        let turn = self.turn();
        let backend = turn.backend();
        let mut removed = 0_usize;
        for page in task_ids.chunks(PAGE) {
            let deleted =
                page.iter().map(|task_id| async move { backend.delete(&composite(thread, task_id)).await });
            let were_there = try_join_all(deleted).await?;
            removed = removed.saturating_add(were_there.into_iter().filter(|was_there| *was_there).count());
        }
        Ok(removed)
    }

    /// Gives records their whole TTL again, if reads do that, `PAGE` per round trip.
    pub(crate) async fn refresh(&self, thread: &str, task_ids: &[String]) -> Result<(), Error> {
        let Some(expiry) = self.expiry_after_read() else { return Ok(()) };
        let turn = self.turn();
        let backend = turn.backend();
        for page in task_ids.chunks(PAGE) {
            let refreshed = page.iter().map(|task_id| async move {
                backend.expire(&composite(thread, task_id), Some(expiry)).await
            });
            try_join_all(refreshed).await?;
        }
        Ok(())
    }

    fn stored(&self, thread: &str, task: ListedTask) -> Result<Stored, Error> {
        let position = Some(task.position());
        let json = self.decoded(thread, &task.task_id, task.record.data)?;
        Ok(Stored { task_id: task.task_id, version: task.record.version, json, position })
    }

    /// The stored form of a record, unless it is so long that no read would take it.
    pub(crate) fn encoded(&self, json: Vec<u8>) -> Result<Vec<u8>, Error> {
        check_length(json.len(), self.policy.limit).map_err(Error::TooLong)?;
        Ok(encode(json, self.policy.compression))
    }

    fn decoded(&self, thread: &str, task_id: &str, stored: Vec<u8>) -> Result<Vec<u8>, Error> {
        decode(stored, self.policy.limit).map_err(|cause| unreadable(thread, task_id, cause))
    }
}

/// The error for a stored record that is no checkpoint.
pub(crate) fn unreadable(thread: &str, task_id: &str, cause: RecordError) -> Error {
    Error::Record { thread: thread.to_owned(), id: task_id.to_owned(), cause }
}

pub(crate) fn composite(thread: &str, task_id: &str) -> String {
    [thread, ":", task_id].concat()
}

/// The terms of a write, with when it expires.
pub(crate) fn expiring(terms: WriteTerms, expiry: Option<SystemTime>) -> WriteTerms {
    match expiry {
        Some(time) => terms.expires_at(time),
        None => terms,
    }
}
