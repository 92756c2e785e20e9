//! Functional flows of adk-graph over `RedisCheckpointer`: plain functions whose tasks are checkpoints.
//! Each resume is by a flow and a connection of its own, as by another process.
#![cfg(all(feature = "adk", feature = "redis-tests"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]
#![allow(clippy::used_underscore_items, reason = "the names that `#[task]` makes")]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adk_graph::checkpoint::{Checkpointer, MemoryCheckpointer};
use adk_graph::error::{GraphError, Result};
use adk_graph::functional::{ExecutionLog, TaskContext};
use adk_graph::node::ExecutionConfig;
use adk_graph::state::{Checkpoint, State};
use adk_rust_macros::{entrypoint, task};
use pmcptask_tests::{Server, holds_within};
use serde_json::{Value, json};
use tokio::sync::{RwLock, broadcast};
use tokio_util::sync::CancellationToken;

use crate::support::{keys, saver};

/// What the tasks of each thread have done, in their order.
static DONE: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());

/// Returns how often the thread has done this before.
fn note(context: &TaskContext, what: &str) -> usize {
    let mut done = DONE.lock().unwrap();
    let done = done.entry(context.thread_id().to_owned()).or_default();
    done.push(what.to_owned());
    done.iter().filter(|done| *done == what).count() - 1
}

fn done(thread: &str) -> Vec<String> {
    DONE.lock().unwrap().get(thread).cloned().unwrap_or_default()
}

#[task]
#[allow(clippy::unused_async, reason = "tasks are async")]
async fn double(context: &mut TaskContext, number: i64) -> Result<Value> {
    note(context, &format!("double {number}"));
    Ok(json!(2 * number))
}

/// The first time, it fails, or never ends.
#[task]
async fn finish(context: &mut TaskContext, hangs: bool) -> Result<Value> {
    if note(context, "finish") > 0 {
        return Ok(json!("finished"));
    }
    if hangs {
        std::future::pending::<()>().await;
    }
    Err(GraphError::Other("for the first time".to_owned()))
}

/// Two of the calls are equal.
async fn sum_of_doubles(context: &mut TaskContext) -> Result<i64> {
    let mut sum = 0;
    for number in [1, 2, 2, 3] {
        sum += __task_double(context, number).await?.as_i64().unwrap();
        context.set("sum", json!(sum));
    }
    Ok(sum)
}

#[entrypoint]
async fn adds(context: &mut TaskContext) -> Result<Value> {
    sum_of_doubles(context).await.map(Value::from)
}

#[entrypoint]
async fn adds_and_fails(context: &mut TaskContext) -> Result<Value> {
    sum_of_doubles(context).await?;
    __task_finish(context, false).await
}

#[entrypoint]
async fn adds_and_hangs(context: &mut TaskContext) -> Result<Value> {
    sum_of_doubles(context).await?;
    __task_finish(context, true).await
}

/// Asks twice whether the sum is right.
#[entrypoint]
async fn adds_and_asks(context: &mut TaskContext) -> Result<Value> {
    let sum = sum_of_doubles(context).await?;
    let first: i64 = context.interrupt("how much is it?").await?;
    let second: i64 = context.interrupt("really?").await?;
    context.set("answers", json!([sum, first, second]));
    Ok(Value::Null)
}

const DOUBLES: [&str; 4] = ["double 1", "double 2", "double 2", "double 3"];
const SUM: i64 = 16;

async fn shared(server: &Server) -> Arc<dyn Checkpointer> {
    Arc::new(saver(server).await)
}

fn new(thread: &str) -> ExecutionConfig {
    ExecutionConfig::new(thread)
}

fn resumed(thread: &str) -> ExecutionConfig {
    ExecutionConfig::new(thread).with_resume_from("latest")
}

async fn newest(server: &Server, thread: &str) -> Checkpoint {
    saver(server).await.load(thread).await.unwrap().unwrap()
}

/// What a checkpoint of a flow holds, without the times at which its tasks ran.
fn timeless(checkpoint: &Checkpoint) -> Value {
    let mut metadata = json!(checkpoint.metadata);
    if let Some(Value::Object(tasks)) = metadata.pointer_mut("/execution_log/tasks") {
        for record in tasks.values_mut().filter_map(Value::as_object_mut) {
            record.remove("started_at");
            record.remove("completed_at");
        }
    }
    json!([checkpoint.step, checkpoint.state, checkpoint.pending_nodes, metadata])
}

#[tokio::test]
async fn flow_leaves_the_same_checkpoints_as_in_memory() {
    let server = Server::start();
    let checkpointers = [shared(&server).await, Arc::new(MemoryCheckpointer::new())];
    let mut left = Vec::new();
    for checkpointer in &checkpointers {
        let state = AddsAgent::new(Arc::clone(checkpointer)).invoke(State::new(), new("adds")).await.unwrap();
        assert_eq!(state["sum"], json!(SUM));
        let failed = AddsAndFailsAgent::new(Arc::clone(checkpointer));
        let _ = failed.invoke(State::new(), new("adds and fails")).await;
        let mut of_both = checkpointer.list("adds").await.unwrap();
        of_both.extend(checkpointer.list("adds and fails").await.unwrap());
        left.push(of_both.iter().map(timeless).collect::<Vec<_>>());
        // Other tests run at the same time.
        DONE.lock().unwrap().retain(|thread, _| !thread.starts_with("adds"));
    }
    // One before the first task, one after each task, one in the end.
    assert_eq!(left[0].len(), (1 + DOUBLES.len() + 1) + (1 + DOUBLES.len() + 1 + 1));
    assert_eq!(left[0], left[1]);
}

#[tokio::test]
async fn flow_that_failed_goes_on_in_another_process_and_repeats_no_finished_task() {
    let server = Server::start();
    let failed =
        AddsAndFailsAgent::new(shared(&server).await).invoke(State::new(), new("failed")).await.unwrap_err();
    assert!(failed.to_string().contains("for the first time"), "{failed}");
    let stored = newest(&server, "failed").await;
    assert_eq!((&stored.metadata["phase"], &stored.state["sum"]), (&json!("failed"), &json!(SUM)));

    let state =
        AddsAndFailsAgent::new(shared(&server).await).invoke(State::new(), resumed("failed")).await.unwrap();
    // Each repeated call has got the result of its own.
    assert_eq!(state["sum"], json!(SUM));
    assert_eq!(done("failed"), [&DOUBLES[..], &["finish", "finish"]].concat());
    assert_eq!(newest(&server, "failed").await.metadata["phase"], json!("completed"));
    saver(&server).await.delete("failed").await.unwrap();
    assert_eq!(keys(&server), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn flow_that_died_in_a_task_goes_on_with_that_task() {
    let server = Server::start();
    let dying = AddsAndHangsAgent::new(shared(&server).await);
    let dying = tokio::spawn(async move { dying.invoke(State::new(), new("died")).await.map(drop) });
    let hangs = || done("died").last().is_some_and(|last| last == "finish");
    assert!(holds_within(Duration::from_secs(10), hangs), "{:?}", done("died"));
    dying.abort();
    assert!(dying.await.unwrap_err().is_cancelled());

    let state =
        AddsAndHangsAgent::new(shared(&server).await).invoke(State::new(), resumed("died")).await.unwrap();
    assert_eq!(state["sum"], json!(SUM));
    assert_eq!(done("died"), [&DOUBLES[..], &["finish", "finish"]].concat());
}

/// The context of a process that goes on with the thread, with these answers to what the flow asks.
async fn context(server: &Server, thread: &str, answers: &[(&str, Value)]) -> TaskContext {
    let Checkpoint { state, mut metadata, .. } = newest(server, thread).await;
    let log: ExecutionLog = serde_json::from_value(metadata.remove("execution_log").unwrap()).unwrap();
    let (events, _) = broadcast::channel(16);
    let log = Arc::new(RwLock::new(log));
    let thread = thread.to_owned();
    let context =
        TaskContext::new(thread, state, shared(server).await, events, log, CancellationToken::new(), None);
    let answers = answers.iter().map(|(key, answer)| ((*key).to_owned(), answer.clone()));
    context.with_resume_values(answers.collect::<HashMap<_, _>>())
}

#[tokio::test]
async fn flow_that_asks_goes_on_with_the_answers_in_other_processes() {
    let server = Server::start();
    let asks = AddsAndAsksAgent::new(shared(&server).await);
    let asked = asks.invoke(State::new(), new("asks")).await.unwrap_err().to_string();
    assert!(asked.contains("interrupt-1") && asked.contains("how much is it?"), "{asked}");
    let asking = saver(&server).await.list("asks").await.unwrap();
    let key = asking.iter().find_map(|stored| stored.metadata.get("continuation_key")).unwrap();
    assert_eq!(key, "interrupt-1");

    // An answer of another type is no answer, and is not stored.
    let mut mistaken = context(&server, "asks", &[("interrupt-1", json!("much"))]).await;
    let refused = adds_and_asks(&mut mistaken).await.unwrap_err().to_string();
    assert!(refused.contains("mismatch") && refused.contains("interrupt-1"), "{refused}");
    assert_eq!(saver(&server).await.list("asks").await.unwrap().len(), asking.len());

    let mut halfway = context(&server, "asks", &[("interrupt-1", json!(SUM))]).await;
    let asked = adds_and_asks(&mut halfway).await.unwrap_err().to_string();
    assert!(asked.contains("interrupt-2") && asked.contains("really?"), "{asked}");
    let stored = newest(&server, "asks").await;
    assert_eq!(stored.metadata["continuation_key"], "interrupt-2");
    assert_eq!(stored.state["sum"], json!(SUM));
    // No task has run again.
    assert_eq!(done("asks"), DOUBLES);

    let both = AddsAndAsksAgent::new(shared(&server).await);
    // The checkpoint of a question has no log of the tasks: a resume from it runs them again, as in memory.
    let asked = both.invoke(State::new(), resumed("asks")).await.unwrap_err().to_string();
    assert!(asked.contains("interrupt-1"), "{asked}");
    let answers = [("interrupt-1", json!(SUM)), ("interrupt-2", json!(-1))];
    let mut answered = context(&server, "asks", &answers).await;
    adds_and_asks(&mut answered).await.unwrap();
    assert_eq!(answered.state()["answers"], json!([SUM, SUM, -1]));
}
