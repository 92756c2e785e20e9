//! Events from the server: keys that it has ended, and changes of the server itself.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::OnceLock;

use redis_module::raw;

use super::api::{Failed, OK, done};
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
    if matches!(event.to_bytes(), b"expired" | b"evicted") {
        // SAFETY: both are what the server has passed to this entry point.
        unsafe { handle(raw, key, &KEY_HANDLER) };
    }
    OK
}

/// # Safety
///
/// `raw` and `key` are what the server has passed to the running entry point.
unsafe fn handle(
    raw: *mut raw::RedisModuleCtx,
    key: *mut raw::RedisModuleString,
    handler: &OnceLock<KeyHandler>,
) {
    let (Some(key), Some(handler)) = (NonNull::new(key), handler.get()) else { return };
    // SAFETY: the server passes the context of this call.
    if let Some(context) = unsafe { Context::enter(raw) } {
        // SAFETY: the server keeps the key's name alive for this call.
        let key = unsafe { StringRef::new(context.api, key) };
        if catch_unwind(AssertUnwindSafe(|| handler(&context, key))).is_err() {
            context.log_warning("the handler of a key event panicked; this is a defect of the module");
        }
    }
}

static ALL_KEYS_HANDLER: OnceLock<KeyHandler> = OnceLock::new();

/// The classes of all events that follow a change of a key, whatever command makes the change.
const ALL_CHANGES: c_int = raw::REDISMODULE_NOTIFY_GENERIC
    | raw::REDISMODULE_NOTIFY_STRING
    | raw::REDISMODULE_NOTIFY_LIST
    | raw::REDISMODULE_NOTIFY_SET
    | raw::REDISMODULE_NOTIFY_HASH
    | raw::REDISMODULE_NOTIFY_ZSET
    | raw::REDISMODULE_NOTIFY_EXPIRED
    | raw::REDISMODULE_NOTIFY_EVICTED
    | raw::REDISMODULE_NOTIFY_STREAM
    | raw::REDISMODULE_NOTIFY_MODULE;

/// Calls `handler` with each key that changes. The handler runs in the middle of the operation that changes the
/// key and must not write.
///
/// # Errors
///
/// The server refuses.
pub(crate) fn subscribe_to_all_keys(context: &Context, handler: KeyHandler) -> Result<(), Failed> {
    ALL_KEYS_HANDLER.get_or_init(|| handler);
    // SAFETY: the context belongs to the running call.
    let subscribed = unsafe {
        (context.api.subscribe_to_keyspace_events)(context.raw(), ALL_CHANGES, Some(any_key_event))
    };
    done(subscribed, "SubscribeToKeyspaceEvents")
}

/// Ends the subscription. False if the server keeps subscriptions for ever.
pub(crate) fn unsubscribe_from_all_keys(context: &Context) -> bool {
    let Some(unsubscribe) = context.api.unsubscribe_from_keyspace_events else { return false };
    // SAFETY: the context belongs to the running call.
    unsafe { unsubscribe(context.raw(), ALL_CHANGES, Some(any_key_event)) == OK }
}

unsafe extern "C" fn any_key_event(
    raw: *mut raw::RedisModuleCtx,
    _class: c_int,
    _event: *const c_char,
    key: *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: both are what the server has passed to this entry point.
    unsafe { handle(raw, key, &ALL_KEYS_HANDLER) };
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
