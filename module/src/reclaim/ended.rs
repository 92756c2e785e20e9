//! Cleans up after tasks that have ended: by expiry, by eviction, or because `expires_at` is past and the
//! key's own expiry was lost.
//!
//! The end of a task may be noticed in the middle of a command, when nothing may be written. The key is
//! queued, and a timer removes the entry about 10 ms later.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::time::Instant;

use pmcptask_schema::TaskKey;

use super::in_use::is_in_use;
use super::removal::{may_reclaim, reclaim_entries, remove_hash};
use crate::failures::report;
use crate::record::{Presence, presence};
use crate::server::{Context, Failed, LONGEST_RUN, PAUSE_MS, ServerThread, StringRef, Timer};
use crate::settings::{RECLAIM, panic_if_asked};
use crate::slots::{SlotState, Slots};

/// Maximum number of queued keys. The entries of further keys are left to the walk.
const MOST: usize = 250_000;
/// Delay from the first key of a burst to its removal, in ms, so that keys that end together are
/// one transaction.
const DELAY_MS: i64 = 10;
/// Delay before a retry while the server must not write, in ms.
const RETRY_MS: i64 = 100;

struct Ended {
    /// Database and name of each key.
    keys: VecDeque<(c_int, Box<[u8]>)>,
    timer: Timer,
}

static ENDED: ServerThread<Ended> =
    ServerThread::new(Ended { keys: VecDeque::new(), timer: Timer::new(remove_some) });

impl Ended {
    fn start_timer(&mut self, context: &Context, delay_ms: i64) {
        if self.keys.is_empty() {
            // Frees the memory that a burst took.
            self.keys = VecDeque::new();
        } else {
            self.timer.run_within(context, delay_ms);
        }
    }
}

/// Queues a key of the selected database whose task may have ended.
pub(super) fn note(context: &Context, name: StringRef<'_>) {
    let name = name.bytes();
    let Ok(key) = TaskKey::parse(name) else { return };
    // A replica gets the removal from its primary.
    if !RECLAIM.get() || !is_in_use(context, key.prefix) || !context.is_settled_primary() {
        return;
    }
    let Some(mut ended) = ENDED.borrow_mut(context) else { return };
    if ended.keys.len() < MOST {
        ended.keys.push_back((context.selected_database(), name.into()));
        ended.start_timer(context, DELAY_MS);
    }
}

/// Two databases have changed places.
pub(super) fn swap(context: &Context, one: c_int, other: c_int) {
    let Some(mut ended) = ENDED.borrow_mut(context) else { return };
    for (database, _) in &mut ended.keys {
        if *database == one {
            *database = other;
        } else if *database == other {
            *database = one;
        }
    }
}

/// Called by the server `hz` times a second: starts a timer that has not fired in time, or whose work panicked.
pub(super) fn check_timer(context: &Context) {
    if let Some(mut ended) = ENDED.borrow_mut(context)
        && !ended.keys.is_empty()
    {
        ended.start_timer(context, RETRY_MS);
    }
}

/// Called by the timer.
fn remove_some(context: &Context) {
    if let Some(mut ended) = ENDED.borrow_mut(context) {
        ended.timer.has_fired();
        if !context.is_settled_primary() || !RECLAIM.get() {
            ended.keys.clear();
        }
    }
    panic_if_asked();
    let may_reclaim = may_reclaim(context);
    if may_reclaim {
        let (started, slots) = (Instant::now(), Slots::of(context));
        while started.elapsed() < LONGEST_RUN {
            let next = ENDED.borrow_mut(context).and_then(|mut ended| ended.keys.pop_front());
            let Some((database, name)) = next else { break };
            if context.select_database(database) {
                report(context, remove_if_ended(context, &slots, &name), "an index entry was removed");
            }
        }
    }
    if let Some(mut ended) = ENDED.borrow_mut(context) {
        ended.start_timer(context, if may_reclaim { PAUSE_MS } else { RETRY_MS });
    }
}

/// Removes the entries of a task that has ended, unless the key holds a live task again. A task that expired
/// or was evicted here is at no other node of a cluster, so its entry can go even while the slot migrates.
fn remove_if_ended(context: &Context, slots: &Slots<'_>, name: &[u8]) -> Result<(), Failed> {
    let Ok(key) = TaskKey::parse(name) else { return Ok(()) };
    let task_name = context.create_string(name);
    match presence(context, task_name.as_ref(), context.now_ms()) {
        Presence::Live => return Ok(()),
        // The key itself may be migrating.
        Presence::Lapsed if slots.state_of(name) != SlotState::Settled => return Ok(()),
        Presence::Lapsed => remove_hash(context, task_name.as_ref())?,
        Presence::Gone => {}
    }
    reclaim_entries(context, &key)
}
