//! Task keys that cannot be judged while their slot is on its way, by slot, so that none waits for another slot.

use std::collections::{BTreeMap, BTreeSet};

/// Keys that are kept, of all slots together.
const MOST: usize = 50_000;

pub(super) struct Waiting {
    slots: BTreeMap<i64, Slot>,
    count: usize,
}

/// What waits for one slot.
#[derive(Default)]
pub(super) struct Slot {
    /// Database and name. A set, because the patrol meets an entry more than once while it waits.
    pub(super) keys: BTreeSet<(i32, Box<[u8]>)>,
    /// There were more than are kept.
    pub(super) has_lost_some: bool,
}

impl Waiting {
    pub(super) const fn new() -> Self {
        Self { slots: BTreeMap::new(), count: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn note(&mut self, slot: i64, database: i32, key: &[u8]) {
        let slot = self.slots.entry(slot).or_default();
        let key = (database, key.into());
        if self.count < MOST {
            self.count = self.count.saturating_add(usize::from(slot.keys.insert(key)));
        } else if !slot.keys.contains(&key) {
            slot.has_lost_some = true;
        }
    }

    /// Takes what waits for slots that are not on their way any more.
    pub(super) fn take_settled(&mut self, is_moving: impl Fn(i64) -> bool) -> Vec<Slot> {
        let settled: Vec<_> =
            self.slots.extract_if(.., |slot, _| !is_moving(*slot)).map(|(_, slot)| slot).collect();
        let taken = settled.iter().map(|slot| slot.keys.len()).sum();
        self.count = self.count.saturating_sub(taken);
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_settled_slot_are_taken_once_and_others_stay() {
        let mut waiting = Waiting::new();
        for (slot, key) in [(7, "a"), (8, "b"), (7, "c"), (7, "a"), (9, "d")] {
            waiting.note(slot, 0, key.as_bytes());
        }
        let names = |slots: Vec<Slot>| -> Vec<Vec<u8>> {
            slots.into_iter().flat_map(|slot| slot.keys).map(|(_, name)| name.into_vec()).collect()
        };
        assert!(waiting.take_settled(|_| true).is_empty());
        assert_eq!(names(waiting.take_settled(|slot| slot == 8)), [b"a", b"c", b"d"]);
        assert!(waiting.take_settled(|slot| slot == 8).is_empty() && !waiting.is_empty());
        assert_eq!(names(waiting.take_settled(|_| false)), [b"b"]);
        assert!(waiting.is_empty());
    }

    #[test]
    fn memory_is_bounded_and_slots_of_which_keys_are_lost_are_known() {
        let mut waiting = Waiting::new();
        for _ in 0..2 {
            for n in 0..MOST {
                waiting.note(1, 0, n.to_string().as_bytes());
            }
        }
        waiting.note(2, 0, b"more");
        let mut settled = waiting.take_settled(|_| false).into_iter();
        let (first, second) = (settled.next().unwrap_or_default(), settled.next().unwrap_or_default());
        assert_eq!((first.keys.len(), first.has_lost_some), (MOST, false));
        assert_eq!((second.keys.len(), second.has_lost_some), (0, true));
        // There is room again.
        waiting.note(3, 0, b"key");
        assert!(
            waiting.take_settled(|_| false).iter().all(|slot| slot.keys.len() == 1 && !slot.has_lost_some)
        );
    }
}
