//! An MCP server with a long-running tool. The tool runs as a task that outlives the process. A template
//! to copy.
//!
//! It needs a Redis or Valkey server with the `pmcptask` module, and prints the URL at which it serves:
//!
//! ```text
//! cargo run -p pmcptask-client --example mcp_task_server -- redis://127.0.0.1:6379
//! ```
//!
//! Callers are known by a token: `Authorization: Bearer alice-token`, or `bob-token`.
//!
//! The server itself keeps nothing. Everything that a client can ask about a task (its status, its progress,
//! its result, its owner) is in the backend, so any instance with the same backend can answer.
//! `mcp_task_demo` shows it.

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
use pmcp::types::{CallToolResult, Content, TaskSupport, ToolExecution};
use pmcp::{AllowedOrigins, RequestHandlerExtra, Server, ToolHandler};
use pmcp_tasks::{GenericTaskStore, ServerTaskStore, TaskError, TaskStatus};
use serde::Deserialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// The one line to change for another storage: anything that implements `pmcp_tasks::StorageBackend`.
type Backend = pmcptask_client::RedisBackend;
type Store = ServerTaskStore<Backend>;

/// Stands in for the slow part of a real tool.
const STEP: Duration = Duration::from_millis(300);

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
    let backend = Backend::new(redis_url).await?;
    // No `allow_anonymous`: a task without a real owner is refused, so no caller can read or cancel another
    // caller's task.
    let store = Arc::new(Store::new(GenericTaskStore::new(backend)));

    let server = Server::builder()
        .name("count-words")
        .version(env!("CARGO_PKG_VERSION"))
        .auth_provider(DemoTokens)
        .tool("count_words", count_words_tool(Arc::clone(&store)))
        // Setting a store is what advertises the `tasks` capability.
        .task_store(store)
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
    text: String,
}

fn count_words_tool(store: Arc<Store>) -> impl ToolHandler {
    TypedTool::new_with_schema(
        "count_words",
        json!({
            "type": "object",
            "properties": { "text": { "type": "string" } },
            "required": ["text"],
        }),
        move |args: CountWords, extra: RequestHandlerExtra| {
            let store = Arc::clone(&store);
            Box::pin(async move {
                // pmcp does not refuse a plain call of a task-only tool. It would hand the placeholder below
                // to the model as the answer.
                if !extra.will_create_task() {
                    return Err(pmcp::Error::tool_rejected("count_words runs only as a task", None));
                }
                // The task gets its id after this handler returns, so only the hook that gets the id can
                // start the work.
                extra.on_task_created(move |created| {
                    tokio::spawn(run(store, created, args.text));
                });
                // Any task-shaped value will do; the store's id replaces this one.
                Ok(json!({ "taskId": "", "status": "working", "ttl": TASK_TTL_MS }))
            })
        },
    )
    .with_description("Counts the words of a text, one line per step")
    .with_execution(ToolExecution::new().with_task_support(TaskSupport::Required))
}

/// The background half of a call. An error that could not be written to the task goes to the log, because
/// nobody else would see it.
///
/// The task's state survives this process, but the work does not: if the process dies here, the task stays
/// `working` until it expires. A tool whose work must go on needs a queue that hands it to another worker.
async fn run(store: Arc<Store>, created: CreatedTask, text: String) {
    let (id, owner) = (created.task.task_id, created.owner_id);
    match count_words(&store, &id, &owner, &text).await {
        Ok(()) => {}
        // A cancelled task is terminal and refuses further writes. That is how this worker hears of the
        // cancel, even if another instance took the request.
        Err(TaskError::InvalidTransition { from, .. }) => eprintln!("task {id}: stopped, {from}"),
        Err(error) => eprintln!("task {id}: {error}"),
    }
}

async fn count_words(store: &Store, id: &str, owner: &str, text: &str) -> Result<(), TaskError> {
    let steps = text.lines().count();
    let mut words = Vec::new();
    for (step, line) in (1_usize..).zip(text.lines()) {
        let message = format!("step {step} of {steps}");
        match store.inner().set_status_message(id, owner, Some(message)).await {
            // Losing a race for one progress message is harmless: the next step reports again, and finds
            // out if the other writer was a cancel.
            Ok(_) | Err(TaskError::ConcurrentModification { .. }) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(STEP).await;
        words.extend(line.split_whitespace());
    }

    let result = CallToolResult::new(vec![Content::text(format!("{} words", words.len()))]);
    let result = serde_json::to_value(result).map_err(|error| TaskError::StoreError(error.to_string()))?;
    loop {
        // Result and status in one write. pmcp's own trait has two, and a crash or a cancel between them
        // would leave a half-finished task.
        let finished = store.inner().complete_with_result(
            id,
            owner,
            TaskStatus::Completed,
            Some(format!("{steps} lines counted")),
            result.clone(),
        );
        match finished.await {
            Err(TaskError::ConcurrentModification { .. }) => {}
            other => return other.map(drop),
        }
    }
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
