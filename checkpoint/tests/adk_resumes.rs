//! All that a graph of adk-graph needs in order to go on is in its checkpoint: what is still to run, what has
//! been asked, who has arrived, which attempts were made, and what children have done. Each resume is by a
//! graph and a connection of its own.
#![cfg(all(feature = "adk", feature = "redis-tests"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use adk_graph::checkpoint::{Checkpointer as _, RetentionPolicy};
use adk_graph::child::RunNodeOptions;
use adk_graph::edge::{END, Router, START};
use adk_graph::error::GraphError;
use adk_graph::graph::{CompiledGraph, StateGraph};
use adk_graph::node::{ExecutionConfig, NodeContext, NodeOutput};
use adk_graph::retry::RetryPolicy;
use adk_graph::state::State;
use adk_graph::stream::{StreamEvent, StreamMode};
use adk_graph::subgraph::SubgraphNode;
use chrono::DateTime;
use futures_util::StreamExt as _;
use pmcptask_checkpoint::pmcptask_client::{RedisBackend, WriteTerms};
use pmcptask_tests::Server;
use serde_json::{Value, json};

use crate::support::{all_of_each, checkpoint, keys, saver};

/// Which nodes have run, in their order. Shared by the graphs of all processes of a test.
#[derive(Debug, Clone, Default)]
struct Runs(Arc<Mutex<Vec<String>>>);

impl Runs {
    fn note(&self, node: &str) {
        self.0.lock().unwrap().push(node.to_owned());
    }

    /// In alphabetical order, because nodes of one step run at the same time.
    fn all(&self) -> Vec<String> {
        let mut all = self.0.lock().unwrap().clone();
        all.sort();
        all
    }
}

/// Adds a node that notes that it has run, and sets a channel of its name.
fn noting(graph: StateGraph, node: &'static str, runs: &Runs) -> StateGraph {
    let runs = runs.clone();
    graph.add_node_fn(node, move |_| {
        runs.note(node);
        async move { Ok(NodeOutput::new().with_update(node, json!(true))) }
    })
}

/// The same, and it asks for an approval first.
fn asking(graph: StateGraph, node: &'static str, runs: &Runs) -> StateGraph {
    let runs = runs.clone();
    graph.add_node_fn(node, move |context| {
        runs.note(node);
        async move {
            if is_approved(&context) {
                return Ok(NodeOutput::new().with_update(node, json!(true)));
            }
            Ok(NodeOutput::interrupt("approve it"))
        }
    })
}

fn is_approved(context: &NodeContext) -> bool {
    context.get("approved") == Some(&json!(true))
}

fn approval() -> State {
    State::from([("approved".to_owned(), json!(true))])
}

/// Adds edges, each given as `from to`.
fn edges(graph: StateGraph, edges: &[&str]) -> StateGraph {
    edges.iter().fold(graph, |graph, edge| {
        let (from, to) = edge.split_once(' ').unwrap();
        let place = |name| match name {
            "start" => START,
            "end" => END,
            node => node,
        };
        graph.add_edge(place(from), place(to))
    })
}

async fn compiled(graph: StateGraph, server: &Server) -> CompiledGraph {
    graph.compile().unwrap().with_checkpointer(saver(server).await)
}

async fn run(graph: &CompiledGraph, input: State) -> Result<State, GraphError> {
    graph.invoke(input, ExecutionConfig::new("t")).await
}

/// Runs to the next pause, and returns what the pause says.
async fn run_to_pause(graph: &CompiledGraph, input: State) -> String {
    match run(graph, input).await {
        Err(GraphError::Interrupted(pause)) => pause.interrupt.to_string(),
        other => panic!("expected a pause, got {other:?}"),
    }
}

async fn pending(server: &Server) -> Vec<String> {
    let mut pending = saver(server).await.load("t").await.unwrap().unwrap().pending_nodes;
    pending.sort();
    pending
}

#[tokio::test]
async fn finished_run_has_nothing_pending_and_is_not_run_again() {
    let (server, runs) = (Server::start(), Runs::default());
    let graph = async || {
        let graph = noting(noting(StateGraph::with_channels(&["a", "b"]), "a", &runs), "b", &runs);
        compiled(edges(graph, &["start a", "a b", "b end"]), &server).await
    };
    let state = run(&graph().await, State::new()).await.unwrap();
    assert_eq!(pending(&server).await, [""; 0]);
    assert_eq!(run(&graph().await, State::new()).await.unwrap(), state);
    assert_eq!(runs.all(), ["a", "b"]);
}

/// `tick` counts to three, with a gate at each turn.
async fn ticking(server: &Server) -> CompiledGraph {
    let graph = StateGraph::with_channels(&["count"])
        .add_node_fn("tick", |context| async move {
            let count = context.get("count").and_then(Value::as_i64).unwrap_or(0);
            Ok(NodeOutput::new().with_update("count", json!(count + 1)))
        })
        .add_node_fn("gate", |_| async { Ok(NodeOutput::new()) })
        .add_conditional_edges(
            "gate",
            Router::custom(|state: &State| if state["count"] == json!(3) { END } else { "tick" }.to_owned()),
            [("tick", "tick"), (END, END)],
        );
    compiled(edges(graph, &["start tick", "tick gate"]), server).await
}

#[tokio::test]
async fn gate_in_a_loop_asks_at_each_arrival_and_each_gate_asks_once() {
    let server = Server::start();
    let graph = async || ticking(&server).await.with_interrupt_before(&["tick", "gate"]);
    for gate in ["tick", "gate", "tick", "gate", "tick", "gate"] {
        let asked = run_to_pause(&graph().await, State::new()).await;
        assert!(asked.contains(gate), "{gate}: {asked}");
    }
    assert_eq!(run(&graph().await, State::new()).await.unwrap()["count"], json!(3));
}

#[tokio::test]
async fn paused_run_whose_other_checkpoints_were_pruned_goes_on() {
    let server = Server::start();
    let graph = async || {
        let graph = ticking(&server).await.with_checkpoint_retention(RetentionPolicy::keep_last(0));
        graph.with_interrupt_after(&["tick"])
    };
    for _ in 0..3 {
        run_to_pause(&graph().await, State::new()).await;
        assert_eq!(saver(&server).await.list("t").await.unwrap().len(), 1);
    }
    assert_eq!(run(&graph().await, State::new()).await.unwrap()["count"], json!(3));
}

/// `b` asks, while `a` has an edge of its own.
async fn forked(server: &Server, runs: &Runs) -> CompiledGraph {
    let graph = StateGraph::with_channels(&["a", "after-a", "b", "approved"]);
    let graph = asking(noting(noting(graph, "a", runs), "after-a", runs), "b", runs);
    compiled(edges(graph, &["start a", "start b", "a after-a", "after-a end", "b end"]), server).await
}

#[tokio::test]
async fn what_follows_the_nodes_beside_a_pause_runs_after_the_answer() {
    let (server, runs) = (Server::start(), Runs::default());
    run_to_pause(&forked(&server, &runs).await, State::new()).await;
    assert_eq!(pending(&server).await, ["after-a", "b"]);
    let state = run(&forked(&server, &runs).await, approval()).await.unwrap();
    assert_eq!([&state["after-a"], &state["b"]], [&json!(true), &json!(true)]);
    assert_eq!(runs.all(), ["a", "after-a", "b", "b"]);
}

#[tokio::test]
async fn streamed_run_is_saved_at_its_pause_and_goes_on_in_another_stream() {
    let (server, runs) = (Server::start(), Runs::default());
    let streamed = async |input| {
        let graph = forked(&server, &runs).await;
        let stream = graph.stream(input, ExecutionConfig::new("t"), StreamMode::Updates);
        stream.map(Result::unwrap).collect::<Vec<_>>().await
    };
    let paused = streamed(State::new()).await;
    assert!(paused.iter().any(|event| matches!(event, StreamEvent::Interrupted { .. })), "{paused:?}");
    assert_eq!(pending(&server).await, ["after-a", "b"]);
    let finished = streamed(approval()).await;
    assert!(finished.iter().any(|event| matches!(event, StreamEvent::Done { .. })), "{finished:?}");
    assert_eq!(runs.all(), ["a", "after-a", "b", "b"]);
}

/// `short` arrives at `join` a step before `long`, and the run pauses in between.
async fn joining(server: &Server, runs: &Runs) -> CompiledGraph {
    let graph = StateGraph::with_channels(&["short", "first", "long", "join", "remark"]);
    let graph =
        ["short", "first", "long", "join"].into_iter().fold(graph, |graph, node| noting(graph, node, runs));
    let edges =
        edges(graph, &["start short", "start first", "first long", "short join", "long join", "join end"]);
    compiled(edges, server).await.with_interrupt_before(&["long"])
}

#[tokio::test]
async fn join_counts_arrivals_from_before_a_pause_also_if_the_state_was_changed_meanwhile() {
    for remark in [None, Some("seen")] {
        let (server, runs) = (Server::start(), Runs::default());
        run_to_pause(&joining(&server, &runs).await, State::new()).await;
        if let Some(remark) = remark {
            let update = [("remark".to_owned(), json!(remark))];
            joining(&server, &runs).await.update_state("t", update).await.unwrap();
        }
        let state = run(&joining(&server, &runs).await, State::new()).await.unwrap();
        assert_eq!(state.get("remark").and_then(Value::as_str), remark);
        assert_eq!(runs.all(), ["first", "join", "long", "short"]);
    }
}

#[tokio::test]
async fn child_that_has_finished_before_a_pause_is_not_run_again() {
    let (server, runs) = (Server::start(), Runs::default());
    let graph = async || {
        let graph =
            StateGraph::with_channels(&["outputs", "approved"]).add_node_fn("parent", |context| async move {
                let child = |name: &'static str| {
                    context.run_node_with("child", json!({ "of": name }), RunNodeOptions::with_run_id(name))
                };
                let before = child("before").await?;
                if !is_approved(&context) {
                    return Ok(NodeOutput::interrupt("approve it"));
                }
                let after = child("after").await?;
                Ok(NodeOutput::new().with_update("outputs", json!([before, after])))
            });
        let runs = runs.clone();
        let graph = graph.add_node_fn("child", move |context| {
            let of = context.get("of").and_then(Value::as_str).unwrap_or_default().to_owned();
            runs.note(&of);
            async move { Ok(NodeOutput::new().with_update("did", json!(of))) }
        });
        compiled(edges(graph, &["start parent", "parent end"]), &server).await
    };
    run_to_pause(&graph().await, State::new()).await;
    let state = run(&graph().await, approval()).await.unwrap();
    assert_eq!(state["outputs"], json!([{ "did": "before" }, { "did": "after" }]));
    assert_eq!(runs.all(), ["after", "before"]);
}

#[tokio::test]
async fn attempts_that_were_made_before_a_resume_count() {
    let (server, runs) = (Server::start(), Runs::default());
    let graph = async || {
        let runs = runs.clone();
        let graph = StateGraph::with_channels(&["value"]).add_node_fn("fails", move |_| {
            runs.note("fails");
            async {
                Err(GraphError::NodeExecutionFailed { node: "fails".to_owned(), message: String::new() })
            }
        });
        let attempts = RetryPolicy::new(3).with_initial_delay(Duration::from_millis(1)).with_jitter(0.0);
        compiled(edges(graph, &["start fails", "fails end"]), &server)
            .await
            .with_node_retry("fails", attempts)
    };
    for made in [3, 4, 5] {
        run(&graph().await, State::new()).await.unwrap_err();
        assert_eq!(runs.all().len(), made);
    }
}

#[tokio::test]
async fn node_that_another_one_has_chosen_runs_after_a_pause() {
    let (server, runs) = (Server::start(), Runs::default());
    let graph = async || {
        let graph = StateGraph::with_channels(&["chosen", "usual"])
            .add_node_fn("chooses", |_| async { Ok(NodeOutput::new().with_goto(["chosen"])) });
        let graph = noting(noting(graph, "chosen", &runs), "usual", &runs);
        let graph = edges(graph, &["start chooses", "chooses usual", "usual end", "chosen end"]);
        compiled(graph, &server).await.with_interrupt_before(&["chosen"])
    };
    run_to_pause(&graph().await, State::new()).await;
    run(&graph().await, State::new()).await.unwrap();
    assert_eq!(runs.all(), ["chosen"]);
}

#[tokio::test]
async fn pause_two_graphs_deep_is_answered_by_the_state_and_repeats_no_finished_node() {
    let (server, runs) = (Server::start(), Runs::default());
    let graph = async || {
        let channels = || StateGraph::with_channels(&["done", "acts", "approved"]);
        let deepest = edges(
            asking(noting(channels(), "done", &runs), "acts", &runs),
            &["start done", "done acts", "acts end"],
        );
        let middle =
            channels().add_node(SubgraphNode::new("deepest", Arc::new(compiled(deepest, &server).await)));
        let middle = compiled(edges(middle, &["start deepest", "deepest end"]), &server).await;
        let outer = channels().add_node(SubgraphNode::new("middle", Arc::new(middle)));
        compiled(edges(outer, &["start middle", "middle end"]), &server).await
    };
    let asked = run_to_pause(&graph().await, State::new()).await;
    assert!(asked.contains("middle") && asked.contains("deepest") && asked.contains("approve it"), "{asked}");
    let state = run(&graph().await, approval()).await.unwrap();
    assert_eq!(state["acts"], json!(true));
    assert_eq!(runs.all(), ["acts", "acts", "done"]);
}

#[tokio::test]
async fn one_graph_at_two_places_of_another_has_two_threads() {
    let server = Server::start();
    let outer = async || {
        let mut graph = StateGraph::with_channels(&["left", "right", "approved"]);
        for place in ["left", "right"] {
            let inner = asking(StateGraph::with_channels(&["act", "approved"]), "act", &Runs::default());
            let inner = compiled(edges(inner, &["start act", "act end"]), &server).await;
            graph = graph.add_node(SubgraphNode::new(place, Arc::new(inner)).with_output("act", place));
        }
        compiled(edges(graph, &["start left", "left right", "right end"]), &server).await
    };
    run_to_pause(&outer().await, State::new()).await;
    let state = run(&outer().await, approval()).await.unwrap();
    assert_eq!([&state["left"], &state["right"]], [&json!(true), &json!(true)]);
    let threads: Vec<String> =
        redis::cmd("KEYS").arg("checkpoints:idx:*").query(&mut server.connection()).unwrap();
    assert_eq!(threads.len(), 3, "{threads:?}");
    for thread in threads {
        let thread = thread.strip_prefix("checkpoints:idx:").unwrap();
        saver(&server).await.delete(thread).await.unwrap();
    }
    assert_eq!(keys(&server), 0);
}

#[tokio::test]
async fn fork_leaves_its_original_as_it_was() {
    let server = Server::start();
    let graph = ticking(&server).await;
    run(&graph, State::new()).await.unwrap();
    let saver = saver(&server).await;
    let before = all_of_each(&saver.list("t").await.unwrap());
    graph.time_travel("t").unwrap().fork_at(2, "fork").await.unwrap();
    graph.invoke(State::new(), ExecutionConfig::new("fork")).await.unwrap();
    saver.save(&checkpoint("fork", 99)).await.unwrap();
    assert!(saver.list("fork").await.unwrap().len() > 2);
    assert_eq!(all_of_each(&saver.list("t").await.unwrap()), before);
    saver.delete("fork").await.unwrap();
    assert_eq!(all_of_each(&saver.list("t").await.unwrap()), before);
}

#[tokio::test]
async fn checkpoint_without_newer_fields_is_read() {
    let server = Server::start();
    let record = json!({
        "thread_id": "t", "checkpoint_id": "id", "state": { "value": 7 }, "step": 3,
        "pending_nodes": ["next"], "metadata": {}, "created_at": "2026-07-01T12:00:00Z",
    });
    let created: DateTime<chrono::Utc> = record["created_at"].as_str().unwrap().parse().unwrap();
    let backend = RedisBackend::builder(server.url()).prefix("checkpoints").connect().await.unwrap();
    let key = format!("t:{}-id", created.timestamp_micros());
    let data = serde_json::to_vec(&record).unwrap();
    backend.put_with(&key, &data, &WriteTerms::new().newest()).await.unwrap();
    let read = saver(&server).await.load("t").await.unwrap().unwrap();
    assert_eq!((read.step, &read.state["value"], read.created_at), (3, &json!(7), created));
    assert!(read.cleared_interrupt.is_none() && read.attempts.is_empty() && read.child_ledger.is_empty());
}
