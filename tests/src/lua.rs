//! The backend that this project replaces.

use crate::plain_connection;

/// A connected `pmcp_tasks::RedisBackend` that waits for slow replies.
///
/// # Errors
///
/// If the server cannot be connected to.
pub async fn lua_backend(url: &str) -> redis::RedisResult<pmcp_tasks::RedisBackend> {
    Ok(pmcp_tasks::RedisBackend::with_connection(plain_connection(url).await?))
}
