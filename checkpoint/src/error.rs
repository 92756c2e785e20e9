//! What can go wrong.

use pmcp_tasks::StorageError;

use crate::compression::RecordError;

/// Why a call on checkpoints failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server, or the way there. [`pmcptask_client::Error::of`] says more about it: what it was, whether anything was
    /// changed, whether another try may succeed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A setting is out of range. Nothing was sent.
    #[error("settings of the checkpoints: {0}")]
    Settings(String),
    /// A stored record is not a checkpoint. Nothing was changed.
    #[error("the checkpoint {id:?} of thread {thread:?} cannot be read: {cause}")]
    #[non_exhaustive]
    Record {
        /// The thread.
        thread: String,
        /// The stored id.
        id: String,
        /// What is wrong.
        #[source]
        cause: RecordError,
    },
    /// The checkpoint is longer than the longest record that would be read again. Nothing was sent.
    #[error("the checkpoint cannot be stored: {0}")]
    TooLong(#[source] RecordError),
    /// The checkpoint was saved, but is not found by its id alone. The same save can be repeated.
    #[error("the checkpoint was saved, but cannot be found by its id until it is saved again: {0}")]
    NotFindable(#[source] StorageError),
    /// The checkpoint is at another version than expected. Nothing was changed.
    #[error("the checkpoint {id:?} of thread {thread:?}: expected version {expected}, got {actual}")]
    Conflict {
        /// The thread.
        thread: String,
        /// The checkpoint's id.
        id: String,
        /// The version that was expected; 0: none.
        expected: u64,
        /// The version that it has; 0: there is none.
        actual: u64,
    },
    /// The checkpoint has no JSON. Nothing was sent.
    #[error("the checkpoint cannot be stored: {0}")]
    Unstorable(#[source] serde_json::Error),
}
