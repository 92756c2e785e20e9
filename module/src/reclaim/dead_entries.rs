//! Dead entries (index entries without a task), remembered from one walk to the next.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::hash::{BuildHasher, RandomState};

/// Maximum number of entries remembered per walk; two walks take at most 40 MB. Further entries wait for
/// a later walk.
const MOST: usize = 1_000_000;

/// Entries are kept as 64-bit fingerprints with a secret key. In about 1 of 10^13 cases an entry is mistaken
/// for another one and removed one walk too early. A tree grows in small steps; a hash table would move a
/// million entries at once.
#[derive(Default)]
pub(super) struct DeadEntries {
    hasher: RandomState,
    /// Found by the previous walk.
    before: BTreeSet<u64>,
    /// Found by this walk.
    now: BTreeSet<u64>,
}

impl DeadEntries {
    /// Whether an entry without a task had none in the previous walk either.
    pub(super) fn had_no_task(&self, database: c_int, index: &[u8], member: &[u8]) -> bool {
        self.before.contains(&self.fingerprint(database, index, member))
    }

    /// Remembers an entry without a task for the next walk.
    pub(super) fn note(&mut self, database: c_int, index: &[u8], member: &[u8]) {
        if self.now.len() < MOST {
            self.now.insert(self.fingerprint(database, index, member));
        }
    }

    /// To be called at the end of a walk.
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
