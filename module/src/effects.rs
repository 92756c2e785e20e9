//! What replicas and the AOF are told: plain commands with absolute times, so that neither needs this
//! module. All that one call tells is one transaction.

use pmcptask_schema::fields;

use crate::server::{Context, Literal, StringRef};

/// Fields of the hash.
pub(crate) static VERSION: Literal = Literal::new(fields::VERSION);
pub(crate) static DATA: Literal = Literal::new(fields::DATA);
pub(crate) static EXPIRES_AT: Literal = Literal::new(fields::EXPIRES_AT);

/// Frees the names of the fields, before the module is unloaded.
pub(crate) fn forget(context: &mut Context) {
    for name in [&VERSION, &DATA, &EXPIRES_AT] {
        name.forget(context);
    }
}

/// Fields of the task were set: names and values, two or three.
pub(crate) fn fields_set<const N: usize>(
    context: &Context,
    task: StringRef<'_>,
    fields: [(StringRef<'_>, StringRef<'_>); N],
) {
    const { assert!(N == 2 || N == 3) };
    match fields.as_slice() {
        [(name_1, value_1), (name_2, value_2), (name_3, value_3)] => {
            let words = [task, *name_1, *value_1, *name_2, *value_2, *name_3, *value_3];
            context.replicate(c"HSET", words);
        }
        [(name_1, value_1), (name_2, value_2)] => {
            context.replicate(c"HSET", [task, *name_1, *value_1, *name_2, *value_2]);
        }
        _ => {}
    }
}

/// The task's `expires_at` was removed.
pub(crate) fn expires_at_removed(context: &Context, task: StringRef<'_>) {
    context.replicate(c"HDEL", [task, EXPIRES_AT.get(context)]);
}

/// The key's expiry was set or removed.
pub(crate) fn expiry_set(context: &Context, task: StringRef<'_>, at_ms: Option<i64>) {
    match at_ms {
        Some(at_ms) => context.replicate_number(c"PEXPIREAT", task, at_ms),
        None => context.replicate(c"PERSIST", [task]),
    }
}

/// The key was removed.
pub(crate) fn deleted(context: &Context, task: StringRef<'_>) {
    context.replicate(c"DEL", [task]);
}

/// The task entered the index, or its entry got another creation time.
pub(crate) fn indexed(context: &Context, index: StringRef<'_>, task_id: StringRef<'_>, created_ms: i64) {
    context.replicate_scored(c"ZADD", index, created_ms, task_id);
}

/// The task left the index.
pub(crate) fn unindexed(context: &Context, index: StringRef<'_>, task_id: StringRef<'_>) {
    context.replicate(c"ZREM", [index, task_id]);
}
