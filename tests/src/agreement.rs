//! Checks that the indexes list exactly the tasks that exist.

use std::time::Duration;

use crate::{Server, holds_within};

/// How soon an index entry goes after the server has ended its task, by the contract.
pub const PROMISED: Duration = Duration::from_secs(1);

/// Asserts that every task of these primaries has one index entry, that every entry has a task, and that no
/// task is on two primaries.
///
/// The module walks twice through its indexes first. The walks remove the entries of tasks that ended on a
/// server that died before it could remove them, and of tasks that ended while their slot moved.
pub fn assert_hashes_and_entries_agree(primaries: &[&Server]) {
    for server in primaries {
        server.have_indexes_walked(2);
    }
    // A task may end between the query for tasks and the query for entries.
    let agree = || {
        let (hashes, entries) = hashes_and_entries(primaries);
        let is_twice = hashes.windows(2).any(|pair| pair[0] == pair[1]);
        !hashes.is_empty() && !is_twice && hashes == entries
    };
    let (hashes, entries) = {
        if holds_within(Duration::from_secs(1), agree) {
            return;
        }
        hashes_and_entries(primaries)
    };
    let only_in = |these: &[String], others: &[String]| -> Vec<String> {
        these.iter().filter(|key| others.binary_search(key).is_err()).cloned().collect()
    };
    panic!(
        "{} tasks have {} entries; without an entry: {:#?}; without a task: {:#?}; at two primaries: {:#?}",
        hashes.len(),
        entries.len(),
        only_in(&hashes, &entries),
        only_in(&entries, &hashes),
        hashes.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| &pair[0]).collect::<Vec<_>>()
    );
}

/// The key of every task, and for every index entry the key of its task, both sorted.
fn hashes_and_entries(servers: &[&Server]) -> (Vec<String>, Vec<String>) {
    let (mut hashes, mut entries) = (Vec::new(), Vec::new());
    for server in servers {
        let mut connection = server.connection();
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
        for key in keys {
            let Some((prefix, owner)) = key.split_once(":idx:") else {
                hashes.push(key);
                continue;
            };
            let members: Vec<String> =
                redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).query(&mut connection).unwrap();
            entries.extend(members.iter().map(|member| format!("{prefix}:tasks:{owner}:{member}")));
        }
    }
    hashes.sort();
    entries.sort();
    (hashes, entries)
}
