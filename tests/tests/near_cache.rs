//! The near cache of the task store: polls cost no round trip, one's own writes are seen, versions never go back, and another's
//! write is seen as soon as the server tells of it.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pmcp::server::task_store as server;
use pmcp::types::tasks::TaskStatus as ServerStatus;
use pmcp::types::{CallToolResult, Content};
use pmcp_tasks::store::backend::StorageBackend as _;
use pmcp_tasks::{TaskError, TaskRecord, TaskSecurityConfig, TaskStore as _};
use pmcptask_client::{RedisBackend, TaskStore};
use pmcptask_tests::{Cluster, Dice, Fault, OK, Proxy, Server, ServerOptions, holds_within, now_ms};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// The server tells of a change in less.
const AT_ONCE: Duration = Duration::from_millis(600);
/// How long something may take that happens. Only a broken client needs all of it.
const RECOVERY: Duration = Duration::from_secs(10);
/// Enough memory for all records of a test.
const ENOUGH: usize = 16 << 20;

fn near(backend: RedisBackend) -> TaskStore {
    let many = TaskSecurityConfig::default().with_max_tasks_per_owner(100_000);
    TaskStore::new(backend).with_security(many).near_cache(ENOUGH)
}

/// A store with a near cache.
async fn store(url: &str) -> TaskStore {
    near(RedisBackend::new(url).await.unwrap())
}

/// A backend that sends nothing while nobody calls.
async fn without_pings(proxy: &Proxy) -> RedisBackend {
    RedisBackend::builder(proxy.url()).keep_alive(Duration::from_mins(5)).connect().await.unwrap()
}

async fn new_task(store: &TaskStore) -> String {
    store.create("o", "tools/call", None).await.unwrap().task.task_id
}

async fn say(store: &TaskStore, id: &str, message: &str) {
    server::TaskStore::set_status_message(store, id, "o", Some(message.to_owned())).await.unwrap();
}

async fn version(store: &TaskStore, id: &str) -> u64 {
    store.get(id, "o").await.unwrap().version
}

/// Polls until the record is kept in memory.
async fn keep(server: &Server, store: &TaskStore, id: &str) {
    let is_kept = async {
        loop {
            let before = reads(server);
            let _ = store.get(id, "o").await;
            if reads(server) == before {
                break;
            }
        }
    };
    timeout(RECOVERY, is_kept).await.expect("polls are answered from memory");
}

fn reads(server: &Server) -> u64 {
    server.calls_of("pmcptask.get")
}

fn tracked(server: &Server) -> u64 {
    server.wire().info_number("stats", "tracking_total_keys")
}

fn task_key(id: &str) -> String {
    format!("pmcp:tasks:o:{id}")
}

fn text(text: &str) -> CallToolResult {
    CallToolResult::new(vec![Content::text(text)])
}

/// A task's life: created, five messages each followed by a poll, a result, completed, two reads.
async fn life(store: &TaskStore) {
    let id = server::TaskStore::create(store, "o", None).await.unwrap().task_id;
    for step in 0..5 {
        say(store, &id, &step.to_string()).await;
        let task = server::TaskStore::get(store, &id, "o").await.unwrap();
        assert_eq!(task.status_message, Some(step.to_string()));
    }
    server::TaskStore::set_result(store, &id, "o", text("42")).await.unwrap();
    server::TaskStore::update_status(store, &id, "o", ServerStatus::Completed, None).await.unwrap();
    let task = server::TaskStore::get(store, &id, "o").await.unwrap();
    assert_eq!(task.status, ServerStatus::Completed);
    assert_eq!(server::TaskStore::get_result(store, &id, "o").await.unwrap().content.len(), 1);
}

// Round trips.

#[tokio::test(flavor = "multi_thread")]
async fn life_of_a_task_is_nine_round_trips() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let far = TaskStore::new(without_pings(&proxy).await);
    let near = near(without_pings(&proxy).await);
    let mut round_trips = Vec::new();
    for store in [&far, &near] {
        let before = proxy.sent();
        life(store).await;
        round_trips.push(proxy.sent() - before);
    }
    assert_eq!(round_trips, [15, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn poll_while_nothing_changes_sends_nothing() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let [a, b] = [near(without_pings(&proxy).await), near(without_pings(&proxy).await)];
    let id = new_task(&a).await;
    say(&a, &id, "…").await;
    for store in [&a, &b] {
        keep(&server, store, &id).await;
        let before = proxy.sent();
        for _ in 0..100 {
            assert_eq!(version(store, &id).await, 2);
            assert!(store.get_result(&id, "o").await.is_err());
            assert!(server::TaskStore::get_error(store, &id, "o").await.is_err());
        }
        assert_eq!(proxy.sent(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_without_a_near_cache_tracks_nothing_and_reads_each_time() {
    let server = Server::start();
    let store = TaskStore::new(RedisBackend::new(&server.url()).await.unwrap());
    let before = reads(&server);
    life(&store).await;
    assert_eq!(reads(&server) - before, 7);
    assert_eq!((server.calls_of("client|tracking"), server.calls_of("pttl"), tracked(&server)), (0, 0, 0));
}

/// A worker whose task nobody polls does not pay for it.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_nobody_reads_are_not_read_again() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let id = new_task(&store).await;
    keep(&server, &store, &id).await;
    let before = reads(&server);
    for step in 0..100 {
        say(&store, &id, &step.to_string()).await;
    }
    assert_eq!(reads(&server) - before, 2);
    // Nor is a large record sent back.
    let large = "x".repeat(50_000);
    keep(&server, &store, &id).await;
    let before = reads(&server);
    store.set_variables(&id, "o", HashMap::from([("large".to_owned(), json!(large))])).await.unwrap();
    assert_eq!(reads(&server), before);
    keep(&server, &store, &id).await;
    assert_eq!(store.get(&id, "o").await.unwrap().variables["large"], json!(large));
}

// Another's changes.

#[tokio::test(flavor = "multi_thread")]
async fn change_by_another_store_is_seen_as_soon_as_the_server_tells() {
    let server = Server::start();
    let [a, b] = [store(&server.url()).await, store(&server.url()).await];
    let id = new_task(&a).await;
    for _ in 0..50 {
        for (writer, reader) in [(&a, &b), (&b, &a)] {
            keep(&server, reader, &id).await;
            say(writer, &id, "…").await;
            let written = version(writer, &id).await;
            let (started, mut seen) = (Instant::now(), 0);
            while seen < written && started.elapsed() < AT_ONCE {
                let now = version(reader, &id).await;
                assert!(now >= seen, "{now} after {seen}");
                seen = now;
            }
            assert_eq!(seen, written);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_changes_a_task_it_is_seen() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let mut wire = server.wire();
    let mut other = |line: &str| {
        for line in line.split("; ") {
            let reply = wire.run(line);
            assert!(!reply.starts_with('-'), "{line}: {reply}");
        }
    };
    for (line, expected) in [
        ("HSET T version 7", Some(7)),
        ("DEL T", None),
        ("UNLINK T", None),
        ("RENAME T elsewhere", None),
        ("PEXPIREAT T 1", None),
        ("COPY other T REPLACE", Some(7)),
        ("MULTI; HSET T version 7; EXEC", Some(7)),
        ("EVAL redis.call('HSET',KEYS[1],'version',7) 1 T", Some(7)),
        ("FLUSHALL", None),
        ("FLUSHDB", None),
        (
            "CONFIG SET maxmemory-policy allkeys-random; CONFIG SET maxmemory 1; GET x; CONFIG SET maxmemory 0",
            None,
        ),
    ] {
        let id = new_task(&store).await;
        keep(&server, &store, &id).await;
        other(&format!("DEL other; COPY {} other; HSET other version 7", task_key(&id)));
        other(&line.replace(" T", &format!(" {}", task_key(&id))));
        let sees = async {
            loop {
                match (store.get(&id, "o").await, expected) {
                    (Ok(record), Some(version)) if record.version == version => break,
                    (Err(TaskError::NotFound { .. }), None) => break,
                    (Ok(record), _) if record.version == 1 => {}
                    (other, _) => panic!("{line}: {other:?}"),
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(AT_ONCE, sees).await.expect(line);
    }
}

/// The server's side of the connection is gone, and nobody tells the client.
#[tokio::test(flavor = "multi_thread")]
async fn half_open_connection_hides_a_change_for_keep_alive_and_response_timeout_at_most() {
    const KEEP_ALIVE: Duration = Duration::from_millis(700);
    const RESPONSE: Duration = Duration::from_millis(500);
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let builder = RedisBackend::builder(proxy.url()).keep_alive(KEEP_ALIVE).response_timeout(RESPONSE);
    let store = near(builder.connect_timeout(RESPONSE).connect().await.unwrap());
    let id = new_task(&store).await;
    keep(&server, &store, &id).await;
    proxy.set(Fault::Silence);
    let silent = Instant::now();
    server.wire().run(&format!("HSET {} version 7", task_key(&id)));
    // From memory, until the client knows better. What is old is not answered after that.
    while let Ok(record) = store.get(&id, "o").await {
        assert_eq!(record.version, 1);
        assert!(silent.elapsed() < KEEP_ALIVE + RESPONSE + AT_ONCE, "{:?}", silent.elapsed());
        sleep(Duration::from_millis(5)).await;
    }
    proxy.set(Fault::None);
    proxy.cut();
    let sees = async {
        loop {
            if store.get(&id, "o").await.is_ok_and(|record| record.version == 7) {
                break;
            }
        }
    };
    timeout(RECOVERY, sees).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn change_while_the_connection_is_away_is_seen() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let store = near(RedisBackend::builder(proxy.url()).connect_timeout(RECOVERY).connect().await.unwrap());
    let id = new_task(&store).await;
    for round in 1..20 {
        keep(&server, &store, &id).await;
        proxy.cut();
        // The client may have noticed the cut, or not yet.
        sleep(Duration::from_millis(round % 7 * 3)).await;
        let changed = round * 100;
        server.wire().run(&format!("HSET {} version {changed}", task_key(&id)));
        // The client notices the cut.
        sleep(Duration::from_millis(20)).await;
        assert_eq!(version(&store, &id).await, changed, "round {round}");
    }
}

/// A program that polls in a loop leaves its thread to nobody else.
#[tokio::test(flavor = "current_thread")]
async fn change_is_seen_by_a_loop_that_does_nothing_but_poll() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let id = new_task(&store).await;
    keep(&server, &store, &id).await;
    server.wire().run(&format!("HSET {} version 7", task_key(&id)));
    let started = Instant::now();
    while version(&store, &id).await == 1 {
        assert!(started.elapsed() < AT_ONCE);
    }
}

/// A runtime of one thread runs only while somebody waits for something on it, and a process may be stopped.
#[test]
fn runtime_that_stands_still_hides_a_change_for_keep_alive_and_response_timeout_at_most() {
    const KEEP_ALIVE: Duration = Duration::from_millis(700);
    const RESPONSE: Duration = Duration::from_millis(500);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = Server::start();
    let builder = RedisBackend::builder(server.url()).keep_alive(KEEP_ALIVE).response_timeout(RESPONSE);
    let store = near(runtime.block_on(builder.connect()).unwrap());
    let id = runtime.block_on(new_task(&store));
    runtime.block_on(keep(&server, &store, &id));
    server.wire().run(&format!("HSET {} version 7", task_key(&id)));
    let started = Instant::now();
    while runtime.block_on(version(&store, &id)) == 1 {
        assert!(started.elapsed() < KEEP_ALIVE + RESPONSE + AT_ONCE);
        std::thread::sleep(Duration::from_millis(20));
    }
}

// One's own writes.

/// The reply to a write comes before the news of the write.
#[tokio::test(flavor = "multi_thread")]
async fn own_write_is_seen_before_the_server_tells_of_it() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    let [store, clone] = [near(backend.clone()), near(backend)];
    let id = new_task(&store).await;
    let large = "x".repeat(20_000);
    for round in 0..5 {
        // Records that are not read again behind the write.
        store.set_variables(&id, "o", HashMap::from([("large".to_owned(), json!(large))])).await.unwrap();
        let written = version(&store, &id).await;
        for store in [&store, &clone] {
            keep(&server, store, &id).await;
        }
        proxy.set(Fault::HoldNews);
        say(&store, &id, &round.to_string()).await;
        let polls = [&store, &clone].map(|store| {
            let (store, id) = (store.clone(), id.clone());
            tokio::spawn(async move { version(&store, &id).await })
        });
        sleep(Duration::from_millis(30)).await;
        // An answer from memory would come at once. The server's comes behind the news.
        assert!(polls.iter().all(|poll| !poll.is_finished()));
        proxy.set(Fault::None);
        for poll in polls {
            assert_eq!(poll.await.unwrap(), written + 1);
        }
    }
}

/// A poll whose reply is looked at after a write was acknowledged, and before the server tells of the write.
#[tokio::test(flavor = "current_thread")]
async fn poll_that_overlaps_a_write_keeps_no_older_record() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let store = store(&proxy.url()).await;
    let id = new_task(&store).await;
    say(&store, &id, "first").await;
    let mut poll = Box::pin(store.get(&id, "o"));
    // Sends the tracked read, and no more.
    assert!(futures_util::poll!(&mut poll).is_pending());
    proxy.set(Fault::HoldNews);
    say(&store, &id, "second").await;
    assert_eq!(poll.await.unwrap().version, 2);
    let read = tokio::spawn({
        let (store, id) = (store.clone(), id.clone());
        async move { version(&store, &id).await }
    });
    // An answer from memory would come at once.
    sleep(Duration::from_millis(30)).await;
    proxy.set(Fault::None);
    assert_eq!(read.await.unwrap(), 3);
}

/// Another's change comes between a tracked read and the moment when the client takes its reply in.
#[tokio::test(flavor = "current_thread")]
async fn change_between_a_poll_and_its_reply_is_not_missed() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let id = new_task(&store).await;
    for round in 1..20 {
        // What was written here is known, and the next poll is tracked.
        server.wire().run(&format!("HSET {} version {}", task_key(&id), round * 100));
        // The news arrives.
        sleep(Duration::from_millis(20)).await;
        let before = server.calls_of("pttl");
        let mut poll = Box::pin(store.get(&id, "o"));
        assert!(futures_util::poll!(&mut poll).is_pending());
        // The client runs on this thread only: while this test blocks the thread, the client takes nothing in.
        while server.calls_of("pttl") == before {
            tokio::task::yield_now().await;
            std::thread::sleep(Duration::from_millis(2));
        }
        server.wire().run(&format!("HSET {} version {}", task_key(&id), round * 100 + 1));
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(poll.await.unwrap().version, round * 100);
        assert_eq!(version(&store, &id).await, round * 100 + 1);
    }
}

/// Another's change comes between the read behind a write and the moment when the client takes it in.
#[tokio::test(flavor = "current_thread")]
async fn change_between_the_read_behind_a_write_and_its_reply_is_not_missed() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let id = new_task(&store).await;
    for round in 0..20 {
        // Other changes of the task before the write, so that the server has told of it already, and after the read.
        let (other_before, other_after) = (round % 2 == 1, round % 4 < 2);
        keep(&server, &store, &id).await;
        let from = version(&store, &id).await;
        if other_before {
            // The version stays, so the write succeeds.
            server.wire().run(&format!("PEXPIRE {} 3000000", task_key(&id)));
        }
        let before = server.calls_of("pttl");
        let mut writing = Box::pin(say(&store, &id, "…"));
        assert!(futures_util::poll!(&mut writing).is_pending());
        // The client runs on this thread only: while this test blocks the thread, the client takes nothing in.
        while server.calls_of("pttl") == before {
            tokio::task::yield_now().await;
            std::thread::sleep(Duration::from_millis(2));
        }
        if other_after {
            server.wire().run(&format!("HSET {} version {}", task_key(&id), from + 100));
            std::thread::sleep(Duration::from_millis(5));
        }
        writing.await;
        let reads_before = reads(&server);
        let expected = if other_after { from + 100 } else { from + 1 };
        assert_eq!(version(&store, &id).await, expected, "round {round}");
        // And without another's change after the read, the poll is answered from memory.
        assert_eq!(reads(&server) > reads_before, other_after, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn change_between_a_write_and_the_read_behind_it_is_seen() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let store = store(&proxy.url()).await;
    let id = new_task(&store).await;
    for round in 1..10 {
        keep(&server, &store, &id).await;
        let other =
            ["HSET", &task_key(&id), "version", &(round * 100).to_string()].map(str::to_owned).to_vec();
        proxy.set(Fault::Before { command: "PMCPTASK.GET", other });
        say(&store, &id, "…").await;
        let expected = server.wire().call(&["HGET", &task_key(&id), "version"]);
        let seen = version(&store, &id).await;
        assert!(expected.ends_with(&format!("\r\n{seen}\r\n")), "round {round}: {seen} of {expected}");
        assert!(seen >= round * 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_writes_are_seen_and_versions_never_go_back_whoever_polls_and_writes_at_once() {
    const POLLERS: usize = 4;
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    // Two stores over one backend, and a clone.
    let stores = [near(backend.clone()), near(backend)];
    let id: Arc<str> = new_task(&stores[0]).await.into();
    let (acknowledged, is_over) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let pollers: Vec<_> = (0..POLLERS)
        .map(|poller| {
            let (store, id) = (stores[poller % 2].clone(), id.clone());
            let (acknowledged, is_over) = (acknowledged.clone(), is_over.clone());
            tokio::spawn(async move {
                let mut polls = 0_u64;
                let mut last = 0;
                while !is_over.load(Ordering::SeqCst) {
                    let least = acknowledged.load(Ordering::SeqCst).max(last);
                    last = version(&store, &id).await;
                    assert!(last >= least, "{last} after {least}");
                    polls += 1;
                    if polls.is_multiple_of(5) {
                        tokio::task::yield_now().await;
                    }
                }
                polls
            })
        })
        .collect();
    let writers: Vec<_> = (0..2)
        .map(|writer: usize| {
            let (store, id, acknowledged) = (stores[writer].clone(), id.clone(), acknowledged.clone());
            tokio::spawn(async move {
                for step in 0..300 {
                    let record =
                        store.set_variables(&id, "o", HashMap::from([("step".to_owned(), json!(step))]));
                    acknowledged.fetch_max(record.await.unwrap().version, Ordering::SeqCst);
                    if step % 3 == 0 {
                        sleep(Duration::from_millis(1)).await;
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    is_over.store(true, Ordering::SeqCst);
    for poller in pollers {
        assert!(poller.await.unwrap() > 0);
    }
    assert_eq!(version(&stores[0], &id).await, 601);
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_a_current_record_is_one_round_trip_also_after_another_stores() {
    let server = Server::start();
    let [a, b] = [store(&server.url()).await, store(&server.url()).await];
    let id = new_task(&a).await;
    keep(&server, &b, &id).await;
    let (reads_before, writes_before) = (reads(&server), server.calls_of("pmcptask.cas"));
    b.cancel(&id, "o").await.unwrap();
    // The read behind the write.
    assert_eq!((reads(&server) - reads_before, server.calls_of("pmcptask.cas") - writes_before), (1, 1));
    // A refusal never comes from memory.
    let error = b.cancel(&id, "o").await.unwrap_err();
    assert!(matches!(error, TaskError::InvalidTransition { .. }), "{error}");
}

// The end of tasks.

#[tokio::test(flavor = "multi_thread")]
async fn expired_task_is_gone_at_its_millisecond_although_the_server_does_not_reclaim() {
    let server = Server::start_with(&ServerOptions::default().set("enable-debug-command", "local"));
    assert_eq!(server.wire().run("DEBUG SET-ACTIVE-EXPIRE 0"), OK);
    let store = store(&server.url()).await;
    for _ in 0..5 {
        let id = new_task(&store).await;
        keep(&server, &store, &id).await;
        let ends = now_ms() + 1_000;
        // Sooner than the record says, so that nothing but the cache's own clock counts.
        server.wire().run(&format!("PEXPIREAT {} {ends}", task_key(&id)));
        // The news arrives.
        sleep(Duration::from_millis(20)).await;
        keep(&server, &store, &id).await;
        let reads_before = reads(&server);
        let gone = loop {
            let asked = now_ms();
            match store.get(&id, "o").await {
                Ok(_) => assert!(asked <= ends, "answered {} ms after its end", asked - ends),
                Err(TaskError::NotFound { .. }) => break now_ms(),
                Err(error) => panic!("{error}"),
            }
        };
        assert!(gone > ends, "gone {} ms before its end", ends - gone);
        // From memory until about the last millisecond.
        let more = reads(&server) - reads_before;
        assert!(more < 100, "{more} reads");
    }
    assert_eq!(tracked(&server), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_were_polled_until_they_expired_leave_nothing_at_the_server() {
    const TASKS: usize = 30;
    let server = Server::start();
    let [a, b] = [store(&server.url()).await, store(&server.url()).await];
    let mut ids = Vec::new();
    for n in 0..TASKS as u64 {
        let id = a.create("o", "tools/call", Some(300 + 10 * n)).await.unwrap().task.task_id;
        // Polled once, twice and often.
        for _ in 0..n % 3 {
            drop(b.get(&id, "o").await);
        }
        ids.push(id);
    }
    let ends = Instant::now() + Duration::from_millis(300 + 10 * TASKS as u64 + 300);
    while Instant::now() < ends {
        for id in ids.iter().step_by(2) {
            let _ = a.get(id, "o").await;
            let _ = b.get(id, "o").await;
        }
    }
    for id in &ids {
        for store in [&a, &b] {
            let error = store.get(id, "o").await.unwrap_err();
            assert!(matches!(error, TaskError::NotFound { .. }), "{error}");
        }
    }
    // Nor do tasks that never were.
    for n in 0..100 {
        for _ in 0..3 {
            assert!(a.get(&format!("never-{n}"), "o").await.is_err());
        }
    }
    assert!(holds_within(RECOVERY, || server.wire().call(&["DBSIZE"]) == ":0\r\n"));
    assert_eq!(tracked(&server), 0);
}

/// Only the server's next change of the key would remove the name.
#[tokio::test(flavor = "multi_thread")]
async fn task_that_is_deleted_while_it_is_polled_leaves_one_name_at_the_server_at_most() {
    let server = Server::start();
    let store = store(&server.url()).await;
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    for _ in 0..10 {
        let id = new_task(&store).await;
        keep(&server, &store, &id).await;
        backend.delete(&format!("o:{id}")).await.unwrap();
        for _ in 0..20 {
            let _ = store.get(&id, "o").await;
            sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(tracked(&server) <= 10, "{}", tracked(&server));
}

// Bounds.

#[tokio::test(flavor = "multi_thread")]
async fn of_more_tasks_than_fit_those_read_last_are_answered_from_memory() {
    const TASKS: usize = 300;
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let store = near(backend).near_cache(100 << 10);
    let mut ids = Vec::new();
    for _ in 0..TASKS {
        ids.push(new_task(&store).await);
    }
    for id in &ids {
        keep(&server, &store, id).await;
    }
    let mut kept = Vec::new();
    for id in ids.iter().rev() {
        let before = reads(&server);
        version(&store, id).await;
        kept.push(reads(&server) == before);
    }
    let of_last = kept.iter().take_while(|is_kept| **is_kept).count();
    pmcptask_tests::show(&format!("{of_last} records in 100 KiB"));
    assert!((50..200).contains(&of_last), "{of_last}");
    assert!(kept[of_last..].iter().all(|is_kept| !is_kept));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_tasks_than_the_server_tracks_are_never_answered_with_an_old_record() {
    const TASKS: u64 = 100;
    let server = Server::start_with(&ServerOptions::default().set("tracking-table-max-keys", "10"));
    let [a, b] = [store(&server.url()).await, store(&server.url()).await];
    let mut ids = Vec::new();
    for _ in 0..TASKS {
        ids.push(new_task(&a).await);
    }
    for round in 2..12 {
        for id in &ids {
            for _ in 0..3 {
                version(&a, id).await;
            }
        }
        for id in &ids {
            say(&b, id, "…").await;
        }
        // The news arrives.
        sleep(Duration::from_millis(50)).await;
        for id in &ids {
            assert_eq!(version(&a, id).await, round);
        }
    }
}

// Where the server cannot tell.

#[tokio::test(flavor = "multi_thread")]
async fn without_tracking_every_poll_reads() {
    let server = Server::start();
    server.wire().run("ACL SETUSER limited on nopass ~pmcp:* +@all -client|tracking");
    let limited = format!("redis://limited:x@127.0.0.1:{}/", server.port());
    let client = redis::Client::open(format!("{}?protocol=resp3", server.url())).unwrap();
    let given = client.get_multiplexed_async_connection().await.unwrap();
    for store in [
        store(&format!("{}?protocol=2", server.url())).await,
        store(&limited).await,
        near(RedisBackend::with_connection(given)),
    ] {
        let id = new_task(&store).await;
        for step in 2..12 {
            say(&store, &id, "…").await;
            for version_now in [step, step + 100, step] {
                server.wire().run(&format!("HSET {} version {version_now}", task_key(&id)));
                let before = reads(&server);
                assert_eq!(version(&store, &id).await, version_now);
                assert_eq!(reads(&server) - before, 1);
            }
        }
    }
    assert_eq!(tracked(&server), 0);
}

// Servers that are more than one.

#[tokio::test(flavor = "multi_thread")]
async fn near_cache_in_a_cluster_is_the_same() {
    let cluster = Cluster::shared();
    let mut two = Vec::new();
    for _ in 0..2 {
        let backend = RedisBackend::builder(cluster.url()).prefix("near-cache").connect().await.unwrap();
        two.push(near(backend));
    }
    let (a, b) = (&two[0], &two[1]);
    for owner in (0..6).map(|n| format!("owner-{n}")) {
        let id = a.create(&owner, "tools/call", None).await.unwrap().task.task_id;
        let key = format!("near-cache:tasks:{{{owner}}}:{id}");
        let node = cluster.servers.iter().find(|server| server.has_slot_of(&key)).unwrap();
        for round in 1..10 {
            for store in [a, b] {
                let is_kept = async {
                    loop {
                        let before = reads(node);
                        assert_eq!(store.get(&id, &owner).await.unwrap().version, round);
                        if reads(node) == before {
                            break;
                        }
                    }
                };
                timeout(RECOVERY, is_kept).await.unwrap();
            }
            b.set_variables(&id, &owner, HashMap::from([("n".to_owned(), json!(round))])).await.unwrap();
            let before = reads(node);
            assert_eq!(b.get(&id, &owner).await.unwrap().version, round + 1);
            assert_eq!(reads(node), before);
            let sees = async { while a.get(&id, &owner).await.unwrap().version == round {} };
            timeout(AT_ONCE, sees).await.unwrap();
        }
    }
}

/// The slot moves key by key while the task is polled and written.
#[tokio::test(flavor = "multi_thread")]
async fn change_of_a_task_whose_slot_moves_is_seen_and_versions_never_go_back() {
    let cluster = Cluster::start(2, 0);
    let mut two = Vec::new();
    for _ in 0..2 {
        two.push(near(RedisBackend::new(&cluster.url()).await.unwrap()));
    }
    let (a, b) = (&two[0], &two[1]);
    let id = new_task(a).await;
    let (task, index) = (format!("pmcp:tasks:{{o}}:{id}"), "pmcp:idx:{o}");
    let source = cluster.servers.iter().position(|server| server.has_slot_of(index)).unwrap();
    let mut seen = [0, 0];
    for round in 0..4 {
        let [from, to] = [source ^ (round & 1), source ^ 1 ^ (round & 1)].map(|n| &cluster.servers[n]);
        let slot = from.slot_of(index);
        for step in 0..6 {
            match step {
                1 => from.start_moving(&slot, to),
                2 => from.migrate(&[&task], to),
                3 => from.migrate(&[index], to),
                4 => from.stop_moving(&slot, to),
                _ => {}
            }
            // A task whose index is at another node cannot be written.
            let written = if step == 2 {
                seen[1]
            } else {
                let written = b.set_variables(&id, "o", HashMap::new()).await.unwrap().version;
                assert_eq!(version(b, &id).await, written);
                written
            };
            let started = Instant::now();
            while seen[0] < written || seen[1] < written {
                for (store, seen) in [a, b].into_iter().zip(&mut seen) {
                    let now = version(store, &id).await;
                    assert!(now >= *seen, "round {round}, step {step}: {now} after {seen}");
                    *seen = now;
                }
                assert!(started.elapsed() < AT_ONCE, "round {round}, step {step}: {seen:?} of {written}");
            }
        }
    }
}

/// Writes have a connection of their own then.
#[tokio::test(flavor = "multi_thread")]
async fn own_writes_that_wait_for_replicas_are_seen() {
    let server = Server::start();
    let replica = Server::start_with(&ServerOptions::default().replica_of(&server));
    assert!(holds_within(Duration::from_mins(1), || replica.follows_or_leads()));
    let builder = RedisBackend::builder(server.url()).wait_for_replicas(1, Duration::from_secs(5));
    let store = near(builder.connect().await.unwrap());
    let id = new_task(&store).await;
    for written in 2..100 {
        keep(&server, &store, &id).await;
        let before = reads(&server);
        say(&store, &id, "…").await;
        // Over the connection of writes, which may lead to another server than the one that tells.
        assert_eq!(reads(&server) - before, 1);
        assert_eq!(version(&store, &id).await, written);
    }
}

// Anything, in any order.

/// What is known of a task's versions. A version is never given twice.
#[derive(Default)]
struct Versions {
    /// No older version is there since then.
    ended: Mutex<VecDeque<(u64, Instant)>>,
}

impl Versions {
    fn end_before(&self, version: u64) {
        self.ended.lock().unwrap().push_back((version, Instant::now()));
    }

    /// The oldest version that a poll may show if an older one may be shown for `bound`.
    fn oldest(&self, bound: Duration) -> u64 {
        let ended = self.ended.lock().unwrap();
        ended.iter().rev().find(|(_, since)| since.elapsed() > bound).map_or(0, |(version, _)| *version)
    }
}

/// A task's id, and what is known of its versions.
type Tasks = Arc<[(String, Versions)]>;

/// Polls random tasks, and perhaps writes to them.
struct Actor {
    store: TaskStore,
    writes: bool,
    tasks: Tasks,
    /// The last version of each task that the store wrote or showed.
    seen: Arc<[AtomicU64]>,
    dice: Dice,
    is_over: Arc<AtomicBool>,
}

impl Actor {
    /// Returns how many polls there were.
    async fn act(mut self) -> u64 {
        let mut polls = 0_u64;
        while !self.is_over.load(Ordering::SeqCst) {
            let task = usize::try_from(self.dice.roll(self.tasks.len() as u64)).unwrap();
            let ((id, versions), seen) = (&self.tasks[task], &self.seen[task]);
            if self.writes && self.dice.roll(3) == 0 {
                if let Ok(record) = self.store.set_variables(id, "o", HashMap::new()).await {
                    seen.fetch_max(record.version, Ordering::SeqCst);
                }
                sleep(Duration::from_millis(self.dice.roll(3))).await;
                continue;
            }
            let (oldest, last) = (versions.oldest(BOUND), seen.load(Ordering::SeqCst));
            match self.store.get(id, "o").await {
                Ok(TaskRecord { version, .. }) => {
                    assert!(version >= last, "{version} after {last}");
                    assert!(version >= oldest, "{version}, older than {oldest}");
                    seen.fetch_max(version, Ordering::SeqCst);
                }
                Err(TaskError::NotFound { .. }) => {}
                // The connection was cut.
                Err(error) => assert!(error.to_string().contains("no reply"), "{error}"),
            }
            polls += 1;
            if polls.is_multiple_of(8) {
                sleep(Duration::from_micros(self.dice.roll(500))).await;
            }
        }
        polls
    }
}

/// How long an older version may be shown: a reconnect after many losses.
const BOUND: Duration = Duration::from_millis(1_500);

/// Many stores poll and write, others write plainly, tasks end and come back, connections are cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn polls_are_never_older_than_the_bound_nor_than_what_the_store_has_seen_whatever_happens() {
    const STORES: usize = 4;
    const TASKS: usize = 5;
    let (seed, seconds) = (setting("PMCPTASK_NEAR_SEED", 0x5EED_0017), setting("PMCPTASK_NEAR_SECONDS", 10));
    let server = Server::start();
    let (mut dice, mut wire) = (Dice::new(seed), server.wire());
    let (first, is_over) = (store(&server.url()).await, Arc::new(AtomicBool::new(false)));
    let (mut tasks, mut records) = (Vec::new(), Vec::new());
    for _ in 0..TASKS {
        let record = first.create("o", "tools/call", Some(3_600_000)).await.unwrap();
        tasks.push((record.task.task_id.clone(), Versions::default()));
        records.push(json!(record).to_string());
    }
    let tasks = Tasks::from(tasks);
    let (mut proxies, mut actors) = (Vec::new(), Vec::new());
    for _ in 0..STORES {
        let proxy = Proxy::to(server.port());
        let builder = RedisBackend::builder(proxy.url()).connect_timeout(RECOVERY);
        let store = near(builder.connect().await.unwrap());
        let seen: Arc<[AtomicU64]> = (0..TASKS).map(|_| AtomicU64::new(0)).collect();
        for writes in [true, false, false] {
            let (store, tasks, seen, is_over) = (store.clone(), tasks.clone(), seen.clone(), is_over.clone());
            let dice = Dice::new(dice.roll(1 << 40) + 1);
            actors.push(tokio::spawn(Actor { store, writes, tasks, seen, dice, is_over }.act()));
        }
        proxies.push(proxy);
    }
    let (started, mut version) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_secs(seconds) && !actors.iter().any(JoinHandle::is_finished) {
        let task = usize::try_from(dice.roll(TASKS as u64)).unwrap();
        let (id, versions) = &tasks[task];
        let key = task_key(id);
        // The stores' own writes take the versions between.
        version += 100_000;
        let all_ended = || tasks.iter().for_each(|(_, versions)| versions.end_before(version));
        match dice.roll(40) {
            0 => dice.pick(&proxies).cut(),
            1 => {
                assert_eq!(wire.run("FLUSHALL"), OK);
                all_ended();
            }
            2 | 3 => {
                wire.run(&format!("DEL {key}"));
                versions.end_before(version);
            }
            4 => drop(wire.run(&format!("PEXPIRE {key} {}", 1 + dice.roll(30)))),
            5 | 6 => drop(wire.run(&format!("PEXPIRE {key} 100000"))),
            7 => drop(wire.run(&format!("CONFIG SET tracking-table-max-keys {}", 1 + dice.roll(10)))),
            8..20 => {
                wire.call(&["HSET", &key, "version", &version.to_string(), "data", &records[task]]);
                versions.end_before(version);
            }
            _ => sleep(Duration::from_millis(dice.roll(20))).await,
        }
    }
    let expected: Vec<_> = tasks
        .iter()
        .zip(&records)
        .map(|((id, versions), record)| {
            version += 100_000;
            wire.call(&["HSET", &task_key(id), "version", &version.to_string(), "data", record]);
            wire.run(&format!("PERSIST {}", task_key(id)));
            versions.end_before(version);
            version
        })
        .collect();
    // The actors would find an old record.
    sleep(2 * BOUND).await;
    is_over.store(true, Ordering::SeqCst);
    let mut polls = 0;
    for actor in actors {
        polls += actor.await.unwrap();
    }
    let reads = reads(&server);
    assert!(reads < polls, "{reads} reads for {polls} polls");
    for ((id, _), expected) in tasks.iter().zip(expected) {
        assert!(self::version(&first, id).await >= expected);
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |number| number.parse().unwrap())
}
