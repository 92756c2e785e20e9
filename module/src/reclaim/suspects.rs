//! Tasks whose index entry may be wrong, because their key has gone or come by another hand.
//!
//! The server says so in the middle of another command, where nothing may be written. The key is noted, and
//! a timer puts its entry right in the next round of the event loop.

use std::collections::VecDeque;

use pmcptask_schema::{IndexKey, TaskKey};

use super::patrol::{self, Purpose};
use super::served::serves;
use super::slots::Slots;
use super::waiting::Waiting;
use super::{may_write, put_right};
use crate::server::{Context, KeyEvent, ServerThread, start_timer, subscribe_to_key_events};
use crate::settings;

/// Entries put right in one go, so that commands waiting meanwhile wait well under a millisecond.
const BATCH: usize = 128;

/// Keys that are kept while nothing may be written; beyond that, the patrol looks at all keys instead.
const MOST: usize = 100_000;

/// How soon to try again while the server must not write, in ms.
const RETRY_MS: i64 = 100;

/// A task key that may have gone or come.
struct Suspect {
    database: i32,
    name: Box<[u8]>,
    /// It has gone for good, so it is not to be expected at another node.
    has_ended: bool,
}

struct Suspects {
    keys: VecDeque<Suspect>,
    /// Those that cannot be judged yet.
    waiting: Waiting,
    timer_runs: bool,
}

static SUSPECTS: ServerThread<Suspects> =
    ServerThread::new(Suspects { keys: VecDeque::new(), waiting: Waiting::new(), timer_runs: false });

impl Suspects {
    fn take_batch(&mut self) -> Vec<Suspect> {
        let batch = self.keys.drain(..self.keys.len().min(BATCH)).collect();
        if self.keys.is_empty() {
            // A burst must not hold its memory for good.
            self.keys.shrink_to(BATCH);
        }
        batch
    }

    fn start_timer(&mut self, context: &Context, delay_ms: i64) {
        if !self.timer_runs && !self.keys.is_empty() {
            self.timer_runs = true;
            start_timer(context, delay_ms, put_batch_right);
        }
    }
}

pub(super) fn start(context: &Context) -> bool {
    subscribe_to_key_events(context, note)
}

pub(super) fn forget(context: &Context) {
    if let Some(mut suspects) = SUSPECTS.borrow_mut(context) {
        suspects.keys = VecDeque::new();
        suspects.waiting = Waiting::new();
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
            suspect(context, name, event.has_ended);
        }
    } else if IndexKey::parse(name).is_ok_and(|key| serves(context, key.prefix)) {
        // Evicted, say, while its tasks are still there.
        patrol::request(context, Purpose::Verify);
    }
}

/// Takes note that this module has deleted a task. It removes the task's entry itself, but not the one by
/// which the client that it replaces may know the task.
pub(crate) fn note_deleted(context: &Context, task_name: &[u8]) {
    if TaskKey::parse(task_name).is_ok_and(|key| key.owner.contains(&b':')) {
        suspect(context, task_name, true);
    }
}

/// Has a task's entry put right in a moment.
fn suspect(context: &Context, task_name: &[u8], has_ended: bool) {
    let Some(mut suspects) = SUSPECTS.borrow_mut(context) else { return };
    if suspects.keys.len() >= MOST {
        suspects.keys.clear();
        patrol::request(context, Purpose::VerifyUrgently);
    }
    let database = context.selected_database();
    suspects.keys.push_back(Suspect { database, name: task_name.into(), has_ended });
    suspects.start_timer(context, 0);
}

/// Has a task's entry put right once the slot of its key has settled.
pub(super) fn wait_for_slot(context: &Context, slot: i64, task_name: &[u8]) {
    if let Some(mut suspects) = SUSPECTS.borrow_mut(context) {
        suspects.waiting.note(slot, context.selected_database(), task_name);
    }
}

/// Has the entries put right that have waited for slots which are settled now.
pub(super) fn look_at_waiting(context: &Context, slots: &Slots<'_>) {
    let Some(mut suspects) = SUSPECTS.borrow_mut(context) else { return };
    if suspects.waiting.is_empty() {
        return;
    }
    for settled in suspects.waiting.take_settled(|slot| slots.is_moving(slot)) {
        let keys = settled.keys.into_iter();
        suspects.keys.extend(keys.map(|(database, name)| Suspect { database, name, has_ended: false }));
        if settled.has_lost_some {
            patrol::request(context, Purpose::VerifyUrgently);
        }
    }
    suspects.start_timer(context, 0);
}

fn put_batch_right(context: &Context) {
    // First of all: should anything below panic, the next key starts a timer again.
    if let Some(mut suspects) = SUSPECTS.borrow_mut(context) {
        suspects.timer_runs = false;
    }
    settings::panic_if_asked();
    let delay_ms = if may_write(context) {
        advance(context);
        0
    } else {
        RETRY_MS
    };
    if let Some(mut suspects) = SUSPECTS.borrow_mut(context) {
        suspects.start_timer(context, delay_ms);
    }
}

fn advance(context: &Context) {
    let Some(batch) = SUSPECTS.borrow_mut(context).map(|mut suspects| suspects.take_batch()) else { return };
    let slots = Slots::of(context);
    for suspect in batch {
        if context.select_database(suspect.database) {
            put_right(context, &slots, &suspect.name, suspect.has_ended);
        }
    }
}
