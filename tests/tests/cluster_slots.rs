//! In a cluster, an index entry goes only when it is certain that its task has gone: while a slot moves, a
//! hash that is missing here may be at its new node.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use pmcptask_tests::{Cluster, Server, Wire, holds_within};

/// Owner as a hash tag, so that task and index share a slot.
const TASK: &str = "pmcp:tasks:{alice}:t";
const OTHER: &str = "pmcp:tasks:{alice}:other";
const INDEX: &str = "pmcp:idx:{alice}";
const PROMISED: Duration = Duration::from_secs(1);

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

    /// Marks the slot of the keys as on its way from the first node to the second.
    fn start_moving(&self) -> String {
        let slot = self.first.slot_of(INDEX);
        self.first.start_moving(&slot, &self.second);
        slot
    }
}

fn put(wire: &mut Wire, task: &str) {
    assert_eq!(wire.call(&["PMCPTASK.PUT", task, INDEX, "data", "PERSIST"]), ":1\r\n");
}

fn put_elsewhere(wire: &mut Wire) {
    let keys = ["unseen:tasks:{bob}:t", "unseen:idx:{bob}"];
    assert_eq!(wire.call(&["PMCPTASK.PUT", keys[0], keys[1], "data", "PERSIST"]), ":1\r\n");
}

fn entries(wire: &mut Wire) -> Vec<String> {
    let reply = wire.call(&["ZRANGE", INDEX, "0", "-1"]);
    let mut ids: Vec<_> =
        reply.lines().skip(1).filter(|line| !line.starts_with('$')).map(str::to_owned).collect();
    // Created in one millisecond or in two: either order.
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
    assert!(holds_within(PROMISED, || entries(&mut wire) == ["other"]));
}

/// Of the harness: tasks end while their slot moves.
#[test]
fn key_that_has_gone_is_none_to_migrate() {
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
    // The hash leaves first: to this node it looks deleted. A prefix that is new makes it look at all
    // indexes, as a restart would.
    pair.first.migrate(&[TASK], &pair.second);
    put_elsewhere(&mut wire);
    assert!(
        !holds_within(PROMISED, || entries(&mut wire) != ["other", "t"]),
        "an entry was dropped: {:?} {}",
        entries(&mut wire),
        wire.call(&["CLUSTER", "NODES"])
    );
    // A list without the task that has left would be wrong.
    let listed = wire.call(&["PMCPTASK.LIST", INDEX]);
    assert!(listed.starts_with("-TRYAGAIN ") && listed.contains(TASK), "{listed}");
    pair.first.migrate(&[INDEX], &pair.second);
    let mut there = pair.second.wire();
    assert_eq!(there.call(&["ASKING"]), "+OK\r\n");
    let listed = there.call(&["PMCPTASK.LIST", INDEX]);
    assert!(listed.starts_with("-TRYAGAIN ") && listed.contains(OTHER), "{listed}");
    pair.first.migrate(&[OTHER], &pair.second);
    assert_eq!(there.call(&["ASKING"]), "+OK\r\n");
    assert_eq!(there.call(&["PMCPTASK.LIST", INDEX]).matches("data").count(), 2);
    pair.first.stop_moving(&slot, &pair.second);
    let mut wire = pair.second.wire();
    assert!(holds_within(Duration::from_secs(5), || wire
        .call(&["PMCPTASK.GET", TASK])
        .starts_with("*2\r\n:1")));
    assert!(!holds_within(PROMISED, || entries(&mut wire) != ["other", "t"]), "an entry was dropped");
    assert_eq!(wire.call(&["PMCPTASK.LIST", INDEX]).matches("data").count(), 2);
}

#[test]
fn entries_of_settled_slots_go_while_another_slot_moves() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    put(&mut wire, TASK);
    put(&mut wire, OTHER);
    let moving: Vec<_> = (0..3_000).map(|n| format!("pmcp:tasks:{{alice}}:moving-{n}")).collect();
    for task in &moving {
        assert!(wire.call(&["HSET", task, "version", "1", "data", "x"]).starts_with(':'));
    }
    let slot = pair.start_moving();
    let [bob, bobs_index] = ["pmcp:tasks:{bob}:t", "pmcp:idx:{bob}"];
    assert_eq!(wire.call(&["PMCPTASK.PUT", bob, bobs_index, "data"]), ":1\r\n");
    // Whether these have gone or moved, nobody can tell yet. They are many, and none of another slot waits
    // behind them.
    for task in &moving {
        wire.send(&["DEL", task]).unwrap();
    }
    for _ in &moving {
        assert_eq!(wire.receive().unwrap(), ":1\r\n");
    }
    wire.call(&["DEL", TASK]);
    wire.call(&["DEL", bob]);
    assert!(holds_within(PROMISED, || wire.call(&["EXISTS", bobs_index]) == ":0\r\n"));
    assert_eq!(entries(&mut wire), ["other", "t"]);
    // The slot stays after all.
    assert_eq!(wire.call(&["CLUSTER", "SETSLOT", &slot, "STABLE"]), "+OK\r\n");
    assert!(holds_within(PROMISED, || entries(&mut wire) == ["other"]));
}

#[test]
fn task_that_has_ended_holds_no_list_up_while_its_slot_moves() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    put(&mut wire, OTHER);
    put(&mut wire, TASK);
    pair.start_moving();
    // It expires here, so it is not at the other node.
    assert_eq!(wire.call(&["PEXPIRE", TASK, "50"]), ":1\r\n");
    let lists_one = |wire: &mut Wire| wire.call(&["PMCPTASK.LIST", INDEX]).matches("data").count() == 1;
    assert!(holds_within(PROMISED, || lists_one(&mut wire)), "{}", wire.call(&["PMCPTASK.LIST", INDEX]));
    assert_eq!(entries(&mut wire), ["other"]);
    // This one has outlived its expiry, because somebody took the key's away.
    assert_eq!(wire.call(&["HSET", OTHER, "expires_at", "1"]), ":1\r\n");
    assert_eq!(wire.call(&["PMCPTASK.LIST", INDEX]), "*0\r\n");
}

#[test]
fn entry_whose_task_has_gone_on_its_way_goes_once_the_slot_has_arrived() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    put(&mut wire, OTHER);
    put(&mut wire, TASK);
    let slot = pair.start_moving();
    pair.first.migrate(&[OTHER, INDEX], &pair.second);
    // To the first node it may have moved; the second one has never had it.
    assert_eq!(wire.call(&["DEL", TASK]), ":1\r\n");
    pair.first.stop_moving(&slot, &pair.second);
    let mut wire = pair.second.wire();
    assert!(holds_within(Duration::from_secs(3), || entries(&mut wire) == ["other"]));
}

/// However many entries wait for a slot that stays half moved.
#[test]
fn entry_of_a_slot_that_has_settled_waits_for_no_other_slot() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    let [bob, bobs_index] = ["pmcp:tasks:{bob}:t", "pmcp:idx:{bob}"];
    let [carol, carols_index] = ["pmcp:tasks:{carol}:t", "pmcp:idx:{carol}"];
    assert_eq!(wire.call(&["PMCPTASK.PUT", bob, bobs_index, "data"]), ":1\r\n");
    assert_eq!(wire.call(&["PMCPTASK.PUT", carol, carols_index, "data"]), ":1\r\n");
    let stuck: Vec<_> = (0..6_000).map(|n| format!("pmcp:tasks:{{alice}}:stuck-{n}")).collect();
    for task in &stuck {
        wire.send(&["HSET", task, "version", "1", "data", "x"]).unwrap();
    }
    for _ in &stuck {
        assert_eq!(wire.receive().unwrap(), ":2\r\n");
    }
    pair.start_moving();
    let bobs_slot = pair.first.slot_of(bobs_index);
    pair.first.start_moving(&bobs_slot, &pair.second);
    for task in &stuck {
        wire.send(&["DEL", task]).unwrap();
    }
    for _ in &stuck {
        assert_eq!(wire.receive().unwrap(), ":1\r\n");
    }
    assert_eq!(wire.call(&["DEL", bob]), ":1\r\n");
    // By now the module knows that none of these can be judged yet.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(wire.call(&["EXISTS", bobs_index]), ":1\r\n");
    assert_eq!(wire.call(&["CLUSTER", "SETSLOT", &bobs_slot, "STABLE"]), "+OK\r\n");
    assert!(holds_within(PROMISED, || wire.call(&["EXISTS", bobs_index]) == ":0\r\n"));
    // Nor does what expires meanwhile in a slot that has been here all the time.
    assert_eq!(wire.call(&["PEXPIRE", carol, "1"]), ":1\r\n");
    assert!(holds_within(PROMISED, || wire.call(&["EXISTS", carols_index]) == ":0\r\n"));
}

#[test]
fn module_can_be_unloaded_while_entries_wait_for_a_slot() {
    let options = Cluster::node_options().set("enable-module-command", "local");
    let cluster = Cluster::start_with(&options, 2, 0);
    let [from, to] = if cluster.servers[0].has_slot_of(INDEX) { [0, 1] } else { [1, 0] };
    let [from, to] = [&cluster.servers[from], &cluster.servers[to]];
    let mut wire = from.wire();
    put(&mut wire, TASK);
    from.start_moving(&from.slot_of(INDEX), to);
    wire.call(&["DEL", TASK]);
    assert!(holds_within(PROMISED, || wire.call(&["MODULE", "UNLOAD", "pmcptask"]) == "+OK\r\n"));
    assert_eq!(entries(&mut wire), ["t"]);
}

/// An index that is made where the slot arrives would keep the one that is on its way from arriving.
#[test]
fn index_of_a_slot_that_moves_is_not_restored_for_a_task_that_has_ended_and_come_back() {
    let pair = Pair::start();
    pair.start_moving();
    let mut wire = pair.second.wire();
    let mut ask = |command: &[&str]| {
        assert_eq!(wire.call(&["ASKING"]), "+OK\r\n");
        wire.call(command)
    };
    let comes_back = "redis.call('EXISTS', KEYS[1])
        redis.call('HSET', KEYS[1], 'version', '1', 'data', 'x')
        return redis.call('PERSIST', KEYS[1])";
    // In some of these rounds the server finds the expired key before the script does; in most it does not.
    for round in 0..20 {
        let task = format!("pmcp:tasks:{{alice}}:{round}");
        assert_eq!(ask(&["HSET", &task, "version", "1", "data", "x"]), ":2\r\n");
        assert_eq!(ask(&["PEXPIRE", &task, "1"]), ":1\r\n");
        std::thread::sleep(Duration::from_millis(4));
        assert_eq!(ask(&["EVAL", comes_back, "1", &task]), ":0\r\n");
    }
    assert!(!holds_within(PROMISED, || ask(&["ZCARD", INDEX]) != ":0\r\n"), "{}", ask(&["ZCARD", INDEX]));
}

/// Keys without hash tags: task and index are in different slots.
#[test]
fn index_that_moves_is_not_restored_for_a_task_whose_own_slot_stays() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    let (task, index) = ("pmcp:tasks:alice:t", "pmcp:idx:alice");
    let slot = pair.first.slot_of(index);
    assert_ne!(slot, pair.first.slot_of(task));
    pair.first.start_moving(&slot, &pair.second);
    // Of one slot, so that the one can be renamed to the other.
    let elsewhere = format!("{{{task}}}");
    assert_eq!(wire.call(&["HSET", &elsewhere, "version", "1", "data", "x"]), ":2\r\n");
    assert_eq!(wire.call(&["RENAME", &elsewhere, task]), "+OK\r\n");
    // Where it has gone, the server says so instead of 0.
    let exists = |wire: &mut Wire| wire.call(&["EXISTS", index]) == ":1\r\n";
    assert!(!holds_within(PROMISED, || exists(&mut wire)));
    pair.first.stop_moving(&slot, &pair.second);
    assert!(!holds_within(PROMISED, || exists(&mut wire)));
}

/// Whatever went while the slots were on their way, and whoever was told of it.
#[test]
fn node_that_has_got_slots_verifies_its_indexes_and_one_that_has_lost_some_does_not() {
    let pair = Pair::start();
    let mut wire = pair.first.wire();
    // So many keys, all in one slot, that a look at them takes a while.
    let keys: Vec<_> = (0..30_000).map(|n| format!("{{alice}}:{n}")).collect();
    for key in &keys {
        wire.send(&["SET", key, "x"]).unwrap();
    }
    for _ in &keys {
        assert_eq!(wire.receive().unwrap(), "+OK\r\n");
    }
    let verifies = |server: &Server| server.counter("verification_pending") == 1;
    assert!(holds_within(Duration::from_secs(30), || !verifies(&pair.first)));
    let empty = pair.first.slot_of("{bob}");
    assert_eq!(wire.call(&["CLUSTER", "DELSLOTS", &empty]), "+OK\r\n");
    assert!(!holds_within(Duration::from_secs(3), || verifies(&pair.first)));
    assert_eq!(wire.call(&["CLUSTER", "ADDSLOTS", &empty]), "+OK\r\n");
    assert!(holds_within(Duration::from_secs(3), || verifies(&pair.first)));
    assert!(holds_within(Duration::from_secs(30), || !verifies(&pair.first)));
}
