//! Sessions of graph-flow: the same rules as in memory, decided by the server, and nothing left over.
#![cfg(all(feature = "redis-tests", feature = "graph-flow"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

#[path = "support/sessions.rs"]
mod sessions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use graph_flow::{
    Context, ExecutionStatus, FlowRunner, Graph, GraphBuilder, GraphError, InMemorySessionStorage,
    NextAction, Session, SessionStorage, Task, TaskResult,
};
use pmcptask_checkpoint::Compression;
use pmcptask_checkpoint::graph_flow::RedisSessionStorage;
use pmcptask_tests::{
    Cluster, Fault, Proxy, Server, ServerOptions, holds_within, integer, now_ms, sleep_until,
};
use tokio::sync::Barrier;

use crate::sessions::{numbers_of_conflict, session};

const RACERS: usize = 32;
const HOUR: Duration = Duration::from_hours(1);
const ANY_IDS: [&str; 10] = ["", " ", "a", "a:b", ":", "{a}", "{", "line\nbreak", "ü\0%3A", "tasks:x:0"];

/// One storage of each kind. The servers stop when this is dropped.
struct Places {
    storages: Vec<(&'static str, Arc<dyn SessionStorage>)>,
    _server: Server,
    _cluster: Arc<Cluster>,
}

/// `prefix` keeps tests apart that share the cluster.
async fn everywhere(prefix: &str) -> Places {
    let (server, cluster) = (Server::start(), Cluster::shared());
    let storages: Vec<(&str, Arc<dyn SessionStorage>)> = vec![
        ("memory", Arc::new(InMemorySessionStorage::new())),
        ("one server", Arc::new(connected(&server.url(), prefix).await)),
        ("cluster", Arc::new(connected(&cluster.url(), prefix).await)),
    ];
    Places { storages, _server: server, _cluster: cluster }
}

async fn connected(url: &str, prefix: &str) -> RedisSessionStorage {
    RedisSessionStorage::builder(url).prefix(prefix).connect().await.unwrap()
}

async fn ours(server: &Server) -> RedisSessionStorage {
    RedisSessionStorage::new(&server.url()).await.unwrap()
}

async fn stored(storage: &dyn SessionStorage, id: &str) -> Session {
    storage.get(id).await.unwrap().unwrap_or_else(|| panic!("there is no session {id:?}"))
}

#[allow(clippy::needless_pass_by_value, reason = "it is the reply of a call, and nobody needs it any more")]
fn assert_conflict(saved: Result<(), GraphError>, stored: u64, expected: u64) {
    let numbers = numbers_of_conflict(&saved).unwrap_or_else(|| panic!("expected a conflict, got {saved:?}"));
    assert!(numbers.contains(&stored) && numbers.contains(&expected), "{stored}, {expected}: {saved:?}");
}

/// All at once; returns how many were saved. The others must be conflicts.
async fn winners(storage: &Arc<dyn SessionStorage>, session: &Session) -> usize {
    let start = Arc::new(Barrier::new(RACERS));
    let racers: Vec<_> = (0..RACERS)
        .map(|_| {
            let (storage, session, start) = (Arc::clone(storage), session.clone(), Arc::clone(&start));
            tokio::spawn(async move {
                start.wait().await;
                storage.save(session).await
            })
        })
        .collect();
    let mut winners = 0;
    for racer in racers {
        match racer.await.unwrap() {
            Ok(()) => winners += 1,
            Err(GraphError::SessionConflict(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    winners
}

// The same in memory, at one server, and in a cluster.

#[tokio::test(flavor = "multi_thread")]
async fn session_is_created_once_saved_by_version_and_deleted() {
    for (place, storage) in &everywhere("rules").await.storages {
        assert!(storage.get("s").await.unwrap().is_none(), "{place}");
        storage.delete("s").await.unwrap();
        for version in 0..4 {
            storage.save(session("s", version)).await.unwrap();
            assert_eq!(stored(storage.as_ref(), "s").await.version, version + 1, "{place}");
        }
        for other in [0, 1, 3, 5] {
            assert_conflict(storage.save(session("s", other)).await, 4, other);
        }
        assert_eq!(stored(storage.as_ref(), "s").await.version, 4, "{place}");

        storage.delete("s").await.unwrap();
        assert!(storage.get("s").await.unwrap().is_none(), "{place}");
        storage.save(session("s", 0)).await.unwrap();
        assert_eq!(stored(storage.as_ref(), "s").await.version, 1, "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn save_after_a_delete_goes_on_with_the_next_version_and_older_runs_conflict() {
    for (place, storage) in &everywhere("again").await.storages {
        for version in 0..3 {
            storage.save(session("s", version)).await.unwrap();
        }
        for version in [3, 4, 5] {
            storage.delete("s").await.unwrap();
            // More saves than there were runs with an older version.
            for next in version..version + 4 {
                storage.save(session("s", next)).await.unwrap();
                assert_eq!(stored(storage.as_ref(), "s").await.version, next + 1, "{place}");
            }
            for stale in 0..version + 4 {
                assert_conflict(storage.save(session("s", stale)).await, version + 4, stale);
            }
            assert_conflict(storage.save(session("s", version + 5)).await, version + 4, version + 5);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_32_racing_saves_of_one_version_one_wins() {
    for (place, storage) in &everywhere("race").await.storages {
        for round in 0..5 {
            let id = format!("s{round}");
            assert_eq!(winners(storage, &session(&id, 0)).await, 1, "{place}: creations");
            assert_eq!(winners(storage, &session(&id, 1)).await, 1, "{place}: saves");
            storage.delete(&id).await.unwrap();
            assert_eq!(winners(storage, &session(&id, 2)).await, 1, "{place}: saves after a delete");
            assert_eq!(winners(storage, &session(&id, 3)).await, 1, "{place}: saves of a later incarnation");
            assert_eq!(stored(storage.as_ref(), &id).await.version, 4, "{place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_fields_and_the_context_are_read_back() {
    for (place, storage) in &everywhere("fields").await.storages {
        // Short, and long enough to be compressed.
        for length in [10, 100_000] {
            let id = format!("of {length}");
            let mut saved = Session::new_from_task(id.clone(), "ask").with_graph_id("the graph");
            saved.status_message = Some("waits for \"input\"\n".to_owned());
            let value = serde_json::json!({ "list": [1, -2.5, null, true], "text": "ü".repeat(length) });
            saved.context.set("value", &value).unwrap();
            saved.context.add_user_message("how much?".to_owned());
            saved.context.add_assistant_message("42".to_owned());
            storage.save(saved).await.unwrap();

            let read = stored(storage.as_ref(), &id).await;
            assert_eq!((read.id.as_str(), read.version), (id.as_str(), 1), "{place}");
            assert_eq!((read.graph_id.as_str(), read.current_task_id.as_str()), ("the graph", "ask"));
            assert_eq!(read.status_message.as_deref(), Some("waits for \"input\"\n"), "{place}");
            assert_eq!(read.context.get::<serde_json::Value>("value"), Some(value), "{place}");
            let messages: Vec<_> =
                read.context.get_all_messages().into_iter().map(|message| message.content).collect();
            assert_eq!(messages, ["how much?", "42"], "{place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_may_hold_anything_and_stay_apart() {
    for (place, storage) in &everywhere("ids").await.storages {
        for (number, id) in ANY_IDS.into_iter().enumerate() {
            for version in 0..=number as u64 {
                storage.save(session(id, version)).await.unwrap();
            }
        }
        for (number, id) in ANY_IDS.into_iter().enumerate() {
            let read = stored(storage.as_ref(), id).await;
            assert_eq!((read.id.as_str(), read.version), (id, number as u64 + 1), "{place}");
        }
        for id in ANY_IDS {
            storage.delete(id).await.unwrap();
            assert!(storage.get(id).await.unwrap().is_none(), "{place}: {id:?}");
        }
    }
}

/// Adds its name to what has run. The last task ends the flow; the others let the runner save before the next one.
struct Step {
    name: &'static str,
    is_last: bool,
    /// Two runs meet in here.
    meeting: Option<Arc<Barrier>>,
}

#[async_trait]
impl Task for Step {
    fn id(&self) -> &str {
        self.name
    }

    async fn run(&self, context: Context) -> graph_flow::Result<TaskResult> {
        if let Some(meeting) = &self.meeting {
            meeting.wait().await;
        }
        let mut ran: Vec<String> = context.get("ran").unwrap_or_default();
        ran.push(self.name.to_owned());
        context.set("ran", &ran)?;
        let next = if self.is_last { NextAction::End } else { NextAction::Continue };
        Ok(TaskResult::new(Some(format!("{} ran", self.name)), next))
    }
}

fn flow(meeting: Option<&Arc<Barrier>>) -> Arc<Graph> {
    let step = |name, is_last| Arc::new(Step { name, is_last, meeting: meeting.cloned() });
    let builder = GraphBuilder::new("flow").add_task(step("start", false)).add_task(step("middle", false));
    let builder = builder.add_task(step("end", true));
    Arc::new(builder.add_edge("start", "middle").add_edge("middle", "end").build().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn flow_goes_on_where_its_last_step_was_saved() {
    for (place, storage) in &everywhere("flow").await.storages {
        storage.save(session("s", 0)).await.unwrap();
        for (number, expected) in ["start", "middle", "end"].into_iter().enumerate() {
            // Each step has a runner of its own, which knows only what is stored.
            let result = FlowRunner::new(flow(None), Arc::clone(storage)).run("s").await.unwrap();
            assert_eq!(result.response, Some(format!("{expected} ran")), "{place}");
            assert_eq!(matches!(result.status, ExecutionStatus::Completed), expected == "end", "{place}");
            assert_eq!(stored(storage.as_ref(), "s").await.version, number as u64 + 2, "{place}");
        }
        let ran: Vec<String> = stored(storage.as_ref(), "s").await.context.get("ran").unwrap();
        assert_eq!(ran, ["start", "middle", "end"], "{place}");
        let missing = FlowRunner::new(flow(None), Arc::clone(storage)).run("other").await;
        assert!(matches!(missing, Err(GraphError::SessionNotFound(_))), "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_runs_of_one_step_one_is_saved() {
    // Not in memory: sessions there share their context, so both runs would be in it.
    for (place, storage) in &everywhere("two-runs").await.storages[1..] {
        storage.save(session("s", 0)).await.unwrap();
        let runner = FlowRunner::new(flow(Some(&Arc::new(Barrier::new(2)))), Arc::clone(storage));
        let (one, other) = tokio::join!(runner.run("s"), runner.run("s"));
        let (saved, refused): (Vec<_>, Vec<_>) = [one, other].into_iter().partition(Result::is_ok);
        assert_eq!((saved.len(), refused.len()), (1, 1), "{place}");
        let ran: Vec<String> = stored(storage.as_ref(), "s").await.context.get("ran").unwrap();
        assert_eq!(ran, ["start"], "{place}");
        for error in refused {
            assert!(matches!(error, Err(GraphError::SessionConflict(_))), "{place}: {error:?}");
        }
    }
}

// Ours alone.

/// How often each command was called that takes part in a storage's work.
fn calls(server: &Server) -> BTreeMap<String, u64> {
    let statistics = server.wire().call(&["INFO", "commandstats"]);
    let of_line = |line: &str| {
        let (command, numbers) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let (calls, _) = numbers.split_once(',')?;
        Some((command.to_owned(), calls.parse().unwrap()))
    };
    statistics.lines().filter_map(of_line).filter(|(command, _)| command != "info").collect()
}

/// The commands that a call takes.
async fn taken<T>(server: &Server, call: impl Future<Output = Result<T, GraphError>>) -> Vec<String> {
    let before = calls(server);
    drop(call.await);
    let more = |(command, calls): (String, u64)| {
        let more = calls - before.get(&command).copied().unwrap_or(0);
        std::iter::repeat_n(command, usize::try_from(more).unwrap())
    };
    calls(server).into_iter().flat_map(more).collect()
}

#[tokio::test]
async fn calls_take_the_round_trips_that_are_documented() {
    let server = Server::start();
    let storage = ours(&server).await;
    // The connection says hello with its first call.
    storage.get("s").await.unwrap();
    let (put, cas, list) = ("pmcptask.put", "pmcptask.cas", "pmcptask.list");
    assert_eq!(taken(&server, storage.save(session("s", 0))).await, [put]);
    assert_eq!(taken(&server, storage.save(session("s", 1))).await, [cas]);
    assert_eq!(taken(&server, storage.save(session("s", 1))).await, [cas], "a conflict");
    assert_eq!(taken(&server, storage.save(session("s", 0))).await, [list, put], "a creation too late");
    assert_eq!(taken(&server, storage.get("s")).await, [list]);
    assert_eq!(taken(&server, storage.delete("s")).await, ["pmcptask.trim"]);
    assert_eq!(taken(&server, storage.save(session("s", 2))).await, [cas, put], "after a delete");
    assert_eq!(taken(&server, storage.save(session("s", 3))).await, [cas, cas, list, put], "later");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_sessions_that_were_deleted() {
    let server = Server::start();
    let storage: Arc<dyn SessionStorage> = Arc::new(ours(&server).await);
    for id in ANY_IDS {
        winners(&storage, &session(id, 0)).await;
        storage.save(session(id, 1)).await.unwrap();
        storage.delete(id).await.unwrap();
        // A later incarnation.
        winners(&storage, &session(id, 2)).await;
        storage.save(session(id, 3)).await.unwrap();
    }
    for id in ANY_IDS {
        storage.delete(id).await.unwrap();
    }
    assert_eq!(server.wire().call(&["DBSIZE"]), ":0\r\n");
}

#[tokio::test]
async fn session_lives_for_its_ttl_and_leaves_nothing() {
    let server = Server::start();
    let ttl = Duration::from_millis(400);
    let storage = RedisSessionStorage::builder(&server.url()).default_ttl(ttl).connect().await.unwrap();
    let ttl_ms = i64::try_from(ttl.as_millis()).unwrap();
    // The second session is that of a run that goes on after the first one has expired.
    for version in [0, 1] {
        let before = now_ms();
        storage.save(session("s", version)).await.unwrap();
        // A part of a millisecond counts as a whole one.
        let allowed = before + ttl_ms..=now_ms() + 1 + ttl_ms;
        let expires = integer(&server.wire().call(&["PEXPIRETIME", &format!("sessions:tasks:s:{version}")]));
        assert!(allowed.contains(&expires), "{allowed:?} {expires}");

        sleep_until(expires + 1);
        assert!(storage.get("s").await.unwrap().is_none());
        assert!(holds_within(Duration::from_secs(5), || server.wire().call(&["DBSIZE"]) == ":0\r\n"));
    }
}

#[tokio::test]
async fn each_save_gives_the_whole_ttl_and_reads_do_so_where_asked() {
    let server = Server::start();
    let expires = || integer(&server.wire().call(&["PEXPIRETIME", "sessions:tasks:s:0"]));
    for refreshes in [false, true] {
        let builder = RedisSessionStorage::builder(&server.url()).default_ttl(HOUR);
        let storage = builder.refresh_on_read(refreshes).connect().await.unwrap();
        storage.save(session("s", 0)).await.unwrap();
        let first = expires();
        sleep_until(now_ms() + 2);
        let commands = taken(&server, storage.get("s")).await;
        assert_eq!(expires() > first, refreshes);
        assert_eq!(commands.len(), 1 + usize::from(refreshes), "{commands:?}");

        let second = expires();
        sleep_until(now_ms() + 2);
        storage.save(session("s", 1)).await.unwrap();
        assert!(expires() > second);
        storage.delete("s").await.unwrap();
    }
}

#[tokio::test]
async fn corrupt_record_is_refused_by_name_without_its_data() {
    let server = Server::start();
    let storage = ours(&server).await;
    storage.save(session("the session", 0)).await.unwrap();
    let key = "sessions:tasks:the session:0";
    for data in ["", "{", "a secret", "{\"id\":\"a secret\"}", "[]", "\0zs1", "\0zs1\u{1}0000000a secret"] {
        assert_eq!(server.wire().call(&["HSET", key, "data", data]), ":0\r\n");
        let Err(GraphError::StorageError(text)) = storage.get("the session").await else {
            panic!("{data:?} was read");
        };
        assert!(text.contains("\"the session\"") && !text.contains("secret"), "{text}");
    }
    // A version can be written over what cannot be read.
    storage.save(session("the session", 1)).await.unwrap();
    assert_eq!(stored(&storage, "the session").await.version, 2);

    let foreign = ["PMCPTASK.PUT", "sessions:tasks:other:foreign", "sessions:idx:other", "{}"];
    assert_eq!(server.wire().call(&foreign), ":1\r\n");
    for failed in [storage.get("other").await.map(drop), storage.save(session("other", 0)).await] {
        let Err(GraphError::StorageError(text)) = failed else { panic!("{failed:?}") };
        assert!(text.contains("\"other\"") && text.contains("\"foreign\""), "{text}");
    }
}

#[tokio::test]
async fn long_sessions_are_compressed_and_both_forms_are_read_whatever_the_setting_is() {
    let server = Server::start();
    let plain = RedisSessionStorage::builder(&server.url()).compression(Compression::Off).connect();
    let (plain, compressed) = (plain.await.unwrap(), ours(&server).await);
    let text = "as before ".repeat(10_000);
    for (id, writer, reader) in [("p", &plain, &compressed), ("c", &compressed, &plain)] {
        let saved = session(id, 0);
        saved.context.set("text", &text).unwrap();
        writer.save(saved).await.unwrap();
        assert_eq!(stored(reader, id).await.context.get::<String>("text").as_ref(), Some(&text));
    }
    let length =
        |id: &str| integer(&server.wire().call(&["HSTRLEN", &format!("sessions:tasks:{id}:0"), "data"]));
    assert!(length("p") > 100_000 && length("c") < 1_000, "{} {}", length("p"), length("c"));
}

#[tokio::test]
async fn save_whose_reply_is_lost_says_so_and_is_never_made_twice() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let storage = RedisSessionStorage::new(&proxy.url()).await.unwrap();
    for version in 0..4 {
        proxy.set(Fault::LoseReply(1));
        let Err(GraphError::StorageError(text)) = storage.save(session("s", version)).await else {
            panic!("the reply was lost");
        };
        assert!(text.contains("unknown"), "{text}");
        // It was made, once. So the same save again is a conflict, and who loads the session sees why.
        assert_conflict(storage.save(session("s", version)).await, version + 1, version);
        assert_eq!(stored(&storage, "s").await.version, version + 1);
    }
    // The client cannot know that this one was not made. The same save again makes it.
    proxy.set(Fault::LoseRequest);
    assert!(matches!(storage.save(session("s", 4)).await, Err(GraphError::StorageError(_))));
    storage.save(session("s", 4)).await.unwrap();
    // A read is made again.
    proxy.set(Fault::LoseReply(1));
    assert_eq!(stored(&storage, "s").await.version, 5);
}

#[tokio::test]
async fn sessions_outlive_a_crash_of_the_server() {
    let mut server = Server::start_with(&ServerOptions::default().with_aof());
    let storage = ours(&server).await;
    storage.save(session("first", 0)).await.unwrap();
    storage.save(session("later", 7)).await.unwrap();
    for version in 1..4 {
        server.kill();
        server.restart();
        assert_eq!(stored(&storage, "first").await.version, version);
        assert_eq!(stored(&storage, "later").await.version, version + 7);
        storage.save(session("first", version)).await.unwrap();
        storage.save(session("later", version + 7)).await.unwrap();
    }
}
