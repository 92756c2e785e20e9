//! An owner's index: task ids in order of creation.
//!
//! An entry can outlive its task, so code that walks the index also checks the tasks.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use pmcptask_schema::{IndexKey, MAX_CREATED_MS};

use crate::record::{self, Presence, Reading};
use crate::refusal::{Code, Refusal};
use crate::server::{CommandName, Context, Failed, Key, OwnedString, Permissions, ScoreRange, StringRef};
use crate::slots::Slots;
use crate::time::Time;
use crate::{effects, statistics};

/// Preallocation limit in entries: far fewer may follow a position than the index holds.
const MOST_ROOM: usize = 1024;

/// A user who may run this command on a task's key may see the task in a list.
static GET: CommandName = CommandName::reading("pmcptask.get");

/// A task of a list.
pub(crate) struct Listed<'c> {
    pub(crate) task_id: OwnedString<'c>,
    pub(crate) version: i64,
    pub(crate) created_ms: i64,
    /// The record's bytes, if they were asked for.
    pub(crate) data: Option<OwnedString<'c>>,
}

/// Score and task id, which define the order of an index.
pub(crate) struct Entry<'c> {
    score: f64,
    pub(crate) task_id: OwnedString<'c>,
}

impl Entry<'_> {
    /// The task's creation time. Other writers can store scores that are not creation times; these still have
    /// a place in the order.
    #[allow(clippy::cast_possible_truncation, reason = "beyond the range is as good as its end")]
    fn created_ms(&self) -> i64 {
        self.score.floor() as i64
    }

    /// The position from which a walk continues after this entry.
    pub(crate) fn position(&self) -> Position {
        Position::Entry { score: self.score, task_id: self.task_id.bytes().to_vec() }
    }
}

/// The requested part of a list.
pub(crate) struct Part {
    pub(crate) newest_first: bool,
    /// Only what follows this position in the requested order.
    pub(crate) after: Option<Position>,
    /// Maximum number of tasks.
    pub(crate) count: usize,
    /// Whether to read the records' bytes too.
    pub(crate) with_data: bool,
}

/// A position in an index, whether or not there is an entry.
pub(crate) enum Position {
    /// After a task that a client names.
    Task { created_ms: i64, task_id: Vec<u8> },
    /// After an entry, whatever its score.
    Entry { score: f64, task_id: Vec<u8> },
}

impl Position {
    /// The range of scores that can follow this position. It includes the position's whole millisecond,
    /// because other writers can store fractions as scores. Beyond 2^53, where a score stands for several
    /// milliseconds, it includes the position's own score.
    #[allow(clippy::cast_precision_loss, reason = "see above")]
    fn part(&self, newest_first: bool) -> ScoreRange {
        let mut part = ScoreRange { highest_first: newest_first, ..ScoreRange::ALL };
        match (self, newest_first) {
            (Self::Task { created_ms, .. }, false) => part.lowest = *created_ms as f64,
            (Self::Task { created_ms, .. }, true) => {
                let next_ms = created_ms.saturating_add(1) as f64;
                part.highest = next_ms.next_down().max(*created_ms as f64);
            }
            (Self::Entry { score, .. }, false) => part.lowest = *score,
            (Self::Entry { score, .. }, true) => part.highest = *score,
        }
        part
    }

    /// Whether an entry follows this position in the order of the walk.
    pub(crate) fn is_before(&self, entry: &Entry<'_>, newest_first: bool) -> bool {
        let order = match self {
            Self::Task { created_ms, task_id } => {
                (entry.created_ms(), entry.task_id.bytes()).cmp(&(*created_ms, task_id.as_slice()))
            }
            Self::Entry { score, task_id } => {
                // Compared as the server does: -0 and 0 are one score. A sorted set has no NaN.
                let by_score = entry.score.partial_cmp(score).unwrap_or(Ordering::Equal);
                by_score.then_with(|| entry.task_id.bytes().cmp(task_id))
            }
        };
        order == if newest_first { Ordering::Less } else { Ordering::Greater }
    }
}

/// The requested live tasks of an index. One consistent snapshot: nothing else runs on the server meanwhile.
/// Keys of hashes whose `expires_at` is past are passed to `lapsed`.
///
/// # Errors
///
/// [`Refusal::NoPermission`] if the user may not read one of the tasks' keys; [`Refusal::MayBeElsewhere`] if
/// one of the tasks is missing here and may be at another node.
pub(crate) fn list<'c>(
    context: &'c Context,
    index: &Key<'c>,
    key: &IndexKey<'_>,
    Part { newest_first, mut after, count, with_data }: Part,
    mut lapsed: impl FnMut(StringRef<'_>),
) -> Result<Vec<Listed<'c>>, Refusal> {
    // If the named task still has its entry, start from that exact score: whole milliseconds do not tell the
    // place of an entry whose score has a fraction.
    if let Some(Position::Task { created_ms, task_id }) = &mut after {
        let entry = context.create_string(task_id);
        let score = index.score(entry.as_ref()).map(|score| Entry { score, task_id: entry });
        if let Some(entry) = score.filter(|entry| entry.created_ms() == *created_ms) {
            after = Some(entry.position());
        }
    }
    let permissions = Permissions::of(context, &GET);
    let mut listed = Vec::new();
    let mut keys = key.task_keys();
    let common = keys.of_member(b"").to_vec();
    let slots = Slots::of(context);
    // One timestamp for all tasks.
    let now_ms = context.now_ms();
    let read = |name: StringRef<'_>| {
        if with_data {
            let reading = record::read(context, name, now_ms)?;
            Ok(reading.map(|record| (record.version, Some(record.data))))
        } else {
            let reading = record::read_header(context, name, now_ms)?;
            Ok::<_, Refusal>(reading.map(|header| (header.version, None)))
        }
    };
    let mut chunks = EntryChunks::new(index, after, newest_first);
    while listed.len() < count
        && let Some(entries) = chunks.next_chunk(count.saturating_sub(listed.len()))
    {
        listed.reserve(entries.len().min(count.saturating_sub(listed.len())));
        for entry in entries {
            if listed.len() >= count {
                break;
            }
            let (created_ms, task_id) = (entry.created_ms(), entry.task_id);
            let Some(name) = keys.of_task(task_id.bytes()) else { continue };
            let task_name = context.create_string(name);
            if !permissions.allow(task_name.as_ref(), &common) {
                return Err(Refusal::NoPermission { action: "read", key: name.to_vec() });
            }
            match read(task_name.as_ref()) {
                Ok(Reading::Live((version, data))) => {
                    listed.push(Listed { task_id, version, created_ms, data });
                }
                Ok(Reading::Lapsed) => lapsed(task_name.as_ref()),
                Err(refusal) if refusal.code() == Code::Corrupt => {
                    statistics::CORRUPT_RECORDS_SKIPPED.increment();
                }
                Ok(Reading::Nothing) if slots.may_be_elsewhere(name) => {
                    return Err(Refusal::MayBeElsewhere { key: name.to_vec() });
                }
                // No hash, or a key of another type.
                Ok(Reading::Nothing) | Err(_) => {}
            }
        }
    }
    Ok(listed)
}

/// The entries of an index, chunk by chunk.
///
/// A chunk can start only at a score, so it passes all entries of the last score again. So each chunk has at least as
/// many entries as all chunks before it: then all chunks together pass at most twice as many entries as they have.
pub(crate) struct EntryChunks<'k, 'c> {
    index: &'k Key<'c>,
    after: Option<Position>,
    newest_first: bool,
    returned: usize,
    is_done: bool,
}

impl<'k, 'c> EntryChunks<'k, 'c> {
    pub(crate) fn new(index: &'k Key<'c>, after: Option<Position>, newest_first: bool) -> Self {
        Self { index, after, newest_first, returned: 0, is_done: false }
    }

    /// The next entries: at least `wanted`, or all that are left. None if none are left.
    pub(crate) fn next_chunk(&mut self, wanted: usize) -> Option<Vec<Entry<'c>>> {
        if self.is_done {
            return None;
        }
        let limit = wanted.max(self.returned);
        let entries = entries_after(self.index, self.after.as_ref(), self.newest_first, limit);
        self.is_done = entries.len() < limit;
        self.returned = self.returned.saturating_add(entries.len());
        self.after = Some(entries.last()?.position());
        Some(entries)
    }
}

/// Up to `limit` entries that follow a position, whether or not there is an entry at that position.
///
/// The entries are collected before any task's key is opened: opening can delete an expired key, and a
/// handler of that event may change the index.
fn entries_after<'c>(
    index: &Key<'c>,
    after: Option<&Position>,
    newest_first: bool,
    limit: usize,
) -> Vec<Entry<'c>> {
    let part = after.map_or(ScoreRange { highest_first: newest_first, ..ScoreRange::ALL }, |after| {
        after.part(newest_first)
    });
    let mut entries = Vec::with_capacity(limit.min(index.len()).min(MOST_ROOM));
    index.walk(part, |task_id, score| {
        let entry = Entry { score, task_id };
        if after.is_none_or(|after| after.is_before(&entry, newest_first)) {
            entries.push(entry);
        }
        if entries.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    entries
}

/// Whether fewer than `limit` tasks of an index are live at `now_ms`. Checks entries, newest first, until it
/// has found `limit` live tasks, or so many dead entries that fewer than `limit` tasks can be live. Keys of
/// hashes whose `expires_at` is past are passed to `lapsed`.
pub(crate) fn has_fewer_live_tasks(
    context: &Context,
    index: &Key<'_>,
    key: &IndexKey<'_>,
    limit: usize,
    now_ms: i64,
    mut lapsed: impl FnMut(StringRef<'_>),
) -> bool {
    if limit == 0 {
        return false;
    }
    let found = nth_newest_live(context, index, key, limit, now_ms, |task_name, presence| {
        if presence == Presence::Lapsed {
            lapsed(task_name);
        }
        Ok(())
    });
    matches!(found, Ok(None))
}

/// The entry of the `n`th newest live task, `n` from 1 on, if there are so many. Checks entries, newest first, until it has found the
/// entry, or so many dead entries that there cannot be `n` live tasks. The keys of dead entries are passed to `dead`.
///
/// # Errors
///
/// The first one that `dead` returns.
pub(crate) fn nth_newest_live<'c>(
    context: &'c Context,
    index: &Key<'c>,
    key: &IndexKey<'_>,
    n: usize,
    now_ms: i64,
    mut dead: impl FnMut(StringRef<'_>, Presence) -> Result<(), Refusal>,
) -> Result<Option<Entry<'c>>, Refusal> {
    let Some(allowed_dead) = index.len().checked_sub(n) else { return Ok(None) };
    let wanted = n.min(allowed_dead.saturating_add(1));
    let mut keys = key.task_keys();
    let (mut live_count, mut dead_count): (usize, usize) = (0, 0);
    let mut chunks = EntryChunks::new(index, None, true);
    while let Some(entries) = chunks.next_chunk(wanted) {
        for entry in entries {
            let mut presence = Presence::Gone;
            if let Some(name) = keys.of_task(entry.task_id.bytes()) {
                let name = context.create_string(name);
                presence = record::presence(context, name.as_ref(), now_ms);
                if presence != Presence::Live {
                    dead(name.as_ref(), presence)?;
                }
            }
            if presence == Presence::Live {
                live_count = live_count.saturating_add(1);
                if live_count >= n {
                    return Ok(Some(entry));
                }
            } else {
                dead_count = dead_count.saturating_add(1);
                if dead_count > allowed_dead {
                    return Ok(None);
                }
            }
        }
    }
    Ok(None)
}

/// A creation time that is later than that of every entry, also where the clock is behind that of an earlier write.
///
/// # Errors
///
/// [`Refusal::NoneNewer`].
pub(crate) fn newest(index: &Key<'_>, now_ms: i64) -> Result<i64, Refusal> {
    let last = entries_after(index, None, true, 1);
    let next_ms = last.first().map_or(i64::MIN, |entry| entry.created_ms().saturating_add(1));
    let newest_ms = now_ms.max(next_ms);
    if newest_ms <= MAX_CREATED_MS { Ok(newest_ms) } else { Err(Refusal::NoneNewer) }
}

/// Adds a task to the index, or changes the creation time of its entry.
pub(crate) fn insert_entry(
    context: &Context,
    index: &mut Key<'_>,
    index_name: StringRef<'_>,
    task_id: StringRef<'_>,
    created: Time<'_>,
) -> Result<(), Failed> {
    // Exact: a creation time is at most 2^53-1.
    #[allow(clippy::cast_precision_loss)]
    index.set_score(task_id, created.ms as f64)?;
    effects::indexed(context, index_name, task_id, created)?;
    context.signal_modified(index_name);
    Ok(())
}

/// Removes a task's entry. Removing the last entry removes the index. True if there was an entry.
pub(crate) fn remove_entry(
    context: &Context,
    index: &mut Key<'_>,
    index_name: StringRef<'_>,
    task_id: StringRef<'_>,
) -> Result<bool, Failed> {
    let removed = index.remove_member(task_id)?;
    if removed {
        effects::unindexed(context, index_name, task_id)?;
        context.signal_modified(index_name);
    }
    Ok(removed)
}
