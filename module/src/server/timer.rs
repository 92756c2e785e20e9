//! Deferred work: a function that the server calls from its event loop.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redis_module::raw;

use super::context::Context;

/// Runs `work` once, after `delay_ms` ms, in a call of its own: everything it replicates is one transaction.
pub(crate) fn start(context: &Context, delay_ms: i64, work: fn(&Context)) {
    // SAFETY: the context belongs to the running call; `fire` gets back the function that is passed here.
    // The server does not unload a module that has a timer running.
    unsafe { (context.api.create_timer)(context.raw(), delay_ms, Some(fire), work as *mut c_void) };
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
