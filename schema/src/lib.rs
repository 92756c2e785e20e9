//! The storage schema of an MCP task: key names, hash fields, the record members that hold its creation and
//! expiry times, and the arguments of the commands.
//!
//! Module, client and tests share these rules. This crate needs no server and no network.
//!
//! | key | type | holds |
//! |---|---|---|
//! | `<prefix>:tasks:<owner>:<task-id>` | hash | [`fields`] |
//! | `<prefix>:idx:<owner>` | sorted set | member: task id; score: creation time, ms since the epoch |
//!
//! ```
//! use pmcptask_schema::{Envelope, IndexKey, Keyspace, TaskKey, split_composite};
//!
//! // A composite key of `StorageBackend` becomes the two keys of a task.
//! let (owner, task_id) = split_composite("tenant:alice:t1")?;
//! let keyspace = Keyspace::default().with_hash_tags()?;
//! let (task, index) = (keyspace.task_key(owner, task_id), keyspace.index_key(owner));
//! assert_eq!(task, "pmcp:tasks:{tenant:alice}:t1");
//! assert_eq!(index, "pmcp:idx:{tenant:alice}");
//!
//! // The module reads the keys back, and checks that they belong together.
//! let task = TaskKey::parse(task.as_bytes())?;
//! let index = IndexKey::parse(index.as_bytes())?;
//! assert_eq!(index.check_holds(&task), Ok(()));
//! assert_eq!(index.task_keys().of_task(b"t2"), Some(&b"pmcp:tasks:{tenant:alice}:t2"[..]));
//!
//! // A record says when its task expires and was created.
//! let record = br#"{"task":{"createdAt":"1970-01-01T00:00:01Z"},"expiresAt":"1970-01-01T00:00:02.5Z"}"#;
//! let Envelope { expires_at_ms, created_at_ms, .. } = Envelope::read(record);
//! assert_eq!((expires_at_ms, created_at_ms), (Ok(Some(2_500)), Some(1_000)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// The code of the README must compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod arguments;
mod envelope;
mod keys;

pub use envelope::{Envelope, ExpiryError};
pub use keys::{
    CompositeKeyError, IndexKey, KeyError, Keyspace, OwnersTaskKeys, PrefixError, TaskKey, owner_in_hash_tag,
    split_composite,
};

/// The fields of a task's hash.
pub mod fields {
    /// Decimal version: 1 for a new task, one more with every write.
    pub const VERSION: &str = "version";
    /// The record's bytes, verbatim.
    pub const DATA: &str = "data";
    /// Expiry in seconds since the epoch, rounded up; absent if the task does not expire.
    pub const EXPIRES_AT: &str = "expires_at";
}

/// Largest creation time in ms: a sorted set's score is a double, exact up to here.
pub const MAX_CREATED_MS: i64 = (1 << 53) - 1;

/// The value of [`fields::EXPIRES_AT`] for an expiry in ms since the epoch.
///
/// Rounded up, so that a reader that knows only this field never drops a task that is still alive.
#[must_use]
pub fn expires_at_seconds(expires_at_ms: i64) -> i64 {
    expires_at_ms.div_euclid(1000).saturating_add(i64::from(expires_at_ms.rem_euclid(1000) != 0))
}

/// Reads a stored [`fields::EXPIRES_AT`], in s since the epoch. None if the value is not an integer.
#[must_use]
pub fn parse_expires_at(stored: &[u8]) -> Option<i64> {
    match stored {
        // Other writers may store a time before the epoch.
        [b'-', digits @ ..] => parse_decimal(digits).map(i64::wrapping_neg),
        digits => parse_decimal(digits),
    }
}

/// Whether a time in s since the epoch is past. Like a key's own expiry on the server, it is past from the
/// next millisecond on.
#[must_use]
pub fn is_past(expires_at: i64, now_ms: i64) -> bool {
    expires_at.saturating_mul(1000) < now_ms
}

/// Reads a stored version: a positive integer up to 2^63-1 in the form that this schema writes, with
/// no sign, space or leading zero.
#[must_use]
pub fn parse_version(stored: &[u8]) -> Option<i64> {
    let version = parse_decimal(stored)?;
    (version > 0).then_some(version)
}

/// Number of digits of 2^63-1.
const LONGEST: usize = 19;

/// Reads a decimal integer from 0 to 2^63-1, with no sign, space or leading zero.
#[must_use]
pub fn parse_decimal(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > LONGEST || matches!(digits, [b'0', _, ..]) {
        return None;
    }
    // Nothing can wrap: a number of 19 digits is below 2^64.
    let value = digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.wrapping_sub(b'0');
        (digit <= 9).then(|| value.wrapping_mul(10).wrapping_add(u64::from(digit)))
    })?;
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn expiry_in_seconds_is_rounded_up() {
        assert_eq!(expires_at_seconds(0), 0);
        assert_eq!(expires_at_seconds(1), 1);
        assert_eq!(expires_at_seconds(1_000), 1);
        assert_eq!(expires_at_seconds(1_001), 2);
        assert_eq!(expires_at_seconds(-1), 0);
        assert_eq!(expires_at_seconds(i64::MAX), i64::MAX / 1000 + 1);
    }

    #[test]
    fn expiry_is_past_a_millisecond_after_its_second() {
        for (expires_at, past) in
            [(i64::MIN, true), (-5, true), (0, true), (2, true), (3, false), (i64::MAX, false)]
        {
            assert_eq!(is_past(expires_at, 2_001), past, "{expires_at}");
        }
        assert!(!is_past(2, 2_000));
    }

    #[test]
    fn stored_expiry_is_an_integer_in_its_one_form_or_says_nothing() {
        assert_eq!(parse_expires_at(b"1795258800"), Some(1_795_258_800));
        assert_eq!(parse_expires_at(b"0"), Some(0));
        assert_eq!(parse_expires_at(b"-5"), Some(-5));
        for none in ["", "-", "--5", "+5", "05", "-05", "soon", "1.6e+9"] {
            assert_eq!(parse_expires_at(none.as_bytes()), None, "{none:?}");
        }
    }

    #[test]
    fn version_is_a_positive_integer_in_its_one_form() {
        assert_eq!(parse_version(b"1"), Some(1));
        assert_eq!(parse_version(b"9223372036854775807"), Some(i64::MAX));
        for bad in ["", "0", "01", "+1", "-1", " 1", "1 ", "1.0", "1e3", "9223372036854775808", "x"] {
            assert_eq!(parse_version(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn every_byte_but_a_digit_is_refused_in_every_place() {
        for length in 1..=LONGEST {
            let number = &b"1234567890123456789"[..length];
            assert_eq!(parse_decimal(number), std::str::from_utf8(number).unwrap().parse().ok());
            for place in 0..length {
                for byte in (0..=u8::MAX).filter(|byte| !byte.is_ascii_digit()) {
                    let mut bad = number.to_vec();
                    bad[place] = byte;
                    assert_eq!(parse_decimal(&bad), None, "{bad:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn decimals_are_read_back(number: u64, places in 0..20_u32) {
            let number = number / 10_u64.pow(places);
            prop_assert_eq!(parse_decimal(number.to_string().as_bytes()), i64::try_from(number).ok());
        }
    }
}
