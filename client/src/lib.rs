//! A storage backend for [`pmcp_tasks`] that keeps MCP tasks in Redis or Valkey with the native commands of
//! the `pmcptask` module.
//!
//! [`RedisBackend`] replaces `pmcp_tasks::RedisBackend`. Constructors and keys are the same, so an existing
//! deployment changes one import, loads the module and keeps its data.
//!
//! ```no_run
//! use pmcp_tasks::{GenericTaskStore, ServerTaskStore};
//! use pmcptask_client::RedisBackend;
//!
//! # async fn example() -> Result<(), pmcp_tasks::StorageError> {
//! let backend = RedisBackend::new("redis://127.0.0.1:6379").await?;
//! let store = ServerTaskStore::new(GenericTaskStore::new(backend));
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! - `tls`: `rediss://` URLs, private certificate authorities and client certificates, with rustls. If the
//!   process has no default `CryptoProvider` at the first TLS connection, the client installs ring's.
//! - `tracing`: a span for each call, with its command, key and outcome, and an event for each connection
//!   that is lost or reconnected.
//! - `metrics`: `pmcptask_calls_total` (labels `command`, `outcome`), `pmcptask_call_seconds` (`command`),
//!   `pmcptask_connections_lost_total` and `pmcptask_reconnects_total`.
//! - `circuit-breaker`: [`RedisBackendBuilder::circuit_breaker`](RedisBackendBuilder).

mod address;
mod backend;
mod breaker;
mod builder;
mod commands;
mod connection;
mod error;
mod hash_tags;
mod listing;
mod observe;
mod replies;
mod session;
mod settings;
mod task_calls;
mod waiting;

pub use backend::RedisBackend;
#[cfg(feature = "circuit-breaker")]
pub use breaker::CircuitBreaker;
pub use builder::RedisBackendBuilder;
pub use error::{Applied, Error};
pub use hash_tags::HashTags;
pub use listing::{ListedTask, Order, TaskPosition};

/// The version of the redis crate that [`RedisBackend::with_connection`] takes a connection of.
pub use redis;
