//! The trait for who uses no framework: on one server and in a cluster.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{BoxStream, StreamExt as _};
use pmcptask_checkpoint::{
    Checkpoint, Checkpoints, CheckpointsConfig, Compression, Error, NewCheckpoint, RecordError,
    RedisCheckpoints,
};
use pmcptask_tests::{Cluster, Server, ServerOptions};
use serde_json::json;

async fn stores(server: &Server, cluster: &Cluster, prefix: &str) -> [RedisCheckpoints; 2] {
    let connect = |url: String| async move { RedisCheckpoints::builder(&url).prefix(prefix).connect().await };
    [connect(server.url()).await.unwrap(), connect(cluster.url()).await.unwrap()]
}

fn new(id: &str, step: usize) -> NewCheckpoint {
    NewCheckpoint::new(id, json!({ "step": step }))
}

fn ids(listed: &[Result<Checkpoint, Error>]) -> Vec<&str> {
    listed.iter().map(|checkpoint| checkpoint.as_ref().unwrap().saved.id.as_str()).collect()
}

type Changes = BoxStream<'static, Result<Checkpoint, Error>>;

/// The next checkpoints of a stream, which has to yield them soon.
async fn next(changes: &mut Changes, count: usize) -> Vec<Checkpoint> {
    let next = changes.take(count).map(Result::unwrap).collect();
    tokio::time::timeout(Duration::from_secs(20), next).await.expect("as many are saved")
}

/// The id of the next one, whatever errors come first.
async fn next_id_after_errors(changes: &mut Changes) -> String {
    let next = async {
        loop {
            if let Ok(checkpoint) = changes.next().await.unwrap() {
                return checkpoint.saved.id;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), next).await.expect("one is saved")
}

async fn next_ids(changes: &mut Changes, count: usize) -> Vec<String> {
    next(changes, count).await.into_iter().map(|checkpoint| checkpoint.saved.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_loaded_as_they_were_saved_and_listed_newest_first() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for store in stores(&server, &cluster, "trait").await {
        assert!(store.load("thread", None).await.unwrap().is_none());
        let ids_of_all = ["z", "", "a:b", "%", "%3A", "{x}", "ü\n"];
        for (step, id) in ids_of_all.iter().enumerate() {
            let mut checkpoint = new(id, step).with_parent("before");
            checkpoint.metadata.insert("source".to_owned(), json!("loop"));
            assert_eq!(store.save("thread", &checkpoint).await.unwrap(), 1);
            assert_eq!(store.load("thread", Some(id)).await.unwrap().unwrap().saved, checkpoint);
            assert_eq!(store.load("thread", None).await.unwrap().unwrap().saved, checkpoint);
        }
        let mut newest_first = ids_of_all;
        newest_first.reverse();
        assert_eq!(ids(&store.list("thread", 100, None).await.unwrap()), newest_first);
        let page = store.list("thread", 3, None).await.unwrap();
        let last = page[2].as_ref().unwrap().position.clone();
        assert_eq!(ids(&store.list("thread", 100, last.as_ref()).await.unwrap()), newest_first[3..]);
        // Saved again: a new version in the old place.
        assert_eq!(store.save("thread", &new("z", 9)).await.unwrap(), 2);
        assert_eq!(ids(&store.list("thread", 100, None).await.unwrap()), newest_first);
        let stats = store.stats("thread").await.unwrap();
        assert_eq!(stats.checkpoints, ids_of_all.len());
        assert!(stats.oldest_ms < stats.newest_ms);
        assert_eq!(store.delete("thread", Some("a:b")).await.unwrap(), 1);
        assert_eq!(store.delete("thread", Some("a:b")).await.unwrap(), 0);
        assert_eq!(store.prune("thread", 2).await.unwrap(), 4);
        assert_eq!(ids(&store.list("thread", 100, None).await.unwrap()), ["ü\n", "{x}"]);
        assert_eq!(store.delete("thread", None).await.unwrap(), 2);
        assert_eq!(store.stats("thread").await.unwrap().checkpoints, 0);
        store.health().await.unwrap();
    }
    assert_eq!(redis::cmd("DBSIZE").query::<i64>(&mut server.connection()).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_is_swapped_at_the_expected_version_and_at_no_other() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for store in stores(&server, &cluster, "swap").await {
        let conflict = |outcome: Result<u64, Error>| match outcome {
            Err(Error::Conflict { expected, actual, .. }) => (expected, actual),
            other => panic!("{other:?}"),
        };
        assert_eq!(conflict(store.compare_and_swap("thread", &new("a", 1), 1).await), (1, 0));
        assert_eq!(store.compare_and_swap("thread", &new("a", 1), 0).await.unwrap(), 1);
        assert_eq!(conflict(store.compare_and_swap("thread", &new("a", 2), 0).await), (0, 1));
        assert_eq!(store.compare_and_swap("thread", &new("a", 2), 1).await.unwrap(), 2);
        assert_eq!(conflict(store.compare_and_swap("thread", &new("a", 3), 1).await), (1, 2));
        assert_eq!(store.load("thread", Some("a")).await.unwrap().unwrap().saved, new("a", 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_saved_and_loaded_with_a_result_each_in_their_order() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for store in stores(&server, &cluster, "many").await {
        let checkpoints: Vec<_> =
            (0..300).map(|n| (format!("thread-{}", n % 7), new(&n.to_string(), n))).collect();
        let borrowed: Vec<_> = checkpoints.iter().map(|(thread, saved)| (thread.as_str(), saved)).collect();
        assert!(store.save_many(&borrowed).await.into_iter().all(|saved| saved.unwrap() == 1));
        let wanted: Vec<_> =
            borrowed.iter().map(|(thread, saved)| (*thread, Some(saved.id.as_str()))).collect();
        for (loaded, (_, saved)) in store.load_many(&wanted).await.into_iter().zip(&checkpoints) {
            assert_eq!(&loaded.unwrap().unwrap().saved, saved);
        }
        assert!(store.load_many(&[("nobody", None)]).await[0].as_ref().unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_of_one_thread_are_saved_in_their_order_over_several_connections() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for (url, prefix) in [(server.url(), "order"), (cluster.url(), "order")] {
        let store = RedisCheckpoints::builder(&url).prefix(prefix).connections(3).connect().await.unwrap();
        let checkpoints: Vec<_> = (0..300).map(|n| new(&n.to_string(), n)).collect();
        let of_thread: Vec<_> = checkpoints.iter().map(|saved| ("thread", saved)).collect();
        assert!(store.save_many(&of_thread).await.into_iter().all(|saved| saved.unwrap() == 1));
        let listed = store.list("thread", 300, None).await.unwrap();
        let newest_first: Vec<_> = checkpoints.iter().rev().map(|saved| saved.id.as_str()).collect();
        assert_eq!(ids(&listed), newest_first);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_by_the_names_of_other_savers_take_effect() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    let config = CheckpointsConfig {
        redis_url: server.url(),
        pool_size: 3,
        default_ttl_secs: Some(60),
        key_prefix: "named".to_owned(),
        compression: false,
        ..CheckpointsConfig::default()
    };
    let long = NewCheckpoint::new("long", json!("again ".repeat(10_000)));
    let clients = || redis::cmd("CLIENT").arg("LIST").query::<String>(&mut server.connection()).unwrap();
    let before = clients().lines().count();
    let store = RedisCheckpoints::from_config(&config).connect().await.unwrap();
    assert_eq!(clients().lines().count(), before + 3);
    store.save("thread", &long).await.unwrap();
    let key = "named:tasks:thread:long";
    let ask = |command: &str, options: &[&str]| -> i64 {
        redis::cmd(command).arg(key).arg(options).query(&mut server.connection()).unwrap()
    };
    assert!((1..=60_001).contains(&ask("PTTL", &[])));
    assert!(ask("HSTRLEN", &["data"]) > 60_000);

    let redis_url = cluster.url().replacen("redis+cluster://", "redis://", 1);
    let url_of_one = redis_url.split(',').next().unwrap().to_owned();
    let in_cluster = CheckpointsConfig { redis_url: url_of_one, enable_cluster: true, ..config };
    let store = RedisCheckpoints::from_config(&in_cluster).connect().await.unwrap();
    for n in 0..20 {
        assert_eq!(store.save(&format!("thread-{n}"), &long).await.unwrap(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_without_its_lease_saves_nothing() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for store in stores(&server, &cluster, "run").await {
        let lease = store.lease("thread", Duration::from_secs(15)).await.unwrap().unwrap();
        assert!(store.lease("thread", Duration::from_secs(15)).await.unwrap().is_none());
        let of_run = store.while_held(&lease);
        of_run.save("thread", &new("a", 1)).await.unwrap();
        lease.release().await.unwrap();
        let _of_next = store.lease("thread", Duration::from_secs(15)).await.unwrap().unwrap();
        let error = of_run.save("thread", &new("b", 2)).await.unwrap_err();
        assert!(error.to_string().contains("HELD"), "{error}");
        assert!(of_run.save("thread", &new("a", 2)).await.is_err());
        assert_eq!(store.load("thread", None).await.unwrap().unwrap().saved, new("a", 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn record_of_others_is_an_error_that_names_it_and_hides_no_checkpoint() {
    let server = Server::start();
    let store = RedisCheckpoints::builder(&server.url()).connect().await.unwrap();
    store.save("thread", &new("a", 1)).await.unwrap();
    let keys = ["checkpoints:tasks:thread:foreign", "checkpoints:idx:thread"];
    redis::cmd("PMCPTASK.PUT").arg(&keys).arg("[secret").exec(&mut server.connection()).unwrap();
    let error = store.load("thread", None).await.unwrap_err();
    assert!(matches!(error, Error::Record { cause: RecordError::Json { .. }, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("foreign") && text.contains("thread") && !text.contains("secret"), "{text}");
    let listed = store.list("thread", 10, None).await.unwrap();
    assert!(listed[0].is_err());
    assert_eq!(listed[1].as_ref().unwrap().saved.id, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_what_is_saved_after_the_call_in_order_and_once_each() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for store in stores(&server, &cluster, "changes").await {
        store.save("thread", &new("a", 1)).await.unwrap();
        let mut changes = store.changes("thread").await.unwrap();
        // Before anybody asks for the first one.
        let b = new("b:%", 2).with_parent("a");
        store.save("thread", &b).await.unwrap();
        store.save("another", &new("x", 1)).await.unwrap();
        store.compare_and_swap("thread", &new("", 3), 0).await.unwrap();
        let first = next(&mut changes, 1).await.remove(0);
        assert_eq!((first.thread.as_str(), &first.saved, first.version), ("thread", &b, 1));
        let listed = store.list("thread", 1, first.position.as_ref()).await.unwrap();
        assert_eq!(ids(&listed), ["a"]);
        assert_eq!(next_ids(&mut changes, 1).await, [""]);
        // Saved again over their ids.
        for id in ["a", "b:%", ""] {
            assert_eq!(store.save("thread", &new(id, 9)).await.unwrap(), 2);
        }
        // Deleted and begun again, faster than the clock goes on.
        for round in 0..5 {
            let of_round: Vec<_> = (0..20).map(|step| new(&format!("{round}-{step}"), step)).collect();
            for saved in &of_round {
                store.save("thread", saved).await.unwrap();
            }
            let saved: Vec<_> = of_round.into_iter().map(|saved| saved.id).collect();
            assert_eq!(next_ids(&mut changes, 20).await, saved);
            store.delete("thread", None).await.unwrap();
        }
        // One that was deleted is another one.
        store.save("thread", &new("a", 1)).await.unwrap();
        assert_eq!(next_ids(&mut changes, 1).await, ["a"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_who_follows_a_thread_sees_what_all_savers_save_in_the_order_of_the_list() {
    const SAVERS: usize = 16;
    const STEPS: usize = 25;
    let (server, cluster) = (Server::start(), Cluster::shared());
    for url in [server.url(), cluster.url()] {
        let connect = || RedisCheckpoints::builder(&url).prefix("followed").connections(2).connect();
        let store = connect().await.unwrap();
        let mut followers = Vec::new();
        for _ in 0..20 {
            let mut changes = store.changes("thread").await.unwrap();
            followers.push(tokio::spawn(async move { next_ids(&mut changes, SAVERS * STEPS).await }));
        }
        let savers = (0..SAVERS).map(|saver| async move {
            let store = connect().await.unwrap();
            for step in 0..STEPS {
                store.save("thread", &new(&format!("{saver}-{step}"), step)).await.unwrap();
            }
        });
        join_all(savers).await;
        let listed = store.list("thread", SAVERS * STEPS, None).await.unwrap();
        let oldest_first: Vec<_> = ids(&listed).into_iter().rev().collect();
        for follower in followers {
            assert_eq!(follower.await.unwrap(), oldest_first);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missed_by_who_follows_a_thread_while_connections_and_the_server_end() {
    let mut server = Server::start_with(&ServerOptions::default().with_aof());
    let url = server.url();
    let connect = || RedisCheckpoints::builder(&url).connect();
    let (store, other) = (connect().await.unwrap(), connect().await.unwrap());
    let mut changes = store.changes("thread").await.unwrap();
    let mut seen = Vec::new();
    for round in 0..6 {
        let step = |step: usize| new(&format!("{round}-{step}"), step);
        other.save("thread", &step(0)).await.unwrap();
        seen.extend(next_ids(&mut changes, 1).await);
        if round % 2 == 0 {
            server.wire().call(&["CLIENT", "KILL", "TYPE", "normal"]);
        } else {
            server.kill();
            server.restart();
        }
        // Whether the client knows that its connection is lost, or not yet: the same save can be repeated.
        while other.save("thread", &step(1)).await.is_err() {}
        seen.push(next_id_after_errors(&mut changes).await);
    }
    let listed = store.list("thread", 100, None).await.unwrap();
    assert_eq!(seen, ids(&listed).into_iter().rev().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn record_of_others_is_an_error_in_its_place_of_the_changes() {
    let server = Server::start();
    let store = RedisCheckpoints::builder(&server.url()).connect().await.unwrap();
    let mut changes = store.changes("thread").await.unwrap();
    store.save("thread", &new("a", 1)).await.unwrap();
    let mut put = redis::cmd("PMCPTASK.PUT");
    put.arg("checkpoints:tasks:thread:foreign").arg("checkpoints:idx:thread").arg("[secret");
    put.arg("CREATED").arg("NEWEST").exec(&mut server.connection()).unwrap();
    store.save("thread", &new("b", 2)).await.unwrap();
    assert_eq!(next_ids(&mut changes, 1).await, ["a"]);
    let error = changes.next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Record { cause: RecordError::Json { .. }, .. }), "{error}");
    assert_eq!(next_ids(&mut changes, 1).await, ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_threads_are_followed_at_once_and_each_stream_has_its_own() {
    const THREADS: usize = 1_000;
    let server = Server::start();
    let store = RedisCheckpoints::builder(&server.url()).connect().await.unwrap();
    let threads: Vec<_> = (0..THREADS).map(|thread| format!("thread-{thread}")).collect();
    let changes = join_all(threads.iter().map(|thread| store.changes(thread))).await;
    for step in 0..3 {
        let checkpoint = &new(&step.to_string(), step);
        let saves: Vec<_> = threads.iter().map(|thread| (thread.as_str(), checkpoint)).collect();
        assert!(store.save_many(&saves).await.iter().all(Result::is_ok));
    }
    for (thread, changes) in threads.iter().zip(changes) {
        let seen = next(&mut changes.unwrap(), 3).await;
        assert!(seen.iter().all(|checkpoint| checkpoint.thread == *thread));
        assert!(seen.iter().map(|checkpoint| checkpoint.saved.id.as_str()).eq(["0", "1", "2"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_gives_what_it_read_its_whole_ttl_again_if_it_is_asked_to() {
    const TTL: Duration = Duration::from_mins(1);
    let server = Server::start();
    let builder = || RedisCheckpoints::builder(&server.url()).default_ttl(TTL);
    let store = builder().connect().await.unwrap();
    let refreshing = builder().refresh_on_read(true).connect().await.unwrap();
    store.save("thread", &new("a", 1)).await.unwrap();
    store.save("thread", &new("b", 2)).await.unwrap();
    let ends = |id: &str| -> i64 {
        let key = format!("checkpoints:tasks:thread:{id}");
        redis::cmd("PEXPIRETIME").arg(key).query(&mut server.connection()).unwrap()
    };
    let (a, b) = (ends("a"), ends("b"));
    // Expiries are rounded up to a millisecond, and this clock down.
    assert!(a > pmcptask_tests::now_ms() && b <= pmcptask_tests::now_ms() + 60_001);
    // Time has to pass for the difference to show.
    tokio::time::sleep(Duration::from_millis(20)).await;
    store.load("thread", None).await.unwrap().unwrap();
    store.list("thread", 10, None).await.unwrap();
    assert_eq!((ends("a"), ends("b")), (a, b));
    refreshing.load("thread", None).await.unwrap().unwrap();
    assert!(ends("a") == a && ends("b") >= b + 20);
    refreshing.list("thread", 10, None).await.unwrap();
    assert!(ends("a") >= a + 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_once_all_has_expired() {
    let server = Server::start();
    let ttl = Duration::from_millis(100);
    let store = RedisCheckpoints::builder(&server.url()).default_ttl(ttl).connect().await.unwrap();
    for n in 0..50 {
        store.save(&format!("thread-{}", n % 5), &new(&n.to_string(), n)).await.unwrap();
    }
    let is_empty = || redis::cmd("DBSIZE").query::<i64>(&mut server.connection()).unwrap() == 0;
    assert!(pmcptask_tests::holds_within(Duration::from_secs(10), is_empty));
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_and_plain_records_are_read_whatever_the_setting_is() {
    let server = Server::start();
    let with = |compression| RedisCheckpoints::builder(&server.url()).compression(compression).connect();
    let (zstd, plain) = (with(Compression::default()).await.unwrap(), with(Compression::Off).await.unwrap());
    let long = NewCheckpoint::new("long", json!(vec!["as before"; 10_000]));
    zstd.save("compressed", &long).await.unwrap();
    plain.save("plain", &long).await.unwrap();
    for store in [zstd, plain] {
        for thread in ["compressed", "plain"] {
            assert_eq!(store.load(thread, None).await.unwrap().unwrap().saved, long);
        }
    }
    let stored = |thread: &str| -> usize {
        redis::cmd("HSTRLEN")
            .arg(format!("checkpoints:tasks:{thread}:long"))
            .arg("data")
            .query(&mut server.connection())
            .unwrap()
    };
    assert!(stored("compressed") * 10 < stored("plain"));
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_that_no_load_would_take_is_not_saved() {
    let server = Server::start();
    for compression in [Compression::Off, Compression::default()] {
        let builder = RedisCheckpoints::builder(&server.url()).compression(compression);
        let store = builder.longest_record(10_000).connect().await.unwrap();
        store.save("thread", &NewCheckpoint::new("a", json!("x".repeat(9_000)))).await.unwrap();
        assert!(store.load("thread", None).await.unwrap().is_some());
        let error = store.save("thread", &NewCheckpoint::new("b", json!("x".repeat(10_000)))).await;
        assert!(matches!(error, Err(Error::TooLong(_))), "{error:?}");
        assert_eq!(store.stats("thread").await.unwrap().checkpoints, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn savers_do_not_read_from_replicas() {
    // With one server, the client refuses the setting.
    let server = Server::start();
    let builder = RedisCheckpoints::builder(&server.url()).client(|client| client.read_from_replicas(true));
    builder.connect().await.unwrap();
}
