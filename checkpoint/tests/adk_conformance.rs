//! What each checkpointer does, adk-graph's own and ours. Where they differ, [`Subject`] says so.
#![cfg(all(feature = "adk", feature = "redis-tests"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use adk_graph::checkpoint::{Checkpointer, MemoryCheckpointer, RetentionPolicy, SqliteCheckpointer};
use adk_graph::state::{Checkpoint, State};
use chrono::Utc;
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_tests::{Cluster, Server};
use serde_json::json;

use crate::support::{all_of, all_of_each, checkpoint, named, saver, step, steps};

const HOUR: Duration = Duration::from_hours(1);

/// A checkpointer without checkpoints, and where it differs from others.
struct Subject {
    saver: Box<dyn Checkpointer>,
    /// What becomes of two checkpoints if the second one is created before the first one.
    of_older: Two,
    /// What becomes of two checkpoints that are created at the same time.
    of_equal: Two,
    /// What becomes of a checkpoint that is saved again.
    saved_again: Again,
    /// What the saver needs to live.
    _server: Box<dyn Any>,
}

#[derive(Debug, PartialEq)]
struct Two {
    listed: [usize; 2],
    loaded: usize,
    /// By `keep_last(1)`.
    kept: usize,
}

#[derive(Debug, PartialEq)]
enum Again {
    /// It is there twice.
    Added,
    Refused,
    /// It takes the place of the first one.
    Replaced,
}

/// Lists and loads by the order of saving, but prunes by the time of creation. Of equal times, the first one is kept.
async fn memory() -> Subject {
    Subject {
        saver: Box::new(MemoryCheckpointer::new()),
        of_older: Two { listed: [1, 2], loaded: 2, kept: 1 },
        of_equal: Two { listed: [1, 2], loaded: 2, kept: 1 },
        saved_again: Again::Added,
        _server: Box::new(()),
    }
}

/// Goes by the time of creation. Of equal times, it loads the first one and keeps the second one.
async fn sqlite() -> Subject {
    Subject {
        saver: Box::new(SqliteCheckpointer::in_memory().await.unwrap()),
        of_older: Two { listed: [2, 1], loaded: 1, kept: 1 },
        of_equal: Two { listed: [2, 1], loaded: 1, kept: 2 },
        saved_again: Again::Refused,
        _server: Box::new(()),
    }
}

/// Goes by the order of saving.
fn ours(saver: RedisCheckpointer, server: impl Any) -> Subject {
    Subject {
        saver: Box::new(saver),
        of_older: Two { listed: [1, 2], loaded: 2, kept: 2 },
        of_equal: Two { listed: [1, 2], loaded: 2, kept: 2 },
        saved_again: Again::Replaced,
        _server: Box::new(server),
    }
}

async fn one_server() -> Subject {
    let server = Server::start();
    ours(saver(&server).await, server)
}

async fn cluster() -> Subject {
    // Tests share the cluster.
    static TESTS: AtomicUsize = AtomicUsize::new(0);
    let prefix = format!("test-{}", TESTS.fetch_add(1, Ordering::Relaxed));
    let cluster = Cluster::shared();
    ours(RedisCheckpointer::builder(&cluster.url()).prefix(prefix).connect().await.unwrap(), cluster)
}

/// A checkpoint that was created an hour ago for each number of hours.
fn hours_ago(hours: u32, step: usize) -> Checkpoint {
    Checkpoint { created_at: Utc::now() - HOUR * hours, ..named("t", &format!("{step}"), step) }
}

async fn save(subject: &Subject, checkpoints: &[Checkpoint]) {
    for checkpoint in checkpoints {
        assert_eq!(subject.saver.save(checkpoint).await.unwrap(), checkpoint.checkpoint_id);
    }
}

async fn load_returns_the_last_one_and_list_all_oldest_first(subject: Subject) {
    let saved: Vec<_> = (0..3).map(|step| checkpoint("t", step)).collect();
    for (number, checkpoint) in saved.iter().enumerate() {
        save(&subject, std::slice::from_ref(checkpoint)).await;
        assert_eq!(step(subject.saver.load("t").await), Some(number));
    }
    assert_eq!(all_of_each(&subject.saver.list("t").await.unwrap()), all_of_each(&saved));
}

async fn load_by_id_finds_each_one_without_its_thread(subject: Subject) {
    let saved: Vec<_> = (0..6).map(|step| checkpoint(["a", "b"][step % 2], step)).collect();
    save(&subject, &saved).await;
    for checkpoint in &saved {
        let found = subject.saver.load_by_id(&checkpoint.checkpoint_id).await.unwrap().unwrap();
        assert_eq!(all_of(&found), all_of(checkpoint));
    }
}

async fn unknown_threads_and_ids_are_none_and_empty(subject: Subject) {
    save(&subject, &[named("t", "id", 0)]).await;
    for unknown in ["", "u", "id", "T", "t:", "*"] {
        assert!(subject.saver.load(unknown).await.unwrap().is_none(), "{unknown}");
        assert!(subject.saver.list(unknown).await.unwrap().is_empty(), "{unknown}");
        assert_eq!(subject.saver.prune(unknown, &RetentionPolicy::keep_last(1)).await.unwrap(), 0);
        subject.saver.delete(unknown).await.unwrap();
    }
    for unknown in ["", "t", "ID", "id:", "*"] {
        assert!(subject.saver.load_by_id(unknown).await.unwrap().is_none(), "{unknown}");
    }
    assert_eq!(step(subject.saver.load("t").await), Some(0));
}

async fn every_field_is_read_back(subject: Subject) {
    let value = json!({ "nested": [null, true, -1.5, 9_007_199_254_740_993_u64, "text", { "": {} }] });
    let full = Checkpoint {
        thread_id: "t".to_owned(),
        checkpoint_id: "id".to_owned(),
        state: State::from([("messages".to_owned(), value.clone()), (String::new(), json!(null))]),
        step: 4_294_967_296,
        pending_nodes: vec!["b".to_owned(), "a".to_owned()],
        metadata: HashMap::from([("source".to_owned(), value.clone())]),
        created_at: chrono::DateTime::from_timestamp(1_700_000_000, 123_456_789).unwrap(),
        cleared_interrupt: Some("gate".to_owned()),
        attempts: HashMap::from([("b".to_owned(), u32::MAX)]),
        child_ledger: HashMap::from([("a/b".to_owned(), value)]),
    };
    let empty = Checkpoint { created_at: Utc::now(), ..Checkpoint::new("t", State::new(), 0, Vec::new()) };
    for checkpoint in [full, empty] {
        save(&subject, std::slice::from_ref(&checkpoint)).await;
        let expected = all_of(&checkpoint);
        assert_eq!(all_of(&subject.saver.load("t").await.unwrap().unwrap()), expected);
        assert_eq!(
            all_of(&subject.saver.load_by_id(&checkpoint.checkpoint_id).await.unwrap().unwrap()),
            expected
        );
        assert_eq!(all_of(subject.saver.list("t").await.unwrap().last().unwrap()), expected);
    }
}

async fn long_states_and_all_characters_are_read_back(subject: Subject) {
    let characters: String = (0..0x11_0000).step_by(37).filter_map(char::from_u32).collect();
    let state =
        State::from([("text".to_owned(), json!(characters.repeat(50))), (characters, json!("\0\u{1f600}"))]);
    let long = Checkpoint::new("t", state, 0, Vec::new());
    save(&subject, std::slice::from_ref(&long)).await;
    assert_eq!(all_of(&subject.saver.load("t").await.unwrap().unwrap()), all_of(&long));
}

async fn delete_removes_its_thread_only(subject: Subject) {
    let saved: Vec<_> = (0..6).map(|step| checkpoint(["a", "b"][step % 2], step)).collect();
    save(&subject, &saved).await;
    subject.saver.delete("a").await.unwrap();
    assert!(subject.saver.load("a").await.unwrap().is_none());
    assert!(subject.saver.list("a").await.unwrap().is_empty());
    assert!(subject.saver.load_by_id(&saved[0].checkpoint_id).await.unwrap().is_none());
    assert_eq!(steps(&subject.saver.list("b").await.unwrap()), [1, 3, 5]);
    assert_eq!(step(subject.saver.load_by_id(&saved[1].checkpoint_id).await), Some(1));
    save(&subject, &saved[..1]).await;
    assert_eq!(steps(&subject.saver.list("a").await.unwrap()), [0]);
}

async fn prune_keeps_what_its_policy_says_and_always_the_last_one(subject: Subject) {
    // Created 5, 4, … 1 hours ago.
    let saved: Vec<_> = (0..5_u32).map(|number| hours_ago(5 - number, number as usize)).collect();
    let half_past_two = HOUR * 5 / 2;
    let policies: [(RetentionPolicy, &[usize]); 9] = [
        (RetentionPolicy::default(), &[0, 1, 2, 3, 4]),
        (RetentionPolicy::keep_last(9), &[0, 1, 2, 3, 4]),
        (RetentionPolicy::keep_last(2), &[3, 4]),
        (RetentionPolicy { max_per_thread: Some(0), max_age: None }, &[4]),
        (RetentionPolicy::max_age(half_past_two), &[3, 4]),
        (RetentionPolicy::max_age(Duration::ZERO), &[4]),
        (RetentionPolicy::max_age(Duration::MAX), &[0, 1, 2, 3, 4]),
        (RetentionPolicy::keep_last(3).with_max_age(half_past_two), &[3, 4]),
        (RetentionPolicy::keep_last(1).with_max_age(half_past_two), &[4]),
    ];
    let other = checkpoint("other", 7);
    save(&subject, &[other]).await;
    for (policy, kept) in policies {
        save(&subject, &saved).await;
        assert_eq!(subject.saver.prune("t", &policy).await.unwrap(), saved.len() - kept.len(), "{policy:?}");
        assert_eq!(steps(&subject.saver.list("t").await.unwrap()), kept, "{policy:?}");
        assert_eq!(subject.saver.prune("t", &policy).await.unwrap(), 0, "{policy:?}");
        for checkpoint in &saved {
            let found = step(subject.saver.load_by_id(&checkpoint.checkpoint_id).await);
            assert_eq!(found, Some(checkpoint.step).filter(|step| kept.contains(step)), "{policy:?}");
        }
        subject.saver.delete("t").await.unwrap();
    }
    assert_eq!(steps(&subject.saver.list("other").await.unwrap()), [7]);
}

async fn checkpoints_created_out_of_order_are_where_the_subject_says(subject: Subject) {
    save(&subject, &[hours_ago(1, 1), hours_ago(2, 2)]).await;
    assert_eq!(two(&subject).await, subject.of_older);
}

async fn checkpoints_created_at_the_same_time_are_where_the_subject_says(subject: Subject) {
    let first = hours_ago(1, 1);
    let second = Checkpoint { created_at: first.created_at, ..hours_ago(1, 2) };
    save(&subject, &[first, second]).await;
    assert_eq!(two(&subject).await, subject.of_equal);
}

async fn two(subject: &Subject) -> Two {
    let listed = steps(&subject.saver.list("t").await.unwrap()).try_into().unwrap();
    let loaded = step(subject.saver.load("t").await).unwrap();
    assert_eq!(subject.saver.prune("t", &RetentionPolicy::keep_last(1)).await.unwrap(), 1);
    Two { listed, loaded, kept: step(subject.saver.load("t").await).unwrap() }
}

async fn checkpoint_saved_again_is_where_the_subject_says(subject: Subject) {
    let first = hours_ago(2, 1);
    save(&subject, &[first.clone(), hours_ago(1, 2)]).await;
    let again = subject.saver.save(&Checkpoint { step: 3, ..first }).await;
    let outcome = match (again, steps(&subject.saver.list("t").await.unwrap()).as_slice()) {
        (Ok(_), [1, 2, 3]) => Again::Added,
        (Ok(_), [3, 2]) => Again::Replaced,
        (Err(_), [1, 2]) => Again::Refused,
        other => panic!("{other:?}"),
    };
    assert_eq!(outcome, subject.saved_again);
}

/// Makes one test of each promise, for one subject.
macro_rules! each {
    ($subject:ident: $($promise:ident,)*) => {
        mod $subject {
            $(
                #[tokio::test]
                async fn $promise() {
                    super::$promise(super::$subject().await).await;
                }
            )*
        }
    };
}

macro_rules! each_for_each {
    ($($subject:ident)*) => {
        $(each! { $subject:
            load_returns_the_last_one_and_list_all_oldest_first,
            load_by_id_finds_each_one_without_its_thread,
            unknown_threads_and_ids_are_none_and_empty,
            every_field_is_read_back,
            long_states_and_all_characters_are_read_back,
            delete_removes_its_thread_only,
            prune_keeps_what_its_policy_says_and_always_the_last_one,
            checkpoints_created_out_of_order_are_where_the_subject_says,
            checkpoints_created_at_the_same_time_are_where_the_subject_says,
            checkpoint_saved_again_is_where_the_subject_says,
        })*
    };
}

each_for_each! { memory sqlite one_server cluster }
