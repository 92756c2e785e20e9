//! Tasks that are about to expire, soonest first.

use std::collections::BTreeSet;

/// Where there are more, the latest are left to the next walk of the patrol.
const MOST: usize = 100_000;

/// A set, because the patrol meets a task more than once before it expires.
pub(super) struct Deadlines {
    tasks: BTreeSet<(i64, i32, Box<[u8]>)>,
}

impl Deadlines {
    pub(super) const fn new() -> Self {
        Self { tasks: BTreeSet::new() }
    }

    /// Notes that a task expires at a time, ms since the epoch.
    pub(super) fn note(&mut self, expires_at_ms: i64, database: i32, key: &[u8]) {
        if self.tasks.len() >= MOST {
            if self.tasks.last().is_some_and(|(latest, ..)| *latest <= expires_at_ms) {
                return;
            }
            self.tasks.pop_last();
        }
        self.tasks.insert((expires_at_ms, database, key.into()));
    }

    /// Takes the database and key of a task that is past its expiry.
    pub(super) fn take_due(&mut self, now_ms: i64) -> Option<(i32, Box<[u8]>)> {
        // As for the server: in the very millisecond of its expiry, a key is still there.
        if self.tasks.first()?.0 >= now_ms {
            return None;
        }
        let (_, database, key) = self.tasks.pop_first()?;
        Some((database, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_come_due_in_order_and_once() {
        let mut deadlines = Deadlines::new();
        for (at, key) in [(30, "c"), (10, "a"), (20, "b"), (10, "a")] {
            deadlines.note(at, 0, key.as_bytes());
        }
        let mut take = |now| deadlines.take_due(now).map(|(_, key)| key);
        assert_eq!(take(10), None);
        assert_eq!(take(21).as_deref(), Some(&b"a"[..]));
        assert_eq!(take(21).as_deref(), Some(&b"b"[..]));
        assert_eq!(take(21), None);
        assert_eq!(take(99).as_deref(), Some(&b"c"[..]));
    }

    #[test]
    fn memory_is_bounded_and_the_soonest_are_kept() {
        let mut deadlines = Deadlines::new();
        for at in 1..=MOST {
            deadlines.note(i64::try_from(at).unwrap_or(0), 0, b"key");
        }
        deadlines.note(i64::MAX, 0, b"late");
        deadlines.note(0, 0, b"soon");
        assert_eq!(deadlines.tasks.len(), MOST);
        assert_eq!(deadlines.take_due(1).as_ref().map(|(_, key)| &key[..]), Some(&b"soon"[..]));
        assert!(deadlines.tasks.iter().all(|(_, _, key)| **key != *b"late"));
    }
}
