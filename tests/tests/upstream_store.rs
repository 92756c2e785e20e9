//! The same answers as the store that this one replaces.
//!
//! Random sequences of the calls of both traits run on `ServerTaskStore` over `GenericTaskStore` over `InMemoryBackend`, and on
//! this project's store: on three of them, that share only the server, and of which one remembers nothing. All answers are
//! equal except for differences that the docs of `TaskStore` name. Each difference has its own test below or in
//! `task_store.rs`; the sequences avoid them.
#![cfg(feature = "redis-tests")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing
)]

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

use pmcp::server::task_store as server;
use pmcp::types::CallToolResult;
use pmcp::types::mrtr::{InputRequests, InputResponses};
use pmcp::types::tasks::TaskStatus as ServerStatus;
use pmcp_tasks::{
    GenericTaskStore, InMemoryBackend, ListTasksOptions, ServerTaskStore, StoreConfig, TaskError,
    TaskSecurityConfig, TaskStatus,
};
use pmcptask_client::{RedisBackend, TaskStore};
use pmcptask_tests::Server;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use proptest::{collection, sample};
use serde_json::{Value, json};

/// How many calls each store gets.
const OPERATIONS: usize = 4_000;
/// Calls of the longest sequence.
const LONGEST: usize = 80;

type Upstream = ServerTaskStore<InMemoryBackend>;

const OWNERS: [&str; 4] = ["alice", "bob|x", "", "local"];
const STATUSES: [TaskStatus; 5] = [
    TaskStatus::Working,
    TaskStatus::InputRequired,
    TaskStatus::Completed,
    TaskStatus::Failed,
    TaskStatus::Cancelled,
];

#[derive(Debug, Clone)]
enum Call {
    Create(Option<u64>),
    Get,
    UpdateStatus(TaskStatus, Option<String>),
    SetVariables(Value),
    SetResult(Value),
    GetResult,
    Complete(TaskStatus, Value),
    List(Option<usize>),
    Cancel,
    Deliver(Value),
    Snapshot,
    Request(Value),
    SetError(Value),
    GetError,
    Say(Option<String>),
}

#[derive(Debug, Clone)]
struct Step {
    owner: &'static str,
    /// Which of the tasks that were created by now, or one that was not.
    task: usize,
    /// Whether the task is asked for by its owner.
    is_own: bool,
    /// Whether the call is one of pmcp's trait.
    of_server: bool,
    /// Which of this project's stores.
    store: usize,
    call: Call,
}

#[derive(Debug, Clone)]
struct Sequence {
    most: usize,
    allow_anonymous: bool,
    steps: Vec<Step>,
}

// Generated steps.

fn objects() -> impl Strategy<Value = Value> {
    let inputs = || {
        let names = sample::subsequence(vec!["city", "date", "roots"], 0..=3);
        names.prop_map(|names| {
            let requests = names.into_iter().map(|name| (name.to_owned(), json!({"method": "roots/list"})));
            Value::Object(requests.collect())
        })
    };
    prop_oneof![6 => inputs(), 1 => Just(Value::Null), 1 => Just(json!(["no object"]))]
}

fn variables() -> impl Strategy<Value = Value> {
    let values = prop_oneof![
        3 => Just(json!(1)),
        2 => Just(Value::Null),
        2 => "[ -~é]{0,40}".prop_map(Value::from),
        1 => Just(json!({"a": {"b": {"c": {"d": 1}}}})),
        1 => Just(Value::from("x".repeat(200))),
    ];
    collection::hash_map(sample::select(vec!["a", "b", "c"]), values, 0..3)
        .prop_map(|variables| json!(variables))
}

fn results() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => "[ -~é]{0,20}".prop_map(|text| json!({"content": [{"type": "text", "text": text}]})),
        1 => Just(json!("no tool's result")),
    ]
}

fn messages() -> impl Strategy<Value = Option<String>> {
    proptest::option::of("[ -~é]{0,20}")
}

fn calls() -> impl Strategy<Value = Call> {
    let ttl = prop_oneof![
        3 => Just(None),
        2 => Just(Some(60_000)),
        // More than the most that the settings allow, and more than fits.
        1 => sample::select(vec![Some(10_000_000), Some(u64::MAX)]),
    ];
    let limits = prop_oneof![2 => Just(None), 1 => (0..4_usize).prop_map(Some), 1 => Just(Some(1_000))];
    let status = || sample::select(&STATUSES[..]);
    prop_oneof![
        6 => ttl.prop_map(Call::Create),
        3 => Just(Call::Get),
        5 => (status(), messages()).prop_map(|(status, message)| Call::UpdateStatus(status, message)),
        4 => variables().prop_map(Call::SetVariables),
        2 => results().prop_map(Call::SetResult),
        3 => Just(Call::GetResult),
        2 => (status(), results()).prop_map(|(status, result)| Call::Complete(status, result)),
        3 => limits.prop_map(Call::List),
        1 => Just(Call::Cancel),
        4 => objects().prop_map(Call::Deliver),
        2 => Just(Call::Snapshot),
        4 => objects().prop_map(Call::Request),
        2 => objects().prop_map(Call::SetError),
        2 => Just(Call::GetError),
        4 => messages().prop_map(Call::Say),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let owners = prop_oneof![6 => Just(OWNERS[0]), 2 => sample::select(&OWNERS[..])];
    (owners, 0..8_usize, prop::bool::weighted(0.9), any::<bool>(), 0..3_usize, calls()).prop_map(
        |(owner, task, is_own, of_server, store, call)| Step { owner, task, is_own, of_server, store, call },
    )
}

fn sequences() -> impl Strategy<Value = Sequence> {
    let most = prop_oneof![1 => Just(0), 1 => Just(3), 4 => Just(LONGEST)];
    (most, any::<bool>(), collection::vec(steps(), 0..=LONGEST)).prop_map(
        |(most, allow_anonymous, mut steps)| {
            // See `of_a_full_owner_and_a_ttl_that_is_too_long_the_ttl_is_named_first`.
            for step in steps.iter_mut().filter(|_| most < LONGEST) {
                if let Call::Create(ttl) = &mut step.call {
                    *ttl = None;
                }
            }
            Sequence { most, allow_anonymous, steps }
        },
    )
}

// How steps run.

/// The tasks that were created: the owner, and the id in each of the two stores.
#[derive(Default)]
struct Tasks {
    created: Vec<(&'static str, [String; 2])>,
}

impl Tasks {
    /// Owner and id for a step.
    fn of(&self, step: &Step, side: usize) -> (&'static str, String) {
        match self.created.get(step.task) {
            Some((owner, ids)) => {
                (if step.is_own { owner } else { OWNERS[step.task % 4] }, ids[side].clone())
            }
            None => (step.owner, ["", "nobody", "a:b"][step.task % 3].to_owned()),
        }
    }

    /// The answer with tasks by their numbers, and without times.
    fn normal(&self, answer: &str, side: usize) -> String {
        let mut answer = answer.to_owned();
        for (number, (_, ids)) in self.created.iter().enumerate() {
            answer = answer.replace(&ids[side], &format!("<task {number}>"));
        }
        let mut normal = String::new();
        for (number, part) in answer.split("_at: ").enumerate() {
            // `created_at: "…"`, `expires_at: Some(…)`
            let rest = if number == 0 { Some(part) } else { part.find([',', ' ']).map(|end| &part[end..]) };
            normal.push_str(rest.unwrap_or_default());
        }
        normal
    }
}

/// An answer with the parts that have no order in order.
fn shown(answer: Result<impl Debug, impl Debug>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(error) => format!("error {error:?}"),
    }
}

fn sorted(mut record: pmcp_tasks::TaskRecord) -> impl Debug {
    let mut variables: Vec<_> = std::mem::take(&mut record.variables).into_iter().collect();
    variables.sort_by(|a, b| a.0.cmp(&b.0));
    (record, variables)
}

fn server_status(status: TaskStatus) -> ServerStatus {
    serde_json::from_value(json!(status)).unwrap()
}

/// What a store answers, and the ids of created tasks. None: the call is not possible in this trait.
async fn of_tasks(
    store: &dyn pmcp_tasks::TaskStore,
    owner: &str,
    id: &str,
    call: &Call,
) -> Option<(String, Vec<String>)> {
    let answer = match call.clone() {
        Call::Create(ttl) => {
            let created = store.create(owner, "tools/call", ttl).await;
            let ids = created.iter().map(|record| record.task.task_id.clone()).collect();
            return Some((shown(created.map(sorted)), ids));
        }
        Call::List(limit) => {
            let (mut pages, mut cursor) = (Vec::new(), None);
            loop {
                let options = ListTasksOptions { owner_id: owner.to_owned(), cursor, limit };
                let page = match store.list(options).await {
                    Ok(page) => page,
                    Err(error) => break format!("error {error:?}"),
                };
                pages.push(page.tasks.into_iter().map(sorted).collect::<Vec<_>>());
                cursor = page.next_cursor;
                if cursor.is_none() {
                    break format!("{pages:?}");
                }
            }
        }
        Call::Get => shown(store.get(id, owner).await.map(sorted)),
        Call::UpdateStatus(status, message) => {
            shown(store.update_status(id, owner, status, message).await.map(sorted))
        }
        Call::SetVariables(variables) => {
            let variables: HashMap<_, _> = serde_json::from_value(variables).unwrap();
            let result = store.set_variables(id, owner, variables).await.map(sorted);
            match result {
                // Which of several bad variables is named depends on the order in the map.
                Err(TaskError::StoreError(_)) => "error of a variable".to_owned(),
                result => shown(result),
            }
        }
        Call::SetResult(result) => shown(store.set_result(id, owner, result).await),
        Call::GetResult => shown(store.get_result(id, owner).await),
        Call::Complete(status, result) => {
            shown(store.complete_with_result(id, owner, status, None, result).await.map(sorted))
        }
        Call::Cancel => shown(store.cancel(id, owner).await.map(sorted)),
        Call::Deliver(responses) => shown(store.deliver_inputs(id, owner, responses).await),
        Call::Snapshot => shown(store.task_input_snapshot(id, owner).await),
        Call::Request(requests) => {
            shown(without_times(store.record_input_requests(id, owner, requests).await))
        }
        Call::SetError(error) => shown(store.set_error(id, owner, error).await),
        Call::GetError => shown(store.get_error(id, owner).await),
        Call::Say(_) => return None,
    };
    Some((answer, Vec::new()))
}

/// A task as JSON without its times, and with `_meta` in order.
fn without_times(task: Result<Value, TaskError>) -> Result<String, TaskError> {
    task.map(|mut task| {
        let task = task.as_object_mut().unwrap();
        task.remove("createdAt");
        task.remove("lastUpdatedAt");
        let meta = task.remove("_meta").unwrap_or_default();
        let meta: std::collections::BTreeMap<String, Value> =
            serde_json::from_value(meta).unwrap_or_default();
        format!("{task:?} {meta:?}")
    })
}

/// The same for pmcp's trait.
async fn of_server(
    store: &dyn server::TaskStore,
    owner: &str,
    id: &str,
    call: &Call,
) -> Option<(String, Vec<String>)> {
    let answer = match call.clone() {
        Call::Create(ttl) => {
            let created = store.create(owner, ttl).await;
            let ids = created.iter().map(|task| task.task_id.clone()).collect();
            return Some((shown(created), ids));
        }
        Call::List(_) => {
            let (mut pages, mut cursor) = (Vec::new(), None);
            loop {
                match store.list(owner, cursor.as_deref()).await {
                    Ok((tasks, next)) => {
                        pages.push(tasks);
                        cursor = next;
                    }
                    Err(error) => break format!("error {error:?}"),
                }
                if cursor.is_none() {
                    break format!("{pages:?}");
                }
            }
        }
        Call::Get => shown(store.get(id, owner).await),
        Call::UpdateStatus(status, message) => {
            shown(store.update_status(id, owner, server_status(status), message).await)
        }
        Call::SetResult(result) => {
            let result: CallToolResult = serde_json::from_value(result).ok()?;
            shown(store.set_result(id, owner, result).await)
        }
        Call::GetResult => shown(store.get_result(id, owner).await),
        Call::Cancel => shown(store.cancel(id, owner).await),
        Call::Deliver(responses) => {
            let responses: InputResponses = serde_json::from_value(responses).ok()?;
            shown(store.deliver_task_inputs(id, owner, responses).await)
        }
        Call::Snapshot => shown(store.task_input_snapshot(id, owner).await),
        Call::Request(requests) => {
            let requests: InputRequests = serde_json::from_value(requests).ok()?;
            // The task's variables are in `_meta`, in the order of a map.
            let task = store.record_input_requests(id, owner, requests).await;
            shown(task.map(|task| (task.task_id, task.status, task.status_message)))
        }
        Call::SetError(error) => shown(store.set_error(id, owner, error).await),
        Call::GetError => shown(store.get_error(id, owner).await),
        Call::Say(message) => shown(store.set_status_message(id, owner, message).await),
        Call::SetVariables(_) | Call::Complete(..) => return None,
    };
    Some((answer, Vec::new()))
}

async fn run(stores: &[TaskStore; 3], sequence: &Sequence) -> Result<(), String> {
    let security = TaskSecurityConfig::default()
        .with_max_tasks_per_owner(sequence.most)
        .with_allow_anonymous(sequence.allow_anonymous);
    let config = StoreConfig {
        max_variable_size_bytes: 120,
        default_ttl_ms: Some(1_800_000),
        max_ttl_ms: Some(7_200_000),
        max_variable_depth: 3,
        max_string_length: 100,
    };
    let upstream = GenericTaskStore::new(InMemoryBackend::new());
    let upstream =
        upstream.with_config(config.clone()).with_security(security.clone()).with_poll_interval(123);
    let upstream = Upstream::new(upstream);
    let stores = stores.each_ref().map(|store| {
        let store = store.clone().with_config(config.clone()).with_security(security.clone());
        store.with_poll_interval(123)
    });
    assert_eq!(
        format!("{:?}", server::TaskStore::config(&upstream)),
        format!("{:?}", server::TaskStore::config(&stores[0]))
    );
    let mut tasks = Tasks::default();
    for (at, step) in sequence.steps.iter().enumerate() {
        let store = &stores[step.store];
        let mut answers = Vec::new();
        for side in 0..2 {
            let (owner, id) = match step.call {
                Call::Create(_) | Call::List(_) => (step.owner, String::new()),
                _ => tasks.of(step, side),
            };
            answers.push(match (side, step.of_server) {
                (0, false) => of_tasks(upstream.inner(), owner, &id, &step.call).await,
                (0, true) => of_server(&upstream, owner, &id, &step.call).await,
                (_, false) => of_tasks(store, owner, &id, &step.call).await,
                (_, true) => of_server(store, owner, &id, &step.call).await,
            });
        }
        let [Some((theirs, their_ids)), Some((ours, our_ids))] = &answers[..] else { continue };
        if let ([their_id], [our_id]) = (&their_ids[..], &our_ids[..]) {
            tasks.created.push((step.owner, [their_id.clone(), our_id.clone()]));
            // Tasks of one millisecond have no order upstream.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let (theirs, ours) = (tasks.normal(theirs, 0), tasks.normal(ours, 1));
        if theirs != ours {
            return Err(format!("step {at}, {step:?}:\n{theirs} upstream,\n{ours} here"));
        }
    }
    Ok(())
}

#[test]
fn answers_are_those_of_the_store_it_replaces() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = Server::start();
    let stores = [0, 1, 2].map(|number| {
        let backend = runtime.block_on(RedisBackend::new(&server.url())).unwrap();
        let store = TaskStore::new(backend);
        if number == 2 { store.with_memory(0) } else { store }
    });
    let mut config = Config { failure_persistence: None, max_shrink_time: 60_000, ..Config::default() };
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(1);
    }
    let mut runner = TestRunner::new(config);
    let done = Cell::new(0);
    while done.get() < OPERATIONS {
        let sequence = sequences().new_tree(&mut runner).unwrap();
        let result = runner.run_one(sequence, |sequence| {
            done.set(done.get() + sequence.steps.len());
            server.wire().call(&["FLUSHALL"]);
            runtime.block_on(run(&stores, &sequence)).map_err(TestCaseError::fail)
        });
        match result {
            Ok(_) => {}
            Err(TestError::Abort(reason)) => panic!("{reason}"),
            Err(TestError::Fail(reason, sequence)) => panic!("{reason}\nafter {sequence:#?}"),
        }
    }
}

// The differences.

#[tokio::test]
async fn expired_task_is_not_found_and_counts_for_nothing() {
    let one = TaskSecurityConfig::default().with_max_tasks_per_owner(1);
    let upstream = GenericTaskStore::new(InMemoryBackend::new()).with_security(one.clone());
    let upstream = Upstream::new(upstream);
    let server = Server::start();
    let ours = TaskStore::new(RedisBackend::new(&server.url()).await.unwrap()).with_security(one);
    let mut answers = Vec::new();
    for store in [&upstream as &dyn server::TaskStore, &ours] {
        let id = store.create("alice", Some(20)).await.unwrap().task_id;
        tokio::time::sleep(Duration::from_millis(25)).await;
        let update = store.update_status(&id, "alice", ServerStatus::Completed, None).await;
        answers.push((store.get(&id, "alice").await, update, store.create("alice", None).await));
    }
    let [theirs, ours] = &answers[..] else { panic!() };
    assert!(matches!(theirs.0, Err(server::TaskStoreError::Expired { .. })), "{theirs:?}");
    assert!(
        matches!(theirs.1, Err(server::TaskStoreError::Expired { .. })) && theirs.2.is_err(),
        "{theirs:?}"
    );
    assert!(matches!(ours.0, Err(server::TaskStoreError::NotFound { .. })), "{ours:?}");
    assert!(matches!(ours.1, Err(server::TaskStoreError::NotFound { .. })) && ours.2.is_ok(), "{ours:?}");
}

#[tokio::test]
async fn of_a_full_owner_and_a_ttl_that_is_too_long_the_ttl_is_named_first() {
    let one = TaskSecurityConfig::default().with_max_tasks_per_owner(1);
    let upstream = GenericTaskStore::new(InMemoryBackend::new()).with_security(one.clone());
    let server = Server::start();
    let ours = TaskStore::new(RedisBackend::new(&server.url()).await.unwrap()).with_security(one);
    let mut errors = Vec::new();
    for store in [&upstream as &dyn pmcp_tasks::TaskStore, &ours] {
        store.create("alice", "tools/call", None).await.unwrap();
        errors.push(store.create("alice", "tools/call", Some(u64::MAX)).await.unwrap_err());
    }
    assert!(matches!(errors[0], TaskError::ResourceExhausted { .. }), "{errors:?}");
    assert!(matches!(errors[1], TaskError::StoreError(_)), "{errors:?}");
}

#[tokio::test]
async fn list_has_no_tasks_of_owners_whose_names_begin_with_this_one_and_a_colon() {
    let upstream = Upstream::new(GenericTaskStore::new(InMemoryBackend::new()));
    let server = Server::start();
    let ours = TaskStore::new(RedisBackend::new(&server.url()).await.unwrap());
    let mut listed = Vec::new();
    for store in [&upstream as &dyn server::TaskStore, &ours] {
        store.create("alice:x", None).await.unwrap();
        listed.push(store.list("alice", None).await.unwrap().0.len());
    }
    assert_eq!(listed, [1, 0]);
}
