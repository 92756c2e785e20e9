//! Keys that the server says have gone.
//!
//! It says so in the middle of another command, where nothing may be written. The key is noted, and a
//! timer removes the task's entry in the next round of the event loop.

use std::collections::VecDeque;

use pmcptask_schema::{IndexKey, TaskKey};

use super::patrol::verify_indexes;
use super::slots::Slots;
use super::{may_write, reclaim, serves};
use crate::server::{Context, KeyEvent, ServerThread, start_timer, subscribe_to_key_events};
use crate::settings;

/// Entries removed in one go, so that commands waiting meanwhile wait well under a millisecond.
const BATCH: usize = 128;

/// How soon to try again while the server must not write, in ms.
const RETRY_MS: i64 = 100;

struct Gone {
    /// Task keys, and their database.
    keys: VecDeque<(i32, Vec<u8>)>,
    timer_runs: bool,
}

static GONE: ServerThread<Gone> = ServerThread::new(Gone { keys: VecDeque::new(), timer_runs: false });

pub(super) fn start(context: &Context) -> bool {
    subscribe_to_key_events(context, note)
}

pub(super) fn forget(context: &Context) {
    if let Some(mut gone) = GONE.borrow_mut(context) {
        gone.keys = VecDeque::new();
    }
}

fn note(context: &Context, event: &KeyEvent<'_>) {
    settings::panic_if_asked();
    // A replica, or an AOF that is being loaded, is told by whoever puts things right.
    if !context.is_settled_primary() {
        return;
    }
    let name = event.key.bytes();
    if let Ok(key) = TaskKey::parse(name) {
        if serves(context, key.prefix) {
            enqueue(context, name);
        }
    } else if IndexKey::parse(name).is_ok_and(|key| serves(context, key.prefix)) {
        // Evicted, say, while its tasks are still there.
        verify_indexes(context);
    }
}

/// Takes note that this module has deleted a task. It removes the task's entry itself, but not the one by
/// which the client that it replaces may know the task.
pub(crate) fn note_deleted(context: &Context, task_name: &[u8]) {
    if TaskKey::parse(task_name).is_ok_and(|key| key.owner.contains(&b':')) {
        enqueue(context, task_name);
    }
}

fn enqueue(context: &Context, task_name: &[u8]) {
    let Some(mut gone) = GONE.borrow_mut(context) else { return };
    gone.keys.push_back((context.selected_database(), task_name.to_vec()));
    if !gone.timer_runs {
        gone.timer_runs = true;
        start_timer(context, 0, reclaim_batch);
    }
}

fn reclaim_batch(context: &Context) {
    // First of all: should anything below panic, the next key that goes starts a timer again.
    if let Some(mut gone) = GONE.borrow_mut(context) {
        gone.timer_runs = false;
    }
    settings::panic_if_asked();
    let slots = Slots::of(context);
    let may_reclaim = may_write(context) && slots != Slots::Moving;
    let batch = if may_reclaim { take_batch(context) } else { Vec::new() };
    for (database, name) in batch {
        if context.select_database(database) && slots.hold(context, &name) {
            reclaim(context, &name);
        }
    }
    let Some(mut gone) = GONE.borrow_mut(context) else { return };
    gone.timer_runs = !gone.keys.is_empty();
    if gone.timer_runs {
        start_timer(context, if may_reclaim { 0 } else { RETRY_MS }, reclaim_batch);
    }
}

fn take_batch(context: &Context) -> Vec<(i32, Vec<u8>)> {
    let Some(mut gone) = GONE.borrow_mut(context) else { return Vec::new() };
    let length = gone.keys.len().min(BATCH);
    let batch = gone.keys.drain(..length).collect();
    if gone.keys.is_empty() {
        // A burst must not hold its memory for good.
        gone.keys.shrink_to(BATCH);
    }
    batch
}
