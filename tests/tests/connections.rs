//! How connections are named, checked and replaced.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{CircuitBreaker, Error, RedisBackend};
use pmcptask_tests::{
    Cluster, Fault, Proxy, SentinelGroup, Server, ServerOptions, holds_within, reason, skipped,
};
use tokio::task::JoinSet;

const NAME: &str = "worker-7";

/// The lines of `CLIENT LIST` with that connection name.
fn named(server: &Server) -> Vec<String> {
    let held = server.wire().call(&["CLIENT", "LIST"]);
    held.lines().filter(|line| line.contains(&format!(" name={NAME} "))).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_say_whose_they_are_wherever_they_go() {
    let mut server = Server::start();
    let backend = RedisBackend::builder(server.url()).client_name(NAME).connect().await.unwrap();
    assert_eq!(named(&server).len(), 1);
    server.kill();
    server.restart();
    backend.put("owner:t", b"data").await.unwrap();
    let lines = named(&server);
    assert_eq!(lines.len(), 1);
    if server.wire().call(&["CLIENT", "SETINFO", "lib-name", "x"]) == "+OK\r\n" {
        let library = format!("lib-name=pmcptask-client lib-ver={}", env!("CARGO_PKG_VERSION"));
        assert!(lines[0].contains(&library), "{lines:?}");
    } else {
        skipped("connections_say_whose_they_are", "the server has no CLIENT SETINFO");
    }

    let cluster = Cluster::start(3, 0);
    let _backend = RedisBackend::builder(cluster.url()).client_name(NAME).connect().await.unwrap();
    assert!(holds_within(Duration::from_secs(5), || cluster
        .servers
        .iter()
        .all(|node| named(node).len() == 1)));

    let watched = SentinelGroup::start(0);
    let _backend = RedisBackend::builder(watched.url()).client_name(NAME).connect().await.unwrap();
    assert_eq!(named(&watched.servers[0]).len(), 1);
    // The client need not ask more Sentinels than have to agree.
    assert!(watched.sentinels.iter().filter(|sentinel| named(sentinel).len() == 1).count() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn call_to_one_server_takes_little_memory() {
    /// More than twice what the redis crate needs for a command. Calls of 4 KB were one sixth slower when
    /// many were made at once.
    const BYTES: usize = 2_500;
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let sizes = [
        size_of_val(&*backend.get("o:t")),
        size_of_val(&*backend.put("o:t", b"data")),
        size_of_val(&*backend.put_if_version("o:t", b"data", 1)),
        size_of_val(&*backend.delete("o:t")),
        size_of_val(&*backend.list_by_prefix("o:")),
    ];
    assert!(sizes.iter().all(|bytes| *bytes <= BYTES), "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn name_that_the_server_would_refuse_is_refused_before() {
    let server = Server::start();
    for name in ["two words", "line\n", "ö"] {
        let error = RedisBackend::builder(server.url()).client_name(name).connect().await.unwrap_err();
        assert!(matches!(reason(&error), Error::Settings(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connection_that_has_fallen_silent_is_replaced_before_a_call_needs_it() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let builder = RedisBackend::builder(proxy.url()).keep_alive(Duration::from_millis(200));
    let backend = builder.response_timeout(Duration::from_millis(300)).connect().await.unwrap();
    // Half open: the connection is not closed, but nothing is forwarded.
    proxy.set(Fault::Silence);
    let before = proxy.accepted();
    assert!(holds_within(Duration::from_secs(5), || proxy.accepted() > before));
    proxy.set(Fault::None);
    // Connection attempts that the proxy swallowed end by themselves.
    let accepted = |server: &Server| server.wire().call(&["CLIENT", "LIST"]).matches("resp=3").count();
    if server.wire().call(&["CLIENT", "LIST"]).contains(" resp=") {
        assert!(holds_within(Duration::from_secs(5), || accepted(&server) > 0));
    }
    let started = Instant::now();
    backend.put("owner:t", b"data").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connection_that_is_well_is_left_alone_though_its_user_may_not_ping() {
    let server = Server::start();
    let rules = ["on", "nopass", "~*", "-@all", "+pmcptask.get"];
    assert_eq!(server.wire().call(&[&["ACL", "SETUSER", "limited"][..], &rules].concat()), "+OK\r\n");
    let proxy = Proxy::to(server.port());
    for user in ["", "limited:any@"] {
        let url = proxy.url().replace("//", &format!("//{user}"));
        let builder = RedisBackend::builder(url).keep_alive(Duration::from_millis(20));
        let backend = builder.connect().await.unwrap();
        let before = proxy.accepted();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(proxy.accepted(), before);
        backend.check_health().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn setting_that_cannot_be_kept_is_refused_before_anything_is_connected() {
    let builder = || RedisBackend::builder("redis://127.0.0.1:1");
    for builder in [
        builder().connect_timeout(Duration::ZERO),
        builder().response_timeout(Duration::ZERO),
        builder().keep_alive(Duration::ZERO),
    ] {
        let error = builder.connect().await.unwrap_err();
        assert!(matches!(reason(&error), Error::Settings(_)), "{error}");
    }
    // A value that the operating system would refuse is not passed on.
    let server = Server::start();
    RedisBackend::builder(server.url()).keep_alive(Duration::MAX).connect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_waits_for_replicas_delays_no_read() {
    const WITHIN: Duration = Duration::from_secs(2);
    let server = Server::start();
    let backend = RedisBackend::builder(server.url()).wait_for_replicas(1, WITHIN).connect().await.unwrap();
    let writing = tokio::spawn({
        let backend = backend.clone();
        async move { backend.put("owner:t", b"data").await }
    });
    assert!(holds_within(WITHIN, || server.wire().exists("pmcp:tasks:owner:t")));
    let started = Instant::now();
    for _ in 0..10 {
        assert_eq!(backend.get("owner:t").await.unwrap().version, 1);
        assert_eq!(backend.list_by_prefix("owner:").await.unwrap().len(), 1);
    }
    assert!(!writing.is_finished() && started.elapsed() < WITHIN / 2, "{:?}", started.elapsed());
    let error = writing.await.unwrap().unwrap_err();
    let missing = matches!(reason(&error), Error::NotReplicated { expected: 1, acknowledged: 0, .. });
    assert!(missing && !reason(&error).outcome_is_unknown(), "{error}");
    // A user who may not run WAIT learns that before the first write.
    let rules = ["ACL", "SETUSER", "limited", "on", "nopass", "~*", "+@all", "-wait"];
    assert_eq!(server.wire().call(&rules), "+OK\r\n");
    let url = server.url().replace("//", "//limited:any@");
    let error = RedisBackend::builder(url).wait_for_replicas(1, WITHIN).connect().await.unwrap_err();
    assert!(error.to_string().contains("WAIT"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_wait_for_missing_replicas_wait_together() {
    const WITHIN: Duration = Duration::from_secs(1);
    let server = Server::start();
    let builder = RedisBackend::builder(server.url()).wait_for_replicas(1, WITHIN);
    // One after the other, the writes would take 40 s.
    let builder = builder.response_timeout(Duration::from_secs(3)).circuit_breaker(CircuitBreaker::default());
    let backend = builder.connect().await.unwrap();
    let started = Instant::now();
    let mut writes = JoinSet::new();
    for task in 0..40 {
        let backend = backend.clone();
        writes.spawn(async move { backend.put(&format!("owner:{task}"), b"data").await });
    }
    while let Some(written) = writes.join_next().await {
        let error = written.unwrap().unwrap_err();
        assert!(matches!(reason(&error), Error::NotReplicated { acknowledged: 0, .. }), "{error}");
    }
    // Time for two groups: the one that is sent first, and all others.
    assert!(started.elapsed() < WITHIN * 5 / 2, "{:?}", started.elapsed());
    // The writes were made, and the circuit breaker counts none of them as a failure of the server.
    assert_eq!(backend.list_by_prefix("owner:").await.unwrap().len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_changes_nothing_waits_for_no_replica() {
    const WITHIN: Duration = Duration::from_secs(3);
    let server = Server::start();
    let backend = RedisBackend::builder(server.url()).wait_for_replicas(1, WITHIN).connect().await.unwrap();
    let started = Instant::now();
    let conflict = backend.put_if_version("owner:t", b"data", 1).await.unwrap_err();
    assert!(matches!(conflict, StorageError::VersionConflict { actual: 0, .. }), "{conflict}");
    assert!(started.elapsed() < WITHIN / 2, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_was_made_says_so_though_its_connection_is_lost_before_the_replicas_have_it() {
    const WITHIN: Duration = Duration::from_secs(5);
    let server = Server::start();
    let backend = RedisBackend::builder(server.url()).wait_for_replicas(1, WITHIN).connect().await.unwrap();
    let started = Instant::now();
    let writing = tokio::spawn(async move { backend.put("owner:t", b"data").await });
    let waiting = || -> Option<String> {
        let clients = server.wire().call(&["CLIENT", "LIST"]);
        let waiting = clients.lines().find(|client| client.contains(" flags=b "))?;
        Some(waiting.split_once("id=")?.1.split_once(' ')?.0.to_owned())
    };
    assert!(holds_within(WITHIN, || waiting().is_some()));
    assert_eq!(server.wire().call(&["CLIENT", "KILL", "ID", &waiting().unwrap()]), ":1\r\n");
    let error = writing.await.unwrap().unwrap_err();
    assert!(matches!(reason(&error), Error::NotReplicated { acknowledged: 0, .. }), "{error}");
    assert!(started.elapsed() < WITHIN, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_is_given_up_before_it_is_sent_is_never_sent() {
    const WITHIN: Duration = Duration::from_secs(1);
    let server = Server::start();
    let backend = RedisBackend::builder(server.url()).wait_for_replicas(1, WITHIN).connect().await.unwrap();
    let write = |key: &'static str| {
        let backend = backend.clone();
        tokio::spawn(async move { backend.put(key, b"data").await })
    };
    let exists = |task: &str| server.wire().exists(&format!("pmcp:tasks:owner:{task}"));
    let first = write("owner:first");
    assert!(holds_within(WITHIN, || exists("first")));
    // Both are held back while the first write waits.
    let [given_up, last] = ["owner:given-up", "owner:last"].map(write);
    tokio::time::sleep(WITHIN / 4).await;
    assert!(!exists("given-up") && !exists("last"));
    given_up.abort();
    for written in [first, last] {
        let error = written.await.unwrap().unwrap_err();
        assert!(matches!(reason(&error), Error::NotReplicated { .. }), "{error}");
    }
    assert!(exists("last") && !exists("given-up"));
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_is_kept_back_too_long_is_not_sent() {
    const RESPONSE: Duration = Duration::from_millis(500);
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let builder = RedisBackend::builder(proxy.url()).wait_for_replicas(1, Duration::from_millis(100));
    let builder = builder.response_timeout(RESPONSE).connect_timeout(RESPONSE);
    let backend = builder.connect().await.unwrap();
    let error = backend.put("owner:t", b"data").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NotReplicated { .. }), "{error}");
    proxy.set(Fault::Silence);
    let started = Instant::now();
    let sent = tokio::spawn({
        let backend = backend.clone();
        async move { backend.put("owner:t", b"data").await }
    });
    // By then the write was sent, and the next one is held back behind it.
    tokio::time::sleep(RESPONSE / 5).await;
    let error = backend.put("owner:t", b"data").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NotConnected { .. }), "{error}");
    // Time to be held back, and to wait for another connection.
    assert!(started.elapsed() < RESPONSE * 3, "{:?}", started.elapsed());
    let error = sent.await.unwrap().unwrap_err();
    assert!(matches!(reason(&error), Error::OutcomeUnknown { .. }), "{error}");
}

/// As with a host name that points to another server after a failover.
#[tokio::test(flavor = "multi_thread")]
async fn server_that_takes_no_writes_any_more_is_looked_for_anew() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    backend.put("owner:t", b"data").await.unwrap();
    let write = async || {
        let error = backend.put("owner:t", b"data").await.unwrap_err();
        assert!(matches!(reason(&error), Error::ReadOnly { .. }), "{error}");
    };
    assert_eq!(server.wire().call(&["REPLICAOF", "127.0.0.1", "1"]), "+OK\r\n");
    let before = proxy.accepted();
    // Not at once: otherwise a server that was always a replica would get a new connection with every write.
    for _ in 0..10 {
        write().await;
    }
    assert_eq!(proxy.accepted(), before);
    tokio::time::sleep(Duration::from_secs(5)).await;
    write().await;
    assert!(holds_within(Duration::from_secs(2), || proxy.accepted() == before + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_wants_more_replicas_says_so_at_once() {
    const LIMIT: Duration = Duration::from_secs(20);
    let server = Server::start_with(&ServerOptions::default().set("min-replicas-to-write", "1"));
    let backend = RedisBackend::builder(server.url()).connect_timeout(LIMIT).connect().await.unwrap();
    let started = Instant::now();
    let error = backend.put("owner:t", b"data").await.unwrap_err();
    assert!(matches!(reason(&error), Error::TooFewReplicas { .. }), "{error}");
    // Behind Sentinels, the client would wait for replicas.
    assert!(!reason(&error).outcome_is_unknown() && started.elapsed() < LIMIT / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_do_not_stay_with_a_server_that_takes_no_writes_any_more() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let builder = RedisBackend::builder(proxy.url()).wait_for_replicas(1, Duration::from_millis(50));
    let backend = builder.connect().await.unwrap();
    let error = backend.put("owner:t", b"data").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NotReplicated { .. }), "{error}");
    assert_eq!(server.wire().call(&["REPLICAOF", "127.0.0.1", "1"]), "+OK\r\n");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = proxy.accepted();
    let error = backend.put("owner:t", b"data").await.unwrap_err();
    assert!(matches!(reason(&error), Error::ReadOnly { .. }), "{error}");
    // The connections for writes and for reads. After one that fails, the client connects once more to find
    // out why.
    assert!(holds_within(Duration::from_secs(2), || proxy.accepted() >= before + 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_that_is_demoted_while_a_write_waits_is_left_by_reads_too() {
    const WITHIN: Duration = Duration::from_secs(5);
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::builder(proxy.url()).wait_for_replicas(1, WITHIN).connect().await.unwrap();
    let started = Instant::now();
    let writing = tokio::spawn({
        let backend = backend.clone();
        async move { backend.put("owner:t", b"data").await }
    });
    assert!(holds_within(WITHIN, || server.wire().exists("pmcp:tasks:owner:t")));
    let before = proxy.accepted();
    assert_eq!(server.wire().call(&["REPLICAOF", "127.0.0.1", "1"]), "+OK\r\n");
    let error = writing.await.unwrap().unwrap_err();
    assert!(matches!(reason(&error), Error::NotReplicated { acknowledged: 0, .. }), "{error}");
    assert!(started.elapsed() < WITHIN, "{:?}", started.elapsed());
    // The connections for writes and for reads. After one that fails, the client connects once more to find
    // out why.
    assert!(holds_within(Duration::from_secs(2), || proxy.accepted() >= before + 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_check_tells_what_is_wrong() {
    let mut server = Server::start();
    let backend = RedisBackend::builder(server.url()).connect_timeout(Duration::from_secs(2));
    let backend = backend.connect().await.unwrap();
    backend.check_health().await.unwrap();
    server.kill();
    let error = backend.check_health().await.unwrap_err();
    assert!(matches!(reason(&error), Error::NotConnected { .. } | Error::NoReply { .. }), "{error}");
    server.restart();
    backend.check_health().await.unwrap();

    // An answer to PING is not enough.
    let bare = Server::start_with(&ServerOptions::default().without_module());
    let proxy = Proxy::to(bare.port());
    proxy.set(Fault::Answer { command: "PMCPTASK.GET", reply: b"*-1\r\n".to_vec() });
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    proxy.set(Fault::None);
    let error = backend.check_health().await.unwrap_err();
    assert!(matches!(reason(&error), Error::ModuleNotLoaded { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_check_asks_every_primary_and_no_replica() {
    let cluster = Cluster::start(3, 1);
    let builder = RedisBackend::builder(cluster.url()).read_from_replicas(true);
    let backend = builder.connect_timeout(Duration::from_millis(500)).connect().await.unwrap();
    let calls_of = |command: &str| -> Vec<u64> {
        cluster.servers.iter().map(|server| server.calls_of(command)).collect()
    };
    let before = ["ping", "pmcptask.get"].map(calls_of);
    backend.check_health().await.unwrap();
    for (command, before) in ["ping", "pmcptask.get"].into_iter().zip(before) {
        let asked: Vec<_> =
            calls_of(command).iter().zip(before).map(|(after, before)| after - before).collect();
        assert_eq!(asked, [1, 1, 1, 0, 0, 0], "{command}");
    }
}

// Errors come at once, with the address and in the server's own words.

/// The text of the error for a URL.
async fn refusal(url: &str) -> String {
    let error = RedisBackend::new(url).await.unwrap_err();
    assert!(Error::of(&error).is_some(), "{error:?}");
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

/// An address of this machine other than loopback.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the system only looks up the route.
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

#[tokio::test(flavor = "multi_thread")]
async fn server_in_protected_mode_is_quoted() {
    let Some(own) = own_address() else {
        skipped("server_in_protected_mode_is_quoted", "this machine has no address but its loopback");
        return;
    };
    let server = Server::start_with(&ServerOptions::default().set("bind", &format!("127.0.0.1 {own}")));
    let address = format!("{own}:{}", server.port());
    let text = refusal(&format!("redis://{address}")).await;
    assert!(text.contains("protected mode") && text.contains(&address), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_has_no_room_is_quoted_by_the_first_connection_and_by_later_ones() {
    const WORDS: &str = "max number of clients reached";
    let server = Server::start();
    let builder = RedisBackend::builder(server.url()).connect_timeout(Duration::from_secs(1));
    let backend = builder.connect().await.unwrap();
    let mut wire = server.wire();
    wire.call(&["CONFIG", "SET", "maxclients", "1"]);
    assert_eq!(wire.call(&["CLIENT", "KILL", "TYPE", "normal"]), ":1\r\n");
    let address = format!("127.0.0.1:{}", server.port());
    let first = refusal(&server.url()).await;
    // The read comes first: until the client has seen that the connection was cut, a write could be sent over it, and be unknown.
    let read = backend.get("owner:t").await.unwrap_err();
    let write = backend.put("owner:t", b"data").await.unwrap_err();
    for later in [&read, &write] {
        assert!(matches!(reason(later), Error::NotConnected { .. }), "{later}");
    }
    for text in [first, read.to_string(), write.to_string()] {
        assert!(text.contains(WORDS) && text.contains(&address), "{text}");
    }
    wire.call(&["CONFIG", "SET", "maxclients", "1000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn call_that_finds_no_connection_names_the_address_and_the_last_cause() {
    let mut server = Server::start();
    let builder = RedisBackend::builder(server.url()).connect_timeout(Duration::from_millis(500));
    let backend = builder.connect().await.unwrap();
    server.stop();
    let error = backend.get("owner:t").await.unwrap_err();
    let text = error.to_string();
    let address = format!("127.0.0.1:{}", server.port());
    assert!(text.contains("Connection refused") && text.contains(&address), "{text}");
    assert_eq!(text.matches("Connection refused").count(), 1, "{text}");
    let Error::NotConnected { cause, .. } = reason(&error) else { panic!("{error:?}") };
    assert!(matches!(cause.as_deref(), Some(Error::NoServer { .. })), "{cause:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinel_is_told_from_a_server() {
    let server = Server::start();
    let monitor = format!("tasks 127.0.0.1 {} 1", server.port());
    let options = ServerOptions::default().sentinel().set("sentinel monitor", &monitor);
    let sentinel = Server::start_with(&options);
    for protocol in ["", "?protocol=2"] {
        let text = refusal(&format!("redis://127.0.0.1:{}{protocol}", sentinel.port())).await;
        let url = format!("redis+sentinel://127.0.0.1:{}/tasks", sentinel.port());
        assert!(text.contains("is a Sentinel") && text.contains(&url), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_of_the_url_are_honoured() {
    let server = Server::start();
    let rules = ["ACL", "SETUSER", "some+one", "on", ">pass&word", "~*", "+@all"];
    assert_eq!(server.wire().call(&rules), "+OK\r\n");
    let url = format!("redis://127.0.0.1:{}", server.port());
    for (parameters, database) in [("db=3", 3), ("/2?db=4", 4), ("protocol=2&db=5", 5), ("protocol=resp3", 0)]
    {
        let url = if parameters.starts_with('/') {
            format!("{url}{parameters}")
        } else {
            format!("{url}?{parameters}")
        };
        let backend = RedisBackend::new(&url).await.unwrap();
        backend.put(&format!("owner:{database}"), b"data").await.unwrap();
        let keyspace = server.wire().call(&["INFO", "keyspace"]);
        assert!(keyspace.contains(&format!("db{database}:keys=2")), "{parameters}: {keyspace}");
    }
    for (user, password) in [("username", "password"), ("user", "pass")] {
        let url = format!("{url}?{user}=some%2Bone&{password}=pass%26word&client_name={NAME}");
        let _backend = RedisBackend::new(&url).await.unwrap();
        assert!(named(&server).iter().any(|line| line.contains(" user=some+one ")), "{:?}", named(&server));
    }
    let silent = Proxy::to_nobody(Fault::Silence);
    let started = Instant::now();
    let text = refusal(&format!("{}?socket_connect_timeout=0.2", silent.url())).await;
    assert!(started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
    assert!(text.contains(&silent.port().to_string()), "{text}");
    let proxy = Proxy::to(server.port());
    let backend =
        RedisBackend::new(&format!("{}?socket_timeout=0.3&health_check_interval=60", proxy.url())).await;
    let backend = backend.unwrap();
    proxy.set(Fault::Silence);
    let started = Instant::now();
    let error = backend.get("owner:t").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoReply { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn parameter_that_cannot_be_honoured_is_refused_by_name_and_its_value_is_not_shown() {
    for parameter in [
        "max_connections=77777",
        "ssl_cert_reqs=77777",
        "retry_on_timeout=77777",
        "DB=77777",
        "db=77777x",
        "protocol=77777",
        "socket_timeout=77777s",
        "cluster=77777",
    ] {
        for start in
            ["redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/tasks"]
        {
            let text = refusal(&format!("{start}?{parameter}")).await;
            let (name, _) = parameter.split_once('=').unwrap();
            assert!(text.contains(&format!("'{name}'")) && !text.contains("77777"), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_a_url_is_refused_with_the_form() {
    for url in [
        "localhost:6379",
        "127.0.0.1",
        "",
        "http://localhost:6379",
        "redis://",
        "redis:///2",
        "redis://localhost:port",
        "redis://localhost:6379/two",
        "redis://one,two",
        "redis+sentinel://one,two",
        "redis+cluster://",
        "redis://user:s3cret/with-slash@localhost",
    ] {
        let text = refusal(url).await;
        assert!(text.contains("://[user:password@]host[:port]"), "{url}: {text}");
        assert!(!text.contains("s3cret"), "{url}: {text}");
    }
}
