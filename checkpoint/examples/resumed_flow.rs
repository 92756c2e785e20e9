//! Shows that a flow of graph-flow goes on in another process after its own was killed. One command, nothing to set up:
//!
//! ```text
//! cargo run -p pmcptask-checkpoint --features graph-flow --example resumed_flow
//! ```
//!
//! It starts a Redis server with the module: `redis-server` of the search path, or the program that
//! `PMCPTASK_SERVER` names. With `REDIS_URL` it uses the server there, which must have the module. It has checked what it
//! prints, and ends with exit code 1 if something is wrong.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use graph_flow::{
    Context, ExecutionStatus, FlowRunner, Graph, GraphBuilder, NextAction, Session, SessionStorage as _,
    Task, TaskResult,
};
use pmcptask_checkpoint::graph_flow::RedisSessionStorage;

mod two_processes;
use two_processes::{Result, Run, STEPS};

#[tokio::main]
async fn main() -> ExitCode {
    two_processes::demo("A flow", run).await
}

/// Starts the flow, or goes on with its session.
async fn run(run: Run) -> Result<Vec<String>> {
    let builder = RedisSessionStorage::builder(&run.redis_url);
    let storage = Arc::new(builder.default_ttl(Duration::from_hours(1)).connect().await?);
    let (flow, first) = (flow(&run)?, STEPS.first().copied().unwrap_or_default());
    if storage.get(&run.thread).await?.is_none() {
        storage.save(Session::new_from_task(run.thread.clone(), first)).await?;
    }
    let runner = FlowRunner::new(Arc::new(flow), storage.clone());
    // Each turn loads the session, does one step, and saves the session.
    while !matches!(runner.run(&run.thread).await?.status, ExecutionStatus::Completed) {}
    let session = storage.get(&run.thread).await?.ok_or("the session is gone")?;
    storage.delete(&run.thread).await?;
    Ok(session.context.get("ran").unwrap_or_default())
}

/// One task for each step.
fn flow(run: &Run) -> Result<Graph> {
    let mut flow = GraphBuilder::new("demo");
    for name in STEPS {
        flow = flow.add_task(Arc::new(Step { name, run: run.clone() }));
    }
    for (name, next) in STEPS.into_iter().zip(STEPS.into_iter().skip(1)) {
        flow = flow.add_edge(name, next);
    }
    Ok(flow.build()?)
}

struct Step {
    name: &'static str,
    run: Run,
}

#[async_trait]
impl Task for Step {
    fn id(&self) -> &str {
        self.name
    }

    async fn run(&self, context: Context) -> graph_flow::Result<TaskResult> {
        let mut ran: Vec<String> = context.get("ran").unwrap_or_default();
        ran.push(self.run.step(self.name).await);
        context.set("ran", ran)?;
        let is_last = STEPS.last() == Some(&self.name);
        Ok(TaskResult::new(None, if is_last { NextAction::End } else { NextAction::Continue }))
    }
}
