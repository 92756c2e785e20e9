//! Reads a task's hash.

use pmcptask_schema::{is_past, parse_expires_at, parse_version};

use crate::fields::{DATA, EXPIRES_AT, VERSION};
use crate::refusal::Refusal;
use crate::server::{Context, Key, Kind, OwnedString, StringRef};

/// What a reader finds under a task's key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading<T> {
    Nothing,
    /// A hash whose `expires_at` is past, because something else removed the key's own expiry.
    Lapsed,
    Live(T),
}

impl<T> Reading<T> {
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Reading<U> {
        match self {
            Self::Nothing => Reading::Nothing,
            Self::Lapsed => Reading::Lapsed,
            Self::Live(task) => Reading::Live(change(task)),
        }
    }
}

/// A live task without its record's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: i64,
    pub(crate) expires_at: ExpiresAt,
}

/// What a writer finds under a task's key.
pub(crate) type Stored = Reading<Header>;

impl Stored {
    /// The live task's version; None if there is no task or it has expired.
    pub(crate) fn version(&self) -> Option<i64> {
        match self {
            Self::Live(header) => Some(header.version),
            Self::Nothing | Self::Lapsed => None,
        }
    }
}

/// A live task's version and its record's bytes.
pub(crate) struct Record<'c> {
    pub(crate) version: i64,
    pub(crate) data: OwnedString<'c>,
}

/// Reads a task at `now_ms`.
///
/// # Errors
///
/// [`Refusal::WrongType`] and [`Refusal::Corrupt`].
pub(crate) fn read<'c>(
    context: &'c Context,
    name: StringRef<'_>,
    now_ms: i64,
) -> Result<Reading<Record<'c>>, Refusal> {
    let Some(hash) = Key::open_for_reading(context, name) else { return Ok(Reading::Nothing) };
    let names = [VERSION.get(context), EXPIRES_AT.get(context), DATA.get(context)];
    let [version, expires_at, data] = hash.hash_fields(names);
    if ExpiresAt::of(expires_at.as_ref()).is_past(now_ms) {
        return Ok(Reading::Lapsed);
    }
    match (version_of(version.as_ref()), data) {
        (Some(version), Some(data)) => Ok(Reading::Live(Record { version, data })),
        (version, _) => Err(why_no_record(&hash, name, version)),
    }
}

/// Reads a task at `now_ms`, without its record's bytes.
///
/// # Errors
///
/// [`Refusal::WrongType`] and [`Refusal::Corrupt`].
pub(crate) fn read_header(context: &Context, name: StringRef<'_>, now_ms: i64) -> Result<Stored, Refusal> {
    match Key::open_for_reading(context, name) {
        None => Ok(Reading::Nothing),
        Some(hash) => header_of(context, &hash, name, now_ms),
    }
}

/// The same of a key that somebody else uses. This does not count as a use of the key.
///
/// # Errors
///
/// [`Refusal::WrongType`] and [`Refusal::Corrupt`].
pub(crate) fn header_unnoticed(
    context: &Context,
    name: StringRef<'_>,
    now_ms: i64,
) -> Result<Stored, Refusal> {
    header_of(context, &Key::open_unnoticed(context, name), name, now_ms)
}

/// The same of an open key.
///
/// # Errors
///
/// [`Refusal::WrongType`] and [`Refusal::Corrupt`].
pub(crate) fn header_of(
    context: &Context,
    hash: &Key<'_>,
    name: StringRef<'_>,
    now_ms: i64,
) -> Result<Stored, Refusal> {
    if hash.kind() == Kind::Nothing {
        return Ok(Reading::Nothing);
    }
    let [version, expires_at] = hash.hash_fields([VERSION.get(context), EXPIRES_AT.get(context)]);
    let expires_at = ExpiresAt::of(expires_at.as_ref());
    if expires_at.is_past(now_ms) {
        return Ok(Reading::Lapsed);
    }
    match version_of(version.as_ref()) {
        Some(version) if hash.hash_has(DATA.get(context)) => {
            Ok(Reading::Live(Header { version, expires_at }))
        }
        version => Err(why_no_record(hash, name, version)),
    }
}

/// Why a key without a version or without data holds no record. A key of another type has no fields either.
/// Its type is checked only here, because checking it first would slow down every read.
#[cold]
fn why_no_record(key: &Key<'_>, name: StringRef<'_>, version: Option<i64>) -> Refusal {
    if key.kind() != Kind::Hash {
        return Refusal::WrongType;
    }
    let what = if version.is_none() { "a version that is no positive integer, or none" } else { "no data" };
    Refusal::Corrupt { key: name.bytes().to_vec(), what }
}

/// Whether a key holds a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// No hash.
    Gone,
    /// A hash whose `expires_at` is past.
    Lapsed,
    Live,
}

/// Whether a key holds a task at `now_ms`. This does not count as a use of the key.
pub(crate) fn presence(context: &Context, name: StringRef<'_>, now_ms: i64) -> Presence {
    let hash = Key::open_unnoticed(context, name);
    if hash.kind() != Kind::Hash {
        return Presence::Gone;
    }
    if has_lapsed(context, &hash, now_ms) { Presence::Lapsed } else { Presence::Live }
}

fn has_lapsed(context: &Context, hash: &Key<'_>, now_ms: i64) -> bool {
    let [expires_at] = hash.hash_fields([EXPIRES_AT.get(context)]);
    ExpiresAt::of(expires_at.as_ref()).is_past(now_ms)
}

/// Whether a key holds nothing, or a task that has ended. A server may hold an expired key for a while: Redis 7.0 even
/// shows it to a timer on a replica. This does not count as a use of the key.
pub(crate) fn has_ended(context: &Context, name: StringRef<'_>, now_ms: i64) -> bool {
    let hash = Key::open_unnoticed(context, name);
    match hash.kind() {
        Kind::Nothing => true,
        Kind::Hash => has_lapsed(context, &hash, now_ms) || has_expired(&hash, now_ms),
        _ => false,
    }
}

/// Whether a key's own expiry is past. The key has to exist. A key lives through the millisecond of its expiry.
pub(crate) fn has_expired(key: &Key<'_>, now_ms: i64) -> bool {
    key.expiry().is_some_and(|at_ms| at_ms < now_ms)
}

/// The field `expires_at` of a hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExpiresAt {
    Absent,
    /// In s since the epoch.
    At(i64),
    /// Not in the form that this schema writes.
    Other,
}

impl ExpiresAt {
    pub(crate) fn of(field: Option<&OwnedString<'_>>) -> Self {
        field.map_or(Self::Absent, |field| parse_expires_at(field.bytes()).map_or(Self::Other, Self::At))
    }

    /// The time in ms since the epoch, if there is one.
    pub(crate) fn ms(self) -> Option<i64> {
        match self {
            Self::At(seconds) => seconds.checked_mul(1_000),
            Self::Absent | Self::Other => None,
        }
    }

    /// Whether the time is past. If it is, the key's own expiry was lost.
    pub(crate) fn is_past(self, now_ms: i64) -> bool {
        matches!(self, Self::At(seconds) if is_past(seconds, now_ms))
    }
}

/// The field `version` of a hash. None if it is missing or not in the form that this schema writes.
fn version_of(field: Option<&OwnedString<'_>>) -> Option<i64> {
    field.and_then(|field| parse_version(field.bytes()))
}
