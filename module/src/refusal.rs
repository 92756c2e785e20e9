//! Why a command was refused: the error replies of this module.
//!
//! A refusal comes before the first write, so nothing has been changed, signalled or replicated. Only
//! [`Refusal::Failed`] can come later.

use std::fmt;

use pmcptask_schema::{ExpiryError, KeyError, MAX_CREATED_MS};

use crate::server::Failed;
use pmcptask_schema::arguments::ArgumentError;

/// An error reply: a code for clients to tell errors apart, and a sentence.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// An argument is not what it should be.
    Argument(ArgumentError),
    /// A key does not fit the schema.
    Key(KeyError),
    /// No expiry can be read from the record.
    Expiry(ExpiryError),
    /// The task's version is already the largest possible.
    VersionExhausted,
    /// The newest entry of the index already has the largest creation time.
    NoneNewer,
    /// A key holds another type.
    WrongType,
    /// The owner has as many tasks as `MAXTASKS` allows.
    TooManyTasks { allowed: i64 },
    /// The record is larger than `pmcptask.max-record-bytes`.
    RecordTooLarge { bytes: usize, allowed: i64 },
    /// The hash lacks `data` or a valid `version`.
    Corrupt { key: Vec<u8>, what: &'static str },
    /// The task of `HELD` does not live.
    NotHeld { key: Vec<u8> },
    /// The user may not do this to a task's key.
    NoPermission { action: &'static str, key: Vec<u8> },
    /// The keys have different slots of the cluster.
    CrossSlot,
    /// A task is missing here and may be at another node of the cluster.
    MayBeElsewhere { key: Vec<u8> },
    /// A server function failed unexpectedly.
    Failed(Failed),
}

/// The code of a [`Refusal`]: what `INFO` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Err,
    WrongType,
    Capacity,
    Corrupt,
    NotHeld,
    NoPerm,
    CrossSlot,
    TryAgain,
    Defect,
}

impl Refusal {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Argument(_) | Self::Key(_) | Self::Expiry(_) | Self::VersionExhausted | Self::NoneNewer => {
                Code::Err
            }
            Self::WrongType => Code::WrongType,
            Self::TooManyTasks { .. } | Self::RecordTooLarge { .. } => Code::Capacity,
            Self::Corrupt { .. } => Code::Corrupt,
            Self::NotHeld { .. } => Code::NotHeld,
            Self::NoPermission { .. } => Code::NoPerm,
            Self::CrossSlot => Code::CrossSlot,
            Self::MayBeElsewhere { .. } => Code::TryAgain,
            Self::Failed(_) => Code::Defect,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Err => "ERR",
            Self::WrongType => "WRONGTYPE",
            Self::Capacity => "CAPACITY",
            Self::Corrupt => "CORRUPT",
            Self::NotHeld => "NOTHELD",
            Self::NoPerm => "NOPERM",
            Self::CrossSlot => "CROSSSLOT",
            Self::TryAgain => "TRYAGAIN",
            Self::Defect => "DEFECT",
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.code())?;
        match self {
            Self::Argument(error) => error.fmt(f),
            Self::Key(error) => error.fmt(f),
            Self::Expiry(error) => error.fmt(f),
            Self::VersionExhausted => write!(f, "version: the task is at {}, the largest there is", i64::MAX),
            Self::NoneNewer => {
                write!(
                    f,
                    "CREATED: no task can be newer, an entry of the index is at {MAX_CREATED_MS} or later"
                )
            }
            Self::WrongType => f.write_str("Operation against a key holding the wrong kind of value"),
            Self::TooManyTasks { allowed } => {
                write!(f, "owner already has {allowed} or more live tasks (MAXTASKS {allowed})")
            }
            Self::RecordTooLarge { bytes, allowed } => {
                write!(f, "data: expected at most {allowed} bytes (pmcptask.max-record-bytes), got {bytes}")
            }
            Self::Corrupt { key, what } => write!(f, "the hash at key '{}' has {what}", printable(key)),
            Self::NotHeld { key } => {
                write!(f, "the task of HELD does not exist or has expired: '{}'", printable(key))
            }
            Self::NoPermission { action, key } => {
                write!(f, "No permissions to {action} the key '{}'", printable(key))
            }
            Self::CrossSlot => f.write_str("Keys in request don't hash to the same slot"),
            Self::MayBeElsewhere { key } => {
                write!(f, "the key '{}' may be at another node", printable(key))
            }
            Self::Failed(failed) => write!(f, "{failed}; a part of a write may have been made"),
        }
    }
}

impl From<ArgumentError> for Refusal {
    fn from(error: ArgumentError) -> Self {
        Self::Argument(error)
    }
}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Self {
        Self::Key(error)
    }
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<ExpiryError> for Refusal {
    fn from(error: ExpiryError) -> Self {
        Self::Expiry(error)
    }
}

/// The first bytes of a key, escaped for an error reply.
fn printable(key: &[u8]) -> String {
    const SHOWN: usize = 256;
    let mut text = key.get(..SHOWN).unwrap_or(key).escape_ascii().to_string();
    if key.len() > SHOWN {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_starts_with_its_code() {
        let corrupt = Refusal::Corrupt { key: b"p:tasks:\r\n\xff:t".to_vec(), what: "no data" };
        assert_eq!(corrupt.to_string(), r"CORRUPT the hash at key 'p:tasks:\r\n\xff:t' has no data");
        assert_eq!(
            Refusal::WrongType.to_string(),
            "WRONGTYPE Operation against a key holding the wrong kind of value"
        );
    }

    #[test]
    fn long_key_is_cut() {
        let text = Refusal::NoPermission { action: "read", key: vec![b'k'; 1_000_000] }.to_string();
        assert!(text.len() < 400 && text.contains("kkk..."), "{text}");
    }
}
