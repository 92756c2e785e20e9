//! A connection that tells its callers when it ends.
//!
//! The redis crate hands each call to the task that drives the connection, through a tokio channel. If
//! the task ends just when a call is handed over, the call gets no reply. The call stays in the channel until the last
//! clone of the connection is dropped, and the waiting caller itself holds a clone ([tokio's issue 7714]). Only the
//! response timeout would end the wait. So a waiting call checks from time to time that the task still runs.
//!
//! [tokio's issue 7714]: https://github.com/tokio-rs/tokio/issues/7714

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value, cmd};
use tokio::time::{Instant, timeout};

/// How often a waiting call checks that the connection's task still runs.
const DRIVER_CHECK: Duration = Duration::from_millis(250);

/// A connection to a server, for any number of concurrent calls.
#[derive(Clone)]
pub(crate) struct Live {
    redis: Arc<MultiplexedConnection>,
    /// How long a call waits for its reply.
    limit: Duration,
    /// The database that was selected when connecting.
    database: i64,
    /// Whether the server's `invalidate` messages reach the waiters.
    has_invalidations: bool,
}

impl Live {
    /// Takes a connection without a response timeout of its own.
    pub(super) fn new(redis: MultiplexedConnection, limit: Duration, database: i64) -> Self {
        Self { redis: Arc::new(redis), limit, database, has_invalidations: false }
    }

    /// Says that the server's `invalidate` messages reach the waiters.
    pub(super) fn with_invalidations(self) -> Self {
        Self { has_invalidations: true, ..self }
    }

    pub(super) fn has_invalidations(&self) -> bool {
        self.has_invalidations
    }

    /// Takes a caller's connection, which keeps its own response timeout.
    pub(crate) fn given(redis: MultiplexedConnection) -> Self {
        let database = redis.get_db();
        Self::new(redis, Duration::MAX, database)
    }

    /// The same as `req_packed_command`, without a box.
    pub(super) async fn send_packed_command(&self, command: &Cmd) -> RedisResult<Value> {
        let mut redis = MultiplexedConnection::clone(&self.redis);
        self.in_time(pin!(redis.send_packed_command(command))).await
    }

    /// The same as `req_packed_commands`, without a box.
    pub(super) async fn send_packed_commands(
        &self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let mut redis = MultiplexedConnection::clone(&self.redis);
        self.in_time(pin!(redis.send_packed_commands(pipeline, offset, count))).await
    }

    /// Waits for a reply as long as one may come. The future is pinned, because moving it would take its
    /// memory twice.
    async fn in_time<T>(&self, mut reply: Pin<&mut impl Future<Output = RedisResult<T>>>) -> RedisResult<T> {
        let (started, mut left) = (Instant::now(), self.limit);
        loop {
            if let Ok(reply) = timeout(DRIVER_CHECK.min(left), &mut reply).await {
                return reply;
            }
            left = self.limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            // Boxed, because few calls get here.
            if !Box::pin(self.is_driven()).await {
                // The reply may have come just before the end.
                let reply = timeout(Duration::ZERO, reply).await;
                return reply.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::BrokenPipe).into()));
            }
        }
    }

    /// Whether the task that drives the connection still takes calls. The `PING` that finds out is dropped as
    /// soon as it is handed over: the redis crate does not send what nobody waits for.
    async fn is_driven(&self) -> bool {
        let (mut redis, ping) = (MultiplexedConnection::clone(&self.redis), cmd("PING"));
        let mut call = pin!(redis.send_packed_command(&ping));
        let handed_over = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
        !matches!(handed_over, Poll::Ready(Err(_)))
    }
}

impl ConnectionLike for Live {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.send_packed_command(command))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(self.send_packed_commands(pipeline, offset, count))
    }

    fn get_db(&self) -> i64 {
        self.database
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use redis::{AsyncConnectionConfig, RedisConnectionInfo};

    use super::*;

    /// One call in a few thousand is handed over just as its connection ends.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn call_that_meets_the_end_of_its_connection_does_not_wait_for_the_response_timeout() {
        const ROUNDS: usize = 20_000;
        const RESPONSE: Duration = Duration::from_mins(1);
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        for round in 0..ROUNDS {
            let (here, there) = tokio::io::duplex(64);
            let config = AsyncConnectionConfig::new().set_response_timeout(None);
            let (redis, driver) = MultiplexedConnection::new_with_config(&info, here, config).await.unwrap();
            let live = Live::new(redis, RESPONSE, 0);
            let driver = tokio::spawn(driver);
            let call = tokio::spawn(async move {
                // Varies the time of the call.
                (0..round % 64).for_each(|_| std::hint::spin_loop());
                let started = Instant::now();
                live.send_packed_command(&cmd("PING")).await.unwrap_err();
                started.elapsed()
            });
            drop(there);
            let waited = call.await.unwrap();
            driver.await.unwrap();
            assert!(waited < RESPONSE / 10, "round {round}: {waited:?}");
        }
    }
}
