//! Index entries whose task has gone without a DEL of this module: expired, evicted, deleted or renamed
//! by others.
//!
//! The server tells of each key that goes. A key of a prefix that this module serves is noted, and a
//! timer removes its entry a moment later: the event comes in the middle of another command, where
//! nothing may be written.

use std::collections::{BTreeSet, VecDeque};

use pmcptask_schema::{IndexKey, TaskKey};

use crate::index;
use crate::server::{Context, Key, KeyEvent, Kind, ServerThread, start_timer, subscribe_to_key_events};
use crate::statistics;

/// Entries looked at in one go, so that commands waiting meanwhile wait well under a millisecond.
const BATCH: usize = 128;

/// How soon to try again while the server must not write, in ms.
const RETRY_MS: i64 = 100;

struct Reclaimer {
    /// Prefixes of keys that this module has been asked for; keys of other applications stay theirs.
    served: BTreeSet<Vec<u8>>,
    /// Task keys that have gone, and their database.
    gone: VecDeque<(i32, Vec<u8>)>,
    timer_runs: bool,
}

static RECLAIMER: ServerThread<Reclaimer> =
    ServerThread::new(Reclaimer { served: BTreeSet::new(), gone: VecDeque::new(), timer_runs: false });

/// Starts listening for keys that go.
pub(crate) fn start(context: &Context) -> bool {
    subscribe_to_key_events(context, note_gone)
}

/// Takes note that keys with this prefix are this module's.
pub(crate) fn serve(context: &Context, prefix: &[u8]) {
    let Some(mut reclaimer) = RECLAIMER.borrow_mut(context) else { return };
    if !reclaimer.served.contains(prefix) {
        reclaimer.served.insert(prefix.to_vec());
    }
}

fn note_gone(context: &Context, event: &KeyEvent<'_>) {
    let name = event.key.bytes();
    let Ok(key) = TaskKey::parse(name) else { return };
    let Some(mut reclaimer) = RECLAIMER.borrow_mut(context) else { return };
    // A replica, or an AOF that is being loaded, is told of the entry by whoever removes it.
    if !reclaimer.served.contains(key.prefix) || !context.is_settled_primary() {
        return;
    }
    reclaimer.gone.push_back((context.selected_database(), name.to_vec()));
    if !reclaimer.timer_runs {
        reclaimer.timer_runs = true;
        start_timer(context, 0, reclaim_batch);
    }
}

fn reclaim_batch(context: &Context) {
    let batch = if may_reclaim(context) { take_batch(context) } else { Vec::new() };
    for (database, name) in batch {
        if context.select_database(database) {
            reclaim(context, &name);
        }
    }
    let Some(mut reclaimer) = RECLAIMER.borrow_mut(context) else { return };
    reclaimer.timer_runs = !reclaimer.gone.is_empty();
    if reclaimer.timer_runs {
        start_timer(context, if may_reclaim(context) { 0 } else { RETRY_MS }, reclaim_batch);
    }
}

fn take_batch(context: &Context) -> Vec<(i32, Vec<u8>)> {
    let Some(mut reclaimer) = RECLAIMER.borrow_mut(context) else { return Vec::new() };
    let length = reclaimer.gone.len().min(BATCH);
    reclaimer.gone.drain(..length).collect()
}

/// Removes the entry of a task that has gone and not come back.
fn reclaim(context: &Context, name: &[u8]) {
    let Ok(key) = TaskKey::parse(name) else { return };
    let task_name = context.create_string(name);
    if Key::open_for_reading(context, task_name.as_ref()).is_some_and(|hash| hash.kind() == Kind::Hash) {
        return;
    }
    let mut index_name = Vec::new();
    IndexKey::of(&key).write(&mut index_name);
    let index_name = context.create_string(&index_name);
    let mut index = Key::open_for_writing(context, index_name.as_ref());
    if index.kind() == Kind::SortedSet
        && index::remove_entry(
            context,
            &mut index,
            index_name.as_ref(),
            context.create_string(key.task_id).as_ref(),
        )
    {
        statistics::INDEX_ENTRIES_RECLAIMED.increment();
    }
}

/// False while the server must not write by itself, or while a slot moves: a hash that is missing here
/// may be at its new node already, and its entry has to follow it.
fn may_reclaim(context: &Context) -> bool {
    if !context.is_settled_primary() || context.writes_are_paused() {
        return false;
    }
    !context.is_cluster() || !slots_are_moving(&context.cluster_nodes())
}

/// Reads `CLUSTER NODES`: this node's own line ends with the slots that it has, and a slot on its way is
/// in brackets: `[93-<-node]` or `[77->-node]`.
fn slots_are_moving(nodes: &[u8]) -> bool {
    nodes
        .split(|byte| *byte == b'\n')
        .filter(|line| line.windows(6).any(|part| part == b"myself"))
        .any(|line| line.contains(&b'['))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_on_its_way_is_seen_on_the_own_line_only() {
        let own = "a1 127.0.0.1:1@2 myself,master - 0 0 1 connected 0-5";
        let other = "b2 127.0.0.1:3@4 master - 0 0 2 connected 6-9 [77->-a1]";
        assert!(!slots_are_moving(format!("{own}\n{other}\n").as_bytes()));
        assert!(slots_are_moving(format!("{other}\n{own} [93-<-b2]\n").as_bytes()));
        assert!(slots_are_moving(format!("{own} [5->-b2]\n").as_bytes()));
    }
}
