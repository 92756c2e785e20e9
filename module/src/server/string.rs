//! The server's strings: borrowed from a call, owned and freed with the handle, or created once
//! for all calls.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;

use redis_module::raw;

use super::api::Api;
use super::context::Context;

/// A string that lives at least as long as `'c`.
#[derive(Clone, Copy)]
pub(crate) struct StringRef<'c> {
    api: &'static Api,
    raw: NonNull<raw::RedisModuleString>,
    lifetime: PhantomData<&'c raw::RedisModuleString>,
}

impl<'c> StringRef<'c> {
    /// # Safety
    ///
    /// `raw` is a string of the server that stays alive and unchanged for `'c`.
    pub(super) unsafe fn new(api: &'static Api, raw: NonNull<raw::RedisModuleString>) -> Self {
        Self { api, raw, lifetime: PhantomData }
    }

    pub(super) fn raw(self) -> *mut raw::RedisModuleString {
        self.raw.as_ptr()
    }

    /// The string's bytes.
    pub(crate) fn bytes(self) -> &'c [u8] {
        let mut length = 0;
        // SAFETY: the string is alive for 'c by the promise made to `new`, and the server's strings do
        // not move; the pointer is valid for `length` bytes, and never null.
        unsafe {
            let start = (self.api.string_ptr_len)(self.raw.as_ptr(), &raw mut length);
            std::slice::from_raw_parts(start.cast(), length)
        }
    }
}

impl AsRef<[u8]> for StringRef<'_> {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// A string that this handle frees.
pub(crate) struct OwnedString<'c> {
    string: StringRef<'c>,
}

impl OwnedString<'_> {
    /// # Safety
    ///
    /// `raw` is a string. The caller owns one reference to it and gives that reference up.
    pub(super) unsafe fn new(api: &'static Api, raw: NonNull<raw::RedisModuleString>) -> Self {
        // SAFETY: the owned reference keeps the string alive until drop, and `as_ref` returns nothing that
        // outlives this handle.
        Self { string: unsafe { StringRef::new(api, raw) } }
    }

    pub(crate) fn as_ref(&self) -> StringRef<'_> {
        self.string
    }

    /// The string's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.string.bytes()
    }
}

impl Drop for OwnedString<'_> {
    fn drop(&mut self) {
        // SAFETY: this handle owns one reference and gives it up here. A context is needed only with
        // automatic memory, which this module never turns on.
        unsafe { (self.string.api.free_string)(std::ptr::null_mut(), self.string.raw()) }
    }
}

/// A string that is created on first use and then shared by all calls.
pub(crate) struct Literal {
    text: &'static str,
    raw: Cell<Option<NonNull<raw::RedisModuleString>>>,
}

// SAFETY: the string is only reached with a `Context`, which cannot leave the thread that the server called.
unsafe impl Sync for Literal {}

impl Literal {
    pub(crate) const fn new(text: &'static str) -> Self {
        Self { text, raw: Cell::new(None) }
    }

    pub(crate) fn get<'c>(&self, context: &'c Context) -> StringRef<'c> {
        let raw = self.raw.get().unwrap_or_else(|| self.make(context));
        // SAFETY: the string is never freed.
        unsafe { StringRef::new(context.api, raw) }
    }

    #[cold]
    fn make(&self, context: &Context) -> NonNull<raw::RedisModuleString> {
        let raw = context.create_raw_string(self.text.as_bytes());
        self.raw.set(Some(raw));
        raw
    }
}
