//! Lists of an owner's tasks, and creations beside existing tasks, several at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pmcp_tasks::store::backend::StorageBackend;
use pmcp_tasks::{GenericTaskStore, TaskSecurityConfig};

use crate::Result;
use crate::load::{CALLS_FOR_P99, Sample, at_once, processor_time, sample};
use crate::records::{TTL_MS, record};

fn owner(worker: usize) -> String {
    format!("owner-{worker}")
}

/// Lists an owner's tasks, and creates tasks beside them. Each concurrent call has its own owner.
pub(crate) async fn lists_and_creates<B: StorageBackend + 'static>(
    connect: impl AsyncFn() -> Result<B>,
    tasks: usize,
    in_flight: usize,
) -> Result<[Sample; 2]> {
    let backend = Arc::new(connect().await?);
    let filled = (0..in_flight).map(|worker| {
        let (backend, owner, data) = (backend.clone(), owner(worker), record(&owner(worker), 500));
        async move {
            for task in 0..tasks {
                backend.put(&format!("{owner}:task-{task}"), &data).await?;
            }
            Ok(())
        }
    });
    at_once(filled).await?;

    let lister = backend.clone();
    let list = move |worker| {
        let backend = lister.clone();
        async move {
            let listed = backend.list_by_prefix(&format!("{}:", owner(worker))).await?.len();
            if listed == tasks { Ok(()) } else { Err(format!("{listed} of {tasks} tasks are listed").into()) }
        }
    };
    // Several calls in a row keep that many in flight most of the time; a single caller always has one
    // in flight.
    let in_a_row = if in_flight == 1 { 1 } else { (256 / in_flight).max(4) };
    let listed = in_rounds(in_flight, in_a_row, list, async |()| Ok(())).await?;

    let security = TaskSecurityConfig::default().with_max_tasks_per_owner(usize::MAX);
    let store = Arc::new(GenericTaskStore::new(connect().await?).with_security(security));
    let create = move |worker| {
        let store = store.clone();
        async move {
            let created = store.create(&owner(worker), "tools/call", Some(TTL_MS)).await?;
            Ok(format!("{}:{}", owner(worker), created.task.task_id))
        }
    };
    // So that the next creation finds the same number of tasks.
    let created = in_rounds(in_flight, 1, create, async |key: String| {
        backend.delete(&key).await?;
        Ok(())
    });
    Ok([listed, created.await?])
}

/// Makes rounds of calls, `in_flight` at once and `in_a_row` by each caller, until the timed rounds took some
/// tenths of a second and there are enough calls for a 99th percentile. The first round is not timed. The
/// results of a round are undone before the next round.
async fn in_rounds<T, C>(
    in_flight: usize,
    in_a_row: usize,
    call: impl Fn(usize) -> C + Clone + Send + 'static,
    undo: impl AsyncFn(T) -> Result<()>,
) -> Result<Sample>
where
    T: Send + 'static,
    C: Future<Output = Result<T>> + Send + 'static,
{
    const LONG_ENOUGH: Duration = Duration::from_millis(200);
    const FEWEST_IN_A_ROW: usize = 3;
    let (mut latencies, mut took, mut processor) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    for round in 0.. {
        let processor_before = processor_time();
        let calls = (0..in_flight).map(|worker| {
            let call = call.clone();
            async move {
                let mut outcomes = Vec::with_capacity(in_a_row);
                for _ in 0..in_a_row {
                    let started = Instant::now();
                    let outcome = call(worker).await?;
                    outcomes.push((started, Instant::now(), outcome));
                }
                Ok(outcomes)
            }
        });
        let outcomes: Vec<_> = at_once(calls).await?.into_iter().flatten().collect();
        let processor_of_round = processor_time().saturating_sub(processor_before);
        let first_started = outcomes.iter().map(|(started, ..)| *started).min();
        let last_ended = outcomes.iter().map(|(_, ended, _)| *ended).max();
        let of_round =
            last_ended.zip(first_started).map_or(Duration::ZERO, |(ended, started)| ended - started);
        let is_timed = round > 0;
        if is_timed {
            took += of_round;
            // Reading the processor clock takes as long as a short call.
            processor += if in_flight == 1 { Duration::ZERO } else { processor_of_round };
        }
        for (started, ended, outcome) in outcomes {
            if is_timed {
                latencies.push(ended - started);
            }
            undo(outcome).await?;
        }
        if round * in_a_row >= FEWEST_IN_A_ROW && latencies.len() >= CALLS_FOR_P99 && took >= LONG_ENOUGH {
            break;
        }
    }
    Ok(sample(latencies, took, processor))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn rounds_go_on_until_there_are_enough_calls_and_undo_each_of_them() {
        let undone = AtomicUsize::new(0);
        let call = |worker: usize| async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            Ok(worker)
        };
        let sample = in_rounds(30, 2, call, async |worker| {
            assert!(worker < 30);
            undone.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let sample = sample.await.expect("no call fails");
        // Two rounds of 60 calls, and the first round, which does not count.
        assert_eq!(undone.into_inner(), 180);
        assert!(sample.p50 >= 150_000.0 && sample.p99.is_some(), "{sample:?}");
        // The 30 concurrent calls of a round overlap, so its time is not their sum; the two calls in a row do
        // not overlap.
        assert!((10.0..=200.0).contains(&sample.throughput), "{sample:?}");
    }
}
