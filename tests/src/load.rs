//! Clients that write and read while the servers change, and record what must be stored.
//!
//! Each client has its own owners. So it knows the state of each of their tasks, and the right reply to each
//! call. If the outcome of a write is unknown, the task may be in either state from then on; the client
//! leaves the task alone and creates a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::{StorageBackend, VersionedRecord};
use pmcptask_client::{Applied, Error, RedisBackend, RedisBackendBuilder};
use tokio::task::JoinHandle;

use crate::dice::Dice;
use crate::progress::Progress;
use crate::{now_ms, show, timestamp};

/// How many clients there are.
pub const CLIENTS: usize = 4;
/// Calls before and after each change of the servers.
pub const A_WHILE: usize = 1_000;

/// Enough for any sixteenth of the slots to have owners, with the owners of all clients.
const OWNERS_OF_A_CLIENT: usize = 64;
const TASKS_OF_AN_OWNER: usize = 2;
/// Some tasks expire this soon, in ms.
const SOON: std::ops::Range<usize> = 50..1_000;
/// Only the records of tasks that expire contain this.
const EXPIRES: &str = "expiresAt";
/// After an error, a client waits before the next call, as a careful user would.
const AFTER_AN_ERROR: Duration = Duration::from_millis(10);

/// The errors that calls may fail with while servers change.
const EXPECTED: [&str; 8] = [
    "NotConnected",
    "OutcomeUnknown",
    "NoReply",
    "NotReplicated",
    "SlotMoving",
    "ClusterDown",
    "ReadOnly",
    "Loading",
];

/// Version and data; none if there is no task.
type State = Option<(u64, Vec<u8>)>;

/// The running clients.
pub struct Load {
    clients: Vec<JoinHandle<Account>>,
    progress: Progress,
}

impl Load {
    /// Connects the clients, starts them, and waits for [`A_WHILE`].
    pub async fn start(builder: &RedisBackendBuilder) -> Self {
        let mut backends = Vec::new();
        for _ in 0..CLIENTS {
            backends.push(builder.clone().connect().await.unwrap());
        }
        let progress = Progress::of(CLIENTS);
        let start = |(number, backend)| {
            let client = Client {
                backend,
                number,
                dice: Dice::new(0x9E37_79B9_7F4A_7C15 ^ number as u64),
                made: 0,
                account: Account::default(),
                progress: progress.clone(),
            };
            tokio::spawn(client.work())
        };
        let load = Self { clients: backends.into_iter().enumerate().map(start).collect(), progress };
        load.go_on_for(A_WHILE).await;
        load
    }

    /// See [`Progress::go_on_for`].
    pub async fn go_on_for(&self, calls: usize) {
        self.progress.go_on_for(calls).await;
    }

    /// Goes on for [`A_WHILE`], stops the clients, checks what is stored, and shows the counts.
    ///
    /// # Panics
    ///
    /// If a write was lost, if a reply was wrong, or if a client had no successful call for `longest_outage`.
    pub async fn end(self, what: &str, builder: RedisBackendBuilder, longest_outage: Duration) {
        self.go_on_for(A_WHILE).await;
        self.progress.end();
        let mut whole = Account::default();
        for client in self.clients {
            whole.add(client.await.unwrap());
        }
        whole.compare(&builder.connect().await.unwrap()).await;
        show(&format!("{what}: {whole}"));
        assert!(whole.lost == 0 && whole.violations.is_empty(), "{whole}");
        assert!(whole.operations > 0);
        assert!(whole.longest_outage < longest_outage, "{whole}");
    }
}

/// What the clients have done and seen.
#[derive(Default)]
struct Account {
    /// Successful calls.
    operations: usize,
    /// Failed calls, by the name of the error.
    errors: BTreeMap<String, usize>,
    /// The longest time that a client had no successful call.
    longest_outage: Duration,
    /// Acknowledged writes that are not stored and were not replaced.
    lost: usize,
    /// Every violation of the contract, in words.
    violations: Vec<String>,
    /// The states that each task may be in now.
    tasks: BTreeMap<String, Vec<State>>,
    owners: BTreeSet<String>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors: Vec<_> = self.errors.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        write!(
            f,
            "operations {}; errors: {errors}; longest unavailability {} ms; lost {}; violations {:?}",
            self.operations,
            self.longest_outage.as_millis(),
            self.lost,
            self.violations,
        )
    }
}

impl Account {
    fn add(&mut self, other: Self) {
        self.operations += other.operations;
        for (name, count) in other.errors {
            *self.errors.entry(name).or_default() += count;
        }
        self.longest_outage = self.longest_outage.max(other.longest_outage);
        self.violations.extend(other.violations);
        self.tasks.extend(other.tasks);
        self.owners.extend(other.owners);
    }

    async fn compare(&mut self, backend: &RedisBackend) {
        // By then, all tasks with an expiry have expired.
        tokio::time::sleep(Duration::from_millis(SOON.end as u64)).await;
        for (key, states) in &self.tasks {
            let found = state_of(backend.get(key).await).unwrap_or_else(|error| panic!("{key}: {error}"));
            if found.as_ref().is_some_and(|(_, data)| expires(data)) {
                self.violations.push(format!("{key} is there after its end"));
            }
            if !states.contains(&found) {
                self.lost += 1;
                let [found, states] = [vec![found], states.clone()].map(|states| versions(&states));
                self.violations.push(format!("{key} is {found:?} instead of {states:?}"));
            }
        }
        for owner in &self.owners {
            let listed = backend.list_by_prefix(&format!("{owner}:")).await.unwrap();
            let keys: BTreeSet<_> = listed.iter().map(|(key, _)| key.as_str()).collect();
            if keys.len() != listed.len() {
                self.violations.push(format!("{owner} has a task twice in its list"));
            }
            let first = format!("{owner}:");
            for (key, states) in self.tasks.iter().filter(|(key, _)| key.starts_with(&first)) {
                let must = !states.contains(&None);
                let may = states.iter().flatten().any(|(_, data)| !expires(data));
                if (must && !keys.contains(key.as_str())) || (!may && keys.contains(key.as_str())) {
                    self.violations.push(format!("{key} and the list of its owner do not agree"));
                }
            }
        }
    }
}

fn expires(data: &[u8]) -> bool {
    data.windows(EXPIRES.len()).any(|part| part == EXPIRES.as_bytes())
}

fn versions(states: &[State]) -> Vec<u64> {
    states.iter().map(|state| state.as_ref().map_or(0, |(version, _)| *version)).collect()
}

fn state_of(read: Result<VersionedRecord, StorageError>) -> Result<State, StorageError> {
    match read {
        Ok(task) => Ok(Some((task.version, task.data))),
        Err(StorageError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

struct Client {
    backend: RedisBackend,
    number: usize,
    dice: Dice,
    /// How many tasks were created, so that each gets its own id.
    made: usize,
    account: Account,
    progress: Progress,
}

impl Client {
    async fn work(mut self) -> Account {
        let mut tasks: Vec<_> =
            (0..OWNERS_OF_A_CLIENT * TASKS_OF_AN_OWNER).map(|n| self.new_task(n)).collect();
        let mut last_success = Instant::now();
        while !self.progress.is_over() {
            let number = self.next_random(tasks.len());
            let key = tasks[number].clone();
            let succeeded = self.step(&key).await;
            self.account.longest_outage = self.account.longest_outage.max(last_success.elapsed());
            if self.account.tasks[&key].len() > 1 {
                // The task may be in several states, so it is left alone from now on.
                tasks[number] = self.new_task(number);
            }
            if succeeded {
                self.account.operations += 1;
                last_success = Instant::now();
                self.progress.count(self.number);
            } else {
                tokio::time::sleep(AFTER_AN_ERROR).await;
            }
        }
        self.account
    }

    fn new_task(&mut self, number: usize) -> String {
        let owner = format!("client:{}:{}", self.number, number % OWNERS_OF_A_CLIENT);
        self.made += 1;
        let key = format!("{owner}:task-{}", self.made);
        self.account.owners.insert(owner);
        self.account.tasks.insert(key.clone(), vec![None]);
        key
    }

    fn next_random(&mut self, below: usize) -> usize {
        usize::try_from(self.dice.roll(below as u64)).unwrap()
    }

    /// Makes one call; false if the call failed.
    async fn step(&mut self, key: &str) -> bool {
        let [before] = self.account.tasks[key].as_slice() else { panic!("{key} was to be left alone") };
        let before = before.clone();
        let version = before.as_ref().map_or(0, |(version, _)| *version);
        let number = self.next_random(1 << 30);
        let expires_at = self.is_to_expire().then(|| self.moment_soon());
        let data = match &expires_at {
            Some(at) => format!(r#"{{"number":{number},"{EXPIRES}":"{at}"}}"#).into_bytes(),
            None => format!("{key} {number}").into_bytes(),
        };
        let mut after = vec![Some((version + 1, data.clone()))];
        if expires_at.is_some() {
            after.push(None);
        }
        let what = self.next_random(100);
        match (what, &before) {
            (0..10, _) => match state_of(self.backend.get(key).await) {
                Ok(found) => {
                    if found != before {
                        self.violated(format!("{key} was read as {found:?} instead of {before:?}"));
                    }
                    true
                }
                Err(error) => self.failed(key, &error, vec![before]),
            },
            (10..25, _) => match self.backend.list_by_prefix(owner_of(key)).await {
                Ok(listed) => {
                    self.check_list(owner_of(key), &listed);
                    true
                }
                Err(error) => self.failed(key, &error, vec![before]),
            },
            (25..30, Some(_)) => match self.backend.delete(key).await {
                Ok(is_deleted) => {
                    if !is_deleted {
                        self.violated(format!("{key} was gone before it was deleted"));
                    }
                    self.account.tasks.insert(key.to_owned(), vec![None]);
                    true
                }
                Err(error) => self.failed(key, &error, vec![before, None]),
            },
            (30..90, Some(_)) => {
                let written = self.backend.put_if_version(key, &data, version).await;
                self.written(key, written, before, after)
            }
            _ => {
                let written = self.backend.put(key, &data).await;
                self.written(key, written, before, after)
            }
        }
    }

    /// The list must contain every task of the owner whose state is known, once.
    fn check_list(&mut self, owner: &str, listed: &[(String, VersionedRecord)]) {
        let mut violations = Vec::new();
        for (key, states) in self.account.tasks.iter().filter(|(key, _)| key.starts_with(owner)) {
            let [known] = states.as_slice() else { continue };
            let found: Vec<_> = listed.iter().filter(|(listed, _)| listed == key).collect();
            let is_right = match (known, found.as_slice()) {
                (None, []) => true,
                (Some((version, data)), [(_, task)]) => (version, data) == (&task.version, &task.data),
                _ => false,
            };
            if !is_right {
                violations.push(format!("{key} was listed as {found:?} instead of {known:?}"));
            }
        }
        self.account.violations.extend(violations);
    }

    fn written(
        &mut self,
        key: &str,
        written: Result<u64, StorageError>,
        before: State,
        after: Vec<State>,
    ) -> bool {
        match written {
            Ok(version) => {
                if version != before.as_ref().map_or(0, |(version, _)| *version) + 1 {
                    self.violated(format!("{key} is at version {version} after a write to {before:?}"));
                }
                self.account.tasks.insert(key.to_owned(), after);
                true
            }
            Err(error) => self.failed(key, &error, [vec![before], after].concat()),
        }
    }

    /// Records an error. `states`: the states that the task may be in if the outcome is unknown, first the
    /// state before the call.
    fn failed(&mut self, key: &str, error: &StorageError, states: Vec<State>) -> bool {
        let reason = Error::of(error);
        let Some(reason) = reason else {
            // No other client writes to this task.
            self.violated(format!("{key}: {error}"));
            return false;
        };
        let name = format!("{reason:?}");
        let name = name.split([' ', '(', '{']).next().unwrap_or_default().to_owned();
        if !EXPECTED.contains(&name.as_str()) {
            self.violated(format!("{key}: {error}"));
        }
        *self.account.errors.entry(name).or_default() += 1;
        // A failover may undo a write that too few replicas have.
        if reason.was_applied() != Applied::No {
            self.account.tasks.insert(key.to_owned(), states);
        }
        false
    }

    fn is_to_expire(&mut self) -> bool {
        self.next_random(10) == 0
    }

    fn moment_soon(&mut self) -> String {
        let soon = SOON.start + self.next_random(SOON.end - SOON.start);
        timestamp(now_ms() + i64::try_from(soon).unwrap())
    }

    fn violated(&mut self, what: String) {
        self.account.violations.push(what);
    }
}

/// The list prefix of a key's owner: `owner:`.
fn owner_of(key: &str) -> &str {
    key.rfind(':').map_or(key, |colon| &key[..=colon])
}
