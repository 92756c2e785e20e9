//! The client keeps its promises while the server or the connection fails: it recovers by itself, never
//! hangs, and never writes twice.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{Applied, Error, RedisBackend};
use pmcptask_tests::{
    Cluster, Fault, Proxy, SentinelGroup, Server, ServerOptions, Wire, holds_within, reason,
};

#[tokio::test(flavor = "multi_thread")]
async fn server_restart_costs_the_calls_in_flight_and_no_more() {
    let mut server = Server::start_with(&ServerOptions::default().with_aof());
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    assert_eq!(backend.put("alice:t", b"one").await.unwrap(), 1);
    for version in 2..=4 {
        server.stop();
        server.restart();
        // No call was in flight, so none may fail.
        assert_eq!(backend.get("alice:t").await.unwrap().version, version - 1);
        assert_eq!(backend.put("alice:t", b"again").await.unwrap(), version);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn call_during_an_outage_waits_for_the_server_and_then_succeeds() {
    const WAITS: Duration = Duration::from_secs(20);
    let mut server = Server::start_with(&ServerOptions::default().with_aof());
    let backend = RedisBackend::builder(server.url()).connect_timeout(WAITS).connect().await.unwrap();
    backend.put("alice:t", b"one").await.unwrap();
    server.stop();
    let reading = tokio::spawn({
        let backend = backend.clone();
        async move { backend.get("alice:t").await }
    });
    // Longer than one round of attempts to reconnect.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let writing = tokio::spawn(async move { backend.put("alice:t", b"two").await });
    server.restart();
    let returned = Instant::now();
    assert!(reading.await.unwrap().is_ok());
    assert_eq!(writing.await.unwrap().unwrap(), 2);
    // Neither call waited for its timeout.
    assert!(returned.elapsed() < WAITS / 2, "recovered after {:?}", returned.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn call_while_the_server_is_away_fails_in_time_and_says_that_nothing_was_sent() {
    let mut server = Server::start();
    let limit = Duration::from_millis(500);
    let backend = RedisBackend::builder(server.url()).connect_timeout(limit).connect().await.unwrap();
    server.stop();
    // The read detects the lost connection. A write that detected it would not know its own outcome.
    let error = backend.get("alice:t").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NotConnected { .. }), "{error}");
    for _ in 0..3 {
        let started = Instant::now();
        let error = backend.put("alice:t", b"data").await.unwrap_err();
        assert!(matches!(reason(&error), Error::NotConnected { .. }), "{error}");
        assert!(!reason(&error).outcome_is_unknown());
        assert!(started.elapsed() < limit + BUSY_MACHINE / 2, "{:?}", started.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn call_to_a_host_that_never_answers_waits_no_longer_than_it_was_told() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend =
        RedisBackend::builder(proxy.url()).connect_timeout(CONNECT).response_timeout(RESPONSE).connect();
    let backend = backend.await.unwrap();
    backend.put("o:t", b"one").await.unwrap();
    proxy.set(Fault::Silence);
    proxy.cut();
    for _ in 0..2 {
        let started = Instant::now();
        let error = backend.get("o:t").await.unwrap_err();
        assert!(matches!(reason(&error), Error::NotConnected { .. }), "{error}");
        assert!(started.elapsed() < CONNECT + BUSY_MACHINE / 2, "{:?}", started.elapsed());
    }
    proxy.set(Fault::None);
    proxy.cut();
    recovers(&backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_reconnects_with_pauses_where_connections_are_closed_at_once() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = connect(proxy.url()).await;
    backend.put("o:t", b"one").await.unwrap();
    let before = proxy.accepted();
    proxy.set(Fault::Close);
    proxy.cut();
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let backend = backend.clone();
            tokio::spawn(async move { backend.get("o:t").await })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap().is_err());
    }
    // All clones together, in two seconds, with pauses that grow to 300 ms.
    let attempts = proxy.accepted() - before;
    assert!((3..40).contains(&attempts), "{attempts} attempts to connect");
    proxy.set(Fault::None);
    recovers(&backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_tries_to_reconnect_at_least_once_while_a_call_waits() {
    const CONNECT: Duration = Duration::from_millis(200);
    const WATCHED: Duration = Duration::from_secs(3);
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::builder(proxy.url()).connect_timeout(CONNECT).connect().await.unwrap();
    proxy.set(Fault::Close);
    proxy.cut();
    // Long enough for the pauses to reach their maximum.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = proxy.accepted();
    tokio::time::sleep(WATCHED).await;
    let attempts = proxy.accepted() - before;
    // At least one attempt in the time that a call waits.
    assert!(
        WATCHED / u32::try_from(attempts).unwrap() < CONNECT,
        "{attempts} attempts to connect in {WATCHED:?}"
    );
    drop(backend);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_whose_replies_do_not_come_is_replaced() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let limit = Duration::from_millis(300);
    let backend = RedisBackend::builder(proxy.url()).response_timeout(limit).connect().await.unwrap();
    backend.put("o:t", b"one").await.unwrap();
    // The connection stays open, but nothing is forwarded.
    proxy.set(Fault::Silence);
    let error = backend.get("o:t").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoReply { .. }), "{error}");
    let before = proxy.accepted();
    assert!(holds_within(RECOVERY, || proxy.accepted() > before));
    proxy.set(Fault::None);
    recovers(&backend).await;
}

// Crashes under load.

/// The timeouts. No call in these tests may exceed them by more than a busy machine costs.
const CONNECT: Duration = Duration::from_secs(2);
const RESPONSE: Duration = Duration::from_secs(2);
const BUSY_MACHINE: Duration = Duration::from_secs(2);
/// How long clients may take to recover. Only a broken client needs all of it: unit tests of the client check
/// the pauses before its attempts, on a paused clock.
const RECOVERY: Duration = Duration::from_secs(10);

async fn connect(url: String) -> RedisBackend {
    RedisBackend::builder(url).connect_timeout(CONNECT).response_timeout(RESPONSE).connect().await.unwrap()
}

/// What a writer knows about its own task.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: u64,
    unknown: u64,
    /// The data that may be stored: of the last acknowledged write, and of all writes with unknown outcome
    /// after it.
    candidates: Vec<String>,
    last_success: Option<Instant>,
}

/// Puts one record after another until told to stop, and checks every answer.
async fn write_until(ended: Arc<AtomicBool>, backend: RedisBackend, key: String, seen: Arc<Mutex<Seen>>) {
    let mut attempts = 0;
    let mut version = 0;
    // Writes since `version` with unknown outcome.
    let mut unknown = 0;
    while !ended.load(Ordering::SeqCst) {
        attempts += 1;
        let data = format!("{key} {attempts}");
        let started = Instant::now();
        let outcome = backend.put(&key, data.as_bytes()).await;
        assert!(started.elapsed() < CONNECT + RESPONSE + BUSY_MACHINE, "{:?}", started.elapsed());
        let mut seen = seen.lock().unwrap();
        match outcome {
            Ok(new) => {
                assert!(new > version && new <= version + 1 + unknown, "{key}: {new} after {version}");
                (version, unknown) = (new, 0);
                seen.acknowledged += 1;
                seen.candidates = vec![data];
                seen.last_success = Some(Instant::now());
            }
            Err(error) if reason(&error).outcome_is_unknown() => {
                unknown += 1;
                seen.unknown += 1;
                seen.candidates.push(data);
            }
            Err(error) => assert!(
                matches!(reason(&error), Error::NotConnected { .. } | Error::Loading { .. }),
                "{error}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_under_load_lose_no_acknowledged_write_and_repeat_none() {
    const WRITERS: usize = 4;
    let mut server = Server::start_with(&ServerOptions::default().with_aof());
    let backend = connect(server.url()).await;
    let ended = Arc::new(AtomicBool::new(false));
    let seen: Vec<Arc<Mutex<Seen>>> = (0..WRITERS).map(|_| Arc::default()).collect();
    let writers: Vec<_> = seen
        .iter()
        .enumerate()
        .map(|(n, seen)| {
            let writing = write_until(ended.clone(), backend.clone(), format!("o{n}:t"), seen.clone());
            tokio::spawn(writing)
        })
        .collect();
    let all_write_after = |moment: Instant| {
        seen.iter().all(|seen| seen.lock().unwrap().last_success.is_some_and(|success| success > moment))
    };
    for _ in 0..3 {
        // The server dies while all writers are writing.
        let moment = Instant::now();
        assert!(holds_within(RECOVERY, || all_write_after(moment)));
        server.kill();
        server.restart();
        let returned = Instant::now();
        assert!(holds_within(RECOVERY, || all_write_after(returned)), "{seen:?}");
    }
    ended.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    for (n, seen) in seen.iter().enumerate() {
        let task = backend.get(&format!("o{n}:t")).await.unwrap();
        let listed = backend.list_by_prefix(&format!("o{n}:")).await.unwrap();
        assert_eq!(listed.len(), 1);
        let seen = seen.lock().unwrap();
        let possible = seen.acknowledged..=seen.acknowledged + seen.unknown;
        assert!(possible.contains(&task.version), "version {}: {seen:?}", task.version);
        let data = String::from_utf8(task.data).unwrap();
        assert!(seen.candidates.contains(&data), "{data}: {seen:?}");
    }
    assert!(seen.iter().any(|seen| seen.lock().unwrap().unknown > 0), "no write was in flight: {seen:?}");
}

// One lost connection.

#[tokio::test(flavor = "multi_thread")]
async fn write_whose_reply_is_lost_was_carried_out_once_and_says_that_its_outcome_is_unknown() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = connect(proxy.url()).await;
    let direct = connect(server.url()).await;

    proxy.set(Fault::LoseReply(1));
    let error = backend.put("o:t", b"put").await.unwrap_err();
    assert!(matches!(reason(&error), Error::OutcomeUnknown { key, .. } if key == "o:t"), "{error}");
    let task = direct.get("o:t").await.unwrap();
    assert_eq!((task.version, task.data.as_slice()), (1, &b"put"[..]));

    proxy.set(Fault::LoseReply(2));
    assert_eq!(backend.get("o:t").await.unwrap().version, 1);
    let error = backend.put_if_version("o:t", b"cas", 1).await.unwrap_err();
    assert!(reason(&error).outcome_is_unknown(), "{error}");
    let task = direct.get("o:t").await.unwrap();
    assert_eq!((task.version, task.data.as_slice()), (2, &b"cas"[..]));

    proxy.set(Fault::LoseReply(1));
    let error = backend.delete("o:t").await.unwrap_err();
    assert!(reason(&error).outcome_is_unknown(), "{error}");
    assert!(matches!(direct.get("o:t").await, Err(StorageError::NotFound { .. })));
    // The backend goes on.
    assert!(!backend.delete("o:t").await.unwrap());
    assert_eq!(backend.put("o:t", b"new").await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_is_lost_on_its_way_was_not_carried_out_later_either() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = connect(proxy.url()).await;
    assert_eq!(backend.put("o:t", b"one").await.unwrap(), 1);
    proxy.set(Fault::LoseRequest);
    let error = backend.put("o:t", b"lost").await.unwrap_err();
    // The client cannot tell this from a lost reply.
    assert!(reason(&error).outcome_is_unknown(), "{error}");
    let task = backend.get("o:t").await.unwrap();
    assert_eq!((task.version, task.data.as_slice()), (1, &b"one"[..]));
    assert_eq!(backend.put_if_version("o:t", b"two", 1).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn read_whose_reply_is_lost_is_answered_all_the_same() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = connect(proxy.url()).await;
    backend.put("o:t", b"one").await.unwrap();
    for fault in [Fault::LoseReply(1), Fault::LoseRequest] {
        proxy.set(fault.clone());
        assert_eq!(backend.get("o:t").await.unwrap().data, b"one", "{fault:?}");
        proxy.set(fault);
        assert_eq!(backend.list_by_prefix("o:").await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_the_server_ends_between_calls_costs_no_call() {
    let server = Server::start();
    let backend = connect(server.url()).await;
    backend.put("o:t", b"one").await.unwrap();
    for version in 2..=5 {
        assert_eq!(server.wire().call(&["CLIENT", "KILL", "TYPE", "normal"]).lines().count(), 1);
        assert_eq!(backend.get("o:t").await.unwrap().version, version - 1);
        assert_eq!(backend.put("o:t", b"more").await.unwrap(), version);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_under_load_mix_no_answers_up() {
    let server = Server::start();
    let proxy = Arc::new(Proxy::to(server.port()));
    let backend = connect(proxy.url()).await;
    let readers = 16;
    for n in 0..readers {
        backend.put(&format!("o:t{n}"), format!("data {n}").as_bytes()).await.unwrap();
    }
    let calls: Vec<_> = (0..readers)
        .map(|n| {
            let backend = backend.clone();
            tokio::spawn(async move {
                let mut answers = 0;
                for _ in 0..200 {
                    match backend.get(&format!("o:t{n}")).await {
                        Ok(task) => {
                            assert_eq!(task.data, format!("data {n}").as_bytes());
                            answers += 1;
                        }
                        // No connection may live long enough for a call that started at a bad time.
                        Err(error) => assert!(
                            matches!(reason(&error), Error::NoReply { .. } | Error::NotConnected { .. }),
                            "{error}"
                        ),
                    }
                }
                assert!(answers > 0);
            })
        })
        .collect();
    while calls.iter().any(|call| !call.is_finished()) {
        proxy.cut();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    for call in calls {
        call.await.unwrap();
    }
}

/// A call that starts while its connection ends gets no reply. It must not wait for the response timeout to
/// find that out.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn call_that_meets_the_end_of_its_connection_hears_of_it_at_once() {
    const ROUNDS: usize = 150;
    const CALLERS: usize = 32;
    let server = Server::start();
    let mut wire = server.wire();
    for round in 0..ROUNDS {
        // Long enough to reconnect on a busy machine.
        let backend = RedisBackend::builder(server.url()).connect_timeout(RESPONSE * 5).connect();
        let backend = backend.await.unwrap();
        let ends = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (backend, ends) = (backend.clone(), ends.clone());
                tokio::spawn(async move {
                    let mut longest = Duration::ZERO;
                    while !ends.load(Ordering::SeqCst) {
                        let started = Instant::now();
                        let _ = backend.get("o:t").await;
                        longest = longest.max(started.elapsed());
                    }
                    longest
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(3)).await;
        wire.call(&["CLIENT", "KILL", "TYPE", "normal"]);
        ends.store(true, Ordering::SeqCst);
        for caller in callers {
            let longest = caller.await.unwrap();
            assert!(longest < BUSY_MACHINE, "round {round}: {longest:?}");
        }
    }
}

// A slow server.

#[tokio::test(flavor = "multi_thread")]
async fn late_reply_fails_its_call_in_time_and_is_never_the_answer_to_another() {
    let limit = Duration::from_millis(300);
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::builder(proxy.url()).response_timeout(limit).connect().await.unwrap();
    for n in 0..8 {
        backend.put(&format!("o:t{n}"), format!("data {n}").as_bytes()).await.unwrap();
    }
    proxy.set(Fault::Hold);
    let started = Instant::now();
    let error = backend.put("o:t0", b"late").await.unwrap_err();
    assert!(matches!(reason(&error), Error::OutcomeUnknown { .. }), "{error}");
    let error = backend.get("o:t1").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoReply { .. }), "{error}");
    assert!(started.elapsed() < 2 * limit + BUSY_MACHINE, "{:?}", started.elapsed());
    // The late replies arrive while these calls are in flight.
    proxy.set(Fault::None);
    let until = Instant::now() + 4 * limit;
    let mut answers = 0;
    while Instant::now() < until || answers == 0 {
        for n in 1..8 {
            match backend.get(&format!("o:t{n}")).await {
                Ok(task) => {
                    assert_eq!(task.data, format!("data {n}").as_bytes());
                    answers += 1;
                }
                Err(error) => assert!(matches!(reason(&error), Error::NoReply { .. }), "{error}"),
            }
        }
    }
    // The write was only late.
    let task = backend.get("o:t0").await.unwrap();
    assert_eq!((task.version, task.data.as_slice()), (2, &b"late"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_pauses_its_clients_fails_calls_in_time_and_recovers() {
    let limit = Duration::from_millis(300);
    let server = Server::start();
    let backend = RedisBackend::builder(server.url()).response_timeout(limit).connect().await.unwrap();
    assert_eq!(backend.put("o:t", b"one").await.unwrap(), 1);
    let mut wire = server.wire();
    assert_eq!(wire.call(&["CLIENT", "PAUSE", "1000", "ALL"]), "+OK\r\n");
    let started = Instant::now();
    let calls = (backend.put("o:t", b"two"), backend.get("o:t"), backend.list_by_prefix("o:"));
    let (put, get, list) = tokio::join!(calls.0, calls.1, calls.2);
    assert!(started.elapsed() < limit + BUSY_MACHINE, "{:?}", started.elapsed());
    assert!(reason(&put.unwrap_err()).outcome_is_unknown());
    assert!(matches!(reason(&get.unwrap_err()), Error::NoReply { .. }));
    assert!(matches!(reason(&list.unwrap_err()), Error::NoReply { .. }));
    // The reply comes once the pause is over. By then the waiting write has been carried out once, or not
    // at all.
    wire.call(&["PING"]);
    let version = backend.get("o:t").await.unwrap().version;
    assert!((1..=2).contains(&version), "{version}");
    assert_eq!(backend.put("o:t", b"three").await.unwrap(), version + 1);
}

// Servers that refuse for a while.

#[tokio::test(flavor = "multi_thread")]
async fn client_recovers_from_a_password_that_was_wrong_for_a_while() {
    for (password, url) in [("", ""), ("secret", ":secret@")] {
        let server = Server::start();
        let mut wire = server.wire();
        wire.call(&["CONFIG", "SET", "requirepass", password]);
        let backend = connect(server.url().replace("//", &format!("//{url}"))).await;
        backend.put("o:t", b"one").await.unwrap();
        wire.call(&["CONFIG", "SET", "requirepass", "changed"]);
        wire.call(&["CLIENT", "KILL", "TYPE", "normal"]);
        for _ in 0..2 {
            let error = backend.get("o:t").await.unwrap_err();
            assert!(matches!(reason(&error), Error::Authentication { .. }), "{error}");
            let error = backend.put("o:t", b"no").await.unwrap_err();
            assert!(matches!(reason(&error), Error::Authentication { .. }), "{error}");
        }
        wire.call(&["CONFIG", "SET", "requirepass", password]);
        recovers(&backend).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_recovers_from_a_server_that_had_no_room_for_it() {
    let server = Server::start();
    let backend = connect(server.url()).await;
    backend.put("o:t", b"one").await.unwrap();
    let mut wire = server.wire();
    wire.call(&["CONFIG", "SET", "maxclients", "1"]);
    assert_eq!(wire.call(&["CLIENT", "KILL", "TYPE", "normal"]), ":1\r\n");
    let error = backend.get("o:t").await.unwrap_err();
    assert!(!reason(&error).to_string().is_empty());
    wire.call(&["CONFIG", "SET", "maxclients", "1000"]);
    recovers(&backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_recovers_from_a_stranger_that_answered_for_a_while() {
    for reply in strangers() {
        let server = Server::start();
        let proxy = Proxy::to(server.port());
        let backend =
            RedisBackend::builder(proxy.url()).connect_timeout(CONNECT / 4).connect().await.unwrap();
        backend.put("o:t", b"one").await.unwrap();
        proxy.set(reply.clone());
        proxy.cut();
        let started = Instant::now();
        let error = backend.get("o:t").await.unwrap_err();
        assert!(started.elapsed() < CONNECT + RESPONSE + BUSY_MACHINE, "{reply:?}: {:?}", started.elapsed());
        assert!(!reason(&error).to_string().is_empty(), "{reply:?}");
        proxy.set(Fault::None);
        proxy.cut();
        recovers(&backend).await;
    }
}

/// Calls succeed again by themselves.
async fn recovers(backend: &RedisBackend) {
    let started = Instant::now();
    let mut last = backend.get("o:t").await;
    while last.is_err() && started.elapsed() < RECOVERY {
        tokio::time::sleep(Duration::from_millis(20)).await;
        last = backend.get("o:t").await;
    }
    let task = last.unwrap_or_else(|error| panic!("not recovered: {error}"));
    assert_eq!(task.data, b"one");
    assert!(backend.put("o:t", b"after").await.is_ok());
}

/// A script that keeps a server busy until it is killed.
struct Script {
    wire: Wire,
    running: JoinHandle<String>,
}

impl Script {
    fn keeps_busy(server: &Server) -> Self {
        let (mut wire, mut script) = (server.wire(), server.wire());
        wire.call(&["CONFIG", "SET", "busy-reply-threshold", "1"]);
        let running = thread::spawn(move || script.call(&["EVAL", "while true do end", "0"]));
        assert!(holds_within(CONNECT, || wire.call(&["PING"]).starts_with("-BUSY")));
        Self { wire, running }
    }

    fn kill(mut self) {
        assert_eq!(self.wire.call(&["SCRIPT", "KILL"]), "+OK\r\n");
        assert!(self.running.join().unwrap().starts_with('-'));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn script_that_keeps_the_server_busy_is_waited_out() {
    let server = Server::start();
    let backend = RedisBackend::builder(server.url()).connect_timeout(5 * CONNECT).connect().await.unwrap();
    backend.put("o:t", b"one").await.unwrap();
    let script = Script::keeps_busy(&server);
    let calls = tokio::spawn(async move {
        let version = backend.put("o:t", b"two").await?;
        Ok::<_, StorageError>((version, backend.get("o:t").await?.version))
    });
    tokio::time::sleep(CONNECT / 4).await;
    assert!(!calls.is_finished());
    script.kill();
    assert_eq!(calls.await.unwrap().unwrap(), (2, 2));
}

/// URLs of a server, of a cluster and of Sentinels, in every form that makes the client send something before
/// its first call; each with the server that is talked to.
struct Targets {
    single: Server,
    cluster: Cluster,
    watched: SentinelGroup,
}

impl Targets {
    fn start() -> Self {
        let single = Server::start();
        single.wire().call(&["ACL", "SETUSER", "alice", "on", ">sesame", "~*", "+@all"]);
        Self { single, cluster: Cluster::start(1, 0), watched: SentinelGroup::start(0) }
    }

    fn all(&self) -> Vec<(String, &Server)> {
        let port = self.single.port();
        let mut all = vec![
            (self.cluster.url(), &self.cluster.servers[0]),
            (self.watched.url(), &self.watched.servers[0]),
            (format!("{}/3", self.watched.url()), &self.watched.servers[0]),
        ];
        for form in ["", "3", "?protocol=2", "3?protocol=2"] {
            all.push((format!("{}{form}", self.single.url()), &self.single));
            all.push((format!("redis://alice:sesame@127.0.0.1:{port}/{form}"), &self.single));
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn script_that_keeps_a_server_busy_is_waited_out_when_connecting_too() {
    let targets = Targets::start();
    for (url, server) in targets.all() {
        let script = Script::keeps_busy(server);
        let builder = RedisBackend::builder(&url).connect_timeout(5 * CONNECT).client_name("patient");
        let connecting = tokio::spawn(builder.connect());
        tokio::time::sleep(CONNECT / 4).await;
        let is_waiting = !connecting.is_finished();
        script.kill();
        let backend = connecting.await.unwrap().unwrap_or_else(|error| panic!("{url}: {error}"));
        assert!(is_waiting, "{url}");
        backend.put("o:t", b"one").await.unwrap();
        // What the server did not do while it was busy, it did later.
        let clients = server.wire().call(&["CLIENT", "LIST"]);
        assert!(clients.contains(" name=patient "), "{url}: {clients}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn script_that_goes_on_for_too_long_is_named_as_what_keeps_the_server_busy_when_connecting_too() {
    const LIMIT: Duration = Duration::from_secs(1);
    let targets = Targets::start();
    for (url, server) in targets.all() {
        let script = Script::keeps_busy(server);
        let started = Instant::now();
        let connected = RedisBackend::builder(&url).connect_timeout(LIMIT).connect().await;
        let waited = started.elapsed();
        script.kill();
        let error = connected.unwrap_err();
        assert!(error.to_string().contains("BUSY"), "{url}: {error}");
        assert!(reason(&error).is_transient(), "{url}: {error:?}");
        assert_eq!(reason(&error).was_applied(), Applied::No, "{url}: {error:?}");
        // To connect, and then to find out whether the server has the module.
        assert!(waited < 2 * LIMIT + BUSY_MACHINE / 2, "{url}: {waited:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connection_to_a_database_is_replaced_when_the_script_that_keeps_the_server_busy_ends() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let builder = |limit| RedisBackend::builder(format!("{}3", proxy.url())).connect_timeout(limit);
    let [patient, hasty] = [5 * CONNECT, CONNECT / 2].map(builder);
    let (patient, hasty) = (patient.connect().await.unwrap(), hasty.connect().await.unwrap());
    patient.put("o:t", b"one").await.unwrap();
    let script = Script::keeps_busy(&server);
    proxy.cut();
    let reading = tokio::spawn(async move { patient.get("o:t").await });
    let error = hasty.get("o:t").await.unwrap_err();
    assert!(error.to_string().contains("BUSY"), "{error}");
    assert!(reason(&error).is_transient(), "{error:?}");
    assert!(!reading.is_finished());
    script.kill();
    assert_eq!(reading.await.unwrap().unwrap().version, 1);
    recovers(&hasty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_loads_its_data_is_waited_out_when_connecting_too() {
    // Loading takes about two seconds, and the server answers every few keys meanwhile.
    let options = ServerOptions::default()
        .set("key-load-delay", "2000")
        .set("loading-process-events-interval-bytes", "1024")
        .set("enable-debug-command", "yes");
    let server = Server::start_with(&options);
    let mut wire = server.wire();
    wire.call(&["ACL", "SETUSER", "alice", "on", ">sesame", "~*", "+@all"]);
    let mut filling = redis::pipe();
    for n in 0..1_000 {
        filling.cmd("PMCPTASK.PUT").arg(format!("pmcp:tasks:o:t{n}")).arg("pmcp:idx:o").arg("d".repeat(500));
    }
    filling.exec(&mut server.connection()).unwrap();
    for form in ["", "3", "?protocol=2", "3?protocol=2"] {
        let url = format!("redis://alice:sesame@127.0.0.1:{}/{form}", server.port());
        let mut loader = server.wire();
        let loading = thread::spawn(move || loader.call(&["DEBUG", "RELOAD"]));
        assert!(holds_within(CONNECT, || wire.call(&["PING"]).starts_with("-LOADING")));
        // Enough for a few answers, and over before the data is loaded.
        let builder = RedisBackend::builder(&url).connect_timeout(Duration::from_secs(1));
        let error = builder.clone().connect().await.unwrap_err();
        assert!(matches!(reason(&error), Error::Loading { .. }), "{url}: {error:?}");
        builder.connect_timeout(5 * CONNECT).connect().await.unwrap().put("o:t", b"one").await.unwrap();
        assert_eq!(loading.join().unwrap(), "+OK\r\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn script_that_goes_on_for_too_long_is_named_as_what_keeps_the_server_busy() {
    let server = Server::start();
    let backend = RedisBackend::builder(server.url()).connect_timeout(CONNECT / 4).connect().await.unwrap();
    let script = Script::keeps_busy(&server);
    let started = Instant::now();
    let error = backend.put("o:t", b"one").await.unwrap_err();
    assert!(started.elapsed() >= CONNECT / 4, "{:?}", started.elapsed());
    assert!(error.to_string().contains("BUSY") && !reason(&error).outcome_is_unknown(), "{error}");
    script.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn list_that_the_server_ends_the_connection_for_is_read_twice_at_most_and_says_why() {
    let options = ServerOptions::default().set("client-output-buffer-limit", "normal 1mb 0 0");
    let server = Server::start_with(&options);
    let backend = connect(server.url()).await;
    for task in 0..300 {
        backend.put(&format!("o:{task}"), &[b'x'; 10_000]).await.unwrap();
    }
    let error = backend.list_by_prefix("o:").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoReply { .. }), "{error:?}");
    assert!(error.to_string().contains("client-output-buffer-limit"), "{error}");
    let lists = server.calls_of("pmcptask.list");
    assert!(lists <= 2, "{lists} lists");
    assert_eq!(backend.get("o:1").await.unwrap().version, 1);
}

// Runtimes that end.

#[test]
fn backend_outlives_the_runtime_that_it_was_made_in() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let (server, cluster, watched) = (Server::start(), Cluster::start(1, 0), SentinelGroup::start(0));
    let builders = [
        RedisBackend::builder(server.url()),
        RedisBackend::builder(server.url()).wait_for_replicas(1, Duration::from_millis(50)),
        RedisBackend::builder(cluster.url()),
        RedisBackend::builder(watched.url()),
    ];
    for (number, builder) in builders.into_iter().enumerate() {
        let key = format!("o{number}:t");
        let backend = runtime().block_on(builder.connect()).unwrap();
        for version in 1..=3 {
            runtime().block_on(async {
                match backend.put(&key, b"data").await {
                    Err(error) if number == 1 => {
                        assert!(matches!(reason(&error), Error::NotReplicated { .. }), "{error}");
                    }
                    put => assert_eq!(put.unwrap(), version),
                }
                assert_eq!(backend.get(&key).await.unwrap().version, version);
                backend.check_health().await.unwrap();
            });
        }
    }
}

#[test]
fn read_that_is_under_way_when_the_runtime_of_its_connection_ends_is_answered() {
    let [first, second] = [(); 2].map(|()| tokio::runtime::Runtime::new().unwrap());
    let server = Server::start();
    let backend = first.block_on(connect(server.url()));
    first.block_on(backend.put("o:t", b"one")).unwrap();
    server.wire().call(&["CLIENT", "PAUSE", "500", "ALL"]);
    let reading = second.spawn({
        let backend = backend.clone();
        async move { backend.get("o:t").await }
    });
    thread::sleep(Duration::from_millis(100));
    drop(first);
    assert_eq!(second.block_on(reading).unwrap().unwrap().data, b"one");
}

// Something other than our server.

fn answer(command: &'static str, reply: &[u8]) -> Fault {
    Fault::Answer { command, reply: reply.to_vec() }
}

fn strangers() -> Vec<Fault> {
    vec![
        Fault::Silence,
        Fault::Close,
        answer("", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
        answer("", b"\x00\x01\xfe\xff garbage \xc3\x28 without an end"),
        answer("", b"garbage\r\n"),
        answer("", b"$99999999999999999999\r\n"),
        answer("", b"220 mail.example ESMTP\r\n"),
        answer("", b""),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_redis_fails_construction_in_time_with_one_sentence() {
    let limit = Duration::from_millis(400);
    for fault in strangers() {
        let stranger = Proxy::to_nobody(fault.clone());
        let started = Instant::now();
        let builder = RedisBackend::builder(stranger.url()).connect_timeout(limit).response_timeout(limit);
        let error = builder.connect().await.unwrap_err();
        assert!(started.elapsed() < 3 * limit + BUSY_MACHINE, "{fault:?}: {:?}", started.elapsed());
        let text = error.to_string();
        assert!(matches!(reason(&error), Error::NoServer { .. }), "{fault:?}: {error:?}");
        assert!(text.contains("no Redis server answers at 127.0.0.1:"), "{fault:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{fault:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_answers_all_commands_alike_fails_construction_with_one_sentence() {
    for reply in ["+OK\r\n", ":1\r\n", "$2\r\nOK\r\n", "*0\r\n", "-ERR unknown command\r\n", "-ERR no\r\n"] {
        let stranger = Proxy::to_nobody(answer("", reply.as_bytes()));
        let Err(error) = RedisBackend::builder(stranger.url()).connect().await else {
            panic!("a server that answers {reply:?} to everything was taken for one with the module");
        };
        assert!(Error::of(&error).is_some(), "{reply:?}: {error:?}");
        let text = error.to_string();
        assert_eq!(text.lines().count(), 1, "{reply:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reply_of_another_shape_is_an_error_that_tells_no_data() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = connect(proxy.url()).await;
    backend.put("o:t", b"one").await.unwrap();
    let shapes = [
        "+secret\r\n",
        "$6\r\nsecret\r\n",
        ":-1\r\n",
        "*1\r\n$6\r\nsecret\r\n",
        "*2\r\n$6\r\nsecret\r\n:1\r\n",
        "*2\r\n:0\r\n$6\r\nsecret\r\n",
        "%1\r\n$6\r\nsecret\r\n:1\r\n",
        "~1\r\n$6\r\nsecret\r\n",
        ",1.5\r\n",
        "#t\r\n",
        "(12345678901234567890123\r\n",
        "*1\r\n*4\r\n$6\r\nsecret\r\n:1\r\n:1\r\n:1\r\n",
    ];
    for shape in shapes {
        proxy.set(answer("PMCPTASK.", shape.as_bytes()));
        let writes = [
            backend.put("o:t", b"two").await.err(),
            backend.put_if_version("o:t", b"two", 1).await.err(),
            backend.delete("o:t").await.err(),
        ];
        let reads = [backend.get("o:t").await.err(), backend.list_by_prefix("o:").await.err()];
        for (error, is_write) in
            writes.iter().map(|write| (write, true)).chain(reads.iter().map(|r| (r, false)))
        {
            let error = error.as_ref().unwrap_or_else(|| panic!("{shape:?} was taken for an answer"));
            assert!(matches!(reason(error), Error::UnexpectedReply { .. }), "{shape:?}: {error}");
            assert!(!error.to_string().contains("secret"), "{shape:?}: {error}");
            if is_write {
                assert!(reason(error).outcome_is_unknown(), "{shape:?}: {error}");
            }
        }
        proxy.set(Fault::None);
        assert_eq!(backend.get("o:t").await.unwrap().data, b"one", "{shape:?}");
    }
}
