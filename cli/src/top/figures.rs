//! What `top` shows, and how it is added up.

use std::collections::BTreeMap;

use pmcp_tasks::TaskStatus;
use serde::Serialize;

use crate::record::Summary;

/// How many owners are kept: those with most tasks. No screen shows more.
const OWNERS: usize = 100;

/// Everything on the screen.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// The primaries.
    pub(crate) servers: Vec<String>,
    pub(crate) prefix: String,
    /// Writes per second since the last figures; none in the first ones.
    pub(crate) writes_per_second: Option<u64>,
    /// `INFO pmcptask` of all primaries together.
    pub(crate) info: BTreeMap<String, u64>,
    pub(crate) tasks: Totals,
    /// The walk that is at work.
    pub(crate) walk: Progress,
    /// How long the walk took that `tasks` come from. None: they come from the one at work, which is the
    /// first.
    pub(crate) walk_took_seconds: Option<u64>,
    /// Why the figures are not new.
    pub(crate) failure: Option<String>,
}

impl Figures {
    pub(crate) fn info(&self, name: &str) -> u64 {
        self.info.get(name).copied().unwrap_or(0)
    }
}

/// How far a walk through all tasks is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Progress {
    pub(crate) records_read: u64,
    pub(crate) keys_seen: u64,
    /// How many keys there were when the walk began. 0: not known.
    pub(crate) keys: u64,
}

impl Progress {
    /// None: not known.
    pub(crate) fn percent(&self) -> Option<u64> {
        // A server's SCAN may look at other numbers of keys than it was told to.
        Some(self.keys_seen.saturating_mul(100).checked_div(self.keys)?.min(99))
    }
}

/// What a walk found.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    pub(crate) owners: u64,
    /// Owners whose tasks could not be read. Nothing else counts them.
    pub(crate) owners_unread: u64,
    pub(crate) statuses: Statuses,
    /// When the oldest unfinished task was created, in ms since the epoch.
    pub(crate) oldest_unfinished_ms: Option<i64>,
    /// The owners with most tasks, these first.
    pub(crate) top_owners: Vec<OwnerTotals>,
}

impl Totals {
    pub(crate) fn add(&mut self, owner: OwnerTotals) {
        self.owners = self.owners.saturating_add(1);
        self.statuses.add(owner.statuses);
        self.oldest_unfinished_ms = earlier(self.oldest_unfinished_ms, owner.oldest_unfinished_ms);
        let tasks = owner.statuses.all();
        let place = self.top_owners.partition_point(|other| other.statuses.all() >= tasks);
        self.top_owners.insert(place, owner);
        self.top_owners.truncate(OWNERS);
    }
}

/// What a walk found of one owner.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct OwnerTotals {
    pub(crate) owner: String,
    pub(crate) statuses: Statuses,
    pub(crate) oldest_unfinished_ms: Option<i64>,
}

impl OwnerTotals {
    pub(crate) fn add(&mut self, created_ms: i64, summary: &Summary) {
        self.statuses.count(summary.status);
        if summary.status.is_some_and(|status| !status.is_terminal()) {
            self.oldest_unfinished_ms = earlier(self.oldest_unfinished_ms, Some(created_ms));
        }
    }
}

fn earlier(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    one.into_iter().chain(other).min()
}

/// How many tasks have which status.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Statuses {
    pub(crate) working: u64,
    pub(crate) input_required: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    /// Records of other formats.
    pub(crate) other: u64,
}

impl Statuses {
    fn count(&mut self, status: Option<TaskStatus>) {
        let counter = match status {
            Some(TaskStatus::Working) => &mut self.working,
            Some(TaskStatus::InputRequired) => &mut self.input_required,
            Some(TaskStatus::Completed) => &mut self.completed,
            Some(TaskStatus::Failed) => &mut self.failed,
            Some(TaskStatus::Cancelled) => &mut self.cancelled,
            None => &mut self.other,
        };
        *counter = counter.saturating_add(1);
    }

    /// With their names, in the order of the columns.
    pub(crate) fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("working", self.working),
            ("input_required", self.input_required),
            ("completed", self.completed),
            ("failed", self.failed),
            ("cancelled", self.cancelled),
            ("other", self.other),
        ]
    }

    pub(crate) fn all(&self) -> u64 {
        self.named().iter().fold(0, |all, (_, count)| all.saturating_add(*count))
    }

    fn add(&mut self, other: Self) {
        for (mine, its) in [
            (&mut self.working, other.working),
            (&mut self.input_required, other.input_required),
            (&mut self.completed, other.completed),
            (&mut self.failed, other.failed),
            (&mut self.cancelled, other.cancelled),
            (&mut self.other, other.other),
        ] {
            *mine = mine.saturating_add(its);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn owner(name: &str, working: u64, oldest: Option<i64>) -> OwnerTotals {
        let statuses = Statuses { working, ..Statuses::default() };
        OwnerTotals { owner: name.to_owned(), statuses, oldest_unfinished_ms: oldest }
    }

    #[test]
    fn totals_keep_the_owners_with_most_tasks_and_count_all() {
        let mut totals = Totals::default();
        for number in 0..1_000 {
            totals.add(owner(&number.to_string(), number % 500, Some(number.try_into().unwrap())));
        }
        assert_eq!((totals.owners, totals.statuses.working), (1_000, 2 * (499 * 500 / 2)));
        assert_eq!(totals.oldest_unfinished_ms, Some(0));
        assert_eq!(totals.top_owners.len(), OWNERS);
        let counts: Vec<_> = totals.top_owners.iter().map(|owner| owner.statuses.all()).collect();
        assert_eq!((counts[0], counts[1], counts[OWNERS - 1]), (499, 499, 450));
    }

    #[test]
    fn only_unfinished_tasks_grow_old() {
        let mut totals = OwnerTotals::default();
        for (created, status) in [
            (1, Some(TaskStatus::Completed)),
            (2, None),
            (4, Some(TaskStatus::Working)),
            (3, Some(TaskStatus::InputRequired)),
        ] {
            totals.add(created, &Summary { status, ..Summary::default() });
        }
        assert_eq!(totals.oldest_unfinished_ms, Some(3));
        assert_eq!((totals.statuses.all(), totals.statuses.other), (4, 1));
    }

    #[test]
    fn walk_at_work_is_never_complete() {
        let progress = Progress { keys_seen: 1_000, keys: 900, ..Progress::default() };
        assert_eq!(progress.percent(), Some(99));
        assert_eq!(Progress::default().percent(), None);
    }
}
