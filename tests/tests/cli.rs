//! The command `pmcptask` shows what is there, on one server, behind Sentinels and in a cluster. It changes
//! nothing that it was not told to, and holds no server up.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use pmcp_tasks::store::backend::StorageBackend as _;
use pmcp_tasks::{TaskStatus, TaskStore as _};
use pmcptask_client::{RedisBackend, TaskStore};
use pmcptask_tests::{
    Cluster, Port, SentinelGroup, Server, ServerOptions, now_ms, pmcptask_program, slowness, timestamp,
};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};

const OPERATIONS: &str = include_str!("../../docs/operations.md");
/// How long anything may take. Generous: only a broken program needs all of it.
const PATIENCE: Duration = Duration::from_mins(1);

fn pmcptask(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(pmcptask_program());
    command.args(arguments).args(["--url", url]).env_remove("REDIS_URL").stdin(Stdio::null());
    command
}

/// Exit code, output and errors.
fn run(url: &str, arguments: &[&str]) -> (i32, String, String) {
    let output = pmcptask(url, arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The output of a run that must succeed.
fn said(url: &str, arguments: &[&str]) -> String {
    let (code, said, warned) = run(url, arguments);
    assert_eq!((code, warned.as_str()), (0, ""), "{arguments:?}");
    said
}

/// The same as JSON, one value for each line.
fn objects(url: &str, arguments: &[&str]) -> Vec<Value> {
    let said = said(url, &[arguments, &["--json"]].concat());
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn texts<'a>(objects: &'a [Value], field: &str) -> Vec<&'a str> {
    objects.iter().map(|object| object[field].as_str().unwrap()).collect()
}

async fn store(url: &str, prefix: &str) -> TaskStore {
    TaskStore::new(RedisBackend::builder(url).prefix(prefix).connect().await.unwrap())
}

async fn new_task(store: &TaskStore, owner: &str) -> String {
    store.create(owner, "tools/call", None).await.unwrap().task.task_id
}

/// A program whose output is read line by line while it runs. It is ended with this.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    warnings: mpsc::Receiver<String>,
}

fn lines_of(stream: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.take_while(|line| sender.send(line.clone()).is_ok()).count()
    });
    lines
}

impl Running {
    fn start(url: &str, arguments: &[&str]) -> Self {
        let mut command = pmcptask(url, arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout: ChildStdout = child.stdout.take().unwrap();
        let stderr: ChildStderr = child.stderr.take().unwrap();
        Self { child, lines: lines_of(stdout), warnings: lines_of(stderr) }
    }

    fn next(&self) -> Value {
        serde_json::from_str(&self.lines.recv_timeout(PATIENCE * slowness()).unwrap()).unwrap()
    }

    fn next_warning(&self) -> String {
        self.warnings.recv_timeout(PATIENCE * slowness()).unwrap()
    }

    /// The next object for which something holds.
    fn until(&self, holds: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let object = self.next();
            if holds(&object) {
                return object;
            }
            assert!(started.elapsed() < PATIENCE * slowness(), "{object}");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program in a terminal of 110 by 30. It is ended with this.
struct InTerminal {
    child: Child,
    terminal: File,
    written: mpsc::Receiver<String>,
    started: Instant,
    screen: String,
}

impl InTerminal {
    fn start(url: &str, arguments: &[&str]) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let size = Winsize { ws_row: 30, ws_col: 110, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&controller, size).unwrap();
        let path = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let mut command = pmcptask(url, arguments);
        let child = command.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap();
        let terminal = File::from(controller);
        let written = pieces_of(terminal.try_clone().unwrap());
        Self { child, terminal, written, started: Instant::now(), screen: String::new() }
    }

    /// Reads what is written to the terminal until it has these words.
    fn wait_for(&mut self, words: &str) {
        while !self.screen.contains(words) {
            assert!(self.reads_more(), "no {words:?} in {:?}", self.screen);
        }
    }

    /// False if nobody can write to the terminal any more.
    fn reads_more(&mut self) -> bool {
        let left = (PATIENCE * slowness()).saturating_sub(self.started.elapsed());
        match self.written.recv_timeout(left) {
            Ok(piece) => self.screen.push_str(&piece),
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => panic!("nothing more than {:?}", self.screen),
        }
        true
    }

    fn press(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    fn send(&self, signal: Signal) {
        let process = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(process, signal).unwrap();
    }

    /// Waits for the end. Returns the exit code, and all that was written.
    fn end(mut self) -> (i32, String) {
        while self.reads_more() {}
        (self.child.wait().unwrap().code().unwrap(), std::mem::take(&mut self.screen))
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is written to a terminal, until nobody can write to it any more.
fn pieces_of(mut terminal: File) -> mpsc::Receiver<String> {
    let (sender, pieces) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = [0; 4_096];
        while let Ok(read @ 1..) = terminal.read(&mut bytes) {
            let _ = sender.send(String::from_utf8_lossy(&bytes[..read]).into_owned());
        }
    });
    pieces
}

/// Looks at some tasks in every way, wherever the URL leads.
async fn look_at_tasks(url: &str) {
    let prefix = "looking";
    let on = |arguments: &[&'static str]| [arguments, &["--prefix", prefix]].concat();
    let owners = ["alice", "tenant:bob", "ö | {x}", ""];
    let store = store(url, prefix).await;
    let backend = store.backend();
    let mut done = String::new();
    for owner in owners {
        // One after the other, so that their order is certain.
        for (n, status) in ["working", "completed", "input_required"].into_iter().enumerate() {
            let created = timestamp(now_ms() - 10_000 + i64::try_from(n).unwrap() * 1_000);
            let record = json!({
                "ownerId": owner,
                "task": {"status": status, "createdAt": created, "lastUpdatedAt": created},
                "expiresAt": timestamp(now_ms() + 3_600_000),
            });
            backend.put(&format!("{owner}:t{n}"), record.to_string().as_bytes()).await.unwrap();
        }
        done = record_of(backend, &format!("{owner}:t1")).await.to_string();
    }
    assert!(done.contains("completed"));

    let mut found = objects(url, &on(&["owners"]));
    found.sort_by_key(|owner| owner["owner"].as_str().unwrap().to_owned());
    let mut expected = owners.map(|owner| json!({"owner": owner, "tasks": 3}));
    expected.sort_by_key(|owner| owner["owner"].as_str().unwrap().to_owned());
    assert_eq!(found, expected);
    assert_eq!(objects(url, &on(&["owners", "--limit", "2"])).len(), 2);
    let table = said(url, &on(&["owners"]));
    assert!(
        table.starts_with("    TASKS  OWNER\n") && table.contains("\n        3  tenant:bob\n"),
        "{table}"
    );

    for owner in ["alice", "tenant:bob", "ö | {x}", ""] {
        let tasks = objects(url, &[&on(&["tasks"])[..], &[owner]].concat());
        assert_eq!(texts(&tasks, "id"), ["t2", "t1", "t0"], "{owner}");
        assert_eq!(texts(&tasks, "status"), ["input_required", "completed", "working"]);
        assert!(tasks.iter().all(|task| task["version"] == 1 && task["owner"] == owner), "{tasks:?}");
    }
    assert_eq!(texts(&objects(url, &on(&["tasks", "alice", "--limit", "1"])), "id"), ["t2"]);
    assert_eq!(texts(&objects(url, &on(&["tasks", "alice", "--status", "working"])), "id"), ["t0"]);
    let table = said(url, &on(&["tasks", "alice"]));
    let line: Vec<_> = table.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!((line[0], line[1], line[2], line[5]), ("t1", "completed", "1", "in"), "{table}");

    let stuck = objects(url, &on(&["stuck", "--older", "0s", "tenant:bob"]));
    assert_eq!(texts(&stuck, "id"), ["t2", "t0"]);
    assert!(stuck.iter().all(|task| task["idle_ms"].as_i64().unwrap() >= 7_000), "{stuck:?}");
    assert_eq!(objects(url, &on(&["stuck", "--older", "7s"])).len(), 2 * owners.len());
    assert_eq!(said(url, &on(&["stuck", "--older", "1h"])), "");

    let shown = objects(url, &on(&["show", "tenant:bob", "t1"]));
    assert_eq!(shown[0]["record"], record_of(backend, "tenant:bob:t1").await);
    assert_eq!((&shown[0]["version"], &shown[0]["owner"]), (&json!(1), &json!("tenant:bob")));
    let text = said(url, &on(&["show", "tenant:bob", "t1"]));
    let (head, record) = text.split_once('{').unwrap();
    assert!(head.starts_with("owner    tenant:bob\ntask     t1\nversion  1\nexpires  "), "{text}");
    assert_eq!(serde_json::from_str::<Value>(&format!("{{{record}")).unwrap(), shown[0]["record"]);

    let top = Running::start(url, &on(&["top", "--json"]));
    let figures = top.until(|figures| figures["walk_took_seconds"].is_number());
    let statuses = &figures["tasks"]["statuses"];
    let counts = ["working", "input_required", "completed", "failed", "other"].map(|name| &statuses[name]);
    assert_eq!(counts, [4, 4, 4, 0, 0], "{figures}");
    assert_eq!((&figures["tasks"]["owners"], &figures["failure"]), (&json!(4), &Value::Null));
    let oldest = now_ms() - figures["tasks"]["oldest_unfinished_ms"].as_i64().unwrap();
    assert!((10_000..3_600_000).contains(&oldest), "{figures}");
}

async fn record_of(backend: &RedisBackend, key: &str) -> Value {
    serde_json::from_slice(&backend.get(key).await.unwrap().data).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_shows_its_owners_tasks_records_and_figures() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let server = Server::start_with(&ServerOptions::default().set("unixsocket", socket.to_str().unwrap()));
    look_at_tasks(&server.url()).await;
    let through_socket = format!("redis+unix://{}", socket.display());
    assert_eq!(said(&through_socket, &["owners", "--prefix", "looking"]).lines().count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_primaries_of_a_cluster_show_theirs() {
    look_at_tasks(&Cluster::start(3, 0).url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_behind_sentinels_shows_its_own() {
    look_at_tasks(&SentinelGroup::start(0).url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_with_hash_tags_on_one_server_have_the_owners_of_a_cluster() {
    let server = Server::start();
    let backend =
        RedisBackend::builder(server.url()).hash_tags(pmcptask_client::HashTags::On).connect().await;
    backend.unwrap().put("alice:t", b"x").await.unwrap();
    let owners = |more: &[&str]| objects(&server.url(), &[&["owners"], more].concat());
    assert_eq!(owners(&["--hash-tags", "on"]), [json!({"owner": "alice", "tasks": 1})]);
    assert_eq!(owners(&[]), [json!({"owner": "{alice}", "tasks": 1})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_prints_each_change_as_it_comes() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for url in [server.url(), cluster.url()] {
        let store = store(&url, "watching").await;
        let old = new_task(&store, "alice").await;
        let watch = Running::start(&url, &["watch", "alice", "--json", "--prefix", "watching"]);
        assert_eq!(watch.next_warning(), "watching 1 tasks of alice, and those that come");
        let told = |id: &str, status: &str, version: u64| {
            let change = watch.next();
            assert!(change["gone"] == false && change["at"].is_string(), "{change}");
            assert_eq!((&change["id"], &change["status"]), (&json!(id), &json!(status)), "{change}");
            assert_eq!(change["version"], version);
        };
        let new = new_task(&store, "alice").await;
        told(&new, "working", 1);
        for task in [&old, &new] {
            store.update_status(task, "alice", TaskStatus::InputRequired, None).await.unwrap();
            told(task, "input_required", 2);
        }
        store.cancel(&new, "alice").await.unwrap();
        told(&new, "cancelled", 3);
        store.backend().delete(&format!("alice:{old}")).await.unwrap();
        let gone = watch.next();
        assert_eq!((&gone["id"], &gone["gone"]), (&json!(old), &json!(true)), "{gone}");
        new_task(&store, "bob").await;
        let last = new_task(&store, "alice").await;
        told(&last, "working", 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_follows_the_newest_tasks_only_and_goes_on_after_an_outage() {
    let mut server = Server::start_with(&ServerOptions::default().with_aof());
    let store = store(&server.url(), "pmcp").await;
    let oldest = new_task(&store, "alice").await;
    let watch = Running::start(&server.url(), &["watch", "alice", "--json", "--tasks", "1"]);
    assert_eq!(watch.next_warning(), "watching 1 tasks of alice, and those that come");
    let newest = new_task(&store, "alice").await;
    assert_eq!(watch.next()["id"], json!(newest));
    store.cancel(&oldest, "alice").await.unwrap();
    server.stop();
    let warning = watch.next_warning();
    assert!(warning.contains(&format!("127.0.0.1:{}", server.port())), "{warning}");
    assert!(warning.ends_with("; watching goes on"), "{warning}");
    server.restart();
    let started = Instant::now();
    // The client of this test reconnects, too.
    while let Err(error) = store.backend().check_health().await {
        assert!(started.elapsed() < PATIENCE * slowness(), "{error}");
    }
    store.cancel(&newest, "alice").await.unwrap();
    let change = watch.next();
    assert_eq!((&change["id"], &change["status"]), (&json!(newest), &json!("cancelled")));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_and_trim_change_nothing_unless_they_are_told_twice() {
    let server = Server::start();
    let store = store(&server.url(), "pmcp").await;
    let ids = [new_task(&store, "alice").await, new_task(&store, "alice").await];
    let state = async || {
        let mut versions = Vec::new();
        for id in &ids {
            versions.push(store.get(id, "alice").await.map_or(0, |task| task.version));
        }
        versions
    };
    let url = server.url();
    let cancel = ["cancel", "alice", &ids[0]];
    let trim = ["trim", "alice", "--keep", "0"];
    for arguments in [&cancel[..], &trim[..]] {
        let (code, said, warned) = run(&url, arguments);
        assert_eq!((code, said.as_str()), (2, ""));
        assert!(warned.contains("expected --yes") && warned.contains("nothing was changed"), "{warned}");
        let mut asked = InTerminal::start(&url, arguments);
        asked.wait_for("[y/N] ");
        asked.press("\n");
        let (code, screen) = asked.end();
        assert_eq!(code, 1, "{screen}");
        assert_eq!(state().await, [1, 1]);
    }
    let mut asked = InTerminal::start(&url, &cancel);
    asked.wait_for(&format!("cancel task {} of alice? [y/N] ", ids[0]));
    asked.press("y\n");
    assert_eq!(asked.end().0, 0);
    assert_eq!(state().await, [2, 1]);
    let yes = [&cancel[..], &["--yes"]].concat();
    // The rules are those of pmcp-tasks: a finished task stays as it is.
    let (code, _, warned) = run(&url, &yes);
    assert!(code == 1 && warned.contains("cancelled"), "{warned}");
    let done = objects(&url, &["cancel", "alice", &ids[1], "--yes"]);
    assert_eq!(done, [json!({"owner": "alice", "id": ids[1], "status": "cancelled", "version": 2})]);
    let trimmed = objects(&url, &[&trim[..], &["--yes"]].concat());
    assert_eq!(trimmed, [json!({"owner": "alice", "removed": 2})]);
    assert_eq!(state().await, [0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_writes_nothing_and_needs_no_more_than_the_rules_of_the_page() {
    let server = Server::start();
    let store = store(&server.url(), "pmcp").await;
    let id = new_task(&store, "alice").await;
    let rules =
        OPERATIONS.lines().find_map(|line| line.strip_prefix("| looking with `pmcptask` | `")).unwrap();
    let rules = rules.split('`').next().unwrap().replace("\\|", "|");
    let mut wire = server.wire();
    assert_eq!(wire.run(&format!("ACL SETUSER viewer reset on >pw {rules}")), "+OK\r\n");
    wire.run("ACL LOG RESET");
    let url = server.url().replace("//", "//viewer:pw@");
    let before = server.dump(0);
    for arguments in
        [&["owners"][..], &["tasks", "alice"], &["stuck", "--older", "0s"], &["show", "alice", &id]]
    {
        assert!(said(&url, arguments).contains(if arguments[0] == "owners" { "alice" } else { &id }));
    }
    let top = Running::start(&url, &["top", "--json"]);
    let figures = top.until(|figures| figures["walk_took_seconds"].is_number());
    assert_eq!(figures["failure"], Value::Null);
    let watch = Running::start(&url, &["watch", "alice", "--json"]);
    watch.next_warning();
    assert_eq!(server.dump(0), before);
    let cancelled = run(&url, &["cancel", "alice", &id, "--yes"]);
    assert!(cancelled.0 == 1 && cancelled.2.contains("permission"), "{cancelled:?}");
    assert_eq!(store.cancel(&id, "alice").await.unwrap().version, 2);
    assert_eq!(watch.next()["status"], "cancelled");
    // What is refused does not delay anything: watching is told by the server, not by polls.
    let log = wire.run("ACL LOG");
    let of_watching = ["tracking", "caching", "pttl"];
    assert!(log.contains("pmcptask.cas") && !of_watching.iter().any(|word| log.contains(word)), "{log}");
}

#[test]
fn errors_name_the_address_and_arguments_that_mean_nothing_end_with_2() {
    let (nobody, without_module) =
        (Port::free().unwrap(), Server::start_with(&ServerOptions::default().without_module()));
    let addresses = [nobody.address(), format!("127.0.0.1:{}", without_module.port())];
    for address in addresses {
        for arguments in [
            &["owners"][..],
            &["tasks", "alice"],
            &["show", "alice", "t"],
            &["watch", "alice"],
            &["stuck", "--older", "1m"],
            &["top", "--json"],
            &["cancel", "alice", "t", "--yes"],
            &["trim", "alice", "--keep", "1", "--yes"],
        ] {
            let (code, said, warned) = run(&format!("redis://{address}"), arguments);
            assert_eq!((code, said.as_str()), (1, ""), "{arguments:?}: {warned}");
            assert!(warned.starts_with("pmcptask: ") && warned.contains(&address), "{arguments:?}: {warned}");
        }
    }
    let url = "redis://127.0.0.1:1";
    for arguments in [
        &["tasks"][..],
        &["stuck"],
        &["show", "alice", "a:b"],
        &["owners", "--prefix", "a:idx:b"],
        &["top"],
        &["hash-tags", "maybe", url],
    ] {
        assert_eq!(run(url, arguments).0, 2, "{arguments:?}");
    }
    let secret = run("redis://user:secret@127.0.0.1:1", &["owners"]);
    assert!(secret.0 == 1 && !secret.2.contains("secret"), "{secret:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_records_send_no_control_characters_to_the_terminal() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    backend.put("a\u{1b}[2J:t\u{7}", b"\x1b]0;title\x07").await.unwrap();
    for arguments in [&["owners"][..], &["tasks", "a\u{1b}[2J"], &["show", "a\u{1b}[2J", "t\u{7}"]] {
        for more in [&[][..], &["--json"]] {
            let said = said(&server.url(), &[arguments, more].concat());
            assert!(said.chars().all(|character| character == '\n' || !character.is_control()), "{said:?}");
        }
    }
}

#[test]
fn errors_send_no_control_characters_to_the_terminal() {
    let server = Server::start();
    let (code, _, warned) = run(&server.url(), &["show", "a\u{1b}[2J", "t\u{7}"]);
    assert!(code == 1 && warned.contains("\\u001b[2J"), "{warned:?}");
    assert!(warned.chars().all(|character| character == '\n' || !character.is_control()), "{warned:?}");
}

#[test]
fn one_owner_that_cannot_be_read_hides_no_other() {
    let server = Server::start();
    let mut wire = server.wire();
    let record = r#"{"task":{"status":"working"}}"#;
    for owner in ["alice", "bob", "carol"] {
        let [task, index] = [format!("pmcp:tasks:{owner}:t"), format!("pmcp:idx:{owner}")];
        assert_eq!(wire.call(&["PMCPTASK.PUT", &task, &index, record]), ":1\r\n");
    }
    let rules = "~pmcp:idx:* ~pmcp:tasks:alice:* ~pmcp:tasks:carol:* +@all";
    assert_eq!(wire.run(&format!("ACL SETUSER viewer reset on >pw {rules}")), "+OK\r\n");
    let url = server.url().replace("//", "//viewer:pw@");
    let (code, said, warned) = run(&url, &["stuck", "--older", "0s"]);
    assert!(code == 1 && said.contains("alice") && said.contains("carol"), "{said}{warned}");
    assert!(
        warned.contains("bob: ") && warned.ends_with("the tasks of 1 owners could not be read\n"),
        "{warned}"
    );
    let top = Running::start(&url, &["top", "--json"]);
    let figures = top.until(|figures| figures["walk_took_seconds"].is_number());
    let tasks = &figures["tasks"];
    assert_eq!((&tasks["statuses"]["working"], &tasks["owners_unread"]), (&json!(2), &json!(1)), "{figures}");
}

#[test]
fn user_of_one_owner_sees_this_owner_only() {
    let server = Server::start();
    let mut wire = server.wire();
    for owner in ["alice", "bob"] {
        let [task, index] = [format!("pmcp:tasks:{owner}:t"), format!("pmcp:idx:{owner}")];
        assert_eq!(wire.call(&["PMCPTASK.PUT", &task, &index, "data"]), ":1\r\n");
    }
    let rules = "~pmcp:idx:alice ~pmcp:tasks:alice:* +@all";
    assert_eq!(wire.run(&format!("ACL SETUSER viewer reset on >pw {rules}")), "+OK\r\n");
    let url = server.url().replace("//", "//viewer:pw@");
    assert_eq!(objects(&url, &["owners"]), [json!({"owner": "alice", "tasks": 1})]);
}

#[test]
fn owners_are_listed_while_a_slot_moves() {
    let cluster = Cluster::start(3, 0);
    let [first, second] = [&cluster.servers[0], &cluster.servers[1]];
    let owners = (0..).map(|number| format!("owner-{number}"));
    let mut of_first = owners.filter(|owner| first.has_slot_of(&format!("{{{owner}}}")));
    let [stays, moves] = [of_first.next().unwrap(), of_first.next().unwrap()];
    let keys = |owner| [format!("pmcp:tasks:{{{owner}}}:t"), format!("pmcp:idx:{{{owner}}}")];
    for owner in [&stays, &moves] {
        let [task, index] = keys(owner);
        assert_eq!(first.wire().call(&["PMCPTASK.PUT", &task, &index, "data"]), ":1\r\n");
    }
    let [task, index] = keys(&moves);
    first.start_moving(&first.slot_of(&index), second);
    first.migrate(&[&task, &index], second);
    // The second node's SCAN shows an index about which it answers no question yet.
    assert!(texts(&objects(&cluster.url(), &["owners"]), "owner").contains(&stays.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn top_draws_in_a_terminal_until_it_is_ended_and_leaves_the_terminal_as_it_was() {
    enum End {
        Key(&'static str),
        Signal(Signal),
    }
    let server = Server::start();
    let store = store(&server.url(), "pmcp").await;
    new_task(&store, "alice").await;
    for end in [End::Key("q"), End::Key("\u{3}"), End::Signal(Signal::TERM), End::Signal(Signal::INT)] {
        let mut top = InTerminal::start(&server.url(), &["top"]);
        // Between words, there are movements of the cursor.
        for word in ["127.0.0.1", "status", "input_required", "alice", "ends"] {
            top.wait_for(word);
        }
        match end {
            End::Key(key) => top.press(key),
            End::Signal(signal) => top.send(signal),
        }
        let (code, screen) = top.end();
        assert_eq!(code, 0);
        // It leaves the alternate screen, and shows the cursor again.
        assert!(screen.contains("\u{1b}[?1049l") && screen.contains("\u{1b}[?25h"), "{screen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_goes_on_after_an_outage_and_counts_writes() {
    let mut server = Server::start_with(&ServerOptions::default().with_aof());
    let store = store(&server.url(), "pmcp").await;
    new_task(&store, "alice").await;
    let top = Running::start(&server.url(), &["top", "--json"]);
    top.until(|figures| figures["tasks"]["owners"] == 1);
    let mut id = String::new();
    for _ in 0..20 {
        id = new_task(&store, "alice").await;
    }
    top.until(|figures| figures["writes_per_second"].as_u64() > Some(0));
    top.until(|figures| figures["tasks"]["statuses"]["working"] == 21);
    server.stop();
    let failed = top.until(|figures| figures["failure"].is_string());
    assert!(failed["failure"].as_str().unwrap().contains(&server.port().to_string()), "{failed}");
    assert_eq!(failed["tasks"]["statuses"]["working"], 21);
    server.restart();
    top.until(|figures| figures["failure"].is_null() && figures["tasks"]["statuses"]["working"] == 21);
    store.cancel(&id, "alice").await.unwrap();
    top.until(|figures| figures["tasks"]["statuses"]["cancelled"] == 1);
}

#[test]
fn completions_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = said("redis://127.0.0.1:1", &["completions", shell]);
        assert!(script.contains("stuck") && script.contains("hash-tags"), "{shell}");
    }
}

/// Puts `tasks` tasks of each owner, created one after the other.
fn fill(server: &Server, owners: std::ops::Range<usize>, tasks: usize) {
    let mut connection = server.connection();
    for owner in owners {
        for first in (0..tasks).step_by(1_000) {
            let mut puts = redis::pipe();
            for task in first..tasks.min(first + 1_000) {
                let created = 1_700_000_000_000_u64 + task as u64;
                let status = if task % 10 == 0 { "working" } else { "completed" };
                let of_task = format!(r#"{{"status":"{status}","lastUpdatedAt":"2024-01-01T00:00:00Z"}}"#);
                let record = format!(r#"{{"task":{of_task},"filling":"{:400}"}}"#, "");
                let put = puts.cmd("PMCPTASK.PUT");
                put.arg(format!("pmcp:tasks:owner-{owner}:{task:05}")).arg(format!("pmcp:idx:owner-{owner}"));
                put.arg(record).arg("CREATED").arg(created).ignore();
            }
            puts.query::<()>(&mut connection).unwrap();
        }
    }
}

/// How long a program takes to its first line. Then nobody reads on, and it ends without a word.
fn first_line_after(url: &str, arguments: &[&str]) -> Duration {
    let mut command = pmcptask(url, arguments);
    let started = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let after = started.elapsed();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    assert!(!line.is_empty());
    after
}

#[test]
fn very_many_tasks_come_at_once_and_hold_no_server_up() {
    const OWNERS: usize = 1_000;
    const MANY: usize = 50_000;
    let server = Server::start();
    fill(&server, 0..OWNERS, 20);
    fill(&server, OWNERS..OWNERS + 1, MANY);
    let (url, big) = (server.url(), format!("owner-{OWNERS}"));
    let mut wire = server.wire();
    // How long the server is held up by a command that looks at everything, on this machine as it is now.
    wire.run("CONFIG RESETSTAT");
    wire.run(&format!("PMCPTASK.LIST pmcp:idx:{big}"));
    let statistics = wire.info("commandstats", "cmdstat_pmcptask.list");
    let list_us = statistics.split(',').find_map(|field| field.strip_prefix("usec=")).unwrap();
    let longest_us = list_us.parse::<u64>().unwrap() / 2;
    wire.run(&format!("CONFIG SET slowlog-log-slower-than {longest_us}"));
    wire.run("SLOWLOG RESET");
    wire.run("CONFIG RESETSTAT");

    let at_once = Duration::from_secs(2) * slowness();
    for arguments in [&["owners"][..], &["tasks", &big], &["stuck", "--older", "1m", &big]] {
        let after = first_line_after(&url, arguments);
        assert!(after < at_once, "{arguments:?}: {after:?}");
    }
    assert_eq!(said(&url, &["owners"]).lines().count(), OWNERS + 2);
    assert_eq!(said(&url, &["stuck", "--older", "1m"]).lines().count(), (OWNERS * 20 + MANY) / 10 + 1);
    let watch = Running::start(&url, &["watch", &big, "--json"]);
    assert!(watch.next_warning().starts_with("watching 100 tasks"));

    // `top` reads a limited number of records per second, and says how far it is.
    let listed = wire.info_number("pmcptask", "pmcptask_records_listed");
    let limited = Running::start(&url, &["top", "--json", "--records", "1000"]);
    let figures: Vec<_> = (0..3).map(|_| limited.next()).collect();
    assert!(figures.iter().all(|figures| figures["walk_took_seconds"].is_null()));
    drop(limited);
    let read = wire.info_number("pmcptask", "pmcptask_records_listed") - listed;
    assert!((1..=4_000).contains(&read), "{read} records");
    assert!(figures[2]["walk"]["keys"] == (OWNERS * 21 + MANY + 1) as u64, "{}", figures[2]);
    let all = Running::start(&url, &["top", "--json", "--records", "100000"]);
    let figures = all.until(|figures| figures["walk_took_seconds"].is_number());
    assert_eq!(figures["tasks"]["owners"], OWNERS + 1);
    assert_eq!(figures["tasks"]["statuses"]["completed"], (OWNERS * 20 + MANY) / 10 * 9);
    assert_eq!(figures["tasks"]["top_owners"][0]["owner"], json!(big));

    assert_eq!(wire.run("SLOWLOG GET"), "*0\r\n");
    assert_eq!(wire.calls_of("keys"), 0);
}
