//! What makes a record in memory current: see the top of `near.rs`.

use tokio::time::Instant;

use crate::connection::{Moment, Waiter};

/// What makes a record current.
pub(super) struct Tracking {
    /// Counts what is told of the task.
    pub(super) waiter: Waiter,
    /// At this moment, the record was current for certain.
    pub(super) moment: Moment,
    /// From then on, the task may have expired.
    pub(super) until: Option<Instant>,
    /// The writes since somebody read the task.
    pub(super) unseen_writes: u8,
}

impl Tracking {
    pub(super) fn is_current(&self) -> bool {
        !self.was_told() && self.waiter.hears() && !self.has_expired()
    }

    /// Whether something was told since.
    pub(super) fn was_told(&self) -> bool {
        self.waiter.moment() != self.moment
    }

    pub(super) fn has_expired(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }
}
