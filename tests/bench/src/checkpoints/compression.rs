//! What compression saves and costs, and what it does to saves and loads over a network.

use std::fmt::Write as _;
use std::io::Read as _;
use std::time::Instant;

use adk_graph::checkpoint::Checkpointer as _;
use adk_graph::state::Checkpoint;
use pmcptask_checkpoint::Compression;
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_tests::{Fault, Proxy, Server};

use crate::figures::{percentile, short};
use crate::{Result, is_quick, states};

const SIZES: [(usize, &str); 4] =
    [(1_000, "1 KB"), (10_000, "10 KB"), (100_000, "100 KB"), (1_000_000, "1 MB")];
/// Of a network of 1 Gbit/s.
const BYTES_PER_SECOND: u64 = 125_000_000;

/// How often each is measured.
fn times() -> usize {
    if is_quick() { 50 } else { 300 }
}

/// A table of all sizes.
pub(super) async fn table(server: &Server) -> Result<String> {
    let proxy = Proxy::to(server.port());
    proxy.set(Fault::Bandwidth { bytes_per_second: BYTES_PER_SECOND });
    let saver =
        async |compression| RedisCheckpointer::builder(&proxy.url()).compression(compression).connect().await;
    let savers = [saver(Compression::Off).await?, saver(Compression::default()).await?];
    let mut table = "| state | ratio | compress | decompress | save, JSON | save, compressed | load, JSON | load, compressed |\n\
                     |---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (bytes, size) in SIZES {
        let checkpoint = Checkpoint::new("thread", states::of_text(bytes, 1), 0, Vec::new());
        let json = serde_json::to_vec(&checkpoint)?;
        let [ratio, compress, decompress] = alone(&json)?;
        let mut figures = Vec::new();
        for saver in &savers {
            server.wire().call(&["FLUSHALL"]);
            figures.push(saves_and_loads(saver, &checkpoint).await?);
        }
        let [[save_json, load_json], [save, load]] = [figures[0], figures[1]].map(|pair| pair.map(short));
        let [ratio, compress, decompress] = [ratio, compress, decompress].map(short);
        writeln!(
            table,
            "| {size} | {ratio} | {compress} | {decompress} | {save_json} | {save} | {load_json} | {load} |"
        )?;
    }
    Ok(table)
}

/// How many times longer the JSON is, and the median of the µs that it takes to compress and to decompress it.
#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn alone(json: &[u8]) -> Result<[f64; 3]> {
    let Compression::Zstd { level, .. } = Compression::default() else {
        return Err("expected Zstandard by default".into());
    };
    let frame = zstd::bulk::compress(json, level)?;
    let (mut compress, mut decompress) = (Vec::new(), Vec::new());
    for _ in 0..times() {
        let started = Instant::now();
        zstd::bulk::compress(json, level)?;
        compress.push(started.elapsed().as_secs_f64() * 1e6);
        let started = Instant::now();
        let mut back = Vec::new();
        zstd::stream::Decoder::with_buffer(frame.as_slice())?.read_to_end(&mut back)?;
        decompress.push(started.elapsed().as_secs_f64() * 1e6);
    }
    let ratio = json.len() as f64 / frame.len() as f64;
    Ok([ratio, percentile(&mut compress, 50), percentile(&mut decompress, 50)])
}

/// The median of the µs that a save takes, and a load.
async fn saves_and_loads(saver: &RedisCheckpointer, checkpoint: &Checkpoint) -> Result<[f64; 2]> {
    let (mut saves, mut loads) = (Vec::new(), Vec::new());
    for _ in 0..times() {
        let started = Instant::now();
        saver.save(checkpoint).await?;
        saves.push(started.elapsed().as_secs_f64() * 1e6);
        let started = Instant::now();
        saver.load(&checkpoint.thread_id).await?;
        loads.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok([percentile(&mut saves, 50), percentile(&mut loads, 50)])
}
