//! Keyspace events: what others did to a key.

use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::OnceLock;

use redis_module::raw;

use super::api::OK;
use super::context::Context;
use super::string::StringRef;

/// A key that has just gone from its database: expired, evicted, deleted, renamed or moved away.
pub(crate) struct KeyEvent<'c> {
    pub(crate) key: StringRef<'c>,
}

type Handler = fn(&Context, &KeyEvent<'_>);

static HANDLER: OnceLock<Handler> = OnceLock::new();

/// Calls `handler` for each key that goes. It runs in the middle of what made the key go and must not
/// write.
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
    let gone = [c"expired", c"evicted", c"del", c"rename_from", c"move_from"].contains(&event);
    let (true, Some(key), Some(handler)) = (gone, NonNull::new(key), HANDLER.get()) else {
        return OK;
    };
    // SAFETY: the server passes the context of this call.
    if let Some(context) = unsafe { Context::enter(raw) } {
        // SAFETY: the server keeps the key's name alive for this call.
        let event = KeyEvent { key: unsafe { StringRef::new(context.api, key) } };
        if catch_unwind(AssertUnwindSafe(|| handler(&context, &event))).is_err() {
            context
                .log_warning("pmcptask: the handler of a key event panicked; this is a defect of the module");
        }
    }
    OK
}
