//! The last known record of each task that this store wrote. An update writes over it without reading first.

use std::sync::{Mutex, PoisonError};

use lru::LruCache;
use pmcp_tasks::store::backend::VersionedRecord;

/// What an entry takes besides its key and record, roughly.
const OVERHEAD: usize = 160;

pub(super) struct Known {
    /// At most so many bytes.
    limit: usize,
    records: Mutex<Records>,
}

struct Records {
    by_key: LruCache<String, Record>,
    bytes: usize,
}

struct Record {
    record: VersionedRecord,
    /// The epoch in which the record was written.
    epoch: u64,
}

fn size(key: &str, record: &VersionedRecord) -> usize {
    key.len().saturating_add(record.data.len()).saturating_add(OVERHEAD)
}

impl Known {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, records: Mutex::new(Records { by_key: LruCache::unbounded(), bytes: 0 }) }
    }

    /// Takes the record of a task out, if it was written in this epoch. Whoever writes over it puts the next one in, and
    /// whoever fails leaves none.
    pub(super) fn take(&self, key: &str, epoch: u64) -> Option<VersionedRecord> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let known = records.by_key.pop(key)?;
        records.bytes = records.bytes.saturating_sub(size(key, &known.record));
        (known.epoch == epoch).then_some(known.record)
    }

    /// Remembers the record of a task, and forgets those that were not used for longest.
    pub(super) fn put(&self, key: &str, data: &[u8], version: u64, epoch: u64) {
        let record = VersionedRecord { data: data.to_vec(), version };
        let more = size(key, &record);
        if more > self.limit {
            return;
        }
        self.take(key, epoch);
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.by_key.put(key.to_owned(), Record { record, epoch });
        records.bytes = records.bytes.saturating_add(more);
        while records.bytes > self.limit
            && let Some((key, oldest)) = records.by_key.pop_lru()
        {
            records.bytes = records.bytes.saturating_sub(size(&key, &oldest.record));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn records_take_no_more_than_the_limit_and_those_not_used_for_longest_go_first() {
        let known = Known::new(10 * (OVERHEAD + 1_001));
        for round in 0..3 {
            for task in 0..20_u8 {
                known.put(&char::from(b'a' + task).to_string(), &[0; 1_000], round, 0);
                let bytes = known.records.lock().unwrap().bytes;
                assert!(bytes <= known.limit, "{bytes}");
            }
        }
        assert!(known.take("j", 0).is_none());
        assert_eq!(known.take("k", 0).unwrap().version, 2);
        assert!(known.take("k", 0).is_none(), "taken");
        known.put("k", &vec![0; 20_000], 3, 0);
        assert!(known.take("k", 0).is_none(), "larger than the limit");
        assert_eq!(known.records.lock().unwrap().by_key.len(), 9);
        for task in 0..20_u8 {
            known.take(&char::from(b'a' + task).to_string(), 0);
        }
        assert_eq!(known.records.lock().unwrap().bytes, 0);
    }

    #[test]
    fn record_of_another_epoch_is_not_known() {
        let known = Known::new(10_000);
        known.put("a", b"one", 1, 7);
        assert!(known.take("a", 8).is_none());
        known.put("a", b"two", 2, 8);
        assert_eq!(known.take("a", 8).unwrap().version, 2);
    }
}
