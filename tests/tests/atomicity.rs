//! Each call is atomic, whoever else is calling, and in transactions and scripts too.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::thread;

use pmcptask_tests::{
    INDEX, NIL, OK, PROMISED, Server, ServerOptions, TASK, Wire, holds_within, integer, now_ms, sleep_until,
    slowness,
};

const CLIENTS: usize = 64;

/// Runs `work` in one thread for each client, each with its own connection, all at once.
fn at_once<R: Send>(server: &Server, work: impl Fn(usize, &mut Wire) -> R + Sync) -> Vec<R> {
    let start = Barrier::new(CLIENTS);
    thread::scope(|scope| {
        let client = |n| {
            let (mut wire, start, work) = (server.wire(), &start, &work);
            scope.spawn(move || {
                start.wait();
                work(n, &mut wire)
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

/// The outcome of a CAS reply and its version.
fn outcome(reply: &str) -> (&str, i64) {
    let parsed = reply.strip_prefix("*2\r\n+").and_then(|rest| rest.trim_end().split_once("\r\n:"));
    let (outcome, version) = parsed.unwrap_or_else(|| panic!("{reply}"));
    (outcome, version.parse().unwrap())
}

fn cas_many_times(client: usize, wire: &mut Wire) -> Vec<(i64, String)> {
    let (mut seen, mut won) = (1, Vec::new());
    for round in 0..100 {
        let data = format!("client {client} round {round}");
        let reply = wire.call(&["PMCPTASK.CAS", TASK, INDEX, &seen.to_string(), &data]);
        let (outcome, version) = outcome(&reply);
        match outcome {
            "OK" => {
                assert_eq!(version, seen + 1);
                won.push((version, data));
            }
            "CONFLICT" => assert!(version > seen, "lost at {seen} against {version}"),
            other => panic!("{other}"),
        }
        seen = version;
    }
    won
}

#[test]
fn each_version_is_won_once_and_none_is_lost_where_many_race() {
    let server = Server::start();
    let mut wire = server.wire();
    wire.run("PMCPTASK.PUT T I first");
    let won: Vec<_> = at_once(&server, cas_many_times).concat();
    let versions: BTreeMap<_, _> = won.iter().cloned().collect();
    assert_eq!(versions.len(), won.len(), "a version was won twice");
    let last = i64::try_from(won.len()).unwrap() + 1;
    assert!(versions.keys().copied().eq(2..=last), "a version was won by nobody");
    let data = &versions[&last];
    assert_eq!(wire.run("PMCPTASK.GET T"), format!("*2\r\n:{last}\r\n${}\r\n{data}\r\n", data.len()));
}

#[test]
fn one_put_nx_wins_however_many_race_and_no_other_changes_anything() {
    let server = Server::start();
    let mut wire = server.wire();
    for round in 0..50 {
        let put = |n: usize, wire: &mut Wire| wire.run(&format!("PMCPTASK.PUT T I client-{n} NX"));
        let replies = at_once(&server, put);
        let winners: Vec<_> = (0..CLIENTS).filter(|n| replies[*n] == ":1\r\n").collect();
        let others = replies.iter().filter(|reply| *reply == ":0\r\n").count();
        assert_eq!((winners.len(), others), (1, CLIENTS - 1), "{replies:?}");
        let data = format!("client-{}", winners[0]);
        assert_eq!(wire.run("PMCPTASK.GET T"), format!("*2\r\n:1\r\n${}\r\n{data}\r\n", data.len()));
        // The next task of this name begins after a deletion, a trim or an expiry.
        let end = ["PMCPTASK.DEL T I VERSION 1", "PMCPTASK.TRIM I KEEP 0", "PMCPTASK.EXPIRE T I PXAT 1"];
        wire.run(end[round % end.len()]);
        assert_eq!(wire.run("DBSIZE"), ":0\r\n");
    }
}

#[test]
fn one_del_of_a_version_wins_however_many_race() {
    let server = Server::start();
    let mut wire = server.wire();
    for _ in 0..20 {
        wire.run("PMCPTASK.PUT T I one");
        wire.run("PMCPTASK.PUT T I two");
        let replies = at_once(&server, |n, wire| {
            let version = if n % 2 == 0 { 2 } else { 1 };
            wire.run(&format!("PMCPTASK.DEL T I VERSION {version}"))
        });
        let won = replies.iter().filter(|reply| outcome(reply) == ("OK", 2)).count();
        let rest = |reply: &&String| matches!(outcome(reply), ("CONFLICT", 2) | ("MISSING", 0));
        assert_eq!((won, replies.iter().filter(rest).count()), (1, CLIENTS - 1), "{replies:?}");
        assert_eq!(wire.run("DBSIZE"), ":0\r\n");
    }
}

#[test]
fn trims_that_race_remove_each_task_once_and_never_too_many() {
    let server = Server::start();
    let mut wire = server.wire();
    for n in 0..1_000 {
        wire.run(&format!("PMCPTASK.PUT pmcp:tasks:o:t{n:04} I x CREATED {}", n / 100));
    }
    let removed = at_once(&server, |_, wire| {
        let mut removed = 0;
        loop {
            match integer(&wire.run("PMCPTASK.TRIM I KEEP 10 COUNT 7")) {
                0 => return removed,
                some => removed += some,
            }
        }
    });
    assert_eq!(removed.iter().sum::<i64>(), 990, "{removed:?}");
    assert_eq!(wire.run("DBSIZE"), ":11\r\n");
    assert!(wire.run("PMCPTASK.LIST I COUNT 1 NODATA").contains("t0990"));
}

#[test]
fn maxtasks_admits_no_more_however_many_put_at_once() {
    let server = Server::start();
    let mut wire = server.wire();
    for _ in 0..20 {
        let replies =
            at_once(&server, |n, wire| wire.run(&format!("PMCPTASK.PUT pmcp:tasks:o:t{n} I x MAXTASKS 10")));
        let admitted = replies.iter().filter(|reply| *reply == ":1\r\n").count();
        let refused = replies.iter().filter(|reply| reply.starts_with("-CAPACITY ")).count();
        assert_eq!((admitted, refused), (10, CLIENTS - 10), "{replies:?}");
        assert_eq!(wire.run("ZCARD I"), ":10\r\n");
        wire.run("FLUSHALL");
    }
}

#[test]
fn maxtasks_admits_no_more_while_tasks_come_and_go() {
    let server = Server::start();
    let admitted = at_once(&server, |n, wire| {
        let mut admitted = 0;
        for round in 0..60 {
            let task = format!("pmcp:tasks:o:t{n}");
            // In every other round the task expires instead of being deleted.
            let expiry = if round % 2 == 0 { "PERSIST".to_owned() } else { format!("PXAT {}", now_ms() + 3) };
            match wire.run(&format!("PMCPTASK.PUT {task} I x MAXTASKS 10 {expiry}")) {
                reply if reply.starts_with(':') => admitted += 1,
                reply => assert!(reply.starts_with("-CAPACITY "), "{reply}"),
            }
            let listed = wire.run("PMCPTASK.LIST I");
            let listed: usize = listed[1..].split("\r\n").next().unwrap().parse().unwrap();
            assert!(listed <= 10, "{listed} tasks");
            if round % 2 == 0 {
                wire.run(&format!("PMCPTASK.DEL {task} I"));
            }
        }
        admitted
    });
    assert!(admitted.iter().sum::<u32>() > 100, "{admitted:?}");
}

// Transactions and scripts.

const SEVERAL: [(&str, &str); 21] = [
    ("PMCPTASK.PUT T I one CREATED 5 PXAT 4102444800123", ":1\r\n"),
    ("PMCPTASK.CAS T I 1 two PERSIST", "*2\r\n+OK\r\n:2\r\n"),
    ("PMCPTASK.CAS T I 1 lost", "*2\r\n+CONFLICT\r\n:2\r\n"),
    ("PMCPTASK.GET T", "*2\r\n:2\r\n$3\r\ntwo\r\n"),
    ("PMCPTASK.LIST I", "*1\r\n*4\r\n$1\r\nt\r\n:2\r\n:5\r\n$3\r\ntwo\r\n"),
    ("PMCPTASK.PUT pmcp:tasks:o:u I u CREATED 6", ":1\r\n"),
    ("PMCPTASK.DEL T I", ":1\r\n"),
    ("PMCPTASK.GET T", NIL),
    ("PMCPTASK.LIST I COUNT 0", "*0\r\n"),
    ("PMCPTASK.PUT T I new NX CREATED 7", ":1\r\n"),
    ("PMCPTASK.PUT T I lost NX", ":0\r\n"),
    ("PMCPTASK.LIST I REV COUNT 1 NODATA", "*1\r\n*3\r\n$1\r\nt\r\n:1\r\n:7\r\n"),
    ("PMCPTASK.EXPIRE T I PXAT 4102444800123", ":1\r\n"),
    ("PMCPTASK.EXPIRE T I PERSIST", ":1\r\n"),
    ("PMCPTASK.DEL T I VERSION 2", "*2\r\n+CONFLICT\r\n:1\r\n"),
    ("PMCPTASK.DEL T I VERSION 1", "*2\r\n+OK\r\n:1\r\n"),
    ("PMCPTASK.DEL T I VERSION 1", "*2\r\n+MISSING\r\n:0\r\n"),
    ("PMCPTASK.EXPIRE T I PERSIST", ":0\r\n"),
    ("PMCPTASK.TRIM I KEEP 1", ":0\r\n"),
    ("PMCPTASK.TRIM I KEEP 0", ":1\r\n"),
    ("PMCPTASK.TRIM I KEEP 0", ":0\r\n"),
];

const EFFECTS_OF_SEVERAL: [&str; 21] = [
    "MULTI",
    "HSET T version 1 data one expires_at 4102444801",
    "PEXPIREAT T 4102444800123",
    "ZADD I 5 t",
    "HSET T version 2 data two",
    "HDEL T expires_at",
    "PERSIST T",
    "HSET pmcp:tasks:o:u version 1 data u",
    "ZADD I 6 u",
    "DEL T",
    // The index entry goes after its task.
    "ZREM I t",
    "HSET T version 1 data new",
    "ZADD I 7 t",
    "HSET T expires_at 4102444801",
    "PEXPIREAT T 4102444800123",
    "HDEL T expires_at",
    "PERSIST T",
    "DEL T",
    "ZREM I t",
    "DEL pmcp:tasks:o:u",
    "ZREM I u",
];

fn assert_one_transaction(commands: &[String]) {
    let commands: Vec<_> =
        commands.iter().map(|command| command.replace(TASK, "T").replace(INDEX, "I")).collect();
    assert_eq!(commands, [&EFFECTS_OF_SEVERAL[..], &["EXEC"]].concat());
}

#[test]
fn commands_in_multi_reply_as_ever_and_are_told_as_one_transaction() {
    let server = Server::start_recorded();
    let mut wire = server.wire();
    let before = server.appended().len();
    assert_eq!(wire.run("MULTI"), OK);
    for (line, _) in SEVERAL {
        assert_eq!(wire.run(line), "+QUEUED\r\n");
    }
    let replies = SEVERAL.map(|(_, reply)| reply).concat();
    assert_eq!(wire.run("EXEC"), format!("*{}\r\n{replies}", SEVERAL.len()));
    assert_one_transaction(&server.appended()[before..]);
}

#[test]
fn commands_in_a_script_reply_as_ever_and_are_told_as_one_transaction() {
    let server = Server::start_recorded();
    let mut wire = server.wire();
    let before = server.appended().len();
    let calls: Vec<_> = SEVERAL
        .iter()
        .map(|(line, _)| {
            let words = line.split(' ').map(|word| match word {
                "T" => "KEYS[1]".to_owned(),
                "I" => "KEYS[2]".to_owned(),
                other => format!("'{other}'"),
            });
            format!("redis.call({})", words.collect::<Vec<_>>().join(","))
        })
        .collect();
    let script = format!("return {{{}}}", calls.join(","));
    let replies = SEVERAL.map(|(_, reply)| reply).concat();
    assert_eq!(
        wire.call(&["EVAL", &script, "3", TASK, INDEX, "pmcp:tasks:o:u"]),
        format!("*{}\r\n{replies}", SEVERAL.len())
    );
    assert_one_transaction(&server.appended()[before..]);
}

#[test]
fn refusal_in_multi_or_a_script_undoes_nothing_else_and_leaves_nothing_of_itself() {
    let server = Server::start_recorded();
    let mut wire = server.wire();
    let before = server.appended().len();
    for line in ["MULTI", "PMCPTASK.PUT T I one", "PMCPTASK.PUT pmcp:tasks:o:u I x MAXTASKS 1"] {
        wire.run(line);
    }
    let reply = wire.run("EXEC");
    assert!(reply.starts_with("*2\r\n:1\r\n-CAPACITY "), "{reply}");
    let script = "local refused = redis.pcall('PMCPTASK.PUT', KEYS[1], KEYS[2], '{\"expiresAt\":5}')
        return {refused.err, redis.call('PMCPTASK.CAS', KEYS[1], KEYS[2], 1, 'two')}";
    let reply = wire.call(&["EVAL", script, "2", TASK, INDEX]);
    assert!(reply.contains("\r\nERR ") && reply.ends_with("*2\r\n+OK\r\n:2\r\n"), "{reply}");
    let told = server.appended()[before..].join("\n").replace(TASK, "T");
    assert!(told.starts_with("MULTI\nHSET T version 1 data one\nZADD "), "{told}");
    assert!(told.ends_with("\nEXEC\nHSET T version 2 data two"), "{told}");
}

#[test]
fn script_that_may_not_write_reads_and_does_not_write() {
    let server = Server::start();
    let mut wire = server.wire();
    wire.run("PMCPTASK.PUT T I one CREATED 5");
    let list = "return redis.call('PMCPTASK.LIST', KEYS[2])";
    let listed = "*1\r\n*4\r\n$1\r\nt\r\n:1\r\n:5\r\n$3\r\none\r\n";
    assert_eq!(wire.call(&["EVAL_RO", list, "2", TASK, INDEX]), listed);
    for write in [
        "PUT', KEYS[1], KEYS[2], 'x'",
        "PUT', KEYS[1], KEYS[2], 'x', 'NX'",
        "CAS', KEYS[1], KEYS[2], 1, 'x'",
        "DEL', KEYS[1], KEYS[2]",
        "DEL', KEYS[1], KEYS[2], 'VERSION', 1",
        "EXPIRE', KEYS[1], KEYS[2], 'PERSIST'",
        "TRIM', KEYS[2], 'KEEP', 0",
    ] {
        let script = format!("return redis.call('PMCPTASK.{write})");
        let reply = wire.call(&["EVAL_RO", &script, "2", TASK, INDEX]);
        assert!(reply.starts_with("-ERR Write commands are not allowed"), "{reply}");
    }
    assert_eq!(wire.run("PMCPTASK.GET T"), "*2\r\n:1\r\n$3\r\none\r\n");
}

#[test]
fn list_reads_no_task_that_its_user_may_not_read_in_multi_and_in_scripts_either() {
    let server = Server::start();
    let mut wire = server.wire();
    wire.run("PMCPTASK.PUT T I one CREATED 5");
    wire.run("ACL SETUSER half on nopass +@all ~pmcp:idx:*");
    wire.run("ACL SETUSER whole on nopass +@all ~pmcp:idx:* %R~pmcp:tasks:o:*");
    let scripts = [
        "return redis.call('PMCPTASK.LIST', KEYS[1])",
        "local reply = redis.pcall('PMCPTASK.LIST', KEYS[1])
            if reply.err then return redis.error_reply(reply.err) end
            return reply",
    ];
    let ask = |user: &str| {
        let mut wire = server.wire();
        assert_eq!(wire.run(&format!("AUTH {user} x")), OK);
        let mut replies = vec![wire.run("PMCPTASK.LIST I")];
        replies.extend(scripts.map(|script| wire.call(&["EVAL", script, "1", INDEX])));
        wire.run("MULTI");
        wire.run("PMCPTASK.LIST I");
        replies.push(wire.run("EXEC").trim_start_matches("*1\r\n").to_owned());
        replies
    };
    for reply in ask("half") {
        assert!(reply.starts_with("-NOPERM ") && reply.contains(TASK) && !reply.contains("one"), "{reply}");
    }
    for reply in ask("whole") {
        assert!(reply.ends_with("*4\r\n$1\r\nt\r\n:1\r\n:5\r\n$3\r\none\r\n"), "{reply}");
    }
}

// What others notice.

/// Whether a WATCH on a key survives what another client does.
fn watch_survives(server: &Server, key: &str, line: &str) -> bool {
    let mut watcher = server.wire();
    watcher.run(&format!("WATCH {key}"));
    server.wire().run(line);
    watcher.run("MULTI");
    watcher.run("PING");
    match watcher.run("EXEC").as_str() {
        "*1\r\n+PONG\r\n" => true,
        "*-1\r\n" => false,
        other => panic!("{other}"),
    }
}

#[test]
fn watch_ends_with_a_change_of_the_key_and_with_nothing_else() {
    let server = Server::start();
    let large = format!("PMCPTASK.PUT T I {}", "x".repeat(65));
    server.wire().run("CONFIG SET pmcptask.max-record-bytes 64");
    // What another client does, and whether the task and the index stay unchanged.
    for (line, task_stays, index_stays) in [
        ("PMCPTASK.GET T", true, true),
        ("PMCPTASK.CAS T I 1 x", true, true),
        ("PMCPTASK.DEL T I", true, true),
        ("PMCPTASK.PUT T I x PXAT 1", true, true),
        ("PMCPTASK.PUT T I x MAXTASKS 0", true, true),
        ("PMCPTASK.PUT T I new", false, false),
        ("PMCPTASK.PUT T I over", false, true),
        ("PMCPTASK.PUT pmcp:tasks:o:u I other", true, false),
        ("PMCPTASK.CAS T I 1000 x", true, true),
        ("PMCPTASK.CAS T I -1 x", true, true),
        ("PMCPTASK.PUT T I x PXAT y", true, true),
        (r#"PMCPTASK.PUT T I {"expiresAt":"soon"}"#, true, true),
        ("PMCPTASK.PUT pmcp:tasks:o:v I x MAXTASKS 2", true, true),
        (&large, true, true),
        ("PMCPTASK.GET T", true, true),
        ("PMCPTASK.LIST I", true, true),
        ("PMCPTASK.LIST I REV COUNT 1", true, true),
        ("PMCPTASK.PUT T I later PXAT 4102444800123", false, true),
        ("PMCPTASK.DEL T I", false, false),
        ("PMCPTASK.PUT T I again", false, false),
        ("PMCPTASK.PUT T I past PXAT 1", false, false),
        ("PMCPTASK.DEL pmcp:tasks:o:u I", true, false),
        ("PMCPTASK.PUT T I new CREATED 5 NX", false, false),
        ("PMCPTASK.PUT T I other NX", true, true),
        ("PMCPTASK.PUT T I other NX PXAT 1", true, true),
        ("PMCPTASK.LIST I NODATA", true, true),
        ("PMCPTASK.DEL T I VERSION 7", true, true),
        ("PMCPTASK.DEL pmcp:tasks:o:u I VERSION 1", true, true),
        ("PMCPTASK.EXPIRE pmcp:tasks:o:u I PERSIST", true, true),
        ("PMCPTASK.EXPIRE pmcp:tasks:o:u I PXAT 1", true, true),
        ("PMCPTASK.EXPIRE T I PXAT soon", true, true),
        ("PMCPTASK.EXPIRE T I PXAT 4102444800123", false, true),
        // The time is the same as before: the key is signalled all the same.
        ("PMCPTASK.EXPIRE T I PXAT 4102444800123", false, true),
        ("PMCPTASK.EXPIRE T I PERSIST", false, true),
        ("PMCPTASK.TRIM I KEEP 1", true, true),
        ("PMCPTASK.TRIM I KEEP 0 COUNT 0", true, true),
        ("PMCPTASK.TRIM I KEEP few", true, true),
        ("PMCPTASK.PUT pmcp:tasks:o:u I newer CREATED 6", true, false),
        ("PMCPTASK.TRIM I KEEP 1", false, false),
        ("PMCPTASK.EXPIRE pmcp:tasks:o:u I PXAT 1", true, false),
        ("PMCPTASK.PUT T I again", false, false),
        ("PMCPTASK.EXPIRE T I PXAT 1", false, false),
        ("PMCPTASK.PUT T I again", false, false),
        ("PMCPTASK.DEL T I VERSION 1", false, false),
    ] {
        // Each call runs twice from the same state, once for each key.
        let state = server.dump(0);
        assert_eq!(watch_survives(&server, "T", line), task_stays, "WATCH on the task, {line}");
        restore(&server, &state);
        assert_eq!(watch_survives(&server, "I", line), index_stays, "WATCH on the index, {line}");
    }
}

#[test]
fn cas_that_wins_ends_a_watch_on_the_task_only() {
    let server = Server::start();
    server.wire().run("PMCPTASK.PUT T I one");
    assert!(!watch_survives(&server, "T", "PMCPTASK.CAS T I 1 two"));
    assert!(watch_survives(&server, "I", "PMCPTASK.CAS T I 2 three"));
}

/// Restores the keys of a dump.
fn restore(server: &Server, state: &BTreeMap<String, (Option<Vec<u8>>, i64)>) {
    let mut wire = server.wire();
    // In one transaction, so that the module finds no half of a task to repair.
    wire.run("MULTI");
    wire.run("FLUSHALL");
    for (key, (value, expiry_ms)) in state {
        let expiry = (*expiry_ms).max(0).to_string();
        let value = value.as_deref().unwrap();
        let restore: [&[u8]; 5] = [b"RESTORE", key.as_bytes(), expiry.as_bytes(), value, b"ABSTTL"];
        wire.call(&restore);
    }
    assert_eq!(wire.run("EXEC"), format!("*{}\r\n{}", state.len() + 1, OK.repeat(state.len() + 1)));
}

#[test]
fn tracking_client_hears_of_changes_and_of_nothing_else() {
    let server = Server::start();
    let mut other = server.wire();
    other.run("PMCPTASK.PUT T I one");
    let mut tracking = server.wire();
    assert!(tracking.run("HELLO 3").starts_with('%'));
    assert_eq!(tracking.run("CLIENT TRACKING ON"), OK);
    let told = |key: &str| format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n{key}\r\n", key.len());
    for (line, changed) in [
        ("PMCPTASK.CAS T I 7 lost", None),
        ("PMCPTASK.PUT pmcp:tasks:o:u I x MAXTASKS 1", None),
        ("PMCPTASK.PUT T I x PXAT y", None),
        ("PMCPTASK.GET T", None),
        ("PMCPTASK.PUT T I two", Some(vec![TASK])),
        ("PMCPTASK.CAS T I 2 three", Some(vec![TASK])),
        ("PMCPTASK.PUT pmcp:tasks:o:u I other", Some(vec![INDEX])),
        ("PMCPTASK.PUT T I lost NX", None),
        ("PMCPTASK.DEL T I VERSION 7", None),
        ("PMCPTASK.TRIM I KEEP 2", None),
        ("PMCPTASK.EXPIRE T I PERSIST", Some(vec![TASK])),
        ("PMCPTASK.EXPIRE T I PXAT 4102444800123", Some(vec![TASK])),
        ("PMCPTASK.DEL T I", Some(vec![TASK, INDEX])),
        ("PMCPTASK.EXPIRE T I PERSIST", None),
        ("PMCPTASK.DEL T I VERSION 1", None),
        ("PMCPTASK.PUT T I four NX CREATED 5", Some(vec![TASK, INDEX])),
        ("PMCPTASK.TRIM I KEEP 1", Some(vec![TASK, INDEX])),
        ("PMCPTASK.PUT T I five NX", Some(vec![TASK, INDEX])),
        ("PMCPTASK.EXPIRE T I PXAT 1", Some(vec![TASK, INDEX])),
        ("PMCPTASK.PUT T I six NX", Some(vec![TASK, INDEX])),
        ("PMCPTASK.DEL T I VERSION 1", Some(vec![TASK, INDEX])),
    ] {
        tracking.run("PMCPTASK.GET T");
        tracking.run("PMCPTASK.LIST I");
        other.run(line);
        let mut expected: Vec<_> = changed.into_iter().flatten().map(told).collect();
        // The server sends the messages before its reply to the next command.
        tracking.send(&["PING"]).unwrap();
        let mut came: Vec<_> = (0..expected.len()).map(|_| tracking.receive().unwrap()).collect();
        expected.sort();
        came.sort();
        assert_eq!(came, expected, "{line}");
        assert_eq!(tracking.receive().unwrap(), "+PONG\r\n", "{line}");
    }
}

#[test]
fn object_and_memory_commands_work_on_the_keys() {
    let server = Server::start_with(&ServerOptions::default().set("maxmemory-policy", "allkeys-lfu"));
    let mut wire = server.wire();
    wire.run("PMCPTASK.PUT T I small");
    assert_eq!(wire.run("TYPE T"), "+hash\r\n");
    assert_eq!(wire.run("TYPE I"), "+zset\r\n");
    for key in ["T", "I"] {
        assert_eq!(wire.run(&format!("OBJECT ENCODING {key}")), "$8\r\nlistpack\r\n");
        assert_eq!(wire.run(&format!("OBJECT REFCOUNT {key}")), ":1\r\n");
        let frequency = wire.run(&format!("OBJECT FREQ {key}"));
        assert!(frequency.starts_with(':'), "{frequency}");
        let bytes = wire.run(&format!("MEMORY USAGE {key}"));
        assert!(bytes.starts_with(':'), "{bytes}");
    }
    wire.run(&format!("PMCPTASK.PUT T I {}", "x".repeat(1_000)));
    assert_eq!(wire.run("OBJECT ENCODING T"), "$9\r\nhashtable\r\n");
    wire.run("CONFIG SET maxmemory-policy noeviction");
    // Until now the key's field held a frequency, not a time. A read stores a time. The server's clock for idle
    // times counts seconds, and stands still in a transaction.
    wire.run("MULTI");
    wire.run("PMCPTASK.GET T");
    wire.run("OBJECT IDLETIME T");
    let replies = wire.run("EXEC");
    assert!(replies.starts_with("*2\r\n") && replies.ends_with("\r\n:0\r\n"), "{replies}");
}

/// Lets tasks expire and disappear during a pause. The server must write nothing during the pause. Returns
/// the server and a connection, in the middle of the pause.
fn tasks_go_during(pause: &str) -> (Server, Wire) {
    let server = Server::start_recorded();
    let mut wire = server.wire();
    let expires_at = now_ms() + 500 * i64::from(slowness());
    for n in 0..300 {
        let (task, index) = (format!("pmcp:tasks:o{}:t{n}", n % 50), format!("pmcp:idx:o{}", n % 50));
        wire.send(&["PMCPTASK.PUT", &task, &index, "x", "PXAT", &expires_at.to_string()]).unwrap();
    }
    for _ in 0..300 {
        assert_eq!(wire.receive().unwrap(), ":1\r\n");
    }
    wire.run("PMCPTASK.PUT pmcp:tasks:gone:t pmcp:idx:gone x PXAT 4102444800000");
    // In one transaction, so that the module notices during the pause that the hash has outlived its task.
    wire.run("MULTI");
    wire.run("HSET pmcp:tasks:gone:t expires_at 5");
    wire.run("PMCPTASK.GET pmcp:tasks:gone:t");
    wire.run(pause);
    assert_eq!(wire.run("EXEC"), "*3\r\n:0\r\n$-1\r\n+OK\r\n");
    let told = server.appended();
    assert!(now_ms() < expires_at, "the test is too slow to test anything");
    // The promise is that nothing happens in this time.
    sleep_until(expires_at + 500);
    assert_eq!(server.appended(), told, "written while writes were paused");
    (server, wire)
}

fn assert_all_goes(wire: &mut Wire) {
    assert!(holds_within(PROMISED, || wire.run("DBSIZE") == ":0\r\n"), "{}", wire.run("KEYS *"));
    assert!(wire.run("INFO pmcptask").contains("pmcptask_panics:0"));
}

#[test]
fn nothing_is_written_while_writes_are_paused_and_all_is_made_up_for_afterwards() {
    let (server, mut wire) = tasks_go_during("CLIENT PAUSE 60000 WRITE");
    let told = server.appended();
    assert_eq!(wire.run("PMCPTASK.GET pmcp:tasks:o1:t1"), NIL);
    assert_eq!(wire.run("PMCPTASK.LIST pmcp:idx:o1"), "*0\r\n");
    assert_eq!(wire.run("DBSIZE"), ":352\r\n");
    assert_eq!(server.appended(), told, "a read has written");
    assert_eq!(wire.run("CLIENT UNPAUSE"), OK);
    assert_all_goes(&mut wire);
}

#[test]
fn nothing_is_written_while_all_clients_are_paused_and_all_is_made_up_for_afterwards() {
    let (_server, mut wire) = tasks_go_during(&format!("CLIENT PAUSE {} ALL", 1_500 + 500 * slowness()));
    // The server replies once the pause is over.
    wire.run("PING");
    assert_all_goes(&mut wire);
}
