//! One call: the request and its outcome.

use redis::{Cmd, Pipeline, RedisError, RedisResult, Value};

use super::live::Live;
use crate::commands;
use crate::error::{CallKind, Error};

/// A command to be sent.
#[derive(Clone, Copy)]
pub(crate) struct Request<'c> {
    pub(crate) command: &'c Cmd,
    pub(crate) kind: CallKind,
    /// The key as the caller knows it, for errors.
    pub(crate) key: &'c str,
    /// The key that decides which node of a cluster is asked.
    pub(crate) routed_by: &'c str,
}

/// A server's reply, and how many replicas have the write.
pub(crate) struct Reply {
    pub(crate) value: Value,
    /// If too few replicas had the write in time: how many were expected, and how many had it.
    pub(crate) too_few_replicas: Option<(u16, i64)>,
}

impl Reply {
    /// The reply to a call that does not wait for replicas.
    pub(super) fn of_one_server(value: Value) -> Self {
        Self { value, too_few_replicas: None }
    }

    /// Checks that enough replicas have the write, which was made.
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

/// The outcome of sending a request to a server once.
pub(super) enum Attempt {
    /// The server replied, perhaps with an error.
    Replied(RedisResult<Reply>),
    /// The request was handed over to be sent, and got no reply.
    Lost(RedisError),
    /// Nothing was sent: there was no connection in time, or the write was held back too long. Says why the
    /// last attempt to connect failed, if one has.
    NotSent(Option<Box<Error>>),
    /// Nothing was sent: the server refuses this client, and the next attempt to connect would fail too.
    Refused(Box<Error>),
    /// Nothing was sent: what the write is to replace was read before a connection was replaced.
    Outdated,
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

    /// Whether a replica has what a read asked for. What it does not have may be too new for it.
    pub(super) fn has_content(&self) -> bool {
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
    /// Whether the request may be sent again although it may have been carried out. A read that timed out
    /// would time out again.
    pub(super) fn may_be_sent_again_after(&self, loss: &RedisError) -> bool {
        !self.kind.is_write() && !loss.is_timeout() && loss.is_io_error()
    }

    /// Sends the command. `asking`: an `ASK` redirect led here, while the slot moves.
    pub(super) async fn send(&self, connection: &Live, asking: bool) -> Attempt {
        // Boxed, so that the future of other calls stays small.
        let reply = match self.kind {
            CallKind::TrackedRead | CallKind::TrackedList => {
                return Box::pin(self.send_tracked(connection, asking)).await;
            }
            CallKind::Replace { is_tracked: true, .. } if !asking => {
                return Box::pin(self.send_and_read(connection)).await;
            }
            _ if asking => Box::pin(self.send_asking(connection)).await,
            _ => connection.send_packed_command(self.command).await,
        };
        match reply {
            Err(error) => Attempt::Lost(error),
            Ok(value) => Attempt::Replied(value.extract_error().map(Reply::of_one_server)),
        }
    }

    async fn send_asking(&self, connection: &Live) -> RedisResult<Value> {
        // One pipeline, so that no other call's command comes between the two.
        let mut pipeline = redis::pipe();
        pipeline.cmd("ASKING").add_command(self.command.clone());
        let mut replies = connection.send_packed_commands(&pipeline, 0, 2).await?;
        Ok(replies.pop().unwrap_or(Value::Nil))
    }

    /// Sends a read whose key the server tracks from then on, and for a task asks when the task expires. The reply is an
    /// array: whether the key is tracked, the reply to the read, the reply to `PTTL` (nil for a list). An error reply to
    /// the read is that of the request.
    ///
    /// The key is not tracked if the server's messages would not come, or if it refuses. It is not tracked
    /// after an `ASK` redirect either, because `ASKING` and `CLIENT CACHING` both hold for the next command.
    async fn send_tracked(&self, connection: &Live, asking: bool) -> Attempt {
        let mut pipeline = redis::pipe();
        let is_tracked = if asking {
            pipeline.cmd("ASKING");
            false
        } else {
            track_next(&mut pipeline, connection)
        };
        pipeline.add_command(self.command.clone());
        let has_expiry = self.kind == CallKind::TrackedRead;
        if has_expiry {
            self.add_expiry(&mut pipeline);
        }
        let mut replies = match connection.send_packed_commands(&pipeline, 0, pipeline.len()).await {
            Err(error) => return Attempt::Lost(error),
            Ok(replies) => replies,
        };
        if !has_expiry {
            replies.push(Value::Nil);
        }
        let [is_tracked, read, expiry] = tracked(is_tracked, replies);
        Attempt::Replied(
            read.extract_error()
                .map(|read| Reply::of_one_server(Value::Array(vec![is_tracked, read, expiry]))),
        )
    }

    /// Sends a write, and a tracked read of the task behind it. The reply is an array: the reply to the write, and what
    /// [`Self::send_tracked`] replies, with an error reply to the read in its place. An error reply to the write is that of
    /// the request.
    async fn send_and_read(&self, connection: &Live) -> Attempt {
        let mut pipeline = redis::pipe();
        // First, so that the news of this write come before the reply to the read.
        pipeline.add_command(self.command.clone());
        let is_tracked = track_next(&mut pipeline, connection);
        pipeline.add_command(commands::get(self.routed_by));
        self.add_expiry(&mut pipeline);
        let mut replies = match connection.send_packed_commands(&pipeline, 0, pipeline.len()).await {
            Err(error) => return Attempt::Lost(error),
            Ok(replies) => replies.into_iter(),
        };
        let write = replies.next().unwrap_or(Value::Nil);
        let [is_tracked, read, expiry] = tracked(is_tracked, replies.collect());
        Attempt::Replied(
            write
                .extract_error()
                .map(|write| Reply::of_one_server(Value::Array(vec![write, is_tracked, read, expiry]))),
        )
    }

    fn add_expiry(&self, pipeline: &mut Pipeline) {
        // Last: a later change of the expiry invalidates the key.
        pipeline.cmd("PTTL").arg(self.routed_by);
    }
}

/// Makes the server track the key of the next command, if its messages reach the waiters.
fn track_next(pipeline: &mut Pipeline, connection: &Live) -> bool {
    if connection.has_invalidations() {
        // With OPTIN, other reads of this connection stay untracked. Repeating it changes nothing.
        pipeline.cmd("CLIENT").arg("TRACKING").arg("ON").arg("OPTIN");
        pipeline.cmd("CLIENT").arg("CACHING").arg("YES");
    }
    connection.has_invalidations()
}

/// Of the replies to what precedes a read, to the read and to `PTTL`: whether the key is tracked, and the last two.
fn tracked(is_wanted: bool, mut replies: Vec<Value>) -> [Value; 3] {
    let (expiry, read) = (replies.pop().unwrap_or(Value::Nil), replies.pop().unwrap_or(Value::Nil));
    let is_tracked = is_wanted && replies.iter().all(|reply| *reply == Value::Okay);
    [Value::Boolean(is_tracked), read, expiry]
}

/// Whether the server says that it is a replica.
pub(super) fn says_is_replica(attempt: &Attempt) -> bool {
    matches!(attempt, Attempt::Replied(Err(error)) if error.code() == Some("READONLY"))
}
