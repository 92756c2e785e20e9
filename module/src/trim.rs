//! Removes the oldest tasks of an owner.

use pmcptask_schema::IndexKey;

use crate::index::{self, EntryChunks};
use crate::record::{self, Presence};
use crate::refusal::Refusal;
use crate::server::{CommandName, Context, Key, OwnedString, Permissions, StringRef};
use crate::slots::Slots;
use crate::{effects, reclaim};

/// How many dead entries one TRIM removes at most, which bounds its transaction. Later calls remove the others.
const DEAD_AT_ONCE: usize = 10_000;

/// A user who may run this command on a task's key may have TRIM remove the task.
static DEL: CommandName = CommandName::deleting("pmcptask.del");

/// An entry to remove.
struct Surplus<'c> {
    task_id: OwnedString<'c>,
    task_name: OwnedString<'c>,
    presence: Presence,
}

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
    let surplus = surplus(context, &index, key, keep, count)?;
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

/// The entries to remove, oldest first: at most `count` live tasks that are older than the newest `keep` live tasks. The
/// dead entries among them are included, up to [`DEAD_AT_ONCE`], so that later calls pass fewer dead entries.
///
/// # Errors
///
/// [`Refusal::MayBeElsewhere`].
fn surplus<'c>(
    context: &'c Context,
    index: &Key<'c>,
    key: &IndexKey<'_>,
    keep: usize,
    count: usize,
) -> Result<Vec<Surplus<'c>>, Refusal> {
    let (now_ms, slots) = (context.now_ms(), Slots::of(context));
    let check_is_here = |task_name: StringRef<'_>, presence| {
        let name = task_name.bytes();
        if presence == Presence::Gone && slots.may_be_elsewhere(name) {
            return Err(Refusal::MayBeElsewhere { key: name.to_vec() });
        }
        Ok(())
    };
    let pass_kept = |task_name: StringRef<'_>, presence| {
        if presence == Presence::Lapsed {
            reclaim::note_lapsed(context, task_name);
        }
        check_is_here(task_name, presence)
    };
    let oldest_kept = match keep {
        0 => None,
        keep => match index::nth_newest_live(context, index, key, keep, now_ms, pass_kept)? {
            None => return Ok(Vec::new()),
            Some(entry) => Some(entry.position()),
        },
    };
    let mut keys = key.task_keys();
    let mut surplus: Vec<Surplus<'_>> = Vec::new();
    let mut live: usize = 0;
    let mut chunks = EntryChunks::new(index, None, false);
    while live < count
        && let Some(entries) = chunks.next_chunk(count.saturating_sub(live))
    {
        for entry in entries {
            // By its place: the entry itself may be gone by now, if another module removes entries.
            let is_kept = oldest_kept.as_ref().is_some_and(|kept| !kept.is_before(&entry, true));
            if is_kept || live >= count {
                return Ok(surplus);
            }
            let task_id = entry.task_id;
            let Some(name) = keys.of_task(task_id.bytes()) else { continue };
            let task_name = context.create_string(name);
            let presence = record::presence(context, task_name.as_ref(), now_ms);
            check_is_here(task_name.as_ref(), presence)?;
            if presence == Presence::Live {
                live = live.saturating_add(1);
            } else if surplus.len().saturating_sub(live) >= DEAD_AT_ONCE {
                continue;
            }
            surplus.push(Surplus { task_id, task_name, presence });
        }
    }
    Ok(surplus)
}
