//! A storage backend for [`pmcp_tasks`] that keeps MCP tasks in Redis or Valkey with the native commands of
//! the `pmcptask` module.
//!
//! [`RedisBackend`] replaces `pmcp_tasks::RedisBackend`. Constructors and keys are the same, so an existing
//! deployment changes one import, loads the module and keeps its data.
//!
//! ```no_run
//! use pmcptask_client::{RedisBackend, TaskStore};
//!
//! # async fn example() -> Result<(), pmcp_tasks::StorageError> {
//! let backend = RedisBackend::new("redis://127.0.0.1:6379").await?;
//! let store = TaskStore::new(backend);
//! # Ok(())
//! # }
//! ```
//!
//! [`TaskStore`] takes the place of `ServerTaskStore::new(GenericTaskStore::new(backend))`, and needs fewer round trips. Its
//! [`Worker`]s learn of cancels, and the task of a process that dies fails.
//!
//! Besides the calls of `StorageBackend`, [`RedisBackend`] has some of its own:
//!
//! - [`create`](RedisBackend::create) stores a task only if there is none with its key yet.
//! - [`delete_if_version`](RedisBackend::delete_if_version) deletes a task only at the given version.
//! - [`expire`](RedisBackend::expire) changes when a task expires, and nothing else.
//! - [`trim`](RedisBackend::trim) keeps an owner's newest tasks and removes the others.
//! - [`list_page`](RedisBackend::list_page) lists some of an owner's tasks, from either end, and
//!   [`list_entries`](RedisBackend::list_entries) does so without the records.
//! - [`put_with`](RedisBackend::put_with), [`create_with`](RedisBackend::create_with) and
//!   [`put_if_version_with`](RedisBackend::put_if_version_with) write records of any format, on [`WriteTerms`].
//! - [`changed`](RedisBackend::changed) waits until a task has another version or is gone, without polling.
//! - [`tail`](RedisBackend::tail) is a stream of an owner's tasks, those that are there and those that come.
//! - [`get_many`](RedisBackend::get_many), [`put_many`](RedisBackend::put_many) and
//!   [`delete_many`](RedisBackend::delete_many) send many calls at once, and return a result for each.
//!
//! [`Lease`] is a lock among all clients of a server, which ends by itself if its holder dies.
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

// The code of the README must compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod address;
mod backend;
mod beyond_trait;
mod breaker;
mod builder;
mod commands;
mod connection;
mod error;
mod hash_tags;
mod lease;
mod listing;
mod observe;
mod replies;
mod session;
mod settings;
mod tail;
mod task_store;
mod terms;
mod waiting;

pub use backend::RedisBackend;
#[cfg(feature = "circuit-breaker")]
pub use breaker::CircuitBreaker;
pub use builder::RedisBackendBuilder;
#[doc(hidden)]
pub use connection::Primary;
pub use error::{Applied, Error};
pub use hash_tags::HashTags;
pub use lease::Lease;
pub use listing::{ListedEntry, ListedTask, Order, TaskPosition};
pub use task_store::{TaskStore, Worker, WorkerError};
pub use terms::WriteTerms;

/// The version of the redis crate that [`RedisBackend::with_connection`] takes a connection of.
pub use redis;
