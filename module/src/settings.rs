//! What an operator can set: `pmcptask.*` in `CONFIG` and `redis.conf`, or arguments of `loadmodule`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pmcptask_schema::{Keyspace, parse_decimal};

use crate::server::{Arguments, Context, NumericSetting, Switch, TextSetting, load_settings};

/// Largest record that PUT and CAS accept, in bytes; default 16 MiB. The server's own `proto-max-bulk-len`
/// (512 MB) applies too.
pub(crate) static MAX_RECORD_BYTES: NumericSetting = NumericSetting {
    name: c"max-record-bytes",
    lowest: 1,
    highest: i64::MAX,
    is_size: true,
    value: AtomicI64::new(16 * 1024 * 1024),
};

/// Whether the module removes index entries of tasks that ended without a command of this module.
pub(crate) static RECLAIM: Switch = Switch { name: c"reclaim", is_on: AtomicBool::new(true) };

/// Prefixes in use besides `pmcp`, in every database, separated by spaces.
static PREFIXES: TextSetting = TextSetting::new(c"prefixes", set_prefixes);
static PREFIXES_IN_USE: Mutex<BTreeSet<Vec<u8>>> = Mutex::new(BTreeSet::new());

fn set_prefixes(text: &[u8]) -> Result<(), String> {
    let mut prefixes = BTreeSet::new();
    for prefix in text.split(u8::is_ascii_whitespace).filter(|prefix| !prefix.is_empty()) {
        let name =
            str::from_utf8(prefix).map_err(|_| "prefixes: expected UTF-8, got other bytes".to_owned())?;
        Keyspace::new(name).map_err(|error| format!("prefixes: {error}"))?;
        prefixes.insert(prefix.to_vec());
    }
    *PREFIXES_IN_USE.lock().unwrap_or_else(PoisonError::into_inner) = prefixes;
    Ok(())
}

/// Whether keys with this prefix belong to this module in every database: `pmcp` and those of the
/// setting `prefixes`.
pub(crate) fn names_prefix(prefix: &[u8]) -> bool {
    prefix == Keyspace::DEFAULT_PREFIX.as_bytes()
        || PREFIXES_IN_USE.lock().unwrap_or_else(PoisonError::into_inner).contains(prefix)
}

/// The prefixes of the setting `prefixes`.
pub(crate) fn prefixes() -> Vec<Vec<u8>> {
    PREFIXES_IN_USE.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// The pace of a walk through the indexes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// How long after the end of a walk the next walk starts.
    pub(crate) rest: Duration,
    /// The walk's share of the server's time.
    pub(crate) share: f64,
    /// Time limit of a step, so that no command waits long for it.
    pub(crate) longest_step: Duration,
}

/// The pace of walks; faster if a test has asked for it.
pub(crate) fn pace() -> Pace {
    #[cfg(debug_assertions)]
    if let ms @ 1.. = DEBUG_WALK_REST_MS.get() {
        let rest = Duration::from_millis(ms.cast_unsigned());
        return Pace { rest, share: 0.5, longest_step: Duration::from_millis(100) };
    }
    Pace { rest: Duration::from_mins(15), share: 0.01, longest_step: Duration::from_millis(1) }
}

/// In debug builds only: 1 makes the module's commands, event handlers and timers panic, so that a test can
/// check that no such panic does harm.
#[cfg(debug_assertions)]
static DEBUG_PANIC: NumericSetting =
    NumericSetting { name: c"debug-panic", lowest: 0, highest: 1, is_size: false, value: AtomicI64::new(0) };

/// In debug builds only: the rest between walks in ms, so that a test need not wait a quarter of an hour. A
/// walk then gets half of the server's time. 0 keeps the normal pace.
#[cfg(debug_assertions)]
static DEBUG_WALK_REST_MS: NumericSetting = NumericSetting {
    name: c"debug-walk-rest-ms",
    lowest: 0,
    highest: i64::MAX,
    is_size: false,
    value: AtomicI64::new(0),
};

/// Panics if a test has asked for it; does nothing in release builds.
#[inline]
pub(crate) fn panic_if_asked() {
    #[cfg(debug_assertions)]
    assert!(DEBUG_PANIC.get() == 0, "asked for with pmcptask.debug-panic");
}

/// Registers the settings. Arguments of `loadmodule` come in pairs, such as `max-record-bytes 1048576`. They
/// are defaults: `redis.conf` overrides them.
///
/// # Errors
///
/// The sentence for the log that says what is wrong.
pub(crate) fn register(context: &Context, arguments: &Arguments<'_>) -> Result<(), String> {
    let mut arguments = arguments.bytes_from(0);
    while let Some(name) = arguments.next() {
        if !name.eq_ignore_ascii_case(MAX_RECORD_BYTES.name.to_bytes()) {
            return Err(format!("module argument: expected max-record-bytes, got '{}'", name.escape_ascii()));
        }
        let value = arguments.next().unwrap_or_default();
        let bytes =
            parse_bytes(value).filter(|bytes| *bytes >= MAX_RECORD_BYTES.lowest).ok_or_else(|| {
                let value = value.escape_ascii();
                format!(
                    "max-record-bytes: expected a number of bytes from 1, like 65536 or 16mb, got '{value}'"
                )
            })?;
        MAX_RECORD_BYTES.value.store(bytes, Ordering::Relaxed);
    }
    #[cfg(debug_assertions)]
    if !DEBUG_PANIC.register(context) || !DEBUG_WALK_REST_MS.register(context) {
        return Err("the server refuses the settings for tests".to_owned());
    }
    let registered =
        MAX_RECORD_BYTES.register(context) && RECLAIM.register(context) && PREFIXES.register(context);
    if registered && load_settings(context) {
        Ok(())
    } else {
        Err("the server refuses its settings; the line above says why".to_owned())
    }
}

/// Reads a number of bytes in the notation of `redis.conf`: the unit `k` is 1000, `kb` is 1024.
fn parse_bytes(value: &[u8]) -> Option<i64> {
    let digits = value.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at_checked(digits)?;
    let factor = match unit.to_ascii_lowercase().as_slice() {
        b"" | b"b" => 1,
        b"k" => 1000,
        b"kb" => 1 << 10,
        b"m" => 1_000_000,
        b"mb" => 1 << 20,
        b"g" => 1_000_000_000,
        b"gb" => 1 << 30,
        _ => return None,
    };
    parse_decimal(number)?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_units_of_redis_conf() {
        for (value, bytes) in [
            ("1", Some(1)),
            ("5B", Some(5)),
            ("2k", Some(2000)),
            ("2kb", Some(2048)),
            ("16MB", Some(16 << 20)),
        ] {
            assert_eq!(parse_bytes(value.as_bytes()), bytes, "{value}");
        }
        for value in ["", "mb", "-1", "1.5mb", "1 mb", "1tb", "9223372036854775807kb"] {
            assert_eq!(parse_bytes(value.as_bytes()), None, "{value}");
        }
    }
}
