//! What docs/operations.md says to write into configuration files and to type is right.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::Duration;

use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{Error, RedisBackend};
use pmcptask_tests::{Cluster, Server, ServerOptions, Watched, reason};

const PAGE: &str = include_str!("../../docs/operations.md");

/// The lines of a section that stand in blocks of a language.
fn block(section: &str, language: &str) -> Vec<&'static str> {
    let section = PAGE.split("\n## ").find(|part| part.starts_with(section)).unwrap();
    let blocks = section.split("```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'));
    blocks.flat_map(str::lines).collect()
}

fn with(options: ServerOptions, section: &str) -> ServerOptions {
    let lines = block(section, "conf");
    assert!(!lines.is_empty(), "{section}");
    lines.iter().fold(options, |options, line| {
        let (name, value) = line.split_once(' ').unwrap();
        options.set(name, value)
    })
}

/// The rule for a user of that name, as words of a command.
fn rule(user: &str) -> Vec<&'static str> {
    let lines = block("Who may do what", "");
    let line = lines.into_iter().find(|line| line.starts_with(&format!("ACL SETUSER {user} "))).unwrap();
    line.split(' ').collect()
}

/// Makes the user of the page, who is let in with its password.
fn add_user(server: &Server, user: &str) {
    let mut wire = server.wire();
    assert_eq!(wire.call(&rule(user)), "+OK\r\n");
    if wire.call(&["ACL", "SETUSER", user, "+client|setinfo"]).starts_with('-') {
        // Redis 7.0 has no such command.
        assert!(wire.call(&["CLIENT", "SETINFO", "lib-name", "x"]).starts_with('-'));
    }
}

/// Nobody has tried what the rules do not allow.
fn assert_nothing_denied(server: &Server) {
    let denied = server.wire().call(&["ACL", "LOG"]);
    assert_eq!(denied, "*0\r\n", "{denied}");
}

/// Every call of the trait.
async fn use_all(backend: &RedisBackend) {
    for owner in 0..20 {
        let (key, owner) = (format!("{owner}:t"), format!("{owner}:"));
        assert_eq!(backend.put(&key, b"one").await.unwrap(), 1);
        assert_eq!(backend.put_if_version(&key, b"two", 1).await.unwrap(), 2);
        assert_eq!(backend.get(&key).await.unwrap().data, b"two");
        assert_eq!(backend.list_by_prefix(&owner).await.unwrap().len(), 1);
        assert!(backend.delete(&key).await.unwrap());
    }
    backend.check_health().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn user_of_the_page_can_do_all_on_one_server_and_no_more() {
    let server = Server::start();
    add_user(&server, "tasks");
    let url = server.url().replace("//", "//tasks:secret@");
    let backend = RedisBackend::builder(&url).client_name("worker").connect().await.unwrap();
    use_all(&backend).await;
    assert_nothing_denied(&server);
    let other = RedisBackend::builder(&url).prefix("other").connect().await.unwrap();
    let error = other.put("owner:t", b"data").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoPermission { .. }), "{error}");
    let mut wire = server.wire();
    assert_eq!(wire.call(&["AUTH", "tasks", "secret"]), "+OK\r\n");
    for denied in
        [&["HGETALL", "pmcp:tasks:owner:t"][..], &["FLUSHALL"], &["CONFIG", "GET", "*"], &["KEYS", "*"]]
    {
        assert!(wire.call(denied).starts_with("-NOPERM"), "{denied:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_the_settings_of_the_page_and_its_user_serve_all_kinds_of_calls() {
    let options = with(ServerOptions::default(), "A cluster").set("repl-diskless-sync-delay", "0");
    let cluster = Cluster::start_with(&options, 3, 1);
    for server in &cluster.servers {
        add_user(server, "tasks");
    }
    let url = cluster.url().replace("//", "//tasks:secret@");
    let builder = RedisBackend::builder(url).client_name("worker").read_from_replicas(true);
    let backend = builder.wait_for_replicas(1, Duration::from_secs(1)).connect().await.unwrap();
    use_all(&backend).await;
    // A slot on its way: redirects that say ASK.
    let [from, to] = {
        let first = cluster.servers.iter().position(|server| server.has_slot_of("{owner}")).unwrap();
        [&cluster.servers[first], &cluster.servers[(first + 1) % 3]]
    };
    assert_eq!(backend.put("owner:t", b"one").await.unwrap(), 1);
    from.start_moving(&from.slot_of("owner"), to);
    from.migrate(&["pmcp:tasks:{owner}:t", "pmcp:idx:{owner}"], to);
    assert_eq!(backend.put_if_version("owner:t", b"two", 1).await.unwrap(), 2);
    assert_eq!(backend.get("owner:t").await.unwrap().data, b"two");
    for server in &cluster.servers {
        assert_nothing_denied(server);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_with_the_settings_of_the_page_and_its_users_show_the_way() {
    let watched = Watched::start(1);
    for server in &watched.servers {
        add_user(server, "tasks");
    }
    for sentinel in &watched.sentinels {
        add_user(sentinel, "finder");
    }
    let url = watched.url().replace("//", "//tasks:secret@");
    let builder = RedisBackend::builder(url).client_name("worker").sentinel_login(Some("finder"), "secret");
    let builder = builder.wait_for_replicas(1, Duration::from_secs(1)).read_from_replicas(true);
    let backend = builder.connect().await.unwrap();
    use_all(&backend).await;
    for server in watched.servers.iter().chain(&watched.sentinels) {
        assert_nothing_denied(server);
    }
    let lines = block("Sentinel", "conf").join("\n").replace("host1", "127.0.0.1");
    let sentinel =
        lines.lines().fold(ServerOptions::default().without_module().sentinel(), |options, line| {
            let (name, value) = line.match_indices(' ').nth(1).map(|(at, _)| line.split_at(at)).unwrap();
            options.set(name, value.trim_start())
        });
    let sentinel = Server::start_with(&sentinel);
    assert!(sentinel.wire().call(&["INFO", "sentinel"]).contains("name=tasks"));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_keep_tasks_safe_are_taken_and_hold_writes_back_without_a_replica() {
    let server = Server::start_with(&with(ServerOptions::default(), "Keeping tasks safe"));
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    let error = backend.put("owner:t", b"data").await.unwrap_err();
    assert!(!reason(&error).outcome_is_unknown(), "{error}");
    let options = ServerOptions::default().set("replicaof", &format!("127.0.0.1 {}", server.port()));
    let _replica = Server::start_with(&options);
    let mut version = backend.put("owner:t", b"data").await;
    let started = std::time::Instant::now();
    while version.is_err() && started.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        version = backend.put("owner:t", b"data").await;
    }
    assert_eq!(version.unwrap(), 1);
}
