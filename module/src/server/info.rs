//! The module's section of `INFO`.

use std::ffi::{CStr, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use redis_module::raw;

use super::api::{self, Api, OK};
use super::context::Context;

/// The section that is being written.
pub(crate) struct Info {
    api: &'static Api,
    raw: *mut raw::RedisModuleInfoCtx,
}

impl Info {
    pub(crate) fn field(&self, name: &CStr, value: u64) {
        // SAFETY: the context belongs to the running call; the server copies the name.
        unsafe { (self.api.info_add_field_unsigned)(self.raw, name.as_ptr(), value) };
    }
}

static WRITER: OnceLock<fn(&Info)> = OnceLock::new();

/// Makes `writer` write the module's section whenever a client asks for it.
pub(crate) fn register(context: &Context, writer: fn(&Info)) -> bool {
    WRITER.get_or_init(|| writer);
    // SAFETY: the context belongs to the running call.
    unsafe { (context.api.register_info_func)(context.raw(), Some(write)) == OK }
}

unsafe extern "C" fn write(raw: *mut raw::RedisModuleInfoCtx, _for_crash_report: c_int) {
    let (Some(api), Some(writer)) = (api::get(), WRITER.get()) else { return };
    // SAFETY: the context belongs to the running call. With an empty name, the section is named after the
    // module. An error means that this section was not requested.
    let wanted = unsafe { (api.info_add_section)(raw, c"".as_ptr()) } == OK;
    if wanted {
        // After a panic the section ends early. The panic hook has logged where the panic was.
        let _ = catch_unwind(AssertUnwindSafe(|| writer(&Info { api, raw })));
    }
}
