//! One call: what is sent, and what came of it.

use redis::aio::ConnectionLike as _;
use redis::{Cmd, RedisError, RedisResult, Value};

use super::live::Live;
use crate::error::{CallKind, Error};

/// A command on its way.
#[derive(Clone, Copy)]
pub(crate) struct Request<'c> {
    pub(crate) command: &'c Cmd,
    pub(crate) kind: CallKind,
    /// The key as the caller knows it, for errors.
    pub(crate) key: &'c str,
    /// The key that decides which node of a cluster is asked.
    pub(crate) routed_by: &'c str,
}

/// What the server said, and what its replicas did.
pub(crate) struct Reply {
    pub(crate) value: Value,
    /// Replicas that were to have the write in time, and how many had; none where that was not asked for or
    /// enough have it.
    pub(crate) too_few_replicas: Option<(u16, i64)>,
}

impl Reply {
    /// Of a call that waits for no replicas.
    pub(super) fn of_one_server(value: Value) -> Self {
        Self { value, too_few_replicas: None }
    }

    /// Of a write that was made: whether enough replicas have it.
    ///
    /// # Errors
    ///
    /// [`Error::NotReplicated`].
    pub(crate) fn check_replicas(&self, key: &str) -> Result<(), Error> {
        match self.too_few_replicas {
            None => Ok(()),
            Some((expected, acknowledged)) => {
                Err(Error::NotReplicated { key: key.to_owned(), expected, acknowledged })
            }
        }
    }
}

/// What came of sending a request to a server once.
pub(super) enum Attempt {
    /// The server replied, be it with an error.
    Replied(RedisResult<Reply>),
    /// Handed over to be sent, and no reply came.
    Lost(RedisError),
    /// There was no connection in time, so nothing was sent: how the last attempt to connect has failed, where there was
    /// one.
    NotSent(Option<Box<Error>>),
    /// The server lets nobody in, so nothing was sent.
    Refused(Box<Error>),
}

impl Attempt {
    /// Whether the request may be made again: nothing was sent, or it was a read.
    pub(super) fn may_be_made_again(&self, request: &Request<'_>) -> bool {
        match self {
            Self::NotSent(_) => true,
            Self::Lost(loss) => request.may_be_sent_again_after(loss),
            _ => false,
        }
    }

    /// Of a read from a replica: whether it found what was asked for. What it did not find may be new.
    pub(super) fn is_worth_something(&self) -> bool {
        match self {
            Self::Replied(Ok(reply)) => match &reply.value {
                Value::Nil => false,
                Value::Array(elements) => !elements.is_empty(),
                _ => true,
            },
            _ => false,
        }
    }
}

impl Request<'_> {
    /// Whether it may be sent again although it may have been carried out. One that took too long would again.
    pub(super) fn may_be_sent_again_after(&self, loss: &RedisError) -> bool {
        self.kind != CallKind::Write && !loss.is_timeout() && loss.is_io_error()
    }

    /// Sends the command; `asking` says that a redirect has led here while a slot moves.
    pub(super) async fn send(&self, connection: &Live, asking: bool) -> Attempt {
        let reply = if asking {
            // Nobody else's command comes between.
            let mut pipeline = redis::pipe();
            pipeline.cmd("ASKING").add_command(self.command.clone());
            let replies = connection.clone().req_packed_commands(&pipeline, 0, 2).await;
            replies.map(|mut replies| replies.pop().unwrap_or(Value::Nil))
        } else {
            connection.send_packed_command(self.command).await
        };
        match reply {
            Err(error) => Attempt::Lost(error),
            Ok(value) => Attempt::Replied(value.extract_error().map(Reply::of_one_server)),
        }
    }
}

/// Whether the server has become a replica, or always was one.
pub(super) fn says_is_replica(attempt: &Attempt) -> bool {
    matches!(attempt, Attempt::Replied(Err(error)) if error.code() == Some("READONLY"))
}
