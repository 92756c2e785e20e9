//! Decodes the module's replies. Records are moved, not copied.

use std::time::Duration;

use pmcp_tasks::{StorageError, VersionedRecord};
use redis::Value;

use crate::error::Error;
use crate::listing::{ListedEntry, ListedTask};

/// The outcome of a command that expects a version.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// The command did its work. The version that it wrote or deleted.
    Won(u64),
    /// Nothing changed: the task is at this version, or missing (0).
    Lost(u64),
}

impl Comparison {
    /// The version that the command wrote or deleted in the task with this composite key.
    ///
    /// # Errors
    ///
    /// [`StorageError::VersionConflict`].
    pub(crate) fn won(self, key: &str, expected: u64) -> Result<u64, StorageError> {
        match self {
            Self::Won(version) => Ok(version),
            Self::Lost(actual) => {
                Err(StorageError::VersionConflict { key: key.to_owned(), expected, actual })
            }
        }
    }
}

pub(crate) fn version(command: &'static str, reply: Value) -> Result<u64, Error> {
    match reply {
        Value::Int(version) => to_version(command, version),
        other => Err(unexpected(command, &other)),
    }
}

/// Whether the command found what it looks for, or made what it makes: 1 or 0.
pub(crate) fn yes_or_no(command: &'static str, reply: Value) -> Result<bool, Error> {
    match reply {
        Value::Int(0) => Ok(false),
        Value::Int(1) => Ok(true),
        other => Err(unexpected(command, &other)),
    }
}

pub(crate) fn count(command: &'static str, reply: Value) -> Result<usize, Error> {
    match reply {
        Value::Int(count) => {
            usize::try_from(count).map_err(|_| Error::UnexpectedReply { command, found: "a negative number" })
        }
        other => Err(unexpected(command, &other)),
    }
}

/// The reply to `PTTL`: None if there is no such key, 0 if it does not expire, else up to the first millisecond at which
/// it is gone.
pub(crate) fn time_left(reply: Value) -> Result<Option<Duration>, Error> {
    match reply {
        Value::Int(-2) => Ok(None),
        Value::Int(ms) => Ok(Some(Duration::from_millis(u64::try_from(ms.saturating_add(1)).unwrap_or(0)))),
        other => Err(unexpected("PTTL", &other)),
    }
}

/// The server's time in µs since the epoch.
pub(crate) fn time_us(reply: Value) -> Result<u64, Error> {
    const COMMAND: &str = "TIME";
    let Value::Array(parts) = reply else { return Err(unexpected(COMMAND, &reply)) };
    let number = |part: &Value| match part {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    let [seconds, micros] = parts.as_slice() else { return Err(malformed(COMMAND)) };
    let time =
        number(seconds).and_then(|seconds| seconds.checked_mul(1_000_000)?.checked_add(number(micros)?));
    time.ok_or_else(|| malformed(COMMAND))
}

pub(crate) fn record(reply: Value) -> Result<Option<VersionedRecord>, Error> {
    const COMMAND: &str = "PMCPTASK.GET";
    match reply {
        Value::Nil => Ok(None),
        Value::Array(parts) => match <[Value; 2]>::try_from(parts) {
            Ok([Value::Int(version), Value::BulkString(data)]) => {
                Ok(Some(VersionedRecord { data, version: to_version(COMMAND, version)? }))
            }
            _ => Err(malformed(COMMAND)),
        },
        other => Err(unexpected(COMMAND, &other)),
    }
}

/// What a read says that is to be tracked.
pub(crate) struct TrackedRecord {
    pub(crate) record: Option<VersionedRecord>,
    /// The server tells of the next change.
    pub(crate) is_tracked: bool,
    /// How long the task lives, if it expires.
    pub(crate) expires_in: Option<Duration>,
    /// False if the server does not say whether the task expires.
    pub(crate) is_expiry_known: bool,
}

/// The reply to a tracked read.
pub(crate) fn tracked_record(reply: Value) -> Result<TrackedRecord, Error> {
    const COMMAND: &str = "PMCPTASK.GET";
    let Value::Array(parts) = reply else { return Err(unexpected(COMMAND, &reply)) };
    let Ok([Value::Boolean(is_tracked), read, pttl]) = <[Value; 3]>::try_from(parts) else {
        return Err(malformed(COMMAND));
    };
    let (is_expiry_known, expires_in) = match pttl {
        Value::Int(-1) => (true, None),
        // Negative: it has expired since.
        Value::Int(ms) => (true, Some(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))),
        _ => (false, None),
    };
    Ok(TrackedRecord { record: record(read)?, is_tracked, expires_in, is_expiry_known })
}

/// The reply to a command that expects a version.
pub(crate) fn comparison(command: &'static str, reply: Value) -> Result<Comparison, Error> {
    let Value::Array(parts) = reply else { return Err(unexpected(command, &reply)) };
    match parts.as_slice() {
        [Value::Okay, Value::Int(version)] => Ok(Comparison::Won(to_version(command, *version)?)),
        [Value::SimpleString(outcome), Value::Int(version)] if outcome == "CONFLICT" => {
            Ok(Comparison::Lost(to_version(command, *version)?))
        }
        [Value::SimpleString(outcome), Value::Int(0)] if outcome == "MISSING" => Ok(Comparison::Lost(0)),
        _ => Err(malformed(command)),
    }
}

/// The reply to a `PMCPTASK.CAS`, and to the tracked read behind it if there is one. What is wrong with the read is no error:
/// the write counts.
pub(crate) fn comparison_and_read(reply: Value) -> Result<(Comparison, Option<TrackedRecord>), Error> {
    const COMMAND: &str = "PMCPTASK.CAS";
    match reply {
        Value::Array(mut parts) if parts.len() == 4 => {
            let read = parts.split_off(1);
            let written = comparison(COMMAND, parts.pop().unwrap_or(Value::Nil))?;
            Ok((written, tracked_record(Value::Array(read)).ok()))
        }
        reply => Ok((comparison(COMMAND, reply)?, None)),
    }
}

/// Whether the reply to a write says that it changed no task: the version was another, there was no such task
/// or none to trim, or a new task existed already.
pub(crate) fn says_no_task_changed(reply: &Value) -> bool {
    match reply {
        Value::Int(changed) => *changed == 0,
        Value::Array(parts) => parts.first().is_some_and(|outcome| *outcome != Value::Okay),
        _ => false,
    }
}

/// The tasks of a list, in the server's order.
pub(crate) fn list(reply: Value) -> Result<Vec<ListedTask>, Error> {
    const COMMAND: &str = "PMCPTASK.LIST";
    let Value::Array(tasks) = reply else { return Err(unexpected(COMMAND, &reply)) };
    tasks
        .into_iter()
        .map(|task| {
            let Value::Array(parts) = task else { return Err(unexpected(COMMAND, &task)) };
            match <[Value; 4]>::try_from(parts) {
                Ok(
                    [
                        Value::BulkString(id),
                        Value::Int(version),
                        Value::Int(created_ms),
                        Value::BulkString(data),
                    ],
                ) => {
                    let task_id = String::from_utf8(id).map_err(|_| malformed(COMMAND))?;
                    let record = VersionedRecord { data, version: to_version(COMMAND, version)? };
                    Ok(ListedTask { task_id, created_ms, record })
                }
                _ => Err(malformed(COMMAND)),
            }
        })
        .collect()
}

/// The tasks of a tracked list, and whether the server tells of the next change.
pub(crate) fn tracked_list(reply: Value) -> Result<(Vec<ListedTask>, bool), Error> {
    let (tasks, is_tracked) = tracked(reply)?;
    Ok((list(tasks)?, is_tracked))
}

/// The same of a list without records: the ids and versions.
pub(crate) fn tracked_versions(reply: Value) -> Result<(Vec<(String, u64)>, bool), Error> {
    let (tasks, is_tracked) = tracked(reply)?;
    let versions = entries(tasks)?.into_iter().map(|entry| (entry.task_id, entry.version));
    Ok((versions.collect(), is_tracked))
}

/// The reply to the list of a tracked read, and whether the server tells of the next change.
fn tracked(reply: Value) -> Result<(Value, bool), Error> {
    const COMMAND: &str = "PMCPTASK.LIST";
    let Value::Array(parts) = reply else { return Err(unexpected(COMMAND, &reply)) };
    let Ok([Value::Boolean(is_tracked), tasks, _]) = <[Value; 3]>::try_from(parts) else {
        return Err(malformed(COMMAND));
    };
    Ok((tasks, is_tracked))
}

/// The tasks of a list without records, in the server's order.
pub(crate) fn entries(reply: Value) -> Result<Vec<ListedEntry>, Error> {
    let Value::Array(tasks) = reply else { return Err(unexpected("PMCPTASK.LIST", &reply)) };
    tasks.into_iter().map(entry).collect()
}

fn entry(task: Value) -> Result<ListedEntry, Error> {
    const COMMAND: &str = "PMCPTASK.LIST";
    let Value::Array(parts) = task else { return Err(unexpected(COMMAND, &task)) };
    match <[Value; 3]>::try_from(parts) {
        Ok([Value::BulkString(id), Value::Int(version), Value::Int(created_ms)]) => {
            let task_id = String::from_utf8(id).map_err(|_| malformed(COMMAND))?;
            Ok(ListedEntry { task_id, created_ms, version: to_version(COMMAND, version)? })
        }
        _ => Err(malformed(COMMAND)),
    }
}

fn to_version(command: &'static str, version: i64) -> Result<u64, Error> {
    u64::try_from(version)
        .ok()
        .filter(|version| *version > 0)
        .ok_or(Error::UnexpectedReply { command, found: "a version that is not positive" })
}

fn malformed(command: &'static str) -> Error {
    Error::UnexpectedReply { command, found: "an array with unexpected elements" }
}

fn unexpected(command: &'static str, reply: &Value) -> Error {
    let found = match reply {
        Value::Nil => "nil",
        Value::Int(_) => "an integer",
        Value::BulkString(_) => "a bulk string",
        Value::Array(_) => "an array",
        Value::SimpleString(_) | Value::Okay => "a status",
        _ => "a reply of another type",
    };
    Error::UnexpectedReply { command, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_of_another_shape_is_an_error_and_shows_no_data() {
        let data = || Value::BulkString(b"secret".to_vec());
        let replies = [
            Value::Okay,
            data(),
            Value::Int(-1),
            Value::Array(vec![data()]),
            Value::Array(vec![Value::Int(0), data()]),
            Value::Array(vec![data(), Value::Int(1)]),
            Value::Array(vec![Value::Array(vec![data(), Value::Int(1), data(), data()])]),
        ];
        for reply in replies {
            let errors = [
                version("PMCPTASK.PUT", reply.clone()).err(),
                yes_or_no("PMCPTASK.DEL", reply.clone()).err(),
                record(reply.clone()).err(),
                comparison("PMCPTASK.CAS", reply.clone()).err(),
                list(reply.clone()).err(),
                tracked_record(reply.clone()).err(),
                time_us(reply.clone()).err(),
                tracked_versions(reply.clone()).err(),
                tracked_list(reply.clone()).err(),
            ];
            for error in errors {
                let text = error.map(|error| error.to_string());
                assert!(text.is_some_and(|text| !text.contains("secret")), "{reply:?}");
            }
        }
    }

    #[test]
    fn replies_of_the_module_are_understood() {
        assert_eq!(version("PMCPTASK.PUT", Value::Int(i64::MAX)).ok(), Some(i64::MAX.unsigned_abs()));
        let pair = |outcome: Value, version| Value::Array(vec![outcome, Value::Int(version)]);
        assert_eq!(comparison("PMCPTASK.CAS", pair(Value::Okay, 2)).ok(), Some(Comparison::Won(2)));
        assert_eq!(
            comparison("PMCPTASK.CAS", pair(Value::SimpleString("CONFLICT".into()), 7)).ok(),
            Some(Comparison::Lost(7))
        );
        assert_eq!(
            comparison("PMCPTASK.CAS", pair(Value::SimpleString("MISSING".into()), 0)).ok(),
            Some(Comparison::Lost(0))
        );
        assert!(matches!(record(Value::Nil), Ok(None)));
        let digits = |digits: &str| Value::BulkString(digits.as_bytes().to_vec());
        let time = Value::Array(vec![digits("1795716000"), digits("42")]);
        assert_eq!(time_us(time).ok(), Some(1_795_716_000_000_042));
        let unchanged = [Value::Int(0), pair(Value::SimpleString("CONFLICT".into()), 7)];
        assert!(unchanged.iter().all(says_no_task_changed));
        assert!(![Value::Int(1), pair(Value::Okay, 2), Value::Nil].iter().any(says_no_task_changed));
        assert!(matches!(list(Value::Array(Vec::new())), Ok(tasks) if tasks.is_empty()));
    }
}
