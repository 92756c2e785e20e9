//! Random saves, loads, lists, prunes and deletes leave what a plain model says, and no key in the end.
//!
//! The sequences are the same in each run. `PROPTEST_RNG_SEED` gives others; `PROPTEST_CASES` runs more.
#![cfg(all(feature = "adk", feature = "redis-tests"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::time::Duration;

use adk_graph::checkpoint::{Checkpointer as _, RetentionPolicy};
use adk_graph::state::Checkpoint;
use chrono::{DateTime, Utc};
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_tests::{OK, Server};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use proptest::{collection, option, sample};
use tokio::runtime;

use crate::support::{keys, named, saver, step, steps};

const THREADS: [&str; 4] = ["", "a", "a:b", "%3A{x}"];
const IDS: [&str; 5] = ["", "1", "a:b", "%", "-é"];
/// Days from the epoch. Some lie before it; none is near the limit of 10 days ago.
const CREATED: [i64; 4] = [-1, 0, 19_000, 100_000];
const TEN_DAYS: Duration = Duration::from_hours(240);

#[derive(Debug, Clone)]
enum Call {
    Save { thread: &'static str, id: &'static str, created: i64 },
    Load(&'static str),
    LoadById(&'static str),
    List(&'static str),
    Prune { thread: &'static str, keep: Option<usize>, by_age: bool },
    Delete(&'static str),
}

fn call() -> impl Strategy<Value = Call> {
    let thread = || sample::select(THREADS.as_slice());
    let id = || sample::select(IDS.as_slice());
    let save = (thread(), id(), sample::select(CREATED.as_slice()));
    let prune = (thread(), option::of(0..4_usize), any::<bool>());
    prop_oneof![
        8 => save.prop_map(|(thread, id, created)| Call::Save { thread, id, created }),
        2 => thread().prop_map(Call::Load),
        3 => id().prop_map(Call::LoadById),
        2 => thread().prop_map(Call::List),
        2 => prune.prop_map(|(thread, keep, by_age)| Call::Prune { thread, keep, by_age }),
        1 => thread().prop_map(Call::Delete),
    ]
}

type Name = (&'static str, i64);

/// A stored checkpoint.
#[derive(Debug, Clone, Copy)]
struct Stored {
    thread: &'static str,
    name: Name,
    step: usize,
}

#[derive(Debug, Default)]
struct Model {
    /// In the order in which each was saved first.
    all: Vec<Stored>,
}

impl Model {
    fn steps(&self, thread: &str) -> Vec<usize> {
        self.all.iter().filter(|stored| stored.thread == thread).map(|stored| stored.step).collect()
    }

    fn save(&mut self, thread: &'static str, name: Name, step: usize) {
        match self.all.iter_mut().find(|stored| (stored.thread, stored.name) == (thread, name)) {
            Some(stored) => stored.step = step,
            None => self.all.push(Stored { thread, name, step }),
        }
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.all.iter().rev().find(|stored| stored.name.0 == id).map(|stored| stored.step)
    }

    /// Removes the checkpoints of a thread that `goes` says, by how many newer ones there are.
    fn remove(&mut self, thread: &str, goes: impl Fn(usize, &Stored) -> bool) -> usize {
        let before = self.all.len();
        let mut newer = self.all.iter().filter(|stored| stored.thread == thread).count();
        self.all.retain(|stored| {
            if stored.thread != thread {
                return true;
            }
            newer -= 1;
            !goes(newer, stored)
        });
        before - self.all.len()
    }

    /// One for each thread, two for each checkpoint, and one for each id.
    fn keys(&self) -> usize {
        let threads = THREADS.iter().filter(|thread| !self.steps(thread).is_empty()).count();
        let ids = IDS.iter().filter(|id| self.find(id).is_some()).count();
        threads + 2 * self.all.len() + ids
    }
}

fn created_at(days: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(days * 86_400, 0).unwrap()
}

async fn run(saver: &RedisCheckpointer, model: &mut Model, number: usize, call: &Call) {
    match *call {
        Call::Save { thread, id, created } => {
            let checkpoint = Checkpoint { created_at: created_at(created), ..named(thread, id, number) };
            assert_eq!(saver.save(&checkpoint).await.unwrap(), id);
            model.save(thread, (id, created), number);
        }
        Call::Load(thread) => {
            assert_eq!(step(saver.load(thread).await), model.steps(thread).last().copied());
        }
        Call::LoadById(id) => assert_eq!(step(saver.load_by_id(id).await), model.find(id)),
        Call::List(thread) => {
            assert_eq!(steps(&saver.list(thread).await.unwrap()), model.steps(thread));
        }
        Call::Prune { thread, keep, by_age } => {
            let policy = RetentionPolicy { max_per_thread: keep, max_age: by_age.then_some(TEN_DAYS) };
            let cutoff = Utc::now() - TEN_DAYS;
            let removed = model.remove(thread, |newer, stored| {
                let is_old = by_age && created_at(stored.name.1) < cutoff;
                newer > 0 && (is_old || keep.is_some_and(|keep| newer >= keep))
            });
            assert_eq!(saver.prune(thread, &policy).await.unwrap(), removed);
        }
        Call::Delete(thread) => {
            saver.delete(thread).await.unwrap();
            model.remove(thread, |_, _| true);
        }
    }
}

async fn run_all(server: &Server, saver: &RedisCheckpointer, calls: &[Call]) {
    // A sequence that failed has left something.
    assert_eq!(server.wire().call(&["FLUSHALL"]), OK);
    let mut model = Model::default();
    for (number, call) in calls.iter().enumerate() {
        run(saver, &mut model, number, call).await;
    }
    for thread in THREADS {
        assert_eq!(steps(&saver.list(thread).await.unwrap()), model.steps(thread));
    }
    for id in IDS {
        assert_eq!(step(saver.load_by_id(id).await), model.find(id), "{id}");
    }
    assert_eq!(keys(server), i64::try_from(model.keys()).unwrap());
    for thread in THREADS {
        saver.delete(thread).await.unwrap();
    }
    assert_eq!(keys(server), 0);
}

#[test]
fn random_calls_leave_what_the_model_says_and_no_key_in_the_end() {
    let server = Server::start();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let saver = runtime.block_on(saver(&server));
    let mut config = Config { failure_persistence: None, max_shrink_time: 60_000, ..Config::default() };
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(18);
    }
    let outcome = TestRunner::new(config).run(&collection::vec(call(), 0..80), |calls| {
        runtime.block_on(run_all(&server, &saver, &calls));
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
