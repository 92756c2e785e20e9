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
mod removal;
mod walk;

use crate::server::{Context, ServerEvent, StringRef, subscribe_to_ended_keys};
use crate::settings;

pub(crate) use in_use::{note_written, written_prefixes};

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
        ServerEvent::DataLoaded | ServerEvent::RoleChanged | ServerEvent::Flushed => {
            walk::start_anew(context);
        }
        ServerEvent::DatabasesSwapped { one, other } => {
            in_use::swap(context, one, other);
            ended::swap(context, one, other);
            walk::start_anew(context);
        }
    }
}
