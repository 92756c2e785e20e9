//! A slow walk through the indexes of all prefixes in use, in all databases.
//!
//! Pauses are measured with the monotonic clock. The wall clock can jump, so it only decides
//! what has expired.

use std::ffi::c_int;
use std::time::{Duration, Instant};

use pmcptask_schema::IndexKey;

use super::dead_entries::DeadEntries;
use super::ended;
use super::in_use::is_in_use;
use super::removal::{may_reclaim, reclaim_entry};
use crate::failures::report;
use crate::record::{Presence, presence};
use crate::server::{Context, Key, Kind, ScanCursor, ServerThread};
use crate::slots::{SlotState, Slots};
use crate::{settings, statistics};

/// Minimum time between steps, however often the server calls: even the smallest step takes longer than its
/// share of a shorter pause.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Walks {
    walk: Option<Walk>,
    last_step: Option<Instant>,
    /// None: a walk starts as soon as possible.
    last_end: Option<Instant>,
    dead: DeadEntries,
}

static WALKS: ServerThread<Option<Walks>> = ServerThread::new(None);

/// Discards what earlier walks have found, because the data or the server's role has changed. A walk starts
/// as soon as possible.
pub(super) fn start_anew(context: &Context) {
    if let Some(mut walks) = WALKS.borrow_mut(context) {
        *walks = None;
    }
}

/// Called by the server `hz` times a second.
pub(super) fn step(context: &Context) {
    if !settings::RECLAIM.get() {
        // While reclaim is off, data may be copied in, so entries found dead earlier no longer count.
        start_anew(context);
        return;
    }
    if !may_reclaim(context) {
        return;
    }
    let Some(mut walks) = WALKS.borrow_mut(context) else { return };
    walks.get_or_insert_default().step(context);
}

impl Walks {
    fn step(&mut self, context: &Context) {
        let started = Instant::now();
        let since = |then: Option<Instant>| then.map(|then| started.saturating_duration_since(then));
        let pause = since(self.last_step).unwrap_or(SHORTEST_PAUSE);
        if pause < SHORTEST_PAUSE {
            return;
        }
        let pace = settings::pace();
        if self.walk.is_none() && since(self.last_end).is_some_and(|rest| rest < pace.rest) {
            return;
        }
        self.last_step = Some(started);
        let time = pause.mul_f64(pace.share).min(pace.longest_step);
        let slots = Slots::of(context);
        let walk = self.walk.get_or_insert_with(|| Walk::new(context));
        while walk.advance(context, &slots, &mut self.dead) {
            if started.elapsed() >= time {
                return;
            }
        }
        self.walk = None;
        self.last_end = Some(started);
        self.dead.end_walk();
        statistics::INDEX_WALKS.increment();
    }
}

/// One walk through all indexes.
struct Walk {
    /// Databases still to visit, the next one last.
    databases: Vec<c_int>,
    keys: ScanCursor,
    /// Indexes still to check.
    indexes: Vec<Vec<u8>>,
    /// The index that is being checked.
    index: Option<(Vec<u8>, ScanCursor)>,
}

impl Walk {
    fn new(context: &Context) -> Self {
        let every_one =
            || (0..c_int::MAX).take_while(|database| context.select_database(*database)).collect();
        let mut databases = context.databases_with_keys().unwrap_or_else(every_one);
        databases.reverse();
        Self { databases, keys: ScanCursor::new(context), indexes: Vec::new(), index: None }
    }

    /// Processes some keys or entries. False once everything has been processed.
    fn advance(&mut self, context: &Context, slots: &Slots<'_>, dead: &mut DeadEntries) -> bool {
        let Some(database) = self.databases.last() else { return false };
        if !context.select_database(*database) {
            return false;
        }
        let next = || Some((self.indexes.pop()?, ScanCursor::new(context)));
        if let Some((index, mut members)) = self.index.take().or_else(next) {
            if look_at_entries(context, slots, dead, &index, &mut members) {
                self.index = Some((index, members));
            }
            return true;
        }
        let indexes = &mut self.indexes;
        let has_more = self.keys.scan(context, |name, key| {
            let name = name.bytes();
            if key.kind() == Kind::SortedSet
                && IndexKey::parse(name).is_ok_and(|key| is_in_use(context, key.prefix))
            {
                indexes.push(name.to_vec());
            }
        });
        if !has_more && self.indexes.is_empty() {
            self.databases.pop();
            self.keys = ScanCursor::new(context);
        }
        true
    }
}

/// Checks some entries of an index. False once all have been checked.
fn look_at_entries(
    context: &Context,
    slots: &Slots<'_>,
    dead: &mut DeadEntries,
    name: &[u8],
    members: &mut ScanCursor,
) -> bool {
    let Ok(key) = IndexKey::parse(name) else { return false };
    let database = context.selected_database();
    // Collected before any task's key is opened, because opening can delete an expired key.
    let mut found: Vec<Vec<u8>> = Vec::new();
    let has_more = {
        let index = Key::open_unnoticed(context, context.create_string(name).as_ref());
        index.kind() == Kind::SortedSet
            && members.scan_members(context, &index, |member| found.push(member.to_vec()))
    };
    let mut keys = key.task_keys();
    let now_ms = context.now_ms();
    for member in found {
        let task_name = keys.of_member(&member);
        let task = context.create_string(task_name);
        match presence(context, task.as_ref(), now_ms) {
            Presence::Live => {}
            Presence::Lapsed => ended::note(context, task.as_ref()),
            // While a slot migrates, a task that is missing here may be at another node.
            Presence::Gone
                if dead.had_no_task(database, name, &member)
                    && slots.state_of(name) == SlotState::Settled
                    && slots.state_of(task_name) == SlotState::Settled =>
            {
                report(context, reclaim_entry(context, &key, &member), "an index entry was removed");
            }
            Presence::Gone => dead.note(database, name, &member),
        }
    }
    has_more
}
