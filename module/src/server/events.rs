//! Events from the server: keys that it has ended, and changes of the server itself.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::OnceLock;

use redis_module::raw;

use super::api::OK;
use super::context::Context;
use super::string::StringRef;

type KeyHandler = fn(&Context, StringRef<'_>);

static KEY_HANDLER: OnceLock<KeyHandler> = OnceLock::new();

/// Calls `handler` with each key that has expired or was evicted. The handler runs in the middle of the
/// operation that ended the key and must not write.
pub(crate) fn subscribe_to_ended_keys(context: &Context, handler: KeyHandler) -> bool {
    KEY_HANDLER.get_or_init(|| handler);
    let classes = raw::REDISMODULE_NOTIFY_EXPIRED | raw::REDISMODULE_NOTIFY_EVICTED;
    // SAFETY: the context belongs to the running call.
    let subscribed =
        unsafe { (context.api.subscribe_to_keyspace_events)(context.raw(), classes, Some(key_event)) };
    subscribed == OK
}

unsafe extern "C" fn key_event(
    raw: *mut raw::RedisModuleCtx,
    _class: c_int,
    event: *const c_char,
    key: *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: the server passes a C string that outlives this call.
    let event = unsafe { CStr::from_ptr(event) };
    let has_ended = matches!(event.to_bytes(), b"expired" | b"evicted");
    let (true, Some(key), Some(handler)) = (has_ended, NonNull::new(key), KEY_HANDLER.get()) else {
        return OK;
    };
    // SAFETY: the server passes the context of this call.
    if let Some(context) = unsafe { Context::enter(raw) } {
        // SAFETY: the server keeps the key's name alive for this call.
        let key = unsafe { StringRef::new(context.api, key) };
        if catch_unwind(AssertUnwindSafe(|| handler(&context, key))).is_err() {
            context.log_warning("the handler of a key event panicked; this is a defect of the module");
        }
    }
    OK
}

/// A change of the server itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerEvent {
    /// The server's housekeeping, ten times a second unless `hz` says otherwise.
    Cron,
    /// The append-only file is about to be loaded.
    AppendOnlyFileLoads,
    /// One or all databases have been emptied.
    Flushed,
    /// A data set has been loaded, from disk or from a primary.
    DataLoaded,
    /// The server has become a primary or a replica.
    RoleChanged,
    /// Two databases have changed places.
    DatabasesSwapped { one: c_int, other: c_int },
}

type ServerHandler = fn(&Context, ServerEvent);

static SERVER_HANDLER: OnceLock<ServerHandler> = OnceLock::new();

/// Calls `handler` with every [`ServerEvent`].
pub(crate) fn subscribe_to_server_events(context: &Context, handler: ServerHandler) -> bool {
    SERVER_HANDLER.get_or_init(|| handler);
    [
        raw::REDISMODULE_EVENT_CRON_LOOP,
        raw::REDISMODULE_EVENT_FLUSHDB,
        raw::REDISMODULE_EVENT_LOADING,
        raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED,
        raw::REDISMODULE_EVENT_SWAPDB,
    ]
    .into_iter()
    .all(|id| {
        let event = raw::RedisModuleEvent { id, dataver: 1 };
        // SAFETY: the context belongs to the running call.
        unsafe { (context.api.subscribe_to_server_event)(context.raw(), event, Some(server_event)) == OK }
    })
}

unsafe extern "C" fn server_event(
    raw: *mut raw::RedisModuleCtx,
    event: raw::RedisModuleEvent,
    part: u64,
    data: *mut c_void,
) {
    let event = match event.id {
        raw::REDISMODULE_EVENT_CRON_LOOP => ServerEvent::Cron,
        raw::REDISMODULE_EVENT_LOADING if part == raw::REDISMODULE_SUBEVENT_LOADING_AOF_START => {
            ServerEvent::AppendOnlyFileLoads
        }
        raw::REDISMODULE_EVENT_LOADING if part == raw::REDISMODULE_SUBEVENT_LOADING_ENDED => {
            ServerEvent::DataLoaded
        }
        raw::REDISMODULE_EVENT_FLUSHDB if part == raw::REDISMODULE_SUBEVENT_FLUSHDB_END => {
            ServerEvent::Flushed
        }
        raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED => ServerEvent::RoleChanged,
        raw::REDISMODULE_EVENT_SWAPDB if !data.is_null() => {
            // SAFETY: with this event the server passes this structure, alive for this call.
            let databases = unsafe { &*data.cast_const().cast::<raw::RedisModuleSwapDbInfo>() };
            ServerEvent::DatabasesSwapped { one: databases.dbnum_first, other: databases.dbnum_second }
        }
        _ => return,
    };
    let Some(handler) = SERVER_HANDLER.get() else { return };
    // SAFETY: the server passes the context of this call.
    let Some(context) = (unsafe { Context::enter(raw) }) else { return };
    if catch_unwind(AssertUnwindSafe(|| handler(&context, event))).is_err() {
        context.log_warning("the handler of a server event panicked; this is a defect of the module");
    }
}
