//! Three primaries and three replicas under load, while slots move, a primary dies, and nodes join and leave.
//! Every acknowledged write stays, a client's CAS never conflicts with itself, and indexes and hashes agree.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::Duration;

use pmcp_tasks::store::backend::StorageBackend as _;
use pmcptask_client::{RedisBackend, RedisBackendBuilder};
use pmcptask_tests::conformance::Sample;
use pmcptask_tests::{A_WHILE, CLIENTS, Cluster, Load, Server, holds_within, now_ms, skipped};

/// One slot in sixteen.
const SLOTS: usize = 1_024;
/// Half of the slots of one of two nodes.
const HALF: usize = 4_096;

/// Writes count once a replica has them: without that, a failover may lose the last ones.
fn builder(cluster: &Cluster) -> RedisBackendBuilder {
    RedisBackend::builder(cluster.url()).wait_for_replicas(1, Duration::from_secs(1))
}

/// How long a call waits for a slot that is moving.
const CALL: Duration = Duration::from_secs(2);
/// How long a shard may have no primary, and then no replica that has caught up: several node timeouts.
const FAILOVER: Duration = Duration::from_secs(15);

/// Stops the load, shows the counts, and checks everything that is stored.
async fn end(what: &str, load: Load, cluster: &Cluster, longest_outage: Duration) {
    load.end(what, builder(cluster), longest_outage).await;
    cluster.assert_hashes_and_entries_agree();
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_key_by_key_lose_nothing() {
    let cluster = Cluster::start(3, 1);
    let load = Load::start(&builder(&cluster)).await;
    let [first, second, third] = [0, 1, 2].map(|number| &cluster.servers[number]);
    for (from, to) in [(first, second), (third, first)] {
        cluster.reshard(SLOTS, from, to);
    }
    // The second node gives slots to the third, which has too few.
    cluster.operate("rebalance", &["--cluster-threshold", "1"]);
    end("slots moved key by key", load, &cluster, CALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_that_is_half_moved_for_a_while_loses_nothing() {
    let cluster = Cluster::start(3, 1);
    let load = Load::start(&builder(&cluster)).await;
    let [first, second] = [0, 1].map(|number| &cluster.servers[number]);
    for slot in first.slots_of_keys("*:idx:*").iter().take(3) {
        first.start_moving(slot, second);
        // Half of an owner's keys; then no keys for a while; then all that are left, including new ones.
        let _ = first.migrate_up_to(2, slot, second);
        load.go_on_for(A_WHILE / 2).await;
        while first.migrate_up_to(100, slot, second) {}
        load.go_on_for(A_WHILE / 2).await;
        first.stop_moving(slot, second);
    }
    cluster.wait_until_settled();
    end("slots half moved", load, &cluster, CALL * 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_at_once_lose_nothing() {
    let cluster = Cluster::start(3, 1);
    let load = Load::start(&builder(&cluster)).await;
    let [first, second] = [0, 1].map(|number| &cluster.servers[number]);
    let moved = first.move_at_once(0..SLOTS, second);
    end("slots moved at once", load, &cluster, CALL).await;
    if !moved {
        skipped("slots_that_move_at_once_lose_nothing", "the server has no atomic slot migration");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_that_dies_loses_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start(3, 1);
    let load = Load::start(&builder(&cluster)).await;
    cluster.servers[0].kill();
    let promoted = || cluster.servers[3].is_primary();
    assert!(holds_within(Duration::from_secs(30), promoted), "{}", cluster.servers[3].nodes());
    // Reads go on. Writes to the shard with one node left time out waiting for a replica.
    load.go_on_for(CLIENTS).await;
    cluster.servers[0].restart();
    cluster.wait_until_settled();
    assert!(!cluster.servers[0].is_primary());
    end("a primary died", load, &cluster, FAILOVER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_by_hand_loses_nothing() {
    let cluster = Cluster::start(3, 1);
    let load = Load::start(&builder(&cluster)).await;
    for replica in [3, 4, 5] {
        assert_eq!(cluster.servers[replica].wire().call(&["CLUSTER", "FAILOVER"]), "+OK\r\n");
        assert!(holds_within(Duration::from_secs(30), || cluster.servers[replica].is_primary()));
    }
    cluster.wait_until_settled();
    end("replicas took over by hand", load, &cluster, CALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_joins_and_leaves_loses_nothing() {
    let mut cluster = Cluster::start(3, 1);
    let load = Load::start(&builder(&cluster)).await;
    for _ in 0..2 {
        let joining = Server::start_with(&Cluster::node_options());
        cluster.servers[0].meet(&joining);
        cluster.servers.push(joining);
    }
    let ids = [6, 7].map(|number| cluster.servers[number].node_id());
    let knows = |server: &Server| ids.iter().all(|id| server.nodes().contains(id));
    assert!(holds_within(Duration::from_secs(30), || cluster.servers.iter().all(knows)));
    // Without a replica, no write to the new primary would count.
    cluster.servers[7].replicate(&cluster.servers[6]);
    cluster.wait_until_settled();
    cluster.reshard(SLOTS, &cluster.servers[0], &cluster.servers[6]);
    load.go_on_for(A_WHILE).await;
    cluster.reshard(SLOTS, &cluster.servers[6], &cluster.servers[1]);
    cluster.wait_until_settled();
    let entry = format!("127.0.0.1:{}", cluster.servers[0].port());
    for id in ids.iter().rev() {
        let leaving = cluster.servers.pop().unwrap();
        let left = leaving.cli(&["--cluster", "del-node", &entry, id]);
        assert!(left.status.success(), "{}", String::from_utf8_lossy(&left.stdout));
    }
    cluster.wait_until_settled();
    end("a node joined and left", load, &cluster, CALL).await;
}

/// The new node does not hear of tasks that end between the first copy and the end of the move.
#[tokio::test(flavor = "multi_thread")]
async fn task_that_ends_while_its_slot_moves_at_once_leaves_no_entry() {
    let cluster = Cluster::start(2, 0);
    let backend = RedisBackend::new(&cluster.url()).await.unwrap();
    let [first, second] = [0, 1].map(|number| &cluster.servers[number]);
    // Enough data for the copy to take some time.
    let ballast = vec![b'x'; 200_000];
    let moves = |owner: &String| first.slot_of(owner).parse::<usize>().unwrap() < HALF;
    let owners: Vec<_> = (0..).map(|n| format!("owner-{n}")).filter(moves).take(200).collect();
    for owner in &owners {
        backend.put(&format!("{owner}:stays"), &ballast).await.unwrap();
    }
    let mut ends_ms = Vec::new();
    for (owner, n) in owners.iter().zip(0..) {
        // The last ones end more than a second after the move has started, whatever the writes take.
        let at_ms = now_ms() + 100 + 8 * n;
        backend.put(&format!("{owner}:ends"), &Sample::expiring_at(at_ms)).await.unwrap();
        ends_ms.push(at_ms);
    }
    let started_ms = now_ms();
    if first.move_at_once(0..HALF, second) {
        let moving = started_ms..now_ms();
        let meanwhile = ends_ms.iter().filter(|at_ms| moving.contains(at_ms)).count();
        assert!(meanwhile > 0, "none ended while the slots moved, {} ms", moving.end - moving.start);
    } else {
        skipped("task_that_ends_while_its_slot_moves_at_once", "the server has no atomic slot migration");
    }
    let has_ended = |server: &Server| server.wire().call(&["KEYS", "*:ends"]) == "*0\r\n";
    assert!(holds_within(Duration::from_secs(10), || cluster.servers.iter().all(has_ended)));
    cluster.assert_hashes_and_entries_agree();
    let left = cluster
        .servers
        .iter()
        .map(|server| server.wire().call(&["KEYS", "*:stays"]).matches(":stays").count());
    assert_eq!(left.sum::<usize>(), owners.len());
}
