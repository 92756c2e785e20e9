//! What is printed: lines of a table, or JSON objects.

use std::io::{self, BufWriter, Stdout, Write};

use serde::Serialize;

use crate::failure::Failure;
use crate::printable::printable;

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
            return self.object(row);
        }
        if !std::mem::replace(&mut self.has_header, true)
            && let Some(header) = R::header()
        {
            writeln!(self.writer, "{header}")?;
        }
        Ok(writeln!(self.writer, "{}", printable(&row.line()))?)
    }

    /// Prints a JSON object.
    pub(crate) fn object(&mut self, object: &impl Serialize) -> Result<(), Failure> {
        let object = serde_json::to_string(object).map_err(io::Error::from)?;
        Ok(writeln!(self.writer, "{}", printable(&object))?)
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.writer.flush()?)
    }

    /// For what is no row.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.writer.write_all(bytes)?)
    }
}
