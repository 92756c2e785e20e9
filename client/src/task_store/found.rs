//! What upstream's store reads from, once a record or page was read.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::{StorageBackend, VersionedRecord};

/// One answer. Each read of upstream's store asks once.
pub(super) struct Found {
    task: Answer<VersionedRecord>,
    page: Answer<Vec<(String, VersionedRecord)>>,
}

type Answer<T> = Mutex<Option<Result<T, StorageError>>>;

impl Found {
    pub(super) fn task(task: Result<VersionedRecord, StorageError>) -> Self {
        Self { task: Mutex::new(Some(task)), page: Mutex::default() }
    }

    pub(super) fn nothing() -> Self {
        Self { task: Mutex::default(), page: Mutex::default() }
    }

    pub(super) fn page(page: Result<Vec<(String, VersionedRecord)>, StorageError>) -> Self {
        Self { task: Mutex::default(), page: Mutex::new(Some(page)) }
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

    async fn put_if_version(&self, _key: &str, _data: &[u8], _version: u64) -> Result<u64, StorageError> {
        Err(unexpected())
    }

    async fn delete(&self, _key: &str) -> Result<bool, StorageError> {
        Err(unexpected())
    }

    async fn cleanup_expired(&self) -> Result<usize, StorageError> {
        Err(unexpected())
    }
}
