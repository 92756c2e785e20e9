//! Savers in a cluster whose slots move: each call ends right, or its error says whether anything was
//! written; the lists are those of a plain model; nothing is left of threads that were deleted.
#![cfg(all(feature = "adk", feature = "redis-tests"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use pmcptask_checkpoint::pmcptask_client::Applied;
use pmcptask_tests::{Cluster, Dice, Progress, Server, holds_within, show, skipped};
use tokio::task::JoinHandle;

use crate::support::keys;
use crate::support::savers::{self, Failure, Saver};

const CLIENTS_OF_A_SAVER: usize = 2;
const THREADS_OF_A_CLIENT: usize = 16;
/// Calls of all clients before and after each change of the cluster.
const A_WHILE: usize = 1_000;
/// One slot in sixteen.
const SLOTS: usize = 1_024;
/// Shorter than slots are half moved, so that calls fail.
const PATIENCE: Duration = Duration::from_millis(200);
/// After an error, a client waits before the next call, as a careful user would.
const AFTER_AN_ERROR: Duration = Duration::from_millis(10);

/// A change of a thread that has failed. It may have been made, as a whole or in part.
#[derive(Debug, Clone, Copy)]
enum Change {
    Save(usize),
    Keep(usize),
    Delete,
}

/// A thread and what must be stored of it.
struct Thread {
    name: String,
    /// Oldest first.
    steps: Vec<usize>,
    /// How many steps were saved, of which some may be gone.
    saves: usize,
    /// The thread is left alone until this can be repeated.
    unsettled: Option<Change>,
}

impl Thread {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Save(step) if self.steps.contains(&step) => {}
            Change::Save(step) => self.steps.push(step),
            Change::Keep(newest) => drop(self.steps.drain(..self.steps.len().saturating_sub(newest))),
            Change::Delete => self.steps.clear(),
        }
    }
}

/// A client and its threads, which no other client uses.
struct Client {
    saver: Arc<dyn Saver>,
    number: usize,
    dice: Dice,
    threads: Vec<Thread>,
    calls: usize,
    failures: BTreeMap<String, usize>,
    violations: Vec<String>,
}

impl Client {
    async fn work(mut self, progress: Progress) -> Self {
        for _ in 0..THREADS_OF_A_CLIENT {
            self.add_thread();
        }
        while !progress.is_over() {
            if self.call().await {
                self.calls += 1;
                progress.count(self.number);
            } else {
                tokio::time::sleep(AFTER_AN_ERROR).await;
            }
        }
        self
    }

    fn add_thread(&mut self) {
        let name = format!("client-{}-thread-{}", self.number, self.threads.len());
        self.threads.push(Thread { name, steps: Vec::new(), saves: 0, unsettled: None });
    }

    fn roll(&mut self, below: usize) -> usize {
        usize::try_from(self.dice.roll(below as u64)).unwrap()
    }

    /// Makes one call; false if it has failed.
    async fn call(&mut self) -> bool {
        let settled = (0..self.threads.len()).filter(|number| self.threads[*number].unsettled.is_none());
        let settled: Vec<_> = settled.collect();
        let thread = settled[self.roll(settled.len())];
        let Thread { name, steps, saves, .. } = &self.threads[thread];
        let (name, steps, saves) = (name.clone(), steps.clone(), *saves);
        let what = self.roll(100);
        let one_of_all = self.roll(saves.max(1));
        let saver = Arc::clone(&self.saver);
        match what {
            0..50 => {
                self.threads[thread].saves += 1;
                self.change(thread, Change::Save(saves)).await
            }
            50..55 => match steps.last() {
                Some(step) => self.change(thread, Change::Save(*step)).await,
                None => true,
            },
            55..65 => self.compare(&name, saver.newest(&name).await, &steps.last().copied()),
            65..75 => {
                let found = saver.finds(&name, one_of_all).await;
                self.compare(&name, found, &steps.contains(&one_of_all))
            }
            75..90 => self.compare(&name, saver.steps(&name).await, &steps),
            90..97 => {
                let newest = 1 + self.roll(5);
                self.change(thread, Change::Keep(newest)).await
            }
            _ => self.change(thread, Change::Delete).await,
        }
    }

    fn compare<T: PartialEq + Debug>(
        &mut self,
        thread: &str,
        read: Result<T, Failure>,
        expected: &T,
    ) -> bool {
        match read {
            Ok(found) => {
                if found != *expected {
                    self.violations.push(format!("{thread}: read {found:?} instead of {expected:?}"));
                }
                true
            }
            Err(failure) => {
                self.note(&failure);
                false
            }
        }
    }

    async fn change(&mut self, thread: usize, change: Change) -> bool {
        match make(&self.saver, &self.threads[thread], change).await {
            Ok(()) => {
                self.threads[thread].apply(change);
                true
            }
            Err(failure) => {
                // A prune and a deletion take several calls: a part of them may be done.
                if failure.applied != Applied::No || !matches!(change, Change::Save(_)) {
                    self.threads[thread].unsettled = Some(change);
                    self.add_thread();
                }
                self.note(&failure);
                false
            }
        }
    }

    fn note(&mut self, failure: &Failure) {
        // The rest names addresses, keys and slots.
        let start = failure.text.split(" at ").next().unwrap_or_default().split(" to ").next();
        let kind = format!("{:?}: {}", failure.applied, start.unwrap_or_default());
        *self.failures.entry(kind).or_default() += 1;
    }

    /// Settles what is unsettled, compares all that is stored with the model, and deletes it.
    async fn check(&mut self) {
        assert!(self.violations.is_empty(), "{:#?}", self.violations);
        for thread in &mut self.threads {
            let name = &thread.name;
            if let Some(change) = thread.unsettled.take() {
                let repeated = make(&self.saver, thread, change).await;
                assert!(repeated.is_ok(), "{name}: {change:?}: {repeated:?}");
                thread.apply(change);
            }
            let (name, steps) = (&thread.name, &thread.steps);
            assert_eq!(&self.saver.steps(name).await.unwrap(), steps, "{name}");
            assert_eq!(self.saver.newest(name).await.unwrap(), steps.last().copied(), "{name}");
            for step in 0..thread.saves {
                assert_eq!(
                    self.saver.finds(name, step).await.unwrap(),
                    steps.contains(&step),
                    "{name} {step}"
                );
            }
            self.saver.delete(name).await.unwrap();
        }
    }
}

async fn make(saver: &Arc<dyn Saver>, thread: &Thread, change: Change) -> Result<(), Failure> {
    match change {
        Change::Save(step) => saver.save(&thread.name, step).await,
        Change::Keep(newest) => saver.keep(&thread.name, newest).await.map(drop),
        Change::Delete => saver.delete(&thread.name).await,
    }
}

/// Clients of all savers, at the same time.
struct Clients {
    clients: Vec<JoinHandle<Client>>,
    progress: Progress,
}

impl Clients {
    async fn start(cluster: &Cluster) -> Self {
        let savers = savers::all(&cluster.url(), |client| client.connect_timeout(PATIENCE)).await;
        let progress = Progress::of(savers.len() * CLIENTS_OF_A_SAVER);
        let savers = savers.iter().flat_map(|saver| std::iter::repeat_n(saver, CLIENTS_OF_A_SAVER));
        let start = |(number, saver): (usize, &Arc<dyn Saver>)| {
            let client = Client {
                saver: Arc::clone(saver),
                number,
                dice: Dice::new(0x9E37_79B9_7F4A_7C15 ^ number as u64),
                threads: Vec::new(),
                calls: 0,
                failures: BTreeMap::new(),
                violations: Vec::new(),
            };
            tokio::spawn(client.work(progress.clone()))
        };
        let clients = Self { clients: savers.enumerate().map(start).collect(), progress };
        clients.progress.go_on_for(A_WHILE).await;
        clients
    }

    /// Goes on for [`A_WHILE`], and checks all that is stored and that nothing of it is left over.
    async fn end(self, what: &str, cluster: &Cluster) {
        self.progress.go_on_for(A_WHILE).await;
        self.progress.end();
        let (mut calls, mut failures) = (0, BTreeMap::<_, usize>::new());
        for client in self.clients {
            let mut client = client.await.unwrap();
            client.check().await;
            calls += client.calls;
            for (kind, count) in client.failures {
                *failures.entry(kind).or_default() += count;
            }
        }
        show(&format!("{what}: {calls} calls; failures: {failures:?}"));
        // The walks remove the entries of tasks that ended while their slot moved.
        for server in &cluster.servers {
            server.have_indexes_walked(2);
        }
        let left = || cluster.servers.iter().map(keys).sum::<i64>();
        assert!(holds_within(Duration::from_secs(1), || left() == 0), "{:?}", all_keys(cluster));
    }
}

fn all_keys(cluster: &Cluster) -> Vec<String> {
    let keys = |server: &Server| -> Vec<String> {
        redis::cmd("KEYS").arg("*").query(&mut server.connection()).unwrap()
    };
    cluster.servers.iter().flat_map(keys).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_slots_that_move_key_by_key_are_where_the_model_has_them() {
    let cluster = Cluster::start(3, 0);
    let clients = Clients::start(&cluster).await;
    let [first, second, third] = [0, 1, 2].map(|number| &cluster.servers[number]);
    for (from, to) in [(first, second), (third, first)] {
        cluster.reshard(SLOTS, from, to);
    }
    clients.end("slots moved key by key", &cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_slots_that_are_half_moved_for_a_while_are_where_the_model_has_them() {
    let cluster = Cluster::start(3, 0);
    let clients = Clients::start(&cluster).await;
    let [first, second] = [0, 1].map(|number| &cluster.servers[number]);
    // Slots of threads, and slots of what makes checkpoints found by their ids.
    for pattern in ["checkpoints:idx:*", "checkpoints:by-id:*", "own:idx:*"] {
        for slot in first.slots_of_keys(pattern).iter().take(2) {
            first.start_moving(slot, second);
            // Some keys of a thread; then no keys for a while; then all that are left, including new ones.
            let _ = first.migrate_up_to(2, slot, second);
            clients.progress.go_on_for(A_WHILE / 2).await;
            while first.migrate_up_to(100, slot, second) {}
            clients.progress.go_on_for(A_WHILE / 10).await;
            while first.migrate_up_to(100, slot, second) {}
            first.stop_moving(slot, second);
        }
    }
    cluster.wait_until_settled();
    clients.end("slots half moved", &cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_slots_that_move_at_once_are_where_the_model_has_them() {
    let cluster = Cluster::start(3, 0);
    let clients = Clients::start(&cluster).await;
    let [first, second] = [0, 1].map(|number| &cluster.servers[number]);
    let moved = first.move_at_once(0..SLOTS, second);
    clients.end("slots moved at once", &cluster).await;
    if !moved {
        skipped("checkpoints_of_slots_that_move_at_once", "the server has no atomic slot migration");
    }
}
