//! What a client of an MCP server feels: a tool is called as a task over HTTP, then the task and its result are read. Server
//! and client are pmcp's own and share this process, as in the examples of pmcp. The tool completes inside the call,
//! so that each store gets the same calls in the same order: create, result, completed, and two reads.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::try_join_all;
use pmcp::server::streamable_http_server::{StreamableHttpServer, StreamableHttpServerConfig};
use pmcp::server::task_store::TaskStore as Store;
use pmcp::server::typed_tool::TypedTool;
use pmcp::shared::streamable_http::{StreamableHttpTransport, StreamableHttpTransportConfigBuilder};
use pmcp::types::tasks::TaskStatus;
use pmcp::types::{ClientCapabilities, Content, TaskSupport, ToolExecution};
use pmcp::{Client, Server, ToolCallResponse, ToolHandler};
use pmcptask_tests::{Proxy, ServerOptions};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::contest::{LUA, OURS, Servers, connection};
use crate::figures::write;
use crate::machine;
use crate::plot::{Bar, bars};
use crate::rates::Rates;
use crate::stores::{GENERIC, MEMORY, NEAR, STORE, server_of, store};
use crate::{Result, repeats};

const CLIENTS: [usize; 2] = [1, 8];
/// Tasks that all clients together start in one run. They stay, all with the same owner.
const TASKS: usize = 200;
/// Tasks in memory, and `PING`s of the tool: as many as a task has round trips with the near cache.
const BOUND: &str = "InMemoryTaskStore, and PINGs";
const NAMES: [&str; 6] = [MEMORY, BOUND, NEAR, STORE, GENERIC, LUA];

const TOOL: &str = "answer";
const ANSWER: &str = "done";

type HttpClient = Client<StreamableHttpTransport>;

/// Measures all stores, and writes a table and a plot.
///
/// # Errors
///
/// If a step fails.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let servers = Servers::start(&ServerOptions::default())?;
    let pings = round_trips_of(NEAR, &servers).await?;
    let rates = Rates::measure(&servers, &CLIENTS, &NAMES, async |name, clients| {
        let server = server_of(name, &servers);
        if name == BOUND {
            let pings = Pings { connection: connection(&server.url()).await?, times: pings };
            tasks_per_second(store(MEMORY, &server.url()).await?, Some(pings), clients).await
        } else {
            tasks_per_second(store(name, &server.url()).await?, None, clients).await
        }
    });
    let rates = rates.await?;
    let mut table = "| store | round trips per task | 1 client | 8 clients |\n|---|---|---|---|\n".to_owned();
    for name in NAMES {
        let round_trips = match name {
            MEMORY => 0,
            BOUND => pings,
            _ => round_trips_of(name, &servers).await?,
        };
        let [one, eight] = CLIENTS.map(|clients| rates.shown(clients, name, MEMORY));
        writeln!(table, "| {name} | {round_trips} | {one} | {eight} |")?;
    }
    writeln!(
        table,
        "\nTasks per second, and how many times those with `{MEMORY}`: median (minimum to maximum) of {} runs of {TASKS} tasks, \
         all of one owner. A task: `tools/call` with a tool that completes inside the call, `tasks/get`, `tasks/result`, over HTTP. \
         {BOUND}: the tool sends {pings} `PING`s one after the other; with so many round trips, no store over a server can be \
         faster.\n\n`{}`",
        repeats(),
        machine::described(servers.of(OURS)),
    )?;
    println!("{table}");
    write(folder, "mcp.md", &table)?;
    let rows = CLIENTS.into_iter().flat_map(|clients| NAMES.map(|name| (clients, name)));
    let rows = rows.filter(|(_, name)| *name != MEMORY).filter_map(|(clients, name)| {
        let label = format!("{name}, {clients} at once");
        Some(Bar { label, figure: rates.ratio(clients, name, MEMORY)?.median })
    });
    let title = "Tasks per second over HTTP by those with tasks in memory";
    bars(folder, "mcp.svg", title, "x", &rows.collect::<Vec<_>>())
}

/// What the tool sends.
#[derive(Clone)]
struct Pings {
    connection: MultiplexedConnection,
    times: usize,
}

impl Pings {
    async fn send(mut self) -> redis::RedisResult<()> {
        for _ in 0..self.times {
            redis::cmd("PING").exec_async(&mut self.connection).await?;
        }
        Ok(())
    }
}

/// The round trips of a task: how many times something was sent.
async fn round_trips_of(name: &str, servers: &Servers) -> Result<usize> {
    servers.empty()?;
    let proxy = Proxy::to(server_of(name, servers).port());
    let (address, serving) = serve(store(name, &proxy.url()).await?, None).await?;
    let client = connect(address).await?;
    call(&client).await?;
    let before = proxy.sent();
    call(&client).await?;
    serving.abort();
    Ok(proxy.sent() - before)
}

async fn tasks_per_second(store: Arc<dyn Store>, pings: Option<Pings>, clients: usize) -> Result<f64> {
    let (address, serving) = serve(store, pings).await?;
    let clients = try_join_all((0..clients).map(|_| connect(address))).await?;
    let each = TASKS / clients.len();
    let started = Instant::now();
    let calls = clients.into_iter().map(|client| async move {
        for _ in 0..each {
            call(&client).await?;
        }
        Result::Ok(())
    });
    try_join_all(calls.map(|calls| async { tokio::spawn(calls).await? })).await?;
    let took = started.elapsed();
    serving.abort();
    Ok(f64::from(u32::try_from(TASKS)?) / took.as_secs_f64())
}

/// A server as `mcp_task_server` builds it, for anonymous callers.
async fn serve(store: Arc<dyn Store>, pings: Option<Pings>) -> Result<(SocketAddr, JoinHandle<()>)> {
    let server =
        Server::builder().name("bench").version("1").tool(TOOL, tool(pings)).task_store(store).build()?;
    let config = StreamableHttpServerConfig::stateless();
    let http = StreamableHttpServer::with_config_concurrent("127.0.0.1:0".parse()?, Arc::new(server), config);
    Ok(http.start().await?)
}

fn tool(pings: Option<Pings>) -> impl ToolHandler {
    let task = json!({
        "taskId": "",
        "status": "completed",
        "result": { "content": [{ "type": "text", "text": ANSWER }] },
    });
    let tool = TypedTool::new_with_schema(TOOL, json!({ "type": "object" }), move |_: Value, _| {
        let (task, pings) = (task.clone(), pings.clone());
        Box::pin(async {
            if let Some(pings) = pings {
                pings.send().await.map_err(|error| pmcp::Error::internal(error.to_string()))?;
            }
            Ok(task)
        })
    });
    tool.with_execution(ToolExecution::new().with_task_support(TaskSupport::Required))
}

async fn connect(address: SocketAddr) -> Result<HttpClient> {
    let config = StreamableHttpTransportConfigBuilder::new(format!("http://{address}/").parse()?).build();
    let mut client = Client::new(StreamableHttpTransport::new(config));
    client.initialize(ClientCapabilities::default()).await?;
    Ok(client)
}

/// Calls the tool as a task, and reads the task and its result.
async fn call(client: &HttpClient) -> Result<()> {
    let ToolCallResponse::Task(task) = client.call_tool_with_task(TOOL.to_owned(), json!({})).await? else {
        return Err("the tool was not called as a task".into());
    };
    let status = client.tasks_get(&task.task_id).await?.status;
    let content = client.tasks_result(&task.task_id).await?.content;
    match content.as_slice() {
        [Content::Text { text }] if text == ANSWER && status == TaskStatus::Completed => Ok(()),
        _ => Err(format!("expected a completed task and '{ANSWER}', got {status} and {content:?}").into()),
    }
}
