//! Leases: one holder at a time, by the server's clock alone, whatever gets lost on the way.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{Error, Lease, Order, RedisBackend};
use pmcptask_tests::{
    Clock, Cluster, Fault, OK, Proxy, Server, ServerOptions, holds_within, integer, lua_backend, reason,
};
use tokio::time::sleep;

const LONG: Duration = Duration::from_mins(5);
const SHORT: Duration = Duration::from_millis(800);

async fn backends(server: &Server, cluster: &Cluster, prefix: &str) -> [RedisBackend; 2] {
    let connect = |url: String| RedisBackend::builder(url).prefix(prefix).connect();
    [connect(server.url()).await.unwrap(), connect(cluster.url()).await.unwrap()]
}

async fn backend(server: &Server) -> RedisBackend {
    RedisBackend::new(&server.url()).await.unwrap()
}

async fn acquire(backend: &RedisBackend, name: &str, duration: Duration) -> Option<Lease> {
    Lease::acquire(backend, name, duration).await.unwrap()
}

/// Acquires a lease as soon as nobody else holds it. It must be free [`SHORT`] after its last renewal, and this is after
/// that.
async fn acquire_when_free(backend: &RedisBackend, name: &str) -> Lease {
    let renewed = Instant::now();
    loop {
        let asked_after = renewed.elapsed();
        match acquire(backend, name, LONG).await {
            Some(lease) => return lease,
            // A key has expired once the clock is past its expiry.
            None => assert!(asked_after <= SHORT + Duration::from_millis(2), "{asked_after:?}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

fn is_lost(error: &StorageError) -> bool {
    matches!(Error::of(error), Some(Error::LeaseLost { .. }))
}

/// The keys of all leases and of their indexes.
fn keys(server: &Server) -> Vec<String> {
    redis::cmd("KEYS").arg("pmcp:lease:*").query(&mut server.connection()).unwrap()
}

/// The key of the only lease.
fn key(server: &Server) -> String {
    let mut keys = keys(server);
    keys.retain(|key| key.starts_with("pmcp:lease:tasks:"));
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys.remove(0)
}

/// How long the only lease is left at the server, in ms; -2 if it is gone.
fn left_at_server(server: &Server, key: &str) -> i64 {
    integer(&server.wire().call(&["PTTL", key]))
}

/// The lease does not end at the server before its holder knows that it may have.
fn assert_ends_later_at_server(server: &Server, key: &str, lease: &Lease) {
    let asked = Instant::now();
    let at_server = u64::try_from(left_at_server(server, key)).unwrap();
    // The server leaves out the rest of a millisecond.
    let ends_at_server = asked + Duration::from_millis(at_server + 1);
    let ends_here = Instant::now() + lease.remaining();
    assert!(ends_here <= ends_at_server, "{:?} too late", ends_here - ends_at_server);
}

// One holder.

#[tokio::test(flavor = "multi_thread")]
async fn of_64_who_acquire_a_lease_one_gets_it_and_after_its_release_one_of_the_others() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for backend in backends(&server, &cluster, "race").await {
        for name in ["name", "tenant:alice", "", "with space {and} braces", "}"] {
            let mut last_token = 0;
            for _ in 0..3 {
                let racers: Vec<_> = (0..64)
                    .map(|_| {
                        let backend = backend.clone();
                        tokio::spawn(async move { acquire(&backend, name, LONG).await })
                    })
                    .collect();
                let mut held = Vec::new();
                for racer in racers {
                    held.extend(racer.await.unwrap());
                }
                assert_eq!(held.len(), 1, "{name}");
                let lease = held.remove(0);
                assert_eq!(lease.name(), name);
                assert!(lease.is_valid() && lease.token() > last_token);
                last_token = lease.token();
                assert!(acquire(&backend, name, LONG).await.is_none());
                assert!(lease.release().await.unwrap());
            }
        }
        // Names are independent.
        assert!(acquire(&backend, "a", LONG).await.is_some());
        assert!(acquire(&backend, "b", LONG).await.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holder_that_renews_keeps_the_lease_for_many_durations_beside_racers() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    join_all(backends(&server, &cluster, "renew").await.into_iter().map(keeps_the_lease_beside_racers)).await;
}

async fn keeps_the_lease_beside_racers(backend: RedisBackend) {
    // A busy machine does not stand still for so long.
    let duration = 3 * SHORT;
    let mut lease = acquire(&backend, "name", duration).await.unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let racers: Vec<_> = (0..4)
        .map(|_| {
            let (backend, is_over) = (backend.clone(), is_over.clone());
            tokio::spawn(async move {
                while !is_over.load(Ordering::SeqCst) {
                    assert!(acquire(&backend, "name", LONG).await.is_none());
                    sleep(Duration::from_millis(5)).await;
                }
            })
        })
        .collect();
    let started = Instant::now();
    while started.elapsed() < 5 * duration {
        assert!(lease.is_valid());
        lease.renew().await.unwrap();
        sleep(duration / 20).await;
    }
    is_over.store(true, Ordering::SeqCst);
    for racer in racers {
        racer.await.unwrap();
    }
    assert!(lease.release().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn holder_that_stops_loses_the_lease_within_its_duration_and_knows_before_another_has_it() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for backend in backends(&server, &cluster, "stop").await {
        for renewals in 0..3 {
            let mut first = acquire(&backend, "name", SHORT).await.unwrap();
            for _ in 0..renewals {
                sleep(SHORT / 2).await;
                first.renew().await.unwrap();
            }
            let second = acquire_when_free(&backend, "name").await;
            assert!(!first.is_valid() && first.remaining().is_zero());
            assert!(second.token() > first.token());
            second.release().await.unwrap();
        }
    }
}

// Late and lost.

#[tokio::test(flavor = "multi_thread")]
async fn renewal_and_release_after_a_loss_say_so_and_leave_the_lease_of_another_alone() {
    let server = Server::start();
    let backend = backend(&server).await;
    for way in ["expiry", "PEXPIRE", "DEL", "FLUSHALL"] {
        let mut first = acquire(&backend, "name", SHORT).await.unwrap();
        let its_key = key(&server);
        match way {
            "expiry" => sleep(SHORT + Duration::from_millis(10)).await,
            "PEXPIRE" => drop(server.wire().call(&["PEXPIRE", &its_key, "0"])),
            "DEL" => drop(server.wire().call(&["DEL", &its_key])),
            _ => drop(server.wire().run("FLUSHALL")),
        }
        let error = first.renew().await.unwrap_err();
        assert!(is_lost(&error) && error.to_string().contains("\"name\""), "{way}: {error}");
        assert!(!reason(&error).outcome_is_unknown() && !reason(&error).is_transient());
        assert!(!first.is_valid());

        // Another has it, and its record is at the version that the first one's was at.
        let second = acquire(&backend, "name", LONG).await.unwrap();
        let its_key = key(&server);
        let before = server.dump_of(&its_key);
        assert!(is_lost(&first.renew().await.unwrap_err()), "{way}");
        assert!(!first.release().await.unwrap(), "{way}");
        assert_eq!(server.dump_of(&its_key), before, "{way}");
        assert!(second.is_valid());
        assert_ends_later_at_server(&server, &its_key, &second);
        assert!(second.release().await.unwrap(), "{way}");
        assert_eq!(keys(&server), Vec::<String>::new(), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_grows_after_expiry_release_loss_and_restart() {
    let mut server = Server::start_with(&ServerOptions::default().with_aof());
    let backend = backend(&server).await;
    let mut tokens = Vec::new();
    for round in 0..40 {
        let lease = loop {
            match Lease::acquire(&backend, "name", Duration::from_millis(100)).await {
                Ok(Some(lease)) => break lease,
                Ok(None) => sleep(Duration::from_millis(5)).await,
                // The machine is too busy.
                Err(error) => assert!(is_lost(&error), "{error}"),
            }
        };
        tokens.push(lease.token());
        match round % 4 {
            0 => drop(lease),
            1 => drop(lease.release().await.unwrap()),
            2 => drop(server.wire().run("FLUSHALL")),
            _ if round == 3 => {
                server.stop();
                server.restart();
            }
            _ => {}
        }
    }
    assert!(tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
}

/// While one asks for the lease, another gets it and gives it back.
#[tokio::test(flavor = "multi_thread")]
async fn token_grows_in_the_order_in_which_the_lease_is_held_and_not_asked_for() {
    let server = Server::start();
    let (proxy, quick) = (Proxy::to(server.port()), backend(&server).await);
    let slow = RedisBackend::new(&proxy.url()).await.unwrap();
    proxy.set(Fault::Delay(SHORT));
    let asked = tokio::spawn(async move { acquire(&slow, "name", LONG).await });
    assert!(holds_within(LONG, || server.calls_of("time") > 0));
    let first = acquire(&quick, "name", LONG).await.unwrap();
    let first_token = first.token();
    assert!(first.release().await.unwrap());
    assert!(asked.await.unwrap().unwrap().token() > first_token);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_reply_leaves_a_lease_that_its_holder_never_believes_in_for_longer_than_the_server() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    let other = self::backend(&server).await;
    // Acquiring: nobody holds it, and it ends by itself.
    for command in ["TIME", "PMCPTASK.PUT", "PEXPIRE", "HDEL"] {
        proxy.set(Fault::LoseReplyTo(command));
        match Lease::acquire(&backend, "name", SHORT).await {
            // A read is made again.
            Ok(lease) => {
                assert!(command == "TIME" && lease.unwrap().release().await.unwrap(), "{command}");
            }
            Err(error) => {
                assert!(reason(&error).outcome_is_unknown(), "{command}: {error}");
                assert!(acquire_when_free(&other, "name").await.release().await.unwrap(), "{command}");
            }
        }
    }
    // Renewing: the lease is valid for as long as before, and the next renewal succeeds.
    let mut lease = acquire(&backend, "name", LONG).await.unwrap();
    let its_key = key(&server);
    sleep(SHORT).await;
    let before = lease.remaining();
    proxy.set(Fault::LoseReplyTo("PEXPIRE"));
    let error = lease.renew().await.unwrap_err();
    assert!(reason(&error).outcome_is_unknown(), "{error}");
    assert!(lease.is_valid() && lease.remaining() <= before);
    assert_ends_later_at_server(&server, &its_key, &lease);
    // The first of these waits for the next connection, and that time counts.
    for _ in 0..2 {
        lease.renew().await.unwrap();
    }
    assert!(lease.remaining() > before);
    assert_ends_later_at_server(&server, &its_key, &lease);
    // A release whose reply is lost has released.
    proxy.set(Fault::LoseReplyTo("PMCPTASK.DEL"));
    assert!(reason(&lease.release().await.unwrap_err()).outcome_is_unknown());
    assert!(acquire(&other, "name", LONG).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_replies_shorten_what_the_holder_believes_and_too_slow_ones_give_no_lease() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    proxy.set(Fault::Delay(SHORT / 2));
    let mut lease = acquire(&backend, "name", 4 * SHORT).await.unwrap();
    let its_key = key(&server);
    for _ in 0..3 {
        assert!(lease.remaining() <= 7 * SHORT / 2);
        assert_ends_later_at_server(&server, &its_key, &lease);
        lease.renew().await.unwrap();
    }
    assert!(lease.release().await.unwrap());
    proxy.set(Fault::Delay(SHORT + SHORT / 4));
    assert!(is_lost(&Lease::acquire(&backend, "name", SHORT).await.unwrap_err()));
    // All in time at the server, but the last replies come after the end.
    proxy.set(Fault::Delay(SHORT / 3));
    let puts = server.calls_of("pmcptask.put");
    let acquired = tokio::spawn(async move { Lease::acquire(&backend, "other", SHORT).await });
    assert!(holds_within(LONG, || server.calls_of("pmcptask.put") > puts));
    // The reply to the PUT is on its way.
    sleep(SHORT / 8).await;
    proxy.set(Fault::Delay(2 * SHORT));
    assert!(is_lost(&acquired.await.unwrap().unwrap_err()));
}

// Clocks.

#[tokio::test(flavor = "multi_thread")]
async fn lease_lasts_its_duration_although_the_clocks_of_client_and_server_differ() {
    const HOUR: i64 = 3_600;
    for ahead in [-HOUR, 0, HOUR] {
        let clock = Clock::new();
        clock.set_ahead(ahead);
        let server = Server::start_with(&clock.of(ServerOptions::default()));
        let time = server.wire().run("TIME");
        let time: i64 = time.lines().nth(2).unwrap().parse().unwrap();
        assert!((time - pmcptask_tests::now_ms() / 1_000 - ahead).abs() < 60, "the server's clock: {time}");
        let backend = backend(&server).await;
        let mut lease = acquire(&backend, "name", LONG).await.unwrap();
        let its_key = key(&server);
        for _ in 0..2 {
            let left = left_at_server(&server, &its_key);
            let expected = i64::try_from(LONG.as_millis()).unwrap();
            assert!((expected - 1_000..=expected).contains(&left), "{ahead}: {left}");
            assert_ends_later_at_server(&server, &its_key, &lease);
            lease.renew().await.unwrap();
        }
        assert!(lease.release().await.unwrap());
        let first = acquire(&backend, "name", SHORT).await.unwrap();
        let second = acquire_when_free(&backend, "name").await;
        assert!(!first.is_valid() && second.token() > first.token());
    }
}

/// As in a failover between two requests of one acquisition: one server tells the time, another stores the record.
#[tokio::test(flavor = "multi_thread")]
async fn time_of_another_server_gives_no_lease_that_is_longer_here_than_there() {
    const HOUR: i64 = 3_600;
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    for ahead in [-HOUR, HOUR] {
        let seconds = (pmcptask_tests::now_ms() / 1_000 + ahead).to_string();
        let reply = format!("*2\r\n${}\r\n{seconds}\r\n$1\r\n0\r\n", seconds.len()).into_bytes();
        proxy.set(Fault::AnswerOne { command: "TIME", reply });
        match Lease::acquire(&backend, "name", LONG).await {
            Err(error) => assert!(ahead < 0 && is_lost(&error), "{error}"),
            Ok(lease) => {
                let (lease, key) = (lease.unwrap(), key(&server));
                assert!(ahead > 0 && lease.is_valid());
                assert!(left_at_server(&server, &key) <= i64::try_from(LONG.as_millis()).unwrap());
                assert_ends_later_at_server(&server, &key, &lease);
                lease.release().await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_lease_outlives_its_first_end_for_every_command() {
    let server = Server::start();
    let backend = backend(&server).await;
    // The record's own field counts in seconds, so more than one has to pass.
    let mut lease = acquire(&backend, "name", Duration::from_millis(1_500)).await.unwrap();
    for _ in 0..8 {
        sleep(Duration::from_millis(500)).await;
        lease.renew().await.unwrap();
        assert!(acquire(&backend, "name", LONG).await.is_none());
    }
    // Not hidden by the module either.
    assert_eq!(integer(&server.wire().call(&["PMCPTASK.DEL", &key(&server), "pmcp:lease:idx:name"])), 1);
}

// Costs, names, permissions.

#[tokio::test(flavor = "multi_thread")]
async fn renewal_is_one_command() {
    let server = Server::start();
    // No PING of the client's comes in between.
    let backend = RedisBackend::builder(server.url()).keep_alive(LONG).connect().await.unwrap();
    let mut lease = acquire(&backend, "name", LONG).await.unwrap();
    let all = || server.wire().info_number("stats", "total_commands_processed");
    let asking = {
        let before = all();
        all() - before
    };
    let before = all();
    for _ in 0..100 {
        lease.renew().await.unwrap();
    }
    assert_eq!(all() - before, 100 + asking);
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_shows_in_no_list_of_an_owner_and_leaves_nothing_behind() {
    let server = Server::start();
    let backend = backend(&server).await;
    let old = lua_backend(&server.url()).await.unwrap();
    for owner in ["alice", "lease", "lease:tasks:alice", "tenant:alice"] {
        backend.put(&format!("{owner}:t"), b"{}").await.unwrap();
        let lease = acquire(&backend, owner, LONG).await.unwrap();
        for page in [Order::OldestFirst, Order::NewestFirst] {
            let tasks = backend.list_page(owner, None, 10, page).await.unwrap();
            assert_eq!(tasks.len(), 1, "{owner}");
        }
        assert_eq!(backend.list_by_prefix(&format!("{owner}:")).await.unwrap().len(), 1, "{owner}");
        let of_old = old.list_by_prefix(&format!("{owner}:")).await.unwrap();
        assert!(of_old.iter().all(|(key, _)| key == &format!("{owner}:t")), "{of_old:?}");
        assert_eq!(backend.trim(owner, 0).await.unwrap(), 1, "{owner}");
        assert!(lease.is_valid() && acquire(&backend, owner, LONG).await.is_none());
        assert!(lease.release().await.unwrap());
    }
    let lease = acquire(&backend, "dropped", SHORT).await.unwrap();
    drop(lease);
    let is_empty = || keys(&server).is_empty();
    assert!(holds_within(Duration::from_secs(10), is_empty), "{:?}", keys(&server));
}

#[tokio::test(flavor = "multi_thread")]
async fn user_needs_the_permissions_that_the_docs_name_and_none_that_is_missing_blocks_the_name() {
    const NEEDED: [&str; 5] = ["+pmcptask.put", "+pmcptask.del", "+time", "+pexpire", "+hdel"];
    let server = Server::start();
    let admin = backend(&server).await;
    let url = server.url().replace("//", "//limited:pw@");
    for missing in NEEDED.iter().map(Some).chain([None]) {
        let rules: Vec<_> = NEEDED.iter().filter(|rule| Some(*rule) != missing).copied().collect();
        let rules = format!("ACL SETUSER limited reset on >pw ~pmcp:* -@all {}", rules.join(" "));
        assert_eq!(server.wire().run(&rules), OK);
        let user = RedisBackend::new(&url).await.unwrap();
        let outcome = async { Lease::acquire(&user, "name", SHORT).await?.unwrap().release().await }.await;
        match missing {
            None => assert!(outcome.unwrap()),
            Some(missing) => {
                let error = outcome.unwrap_err();
                assert!(matches!(reason(&error), Error::NoPermission { .. }), "{missing}: {error}");
                assert!(error.to_string().contains(&missing[1..]), "{missing}: {error}");
            }
        }
        assert!(acquire_when_free(&admin, "name").await.release().await.unwrap(), "{missing:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn duration_that_no_lease_can_have_is_an_error_before_anything_is_sent() {
    let server = Server::start();
    let backend = backend(&server).await;
    for duration in [Duration::ZERO, Duration::from_millis(9), Duration::MAX] {
        let error = Lease::acquire(&backend, "name", duration).await.unwrap_err();
        assert!(matches!(reason(&error), Error::Settings(text) if text.contains("10 ms")), "{error}");
    }
    assert_eq!(server.calls_of("time"), 0);
}

/// The server's memory is full: that is not somebody else's lease.
#[tokio::test(flavor = "multi_thread")]
async fn full_server_is_an_error() {
    let server = Server::start();
    let backend = backend(&server).await;
    assert_eq!(server.wire().run("CONFIG SET maxmemory 1"), OK);
    let error = Lease::acquire(&backend, "name", LONG).await.unwrap_err();
    assert!(matches!(error, StorageError::CapacityExceeded { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_that_waits_for_a_replica_is_held_there_after_a_failover() {
    let primary = Server::start();
    let replica = Server::start_with(&ServerOptions::default().replica_of(&primary));
    let waits = RedisBackend::builder(primary.url()).wait_for_replicas(1, Duration::from_secs(5));
    let backend = waits.connect().await.unwrap();
    assert!(holds_within(Duration::from_secs(30), || replica.follows_or_leads()));
    let mut lease = acquire(&backend, "name", LONG).await.unwrap();
    lease.renew().await.unwrap();
    assert_eq!(replica.wire().run("REPLICAOF NO ONE"), OK);
    let backend = self::backend(&replica).await;
    assert!(acquire(&backend, "name", LONG).await.is_none());
    assert!(lease.is_valid());
    assert_ends_later_at_server(&replica, &key(&replica), &lease);
}

/// The server counts from this renewal on, whether or not a replica has it.
#[tokio::test(flavor = "multi_thread")]
async fn renewal_that_no_replica_confirms_is_an_error_and_holds_the_lease_all_the_same() {
    const DURATION: Duration = Duration::from_secs(20);
    let primary = Server::start();
    let replica = Server::start_with(&ServerOptions::default().replica_of(&primary));
    let waits = RedisBackend::builder(primary.url()).wait_for_replicas(1, Duration::from_secs(1));
    let backend = waits.connect().await.unwrap();
    assert!(holds_within(Duration::from_secs(30), || replica.follows_or_leads()));
    let mut lease = acquire(&backend, "name", DURATION).await.unwrap();
    replica.hang();
    sleep(DURATION / 4).await;
    let before = lease.remaining();
    let renewed = lease.renew().await;
    let after = lease.remaining();
    // A lease that is lost is lost, also then.
    redis::cmd("DEL").arg(key(&primary)).exec(&mut primary.connection()).unwrap();
    let lost = lease.renew().await;
    replica.go_on();
    let error = renewed.unwrap_err();
    assert!(matches!(Error::of(&error), Some(Error::NotReplicated { .. })), "{error}");
    assert!(after > before, "{after:?} {before:?}");
    assert!(is_lost(&lost.unwrap_err()) && !lease.is_valid());
}
