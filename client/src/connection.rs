//! The connection to the server: how it is opened, and what a call does while it is lost.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{Client, Cmd, IntoConnectionInfo, ProtocolVersion, RedisError, Value};

use crate::error::{self, CallKind, Error};

/// Reconnecting starts at once, with a pause between attempts that grows from the first to the second.
const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(300));
/// Attempts of one round, about a second of them. The next call starts the next round.
const RECONNECT_ATTEMPTS: usize = 6;
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
    Managed(Arc<Managed>),
    /// Somebody else's: when it is lost, it stays lost.
    Given(MultiplexedConnection),
}

impl Connection {
    /// Connects once, so that a wrong address or password shows at once.
    pub(crate) async fn open(url: &str, timeouts: Timeouts) -> Result<Self, Error> {
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

        let once =
            Self::config(timeouts).set_connection_timeout(Some(timeouts.connect)).set_number_of_retries(0);
        ConnectionManager::new_with_config(client.clone(), once)
            .await
            .map_err(|error| error::of_connecting(error, address.clone()))?;
        let manager = ConnectionManager::new_with_config(client.clone(), Self::config(timeouts))
            .await
            .map_err(|error| error::of_connecting(error, address))?;
        let current = Mutex::new(Generation { number: 0, manager });
        Ok(Self::Managed(Arc::new(Managed { client, timeouts, current })))
    }

    fn config(timeouts: Timeouts) -> ConnectionManagerConfig {
        let (shortest, longest) = RECONNECT_PAUSE;
        ConnectionManagerConfig::new()
            // One attempt that hangs must not take all the time that a call waits.
            .set_connection_timeout(Some(timeouts.connect.mul_f32(0.5)))
            .set_response_timeout(Some(timeouts.response))
            .set_min_delay(shortest)
            .set_max_delay(longest)
            .set_number_of_retries(RECONNECT_ATTEMPTS)
            .set_pipeline_buffer_size(CALLS_WAITING)
    }

    /// Sends a command and waits for its reply; `key` is for the error.
    ///
    /// A write is sent at most once. What has certainly not been sent, and a read that lost its connection,
    /// is tried again until the time to connect is over.
    pub(crate) async fn call(&self, command: &Cmd, kind: CallKind, key: &str) -> Result<Value, StorageError> {
        let reply = match self {
            Self::Given(connection) => connection.clone().req_packed_command(command).await,
            Self::Managed(managed) => {
                let started = Instant::now();
                loop {
                    let Generation { number, mut manager } = managed.current();
                    let attempted = Instant::now();
                    match manager.req_packed_command(command).await {
                        Err(error) if was_not_sent(&error) => {
                            let waited = started.elapsed();
                            if waited >= managed.timeouts.connect {
                                return Err(Error::NotConnected { waited }.into());
                            }
                        }
                        Err(error)
                            if kind == CallKind::Read
                                && lost_its_connection(&error, attempted.elapsed(), managed.timeouts)
                                && started.elapsed() < managed.timeouts.connect => {}
                        Err(error) if !error.is_io_error() => {
                            managed.replace(number);
                            break Err(error);
                        }
                        reply => break reply,
                    }
                }
            }
        };
        reply.and_then(Value::extract_error).map_err(|error| error::of_call(error, kind, key))
    }
}

/// A connection that comes back.
///
/// The manager of the redis crate connects again after I/O errors only. Where connecting has failed in
/// another way (the password was wrong for a moment, a proxy has answered for a server that was away), it
/// keeps that error for good, so the manager itself is replaced then.
pub(crate) struct Managed {
    client: Client,
    timeouts: Timeouts,
    current: Mutex<Generation>,
}

#[derive(Clone)]
struct Generation {
    number: u64,
    manager: ConnectionManager,
}

impl Managed {
    fn current(&self) -> Generation {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a new manager, which connects when it is needed, in the place of the one with this number. Of
    /// all calls that have failed with it, the first one does so.
    fn replace(&self, number: u64) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.number != number {
            return;
        }
        let config = Connection::config(self.timeouts);
        if let Ok(manager) = ConnectionManager::new_lazy_with_config(self.client.clone(), config) {
            *current = Generation { number: number.wrapping_add(1), manager };
        }
    }
}

/// True where the connection broke, or could not be made in time: a reply is not late before its own time.
fn lost_its_connection(error: &RedisError, took: Duration, timeouts: Timeouts) -> bool {
    error.is_connection_dropped() || (error.is_timeout() && took < timeouts.response)
}

/// Only connecting fails like this: a connection that is there breaks in other ways.
fn was_not_sent(error: &RedisError) -> bool {
    error.is_connection_refusal()
}
