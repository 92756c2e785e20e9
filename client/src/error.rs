//! What can go wrong, and what an error means for the task.

use std::fmt;
use std::time::Duration;

use pmcp_tasks::StorageError;
use redis::{ErrorKind, RedisError, make_extension_error};

/// Why a call failed. Every [`StorageError::Backend`] of this crate holds one; [`Error::of`] returns it.
///
/// The message contains the cause, in the words of the server or the operating system. Therefore
/// `std::error::Error::source` returns `None`: a printed error chain shows each cause once. The field `cause`
/// has the cause's type.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL or a setting is invalid.
    #[error("settings of the Redis backend: {0}")]
    Settings(String),
    /// No Redis server answers at the address. Nothing was sent.
    #[error(
        "no Redis server answers at {address} ({}): is it running, is the address right, and can it be reached \
         from here?",
        no_answer(cause)
    )]
    #[non_exhaustive]
    NoServer {
        /// Host and port, or the socket's path. For an announced address, also the server or Sentinel that
        /// announced it.
        address: String,
        /// What the operating system said.
        cause: RedisError,
    },
    /// Client or server does not trust the other's certificate, or one of them does not speak TLS. Nothing
    /// was sent.
    #[cfg(feature = "tls")]
    #[error(
        "no TLS connection to {address} could be made, check the certificates and their authority: {cause}"
    )]
    #[non_exhaustive]
    Tls {
        /// Host and port. For an announced address, also the server or Sentinel that announced it.
        address: String,
        /// What is wrong with the certificate or the connection.
        cause: RedisError,
    },
    /// The server requires a user name or password, or refuses the given ones. Nothing was changed.
    #[error(
        "the Redis server at {address} refuses the user name or password, check them in the URL: {cause}"
    )]
    #[non_exhaustive]
    Authentication {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply.
        cause: RedisError,
    },
    /// The server does not know the commands of the module. Nothing was changed.
    #[error(
        "the Redis server at {address} has no pmcptask module: start it with --loadmodule /path/to/libpmcptask.so, or put \
         'loadmodule /path/to/libpmcptask.so' in its redis.conf"
    )]
    #[non_exhaustive]
    ModuleNotLoaded {
        /// The server's address, or the addresses in the URL.
        address: String,
    },
    /// After a write was sent, the connection was lost, or no reply came in time. The write is not retried,
    /// because it may have been made.
    #[error("the outcome of the write to {key} is unknown: no reply came from {address} ({cause})")]
    #[non_exhaustive]
    OutcomeUnknown {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// A task's composite key, or `owner:` for calls on an owner.
        key: String,
        /// Why there is no reply.
        cause: RedisError,
    },
    /// During a read, the connection was lost, or no reply came in time. A read that lost its connection may
    /// have been sent twice.
    #[error("no reply came from {address} to the read of {key} ({cause}){}", hint_of_lost_list(key, cause))]
    #[non_exhaustive]
    NoReply {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// A task's composite key, or `owner:` for calls on an owner.
        key: String,
        /// Why there is no reply.
        cause: RedisError,
    },
    /// There was no connection in time, or a write that waits for replicas was held back too long behind
    /// other writes. A write was not sent. A read may have been sent before its connection was lost.
    #[error(
        "no connection to {address} within {} ms, nothing was changed: {}",
        waited.as_millis(),
        cause.as_ref().map_or_else(|| WAITS.to_owned(), ToString::to_string)
    )]
    #[non_exhaustive]
    NotConnected {
        /// The server's address, or the service and its Sentinels, or the nodes in a cluster's URL.
        address: String,
        /// How long the call waited.
        waited: Duration,
        /// Why the last attempt to connect failed. `None` if no attempt has failed.
        cause: Option<Box<Self>>,
    },
    /// After the record to write over was read, a connection was lost, or the key's primary became another server. The
    /// server may have another record with the same version by now, so the write was not sent.
    #[error("{key} was read before the connection to {address} was replaced: the write was not sent")]
    #[non_exhaustive]
    Outdated {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The task's composite key.
        key: String,
    },
    /// The circuit breaker is open, because the server failed to answer. Nothing was sent, and nothing will
    /// be sent until the breaker's `pause` is over.
    #[error("the circuit breaker is open because the Redis server failed to answer: the call was not sent")]
    CircuitOpen,
    /// The server's ACL does not allow this user the command or the key. Nothing was changed.
    #[error("the Redis user has no permission for this at {address}: {cause}")]
    #[non_exhaustive]
    NoPermission {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply.
        cause: RedisError,
    },
    /// The server is a replica. Nothing was changed.
    #[error("the Redis server at {address} is a read-only replica, write to its primary: {cause}")]
    #[non_exhaustive]
    ReadOnly {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply.
        cause: RedisError,
    },
    /// There is no primary: the Sentinels name none, or name a server that is not one, or no known node of
    /// the cluster has the key's slot. Nothing was sent.
    #[error("no primary was found for {address}: {cause}")]
    #[non_exhaustive]
    NoPrimary {
        /// The service and its Sentinels, the server that the Sentinels name, or the nodes in the
        /// cluster's URL.
        address: String,
        /// What is missing.
        cause: RedisError,
    },
    /// The server is not a node of a cluster, or is a node that knows of no slots. Nothing was sent.
    #[error(
        "the Redis server at {address} is not a cluster node with slots, connect to it with redis://: {}",
        cause.as_ref().map_or_else(|| "CLUSTER SLOTS is empty".to_owned(), ToString::to_string)
    )]
    #[non_exhaustive]
    NotACluster {
        /// Host and port.
        address: String,
        /// The server's reply. `None` if the list of slots was empty.
        cause: Option<RedisError>,
    },
    /// The server is a node of a cluster, and another node has the key, or the task's keys have different
    /// slots. Nothing was changed.
    #[error(
        "the Redis server at {address} is a cluster node that does not serve this key, connect with redis+cluster://: {cause}"
    )]
    #[non_exhaustive]
    OtherNode {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply.
        cause: RedisError,
    },
    /// The key's slot was still moving to another node at the end of the connect timeout. Nothing
    /// was changed.
    #[error(
        "the key's slot is moving to another node of the Redis cluster at {address}, retry later: {cause}"
    )]
    #[non_exhaustive]
    SlotMoving {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply.
        cause: RedisError,
    },
    /// No node could serve the key within the connect timeout, for example because no replica has taken over
    /// yet after a failure. Nothing was changed.
    #[error("no node of the Redis cluster at {address} serves the key right now: {cause}")]
    #[non_exhaustive]
    ClusterDown {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply.
        cause: RedisError,
    },
    /// The write was made, but too few replicas had it in time. A failover may lose the write.
    #[error(
        "the write to {key} was made, but only {acknowledged} of {expected} replicas had it in time: a \
         failover may lose it"
    )]
    #[non_exhaustive]
    NotReplicated {
        /// A task's composite key, or `owner:` for calls on an owner.
        key: String,
        /// How many replicas the write waited for.
        expected: u16,
        /// How many replicas had it in time. 0 also if the number is unknown, because `WAIT` failed or the
        /// connection was lost.
        acknowledged: i64,
    },
    /// The primary has fewer healthy replicas than its `min-replicas-to-write`, and refuses writes. Nothing
    /// was changed.
    #[error(
        "the Redis server at {address} refuses writes because too few of its replicas are healthy: {cause}"
    )]
    #[non_exhaustive]
    TooFewReplicas {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply.
        cause: RedisError,
    },
    /// The server is still loading its data from disk. Nothing was changed.
    #[error("the Redis server at {address} is loading its data, retry later: {cause}")]
    #[non_exhaustive]
    Loading {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply.
        cause: RedisError,
    },
    /// The server cannot save its data to disk, and refuses writes. Nothing was changed.
    #[error("the Redis server at {address} refuses writes because it cannot save to disk: {cause}")]
    #[non_exhaustive]
    CannotPersist {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply.
        cause: RedisError,
    },
    /// The hash at a task's key is not one that the module writes. Nothing was changed.
    #[error("a task stored at {address} is corrupt: {cause}")]
    #[non_exhaustive]
    Corrupt {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply, which names the key.
        cause: RedisError,
    },
    /// The task that has to live while the call writes does not exist or has expired, such as the record of a lease. Nothing
    /// was changed.
    #[error(
        "the Redis server at {address} makes this write only while another task lives, and that task has ended: {cause}"
    )]
    #[non_exhaustive]
    NotHeld {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply, which names the other task's key.
        cause: RedisError,
    },
    /// The module failed on the server. This is a bug in the module: please report it. If the call was a
    /// write, its outcome is unknown.
    #[error("the pmcptask module at {address} failed to carry out the call: {cause}")]
    #[non_exhaustive]
    Defect {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply.
        cause: RedisError,
    },
    /// The server refused the connection or the call for another reason. Nothing was changed.
    #[error("the Redis server at {address} refuses: {cause}")]
    #[non_exhaustive]
    Refused {
        /// The server's address, or the addresses in the URL.
        address: String,
        /// The server's reply.
        cause: RedisError,
    },
    /// The lease has ended: it was not renewed in time, or the server has lost or deleted its record. Nothing was
    /// changed.
    #[error("the lease {name:?} is lost: it was not renewed in time, or the server lost its record")]
    #[non_exhaustive]
    LeaseLost {
        /// The name of the lease.
        name: String,
    },
    /// The record cannot be stored. Nothing was sent.
    #[error("the record cannot be stored: {0}")]
    Record(#[from] pmcptask_schema::ExpiryError),
    /// The composite key names no task or no owner. Nothing was sent.
    #[error(transparent)]
    Key(#[from] pmcptask_schema::CompositeKeyError),
    /// The prefix of a list is not `owner:`. Nothing was sent.
    #[error("prefix of a list: expected owner: with the colon, got no colon at the end")]
    ListPrefix,
    /// The reply does not fit the command: what answers is not a Redis server with this module.
    #[error("expected a reply to {command}, got {found}")]
    #[non_exhaustive]
    UnexpectedReply {
        /// The command that was sent.
        command: &'static str,
        /// What kind of reply it was.
        found: &'static str,
    },
}

impl Error {
    /// The error in a [`StorageError::Backend`] of this crate; `None` for other errors.
    ///
    /// ```
    /// # use pmcp_tasks::StorageError;
    /// fn may_have_been_written(error: &StorageError) -> bool {
    ///     pmcptask_client::Error::of(error).is_some_and(pmcptask_client::Error::outcome_is_unknown)
    /// }
    /// ```
    #[must_use]
    pub fn of(error: &StorageError) -> Option<&Self> {
        let kind: &Kind = std::error::Error::source(error)?.downcast_ref()?;
        Some(&kind.0)
    }

    /// True if the server did not answer, if there is no primary, or if the cluster is down.
    #[cfg(feature = "circuit-breaker")]
    pub(crate) fn says_server_is_away(&self) -> bool {
        matches!(
            self,
            Self::NoServer { .. }
                | Self::NoPrimary { .. }
                | Self::NotConnected { .. }
                | Self::ClusterDown { .. }
                | Self::OutcomeUnknown { .. }
                | Self::NoReply { .. }
        )
    }

    /// Whether the call changed anything on the server.
    #[must_use]
    #[allow(clippy::match_same_arms, reason = "an arm with a `cfg` cannot be part of another one")]
    pub fn was_applied(&self) -> Applied {
        // Without `_`, so that a new error is not taken for one that changed nothing.
        match self {
            Self::NotReplicated { .. } => Applied::Yes,
            Self::OutcomeUnknown { .. } | Self::UnexpectedReply { .. } | Self::Defect { .. } => {
                Applied::Unknown
            }
            Self::Settings(_)
            | Self::NoServer { .. }
            | Self::Authentication { .. }
            | Self::ModuleNotLoaded { .. }
            | Self::NoReply { .. }
            | Self::NotConnected { .. }
            | Self::Outdated { .. }
            | Self::CircuitOpen
            | Self::NoPermission { .. }
            | Self::ReadOnly { .. }
            | Self::NoPrimary { .. }
            | Self::NotACluster { .. }
            | Self::OtherNode { .. }
            | Self::SlotMoving { .. }
            | Self::ClusterDown { .. }
            | Self::TooFewReplicas { .. }
            | Self::Loading { .. }
            | Self::CannotPersist { .. }
            | Self::Corrupt { .. }
            | Self::NotHeld { .. }
            | Self::Refused { .. }
            | Self::LeaseLost { .. }
            | Self::Record(_)
            | Self::Key(_)
            | Self::ListPrefix => Applied::No,
            #[cfg(feature = "tls")]
            Self::Tls { .. } => Applied::No,
        }
    }

    /// True if a write may or may not have been made. Read the task to find out.
    #[must_use]
    pub fn outcome_is_unknown(&self) -> bool {
        self.was_applied() == Applied::Unknown
    }

    /// True if the same call may succeed later, without a change to the settings of client or server.
    ///
    /// Does not say whether a retry is safe: ask [`Error::was_applied`] first.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoServer { .. }
            | Self::NotConnected { .. }
            | Self::NoPrimary { .. }
            | Self::Outdated { .. }
            | Self::CircuitOpen
            | Self::OutcomeUnknown { .. }
            | Self::NoReply { .. }
            | Self::ReadOnly { .. }
            | Self::SlotMoving { .. }
            | Self::ClusterDown { .. }
            | Self::TooFewReplicas { .. }
            | Self::NotReplicated { .. }
            | Self::Loading { .. } => true,
            Self::Refused { cause, .. } => is_transient_reply(cause),
            _ => false,
        }
    }
}

/// Whether a call that failed changed anything on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The write was made.
    Yes,
    /// Nothing was changed.
    No,
    /// A write may or may not have been made.
    Unknown,
}

impl Error {
    /// True for a failure to connect that says nothing about the next attempt.
    pub(crate) fn next_attempt_may_succeed(&self) -> bool {
        match self {
            Self::Authentication { .. } | Self::Settings(_) | Self::NoPermission { .. } => false,
            Self::Refused { cause, .. } => cause.code() != Some("DENIED"),
            #[cfg(feature = "tls")]
            Self::Tls { cause, .. } => !is_of_certificate(cause),
            _ => true,
        }
    }

    /// True for a failure to connect that gives no reason: the server closed the new connection, or its reply
    /// was unreadable.
    pub(crate) fn gives_no_reason(&self) -> bool {
        match self {
            Self::NoServer { cause, .. } => {
                cause.kind() == ErrorKind::Parse
                    || (cause.is_connection_dropped() && !cause.is_connection_refusal())
            }
            #[cfg(feature = "tls")]
            Self::Tls { cause, .. } => !is_of_certificate(cause),
            _ => false,
        }
    }
}

/// Why there was no connection, if no attempt to connect has failed.
const WAITS: &str = "still connecting, or earlier writes still wait for replicas";

/// Why the server did not answer, in one line.
fn no_answer(failure: &RedisError) -> String {
    // The redis crate's text only says which byte is wrong.
    let is_unreadable = failure.kind() == ErrorKind::Parse;
    if is_unreadable { "its reply is not that of a Redis server".to_owned() } else { failure.to_string() }
}

/// A hint at one cause of a lost list that is not the network.
fn hint_of_lost_list(key: &str, loss: &RedisError) -> &'static str {
    // A task's key never ends with a colon, and a list is the only read of an owner.
    let is_list = key.ends_with(':');
    if is_list && loss.is_io_error() && !loss.is_timeout() {
        ": the server closes the connection if a reply exceeds its client-output-buffer-limit, read smaller \
         pages"
    } else {
        ""
    }
}

/// The source of a [`StorageError::Backend`], whose message is already complete. In a printed error chain, it
/// shows only the name of the error's variant.
#[derive(Debug)]
struct Kind(Error);

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variant = format!("{:?}", self.0);
        f.write_str(variant.split([' ', '(']).next().unwrap_or_default())
    }
}

impl std::error::Error for Kind {}

impl From<Error> for StorageError {
    fn from(error: Error) -> Self {
        Self::Backend { message: error.to_string(), source: Some(Box::new(Kind(error))) }
    }
}

/// What a call does to the data, which decides what its failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallKind {
    Read,
    Write,
    /// A write over a record that was read in this epoch. It is not sent in a later one.
    Replace {
        /// See [`Waiters::epoch`](crate::connection::Waiters::epoch).
        epoch: u64,
        /// Whether a read follows that is tracked, see [`Self::TrackedRead`]. Not if the write waits for replicas.
        is_tracked: bool,
    },
    /// A read that must not go to a replica.
    PrimaryRead,
    /// The same, of a record that is to be written over in the epoch in which it is read. Goes where writes go: another
    /// connection may lead to another server.
    ReadToReplace,
    /// The same, and the server is to tell of the next change of the task, and when the task expires.
    TrackedRead,
    /// The same of an index, which does not expire.
    TrackedList,
}

impl CallKind {
    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Replace { .. })
    }

    /// True for a write over a record that was read before this epoch.
    pub(crate) fn is_outdated(self, now: u64) -> bool {
        matches!(self, Self::Replace { epoch, .. } if epoch != now)
    }
}

/// What a lost reply means.
pub(crate) fn of_loss(error: RedisError, kind: CallKind, key: &str, address: String) -> Error {
    match kind {
        CallKind::Write | CallKind::Replace { .. } => {
            Error::OutcomeUnknown { address, key: key.to_owned(), cause: error }
        }
        CallKind::Read
        | CallKind::PrimaryRead
        | CallKind::ReadToReplace
        | CallKind::TrackedRead
        | CallKind::TrackedList => Error::NoReply { address, key: key.to_owned(), cause: error },
    }
}

/// What an error reply means.
pub(crate) fn of_reply(error: RedisError, address: String) -> StorageError {
    match error.code() {
        Some("CAPACITY" | "OOM") => {
            StorageError::CapacityExceeded { message: error.detail().unwrap_or("no memory left").to_owned() }
        }
        _ => of_server(error, address).into(),
    }
}

/// The same in a cluster, where the client can reach every node. Redirects until the time is over mean that
/// the slot is moving. Keys of one owner have different slots only without hash tags.
pub(crate) fn of_reply_in_cluster(error: RedisError, address: String) -> StorageError {
    match error.code() {
        Some("MOVED" | "ASK") => Error::SlotMoving { address, cause: error }.into(),
        Some("CROSSSLOT") => hash_tags_are_off().into(),
        _ => of_reply(error, address),
    }
}

/// The conflict of a write that was not sent because what it was to replace is outdated: what is there now may be another
/// record with the version that was read.
pub(crate) fn conflict_if_outdated(error: StorageError, key: &str, version: u64) -> StorageError {
    match Error::of(&error) {
        Some(Error::Outdated { .. }) => {
            StorageError::VersionConflict { key: key.to_owned(), expected: version, actual: version }
        }
        _ => error,
    }
}

/// True for the refusal of a new task whose owner has as many tasks as `MAXTASKS` allows. The server has the same code for
/// a record that is too large.
pub(crate) fn says_owner_is_full(error: &StorageError) -> bool {
    matches!(error, StorageError::CapacityExceeded { message } if message.contains("MAXTASKS"))
}

pub(crate) fn hash_tags_are_off() -> Error {
    Error::Settings(
        "hash tags: expected HashTags::On, which puts all keys of an owner in one slot of the cluster, got \
         HashTags::Off"
            .to_owned(),
    )
}

/// True for an error reply which says that nothing was done, and that the server or another one may soon do
/// it: the server is becoming a replica or has just become one, has no replicas yet, is loading its data,
/// runs a script, or its slots are moving.
pub(crate) fn is_transient_reply(error: &RedisError) -> bool {
    let passing = ["TRYAGAIN", "CLUSTERDOWN", "LOADING", "BUSY", "MASTERDOWN", "READONLY", "NOREPLICAS"];
    error.code().is_some_and(|code| passing.contains(&code))
}

/// What a failed attempt to connect means.
pub(crate) fn of_connecting(error: RedisError, address: String) -> Error {
    match error.kind() {
        ErrorKind::AuthenticationFailed => Error::Authentication { address, cause: error },
        ErrorKind::InvalidClientConfig => Error::Settings(format!("{address}: {error}")),
        ErrorKind::MasterNameNotFoundBySentinel => Error::NoPrimary { address, cause: error },
        _ if error.code().is_some() => of_server(error, address),
        #[cfg(feature = "tls")]
        _ if tls_error(&error).is_some() => Error::Tls { address, cause: error },
        _ => Error::NoServer { address, cause: error },
    }
}

/// The error of TLS itself, if the connection below TLS did not fail.
#[cfg(feature = "tls")]
fn tls_error(error: &RedisError) -> Option<&rustls::Error> {
    use std::error::Error;
    type Shared = std::sync::Arc<dyn Error + Send + Sync>;

    let source = error.source().and_then(|source| source.downcast_ref::<Shared>());
    let io = source.and_then(|source| source.downcast_ref::<std::io::Error>());
    io.and_then(std::io::Error::get_ref)?.downcast_ref()
}

/// True if the server's certificate is invalid.
#[cfg(feature = "tls")]
fn is_of_certificate(error: &RedisError) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// The error without the arguments of an unknown command, which a server repeats: those of `HELLO` and `AUTH` have the
/// password. The redis crate may quote the server, so the place in the text does not matter.
pub(crate) fn without_arguments(error: RedisError) -> RedisError {
    let text = error.to_string();
    let Some((before, _)) = text.split_once(", with args beginning with") else { return error };
    let (_, told) = before.split_once("unknown command").unwrap_or_default();
    let code = error.code().unwrap_or("ERR").to_owned();
    make_extension_error(code, Some(format!("unknown command{told}")))
}

/// What an error reply means. The server sends every error before it changes anything, except DEFECT.
fn of_server(error: RedisError, address: String) -> Error {
    let unknown_command = error.detail().and_then(|detail| detail.strip_prefix("unknown command"));
    let is_ours = |name: &str| {
        let name = name.trim_start_matches([' ', '\'', '`']);
        name.get(.."PMCPTASK.".len()).is_some_and(|start| start.eq_ignore_ascii_case("PMCPTASK."))
    };
    if unknown_command.is_some_and(is_ours) {
        // The server's text repeats the arguments, and so the record. It must not be shown.
        return Error::ModuleNotLoaded { address };
    }
    match error.code() {
        Some("NOAUTH" | "WRONGPASS") => Error::Authentication { address, cause: error },
        Some("NOPERM") => Error::NoPermission { address, cause: error },
        Some("READONLY") => Error::ReadOnly { address, cause: error },
        Some("MOVED" | "ASK" | "CROSSSLOT") => Error::OtherNode { address, cause: error },
        Some("TRYAGAIN") => Error::SlotMoving { address, cause: error },
        Some("CLUSTERDOWN" | "MASTERDOWN") => Error::ClusterDown { address, cause: error },
        Some("LOADING") => Error::Loading { address, cause: error },
        Some("NOREPLICAS") => Error::TooFewReplicas { address, cause: error },
        Some("MISCONF") => Error::CannotPersist { address, cause: error },
        Some("CORRUPT") => Error::Corrupt { address, cause: error },
        Some("NOTHELD") => Error::NotHeld { address, cause: error },
        Some("DEFECT") => Error::Defect { address, cause: error },
        _ => Error::Refused { address, cause: error },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;

    fn server_error(code: &str, detail: &str) -> RedisError {
        make_extension_error(code.to_owned(), Some(detail.to_owned()))
    }

    #[test]
    fn password_in_an_unknown_command_is_not_shown() {
        for text in [
            "unknown command 'AUTH', with args beginning with: 'default' 'hunter2' ",
            "unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `hunter2`, ",
        ] {
            let error = without_arguments(server_error("ERR", text));
            let error = of_connecting(error, "h:1".to_owned());
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
            assert!(error.to_string().contains("unknown command"), "{error}");
        }
        let other = without_arguments(server_error("ERR", "max number of clients reached"));
        assert_eq!(other.detail(), Some("max number of clients reached"));
    }

    #[test]
    fn server_without_memory_or_room_is_at_capacity() {
        for code in ["OOM", "CAPACITY"] {
            let error = of_reply(server_error(code, "full"), "h:1".to_owned());
            assert!(matches!(error, StorageError::CapacityExceeded { message } if message == "full"));
        }
    }

    #[test]
    fn lost_reply_to_a_write_says_that_the_outcome_is_unknown() {
        let lost = || RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        let error = StorageError::from(of_loss(lost(), CallKind::Write, "o:t", "h:1".to_owned()));
        assert!(error.to_string().contains("outcome of the write to o:t is unknown"), "{error}");
        assert!(Error::of(&error).is_some_and(Error::outcome_is_unknown));
        let error = of_loss(lost(), CallKind::Read, "o:t", "h:1".to_owned());
        assert!(error.to_string().contains("no reply came from h:1 to the read"), "{error}");
    }

    #[test]
    fn error_says_whether_anything_was_applied_and_whether_it_may_pass() {
        let [address, key] = ["h:1", "o:t"].map(str::to_owned);
        let cause = || server_error("BUSY", "a script runs");
        for (error, applied, is_transient) in [
            (
                Error::OutcomeUnknown { address: address.clone(), key: key.clone(), cause: cause() },
                Applied::Unknown,
                true,
            ),
            (Error::NotReplicated { key: key.clone(), expected: 2, acknowledged: 1 }, Applied::Yes, true),
            (Error::Defect { address: address.clone(), cause: cause() }, Applied::Unknown, false),
            (Error::Loading { address: address.clone(), cause: cause() }, Applied::No, true),
            (Error::Refused { address: address.clone(), cause: cause() }, Applied::No, true),
            (
                Error::Refused { address: address.clone(), cause: server_error("WRONGTYPE", "") },
                Applied::No,
                false,
            ),
            // A failover may make the server a primary.
            (Error::ReadOnly { address: address.clone(), cause: cause() }, Applied::No, true),
            (
                Error::NotHeld { address: address.clone(), cause: server_error("NOTHELD", "") },
                Applied::No,
                false,
            ),
            (Error::NoPermission { address, cause: cause() }, Applied::No, false),
            (Error::ListPrefix, Applied::No, false),
        ] {
            assert_eq!((error.was_applied(), error.is_transient()), (applied, is_transient), "{error}");
            assert_eq!(error.outcome_is_unknown(), applied == Applied::Unknown, "{error}");
        }
    }

    #[test]
    fn lost_list_names_the_limit_of_the_server_and_no_other_read_does() {
        let lost = |kind| RedisError::from(std::io::Error::from(kind));
        let text = |kind, key| of_loss(lost(kind), CallKind::Read, key, "h:1".to_owned()).to_string();
        assert!(text(std::io::ErrorKind::BrokenPipe, "o:").contains("client-output-buffer-limit"));
        assert!(!text(std::io::ErrorKind::TimedOut, "o:").contains("client-output-buffer-limit"));
        assert!(!text(std::io::ErrorKind::BrokenPipe, "o:t").contains("client-output-buffer-limit"));
    }

    #[test]
    fn error_reply_keeps_its_meaning_and_its_cause() {
        for (code, text) in [
            ("NOPERM", "no permission for this"),
            ("READONLY", "read-only replica"),
            ("LOADING", "loading its data"),
            ("NOREPLICAS", "too few of its replicas"),
            ("MOVED", "redis+cluster://"),
            ("TRYAGAIN", "slot is moving"),
            ("CLUSTERDOWN", "right now"),
            ("MISCONF", "cannot save to disk"),
            ("CORRUPT", "is corrupt"),
            ("NOTHELD", "only while another task lives"),
            ("DEFECT", "failed to carry out"),
            ("NOAUTH", "user name or password"),
            ("WRONGTYPE", "at h:1 refuses: "),
        ] {
            let error = of_reply(server_error(code, "why"), "h:1".to_owned());
            assert!(error.to_string().contains(text), "{code}: {error}");
            assert!(error.to_string().contains("h:1"), "{code}: {error}");
            assert_eq!(error.to_string().matches("why").count(), 1, "{error}");
        }
    }

    #[test]
    fn printed_chain_shows_each_cause_once() {
        let refused = || RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        let no_server = Error::NoServer { address: "h:1".to_owned(), cause: refused() };
        let not_connected = Error::NotConnected {
            address: "h:1".to_owned(),
            waited: Duration::from_secs(2),
            cause: Some(Box::new(no_server.clone())),
        };
        for (error, name) in [(no_server, "NoServer"), (not_connected, "NotConnected")] {
            let error = StorageError::from(error);
            let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            let links: Vec<_> = chain.map(ToString::to_string).collect();
            assert_eq!(links.len(), 2, "{links:?}");
            assert!(links[0].contains(&refused().to_string()), "{links:?}");
            assert_eq!(links[1], name);
        }
    }
}
