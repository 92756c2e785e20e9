//! The tasks of an owner that come, one after the other.

use std::collections::VecDeque;
use std::vec;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use pmcp_tasks::StorageError;

use crate::backend::RedisBackend;
use crate::commands;
use crate::listing::{ListedEntry, ListedTask, Order, TaskPosition};
use crate::replies;
use crate::waiting::OwnerWatch;

/// How many tasks are read by one list, and how many of the last ones are remembered.
const PAGE: usize = 100;

/// Following an owner.
impl RedisBackend {
    /// An owner's tasks behind a position, or all of them, in order of creation: those that are there, and then each new
    /// one as soon as it comes. A write over a task that is there is no news.
    ///
    /// ```
    /// use futures_util::StreamExt as _;
    /// use pmcp_tasks::store::backend::StorageBackend as _;
    /// use pmcptask_client::{Order, RedisBackend, WriteTerms};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
    /// # let url = server.url();
    /// let backend = RedisBackend::new(&url).await?;
    /// let newest = WriteTerms::new().newest();
    /// backend.put_with("alice:t1", b"one", &newest).await?;
    ///
    /// let last = backend.list_page("alice", None, 1, Order::NewestFirst).await?;
    /// let mut new_ones = backend.tail("alice", last.first().map(|task| task.position()).as_ref()).await?;
    /// backend.put_with("alice:t2", b"two", &newest).await?;
    /// let task = new_ones.next().await.expect("the stream does not end")?;
    /// assert_eq!((task.task_id.as_str(), task.record.data.as_slice()), ("t2", &b"two"[..]));
    ///
    /// let all = backend.tail("alice", None).await?;
    /// let ids: Vec<_> = all.take(2).map(|task| task.map(|task| task.task_id)).collect().await;
    /// assert_eq!(ids.into_iter().collect::<Result<Vec<_>, _>>()?, ["t1", "t2"]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Tasks that are written with [`WriteTerms::newest`](crate::WriteTerms::newest) are yielded once each, in the order of
    /// their writes, and none is missed, whatever happens to the connection or the server. One that has ended before it was read
    /// is left out.
    ///
    /// The stream costs one `PMCPTASK.LIST … NODATA` to begin with, none without a position. At the first poll, and whenever a task
    /// has come or gone, it costs two round trips, three more if the last task has gone: a `PMCPTASK.LIST` of up to 100 tasks behind the last one, O(log n + new tasks), n tasks of the
    /// owner, and a `PMCPTASK.LIST … NODATA` that shows whether the last one is still there. It makes no requests
    /// while nothing changes, and while it is not polled. The stream ends with the runtime that it is polled on, and not before.
    /// When it is dropped, nothing is left at the client once a read that is on its way has ended.
    ///
    /// # Limits
    ///
    /// - A task that comes with an earlier creation time than what was yielded is left out. With
    ///   [`WriteTerms::newest`](crate::WriteTerms::newest) there is none.
    /// - If the last task has gone, an earlier creation time can be right for a new one, if the server's clock is behind the last
    ///   one's. So the stream goes back to the newest task that is left of the last 100 that were yielded or came before. If none
    ///   of these is left, it goes on with the owner's oldest task: then it can yield tasks a second time, if more
    ///   than 100 of the newest ones have gone at once and older ones stay.
    /// - If tasks go more often than once a second, the stream pauses before it reads, and yields a new task up to 1 s late.
    /// - If the server cannot tell of changes, the stream reads once a second: with RESP2, with
    ///   [`with_connection`](Self::with_connection), without permission for `CLIENT TRACKING` or `CLIENT CACHING`, and while the
    ///   owner's slot is on its way to another node. [`changed`](Self::changed) says what else can delay a wake-up. `SWAPDB` wakes
    ///   nobody.
    /// - At the server, the name of the owner's index stays in the table of tracked keys until the index changes.
    ///
    /// # Errors
    ///
    /// Those of `list_by_prefix`; also of the stream's items. An error does not end the stream: it goes on once the server is
    /// back, after a pause of at most 1 s, and misses nothing. After an error, none follows until the tasks could be read again.
    pub async fn tail(
        &self,
        owner: &str,
        after: Option<&TaskPosition>,
    ) -> Result<BoxStream<'static, Result<ListedTask, StorageError>>, StorageError> {
        let mut tail = Tail {
            watch: OwnerWatch::new(self, owner)?,
            seen: VecDeque::new(),
            before_seen: None,
            page: Vec::new().into_iter(),
            has_more: false,
            has_failed: false,
        };
        if let Some(after) = after {
            let before = tail.positions(Some(after), PAGE, Order::NewestFirst).await?;
            tail.see(before.into_iter().rev());
            tail.see([after.clone()]);
        }
        Ok(stream::unfold(tail, Tail::next).fuse().boxed())
    }
}

struct Tail {
    watch: OwnerWatch,
    /// The last tasks up to the one that is to be read on behind, in order.
    seen: VecDeque<TaskPosition>,
    /// What they come behind. None: they are all that there was.
    before_seen: Option<TaskPosition>,
    /// What the consumer has not taken yet.
    page: vec::IntoIter<ListedTask>,
    /// There may be more than the page.
    has_more: bool,
    /// There was an error since the last page.
    has_failed: bool,
}

impl Tail {
    async fn next(mut self) -> Option<(Result<ListedTask, StorageError>, Self)> {
        loop {
            if let Some(task) = self.page.next() {
                return Some((Ok(task), self));
            }
            if !self.has_more {
                self.watch.due().await;
            }
            // In a task of its own: if the consumer polls no more, the read must not keep others from reading.
            let reading = tokio::spawn(async move {
                let page = self.read().await;
                (self, page)
            });
            let page;
            (self, page) = reading.await.ok()?;
            match page {
                Ok(page) => self.take(page),
                Err(error) => {
                    self.watch.read_in_vain();
                    self.has_more = false;
                    // The consumer is told once of an outage.
                    if !std::mem::replace(&mut self.has_failed, true) {
                        return Some((Err(error), self));
                    }
                }
            }
        }
    }

    fn take(&mut self, page: Vec<ListedTask>) {
        (self.has_more, self.has_failed) = (page.len() >= PAGE, false);
        if !page.is_empty() {
            self.watch.read_news();
        }
        self.see(page.iter().map(ListedTask::position));
        self.page = page.into_iter();
    }

    fn see(&mut self, positions: impl IntoIterator<Item = TaskPosition>) {
        self.seen.extend(positions);
        while self.seen.len() > PAGE {
            self.before_seen = self.seen.pop_front();
        }
    }

    /// What has come behind the last task seen.
    async fn read(&mut self) -> Result<Vec<ListedTask>, StorageError> {
        loop {
            let command = commands::list(self.watch.index_key(), PAGE, self.seen.back(), Order::OldestFirst);
            let page = self.watch.read(&command, replies::tracked_list).await?;
            // After the list: as long as the last one was there, all that came is behind it.
            if !self.goes_back().await? {
                return Ok(page);
            }
        }
    }

    /// If the last task seen is gone, goes back to the last one that is left. False if it is not gone.
    async fn goes_back(&mut self) -> Result<bool, StorageError> {
        let Some(last) = self.seen.back() else { return Ok(false) };
        // No task id comes between the two.
        let just_behind = TaskPosition { task_id: format!("{}\0", last.task_id), ..*last };
        let newest = self.positions(Some(&just_behind), 1, Order::NewestFirst).await?;
        if newest.first() == Some(last) {
            return Ok(false);
        }
        // Others may be among them.
        let left = self.positions(self.before_seen.as_ref(), 2 * PAGE, Order::OldestFirst).await?;
        let last_left = self.seen.iter().rposition(|seen| left.contains(seen));
        let before = self.seen.len();
        self.seen.truncate(last_left.map_or(0, |last| last.saturating_add(1)));
        if self.seen.is_empty() {
            self.before_seen = None;
        }
        // Not if the last one is there after all: others can store creation times between two ms, whose order is not that of
        // the positions.
        Ok(self.seen.len() < before)
    }

    async fn positions(
        &self,
        after: Option<&TaskPosition>,
        count: usize,
        order: Order,
    ) -> Result<Vec<TaskPosition>, StorageError> {
        let entries = self.watch.backend().list_entries(self.watch.owner(), after, count, order).await?;
        Ok(entries.iter().map(ListedEntry::position).collect())
    }
}
