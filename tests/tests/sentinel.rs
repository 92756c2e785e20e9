//! A primary and its replicas behind Sentinels: the backend finds the primary, and follows a failover.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{Applied, Error, RedisBackend, RedisBackendBuilder};
use pmcptask_tests::{
    A_WHILE, Fault, Load, Port, Proxy, SentinelGroup, Server, ServerOptions, assert_hashes_and_entries_agree,
    holds_within, reason,
};

/// Writes count once this many replicas have them: without that, a failover may lose the last ones.
fn builder(watched: &SentinelGroup, replicas: u16) -> RedisBackendBuilder {
    RedisBackend::builder(watched.url()).wait_for_replicas(replicas, Duration::from_secs(1))
}

/// How long clients may have no primary, or the primary no replicas. After a failover by hand, the Sentinels
/// take at least ten seconds to correct a replica that follows the old primary.
const FAILOVER: Duration = Duration::from_secs(20);

async fn end(what: &str, load: Load, watched: &SentinelGroup) {
    load.end(what, builder(watched, 1), FAILOVER).await;
    let primary = watched.servers.iter().find(|server| server.is_primary()).unwrap();
    assert_hashes_and_entries_agree(&[primary]);
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_that_dies_loses_nothing_that_was_acknowledged() {
    let mut watched = SentinelGroup::start(2);
    // The Sentinels promote the replica with the most data.
    let load = Load::start(&builder(&watched, 1)).await;
    let before = watched.primary();
    watched.servers[0].kill();
    assert!(holds_within(Duration::from_secs(30), || watched.primary() != before));
    load.go_on_for(A_WHILE).await;
    // It returns as a primary that no client follows, and is made a replica.
    watched.servers[0].restart();
    watched.wait_until_settled();
    end("a primary died", load, &watched).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_by_hand_loses_nothing_that_all_replicas_had() {
    let watched = SentinelGroup::start(2);
    // For a short time there are two primaries. The old one may keep all replicas except the promoted one.
    let load = Load::start(&builder(&watched, 2)).await;
    for _ in 0..2 {
        watched.fail_over();
        watched.wait_until_settled();
        load.go_on_for(A_WHILE).await;
    }
    end("replicas took over by hand", load, &watched).await;
}

/// The old primary does not learn of the failover, and its clients do not notice it.
#[tokio::test(flavor = "multi_thread")]
async fn primary_that_was_cut_off_and_replaced_is_left() {
    let watched = SentinelGroup::start(1);
    let backend = RedisBackend::new(&watched.url()).await.unwrap();
    backend.put("owner:t", b"one").await.unwrap();
    let [old, new] = [0, 1].map(|number| &watched.servers[number]);
    assert!(holds_within(Duration::from_secs(5), || new.wire().exists("pmcp:tasks:owner:t")));
    // It stays a primary, and says so, as long as the Sentinels allow it.
    watched.fail_over();
    watched.make_primary(0);
    // Clients ask the Sentinels every second. Reads show which server the client is connected to.
    let started = Instant::now();
    while new.counter("get_hits") == 0 {
        assert!(started.elapsed() < Duration::from_secs(20), "{}", new.wire().call(&["CLIENT", "LIST"]));
        backend.get("owner:t").await.unwrap();
    }
    // The Sentinels demote the old primary, and close its connections, seconds later: the client was faster.
    assert!(old.wire().call(&["ROLE"]).contains("master"));
    backend.put("owner:t", b"two").await.unwrap();
    assert!(new.wire().call(&["PMCPTASK.GET", "pmcp:tasks:owner:t"]).contains("two"));
    assert!(!old.wire().call(&["PMCPTASK.GET", "pmcp:tasks:owner:t"]).contains("two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_is_a_replica_by_now_is_not_written_to() {
    let watched = SentinelGroup::start(1);
    let limit = Duration::from_millis(500);
    let builder = RedisBackend::builder(watched.url()).connect_timeout(limit);
    let backend = builder.connect().await.unwrap();
    backend.put("owner:t", b"one").await.unwrap();
    // Without the knowledge of the Sentinels, which need some time to correct it.
    let port = watched.servers[1].port().to_string();
    assert_eq!(watched.servers[0].wire().call(&["REPLICAOF", "127.0.0.1", &port]), "+OK\r\n");
    let started = Instant::now();
    let error = backend.put("owner:t", b"two").await.unwrap_err();
    assert!(!reason(&error).outcome_is_unknown(), "{error}");
    assert!(started.elapsed() < limit + Duration::from_secs(1), "{:?}", started.elapsed());
    let has = |server: &Server| server.wire().call(&["PMCPTASK.GET", "pmcp:tasks:owner:t"]).contains("two");
    assert!(!watched.servers.iter().any(has));
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinel_that_is_away_or_silent_delays_no_connection() {
    let mut watched = SentinelGroup::start(0);
    watched.sentinels[1].kill();
    let silent = Proxy::to_nobody(Fault::Silence);
    let hosts = watched.hosts();
    let nobody = Port::free().unwrap();
    let (away, silent) = (nobody.address(), silent.port());
    let url = format!("redis+sentinel://{away},127.0.0.1:{silent},{}/tasks", hosts.join(","));
    let started = Instant::now();
    let backend = RedisBackend::new(&url).await.unwrap();
    backend.put("owner:t", b"one").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinel_that_has_missed_a_failover_is_not_believed() {
    let watched = SentinelGroup::start(1);
    let old = watched.primary();
    watched.fail_over();
    watched.wait_until_settled();
    // This Sentinel still names the old primary, and no configuration epoch.
    let stale = Proxy::to(watched.sentinels[2].port());
    let reply = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{old}\r\n", old.len()).into_bytes();
    stale.set(Fault::Answer { command: "SENTINEL", reply });
    watched.make_primary(0);
    let hosts = watched.hosts();
    let url = format!("redis+sentinel://127.0.0.1:{},{},{}/tasks", stale.port(), hosts[0], hosts[1]);
    for _ in 0..5 {
        let backend = RedisBackend::new(&url).await.unwrap();
        backend.put("owner:t", b"one").await.unwrap();
    }
    let version = |server: &Server| server.wire().call(&["HGET", "pmcp:tasks:owner:t", "version"]);
    assert_eq!(version(&watched.servers[1]), "$1\r\n5\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_that_was_left_is_not_gone_back_to_by_what_sentinels_remember() {
    let watched = SentinelGroup::start(1);
    let proxies: Vec<_> = watched.sentinels.iter().map(|sentinel| Proxy::to(sentinel.port())).collect();
    let hosts: Vec<_> = proxies.iter().map(|proxy| format!("127.0.0.1:{}", proxy.port())).collect();
    let backend = RedisBackend::new(&format!("redis+sentinel://{}/tasks", hosts.join(","))).await.unwrap();
    let old = watched.primary();
    watched.fail_over();
    watched.wait_until_settled();
    let writes_to = async |server: &Server| {
        let before = server.counter("puts");
        backend.put("owner:t", b"data").await.is_ok() && server.counter("puts") > before
    };
    let started = Instant::now();
    while !writes_to(&watched.servers[1]).await {
        assert!(started.elapsed() < Duration::from_secs(20), "it does not follow");
    }
    // No Sentinel has heard of the failover, and the old primary still says that it is a primary.
    let reply = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{old}\r\n", old.len()).into_bytes();
    for proxy in &proxies {
        proxy.set(Fault::Answer { command: "SENTINEL", reply: reply.clone() });
    }
    watched.make_primary(0);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        assert!(writes_to(&watched.servers[1]).await, "it has gone back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_that_hangs_is_left_as_soon_as_the_sentinels_know_another() {
    let watched = SentinelGroup::start(1);
    // The keep-alive check starts before any Sentinel knows another primary, and its answer never comes.
    let builder = RedisBackend::builder(watched.url()).keep_alive(Duration::from_millis(300));
    let backend = builder.clone().connect().await.unwrap();
    let waiting = builder.wait_for_replicas(1, Duration::from_millis(500)).connect().await.unwrap();
    backend.put("owner:t", b"one").await.unwrap();
    waiting.put("other:t", b"one").await.unwrap();
    let replicated = || watched.servers[1].wire().exists("pmcp:tasks:owner:t");
    assert!(holds_within(Duration::from_secs(5), replicated));
    let before = watched.primary();
    watched.servers[0].hang();
    let stuck = tokio::spawn({
        let waiting = waiting.clone();
        async move { waiting.put("other:t", b"two").await }
    });
    assert!(holds_within(Duration::from_secs(30), || watched.primary() != before));
    // Time for the next question to the Sentinels, and for the next connection.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let started = Instant::now();
    assert_eq!(backend.put("owner:t", b"two").await.unwrap(), 2);
    // A write that got no reply from the old primary does not delay others. The new primary has no
    // replica yet.
    let error = waiting.put("other:t", b"three").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NotReplicated { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    watched.servers[0].go_on();
    // Whether or not the old primary made this write, no replica can have acknowledged it.
    stuck.await.unwrap().unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn attempt_to_connect_takes_no_longer_than_told_whoever_hangs() {
    const LIMIT: Duration = Duration::from_secs(2);
    let watched = SentinelGroup::start(0);
    let hanging = [&watched.sentinels[0], &watched.sentinels[1], &watched.servers[0]];
    for server in hanging {
        server.hang();
    }
    let started = Instant::now();
    let builder = RedisBackend::builder(watched.url()).connect_timeout(LIMIT);
    let error = builder.connect().await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoServer { .. }), "{error}");
    // The Sentinels alone take a quarter of the limit.
    assert!(started.elapsed() < LIMIT * 9 / 8, "{:?}", started.elapsed());
    for server in hanging {
        server.go_on();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_may_be_slow_where_there_is_time() {
    let watched = SentinelGroup::start(0);
    let proxies: Vec<_> = watched.sentinels.iter().map(|sentinel| Proxy::to(sentinel.port())).collect();
    for proxy in &proxies {
        proxy.set(Fault::Delay(Duration::from_millis(600)));
    }
    let hosts: Vec<_> = proxies.iter().map(|proxy| format!("127.0.0.1:{}", proxy.port())).collect();
    let url = format!("redis+sentinel://{}/tasks", hosts.join(","));
    let backend =
        RedisBackend::builder(url).connect_timeout(Duration::from_secs(20)).connect().await.unwrap();
    backend.put("owner:t", b"data").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_name_of_the_same_primary_is_no_other_primary() {
    let server = ServerOptions::default().set("bind", "127.0.0.1 127.0.0.2").set("protected-mode", "no");
    let server = Server::start_with(&server);
    // The Sentinels do not know each other, and each knows the server by another address.
    let sentinels = ["127.0.0.1", "127.0.0.2"].map(|address| {
        let monitor = format!("tasks {address} {} 1", server.port());
        Server::start_with(&ServerOptions::default().sentinel().set("sentinel monitor", &monitor))
    });
    let [one, other] = sentinels.each_ref().map(Server::port);
    let url = format!("redis+sentinel://127.0.0.1:{one},127.0.0.1:{other}/tasks");
    let backend = RedisBackend::builder(url).client_name("stays").connect().await.unwrap();
    let connection = || -> String {
        let clients = server.wire().call(&["CLIENT", "LIST"]);
        let ours = clients.lines().find(|client| client.contains(" name=stays ")).unwrap();
        ours.split(' ').next().unwrap().to_owned()
    };
    let before = connection();
    for _ in 0..50 {
        backend.put("owner:t", b"data").await.unwrap();
        assert_eq!(connection(), before);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_goes_to_a_replica_where_that_is_wanted() {
    let watched = SentinelGroup::start(1);
    let wanted =
        RedisBackend::builder(watched.url()).read_from_replicas(true).wait_for_replicas(1, ACKNOWLEDGED);
    let wanted = wanted.connect().await.unwrap();
    let usual = RedisBackend::new(&watched.url()).await.unwrap();
    let [primary, replica] = [0, 1].map(|number| &watched.servers[number]);
    let reads = |server: &Server| server.counter("get_hits") + server.counter("lists");
    wanted.put("owner:t", b"one").await.unwrap();
    // The connection to the replica is made in the background. Reads show when it is ready.
    let started = Instant::now();
    while reads(replica) == 0 {
        assert!(started.elapsed() < Duration::from_secs(20), "the replica is not read from");
        wanted.get("owner:t").await.unwrap();
    }
    let before = (reads(primary), reads(replica));
    for _ in 0..10 {
        assert_eq!(wanted.get("owner:t").await.unwrap().data, b"one");
        assert_eq!(wanted.list_by_prefix("owner:").await.unwrap().len(), 1);
    }
    assert_eq!((reads(primary), reads(replica)), (before.0, before.1 + 20));
    usual.get("owner:t").await.unwrap();
    assert_eq!((reads(primary), reads(replica)), (before.0 + 1, before.1 + 20));
    // The primary may have what the replica does not have.
    assert_eq!(replica.wire().call(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
    usual.put("owner:new", b"two").await.unwrap();
    assert_eq!(wanted.get("owner:new").await.unwrap().data, b"two");
    assert!(matches!(wanted.get("owner:none").await, Err(StorageError::NotFound { .. })));
}

const ACKNOWLEDGED: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn reads_from_replicas_need_replicas_that_are_known() {
    let server = Server::start();
    let error = RedisBackend::builder(server.url()).read_from_replicas(true).connect().await.unwrap_err();
    assert!(matches!(reason(&error), Error::Settings(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_too_few_replicas_have_says_so() {
    let mut watched = SentinelGroup::start(1);
    let within = Duration::from_millis(200);
    let backend = RedisBackend::builder(watched.url()).wait_for_replicas(1, within).connect().await.unwrap();
    assert_eq!(backend.put("owner:t", b"one").await.unwrap(), 1);
    watched.servers[1].kill();
    let calls = async {
        [
            backend.put("owner:t", b"two").await.err(),
            backend.put_if_version("owner:t", b"three", 2).await.err(),
            backend.delete("owner:t").await.err(),
        ]
    };
    for error in calls.await.map(Option::unwrap) {
        assert!(
            matches!(reason(&error), Error::NotReplicated { expected: 1, acknowledged: 0, .. }),
            "{error}"
        );
        assert_eq!(reason(&error).was_applied(), Applied::Yes);
    }
    // A call that wrote nothing has nothing to replicate.
    assert!(!backend.delete("owner:t").await.unwrap());
    let conflict = backend.put_if_version("owner:t", b"four", 9).await.unwrap_err();
    assert!(matches!(conflict, StorageError::VersionConflict { actual: 0, .. }), "{conflict}");
}

/// As after a failover, until the first replica has found its new primary.
#[tokio::test(flavor = "multi_thread")]
async fn write_waits_for_a_primary_that_has_too_few_replicas_yet() {
    let watched = SentinelGroup::start(0);
    let backend = RedisBackend::new(&watched.url()).await.unwrap();
    let replicas = |count: &str| {
        let wanted = ["CONFIG", "SET", "min-replicas-to-write", count];
        assert_eq!(watched.servers[0].wire().call(&wanted), "+OK\r\n");
    };
    replicas("1");
    let error = backend.put("owner:t", b"one").await.unwrap_err();
    assert!(matches!(reason(&error), Error::TooFewReplicas { .. }), "{error}");
    let writing = tokio::spawn({
        let backend = backend.clone();
        async move { backend.put("owner:t", b"one").await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    replicas("0");
    assert_eq!(writing.await.unwrap().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn time_for_replicas_is_less_than_that_for_the_reply() {
    let server = Server::start();
    for within in [Duration::ZERO, Duration::from_secs(10)] {
        let error =
            RedisBackend::builder(server.url()).wait_for_replicas(1, within).connect().await.unwrap_err();
        assert!(matches!(reason(&error), Error::Settings(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_shows_at_construction() {
    let watched = SentinelGroup::start(0);
    let hosts = watched.hosts().join(",");
    let error = RedisBackend::new(&format!("redis+sentinel://{hosts}/other")).await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoPrimary { .. }), "{error}");
    assert!(error.to_string().contains("other") && error.to_string().contains("no service"), "{error}");
    let nobody = Port::free().unwrap();
    let url = format!("redis+sentinel://{}/tasks", nobody.address());
    let error = RedisBackend::new(&url).await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoPrimary { .. }), "{error}");
    assert!(error.to_string().contains("no Sentinel answers"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_and_sentinels_have_passwords_of_their_own() {
    let server = ServerOptions::default()
        .set("requirepass", "servers")
        .set("masterauth", "servers")
        .set("repl-diskless-sync-delay", "0");
    let sentinel = ServerOptions::default().sentinel().set("requirepass", "sentinels");
    let mut watched = vec![Server::start_with(&server)];
    let port = watched[0].port();
    let sentinel = sentinel
        .set("sentinel monitor", &format!("tasks 127.0.0.1 {port} 1"))
        .set("sentinel auth-pass", "tasks servers");
    watched.push(Server::start_with(&sentinel));
    let url = format!("redis+sentinel://:servers@127.0.0.1:{}/tasks/3", watched[1].port());
    let error = RedisBackend::new(&url).await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoPrimary { .. }), "{error}");
    assert!(error.to_string().contains("sentinel_login"), "{error}");
    let error = RedisBackend::builder(&url).sentinel_login(None, "wrong").connect().await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoPrimary { .. }), "{error}");
    assert!(error.to_string().contains("WRONGPASS"), "{error}");
    let wrong = url.replace(":servers", ":wrong");
    let error = RedisBackend::builder(wrong).sentinel_login(None, "sentinels").connect().await.unwrap_err();
    assert!(matches!(reason(&error), Error::Authentication { .. }), "{error}");
    let backend = RedisBackend::builder(&url).sentinel_login(None, "sentinels").connect().await.unwrap();
    backend.put("owner:t", b"one").await.unwrap();
    let mut wire = watched[0].wire();
    wire.call(&["AUTH", "servers"]);
    assert!(wire.call(&["INFO", "keyspace"]).contains("db3:keys=2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_that_cannot_be_reached_is_named_with_who_announces_it() {
    let server = Server::start();
    // Nothing listens at this address.
    let monitor = format!("tasks 127.0.0.9 {} 1", server.port());
    let options = ServerOptions::default().sentinel().set("sentinel monitor", &monitor);
    let sentinel = Server::start_with(&options);
    let url = format!("redis+sentinel://127.0.0.1:{}/tasks", sentinel.port());
    let error = RedisBackend::new(&url).await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoServer { .. }), "{error:?}");
    let (primary, sentinel) =
        (format!("127.0.0.9:{}", server.port()), format!("127.0.0.1:{}", sentinel.port()));
    let text = error.to_string();
    for part in [&primary, "announced by the Sentinel", &sentinel, "primary of tasks", "Connection refused"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
