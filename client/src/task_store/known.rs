//! The last known record of each task that this store wrote. A change writes over it without reading first. With the near
//! cache, also the records that this store read, and what makes them current.

use std::cell::OnceCell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use lru::LruCache;
use pmcp_tasks::store::backend::VersionedRecord;

use super::tracking::Tracking;
use crate::commands::RecordTimes;

/// What an entry takes besides its key and record, roughly.
const OVERHEAD: usize = 180;
/// What it takes to count the changes of a tracked task, besides the name of its key, roughly.
const TRACKING: usize = 300;

pub(super) struct Known {
    /// At most so many bytes.
    limit: usize,
    entries: Mutex<Entries>,
}

struct Entries {
    by_key: LruCache<String, Entry>,
    bytes: usize,
}

struct Entry {
    record: VersionedRecord,
    /// The epoch in which the record was written or read.
    epoch: u64,
    state: State,
    /// When the record says that the task expires, by another clock than the server's. Read only when it is asked for, because
    /// most records are replaced before, or when the data are not kept.
    expires_at_ms: OnceCell<Option<i64>>,
}

/// Where a record comes from.
pub(super) enum State {
    /// Somebody asked for the task. Its data are not kept.
    Seen,
    /// This store wrote it.
    Written,
    /// The server tells of the next change.
    Tracked(Box<Tracking>),
}

/// What is known for somebody who reads a task.
pub(super) enum Look {
    /// The server would reply this.
    Current(VersionedRecord),
    /// The task was there.
    Known,
    /// The task expires about now.
    Ends,
    Unknown,
}

impl Entry {
    /// Of two records of a task in one epoch, the greater is worth more.
    fn worth(&self) -> (u64, u8) {
        let of_state = match &self.state {
            State::Tracked(tracking) if tracking.is_current() => 2,
            State::Written => 1,
            State::Seen | State::Tracked(_) => 0,
        };
        (self.record.version, of_state)
    }

    fn expires_at_ms(&self) -> Option<i64> {
        *self.expires_at_ms.get_or_init(|| expires_at_ms(&self.record.data))
    }

    fn size(&self, key: &str) -> usize {
        let of_tracking = match &self.state {
            State::Tracked(_) => TRACKING.saturating_add(key.len()),
            State::Seen | State::Written => 0,
        };
        let of_record = key.len().saturating_add(self.record.data.len());
        of_record.saturating_add(OVERHEAD).saturating_add(of_tracking)
    }
}

impl Entries {
    fn pop(&mut self, key: &str) -> Option<Entry> {
        let known = self.by_key.pop(key)?;
        self.bytes = self.bytes.saturating_sub(known.size(key));
        Some(known)
    }
}

impl Known {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, entries: Mutex::new(Entries { by_key: LruCache::unbounded(), bytes: 0 }) }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the record of a task out, if it was written in this epoch or is current. Whoever writes over it puts the next one
    /// in, and whoever fails leaves none.
    pub(super) fn take(&self, key: &str, epoch: u64) -> Option<(VersionedRecord, Option<Tracking>)> {
        let known = self.entries().pop(key)?;
        match known.state {
            State::Written if known.epoch == epoch => Some((known.record, None)),
            State::Tracked(tracking) if known.epoch == epoch && tracking.is_current() => {
                Some((known.record, Some(*tracking)))
            }
            _ => None,
        }
    }

    /// What is known of a task that somebody reads.
    pub(super) fn look(&self, key: &str) -> Look {
        let mut entries = self.entries();
        let Some(known) = entries.by_key.get_mut(key) else { return Look::Unknown };
        if let State::Tracked(tracking) = &mut known.state {
            if tracking.is_current() {
                tracking.unseen_writes = 0;
                return Look::Current(known.record.clone());
            }
            if tracking.has_expired() {
                // What was told may be a later expiry.
                return if tracking.was_told() { Look::Unknown } else { Look::Ends };
            }
        }
        if known.expires_at_ms().is_some_and(|at| at <= now_ms()) { Look::Ends } else { Look::Known }
    }

    pub(super) fn forget(&self, key: &str) {
        drop(self.entries().pop(key));
    }

    /// Remembers the record of a task, unless a better one is known, and forgets those that were not used for longest.
    pub(super) fn put(&self, key: &str, data: &[u8], version: u64, state: State, epoch: u64) {
        let (data, expires_at_ms) = if matches!(state, State::Seen) {
            (&[][..], OnceCell::from(expires_at_ms(data)))
        } else {
            (data, OnceCell::new())
        };
        let record = VersionedRecord { data: Vec::new(), version };
        let mut new = Entry { record, epoch, state, expires_at_ms };
        let more = new.size(key).saturating_add(data.len());
        if more > self.limit {
            return;
        }
        new.record.data = data.to_vec();
        let mut entries = self.entries();
        let worth = new.worth();
        let is_current = worth.1 == 2;
        if !is_current
            && entries.by_key.peek(key).is_some_and(|old| old.epoch == epoch && old.worth() > worth)
        {
            return;
        }
        entries.pop(key);
        entries.by_key.put(key.to_owned(), new);
        entries.bytes = entries.bytes.saturating_add(more);
        while entries.bytes > self.limit
            && let Some((key, oldest)) = entries.by_key.pop_lru()
        {
            entries.bytes = entries.bytes.saturating_sub(oldest.size(&key));
        }
    }
}

fn expires_at_ms(data: &[u8]) -> Option<i64> {
    RecordTimes::of(data).ok()?.expires_at_ms
}

fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn records_take_no_more_than_the_limit_and_those_not_used_for_longest_go_first() {
        let known = Known::new(10 * (OVERHEAD + 1_001));
        for round in 0..3 {
            for task in 0..20_u8 {
                known.put(&char::from(b'a' + task).to_string(), &[0; 1_000], round, State::Written, 0);
                let bytes = known.entries.lock().unwrap().bytes;
                assert!(bytes <= known.limit, "{bytes}");
            }
        }
        assert!(known.take("j", 0).is_none());
        assert_eq!(known.take("k", 0).unwrap().0.version, 2);
        assert!(known.take("k", 0).is_none(), "taken");
        known.put("k", &vec![0; 20_000], 3, State::Written, 0);
        assert!(known.take("k", 0).is_none(), "larger than the limit");
        assert_eq!(known.entries.lock().unwrap().by_key.len(), 9);
        for task in 0..20_u8 {
            known.take(&char::from(b'a' + task).to_string(), 0);
        }
        assert_eq!(known.entries.lock().unwrap().bytes, 0);
    }

    #[test]
    fn records_that_many_put_at_once_are_counted_once() {
        let known = Known::new(10_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..20_000).for_each(|version| known.put("a", b"one", version, State::Written, 0));
                });
            }
        });
        known.take("a", 0);
        assert_eq!(known.entries.lock().unwrap().bytes, 0);
    }

    #[test]
    fn record_of_another_epoch_is_not_known() {
        let known = Known::new(10_000);
        known.put("a", b"one", 1, State::Written, 7);
        assert!(known.take("a", 8).is_none());
        known.put("a", b"two", 2, State::Written, 8);
        assert_eq!(known.take("a", 8).unwrap().0.version, 2);
    }
}
