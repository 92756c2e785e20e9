//! A thousand puts: as concurrent calls, and as one `put_many`.

use std::sync::Arc;
use std::time::Instant;

use pmcp_tasks::store::backend::StorageBackend;

use crate::Result;
use crate::contest::{self, OURS, Servers};
use crate::load::{Sample, at_once, processor_time, sample};
use crate::records::record;

/// Puts of one batch.
pub(crate) const PUTS: usize = 1_000;
const BATCHES: usize = 50;

/// The samples of a contestant: concurrent puts, and `put_many`. The Lua backend has no `put_many`, so its concurrent
/// puts count for both.
pub(crate) async fn many_puts(name: &str, servers: &Servers) -> Result<[Sample; 2]> {
    let server = servers.of(name);
    if name != OURS {
        let concurrent = concurrent_puts(Arc::new(contest::lua(server).await?)).await?;
        return Ok([concurrent, concurrent]);
    }
    let ours = contest::ours(server).await?;
    let data = record("owner", 500);
    let keys: Vec<_> = (0..PUTS).map(key).collect();
    let records: Vec<_> = keys.iter().map(|key| (key.as_str(), data.as_slice())).collect();
    let put_many = batches(async || {
        ours.put_many(&records).await.into_iter().try_for_each(|put| put.map(drop)).map_err(Into::into)
    });
    let put_many = put_many.await?;
    Ok([concurrent_puts(Arc::new(ours)).await?, put_many])
}

fn key(task: usize) -> String {
    format!("owner-{}:task-{task}", task % 16)
}

async fn concurrent_puts<B: StorageBackend + 'static>(backend: Arc<B>) -> Result<Sample> {
    let data: Arc<[u8]> = record("owner", 500).into();
    batches(async || {
        let puts = (0..PUTS).map(|task| {
            let (backend, data) = (backend.clone(), data.clone());
            async move { Ok(backend.put(&key(task), &data).await?) }
        });
        at_once(puts).await.map(drop)
    })
    .await
}

/// Times the batches; the first one, which makes the tasks, does not count. Latencies are those of a batch.
async fn batches(batch: impl AsyncFn() -> Result<()>) -> Result<Sample> {
    batch().await?;
    let (started, processor_before) = (Instant::now(), processor_time());
    let mut latencies = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let started = Instant::now();
        batch().await?;
        latencies.push(started.elapsed());
    }
    let processor = processor_time().saturating_sub(processor_before);
    let of_batches = sample(latencies, started.elapsed(), processor);
    #[allow(clippy::cast_precision_loss, reason = "1,000")]
    let puts = PUTS as f64;
    Ok(Sample {
        throughput: of_batches.throughput * puts,
        client_us: of_batches.client_us / puts,
        ..of_batches
    })
}
