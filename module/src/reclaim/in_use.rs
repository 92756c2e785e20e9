//! The prefixes whose keys belong to this module. `pmcp` and those of the setting `prefixes` belong to it in
//! every database; any other prefix only in the databases where a command has written a task with it since
//! the process started.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;

use pmcptask_schema::Keyspace;

use crate::server::{Context, ServerThread};
use crate::settings;

/// Maximum number of prefixes kept per database. With more prefixes, for instance one per task, the dead
/// entries of the rest stay.
const MOST: usize = 10_000;

type Prefixes = BTreeSet<Box<[u8]>>;

static WRITTEN: ServerThread<BTreeMap<c_int, Prefixes>> = ServerThread::new(BTreeMap::new());

/// Remembers that a command has written a task with this prefix into the selected database.
pub(crate) fn note_written(context: &Context, prefix: &[u8]) {
    if prefix == Keyspace::DEFAULT_PREFIX.as_bytes() {
        return;
    }
    let Some(mut written) = WRITTEN.borrow_mut(context) else { return };
    let prefixes = written.entry(context.selected_database()).or_default();
    if !prefixes.contains(prefix) && prefixes.len() < MOST {
        prefixes.insert(prefix.into());
    }
}

/// Whether keys with this prefix belong to this module in the selected database.
pub(super) fn is_in_use(context: &Context, prefix: &[u8]) -> bool {
    settings::names_prefix(prefix)
        || WRITTEN.borrow_mut(context).is_some_and(|written| {
            written.get(&context.selected_database()).is_some_and(|prefixes| prefixes.contains(prefix))
        })
}

/// Prefixes that commands have written with, up to `most` of each database.
pub(crate) fn written_prefixes(context: &Context, most: usize) -> Vec<Vec<u8>> {
    let Some(written) = WRITTEN.borrow_mut(context) else { return Vec::new() };
    written.values().flat_map(|prefixes| prefixes.iter().take(most)).map(|prefix| prefix.to_vec()).collect()
}

/// Two databases have changed places.
pub(super) fn swap(context: &Context, one: c_int, other: c_int) {
    let Some(mut written) = WRITTEN.borrow_mut(context) else { return };
    let (of_one, of_other) = (written.remove(&one), written.remove(&other));
    written.extend(of_one.map(|prefixes| (other, prefixes)));
    written.extend(of_other.map(|prefixes| (one, prefixes)));
}
