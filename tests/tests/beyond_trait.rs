//! The calls of the backend that the trait does not have: on one server and in a cluster.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{Error, Lease, ListedTask, Order, RedisBackend, WriteTerms};
use pmcptask_tests::{Cluster, Fault, NIL, Proxy, Server, integer, now_ms, sleep_until};
use redis::Commands as _;

/// A backend on one server and one in a cluster, both with keys of their own.
async fn backends(server: &Server, cluster: &Cluster, prefix: &str) -> [RedisBackend; 2] {
    let connect = |url: String| RedisBackend::builder(url).prefix(prefix).connect();
    [connect(server.url()).await.unwrap(), connect(cluster.url()).await.unwrap()]
}

fn ids(page: &[ListedTask]) -> Vec<&str> {
    page.iter().map(|task| task.task_id.as_str()).collect()
}

/// Makes tasks `from..to`, two of each creation time.
async fn fill(backend: &RedisBackend, tasks: std::ops::Range<usize>) {
    for task in tasks {
        let created = format!(r#"{{"task":{{"createdAt":"2026-01-01T00:00:{:02}Z"}}}}"#, task / 2 % 60);
        assert!(backend.create(&format!("owner:{task:05}"), created.as_bytes()).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_create_one_task_one_does() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for backend in backends(&server, &cluster, "create").await {
        let creators = (0..64).map(|n: usize| {
            let backend = backend.clone();
            tokio::spawn(async move { backend.create("owner:t", n.to_string().as_bytes()).await.unwrap() })
        });
        let mut made = Vec::new();
        for (n, creator) in creators.enumerate() {
            made.extend(creator.await.unwrap().then_some(n));
        }
        assert_eq!(made.len(), 1, "{made:?}");
        let task = backend.get("owner:t").await.unwrap();
        assert_eq!((task.version, task.data), (1, made[0].to_string().into_bytes()));
        assert!(backend.delete("owner:t").await.unwrap());
        assert!(backend.create("owner:t", b"again").await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn task_is_deleted_at_the_version_that_was_seen_and_at_no_other() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for backend in backends(&server, &cluster, "delete").await {
        backend.put("owner:t", b"one").await.unwrap();
        backend.put("owner:t", b"two").await.unwrap();
        for (expected, found) in [(1, 2), (0, 2), (u64::MAX, 2)] {
            let error = backend.delete_if_version("owner:t", expected).await.unwrap_err();
            let StorageError::VersionConflict { key, expected: told, actual } = &error else {
                panic!("{error}");
            };
            assert_eq!((key.as_str(), *told, *actual), ("owner:t", expected, found));
        }
        backend.delete_if_version("owner:t", 2).await.unwrap();
        assert!(matches!(backend.get("owner:t").await, Err(StorageError::NotFound { .. })));
        let error = backend.delete_if_version("owner:t", 2).await.unwrap_err();
        assert!(matches!(error, StorageError::VersionConflict { actual: 0, .. }), "{error}");
        assert!(backend.list_by_prefix("owner:").await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_changes_without_a_new_version_and_a_past_one_ends_the_task() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for backend in backends(&server, &cluster, "expire").await {
        assert!(!backend.expire("owner:t", None).await.unwrap());
        backend.put("owner:t", br#"{"expiresAt":"2099-01-01T00:00:00Z"}"#).await.unwrap();
        assert!(backend.expire("owner:t", None).await.unwrap());
        let soon = SystemTime::now() + Duration::from_millis(300);
        assert!(backend.expire("owner:t", Some(soon)).await.unwrap());
        let task = backend.get("owner:t").await;
        if SystemTime::now() < soon {
            assert_eq!(task.unwrap().version, 1);
        }
        sleep_until(now_ms() + 310);
        assert!(matches!(backend.get("owner:t").await, Err(StorageError::NotFound { .. })));
        backend.put("owner:t", b"again").await.unwrap();
        assert!(backend.expire("owner:t", Some(UNIX_EPOCH - Duration::from_secs(1))).await.unwrap());
        assert!(backend.list_by_prefix("owner:").await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_is_exact_to_the_millisecond_and_rounded_up() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    backend.put("owner:t", b"data").await.unwrap();
    let at = UNIX_EPOCH + Duration::new(4_102_444_800, 123_000_001);
    assert!(backend.expire("owner:t", Some(at)).await.unwrap());
    let mut wire = server.wire();
    assert_eq!(integer(&wire.call(&["PEXPIRETIME", "pmcp:tasks:owner:t"])), 4_102_444_800_124);
    let field = wire.call(&["HGET", "pmcp:tasks:owner:t", "expires_at"]);
    assert_eq!(field, "$10\r\n4102444801\r\n");
    assert!(backend.expire("owner:t", None).await.unwrap());
    assert_eq!(integer(&wire.call(&["PEXPIRETIME", "pmcp:tasks:owner:t"])), -1);
    assert_eq!(wire.call(&["HGET", "pmcp:tasks:owner:t", "expires_at"]), NIL);
    assert_eq!(backend.get("owner:t").await.unwrap().version, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn trim_keeps_the_newest_however_many_there_are() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for backend in backends(&server, &cluster, "trim").await {
        fill(&backend, 0..120).await;
        assert_eq!(backend.trim("owner", 120).await.unwrap(), 0);
        assert_eq!(backend.trim("owner", 5).await.unwrap(), 115);
        let left = backend.list_page("owner", None, 10, Order::OldestFirst).await.unwrap();
        assert_eq!(ids(&left), ["00115", "00116", "00117", "00118", "00119"]);
        assert_eq!(backend.trim("owner", 0).await.unwrap(), 5);
        assert_eq!(backend.trim("nobody", 0).await.unwrap(), 0);
        // More than two rounds of the client.
        let many: Vec<_> = (0..2_100)
            .map(|n| {
                let backend = backend.clone();
                tokio::spawn(async move { backend.put(&format!("owner:{n:05}"), b"data").await.unwrap() })
            })
            .collect();
        for put in many {
            put.await.unwrap();
        }
        assert_eq!(backend.trim("owner", 50).await.unwrap(), 2_050);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_in_either_order_have_every_task_once_though_the_one_at_the_cursor_goes() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for backend in backends(&server, &cluster, "pages").await {
        for order in [Order::OldestFirst, Order::NewestFirst] {
            fill(&backend, 0..50).await;
            let (mut listed, mut after) = (Vec::new(), None);
            loop {
                let page = backend.list_page("owner", after.as_ref(), 7, order).await.unwrap();
                let Some(last) = page.last() else { break };
                assert!(page.len() <= 7);
                after = Some(last.position());
                backend.delete(&format!("owner:{}", last.task_id)).await.unwrap();
                listed.extend(page);
            }
            let mut expected: Vec<_> = (0..50).map(|task| format!("{task:05}")).collect();
            if order == Order::NewestFirst {
                expected.reverse();
            }
            assert_eq!(ids(&listed), expected, "{order:?}");
            backend.trim("owner", 0).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_have_a_result_each_in_the_order_of_their_keys() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for backend in backends(&server, &cluster, "many").await {
        let keys: Vec<_> = (0..1_000).map(|n| format!("owner-{}:t{n}", n % 50)).collect();
        let data: Vec<_> = (0..1_000).map(|n| n.to_string()).collect();
        let mut records: Vec<_> =
            keys.iter().zip(&data).map(|(key, data)| (key.as_str(), data.as_bytes())).collect();
        records[7].1 = br#"{"expiresAt":"soon"}"#;
        let put = backend.put_many(&records).await;
        assert!(put.iter().enumerate().all(|(n, version)| (n == 7) != version.is_ok()), "{put:?}");
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let got = backend.get_many(&keys).await;
        for (n, task) in got.into_iter().enumerate() {
            match task {
                Ok(task) => assert_eq!((task.version, task.data), (1, n.to_string().into_bytes())),
                Err(error) => {
                    assert!(n == 7 && matches!(error, StorageError::NotFound { .. }), "{n}: {error}");
                }
            }
        }
        let deleted = backend.delete_many(&keys).await;
        assert!(deleted.iter().enumerate().all(|(n, deleted)| (n != 7) == *deleted.as_ref().unwrap()));
    }
    assert!(server.connection().keys::<_, Vec<String>>("many:*").unwrap().is_empty());
}

/// A round trip takes longer than the server needs for all of the calls.
#[tokio::test(flavor = "multi_thread")]
async fn many_calls_take_one_round_trip() {
    const ROUND_TRIP: Duration = Duration::from_secs(1);
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::new(&proxy.url()).await.unwrap();
    proxy.set(Fault::Delay(ROUND_TRIP));
    let keys: Vec<_> = (0..1_000).map(|n| format!("owner:t{n}")).collect();
    let records: Vec<_> = keys.iter().map(|key| (key.as_str(), &b"data"[..])).collect();
    let started = Instant::now();
    assert!(backend.put_many(&records).await.iter().all(Result::is_ok));
    let took = started.elapsed();
    assert!((ROUND_TRIP..2 * ROUND_TRIP).contains(&took), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_on_terms_expires_when_the_terms_say_so_whatever_the_record_says() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    let record = br#"{"expiresAt":"2020-01-01T00:00:00Z"}"#;
    let in_cluster = "terms:tasks:{owner}";
    let node = cluster.servers.iter().find(|node| node.has_slot_of(in_cluster)).unwrap();
    let places = [(&server, "terms:tasks:owner"), (node, in_cluster)];
    for (backend, (node, keys)) in backends(&server, &cluster, "terms").await.into_iter().zip(places) {
        let at_ms = now_ms() + 60_000;
        let time = UNIX_EPOCH + Duration::from_millis(u64::try_from(at_ms).unwrap());
        let terms = WriteTerms::new().expires_at(time);
        assert_eq!(backend.put_with("owner:put", record, &terms).await.unwrap(), 1);
        assert!(backend.create_with("owner:create", record, &terms).await.unwrap());
        assert!(!backend.create_with("owner:create", b"again", &terms).await.unwrap());
        backend.put("owner:cas", b"one").await.unwrap();
        assert_eq!(backend.put_if_version_with("owner:cas", record, 1, &terms).await.unwrap(), 2);
        let conflict = backend.put_if_version_with("owner:cas", b"late", 1, &terms).await;
        assert!(matches!(conflict, Err(StorageError::VersionConflict { actual: 2, .. })), "{conflict:?}");
        for task in ["put", "create", "cas"] {
            assert_eq!(integer(&node.wire().call(&["PEXPIRETIME", &format!("{keys}:{task}")])), at_ms);
            assert_eq!(backend.get(&format!("owner:{task}")).await.unwrap().data, record);
        }
        // Without a time: never, whatever the record says.
        backend.put_with("owner:put", record, &WriteTerms::new()).await.unwrap();
        assert_eq!(backend.get("owner:put").await.unwrap().version, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn newest_tasks_are_listed_in_the_order_of_their_writes_with_and_without_records() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for backend in backends(&server, &cluster, "newest").await {
        let far = now_ms() + 1_000_000;
        let created = format!(r#"{{"task":{{"createdAt":"{}"}}}}"#, pmcptask_tests::timestamp(far));
        backend.put("owner:of-the-future", created.as_bytes()).await.unwrap();
        // In descending order of ids, so that ids do not decide.
        let written: Vec<_> = (0..300).rev().map(|n| format!("{n:03}")).collect();
        for id in &written {
            backend.put_with(&format!("owner:{id}"), b"x", &WriteTerms::new().newest()).await.unwrap();
        }
        backend.put_with("owner:299", b"again", &WriteTerms::new().newest()).await.unwrap();
        let mut listed = Vec::new();
        loop {
            let after = listed.last().map(pmcptask_client::ListedEntry::position);
            let page = backend.list_entries("owner", after.as_ref(), 100, Order::OldestFirst).await.unwrap();
            if page.is_empty() {
                break;
            }
            listed.extend(page);
        }
        assert_eq!((listed[0].task_id.as_str(), listed[1].version), ("of-the-future", 2));
        assert!(listed[1..].iter().map(|entry| &entry.task_id).eq(&written));
        let newest = backend.list_page("owner", None, 2, Order::NewestFirst).await.unwrap();
        assert_eq!(ids(&newest), ["000", "001"]);
        let entries = backend.list_entries("owner", None, 2, Order::NewestFirst).await.unwrap();
        assert_eq!(entries[0].position(), newest[0].position());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_with_a_lease_is_refused_once_the_server_does_not_have_the_lease_and_changes_nothing() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for backend in backends(&server, &cluster, "held").await {
        let lease = Lease::acquire(&backend, "owner", Duration::from_secs(15)).await.unwrap().unwrap();
        let terms = WriteTerms::new().while_held(&lease);
        backend.put_with("owner:t", b"held", &terms).await.unwrap();
        assert!(backend.create_with("owner:new", b"held", &terms).await.unwrap());
        let refused = backend.put_if_version_with("owner:t", b"x", 1, &terms).await.unwrap_err();
        assert!(matches!(Error::of(&refused), Some(Error::Settings(_))), "{refused}");
        assert!(lease.release().await.unwrap());
        let _next = Lease::acquire(&backend, "owner", Duration::from_secs(15)).await.unwrap().unwrap();
        for error in [
            backend.put_with("owner:t", b"late", &terms).await.unwrap_err(),
            backend.create_with("owner:later", b"late", &terms).await.unwrap_err(),
        ] {
            assert!(matches!(Error::of(&error), Some(Error::NotHeld { .. })), "{error}");
        }
        assert_eq!(backend.get("owner:t").await.unwrap().data, b"held");
        assert_eq!(backend.list_by_prefix("owner:").await.unwrap().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_create_the_only_task_of_an_owner_one_does() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for backend in backends(&server, &cluster, "only").await {
        let creators = (0..32).map(|n: usize| {
            let backend = backend.clone();
            let terms = WriteTerms::new().only_task();
            tokio::spawn(
                async move { backend.create_with(&format!("owner:{n}"), b"x", &terms).await.unwrap() },
            )
        });
        let mut made = 0;
        for creator in creators.collect::<Vec<_>>() {
            made += usize::from(creator.await.unwrap());
        }
        assert_eq!((made, backend.list_by_prefix("owner:").await.unwrap().len()), (1, 1));
        let terms = WriteTerms::new().only_task();
        let refused = backend.put_with("owner:another", b"x", &terms).await;
        assert!(matches!(refused, Err(StorageError::CapacityExceeded { .. })), "{refused:?}");
        let refused = backend.put_if_version_with("owner:another", b"x", 1, &terms).await.unwrap_err();
        assert!(matches!(Error::of(&refused), Some(Error::Settings(_))), "{refused}");
    }
}
