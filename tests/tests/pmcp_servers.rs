//! Servers and clients of pmcp with this project's task store: what pmcp's own examples do with `InMemoryTaskStore`.
//!
//! Each scenario runs over `InMemoryTaskStore`, over this project's store, and over this project's store with a near cache. It
//! checks what a client sees. Beyond that, all answers to the client are the same JSON, except for ids, times and cursors.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use pmcp::client::WaitForTaskOptions;
use pmcp::server::ToolOutput;
use pmcp::server::auth::{AuthContext, AuthProvider};
use pmcp::server::builder::ServerCoreBuilder;
use pmcp::server::core::{ProtocolHandler as _, ServerCore};
use pmcp::server::streamable_http_server::StreamableHttpServer;
use pmcp::server::task_store::{CreatedTask, InMemoryTaskStore, TaskStore};
use pmcp::server::typed_tool::TypedTool;
use pmcp::shared::streamable_http::{StreamableHttpTransport, StreamableHttpTransportConfigBuilder};
use pmcp::shared::{SharedSender, Transport, TransportMessage};
use pmcp::types::elicitation::{ElicitAction, ElicitResult};
use pmcp::types::protocol::{
    LATEST_PROTOCOL_VERSION, PROTOCOL_VERSION_2026_07_28, ProtocolVersion, error_codes,
};
use pmcp::types::tasks::{Task, TaskDetailV2, TaskMetadata, TaskPollDecision, TaskStatus};
use pmcp::types::{
    CallToolResult, ClientCapabilities, Content, InputRequest, InputRequests, InputResponse, InputResponses,
    TaskSupport, ToolExecution,
};
use pmcp::{Client, ClientBuilder, RequestHandlerExtra, ServerBuilder, ToolCallResponse, ToolHandler};
use pmcp_tasks::TaskSecurityConfig;
use pmcptask_client::RedisBackend;
use pmcptask_tests::{Server, holds_within, now_ms};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long something may take that happens. Only a broken store needs all of it.
const RECOVERY: Duration = Duration::from_secs(10);
/// A scenario that takes longer waits for what does not happen.
const LONGEST: Duration = Duration::from_mins(1);
/// Time between two polls.
const POLL: Duration = Duration::from_millis(5);

/// The owner of tasks whose caller is not known, with each protocol version.
const ANYBODY: &str = "local";
const ANYBODY_2026: &str = "";

/// The task id that a tool gives to what it returns. The store's id replaces it.
const OF_TOOL: &str = "an-id-of-the-tool";
const TOOL: &str = "count_words";

// Stores.

/// Runs a scenario with each store. What the clients are answered is the same.
async fn with_each_store(scenario: impl AsyncFn(Arc<dyn TaskStore>, Heard)) {
    let redis = Server::start();
    let far = store(&redis.url()).await;
    let near = store(&redis.url()).await.near_cache(1 << 20);
    let of_memory = answers(InMemoryTaskStore::new(), &scenario).await;
    assert!(!of_memory.is_empty());
    assert_eq!(answers(far, &scenario).await, of_memory);
    // Lists must not have the tasks of the scenario before.
    redis.wire().call(&["FLUSHALL"]);
    assert_eq!(answers(near, &scenario).await, of_memory, "with a near cache");
}

/// A store with the poll interval of pmcp's store, for callers that are not known.
async fn store(url: &str) -> pmcptask_client::TaskStore {
    let security = TaskSecurityConfig::default().with_allow_anonymous(true);
    let store = pmcptask_client::TaskStore::new(RedisBackend::new(url).await.unwrap());
    store.with_security(security).with_poll_interval(5_000)
}

async fn answers(
    store: impl TaskStore + 'static,
    scenario: &impl AsyncFn(Arc<dyn TaskStore>, Heard),
) -> Vec<Value> {
    let heard = Heard::default();
    timeout(LONGEST, scenario(Arc::new(store), heard.clone())).await.expect("the scenario ends");
    heard.comparable()
}

/// What clients were answered.
#[derive(Debug, Clone, Default)]
struct Heard(Arc<Mutex<Vec<Value>>>);

impl Heard {
    fn note(&self, answer: &pmcp::types::JSONRPCResponse) {
        self.0.lock().unwrap().push(json!(answer.payload));
    }

    /// Waits until a client was answered, with the protocol of 2026-07-28, that its task has this status.
    async fn until_status(&self, status: &str) {
        let is_it = |answer: &Value| answer["result"]["status"] == status;
        while !self.0.lock().unwrap().iter().any(is_it) {
            sleep(POLL).await;
        }
    }

    /// With the same words for ids, times and cursors in every run, and without polls that brought no news.
    fn comparable(&self) -> Vec<Value> {
        let mut answers = self.0.lock().unwrap().clone();
        let mut ids = Vec::new();
        for answer in &mut answers {
            hide(answer, &mut ids);
        }
        let mut text = serde_json::to_string(&answers).unwrap();
        for (n, id) in ids.iter().enumerate() {
            text = text.replace(id, &format!("task {n}"));
        }
        let mut answers: Vec<Value> = serde_json::from_str(&text).unwrap();
        answers.dedup();
        answers
    }
}

/// Hides times and cursors, and collects the ids of tasks.
fn hide(answer: &mut Value, ids: &mut Vec<String>) {
    match answer {
        Value::Array(values) => values.iter_mut().for_each(|value| hide(value, ids)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value.as_str()) {
                    ("createdAt" | "lastUpdatedAt" | "nextCursor", Some(_)) => *value = json!("hidden"),
                    ("taskId", Some(id)) if !ids.iter().any(|known| known == id) => ids.push(id.to_owned()),
                    _ => hide(value, ids),
                }
            }
        }
        _ => {}
    }
}

// Connections.

/// A connection that notes what comes.
#[derive(Debug)]
struct Noting<T> {
    inner: T,
    heard: Heard,
}

#[async_trait]
impl<T: Transport> Transport for Noting<T> {
    async fn send(&mut self, message: TransportMessage) -> pmcp::Result<()> {
        self.inner.send(message).await
    }

    async fn receive(&mut self) -> pmcp::Result<TransportMessage> {
        let message = self.inner.receive().await?;
        if let TransportMessage::Response(answer) = &message {
            self.heard.note(answer);
        }
        Ok(message)
    }

    async fn close(&mut self) -> pmcp::Result<()> {
        self.inner.close().await
    }

    fn set_negotiated_protocol_version(&mut self, version: Option<String>) {
        self.inner.set_negotiated_protocol_version(version);
    }

    fn supports_negotiated_protocol_version(&self) -> bool {
        self.inner.supports_negotiated_protocol_version()
    }

    async fn send_raw(&mut self, body: Vec<u8>) -> pmcp::Result<()> {
        self.inner.send_raw(body).await
    }

    fn shared_sender(&self) -> Option<Arc<dyn SharedSender>> {
        self.inner.shared_sender()
    }
}

/// A connection to a server in this process, which answers each request before the next.
struct InProcess {
    core: ServerCore,
    answers: VecDeque<TransportMessage>,
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess").field("answers", &self.answers.len()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Transport for InProcess {
    async fn send(&mut self, message: TransportMessage) -> pmcp::Result<()> {
        if let TransportMessage::Request { id, request } = message {
            let answer = self.core.handle_request(id, request, None).await;
            self.answers.push_back(TransportMessage::Response(answer));
        }
        Ok(())
    }

    async fn receive(&mut self) -> pmcp::Result<TransportMessage> {
        match self.answers.pop_front() {
            Some(answer) => Ok(answer),
            // The client also asks when it has the answer but its tokio task has used up its turn (`tokio::task::coop`).
            None => pending().await,
        }
    }

    async fn close(&mut self) -> pmcp::Result<()> {
        Ok(())
    }
}

/// A client of a server in this process.
async fn client_in_process(
    store: Arc<dyn TaskStore>,
    tool: impl ToolHandler + 'static,
    heard: Heard,
) -> Client<Noting<InProcess>> {
    let core = ServerCoreBuilder::new().name("words").version("1").tool(TOOL, tool).task_store(store);
    let inner = InProcess { core: core.build().unwrap(), answers: VecDeque::new() };
    let mut client = Client::new(Noting { inner, heard });
    initialize(&mut client).await;
    client
}

/// A server over HTTP, which ends with its handle.
struct Http {
    url: String,
    serving: JoinHandle<()>,
}

type HttpClient = Client<Noting<StreamableHttpTransport>>;

impl Http {
    /// Serves both protocol versions, many requests at once.
    async fn serve(server: ServerBuilder) -> Self {
        let versions = [LATEST_PROTOCOL_VERSION, PROTOCOL_VERSION_2026_07_28];
        let server = server
            .name("words")
            .version("1")
            .with_supported_protocol_versions(versions.map(|version| ProtocolVersion(version.to_owned())))
            .build()
            .unwrap();
        let server = StreamableHttpServer::new_concurrent("127.0.0.1:0".parse().unwrap(), Arc::new(server));
        let (address, serving) = server.start().await.unwrap();
        Self { url: format!("http://{address}/"), serving }
    }

    fn connection(&self, heard: &Heard) -> Noting<StreamableHttpTransport> {
        let config = StreamableHttpTransportConfigBuilder::new(self.url.parse().unwrap())
            .with_header("authorization", "Bearer alice")
            .build();
        Noting { inner: StreamableHttpTransport::new(config), heard: heard.clone() }
    }

    /// A client with the protocol of 2025-11-25.
    async fn client(&self, heard: &Heard) -> HttpClient {
        let mut client = Client::new(self.connection(heard));
        initialize(&mut client).await;
        client
    }

    /// A client with the protocol of 2026-07-28 that says that it knows tasks, and has asked what the server can do.
    async fn client_of_2026(&self, heard: &Heard) -> HttpClient {
        let mut client = self.builder_of_2026(heard).with_tasks_extension().build();
        let found = client.server_discover().await.unwrap();
        assert!(found.capabilities.extensions.unwrap().contains_key("io.modelcontextprotocol/tasks"));
        client
    }

    fn builder_of_2026(&self, heard: &Heard) -> ClientBuilder<Noting<StreamableHttpTransport>> {
        let version = ProtocolVersion(PROTOCOL_VERSION_2026_07_28.to_owned());
        ClientBuilder::new(self.connection(heard)).with_protocol_version(version).unwrap()
    }

    /// What the server answers to a request of the protocol of 2026-07-28 that pmcp's client would not send.
    async fn error_code(&self, method: &str, params: Value) -> i32 {
        let mut connection = self.connection(&Heard::default());
        connection.set_negotiated_protocol_version(Some(PROTOCOL_VERSION_2026_07_28.to_owned()));
        let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        request["params"]["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": PROTOCOL_VERSION_2026_07_28,
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        connection.send_raw(serde_json::to_vec(&request).unwrap()).await.unwrap();
        connection.receive().await.unwrap();
        let heard = connection.heard.0.lock().unwrap();
        i32::try_from(heard[0]["error"]["code"].as_i64().unwrap()).unwrap()
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Takes the caller for who the token names.
struct Tokens;

#[async_trait]
impl AuthProvider for Tokens {
    async fn validate_request(&self, header: Option<&str>) -> pmcp::Result<Option<AuthContext>> {
        Ok(header.and_then(|header| header.strip_prefix("Bearer ")).map(AuthContext::new))
    }
}

async fn initialize<T: Transport>(client: &mut Client<T>) {
    let server = client.initialize(ClientCapabilities::default()).await.unwrap();
    assert!(server.capabilities.tasks.is_some(), "the store announces tasks");
}

// Tools, and what clients do with them.

/// A tool that only runs as a task, and returns this value.
fn task_tool(value: Value) -> impl ToolHandler {
    TypedTool::new_with_schema(TOOL, json!({"type": "object"}), move |_: Value, _| {
        let value = value.clone();
        Box::pin(async move { Ok(value) })
    })
    .with_execution(ToolExecution::new().with_task_support(TaskSupport::Required))
}

/// What a tool returns that goes on to work.
fn working() -> Value {
    json!({"taskId": OF_TOOL, "status": "working", "ttl": 60_000})
}

fn text(text: &str) -> CallToolResult {
    CallToolResult::new(vec![Content::text(text)])
}

fn text_of(result: &CallToolResult) -> &str {
    match result.content.as_slice() {
        [Content::Text { text }] => text,
        other => panic!("expected a text, got {other:?}"),
    }
}

async fn start<T: Transport>(client: &Client<T>) -> Task {
    match client.call_tool_with_task(TOOL.to_owned(), json!({})).await.unwrap() {
        ToolCallResponse::Task(task) => {
            assert_ne!(task.task_id, OF_TOOL);
            task
        }
        ToolCallResponse::Result(result) => panic!("expected a task, got {result:?}"),
    }
}

/// Polls until the task is as it should be.
async fn poll_until<T: Transport>(client: &Client<T>, id: &str, is_it: impl Fn(&Task) -> bool) -> Task {
    let polls = async {
        loop {
            let task = client.tasks_get(id).await.unwrap();
            if is_it(&task) {
                return task;
            }
            sleep(POLL).await;
        }
    };
    timeout(RECOVERY, polls).await.expect("the task becomes as it should be")
}

/// The code and the message of a refusal.
fn refusal<T: fmt::Debug>(answer: pmcp::Result<T>) -> (i32, String) {
    match answer.unwrap_err() {
        pmcp::Error::Protocol { code, message, .. } => (code.0, message),
        error => panic!("expected a refusal, got {error:?}"),
    }
}

async fn complete(store: &Arc<dyn TaskStore>, id: &str, owner: &str, words: &str) {
    store.set_result(id, owner, text(words)).await.unwrap();
    store.update_status(id, owner, TaskStatus::Completed, None).await.unwrap();
}

/// Tasks of one millisecond are listed in the order of their ids, so a test that lists has one in each.
async fn next_millisecond() {
    let now = now_ms();
    while now_ms() == now {
        tokio::task::yield_now().await;
    }
}

// A tool that is done at once.

fn finished() -> Value {
    let result = json!({"content": [{"type": "text", "text": "3 words"}]});
    json!({"taskId": OF_TOOL, "status": "completed", "ttl": 60_000, "result": result})
}

async fn see_finished_task<T: Transport>(client: &Client<T>) {
    let task = start(client).await;
    assert_eq!(task.status, TaskStatus::Completed);
    let polled = client.tasks_get(&task.task_id).await.unwrap();
    assert_eq!((&polled.task_id, polled.status), (&task.task_id, TaskStatus::Completed));
    assert_eq!(text_of(&client.tasks_result(&task.task_id).await.unwrap()), "3 words");
    let waited = client.wait_for_task(&task.task_id, WaitForTaskOptions::default()).await;
    assert_eq!(text_of(&waited.unwrap()), "3 words");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_in_process_completes_the_task_of_a_tool_that_is_done_at_once() {
    with_each_store(async |store, heard| {
        see_finished_task(&client_in_process(store, task_tool(finished()), heard).await).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_over_http_completes_the_task_of_a_tool_that_is_done_at_once() {
    with_each_store(async |store, heard| {
        let server = pmcp::Server::builder().tool(TOOL, task_tool(finished())).task_store(store);
        let http = Http::serve(server).await;
        see_finished_task(&http.client(&heard).await).await;
    })
    .await;
}

// Work that goes on after the call.

#[tokio::test(flavor = "multi_thread")]
async fn server_with_a_task_tool_serves_get_result_list_and_cancel() {
    /// More than a page of a list.
    const TASKS: usize = 22;
    with_each_store(async |store, heard| {
        let client = client_in_process(store.clone(), task_tool(working()), heard).await;
        let mut started = VecDeque::new();
        for _ in 0..TASKS {
            started.push_front(start(&client).await.task_id);
            next_millisecond().await;
        }
        let first = client.tasks_list(None).await.unwrap();
        let second = client.tasks_list(first.next_cursor.clone()).await.unwrap();
        let listed = first.tasks.iter().chain(&second.tasks).map(|task| task.task_id.clone());
        assert_eq!((listed.collect::<VecDeque<_>>(), first.tasks.len()), (started.clone(), 20));
        assert!(second.next_cursor.is_none());

        let (id, other) = (started[0].as_str(), started[1].as_str());
        assert_eq!(client.tasks_get(id).await.unwrap().status, TaskStatus::Working);
        assert_eq!(refusal(client.tasks_result(id).await).0, error_codes::V1_TASK_PENDING);
        complete(&store, id, ANYBODY, "3 words").await;
        assert_eq!(text_of(&client.tasks_result(id).await.unwrap()), "3 words");
        assert!(refusal(client.tasks_cancel(id).await).1.contains("invalid transition"));

        assert_eq!(client.tasks_cancel(other).await.unwrap().status, TaskStatus::Cancelled);
        assert_eq!(client.tasks_get(other).await.unwrap().status, TaskStatus::Cancelled);
        assert_eq!(refusal(client.tasks_result(other).await).0, error_codes::V1_TASK_PENDING);
        assert!(refusal(client.tasks_get(OF_TOOL).await).1.contains("not found"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_decides_by_itself_when_to_poll_follows_a_task_to_its_result() {
    with_each_store(async |store, heard| {
        let client = client_in_process(store.clone(), task_tool(working()), heard).await;
        let id = start(&client).await.task_id;
        let decide = async || client.tasks_get(&id).await.unwrap().poll_decision();
        assert_eq!(decide().await, TaskPollDecision::InProgress { poll_hint: Some(5_000) });
        store.update_status(&id, ANYBODY, TaskStatus::InputRequired, None).await.unwrap();
        assert_eq!(decide().await, TaskPollDecision::InputRequired);
        assert_eq!(refusal(client.tasks_result(&id).await).0, error_codes::V1_TASK_PENDING);
        store.update_status(&id, ANYBODY, TaskStatus::Working, None).await.unwrap();
        complete(&store, &id, ANYBODY, "3 words").await;
        assert_eq!(decide().await, TaskPollDecision::Terminal { status: TaskStatus::Completed });
        assert_eq!(text_of(&client.tasks_result(&id).await.unwrap()), "3 words");
    })
    .await;
}

/// Works on a task in steps, each of which is allowed. A call without a task is answered at once.
fn stepwise(store: Arc<dyn TaskStore>, allowed: Arc<Semaphore>) -> impl ToolHandler {
    TypedTool::new_with_schema(
        TOOL,
        json!({"type": "object"}),
        move |_: Value, extra: RequestHandlerExtra| {
            if !extra.will_create_task() {
                return Box::pin(async { Ok(json!({"words": 3})) });
            }
            let (store, allowed) = (store.clone(), allowed.clone());
            extra.on_task_created(move |created| {
                tokio::spawn(work_in_steps(store, created, allowed));
            });
            Box::pin(async { Ok(working()) })
        },
    )
    .with_execution(ToolExecution::new().with_task_support(TaskSupport::Optional))
}

const STEPS: usize = 3;

async fn work_in_steps(store: Arc<dyn TaskStore>, created: CreatedTask, allowed: Arc<Semaphore>) {
    let (id, owner) = (created.task.task_id, created.owner_id);
    for step in 1..=STEPS {
        allowed.acquire().await.unwrap().forget();
        store.set_status_message(&id, &owner, Some(format!("step {step}"))).await.unwrap();
    }
    allowed.acquire().await.unwrap().forget();
    complete(&store, &id, &owner, "3 words").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn background_worker_gets_the_id_of_its_task_and_its_messages_reach_polls() {
    with_each_store(async |store, heard| {
        let allowed = Arc::new(Semaphore::new(0));
        let tool = stepwise(store.clone(), allowed.clone());
        let http = Http::serve(pmcp::Server::builder().tool(TOOL, tool).task_store(store)).await;
        let client = http.client(&heard).await;
        let id = start(&client).await.task_id;
        assert_eq!(client.tasks_get(&id).await.unwrap().status_message, None);
        for step in 1..=STEPS {
            allowed.add_permits(1);
            let message = Some(format!("step {step}"));
            let task = poll_until(&client, &id, |task| task.status_message == message).await;
            assert_eq!(task.status, TaskStatus::Working);
        }
        allowed.add_permits(1);
        poll_until(&client, &id, |task| task.status == TaskStatus::Completed).await;
        assert_eq!(text_of(&client.tasks_result(&id).await.unwrap()), "3 words");
        // Without a task, the same tool answers.
        let answer = client.call_tool(TOOL.to_owned(), json!({})).await.unwrap();
        assert_eq!(serde_json::from_str::<Value>(text_of(&answer)).unwrap(), json!({"words": 3}));
        assert!(answer.related_task().is_none());
    })
    .await;
}

// A result that points to a task.

/// A tool whose result names a task that the store has.
struct Announcing {
    task_id: String,
}

#[async_trait]
impl ToolHandler for Announcing {
    async fn handle(&self, _: Value, _: RequestHandlerExtra) -> pmcp::Result<Value> {
        Err(pmcp::Error::internal("the server calls handle_output"))
    }

    async fn handle_output(&self, _: Value, _: RequestHandlerExtra) -> pmcp::Result<ToolOutput> {
        let task = TaskMetadata::new(self.task_id.clone());
        Ok(ToolOutput::Result(text("begun").with_related_task(task)))
    }
}

/// A tool that names the task in a value, which the server takes for a plain answer.
struct AnnouncingByHand {
    task_id: String,
}

#[async_trait]
impl ToolHandler for AnnouncingByHand {
    async fn handle(&self, _: Value, _: RequestHandlerExtra) -> pmcp::Result<Value> {
        Ok(json!(text("begun").with_related_task(TaskMetadata::new(self.task_id.clone()))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn result_points_to_a_task_of_the_store_which_the_client_then_follows() {
    with_each_store(async |store, heard| {
        let task_id = store.create(ANYBODY, None).await.unwrap().task_id;
        let server = pmcp::Server::builder()
            .tool("announce", Announcing { task_id: task_id.clone() })
            .tool("announce_by_hand", AnnouncingByHand { task_id: task_id.clone() })
            .suppress_double_wrap_check("announce_by_hand")
            .task_store(store.clone());
        let http = Http::serve(server).await;
        let client = http.client(&heard).await;
        let result = client.call_tool("announce".to_owned(), json!({})).await.unwrap();
        assert_eq!(text_of(&result), "begun");
        let related = result.related_task().unwrap();
        assert_eq!(related.task_id, task_id);
        complete(&store, &task_id, ANYBODY, "3 words").await;
        let waited = client.wait_for_related_task(&related, WaitForTaskOptions::default()).await;
        assert_eq!(text_of(&waited.unwrap()), "3 words");
        let by_hand = client.call_tool("announce_by_hand".to_owned(), json!({})).await.unwrap();
        assert!(by_hand.related_task().is_none());
        assert!(text_of(&by_hand).contains("_meta"));
    })
    .await;
}

// The protocol of 2026-07-28: a task that asks.

fn question(message: &str) -> InputRequest {
    let schema = json!({"type": "object", "properties": {"answer": {"type": "string"}}});
    let params = json!({"mode": "form", "message": message, "requestedSchema": schema});
    InputRequest::Elicitation(serde_json::from_value(params).unwrap())
}

/// What a tool returns that needs to know two things first.
fn asking() -> Value {
    let questions = ["language", "topic"].map(|name| (name.to_owned(), question(name)));
    let requests: InputRequests = questions.into();
    json!({"taskId": OF_TOOL, "status": "input_required", "ttl": 60_000, "inputRequests": requests})
}

fn answers_to(names: &[&str]) -> InputResponses {
    let answer = |name: &&str| {
        let content = Some(HashMap::from([("answer".to_owned(), json!(format!("my {name}")))]));
        let result = ElicitResult { action: ElicitAction::Accept, content };
        ((*name).to_owned(), InputResponse::Elicitation(Box::new(result)))
    };
    names.iter().map(answer).collect()
}

/// Does the work of each task that has its answers, until one is done.
async fn finish_answered(store: &Arc<dyn TaskStore>, owner: &str) {
    loop {
        let (tasks, _) = store.list(owner, None).await.unwrap();
        for task in tasks.iter().filter(|task| task.status == TaskStatus::Working) {
            let inputs = store.task_input_snapshot(&task.task_id, owner).await.unwrap();
            if inputs.is_complete() {
                let InputResponse::Elicitation(topic) = &inputs.input_responses["topic"] else {
                    panic!("expected the answer to the question that was asked");
                };
                let topic = topic.content.as_ref().unwrap()["answer"].as_str().unwrap();
                complete(store, &task.task_id, owner, &format!("words on {topic}")).await;
                return;
            }
        }
        sleep(POLL).await;
    }
}

fn asking_server(store: &Arc<dyn TaskStore>) -> ServerBuilder {
    pmcp::Server::builder().tool(TOOL, task_tool(asking())).task_store(store.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_2026_answers_what_a_task_asks_and_gets_its_result_with_a_poll() {
    with_each_store(async |store, heard| {
        let http = Http::serve(asking_server(&store)).await;
        let client = http.client_of_2026(&heard).await;
        let task = start(&client).await;
        assert_eq!(task.status, TaskStatus::InputRequired);
        let options =
            WaitForTaskOptions { poll_interval: Some(50), max_poll_duration_secs: Some(RECOVERY.as_secs()) };
        let waiting = client.wait_for_task_with_inputs(&task.task_id, options, async |asked| {
            assert_eq!(asked.keys().collect::<Vec<_>>(), ["language", "topic"]);
            Ok(answers_to(&["language", "topic"]))
        });
        let work = async {
            heard.until_status("working").await;
            finish_answered(&store, ANYBODY_2026).await;
        };
        let (result, ()) = tokio::join!(waiting, work);
        assert_eq!(text_of(&result.unwrap()), "words on my topic");
        assert_eq!(client.tasks_get(&task.task_id).await.unwrap().status, TaskStatus::Completed);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn task_of_2026_works_on_once_all_its_questions_are_answered() {
    with_each_store(async |store, heard| {
        let http = Http::serve(asking_server(&store)).await;
        let client = http.client_of_2026(&heard).await;
        let id = start(&client).await.task_id;
        let detail = async || client.tasks_get_detailed(&id).await.unwrap().detail().clone();
        let TaskDetailV2::InputRequired { input_requests } = detail().await else {
            panic!("expected questions");
        };
        assert_eq!(input_requests.len(), 2);
        // An answer to what nobody asked is ignored.
        client.tasks_update(&id, answers_to(&["language", "weather"])).await.unwrap();
        assert!(matches!(detail().await, TaskDetailV2::InputRequired { .. }));
        client.tasks_update(&id, answers_to(&["topic"])).await.unwrap();
        assert!(matches!(detail().await, TaskDetailV2::Working));
        finish_answered(&store, ANYBODY_2026).await;
        let TaskDetailV2::Completed { result } = detail().await else {
            panic!("expected a result");
        };
        assert_eq!(result["content"][0]["text"], "words on my topic");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_failure_and_refusals_are_seen_with_the_protocol_of_2026() {
    with_each_store(async |store, heard| {
        let http = Http::serve(asking_server(&store)).await;
        let client = http.client_of_2026(&heard).await;
        let id = start(&client).await.task_id;
        assert_eq!(client.tasks_cancel(&id).await.unwrap().status, TaskStatus::Cancelled);
        assert!(client.tasks_update(&id, answers_to(&["topic"])).await.is_err());

        let id = start(&client).await.task_id;
        store.set_error(&id, ANYBODY_2026, json!({"code": -32603, "message": "no paper"})).await.unwrap();
        store.update_status(&id, ANYBODY_2026, TaskStatus::Failed, None).await.unwrap();
        let detailed = client.tasks_get_detailed(&id).await.unwrap();
        let TaskDetailV2::Failed { error } = detailed.detail() else { panic!("expected an error") };
        assert_eq!(error["message"], "no paper");
        let waited = client.wait_for_task(&id, WaitForTaskOptions::default()).await;
        assert_eq!(refusal(waited).1, "no paper");
        assert_eq!(refusal(client.tasks_get(OF_TOOL).await).0, error_codes::INVALID_PARAMS);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_2026_that_does_not_know_tasks_gets_none() {
    with_each_store(async |store, heard| {
        let http = Http::serve(asking_server(&store)).await;
        let client = http.builder_of_2026(&heard).build();
        match client.call_tool_with_task(TOOL.to_owned(), json!({})).await.unwrap() {
            ToolCallResponse::Result(result) => assert!(result.related_task().is_none()),
            ToolCallResponse::Task(task) => panic!("expected a result, got {task:?}"),
        }
        let (code, _) = refusal(client.tasks_get(OF_TOOL).await);
        assert_eq!(code, error_codes::MISSING_REQUIRED_CLIENT_CAPABILITY);
        assert!(store.list(ANYBODY_2026, None).await.unwrap().0.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn list_and_result_are_no_calls_of_2026() {
    with_each_store(async |store, heard| {
        let http = Http::serve(asking_server(&store)).await;
        let client = http.client_of_2026(&heard).await;
        let id = start(&client).await.task_id;
        assert!(client.tasks_list(None).await.unwrap_err().is_retired_on_v2());
        assert!(client.tasks_result(&id).await.unwrap_err().is_retired_on_v2());
        for (method, params) in [("tasks/list", json!({})), ("tasks/result", json!({"taskId": id}))] {
            assert_eq!(http.error_code(method, params).await, error_codes::METHOD_NOT_FOUND);
        }
    })
    .await;
}

// Both protocols over the same tasks.

#[tokio::test(flavor = "multi_thread")]
async fn task_that_is_started_with_one_protocol_is_read_with_the_other() {
    with_each_store(async |store, heard| {
        let http = Http::serve(asking_server(&store).auth_provider(Tokens)).await;
        let (old, new) = (http.client(&heard).await, http.client_of_2026(&heard).await);
        for starter in [&old, &new] {
            let id = start(starter).await.task_id;
            for client in [&old, &new] {
                assert_eq!(client.tasks_get(&id).await.unwrap().status, TaskStatus::InputRequired);
            }
            // Only the new protocol can answer.
            new.tasks_update(&id, answers_to(&["language", "topic"])).await.unwrap();
            assert_eq!(old.tasks_get(&id).await.unwrap().status, TaskStatus::Working);
            finish_answered(&store, "alice").await;
            assert_eq!(text_of(&old.tasks_result(&id).await.unwrap()), "words on my topic");
            let waited = new.wait_for_task(&id, WaitForTaskOptions::default()).await;
            assert_eq!(text_of(&waited.unwrap()), "words on my topic");
        }
    })
    .await;
}

// What `InMemoryTaskStore` cannot do.

#[tokio::test(flavor = "multi_thread")]
async fn failure_of_a_worker_is_told_to_clients_of_both_protocols() {
    let redis = Server::start();
    let store = store(&redis.url()).await;
    let server = pmcp::Server::builder().tool(TOOL, task_tool(working()));
    let http = Http::serve(server.task_store(Arc::new(store.clone())).auth_provider(Tokens)).await;
    let (old, new) = (http.client(&Heard::default()).await, http.client_of_2026(&Heard::default()).await);
    for way in ["the worker says so", "the worker is dropped", "the process has died"] {
        let id = start(&new).await.task_id;
        if way == "the process has died" {
            // The mark of a worker whose lease is not there any more.
            let mark = json!({"lease": "lease:worker", "worker": 1});
            let mark = HashMap::from([("pmcptask.worker".to_owned(), mark)]);
            pmcp_tasks::TaskStore::set_variables(&store, &id, "alice", mark).await.unwrap();
        } else {
            let worker = store.work_on(&id, "alice").await.unwrap();
            if way == "the worker says so" {
                worker.fail("no paper").await.unwrap();
            }
        }
        let task = poll_until(&old, &id, |task| task.status == TaskStatus::Failed).await;
        let message = task.status_message.unwrap();
        let waited = new.wait_for_task(&id, WaitForTaskOptions::default()).await;
        assert_eq!(refusal(waited), (error_codes::INTERNAL_ERROR, message), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn result_is_waited_for_over_http_while_the_server_answers_others() {
    let redis = Server::start();
    let store = store(&redis.url()).await.wait_for_results(RECOVERY);
    let server = pmcp::Server::builder().tool(TOOL, task_tool(working())).task_store(Arc::new(store.clone()));
    let http = Http::serve(server).await;
    let (waiter, other) = (http.client(&Heard::default()).await, http.client(&Heard::default()).await);
    let id = start(&other).await.task_id;
    let waited_for = id.clone();
    let reads = || redis.calls_of("pmcptask.get");
    let before = reads();
    let waiting = tokio::spawn(async move { waiter.tasks_result(&waited_for).await });
    // Once before the wait, and twice to wait.
    assert!(holds_within(RECOVERY, || reads() == before + 3));
    let store: Arc<dyn TaskStore> = Arc::new(store);
    for step in 0..3 {
        let message = Some(format!("step {step}"));
        store.set_status_message(&id, ANYBODY, message.clone()).await.unwrap();
        assert_eq!(other.tasks_get(&id).await.unwrap().status_message, message);
    }
    assert!(!waiting.is_finished());
    complete(&store, &id, ANYBODY, "3 words").await;
    let result = timeout(RECOVERY, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(text_of(&result), "3 words");
}
