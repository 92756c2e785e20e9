//! Hash and index agree: no entry outlives its task, whoever took the task away, and nothing of other
//! applications is touched.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects)]

use std::time::{Duration, Instant};

use pmcptask_tests::{Server, ServerOptions, Wire, holds_within, now_ms};

/// What the contract promises.
const PROMISED: Duration = Duration::from_secs(1);

fn put(wire: &mut Wire, owner: &str, task: &str, options: &[&str]) {
    let (task, index) = (format!("pmcp:tasks:{owner}:{task}"), format!("pmcp:idx:{owner}"));
    let reply = wire.call(&[&["PMCPTASK.PUT", &task, &index, "data"], options].concat());
    assert!(reply.starts_with(':'), "{reply}");
}

fn exists(wire: &mut Wire, key: &str) -> bool {
    wire.call(&["EXISTS", key]) == ":1\r\n"
}

fn has_entry(wire: &mut Wire, owner: &str, task: &str) -> bool {
    !wire.call(&["ZSCORE", &format!("pmcp:idx:{owner}"), task]).starts_with("$-1")
}

fn in_ms(ms: i64) -> String {
    (now_ms() + ms).to_string()
}

fn info(wire: &mut Wire, field: &str) -> u64 {
    let info = wire.call(&["INFO", "pmcptask"]);
    let start = info.find(&format!("pmcptask_{field}:")).unwrap();
    info[start..].lines().next().unwrap().split_once(':').unwrap().1.trim().parse().unwrap()
}

#[test]
fn entry_of_an_expired_task_goes_and_the_index_with_its_last_task() {
    let server = Server::start();
    let mut wire = server.wire();
    put(&mut wire, "alice", "short", &["PXAT", &in_ms(200)]);
    put(&mut wire, "alice", "long", &["PXAT", &in_ms(60_000)]);
    put(&mut wire, "bob", "only", &["PXAT", &in_ms(200)]);
    std::thread::sleep(Duration::from_millis(200));
    assert!(holds_within(PROMISED, || !has_entry(&mut wire, "alice", "short")));
    assert!(holds_within(PROMISED, || !exists(&mut wire, "pmcp:idx:bob")));
    assert!(has_entry(&mut wire, "alice", "long"));
}

#[test]
fn expired_task_among_many_live_ones_goes_in_time() {
    let server = Server::start();
    let mut wire = server.wire();
    let (later, count) = (in_ms(3_600_000), 20_000);
    for n in 0..count {
        let (task, index) = (format!("pmcp:tasks:o{}:t{n}", n % 100), format!("pmcp:idx:o{}", n % 100));
        wire.send(&["PMCPTASK.PUT", &task, &index, "data", "PXAT", &later]).unwrap();
    }
    for _ in 0..count {
        assert_eq!(wire.receive().unwrap(), ":1\r\n");
    }
    for n in 0..5 {
        put(&mut wire, "alice", &format!("t{n}"), &["PXAT", &in_ms(300)]);
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(holds_within(PROMISED, || !exists(&mut wire, "pmcp:idx:alice")));
}

#[test]
fn entry_goes_when_somebody_else_removes_the_hash() {
    let server = Server::start();
    let mut wire = server.wire();
    for how in [
        &["DEL", "pmcp:tasks:alice:t"][..],
        &["UNLINK", "pmcp:tasks:alice:t"],
        &["RENAME", "pmcp:tasks:alice:t", "elsewhere"],
        &["MOVE", "pmcp:tasks:alice:t", "1"],
        &["HDEL", "pmcp:tasks:alice:t", "version", "data"],
        &["PEXPIREAT", "pmcp:tasks:alice:t", "1"],
        &["EVAL", "return redis.call('DEL', KEYS[1])", "1", "pmcp:tasks:alice:t"],
    ] {
        put(&mut wire, "alice", "t", &["PERSIST"]);
        put(&mut wire, "alice", "stays", &["PERSIST"]);
        // On a connection of its own: Valkey 8.1 leaves that of a MOVE in the other database.
        let reply = server.wire().call(how);
        assert!(!reply.starts_with('-'), "{how:?}: {reply}");
        assert!(holds_within(PROMISED, || !has_entry(&mut wire, "alice", "t")), "{how:?}");
        assert!(has_entry(&mut wire, "alice", "stays"), "{how:?}");
        wire.call(&["DEL", "elsewhere"]);
    }
}

#[test]
fn task_that_comes_whole_gets_its_entry() {
    let server = Server::start();
    let mut wire = server.wire();
    let record = r#"{"task":{"createdAt":"2023-11-14T22:13:20Z"}}"#;
    wire.call(&["HSET", "elsewhere", "version", "3", "data", record]);
    let dumped = server.dump(0).remove("elsewhere").and_then(|(value, _)| value).unwrap();
    for how in ["COPY", "RENAME", "MOVE", "RESTORE"] {
        wire.call(&["HSET", "elsewhere", "version", "3", "data", record]);
        match how {
            "MOVE" => {
                let mut wire = server.wire();
                wire.call(&["SELECT", "1"]);
                wire.call(&["HSET", "pmcp:tasks:alice:t", "version", "3", "data", record]);
                assert_eq!(wire.call(&["MOVE", "pmcp:tasks:alice:t", "0"]), ":1\r\n");
            }
            "RESTORE" => {
                redis::cmd("RESTORE")
                    .arg("pmcp:tasks:alice:t")
                    .arg(0)
                    .arg(&dumped)
                    .exec(&mut server.connection())
                    .unwrap();
            }
            _ => assert!(!wire.call(&[how, "elsewhere", "pmcp:tasks:alice:t"]).starts_with('-')),
        }
        assert!(holds_within(PROMISED, || has_entry(&mut wire, "alice", "t")), "{how}");
        assert_eq!(wire.call(&["ZSCORE", "pmcp:idx:alice", "t"]), "$13\r\n1700000000000\r\n", "{how}");
        assert_eq!(wire.call(&["PMCPTASK.DEL", "pmcp:tasks:alice:t", "pmcp:idx:alice"]), ":1\r\n", "{how}");
    }
    assert!(!exists(&mut wire, "pmcp:idx:alice"));
}

#[test]
fn entry_goes_when_another_value_takes_the_place_of_the_hash() {
    let server = Server::start();
    let mut wire = server.wire();
    put(&mut wire, "alice", "t", &["PERSIST"]);
    wire.call(&["SET", "string", "x"]);
    assert_eq!(wire.call(&["RENAME", "string", "pmcp:tasks:alice:t"]), "+OK\r\n");
    assert!(holds_within(PROMISED, || !exists(&mut wire, "pmcp:idx:alice")));
    assert!(exists(&mut wire, "pmcp:tasks:alice:t"));
}

#[test]
fn prefix_without_a_key_left_takes_no_memory() {
    let server = Server::start();
    let mut wire = server.wire();
    server.have_all_keys_looked_at();
    let before = info_memory(&mut wire);
    let filler = "x".repeat(2_000);
    for n in 0..2_000 {
        let (task, index) = (format!("{filler}{n}:tasks:o:t"), format!("{filler}{n}:idx:o"));
        assert_eq!(wire.call(&["PMCPTASK.PUT", &task, &index, "x"]), ":1\r\n");
        assert_eq!(wire.call(&["PMCPTASK.DEL", &task, &index]), ":1\r\n");
    }
    server.have_all_keys_looked_at();
    assert!(
        holds_within(PROMISED, || info_memory(&mut wire) < before + 1_000_000),
        "{before}, {}",
        info_memory(&mut wire)
    );
}

#[test]
fn entry_of_an_evicted_task_goes() {
    let server = Server::start_with(&ServerOptions::default().set("maxmemory-policy", "volatile-ttl"));
    let mut wire = server.wire();
    for n in 0..2_000 {
        let task = format!("t{n}");
        put(&mut wire, &format!("o{}", n % 50), &task, &["PXAT", &in_ms(3_600_000 + n)]);
    }
    // A part of what the tasks take has to go.
    let limit = info_memory(&mut wire) - 100_000;
    wire.call(&["CONFIG", "SET", "maxmemory", &limit.to_string()]);
    // Which ones go is chance: the server compares a few that it draws.
    assert!(holds_within(Duration::from_secs(5), || !wire
        .call(&["INFO", "stats"])
        .contains("evicted_keys:0\r\n")));
    wire.call(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(holds_within(PROMISED, || orphans(&mut wire) == 0));
    assert!(info(&mut wire, "index_entries_reclaimed") > 0);
}

#[test]
fn task_gets_its_entry_back_when_its_index_is_taken_away() {
    let server = Server::start();
    let mut wire = server.wire();
    let record = r#"{"task":{"createdAt":"2023-11-14T22:13:20Z"}}"#;
    for how in [&["DEL", "pmcp:idx:alice"][..], &["RENAME", "pmcp:idx:alice", "elsewhere"]] {
        wire.call(&["PMCPTASK.PUT", "pmcp:tasks:alice:t", "pmcp:idx:alice", record]);
        put(&mut wire, "alice", "u", &["PERSIST"]);
        assert!(!wire.call(how).starts_with('-'));
        assert!(holds_within(PROMISED, || has_entry(&mut wire, "alice", "t")
            && has_entry(&mut wire, "alice", "u")));
        // At its place of before, by what the record says.
        let score = wire.call(&["ZSCORE", "pmcp:idx:alice", "t"]);
        assert_eq!(score, "$13\r\n1700000000000\r\n");
    }
    assert!(info(&mut wire, "index_entries_restored") >= 4);
}

#[test]
fn evicted_index_comes_back_with_its_live_tasks() {
    let server = Server::start_with(&ServerOptions::default().set("maxmemory-policy", "allkeys-random"));
    let mut wire = server.wire();
    for n in 0..2_000 {
        put(&mut wire, &format!("o{}", n % 500), &format!("t{n}"), &["PERSIST"]);
    }
    let used = info_memory(&mut wire);
    wire.call(&["CONFIG", "SET", "maxmemory", &(used - 200_000).to_string()]);
    assert!(holds_within(Duration::from_secs(5), || wire.call(&["DBSIZE"]) != ":2500\r\n"));
    wire.call(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(holds_within(PROMISED, || info(&mut wire, "verification_pending") == 0));
    assert!(holds_within(PROMISED, || orphans(&mut wire) == 0 && unlisted(&mut wire) == 0));
}

fn info_memory(wire: &mut Wire) -> u64 {
    let info = wire.call(&["INFO", "memory"]);
    info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
}

/// Tasks without an entry, counted with plain commands.
fn unlisted(wire: &mut Wire) -> usize {
    let script = "local unlisted = 0
        for _, task in ipairs(redis.call('KEYS', 'pmcp:tasks:*')) do
            local owner, id = string.match(task, '^pmcp:tasks:(.*):([^:]*)$')
            if not redis.call('ZSCORE', 'pmcp:idx:' .. owner, id) then unlisted = unlisted + 1 end
        end
        return unlisted";
    let reply = wire.call(&["EVAL", script, "0"]);
    reply.trim().trim_start_matches(':').parse().unwrap_or_else(|_| panic!("{reply}"))
}

/// Entries without a task, counted with plain commands.
fn orphans(wire: &mut Wire) -> usize {
    let script = "local orphans = 0
        for _, index in ipairs(redis.call('KEYS', '*:idx:*')) do
            for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
                local task = string.gsub(index, ':idx:', ':tasks:', 1) .. ':' .. id
                if redis.call('EXISTS', task) == 0 then orphans = orphans + 1 end
            end
        end
        return orphans";
    let reply = wire.call(&["EVAL", script, "0"]);
    reply.trim().trim_start_matches(':').parse().unwrap_or_else(|_| panic!("{reply}"))
}

#[test]
fn tasks_that_expired_while_the_server_was_down_leave_nothing_behind() {
    for settings in [&[("appendonly", "yes")][..], &[("save", "3600 1")]] {
        let options =
            settings.iter().fold(ServerOptions::default(), |options, (name, value)| options.set(name, value));
        let mut server = Server::start_with(&options);
        let mut wire = server.wire();
        put(&mut wire, "alice", "short", &["PXAT", &in_ms(300)]);
        put(&mut wire, "alice", "long", &["PERSIST"]);
        put(&mut wire, "bob", "only", &["PXAT", &in_ms(300)]);
        wire.call(&["PMCPTASK.PUT", "app:tasks:eve:long", "app:idx:eve", "x", "PERSIST"]);
        wire.call(&["PMCPTASK.PUT", "app:tasks:eve:short", "app:idx:eve", "x", "PXAT", &in_ms(300)]);
        server.stop();
        std::thread::sleep(Duration::from_millis(350));
        server.restart();
        let mut wire = server.wire();
        assert!(holds_within(PROMISED, || orphans(&mut wire) == 0), "{settings:?}");
        assert!(!exists(&mut wire, "pmcp:idx:bob"), "{settings:?}");
        assert!(has_entry(&mut wire, "alice", "long") && exists(&mut wire, "app:idx:eve"), "{settings:?}");
    }
}

#[test]
fn entry_of_a_task_that_comes_back_at_once_stays() {
    let server = Server::start();
    let mut wire = server.wire();
    put(&mut wire, "alice", "t", &["PERSIST"]);
    for _ in 0..100 {
        wire.send(&["DEL", "pmcp:tasks:alice:t"]).unwrap();
        put_without_waiting(&mut wire);
    }
    for _ in 0..200 {
        wire.receive().unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(has_entry(&mut wire, "alice", "t"));
}

fn put_without_waiting(wire: &mut Wire) {
    wire.send(&["PMCPTASK.PUT", "pmcp:tasks:alice:t", "pmcp:idx:alice", "data", "PERSIST"]).unwrap();
}

#[test]
fn keys_of_other_applications_are_not_touched() {
    let mut server = Server::start_with(&ServerOptions::default().set("appendonly", "yes"));
    let mut wire = server.wire();
    put(&mut wire, "alice", "t", &["PERSIST"]);
    // Looks like a prefix of ours, but no command has named it and its hashes are no tasks.
    wire.call(&["ZADD", "shop:idx:users", "1700000000000", "u1", "1700000000001", "u2"]);
    wire.call(&["HSET", "shop:tasks:users:u1", "title", "x"]);
    wire.call(&["SET", "shop:tasks:users:u2", "x", "PX", "50"]);
    wire.call(&["DEL", "shop:tasks:users:u1"]);
    // Calling its keys by our commands makes them no tasks.
    assert_eq!(wire.call(&["PMCPTASK.GET", "shop:tasks:users:u9"]), "$-1\r\n");
    assert_eq!(wire.call(&["PMCPTASK.LIST", "shop:idx:users"]), "*0\r\n");
    assert_eq!(wire.call(&["PMCPTASK.DEL", "shop:tasks:users:u9", "shop:idx:users"]), ":0\r\n");
    wire.call(&["HSET", "shop:tasks:users:u8", "version", "1", "data", "x", "title", "y"]);
    std::thread::sleep(PROMISED);
    let before = wire.call(&["ZRANGE", "shop:idx:users", "0", "-1", "WITHSCORES"]);
    server.stop();
    server.restart();
    let mut wire = server.wire();
    std::thread::sleep(PROMISED);
    assert_eq!(wire.call(&["ZRANGE", "shop:idx:users", "0", "-1", "WITHSCORES"]), before);
    assert!(before.contains("u1") && before.contains("u2"), "{before}");
}

#[test]
fn old_entry_of_an_owner_with_a_colon_goes_with_its_task() {
    let server = Server::start();
    let mut wire = server.wire();
    for how in [&["PMCPTASK.DEL", "pmcp:tasks:a:b:t", "pmcp:idx:a:b"][..], &["DEL", "pmcp:tasks:a:b:t"]] {
        // What the client that this one replaces writes for owner `a:b`.
        wire.call(&["HSET", "pmcp:tasks:a:b:t", "version", "1", "data", "x"]);
        wire.call(&["ZADD", "pmcp:idx:a", "0", "b:t"]);
        assert_eq!(wire.call(how), ":1\r\n");
        assert!(holds_within(PROMISED, || !exists(&mut wire, "pmcp:idx:a")), "{how:?}");
    }
}

#[test]
fn a_hundred_thousand_owners_of_one_short_task_leave_no_key_behind() {
    const OWNERS: usize = 100_000;
    let server = Server::start();
    let mut wire = server.wire();
    let at = in_ms(4_000);
    for start in (0..OWNERS).step_by(1_000) {
        for n in start..start + 1_000 {
            let (task, index) = (format!("pmcp:tasks:o{n}:t"), format!("pmcp:idx:o{n}"));
            wire.send(&["PMCPTASK.PUT", &task, &index, "data", "PXAT", &at]).unwrap();
        }
        for _ in 0..1_000 {
            assert!(wire.receive().unwrap().starts_with(':'));
        }
    }
    let mut worst = Duration::ZERO;
    let gone = holds_within(Duration::from_secs(30), || {
        let started = Instant::now();
        wire.call(&["PING"]);
        worst = worst.max(started.elapsed());
        wire.call(&["DBSIZE"]) == ":0\r\n"
    });
    println!("worst latency of a PING while {OWNERS} indexes were reclaimed: {worst:?}");
    assert!(gone, "{} keys left", wire.call(&["DBSIZE"]));
}

/// The server's housekeeping, in which the patrol has its share, comes `hz` times a second.
#[test]
fn patrol_takes_the_same_share_of_the_servers_time_whatever_hz() {
    const KEYS: usize = 100_000;
    let server = Server::start();
    let mut wire = server.wire();
    for n in 0..KEYS {
        wire.send(&["SET", &format!("key-{n}"), "x"]).unwrap();
    }
    for _ in 0..KEYS {
        assert_eq!(wire.receive().unwrap(), "+OK\r\n");
    }
    let mut verify_at = |hz: &str| {
        assert_eq!(wire.call(&["CONFIG", "SET", "hz", hz]), "+OK\r\n");
        assert_eq!(wire.call(&["SWAPDB", "8", "9"]), "+OK\r\n");
        let started = Instant::now();
        assert!(holds_within(Duration::from_mins(1), || info(&mut wire, "verification_pending") == 0));
        started.elapsed()
    };
    verify_at("10");
    let (slow, fast) = (verify_at("10"), verify_at("500"));
    println!("verified {KEYS} keys in {slow:?} at hz 10, in {fast:?} at hz 500");
    assert!(fast > slow / 2 && fast < slow * 2, "{slow:?} at hz 10, {fast:?} at hz 500");
}
