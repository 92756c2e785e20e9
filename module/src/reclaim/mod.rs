//! Hash and index agree within a second, with no client's help.
//!
//! A task can go without a DEL of this module: it expires, is evicted, or somebody deletes or renames its
//! hash. Three parts see to its entry:
//!
//! - [`gone`] hears from the server of each key that goes, and removes the entry a moment later.
//! - [`deadlines`] has tasks that are past their expiry reclaimed at once. Left alone, the server looks for
//!   expired keys at random and can take minutes to find one among many that are alive.
//! - [`patrol`] walks all keys in small steps: it tells `deadlines` of tasks that will expire soon. After a
//!   restart or a failover, or when an index has gone, it looks for entries without a task and for tasks
//!   without an entry.
//!
//! Only keys of prefixes that are served are looked at: the default one, and those under which a command
//! has written or found a task, or the patrol has. All others belong to other applications.

mod deadlines;
mod gone;
mod patrol;
mod slots;

use std::collections::BTreeSet;

use pmcptask_schema::{IndexKey, Keyspace, TaskKey};

use crate::index;
use crate::server::{Context, Key, Kind, ServerThread};
use crate::statistics;

pub(crate) use gone::note_deleted;
pub(crate) use patrol::expects_expiry;

static SERVED: ServerThread<BTreeSet<Vec<u8>>> = ServerThread::new(BTreeSet::new());

/// Starts listening and walking.
pub(crate) fn start(context: &Context) -> bool {
    serve(context, Keyspace::DEFAULT_PREFIX.as_bytes());
    gone::start(context) && patrol::start(context)
}

/// Forgets everything, before the module is unloaded.
pub(crate) fn stop(context: &Context) {
    if let Some(mut served) = SERVED.borrow_mut(context) {
        *served = BTreeSet::new();
    }
    gone::forget(context);
    patrol::forget(context);
}

/// Takes note that keys with this prefix are this module's: a task of it has been written or read. A name
/// that somebody has merely called proves nothing.
pub(crate) fn serve(context: &Context, prefix: &[u8]) {
    let Some(mut served) = SERVED.borrow_mut(context) else { return };
    if !served.contains(prefix) {
        served.insert(prefix.to_vec());
        patrol::verify_indexes(context);
    }
}

fn serves(context: &Context, prefix: &[u8]) -> bool {
    SERVED.borrow_mut(context).is_some_and(|served| served.contains(prefix))
}

/// False on a replica, which is told of removals, and while a failover or CLIENT PAUSE forbids writes.
fn may_write(context: &Context) -> bool {
    context.is_settled_primary() && !context.writes_are_paused()
}

/// Removes the entry of a task that has gone and not come back, in the selected database.
fn reclaim(context: &Context, task_name: &[u8]) {
    let Ok(key) = TaskKey::parse(task_name) else { return };
    if holds_hash(context, task_name) {
        return;
    }
    remove_entry(context, &IndexKey::of(&key), key.task_id);
    if let Some((index, member)) = key.old_entry() {
        remove_entry(context, &index, &member);
    }
}

fn remove_entry(context: &Context, index: &IndexKey<'_>, member: &[u8]) {
    let mut name = Vec::new();
    index.write(&mut name);
    let name = context.create_string(&name);
    let mut index = Key::open_for_writing(context, name.as_ref());
    let member = context.create_string(member);
    if index.kind() == Kind::SortedSet
        && index::remove_entry(context, &mut index, name.as_ref(), member.as_ref())
    {
        statistics::INDEX_ENTRIES_RECLAIMED.increment();
    }
}

/// Whether a key holds a hash. One that is past its expiry goes by being looked at, and the server tells
/// of it as of any other.
fn holds_hash(context: &Context, name: &[u8]) -> bool {
    // For writing, because that counts neither as a hit nor as a miss.
    Key::open_for_writing(context, context.create_string(name).as_ref()).kind() == Kind::Hash
}
