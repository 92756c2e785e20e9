//! A slow walk over all keys, in steps of a few milliseconds at most, ten to twenty times a second.
//!
//! When the next step, walk or look is due, the monotonic clock says: that of the wall, which can jump, only says what
//! has expired.

use std::time::{Duration, Instant};

use pmcptask_schema::{IndexKey, TaskKey, parse_version};

use super::deadlines::Deadlines;
use super::served::{serve, serves, walk_ends, walk_starts};
use super::slots::Slots;
use super::{holds_hash, lacks_entry, put_right, suspects};
use crate::effects::{DATA, EXPIRES_AT, VERSION};
use crate::index::{self, Entry, Position};
use crate::server::{
    Context, Key, Kind, ScanCursor, ServerEvent, ServerThread, StringRef, subscribe_to_server_event,
};
use crate::{settings, statistics};

/// What a walk is for; each purpose includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// To note the tasks that will expire soon.
    Deadlines,
    /// To find entries without a task and tasks without an entry.
    Verify,
    /// The same, when there may be many of them.
    VerifyUrgently,
}

impl Purpose {
    /// The walk's part of the server's time.
    const fn share(self) -> f64 {
        match self {
            Self::Deadlines => 0.01,
            Self::Verify => 0.02,
            Self::VerifyUrgently => 0.04,
        }
    }
}

/// The part of the server's time in which tasks may be reclaimed that are past their expiry.
const RECLAIM_SHARE: f64 = 0.04;
/// Steps follow each other no sooner, however often the server calls: the least work takes longer than a share of less.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// A step has its share of no longer time, so that nobody waits long for it.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// A walk starts so long after the one before has started.
const WALK_EVERY: Duration = Duration::from_secs(20);
/// A walk verifies so long after the one before that did, whether or not anything has happened.
const VERIFY_EVERY: Duration = Duration::from_mins(15);
/// A task that expires within this time is noted as a deadline: three walks, or more where a walk takes longer.
const SHORTEST_HORIZON: Duration = WALK_EVERY.saturating_mul(WALKS_AHEAD);
const WALKS_AHEAD: u32 = 3;
/// How often a node of a cluster looks whether it has got slots.
const LOOK_AT_SLOTS_EVERY: Duration = Duration::from_secs(1);
/// Index entries that are looked at before the clock is.
const ENTRIES_AT_ONCE: usize = 64;

struct Patrol {
    deadlines: Deadlines,
    horizon: Duration,
    walk: Option<Walk>,
    /// A walk that starts as soon as possible.
    requested: Option<Purpose>,
    last_step: Option<Instant>,
    last_walk: Option<Instant>,
    last_verification: Option<Instant>,
    /// In a cluster: this node's ranges of slots, when they were looked at last.
    slots: Vec<(i64, i64)>,
    last_look_at_slots: Option<Instant>,
}

/// One walk over all keys of all databases.
struct Walk {
    purpose: Purpose,
    started: Instant,
    database: i32,
    cursor: ScanCursor,
    /// Indexes that the scan has met and that are still to be verified.
    indexes: Vec<Index>,
}

struct Index {
    database: i32,
    name: Vec<u8>,
    reached: Option<Position>,
}

static PATROL: ServerThread<Patrol> = ServerThread::new(Patrol::NEW);

impl Patrol {
    const NEW: Self = Self {
        deadlines: Deadlines::new(),
        horizon: SHORTEST_HORIZON,
        walk: None,
        requested: None,
        last_step: None,
        last_walk: None,
        last_verification: None,
        slots: Vec::new(),
        last_look_at_slots: None,
    };

    /// The time of which a step may take a share; None where it is too early for one.
    fn take_pause(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if !is_due(self.last_step, SHORTEST_PAUSE, now) {
            return None;
        }
        let pause = self.last_step.map_or(LONGEST_PAUSE, |last| now.saturating_duration_since(last));
        self.last_step = Some(now);
        Some(pause.min(LONGEST_PAUSE))
    }

    /// The walk to go on with, if there is one.
    fn take_walk(&mut self, context: &Context) -> Option<Walk> {
        // A walk makes room for a more urgent one. What is requested otherwise has its turn afterwards.
        match self.walk.take() {
            Some(walk) if self.requested.is_none_or(|requested| requested <= walk.purpose) => Some(walk),
            _ => self.start_walk(context),
        }
    }

    fn tell_whether_pending(&self) {
        let purpose = self.walk.as_ref().map(|walk| walk.purpose).max(self.requested);
        statistics::VERIFICATION_PENDING.set(purpose >= Some(Purpose::Verify));
    }

    fn start_walk(&mut self, context: &Context) -> Option<Walk> {
        let now = Instant::now();
        let verification_is_due = is_due(self.last_verification, VERIFY_EVERY, now);
        let in_its_turn = if verification_is_due { Purpose::Verify } else { Purpose::Deadlines };
        let purpose = match self.requested.take() {
            None if !is_due(self.last_walk, WALK_EVERY, now) => return None,
            None => in_its_turn,
            Some(requested) => requested.max(in_its_turn),
        };
        self.last_walk = Some(now);
        if purpose >= Purpose::Verify {
            self.last_verification = Some(now);
        }
        walk_starts(context);
        let cursor = ScanCursor::new(context);
        Some(Walk { purpose, started: now, database: 0, cursor, indexes: Vec::new() })
    }
}

/// Whether something is due that is done once in so long a time.
fn is_due(last: Option<Instant>, every: Duration, now: Instant) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= every)
}

pub(super) fn start(context: &Context) -> bool {
    verify_urgently(context);
    subscribe_to_server_event(context, ServerEvent::Cron, step)
        && subscribe_to_server_event(context, ServerEvent::DataLoaded, verify_urgently)
        && subscribe_to_server_event(context, ServerEvent::RoleChanged, verify_urgently)
        && subscribe_to_server_event(context, ServerEvent::DatabasesSwapped, verify_urgently)
}

pub(super) fn forget(context: &Context) {
    if let Some(mut patrol) = PATROL.borrow_mut(context) {
        *patrol = Patrol::NEW;
    }
}

/// Asks for a walk as soon as possible.
pub(super) fn request(context: &Context, purpose: Purpose) {
    let Some(mut patrol) = PATROL.borrow_mut(context) else { return };
    patrol.requested = patrol.requested.max(Some(purpose));
    patrol.tell_whether_pending();
}

/// Entries may have lost their tasks unnoticed.
fn verify_urgently(context: &Context) {
    request(context, Purpose::VerifyUrgently);
}

/// Takes note of a task's expiry, ms since the epoch, in the selected database.
pub(crate) fn expects_expiry(context: &Context, expires_at_ms: i64, key: StringRef<'_>, now_ms: i64) {
    let Some(mut patrol) = PATROL.borrow_mut(context) else { return };
    // Later expiries cost no memory: the patrol comes by in time.
    let expires_in = u64::try_from(expires_at_ms.saturating_sub(now_ms)).unwrap_or(0);
    if Duration::from_millis(expires_in) <= patrol.horizon {
        patrol.deadlines.note(expires_at_ms, context.selected_database(), key.bytes());
    }
}

/// Called by the server `hz` times a second.
fn step(context: &Context) {
    settings::panic_if_asked();
    if !context.is_settled_primary() {
        // Its primary puts things right, and a promotion has all indexes verified.
        suspects::forget(context);
        return;
    }
    if context.writes_are_paused() {
        return;
    }
    let pause = PATROL.borrow_mut(context).and_then(|mut patrol| patrol.take_pause());
    let Some(pause) = pause else { return };
    reclaim_expired(context, pause.mul_f64(RECLAIM_SHARE));
    let slots = Slots::of(context);
    look_at_slots(context, &slots);
    suspects::look_at_waiting(context, &slots);
    // Taken out while it works: looking at keys leads back into this module.
    let walk = PATROL.borrow_mut(context).and_then(|mut patrol| patrol.take_walk(context));
    let Some(mut walk) = walk else { return };
    // However much there was to reclaim, the walk gets on.
    let (started, share) = (Instant::now(), pause.mul_f64(walk.purpose.share()));
    let mut is_done = false;
    while !is_done && started.elapsed() < share {
        is_done = walk.advance(context, &slots);
    }
    if is_done {
        walk_ends(context);
    }
    let Some(mut patrol) = PATROL.borrow_mut(context) else { return };
    if is_done {
        patrol.horizon = walk.started.elapsed().saturating_mul(WALKS_AHEAD).max(SHORTEST_HORIZON);
    } else {
        patrol.walk = Some(walk);
    }
    patrol.tell_whether_pending();
}

/// Slots that have come are verified: what has gone on their way, both nodes have left to the other.
fn look_at_slots(context: &Context, slots: &Slots<'_>) {
    if !context.is_cluster() {
        return;
    }
    let have_come = PATROL.borrow_mut(context).is_some_and(|mut patrol| {
        let now = Instant::now();
        if !is_due(patrol.last_look_at_slots, LOOK_AT_SLOTS_EVERY, now) {
            return false;
        }
        patrol.last_look_at_slots = Some(now);
        slots.have_come(&mut patrol.slots)
    });
    if have_come {
        request(context, Purpose::Verify);
    }
}

fn reclaim_expired(context: &Context, share: Duration) {
    let started = Instant::now();
    let now_ms = context.now_ms();
    while started.elapsed() < share {
        let due = PATROL.borrow_mut(context).and_then(|mut patrol| patrol.deadlines.take_due(now_ms));
        let Some((database, key)) = due else { return };
        if context.select_database(database) {
            holds_hash(context, &key);
        }
    }
}

impl Walk {
    /// Looks at some keys or entries; true once all have been seen.
    fn advance(&mut self, context: &Context, slots: &Slots<'_>) -> bool {
        if let Some(index) = self.indexes.pop() {
            self.verify_entries(context, slots, index);
            return false;
        }
        if !context.select_database(self.database) {
            return true;
        }
        let Self { purpose, database, cursor, indexes, .. } = self;
        let verifies = *purpose >= Purpose::Verify;
        let mut tasks = Vec::new();
        let has_more = cursor.scan(context, |name, key| match key.kind() {
            Kind::Hash if look_at_task(context, name, key) && verifies => tasks.push(name.bytes().to_vec()),
            Kind::SortedSet if is_served_index(context, name) && verifies => {
                indexes.push(Index { database: *database, name: name.bytes().to_vec(), reached: None });
            }
            _ => {}
        });
        for task in tasks {
            verify_task(context, slots, &task);
        }
        if !has_more {
            self.database = self.database.saturating_add(1);
            self.cursor.restart(context);
        }
        false
    }

    /// Looks for entries without a task.
    fn verify_entries(&mut self, context: &Context, slots: &Slots<'_>, index: Index) {
        let Index { database, name, reached } = index;
        let Ok(key) = IndexKey::parse(&name) else { return };
        if !context.select_database(database) {
            return;
        }
        let entries = {
            let name = context.create_string(&name);
            let Some(index) = Key::open_for_reading(context, name.as_ref()) else { return };
            index::entries_after(&index, reached.as_ref(), false, ENTRIES_AT_ONCE)
        };
        let mut keys = key.task_keys();
        for entry in &entries {
            let task_name = keys.of_member(entry.task_id.bytes());
            if !holds_hash(context, task_name) {
                put_right(context, slots, task_name, false);
            }
        }
        if entries.len() == ENTRIES_AT_ONCE {
            let reached = entries.last().map(Entry::position);
            self.indexes.push(Index { database, name, reached });
        }
    }
}

/// Gives a task back its entry where somebody, eviction perhaps, has taken it away.
fn verify_task(context: &Context, slots: &Slots<'_>, name: &[u8]) {
    let Ok(key) = TaskKey::parse(name) else { return };
    if lacks_entry(context, &IndexKey::of(&key), key.task_id) {
        put_right(context, slots, name, false);
    }
}

/// Looks at a hash; true if it is a task.
fn look_at_task(context: &Context, name: StringRef<'_>, hash: &Key<'_>) -> bool {
    let Ok(key) = TaskKey::parse(name.bytes()) else { return false };
    if !serves(context, key.prefix) {
        if !is_task(context, hash) {
            return false;
        }
        serve(context, key.prefix);
    }
    if let Some(expires_at_ms) = hash.expiry() {
        expects_expiry(context, expires_at_ms, name, context.now_ms());
    }
    true
}

/// A hash of just this name that holds just these fields is a task, whoever wrote it.
fn is_task(context: &Context, hash: &Key<'_>) -> bool {
    let [version, expires_at] = hash.hash_fields([VERSION.get(context), EXPIRES_AT.get(context)]);
    let fields = if expires_at.is_some() { 3 } else { 2 };
    hash.len() == fields
        && version.is_some_and(|version| parse_version(version.bytes()).is_some())
        && hash.hash_has(DATA.get(context))
}

fn is_served_index(context: &Context, name: StringRef<'_>) -> bool {
    IndexKey::parse(name.bytes()).is_ok_and(|key| serves(context, key.prefix))
}
