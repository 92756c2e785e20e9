//! The walk of `top` through all tasks, in steps whose work is limited. The server cannot count tasks by
//! status, so their records have to be read.

use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use pmcptask_client::{Primary, RedisBackend};

use super::figures::{OwnerTotals, Progress, Totals};
use crate::owners::{KEYS_AT_ONCE, Owner, OwnerWalk};
use crate::pages::Pages;
use crate::record::Summary;

/// What a `SCAN`, and a list without tasks, take of the server, in records that a list reads meanwhile.
const SCAN_COST: usize = 100;
const LIST_COST: usize = 10;
/// How long a step may take, for servers far away. The rest of a second is for the screen.
const STEP: Duration = Duration::from_millis(500);

pub(super) struct Walk {
    backend: RedisBackend,
    owners: OwnerWalk,
    /// Owners that are found and not read yet: those of one `SCAN`.
    found: Vec<Owner>,
    /// The owner whose tasks are being read.
    reading: Option<(Pages, OwnerTotals)>,
    totals: Totals,
    progress: Progress,
    started: Instant,
}

/// What a walk has found in all.
pub(super) struct Complete {
    pub(super) totals: Totals,
    pub(super) took: Duration,
}

impl Walk {
    /// `keys`: how many keys there are on all primaries.
    pub(super) fn new(backend: RedisBackend, primaries: Vec<Primary>, prefix: &str, keys: u64) -> Self {
        Self {
            owners: OwnerWalk::new(backend.clone(), primaries, prefix),
            backend,
            found: Vec::new(),
            reading: None,
            totals: Totals::default(),
            progress: Progress { keys, ..Progress::default() },
            started: Instant::now(),
        }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// What was found so far: the owners whose tasks are all read.
    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Goes on until about so many records were read, and returns all if that was the end.
    pub(super) async fn step(&mut self, records: usize) -> Result<Option<Complete>, StorageError> {
        let (mut left, started) = (records, Instant::now());
        while left > 0 && started.elapsed() < STEP {
            let cost = if self.reading.is_some() {
                self.read(left).await
            } else if let Some(owner) = self.found.pop() {
                let totals = OwnerTotals { owner: owner.owner.clone(), ..OwnerTotals::default() };
                self.reading = Some((Pages::new(owner.owner), totals));
                0
            } else if let Some(found) = self.owners.next().await? {
                self.progress.keys_seen = self.progress.keys_seen.saturating_add(KEYS_AT_ONCE);
                self.found = found;
                SCAN_COST
            } else {
                let totals = std::mem::take(&mut self.totals);
                return Ok(Some(Complete { totals, took: self.started.elapsed() }));
            };
            left = left.saturating_sub(cost);
        }
        Ok(None)
    }

    /// Reads a page of at most so many tasks. Returns what that cost.
    async fn read(&mut self, most: usize) -> usize {
        let Some((pages, totals)) = &mut self.reading else { return 0 };
        let Ok(page) = pages.next(&self.backend, most).await else {
            // The tasks of others may be readable. That a server is away is seen where its counters are read.
            self.reading = None;
            self.totals.owners_unread = self.totals.owners_unread.saturating_add(1);
            return LIST_COST;
        };
        for task in &page {
            totals.add(task.created_ms, &Summary::of(&task.record.data));
        }
        let is_over = pages.is_over();
        self.progress.records_read =
            self.progress.records_read.saturating_add(u64::try_from(page.len()).unwrap_or(u64::MAX));
        if is_over && let Some((_, totals)) = self.reading.take() {
            self.totals.add(totals);
        }
        page.len().saturating_add(LIST_COST)
    }
}
