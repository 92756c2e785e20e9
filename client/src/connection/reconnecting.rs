//! A connection that is replaced whenever it is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::cmd;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::live::Live;
use super::request::{Attempt, says_is_replica};
use super::retry::{self, SHORTEST_PAUSE};
use super::target::Target;
use super::waiters::Waiters;
use crate::error::Error;
use crate::observe;
use crate::settings::{Settings, Timeouts};

/// After a connection that lasted this long, the next attempt follows almost at once.
const STABLE: Duration = Duration::from_secs(1);
/// How long a server's reason for closing new connections is not asked for again, because asking takes
/// another connection.
const REASON_HOLDS: Duration = Duration::from_secs(5);
/// Without Sentinels, a connection to a replica is replaced only if it is at least this old: the address may
/// lead to another server by now.
const REPLICA_GRACE: Duration = Duration::from_secs(5);

/// The current connection, if there is one. It is replaced as a whole, so that calls read it without a lock.
struct State {
    /// The number of the attempt that made the connection, from 1; 0 before the first connection.
    number: u64,
    connection: Option<Live>,
    since: Instant,
    /// Why the lost connection has not been replaced yet.
    failure: Option<Box<Error>>,
}

impl State {
    fn new(number: u64, connection: Option<Live>, failure: Option<Box<Error>>) -> Self {
        Self { number, connection, since: Instant::now(), failure }
    }
}

/// A connection that a call can use.
#[derive(Clone)]
pub(super) struct Connected {
    number: u64,
    pub(super) connection: Live,
    since: Instant,
}

/// Signals between calls and the task that reconnects.
struct Signals {
    /// Are woken when a connection is lost, because it takes what the server tracks along.
    waiters: Arc<Waiters>,
    /// The number of the last connection that is known to be lost.
    last_lost: AtomicU64,
    loss: Notify,
    /// There is a new [`State`], or there will not be another.
    change: Notify,
    /// The runtime of the connection has ended.
    has_ended: AtomicBool,
}

impl Signals {
    fn new(waiters: Arc<Waiters>) -> Arc<Self> {
        let (loss, change) = (Notify::new(), Notify::new());
        Arc::new(Self {
            waiters,
            last_lost: AtomicU64::new(0),
            loss,
            change,
            has_ended: AtomicBool::new(false),
        })
    }

    fn lost(&self, number: u64) {
        // Many calls notice the same loss, some of them much later.
        if self.last_lost.fetch_max(number, Ordering::Relaxed) < number {
            self.loss.notify_one();
            // Not before: they must not read from the lost connection again.
            self.waiters.wake_all();
        }
    }

    fn is_lost(&self, number: u64) -> bool {
        number <= self.last_lost.load(Ordering::Relaxed)
    }
}

/// Signals that there will be no other connection, when the task that reconnects is dropped.
struct End(Arc<Signals>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Release);
        self.0.change.notify_waiters();
        self.0.waiters.wake_all();
    }
}

pub(super) struct Reconnecting {
    target: Target,
    address_and_origin: String,
    host: String,
    settings: Arc<Settings>,
    state: Arc<ArcSwap<State>>,
    signals: Arc<Signals>,
    reconnects: AbortHandle,
}

impl Drop for Reconnecting {
    fn drop(&mut self) {
        self.reconnects.abort();
    }
}

impl Reconnecting {
    /// Connects once, so that a failure is an error at once. Returns the first connection as well.
    pub(super) async fn open(mut target: Target) -> Result<(Self, Live), Error> {
        let signals = Signals::new(target.waiters());
        let (limit, on_loss) = (target.settings().timeouts.connect, signals.clone());
        let connection = target.connect_or_explain(limit, move || on_loss.lost(1)).await?;
        let state = State::new(1, Some(connection.clone()), None);
        Ok((Self::with(target, state, signals, &Handle::current()), connection))
    }

    /// Connects in the background, on a runtime that lasts as long as the connection is wanted.
    pub(super) fn start(target: Target, runtime: &Handle) -> Self {
        let signals = Signals::new(target.waiters());
        Self::with(target, State::new(0, None, None), signals, runtime)
    }

    fn with(target: Target, state: State, signals: Arc<Signals>, runtime: &Handle) -> Self {
        let state = Arc::new(ArcSwap::from_pointee(state));
        let (address_and_origin, host, settings) =
            (target.address_and_origin(), target.host(), target.settings());
        // The clone lacks what the Sentinels said, and the task needs that.
        let blank = target.clone();
        let task = reconnect(target, state.clone(), signals.clone(), End(signals.clone()));
        let reconnects = runtime.spawn(task).abort_handle();
        Self { target: blank, address_and_origin, host, settings, state, signals, reconnects }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn address_and_origin(&self) -> &str {
        &self.address_and_origin
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn follows_primary(&self) -> bool {
        self.target.follows_primary()
    }

    /// Whether the runtime of the connection has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.signals.has_ended.load(Ordering::Acquire)
    }

    /// See [`Waiters::epoch`].
    pub(super) fn epoch(&self) -> u64 {
        self.signals.waiters.epoch()
    }

    /// The connection, unless it is lost.
    pub(super) fn current(&self) -> Option<Connected> {
        let state = self.state.load();
        if self.signals.is_lost(state.number) {
            return None;
        }
        let connection = state.connection.clone()?;
        Some(Connected { number: state.number, connection, since: state.since })
    }

    /// The connection, or the next one if it comes within `wait`.
    pub(super) async fn take(&self, wait: Duration) -> Result<Connected, Attempt> {
        match self.current() {
            Some(current) => Ok(current),
            None => Box::pin(self.next(wait)).await,
        }
    }

    async fn next(&self, wait: Duration) -> Result<Connected, Attempt> {
        let started = Instant::now();
        loop {
            let mut changed = std::pin::pin!(self.signals.change.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(current) = self.current() {
                return Ok(current);
            }
            if let Some(refusal) = self.last_failure().filter(|failure| !failure.next_attempt_may_succeed()) {
                return Err(Attempt::Refused(refusal));
            }
            if self.has_ended() {
                return Err(Attempt::NotSent(None));
            }
            let in_time = timeout(wait.saturating_sub(started.elapsed()), changed).await;
            in_time.map_err(|_| Attempt::NotSent(self.last_failure()))?;
        }
    }

    fn last_failure(&self) -> Option<Box<Error>> {
        self.state.load().failure.clone()
    }

    /// Replaces the connection if an attempt shows that it is useless.
    pub(super) fn replace_if_useless(&self, current: &Connected, attempt: &Attempt) {
        let is_useless = match attempt {
            // A late or unreadable reply makes the next replies as unlikely as a lost connection does.
            Attempt::Lost(_) => true,
            // The primary is another server by now. The same address may lead to it, but not right
            // after connecting.
            attempt if says_is_replica(attempt) => {
                // The server may be a primary again before the connection is replaced, and have other records.
                self.signals.waiters.begin_epoch();
                self.follows_primary() || current.since.elapsed() >= REPLICA_GRACE
            }
            _ => false,
        };
        if is_useless {
            self.replace_connection(current);
        }
    }

    /// Replaces the connection.
    pub(super) fn replace_connection(&self, current: &Connected) {
        self.signals.lost(current.number);
    }

    /// Replaces the current connection.
    pub(super) fn replace_current(&self) {
        self.signals.lost(self.state.load().number);
    }

    /// Waits until this connection has been replaced.
    pub(super) async fn replaced(&self, current: &Connected) {
        loop {
            let mut changed = std::pin::pin!(self.signals.change.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if self.state.load().number != current.number {
                return;
            }
            changed.await;
        }
    }
}

/// Replaces the connection whenever it is lost. All clones of a backend share this one task, so they
/// reconnect once.
async fn reconnect(mut target: Target, state: Arc<ArcSwap<State>>, signals: Arc<Signals>, _end: End) {
    // One attempt that hangs must not take all the time that a call waits.
    let limit = target.settings().timeouts.connect.mul_f32(0.5);
    let mut number = state.load().number;
    let mut pace = Pace::new(limit, number != 0);
    let address = target.address_and_origin();
    // Before the first connection, there is no loss to report.
    let mut is_loss_told = number == 0;
    loop {
        let lost = state.load_full();
        until_lost(&mut target, &lost, &signals).await;
        if !is_loss_told {
            observe::lost(&address);
            is_loss_told = true;
        }
        // From here on, only calls that wait for a reply hold the lost connection. Calls that it has not sent
        // yet must not be sent when the network is back.
        let lost_number = lost.number;
        state.store(Arc::new(State::new(lost_number, None, lost.failure.clone())));
        drop(lost);
        sleep(pace.pause()).await;
        // Each attempt has its own number: a failed one may signal its loss later.
        number = number.wrapping_add(1);
        let on_loss = signals.clone();
        let next = match target.connect(limit, move || on_loss.lost(number)).await {
            Ok(connection) => {
                pace.connected();
                if lost_number != 0 {
                    observe::reconnected(&address);
                }
                is_loss_told = false;
                // Before any call can use the connection.
                signals.waiters.begin_epoch();
                State::new(number, Some(connection), None)
            }
            Err(failure) if pace.asks_for_reason(&failure) => {
                State::new(lost_number, None, Some(Box::new(target.explain(failure, limit).await)))
            }
            Err(failure) => {
                let known = state.load().failure.clone();
                State::new(lost_number, None, known.or_else(|| Some(Box::new(failure))))
            }
        };
        state.store(Arc::new(next));
        signals.change.notify_waiters();
    }
}

/// When the next attempt to connect is due, and whether its failure is worth another connection to find
/// the reason.
struct Pace {
    longest_pause: Duration,
    pauses: Box<dyn Iterator<Item = Duration> + Send + Sync>,
    last: LastAttempt,
    /// When a server that closes new connections was last asked for its reason.
    asked_for_reason: Option<Instant>,
}

enum LastAttempt {
    None,
    Failed,
    Connected(Instant),
}

impl Pace {
    /// For attempts that take at most `limit` each.
    fn new(limit: Duration, is_connected: bool) -> Self {
        // A call that comes when the server is back must not wait for the end of a long pause.
        let longest_pause = limit.mul_f32(0.5);
        let last = if is_connected { LastAttempt::Connected(Instant::now()) } else { LastAttempt::None };
        let pauses = Box::new(retry::pauses_up_to(longest_pause));
        Self { longest_pause, pauses, last, asked_for_reason: None }
    }

    /// The pause before the next attempt. That attempt counts as failed until [`Self::connected`] is called.
    fn pause(&mut self) -> Duration {
        match std::mem::replace(&mut self.last, LastAttempt::Failed) {
            LastAttempt::None => Duration::ZERO,
            LastAttempt::Connected(since) if since.elapsed() >= STABLE => {
                self.pauses = Box::new(retry::pauses_up_to(self.longest_pause));
                // A server that closed all connections does not get all of them back at the same time.
                SHORTEST_PAUSE.mul_f32(fastrand::f32())
            }
            LastAttempt::Failed | LastAttempt::Connected(_) => {
                self.pauses.next().unwrap_or(self.longest_pause)
            }
        }
    }

    fn connected(&mut self) {
        (self.last, self.asked_for_reason) = (LastAttempt::Connected(Instant::now()), None);
    }

    /// Whether to ask for the reason of a failure now. A server that closes new connections is asked once in
    /// [`REASON_HOLDS`].
    fn asks_for_reason(&mut self, failure: &Error) -> bool {
        let gives_no_reason = failure.gives_no_reason();
        if gives_no_reason && self.asked_for_reason.is_some_and(|asked| asked.elapsed() < REASON_HOLDS) {
            return false;
        }
        self.asked_for_reason = gives_no_reason.then(Instant::now);
        true
    }
}

/// Waits until the connection is lost. Meanwhile checks that the server still answers and is still the
/// right one.
async fn until_lost(target: &mut Target, state: &State, signals: &Signals) {
    let is_signalled = async {
        while !signals.is_lost(state.number) {
            signals.loss.notified().await;
        }
    };
    let Some(connection) = &state.connection else { return is_signalled.await };
    let Timeouts { keep_alive, response, .. } = target.settings().timeouts;
    let is_silent = async {
        loop {
            signals.waiters.connection_was_checked(keep_alive.saturating_add(response));
            sleep(keep_alive).await;
            if !answers(connection.clone()).await {
                break;
            }
        }
    };
    // Both checks run concurrently: Sentinels may know why a server is silent.
    tokio::select! {
        () = is_signalled => {}
        () = is_silent => signals.lost(state.number),
        () = target.until_replaced(connection) => signals.lost(state.number),
    }
}

/// Whether a server answers at all, even with an error.
async fn answers(mut connection: Live) -> bool {
    cmd("PING").exec_async(&mut connection).await.map_or_else(|error| error.code().is_some(), |()| true)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    fn failure(kind: std::io::ErrorKind) -> Error {
        Error::NoServer { address: "h:1".to_owned(), cause: std::io::Error::from(kind).into() }
    }

    #[tokio::test(start_paused = true)]
    async fn first_attempt_comes_at_once_and_pauses_between_failures_grow_to_half_an_attempt() {
        let mut pace = Pace::new(LIMIT, false);
        assert_eq!(pace.pause(), Duration::ZERO);
        let pauses: Vec<_> = (0..20).map(|_| pace.pause()).collect();
        assert!(pauses.iter().all(|pause| (SHORTEST_PAUSE..=LIMIT / 2).contains(pause)), "{pauses:?}");
        assert!(pauses.first() < pauses.last(), "{pauses:?}");
        // However long an attempt may take.
        let mut pace = Pace::new(Duration::from_mins(1), false);
        assert!((0..20).all(|_| pace.pause() <= Duration::from_millis(600)));
    }

    #[tokio::test(start_paused = true)]
    async fn loss_of_a_connection_that_lasted_is_followed_by_an_attempt_at_once_and_of_a_short_one_is_not() {
        let mut pace = Pace::new(LIMIT, true);
        advance(STABLE).await;
        assert!(pace.pause() <= SHORTEST_PAUSE);
        for _ in 0..20 {
            pace.pause();
        }
        pace.connected();
        advance(STABLE.saturating_sub(Duration::from_millis(1))).await;
        assert!(pace.pause() > 2 * SHORTEST_PAUSE, "the pauses have started over");
        pace.connected();
        advance(STABLE).await;
        assert!(pace.pause() <= SHORTEST_PAUSE);
        assert!(pace.pause() <= 2 * SHORTEST_PAUSE, "the pauses have not started over");
    }

    #[tokio::test(start_paused = true)]
    async fn server_that_closes_its_door_is_asked_for_the_reason_every_five_seconds_and_after_each_connection()
     {
        let (mut pace, closed) = (Pace::new(LIMIT, true), failure(std::io::ErrorKind::BrokenPipe));
        assert!(pace.asks_for_reason(&closed));
        advance(REASON_HOLDS.saturating_sub(Duration::from_millis(1))).await;
        assert!(!pace.asks_for_reason(&closed));
        advance(Duration::from_millis(1)).await;
        assert!(pace.asks_for_reason(&closed));
        pace.connected();
        assert!(pace.asks_for_reason(&closed));
        // A failure with a reason of its own costs no other connection, and the next closed door is a
        // new one.
        assert!(pace.asks_for_reason(&failure(std::io::ErrorKind::ConnectionRefused)));
        assert!(pace.asks_for_reason(&closed));
    }
}
