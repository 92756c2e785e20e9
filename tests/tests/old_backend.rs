//! The same answers as the backend that this one replaces.
//!
//! Random sequences of the six methods run on `pmcp_tasks::RedisBackend`, which uses Lua scripts, and on this
//! project's backend, each with its own prefix on one server. All results are equal except for old defects.
//! Each defect has its own test below; the sequences avoid them.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects)]

use std::cell::Cell;

use chrono::DateTime;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::{StorageBackend, VersionedRecord};
use pmcp_tasks::{RedisBackend as Lua, domain::TaskRecord};
use pmcptask_client::RedisBackend as Native;
use pmcptask_tests::conformance::Sample;
use pmcptask_tests::{
    PROMISED, Server, ServerOptions, Wire, holds_within, lua_backend, now_ms, sleep_until, timestamp,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use proptest::{collection, sample};

/// How many calls each backend gets.
const OPERATIONS: usize = 10_000;
/// Calls of the longest sequence.
const LONGEST: usize = 100;

/// Without colons: see `owners_with_a_colon_share_a_list`.
const OWNERS: [&str; 4] = ["alice", "{x}", "", "ö |"];
/// The records of this owner's tasks have no creation time: see `task_without_creation_time_is_listed_first`.
const TIMELESS: &str = "timeless";
const IDS: [&str; 5] = ["t", "t1", "T", "{x}", "é f"];

#[derive(Debug, Clone, Copy)]
enum Expiry {
    None,
    Null,
    /// Long ago, this many ms after the epoch.
    At(i64),
    /// In an hour and this many ms.
    Later(i64),
}

#[derive(Debug, Clone)]
enum Data {
    /// As `GenericTaskStore` writes it.
    Record(Expiry),
    /// JSON with an expiry and no creation time.
    Expiring(Expiry),
    Text(String),
}

#[derive(Debug, Clone)]
enum Call {
    Get,
    Put(Data),
    /// With the expected version.
    PutIfVersion(Data, u64),
    Delete,
    List,
    Cleanup,
    /// A key that names no task or no owner.
    Malformed(&'static str),
}

#[derive(Debug, Clone)]
struct Step {
    owner: &'static str,
    id: &'static str,
    call: Call,
}

impl Step {
    fn key(&self) -> String {
        format!("{}:{}", self.owner, self.id)
    }

    /// Each task keeps its creation time: see `task_created_again_keeps_the_old_creation_time`.
    fn data(&self, data: &Data) -> Vec<u8> {
        match data {
            Data::Record(_) if self.owner == TIMELESS => self.data(&Data::Text("x".to_owned())),
            Data::Record(expiry) => {
                let mut record = TaskRecord::new(self.owner.to_owned(), "tools/call".to_owned(), None);
                let place = IDS.iter().position(|id| *id == self.id).unwrap();
                // Two tasks share each creation time.
                let created_ms = 1_700_000_000_000 - i64::try_from(place / 2).unwrap();
                record.task.created_at = timestamp(created_ms);
                record.expires_at = expiry.ms().and_then(DateTime::from_timestamp_millis);
                serde_json::to_vec(&record).unwrap()
            }
            Data::Expiring(expiry) if self.owner == TIMELESS => match expiry.ms() {
                Some(ms) => Sample::expiring_at(ms),
                None if matches!(expiry, Expiry::Null) => br#"{"expiresAt":null}"#.to_vec(),
                None => b"{}".to_vec(),
            },
            Data::Text(text) if self.owner == TIMELESS => text.clone().into_bytes(),
            Data::Expiring(expiry) => self.data(&Data::Record(*expiry)),
            Data::Text(_) => self.data(&Data::Record(Expiry::None)),
        }
    }
}

impl Expiry {
    /// Never within the next seconds: see `expiry_is_cut_to_the_second`.
    fn ms(self) -> Option<i64> {
        match self {
            Self::None | Self::Null => None,
            Self::At(ms) => Some(ms),
            Self::Later(ms) => Some(now_ms() + 3_600_000 + ms),
        }
    }
}

// Generated steps.

fn expiries() -> impl Strategy<Value = Expiry> {
    prop_oneof![
        2 => Just(Expiry::None),
        1 => Just(Expiry::Null),
        // Not 1600000000 s: scripts of Redis 7.2.4 write this round number as 1.6e+9, which EXPIREAT refuses.
        1 => sample::select(&[-1_500, 0, 1_600_000_001_123_i64][..]).prop_map(Expiry::At),
        2 => (0..100_000_i64).prop_map(Expiry::Later),
    ]
}

fn records() -> impl Strategy<Value = Data> {
    prop_oneof![
        4 => expiries().prop_map(Data::Record),
        1 => expiries().prop_map(Data::Expiring),
        2 => prop_oneof![
            "[ -~]{0,20}",
            "\\PC{0,20}",
            Just("{\"expiresAt\":".to_owned()),
            Just("a\0b\r\n".to_owned()),
        ].prop_map(Data::Text),
    ]
}

fn calls() -> impl Strategy<Value = Call> {
    let versions = prop_oneof![8 => 1..4_u64, 1 => Just(0), 1 => Just(u64::MAX)];
    prop_oneof![
        4 => Just(Call::Get),
        8 => records().prop_map(Call::Put),
        8 => (records(), versions).prop_map(|(data, version)| Call::PutIfVersion(data, version)),
        3 => Just(Call::Delete),
        4 => Just(Call::List),
        1 => Just(Call::Cleanup),
        1 => sample::select(&["", "task"][..]).prop_map(Call::Malformed),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let owners = prop_oneof![2 => sample::select(&OWNERS[..]), 1 => Just(TIMELESS)];
    (owners, sample::select(&IDS[..]), calls()).prop_map(|(owner, id, call)| Step { owner, id, call })
}

// How steps run.

/// The outcome of a call. Errors are compared without their messages, which differ between backends.
#[derive(Debug, PartialEq)]
enum Outcome {
    Record(Vec<u8>, u64),
    Version(u64),
    Deleted(bool),
    List(Vec<(String, Vec<u8>, u64)>),
    Cleaned(usize),
    NotFound(String),
    Conflict { key: String, expected: u64, actual: u64 },
    Backend,
}

impl From<StorageError> for Outcome {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::NotFound { key } => Self::NotFound(key),
            StorageError::VersionConflict { key, expected, actual } => {
                Self::Conflict { key, expected, actual }
            }
            StorageError::Backend { .. } => Self::Backend,
            error @ StorageError::CapacityExceeded { .. } => panic!("{error}"),
        }
    }
}

fn listed(list: Vec<(String, VersionedRecord)>) -> Vec<(String, Vec<u8>, u64)> {
    list.into_iter().map(|(key, record)| (key, record.data, record.version)).collect()
}

async fn outcome(backend: &impl StorageBackend, step: &Step, data: &[u8]) -> Outcome {
    let key = step.key();
    let result = match &step.call {
        Call::Get => backend.get(&key).await.map(|record| Outcome::Record(record.data, record.version)),
        Call::Put(_) => backend.put(&key, data).await.map(Outcome::Version),
        Call::PutIfVersion(_, version) => {
            backend.put_if_version(&key, data, *version).await.map(Outcome::Version)
        }
        Call::Delete => backend.delete(&key).await.map(Outcome::Deleted),
        Call::List => {
            let list = backend.list_by_prefix(&format!("{}:", step.owner)).await;
            list.map(|list| Outcome::List(in_order(step.owner, listed(list))))
        }
        Call::Cleanup => backend.cleanup_expired().await.map(Outcome::Cleaned),
        Call::Malformed(key) => malformed(backend, key).await,
    };
    result.unwrap_or_else(Outcome::from)
}

/// The backends do not agree on an order for tasks without a creation time.
fn in_order(owner: &str, mut list: Vec<(String, Vec<u8>, u64)>) -> Vec<(String, Vec<u8>, u64)> {
    if owner == TIMELESS {
        list.sort();
    }
    list
}

/// Either all methods refuse the key, or reading it is no error.
async fn malformed(backend: &impl StorageBackend, key: &str) -> Result<Outcome, StorageError> {
    let fails = backend.put(key, b"d").await.is_err()
        && backend.put_if_version(key, b"d", 1).await.is_err()
        && backend.delete(key).await.is_err()
        && backend.list_by_prefix(key).await.is_err();
    let record = backend.get(key).await?;
    assert!(fails, "{key:?}");
    Ok(Outcome::Record(record.data, record.version))
}

async fn run(lua: &Lua, native: &Native, steps: &[Step]) -> Result<(), String> {
    for (at, step) in steps.iter().enumerate() {
        let data = match &step.call {
            Call::Put(data) | Call::PutIfVersion(data, _) => step.data(data),
            _ => Vec::new(),
        };
        let old = outcome(lua, step, &data).await;
        let new = outcome(native, step, &data).await;
        if old != new {
            return Err(format!("step {at}, {step:?}: {old:?} with Lua, {new:?} here"));
        }
    }
    Ok(())
}

#[test]
fn answers_are_those_of_the_backend_it_replaces() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = Server::start();
    let (lua, native) = runtime.block_on(both(&server));
    let mut config = Config { failure_persistence: None, max_shrink_time: 30_000, ..Config::default() };
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(1);
    }
    let mut runner = TestRunner::new(config);
    let sequences = collection::vec(steps(), 0..=LONGEST);
    let done = Cell::new(0);
    while done.get() < OPERATIONS {
        let sequence = sequences.new_tree(&mut runner).unwrap();
        let result = runner.run_one(sequence, |steps| {
            done.set(done.get() + steps.len());
            server.wire().call(&["FLUSHALL"]);
            runtime.block_on(run(&lua, &native, &steps)).map_err(TestCaseError::fail)
        });
        match result {
            Ok(_) => {}
            Err(TestError::Abort(reason)) => panic!("{reason}"),
            Err(TestError::Fail(reason, steps)) => panic!("{reason}\nafter {steps:#?}"),
        }
    }
}

// The old defects: the only differences between the two.

async fn both(server: &Server) -> (Lua, Native) {
    let lua = lua_backend(&server.url()).await.unwrap().with_prefix("lua");
    let native = Native::new(&server.url()).await.unwrap().with_prefix("native");
    (lua, native)
}

/// The Lua backend on its own server, without a module that would clean up after it.
async fn each_on_its_own() -> (Server, Lua, Server, Native) {
    let old = Server::start_with(&ServerOptions::default().without_module());
    let new = Server::start();
    let lua = lua_backend(&old.url()).await.unwrap();
    let native = Native::new(&new.url()).await.unwrap();
    (old, lua, new, native)
}

fn keys(list: Result<Vec<(String, VersionedRecord)>, StorageError>) -> Vec<String> {
    list.unwrap().into_iter().map(|(key, _)| key).collect()
}

fn created_at(ms: i64, expires_ms: Option<i64>) -> Vec<u8> {
    let mut record = TaskRecord::new("alice".to_owned(), "tools/call".to_owned(), None);
    record.task.created_at = timestamp(ms);
    record.expires_at = expires_ms.and_then(DateTime::from_timestamp_millis);
    serde_json::to_vec(&record).unwrap()
}

fn score(wire: &mut Wire, task_id: &str) -> String {
    let reply = wire.call(&["ZSCORE", "pmcp:idx:alice", task_id]);
    reply.lines().last().unwrap().to_owned()
}

#[tokio::test]
async fn expiry_is_cut_to_the_second() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    let second = (now_ms() / 1000 + 2) * 1000;
    let data = created_at(0, Some(second + 900));
    lua.put("alice:t", &data).await.unwrap();
    native.put("alice:t", &data).await.unwrap();
    sleep_until(second + 100);
    assert_eq!(keys(lua.list_by_prefix("alice:").await), [""; 0]);
    assert!(lua.get("alice:t").await.is_err());
    assert_eq!(native.get("alice:t").await.unwrap().data, data);
    sleep_until(second + 902);
    assert!(native.get("alice:t").await.is_err());
}

#[tokio::test]
async fn owners_with_a_colon_share_a_list() {
    let (_old, lua, _new, native) = each_on_its_own().await;
    lua.put("tenant:alice:t", b"d").await.unwrap();
    native.put("tenant:alice:t", b"d").await.unwrap();
    assert_eq!(keys(lua.list_by_prefix("tenant:").await), ["tenant:alice:t"]);
    assert_eq!(keys(lua.list_by_prefix("tenant:alice:").await), [""; 0]);
    assert_eq!(keys(native.list_by_prefix("tenant:").await), [""; 0]);
    assert_eq!(keys(native.list_by_prefix("tenant:alice:").await), ["tenant:alice:t"]);
}

#[tokio::test]
async fn data_that_is_no_text_is_refused() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    assert!(lua.put("alice:t", b"\xff").await.is_err());
    native.put("alice:t", b"\xff").await.unwrap();
    assert_eq!(native.get("alice:t").await.unwrap().data, b"\xff");
}

#[tokio::test]
async fn unreadable_expiry_means_never() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    let data = br#"{"expiresAt":"soon"}"#;
    assert_eq!(lua.put("alice:t", data).await.unwrap(), 1);
    assert!(native.put("alice:t", data).await.is_err());
    assert!(matches!(native.get("alice:t").await, Err(StorageError::NotFound { .. })));
}

#[tokio::test]
async fn expiry_beyond_the_year_9999_means_never() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    let record = TaskRecord::new("alice".to_owned(), "tools/call".to_owned(), Some(1 << 48));
    let data = serde_json::to_vec(&record).unwrap();
    assert!(String::from_utf8_lossy(&data).contains(r#""expiresAt":"+1"#));
    for backend in [&lua as &dyn StorageBackend, &native] {
        assert_eq!(backend.put("alice:t", &data).await.unwrap(), 1);
        assert_eq!(backend.get("alice:t").await.unwrap().data, data);
    }
    let mut wire = server.wire();
    let mut expiry = |prefix: &str| wire.call(&["PEXPIRETIME", &format!("{prefix}:tasks:alice:t")]);
    assert_eq!(expiry("lua"), ":-1\r\n");
    let expires_at = record.expires_at.unwrap();
    // A started millisecond counts as a whole one.
    let expires_at_ms = expires_at.timestamp_millis()
        + i64::from(!expires_at.timestamp_subsec_nanos().is_multiple_of(1_000_000));
    assert_eq!(expiry("native"), format!(":{expires_at_ms}\r\n"));
}

#[tokio::test]
async fn number_that_no_double_can_hold_hides_the_expiry() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    let data = br#"{"expiresAt":"2020-01-01T00:00:00Z","task":{"createdAt":1e400}}"#;
    for backend in [&lua as &dyn StorageBackend, &native] {
        assert_eq!(backend.put("alice:t", data).await.unwrap(), 1);
    }
    assert_eq!(lua.get("alice:t").await.unwrap().data, data);
    assert!(matches!(native.get("alice:t").await, Err(StorageError::NotFound { .. })));
}

#[tokio::test]
async fn task_without_creation_time_is_listed_first() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    let dated = created_at(1_700_000_000_000, None);
    for backend in [&lua as &dyn StorageBackend, &native] {
        backend.put("alice:dated", &dated).await.unwrap();
        backend.put("alice:now", b"text").await.unwrap();
    }
    assert_eq!(keys(lua.list_by_prefix("alice:").await), ["alice:now", "alice:dated"]);
    assert_eq!(keys(native.list_by_prefix("alice:").await), ["alice:dated", "alice:now"]);
}

#[tokio::test]
async fn version_beyond_2_to_the_53_is_inexact() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    for prefix in ["lua", "native"] {
        let key = format!("{prefix}:tasks:alice:t");
        server.wire().call(&["HSET", &key, "version", "9007199254740993", "data", "d"]);
    }
    assert_ne!(lua.put("alice:t", b"d").await.unwrap(), 9_007_199_254_740_994);
    assert!(lua.get("alice:t").await.is_err(), "Lua has written the version as a float");
    assert_eq!(native.put("alice:t", b"d").await.unwrap(), 9_007_199_254_740_994);
    assert_eq!(native.get("alice:t").await.unwrap().version, 9_007_199_254_740_994);
}

#[tokio::test]
async fn index_entry_of_a_task_that_has_gone_stays() {
    let (old, lua, new, native) = each_on_its_own().await;
    let (mut old, mut new) = (old.wire(), new.wire());
    let ends = now_ms() + 2_000;
    let data = created_at(7, Some(ends));
    lua.put("alice:t", &data).await.unwrap();
    native.put("alice:t", &data).await.unwrap();
    assert_eq!((score(&mut old, "t"), score(&mut new, "t")), ("7".to_owned(), "7".to_owned()));
    sleep_until(ends);
    assert!(holds_within(PROMISED, || score(&mut new, "t") == "$-1"));
    assert_eq!(score(&mut old, "t"), "7");
}

#[tokio::test]
async fn task_created_again_keeps_the_old_creation_time() {
    let (old, lua, new, native) = each_on_its_own().await;
    for backend in [&lua as &dyn StorageBackend, &native] {
        backend.put("alice:t", &created_at(1_000, Some(2_000))).await.unwrap();
        assert_eq!(backend.put("alice:t", &created_at(5_000, None)).await.unwrap(), 1);
    }
    assert_eq!(score(&mut old.wire(), "t"), "1000");
    assert_eq!(score(&mut new.wire(), "t"), "5000");
}

#[tokio::test]
async fn task_id_can_be_empty() {
    let server = Server::start();
    let (lua, native) = both(&server).await;
    assert_eq!(lua.put("alice:", b"d").await.unwrap(), 1);
    assert!(native.put("alice:", b"d").await.is_err());
}
