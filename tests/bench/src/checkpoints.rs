//! What checkpoints cost with this project's savers, with those of adk-graph, and with the Redis saver of lc-langgraph.

mod calls;
mod compression;
mod connections;
mod graphs;
mod leftovers;

use std::path::Path;

use pmcptask_tests::ServerOptions;

use crate::contest::{OURS, Servers};
use crate::figures::write;
use crate::machine;
use crate::{Result, repeats};

/// Measures everything and writes tables to a folder.
///
/// # Errors
///
/// If a step fails.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let servers = Servers::start(&ServerOptions::default())?;
    let ours = servers.of(OURS);
    let repeats = repeats();
    let page = format!(
        "# Checkpoints\n\n\
         The savers: `RedisCheckpointer` of this project; `MemoryCheckpointer` and `SqliteCheckpointer` of adk-graph 2.3, with the settings \
         of its `new`; the `RedisCheckpointer` of lc-langgraph 0.28, as it is on crates.io, on a server without this project's module. \
         lc-langgraph has adk-graph's whole checkpoint as its state. Its list is `snapshots`, which have the states; its \
         prune is what its trait does for all backends. States are messages of an agent, with made-up words. \
         Ratios: median of {repeats} repeats (least to greatest).\n\n\
         `{}`\n\n\
         ## Calls\n\n\
         One in flight: median and 99th percentile of a call, in µs. Several: calls per second. The server of \
         \"appendfsync always\" writes each save to the disk before the reply, as SQLite does; the others write nothing to the disk.\n\n{}\n\
         ## A load and the bare command\n\n\
         `HGETALL` of the record that a load reads, over a connection of the same client library. A load also parses the JSON, and decompresses it; \
         \"parsed\" does the same with the bytes of the `HGETALL`.\n\n{}\n\
         ## Steps of a graph\n\n\
         Steps per second of a graph of adk-graph with 20 nodes in a row that do nothing, with a checkpoint after each; and how many times \
         those with SQLite.\n\n{}\n\
         ## What is left\n\n\
         10,000 threads with 3 checkpoints each have come and gone (`BENCH_QUICK`: 1,000). Bytes: `used_memory` afterwards less before.\n\n{}\n\
         ## Connections\n\n\
         The load of a state of 1 KB, every 5 ms, while one of 10 MB is saved and loaded all the time; in ms. Noise is like an \
         image in Base64. Client and server share the processors.\n\n{}\n\
         ## Compression\n\n\
         Zstandard at level 1, on one processor, and saves and loads through a proxy that lets 1 Gbit/s pass; medians in µs. The ratio is that of the \
         JSON to its compressed form.\n\n{}",
        machine::described(ours),
        calls::of_savers(&servers).await?,
        calls::of_bare_commands(ours).await?,
        graphs::table(&servers).await?,
        leftovers::table(&servers).await?,
        connections::table(ours).await?,
        compression::table(ours).await?,
    );
    println!("{page}");
    write(folder, "checkpoints.md", &page)
}
