//! Removes index entries of tasks that ended without a command of this module.
//!
//! No command lists or counts an entry without a task, so nothing here is urgent:
//!
//! - [`ended`] learns from the server of each task that has expired or was evicted, and removes the entry
//!   about 10 ms later.
//! - [`walk`] goes through all indexes every quarter of an hour, with at most 1 % of the server's time. It
//!   removes an entry without a task if the previous walk found no task either, so a tool that copies data
//!   in, in any order, has that long to finish.
//!
//! Only keys with prefixes that are [`in_use`] are touched. All other keys belong to other applications.
//! Nothing here ever adds an entry.

mod dead_entries;
mod ended;
mod in_use;
mod removal;
mod walk;

use crate::server::{Context, ServerEvent, StringRef, subscribe_to_ended_keys};
use crate::settings;

pub(crate) use in_use::{note_written, written_prefixes};

/// Subscribes to keys that expire or are evicted.
pub(crate) fn start(context: &Context) -> bool {
    subscribe_to_ended_keys(context, |context, key| {
        settings::panic_if_asked();
        ended::note(context, key);
    })
}

/// Queues a hash whose `expires_at` is past: hash and entry are removed about 10 ms later.
pub(crate) fn note_lapsed(context: &Context, task_name: StringRef<'_>) {
    ended::note(context, task_name);
}

/// Handles a server event.
pub(crate) fn on_server_event(context: &Context, event: ServerEvent) {
    match event {
        ServerEvent::Cron => {
            ended::check_timer(context);
            walk::step(context);
        }
        ServerEvent::AppendOnlyFileLoads => {}
        ServerEvent::DataLoaded | ServerEvent::RoleChanged | ServerEvent::Flushed { .. } => {
            walk::start_anew(context);
        }
        ServerEvent::DatabasesSwapped { one, other } => {
            in_use::swap(context, one, other);
            ended::swap(context, one, other);
            walk::start_anew(context);
        }
    }
}
