//! Clients that wait for a change of a task.
//!
//! While a client waits, the server tells this module of every change of every key. A change of a key that a client
//! waits for is noted, and a timer looks at the key soon after: a change may come in the middle of a transaction, when
//! nothing may be decided. The timer also looks at a key when its task expires, because the server can reclaim an
//! expired task much later.
//!
//! A client is answered if the version is not the version that it has seen, or if the task has ended since it waits: a
//! task that was deleted and made again in one transaction may have the same version.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::c_int;
use std::sync::Arc;
use std::time::Instant;

use crate::failures::report;
use crate::record::{self, Reading};
use crate::server::{
    Change, Context, Failed, Key, LONGEST_RUN, PAUSE_MS, ServerEvent, ServerThread, StringRef, Timer, Told,
    WaiterId, subscribe_to_all_keys, unsubscribe_from_all_keys, wake,
};
use crate::slots::{SlotState, Slots};
use crate::{reclaim, settings, statistics};

/// How many clients one run of the timer wakes at most. The server answers them after the run, in tens of microseconds
/// each.
const MOST_WOKEN: usize = 32;
/// Delay before a missing key is looked at again while its slot migrates, in ms.
const MIGRATION_MS: i64 = 100;
/// Maximum delay of the timer, in ms.
const LONGEST_DELAY_MS: i64 = 60_000;
/// How often a key is looked at where the server does not tell of every change, in ms.
const UNTOLD_MS: i64 = 100;

/// Database and name of a key.
type KeyName = (c_int, Arc<[u8]>);

struct Waiter {
    key: KeyName,
    is_woken: bool,
}

/// A key that clients wait for.
#[derive(Default)]
struct WaitedKey {
    /// The version that each client has seen.
    seen: BTreeMap<WaiterId, i64>,
    /// The last client that waited when a task ended under this key. To this client and those before it, a task of the
    /// version that they have seen is another task.
    ended_for: Option<WaiterId>,
    is_noted: bool,
    /// When the key is due to be looked at, in ms since the epoch.
    due_ms: Option<i64>,
}

impl WaitedKey {
    fn has_ended_for(&self, id: WaiterId) -> bool {
        self.ended_for.is_some_and(|last| id <= last)
    }

    fn end(&mut self) {
        self.ended_for = self.seen.last_key_value().map(|(id, _)| *id);
    }
}

struct Waiters {
    by_id: BTreeMap<WaiterId, Waiter>,
    keys: BTreeMap<c_int, BTreeMap<Arc<[u8]>, WaitedKey>>,
    /// Keys that may have changed.
    noted: VecDeque<KeyName>,
    to_wake: VecDeque<WaiterId>,
    /// Keys by the time when they are due to be looked at.
    due: BTreeSet<(i64, KeyName)>,
    /// The server's clock when it was last looked at.
    clock_ms: i64,
    timer: Timer,
    /// What the server tells of; None without a subscription.
    told: Option<Told>,
}

static WAITERS: ServerThread<Waiters> = ServerThread::new(Waiters::new());

impl Waiters {
    const fn new() -> Self {
        Self {
            by_id: BTreeMap::new(),
            keys: BTreeMap::new(),
            noted: VecDeque::new(),
            to_wake: VecDeque::new(),
            due: BTreeSet::new(),
            clock_ms: 0,
            timer: Timer::new(look),
            told: None,
        }
    }

    fn key(&mut self, (database, name): &KeyName) -> Option<&mut WaitedKey> {
        self.keys.get_mut(database)?.get_mut(name)
    }

    /// Notes a key to be looked at, if clients wait for the key.
    fn note(&mut self, context: &Context, database: c_int, name: &[u8], change: Change) {
        let Some(keys) = self.keys.get_mut(&database) else { return };
        let Some((name, _)) = keys.get_key_value(name) else { return };
        let name = name.clone();
        let Some(key) = keys.get_mut(&name) else { return };
        if change == Change::End {
            key.end();
        }
        // Work that waits for the end of a pause keeps the pause.
        let pause_ms = if self.noted.is_empty() && self.to_wake.is_empty() { 0 } else { PAUSE_MS };
        enqueue(&mut self.noted, key, (database, name));
        self.start_timer(context, pause_ms);
    }

    fn next_noted(&mut self) -> Option<KeyName> {
        let name = self.noted.pop_front()?;
        if let Some(key) = self.key(&name) {
            key.is_noted = false;
        }
        Some(name)
    }

    /// Notes all keys, and calls `change` with the database of each.
    fn note_all(&mut self, context: &Context, change: impl Fn(c_int, &mut WaitedKey)) {
        for (database, keys) in &mut self.keys {
            for (name, key) in keys {
                change(*database, key);
                enqueue(&mut self.noted, key, (*database, name.clone()));
            }
        }
        self.start_timer(context, 0);
    }

    /// Notes the keys that are due.
    fn note_due(&mut self, context: &Context) {
        let now_ms = context.now_ms();
        while let Some((at_ms, _)) = self.due.first()
            && *at_ms <= now_ms
            && let Some((_, name)) = self.due.pop_first()
        {
            let (database, bytes) = &name;
            if let Some(key) = self.keys.get_mut(database).and_then(|keys| keys.get_mut(bytes)) {
                key.due_ms = None;
                enqueue(&mut self.noted, key, name);
            }
        }
    }

    /// Sets when a key is due to be looked at.
    fn set_due(&mut self, name: &KeyName, due_ms: Option<i64>) {
        let Some(key) = self.key(name) else { return };
        let before = std::mem::replace(&mut key.due_ms, due_ms);
        if before == due_ms {
            return;
        }
        if let Some(before) = before {
            self.due.remove(&(before, name.clone()));
        }
        if let Some(due_ms) = due_ms {
            self.due.insert((due_ms, name.clone()));
        }
    }

    /// Queues each client to be woken that has seen another version, or another task of that version. No client has seen
    /// `None`, a missing task.
    fn wake_unless_seen(&mut self, name: &KeyName, version: Option<i64>) {
        let Some(key) = self.key(name) else { return };
        let is_changed = |id, seen| Some(seen) != version || key.has_ended_for(id);
        let changed: Vec<_> =
            key.seen.iter().filter(|(id, seen)| is_changed(**id, **seen)).map(|(id, _)| *id).collect();
        self.to_wake.extend(changed);
    }

    /// Starts the timer for what is to be done next.
    fn start_timer(&mut self, context: &Context, pause_ms: i64) {
        let now_ms = context.now_ms();
        let next_ms = if self.noted.is_empty() && self.to_wake.is_empty() {
            let Some((due_ms, _)) = self.due.first() else { return };
            *due_ms
        } else {
            now_ms.saturating_add(pause_ms)
        };
        // The server miscounts delays of weeks. The timer comes back in time.
        self.timer.run_within(context, next_ms.saturating_sub(now_ms).clamp(0, LONGEST_DELAY_MS));
    }
}

fn enqueue(noted: &mut VecDeque<KeyName>, key: &mut WaitedKey, name: KeyName) {
    if !std::mem::replace(&mut key.is_noted, true) {
        noted.push_back(name);
    }
}

/// Makes the server tell of every change of every key, until no client waits. To be called before a client is blocked.
///
/// # Errors
///
/// The server refuses.
pub(crate) fn subscribe(context: &Context) -> Result<(), Failed> {
    let Some(mut waiters) = WAITERS.borrow_mut(context) else { return Ok(()) };
    if waiters.told.is_none() {
        waiters.told = Some(subscribe_to_all_keys(context, |context, key, change| {
            if let Some(mut waiters) = WAITERS.borrow_mut(context) {
                waiters.note(context, context.selected_database(), key.bytes(), change);
            }
        })?);
    }
    Ok(())
}

/// Adds the blocked client of this call, which waits for a key of the selected database and has seen `version`.
pub(crate) fn add(context: &Context, id: WaiterId, task_name: StringRef<'_>, version: i64) {
    let Some(mut waiters) = WAITERS.borrow_mut(context) else { return };
    let database = context.selected_database();
    let keys = waiters.keys.entry(database).or_default();
    let name = match keys.get_key_value(task_name.bytes()) {
        Some((name, _)) => name.clone(),
        None => task_name.bytes().into(),
    };
    let key = keys.entry(name.clone()).or_default();
    let is_first = key.seen.is_empty();
    key.seen.insert(id, version);
    waiters.by_id.insert(id, Waiter { key: (database, name), is_woken: false });
    statistics::WAITING_CLIENTS.set(waiters.by_id.len());
    if is_first {
        // This look finds out when the task expires.
        waiters.note(context, database, task_name.bytes(), Change::Any);
    }
}

/// Removes a client that waits no more.
pub(crate) fn remove(context: &Context, id: WaiterId) {
    let Some(mut waiters) = WAITERS.borrow_mut(context) else { return };
    let Some(Waiter { key: name, .. }) = waiters.by_id.remove(&id) else { return };
    statistics::WAITING_CLIENTS.set(waiters.by_id.len());
    if let Some(key) = waiters.key(&name) {
        key.seen.remove(&id);
        if key.seen.is_empty() {
            waiters.set_due(&name, None);
            if let Some(keys) = waiters.keys.get_mut(&name.0) {
                keys.remove(&name.1);
            }
        }
    }
    if waiters.by_id.is_empty() {
        let told = waiters.told.filter(|told| !unsubscribe_from_all_keys(context, *told));
        waiters.timer.stop(context);
        // Frees the memory that many clients took.
        *waiters = Waiters { told, clock_ms: waiters.clock_ms, ..Waiters::new() };
    }
}

/// Whether the task that the client has seen has ended, even if there is such a task again.
pub(crate) fn has_ended_for(context: &Context, id: WaiterId) -> bool {
    let Some(mut waiters) = WAITERS.borrow_mut(context) else { return false };
    let Some(name) = waiters.by_id.get(&id).map(|waiter| waiter.key.clone()) else { return false };
    waiters.key(&name).is_some_and(|key| key.has_ended_for(id))
}

/// Whether the client was woken.
pub(crate) fn is_woken(context: &Context, id: WaiterId) -> bool {
    let waiters = WAITERS.borrow_mut(context);
    waiters.is_some_and(|waiters| waiters.by_id.get(&id).is_some_and(|waiter| waiter.is_woken))
}

/// Whether the server may soon redirect a client whose task is missing here. A replica is not told of migrations: its
/// primary deletes what has moved, and the answer says that the task may be elsewhere.
fn may_be_redirected(context: &Context, slots: &Slots<'_>, task_name: &[u8]) -> bool {
    context.is_settled_primary() && slots.state_of(task_name) != SlotState::Settled
}

/// Handles a server event.
pub(crate) fn on_server_event(context: &Context, event: ServerEvent) {
    let Some(mut waiters) = WAITERS.borrow_mut(context) else { return };
    match event {
        ServerEvent::AppendOnlyFileLoads => {}
        ServerEvent::Cron => {
            let now_ms = context.now_ms();
            if std::mem::replace(&mut waiters.clock_ms, now_ms) > now_ms {
                // The clock was set back. Due times by the old clock are now too far ahead.
                waiters.note_all(context, |_, _| {});
            }
            // Starts a timer that has not fired in time, or whose work panicked.
            waiters.start_timer(context, 0);
        }
        // A replica that loads the data of its primary anew gets the same tasks again.
        ServerEvent::DataLoaded => waiters.note_all(context, |_, key| key.ended_for = None),
        ServerEvent::RoleChanged => waiters.note_all(context, |_, _| {}),
        ServerEvent::Flushed { database: flushed } => waiters.note_all(context, |database, key| {
            if flushed.is_none_or(|flushed| flushed == database) {
                key.end();
            }
        }),
        ServerEvent::DatabasesSwapped { one, other } => waiters.note_all(context, |database, key| {
            if database == one || database == other {
                key.end();
            }
        }),
    }
}

/// Called by the timer: looks at the noted keys, and wakes clients.
fn look(context: &Context) {
    if let Some(mut waiters) = WAITERS.borrow_mut(context) {
        waiters.timer.has_fired();
        waiters.note_due(context);
    }
    settings::panic_if_asked();
    let (started, slots) = (Instant::now(), Slots::of(context));
    let mut woken: usize = 0;
    while started.elapsed() < LONGEST_RUN && woken < MOST_WOKEN {
        // Nothing is borrowed while the server is called: opening an expired key is an event.
        if let Some(id) = next_to_wake(context) {
            report(context, wake(context, id), "a waiting client was woken");
            woken = woken.saturating_add(1);
            continue;
        }
        let noted = WAITERS.borrow_mut(context).and_then(|mut waiters| waiters.next_noted());
        let Some(name) = noted else { break };
        look_at(context, &slots, &name);
    }
    if let Some(mut waiters) = WAITERS.borrow_mut(context) {
        waiters.start_timer(context, PAUSE_MS);
    }
}

fn next_to_wake(context: &Context) -> Option<WaiterId> {
    let mut waiters = WAITERS.borrow_mut(context)?;
    loop {
        let id = waiters.to_wake.pop_front()?;
        // A client that waits no more is not there, and one that was noted twice has been woken.
        if let Some(waiter) = waiters.by_id.get_mut(&id)
            && !std::mem::replace(&mut waiter.is_woken, true)
        {
            return Some(id);
        }
    }
}

fn look_at(context: &Context, slots: &Slots<'_>, name: &KeyName) {
    let (database, bytes) = name;
    if !context.select_database(*database) {
        return;
    }
    let task_name = context.create_string(bytes);
    let now_ms = context.now_ms();
    let hash = Key::open_unnoticed(context, task_name.as_ref());
    let reading = record::header_of(context, &hash, task_name.as_ref(), now_ms);
    let is_redirected =
        matches!(reading, Ok(Reading::Nothing | Reading::Lapsed)) && may_be_redirected(context, slots, bytes);
    let (version, due_ms) = match reading {
        // A replica of Redis 7.0 shows an expired key to a timer.
        Ok(Reading::Live(_)) if record::has_expired(&hash, now_ms) => (None, None),
        Ok(Reading::Live(header)) => {
            let expiry_ms = hash.expiry().or_else(|| header.expires_at.ms());
            // The server deletes a key only after the millisecond of its expiry.
            let due_ms = expiry_ms.map(|at_ms| at_ms.max(now_ms).saturating_add(1));
            (Some(header.version), due_ms)
        }
        Ok(Reading::Lapsed) => {
            reclaim::note_lapsed(context, task_name.as_ref());
            (None, None)
        }
        // An error is the answer of a key that holds something else.
        Ok(Reading::Nothing) | Err(_) => (None, None),
    };
    drop(hash);
    let Some(mut waiters) = WAITERS.borrow_mut(context) else { return };
    let untold_ms = (waiters.told == Some(Told::NotGeneric)).then(|| now_ms.saturating_add(UNTOLD_MS));
    if is_redirected {
        // The server redirects the client once the slot has left. If the slot stays, the task is gone.
        waiters.set_due(name, Some(now_ms.saturating_add(MIGRATION_MS)));
        return;
    }
    waiters.set_due(name, due_ms.into_iter().chain(untold_ms).min());
    waiters.wake_unless_seen(name, version);
}
