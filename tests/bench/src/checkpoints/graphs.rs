//! Steps of a graph that saves a checkpoint after each.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use adk_graph::edge::{END, START};
use adk_graph::graph::{CompiledGraph, StateGraph};
use adk_graph::node::{ExecutionConfig, NodeOutput};
use adk_graph::state::State;
use serde_json::json;

use crate::contest::{OURS, Servers};
use crate::load::at_once;
use crate::rates::Rates;
use crate::savers::{LC, MEMORY, SQLITE, Saver};
use crate::{Result, is_quick};

const NODES: usize = 20;
/// Runs at once.
const RUNS: [usize; 2] = [1, 16];
const NAMES: [&str; 4] = [MEMORY, OURS, SQLITE, LC];

/// A table of all savers.
pub(super) async fn table(servers: &Servers) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let rates = Rates::measure(servers, &RUNS, &NAMES, async |name, at_once| {
        steps_per_second(Saver::named(name, servers.of(name), folder.path()).await?, at_once).await
    });
    let rates = rates.await?;
    let mut table = "| saver | 1 run | 16 runs at once |\n|---|---|---|\n".to_owned();
    for name in NAMES {
        let [one, many] = RUNS.map(|runs| rates.shown(runs, name, SQLITE));
        writeln!(table, "| {name} | {one} | {many} |")?;
    }
    Ok(table)
}

/// A chain of nodes that each write one value.
fn chain(saver: Saver) -> Result<CompiledGraph> {
    let name = |node: usize| format!("node-{node}");
    let mut graph = StateGraph::with_channels(&["value"]).add_edge(START, &name(0));
    for node in 0..NODES {
        let next = if node + 1 < NODES { name(node + 1) } else { END.to_owned() };
        graph = graph
            .add_node_fn(&name(node), move |_| async move {
                Ok(NodeOutput::new().with_update("value", json!(node)))
            })
            .add_edge(&name(node), &next);
    }
    Ok(graph.compile()?.with_checkpointer_arc(saver.checkpointer))
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
async fn steps_per_second(saver: Saver, runs: usize) -> Result<f64> {
    let graph = Arc::new(chain(saver)?);
    let each = if is_quick() { 10 } else { 50 } / if runs == 1 { 1 } else { 5 };
    graph.invoke(State::new(), ExecutionConfig::new("first")).await?;
    let started = Instant::now();
    let all = (0..runs).map(|run| {
        let graph = Arc::clone(&graph);
        async move {
            for number in 0..each {
                let thread = format!("{run}-{number}");
                let state = graph.invoke(State::new(), ExecutionConfig::new(&thread)).await?;
                if state.get("value") != Some(&json!(NODES - 1)) {
                    return Err(format!("the graph ended with {state:?}").into());
                }
            }
            Ok(())
        }
    });
    at_once(all).await?;
    Ok((runs * each * NODES) as f64 / started.elapsed().as_secs_f64())
}
