//! Every reply and every key is what an in-memory model says, for any commands in any order.
//!
//! Random sequences of all commands and options run on real servers, over several connections, while time
//! passes and other clients change the same keys; [`pmcptask_tests::model`] says what is right. A sequence
//! that fails is shrunk to a short one.
//!
//! - `PMCPTASK_MODEL_OPERATIONS=1000000 cargo test -p pmcptask-tests --features redis-tests --test model`
//!   runs more operations than usual.
//! - The sequences are the same in each run. `PROPTEST_RNG_SEED` gives others; the other `PROPTEST_`
//!   variables work too.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::env;
use std::ops::RangeInclusive;
use std::thread;
use std::time::Duration;

use pmcptask_tests::model::{
    Call, Created, Keys, LAST_CREATION_TIME, Lifetime, Limits, Listing, Model, Owner, Record, Scope, Stored,
    TaskName, Trimming, Write, shown,
};
use pmcptask_tests::{PROMISED, Server, ServerOptions, holds_within, now_ms, slowness};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use proptest::{collection, option, sample};
use redis::{Connection, Value, cmd};

/// Operations of a default run.
const OPERATIONS: usize = 120_000;
const OPERATIONS_VARIABLE: &str = "PMCPTASK_MODEL_OPERATIONS";
/// Servers that run sequences at the same time. Most of them are waiting for an expiry.
const LANES: usize = 8;
/// Steps of the longest sequence.
const LONGEST: usize = 500;
const CONNECTIONS: usize = 3;

const OWNERS: [Owner; 7] = [
    Owner { prefix: "pmcp", name: "alice" },
    Owner { prefix: "pmcp", name: "a" },
    Owner { prefix: "pmcp", name: "a:b" },
    Owner { prefix: "pmcp", name: "" },
    Owner { prefix: "pmcp", name: "urn:idx:{x} é|" },
    Owner { prefix: "app:1", name: "alice" },
    Owner { prefix: "", name: "o:tasks:p" },
];
const IDS: [&str; 5] = ["t", "t1", "T", "{x}", "é f"];
/// `b:t` is what the Lua backend writes into the index of `a` for a task of `a:b`.
const MEMBERS: [&str; 7] = ["t", "t1", "T", "{x}", "é f", "b:t", "stranger"];
/// Only a few, so that tasks share creation times.
const CREATION_TIMES: [i64; 5] = [0, 1, 1_700_000_000_000, 1_700_000_000_001, LAST_CREATION_TIME];
const VERSIONS: [&str; 9] =
    ["0", "-1", "01", "+5", "1.0", "", "x", "9007199254740993", "9223372036854775807"];

/// A time that is known only when the step runs.
#[derive(Debug, Clone, Copy)]
enum When {
    BeforeTheEpoch,
    AtTheEpoch,
    /// This many ms ago.
    Past(i64),
    /// In this many ms.
    Ahead(i64),
    /// Close to the last timestamp that RFC 3339 can express.
    Last,
}

impl When {
    fn ms(self, now_ms: i64) -> i64 {
        match self {
            Self::BeforeTheEpoch => -1_500,
            Self::AtTheEpoch => 0,
            Self::Past(ms) => now_ms - ms,
            Self::Ahead(ms) => now_ms + ms,
            Self::Last => 253_402_300_799_000,
        }
    }
}

/// `PXAT`, `PERSIST`, or neither.
#[derive(Debug, Clone, Copy)]
enum Ends {
    AsTheRecordSays,
    Never,
    At(When),
    AtTheLargestNumber,
}

impl Ends {
    fn lifetime(self, now_ms: i64) -> Option<Lifetime> {
        match self {
            Self::AsTheRecordSays => None,
            Self::Never => Some(Lifetime::Unlimited),
            Self::At(when) => Some(Lifetime::Until(when.ms(now_ms).max(0))),
            Self::AtTheLargestNumber => Some(Lifetime::Until(i64::MAX)),
        }
    }
}

/// A member of a record that should be a timestamp.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Absent,
    /// With parts of a millisecond, and in another time zone.
    At(When, bool, bool),
    /// JSON that is not a timestamp.
    Else(&'static str),
}

impl Moment {
    /// The member as JSON, and its meaning: whole ms, and whether parts of the next ms follow.
    fn member(self, name: &str, now_ms: i64) -> (String, Option<(i64, bool)>) {
        match self {
            Self::Absent => (String::new(), None),
            Self::Else(json) => (format!(r#""{name}":{json},"#), None),
            Self::At(when, has_parts, is_elsewhere) => {
                let ms = when.ms(now_ms);
                let nanos = u32::try_from(ms.rem_euclid(1000)).unwrap() * 1_000_000 + u32::from(has_parts);
                let at = chrono::DateTime::from_timestamp(ms.div_euclid(1000), nanos).unwrap();
                let zone = chrono::FixedOffset::west_opt(if is_elsewhere { 19_800 } else { 0 }).unwrap();
                let text = at.with_timezone(&zone).to_rfc3339();
                (format!(r#""{name}":"{text}","#), Some((ms, has_parts)))
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Data {
    Bytes(Vec<u8>),
    /// JSON that is not an object, or nearly JSON.
    NoObject(&'static str),
    Object {
        expires_at: Moment,
        created_at: Moment,
    },
    /// An object whose `task` is not a task.
    OddTask(&'static str),
}

impl Data {
    fn record(&self, now_ms: i64) -> Record {
        let without_times = |bytes: &[u8]| Record {
            bytes: bytes.to_vec(),
            lifetime: Some(Lifetime::Unlimited),
            created_ms: None,
        };
        match self {
            Self::Bytes(bytes) => without_times(bytes),
            Self::NoObject(text) => without_times(text.as_bytes()),
            Self::OddTask(task) => without_times(format!(r#"{{"task":{task}}}"#).as_bytes()),
            Self::Object { expires_at, created_at } => {
                let (expires_json, expires) = expires_at.member("expiresAt", now_ms);
                let (created_json, created) = created_at.member("createdAt", now_ms);
                let lifetime = match (expires_at, expires) {
                    (Moment::Absent | Moment::Else("null"), _) => Some(Lifetime::Unlimited),
                    (_, Some((ms, has_parts))) => Some(Lifetime::Until(ms + i64::from(has_parts))),
                    (_, None) => None,
                };
                let json = format!(
                    r#"{{"variables":{{"expiresAt":"x"}},{expires_json}"task":{{{created_json}"taskId":"t"}}}}"#
                );
                let created_ms = created.map(|(ms, _)| ms).filter(|ms| *ms >= 0);
                Record { bytes: json.into_bytes(), lifetime, created_ms }
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Expected {
    /// The task's version plus this difference.
    Beside(i64),
    Exactly(i64),
}

#[derive(Debug, Clone, Copy)]
enum After {
    /// The position of a task; the start of the list if its position is not known.
    Task(TaskName),
    At(i64, &'static str),
}

#[derive(Debug, Clone)]
struct Writing {
    task: TaskName,
    data: Data,
    ends: Ends,
    created: Option<Created>,
}

impl Writing {
    fn write(&self, now_ms: i64) -> Write {
        Write {
            task: self.task,
            record: self.data.record(now_ms),
            lifetime: self.ends.lifetime(now_ms),
            created: self.created,
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(Writing, Limits),
    Cas(Writing, Expected),
    DelVersion(TaskName, Expected),
    Expire(TaskName, Ends),
    List {
        owner: Owner,
        newest_first: bool,
        after: Option<After>,
        count: Option<usize>,
        without_data: bool,
    },
    /// A command that does not depend on the state.
    Plain(Call),
    /// Compares a task's keys.
    Look(TaskName),
    /// Waits until nothing is left that ends soon.
    TimePasses,
}

// Generated steps.

fn tasks() -> impl Strategy<Value = TaskName> {
    (sample::select(&OWNERS[..]), sample::select(&IDS[..])).prop_map(|(owner, id)| TaskName { owner, id })
}

fn whens() -> impl Strategy<Value = When> {
    prop_oneof![
        1 => Just(When::BeforeTheEpoch),
        1 => Just(When::AtTheEpoch),
        3 => prop_oneof![Just(50), 1_000..100_000_i64].prop_map(When::Past),
        5 => (50..150_i64).prop_map(When::Ahead),
        8 => (3_600_000..3_700_000_i64).prop_map(When::Ahead),
        1 => Just(When::Last),
    ]
}

fn ends() -> impl Strategy<Value = Ends> {
    prop_oneof![
        6 => Just(Ends::AsTheRecordSays),
        6 => new_ends(),
    ]
}

fn new_ends() -> impl Strategy<Value = Ends> {
    prop_oneof![
        2 => Just(Ends::Never),
        3 => whens().prop_map(Ends::At),
        1 => Just(Ends::AtTheLargestNumber),
    ]
}

fn moments() -> impl Strategy<Value = Moment> {
    prop_oneof![
        3 => Just(Moment::Absent),
        1 => Just(Moment::Else("null")),
        6 => (whens(), any::<bool>(), any::<bool>()).prop_map(|(when, has_parts, is_elsewhere)| {
            Moment::At(when, has_parts, is_elsewhere)
        }),
        2 => sample::select(&[r#""soon""#, r#""""#, "5", "true", "[]", "{}", r#""2026-11-21""#][..])
            .prop_map(Moment::Else),
    ]
}

fn records() -> impl Strategy<Value = Data> {
    let no_object = ["", "null", "[]", "5", r#"{"expiresAt":5"#, r#"["expiresAt"]"#, "{}x", " "];
    prop_oneof![
        2 => collection::vec(any::<u8>(), 0..40).prop_map(Data::Bytes),
        1 => sample::select(no_object.to_vec()).prop_map(Data::NoObject),
        1 => sample::select(&["null", "7", "[]", r#""x""#, "{}"][..]).prop_map(Data::OddTask),
        6 => (moments(), moments())
            .prop_map(|(expires_at, created_at)| Data::Object { expires_at, created_at }),
    ]
}

fn created() -> impl Strategy<Value = Created> {
    prop_oneof![sample::select(&CREATION_TIMES[..]).prop_map(Created::At), Just(Created::Newest)]
}

fn writings() -> impl Strategy<Value = Writing> {
    (tasks(), records(), ends(), option::of(created())).prop_map(|(task, data, ends, created)| Writing {
        task,
        data,
        ends,
        created,
    })
}

fn versions() -> impl Strategy<Value = Expected> {
    prop_oneof![
        6 => Just(Expected::Beside(0)),
        1 => sample::select(&[-1, 1][..]).prop_map(Expected::Beside),
        2 => sample::select(&[0, 1, 1 << 53, i64::MAX][..]).prop_map(Expected::Exactly),
    ]
}

fn afters() -> impl Strategy<Value = After> {
    prop_oneof![
        tasks().prop_map(After::Task),
        (sample::select(&CREATION_TIMES[..]), sample::select(&MEMBERS[..]))
            .prop_map(|(created_ms, id)| After::At(created_ms, id)),
    ]
}

fn lists() -> impl Strategy<Value = Step> {
    let counts = prop_oneof![0..5_usize, Just(1_000_000)];
    (sample::select(&OWNERS[..]), any::<bool>(), option::of(afters()), option::of(counts), any::<bool>())
        .prop_map(|(owner, newest_first, after, count, without_data)| Step::List {
            owner,
            newest_first,
            after,
            count,
            without_data,
        })
}

fn limits() -> impl Strategy<Value = Limits> {
    (option::weighted(0.3, 0..5_usize), prop::bool::weighted(0.3), option::weighted(0.3, tasks()))
        .prop_map(|(max_tasks, only_new, held)| Limits { max_tasks, only_new, held })
}

/// An owner has at most one task for each id, so a trim removes none, some or all of them.
fn trims() -> impl Strategy<Value = Call> {
    (sample::select(&OWNERS[..]), 0..=IDS.len(), option::of(0..4_usize))
        .prop_map(|(owner, keep, count)| Call::Trim(Trimming { owner, keep, count }))
}

fn acts_of_others() -> impl Strategy<Value = Call> {
    prop_oneof![
        tasks().prop_map(Call::Delete),
        tasks().prop_map(Call::Unlink),
        tasks().prop_map(Call::Persist),
        (tasks(), sample::select(&VERSIONS[..])).prop_map(|(task, version)| Call::SetVersion(task, version)),
        tasks().prop_map(Call::DropData),
        (sample::select(&OWNERS[..]), sample::select(&MEMBERS[..]), sample::select(&CREATION_TIMES[..]))
            .prop_map(|(owner, member, score)| Call::Enter(owner, member, score)),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        100 => (writings(), limits()).prop_map(|(write, limits)| Step::Put(write, limits)),
        70 => (writings(), versions()).prop_map(|(write, expected)| Step::Cas(write, expected)),
        60 => tasks().prop_map(|task| Step::Plain(Call::Get(task))),
        25 => tasks().prop_map(|task| Step::Plain(Call::Del(task, None))),
        20 => (tasks(), versions()).prop_map(|(task, expected)| Step::DelVersion(task, expected)),
        40 => (tasks(), new_ends()).prop_map(|(task, ends)| Step::Expire(task, ends)),
        25 => trims().prop_map(Step::Plain),
        50 => lists(),
        25 => acts_of_others().prop_map(Step::Plain),
        30 => tasks().prop_map(Step::Look),
        1 => Just(Step::TimePasses),
    ]
}

// How steps run.

struct Run {
    connections: Vec<Connection>,
    model: Model,
}

impl Run {
    fn start(server: &Server) -> Self {
        let mut connections: Vec<_> = (0..CONNECTIONS).map(|_| server.connection()).collect();
        for connection in &connections {
            // A server that hangs must be reported as a failure.
            connection.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        }
        cmd("FLUSHALL").exec(&mut connections[0]).unwrap();
        Self { connections, model: Model::default() }
    }

    fn step(&mut self, step: &Step, connection: usize) -> Result<(), String> {
        let now = now_ms();
        let call = match step {
            Step::Put(writing, limits) => Call::Put(writing.write(now), *limits),
            Step::Cas(writing, expected) => {
                Call::Cas(writing.write(now), self.version(writing.task, *expected))
            }
            Step::DelVersion(task, expected) => Call::Del(*task, Some(self.version(*task, *expected))),
            Step::Expire(task, ends) => Call::Expire(*task, ends.lifetime(now).unwrap()),
            Step::List { owner, newest_first, after, count, without_data } => {
                let after = after.and_then(|after| match after {
                    After::Task(task) => Some((self.model.created_ms(task)?, task.id)),
                    After::At(created_ms, id) => Some((created_ms, id)),
                });
                Call::List(Listing {
                    owner: *owner,
                    newest_first: *newest_first,
                    after,
                    count: *count,
                    without_data: *without_data,
                })
            }
            Step::Plain(call) => call.clone(),
            Step::Look(task) => return look(&self.model, *task, &mut self.connections[connection]),
            Step::TimePasses => {
                self.let_time_pass();
                return Ok(());
            }
        };
        self.call(&call, connection)
    }

    fn version(&self, task: TaskName, expected: Expected) -> i64 {
        match expected {
            Expected::Beside(by) => self.model.version(task).saturating_add(by).max(0),
            Expected::Exactly(version) => version,
        }
    }

    fn call(&mut self, call: &Call, connection: usize) -> Result<(), String> {
        let before = now_ms();
        let answer = call.command().query::<Value>(&mut self.connections[connection]);
        let after = now_ms();
        let answer = answer.map_err(|error| error.code().unwrap_or("no code").to_owned());
        let score = call.written().and_then(|task| self.score(task, connection));
        let mut expected = Vec::new();
        // A key still exists in the millisecond of its expiry.
        let states = self.model.moments(before - 1, after).into_iter();
        let states: Vec<_> = states
            .flat_map(|moment| self.model.before(call, moment).into_iter().map(move |model| (moment, model)))
            .collect();
        for (moment, mut model) in states {
            let reply = model.run(call, moment);
            if reply.is(&answer) && self.agrees(call, &mut model, score, before..=after, connection) {
                self.model = model;
                return Ok(());
            }
            expected.push(reply);
        }
        Err(format!(
            "{call:?} in {before}..={after}: expected {expected:?}, got {answer:?}; its score is {score:?}"
        ))
    }

    /// Whether a model is also right about what the reply does not tell. The model learns the creation time that
    /// the server chose.
    fn agrees(
        &mut self,
        call: &Call,
        model: &mut Model,
        score: Option<i64>,
        ran: RangeInclusive<i64>,
        connection: usize,
    ) -> bool {
        match call {
            // A trim in the millisecond of an expiry can remove one task or another, with the same reply.
            Call::Trim(trimming) => self.agrees_about(trimming.owner, model, connection, *ran.start()),
            Call::Put(write, _) | Call::Cas(write, _) if model.has_to_learn(write.task) => match score {
                Some(score) => model.learn(write.task, score, &ran),
                None => look(model, write.task, &mut self.connections[connection]).is_ok(),
            },
            _ => true,
        }
    }

    fn score(&mut self, task: TaskName, connection: usize) -> Option<i64> {
        let mut score = cmd("ZSCORE");
        score.arg(task.owner.index_key()).arg(task.id);
        score.query(&mut self.connections[connection]).unwrap()
    }

    /// Whether a model says what the server holds of the owner's tasks.
    fn agrees_about(&mut self, owner: Owner, model: &Model, connection: usize, before: i64) -> bool {
        IDS.into_iter().all(|id| {
            let task = TaskName { owner, id };
            let found = keys_of(task, &mut self.connections[connection]);
            differences(model, task, &found, before).is_empty()
        })
    }

    fn let_time_pass(&self) {
        let now = now_ms();
        // Tasks end within 150 ms, those that have lapsed within 500 ms, on slow servers later. If another client removed the
        // expiry, a task ends with that second.
        if let Some(last) = self.model.moments(now, now + 2_000 * i64::from(slowness())).last() {
            thread::sleep(Duration::from_millis(u64::try_from(last - now).unwrap() + 2));
        }
    }

    fn finish(&mut self) -> Result<(), String> {
        self.let_time_pass();
        let mut difference = None;
        let agrees = holds_within(PROMISED, || {
            let found = all_keys(&mut self.connections[0]);
            difference = self.model.difference(found, Scope::Everything, now_ms());
            difference.is_none()
        });
        if agrees { Ok(()) } else { Err(format!("at the end, {difference:?}")) }
    }
}

fn look(model: &Model, task: TaskName, connection: &mut Connection) -> Result<(), String> {
    let before = now_ms();
    let found = keys_of(task, connection);
    let differences = differences(model, task, &found, before);
    if differences.is_empty() { Ok(()) } else { Err(format!("{task:?}: {differences:?}")) }
}

/// What a model says otherwise about a task, at each time since `before`; nothing if the model is right at one of them.
fn differences(model: &Model, task: TaskName, found: &Keys, before: i64) -> Vec<String> {
    let mut differences = Vec::new();
    for moment in model.moments(before - 1, now_ms()) {
        match model.clone().difference(found.clone(), Scope::One(task), moment) {
            None => return Vec::new(),
            Some(difference) => differences.push(difference),
        }
    }
    differences
}

/// What a server holds of a task at one point in time.
fn keys_of(task: TaskName, connection: &mut Connection) -> Keys {
    let (key, index) = (task.key(), task.owner.index_key());
    let (fields, expires_ms, score): (Bytes, i64, Option<f64>) = redis::pipe()
        .atomic()
        .cmd("HGETALL")
        .arg(&key)
        .cmd("PEXPIRETIME")
        .arg(&key)
        .cmd("ZSCORE")
        .arg(&index)
        .arg(task.id)
        .query(connection)
        .unwrap();
    let hash = (!fields.is_empty()).then(|| (shown(key.as_bytes()), hash(&fields, expires_ms)));
    let entry = score
        .map(|score| (shown(index.as_bytes()), Stored::Index([(shown(task.id.as_bytes()), score)].into())));
    hash.into_iter().chain(entry).collect()
}

type Bytes = BTreeMap<Vec<u8>, Vec<u8>>;

fn hash(fields: &Bytes, expires_ms: i64) -> Stored {
    let fields = fields.iter().map(|(name, value)| (shown(name), shown(value))).collect();
    Stored::Hash(fields, Some(expires_ms).filter(|ms| *ms >= 0))
}

fn all_keys(connection: &mut Connection) -> Keys {
    let keys: Vec<Vec<u8>> = cmd("KEYS").arg("*").query(connection).unwrap();
    keys.into_iter().map(|key| (shown(&key), stored(&key, connection))).collect()
}

fn stored(key: &[u8], connection: &mut Connection) -> Stored {
    let kind: String = cmd("TYPE").arg(key).query(connection).unwrap();
    match kind.as_str() {
        "hash" => {
            let fields = cmd("HGETALL").arg(key).query(connection).unwrap();
            hash(&fields, cmd("PEXPIRETIME").arg(key).query(connection).unwrap())
        }
        "zset" => {
            let mut range = cmd("ZRANGE");
            range.arg(key).arg(&["0", "-1", "WITHSCORES"]);
            let entries: Vec<(Vec<u8>, f64)> = range.query(connection).unwrap();
            Stored::Index(entries.into_iter().map(|(member, score)| (shown(&member), score)).collect())
        }
        _ => Stored::Other(kind),
    }
}

fn run(server: &Server, steps: &[(Step, usize)]) -> Result<(), String> {
    let mut run = Run::start(server);
    for (at, (step, connection)) in steps.iter().enumerate() {
        run.step(step, *connection).map_err(|difference| format!("step {at}, {difference}"))?;
    }
    run.finish()
}

/// Runs sequences until this many operations have run. Returns the message of the first failure.
fn run_lane(lane: u64, operations: usize) -> Result<(), String> {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    // A failure must be reported in time, even if it is not shrunk completely.
    config.max_shrink_time = 60_000;
    config.rng_seed = match config.rng_seed {
        RngSeed::Fixed(seed) => RngSeed::Fixed(seed.wrapping_add(lane)),
        RngSeed::Random => RngSeed::Fixed(lane),
    };
    let mut runner = TestRunner::new(config);
    let sequences = collection::vec((steps(), 0..CONNECTIONS), 0..=LONGEST);
    // The module walks through the indexes all the time, so a second look comes soon.
    let options = ServerOptions::default().set("hz", "100").set("pmcptask.debug-walk-rest-ms", "1");
    let server = Server::start_with(&options);
    let done = Cell::new(0);
    while done.get() < operations {
        let sequence = sequences.new_tree(&mut runner).map_err(|reason| reason.to_string())?;
        let result = runner.run_one(sequence, |steps| {
            done.set(done.get() + steps.len());
            run(&server, &steps).map_err(TestCaseError::fail)
        });
        match result {
            Ok(_) => {}
            Err(TestError::Abort(reason)) => return Err(reason.to_string()),
            Err(TestError::Fail(reason, steps)) => {
                let steps: Vec<_> = steps.iter().map(|step| format!("  {step:?}")).collect();
                return Err(format!("lane {lane}: {reason}\nafter these steps:\n{}", steps.join("\n")));
            }
        }
    }
    Ok(())
}

/// As when another client has removed the expiry of the hash, and the field `expires_at` ends the task.
#[test]
fn plain_commands_find_nothing_of_a_lapsed_task_that_the_module_has_removed() {
    let server = Server::start();
    let owner = Owner { prefix: "pmcp", name: "alice" };
    let task = TaskName { owner, id: "t" };
    for call in [
        Call::Delete(task),
        Call::Unlink(task),
        Call::SetVersion(task, "2"),
        Call::DropData(task),
        Call::Enter(owner, task.id, 7),
    ] {
        let mut run = Run::start(&server);
        let record =
            Record { bytes: b"data".to_vec(), lifetime: Some(Lifetime::Unlimited), created_ms: None };
        // Long enough for the next two calls.
        let lifetime = Some(Lifetime::Until(now_ms() + 500 * i64::from(slowness())));
        let write = Write { task, record, lifetime, created: Some(Created::At(1)) };
        run.call(&Call::Put(write, Limits::default()), 0).unwrap();
        run.call(&Call::Persist(task), 0).unwrap();
        assert_eq!(server.wire().call(&["TTL", &task.key()]), ":-1\r\n");
        run.let_time_pass();
        run.call(&Call::Get(task), 0).unwrap();
        let is_removed = || server.wire().call(&["DBSIZE"]) == ":0\r\n";
        assert!(holds_within(PROMISED, is_removed));
        run.call(&call, 0).unwrap();
        run.finish().unwrap();
    }
}

#[test]
fn every_reply_and_every_key_is_what_the_model_says() {
    let operations =
        env::var(OPERATIONS_VARIABLE).map_or(OPERATIONS, |operations| operations.parse().unwrap());
    let failures: Vec<_> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES as u64)
            .map(|lane| scope.spawn(move || run_lane(lane, operations.div_ceil(LANES))))
            .collect();
        lanes.into_iter().filter_map(|lane| lane.join().unwrap().err()).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
