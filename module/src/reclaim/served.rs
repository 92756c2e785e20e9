//! The prefixes whose keys are this module's.
//!
//! A prefix is known once a task of it has been written or read, by a command or by the patrol, and
//! forgotten once a whole walk of the patrol has found no key of it. So the list does not outgrow the data
//! that it is about.

use std::collections::BTreeMap;

use pmcptask_schema::Keyspace;

use super::patrol::{self, Purpose};
use crate::server::{Context, ServerThread};

/// A replica walks over no keys, so it forgets no prefix: it takes note of so many and no more.
const MOST: usize = 10_000;

/// Prefixes, and the walk of the patrol in which a key of each was last seen.
struct Served {
    prefixes: BTreeMap<Vec<u8>, u64>,
    walk: u64,
}

static SERVED: ServerThread<Served> = ServerThread::new(Served { prefixes: BTreeMap::new(), walk: 0 });

/// Takes note that keys with this prefix are this module's: a task of it has been written or read. A name
/// that somebody has merely called proves nothing.
pub(crate) fn serve(context: &Context, prefix: &[u8]) {
    if !serves(context, prefix) {
        let Some(mut served) = SERVED.borrow_mut(context) else { return };
        if served.prefixes.len() < MOST || context.is_settled_primary() {
            let walk = served.walk;
            served.prefixes.insert(prefix.to_vec(), walk);
            patrol::request(context, Purpose::Verify);
        }
    }
}

/// Whether keys with this prefix are this module's. To ask is to have seen such a key.
pub(super) fn serves(context: &Context, prefix: &[u8]) -> bool {
    let Some(mut served) = SERVED.borrow_mut(context) else { return false };
    let walk = served.walk;
    match served.prefixes.get_mut(prefix) {
        Some(seen_in) => {
            *seen_in = walk;
            true
        }
        None => prefix == Keyspace::DEFAULT_PREFIX.as_bytes(),
    }
}

/// A walk over all keys starts.
pub(super) fn walk_starts(context: &Context) {
    if let Some(mut served) = SERVED.borrow_mut(context) {
        served.walk = served.walk.wrapping_add(1);
    }
}

/// The walk has come to its end: prefixes of which it has seen no key are forgotten.
pub(super) fn walk_ends(context: &Context) {
    if let Some(mut served) = SERVED.borrow_mut(context) {
        let walk = served.walk;
        served.prefixes.retain(|_, seen_in| *seen_in == walk);
    }
}

pub(super) fn forget(context: &Context) {
    if let Some(mut served) = SERVED.borrow_mut(context) {
        served.prefixes = BTreeMap::new();
    }
}
