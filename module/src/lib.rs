//! A Redis and Valkey module with native commands for MCP tasks.
//!
//! | command | reply |
//! |---|---|
//! | `PMCPTASK.PUT task-key index-key data [PXAT ms \| PERSIST] [CREATED ms \| NEWEST] [MAXTASKS n] [NX] [HELD task-key]` | the new version; with `NX`, 0 if there is a live task |
//! | `PMCPTASK.CAS task-key index-key expected-version data [PXAT ms \| PERSIST] [CREATED ms \| NEWEST]` | `OK` and the new version, `CONFLICT` and the actual one, or `MISSING` and 0 |
//! | `PMCPTASK.GET task-key` | version and data, or nil |
//! | `PMCPTASK.DEL task-key index-key [VERSION n]` | 1 if it existed, 0 otherwise; with `VERSION`, as CAS |
//! | `PMCPTASK.LIST index-key [REV] [AFTER created-ms task-id] [COUNT n] [NODATA]` | task id, version, creation time and, without `NODATA`, data of each task |
//! | `PMCPTASK.EXPIRE task-key index-key PXAT ms \| PERSIST` | 1 if it exists, 0 otherwise |
//! | `PMCPTASK.TRIM index-key KEEP n [COUNT m]` | how many tasks were removed |
//! | `PMCPTASK.WAIT task-key version timeout-ms` | `OK`, version and data once the version is another; `MISSING` and 0 once there is no task; nil when the time is over |
//!
//! A task is a hash, an entry in its owner's sorted set and an expiry. Each command changes them together or
//! not at all, and replicates the change to replicas and the AOF as plain commands. Key and field names come
//! from the crate `pmcptask-schema`.

mod commands;
mod default_user;
mod effects;
mod failures;
mod fields;
mod index;
mod reclaim;
mod record;
mod refusal;
mod server;
mod server_events;
mod settings;
mod slots;
mod statistics;
mod task;
mod terms;
mod time;
mod trim;
mod waiters;

use std::ffi::CStr;

use server::{Arguments, Context, Module};

// This allocator is the server's, and unit tests run without a server.
#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: redis_module::alloc::RedisAlloc = redis_module::alloc::RedisAlloc;

struct Pmcptask;

impl Module for Pmcptask {
    const NAME: &'static CStr = c"pmcptask";
    /// 0.1.0, two digits for each part.
    const VERSION: i32 = 100;

    fn load(context: &Context, arguments: &Arguments<'_>) -> Result<(), String> {
        effects::check_commands(context)?;
        settings::register(context, arguments)?;
        commands::register(context)?;
        if !server::register_info(context, statistics::write_info) {
            return Err("the server takes no INFO section".to_owned());
        }
        // This comes last: if the load fails, Redis 7.0 does not undo a subscription and would call into the
        // unloaded module.
        if !server_events::start(context) {
            return Err("the server takes no subscription to its events".to_owned());
        }
        Ok(())
    }

    fn may_unload() -> bool {
        server_events::may_unload()
    }
}

server::export!(Pmcptask);
