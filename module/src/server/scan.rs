//! Walks in steps: over all keys of a database, or over all members of a sorted set.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use redis_module::raw;

use super::api::Api;
use super::context::Context;
use super::key::Key;
use super::string::StringRef;

/// A position in a walk. What exists during the whole walk is seen at least once; anything else
/// may be missed.
///
/// Each walk needs a new cursor: a cursor that has reached its end stays there.
pub(crate) struct ScanCursor {
    api: &'static Api,
    raw: NonNull<raw::RedisModuleScanCursor>,
}

// SAFETY: the cursor is a number behind a pointer, bound to no thread.
unsafe impl Send for ScanCursor {}

impl ScanCursor {
    pub(crate) fn new(context: &Context) -> Self {
        // SAFETY: takes nothing; the server aborts when it is out of memory, so it returns a cursor.
        let raw = unsafe { NonNull::new_unchecked((context.api.scan_cursor_create)()) };
        Self { api: context.api, raw }
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

    /// Passes a few members of a sorted set to `visit`, which must not call the server. False once
    /// there are no more.
    ///
    /// A walk by score can start only at a score, so many members with one score slow it down. A step here
    /// does not depend on scores.
    pub(crate) fn scan_members<F: FnMut(&[u8])>(
        &mut self,
        context: &Context,
        key: &Key<'_>,
        visit: F,
    ) -> bool {
        let mut scan = Scan { context, visit };
        // SAFETY: key and cursor are alive; `visit_member` gets back the scan that is passed here, which
        // outlives the call. The server refuses a key that holds nothing.
        unsafe {
            (self.api.scan_key)(
                key.raw(),
                self.raw.as_ptr(),
                Some(visit_member::<F>),
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

impl<F> Scan<'_, F> {
    fn visit(&mut self, visit: impl FnOnce(&mut F)) {
        if catch_unwind(AssertUnwindSafe(|| visit(&mut self.visit))).is_err() {
            self.context.log_warning("looking at a key panicked; this is a defect of the module");
        }
    }
}

unsafe extern "C" fn visit_key<F: FnMut(StringRef<'_>, &Key<'_>)>(
    _: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    key: *mut raw::RedisModuleKey,
    scan: *mut c_void,
) {
    // SAFETY: `scan` passed a value of this type, which nobody else uses during the call.
    let scan = unsafe { &mut *scan.cast::<Scan<'_, F>>() };
    let (Some(name), Some(key)) = (NonNull::new(name), NonNull::new(key)) else { return };
    let context = scan.context;
    // SAFETY: the server keeps name and key alive for this call, and closes the key itself.
    let (name, key) =
        unsafe { (StringRef::new(context.api, name), ManuallyDrop::new(Key::from_raw(context, key))) };
    scan.visit(|visit| visit(name, &key));
}

unsafe extern "C" fn visit_member<F: FnMut(&[u8])>(
    _: *mut raw::RedisModuleKey,
    member: *mut raw::RedisModuleString,
    _score: *mut raw::RedisModuleString,
    scan: *mut c_void,
) {
    // SAFETY: `scan_members` passed a value of this type, which nobody else uses during the call.
    let scan = unsafe { &mut *scan.cast::<Scan<'_, F>>() };
    let Some(member) = NonNull::new(member) else { return };
    // SAFETY: the server keeps the member alive for this call.
    let member = unsafe { StringRef::new(scan.context.api, member) };
    scan.visit(|visit| visit(member.bytes()));
}
