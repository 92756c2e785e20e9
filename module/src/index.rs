//! An owner's index: task ids in order of creation.
//!
//! An entry can stand for a moment without its task, so whoever walks the index looks at the tasks too.

use std::ops::ControlFlow;

use pmcptask_schema::IndexKey;

use crate::arguments::ListOptions;
use crate::effects;
use crate::refusal::{Code, Refusal};
use crate::server::{Context, Key, OwnedString, StringRef, Walk};
use crate::statistics;
use crate::task::{self, Record};

/// A task of a list.
pub(crate) struct Listed<'c> {
    pub(crate) task_id: OwnedString<'c>,
    pub(crate) created_ms: i64,
    pub(crate) record: Record<'c>,
}

/// Creation time and task id, by which an index is ordered.
struct Entry<'c> {
    created_ms: i64,
    task_id: OwnedString<'c>,
}

impl Entry<'_> {
    fn position(&self) -> (i64, &[u8]) {
        (self.created_ms, self.task_id.bytes())
    }
}

/// The live tasks of an index, as the options ask for them. One consistent snapshot: nothing else runs
/// on the server meanwhile.
///
/// # Errors
///
/// [`Refusal::NoPermission`] where the user may not read one of the keys that are looked at.
pub(crate) fn list<'c>(
    context: &'c Context,
    index: &Key<'c>,
    key: &IndexKey<'_>,
    options: &ListOptions<'_>,
) -> Result<Vec<Listed<'c>>, Refusal> {
    let permissions = context.permissions();
    let wanted = options.count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let mut listed = Vec::new();
    let mut after = options.after.map(|(created_ms, task_id)| (created_ms, task_id.to_vec()));
    let mut name = Vec::new();
    while listed.len() < wanted {
        let missing = wanted.saturating_sub(listed.len());
        let position = after.as_ref().map(|(created_ms, task_id)| (*created_ms, task_id.as_slice()));
        let entries = entries_after(index, position, options.newest_first, missing);
        let is_last = entries.len() < missing;
        after = entries.last().map(|entry| (entry.created_ms, entry.task_id.bytes().to_vec()));
        for Entry { created_ms, task_id } in entries {
            if !key.write_task_key(task_id.bytes(), &mut name) {
                continue;
            }
            let task_name = context.create_string(&name);
            if !permissions.may_read(task_name.as_ref()) {
                return Err(Refusal::NoPermission { key: name });
            }
            match task::read(context, task_name.as_ref()) {
                Ok(Some(record)) => listed.push(Listed { task_id, created_ms, record }),
                Err(refusal) if refusal.code() == Code::Corrupt => {
                    statistics::CORRUPT_RECORDS_SKIPPED.increment();
                }
                // No hash, or a key of another type, which is no hash either.
                Ok(None) | Err(_) => {}
            }
        }
        if is_last {
            break;
        }
    }
    Ok(listed)
}

/// Up to `limit` entries that follow a position, whether or not there is an entry at that position.
///
/// They are collected before any task is looked at: opening a task's key can reclaim it, and with it
/// change the index.
fn entries_after<'c>(
    index: &Key<'c>,
    after: Option<(i64, &[u8])>,
    newest_first: bool,
    limit: usize,
) -> Vec<Entry<'c>> {
    let mut part = Walk { lowest: f64::NEG_INFINITY, highest: f64::INFINITY, highest_first: newest_first };
    // Exact: creation times as positions are at most 2^53-1. The ends of the part are where the position's
    // millisecond starts or ends, whatever fractions others have written as scores.
    #[allow(clippy::cast_precision_loss)]
    if let Some((created_ms, _)) = after {
        if newest_first {
            part.highest = (created_ms.saturating_add(1) as f64).next_down();
        } else {
            part.lowest = created_ms as f64;
        }
    }
    let mut entries = Vec::new();
    index.walk(part, |task_id, score| {
        // Scores that are no creation time come from others; they still have a place in the order.
        #[allow(clippy::cast_possible_truncation)]
        let entry = Entry { created_ms: score as i64, task_id };
        let follows =
            after.is_none_or(
                |after| {
                    if newest_first { entry.position() < after } else { entry.position() > after }
                },
            );
        if follows {
            entries.push(entry);
        }
        if entries.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    entries
}

/// Whether fewer than `limit` tasks of an index are live.
pub(crate) fn has_fewer_live_tasks(
    context: &Context,
    index: &Key<'_>,
    key: &IndexKey<'_>,
    limit: usize,
) -> bool {
    let mut name = Vec::new();
    let live = entries_after(index, None, false, usize::MAX)
        .iter()
        .filter(|entry| {
            key.write_task_key(entry.task_id.bytes(), &mut name)
                && task::is_live(context, context.create_string(&name).as_ref())
        })
        .take(limit)
        .count();
    live < limit
}

/// Removes a task's entry, and the index with its last one. True if there was an entry.
pub(crate) fn remove_entry(
    context: &Context,
    index: &mut Key<'_>,
    index_name: StringRef<'_>,
    task_id: StringRef<'_>,
) -> bool {
    let removed = index.remove_member(task_id);
    if removed {
        effects::unindexed(context, index_name, task_id);
        context.signal_modified(index_name);
    }
    removed
}
