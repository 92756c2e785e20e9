//! One attempt at a change: what upstream's store reads and writes meanwhile, and what it met.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::{StorageBackend, VersionedRecord};

use super::known::State;
use super::records::Records;
use super::tracking::Tracking;
use crate::error::{conflict_if_outdated, says_owner_is_full};

/// The backend of one attempt of upstream's store.
pub(super) struct Attempt {
    pub(super) records: Arc<Records>,
    /// Whether the record may be one that is known, and need not be read.
    pub(super) may_remember: bool,
    pub(super) max_tasks: usize,
    /// The epoch in which the attempt began.
    pub(super) epoch: u64,
    pub(super) met: Arc<Mutex<Met>>,
    /// The record that [`Attempt::peek`] returned. Upstream's store gets the same one.
    pub(super) peeked: Mutex<Option<VersionedRecord>>,
}

/// What an attempt met, as far as upstream's errors do not say.
#[derive(Default)]
pub(super) struct Met {
    /// The record was one that was known. Somebody may have changed the task since.
    pub(super) remembered: bool,
    /// What made the record current, if it was.
    tracking: Option<Tracking>,
    pub(super) obstacle: Option<Obstacle>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The task is at another version than was read, or may be another record. Or the id of a new task is taken.
    Conflict,
    /// The owner has as many tasks as are allowed.
    OwnerIsFull,
    /// The call failed: another attempt would not help, or could do harm.
    Failure,
}

impl Attempt {
    fn met<T>(&self, change: impl FnOnce(&mut Met) -> T) -> T {
        change(&mut self.met.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn peeked(&self) -> MutexGuard<'_, Option<VersionedRecord>> {
        self.peeked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record that the attempt will be made over.
    pub(super) async fn peek(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        let record = self.get(key).await?;
        *self.peeked() = Some(record.clone());
        Ok(record)
    }

    /// Changes the record that [`Attempt::peek`] returned, for upstream's store.
    pub(super) fn amend(&self, change: impl FnOnce(VersionedRecord) -> VersionedRecord) {
        let mut peeked = self.peeked();
        *peeked = peeked.take().map(change);
    }

    fn noted<T>(&self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        let obstacle = match &result {
            Err(StorageError::VersionConflict { .. }) => Some(Obstacle::Conflict),
            Err(error) if says_owner_is_full(error) => Some(Obstacle::OwnerIsFull),
            Err(StorageError::Backend { .. }) => Some(Obstacle::Failure),
            _ => None,
        };
        self.met(|met| met.obstacle = obstacle);
        result
    }
}

#[async_trait]
impl StorageBackend for Attempt {
    async fn get(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        if let Some(record) = self.peeked().take() {
            return Ok(record);
        }
        if self.may_remember
            && let Some((record, tracking)) = self.records.known.take(key, self.epoch)
            // Writes that wait for replicas have another connection, which may lead to another server for a moment.
            && (tracking.is_none() || !self.records.backend.session().waits_for_replicas())
        {
            let version = record.version;
            // A task whose worker has died has failed, also for who remembers it.
            let record = self.noted(self.records.judged(key, record).await)?;
            self.met(|met| {
                met.remembered = true;
                met.tracking = tracking.filter(|_| record.version == version);
            });
            return Ok(record);
        }
        self.noted(self.records.task_to_replace(key).await)
    }

    /// Only a new task is put.
    async fn put(&self, key: &str, data: &[u8]) -> Result<u64, StorageError> {
        /// The version of a new task.
        const FIRST: u64 = 1;
        let created = self.records.backend.create_within(key, data, Some(self.max_tasks)).await;
        let created = created.and_then(|is_new| {
            let taken = || StorageError::VersionConflict { key: key.to_owned(), expected: 0, actual: FIRST };
            if is_new { Ok(()) } else { Err(taken()) }
        });
        self.noted(created)?;
        self.records.known.put(key, data, FIRST, State::Written, self.epoch);
        Ok(FIRST)
    }

    async fn put_if_version(&self, key: &str, data: &[u8], expected: u64) -> Result<u64, StorageError> {
        let tracking = self.met(|met| met.tracking.take());
        let written = self.records.write_over(key, data, expected, self.epoch, tracking).await;
        self.noted(written.map_err(|error| conflict_if_outdated(error, key, expected)))
    }

    /// Upstream lists to count an owner's tasks. The server counts when a task is put.
    async fn list_by_prefix(&self, _prefix: &str) -> Result<Vec<(String, VersionedRecord)>, StorageError> {
        Ok(Vec::new())
    }

    async fn delete(&self, key: &str) -> Result<bool, StorageError> {
        self.records.backend.delete(key).await
    }

    async fn cleanup_expired(&self) -> Result<usize, StorageError> {
        self.records.backend.cleanup_expired().await
    }
}
