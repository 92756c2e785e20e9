//! Clients that wait for a key until the module answers them.
//!
//! A client is blocked on the key, so the server treats it as a client of `BLPOP`: `CLIENT UNBLOCK`, a demotion and
//! a slot that leaves end the wait.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::OnceLock;

use redis_module::raw;

use super::api::{ERR, Failed, OK, done};
use super::command::Arguments;
use super::context::Context;
use super::state::ServerThread;
use super::string::StringRef;

/// A blocked client; never 0, and never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WaiterId(usize);

/// What the module does with blocked clients.
#[derive(Clone, Copy)]
pub(crate) struct Waiting {
    /// Answers a client with the arguments of its command. The flag says that this is the last chance: the time is over, the
    /// client was woken, or `CLIENT UNBLOCK` ends the wait. Without the flag, the function may return false without a reply, and the client goes on
    /// waiting.
    pub(crate) answer: fn(&Context, &Arguments<'_>, WaiterId, bool) -> bool,
    /// The client waits no more, for whatever reason.
    pub(crate) ended: fn(&Context, WaiterId),
    /// Called after one of the others has panicked.
    pub(crate) panicked: fn(),
}

static WAITING: OnceLock<Waiting> = OnceLock::new();

/// A handle of the server, valid until the server calls [`ended`].
struct Handle(NonNull<raw::RedisModuleBlockedClient>);

// SAFETY: the handle is used only by the server's thread, in `wake`.
unsafe impl Send for Handle {}

struct Handles {
    last: usize,
    by_id: BTreeMap<usize, Handle>,
}

static HANDLES: ServerThread<Handles> = ServerThread::new(Handles { last: 0, by_id: BTreeMap::new() });

/// Blocks the client of this call, which must be allowed ([`Context::may_block`]), until `key` is answered or
/// `timeout_ms` is over; 0 means for ever.
pub(crate) fn block_on_key(
    context: &Context,
    key: StringRef<'_>,
    timeout_ms: i64,
    waiting: Waiting,
) -> Result<WaiterId, Failed> {
    const FAILED: Failed = Failed("BlockClientOnKeys");
    WAITING.get_or_init(|| waiting);
    let mut handles = HANDLES.borrow_mut(context).ok_or(FAILED)?;
    let id = handles.last.checked_add(1).ok_or(FAILED)?;
    let mut keys = [key.raw()];
    // SAFETY: the context belongs to the running call, whose client may be blocked. The list holds one string, as stated,
    // which is alive. The private data is a number, never a pointer. The callbacks live as long as the module.
    let raw = unsafe {
        (context.api.block_client_on_keys)(
            context.raw(),
            Some(key_is_ready),
            Some(last_chance),
            Some(ended),
            timeout_ms,
            keys.as_mut_ptr(),
            1,
            std::ptr::without_provenance_mut(id),
        )
    };
    let handle = Handle(NonNull::new(raw).ok_or(FAILED)?);
    context.reply_later();
    handles.last = id;
    handles.by_id.insert(id, handle);
    Ok(WaiterId(id))
}

/// Makes the server ask for the answer of a client that still waits. The time counts as over.
pub(crate) fn wake(context: &Context, WaiterId(id): WaiterId) -> Result<(), Failed> {
    let handle =
        HANDLES.borrow_mut(context).and_then(|handles| handles.by_id.get(&id).map(|handle| handle.0));
    let Some(handle) = handle else { return Ok(()) };
    // SAFETY: the server frees the handle after it has called `ended`, which removes it from the list. For a client that
    // has been answered already, the server does nothing.
    let woken =
        unsafe { (context.api.unblock_client)(handle.as_ptr(), std::ptr::without_provenance_mut(id)) };
    done(woken, "UnblockClient")
}

unsafe extern "C" fn key_is_ready(
    raw: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: all are what the server has passed to this entry point.
    if unsafe { answer(raw, argv, argc, false) } { OK } else { ERR }
}

unsafe extern "C" fn last_chance(
    raw: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: all are what the server has passed to this entry point.
    unsafe { answer(raw, argv, argc, true) };
    OK
}

/// # Safety
///
/// All are what the server has passed to the running entry point.
unsafe fn answer(
    raw: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
    must_answer: bool,
) -> bool {
    // SAFETY: the server passes the context of this call.
    let (Some(context), Some(waiting)) = (unsafe { Context::enter(raw) }, WAITING.get()) else {
        return false;
    };
    // SAFETY: the context has the private data that `block_on_key` has passed.
    let id = unsafe { (context.api.get_blocked_client_private_data)(raw) }.addr();
    // SAFETY: the server passes the arguments of the blocked client's command, alive for this call.
    let arguments = unsafe { Arguments::from_raw(&context, argv, argc) };
    let answered =
        catch_unwind(AssertUnwindSafe(|| (waiting.answer)(&context, &arguments, WaiterId(id), must_answer)));
    if answered.is_err() {
        (waiting.panicked)();
        if !context.has_replied() {
            context
                .reply_error("DEFECT the pmcptask module failed to answer; this is a defect of the module");
        }
    }
    answered.unwrap_or(true)
}

unsafe extern "C" fn ended(raw: *mut raw::RedisModuleCtx, private_data: *mut c_void) {
    // SAFETY: the server passes the context of this call.
    let Some(context) = (unsafe { Context::enter(raw) }) else { return };
    let id = private_data.addr();
    if let Some(mut handles) = HANDLES.borrow_mut(&context) {
        handles.by_id.remove(&id);
    }
    if let Some(waiting) = WAITING.get()
        && catch_unwind(AssertUnwindSafe(|| (waiting.ended)(&context, WaiterId(id)))).is_err()
    {
        (waiting.panicked)();
    }
}
