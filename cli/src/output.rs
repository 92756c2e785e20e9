//! What is printed: lines of a table, or JSON objects. Everything goes through here, so that no name or
//! record can send control characters to a terminal.

use std::borrow::Cow;
use std::io::{self, BufWriter, Stdout, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;

use crate::failure::Failure;

/// Something that is printed as a line of a table, or as a JSON object with all its fields.
pub(crate) trait Row: Serialize {
    /// The names of the columns, printed before the first line.
    fn header() -> Option<String>;

    fn line(&self) -> String;
}

pub(crate) struct Output {
    writer: BufWriter<Stdout>,
    is_json: bool,
    has_header: bool,
}

impl Output {
    pub(crate) fn to_stdout(is_json: bool) -> Self {
        Self { writer: BufWriter::new(io::stdout()), is_json, has_header: false }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.is_json
    }

    /// Prints a row. It may not be seen before [`Output::flush`].
    pub(crate) fn row<R: Row>(&mut self, row: &R) -> Result<(), Failure> {
        if self.is_json {
            let object = serde_json::to_string(row).map_err(io::Error::from)?;
            return Ok(writeln!(self.writer, "{}", printable(&object))?);
        }
        if !std::mem::replace(&mut self.has_header, true)
            && let Some(header) = R::header()
        {
            writeln!(self.writer, "{header}")?;
        }
        Ok(writeln!(self.writer, "{}", printable(&row.line()))?)
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.writer.flush()?)
    }

    /// For what is no row.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.writer.write_all(bytes)?)
    }
}

/// Says something beside the output. That nobody reads it is no failure.
pub(crate) fn say(text: &str) {
    drop(writeln!(io::stderr(), "{}", printable(text)));
}

/// The text without the control characters that a terminal would obey. New lines stay.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let is_obeyed = |character: char| character.is_control() && character != '\n';
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let escape = |character: char| {
        if is_obeyed(character) { format!("\\u{:04x}", u32::from(character)) } else { character.to_string() }
    };
    Cow::Owned(text.chars().map(escape).collect())
}

/// A name in one line of a table.
pub(crate) fn in_line(name: &str) -> String {
    printable(name).replace('\n', "\\u000a")
}

/// The time of this machine, in ms since the epoch.
pub(crate) fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_reaches_the_terminal() {
        assert_eq!(printable("\u{1b}[2Ja\u{9b}b\u{7f}\nö"), "\\u001b[2Ja\\u009bb\\u007f\nö");
        assert_eq!(in_line("a\nb"), "a\\u000ab");
    }

    #[test]
    fn length_is_told_in_its_largest_unit() {
        let told = [-5, 999, 59_999, 60_000, 3_599_999, 3_600_000, 172_799_999, 172_800_000].map(length);
        assert_eq!(told, ["0s", "0s", "59s", "1m", "59m", "1h", "47h", "2d"]);
    }
}
