//! Steps of a graph that saves a checkpoint after each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use adk_graph::checkpoint::Checkpointer;
use adk_graph::edge::{END, START};
use adk_graph::graph::{CompiledGraph, StateGraph};
use adk_graph::node::{ExecutionConfig, NodeOutput};
use adk_graph::state::State;
use serde_json::json;

use super::{Page, calls_per_second};
use crate::Result;
use crate::contest::{OURS, Servers};
use crate::savers::{LC, MEMORY, SQLITE_WAL, saver};

const NODES: u32 = 20;

pub(super) async fn compare(page: &mut Page, servers: &Servers) -> Result<()> {
    let text = (
        "Steps of a graph",
        "Steps per second of graphs of adk-graph with 20 nodes in a row that do nothing, with a checkpoint after \
         each.",
        "runs at once",
    );
    super::compare(page, text, servers, &[OURS, MEMORY, SQLITE_WAL, LC], &[1, 16], async |name, runs| {
        let folder = tempfile::tempdir()?;
        steps_per_second(saver(name, &servers.of(name).url(), folder.path()).await?, runs).await
    })
    .await
}

async fn steps_per_second(saver: Arc<dyn Checkpointer>, runs: usize) -> Result<f64> {
    let (graph, started) = (Arc::new(chain(saver)?), Arc::new(AtomicUsize::new(0)));
    let of_graphs = calls_per_second(runs, move |_| {
        let thread = format!("thread-{}", started.fetch_add(1, Ordering::Relaxed));
        let graph = Arc::clone(&graph);
        async move {
            let state = graph.invoke(State::new(), ExecutionConfig::new(&thread)).await?;
            if state.get("value") == Some(&json!(NODES - 1)) {
                return Ok(());
            }
            Err(format!("the graph ended with {state:?}").into())
        }
    });
    Ok(of_graphs.await? * f64::from(NODES))
}

/// Nodes in a row that each write one value.
fn chain(saver: Arc<dyn Checkpointer>) -> Result<CompiledGraph> {
    let name = |node: u32| format!("node-{node}");
    let mut graph = StateGraph::with_channels(&["value"]).add_edge(START, &name(0));
    for node in 0..NODES {
        let next = if node + 1 < NODES { name(node + 1) } else { END.to_owned() };
        let write = move |_| async move { Ok(NodeOutput::new().with_update("value", json!(node))) };
        graph = graph.add_node_fn(&name(node), write).add_edge(&name(node), &next);
    }
    Ok(graph.compile()?.with_checkpointer_arc(saver))
}
