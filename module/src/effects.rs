//! What is sent to replicas and the AOF: plain commands with absolute times, so that neither needs this
//! module. Everything that one call replicates is one transaction.

use std::ffi::CStr;

use crate::fields::EXPIRES_AT;
use crate::server::{Context, Failed, StringRef};
use crate::time::Time;

/// The commands that are replicated for a task's key and for an index.
pub(crate) const ON_TASKS: [&CStr; 5] = [c"HSET", c"HDEL", c"PEXPIREAT", c"PERSIST", c"DEL"];
pub(crate) const ON_INDEXES: [&CStr; 2] = [c"ZADD", c"ZREM"];

/// Checks that the server has all these commands. With one missing, a write would be made but not replicated.
///
/// # Errors
///
/// The sentence for the log that names the missing commands.
pub(crate) fn check_commands(context: &Context) -> Result<(), String> {
    // The module reads the slots with CLUSTER.
    let of_clusters = context.is_cluster().then_some(c"CLUSTER");
    let missing: Vec<_> = ON_TASKS
        .into_iter()
        .chain(ON_INDEXES)
        // The server wraps the commands in a transaction.
        .chain([c"MULTI", c"EXEC"])
        .chain(of_clusters)
        .filter(|name| !context.has_command(name))
        .map(CStr::to_string_lossy)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "expected the commands that replicas and the append-only file are told of writes by, got a server without {}; \
         remove the rename-command lines of these",
        missing.join(", ")
    ))
}

/// Up to three fields of the task were set: names and values.
pub(crate) fn fields_set<const N: usize>(
    context: &Context,
    task: StringRef<'_>,
    fields: [(StringRef<'_>, StringRef<'_>); N],
) -> Result<(), Failed> {
    const { assert!(N >= 1 && N <= 3) };
    match fields.as_slice() {
        [(name_1, value_1), (name_2, value_2), (name_3, value_3)] => {
            let words = [task, *name_1, *value_1, *name_2, *value_2, *name_3, *value_3];
            context.replicate(c"HSET", words)
        }
        [(name_1, value_1), (name_2, value_2)] => {
            context.replicate(c"HSET", [task, *name_1, *value_1, *name_2, *value_2])
        }
        [(name, value)] => context.replicate(c"HSET", [task, *name, *value]),
        _ => Ok(()),
    }
}

/// The task's `expires_at` was removed.
pub(crate) fn expires_at_removed(context: &Context, task: StringRef<'_>) -> Result<(), Failed> {
    context.replicate(c"HDEL", [task, EXPIRES_AT.get(context)])
}

/// The key's expiry was set or removed.
pub(crate) fn expiry_set(context: &Context, task: StringRef<'_>, at: Option<Time<'_>>) -> Result<(), Failed> {
    match at {
        Some(at) => at.spelled(context, |at_ms| context.replicate(c"PEXPIREAT", [task, at_ms])),
        None => context.replicate(c"PERSIST", [task]),
    }
}

/// The key was removed.
pub(crate) fn deleted(context: &Context, task: StringRef<'_>) -> Result<(), Failed> {
    context.replicate(c"DEL", [task])
}

/// The task entered the index, or its entry got another creation time.
pub(crate) fn indexed(
    context: &Context,
    index: StringRef<'_>,
    task_id: StringRef<'_>,
    created: Time<'_>,
) -> Result<(), Failed> {
    created.spelled(context, |created_ms| context.replicate(c"ZADD", [index, created_ms, task_id]))
}

/// The task left the index.
pub(crate) fn unindexed(
    context: &Context,
    index: StringRef<'_>,
    task_id: StringRef<'_>,
) -> Result<(), Failed> {
    context.replicate(c"ZREM", [index, task_id])
}
