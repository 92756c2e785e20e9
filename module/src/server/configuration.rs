//! Settings that the server's own `CONFIG` and `redis.conf` handle, as `pmcptask.{name}`.

use std::ffi::{CStr, c_char, c_int, c_longlong, c_void};
use std::sync::atomic::{AtomicI64, Ordering};

use redis_module::raw;

use super::api::OK;
use super::context::Context;

/// A number that `CONFIG SET` changes; in bytes, so that `1mb` is understood.
pub(crate) struct NumericSetting {
    pub(crate) name: &'static CStr,
    pub(crate) lowest: i64,
    pub(crate) highest: i64,
    pub(crate) value: AtomicI64,
}

impl NumericSetting {
    pub(crate) fn get(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// Registers a setting; its default is the value that it holds.
pub(crate) fn register_number(context: &Context, setting: &'static NumericSetting) -> bool {
    let flags = raw::REDISMODULE_CONFIG_DEFAULT | raw::REDISMODULE_CONFIG_MEMORY;
    // SAFETY: the context is that of the running call; `get` and `set` get back the setting that is
    // passed here, which lives forever.
    let registered = unsafe {
        (context.api.register_numeric_config)(
            context.raw(),
            setting.name.as_ptr(),
            setting.get(),
            flags,
            setting.lowest,
            setting.highest,
            Some(get),
            Some(set),
            None,
            std::ptr::from_ref(setting).cast_mut().cast(),
        )
    };
    registered == OK
}

/// Takes over what `redis.conf` says of the settings that have been registered.
pub(crate) fn load_settings(context: &Context) -> bool {
    // SAFETY: the context is that of the running call.
    unsafe { (context.api.load_configs)(context.raw()) == OK }
}

unsafe extern "C" fn get(_name: *const c_char, setting: *mut c_void) -> c_longlong {
    // SAFETY: `register_number` passed a setting that lives forever.
    unsafe { &*setting.cast_const().cast::<NumericSetting>() }.get()
}

unsafe extern "C" fn set(
    _name: *const c_char,
    value: c_longlong,
    setting: *mut c_void,
    _error: *mut *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: `register_number` passed a setting that lives forever.
    let setting = unsafe { &*setting.cast_const().cast::<NumericSetting>() };
    setting.value.store(value, Ordering::Relaxed);
    OK
}
