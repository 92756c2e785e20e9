//! Gives the tasks of an existing data set the keys of the other setting of [`HashTags`](crate::HashTags).
//!
//! Each task is renamed by one transaction of plain commands, with its entry in the index: it is never under both
//! names, nor under none. What a run has not come to, the next one finds.

use std::collections::{BTreeSet, HashSet};

use pmcptask_schema::{IndexKey, Keyspace, TaskKey, fields, owner_in_hash_tag};
use redis::{RedisError, RedisResult, cmd, pipe};

use crate::connection::Live;
use crate::error;

/// Keys that a call of `SCAN` looks at.
const PAGE: usize = 1_000;
/// Records that are read at once, to see whose they are. Each can be large.
const RECORDS: usize = 16;

/// What [`RedisBackendBuilder::move_keys`](crate::RedisBackendBuilder::move_keys) has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyMove {
    /// Tasks that have got other keys.
    pub moved: u64,
    /// Keys of tasks that were left as they are, because there is another task under the new key already, or a key
    /// that is none of this schema is in the way.
    pub left: BTreeSet<String>,
}

/// Moves all tasks of a prefix to the keys of `target`, until there are none left that can be moved.
pub(crate) async fn move_all(connection: &mut Live, target: &Keyspace) -> RedisResult<KeyMove> {
    let mut done = KeyMove::default();
    let mut moved_here = HashSet::new();
    loop {
        let before = done.moved;
        // What is still in the way is found again.
        done.left.clear();
        move_those_found(connection, target, &mut done, &mut moved_here).await?;
        // Others may have written under old names behind the back of the scan.
        if done.moved == before {
            return Ok(done);
        }
    }
}

async fn move_those_found(
    connection: &mut Live,
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
                    // An owner in braces that stands there without its hash tag by now.
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

/// The prefix as a pattern that matches nothing else.
fn escape(prefix: &str) -> String {
    let mut pattern = String::new();
    for character in prefix.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

/// What a task's key is.
enum Found {
    /// No task of the prefix.
    Elsewhere,
    /// One of the names that are wanted.
    InPlace,
    /// No text: no client has written it.
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
    /// It has gone meanwhile.
    Gone,
    /// There is something under the new names that must stay.
    InTheWay,
}

impl Names {
    /// The names of a task by the key that was found. Whether braces around its owner are no hash tag, the key alone
    /// does not tell.
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

    /// Moves the task. If somebody writes to it at the same moment, once more.
    async fn move_task(&self, connection: &mut Live) -> Result<Moved, RedisError> {
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
            // A task without an entry gets one with its next write.
            if let Some(created_ms) = created_ms {
                rename.zadd(&self.new_index, &self.task_id, created_ms).ignore();
            }
            if rename.query_async::<Option<()>>(connection).await?.is_some() {
                return Ok(Moved::Yes);
            }
        }
    }

    /// Looks at everything that the move concerns, and has it fail if the task changes from here on.
    async fn watch(&self, connection: &mut Live) -> Result<State, RedisError> {
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
            // The key of an index holds something else.
            Err(error) if error::is_wrong_type(&error) => {
                Ok(State { has_task: true, is_taken: true, created_ms: None })
            }
            Err(error) => Err(error),
        }
    }
}

/// What there is before a move.
struct State {
    has_task: bool,
    /// Something is in the way.
    is_taken: bool,
    /// By the task's entry.
    created_ms: Option<f64>,
}

/// Of each task, whether its record says that its owner is what stands in its key, braces included.
async fn braces_are_the_owners(connection: &mut Live, keys: &[Vec<u8>]) -> Result<Vec<bool>, RedisError> {
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

/// The owner of a task's key where it could be in a hash tag.
fn owner_in_braces(key: &[u8]) -> Option<&str> {
    let owner = str::from_utf8(TaskKey::parse(key).ok()?.owner).ok()?;
    owner_in_hash_tag(owner).map(|_| owner)
}
