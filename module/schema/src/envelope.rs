//! The two moments that a JSON record carries: `expiresAt` and `task.createdAt`.
//!
//! A record is opaque to this project but for these. Everything else in it is skipped without being
//! decoded, at any depth of nesting, so a record costs one pass over its bytes and one more to see that they are
//! UTF-8. Memory is taken for what is nested, a byte a level, for names and moments with escapes, and to tell that a
//! text is no JSON.

use std::fmt;

use chrono::DateTime;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// When a record says that its task was created and expires, both in ms since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// Top-level `expiresAt`; parts of a millisecond count as a whole one. None: never expires. An error
    /// where it is present and neither null nor an RFC 3339 timestamp.
    pub expires_at_ms: Result<Option<i64>, ExpiryError>,
    /// `task.createdAt`, where it is a timestamp not before the epoch. Anything else is passed over,
    /// because a task has a creation time without it.
    pub created_at_ms: Option<i64>,
}

/// The record has an `expiresAt` from which no moment can be read. Tells the kind of value that came,
/// never the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expiresAt of the record: expected an RFC 3339 timestamp or null, came {came}")]
pub struct ExpiryError {
    came: &'static str,
}

impl Envelope {
    /// The envelope of a record that says nothing.
    const EMPTY: Self = Self { expires_at_ms: Ok(None), created_at_ms: None };

    /// Reads the envelope of a record.
    ///
    /// A record that is no JSON object (other JSON, truncated JSON, text other than UTF-8, any other bytes) has an empty
    /// envelope. Of a member that stands twice the last one counts, as in `serde_json::Value`.
    #[must_use]
    pub fn read(record: &[u8]) -> Self {
        // Most records that are no JSON object show it in their first byte.
        if record.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Self::EMPTY;
        }
        // Text other than UTF-8 is no JSON. To find that out once for all takes less than to ask for each string.
        let members = str::from_utf8(record).ok().and_then(|record| serde_json::from_str(record).ok());
        let Some(Members { expires_at, created_at }) = members else { return Self::EMPTY };
        let expires_at_ms = match expires_at {
            Moment::Absent => Ok(None),
            Moment::At(at) => Ok(Some(at.ms_rounded_up())),
            Moment::Unreadable(came) => Err(ExpiryError { came }),
        };
        let created_at_ms = match created_at {
            Moment::At(at) => Some(at.ms_rounded_down()).filter(|ms| *ms >= 0),
            Moment::Absent | Moment::Unreadable(_) => None,
        };
        Self { expires_at_ms, created_at_ms }
    }
}

/// The members of a record that are looked at.
#[derive(Default)]
struct Members {
    expires_at: Moment,
    created_at: Moment,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Record;
        impl<'de> Visitor<'de> for Record {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Members::default();
                while let Some(name) = map.next_key()? {
                    match name {
                        Name::ExpiresAt => members.expires_at = map.next_value()?,
                        Name::Task => members.created_at = map.next_value::<Task>()?.created_at,
                        Name::CreatedAt | Name::Other => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Record)
    }
}

/// The `task` member: an object with `createdAt`, or anything else, which has none.
#[derive(Default)]
struct Task {
    created_at: Moment,
}

impl<'de> Deserialize<'de> for Task {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue(TaskObject))
    }
}

struct TaskObject;

impl<'de> FromJson<'de> for TaskObject {
    type Value = Task;

    fn map<A: MapAccess<'de>>(self, mut map: A) -> Result<Task, A::Error> {
        let mut task = Task::default();
        while let Some(name) = map.next_key()? {
            if matches!(name, Name::CreatedAt) {
                task.created_at = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(task)
    }

    fn null(self) -> Task {
        Task::default()
    }

    fn string(self, _: &str) -> Task {
        Task::default()
    }

    fn other(self, _: &'static str) -> Task {
        Task::default()
    }
}

/// The value of a member that should be a timestamp.
#[derive(Default)]
enum Moment {
    #[default]
    Absent,
    At(Timestamp),
    /// Something else; the text names the kind of value.
    Unreadable(&'static str),
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue(MomentValue))
    }
}

struct MomentValue;

impl<'de> FromJson<'de> for MomentValue {
    type Value = Moment;

    fn map<A: MapAccess<'de>>(self, mut map: A) -> Result<Moment, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Moment::Unreadable("an object"))
    }

    fn null(self) -> Moment {
        Moment::Absent
    }

    fn string(self, text: &str) -> Moment {
        Timestamp::parse(text).map_or(Moment::Unreadable("another string"), Moment::At)
    }

    fn other(self, kind: &'static str) -> Moment {
        Moment::Unreadable(kind)
    }
}

/// What to make of a JSON value of each kind.
trait FromJson<'de> {
    type Value;
    fn map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error>;
    fn null(self) -> Self::Value;
    fn string(self, text: &str) -> Self::Value;
    fn other(self, kind: &'static str) -> Self::Value;
}

/// Takes any JSON value, so that an unexpected kind is an answer and not a parse error.
struct AnyValue<F>(F);

impl<'de, F: FromJson<'de>> Visitor<'de> for AnyValue<F> {
    type Value = F::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<F::Value, A::Error> {
        self.0.map(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<F::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self.0.other("an array"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<F::Value, E> {
        Ok(self.0.string(text))
    }

    fn visit_unit<E: de::Error>(self) -> Result<F::Value, E> {
        Ok(self.0.null())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<F::Value, E> {
        Ok(self.0.other("a boolean"))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<F::Value, E> {
        Ok(self.0.other("a number"))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<F::Value, E> {
        Ok(self.0.other("a number"))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<F::Value, E> {
        Ok(self.0.other("a number"))
    }
}

/// The names of members that matter here.
enum Name {
    ExpiresAt,
    Task,
    CreatedAt,
    Other,
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MemberName;
        impl Visitor<'_> for MemberName {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a member")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Name, E> {
                Ok(match name {
                    "expiresAt" => Name::ExpiresAt,
                    "task" => Name::Task,
                    "createdAt" => Name::CreatedAt,
                    _ => Name::Other,
                })
            }
        }
        deserializer.deserialize_str(MemberName)
    }
}

/// A moment, to the nanosecond.
#[derive(Clone, Copy)]
struct Timestamp {
    seconds: i64,
    nanos: i64,
}

impl Timestamp {
    fn parse(text: &str) -> Option<Self> {
        let moment = DateTime::parse_from_rfc3339(text).ok()?;
        Some(Self { seconds: moment.timestamp(), nanos: i64::from(moment.timestamp_subsec_nanos()) })
    }

    fn ms_rounded_down(self) -> i64 {
        self.seconds.saturating_mul(1000).saturating_add(self.nanos.div_euclid(1_000_000))
    }

    fn ms_rounded_up(self) -> i64 {
        self.ms_rounded_down().saturating_add(i64::from(self.nanos.rem_euclid(1_000_000) != 0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn expiry(record: &str) -> Option<i64> {
        Envelope::read(record.as_bytes()).expires_at_ms.unwrap()
    }

    #[test]
    fn moments_of_a_task_record_are_found() {
        let record = br#"{"task":{"taskId":"t","createdAt":"2026-11-21T10:00:00.123Z"},
            "ownerId":"o","variables":{"expiresAt":"1999-01-01T00:00:00Z"},"expiresAt":"2026-11-21T11:00:00Z"}"#;
        assert_eq!(
            Envelope::read(record),
            Envelope { expires_at_ms: Ok(Some(1_795_258_800_000)), created_at_ms: Some(1_795_255_200_123) }
        );
    }

    #[test]
    fn part_of_a_millisecond_of_the_expiry_counts_as_a_whole_one() {
        assert_eq!(expiry(r#"{"expiresAt":"1970-01-01T00:00:01.000000001Z"}"#), Some(1_001));
        assert_eq!(expiry(r#"{"expiresAt":"1970-01-01T00:00:01.001Z"}"#), Some(1_001));
        assert_eq!(expiry(r#"{"expiresAt":"1969-12-31T23:59:59.9995Z"}"#), Some(0));
    }

    #[test]
    fn offsets_and_escapes_are_understood() {
        assert_eq!(expiry(r#"{"expiresAt":"1970-01-01T02:00:00+02:00"}"#), Some(0));
        assert_eq!(expiry(r#"{"expires\u0041t":"1970-01-01T00:00:01\u005a"}"#), Some(1_000));
    }

    #[test]
    fn absent_or_null_expiry_means_none() {
        for record in ["{}", r#"{"expiresAt":null}"#, r#"{"expires_at":"x","task":{"expiresAt":5}}"#] {
            assert_eq!(expiry(record), None, "{record}");
        }
    }

    #[test]
    fn expiry_that_is_no_timestamp_is_refused() {
        for value in [
            r#""soon""#,
            r#""""#,
            "5",
            "-5",
            "1e400",
            "1.5",
            "true",
            "[]",
            "[[1],{}]",
            "{}",
            r#"{"a":{"b":1}}"#,
            r#""2026-11-21""#,
            r#""2026-11-21T10:00:00""#,
            r#""2026-13-21T10:00:00Z""#,
            r#""2026-11-21T25:00:00Z""#,
        ] {
            let record = format!(r#"{{"expiresAt":{value}}}"#);
            // 1e400 is no JSON number that serde_json can represent, hence no JSON object.
            let read = Envelope::read(record.as_bytes());
            assert!(read.expires_at_ms.is_err() || value == "1e400", "{record}: {read:?}");
        }
    }

    #[test]
    fn creation_time_stands_beside_an_unreadable_expiry() {
        let read = Envelope::read(br#"{"expiresAt":"soon","task":{"createdAt":"1970-01-01T00:00:01Z"}}"#);
        assert!(read.expires_at_ms.is_err());
        assert_eq!(read.created_at_ms, Some(1_000));
    }

    #[test]
    fn anything_but_a_json_object_has_an_empty_envelope() {
        for record in [
            &b""[..],
            b" ",
            b"null",
            b"[]",
            b"\"x\"",
            b"{",
            b"{\"expiresAt\":5",
            b"{}x",
            b"{\"expiresAt\":nul}",
            b"\0{}",
            b"\xff\xfe",
            b"{\"\xff\":1,\"expiresAt\":\"soon\"}",
            b"{\"a\":\"\xff\",\"expiresAt\":\"soon\"}",
        ] {
            assert_eq!(Envelope::read(record), Envelope::EMPTY, "{record:?}");
        }
    }

    #[test]
    fn last_of_two_members_counts() {
        assert_eq!(expiry(r#"{"expiresAt":"soon","expiresAt":"1970-01-01T00:00:01Z"}"#), Some(1_000));
        assert_eq!(expiry(r#"{"expiresAt":"1970-01-01T00:00:01Z","expiresAt":null}"#), None);
        let created = |record: &str| Envelope::read(record.as_bytes()).created_at_ms;
        let first = r#"{"task":{"createdAt":"1970-01-01T00:00:01Z"},"#;
        assert_eq!(
            created(&format!(r#"{first}"task":{{"createdAt":"1970-01-01T00:00:02Z"}}}}"#)),
            Some(2_000)
        );
        for second in ["5", "{}", "null", r#"{"createdAt":null}"#] {
            assert_eq!(created(&format!(r#"{first}"task":{second}}}"#)), None, "{second}");
        }
    }

    #[test]
    fn creation_time_that_is_no_timestamp_is_passed_over() {
        for task in [
            "null",
            "5",
            "[]",
            r#""x""#,
            "{}",
            r#"{"createdAt":null}"#,
            r#"{"createdAt":7}"#,
            r#"{"createdAt":"x"}"#,
            r#"{"createdAt":"1969-01-01T00:00:00Z"}"#,
            r#"{"createdAt":{"createdAt":"x"}}"#,
        ] {
            let record = format!(r#"{{"task":{task}}}"#);
            assert_eq!(Envelope::read(record.as_bytes()), Envelope::EMPTY, "{record}");
        }
    }

    #[test]
    fn nesting_of_any_depth_is_skipped() {
        let deep = format!(
            r#"{{"a":{}{},"expiresAt":"1970-01-01T00:00:01Z"}}"#,
            "[".repeat(200_000),
            "]".repeat(200_000)
        );
        assert_eq!(expiry(&deep), Some(1_000));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(record: Vec<u8>) {
            let _ = Envelope::read(&record);
        }

        #[test]
        fn every_moment_written_in_rfc_3339_is_read_back(ms in 0_i64..253_402_300_799_999) {
            let text = DateTime::from_timestamp_millis(ms).unwrap().format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
            prop_assert_eq!(expiry(&format!(r#"{{"expiresAt":"{text}"}}"#)), Some(ms));
        }
    }
}
