//! In a cluster: which slots this node serves.
//!
//! While a slot migrates, a hash that is missing here may already be at the new node, or may not have arrived
//! yet. Keys in another node's slots are left to that node.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use crate::server::Context;

/// Where the slot of a key is, as seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotState {
    /// The slot is here and stays here.
    Settled,
    /// The slot is migrating from this node or to it.
    Moving,
    /// The slot belongs to another node.
    Elsewhere,
}

/// The slots of this node, read on first use. Valid for one call of the server, during which no slot
/// changes owner.
pub(crate) struct Slots<'c> {
    context: &'c Context,
    table: OnceCell<Table>,
}

impl<'c> Slots<'c> {
    pub(crate) fn of(context: &'c Context) -> Self {
        Self { context, table: OnceCell::new() }
    }

    pub(crate) fn state_of(&self, key: &[u8]) -> SlotState {
        if !self.context.is_cluster() {
            return SlotState::Settled;
        }
        let table = self.table.get_or_init(|| Table::read(&self.context.cluster_nodes()));
        self.context.cluster_slot(key).map_or(SlotState::Elsewhere, |slot| table.state_of(slot))
    }

    /// Whether two keys have the same slot. Without a cluster, all have.
    pub(crate) fn have_same(&self, one: &[u8], other: &[u8]) -> bool {
        !self.context.is_cluster() || self.context.cluster_slot(one) == self.context.cluster_slot(other)
    }

    /// Whether a task that is missing here may be at another node of the cluster: while its slot migrates or
    /// belongs to another node, and always on a replica, which is not told of migrations.
    pub(crate) fn may_be_elsewhere(&self, task_name: &[u8]) -> bool {
        self.context.is_cluster()
            && (!self.context.is_settled_primary() || self.state_of(task_name) != SlotState::Settled)
    }
}

/// What `CLUSTER NODES` says about this node.
#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    /// First and last slot of each range of this node.
    own: Vec<(i64, i64)>,
    moving: BTreeSet<i64>,
}

impl Table {
    /// Parses `CLUSTER NODES`. The line of this node ends with its slots, `0-5460 7000`; a migrating slot is
    /// in brackets, `[93-<-node]` or `[77->-node]`.
    fn read(nodes: &[u8]) -> Self {
        const FLAGS: usize = 2;
        const WORDS_BEFORE_SLOTS: usize = 8;
        let nodes = String::from_utf8_lossy(nodes);
        let mut table = Self::default();
        let is_own = |line: &&str| {
            let flags = line.split(' ').nth(FLAGS);
            flags.is_some_and(|flags| flags.split(',').any(|flag| flag == "myself"))
        };
        for line in nodes.lines().filter(is_own) {
            for slots in line.split(' ').skip(WORDS_BEFORE_SLOTS) {
                if let Some(moving) = slots.strip_prefix('[') {
                    table.moving.extend(moving.split('-').next().and_then(|slot| slot.parse::<i64>().ok()));
                    continue;
                }
                let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
                if let (Ok(first), Ok(last)) = (first.parse(), last.parse()) {
                    table.own.push((first, last));
                }
            }
        }
        table
    }

    fn state_of(&self, slot: i64) -> SlotState {
        if self.moving.contains(&slot) {
            SlotState::Moving
        } else if self.own.iter().any(|(first, last)| (*first..=*last).contains(&slot)) {
            SlotState::Settled
        } else {
            SlotState::Elsewhere
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_slots_are_those_of_the_own_line() {
        let own = "a1 127.0.0.1:1@2 myself,master - 0 0 1 connected 0-5 9 100-16383";
        let other = "b2 127.0.0.1:3@4 master - 0 0 2 connected 6-8 [77->-a1]";
        let table = Table::read(format!("{other}\n{own}\n").as_bytes());
        assert_eq!(table, Table { own: vec![(0, 5), (9, 9), (100, 16_383)], moving: BTreeSet::new() });
        for (slot, state) in [
            (0, SlotState::Settled),
            (6, SlotState::Elsewhere),
            (9, SlotState::Settled),
            (99, SlotState::Elsewhere),
        ] {
            assert_eq!(table.state_of(slot), state, "{slot}");
        }
        assert_eq!(Table::read(b""), Table::default());
    }

    #[test]
    fn slot_on_its_way_is_no_reason_to_leave_others_alone() {
        let own = "a1 127.0.0.1:1@2 myself,master - 0 0 1 connected 0-5 [93-<-b2] [5->-b2]\n";
        let table = Table::read(own.as_bytes());
        for (slot, state) in [
            (4, SlotState::Settled),
            (5, SlotState::Moving),
            (93, SlotState::Moving),
            (6, SlotState::Elsewhere),
        ] {
            assert_eq!(table.state_of(slot), state, "{slot}");
        }
    }

    #[test]
    fn node_whose_name_says_myself_is_another_all_the_same() {
        let own = "a1 127.0.0.1:1@2,myself.example myself,master - 0 0 1 connected 0-5";
        let other = "b2 127.0.0.1:3@4,myself.example master - 0 0 2 connected 6-8 [77->-a1]";
        let table = Table::read(format!("{own}\n{other}\n").as_bytes());
        assert_eq!(table, Table { own: vec![(0, 5)], moving: BTreeSet::new() });
    }
}
