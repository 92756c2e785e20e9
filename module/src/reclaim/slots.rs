//! In a cluster: which entries this node may remove at all.
//!
//! While a slot moves, a hash that is missing here may be at its new node already, or not yet here, and its
//! entry has to follow it. Entries of slots that belong to another node are that node's.

use crate::server::Context;

/// Whether this node may remove entries by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Slots {
    /// No cluster: all keys are here.
    NoCluster,
    /// A slot moves to or from this node.
    Moving,
    /// First and last slot of each range of this node.
    Own(Vec<(u16, u16)>),
}

impl Slots {
    pub(super) fn of(context: &Context) -> Self {
        if context.is_cluster() { Self::read(&context.cluster_nodes()) } else { Self::NoCluster }
    }

    /// Reads `CLUSTER NODES`: the line of this node ends with its slots, `0-5460 7000`, and a slot on its
    /// way is in brackets: `[93-<-node]` or `[77->-node]`.
    fn read(nodes: &[u8]) -> Self {
        const WORDS_BEFORE_SLOTS: usize = 8;
        let nodes = String::from_utf8_lossy(nodes);
        let mut ranges = Vec::new();
        for line in nodes.lines().filter(|line| line.contains("myself")) {
            for slots in line.split(' ').skip(WORDS_BEFORE_SLOTS) {
                if slots.starts_with('[') {
                    return Self::Moving;
                }
                let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
                if let (Ok(first), Ok(last)) = (first.parse(), last.parse()) {
                    ranges.push((first, last));
                }
            }
        }
        Self::Own(ranges)
    }

    /// Whether a key is this node's.
    pub(super) fn hold(&self, context: &Context, key: &[u8]) -> bool {
        match self {
            Self::NoCluster => true,
            Self::Moving => false,
            Self::Own(ranges) => context.cluster_slot(key).is_some_and(|slot| {
                ranges.iter().any(|(first, last)| (i64::from(*first)..=i64::from(*last)).contains(&slot))
            }),
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
        let nodes = format!("{other}\n{own}\n");
        assert_eq!(Slots::read(nodes.as_bytes()), Slots::Own(vec![(0, 5), (9, 9), (100, 16_383)]));
        assert_eq!(Slots::read(b""), Slots::Own(Vec::new()));
    }

    #[test]
    fn slot_on_its_way_is_seen() {
        let own = "a1 127.0.0.1:1@2 myself,master - 0 0 1 connected 0-5";
        for moving in ["[93-<-b2]", "[5->-b2]"] {
            assert_eq!(Slots::read(format!("{own} {moving}\n").as_bytes()), Slots::Moving);
        }
    }
}
