//! Loading and unloading.

use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{self, AssertUnwindSafe, catch_unwind};

use redis_module::raw;

use super::api::{self, ERR, OK};
use super::command::Arguments;
use super::context::Context;

/// The module that the server loads.
pub(crate) trait Module {
    const NAME: &'static CStr;
    const VERSION: i32;

    /// Registers everything that the module offers. `arguments` are those of `loadmodule`.
    ///
    /// # Errors
    ///
    /// The sentence for the log that says why the module cannot be loaded.
    fn load(context: &Context, arguments: &Arguments<'_>) -> Result<(), String>;

    /// Whether the server may unload the module.
    fn may_unload() -> bool;
}

/// # Safety
///
/// Only the server may call it, as a module's `RedisModule_OnUnload`.
pub(crate) unsafe fn on_unload<M: Module>(raw: *mut raw::RedisModuleCtx) -> c_int {
    if M::may_unload() {
        drop(panic::take_hook());
        return OK;
    }
    // SAFETY: the server passes the context of this call.
    if let Some(context) = unsafe { Context::enter(raw) } {
        context.log_warning(
            "the module is never unloaded: most servers crash when an ACL rule or a queued command names a command \
             that is gone. Restart the server with another module file, or with none",
        );
    }
    ERR
}

/// Logs where a panic was, and no more: its message may contain a user's data, and collecting a backtrace has
/// crashed servers whose allocator is not the system's.
fn log_panics(context: &Context) {
    let log = context.api.log;
    panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(|place| format!("{}:{}", place.file(), place.line()));
        let place = CString::new(place.unwrap_or_default()).unwrap_or_default();
        let format = c"pmcptask: a panic at %s; this is a defect of the module";
        // SAFETY: the server also logs without a context. The format is fixed and takes one C string.
        unsafe { log(std::ptr::null_mut(), c"warning".as_ptr(), format.as_ptr(), place.as_ptr()) };
    }));
}

/// # Safety
///
/// Only the server may call it, as a module's `RedisModule_OnLoad`.
pub(crate) unsafe fn on_load<M: Module>(
    raw: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    let failed = ERR;
    // Nothing may be allocated before the next call returns, because the allocator is the server's.
    // SAFETY: the server passes its context; the name is a C string.
    let registered = unsafe {
        raw::Export_RedisModule_Init(
            raw,
            M::NAME.as_ptr().cast::<c_char>(),
            M::VERSION,
            raw::REDISMODULE_APIVER_1.cast_signed(),
        )
    };
    if registered != OK {
        return failed;
    }
    if let Err(missing) = api::initialize() {
        if let (Some(log), Ok(missing)) = (
            // SAFETY: the pointer was filled in above and is copied out.
            unsafe { raw::RedisModule_Log },
            CString::new(missing),
        ) {
            // SAFETY: a fixed format with one C string.
            unsafe {
                log(
                    raw,
                    c"warning".as_ptr(),
                    c"pmcptask needs Redis 7.0 or Valkey 7.2: this server has no %s".as_ptr(),
                    missing.as_ptr(),
                );
            };
        }
        return failed;
    }
    // SAFETY: the server passes the context of this call.
    let Some(context) = (unsafe { Context::enter(raw) }) else { return failed };
    log_panics(&context);
    // Each write signals the modified keys itself. What the module keeps about keys is dropped after another
    // data set has been loaded in the background.
    let mut options =
        raw::REDISMODULE_OPTION_NO_IMPLICIT_SIGNAL_MODIFIED | raw::REDISMODULE_OPTIONS_HANDLE_REPL_ASYNC_LOAD;
    if is_valkey() {
        // To this module, the keys of a migrating slot belong to another node until the slot has arrived.
        options |= VALKEY_OPTIONS_HANDLE_ATOMIC_SLOT_MIGRATION;
    }
    // SAFETY: the context belongs to the running call.
    unsafe { (context.api.set_module_options)(raw, options.cast_signed()) };
    // SAFETY: the server passes `argc` arguments, alive for this call.
    let arguments = unsafe { Arguments::from_raw(&context, argv, argc) };
    match catch_unwind(AssertUnwindSafe(|| M::load(&context, &arguments))) {
        Ok(Ok(())) => OK,
        Ok(Err(why)) => {
            context.log_warning(&format!("the module cannot be loaded: {why}"));
            failed
        }
        Err(_) => {
            context.log_warning("the module panicked while it was loaded; this is a defect of the module");
            failed
        }
    }
}

/// Valkey 9 refuses `CLUSTER MIGRATESLOTS` while a module is loaded that does not set this option. Redis has
/// no such option and may give the bit another meaning.
const VALKEY_OPTIONS_HANDLE_ATOMIC_SLOT_MIGRATION: u32 = 1 << 5;

/// Valkey also offers its functions under its own names.
pub(super) fn is_valkey() -> bool {
    api::find(c"ValkeyModule_SetModuleOptions").is_some()
}

/// Exports `$module` as the module that the server finds in this library.
macro_rules! export {
    ($module:ty) => {
        /// Called by the server to load the module.
        ///
        /// # Safety
        ///
        /// Only the server may call it.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        pub unsafe extern "C" fn RedisModule_OnLoad(
            context: *mut redis_module::raw::RedisModuleCtx,
            argv: *mut *mut redis_module::raw::RedisModuleString,
            argc: std::ffi::c_int,
        ) -> std::ffi::c_int {
            // SAFETY: the arguments are the server's own.
            unsafe { $crate::server::on_load::<$module>(context, argv, argc) }
        }

        /// Called by the server to unload the module.
        ///
        /// # Safety
        ///
        /// Only the server may call it.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        pub unsafe extern "C" fn RedisModule_OnUnload(
            context: *mut redis_module::raw::RedisModuleCtx,
        ) -> std::ffi::c_int {
            // SAFETY: the argument is the server's own.
            unsafe { $crate::server::on_unload::<$module>(context) }
        }
    };
}
pub(crate) use export;
