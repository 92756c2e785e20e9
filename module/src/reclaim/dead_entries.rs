//! Index entries that were found without their task, from one walk to the next.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::hash::{BuildHasher, RandomState};

/// Entries that are kept of a walk; those of two walks take 40 MB at most. The rest waits for a later walk.
const MOST: usize = 1_000_000;

/// Entries as fingerprints of 64 bits with a secret key. An entry is mistaken for another one in about 1 of 10^13 cases, and
/// then goes one walk too early. A tree grows in small steps, where a table would move a million entries at once.
#[derive(Default)]
pub(super) struct DeadEntries {
    hasher: RandomState,
    /// Found by the walk before.
    before: BTreeSet<u64>,
    /// Found by this walk.
    now: BTreeSet<u64>,
}

impl DeadEntries {
    /// Whether an entry that has no task had none in the walk before.
    pub(super) fn had_no_task(&self, database: c_int, index: &[u8], member: &[u8]) -> bool {
        self.before.contains(&self.fingerprint(database, index, member))
    }

    /// Takes note of an entry that has no task, for the next walk.
    pub(super) fn note(&mut self, database: c_int, index: &[u8], member: &[u8]) {
        if self.now.len() < MOST {
            self.now.insert(self.fingerprint(database, index, member));
        }
    }

    /// The walk has come to its end.
    pub(super) fn end_walk(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    fn fingerprint(&self, database: c_int, index: &[u8], member: &[u8]) -> u64 {
        self.hasher.hash_one((database, index, member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_known_in_the_walk_after_the_one_that_found_it_and_no_longer() {
        let mut dead = DeadEntries::default();
        dead.note(0, b"p:idx:o", b"t");
        assert!(!dead.had_no_task(0, b"p:idx:o", b"t"));
        dead.end_walk();
        assert!(dead.had_no_task(0, b"p:idx:o", b"t"));
        for (database, index, member) in [(1, "p:idx:o", "t"), (0, "p:idx:", "ot"), (0, "p:idx:o", "u")] {
            assert!(!dead.had_no_task(database, index.as_bytes(), member.as_bytes()), "{database} {index}");
        }
        dead.end_walk();
        assert!(!dead.had_no_task(0, b"p:idx:o", b"t"));
    }

    #[test]
    fn memory_is_bounded() {
        let mut dead = DeadEntries::default();
        for n in 0..=MOST {
            dead.note(0, b"p:idx:o", &n.to_ne_bytes());
        }
        assert_eq!(dead.now.len(), MOST);
    }
}
