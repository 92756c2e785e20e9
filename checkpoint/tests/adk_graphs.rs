//! Graphs of adk-graph over `RedisCheckpointer`: pauses, subgraphs, time travel, retention, deltas.
//! Each resume is by a graph and a connection of its own, as by another process.
#![cfg(all(feature = "adk", feature = "redis-tests"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use adk_graph::checkpoint::{Checkpointer as _, RetentionPolicy};
use adk_graph::edge::{END, Router, START};
use adk_graph::error::GraphError;
use adk_graph::graph::{CompiledGraph, StateGraph};
use adk_graph::node::{ExecutionConfig, NodeOutput};
use adk_graph::state::{Checkpoint, State};
use adk_graph::subgraph::SubgraphNode;
use adk_graph::{DeltaCheckpointer, DeltaConfig};
use pmcptask_tests::Server;
use serde_json::{Value, json};

use crate::support::{all_of, keys, saver, steps};

fn number(state: &State) -> i64 {
    state.get("value").and_then(Value::as_i64).unwrap_or(0)
}

/// `add` adds 1 until there are `rounds`; `gated`, which counts its runs, adds 10 after that.
async fn counting(server: &Server, rounds: i64, gated_runs: &Arc<AtomicUsize>) -> CompiledGraph {
    let runs = Arc::clone(gated_runs);
    StateGraph::with_channels(&["value"])
        .add_node_fn("add", |context| async move {
            let value = context.get("value").and_then(Value::as_i64).unwrap_or(0);
            Ok(NodeOutput::new().with_update("value", json!(value + 1)))
        })
        .add_node_fn("gated", move |context| {
            let runs = Arc::clone(&runs);
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                let value = context.get("value").and_then(Value::as_i64).unwrap_or(0);
                Ok(NodeOutput::new().with_update("value", json!(value + 10)))
            }
        })
        .add_edge(START, "add")
        .add_conditional_edges(
            "add",
            Router::custom(move |state: &State| {
                if number(state) < rounds { "add" } else { "gated" }.to_owned()
            }),
            [("add", "add"), ("gated", "gated")],
        )
        .add_edge("gated", END)
        .compile()
        .unwrap()
        .with_checkpointer(saver(server).await)
}

async fn run(graph: &CompiledGraph, thread: &str) -> Result<State, GraphError> {
    graph.invoke(State::new(), ExecutionConfig::new(thread)).await
}

fn is_pause(outcome: &Result<State, GraphError>) -> bool {
    matches!(outcome, Err(GraphError::Interrupted(_)))
}

#[tokio::test]
async fn run_that_paused_before_a_node_goes_on_in_another_process() {
    let server = Server::start();
    let runs = Arc::default();
    let graph = async || counting(&server, 3, &runs).await.with_interrupt_before(&["gated"]);
    assert!(is_pause(&run(&graph().await, "t").await));
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    let paused = saver(&server).await.load("t").await.unwrap().unwrap();
    assert_eq!((number(&paused.state), paused.pending_nodes), (3, vec!["gated".to_owned()]));
    assert_eq!(number(&run(&graph().await, "t").await.unwrap()), 13);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn run_that_paused_after_a_node_does_not_run_the_node_again() {
    let server = Server::start();
    let runs = Arc::default();
    let graph = async || counting(&server, 1, &runs).await.with_interrupt_after(&["add"]);
    assert!(is_pause(&run(&graph().await, "t").await));
    assert_eq!(number(&run(&graph().await, "t").await.unwrap()), 11);
}

/// A graph whose node `inner` is a graph that pauses before its only node.
async fn nested(server: &Server, inner_runs: &Arc<AtomicUsize>) -> CompiledGraph {
    let inner = counting(server, 2, inner_runs).await.with_interrupt_before(&["gated"]);
    StateGraph::with_channels(&["value"])
        .add_node(SubgraphNode::new("inner", Arc::new(inner)))
        .add_node_fn("after", |context| async move {
            let value = context.get("value").and_then(Value::as_i64).unwrap_or(0);
            Ok(NodeOutput::new().with_update("value", json!(value + 100)))
        })
        .add_edge(START, "inner")
        .add_edge("inner", "after")
        .add_edge("after", END)
        .compile()
        .unwrap()
        .with_checkpointer(saver(server).await)
}

#[tokio::test]
async fn run_that_paused_inside_a_subgraph_goes_on_in_another_process() {
    let server = Server::start();
    let runs = Arc::default();
    assert!(is_pause(&run(&nested(&server, &runs).await, "t").await));
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    assert_eq!(number(&run(&nested(&server, &runs).await, "t").await.unwrap()), 112);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn time_travel_sees_every_step_resumes_from_one_and_forks() {
    let server = Server::start();
    let runs = Arc::default();
    let graph = counting(&server, 4, &runs).await;
    assert_eq!(number(&run(&graph, "t").await.unwrap()), 14);
    let travel = graph.time_travel("t").unwrap();
    let seen = travel.steps().await.unwrap();
    let history = travel.state_history(seen[0].step, None).await.unwrap();
    assert_eq!(history.len(), seen.len());
    let values: Vec<_> = history.iter().map(|(_, state)| number(state)).collect();
    assert!(values.ends_with(&[1, 2, 3, 4, 14]), "{values:?}");

    let (of_two, _) = history.iter().find(|(_, state)| number(state) == 2).unwrap();
    let resumed = travel.resume_from(*of_two, ExecutionConfig::new("t")).await.unwrap();
    assert_eq!((number(&resumed), runs.load(Ordering::SeqCst)), (14, 2));

    travel.fork_at(*of_two, "fork").await.unwrap();
    let forked = saver(&server).await.load("fork").await.unwrap().unwrap();
    assert_eq!((forked.step, number(&forked.state)), (*of_two, 2));
    assert_eq!(number(&run(&graph, "fork").await.unwrap()), 14);
}

#[tokio::test]
async fn graph_with_a_retention_keeps_that_many_checkpoints() {
    let server = Server::start();
    let graph =
        counting(&server, 12, &Arc::default()).await.with_checkpoint_retention(RetentionPolicy::keep_last(3));
    assert_eq!(number(&run(&graph, "t").await.unwrap()), 22);
    let saver = saver(&server).await;
    let kept = saver.list("t").await.unwrap();
    assert_eq!((kept.len(), keys(&server)), (3, 10));
    assert_eq!(all_of(&saver.load("t").await.unwrap().unwrap()), all_of(kept.last().unwrap()));
    saver.delete("t").await.unwrap();
    assert_eq!(keys(&server), 0);
}

#[tokio::test]
async fn delta_checkpointer_reads_back_whole_states() {
    let server = Server::start();
    let interval = DeltaConfig { full_snapshot_interval: 4 };
    let deltas = async || DeltaCheckpointer::new(saver(&server).await, interval.clone());
    let state = |step: usize| {
        let mut state: State = (0..50).map(|key| (format!("constant-{key}"), json!("as before"))).collect();
        state.insert("step".to_owned(), json!(step));
        state.insert(format!("only-{step}"), json!(true));
        state
    };
    let saved: Vec<_> = (0..10).map(|step| Checkpoint::new("t", state(step), step, Vec::new())).collect();
    for checkpoint in &saved {
        let saver = deltas().await;
        saver.save(checkpoint).await.unwrap();
        assert_eq!(saver.load("t").await.unwrap().unwrap().state, checkpoint.state);
    }
    let saver = deltas().await;
    for checkpoint in &saved {
        let found = saver.load_by_id(&checkpoint.checkpoint_id).await.unwrap().unwrap();
        assert_eq!((found.step, found.state), (checkpoint.step, checkpoint.state.clone()));
    }
    let listed = saver.list("t").await.unwrap();
    assert!(steps(&listed).into_iter().eq(0..10));
    let whole = listed.iter().filter(|stored| !stored.state.is_empty()).map(|stored| stored.step);
    assert_eq!(whole.collect::<Vec<_>>(), [0, 4, 8]);
    saver.delete("t").await.unwrap();
    assert_eq!(keys(&server), 0);
}
