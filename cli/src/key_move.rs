//! Moves the tasks of a data set to keys with hash tags, as a cluster needs them, or back:
//! `pmcp:tasks:alice:t1` becomes `pmcp:tasks:{alice}:t1`.
//!
//! Each task is renamed together with its index entry, in one transaction of plain commands. A task is always
//! under exactly one of its two keys, and never replaces another. A run that was interrupted loses nothing:
//! the next run continues.
//!
//! `pmcptask hash-tags` is a shell around [`move_keys`].

use std::collections::{BTreeSet, HashSet};

use pmcptask_schema::{IndexKey, Keyspace, TaskKey, fields, owner_in_hash_tag};
use redis::aio::ConnectionLike;
use redis::{RedisError, cmd, pipe};

/// Keys that one `SCAN` looks at.
const PAGE: usize = 1_000;
/// Records that are read at once, to find their owners. A record can be large.
const RECORDS: usize = 16;

/// What [`move_keys`] has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyMove {
    /// How many tasks got other keys.
    pub moved: u64,
    /// Task keys that were left as they are: another task has the new key already, or a key of another kind
    /// is in the way.
    pub left: BTreeSet<String>,
}

/// Why [`move_keys`] has stopped. Each task is under exactly one of its two keys all the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// The server is a node of a cluster, where a task cannot be renamed from one slot to another.
    #[error("expected one server, or the primary that Sentinels watch, got a node of a cluster: {0}")]
    Cluster(RedisError),
    /// The server refuses a command.
    #[error("the Redis server refuses: {0}")]
    Refused(RedisError),
    /// The connection failed. Another run moves the rest.
    #[error("the connection failed before all keys were moved, run it again: {0}")]
    Interrupted(RedisError),
}

impl From<RedisError> for MoveError {
    fn from(error: RedisError) -> Self {
        // The error may be the one of a whole pipeline.
        let replies = error.clone().into_server_errors();
        match replies.as_deref() {
            Some([(_, reply), ..]) if matches!(reply.code(), "MOVED" | "CROSSSLOT") => {
                Self::Cluster(reply.clone().into())
            }
            Some([(_, reply), ..]) => Self::Refused(reply.clone().into()),
            _ => Self::Interrupted(error),
        }
    }
}

/// Moves all tasks of a prefix to the keys of `target`. The server needs no module for it.
///
/// A task keeps its version, record, expiry and creation time. An owner that stands in braces counts as
/// hash-tagged, unless the record says that its `ownerId` has these braces.
///
/// Clients find tasks only under the keys of their own setting. **Stop the clients of the old setting
/// first.** If one of them still writes, nothing is lost: a task that it changes in place moves
/// afterwards, and a task that it makes anew, because the first one has moved already, stays and is named
/// in [`KeyMove::left`].
///
/// The call ends when it finds no more tasks to move, so not while a client goes on making tasks under the
/// old keys. It takes O(n), n keys of the database, at some 5,000 tasks per second, and holds the server up
/// for no longer than one task takes.
///
/// ```
/// use pmcptask_client::RedisBackend;
/// use pmcptask_schema::Keyspace;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// # pmcp_tasks::StorageBackend::put(&RedisBackend::new(&url).await?, "alice:t1", b"working").await?;
/// let mut connection = RedisBackend::builder(&url).open_connection().await?;
/// let target = Keyspace::new("pmcp")?.with_hash_tags()?;
/// let done = pmcptask_cli::move_keys(&mut connection, &target).await?;
/// assert_eq!((done.moved, done.left.len()), (1, 0));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`MoveError`]. The call may be made again after each of them.
pub async fn move_keys(
    connection: &mut impl ConnectionLike,
    target: &Keyspace,
) -> Result<KeyMove, MoveError> {
    let mut done = KeyMove::default();
    let mut moved_here = HashSet::new();
    loop {
        let before = done.moved;
        // The next scan finds again what is still in the way.
        done.left.clear();
        move_found(connection, target, &mut done, &mut moved_here).await?;
        // Clients may have written old keys that the scan had passed already.
        if done.moved == before {
            return Ok(done);
        }
    }
}

async fn move_found(
    connection: &mut impl ConnectionLike,
    target: &Keyspace,
    done: &mut KeyMove,
    moved_here: &mut HashSet<String>,
) -> Result<(), RedisError> {
    let pattern = escape(target.prefix()) + ":tasks:*";
    let mut cursor = 0_u64;
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(PAGE).arg("TYPE").arg("hash");
        let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(connection).await?;
        for keys in keys.chunks(RECORDS) {
            let own_braces = braces_are_the_owners(connection, keys).await?;
            for (key, own_braces) in keys.iter().zip(own_braces) {
                let outcome = match Names::of(key, own_braces, target) {
                    Found::Elsewhere | Found::InPlace => continue,
                    Found::Unreadable => Moved::InTheWay,
                    // This run has removed a hash tag, and the owner itself stands in braces.
                    Found::ToMove(names) if moved_here.contains(&*String::from_utf8_lossy(&names.task)) => {
                        continue;
                    }
                    Found::ToMove(names) => {
                        let moved = names.move_task(connection).await?;
                        if owner_in_braces(names.new_task.as_bytes()).is_some() && !target.has_hash_tags() {
                            moved_here.insert(names.new_task);
                        }
                        moved
                    }
                };
                let key = String::from_utf8_lossy(key);
                match outcome {
                    Moved::Yes => done.moved = done.moved.saturating_add(1),
                    Moved::Gone => {}
                    Moved::InTheWay => drop(done.left.insert(key.into_owned())),
                }
            }
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// A pattern that matches this prefix alone.
pub(crate) fn escape(prefix: &str) -> String {
    let mut pattern = String::new();
    for character in prefix.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

/// What a key is.
enum Found {
    /// No task of the prefix.
    Elsewhere,
    /// A task under a key of the target.
    InPlace,
    /// Not UTF-8, so no client has written the key.
    Unreadable,
    ToMove(Names),
}

/// Keys of one task, old and new.
struct Names {
    task: Vec<u8>,
    new_task: String,
    index: Vec<u8>,
    new_index: String,
    task_id: String,
    /// Index and member by which the Lua scripts know the task of an owner with a colon.
    old_entry: Option<(Vec<u8>, Vec<u8>)>,
}

enum Moved {
    Yes,
    /// The task has ended since.
    Gone,
    /// Another key has the new name.
    InTheWay,
}

impl Names {
    /// The names of a task by the key that was found. `own_braces`: braces around the owner are part of the
    /// owner. The key alone does not tell.
    fn of(key: &[u8], own_braces: bool, target: &Keyspace) -> Found {
        let Ok(task) = TaskKey::parse(key) else { return Found::Elsewhere };
        if task.prefix != target.prefix().as_bytes() {
            return Found::Elsewhere;
        }
        let (Ok(part), Ok(task_id)) = (str::from_utf8(task.owner), str::from_utf8(task.task_id)) else {
            return Found::Unreadable;
        };
        let tagged_owner = owner_in_hash_tag(part).filter(|_| !own_braces);
        let owner = match (target.has_hash_tags(), tagged_owner) {
            (true, None) => part,
            (false, Some(owner)) => owner,
            (true, Some(_)) | (false, None) => return Found::InPlace,
        };
        let mut index = Vec::new();
        IndexKey::of(&task).write(&mut index);
        let old_entry = task.old_entry().map(|(index, member)| {
            let mut name = Vec::new();
            index.write(&mut name);
            (name, member)
        });
        Found::ToMove(Self {
            task: key.to_owned(),
            new_task: target.task_key(owner, task_id),
            index,
            new_index: target.index_key(owner),
            task_id: task_id.to_owned(),
            old_entry,
        })
    }

    /// Moves the task. Starts over if another client writes to the task meanwhile.
    async fn move_task(&self, connection: &mut impl ConnectionLike) -> Result<Moved, RedisError> {
        loop {
            let state = self.watch(connection).await?;
            let State { has_task: true, is_taken: false, created_ms } = state else {
                cmd("UNWATCH").exec_async(connection).await?;
                return Ok(if state.has_task { Moved::InTheWay } else { Moved::Gone });
            };
            let mut rename = pipe();
            rename.atomic().cmd("RENAMENX").arg(&self.task).arg(&self.new_task).ignore();
            rename.zrem(&self.index, &self.task_id).ignore();
            if let Some((index, member)) = &self.old_entry {
                rename.zrem(index, member).ignore();
            }
            // A task without an index entry gets one with its next write.
            if let Some(created_ms) = created_ms {
                rename.zadd(&self.new_index, &self.task_id, created_ms).ignore();
            }
            if rename.query_async::<Option<()>>(connection).await?.is_some() {
                return Ok(Moved::Yes);
            }
        }
    }

    /// Looks at everything that the move concerns. The move fails if the task changes from here on.
    async fn watch(&self, connection: &mut impl ConnectionLike) -> Result<State, RedisError> {
        let (old_index, old_member) = match &self.old_entry {
            Some((index, member)) => (index.as_slice(), member.as_slice()),
            None => (self.index.as_slice(), self.task_id.as_bytes()),
        };
        let mut look = pipe();
        look.cmd("WATCH").arg(&self.task).arg(&self.new_task).ignore();
        look.exists(&self.task).exists(&self.new_task);
        look.zscore(&self.index, &self.task_id).zscore(old_index, old_member);
        look.zscore(&self.new_index, &self.task_id).ignore();
        match look.query_async::<(bool, bool, Option<f64>, Option<f64>)>(connection).await {
            Ok((has_task, is_taken, score, old_score)) => {
                Ok(State { has_task, is_taken, created_ms: score.or(old_score) })
            }
            // The key of an index holds another type.
            Err(error) if is_wrong_type(&error) => {
                Ok(State { has_task: true, is_taken: true, created_ms: None })
            }
            Err(error) => Err(error),
        }
    }
}

/// What the keys hold before a move.
struct State {
    has_task: bool,
    /// Another key is in the way.
    is_taken: bool,
    /// The score of the task's index entry.
    created_ms: Option<f64>,
}

/// For each key: whether the record says that the braces in the key are part of the owner.
async fn braces_are_the_owners(
    connection: &mut impl ConnectionLike,
    keys: &[Vec<u8>],
) -> Result<Vec<bool>, RedisError> {
    let owners: Vec<_> = keys.iter().map(|key| owner_in_braces(key)).collect();
    let mut records = pipe();
    for (key, _) in keys.iter().zip(&owners).filter(|(_, owner)| owner.is_some()) {
        records.hget(key, fields::DATA);
    }
    let mut records = if records.is_empty() {
        Vec::new()
    } else {
        records.query_async::<Vec<Option<Vec<u8>>>>(connection).await?
    }
    .into_iter();
    let is_own = |owner: &str, record: &[u8]| {
        let record = serde_json::from_slice::<serde_json::Value>(record).ok();
        record.is_some_and(|record| record.get("ownerId").and_then(|id| id.as_str()) == Some(owner))
    };
    let says_so = |owner: Option<&str>| {
        owner.is_some_and(|owner| records.next().flatten().is_some_and(|record| is_own(owner, &record)))
    };
    Ok(owners.into_iter().map(says_so).collect())
}

/// The owner in a task's key, if the braces around the owner could be a hash tag.
fn owner_in_braces(key: &[u8]) -> Option<&str> {
    let owner = str::from_utf8(TaskKey::parse(key).ok()?.owner).ok()?;
    owner_in_hash_tag(owner).map(|_| owner)
}

/// True if a pipeline, or a command, has met a key of another type.
fn is_wrong_type(error: &RedisError) -> bool {
    let replies = error.clone().into_server_errors();
    replies.iter().any(|replies| replies.iter().any(|(_, reply)| reply.code() == "WRONGTYPE"))
}
