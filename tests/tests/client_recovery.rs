//! The client keeps its promises while the server or the connection fails: it recovers by itself, never
//! hangs, and never writes twice.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::error::Error as _;
use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{Error, RedisBackend};
use pmcptask_tests::{Server, ServerOptions};

fn reason(error: &StorageError) -> &Error {
    error.source().and_then(|source| source.downcast_ref()).unwrap()
}

fn durable() -> ServerOptions {
    ServerOptions::default().set("appendonly", "yes").set("appendfsync", "always")
}

#[tokio::test(flavor = "multi_thread")]
async fn server_restart_costs_the_calls_in_flight_and_no_more() {
    let mut server = Server::start_with(&durable());
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
    let mut server = Server::start_with(&durable());
    let backend =
        RedisBackend::builder(server.url()).connect_timeout(Duration::from_secs(20)).connect().await.unwrap();
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
    assert!(returned.elapsed() < Duration::from_secs(1), "recovered after {:?}", returned.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn call_while_the_server_is_away_fails_in_time_and_says_that_nothing_was_sent() {
    let mut server = Server::start();
    let limit = Duration::from_millis(500);
    let backend = RedisBackend::builder(server.url()).connect_timeout(limit).connect().await.unwrap();
    server.stop();
    // A read finds out that the connection is lost; a write that did would not know its outcome.
    let error = backend.get("alice:t").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NotConnected { .. }), "{error}");
    for _ in 0..3 {
        let started = Instant::now();
        let error = backend.put("alice:t", b"data").await.unwrap_err();
        assert!(matches!(reason(&error), Error::NotConnected { .. }), "{error}");
        assert!(!reason(&error).outcome_is_unknown());
        assert!(started.elapsed() < limit + Duration::from_secs(3), "{:?}", started.elapsed());
    }
}
