//! A time and the argument it was read from.

use pmcptask_schema::arguments::Number;

use crate::server::{Context, StringRef};

/// A time in ms since the epoch.
#[derive(Clone, Copy)]
pub(crate) struct Time<'a> {
    pub(crate) ms: i64,
    /// The command's argument that the time was read from, if any.
    argument: Option<StringRef<'a>>,
}

impl Time<'_> {
    pub(crate) fn new(ms: i64) -> Self {
        Self { ms, argument: None }
    }

    /// Passes the time as a string to `tell`. Reuses the command's argument, if there is one, to save
    /// a new string.
    pub(crate) fn spelled<T>(self, context: &Context, tell: impl FnOnce(StringRef<'_>) -> T) -> T {
        match self.argument {
            Some(argument) => tell(argument),
            None => tell(context.create_decimal(self.ms).as_ref()),
        }
    }
}

impl<'a> From<Number<StringRef<'a>>> for Time<'a> {
    fn from(Number { value: ms, argument }: Number<StringRef<'a>>) -> Self {
        Self { ms, argument: Some(argument) }
    }
}
