//! What only `RedisCheckpointer` promises: the order, what is left in the server, lifetimes, leases, what the server is
//! asked, and records that are no checkpoints.
#![cfg(all(feature = "adk", feature = "redis-tests"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use adk_graph::checkpoint::{Checkpointer as _, RetentionPolicy};
use adk_graph::error::GraphError;
use adk_graph::state::{Checkpoint, State};
use chrono::Utc;
use pmcp_tasks::store::backend::StorageBackend as _;
use pmcptask_checkpoint::Compression;
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_checkpoint::pmcptask_client::{RedisBackend, WriteTerms};
use pmcptask_tests::{Cluster, OK, Server, ServerOptions, holds_within, integer};
use serde_json::json;

use crate::support::{all_of, checkpoint, keys, named, of_noise, saver, step, steps};

const MINUTE: Duration = Duration::from_mins(1);
const LIMIT: usize = 50_000;
/// Threads and ids that could be taken for parts of keys.
const ODD: [&str; 14] = [
    "",
    "a",
    "a:b",
    ":",
    "{a}",
    "{",
    "%",
    "%3A",
    "%253A",
    "a\nb\r\n",
    ":tasks:",
    "x:idx:",
    "by-id:a",
    "-1-é\0 |",
];

fn text_of<T>(result: Result<T, GraphError>) -> String {
    match result {
        Err(GraphError::CheckpointError(text)) => text,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("expected an error, got none"),
    }
}

/// The time that each key has left, in ms; -1 is for ever.
fn lifetimes(server: &Server) -> BTreeMap<String, i64> {
    let connection = &mut server.connection();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(connection).unwrap();
    let left = |key: String| {
        let left = redis::cmd("PTTL").arg(&key).query(connection).unwrap();
        (key, left)
    };
    keys.into_iter().map(left).collect()
}

fn pointer(checkpoint: &Checkpoint) -> String {
    let micros = checkpoint.created_at.timestamp_micros();
    format!("checkpoints:by-id:tasks:{}:{micros}-{}", checkpoint.checkpoint_id, checkpoint.thread_id)
}

fn record(checkpoint: &Checkpoint) -> String {
    let micros = checkpoint.created_at.timestamp_micros();
    format!("checkpoints:tasks:{}:{micros}-{}", checkpoint.thread_id, checkpoint.checkpoint_id)
}

/// The commands that the server carries out meanwhile, as `MONITOR` shows them.
async fn commands_of<T>(server: &Server, calls: impl Future<Output = T>) -> (T, Vec<String>) {
    let mut monitor = server.wire();
    assert_eq!(monitor.call(&["MONITOR"]), OK);
    let outcome = calls.await;
    server.wire().call(&["ECHO", "that was all"]);
    let mut commands = Vec::new();
    loop {
        let line = monitor.receive().unwrap();
        if line.contains("that was all") {
            return (outcome, commands);
        }
        commands.push(line.split_once("] ").unwrap().1.trim_end().to_owned());
    }
}

/// A checkpoint that says that it was created before those of earlier steps, so that no order but that of saving is right.
fn created_before(step: usize) -> Checkpoint {
    let hours = u32::try_from(step).unwrap();
    Checkpoint { created_at: Utc::now() - 60 * MINUTE * hours, ..checkpoint("t", step) }
}

#[tokio::test]
async fn a_thousand_saves_in_a_row_are_listed_in_their_order() {
    let server = Server::start();
    let saver = saver(&server).await;
    for step in 0..1_000 {
        saver.save(&created_before(step)).await.unwrap();
    }
    assert!(steps(&saver.list("t").await.unwrap()).into_iter().eq(0..1_000));
    assert_eq!(step(saver.load("t").await), Some(999));
}

#[tokio::test]
async fn saves_of_two_processes_are_listed_in_their_order() {
    let server = Server::start();
    let savers = [saver(&server).await, saver(&server).await];
    for step in 0..500 {
        savers[step % 2].save(&created_before(step)).await.unwrap();
        assert_eq!(support::step(savers[1 - step % 2].load("t").await), Some(step));
    }
    assert!(steps(&savers[0].list("t").await.unwrap()).into_iter().eq(0..500));
}

#[tokio::test]
async fn concurrent_saves_over_several_connections_are_all_stored_once() {
    let server = Server::start();
    let saver = RedisCheckpointer::builder(&server.url()).connections(3).connect().await.unwrap();
    let saves = (0..300).map(|step| {
        let saver = saver.clone();
        tokio::spawn(async move { saver.save(&checkpoint("t", step)).await.unwrap() })
    });
    for save in saves.collect::<Vec<_>>() {
        save.await.unwrap();
    }
    let mut steps = steps(&saver.list("t").await.unwrap());
    steps.sort_unstable();
    assert!(steps.into_iter().eq(0..300));
    saver.delete("t").await.unwrap();
    assert_eq!(keys(&server), 0);
}

fn keys_of_all(servers: &[Server]) -> i64 {
    servers.iter().map(keys).sum()
}

/// Every thread has every id, in turn.
async fn ids_and_threads_may_hold_anything(saver: RedisCheckpointer, servers: &[Server]) {
    for thread in ODD {
        for (number, id) in ODD.into_iter().enumerate() {
            let saved = named(thread, id, number);
            saver.save(&saved).await.unwrap();
            assert_eq!(all_of(&saver.load(thread).await.unwrap().unwrap()), all_of(&saved));
            assert_eq!(all_of(&saver.load_by_id(id).await.unwrap().unwrap()), all_of(&saved));
        }
    }
    for (number, thread) in ODD.into_iter().enumerate() {
        assert!(steps(&saver.list(thread).await.unwrap()).into_iter().eq(0..ODD.len()), "{thread:?}");
        assert_eq!(saver.prune(thread, &RetentionPolicy::keep_last(3)).await.unwrap(), ODD.len() - 3);
        assert_eq!(steps(&saver.list(thread).await.unwrap()), [11, 12, 13], "{thread:?}");
        saver.delete(thread).await.unwrap();
        assert!(saver.list(thread).await.unwrap().is_empty(), "{thread:?}");
        if let Some(untouched) = ODD.get(number + 1) {
            assert_eq!(saver.list(untouched).await.unwrap().len(), ODD.len(), "{untouched:?}");
        }
    }
    assert_eq!(keys_of_all(servers), 0);
}

#[tokio::test]
async fn ids_and_threads_may_hold_anything_on_one_server() {
    let server = Server::start();
    ids_and_threads_may_hold_anything(saver(&server).await, &[server]).await;
}

#[tokio::test]
async fn ids_and_threads_may_hold_anything_in_a_cluster() {
    let cluster = Cluster::start(3, 0);
    let saver = RedisCheckpointer::new(&cluster.url()).await.unwrap();
    ids_and_threads_may_hold_anything(saver, &cluster.servers).await;
}

#[tokio::test]
async fn a_checkpoint_has_three_keys_and_a_thread_has_one() {
    let server = Server::start();
    let saver = saver(&server).await;
    for step in 0..5 {
        saver.save(&checkpoint("t", step)).await.unwrap();
        assert_eq!(keys(&server), 1 + 3 * (1 + i64::try_from(step).unwrap()));
    }
    saver.prune("t", &RetentionPolicy::keep_last(2)).await.unwrap();
    assert_eq!(keys(&server), 7);
    saver.delete("t").await.unwrap();
    assert_eq!(keys(&server), 0);
}

#[tokio::test]
async fn two_thousand_checkpoints_are_pruned_and_deleted_without_leftovers() {
    let server = Server::start();
    let saver = saver(&server).await;
    for step in 0..2_000 {
        saver.save(&checkpoint("t", step)).await.unwrap();
    }
    assert_eq!(saver.prune("t", &RetentionPolicy::keep_last(1_200)).await.unwrap(), 800);
    assert_eq!(keys(&server), 3_601);
    assert!(steps(&saver.list("t").await.unwrap()).into_iter().eq(800..2_000));
    saver.delete("t").await.unwrap();
    assert_eq!(keys(&server), 0);
}

#[tokio::test]
async fn checkpoint_saved_again_replaces_the_first_one_and_keeps_its_place() {
    let server = Server::start();
    let saver = saver(&server).await;
    let first = checkpoint("t", 0);
    saver.save(&first).await.unwrap();
    saver.save(&checkpoint("t", 1)).await.unwrap();
    saver.save(&Checkpoint { step: 2, ..first.clone() }).await.unwrap();
    assert_eq!(steps(&saver.list("t").await.unwrap()), [2, 1]);
    assert_eq!(step(saver.load("t").await), Some(1));
    assert_eq!(step(saver.load_by_id(&first.checkpoint_id).await), Some(2));
    assert_eq!(keys(&server), 7);
}

#[tokio::test]
async fn of_threads_with_one_id_the_last_one_that_is_there_is_found() {
    let server = Server::start();
    let saver = saver(&server).await;
    for step in 0..25 {
        saver.save(&named(&step.to_string(), "id", step)).await.unwrap();
        assert_eq!(support::step(saver.load_by_id("id").await), Some(step));
    }
    saver.delete("3").await.unwrap();
    assert_eq!(step(saver.load_by_id("id").await), Some(24));
    for thread in (4..25).rev() {
        saver.delete(&thread.to_string()).await.unwrap();
        let left = if thread == 4 { 2 } else { thread - 1 };
        assert_eq!(step(saver.load_by_id("id").await), Some(left));
    }
    for thread in 0..3 {
        saver.delete(&thread.to_string()).await.unwrap();
    }
    assert_eq!(keys(&server), 0);
}

#[tokio::test]
async fn what_leads_to_no_checkpoint_hides_none() {
    let server = Server::start();
    let saver = saver(&server).await;
    // More than are asked for at once.
    for step in 0..25 {
        let saved = named(&step.to_string(), "id", step);
        saver.save(&saved).await.unwrap();
        if step > 0 {
            let index = format!("checkpoints:idx:{step}");
            assert_eq!(integer(&server.wire().call(&["PMCPTASK.DEL", &record(&saved), &index])), 1);
        }
    }
    assert_eq!(step(saver.load_by_id("id").await), Some(0));
}

#[tokio::test]
async fn everything_has_the_ttl_and_goes_with_it() {
    let server = Server::start();
    let builder = || RedisCheckpointer::builder(&server.url());
    let long = builder().default_ttl(MINUTE).connect().await.unwrap();
    for step in 0..3 {
        long.save(&checkpoint("long", step)).await.unwrap();
    }
    let left = lifetimes(&server);
    assert_eq!(left.len(), 10, "{left:?}");
    for (key, ms) in left.into_iter().filter(|(key, _)| !key.contains(":idx:")) {
        // The expiry is rounded up to a millisecond.
        assert!((50_000..=60_001).contains(&ms), "{key} {ms}");
    }
    long.delete("long").await.unwrap();

    let short = builder().default_ttl(Duration::from_millis(300)).connect().await.unwrap();
    for step in 0..3 {
        short.save(&checkpoint("short", step)).await.unwrap();
    }
    assert!(holds_within(MINUTE, || keys(&server) == 0), "{:?}", lifetimes(&server));
    assert!(short.load("short").await.unwrap().is_none());
    assert!(short.list("short").await.unwrap().is_empty());
}

#[tokio::test]
async fn checkpoint_and_what_makes_it_found_expire_in_the_same_millisecond() {
    let server = Server::start();
    let saver = RedisCheckpointer::builder(&server.url()).default_ttl(MINUTE).connect().await.unwrap();
    let ends =
        |key: String| -> i64 { redis::cmd("PEXPIRETIME").arg(key).query(&mut server.connection()).unwrap() };
    for step in 0..100 {
        let saved = checkpoint("thread", step);
        saver.save(&saved).await.unwrap();
        assert_eq!(ends(record(&saved)), ends(pointer(&saved)));
    }
}

#[tokio::test]
async fn checkpoint_that_too_few_replicas_have_is_saved_and_found_by_its_id() {
    let server = Server::start();
    let builder = || RedisCheckpointer::builder(&server.url());
    let waiting = builder().client(|client| client.wait_for_replicas(1, Duration::from_millis(10)));
    let waiting = waiting.connect().await.unwrap();
    let lease = builder().connect().await.unwrap().lease("thread", MINUTE).await.unwrap().unwrap();
    for (step, saver) in [waiting.clone(), waiting.while_held(&lease)].into_iter().enumerate() {
        let saved = checkpoint("thread", step);
        let text = text_of(saver.save(&saved).await);
        assert!(text.contains("0 of 1 replicas"), "{text}");
        assert!(saver.load_by_id(&saved.checkpoint_id).await.unwrap().is_some(), "{step}");
    }
}

#[tokio::test]
async fn without_a_ttl_nothing_expires() {
    let server = Server::start();
    saver(&server).await.save(&checkpoint("t", 0)).await.unwrap();
    let left = lifetimes(&server);
    assert!(left.len() == 4 && left.values().all(|ms| *ms == -1), "{left:?}");
}

#[tokio::test]
async fn read_refreshes_the_ttl_of_what_it_reads_and_of_nothing_else() {
    let server = Server::start();
    let builder = || RedisCheckpointer::builder(&server.url());
    let short = builder().default_ttl(MINUTE).connect().await.unwrap();
    let long = builder().default_ttl(60 * MINUTE).refresh_on_read(true).connect().await.unwrap();
    let without = builder().default_ttl(60 * MINUTE).connect().await.unwrap();
    let saved: Vec<_> = (0..3).map(|step| checkpoint("t", step)).collect();
    for checkpoint in &saved {
        short.save(checkpoint).await.unwrap();
    }
    short.save(&checkpoint("other", 9)).await.unwrap();
    let refreshed = || {
        let left = lifetimes(&server);
        assert!(left.values().all(|ms| *ms <= 3_600_001), "{left:?}");
        left.into_iter()
            .filter(|(key, ms)| *ms > 60_001 && !key.contains(":idx:"))
            .map(|(key, _)| key)
            .collect::<Vec<_>>()
    };
    let both = |checkpoints: &[&Checkpoint]| {
        let mut keys: Vec<_> = checkpoints.iter().flat_map(|one| [pointer(one), record(one)]).collect();
        keys.sort();
        keys
    };

    without.load("t").await.unwrap();
    without.load_by_id(&saved[0].checkpoint_id).await.unwrap();
    without.list("t").await.unwrap();
    assert_eq!(refreshed(), [""; 0]);
    long.load("t").await.unwrap();
    assert_eq!(refreshed(), both(&[&saved[2]]));
    long.load_by_id(&saved[0].checkpoint_id).await.unwrap();
    assert_eq!(refreshed(), both(&[&saved[0], &saved[2]]));
    long.list("t").await.unwrap();
    assert_eq!(refreshed(), both(&[&saved[0], &saved[1], &saved[2]]));
    // The next save has its own TTL again.
    short.save(&saved[1]).await.unwrap();
    assert_eq!(refreshed(), both(&[&saved[0], &saved[2]]));
}

/// Saves through a lease as long as the server has it.
async fn saves_fail_once_the_lease_has_ended(saver: RedisCheckpointer, servers: &[Server]) {
    let lease = saver.lease("t", MINUTE).await.unwrap().unwrap();
    assert!(saver.lease("t", MINUTE).await.unwrap().is_none());
    let of_this_run = saver.while_held(&lease);
    let kept = checkpoint("t", 0);
    of_this_run.save(&kept).await.unwrap();
    lease.release().await.unwrap();
    assert_eq!(keys_of_all(servers), 4);

    let late = checkpoint("t", 1);
    for checkpoint in [&late, &Checkpoint { step: 2, ..kept.clone() }] {
        let text = text_of(of_this_run.save(checkpoint).await);
        assert!(text.contains("NOTHELD"), "{text}");
    }
    assert_eq!(keys_of_all(servers), 4);
    assert_eq!(steps(&saver.list("t").await.unwrap()), [0]);
    assert_eq!(step(saver.load_by_id(&kept.checkpoint_id).await), Some(0));
    assert_eq!(step(saver.load_by_id(&late.checkpoint_id).await), None);

    let expiring = saver.lease("t", Duration::from_secs(2)).await.unwrap().unwrap();
    let next = loop {
        // The server gives it to nobody else before it has expired.
        if let Some(next) = saver.lease("t", MINUTE).await.unwrap() {
            break next;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    text_of(saver.while_held(&expiring).save(&late).await);
    assert_eq!(steps(&saver.list("t").await.unwrap()), [0]);
    saver.while_held(&next).save(&late).await.unwrap();
    assert_eq!(step(saver.load_by_id(&late.checkpoint_id).await), Some(1));
    next.release().await.unwrap();
    drop(expiring);
    saver.delete("t").await.unwrap();
    // The index entry of the lease that has expired goes by itself.
    assert!(holds_within(MINUTE, || keys_of_all(servers) == 0));
}

#[tokio::test]
async fn saves_fail_once_the_lease_has_ended_on_one_server() {
    let server = Server::start();
    saves_fail_once_the_lease_has_ended(saver(&server).await, &[server]).await;
}

#[tokio::test]
async fn saves_fail_once_the_lease_has_ended_in_a_cluster() {
    let cluster = Cluster::start(3, 0);
    let saver = RedisCheckpointer::new(&cluster.url()).await.unwrap();
    saves_fail_once_the_lease_has_ended(saver, &cluster.servers).await;
}

#[tokio::test]
async fn record_that_is_no_checkpoint_is_refused_by_name_and_left_out_of_lists() {
    let server = Server::start();
    let saver = saver(&server).await;
    let backend = RedisBackend::builder(server.url()).prefix("checkpoints").connect().await.unwrap();
    let long = of_noise("t", "long", 5_000);
    saver.save(&long).await.unwrap();
    let compressed = backend.list_by_prefix("t:").await.unwrap().remove(0).1.data;
    assert!(compressed.starts_with(b"\0zs1") && compressed.len() < 5_000);

    let damaged = compressed[..compressed.len() - 9].to_vec();
    let bomb = [b"\0zs1".as_slice(), &u64::MAX.to_le_bytes(), &compressed[12..]].concat();
    let foreign: [(&str, Vec<u8>); 6] = [
        ("1-garbage", b"SECRET\xff\0".to_vec()),
        ("2-empty", Vec::new()),
        ("3-json", br#"{"thread_id":"SECRET"}"#.to_vec()),
        ("4-damaged", damaged),
        ("5-bomb", bomb),
        ("no time", b"SECRET".to_vec()),
    ];
    for (number, (task_id, data)) in foreign.iter().enumerate() {
        backend.put_with(&format!("t:{task_id}"), data, &WriteTerms::new().newest()).await.unwrap();
        let text = text_of(saver.load("t").await);
        assert!(text.contains("\"t\"") && text.contains(task_id) && !text.contains("SECRET"), "{text}");
        saver.save(&checkpoint("t", number + 1)).await.unwrap();
        assert_eq!(step(saver.load("t").await), Some(number + 1));
        assert_eq!(saver.list("t").await.unwrap().len(), number + 2);
    }
    // The nth list left n records out.
    assert_eq!(saver.unreadable_records(), 1 + 2 + 3 + 4 + 5 + 6);

    let point = |id: &str, task_id: &str| {
        let keys = [format!("checkpoints:by-id:tasks:{id}:{task_id}"), format!("checkpoints:by-id:idx:{id}")];
        assert_eq!(integer(&server.wire().call(&["PMCPTASK.PUT", &keys[0], &keys[1], ""])), 1);
    };
    point("garbage", "1-t");
    let text = text_of(saver.load_by_id("garbage").await);
    assert!(text.contains("\"t\"") && text.contains("1-garbage"), "{text}");
    for foreign in ["t", "1-nowhere", "\u{fffd}"] {
        point("foreign", foreign);
        assert!(saver.load_by_id("foreign").await.unwrap().is_none(), "{foreign}");
    }
    server.wire().call(&["PMCPTASK.TRIM", "checkpoints:by-id:idx:foreign", "KEEP", "0"]);
    saver.delete("t").await.unwrap();
    assert_eq!(keys(&server), 0);
}

#[tokio::test]
async fn plain_and_compressed_records_live_side_by_side() {
    let server = Server::start();
    let settings = [
        Compression::Off,
        Compression::Zstd { level: 1, from_bytes: 0 },
        Compression::Zstd { level: 19, from_bytes: 100 },
        Compression::default(),
    ];
    let mut savers = Vec::new();
    for compression in settings {
        savers.push(
            RedisCheckpointer::builder(&server.url()).compression(compression).connect().await.unwrap(),
        );
    }
    let mut all = Vec::new();
    for (number, saver) in savers.iter().enumerate() {
        for length in [1, 2_000, 50_000] {
            let state = State::from([("text".to_owned(), json!("again ".repeat(length)))]);
            let saved = Checkpoint { state, ..checkpoint("t", number) };
            saver.save(&saved).await.unwrap();
            all.push(all_of(&saved));
        }
    }
    for saver in &savers {
        assert_eq!(support::all_of_each(&saver.list("t").await.unwrap()), all);
    }
    let records: Vec<String> = redis::cmd("KEYS").arg("*:tasks:*").query(&mut server.connection()).unwrap();
    let memory = |key: &String| integer(&server.wire().call(&["MEMORY", "USAGE", key, "SAMPLES", "0"]));
    assert_eq!(records.iter().filter(|key| memory(key) > 10_000).count(), 2);
}

#[tokio::test]
async fn checkpoint_beyond_the_servers_limit_is_refused_and_nothing_is_written() {
    let server = Server::start();
    let saver = saver(&server).await;
    let text = text_of(saver.save(&of_noise("t", "id", 64 * 1_024 * 1_024)).await);
    assert!(text.contains("expected at most 16777216 bytes (pmcptask.max-record-bytes)"), "{text}");
    assert_eq!(keys(&server), 0);
    assert!(saver.load_by_id("id").await.unwrap().is_none());
}

/// The servers take records up to [`LIMIT`] only.
async fn refused_save_takes_nothing_from_what_is_stored(url: &str, servers: &[Server]) {
    let saver = RedisCheckpointer::builder(url).compression(Compression::Off).connect().await.unwrap();
    let small = named("t", "id", 1);
    let state = of_noise("t", "id", 2 * LIMIT).state;
    text_of(saver.save(&Checkpoint { state: state.clone(), ..small.clone() }).await);
    assert_eq!(keys_of_all(servers), 0);
    saver.save(&small).await.unwrap();
    for refused in
        [Checkpoint { state: state.clone(), ..small.clone() }, Checkpoint { state, ..named("u", "id", 2) }]
    {
        text_of(saver.save(&refused).await);
        assert_eq!(keys_of_all(servers), 4);
        assert_eq!(
            step(saver.load_by_id("id").await),
            Some(1),
            "after a refused save to {}",
            refused.thread_id
        );
    }
}

#[tokio::test]
async fn refused_save_takes_nothing_from_what_is_stored_on_one_server() {
    let options = ServerOptions::default().set("pmcptask.max-record-bytes", &LIMIT.to_string());
    let server = Server::start_with(&options);
    refused_save_takes_nothing_from_what_is_stored(&server.url(), &[server]).await;
}

#[tokio::test]
async fn refused_save_takes_nothing_from_what_is_stored_in_a_cluster() {
    let options = Cluster::node_options().set("pmcptask.max-record-bytes", &LIMIT.to_string());
    let cluster = Cluster::start_with(&options, 3, 0);
    refused_save_takes_nothing_from_what_is_stored(&cluster.url(), &cluster.servers).await;
}

#[tokio::test]
async fn save_is_a_put_and_load_is_one_list_of_one_record() {
    let server = Server::start();
    let saver = saver(&server).await;
    for step in 0..3 {
        saver.save(&checkpoint("t", step)).await.unwrap();
    }
    let (loaded, commands) = commands_of(&server, saver.load("t")).await;
    assert_eq!(step(loaded), Some(2));
    assert_eq!(commands, [r#""PMCPTASK.LIST" "checkpoints:idx:t" "COUNT" "1" "REV""#]);

    let (_, commands) = commands_of(&server, saver.save(&checkpoint("t", 3))).await;
    let names: Vec<_> = commands.iter().filter_map(|command| command.split(' ').next()).collect();
    assert_eq!(names, [r#""PMCPTASK.PUT""#, r#""PMCPTASK.PUT""#]);
}

#[tokio::test]
async fn prune_and_delete_read_no_record() {
    let server = Server::start();
    let saver = saver(&server).await;
    for step in 0..20 {
        saver.save(&checkpoint("t", step)).await.unwrap();
    }
    let both = async {
        assert_eq!(saver.prune("t", &RetentionPolicy::keep_last(5)).await.unwrap(), 15);
        saver.delete("t").await.unwrap();
    };
    let ((), commands) = commands_of(&server, both).await;
    let count =
        |name: &str| commands.iter().filter(|command| command.starts_with(&format!("\"{name}\""))).count();
    assert_eq!(count("PMCPTASK.LIST"), 2);
    assert!(commands.iter().all(|one| !one.starts_with("\"PMCPTASK.LIST\"") || one.contains("\"NODATA\"")));
    // Each checkpoint, and what makes it found.
    assert_eq!(count("PMCPTASK.DEL"), 40);
    assert_eq!(commands.len(), 42, "{commands:?}");
}

#[tokio::test]
async fn list_of_250_is_three_calls() {
    let server = Server::start();
    let saver = saver(&server).await;
    for step in 0..250 {
        saver.save(&checkpoint("t", step)).await.unwrap();
    }
    let (listed, commands) = commands_of(&server, saver.list("t")).await;
    assert!(steps(&listed.unwrap()).into_iter().eq(0..250));
    assert_eq!(commands.len(), 3, "{commands:?}");
}
