//! Writes that wait for replicas: in groups, with one `WAIT` for the whole group.
//!
//! While a connection waits for replicas, the server does nothing else for it. So these writes have a
//! connection of their own. Writes that arrive while a group waits are held back and sent together as the
//! next group: a write waits for the group before it and for its own. If more writes than fit into a group
//! arrive at once, it also waits for the groups between.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Cmd, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::reconnecting::{Connected, Reconnecting};
use super::request::{Attempt, Reply, Request};
use crate::error::CallKind;
use crate::replies;
use crate::settings::Acknowledgement;

/// The maximum number of writes in a group, and of writes held back; beyond that, callers wait.
const GROUP: usize = 1024;

/// The error code of a `WAIT` during which the server became a replica.
const BECAME_REPLICA: &str = "UNBLOCKED";

/// The queue and the connection for such writes to one server.
pub(super) struct ReplicatedWrites {
    connection: Arc<Reconnecting>,
    queue: mpsc::Sender<Write>,
}

/// A write that has not been sent yet.
struct Write {
    command: Cmd,
    kind: CallKind,
    asking: bool,
    since: Instant,
    caller: oneshot::Sender<Attempt>,
}

/// A write that was made, whose caller does not know yet how many replicas have it.
struct Made {
    value: Value,
    caller: oneshot::Sender<Attempt>,
}

impl ReplicatedWrites {
    /// `on_demotion` is called if the server becomes a replica while writes wait.
    pub(super) fn new(
        connection: Reconnecting,
        acknowledgement: Acknowledgement,
        on_demotion: impl Fn() + Send + Sync + 'static,
        runtime: &Handle,
    ) -> Self {
        let (queue, writes) = mpsc::channel(GROUP);
        let connection = Arc::new(connection);
        // Ends when nobody can queue writes any more.
        runtime.spawn(send_in_groups(writes, connection.clone(), acknowledgement, Arc::new(on_demotion)));
        Self { connection, queue }
    }

    /// The connection that the writes have. A read on it is answered after the writes that wait now.
    pub(super) fn connection(&self) -> &Reconnecting {
        &self.connection
    }

    /// Sends a write once, if there is a connection within `wait`, and waits for the replicas. The write is
    /// held back no longer than the response timeout. A write whose caller gives up while it is held back is
    /// never sent.
    pub(super) async fn attempt(&self, request: &Request<'_>, asking: bool, wait: Duration) -> Attempt {
        let (since, most) = (Instant::now(), self.connection.settings().timeouts.response);
        let left = || most.saturating_sub(since.elapsed());
        loop {
            if let Err(attempt) = self.connection.take(wait).await {
                return attempt;
            }
            let Ok(Ok(place)) = timeout(left(), self.queue.reserve()).await else {
                return Attempt::NotSent(None);
            };
            let (caller, outcome) = oneshot::channel();
            place.send(Write { command: request.command.clone(), kind: request.kind, asking, since, caller });
            // A write that is queued after the queue was emptied for the last time stays there, and nobody
            // answers it.
            let outcome = if self.queue.is_closed() { None } else { outcome.await.ok() };
            match outcome {
                // The connection was lost while the write was held back. The next one may come in time.
                Some(Attempt::NotSent(_)) if !left().is_zero() => {}
                Some(attempt) => return attempt,
                // The runtime on which writes are sent has ended.
                None => return Attempt::Lost(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()),
            }
        }
    }
}

async fn send_in_groups(
    mut queue: mpsc::Receiver<Write>,
    connection: Arc<Reconnecting>,
    acknowledgement: Acknowledgement,
    on_demotion: Arc<impl Fn() + Send + Sync + 'static>,
) {
    let most = connection.settings().timeouts.response;
    let mut writes = Vec::new();
    while queue.recv_many(&mut writes, GROUP).await > 0 {
        let (group, too_late): (Vec<_>, Vec<_>) = std::mem::take(&mut writes)
            .into_iter()
            .filter(|write| !write.caller.is_closed())
            .partition(|write| write.since.elapsed() < most);
        answer_all(too_late, || Attempt::NotSent(None));
        let Some(current) = connection.current() else {
            answer_all(group, || Attempt::NotSent(None));
            continue;
        };
        // Checked once the connection is certain.
        let epoch = connection.epoch();
        let (outdated, group): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|write| write.kind.is_outdated(epoch));
        answer_all(outdated, || Attempt::Outdated);
        if group.is_empty() {
            continue;
        }
        let replaced = current.clone();
        let (sender, on_demotion) = (connection.clone(), on_demotion.clone());
        let sending = tokio::spawn(async move {
            let waited = send_group(&sender, &current, group, acknowledgement).await;
            if waited.is_err_and(|error| error.code() == Some(BECAME_REPLICA)) {
                on_demotion();
            }
        });
        // A group that still waits on an old connection must not delay the next one on a new connection.
        tokio::select! {
            _ = sending => {}
            () = connection.replaced(&replaced) => {}
        }
    }
}

/// Sends writes and, behind them, one `WAIT`. A caller whose write changed nothing is answered before the
/// replicas acknowledge the others.
///
/// # Errors
///
/// The error of the `WAIT`. It does not say whether the writes were made.
async fn send_group(
    connection: &Reconnecting,
    current: &Connected,
    group: Vec<Write>,
    Acknowledgement { replicas, within }: Acknowledgement,
) -> RedisResult<()> {
    let (mut writes, mut callers) = (redis::pipe(), Vec::with_capacity(group.len()));
    for Write { command, asking, caller, .. } in group {
        if asking {
            writes.cmd("ASKING");
        }
        writes.add_command(command);
        callers.push((asking, caller));
    }
    let count = writes.cmd_iter().count();
    let mut wait = redis::cmd("WAIT");
    wait.arg(replicas).arg(within.as_millis().max(1).to_string());
    let (mut for_writes, mut for_wait) = (current.connection.clone(), current.connection.clone());
    // Both are sent, in this order, before either reply is waited for.
    let (made, acknowledged) = tokio::join!(
        biased;
        async {
            let replies = for_writes.req_packed_commands(&writes, 0, count).await;
            answer_what_was_not_made(connection, current, replies, callers)
        },
        for_wait.req_packed_command(&wait),
    );
    let acknowledged = acknowledged.and_then(Value::extract_error);
    // A server that has become a replica says so, and closes the connection.
    if acknowledged.as_ref().is_err_and(|error| error.code().is_none_or(|code| code == BECAME_REPLICA)) {
        connection.replace_connection(current);
    }
    let count = match &acknowledged {
        Ok(Value::Int(replicas)) => *replicas,
        // Without a number, nothing is acknowledged.
        _ => 0,
    };
    let too_few_replicas = (count < i64::from(replicas)).then_some((replicas, count));
    for Made { value, caller } in made {
        answer(caller, Attempt::Replied(Ok(Reply { value, too_few_replicas })));
    }
    acknowledged.map(drop)
}

/// Answers callers whose write was not made, or may not have been. Returns the others.
fn answer_what_was_not_made(
    connection: &Reconnecting,
    current: &Connected,
    replies: RedisResult<Vec<Value>>,
    callers: Vec<(bool, oneshot::Sender<Attempt>)>,
) -> Vec<Made> {
    let mut replies = match replies {
        Ok(replies) => replies.into_iter(),
        Err(error) => {
            connection.replace_if_useless(current, &Attempt::Lost(error.clone()));
            for (_, caller) in callers {
                answer(caller, Attempt::Lost(error.clone()));
            }
            return Vec::new();
        }
    };
    let mut made = Vec::new();
    for (asking, caller) in callers {
        if asking {
            replies.next();
        }
        match replies.next().unwrap_or(Value::Nil).extract_error() {
            Ok(value) if !replies::says_no_task_changed(&value) => made.push(Made { value, caller }),
            unmade => {
                let attempt = Attempt::Replied(unmade.map(Reply::of_one_server));
                connection.replace_if_useless(current, &attempt);
                answer(caller, attempt);
            }
        }
    }
    made
}

fn answer_all(writes: Vec<Write>, attempt: impl Fn() -> Attempt) {
    for write in writes {
        answer(write.caller, attempt());
    }
}

fn answer(caller: oneshot::Sender<Attempt>, attempt: Attempt) {
    // The caller may have given up.
    let _ = caller.send(attempt);
}
