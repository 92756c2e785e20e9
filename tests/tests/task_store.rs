//! The task store: few round trips, no lost change, no refusal from memory, lists that have every task once, waits that wake.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};
use pmcp::server::builder::ServerCoreBuilder;
use pmcp::server::core::ProtocolHandler as _;
use pmcp::server::task_store as server;
use pmcp::server::task_store::TaskStoreError;
use pmcp::types::tasks::{Task, TaskStatus as ServerStatus};
use pmcp::types::{CallToolResult, Content};
use pmcp_tasks::store::backend::StorageBackend as _;
use pmcp_tasks::{
    GenericTaskStore, ListTasksOptions, StoreConfig, TaskError, TaskRecord, TaskSecurityConfig, TaskStatus,
    TaskStore as _,
};
use pmcptask_client::{RedisBackend, TaskStore};
use pmcptask_tests::{Cluster, Fault, Proxy, SentinelGroup, Server, Wire, holds_within, lua_backend};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// A wake-up takes less, and a poll takes more: the client polls every second.
const AT_ONCE: Duration = Duration::from_millis(600);
/// How long something may take that happens. Only a broken client needs all of it.
const RECOVERY: Duration = Duration::from_secs(10);

async fn store(url: &str) -> TaskStore {
    let many = TaskSecurityConfig::default().with_max_tasks_per_owner(100_000);
    TaskStore::new(RedisBackend::new(url).await.unwrap()).with_security(many)
}

/// Several stores that share nothing but the server, as those of several processes.
async fn stores<const N: usize>(url: &str) -> [TaskStore; N] {
    let mut stores = Vec::new();
    for _ in 0..N {
        stores.push(store(url).await);
    }
    stores.try_into().unwrap()
}

async fn new_task(store: &TaskStore) -> String {
    store.create("o", "tools/call", None).await.unwrap().task.task_id
}

/// How many of the module's commands the server has carried out.
fn calls(server: &Server) -> BTreeMap<&'static str, u64> {
    let commands = ["put", "cas", "get", "del", "list"];
    commands.map(|command| (command, server.calls_of(&format!("pmcptask.{command}")))).into()
}

/// What a call costs: the commands that the server carries out, by their names.
async fn cost<T>(server: &Server, call: impl Future<Output = T>) -> (T, String) {
    let before = calls(server);
    let result = call.await;
    let more = calls(server).into_iter().filter(|(command, count)| *count > before[command]);
    let more: Vec<_> =
        more.map(|(command, count)| format!("{command} {}", count - before[command])).collect();
    (result, more.join(", "))
}

/// A progress message.
async fn say(store: &TaskStore, task_id: &str, message: &str) -> Result<Task, TaskStoreError> {
    server::TaskStore::set_status_message(store, task_id, "o", Some(message.to_owned())).await
}

fn variables(pairs: &[(&str, Value)]) -> HashMap<String, Value> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn text(text: &str) -> CallToolResult {
    CallToolResult::new(vec![Content::text(text)])
}

fn task_key(task_id: &str) -> String {
    format!("pmcp:tasks:o:{task_id}")
}

/// Writes another record over a task, in the words of another client, without a new version.
fn rewrite(server: &Server, task_id: &str, change: impl FnOnce(&mut Value)) {
    let mut wire = server.wire();
    let reply = wire.call(&["HGET", &task_key(task_id), "data"]);
    let mut record: Value = serde_json::from_str(reply.split_once("\r\n").unwrap().1).unwrap();
    change(&mut record);
    let reply = wire.call(&["HSET", &task_key(task_id), "data", &record.to_string()]);
    assert_eq!(reply, ":0\r\n");
}

// Round trips.

#[tokio::test(flavor = "multi_thread")]
async fn create_is_one_round_trip_however_many_tasks_the_owner_has() {
    let server = Server::start();
    let store = store(&server.url()).await;
    for tasks in [0, 300] {
        for _ in 0..tasks {
            new_task(&store).await;
        }
        let (created, commands) = cost(&server, store.create("o", "tools/call", None)).await;
        assert_eq!((created.unwrap().version, commands.as_str()), (1, "put 1"), "{tasks} tasks");
        let (_, commands) = cost(&server, server::TaskStore::create(&store, "o", Some(5_000))).await;
        assert_eq!(commands, "put 1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn change_costs_one_round_trip_after_ones_own_and_three_after_another_stores() {
    let server = Server::start();
    let [a, b] = stores(&server.url()).await;
    let forgetful = store(&server.url()).await.with_memory(0);
    let id = new_task(&a).await;
    for (store, commands) in [
        (&a, "cas 1"),
        (&a, "cas 1"),
        (&b, "cas 1, get 1"),
        (&b, "cas 1"),
        // The last known record is old: a conflict, a read, a write.
        (&a, "cas 2, get 1"),
        (&a, "cas 1"),
        (&forgetful, "cas 1, get 1"),
        (&forgetful, "cas 1, get 1"),
    ] {
        assert_eq!(cost(&server, say(store, &id, "…")).await.1, commands);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn list_reads_no_more_records_than_its_page_and_one() {
    let server = Server::start();
    let store = store(&server.url()).await;
    for _ in 0..100 {
        new_task(&store).await;
    }
    let before = server.counter("records_listed");
    let ((tasks, next), commands) =
        cost(&server, async { server::TaskStore::list(&store, "o", None).await.unwrap() }).await;
    assert_eq!((tasks.len(), next.is_some(), commands.as_str()), (20, true, "list 1"));
    assert_eq!(server.counter("records_listed") - before, 21);
    let options = ListTasksOptions { owner_id: "o".to_owned(), cursor: None, limit: None };
    assert_eq!(store.list(options).await.unwrap().tasks.len(), 50);
    assert_eq!(server.counter("records_listed") - before, 21 + 51);
}

// The quota.

#[tokio::test(flavor = "multi_thread")]
async fn of_64_who_create_at_once_as_many_succeed_as_the_owner_may_have() {
    const MOST: usize = 10;
    let server = Server::start();
    let few = TaskSecurityConfig::default().with_max_tasks_per_owner(MOST);
    let stores = stores::<8>(&server.url()).await.map(|store| store.with_security(few.clone()));
    let creators: Vec<_> = (0..64)
        .map(|n| {
            let store = stores[n % 8].clone();
            tokio::spawn(async move { store.create("o", "tools/call", None).await })
        })
        .collect();
    let (mut created, mut refused) = (BTreeSet::new(), 0);
    for creator in creators {
        match creator.await.unwrap() {
            Ok(record) => assert!(created.insert(record.task.task_id)),
            Err(TaskError::ResourceExhausted { suggested_action: Some(_) }) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!((created.len(), refused), (MOST, 64 - MOST));
    let error = server::TaskStore::create(&stores[0], "o", None).await.unwrap_err();
    assert_eq!(error.to_string(), "internal error: resource exhausted");
    // Changes are always allowed, and other owners are not concerned.
    let id = created.first().unwrap();
    stores[1].cancel(id, "o").await.unwrap();
    stores[1].create("other", "tools/call", None).await.unwrap();
    // A task that has ended makes room for one.
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    assert!(backend.delete(&format!("o:{id}")).await.unwrap());
    stores[2].create("o", "tools/call", None).await.unwrap();
    assert!(stores[2].create("o", "tools/call", None).await.is_err());
    let none = TaskSecurityConfig::default().with_max_tasks_per_owner(0);
    let [store] = self::stores(&server.url()).await;
    let (error, commands) =
        cost(&server, store.with_security(none).create("nobody", "tools/call", None)).await;
    assert!(matches!(error, Err(TaskError::ResourceExhausted { .. })) && commands.is_empty(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn record_that_is_too_large_or_a_server_without_memory_is_no_full_owner() {
    let server = Server::start();
    let store = store(&server.url()).await;
    server.wire().run("CONFIG SET pmcptask.max-record-bytes 100");
    let error = store.create("o", "tools/call", None).await.unwrap_err();
    assert!(
        matches!(&error, TaskError::StorageFull { message } if message.contains("max-record-bytes")),
        "{error}"
    );
    server.wire().run("CONFIG SET maxmemory 1");
    let error = store.create("o", "tools/call", None).await.unwrap_err();
    assert!(matches!(error, TaskError::StorageFull { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn id_that_is_taken_is_never_overwritten() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let store = store(&proxy.url()).await;
    // Each new id is taken.
    proxy.set(Fault::Answer { command: "PMCPTASK.PUT", reply: b":0\r\n".to_vec() });
    let before = proxy.sent();
    let creating = tokio::spawn({
        let store = store.clone();
        async move { store.create("o", "tools/call", None).await }
    });
    assert!(holds_within(RECOVERY, || proxy.sent() > before));
    proxy.set(Fault::None);
    assert_eq!(creating.await.unwrap().unwrap().version, 1);
    proxy.set(Fault::Answer { command: "PMCPTASK.PUT", reply: b":0\r\n".to_vec() });
    let error = store.create("o", "tools/call", None).await.unwrap_err();
    assert!(matches!(error, TaskError::ConcurrentModification { .. }), "{error}");
}

// Writers that race.

#[tokio::test(flavor = "multi_thread")]
async fn of_50_cancels_against_50_streams_of_messages_none_fails_and_no_message_is_lost() {
    const PAIRS: usize = 50;
    let server = Server::start();
    let [workers, clients, watcher] = stores(&server.url()).await;
    let pairs: Vec<_> = (0..PAIRS)
        .map(|pair| {
            let (worker, client, watcher) = (workers.clone(), clients.clone(), watcher.clone());
            tokio::spawn(async move {
                let id = new_task(&worker).await;
                let messages = tokio::spawn({
                    let id = id.clone();
                    async move {
                        let mut acknowledged = 0;
                        loop {
                            // A message and a variable, as two ways to report.
                            let name = format!("m{acknowledged}");
                            worker.set_variables(&id, "o", variables(&[(&name, json!(1))])).await.unwrap();
                            match say(&worker, &id, &name).await {
                                Ok(_) => acknowledged += 1,
                                Err(TaskStoreError::InvalidTransition { from, .. }) => {
                                    assert_eq!(from, ServerStatus::Cancelled);
                                    return acknowledged;
                                }
                                Err(error) => panic!("{error}"),
                            }
                            sleep(Duration::from_millis(1)).await;
                        }
                    }
                });
                sleep(Duration::from_millis(20 + 3 * pair as u64)).await;
                client.cancel(&id, "o").await.unwrap();
                let acknowledged = messages.await.unwrap();
                let task = watcher.get(&id, "o").await.unwrap();
                assert_eq!(task.task.status, TaskStatus::Cancelled);
                // Each write has a version of its own: created, all messages, all variables, the cancel.
                let written = acknowledged + acknowledged + 1;
                assert_eq!(task.version, 1 + written + 1, "{acknowledged} messages");
                assert_eq!(task.variables.len() as u64, acknowledged + 1);
                acknowledged
            })
        })
        .collect();
    let mut messages = 0;
    for pair in pairs {
        messages += pair.await.unwrap();
    }
    assert!(messages > PAIRS as u64, "{messages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_writers_of_one_task_none_fails_and_none_is_lost() {
    const EACH: usize = 10;
    let server = Server::start();
    let stores = stores::<4>(&server.url()).await;
    let id = new_task(&stores[0]).await;
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let (store, id) = (stores[writer % 4].clone(), id.clone());
            tokio::spawn(async move {
                for n in 0..EACH {
                    let name = format!("{writer}/{n}");
                    store.set_variables(&id, "o", variables(&[(&name, json!(n))])).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let task = stores[1].get(&id, "o").await.unwrap();
    assert_eq!((task.variables.len(), task.version), (16 * EACH, 1 + 16 * EACH as u64));
}

/// The old backend uses Lua scripts, and its store does not retry.
#[tokio::test(flavor = "multi_thread")]
async fn old_backend_writes_to_the_same_tasks_meanwhile() {
    let server = Server::start();
    let [ours, reader] = stores(&server.url()).await;
    let old = GenericTaskStore::new(lua_backend(&server.url()).await.unwrap());
    let id = new_task(&ours).await;
    let writing = tokio::spawn({
        let id = id.clone();
        async move {
            let mut acknowledged = 0;
            while acknowledged < 100 {
                let name = format!("old{acknowledged}");
                match old.set_variables(&id, "o", variables(&[(&name, json!(1))])).await {
                    Ok(_) => acknowledged += 1,
                    Err(TaskError::ConcurrentModification { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            old
        }
    });
    for n in 0..100 {
        let name = format!("new{n}");
        ours.set_variables(&id, "o", variables(&[(&name, json!(1))])).await.unwrap();
    }
    let old = writing.await.unwrap();
    let task = reader.get(&id, "o").await.unwrap();
    assert_eq!((task.variables.len(), task.version), (200, 201));
    // Each reads what the other has written, and lists it.
    let theirs = old.create("o", "tools/call", None).await.unwrap().task.task_id;
    ours.cancel(&theirs, "o").await.unwrap();
    assert_eq!(old.get(&theirs, "o").await.unwrap().task.status, TaskStatus::Cancelled);
    assert_eq!(listed(&ours, 1).await, [theirs.clone(), id.clone()]);
    let all = ListTasksOptions { owner_id: "o".to_owned(), cursor: None, limit: None };
    assert_eq!(old.list(all).await.unwrap().tasks.len(), 2);
}

// What is remembered.

#[tokio::test(flavor = "multi_thread")]
async fn no_refusal_comes_from_a_record_that_is_only_remembered() {
    let server = Server::start();
    let [a, b] = stores(&server.url()).await;
    let request = || json!({"city": {"method": "roots/list"}});
    // Remembered: working. In truth it awaits input, so that it may go on working.
    let id = new_task(&a).await;
    b.record_input_requests(&id, "o", request()).await.unwrap();
    a.update_status(&id, "o", TaskStatus::Working, None).await.unwrap();
    // Remembered: awaits input. In truth it works again, so that it may ask again.
    let id = new_task(&a).await;
    a.record_input_requests(&id, "o", request()).await.unwrap();
    b.deliver_inputs(&id, "o", json!({"city": {}})).await.unwrap();
    let other = json!({"date": {"method": "roots/list"}});
    a.record_input_requests(&id, "o", other).await.unwrap();
    // Remembered: working. In truth it is cancelled, and stays so.
    let id = new_task(&a).await;
    b.cancel(&id, "o").await.unwrap();
    let error = a.update_status(&id, "o", TaskStatus::Completed, None).await.unwrap_err();
    assert!(matches!(error, TaskError::InvalidTransition { from: TaskStatus::Cancelled, .. }), "{error}");
    // Remembered: too large for more variables. In truth there is room.
    let small = StoreConfig { max_variable_size_bytes: 50, ..StoreConfig::default() };
    let a_small = a.clone().with_config(small);
    let id = new_task(&a).await;
    let half = || json!("x".repeat(30));
    a_small.set_variables(&id, "o", variables(&[("one", half())])).await.unwrap();
    b.set_variables(&id, "o", variables(&[("one", Value::Null)])).await.unwrap();
    a_small.set_variables(&id, "o", variables(&[("two", half())])).await.unwrap();
    // Remembered: there is a task.
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    assert!(backend.delete(&format!("o:{id}")).await.unwrap());
    assert!(matches!(a.cancel(&id, "o").await, Err(TaskError::NotFound { .. })));
}

/// A failover to a server with another history, or a restart with older data: the version is the same.
#[tokio::test(flavor = "multi_thread")]
async fn same_version_of_another_record_is_not_overwritten_after_the_connection_was_lost() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let (store, witness) = (store(&proxy.url()).await, store(&server.url()).await);
    for round in 0..40 {
        let id = new_task(&store).await;
        // From before the client notices the loss to after it has connected again.
        proxy.set(Fault::Close);
        proxy.cut();
        sleep(Duration::from_micros(150 * round)).await;
        let writing = tokio::spawn({
            let (store, id) = (store.clone(), id.clone());
            async move { store.set_variables(&id, "o", variables(&[("mine", json!(1))])).await }
        });
        rewrite(&server, &id, |record| record["variables"]["theirs"] = json!(1));
        proxy.set(Fault::None);
        let written = writing.await.unwrap();
        let task = witness.get(&id, "o").await.unwrap();
        assert!(task.variables.contains_key("theirs"), "round {round}: {written:?}");
        assert_eq!(task.variables.contains_key("mine"), written.is_ok(), "round {round}");
    }
}

/// The write waits for the server while the server is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn write_that_waited_for_another_connection_does_not_overwrite_what_is_there_now() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let witness = store(&server.url()).await;
    // Writes that wait for replicas have a connection of their own. There is no replica, which is no matter here.
    let waiting = RedisBackend::builder(proxy.url()).wait_for_replicas(1, Duration::from_millis(10));
    let waiting = TaskStore::new(waiting.connect().await.unwrap());
    for store in [store(&proxy.url()).await, waiting] {
        for is_remembered in [true, false] {
            let id = new_task(&witness).await;
            if is_remembered {
                store.set_variables(&id, "o", variables(&[("mine", json!(0))])).await.ok();
            }
            proxy.set(Fault::Answer { command: "PMCPTASK.CAS", reply: b"-LOADING is loading\r\n".to_vec() });
            let writing = tokio::spawn({
                let (store, id) = (store.clone(), id.clone());
                async move { store.set_variables(&id, "o", variables(&[("mine", json!(1))])).await }
            });
            // The write is refused and waits.
            sleep(Duration::from_millis(200)).await;
            rewrite(&server, &id, |record| record["variables"]["theirs"] = json!(1));
            // Not a connection with `Fault::None`: the write could be on its way there.
            proxy.cut();
            proxy.set(Fault::None);
            let written = writing.await.unwrap();
            let task = witness.get(&id, "o").await.unwrap();
            assert_eq!(task.variables["theirs"], 1, "{is_remembered}: {written:?}");
            // The cut may have met an attempt, whose outcome the client does not know then.
            let is_unknown = written.is_err_and(|error| error.to_string().contains("is unknown"));
            assert!(is_unknown || task.variables["mine"] == 1, "{is_remembered}: {:?}", task.variables);
        }
    }
}

/// Writes that wait for replicas have a connection of their own. If only that one leads to the new primary, the other one still
/// reads from the old primary, which has another history.
#[tokio::test(flavor = "multi_thread")]
async fn record_of_the_old_primary_is_not_written_over_that_of_the_new_one() {
    let (old, new) = (Server::start(), Server::start());
    let proxy = Proxy::to(old.port());
    // There is no replica, which is no matter here.
    let backend = RedisBackend::builder(proxy.url()).wait_for_replicas(1, Duration::from_millis(10));
    let store = TaskStore::new(backend.connect().await.unwrap());
    let [before, after] = [self::store(&old.url()).await, self::store(&new.url()).await];
    let id = new_task(&before).await;
    let set = |name| store.set_variables(&id, "o", variables(&[(name, json!(1))]));
    set("first").await.unwrap_err();
    let dump = old.dump_of(&task_key(&id));
    redis::cmd("RESTORE").arg(task_key(&id)).arg(0).arg(dump).exec(&mut new.connection()).unwrap();
    rewrite(&new, &id, |record| record["variables"]["theirs"] = json!(1));
    // The connection whose last command is a WAIT is replaced.
    store.get(&id, "o").await.unwrap();
    proxy.lead_to(new.port());
    let clients = old.wire().run("CLIENT LIST");
    let waited: Vec<_> = clients.lines().filter(|client| client.contains("cmd=wait")).collect();
    assert_eq!(waited.len(), 1, "{clients}");
    let number = waited[0].split(['=', ' ']).nth(1).unwrap();
    assert_eq!(old.wire().run(&format!("CLIENT KILL ID {number}")), ":1\r\n");
    assert!(holds_within(RECOVERY, || proxy.accepted() == 3));
    let written = set("mine").await;
    assert_eq!(before.get(&id, "o").await.unwrap().version, 2, "{written:?}");
    let variables = after.get(&id, "o").await.unwrap().variables;
    assert!(variables.contains_key("theirs") && variables.contains_key("mine"), "{variables:?}: {written:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_remembered_is_forgotten_when_all_tasks_are_removed() {
    let server = Server::start();
    let [store, other] = stores(&server.url()).await;
    let id = new_task(&store).await;
    let dump = server.dump_of(&task_key(&id));
    // Servers tell of FLUSHALL once a client waits for anything.
    assert!(timeout(AT_ONCE, store.changed(&id, "o", 1)).await.is_err());
    server.wire().run("FLUSHALL");
    redis::cmd("RESTORE").arg(task_key(&id)).arg(0).arg(dump).exec(&mut server.connection()).unwrap();
    rewrite(&server, &id, |record| record["variables"]["theirs"] = json!(1));
    // The news of FLUSHALL comes at about the same time as the next call.
    sleep(Duration::from_millis(100)).await;
    store.set_variables(&id, "o", variables(&[("mine", json!(1))])).await.unwrap();
    assert_eq!(other.get(&id, "o").await.unwrap().variables.len(), 2);
}

/// A server is made a replica and then a primary again, and clients keep their connections. One write meets the replica.
#[tokio::test(flavor = "multi_thread")]
async fn same_version_of_another_record_is_not_overwritten_after_the_server_was_a_replica() {
    let [server, other] = [Server::start(), Server::start()];
    let [store, witness] = stores(&server.url()).await;
    let (id, another) = (new_task(&store).await, new_task(&store).await);
    let dump = server.dump_of(&task_key(&id));
    redis::cmd("RESTORE").arg(task_key(&id)).arg(0).arg(dump).exec(&mut other.connection()).unwrap();
    rewrite(&other, &id, |record| record["variables"]["theirs"] = json!(1));
    server.wire().run(&format!("REPLICAOF 127.0.0.1 {}", other.port()));
    assert!(holds_within(RECOVERY, || server.replication().contains("master_link_status:up")));
    let error = say(&store, &another, "…").await.unwrap_err();
    assert!(error.to_string().contains("read-only replica"), "{error}");
    server.wire().run("REPLICAOF NO ONE");
    store.set_variables(&id, "o", variables(&[("mine", json!(1))])).await.unwrap();
    let task = witness.get(&id, "o").await.unwrap();
    assert_eq!((task.variables.len(), task.version), (2, 2), "{:?}", task.variables);
}

/// Nobody notices when a connection that the caller gave leads to another server.
#[tokio::test(flavor = "multi_thread")]
async fn store_over_a_given_connection_remembers_nothing() {
    let server = Server::start();
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let store = TaskStore::new(RedisBackend::with_connection(connection)).with_memory(1 << 20);
    let id = new_task(&store).await;
    for _ in 0..2 {
        assert_eq!(cost(&server, say(&store, &id, "…")).await.1, "cas 1, get 1");
    }
}

/// Something goes on for so long that no record can be read and written over in one epoch.
#[tokio::test(flavor = "multi_thread")]
async fn change_that_is_outdated_for_too_long_is_a_concurrent_modification() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let store = store(&proxy.url()).await.with_memory(0);
    let id = new_task(&store).await;
    // From then on, the server tells of flushes.
    assert!(timeout(AT_ONCE, store.changed(&id, "o", 1)).await.is_err());
    // Far longer than two flushes are apart on a busy machine.
    proxy.set(Fault::Delay(Duration::from_millis(300)));
    let is_over = Arc::new(AtomicBool::new(false));
    let (began, has_begun) = oneshot::channel();
    let flushing = tokio::task::spawn_blocking({
        let (port, is_over) = (server.port(), is_over.clone());
        move || {
            let mut wire = Wire::open(port).unwrap();
            wire.run("SELECT 1");
            wire.run("FLUSHDB");
            began.send(()).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                wire.run("FLUSHDB");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    // A thread can start late on a busy machine.
    has_begun.await.unwrap();
    let changed = store.set_variables(&id, "o", variables(&[("mine", json!(1))])).await;
    is_over.store(true, Ordering::Relaxed);
    flushing.await.unwrap();
    assert!(matches!(changed, Err(TaskError::ConcurrentModification { .. })), "{changed:?}");
    proxy.set(Fault::None);
    store.set_variables(&id, "o", variables(&[("mine", json!(1))])).await.unwrap();
}

// Unknown outcomes.

#[tokio::test(flavor = "multi_thread")]
async fn write_whose_outcome_is_unknown_is_made_once() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let (store, witness) = (store(&proxy.url()).await, store(&server.url()).await);
    let id = new_task(&store).await;
    for version in [2, 4, 6] {
        proxy.set(Fault::LoseReply(1));
        let (error, commands) = cost(&server, say(&store, &id, "…")).await;
        let error = error.unwrap_err();
        assert!(error.to_string().contains("outcome of the write"), "{error}");
        assert_eq!(commands, "cas 1");
        assert_eq!(witness.get(&id, "o").await.unwrap().version, version);
        // Nothing is known of the task any more.
        store.get(&id, "o").await.unwrap();
        assert_eq!(cost(&server, say(&store, &id, "…")).await.1, "cas 1, get 1");
    }
    proxy.set(Fault::LoseReply(1));
    let (error, commands) = cost(&server, store.create("o", "tools/call", None)).await;
    assert!(error.unwrap_err().to_string().contains("is unknown"));
    assert_eq!(commands, "put 1");
    assert_eq!(listed(&witness, 50).await.len(), 2);
}

// Lists.

/// The ids of all pages.
async fn listed(store: &TaskStore, limit: usize) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), None);
    loop {
        let options = ListTasksOptions { owner_id: "o".to_owned(), cursor, limit: Some(limit) };
        let page = store.list(options).await.unwrap();
        assert!(page.tasks.len() <= limit);
        ids.extend(page.tasks.into_iter().map(|record| record.task.task_id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            return ids;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn list_has_every_task_once_and_newest_first_whatever_the_page_size() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let mut expected = Vec::new();
    for _ in 0..20 {
        expected.insert(0, new_task(&store).await);
        sleep(Duration::from_millis(2)).await;
    }
    for limit in [1, 3, 19, 20, 21, usize::MAX] {
        assert_eq!(listed(&store, limit).await, expected, "{limit}");
    }
    // No more pages than tasks: the last page says so.
    let (tasks, next) = server::TaskStore::list(&store, "o", None).await.unwrap();
    assert_eq!((tasks.len(), next), (20, None));
    assert!(listed(&store, 0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn list_goes_on_behind_a_task_that_has_gone_and_has_no_task_twice_while_others_come_and_go() {
    let server = Server::start();
    let [store, churn] = stores(&server.url()).await;
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let mut lasting = Vec::new();
    for _ in 0..60 {
        lasting.insert(0, new_task(&store).await);
        sleep(Duration::from_millis(2)).await;
    }
    let churning = tokio::spawn({
        let backend = backend.clone();
        async move {
            loop {
                let id = new_task(&churn).await;
                sleep(Duration::from_millis(1)).await;
                backend.delete(&format!("o:{id}")).await.unwrap();
            }
        }
    });
    for _ in 0..5 {
        let (mut ids, mut cursor) = (Vec::new(), None);
        loop {
            let (tasks, next) = server::TaskStore::list(&store, "o", cursor.as_deref()).await.unwrap();
            ids.extend(tasks.iter().map(|task| task.task_id.clone()));
            cursor = next;
            let Some(last) = tasks.last().filter(|_| cursor.is_some()) else { break };
            // The task of the cursor goes.
            backend.delete(&format!("o:{}", last.task_id)).await.unwrap();
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "a task twice");
        let seen: Vec<_> = ids.into_iter().filter(|id| lasting.contains(id)).collect();
        assert_eq!(seen, lasting);
        let left = listed(&store, 50).await;
        lasting.retain(|id| left.contains(id));
        assert!(lasting.len() > 20);
    }
    churning.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_cannot_be_read_are_left_out_and_do_not_end_the_list() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let mut expected = Vec::new();
    for n in 0..6 {
        expected.insert(0, new_task(&store).await);
        for m in 0..3 {
            backend.put(&format!("o:odd{n}{m}"), b"odd").await.unwrap();
        }
        sleep(Duration::from_millis(2)).await;
    }
    for limit in [1, 2, 5, 50] {
        assert_eq!(listed(&store, limit).await, expected, "{limit}");
    }
    let error = store.get("odd00", "o").await.unwrap_err();
    assert!(matches!(error, TaskError::StoreError(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cursor_that_no_list_has_returned_is_an_error() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let id = new_task(&store).await;
    // As upstream's stores have cursors, and rubbish.
    for cursor in [id.as_str(), "rubbish", ""] {
        let error = server::TaskStore::list(&store, "o", Some(cursor)).await.unwrap_err();
        assert!(error.to_string().contains("cursor: expected"), "{error}");
    }
}

// Owners and ids.

#[tokio::test(flavor = "multi_thread")]
async fn id_that_a_client_makes_up_leads_to_no_task_of_another_owner() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let theirs = store.create("o:x", "tools/call", None).await.unwrap().task.task_id;
    for id in ["", ":", &format!("x:{theirs}"), &theirs] {
        let errors = [
            store.get(id, "o").await.err(),
            store.cancel(id, "o").await.err(),
            store.get_result(id, "o").await.err(),
            store.wait_until_terminal(id, "o", AT_ONCE).await.err(),
        ];
        for error in errors {
            assert!(matches!(error, Some(TaskError::NotFound { .. })), "{id}: {error:?}");
        }
        let changed = timeout(AT_ONCE, store.changed(id, "o", 1)).await.unwrap();
        assert!(matches!(changed, Ok(None)), "{id}: {changed:?}");
    }
    assert!(listed(&store, 50).await.is_empty());
    assert_eq!(store.get(&theirs, "o:x").await.unwrap().version, 1);
}

// Waiting.

#[tokio::test(flavor = "multi_thread")]
async fn waiter_for_the_end_is_woken_by_another_store_and_not_by_what_is_no_end() {
    let server = Server::start();
    let [a, b] = stores(&server.url()).await;
    for end in [TaskStatus::Completed, TaskStatus::Failed, TaskStatus::Cancelled] {
        let id = new_task(&a).await;
        let waiting = tokio::spawn({
            let (a, id) = (a.clone(), id.clone());
            async move { a.wait_until_terminal(&id, "o", RECOVERY).await }
        });
        for step in 0..3 {
            say(&b, &id, &step.to_string()).await.unwrap();
            sleep(Duration::from_millis(20)).await;
        }
        assert!(!waiting.is_finished());
        let ended = b.complete_with_result(&id, "o", end, None, json!({"content": []})).await.unwrap();
        let task = timeout(AT_ONCE * 3, waiting).await.unwrap().unwrap().unwrap();
        assert_eq!((task.task.status, task.version), (end, ended.version));
        // It has ended already.
        let again = a.wait_until_terminal(&id, "o", Duration::ZERO).await.unwrap();
        assert_eq!(again.version, ended.version);
    }
}

/// A worker that says much costs its waiters no more than one that says little.
#[tokio::test(flavor = "multi_thread")]
async fn waiter_for_the_end_of_a_task_with_many_messages_pauses_between_its_looks() {
    let server = Server::start();
    let [a, b] = stores(&server.url()).await;
    let id = new_task(&a).await;
    let waiting = tokio::spawn({
        let (a, id) = (a.clone(), id.clone());
        async move { a.wait_until_terminal(&id, "o", RECOVERY).await }
    });
    sleep(Duration::from_millis(50)).await;
    let started = Instant::now();
    let messages = async {
        while started.elapsed() < Duration::from_secs(3) {
            say(&b, &id, "…").await.unwrap();
            sleep(Duration::from_millis(2)).await;
        }
    };
    let ((), commands) = cost(&server, messages).await;
    let gets = commands.split_once("get ").map_or(0, |(_, count)| count.parse().unwrap());
    // Two for each look.
    assert!(gets < 24, "{commands}");
    b.cancel(&id, "o").await.unwrap();
    let task = timeout(AT_ONCE + Duration::from_secs(1), waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(task.task.status, TaskStatus::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiter_for_the_end_returns_when_its_time_is_over_or_the_task_is_gone() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let id = new_task(&store).await;
    let started = Instant::now();
    let error = store.wait_until_terminal(&id, "o", Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, TaskError::NotReady { current_status: TaskStatus::Working, .. }), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(200));
    let waiting = tokio::spawn({
        let (store, id) = (store.clone(), id.clone());
        async move { store.wait_until_terminal(&id, "o", Duration::MAX).await }
    });
    sleep(Duration::from_millis(50)).await;
    server.wire().call(&["DEL", &task_key(&id)]);
    let error = timeout(AT_ONCE, waiting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, TaskError::NotFound { .. }), "{error}");
    assert!(store.changed(&id, "o", 1).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn result_is_waited_for_and_a_cancel_ends_the_wait() {
    let server = Server::start();
    let [a, b] = stores(&server.url()).await;
    let a = a.wait_for_results(RECOVERY);
    for is_cancelled in [false, true] {
        let id = new_task(&a).await;
        let (server_side, task_side) = (a.clone(), a.clone());
        let (of_server, of_tasks) = (id.clone(), id.clone());
        let of_server =
            tokio::spawn(async move { server::TaskStore::get_result(&server_side, &of_server, "o").await });
        let of_tasks = tokio::spawn(async move { task_side.get_result(&of_tasks, "o").await });
        sleep(Duration::from_millis(50)).await;
        assert!(!of_server.is_finished() && !of_tasks.is_finished());
        if is_cancelled {
            b.cancel(&id, "o").await.unwrap();
        } else {
            server::TaskStore::set_result(&b, &id, "o", text("42")).await.unwrap();
            sleep(Duration::from_millis(50)).await;
            assert!(!of_server.is_finished(), "the task still works");
            b.update_status(&id, "o", TaskStatus::Completed, None).await.unwrap();
        }
        let of_server = timeout(AT_ONCE, of_server).await.unwrap().unwrap();
        let of_tasks = timeout(AT_ONCE, of_tasks).await.unwrap().unwrap();
        if is_cancelled {
            assert!(matches!(of_server, Err(TaskStoreError::NotFound { .. })), "{of_server:?}");
            assert!(matches!(of_tasks, Err(TaskError::NotReady { .. })), "{of_tasks:?}");
        } else {
            assert_eq!(of_server.unwrap().content.len(), 1);
            assert!(of_tasks.unwrap().is_object());
        }
    }
    // Off by default, and not longer than told.
    let id = new_task(&b).await;
    assert!(timeout(AT_ONCE, b.get_result(&id, "o")).await.unwrap().is_err());
    let briefly = b.wait_for_results(Duration::from_millis(100));
    let error = timeout(AT_ONCE, briefly.get_result(&id, "o")).await.unwrap().unwrap_err();
    assert!(matches!(error, TaskError::NotReady { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_core_answers_other_requests_while_one_waits_for_a_result() {
    let redis = Server::start();
    let anybody = TaskSecurityConfig::default().with_allow_anonymous(true);
    let store = store(&redis.url()).await.with_security(anybody).wait_for_results(RECOVERY);
    let core = ServerCoreBuilder::new().name("tasks").version("1").task_store(Arc::new(store.clone()));
    let core = Arc::new(core.build().unwrap());
    let ask = |method: &str, params: Value| {
        let request = serde_json::from_value(json!({"method": method, "params": params})).unwrap();
        let core = core.clone();
        async move { json!(core.handle_request("1".into(), request, None).await) }
    };
    let version = "2025-11-25";
    let client =
        json!({"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}});
    let answer = ask("initialize", client).await;
    assert_eq!(answer["result"]["protocolVersion"], version, "{answer}");
    let id = store.create("local", "tools/call", None).await.unwrap().task.task_id;
    let waiting = tokio::spawn(ask("tasks/result", json!({"taskId": id})));
    for step in 0..3 {
        store.set_variables(&id, "local", variables(&[("step", json!(step))])).await.unwrap();
        let answer = timeout(AT_ONCE, ask("tasks/get", json!({"taskId": id}))).await.unwrap();
        assert_eq!(answer["result"]["task"]["status"], "working", "{answer}");
    }
    assert!(!waiting.is_finished());
    let (done, result) = (TaskStatus::Completed, json!(text("42")));
    store.complete_with_result(&id, "local", done, None, result).await.unwrap();
    let answer = timeout(AT_ONCE, waiting).await.unwrap().unwrap();
    assert_eq!(answer["result"]["content"][0]["text"], "42", "{answer}");
}

/// Takes what the stream yields until `is_last` is true of it.
async fn until(
    changes: &mut (impl futures_util::Stream<Item = Result<TaskRecord, TaskError>> + Unpin),
    is_last: impl Fn(&TaskRecord) -> bool,
) -> Vec<TaskRecord> {
    let mut seen = Vec::new();
    loop {
        let next = timeout(RECOVERY, changes.next()).await.expect("the stream yields").unwrap();
        // While the server is away.
        let Ok(record) = next else { continue };
        let is_last = is_last(&record);
        seen.push(record);
        if is_last {
            return seen;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_an_owner_are_those_of_all_its_tasks_and_of_new_ones_and_of_no_other_owner() {
    let server = Server::start();
    let [a, b] = stores(&server.url()).await;
    let old = new_task(&b).await;
    let mut changes = a.changes("o").await.unwrap();
    // What was there already is no change.
    assert!(timeout(Duration::from_millis(300), changes.next()).await.is_err());
    b.create("other", "tools/call", None).await.unwrap();
    say(&b, &old, "old").await.unwrap();
    let seen = until(&mut changes, |_| true).await;
    assert_eq!((&seen[0].task.task_id, seen[0].version), (&old, 2));
    // New ones, and their changes.
    for n in 0..10 {
        let id = new_task(&b).await;
        let seen = until(&mut changes, |record| record.task.task_id == id).await;
        assert_eq!(seen.len(), 1, "{n}: {seen:?}");
        b.cancel(&id, "o").await.unwrap();
        let seen = until(&mut changes, |_| true).await;
        assert_eq!((&seen[0].task.task_id, seen[0].task.status), (&id, TaskStatus::Cancelled));
    }
    // Between two looks of the subscriber.
    let id = new_task(&b).await;
    say(&b, &old, "last").await.unwrap();
    server::TaskStore::set_result(&b, &id, "o", text("42")).await.unwrap();
    let mut news = BTreeMap::from([(id.clone(), 0), (old.clone(), 2)]);
    while news[&id] != 2 || news[&old] != 3 {
        for record in until(&mut changes, |_| true).await {
            let before = news.insert(record.task.task_id, record.version).unwrap();
            assert!(before < record.version, "{before}, then {}", record.version);
        }
    }
    // A task that goes yields nothing.
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    backend.delete(&format!("o:{id}")).await.unwrap();
    assert!(timeout(Duration::from_millis(300), changes.next()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_of_an_owner_is_missed_while_the_connection_or_the_server_is_away() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::builder(proxy.url())
        .connect_timeout(Duration::from_millis(300))
        .connect()
        .await
        .unwrap();
    let (a, b) = (TaskStore::new(backend), store(&server.url()).await);
    let old = new_task(&b).await;
    let mut changes = a.changes("o").await.unwrap();
    for round in 0..3_u64 {
        proxy.set(Fault::Close);
        proxy.cut();
        let new = new_task(&b).await;
        say(&b, &old, &round.to_string()).await.unwrap();
        if round > 0 {
            // Longer than a call waits for the server.
            let error = timeout(RECOVERY, async {
                loop {
                    if let Err(error) = changes.next().await.unwrap() {
                        break error;
                    }
                }
            });
            assert!(error.await.unwrap().to_string().contains("no connection"));
        }
        proxy.set(Fault::None);
        let mut missing = BTreeSet::from([old.clone(), new]);
        while !missing.is_empty() {
            for record in until(&mut changes, |_| true).await {
                missing.remove(&record.task.task_id);
            }
        }
    }
}

/// The client gets both at once: the list, and the news that a task has come since.
#[tokio::test(flavor = "current_thread")]
async fn task_that_comes_between_a_list_and_its_reply_is_not_missed() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let mut changes = store.changes("o").await.unwrap();
    let mut connection = server.connection();
    let mut create = || {
        let record = TaskRecord::new("o".to_owned(), "tools/call".to_owned(), None);
        let mut put = redis::cmd("PMCPTASK.PUT");
        put.arg(task_key(&record.task.task_id)).arg("pmcp:idx:o").arg(json!(record).to_string());
        put.exec(&mut connection).unwrap();
        record.task.task_id
    };
    let mut created = BTreeSet::from([create()]);
    let lists = server.calls_of("pmcptask.list");
    let seeing = tokio::spawn(async move {
        let mut seen = BTreeSet::new();
        while seen.len() < 2 {
            seen.extend(until(&mut changes, |_| true).await.into_iter().map(|record| record.task.task_id));
        }
        seen
    });
    // The client runs on this thread only: while this test blocks the thread, the client takes nothing in.
    while server.calls_of("pmcptask.list") == lists {
        tokio::task::yield_now().await;
        std::thread::sleep(Duration::from_millis(20));
    }
    created.insert(create());
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(timeout(RECOVERY, seeing).await.unwrap().unwrap(), created);
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_a_task_is_not_missed_after_its_read_failed() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let (a, b) = (store(&proxy.url()).await, store(&server.url()).await);
    let id = new_task(&b).await;
    let mut changes = a.changes("o").await.unwrap();
    assert!(timeout(Duration::from_millis(300), changes.next()).await.is_err());
    proxy.set(Fault::Answer { command: "PMCPTASK.GET", reply: b"-ERR not now\r\n".to_vec() });
    b.cancel(&id, "o").await.unwrap();
    for _ in 0..2 {
        let error = timeout(RECOVERY, changes.next()).await.unwrap().unwrap().unwrap_err();
        assert!(error.to_string().contains("not now"), "{error}");
    }
    proxy.set(Fault::None);
    let seen = until(&mut changes, |_| true).await;
    assert_eq!(seen[0].task.status, TaskStatus::Cancelled);
}

/// The reads of a stream must not wait for its consumer: others wait for their turn to read.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_polls_keep_no_other_waiter_from_reading() {
    const OWNERS: usize = 1_100;
    let server = Server::start();
    let [a, b] = stores(&server.url()).await;
    let mut streams = Vec::new();
    for owner in 0..OWNERS {
        streams.push(a.changes(&format!("o{owner}")).await.unwrap());
    }
    // The lists of all streams are due. Each stream is polled twice: after its pause, it would ask the server.
    server.wire().run("FLUSHALL");
    let id = new_task(&b).await;
    sleep(AT_ONCE).await;
    for _ in 0..5 {
        for stream in &mut streams {
            assert!(stream.next().now_or_never().is_none());
            // Tokio makes a task pause that polls so much.
            tokio::task::yield_now().await;
        }
        sleep(Duration::from_millis(10)).await;
    }
    let changed = timeout(RECOVERY, a.changed(&id, "o", 0)).await.expect("a turn to read");
    assert_eq!(changed.unwrap().unwrap().version, 1);
    // What came meanwhile is yielded, the last version of each task, and every task.
    let owners = ["o0", "o1"];
    let task = b.create(owners[0], "tools/call", None).await.unwrap().task.task_id;
    sleep(AT_ONCE).await;
    b.set_variables(&task, owners[0], variables(&[("x", json!(1))])).await.unwrap();
    b.cancel(&task, owners[0]).await.unwrap();
    let others =
        [b.create(owners[0], "tools/call", None).await, b.create(owners[0], "tools/call", None).await];
    sleep(AT_ONCE).await;
    let mut missing: BTreeSet<_> = others.into_iter().map(|record| record.unwrap().task.task_id).collect();
    missing.insert(task.clone());
    while !missing.is_empty() {
        for record in until(&mut streams[0], |_| true).await {
            if record.task.task_id != task || record.task.status == TaskStatus::Cancelled {
                missing.remove(&record.task.task_id);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_yields_one_error_per_outage_however_many_tasks_it_watches() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::builder(proxy.url()).connect_timeout(Duration::from_millis(300));
    let (a, b) = (TaskStore::new(backend.connect().await.unwrap()), store(&server.url()).await);
    for _ in 0..20 {
        new_task(&b).await;
    }
    let mut changes = a.changes("o").await.unwrap();
    assert!(timeout(AT_ONCE, changes.next()).await.is_err());
    for _ in 0..2 {
        proxy.set(Fault::Close);
        proxy.cut();
        let error = timeout(RECOVERY, changes.next()).await.unwrap().unwrap().unwrap_err();
        assert!(error.to_string().contains("no connection"), "{error}");
        assert!(timeout(3 * AT_ONCE, changes.next()).await.is_err());
        proxy.set(Fault::None);
        let id = new_task(&b).await;
        let seen = until(&mut changes, |record| record.task.task_id == id).await;
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(timeout(AT_ONCE, changes.next()).await.is_err());
    }
}

/// A lost permission, for example.
#[tokio::test(flavor = "multi_thread")]
async fn stream_whose_list_is_refused_asks_again_after_a_pause_only() {
    let server = Server::start();
    let [a, b] = stores(&server.url()).await;
    let mut changes = a.changes("o").await.unwrap();
    let consuming = tokio::spawn(async move {
        loop {
            if let Ok(record) = changes.next().await.unwrap() {
                return record;
            }
        }
    });
    server.wire().run("ACL SETUSER default -pmcptask.list");
    let id = new_task(&b).await;
    sleep(Duration::from_secs(2)).await;
    let refused = server.wire().info("commandstats", "cmdstat_pmcptask.list");
    let refused: u64 =
        refused.split_once("rejected_calls=").unwrap().1.split(',').next().unwrap().parse().unwrap();
    assert!((1..=12).contains(&refused), "{refused}");
    server.wire().run("ACL SETUSER default +pmcptask.list");
    assert_eq!(timeout(RECOVERY, consuming).await.unwrap().unwrap().task.task_id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_waiters_cost_nothing_while_nothing_changes_and_nothing_once_dropped() {
    let server = Server::start();
    let [a, b] = stores(&server.url()).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(new_task(&b).await);
    }
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(a.changes("o").await.unwrap());
    }
    let waiting = streams.iter_mut().map(|stream| timeout(AT_ONCE, stream.next()));
    for nothing in futures_util::future::join_all(waiting).await {
        assert!(nothing.is_err());
    }
    let idle = async {
        let waiting = streams.iter_mut().map(|stream| timeout(AT_ONCE * 3, stream.next()));
        futures_util::future::join_all(waiting).await
    };
    assert_eq!(cost(&server, idle).await.1, "");
    drop(streams);
    let changed = async {
        for id in &ids {
            b.cancel(id, "o").await.unwrap();
        }
        new_task(&b).await;
        sleep(AT_ONCE).await;
    };
    assert_eq!(cost(&server, changed).await.1, "cas 20, put 1");
}

/// Servers tell nothing over RESP2: the client polls.
#[tokio::test(flavor = "multi_thread")]
async fn changes_are_seen_within_seconds_if_the_server_cannot_tell() {
    let server = Server::start();
    let old_protocol = store(&format!("{}?protocol=resp2", server.url())).await;
    let other = store(&server.url()).await;
    let old = new_task(&other).await;
    let mut changes = old_protocol.changes("o").await.unwrap();
    let new = new_task(&other).await;
    other.cancel(&old, "o").await.unwrap();
    let started = Instant::now();
    let mut missing = BTreeSet::from([old, new]);
    while !missing.is_empty() {
        for record in until(&mut changes, |_| true).await {
            missing.remove(&record.task.task_id);
        }
    }
    assert!(started.elapsed() < RECOVERY / 2, "{:?}", started.elapsed());
}

// Expiry.

#[tokio::test(flavor = "multi_thread")]
async fn expired_task_is_gone_and_its_owner_has_room() {
    let server = Server::start();
    let few = TaskSecurityConfig::default().with_max_tasks_per_owner(1);
    let store = store(&server.url()).await.with_security(few);
    let id = store.create("o", "tools/call", Some(200)).await.unwrap().task.task_id;
    let (waiting, started) = (store.changed(&id, "o", 1), Instant::now());
    assert!(timeout(RECOVERY, waiting).await.unwrap().unwrap().is_none());
    assert!(started.elapsed() < RECOVERY / 2);
    assert!(matches!(store.get(&id, "o").await, Err(TaskError::NotFound { .. })));
    // The remembered record has expired too, by the client's clock.
    assert!(matches!(store.cancel(&id, "o").await, Err(TaskError::NotFound { .. })));
    store.create("o", "tools/call", Some(0)).await.unwrap();
    // Times are rounded up to the millisecond.
    sleep(Duration::from_millis(2)).await;
    assert!(listed(&store, 5).await.is_empty());
    new_task(&store).await;
}

// A cluster.

#[tokio::test(flavor = "multi_thread")]
async fn store_in_a_cluster_is_the_same() {
    let cluster = Cluster::shared();
    let mut two = Vec::new();
    for _ in 0..2 {
        let backend =
            RedisBackend::builder(cluster.url()).prefix("store-in-cluster").connect().await.unwrap();
        two.push(TaskStore::new(backend).wait_for_results(RECOVERY));
    }
    let (a, b) = (&two[0], &two[1]);
    for owner in (0..6).map(|n| format!("owner-{n}")) {
        let owner = owner.as_str();
        let mut changes = a.changes(owner).await.unwrap();
        let id = a.create(owner, "tools/call", None).await.unwrap().task.task_id;
        a.set_variables(&id, owner, variables(&[("step", json!(1))])).await.unwrap();
        let (result, ()) = tokio::join!(server::TaskStore::get_result(b, &id, owner), async {
            sleep(Duration::from_millis(30)).await;
            let status = TaskStatus::Completed;
            a.complete_with_result(&id, owner, status, None, json!(text("42"))).await.unwrap();
        });
        assert_eq!(result.unwrap().content.len(), 1);
        until(&mut changes, |record| record.task.status == TaskStatus::Completed).await;
        let (tasks, next) = server::TaskStore::list(b, owner, None).await.unwrap();
        assert_eq!((tasks.len(), next), (1, None));
        let error = b.cancel(&id, owner).await.unwrap_err();
        assert!(matches!(error, TaskError::InvalidTransition { .. }), "{error}");
    }
}

/// After a failover in a cluster, a primary that was cut off may redirect to one with another history of the task.
#[tokio::test(flavor = "multi_thread")]
async fn same_version_of_another_record_is_not_overwritten_after_a_redirect() {
    // With a connection to the second node, and without one.
    for cluster in [Cluster::start(2, 0), Cluster::start_lopsided(2)] {
        overwrite_after_a_redirect(&cluster).await;
    }
}

async fn overwrite_after_a_redirect(cluster: &Cluster) {
    let (first, second) = nodes(cluster);
    let [store, witness] = stores(&cluster.url()).await;
    let id = new_task(&store).await;
    let (task, index) = (format!("pmcp:tasks:{{o}}:{id}"), "pmcp:idx:{o}");
    let slot = first.slot_of(index);
    first.start_moving(&slot, second);
    first.migrate(&[&task, index], second);
    first.stop_moving(&slot, second);
    let mut record = json!(witness.get(&id, "o").await.unwrap());
    record["variables"]["theirs"] = json!(1);
    assert_eq!(second.wire().call(&["HSET", &task, "data", &record.to_string()]), ":0\r\n");
    store.set_variables(&id, "o", variables(&[("mine", json!(1))])).await.unwrap();
    let task = witness.get(&id, "o").await.unwrap();
    assert_eq!((task.variables.len(), task.version), (2, 2), "{:?}", task.variables);
}

/// The node that has the owner's slot, and the other one.
fn nodes(cluster: &Cluster) -> (&Server, &Server) {
    let (here, there): (Vec<_>, Vec<_>) =
        cluster.servers.iter().partition(|server| server.has_slot_of("pmcp:idx:{o}"));
    (here[0], there[0])
}

/// The slot moves key by key, and is half moved for a while.
#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_while_the_slot_moves_and_none_is_lost() {
    let cluster = Cluster::start(2, 0);
    let (first, second) = nodes(&cluster);
    let [store, witness] = stores(&cluster.url()).await;
    let id = new_task(&store).await;
    let (task, index) = (format!("pmcp:tasks:{{o}}:{id}"), "pmcp:idx:{o}");
    let slot = first.slot_of(index);
    let written = Arc::new(AtomicU64::new(0));
    let writing = tokio::spawn({
        let (id, written) = (id.clone(), written.clone());
        async move {
            loop {
                let name = format!("v{}", written.load(Ordering::SeqCst));
                store.set_variables(&id, "o", variables(&[(&name, json!(1))])).await.unwrap();
                written.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let more = |count| {
        let now = written.load(Ordering::SeqCst);
        assert!(
            holds_within(RECOVERY, || written.load(Ordering::SeqCst) >= now + count),
            "writes stand still"
        );
    };
    for (from, to) in [(first, second), (second, first)] {
        more(20);
        from.start_moving(&slot, to);
        more(20);
        from.migrate(&[&task, index], to);
        more(20);
        from.stop_moving(&slot, to);
        more(20);
    }
    writing.abort();
    assert!(writing.await.unwrap_err().is_cancelled(), "a write failed");
    let task = witness.get(&id, "o").await.unwrap();
    let (written, found) = (written.load(Ordering::SeqCst), task.variables.len() as u64);
    // The last one may have been made, or not.
    assert!(found == written || found == written + 1, "{found} of {written}");
    assert_eq!(task.version, 1 + found);
}

// Sentinels.

/// The primary becomes a replica. The new one has another record with the same version, as after an asynchronous failover.
#[tokio::test(flavor = "multi_thread")]
async fn same_version_of_another_record_is_not_overwritten_after_a_failover() {
    let watched = SentinelGroup::start(1);
    for waits_for_replicas in [false, true] {
        let mut builder = RedisBackend::builder(watched.url());
        if waits_for_replicas {
            builder = builder.wait_for_replicas(1, Duration::from_secs(5));
        }
        let store = TaskStore::new(builder.connect().await.unwrap());
        let id = new_task(&store).await;
        store.set_variables(&id, "o", variables(&[("mine", json!(1))])).await.unwrap();
        watched.fail_over();
        let primary = watched.primary();
        let primary = watched.servers.iter().find(|server| server.port().to_string() == primary).unwrap();
        rewrite(primary, &id, |record| record["variables"]["theirs"] = json!(1));
        watched.wait_until_settled();
        store.set_variables(&id, "o", variables(&[("more", json!(1))])).await.unwrap();
        let task = store.get(&id, "o").await.unwrap();
        assert_eq!((task.variables.len(), task.version), (3, 3), "{:?}", task.variables);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_asked_for_reads_and_never_for_changes() {
    let watched = SentinelGroup::start(1);
    let backend = RedisBackend::builder(watched.url()).read_from_replicas(true).connect().await.unwrap();
    let store = TaskStore::new(backend).with_memory(0);
    let (primary, replica): (Vec<_>, Vec<_>) = watched.servers.iter().partition(|server| server.is_primary());
    let id = new_task(&store).await;
    let started = Instant::now();
    while replica[0].calls_of("pmcptask.get") == 0 {
        assert!(started.elapsed() < RECOVERY, "the replica is not asked");
        store.get(&id, "o").await.unwrap();
    }
    let ((), on_replica) = cost(replica[0], async {
        let (_, on_primary) = cost(primary[0], say(&store, &id, "…")).await;
        assert_eq!(on_primary, "cas 1, get 1");
    })
    .await;
    // The replica gets the write as plain commands.
    assert_eq!(on_replica, "");
}
