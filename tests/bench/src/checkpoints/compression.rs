//! What compression saves and costs, and what it does to saves and loads over a network.

use std::time::Instant;

use adk_graph::checkpoint::Checkpointer as _;
use adk_graph::state::Checkpoint;
use pmcptask_checkpoint::Compression;
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_tests::{Fault, Proxy, Server};

use super::Page;
use crate::figures::{percentile, short};
use crate::{Result, is_quick, states};

const SIZES: [(usize, &str); 4] =
    [(1_000, "1 KB"), (10_000, "10 KB"), (100_000, "100 KB"), (1_000_000, "1 MB")];
/// Of a network of 1 Gbit/s.
const BYTES_PER_SECOND: u64 = 125_000_000;
/// That of `Compression::default()`.
const LEVEL: i32 = 1;

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
pub(super) async fn measure(page: &mut Page, server: &Server) -> Result<()> {
    page.section(
        "Compression",
        "Zstandard at level 1, on one processor; and saves and loads through a proxy that lets 1 Gbit/s pass in \
         each direction. Medians, in µs. The ratio is that of the JSON to its compressed form.",
        &[
            "state",
            "ratio",
            "compress",
            "decompress",
            "save, JSON",
            "load, JSON",
            "save, compressed",
            "load, compressed",
        ],
    );
    let proxy = Proxy::to(server.port());
    proxy.set(Fault::Bandwidth { bytes_per_second: BYTES_PER_SECOND });
    let saver = |compression| RedisCheckpointer::builder(&proxy.url()).compression(compression).connect();
    let (plain, compressing) = (saver(Compression::Off).await?, saver(Compression::default()).await?);
    for (bytes, size) in SIZES {
        server.wire().call(&["FLUSHALL"]);
        let checkpoint = Checkpoint::new("thread", states::of_text(bytes), 0, Vec::new());
        let json = serde_json::to_vec(&checkpoint)?;
        let frame = zstd::bulk::compress(&json, LEVEL)?;
        let figures = [
            json.len() as f64 / frame.len() as f64,
            median(async || Ok(zstd::bulk::compress(&json, LEVEL).map(drop)?)).await?,
            median(async || Ok(zstd::decode_all(frame.as_slice()).map(drop)?)).await?,
            median(async || Ok(plain.save(&checkpoint).await.map(drop)?)).await?,
            median(async || Ok(plain.load("thread").await.map(drop)?)).await?,
            median(async || Ok(compressing.save(&checkpoint).await.map(drop)?)).await?,
            median(async || Ok(compressing.load("thread").await.map(drop)?)).await?,
        ];
        let row: Vec<_> = [size.to_owned()].into_iter().chain(figures.map(short)).collect();
        page.row(&row);
    }
    Ok(())
}

/// The median of the µs that a call takes.
async fn median(call: impl AsyncFn() -> Result<()>) -> Result<f64> {
    let mut took = Vec::new();
    for _ in 0..if is_quick() { 20 } else { 200 } {
        let started = Instant::now();
        call().await?;
        took.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(percentile(&mut took, 50))
}
