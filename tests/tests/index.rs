//! No index entry outlives its task for long, no entry of a live task is lost, and keys of other applications
//! are not touched.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects)]

use std::time::{Duration, Instant};

use pmcptask_tests::{
    Clock, PROMISED, Server, ServerOptions, Wire, holds_within, integer, now_ms, sleep_until, slowness,
};

fn put(wire: &mut Wire, owner: &str, task: &str, options: &[&str]) {
    put_with("pmcp", wire, owner, task, options);
}

fn put_with(prefix: &str, wire: &mut Wire, owner: &str, task: &str, options: &[&str]) {
    let (task, index) = (format!("{prefix}:tasks:{owner}:{task}"), format!("{prefix}:idx:{owner}"));
    let reply = wire.call(&[&["PMCPTASK.PUT", &task, &index, "data"], options].concat());
    assert!(reply.starts_with(':'), "{reply}");
}

/// Sends commands in batches, as fast as the server takes them.
fn run_all(wire: &mut Wire, commands: impl Iterator<Item = Vec<impl AsRef<[u8]>>>) {
    let mut waiting = 0;
    let receive = |wire: &mut Wire, waiting: &mut usize| {
        for _ in 0..std::mem::take(waiting) {
            let reply = wire.receive().unwrap();
            assert!(!reply.starts_with('-'), "{reply}");
        }
    };
    for command in commands {
        wire.send(&command).unwrap();
        waiting += 1;
        if waiting == 500 {
            receive(wire, &mut waiting);
        }
    }
    receive(wire, &mut waiting);
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn call(wire: &mut Wire, line: &str) -> String {
    let reply = wire.run(line);
    assert!(!reply.starts_with('-'), "{line}: {reply}");
    reply
}

fn has_entry(wire: &mut Wire, owner: &str, task: &str) -> bool {
    !wire.call(&["ZSCORE", &format!("pmcp:idx:{owner}"), task]).starts_with("$-1")
}

fn in_ms(ms: i64) -> String {
    (now_ms() + ms).to_string()
}

/// Entries without a task, counted with plain commands.
fn orphans(wire: &mut Wire) -> i64 {
    let script = "local orphans = 0
        for _, index in ipairs(redis.call('KEYS', '*:idx:*')) do
            for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
                local task = string.gsub(index, ':idx:', ':tasks:', 1) .. ':' .. id
                if redis.call('EXISTS', task) == 0 then orphans = orphans + 1 end
            end
        end
        return orphans";
    integer(&wire.call(&["EVAL", script, "0"]))
}

// Tasks that the server ends: their entries go within a second.

#[test]
fn entry_of_an_expired_task_goes_and_the_index_with_its_last_task() {
    let server = Server::start();
    let mut wire = server.wire();
    // A slow server needs time, too: a task that is past when it is written is gone without an event.
    let soon = in_ms(200 * i64::from(slowness()));
    put(&mut wire, "alice", "short", &["PXAT", &soon]);
    put(&mut wire, "alice", "long", &["PXAT", &in_ms(3_600_000)]);
    put(&mut wire, "bob", "only", &["PXAT", &soon]);
    // No client asks for the tasks: the server finds them.
    assert!(holds_within(Duration::from_secs(10), || wire.info_number("stats", "expired_keys") == 2));
    assert!(holds_within(PROMISED, || !has_entry(&mut wire, "alice", "short")));
    assert!(holds_within(PROMISED, || !wire.exists("pmcp:idx:bob")));
    assert!(has_entry(&mut wire, "alice", "long"));
}

#[test]
fn what_the_server_has_expired_has_no_entry_a_second_later_whoever_made_it() {
    const LIVE: usize = 200_000;
    const SHORT: usize = 100;
    let server = Server::start();
    let mut wire = server.wire();
    let later = in_ms(3_600_000);
    run_all(
        &mut wire,
        (0..LIVE).map(|n| {
            let owner = n % 100;
            words(&format!("PMCPTASK.PUT pmcp:tasks:o{owner}:t{n} pmcp:idx:o{owner} data PXAT {later}"))
        }),
    );
    let record = |name: &str| format!("HSET {name} version 1 data x");
    call(&mut wire, &record("elsewhere"));
    let dumped = server.dump_of("elsewhere");
    // In batches, so that all are made long before the first one expires.
    let at = now_ms() + 3_000;
    let made = (0..SHORT).flat_map(|n| {
        let task = |maker: &str| format!("pmcp:tasks:short:{maker}{n}");
        let entry = |maker: &str| format!("ZADD pmcp:idx:short 5 {maker}{n}");
        let expire = |maker: &str| format!("PEXPIREAT {} {at}", task(maker));
        let bytes = |line: String| words(&line).into_iter().map(String::into_bytes).collect::<Vec<_>>();
        let restore =
            [bytes(format!("RESTORE {} {at}", task("restore"))), vec![dumped.clone(), b"ABSTTL".to_vec()]]
                .concat();
        let lines = [
            format!("PMCPTASK.PUT {} pmcp:idx:short x PXAT {at}", task("put")),
            // As the Lua backend does.
            record(&task("old")),
            entry("old"),
            expire("old"),
            record("elsewhere"),
            format!("RENAME elsewhere {}", task("rename")),
            entry("rename"),
            expire("rename"),
            record("elsewhere"),
            format!("COPY elsewhere {}", task("copy")),
            entry("copy"),
            expire("copy"),
            entry("restore"),
            format!("PMCPTASK.PUT {} pmcp:idx:short x PERSIST", task("pexpireat")),
            expire("pexpireat"),
        ];
        std::iter::once(restore).chain(lines.map(bytes))
    });
    run_all(&mut wire, made);
    assert_eq!(call(&mut wire, "ZCARD pmcp:idx:short"), format!(":{}\r\n", 6 * SHORT));
    sleep_until(at + 1);
    // The server finds some expired keys by itself, and the others when a client asks for them.
    for n in 0..SHORT {
        for maker in ["put", "old", "rename", "copy", "restore", "pexpireat"] {
            assert!(!wire.exists(&format!("pmcp:tasks:short:{maker}{n}")), "{maker}");
        }
    }
    assert!(holds_within(PROMISED, || !wire.exists("pmcp:idx:short")));
    assert_eq!(server.counter("index_entries_removed"), u64::try_from(6 * SHORT).unwrap());
}

#[test]
fn entry_of_an_evicted_task_goes() {
    let server = Server::start_with(&ServerOptions::default().set("maxmemory-policy", "volatile-ttl"));
    let mut wire = server.wire();
    for n in 0..2_000 {
        let task = format!("t{n}");
        put(&mut wire, &format!("o{}", n % 50), &task, &["PXAT", &in_ms(3_600_000 + n)]);
    }
    // Some of the tasks must be evicted.
    let limit = wire.info_number("memory", "used_memory") - 100_000;
    wire.call(&["CONFIG", "SET", "maxmemory", &limit.to_string()]);
    // Which ones go is random: the server compares a few keys that it samples.
    assert!(holds_within(Duration::from_secs(5), || wire.info_number("stats", "evicted_keys") > 0));
    wire.call(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(holds_within(PROMISED, || orphans(&mut wire) == 0));
    assert!(server.counter("index_entries_removed") > 0);
}

#[test]
fn old_entry_of_an_owner_with_a_colon_goes_with_its_task() {
    let server = Server::start();
    let mut wire = server.wire();
    // What the Lua backend writes for owner `a:b`.
    let make = |wire: &mut Wire| {
        call(wire, "HSET pmcp:tasks:a:b:t version 1 data x");
        call(wire, "ZADD pmcp:idx:a 0 b:t");
    };
    make(&mut wire);
    wire.expire_soon("pmcp:tasks:a:b:t");
    assert!(holds_within(Duration::from_secs(10), || !wire.exists("pmcp:tasks:a:b:t")));
    assert!(holds_within(PROMISED, || !wire.exists("pmcp:idx:a")));
    make(&mut wire);
    server.have_indexes_walked(3);
    assert!(wire.exists("pmcp:idx:a"));
    assert_eq!(call(&mut wire, "PMCPTASK.DEL pmcp:tasks:a:b:t pmcp:idx:a:b"), ":1\r\n");
    server.have_indexes_walked(2);
    assert!(!wire.exists("pmcp:idx:a"));
}

#[test]
fn a_hundred_thousand_owners_of_one_short_task_leave_no_key_behind() {
    const OWNERS: usize = 100_000;
    let server = Server::start_with(&ServerOptions::default().set("enable-debug-command", "local"));
    let mut wire = server.wire();
    // Nothing expires before everything is stored.
    call(&mut wire, "DEBUG SET-ACTIVE-EXPIRE 0");
    run_all(&mut wire, (0..OWNERS).map(|n| words(&format!("HSET pmcp:tasks:o{n}:t version 1 data x"))));
    run_all(&mut wire, (0..OWNERS).map(|n| words(&format!("ZADD pmcp:idx:o{n} 5 t"))));
    run_all(&mut wire, (0..OWNERS).map(|n| words(&format!("PEXPIRE pmcp:tasks:o{n}:t 1000"))));
    std::thread::sleep(Duration::from_millis(1_001));
    let mut worst = Duration::ZERO;
    call(&mut wire, "DEBUG SET-ACTIVE-EXPIRE 1");
    let gone = holds_within(Duration::from_secs(30), || {
        let started = Instant::now();
        wire.call(&["PING"]);
        worst = worst.max(started.elapsed());
        wire.call(&["DBSIZE"]) == ":0\r\n"
    });
    println!("worst latency of a PING while {OWNERS} tasks expired and their indexes went: {worst:?}");
    assert!(gone, "{} keys left", wire.call(&["DBSIZE"]));
}

#[test]
fn entry_of_a_task_that_comes_back_at_once_stays() {
    let server = Server::start();
    let mut wire = server.wire();
    for _ in 0..50 {
        put(&mut wire, "alice", "t", &["PXAT", &in_ms(3)]);
        std::thread::sleep(Duration::from_millis(5));
        // The first command ends the task, the second one creates it again before its entry is removed.
        wire.send(&["EXISTS", "pmcp:tasks:alice:t"]).unwrap();
        wire.send(&["PMCPTASK.PUT", "pmcp:tasks:alice:t", "pmcp:idx:alice", "data", "PERSIST"]).unwrap();
        assert_eq!(wire.receive().unwrap(), ":0\r\n");
        assert_eq!(wire.receive().unwrap(), ":1\r\n");
        std::thread::sleep(Duration::from_millis(20));
        assert!(has_entry(&mut wire, "alice", "t"));
        call(&mut wire, "PMCPTASK.DEL pmcp:tasks:alice:t pmcp:idx:alice");
    }
}

// A hash that outlives its task, because another client removed the key's expiry.

#[test]
fn task_whose_key_lost_its_expiry_is_hidden_and_removed_by_whoever_meets_it() {
    let server = Server::start();
    let mut wire = server.wire();
    for lose in ["PERSIST", "RESTORE"] {
        for meet in ["GET", "LIST", "CAS", "MAXTASKS", "NX", "VERSION", "EXPIRE", "TRIM", "WALK"] {
            // In a script, so that the task cannot end before its key has lost the expiry.
            let script = "local now = redis.call('TIME')
                local at = now[1] * 1000 + math.floor(now[2] / 1000) + 400
                redis.call('PMCPTASK.PUT', KEYS[1], KEYS[2], 'data', 'PXAT', string.format('%d', at))
                if ARGV[1] == 'PERSIST' then
                    redis.call('PERSIST', KEYS[1])
                else
                    redis.call('RESTORE', KEYS[1], 0, redis.call('DUMP', KEYS[1]), 'REPLACE')
                end
                return {redis.call('PTTL', KEYS[1]), at}";
            let reply = wire.call(&["EVAL", script, "2", "pmcp:tasks:alice:t", "pmcp:idx:alice", lose]);
            let at = reply.strip_prefix("*2\r\n:-1\r\n").map(integer);
            // `expires_at` is in seconds, rounded up.
            sleep_until((at.unwrap_or_else(|| panic!("{lose}: {reply}")) + 999) / 1000 * 1000 + 10);
            match meet {
                "GET" => assert_eq!(call(&mut wire, "PMCPTASK.GET pmcp:tasks:alice:t"), "$-1\r\n"),
                "LIST" => assert_eq!(call(&mut wire, "PMCPTASK.LIST pmcp:idx:alice"), "*0\r\n"),
                "CAS" => {
                    let reply = call(&mut wire, "PMCPTASK.CAS pmcp:tasks:alice:t pmcp:idx:alice 1 x");
                    assert_eq!(reply, "*2\r\n+MISSING\r\n:0\r\n");
                }
                "MAXTASKS" => {
                    put(&mut wire, "alice", "u", &["MAXTASKS", "1"]);
                    call(&mut wire, "PMCPTASK.DEL pmcp:tasks:alice:u pmcp:idx:alice");
                }
                "NX" => {
                    put(&mut wire, "alice", "t", &["NX"]);
                    call(&mut wire, "PMCPTASK.DEL pmcp:tasks:alice:t pmcp:idx:alice");
                }
                "VERSION" => {
                    let reply = call(&mut wire, "PMCPTASK.DEL pmcp:tasks:alice:t pmcp:idx:alice VERSION 1");
                    assert_eq!(reply, "*2\r\n+MISSING\r\n:0\r\n");
                }
                "EXPIRE" => {
                    let reply = call(&mut wire, "PMCPTASK.EXPIRE pmcp:tasks:alice:t pmcp:idx:alice PERSIST");
                    assert_eq!(reply, ":0\r\n");
                }
                "TRIM" => {
                    // The hash is newer than the task that stays.
                    put(&mut wire, "alice", "u", &["CREATED", "1"]);
                    assert_eq!(call(&mut wire, "PMCPTASK.TRIM pmcp:idx:alice KEEP 1"), ":0\r\n");
                    assert!(holds_within(PROMISED, || !has_entry(&mut wire, "alice", "t")), "{lose}");
                    call(&mut wire, "PMCPTASK.DEL pmcp:tasks:alice:u pmcp:idx:alice");
                }
                _ => server.have_indexes_walked(1),
            }
            assert!(holds_within(PROMISED, || wire.call(&["DBSIZE"]) == ":0\r\n"), "{lose}, {meet}");
        }
    }
}

#[test]
fn clock_that_is_set_back_delays_no_removal() {
    let clock = Clock::new();
    let server = Server::start_with(&clock.of(ServerOptions::default()));
    let mut wire = server.wire();
    put(&mut wire, "alice", "t", &["PERSIST"]);
    // While writes are paused, the module has a timer that tries again.
    call(&mut wire, "HSET pmcp:tasks:alice:t expires_at 1");
    call(&mut wire, "CLIENT PAUSE 600000 WRITE");
    assert_eq!(call(&mut wire, "PMCPTASK.GET pmcp:tasks:alice:t"), "$-1\r\n");
    // The timer is set.
    std::thread::sleep(Duration::from_millis(300));
    clock.set_ahead(-60);
    call(&mut wire, "CLIENT UNPAUSE");
    assert!(holds_within(PROMISED, || wire.call(&["DBSIZE"]) == ":0\r\n"));
}

// Tasks that another client ends: their entries go at the walk's second look.

#[test]
fn entry_goes_at_the_second_look_when_somebody_else_removes_the_hash() {
    let server = Server::start();
    let mut wire = server.wire();
    for how in [
        "DEL pmcp:tasks:alice:t",
        "UNLINK pmcp:tasks:alice:t",
        "RENAME pmcp:tasks:alice:t elsewhere",
        "MOVE pmcp:tasks:alice:t 1",
        "HDEL pmcp:tasks:alice:t version data",
        "PEXPIREAT pmcp:tasks:alice:t 1",
        "SET pmcp:tasks:alice:t string",
    ] {
        put(&mut wire, "alice", "t", &["PERSIST"]);
        put(&mut wire, "alice", "stays", &["PERSIST"]);
        // On a separate connection: Valkey 8.1 leaves a connection in the other database after MOVE.
        call(&mut server.wire(), how);
        // Nothing removes the entry before. Some servers treat an expiry in the past like any other expiry.
        let is_expiry = how.starts_with("PEXPIREAT");
        assert!(
            is_expiry || !holds_within(Duration::from_millis(50), || !has_entry(&mut wire, "alice", "t")),
            "{how}"
        );
        server.have_indexes_walked(2);
        assert!(!has_entry(&mut wire, "alice", "t"), "{how}");
        assert!(has_entry(&mut wire, "alice", "stays"), "{how}");
        wire.call(&["DEL", "elsewhere", "pmcp:tasks:alice:t"]);
    }
}

#[test]
fn one_look_removes_nothing_and_a_task_that_comes_back_between_two_keeps_its_entry() {
    let server = Server::start_with(&ServerOptions::default().set("hz", "100"));
    let mut wire = server.wire();
    call(&mut wire, "CONFIG SET pmcptask.debug-walk-rest-ms 400");
    let walks = server.counter("index_walks");
    call(&mut wire, "ZADD pmcp:idx:alice 5 t");
    assert!(holds_within(Duration::from_secs(5), || server.counter("index_walks") > walks));
    assert!(has_entry(&mut wire, "alice", "t"));
    call(&mut wire, "HSET pmcp:tasks:alice:t version 1 data x");
    server.have_indexes_walked(3);
    assert!(has_entry(&mut wire, "alice", "t"));
}

#[test]
fn an_unlink_of_a_quarter_of_a_million_tasks_leaves_no_entry_after_the_second_look() {
    const TASKS: usize = 250_000;
    let server = Server::start();
    let mut wire = server.wire();
    // 500 owners with 250 tasks each, and one owner with the other half.
    let owner = |n: usize| if n.is_multiple_of(2) { 0 } else { n % 1_000 };
    run_all(
        &mut wire,
        (0..TASKS).map(|n| {
            let owner = owner(n);
            words(&format!("PMCPTASK.PUT pmcp:tasks:o{owner}:t{n} pmcp:idx:o{owner} data PERSIST CREATED 5"))
        }),
    );
    let tasks: Vec<_> = (0..TASKS).map(|n| format!("pmcp:tasks:o{}:t{n}", owner(n))).collect();
    let names: Vec<_> = ["UNLINK"].into_iter().chain(tasks.iter().map(String::as_str)).collect();
    assert_eq!(wire.call(&names), format!(":{TASKS}\r\n"));
    server.have_indexes_walked(2);
    assert_eq!(wire.call(&["DBSIZE"]), ":0\r\n");
}

#[test]
fn tasks_that_expired_while_the_server_was_down_leave_nothing_behind() {
    for settings in [&[("appendonly", "yes")][..], &[("save", "3600 1")]] {
        let options = ServerOptions::default().set("pmcptask.prefixes", "app");
        let options = settings.iter().fold(options, |options, (name, value)| options.set(name, value));
        let mut server = Server::start_with(&options);
        let mut wire = server.wire();
        put(&mut wire, "alice", "short", &["PXAT", &in_ms(300)]);
        put(&mut wire, "alice", "long", &["PERSIST"]);
        put(&mut wire, "bob", "only", &["PXAT", &in_ms(300)]);
        put_with("app", &mut wire, "eve", "long", &["PERSIST"]);
        put_with("app", &mut wire, "eve", "short", &["PXAT", &in_ms(300)]);
        server.stop();
        std::thread::sleep(Duration::from_millis(350));
        server.restart();
        let mut wire = server.wire();
        server.have_indexes_walked(2);
        assert_eq!(orphans(&mut wire), 0, "{settings:?}");
        assert!(!wire.exists("pmcp:idx:bob"), "{settings:?}");
        assert!(has_entry(&mut wire, "alice", "long") && wire.exists("app:idx:eve"), "{settings:?}");
    }
}

#[test]
fn server_that_is_killed_between_a_tasks_end_and_its_entrys_removes_the_entry_later() {
    let options = ServerOptions::default().with_aof();
    let mut server = Server::start_with(&options);
    let mut wire = server.wire();
    // The entry stays, as if the server were killed just before its removal.
    call(&mut wire, "CONFIG SET pmcptask.reclaim no");
    put(&mut wire, "alice", "long", &["PERSIST"]);
    put(&mut wire, "alice", "short", &["PERSIST"]);
    wire.expire_soon("pmcp:tasks:alice:short");
    assert!(holds_within(Duration::from_secs(10), || !wire.exists("pmcp:tasks:alice:short")));
    server.kill();
    server.restart();
    let mut wire = server.wire();
    assert!(has_entry(&mut wire, "alice", "short"));
    server.have_indexes_walked(2);
    assert!(!has_entry(&mut wire, "alice", "short") && has_entry(&mut wire, "alice", "long"));
}

#[test]
fn promoted_replica_removes_what_its_primary_could_not() {
    let primary = Server::start();
    let replica = Server::start_with(&ServerOptions::default().replica_of(&primary));
    let mut wire = primary.wire();
    put(&mut wire, "alice", "t", &["PERSIST"]);
    put(&mut wire, "alice", "gone", &["PERSIST"]);
    call(&mut wire, "DEL pmcp:tasks:alice:gone");
    let mut wire = replica.wire();
    assert!(holds_within(Duration::from_secs(10), || has_entry(&mut wire, "alice", "gone")
        && !wire.exists("pmcp:tasks:alice:gone")));
    // A replica removes nothing, whatever it sees.
    call(&mut wire, "CONFIG SET pmcptask.debug-walk-rest-ms 1");
    assert!(!holds_within(Duration::from_millis(500), || !has_entry(&mut wire, "alice", "gone")));
    assert_eq!(replica.counter("index_walks"), 0);
    call(&mut wire, "REPLICAOF NO ONE");
    replica.have_indexes_walked(2);
    assert!(!has_entry(&mut wire, "alice", "gone") && has_entry(&mut wire, "alice", "t"));
}

// Other tools and other applications.

/// A first look at a dead entry does not count any more once its index was removed, or while nothing
/// is reclaimed.
#[test]
fn copy_that_starts_anew_has_all_its_time_again() {
    for between in ["FLUSHALL", "FLUSHDB", "CONFIG SET pmcptask.reclaim no"] {
        let server = Server::start();
        let mut wire = server.wire();
        call(&mut wire, "ZADD pmcp:idx:alice 5 t");
        server.have_indexes_walked_once_anew();
        let walks = server.counter("index_walks");
        call(&mut wire, between);
        call(&mut wire, "DEL pmcp:idx:alice");
        call(&mut wire, "ZADD pmcp:idx:alice 5 t");
        // Long enough for the server's housekeeping to run.
        std::thread::sleep(Duration::from_millis(250));
        call(&mut wire, "CONFIG SET pmcptask.reclaim yes");
        call(&mut wire, "CONFIG SET pmcptask.debug-walk-rest-ms 3000");
        assert!(holds_within(Duration::from_secs(10), || server.counter("index_walks") > walks));
        assert!(has_entry(&mut wire, "alice", "t"), "{between}");
        server.have_indexes_walked(2);
        assert!(!has_entry(&mut wire, "alice", "t"), "{between}");
    }
}

#[test]
fn data_that_another_tool_copies_in_keeps_its_entries_in_whatever_order() {
    let server = Server::start();
    let mut wire = server.wire();
    call(&mut wire, "ZADD pmcp:idx:index-first 5 t");
    call(&mut wire, "HSET pmcp:tasks:hash-first:t version 1 data x");
    // A walk passes, as if minutes had passed.
    server.have_indexes_walked_once_anew();
    call(&mut wire, "HSET pmcp:tasks:index-first:t version 1 data x");
    // The module adds no entry for a hash that another tool wrote: the entry would be in the way of that
    // tool's index.
    assert!(!wire.exists("pmcp:idx:hash-first"));
    call(&mut wire, "ZADD elsewhere 7 t");
    let dumped = server.dump_of("elsewhere");
    let mut restore = redis::cmd("RESTORE");
    restore.arg("pmcp:idx:hash-first").arg(0).arg(dumped).exec(&mut server.connection()).unwrap();
    server.have_indexes_walked(3);
    for owner in ["index-first", "hash-first"] {
        assert!(has_entry(&mut wire, owner, "t"), "{owner}");
        let listed = call(&mut wire, &format!("PMCPTASK.LIST pmcp:idx:{owner}"));
        assert!(listed.starts_with("*1\r\n"), "{owner}: {listed}");
    }
}

#[test]
fn migrate_meets_no_busy_key_and_loses_no_entry_in_either_order() {
    let (from, to) = (Server::start(), Server::start());
    let mut wire = from.wire();
    let mut there = to.wire();
    let port = to.port();
    for (owner, keys) in [("hash-first", ["tasks", "idx"]), ("index-first", ["idx", "tasks"])] {
        put(&mut wire, owner, "t", &["PXAT", &in_ms(60_000), "CREATED", "7"]);
        for kind in keys {
            let key =
                if kind == "tasks" { format!("pmcp:tasks:{owner}:t") } else { format!("pmcp:idx:{owner}") };
            assert_eq!(call(&mut wire, &format!("MIGRATE 127.0.0.1 {port} {key} 0 5000 COPY")), "+OK\r\n");
            to.have_indexes_walked_once_anew();
        }
        to.have_indexes_walked(2);
        assert_eq!(call(&mut there, &format!("ZSCORE pmcp:idx:{owner} t")), "$1\r\n7\r\n");
    }
}

/// Every key with its value and expiry.
fn keys_of(server: &Server, database: u8) -> String {
    format!("{:?}", server.dump(database))
}

#[test]
fn keys_of_other_applications_are_not_touched() {
    let mut server = Server::start_with(&ServerOptions::default().set("appendonly", "yes"));
    let mut wire = server.wire();
    put(&mut wire, "alice", "t", &["PERSIST"]);
    // The prefix is in use, but in another database.
    call(&mut wire, "SELECT 1");
    put_with("shop", &mut wire, "alice", "t", &["PERSIST"]);
    call(&mut wire, "SELECT 0");
    for line in [
        "HSET shop:tasks:q1:42 version 7 data x",
        "HSET shop:tasks:q1:43 version 7 data x expires_at 5",
        "ZADD shop:idx:price 10 apple 20 pear",
        "ZADD shop:idx:q1 10 42 20 43 30 44",
        "SET shop:tasks:q1:44 x PX 50",
        // These only look like a prefix that is in use.
        "ZADD pmcp2:idx:price 10 apple",
        "ZADD my:pmcp:idx:price 10 apple",
        "ZADD PMCP:idx:price 10 apple",
        "ZADD pmcp:idx 10 apple",
    ] {
        call(&mut wire, line);
    }
    // A key does not become a task key because our commands name it, whether or not they find
    // something there.
    assert_eq!(wire.call(&["PMCPTASK.GET", "shop:tasks:q1:9"]), "$-1\r\n");
    assert_eq!(wire.call(&["PMCPTASK.GET", "shop:tasks:q1:43"]), "$-1\r\n");
    assert!(wire.call(&["PMCPTASK.GET", "shop:tasks:q1:42"]).starts_with("*2\r\n:7\r\n"));
    assert!(wire.call(&["PMCPTASK.LIST", "shop:idx:q1"]).starts_with("*1\r\n"));
    assert_eq!(wire.call(&["PMCPTASK.DEL", "shop:tasks:q1:9", "shop:idx:q1"]), ":0\r\n");
    assert!(holds_within(Duration::from_secs(10), || !wire.exists("shop:tasks:q1:44")));
    let before = keys_of(&server, 0);
    server.have_indexes_walked(4);
    assert_eq!(keys_of(&server, 0), before);
    server.stop();
    server.restart();
    server.have_indexes_walked(4);
    assert_eq!(keys_of(&server, 0), before);
}

#[test]
fn prefix_is_in_use_where_it_was_written_and_follows_its_database() {
    let server = Server::start();
    let mut wire = server.wire();
    call(&mut wire, "SELECT 1");
    put_with("shop", &mut wire, "alice", "t", &["PERSIST"]);
    let dead = "ZADD shop:idx:bob 10 gone";
    for database in ["SELECT 1", "SELECT 2"] {
        call(&mut wire, database);
        call(&mut wire, dead);
    }
    server.have_indexes_walked(3);
    assert!(wire.exists("shop:idx:bob"));
    call(&mut wire, "SELECT 1");
    assert!(!wire.exists("shop:idx:bob"));
    call(&mut wire, "SWAPDB 1 2");
    // This database now holds what was in database 2.
    server.have_indexes_walked(3);
    assert!(wire.exists("shop:idx:bob"));
    call(&mut wire, "SELECT 2");
    call(&mut wire, dead);
    server.have_indexes_walked(3);
    assert!(!wire.exists("shop:idx:bob") && wire.exists("shop:idx:alice"));
}

#[test]
fn setting_says_which_prefixes_are_in_use_and_whether_anything_is_removed() {
    let server = Server::start();
    let mut wire = server.wire();
    let dead = ["pmcp:idx:a", "jobs:idx:a", "batch:idx:a", "other:idx:a"];
    for index in dead {
        call(&mut wire, &format!("ZADD {index} 5 gone"));
    }
    call(&mut wire, "CONFIG SET pmcptask.reclaim no");
    assert_eq!(wire.call(&["CONFIG", "SET", "pmcptask.prefixes", "jobs  batch"]), "+OK\r\n");
    assert!(wire.call(&["CONFIG", "GET", "pmcptask.prefixes"]).contains("jobs  batch"));
    // Let it expire by the server's clock: a PUT whose PXAT is already past leaves no entry.
    put(&mut wire, "b", "t", &["PERSIST"]);
    wire.expire_soon("pmcp:tasks:b:t");
    assert!(holds_within(Duration::from_secs(10), || !wire.exists("pmcp:tasks:b:t")));
    call(&mut wire, "CONFIG SET pmcptask.debug-walk-rest-ms 1");
    std::thread::sleep(Duration::from_millis(500));
    assert!(wire.exists("pmcp:idx:a") && wire.exists("pmcp:idx:b"));
    call(&mut wire, "CONFIG SET pmcptask.reclaim yes");
    server.have_indexes_walked(2);
    let left = dead.map(|index| wire.exists(index));
    assert_eq!((left, wire.exists("pmcp:idx:b")), ([false, false, false, true], false));
    for (prefixes, what) in [("jobs a:tasks:b", "a:tasks:b"), ("x:idx:", "x:idx:")] {
        let reply = wire.call(&["CONFIG", "SET", "pmcptask.prefixes", prefixes]);
        assert!(reply.starts_with("-ERR ") && reply.contains(what), "{reply}");
    }
    assert!(wire.call(&["CONFIG", "GET", "pmcptask.prefixes"]).contains("jobs  batch"));
}

// What it costs other clients.

#[test]
fn own_reads_leave_idle_times_counters_and_statistics_as_they_are() {
    for policy in ["allkeys-lru", "allkeys-lfu"] {
        // Without this setting, a counter loses one at each full minute of the clock, whoever reads the key.
        let options = ServerOptions::default().set("maxmemory-policy", policy).set("lfu-decay-time", "0");
        let server = Server::start_with(&options);
        let mut wire = server.wire();
        for n in 0..50 {
            put(&mut wire, "alice", &format!("t{n}"), &["PXAT", &in_ms(600_000)]);
        }
        call(&mut wire, "ZADD pmcp:idx:alice 5 dead");
        let usage = |wire: &mut Wire| -> Vec<i64> {
            let how = if policy == "allkeys-lru" { "IDLETIME" } else { "FREQ" };
            let keys = (0..50).map(|n| format!("pmcp:tasks:alice:t{n}"));
            keys.map(|key| integer(&call(wire, &format!("OBJECT {how} {key}")))).collect()
        };
        let lookups = |wire: &mut Wire| {
            ["keyspace_hits", "keyspace_misses"].map(|name| wire.info_number("stats", name))
        };
        if policy == "allkeys-lru" {
            // Long enough for a read to show. The index was the last key to be written.
            let idle = |wire: &mut Wire| integer(&call(wire, "OBJECT IDLETIME pmcp:idx:alice"));
            assert!(holds_within(Duration::from_secs(20), || idle(&mut wire) >= 2));
        }
        let (before, counted) = (usage(&mut wire), lookups(&mut wire));
        server.have_indexes_walked(2);
        if policy == "allkeys-lru" {
            assert!(!call(&mut wire, "OBJECT IDLETIME pmcp:idx:alice").starts_with(":0"));
        }
        // This PUT counts the live tasks of the owner.
        let put = "PMCPTASK.PUT pmcp:tasks:alice:u pmcp:idx:alice x MAXTASKS 10";
        let refused = wire.run(put);
        assert!(refused.starts_with("-CAPACITY "), "{refused}");
        // These look at another task first.
        let refused = wire.run(&format!("{put} HELD pmcp:tasks:alice:t7"));
        assert!(refused.starts_with("-CAPACITY "), "{refused}");
        let refused = wire.run(&format!("{put} HELD pmcp:tasks:alice:none"));
        assert!(refused.starts_with("-NOTHELD "), "{refused}");
        assert_eq!(lookups(&mut wire)[1], counted[1], "{policy}");
        let after = usage(&mut wire);
        for (before, after) in before.iter().zip(&after) {
            let is_kept =
                if policy == "allkeys-lru" { after >= before && *before >= 2 } else { after == before };
            assert!(is_kept, "{policy}: {before}, {after}");
        }
    }
}

/// The walk gets its time from the server's housekeeping, which runs `hz` times a second.
#[test]
fn walk_takes_the_same_share_of_the_servers_time_whatever_hz() {
    const KEYS: usize = 30_000;
    let server = Server::start();
    let mut wire = server.wire();
    run_all(&mut wire, (0..KEYS).map(|n| words(&format!("SET key-{n} x"))));
    let mut walk_at = |hz: &str| {
        call(&mut wire, &format!("CONFIG SET hz {hz}"));
        let walks = server.counter("index_walks");
        // Makes the walk start again.
        call(&mut wire, "SWAPDB 8 9");
        let started = Instant::now();
        assert!(holds_within(Duration::from_mins(1), || server.counter("index_walks") > walks));
        started.elapsed()
    };
    walk_at("10");
    let (slow, fast) = (walk_at("10"), walk_at("500"));
    println!("walked over {KEYS} keys in {slow:?} at hz 10, in {fast:?} at hz 500");
    assert!(fast > slow / 3 && fast < slow * 3, "{slow:?} at hz 10, {fast:?} at hz 500");
}

/// Processor time that the server takes for a call, in µs: the minimum of a few calls.
fn time_of(wire: &mut Wire, command: &str, expected: &str) -> u64 {
    let words: Vec<_> = command.split(' ').collect();
    let run = |wire: &mut Wire| {
        let reply = wire.call(&words);
        assert!(reply.starts_with(expected), "{command}: {reply}");
    };
    (0..5).map(|_| time_of_all(wire, run)).min().unwrap()
}

/// Processor time that the server takes for some calls, in µs.
fn time_of_all(wire: &mut Wire, calls: impl Fn(&mut Wire)) -> u64 {
    let used = |wire: &mut Wire| -> f64 {
        let info = wire.call(&["INFO", "cpu"]);
        let of = |name: &str| {
            info.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse::<f64>().unwrap()
        };
        of("used_cpu_user_main_thread:") + of("used_cpu_sys_main_thread:")
    };
    let before = used(wire);
    calls(wire);
    let seconds = used(wire) - before;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let microseconds = (seconds * 1e6) as u64;
    microseconds
}

#[test]
fn no_command_takes_longer_than_in_proportion_to_what_it_looks_at() {
    const FEW: u64 = 5_000;
    const MANY: u64 = 4 * FEW;
    let server = Server::start();
    let mut wire = server.wire();
    for count in [FEW, MANY] {
        // All with one creation time: dead entries; live tasks; live tasks among many dead entries.
        run_all(&mut wire, (0..count).map(|n| words(&format!("ZADD pmcp:idx:dead{count} 5 t{n:06}"))));
        run_all(
            &mut wire,
            (0..count).map(|n| {
                words(&format!(
                    "PMCPTASK.PUT pmcp:tasks:live{count}:t{n:06} pmcp:idx:live{count} x CREATED 5"
                ))
            }),
        );
        run_all(&mut wire, (0..count).map(|n| words(&format!("ZADD pmcp:idx:mixed{count} 5 t{n:06}"))));
        call(&mut wire, &format!("PMCPTASK.PUT pmcp:tasks:mixed{count}:z pmcp:idx:mixed{count} x CREATED 5"));
        call(&mut wire, &format!("PMCPTASK.PUT pmcp:tasks:mixed{count}:a pmcp:idx:mixed{count} x CREATED 5"));
    }
    let put = |owner: &str, max: u64| {
        format!("PMCPTASK.PUT pmcp:tasks:{owner}:new pmcp:idx:{owner} x MAXTASKS {max} PXAT 1")
    };
    for (what, command, reply) in [
        (
            "one of dead ones",
            (|n| format!("PMCPTASK.LIST pmcp:idx:dead{n} COUNT 1")) as fn(u64) -> String,
            "*0",
        ),
        ("newest of dead ones", |n| format!("PMCPTASK.LIST pmcp:idx:dead{n} REV COUNT 1"), "*0"),
        ("two behind dead ones", |n| format!("PMCPTASK.LIST pmcp:idx:mixed{n} COUNT 2"), "*2"),
        ("the last page", |n| format!("PMCPTASK.LIST pmcp:idx:live{n} AFTER 5 t{:06} COUNT 10", n - 5), "*4"),
        (
            "the last page backwards",
            |n| format!("PMCPTASK.LIST pmcp:idx:live{n} REV AFTER 5 t000003 COUNT 10"),
            "*3",
        ),
        ("trim of dead ones", |n| format!("PMCPTASK.TRIM pmcp:idx:dead{n} KEEP 1"), ":0"),
        ("trim of two among dead ones", |n| format!("PMCPTASK.TRIM pmcp:idx:mixed{n} KEEP 2"), ":0"),
        ("trim that keeps all", |n| format!("PMCPTASK.TRIM pmcp:idx:live{n} KEEP {n}"), ":0"),
    ] {
        let [few, many] = [FEW, MANY].map(|count| time_of(&mut wire, &command(count), reply));
        println!("{what}: {few} µs among {FEW}, {many} µs among {MANY}");
        // The ratio is 4 if the work is proportional, and 16 if it is quadratic.
        assert!(many < 9 * few.max(100), "{what}: {few} µs among {FEW}, {many} µs among {MANY}");
    }
    for (owner, max, reply) in [("dead", 3, ":1"), ("mixed", 2, "-CAPACITY"), ("live", 3, "-CAPACITY")] {
        let [few, many] =
            [FEW, MANY].map(|count| time_of(&mut wire, &put(&format!("{owner}{count}"), max), reply));
        println!("MAXTASKS {max} of {owner} ones: {few} µs among {FEW}, {many} µs among {MANY}");
        assert!(many < 9 * few.max(100), "{owner}: {few} µs among {FEW}, {many} µs among {MANY}");
    }
    // A trim of everything: one call, and call after call.
    for count in ["COUNT 1000000", "COUNT 100"] {
        let [few, many] = [FEW, MANY].map(|n| time_to_trim_all(&mut wire, n, count));
        println!("trim of all, {count}: {few} µs for {FEW}, {many} µs for {MANY}");
        assert!(many < 9 * few.max(100), "{count}: {few} µs for {FEW}, {many} µs for {MANY}");
    }
}

/// Creates tasks with one creation time and as many dead entries, and removes the tasks.
fn time_to_trim_all(wire: &mut Wire, tasks: u64, count: &str) -> u64 {
    let (owner, trim) = ("trimmed", format!("PMCPTASK.TRIM pmcp:idx:trimmed KEEP 1 {count}"));
    let all = || (0..tasks).rev();
    run_all(
        wire,
        all()
            .map(|n| words(&format!("PMCPTASK.PUT pmcp:tasks:{owner}:t{n:06} pmcp:idx:{owner} x CREATED 5"))),
    );
    run_all(wire, all().map(|n| words(&format!("ZADD pmcp:idx:{owner} 5 t{n:06}-dead"))));
    let time = time_of_all(wire, |wire| while integer(&call(wire, &trim)) > 0 {});
    let kept = call(wire, &format!("PMCPTASK.LIST pmcp:idx:{owner} NODATA"));
    assert!(kept.starts_with("*1\r\n") && kept.contains(&format!("t{:06}\r\n", tasks - 1)), "{kept}");
    call(wire, "UNLINK pmcp:idx:trimmed");
    call(wire, &format!("UNLINK pmcp:tasks:{owner}:t{:06}", tasks - 1));
    time
}

#[test]
fn refused_put_looks_at_as_many_tasks_as_are_allowed() {
    const TASKS: u64 = 20_000;
    let server = Server::start();
    let mut wire = server.wire();
    run_all(
        &mut wire,
        (0..TASKS).map(|n| words(&format!("PMCPTASK.PUT pmcp:tasks:alice:t{n} pmcp:idx:alice x"))),
    );
    let refused = |wire: &mut Wire, max: u64| {
        let put = format!("PMCPTASK.PUT pmcp:tasks:alice:new pmcp:idx:alice x MAXTASKS {max}");
        time_of(wire, &put, "-CAPACITY")
    };
    let (few, all) = (refused(&mut wire, 10), refused(&mut wire, TASKS));
    println!("refused among {TASKS} tasks: {few} µs where 10 are allowed, {all} µs where {TASKS} are");
    assert!(few * 20 < all, "{few} µs, {all} µs");
}
