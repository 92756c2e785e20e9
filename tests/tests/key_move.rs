//! Tasks of a data set move to keys with hash tags and back: all of them, unchanged, whatever
//! happens meanwhile.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_cli::{KeyMove, MoveError};
use pmcptask_client::{Error, HashTags, RedisBackend};
use pmcptask_schema::Keyspace;
use pmcptask_tests::{
    Fault, Port, Proxy, SentinelGroup, Server, ServerOptions, lua_backend, now_ms, pmcptask_program, reason,
};

const OWNERS: [&str; 12] =
    ["alice", "", "}", "{", "{}", "}{", "a{b}c", "tenant:alice", "a:b:c", "ö |", "x}y{z", "tenant"];

async fn backend(server: &Server, hash_tags: HashTags) -> RedisBackend {
    RedisBackend::builder(server.url()).hash_tags(hash_tags).connect().await.unwrap()
}

async fn move_keys(server: &Server, hash_tags: HashTags) -> KeyMove {
    let keyspace = Keyspace::default();
    let target = if hash_tags == HashTags::On { keyspace.with_hash_tags().unwrap() } else { keyspace };
    let mut connection = RedisBackend::builder(server.url()).open_connection().await.unwrap();
    pmcptask_cli::move_keys(&mut connection, &target).await.unwrap()
}

/// Moves all tasks to keys with hash tags.
async fn move_by(url: String) -> Result<KeyMove, MoveError> {
    let mut connection = RedisBackend::builder(url).open_connection().await.unwrap();
    let target = Keyspace::default().with_hash_tags().unwrap();
    pmcptask_cli::move_keys(&mut connection, &target).await
}

/// Some tasks of every owner, with and without an expiry, some of them written more than once.
async fn fill(backend: &RedisBackend) {
    for owner in OWNERS {
        for n in 0..5 {
            let key = format!("{owner}:t{n}");
            let expiry = now_ms() / 1_000 + 3_600 + n;
            let record = match n {
                0 => "no JSON".to_owned(),
                1 => r#"{"expiresAt":null}"#.to_owned(),
                _ => format!(
                    r#"{{"ownerId":"{owner}","expiresAt":"{}.25Z"}}"#,
                    chrono::DateTime::from_timestamp(expiry, 0).unwrap().format("%Y-%m-%dT%H:%M:%S")
                ),
            };
            for _ in 0..=n {
                backend.put(&key, record.as_bytes()).await.unwrap();
            }
        }
    }
}

/// Everything that a backend lists for the owners, in its order.
async fn shown(backend: &RedisBackend) -> Vec<(String, u64, Vec<u8>)> {
    let mut shown = Vec::new();
    for owner in OWNERS {
        let listed = backend.list_by_prefix(&format!("{owner}:")).await.unwrap();
        shown.extend(listed.into_iter().map(|(key, task)| (key, task.version, task.data)));
    }
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn every_task_of_every_owner_moves_as_it_is_and_back() {
    let server = Server::start();
    let (plain, tagged) = (backend(&server, HashTags::Off).await, backend(&server, HashTags::On).await);
    fill(&plain).await;
    let mut wire = server.wire();
    // Other prefixes and other applications are not touched.
    for strangers in [
        &["PMCPTASK.PUT", "other:tasks:alice:t", "other:idx:alice", "x"][..],
        &["HSET", "pmcp:tasks", "f", "v"],
        &["SET", "pmcp:tasks:alice:string", "s"],
        &["HSET", "xpmcp:tasks:alice:t", "f", "v"],
    ] {
        assert!(!wire.call(strangers).starts_with('-'));
    }
    let (before, keys) = (shown(&plain).await, server.dump(0));
    assert_eq!(before.len(), 5 * OWNERS.len());

    let done = move_keys(&server, HashTags::On).await;
    assert_eq!((done.moved, done.left.len()), (before.len() as u64, 0), "{done:?}");
    assert_eq!(shown(&tagged).await, before);
    assert!(shown(&plain).await.is_empty());
    // The value and expiry of each key are unchanged.
    let now = server.dump(0);
    assert_eq!(now.len(), keys.len());
    let values = |keys: &BTreeMap<String, (Option<Vec<u8>>, i64)>| {
        let mut values: Vec<_> = keys.values().cloned().collect();
        values.sort();
        values
    };
    assert_eq!(values(&now), values(&keys));
    assert_eq!(move_keys(&server, HashTags::On).await, KeyMove::default());

    assert_eq!(move_keys(&server, HashTags::Off).await.moved, before.len() as u64);
    assert_eq!(server.dump(0), keys);
    assert_eq!(move_keys(&server, HashTags::Off).await, KeyMove::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_in_braces_is_known_by_its_records() {
    let server = Server::start();
    let (plain, tagged) = (backend(&server, HashTags::Off).await, backend(&server, HashTags::On).await);
    let of = |owner: &str| format!(r#"{{"ownerId":"{owner}"}}"#).into_bytes();
    plain.put("{alice}:one", &of("{alice}")).await.unwrap();
    tagged.put("alice:two", &of("alice")).await.unwrap();
    assert_eq!(move_keys(&server, HashTags::On).await.moved, 1);
    assert_eq!(tagged.get("{alice}:one").await.unwrap().data, of("{alice}"));
    assert_eq!(tagged.get("alice:two").await.unwrap().data, of("alice"));
    assert_eq!(move_keys(&server, HashTags::Off).await.moved, 2);
    assert_eq!(plain.get("{alice}:one").await.unwrap().data, of("{alice}"));
    assert_eq!(plain.get("alice:two").await.unwrap().data, of("alice"));
    assert_eq!(move_keys(&server, HashTags::Off).await.moved, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_the_lua_scripts_moves_with_its_order() {
    let server = Server::start();
    let old = lua_backend(&server.url()).await.unwrap();
    let created = |n| format!(r#"{{"task":{{"createdAt":"2024-01-0{n}T00:00:00Z"}}}}"#).into_bytes();
    for (owner, task, n) in
        [("alice", "z", 1), ("alice", "a", 2), ("tenant:bob", "z", 3), ("tenant:bob", "a", 4)]
    {
        old.put(&format!("{owner}:{task}"), &created(n)).await.unwrap();
    }
    assert_eq!(move_keys(&server, HashTags::On).await.moved, 4);
    let tagged = backend(&server, HashTags::On).await;
    for owner in ["alice", "tenant:bob"] {
        let listed = tagged.list_by_prefix(&format!("{owner}:")).await.unwrap();
        let keys: Vec<_> = listed.into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [format!("{owner}:z"), format!("{owner}:a")]);
    }
    let mut left = server.wire();
    assert_eq!(left.call(&["KEYS", "pmcp:idx:[^{]*"]), "*0\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_needs_no_module_for_it() {
    let server = Server::start_with(&ServerOptions::default().without_module());
    let old = lua_backend(&server.url()).await.unwrap();
    for owner in ["alice", "tenant:bob"] {
        old.put(&format!("{owner}:t"), br#"{"task":{"createdAt":"2023-11-14T22:13:20Z"}}"#).await.unwrap();
    }
    assert_eq!(move_keys(&server, HashTags::On).await.moved, 2);
    let mut wire = server.wire();
    for owner in ["alice", "tenant:bob"] {
        let index = format!("pmcp:idx:{{{owner}}}");
        assert_eq!(wire.call(&["ZSCORE", &index, "t"]), "$13\r\n1700000000000\r\n", "{owner}");
    }
    assert_eq!(wire.call(&["DBSIZE"]), ":4\r\n");
}

/// What another client does between the read of a task and its move.
#[tokio::test(flavor = "multi_thread")]
async fn write_at_the_last_moment_counts() {
    let [task, index] = ["pmcp:tasks:alice:t", "pmcp:idx:alice"];
    let [new_task, new_index] = ["pmcp:tasks:{alice}:t", "pmcp:idx:{alice}"];
    let put = |task, index| vec!["PMCPTASK.PUT", task, index, "other"];
    // The versions under the old name and under the new name afterwards, and how many tasks moved.
    for (other, plain_version, tagged_version, moved) in [
        (put(task, index), 0, 2, 1),
        (put(new_task, new_index), 1, 1, 0),
        (vec!["PMCPTASK.DEL", task, index], 0, 0, 0),
        // A task that the scan has not seen.
        (put("pmcp:tasks:alice:u", index), 0, 1, 2),
    ] {
        let server = Server::start();
        let (plain, tagged) = (backend(&server, HashTags::Off).await, backend(&server, HashTags::On).await);
        plain.put("alice:t", b"data").await.unwrap();
        let proxy = Proxy::to(server.port());
        let words = other.iter().map(|word| (*word).to_owned()).collect();
        proxy.set(Fault::Before { command: "MULTI", other: words });
        let done = move_by(proxy.url()).await.unwrap();
        assert_eq!(done.moved, moved, "{other:?}");
        for (backend, expected) in [(&plain, plain_version), (&tagged, tagged_version)] {
            let version = backend.get("alice:t").await.map_or(0, |task| task.version);
            assert_eq!(version, expected, "{other:?}");
            let listed = backend.list_by_prefix("alice:").await.unwrap();
            let listed = listed.iter().find(|(key, _)| key == "alice:t").map_or(0, |(_, task)| task.version);
            assert_eq!(listed, expected, "{other:?}");
        }
        assert_eq!(server.wire().call(&["EXISTS", new_index]), format!(":{}\r\n", tagged_version.min(1)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn task_is_never_replaced_and_what_is_in_its_way_is_named() {
    let server = Server::start();
    let (plain, tagged) = (backend(&server, HashTags::Off).await, backend(&server, HashTags::On).await);
    plain.put("alice:both", b"old").await.unwrap();
    tagged.put("alice:both", b"new").await.unwrap();
    plain.put("bob:t", b"of bob").await.unwrap();
    plain.put("carol:t", b"of carol").await.unwrap();
    let mut wire = server.wire();
    wire.call(&["SET", "pmcp:idx:{bob}", "no index"]);
    let done = move_keys(&server, HashTags::On).await;
    assert_eq!(done.moved, 1);
    assert_eq!(done.left.iter().collect::<Vec<_>>(), ["pmcp:tasks:alice:both", "pmcp:tasks:bob:t"]);
    assert_eq!(plain.get("alice:both").await.unwrap().data, b"old");
    assert_eq!(tagged.get("alice:both").await.unwrap().data, b"new");
    assert_eq!(plain.get("bob:t").await.unwrap().data, b"of bob");
    assert_eq!(tagged.get("carol:t").await.unwrap().data, b"of carol");
    // Once these are out of the way, another run moves the other tasks.
    wire.call(&["DEL", "pmcp:idx:{bob}"]);
    tagged.delete("alice:both").await.unwrap();
    assert_eq!(move_keys(&server, HashTags::On).await.moved, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn move_that_is_interrupted_anywhere_goes_on_where_it_was() {
    const TASKS: usize = 300;
    let server = Server::start();
    let (plain, tagged) = (backend(&server, HashTags::Off).await, backend(&server, HashTags::On).await);
    for n in 0..TASKS {
        plain.put(&format!("owner-{}:t{n}", n % 7), n.to_string().as_bytes()).await.unwrap();
    }
    let proxy = Proxy::to(server.port());
    let target = Keyspace::default().with_hash_tags().unwrap();
    let mut interruptions = 0;
    loop {
        let mut connection = RedisBackend::builder(proxy.url()).open_connection().await.unwrap();
        let moving = pmcptask_cli::move_keys(&mut connection, &target);
        let cut = async {
            // Later each time, because the move must first read what has moved already.
            tokio::time::sleep(Duration::from_millis(10 * (interruptions + 1))).await;
            proxy.cut();
        };
        match tokio::join!(moving, cut).0 {
            Ok(done) => {
                assert!(done.left.is_empty());
                break;
            }
            Err(error) => {
                assert!(matches!(error, MoveError::Interrupted(_)), "{error}");
                interruptions += 1;
            }
        }
        // Each task exists under one of its names, and is listed there.
        let mut count = 0;
        for n in 0..7 {
            for backend in [&plain, &tagged] {
                count += backend.list_by_prefix(&format!("owner-{n}:")).await.unwrap().len();
            }
        }
        assert_eq!(count, TASKS);
    }
    assert!(interruptions > 0);
    for n in 0..TASKS {
        let task = tagged.get(&format!("owner-{}:t{n}", n % 7)).await.unwrap();
        assert_eq!((task.version, task.data), (1, n.to_string().into_bytes()));
    }
}

/// A writer's tasks: version and data of the last acknowledged write.
type Written = BTreeMap<String, (u64, Vec<u8>)>;

/// Creates tasks and writes to them, as if nothing happened, until told to stop.
async fn write(backend: RedisBackend, name: &'static str, ends: Arc<AtomicBool>) -> Written {
    let mut written = Written::new();
    for n in 0.. {
        if ends.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("owner-{}:{name}-{}", n % 3, n / 10);
        let data = format!("{name} {n}").into_bytes();
        let known = written.get(&key).map_or(0, |(version, _)| *version);
        let wrote = if known == 0 {
            backend.put(&key, &data).await
        } else {
            backend.put_if_version(&key, &data, known).await
        };
        match wrote {
            Ok(version) => {
                assert_eq!(version, known + 1, "{key}");
                written.insert(key, (version, data));
            }
            // The task has moved: this writer leaves it alone from now on.
            Err(StorageError::VersionConflict { actual: 0, .. }) => {}
            Err(error) => panic!("{key}: {error}"),
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_is_lost_though_clients_of_both_settings_go_on_writing() {
    let server = Server::start();
    let (plain, tagged) = (backend(&server, HashTags::Off).await, backend(&server, HashTags::On).await);
    let ends = Arc::new(AtomicBool::new(false));
    let writers = [(plain.clone(), "old"), (plain.clone(), "old-too"), (tagged.clone(), "new")];
    let writers = writers.map(|(backend, name)| tokio::spawn(write(backend, name, ends.clone())));
    // How many tasks of the first two have moved by now.
    let moved = async || {
        let mut moved = 0;
        for n in 0..3 {
            let listed = tagged.list_by_prefix(&format!("owner-{n}:")).await.unwrap();
            moved += listed.iter().filter(|(key, _)| key.contains(":old")).count();
        }
        moved
    };
    let started = Instant::now();
    let mut runs = 0;
    while runs < 3 || moved().await < 100 {
        assert!(started.elapsed() < Duration::from_mins(1), "{} tasks moved", moved().await);
        runs += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
        // The move may end while they write, or never end because there is always another task.
        let moving = move_by(server.url());
        if let Ok(ended) = tokio::time::timeout(Duration::from_millis(500), moving).await {
            ended.unwrap();
        }
    }
    ends.store(true, Ordering::SeqCst);
    let mut written = Written::new();
    for writer in writers {
        written.extend(writer.await.unwrap());
    }
    let done = move_keys(&server, HashTags::On).await;
    assert!(done.left.is_empty(), "{done:?}");
    for (key, (version, data)) in &written {
        let task = tagged.get(key).await.unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!((task.version, &task.data), (*version, data), "{key}");
    }
    let mut listed = 0;
    for n in 0..3 {
        listed += tagged.list_by_prefix(&format!("owner-{n}:")).await.unwrap().len();
        assert!(plain.list_by_prefix(&format!("owner-{n}:")).await.unwrap().is_empty());
    }
    assert_eq!(listed, written.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_behind_sentinels_is_moved_too_and_a_cluster_or_nothing_is_refused() {
    let watched = SentinelGroup::start(0);
    let plain = RedisBackend::new(&watched.url()).await.unwrap();
    plain.put("owner:t", b"data").await.unwrap();
    assert_eq!(move_by(watched.url()).await.unwrap().moved, 1);
    let error = |url: &str| {
        let builder = RedisBackend::builder(url).connect_timeout(Duration::from_millis(200));
        async { builder.open_connection().await.err().unwrap() }
    };
    let silent = Proxy::to_nobody(Fault::Silence);
    let in_cluster = error("redis+cluster://127.0.0.1:1").await;
    assert!(matches!(reason(&in_cluster), Error::Settings(_)), "{in_cluster}");
    let nobody = Port::free().unwrap();
    for url in [format!("redis://{}", nobody.address()), silent.url()] {
        let error = error(&url).await;
        assert!(matches!(reason(&error), Error::NoServer { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn command_moves_keys_and_says_what_it_did() {
    let server = Server::start();
    let (plain, tagged) = (backend(&server, HashTags::Off).await, backend(&server, HashTags::On).await);
    plain.put("alice:one", b"data").await.unwrap();
    plain.put("alice:two", b"data").await.unwrap();
    tagged.put("alice:two", b"data").await.unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(pmcptask_program()).arg("hash-tags").args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, said, warned) = run(&["on", &server.url()]);
    assert_eq!((code, said.as_str()), (1, "1 tasks moved\n"), "{warned}");
    assert!(warned.contains("another key is in the way: pmcp:tasks:alice:two\n"), "{warned}");
    tagged.delete("alice:two").await.unwrap();
    assert_eq!(
        run(&["on", &server.url(), "--prefix", "pmcp"]),
        (0, "1 tasks moved\n".to_owned(), String::new())
    );
    assert_eq!(run(&["on", &server.url(), "--prefix", "other"]).1, "0 tasks moved\n");
    assert_eq!(run(&["off", &server.url()]).1, "2 tasks moved\n");
    assert_eq!(run(&["of", &server.url()]).0, 2);
    let nobody = Port::free().unwrap();
    assert_eq!(run(&["on", &format!("redis://{}", nobody.address())]).0, 1);
}
