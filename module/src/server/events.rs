//! What the server tells: keys that have gone or come, and changes of the server itself.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::OnceLock;

use redis_module::raw;

use super::api::OK;
use super::context::Context;
use super::string::StringRef;

/// A key that has just gone from its database (expired, evicted, deleted, renamed or moved away), or has come
/// to it whole (renamed, moved, copied or restored).
pub(crate) struct KeyEvent<'c> {
    pub(crate) key: StringRef<'c>,
    /// It has expired or was evicted: wherever its slot is on the way to, it is gone.
    pub(crate) has_ended: bool,
}

type Handler = fn(&Context, &KeyEvent<'_>);

static HANDLER: OnceLock<Handler> = OnceLock::new();

/// Calls `handler` for each key that goes or comes. It runs in the middle of what made the key do so and must
/// not write.
pub(crate) fn subscribe(context: &Context, handler: Handler) -> bool {
    let handler = HANDLER.get_or_init(|| handler);
    let _: &Handler = handler;
    let classes =
        raw::REDISMODULE_NOTIFY_EXPIRED | raw::REDISMODULE_NOTIFY_EVICTED | raw::REDISMODULE_NOTIFY_GENERIC;
    // SAFETY: the context is that of the running call.
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
    let is_meant = matches!(
        event.to_bytes(),
        b"expired" | b"evicted" | b"del" | b"rename_from" | b"move_from" // gone
            | b"rename_to" | b"move_to" | b"copy_to" | b"restore" // come
    );
    let (true, Some(key), Some(handler)) = (is_meant, NonNull::new(key), HANDLER.get()) else {
        return OK;
    };
    let has_ended = matches!(event.to_bytes(), b"expired" | b"evicted");
    // SAFETY: the server passes the context of this call.
    if let Some(context) = unsafe { Context::enter(raw) } {
        // SAFETY: the server keeps the key's name alive for this call.
        let event = KeyEvent { key: unsafe { StringRef::new(context.api, key) }, has_ended };
        if catch_unwind(AssertUnwindSafe(|| handler(&context, &event))).is_err() {
            context
                .log_warning("pmcptask: the handler of a key event panicked; this is a defect of the module");
        }
    }
    OK
}

/// A change of the server itself.
#[derive(Clone, Copy)]
pub(crate) enum ServerEvent {
    /// The server's housekeeping, ten times a second unless `hz` says otherwise.
    Cron,
    /// A data set has been loaded, from disk or from a primary.
    DataLoaded,
    /// The server has become a primary or a replica.
    RoleChanged,
    /// Two databases have changed places.
    DatabasesSwapped,
}

type ServerEventHandler = fn(&Context);

static SERVER_EVENT_HANDLERS: [OnceLock<ServerEventHandler>; 4] = [const { OnceLock::new() }; 4];

impl ServerEvent {
    const ALL: [Self; 4] = [Self::Cron, Self::DataLoaded, Self::RoleChanged, Self::DatabasesSwapped];

    const fn id(self) -> u64 {
        match self {
            Self::Cron => raw::REDISMODULE_EVENT_CRON_LOOP,
            Self::DataLoaded => raw::REDISMODULE_EVENT_LOADING,
            Self::RoleChanged => raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED,
            Self::DatabasesSwapped => raw::REDISMODULE_EVENT_SWAPDB,
        }
    }

    fn handler(self) -> Option<&'static OnceLock<ServerEventHandler>> {
        SERVER_EVENT_HANDLERS.get(self as usize)
    }

    /// The event that the server means, if it is one of these.
    fn of(id: u64, part: u64) -> Option<Self> {
        let event = Self::ALL.into_iter().find(|event| event.id() == id)?;
        let is_meant = match event {
            Self::DataLoaded => part == raw::REDISMODULE_SUBEVENT_LOADING_ENDED,
            _ => true,
        };
        is_meant.then_some(event)
    }
}

/// Calls `handler` whenever the server says so.
pub(crate) fn subscribe_to_server_event(
    context: &Context,
    event: ServerEvent,
    handler: ServerEventHandler,
) -> bool {
    let Some(place) = event.handler() else { return false };
    place.get_or_init(|| handler);
    let event = raw::RedisModuleEvent { id: event.id(), dataver: 1 };
    // SAFETY: the context is that of the running call.
    let subscribed =
        unsafe { (context.api.subscribe_to_server_event)(context.raw(), event, Some(server_event)) };
    subscribed == OK
}

unsafe extern "C" fn server_event(
    raw: *mut raw::RedisModuleCtx,
    event: raw::RedisModuleEvent,
    part: u64,
    _data: *mut c_void,
) {
    let Some(handler) = ServerEvent::of(event.id, part).and_then(|event| event.handler()?.get()) else {
        return;
    };
    // SAFETY: the server passes the context of this call.
    let Some(context) = (unsafe { Context::enter(raw) }) else { return };
    if catch_unwind(AssertUnwindSafe(|| handler(&context))).is_err() {
        context
            .log_warning("pmcptask: the handler of a server event panicked; this is a defect of the module");
    }
}
