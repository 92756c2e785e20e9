//! A slow walk over all keys, in steps of about a millisecond, ten times a second.

use std::time::{Duration, Instant};

use pmcptask_schema::{Envelope, IndexKey, TaskKey, parse_version};

use super::deadlines::Deadlines;
use super::slots::Slots;
use super::{holds_hash, may_write, reclaim, serve, serves};
use crate::effects::{DATA, EXPIRES_AT, VERSION};
use crate::index::{self, Entry, Position};
use crate::record;
use crate::server::{
    Context, Key, Kind, ScanCursor, ServerEvent, ServerThread, StringRef, subscribe_to_server_event,
};
use crate::{settings, statistics};

/// How long one step may take: a hundredth of the server's time.
const STEP: Duration = Duration::from_millis(1);
/// The same while indexes are verified, or tasks are past their expiry.
const URGENT_STEP: Duration = Duration::from_millis(4);
/// A walk starts so long after the one before has started, in ms.
const WALK_EVERY_MS: i64 = 20_000;
/// A task that expires within this time is noted as a deadline, in ms: three walks, or more where a walk
/// takes longer.
const SHORTEST_HORIZON_MS: i64 = 3 * WALK_EVERY_MS;
/// Index entries that are looked at before the clock is.
const ENTRIES_AT_ONCE: usize = 64;

struct Patrol {
    deadlines: Deadlines,
    horizon_ms: i64,
    walk: Option<Walk>,
    next_walk_ms: i64,
    /// Whether the next walk looks for entries without a task, and starts at once.
    verify_now: bool,
    /// Whether it does so in its turn.
    verify_later: bool,
}

/// One walk over all keys of all databases.
struct Walk {
    started_ms: i64,
    database: i32,
    cursor: ScanCursor,
    verifies: bool,
    /// Indexes that are still to be verified.
    indexes: Vec<Index>,
    /// An entry without a task could not be judged because a slot was moving.
    found_moving: bool,
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
        horizon_ms: SHORTEST_HORIZON_MS,
        walk: None,
        next_walk_ms: 0,
        verify_now: true,
        verify_later: false,
    };
}

pub(super) fn start(context: &Context) -> bool {
    subscribe_to_server_event(context, ServerEvent::Cron, step)
        && subscribe_to_server_event(context, ServerEvent::DataLoaded, verify_indexes)
        && subscribe_to_server_event(context, ServerEvent::RoleChanged, verify_indexes)
        && subscribe_to_server_event(context, ServerEvent::DatabasesSwapped, verify_indexes)
}

pub(super) fn forget(context: &Context) {
    if let Some(mut patrol) = PATROL.borrow_mut(context) {
        *patrol = Patrol::NEW;
    }
}

/// Has all indexes looked through as soon as possible: entries may have lost their task unnoticed.
pub(super) fn verify_indexes(context: &Context) {
    let Some(mut patrol) = PATROL.borrow_mut(context) else { return };
    patrol.verify_now = true;
}

/// Takes note of a task's expiry, ms since the epoch, in the selected database.
pub(crate) fn expects_expiry(context: &Context, expires_at_ms: i64, key: StringRef<'_>, now_ms: i64) {
    let Some(mut patrol) = PATROL.borrow_mut(context) else { return };
    // Later expiries cost no memory: the patrol comes by in time.
    if expires_at_ms.saturating_sub(now_ms) <= patrol.horizon_ms {
        patrol.deadlines.note(expires_at_ms, context.selected_database(), key.bytes());
    }
}

/// Called by the server ten times a second.
fn step(context: &Context) {
    settings::panic_if_asked();
    if !may_write(context) {
        return;
    }
    let started = Instant::now();
    reclaim_expired(context, started);
    // Taken out while it works: looking at keys leads back into this module.
    let Some(mut walk) = take_walk(context) else { return };
    let limit = if walk.verifies { URGENT_STEP } else { STEP };
    let mut is_done = false;
    while !is_done && started.elapsed() < limit {
        is_done = walk.scan(context) && walk.verify(context);
    }
    let Some(mut patrol) = PATROL.borrow_mut(context) else { return };
    if is_done {
        patrol.verify_later |= walk.found_moving;
        let took_ms = context.now_ms().saturating_sub(walk.started_ms);
        patrol.horizon_ms = took_ms.saturating_mul(3).max(SHORTEST_HORIZON_MS);
    } else {
        patrol.walk = Some(walk);
    }
}

fn reclaim_expired(context: &Context, started: Instant) {
    let now_ms = context.now_ms();
    while started.elapsed() < URGENT_STEP {
        let due = PATROL.borrow_mut(context).and_then(|mut patrol| patrol.deadlines.take_due(now_ms));
        let Some((database, key)) = due else { return };
        if context.select_database(database) {
            holds_hash(context, &key);
        }
    }
}

fn take_walk(context: &Context) -> Option<Walk> {
    let now_ms = context.now_ms();
    let mut patrol = PATROL.borrow_mut(context)?;
    // A walk that does not verify makes room for one that has to.
    if let Some(walk) = patrol.walk.take()
        && (walk.verifies || !patrol.verify_now)
    {
        return Some(walk);
    }
    if now_ms < patrol.next_walk_ms && !patrol.verify_now {
        return None;
    }
    patrol.next_walk_ms = now_ms.saturating_add(WALK_EVERY_MS);
    let verifies = patrol.verify_now || patrol.verify_later;
    patrol.verify_now = false;
    patrol.verify_later = false;
    Some(Walk {
        started_ms: now_ms,
        database: 0,
        cursor: ScanCursor::new(context),
        verifies,
        indexes: Vec::new(),
        found_moving: false,
    })
}

impl Walk {
    /// Looks at some keys; true once all have been seen.
    fn scan(&mut self, context: &Context) -> bool {
        if !context.select_database(self.database) {
            return true;
        }
        let Self { database, cursor, verifies, indexes, .. } = self;
        let mut tasks = Vec::new();
        let has_more = cursor.scan(context, |name, key| match key.kind() {
            Kind::Hash if look_at_task(context, name, key) && *verifies => tasks.push(name.bytes().to_vec()),
            Kind::SortedSet if *verifies && is_served_index(context, name) => {
                indexes.push(Index { database: *database, name: name.bytes().to_vec(), reached: None });
            }
            _ => {}
        });
        for task in tasks {
            self.verify_task(context, &task);
        }
        if !has_more {
            self.database = self.database.saturating_add(1);
            self.cursor.restart(context);
        }
        false
    }

    /// Gives a task back its entry where somebody, eviction perhaps, has taken the index away.
    fn verify_task(&mut self, context: &Context, name: &[u8]) {
        let Ok(key) = TaskKey::parse(name) else { return };
        let mut index_name = Vec::new();
        IndexKey::of(&key).write(&mut index_name);
        if !lacks_entry(context, &index_name, key.task_id) {
            return;
        }
        match Slots::of(context) {
            Slots::Moving => self.found_moving = true,
            slots if slots.hold(context, name) => restore(context, name, &index_name, key.task_id),
            _ => {}
        }
    }

    /// Looks at some entries of the indexes that the scan has found; true once all have been seen.
    fn verify(&mut self, context: &Context) -> bool {
        let Some(Index { database, name, reached }) = self.indexes.pop() else { return true };
        let Ok(key) = IndexKey::parse(&name) else { return false };
        if !context.select_database(database) {
            return false;
        }
        let entries = {
            let index_name = context.create_string(&name);
            let Some(index) = Key::open_for_reading(context, index_name.as_ref()) else { return false };
            index::entries_after(&index, reached.as_ref(), false, ENTRIES_AT_ONCE)
        };
        let mut task_name = Vec::new();
        for entry in &entries {
            key.write_key_of_member(entry.task_id.bytes(), &mut task_name);
            if !holds_hash(context, &task_name) {
                match Slots::of(context) {
                    // Once the slot has arrived, its role here is settled: then is the time to look.
                    Slots::Moving => self.found_moving = true,
                    slots if slots.hold(context, &task_name) => reclaim(context, &task_name),
                    _ => {}
                }
            }
        }
        if entries.len() == ENTRIES_AT_ONCE {
            let reached = entries.last().map(Entry::position);
            self.indexes.push(Index { database, name, reached });
        }
        false
    }
}

/// Looks at a hash; true if it is a task.
fn look_at_task(context: &Context, name: StringRef<'_>, hash: &Key<'_>) -> bool {
    let Ok(key) = TaskKey::parse(name.bytes()) else { return false };
    if !serves(context, key.prefix) {
        if !is_task(hash) {
            return false;
        }
        serve(context, key.prefix);
    }
    if let Some(expires_at_ms) = hash.expiry() {
        expects_expiry(context, expires_at_ms, name, context.now_ms());
    }
    true
}

fn lacks_entry(context: &Context, index_name: &[u8], task_id: &[u8]) -> bool {
    match Key::open_for_reading(context, context.create_string(index_name).as_ref()) {
        None => true,
        Some(index) => {
            index.kind() == Kind::SortedSet && index.score(context.create_string(task_id).as_ref()).is_none()
        }
    }
}

/// Puts a live task into its index, where its record or else the clock says.
fn restore(context: &Context, name: &[u8], index_name: &[u8], task_id: &[u8]) {
    let Ok(Some(task)) = record::read(context, context.create_string(name).as_ref()) else { return };
    let created_ms = Envelope::read(task.data.bytes()).created_at_ms.unwrap_or_else(|| context.now_ms());
    let index_name = context.create_string(index_name);
    let mut index = Key::open_for_writing(context, index_name.as_ref());
    index::insert_entry(
        context,
        &mut index,
        index_name.as_ref(),
        context.create_string(task_id).as_ref(),
        created_ms,
    );
    statistics::INDEX_ENTRIES_RESTORED.increment();
}

/// A hash of just this name that holds just these fields is a task, whoever wrote it.
fn is_task(hash: &Key<'_>) -> bool {
    let [version, expires_at] = hash.hash_fields([VERSION, EXPIRES_AT]);
    let fields = if expires_at.is_some() { 3 } else { 2 };
    hash.len() == fields
        && version.is_some_and(|version| parse_version(version.bytes()).is_some())
        && hash.hash_has(DATA)
}

fn is_served_index(context: &Context, name: StringRef<'_>) -> bool {
    IndexKey::parse(name.bytes()).is_ok_and(|key| serves(context, key.prefix))
}
