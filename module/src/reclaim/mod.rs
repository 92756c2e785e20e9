//! Hash and index agree within a second, with no client's help.
//!
//! A task can go without a DEL of this module: it expires, is evicted, or somebody deletes or renames its
//! hash. It can come without a PUT as well, by RENAME or RESTORE. Three parts see to its entry:
//!
//! - [`suspects`] hears from the server of each key that goes or comes, and puts the entry right a moment
//!   later, or, in a cluster, once the key's slot has settled.
//! - [`deadlines`] has tasks that are past their expiry reclaimed at once. Left alone, the server looks for
//!   expired keys at random and can take minutes to find one among many that are alive.
//! - [`patrol`] walks all keys in small steps: it tells `deadlines` of tasks that will expire soon. After a
//!   restart or a failover, when an index has gone, and every few minutes, it looks for entries without a
//!   task and for tasks without an entry.
//!
//! Only keys of prefixes that are [`served`] are looked at. All others belong to other applications.

mod deadlines;
mod patrol;
mod served;
mod slots;
mod suspects;
mod waiting;

use pmcptask_schema::{Envelope, IndexKey, TaskKey};

use self::slots::{Role, Slots};
use crate::effects::Moment;
use crate::index;
use crate::record;
use crate::server::{Context, Key, Kind};
use crate::statistics;

pub(crate) use patrol::expects_expiry;
pub(crate) use served::serve;
pub(crate) use suspects::note_deleted;

/// Starts listening and walking.
pub(crate) fn start(context: &Context) -> bool {
    suspects::start(context) && patrol::start(context)
}

/// Forgets everything, before the module is unloaded.
pub(crate) fn stop(context: &Context) {
    served::forget(context);
    suspects::forget(context);
    patrol::forget(context);
}

/// Whether a task that is not here may be at another node of the cluster: while its slot moves, and on a replica,
/// which is not told that it does.
pub(crate) fn may_be_elsewhere(context: &Context, task_name: &[u8]) -> bool {
    context.is_cluster()
        && (!context.is_settled_primary() || Slots::of(context).role_for(task_name) != Role::Owner)
}

/// False on a replica, which is told of removals, and while a failover or CLIENT PAUSE forbids writes.
fn may_write(context: &Context) -> bool {
    context.is_settled_primary() && !context.writes_are_paused()
}

/// Makes index and task agree, in the selected database, as far as this node can judge. `has_ended`: the task has
/// gone for good, so it is not to be expected at another node.
fn put_right(context: &Context, slots: &Slots<'_>, task_name: &[u8], has_ended: bool) {
    match slots.role_for(task_name) {
        Role::Owner => agree(context, slots, task_name),
        Role::Moving(_) if has_ended && !holds_hash(context, task_name) => remove_entries(context, task_name),
        // Once the slot has settled, it is settled whose task this is.
        Role::Moving(slot) => suspects::wait_for_slot(context, slot, task_name),
        Role::Stranger => {}
    }
}

/// Makes the index agree with what a task's key holds: a task has an entry, and what has gone, or is no hash, has none.
fn agree(context: &Context, slots: &Slots<'_>, task_name: &[u8]) {
    if holds_hash(context, task_name) {
        restore_entry(context, slots, task_name);
    } else {
        remove_entries(context, task_name);
    }
}

/// Whether a key holds a hash. One that is past its expiry goes by being looked at, and the server tells
/// of it as of any other.
fn holds_hash(context: &Context, name: &[u8]) -> bool {
    // For writing, because that counts neither as a hit nor as a miss.
    Key::open_for_writing(context, context.create_string(name).as_ref()).kind() == Kind::Hash
}

/// True where a task could be put into the index and is not there.
fn lacks_entry(context: &Context, index: &IndexKey<'_>, task_id: &[u8]) -> bool {
    let mut name = Vec::new();
    index.write(&mut name);
    match Key::open_for_reading(context, context.create_string(&name).as_ref()) {
        None => true,
        Some(index) => {
            index.kind() == Kind::SortedSet && index.score(context.create_string(task_id).as_ref()).is_none()
        }
    }
}

/// Puts a live task into its index if it is not there, where its record or else the clock says.
fn restore_entry(context: &Context, slots: &Slots<'_>, task_name: &[u8]) {
    let Ok(key) = TaskKey::parse(task_name) else { return };
    let index = IndexKey::of(&key);
    if !lacks_entry(context, &index, key.task_id) {
        return;
    }
    let mut name = Vec::new();
    index.write(&mut name);
    // Without a hash tag, the index may be in another slot than the task. One that were made here while the slot
    // is on its way would keep the true one from arriving.
    match slots.role_for(&name) {
        Role::Owner => {}
        Role::Moving(slot) => return suspects::wait_for_slot(context, slot, task_name),
        Role::Stranger => return,
    }
    let Ok(Some(task)) = record::read(context, context.create_string(task_name).as_ref(), context.now_ms())
    else {
        return;
    };
    let created_ms = Envelope::read(task.data.bytes()).created_at_ms;
    let created = Moment::new(created_ms.unwrap_or_else(|| context.now_ms()));
    let name = context.create_string(&name);
    let mut index = Key::open_for_writing(context, name.as_ref());
    let task_id = context.create_string(key.task_id);
    index::insert_entry(context, &mut index, name.as_ref(), task_id.as_ref(), created);
    statistics::INDEX_ENTRIES_RESTORED.increment();
}

/// Removes all entries by which a task is known.
fn remove_entries(context: &Context, task_name: &[u8]) {
    let Ok(key) = TaskKey::parse(task_name) else { return };
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
