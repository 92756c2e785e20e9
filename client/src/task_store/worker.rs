//! [`Worker`]: who works on a task.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use pmcp::types::CallToolResult;
use pmcp_tasks::store::backend::{VersionedRecord, make_key};
use pmcp_tasks::{ServerTaskStore, StorageError, TaskError, TaskRecord, TaskStatus};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::TaskStore;
use super::attempt::Attempt;
use super::failing::{self, DROPPED};
use super::mark::{Mark, VARIABLE};
use super::process_leases::ProcessLease;
use crate::waiting::Awaited;

/// The pause before a read or a write that failed is made again in the background.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a worker could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// Another worker works on the task. Nothing was changed.
    #[error("task {task_id} has another worker")]
    #[non_exhaustive]
    Taken {
        /// The task's id.
        task_id: String,
    },
    /// The worker is not the task's worker any more: its process could not renew its lease in time. The task has
    /// failed, or will fail when somebody looks at it. Nothing was changed.
    #[error("the worker of task {task_id} has lost its lease")]
    #[non_exhaustive]
    Lost {
        /// The task's id.
        task_id: String,
    },
    /// The store refused or failed. [`TaskError::InvalidTransition`] from `cancelled`: somebody cancelled the task.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The lease of the process could not be acquired. All who waited for it at the same time share the error.
    #[error("no lease for a worker: {0}")]
    Lease(#[source] Arc<StorageError>),
}

/// Working on tasks.
impl TaskStore {
    /// Begins to work on a task. One task has one worker: while it lives, others are refused.
    ///
    /// ```
    /// use pmcp::server::task_store::TaskStore as _;
    /// use pmcp::types::{CallToolResult, Content};
    /// use pmcptask_client::{RedisBackend, TaskStore, WorkerError};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
    /// # let url = server.url();
    /// let store = TaskStore::new(RedisBackend::new(&url).await?);
    /// let id = store.create("alice", None).await?.task_id;
    ///
    /// let worker = store.work_on(&id, "alice").await?;
    /// assert!(matches!(store.work_on(&id, "alice").await, Err(WorkerError::Taken { .. })));
    /// let work = async {
    ///     worker.progress("half done").await?;
    ///     Ok::<_, WorkerError>(CallToolResult::new(vec![Content::text("42")]))
    /// };
    /// tokio::select! {
    ///     () = worker.cancelled() => {}
    ///     result = work => match result {
    ///         Ok(result) => worker.complete(result).await?,
    ///         Err(error) => worker.fail(&error.to_string()).await?,
    ///     },
    /// }
    /// assert_eq!(store.get_result(&id, "alice").await?.content.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// All workers of a process with one store share a [`Lease`](crate::Lease), which the process renews in the background.
    /// If the process dies, the lease ends, by the server's clock, within
    /// [`with_worker_lease`](Self::with_worker_lease). Whoever then reads, lists or waits for the task with a [`TaskStore`]
    /// sees it failed, and those who wait are woken. Somebody has to look: the server does not fail tasks by itself, and other
    /// stores show such a task as it was. Tasks without a worker stay as they are.
    ///
    /// Costs one round trip, or two if the task was not changed by this store before; the first worker of a process costs
    /// three more for the lease. The lease costs the process one `PEXPIRE` for each third of its duration, and each store that
    /// looks at tasks with workers one `PTTL` for each duration. Users need the permissions of
    /// [`Lease`](crate::Lease) and `+pttl`.
    ///
    /// The worker is a variable of the task, `pmcptask.worker`. `pmcp`'s tasks do not show variables. `pmcp_tasks::TaskStore`
    /// does, so clients see this variable where a server sends variables, as the router of `pmcp-tasks` does. It names the
    /// lease, and gives nobody a right. Code that removes it takes the task from its worker.
    ///
    /// What loses a lease at the server (see [`Lease`](crate::Lease): a failover to a replica without it, a deletion, an
    /// eviction) also fails the tasks of workers that live, once somebody looks at these tasks. Their workers learn of it at the
    /// next renewal or write. If a failover loses the worker in the task instead, the task stays as it is until somebody
    /// works on it: its worker writes nothing more. [`wait_for_replicas`](crate::RedisBackendBuilder::wait_for_replicas) makes
    /// both less likely.
    ///
    /// Call it on the tokio runtime that lives as long as the work: the lease is renewed there.
    ///
    /// # Errors
    ///
    /// [`WorkerError::Taken`]; [`TaskError::InvalidTransition`] for a task that is terminal, also because its worker has died;
    /// [`WorkerError::Lease`]; [`WorkerError::Lost`] if the lease was lost meanwhile; those of `set_variables`.
    pub async fn work_on(&self, task_id: &str, owner_id: &str) -> Result<Worker, WorkerError> {
        let lease = self.records.leases.own().await.map_err(WorkerError::Lease)?;
        let mark = Mark { lease: lease.key.clone(), worker: fastrand::u32(..) };
        // From here on, an error or a drop leaves no task with a mark and nobody who works on it.
        let worker = Worker {
            work: Arc::new(Work {
                store: self.clone(),
                task_id: task_id.to_owned(),
                owner_id: owner_id.to_owned(),
                mark,
                lease: Arc::downgrade(&lease),
            }),
            lease,
            is_done: AtomicBool::new(false),
            stopped: watch::Sender::new(false),
            runtime: Handle::current(),
        };
        let (task, kept) = (&worker.work, &worker.lease);
        let begun = self
            .change(|store| async move {
                let record = task.read(&store).await?;
                if !kept.is_valid() {
                    return Err(task.lost());
                }
                if record.task.status.is_terminal() {
                    record.task.status.validate_transition(task_id, &TaskStatus::Working)?;
                }
                if Mark::of(&record).is_some() {
                    return Err(WorkerError::Taken { task_id: task_id.to_owned() });
                }
                let mark = HashMap::from([(VARIABLE.to_owned(), task.mark.to_json())]);
                Ok(store.inner().set_variables(task_id, owner_id, mark).await?)
            })
            .await;
        match begun {
            Ok(_) => Ok(worker),
            Err(error) => {
                // Only a failure can have left a mark.
                let is_refusal = !matches!(&error, WorkerError::Task(TaskError::StoreError(_)));
                worker.is_done.store(is_refusal, Ordering::SeqCst);
                Err(error)
            }
        }
    }
}

/// Works on a task: the only one to do so, from [`TaskStore::work_on`].
///
/// A worker that is dropped before the task is terminal fails the task, in the background: for example when the code that works
/// panics or returns early.
pub struct Worker {
    work: Arc<Work>,
    /// Has the process keep its lease.
    lease: Arc<ProcessLease>,
    /// The task is known to be terminal, or not this worker's.
    is_done: AtomicBool,
    /// A write has met what [`Worker::cancelled`] waits for.
    stopped: watch::Sender<bool>,
    runtime: Handle,
}

/// A task that is worked on.
struct Work {
    store: TaskStore,
    task_id: String,
    owner_id: String,
    mark: Mark,
    lease: Weak<ProcessLease>,
}

impl Worker {
    /// The id of the task.
    #[must_use]
    pub fn task_id(&self) -> &str {
        &self.work.task_id
    }

    /// The owner of the task.
    #[must_use]
    pub fn owner_id(&self) -> &str {
        &self.work.owner_id
    }

    /// Sets the task's status message. One round trip in the usual case.
    ///
    /// # Errors
    ///
    /// [`WorkerError::Lost`]; [`TaskError::InvalidTransition`] if somebody cancelled the task; those of `set_status_message`.
    pub async fn progress(&self, message: impl Into<String>) -> Result<(), WorkerError> {
        let message = &message.into();
        let written = self.work.write(|store, task| async move {
            let message = Some(message.clone());
            store.inner().set_status_message(&task.task_id, &task.owner_id, message).await
        });
        self.noted(written.await)
    }

    /// Completes the task with a result, both in one write: a task that was cancelled before gets no result.
    ///
    /// # Errors
    ///
    /// [`WorkerError::Lost`]; [`TaskError::InvalidTransition`] if somebody cancelled the task; those of
    /// `complete_with_result`. After another error, call again: if the outcome is unknown and the task was completed, the
    /// second call fails with [`TaskError::InvalidTransition`].
    pub async fn complete(&self, result: CallToolResult) -> Result<(), WorkerError> {
        let result = serde_json::to_value(result)
            .map_err(|error| TaskError::StoreError(format!("the result is not JSON: {error}")))?;
        let result = &result;
        let written = self.work.write(|store, task| async move {
            let (status, result) = (TaskStatus::Completed, result.clone());
            store.inner().complete_with_result(&task.task_id, &task.owner_id, status, None, result).await
        });
        self.ended(written.await)
    }

    /// Fails the task. The message is the task's status message and, for clients of 2026-07-28, its error.
    ///
    /// # Errors
    ///
    /// [`WorkerError::Lost`]; [`TaskError::InvalidTransition`] if somebody cancelled the task; those of `update_status`. After
    /// another error, call again, as with [`complete`](Self::complete).
    pub async fn fail(&self, message: impl Into<String>) -> Result<(), WorkerError> {
        let message = &message.into();
        let written = self.work.write(|store, task| async move { task.fail(&store, message).await });
        self.ended(written.await)
    }

    /// Resolves once there is no more to do: somebody cancelled the task, with any store or backend, at any server; or the
    /// worker has lost its lease; or the task is terminal or gone otherwise. Then stop: nothing can be written any more.
    ///
    /// Costs two reads to start to wait, and none while the task stays as it is: see
    /// [`RedisBackend::changed`](crate::RedisBackend::changed). The worker's own messages cost two reads each, up to about two
    /// a second. If there are more messages, a message that fails resolves this too.
    pub async fn cancelled(&self) {
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            () = self.lease.loss() => {}
            () = self.work.end() => {}
            // The sender lives as long as the worker.
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    }

    fn ended(&self, written: Result<(), WorkerError>) -> Result<(), WorkerError> {
        if written.is_ok() {
            self.stop();
        }
        self.noted(written)
    }

    fn noted(&self, written: Result<(), WorkerError>) -> Result<(), WorkerError> {
        if written.as_ref().is_err_and(is_final) {
            self.stop();
        }
        written
    }

    fn stop(&self) {
        self.is_done.store(true, Ordering::SeqCst);
        self.stopped.send_replace(true);
    }
}

/// True for an error after which the worker can write no more.
fn is_final(error: &WorkerError) -> bool {
    matches!(
        error,
        WorkerError::Lost { .. }
            | WorkerError::Task(
                TaskError::InvalidTransition { .. } | TaskError::NotFound { .. } | TaskError::Expired { .. }
            )
    )
}

impl Work {
    /// Reads the task that a change is made over.
    async fn read(&self, store: &ServerTaskStore<Attempt>) -> Result<TaskRecord, TaskError> {
        let record = store.inner().backend().peek(&make_key(&self.owner_id, &self.task_id)).await;
        self.store.record(&self.task_id, &self.owner_id, record).await
    }

    /// Fails the task that was read.
    async fn fail(&self, store: &ServerTaskStore<Attempt>, message: &str) -> Result<TaskRecord, TaskError> {
        store.inner().backend().amend(|record| failing::with_error(record, message));
        let (status, message) = (TaskStatus::Failed, Some(message.to_owned()));
        store.inner().update_status(&self.task_id, &self.owner_id, status, message).await
    }

    /// Makes a change if the worker is the task's, and has not lost its lease. A worker that stands still after its look at the
    /// clock changes nothing either if somebody has failed the task meanwhile, because the version is another then. If nobody
    /// has looked at the task, the worker still has it, and the change is made.
    async fn write<F>(
        self: &Arc<Self>,
        change: impl Fn(ServerTaskStore<Attempt>, Arc<Self>) -> F,
    ) -> Result<(), WorkerError>
    where
        F: Future<Output = Result<TaskRecord, TaskError>>,
    {
        let change = &change;
        self.store
            .change(|store| async move {
                if !self.has_lease() {
                    return Err(self.lost());
                }
                let record = self.read(&store).await?;
                if Mark::of(&record).as_ref() != Some(&self.mark) {
                    return Err(self.lost());
                }
                change(store, self.clone()).await?;
                Ok(())
            })
            .await
    }

    fn has_lease(&self) -> bool {
        self.lease.upgrade().is_some_and(|lease| lease.is_valid())
    }

    fn lost(&self) -> WorkerError {
        WorkerError::Lost { task_id: self.task_id.clone() }
    }

    /// Resolves once the task is not one that this worker works on.
    async fn end(&self) {
        let key = make_key(&self.owner_id, &self.task_id);
        let is_end =
            |record: &VersionedRecord| Mark::of_unfinished(&record.data).as_ref() != Some(&self.mark);
        loop {
            match self.store.records.backend.wait_until(&key, &is_end, &|_| None).await {
                Ok(Awaited::News(_)) => return,
                // The server is away. If it stays away, the lease is lost.
                Ok(Awaited::End) | Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Fails the task of a worker that was dropped. The process keeps its lease for the duration of one because of that, and no
    /// longer unless it has other workers: once the lease is over, whoever looks at the task fails it.
    async fn fail_dropped(self: Arc<Self>, lease: Arc<ProcessLease>) {
        let (begun, mut lease) = (Instant::now(), Some(lease));
        while let Err(error) = self.try_to_fail().await {
            if is_final(&error) || !self.has_lease() {
                return;
            }
            if begun.elapsed() >= self.store.records.leases.duration {
                drop(lease.take());
            }
            sleep(PAUSE).await;
        }
    }

    async fn try_to_fail(&self) -> Result<(), WorkerError> {
        let (task_id, owner_id) = (&self.task_id, &self.owner_id);
        self.store
            .change(|store| async move {
                let record = self.read(&store).await?;
                match Mark::of(&record) {
                    Some(mark) if mark == self.mark => {
                        self.fail(&store, DROPPED).await?;
                    }
                    None if !record.task.status.is_terminal() => {
                        // The mark may be on its way. Over another version, it meets a conflict.
                        let no_mark = HashMap::from([(VARIABLE.to_owned(), Value::Null)]);
                        store.inner().set_variables(task_id, owner_id, no_mark).await?;
                    }
                    // The mark was on its way, and came too late.
                    _ => {}
                }
                Ok(())
            })
            .await
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !*self.is_done.get_mut() {
            self.runtime.spawn(self.work.clone().fail_dropped(self.lease.clone()));
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("task_id", &self.work.task_id)
            .field("owner_id", &self.work.owner_id)
            .finish_non_exhaustive()
    }
}
