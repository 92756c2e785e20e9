//! [`WriteTerms`]: what a write says beside its record. For records whose format is not that of `pmcp-tasks`.

use std::time::SystemTime;

use pmcp_tasks::StorageError;
use redis::Cmd;

use crate::backend::RedisBackend;
use crate::beyond_trait::to_ms;
use crate::commands::{self, RecordTimes};
use crate::connection::Request;
use crate::error::{CallKind, Error, says_owner_is_full};
use crate::lease::Lease;
use crate::observe;
use crate::replies;

/// When a record expires, where its task stands among the owner's, and which lease must be held.
///
/// `put` and its kin read the expiry from the record, which is the JSON of `pmcp-tasks`. Calls with these terms
/// read nothing from the record.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use pmcptask_client::{Lease, Order, RedisBackend, WriteTerms};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let backend = RedisBackend::new(&url).await?;
/// let lease = Lease::acquire(&backend, "thread-1", Duration::from_secs(15)).await?.expect("it is free");
///
/// let in_an_hour = SystemTime::now() + Duration::from_secs(3_600);
/// let terms = WriteTerms::new().expires_at(in_an_hour).newest();
/// backend.put_with("thread-1:b", b"first", &terms.clone().while_held(&lease)).await?;
/// backend.put_with("thread-1:a", b"second", &terms).await?;
///
/// let newest = backend.list_page("thread-1", None, 1, Order::NewestFirst).await?;
/// assert_eq!(newest[0].record.data, b"second");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "terms do nothing before a call"]
pub struct WriteTerms {
    expires_at: Option<SystemTime>,
    is_newest: bool,
    held: Option<String>,
    is_only_task: bool,
}

impl WriteTerms {
    /// A task that never expires, and is created now by the server's clock.
    pub fn new() -> Self {
        Self::default()
    }

    /// The task expires at this time, exact to the millisecond, rounded up.
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.expires_at = Some(time);
        self
    }

    /// A new task is created later than each other task of the owner, at the server: now, or a millisecond after
    /// the newest task if that is later (`CREATED NEWEST`). So lists have the order in which the server carried out
    /// the writes, also after its clock was set back. A task that exists keeps its place.
    pub fn newest(mut self) -> Self {
        self.is_newest = true;
        self
    }

    /// A new task is the only one of its owner (`MAXTASKS 1`). If the owner has another task,
    /// [`create_with`](RedisBackend::create_with) returns false, and [`put_with`](RedisBackend::put_with) fails with
    /// [`StorageError::CapacityExceeded`]. For these two calls only.
    pub fn only_task(mut self) -> Self {
        self.is_only_task = true;
        self
    }

    /// The server refuses the write with [`Error::NotHeld`] if it does not have the record of this lease any more
    /// (`HELD`). Unlike [`Lease::is_valid`], this holds at the very moment of the write. In a cluster, the lease's name
    /// must be the owner. For [`put_with`](RedisBackend::put_with) and [`create_with`](RedisBackend::create_with) only.
    pub fn while_held(mut self, lease: &Lease) -> Self {
        self.held = Some(lease.task_key().to_owned());
        self
    }

    fn times(&self) -> RecordTimes {
        let times = RecordTimes::ending_at(self.expires_at.map(to_ms));
        if self.is_newest { times.of_newest() } else { times }
    }

    /// The conditions of a `PUT`.
    fn add_conditions(&self, command: &mut Cmd) {
        if self.is_only_task {
            command.arg("MAXTASKS").arg(1);
        }
        if let Some(key) = &self.held {
            command.arg("HELD").arg(key);
        }
    }
}

/// Writes of records in any format.
impl RedisBackend {
    /// The same as `put`, on terms of the caller.
    ///
    /// # Errors
    ///
    /// Those of `put`; [`Error::NotHeld`].
    pub async fn put_with(&self, key: &str, data: &[u8], terms: &WriteTerms) -> Result<u64, StorageError> {
        observe::call("PMCPTASK.PUT", key, || async move {
            let keys = self.session().keys_of(key)?;
            let mut command = commands::put(&keys.task, &keys.index, data, terms.times());
            terms.add_conditions(&mut command);
            let request = Request { command: &command, kind: CallKind::Write, key, routed_by: &keys.task };
            self.session().call(&request, |reply| replies::version("PMCPTASK.PUT", reply)).await
        })
        .await
    }

    /// The same as [`create`](Self::create), on terms of the caller.
    ///
    /// # Errors
    ///
    /// Those of `put`; [`Error::NotHeld`].
    pub async fn create_with(
        &self,
        key: &str,
        data: &[u8],
        terms: &WriteTerms,
    ) -> Result<bool, StorageError> {
        observe::call("PMCPTASK.PUT", key, || async move {
            let keys = self.session().keys_of(key)?;
            let mut command = commands::put_new(&keys.task, &keys.index, data, terms.times(), None);
            terms.add_conditions(&mut command);
            let request = Request { command: &command, kind: CallKind::Write, key, routed_by: &keys.task };
            let created =
                self.session().call(&request, |reply| replies::yes_or_no("PMCPTASK.PUT", reply)).await;
            match created {
                Err(error) if terms.is_only_task && says_owner_is_full(&error) => Ok(false),
                created => created,
            }
        })
        .await
    }

    /// The same as `put_if_version`, on terms of the caller.
    ///
    /// # Errors
    ///
    /// Those of `put_if_version`; [`Error::Settings`] for terms with a lease or `only_task`.
    pub async fn put_if_version_with(
        &self,
        key: &str,
        data: &[u8],
        expected_version: u64,
        terms: &WriteTerms,
    ) -> Result<u64, StorageError> {
        if terms.held.is_some() || terms.is_only_task {
            let expected =
                "while_held and only_task: expected put_with or create_with, got put_if_version_with";
            return Err(Error::Settings(expected.to_owned()).into());
        }
        observe::call("PMCPTASK.CAS", key, || async move {
            let keys = self.session().keys_of(key)?;
            let command = &commands::cas(&keys.task, &keys.index, expected_version, data, terms.times());
            let request = Request { command, kind: CallKind::Write, key, routed_by: &keys.task };
            let read = |reply| replies::comparison("PMCPTASK.CAS", reply);
            self.session().call(&request, read).await?.won(key, expected_version)
        })
        .await
    }

    /// The start of all keys.
    ///
    /// # Errors
    ///
    /// [`Error::Settings`] if no key can have the prefix of [`with_prefix`](Self::with_prefix).
    pub fn prefix(&self) -> Result<&str, StorageError> {
        Ok(self.session().prefix()?)
    }

    /// The owner whose index a key is, with or without hash tags as the backend is set; None for other keys. For the command
    /// `pmcptask`.
    ///
    /// # Errors
    ///
    /// Those of [`prefix`](Self::prefix).
    #[doc(hidden)]
    pub fn owner_of_index(&self, key: &str) -> Result<Option<String>, StorageError> {
        Ok(self.session().owner_of_index(key)?)
    }
}
