//! A walk over all keys of a database, in steps.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use redis_module::raw;

use super::api::Api;
use super::context::Context;
use super::key::Key;
use super::string::StringRef;

/// A position in the walk. Keys that are there all the time are seen at least once, others perhaps.
pub(crate) struct ScanCursor {
    api: &'static Api,
    raw: NonNull<raw::RedisModuleScanCursor>,
}

// SAFETY: the cursor is a number behind a pointer, bound to no thread.
unsafe impl Send for ScanCursor {}

impl ScanCursor {
    pub(crate) fn new(context: &Context) -> Self {
        // SAFETY: takes nothing; the server aborts where it has no memory, so a cursor comes back.
        let raw = unsafe { NonNull::new_unchecked((context.api.scan_cursor_create)()) };
        Self { api: context.api, raw }
    }

    /// Goes back to the start, for another database, say.
    pub(crate) fn restart(&mut self, _: &Context) {
        // SAFETY: the cursor is alive.
        unsafe { (self.api.scan_cursor_restart)(self.raw.as_ptr()) };
    }

    /// Passes a few keys of the selected database to `visit`, which must not open other keys. False once
    /// there are no more.
    pub(crate) fn scan<F: FnMut(StringRef<'_>, &Key<'_>)>(&mut self, context: &Context, visit: F) -> bool {
        let mut scan = Scan { context, visit };
        // SAFETY: context and cursor are alive; `visit_key` gets back the scan that is passed here, which
        // outlives the call.
        unsafe {
            (self.api.scan)(
                context.raw(),
                self.raw.as_ptr(),
                Some(visit_key::<F>),
                std::ptr::from_mut(&mut scan).cast(),
            ) != 0
        }
    }
}

impl Drop for ScanCursor {
    fn drop(&mut self) {
        // SAFETY: the cursor is alive, and this is the only place that frees it.
        unsafe { (self.api.scan_cursor_destroy)(self.raw.as_ptr()) };
    }
}

struct Scan<'c, F> {
    context: &'c Context,
    visit: F,
}

unsafe extern "C" fn visit_key<F: FnMut(StringRef<'_>, &Key<'_>)>(
    _: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    key: *mut raw::RedisModuleKey,
    scan: *mut c_void,
) {
    // SAFETY: `scan` passed a value of this type, which nobody else uses during the call.
    let Scan { context, visit } = unsafe { &mut *scan.cast::<Scan<'_, F>>() };
    let (Some(name), Some(key)) = (NonNull::new(name), NonNull::new(key)) else { return };
    // SAFETY: the server keeps name and key alive for this call, and closes the key itself.
    let (name, key) =
        unsafe { (StringRef::new(context.api, name), ManuallyDrop::new(Key::from_raw(context, key))) };
    if catch_unwind(AssertUnwindSafe(|| visit(name, &key))).is_err() {
        context.log_warning("pmcptask: looking at a key panicked; this is a defect of the module");
    }
}
