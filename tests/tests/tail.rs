//! Following an owner's tasks: each comes once, in order, none is missed whatever happens, and nothing is asked while nothing
//! comes.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend as _;
use pmcptask_client::{Error, ListedEntry, ListedTask, Order, RedisBackend, WriteTerms};
use pmcptask_tests::{
    Clock, Cluster, Dice, Fault, OK, Proxy, SentinelGroup, Server, ServerOptions, holds_within, reason,
};
use tokio::time::{sleep, timeout};

/// A wake-up takes less, and a poll takes more: the client polls every second.
const AT_ONCE: Duration = Duration::from_millis(600);
/// How long a stream may take that polls, or whose wake-ups have come too often.
const A_SECOND: Duration = Duration::from_millis(1_600);
/// A reply that is held up by this comes after all that a test does meanwhile.
const LATE: Duration = Duration::from_secs(3);
/// How long something may take that happens. Only a broken client needs all of it.
const RECOVERY: Duration = Duration::from_secs(10);

type Tail = BoxStream<'static, Result<ListedTask, StorageError>>;

fn key(number: usize) -> String {
    format!("o:{number}")
}

/// Writes tasks with these numbers as the owner's newest ones, one after the other.
async fn save(backend: &RedisBackend, numbers: Range<usize>) {
    let newest = &WriteTerms::new().newest();
    for number in numbers {
        backend.put_with(&key(number), number.to_string().as_bytes(), newest).await.unwrap();
    }
}

async fn delete(backend: &RedisBackend, numbers: Range<usize>) {
    for number in numbers {
        assert!(backend.delete(&key(number)).await.unwrap());
    }
}

/// A stream from the newest task on.
async fn from_now_on(backend: &RedisBackend) -> Tail {
    let newest = backend.list_entries("o", None, 1, Order::NewestFirst).await.unwrap();
    backend.tail("o", newest.first().map(ListedEntry::position).as_ref()).await.unwrap()
}

fn number(task: &ListedTask) -> usize {
    assert_eq!(task.task_id.as_bytes(), task.record.data);
    task.task_id.parse().unwrap()
}

async fn next(tail: &mut Tail) -> Result<usize, StorageError> {
    let task = timeout(RECOVERY, tail.next()).await.expect("a task comes");
    task.expect("the stream does not end").map(|task| number(&task))
}

/// The next tasks. How many errors there are does not matter.
async fn take(tail: &mut Tail, count: usize) -> Vec<usize> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.extend(next(tail).await);
    }
    taken
}

async fn assert_comes(tail: &mut Tail, numbers: Range<usize>) {
    assert_eq!(take(tail, numbers.len()).await, numbers.collect::<Vec<_>>());
}

async fn assert_nothing_comes(tail: &mut Tail) {
    let next = timeout(AT_ONCE, tail.next()).await;
    assert!(next.is_err(), "{next:?}");
}

fn lists(server: &Server) -> u64 {
    server.calls_of("pmcptask.list")
}

// What comes.

#[tokio::test(flavor = "multi_thread")]
async fn tasks_behind_a_position_come_once_each_in_order_and_then_the_new_ones() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for url in [server.url(), cluster.url()] {
        let backend = RedisBackend::builder(url).prefix("tail").connect().await.unwrap();
        let mut of_all = backend.tail("o", None).await.unwrap();
        assert_nothing_comes(&mut of_all).await;
        // More than two pages.
        save(&backend, 0..250).await;
        assert_comes(&mut of_all, 0..250).await;
        let entries = backend.list_entries("o", None, 250, Order::OldestFirst).await.unwrap();
        for behind in [0, 120, 149, 150, 249] {
            let mut tail = backend.tail("o", Some(&entries[behind].position())).await.unwrap();
            assert_comes(&mut tail, behind + 1..250).await;
        }
        // The task of a position may be gone.
        let mut tail = backend.tail("o", Some(&entries[248].position())).await.unwrap();
        delete(&backend, 245..249).await;
        assert_comes(&mut tail, 249..250).await;
        // Writes over tasks are no news, and the tasks of others are not either.
        backend.put_with(&key(3), b"3", &WriteTerms::new().newest()).await.unwrap();
        backend.put("o:x:250", b"250").await.unwrap();
        assert_nothing_comes(&mut tail).await;
        save(&backend, 251..260).await;
        for tail in [&mut tail, &mut of_all] {
            assert_comes(tail, 251..260).await;
        }
        // One that has gone and comes again is another one.
        delete(&backend, 3..4).await;
        save(&backend, 3..4).await;
        assert_comes(&mut tail, 3..4).await;
    }
}

/// The client gets both at once: the list, and the news that a task has come since.
#[tokio::test(flavor = "current_thread")]
async fn task_that_comes_between_a_list_and_its_reply_is_not_missed() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let mut tail = backend.tail("o", None).await.unwrap();
    save(&backend, 0..1).await;
    let before = lists(&server);
    let seeing = tokio::spawn(async move { take(&mut tail, 2).await });
    // The client runs on this thread only: while this test blocks the thread, the client takes nothing in.
    while lists(&server) == before {
        tokio::task::yield_now().await;
        std::thread::sleep(Duration::from_millis(20));
    }
    let put = ["PMCPTASK.PUT", "pmcp:tasks:o:1", "pmcp:idx:o", "1", "CREATED", "NEWEST"];
    assert_eq!(server.wire().call(&put), ":1\r\n");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(seeing.await.unwrap(), [0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_whose_tasks_have_gone_is_followed_from_its_first_new_task_whatever_the_clock_says() {
    const HOUR: i64 = 3_600;
    let clock = Clock::new();
    let server = Server::start_with(&clock.of(ServerOptions::default()));
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    save(&backend, 0..150).await;
    let mut tail = from_now_on(&backend).await;
    // Nobody polls while all go, and some come before the place of the last one and others behind it.
    assert_eq!(backend.trim("o", 0).await.unwrap(), 150);
    clock.set_ahead(-HOUR);
    save(&backend, 200..210).await;
    clock.set_ahead(0);
    save(&backend, 210..220).await;
    assert_comes(&mut tail, 200..220).await;
    // The stream sees that there are none.
    assert_eq!(backend.trim("o", 0).await.unwrap(), 20);
    assert_nothing_comes(&mut tail).await;
    clock.set_ahead(-2 * HOUR);
    save(&backend, 300..450).await;
    assert_comes(&mut tail, 300..450).await;
    // The newest ones go, and older ones stay.
    clock.set_ahead(-3 * HOUR);
    for first in [500, 600] {
        let newest = backend.list_entries("o", None, 20, Order::NewestFirst).await.unwrap();
        for entry in newest {
            assert!(backend.delete(&format!("o:{}", entry.task_id)).await.unwrap());
        }
        save(&backend, first..first + 15).await;
        assert_comes(&mut tail, first..first + 15).await;
    }
    assert_nothing_comes(&mut tail).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_goes_on_with_the_oldest_task_if_none_of_the_last_hundred_is_left() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    save(&backend, 0..150).await;
    let mut tail = from_now_on(&backend).await;
    delete(&backend, 50..150).await;
    save(&backend, 200..203).await;
    assert_comes(&mut tail, 0..50).await;
    assert_comes(&mut tail, 200..203).await;
    // One of them is enough.
    let mut tail = backend.tail("o", None).await.unwrap();
    assert_eq!(take(&mut tail, 53).await.last(), Some(&202));
    save(&backend, 300..399).await;
    assert_comes(&mut tail, 300..399).await;
    delete(&backend, 300..399).await;
    save(&backend, 400..403).await;
    assert_comes(&mut tail, 400..403).await;
}

/// Others can store creation times between two ms.
#[tokio::test(flavor = "multi_thread")]
async fn stream_goes_on_behind_tasks_whose_order_within_a_millisecond_is_another_one() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let put = |id: &str, created: &str| {
        let (key, mut wire) = (format!("pmcp:tasks:o:{id}"), server.wire());
        assert_eq!(wire.call(&["PMCPTASK.PUT", &key, "pmcp:idx:o", id, "CREATED", "5"]), ":1\r\n");
        assert_eq!(wire.call(&["ZADD", "pmcp:idx:o", created, id]), ":0\r\n");
    };
    put("1", "5.25");
    let mut tail = backend.tail("o", None).await.unwrap();
    assert_comes(&mut tail, 1..2).await;
    put("0", "5.5");
    save(&backend, 2..3).await;
    while next(&mut tail).await.unwrap() != 2 {}
    // It does not ask again and again.
    assert_nothing_comes(&mut tail).await;
    let before = lists(&server);
    assert_nothing_comes(&mut tail).await;
    assert_eq!(lists(&server), before);
}

// Connections that are lost.

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_missed_and_none_comes_twice_while_the_connection_or_the_server_is_away() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::builder(proxy.url()).connect_timeout(Duration::from_secs(1));
    let (reader, writer) =
        (backend.connect().await.unwrap(), RedisBackend::new(&server.url()).await.unwrap());
    let mut tail = from_now_on(&reader).await;
    let mut first = 0;
    for fault in [1, 2, 3].map(Fault::LoseReply).into_iter().chain([Fault::LoseRequest]) {
        proxy.set(fault);
        save(&writer, first..first + 3).await;
        assert_comes(&mut tail, first..first + 3).await;
        first += 3;
    }
    proxy.set(Fault::None);
    for round in 0..10 {
        assert!(tail.next().now_or_never().is_none());
        proxy.cut();
        // From before the client notices to after it has reconnected.
        sleep(Duration::from_millis(round * 5)).await;
        save(&writer, first..first + 3).await;
        assert_comes(&mut tail, first..first + 3).await;
        first += 3;
    }
    for _ in 0..2 {
        proxy.set(Fault::Close);
        proxy.cut();
        save(&writer, first..first + 3).await;
        // Longer than a call waits for the server: one error, however long it is.
        let error = next(&mut tail).await.unwrap_err();
        assert!(matches!(reason(&error), Error::NotConnected { .. }), "{error}");
        assert!(timeout(2 * A_SECOND, tail.next()).await.is_err());
        proxy.set(Fault::None);
        for number in first..first + 3 {
            assert_eq!(next(&mut tail).await.unwrap(), number);
        }
        first += 3;
    }
    assert_eq!(server.wire().call(&["CLIENT", "KILL", "TYPE", "normal"]).get(..1), Some(":"));
    save(&RedisBackend::new(&server.url()).await.unwrap(), first..first + 3).await;
    assert_comes(&mut tail, first..first + 3).await;
    assert_nothing_comes(&mut tail).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_missed_and_none_comes_twice_when_the_server_restarts() {
    let mut server = Server::start_with(&ServerOptions::default().with_aof());
    let backend = RedisBackend::builder(server.url()).connect_timeout(RECOVERY).connect().await.unwrap();
    save(&backend, 0..3).await;
    let mut tail = from_now_on(&backend).await;
    for first in [10, 20] {
        save(&backend, first..first + 5).await;
        assert_comes(&mut tail, first..first + 3).await;
        server.kill();
        server.restart();
        save(&backend, first + 5..first + 10).await;
        assert_comes(&mut tail, first + 3..first + 10).await;
    }
    assert_nothing_comes(&mut tail).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_missed_and_none_comes_twice_across_failovers() {
    let watched = SentinelGroup::start(1);
    let cluster = Cluster::start(1, 1);
    let fail_over_of_sentinels = || {
        watched.fail_over();
        assert!(holds_within(RECOVERY, || watched.servers[1].is_primary()));
    };
    let fail_over_of_cluster = || {
        assert_eq!(cluster.servers[1].wire().call(&["CLUSTER", "FAILOVER"]), OK);
        assert!(holds_within(RECOVERY, || cluster.servers[1].is_primary()));
    };
    let groups: [(String, &dyn Fn()); 2] =
        [(watched.url(), &fail_over_of_sentinels), (cluster.url(), &fail_over_of_cluster)];
    for (url, fail_over) in groups {
        let builder = || RedisBackend::builder(url.clone()).connect_timeout(2 * RECOVERY);
        let reader = builder().wait_for_replicas(1, Duration::from_secs(2)).connect().await.unwrap();
        let mut tail = from_now_on(&reader).await;
        save(&reader, 0..5).await;
        assert_comes(&mut tail, 0..3).await;
        fail_over();
        save(&builder().connect().await.unwrap(), 5..10).await;
        // A client asks for a new slot map every ten seconds.
        let rest = timeout(2 * RECOVERY, take(&mut tail, 7)).await.expect("the rest comes");
        assert_eq!(rest, (3..10).collect::<Vec<_>>());
        assert_nothing_comes(&mut tail).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_missed_and_none_comes_twice_while_the_owners_slot_moves() {
    let cluster = Cluster::start_lopsided(2);
    let [from, to] = [0, 1].map(|number| &cluster.servers[number]);
    let backend = RedisBackend::builder(cluster.url()).connect_timeout(RECOVERY).connect().await.unwrap();
    save(&backend, 0..3).await;
    let mut tail = backend.tail("o", None).await.unwrap();
    assert_comes(&mut tail, 0..3).await;
    let slot = from.slot_of("pmcp:idx:{o}");
    from.start_moving(&slot, to);
    // The stream reads while some of the tasks are away, and while all are.
    from.migrate(&["pmcp:tasks:{o}:0", "pmcp:tasks:{o}:2"], to);
    assert_eq!(from.wire().call(&["PMCPTASK.DEL", "pmcp:tasks:{o}:1", "pmcp:idx:{o}"]), ":1\r\n");
    assert_nothing_comes(&mut tail).await;
    from.migrate(&["pmcp:idx:{o}"], to);
    assert_nothing_comes(&mut tail).await;
    // New tasks wait for the end of the move.
    let saving = tokio::spawn({
        let backend = backend.clone();
        async move { save(&backend, 3..6).await }
    });
    assert_nothing_comes(&mut tail).await;
    from.stop_moving(&slot, to);
    saving.await.unwrap();
    assert_comes(&mut tail, 3..6).await;
    save(&backend, 6..9).await;
    assert_comes(&mut tail, 6..9).await;
    assert_nothing_comes(&mut tail).await;
}

/// A lost permission, for example.
#[tokio::test(flavor = "multi_thread")]
async fn stream_whose_list_is_refused_asks_again_after_a_pause_only() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let mut tail = from_now_on(&backend).await;
    let consuming = tokio::spawn(async move {
        let error = next(&mut tail).await.unwrap_err();
        (error, next(&mut tail).await.unwrap())
    });
    assert!(holds_within(RECOVERY, || lists(&server) >= 2));
    assert_eq!(server.wire().run("ACL SETUSER default -pmcptask.list"), OK);
    save(&backend, 0..1).await;
    sleep(Duration::from_secs(2)).await;
    let refused = server.wire().info("commandstats", "cmdstat_pmcptask.list");
    let refused: u64 =
        refused.split_once("rejected_calls=").unwrap().1.split(',').next().unwrap().parse().unwrap();
    assert!((1..=12).contains(&refused), "{refused}");
    assert_eq!(server.wire().run("ACL SETUSER default +pmcptask.list"), OK);
    let (error, seen) = consuming.await.unwrap();
    assert!(matches!(reason(&error), Error::NoPermission { .. }), "{error}");
    assert_eq!(seen, 0);
}

/// A look is two lists: what has come, and whether the last task is still there.
#[tokio::test(flavor = "multi_thread")]
async fn task_is_not_missed_if_the_second_list_of_a_look_fails() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let (reader, writer) =
        (RedisBackend::new(&proxy.url()).await.unwrap(), RedisBackend::new(&server.url()).await.unwrap());
    save(&writer, 0..1).await;
    let mut tail = from_now_on(&reader).await;
    assert_nothing_comes(&mut tail).await;
    let consuming = tokio::spawn(async move {
        let error = next(&mut tail).await.unwrap_err();
        (error, next(&mut tail).await.unwrap())
    });
    let before = lists(&server);
    proxy.set(Fault::Delay(LATE));
    save(&writer, 1..2).await;
    // The first list was made, and its reply is on its way.
    assert!(holds_within(RECOVERY, || lists(&server) > before));
    proxy.set(Fault::AnswerOne { command: "PMCPTASK.LIST", reply: b"-ERR refused\r\n".to_vec() });
    let (error, seen) = consuming.await.unwrap();
    assert!(matches!(reason(&error), Error::Refused { .. }), "{error}");
    assert_eq!(seen, 1);
}

// What it costs.

#[tokio::test(flavor = "multi_thread")]
async fn stream_costs_nothing_while_nothing_comes_and_nothing_once_dropped() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let (reader, writer) =
        (RedisBackend::new(&proxy.url()).await.unwrap(), RedisBackend::new(&server.url()).await.unwrap());
    save(&writer, 0..10).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(from_now_on(&reader).await);
    }
    join_all(streams.iter_mut().map(assert_nothing_comes)).await;
    // The newest task, those before it, and two for the first look.
    let before = 5 * 4;
    assert!(holds_within(RECOVERY, || lists(&server) == before));
    let commands = || server.wire().info_number("stats", "total_commands_processed");
    let processed = commands();
    let waiting = streams.iter_mut().map(|stream| timeout(3 * AT_ONCE, stream.next()));
    assert!(join_all(waiting).await.iter().all(Result::is_err));
    // The first is the count itself.
    assert!(commands() - processed <= 3);
    assert_eq!(lists(&server), before);
    save(&writer, 10..11).await;
    for stream in &mut streams {
        assert_comes(stream, 10..11).await;
    }
    join_all(streams.iter_mut().map(assert_nothing_comes)).await;
    assert!(holds_within(RECOVERY, || lists(&server) == before + 5 * 2));
    // One is dropped in the middle of a read.
    proxy.set(Fault::Delay(LATE));
    save(&writer, 11..12).await;
    while lists(&server) < before + 5 * 3 {
        for stream in &mut streams {
            assert!(stream.next().now_or_never().is_none());
        }
        // Tokio makes a task pause that polls so much.
        sleep(Duration::from_millis(5)).await;
    }
    drop(streams);
    proxy.set(Fault::None);
    // The reads that were on their way have ended once a later call has.
    reader.list_entries("o", None, 1, Order::NewestFirst).await.unwrap();
    assert!(holds_within(RECOVERY, || lists(&server) > before + 5 * 4));
    sleep(AT_ONCE).await;
    let before = lists(&server);
    save(&writer, 12..13).await;
    assert_eq!(server.wire().run("FLUSHALL"), OK);
    proxy.cut();
    sleep(AT_ONCE).await;
    assert_eq!(lists(&server), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_whose_tasks_often_go_pauses_and_yields_a_new_one_within_a_second() {
    const GONE: usize = 300;
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    save(&backend, 0..GONE + 1).await;
    let mut tail = from_now_on(&backend).await;
    assert_nothing_comes(&mut tail).await;
    let consuming = tokio::spawn(async move { take(&mut tail, 1).await });
    let (before, started) = (lists(&server), std::time::Instant::now());
    for number in 0..GONE {
        delete(&backend, number..number + 1).await;
        sleep(Duration::from_millis(5)).await;
    }
    let made = lists(&server) - before;
    // Six wake-ups in a row, of two reads each, before the pauses have their full length of 0.75 s at least.
    assert!(made <= 12 + 3 * started.elapsed().as_secs() + 3, "{made} reads in {:?}", started.elapsed());
    save(&backend, 1_000..1_001).await;
    assert_eq!(timeout(A_SECOND, consuming).await.unwrap().unwrap(), [1_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_whose_tasks_often_come_yields_each_at_once() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let mut tail = from_now_on(&backend).await;
    for number in 0..50 {
        save(&backend, number..number + 1).await;
        let comes = timeout(AT_ONCE, tail.next()).await.expect("no pause").unwrap().unwrap();
        assert_eq!(comes.task_id, number.to_string());
    }
}

/// Servers tell nothing over RESP2: the client polls.
#[tokio::test(flavor = "multi_thread")]
async fn stream_polls_once_a_second_if_the_server_cannot_tell() {
    let server = Server::start();
    let backend = RedisBackend::new(&format!("{}?protocol=2", server.url())).await.unwrap();
    let mut tail = from_now_on(&backend).await;
    save(&backend, 0..3).await;
    assert_comes(&mut tail, 0..3).await;
    let before = lists(&server);
    assert!(timeout(Duration::from_millis(2_500), tail.next()).await.is_err());
    // Each look is two reads.
    let polls = (lists(&server) - before) / 2;
    assert!((1..=3).contains(&polls), "{polls} polls in 2.5 s");
    save(&backend, 3..5).await;
    assert_eq!(timeout(A_SECOND, take(&mut tail, 2)).await.unwrap(), [3, 4]);
    assert_eq!(server.calls_of("client|tracking"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_streams_of_one_owner_all_yield_all() {
    const STREAMS: usize = 1_000;
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(from_now_on(&backend).await);
    }
    let following: Vec<_> = streams
        .into_iter()
        .map(|mut tail| tokio::spawn(async move { assert_comes(&mut tail, 0..30).await }))
        .collect();
    for number in 0..30 {
        save(&backend, number..number + 1).await;
    }
    for following in following {
        following.await.unwrap();
    }
}

/// The reads of a stream must not wait for its consumer: others wait for their turn to read.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_polls_keep_no_other_waiter_from_reading() {
    const OWNERS: usize = 1_100;
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    let mut streams = Vec::new();
    for owner in 0..OWNERS {
        streams.push(backend.tail(&format!("o{owner}"), None).await.unwrap());
    }
    let mut poll_all = async |times| {
        for _ in 0..times {
            for stream in &mut streams {
                assert!(stream.next().now_or_never().is_none());
                // Tokio makes a task pause that polls so much.
                tokio::task::yield_now().await;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    while lists(&server) < OWNERS as u64 {
        poll_all(1).await;
    }
    // All streams are due, and are polled until they have asked the server, but not until it has replied.
    proxy.set(Fault::Delay(LATE));
    assert_eq!(server.wire().run("FLUSHALL"), OK);
    while lists(&server) < OWNERS as u64 + 1_000 {
        poll_all(1).await;
    }
    proxy.set(Fault::None);
    save(&backend, 0..1).await;
    let changed = timeout(RECOVERY, backend.changed(&key(0), 0)).await.expect("a turn to read");
    assert_eq!(changed.unwrap().unwrap().version, 1);
}

// Anything, in any order.

#[tokio::test(flavor = "multi_thread")]
async fn every_task_that_stays_comes_once_and_in_order_whatever_happens() {
    /// A reconnect after many losses, and a pause after many wake-ups.
    const BOUND: Duration = Duration::from_secs(3);
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let reader = RedisBackend::builder(proxy.url()).connect_timeout(RECOVERY).connect().await.unwrap();
    let writer = RedisBackend::new(&server.url()).await.unwrap();
    let mut tail = from_now_on(&reader).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let following = tokio::spawn({
        let seen = seen.clone();
        async move {
            while let Some(task) = tail.next().await {
                seen.lock().unwrap().extend(task.map(|task| number(&task)));
            }
        }
    });
    let mut dice = Dice::new(0x5EED_0018);
    let roll = |dice: &mut Dice, sides: u64| usize::try_from(dice.roll(sides)).unwrap();
    let (mut saved, mut gone) = (0, BTreeSet::new());
    for round in 0..40 {
        for _ in 0..=dice.roll(12) {
            match dice.roll(12) {
                0 => proxy.cut(),
                1 => proxy.set(Fault::LoseReply(1 + roll(&mut dice, 3))),
                2 => proxy.set(Fault::LoseRequest),
                3 => sleep(Duration::from_millis(dice.roll(40))).await,
                // Begun again, or pruned, or rolled back.
                4 => {
                    let keep = roll(&mut dice, 3) * 10;
                    gone.extend(0..saved);
                    writer.trim("o", keep).await.unwrap();
                }
                5 => {
                    let newest = writer.list_entries("o", None, 20, Order::NewestFirst).await.unwrap();
                    for entry in newest.iter().take(roll(&mut dice, 20)) {
                        gone.insert(entry.task_id.parse().unwrap());
                        writer.delete(&format!("o:{}", entry.task_id)).await.unwrap();
                    }
                }
                _ => {
                    let more = 1 + roll(&mut dice, 60);
                    save(&writer, saved..saved + more).await;
                    saved += more;
                }
            }
        }
        save(&writer, saved..saved + 1).await;
        saved += 1;
        let is_seen = || seen.lock().unwrap().last() == Some(&(saved - 1));
        assert!(holds_within(BOUND, is_seen), "round {round}: {saved}, {:?}", seen.lock().unwrap());
        let seen = seen.lock().unwrap();
        assert!(seen.is_sorted_by(|one, next| one < next), "round {round}: {seen:?}");
        let missed: Vec<_> = (0..saved).filter(|n| !gone.contains(n) && !seen.contains(n)).collect();
        assert!(missed.is_empty(), "round {round}: {missed:?}");
    }
    following.abort();
}
