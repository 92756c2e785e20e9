//! The harness for suites that need a real server, and what several suites share.
//!
//! - [`Server`]: a Redis or Valkey server with the module, in a temporary folder.
//! - [`Clock`]: the clock of a server, which a test sets.
//! - [`Cluster`]: several servers that share the keys.
//! - [`SentinelGroup`]: a primary and its replicas, watched by Sentinels.
//! - [`Port`]: a port that nobody else gets.
//! - [`Wire`]: replies byte by byte, as any client gets them.
//! - [`Proxy`]: a connection to a server that fails on purpose.
//! - [`Progress`]: how far clients have come that work at the same time.
//! - [`Load`]: clients that write and read, and record what must be stored.
//! - [`lua_backend`]: the backend that this project replaces; [`plain_connection`]: one of the redis crate.
//! - [`conformance`]: the rules of `StorageBackend`.
//! - [`model`]: what the contract says about every reply and every key.
//! - [`refusals`]: the texts of errors.
//!
//! Tests panic to fail, and so does this crate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod agreement;
mod clock;
mod cluster;
pub mod conformance;
mod dice;
mod load;
mod lua;
pub mod model;
mod outcome;
mod plain_connection;
mod port;
mod progress;
mod proxy;
pub mod refusals;
mod sentinel;
mod server;
mod wire;

pub use agreement::{PROMISED, assert_hashes_and_entries_agree};
pub use clock::Clock;
pub use cluster::Cluster;
pub use dice::Dice;
pub use load::{A_WHILE, CLIENTS, Load};
pub use lua::lua_backend;
pub use outcome::{reason, show, skipped};
pub use plain_connection::plain_connection;
pub use port::Port;
pub use progress::Progress;
pub use proxy::{Fault, Proxy};
pub use sentinel::SentinelGroup;
pub use server::{
    FILE, Server, ServerOptions, StartError, calling_module, pmcptask_program, server_for_example,
};
pub use wire::{EMPTY, INDEX, NIL, OK, TASK, Wire, integer, words};

/// The time of this machine, in ms since the epoch. The servers of the harness use the same clock.
#[must_use]
pub fn now_ms() -> i64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since_epoch.as_millis()).unwrap()
}

/// Sleeps until a time in ms since the epoch.
pub fn sleep_until(ms: i64) {
    let left = u64::try_from(ms - now_ms()).unwrap_or(0);
    std::thread::sleep(std::time::Duration::from_millis(left));
}

/// A time in ms since the epoch as an RFC 3339 timestamp.
#[must_use]
pub fn timestamp(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).unwrap().to_rfc3339()
}

/// How many times slower than usual the servers run, for example under valgrind: `PMCPTASK_SLOWNESS`, or 1.
#[must_use]
pub fn slowness() -> u32 {
    std::env::var("PMCPTASK_SLOWNESS").map_or(1, |slowness| slowness.parse().unwrap())
}

/// Polls `condition` every few milliseconds; false if it does not become true within `limit`.
pub fn holds_within(limit: std::time::Duration, mut condition: impl FnMut() -> bool) -> bool {
    let limit = limit * slowness();
    let started = std::time::Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
