//! The removals themselves, and when they are allowed.

use pmcptask_schema::{IndexKey, TaskKey};

use crate::server::{Context, Failed, Key, Kind, StringRef};
use crate::{effects, index, settings, statistics};

/// False with `reclaim no`, on a replica, which gets removals from its primary, while data is loading, and
/// while a failover or CLIENT PAUSE forbids writes.
pub(super) fn may_reclaim(context: &Context) -> bool {
    settings::RECLAIM.get() && context.is_settled_primary() && !context.writes_are_paused()
}

/// Removes a hash whose `expires_at` is past.
pub(super) fn remove_hash(context: &Context, task_name: StringRef<'_>) -> Result<(), Failed> {
    Key::open_unnoticed(context, task_name).delete()?;
    effects::deleted(context, task_name)?;
    context.signal_modified(task_name);
    context.notify(c"pmcptask.del", task_name);
    Ok(())
}

/// Removes a task's entry, and the entry that `pmcp_tasks::RedisBackend` made for the task.
pub(super) fn reclaim_entries(context: &Context, key: &TaskKey<'_>) -> Result<(), Failed> {
    reclaim_entry(context, &IndexKey::of(key), key.task_id)?;
    if let Some((index, member)) = key.old_entry() {
        reclaim_entry(context, &index, &member)?;
    }
    Ok(())
}

pub(super) fn reclaim_entry(context: &Context, index: &IndexKey<'_>, member: &[u8]) -> Result<(), Failed> {
    let mut name = Vec::new();
    index.write(&mut name);
    let name = context.create_string(&name);
    let mut index = Key::open_unnoticed(context, name.as_ref());
    let member = context.create_string(member);
    if index.kind() == Kind::SortedSet
        && index::remove_entry(context, &mut index, name.as_ref(), member.as_ref())?
    {
        statistics::INDEX_ENTRIES_REMOVED.increment();
    }
    Ok(())
}
