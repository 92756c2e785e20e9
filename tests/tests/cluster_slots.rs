//! In a cluster, the module removes an index entry only when its task is certainly gone. While a slot moves,
//! a hash that is missing on this node may be on the new node.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use pmcptask_tests::{Cluster, PROMISED, Server, Wire, holds_within};

/// The owner is a hash tag, so task and index share a slot.
const TASK: &str = "pmcp:tasks:{alice}:t";
const OTHER: &str = "pmcp:tasks:{alice}:other";
const INDEX: &str = "pmcp:idx:{alice}";

/// Two primaries that know each other; the first has all slots.
struct Pair {
    first: Server,
    second: Server,
}

impl Pair {
    fn start() -> Self {
        let mut servers = Cluster::start_lopsided(2).servers.into_iter();
        Self { first: servers.next().unwrap(), second: servers.next().unwrap() }
    }

    /// Marks the slot of the keys as moving from the first node to the second.
    fn start_moving(&self) -> String {
        let slot = self.first.slot_of(INDEX);
        self.first.start_moving(&slot, &self.second);
        slot
    }
}

fn put(wire: &mut Wire, task: &str) {
    assert_eq!(wire.call(&["PMCPTASK.PUT", task, INDEX, "data", "PERSIST"]), ":1\r\n");
}

fn entries(wire: &mut Wire) -> Vec<String> {
    let reply = wire.call(&["ZRANGE", INDEX, "0", "-1"]);
    let mut ids: Vec<_> =
        reply.lines().skip(1).filter(|line| !line.starts_with('$')).map(str::to_owned).collect();
    // Tasks created in the same millisecond are in order of their ids, others in order of creation.
    ids.sort();
    ids
}

#[test]
fn entry_of_a_deleted_task_goes_in_a_cluster_too() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    put(&mut wire, TASK);
    put(&mut wire, OTHER);
    wire.call(&["DEL", TASK]);
    pair.first.have_indexes_walked(2);
    assert_eq!(entries(&mut wire), ["other"]);
}

#[test]
fn task_that_has_to_live_has_to_be_in_the_same_slot_and_is_not_said_to_have_ended_on_its_way() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    let carols = ["PMCPTASK.PUT", "pmcp:tasks:{carol}:t", "pmcp:idx:{carol}", "data"];
    assert_eq!(wire.call(&carols), ":1\r\n");
    for (held, refusal) in [
        (TASK, "-NOTHELD "),
        ("app:lease:tasks:{alice}:x", "-NOTHELD "),
        ("pmcp:tasks:{bob}:t", "-CROSSSLOT "),
        ("pmcp:tasks:alice:t", "-CROSSSLOT "),
        // One that lives, at the same node.
        ("pmcp:tasks:{carol}:t", "-CROSSSLOT "),
    ] {
        for options in [&[][..], &["MAXTASKS", "9"]] {
            let put = [&["PMCPTASK.PUT", OTHER, INDEX, "HELD"], options, &["held", held]].concat();
            let reply = wire.call(&put);
            assert!(reply.starts_with(refusal), "{held}: {reply}");
        }
    }
    assert_eq!(wire.call(&["DBSIZE"]), ":2\r\n");
    put(&mut wire, TASK);
    assert_eq!(wire.call(&["PMCPTASK.PUT", OTHER, INDEX, "data", "HELD", TASK]), ":1\r\n");
    // While the slot moves, the task that has to live may be at the other node: nobody says that it has ended.
    pair.start_moving();
    let held = "pmcp:tasks:{alice}:lease";
    let reply = wire.call(&["PMCPTASK.PUT", OTHER, INDEX, "data", "HELD", held]);
    assert!(reply.starts_with("-TRYAGAIN "), "{reply}");
    assert_eq!(wire.call(&["PMCPTASK.PUT", OTHER, INDEX, "data", "HELD", TASK]), ":2\r\n");
}

/// A test of the harness: tasks end while their slot moves.
#[test]
fn key_that_is_gone_is_not_migrated() {
    let pair = Pair::start();
    put(&mut pair.first.wire(), TASK);
    pair.start_moving();
    assert!(pair.first.migrate_what_is_left(&[TASK], &pair.second));
    assert!(!pair.first.migrate_what_is_left(&[TASK], &pair.second));
}

#[test]
fn nothing_is_dropped_while_a_slot_moves_and_index_and_tasks_arrive_whole() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    put(&mut wire, TASK);
    put(&mut wire, OTHER);
    let slot = pair.start_moving();
    // The hash moves first. To this node it looks deleted, at every look.
    pair.first.migrate(&[TASK], &pair.second);
    pair.first.have_indexes_walked(3);
    assert_eq!(
        entries(&mut wire),
        ["other", "t"],
        "an entry was dropped: {}",
        wire.call(&["CLUSTER", "NODES"])
    );
    // A list without the moved task would be wrong.
    let listed = wire.call(&["PMCPTASK.LIST", INDEX]);
    assert!(listed.starts_with("-TRYAGAIN ") && listed.contains(TASK), "{listed}");
    pair.first.migrate(&[INDEX], &pair.second);
    let mut there = pair.second.wire();
    assert_eq!(there.call(&["ASKING"]), "+OK\r\n");
    let listed = there.call(&["PMCPTASK.LIST", INDEX]);
    assert!(listed.starts_with("-TRYAGAIN ") && listed.contains(OTHER), "{listed}");
    pair.second.have_indexes_walked(3);
    pair.first.migrate(&[OTHER], &pair.second);
    assert_eq!(there.call(&["ASKING"]), "+OK\r\n");
    assert_eq!(there.call(&["PMCPTASK.LIST", INDEX]).matches("data").count(), 2);
    pair.first.stop_moving(&slot, &pair.second);
    let mut wire = pair.second.wire();
    assert!(holds_within(Duration::from_secs(5), || wire
        .call(&["PMCPTASK.GET", TASK])
        .starts_with("*2\r\n:1")));
    pair.second.have_indexes_walked(2);
    assert_eq!(entries(&mut wire), ["other", "t"], "an entry was dropped");
    assert_eq!(wire.call(&["PMCPTASK.LIST", INDEX]).matches("data").count(), 2);
}

#[test]
fn trim_removes_nothing_while_a_task_may_be_at_another_node() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    let create = |wire: &mut Wire, task: &str, created_ms: &str| {
        let put = ["PMCPTASK.PUT", task, INDEX, "data", "PERSIST", "CREATED", created_ms];
        assert_eq!(wire.call(&put), ":1\r\n");
    };
    create(&mut wire, TASK, "5");
    create(&mut wire, OTHER, "6");
    let slot = pair.start_moving();
    // The slot is on its way, and all is still here.
    assert_eq!(wire.call(&["PMCPTASK.TRIM", INDEX, "KEEP", "2"]), ":0\r\n");
    pair.first.migrate(&[TASK], &pair.second);
    for keep in ["0", "1"] {
        let trimmed = wire.call(&["PMCPTASK.TRIM", INDEX, "KEEP", keep]);
        assert!(trimmed.starts_with("-TRYAGAIN ") && trimmed.contains(TASK), "KEEP {keep}: {trimmed}");
        assert_eq!(entries(&mut wire), ["other", "t"], "KEEP {keep}");
        assert!(wire.exists(OTHER), "KEEP {keep}");
    }
    assert_eq!(pair.first.counter("refused_tryagain"), 2);
    assert_eq!(pair.first.counter("tasks_trimmed"), 0);
    pair.first.migrate(&[INDEX], &pair.second);
    let mut there = pair.second.wire();
    // To count the tasks that stay, the node looks for the newer task.
    assert_eq!(there.call(&["ASKING"]), "+OK\r\n");
    let trimmed = there.call(&["PMCPTASK.TRIM", INDEX, "KEEP", "1"]);
    assert!(trimmed.starts_with("-TRYAGAIN ") && trimmed.contains(OTHER), "{trimmed}");
    assert_eq!(there.call(&["ASKING"]), "+OK\r\n");
    assert!(there.exists(TASK));
    pair.first.migrate(&[OTHER], &pair.second);
    assert_eq!(there.call(&["ASKING"]), "+OK\r\n");
    assert_eq!(there.call(&["PMCPTASK.TRIM", INDEX, "KEEP", "1"]), ":1\r\n");
    pair.first.stop_moving(&slot, &pair.second);
    let mut wire = pair.second.wire();
    assert!(holds_within(Duration::from_secs(5), || wire.call(&["PMCPTASK.GET", OTHER]).starts_with("*2")));
    assert_eq!(entries(&mut wire), ["other"]);
    assert_eq!(wire.call(&["PMCPTASK.TRIM", INDEX, "KEEP", "0"]), ":1\r\n");
    assert_eq!(wire.call(&["DBSIZE"]), ":0\r\n");
}

#[test]
fn task_that_has_ended_delays_no_trim_while_its_slot_moves() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    put(&mut wire, OTHER);
    put(&mut wire, TASK);
    pair.start_moving();
    // The task expires on this node, so it is not on the other one.
    assert_eq!(wire.call(&["PEXPIRE", TASK, "50"]), ":1\r\n");
    assert!(holds_within(PROMISED, || entries(&mut wire) == ["other"]));
    assert_eq!(wire.call(&["PMCPTASK.TRIM", INDEX, "KEEP", "0"]), ":1\r\n");
    assert_eq!(wire.call(&["DBSIZE"]), ":0\r\n");
}

#[test]
fn entries_of_settled_slots_go_while_another_slot_moves() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    put(&mut wire, TASK);
    put(&mut wire, OTHER);
    let slot = pair.start_moving();
    let [bob, bobs_index] = ["pmcp:tasks:{bob}:t", "pmcp:idx:{bob}"];
    assert_eq!(wire.call(&["PMCPTASK.PUT", bob, bobs_index, "data"]), ":1\r\n");
    wire.call(&["DEL", TASK]);
    wire.call(&["DEL", bob]);
    pair.first.have_indexes_walked(3);
    assert_eq!(wire.call(&["EXISTS", bobs_index]), ":0\r\n");
    // This node cannot tell yet whether the task is gone or moved.
    assert_eq!(entries(&mut wire), ["other", "t"]);
    // The slot stays on this node after all.
    assert_eq!(wire.call(&["CLUSTER", "SETSLOT", &slot, "STABLE"]), "+OK\r\n");
    pair.first.have_indexes_walked(1);
    assert_eq!(entries(&mut wire), ["other"]);
}

#[test]
fn task_that_has_ended_delays_no_list_while_its_slot_moves() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    put(&mut wire, OTHER);
    put(&mut wire, TASK);
    let slot = pair.start_moving();
    // The task expires on this node, so it is not on the other one.
    assert_eq!(wire.call(&["PEXPIRE", TASK, "50"]), ":1\r\n");
    let lists_one = |wire: &mut Wire| wire.call(&["PMCPTASK.LIST", INDEX]).matches("data").count() == 1;
    assert!(holds_within(PROMISED, || lists_one(&mut wire)), "{}", wire.call(&["PMCPTASK.LIST", INDEX]));
    assert_eq!(entries(&mut wire), ["other"]);
    // This task is past its `expires_at`, but its key has no expiry. It stays until the slot has settled.
    assert_eq!(wire.call(&["HSET", OTHER, "expires_at", "1"]), ":1\r\n");
    assert_eq!(wire.call(&["PMCPTASK.LIST", INDEX]), "*0\r\n");
    pair.first.have_indexes_walked(2);
    assert_eq!(
        (wire.call(&["EXISTS", OTHER]).as_str(), entries(&mut wire)),
        (":1\r\n", vec!["other".to_owned()])
    );
    assert_eq!(wire.call(&["CLUSTER", "SETSLOT", &slot, "STABLE"]), "+OK\r\n");
    assert_eq!(wire.call(&["PMCPTASK.LIST", INDEX]), "*0\r\n");
    assert!(holds_within(PROMISED, || wire.call(&["DBSIZE"]) == ":0\r\n"));
}

#[test]
fn entry_whose_task_has_gone_on_its_way_goes_once_the_slot_has_arrived() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    put(&mut wire, OTHER);
    put(&mut wire, TASK);
    let slot = pair.start_moving();
    pair.first.migrate(&[OTHER, INDEX], &pair.second);
    // The first node cannot tell whether the task moved; the second node never had it.
    assert_eq!(wire.call(&["DEL", TASK]), ":1\r\n");
    pair.first.stop_moving(&slot, &pair.second);
    let mut wire = pair.second.wire();
    assert!(holds_within(Duration::from_secs(5), || wire.call(&["PMCPTASK.GET", OTHER]).starts_with("*2")));
    pair.second.have_indexes_walked(2);
    assert_eq!(entries(&mut wire), ["other"]);
}
