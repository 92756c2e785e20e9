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
use pmcptask_checkpoint::{Checkpoints, NewCheckpoint, RedisCheckpoints};
use pmcptask_tests::{Cluster, OK, Server};

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

async fn use_all(url: &str) -> Outcome {
    use_checkpoints(url).await?;
    use_checkpointer(url).await?;
    use_storage(url, true).await
}

async fn use_checkpoints(url: &str) -> Outcome {
    let builder = RedisCheckpoints::builder(url).default_ttl(HOUR).refresh_on_read(true);
    let checkpoints = builder.connect().await?;
    checkpoints.health().await?;
    let checkpoint = NewCheckpoint::new("id", serde_json::json!({}));
    let version = checkpoints.save("thread", &checkpoint).await?;
    checkpoints.compare_and_swap("thread", &checkpoint, version).await?;
    checkpoints.load("thread", None).await?.ok_or("no checkpoint")?;
    checkpoints.load("thread", Some("id")).await?.ok_or("no checkpoint of the id")?;
    expect(1, checkpoints.list("thread", 10, None).await?.len())?;
    expect(1, checkpoints.stats("thread").await?.checkpoints)?;
    let mut changes = checkpoints.changes("thread").await?;
    checkpoints.save("thread", &NewCheckpoint::new("next", serde_json::json!({}))).await?;
    changes.next().await.ok_or("no change")??;
    checkpoints.prune("thread", 1).await?;
    checkpoints.delete("thread", Some("next")).await?;
    checkpoints.delete("thread", None).await?;
    Ok(())
}

async fn use_checkpointer(url: &str) -> Outcome {
    let builder = RedisCheckpointer::builder(url).default_ttl(HOUR).refresh_on_read(true);
    let checkpointer = builder.client(|client| client.client_name("agents")).connect().await?;
    checkpointer.check_health().await?;
    for step in 0..3 {
        checkpointer.save(&Checkpoint::new("thread", State::new(), step, Vec::new())).await?;
    }
    let latest = checkpointer.load("thread").await?.ok_or("no checkpoint")?;
    checkpointer.load_by_id(&latest.checkpoint_id).await?.ok_or("no checkpoint of the id")?;
    expect(3, checkpointer.list("thread").await?.len())?;
    expect(2, checkpointer.prune("thread", &RetentionPolicy::keep_last(1)).await?)?;
    let mut lease = checkpointer.lease("thread", HOUR).await?.ok_or("no lease")?;
    lease.renew().await?;
    checkpointer.while_held(&lease).save(&latest).await?;
    lease.release().await?;
    Ok(checkpointer.delete("thread").await?)
}

async fn use_storage(url: &str, refreshes: bool) -> Outcome {
    let builder = RedisSessionStorage::builder(url).default_ttl(HOUR).refresh_on_read(refreshes);
    let storage = builder.connect().await?;
    storage.check_health().await?;
    storage.save(Session::new_from_task("session".to_owned(), "start")).await?;
    storage.save(storage.get("session").await?.ok_or("no session")?).await?;
    Ok(storage.delete("session").await?)
}

fn expect(expected: usize, got: usize) -> Outcome {
    if got == expected { Ok(()) } else { Err(format!("expected {expected}, got {got}").into()) }
}

/// Runs all calls with all rules, and then without one of them at a time, except for `spare`.
async fn assert_needed(servers: &[&Server], url: &str, spare: &[&str]) {
    allow(servers, &rules());
    use_all(&url_of_user(url)).await.unwrap();
    for without in rules().into_iter().filter(|rule| rule.starts_with('+') && !spare.contains(rule)) {
        allow(servers, &rules().into_iter().filter(|rule| *rule != without).collect::<Vec<_>>());
        assert!(use_all(&url_of_user(url)).await.is_err(), "{without} is not needed");
    }
}

#[tokio::test]
async fn named_permissions_are_enough_and_each_is_needed() {
    let server = Server::start();
    // Of these, some are for a cluster only, and without others the client asks more often.
    let spare =
        ["+cluster|slots", "+asking", "+client|setname", "+client|tracking", "+client|caching", "+pttl"];
    assert_needed(&[&server], &server.url(), &spare).await;
    let cluster = Cluster::start(3, 0);
    let nodes: Vec<_> = cluster.servers.iter().collect();
    allow(&nodes, &rules());
    use_all(&url_of_user(&cluster.url())).await.unwrap();
}

#[tokio::test]
async fn sessions_need_the_permissions_of_all_and_their_own() {
    let server = Server::start();
    let commands = |of: &str| {
        let row = PAGE.lines().find(|line| line.starts_with("| `+") && line.ends_with(of)).expect(of);
        row.split('`').nth(1).unwrap().split(' ').collect::<Vec<_>>()
    };
    let needed = [vec!["~sessions:*"], commands("| all |"), commands("| `graph-flow` |")].concat();
    allow(&[&server], &needed);
    use_storage(&url_of_user(&server.url()), false).await.unwrap();
}
