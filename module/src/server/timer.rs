//! Deferred work: a function that the server calls from its event loop.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use redis_module::raw;

use super::context::Context;

/// Time limit of one run of a timer's work, because commands wait for it.
pub(crate) const LONGEST_RUN: Duration = Duration::from_millis(1);
/// Pause between two runs, in ms, so that commands get at least half of the server's time.
pub(crate) const PAUSE_MS: i64 = 1;

/// How late a timer may be. A busy server is late, too.
const OVERDUE: Duration = Duration::from_millis(100);

/// Runs its work once each time it is started, in a call of its own: everything the work replicates is one transaction.
pub(crate) struct Timer {
    work: fn(&Context),
    /// When the timer fires, and its number at the server.
    started: Option<(Instant, raw::RedisModuleTimerID)>,
}

impl Timer {
    pub(crate) const fn new(work: fn(&Context)) -> Self {
        Self { work, started: None }
    }

    /// Makes the work run in `delay_ms` ms, unless it runs sooner anyway.
    pub(crate) fn run_within(&mut self, context: &Context, delay_ms: i64) {
        let now = Instant::now();
        let delay = Duration::from_millis(delay_ms.max(0).unsigned_abs());
        let fires = now.checked_add(delay).unwrap_or(now);
        if let Some((fires_before, _)) = self.started {
            // The server's timers go by its clock, which may be set back: a timer that is overdue is started anew.
            let is_overdue = now.saturating_duration_since(fires_before) > OVERDUE;
            if fires_before <= fires && !is_overdue {
                return;
            }
            self.stop(context);
        }
        // SAFETY: the context belongs to the running call; `fire` gets back the function that is passed here.
        // The server does not unload a module that has a timer running.
        let id = unsafe {
            (context.api.create_timer)(context.raw(), delay_ms.max(0), Some(fire), self.work as *mut c_void)
        };
        self.started = Some((fires, id));
    }

    /// To be called by the work before anything that can panic, so that the timer can be started again.
    pub(crate) fn has_fired(&mut self) {
        self.started = None;
    }

    /// Stops the timer, if it runs.
    pub(crate) fn stop(&mut self, context: &Context) {
        if let Some((_, id)) = self.started.take() {
            // SAFETY: the context belongs to the running call. The server knows its timers by number, so a timer that
            // has fired is not found. The null pointer means that the timer's argument is not wanted.
            unsafe { (context.api.stop_timer)(context.raw(), id, std::ptr::null_mut()) };
        }
    }
}

unsafe extern "C" fn fire(raw: *mut raw::RedisModuleCtx, work: *mut c_void) {
    // SAFETY: the server passes the context of this call.
    let Some(context) = (unsafe { Context::enter(raw) }) else { return };
    // SAFETY: `run_within` passed a function of this type, and functions do not go away before the module.
    let work = unsafe { std::mem::transmute::<*mut c_void, fn(&Context)>(work) };
    if catch_unwind(AssertUnwindSafe(|| work(&context))).is_err() {
        context.log_warning("a timer's work panicked and was given up; this is a defect of the module");
    }
}
