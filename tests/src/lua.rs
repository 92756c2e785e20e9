//! The backend that this project replaces.

use std::time::Duration;

use redis::AsyncConnectionConfig;

/// Long enough for a busy machine. By itself the backend waits half a second for a reply.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);

/// A connected `pmcp_tasks::RedisBackend` that waits for slow replies.
///
/// # Errors
///
/// If the server cannot be connected to.
pub async fn lua_backend(url: &str) -> redis::RedisResult<pmcp_tasks::RedisBackend> {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE_TIMEOUT));
    let connection = redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?;
    Ok(pmcp_tasks::RedisBackend::with_connection(connection))
}
