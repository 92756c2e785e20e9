//! The files and commands in docs/operations.md are right. Each block runs as an operator would run it, on
//! machines that are ports of this one.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs};

use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{Error, RedisBackend, RedisBackendBuilder as Builder};
use pmcptask_tests::{
    Cluster, FILE, Port, SentinelGroup, Server, ServerOptions, assert_hashes_and_entries_agree, holds_within,
    pmcptask_program, reason,
};
use tempfile::TempDir;

const PAGE: &str = include_str!("../../docs/operations.md");
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The sections of the page that have blocks, and how many. Each is tested below.
const SECTIONS: [(&str, usize); 9] = [
    ("Set up", 2),
    ("Harden", 3),
    ("Replicas and Sentinels", 4),
    ("A cluster", 3),
    ("What to watch", 1),
    ("A new version of the module", 4),
    ("From one server to a cluster", 2),
    ("Back up and restore", 2),
    ("Remove the module", 1),
];

/// The blocks of a section, each with its language in the first line.
fn fenced(section: &str) -> Vec<&'static str> {
    section_of(section).split("```").skip(1).step_by(2).collect()
}

fn section_of(title: &str) -> &'static str {
    PAGE.split("\n## ").find(|part| part.starts_with(title)).unwrap()
}

/// All blocks of a section.
fn blocks<const N: usize>(section: &str) -> [&'static str; N] {
    let blocks = fenced(section).into_iter().map(|block| block.split_once('\n').unwrap().1);
    blocks.collect::<Vec<_>>().try_into().unwrap_or_else(|blocks| panic!("{section}: {blocks:#?}"))
}

/// The machines of the page, and a folder in place of the system's folders.
struct Site {
    folder: TempDir,
    /// By host name and port, as the page writes them.
    hosts: BTreeMap<&'static str, Server>,
}

impl Site {
    fn new() -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap(), hosts: BTreeMap::new() };
        let [users, _, _] = blocks("Harden");
        fs::write(site.folder.path().join("users.acl"), users).unwrap();
        let cli = ServerOptions::default().cli_program();
        // A redis-cli from the search path needs no wrapper.
        if cli.components().count() > 1 {
            site.add_program("redis-cli", &format!("exec '{}' \"$@\"", cli.display()));
        }
        site.add_program("pmcptask", &format!("exec '{}' \"$@\"", pmcptask_program().display()));
        site
    }

    fn add_program(&self, name: &str, script: &str) {
        let path = self.programs().join(name);
        fs::create_dir_all(self.programs()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn programs(&self) -> PathBuf {
        self.folder.path().join("bin")
    }

    /// The options of a server that is set up and hardened as the page says.
    fn options(&self) -> ServerOptions {
        let [_, conf] = blocks("Set up");
        let [_, harden, _] = blocks("Harden");
        let options = ServerOptions::default().in_file().login("admin", "admin-secret");
        // A replica need not wait for other replicas.
        let options = options.set("repl-diskless-sync-delay", "0");
        self.with(self.with(options, conf), harden)
    }

    /// Adds the lines of a configuration file. The harness itself loads the module from its build folder.
    fn with(&self, options: ServerOptions, lines: &str) -> ServerOptions {
        lines.lines().filter(|line| !line.starts_with("loadmodule ")).fold(options, |options, line| {
            let line = self.at_home(line);
            let (name, value) = line.split_once(' ').unwrap();
            options.set(name, value)
        })
    }

    fn start(&mut self, host: &'static str, options: &ServerOptions) {
        self.hosts.insert(host, Server::start_with(options));
    }

    /// The text of the page, with the machines and folders of this test.
    fn at_home(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, server) in &self.hosts {
            let (host, port) = name.split_once(':').unwrap();
            let here = format!("127.0.0.1 -p {}", server.port());
            text = text.replace(name, &format!("127.0.0.1:{}", server.port()));
            text = text.replace(&format!("{host} -p {port}"), &here);
            text = text.replace(&format!("{host} {port}"), &format!("127.0.0.1 {}", server.port()));
            if port == "6379" {
                text = text.replace(&format!("-h {host} "), &format!("-h {here} "));
            }
        }
        if let Some((_, first)) = self.hosts.first_key_value() {
            let folder = first.folder().display().to_string();
            text = text.replace("/etc/redis/redis.conf", &format!("{folder}/{FILE}"));
            text = text.replace("/var/lib/redis", &folder);
        }
        let folder = self.folder.path().display().to_string();
        text.replace("/etc/redis", &folder).replace("/var/backups", &folder)
    }

    /// Runs a block, and returns its output. Fails if a command fails or a server refuses one.
    fn operate(&mut self, block: &str) -> String {
        let mut said = String::new();
        for line in block.lines() {
            let Some(systemctl) = line.strip_prefix("systemctl ") else {
                said += &self.type_line(line);
                continue;
            };
            let (what, host) = systemctl.split_once("redis-server").unwrap();
            let server =
                self.hosts.get_mut(format!("{}:6379", host.trim().trim_start_matches("# ")).as_str());
            let server = server.unwrap_or_else(|| panic!("{line}"));
            if what != "start " {
                server.stop();
            }
            if what != "stop " {
                server.restart();
            }
        }
        said
    }

    fn type_line(&self, line: &str) -> String {
        let [_, _, harden] = blocks("Harden");
        let login = harden.lines().find(|line| line.starts_with("export ")).unwrap();
        let line = self.at_home(line);
        println!("$ {line}");
        let output = shell(&format!("{login}; {line}"), &self.programs());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let warned = String::from_utf8_lossy(&output.stderr);
        let is_refusal =
            |line: &str| ["ERR ", "NO", "WRONG", "AUTH "].iter().any(|code| line.starts_with(code));
        let refusal = said.lines().find(|line| is_refusal(line));
        assert!(output.status.success() && refusal.is_none(), "{line}\n{said}\n{warned}");
        said
    }

    /// A client as on the page.
    fn client(url: &str) -> Builder {
        RedisBackend::builder(url).connect_timeout(Duration::from_secs(20))
    }

    fn url_of(&self, host: &str) -> String {
        self.hosts[host].url().replace("//", "//tasks:tasks-secret@")
    }

    /// Asserts that the ACL rules denied no command.
    fn assert_nothing_denied(&self) {
        for (host, server) in &self.hosts {
            let denied = server.wire().call(&["ACL", "LOG"]);
            // Redis 7.0 has no CLIENT SETINFO; for other servers, the page says how to allow it.
            let denied: Vec<_> =
                denied.split("reason").skip(1).filter(|one| !one.contains("setinfo")).collect();
            assert!(denied.is_empty(), "{host}: {denied:#?}");
        }
    }
}

/// Runs a line of the page, and answers yes to every question.
fn shell(line: &str, programs: &Path) -> Output {
    let mut process = Command::new("bash")
        .args(["-euo", "pipefail", "-c", line])
        .env("PATH", format!("{}:{}", programs.display(), env::var("PATH").unwrap()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that asks nothing may have ended already.
    let _ = process.stdin.take().unwrap().write_all(b"yes\nyes\n");
    process.wait_with_output().unwrap()
}

/// Uses every method of the trait.
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

/// A client that creates tasks all the time.
struct Writer {
    /// What happens while it writes.
    name: &'static str,
    ends: Arc<AtomicBool>,
    work: tokio::task::JoinHandle<Written>,
}

#[derive(Default)]
struct Written {
    acknowledged: Vec<String>,
    failed: Vec<String>,
    longest_wait: Duration,
}

impl Writer {
    fn start(name: &'static str, backend: RedisBackend) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let told = ends.clone();
        let work = tokio::spawn(async move {
            let mut written = Written::default();
            for n in 0.. {
                if told.load(Ordering::SeqCst) {
                    break;
                }
                let key = format!("owner-{}:{name}-{n}", n % 50);
                let started = Instant::now();
                let result = backend.put(&key, b"data").await;
                written.longest_wait = written.longest_wait.max(started.elapsed());
                match result {
                    Ok(version) => {
                        assert_eq!(version, 1, "{key}");
                        written.acknowledged.push(key);
                    }
                    Err(error) => written.failed.push(error.to_string()),
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            written
        });
        Self { name, ends, work }
    }

    /// Asserts that every acknowledged task is there, and that every failed write has an unknown outcome.
    async fn stop(self, backend: &RedisBackend) {
        let what = self.name;
        self.ends.store(true, Ordering::SeqCst);
        let written = self.work.await.unwrap();
        let Written { acknowledged, failed, longest_wait } = &written;
        println!(
            "{what}: {} writes, longest wait {} ms, {} with an unknown outcome",
            acknowledged.len(),
            longest_wait.as_millis(),
            failed.len()
        );
        assert!(!acknowledged.is_empty());
        // Writes that were in flight when a connection was closed.
        assert!(failed.iter().all(|error| error.contains("outcome")) && failed.len() < 5, "{failed:#?}");
        for key in acknowledged {
            backend.get(key).await.unwrap_or_else(|error| panic!("{what}: {key}: {error}"));
        }
    }
}

#[test]
fn every_block_of_the_page_is_known_to_these_tests() {
    let found: Vec<_> = PAGE.split("\n## ").skip(1).map(|part| part.lines().next().unwrap()).collect();
    let found = found.into_iter().map(|title| (title, fenced(title).len())).filter(|(_, count)| *count > 0);
    assert_eq!(found.collect::<Vec<_>>(), SECTIONS);
}

// Set up.

#[test]
fn make_install_puts_the_module_and_the_command_where_the_page_says() {
    let [install, conf] = blocks("Set up");
    let root = tempfile::tempdir().unwrap();
    let built = root.path().join("target/release");
    fs::create_dir_all(&built).unwrap();
    for file in ["libpmcptask.so", "pmcptask"] {
        fs::write(built.join(file), file).unwrap();
    }
    // Building takes minutes, and other tests use the same build.
    let unbuilt = install.trim().replace(
        "make ",
        &format!("make -C '{REPOSITORY}' --no-print-directory -o build -o build-cli CARGO_TARGET_DIR='{0}/target' DESTDIR='{0}' ", root.path().display()),
    );
    let output = shell(&unbuilt, root.path());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let line = conf.lines().next().unwrap();
    assert!(said.contains(line), "{said}");
    let module = line.strip_prefix("loadmodule ").unwrap();
    for (path, content) in [(module, "libpmcptask.so"), ("/usr/local/bin/pmcptask", "pmcptask")] {
        assert!(section_of("Set up").contains(Path::new(path).parent().unwrap().to_str().unwrap()), "{path}");
        let installed = root.path().join(path.trim_start_matches('/'));
        assert_eq!(fs::read_to_string(&installed).unwrap(), content);
        assert_ne!(fs::metadata(&installed).unwrap().permissions().mode() & 0o111, 0, "{path}");
    }
}

/// Runs `make run` in a copy of the files that it uses.
#[test]
fn config_rewrite_after_make_run_leaves_the_repository_alone_and_the_next_one_starts() {
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("scripts")).unwrap();
    for file in ["scripts/run-server.sh", "redis.conf"] {
        fs::copy(Path::new(REPOSITORY).join(file), copy.path().join(file)).unwrap();
    }
    let settings = fs::read(copy.path().join("redis.conf")).unwrap();
    let probe = Server::start();
    let module = probe.wire().call(&["MODULE", "LIST"]);
    let module = module.lines().find(|line| line.ends_with("libpmcptask.so"));
    for _ in 0..2 {
        let Some(module) = module else {
            // MODULE LIST is the only source of the library's path.
            panic!("MODULE LIST tells no path");
        };
        let free = Port::free().unwrap();
        let port = free.number();
        let mut process = Command::new("bash")
            .arg(copy.path().join("scripts/run-server.sh"))
            .arg(module)
            .env("SERVER", ServerOptions::default().server_program())
            .env("PORT", port.to_string())
            .env("DATA", copy.path().join("data"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let call = |words: &[&str]| {
            let wire = pmcptask_tests::Wire::open(port);
            wire.and_then(|mut wire| wire.try_call(words)).unwrap_or_default()
        };
        let is_up = holds_within(Duration::from_secs(30), || call(&["PING"]) == "+PONG\r\n");
        let rewritten = call(&["CONFIG", "REWRITE"]);
        let information = call(&["INFO", "pmcptask"]);
        call(&["SHUTDOWN", "NOSAVE"]);
        if !is_up {
            process.kill().unwrap();
        }
        process.wait().unwrap();
        assert!(is_up);
        assert_eq!(rewritten, "+OK\r\n");
        assert!(information.contains("pmcptask_"), "{information}");
        assert_eq!(fs::read(copy.path().join("redis.conf")).unwrap(), settings);
    }
}

// Harden.

#[tokio::test(flavor = "multi_thread")]
async fn users_of_the_page_can_do_their_work_and_no_more_also_after_a_restart() {
    let [_, _, check] = blocks("Harden");
    let mut site = Site::new();
    site.start("host1:6379", &site.options());
    let said = site.operate(check);
    assert!(said.contains("user default off") && said.contains("pmcptask_"), "{said}");
    let mut wire = site.hosts["host1:6379"].wire();
    assert!(wire.call(&["CONFIG", "GET", "protected-mode"]).contains("yes"));
    // Protected mode works only while the default user needs no password.
    assert!(!wire.call(&["ACL", "GETUSER", "default"]).contains("nopass"));
    let backend = Site::client(&site.url_of("host1:6379")).client_name("worker").connect().await.unwrap();
    for version in 1..=2 {
        use_all(&backend).await;
        assert_eq!(backend.put("kept:t", b"data").await.unwrap(), version);
        site.assert_nothing_denied();
        let server = site.hosts.get_mut("host1:6379").unwrap();
        let mut stranger = pmcptask_tests::Wire::open(server.port()).unwrap();
        assert!(stranger.call(&["PING"]).starts_with("-NOAUTH"));
        assert!(stranger.call(&["AUTH", "default", ""]).starts_with("-WRONGPASS"));
        assert_eq!(stranger.call(&["AUTH", "tasks", "tasks-secret"]), "+OK\r\n");
        for denied in
            [&["HGETALL", "pmcp:tasks:owner:t"][..], &["FLUSHALL"], &["CONFIG", "GET", "*"], &["KEYS", "*"]]
        {
            assert!(stranger.call(denied).starts_with("-NOPERM"), "{denied:?}");
        }
        // The server reads its AOF as the default user.
        server.stop();
        server.restart();
    }
    assert_eq!(backend.get("kept:t").await.unwrap().version, 2);
    let other = Site::client(&site.url_of("host1:6379")).prefix("other").connect().await.unwrap();
    let error = other.put("owner:t", b"data").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoPermission { .. }), "{error}");
}

// Replicas and Sentinels.

/// A primary, two replicas and three Sentinels, set up as the page says.
fn watched() -> Site {
    let [replica, enough, sentinel, _] = blocks("Replicas and Sentinels");
    let mut site = Site::new();
    let options = site.with(site.options(), enough);
    site.start("host1:6379", &options);
    for host in ["host2:6379", "host3:6379"] {
        site.start(host, &site.with(options.clone(), replica));
    }
    let options = ServerOptions::default().sentinel().login("admin", "admin-secret");
    let options = site.at_home(sentinel).lines().fold(options, |options, line| {
        let (name, value) = line.split_once(' ').unwrap();
        options.set(name, value)
    });
    for host in ["host1:26379", "host2:26379", "host3:26379"] {
        site.start(host, &options);
    }
    site.settle()
}

impl Site {
    /// Waits with the harness, which needs servers and Sentinels separately.
    fn settle(mut self) -> Self {
        let (sentinels, servers): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.hosts).into_iter().partition(|(host, _)| host.ends_with(":26379"));
        let names: Vec<_> = servers.keys().chain(sentinels.keys()).copied().collect();
        let watched = SentinelGroup {
            servers: servers.into_values().collect(),
            sentinels: sentinels.into_values().collect(),
        };
        watched.wait_until_settled();
        self.hosts = names.into_iter().zip(watched.servers.into_iter().chain(watched.sentinels)).collect();
        self
    }

    /// The URL of the page for Sentinels.
    fn watched_client(&self) -> Builder {
        let [_, _, _, url] = blocks("Replicas and Sentinels");
        let hosts = ["host1:26379", "host2:26379", "host3:26379"];
        let url = self.at_home(&url.trim().replace("host1,host2,host3", &hosts.join(",")));
        Self::client(&url).sentinel_login(Some("finder"), "finder-secret")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_loses_a_write_while_servers_behind_sentinels_get_a_new_module_and_fail_over_and_back() {
    let [_, restart, fail_over, _] = blocks("A new version of the module");
    let mut site = watched();
    let builder = site.watched_client().wait_for_replicas(1, Duration::from_secs(5)).read_from_replicas(true);
    use_all(&builder.client_name("worker").connect().await.unwrap()).await;
    site.assert_nothing_denied();
    let backend = site.watched_client().connect().await.unwrap();
    let writer = Writer::start("restart", backend.clone());
    for host in ["host2", "host3"] {
        site.operate(&restart.replace("host2", host));
    }
    writer.stop(&backend).await;
    site = site.settle();
    let writer = Writer::start("failover", site.watched_client().connect().await.unwrap());
    site.operate(fail_over);
    tokio::time::sleep(Duration::from_millis(500)).await;
    writer.stop(&backend).await;
    site = site.settle();
    assert!(!site.hosts["host1:6379"].is_primary());
    // Then back: the same block, with the current names of the servers.
    let now =
        ["host2", "host3"].into_iter().find(|host| site.hosts[format!("{host}:6379").as_str()].is_primary());
    let mut back = fail_over.to_owned();
    for command in ["CLIENT", "INFO"] {
        back = back.replace(&format!("-h host1 {command}"), &format!("-h {} {command}", now.unwrap()));
    }
    let back = back.replace("# host1", &format!("# {}", now.unwrap()));
    let writer = Writer::start("failover-back", site.watched_client().connect().await.unwrap());
    site.operate(&back);
    writer.stop(&backend).await;
    site.assert_nothing_denied();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_servers_with_the_settings_of_the_page_can_die_and_writes_go_on() {
    let mut site = watched();
    let backend = site.watched_client().connect().await.unwrap();
    backend.put("owner:t", b"data").await.unwrap();
    site.hosts.get_mut("host1:6379").unwrap().kill();
    let started = Instant::now();
    let mut version = backend.put("owner:t", b"data").await;
    while version.is_err() && started.elapsed() < Duration::from_mins(1) {
        version = backend.put("owner:t", b"data").await;
    }
    assert!(version.unwrap() >= 2);
    site.hosts.get_mut("host1:6379").unwrap().restart();
    site = site.settle();
    backend.put("owner:t", b"data").await.unwrap();
    drop(site);
}

#[tokio::test(flavor = "multi_thread")]
async fn min_replicas_to_write_of_the_page_holds_writes_back_without_a_replica() {
    let [_, enough, _, _] = blocks("Replicas and Sentinels");
    let mut site = Site::new();
    site.start("host1:6379", &site.with(site.options(), enough));
    let backend = RedisBackend::new(&site.url_of("host1:6379")).await.unwrap();
    let error = backend.put("owner:t", b"data").await.unwrap_err();
    assert!(!reason(&error).outcome_is_unknown(), "{error}");
}

// A cluster.

/// Three primaries with a replica each, set up as the page says.
fn cluster() -> Site {
    let [conf, create, _] = blocks("A cluster");
    let mut site = Site::new();
    for host in ["host1:7000", "host2:7000", "host3:7000", "host4:7000", "host5:7000", "host6:7000"] {
        site.start(host, &site.with(site.options(), conf));
    }
    site.operate(create);
    site.agree()
}

impl Site {
    /// Waits until all nodes agree and all replicas follow.
    fn agree(mut self) -> Self {
        let (names, servers): (Vec<_>, Vec<_>) = std::mem::take(&mut self.hosts).into_iter().unzip();
        let cluster = Cluster { servers };
        cluster.wait_until_settled();
        self.hosts = names.into_iter().zip(cluster.servers).collect();
        self
    }

    fn cluster_client(&self) -> Builder {
        let [_, _, url] = blocks("A cluster");
        Self::client(&self.at_home(url.trim()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_of_the_page_serves_all_kinds_of_calls_and_fails_over_and_back_under_a_writer() {
    let [_, _, _, fail_over] = blocks("A new version of the module");
    let mut site = cluster();
    let builder = site.cluster_client().client_name("worker").read_from_replicas(true);
    let backend = builder.wait_for_replicas(1, Duration::from_secs(5)).connect().await.unwrap();
    use_all(&backend).await;
    // The names on the page are of one pair: there, host4 is the replica of host1.
    let id = site.hosts["host1:7000"].node_id();
    let replica = site.hosts.iter().find(|(_, server)| {
        let nodes = server.nodes();
        nodes.lines().any(|line| line.contains("myself,slave") && line.contains(&id))
    });
    let replica = replica.unwrap().0.split_once(':').unwrap().0;
    let writing = site.cluster_client().connect().await.unwrap();
    for (name, from, to) in [("failover", "host1", replica), ("failover-back", replica, "host1")] {
        let writer = Writer::start(name, writing.clone());
        let block = fail_over.replace("host1", "FROM").replace("host4", to).replace("FROM", from);
        site.operate(&block);
        site = site.agree();
        writer.stop(&writing).await;
        assert!(site.hosts[format!("{to}:7000").as_str()].is_primary());
    }
    site.assert_nothing_denied();
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_of_the_cluster_of_the_page_move_key_by_key_as_its_users() {
    let site = cluster();
    let backend = site.cluster_client().connect().await.unwrap();
    for owner in 0..200 {
        backend.put(&format!("{owner}:t"), b"data").await.unwrap();
    }
    let ids = ["host1:7000", "host2:7000"].map(|host| site.hosts[host].node_id());
    let reshard = format!(
        "redis-cli --user admin --cluster reshard host1:7000 --cluster-from {} --cluster-to {} --cluster-slots 500 --cluster-yes",
        ids[0], ids[1]
    );
    site.type_line(&reshard);
    for owner in 0..200 {
        backend.get(&format!("{owner}:t")).await.unwrap();
    }
    site.assert_nothing_denied();
}

// What to watch.

/// In place of the exporter, which is not at hand.
#[test]
fn script_of_the_page_gives_its_user_every_field_of_the_module() {
    let [exporter] = blocks("What to watch");
    let word_after = |option| exporter.split_once(option).unwrap().1.split([' ', '"']).next().unwrap();
    let script = word_after("-script /usr/share/pmcptask/");
    let script = fs::read_to_string(format!("{REPOSITORY}/packaging/prometheus/{script}")).unwrap();
    let mut site = Site::new();
    site.start("host1:6379", &site.options());
    let mut wire = site.hosts["host1:6379"].wire();
    let fields = wire.call(&["INFO", "pmcptask"]);
    let fields: Vec<_> = fields.lines().filter_map(|line| line.split_once(':')).collect();
    assert!(fields.len() > 20, "{fields:?}");
    let login = ["AUTH", word_after("-redis.user "), word_after("-redis.password ")];
    assert_eq!(wire.call(&login), "+OK\r\n");
    let given = wire.call(&["EVAL", &script, "0"]);
    let given: Vec<_> = given.lines().filter(|line| !line.starts_with(['*', '$'])).collect();
    assert_eq!(given, fields.iter().flat_map(|(name, value)| [*name, *value]).collect::<Vec<_>>());
    site.assert_nothing_denied();
}

// From one server to a cluster.

#[tokio::test(flavor = "multi_thread")]
async fn data_of_one_server_becomes_a_cluster_by_the_steps_of_the_page() {
    let [rename, grow] = blocks("From one server to a cluster");
    let [conf, _, _] = blocks("A cluster");
    let mut site = Site::new();
    site.start("host1:7000", &site.options());
    let one = Site::client(&site.url_of("host1:7000")).connect().await.unwrap();
    // Some owners have braces, which have a meaning in keys of a cluster.
    let odd = ["", "}", "{", "{}", "}{", "a{b}c"].map(str::to_owned);
    let keys: Vec<_> =
        odd.into_iter().chain((0..300).map(|n| n.to_string())).map(|owner| owner + ":t").collect();
    for key in &keys {
        one.put(key, b"data").await.unwrap();
    }
    // There, back, and there again.
    for tags in ["on", "off", "on"] {
        let said = site.operate(&rename.replace(" on ", &format!(" {tags} ")));
        assert_eq!(said, "306 tasks moved\n", "{tags}");
        assert_eq!(one.get("1:t").await.is_ok(), tags == "off");
    }
    let first = site.hosts.get_mut("host1:7000").unwrap();
    first.stop();
    let file = first.folder().join(FILE);
    fs::write(&file, fs::read_to_string(&file).unwrap() + conf).unwrap();
    let options = ServerOptions::default().in_file().login("admin", "admin-secret");
    let free = Port::free().unwrap();
    let cluster_port = format!("cluster-port {}\n", free.number());
    fs::write(&file, fs::read_to_string(&file).unwrap() + &cluster_port).unwrap();
    first.restart_with(&options);
    for host in ["host2:7000", "host3:7000", "host4:7000"] {
        site.start(host, &site.with(site.options(), conf));
    }
    site.operate(grow);
    let site = site.agree();
    let backend = site.cluster_client().connect().await.unwrap();
    for key in &keys {
        assert_eq!(backend.get(key).await.unwrap().version, 1);
    }
    let primaries: Vec<_> = site.hosts.values().filter(|server| server.is_primary()).collect();
    assert_hashes_and_entries_agree(&primaries);
    let sizes: Vec<_> = primaries.iter().map(|server| server.wire().call(&["DBSIZE"])).collect();
    assert!(sizes.len() == 3 && sizes.iter().all(|size| size != ":0\r\n"), "{sizes:?}");
    site.assert_nothing_denied();
}

// Back up and restore.

#[tokio::test(flavor = "multi_thread")]
async fn restored_server_has_what_was_backed_up_and_keeps_it() {
    let [back_up, restore] = blocks("Back up and restore");
    let mut site = Site::new();
    site.start("host1:6379", &site.options());
    let backend = Site::client(&site.url_of("host1:6379")).connect().await.unwrap();
    backend.put("owner:kept", b"before").await.unwrap();
    site.operate(back_up);
    backend.put("owner:kept", b"after").await.unwrap();
    backend.put("owner:later", b"data").await.unwrap();
    site.operate(restore);
    for _ in 0..2 {
        let list = backend.list_by_prefix("owner:").await.unwrap();
        let list: Vec<_> = list.iter().map(|(key, record)| (key.as_str(), record.data.as_slice())).collect();
        assert_eq!(list, [("owner:kept", b"before".as_slice())]);
        // From the append-only file, which is on again.
        let server = site.hosts.get_mut("host1:6379").unwrap();
        assert!(server.wire().call(&["CONFIG", "GET", "appendonly"]).contains("yes"));
        server.kill();
        server.restart();
    }
}

// Remove the module.

#[tokio::test(flavor = "multi_thread")]
async fn module_is_removed_and_comes_back_with_all_data_though_rules_and_settings_named_it() {
    let [remove] = blocks("Remove the module");
    let mut site = Site::new();
    let users = site.folder.path().join("users.acl");
    let one_more = "user reader on >secret -@all (+pmcptask.list %R~pmcp:idx:*) (+get -pmcptask.get ~x)\n";
    fs::write(&users, fs::read_to_string(&users).unwrap() + one_more).unwrap();
    let options = site.options().set("pmcptask.max-record-bytes", "1mb");
    site.start("host1:6379", &options);
    let backend = Site::client(&site.url_of("host1:6379")).connect().await.unwrap();
    backend.put("owner:t", b"data").await.unwrap();
    let server = &site.hosts["host1:6379"];
    // The steps of the page must also work on what CONFIG REWRITE has written into the file.
    assert_eq!(server.wire().call(&["CONFIG", "REWRITE"]), "+OK\r\n");
    let files = [server.folder().join(FILE), users];
    let before = files.clone().map(|file| fs::read_to_string(file).unwrap());
    site.operate(remove);
    let server = site.hosts.get_mut("host1:6379").unwrap();
    let mut wire = server.wire();
    assert!(!wire.call(&["MODULE", "LIST"]).contains("pmcptask"));
    assert!(!wire.call(&["ACL", "LIST"]).contains("pmcptask"));
    assert_eq!(wire.call(&["HGET", "pmcp:tasks:owner:t", "data"]), "$4\r\ndata\r\n");
    assert_eq!(wire.call(&["ZRANGE", "pmcp:idx:owner", "0", "-1"]), "*1\r\n$1\r\nt\r\n");
    let error = RedisBackend::new(&site.url_of("host1:6379")).await.unwrap_err();
    assert!(matches!(reason(&error), Error::ModuleNotLoaded { .. } | Error::NoPermission { .. }), "{error}");
    let server = site.hosts.get_mut("host1:6379").unwrap();
    server.stop();
    for (file, text) in files.iter().zip(before) {
        fs::write(file, text).unwrap();
    }
    server.restart();
    assert_eq!(backend.get("owner:t").await.unwrap().data, b"data");
}
