//! A connection that comes back when it is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use backon::{BackoffBuilder, ExponentialBuilder};
use redis::{RedisError, cmd};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::endpoint::{Endpoint, expect_one_server};
use super::live::Live;
use super::request::{Attempt, Request};
use super::runtime::OnRuntime;
use super::sentinel::Sentinels;
use super::settings::Settings;
use super::waiting_writes::WaitingWrites;
use crate::error::{self, CallKind, Error};
use crate::observe;

/// Pauses between attempts to connect grow from the first to the second, with jitter of up to as much again,
/// so that a fleet does not come back all at once.
const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(300));
/// A connection that lasts shorter than this is not worth a quick attempt at the next one.
const STABLE: Duration = Duration::from_secs(1);
/// A server that takes no writes may be another one when it is connected to again, but not that soon.
const OTHER_SERVER: Duration = Duration::from_secs(5);
/// The part of the time to connect that finding out takes at most, after a failure, why it was one.
const EXPLANATION: f32 = 0.25;
/// How long a server that has been found to be slow is not asked.
const LEFT_ALONE: Duration = Duration::from_secs(2);
/// How often Sentinels are asked who the primary is.
const PRIMARY_CHECK: Duration = Duration::from_secs(1);

/// What to connect to.
#[derive(Clone)]
pub(super) enum Place {
    /// One server, whatever it is.
    Server(Endpoint),
    /// The primary of the moment, or a replica of it.
    Watched(Sentinels),
}

impl Place {
    fn settings(&self) -> Arc<Settings> {
        match self {
            Self::Server(endpoint) => endpoint.settings.clone(),
            Self::Watched(sentinels) => sentinels.settings(),
        }
    }

    fn takes_writes(&self) -> bool {
        match self {
            Self::Server(endpoint) => !endpoint.is_for_reads(),
            Self::Watched(sentinels) => sentinels.is_for_writes(),
        }
    }

    pub(super) fn address(&self) -> String {
        match self {
            Self::Server(endpoint) => endpoint.address_and_origin(),
            Self::Watched(sentinels) => sentinels.address(),
        }
    }

    /// Connects for the first time, and finds out why it fails. `on_loss` is called when the connection is lost.
    pub(super) async fn connect_once(
        &mut self,
        limit: Duration,
        on_loss: impl Fn() + Send + Sync + 'static,
    ) -> Result<Live, Error> {
        match self.connect(limit, on_loss).await {
            Ok(connection) => Ok(connection),
            Err(failure) => Err(self.explain(failure, limit).await),
        }
    }

    /// Connects. `on_loss` is called when the connection is lost.
    async fn connect(
        &mut self,
        limit: Duration,
        on_loss: impl Fn() + Send + Sync + 'static,
    ) -> Result<Live, Error> {
        match self {
            Self::Server(endpoint) => endpoint.connect(limit, on_loss).await,
            Self::Watched(sentinels) => sentinels.connect(limit, on_loss).await,
        }
    }

    /// The reason of the last failure to connect, where the failure itself does not tell.
    pub(super) async fn explain(&self, failure: Error, limit: Duration) -> Error {
        let limit = limit.mul_f32(EXPLANATION);
        match self {
            Self::Server(endpoint) => endpoint.explain(failure, limit).await,
            Self::Watched(sentinels) => sentinels.explain(failure, limit).await,
        }
    }
}

/// The connection of the moment. It is replaced as a whole, so that a call takes it without a lock.
struct Link {
    /// 0 for none, 1 for the first connection, more for each that follows.
    number: u64,
    connection: Option<Live>,
    since: Instant,
    /// How the last attempt to connect has failed after this connection was lost.
    failure: Option<Box<Error>>,
}

/// A connection that a call can use.
#[derive(Clone)]
pub(super) struct Current {
    number: u64,
    pub(super) connection: Live,
    since: Instant,
}

impl Link {
    fn new(number: u64, connection: Option<Live>, failure: Option<Box<Error>>) -> Self {
        Self { number, connection, since: Instant::now(), failure }
    }
}

/// What calls and the task that keeps the connection tell each other.
#[derive(Default)]
struct Status {
    /// Number of the last connection that is known to be lost.
    last_lost: AtomicU64,
    loss: Notify,
    /// There is another [`Link`], or there will be none any more.
    change: Notify,
    /// The runtime on which the connection lives has ended.
    has_ended: AtomicBool,
}

/// Tells, when it goes with the task that keeps a connection, that there will be no other connection.
struct End(Arc<Status>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Release);
        self.0.change.notify_waiters();
    }
}

impl Status {
    fn lost(&self, number: u64) {
        // Many calls find out about the same loss, some of them much later.
        if self.last_lost.fetch_max(number, Ordering::Relaxed) < number {
            self.loss.notify_one();
        }
    }

    fn is_lost(&self, number: u64) -> bool {
        number <= self.last_lost.load(Ordering::Relaxed)
    }
}

/// A connection that comes back, to one place.
pub(crate) struct Kept {
    place: Place,
    address: String,
    host: String,
    settings: Arc<Settings>,
    /// Whether a primary that turns out to be none is to be looked for elsewhere.
    follows_primary: bool,
    link: Arc<ArcSwap<Link>>,
    status: Arc<Status>,
    keeper: AbortHandle,
    /// Where writes go if they are to wait for replicas.
    waiting_writes: Option<WaitingWrites>,
    /// When the server was found to be slow.
    slow: ArcSwapOption<Instant>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Kept {
    /// Connects once, so that a wrong address or password shows at once.
    pub(super) async fn open(mut place: Place) -> Result<Self, Error> {
        let status = Arc::new(Status::default());
        let limit = place.settings().timeouts.connect;
        let (started, told) = (Instant::now(), status.clone());
        let mut connection = place.connect_once(limit, move || told.lost(1)).await?;
        if let Place::Server(endpoint) = &place {
            let left = limit.saturating_sub(started.elapsed());
            expect_one_server(&mut connection, endpoint, left).await?;
        }
        Ok(Self::with(place, Link::new(1, Some(connection), None), status, &Handle::current()))
    }

    /// Connects in the background, on a runtime that lasts as long as the connection is wanted.
    pub(super) fn start(place: Place, runtime: &Handle) -> Self {
        Self::with(place, Link::new(0, None, None), Arc::new(Status::default()), runtime)
    }

    fn with(place: Place, link: Link, status: Arc<Status>, runtime: &Handle) -> Self {
        let acknowledgement = place.settings().acknowledgement.filter(|_| place.takes_writes());
        let for_writes = acknowledgement.map(|_| place.clone());
        let mut kept = Self::alone(place, link, status, runtime);
        kept.waiting_writes = acknowledgement.zip(for_writes).map(|(acknowledgement, place)| {
            let connection = Self::alone(place, Link::new(0, None, None), Arc::default(), runtime);
            // Reads are not to stay behind.
            let (link, status) = (kept.link.clone(), kept.status.clone());
            let on_demotion = move || status.lost(link.load().number);
            WaitingWrites::new(connection, acknowledgement, on_demotion, runtime)
        });
        kept
    }

    fn alone(place: Place, link: Link, status: Arc<Status>, runtime: &Handle) -> Self {
        let (address, settings) = (place.address(), place.settings());
        let (host, follows_primary) = match &place {
            Place::Server(endpoint) => (endpoint.host(), false),
            Place::Watched(_) => (String::new(), true),
        };
        let link = Arc::new(ArcSwap::from_pointee(link));
        // Without what has been found out, which stays with the task that goes on with it.
        let again = place.clone();
        let kept = keep(place, link.clone(), status.clone(), End(status.clone()));
        let keeper = runtime.spawn(kept).abort_handle();
        Self {
            place: again,
            address,
            host,
            settings,
            follows_primary,
            link,
            status,
            keeper,
            waiting_writes: None,
            slow: ArcSwapOption::empty(),
        }
    }

    /// Sends a request and waits for its reply, for the next connection too while nothing can have been
    /// changed.
    ///
    /// A write is sent at most once. What has certainly not been carried out is tried again until the time to connect
    /// is over, and a read that lost its connection once.
    pub(super) async fn call(&self, request: &Request<'_>) -> Attempt {
        let started = Instant::now();
        let attempt = self.attempt(request, false, self.settings.timeouts.connect).await;
        if !self.is_to_be_repeated(request, &attempt, started) {
            return attempt;
        }
        // Apart, because a call has to be kept in memory with all that it may ever do.
        Box::pin(self.repeat(request, attempt, started)).await
    }

    async fn repeat(&self, request: &Request<'_>, mut attempt: Attempt, started: Instant) -> Attempt {
        let (mut pauses, mut refusal, mut is_lost) = (pauses(), None, false);
        while self.is_to_be_repeated(request, &attempt, started) {
            match attempt {
                // The read itself may be what ends connections, and it ends them for everybody.
                Attempt::Lost(_) if is_lost => return attempt,
                Attempt::Lost(_) => is_lost = true,
                _ => {
                    refusal = Some(attempt);
                    sleep(pauses.next().unwrap_or(RECONNECT_PAUSE.1).min(self.time_to_wait(started))).await;
                }
            }
            attempt = self.attempt(request, false, self.time_to_wait(started)).await;
        }
        attempt.or_what_was_replied(refusal)
    }

    fn is_to_be_repeated(&self, request: &Request<'_>, attempt: &Attempt, started: Instant) -> bool {
        let may_repeat = match attempt {
            Attempt::Lost(error) => request.may_be_sent_again_after(error),
            Attempt::Replied(Err(error)) => error::is_passing(error) && self.may_recover(error),
            Attempt::Replied(Ok(_)) | Attempt::NotSent(_) | Attempt::Refused(_) => false,
        };
        may_repeat && !self.time_to_wait(started).is_zero()
    }

    /// Whether the error reply of a server that has done nothing may be another one soon. The one server of a URL
    /// that is a replica stays one, for all that this client can do.
    fn may_recover(&self, error: &RedisError) -> bool {
        self.follows_primary || matches!(error.code(), Some("LOADING" | "BUSY"))
    }

    /// Sends a request once, if there is a connection or comes one in time.
    pub(super) async fn attempt(&self, request: &Request<'_>, asking: bool, wait: Duration) -> Attempt {
        if request.kind == CallKind::Write
            && let Some(writes) = &self.waiting_writes
        {
            let for_reads = self.current();
            let attempt = Box::pin(writes.attempt(request, asking, wait)).await;
            // Reads are not to stay behind with a server that is no primary any more.
            if let (true, Some(current)) = (says_is_replica(&attempt), for_reads) {
                self.note(&current, &attempt);
            }
            return attempt;
        }
        let current = match self.take(wait).await {
            Ok(current) => current,
            Err(attempt) => return attempt,
        };
        let attempt = request.send(&current.connection, asking).await;
        self.note(&current, &attempt);
        attempt
    }

    /// The connection, or the next one if it comes in time.
    pub(super) async fn take(&self, wait: Duration) -> Result<Current, Attempt> {
        match self.current() {
            Some(current) => Ok(current),
            None => Box::pin(self.next(wait)).await,
        }
    }

    /// Has the connection replaced if it is of no use any more, by what came of a request.
    pub(super) fn note(&self, current: &Current, attempt: &Attempt) {
        let is_to_be_replaced = match attempt {
            // Replies that are late or unreadable say as little of the next ones as none at all.
            Attempt::Lost(_) => true,
            // The primary is another server by now; maybe one that the same name leads to, if not just now.
            attempt if says_is_replica(attempt) => {
                self.follows_primary || current.since.elapsed() >= OTHER_SERVER
            }
            _ => false,
        };
        if is_to_be_replaced {
            self.lose(current);
        }
    }

    /// Has the connection of a server replaced that is too slow to be asked again soon.
    pub(super) fn leave_alone(&self, current: &Current) {
        self.slow.store(Some(Arc::new(Instant::now())));
        self.lose(current);
    }

    pub(super) fn is_left_alone(&self) -> bool {
        self.slow.load().as_ref().is_some_and(|since| since.elapsed() < LEFT_ALONE)
    }

    /// Waits until there is another connection than that.
    pub(super) async fn replaced(&self, current: &Current) {
        loop {
            let mut changed = std::pin::pin!(self.status.change.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if self.link.load().number != current.number {
                return;
            }
            changed.await;
        }
    }

    /// Has the connection replaced.
    pub(super) fn lose(&self, current: &Current) {
        self.status.lost(current.number);
    }

    /// What is connected to, for errors.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The same, without whoever has told of it.
    pub(super) fn plain_address(&self) -> String {
        match &self.place {
            Place::Server(endpoint) => endpoint.address(),
            Place::Watched(sentinels) => sentinels.address(),
        }
    }

    /// The host of a server that is always the same.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn is_connected(&self) -> bool {
        self.current().is_some()
    }

    /// The connection, unless it is lost.
    pub(super) fn current(&self) -> Option<Current> {
        let link = self.link.load();
        if self.status.is_lost(link.number) {
            return None;
        }
        let connection = link.connection.clone()?;
        Some(Current { number: link.number, connection, since: link.since })
    }

    /// How long a call may still wait for a connection.
    fn time_to_wait(&self, started: Instant) -> Duration {
        self.settings.timeouts.connect.saturating_sub(started.elapsed())
    }

    /// Waits for the connection after the one that is lost.
    async fn next(&self, wait: Duration) -> Result<Current, Attempt> {
        let started = Instant::now();
        loop {
            let mut changed = std::pin::pin!(self.status.change.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(current) = self.current() {
                return Ok(current);
            }
            if let Some(refusal) = self.last_failure().filter(|failure| !failure.is_of_the_moment()) {
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
        self.link.load().failure.clone()
    }
}

impl OnRuntime for Kept {
    fn has_ended(&self) -> bool {
        self.status.has_ended.load(Ordering::Acquire)
    }

    fn again(&self, runtime: &Handle) -> Self {
        Self::start(self.place.clone(), runtime)
    }
}

fn says_is_replica(attempt: &Attempt) -> bool {
    matches!(attempt, Attempt::Replied(Err(error)) if error.code() == Some("READONLY"))
}

/// Replaces the connection whenever it is lost. One task for all clones, so that they reconnect as one.
async fn keep(mut place: Place, link: Arc<ArcSwap<Link>>, status: Arc<Status>, _end: End) {
    // One attempt that hangs must not take all the time that a call waits.
    let limit = place.settings().timeouts.connect.mul_f32(0.5);
    // Nor must a pause: a call that comes when the server is back is to find it.
    let longest_pause = limit.mul_f32(0.5);
    let mut pauses = pauses();
    let mut made = Instant::now();
    let mut number = link.load().number;
    let address = place.address();
    // Without a first connection, nothing was lost that would be worth a pause.
    let mut is_first = number == 0;
    let mut is_told = is_first;
    // A server that closes its door is asked once why it does.
    let mut is_asked = false;
    loop {
        let lost = link.load_full();
        until_lost(&mut place, &lost, &status).await;
        if !is_told {
            observe::lost(&address);
            is_told = true;
        }
        // Nobody uses it any more but those who wait for a reply: what it still holds back is not to be sent
        // when the network is back.
        let (lost_number, was_connected) = (lost.number, lost.connection.is_some());
        link.store(Arc::new(Link::new(lost_number, None, lost.failure.clone())));
        drop(lost);
        if was_connected && made.elapsed() >= STABLE {
            pauses = self::pauses();
            // A server that has ended all connections does not get all of them back in the same moment.
            sleep(RECONNECT_PAUSE.0.mul_f32(fastrand::f32())).await;
        } else if !is_first {
            sleep(pauses.next().unwrap_or(RECONNECT_PAUSE.1).min(longest_pause)).await;
        }
        is_first = false;
        // Each attempt has a number of its own: one that fails may tell of its loss later.
        number = number.wrapping_add(1);
        let told = status.clone();
        let next = match place.connect(limit, move || told.lost(number)).await {
            Ok(connection) => Link::new(number, Some(connection), None),
            Err(failure) if is_asked && failure.is_closed_door() => {
                let known = link.load().failure.clone();
                Link::new(lost_number, None, known.or_else(|| Some(Box::new(failure))))
            }
            Err(failure) => {
                is_asked = failure.is_closed_door();
                Link::new(lost_number, None, Some(Box::new(place.explain(failure, limit).await)))
            }
        };
        if next.number == number {
            (made, is_asked) = (Instant::now(), false);
            if lost_number != 0 {
                observe::reconnected(&address);
            }
            is_told = false;
        }
        link.store(Arc::new(next));
        status.change.notify_waiters();
    }
}

/// Waits until a connection is lost, and looks after it meanwhile: a host that is silent is found out, and so
/// is a primary that is none any more.
async fn until_lost(place: &mut Place, link: &Link, status: &Status) {
    let is_told = async {
        while !status.is_lost(link.number) {
            status.loss.notified().await;
        }
    };
    let Some(connection) = &link.connection else { return is_told.await };
    let keep_alive = place.settings().timeouts.keep_alive;
    let is_silent = async {
        loop {
            sleep(keep_alive).await;
            if !answers(connection.clone()).await {
                break;
            }
        }
    };
    // Goes on while a host is silent: the Sentinels may know why.
    let is_wrong = async {
        match place {
            Place::Server(_) => std::future::pending().await,
            Place::Watched(sentinels) => loop {
                sleep(PRIMARY_CHECK.min(keep_alive)).await;
                if !sentinels.is_still_right(connection.clone()).await {
                    break;
                }
            },
        }
    };
    tokio::select! {
        () = is_told => {}
        () = is_silent => status.lost(link.number),
        () = is_wrong => status.lost(link.number),
    }
}

/// Whether a server answers at all, be it with an error.
async fn answers(mut connection: Live) -> bool {
    cmd("PING").exec_async(&mut connection).await.map_or_else(|error| error.code().is_some(), |()| true)
}

/// Pauses between attempts at what fails.
pub(super) fn pauses() -> impl Iterator<Item = Duration> {
    let (shortest, longest) = RECONNECT_PAUSE;
    ExponentialBuilder::default()
        .with_min_delay(shortest)
        .with_max_delay(longest)
        .without_max_times()
        .with_jitter()
        .build()
}
