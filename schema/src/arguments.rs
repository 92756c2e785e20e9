//! The options and numbers of the commands.
//!
//! Options come in any order and any case, each at most once. Numbers are decimal, without sign, space or
//! leading zero; only the creation time of `AFTER` may be negative.
//!
//! ```
//! use pmcptask_schema::arguments::{Expiry, ListOptions, WriteOptions};
//!
//! let put = WriteOptions::of_put(["maxtasks", "100", "PXAT", "1795215600000"].into_iter())?;
//! assert!(matches!(put.expiry, Expiry::At(at) if at.value == 1_795_215_600_000));
//! assert_eq!(put.max_tasks, Some(100));
//!
//! let error = ListOptions::parse([&b"COUNT"[..], b"many"].into_iter()).unwrap_err();
//! assert_eq!(error.to_string(), "COUNT: expected an integer from 0 to 9223372036854775807, got 'many'");
//! # Ok::<(), pmcptask_schema::arguments::ArgumentError>(())
//! ```

use std::fmt;

use crate::{MAX_CREATED_MS, parse_decimal};

/// An argument is not what the command expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgumentError {
    argument: &'static str,
    expected: &'static str,
    got: String,
}

impl ArgumentError {
    fn new(argument: &'static str, expected: &'static str, got: &[u8]) -> Self {
        Self { argument, expected, got: shown(got) }
    }

    /// The error for a missing argument.
    #[must_use]
    pub fn missing(argument: &'static str, expected: &'static str) -> Self {
        Self { argument, expected, got: "nothing".to_owned() }
    }
}

impl fmt::Display for ArgumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got {}", self.argument, self.expected, self.got)
    }
}

/// An argument as an error reply shows it. Only text that can be a number or an option's name is shown;
/// anything else may be a record in the wrong place.
fn shown(argument: &[u8]) -> String {
    const LONGEST_SHOWN: usize = 24;
    let can_be_shown = argument.len() <= LONGEST_SHOWN
        && argument.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
    match std::str::from_utf8(argument) {
        Ok("") => "an empty string".to_owned(),
        Ok(text) if can_be_shown => format!("'{text}'"),
        _ => format!("{} bytes that are not shown", argument.len()),
    }
}

/// A number and the argument it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number<A> {
    /// The number.
    pub value: i64,
    /// The number's only valid spelling, so code that passes the number on need not format it again.
    pub argument: A,
}

/// When a written task expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry<A> {
    /// As the record says.
    FromRecord,
    /// Never.
    Never,
    /// At this time, ms since the epoch.
    At(Number<A>),
}

/// The options of PUT and CAS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions<A> {
    /// `PXAT` or `PERSIST`.
    pub expiry: Expiry<A>,
    /// `CREATED`: creation time of a task that enters the index, ms since the epoch.
    pub created_ms: Option<Number<A>>,
    /// `MAXTASKS`: how many live tasks the owner may have, a new one included.
    pub max_tasks: Option<i64>,
}

impl<A: AsRef<[u8]> + Copy> WriteOptions<A> {
    /// Reads the options of PUT.
    ///
    /// # Errors
    ///
    /// The first unknown or repeated option, or the first invalid value.
    pub fn of_put(options: impl Iterator<Item = A>) -> Result<Self, ArgumentError> {
        Self::parse(options, true, "PXAT, PERSIST, CREATED or MAXTASKS")
    }

    /// Reads the options of CAS, which never creates a task.
    ///
    /// # Errors
    ///
    /// The first unknown or repeated option, or the first invalid value.
    pub fn of_cas(options: impl Iterator<Item = A>) -> Result<Self, ArgumentError> {
        Self::parse(options, false, "PXAT, PERSIST or CREATED")
    }

    fn parse(
        mut options: impl Iterator<Item = A>,
        creates: bool,
        known: &'static str,
    ) -> Result<Self, ArgumentError> {
        let mut read = Self { expiry: Expiry::FromRecord, created_ms: None, max_tasks: None };
        while let Some(option) = options.next() {
            let option = option.as_ref();
            if is(option, "PXAT") {
                let at = number("PXAT", MILLISECONDS, options.next(), i64::MAX)?;
                read.set_expiry(Expiry::At(at))?;
            } else if is(option, "PERSIST") {
                read.set_expiry(Expiry::Never)?;
            } else if is(option, "CREATED") {
                let created = number("CREATED", CREATED_MILLISECONDS, options.next(), MAX_CREATED_MS)?;
                set_once("CREATED", &mut read.created_ms, created)?;
            } else if creates && is(option, "MAXTASKS") {
                let max = number("MAXTASKS", COUNT, options.next(), i64::MAX)?;
                set_once("MAXTASKS", &mut read.max_tasks, max.value)?;
            } else {
                return Err(ArgumentError::new("option", known, option));
            }
        }
        Ok(read)
    }

    fn set_expiry(&mut self, expiry: Expiry<A>) -> Result<(), ArgumentError> {
        if !matches!(self.expiry, Expiry::FromRecord) {
            return Err(ArgumentError {
                argument: "expiry",
                expected: "one PXAT or PERSIST",
                got: "two".to_owned(),
            });
        }
        self.expiry = expiry;
        Ok(())
    }
}

/// The options of LIST.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListOptions<'a> {
    /// `REV`.
    pub newest_first: bool,
    /// `AFTER`: only what follows this creation time (ms since the epoch) and task id in the requested order.
    pub after: Option<(i64, &'a [u8])>,
    /// `COUNT`: the maximum number of tasks.
    pub count: Option<i64>,
}

impl<'a> ListOptions<'a> {
    /// Reads the options of LIST.
    ///
    /// # Errors
    ///
    /// The first unknown or repeated option, or the first invalid value.
    pub fn parse(mut options: impl Iterator<Item = &'a [u8]>) -> Result<Self, ArgumentError> {
        let mut read = Self { newest_first: false, after: None, count: None };
        while let Some(option) = options.next() {
            if is(option, "REV") {
                if read.newest_first {
                    return Err(twice("REV"));
                }
                read.newest_first = true;
            } else if is(option, "AFTER") {
                let created_ms = created_of_listed(options.next())?;
                let task_id = options
                    .next()
                    .ok_or_else(|| ArgumentError::missing("AFTER", "a task id after the creation time"))?;
                set_once("AFTER", &mut read.after, (created_ms, task_id))?;
            } else if is(option, "COUNT") {
                let count = number("COUNT", COUNT, options.next(), i64::MAX)?;
                set_once("COUNT", &mut read.count, count.value)?;
            } else {
                return Err(ArgumentError::new("option", "REV, AFTER or COUNT", option));
            }
        }
        Ok(read)
    }
}

const MILLISECONDS: &str = "ms since the epoch, from 0 to 9223372036854775807";
const CREATED_MILLISECONDS: &str = "ms since the epoch, from 0 to 9007199254740991";
const LISTED_MILLISECONDS: &str = "ms since the epoch, from -9223372036854775808 to 9223372036854775807";
const COUNT: &str = "an integer from 0 to 9223372036854775807";

/// Reads the version that CAS expects.
///
/// # Errors
///
/// The argument is not an integer from 0 to 2^63-1.
pub fn expected_version(argument: &[u8]) -> Result<i64, ArgumentError> {
    Ok(number("expected-version", COUNT, Some(argument), i64::MAX)?.value)
}

fn is(option: &[u8], name: &str) -> bool {
    option.eq_ignore_ascii_case(name.as_bytes())
}

fn number<A: AsRef<[u8]> + Copy>(
    name: &'static str,
    expected: &'static str,
    argument: Option<A>,
    highest: i64,
) -> Result<Number<A>, ArgumentError> {
    let argument = argument.ok_or_else(|| ArgumentError::missing(name, expected))?;
    match parse_decimal(argument.as_ref()) {
        Some(value) if value <= highest => Ok(Number { value, argument }),
        _ => Err(ArgumentError::new(name, expected, argument.as_ref())),
    }
}

/// Reads a creation time as LIST returns it. It may be negative, because other writers can store any score.
fn created_of_listed(argument: Option<&[u8]>) -> Result<i64, ArgumentError> {
    let argument = argument.ok_or_else(|| ArgumentError::missing("AFTER", LISTED_MILLISECONDS))?;
    let read = match argument {
        [b'-', digits @ ..] => match parse_decimal(digits) {
            Some(0) => None,
            // `i64::MIN` has no positive counterpart.
            None if digits == b"9223372036854775808" => Some(i64::MIN),
            value => value.and_then(i64::checked_neg),
        },
        digits => parse_decimal(digits),
    };
    read.ok_or_else(|| ArgumentError::new("AFTER", LISTED_MILLISECONDS, argument))
}

fn set_once<T>(argument: &'static str, place: &mut Option<T>, value: T) -> Result<(), ArgumentError> {
    if place.replace(value).is_some() { Err(twice(argument)) } else { Ok(()) }
}

fn twice(argument: &'static str) -> ArgumentError {
    ArgumentError { argument, expected: "one", got: "two".to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn put<'a>(options: &[&'a str]) -> Result<WriteOptions<&'a str>, String> {
        WriteOptions::of_put(options.iter().copied()).map_err(|error| error.to_string())
    }

    fn list<'a>(options: &[&'a str]) -> Result<ListOptions<'a>, String> {
        ListOptions::parse(options.iter().map(|option| option.as_bytes())).map_err(|error| error.to_string())
    }

    #[test]
    fn options_come_in_any_order_and_case() {
        let expected = WriteOptions {
            expiry: Expiry::At(Number { value: 5, argument: "5" }),
            created_ms: Some(Number { value: 0, argument: "0" }),
            max_tasks: Some(i64::MAX),
        };
        assert_eq!(put(&["PXAT", "5", "CREATED", "0", "MAXTASKS", "9223372036854775807"]), Ok(expected));
        assert_eq!(put(&["maxtasks", "9223372036854775807", "Created", "0", "pxAT", "5"]), Ok(expected));
        assert_eq!(put(&["persist"]).unwrap().expiry, Expiry::Never);
        assert_eq!(put(&[]).unwrap().expiry, Expiry::FromRecord);
        assert_eq!(
            list(&["count", "0", "after", "7", "REV", "rev"]),
            Ok(ListOptions { newest_first: true, after: Some((7, b"REV")), count: Some(0) })
        );
    }

    #[test]
    fn option_comes_at_most_once() {
        for options in [
            &["PXAT", "1", "PXAT", "1"][..],
            &["PXAT", "1", "PERSIST"],
            &["PERSIST", "PXAT", "1"],
            &["PERSIST", "PERSIST"],
            &["CREATED", "1", "CREATED", "1"],
            &["MAXTASKS", "1", "MAXTASKS", "1"],
        ] {
            assert!(put(options).is_err(), "{options:?}");
        }
        for options in
            [&["REV", "REV"][..], &["COUNT", "1", "COUNT", "1"], &["AFTER", "1", "a", "AFTER", "1", "a"]]
        {
            assert!(list(options).is_err(), "{options:?}");
        }
    }

    #[test]
    fn numbers_are_plain_and_in_range() {
        for number in
            ["", "-1", "+1", " 1", "1 ", "01", "1.0", "1e3", "0x1", "9223372036854775808", "ten", "\0"]
        {
            assert!(put(&["PXAT", number]).is_err(), "{number:?}");
            assert!(expected_version(number.as_bytes()).is_err(), "{number:?}");
        }
        assert!(put(&["CREATED", "9007199254740991"]).is_ok());
        assert!(put(&["CREATED", "9007199254740992"]).is_err());
    }

    #[test]
    fn error_names_the_argument_what_was_expected_and_what_was_got() {
        assert_eq!(put(&["PXAT"]).unwrap_err(), format!("PXAT: expected {MILLISECONDS}, got nothing"));
        assert_eq!(put(&["PXAT", "soon"]).unwrap_err(), format!("PXAT: expected {MILLISECONDS}, got 'soon'"));
        assert_eq!(
            put(&["TTL", "5"]).unwrap_err(),
            "option: expected PXAT, PERSIST, CREATED or MAXTASKS, got 'TTL'"
        );
        assert_eq!(
            list(&["AFTER", "5"]).unwrap_err(),
            "AFTER: expected a task id after the creation time, got nothing"
        );
    }

    #[test]
    fn cas_creates_no_task_and_takes_no_limit() {
        assert!(WriteOptions::of_cas([&b"MAXTASKS"[..], b"5"].into_iter()).is_err());
    }

    #[test]
    fn record_in_the_wrong_place_is_not_repeated() {
        let error = put(&[r#"{"secret":1}"#]).unwrap_err();
        assert_eq!(
            error,
            "option: expected PXAT, PERSIST, CREATED or MAXTASKS, got 12 bytes that are not shown"
        );
        assert!(!put(&[&"secret".repeat(9)]).unwrap_err().contains("secret"));
    }
}
