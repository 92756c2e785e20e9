//! The rules of `StorageBackend`, as one suite for all backends.
//!
//! A backend takes part by implementing [`Subject`] and naming
//! [`conformance_suite!`](crate::conformance_suite) in a test file. A backend that differs from a rule
//! declares a [`Difference`] and the reason. The suite then expects the difference, so a difference that
//! disappears fails a test.

use std::time::Duration;

use pmcp_tasks::StorageError;
use pmcp_tasks::domain::TaskRecord;
use pmcp_tasks::store::backend::{StorageBackend, make_key, make_prefix};

use crate::{now_ms, slowness, timestamp};

/// A backend under test.
pub trait Subject {
    /// The backend.
    type Backend: StorageBackend;

    /// A backend that shares no data with any other.
    fn backend() -> impl Future<Output = Self::Backend>;

    /// Why the backend differs from the rule in this way, if it does.
    fn why_it_differs(difference: Difference) -> Option<&'static str>;
}

/// A way in which a backend differs from the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// CAS of a missing task is `NotFound`, not a `VersionConflict` with actual version 0.
    MissingCasIsNotFound,
    /// Lists come in any order, not in order of creation.
    ListsAreUnordered,
    /// Data that is not UTF-8 is refused.
    OnlyTextIsStored,
    /// An owner with a colon shares its list with the owner before the colon.
    OwnersWithColonsMix,
    /// An expired record is read until it is cleaned up.
    ExpiredRecordsAreRead,
    /// `cleanup_expired` removes expired records, and returns how many.
    CleanupRemoves,
    /// The expiry is cut to whole seconds, so a task ends up to one second early.
    ExpiryIsFloored,
    /// An `expiresAt` that is not a timestamp means that the task never expires.
    UnreadableExpiryIsIgnored,
}

/// A record of `pmcp-tasks`, with its task id and bytes.
pub struct Sample {
    /// The task's id.
    pub task_id: String,
    /// The record, serialized as `GenericTaskStore` does.
    pub bytes: Vec<u8>,
}

impl Sample {
    /// A new record of an owner.
    #[must_use]
    pub fn new(owner: &str, ttl_ms: Option<u64>) -> Self {
        Self::of(&TaskRecord::new(owner.to_owned(), "tools/call".to_owned(), ttl_ms))
    }

    /// A new record that was created `ms` after the epoch.
    #[must_use]
    pub fn created_at(owner: &str, ms: i64) -> Self {
        let mut record = TaskRecord::new(owner.to_owned(), "tools/call".to_owned(), None);
        record.task.created_at = timestamp(ms);
        Self::of(&record)
    }

    fn of(record: &TaskRecord) -> Self {
        Self { task_id: record.task.task_id.clone(), bytes: serde_json::to_vec(record).unwrap() }
    }

    /// A record with nothing but an expiry, `ms` after the epoch.
    #[must_use]
    pub fn expiring_at(ms: i64) -> Vec<u8> {
        format!(r#"{{"expiresAt":"{}"}}"#, timestamp(ms)).into_bytes()
    }
}

const OWNER: &str = "owner";

fn key(task_id: &str) -> String {
    make_key(OWNER, task_id)
}

/// Asserts that a CAS lost to version `actual`, where 0 means that there was no task.
fn assert_conflict(result: Result<u64, StorageError>, key: &str, expected: u64, actual: u64) {
    match result {
        Err(StorageError::VersionConflict { key: k, expected: e, actual: a }) => {
            assert_eq!((k.as_str(), e, a), (key, expected, actual));
        }
        other => panic!("expected a conflict at version {actual}, got {other:?}"),
    }
}

fn assert_not_found<T: std::fmt::Debug>(result: Result<T, StorageError>, key: &str) {
    match result {
        Err(StorageError::NotFound { key: k }) => assert_eq!(k, key),
        other => panic!("expected that {key} is not found, got {other:?}"),
    }
}

/// The rules. Each is one test for each backend.
#[allow(missing_docs, reason = "the name of a rule says what it asks for")]
#[allow(clippy::wildcard_imports, reason = "the rules are the rest of this file's text")]
pub mod rules {
    use super::*;

    pub async fn get_missing_is_not_found<S: Subject>() {
        let backend = S::backend().await;
        assert_not_found(backend.get(&key("none")).await, &key("none"));
    }

    pub async fn get_returns_what_was_stored<S: Subject>() {
        let backend = S::backend().await;
        let version = backend.put(&key("t"), b"hello world").await.unwrap();
        let record = backend.get(&key("t")).await.unwrap();
        assert_eq!((record.data.as_slice(), record.version), (&b"hello world"[..], version));
    }

    pub async fn put_new_is_version_1<S: Subject>() {
        let backend = S::backend().await;
        assert_eq!(backend.put(&key("t"), b"data").await.unwrap(), 1);
    }

    pub async fn put_again_increments_version_and_overwrites_data<S: Subject>() {
        let backend = S::backend().await;
        for version in 1..=5_u64 {
            let data = format!("data {version}").into_bytes();
            assert_eq!(backend.put(&key("t"), &data).await.unwrap(), version);
            let record = backend.get(&key("t")).await.unwrap();
            assert_eq!((record.data, record.version), (data, version));
        }
    }

    pub async fn cas_on_match_updates_data_and_version<S: Subject>() {
        let backend = S::backend().await;
        let first = backend.put(&key("t"), b"one").await.unwrap();
        let second = backend.put_if_version(&key("t"), b"two", first).await.unwrap();
        assert_eq!(second, first + 1);
        let record = backend.get(&key("t")).await.unwrap();
        assert_eq!((record.data.as_slice(), record.version), (&b"two"[..], second));
    }

    pub async fn cas_on_mismatch_is_a_conflict_and_changes_nothing<S: Subject>() {
        let backend = S::backend().await;
        backend.put(&key("t"), b"one").await.unwrap();
        backend.put(&key("t"), b"two").await.unwrap();
        for expected in [0, 1, 3, 999] {
            assert_conflict(backend.put_if_version(&key("t"), b"x", expected).await, &key("t"), expected, 2);
        }
        let record = backend.get(&key("t")).await.unwrap();
        assert_eq!((record.data.as_slice(), record.version), (&b"two"[..], 2));
    }

    pub async fn cas_of_missing_is_a_conflict_with_version_0<S: Subject>() {
        let backend = S::backend().await;
        let result = backend.put_if_version(&key("none"), b"data", 1).await;
        if S::why_it_differs(Difference::MissingCasIsNotFound).is_some() {
            assert_not_found(result, &key("none"));
        } else {
            assert_conflict(result, &key("none"), 1, 0);
        }
        assert_not_found(backend.get(&key("none")).await, &key("none"));
    }

    pub async fn delete_existing_is_true_and_then_it_is_gone<S: Subject>() {
        let backend = S::backend().await;
        backend.put(&key("t"), b"data").await.unwrap();
        assert!(backend.delete(&key("t")).await.unwrap());
        assert_not_found(backend.get(&key("t")).await, &key("t"));
        assert!(backend.list_by_prefix(&make_prefix(OWNER)).await.unwrap().is_empty());
        assert!(!backend.delete(&key("t")).await.unwrap());
    }

    pub async fn delete_missing_is_false<S: Subject>() {
        let backend = S::backend().await;
        assert!(!backend.delete(&key("none")).await.unwrap());
    }

    pub async fn put_after_delete_starts_at_version_1<S: Subject>() {
        let backend = S::backend().await;
        backend.put(&key("t"), b"one").await.unwrap();
        backend.put(&key("t"), b"two").await.unwrap();
        backend.delete(&key("t")).await.unwrap();
        assert_eq!(backend.put(&key("t"), b"three").await.unwrap(), 1);
    }

    pub async fn list_holds_the_tasks_of_its_owner_only<S: Subject>() {
        let backend = S::backend().await;
        for (owner, count) in [("alice", 3), ("bob", 2)] {
            for n in 0..count {
                backend.put(&make_key(owner, &format!("t{n}")), owner.as_bytes()).await.unwrap();
            }
        }
        for (owner, count) in [("alice", 3), ("bob", 2), ("ali", 0), ("alice2", 0)] {
            let list = backend.list_by_prefix(&make_prefix(owner)).await.unwrap();
            assert_eq!(list.len(), count, "{owner}");
            assert!(list.iter().all(|(key, record)| {
                key.starts_with(&make_prefix(owner)) && record.data == owner.as_bytes()
            }));
        }
    }

    pub async fn list_has_data_and_versions<S: Subject>() {
        let backend = S::backend().await;
        backend.put(&key("a"), b"a1").await.unwrap();
        backend.put(&key("a"), b"a2").await.unwrap();
        backend.put(&key("b"), b"b1").await.unwrap();
        let mut list = backend.list_by_prefix(&make_prefix(OWNER)).await.unwrap();
        list.sort_by(|one, other| one.0.cmp(&other.0));
        let list: Vec<_> =
            list.iter().map(|(key, record)| (key.as_str(), record.data.as_slice(), record.version)).collect();
        assert_eq!(list, [("owner:a", &b"a2"[..], 2), ("owner:b", &b"b1"[..], 1)]);
    }

    pub async fn list_is_in_order_of_creation<S: Subject>() {
        let backend = S::backend().await;
        let mut created = Vec::new();
        // The order of creation is neither the order of the writes nor the order of the ids.
        for n in [4_i64, 1, 5, 0, 3, 2, 6, 9, 8, 7] {
            let sample = Sample::created_at(OWNER, 1_700_000_000_000 + n);
            backend.put(&key(&sample.task_id), &sample.bytes).await.unwrap();
            created.push((n, key(&sample.task_id), sample.bytes));
        }
        // A later write does not move a task in the list.
        let (_, oldest, data) = created.iter().find(|(n, ..)| *n == 0).unwrap();
        backend.put(oldest, data).await.unwrap();
        created.sort();
        let mut expected: Vec<_> = created.into_iter().map(|(_, key, _)| key).collect();
        let list = backend.list_by_prefix(&make_prefix(OWNER)).await.unwrap();
        let mut listed: Vec<_> = list.into_iter().map(|(key, _)| key).collect();
        if S::why_it_differs(Difference::ListsAreUnordered).is_some() {
            listed.sort();
            expected.sort();
        }
        assert_eq!(listed, expected);
    }

    pub async fn cleanup_of_nothing_is_0<S: Subject>() {
        let backend = S::backend().await;
        backend.put(&key("t"), b"data").await.unwrap();
        assert_eq!(backend.cleanup_expired().await.unwrap(), 0);
    }

    pub async fn expired_task_is_neither_read_nor_listed<S: Subject>() {
        let backend = S::backend().await;
        // Two seconds, because a backend may cut the expiry to whole seconds.
        let ends = now_ms() + 2_000;
        let mut sample = Sample::new(OWNER, Some(2_000));
        backend.put(&key(&sample.task_id), &sample.bytes).await.unwrap();
        let is_there = backend.get(&key(&sample.task_id)).await.is_ok();
        // A read that a busy machine answers after the task's end says nothing.
        assert!(is_there || now_ms() > ends);
        let lasting = Sample::new(OWNER, Some(600_000));
        backend.put(&key(&lasting.task_id), &lasting.bytes).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2_050)).await;
        let sees_expired = S::why_it_differs(Difference::ExpiredRecordsAreRead).is_some();
        if sees_expired {
            assert!(backend.get(&key(&sample.task_id)).await.is_ok());
        } else {
            assert_not_found(backend.get(&key(&sample.task_id)).await, &key(&sample.task_id));
        }
        let list = backend.list_by_prefix(&make_prefix(OWNER)).await.unwrap();
        assert_eq!(list.len(), if sees_expired { 2 } else { 1 });
        let removes = S::why_it_differs(Difference::CleanupRemoves).is_some();
        assert_eq!(backend.cleanup_expired().await.unwrap(), usize::from(removes));
        // For a CAS the task is gone too, and a new task with its id starts at version 1.
        sample = Sample { task_id: sample.task_id, ..Sample::new(OWNER, None) };
        let result = backend.put_if_version(&key(&sample.task_id), &sample.bytes, 1).await;
        if S::why_it_differs(Difference::MissingCasIsNotFound).is_some() {
            assert_not_found(result, &key(&sample.task_id));
        } else {
            assert_conflict(result, &key(&sample.task_id), 1, 0);
        }
        assert_eq!(backend.put(&key(&sample.task_id), &sample.bytes).await.unwrap(), 1);
    }

    pub async fn task_lives_to_the_last_millisecond<S: Subject>() {
        let backend = S::backend().await;
        // A read that a busy machine answers after the task's end says nothing.
        for _ in 0..20 {
            // A backend that cuts the expiry to whole seconds ends this task almost a second early.
            let at = now_ms() / 1000 * 1000 + 1_990;
            backend.put(&key("t"), &Sample::expiring_at(at)).await.unwrap();
            tokio::time::sleep(Duration::from_millis((at - 700 - now_ms()).max(0).unsigned_abs())).await;
            let is_there = backend.get(&key("t")).await.is_ok();
            if now_ms() < at {
                let floored = S::why_it_differs(Difference::ExpiryIsFloored).is_some();
                assert_eq!(is_there, !floored);
                return;
            }
        }
        panic!("no read was answered in time");
    }

    pub async fn write_without_expiry_removes_it<S: Subject>() {
        let backend = S::backend().await;
        // Long enough for two writes.
        let life = Duration::from_secs(2) * slowness();
        let expires_at = || now_ms() + i64::try_from(life.as_millis()).unwrap();
        backend.put(&key("p"), &Sample::expiring_at(expires_at())).await.unwrap();
        backend.put(&key("p"), b"{}").await.unwrap();
        backend.put(&key("c"), &Sample::expiring_at(expires_at())).await.unwrap();
        backend.put_if_version(&key("c"), b"{}", 1).await.unwrap();
        tokio::time::sleep(life + Duration::from_millis(50)).await;
        for name in ["p", "c"] {
            let record = backend.get(&key(name)).await.unwrap();
            assert_eq!((record.data.as_slice(), record.version), (&b"{}"[..], 2), "{name}");
        }
    }

    pub async fn unreadable_expiry_is_refused_and_nothing_written<S: Subject>() {
        let backend = S::backend().await;
        let result = backend.put(&key("t"), br#"{"expiresAt":"soon"}"#).await;
        if S::why_it_differs(Difference::UnreadableExpiryIsIgnored).is_some() {
            assert_eq!(result.unwrap(), 1);
        } else {
            assert!(matches!(result, Err(StorageError::Backend { .. })), "{result:?}");
            assert_not_found(backend.get(&key("t")).await, &key("t"));
        }
    }

    pub async fn binary_data_is_kept<S: Subject>() {
        let backend = S::backend().await;
        let every_byte: Vec<u8> = (0..=255).collect();
        let result = backend.put(&key("t"), &every_byte).await;
        if S::why_it_differs(Difference::OnlyTextIsStored).is_some() {
            assert!(matches!(result, Err(StorageError::Backend { .. })), "{result:?}");
        } else {
            result.unwrap();
            assert_eq!(backend.get(&key("t")).await.unwrap().data, every_byte);
            backend.put_if_version(&key("t"), &every_byte[128..], 1).await.unwrap();
            let list = backend.list_by_prefix(&make_prefix(OWNER)).await.unwrap();
            assert_eq!(list[0].1.data, &every_byte[128..]);
        }
    }

    pub async fn records_of_1_byte_and_of_10_megabytes_are_kept<S: Subject>() {
        let backend = S::backend().await;
        for size in [1, 10_000_000] {
            let data = vec![b'x'; size];
            backend.put(&key("t"), &data).await.unwrap();
            assert!(backend.get(&key("t")).await.unwrap().data == data);
            assert!(backend.list_by_prefix(&make_prefix(OWNER)).await.unwrap()[0].1.data == data);
        }
    }

    pub async fn owner_may_be_any_text<S: Subject>() {
        let backend = S::backend().await;
        for owner in
            ["", " ", "auth0|x", "{alice}", "a}b{c", "tenant alice", "Łukasz ☃", "a\n\t\"b", "*?[x]", "%s%n"]
        {
            let key = make_key(owner, "t");
            assert_eq!(backend.put(&key, owner.as_bytes()).await.unwrap(), 1, "{owner:?}");
            assert_eq!(backend.get(&key).await.unwrap().data, owner.as_bytes(), "{owner:?}");
            assert_eq!(backend.put_if_version(&key, owner.as_bytes(), 1).await.unwrap(), 2, "{owner:?}");
            let list = backend.list_by_prefix(&make_prefix(owner)).await.unwrap();
            assert_eq!(list.len(), 1, "{owner:?}");
            assert_eq!(list[0].0, key);
        }
        for owner in ["", "{alice}", "Łukasz ☃"] {
            assert!(backend.delete(&make_key(owner, "t")).await.unwrap());
        }
    }

    pub async fn owners_with_colons_do_not_mix<S: Subject>() {
        let backend = S::backend().await;
        let owners = ["a", "a:b", "a:b:c", "urn:example:a", "https://idp|7"];
        for owner in owners {
            backend.put(&make_key(owner, "t"), owner.as_bytes()).await.unwrap();
        }
        let mut all_separate = true;
        for owner in owners {
            assert_eq!(backend.get(&make_key(owner, "t")).await.unwrap().data, owner.as_bytes(), "{owner}");
            let list = backend.list_by_prefix(&make_prefix(owner)).await.unwrap();
            all_separate &= list.len() == 1 && list[0].1.data == owner.as_bytes();
        }
        assert_eq!(all_separate, S::why_it_differs(Difference::OwnersWithColonsMix).is_none());
    }

    pub async fn one_of_many_concurrent_cas_wins<S: Subject>()
    where
        S::Backend: 'static,
    {
        let backend = std::sync::Arc::new(S::backend().await);
        backend.put(&key("t"), b"0").await.unwrap();
        let racers: Vec<_> = (0..32)
            .map(|n: u8| {
                let backend = std::sync::Arc::clone(&backend);
                tokio::spawn(async move { backend.put_if_version(&key("t"), &[b'a' + n % 26], 1).await })
            })
            .collect();
        let mut won = 0;
        for racer in racers {
            match racer.await.unwrap() {
                Ok(version) => {
                    assert_eq!(version, 2);
                    won += 1;
                }
                result => assert_conflict(result, &key("t"), 1, 2),
            }
        }
        assert_eq!(won, 1);
    }
}

/// Makes one test of each rule, `$module::{rule}`, for the backend `$subject`.
#[macro_export]
macro_rules! conformance_suite {
    ($module:ident, $subject:ident) => {
        $crate::conformance_suite!(@rules $module, $subject:
            get_missing_is_not_found, get_returns_what_was_stored, put_new_is_version_1,
            put_again_increments_version_and_overwrites_data, cas_on_match_updates_data_and_version,
            cas_on_mismatch_is_a_conflict_and_changes_nothing, cas_of_missing_is_a_conflict_with_version_0,
            delete_existing_is_true_and_then_it_is_gone, delete_missing_is_false,
            put_after_delete_starts_at_version_1, list_holds_the_tasks_of_its_owner_only,
            list_has_data_and_versions, list_is_in_order_of_creation, cleanup_of_nothing_is_0,
            expired_task_is_neither_read_nor_listed, task_lives_to_the_last_millisecond,
            write_without_expiry_removes_it, unreadable_expiry_is_refused_and_nothing_written,
            binary_data_is_kept, records_of_1_byte_and_of_10_megabytes_are_kept, owner_may_be_any_text,
            owners_with_colons_do_not_mix, one_of_many_concurrent_cas_wins,
        );
    };
    (@rules $module:ident, $subject:ident: $($rule:ident,)*) => {
        mod $module {
            $crate::conformance_suite!(@tests $subject: $($rule,)*);
        }
    };
    (@tests $subject:ident: $($rule:ident,)*) => {
        $(
            #[tokio::test]
            async fn $rule() {
                $crate::conformance::rules::$rule::<super::$subject>().await;
            }
        )*
    };
}
