//! With a circuit breaker, calls fail at once while the server is away, and succeed again once it is back.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects)]

use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{CircuitBreaker, Error, RedisBackend};
use pmcptask_tests::{Server, ServerOptions, reason};

/// How long a call waits for a server that is away.
const WAIT: Duration = Duration::from_millis(100);
const BREAKER: CircuitBreaker =
    CircuitBreaker { calls: 4, failure_rate: 0.5, pause: Duration::from_millis(500), trials: 2 };

async fn backend(server: &Server, breaker: CircuitBreaker) -> RedisBackend {
    let builder = RedisBackend::builder(server.url()).connect_timeout(WAIT).circuit_breaker(breaker);
    builder.connect().await.unwrap()
}

/// Makes calls until one fails at once. Returns how many waited in vain.
async fn calls_until_open(backend: &RedisBackend) -> usize {
    for waited in 0..50 {
        let started = Instant::now();
        let error = backend.put("owner:t", b"data").await.unwrap_err();
        if matches!(reason(&error), Error::CircuitOpen) {
            assert!(started.elapsed() < WAIT / 2, "{:?}", started.elapsed());
            return waited;
        }
        assert!(
            matches!(reason(&error), Error::NotConnected { .. } | Error::OutcomeUnknown { .. }),
            "{error}"
        );
    }
    panic!("it does not open")
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_fail_at_once_while_the_server_is_away_and_succeed_by_themselves_once_it_is_back() {
    let mut server = Server::start_with(&ServerOptions::default().set("appendonly", "yes"));
    let backend = backend(&server, BREAKER).await;
    for _ in 0..10 {
        backend.put("owner:t", b"data").await.unwrap();
    }
    server.kill();
    let waited = calls_until_open(&backend).await;
    assert!((2..=5).contains(&waited), "{waited}");
    // This includes all clones, and reads.
    let error = backend.clone().get("owner:t").await.unwrap_err();
    assert!(matches!(reason(&error), Error::CircuitOpen), "{error}");
    assert!(!reason(&error).outcome_is_unknown());
    // It stays open while the server stays away.
    tokio::time::sleep(BREAKER.pause * 2).await;
    assert!(calls_until_open(&backend).await <= 3);
    server.restart();
    let restarted = Instant::now();
    while let Err(error) = backend.get("owner:t").await {
        assert!(restarted.elapsed() < BREAKER.pause * 4, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for _ in 0..20 {
        backend.put("owner:t", b"data").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_that_is_no_success_is_no_failure_of_the_server() {
    let server = Server::start_with(&ServerOptions::default().set("pmcptask.max-record-bytes", "10"));
    let backend = backend(&server, BREAKER).await;
    for _ in 0..20 {
        assert!(matches!(backend.get("owner:none").await, Err(StorageError::NotFound { .. })));
        let lost = backend.put_if_version("owner:none", b"data", 1).await;
        assert!(matches!(lost, Err(StorageError::VersionConflict { .. })));
        let full = backend.put("owner:t", b"longer than allowed").await;
        assert!(matches!(full, Err(StorageError::CapacityExceeded { .. })));
        assert!(matches!(reason(&backend.list_by_prefix("x").await.unwrap_err()), Error::ListPrefix));
    }
    backend.put("owner:t", b"short").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_breaker_every_call_waits() {
    let mut server = Server::start();
    let backend = RedisBackend::builder(server.url()).connect_timeout(WAIT).connect().await.unwrap();
    server.kill();
    for _ in 0..30 {
        let started = Instant::now();
        let error = backend.get("owner:t").await.unwrap_err();
        assert!(matches!(reason(&error), Error::NotConnected { .. }), "{error}");
        assert!(started.elapsed() >= WAIT, "{:?}", started.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn breaker_that_could_not_work_is_refused() {
    let server = Server::start();
    let usual = CircuitBreaker::default();
    for breaker in [
        CircuitBreaker { calls: 0, ..usual },
        CircuitBreaker { trials: 0, ..usual },
        CircuitBreaker { failure_rate: 0.0, ..usual },
        CircuitBreaker { failure_rate: 1.1, ..usual },
        CircuitBreaker { failure_rate: f32::NAN, ..usual },
    ] {
        let error = RedisBackend::builder(server.url()).circuit_breaker(breaker).connect().await.unwrap_err();
        assert!(matches!(reason(&error), Error::Settings(_)), "{breaker:?}: {error}");
    }
    backend(&server, CircuitBreaker { failure_rate: 1.0, calls: 1, trials: 1, ..usual }).await;
}
