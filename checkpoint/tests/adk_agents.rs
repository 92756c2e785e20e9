//! Agents of adk-graph over `RedisCheckpointer`: the turns of a conversation, and a tool that waits for its
//! confirmation. Each turn is by an agent and a connection of its own, as by another process.
#![cfg(all(feature = "adk", feature = "redis-tests"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use adk_core::{
    Agent, Artifacts, CallbackContext, Content, Event, EventStream, InvocationContext, Memory, Part,
    ReadonlyContext, RunConfig, Session, ToolConfirmationDecision, ToolConfirmationRequest,
};
use adk_graph::agent::GraphAgent;
use adk_graph::checkpoint::Checkpointer as _;
use adk_graph::edge::{END, START};
use adk_graph::graph::{CompiledGraph, StateGraph};
use adk_graph::interrupt::{GraphInterruptPayload, GraphToolConfirmationPause};
use adk_graph::node::{AgentNode, ExecutionConfig, NodeOutput};
use adk_graph::state::State;
use adk_graph::stream::{StreamEvent, StreamMode};
use async_trait::async_trait;
use futures_util::stream::{self, StreamExt as _};
use pmcptask_tests::Server;
use serde_json::{Value, json};

use crate::support::saver;

/// A turn of a conversation: what the user says.
struct Turn {
    said: Content,
}

const CONVERSATION: &str = "conversation";

impl ReadonlyContext for Turn {
    fn invocation_id(&self) -> &'static str {
        "invocation"
    }

    fn agent_name(&self) -> &'static str {
        "agent"
    }

    fn user_id(&self) -> &'static str {
        "user"
    }

    fn app_name(&self) -> &'static str {
        "app"
    }

    fn session_id(&self) -> &'static str {
        CONVERSATION
    }

    fn branch(&self) -> &'static str {
        ""
    }

    fn user_content(&self) -> &Content {
        &self.said
    }
}

impl CallbackContext for Turn {
    fn artifacts(&self) -> Option<Arc<dyn Artifacts>> {
        None
    }
}

#[async_trait]
impl InvocationContext for Turn {
    fn agent(&self) -> Arc<dyn Agent> {
        panic!("no graph asks for it")
    }

    fn memory(&self) -> Option<Arc<dyn Memory>> {
        None
    }

    fn session(&self) -> &dyn Session {
        self
    }

    fn run_config(&self) -> &RunConfig {
        static DEFAULT: LazyLock<RunConfig> = LazyLock::new(RunConfig::default);
        &DEFAULT
    }

    fn end_invocation(&self) {}

    fn ended(&self) -> bool {
        false
    }
}

impl Session for Turn {
    fn id(&self) -> &'static str {
        CONVERSATION
    }

    fn app_name(&self) -> &'static str {
        "app"
    }

    fn user_id(&self) -> &'static str {
        "user"
    }

    fn state(&self) -> &dyn adk_core::State {
        self
    }

    fn conversation_history(&self) -> Vec<Content> {
        Vec::new()
    }
}

impl adk_core::State for Turn {
    fn get(&self, _: &str) -> Option<Value> {
        None
    }

    fn set(&mut self, _: String, _: Value) {}

    fn all(&self) -> HashMap<String, Value> {
        HashMap::new()
    }
}

async fn turn(agent: &GraphAgent, said: &str) -> Vec<Event> {
    let turn = Turn { said: Content::new("user").with_text(said) };
    agent.run(Arc::new(turn)).await.unwrap().map(Result::unwrap).collect().await
}

fn answers(events: &[Event]) -> Vec<&str> {
    let contents = events.iter().filter_map(|event| event.llm_response.content.as_ref());
    contents.flat_map(|content| content.parts.iter().filter_map(Part::text)).collect()
}

/// `prepare` counts the turns; `answer` asks for a go where the user says so.
async fn agent(server: &Server) -> GraphAgent {
    let builder = GraphAgent::builder("counts").channels(&["said", "turns", "output"]);
    let builder = builder.input_mapper(|context| {
        let said: String = context.user_content().parts.iter().filter_map(Part::text).collect();
        State::from([("said".to_owned(), json!(said))])
    });
    let builder = builder.node_fn("prepare", |context| async move {
        let turns = context.get("turns").and_then(Value::as_i64).unwrap_or(0);
        Ok(NodeOutput::new().with_update("turns", json!(turns + 1)))
    });
    let builder = builder.node_fn("answer", |context| async move {
        if context.get("said") == Some(&json!("wait")) {
            return Ok(NodeOutput::interrupt("go?"));
        }
        let answer = json!(format!("{} {}", context.state["said"].as_str().unwrap(), context.state["turns"]));
        Ok(NodeOutput::new().with_update("output", answer))
    });
    let builder = builder.edge(START, "prepare").edge("prepare", "answer").edge("answer", END);
    builder.checkpointer(saver(server).await).build().unwrap()
}

#[tokio::test]
async fn each_turn_of_a_conversation_runs_the_graph_over_the_state_of_the_last_one() {
    let server = Server::start();
    for (said, answer) in [("one", "one 1"), ("two", "two 2"), ("three", "three 3")] {
        assert_eq!(answers(&turn(&agent(&server).await, said).await), [answer]);
    }
    let stored = saver(&server).await.load(CONVERSATION).await.unwrap().unwrap();
    assert_eq!(stored.state["turns"], json!(3));
}

#[tokio::test]
async fn turn_after_a_pause_goes_on_with_the_paused_run() {
    let server = Server::start();
    let paused = turn(&agent(&server).await, "wait").await;
    assert!(paused.iter().any(|event| GraphInterruptPayload::from_event(event).is_some()), "{paused:?}");
    // `prepare` has not run again.
    assert_eq!(answers(&turn(&agent(&server).await, "go").await), ["go 1"]);
}

/// Asks for a confirmation of a call of a tool, unless there is one.
struct Careful;

const CALL: &str = "call-1";

#[async_trait]
impl Agent for Careful {
    fn name(&self) -> &'static str {
        "careful"
    }

    fn description(&self) -> &'static str {
        "asks before it acts"
    }

    fn sub_agents(&self) -> &[Arc<dyn Agent>] {
        &[]
    }

    async fn run(&self, context: Arc<dyn InvocationContext>) -> adk_core::Result<EventStream> {
        let decision = context.run_config().tool_confirmation_decisions.get(CALL);
        let mut event = Event::new(context.invocation_id());
        if decision == Some(&ToolConfirmationDecision::Approve) {
            event.set_content(Content::new("assistant").with_text("done"));
        } else {
            event.llm_response.interrupted = true;
            event.actions.tool_confirmation = Some(ToolConfirmationRequest {
                tool_name: "remove".to_owned(),
                function_call_id: Some(CALL.to_owned()),
                args: json!({ "what": "it" }),
            });
        }
        Ok(Box::pin(stream::iter([Ok(event)])))
    }
}

/// `beside` runs in the same step as the careful agent.
async fn careful(server: &Server) -> CompiledGraph {
    let graph = StateGraph::with_channels(&["messages", "besides"])
        .add_node(AgentNode::new(Arc::new(Careful)))
        .add_node_fn("beside", |context| async move {
            let besides = context.get("besides").and_then(Value::as_i64).unwrap_or(0);
            Ok(NodeOutput::new().with_update("besides", json!(besides + 1)))
        })
        .add_edge(START, "careful")
        .add_edge(START, "beside")
        .add_edge("careful", END)
        .add_edge("beside", END);
    graph.compile().unwrap().with_checkpointer(saver(server).await)
}

#[tokio::test]
async fn tool_that_waits_for_its_confirmation_is_called_by_another_process_and_nothing_beside_it_again() {
    let server = Server::start();
    let paused: Vec<_> = careful(&server)
        .await
        .stream(State::new(), ExecutionConfig::new("t"), StreamMode::Debug)
        .map(Result::unwrap)
        .collect()
        .await;
    let pause = paused.iter().find_map(GraphToolConfirmationPause::from_stream_event).unwrap();
    assert_eq!((pause.request.tool_name.as_str(), pause.thread_id.as_str()), ("remove", "t"));
    let stored = saver(&server).await.load_by_id(&pause.checkpoint_id).await.unwrap().unwrap();
    assert_eq!((stored.pending_nodes, &stored.state["besides"]), (vec!["careful".to_owned()], &json!(1)));

    let decisions = HashMap::from([(CALL.to_owned(), ToolConfirmationDecision::Approve)]);
    let decided = RunConfig::builder().tool_confirmation_decisions(decisions).build();
    let finished: Vec<_> = careful(&server)
        .await
        .stream_with_run_config(State::new(), ExecutionConfig::new("t"), StreamMode::Debug, decided)
        .map(Result::unwrap)
        .collect()
        .await;
    assert!(finished.iter().any(|event| matches!(event, StreamEvent::Done { .. })), "{finished:?}");
    let stored = saver(&server).await.load("t").await.unwrap().unwrap();
    assert_eq!((stored.pending_nodes, &stored.state["besides"]), (vec![], &json!(1)));
}
