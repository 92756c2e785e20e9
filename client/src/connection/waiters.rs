//! Who waits for a change of which task, or must know of each, on all connections of a backend.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::Value;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// How many waiters read at once. A loss of the connection wakes all waiters: if all read at once, the last replies
/// could come after the response timeout.
const READS_AT_ONCE: usize = 1_000;

/// The tasks with waiters, by their full key names.
pub(crate) struct Waiters {
    tasks: Mutex<HashMap<Arc<str>, Awaited>>,
    reads: Semaphore,
    epoch: Arc<AtomicU64>,
    started: Instant,
    /// Until then, in ms since `started`, what was not told has not happened. See [`Waiters::connection_was_checked`].
    checked_until: AtomicU64,
}

impl Default for Waiters {
    fn default() -> Self {
        Self {
            tasks: Mutex::default(),
            reads: Semaphore::new(READS_AT_ONCE),
            epoch: Arc::default(),
            started: Instant::now(),
            checked_until: AtomicU64::new(0),
        }
    }
}

/// A task that somebody waits for.
struct Awaited {
    wake_up: Arc<Notify>,
    changes: Arc<AtomicU64>,
    waiters: usize,
}

/// What a client has been told of a task's changes until now. As long as this stays the same, nothing was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// See [`Waiters::epoch`].
    pub(crate) epoch: u64,
    /// How many changes the server told, and how many [`Waiter::note_own_change`] noted.
    changes: u64,
}

impl Waiters {
    fn tasks(&self) -> MutexGuard<'_, HashMap<Arc<str>, Awaited>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For connections whose loss wakes nobody. A new one begins an epoch all the same.
    pub(super) fn nobody(&self) -> Arc<Self> {
        Arc::new(Self { epoch: self.epoch.clone(), ..Self::default() })
    }

    /// The number of the current epoch. In one epoch, a task's version stands for one record, for all that the client can
    /// know. An epoch ends when a connection is lost or made, when the primary of a slot changes, when a server says that it
    /// is a replica, and when all tasks are removed. After a failover, a version may be that of another record.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    pub(super) fn begin_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Whoever keeps a connection says so before each pause and check, which take `limit` together at most. If the runtime
    /// stands still, because its process does or because nothing runs on it, nothing is told, and nobody says so either.
    pub(crate) fn connection_was_checked(&self, limit: Duration) {
        let until = self.started.elapsed().saturating_add(limit).as_millis();
        self.checked_until.fetch_max(u64::try_from(until).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Adds a waiter, until the returned value is dropped.
    pub(crate) fn add(self: &Arc<Self>, task_key: String) -> Waiter {
        let task_key = Arc::<str>::from(task_key);
        let mut tasks = self.tasks();
        let awaited = tasks.entry(task_key.clone()).or_insert_with(|| Awaited {
            wake_up: Arc::new(Notify::new()),
            changes: Arc::default(),
            waiters: 0,
        });
        awaited.waiters = awaited.waiters.saturating_add(1);
        let (wake_up, changes) = (awaited.wake_up.clone(), awaited.changes.clone());
        Waiter { all: self.clone(), task_key, wake_up, changes }
    }

    #[cfg(test)]
    pub(crate) fn tasks_with_waiters(&self) -> usize {
        self.tasks().len()
    }

    /// Wakes whom an `invalidate` of the server concerns: the waiters of the keys that it names, or everybody
    /// if it names none, as after a `FLUSHALL`.
    pub(super) fn invalidated(&self, what: &[Value]) {
        let Some(Value::Array(keys)) = what.first() else { return self.wake_all() };
        for key in keys {
            let Value::BulkString(key) = key else { continue };
            let Ok(key) = std::str::from_utf8(key) else { continue };
            let wake_up = self.tasks().get(key).map(|awaited| {
                awaited.changes.fetch_add(1, Ordering::SeqCst);
                awaited.wake_up.clone()
            });
            if let Some(wake_up) = wake_up {
                wake_up.notify_waiters();
            }
        }
    }

    /// Begins an epoch, and wakes everybody: an invalidation may have been lost.
    pub(super) fn wake_all(&self) {
        self.begin_epoch();
        // Not notified under the lock, because a waiter that is woken may drop itself.
        let all: Vec<_> = self.tasks().values().map(|awaited| awaited.wake_up.clone()).collect();
        for wake_up in all {
            wake_up.notify_waiters();
        }
    }
}

impl Moment {
    pub(crate) fn after_one_change(self) -> Self {
        Self { changes: self.changes.wrapping_add(1), ..self }
    }
}

/// One waiter for a change of a task.
pub(crate) struct Waiter {
    all: Arc<Waiters>,
    task_key: Arc<str>,
    wake_up: Arc<Notify>,
    changes: Arc<AtomicU64>,
}

impl Waiter {
    /// The full name of the key.
    pub(crate) fn key(&self) -> &str {
        &self.task_key
    }

    /// Waits until few enough others read. The turn is over when the returned value is dropped.
    pub(crate) async fn turn_to_read(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes the semaphore.
        self.all.reads.acquire().await.ok()
    }

    /// The next wake-up. None is missed once the future is enabled.
    pub(crate) fn wake_up(&self) -> Notified<'_> {
        self.wake_up.notified()
    }

    /// Whether connections have been checked for so long that a change would have been told.
    pub(crate) fn hears(&self) -> bool {
        let now = u64::try_from(self.all.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        now < self.all.checked_until.load(Ordering::SeqCst)
    }

    /// What was told until now.
    pub(crate) fn moment(&self) -> Moment {
        Moment { epoch: self.all.epoch(), changes: self.changes.load(Ordering::SeqCst) }
    }

    /// Notes a change that this client made, before the server tells of it. Returns the moment before and the moment after.
    pub(crate) fn note_own_change(&self) -> (Moment, Moment) {
        let epoch = self.all.epoch();
        let before = Moment { epoch, changes: self.changes.fetch_add(1, Ordering::SeqCst) };
        (before, before.after_one_change())
    }

    /// What wakes this waiter, and the others of the same key.
    pub(crate) fn alarm(&self) -> Arc<Notify> {
        self.wake_up.clone()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Entry::Occupied(mut task) = self.all.tasks().entry(self.task_key.clone()) {
            let awaited = task.get_mut();
            awaited.waiters = awaited.waiters.saturating_sub(1);
            if awaited.waiters == 0 {
                task.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    fn names(keys: &[&str]) -> [Value; 1] {
        [Value::Array(keys.iter().map(|key| Value::BulkString(key.as_bytes().to_vec())).collect())]
    }

    #[test]
    fn waiters_of_the_named_tasks_are_woken_and_no_others_and_all_where_none_is_named() {
        let all = Arc::new(Waiters::default());
        let (one, same, other) = (all.add("a".into()), all.add("a".into()), all.add("b".into()));
        for (invalidated, woken) in [
            (&names(&["a", "c"]), [true, true, false]),
            (&names(&["b"]), [false, false, true]),
            (&names(&["c"]), [false; 3]),
            (&[Value::Nil], [true; 3]),
        ] {
            let mut wake_ups = [&one, &same, &other].map(|waiter| Box::pin(waiter.wake_up()));
            for wake_up in &mut wake_ups {
                wake_up.as_mut().enable();
            }
            all.invalidated(invalidated);
            assert_eq!(wake_ups.map(|wake_up| wake_up.now_or_never().is_some()), woken);
        }
    }

    #[test]
    fn changes_that_are_told_or_noted_count_for_their_task_and_a_loss_for_all() {
        let all = Arc::new(Waiters::default());
        let (one, same, other) = (all.add("a".into()), all.add("a".into()), all.add("b".into()));
        let (of_one, of_other) = (one.moment(), other.moment());
        all.invalidated(&names(&["a", "c"]));
        assert_eq!(one.moment(), same.moment());
        assert_eq!(one.moment(), Moment { changes: of_one.changes + 1, ..of_one });
        let (before, after) = same.note_own_change();
        assert_eq!((before.changes, after), (of_one.changes + 1, one.moment()));
        assert_eq!(other.moment(), of_other);
        all.invalidated(&[Value::Nil]);
        assert!(one.moment().epoch != of_one.epoch && other.moment().epoch != of_other.epoch);
    }

    #[test]
    fn so_many_read_at_once_and_the_next_takes_the_turn_of_one_that_has_read() {
        let all = Arc::new(Waiters::default());
        let waiter = all.add("a".into());
        let mut turns: Vec<_> =
            (0..READS_AT_ONCE).map(|_| waiter.turn_to_read().now_or_never().flatten()).collect();
        assert!(turns.iter().all(Option::is_some));
        assert!(waiter.turn_to_read().now_or_never().is_none());
        turns.pop();
        assert!(waiter.turn_to_read().now_or_never().flatten().is_some());
    }

    #[test]
    fn the_last_waiter_of_a_task_takes_the_task_along() {
        let all = Arc::new(Waiters::default());
        let (one, same) = (all.add("a".into()), all.add("a".into()));
        drop(one);
        {
            let mut wake_up = pin!(same.wake_up());
            wake_up.as_mut().enable();
            all.invalidated(&names(&["a"]));
            assert!(wake_up.now_or_never().is_some());
        }
        drop(same);
        assert!(all.tasks().is_empty());
    }
}
