//! An MCP server with a long-running tool. The tool runs as a task that outlives the process. A template
//! to copy.
//!
//! It needs a Redis or Valkey server with the `pmcptask` module, and prints the URL at which it serves:
//!
//! ```text
//! cargo run -p pmcptask-client --example mcp_task_server -- redis://127.0.0.1:6379
//! ```
//!
//! Callers are known by a token: `Authorization: Bearer alice-token`, or `bob-token`. The server speaks the protocols of 2025-11-25
//! and 2026-07-28, with the same tasks. With the newer one, a task can ask the client for what is missing.
//!
//! The server itself keeps nothing. Everything that a client can ask about a task (its status, its progress,
//! its result, its owner) is in Redis, so any instance can answer. If an instance dies, its tasks fail within
//! 15 s, for whoever looks at them at another instance. `mcp_task_demo` shows it.

use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pmcp::server::auth::{AuthContext, AuthProvider};
use pmcp::server::streamable_http_server::{StreamableHttpServer, StreamableHttpServerConfig};
use pmcp::server::task_store::CreatedTask;
use pmcp::server::typed_tool::TypedTool;
use pmcp::types::protocol::{Era, LATEST_PROTOCOL_VERSION, PROTOCOL_VERSION_2026_07_28, ProtocolVersion};
use pmcp::types::{CallToolResult, Content, TaskSupport, ToolExecution};
use pmcp::{AllowedOrigins, RequestHandlerExtra, Server, ToolHandler};
use pmcptask_client::{RedisBackend, TaskStore, Worker, WorkerError};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

/// Stands in for the slow part of a real tool.
const STEP: Duration = Duration::from_millis(300);

/// How long a `tasks/result` waits for the end of its task. Proxies in between must not give up earlier.
const RESULT_WAIT: Duration = Duration::from_mins(1);

/// A finished task counts against its owner's limit (100 by default) until it expires. A short life keeps
/// repeated runs below the limit.
const TASK_TTL_MS: u64 = 10 * 60 * 1000;

#[tokio::main]
async fn main() -> ExitCode {
    let Some(redis_url) = env::args().nth(1) else {
        eprintln!("usage: mcp_task_server <redis-url>");
        return ExitCode::from(2);
    };
    match serve(&redis_url).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mcp_task_server: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(redis_url: &str) -> Result<(), Box<dyn Error>> {
    // No `allow_anonymous`: a task without a real owner is refused, so no caller can read or cancel another
    // caller's task. A `tasks/result` that waits holds up nobody, because this server is `concurrent`, see below.
    let store = TaskStore::new(RedisBackend::new(redis_url).await?).wait_for_results(RESULT_WAIT);

    let versions = [LATEST_PROTOCOL_VERSION, PROTOCOL_VERSION_2026_07_28];
    let server = Server::builder()
        .name("count-words")
        .version(env!("CARGO_PKG_VERSION"))
        .with_supported_protocol_versions(versions.map(|version| ProtocolVersion(version.to_owned())))
        .auth_provider(DemoTokens)
        .tool("count_words", count_words_tool(store.clone()))
        // Setting a store is what advertises the `tasks` capability.
        .task_store(Arc::new(store))
        .build()?;

    // Sessions would live in this process's memory: after a restart, or at another instance, every request of
    // an old session would get a 404. `stateless()` drops the origin check, so it is set again.
    let config = StreamableHttpServerConfig {
        allowed_origins: Some(AllowedOrigins::localhost()),
        ..StreamableHttpServerConfig::stateless()
    };
    // `concurrent`, because a running call would otherwise hold up the polls of other clients.
    let http = StreamableHttpServer::with_config_concurrent("127.0.0.1:0".parse()?, Arc::new(server), config);
    // The socket is bound when `start` returns, so the printed line also tells the parent process that it
    // may connect.
    let (address, mut serving) = http.start().await?;
    println!("http://{address}/");

    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = &mut serving => ended?,
        _ = tokio::signal::ctrl_c() => serving.abort(),
        _ = terminate.recv() => serving.abort(),
    }
    Ok(())
}

#[derive(Deserialize)]
struct CountWords {
    /// Without a text, the task asks for it.
    text: Option<String>,
}

fn count_words_tool(store: TaskStore) -> impl ToolHandler {
    TypedTool::new_with_schema(
        "count_words",
        json!({
            "type": "object",
            "properties": { "text": { "type": "string" } },
        }),
        move |args: CountWords, extra: RequestHandlerExtra| {
            let store = store.clone();
            Box::pin(async move {
                // pmcp does not refuse a plain call of a task-only tool. It would hand the placeholder below
                // to the model as the answer.
                if !extra.will_create_task() {
                    return Err(pmcp::Error::tool_rejected("count_words runs only as a task", None));
                }
                let asks = args.text.is_none();
                if asks && extra.era() != Some(Era::V2) {
                    return Err(pmcp::Error::validation("text: expected a text, got none"));
                }
                // The task gets its id after this handler returns, so only the hook that gets the id can
                // start the work.
                extra.on_task_created(move |created| {
                    tokio::spawn(run(store, created, args.text));
                });
                // Any task-shaped value will do; the store's id replaces this one.
                Ok(if asks {
                    json!({
                        "taskId": "",
                        "status": "input_required",
                        "ttl": TASK_TTL_MS,
                        "inputRequests": question(),
                    })
                } else {
                    json!({ "taskId": "", "status": "working", "ttl": TASK_TTL_MS })
                })
            })
        },
    )
    .with_description("Counts the words of a text, one line per step")
    .with_execution(ToolExecution::new().with_task_support(TaskSupport::Required))
}

/// What the client finds in `tasks/get`, and answers with `tasks/update`.
fn question() -> Value {
    let schema = json!({
        "type": "object",
        "properties": { "text": { "type": "string" } },
        "required": ["text"],
    });
    let params = json!({ "mode": "form", "message": "Which text?", "requestedSchema": schema });
    json!({ "text": { "method": "elicitation/create", "params": params } })
}

/// The background half of a call. An error that could not be written to the task goes to the log, because
/// nobody else would see it.
async fn run(store: TaskStore, created: CreatedTask, text: Option<String>) {
    let (id, owner) = (created.task.task_id, created.owner_id);
    if let Err(error) = work(&store, &id, &owner, text).await {
        eprintln!("task {id}: {error}");
    }
}

/// The task's only worker. If this process dies, the task fails within 15 s. A tool whose work must go on needs a
/// queue that hands it to another worker.
async fn work(store: &TaskStore, id: &str, owner: &str, text: Option<String>) -> Result<(), WorkerError> {
    let worker = store.work_on(id, owner).await?;
    tokio::select! {
        // Somebody has cancelled the task, perhaps at another instance: the work is dropped where it stands.
        () = worker.cancelled() => {
            println!("task {id}: cancelled, the work stops");
            Ok(())
        }
        result = result(store, &worker, text) => match result? {
            // Result and status in one write, so that a cancelled task never gets a result.
            Some(result) => worker.complete(result).await,
            None => worker.fail("there is no text").await,
        },
    }
}

async fn result(
    store: &TaskStore,
    worker: &Worker,
    text: Option<String>,
) -> Result<Option<CallToolResult>, WorkerError> {
    let text = match text {
        Some(text) => Some(text),
        None => answer(store, worker).await?,
    };
    Ok(match text {
        Some(text) => Some(count_words(worker, &text).await),
        None => None,
    })
}

/// The text that the client answers with, perhaps at another instance. None if the client gives no text.
async fn answer(store: &TaskStore, worker: &Worker) -> Result<Option<String>, WorkerError> {
    let mut version = 0;
    while let Some(task) = store.changed(worker.task_id(), worker.owner_id(), version).await? {
        version = task.version;
        if let Some(answers) = task.input_responses {
            let text = answers.get("text").and_then(|answer| answer.pointer("/content/text"));
            return Ok(text.and_then(Value::as_str).map(str::to_owned));
        }
    }
    // The task has expired.
    Ok(None)
}

async fn count_words(worker: &Worker, text: &str) -> CallToolResult {
    let steps = text.lines().count();
    let mut words = Vec::new();
    for (step, line) in (1_usize..).zip(text.lines()) {
        // A message that could not be written is no reason to give up the work. A cancel, or a lease that is lost,
        // resolves `cancelled()`.
        if let Err(error) = worker.progress(format!("step {step} of {steps}")).await {
            eprintln!("task {}: {error}", worker.task_id());
        }
        tokio::time::sleep(STEP).await;
        words.extend(line.split_whitespace());
    }
    CallToolResult::new(vec![Content::text(format!("{} words", words.len()))])
}

/// Stands in for a real token check (JWT, introspection). For tasks, only the subject that it returns
/// matters: the subject is the owner of every task that the caller starts.
struct DemoTokens;

#[async_trait]
impl AuthProvider for DemoTokens {
    async fn validate_request(&self, header: Option<&str>) -> pmcp::Result<Option<AuthContext>> {
        match header {
            Some("Bearer alice-token") => Ok(Some(AuthContext::new("alice"))),
            Some("Bearer bob-token") => Ok(Some(AuthContext::new("bob"))),
            // `Ok(None)` would let the request in, as the shared owner "local".
            _ => Err(pmcp::Error::authentication("unknown token")),
        }
    }
}
