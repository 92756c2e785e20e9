//! Shows that MCP tasks outlive the MCP server that runs them, and that nobody waits for a server that has died. One command, nothing to set up:
//!
//! ```text
//! cargo run -p pmcptask-client --example mcp_task_demo
//! ```
//!
//! It starts a Redis server with the module: `redis-server` of the search path, or the program that
//! `PMCPTASK_SERVER` names. With `REDIS_URL` it uses the server there, which must have the module. It runs
//! `mcp_task_server` in separate processes and talks to them over HTTP with pmcp's client. It has checked
//! everything that it prints, and ends with exit code 1 at the first thing that is wrong.

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use pmcp::shared::streamable_http::{StreamableHttpTransport, StreamableHttpTransportConfigBuilder};
use pmcp::types::elicitation::{ElicitAction, ElicitResult};
use pmcp::types::protocol::{PROTOCOL_VERSION_2026_07_28, ProtocolVersion};
use pmcp::types::tasks::{Task, TaskDetailV2, TaskStatus};
use pmcp::types::{CallToolResult, ClientCapabilities, Content, InputResponse, InputResponses};
use pmcp::{Client, ClientBuilder, ToolCallResponse, WaitForTaskOptions};
use pmcptask_tests::{Server, ServerOptions};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const TEXT: &str = "the quick brown fox\njumps over\nthe lazy dog\nand then\nsleeps until noon";
const ANSWER: &str = "14 words";

/// Far more than the steps of the tool need, so a run that hits it is stuck.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time between two polls.
const POLL: Duration = Duration::from_millis(100);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(demo()).await {
        Ok(()) => {
            println!("\nEverything was as it should be.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nFAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    println!("MCP tasks that outlive their server. Building the module and the MCP server first ...");
    let program = build_mcp_server().await?;
    // Held to the end, because the server ends with its handle.
    let (_server, redis_url) = if let Ok(url) = env::var("REDIS_URL") {
        (None, url)
    } else {
        let server = Server::try_start_with(&ServerOptions::default())?;
        let url = server.url();
        (Some(server), url)
    };
    let mut redis = redis::Client::open(redis_url.as_str())?.get_multiplexed_async_connection().await?;
    println!("The Redis server that keeps the tasks: {}", server_name(&mut redis).await?);

    println!("\n1. Alice calls a slow tool as a task, follows its progress and reads its result.");
    let mcp_a = McpServer::start("A", &program, &redis_url).await?;
    let alice = mcp_a.connect("alice").await?;
    let task = alice.start_task().await?;
    let id = task.task_id.as_str();
    alice.follow(id).await?;
    alice.expect_answer(id).await?;

    println!("\n2. MCP server A is killed, no other runs. The task lies in Redis, with its result.");
    mcp_a.kill().await?;
    expect_stored(&mut redis, id).await?;

    println!("\n3. A new MCP server still has the task and its result.");
    let mut mcp_b = McpServer::start("B", &program, &redis_url).await?;
    let alice = mcp_b.connect("alice").await?;
    let kept = alice.client.tasks_get(id).await?;
    check(kept.status == TaskStatus::Completed, "the task is not completed any more")?;
    check(kept.created_at == task.created_at, "the task has another creation time than before")?;
    alice.show("tasks/get", &format!("{}, created at {}", kept.status, kept.created_at));
    alice.expect_answer(id).await?;

    println!("\n4. Two MCP servers at once: what is started at one is followed and read at the other.");
    let mcp_c = McpServer::start("C", &program, &redis_url).await?;
    let alice_at_c = mcp_c.connect("alice").await?;
    let second = alice.start_task().await?;
    alice_at_c.follow(&second.task_id).await?;
    alice_at_c.expect_answer(&second.task_id).await?;
    for session in [&alice, &alice_at_c] {
        let listed = session.list().await?;
        check(listed.contains(&task.task_id), "tasks/list lacks the first task")?;
        check(listed.contains(&second.task_id), "tasks/list lacks the second task")?;
        session.show("tasks/list", "has both tasks");
    }

    println!("\n5. The tasks are Alice's. Bob, with a valid token of his own, does not see them.");
    let bob = mcp_c.connect("bob").await?;
    bob.expect_refusal("tasks/get", bob.client.tasks_get(id).await, "not found")?;
    bob.expect_refusal("tasks/result", bob.client.tasks_result(id).await, "not available")?;
    check(bob.list().await?.is_empty(), "tasks/list shows tasks to Bob, who has none")?;
    bob.show("tasks/list", "no tasks");

    println!("\n6. A cancel at one MCP server stops the tool at another.");
    let third = alice.start_task().await?;
    alice.wait_for_progress(&third.task_id).await?;
    let cancelled = alice_at_c.client.tasks_cancel(&third.task_id).await?;
    check(cancelled.status == TaskStatus::Cancelled, "the task is not cancelled")?;
    alice_at_c.show("tasks/cancel", "cancelled");
    mcp_b.expect_line(&format!("task {}: cancelled, the work stops", third.task_id)).await?;

    println!(
        "\n7. Both protocols, the same tasks. With that of 2026-07-28, a task asks for what is missing."
    );
    let new_alice = mcp_b.connect_2026("alice")?;
    let new_alice_at_c = mcp_c.connect_2026("alice")?;
    new_alice_at_c.expect_answer_2026(&second.task_id).await?;
    let asking = new_alice.start(json!({}), TaskStatus::InputRequired).await?;
    let id = asking.task_id.as_str();
    new_alice_at_c.answer_question(id).await?;
    alice.follow(id).await?;
    alice.expect_answer(id).await?;
    new_alice_at_c.expect_answer_2026(id).await?;

    println!(
        "\n8. An MCP server is killed in the middle of a tool's work. Who waits at another learns of it within 15 s."
    );
    let lost = alice.start_task().await?;
    let id = lost.task_id.as_str();
    alice.wait_for_progress(id).await?;
    // The request waits at C until the task has ended.
    let (answer, killed) = tokio::join!(alice_at_c.client.tasks_result(id), async {
        mcp_b.kill().await.map(|()| Instant::now())
    });
    let waited = killed?.elapsed();
    alice_at_c.expect_refusal("tasks/result", answer, "not available")?;
    let failed = alice_at_c.client.tasks_get(id).await?;
    check(failed.status == TaskStatus::Failed, "the wait is over, but the task has not failed")?;
    check(waited < Duration::from_secs(16), "the task failed too late")?;
    let message = failed.status_message.unwrap_or_default();
    alice_at_c.show("tasks/get", &format!("failed: {message} ({waited:.0?} after the kill)"));
    Ok(())
}

fn check(holds: bool, otherwise: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

/// `cargo run` builds one example only, so the demo builds the other. Both land in the same folder.
async fn build_mcp_server() -> Result<PathBuf> {
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let build =
        ["build", "--package", "pmcptask-client", "--example", "mcp_task_server", "--profile", profile];
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.args(build).arg("--quiet").current_dir(env!("CARGO_MANIFEST_DIR"));
    // `cargo run` sets these for the demo. Build scripts that watch them would see a change, and much would
    // be built again with every run.
    for (name, _) in env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|set| name.to_string_lossy().starts_with(set)) {
            command.env_remove(name);
        }
    }
    let built = command.status().await;
    if !built.is_ok_and(|status| status.success()) {
        return Err(format!("the MCP server is not there; this builds it: cargo {}", build.join(" ")).into());
    }
    Ok(env::current_exe()?.with_file_name("mcp_task_server"))
}

async fn server_name(redis: &mut MultiplexedConnection) -> Result<String> {
    let info: redis::InfoDict = redis::cmd("INFO").arg("server").query_async(redis).await?;
    // Valkey gives both its own version and that of the compatible Redis.
    let version = |field| info.get::<String>(field);
    let valkey = version("valkey_version").map(|version| format!("Valkey {version}"));
    let name = valkey.or_else(|| version("redis_version").map(|version| format!("Redis {version}")));
    Ok(name.ok_or("the server does not tell its version")?)
}

/// Reads Alice's task from Redis, without any MCP server.
async fn expect_stored(redis: &mut MultiplexedConnection, id: &str) -> Result<()> {
    let key = format!("pmcp:tasks:alice:{id}");
    let found: Option<(u64, String)> = redis::cmd("PMCPTASK.GET").arg(&key).query_async(redis).await?;
    let (version, record) = found.ok_or_else(|| format!("there is no {key} in Redis"))?;
    check(record.contains(ANSWER), "the record in Redis lacks the result")?;
    println!("   PMCPTASK.GET {key}\n   -> version {version}, a record of {} bytes", record.len());
    Ok(())
}

/// A running MCP server process.
struct McpServer {
    name: &'static str,
    process: Child,
    output: Lines<BufReader<ChildStdout>>,
    url: String,
}

impl McpServer {
    async fn start(name: &'static str, program: &Path, redis_url: &str) -> Result<Self> {
        let mut process = Command::new(program)
            .arg(redis_url)
            .stdout(Stdio::piped())
            // A failed check must not leave servers behind.
            .kill_on_drop(true)
            .spawn()?;
        let stdout = process.stdout.take().ok_or("the MCP server has no output")?;
        // The port comes from the OS, so the server has to say which one it is.
        let mut output = BufReader::new(stdout).lines();
        let url = output.next_line().await?;
        let url = url.ok_or("the MCP server ended before it served; see above")?;
        println!("   MCP server {name} serves at {url}, process {}", process.id().unwrap_or_default());
        Ok(Self { name, process, output, url })
    }

    /// A client with the protocol of 2025-11-25.
    async fn connect(&self, user: &str) -> Result<Session> {
        let mut client = Client::new(self.transport(user)?);
        client.initialize(ClientCapabilities::default()).await?;
        Ok(Session { name: format!("{user} at {}", self.name), client })
    }

    /// A client with the protocol of 2026-07-28. Every request names the version and says that the client knows tasks, so there is
    /// nothing to agree on before.
    fn connect_2026(&self, user: &str) -> Result<Session> {
        let version = ProtocolVersion(PROTOCOL_VERSION_2026_07_28.to_owned());
        let builder = ClientBuilder::new(self.transport(user)?).with_protocol_version(version)?;
        let client = builder.with_tasks_extension().build();
        Ok(Session { name: format!("{user} at {}, 2026", self.name), client })
    }

    fn transport(&self, user: &str) -> Result<StreamableHttpTransport> {
        let config = StreamableHttpTransportConfigBuilder::new(self.url.parse()?)
            .with_header("authorization", format!("Bearer {user}-token"))
            .build();
        Ok(StreamableHttpTransport::new(config))
    }

    /// Waits until the server prints this line.
    async fn expect_line(&mut self, expected: &str) -> Result<()> {
        let line = tokio::time::timeout(PATIENCE, self.output.next_line()).await??;
        check(line.as_deref() == Some(expected), &format!("expected '{expected}', got {line:?}"))?;
        println!("   MCP server {} prints: {expected}", self.name);
        Ok(())
    }

    /// SIGKILL, so that the server can save nothing before it ends.
    async fn kill(mut self) -> Result<()> {
        self.process.kill().await?;
        println!("   MCP server {} killed (SIGKILL)", self.name);
        Ok(())
    }
}

/// A user's client at one of the MCP servers.
struct Session {
    name: String,
    client: Client<StreamableHttpTransport>,
}

impl Session {
    fn show(&self, request: &str, answer: &str) {
        println!("   {:<16}  {request:<12} -> {answer}", self.name);
    }

    async fn start_task(&self) -> Result<Task> {
        self.start(json!({ "text": TEXT }), TaskStatus::Working).await
    }

    async fn start(&self, arguments: Value, status: TaskStatus) -> Result<Task> {
        match self.client.call_tool_with_task("count_words".into(), arguments).await? {
            ToolCallResponse::Task(task) if task.status == status => {
                self.show("tools/call", &format!("task {}", task.task_id));
                Ok(task)
            }
            other => Err(format!("tools/call started no task: {other:?}").into()),
        }
    }

    /// Polls until the task has completed, and shows each change.
    async fn follow(&self, id: &str) -> Result<()> {
        let poll = async {
            let mut seen = Vec::new();
            loop {
                let task = self.client.tasks_get(id).await?;
                // The first poll may be faster than the first report.
                if let Some(message) = task.status_message
                    && seen.last() != Some(&message)
                {
                    self.show("tasks/get", &format!("{}: {message}", task.status));
                    seen.push(message);
                }
                match task.status {
                    TaskStatus::Completed => return check(seen.len() > 1, "no progress was seen"),
                    status if status.is_terminal() => return Err(format!("the task has {status}").into()),
                    _ => tokio::time::sleep(POLL).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, poll).await.map_err(|_| format!("task {id} does not end"))?
    }

    /// Polls until the tool has reported its first step.
    async fn wait_for_progress(&self, id: &str) -> Result<()> {
        let poll = async {
            while self.client.tasks_get(id).await?.status_message.is_none() {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, poll).await.map_err(|_| format!("task {id} makes no progress"))?
    }

    async fn expect_answer(&self, id: &str) -> Result<()> {
        self.check_answer("tasks/result", &self.client.tasks_result(id).await?)
    }

    /// With the protocol of 2026-07-28, the result comes with `tasks/get`.
    async fn expect_answer_2026(&self, id: &str) -> Result<()> {
        let result = self.client.wait_for_task(id, WaitForTaskOptions::default()).await?;
        self.check_answer("tasks/get", &result)
    }

    fn check_answer(&self, request: &str, result: &CallToolResult) -> Result<()> {
        let answers = matches!(result.content.as_slice(), [Content::Text { text }] if text == ANSWER);
        check(answers && !result.is_error, &format!("{request} is not '{ANSWER}': {result:?}"))?;
        self.show(request, ANSWER);
        Ok(())
    }

    /// Gives the task the text that it asks for.
    async fn answer_question(&self, id: &str) -> Result<()> {
        let task = self.client.tasks_get_detailed(id).await?;
        let asks = match task.detail() {
            TaskDetailV2::InputRequired { input_requests } => input_requests.contains_key("text"),
            _ => false,
        };
        check(asks, &format!("the task does not ask for a text: {task:?}"))?;
        self.show("tasks/get", "input_required: text");
        let content = HashMap::from([("text".to_owned(), json!(TEXT))]);
        let answer = ElicitResult { action: ElicitAction::Accept, content: Some(content) };
        let answers =
            InputResponses::from([("text".to_owned(), InputResponse::Elicitation(Box::new(answer)))]);
        self.client.tasks_update(id, answers).await?;
        self.show("tasks/update", "text given");
        Ok(())
    }

    /// The ids of all tasks that the user sees.
    async fn list(&self) -> Result<Vec<String>> {
        let (mut ids, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.client.tasks_list(cursor).await?;
            ids.extend(page.tasks.into_iter().map(|task| task.task_id));
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(ids);
            }
        }
    }

    /// Refusals are told apart by message, because pmcp answers most with the same "internal error" code.
    fn expect_refusal<T>(&self, request: &str, answer: pmcp::Result<T>, reason: &str) -> Result<()> {
        match answer {
            Err(pmcp::Error::Protocol { message, .. }) if message.contains(reason) => {
                self.show(request, &format!("refused: {message}"));
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(_) => Err(format!("{request}: expected a refusal, got an answer").into()),
        }
    }
}
