//! Lists of any length are read in pages. No task comes twice, and no task is left out that existed all
//! the time.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashSet;
use std::time::Duration;

use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{Error, RedisBackend};
use pmcptask_tests::{Cluster, Fault, Proxy, Server, holds_within, reason};

/// Creates tasks `from..to` of an owner. Each hundred share one creation time.
async fn fill(backend: &RedisBackend, tasks: std::ops::Range<usize>) {
    for task in tasks {
        let created = format!(r#"{{"task":{{"createdAt":"2026-01-01T00:00:{:02}Z"}}}}"#, task / 100);
        backend.put(&format!("owner:{task:05}"), created.as_bytes()).await.unwrap();
    }
}

fn all(tasks: std::ops::Range<usize>) -> Vec<String> {
    tasks.map(|task| format!("owner:{task:05}")).collect()
}

async fn listed(backend: &RedisBackend) -> Vec<String> {
    backend.list_by_prefix("owner:").await.unwrap().into_iter().map(|(key, _)| key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn list_of_a_page_is_one_round_trip_and_a_longer_one_is_read_page_by_page() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let mut filled = 0;
    for (tasks, round_trips) in [(999, 1), (1_000, 1), (1_001, 2), (2_500, 3)] {
        fill(&backend, filled..tasks).await;
        filled = tasks;
        let before = server.calls_of("pmcptask.list");
        // In order of creation, and of ids where creation times are equal.
        assert_eq!(listed(&backend).await, all(0..tasks));
        let calls = server.calls_of("pmcptask.list") - before;
        assert_eq!(calls, round_trips, "{tasks} tasks");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_as_long_as_they_are_told_to_be() {
    let server = Server::start();
    for page in [1, 2, 7, usize::MAX] {
        let backend = RedisBackend::builder(server.url()).list_page_size(page).connect().await.unwrap();
        fill(&backend, 0..20).await;
        let before = server.calls_of("pmcptask.list");
        assert_eq!(listed(&backend).await, all(0..20), "pages of {page}");
        let calls = server.calls_of("pmcptask.list") - before;
        assert_eq!(calls, 20_u64 / (page as u64).saturating_add(1) + 1, "pages of {page}");
    }
    let error = RedisBackend::builder(server.url()).list_page_size(0).connect().await.unwrap_err();
    assert!(matches!(reason(&error), Error::Settings(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_come_and_go_between_pages_leave_nothing_out_and_make_nothing_come_twice() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    fill(&backend, 0..25).await;
    // The first page ends with the tenth task. When that task is gone, the second page still starts at
    // its position.
    for gone in ["00009", "00003", "00010"] {
        let task = format!("pmcp:tasks:owner:{gone}");
        let listing = listed_while(&server, &["PMCPTASK.DEL", &task, "pmcp:idx:owner"]).await;
        let stays: Vec<_> = all(0..25).into_iter().filter(|key| !key.ends_with(gone)).collect();
        assert!(stays.iter().all(|key| listing.contains(key)), "{gone}: {listing:?}");
        fill(&backend, 0..25).await;
    }
    // A task that was deleted and created again is on a later page again.
    let anew = ["EVAL", ANEW, "2", "pmcp:tasks:owner:00003", "pmcp:idx:owner"];
    let mut listing = listed_while(&server, &anew).await;
    assert_eq!(listing.last().map(String::as_str), Some("owner:00003"));
    listing.sort();
    assert_eq!(listing, all(0..25));
}

/// Deletes a task and creates it again, last in the order of creation.
const ANEW: &str = "redis.call('PMCPTASK.DEL', KEYS[1], KEYS[2]) \
                    return redis.call('PMCPTASK.PUT', KEYS[1], KEYS[2], 'anew', 'PERSIST', 'CREATED', '9007199254740991')";

/// What a list contains if another client runs a command between its first and second page.
async fn listed_while(server: &Server, other: &[&str]) -> Vec<String> {
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::builder(proxy.url()).list_page_size(9).connect().await.unwrap();
    let before = server.calls_of("pmcptask.list");
    // The reply with the first page is delayed meanwhile.
    proxy.set(Fault::Delay(Duration::from_secs(1)));
    let listing = tokio::spawn(async move { listed(&backend).await });
    assert!(holds_within(Duration::from_secs(5), || server.calls_of("pmcptask.list") > before));
    let reply = server.wire().call(other);
    assert!(!reply.starts_with('-'), "{reply}");
    proxy.set(Fault::None);
    let listing = listing.await.unwrap();
    let unique: HashSet<_> = listing.iter().collect();
    assert_eq!(unique.len(), listing.len(), "{listing:?}");
    listing
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_cluster_and_of_resp2_are_pages_too() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for url in [format!("{}?protocol=2", server.url()), cluster.url()] {
        let backend = RedisBackend::builder(url).list_page_size(10).prefix("lists").connect().await.unwrap();
        fill(&backend, 0..35).await;
        assert_eq!(listed(&backend).await, all(0..35));
    }
}

/// The Lua backend writes times before the epoch, and other tools write any score.
#[tokio::test(flavor = "multi_thread")]
async fn pages_leave_out_no_task_whatever_scores_others_have_written() {
    let server = Server::start();
    let mut wire = server.wire();
    let scores = [
        ("a", "-62135596800000"),
        ("z", "-0.7"),
        ("b", "-0.2"),
        ("y", "10.2"),
        ("c", "10.7"),
        ("d", "10.7"),
        ("e", "9007199254740993"),
    ];
    for (task_id, score) in scores {
        wire.call(&["PMCPTASK.PUT", &format!("pmcp:tasks:owner:{task_id}"), "pmcp:idx:owner", "x"]);
        wire.call(&["ZADD", "pmcp:idx:owner", score, task_id]);
    }
    let expected = scores.map(|(task_id, _)| format!("owner:{task_id}"));
    for page in [1, 2, 3, 1_000] {
        let backend = RedisBackend::builder(server.url()).list_page_size(page).connect().await.unwrap();
        assert_eq!(listed(&backend).await, expected, "pages of {page}");
    }
}

/// The page ends with a task that is deleted before the next page is read.
#[test]
fn page_after_a_task_that_has_gone_leaves_out_no_task_whatever_its_score_was() {
    let server = Server::start();
    let mut wire = server.wire();
    for score in ["-1.5", "-0.2", "0", "10.7", "1152921504606846976", "-1152921504606846976"] {
        for (order, last) in [(&[][..], "c"), (&["REV"][..], "a")] {
            for task_id in ["a", "b", "c"] {
                wire.call(&["PMCPTASK.PUT", &format!("pmcp:tasks:owner:{task_id}"), "pmcp:idx:owner", "x"]);
                wire.call(&["ZADD", "pmcp:idx:owner", score, task_id]);
            }
            let mut list =
                |more: &[&str]| wire.call(&[&["PMCPTASK.LIST", "pmcp:idx:owner"], order, more].concat());
            // *2 *4 $1 id :version :created …
            let two = list(&["COUNT", "2"]);
            let created =
                two.split("\r\n").filter_map(|line| line.strip_prefix(':')).nth(1).unwrap().to_owned();
            server.wire().call(&["PMCPTASK.DEL", "pmcp:tasks:owner:b", "pmcp:idx:owner"]);
            let rest = list(&["AFTER", &created, "b"]);
            let id = format!("$1\r\n{last}\r\n");
            assert!(rest.starts_with("*1\r\n") && rest.contains(&id), "{score} {order:?}: {rest}");
        }
    }
}

/// A long index is a table, where the server treats the scores -0 and 0 as equal.
#[test]
fn no_task_comes_twice_where_scores_are_two_zeros() {
    let server = Server::start();
    let mut wire = server.wire();
    wire.call(&["CONFIG", "SET", "zset-max-listpack-entries", "0"]);
    for (task_id, score) in [("a", "0"), ("b", "-0"), ("c", "0"), ("d", "-0"), ("dead", "-1")] {
        wire.call(&["ZADD", "pmcp:idx:owner", score, task_id]);
        if task_id != "dead" {
            wire.call(&["HSET", &format!("pmcp:tasks:owner:{task_id}"), "version", "1", "data", "x"]);
        }
    }
    for count in ["1", "2", "3", "4"] {
        let listed = wire.call(&["PMCPTASK.LIST", "pmcp:idx:owner", "COUNT", count]);
        let ids: Vec<_> = ["a", "b", "c", "d"]
            .into_iter()
            .filter(|id| listed.contains(&format!("$1\r\n{id}\r\n")))
            .collect();
        assert_eq!(ids.len().to_string(), *count, "{listed}");
    }
}
