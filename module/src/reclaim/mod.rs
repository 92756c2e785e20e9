//! Removes index entries whose task was ended by no command of this module.
//!
//! An entry without a task counts for nothing, so nothing here is urgent:
//!
//! - [`ended`] hears from the server of each task that has expired or was evicted, and removes the entry a moment later.
//! - [`walk`] goes through all indexes every quarter of an hour, at a hundredth of the server's time. An entry
//!   without a task, that had none in the walk before either, is removed: a tool that copies data in, in whatever order,
//!   has all that time to finish.
//!
//! Only keys of prefixes that are [`in_use`] are looked at. All others belong to other applications. No entry is ever
//! made here.

mod dead_entries;
mod ended;
mod in_use;
mod walk;

use pmcptask_schema::{IndexKey, TaskKey};

use crate::server::{Context, Failed, Key, Kind, ServerEvent, StringRef, subscribe_to_ended_keys};
use crate::{effects, index, settings, statistics};

pub(crate) use in_use::note_written;

/// Starts listening.
pub(crate) fn start(context: &Context) -> bool {
    subscribe_to_ended_keys(context, |context, key| {
        settings::panic_if_asked();
        ended::note(context, key);
    })
}

/// Takes note of a hash that has outlived its task: hash and entry are removed in a moment.
pub(crate) fn note_lapsed(context: &Context, task_name: StringRef<'_>) {
    ended::note(context, task_name);
}

/// What has happened to the server, or that its housekeeping is due.
pub(crate) fn tell(context: &Context, event: ServerEvent) {
    match event {
        ServerEvent::Cron => walk::step(context),
        ServerEvent::AppendOnlyFileLoads => {}
        ServerEvent::DataLoaded | ServerEvent::RoleChanged => walk::start_anew(context),
        ServerEvent::DatabasesSwapped { one, other } => {
            in_use::swap(context, one, other);
            ended::swap(context, one, other);
            walk::start_anew(context);
        }
    }
}

/// False on a replica, which is told of removals, and while a failover or CLIENT PAUSE forbids writes.
fn may_write(context: &Context) -> bool {
    settings::RECLAIM.get() && context.is_settled_primary() && !context.writes_are_paused()
}

/// Removes a hash that has outlived its task.
fn remove_hash(context: &Context, task_name: StringRef<'_>) -> Result<(), Failed> {
    Key::open_unnoticed(context, task_name).delete()?;
    effects::deleted(context, task_name)?;
    context.signal_modified(task_name);
    context.notify(c"pmcptask.del", task_name);
    Ok(())
}

/// Removes all entries by which a task is known.
fn remove_entries(context: &Context, key: &TaskKey<'_>) -> Result<(), Failed> {
    remove_entry(context, &IndexKey::of(key), key.task_id)?;
    if let Some((index, member)) = key.old_entry() {
        remove_entry(context, &index, &member)?;
    }
    Ok(())
}

fn remove_entry(context: &Context, index: &IndexKey<'_>, member: &[u8]) -> Result<(), Failed> {
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

/// Counts and logs what cannot happen.
fn report(context: &Context, result: Result<(), Failed>) {
    if let Err(failed) = result {
        statistics::FAILED_CALLS.increment();
        context.log_warning(&format!("{failed} while an index entry was removed"));
    }
}
