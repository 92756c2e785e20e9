//! Measures this project against the backend that it replaces and against the upper bound. Nothing here
//! asserts anything about time: it prints ratios that were measured in one run on one machine.
#![allow(missing_docs, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod checkpoints;
mod comparison;
mod contest;
mod figures;
mod growth;
mod instructions;
mod lists;
mod lives;
mod load;
mod machine;
mod many;
mod mcp;
mod pipeline;
mod placement;
mod planning;
mod plot;
mod rates;
mod records;
mod savers;
mod states;
mod stores;
mod versus;
mod wait_command;
mod waiting;
mod watched;

use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "usage: pmcptask-bench \
    instructions|throughput|lives|mcp|placement|checkpoints|growth|planning|waiting|wait-command FOLDER";

/// Whether less is to be measured, in some minutes instead of an hour.
fn is_quick() -> bool {
    std::env::var_os("BENCH_QUICK").is_some_and(|quick| !quick.is_empty())
}

/// How often all is measured.
fn repeats() -> usize {
    if is_quick() { 2 } else { 5 }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [job, folder] = arguments.as_slice() else { return Err(USAGE.into()) };
    let folder = Path::new(folder);
    match job.as_str() {
        "instructions" => instructions::measure(folder).await,
        "throughput" => versus::measure(folder).await,
        "lives" => lives::measure(folder).await,
        "mcp" => mcp::measure(folder).await,
        "placement" => placement::measure(folder).await,
        "checkpoints" => checkpoints::measure(folder).await,
        "growth" => growth::measure(folder).await,
        "planning" => planning::measure(folder).await,
        "waiting" => waiting::measure(folder).await,
        // What the job before starts for each of its cases.
        "waiting-case" => waiting::print_case(&folder.to_string_lossy()).await,
        "wait-command" => wait_command::measure(folder),
        _ => Err(USAGE.into()),
    }
}
