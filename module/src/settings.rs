//! What an operator can set: `pmcptask.*` in `CONFIG` and `redis.conf`, or arguments of `loadmodule`.

use std::sync::atomic::{AtomicI64, Ordering};

use pmcptask_schema::parse_decimal;

use crate::server::{Arguments, Context, NumericSetting, load_settings, register_number};

/// Largest record that PUT and CAS take, in bytes: 16 MiB unless set otherwise. The server's own
/// `proto-max-bulk-len` (512 MB) holds as well.
pub(crate) static MAX_RECORD_BYTES: NumericSetting = NumericSetting {
    name: c"max-record-bytes",
    lowest: 1,
    highest: i64::MAX,
    value: AtomicI64::new(16 * 1024 * 1024),
};

/// In debug builds only: 1 makes every entry point of the module panic, so that a test can see that none
/// of these panics does any harm.
#[cfg(debug_assertions)]
static DEBUG_PANIC: NumericSetting =
    NumericSetting { name: c"debug-panic", lowest: 0, highest: 1, value: AtomicI64::new(0) };

/// Panics where a test has asked for it; nothing in release builds.
#[inline]
pub(crate) fn panic_if_asked() {
    #[cfg(debug_assertions)]
    assert!(DEBUG_PANIC.get() == 0, "asked for with pmcptask.debug-panic");
}

/// Registers the settings. Arguments of `loadmodule` come in pairs, `max-record-bytes 1048576`, and are
/// defaults: `redis.conf` has the last word.
///
/// # Errors
///
/// The sentence for the log that says what is wrong.
pub(crate) fn register(context: &Context, arguments: &Arguments<'_>) -> Result<(), String> {
    let mut arguments = arguments.bytes_from(0);
    while let Some(name) = arguments.next() {
        if !name.eq_ignore_ascii_case(MAX_RECORD_BYTES.name.to_bytes()) {
            return Err(format!(
                "module argument: expected max-record-bytes, came '{}'",
                name.escape_ascii()
            ));
        }
        let value = arguments.next().unwrap_or_default();
        let bytes =
            parse_bytes(value).filter(|bytes| *bytes >= MAX_RECORD_BYTES.lowest).ok_or_else(|| {
                let value = value.escape_ascii();
                format!(
                    "max-record-bytes: expected a number of bytes from 1, like 65536 or 16mb, came '{value}'"
                )
            })?;
        MAX_RECORD_BYTES.value.store(bytes, Ordering::Relaxed);
    }
    #[cfg(debug_assertions)]
    if !register_number(context, &DEBUG_PANIC) {
        return Err("the server refuses the setting debug-panic".to_owned());
    }
    if register_number(context, &MAX_RECORD_BYTES) && load_settings(context) {
        Ok(())
    } else {
        Err("the server refuses its settings; the line above says why".to_owned())
    }
}

/// Reads a number of bytes as `redis.conf` writes it: with a unit, of which `k` is 1000 and `kb` 1024.
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
