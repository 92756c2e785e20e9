//! The changes of an owner's tasks: one waiter for the owner's index, and one for each task. A task of its own drives them, and
//! not the consumer of the stream: a read that is not driven would keep others from reading.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use pmcp_tasks::store::backend::{VersionedRecord, make_key};
use pmcp_tasks::{StorageError, TaskError, TaskRecord};
use tokio::sync::{Notify, mpsc};

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
    /// What the consumer has not taken yet: at most one record of each task, and one error.
    news: VecDeque<Result<(String, VersionedRecord), StorageError>>,
    /// There was an error since the last list.
    has_failed: bool,
}

pub(super) async fn of_owner(
    store: TaskStore,
    owner: String,
) -> Result<BoxStream<'static, Result<TaskRecord, TaskError>>, TaskError> {
    let watch = match OwnerWatch::new(&store.records.backend, &owner) {
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
    let mut changes = Changes {
        store,
        owner,
        lists,
        alarm,
        versions: versions.iter().cloned().collect(),
        watched: HashSet::new(),
        tasks: FuturesUnordered::new(),
        news: VecDeque::new(),
        has_failed: false,
    };
    changes.watch_all(versions);
    let (consumer, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = consumer.closed() => {}
            () = changes.drive(&consumer) => {}
        }
    });
    Ok(stream::unfold(stream, |mut stream| async move { Some((stream.recv().await?, stream)) }).boxed())
}

/// The error as upstream has it.
async fn refused(store: &TaskStore, error: StorageError) -> TaskError {
    match store.record("", "", Err(error)).await {
        Err(error) => error,
        Ok(_) => TaskError::NotFound { task_id: String::new() },
    }
}

impl Changes {
    /// Ends with the stream.
    async fn drive(&mut self, consumer: &mpsc::Sender<Result<TaskRecord, TaskError>>) {
        loop {
            tokio::select! {
                Some((task_id, changed)) = self.tasks.next() => match changed {
                    Ok(None) => {
                        self.watched.remove(&task_id);
                        self.versions.remove(&task_id);
                    }
                    Ok(Some(record)) => self.news.push_back(Ok((task_id, record))),
                    Err(error) => {
                        self.watched.remove(&task_id);
                        self.failed(error);
                        // The next list watches the task again.
                        self.alarm.notify_waiters();
                    }
                },
                Some(versions) = self.lists.next() => match versions {
                    Ok(versions) => {
                        self.has_failed = false;
                        self.watch_all(versions);
                    }
                    Err(error) => self.failed(error),
                },
                place = consumer.reserve(), if !self.news.is_empty() => {
                    let Ok(place) = place else { return };
                    match self.news.pop_front() {
                        Some(Ok((task_id, record))) => {
                            // Not before: one record of each task is enough to keep.
                            self.watch(task_id.clone(), record.version);
                            place.send(self.store.record(&task_id, &self.owner, Ok(record)).await);
                        }
                        Some(Err(error)) => place.send(Err(refused(&self.store, error).await)),
                        None => {}
                    }
                }
            }
        }
    }

    /// Many tasks meet one outage: their consumer is told once.
    fn failed(&mut self, error: StorageError) {
        if !std::mem::replace(&mut self.has_failed, true) {
            self.news.push_back(Err(error));
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
        self.versions.insert(task_id.clone(), version);
        let (records, key) = (self.store.records.clone(), make_key(&self.owner, &task_id));
        self.tasks.push(Box::pin(async move { (task_id, records.changed(&key, version).await) }));
    }
}
