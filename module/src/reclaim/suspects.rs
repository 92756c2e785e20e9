//! Tasks whose index entry may be wrong, because their key has gone or come by another hand.
//!
//! The server says so in the middle of another command, where nothing may be written. The key is noted, and
//! a timer puts its entry right in the next round of the event loop.

use std::collections::VecDeque;

use pmcptask_schema::{IndexKey, TaskKey};

use super::patrol::{self, Purpose};
use super::served::serves;
use super::slots::{Role, Slots};
use super::{agree, may_write};
use crate::server::{Context, KeyEvent, ServerThread, start_timer, subscribe_to_key_events};
use crate::settings;

/// Entries put right in one go, so that commands waiting meanwhile wait well under a millisecond.
const BATCH: usize = 128;

/// Keys that are kept while nothing may be written; beyond that, the patrol looks at all keys instead.
const MOST: usize = 100_000;

/// How soon to try again while the server must not write, or a key's slot is on its way, in ms.
const RETRY_MS: i64 = 100;

/// A task key that may have gone or come.
struct Suspect {
    database: i32,
    name: Vec<u8>,
    /// It has gone for good, so it is not to be expected at another node.
    has_ended: bool,
}

struct Suspects {
    keys: VecDeque<Suspect>,
    /// Keys whose slot is on its way. They wait apart, so that none of another slot waits behind them.
    waiting: VecDeque<Suspect>,
    timer_runs: bool,
}

static SUSPECTS: ServerThread<Suspects> =
    ServerThread::new(Suspects { keys: VecDeque::new(), waiting: VecDeque::new(), timer_runs: false });

impl Suspects {
    fn len(&self) -> usize {
        self.keys.len().saturating_add(self.waiting.len())
    }

    fn clear(&mut self) {
        self.keys = VecDeque::new();
        self.waiting = VecDeque::new();
    }

    fn take_batch(&mut self) -> Vec<Suspect> {
        let queue = if self.keys.is_empty() { &mut self.waiting } else { &mut self.keys };
        let batch = queue.drain(..queue.len().min(BATCH)).collect();
        if queue.is_empty() {
            // A burst must not hold its memory for good.
            queue.shrink_to(BATCH);
        }
        batch
    }
}

pub(super) fn start(context: &Context) -> bool {
    subscribe_to_key_events(context, note)
}

pub(super) fn forget(context: &Context) {
    if let Some(mut suspects) = SUSPECTS.borrow_mut(context) {
        suspects.clear();
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

/// Has a task's entry put right as soon as it can be judged: while its slot is on its way, only if it is known to
/// have ended.
pub(super) fn suspect(context: &Context, task_name: &[u8], has_ended: bool) {
    let Some(mut suspects) = SUSPECTS.borrow_mut(context) else { return };
    if suspects.len() >= MOST {
        suspects.clear();
        patrol::request(context, Purpose::VerifyUrgently);
    }
    let database = context.selected_database();
    suspects.keys.push_back(Suspect { database, name: task_name.to_vec(), has_ended });
    if !suspects.timer_runs {
        suspects.timer_runs = true;
        start_timer(context, 0, put_batch_right);
    }
}

fn put_batch_right(context: &Context) {
    // First of all: should anything below panic, the next key starts a timer again.
    if let Some(mut suspects) = SUSPECTS.borrow_mut(context) {
        suspects.timer_runs = false;
    }
    settings::panic_if_asked();
    if !context.is_settled_primary() {
        // Its primary puts things right, and a promotion has all indexes verified.
        forget(context);
        return;
    }
    let has_advanced = may_write(context) && advance(context);
    let Some(mut suspects) = SUSPECTS.borrow_mut(context) else { return };
    suspects.timer_runs = suspects.len() > 0;
    if suspects.timer_runs {
        let goes_on = has_advanced || (may_write(context) && !suspects.keys.is_empty());
        start_timer(context, if goes_on { 0 } else { RETRY_MS }, put_batch_right);
    }
}

/// Sees to a batch of keys; false if none of them can be judged yet.
fn advance(context: &Context) -> bool {
    let Some(batch) = SUSPECTS.borrow_mut(context).map(|mut suspects| suspects.take_batch()) else {
        return false;
    };
    let slots = Slots::of(context);
    let mut has_advanced = false;
    for suspect in batch {
        if !context.select_database(suspect.database) {
            continue;
        }
        match slots.role_for(&suspect.name) {
            Role::Owner => agree(context, &suspect.name),
            Role::Moving if suspect.has_ended => agree(context, &suspect.name),
            Role::Stranger => {}
            Role::Moving => {
                if let Some(mut suspects) = SUSPECTS.borrow_mut(context) {
                    suspects.waiting.push_back(suspect);
                }
                continue;
            }
        }
        has_advanced = true;
    }
    has_advanced
}
