//! Replicas and the AOF get plain commands, so a server without the module holds the same data.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::Duration;

use pmcptask_tests::{
    Dice, EMPTY, INDEX, NIL, PROMISED, Server, ServerOptions, TASK, Wire, holds_within, now_ms, slowness,
};

/// Only a broken server needs this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server whose DUMP of a value does not depend on how the value got there: compact encodings keep the
/// order of the writes.
fn comparable() -> ServerOptions {
    let options = ServerOptions::default()
        .set("hash-max-listpack-value", "1000000")
        .set("zset-max-listpack-entries", "1000000");
    // Pings would count in the replication offsets.
    options.set("repl-diskless-sync-delay", "0").set("repl-ping-replica-period", "3600")
}

fn await_link(replica: &Server) {
    let up = holds_within(PATIENCE, || replica.follows_or_leads());
    assert!(up, "the replica does not reach its primary:\n{}", replica.log());
}

/// Waits until a replica has received everything that its primary has written.
fn await_all_of(primary: &Server, replica: &Server) {
    await_link(replica);
    let (mut primary, mut replica) = (primary.wire(), replica.wire());
    let same = holds_within(PATIENCE, || {
        let written = primary.info("replication", "master_repl_offset");
        written == replica.info("replication", "slave_repl_offset")
    });
    assert!(same, "the replica does not come to the end of what its primary has written");
}

fn keys_of(prefix: &str, owner: u64, task: u64) -> (String, String) {
    // One owner has a colon, which the Lua backend could not handle.
    let owner = if owner == 0 { "urn:o".to_owned() } else { format!("o{owner}") };
    (format!("{prefix}:tasks:{owner}:t{task}"), format!("{prefix}:idx:{owner}"))
}

/// Sends one random command that touches tasks, ours or another application's.
fn one_call(wire: &mut Wire, dice: &mut Dice) {
    let prefix = dice.pick(&["pmcp", "app"]);
    let (task, index) = keys_of(prefix, dice.roll(4), dice.roll(12));
    let data = match dice.roll(4) {
        0 => format!(r#"{{"expiresAt":"2199-01-01T00:00:0{}.5Z"}}"#, dice.roll(10)),
        1 => "y".repeat(3_000),
        2 => r#"{"expiresAt":"2001-01-01T00:00:00Z"}"#.to_owned(),
        _ => format!("data {}", dice.roll(1_000)),
    };
    let created = dice.roll(1 << 53).to_string();
    // Most of these tasks live for some more calls.
    let soon = now_ms() + i64::try_from(dice.roll(400 * u64::from(slowness()))).unwrap();
    let soon = soon.to_string();
    let late = (now_ms() + 3_600_000).to_string();
    let version = (1 + dice.roll(3)).to_string();
    let options: &[&str] = match dice.roll(7) {
        0 => &["PXAT", &soon],
        1 | 2 => &["PXAT", &late],
        3 => &["PERSIST"],
        4 => &["CREATED", &created, "PXAT", &late],
        5 => &["PXAT", "1"],
        _ => &[],
    };
    let keep = (4 + dice.roll(8)).to_string();
    let call = match dice.roll(28) {
        0..5 => [&["PMCPTASK.PUT", &task, &index, &data][..], options].concat(),
        5 => vec!["PMCPTASK.PUT", &task, &index, &data, "MAXTASKS", "6"],
        6 => vec!["PMCPTASK.PUT", &task, &index, &data, "CREATED", "NEWEST", "HELD", &task],
        7..12 => [&["PMCPTASK.CAS", &task, &index, &version, &data], options].concat(),
        12 | 13 => vec!["PMCPTASK.DEL", &task, &index],
        14 => vec!["PMCPTASK.GET", &task],
        15 => vec!["PMCPTASK.LIST", &index, "REV", "COUNT", "3"],
        16 => vec!["UNLINK", &task],
        17 => vec!["HDEL", &task, "version", "data", "expires_at"],
        18 => vec!["PEXPIREAT", &task, &soon],
        19 => vec!["UNLINK", &index],
        20 => vec!["PMCPTASK.PUT", &task, &index, &data, "PXAT", "never"],
        21 | 22 => [&["PMCPTASK.PUT", &task, &index, &data, "NX"][..], options].concat(),
        23 | 24 => vec!["PMCPTASK.DEL", &task, &index, "VERSION", &version],
        25 => vec!["PMCPTASK.EXPIRE", &task, &index, "PERSIST"],
        26 => vec!["PMCPTASK.EXPIRE", &task, &index, "PXAT", dice.pick::<&str>(&["1", &soon, &late])],
        _ => vec!["PMCPTASK.TRIM", &index, "KEEP", &keep, "COUNT", "2"],
    };
    wire.call(&call);
}

fn many_calls(primary: &Server, dice: &mut Dice) {
    let mut databases = [primary.wire(), primary.wire()];
    databases[1].call(&["SELECT", "1"]);
    for _ in 0..2_000 {
        let database = usize::from(dice.roll(4) == 0);
        one_call(&mut databases[database], dice);
    }
}

/// Waits until all short-lived tasks have expired, and no entry is without its task.
fn settle(primary: &Server) {
    let script = "for _, key in ipairs(redis.call('KEYS', '*')) do
            local ttl = redis.call('PTTL', key)
            -- Others live for an hour.
            if ttl >= 0 and ttl < 1000000 then return 0 end
        end
        return 1";
    for database in ["0", "1"] {
        let mut wire = primary.wire();
        wire.call(&["SELECT", database]);
        assert!(
            holds_within(Duration::from_secs(3), || wire.call(&["EVAL", script, "0"]) == ":1\r\n"),
            "tasks do not expire in database {database}"
        );
    }
    primary.have_indexes_walked(2);
}

fn assert_same(primary: &Server, replicas: &[&Server]) {
    settle(primary);
    for replica in replicas {
        await_all_of(primary, replica);
        for database in [0, 1] {
            let (held, told) = (primary.dump(database), replica.dump(database));
            assert!(!held.is_empty());
            let keys: Vec<_> = held.keys().chain(told.keys()).collect();
            for key in keys {
                assert_eq!(held.get(key), told.get(key), "primary and replica differ in {key}");
            }
        }
    }
}

#[test]
fn replicas_with_and_without_the_module_hold_the_same_bytes() {
    let primary = Server::start_with(&comparable());
    let mut dice = Dice::new(20_250_703);
    many_calls(&primary, &mut dice);
    // The first sync is a full sync of existing data.
    let plain = Server::start_with(&comparable().replica_of(&primary).without_module());
    let equipped = Server::start_with(&comparable().replica_of(&primary).set("repl-diskless-load", "swapdb"));
    assert_same(&primary, &[&plain, &equipped]);
    let mut wire = primary.wire();

    many_calls(&primary, &mut dice);
    assert_same(&primary, &[&plain, &equipped]);

    let partial = wire.info_number("stats", "sync_partial_ok");
    wire.call(&["CLIENT", "KILL", "TYPE", "replica"]);
    many_calls(&primary, &mut dice);
    assert_same(&primary, &[&plain, &equipped]);
    assert_eq!(wire.info_number("stats", "sync_partial_ok"), partial + 2);

    let full = wire.info_number("stats", "sync_full");
    for replica in [&plain, &equipped] {
        // Gives the replica its own history.
        assert_eq!(replica.wire().call(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
        replica.wire().call(&["SET", "own", "x"]);
    }
    many_calls(&primary, &mut dice);
    for replica in [&plain, &equipped] {
        replica.wire().call(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
    }
    many_calls(&primary, &mut dice);
    assert_same(&primary, &[&plain, &equipped]);
    assert_eq!(wire.info_number("stats", "sync_full"), full + 2);

    // The calls have had every outcome that they should have.
    let outcomes = ["puts", "cas_ok", "cas_conflict", "cas_missing", "deletes", "refused_capacity"];
    let newer = ["put_exists", "del_conflict", "del_missing", "expires", "trims", "tasks_trimmed"];
    for field in outcomes.iter().chain(&newer).chain(&["refused_err", "index_entries_removed"]) {
        assert!(wire.info_number("pmcptask", &format!("pmcptask_{field}")) > 20, "{field}");
    }
    assert_eq!(equipped.wire().info_number("pmcptask", "pmcptask_index_entries_removed"), 0);
}

#[test]
fn replica_that_has_missed_too_much_gets_everything_anew() {
    let primary = Server::start_with(&comparable().set("repl-backlog-size", "16384"));
    let mut dice = Dice::new(20_250_704);
    many_calls(&primary, &mut dice);
    let plain = Server::start_with(&comparable().replica_of(&primary).without_module());
    // This replica loads beside the data that it serves. The module must not take that for changes.
    let equipped = Server::start_with(&comparable().replica_of(&primary).set("repl-diskless-load", "swapdb"));
    assert_same(&primary, &[&plain, &equipped]);
    let mut wire = primary.wire();
    let full = wire.info_number("stats", "sync_full");
    // In one transaction, so that the replicas cannot return before the backlog is too short for them.
    wire.call(&["MULTI"]);
    wire.call(&["CLIENT", "KILL", "TYPE", "replica"]);
    for n in 0..100 {
        let task = format!("pmcp:tasks:o:t{n}");
        wire.call(&["PMCPTASK.PUT", &task, INDEX, &"z".repeat(3_000)]);
    }
    assert!(wire.call(&["EXEC"]).starts_with("*101\r\n:2\r\n:1\r\n"));
    assert_same(&primary, &[&plain, &equipped]);
    assert_eq!(wire.info_number("stats", "sync_full"), full + 2);
    assert!(equipped.log().contains("Swapping active DB with loaded DB"), "{}", equipped.log());
}

#[test]
fn read_on_a_replica_finds_no_task_past_its_expiry() {
    let mut primary = Server::start_with(&comparable());
    let replica = Server::start_with(&comparable().replica_of(&primary));
    await_link(&replica);
    let expires_at = now_ms() + 1_000 * i64::from(slowness());
    let mut wire = primary.wire();
    wire.call(&["PMCPTASK.PUT", TASK, INDEX, "data", "PXAT", &expires_at.to_string()]);
    await_all_of(&primary, &replica);
    // Now no primary tells the replica that the task is gone.
    primary.kill();
    let mut wire = replica.wire();
    let found = wire.call(&["PMCPTASK.GET", TASK]);
    assert!(found == "*2\r\n:1\r\n$4\r\ndata\r\n" || now_ms() > expires_at, "{found}");
    // The server's rule: a key has expired once the clock is past its expiry.
    assert!(holds_within(PATIENCE, || now_ms() > expires_at));
    assert_eq!(wire.call(&["PMCPTASK.GET", TASK]), NIL);
    assert_eq!(wire.call(&["PMCPTASK.LIST", INDEX]), EMPTY);
    assert_eq!(wire.call(&["DBSIZE"]), ":2\r\n", "the replica has reclaimed keys by itself");
}

#[test]
fn write_on_a_replica_is_refused_in_the_servers_words() {
    let primary = Server::start_with(&comparable());
    primary.wire().call(&["PMCPTASK.PUT", TASK, INDEX, "data"]);
    let replica = Server::start_with(&comparable().replica_of(&primary));
    await_all_of(&primary, &replica);
    let before = replica.dump(0);
    let mut wire = replica.wire();
    for call in [
        &["PMCPTASK.PUT", TASK, INDEX, "x"][..],
        &["PMCPTASK.CAS", TASK, INDEX, "1", "x"],
        &["PMCPTASK.DEL", TASK, INDEX],
        &["PMCPTASK.PUT", TASK, INDEX, "x", "NX"],
        &["PMCPTASK.DEL", TASK, INDEX, "VERSION", "1"],
        &["PMCPTASK.EXPIRE", TASK, INDEX, "PXAT", "1"],
        &["PMCPTASK.TRIM", INDEX, "KEEP", "0"],
    ] {
        let reply = wire.call(call);
        assert!(reply.starts_with("-READONLY "), "{call:?}: {reply}");
    }
    assert_eq!(replica.dump(0), before);
    assert_eq!(wire.call(&["PMCPTASK.GET", TASK]), "*2\r\n:1\r\n$4\r\ndata\r\n");
}

#[test]
fn primary_that_comes_back_after_a_failover_removes_what_was_left_meanwhile() {
    let first = Server::start_with(&comparable());
    let mut second = Server::start_with(&comparable().replica_of(&first));
    await_all_of(&first, &second);
    let mut wire = first.wire();
    wire.call(&["HSET", TASK, "version", "1", "data", "x"]);
    wire.call(&["ZADD", INDEX, "1", "t"]);
    await_all_of(&first, &second);

    assert_eq!(second.wire().call(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
    assert_eq!(wire.call(&["REPLICAOF", "127.0.0.1", &second.port().to_string()]), "+OK\r\n");
    await_all_of(&second, &first);
    assert_eq!(second.wire().info_number("stats", "sync_partial_ok"), 1, "the first one has loaded anew");
    second.wire().call(&["ZADD", INDEX, "2", "stale"]);
    await_all_of(&second, &first);
    assert_eq!(wire.call(&["ZCARD", INDEX]), ":2\r\n");
    second.kill();
    assert_eq!(wire.call(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
    first.have_indexes_walked(2);
    assert_eq!(wire.call(&["ZSCORE", INDEX, "stale"]), NIL);
    assert_eq!(wire.call(&["ZCARD", INDEX]), ":1\r\n");
}

// What each call sends to replicas and the AOF.

/// What a call appends to the AOF, with `T` and `I` for the two keys.
fn effects(server: &Server, line: &str) -> Vec<String> {
    let before = server.appended().len();
    server.wire().run(line);
    shortened(&server.appended()[before..])
}

fn shortened(commands: &[String]) -> Vec<String> {
    commands.iter().map(|command| command.replace(TASK, "T").replace(INDEX, "I")).collect()
}

#[test]
fn each_call_tells_exactly_the_documented_commands_as_one_transaction() {
    let server = Server::start_recorded();
    let [at, later] = ["4102444800123", "4102444805000"];
    let one = |command: &str| vec![command.to_owned()];
    let all = |commands: &[&str]| {
        let words = [&["MULTI"], commands, &["EXEC"]].concat();
        words.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    for (line, expected) in [
        ("PMCPTASK.PUT T I a CREATED 5".to_owned(), all(&["HSET T version 1 data a", "ZADD I 5 t"])),
        ("PMCPTASK.PUT T I b".to_owned(), one("HSET T version 2 data b")),
        ("PMCPTASK.CAS T I 2 c PERSIST CREATED 9".to_owned(), one("HSET T version 3 data c")),
        (
            format!("PMCPTASK.PUT T I d PXAT {at}"),
            all(&["HSET T version 4 data d expires_at 4102444801", &format!("PEXPIREAT T {at}")]),
        ),
        // Unchanged values are not sent again.
        (format!("PMCPTASK.CAS T I 4 e PXAT {at}"), one("HSET T version 5 data e")),
        (
            format!("PMCPTASK.CAS T I 5 f PXAT {later}"),
            all(&["HSET T version 6 data f expires_at 4102444805", &format!("PEXPIREAT T {later}")]),
        ),
        (
            "PMCPTASK.PUT T I g PERSIST".to_owned(),
            all(&["HSET T version 7 data g", "HDEL T expires_at", "PERSIST T"]),
        ),
        ("PMCPTASK.CAS T I 7 h PXAT 1".to_owned(), all(&["DEL T", "ZREM I t"])),
        (
            format!("PMCPTASK.PUT T I i PXAT {at} CREATED 6 MAXTASKS 1"),
            all(&[
                "HSET T version 1 data i expires_at 4102444801",
                &format!("PEXPIREAT T {at}"),
                "ZADD I 6 t",
            ]),
        ),
        ("PMCPTASK.DEL T I".to_owned(), all(&["DEL T", "ZREM I t"])),
        (
            r#"PMCPTASK.PUT T I {"expiresAt":"2100-01-01T00:00:00.123Z","task":{"createdAt":"1970-01-01T00:00:00.007Z"}}"#
                .to_owned(),
            all(&[
                // A long record comes first: it makes the hash a table before the other fields are added.
                r#"HSET T data {\"expiresAt\":\"2100-01-01T00:00:00.123Z\",\"task\":{\"createdAt\":\"1970-01-01T00:00:00.007Z\"}} version 1 expires_at 4102444801"#,
                &format!("PEXPIREAT T {at}"),
                "ZADD I 7 t",
            ]),
        ),
        ("PMCPTASK.PUT T I j PXAT 0".to_owned(), all(&["DEL T", "ZREM I t"])),
        ("PMCPTASK.PUT T I k PXAT 0".to_owned(), vec![]),
        ("PMCPTASK.DEL T I".to_owned(), vec![]),
    ] {
        assert_eq!(effects(&server, &line), expected, "{line}");
    }
}

#[test]
fn new_task_a_deleted_version_and_a_new_expiry_tell_exactly_what_they_change() {
    let server = Server::start_recorded();
    let [at, same_second, later] = ["4102444800123", "4102444800999", "4102444805000"];
    for (line, expected) in [
        ("PMCPTASK.PUT T I a CREATED 5 NX".to_owned(), &["HSET T version 1 data a", "ZADD I 5 t"][..]),
        ("PMCPTASK.PUT T I b NX".to_owned(), &[]),
        ("PMCPTASK.EXPIRE T I PERSIST".to_owned(), &[]),
        (
            format!("PMCPTASK.EXPIRE T I PXAT {at}"),
            &["HSET T expires_at 4102444801", "PEXPIREAT T 4102444800123"],
        ),
        // Unchanged values are not sent again.
        (format!("PMCPTASK.EXPIRE T I PXAT {at}"), &[]),
        (format!("PMCPTASK.EXPIRE T I PXAT {same_second}"), &["PEXPIREAT T 4102444800999"]),
        (
            format!("PMCPTASK.EXPIRE T I PXAT {later}"),
            &["HSET T expires_at 4102444805", "PEXPIREAT T 4102444805000"],
        ),
        ("PMCPTASK.EXPIRE T I PERSIST".to_owned(), &["HDEL T expires_at", "PERSIST T"]),
        ("PMCPTASK.DEL T I VERSION 2".to_owned(), &[]),
        ("PMCPTASK.DEL T I VERSION 1".to_owned(), &["DEL T", "ZREM I t"]),
        ("PMCPTASK.DEL T I VERSION 1".to_owned(), &[]),
        (format!("PMCPTASK.EXPIRE T I PXAT {at}"), &[]),
        (
            format!("PMCPTASK.PUT T I c NX CREATED 6 PXAT {at}"),
            &["HSET T version 1 data c expires_at 4102444801", "PEXPIREAT T 4102444800123", "ZADD I 6 t"],
        ),
        ("PMCPTASK.EXPIRE T I PXAT 1".to_owned(), &["DEL T", "ZREM I t"]),
        ("PMCPTASK.EXPIRE T I PXAT 1".to_owned(), &[]),
        (
            "PMCPTASK.PUT T I e CREATED 4102444800123".to_owned(),
            &["HSET T version 1 data e", "ZADD I 4102444800123 t"],
        ),
        // The time itself is sent, and nothing of the other task.
        (
            "PMCPTASK.PUT pmcp:tasks:o:u I f CREATED NEWEST HELD T".to_owned(),
            &["HSET pmcp:tasks:o:u version 1 data f", "ZADD I 4102444800124 u"],
        ),
        ("PMCPTASK.PUT T I g CREATED NEWEST HELD T".to_owned(), &["HSET T version 2 data g"]),
        ("PMCPTASK.DEL T I".to_owned(), &["DEL T", "ZREM I t"]),
        ("PMCPTASK.PUT T I d NX PXAT 1".to_owned(), &[]),
    ] {
        assert_eq!(effects(&server, &line), as_told(expected), "{line}");
    }
}

#[test]
fn trim_tells_all_that_it_removes_as_one_transaction() {
    let server = Server::start_recorded();
    server.wire().run("CONFIG SET pmcptask.reclaim no");
    for (id, created_ms) in ["a", "b", "c", "d", "e"].iter().zip(1..) {
        server.wire().run(&format!("PMCPTASK.PUT pmcp:tasks:o:{id} I x CREATED {created_ms}"));
    }
    // An entry without a task, and a hash that has outlived its task.
    server.wire().run("HSET pmcp:tasks:o:lapsed version 1 data x expires_at 1");
    server.wire().run("ZADD I 1.3 dead 1.6 lapsed");
    for (line, hashes, entries) in [
        ("PMCPTASK.TRIM I KEEP 5", &[][..], &[][..]),
        ("PMCPTASK.TRIM I KEEP 0 COUNT 0", &[], &[]),
        ("PMCPTASK.TRIM I KEEP 3", &["a", "b", "lapsed"], &["a", "b", "dead", "lapsed"]),
        ("PMCPTASK.TRIM I KEEP 3", &[], &[]),
        ("PMCPTASK.TRIM I KEEP 1 COUNT 1", &["c"], &["c"]),
        ("PMCPTASK.TRIM I KEEP 0", &["d", "e"], &["d", "e"]),
        ("PMCPTASK.TRIM I KEEP 0", &[], &[]),
    ] {
        let told = effects(&server, line);
        let removed = |command: &str, prefix: &str| -> Vec<String> {
            let arguments = told.iter().filter_map(|line| line.strip_prefix(command));
            let mut names: Vec<_> =
                arguments.flat_map(|line| line.split(' ')).map(|name| name.replacen(prefix, "", 1)).collect();
            names.sort();
            names
        };
        assert_eq!(removed("DEL ", "pmcp:tasks:o:"), hashes, "{line}: {told:?}");
        assert_eq!(removed("ZREM I ", ""), entries, "{line}: {told:?}");
        let is_plain = |line: &String| line.starts_with("DEL ") || line.starts_with("ZREM I ");
        match told.as_slice() {
            [] => {}
            [first, removals @ .., last] => {
                assert!(first == "MULTI" && last == "EXEC" && removals.iter().all(is_plain), "{told:?}");
            }
            [_] => panic!("{line}: {told:?}"),
        }
    }
    assert_eq!(server.wire().run("DBSIZE"), ":0\r\n");
}

/// What a call appends to the AOF if it makes these changes.
fn as_told(changes: &[&str]) -> Vec<String> {
    let words = match changes {
        [] | [_] => changes.to_vec(),
        several => [&["MULTI"], several, &["EXEC"]].concat(),
    };
    words.into_iter().map(str::to_owned).collect()
}

#[test]
fn call_that_meets_half_a_task_tells_what_it_mends() {
    let server = Server::start_recorded();
    // Keeps the index alive: when an index goes, the module repairs half tasks by itself.
    server.wire().run("PMCPTASK.PUT pmcp:tasks:o:stays I x");
    // A hash that has outlived its task. The module looks at this task once more by itself, so the other parts
    // of this test use another task.
    let lapsed = "pmcp:tasks:o:u";
    server.wire().run(&format!("HSET {lapsed} version 9 data old expires_at 1"));
    server.wire().run("ZADD I 3 u");
    let [removed, written] = [format!("DEL {lapsed}"), format!("HSET {lapsed} version 1 data new")];
    let effects_of_put = ["MULTI", &removed, &written, "ZADD I 5 u", "EXEC"];
    assert_eq!(effects(&server, &format!("PMCPTASK.PUT {lapsed} I new CREATED 5")), effects_of_put);
    // A hash without an entry.
    server.wire().run("PMCPTASK.PUT T I new");
    server.wire().run("ZREM I t");
    let effects_of_cas = ["MULTI", "HSET T version 2 data x", "ZADD I 7 t", "EXEC"];
    assert_eq!(effects(&server, "PMCPTASK.CAS T I 1 x CREATED 7"), effects_of_cas);
    server.wire().run("ZREM I t");
    assert_eq!(effects(&server, "PMCPTASK.DEL T I"), ["DEL T"]);
    // An entry without a hash.
    server.wire().run("ZADD I 3 t");
    assert_eq!(effects(&server, "PMCPTASK.DEL T I"), ["ZREM I t"]);
    // An expiry that another client has set.
    server.wire().run("HSET T version 1 data x");
    server.wire().run("ZADD I 3 t");
    server.wire().run("PEXPIREAT T 4102444800123");
    assert_eq!(
        effects(&server, "PMCPTASK.PUT T I y"),
        ["MULTI", "HSET T version 2 data y", "PERSIST T", "EXEC"]
    );
    // A key that has lost its expiry, and a hash that has lost its field.
    server.wire().run("PMCPTASK.EXPIRE T I PXAT 4102444800123");
    server.wire().run("PERSIST T");
    assert_eq!(effects(&server, "PMCPTASK.EXPIRE T I PXAT 4102444800123"), ["PEXPIREAT T 4102444800123"]);
    server.wire().run("HDEL T expires_at");
    assert_eq!(effects(&server, "PMCPTASK.EXPIRE T I PXAT 4102444800123"), ["HSET T expires_at 4102444801"]);
    server.wire().run("PERSIST T");
    assert_eq!(effects(&server, "PMCPTASK.EXPIRE T I PERSIST"), ["HDEL T expires_at"]);
    // A hash without an entry does not get one.
    server.wire().run("ZREM I t");
    assert_eq!(effects(&server, "PMCPTASK.EXPIRE T I PXAT 4102444800123").len(), 4);
    assert_eq!(effects(&server, "PMCPTASK.EXPIRE T I PXAT 1"), ["DEL T"]);
    server.wire().run("PMCPTASK.PUT T I z");
    server.wire().run("ZREM I t");
    assert_eq!(effects(&server, "PMCPTASK.DEL T I VERSION 1"), ["DEL T"]);
}

#[test]
fn reads_and_calls_that_are_refused_or_lost_tell_nothing() {
    let server = Server::start_recorded();
    for line in [
        "PMCPTASK.PUT T I d CREATED 5",
        "HSET pmcp:tasks:o:nodata version 1",
        "HSET pmcp:tasks:o:noversion data x version 01",
        "SET pmcp:tasks:o:text x",
        "SET pmcp:idx:text x",
        "ZADD I 6 nodata 7 noversion 8 text 9 nothing",
        "CONFIG SET pmcptask.max-record-bytes 64",
    ] {
        assert!(!server.wire().run(line).starts_with('-'), "{line}");
    }
    let large = format!("PMCPTASK.PUT T I {}", "x".repeat(65));
    for (line, reply) in [
        ("PMCPTASK.GET T", "*2"),
        ("PMCPTASK.GET pmcp:tasks:o:nothing", NIL),
        ("PMCPTASK.LIST I", "*1"),
        ("PMCPTASK.LIST pmcp:idx:nobody", EMPTY),
        ("PMCPTASK.CAS T I 7 x", "*2\r\n+CONFLICT"),
        ("PMCPTASK.CAS pmcp:tasks:o:nothing I 1 x", "*2\r\n+MISSING"),
        ("PMCPTASK.PUT pmcp:tasks:o:new I x MAXTASKS 1", "-CAPACITY"),
        (&large, "-CAPACITY"),
        (&large.replace("PUT T I", "CAS T I 1"), "-CAPACITY"),
        ("PMCPTASK.PUT pmcp:tasks:o:nodata I x", "-CORRUPT"),
        ("PMCPTASK.CAS pmcp:tasks:o:noversion I 1 x", "-CORRUPT"),
        ("PMCPTASK.GET pmcp:tasks:o:nodata", "-CORRUPT"),
        ("PMCPTASK.PUT pmcp:tasks:o:text I x", "-WRONGTYPE"),
        ("PMCPTASK.DEL pmcp:tasks:o:text I", "-WRONGTYPE"),
        ("PMCPTASK.PUT pmcp:tasks:text:t pmcp:idx:text x", "-WRONGTYPE"),
        ("PMCPTASK.GET pmcp:tasks:o:text", "-WRONGTYPE"),
        ("PMCPTASK.LIST pmcp:idx:text", "-WRONGTYPE"),
        ("PMCPTASK.PUT T pmcp:idx:other x", "-ERR"),
        ("PMCPTASK.PUT T I x PXAT soon", "-ERR"),
        (r#"PMCPTASK.PUT T I {"expiresAt":"soon"}"#, "-ERR"),
        ("PMCPTASK.CAS T I -1 x", "-ERR"),
        ("PMCPTASK.CAS T I 1 x MAXTASKS 5", "-ERR"),
        ("PMCPTASK.DEL T", "-ERR"),
        ("PMCPTASK.LIST I NODATA", "*1"),
        ("PMCPTASK.PUT T I x NX", ":0"),
        ("PMCPTASK.PUT T I x NX PXAT 1", ":0"),
        ("PMCPTASK.PUT pmcp:tasks:o:new I x NX MAXTASKS 1", "-CAPACITY"),
        (&format!("{large} NX").replace("T I", "pmcp:tasks:o:new I"), "-CAPACITY"),
        ("PMCPTASK.PUT T I x HELD pmcp:tasks:o:nothing", "-NOTHELD"),
        ("PMCPTASK.PUT T I x HELD pmcp:tasks:o:nodata", "-NOTHELD"),
        ("PMCPTASK.PUT T I x HELD pmcp:tasks:o:text", "-WRONGTYPE"),
        ("PMCPTASK.PUT T I x NX HELD T", ":0"),
        ("PMCPTASK.DEL T I VERSION 7", "*2\r\n+CONFLICT"),
        // Its entry stays.
        ("PMCPTASK.DEL pmcp:tasks:o:nothing I VERSION 1", "*2\r\n+MISSING"),
        ("PMCPTASK.DEL pmcp:tasks:o:nodata I VERSION 1", "-CORRUPT"),
        ("PMCPTASK.DEL pmcp:tasks:o:text I VERSION 1", "-WRONGTYPE"),
        ("PMCPTASK.DEL T I VERSION one", "-ERR"),
        ("PMCPTASK.EXPIRE pmcp:tasks:o:nothing I PXAT 1", ":0"),
        ("PMCPTASK.EXPIRE pmcp:tasks:o:nothing I PERSIST", ":0"),
        ("PMCPTASK.EXPIRE pmcp:tasks:o:noversion I PXAT 1", "-CORRUPT"),
        ("PMCPTASK.EXPIRE pmcp:tasks:o:text I PXAT 1", "-WRONGTYPE"),
        ("PMCPTASK.EXPIRE T I PXAT 1 PERSIST", "-ERR"),
        ("PMCPTASK.TRIM pmcp:idx:nobody KEEP 0", ":0"),
        ("PMCPTASK.TRIM I KEEP 9", ":0"),
        ("PMCPTASK.TRIM pmcp:idx:text KEEP 0", "-WRONGTYPE"),
        ("PMCPTASK.TRIM I KEEP few", "-ERR"),
    ] {
        let before = server.appended().len();
        let came = server.wire().run(line);
        assert!(came.starts_with(reply), "{line}: {came}");
        assert_eq!(server.appended()[before..], Vec::<String>::new(), "{line}");
    }
}

#[test]
fn entry_of_a_task_that_goes_by_itself_is_removed_with_one_plain_command() {
    let server = Server::start_recorded();
    server.wire().run("PMCPTASK.PUT pmcp:tasks:o:stays I x");
    for how in ["PEXPIREAT T", "UNLINK T", "PMCPTASK.PUT T I y PXAT"] {
        server.wire().run("PMCPTASK.PUT T I x");
        let soon = now_ms() + 100;
        let before = server.appended().len();
        if how == "UNLINK T" {
            server.wire().run(how);
            server.have_indexes_walked(2);
        } else {
            server.wire().run(&format!("{how} {soon}"));
            assert!(holds_within(PATIENCE, || server.wire().run("EXISTS T") == ":0\r\n"));
        }
        assert!(holds_within(PROMISED, || server.wire().run("ZCARD I") == ":1\r\n"));
        let told = shortened(&server.appended()[before..]);
        // The server's own command for an expiry depends on its settings.
        let [.., gone, entry] = told.as_slice() else { panic!("{told:?}") };
        assert!(gone == "DEL T" || gone == "UNLINK T", "{told:?}");
        assert_eq!(entry, "ZREM I t", "{told:?}");
    }
}
