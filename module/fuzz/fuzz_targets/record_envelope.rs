//! Any bytes have an envelope, and it is what a reader of the whole JSON would find.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pmcptask_schema::Envelope;
use serde_json::Value;

fuzz_target!(|record: &[u8]| {
    let envelope = Envelope::read(record);
    // The whole reader refuses more (deep nesting, large numbers, broken UTF-8); what it takes must agree.
    let Ok(Value::Object(members)) = serde_json::from_slice(record) else { return };
    match members.get("expiresAt") {
        None | Some(Value::Null) => assert_eq!(envelope.expires_at_ms, Ok(None)),
        Some(value) => match moment(value) {
            Some((ms, has_rest)) => assert_eq!(envelope.expires_at_ms, Ok(Some(ms + i64::from(has_rest)))),
            None => assert!(envelope.expires_at_ms.is_err()),
        },
    }
    let created = members.get("task").and_then(|task| task.as_object()?.get("createdAt")).and_then(moment);
    assert_eq!(envelope.created_at_ms, created.map(|(ms, _)| ms).filter(|ms| *ms >= 0));
});

/// Whole ms of a timestamp, and whether there is more of it.
fn moment(value: &Value) -> Option<(i64, bool)> {
    let moment = chrono::DateTime::parse_from_rfc3339(value.as_str()?).ok()?;
    Some((moment.timestamp_millis(), moment.timestamp_subsec_nanos() % 1_000_000 != 0))
}
