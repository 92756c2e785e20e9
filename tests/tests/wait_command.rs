//! `PMCPTASK.WAIT`: who waits is answered as soon as the task changes, and not before.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::{Duration, Instant};

use pmcptask_tests::refusals::{CORRUPT_VERSION, WRONG_TYPE};
use pmcptask_tests::{
    Clock, Cluster, Dice, NIL, OK, PROMISED, Server, ServerOptions, TASK, Wire, calling_module, holds_within,
    integer, now_ms, skipped, sleep_until, slowness, words,
};

/// Only a broken server needs this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Enough for the module to look at a key, on every server.
const A_MOMENT: Duration = Duration::from_millis(150);
const MISSING: &str = "*2\r\n+MISSING\r\n:0\r\n";

/// A server, and a client that changes its tasks.
struct Stage {
    wire: Wire,
    server: Server,
}

impl Stage {
    fn start() -> Self {
        Self::start_with(ServerOptions::default())
    }

    fn start_with(options: ServerOptions) -> Self {
        let server = Server::start_with(&options.set("enable-debug-command", "local"));
        Self { wire: server.wire(), server }
    }

    /// Runs commands that must not fail.
    fn run(&mut self, lines: &[&str]) {
        for line in lines {
            let reply = self.wire.run(line);
            assert!(!reply.starts_with('-'), "{line}: {reply}");
        }
    }

    /// Empties the server and makes the task, at version 1.
    fn renew(&mut self) {
        self.run(&["FLUSHALL", "PMCPTASK.PUT T I data"]);
    }

    /// A client that waits with this command.
    fn waiter(&mut self, line: &str) -> Wire {
        let wire = self.server.wire();
        self.wait(wire, line)
    }

    /// Makes a client wait.
    fn wait(&mut self, mut wire: Wire, line: &str) -> Wire {
        let before = self.waiting();
        wire.send_line(line);
        assert!(holds_within(PATIENCE, || self.waiting() == before + 1), "{line}: nobody waits");
        wire
    }

    /// How many clients wait, as the module counts them.
    fn waiting(&mut self) -> u64 {
        self.wire.info_number("pmcptask", "pmcptask_waiting_clients")
    }

    fn nobody_waits(&mut self) {
        assert!(holds_within(PROMISED, || self.waiting() == 0), "{} clients wait", self.waiting());
    }

    /// Whether the server tells a module of `DEL`, `RENAME` and `EXPIRE` without harm to others: see
    /// [`move_and_copy_leave_the_client_in_its_database`].
    fn tells_of_every_change(&mut self) -> bool {
        let info = self.wire.run("INFO server");
        !["valkey_version:8.1.", "valkey_version:9.0."].iter().any(|version| info.contains(version))
    }
}

fn ok(version: i64, data: &str) -> String {
    format!("*3\r\n+OK\r\n:{version}\r\n${}\r\n{data}\r\n", data.len())
}

/// The answer of a client that waits, which must come soon.
fn answer(waiter: &mut Wire, what: &str) -> String {
    let started = Instant::now();
    let reply = waiter.receive().unwrap();
    let took = started.elapsed();
    assert!(took < PROMISED * slowness(), "{what}: the answer took {took:?}");
    reply
}

fn has_no_answer(waiter: &mut Wire) -> bool {
    waiter.received().unwrap().is_none()
}

/// A time on the clock after this many ms, or later on a slow server.
fn in_ms(ms: i64) -> i64 {
    now_ms() + ms * i64::from(slowness())
}

fn client_id(wire: &mut Wire) -> String {
    integer(&wire.run("CLIENT ID")).to_string()
}

// Replies.

#[test]
fn call_that_need_not_wait_is_answered_at_once() {
    let mut stage = Stage::start();
    for protocol in ["2", "3"] {
        stage.run(&["FLUSHALL", &format!("HELLO {protocol}")]);
        for (line, reply) in [
            ("PMCPTASK.WAIT T 1 0", MISSING.to_owned()),
            ("PMCPTASK.WAIT T 0 0", MISSING.to_owned()),
            ("PMCPTASK.PUT T I data", ":1\r\n".to_owned()),
            ("PMCPTASK.WAIT T 0 0", ok(1, "data")),
            ("pmcptask.wait T 7 9223372036854775807", ok(1, "data")),
            ("PMCPTASK.WAIT T 9223372036854775807 1", ok(1, "data")),
            ("PMCPTASK.EXPIRE T I PXAT 1", ":1\r\n".to_owned()),
            ("PMCPTASK.WAIT T 1 0", MISSING.to_owned()),
            ("HSET T version 1 data x expires_at 1", ":3\r\n".to_owned()),
            ("PMCPTASK.WAIT T 1 0", MISSING.to_owned()),
            ("SET T text", OK.to_owned()),
            ("PMCPTASK.WAIT T 1 0", format!("-{WRONG_TYPE}\r\n")),
            ("DEL T", ":1\r\n".to_owned()),
            ("HSET T data x", ":1\r\n".to_owned()),
            ("PMCPTASK.WAIT T 1 0", format!("-{CORRUPT_VERSION}\r\n")),
        ] {
            assert_eq!(stage.wire.run(line), reply, "RESP{protocol}: {line}");
        }
    }
    stage.nobody_waits();
    assert_eq!(stage.server.counter("waits"), 2 * 7);
}

#[test]
fn nil_comes_when_the_time_is_over_and_not_before() {
    let mut stage = Stage::start();
    stage.renew();
    for (protocol, nil) in [("2", NIL), ("3", "_\r\n")] {
        stage.run(&[&format!("HELLO {protocol}")]);
        for ms in [1, 20, 200] {
            let started = Instant::now();
            assert_eq!(stage.wire.run(&format!("PMCPTASK.WAIT T 1 {ms}")), nil);
            let took = started.elapsed();
            // The server's clock starts up to 1 ms earlier.
            assert!(took + Duration::from_millis(1) >= Duration::from_millis(ms), "{ms} ms: {took:?}");
            println!("RESP{protocol}, {ms} ms: {took:?}");
        }
    }
    stage.nobody_waits();
}

#[test]
fn zero_and_a_time_beyond_the_clock_are_for_ever() {
    let mut stage = Stage::start();
    stage.renew();
    let mut waiters = ["0", "9223372036854775807", "4611686018427387904", "4611686018427387903"]
        .map(|ms| stage.waiter(&format!("PMCPTASK.WAIT T 1 {ms}")));
    std::thread::sleep(A_MOMENT);
    for waiter in &mut waiters {
        assert!(has_no_answer(waiter));
    }
    stage.run(&["PMCPTASK.PUT T I new"]);
    for mut waiter in waiters {
        assert_eq!(answer(&mut waiter, "PUT"), ok(2, "new"));
    }
}

/// A time that just fits on the clock for the module no longer fits for the server, if a millisecond passes between. Newer
/// servers then refuse the time, and crashed later.
#[test]
fn time_that_just_fits_on_the_clock_is_waited_for() {
    const ROUNDS: u32 = 10_000;
    let mut stage = Stage::start();
    stage.renew();
    let mut waiter = stage.server.wire();
    let id = client_id(&mut waiter);
    for _ in 0..ROUNDS / slowness() {
        let timeout_ms = (i64::MAX - now_ms()).to_string();
        waiter.send_line(&format!("PMCPTASK.WAIT T 1 {timeout_ms}"));
        while stage.wire.run(&format!("CLIENT UNBLOCK {id}")) == ":0\r\n" {
            // A refusal would be here already.
            assert!(has_no_answer(&mut waiter));
        }
        assert_eq!(waiter.receive().unwrap(), NIL);
    }
    stage.nobody_waits();
    stage.run(&["PMCPTASK.PUT T I more"]);
}

#[test]
fn who_waits_for_a_task_of_an_hour_or_of_ages_costs_the_server_nothing_nor_does_a_waiter_that_has_gone() {
    let mut stage = Stage::start();
    stage.renew();
    let is_idle = |stage: &mut Stage| {
        let (busy, started) = (cpu_time(&mut stage.wire), Instant::now());
        std::thread::sleep(Duration::from_secs(1));
        cpu_time(&mut stage.wire) - busy < started.elapsed().as_secs_f64() / 5.0
    };
    for at in [now_ms() + 3_600_000, now_ms() + 40 * 86_400_000, i64::MAX / 2] {
        stage.run(&[&format!("PEXPIREAT T {at}")]);
        let waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
        assert!(is_idle(&mut stage), "{at}: with a waiter");
        drop(waiter);
        stage.nobody_waits();
        assert!(is_idle(&mut stage), "{at}: after the waiter has gone");
    }
}

/// Processor time of the server, in s.
fn cpu_time(wire: &mut Wire) -> f64 {
    ["used_cpu_user", "used_cpu_sys"]
        .map(|field| wire.info("cpu", field).trim().parse::<f64>().unwrap())
        .iter()
        .sum()
}

#[test]
fn answer_to_who_has_waited_is_the_same_in_resp3() {
    let mut stage = Stage::start();
    stage.renew();
    for (change, reply) in [("PMCPTASK.PUT T I new", ok(2, "new")), ("PMCPTASK.DEL T I", MISSING.to_owned())]
    {
        stage.renew();
        let mut wire = stage.server.wire();
        wire.run("HELLO 3");
        let mut waiter = stage.wait(wire, "PMCPTASK.WAIT T 1 0");
        stage.run(&[change]);
        assert_eq!(answer(&mut waiter, change), reply);
    }
}

// Changes.

/// Each change of a task: what comes before, the change, and the answer to who has seen version 1.
fn changes() -> Vec<(&'static [&'static str], &'static str, String)> {
    const RESTORE: &str =
        "EVAL redis.call('RESTORE',KEYS[1],0,redis.call('DUMP',KEYS[2]),'REPLACE') 2 T other";
    const OTHER: &[&str] = &["HSET other version 4 data other"];
    let missing = || MISSING.to_owned();
    let wrong_type = || format!("-{WRONG_TYPE}\r\n");
    vec![
        (&[], "PMCPTASK.PUT T I new", ok(2, "new")),
        (&[], "PMCPTASK.CAS T I 1 new", ok(2, "new")),
        (&[], "PMCPTASK.PUT T I new PXAT 1", missing()),
        (&[], "PMCPTASK.DEL T I", missing()),
        (&[], "PMCPTASK.DEL T I VERSION 1", missing()),
        (&[], "PMCPTASK.TRIM I KEEP 0", missing()),
        (&[], "PMCPTASK.EXPIRE T I PXAT 1", missing()),
        (&[], "HSET T version 7 data new", ok(7, "new")),
        (&[], "HINCRBY T version 1", ok(2, "data")),
        (&[], "HDEL T version", format!("-{CORRUPT_VERSION}\r\n")),
        (&[], "HDEL T version data", missing()),
        (&[], "HSET T expires_at 1", missing()),
        (&[], "DEL T", missing()),
        (&[], "UNLINK T", missing()),
        (&[], "RENAME T other", missing()),
        (OTHER, "RENAME other T", ok(4, "other")),
        (OTHER, "COPY other T REPLACE", ok(4, "other")),
        (OTHER, RESTORE, ok(4, "other")),
        (&[], "MOVE T 1", missing()),
        (&[], "SET T text", wrong_type()),
        (&["SADD set x"], "SUNIONSTORE T set", wrong_type()),
        (&["RPUSH list x"], "SORT list ALPHA STORE T", wrong_type()),
        (&[], "BITOP NOT T none", missing()),
        (&[], "PEXPIREAT T 1", missing()),
        (&[], "EXPIRE T -1", missing()),
        (&[], "FLUSHALL", missing()),
        (&[], "FLUSHALL ASYNC", missing()),
        (&[], "FLUSHDB", missing()),
        (&[], "SWAPDB 0 1", missing()),
        (&[], "SWAPDB 1 0", missing()),
    ]
}

fn each_change_wakes(change_with: impl Fn(&mut Stage, &str)) {
    let mut stage = Stage::start();
    let mut longest = (Duration::ZERO, "");
    for (before, change, reply) in changes() {
        stage.renew();
        stage.run(before);
        let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
        let started = Instant::now();
        change_with(&mut stage, change);
        assert_eq!(answer(&mut waiter, change), reply, "{change}");
        longest = longest.max((started.elapsed(), change));
        stage.nobody_waits();
    }
    println!("the longest way from the change to the answer: {longest:?}");
    assert_eq!(stage.server.counter("panics") + stage.server.counter("failed_calls"), 0);
}

#[test]
fn every_change_of_the_task_wakes_by_our_commands_and_by_those_of_others() {
    each_change_wakes(|stage, change| stage.run(&[change]));
}

#[test]
fn change_in_a_transaction_wakes_once_the_transaction_is_over() {
    each_change_wakes(|stage, change| {
        stage.run(&["MULTI", change, "PMCPTASK.GET T", "PING", "EXEC"]);
    });
}

#[test]
fn change_in_a_script_wakes_once_the_script_is_over() {
    each_change_wakes(|stage, change| {
        if change.starts_with("EVAL") {
            return stage.run(&[change]);
        }
        let words = [&["EVAL", "redis.call(unpack(ARGV))", "0"][..], &words(change)].concat();
        let reply = stage.wire.call(&words);
        assert!(!reply.starts_with('-'), "{change}: {reply}");
    });
}

#[test]
fn only_the_end_of_a_transaction_counts() {
    let mut stage = Stage::start();
    stage.renew();
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    stage.run(&["MULTI", "HSET T version 5", "HSET T version 1", "EXEC"]);
    std::thread::sleep(A_MOMENT);
    assert!(has_no_answer(&mut waiter));
    stage.run(&["MULTI", "DEL T", "PMCPTASK.PUT T I a", "PMCPTASK.PUT T I b", "EXEC"]);
    assert_eq!(answer(&mut waiter, "EXEC"), ok(2, "b"));
}

#[test]
fn who_has_seen_an_older_version_is_answered_and_who_has_seen_this_one_waits() {
    let mut stage = Stage::start();
    stage.renew();
    let mut of_one = stage.waiter("PMCPTASK.WAIT T 1 0");
    stage.run(&["MULTI", "HSET T version 2", "EXEC"]);
    assert_eq!(answer(&mut of_one, "HSET"), ok(2, "data"));
    let mut of_two = stage.waiter("PMCPTASK.WAIT T 2 0");
    stage.run(&["HSET T version 2"]);
    std::thread::sleep(A_MOMENT);
    assert!(has_no_answer(&mut of_two));
    stage.run(&["HSET T version 1"]);
    assert_eq!(answer(&mut of_two, "HSET"), ok(1, "data"));
}

#[test]
fn nothing_else_wakes() {
    let mut stage = Stage::start();
    stage.renew();
    stage.run(&[
        "PMCPTASK.PUT pmcp:tasks:o:u I data",
        "PMCPTASK.PUT pmcp:tasks:p:t pmcp:idx:p data",
        "SELECT 1",
        "PMCPTASK.PUT T I data",
        "SELECT 0",
    ]);
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    for lines in [
        // The version stays.
        &["PMCPTASK.EXPIRE T I PXAT 4102444800000"][..],
        &["PMCPTASK.EXPIRE T I PERSIST"],
        &["PEXPIRE T 100000", "PERSIST T"],
        &["HSET T other x", "HDEL T other"],
        &["HSET T version 1"],
        &["HSET T expires_at 4102444800"],
        // Other keys.
        &["PMCPTASK.PUT pmcp:tasks:o:u I new", "PMCPTASK.DEL pmcp:tasks:o:u I"],
        &["PMCPTASK.PUT pmcp:tasks:p:t pmcp:idx:p new", "DEL pmcp:tasks:p:t pmcp:idx:p"],
        &["SET pmcp:tasks:o:t: x", "SET pmcp:tasks:o: x", "SET o:t x", "DEL I"],
        &["COPY T other", "RENAME other another", "MOVE another 1"],
        // Other databases.
        &["SELECT 1", "PMCPTASK.PUT T I new", "DEL T", "PMCPTASK.PUT T I new", "FLUSHDB", "SELECT 0"],
        &["SWAPDB 1 2"],
        // Reads.
        &[
            "PMCPTASK.GET T",
            "PMCPTASK.LIST I",
            "HGETALL T",
            "EXISTS T",
            "TOUCH T",
            "DUMP T",
            "OBJECT ENCODING T",
        ],
        // Calls that change nothing.
        &[
            "PMCPTASK.PUT T I new NX",
            "PMCPTASK.CAS T I 7 new",
            "PMCPTASK.DEL T I VERSION 7",
            "PMCPTASK.WAIT T 1 1",
        ],
        &["MULTI", "PMCPTASK.GET T", "EXEC", "SETNX T x"],
    ] {
        stage.run(lines);
        assert!(has_no_answer(&mut waiter), "{lines:?}");
    }
    std::thread::sleep(A_MOMENT);
    assert!(has_no_answer(&mut waiter));
    assert_eq!(stage.waiting(), 1);
    stage.run(&["HSET T version 9 data end"]);
    assert_eq!(answer(&mut waiter, "HSET"), ok(9, "end"));
}

#[test]
fn clients_wait_in_their_own_databases() {
    let mut stage = Stage::start();
    let mut waiters: Vec<_> = (0..4)
        .map(|database| {
            stage.run(&[&format!("SELECT {database}"), "PMCPTASK.PUT T I data"]);
            let mut wire = stage.server.wire();
            wire.run(&format!("SELECT {database}"));
            stage.wait(wire, "PMCPTASK.WAIT T 1 0")
        })
        .collect();
    stage.run(&["SELECT 1", "PMCPTASK.PUT T I in-1"]);
    assert_eq!(answer(&mut waiters[1], "PUT"), ok(2, "in-1"));
    stage.run(&["SELECT 2", "FLUSHDB"]);
    assert_eq!(answer(&mut waiters[2], "FLUSHDB"), MISSING);
    // The client of database 3 stays there, and so does the client of database 0.
    stage.run(&["SWAPDB 1 3"]);
    assert_eq!(answer(&mut waiters[3], "SWAPDB"), ok(2, "in-1"));
    assert!(has_no_answer(&mut waiters[0]));
    // `MOVE` ends the task here and makes it there.
    stage.run(&["SELECT 0", "MOVE T 2"]);
    assert_eq!(answer(&mut waiters[0], "MOVE"), MISSING);
    stage.nobody_waits();
}

#[test]
fn move_and_copy_leave_the_client_in_its_database() {
    // From 8.1 until a fix, Valkey leaves the client in the other database while a module is told of events of class
    // generic.
    let mut stage = Stage::start();
    for database in [0, 3] {
        stage.run(&[&format!("SELECT {database}"), "PMCPTASK.PUT T I data"]);
        let mut wire = stage.server.wire();
        wire.run(&format!("SELECT {database}"));
        let mut waiter = stage.wait(wire, "PMCPTASK.WAIT T 1 0");
        let mut mover = stage.server.wire();
        mover.run(&format!("SELECT {database}"));
        for line in [
            "MOVE key 1",
            "COPY other key DB 2",
            "EVAL redis.call('MOVE',KEYS[1],2) 1 third",
            "EVAL redis.call('COPY',KEYS[1],KEYS[1],'DB',5) 1 other",
        ] {
            mover.run("MSET key x other x third x");
            mover.run(line);
            let info = mover.run("CLIENT INFO");
            assert!(info.contains(&format!(" db={database} ")), "{line}: {info}");
        }
        stage.run(&["DEL T"]);
        assert_eq!(answer(&mut waiter, "DEL"), MISSING);
    }
}

// Expiry.

#[test]
fn expiry_wakes_at_its_millisecond_whether_or_not_the_server_has_reclaimed_the_task() {
    let mut stage = Stage::start();
    for active in ["0", "1"] {
        stage.run(&[&format!("DEBUG SET-ACTIVE-EXPIRE {active}")]);
        for line in ["", "PMCPTASK.EXPIRE T I PXAT {at}", "PEXPIREAT T {at}", "PEXPIRE T {ms}"] {
            stage.renew();
            let mut at = in_ms(500);
            if line.is_empty() {
                stage.run(&[&format!("PMCPTASK.PUT T I data PXAT {at}")]);
            }
            let version = if line.is_empty() { 2 } else { 1 };
            let mut waiter = stage.waiter(&format!("PMCPTASK.WAIT T {version} 0"));
            if !line.is_empty() {
                at = in_ms(120);
                let ms = (at - now_ms()).to_string();
                stage.run(&[&line.replace("{at}", &at.to_string()).replace("{ms}", &ms)]);
            }
            let reply = waiter.receive().unwrap();
            let late = now_ms() - at;
            assert_eq!(reply, MISSING, "{line}");
            assert!(late >= 0, "{line}: {late} ms late");
            assert!(late < 1_000 * i64::from(slowness()), "{line}: {late} ms late");
            println!("active expiry {active}, {line}: answered {late} ms after the expiry");
        }
    }
    stage.nobody_waits();
}

#[test]
fn expiry_that_is_put_off_or_removed_does_not_wake() {
    let mut stage = Stage::start();
    stage.run(&["DEBUG SET-ACTIVE-EXPIRE 0"]);
    for line in [
        "PERSIST T",
        "PMCPTASK.EXPIRE T I PERSIST",
        "PMCPTASK.EXPIRE T I PXAT 4102444800000",
        "PEXPIRE T 900000",
    ] {
        stage.renew();
        let at = in_ms(400);
        stage.run(&[&format!("PEXPIREAT T {at}")]);
        let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
        // The module has seen when the task expires.
        std::thread::sleep(Duration::from_millis(20));
        stage.run(&[line]);
        assert!(now_ms() < at, "the machine is too slow for this test");
        sleep_until(at + 50);
        assert!(has_no_answer(&mut waiter), "{line}");
        stage.run(&["PMCPTASK.PUT T I new"]);
        assert_eq!(answer(&mut waiter, line), ok(2, "new"));
    }
}

#[test]
fn expiry_that_is_brought_forward_wakes_at_the_new_time() {
    let mut stage = Stage::start();
    stage.run(&["DEBUG SET-ACTIVE-EXPIRE 0"]);
    stage.renew();
    stage.run(&["PEXPIRE T 900000"]);
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    std::thread::sleep(Duration::from_millis(20));
    let at = in_ms(150);
    stage.run(&[&format!("PEXPIREAT T {at}")]);
    assert_eq!(answer(&mut waiter, "PEXPIREAT"), MISSING);
    assert!(now_ms() >= at);
}

#[test]
fn hash_that_has_lost_its_expiry_wakes_at_its_expires_at() {
    let mut stage = Stage::start();
    stage.renew();
    // The field is in seconds: the task ends with that second.
    let ends_s = in_ms(1_000) / 1_000 + 1;
    stage.run(&[&format!("HSET T expires_at {ends_s}")]);
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    assert_eq!(waiter.receive().unwrap(), MISSING);
    let late = now_ms() - ends_s * 1_000;
    assert!((0..1_000 * i64::from(slowness())).contains(&late), "{late} ms late");
    // The module removes the hash that nobody else would remove.
    assert!(holds_within(PROMISED, || stage.wire.run("DBSIZE") == ":0\r\n"));
}

#[test]
fn clock_that_is_set_back_delays_no_wake_up() {
    let clock = Clock::new();
    let mut stage = Stage::start_with(clock.of(ServerOptions::default()));
    stage.renew();
    // The module has a timer for the expiry of the other task, which the server now puts off for a minute.
    stage.run(&[&format!("PMCPTASK.PUT pmcp:tasks:o:other I data PXAT {}", in_ms(500))]);
    let _other = stage.waiter("PMCPTASK.WAIT pmcp:tasks:o:other 1 0");
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    std::thread::sleep(A_MOMENT);
    clock.set_ahead(-60);
    // Until the timer is overdue.
    std::thread::sleep(Duration::from_millis(700) * slowness());
    stage.run(&["DEL T"]);
    assert_eq!(answer(&mut waiter, "DEL"), MISSING);
}

#[test]
fn field_that_expires_wakes() {
    let mut stage = Stage::start();
    stage.renew();
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    let set = stage.wire.run("HPEXPIRE T 50 FIELDS 1 version");
    if set != "*1\r\n:1\r\n" {
        assert!(set.contains("unknown command"), "{set}");
        return skipped("field_that_expires_wakes", "the server has no expiry of fields");
    }
    assert_eq!(waiter.receive().unwrap(), format!("-{CORRUPT_VERSION}\r\n"));
}

#[test]
fn eviction_wakes() {
    let mut stage = Stage::start_with(ServerOptions::default().set("maxmemory-policy", "volatile-ttl"));
    let data = "x".repeat(1 << 20);
    stage.run(&[&format!("PMCPTASK.PUT T I {data} PXAT 4102444800000")]);
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    let limit = stage.wire.info_number("memory", "used_memory") - 500_000;
    stage.run(&[&format!("CONFIG SET maxmemory {limit}")]);
    assert_eq!(waiter.receive().unwrap(), MISSING);
    assert_eq!(stage.wire.info("stats", "evicted_keys"), "1");
}

// Deleted and made again.

#[test]
fn task_that_is_deleted_and_made_again_is_another_task() {
    let mut stage = Stage::start();
    let tells = stage.tells_of_every_change();
    let ours = [
        &["PMCPTASK.DEL T I", "PMCPTASK.PUT T I again"][..],
        &["PMCPTASK.TRIM I KEEP 0", "PMCPTASK.PUT T I again NX"],
        &["PMCPTASK.EXPIRE T I PXAT 1", "PMCPTASK.PUT T I again"],
        &["PMCPTASK.PUT T I gone PXAT 1", "PMCPTASK.PUT T I again"],
        &["FLUSHALL", "PMCPTASK.PUT T I again"],
        &["FLUSHDB", "PMCPTASK.PUT T I again"],
        &["SWAPDB 0 1", "PMCPTASK.PUT T I again"],
    ];
    let of_others = [
        &["DEL T", "HSET T version 1 data again"][..],
        &["UNLINK T", "PMCPTASK.PUT T I again"],
        &["RENAME T other", "PMCPTASK.PUT T I again"],
        &["HSET other version 1 data again", "RENAME other T"],
        &["HSET other version 1 data again", "COPY other T REPLACE"],
        &["MOVE T 1", "PMCPTASK.PUT T I again"],
        &["PEXPIREAT T 1", "PMCPTASK.PUT T I again"],
        &["SET T text", "DEL T", "PMCPTASK.PUT T I again"],
    ];
    let of_others = if tells { &of_others[..] } else { &[] };
    for lines in ours.iter().chain(of_others) {
        for in_transaction in [true, false] {
            stage.renew();
            let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
            if in_transaction {
                stage.run(&["MULTI"]);
                stage.run(lines);
                stage.run(&["EXEC"]);
            } else {
                stage.wire.send_lines(lines);
                for line in *lines {
                    let reply = stage.wire.receive().unwrap();
                    assert!(!reply.starts_with('-'), "{line}: {reply}");
                }
            }
            let reply = answer(&mut waiter, &lines.join("; "));
            // Outside of a transaction, newer servers do other things until they have freed everything.
            let is_flushed = !in_transaction && lines[0].starts_with("FLUSH") && reply == MISSING;
            assert!(is_flushed || reply == ok(1, "again"), "{lines:?}: {reply}");
        }
    }
}

#[test]
fn who_comes_after_the_task_was_made_again_waits_for_the_next_change() {
    let mut stage = Stage::start();
    stage.renew();
    let mut before = stage.waiter("PMCPTASK.WAIT T 1 0");
    let mut after = stage.server.wire();
    // At once, so that the module has not looked at the key when the second client comes.
    after.send_lines(&["PMCPTASK.DEL T I", "PMCPTASK.PUT T I again", "PMCPTASK.WAIT T 1 0"]);
    assert_eq!([after.receive().unwrap(), after.receive().unwrap()], [":1\r\n", ":1\r\n"]);
    assert_eq!(answer(&mut before, "DEL"), ok(1, "again"));
    std::thread::sleep(A_MOMENT);
    assert!(has_no_answer(&mut after));
    stage.run(&["PMCPTASK.PUT T I next"]);
    assert_eq!(answer(&mut after, "PUT"), ok(2, "next"));
}

// Where nothing blocks.

#[test]
fn nothing_blocks_in_transactions_scripts_and_calls_of_other_modules() {
    let options = ServerOptions::default().set("loadmodule", calling_module().to_str().unwrap());
    let mut stage = Stage::start_with(options);
    stage.renew();
    let started = Instant::now();
    stage.run(&["MULTI", "PMCPTASK.WAIT T 1 0", "PMCPTASK.WAIT T 7 0", "PMCPTASK.WAIT none:tasks:o:t 7 0"]);
    assert_eq!(stage.wire.run("EXEC"), format!("*3\r\n{NIL}{}{MISSING}", ok(1, "data")));
    for eval in ["EVAL", "EVAL_RO"] {
        let mut wait = |version| {
            let script = "return redis.call('PMCPTASK.WAIT', KEYS[1], ARGV[1], 0)";
            stage.wire.call(&[eval, script, "1", TASK, version])
        };
        assert_eq!(wait("1"), NIL);
        assert_eq!(wait("7"), "*3\r\n+OK\r\n:1\r\n$4\r\ndata\r\n");
    }
    stage.run(&["MULTI", "EVAL redis.call('PMCPTASK.WAIT',KEYS[1],1,0) 1 T", "EXEC"]);
    for caller in ["CALLER.BYITSELF", "CALLER.FORUSER"] {
        assert_eq!(stage.wire.run(&format!("{caller} PMCPTASK.WAIT T 1 0")), "$13\r\nanother reply\r\n");
        assert_eq!(stage.wire.run(&format!("{caller} PMCPTASK.WAIT T 7 0")), "$8\r\nlisted 3\r\n");
    }
    assert!(started.elapsed() < Duration::from_secs(5) * slowness());
    assert_eq!(stage.waiting(), 0);
}

#[test]
fn wait_is_replicated_and_stored_nowhere() {
    let server = Server::start_recorded();
    let mut wire = server.wire();
    wire.run("PMCPTASK.PUT T I data");
    let before = server.appended();
    for (line, reply) in [
        ("PMCPTASK.WAIT T 1 1", NIL.to_owned()),
        ("PMCPTASK.WAIT T 0 0", ok(1, "data")),
        ("PMCPTASK.WAIT pmcp:tasks:o:none 1 0", MISSING.to_owned()),
    ] {
        assert_eq!(wire.run(line), reply);
    }
    assert_eq!(server.appended(), before);
}

// Clients that come and go.

#[test]
fn client_unblock_ends_a_wait_as_it_ends_blpop() {
    let mut stage = Stage::start();
    stage.renew();
    for (how, reply) in
        [("", NIL), (" TIMEOUT", NIL), (" ERROR", "-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n")]
    {
        let mut wire = stage.server.wire();
        let id = client_id(&mut wire);
        let mut waiter = stage.wait(wire, "PMCPTASK.WAIT T 1 0");
        assert_eq!(stage.wire.run(&format!("CLIENT UNBLOCK {id}{how}")), ":1\r\n");
        assert_eq!(answer(&mut waiter, how), reply);
        assert_eq!(stage.wire.run(&format!("CLIENT UNBLOCK {id}{how}")), ":0\r\n");
        stage.nobody_waits();
        // The connection is as good as any.
        assert_eq!(waiter.run("PING"), "+PONG\r\n");
    }
}

#[test]
fn client_that_is_unblocked_in_the_middle_of_a_transaction_is_told_nothing_of_it() {
    let mut stage = Stage::start();
    stage.renew();
    let mut waiter = stage.server.wire();
    let id = client_id(&mut waiter);
    let mut waiter = stage.wait(waiter, "PMCPTASK.WAIT T 1 0");
    for line in ["MULTI", "PMCPTASK.PUT T I half", &format!("CLIENT UNBLOCK {id}"), "DEL T"] {
        stage.run(&[line]);
    }
    assert_eq!(stage.wire.run("EXEC"), "*3\r\n:2\r\n:1\r\n:1\r\n");
    assert_eq!(answer(&mut waiter, "CLIENT UNBLOCK"), NIL);
}

#[test]
fn client_list_shows_who_waits_and_for_what() {
    let mut stage = Stage::start();
    stage.renew();
    let mut wire = stage.server.wire();
    let id = client_id(&mut wire);
    let mut waiter = stage.wait(wire, "PMCPTASK.WAIT T 1 0");
    let line = stage.wire.run(&format!("CLIENT LIST ID {id}"));
    assert!(line.contains(" flags=b ") && line.contains(" cmd=pmcptask.wait "), "{line}");
    assert_eq!(stage.wire.info("clients", "blocked_clients"), "1");
    stage.run(&["PMCPTASK.PUT T I new"]);
    answer(&mut waiter, "PUT");
    assert_eq!(stage.wire.info("clients", "blocked_clients"), "0");
}

#[test]
fn client_that_goes_or_is_killed_leaves_nothing_behind() {
    let mut stage = Stage::start();
    stage.renew();
    for is_killed in [false, true] {
        let mut wire = stage.server.wire();
        let id = client_id(&mut wire);
        let waiter = stage.wait(wire, "PMCPTASK.WAIT T 1 0");
        let mut other = stage.waiter("PMCPTASK.WAIT T 1 0");
        if is_killed {
            assert_eq!(stage.wire.run(&format!("CLIENT KILL ID {id}")), ":1\r\n");
        } else {
            drop(waiter);
        }
        assert!(holds_within(PROMISED, || stage.waiting() == 1));
        assert!(has_no_answer(&mut other));
        stage.run(&["PMCPTASK.DEL T I"]);
        assert_eq!(answer(&mut other, "DEL"), MISSING);
        stage.nobody_waits();
        stage.renew();
    }
    // The client goes in the transaction that changes the task.
    let mut wire = stage.server.wire();
    let id = client_id(&mut wire);
    let _waiter = stage.wait(wire, "PMCPTASK.WAIT T 1 0");
    stage.run(&["MULTI", "PMCPTASK.DEL T I", &format!("CLIENT KILL ID {id}"), "PMCPTASK.PUT T I x", "EXEC"]);
    stage.nobody_waits();
    stage.run(&["PMCPTASK.PUT T I new", "PING"]);
}

#[test]
fn commands_sent_after_a_wait_are_answered_after_it_in_order() {
    let mut stage = Stage::start();
    stage.renew();
    let mut waiter = stage.server.wire();
    for line in [
        "PMCPTASK.WAIT T 1 0",
        "PING",
        "PMCPTASK.WAIT T 2 0",
        "PMCPTASK.GET T",
        "PMCPTASK.WAIT T 3 30",
        "PING",
    ] {
        waiter.send_line(line);
    }
    assert!(holds_within(PATIENCE, || stage.waiting() == 1));
    assert!(has_no_answer(&mut waiter));
    stage.run(&["PMCPTASK.PUT T I b"]);
    assert_eq!(waiter.receive().unwrap(), ok(2, "b"));
    assert_eq!(waiter.receive().unwrap(), "+PONG\r\n");
    assert!(has_no_answer(&mut waiter));
    stage.run(&["PMCPTASK.PUT T I c"]);
    let rest: Vec<_> = (0..4).map(|_| waiter.receive().unwrap()).collect();
    assert_eq!(
        rest,
        [ok(3, "c"), "*2\r\n:3\r\n$1\r\nc\r\n".to_owned(), NIL.to_owned(), "+PONG\r\n".to_owned()]
    );
}

#[test]
fn pause_of_writes_delays_the_change_and_a_pause_of_all_the_call() {
    let mut stage = Stage::start();
    stage.renew();
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    stage.run(&["CLIENT PAUSE 60000 WRITE"]);
    let mut writer = stage.server.wire();
    writer.send_line("PMCPTASK.PUT T pmcp:idx:o new");
    // A read is not paused, and a time that is over is over.
    assert_eq!(stage.wire.run("PMCPTASK.WAIT T 1 20"), NIL);
    assert!(has_no_answer(&mut waiter));
    stage.run(&["CLIENT UNPAUSE"]);
    assert_eq!(answer(&mut waiter, "UNPAUSE"), ok(2, "new"));
    assert_eq!(writer.receive().unwrap(), ":2\r\n");
    let mut late = stage.server.wire();
    let started = Instant::now();
    stage.run(&["CLIENT PAUSE 300 ALL"]);
    late.send_line("PMCPTASK.WAIT T 1 0");
    assert_eq!(late.receive().unwrap(), ok(2, "new"));
    assert!(started.elapsed() >= Duration::from_millis(299));
}

#[test]
fn task_that_expires_while_writes_are_paused_is_gone_for_who_waits() {
    let mut stage = Stage::start();
    stage.renew();
    let at = in_ms(300);
    stage.run(&[&format!("PEXPIREAT T {at}")]);
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    stage.run(&["CLIENT PAUSE 60000 WRITE"]);
    assert_eq!(answer(&mut waiter, "the expiry"), MISSING);
    assert!(now_ms() >= at);
    stage.run(&["CLIENT UNPAUSE"]);
}

#[test]
fn client_that_uses_too_much_memory_goes_and_one_that_must_not_be_evicted_waits_on() {
    let mut stage = Stage::start();
    let long = format!("pmcp:tasks:{}:t", "x".repeat(4 << 20));
    stage.run(&["PMCPTASK.PUT T I data", &format!("HSET {long} version 1 data x")]);
    let mut safe = stage.server.wire();
    safe.run("CLIENT NO-EVICT on");
    let mut safe = stage.wait(safe, &format!("PMCPTASK.WAIT {long} 1 0"));
    let mut large = stage.waiter(&format!("PMCPTASK.WAIT {long} 1 0"));
    stage.run(&["CLIENT NO-EVICT on"]);
    stage.run(&["CONFIG SET maxmemory-clients 1mb"]);
    assert!(holds_within(PATIENCE, || stage.waiting() == 1));
    large.receive().unwrap_err();
    stage.run(&["CONFIG SET maxmemory-clients 0"]);
    stage.run(&[&format!("HSET {long} version 2")]);
    assert_eq!(answer(&mut safe, "HSET"), ok(2, "x"));
}

#[test]
fn demotion_ends_the_wait_with_the_servers_error() {
    let mut stage = Stage::start();
    stage.renew();
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    stage.run(&["REPLICAOF 127.0.0.1 1"]);
    let reply = answer(&mut waiter, "REPLICAOF");
    assert!(reply.starts_with("-UNBLOCKED "), "{reply}");
    stage.nobody_waits();
    // A replica has waiters of its own, and its promotion does not end their wait.
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    stage.run(&["REPLICAOF NO ONE", "PMCPTASK.PUT T I new"]);
    assert_eq!(answer(&mut waiter, "PUT"), ok(2, "new"));
}

// Replicas.

fn replica_of(primary: &Server, options: ServerOptions) -> Stage {
    let stage = Stage::start_with(options.replica_of(primary));
    assert!(holds_within(PATIENCE, || stage.server.follows_or_leads()), "{}", stage.server.log());
    stage
}

#[test]
fn who_waits_at_a_replica_is_woken_by_what_the_primary_does() {
    let mut primary = Stage::start_with(ServerOptions::default().set("repl-diskless-sync-delay", "0"));
    primary.run(&["DEBUG SET-ACTIVE-EXPIRE 0"]);
    let mut replica = replica_of(&primary.server, ServerOptions::default());
    for (before, change, reply) in changes() {
        primary.renew();
        primary.run(before);
        // The replica has to catch up first.
        assert_eq!(primary.wire.run("WAIT 1 10000"), ":1\r\n");
        let mut waiter = replica.waiter("PMCPTASK.WAIT T 1 0");
        primary.run(&[change]);
        assert_eq!(answer(&mut waiter, change), reply, "{change}");
    }
    for _ in 0..2 {
        primary.renew();
        let at = in_ms(1_000);
        primary.run(&[&format!("PEXPIREAT T {at}")]);
        assert_eq!(primary.wire.run("WAIT 1 10000"), ":1\r\n");
        let mut waiter = replica.waiter("PMCPTASK.WAIT T 1 0");
        // Nobody reclaims the task, here or there.
        assert_eq!(waiter.receive().unwrap(), MISSING);
        assert!((at..at + 1_000 * i64::from(slowness())).contains(&now_ms()));
        assert_eq!(replica.wire.run("DBSIZE"), ":2\r\n");
    }
}

#[test]
fn full_resync_wakes_who_waits_for_what_has_changed_and_nobody_else() {
    for load in ["disabled", "swapdb"] {
        let options =
            ServerOptions::default().set("repl-diskless-sync-delay", "0").set("repl-backlog-size", "16384");
        let mut primary = Stage::start_with(options);
        primary.run(&[
            "PMCPTASK.PUT T I data",
            "PMCPTASK.PUT pmcp:tasks:o:same I data",
            "PMCPTASK.PUT pmcp:tasks:o:gone I data",
        ]);
        let mut replica =
            replica_of(&primary.server, ServerOptions::default().set("repl-diskless-load", load));
        let [mut changed, mut same, mut gone] = ["T", "pmcp:tasks:o:same", "pmcp:tasks:o:gone"]
            .map(|task| replica.waiter(&format!("PMCPTASK.WAIT {task} 1 0")));
        let full = primary.wire.info_number("stats", "sync_full");
        // In one transaction, so that the replica cannot return before the backlog is too short for it.
        let filler = "z".repeat(40_000);
        primary.run(&[
            "MULTI",
            "CLIENT KILL TYPE replica",
            "PMCPTASK.PUT T I new",
            "DEL pmcp:tasks:o:gone",
            &format!("SET filler {filler}"),
            "EXEC",
        ]);
        assert_eq!(changed.receive().unwrap(), ok(2, "new"), "{load}");
        assert_eq!(gone.receive().unwrap(), MISSING, "{load}");
        assert_eq!(primary.wire.info_number("stats", "sync_full"), full + 1, "{load}");
        std::thread::sleep(A_MOMENT);
        assert!(has_no_answer(&mut same), "{load}");
        primary.run(&["PMCPTASK.PUT pmcp:tasks:o:same I new"]);
        assert_eq!(same.receive().unwrap(), ok(2, "new"), "{load}");
    }
}

// Clusters.

const ALICES: &str = "pmcp:tasks:{alice}:t";
const ALICES_INDEX: &str = "pmcp:idx:{alice}";
/// The first slots, of which one is that of these keys. A node that loses all its slots becomes a replica.
const SLOTS: usize = 1_000;

/// Two primaries that know each other. The first has all slots, and a task for which a client waits.
struct Pair {
    first: Stage,
    second: Server,
    waiter: Wire,
}

impl Pair {
    fn start() -> Self {
        let mut servers = Cluster::start_lopsided(2).servers.into_iter();
        let first = servers.next().unwrap();
        let mut first = Stage { wire: first.wire(), server: first };
        first.run(&[&format!("PMCPTASK.PUT {ALICES} {ALICES_INDEX} data")]);
        let waiter = first.waiter(&format!("PMCPTASK.WAIT {ALICES} 1 0"));
        Self { first, second: servers.next().unwrap(), waiter }
    }

    fn start_moving(&self) -> String {
        let slot = self.first.server.slot_of(ALICES);
        self.first.server.start_moving(&slot, &self.second);
        slot
    }

    /// The answer of the client, which must be a redirect to the second node.
    fn assert_redirected(&mut self, slot: &str) {
        let reply = self.waiter.receive().unwrap();
        assert_eq!(reply, format!("-MOVED {slot} 127.0.0.1:{}\r\n", self.second.port()));
        self.first.nobody_waits();
        let mut there = self.second.wire();
        assert_eq!(there.run(&format!("PMCPTASK.WAIT {ALICES} 0 0")), ok(1, "data"));
    }
}

#[test]
fn slot_that_leaves_takes_who_waits_along_and_says_nothing_of_a_missing_task_before() {
    let mut pair = Pair::start();
    let mut short = pair.first.waiter(&format!("PMCPTASK.WAIT {ALICES} 1 400"));
    let slot = pair.start_moving();
    pair.first.server.migrate(&[ALICES, ALICES_INDEX], &pair.second);
    std::thread::sleep(A_MOMENT * 2);
    assert!(has_no_answer(&mut pair.waiter));
    // A new call is redirected by the server.
    let reply = pair.first.wire.run(&format!("PMCPTASK.WAIT {ALICES} 1 0"));
    assert!(reply.starts_with("-ASK "), "{reply}");
    // Nobody knows whether the task has gone when this time is over.
    assert_eq!(short.receive().unwrap(), NIL);
    pair.first.server.stop_moving(&slot, &pair.second);
    pair.assert_redirected(&slot);
}

#[test]
fn migration_that_is_cancelled_leaves_who_waits_waiting() {
    let mut pair = Pair::start();
    pair.first.run(&["SET pmcp:tasks:{alice}:other x"]);
    let slot = pair.start_moving();
    pair.first.server.migrate(&["pmcp:tasks:{alice}:other"], &pair.second);
    assert_eq!(pair.first.wire.run(&format!("CLUSTER SETSLOT {slot} STABLE")), OK);
    std::thread::sleep(A_MOMENT);
    assert!(has_no_answer(&mut pair.waiter));
    pair.first.run(&[&format!("PMCPTASK.PUT {ALICES} {ALICES_INDEX} new")]);
    assert_eq!(answer(&mut pair.waiter, "PUT"), ok(2, "new"));
}

#[test]
fn change_wakes_while_the_slot_moves() {
    let mut pair = Pair::start();
    pair.start_moving();
    pair.first.run(&[&format!("PMCPTASK.PUT {ALICES} {ALICES_INDEX} new")]);
    assert_eq!(answer(&mut pair.waiter, "PUT"), ok(2, "new"));
}

#[test]
fn task_that_moves_while_its_change_wakes_many_is_missing_for_none_of_them() {
    const WAITERS: usize = 300;
    let mut pair = Pair::start();
    let waiters: Vec<_> =
        (0..WAITERS).map(|_| pair.first.waiter(&format!("PMCPTASK.WAIT {ALICES} 1 0"))).collect();
    let slot = pair.start_moving();
    // One after the other: the module looks at the change only when the task has gone.
    let port = pair.second.port();
    pair.first.wire.send_lines(&[
        &format!("PMCPTASK.PUT {ALICES} {ALICES_INDEX} new"),
        &format!("MIGRATE 127.0.0.1 {port}  0 5000 KEYS {ALICES} {ALICES_INDEX}"),
    ]);
    assert_eq!(pair.first.wire.receive().unwrap(), ":2\r\n");
    assert_eq!(pair.first.wire.receive().unwrap(), OK);
    pair.first.server.stop_moving(&slot, &pair.second);
    for mut waiter in waiters {
        let reply = waiter.receive().unwrap();
        assert!(
            reply == ok(2, "new") || reply.starts_with("-TRYAGAIN ") || reply.starts_with("-MOVED "),
            "{reply}"
        );
    }
}

#[test]
fn task_that_is_deleted_while_its_slot_moves_is_missing_once_the_slot_stays() {
    let mut pair = Pair::start();
    let slot = pair.start_moving();
    pair.first.run(&[&format!("PMCPTASK.DEL {ALICES} {ALICES_INDEX}")]);
    std::thread::sleep(A_MOMENT);
    assert!(has_no_answer(&mut pair.waiter), "the task may be at the other node");
    assert_eq!(pair.first.wire.run(&format!("CLUSTER SETSLOT {slot} STABLE")), OK);
    assert_eq!(answer(&mut pair.waiter, "STABLE"), MISSING);
}

#[test]
fn task_that_is_deleted_while_its_slot_moves_is_asked_for_at_the_new_node() {
    let mut pair = Pair::start();
    let slot = pair.start_moving();
    pair.first.run(&[&format!("PMCPTASK.DEL {ALICES} {ALICES_INDEX}")]);
    pair.first.server.stop_moving(&slot, &pair.second);
    let reply = pair.waiter.receive().unwrap();
    assert!(reply.starts_with(&format!("-MOVED {slot} ")), "{reply}");
    assert_eq!(pair.second.wire().run(&format!("PMCPTASK.WAIT {ALICES} 1 0")), MISSING);
}

#[test]
fn slot_that_leaves_at_once_takes_who_waits_along() {
    let mut pair = Pair::start();
    let slot = pair.first.server.slot_of(ALICES);
    if !pair.first.server.move_at_once(0..SLOTS, &pair.second) {
        return skipped(
            "slot_that_leaves_at_once_takes_who_waits_along",
            "the server has no atomic slot migration",
        );
    }
    pair.assert_redirected(&slot);
}

#[test]
fn who_waits_at_the_new_node_is_woken_there() {
    let pair = Pair::start();
    let slot = pair.start_moving();
    pair.first.server.migrate(&[ALICES, ALICES_INDEX], &pair.second);
    let mut there = pair.second.wire();
    assert_eq!(there.run("ASKING"), OK);
    there.send_line(&format!("PMCPTASK.WAIT {ALICES} 1 0"));
    assert!(holds_within(PATIENCE, || pair.second.counter("waiting_clients") == 1));
    pair.first.server.stop_moving(&slot, &pair.second);
    let mut writer = pair.second.wire();
    let put = format!("PMCPTASK.PUT {ALICES} {ALICES_INDEX} new");
    assert!(holds_within(PATIENCE, || writer.run(&put).starts_with(':')));
    assert_eq!(answer(&mut there, "PUT"), ok(2, "new"));
}

#[test]
fn failover_ends_the_wait_with_the_servers_error() {
    let cluster = Cluster::start(1, 1);
    let [primary, replica] = [0, 1].map(|number| &cluster.servers[number]);
    let mut wire = primary.wire();
    wire.run(&format!("PMCPTASK.PUT {ALICES} {ALICES_INDEX} data"));
    let mut waiter = primary.wire();
    waiter.send_line(&format!("PMCPTASK.WAIT {ALICES} 1 0"));
    assert!(holds_within(PATIENCE, || primary.counter("waiting_clients") == 1));
    assert_eq!(replica.wire().run("CLUSTER FAILOVER"), OK);
    let reply = waiter.receive().unwrap();
    assert!(reply.starts_with("-UNBLOCKED ") || reply.starts_with("-MOVED "), "{reply}");
    assert!(holds_within(PROMISED, || primary.counter("waiting_clients") == 0));
}

// Permissions.

#[test]
fn user_needs_the_command_and_permission_to_read_the_key_and_no_more() {
    let mut stage = Stage::start();
    stage.renew();
    for (rules, may) in [
        ("%R~pmcp:tasks:o:* -@all +pmcptask.wait", true),
        ("~* -@all +pmcptask.wait", true),
        ("~* +@all -pmcptask.wait", false),
        ("~pmcp:tasks:p:* +@all", false),
        ("%W~pmcp:* +@all", false),
        ("~pmcp:idx:o +@all (~pmcp:tasks:o:* -@all +pmcptask.get)", false),
        ("~pmcp:idx:o +@all (%R~pmcp:tasks:o:* -@all +pmcptask.wait)", true),
    ] {
        let words =
            [&["ACL", "SETUSER", "limited", "reset", "on", "nopass"][..], &rule_words(rules)].concat();
        assert_eq!(stage.wire.call(&words), OK, "{rules}");
        let mut user = stage.server.wire();
        assert_eq!(user.run("AUTH limited any"), OK);
        let reply = user.run("PMCPTASK.WAIT T 7 0");
        if may {
            assert_eq!(reply, ok(1, "data"), "{rules}");
            let mut waiter = stage.wait(user, "PMCPTASK.WAIT T 1 0");
            stage.run(&["PMCPTASK.PUT T I new"]);
            assert_eq!(answer(&mut waiter, rules), ok(2, "new"), "{rules}");
            stage.renew();
        } else {
            assert!(reply.starts_with("-NOPERM "), "{rules}: {reply}");
        }
    }
}

/// The words of ACL rules; a selector in parentheses is one word.
fn rule_words(rules: &str) -> Vec<&str> {
    let (plain, selector) = rules.split_once(" (").unwrap_or((rules, ""));
    let selector = (!selector.is_empty()).then(|| &rules[plain.len() + 1..]);
    plain.split(' ').chain(selector).collect()
}

#[test]
fn user_who_loses_the_permission_while_waiting_gets_no_record() {
    let mut stage = Stage::start();
    for rules in ["resetkeys ~pmcp:tasks:p:*", "-pmcptask.wait", "resetkeys %W~*", "-@all"] {
        stage.renew();
        stage.run(&["ACL SETUSER limited reset on nopass ~* +@all"]);
        let mut user = stage.server.wire();
        assert_eq!(user.run("AUTH limited any"), OK);
        let mut waiter = stage.wait(user, "PMCPTASK.WAIT T 1 0");
        stage.run(&[&format!("ACL SETUSER limited {rules}")]);
        let refused = stage.server.counter("refused_noperm");
        stage.run(&["PMCPTASK.PUT T I secret"]);
        let reply = answer(&mut waiter, rules);
        assert_eq!(reply, format!("-NOPERM No permissions to read the key '{TASK}'\r\n"), "{rules}");
        assert_eq!(stage.server.counter("refused_noperm"), refused + 1, "{rules}");
        stage.nobody_waits();
    }
    // A user who is deleted is disconnected by the server.
    stage.renew();
    stage.run(&["ACL SETUSER limited reset on nopass ~* +@all"]);
    let mut user = stage.server.wire();
    assert_eq!(user.run("AUTH limited any"), OK);
    let mut waiter = stage.wait(user, "PMCPTASK.WAIT T 1 0");
    stage.run(&["ACL DELUSER limited", "PMCPTASK.PUT T I secret"]);
    waiter.receive().unwrap_err();
    stage.nobody_waits();
}

// Many.

const MANY: usize = 1_000;

#[test]
fn a_thousand_clients_that_wait_for_one_task_are_all_answered() {
    let mut stage = Stage::start();
    stage.renew();
    let mut waiters: Vec<_> = (0..MANY).map(|_| stage.server.wire()).collect();
    for waiter in &mut waiters {
        waiter.send_line("PMCPTASK.WAIT T 1 0");
    }
    assert!(holds_within(PATIENCE, || stage.waiting() == MANY as u64));
    let started = Instant::now();
    stage.run(&["PMCPTASK.PUT T I new"]);
    for waiter in &mut waiters {
        assert_eq!(waiter.receive().unwrap(), ok(2, "new"));
    }
    println!("{MANY} clients have their answers after {:?}", started.elapsed());
    stage.nobody_waits();
    assert_eq!(stage.server.counter("waits"), MANY as u64);
}

#[test]
fn a_thousand_clients_that_wait_for_a_thousand_tasks_are_all_answered() {
    let mut stage = Stage::start();
    let task = |n: usize| format!("pmcp:tasks:o:t{n}");
    let mut waiters: Vec<_> = (0..MANY).map(|_| stage.server.wire()).collect();
    for (n, waiter) in waiters.iter_mut().enumerate() {
        stage.run(&[&format!("PMCPTASK.PUT {} I data", task(n))]);
        waiter.send_line(&format!("PMCPTASK.WAIT {} 1 0", task(n)));
    }
    assert!(holds_within(PATIENCE, || stage.waiting() == MANY as u64));
    // Half of them by a change each, the other half at once.
    let (first, second) = waiters.split_at_mut(MANY / 2);
    for (n, waiter) in first.iter_mut().enumerate() {
        stage.run(&[&format!("PMCPTASK.PUT {} I new", task(n))]);
        assert_eq!(answer(waiter, "PUT"), ok(2, "new"));
    }
    assert_eq!(stage.waiting(), (MANY - MANY / 2) as u64);
    assert!(has_no_answer(&mut second[0]));
    let started = Instant::now();
    stage.run(&["FLUSHALL"]);
    for waiter in second {
        assert_eq!(waiter.receive().unwrap(), MISSING);
    }
    println!("{} clients have their answers after {:?}", MANY - MANY / 2, started.elapsed());
    stage.nobody_waits();
}

// Random changes.

/// What a task is, as far as a client that waits is concerned: nothing, a version, or another value.
fn state(wire: &mut Wire, database: u64, task: &str) -> Option<String> {
    wire.run(&format!("SELECT {database}"));
    let reply = wire.run(&format!("PMCPTASK.GET {task}"));
    match reply.as_str() {
        NIL => None,
        error if error.starts_with('-') => Some(reply),
        record => Some(record.lines().nth(1).unwrap().to_owned()),
    }
}

const TASKS: [&str; 3] = ["pmcp:tasks:o:a", "pmcp:tasks:o:b", "pmcp:tasks:o:c"];

/// A client that waits for a task of a database at a version.
struct Waiter {
    wire: Wire,
    database: u64,
    task: &'static str,
    seen: i64,
}

/// A random call in a database. It may change `task` and `other`, and end tasks at `soon`, in ms since the epoch.
fn random_change(dice: &mut Dice, database: u64, task: &str, other: &str, soon: i64) -> String {
    match dice.roll(240) / 10 {
        0..4 => format!("PMCPTASK.PUT {task} I new"),
        4 => format!("PMCPTASK.PUT {task} I new PXAT {soon}"),
        5 => format!("PMCPTASK.CAS {task} I 1 new"),
        6 => format!("PMCPTASK.DEL {task} I"),
        7 => "PMCPTASK.TRIM I KEEP 1".to_owned(),
        8 => format!("PMCPTASK.EXPIRE {task} I PXAT {soon}"),
        9 => format!("PMCPTASK.EXPIRE {task} I PERSIST"),
        10 => format!("HSET {task} version {}", 1 + dice.roll(9)),
        11 => format!("HSET {task} other x"),
        12 => format!("HDEL {task} version"),
        13 => format!("DEL {task}"),
        14 => format!("RENAME {task} {other}"),
        15 => format!("COPY {task} {other} REPLACE"),
        16 => format!("MOVE {task} {}", 1 - database),
        17 => format!("SET {task} text"),
        18 => format!("PEXPIREAT {task} {soon}"),
        19 => "FLUSHDB".to_owned(),
        20 => "SWAPDB 0 1".to_owned(),
        21 if dice.roll(10) == 0 => "FLUSHALL".to_owned(),
        _ => format!("PMCPTASK.GET {task}"),
    }
}

#[test]
fn after_every_random_change_those_are_answered_whose_task_has_changed_and_no_others() {
    let mut stage = Stage::start();
    let tells = stage.tells_of_every_change();
    let mut dice = Dice::new(20_260_926);
    let mut waiters: Vec<Waiter> = Vec::new();
    let (mut woken, mut spared) = (0, 0);
    let steps = 400 / u64::from(slowness());
    for step in 0..steps {
        // Clients come.
        while waiters.len() < 8 {
            let database = dice.roll(2);
            let task = *dice.pick::<&str>(&TASKS);
            stage.run(&[&format!("SELECT {database}")]);
            let reply = stage.wire.run(&format!("PMCPTASK.GET {task}"));
            let seen = if let Some(version) = reply.strip_prefix("*2\r\n:") {
                version.lines().next().unwrap().parse().unwrap()
            } else {
                stage.run(&[&format!("DEL {task}")]);
                integer(&stage.wire.run(&format!("PMCPTASK.PUT {task} I data")))
            };
            // The task may be new for others that still wait: all of those have been answered.
            let mut wire = stage.server.wire();
            wire.run(&format!("SELECT {database}"));
            let wire = stage.wait(wire, &format!("PMCPTASK.WAIT {task} {seen} 0"));
            waiters.push(Waiter { wire, database, task, seen });
        }
        // Something happens.
        let task = dice.pick(&TASKS);
        let other = dice.pick(&TASKS);
        let database = dice.roll(2);
        stage.run(&[&format!("SELECT {database}")]);
        let soon = now_ms() + 1 + i64::try_from(dice.roll(20)).unwrap();
        let line = random_change(&mut dice, database, task, other, soon);
        // Some calls fail, for example a RENAME of a missing task: they change nothing.
        match dice.roll(3) {
            0 => {
                for line in ["MULTI", &line, "PING", "EXEC"] {
                    stage.wire.run(line);
                }
            }
            _ => drop(stage.wire.run(&line)),
        }
        let is_short = line.contains(&soon.to_string());
        if is_short {
            sleep_until(soon + 2);
        }
        let now: Vec<_> = waiters
            .iter()
            .map(|waiter| {
                let version = state(&mut stage.wire, waiter.database, waiter.task);
                (
                    version.clone() != Some(format!(":{}", waiter.seen)),
                    version.unwrap_or_else(|| ":0".to_owned()),
                )
            })
            .collect();
        let mut waiting = now.iter().filter(|(is_changed, _)| !is_changed).count();
        let mut now = now.into_iter();
        waiters.retain_mut(|waiter| {
            let (is_changed, version) = now.next().unwrap();
            let what = format!(
                "step {step}, {line}, {} in {}: seen {}, now {version}",
                waiter.task, waiter.database, waiter.seen
            );
            if is_changed {
                let reply = answer(&mut waiter.wire, &what);
                // A task that has a short time to live may have been there at the answer.
                let is_right = reply.lines().nth(2) == Some(&version) || reply == version;
                assert!(is_right || is_short, "{what}: {reply}");
                woken += 1;
            } else if let Some(reply) = waiter.wire.received().unwrap() {
                // The task is another one of the same version.
                assert!(line.contains(other) || line.contains("SWAPDB"), "{what}: {reply}");
                waiting -= 1;
            } else {
                spared += 1;
                return true;
            }
            false
        });
        let waiting = u64::try_from(waiting).unwrap();
        assert!(
            holds_within(PROMISED, || stage.waiting() == waiting),
            "step {step}, {line}: {} clients wait, expected {waiting}",
            stage.waiting()
        );
    }
    println!("{steps} steps: {woken} answers, {spared} times none; every change is told: {tells}");
    assert!(woken > steps / 4 && spared > steps, "{woken} {spared}");
    drop(waiters);
    stage.nobody_waits();
    assert_eq!(stage.server.counter("panics") + stage.server.counter("failed_calls"), 0);
}

// Defects.

#[test]
fn panic_in_an_answer_is_an_error_reply_and_others_wait_on() {
    let mut stage = Stage::start();
    stage.renew();
    let mut waiter = stage.waiter(&format!("PMCPTASK.WAIT T 1 {}", 100 * slowness()));
    let mut other = stage.waiter("PMCPTASK.WAIT T 1 0");
    stage.run(&["CONFIG SET pmcptask.debug-panic 1"]);
    let reply = waiter.receive().unwrap();
    assert!(reply.starts_with("-DEFECT the pmcptask module failed to answer"), "{reply}");
    assert_eq!(stage.server.counter("panics"), 1);
    stage.run(&["CONFIG SET pmcptask.debug-panic 0", "PMCPTASK.PUT T I new"]);
    assert_eq!(answer(&mut other, "PUT"), ok(2, "new"));
    stage.nobody_waits();
}

#[test]
fn panic_in_the_timer_is_logged_and_who_waits_is_answered_later() {
    let mut stage = Stage::start();
    stage.renew();
    let mut waiter = stage.waiter("PMCPTASK.WAIT T 1 0");
    std::thread::sleep(A_MOMENT);
    stage.run(&["CONFIG SET pmcptask.debug-panic 1", "HSET T version 2"]);
    assert!(holds_within(PATIENCE, || stage.server.log().contains("a timer's work panicked")));
    stage.run(&["CONFIG SET pmcptask.debug-panic 0"]);
    // Nothing else happens to the task.
    assert_eq!(answer(&mut waiter, "HSET"), ok(2, "data"));
    stage.nobody_waits();
}

// Monitoring.

#[test]
fn monitor_shows_the_call_and_tracking_follows_the_key() {
    let mut stage = Stage::start();
    stage.renew();
    let mut monitor = stage.server.wire();
    assert_eq!(monitor.run("MONITOR"), OK);
    let mut tracker = stage.server.wire();
    for line in ["HELLO 3", "CLIENT TRACKING ON"] {
        assert!(!tracker.run(line).starts_with('-'));
    }
    assert_eq!(tracker.run("PMCPTASK.WAIT T 7 0"), ok(1, "data"));
    let call = format!("\"PMCPTASK.WAIT\" \"{TASK}\" \"7\" \"0\"");
    assert!(holds_within(PATIENCE, || monitor.receive().unwrap().contains(&call)));
    stage.run(&["PMCPTASK.PUT T I new"]);
    let told = tracker.receive().unwrap();
    assert!(told.starts_with(">2\r\n$10\r\ninvalidate\r\n") && told.contains(TASK), "{told}");
}
