//! What can go wrong, and what it means for the task.

use std::fmt;
use std::time::Duration;

use pmcp_tasks::StorageError;
use redis::{ErrorKind, RedisError};

/// Why a call failed. Every [`StorageError::Backend`] of this crate holds one; [`Error::of`] finds it.
///
/// The text holds the cause, in the server's or the operating system's own words. Therefore `std::error::Error::source`
/// returns none: a chain that is printed shows each cause once. The field `cause` has the cause's type.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL or a setting cannot be used.
    #[error("settings of the Redis backend: {0}")]
    Settings(String),
    /// Nobody answers at the address as a Redis server does. Nothing was sent.
    #[error(
        "no Redis server answers at {address} ({}): is it running, is the address right, and can it be reached \
         from here?",
        no_answer(cause)
    )]
    NoServer {
        /// Host and port, or path of the socket; of an address that a server or Sentinel has told, which one.
        address: String,
        /// What the operating system said.
        cause: RedisError,
    },
    /// Client and server do not trust each other's certificates, or one of them does not speak TLS. Nothing was
    /// sent.
    #[cfg(feature = "tls")]
    #[error(
        "no TLS connection to {address} could be made, check the certificates and their authority: {cause}"
    )]
    Tls {
        /// Host and port; of an address that a server or Sentinel has told, which one.
        address: String,
        /// What is wrong with the certificate or the connection.
        cause: RedisError,
    },
    /// The server wants another user name or password. Nothing was changed.
    #[error("the Redis server at {address} refuses user name or password, check them in the URL: {cause}")]
    Authentication {
        /// Where the server is.
        address: String,
        /// What the server said.
        cause: RedisError,
    },
    /// The server does not know the commands of the module. Nothing was changed.
    #[error(
        "the Redis server at {address} has no pmcptask module: start it with --loadmodule /path/to/libpmcptask.so, or put \
         'loadmodule /path/to/libpmcptask.so' in its redis.conf"
    )]
    ModuleNotLoaded {
        /// Where the server is.
        address: String,
    },
    /// The connection was lost, or no reply came in time, after a write was sent. The write is not
    /// repeated, because nobody knows whether it has been carried out.
    #[error("the outcome of the write to {key} is unknown: no reply came from {address} ({cause})")]
    OutcomeUnknown {
        /// Where the server is.
        address: String,
        /// Key of the task.
        key: String,
        /// How the reply was lost.
        cause: RedisError,
    },
    /// The connection was lost, or no reply came in time, during a read. One that lost its connection was sent twice.
    #[error("no reply came from {address} to the read of {key} ({cause}){}", hint_of_lost_list(key, cause))]
    NoReply {
        /// Where the server is.
        address: String,
        /// Key of the task or of the index.
        key: String,
        /// How the reply was lost.
        cause: RedisError,
    },
    /// There was no connection in time, or a write that waits for replicas was kept back too long behind others. A write was
    /// not sent. A read may have been sent before its connection was lost.
    #[error(
        "no connection to {address} within {} ms, nothing was changed: {}",
        waited.as_millis(),
        cause.as_ref().map_or_else(|| WAITS.to_owned(), ToString::to_string)
    )]
    NotConnected {
        /// Where the server is, or what tells where it is.
        address: String,
        /// How long the call has waited.
        waited: Duration,
        /// How the last attempt to connect failed; none where none has.
        cause: Option<Box<Self>>,
    },
    /// The circuit breaker has seen the server fail: nothing was sent, and nothing will be for a moment.
    #[error("the Redis server has failed to answer: nothing is sent for a moment")]
    CircuitOpen,
    /// The server's ACL does not allow this user the command or the key. Nothing was changed.
    #[error("the Redis user may not do this at {address}: {cause}")]
    NoPermission {
        /// Where the server is.
        address: String,
        /// What the server said.
        cause: RedisError,
    },
    /// The server is a replica. Nothing was changed.
    #[error("the Redis server at {address} is a read-only replica, write to its primary: {cause}")]
    ReadOnly {
        /// Where the server is.
        address: String,
        /// What the server said.
        cause: RedisError,
    },
    /// The Sentinels know no primary that is one. Nothing was sent.
    #[error("no primary was found for {address}: {cause}")]
    NoPrimary {
        /// Name of the service, and where its Sentinels are.
        address: String,
        /// What they said.
        cause: RedisError,
    },
    /// The server belongs to no cluster. Nothing was sent.
    #[error(
        "the Redis server at {address} is no node of a cluster with slots, connect to it with redis://: {}",
        cause.as_ref().map_or_else(|| "CLUSTER SLOTS is empty".to_owned(), ToString::to_string)
    )]
    NotACluster {
        /// Host and port.
        address: String,
        /// What the server said, if not an empty list of slots.
        cause: Option<RedisError>,
    },
    /// The server belongs to a cluster, and another node has the key. Nothing was changed.
    #[error(
        "the Redis server at {address} is a node of a cluster and has no such key, connect with redis+cluster://: {cause}"
    )]
    OtherNode {
        /// Where the server is.
        address: String,
        /// What the server said.
        cause: RedisError,
    },
    /// The key's slot has been moving to another node all the time that the call could wait. Nothing was changed.
    #[error(
        "the key's slot is moving to another node of the Redis cluster at {address}, try again in a moment: {cause}"
    )]
    SlotMoving {
        /// Where the server is.
        address: String,
        /// What the server said.
        cause: RedisError,
    },
    /// No node could serve the key in the time that the call could wait: after a failure, until a replica has
    /// taken over. Nothing was changed.
    #[error("no node of the Redis cluster at {address} serves the key right now: {cause}")]
    ClusterDown {
        /// Where the server is.
        address: String,
        /// What the server said.
        cause: RedisError,
    },
    /// The write was made, but too few replicas had it in time: a failover may lose it.
    #[error(
        "the write to {key} was made, but {acknowledged} instead of {expected} replicas had it in time: a \
         failover may lose it"
    )]
    NotReplicated {
        /// Key of the task.
        key: String,
        /// Replicas that were to have it.
        expected: u16,
        /// Replicas that had it in time; 0 also where nobody knows, because the connection was lost meanwhile.
        acknowledged: i64,
    },
    /// The primary has fewer healthy replicas than its `min-replicas-to-write` asks for, and takes no writes. Nothing
    /// was changed.
    #[error(
        "the Redis server at {address} refuses writes because too few of its replicas are healthy: {cause}"
    )]
    TooFewReplicas {
        /// Where the server is.
        address: String,
        /// What the server said.
        cause: RedisError,
    },
    /// The server is still reading its data from disk. Nothing was changed.
    #[error("the Redis server at {address} is loading its data, try again in a moment: {cause}")]
    Loading {
        /// Where the server is.
        address: String,
        /// What the server said.
        cause: RedisError,
    },
    /// The server cannot persist and refuses writes. Nothing was changed.
    #[error("the Redis server at {address} refuses writes because it cannot save to disk: {cause}")]
    CannotPersist {
        /// Where the server is.
        address: String,
        /// What the server said.
        cause: RedisError,
    },
    /// A hash under a task's key is not one that this schema writes. Nothing was changed.
    #[error("a task stored at {address} is corrupt: {cause}")]
    Corrupt {
        /// Where the server is.
        address: String,
        /// What the server said; it names the key.
        cause: RedisError,
    },
    /// The module has failed on the server: a defect of it, which its makers want to hear of. Of a write, the
    /// outcome is unknown.
    #[error("the pmcptask module at {address} failed to carry out the call: {cause}")]
    Defect {
        /// Where the server is.
        address: String,
        /// What the server said.
        cause: RedisError,
    },
    /// The server refused the connection or the call for another reason. Nothing was changed.
    #[error("the Redis server at {address} refuses: {cause}")]
    Refused {
        /// Where the server is.
        address: String,
        /// What the server said.
        cause: RedisError,
    },
    /// The record cannot be stored. Nothing was sent.
    #[error("the record cannot be stored: {0}")]
    Record(#[from] pmcptask_schema::ExpiryError),
    /// The composite key names no task or no owner. Nothing was sent.
    #[error(transparent)]
    Key(#[from] pmcptask_schema::CompositeKeyError),
    /// The prefix of a list is not `owner:`. Nothing was sent.
    #[error("prefix: expected owner:, got one without the colon at its end")]
    ListPrefix,
    /// The reply is not one of this command: what answers is no Redis server with this module.
    #[error("the server's reply is not one of {command}: {found}")]
    UnexpectedReply {
        /// The command that was sent.
        command: &'static str,
        /// What kind of reply came.
        found: &'static str,
    },
}

impl Error {
    /// The error in a [`StorageError::Backend`] of this crate; none in other errors.
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

    /// True where nothing came back from the server, or there was none.
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
    pub fn was_applied(&self) -> Applied {
        match self {
            Self::NotReplicated { .. } => Applied::Yes,
            Self::OutcomeUnknown { .. } | Self::UnexpectedReply { .. } | Self::Defect { .. } => {
                Applied::Unknown
            }
            _ => Applied::No,
        }
    }

    /// True where a write may or may not have been made: read the task to find out.
    #[must_use]
    pub fn outcome_is_unknown(&self) -> bool {
        self.was_applied() == Applied::Unknown
    }

    /// True where the same call may succeed later although nobody changes the client, its settings or the server's.
    ///
    /// It says nothing about whether the call may be made again: ask [`Error::was_applied`] first.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoServer { .. }
            | Self::NotConnected { .. }
            | Self::NoPrimary { .. }
            | Self::CircuitOpen
            | Self::OutcomeUnknown { .. }
            | Self::NoReply { .. }
            | Self::SlotMoving { .. }
            | Self::ClusterDown { .. }
            | Self::TooFewReplicas { .. }
            | Self::NotReplicated { .. }
            | Self::Loading { .. } => true,
            Self::Refused { cause, .. } => is_passing(cause),
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
    /// Nobody knows.
    Unknown,
}

impl Error {
    /// True for a failure to connect that says nothing of the next attempt.
    pub(crate) fn is_of_the_moment(&self) -> bool {
        match self {
            Self::Authentication { .. } | Self::Settings(_) | Self::NoPermission { .. } => false,
            Self::Refused { cause, .. } => cause.code() != Some("DENIED"),
            #[cfg(feature = "tls")]
            Self::Tls { cause, .. } => !is_of_certificate(cause),
            _ => true,
        }
    }

    /// True for a failure to connect that does not say why: the connection was made, and closed, or what came was
    /// unreadable.
    pub(crate) fn is_closed_door(&self) -> bool {
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

/// Why there was no connection where no attempt to connect has failed.
const WAITS: &str = "an attempt to connect goes on, or writes before this one wait for replicas";

/// Why there was no answer, in one line.
fn no_answer(failure: &RedisError) -> String {
    // The redis crate explains at which byte.
    let is_unreadable = failure.kind() == ErrorKind::Parse;
    if is_unreadable { "its reply is none of a Redis server".to_owned() } else { failure.to_string() }
}

/// One cause of a list without a reply that is not the network's.
fn hint_of_lost_list(key: &str, loss: &RedisError) -> &'static str {
    let is_list = key.ends_with(':');
    if is_list && loss.is_io_error() && !loss.is_timeout() {
        ": a server closes the connection where the reply is larger than its client-output-buffer-limit; smaller \
         pages (list_page_size) help"
    } else {
        ""
    }
}

/// The source of a [`StorageError::Backend`], whose message holds the whole text. As a link of a printed chain it shows the
/// name of the error's variant alone.
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

/// What a call does to the data, and so what its failure may mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallKind {
    Read,
    Write,
    /// A read that a replica is not asked.
    PrimaryRead,
}

/// Gives the loss of a reply its meaning.
pub(crate) fn of_loss(error: RedisError, kind: CallKind, key: &str, address: String) -> Error {
    match kind {
        CallKind::Write => Error::OutcomeUnknown { address, key: key.to_owned(), cause: error },
        CallKind::Read | CallKind::PrimaryRead => {
            Error::NoReply { address, key: key.to_owned(), cause: error }
        }
    }
}

/// Gives an error reply its meaning.
pub(crate) fn of_reply(error: RedisError, address: String) -> StorageError {
    match error.code() {
        Some("CAPACITY" | "OOM") => {
            StorageError::CapacityExceeded { message: error.detail().unwrap_or("no memory left").to_owned() }
        }
        _ => of_server(error, address).into(),
    }
}

/// The same in a cluster, of which every node is in reach: one that sends a call elsewhere until there is no time
/// left has a slot that moves, and keys of one owner have different slots where they have no hash tags.
pub(crate) fn of_reply_in_cluster(error: RedisError, address: String) -> StorageError {
    match error.code() {
        Some("MOVED" | "ASK") => Error::SlotMoving { address, cause: error }.into(),
        Some("CROSSSLOT") => hash_tags_are_off().into(),
        _ => of_reply(error, address),
    }
}

pub(crate) fn hash_tags_are_off() -> Error {
    Error::Settings(
        "hash tags: expected HashTags::On, which puts all keys of an owner at one node of the cluster, got \
         HashTags::Off"
            .to_owned(),
    )
}

/// True for an error reply of a server that has done nothing, and that may do it, or another may, in a moment: it
/// is becoming a replica or has just become one, has no replicas yet, is loading its data, runs a script, or its slots
/// are on their way.
pub(crate) fn is_passing(error: &RedisError) -> bool {
    let passing = ["TRYAGAIN", "CLUSTERDOWN", "LOADING", "BUSY", "MASTERDOWN", "READONLY", "NOREPLICAS"];
    error.code().is_some_and(|code| passing.contains(&code))
}

/// Gives the error of an attempt to connect its meaning.
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

/// What has failed where TLS itself has, and not the connection below it.
#[cfg(feature = "tls")]
fn tls_error(error: &RedisError) -> Option<&rustls::Error> {
    use std::error::Error;
    type Shared = std::sync::Arc<dyn Error + Send + Sync>;

    let source = error.source().and_then(|source| source.downcast_ref::<Shared>());
    let io = source.and_then(|source| source.downcast_ref::<std::io::Error>());
    io.and_then(std::io::Error::get_ref)?.downcast_ref()
}

/// True where the server's certificate is not good enough.
#[cfg(feature = "tls")]
fn is_of_certificate(error: &RedisError) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// Gives an error reply its meaning. But for DEFECT, the server sends one before it has changed anything.
fn of_server(error: RedisError, address: String) -> Error {
    let unknown_command = error.detail().and_then(|detail| detail.strip_prefix("unknown command"));
    let is_ours = |name: &str| {
        let name = name.trim_start_matches([' ', '\'', '`']);
        name.get(.."PMCPTASK.".len()).is_some_and(|start| start.eq_ignore_ascii_case("PMCPTASK."))
    };
    if unknown_command.is_some_and(is_ours) {
        // The server repeats the arguments, the record among them: that text goes no further.
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
        Some("DEFECT") => Error::Defect { address, cause: error },
        _ => Error::Refused { address, cause: error },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use redis::make_extension_error;

    use super::*;

    fn server_error(code: &str, detail: &str) -> RedisError {
        make_extension_error(code.to_owned(), Some(detail.to_owned()))
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
            ("NOPERM", "may not do this"),
            ("READONLY", "read-only replica"),
            ("LOADING", "loading its data"),
            ("NOREPLICAS", "too few of its replicas"),
            ("MOVED", "redis+cluster://"),
            ("TRYAGAIN", "slot is moving"),
            ("CLUSTERDOWN", "right now"),
            ("MISCONF", "cannot save to disk"),
            ("CORRUPT", "is corrupt"),
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
