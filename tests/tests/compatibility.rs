//! This project reads and changes what `pmcp_tasks::RedisBackend` has written, and the other way round. Both
//! connect in the same ways.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pmcp_tasks::domain::TaskRecord;
use pmcp_tasks::store::backend::StorageBackend;
use pmcp_tasks::{GenericTaskStore, ListTasksOptions, RedisBackend as Lua, StorageError, TaskStatus};
use pmcptask_client::{Error, RedisBackend as Native};
use pmcptask_tests::{Port, Server, ServerOptions, lua_backend, now_ms, plain_connection, reason};
use redis::Commands;
use serde_json::json;

const HOUR_MS: u64 = 3_600_000;

async fn both(server: &Server) -> (Lua, Native) {
    (lua_backend(&server.url()).await.unwrap(), Native::new(&server.url()).await.unwrap())
}

/// A record and its bytes, as `GenericTaskStore` writes it.
fn record(ttl_ms: Option<u64>) -> (TaskRecord, Vec<u8>) {
    let record = TaskRecord::new("alice".to_owned(), "tools/call".to_owned(), ttl_ms);
    let bytes = serde_json::to_vec(&record).unwrap();
    (record, bytes)
}

// The keys.

/// Everything that a server holds under a prefix: types, values and expiry in ms, by the key without
/// the prefix.
fn stored(server: &Server, prefix: &str) -> BTreeMap<String, (String, BTreeMap<String, String>, i64)> {
    let mut connection = server.connection();
    let keys: Vec<String> = connection.keys(format!("{prefix}:*")).unwrap();
    keys.into_iter()
        .map(|key| {
            let kind: String = redis::cmd("TYPE").arg(&key).query(&mut connection).unwrap();
            let values = match kind.as_str() {
                "hash" => connection.hgetall(&key).unwrap(),
                "zset" => connection.zrange_withscores(&key, 0, -1).unwrap(),
                other => panic!("{key} is a {other}"),
            };
            let expiry = redis::cmd("PEXPIRETIME").arg(&key).query(&mut connection).unwrap();
            (key[prefix.len()..].to_owned(), (kind, values, expiry))
        })
        .collect()
}

async fn write_with_both(server: &Server, writes: &[(&str, &[u8])]) {
    let (lua, native) = both(server).await;
    let (lua, native) = (lua.with_prefix("lua"), native.with_prefix("native"));
    for (key, data) in writes {
        assert_eq!(lua.put(key, data).await.unwrap(), native.put(key, data).await.unwrap());
    }
}

#[tokio::test]
async fn both_write_the_same_keys_fields_types_and_scores() {
    let server = Server::start();
    let (first, first_bytes) = record(None);
    let (second, second_bytes) = record(None);
    let first_key = format!("alice:{}", first.task.task_id);
    let second_key = format!("bob:{}", second.task.task_id);
    write_with_both(
        &server,
        &[(&first_key, &first_bytes), (&second_key, &second_bytes), (&first_key, &first_bytes)],
    )
    .await;
    let lua = stored(&server, "lua");
    assert_eq!(lua.len(), 4);
    assert_eq!(stored(&server, "native"), lua);
}

#[tokio::test]
async fn expiry_is_the_same_but_for_the_part_of_a_second_that_lua_cuts_off() {
    let server = Server::start();
    let (record, bytes) = record(Some(HOUR_MS));
    let key = format!("alice:{}", record.task.task_id);
    write_with_both(&server, &[(&key, &bytes)]).await;
    let (mut lua, mut native) = (stored(&server, "lua"), stored(&server, "native"));
    let expires_at = record.expires_at.unwrap();
    let seconds = expires_at.timestamp();
    let part_ms = i64::from(expires_at.timestamp_subsec_nanos().div_ceil(1_000_000));
    let hash = format!(":tasks:{key}");
    let (_, lua_fields, lua_expiry) = lua.get_mut(&hash).unwrap();
    let (_, native_fields, native_expiry) = native.get_mut(&hash).unwrap();
    assert_eq!(*lua_expiry, seconds * 1000);
    assert_eq!(*native_expiry, seconds * 1000 + part_ms);
    assert_eq!(lua_fields.remove("expires_at"), Some(seconds.to_string()));
    assert_eq!(native_fields.remove("expires_at"), Some((seconds + i64::from(part_ms > 0)).to_string()));
    *native_expiry = *lua_expiry;
    assert_eq!(native, lua);
}

#[tokio::test]
async fn text_that_says_no_creation_time_has_score_0_in_lua_and_the_time_of_its_writing_here() {
    let server = Server::start();
    let before = now_ms();
    write_with_both(&server, &[("alice:t", b"plain text"), ("alice:t", b"{}")]).await;
    let (mut lua, mut native) = (stored(&server, "lua"), stored(&server, "native"));
    let score = |stored: &mut BTreeMap<String, (String, BTreeMap<String, String>, i64)>| {
        stored.get_mut(":idx:alice").unwrap().1.remove("t").unwrap().parse::<i64>().unwrap()
    };
    assert_eq!(score(&mut lua), 0);
    assert!((before..=now_ms()).contains(&score(&mut native)));
    assert_eq!(native, lua);
}

// One's data in the other's hands.

/// Data with and without an expiry, JSON or not.
fn samples() -> Vec<(String, Vec<u8>)> {
    let (lasting, lasting_bytes) = record(None);
    let (expiring, expiring_bytes) = record(Some(HOUR_MS));
    vec![
        (lasting.task.task_id, lasting_bytes),
        (expiring.task.task_id, expiring_bytes),
        ("text".to_owned(), b"plain text, no JSON".to_vec()),
        ("object".to_owned(), b"{}".to_vec()),
        ("empty".to_owned(), Vec::new()),
    ]
}

/// `other` reads, lists, changes and deletes what `writer` stores, and `writer` sees the changes.
async fn works_on(server: &Server, writer: &dyn StorageBackend, other: &dyn StorageBackend) {
    let samples = samples();
    for (task_id, data) in &samples {
        assert_eq!(writer.put(&format!("alice:{task_id}"), data).await.unwrap(), 1);
    }
    let mut listed = other.list_by_prefix("alice:").await.unwrap();
    let of_the_writer = writer.list_by_prefix("alice:").await.unwrap();
    let plain = |list: &[(String, pmcp_tasks::VersionedRecord)]| -> Vec<_> {
        list.iter().map(|(key, record)| (key.clone(), record.data.clone(), record.version)).collect()
    };
    assert_eq!(plain(&listed), plain(&of_the_writer), "same records in the same order");
    listed.sort_by(|one, other| one.0.cmp(&other.0));
    let mut expected: Vec<_> =
        samples.iter().map(|(task_id, data)| (format!("alice:{task_id}"), data.clone(), 1)).collect();
    expected.sort();
    assert_eq!(plain(&listed), expected);

    let index = stored(server, "pmcp")[":idx:alice"].clone();
    for (task_id, data) in &samples {
        let key = format!("alice:{task_id}");
        let read = other.get(&key).await.unwrap();
        assert_eq!((&read.data, read.version), (data, 1), "{key}");
        assert!(matches!(
            other.put_if_version(&key, b"lost", 7).await,
            Err(StorageError::VersionConflict { expected: 7, actual: 1, .. })
        ));
        assert_eq!(other.put_if_version(&key, data, 1).await.unwrap(), 2, "{key}");
        assert_eq!(writer.put_if_version(&key, data, 2).await.unwrap(), 3, "{key}");
        assert_eq!(other.put(&key, data).await.unwrap(), 4, "{key}");
        assert_eq!(writer.get(&key).await.unwrap().version, 4, "{key}");
    }
    assert_eq!(stored(server, "pmcp")[":idx:alice"], index, "creation times stay");
    for (task_id, _) in &samples {
        let key = format!("alice:{task_id}");
        assert!(other.delete(&key).await.unwrap(), "{key}");
        assert!(!writer.delete(&key).await.unwrap(), "{key}");
        assert!(matches!(writer.get(&key).await, Err(StorageError::NotFound { .. })), "{key}");
    }
    assert!(stored(server, "pmcp").is_empty());
}

#[tokio::test]
async fn data_of_lua_is_read_changed_and_deleted_here() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    works_on(&server, &lua, &native).await;
}

#[tokio::test]
async fn data_of_this_backend_is_read_changed_and_deleted_by_lua() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    works_on(&server, &native, &lua).await;
}

#[tokio::test]
async fn write_by_one_moves_and_removes_the_expiry_that_the_other_has_set() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    let writers: [&dyn StorageBackend; 2] = [&lua, &native];
    let expiry = || stored(&server, "pmcp")[":tasks:alice:t"].2;
    for (one, other) in [(0, 1), (1, 0)] {
        writers[one].put("alice:t", br#"{"expiresAt":"2100-01-01T00:00:00Z"}"#).await.unwrap();
        assert_eq!(expiry(), 4_102_444_800_000);
        writers[other].put("alice:t", br#"{"expiresAt":"2100-01-01T00:00:01Z"}"#).await.unwrap();
        assert_eq!(expiry(), 4_102_444_801_000);
        writers[one].put("alice:t", b"{}").await.unwrap();
        assert_eq!(expiry(), -1);
        assert!(!stored(&server, "pmcp")[":tasks:alice:t"].1.contains_key("expires_at"));
    }
}

#[tokio::test]
async fn task_that_lua_has_written_for_an_owner_with_a_colon_enters_its_own_list_with_the_next_write() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    lua.put("tenant:alice:t", b"theirs").await.unwrap();
    // Lua has put the task into the list of `tenant`, but it does not belong to that owner.
    assert!(lua.list_by_prefix("tenant:alice:").await.unwrap().is_empty());
    assert!(native.list_by_prefix("tenant:").await.unwrap().is_empty());
    assert_eq!(native.get("tenant:alice:t").await.unwrap().data, b"theirs");
    assert!(native.list_by_prefix("tenant:alice:").await.unwrap().is_empty());
    assert_eq!(native.put_if_version("tenant:alice:t", b"ours", 1).await.unwrap(), 2);
    let list = native.list_by_prefix("tenant:alice:").await.unwrap();
    assert_eq!((list.len(), list[0].0.as_str(), list[0].1.version), (1, "tenant:alice:t", 2));
}

// A task's life.

/// Starts tasks on one backend and ends them on another.
async fn lives<A: StorageBackend, B: StorageBackend>(starting: A, ending: B) {
    let starting = GenericTaskStore::new(starting);
    let ending = GenericTaskStore::new(ending);
    let done = starting.create("alice", "tools/call", Some(HOUR_MS)).await.unwrap();
    let dropped = starting.create("alice", "tools/call", None).await.unwrap();
    let others = ending.create("bob", "tools/call", None).await.unwrap();
    let (done, dropped) = (done.task.task_id, dropped.task.task_id);

    let waiting =
        ending.update_status(&done, "alice", TaskStatus::InputRequired, Some("a name".into())).await.unwrap();
    assert_eq!((waiting.task.status, waiting.version), (TaskStatus::InputRequired, 2));
    let variables = [("name".to_owned(), json!("Ada"))].into();
    assert_eq!(starting.set_variables(&done, "alice", variables).await.unwrap().version, 3);
    let working = ending.update_status(&done, "alice", TaskStatus::Working, None).await.unwrap();
    assert_eq!((working.variables["name"].clone(), working.version), (json!("Ada"), 4));
    assert!(starting.get_result(&done, "alice").await.is_err(), "it is not ready");
    let result = json!({"content": [], "text": "\u{0}%s ü"});
    let completed = ending
        .complete_with_result(&done, "alice", TaskStatus::Completed, None, result.clone())
        .await
        .unwrap();
    assert_eq!(completed.version, 5);
    assert_eq!(starting.get_result(&done, "alice").await.unwrap(), result);
    assert_eq!(ending.get_result(&done, "alice").await.unwrap(), result);
    assert!(starting.get(&done, "bob").await.is_err(), "it is alice's");

    let cancelled = ending.cancel(&dropped, "alice").await.unwrap();
    assert_eq!(cancelled.task.status, TaskStatus::Cancelled);
    assert!(starting.cancel(&dropped, "alice").await.is_err(), "it has ended");

    let page = |owner: &str| ListTasksOptions { owner_id: owner.to_owned(), cursor: None, limit: None };
    for (owner, expected) in [("alice", vec![&done, &dropped]), ("bob", vec![&others.task.task_id])] {
        let one = starting.list(page(owner)).await.unwrap().tasks;
        let other = ending.list(page(owner)).await.unwrap().tasks;
        let seen = |tasks: &[TaskRecord]| -> Vec<_> {
            let mut seen: Vec<_> = tasks
                .iter()
                .map(|task| (task.task.task_id.clone(), task.task.status, task.version))
                .collect();
            seen.sort_by(|one, other| one.0.cmp(&other.0));
            seen
        };
        assert_eq!(seen(&one), seen(&other), "{owner}");
        assert_eq!(one.len(), expected.len(), "{owner}");
        assert!(expected.iter().all(|id| one.iter().any(|task| &task.task.task_id == *id)), "{owner}");
    }
}

#[tokio::test]
async fn task_started_with_lua_ends_here() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    lives(lua, native).await;
}

#[tokio::test]
async fn task_started_here_ends_with_lua() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    lives(native, lua).await;
}

// Connecting.

/// The message of an error, and its type.
fn sentence(error: &StorageError) -> (&str, &Error) {
    match error {
        StorageError::Backend { message, .. } => (message, reason(error)),
        other => panic!("{other}"),
    }
}

/// Everything that an error can show: its texts and those of its sources, with Display and with Debug.
fn everything_shown(error: &StorageError) -> String {
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |&error| error.source());
    chain.map(|error| format!("{error} {error:?}")).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn no_server_is_told_at_once_with_the_address() {
    let free = Port::free().unwrap();
    let port = free.number();
    let started = Instant::now();
    let error = Native::new(&format!("redis://:sesame@127.0.0.1:{port}/")).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2));
    let (message, source) = sentence(&error);
    assert_eq!(
        message,
        format!(
            "no Redis server answers at 127.0.0.1:{port} (Connection refused (os error 111)): is it running, is the \
             address right, and can it be reached from here?"
        )
    );
    assert!(matches!(source, Error::NoServer { .. }));
    assert!(!everything_shown(&error).contains("sesame"));
}

#[tokio::test]
async fn server_that_repeats_the_password_does_not_make_the_client_show_it() {
    for (renamed, end) in [("HELLO", ""), ("AUTH", "?protocol=2")] {
        let server =
            Server::start_with(&ServerOptions::default().set("rename-command", &format!("{renamed} none")));
        let url = format!("redis://:sesame@127.0.0.1:{}/{end}", server.port());
        let error = Native::new(&url).await.unwrap_err();
        let shown = everything_shown(&error);
        assert!(shown.contains("unknown command") && shown.contains(renamed), "{shown}");
        assert!(!shown.contains("sesame"), "{shown}");
    }
}

#[tokio::test]
async fn wrong_password_is_told_at_once() {
    let mut server = Server::start_with(&ServerOptions::default().set("requirepass", "right"));
    let logins = [(":sesame@", "WRONGPASS"), ("", "NOAUTH"), ("nobody:sesame@", "WRONGPASS")];
    for ((login, words), end) in
        logins.into_iter().flat_map(|login| ["", "3", "?protocol=2", "3?protocol=2"].map(|end| (login, end)))
    {
        let url = format!("redis://{login}127.0.0.1:{}/{end}", server.port());
        let error = Native::new(&url).await.unwrap_err();
        let (message, source) = sentence(&error);
        let refuses = "refuses the user name or password, check them in the URL: ";
        let expected = format!("the Redis server at 127.0.0.1:{} {refuses}", server.port());
        assert!(message.starts_with(&expected) && message.contains(words), "{url}: {message}");
        assert!(matches!(source, Error::Authentication { .. }), "{url}");
        assert!(!everything_shown(&error).contains("sesame"), "{url}");
    }
    for end in ["3", "?protocol=2"] {
        let url = format!("redis://:right@127.0.0.1:{}/{end}", server.port());
        assert_eq!(Native::new(&url).await.unwrap().put("alice:t", b"d").await.unwrap(), 1, "{url}");
    }
    let backend = Native::new(&format!("redis://:right@127.0.0.1:{}/", server.port())).await.unwrap();
    assert_eq!(backend.put("alice:t", b"d").await.unwrap(), 2);
    assert!(!format!("{backend:?}").contains("right"));
    // Without the password, the server cannot be asked to stop.
    server.kill();
}

fn how_to_load(server: &Server) -> String {
    format!(
        "the Redis server at 127.0.0.1:{} has no pmcptask module: start it with --loadmodule \
         /path/to/libpmcptask.so, or put 'loadmodule /path/to/libpmcptask.so' in its redis.conf",
        server.port()
    )
}

#[tokio::test]
async fn server_without_the_module_is_told_at_once_with_how_to_load_it() {
    let server = Server::start_with(&ServerOptions::default().without_module());
    let error = Native::new(&server.url()).await.unwrap_err();
    let (message, source) = sentence(&error);
    assert_eq!(message, how_to_load(&server));
    assert!(matches!(source, Error::ModuleNotLoaded { .. }));
}

#[tokio::test]
async fn text_that_is_not_a_url_is_reported_without_a_server() {
    for url in ["", "127.0.0.1", "http://127.0.0.1/", "redis://127.0.0.1/database"] {
        let error = Native::new(url).await.unwrap_err();
        let (message, source) = sentence(&error);
        assert!(message.starts_with("settings of the Redis backend: "), "{url}: {message}");
        assert!(matches!(source, Error::Settings(_)), "{url}");
    }
}

#[tokio::test]
async fn no_error_shows_data() {
    const SECRET: &str = "s3cr3t";
    let mut server = Server::start();
    let native = Native::new(&server.url()).await.unwrap();
    let mut wire = server.wire();
    wire.call(&["CONFIG", "SET", "pmcptask.max-record-bytes", "60"]);
    wire.call(&["HSET", "pmcp:tasks:alice:corrupt", "version", SECRET, "data", SECRET]);
    wire.call(&["SET", "pmcp:tasks:alice:text", SECRET]);
    wire.call(&["SET", "pmcp:idx:text", SECRET]);
    native.put("alice:t", SECRET.as_bytes()).await.unwrap();
    let unreadable = format!(r#"{{"expiresAt":"{SECRET}"}}"#);
    let mut errors = vec![
        native.put("alice:large", SECRET.repeat(20).as_bytes()).await.unwrap_err(),
        native.put("alice:t", unreadable.as_bytes()).await.unwrap_err(),
        native.put_if_version("alice:t", unreadable.as_bytes(), 1).await.unwrap_err(),
        native.put_if_version("alice:t", SECRET.as_bytes(), 7).await.unwrap_err(),
        native.put_if_version("alice:none", SECRET.as_bytes(), 7).await.unwrap_err(),
        native.get("alice:corrupt").await.map(drop).unwrap_err(),
        native.put("alice:corrupt", SECRET.as_bytes()).await.unwrap_err(),
        native.get("alice:text").await.map(drop).unwrap_err(),
        native.put("alice:text", SECRET.as_bytes()).await.unwrap_err(),
        native.list_by_prefix("text:").await.map(drop).unwrap_err(),
        native.put("none", SECRET.as_bytes()).await.unwrap_err(),
        native.put("none:", SECRET.as_bytes()).await.unwrap_err(),
    ];
    server.stop();
    server.restart_with(&ServerOptions::default().without_module());
    // The first call detects that its connection is gone.
    let _ = native.get("alice:t").await;
    let without_module = native.put("alice:t", SECRET.as_bytes()).await.unwrap_err();
    assert_eq!(sentence(&without_module).0, how_to_load(&server));
    errors.push(without_module);
    errors.push(native.put_if_version("alice:t", SECRET.as_bytes(), 1).await.unwrap_err());
    for error in &errors {
        assert!(!everything_shown(error).contains(SECRET), "{error}");
    }
}

#[tokio::test]
async fn refusal_of_the_server_keeps_its_meaning_and_is_no_unknown_outcome() {
    let server = Server::start();
    let native = Native::new(&server.url()).await.unwrap();
    let given = Native::with_connection(plain_connection(&server.url()).await.unwrap());
    let mut wire = server.wire();
    wire.call(&["CONFIG", "SET", "pmcptask.max-record-bytes", "5"]);
    wire.call(&["HSET", "pmcp:tasks:alice:corrupt", "version", "0", "data", "d"]);
    wire.call(&["SET", "pmcp:tasks:alice:text", "text"]);
    for backend in [&native, &given] {
        let large = backend.put("alice:t", b"123456").await;
        assert!(matches!(large, Err(StorageError::CapacityExceeded { .. })), "{large:?}");
        let corrupt = backend.get("alice:corrupt").await.map(drop).unwrap_err();
        assert!(matches!(sentence(&corrupt).1, Error::Corrupt { .. }), "{corrupt}");
        let text = backend.put("alice:text", b"d").await.unwrap_err();
        assert!(matches!(sentence(&text).1, Error::Refused { .. }), "{text}");
        for error in [corrupt, text] {
            assert!(!sentence(&error).1.outcome_is_unknown(), "{error}");
        }
    }
}

#[tokio::test]
async fn connection_that_is_there_already_can_be_used() {
    let server = Server::start();
    let connection = plain_connection(&server.url()).await.unwrap();
    let native = Native::with_connection(connection.clone());
    assert_eq!(native.put("alice:t", b"d").await.unwrap(), 1);
    assert_eq!(Lua::with_connection(connection).get("alice:t").await.unwrap().data, b"d");
    assert_eq!(native.put_if_version("alice:t", b"e", 1).await.unwrap(), 2);
    assert_eq!(native.list_by_prefix("alice:").await.unwrap().len(), 1);
    assert!(native.delete("alice:t").await.unwrap());
}

#[tokio::test]
async fn prefix_that_cannot_be_told_from_the_rest_of_a_key_is_refused() {
    let server = Server::start();
    for prefix in ["a:tasks:b", "a:idx:b", "a:tasks", ":idx"] {
        let error = Native::builder(server.url()).prefix(prefix).connect().await.unwrap_err();
        let (message, source) = sentence(&error);
        assert!(message.contains(&format!("key prefix {prefix:?}")), "{message}");
        assert!(matches!(source, Error::Settings(_)), "{prefix}");
        let native = Native::new(&server.url()).await.unwrap().with_prefix(prefix);
        for error in [
            native.get("alice:t").await.map(drop).unwrap_err(),
            native.put("alice:t", b"d").await.map(drop).unwrap_err(),
            native.put_if_version("alice:t", b"d", 1).await.map(drop).unwrap_err(),
            native.delete("alice:t").await.map(drop).unwrap_err(),
            native.list_by_prefix("alice:").await.map(drop).unwrap_err(),
        ] {
            assert!(matches!(sentence(&error).1, Error::Settings(_)), "{prefix}: {error}");
        }
    }
    let keys: usize = redis::cmd("DBSIZE").query(&mut server.connection()).unwrap();
    assert_eq!(keys, 0);
}

#[tokio::test]
async fn prefix_of_ones_own_works_with_both() {
    let server = Server::start();
    for prefix in ["my-app", "a:b", "", "{x}"] {
        let native = Native::builder(server.url()).prefix(prefix).connect().await.unwrap();
        native.put("alice:t", prefix.as_bytes()).await.unwrap();
        let lua = lua_backend(&server.url()).await.unwrap().with_prefix(prefix);
        assert_eq!(lua.get("alice:t").await.unwrap().data, prefix.as_bytes());
        assert_eq!(lua.list_by_prefix("alice:").await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn unix_socket_is_an_address() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let socket = socket.to_str().unwrap();
    let server = Server::start_with(&ServerOptions::default().set("unixsocket", socket));
    for scheme in ["redis+unix", "unix"] {
        let native = Native::new(&format!("{scheme}://{socket}")).await.unwrap();
        native.put("alice:t", scheme.as_bytes()).await.unwrap();
        let over_tcp = Native::new(&server.url()).await.unwrap();
        assert_eq!(over_tcp.get("alice:t").await.unwrap().data, scheme.as_bytes());
    }
}

#[tokio::test]
async fn database_number_is_part_of_the_url() {
    let server = Server::start();
    let third = Native::new(&format!("{}3", server.url())).await.unwrap();
    third.put("alice:t", b"d").await.unwrap();
    let first = Native::new(&server.url()).await.unwrap();
    assert!(matches!(first.get("alice:t").await, Err(StorageError::NotFound { .. })));
    let mut wire = server.wire();
    assert_eq!(wire.call(&["DBSIZE"]), ":0\r\n");
    wire.call(&["SELECT", "3"]);
    assert_eq!(wire.call(&["DBSIZE"]), ":2\r\n");
    // In another database, too, the index entry goes with its task.
    wire.expire_soon("pmcp:tasks:alice:t");
    assert!(pmcptask_tests::holds_within(Duration::from_secs(5), || wire.call(&["DBSIZE"]) == ":0\r\n"));
    let beyond = Native::new(&format!("{}99", server.url())).await.unwrap_err();
    assert!(matches!(sentence(&beyond).1, Error::Refused { .. }), "{beyond}");
}

#[tokio::test]
async fn acl_user_of_the_url_needs_the_five_commands_and_the_keys() {
    let server = Server::start();
    let mut wire = server.wire();
    let rules =
        "on >pass%word ~pmcp:* +pmcptask.put +pmcptask.cas +pmcptask.get +pmcptask.del +pmcptask.list";
    let set_user: Vec<_> = ["ACL", "SETUSER", "alice"].into_iter().chain(rules.split(' ')).collect();
    assert_eq!(wire.call(&set_user), "+OK\r\n");
    let url = format!("redis://alice:pass%25word@127.0.0.1:{}/", server.port());
    let native = Native::new(&url).await.unwrap();
    assert_eq!(native.put("alice:t", b"d").await.unwrap(), 1);
    assert_eq!(native.put_if_version("alice:t", b"e", 1).await.unwrap(), 2);
    assert_eq!(native.get("alice:t").await.unwrap().version, 2);
    assert_eq!(native.list_by_prefix("alice:").await.unwrap().len(), 1);
    assert!(native.delete("alice:t").await.unwrap());
    let elsewhere = native.with_prefix("other");
    let error = elsewhere.put("alice:t", b"d").await.unwrap_err();
    assert!(matches!(sentence(&error).1, Error::NoPermission { .. }), "{error}");
}
