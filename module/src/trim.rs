//! Removes the oldest tasks of an owner.

use pmcptask_schema::IndexKey;

use crate::index::{self, Surplus};
use crate::record::Presence;
use crate::refusal::Refusal;
use crate::server::{CommandName, Context, Key, Permissions, StringRef};
use crate::{effects, reclaim};

/// A user who may run this command on a task's key may have TRIM remove the task.
static DEL: CommandName = CommandName::deleting("pmcptask.del");

/// Removes the oldest tasks, at most `count`, so that the newest `keep` live tasks stay. Returns how many tasks it
/// removed. Dead entries that it meets among them go too.
///
/// # Errors
///
/// [`Refusal::NoPermission`] if the user may not remove one of the tasks; [`Refusal::MayBeElsewhere`] if one of the
/// tasks is missing here and may be at another node. Nothing was removed. [`Refusal::Failed`]: some tasks may have been
/// removed.
pub(crate) fn remove_oldest(
    context: &Context,
    mut index: Key<'_>,
    index_name: StringRef<'_>,
    key: &IndexKey<'_>,
    keep: usize,
    count: usize,
) -> Result<usize, Refusal> {
    let lapsed = |task_name: StringRef<'_>| reclaim::note_lapsed(context, task_name);
    let surplus = index::surplus(context, &index, key, keep, count, lapsed)?;
    let mut keys = key.task_keys();
    let common = keys.of_member(b"").to_vec();
    let permissions = Permissions::of(context, &DEL);
    for Surplus { task_name, presence, .. } in &surplus {
        if *presence != Presence::Gone && !permissions.allow(task_name.as_ref(), &common) {
            return Err(Refusal::NoPermission { action: "remove", key: task_name.bytes().to_vec() });
        }
    }
    let mut removed: usize = 0;
    for Surplus { task_id, task_name, presence } in &surplus {
        if *presence != Presence::Gone {
            Key::open_for_writing(context, task_name.as_ref()).delete()?;
            effects::deleted(context, task_name.as_ref())?;
            context.signal_modified(task_name.as_ref());
        }
        index::remove_entry(context, &mut index, index_name, task_id.as_ref())?;
        removed = removed.saturating_add(usize::from(*presence == Presence::Live));
    }
    // Another module may write when it hears of a task's end, so all of them end first.
    drop(index);
    for Surplus { task_name, .. } in surplus.iter().filter(|surplus| surplus.presence != Presence::Gone) {
        context.notify(c"pmcptask.del", task_name.as_ref());
    }
    Ok(removed)
}
