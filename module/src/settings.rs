//! What an operator can set: `pmcptask.*` in `CONFIG` and `redis.conf`, or arguments of `loadmodule`.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::server::{Arguments, Context, NumericSetting, load_settings, register_number};

/// Largest record that PUT and CAS take, in bytes: 16 MiB unless set otherwise. The server's own
/// `proto-max-bulk-len` (512 MB) holds as well.
pub(crate) static MAX_RECORD_BYTES: NumericSetting = NumericSetting {
    name: c"max-record-bytes",
    lowest: 1,
    highest: i64::MAX,
    value: AtomicI64::new(16 * 1024 * 1024),
};

/// Registers the settings. Arguments of `loadmodule` come in pairs, `max-record-bytes 1048576`, and are
/// defaults: `redis.conf` has the last word.
///
/// # Errors
///
/// The sentence for the log that says what is wrong.
pub(crate) fn register(context: &Context, arguments: &Arguments<'_>) -> Result<(), String> {
    let mut arguments = arguments.from(0);
    while let Some(name) = arguments.next() {
        if !name.eq_ignore_ascii_case(MAX_RECORD_BYTES.name.to_bytes()) {
            return Err(format!(
                "module argument: expected max-record-bytes, came '{}'",
                name.escape_ascii()
            ));
        }
        let value = arguments.next().unwrap_or_default();
        let bytes = pmcptask_schema::parse_decimal(value)
            .filter(|bytes| *bytes >= MAX_RECORD_BYTES.lowest)
            .ok_or_else(|| {
            format!("max-record-bytes: expected a number of bytes from 1, came '{}'", value.escape_ascii())
        })?;
        MAX_RECORD_BYTES.value.store(bytes, Ordering::Relaxed);
    }
    if register_number(context, &MAX_RECORD_BYTES) && load_settings(context) {
        Ok(())
    } else {
        Err("the server refuses its settings; the line above says why".to_owned())
    }
}
