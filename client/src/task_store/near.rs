//! The near cache: reads that are answered from memory while the server tracks the task and has told of no change.
//!
//! A record is current while four things hold. The epoch is the same: no connection was lost. No change of the task was
//! told, or made by this client. The connections are checked in time, so that a silent one is lost. The task has not expired, by
//! a clock that started before the record was read. A record becomes current in one of two ways:
//!
//! - By a tracked read, if nothing was told between the moment before it was sent and the moment when its reply is looked at.
//! - By a write over a current record, with a tracked read behind it on the same connection, if exactly one change was told
//!   meanwhile. The server tells once of a tracked key: the next change of the current record was told before the reply to
//!   the read, whoever made it, because the write is a change. So one is told in any case, and if there was no other,
//!   none was told after the read. Without that read, the next poll could not be answered from memory.
//!
//! Servers tell of changes on the connection on which they reply, in the order in which they happen, and the redis
//! crate hands over what they tell before it hands over later replies.

use std::time::Duration;

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::VersionedRecord;
use tokio::task::coop::consume_budget;
use tokio::time::Instant;

use super::known::{Look, State};
use super::records::Records;
use super::tracking::Tracking;
use crate::error::CallKind;
use crate::replies::{self, TrackedRecord};

/// How long a record is at most that is read again behind a write.
const LONGEST_READ_AGAIN: usize = 16 << 10;
/// How many writes in a row are followed by a read although nobody reads the task.
const UNSEEN_WRITES: u8 = 2;

impl Records {
    /// A task from memory if it is current there, and else from the server.
    pub(super) async fn near_task(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        match self.known.look(key) {
            Look::Current(record) => {
                // Whoever polls in a loop must let the connections take in what the server tells.
                consume_budget().await;
                self.judged(key, record).await
            }
            // Boxed, so that a call that is answered from memory takes little of it.
            look => Box::pin(self.far_task(key, &look)).await,
        }
    }

    async fn far_task(&self, key: &str, look: &Look) -> Result<VersionedRecord, StorageError> {
        let epoch = self.backend.session().epoch();
        let read = match look {
            Look::Known => self.tracked_task(key).await,
            // Not tracked: the server would keep the name of a task that is not there, for ever.
            Look::Current(_) | Look::Ends | Look::Unknown => self.task_at_primary(key).await,
        };
        match (look, &read) {
            (Look::Unknown, Ok(VersionedRecord { data, version })) => {
                self.known.put(key, data, *version, State::Seen, epoch);
            }
            (_, Err(StorageError::NotFound { .. })) => self.known.forget(key),
            _ => {}
        }
        read
    }

    async fn tracked_task(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        let waiter = self.backend.session().add_waiter(key)?;
        let (moment, asked) = (waiter.moment(), Instant::now());
        let read = self.backend.read(key, &waiter, CallKind::TrackedRead, replies::tracked_record).await?;
        let TrackedRecord { record, is_tracked, expires_in, is_expiry_known } = read;
        let record = record.ok_or_else(|| StorageError::NotFound { key: key.to_owned() })?;
        let state = if is_tracked && is_expiry_known {
            let until = until(asked, expires_in);
            State::Tracked(Box::new(Tracking { waiter, moment, until, unseen_writes: 0 }))
        } else {
            State::Seen
        };
        self.known.put(key, &record.data, record.version, state, moment.epoch);
        self.judged(key, record).await
    }

    /// Writes over a version of a task, and keeps what was written. `replaced`: what made the record current that is written
    /// over, if it was.
    pub(super) async fn write_over(
        &self,
        key: &str,
        data: &[u8],
        expected: u64,
        epoch: u64,
        replaced: Option<Tracking>,
    ) -> Result<u64, StorageError> {
        if !self.settings.is_near {
            let kind = CallKind::Replace { epoch, is_tracked: false };
            let (version, _) = self.backend.compare_and_set(key, data, expected, kind).await?;
            self.known.put(key, data, version, State::Written, epoch);
            return Ok(version);
        }
        let is_short = data.len() <= LONGEST_READ_AGAIN;
        let replaced = replaced.filter(|replaced| is_short && replaced.unseen_writes < UNSEEN_WRITES);
        let kind = CallKind::Replace { epoch, is_tracked: replaced.is_some() };
        let (waiter, replaced) = match replaced {
            Some(Tracking { waiter, moment, unseen_writes, .. }) => (waiter, Some((moment, unseen_writes))),
            None => (self.backend.session().add_waiter(key)?, None),
        };
        let asked = Instant::now();
        let written = self.backend.compare_and_set(key, data, expected, kind).await;
        // From here on, no older record is current, even if the server tells of this write later.
        let (before, after) = waiter.note_own_change();
        let (version, read) = written?;
        match (replaced, read) {
            (
                Some((moment, unseen_writes)),
                Some(TrackedRecord {
                    record: Some(record),
                    is_tracked: true,
                    expires_in,
                    is_expiry_known: true,
                }),
            ) if before == moment.after_one_change() => {
                let (until, unseen_writes) = (until(asked, expires_in), unseen_writes.saturating_add(1));
                let tracking = Tracking { waiter, moment: after, until, unseen_writes };
                // Perhaps newer than what was written.
                let VersionedRecord { data, version } = record;
                self.known.put(key, &data, version, State::Tracked(Box::new(tracking)), epoch);
            }
            _ => self.known.put(key, data, version, State::Written, epoch),
        }
        Ok(version)
    }
}

/// When the expiry may be that was read after `asked`.
fn until(asked: Instant, expires_in: Option<Duration>) -> Option<Instant> {
    // Beyond what the clock can count, never.
    asked.checked_add(expires_in?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::connection::Waiters;
    use crate::task_store::known::Known;

    const TASK: &str = "o:t";

    fn waiters() -> Arc<Waiters> {
        let all = Arc::new(Waiters::default());
        all.connection_was_checked(Duration::from_mins(1));
        all
    }

    fn tracked(all: &Arc<Waiters>, task: &str) -> State {
        let waiter = all.add(task.to_owned());
        let moment = waiter.moment();
        State::Tracked(Box::new(Tracking { waiter, moment, until: None, unseen_writes: 0 }))
    }

    fn current_version(known: &Known, task: &str) -> Option<u64> {
        match known.look(task) {
            Look::Current(record) => Some(record.version),
            Look::Known | Look::Ends | Look::Unknown => None,
        }
    }

    #[test]
    fn changes_are_counted_of_no_more_tasks_than_there_are_records() {
        let (all, known) = (waiters(), Known::new(10_000));
        for version in 1..4 {
            for task in (0..100).map(|task| task.to_string()) {
                known.put(&task, &[0; 500], version, tracked(&all, &task), 0);
                assert_eq!(current_version(&known, &task), Some(version));
            }
        }
        let kept = (0..100).filter(|task| current_version(&known, &task.to_string()).is_some()).count();
        assert!((5..=15).contains(&kept), "{kept}");
        assert_eq!(all.tasks_with_waiters(), kept);
        known.forget("99");
        assert!(known.take("98", 0).is_some());
        assert_eq!(all.tasks_with_waiters(), kept - 2);
    }

    #[test]
    fn newer_or_current_record_is_not_replaced_by_an_older_one_and_a_current_one_replaces_all() {
        let (all, known) = (waiters(), Known::new(10_000));
        known.put(TASK, b"5", 5, tracked(&all, TASK), 0);
        for (version, state) in [(4, State::Written), (5, State::Written), (5, State::Seen)] {
            known.put(TASK, b"x", version, state, 0);
            assert_eq!(current_version(&known, TASK), Some(5));
        }
        known.put(TASK, b"6", 6, State::Written, 0);
        known.put(TASK, b"x", 6, State::Seen, 0);
        assert_eq!(known.take(TASK, 0).unwrap().0.data, b"6");
        // A task that was deleted and made again begins anew.
        known.put(TASK, b"6", 6, State::Written, 0);
        known.put(TASK, b"1", 1, tracked(&all, TASK), 0);
        assert_eq!(current_version(&known, TASK), Some(1));
        // In another epoch, an older version may be the newer record.
        known.put(TASK, b"6", 6, State::Written, 0);
        known.put(TASK, b"2", 2, State::Written, 1);
        assert_eq!(known.take(TASK, 1).unwrap().0.version, 2);
    }

    #[test]
    fn record_that_may_be_old_is_neither_answered_nor_written_over() {
        let (all, known) = (waiters(), Known::new(10_000));
        known.put(TASK, b"1", 1, tracked(&all, TASK), 0);
        all.add(TASK.to_owned()).note_own_change();
        assert!(matches!(known.look(TASK), Look::Known));
        assert!(known.take(TASK, 0).is_none());
        known.put(TASK, b"1", 1, State::Seen, 0);
        assert!(matches!(known.look(TASK), Look::Known));
        assert!(known.take(TASK, 0).is_none());
    }

    #[test]
    fn task_that_ends_by_its_record_is_not_tracked_again() {
        let known = Known::new(10_000);
        for (expires_at, ends) in [("2020-01-01T00:00:00Z", true), ("2999-01-01T00:00:00Z", false)] {
            let record = format!(r#"{{"expiresAt":"{expires_at}"}}"#);
            known.put(TASK, record.as_bytes(), 1, State::Written, 0);
            assert_eq!(matches!(known.look(TASK), Look::Ends), ends, "{expires_at}");
            known.forget(TASK);
        }
    }
}
