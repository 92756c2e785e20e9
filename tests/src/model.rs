//! What the contract says about tasks: the in-memory model that a server is compared with.
//!
//! The model was written from the contract, not from the module: ordered maps, and no attention to speed.
//! Time is an argument, so a reply at the time of an expiry can be compared with the right reply before and
//! after the expiry.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use redis::{Cmd, Value, cmd};

/// An owner under a key prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The key prefix.
    pub prefix: &'static str,
    /// The owner's name, as in the keys.
    pub name: &'static str,
}

impl Owner {
    /// The key of the owner's index.
    #[must_use]
    pub fn index_key(self) -> String {
        format!("{}:idx:{}", self.prefix, self.name)
    }
}

/// A task's owner and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskName {
    /// The owner of the task.
    pub owner: Owner,
    /// The task id, without a colon.
    pub id: &'static str,
}

impl TaskName {
    /// The key of the task's hash.
    #[must_use]
    pub fn key(self) -> String {
        format!("{}:tasks:{}:{}", self.owner.prefix, self.owner.name, self.id)
    }
}

/// How long a task lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Until this time, in ms since the epoch.
    Until(i64),
    /// Forever.
    Unlimited,
}

impl Lifetime {
    fn ends_ms(self) -> Option<i64> {
        match self {
            Self::Until(ms) => Some(ms),
            Self::Unlimited => None,
        }
    }
}

/// The largest creation time: a score is a double, exact up to here.
pub const LAST_CREATION_TIME: i64 = (1 << 53) - 1;

/// `CREATED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// This time, in ms since the epoch.
    At(i64),
    /// `NEWEST`.
    Newest,
}

/// A record, and what it says about its task. Whoever makes the bytes knows that, so nothing is parsed here.
#[derive(Debug, Clone)]
pub struct Record {
    /// What is stored.
    pub bytes: Vec<u8>,
    /// From `expiresAt`; None if that member is present and not a timestamp.
    pub lifetime: Option<Lifetime>,
    /// From `task.createdAt`.
    pub created_ms: Option<i64>,
}

/// What PUT and CAS have in common.
#[derive(Debug, Clone)]
pub struct Write {
    /// The task to write.
    pub task: TaskName,
    /// What to store.
    pub record: Record,
    /// `PXAT` or `PERSIST`.
    pub lifetime: Option<Lifetime>,
    /// `CREATED`.
    pub created: Option<Created>,
}

/// The options of LIST.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The owner of the tasks.
    pub owner: Owner,
    /// `REV`.
    pub newest_first: bool,
    /// `AFTER`.
    pub after: Option<(i64, &'static str)>,
    /// `COUNT`.
    pub count: Option<usize>,
    /// `NODATA`.
    pub without_data: bool,
}

/// What a PUT may do, besides the write itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// `MAXTASKS`.
    pub max_tasks: Option<usize>,
    /// `NX`.
    pub only_new: bool,
    /// `HELD`.
    pub held: Option<TaskName>,
}

/// The options of TRIM.
#[derive(Debug, Clone, Copy)]
pub struct Trimming {
    /// The owner of the tasks.
    pub owner: Owner,
    /// `KEEP`.
    pub keep: usize,
    /// `COUNT`.
    pub count: Option<usize>,
}

/// A command of this project, or of another application that uses the same keys.
#[derive(Debug, Clone)]
pub enum Call {
    /// `PMCPTASK.PUT`.
    Put(Write, Limits),
    /// `PMCPTASK.CAS`, with the expected version.
    Cas(Write, i64),
    /// `PMCPTASK.GET`.
    Get(TaskName),
    /// `PMCPTASK.DEL`, with `VERSION`.
    Del(TaskName, Option<i64>),
    /// `PMCPTASK.LIST`.
    List(Listing),
    /// `PMCPTASK.EXPIRE`.
    Expire(TaskName, Lifetime),
    /// `PMCPTASK.TRIM`.
    Trim(Trimming),
    /// `DEL` of a hash.
    Delete(TaskName),
    /// `UNLINK` of a hash.
    Unlink(TaskName),
    /// `PERSIST` of a hash, which leaves the field `expires_at`.
    Persist(TaskName),
    /// `HSET` of the field `version`, if there is a hash.
    SetVersion(TaskName, &'static str),
    /// `HDEL` of the field `data`.
    DropData(TaskName),
    /// `ZADD` of an index entry, whether or not the task exists.
    Enter(Owner, &'static str, i64),
}

impl Call {
    /// The command as it is sent.
    #[must_use]
    pub fn command(&self) -> Cmd {
        match self {
            Self::Put(write, limits) => {
                let mut put = write_command("PMCPTASK.PUT", write, None);
                if limits.only_new {
                    put.arg("NX");
                }
                if let Some(max_tasks) = limits.max_tasks {
                    put.arg("MAXTASKS").arg(max_tasks);
                }
                if let Some(held) = limits.held {
                    put.arg("HELD").arg(held.key());
                }
                put
            }
            Self::Cas(write, expected) => write_command("PMCPTASK.CAS", write, Some(*expected)),
            Self::Get(task) => on_task("PMCPTASK.GET", *task),
            Self::Del(task, expected) => {
                let mut del = on_task("PMCPTASK.DEL", *task);
                del.arg(task.owner.index_key());
                if let Some(expected) = expected {
                    del.arg("VERSION").arg(expected);
                }
                del
            }
            Self::List(listing) => list_command(listing),
            Self::Expire(task, lifetime) => {
                let mut expire = on_task("PMCPTASK.EXPIRE", *task);
                expire.arg(task.owner.index_key());
                add_lifetime(&mut expire, *lifetime);
                expire
            }
            Self::Trim(trimming) => {
                let mut trim = cmd("PMCPTASK.TRIM");
                trim.arg(trimming.owner.index_key());
                if let Some(count) = trimming.count {
                    trim.arg("COUNT").arg(count);
                }
                trim.arg("KEEP").arg(trimming.keep);
                trim
            }
            Self::Delete(task) => on_task("DEL", *task),
            Self::Unlink(task) => on_task("UNLINK", *task),
            Self::Persist(task) => on_task("PERSIST", *task),
            Self::SetVersion(task, version) => {
                let script = "if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
                    redis.call('HSET', KEYS[1], 'version', ARGV[1])
                    return 1";
                let mut eval = cmd("EVAL");
                eval.arg(script).arg(1).arg(task.key()).arg(version);
                eval
            }
            Self::DropData(task) => {
                let mut drop = on_task("HDEL", *task);
                drop.arg("data");
                drop
            }
            Self::Enter(owner, member, score) => {
                let mut enter = cmd("ZADD");
                enter.arg(owner.index_key()).arg(score).arg(member);
                enter
            }
        }
    }

    /// The task that the command writes.
    #[must_use]
    pub fn written(&self) -> Option<TaskName> {
        match self {
            Self::Put(write, _) | Self::Cas(write, _) => Some(write.task),
            _ => None,
        }
    }

    /// The task whose keys the command touches, if the command is not this project's.
    fn touched_plainly(&self) -> Option<TaskName> {
        match self {
            Self::Delete(task) | Self::Unlink(task) | Self::SetVersion(task, _) | Self::DropData(task) => {
                Some(*task)
            }
            Self::Enter(owner, id, _) => Some(TaskName { owner: *owner, id }),
            _ => None,
        }
    }
}

fn on_task(name: &str, task: TaskName) -> Cmd {
    let mut command = cmd(name);
    command.arg(task.key());
    command
}

fn write_command(name: &str, write: &Write, expected: Option<i64>) -> Cmd {
    let mut command = on_task(name, write.task);
    command.arg(write.task.owner.index_key()).arg(expected).arg(&write.record.bytes);
    if let Some(lifetime) = write.lifetime {
        add_lifetime(&mut command, lifetime);
    }
    match write.created {
        Some(Created::At(ms)) => command.arg("CREATED").arg(ms),
        Some(Created::Newest) => command.arg("CREATED").arg("NEWEST"),
        None => &mut command,
    };
    command
}

fn add_lifetime(command: &mut Cmd, lifetime: Lifetime) {
    match lifetime {
        Lifetime::Until(ms) => command.arg("PXAT").arg(ms),
        Lifetime::Unlimited => command.arg("PERSIST"),
    };
}

fn list_command(listing: &Listing) -> Cmd {
    let mut list = cmd("PMCPTASK.LIST");
    list.arg(listing.owner.index_key());
    if let Some(count) = listing.count {
        list.arg("COUNT").arg(count);
    }
    if listing.without_data {
        list.arg("NODATA");
    }
    if listing.newest_first {
        list.arg("REV");
    }
    if let Some((created_ms, id)) = listing.after {
        list.arg("AFTER").arg(created_ms).arg(id);
    }
    list
}

/// The expected reply to a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// This value.
    Value(Value),
    /// 0 or 1, depending on whether the server has already removed the dead entry.
    ZeroOrOne,
    /// An error with one of these codes. If there are several reasons, the contract does not say which one
    /// the server names.
    Refused(Vec<&'static str>),
}

/// What a server holds under a key. [`shown`] makes the names and values.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// A hash: its fields, and when the key expires, in ms since the epoch.
    Hash(BTreeMap<String, String>, Option<i64>),
    /// A sorted set: its members and scores.
    Index(BTreeMap<String, f64>),
    /// A key of this other type.
    Other(String),
}

/// All or some keys of a server.
pub type Keys = BTreeMap<String, Stored>;

/// Bytes as text. Different bytes have different texts.
#[must_use]
pub fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// When a task was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CreationTime {
    Known(i64),
    /// What the server's clock showed, or this time if it is later; [`Model::learn`] supplies the time.
    ByServer {
        at_least: i64,
    },
}

impl CreationTime {
    fn known(self) -> Option<i64> {
        match self {
            Self::Known(ms) => Some(ms),
            Self::ByServer { .. } => None,
        }
    }
}

#[derive(Debug, Clone)]
struct Task {
    version: String,
    data: Option<Vec<u8>>,
    /// The field `expires_at`. It can exist without an expiry of the key, if another application removed
    /// that expiry.
    expires_at_seconds: Option<i64>,
    expires_ms: Option<i64>,
    created: CreationTime,
}

impl Task {
    /// Expired by its field `expires_at`, although its hash exists.
    fn has_lapsed(&self, now_ms: i64) -> bool {
        self.expires_at_seconds.is_some_and(|seconds| seconds.saturating_mul(1000) < now_ms)
    }

    /// Version and data; None for a corrupt record.
    fn read(&self) -> Option<(i64, &[u8])> {
        let version = self.version.parse().ok().filter(|version: &i64| *version > 0)?;
        // The schema does not write `01` or `+1`.
        (version.to_string() == self.version).then_some((version, self.data.as_deref()?))
    }

    fn fields(&self) -> BTreeMap<String, String> {
        let version = Some(("version", self.version.clone()));
        let data = self.data.as_ref().map(|data| ("data", shown(data)));
        let expires_at = self.expires_at_seconds.map(|seconds| ("expires_at", seconds.to_string()));
        let fields = [version, data, expires_at].into_iter().flatten();
        fields.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Why an index entry can exist without a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leftover {
    /// The task is gone, but not by a command of this project. The module removes the entry at the
    /// second look.
    Going,
    /// Another application added the entry; it means nothing.
    OfOthers,
}

/// Which keys are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of them, once the second within which entries go is over.
    Everything,
    /// Those of one task, at any time.
    One(TaskName),
}

/// The tasks that exist.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The tasks whose hash exists.
    tasks: BTreeMap<TaskName, Task>,
    /// Index entries that may still be there without a task, and their scores.
    leftovers: BTreeMap<TaskName, (Leftover, i64)>,
}

impl Model {
    /// The states in which a command may find the server. A plain command meets a hash that has outlived its
    /// task, or meets nothing, because the module has removed hash and entry. `NEWEST` depends on which entry
    /// is the greatest, and those without a live task may be gone.
    #[must_use]
    pub fn before(&self, call: &Call, now_ms: i64) -> Vec<Self> {
        let mut states = vec![self.clone()];
        let mut removed = self.clone();
        removed.expire(now_ms);
        if let Some(name) = call.touched_plainly()
            && removed.tasks.get(&name).is_some_and(|task| task.has_lapsed(now_ms))
        {
            removed.remove(name);
            states.push(removed);
        } else if let Call::Put(Write { task, created: Some(Created::Newest), .. }, _) = call {
            while let Some(greatest) = removed.greatest_dead(task.owner, now_ms) {
                removed.remove(greatest);
                states.push(removed.clone());
            }
        }
        states
    }

    /// Runs a command at a time in ms since the epoch.
    pub fn run(&mut self, call: &Call, now_ms: i64) -> Reply {
        self.expire(now_ms);
        match call {
            Call::Put(write, limits) => self.put(write, *limits, now_ms),
            Call::Cas(write, expected) => self.cas(write, *expected, now_ms),
            Call::Get(task) => self.get(*task, now_ms),
            Call::Del(task, expected) => self.del(*task, *expected, now_ms),
            Call::List(listing) => Reply::Value(self.list(listing, now_ms)),
            Call::Expire(task, lifetime) => self.set_expiry(*task, *lifetime, now_ms),
            Call::Trim(trimming) => self.trim(*trimming, now_ms),
            Call::Delete(task) | Call::Unlink(task) => integer(i64::from(self.lose(*task))),
            Call::Persist(task) => {
                let expires_ms = self.tasks.get_mut(task).and_then(|task| task.expires_ms.take());
                integer(i64::from(expires_ms.is_some()))
            }
            Call::SetVersion(task, version) => {
                let task = self.tasks.get_mut(task);
                let exists = task.is_some();
                if let Some(task) = task {
                    (*version).clone_into(&mut task.version);
                }
                integer(i64::from(exists))
            }
            Call::DropData(task) => {
                let data = self.tasks.get_mut(task).and_then(|task| task.data.take());
                integer(i64::from(data.is_some()))
            }
            Call::Enter(owner, member, score) => self.enter(*owner, member, *score),
        }
    }

    fn put(&mut self, write: &Write, limits: Limits, now_ms: i64) -> Reply {
        let lives = |name| self.live(name, now_ms).is_some_and(|task| task.read().is_some());
        if limits.held.is_some_and(|held| !lives(held)) {
            return Reply::Refused(vec!["NOTHELD"]);
        }
        let live = self.live(write.task, now_ms);
        let is_full =
            live.is_none() && limits.max_tasks.is_some_and(|max| self.count(write.task.owner, now_ms) >= max);
        let version = live.map_or(Some(0), |task| task.read().map(|(version, _)| version));
        if limits.only_new && live.is_some() && version.is_some() {
            // The record is not used, so a bad record is no error.
            return integer(0);
        }
        match self.refusals(write, version, is_full) {
            refusals if !refusals.is_empty() => Reply::Refused(refusals),
            _ => integer(self.store(write, version.unwrap_or(0), now_ms)),
        }
    }

    fn cas(&mut self, write: &Write, expected: i64, now_ms: i64) -> Reply {
        let Some(live) = self.live(write.task, now_ms) else { return outcome("MISSING", 0) };
        let version = live.read().map(|(version, _)| version);
        match version {
            // A CAS that loses does not use the record, so a bad record is no error.
            Some(actual) if actual != expected => outcome("CONFLICT", actual),
            _ => match self.refusals(write, version, false) {
                refusals if !refusals.is_empty() => Reply::Refused(refusals),
                _ => outcome("OK", self.store(write, expected, now_ms)),
            },
        }
    }

    /// Why a write to a task is refused. `version` is 0 for a new task and None for a corrupt one.
    fn refusals(&self, write: &Write, version: Option<i64>, is_full: bool) -> Vec<&'static str> {
        let is_unreadable = write.lifetime.or(write.record.lifetime).is_none();
        let is_newest = version == Some(0) && write.created == Some(Created::Newest);
        let none_is_newer = is_newest && self.after_all(write.task.owner) > LAST_CREATION_TIME;
        let reasons = [
            (version.is_none(), "CORRUPT"),
            (version == Some(i64::MAX), "ERR"),
            (is_unreadable, "ERR"),
            (none_is_newer, "ERR"),
            (is_full, "CAPACITY"),
        ];
        reasons.into_iter().filter(|(applies, _)| *applies).map(|(_, code)| code).collect()
    }

    /// Writes the version after `before`, and returns it.
    fn store(&mut self, write: &Write, before: i64, now_ms: i64) -> i64 {
        let version = before + 1;
        let expires_ms = write.lifetime.or(write.record.lifetime).and_then(Lifetime::ends_ms);
        let told = write.created.or(write.record.created_ms.map(Created::At));
        let new = match told {
            Some(Created::At(ms)) => CreationTime::Known(ms),
            Some(Created::Newest) => CreationTime::ByServer { at_least: self.after_all(write.task.owner) },
            None => CreationTime::ByServer { at_least: 0 },
        };
        let old = self.tasks.remove(&write.task);
        self.leftovers.remove(&write.task);
        if expires_ms.is_some_and(|ms| ms <= now_ms) {
            return version;
        }
        let kept = old.filter(|old| !old.has_lapsed(now_ms)).map(|old| old.created);
        let task = Task {
            version: version.to_string(),
            data: Some(write.record.bytes.clone()),
            expires_at_seconds: expires_ms.map(seconds_rounded_up),
            expires_ms,
            created: kept.unwrap_or(new),
        };
        self.tasks.insert(write.task, task);
        version
    }

    fn get(&self, task: TaskName, now_ms: i64) -> Reply {
        let Some(live) = self.live(task, now_ms) else { return Reply::Value(Value::Nil) };
        match live.read() {
            None => Reply::Refused(vec!["CORRUPT"]),
            Some((version, data)) => Reply::Value(Value::Array(vec![Value::Int(version), bulk(data)])),
        }
    }

    fn del(&mut self, task: TaskName, expected: Option<i64>, now_ms: i64) -> Reply {
        let live = self.live(task, now_ms);
        let Some(expected) = expected else {
            let existed = live.is_some();
            self.remove(task);
            return integer(i64::from(existed));
        };
        match live.map(Task::read) {
            None => outcome("MISSING", 0),
            Some(None) => Reply::Refused(vec!["CORRUPT"]),
            Some(Some((actual, _))) if actual != expected => outcome("CONFLICT", actual),
            Some(Some((actual, _))) => {
                self.remove(task);
                outcome("OK", actual)
            }
        }
    }

    /// Removes a hash and its entry.
    fn remove(&mut self, task: TaskName) {
        self.tasks.remove(&task);
        self.leftovers.remove(&task);
    }

    fn set_expiry(&mut self, name: TaskName, lifetime: Lifetime, now_ms: i64) -> Reply {
        match self.live(name, now_ms).map(Task::read) {
            None => return integer(0),
            Some(None) => return Reply::Refused(vec!["CORRUPT"]),
            Some(Some(_)) => {}
        }
        let expires_ms = lifetime.ends_ms();
        if expires_ms.is_some_and(|ms| ms <= now_ms) {
            self.remove(name);
        } else if let Some(task) = self.tasks.get_mut(&name) {
            task.expires_ms = expires_ms;
            task.expires_at_seconds = expires_ms.map(seconds_rounded_up);
        }
        integer(1)
    }

    fn trim(&mut self, trimming: Trimming, now_ms: i64) -> Reply {
        let live = self.in_order(trimming.owner, now_ms);
        let too_many = live.len().saturating_sub(trimming.keep);
        let removed = &live[..too_many.min(trimming.count.unwrap_or(1_000))];
        let Some(last) = removed.last() else { return integer(0) };
        // A hash that has outlived its task goes too if it is older than a task that goes.
        let goes =
            |name: &TaskName, task: &Task| name.owner == trimming.owner && position(*name, task) <= *last;
        let gone: Vec<_> =
            self.tasks.iter().filter(|(name, task)| goes(name, task)).map(|(name, _)| *name).collect();
        for name in gone {
            self.remove(name);
        }
        integer(i64::try_from(removed.len()).unwrap())
    }

    /// The positions of the owner's tasks in the order of creation.
    fn in_order(&self, owner: Owner, now_ms: i64) -> Vec<(i64, &'static str)> {
        let mut order: Vec<_> =
            self.live_of(owner, now_ms).map(|(name, task)| position(*name, task)).collect();
        order.sort_unstable();
        order
    }

    fn list(&self, listing: &Listing, now_ms: i64) -> Value {
        let mut listed = Vec::new();
        for (name, task) in self.live_of(listing.owner, now_ms) {
            if let Some((version, data)) = task.read() {
                listed.push((position(*name, task), version, data));
            }
        }
        listed.sort_unstable();
        if listing.newest_first {
            listed.reverse();
        }
        let follows = |position| match listing.after {
            None => true,
            Some(after) if listing.newest_first => position < after,
            Some(after) => position > after,
        };
        let records = listed
            .into_iter()
            .filter(|(position, ..)| follows(*position))
            .take(listing.count.unwrap_or(usize::MAX))
            .map(|((created_ms, id), version, data)| {
                let data = (!listing.without_data).then(|| bulk(data));
                let record = [bulk(id.as_bytes()), Value::Int(version), Value::Int(created_ms)];
                Value::Array(record.into_iter().chain(data).collect())
            });
        Value::Array(records.collect())
    }

    /// Removes a hash as another application does; true if there was one.
    fn lose(&mut self, name: TaskName) -> bool {
        let Some(task) = self.tasks.remove(&name) else { return false };
        // If nobody has learned the time, the entry was gone when somebody looked for it.
        if let Some(score) = task.created.known() {
            self.leftovers.insert(name, (Leftover::Going, score));
        }
        true
    }

    fn enter(&mut self, owner: Owner, member: &'static str, score: i64) -> Reply {
        let name = TaskName { owner, id: member };
        if let Some(task) = self.tasks.get_mut(&name) {
            task.created = CreationTime::Known(score);
            return integer(0);
        }
        let may_be_there = self.leftovers.insert(name, (Leftover::OfOthers, score)).is_some();
        if may_be_there { Reply::ZeroOrOne } else { integer(1) }
    }

    /// Scores and names of the owner's index entries, and of those that may still be there.
    fn entries(&self, owner: Owner) -> impl Iterator<Item = (i64, TaskName)> {
        let of_tasks = self.tasks.iter().filter_map(|(name, task)| Some((task.created.known()?, *name)));
        let left = self.leftovers.iter().map(|(name, (_, score))| (*score, *name));
        of_tasks.chain(left).filter(move |(_, name)| name.owner == owner)
    }

    /// The first creation time after all entries of an index.
    fn after_all(&self, owner: Owner) -> i64 {
        self.entries(owner).map(|(score, _)| score + 1).max().unwrap_or(0)
    }

    fn greatest_dead(&self, owner: Owner, now_ms: i64) -> Option<TaskName> {
        let dead = self.entries(owner).filter(|(_, name)| self.live(*name, now_ms).is_none());
        dead.max().map(|(_, name)| name)
    }

    /// Removes the tasks that are past the expiry of their key.
    fn expire(&mut self, now_ms: i64) {
        let is_past = |task: &Task| task.expires_ms.is_some_and(|ms| ms <= now_ms);
        let past: Vec<_> =
            self.tasks.iter().filter(|(_, task)| is_past(task)).map(|(name, _)| *name).collect();
        for name in past {
            self.lose(name);
        }
    }

    fn live(&self, task: TaskName, now_ms: i64) -> Option<&Task> {
        self.tasks.get(&task).filter(|task| !task.has_lapsed(now_ms))
    }

    /// The owner's tasks.
    fn live_of(&self, owner: Owner, now_ms: i64) -> impl Iterator<Item = (&TaskName, &Task)> {
        let of_owner = self.tasks.iter().filter(move |(name, _)| name.owner == owner);
        of_owner.filter(move |(_, task)| !task.has_lapsed(now_ms))
    }

    fn count(&self, owner: Owner, now_ms: i64) -> usize {
        self.live_of(owner, now_ms).count()
    }

    /// The version of a task, for a CAS that should win; 0 if there is no task.
    #[must_use]
    pub fn version(&self, task: TaskName) -> i64 {
        self.tasks.get(&task).and_then(Task::read).map_or(0, |(version, _)| version)
    }

    /// When a task was created, if that is known.
    #[must_use]
    pub fn created_ms(&self, task: TaskName) -> Option<i64> {
        self.tasks.get(&task)?.created.known()
    }

    /// Whether only the server knows when a task was created.
    #[must_use]
    pub fn has_to_learn(&self, task: TaskName) -> bool {
        self.tasks.get(&task).is_some_and(|task| task.created.known().is_none())
    }

    /// Stores the creation time that the server chose for a task when its clock was in this range. False if
    /// the choice is wrong.
    #[must_use]
    pub fn learn(&mut self, task: TaskName, created_ms: i64, clock: &RangeInclusive<i64>) -> bool {
        let Some(task) = self.tasks.get_mut(&task) else { return false };
        let is_right = match task.created {
            CreationTime::Known(ms) => created_ms == ms,
            CreationTime::ByServer { at_least } => {
                (at_least.max(*clock.start())..=at_least.max(*clock.end())).contains(&created_ms)
            }
        };
        task.created = CreationTime::Known(created_ms);
        is_right
    }

    /// The times from `from_ms` to `to_ms` at which a reply can change: the first time, and each expiry after
    /// it. A command that ran in this interval behaves as at one of these times.
    #[must_use]
    pub fn moments(&self, from_ms: i64, to_ms: i64) -> Vec<i64> {
        let mut moments: Vec<_> = self.ends().filter(|ms| (from_ms + 1..=to_ms).contains(ms)).collect();
        moments.push(from_ms);
        moments.sort_unstable();
        moments.dedup();
        moments
    }

    fn ends(&self) -> impl Iterator<Item = i64> {
        self.tasks.values().filter_map(|task| {
            // The first millisecond in which the hash has outlived its task.
            let lapses_ms =
                task.expires_at_seconds.map(|seconds| seconds.saturating_mul(1000).saturating_add(1));
            // The field counts only if the key has no expiry.
            task.expires_ms.or(lapses_ms)
        })
    }

    /// How the keys of a server differ from the expected keys; None if they do not.
    #[must_use]
    pub fn difference(&mut self, mut found: Keys, scope: Scope, now_ms: i64) -> Option<String> {
        self.expire(now_ms);
        let in_scope = |name: &TaskName| scope == Scope::Everything || scope == Scope::One(*name);
        let mut expected = Keys::new();
        for (name, task) in self.tasks.iter().filter(|(name, _)| in_scope(name)) {
            let (key, stored) = (shown(name.key().as_bytes()), Stored::Hash(task.fields(), task.expires_ms));
            if task.has_lapsed(now_ms) {
                // The module may or may not have removed this hash already.
                if found.get(&key) == Some(&stored) {
                    found.remove(&key);
                }
                take_entry(&mut found, name.owner, name.id);
                continue;
            }
            expected.insert(key, stored);
            if let Some(ms) = task.created.known() {
                add_entry(&mut expected, *name, ms);
            }
        }
        for (name, (leftover, _)) in &self.leftovers {
            if scope != Scope::Everything || *leftover == Leftover::OfOthers {
                take_entry(&mut found, name.owner, name.id);
            }
        }
        let same: Vec<_> =
            expected.keys().filter(|key| found.get(*key) == expected.get(*key)).cloned().collect();
        for key in same {
            expected.remove(&key);
            found.remove(&key);
        }
        (found != expected).then(|| format!("keys: expected {expected:?}, found {found:?}"))
    }
}

impl Reply {
    /// Whether a server's answer is this reply. Errors are compared by their code.
    #[must_use]
    pub fn is(&self, answer: &Result<Value, String>) -> bool {
        match (self, answer) {
            (Self::Value(expected), Ok(value)) => value == expected,
            (Self::ZeroOrOne, Ok(value)) => matches!(value, Value::Int(0 | 1)),
            (Self::Refused(codes), Err(code)) => codes.contains(&code.as_str()),
            _ => false,
        }
    }
}

/// Where a list shows a task.
fn position(name: TaskName, task: &Task) -> (i64, &'static str) {
    let Some(created_ms) = task.created.known() else {
        panic!("nobody has told when {name:?} was created");
    };
    (created_ms, name.id)
}

fn seconds_rounded_up(ms: i64) -> i64 {
    ms / 1000 + i64::from(ms % 1000 > 0)
}

fn integer(value: i64) -> Reply {
    Reply::Value(Value::Int(value))
}

fn outcome(status: &str, version: i64) -> Reply {
    let status = if status == "OK" { Value::Okay } else { Value::SimpleString(status.to_owned()) };
    Reply::Value(Value::Array(vec![status, Value::Int(version)]))
}

fn bulk(bytes: &[u8]) -> Value {
    Value::BulkString(bytes.to_vec())
}

// Creation times are at most 2^53-1 here, so scores are exact.
#[allow(clippy::cast_precision_loss)]
fn add_entry(keys: &mut Keys, task: TaskName, created_ms: i64) {
    let index = keys.entry(shown(task.owner.index_key().as_bytes()));
    if let Stored::Index(entries) = index.or_insert_with(|| Stored::Index(BTreeMap::new())) {
        entries.insert(shown(task.id.as_bytes()), created_ms as f64);
    }
}

/// Removes an entry, and the index with its last entry.
fn take_entry(keys: &mut Keys, owner: Owner, member: &str) {
    let key = shown(owner.index_key().as_bytes());
    if let Some(Stored::Index(entries)) = keys.get_mut(&key) {
        entries.remove(&shown(member.as_bytes()));
        if entries.is_empty() {
            keys.remove(&key);
        }
    }
}
