//! Acknowledged writes survive the death of a server, and no half-made write does.
//!
//! The tests that kill the server under load do so a few times. `PMCPTASK_CRASHES=50` does it more often.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use std::{env, fs, io, thread};

use pmcptask_tests::{Server, ServerOptions, Wire, holds_within, now_ms};
use redis::Connection;
use tempfile::TempDir;

/// The first expiry of lasting tasks, 2100-01-01. Each write has its own expiry.
const FUTURE: i64 = 4_102_444_800_000;
/// How long the load may take to reach a certain point. Only a broken server needs all of it.
const PATIENCE: Duration = Duration::from_mins(1);
const WRITERS: usize = 6;

fn crashes() -> usize {
    env::var("PMCPTASK_CRASHES").map_or(5, |crashes| crashes.parse().unwrap())
}

fn with_aof() -> ServerOptions {
    // Rewrites happen only when a test asks for one.
    ServerOptions::default().with_aof().set("auto-aof-rewrite-percentage", "0")
}

fn task_key(owner: &str, task_id: &str) -> String {
    format!("pmcp:tasks:{owner}:{task_id}")
}

fn index_key(owner: &str) -> String {
    format!("pmcp:idx:{owner}")
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Task {
    version: i64,
    data: String,
    expires_at_ms: Option<i64>,
    created_ms: i64,
}

/// One writer and all that it knows. No other writer writes the tasks of its owner, so it knows every reply
/// in advance.
struct Writer {
    owner: String,
    steps: usize,
    /// The acknowledged tasks, by task id.
    tasks: BTreeMap<String, Task>,
    /// When the last short-lived task expires.
    last_expiry_ms: i64,
    /// The write that was in flight when the server died: task id, and the task after the write.
    in_flight: Option<(String, Option<Task>)>,
}

fn writers() -> Vec<Writer> {
    let writer = |n| Writer {
        owner: format!("o{n}"),
        steps: 0,
        tasks: BTreeMap::new(),
        last_expiry_ms: 0,
        in_flight: None,
    };
    (0..WRITERS).map(writer).collect()
}

impl Writer {
    /// Sends the next write and waits until it is acknowledged.
    fn write(&mut self, wire: &mut Wire) -> io::Result<()> {
        let n = self.steps;
        self.steps += 1;
        if n.is_multiple_of(11) {
            return self.write_short_lived(wire, n);
        }
        let task_id = format!("t{}", n * 7 % 20);
        let (task, index) = (task_key(&self.owner, &task_id), index_key(&self.owner));
        let known = self.tasks.get(&task_id);
        if let (Some(_), 0) = (known, n % 5) {
            return self.acknowledged(wire, &["PMCPTASK.DEL", &task, &index], ":1\r\n", (task_id, None));
        }
        let next = Task {
            version: known.map_or(1, |known| known.version + 1),
            // Some records are too large for the compact encoding of a hash.
            data: format!("{n}{}", "x".repeat(n % 3 * 100)),
            expires_at_ms: (!n.is_multiple_of(3)).then(|| FUTURE + i64::try_from(n).unwrap()),
            created_ms: known.map_or_else(|| i64::try_from(n).unwrap(), |known| known.created_ms),
        };
        let (created, version) = (next.created_ms.to_string(), (next.version - 1).to_string());
        let expires_at = next.expires_at_ms.map(|at| at.to_string());
        let expiry = expires_at.as_ref().map_or(vec!["PERSIST"], |at| vec!["PXAT", at]);
        let (command, reply) = if known.is_some() && n.is_multiple_of(2) {
            (vec!["PMCPTASK.CAS", &task, &index, &version], format!("*2\r\n+OK\r\n:{}\r\n", next.version))
        } else {
            (vec!["PMCPTASK.PUT", &task, &index], format!(":{}\r\n", next.version))
        };
        let data = next.data.clone();
        let call = [command, vec![&data, "CREATED", &created], expiry].concat();
        self.acknowledged(wire, &call, &reply, (task_id, Some(next)))
    }

    fn write_short_lived(&mut self, wire: &mut Wire, n: usize) -> io::Result<()> {
        let (task, index) = (task_key(&self.owner, &format!("short{n}")), index_key(&self.owner));
        self.last_expiry_ms = now_ms() + 300;
        let reply =
            wire.try_call(&["PMCPTASK.PUT", &task, &index, "x", "PXAT", &self.last_expiry_ms.to_string()])?;
        assert_eq!(reply, ":1\r\n", "{task}");
        Ok(())
    }

    fn acknowledged(
        &mut self,
        wire: &mut Wire,
        call: &[&str],
        expected: &str,
        makes: (String, Option<Task>),
    ) -> io::Result<()> {
        self.in_flight = Some(makes);
        let reply = wire.try_call(call)?;
        assert_eq!(reply, expected, "{call:?}");
        self.settle();
        Ok(())
    }

    /// Records that the write in flight was carried out.
    fn settle(&mut self) {
        match self.in_flight.take() {
            Some((task_id, Some(task))) => drop(self.tasks.insert(task_id, task)),
            Some((task_id, None)) => drop(self.tasks.remove(&task_id)),
            None => {}
        }
    }

    /// Asserts that the server holds what it has acknowledged to this owner. The write in flight may
    /// be there.
    fn find_all(&mut self, stored: &Stored) {
        let found = stored.tasks.get(&self.owner).cloned().unwrap_or_default();
        if let Some((task_id, made)) = &self.in_flight
            && found.get(task_id) == made.as_ref()
        {
            self.settle();
        }
        self.in_flight = None;
        assert_eq!(found, self.tasks, "left: found after the restart, right: acknowledged to {}", self.owner);
    }
}

/// Lets all writers write until `end` returns. `end` may stop the server.
fn under_load(server: &mut Server, writers: &mut [Writer], end: impl FnOnce(&mut Server, &AtomicUsize)) {
    /// Stops the writers even if `end` panics.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for writer in writers {
            let mut wire = server.wire();
            let (stop, written) = (&stop, &written);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) && writer.write(&mut wire).is_ok() {
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _stop = Stop(&stop);
        end(server, &written);
    });
}

fn wait_for(written: &AtomicUsize, more: usize) {
    let target = written.load(Ordering::Relaxed) + more;
    assert!(
        holds_within(PATIENCE, || written.load(Ordering::Relaxed) >= target),
        "the server does not take {target} writes"
    );
}

/// Everything that a server holds.
struct Stored {
    /// Lasting tasks, by owner and id.
    tasks: BTreeMap<String, BTreeMap<String, Task>>,
    /// Entries without a task, and hashes of short-lived tasks.
    leftovers: BTreeSet<String>,
    /// Everything that is not a whole task, in words.
    halves: Vec<String>,
}

impl Stored {
    fn on(server: &Server) -> Self {
        let mut connection = server.connection();
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
        let mut stored = Self { tasks: BTreeMap::new(), leftovers: BTreeSet::new(), halves: Vec::new() };
        for key in keys {
            if let Some(owner) = key.strip_prefix("pmcp:idx:") {
                stored.note_index(&mut connection, owner);
            } else if let Some((owner, task_id)) =
                key.strip_prefix("pmcp:tasks:").and_then(|rest| rest.rsplit_once(':'))
            {
                stored.note_hash(&mut connection, owner, task_id);
            } else {
                stored.halves.push(format!("{key} is a stranger"));
            }
        }
        stored
    }

    fn note_index(&mut self, connection: &mut Connection, owner: &str) {
        let ids: Vec<String> =
            redis::cmd("ZRANGE").arg(index_key(owner)).arg(0).arg(-1).query(connection).unwrap();
        for task_id in ids {
            let exists: bool = redis::cmd("EXISTS").arg(task_key(owner, &task_id)).query(connection).unwrap();
            if task_id.starts_with("short") {
                self.leftovers.insert(format!("{owner}:{task_id}"));
            } else if !exists {
                self.halves.push(format!("{owner}:{task_id} has an entry and no hash"));
            }
        }
    }

    fn note_hash(&mut self, connection: &mut Connection, owner: &str, task_id: &str) {
        let name = format!("{owner}:{task_id}");
        let key = task_key(owner, task_id);
        // In a transaction, so that the task does not expire between two of these commands.
        let mut all = redis::pipe();
        all.atomic().hgetall(&key).cmd("PEXPIRETIME").arg(&key).zscore(index_key(owner), task_id);
        let (mut fields, expiry_ms, score): (BTreeMap<String, String>, i64, Option<f64>) =
            all.query(connection).unwrap();
        if expiry_ms == -2 {
            // Expired since the query for keys.
            return;
        }
        let (version, data) = (fields.remove("version"), fields.remove("data"));
        let expires_at = fields.remove("expires_at").map(|seconds| seconds.parse::<i64>().unwrap());
        let expiry = (expiry_ms >= 0).then_some(expiry_ms);
        if expires_at != expiry.map(|ms| (ms + 999) / 1000) {
            self.halves.push(format!("{name} has expires_at {expires_at:?} and an expiry of {expiry:?}"));
        }
        let (Some(version), Some(data), Some(score), true) = (version, data, score, fields.is_empty()) else {
            self.halves.push(format!("{name} lacks its version, data or entry, or has more: {fields:?}"));
            return;
        };
        if task_id.starts_with("short") {
            self.leftovers.insert(name);
            return;
        }
        #[allow(clippy::cast_possible_truncation, reason = "tests create in whole, small milliseconds")]
        let task =
            Task { version: version.parse().unwrap(), data, expires_at_ms: expiry, created_ms: score as i64 };
        self.tasks.entry(owner.to_owned()).or_default().insert(task_id.to_owned(), task);
    }
}

/// Asserts that a restarted server holds everything that it acknowledged and no half of a write.
fn check(server: &Server, writers: &mut [Writer]) {
    let stored = Stored::on(server);
    assert_eq!(stored.halves, Vec::<String>::new());
    for writer in writers.iter_mut() {
        writer.find_all(&stored);
    }
    let last_expiry_ms = writers.iter().map(|writer| writer.last_expiry_ms).max().unwrap();
    let left = Duration::from_millis(u64::try_from(last_expiry_ms - now_ms()).unwrap_or(0));
    let short = || server.wire().call(&["KEYS", "*:short*"]);
    assert!(holds_within(left + PATIENCE, || short() == "*0\r\n"), "expired tasks stay: {}", short());
    // A server that was killed between a task's expiry and the removal of its entry has left the entry.
    server.have_indexes_walked(2);
    let leftovers = Stored::on(server).leftovers;
    assert!(leftovers.is_empty(), "entries of expired tasks stay: {leftovers:?}");
}

/// A server without the module that has loaded another server's AOF.
struct Reader {
    server: Server,
    _folder: TempDir,
}

impl Reader {
    /// Of the part of the AOF that `server` appends to, only this many bytes are read.
    fn of(server: &Server, bytes: Option<usize>) -> Self {
        let folder = tempfile::Builder::new().prefix("pmcptask-").tempdir().unwrap();
        let aof = folder.path().join("appendonlydir");
        fs::create_dir(&aof).unwrap();
        for part in fs::read_dir(server.folder().join("appendonlydir")).unwrap() {
            let part = part.unwrap();
            fs::copy(part.path(), aof.join(part.file_name())).unwrap();
        }
        if let Some(bytes) = bytes {
            let part = aof.join(server.aof().file_name().unwrap());
            let part = fs::File::options().write(true).open(part).unwrap();
            part.set_len(u64::try_from(bytes).unwrap()).unwrap();
        }
        let server = Server::start_with(&with_aof().without_module().set("dir", path_text(folder.path())));
        Self { server, _folder: folder }
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The lasting tasks of a server.
fn lasting(server: &Server) -> BTreeMap<String, BTreeMap<String, Task>> {
    Stored::on(server).tasks
}

#[test]
fn acknowledged_writes_survive_sigkill() {
    let mut server = Server::start_with(&with_aof());
    let mut writers = writers();
    for round in 0..crashes() {
        under_load(&mut server, &mut writers, |server, written| {
            wait_for(written, 150 + round * 37 % 200);
            server.kill();
        });
        // The module cleans up as soon as it runs, so look for halves on a server without it.
        assert_eq!(Stored::on(&Reader::of(&server, None).server).halves, Vec::<String>::new());
        server.restart();
        check(&server, &mut writers);
    }
}

/// Redis 7.0 to 8.0 and Valkey 8.0 and 8.1 read the transactions of an AOF as the default user.
#[test]
fn acknowledged_writes_survive_sigkill_though_the_default_user_is_off_or_has_a_password() {
    for default in ["off ~* &* +@all", "on >secret ~* &* +@all"] {
        let options = with_aof().in_file().set("user default", default);
        let options = options.set("user admin", "on >secret ~* &* +@all").login("admin", "secret");
        let mut server = Server::start_with(&options);
        let mut writers = writers();
        for _ in 0..2 {
            under_load(&mut server, &mut writers, |server, written| {
                wait_for(written, 100);
                server.kill();
            });
            server.restart();
            check(&server, &mut writers);
        }
    }
}

#[test]
fn acknowledged_writes_survive_sigkill_during_and_after_an_aof_rewrite() {
    let mut server = Server::start_with(&with_aof());
    let mut writers = writers();
    for round in 0..crashes() {
        under_load(&mut server, &mut writers, |server, written| {
            let mut operator = server.wire();
            wait_for(written, 100);
            let dies_while_rewriting = round.is_multiple_of(2);
            // µs for each key: slow enough for writes, and for the crash if wanted, to happen during
            // the rewrite.
            let delay = if dies_while_rewriting { "20000" } else { "2000" };
            operator.call(&["CONFIG", "SET", "rdb-key-save-delay", delay]);
            assert!(operator.call(&["BGREWRITEAOF"]).starts_with('+'));
            wait_for(written, 20);
            let is_rewritten =
                |wire: &mut Wire| wire.call(&["INFO", "persistence"]).contains("aof_rewrite_in_progress:0");
            if dies_while_rewriting {
                assert!(!is_rewritten(&mut operator), "the rewrite is over before the crash");
            } else {
                assert!(holds_within(PATIENCE, || is_rewritten(&mut operator)));
                assert!(operator.call(&["INFO", "persistence"]).contains("aof_last_bgrewrite_status:ok"));
                wait_for(written, 20);
            }
            server.kill();
        });
        assert_eq!(Stored::on(&Reader::of(&server, None).server).halves, Vec::<String>::new());
        server.restart();
        check(&server, &mut writers);
    }
}

#[test]
fn aof_that_ends_anywhere_holds_no_half_of_a_write() {
    let mut server = Server::start_with(&with_aof());
    let mut wire = server.wire();
    let (task, index) = (task_key("o", "t"), index_key("o"));
    let [early, late] = [FUTURE, FUTURE + 5_000].map(|at| at.to_string());
    for call in [
        &["PMCPTASK.PUT", &task, &index, "one", "PXAT", &early][..],
        &["PMCPTASK.CAS", &task, &index, "1", "two", "PXAT", &late],
        &["PMCPTASK.PUT", &task, &index, "three", "PERSIST"],
        &["PMCPTASK.CAS", &task, &index, "3", "four", "PXAT", &late],
        &["PMCPTASK.PUT", &task, &index, "five", "PXAT", "1"],
        &["PMCPTASK.PUT", &task, &index, "six", "PXAT", &early],
        &["PMCPTASK.DEL", &task, &index],
    ] {
        let reply = wire.call(call);
        assert!(!reply.starts_with('-'), "{call:?}: {reply}");
    }
    server.kill();
    let aof = fs::read(server.aof()).unwrap();
    // The server can take the file for complete only if it ends with a whole command.
    let starts = (1..aof.len()).filter(|at| aof[*at] == b'*' && aof[at - 1] == b'\n');
    let cuts: Vec<_> = starts.chain([aof.len() - 1, aof.len()]).collect();
    assert!(cuts.len() > 20, "{cuts:?}");
    for cut in cuts {
        let halves = Stored::on(&Reader::of(&server, Some(cut)).server).halves;
        assert_eq!(halves, Vec::<String>::new(), "after {}", aof[..cut].escape_ascii());
    }
}

#[test]
fn server_without_the_module_loads_the_same_data_from_the_aof() {
    let mut server = Server::start_with(&with_aof());
    let mut writers = writers();
    for rewritten in [false, true] {
        under_load(&mut server, &mut writers, |server, written| {
            wait_for(written, 400);
            if rewritten {
                let mut operator = server.wire();
                operator.call(&["BGREWRITEAOF"]);
                assert!(holds_within(PATIENCE, || {
                    let info = operator.call(&["INFO", "persistence"]);
                    info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0")
                }));
                wait_for(written, 100);
            }
        });
        let before = lasting(&server);
        assert_eq!(before.len(), WRITERS);
        server.kill();
        let reader = Reader::of(&server, None);
        assert!(reader.server.wire().call(&["PMCPTASK.GET", "k"]).starts_with("-ERR unknown command"));
        assert_eq!(lasting(&reader.server), before);
        server.restart();
        check(&server, &mut writers);
    }
}

#[test]
fn what_bgsave_has_saved_survives_sigkill() {
    let mut server = Server::start_with(&ServerOptions::default().set("save", "3600 1"));
    let mut writers = writers();
    for _ in 0..crashes() {
        under_load(&mut server, &mut writers, |_, written| wait_for(written, 200));
        let mut operator = server.wire();
        assert!(operator.call(&["BGSAVE"]).starts_with('+'));
        assert!(holds_within(PATIENCE, || {
            let info = operator.call(&["INFO", "persistence"]);
            info.contains("rdb_bgsave_in_progress:0") && info.contains("rdb_last_bgsave_status:ok")
        }));
        server.kill();
        server.restart();
        check(&server, &mut writers);
    }
}

#[test]
fn bgsave_under_load_saves_no_half_of_a_write() {
    let mut server = Server::start_with(&ServerOptions::default().set("save", "3600 1"));
    let mut writers = writers();
    under_load(&mut server, &mut writers, |server, written| {
        for _ in 0..crashes() {
            wait_for(written, 100);
            let mut operator = server.wire();
            operator.call(&["BGSAVE"]);
            assert!(holds_within(PATIENCE, || {
                operator.call(&["INFO", "persistence"]).contains("rdb_bgsave_in_progress:0")
            }));
        }
        server.kill();
    });
    server.restart();
    let stored = Stored::on(&server);
    assert_eq!(stored.halves, Vec::<String>::new());
    assert_eq!(stored.tasks.len(), WRITERS);
}

#[test]
fn acknowledged_writes_survive_a_shutdown_that_saves_under_load() {
    let mut server = Server::start_with(&ServerOptions::default().set("save", "3600 1"));
    let mut writers = writers();
    for _ in 0..crashes() {
        under_load(&mut server, &mut writers, |server, written| {
            wait_for(written, 200);
            server.stop();
        });
        server.restart();
        check(&server, &mut writers);
    }
}
