//! Deferred work: a function that the server calls from its event loop.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redis_module::raw;

use super::context::Context;

/// A timer that has been started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimerId(raw::RedisModuleTimerID);

/// Runs `work` once, after `delay_ms` ms, in a call of its own: everything it replicates is one transaction.
pub(crate) fn start(context: &Context, delay_ms: i64, work: fn(&Context)) -> TimerId {
    // SAFETY: the context belongs to the running call; `fire` gets back the function that is passed here.
    // The server does not unload a module that has a timer running.
    TimerId(unsafe { (context.api.create_timer)(context.raw(), delay_ms, Some(fire), work as *mut c_void) })
}

/// Stops a timer, if it has not fired yet.
pub(crate) fn stop(context: &Context, TimerId(id): TimerId) {
    // SAFETY: the context belongs to the running call. The server knows its timers by number, so a timer that has
    // fired is not found. The null pointer means that the timer's argument is not wanted.
    unsafe { (context.api.stop_timer)(context.raw(), id, std::ptr::null_mut()) };
}

unsafe extern "C" fn fire(raw: *mut raw::RedisModuleCtx, work: *mut c_void) {
    // SAFETY: the server passes the context of this call.
    let Some(context) = (unsafe { Context::enter(raw) }) else { return };
    // SAFETY: `start` passed a function of this type, and functions do not go away before the module.
    let work = unsafe { std::mem::transmute::<*mut c_void, fn(&Context)>(work) };
    if catch_unwind(AssertUnwindSafe(|| work(&context))).is_err() {
        context.log_warning("a timer's work panicked and was given up; this is a defect of the module");
    }
}
