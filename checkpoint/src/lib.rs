//! Keeps the checkpoints of agents in Redis or Valkey, with the native commands of the `pmcptask` module.
//!
//! A thread is an owner, and a checkpoint is a task. So the newest checkpoint is one round trip away, a list is one round
//! trip for each hundred, and what has expired leaves nothing behind.
//!
//! - [`RedisCheckpoints`], and its trait [`Checkpoints`], for who uses no framework.
//! - Feature `adk`: `adk::RedisCheckpointer` for adk-graph.
//! - Feature `graph-flow`: `graph_flow::RedisSessionStorage` for graph-flow.

// The code of the README must compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "adk")]
pub mod adk;
mod builder;
#[cfg(feature = "adk")]
mod by_id;
mod checkpoints;
mod compression;
mod config;
mod error;
#[cfg(feature = "graph-flow")]
pub mod graph_flow;
mod ids;
mod threads;

pub use builder::SaverBuilder;
pub use checkpoints::{Checkpoint, Checkpoints, NewCheckpoint, RedisCheckpoints, ThreadStats};
pub use compression::{Compression, RecordError};
pub use config::CheckpointsConfig;
pub use error::Error;
/// The version of the client that savers are made from.
pub use pmcptask_client;
