//! What upstream's store reads from, once a record or page was read.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::{StorageBackend, VersionedRecord};

use crate::backend::RedisBackend;
use crate::error::{CallKind, conflict_if_outdated};

/// One answer. Each read of upstream's store asks once.
pub(super) struct Found {
    task: Answer<VersionedRecord>,
    page: Answer<Vec<(String, VersionedRecord)>>,
    /// Where changes of the task go, and the epoch in which it was read. None: the task cannot be changed.
    changes: Option<(RedisBackend, u64)>,
}

type Answer<T> = Mutex<Option<Result<T, StorageError>>>;

impl Found {
    pub(super) fn task(task: Result<VersionedRecord, StorageError>) -> Self {
        Self { task: Mutex::new(Some(task)), ..Self::nothing() }
    }

    /// A task that was read in this epoch, and is to be changed.
    pub(super) fn task_to_change(task: VersionedRecord, backend: RedisBackend, epoch: u64) -> Self {
        Self { changes: Some((backend, epoch)), ..Self::task(Ok(task)) }
    }

    pub(super) fn nothing() -> Self {
        Self { task: Mutex::default(), page: Mutex::default(), changes: None }
    }

    pub(super) fn page(page: Result<Vec<(String, VersionedRecord)>, StorageError>) -> Self {
        Self { page: Mutex::new(Some(page)), ..Self::nothing() }
    }
}

fn answer<T>(answer: &Answer<T>) -> Result<T, StorageError> {
    answer.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_else(|| Err(unexpected()))
}

fn unexpected() -> StorageError {
    StorageError::Backend {
        message: "the store of pmcp-tasks: expected one read, got another call".to_owned(),
        source: None,
    }
}

#[async_trait]
impl StorageBackend for Found {
    async fn get(&self, _key: &str) -> Result<VersionedRecord, StorageError> {
        answer(&self.task)
    }

    async fn list_by_prefix(&self, _prefix: &str) -> Result<Vec<(String, VersionedRecord)>, StorageError> {
        answer(&self.page)
    }

    async fn put(&self, _key: &str, _data: &[u8]) -> Result<u64, StorageError> {
        Err(unexpected())
    }

    async fn put_if_version(&self, key: &str, data: &[u8], version: u64) -> Result<u64, StorageError> {
        let (backend, epoch) = self.changes.as_ref().ok_or_else(unexpected)?;
        let kind = CallKind::Replace { epoch: *epoch, is_tracked: false };
        let written = backend.compare_and_set(key, data, version, kind).await;
        Ok(written.map_err(|error| conflict_if_outdated(error, key, version))?.0)
    }

    async fn delete(&self, _key: &str) -> Result<bool, StorageError> {
        Err(unexpected())
    }

    async fn cleanup_expired(&self) -> Result<usize, StorageError> {
        Err(unexpected())
    }
}
