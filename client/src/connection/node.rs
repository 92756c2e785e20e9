//! A server that is called: its connection, and a second one for writes that wait for replicas.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::endpoint::expect_one_server;
use super::reconnecting::{Connected, Reconnecting};
use super::replicated_writes::ReplicatedWrites;
use super::request::{Attempt, Request, says_is_replica};
use super::retry::retry;
use super::runtime::OnRuntime;
use super::target::Target;
use crate::error::{self, CallKind, Error};
use crate::settings::Settings;

/// How long a server that was found to be slow is avoided.
const AVOIDED: Duration = Duration::from_secs(2);

pub(crate) struct Node {
    connection: Arc<Reconnecting>,
    /// Where writes go if they wait for replicas.
    replicated_writes: Option<ReplicatedWrites>,
    /// When the server was found to be slow.
    slow_since: ArcSwapOption<Instant>,
}

impl Node {
    /// Connects once, so that a wrong address or password is an error at once.
    pub(super) async fn open(target: Target) -> Result<Self, Error> {
        let (started, limit) = (Instant::now(), target.settings().timeouts.connect);
        let (connection, mut first) = Reconnecting::open(target.clone()).await?;
        if let Target::Server(endpoint) = &target {
            expect_one_server(&mut first, endpoint, limit.saturating_sub(started.elapsed())).await?;
        }
        Ok(Self::with(connection, target, &Handle::current()))
    }

    /// Connects in the background, on a runtime that lasts as long as the node is wanted.
    pub(super) fn start(target: Target, runtime: &Handle) -> Self {
        Self::with(Reconnecting::start(target.clone(), runtime), target, runtime)
    }

    fn with(connection: Reconnecting, target: Target, runtime: &Handle) -> Self {
        let connection = Arc::new(connection);
        let acknowledgement = target.settings().acknowledgement.filter(|_| target.takes_writes());
        let replicated_writes = acknowledgement.map(|acknowledgement| {
            let reads = connection.clone();
            // The connection for reads must follow the primary too.
            let on_demotion = move || reads.replace_current();
            let writes = Reconnecting::start(target.without_waiters(), runtime);
            ReplicatedWrites::new(writes, acknowledgement, on_demotion, runtime)
        });
        Self { connection, replicated_writes, slow_since: ArcSwapOption::empty() }
    }

    /// Sends a request and waits for its reply. Retries, as [`super::retry`] says, until the connect timeout
    /// is over.
    pub(super) async fn call(&self, request: &Request<'_>) -> Attempt {
        let started = Instant::now();
        let attempt = self.attempt(request, false, self.settings().timeouts.connect).await;
        if matches!(attempt, Attempt::Replied(Ok(_))) {
            return attempt;
        }
        // Boxed, so that a call that succeeds takes little memory.
        Box::pin(self.call_again(request, attempt, started)).await
    }

    async fn call_again(&self, request: &Request<'_>, mut attempt: Attempt, started: Instant) -> Attempt {
        let mut retry = retry(started, self.settings().timeouts.connect);
        while retry.allows(request, &attempt, self.may_pass(&attempt)) {
            let is_lost = matches!(attempt, Attempt::Lost(_));
            retry.keep(attempt);
            if !is_lost {
                sleep(retry.next_pause()).await;
            }
            attempt = self.attempt(request, false, retry.time_left()).await;
        }
        retry.outcome(attempt)
    }

    /// Whether a retry may help after an error reply. A replica that the URL names stays a replica.
    fn may_pass(&self, attempt: &Attempt) -> bool {
        let Attempt::Replied(Err(error)) = attempt else { return false };
        error::is_transient_reply(error)
            && (self.connection.follows_primary() || matches!(error.code(), Some("LOADING" | "BUSY")))
    }

    /// Sends a request once, if there is a connection within `wait`.
    pub(super) async fn attempt(&self, request: &Request<'_>, asking: bool, wait: Duration) -> Attempt {
        if request.kind.is_write()
            && let Some(writes) = &self.replicated_writes
        {
            let reads = self.connection.current();
            let attempt = Box::pin(writes.attempt(request, asking, wait)).await;
            // The connection for reads must follow the primary too.
            if let (true, Some(reads)) = (says_is_replica(&attempt), reads) {
                self.connection.replace_if_useless(&reads, &attempt);
            }
            return attempt;
        }
        let connection = match &self.replicated_writes {
            Some(writes) if request.kind == CallKind::ReadToReplace => writes.connection(),
            _ => &self.connection,
        };
        let current = match connection.take(wait).await {
            Ok(current) => current,
            Err(attempt) => return attempt,
        };
        // Checked once the connection is certain.
        if request.kind.is_outdated(connection.epoch()) {
            return Attempt::Outdated;
        }
        let attempt = request.send(&current.connection, asking).await;
        connection.replace_if_useless(&current, &attempt);
        attempt
    }

    /// The connection, unless it is lost or its server was found to be slow just now.
    pub(super) fn ready(&self) -> Option<Connected> {
        let is_slow = self.slow_since.load().as_ref().is_some_and(|since| since.elapsed() < AVOIDED);
        if is_slow { None } else { self.connection.current() }
    }

    /// Replaces a connection whose server is too slow, and does not ask the server for a while.
    pub(super) fn avoid(&self, connection: &Connected) {
        self.slow_since.store(Some(Arc::new(Instant::now())));
        self.connection.replace_connection(connection);
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.current().is_some()
    }

    /// The address and, unless the URL names it, who announced it; for errors.
    pub(super) fn address_and_origin(&self) -> &str {
        self.connection.address_and_origin()
    }

    pub(super) fn address(&self) -> String {
        self.connection.target().address()
    }

    /// The host of the server; empty if Sentinels name the server.
    pub(super) fn host(&self) -> &str {
        self.connection.host()
    }

    pub(super) fn settings(&self) -> &Settings {
        self.connection.settings()
    }
}

impl OnRuntime for Node {
    fn has_ended(&self) -> bool {
        self.connection.has_ended()
    }

    fn restarted_on(&self, runtime: &Handle) -> Self {
        Self::start(self.connection.target().clone(), runtime)
    }
}
