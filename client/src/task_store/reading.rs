//! How the store reads. Every record that it gives out, or checks a transition against, comes from here, and is at the
//! primary unless a caller only looks at it. What is to be done with a record before anybody sees it has its place here.

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::VersionedRecord;

use super::cursor;
use super::known::Known;
use crate::backend::RedisBackend;
use crate::error::{CallKind, Error};
use crate::listing::{ListedTask, Order};

pub(super) struct Reader {
    pub(super) backend: RedisBackend,
    pub(super) known: Known,
}

/// A page of a list, newest first, and the cursor of the next one if there is one.
pub(super) struct Page {
    pub(super) tasks: Vec<(String, VersionedRecord)>,
    pub(super) next: Option<String>,
}

impl Reader {
    /// A task for somebody who looks at it.
    pub(super) async fn task(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        if self.known.is_near() { self.near_task(key).await } else { self.read(key, CallKind::Read).await }
    }

    /// The same for somebody who waits for a change. A replica could be behind.
    pub(super) async fn task_to_await(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        if self.known.is_near() { self.near_task(key).await } else { self.task_at_primary(key).await }
    }

    /// A task as the primary has it.
    pub(super) async fn task_at_primary(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        self.read(key, CallKind::PrimaryRead).await
    }

    /// The same for somebody who writes over it, in the epoch that began before this call.
    pub(super) async fn task_to_replace(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        self.read(key, CallKind::ReadToReplace).await
    }

    async fn read(&self, key: &str, kind: CallKind) -> Result<VersionedRecord, StorageError> {
        let read = self.backend.read_record(key, kind).await;
        read.map_err(|error| match Error::of(&error) {
            // A client may ask for any task id, also an empty one.
            Some(Error::Key(_)) => StorageError::NotFound { key: key.to_owned() },
            _ => error,
        })
    }

    /// A task once it is at another version than this; None once it is gone.
    pub(super) async fn changed(
        &self,
        key: &str,
        version: u64,
    ) -> Result<Option<VersionedRecord>, StorageError> {
        self.wait_until(key, &|record| record.version != version).await
    }

    /// A task once it is one that is news; None once it is gone.
    pub(super) async fn wait_until(
        &self,
        key: &str,
        is_news: &(dyn Fn(&VersionedRecord) -> bool + Sync),
    ) -> Result<Option<VersionedRecord>, StorageError> {
        match self.backend.wait_until(key, is_news).await {
            // A client may ask for any task id, also an empty one.
            Err(error) if matches!(Error::of(&error), Some(Error::Key(_))) => Ok(None),
            record => record,
        }
    }

    pub(super) async fn page(
        &self,
        owner: &str,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, StorageError> {
        let after = cursor.map(cursor::position).transpose()?;
        // One more than the page, to know whether there is a next one.
        let count = limit.saturating_add(1);
        let mut tasks = self.backend.list_page(owner, after.as_ref(), count, Order::NewestFirst).await?;
        let next = if tasks.len() > limit {
            tasks.truncate(limit);
            tasks.last().map(|last| cursor::of(&last.position()))
        } else {
            None
        };
        let with_key = |task: ListedTask| (format!("{owner}:{}", task.task_id), task.record);
        Ok(Page { tasks: tasks.into_iter().map(with_key).collect(), next })
    }
}
