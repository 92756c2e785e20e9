//! Savers under faults: no acknowledged checkpoint is lost, none is stored twice, every error says whether
//! anything was written, and nothing is left over. Slots that move have a suite of their own.
#![cfg(all(feature = "adk", feature = "graph-flow", feature = "redis-tests"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

#[path = "support/sessions.rs"]
mod sessions;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adk_graph::checkpoint::Checkpointer;
use adk_graph::state::Checkpoint;
use chrono::DateTime;
use futures_util::future::join_all;
use graph_flow::{GraphError, SessionStorage};
use pmcp_tasks::StorageError;
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_checkpoint::graph_flow::RedisSessionStorage;
use pmcptask_checkpoint::pmcptask_client::{self, Applied};
use pmcptask_checkpoint::{Checkpoints, Compression, Error, NewCheckpoint, RedisCheckpoints};
use pmcptask_tests::{
    Cluster, Fault, OK, Progress, Proxy, SentinelGroup, Server, ServerOptions, holds_within, show,
};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::sessions::{numbers_of_conflict, session};
use crate::support::savers::{self, Failure, Saver};
use crate::support::{keys, of_noise};

const RUNS_OF_A_SAVER: usize = 3;
/// Saves of all runs before and after each fault.
const A_WHILE: usize = 300;
/// What the agent does between two saves.
const WORK: Duration = Duration::from_millis(2);
const SECOND: Duration = Duration::from_secs(1);
/// How long servers may take to recover. Only broken ones need all of it.
const PATIENCE: Duration = Duration::from_mins(1);
const CRASHES: usize = 5;

/// A run, which saves its steps one after the other.
struct Run {
    saver: Arc<dyn Saver>,
    thread: String,
    /// The steps that must be stored, and no others.
    acknowledged: Vec<usize>,
    /// How many saves have failed without a trace.
    refused: usize,
    /// How many saves were repeated, because they may have been made.
    repeated: usize,
    violations: Vec<String>,
}

impl Run {
    async fn go(mut self, number: usize, progress: Progress) -> Self {
        let mut step = 0;
        while !progress.is_over() {
            if self.save(step).await {
                progress.count(number);
            }
            step += 1;
            tokio::time::sleep(WORK).await;
        }
        self
    }

    /// False if the error says that nothing was written. Such a step is not saved again.
    async fn save(&mut self, step: usize) -> bool {
        let Err(failure) = self.saver.save(&self.thread, step).await else {
            self.acknowledged.push(step);
            return true;
        };
        if failure.applied == Applied::No {
            self.refused += 1;
            return false;
        }
        self.repeated += 1;
        let before = self.acknowledged.last().copied();
        if let Ok(newest) = self.saver.newest(&self.thread).await
            && newest != before
            && newest != Some(step)
        {
            self.violations.push(format!("{newest:?} is newest after {before:?} and, perhaps, {step}"));
        }
        let started = Instant::now();
        while let Err(failure) = self.saver.save(&self.thread, step).await {
            if started.elapsed() > PATIENCE {
                self.violations.push(format!("{step} is never saved: {}", failure.text));
                return false;
            }
            tokio::time::sleep(WORK).await;
        }
        self.acknowledged.push(step);
        true
    }

    /// Compares what is stored with what was acknowledged, and deletes the thread.
    async fn check(&self, acknowledged: &Acknowledged) {
        let Self { saver, thread, .. } = self;
        assert!(self.violations.is_empty(), "{thread}: {:?}", self.violations);
        let stored = saver.steps(thread).await.unwrap();
        match acknowledged {
            Acknowledged::AllStored => assert_eq!(stored, self.acknowledged, "left: stored in {thread}"),
            Acknowledged::PerhapsLost => {
                let mut rest = self.acknowledged.iter();
                let in_order = stored.iter().all(|step| rest.any(|acknowledged| acknowledged == step));
                assert!(in_order, "{stored:?} are stored in {thread} of {:?}", self.acknowledged);
            }
        }
        assert_eq!(saver.newest(thread).await.unwrap(), stored.last().copied(), "{thread}");
        let found = join_all(stored.iter().map(|step| saver.finds(thread, *step))).await;
        for (step, found) in stored.iter().zip(found) {
            assert!(found.unwrap(), "step {step} of {thread} is not found by its id");
        }
        saver.delete(thread).await.unwrap();
        assert!(saver.steps(thread).await.unwrap().is_empty(), "{thread}");
    }
}

/// What has become of acknowledged saves.
enum Acknowledged {
    AllStored,
    PerhapsLost,
}

/// Runs of all savers, at the same time.
struct Runs {
    runs: Vec<JoinHandle<Run>>,
    progress: Progress,
}

impl Runs {
    async fn start(savers: &[Arc<dyn Saver>]) -> Self {
        let progress = Progress::of(savers.len() * RUNS_OF_A_SAVER);
        let savers = savers.iter().flat_map(|saver| std::iter::repeat_n(saver, RUNS_OF_A_SAVER));
        let start = |(number, saver): (usize, &Arc<dyn Saver>)| {
            let run = Run {
                saver: Arc::clone(saver),
                thread: format!("run-{number}"),
                acknowledged: Vec::new(),
                refused: 0,
                repeated: 0,
                violations: Vec::new(),
            };
            tokio::spawn(run.go(number, progress.clone()))
        };
        let runs = Self { runs: savers.enumerate().map(start).collect(), progress };
        runs.progress.go_on_for(A_WHILE).await;
        runs
    }

    /// Goes on for [`A_WHILE`], checks all threads, and deletes them.
    async fn end(self, what: &str, acknowledged: Acknowledged) {
        self.progress.go_on_for(A_WHILE).await;
        self.progress.end();
        let (mut saved, mut refused, mut repeated) = (0, 0, 0);
        for run in self.runs {
            let run = run.await.unwrap();
            run.check(&acknowledged).await;
            saved += run.acknowledged.len();
            refused += run.refused;
            repeated += run.repeated;
        }
        show(&format!("{what}: {saved} saves, {repeated} of them repeated; {refused} refused"));
    }
}

// A primary is replaced.

#[tokio::test(flavor = "multi_thread")]
async fn primary_that_dies_during_runs_loses_no_acknowledged_checkpoint_and_none_is_stored_twice() {
    let mut watched = SentinelGroup::start(2);
    let savers = savers::all(&watched.url(), |client| client.wait_for_replicas(1, SECOND)).await;
    let runs = Runs::start(&savers).await;
    let before = watched.primary();
    watched.servers[0].kill();
    assert!(holds_within(PATIENCE, || watched.primary() != before));
    runs.progress.go_on_for(A_WHILE).await;
    watched.servers[0].restart();
    watched.wait_until_settled();
    runs.end("a primary died", Acknowledged::AllStored).await;
    assert_eq!(keys_of_primary(&watched), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_by_hand_loses_no_checkpoint_that_all_replicas_had() {
    let watched = SentinelGroup::start(2);
    // For a short time there are two primaries. The old one may keep all replicas except the promoted one.
    let savers = savers::all(&watched.url(), |client| client.wait_for_replicas(2, SECOND)).await;
    let runs = Runs::start(&savers).await;
    watched.fail_over();
    watched.wait_until_settled();
    runs.end("a replica took over", Acknowledged::AllStored).await;
    assert_eq!(keys_of_primary(&watched), 0);
}

fn keys_of_primary(watched: &SentinelGroup) -> i64 {
    keys(watched.servers.iter().find(|server| server.is_primary()).unwrap())
}

// A server dies and comes back.

async fn runs_over_crashes(options: &ServerOptions, what: &str, acknowledged: Acknowledged) {
    let mut server = Server::start_with(options);
    let runs = Runs::start(&savers::all(&server.url(), |client| client).await).await;
    for _ in 0..CRASHES {
        server.kill();
        server.restart();
        runs.progress.go_on_for(A_WHILE).await;
    }
    runs.end(what, acknowledged).await;
    assert_eq!(keys(&server), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_checkpoints_outlive_crashes_and_leave_nothing_when_they_are_deleted() {
    let options = ServerOptions::default().with_aof();
    runs_over_crashes(&options, "crashes, appendfsync always", Acknowledged::AllStored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_after_crashes_is_whole_where_the_file_is_synced_each_second() {
    let options = ServerOptions::default().set("appendonly", "yes").set("appendfsync", "everysec");
    runs_over_crashes(&options, "crashes, appendfsync everysec", Acknowledged::PerhapsLost).await;
}

// A node of a cluster is away, so that of the two writes of a save one can be made.

#[tokio::test(flavor = "multi_thread")]
async fn save_that_can_be_made_in_part_says_what_was_written_and_can_be_repeated() {
    let options = Cluster::node_options().set("cluster-require-full-coverage", "no");
    let mut cluster = Cluster::start_with(&options, 3, 0);
    let settings = |client: pmcptask_client::RedisBackendBuilder| client.connect_timeout(SECOND / 4);
    let [saver, _] = savers::all(&cluster.url(), settings).await;
    let thread_of = |server: &Server| {
        let mut threads = (0..).map(|number| format!("thread-{number}"));
        threads.find(|thread| server.has_slot_of(&format!("{{{thread}}}"))).unwrap()
    };
    let [alive, away] = [0, 1].map(|number| thread_of(&cluster.servers[number]));
    cluster.servers[1].kill();

    // The keys that make checkpoints found by their ids are at all nodes.
    let (mut written, mut failed) = (Vec::new(), Vec::new());
    for step in 0..20 {
        match saver.save(&alive, step).await {
            Ok(()) => written.push(step),
            Err(failure) => failed.push((step, failure)),
        }
    }
    assert!(!written.is_empty() && !failed.is_empty(), "{written:?} {failed:?}");
    let stored = saver.steps(&alive).await.unwrap();
    assert!(written.iter().all(|step| stored.contains(step)), "{written:?} {stored:?}");
    for (step, Failure { applied, text }) in &failed {
        let is_right = match applied {
            Applied::Yes => stored.contains(step),
            Applied::No => !stored.contains(step),
            Applied::Unknown => true,
        };
        assert!(is_right, "{text}; stored: {stored:?}");
    }

    for step in 0..20 {
        saver.save(&away, step).await.unwrap_err();
    }
    cluster.servers[1].restart();
    cluster.wait_until_settled();
    for step in 0..20 {
        saver.save(&alive, step).await.unwrap();
        assert!(saver.finds(&alive, step).await.unwrap(), "{step}");
    }
    let mut stored = saver.steps(&alive).await.unwrap();
    stored.sort_unstable();
    assert!(stored.into_iter().eq(0..20));
    saver.delete(&alive).await.unwrap();
    assert_eq!(cluster.servers.iter().map(keys).sum::<i64>(), 0, "of saves to the node that was away");
}

// Connections die under savers of one session.

/// One of several that save the same session. Each save adds its name to the session.
struct Racer {
    storage: RedisSessionStorage,
    number: usize,
    acknowledged: Vec<String>,
    not_made: Vec<String>,
    conflicts: usize,
    unknown: usize,
    violations: Vec<String>,
}

const RACERS: usize = 4;
const SESSION: &str = "session";

impl Racer {
    async fn go(mut self, progress: Progress) -> Self {
        let (mut seen, mut saves) = (0, 0);
        while !progress.is_over() {
            tokio::time::sleep(WORK).await;
            // A read may fail, too.
            let Ok(Some(session)) = self.storage.get(SESSION).await else { continue };
            let version = session.version;
            if version < seen {
                self.violations.push(format!("version {version} was read after {seen}"));
            }
            seen = version;
            saves += 1;
            let name = format!("{}-{saves}", self.number);
            let mut made: Vec<String> = session.context.get("made").unwrap_or_default();
            made.push(name.clone());
            session.context.set("made", &made).unwrap();
            let saved = self.storage.save(session).await;
            if saved.is_ok() {
                seen = version + 1;
                progress.count(self.number);
            }
            self.note(name, version, &saved);
        }
        self
    }

    fn note(&mut self, name: String, version: u64, saved: &Result<(), GraphError>) {
        match saved {
            Ok(()) => self.acknowledged.push(name),
            Err(GraphError::SessionConflict(text)) => {
                let numbers = numbers_of_conflict(saved).unwrap();
                let [expected, stored] = numbers.as_slice() else { panic!("{text}") };
                if *expected != version || *stored <= version {
                    self.violations.push(format!("saved over version {version}: {text}"));
                }
                self.conflicts += 1;
                self.not_made.push(name);
            }
            Err(GraphError::StorageError(text)) if text.contains("unknown") => self.unknown += 1,
            Err(GraphError::StorageError(_)) => self.not_made.push(name),
            Err(error) => self.violations.push(error.to_string()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_saves_of_a_session_are_made_once_or_say_so_while_their_connections_die() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let progress = Progress::of(RACERS);
    RedisSessionStorage::new(&server.url()).await.unwrap().save(session(SESSION, 0)).await.unwrap();
    let mut racers = Vec::new();
    for number in 0..RACERS {
        let racer = Racer {
            storage: RedisSessionStorage::new(&proxy.url()).await.unwrap(),
            number,
            acknowledged: Vec::new(),
            not_made: Vec::new(),
            conflicts: 0,
            unknown: 0,
            violations: Vec::new(),
        };
        racers.push(tokio::spawn(racer.go(progress.clone())));
    }
    for _ in 0..10 {
        progress.go_on_for(4 * RACERS).await;
        let killed = server.wire().call(&["CLIENT", "KILL", "TYPE", "normal"]);
        assert!(killed.starts_with(':') && killed != ":0\r\n", "{killed}");
        progress.go_on_for(4 * RACERS).await;
        proxy.set(Fault::LoseReplyTo("PMCPTASK.CAS"));
        progress.go_on_for(4 * RACERS).await;
        proxy.set(Fault::LoseRequest);
        progress.go_on_for(4 * RACERS).await;
        proxy.cut();
    }
    progress.end();

    let (mut acknowledged, mut not_made, mut conflicts, mut unknown) = (Vec::new(), Vec::new(), 0, 0);
    for racer in racers {
        let racer = racer.await.unwrap();
        assert!(racer.violations.is_empty(), "{:?}", racer.violations);
        acknowledged.extend(racer.acknowledged);
        not_made.extend(racer.not_made);
        conflicts += racer.conflicts;
        unknown += racer.unknown;
    }
    let storage = RedisSessionStorage::new(&server.url()).await.unwrap();
    let last = storage.get(SESSION).await.unwrap().unwrap();
    let made: Vec<String> = last.context.get("made").unwrap();
    show(&format!(
        "{} saves of a session, {} acknowledged, {conflicts} conflicts, {unknown} unknown",
        made.len(),
        acknowledged.len()
    ));
    let once: BTreeSet<_> = made.iter().collect();
    assert_eq!((once.len(), made.len() as u64), (made.len(), last.version - 1));
    assert!(acknowledged.iter().all(|name| once.contains(name)));
    assert!(not_made.iter().all(|name| !once.contains(name)));
    assert!(conflicts > 0 && unknown > 0 && made.len() <= acknowledged.len() + unknown);
    storage.delete(SESSION).await.unwrap();
    assert_eq!(keys(&server), 0);
}

// The server refuses a record.

/// One of each saver. Nothing is compressed, so what is long stays long.
struct Savers {
    adk: RedisCheckpointer,
    own: RedisCheckpoints,
    sessions: RedisSessionStorage,
}

impl Savers {
    async fn of(server: &Server) -> Self {
        let settings = |client: pmcptask_client::RedisBackendBuilder| client.connect_timeout(SECOND / 4);
        let url = server.url();
        let adk = RedisCheckpointer::builder(&url).client(settings).compression(Compression::Off);
        let own = RedisCheckpoints::builder(&url).client(settings).compression(Compression::Off);
        let sessions = RedisSessionStorage::builder(&url).client(settings).compression(Compression::Off);
        let (adk, own) = (adk.connect().await.unwrap(), own.prefix("own").connect().await.unwrap());
        Self { adk, own, sessions: sessions.connect().await.unwrap() }
    }

    /// Saves a state of this length in each way there is: new, or over what these calls have saved before.
    async fn save_all(&self, id: &str, version: u64, length: usize) -> Outcomes {
        let created_at = DateTime::UNIX_EPOCH;
        let checkpoint = Checkpoint { created_at, ..of_noise("thread", id, length) };
        let own = NewCheckpoint::new(id, json!("x".repeat(length)));
        let swapped = NewCheckpoint { id: format!("swapped {id}"), ..own.clone() };
        let session = session(id, version);
        session.context.set("text", "x".repeat(length)).unwrap();
        Outcomes {
            own: vec![
                Checkpoints::save(&self.own, "thread", &own).await,
                self.own.compare_and_swap("thread", &swapped, version).await,
            ],
            of_frameworks: vec![
                Checkpointer::save(&self.adk, &checkpoint).await.map(drop).map_err(|error| error.to_string()),
                self.sessions.save(session).await.map_err(|error| error.to_string()),
            ],
        }
    }

    async fn delete_all(&self, ids: &[&str]) {
        Checkpoints::delete(&self.own, "thread", None).await.unwrap();
        Checkpointer::delete(&self.adk, "thread").await.unwrap();
        for id in ids {
            self.sessions.delete(id).await.unwrap();
        }
    }
}

/// What came of saves.
struct Outcomes {
    own: Vec<Result<u64, Error>>,
    of_frameworks: Vec<Result<(), String>>,
}

impl Outcomes {
    fn assert_saved(self) {
        assert!(self.own.iter().all(Result::is_ok), "{:?}", self.own);
        self.of_frameworks.into_iter().for_each(|saved| saved.unwrap());
    }

    fn assert_refused(self, is_expected: fn(&StorageError) -> bool, reason: &str) {
        for saved in self.own {
            match saved {
                Err(Error::Storage(error)) if is_expected(&error) => {
                    assert!(error.to_string().contains(reason), "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
        for saved in self.of_frameworks {
            let text = saved.unwrap_err();
            assert!(text.contains(reason), "{text}");
        }
    }
}

/// All keys of a server, and what they hold. What makes a checkpoint found by its id is written before it:
/// a save over a checkpoint that is refused may write it again, so its version does not count.
#[derive(Debug, PartialEq)]
struct Stored {
    keys: Vec<String>,
    values: BTreeMap<String, (Option<Vec<u8>>, i64)>,
}

impl Stored {
    fn on(server: &Server) -> Self {
        let mut values = server.dump(0);
        let keys = values.keys().cloned().collect();
        values.retain(|key, _| !key.contains(":by-id:"));
        Self { keys, values }
    }
}

/// The length of the states that are refused.
const LONG: usize = 100_000;

/// `setting`: that by which the server refuses the saves at this value. Its errors name it.
async fn refused_saves_change_nothing([setting, value, default]: [&str; 3]) {
    let is_expected = |error: &StorageError| matches!(error, StorageError::CapacityExceeded { .. });
    let server = Server::start();
    let savers = Savers::of(&server).await;
    savers.save_all("kept", 0, 10).await.assert_saved();
    let stored = Stored::on(&server);
    assert_eq!(server.wire().call(&["CONFIG", "SET", setting, value]), OK);
    for (id, version) in [("new", 0), ("kept", 1)] {
        savers.save_all(id, version, LONG).await.assert_refused(is_expected, setting);
        assert_eq!(Stored::on(&server), stored, "after refused saves of {id}");
    }
    assert_eq!(server.wire().call(&["CONFIG", "SET", setting, default]), OK);
    savers.save_all("new", 0, LONG).await.assert_saved();
    savers.save_all("kept", 1, LONG).await.assert_saved();
    savers.delete_all(&["new", "kept"]).await;
    assert_eq!(keys(&server), 0);
}

#[tokio::test]
async fn save_that_a_full_server_refuses_changes_nothing() {
    refused_saves_change_nothing(["maxmemory", "1", "0"]).await;
}

#[tokio::test]
async fn save_of_a_record_that_is_too_long_for_the_server_changes_nothing() {
    refused_saves_change_nothing(["pmcptask.max-record-bytes", "50000", "16777216"]).await;
}

#[tokio::test]
async fn save_to_a_replica_changes_nothing() {
    let primary = Server::start();
    Savers::of(&primary).await.save_all("kept", 0, 10).await.assert_saved();
    let replica = Server::start_with(&ServerOptions::default().replica_of(&primary));
    assert!(holds_within(PATIENCE, || replica.follows_or_leads() && keys(&replica) == keys(&primary)));
    let stored = Stored::on(&replica);
    let savers = Savers::of(&replica).await;
    let is_expected = |error: &StorageError| {
        matches!(pmcptask_client::Error::of(error), Some(pmcptask_client::Error::ReadOnly { .. }))
    };
    for (id, version) in [("new", 0), ("kept", 1)] {
        savers.save_all(id, version, LONG).await.assert_refused(is_expected, "read-only replica");
        assert_eq!(Stored::on(&replica), stored, "after refused saves of {id}");
    }
}
