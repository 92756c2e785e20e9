//! Settings that the server's own `CONFIG` and `redis.conf` handle, as `pmcptask.{name}`.

use std::ffi::{CStr, c_char, c_int, c_longlong, c_uint, c_void};
use std::panic::catch_unwind;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, Ordering};

use redis_module::raw;

use super::api::{self, ERR, OK};
use super::context::Context;
use super::string::StringRef;

/// A number that `CONFIG SET` changes.
pub(crate) struct NumericSetting {
    pub(crate) name: &'static CStr,
    pub(crate) lowest: i64,
    pub(crate) highest: i64,
    /// A number of bytes, so that `1mb` is understood.
    pub(crate) is_size: bool,
    pub(crate) value: AtomicI64,
}

impl NumericSetting {
    pub(crate) fn get(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
    }

    /// Registers the setting, with its current value as the default.
    pub(crate) fn register(&'static self, context: &Context) -> bool {
        let is_size = if self.is_size { raw::REDISMODULE_CONFIG_MEMORY } else { 0 };
        // SAFETY: the context belongs to the running call; `get_number` and `set_number` get back the setting
        // that is passed here, which lives forever.
        let registered = unsafe {
            (context.api.register_numeric_config)(
                context.raw(),
                self.name.as_ptr(),
                self.get(),
                DEFAULT | is_size,
                self.lowest,
                self.highest,
                Some(get_number),
                Some(set_number),
                None,
                ptr::from_ref(self).cast_mut().cast(),
            )
        };
        registered == OK
    }
}

/// `yes` or `no`.
pub(crate) struct Switch {
    pub(crate) name: &'static CStr,
    pub(crate) is_on: AtomicBool,
}

impl Switch {
    pub(crate) fn get(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Registers the setting, with its current value as the default.
    pub(crate) fn register(&'static self, context: &Context) -> bool {
        // SAFETY: as for a number.
        let registered = unsafe {
            (context.api.register_bool_config)(
                context.raw(),
                self.name.as_ptr(),
                c_int::from(self.get()),
                DEFAULT,
                Some(get_switch),
                Some(set_switch),
                None,
                ptr::from_ref(self).cast_mut().cast(),
            )
        };
        registered == OK
    }
}

/// A text, empty unless it is set.
pub(crate) struct TextSetting {
    pub(crate) name: &'static CStr,
    /// Called with a new text before it is stored. An error is the sentence that says why the
    /// text is refused.
    pub(crate) accept: fn(&[u8]) -> Result<(), String>,
    /// The text as a string of the server, which `CONFIG GET` reads.
    text: AtomicPtr<raw::RedisModuleString>,
}

impl TextSetting {
    pub(crate) const fn new(name: &'static CStr, accept: fn(&[u8]) -> Result<(), String>) -> Self {
        Self { name, accept, text: AtomicPtr::new(ptr::null_mut()) }
    }

    pub(crate) fn register(&'static self, context: &Context) -> bool {
        // SAFETY: as for a number.
        let registered = unsafe {
            (context.api.register_string_config)(
                context.raw(),
                self.name.as_ptr(),
                c"".as_ptr(),
                DEFAULT,
                Some(get_text),
                Some(set_text),
                None,
                ptr::from_ref(self).cast_mut().cast(),
            )
        };
        registered == OK
    }
}

const DEFAULT: c_uint = raw::REDISMODULE_CONFIG_DEFAULT;

/// Applies what `redis.conf` says about the registered settings.
pub(crate) fn load_settings(context: &Context) -> bool {
    // SAFETY: the context belongs to the running call.
    unsafe { (context.api.load_configs)(context.raw()) == OK }
}

unsafe extern "C" fn get_number(_name: *const c_char, setting: *mut c_void) -> c_longlong {
    // SAFETY: `register` passed a setting that lives forever.
    unsafe { &*setting.cast_const().cast::<NumericSetting>() }.get()
}

unsafe extern "C" fn set_number(
    _name: *const c_char,
    value: c_longlong,
    setting: *mut c_void,
    _error: *mut *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: `register` passed a setting that lives forever.
    let setting = unsafe { &*setting.cast_const().cast::<NumericSetting>() };
    setting.value.store(value, Ordering::Relaxed);
    OK
}

unsafe extern "C" fn get_switch(_name: *const c_char, setting: *mut c_void) -> c_int {
    // SAFETY: `register` passed a setting that lives forever.
    c_int::from(unsafe { &*setting.cast_const().cast::<Switch>() }.get())
}

unsafe extern "C" fn set_switch(
    _name: *const c_char,
    value: c_int,
    setting: *mut c_void,
    _error: *mut *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: `register` passed a setting that lives forever.
    let setting = unsafe { &*setting.cast_const().cast::<Switch>() };
    setting.is_on.store(value != 0, Ordering::Relaxed);
    OK
}

/// The server copies the string. A null pointer is the empty text.
unsafe extern "C" fn get_text(_name: *const c_char, setting: *mut c_void) -> *mut raw::RedisModuleString {
    // SAFETY: `register` passed a setting that lives forever.
    unsafe { &*setting.cast_const().cast::<TextSetting>() }.text.load(Ordering::Relaxed)
}

unsafe extern "C" fn set_text(
    _name: *const c_char,
    value: *mut raw::RedisModuleString,
    setting: *mut c_void,
    error: *mut *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: `register` passed a setting that lives forever.
    let setting = unsafe { &*setting.cast_const().cast::<TextSetting>() };
    let (Some(api), Some(value)) = (api::get(), NonNull::new(value)) else { return ERR };
    // SAFETY: the server keeps the string alive for this call.
    let value = unsafe { StringRef::new(api, value) };
    // SAFETY: without a context a string belongs to no call; the pointer is valid for the length.
    let create =
        |text: &[u8]| unsafe { (api.create_string)(ptr::null_mut(), text.as_ptr().cast(), text.len()) };
    match catch_unwind(|| (setting.accept)(value.bytes())) {
        Ok(Ok(())) => {
            let before = setting.text.swap(create(value.bytes()), Ordering::Relaxed);
            if !before.is_null() {
                // SAFETY: the setting owned this reference and has given it up; the server keeps none.
                unsafe { (api.free_string)(ptr::null_mut(), before) };
            }
            OK
        }
        Ok(Err(why)) => {
            if !error.is_null() {
                // SAFETY: the server passes a place for the error, and frees the string.
                unsafe { *error = create(why.as_bytes()) };
            }
            ERR
        }
        Err(_) => ERR,
    }
}
