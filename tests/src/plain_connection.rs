//! A connection of the redis crate.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisResult};

/// Long enough for a busy machine. By itself the crate waits half a second for a reply.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);

/// A connection as callers may have it already, which waits for slow replies.
///
/// # Errors
///
/// If the server cannot be connected to.
pub async fn plain_connection(url: &str) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE_TIMEOUT));
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}
