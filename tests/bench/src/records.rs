//! Records as `pmcp-tasks` itself writes them.

use std::collections::HashMap;

use pmcp_tasks::TaskRecord;
use serde_json::Value;

/// Tasks end after this time unless they are deleted, in ms.
pub(crate) const TTL_MS: u64 = 3_600_000;

/// A record of about this many bytes: a task filled up with variables, which lives for an hour.
pub(crate) fn record(owner: &str, bytes: usize) -> Vec<u8> {
    record_for(owner, bytes, TTL_MS)
}

/// Like [`record`], for a task that lives this many ms.
pub(crate) fn record_for(owner: &str, bytes: usize, ttl_ms: u64) -> Vec<u8> {
    let mut record = TaskRecord::new(owner.to_owned(), "tools/call".to_owned(), Some(ttl_ms));
    let bare = serialized(&record).len();
    // `"text":""` and its quotes
    let filler = bytes.saturating_sub(bare + 9);
    record.variables = HashMap::from([("text".to_owned(), Value::String("x".repeat(filler)))]);
    serialized(&record)
}

fn serialized(record: &TaskRecord) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_has_the_size_asked_for() {
        for bytes in [500, 10_000, 1_000_000] {
            let length = record("alice", bytes).len();
            assert!(length.abs_diff(bytes) < 16, "{length} instead of {bytes}");
        }
    }
}
