//! The trait for who uses no framework: on one server and in a cluster.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::Duration;

use pmcptask_checkpoint::{
    Checkpoint, Checkpoints, CheckpointsConfig, Compression, Error, NewCheckpoint, RecordError,
    RedisCheckpoints,
};
use pmcptask_tests::{Cluster, Server};
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
