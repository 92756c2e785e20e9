//! What a stored MCP task looks like from outside: the names of its keys, the fields of its hash and
//! the few members of its record that decide when it was created and when it expires.
//!
//! Server module, client and tests all rely on these names and rules, so they are written here once.
//! Nothing in this crate talks to a server or a network.
//!
//! | key | type | holds |
//! |---|---|---|
//! | `{prefix}:tasks:{owner}:{task-id}` | hash | [`fields`] |
//! | `{prefix}:idx:{owner}` | sorted set | member: task id; score: creation time, ms since the epoch |

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
    /// Expiry in seconds since the epoch, rounded up; absent where the task does not expire.
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

/// Whether a stored [`fields::EXPIRES_AT`] is past: from the millisecond after it on, as the server takes a
/// key's own expiry. One that is no integer says nothing.
#[must_use]
pub fn is_past(expires_at: &[u8], now_ms: i64) -> bool {
    match expires_at {
        // Before the epoch.
        [b'-', digits @ ..] => parse_decimal(digits).is_some(),
        digits => parse_decimal(digits).is_some_and(|seconds| seconds.saturating_mul(1000) < now_ms),
    }
}

/// Reads a stored version: a positive integer up to 2^63-1 in the form that this schema writes, with
/// no sign, space or leading zero.
#[must_use]
pub fn parse_version(stored: &[u8]) -> Option<i64> {
    let version = parse_decimal(stored)?;
    (version > 0).then_some(version)
}

/// The digits of 2^63-1.
const LONGEST: usize = 19;

/// Reads a decimal integer from 0 to 2^63-1, with no sign, space or leading zero.
#[must_use]
pub fn parse_decimal(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > LONGEST || matches!(digits, [b'0', _, ..]) {
        return None;
    }
    let mut value = 0_u64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        // Cannot wrap: as many digits as that are below 2^64.
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
    }
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
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
        for (expires_at, past) in [
            ("1", true),
            ("2", true),
            ("3", false),
            ("-5", true),
            ("0", true),
            ("", false),
            ("soon", false),
            ("-", false),
        ] {
            assert_eq!(is_past(expires_at.as_bytes(), 2_001), past, "{expires_at:?}");
        }
        assert!(!is_past(b"2", 2_000));
    }

    #[test]
    fn version_is_a_positive_integer_in_its_one_form() {
        assert_eq!(parse_version(b"1"), Some(1));
        assert_eq!(parse_version(b"9223372036854775807"), Some(i64::MAX));
        for bad in ["", "0", "01", "+1", "-1", " 1", "1 ", "1.0", "1e3", "9223372036854775808", "x"] {
            assert_eq!(parse_version(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
