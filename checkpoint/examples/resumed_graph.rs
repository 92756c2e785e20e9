//! Shows that a graph of adk-graph goes on in another process after its own was killed. One command, nothing to set up:
//!
//! ```text
//! cargo run -p pmcptask-checkpoint --features adk --example resumed_graph
//! ```
//!
//! It starts a Redis server with the module: `redis-server` of the search path, or the program that
//! `PMCPTASK_SERVER` names. With `REDIS_URL` it uses the server there, which must have the module. It has checked what it
//! prints, and ends with exit code 1 if something is wrong.

use std::process::ExitCode;
use std::time::Duration;

use adk_graph::{
    Checkpointer as _, CompiledGraph, END, ExecutionConfig, NodeOutput, START, State, StateGraph, StateSchema,
};
use pmcptask_checkpoint::adk::RedisCheckpointer;
use serde_json::json;

mod two_processes;
use two_processes::{Result, Run, STEPS};

#[tokio::main]
async fn main() -> ExitCode {
    two_processes::demo("A graph", run).await
}

/// Starts the graph, or goes on from the newest checkpoint: the same call.
async fn run(run: Run) -> Result<Vec<String>> {
    let builder = RedisCheckpointer::builder(&run.redis_url);
    let checkpointer = builder.default_ttl(Duration::from_hours(1)).connect().await?;
    let graph = graph(&run)?.with_checkpointer(checkpointer.clone());
    let state = graph.invoke(State::new(), ExecutionConfig::new(&run.thread)).await?;
    checkpointer.delete(&run.thread).await?;
    Ok(serde_json::from_value(state.get("ran").cloned().unwrap_or_default())?)
}

/// One node for each step.
fn graph(run: &Run) -> Result<CompiledGraph> {
    let mut graph = StateGraph::new(StateSchema::builder().list_channel("ran").build());
    let mut before = START;
    for name in STEPS {
        let run = run.clone();
        graph = graph.add_node_fn(name, move |_| {
            let run = run.clone();
            async move { Ok(NodeOutput::new().with_update("ran", json!([run.step(name).await]))) }
        });
        graph = graph.add_edge(before, name);
        before = name;
    }
    Ok(graph.add_edge(before, END).compile()?)
}
