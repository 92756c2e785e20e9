//! The permissions that `docs/checkpoints.md` names are enough for all calls, and none of them is too many.
#![cfg(all(feature = "redis-tests", feature = "graph-flow", feature = "adk"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::error::Error;
use std::time::Duration;

use adk_graph::checkpoint::{Checkpointer, RetentionPolicy};
use adk_graph::state::{Checkpoint, State};
use futures_util::StreamExt as _;
use graph_flow::{Session, SessionStorage};
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_checkpoint::graph_flow::RedisSessionStorage;
use pmcptask_checkpoint::pmcptask_client::Lease;
use pmcptask_checkpoint::{Checkpoints, NewCheckpoint, RedisCheckpoints};
use pmcptask_tests::{Cluster, OK, Server};
use tokio::time::timeout;

/// What is needed to follow a thread without polling.
const OF_CHANGES: [&str; 2] = ["+client|tracking", "+client|caching"];

type Outcome = Result<(), Box<dyn Error>>;

const PAGE: &str = include_str!("../../docs/checkpoints.md");
const USER: &str = "user agents on >agents-secret ";
const HOUR: Duration = Duration::from_hours(1);

/// The rules of the page's user, and the password.
fn rules() -> Vec<&'static str> {
    let line = PAGE.lines().find_map(|line| line.strip_prefix(USER)).expect("the page has the user");
    line.split(' ').collect()
}

fn allow(servers: &[&Server], rules: &[&str]) {
    for server in servers {
        let user = ["ACL", "SETUSER", "agents", "reset", "on", ">agents-secret"];
        assert_eq!(server.wire().call(&[&user, rules].concat()), OK);
    }
}

fn url_of_user(url: &str) -> String {
    url.replacen("://", "://agents:agents-secret@", 1)
}

/// What a saver is used for, beside its own calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Also {
    Nothing,
    Refresh,
    Leases,
}

async fn use_all(url: &str) -> Outcome {
    for also in [Also::Refresh, Also::Leases] {
        use_checkpoints(url, also).await?;
        use_checkpointer(url, also).await?;
    }
    let named = RedisCheckpoints::builder(url).client(|client| client.client_name("agents"));
    named.connect().await?.health().await?;
    follow(url).await?;
    use_storage(url, Also::Refresh).await
}

async fn use_checkpoints(url: &str, also: Also) -> Outcome {
    let builder = RedisCheckpoints::builder(url).default_ttl(HOUR).refresh_on_read(also == Also::Refresh);
    let checkpoints = builder.connect().await?;
    checkpoints.health().await?;
    let checkpoint = NewCheckpoint::new("id", serde_json::json!({}));
    let version = checkpoints.save("thread", &checkpoint).await?;
    checkpoints.compare_and_swap("thread", &checkpoint, version).await?;
    checkpoints.load("thread", None).await?.ok_or("no checkpoint")?;
    checkpoints.load("thread", Some("id")).await?.ok_or("no checkpoint of the id")?;
    expect(1, checkpoints.list("thread", 10, None).await?.len())?;
    expect(1, checkpoints.stats("thread").await?.checkpoints)?;
    if also == Also::Leases {
        let lease = checkpoints.lease("thread", HOUR).await?.ok_or("no lease")?;
        checkpoints.while_held(&lease).save("thread", &checkpoint).await?;
        use_up(lease).await?;
    }
    checkpoints.prune("thread", 1).await?;
    checkpoints.delete("thread", Some("id")).await?;
    checkpoints.delete("thread", None).await?;
    Ok(())
}

async fn follow(url: &str) -> Outcome {
    let checkpoints = RedisCheckpoints::builder(url).connect().await?;
    let mut changes = checkpoints.changes("thread").await?;
    checkpoints.save("thread", &NewCheckpoint::new("id", serde_json::json!({}))).await?;
    changes.next().await.ok_or("no change")??;
    Ok(())
}

async fn use_checkpointer(url: &str, also: Also) -> Outcome {
    let builder = RedisCheckpointer::builder(url).default_ttl(HOUR).refresh_on_read(also == Also::Refresh);
    let checkpointer = builder.connect().await?;
    checkpointer.check_health().await?;
    for step in 0..3 {
        checkpointer.save(&Checkpoint::new("thread", State::new(), step, Vec::new())).await?;
    }
    let latest = checkpointer.load("thread").await?.ok_or("no checkpoint")?;
    checkpointer.load_by_id(&latest.checkpoint_id).await?.ok_or("no checkpoint of the id")?;
    expect(3, checkpointer.list("thread").await?.len())?;
    expect(2, checkpointer.prune("thread", &RetentionPolicy::keep_last(1)).await?)?;
    if also == Also::Leases {
        let lease = checkpointer.lease("thread", HOUR).await?.ok_or("no lease")?;
        checkpointer.while_held(&lease).save(&latest).await?;
        use_up(lease).await?;
    }
    Ok(checkpointer.delete("thread").await?)
}

async fn use_up(mut lease: Lease) -> Outcome {
    lease.renew().await?;
    if lease.release().await? { Ok(()) } else { Err("the lease was lost".into()) }
}

async fn use_storage(url: &str, also: Also) -> Outcome {
    let builder = RedisSessionStorage::builder(url).default_ttl(HOUR).refresh_on_read(also == Also::Refresh);
    let storage = builder.connect().await?;
    storage.check_health().await?;
    storage.save(Session::new_from_task("session".to_owned(), "start")).await?;
    storage.save(storage.get("session").await?.ok_or("no session")?).await?;
    Ok(storage.delete("session").await?)
}

fn expect(expected: usize, got: usize) -> Outcome {
    if got == expected { Ok(()) } else { Err(format!("expected {expected}, got {got}").into()) }
}

/// Uses a saver with all rules, and then without one of them at a time.
async fn assert_needed(server: &Server, rules: &[&str], uses: impl AsyncFn(&str) -> Outcome) {
    let url = url_of_user(&server.url());
    let uses = async || {
        // What a refused use has left would make the next one fail, too.
        assert_eq!(server.wire().call(&["FLUSHALL"]), OK);
        uses(&url).await
    };
    allow(&[server], rules);
    uses().await.unwrap();
    for without in rules.iter().filter(|rule| rule.starts_with('+')) {
        allow(&[server], &rules.iter().copied().filter(|rule| rule != without).collect::<Vec<_>>());
        assert!(uses().await.is_err(), "{without} is not needed");
    }
}

#[tokio::test]
async fn named_permissions_are_enough_and_each_is_needed() {
    let server = Server::start();
    // A cluster needs some of these, and a name one. Without the others, who follows a thread polls.
    let spare = ["+cluster|slots", "+asking", "+client|setname"];
    let spare = [&spare[..], &OF_CHANGES].concat();
    let needed: Vec<_> = rules().into_iter().filter(|rule| !spare.contains(rule)).collect();
    assert_needed(&server, &needed, async |url: &str| {
        use_checkpoints(url, Also::Refresh).await?;
        use_checkpointer(url, Also::Leases).await?;
        use_storage(url, Also::Refresh).await
    })
    .await;
    let cluster = Cluster::start(3, 0);
    let nodes: Vec<_> = cluster.servers.iter().collect();
    allow(&nodes, &rules());
    use_all(&url_of_user(&cluster.url())).await.unwrap();
}

/// The rules of the page's table that these uses need, and their keys.
fn rules_for(uses: &[&str]) -> Vec<&'static str> {
    let mut rules = vec!["~checkpoints:*", "~sessions:*"];
    for row in PAGE.lines().filter(|line| line.starts_with("| `+")) {
        let (commands, needed_for) = row.trim_matches('|').split_once('|').unwrap();
        if needed_for.split([',', ';']).any(|one| uses.contains(&one.trim().trim_matches('`'))) {
            rules.extend(commands.trim().trim_matches('`').split(' '));
        }
    }
    rules.sort_unstable();
    rules.dedup();
    rules
}

#[tokio::test]
async fn each_row_of_the_table_names_what_its_use_needs_and_nothing_else() {
    let server = Server::start();
    for (also, row) in [(Also::Nothing, "all"), (Also::Refresh, "refresh_on_read"), (Also::Leases, "leases")]
    {
        let rules = rules_for(&["all", "adk-graph", row]);
        assert_needed(&server, &rules, async |url: &str| use_checkpointer(url, also).await).await;
        let rules = rules_for(&["all", "RedisCheckpoints", row]);
        assert_needed(&server, &rules, async |url: &str| use_checkpoints(url, also).await).await;
        if also != Also::Leases {
            let rules = rules_for(&["all", "graph-flow", row]);
            assert_needed(&server, &rules, async |url: &str| use_storage(url, also).await).await;
        }
    }
}

#[tokio::test]
async fn who_follows_a_thread_polls_without_any_of_the_permissions_for_changes_and_not_with_all() {
    let server = Server::start();
    assert!(OF_CHANGES.iter().all(|rule| rules().contains(rule)));
    let rules = [&rules_for(&["all", "RedisCheckpoints"])[..], &OF_CHANGES].concat();
    let polls = async |rules: &[&str]| {
        allow(&[&server], rules);
        let checkpoints = RedisCheckpoints::builder(&url_of_user(&server.url())).connect().await.unwrap();
        let mut changes = checkpoints.changes("thread").await.unwrap();
        // The first look.
        assert!(timeout(Duration::from_secs(2), changes.next()).await.is_err());
        let before = server.calls_of("pmcptask.list");
        assert!(timeout(Duration::from_millis(1_500), changes.next()).await.is_err());
        server.calls_of("pmcptask.list") - before
    };
    assert_eq!(polls(&rules).await, 0);
    for without in OF_CHANGES {
        let rules: Vec<_> = rules.iter().copied().filter(|rule| *rule != without).collect();
        assert!(polls(&rules).await > 0, "{without}");
    }
}
