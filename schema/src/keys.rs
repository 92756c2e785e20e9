//! Key names: builds a key from a prefix, an owner and a task id, and parses it back.
//!
//! Keys are bytes, as on the server. A key parses in exactly one way: the prefix ends at the first `:tasks:`
//! (or `:idx:`), the task id starts after the last colon, and everything in between is the owner, including
//! colons, braces and spaces.

use memchr::{memchr, memrchr};

/// The part of a task key between prefix and owner.
const TASKS: &[u8; 7] = b":tasks:";
/// The part of an index key between prefix and owner.
const INDEX: &[u8; 5] = b":idx:";

/// Why a key, or a pair of keys, does not fit the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key is not a task key.
    #[error("task key: expected <prefix>:tasks:<owner>:<task-id>, got another form")]
    NoTaskKey,
    /// The task key ends in a colon.
    #[error("task key: expected a task id after the last colon, got none")]
    NoTaskId,
    /// The key is not an index key.
    #[error("index key: expected <prefix>:idx:<owner>, got another form")]
    NoIndexKey,
    /// Both keys are well formed but belong to different owners or prefixes.
    #[error("index key: expected the index of the task key's own prefix and owner, got another")]
    IndexOfAnother,
}

/// A parsed task key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskKey<'a> {
    /// The prefix of all keys of one deployment.
    pub prefix: &'a [u8],
    /// The task's owner; may be empty.
    pub owner: &'a [u8],
    /// Contains no colon and is never empty.
    pub task_id: &'a [u8],
}

impl<'a> TaskKey<'a> {
    /// Parses a task key.
    ///
    /// # Errors
    ///
    /// [`KeyError::NoTaskKey`] and [`KeyError::NoTaskId`].
    pub fn parse(key: &'a [u8]) -> Result<Self, KeyError> {
        let (prefix, rest) = split_at_first(key, TASKS).ok_or(KeyError::NoTaskKey)?;
        if split_at_first(prefix, INDEX).is_some() {
            return Err(KeyError::NoTaskKey);
        }
        let (owner, task_id) = split_at_last_colon(rest).ok_or(KeyError::NoTaskKey)?;
        if task_id.is_empty() {
            return Err(KeyError::NoTaskId);
        }
        Ok(Self { prefix, owner, task_id })
    }
}

impl<'a> TaskKey<'a> {
    /// The index and the member under which `pmcp_tasks::RedisBackend` stores this task if its owner
    /// has a colon; None otherwise. That backend cuts the owner at its first colon and moves the rest
    /// into the member.
    #[must_use]
    pub fn old_entry(&self) -> Option<(IndexKey<'a>, Vec<u8>)> {
        let (owner, rest) = split_at_first(self.owner, b":")?;
        Some((IndexKey { prefix: self.prefix, owner }, [rest, b":", self.task_id].concat()))
    }
}

/// A parsed index key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexKey<'a> {
    /// The prefix of all keys of one deployment.
    pub prefix: &'a [u8],
    /// The owner of the indexed tasks; may be empty.
    pub owner: &'a [u8],
}

impl<'a> IndexKey<'a> {
    /// Parses an index key.
    ///
    /// # Errors
    ///
    /// [`KeyError::NoIndexKey`].
    pub fn parse(key: &'a [u8]) -> Result<Self, KeyError> {
        let (prefix, owner) = split_at_first(key, INDEX).ok_or(KeyError::NoIndexKey)?;
        if split_at_first(prefix, TASKS).is_some() {
            return Err(KeyError::NoIndexKey);
        }
        Ok(Self { prefix, owner })
    }

    /// The index that a task belongs to.
    #[must_use]
    pub fn of(task: &TaskKey<'a>) -> Self {
        Self { prefix: task.prefix, owner: task.owner }
    }

    /// Checks that a task belongs to this index.
    ///
    /// # Errors
    ///
    /// [`KeyError::IndexOfAnother`].
    pub fn check_holds(&self, task: &TaskKey<'_>) -> Result<(), KeyError> {
        if self.prefix == task.prefix && self.owner == task.owner {
            Ok(())
        } else {
            Err(KeyError::IndexOfAnother)
        }
    }

    /// Replaces the contents of `key` with this index key.
    pub fn write(&self, key: &mut Vec<u8>) {
        key.clear();
        for part in [self.prefix, INDEX, self.owner] {
            key.extend_from_slice(part);
        }
    }

    /// A builder of the keys of this owner's tasks.
    #[must_use]
    pub fn task_keys(&self) -> OwnersTaskKeys {
        let key = [self.prefix, TASKS, self.owner, b":"].concat();
        OwnersTaskKeys { common: key.len(), key }
    }
}

/// Builds the keys of one owner's tasks, one at a time, in one reused buffer.
#[derive(Debug)]
pub struct OwnersTaskKeys {
    key: Vec<u8>,
    /// Length of the start that all these keys share.
    common: usize,
}

impl OwnersTaskKeys {
    /// The key of a task. None if `task_id` is empty or has a colon: with a colon, the key would belong to
    /// another owner.
    #[inline]
    pub fn of_task(&mut self, task_id: &[u8]) -> Option<&[u8]> {
        if task_id.is_empty() || memchr(b':', task_id).is_some() {
            None
        } else {
            Some(self.of_member(task_id))
        }
    }

    /// The task key that an index member names. [`TaskKey::old_entry`] explains members with colons.
    pub fn of_member(&mut self, member: &[u8]) -> &[u8] {
        self.key.truncate(self.common);
        self.key.extend_from_slice(member);
        &self.key
    }
}

fn split_at_first<'a, const N: usize>(key: &'a [u8], separator: &[u8; N]) -> Option<(&'a [u8], &'a [u8])> {
    let at = key.windows(N).position(|window| window.first_chunk() == Some(separator))?;
    let (before, rest) = key.split_at_checked(at)?;
    Some((before, rest.get(N..)?))
}

fn split_at_last_colon(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (before, rest) = text.split_at_checked(memrchr(b':', text)?)?;
    Some((before, rest.get(1..)?))
}

/// A composite key of `StorageBackend` has no colon, or no task id after its last colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("key: expected owner:task-id, got one without {missing}")]
pub struct CompositeKeyError {
    missing: &'static str,
}

/// Splits `owner:task-id` at its last colon: owners may contain colons, task ids may not.
///
/// # Errors
///
/// [`CompositeKeyError`] if there is no colon, or nothing after the last one.
pub fn split_composite(key: &str) -> Result<(&str, &str), CompositeKeyError> {
    match key.rsplit_once(':') {
        None => Err(CompositeKeyError { missing: "a colon" }),
        Some((_, "")) => Err(CompositeKeyError { missing: "a task id" }),
        Some(split) => Ok(split),
    }
}

/// Why keys cannot start with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrefixError {
    /// Keys that start with the prefix would parse to another prefix.
    #[error("key prefix {0:?}: must not contain, nor end in the start of, ':tasks:' or ':idx:'")]
    Ambiguous(String),
    /// A brace in the prefix would override the owners' hash tags.
    #[error("key prefix {0:?}: with hash tags, must hold no '{{', unless it holds a whole hash tag")]
    InTheWayOfHashTags(String),
}

/// Builds the keys of one deployment from owners and task ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyspace {
    prefix: String,
    has_hash_tags: bool,
}

impl Keyspace {
    /// The default prefix, the same as in `pmcp-tasks`.
    pub const DEFAULT_PREFIX: &'static str = "pmcp";

    /// The keys that start with `prefix`.
    ///
    /// # Errors
    ///
    /// [`PrefixError::Ambiguous`] if the keys would parse to another prefix.
    pub fn new(prefix: impl Into<String>) -> Result<Self, PrefixError> {
        let keyspace = Self { prefix: prefix.into(), has_hash_tags: false };
        let prefix = keyspace.prefix.as_bytes();
        let (task, index) = (keyspace.task_key("o", "t"), keyspace.index_key("o"));
        let readable = TaskKey::parse(task.as_bytes()).is_ok_and(|key| key.prefix == prefix)
            && IndexKey::parse(index.as_bytes()).is_ok_and(|key| key.prefix == prefix);
        if readable { Ok(keyspace) } else { Err(PrefixError::Ambiguous(keyspace.prefix)) }
    }

    /// Wraps each owner in a hash tag, so that all keys of one owner share a cluster slot.
    ///
    /// If the prefix itself contains a hash tag, that tag applies to all owners, and all keys share one slot.
    ///
    /// # Errors
    ///
    /// [`PrefixError::InTheWayOfHashTags`] if the prefix has a brace that disables the owners' hash tags.
    pub fn with_hash_tags(mut self) -> Result<Self, PrefixError> {
        if self.prefix.contains('{') && !self.prefix_is_hash_tag() {
            return Err(PrefixError::InTheWayOfHashTags(self.prefix));
        }
        self.has_hash_tags = true;
        Ok(self)
    }

    /// Whether the prefix contains a whole hash tag, which then applies to all keys.
    #[must_use]
    pub fn prefix_is_hash_tag(&self) -> bool {
        // A hash tag runs from a key's first opening brace to the first closing brace after it.
        let tag = self.prefix.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        tag.is_some_and(|(tag, _)| !tag.is_empty())
    }

    /// Whether keys wrap their owner in a hash tag.
    #[must_use]
    pub fn has_hash_tags(&self) -> bool {
        self.has_hash_tags
    }

    /// The prefix that all keys start with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// `<prefix>:tasks:<owner>:<task-id>`.
    #[must_use]
    pub fn task_key(&self, owner: &str, task_id: &str) -> String {
        let [before, after] = self.around(owner);
        [&self.prefix, ":tasks:", before, owner, after, ":", task_id].concat()
    }

    /// `<prefix>:idx:<owner>`.
    #[must_use]
    pub fn index_key(&self, owner: &str) -> String {
        let [before, after] = self.around(owner);
        [&self.prefix, ":idx:", before, owner, after].concat()
    }

    /// The text before and after an owner in a key: with hash tags, `{alice}`. An owner that is empty or
    /// starts with a closing brace would make the hash tag empty, and an empty tag has no effect. Such an
    /// owner gets `_{_}` in front instead. No other owner looks like that in a key, because all others start
    /// with a brace.
    fn around(&self, owner: &str) -> [&'static str; 2] {
        if !self.has_hash_tags {
            ["", ""]
        } else if takes_stand_in(owner) {
            [STAND_IN, ""]
        } else {
            ["{", "}"]
        }
    }
}

/// The hash tag in front of an owner that would make its own hash tag empty.
const STAND_IN: &str = "_{_}";

fn takes_stand_in(owner: &str) -> bool {
    owner.is_empty() || owner.starts_with('}')
}

/// The owner, read from the owner part of a key with hash tags. None if the part has no hash tag
/// of that form.
///
/// A key alone is ambiguous: the owner `{alice}` without hash tags has the same keys as `alice`
/// with hash tags.
#[must_use]
pub fn owner_in_hash_tag(part: &str) -> Option<&str> {
    if let Some(owner) = part.strip_prefix(STAND_IN) {
        return Some(owner).filter(|owner| takes_stand_in(owner));
    }
    let owner = part.strip_prefix('{')?.strip_suffix('}')?;
    (!takes_stand_in(owner)).then_some(owner)
}

impl Default for Keyspace {
    fn default() -> Self {
        Self { prefix: Self::DEFAULT_PREFIX.to_owned(), has_hash_tags: false }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn task_id_starts_after_the_last_colon() {
        let key = TaskKey::parse(b"pmcp:tasks:tenant:alice:t1").unwrap();
        assert_eq!(key, TaskKey { prefix: b"pmcp", owner: b"tenant:alice", task_id: b"t1" });
        assert_eq!(split_composite("tenant:alice:t1"), Ok(("tenant:alice", "t1")));
    }

    #[test]
    fn owner_may_be_empty_or_look_like_a_separator() {
        assert_eq!(TaskKey::parse(b"p:tasks::t").unwrap().owner, b"");
        assert_eq!(TaskKey::parse(b"p:tasks:a:tasks:b:idx:c:t").unwrap().owner, b"a:tasks:b:idx:c");
        assert_eq!(IndexKey::parse(b"p:idx:").unwrap().owner, b"");
        assert_eq!(IndexKey::parse(b"p:idx:a:tasks:b").unwrap().owner, b"a:tasks:b");
    }

    #[test]
    fn other_keys_are_refused() {
        for key in ["", ":", "tasks", "p:tasks:t", "p:task:o:t", "p:idx:o", "a:idx:p:tasks:o:t", "tasks:o:t"]
        {
            assert_eq!(TaskKey::parse(key.as_bytes()), Err(KeyError::NoTaskKey), "{key}");
        }
        assert_eq!(TaskKey::parse(b"p:tasks:o:"), Err(KeyError::NoTaskId));
        for key in ["", "p:idx", "idx:o", "p:tasks:o:t", "a:tasks:p:idx:o"] {
            assert_eq!(IndexKey::parse(key.as_bytes()), Err(KeyError::NoIndexKey), "{key}");
        }
    }

    #[test]
    fn index_of_another_owner_or_prefix_is_refused() {
        let task = TaskKey::parse(b"p:tasks:o:t").unwrap();
        for index in ["p:idx:", "p:idx:o2", "p:idx:o:t", "q:idx:o", ":idx:o"] {
            let index = IndexKey::parse(index.as_bytes()).unwrap();
            assert_eq!(index.check_holds(&task), Err(KeyError::IndexOfAnother));
        }
        assert_eq!(IndexKey::parse(b"p:idx:o").unwrap().check_holds(&task), Ok(()));
    }

    #[test]
    fn member_of_an_index_with_a_colon_names_no_task() {
        let mut keys = IndexKey { prefix: b"p", owner: b"a" }.task_keys();
        assert_eq!(keys.of_task(b"b:t"), None);
        assert_eq!(keys.of_task(b""), None);
        for length in 1..=40 {
            let mut member = vec![b't'; length];
            assert!(keys.of_task(&member).is_some());
            for place in 0..length {
                member[place] = b':';
                assert_eq!(keys.of_task(&member), None, "{place} of {length}");
                member[place] = b't';
            }
        }
        assert_eq!(keys.of_task(b"t1"), Some(&b"p:tasks:a:t1"[..]));
        assert_eq!(keys.of_task(b"u"), Some(&b"p:tasks:a:u"[..]));
    }

    #[test]
    fn old_entry_of_an_owner_with_colons_names_the_same_task() {
        let task = TaskKey::parse(b"p:tasks:a:b:c:t").unwrap();
        let (index, member) = task.old_entry().unwrap();
        assert_eq!((index.owner, member.as_slice()), (&b"a"[..], &b"b:c:t"[..]));
        assert_eq!(index.task_keys().of_member(&member), b"p:tasks:a:b:c:t");
        assert_eq!(TaskKey::parse(b"p:tasks:a:t").unwrap().old_entry(), None);
    }

    #[test]
    fn prefix_that_cannot_be_told_from_the_rest_is_refused() {
        for prefix in ["a:tasks:b", "a:idx:b", ":tasks:", "a:tasks", "a:idx", ":tasks", ":idx"] {
            assert!(Keyspace::new(prefix).is_err(), "{prefix}");
        }
        for prefix in ["", "pmcp", "a:b", "a:", "tasks", "idx", "{x}", "ü p"] {
            assert!(Keyspace::new(prefix).is_ok(), "{prefix}");
        }
    }

    #[test]
    fn prefix_in_the_way_of_hash_tags_is_refused() {
        for prefix in ["{", "a{b", "a{}", "{}{x}", "}{"] {
            let keyspace = Keyspace::new(prefix).unwrap();
            let refused = PrefixError::InTheWayOfHashTags(prefix.to_owned());
            assert_eq!(keyspace.with_hash_tags(), Err(refused), "{prefix}");
        }
        for prefix in ["", "pmcp", "a}b", "{x}", "a{b}c{"] {
            assert!(Keyspace::new(prefix).unwrap().with_hash_tags().is_ok(), "{prefix}");
        }
    }

    #[test]
    fn hash_tag_is_the_owner() {
        let keyspace = Keyspace::default().with_hash_tags().unwrap();
        assert_eq!(keyspace.task_key("alice", "t1"), "pmcp:tasks:{alice}:t1");
        assert_eq!(keyspace.index_key("alice"), "pmcp:idx:{alice}");
        assert_eq!(keyspace.index_key("}"), "pmcp:idx:_{_}}");
    }

    /// The part of a key that a cluster hashes to a slot, per the Redis Cluster specification.
    fn hashed(key: &str) -> &str {
        key.split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'))
            .map(|(tag, _)| tag)
            .filter(|tag| !tag.is_empty())
            .unwrap_or(key)
    }

    #[test]
    fn composite_key_without_owner_or_task_is_refused() {
        for key in ["", "t", "o:", ":"] {
            assert!(split_composite(key).is_err(), "{key}");
        }
        assert_eq!(split_composite(":t"), Ok(("", "t")));
    }

    #[test]
    fn owner_without_a_hash_tag_is_told_apart() {
        for part in ["", "alice", "{", "}", "{}", "{alice", "a{b}", "{a}b", "{}}", "_{_}a", "_{}"] {
            assert_eq!(owner_in_hash_tag(part), None, "{part}");
        }
    }

    proptest! {
        #[test]
        fn keys_are_taken_apart_as_they_were_made(
            prefix in "[a-z:{}]{0,9}", owner in "(:tasks:|:idx:|[a-z:{} é|]){0,6}", task_id in "[^:]{1,40}",
        ) {
            let Ok(keyspace) = Keyspace::new(prefix.clone()) else { return Ok(()) };
            let (task, index) = (keyspace.task_key(&owner, &task_id), keyspace.index_key(&owner));
            let task_key = TaskKey::parse(task.as_bytes()).unwrap();
            prop_assert_eq!(
                task_key,
                TaskKey { prefix: prefix.as_bytes(), owner: owner.as_bytes(), task_id: task_id.as_bytes() }
            );
            let index_key = IndexKey::parse(index.as_bytes()).unwrap();
            prop_assert_eq!(index_key.check_holds(&task_key), Ok(()));
            let mut keys = index_key.task_keys();
            prop_assert_eq!(keys.of_task(task_id.as_bytes()), Some(task.as_bytes()));
            let mut made = Vec::new();
            IndexKey::of(&task_key).write(&mut made);
            prop_assert_eq!(made, index.into_bytes());
        }

        #[test]
        fn keys_of_an_owner_share_a_hash_tag_and_are_no_others(
            prefix in "[a{}]{0,3}", owner in "[a{}_:]{0,5}", other in "[a{}_:]{0,5}",
        ) {
            let Ok(keyspace) = Keyspace::new(prefix).and_then(Keyspace::with_hash_tags) else { return Ok(()) };
            let (task, index) = (keyspace.task_key(&owner, "t"), keyspace.index_key(&owner));
            prop_assert!(hashed(&task) != task);
            prop_assert_eq!(hashed(&task), hashed(&index));
            let task_key = TaskKey::parse(task.as_bytes()).unwrap();
            prop_assert_eq!(IndexKey::parse(index.as_bytes()).unwrap().check_holds(&task_key), Ok(()));
            prop_assert_eq!(owner == other, index == keyspace.index_key(&other));
            prop_assert_eq!(owner_in_hash_tag(str::from_utf8(task_key.owner).unwrap()), Some(owner.as_str()));
        }

        #[test]
        fn text_is_split_at_its_last_colon(text in "[a:]{0,50}|a{0,50}") {
            let split = split_at_last_colon(text.as_bytes());
            let split = split.map(|(before, rest)| [before, rest].map(|part| str::from_utf8(part).unwrap()));
            prop_assert_eq!(split, text.rsplit_once(':').map(|(before, rest)| [before, rest]));
        }

        #[test]
        fn any_bytes_are_taken_apart_without_a_panic(key: Vec<u8>) {
            let _ = (TaskKey::parse(&key), IndexKey::parse(&key));
        }
    }
}
