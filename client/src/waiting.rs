//! Waits for changes of tasks, without polling.

use std::future::pending;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::VersionedRecord;
use redis::{Cmd, Value};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, sleep, timeout};

use crate::backend::RedisBackend;
use crate::commands;
use crate::connection::{Request, Waiter};
use crate::error::{CallKind, Error};
use crate::observe;
use crate::replies;

/// How often a task is read that the server does not track.
const POLL: Duration = Duration::from_secs(1);
/// The shortest pause after wake-ups for nothing, without its jitter.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause. As much time without a wake-up makes up for one of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// No more wake-ups than this count: with them, the pause has its full length.
const MOST_COUNTED: f32 = 6.0;

/// Waiting for changes.
impl RedisBackend {
    /// Waits until the stored version of a task is another than `version`, and returns the task. None: the
    /// task is gone, or was never there. Returns at once if that is so already. To stop waiting, drop the
    /// future, for example with `tokio::time::timeout`.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pmcp_tasks::store::backend::StorageBackend;
    /// use pmcptask_client::RedisBackend;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
    /// # let url = server.url();
    /// let backend = RedisBackend::new(&url).await?;
    /// let version = backend.put("alice:t1", b"working").await?;
    ///
    /// let waiting = tokio::spawn({
    ///     let backend = backend.clone();
    ///     async move { backend.changed("alice:t1", version).await }
    /// });
    /// backend.put("alice:t1", b"completed").await?;
    /// let task = waiting.await??.expect("the task is there");
    /// assert_eq!((task.version, task.data), (2, b"completed".to_vec()));
    ///
    /// let limit = Duration::from_millis(10);
    /// assert!(tokio::time::timeout(limit, backend.changed("alice:t1", 2)).await.is_err());
    /// backend.delete("alice:t1").await?;
    /// assert!(backend.changed("alice:t1", 2).await?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The server tells of changes (RESP3 `CLIENT TRACKING`) on the connections that calls share. So waiting
    /// needs no connection, makes no requests, and can have any number of waiters. Every change of the task
    /// wakes its waiters: by this backend, by others, by plain commands such as `DEL` and `FLUSHALL`, by
    /// eviction. The task's expiry wakes them too, even if the server reclaims the task late. Where a change
    /// may have escaped a waiter, it reads the task again: after a lost connection, a failover, a move of
    /// slots.
    ///
    /// # Limits
    ///
    /// - A half-open connection, which was closed without the client being told, delays a wake-up by at most
    ///   [`keep_alive`](crate::RedisBackendBuilder::keep_alive) and
    ///   [`response_timeout`](crate::RedisBackendBuilder::response_timeout) together, and the time to reconnect.
    /// - The server also wakes a waiter when only the expiry changes, and when more keys are tracked than its
    ///   setting `tracking-table-max-keys` allows. The waiter then reads the task again, and waits on. If
    ///   that happens more than once a second, the waiter pauses before it reads, and sees a change up to 1 s
    ///   late.
    /// - If a slot or the primary moves, and the old server is silent, the client learns of the new one after up to
    ///   ten seconds in a cluster, and one with Sentinels.
    /// - A task whose key has lost its expiry (`PERSIST`) wakes its waiters when a command or a walk of the module
    ///   removes it.
    /// - A task that has ended and was created again may be at the same version again. The waiter then waits
    ///   on.
    /// - `SWAPDB` wakes nobody, because servers do not tell of it.
    /// - If the server cannot tell of changes, a waiter reads the task once a second: with RESP2
    ///   (`protocol=2` in the URL), with [`with_connection`](Self::with_connection), without permission for
    ///   `CLIENT TRACKING`, `CLIENT CACHING` or `PTTL`, and while the task is on its way to another node.
    /// - Each waiter reads for itself, also if many wait for the same task. 1,000 of a backend read at once; in a
    ///   cluster, a node that does not answer can take these turns until its reads time out. With the circuit breaker, a waiter
    ///   that reads while the breaker is open fails with [`Error::CircuitOpen`](crate::Error).
    /// - A waiter that was dropped leaves nothing at the client. At the server, the name of the key stays in
    ///   the table of tracked keys until the task changes or ends.
    ///
    /// # Errors
    ///
    /// Those of `get`. While the server is away, a waiter waits for it as long as any call does once its turn has
    /// come, and then fails. Calling again with the same version misses nothing.
    pub async fn changed(&self, key: &str, version: u64) -> Result<Option<VersionedRecord>, StorageError> {
        let is_news = |record: &VersionedRecord| record.version != version;
        match self.wait_until(key, &is_news, &|_| None).await? {
            Awaited::News(record) => Ok(record),
            // Nothing ends the wait.
            Awaited::End => Ok(None),
        }
    }

    /// Waits until a task is one that is news, or gone, or until the end that `end_for` names for a task that is none. The
    /// news are asked for of every record that is read.
    pub(crate) async fn wait_until(
        &self,
        key: &str,
        is_news: &(dyn Fn(&VersionedRecord) -> bool + Sync),
        end_for: &(dyn Fn(&VersionedRecord) -> Option<BoxFuture<'static, ()>> + Sync),
    ) -> Result<Awaited, StorageError> {
        let waiter = self.session().add_waiter(key)?;
        let (mut pauses, mut is_tracked) = (Pauses::default(), true);
        loop {
            let mut wake_up = pin!(waiter.wake_up());
            // From here on, no wake-up is missed: neither during the reads nor after them.
            wake_up.as_mut().enable();
            // Boxed, so that a future that waits takes little memory.
            let (limit, end) = match Box::pin(self.look(key, is_news, end_for, &waiter, is_tracked)).await? {
                Look::News(record) => return Ok(Awaited::News(record)),
                Look::Nothing { limit, end, is_tracked: now } => {
                    is_tracked = now;
                    (limit, end)
                }
            };
            let end = async {
                match end {
                    Some(end) => end.await,
                    None => pending().await,
                }
            };
            let wake_up = async {
                match limit {
                    // Too late is as good as a wake-up.
                    Some(limit) => drop(timeout(limit, wake_up).await),
                    None => wake_up.await,
                }
            };
            tokio::select! {
                () = end => return Ok(Awaited::End),
                () = wake_up => {}
            }
            let pause = pauses.next();
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    }

    /// Reads the task, and has the server track the key if there is nothing new. If the server tracks keys, the first read
    /// is not tracked: otherwise the server would keep the name of each task that has ended, for ever.
    async fn look(
        &self,
        key: &str,
        is_news: &(dyn Fn(&VersionedRecord) -> bool + Sync),
        end_for: &(dyn Fn(&VersionedRecord) -> Option<BoxFuture<'static, ()>> + Sync),
        waiter: &Waiter,
        can_be_tracked: bool,
    ) -> Result<Look, StorageError> {
        let _turn = waiter.turn_to_read().await;
        if can_be_tracked {
            let record = self.read(key, waiter, CallKind::PrimaryRead, replies::record).await?;
            if record.as_ref().is_none_or(is_news) {
                return Ok(Look::News(record));
            }
        }
        let read = self.read(key, waiter, CallKind::TrackedRead, replies::tracked_record).await?;
        let record = match read.record {
            Some(record) if !is_news(&record) => record,
            news => return Ok(Look::News(news)),
        };
        // Until the first millisecond at which the task is gone.
        let until_gone = read.expires_in.map(|left| left.saturating_add(Duration::from_millis(1)));
        let poll = (!read.is_tracked || !read.is_expiry_known).then_some(POLL);
        let limit = until_gone.into_iter().chain(poll).min();
        Ok(Look::Nothing { limit, end: end_for(&record), is_tracked: read.is_tracked })
    }

    /// Reads the task of a waiter.
    pub(crate) async fn read<T>(
        &self,
        key: &str,
        waiter: &Waiter,
        kind: CallKind,
        read_reply: fn(Value) -> Result<T, Error>,
    ) -> Result<T, StorageError> {
        observe::call("PMCPTASK.GET", key, || async move {
            let command = &commands::get(waiter.key());
            let request = Request { command, kind, key, routed_by: waiter.key() };
            self.session().call(&request, read_reply).await
        })
        .await
    }
}

/// Reads of an owner's tasks, whenever one may have come or gone.
pub(crate) struct OwnerWatch {
    backend: RedisBackend,
    owner: String,
    waiter: Waiter,
    pauses: Pauses,
    /// The next wake-up, from before the last read, and how long to wait for it at most.
    due: Option<(Pin<Box<OwnedNotified>>, Option<Duration>)>,
}

impl OwnerWatch {
    pub(crate) fn new(backend: &RedisBackend, owner: &str) -> Result<Self, Error> {
        let waiter = backend.session().add_waiter_of_owner(owner)?;
        let (pauses, due) = (Pauses::default(), None);
        Ok(Self { backend: backend.clone(), owner: owner.to_owned(), waiter, pauses, due })
    }

    pub(crate) fn backend(&self) -> &RedisBackend {
        &self.backend
    }

    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    pub(crate) fn index_key(&self) -> &str {
        self.waiter.key()
    }

    /// Makes the next read due.
    pub(crate) fn alarm(&self) -> Arc<Notify> {
        self.waiter.alarm()
    }

    /// The id and version of each task: at once the first time, later as soon as a task may have come or gone. Not to be dropped
    /// before it is done.
    pub(crate) async fn next(&mut self) -> Result<Vec<(String, u64)>, StorageError> {
        self.due().await;
        let command = commands::list_versions(self.index_key());
        self.read(&command, replies::tracked_versions).await
    }

    /// Waits until a task may have come or gone since the last read, or until the server, which tells nothing, has to be asked
    /// again. Returns at once before the first read. After a read that failed, returns at once too, but after a pause if there
    /// were others.
    pub(crate) async fn due(&mut self) {
        if let Some((wake_up, limit)) = self.due.take() {
            match limit {
                Some(limit) => drop(timeout(limit, wake_up).await),
                None => wake_up.await,
            }
            sleep(self.pauses.next()).await;
        }
    }

    /// Reads the index with a command whose reply says whether the server tells of the next change. Not to be left alone
    /// halfway: others wait for their turn to read.
    pub(crate) async fn read<T>(
        &mut self,
        command: &Cmd,
        read_reply: fn(Value) -> Result<(T, bool), Error>,
    ) -> Result<T, StorageError> {
        // From here on, no wake-up is missed.
        let wake_up = Box::pin(self.waiter.alarm().notified_owned());
        let _turn = self.waiter.turn_to_read().await;
        let read = observe::call("PMCPTASK.LIST", &self.owner, || async {
            let key = &[self.owner.as_str(), ":"].concat();
            let request = Request { command, kind: CallKind::TrackedList, key, routed_by: self.waiter.key() };
            self.backend.session().call(&request, read_reply).await
        })
        .await;
        let limit = match &read {
            Ok((_, is_tracked)) => (!is_tracked).then_some(POLL),
            Err(_) => Some(Duration::ZERO),
        };
        self.due = Some((wake_up, limit));
        read.map(|(read, _)| read)
    }

    /// What was read was for nothing, because a step after it failed: the next read is due at once.
    pub(crate) fn read_in_vain(&mut self) {
        if let Some((_, limit)) = &mut self.due {
            *limit = Some(Duration::ZERO);
        }
    }

    /// The last wake-up was not for nothing, nor were those before.
    pub(crate) fn read_news(&mut self) {
        self.pauses = Pauses::default();
    }
}

/// What ended a wait.
pub(crate) enum Awaited {
    /// The task, which is news, or none.
    News(Option<VersionedRecord>),
    /// The end that was named for the task.
    End,
}

/// What a waiter finds.
enum Look {
    /// Another task than that waited on, or no task.
    News(Option<VersionedRecord>),
    Nothing {
        /// How long to wait for a wake-up at most.
        limit: Option<Duration>,
        /// What else ends the wait.
        end: Option<BoxFuture<'static, ()>>,
        is_tracked: bool,
    },
}

/// The pauses of a waiter that is often woken for nothing.
struct Pauses {
    /// How many wake-ups for nothing count, less one for each second since.
    count: f32,
    last: Instant,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { count: 0.0, last: Instant::now() }
    }
}

impl Pauses {
    /// The pause after a wake-up. What it was for is not known yet, but all before were for nothing.
    fn next(&mut self) -> Duration {
        let forgotten = self.last.elapsed().div_duration_f32(LONGEST_PAUSE);
        let before = (self.count - forgotten).max(0.0);
        (self.count, self.last) = ((before + 1.0).min(MOST_COUNTED), Instant::now());
        if before <= 1.0 {
            return Duration::ZERO;
        }
        let pause = SHORTEST_PAUSE.mul_f32((before - 1.0).exp2()).min(LONGEST_PAUSE);
        // Many waiters that were woken at once do not all read at once.
        pause.mul_f32(1.0 - fastrand::f32() / 4.0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Wakes a waiter for nothing, each `every` after its pause, for `long`. Returns the
    /// pauses.
    async fn pauses(pauses: &mut Pauses, every: Duration, long: Duration) -> Vec<Duration> {
        let started = Instant::now();
        let mut all = Vec::new();
        while started.elapsed() < long {
            all.push(pauses.next());
            advance(all.last().copied().unwrap_or_default().saturating_add(every)).await;
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn frequent_wake_ups_for_nothing_cost_less_than_three_looks_in_two_seconds_and_pauses_of_a_second_at_most()
     {
        let all = pauses(&mut Pauses::default(), Duration::from_millis(1), Duration::from_mins(1)).await;
        assert!(all.iter().all(|pause| *pause <= LONGEST_PAUSE), "{all:?}");
        assert!(all.len() < 60 * 3 / 2, "{}", all.len());
    }

    #[tokio::test(start_paused = true)]
    async fn one_wake_up_a_second_is_never_followed_by_a_pause() {
        let all = pauses(&mut Pauses::default(), Duration::from_secs(1), Duration::from_mins(1)).await;
        assert!(all.iter().all(Duration::is_zero), "{all:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_time_ends_the_pauses() {
        let mut of_one = Pauses::default();
        let all = pauses(&mut of_one, Duration::from_millis(1), Duration::from_secs(20)).await;
        assert!(all.iter().take(2).all(Duration::is_zero), "{all:?}");
        advance(Duration::from_secs(6)).await;
        assert!(of_one.next().is_zero() && of_one.next().is_zero() && !of_one.next().is_zero());
    }
}
