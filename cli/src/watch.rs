//! `watch`: the changes of an owner's tasks as they come. The server tells of them, so nothing is polled.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use pmcp_tasks::store::backend::make_key;
use pmcp_tasks::{StorageError, TaskStatus, VersionedRecord};
use pmcptask_client::{ListedEntry, ListedTask, Order, RedisBackend};
use serde::Serialize;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::failure::Failure;
use crate::output::{Output, Row};
use crate::printable::{in_line, say};
use crate::record::Summary;
use crate::servers::Servers;
use crate::tasks::status_name;
use crate::times::{now_ms, time, timestamp};

/// After a failure, which usually means that the server is away.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Change<'a> {
    at: Option<String>,
    owner: &'a str,
    id: &'a str,
    /// The task has been deleted, or has expired.
    gone: bool,
    status: Option<TaskStatus>,
    version: Option<u64>,
    #[serde(skip)]
    at_ms: i64,
}

impl<'a> Change<'a> {
    fn new(owner: &'a str, id: &'a str, record: Option<&VersionedRecord>) -> Self {
        let at_ms = now_ms();
        Self {
            at: timestamp(at_ms),
            owner,
            id,
            gone: record.is_none(),
            status: record.and_then(|record| Summary::of(&record.data).status),
            version: record.map(|record| record.version),
            at_ms,
        }
    }
}

impl Row for Change<'_> {
    fn header() -> Option<String> {
        Some(format!("{:<20}  {:<36}  {:<14}  {:>7}", "AT", "ID", "STATUS", "VERSION"))
    }

    fn line(&self) -> String {
        let status = if self.gone { "gone".to_owned() } else { status_name(self.status) };
        let version = self.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
        format!("{:<20}  {:<36}  {status:<14}  {version:>7}", time(self.at_ms), in_line(self.id))
    }
}

/// Follows the `most` newest tasks, and those that come. Ends only with its output.
pub(crate) async fn watch(
    servers: &Servers,
    owner: &str,
    most: usize,
    output: &mut Output,
) -> Result<(), Failure> {
    let backend = servers.backend().await?;
    let newest = backend.list_entries(owner, None, most, Order::NewestFirst).await?;
    let position = newest.first().map(ListedEntry::position);
    let mut coming = backend.tail(owner, position.as_ref()).await?;
    let mut watched = Watched::new(backend, owner, most);
    for task in newest.into_iter().rev() {
        watched.add(task.task_id, task.version);
    }
    say(&format!("watching {} tasks of {}, and those that come", watched.tasks.len(), in_line(owner)));
    let mut has_failed = false;
    while let Some(news) = next_of(&mut coming, &mut watched.changes).await {
        match watched.take(news) {
            Ok(Some((id, record))) => {
                has_failed = false;
                output.row(&Change::new(owner, &id, record.as_ref()))?;
                output.flush()?;
            }
            Ok(None) => {}
            // All tasks meet one outage.
            Err(failure) => {
                if !std::mem::replace(&mut has_failed, true) {
                    say(&format!("pmcptask: {failure}; watching goes on"));
                }
            }
        }
    }
    Err(Failure::TailEnded)
}

enum News {
    Came(Result<ListedTask, StorageError>),
    Changed(Followed),
}

/// A task, the version that was known of it, and what has become of it.
type Followed = (String, u64, Result<Option<VersionedRecord>, StorageError>);

/// None: the stream of tasks that come has ended, which it does not do.
async fn next_of(
    coming: &mut BoxStream<'static, Result<ListedTask, StorageError>>,
    changes: &mut JoinSet<Followed>,
) -> Option<News> {
    loop {
        tokio::select! {
            task = coming.next() => return task.map(News::Came),
            // A task that was given up ends with an error.
            Some(followed) = changes.join_next() => if let Ok(followed) = followed {
                return Some(News::Changed(followed));
            }
        }
    }
}

struct Watched {
    backend: RedisBackend,
    owner: String,
    most: usize,
    /// The oldest first.
    tasks: VecDeque<(String, AbortHandle)>,
    changes: JoinSet<Followed>,
}

impl Watched {
    fn new(backend: RedisBackend, owner: &str, most: usize) -> Self {
        Self { backend, owner: owner.to_owned(), most, tasks: VecDeque::new(), changes: JoinSet::new() }
    }

    /// Follows a task from this version on, instead of the oldest one if there are enough.
    fn add(&mut self, id: String, version: u64) {
        self.forget(&id);
        if self.tasks.len() >= self.most
            && let Some((_, oldest)) = self.tasks.pop_front()
        {
            oldest.abort();
        }
        let follower = self.follow(id.clone(), version, Duration::ZERO);
        self.tasks.push_back((id, follower));
    }

    fn forget(&mut self, id: &str) {
        if let Some(at) = self.tasks.iter().position(|(task, _)| task == id)
            && let Some((_, follower)) = self.tasks.remove(at)
        {
            follower.abort();
        }
    }

    fn follow(&mut self, id: String, version: u64, pause: Duration) -> AbortHandle {
        let (backend, key) = (self.backend.clone(), make_key(&self.owner, &id));
        self.changes.spawn(async move {
            sleep(pause).await;
            let changed = backend.changed(&key, version).await;
            (id, version, changed)
        })
    }

    fn follow_on(&mut self, id: &str, version: u64, pause: Duration) {
        let follower = self.follow(id.to_owned(), version, pause);
        if let Some((_, last)) = self.tasks.iter_mut().find(|(task, _)| task == id) {
            *last = follower;
        } else {
            // It was given up just when it changed.
            follower.abort();
        }
    }

    /// The change that the news tell of, if it is one.
    fn take(&mut self, news: News) -> Result<Option<(String, Option<VersionedRecord>)>, Failure> {
        match news {
            News::Came(task) => {
                let task = task?;
                self.add(task.task_id.clone(), task.record.version);
                Ok(Some((task.task_id, Some(task.record))))
            }
            News::Changed((id, _, Ok(Some(record)))) => {
                self.follow_on(&id, record.version, Duration::ZERO);
                Ok(Some((id, Some(record))))
            }
            News::Changed((id, _, Ok(None))) => {
                self.forget(&id);
                Ok(Some((id, None)))
            }
            News::Changed((id, version, Err(error))) => {
                self.follow_on(&id, version, PAUSE);
                Err(error.into())
            }
        }
    }
}
