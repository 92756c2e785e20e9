//! Any bytes have an envelope, and the envelope matches what a full JSON parser finds.
#![no_main]

use chrono::{DateTime, FixedOffset};
use libfuzzer_sys::fuzz_target;
use pmcptask_schema::Envelope;
use serde_json::Value;

fuzz_target!(|record: &[u8]| {
    let envelope = Envelope::read(record);
    // The full parser rejects more (deep nesting, large numbers, lone surrogates). Whatever it
    // accepts must agree.
    let Ok(Value::Object(members)) = serde_json::from_slice(record) else { return };
    match members.get("expiresAt") {
        None | Some(Value::Null) => assert_eq!(envelope.expires_at_ms, Ok(None)),
        Some(value) => match moment(value) {
            Some((ms, has_rest)) => assert_eq!(envelope.expires_at_ms, Ok(Some(ms + i64::from(has_rest)))),
            None => assert!(envelope.expires_at_ms.is_err()),
        },
    }
    let created = members.get("task").and_then(|task| task.as_object()?.get("createdAt")).and_then(moment);
    let scores = 0..=pmcptask_schema::MAX_CREATED_MS;
    assert_eq!(envelope.created_at_ms, created.map(|(ms, _)| ms).filter(|ms| scores.contains(ms)));
});

/// A timestamp in whole ms, and whether it has a sub-millisecond part.
fn moment(value: &Value) -> Option<(i64, bool)> {
    let text = value.as_str()?;
    let moment =
        if text.starts_with('+') { beyond_9999(text)? } else { DateTime::parse_from_rfc3339(text).ok()? };
    Some((moment.timestamp_millis(), moment.timestamp_subsec_nanos() % 1_000_000 != 0))
}

/// A timestamp with a year of more than four digits, read by chrono's lenient parser. Everything after the
/// year has to pass the strict parser.
fn beyond_9999(text: &str) -> Option<DateTime<FixedOffset>> {
    let (year, rest) = text.split_at(text.find('-')?);
    let is_year = matches!(year.len(), 6 | 7) && year.bytes().skip(1).all(|byte| byte.is_ascii_digit());
    let is_written_well =
        is_year && !year.starts_with("+0") && DateTime::parse_from_rfc3339(&format!("2000{rest}")).is_ok();
    if is_written_well { text.parse().ok() } else { None }
}
