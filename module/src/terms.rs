//! What a command asks for when it writes a task: by its options or, where they are silent, by the record.

use std::cell::OnceCell;

use pmcptask_schema::arguments::{Expiry, WriteOptions};
use pmcptask_schema::{Envelope, ExpiryError};

use crate::moment::Moment;
use crate::server::StringRef;

/// A record to write, when it expires, when its task was created, and how many tasks its owner may have.
pub(crate) struct Terms<'a> {
    pub(crate) data: StringRef<'a>,
    options: WriteOptions<StringRef<'a>>,
    /// Read at most once, and only where the options are silent.
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
    /// The record's `expiresAt` is no timestamp.
    pub(crate) fn expires_at(&self) -> Result<Option<Moment<'a>>, ExpiryError> {
        match self.options.expiry {
            Expiry::At(at) => Ok(Some(at.into())),
            Expiry::Never => Ok(None),
            Expiry::FromRecord => Ok(self.envelope().expires_at_ms?.map(Moment::new)),
        }
    }

    /// When the task was created: at `now_ms` where neither options nor record say.
    pub(crate) fn created(&self, now_ms: i64) -> Moment<'a> {
        match self.options.created_ms {
            Some(created) => created.into(),
            None => Moment::new(self.envelope().created_at_ms.unwrap_or(now_ms)),
        }
    }

    /// How many live tasks the owner may have, a new one included.
    pub(crate) fn max_tasks(&self) -> Option<i64> {
        self.options.max_tasks
    }

    fn envelope(&self) -> &Envelope {
        self.envelope.get_or_init(|| Envelope::read(self.data.bytes()))
    }
}
