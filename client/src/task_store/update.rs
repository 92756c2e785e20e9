//! Changes: one attempt in the usual case, and others after conflicts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pmcp_tasks::ServerTaskStore;
use tokio::time::{Instant, sleep};

use super::TaskStore;
use super::attempt::{Attempt, Met, Obstacle};

/// How long a change is attempted. A limit in attempts would be too low for a writer that is further away from the server than
/// another one, which writes more often than once in a round trip of the first.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest pause before an attempt.
const LONGEST_PAUSE: Duration = Duration::from_millis(32);

impl TaskStore {
    /// Makes a change with upstream's store, or a new task.
    ///
    /// The first attempt may write over the last known record. A refusal that stems from that record is no answer, because
    /// somebody may have changed the task since: the next attempt reads the task. After a conflict, the task is read again
    /// too. What fails otherwise is final: above all, a write whose outcome is unknown.
    pub(super) async fn change<T, E, F>(
        &self,
        operation: impl Fn(ServerTaskStore<Attempt>) -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let (mut may_remember, mut max_tasks) = (true, self.security.max_tasks_per_owner);
        let (started, mut conflicts) = (Instant::now(), 0_u32);
        loop {
            let met = Arc::new(Mutex::new(Met::default()));
            let attempt = Attempt {
                records: self.records.clone(),
                may_remember,
                max_tasks,
                epoch: self.records.backend.session().epoch(),
                met: met.clone(),
                peeked: Mutex::default(),
            };
            let result = operation(self.upstream(attempt, max_tasks)).await;
            if result.is_ok() {
                return result;
            }
            let Met { remembered, obstacle, .. } =
                std::mem::take(&mut *met.lock().unwrap_or_else(PoisonError::into_inner));
            may_remember = false;
            match obstacle {
                Some(Obstacle::Failure) => return result,
                // Upstream refuses in its own words where no task is allowed.
                Some(Obstacle::OwnerIsFull) if max_tasks > 0 => max_tasks = 0,
                _ if remembered => {}
                Some(Obstacle::Conflict) if started.elapsed() < LIMIT => {
                    conflicts = conflicts.saturating_add(1);
                    sleep(pause_after(conflicts)).await;
                }
                _ => return result,
            }
        }
    }
}

/// The pause after so many conflicts: random, so that writers who met once do not meet again.
fn pause_after(conflicts: u32) -> Duration {
    Duration::from_millis(1 << conflicts.min(10)).min(LONGEST_PAUSE).mul_f32(fastrand::f32())
}
