//! [`Lease`]: a lock that ends by itself.

use std::fmt;
use std::time::Duration;

use pmcp_tasks::StorageError;
use redis::{Cmd, Value, cmd};
use tokio::time::Instant;

use crate::backend::RedisBackend;
use crate::commands::{self, RecordTimes};
use crate::connection::Request;
use crate::error::{Applied, CallKind, Error, says_owner_is_full};
use crate::observe;
use crate::replies;
use crate::session::{Session, TaskKeys};

/// A lease that is shorter has ended before its holder knows of it.
const SHORTEST: Duration = Duration::from_millis(10);

/// The record of a lease. Who reads it learns from the record's being there.
const RECORD: &[u8] = b"lease";

/// A lock with a name, which ends by itself at the server if its holder does not renew it.
///
/// ```
/// use std::time::Duration;
///
/// use pmcptask_client::{Error, Lease, RedisBackend};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let backend = RedisBackend::new(&url).await?;
/// let duration = Duration::from_secs(15);
/// let mut lease = Lease::acquire(&backend, "nightly-report", duration).await?.expect("it is free");
/// assert!(Lease::acquire(&backend, "nightly-report", duration).await?.is_none());
///
/// lease.renew().await?; // every five seconds, say
/// assert!(lease.is_valid());
/// let token = lease.token();
/// assert!(lease.release().await?);
///
/// let mut lease = Lease::acquire(&backend, "nightly-report", duration).await?.expect("it is free again");
/// assert!(lease.token() > token);
/// # redis::cmd("FLUSHALL").exec(&mut server.connection())?;
/// // After a loss, for example because the holder stood still for too long:
/// let error = lease.renew().await.unwrap_err();
/// assert!(matches!(Error::of(&error), Some(Error::LeaseLost { .. })));
/// # Ok(())
/// # }
/// ```
///
/// # What holds
///
/// - The lease ends `duration` after the server has carried out the last renewal, by the server's clock. The
///   time of day at the client does not matter.
/// - The holder counts from before the request was sent, by its own monotonic clock, and takes off a
///   thousandth and 1 ms. So [`is_valid`](Self::is_valid) turns false before another can get the lease, also
///   if a reply is late or never comes.
/// - A renewal or a release that comes late never touches a later holder's lease, because each acquisition
///   has a key of its own.
/// - [`token`](Self::token) is greater than the token of each earlier lease with this name. Send it with each
///   write to a system that refuses smaller tokens: a holder can be stopped between its look at `is_valid` and
///   its write.
///
/// # What does not
///
/// Two can believe that they hold the lease for up to `duration`, if the server loses the record of the first:
/// after `FLUSHALL`, `DEL` or an eviction, after a restart without persistence, and after a failover to a replica
/// that did not have the record yet (see
/// [`wait_for_replicas`](crate::RedisBackendBuilder::wait_for_replicas)). The same if the server's clock is set
/// forward, and if the holder's machine sleeps, because its monotonic clock stands still then. The later token
/// is still greater, unless the server's clock (after a failover, that of the new primary) is behind the earlier
/// token.
///
/// The servers' clocks must agree for two more things. After a failover to a server whose clock is ahead, the
/// lease ends that much earlier than its holder believes, because replicas get the time of the end. And the server's
/// time has no key: while a slot moves, or while a deposed primary still answers, another server than that of the lease may
/// tell the time. If its clock is behind, the token may be smaller than an earlier one. If its clock is ahead and the holder
/// dies during `acquire`, the lease ends that much later.
///
/// # Keys and permissions
///
/// A lease is a record like a task's, under a prefix of its own: `pmcp:lease:tasks:<name>:<random>`, in
/// `pmcp:lease:idx:<name>`. So it shows in no list of an owner's tasks, also for an owner with the same name.
/// In a cluster, each name has a slot. A user needs
/// `+pmcptask.put +pmcptask.del +time +pexpire +hdel`.
pub struct Lease {
    session: Session,
    /// `name:random`.
    key: String,
    keys: TaskKeys,
    duration: Duration,
    valid_until: Instant,
    token: u64,
}

impl Lease {
    /// Acquires the lease with this name, if nobody holds it; None if somebody does. Any text is a name. Three
    /// round trips, or two if somebody holds the lease.
    ///
    /// # Errors
    ///
    /// Those of `put`; [`Error::Settings`] for a duration of less than 10 ms or beyond the clock;
    /// [`Error::LeaseLost`] if the lease had ended before this call knew that it has it. After an error, the lease
    /// may be taken, and held by nobody, until its duration is over.
    pub async fn acquire(
        backend: &RedisBackend,
        name: &str,
        duration: Duration,
    ) -> Result<Option<Self>, StorageError> {
        let millis = i64::try_from(duration.as_millis()).ok().filter(|_| duration >= SHORTEST);
        let (Some(millis), Some(_)) = (millis, Instant::now().checked_add(duration)) else {
            let expected =
                format!("lease duration: expected 10 ms or more, within the clock, got {duration:?}");
            return Err(Error::Settings(expected).into());
        };
        let session = backend.session().of_leases()?;
        // A version does not tell two acquisitions apart, because each record starts at 1: a late CAS or DEL VERSION
        // could hit the lease of another. A key that nobody else has cannot. That one name has one lease is the
        // quota's work.
        let key = format!("{name}:{:032x}", fastrand::u128(..));
        let keys = session.keys_of(&key)?;
        let mut lease = Self { session, key, keys, duration, valid_until: Instant::now(), token: 0 };

        // Our commands take the time of expiry and not the time left, so that effects and replies do not depend on
        // when they run. PEXPIRE takes the time left, so it is what makes the lease independent of all other clocks.
        // But PEXPIRE comes after PUT, and a client can die in between. So PUT needs an expiry too, and the server's
        // TIME makes it about right.
        let created_us = lease.server_time_us().await?;
        let ends_ms = i64::try_from(created_us / 1_000).unwrap_or(i64::MAX).saturating_add(millis);
        if !lease.create(ends_ms).await? {
            return Ok(None);
        }
        // The server counts from this PEXPIRE on, and so does the holder. The field `expires_at` would end the record
        // at the first expiry. The token is the server's time while the lease is held: holders do not overlap, so
        // their tokens do not either.
        let sent = Instant::now();
        let (extended, freed, token) =
            tokio::join!(lease.extend(), lease.forget_first_expiry(), lease.server_time_us());
        extended?;
        freed?;
        (lease.valid_until, lease.token) = (lease.end_from(sent), token?);
        // A token of after the end could be another's too.
        if lease.is_valid() { Ok(Some(lease)) } else { Err(lease.lost().into()) }
    }

    /// Holds the lease for another `duration` from now. One round trip, one `PEXPIRE`. Renew early enough to try
    /// again after a failure, for example after each third of the duration. Safe to repeat after any error.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] if the lease has ended, whether or not another has it now; then it is over for good,
    /// acquire it anew. [`Error::NotReplicated`]: the lease is renewed, but a failover can lose it. Otherwise those of
    /// `put`: the lease is valid for as long as it was before.
    pub async fn renew(&mut self) -> Result<(), StorageError> {
        let sent = Instant::now();
        let renewed = self.extend().await;
        match renewed.as_ref().map_err(Error::of) {
            Ok(()) => self.valid_until = self.end_from(sent),
            Err(Some(Error::LeaseLost { .. })) => self.valid_until = Instant::now(),
            Err(Some(error)) if error.was_applied() == Applied::Yes => self.valid_until = self.end_from(sent),
            Err(_) => {}
        }
        renewed
    }

    /// Gives the lease up, so that others need not wait for its end. False if it had ended before. One round
    /// trip. A lease that is dropped instead stays taken until its duration is over.
    ///
    /// # Errors
    ///
    /// Those of `delete`.
    pub async fn release(self) -> Result<bool, StorageError> {
        let command = commands::del(&self.keys.task, &self.keys.index);
        let read = |reply| replies::yes_or_no("PMCPTASK.DEL", reply);
        self.call("PMCPTASK.DEL", &command, CallKind::Write, read).await
    }

    /// The name that was acquired.
    #[must_use]
    pub fn name(&self) -> &str {
        self.key.rsplit_once(':').map_or("", |(name, _)| name)
    }

    /// The fencing token: greater with each acquisition of the name. It is the server's time, in µs since the
    /// epoch.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Whether nobody else can have the lease yet. Asks the local clock only.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// How long nobody else can get the lease, without a renewal. 0 once it is over.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.valid_until.saturating_duration_since(Instant::now())
    }

    /// The composite key of the record, under the prefix of leases.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The key of the record at the server.
    pub(crate) fn task_key(&self) -> &str {
        &self.keys.task
    }

    pub(crate) fn valid_until(&self) -> Instant {
        self.valid_until
    }

    /// Stores the record; false if the name has one already.
    async fn create(&self, ends_ms: i64) -> Result<bool, StorageError> {
        let times = RecordTimes::ending_at(Some(ends_ms));
        let command = commands::put_new(&self.keys.task, &self.keys.index, RECORD, times, Some(1));
        let read = |reply| replies::yes_or_no("PMCPTASK.PUT", reply);
        match self.call("PMCPTASK.PUT", &command, CallKind::Write, read).await {
            Err(error) if says_owner_is_full(&error) => Ok(false),
            created => created,
        }
    }

    /// Has the server count the duration from now on.
    async fn extend(&self) -> Result<(), StorageError> {
        let mut command = cmd("PEXPIRE");
        command.arg(&self.keys.task).arg(i64::try_from(self.duration.as_millis()).unwrap_or(i64::MAX));
        // In here, so that a lost lease is not taken for one that no replica has.
        let read = |reply| if replies::yes_or_no("PEXPIRE", reply)? { Ok(()) } else { Err(self.lost()) };
        self.call("PEXPIRE", &command, CallKind::Write, read).await
    }

    /// Until when the lease is valid by the local clock, if its duration was counted anew by a request that was sent then.
    fn end_from(&self, sent: Instant) -> Instant {
        // The server counts from the start of a millisecond, and the two clocks need not run at the same speed.
        let margin = self.duration.mul_f32(0.001).saturating_add(Duration::from_millis(1));
        let valid_for = self.duration.saturating_sub(margin);
        sent.checked_add(valid_for).unwrap_or(sent)
    }

    async fn forget_first_expiry(&self) -> Result<(), StorageError> {
        let mut command = cmd("HDEL");
        command.arg(&self.keys.task).arg("expires_at");
        let read = |reply| replies::yes_or_no("HDEL", reply);
        self.call("HDEL", &command, CallKind::Write, read).await.map(drop)
    }

    async fn server_time_us(&self) -> Result<u64, StorageError> {
        self.call("TIME", &cmd("TIME"), CallKind::PrimaryRead, replies::time_us).await
    }

    async fn call<T>(
        &self,
        name: &'static str,
        command: &Cmd,
        kind: CallKind,
        read: impl FnOnce(Value) -> Result<T, Error>,
    ) -> Result<T, StorageError> {
        observe::call(name, &self.key, || async move {
            let request = Request { command, kind, key: &self.key, routed_by: &self.keys.task };
            self.session.call(&request, read).await
        })
        .await
    }

    fn lost(&self) -> Error {
        Error::LeaseLost { name: self.name().to_owned() }
    }
}

/// How long the lease with this composite key lives at least; None if there is no such lease. 0: the server does not say,
/// because somebody removed the expiry.
pub(crate) async fn left(backend: &RedisBackend, key: &str) -> Result<Option<Duration>, StorageError> {
    observe::call("PTTL", key, || async move {
        let session = backend.session().of_leases()?;
        let keys = session.keys_of(key)?;
        let mut command = cmd("PTTL");
        command.arg(&keys.task);
        let request = Request { command: &command, kind: CallKind::PrimaryRead, key, routed_by: &keys.task };
        session.call(&request, replies::time_left).await
    })
    .await
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.key)
            .field("token", &self.token)
            .field("duration", &self.duration)
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}
