//! The records of tasks. Every record that the store gives out, or checks a transition against, is read here, at the
//! primary unless a caller only looks at the task. What is to be done with a record before anybody sees it has its place here.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::VersionedRecord;
use tokio::time::sleep;

use super::cursor;
use super::known::Known;
use super::mark::Mark;
use super::process_leases::ProcessLeases;
use crate::backend::RedisBackend;
use crate::error::{CallKind, Error};
use crate::listing::{ListedTask, Order};
use crate::waiting::Awaited;

/// The pause before a task is looked at again whose worker has died, and which this user cannot change.
const PAUSE: Duration = Duration::from_secs(1);
/// How many tasks of a list are looked after at once.
const AT_ONCE: usize = 64;

pub(super) struct Records {
    pub(super) backend: RedisBackend,
    pub(super) known: Known,
    pub(super) leases: Arc<ProcessLeases>,
    pub(super) settings: Settings,
}

#[derive(Clone, Copy)]
pub(super) struct Settings {
    /// How many bytes the last known records take at most.
    pub(super) memory: usize,
    /// Whether reads are answered from memory.
    pub(super) is_near: bool,
    /// How long the lease of this process lasts without a renewal.
    pub(super) worker_lease: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { memory: 16 << 20, is_near: false, worker_lease: Duration::from_secs(15) }
    }
}

/// A page of a list, newest first, and the cursor of the next one if there is one.
pub(super) struct Page {
    pub(super) tasks: Vec<(String, VersionedRecord)>,
    pub(super) next: Option<String>,
}

impl Records {
    pub(super) fn new(backend: RedisBackend, settings: Settings) -> Self {
        // Nothing is remembered if nobody would notice that the connection leads to another server.
        let memory = if backend.session().has_epochs() { settings.memory } else { 0 };
        let known = Known::new(memory);
        let leases = Arc::new(ProcessLeases::new(backend.clone(), settings.worker_lease));
        Self { backend, known, leases, settings }
    }

    /// A task for somebody who looks at it.
    pub(super) async fn task(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        if self.settings.is_near { self.near_task(key).await } else { self.read(key, CallKind::Read).await }
    }

    /// The same for somebody who waits for a change. A replica could be behind.
    pub(super) async fn task_to_await(&self, key: &str) -> Result<VersionedRecord, StorageError> {
        if self.settings.is_near { self.near_task(key).await } else { self.task_at_primary(key).await }
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
        match self.backend.read_record(key, kind).await {
            Ok(record) => self.judged(key, record).await,
            // A client may ask for any task id, also an empty one.
            Err(error) if matches!(Error::of(&error), Some(Error::Key(_))) => {
                Err(StorageError::NotFound { key: key.to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    /// The record, or the failed one if its worker has died.
    pub(super) async fn judged(
        &self,
        key: &str,
        record: VersionedRecord,
    ) -> Result<VersionedRecord, StorageError> {
        match Mark::of_unfinished(&record.data) {
            // Boxed, because few tasks are like this.
            Some(mark) => Box::pin(self.leases.fail_if_dead(key, record, mark)).await,
            None => Ok(record),
        }
    }

    /// A task once it is at another version than this; None once it is gone. A task whose worker dies fails.
    pub(super) async fn changed(
        &self,
        key: &str,
        version: u64,
    ) -> Result<Option<VersionedRecord>, StorageError> {
        self.wait_until(key, &|record| record.version != version).await
    }

    /// A task once it is one that is news; None once it is gone. A task whose worker dies fails.
    pub(super) async fn wait_until(
        &self,
        key: &str,
        is_news: &(dyn Fn(&VersionedRecord) -> bool + Sync),
    ) -> Result<Option<VersionedRecord>, StorageError> {
        let death = |record: &VersionedRecord| {
            let (leases, mark) = (self.leases.clone(), Mark::of_unfinished(&record.data)?);
            Some(async move { leases.death_of(&mark).await }.boxed())
        };
        loop {
            let record = match self.backend.wait_until(key, is_news, &death).await {
                // A client may ask for any task id, also an empty one.
                Err(error) if matches!(Error::of(&error), Some(Error::Key(_))) => return Ok(None),
                Err(error) => return Err(error),
                Ok(Awaited::News(None)) => return Ok(None),
                Ok(Awaited::News(Some(record))) => self.judged(key, record).await,
                Ok(Awaited::End) => self.task_at_primary(key).await,
            };
            match record {
                Err(StorageError::NotFound { .. }) => return Ok(None),
                // The task could not be failed, or the lease came back.
                Ok(record) if !is_news(&record) => sleep(PAUSE).await,
                news => return news.map(Some),
            }
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
        let judged = |task: ListedTask| async move {
            let key = format!("{owner}:{}", task.task_id);
            let record = self.judged(&key, task.record).await;
            (key, record)
        };
        let tasks: Vec<_> = stream::iter(tasks).map(judged).buffered(AT_ONCE).collect().await;
        // A task that has ended meanwhile is left out.
        let is_there = |(key, record): (String, Result<_, _>)| match record {
            Err(StorageError::NotFound { .. }) => None,
            record => Some(record.map(|record| (key, record))),
        };
        Ok(Page { tasks: tasks.into_iter().filter_map(is_there).collect::<Result<_, _>>()?, next })
    }
}
