//! What replicas and the AOF are told: plain commands with absolute times, so that neither needs this
//! module. All that one call tells is one transaction.

use std::ffi::CStr;

use pmcptask_schema::fields;

use crate::server::{Context, StringRef};

/// Fields of the hash as the server's API takes them.
pub(crate) const VERSION: &CStr = c"version";
pub(crate) const DATA: &CStr = c"data";
pub(crate) const EXPIRES_AT: &CStr = c"expires_at";

/// The task's fields were set; `expires_at` only where it is given.
pub(crate) fn fields_set(
    context: &Context,
    task: StringRef<'_>,
    version: StringRef<'_>,
    data: StringRef<'_>,
    expires_at: Option<StringRef<'_>>,
) {
    let [version_name, data_name] =
        [fields::VERSION, fields::DATA].map(|name| context.create_string(name.as_bytes()));
    let (version_name, data_name) = (version_name.as_ref(), data_name.as_ref());
    match expires_at {
        None => context.replicate(c"HSET", [task, version_name, version, data_name, data]),
        Some(expires_at) => {
            let name = context.create_string(fields::EXPIRES_AT.as_bytes());
            context.replicate(
                c"HSET",
                [task, version_name, version, data_name, data, name.as_ref(), expires_at],
            );
        }
    }
}

/// The task's `expires_at` was removed.
pub(crate) fn expires_at_removed(context: &Context, task: StringRef<'_>) {
    let name = context.create_string(fields::EXPIRES_AT.as_bytes());
    context.replicate(c"HDEL", [task, name.as_ref()]);
}

/// The key's expiry was set or removed.
pub(crate) fn expiry_set(context: &Context, task: StringRef<'_>, at_ms: Option<i64>) {
    match at_ms {
        Some(at_ms) => context.replicate(c"PEXPIREAT", [task, context.create_decimal(at_ms).as_ref()]),
        None => context.replicate(c"PERSIST", [task]),
    }
}

/// The key was removed.
pub(crate) fn deleted(context: &Context, task: StringRef<'_>) {
    context.replicate(c"DEL", [task]);
}

/// The task entered the index, or its entry got another creation time.
pub(crate) fn indexed(context: &Context, index: StringRef<'_>, task_id: StringRef<'_>, created_ms: i64) {
    context.replicate(c"ZADD", [index, context.create_decimal(created_ms).as_ref(), task_id]);
}

/// The task left the index.
pub(crate) fn unindexed(context: &Context, index: StringRef<'_>, task_id: StringRef<'_>) {
    context.replicate(c"ZREM", [index, task_id]);
}
