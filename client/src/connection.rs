//! The connection to the server: how it is opened, kept, and what a call does while it is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use backon::{BackoffBuilder, ExponentialBuilder};
use pmcp_tasks::StorageError;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisError,
    RedisResult, Value,
};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{self, CallKind, Error};

/// Pauses between attempts to connect grow from the first to the second, with jitter of up to as much again,
/// so that a fleet does not come back all at once.
const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(300));
/// A connection that lasts shorter than this is not worth a quick attempt at the next one.
const STABLE: Duration = Duration::from_secs(1);
/// Calls that may wait to be sent; beyond that, callers wait. The connection sends them in one go.
const CALLS_WAITING: usize = 1024;

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    pub(crate) response: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(2), response: Duration::from_secs(10) }
    }
}

/// A connection that all clones share; calls made at the same time are pipelined.
#[derive(Clone)]
pub(crate) enum Connection {
    /// Reconnects by itself.
    Kept(Arc<Kept>),
    /// Somebody else's: when it is lost, it stays lost.
    Given(MultiplexedConnection),
}

impl Connection {
    /// Connects once, so that a wrong address or password shows at once.
    pub(crate) async fn open(url: &str, timeouts: Timeouts) -> Result<Self, Error> {
        let endpoint = Endpoint::of(url, timeouts)?;
        let status = Arc::new(Status::default());
        let first = endpoint
            .connect(timeouts.connect, &status, 1)
            .await
            .map_err(|error| error::of_connecting(error, endpoint.address.clone()))?;
        let link = Link { number: 1, connection: first, refusal: None };
        let link = Arc::new(ArcSwap::from_pointee(link));
        let keeper = tokio::spawn(keep(endpoint.clone(), link.clone(), status.clone())).abort_handle();
        Ok(Self::Kept(Arc::new(Kept { endpoint, link, status, keeper })))
    }

    /// Sends a command and waits for its reply; `key` is for the error.
    ///
    /// A write is sent at most once. What has certainly not been sent, and a read that lost its connection,
    /// waits for the next connection until the time to connect is over.
    pub(crate) async fn call(&self, command: &Cmd, kind: CallKind, key: &str) -> Result<Value, StorageError> {
        let reply = match self {
            Self::Given(connection) => connection.clone().req_packed_command(command).await,
            Self::Kept(kept) => kept.call(command, kind).await?,
        };
        reply.and_then(Value::extract_error).map_err(|error| error::of_call(error, kind, key))
    }
}

/// Where and how to connect.
#[derive(Clone)]
struct Endpoint {
    client: Client,
    address: String,
    timeouts: Timeouts,
}

impl Endpoint {
    fn of(url: &str, timeouts: Timeouts) -> Result<Self, Error> {
        let info = url.into_connection_info().map_err(|error| Error::Settings(error.to_string()))?;
        let address = info.addr().to_string();
        let mut redis =
            info.redis_settings().clone().set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        if !url.contains("protocol=") {
            // With RESP3, a lost connection is noticed, and replaced, before the next call needs it.
            redis = redis.set_protocol(ProtocolVersion::RESP3);
        }
        let info = info.set_redis_settings(redis).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).map_err(|error| Error::Settings(error.to_string()))?;
        Ok(Self { client, address, timeouts })
    }

    /// Connects. `status` learns of the loss of the connection by its number.
    async fn connect(
        &self,
        limit: Duration,
        status: &Arc<Status>,
        number: u64,
    ) -> RedisResult<MultiplexedConnection> {
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(self.timeouts.response))
            .set_pipeline_buffer_size(CALLS_WAITING);
        if self.client.get_connection_info().redis_settings().protocol() == ProtocolVersion::RESP3 {
            let status = status.clone();
            config = config.set_push_sender(move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    status.lost(number);
                }
                Ok::<(), redis::aio::SendError>(())
            });
        }
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

/// The connection of the moment. It is replaced as a whole, so that a call takes it without a lock.
struct Link {
    /// 1 for the first connection, more for each that follows.
    number: u64,
    connection: MultiplexedConnection,
    /// Why the server let nobody in after this connection was lost: a wrong password, say.
    refusal: Option<RedisError>,
}

/// What calls and the task that keeps the connection tell each other.
#[derive(Default)]
struct Status {
    /// Number of the last connection that is known to be lost.
    last_lost: AtomicU64,
    loss: Notify,
    /// There is another [`Link`].
    change: Notify,
}

impl Status {
    fn lost(&self, number: u64) {
        self.last_lost.fetch_max(number, Ordering::Relaxed);
        self.loss.notify_one();
    }

    fn is_lost(&self, number: u64) -> bool {
        number <= self.last_lost.load(Ordering::Relaxed)
    }
}

/// A connection that comes back.
pub(crate) struct Kept {
    endpoint: Endpoint,
    link: Arc<ArcSwap<Link>>,
    status: Arc<Status>,
    keeper: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Kept {
    /// The reply, or how it was lost.
    ///
    /// # Errors
    ///
    /// [`Error::NotConnected`] and [`Error::Authentication`]: nothing was sent, or only a read.
    async fn call(&self, command: &Cmd, kind: CallKind) -> Result<RedisResult<Value>, Error> {
        let started = Instant::now();
        loop {
            let (number, mut connection) = match self.current() {
                Some(current) => current,
                None => self.next(started).await?,
            };
            match connection.req_packed_command(command).await {
                Err(error) => {
                    // Replies that are late or unreadable say as little of the next ones as none at all.
                    self.status.lost(number);
                    let may_repeat = kind == CallKind::Read && !error.is_timeout() && error.is_io_error();
                    if !may_repeat || self.time_to_wait(started).is_zero() {
                        return Ok(Err(error));
                    }
                }
                reply => return Ok(reply),
            }
        }
    }

    /// The connection, unless it is lost.
    fn current(&self) -> Option<(u64, MultiplexedConnection)> {
        let link = self.link.load();
        (!self.status.is_lost(link.number)).then(|| (link.number, link.connection.clone()))
    }

    /// How long a call may still wait for a connection.
    fn time_to_wait(&self, started: Instant) -> Duration {
        self.endpoint.timeouts.connect.saturating_sub(started.elapsed())
    }

    /// Waits for the connection after the one that is lost.
    async fn next(&self, started: Instant) -> Result<(u64, MultiplexedConnection), Error> {
        loop {
            let mut changed = std::pin::pin!(self.status.change.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(current) = self.current() {
                return Ok(current);
            }
            if let Some(refusal) = &self.link.load().refusal {
                return Err(error::of_connecting(refusal.clone(), self.endpoint.address.clone()));
            }
            let in_time = timeout(self.time_to_wait(started), changed).await;
            in_time.map_err(|_| Error::NotConnected { waited: started.elapsed() })?;
        }
    }
}

/// Replaces the connection whenever it is lost. One task for all clones, so that they reconnect as one.
async fn keep(endpoint: Endpoint, link: Arc<ArcSwap<Link>>, status: Arc<Status>) {
    // One attempt that hangs must not take all the time that a call waits.
    let limit = endpoint.timeouts.connect.mul_f32(0.5);
    let mut pauses = pauses();
    let mut made = Instant::now();
    let mut number = link.load().number;
    loop {
        let lost = link.load_full();
        while !status.is_lost(lost.number) {
            status.loss.notified().await;
        }
        if made.elapsed() >= STABLE {
            pauses = self::pauses();
        } else {
            sleep(pauses.next().unwrap_or(RECONNECT_PAUSE.1)).await;
        }
        made = Instant::now();
        // Each attempt has a number of its own: one that fails may tell of its loss later.
        number = number.wrapping_add(1);
        let link_of = |attempt: RedisResult<MultiplexedConnection>| match attempt {
            Ok(connection) => Link { number, connection, refusal: None },
            Err(error) => Link {
                number: lost.number,
                connection: lost.connection.clone(),
                refusal: (!error.is_io_error()).then_some(error),
            },
        };
        link.store(Arc::new(link_of(endpoint.connect(limit, &status, number).await)));
        status.change.notify_waiters();
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    let (shortest, longest) = RECONNECT_PAUSE;
    ExponentialBuilder::default()
        .with_min_delay(shortest)
        .with_max_delay(longest)
        .without_max_times()
        .with_jitter()
        .build()
}
