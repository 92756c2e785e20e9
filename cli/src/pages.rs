//! An owner's tasks, page by page, newest first.

use pmcp_tasks::StorageError;
use pmcptask_client::{ListedTask, Order, RedisBackend, TaskPosition};

const FIRST_PAGE: usize = 10;
const LONGEST_PAGE: usize = 500;
/// What a page is to hold of records at most, if they are as large as those of the page before. A list of so
/// much takes the server a few milliseconds. The next records may be larger, so a page has at most four times as
/// many as the one before.
const PAGE_BYTES: usize = 1 << 20;

pub(crate) struct Pages {
    owner: String,
    /// None: there are no more.
    next: Option<Next>,
}

struct Next {
    after: Option<TaskPosition>,
    count: usize,
}

impl Pages {
    pub(crate) fn new(owner: String) -> Self {
        Self { owner, next: Some(Next { after: None, count: FIRST_PAGE }) }
    }

    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    /// The next page, of at most `most` tasks; empty once there are no more.
    pub(crate) async fn next(
        &mut self,
        backend: &RedisBackend,
        most: usize,
    ) -> Result<Vec<ListedTask>, StorageError> {
        let Some(Next { after, count }) = &self.next else { return Ok(Vec::new()) };
        let count = most.min(*count);
        let page = backend.list_page(&self.owner, after.as_ref(), count, Order::NewestFirst).await?;
        self.next = match page.last() {
            Some(last) if page.len() >= count => {
                let sizes = page.iter().map(|task| task.record.data.len());
                Some(Next { after: Some(last.position()), count: next_count(sizes.sum(), page.len()) })
            }
            _ => None,
        };
        Ok(page)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.next.is_none()
    }
}

fn next_count(bytes: usize, tasks: usize) -> usize {
    let of_one = bytes.checked_div(tasks).unwrap_or(0).max(1);
    let fitting = PAGE_BYTES.checked_div(of_one).unwrap_or(0);
    fitting.min(tasks.saturating_mul(4)).clamp(1, LONGEST_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_shorter_where_records_are_larger() {
        assert_eq!(next_count(5_000, 10), 40);
        assert_eq!(next_count(100_000, 200), LONGEST_PAGE);
        assert_eq!(next_count(10 << 20, 100), 10);
        assert_eq!(next_count(16 << 20, 1), 1);
        assert_eq!(next_count(0, 0), 1);
    }
}
