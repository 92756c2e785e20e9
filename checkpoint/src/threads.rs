//! What all savers share: the records of threads. A thread is an owner, a checkpoint is a task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::BoxStream;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend as _;
#[cfg(feature = "adk")]
use pmcptask_client::Applied;
use pmcptask_client::redis::{Value, cmd};
use pmcptask_client::{
    Access, Lease, ListedEntry, ListedTask, Order, RedisBackend, TaskPosition, WriteTerms,
};

use crate::compression::{Compression, RecordError, check_length, decode, encode};
use crate::error::Error;
use crate::ids::escaped;

/// How many entries are listed, or removed, by one call. The server stands still for less than a millisecond each.
const PAGE: usize = 500;
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
    connections: Arc<[Connection]>,
    policy: Policy,
    /// The lease that must be held for a save.
    lease: Option<WriteTerms>,
}

/// One connection to each server.
#[derive(Debug)]
struct Connection {
    backend: RedisBackend,
    in_flight: AtomicUsize,
}

/// A connection during a call.
struct Turn<'c>(&'c Connection);

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
    pub(crate) fn new(backends: Vec<RedisBackend>, policy: Policy) -> Self {
        let with_none = |backend| Connection { backend, in_flight: AtomicUsize::new(0) };
        Self { connections: backends.into_iter().map(with_none).collect(), policy, lease: None }
    }

    /// The same, with saves that the server refuses once the lease has ended.
    pub(crate) fn while_held(&self, lease: &Lease) -> Self {
        Self { lease: Some(WriteTerms::new().while_held(lease)), ..self.clone() }
    }

    /// Acquires the lease of a thread.
    pub(crate) async fn lease(&self, thread: &str, duration: Duration) -> Result<Option<Lease>, Error> {
        Ok(Lease::acquire(self.of_leases()?, thread, duration).await?)
    }

    pub(crate) async fn check_health(&self) -> Result<(), Error> {
        let all = self.connections.iter().map(|connection| connection.backend.check_health());
        try_join_all(all).await.map(drop).map_err(Error::from)
    }

    /// The connection with the fewest calls in flight, so that a short call does not wait behind a long one.
    fn turn(&self) -> Result<Turn<'_>, Error> {
        let calls = |connection: &&Connection| connection.in_flight.load(Ordering::Relaxed);
        let connection = self.connections.iter().min_by_key(calls).ok_or_else(no_connection)?;
        connection.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(Turn(connection))
    }

    /// The connection of leases: of several, the last one, which large records take last.
    fn of_leases(&self) -> Result<&RedisBackend, Error> {
        self.connections.last().map(|connection| &connection.backend).ok_or_else(no_connection)
    }

    /// How a record is written that expires then.
    fn terms(&self, expiry: Option<SystemTime>) -> WriteTerms {
        let terms = self.lease.clone().unwrap_or_default().newest();
        match expiry {
            Some(time) => terms.expires_at(time),
            None => terms,
        }
    }

    fn expiry(&self) -> Option<SystemTime> {
        // A time beyond the clock is never.
        self.policy.ttl.and_then(|ttl| SystemTime::now().checked_add(ttl))
    }

    /// Stores a record as the thread's newest, or over the one with this id, and makes it found by `name`.
    /// One round trip; two in a cluster.
    #[cfg(feature = "adk")]
    pub(crate) async fn save(
        &self,
        thread: &str,
        task_id: &str,
        name: &str,
        json: Vec<u8>,
    ) -> Result<(), Error> {
        let data = self.encoded(json)?;
        let key = composite(thread, task_id);
        let Turn(Connection { backend, .. }) = &self.turn()?;
        let pointer = pointer_key(backend, name)?;
        let mut point = cmd("SET");
        // The reply is what it led to until now.
        point.arg(&pointer).arg(&key).arg("GET");
        let expiry = self.expiry();
        let terms = self.terms(expiry);
        if let Some(at_ms) = expiry.map(to_ms) {
            point.arg("PXAT").arg(at_ms);
        }
        let write = backend.put_with(&key, &data, &terms);
        let point = backend.command(&point, &pointer, Access::Write);
        // A pointer without a record would be left over if this process dies in between. One connection keeps the
        // order. The nodes of a cluster have a connection each.
        let (written, pointed) = if backend.is_cluster() || self.lease.is_some() {
            let written = write.await;
            if was_applied(&written) != Applied::Yes {
                return written.map(drop).map_err(Error::from);
            }
            (written, point.await)
        } else {
            futures_util::join!(write, point)
        };
        let is_refused = was_applied(&written) == Applied::No;
        if let Err(error) = written {
            // If nothing was saved, the pointer leads where it led before. If this fails, the pointer may lead nowhere.
            match pointed {
                Ok(Value::BulkString(before)) if is_refused && before != key.as_bytes() => {
                    drop(unpoint(backend, name, &key, Some(&before)).await);
                }
                Ok(Value::Nil) if is_refused => drop(unpoint(backend, name, &key, None).await),
                _ => {}
            }
            return Err(error.into());
        }
        pointed?;
        Ok(())
    }

    /// Stores a record as the thread's newest, or over the one with this id, and returns its version. One round trip.
    pub(crate) async fn put(&self, thread: &str, task_id: &str, json: Vec<u8>) -> Result<u64, Error> {
        let data = self.encoded(json)?;
        let turn = self.turn()?;
        Ok(turn.0.backend.put_with(&composite(thread, task_id), &data, &self.terms(self.expiry())).await?)
    }

    /// The same if there is no record with this id; false if there is one.
    pub(crate) async fn create(&self, thread: &str, task_id: &str, json: Vec<u8>) -> Result<bool, Error> {
        let data = self.encoded(json)?;
        let turn = self.turn()?;
        Ok(turn.0.backend.create_with(&composite(thread, task_id), &data, &self.terms(self.expiry())).await?)
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
        let turn = self.turn()?;
        let key = composite(thread, task_id);
        match turn.0.backend.put_if_version_with(&key, &data, version, &self.terms(self.expiry())).await {
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
        let turn = self.turn()?;
        let terms = self.terms(self.expiry()).only_task();
        Ok(turn.0.backend.create_with(&composite(thread, task_id), &data, &terms).await?)
    }

    /// The thread's newest record. One round trip, and another one if reads refresh the TTL.
    pub(crate) async fn newest(&self, thread: &str) -> Result<Option<Stored>, Error> {
        let turn = self.turn()?;
        let newest = turn.0.backend.list_page(thread, None, 1, Order::NewestFirst).await?;
        newest.into_iter().next().map(|task| self.stored(thread, task)).transpose()
    }

    /// The record with this id.
    pub(crate) async fn get(&self, thread: &str, task_id: &str) -> Result<Option<Stored>, Error> {
        let turn = self.turn()?;
        let record = match turn.0.backend.get(&composite(thread, task_id)).await {
            Err(StorageError::NotFound { .. }) => return Ok(None),
            record => record?,
        };
        let task_id = task_id.to_owned();
        let json = self.decoded(thread, &task_id, record.data)?;
        Ok(Some(Stored { task_id, version: record.version, json, position: None }))
    }

    /// The composite key that was saved with this name. One round trip.
    #[cfg(feature = "adk")]
    pub(crate) async fn find(&self, name: &str) -> Result<Option<String>, Error> {
        let turn = self.turn()?;
        let backend = &turn.0.backend;
        pointed(backend, &pointer_key(backend, name)?).await
    }

    /// All records of a thread, oldest first. A record that cannot be read is an error in its place.
    #[cfg(feature = "adk")]
    pub(crate) async fn list(&self, thread: &str) -> Result<Vec<Result<Stored, Error>>, Error> {
        let turn = self.turn()?;
        let (mut all, mut after): (Vec<_>, Option<TaskPosition>) = (Vec::new(), None);
        loop {
            let page =
                turn.0.backend.list_page(thread, after.as_ref(), PAGE_OF_RECORDS, Order::OldestFirst).await?;
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
        let turn = self.turn()?;
        let page = turn.0.backend.list_page(thread, before, count, Order::NewestFirst).await?;
        Ok(page.into_iter().map(|task| self.stored(thread, task)).collect())
    }

    /// The records that are saved to a thread from now on, in order. A record that cannot be read is an error in its place.
    pub(crate) async fn changes(
        &self,
        thread: &str,
    ) -> Result<BoxStream<'static, Result<Stored, Error>>, Error> {
        let backend = self.of_leases()?;
        let newest = backend.list_entries(thread, None, 1, Order::NewestFirst).await?;
        let last = newest.first().map(ListedEntry::position);
        let saved = backend.tail(thread, last.as_ref()).await?;
        let (threads, thread) = (self.clone(), thread.to_owned());
        Ok(saved.map(move |task| threads.stored(&thread, task?)).boxed())
    }

    /// Keeps a thread's newest `keep` records, which have no names, and returns how many it removed.
    pub(crate) async fn trim(&self, thread: &str, keep: usize) -> Result<usize, Error> {
        Ok(self.turn()?.0.backend.trim(thread, keep).await?)
    }

    /// All entries of a thread, oldest first, without their records.
    pub(crate) async fn entries(&self, thread: &str) -> Result<Vec<ListedEntry>, Error> {
        let (mut all, mut after): (Vec<_>, Option<TaskPosition>) = (Vec::new(), None);
        loop {
            let page =
                self.turn()?.0.backend.list_entries(thread, after.as_ref(), PAGE, Order::OldestFirst).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(ListedEntry::position);
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Removes records and what makes them found, `PAGE` at a time. `named`: task id, and name if it has one, of each. Returns how many
    /// records there were.
    pub(crate) async fn remove(
        &self,
        thread: &str,
        named: &[(String, Option<String>)],
    ) -> Result<usize, Error> {
        let Turn(Connection { backend, .. }) = &self.turn()?;
        let mut removed = 0_usize;
        for page in named.chunks(PAGE) {
            // First, so that nothing is left that no list shows.
            let unpointed = page.iter().map(|(task_id, name)| async move {
                match name {
                    Some(name) => unpoint(backend, name, &composite(thread, task_id), None).await,
                    None => Ok(()),
                }
            });
            try_join_all(unpointed).await?;
            let deleted = page
                .iter()
                .map(|(task_id, _)| async move { backend.delete(&composite(thread, task_id)).await });
            let deleted = try_join_all(deleted).await?;
            removed = removed.saturating_add(deleted.into_iter().filter(|was_there| *was_there).count());
        }
        Ok(removed)
    }

    /// Gives records their whole TTL again, if reads do that. `named`: see [`Self::remove`]. One round trip.
    pub(crate) async fn refresh(
        &self,
        thread: &str,
        named: &[(String, Option<String>)],
    ) -> Result<(), Error> {
        let (true, Some(expiry)) = (self.policy.refresh_on_read, self.expiry()) else { return Ok(()) };
        let Turn(Connection { backend, .. }) = &self.turn()?;
        let at_ms = to_ms(expiry);
        for page in named.chunks(PAGE) {
            let refreshed = page.iter().map(|(task_id, name)| async move {
                let key = composite(thread, task_id);
                let pointer = async {
                    let Some(name) = name else { return Ok::<_, Error>(()) };
                    let pointer = pointer_key(backend, name)?;
                    let mut expire = cmd("PEXPIREAT");
                    expire.arg(&pointer).arg(at_ms);
                    backend.command(&expire, &pointer, Access::Write).await?;
                    Ok(())
                };
                let (record, pointer) = futures_util::join!(backend.expire(&key, Some(expiry)), pointer);
                record?;
                pointer
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
    fn encoded(&self, json: Vec<u8>) -> Result<Vec<u8>, Error> {
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

fn no_connection() -> Error {
    Error::Settings("connections: expected 1 or more, got 0".to_owned())
}

fn composite(thread: &str, task_id: &str) -> String {
    [thread, ":", task_id].concat()
}

/// The key of what makes a record found by its name. No prefix of tasks or indexes can match the key, because names have
/// no colon in it.
fn pointer_key(backend: &RedisBackend, name: &str) -> Result<String, Error> {
    Ok([backend.prefix()?, ":by-id:", &escaped(name)].concat())
}

/// Whether a write was made. It was if only too few replicas have it.
#[cfg(feature = "adk")]
fn was_applied<T>(written: &Result<T, StorageError>) -> Applied {
    match written {
        Ok(_) => Applied::Yes,
        Err(error) => {
            pmcptask_client::Error::of(error).map_or(Applied::No, pmcptask_client::Error::was_applied)
        }
    }
}

/// Removes what makes a record found, or makes it lead where it led before, unless it leads to another record by now.
async fn unpoint(backend: &RedisBackend, name: &str, key: &str, before: Option<&[u8]>) -> Result<(), Error> {
    let pointer = pointer_key(backend, name)?;
    if pointed(backend, &pointer).await?.as_deref() != Some(key) {
        return Ok(());
    }
    let change = match before {
        Some(before) => cmd("SET").arg(&pointer).arg(before).arg("KEEPTTL").to_owned(),
        None => cmd("DEL").arg(&pointer).to_owned(),
    };
    backend.command(&change, &pointer, Access::Write).await?;
    Ok(())
}

async fn pointed(backend: &RedisBackend, pointer: &str) -> Result<Option<String>, Error> {
    let mut get = cmd("GET");
    get.arg(pointer);
    match backend.command(&get, pointer, Access::Read).await? {
        // What is no text was written by somebody else, and leads to no record.
        Value::BulkString(key) => Ok(String::from_utf8(key).ok()),
        _ => Ok(None),
    }
}

/// Rounded up, as the client does.
fn to_ms(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}
