//! Times and lengths of time, as people and programs read them.

use chrono::{DateTime, SecondsFormat, Utc};

/// The time of this machine, in ms since the epoch.
pub(crate) fn now_ms() -> i64 {
    Utc::now().timestamp_millis()
}

/// A time as a timestamp; none if no timestamp can hold it.
pub(crate) fn timestamp(ms: i64) -> Option<String> {
    Some(DateTime::from_timestamp_millis(ms)?.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// A time in a table, to the second.
pub(crate) fn time(ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(ms);
    time.map_or_else(|| "-".to_owned(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// A length of time in a table, in its largest unit; nothing is rounded up.
pub(crate) fn length(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// When a task expires, by its record.
pub(crate) fn expiry(expires_ms: Option<i64>, now_ms: i64) -> String {
    expires_ms.map_or_else(|| "-".to_owned(), |at| format!("in {}", length(at.saturating_sub(now_ms))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_told_in_its_largest_unit() {
        let told = [-5, 999, 59_999, 60_000, 3_599_999, 3_600_000, 172_799_999, 172_800_000].map(length);
        assert_eq!(told, ["0s", "0s", "59s", "1m", "59m", "1h", "47h", "2d"]);
    }
}
