//! Waiting for a change of a task: no change is missed whatever happens to the connection, nobody returns for
//! nothing, and waiting costs no requests.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::{StorageBackend, VersionedRecord};
use pmcptask_client::{Error, RedisBackend};
use pmcptask_tests::{
    Cluster, Dice, Fault, OK, Proxy, SentinelGroup, Server, ServerOptions, TASK, Wire, holds_within, now_ms,
    reason, skipped,
};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// A wake-up takes less, and a poll takes more: the client polls every second.
const AT_ONCE: Duration = Duration::from_millis(600);
/// How long a waiter may take that polls, or whose wake-ups have come too often.
const A_SECOND: Duration = Duration::from_millis(1_600);
/// How long a client may take to reconnect. Only a broken client needs all of it.
const RECOVERY: Duration = Duration::from_secs(10);

/// The task whose key on one server is [`TASK`].
const KEY: &str = "o:t";
/// The same in a cluster.
const TASK_IN_CLUSTER: &str = "pmcp:tasks:{o}:t";

type Changed = Result<Option<VersionedRecord>, StorageError>;

fn version(changed: Changed) -> Option<u64> {
    changed.unwrap().map(|task| task.version)
}

/// Starts to wait. Returns once the server has replied to the waiter's two reads, of which the second is tracked.
fn wait_for(server: &Server, backend: &RedisBackend, key: &str, version: u64) -> JoinHandle<Changed> {
    let before = reads(server);
    let waiting = start(backend, key, version);
    assert!(holds_within(RECOVERY, || reads(server) > before + 1), "the waiter does not read");
    waiting
}

fn start(backend: &RedisBackend, key: &str, version: u64) -> JoinHandle<Changed> {
    let (backend, key) = (backend.clone(), key.to_owned());
    tokio::spawn(async move { backend.changed(&key, version).await })
}

fn reads(server: &Server) -> u64 {
    server.calls_of("pmcptask.get")
}

async fn within(limit: Duration, waiting: JoinHandle<Changed>) -> Changed {
    timeout(limit, waiting).await.expect("the waiter wakes in time").unwrap()
}

// What wakes.

#[tokio::test(flavor = "multi_thread")]
async fn waiter_returns_at_once_where_the_version_differs_or_the_task_is_gone() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for url in [server.url(), cluster.url()] {
        let backend = RedisBackend::builder(url).prefix("at-once").connect().await.unwrap();
        for version in [0, 1, u64::MAX] {
            assert!(timeout(AT_ONCE, backend.changed(KEY, version)).await.unwrap().unwrap().is_none());
        }
        backend.put(KEY, b"one").await.unwrap();
        backend.put(KEY, b"two").await.unwrap();
        for version in [0, 1, 3, u64::MAX] {
            let task = timeout(AT_ONCE, backend.changed(KEY, version)).await.unwrap();
            let task = task.unwrap().unwrap();
            assert_eq!((task.version, task.data.as_slice()), (2, &b"two"[..]));
        }
        let error = backend.changed("no-owner", 1).await.unwrap_err();
        assert!(matches!(reason(&error), Error::Key(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_changes_a_task_wakes_its_waiter() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let gone = |changed| version(changed).is_none();
    let mut wire = server.wire();
    let mut other = |line: &str| {
        for line in line.split("; ") {
            let reply = wire.run(line);
            assert!(!reply.starts_with('-'), "{line}: {reply}");
        }
    };
    other("HSET other version 7 data seven");
    let dump = server.dump_of("other");
    // By this backend, with the calls of the trait and beyond.
    for number in 0..6 {
        backend.put(KEY, b"one").await.unwrap();
        let from = backend.get(KEY).await.unwrap().version;
        let waiting = wait_for(&server, &backend, KEY, from);
        match number {
            0 => drop(backend.put(KEY, b"two").await.unwrap()),
            1 => drop(backend.put_if_version(KEY, b"two", from).await.unwrap()),
            2 => assert!(backend.delete(KEY).await.unwrap()),
            3 => backend.delete_if_version(KEY, from).await.unwrap(),
            4 => assert_eq!(backend.trim("o", 0).await.unwrap(), 1),
            _ => assert!(backend.expire(KEY, Some(SystemTime::UNIX_EPOCH)).await.unwrap()),
        }
        let changed = version(within(AT_ONCE, waiting).await);
        assert_eq!(changed, (number < 2).then_some(from + 1), "{number}");
    }
    // By others.
    let seven = |changed| version(changed) == Some(7);
    for (line, is_right) in [
        ("HSET T version 7", &seven as &dyn Fn(Changed) -> bool),
        ("DEL T", &gone),
        ("UNLINK T", &gone),
        ("RENAME T elsewhere", &gone),
        ("MOVE T 3", &gone),
        ("PEXPIREAT T 1", &gone),
        ("COPY other T REPLACE", &seven),
        ("COPY other more; RENAME more T", &seven),
        ("MULTI; HSET T version 7; EXEC", &seven),
        ("EVAL redis.call('HSET',KEYS[1],'version',7) 1 T", &seven),
        ("FLUSHALL", &gone),
        ("FLUSHDB", &gone),
        (
            "CONFIG SET maxmemory-policy allkeys-random; CONFIG SET maxmemory 1; GET x; CONFIG SET maxmemory 0",
            &gone,
        ),
    ] {
        backend.delete(KEY).await.unwrap();
        backend.put(KEY, b"one").await.unwrap();
        other("DEL more; HSET other version 7 data seven");
        let waiting = wait_for(&server, &backend, KEY, 1);
        other(line);
        assert!(is_right(within(AT_ONCE, waiting).await), "{line}");
    }
    backend.put(KEY, b"one").await.unwrap();
    let waiting = wait_for(&server, &backend, KEY, 1);
    redis::cmd("RESTORE").arg(TASK).arg(0).arg(dump).arg("REPLACE").exec(&mut server.connection()).unwrap();
    assert!(seven(within(AT_ONCE, waiting).await));
    // What is no task any more is an error, as for any read.
    let waiting = wait_for(&server, &backend, KEY, 7);
    other("SET T text");
    let error = within(AT_ONCE, waiting).await.unwrap_err();
    assert!(error.to_string().contains("WRONGTYPE"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_wakes_although_the_server_does_not_reclaim_and_not_before_its_millisecond() {
    const TASKS: i64 = 20;
    let server = Server::start_with(&ServerOptions::default().set("enable-debug-command", "local"));
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    assert_eq!(server.wire().run("DEBUG SET-ACTIVE-EXPIRE 0"), OK);
    let started = now_ms();
    let waiting = (0..TASKS).map(|number| {
        let backend = backend.clone();
        tokio::spawn(async move {
            let (key, ends) = (format!("owner:t{number}"), started + 500 + 53 * number);
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(ends.unsigned_abs());
            backend.put(&key, b"data").await.unwrap();
            // While they wait, every other one gets its expiry; before, the others.
            if number % 2 != 0 {
                assert!(backend.expire(&key, Some(at)).await.unwrap());
            }
            let wait = timeout(RECOVERY, backend.changed(&key, 1));
            let expire = async {
                if number % 2 == 0 {
                    sleep(Duration::from_millis(100)).await;
                    assert!(backend.expire(&key, Some(at)).await.unwrap());
                }
            };
            let (changed, ()) = tokio::join!(wait, expire);
            assert_eq!(version(changed.unwrap()), None);
            now_ms() - ends
        })
    });
    let mut late = Vec::new();
    for waiting in waiting.collect::<Vec<_>>() {
        late.push(waiting.await.unwrap());
    }
    late.sort_unstable();
    assert!(late[0] > 0, "before the expiry: {late:?}");
    // Without active expiry, nothing else wakes them. A client that polled each second would be late by up to a second.
    assert!(late[late.len() / 4] < 150, "{late:?} ms late");
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_the_expiry_alone_returns_nothing() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let waiting = wait_for(&server, &backend, KEY, 1);
    let before = reads(&server);
    for (changes, seconds) in (1..).zip([3, 100, 1_000]) {
        let at = SystemTime::now() + Duration::from_secs(seconds);
        assert!(backend.expire(KEY, Some(at)).await.unwrap());
        // The waiter has looked, with two reads.
        assert!(holds_within(RECOVERY, || reads(&server) >= before + 2 * changes));
    }
    assert!(backend.expire(KEY, None).await.unwrap());
    // Past the first expiry.
    sleep(Duration::from_millis(3_100)).await;
    assert!(!waiting.is_finished());
    backend.put(KEY, b"two").await.unwrap();
    assert_eq!(version(within(A_SECOND, waiting).await), Some(2));
}

/// Servers tell of keys without their database.
#[tokio::test(flavor = "multi_thread")]
async fn waiter_in_another_database_is_woken_there_and_returns_for_no_other() {
    let server = Server::start();
    let backend = RedisBackend::new(&format!("{}3", server.url())).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let waiting = wait_for(&server, &backend, KEY, 1);
    let (mut wire, before) = (server.wire(), reads(&server));
    wire.run("HSET T version 9 data x");
    wire.run("FLUSHDB");
    assert!(holds_within(RECOVERY, || reads(&server) > before) && !waiting.is_finished());
    assert_eq!(wire.run("SELECT 3"), OK);
    wire.run("HSET T version 2");
    assert_eq!(version(within(AT_ONCE, waiting).await), Some(2));
}

/// The client gets both at once: the reply to the read, and the news that the task has changed since.
#[tokio::test(flavor = "current_thread")]
async fn change_between_a_read_and_its_reply_is_not_missed() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let before = reads(&server);
    let waiting = start(&backend, KEY, 1);
    // The client runs on this thread only: while this test blocks the thread, the client takes nothing in. The second read
    // is the tracked one.
    while reads(&server) < before + 2 {
        tokio::task::yield_now().await;
        std::thread::sleep(Duration::from_millis(20));
    }
    server.wire().run("HSET T version 2");
    std::thread::sleep(Duration::from_millis(20));
    assert!(!waiting.is_finished());
    assert_eq!(version(within(AT_ONCE, waiting).await), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn change_just_before_a_read_is_seen_by_it() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    // The first read, and what begins the tracked one.
    for command in ["PMCPTASK.GET", "CLIENT"] {
        server.wire().run("HSET T version 1");
        let other = ["HSET", TASK, "version", "2"].map(str::to_owned).to_vec();
        proxy.set(Fault::Before { command, other });
        assert_eq!(version(timeout(AT_ONCE, backend.changed(KEY, 1)).await.unwrap()), Some(2), "{command}");
    }
}

// Connections that are lost.

#[tokio::test(flavor = "multi_thread")]
async fn change_while_the_connection_is_away_is_not_missed() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    let mut wire = server.wire();
    for round in 0..10 {
        backend.put(KEY, b"one").await.unwrap();
        let from = backend.get(KEY).await.unwrap().version;
        let waiting = wait_for(&server, &backend, KEY, from);
        proxy.cut();
        // From before the client notices to after it has reconnected.
        sleep(Duration::from_millis(round * 5)).await;
        wire.run("HSET T version 100");
        assert_eq!(version(within(RECOVERY, waiting).await), Some(100), "round {round}");
        wire.run("DEL T");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_is_lost_before_the_reply_to_the_read_loses_no_change() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    for fault in [Fault::LoseReply(1), Fault::LoseReply(2), Fault::LoseRequest] {
        proxy.set(fault);
        let waiting = wait_for(&server, &backend, KEY, 1);
        server.wire().run("HSET T version 2");
        assert_eq!(version(within(RECOVERY, waiting).await), Some(2));
        server.wire().run("HSET T version 1");
    }
}

/// The server's side of the connection is gone, and nobody tells the client.
#[tokio::test(flavor = "multi_thread")]
async fn half_open_connection_delays_a_wake_up_by_keep_alive_and_response_timeout_at_most() {
    const KEEP_ALIVE: Duration = Duration::from_millis(700);
    const RESPONSE: Duration = Duration::from_millis(500);
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let builder = RedisBackend::builder(proxy.url()).keep_alive(KEEP_ALIVE).response_timeout(RESPONSE);
    let backend = builder.connect().await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let waiting = wait_for(&server, &backend, KEY, 1);
    let connections = proxy.accepted();
    proxy.set(Fault::Silence);
    server.wire().run("HSET T version 2");
    let silent = Instant::now();
    // The client gives the connection up, and the next one is a good one.
    assert!(holds_within(RECOVERY, || proxy.accepted() > connections));
    let noticed = silent.elapsed();
    proxy.set(Fault::None);
    // It may have been silent when it was made.
    proxy.cut();
    assert_eq!(version(within(RECOVERY, waiting).await), Some(2));
    assert!(noticed < KEEP_ALIVE + RESPONSE + AT_ONCE, "{noticed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn change_during_a_restart_of_the_server_is_not_missed() {
    let mut server = Server::start_with(&ServerOptions::default().with_aof());
    let backend = RedisBackend::builder(server.url()).connect_timeout(RECOVERY).connect().await.unwrap();
    for key in ["owner:changes", "owner:stays"] {
        backend.put(key, b"one").await.unwrap();
    }
    let changes = wait_for(&server, &backend, "owner:changes", 1);
    let stays = wait_for(&server, &backend, "owner:stays", 1);
    server.kill();
    server.restart();
    // Whether before the client is back or after.
    server.wire().run("HSET pmcp:tasks:owner:changes version 2");
    assert_eq!(version(within(RECOVERY, changes).await), Some(2));
    // One read of the waiter that returns, two of the other.
    assert!(holds_within(RECOVERY, || reads(&server) >= 3) && !stays.is_finished());
    server.wire().run("DEL pmcp:tasks:owner:stays");
    assert_eq!(version(within(A_SECOND, stays).await), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_stays_away_is_an_error_in_time_and_the_next_wait_misses_nothing() {
    const CONNECT: Duration = Duration::from_millis(500);
    let mut server = Server::start_with(&ServerOptions::default().with_aof());
    let backend = RedisBackend::builder(server.url()).connect_timeout(CONNECT).connect().await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let waiting = wait_for(&server, &backend, KEY, 1);
    server.stop();
    let error = within(CONNECT + A_SECOND, waiting).await.unwrap_err();
    assert!(matches!(reason(&error), Error::NotConnected { .. }), "{error}");
    server.restart();
    server.wire().run("HSET T version 2");
    let started = Instant::now();
    let changed = loop {
        match timeout(RECOVERY, backend.changed(KEY, 1)).await.unwrap() {
            Err(error) => assert!(started.elapsed() < RECOVERY, "{error}"),
            changed => break changed,
        }
    };
    assert_eq!(version(changed), Some(2));
}

#[test]
fn waiter_outlives_the_runtime_of_the_connections() {
    let [first, second] = [(); 2].map(|()| tokio::runtime::Runtime::new().unwrap());
    let (server, cluster) = (Server::start(), Cluster::start(1, 0));
    let waiters = [(&server, server.url()), (&cluster.servers[0], cluster.url())].map(|(server, url)| {
        let backend = first.block_on(RedisBackend::new(&url)).unwrap();
        first.block_on(backend.put(KEY, b"one")).unwrap();
        let _inside = second.enter();
        wait_for(server, &backend, KEY, 1)
    });
    drop(first);
    for (waiting, server) in waiters.into_iter().zip([&server, &cluster.servers[0]]) {
        let key = server.wire().call(&["KEYS", "*:tasks:*"]).lines().last().unwrap().to_owned();
        assert!(!waiting.is_finished());
        server.wire().call(&["HSET", &key, "version", "2"]);
        assert_eq!(version(second.block_on(within(RECOVERY, waiting))), Some(2));
    }
}

// Primaries that are replaced, slots that move.

#[tokio::test(flavor = "multi_thread")]
async fn failover_by_sentinels_loses_no_change() {
    let watched = SentinelGroup::start(1);
    let backend = RedisBackend::builder(watched.url()).connect_timeout(RECOVERY).connect().await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let [old, new] = [0, 1].map(|number| &watched.servers[number]);
    assert!(holds_within(RECOVERY, || new.wire().exists(TASK)));
    let waiting = wait_for(old, &backend, KEY, 1);
    // The old primary stays one and keeps its clients for a while: only the Sentinels tell of the new one.
    watched.fail_over();
    watched.make_primary(0);
    assert!(holds_within(RECOVERY, || new.is_primary()));
    assert!(new.wire().run("HSET T version 2").starts_with(':'));
    assert_eq!(version(within(Duration::from_secs(5), waiting).await), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_a_task_whose_slot_moves_key_by_key_is_not_missed() {
    let cluster = Cluster::start_lopsided(2);
    let [from, to] = [0, 1].map(|number| &cluster.servers[number]);
    let backend = RedisBackend::new(&cluster.url()).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let slot = from.slot_of(TASK_IN_CLUSTER);
    let waiting = wait_for(from, &backend, KEY, 1);
    from.start_moving(&slot, to);
    from.migrate(&[TASK_IN_CLUSTER, "pmcp:idx:{o}"], to);
    // The waiter follows, and polls there.
    assert!(holds_within(RECOVERY, || reads(to) > 0));
    assert!(!waiting.is_finished());
    let mut wire = to.wire();
    let change = |wire: &mut Wire, version: &str| {
        assert_eq!(wire.run("ASKING"), OK);
        assert_eq!(wire.call(&["HSET", TASK_IN_CLUSTER, "version", version]), ":0\r\n");
    };
    change(&mut wire, "2");
    assert_eq!(version(within(A_SECOND, waiting).await), Some(2));
    let waiting = wait_for(to, &backend, KEY, 2);
    from.stop_moving(&slot, to);
    // No more polling once the slot has arrived.
    let tracks = || to.wire().info_number("stats", "tracking_total_keys") == 1;
    assert!(holds_within(RECOVERY, tracks) && !waiting.is_finished());
    change(&mut wire, "3");
    assert_eq!(version(within(AT_ONCE, waiting).await), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_a_task_whose_slot_has_moved_at_once_is_not_missed_by_an_idle_client() {
    /// The client asks for the slots every 10 s.
    const BOUND: Duration = Duration::from_secs(11);
    let cluster = Cluster::start_lopsided(2);
    let [from, to] = [0, 1].map(|number| &cluster.servers[number]);
    let backend = RedisBackend::new(&cluster.url()).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let slot = from.slot_of(TASK_IN_CLUSTER);
    let waiting = wait_for(from, &backend, KEY, 1);
    let slot: usize = slot.parse().unwrap();
    if !from.move_at_once(slot..slot + 1, to) {
        skipped("change_of_a_task_whose_slot_has_moved_at_once", "the server has no atomic slot migration");
        return;
    }
    let started = Instant::now();
    assert_eq!(to.wire().call(&["HSET", TASK_IN_CLUSTER, "version", "2"]), ":0\r\n");
    assert_eq!(version(within(BOUND, waiting).await), Some(2));
    pmcptask_tests::show(&format!("seen {:?} after the slot had moved at once", started.elapsed()));
}

/// The node that has had the slot tells nothing, as if its connection were half open: only the new map of
/// slots tells.
#[tokio::test(flavor = "multi_thread")]
async fn idle_client_learns_from_the_slot_map_that_a_slot_has_moved() {
    /// The client asks for the slots every 10 s, and one node for up to 1 s.
    const BOUND: Duration = Duration::from_secs(12);
    let cluster = Cluster::start(2, 0);
    let proxies = cluster.put_behind_proxies();
    let builder = RedisBackend::builder(cluster.url()).keep_alive(6 * BOUND).response_timeout(6 * BOUND);
    let backend = builder.connect().await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let source = cluster.servers.iter().position(|server| server.has_slot_of(TASK_IN_CLUSTER)).unwrap();
    let [from, to] = [source, 1 - source].map(|number| &cluster.servers[number]);
    let waiting = wait_for(from, &backend, KEY, 1);
    proxies[source].set(Fault::Silence);
    let slot = from.slot_of(TASK_IN_CLUSTER);
    from.start_moving(&slot, to);
    from.migrate(&[TASK_IN_CLUSTER, "pmcp:idx:{o}"], to);
    from.stop_moving(&slot, to);
    assert_eq!(to.wire().call(&["HSET", TASK_IN_CLUSTER, "version", "2"]), ":0\r\n");
    assert_eq!(version(within(BOUND, waiting).await), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_in_a_cluster_loses_no_change() {
    let cluster = Cluster::start(1, 1);
    let [old, new] = [0, 1].map(|number| &cluster.servers[number]);
    let backend = RedisBackend::new(&cluster.url()).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    assert!(holds_within(RECOVERY, || new.wire().call(&["DBSIZE"]) == ":2\r\n"));
    let waiting = wait_for(old, &backend, KEY, 1);
    assert_eq!(new.wire().call(&["CLUSTER", "FAILOVER"]), OK);
    assert!(holds_within(RECOVERY, || new.is_primary()));
    assert_eq!(new.wire().call(&["HSET", TASK_IN_CLUSTER, "version", "2"]), ":0\r\n");
    assert_eq!(version(within(Duration::from_secs(11), waiting).await), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_read_from_the_primary_even_where_other_reads_go_to_replicas() {
    let cluster = Cluster::start(1, 1);
    let [primary, replica] = [0, 1].map(|number| &cluster.servers[number]);
    // The primary tells clients of the replica once it has heard of the replica's data.
    let port = format!(":{}\r\n", replica.port());
    let tells = || primary.wire().call(&["CLUSTER", "SLOTS"]).contains(&port);
    assert!(holds_within(Duration::from_secs(20), tells));
    let backend = RedisBackend::builder(cluster.url()).read_from_replicas(true).connect().await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    // A young replica is in the node's answer only after a while, and the client asks every ten seconds.
    let limit = Duration::from_secs(10) + RECOVERY;
    let before = reads(replica);
    let started = Instant::now();
    while reads(replica) == before {
        assert!(started.elapsed() < limit, "the replica is never asked");
        backend.get(KEY).await.unwrap();
    }
    let before = reads(replica);
    let waiting = wait_for(primary, &backend, KEY, 1);
    backend.put(KEY, b"two").await.unwrap();
    assert_eq!(version(within(AT_ONCE, waiting).await), Some(2));
    assert_eq!(reads(replica), before);
}

// Where the server does not tell.

#[tokio::test(flavor = "multi_thread")]
async fn more_waiters_than_the_server_tracks_all_wake_and_look_less_than_twice_a_second_each() {
    const WAITERS: u64 = 200;
    const WATCHED: Duration = Duration::from_secs(4);
    let server = Server::start_with(&ServerOptions::default().set("tracking-table-max-keys", "10"));
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let waiting = wait_for_many(&server, &backend, WAITERS).await;
    // The quick reads at first are over.
    sleep(Duration::from_secs(2)).await;
    let before = reads(&server);
    sleep(WATCHED).await;
    // Each look is two reads.
    let per_second = (reads(&server) - before) / 2 / WATCHED.as_secs();
    assert!(per_second < 2 * WAITERS, "{per_second} looks a second");
    all_wake(&backend, waiting, A_SECOND).await;
}

/// Puts tasks, and waits for each of them.
async fn wait_for_many(server: &Server, backend: &RedisBackend, count: u64) -> Vec<JoinHandle<Changed>> {
    let keys: Vec<_> = (0..count).map(|number| format!("owner-{number}:t")).collect();
    let records: Vec<_> = keys.iter().map(|key| (key.as_str(), &b"one"[..])).collect();
    assert!(backend.put_many(&records).await.iter().all(Result::is_ok));
    let before = reads(server);
    let waiting = keys.iter().map(|key| start(backend, key, 1)).collect();
    // No promise: ten thousand waiters of a test build may take long to begin on a busy machine.
    assert!(holds_within(Duration::from_mins(1), || reads(server) >= before + 2 * count));
    waiting
}

/// Changes the tasks of [`wait_for_many`] and expects each waiter to see it.
async fn all_wake(backend: &RedisBackend, waiting: Vec<JoinHandle<Changed>>, limit: Duration) {
    let keys: Vec<_> = (0..waiting.len()).map(|number| format!("owner-{number}:t")).collect();
    let records: Vec<_> = keys.iter().map(|key| (key.as_str(), &b"two"[..])).collect();
    assert!(backend.put_many(&records).await.iter().all(Result::is_ok));
    let started = Instant::now();
    for waiting in waiting {
        let left = limit.saturating_sub(started.elapsed());
        assert_eq!(version(within(left, waiting).await), Some(2));
    }
}

/// Checks that a waiter reads its task every second, and whenever the task is known to end.
async fn polls_every_second(server: &Server, backend: &RedisBackend) {
    backend.put(KEY, b"one").await.unwrap();
    let waiting = wait_for(server, backend, KEY, 1);
    let before = reads(server);
    sleep(Duration::from_millis(2_500)).await;
    let polls = reads(server) - before;
    assert!((1..=3).contains(&polls), "{polls} polls in 2.5 s");
    server.wire().run("HSET T version 2");
    assert_eq!(version(within(A_SECOND, waiting).await), Some(2));
    let ends = now_ms() + 300;
    server.wire().run(&format!("PEXPIREAT T {ends}"));
    let waiting = wait_for(server, backend, KEY, 2);
    assert_eq!(version(within(AT_ONCE, waiting).await), None);
    assert!(now_ms() > ends);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiter_polls_with_resp2_and_never_asks_for_tracking() {
    let server = Server::start();
    let backend = RedisBackend::new(&format!("{}?protocol=2", server.url())).await.unwrap();
    polls_every_second(&server, &backend).await;
    assert_eq!(server.calls_of("client|tracking"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiter_polls_with_a_given_connection_and_leaves_its_tracking_alone() {
    let server = Server::start();
    let client = redis::Client::open(format!("{}?protocol=resp3", server.url())).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    polls_every_second(&server, &RedisBackend::with_connection(connection)).await;
    assert_eq!(server.calls_of("client|tracking"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiter_polls_without_a_permission_and_is_woken_with_exactly_those_of_the_docs() {
    let server = Server::start();
    let mut wire = server.wire();
    let all = ["+client|tracking", "+client|caching", "+pttl"];
    let mut may = |rules: &[&str]| {
        let user = ["ACL", "SETUSER", "limited", "reset", "on", "nopass", "~pmcp:*", "+ping", "+hello"];
        let calls = ["+pmcptask.get", "+pmcptask.put"];
        assert_eq!(wire.call(&[&user[..], &calls, rules].concat()), OK);
    };
    may(&all[..2]);
    let url = format!("redis://limited:x@127.0.0.1:{}/", server.port());
    let backend = RedisBackend::new(&url).await.unwrap();
    for left_out in 0..3 {
        let rules: Vec<_> = (0..3).filter(|rule| *rule != left_out).map(|rule| all[rule]).collect();
        may(&rules);
        backend.put(KEY, b"one").await.unwrap();
        let waiting = wait_for(&server, &backend, KEY, 1);
        let before = reads(&server);
        assert!(holds_within(A_SECOND, || reads(&server) > before), "no polls with {rules:?}");
        server.wire().run("HSET T version 2");
        assert_eq!(version(within(A_SECOND, waiting).await), Some(2), "{rules:?}");
        server.wire().run("DEL T");
    }
    may(&all);
    backend.put(KEY, b"one").await.unwrap();
    let waiting = wait_for(&server, &backend, KEY, 1);
    let before = reads(&server);
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(reads(&server), before);
    server.wire().run("HSET T version 2");
    assert_eq!(version(within(AT_ONCE, waiting).await), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn waiter_that_polls_pauses_while_the_task_changes_often_in_other_ways() {
    const CHANGES: u64 = 300;
    let server = Server::start();
    let mut wire = server.wire();
    wire.run("ACL SETUSER limited on nopass ~pmcp:* +@all -pttl");
    let backend =
        RedisBackend::new(&format!("redis://limited:x@127.0.0.1:{}/", server.port())).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let waiting = wait_for(&server, &backend, KEY, 1);
    let (before, started) = (reads(&server), Instant::now());
    for change in 0..CHANGES {
        wire.run(&format!("HSET T other {change}"));
        sleep(Duration::from_millis(5)).await;
    }
    let made = reads(&server) - before;
    // Six wake-ups in a row, of two reads each, before the pauses have their full length.
    assert!(made <= 12 + 2 * started.elapsed().as_secs(), "{made} reads in {:?}", started.elapsed());
    wire.run("HSET T version 2");
    assert_eq!(version(within(2 * A_SECOND, waiting).await), Some(2));
}

// What waiting costs.

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_were_waited_for_until_they_ended_leave_nothing_at_the_server() {
    const TASKS: u64 = 100;
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let waiting = wait_for_many(&server, &backend, TASKS).await;
    let tracked = || server.wire().info_number("stats", "tracking_total_keys");
    assert_eq!(tracked(), TASKS);
    for task in 0..TASKS / 2 {
        let end = if task % 2 == 0 { "DEL" } else { "PEXPIREAT" };
        let at = if task % 2 == 0 { "" } else { " 1" };
        assert_eq!(server.wire().run(&format!("{end} pmcp:tasks:owner-{task}:t{at}")), ":1\r\n");
    }
    server.wire().run("FLUSHALL");
    for waiting in waiting {
        assert_eq!(version(within(RECOVERY, waiting).await), None);
    }
    assert!(backend.changed("o:never-there", 1).await.unwrap().is_none());
    assert_eq!(tracked(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_waiters_cost_no_requests_and_all_wake() {
    const WAITERS: u64 = 10_000;
    const WATCHED: Duration = Duration::from_secs(3);
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let waiting = wait_for_many(&server, &backend, WAITERS).await;
    let commands = || server.wire().info_number("stats", "total_commands_processed");
    let before = commands();
    sleep(WATCHED).await;
    // The first is the count itself.
    let meanwhile = commands() - before;
    assert!(meanwhile <= 3, "{meanwhile} commands in {WATCHED:?}");
    assert_eq!(server.wire().info_number("clients", "connected_clients"), 2);
    all_wake(&backend, waiting, RECOVERY).await;
    // Each has read twice at first, and once when it was woken.
    assert!(reads(&server) <= 3 * WAITERS + 10, "{}", reads(&server));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_waiters_of_one_task_wake() {
    const WAITERS: usize = 2_000;
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let waiting: Vec<_> = (0..WAITERS).map(|_| start(&backend, KEY, 1)).collect();
    assert!(holds_within(RECOVERY, || reads(&server) >= 2 * WAITERS as u64));
    backend.put(KEY, b"two").await.unwrap();
    for waiting in waiting {
        assert_eq!(version(within(RECOVERY, waiting).await), Some(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiter_that_is_dropped_makes_no_more_requests() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let waiting = wait_for(&server, &backend, KEY, 1);
    let stays = wait_for(&server, &backend, KEY, 1);
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    let before = reads(&server);
    backend.put(KEY, b"two").await.unwrap();
    assert_eq!(version(within(AT_ONCE, stays).await), Some(2));
    assert_eq!(reads(&server), before + 1);
    assert_eq!(server.wire().info_number("stats", "tracking_total_keys"), 0);
    // Nobody waits any more: neither a flush nor a lost connection makes anybody read.
    assert_eq!(server.wire().run("FLUSHALL"), OK);
    proxy.cut();
    assert!(backend.get("owner:none").await.is_err());
    assert_eq!(reads(&server), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_tracks_what_is_waited_for_and_no_other_reads_of_the_connection() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    backend.put(KEY, b"one").await.unwrap();
    let waiting = wait_for(&server, &backend, KEY, 1);
    for number in 0..100 {
        let key = format!("owner:{number}");
        backend.put(&key, b"one").await.unwrap();
        backend.get(&key).await.unwrap();
    }
    backend.list_by_prefix("owner:").await.unwrap();
    assert_eq!(server.wire().info_number("stats", "tracking_total_keys"), 1);
    assert!(!waiting.is_finished());
}

// Anything, in any order.

#[tokio::test(flavor = "multi_thread")]
async fn waiters_return_for_every_change_and_never_without_one_whatever_happens() {
    /// A reconnect after many losses, and a pause after many wake-ups.
    const BOUND: Duration = Duration::from_millis(2_200);
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::builder(proxy.url()).connect_timeout(RECOVERY).connect().await.unwrap();
    let disturb = || {
        proxy.cut();
        server.wire()
    };
    follow_random_changes(&backend, "owner", server.wire(), disturb, 40, BOUND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_return_for_every_change_and_never_without_one_across_failovers() {
    /// The client asks for a new slot map every ten seconds.
    const BOUND: Duration = Duration::from_secs(11);
    let cluster = Cluster::start(1, 3);
    let backend = RedisBackend::builder(cluster.url()).connect_timeout(RECOVERY).connect().await.unwrap();
    // Each replica once: Redis 7.0 miscounts the votes of a replica that is elected again within seconds.
    let next = Cell::new(0);
    let disturb = || {
        next.set((next.get() + 1).min(cluster.servers.len() - 1));
        let new = &cluster.servers[next.get()];
        if !new.is_primary() {
            assert_eq!(new.wire().call(&["CLUSTER", "FAILOVER"]), OK);
            let primaries = || cluster.servers.iter().filter(|server| server.is_primary()).count();
            assert!(holds_within(RECOVERY, || new.is_primary() && primaries() == 1), "{}", new.log());
            cluster.wait_until_settled();
        }
        new.wire()
    };
    let first = cluster.servers[0].wire();
    follow_random_changes(&backend, "{owner}", first, disturb, 15, BOUND).await;
}

/// Tasks change, end and come back, keys are flushed, and `disturb` does its worst; it returns a connection to
/// the primary. Whoever returns has a reason, and in each round, once things are quiet, everybody sees the last change
/// within `bound`.
async fn follow_random_changes(
    backend: &RedisBackend,
    owner: &str,
    mut wire: Wire,
    disturb: impl Fn() -> Wire,
    rounds: usize,
    bound: Duration,
) {
    const TASKS: usize = 8;
    let mut dice = Dice::new(0x5EED_0016);
    let seen: Arc<[AtomicU64]> = (0..TASKS).map(|_| AtomicU64::new(0)).collect();
    let followers: Vec<_> = (0..TASKS)
        .map(|task| tokio::spawn(follow(backend.clone(), format!("owner:{task}"), Arc::clone(&seen), task)))
        .collect();
    // One count for all tasks, so that no version comes back.
    let mut version = 0;
    let mut put = |wire: &mut Wire, task: usize| {
        version += 1;
        let reply = wire.run(&format!("HSET pmcp:tasks:{owner}:{task} version {version} data x"));
        assert!(reply.starts_with(':'), "{reply}");
        version
    };
    let mut disturbances = 0;
    for round in 0..rounds {
        for _ in 0..=dice.roll(20) {
            let task = usize::try_from(dice.roll(TASKS as u64)).unwrap();
            let key = format!("pmcp:tasks:{owner}:{task}");
            match dice.roll(20) {
                0 => {
                    wire = disturb();
                    disturbances += 1;
                }
                1 => assert_eq!(wire.run("FLUSHALL"), OK),
                2 => drop(wire.run(&format!("DEL {key}"))),
                3 => drop(wire.run(&format!("PEXPIRE {key} {}", 1 + dice.roll(30)))),
                4 => drop(wire.run(&format!("PEXPIRE {key} 100000"))),
                5 => sleep(Duration::from_millis(dice.roll(40))).await,
                _ => drop(put(&mut wire, task)),
            }
        }
        let last: Vec<_> = (0..TASKS)
            .map(|task| {
                wire.run(&format!("PERSIST pmcp:tasks:{owner}:{task}"));
                put(&mut wire, task)
            })
            .collect();
        let all_see = || (0..TASKS).all(|task| seen[task].load(Ordering::SeqCst) == last[task]);
        assert!(holds_within(bound, all_see), "round {round}: {last:?}, {seen:?}");
    }
    assert!(disturbances > 0);
    for follower in followers {
        assert!(!follower.is_finished(), "{:?}", follower.await);
        follower.abort();
    }
}

/// Waits for one change after another, and tells the version that it has seen last.
async fn follow(backend: RedisBackend, key: String, seen: Arc<[AtomicU64]>, task: usize) {
    loop {
        let last = seen[task].load(Ordering::SeqCst);
        let changed = match backend.changed(&key, last).await {
            // Two connections in a row were lost while their reply was on its way.
            Err(error) if reason(&error).is_transient() => continue,
            changed => changed.unwrap(),
        };
        match changed {
            Some(task_now) => {
                assert!(task_now.version > last, "{key}: {} after {last}", task_now.version);
                seen[task].store(task_now.version, Ordering::SeqCst);
            }
            // There is nothing to wait for.
            None => sleep(Duration::from_millis(1)).await,
        }
    }
}
