//! The two timestamps that a JSON record carries: `expiresAt` and `task.createdAt`.
//!
//! The rest of a record is opaque to this project. The grammar of RFC 8259 alone decides whether a record is
//! JSON. Other members are skipped without being interpreted, so no number is too large, no nesting too deep
//! and no escape too odd. Reading a record takes one pass over its bytes to check that they are UTF-8 and one
//! to parse them. Memory is allocated only for nesting (a byte per level), for names and timestamps with
//! escapes, for years beyond 9999, and for the error if a text is not JSON.

use std::borrow::Cow;
use std::fmt;

use chrono::DateTime;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{MAX_CREATED_MS, parse_decimal};

/// The creation and expiry times that a record states, in ms since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Envelope {
    /// Top-level `expiresAt`, rounded up to a whole millisecond. None: never expires. An error if it is
    /// present and is neither null nor an RFC 3339 timestamp. RFC 3339 has no form for years beyond 9999;
    /// these are read as chrono writes them, with five or six digits: `+10265-12-22T10:00:00Z`.
    pub expires_at_ms: Result<Option<i64>, ExpiryError>,
    /// `task.createdAt`, if it is a timestamp from the epoch to [`MAX_CREATED_MS`]. Anything else is ignored,
    /// because a task gets a creation time without it too.
    pub created_at_ms: Option<i64>,
}

/// The record's `expiresAt` is not a timestamp. The error names the kind of value, never the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expiresAt of the record: expected an RFC 3339 timestamp or null, got {got}")]
pub struct ExpiryError {
    got: &'static str,
}

impl Envelope {
    /// The envelope of a record that states neither time.
    const EMPTY: Self = Self { expires_at_ms: Ok(None), created_at_ms: None };

    /// Reads the envelope of a record.
    ///
    /// A record that is not a JSON object (other JSON, truncated JSON, a byte-order mark, text other than
    /// UTF-8, any other bytes) has an empty envelope. Names are compared after unescaping. If a member occurs
    /// twice, the last one counts, as in `serde_json::Value`.
    #[must_use]
    pub fn read(record: &[u8]) -> Self {
        // The first byte rules out most records that are not a JSON object.
        if record.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Self::EMPTY;
        }
        // JSON must be UTF-8. One check of the whole record is cheaper than one per string.
        let Some(members) = str::from_utf8(record).ok().and_then(Members::of_record) else {
            return Self::EMPTY;
        };
        let expires_at_ms = match members.expires_at.map_or(TimestampValue::Absent, TimestampValue::read) {
            TimestampValue::Absent => Ok(None),
            TimestampValue::At(at) => Ok(Some(at.ms_rounded_up())),
            TimestampValue::Unreadable(got) => Err(ExpiryError { got }),
        };
        let created_at_ms = match members.created_at.map(TimestampValue::read) {
            Some(TimestampValue::At(at)) => {
                Some(at.ms_rounded_down()).filter(|ms| (0..=MAX_CREATED_MS).contains(ms))
            }
            _ => None,
        };
        Self { expires_at_ms, created_at_ms }
    }
}

/// The raw text of the members that are needed.
#[derive(Default)]
struct Members<'a> {
    expires_at: Option<&'a RawValue>,
    /// `task.createdAt`.
    created_at: Option<&'a RawValue>,
}

impl<'a> Members<'a> {
    /// None if the text is not a JSON object.
    fn of_record(text: &'a str) -> Option<Self> {
        let mut json = serde_json::Deserializer::from_str(text);
        let members = Object { text, is_task: false }.deserialize(&mut json).ok()?;
        json.end().ok().map(|()| members)
    }
}

/// Reads the members of a record, or of its task.
struct Object<'a> {
    /// The whole record.
    text: &'a str,
    is_task: bool,
}

impl<'a> DeserializeSeed<'a> for Object<'a> {
    type Value = Members<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Members<'a>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Object<'a> {
    type Value = Members<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Members<'a>, A::Error> {
        let mut members = Members::default();
        // Raw text, because the grammar allows a lone surrogate, which a Rust string cannot hold.
        while let Some(name) = map.next_key::<&RawValue>()? {
            match (string(name).as_deref(), self.is_task) {
                (Some("expiresAt"), false) => members.expires_at = Some(map.next_value()?),
                (Some("createdAt"), true) => members.created_at = Some(map.next_value()?),
                (Some("task"), false) => {
                    members.created_at = None;
                    if self.is_object_after(name) {
                        let task = Self { text: self.text, is_task: true };
                        members.created_at = map.next_value_seed(task)?.created_at;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(members)
    }
}

impl Object<'_> {
    /// Whether a member's value is an object. This is checked first because the parser cannot continue after
    /// being asked for an object and finding another value.
    fn is_object_after(&self, name: &RawValue) -> bool {
        let end = name.get().as_bytes().as_ptr_range().end.addr();
        let rest = self.text.get(end.wrapping_sub(self.text.as_ptr().addr())..);
        rest.is_some_and(|rest| rest.trim_start_matches([' ', '\t', '\n', '\r', ':']).starts_with('{'))
    }
}

/// The unescaped text of a JSON string. None if it has a lone surrogate or is not a string.
fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    let plain = value.get().strip_prefix('"')?.strip_suffix('"')?;
    if plain.contains('\\') { serde_json::from_str(value.get()).ok() } else { Some(Cow::Borrowed(plain)) }
}

/// The value of a member that should be a timestamp.
enum TimestampValue {
    Absent,
    At(Timestamp),
    /// Something else; the text names the kind of value.
    Unreadable(&'static str),
}

impl TimestampValue {
    fn read(value: &RawValue) -> Self {
        // The text is valid JSON, so its first byte tells the kind of value.
        Self::Unreadable(match value.get().as_bytes().first() {
            Some(b'n') => return Self::Absent,
            Some(b'"') => match string(value).as_deref().and_then(Timestamp::parse) {
                Some(at) => return Self::At(at),
                None => "another string",
            },
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b't' | b'f') => "a boolean",
            _ => "a number",
        })
    }
}

/// A timestamp with nanosecond precision.
#[derive(Clone, Copy)]
struct Timestamp {
    seconds: i64,
    nanos: i64,
}

/// The length of the calendar's cycle, in years and in seconds.
const CYCLE_YEARS: i64 = 400;
const CYCLE_SECONDS: i64 = 146_097 * 86_400;

impl Timestamp {
    /// Reads RFC 3339 and also years beyond 9999, which chrono's RFC 3339 parser rejects.
    fn parse(text: &str) -> Option<Self> {
        let Some(signed) = text.strip_prefix('+') else { return Self::parse_rfc3339(text) };
        let (year, rest) = signed.split_once('-')?;
        let year = parse_decimal(year.as_bytes()).filter(|year| (10_000..1_000_000).contains(year))?;
        // The same day in an earlier cycle, with a year of four digits.
        let earlier = year.rem_euclid(CYCLE_YEARS).wrapping_add(2_000);
        let cycles = year.wrapping_sub(earlier).div_euclid(CYCLE_YEARS);
        let Self { seconds, nanos } = Self::parse_rfc3339(&format!("{earlier}-{rest}"))?;
        Some(Self { seconds: seconds.wrapping_add(cycles.wrapping_mul(CYCLE_SECONDS)), nanos })
    }

    fn parse_rfc3339(text: &str) -> Option<Self> {
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
    fn times_of_a_task_record_are_found() {
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
            let read = Envelope::read(record.as_bytes());
            assert!(read.expires_at_ms.is_err(), "{record}: {read:?}");
        }
    }

    #[test]
    fn refused_expiry_is_called_by_the_kind_of_its_value() {
        for (value, kind) in [
            ("1e400", "a number"),
            ("-0", "a number"),
            ("false", "a boolean"),
            ("[]", "an array"),
            ("{}", "an object"),
            (r#""soon""#, "another string"),
            (r#""\ud800""#, "another string"),
        ] {
            let read = Envelope::read(format!(r#"{{"expiresAt": {value} }}"#).as_bytes());
            assert_eq!(read.expires_at_ms, Err(ExpiryError { got: kind }), "{value}");
        }
    }

    /// Values that the grammar allows but that JSON parsers are known to trip over.
    fn odd_values() -> Vec<String> {
        let digits = "9".repeat(10_000);
        let deep = |open: &str, close: &str| format!("{}0{}", open.repeat(200_000), close.repeat(200_000));
        let mut values =
            vec![deep("[", "]"), deep(r#"{"a":"#, "}"), deep(r#"{"task":"#, "}"), digits.clone()];
        values.extend([
            format!("-{digits}.{digits}e-{digits}"),
            format!("1e{digits}"),
            format!("0.{digits}"),
        ]);
        values.extend(
            ["1e400", "-1E+400", "1e-400", "-0", "0e0", "null", "true", "[ ]", "{ }"].map(String::from),
        );
        let strings =
            [r"\ud800", r"\udc00\ud800", r"\ud800x", r"\uD83D\uDE00", r"\u0000", r#"\"\\\/\b\f\n\r\t"#];
        values.extend(strings.map(|string| format!(r#""{string}""#)));
        values.extend(strings.map(|string| format!(r#"{{"{string}":["{string}"]}}"#)));
        values.extend(["\u{7f}\u{2028}\u{feff}\u{10ffff}", "expiresAt"].map(|text| format!(r#""{text}""#)));
        values
    }

    #[test]
    fn nothing_else_in_a_record_hides_its_times() {
        let times = r#""expiresAt":"1970-01-01T00:00:01Z","task":{"createdAt":"1970-01-01T00:00:02Z"}"#;
        let found = Envelope { expires_at_ms: Ok(Some(1_000)), created_at_ms: Some(2_000) };
        for value in odd_values() {
            let start = value.get(..60).unwrap_or(&value);
            for record in [
                format!(r#"{{"a":{value},{times}}}"#),
                format!(r#"{{{times},"a":{value}}}"#),
                format!(r#"{{"task":{value},"expiresAt":{value},"createdAt":{value},{times}}}"#),
                format!(r#"{{"task":{{"createdAt":{value},"expiresAt":{value},"task":{value}}},{times}}}"#),
            ] {
                assert_eq!(Envelope::read(record.as_bytes()), found, "{start}");
            }
            if value.starts_with('"') {
                let record = format!("{{{value}:0,{times},{value}:null}}");
                let expires_at_ms = if value == r#""expiresAt""# { Ok(None) } else { found.expires_at_ms };
                let found = Envelope { expires_at_ms, ..found };
                assert_eq!(Envelope::read(record.as_bytes()), found, "{start}");
            }
            // An odd value as creation time is ignored, and the expiry is still read.
            let record = format!(r#"{{"expiresAt":"1970-01-01T00:00:01Z","task":{{"createdAt":{value}}}}}"#);
            let found = Envelope { created_at_ms: None, ..found };
            assert_eq!(Envelope::read(record.as_bytes()), found, "{start}");
        }
    }

    #[test]
    fn names_are_compared_after_their_escapes_are_undone() {
        let escaped = |name: &str| {
            name.chars().fold(String::new(), |text, char| text + &format!("\\u{:04X}", u32::from(char)))
        };
        let record = format!(
            r#"{{"{}" : "1970-01-01T00:00:01Z", "{}"	:
                {{"{}":"1970-01-01T00:00:02Z"}}}}"#,
            escaped("expiresAt"),
            escaped("task"),
            escaped("createdAt")
        );
        let found = Envelope { expires_at_ms: Ok(Some(1_000)), created_at_ms: Some(2_000) };
        assert_eq!(Envelope::read(record.as_bytes()), found, "{record}");
        for other in
            [r"expires\\u0041t", r"expiresAt\u0000", r"ExpiresAt", r"expiresAt\ud800", r"\ufeffexpiresAt"]
        {
            assert_eq!(expiry(&format!(r#"{{"{other}":5}}"#)), None, "{other}");
        }
    }

    #[test]
    fn what_the_grammar_does_not_allow_is_no_json() {
        let expiry = r#""expiresAt":"soon""#;
        for record in [
            format!("\u{feff}{{{expiry}}}"),
            format!("{{{expiry},}}"),
            format!("{{{expiry}}} // later"),
            format!("{{{expiry}}}{{}}"),
            format!("\u{c}{{{expiry}}}"),
            format!("{{{expiry},\"a\nb\":1}}"),
            format!("{{{expiry},\"\\u0061\n\":1}}"),
            format!("{{{expiry},\"a\":\"\t\"}}"),
        ] {
            assert_eq!(Envelope::read(record.as_bytes()), Envelope::EMPTY, "{record:?}");
        }
        for value in [
            "NaN",
            "-NaN",
            "Infinity",
            "-",
            "+1",
            "01",
            "1.",
            ".5",
            "1e",
            "0x1",
            "nul",
            "True",
            "'x'",
            "[1,]",
            "{a:1}",
            r#"{"a"}"#,
            "{1:2}",
            r#""\x41""#,
            r#""\u12""#,
            r#""\u{41}""#,
            r#""\U0041""#,
            r#""\'""#,
            "\u{a0}1",
            "",
        ] {
            for name in ["a", "task", "expiresAt", "createdAt"] {
                let record = format!(r#"{{{expiry},"{name}":{value}}}"#);
                assert_eq!(Envelope::read(record.as_bytes()), Envelope::EMPTY, "{record}");
                let record = format!(r#"{{{expiry},"task":{{"{name}":{value}}}}}"#);
                assert_eq!(Envelope::read(record.as_bytes()), Envelope::EMPTY, "{record}");
            }
        }
    }

    #[test]
    fn years_beyond_9999_are_read_as_chrono_writes_them() {
        for text in
            ["+10265-12-22T10:00:00.123Z", "+10000-02-29T23:59:59+02:00", "+262142-12-31T23:59:59.999Z"]
        {
            let ms = text.parse::<DateTime<chrono::FixedOffset>>().unwrap().timestamp_millis();
            assert_eq!(expiry(&format!(r#"{{"expiresAt":"{text}"}}"#)), Some(ms), "{text}");
            let read = Envelope::read(format!(r#"{{"task":{{"createdAt":"{text}"}}}}"#).as_bytes());
            assert_eq!(read.created_at_ms, Some(ms), "{text}");
        }
        for text in [
            "10265-12-22T10:00:00Z",
            "+2026-12-22T10:00:00Z",
            "+02026-12-22T10:00:00Z",
            "++10265-12-22T10:00:00Z",
            "+1000000-12-22T10:00:00Z",
            "+10001-02-29T10:00:00Z",
            "+10265-12-22",
            "+1026a-12-22T10:00:00Z",
            "+10265 -12-22T10:00:00Z",
            "-0001-12-22T10:00:00Z",
        ] {
            let read = Envelope::read(format!(r#"{{"expiresAt":"{text}"}}"#).as_bytes());
            assert!(read.expires_at_ms.is_err(), "{text}: {read:?}");
        }
    }

    #[test]
    fn creation_time_that_no_score_can_hold_is_passed_over() {
        let record = r#"{"task":{"createdAt":"+287397-01-01T00:00:00Z"}}"#;
        assert_eq!(Envelope::read(record.as_bytes()).created_at_ms, None);
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

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(record: Vec<u8>) {
            let _ = Envelope::read(&record);
        }

        #[test]
        fn every_time_that_chrono_writes_is_read_back(
            ms in prop_oneof![0_i64..253_402_300_800_000, 253_402_300_800_000_i64..8_210_266_876_800_000],
        ) {
            let text = DateTime::from_timestamp_millis(ms).unwrap().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
            prop_assert_eq!(expiry(&format!(r#"{{"expiresAt":"{text}"}}"#)), Some(ms));
        }
    }
}
