//! The changes of an owner's tasks: one waiter for the owner's index, and one for each task.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use pmcp_tasks::store::backend::{VersionedRecord, make_key};
use pmcp_tasks::{StorageError, TaskError, TaskRecord};
use tokio::sync::Notify;

use super::TaskStore;
use crate::waiting::OwnerWatch;

type Versions = Result<Vec<(String, u64)>, StorageError>;
type Changed = (String, Result<Option<VersionedRecord>, StorageError>);

struct Changes {
    store: TaskStore,
    owner: String,
    /// The owner's tasks, whenever one may have come or gone.
    lists: BoxStream<'static, Versions>,
    /// Makes the next list due.
    alarm: Arc<Notify>,
    /// The last version that was seen of each task.
    versions: HashMap<String, u64>,
    watched: HashSet<String>,
    tasks: FuturesUnordered<BoxFuture<'static, Changed>>,
}

pub(super) async fn of_owner(
    store: TaskStore,
    owner: String,
) -> Result<BoxStream<'static, Result<TaskRecord, TaskError>>, TaskError> {
    let watch = match OwnerWatch::new(&store.reader.backend, &owner) {
        Ok(watch) => watch,
        Err(error) => return Err(refused(&store, error.into()).await),
    };
    let alarm = watch.alarm();
    let mut lists =
        stream::unfold(watch, |mut watch| async move { Some((watch.next().await, watch)) }).boxed();
    let versions = match lists.next().await {
        Some(Ok(versions)) => versions,
        Some(Err(error)) => return Err(refused(&store, error).await),
        None => Vec::new(),
    };
    let (versions, watched) = (versions.into_iter().collect(), HashSet::new());
    let mut changes =
        Changes { store, owner, lists, alarm, versions, watched, tasks: FuturesUnordered::new() };
    changes.watch_all(changes.versions.clone().into_iter().collect());
    Ok(stream::unfold(changes, |mut changes| async move { Some((changes.next().await, changes)) }).boxed())
}

/// The error as upstream has it.
async fn refused(store: &TaskStore, error: StorageError) -> TaskError {
    match store.record("", "", Err(error)).await {
        Err(error) => error,
        Ok(_) => TaskError::NotFound { task_id: String::new() },
    }
}

impl Changes {
    async fn next(&mut self) -> Result<TaskRecord, TaskError> {
        loop {
            tokio::select! {
                Some((task_id, changed)) = self.tasks.next() => {
                    self.watched.remove(&task_id);
                    match changed {
                        Ok(None) => drop(self.versions.remove(&task_id)),
                        Ok(Some(record)) => {
                            self.versions.insert(task_id.clone(), record.version);
                            self.watch(task_id.clone(), record.version);
                            return self.store.record(&task_id, &self.owner, Ok(record)).await;
                        }
                        Err(error) => {
                            // The next list watches the task again.
                            self.alarm.notify_waiters();
                            return Err(refused(&self.store, error).await);
                        }
                    }
                }
                Some(versions) = self.lists.next() => match versions {
                    Ok(versions) => self.watch_all(versions),
                    Err(error) => return Err(refused(&self.store, error).await),
                },
            }
        }
    }

    /// Watches the listed tasks that are not watched yet: a new one from before its first version.
    fn watch_all(&mut self, listed: Vec<(String, u64)>) {
        let listed: HashSet<_> = listed.into_iter().map(|(task_id, _)| task_id).collect();
        self.versions.retain(|task_id, _| listed.contains(task_id) || self.watched.contains(task_id));
        for task_id in listed {
            if !self.watched.contains(&task_id) {
                let version = self.versions.get(&task_id).copied().unwrap_or(0);
                self.watch(task_id, version);
            }
        }
    }

    fn watch(&mut self, task_id: String, version: u64) {
        self.watched.insert(task_id.clone());
        let (reader, key) = (self.store.reader.clone(), make_key(&self.owner, &task_id));
        self.tasks.push(Box::pin(async move { (task_id, reader.changed(&key, version).await) }));
    }
}
