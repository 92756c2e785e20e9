//! What a write asks for: taken from the command's options or, if they do not say, from the record.

use std::cell::OnceCell;

use pmcptask_schema::arguments::{Created, Expiry, WriteOptions};
use pmcptask_schema::{Envelope, ExpiryError};

use crate::refusal::Refusal;
use crate::server::StringRef;
use crate::time::Time;

/// A record to write, with its expiry, its creation time and the owner's task limit.
pub(crate) struct Terms<'a> {
    pub(crate) data: StringRef<'a>,
    options: WriteOptions<StringRef<'a>>,
    /// Read at most once, and only if the options leave something open.
    envelope: OnceCell<Envelope>,
}

impl<'a> Terms<'a> {
    pub(crate) fn new(data: StringRef<'a>, options: WriteOptions<StringRef<'a>>) -> Self {
        Self { data, options, envelope: OnceCell::new() }
    }

    /// When the task expires; None: never.
    ///
    /// # Errors
    ///
    /// The record's `expiresAt` is not a timestamp.
    pub(crate) fn expires_at(&self) -> Result<Option<Time<'a>>, ExpiryError> {
        match self.options.expiry {
            Expiry::At(at) => Ok(Some(at.into())),
            Expiry::Never => Ok(None),
            Expiry::FromRecord => Ok(self.envelope().expires_at_ms?.map(Time::new)),
        }
    }

    /// When the task was created: `newest` if the options ask for that, `now_ms` if neither options nor record say.
    ///
    /// # Errors
    ///
    /// That of `newest`.
    pub(crate) fn created(
        &self,
        now_ms: i64,
        newest: impl FnOnce() -> Result<i64, Refusal>,
    ) -> Result<Time<'a>, Refusal> {
        match self.options.created {
            Created::At(created) => Ok(created.into()),
            Created::Newest => newest().map(Time::new),
            Created::FromRecord => Ok(Time::new(self.envelope().created_at_ms.unwrap_or(now_ms))),
        }
    }

    /// How many live tasks the owner may have, a new one included.
    pub(crate) fn max_tasks(&self) -> Option<i64> {
        self.options.max_tasks
    }

    /// Whether a live task is left as it is.
    pub(crate) fn only_new(&self) -> bool {
        self.options.only_new
    }

    /// The key of the task that has to live, whatever is written.
    pub(crate) fn held(&self) -> Option<StringRef<'a>> {
        self.options.held
    }

    fn envelope(&self) -> &Envelope {
        self.envelope.get_or_init(|| Envelope::read(self.data.bytes()))
    }
}
