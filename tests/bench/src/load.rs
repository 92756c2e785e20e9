//! One operation, many times, several in flight.

use std::fs;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Result;
use crate::contest::Contestant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    PutNew,
    PutOver,
    CasWon,
    CasLost,
    Get,
    Delete,
}

impl Operation {
    pub(crate) const ALL: [Self; 6] =
        [Self::PutNew, Self::PutOver, Self::CasWon, Self::CasLost, Self::Get, Self::Delete];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::PutNew => "put, new",
            Self::PutOver => "put, over",
            Self::CasWon => "CAS won",
            Self::CasLost => "CAS lost",
            Self::Get => "get",
            Self::Delete => "delete",
        }
    }
}

/// The result of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Calls per second.
    pub(crate) throughput: f64,
    /// Latency in µs.
    pub(crate) p50: f64,
    /// None if there are fewer than [`CALLS_FOR_P99`] calls.
    pub(crate) p99: Option<f64>,
    /// Processor time of this process per call, in µs.
    pub(crate) client_us: f64,
}

/// With fewer calls, the 99th percentile would be the maximum.
pub(crate) const CALLS_FOR_P99: usize = 100;

/// Reads by each worker before timing starts.
const WARM_UP: usize = 20;

/// Runs futures concurrently, each as a task. A single future runs in place, where each reply has to wake
/// another thread, for every contestant. A task shares a thread with the task of the connection only by
/// chance. If it does, it saves the wake-up, which takes longer than everything else.
pub(crate) async fn at_once<T, F>(futures: impl ExactSizeIterator<Item = F>) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let is_alone = futures.len() == 1;
    let (mut outcomes, mut tasks) = (Vec::with_capacity(futures.len()), JoinSet::new());
    for future in futures {
        if is_alone {
            outcomes.push(future.await?);
        } else {
            tasks.spawn(future);
        }
    }
    while let Some(outcome) = tasks.join_next().await {
        outcomes.push(outcome??);
    }
    Ok(outcomes)
}

/// Makes `calls` calls, `in_flight` at a time, on the contestant's one connection.
pub(crate) async fn run(
    contestant: &Contestant,
    operation: Operation,
    calls: usize,
    in_flight: usize,
    record: &[u8],
) -> Result<Sample> {
    let each = calls.div_ceil(in_flight);
    let key = |worker: usize, call: usize| format!("owner-{}:task-{worker}-{call}", worker % 16);
    let ready = at_once((0..in_flight).map(|worker| {
        let (backend, record) = (contestant.backend.clone(), record.to_vec());
        async move {
            let prepared = match operation {
                Operation::PutNew => 0,
                Operation::Delete => each,
                _ => 1,
            };
            let mut version = 0;
            for call in 0..prepared {
                version = backend.put(&key(worker, call), &record).await?;
            }
            for _ in 0..WARM_UP {
                let _ = backend.get(&key(worker, 0)).await;
            }
            Ok((backend, record, version, worker))
        }
    }));
    let ready = ready.await?;

    let (started, processor_before) = (Instant::now(), processor_time());
    let latencies = at_once(ready.into_iter().map(|(backend, record, mut version, worker)| async move {
        let mut latencies = Vec::with_capacity(each);
        for call in 0..each {
            let started = Instant::now();
            match operation {
                Operation::PutNew => drop(backend.put(&key(worker, call), &record).await?),
                Operation::PutOver => drop(backend.put(&key(worker, 0), &record).await?),
                Operation::CasWon => {
                    version = backend.put_if_version(&key(worker, 0), &record, version).await?;
                }
                // A conflict is the intended outcome.
                Operation::CasLost => drop(backend.put_if_version(&key(worker, 0), &record, 999_999).await),
                Operation::Get => drop(backend.get(&key(worker, 0)).await?),
                Operation::Delete => drop(backend.delete(&key(worker, call)).await?),
            }
            latencies.push(started.elapsed());
        }
        Ok(latencies)
    }));
    let latencies = latencies.await?;
    let (took, processor) = (started.elapsed(), processor_time().saturating_sub(processor_before));
    Ok(sample(latencies.concat(), took, processor))
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
pub(crate) fn sample(mut latencies: Vec<Duration>, took: Duration, processor: Duration) -> Sample {
    latencies.sort_unstable();
    let calls = latencies.len().max(1);
    // The smallest latency that this percentage of the calls does not exceed.
    let at = |part: usize| {
        latencies.get((calls * part).div_ceil(100) - 1).copied().unwrap_or_default().as_secs_f64() * 1e6
    };
    Sample {
        throughput: calls as f64 / took.as_secs_f64(),
        p50: at(50),
        p99: (calls >= CALLS_FOR_P99).then(|| at(99)),
        client_us: processor.as_secs_f64() * 1e6 / calls as f64,
    }
}

/// Processor time of all threads of this process.
pub(crate) fn processor_time() -> Duration {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Duration::ZERO };
    let nanoseconds = threads.filter_map(|thread| {
        let schedule = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        schedule.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_tells_rate_and_percentiles() {
        let latencies = (1..=100).map(Duration::from_micros).collect();
        let sample = sample(latencies, Duration::from_secs(2), Duration::from_micros(500));
        assert_eq!((sample.throughput, sample.p50, sample.p99), (50.0, 50.0, Some(99.0)));
        assert!((sample.client_us - 5.0).abs() < 1e-9);
    }

    #[test]
    fn few_calls_have_no_99th_percentile() {
        let latencies = (1..=3).map(Duration::from_micros).collect();
        let sample = sample(latencies, Duration::from_secs(1), Duration::ZERO);
        assert_eq!((sample.p50, sample.p99), (2.0, None));
    }
}
