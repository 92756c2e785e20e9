//! Events from the server: keys that have ended or changed, and changes of the server itself.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::OnceLock;

use redis_module::raw;

use super::api::{Failed, OK, done};
use super::context::Context;
use super::load::is_valkey;
use super::string::StringRef;

type KeyHandler = fn(&Context, StringRef<'_>);

static KEY_HANDLER: OnceLock<KeyHandler> = OnceLock::new();

/// Calls `handler` with each key that has expired or was evicted. The handler runs in the middle of the
/// operation that ended the key and must not write.
pub(crate) fn subscribe_to_ended_keys(context: &Context, handler: KeyHandler) -> bool {
    KEY_HANDLER.get_or_init(|| handler);
    subscribe(context, raw::REDISMODULE_NOTIFY_EXPIRED | raw::REDISMODULE_NOTIFY_EVICTED, key_event).is_ok()
}

unsafe extern "C" fn key_event(
    raw: *mut raw::RedisModuleCtx,
    _class: c_int,
    event: *const c_char,
    key: *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: the server passes a C string that outlives this call.
    let event = unsafe { CStr::from_ptr(event) };
    if matches!(event.to_bytes(), b"expired" | b"evicted")
        && let Some(handler) = KEY_HANDLER.get()
    {
        // SAFETY: both are what the server has passed to this entry point.
        unsafe { handle(raw, key, handler) };
    }
    OK
}

/// # Safety
///
/// `raw` and `key` are what the server has passed to the running entry point.
unsafe fn handle(
    raw: *mut raw::RedisModuleCtx,
    key: *mut raw::RedisModuleString,
    handler: impl FnOnce(&Context, StringRef<'_>),
) {
    let Some(key) = NonNull::new(key) else { return };
    // SAFETY: the server passes the context of this call.
    if let Some(context) = unsafe { Context::enter(raw) } {
        // SAFETY: the server keeps the key's name alive for this call.
        let key = unsafe { StringRef::new(context.api, key) };
        if catch_unwind(AssertUnwindSafe(|| handler(&context, key))).is_err() {
            context.log_warning("the handler of a key event panicked; this is a defect of the module");
        }
    }
}

/// How the value of a key has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It may be another one.
    Any,
    /// The value of before has gone, and the key may have another value since.
    End,
}

impl Change {
    fn of(event: &[u8]) -> Self {
        match event {
            b"del" | b"expired" | b"evicted" | b"rename_from" | b"rename_to" | b"move_from" | b"copy_to"
            | b"restore" | b"pmcptask.del" => Self::End,
            _ => Self::Any,
        }
    }
}

type ChangeHandler = fn(&Context, StringRef<'_>, Change);

static CHANGE_HANDLER: OnceLock<ChangeHandler> = OnceLock::new();

/// The classes of all events that follow a change of a key, whatever command makes the change, except
/// `REDISMODULE_NOTIFY_GENERIC`.
const TYPED_CHANGES: c_int = raw::REDISMODULE_NOTIFY_STRING
    | raw::REDISMODULE_NOTIFY_LIST
    | raw::REDISMODULE_NOTIFY_SET
    | raw::REDISMODULE_NOTIFY_HASH
    | raw::REDISMODULE_NOTIFY_ZSET
    | raw::REDISMODULE_NOTIFY_EXPIRED
    | raw::REDISMODULE_NOTIFY_EVICTED
    | raw::REDISMODULE_NOTIFY_STREAM
    | raw::REDISMODULE_NOTIFY_MODULE;

/// What the server tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    EveryChange,
    /// Every change but those of the class *generic*, `DEL`, `RENAME` and `EXPIRE` among them.
    NotGeneric,
}

/// Calls `handler` with each key that changes. The handler runs in the middle of the operation that changes the
/// key and must not write. To be called in a command of a client.
///
/// # Errors
///
/// The server refuses.
pub(crate) fn subscribe_to_all_keys(context: &Context, handler: ChangeHandler) -> Result<Told, Failed> {
    CHANGE_HANDLER.get_or_init(|| handler);
    let told = if events_move_clients(context)? { Told::NotGeneric } else { Told::EveryChange };
    subscribe(context, changes(told), change_event).map(|()| told)
}

/// Ends the subscription. False if the server keeps subscriptions for ever.
pub(crate) fn unsubscribe_from_all_keys(context: &Context, told: Told) -> bool {
    let Some(unsubscribe) = context.api.unsubscribe_from_keyspace_events else { return false };
    // SAFETY: the context belongs to the running call.
    unsafe { unsubscribe(context.raw(), changes(told), Some(change_event)) == OK }
}

const fn changes(told: Told) -> c_int {
    match told {
        Told::EveryChange => TYPED_CHANGES | raw::REDISMODULE_NOTIFY_GENERIC,
        Told::NotGeneric => TYPED_CHANGES,
    }
}

fn subscribe(context: &Context, classes: c_int, entry: KeyEvent) -> Result<(), Failed> {
    // SAFETY: the context belongs to the running call.
    let subscribed =
        unsafe { (context.api.subscribe_to_keyspace_events)(context.raw(), classes, Some(entry)) };
    done(subscribed, "SubscribeToKeyspaceEvents")
}

type KeyEvent = unsafe extern "C" fn(
    *mut raw::RedisModuleCtx,
    c_int,
    *const c_char,
    *mut raw::RedisModuleString,
) -> c_int;

unsafe extern "C" fn change_event(
    raw: *mut raw::RedisModuleCtx,
    _class: c_int,
    event: *const c_char,
    key: *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: the server passes a C string that outlives this call.
    let change = Change::of(unsafe { CStr::from_ptr(event) }.to_bytes());
    if let Some(handler) = CHANGE_HANDLER.get() {
        // SAFETY: both are what the server has passed to this entry point.
        unsafe { handle(raw, key, |context, key| handler(context, key, change)) };
    }
    OK
}

/// Whether a client is left in the database of the event when the server tells a module of an event. Valkey does so
/// from 8.1 until the fix of valkey-io/valkey#4024 (seen with 8.1.1, not with 8.0.1 and 9.1.2). The events of `MOVE` and
/// `COPY … DB`, of class *generic*, are in the other database, so the client would go on in that database.
///
/// Asks once, with an event that nobody else gets. Must run in a command of a client.
fn events_move_clients(context: &Context) -> Result<bool, Failed> {
    /// A class that no server has.
    const NOBODYS: c_int = 1 << 30;

    unsafe extern "C" fn ignore(
        _: *mut raw::RedisModuleCtx,
        _: c_int,
        _: *const c_char,
        _: *mut raw::RedisModuleString,
    ) -> c_int {
        OK
    }

    static ANSWER: OnceLock<bool> = OnceLock::new();

    if let Some(answer) = ANSWER.get() {
        return Ok(*answer);
    }
    if !is_valkey() {
        return Ok(*ANSWER.get_or_init(|| false));
    }
    subscribe(context, NOBODYS, ignore)?;
    let here = context.selected_database();
    let key = context.create_string(b"");
    // SAFETY: the event comes from a context of its own, in another database than the client's, and is freed after
    // its use. The strings are alive.
    unsafe {
        let apart = (context.api.get_detached_thread_safe_context)(context.raw());
        if (context.api.select_db)(apart, c_int::from(here == 0)) == OK {
            (context.api.notify_keyspace_event)(apart, NOBODYS, c"".as_ptr(), key.as_ref().raw());
        }
        (context.api.free_thread_safe_context)(apart);
    }
    let moves = context.selected_database() != here;
    if moves {
        context.select_database(here);
    }
    Ok(*ANSWER.get_or_init(|| moves))
}

/// A change of the server itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerEvent {
    /// The server's housekeeping, ten times a second unless `hz` says otherwise.
    Cron,
    /// The append-only file is about to be loaded.
    AppendOnlyFileLoads,
    /// One database has been emptied, or all (None).
    Flushed { database: Option<c_int> },
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
        raw::REDISMODULE_EVENT_FLUSHDB
            if part == raw::REDISMODULE_SUBEVENT_FLUSHDB_END && !data.is_null() =>
        {
            // SAFETY: with this event the server passes this structure, alive for this call.
            let flushed = unsafe { &*data.cast_const().cast::<raw::RedisModuleFlushInfo>() };
            // All databases are number -1.
            ServerEvent::Flushed { database: (flushed.dbnum >= 0).then_some(flushed.dbnum) }
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
