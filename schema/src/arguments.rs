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

use crate::{MAX_CREATED_MS, TaskKey, parse_decimal};

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

/// The creation time of a task that enters the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created<A> {
    /// As the record says, else the server's clock.
    FromRecord,
    /// This time, ms since the epoch.
    At(Number<A>),
    /// Later than that of every entry of the index.
    Newest,
}

/// The options of PUT and CAS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions<A> {
    /// `PXAT` or `PERSIST`.
    pub expiry: Expiry<A>,
    /// `CREATED`.
    pub created: Created<A>,
    /// `MAXTASKS`: how many live tasks the owner may have, a new one included.
    pub max_tasks: Option<i64>,
    /// `NX`: only if there is no live task yet.
    pub only_new: bool,
    /// `HELD`: the key of another task, only while that task lives.
    pub held: Option<A>,
}

impl<A: AsRef<[u8]> + Copy> WriteOptions<A> {
    /// Reads the options of PUT.
    ///
    /// # Errors
    ///
    /// The first unknown or repeated option, or the first invalid value.
    pub fn of_put(options: impl Iterator<Item = A>) -> Result<Self, ArgumentError> {
        Self::parse(options, true, "PXAT, PERSIST, CREATED, MAXTASKS, NX or HELD")
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
        let mut read = Self {
            expiry: Expiry::FromRecord,
            created: Created::FromRecord,
            max_tasks: None,
            only_new: false,
            held: None,
        };
        while let Some(option) = options.next() {
            let option = option.as_ref();
            if let Some(expiry) = expiry_option(option, &mut options)? {
                set_expiry(&mut read.expiry, expiry)?;
            } else if is(option, "CREATED") {
                let created = created(options.next())?;
                if !matches!(std::mem::replace(&mut read.created, created), Created::FromRecord) {
                    return Err(twice("CREATED"));
                }
            } else if creates && is(option, "MAXTASKS") {
                let max = number("MAXTASKS", COUNT, options.next(), i64::MAX)?;
                set_once("MAXTASKS", &mut read.max_tasks, max.value)?;
            } else if creates && is(option, "NX") {
                set_flag("NX", &mut read.only_new)?;
            } else if creates && is(option, "HELD") {
                set_once("HELD", &mut read.held, task_key("HELD", options.next())?)?;
            } else {
                return Err(ArgumentError::new("option", known, option));
            }
        }
        Ok(read)
    }
}

/// Reads the options of EXPIRE: when the task expires, or None for never.
///
/// # Errors
///
/// No `PXAT` or `PERSIST`, more than one, an unknown option, or an invalid time.
pub fn new_expiry<A: AsRef<[u8]> + Copy>(
    mut options: impl Iterator<Item = A>,
) -> Result<Option<Number<A>>, ArgumentError> {
    let mut new = Expiry::FromRecord;
    while let Some(option) = options.next() {
        let option = option.as_ref();
        let expiry = expiry_option(option, &mut options)?;
        set_expiry(&mut new, expiry.ok_or_else(|| ArgumentError::new("option", "PXAT or PERSIST", option))?)?;
    }
    match new {
        Expiry::At(at) => Ok(Some(at)),
        Expiry::Never => Ok(None),
        Expiry::FromRecord => Err(ArgumentError::missing("expiry", "PXAT or PERSIST")),
    }
}

/// The expiry, if the option is `PXAT` or `PERSIST`.
fn expiry_option<A: AsRef<[u8]> + Copy>(
    option: &[u8],
    rest: &mut impl Iterator<Item = A>,
) -> Result<Option<Expiry<A>>, ArgumentError> {
    if is(option, "PXAT") {
        Ok(Some(Expiry::At(number("PXAT", MILLISECONDS, rest.next(), i64::MAX)?)))
    } else if is(option, "PERSIST") {
        Ok(Some(Expiry::Never))
    } else {
        Ok(None)
    }
}

fn set_expiry<A>(place: &mut Expiry<A>, expiry: Expiry<A>) -> Result<(), ArgumentError> {
    if !matches!(place, Expiry::FromRecord) {
        return Err(ArgumentError {
            argument: "expiry",
            expected: "one PXAT or PERSIST",
            got: "two".to_owned(),
        });
    }
    *place = expiry;
    Ok(())
}

/// Reads the options of DEL: the version that `VERSION` expects.
///
/// # Errors
///
/// The first unknown or repeated option, or an invalid version.
pub fn deleted_version<'a>(
    mut options: impl Iterator<Item = &'a [u8]>,
) -> Result<Option<i64>, ArgumentError> {
    let mut version = None;
    while let Some(option) = options.next() {
        if !is(option, "VERSION") {
            return Err(ArgumentError::new("option", "VERSION", option));
        }
        let expected = number("VERSION", COUNT, options.next(), i64::MAX)?;
        set_once("VERSION", &mut version, expected.value)?;
    }
    Ok(version)
}

/// The options of TRIM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrimOptions {
    /// `KEEP`: how many of the newest live tasks stay.
    pub keep: i64,
    /// `COUNT`: the maximum number of tasks to remove.
    pub count: i64,
}

impl TrimOptions {
    /// How many tasks one call removes unless `COUNT` says otherwise.
    pub const DEFAULT_COUNT: i64 = 1_000;

    /// Reads the options of TRIM.
    ///
    /// # Errors
    ///
    /// No `KEEP`, the first unknown or repeated option, or the first invalid value.
    pub fn parse<'a>(mut options: impl Iterator<Item = &'a [u8]>) -> Result<Self, ArgumentError> {
        let (mut keep, mut count) = (None, None);
        while let Some(option) = options.next() {
            let (name, place) = if is(option, "KEEP") {
                ("KEEP", &mut keep)
            } else if is(option, "COUNT") {
                ("COUNT", &mut count)
            } else {
                return Err(ArgumentError::new("option", "KEEP or COUNT", option));
            };
            set_once(name, place, number(name, COUNT, options.next(), i64::MAX)?.value)?;
        }
        let keep = keep.ok_or_else(|| ArgumentError::missing("KEEP", COUNT))?;
        Ok(Self { keep, count: count.unwrap_or(Self::DEFAULT_COUNT) })
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
    /// `NODATA`: without the records' bytes.
    pub without_data: bool,
}

impl<'a> ListOptions<'a> {
    /// Reads the options of LIST.
    ///
    /// # Errors
    ///
    /// The first unknown or repeated option, or the first invalid value.
    pub fn parse(mut options: impl Iterator<Item = &'a [u8]>) -> Result<Self, ArgumentError> {
        let mut read = Self { newest_first: false, after: None, count: None, without_data: false };
        while let Some(option) = options.next() {
            if is(option, "REV") {
                set_flag("REV", &mut read.newest_first)?;
            } else if is(option, "NODATA") {
                set_flag("NODATA", &mut read.without_data)?;
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
                return Err(ArgumentError::new("option", "REV, AFTER, COUNT or NODATA", option));
            }
        }
        Ok(read)
    }
}

const MILLISECONDS: &str = "ms since the epoch, from 0 to 9223372036854775807";
const CREATED_TIME: &str = "NEWEST or ms since the epoch, from 0 to 9007199254740991";
const A_TASK_KEY: &str = "a task key <prefix>:tasks:<owner>:<task-id>";
const LISTED_MILLISECONDS: &str = "ms since the epoch, from -9223372036854775808 to 9223372036854775807";
const TIMEOUT: &str = "ms, from 0 (for ever) to 9223372036854775807";
const COUNT: &str = "an integer from 0 to 9223372036854775807";

/// Reads the version that CAS expects.
///
/// # Errors
///
/// The argument is not an integer from 0 to 2^63-1.
pub fn expected_version(argument: &[u8]) -> Result<i64, ArgumentError> {
    Ok(number("expected-version", COUNT, Some(argument), i64::MAX)?.value)
}

/// Reads the version that WAIT compares with.
///
/// # Errors
///
/// The argument is not an integer from 0 to 2^63-1.
pub fn seen_version(argument: &[u8]) -> Result<i64, ArgumentError> {
    Ok(number("version", COUNT, Some(argument), i64::MAX)?.value)
}

/// Reads how long WAIT waits, in ms; 0 means for ever.
///
/// # Errors
///
/// The argument is not an integer from 0 to 2^63-1.
pub fn timeout_ms(argument: &[u8]) -> Result<i64, ArgumentError> {
    Ok(number("timeout-ms", TIMEOUT, Some(argument), i64::MAX)?.value)
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

fn created<A: AsRef<[u8]> + Copy>(argument: Option<A>) -> Result<Created<A>, ArgumentError> {
    match argument {
        Some(word) if is(word.as_ref(), "NEWEST") => Ok(Created::Newest),
        time => number("CREATED", CREATED_TIME, time, MAX_CREATED_MS).map(Created::At),
    }
}

fn task_key<A: AsRef<[u8]>>(name: &'static str, argument: Option<A>) -> Result<A, ArgumentError> {
    let key = argument.ok_or_else(|| ArgumentError::missing(name, A_TASK_KEY))?;
    match TaskKey::parse(key.as_ref()) {
        Ok(_) => Ok(key),
        Err(_) => Err(ArgumentError::new(name, A_TASK_KEY, key.as_ref())),
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

fn set_flag(argument: &'static str, place: &mut bool) -> Result<(), ArgumentError> {
    if std::mem::replace(place, true) { Err(twice(argument)) } else { Ok(()) }
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
            created: Created::At(Number { value: 0, argument: "0" }),
            max_tasks: Some(i64::MAX),
            only_new: true,
            held: Some("p:tasks:o:t"),
        };
        assert_eq!(
            put(&[
                "PXAT",
                "5",
                "CREATED",
                "0",
                "MAXTASKS",
                "9223372036854775807",
                "NX",
                "HELD",
                "p:tasks:o:t"
            ]),
            Ok(expected)
        );
        assert_eq!(
            put(&[
                "held",
                "p:tasks:o:t",
                "nx",
                "maxtasks",
                "9223372036854775807",
                "Created",
                "0",
                "pxAT",
                "5"
            ]),
            Ok(expected)
        );
        assert_eq!(put(&["created", "newest"]).unwrap().created, Created::Newest);
        assert_eq!(put(&["persist"]).unwrap().expiry, Expiry::Never);
        assert_eq!(put(&[]).unwrap().expiry, Expiry::FromRecord);
        assert_eq!(
            list(&["nodata", "count", "0", "after", "7", "REV", "rev"]),
            Ok(ListOptions {
                newest_first: true,
                after: Some((7, b"REV")),
                count: Some(0),
                without_data: true
            })
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
            &["CREATED", "NEWEST", "CREATED", "NEWEST"],
            &["CREATED", "NEWEST", "CREATED", "1"],
            &["CREATED", "1", "CREATED", "NEWEST"],
            &["MAXTASKS", "1", "MAXTASKS", "1"],
            &["NX", "NX"],
            &["HELD", "p:tasks:o:t", "HELD", "p:tasks:o:t"],
        ] {
            assert!(put(options).is_err(), "{options:?}");
        }
        for options in [
            &["REV", "REV"][..],
            &["NODATA", "NODATA"],
            &["COUNT", "1", "COUNT", "1"],
            &["AFTER", "1", "a", "AFTER", "1", "a"],
        ] {
            assert!(list(options).is_err(), "{options:?}");
        }
    }

    #[test]
    fn options_of_del_expire_and_trim_are_read() {
        let bytes =
            |options: &[&'static str]| options.iter().map(|option| option.as_bytes()).collect::<Vec<_>>();
        let del = |options: &[&'static str]| deleted_version(bytes(options).into_iter());
        let expire = |options: &[&'static str]| new_expiry(bytes(options).into_iter());
        let trim = |options: &[&'static str]| TrimOptions::parse(bytes(options).into_iter());
        assert_eq!(del(&[]), Ok(None));
        assert_eq!(del(&["version", "7"]), Ok(Some(7)));
        assert_eq!(expire(&["persist"]), Ok(None));
        assert!(matches!(expire(&["pxat", "5"]), Ok(Some(Number { value: 5, .. }))));
        assert_eq!(trim(&["keep", "0"]), Ok(TrimOptions { keep: 0, count: 1_000 }));
        assert_eq!(trim(&["COUNT", "2", "KEEP", "1"]), Ok(TrimOptions { keep: 1, count: 2 }));
        for (error, text) in [
            (del(&["VERSION"]).unwrap_err(), format!("VERSION: expected {COUNT}, got nothing")),
            (del(&["NX"]).unwrap_err(), "option: expected VERSION, got 'NX'".to_owned()),
            (
                del(&["VERSION", "1", "VERSION", "1"]).unwrap_err(),
                "VERSION: expected one, got two".to_owned(),
            ),
            (expire(&[]).unwrap_err(), "expiry: expected PXAT or PERSIST, got nothing".to_owned()),
            (expire(&["EX"]).unwrap_err(), "option: expected PXAT or PERSIST, got 'EX'".to_owned()),
            (
                expire(&["PERSIST", "PXAT", "1"]).unwrap_err(),
                "expiry: expected one PXAT or PERSIST, got two".to_owned(),
            ),
            (trim(&[]).unwrap_err(), format!("KEEP: expected {COUNT}, got nothing")),
            (trim(&["KEEP", "-1"]).unwrap_err(), format!("KEEP: expected {COUNT}, got '-1'")),
            (trim(&["1"]).unwrap_err(), "option: expected KEEP or COUNT, got '1'".to_owned()),
            (trim(&["KEEP", "1", "KEEP", "1"]).unwrap_err(), "KEEP: expected one, got two".to_owned()),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn numbers_are_plain_and_in_range() {
        for number in
            ["", "-1", "+1", " 1", "1 ", "01", "1.0", "1e3", "0x1", "9223372036854775808", "ten", "\0"]
        {
            assert!(put(&["PXAT", number]).is_err(), "{number:?}");
            for read in [expected_version, seen_version, timeout_ms] {
                assert!(read(number.as_bytes()).is_err(), "{number:?}");
            }
        }
        for read in [expected_version, seen_version, timeout_ms] {
            assert_eq!(read(b"0"), Ok(0));
            assert_eq!(read(b"9223372036854775807"), Ok(i64::MAX));
        }
        assert!(put(&["CREATED", "9007199254740991"]).is_ok());
        assert!(put(&["CREATED", "9007199254740992"]).is_err());
    }

    #[test]
    fn error_names_the_argument_what_was_expected_and_what_was_got() {
        assert_eq!(put(&["PXAT"]).unwrap_err(), format!("PXAT: expected {MILLISECONDS}, got nothing"));
        assert_eq!(put(&["PXAT", "soon"]).unwrap_err(), format!("PXAT: expected {MILLISECONDS}, got 'soon'"));
        assert_eq!(
            seen_version(b"-1").unwrap_err().to_string(),
            format!("version: expected {COUNT}, got '-1'")
        );
        assert_eq!(
            timeout_ms(b"").unwrap_err().to_string(),
            format!("timeout-ms: expected {TIMEOUT}, got an empty string")
        );
        assert_eq!(
            put(&["TTL", "5"]).unwrap_err(),
            "option: expected PXAT, PERSIST, CREATED, MAXTASKS, NX or HELD, got 'TTL'"
        );
        assert_eq!(
            put(&["CREATED", "now"]).unwrap_err(),
            format!("CREATED: expected {CREATED_TIME}, got 'now'")
        );
        for (key, got) in [("x", "'x'"), ("p:tasks:o:", "10 bytes that are not shown")] {
            assert_eq!(put(&["HELD", key]).unwrap_err(), format!("HELD: expected {A_TASK_KEY}, got {got}"));
        }
        assert_eq!(
            list(&["AFTER", "5"]).unwrap_err(),
            "AFTER: expected a task id after the creation time, got nothing"
        );
    }

    #[test]
    fn cas_creates_no_task_and_takes_no_limit() {
        assert!(WriteOptions::of_cas([&b"MAXTASKS"[..], b"5"].into_iter()).is_err());
        assert!(WriteOptions::of_cas([&b"HELD"[..], b"p:tasks:o:t"].into_iter()).is_err());
        let newest = WriteOptions::of_cas([&b"CREATED"[..], b"NEWEST"].into_iter()).unwrap();
        assert_eq!(newest.created, Created::Newest);
    }

    #[test]
    fn record_in_the_wrong_place_is_not_repeated() {
        let error = put(&[r#"{"secret":1}"#]).unwrap_err();
        assert_eq!(
            error,
            "option: expected PXAT, PERSIST, CREATED, MAXTASKS, NX or HELD, got 12 bytes that are not shown"
        );
        assert!(!put(&[&"secret".repeat(9)]).unwrap_err().contains("secret"));
    }
}
