//! What the server reports about the module: its commands, settings and counters. And what remains without
//! the module.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use pmcptask_tests::{Server, ServerOptions, StartError, Wire};
use redis::{Client, Connection, Value};
use serde_json::{Value as Json, json};

const COMMANDS: [&str; 8] = [
    "pmcptask.put",
    "pmcptask.cas",
    "pmcptask.get",
    "pmcptask.del",
    "pmcptask.list",
    "pmcptask.expire",
    "pmcptask.trim",
    "pmcptask.wait",
];

/// A connection whose replies distinguish maps from arrays.
fn resp3(server: &Server) -> Connection {
    Client::open(format!("{}?protocol=resp3", server.url())).unwrap().get_connection().unwrap()
}

fn ask(connection: &mut Connection, line: &str) -> Json {
    let mut words = line.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    to_json(command.query(connection).unwrap_or_else(|error| panic!("{line}: {error}")))
}

fn to_json(value: Value) -> Json {
    match value {
        Value::Nil => Json::Null,
        Value::Okay => "OK".into(),
        Value::Int(number) => number.into(),
        Value::BulkString(bytes) => String::from_utf8(bytes).unwrap().into(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.into(),
        Value::Array(elements) => elements.into_iter().map(to_json).collect(),
        Value::Set(elements) => {
            let mut elements: Vec<_> = elements.into_iter().map(to_json).collect();
            elements.sort_by_key(Json::to_string);
            elements.into()
        }
        Value::Map(pairs) => Json::Object(
            pairs
                .into_iter()
                .map(|(name, value)| (to_json(name).as_str().unwrap().to_owned(), to_json(value)))
                .collect(),
        ),
        other => panic!("a reply that COMMAND does not make: {other:?}"),
    }
}

// Commands.

#[test]
fn command_info_tells_arity_flags_and_keys() {
    let server = Server::start();
    let mut connection = resp3(&server);
    let key = |position: i64, flags: Json| {
        json!({
            "flags": flags,
            "begin_search": {"type": "index", "spec": {"index": position}},
            "find_keys": {"type": "range", "spec": {"lastkey": 0, "keystep": 1, "limit": 0}},
        })
    };
    let mut held = key(0, json!(["RO", "access"]));
    held["begin_search"] = json!({"type": "keyword", "spec": {"keyword": "HELD", "startfrom": 4}});
    let write = json!(["denyoom", "module", "write"]);
    // A command that makes nothing larger runs where memory is full.
    let frees = json!(["module", "write"]);
    let update = json!(["RW", "update"]);
    let delete_from = json!(["RW", "delete"]);
    for (command, arity, flags, first_and_last_key, keys) in [
        (
            "pmcptask.put",
            -4,
            &json!(["denyoom", "module", "movablekeys", "write"]),
            [1, 2],
            json!([held, key(1, update.clone()), key(2, update.clone())]),
        ),
        (
            "pmcptask.cas",
            -5,
            &write,
            [1, 2],
            json!([key(1, json!(["RW", "access", "update"])), key(2, update.clone())]),
        ),
        (
            "pmcptask.get",
            2,
            &json!(["fast", "module", "readonly"]),
            [1, 1],
            json!([key(1, json!(["RO", "access"]))]),
        ),
        (
            "pmcptask.del",
            -3,
            &frees,
            [1, 2],
            json!([key(1, json!(["RM", "delete"])), key(2, delete_from.clone())]),
        ),
        (
            "pmcptask.list",
            -2,
            &json!(["module", "readonly"]),
            [1, 1],
            json!([key(1, json!(["RO", "access"]))]),
        ),
        ("pmcptask.expire", -4, &frees, [1, 2], json!([key(2, delete_from.clone()), key(1, update)])),
        ("pmcptask.trim", -4, &frees, [1, 1], json!([key(1, delete_from)])),
        (
            "pmcptask.wait",
            4,
            &json!(["blocking", "module", "readonly"]),
            [1, 1],
            json!([key(1, json!(["RO", "access"]))]),
        ),
    ] {
        let info = &ask(&mut connection, &format!("COMMAND INFO {command}"))[0];
        assert_eq!(info[0], command);
        assert_eq!(info[1], arity, "{command}");
        assert_eq!(&info[2], flags, "{command}");
        assert_eq!(
            [&info[3], &info[4], &info[5]].map(|n| n.as_i64().unwrap()),
            [first_and_last_key[0], first_and_last_key[1], 1]
        );
        assert_eq!(info[8], keys, "{command}");
    }
}

#[test]
fn commands_are_in_acl_categories_but_on_redis_7_0_which_has_none_for_modules() {
    let server = Server::start();
    let mut connection = resp3(&server);
    let info = ask(&mut connection, "INFO server");
    let is_redis_7_0 = info.as_str().unwrap().contains("redis_version:7.0.");
    for (command, categories) in [
        ("pmcptask.put", json!(["@slow", "@write"])),
        ("pmcptask.cas", json!(["@slow", "@write"])),
        ("pmcptask.get", json!(["@fast", "@read"])),
        ("pmcptask.del", json!(["@slow", "@write"])),
        ("pmcptask.list", json!(["@read", "@slow"])),
        ("pmcptask.expire", json!(["@slow", "@write"])),
        ("pmcptask.trim", json!(["@slow", "@write"])),
        ("pmcptask.wait", json!(["@blocking", "@read", "@slow"])),
    ] {
        let expected = if is_redis_7_0 { json!([]) } else { categories };
        assert_eq!(ask(&mut connection, &format!("COMMAND INFO {command}"))[0][6], expected, "{command}");
    }
}

#[test]
fn command_getkeys_finds_the_keys() {
    let server = Server::start();
    let mut connection = resp3(&server);
    for (line, keys) in [
        ("PMCPTASK.PUT p:tasks:o:t p:idx:o data PERSIST", json!(["p:tasks:o:t", "p:idx:o"])),
        ("PMCPTASK.CAS p:tasks:o:t p:idx:o 1 data CREATED 5", json!(["p:tasks:o:t", "p:idx:o"])),
        ("PMCPTASK.GET p:tasks:o:t", json!(["p:tasks:o:t"])),
        ("PMCPTASK.DEL p:tasks:o:t p:idx:o", json!(["p:tasks:o:t", "p:idx:o"])),
        ("PMCPTASK.LIST p:idx:o REV AFTER 5 t COUNT 1", json!(["p:idx:o"])),
        ("PMCPTASK.PUT p:tasks:o:t p:idx:o data NX MAXTASKS 5", json!(["p:tasks:o:t", "p:idx:o"])),
        (
            "PMCPTASK.PUT p:tasks:o:t p:idx:o data HELD q:tasks:l:x",
            json!(["p:tasks:o:t", "p:idx:o", "q:tasks:l:x"]),
        ),
        (
            "PMCPTASK.PUT p:tasks:o:t p:idx:o HELD NX CREATED NEWEST held q:tasks:l:x PERSIST",
            json!(["p:tasks:o:t", "p:idx:o", "q:tasks:l:x"]),
        ),
        ("PMCPTASK.PUT p:tasks:o:t p:idx:o HELD", json!(["p:tasks:o:t", "p:idx:o"])),
        ("PMCPTASK.PUT p:tasks:o:t p:idx:o HELD NX", json!(["p:tasks:o:t", "p:idx:o"])),
        ("PMCPTASK.PUT HELD HELD HELD PERSIST", json!(["HELD", "HELD"])),
        ("PMCPTASK.CAS p:tasks:o:t p:idx:o 1 HELD CREATED NEWEST", json!(["p:tasks:o:t", "p:idx:o"])),
        ("PMCPTASK.DEL p:tasks:o:t p:idx:o VERSION 5", json!(["p:tasks:o:t", "p:idx:o"])),
        ("PMCPTASK.LIST p:idx:o NODATA COUNT 1", json!(["p:idx:o"])),
        ("PMCPTASK.EXPIRE p:tasks:o:t p:idx:o PXAT 5", json!(["p:tasks:o:t", "p:idx:o"])),
        ("PMCPTASK.EXPIRE p:tasks:o:t p:idx:o PERSIST", json!(["p:tasks:o:t", "p:idx:o"])),
        ("PMCPTASK.TRIM p:idx:o KEEP 5", json!(["p:idx:o"])),
        ("PMCPTASK.TRIM p:idx:o COUNT 1 KEEP 5", json!(["p:idx:o"])),
        ("PMCPTASK.WAIT p:tasks:o:t 1 0", json!(["p:tasks:o:t"])),
    ] {
        assert_eq!(ask(&mut connection, &format!("COMMAND GETKEYS {line}")), keys, "{line}");
    }
}

/// `COMMAND DOCS` of a command, without what Redis 7.2 and newer add to each argument.
fn docs(connection: &mut Connection, command: &str) -> Json {
    fn without_display_text(value: &mut Json) {
        match value {
            Json::Object(members) => {
                members.remove("display_text");
                members.values_mut().for_each(without_display_text);
            }
            Json::Array(elements) => elements.iter_mut().for_each(without_display_text),
            _ => {}
        }
    }
    let mut docs = ask(connection, &format!("COMMAND DOCS {command}"));
    without_display_text(&mut docs);
    docs[command].take()
}

#[test]
fn command_docs_tell_summary_complexity_since_and_group() {
    let server = Server::start();
    let mut connection = resp3(&server);
    for command in COMMANDS {
        let docs = docs(&mut connection, command);
        assert_eq!(
            [&docs["group"], &docs["module"], &docs["since"]],
            ["module", "pmcptask", "0.1.0"],
            "{command}"
        );
        assert!(docs["summary"].as_str().unwrap().ends_with('.'), "{docs}");
        assert!(docs["complexity"].as_str().unwrap().starts_with("O("), "{docs}");
    }
}

#[test]
fn command_docs_tell_every_argument() {
    let server = Server::start();
    let mut connection = resp3(&server);
    let task_key = json!({"name": "task-key", "type": "key", "key_spec_index": 0});
    let index_key = json!({"name": "index-key", "type": "key", "key_spec_index": 1});
    let data = json!({"name": "data", "type": "string"});
    let new_expiry = json!({"name": "expiry", "type": "oneof", "arguments": [
        {"name": "expires-at-ms", "type": "unix-time", "token": "PXAT"},
        {"name": "persist", "type": "pure-token", "token": "PERSIST"},
    ]});
    let mut expiry = new_expiry.clone();
    expiry["flags"] = json!(["optional"]);
    let created = json!({"name": "created", "type": "oneof", "token": "CREATED", "flags": ["optional"], "arguments": [
        {"name": "created-ms", "type": "unix-time"},
        {"name": "newest", "type": "pure-token", "token": "NEWEST"},
    ]});
    let held = json!({
        "name": "held-task-key", "type": "key", "key_spec_index": 2, "token": "HELD", "flags": ["optional"],
    });
    let max_tasks =
        json!({"name": "max-tasks", "type": "integer", "token": "MAXTASKS", "flags": ["optional"]});
    let only_new = json!({"name": "only-new", "type": "pure-token", "token": "NX", "flags": ["optional"]});
    let version = json!({"name": "expected-version", "type": "integer"});
    let version_to_delete =
        json!({"name": "version", "type": "integer", "token": "VERSION", "flags": ["optional"]});
    let keep = json!({"name": "keep", "type": "integer", "token": "KEEP"});
    let count = json!({"name": "count", "type": "integer", "token": "COUNT", "flags": ["optional"]});
    let seen = json!({"name": "version", "type": "integer"});
    let timeout = json!({"name": "timeout-ms", "type": "integer"});
    let only_index_key = json!({"name": "index-key", "type": "key", "key_spec_index": 0});
    let list = json!([
        only_index_key,
        {"name": "newest-first", "type": "pure-token", "token": "REV", "flags": ["optional"]},
        {"name": "after", "type": "block", "token": "AFTER", "flags": ["optional"], "arguments": [
            {"name": "created-ms", "type": "unix-time"},
            {"name": "task-id", "type": "string"},
        ]},
        count,
        {"name": "no-data", "type": "pure-token", "token": "NODATA", "flags": ["optional"]},
    ]);
    for (command, arguments) in [
        ("pmcptask.put", json!([task_key, index_key, data, expiry, created, max_tasks, only_new, held])),
        ("pmcptask.cas", json!([task_key, index_key, version, data, expiry, created])),
        ("pmcptask.get", json!([task_key])),
        ("pmcptask.del", json!([task_key, index_key, version_to_delete])),
        ("pmcptask.list", list),
        ("pmcptask.expire", json!([task_key, index_key, new_expiry])),
        ("pmcptask.trim", json!([only_index_key, keep, count])),
        ("pmcptask.wait", json!([task_key, seen, timeout])),
    ] {
        assert_eq!(docs(&mut connection, command)["arguments"], arguments, "{command}");
    }
}

// The command line.

/// What a person sees who types a line into redis-cli.
fn typed(server: &Server, line: &str) -> String {
    let words: Vec<_> = ["--no-raw"].into_iter().chain(line.split(' ')).collect();
    String::from_utf8(server.cli(&words).stdout).unwrap()
}

#[test]
fn person_at_redis_cli_can_read_every_reply() {
    let server = Server::start();
    for (line, seen) in [
        ("PMCPTASK.PUT pmcp:tasks:o:t pmcp:idx:o hello CREATED 5", "(integer) 1\n"),
        ("PMCPTASK.CAS pmcp:tasks:o:t pmcp:idx:o 1 again", "1) OK\n2) (integer) 2\n"),
        ("PMCPTASK.CAS pmcp:tasks:o:t pmcp:idx:o 1 again", "1) CONFLICT\n2) (integer) 2\n"),
        ("PMCPTASK.CAS pmcp:tasks:o:x pmcp:idx:o 1 again", "1) MISSING\n2) (integer) 0\n"),
        ("PMCPTASK.GET pmcp:tasks:o:t", "1) (integer) 2\n2) \"again\"\n"),
        ("PMCPTASK.GET pmcp:tasks:o:x", "(nil)\n"),
        ("PMCPTASK.LIST pmcp:idx:o", "1) 1) \"t\"\n   2) (integer) 2\n   3) (integer) 5\n   4) \"again\"\n"),
        ("PMCPTASK.LIST pmcp:idx:x", "(empty array)\n"),
        ("PMCPTASK.LIST pmcp:idx:o NODATA", "1) 1) \"t\"\n   2) (integer) 2\n   3) (integer) 5\n"),
        ("PMCPTASK.PUT pmcp:tasks:o:t pmcp:idx:o hello NX", "(integer) 0\n"),
        ("PMCPTASK.EXPIRE pmcp:tasks:o:t pmcp:idx:o PXAT 4102444800123", "(integer) 1\n"),
        ("PMCPTASK.DEL pmcp:tasks:o:t pmcp:idx:o VERSION 1", "1) CONFLICT\n2) (integer) 2\n"),
        ("PMCPTASK.TRIM pmcp:idx:o KEEP 1", "(integer) 0\n"),
        ("PMCPTASK.WAIT pmcp:tasks:o:t 1 0", "1) OK\n2) (integer) 2\n3) \"again\"\n"),
        ("PMCPTASK.WAIT pmcp:tasks:o:t 2 1", "(nil)\n"),
        ("PMCPTASK.WAIT pmcp:tasks:o:x 1 0", "1) MISSING\n2) (integer) 0\n"),
        ("PMCPTASK.DEL pmcp:tasks:o:t pmcp:idx:o", "(integer) 1\n"),
    ] {
        assert_eq!(typed(&server, line), seen, "{line}");
    }
    let refused = typed(&server, "PMCPTASK.LIST pmcp:idx:o COUNT few");
    assert_eq!(
        refused.trim_end(),
        "(error) ERR COUNT: expected an integer from 0 to 9223372036854775807, got 'few'"
    );
}

#[test]
fn redis_cli_completes_and_explains_the_commands() {
    let server = Server::start();
    for (command, syntax) in [
        (
            "PMCPTASK.PUT",
            "task-key index-key data [PXAT expires-at-ms|PERSIST] [CREATED created-ms|NEWEST] [MAXTASKS max-tasks] [NX] [HELD held-task-key]",
        ),
        (
            "PMCPTASK.CAS",
            "task-key index-key expected-version data [PXAT expires-at-ms|PERSIST] [CREATED created-ms|NEWEST]",
        ),
        ("PMCPTASK.GET", "task-key"),
        ("PMCPTASK.DEL", "task-key index-key [VERSION version]"),
        ("PMCPTASK.LIST", "index-key [REV] [AFTER created-ms task-id] [COUNT count] [NODATA]"),
        ("PMCPTASK.EXPIRE", "task-key index-key PXAT expires-at-ms|PERSIST"),
        ("PMCPTASK.TRIM", "index-key KEEP keep [COUNT count]"),
        ("PMCPTASK.WAIT", "task-key version timeout-ms"),
    ] {
        let help = typed(&server, &format!("help {command}"));
        assert!(help.contains(command) && help.contains(syntax), "{help}");
    }
}

// Settings.

const SETTING: &str = "pmcptask.max-record-bytes";

fn max_record_bytes(server: &Server) -> String {
    ask(&mut resp3(server), &format!("CONFIG GET {SETTING}"))[SETTING].as_str().unwrap().to_owned()
}

#[test]
fn setting_is_seen_and_changed_with_config() {
    let server = Server::start();
    assert_eq!(max_record_bytes(&server), (16 * 1024 * 1024).to_string());
    let mut connection = resp3(&server);
    let settings = ask(&mut connection, "CONFIG GET pmcptask.*");
    // Debug builds also have settings for tests.
    let names = settings.as_object().unwrap().keys().filter(|name| !name.starts_with("pmcptask.debug-"));
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, [SETTING, "pmcptask.prefixes", "pmcptask.reclaim"]);
    for (value, bytes) in [("1", "1"), ("1mb", "1048576"), ("9223372036854775807", "9223372036854775807")] {
        assert_eq!(ask(&mut connection, &format!("CONFIG SET {SETTING} {value}")), "OK");
        assert_eq!(max_record_bytes(&server), bytes);
    }
    let mut wire = server.wire();
    for value in ["0", "-1", "many", "9223372036854775808"] {
        let reply = wire.run(&format!("CONFIG SET {SETTING} {value}"));
        assert!(reply.starts_with("-ERR "), "{value}: {reply}");
        assert_eq!(max_record_bytes(&server), "9223372036854775807");
    }
}

/// Path of the module's library, as the server knows it.
fn library() -> String {
    let server = Server::start();
    let modules = ask(&mut resp3(&server), "MODULE LIST");
    let module = modules.as_array().unwrap().iter().find(|module| module["name"] == "pmcptask").unwrap();
    module["path"].as_str().unwrap().to_owned()
}

/// A server that loads the module with arguments.
fn loading_with(arguments: &str) -> ServerOptions {
    ServerOptions::default().without_module().set("loadmodule", &format!("{} {arguments}", library()))
}

#[test]
fn setting_comes_from_the_config_line_else_from_the_module_argument() {
    let server = Server::start_with(&loading_with("max-record-bytes 100"));
    assert_eq!(max_record_bytes(&server), "100");
    assert!(
        server
            .wire()
            .run(&format!("PMCPTASK.PUT p:tasks:o:t p:idx:o {}", "x".repeat(101)))
            .starts_with("-CAPACITY ")
    );
    let server = Server::start_with(&ServerOptions::default().set(SETTING, "200"));
    assert_eq!(max_record_bytes(&server), "200");
    let server = Server::start_with(&loading_with("max-record-bytes 2mb"));
    assert_eq!(max_record_bytes(&server), "2097152");
    let server = Server::start_with(&loading_with("MAX-RECORD-BYTES 100").set(SETTING, "200"));
    assert_eq!(max_record_bytes(&server), "200");
}

#[test]
fn module_does_not_load_with_a_setting_that_it_does_not_understand_and_says_why() {
    let expected = "max-record-bytes: expected a number of bytes from 1, like 65536 or 16mb";
    for (options, why) in [
        (loading_with("max-size 5"), "module argument: expected max-record-bytes, got 'max-size'"),
        (loading_with("max-record-bytes 5 again"), "module argument: expected max-record-bytes, got 'again'"),
        (loading_with("max-record-bytes"), &format!("{expected}, got ''")),
        (loading_with("max-record-bytes 0"), &format!("{expected}, got '0'")),
        (loading_with("max-record-bytes 1tb"), &format!("{expected}, got '1tb'")),
        (
            ServerOptions::default().set(SETTING, "0"),
            "the server refuses its settings; the line above says why",
        ),
    ] {
        match Server::try_start_with(&options) {
            Err(StartError::Ended(log)) => {
                assert!(log.contains(&format!("the module cannot be loaded: {why}")), "{log}");
            }
            other => panic!("expected that the server ends: {why}; got {other:?}"),
        }
    }
}

// Counters.

/// The names of the `INFO` section, in its order.
const COUNTERS: [&str; 31] = [
    "puts",
    "put_exists",
    "cas_ok",
    "cas_conflict",
    "cas_missing",
    "get_hits",
    "get_misses",
    "deletes",
    "del_conflict",
    "del_missing",
    "expires",
    "lists",
    "records_listed",
    "trims",
    "tasks_trimmed",
    "waits",
    "waiting_clients",
    "corrupt_records_skipped",
    "index_entries_removed",
    "index_walks",
    "refused_err",
    "refused_wrongtype",
    "refused_capacity",
    "refused_corrupt",
    "refused_notheld",
    "refused_noperm",
    "refused_crossslot",
    "refused_tryagain",
    "default_user_would_lose_writes",
    "failed_calls",
    "panics",
];

/// The names and numbers of the `INFO` section.
fn counters(wire: &mut Wire) -> Vec<(String, u64)> {
    let info = wire.run("INFO pmcptask");
    assert!(info.contains("# pmcptask\r\n"), "{info}");
    info.lines()
        .filter_map(|line| line.strip_prefix("pmcptask_")?.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[test]
fn info_counts_what_the_module_has_done() {
    let server = Server::start();
    let mut wire = server.wire();
    let zeros: Vec<_> = COUNTERS.map(|name| (name.to_owned(), 0)).into();
    // The walk through the indexes is the only thing that the module does by itself here.
    let counters = |wire: &mut Wire| -> Vec<(String, u64)> {
        let by_itself = |(name, number)| if name == "index_walks" { (name, 0) } else { (name, number) };
        counters(wire).into_iter().map(by_itself).collect()
    };
    assert_eq!(counters(&mut wire), zeros);
    wire.run("ACL SETUSER narrow on nopass ~p:idx:* +@all");
    let mut narrow = server.wire();
    narrow.run("AUTH narrow any");
    let counted = |wire: &mut Wire| -> BTreeMap<_, _> { counters(wire).into_iter().collect() };
    let mut expected = counted(&mut wire);
    // Each line counts once, except for a list of two records. Beside each line: the counters that
    // it changes.
    for (line, moved) in [
        ("PMCPTASK.PUT p:tasks:o:t p:idx:o d", &[("puts", 1)][..]),
        ("PMCPTASK.PUT p:tasks:o:u p:idx:o d", &[("puts", 1)]),
        ("PMCPTASK.PUT p:tasks:o:x p:idx:o d PXAT 1", &[("puts", 1)]),
        ("PMCPTASK.CAS p:tasks:o:t p:idx:o 1 d", &[("cas_ok", 1)]),
        ("PMCPTASK.CAS p:tasks:o:t p:idx:o 1 d", &[("cas_conflict", 1)]),
        ("PMCPTASK.CAS p:tasks:o:x p:idx:o 1 d", &[("cas_missing", 1)]),
        ("PMCPTASK.GET p:tasks:o:t", &[("get_hits", 1)]),
        ("PMCPTASK.GET p:tasks:o:x", &[("get_misses", 1)]),
        ("PMCPTASK.LIST p:idx:o", &[("lists", 1), ("records_listed", 2)]),
        ("PMCPTASK.LIST p:idx:x", &[("lists", 1)]),
        ("PMCPTASK.DEL p:tasks:o:u p:idx:o", &[("deletes", 1)]),
        ("PMCPTASK.DEL p:tasks:o:u p:idx:o", &[]),
        ("PMCPTASK.PUT p:tasks:o:t p:idx:o d NX", &[("put_exists", 1)]),
        ("PMCPTASK.PUT p:tasks:o:n p:idx:o d NX", &[("puts", 1)]),
        ("PMCPTASK.LIST p:idx:o NODATA", &[("lists", 1), ("records_listed", 2)]),
        ("PMCPTASK.DEL p:tasks:o:n p:idx:o VERSION 2", &[("del_conflict", 1)]),
        ("PMCPTASK.DEL p:tasks:o:n p:idx:o VERSION 1", &[("deletes", 1)]),
        ("PMCPTASK.DEL p:tasks:o:n p:idx:o VERSION 1", &[("del_missing", 1)]),
        ("PMCPTASK.EXPIRE p:tasks:o:t p:idx:o PXAT 4102444800123", &[("expires", 1)]),
        ("PMCPTASK.EXPIRE p:tasks:o:t p:idx:o PERSIST", &[("expires", 1)]),
        ("PMCPTASK.EXPIRE p:tasks:o:t p:idx:o PERSIST", &[("expires", 1)]),
        ("PMCPTASK.EXPIRE p:tasks:o:x p:idx:o PERSIST", &[]),
        ("PMCPTASK.PUT p:tasks:o:n p:idx:o d CREATED 1", &[("puts", 1)]),
        ("PMCPTASK.PUT p:tasks:o:m p:idx:o d CREATED 2", &[("puts", 1)]),
        ("PMCPTASK.TRIM p:idx:o KEEP 1", &[("trims", 1), ("tasks_trimmed", 2)]),
        ("PMCPTASK.TRIM p:idx:o KEEP 1", &[("trims", 1)]),
        ("PMCPTASK.TRIM p:idx:x KEEP 1", &[("trims", 1)]),
        ("PMCPTASK.TRIM p:idx:o KEEP -1", &[("refused_err", 1)]),
        ("PMCPTASK.WAIT p:tasks:o:t 1 0", &[("waits", 1)]),
        ("PMCPTASK.WAIT p:tasks:o:t 2 1", &[("waits", 1)]),
        ("PMCPTASK.WAIT p:tasks:o:x 1 0", &[("waits", 1)]),
        ("PMCPTASK.WAIT p:tasks:o:x 1 soon", &[("refused_err", 1)]),
        ("HDEL p:tasks:o:t data", &[]),
        ("PMCPTASK.GET p:tasks:o:t", &[("refused_corrupt", 1)]),
        ("PMCPTASK.LIST p:idx:o", &[("lists", 1), ("corrupt_records_skipped", 1)]),
        ("PMCPTASK.PUT p:tasks:o:t p:idx:o d TTL", &[("refused_err", 1)]),
        ("PMCPTASK.GET p:idx:o", &[("refused_err", 1)]),
        ("PMCPTASK.PUT p:tasks:o:v p:idx:o d MAXTASKS 0", &[("refused_capacity", 1)]),
        ("PMCPTASK.PUT p:tasks:o:v p:idx:o d HELD p:tasks:o:none", &[("refused_notheld", 1)]),
        ("SET p:tasks:o:s text", &[]),
        ("PMCPTASK.GET p:tasks:o:s", &[("refused_wrongtype", 1)]),
    ] {
        wire.run(line);
        for (name, more) in moved {
            *expected.get_mut(*name).unwrap() += more;
        }
        assert_eq!(counted(&mut wire), expected, "{line}");
    }
    assert!(narrow.run("PMCPTASK.LIST p:idx:o").starts_with("-NOPERM "));
    *expected.get_mut("refused_noperm").unwrap() += 1;
    wire.run("DEL p:tasks:o:t");
    server.have_indexes_walked(2);
    // The entry of `t`, which has just gone. `s` and `v` never had an entry.
    *expected.get_mut("index_entries_removed").unwrap() += 1;
    assert_eq!(counted(&mut wire), expected);
}

#[test]
fn info_has_the_section_where_modules_are_asked_for() {
    let server = Server::start();
    let mut wire = server.wire();
    assert!(wire.run("INFO everything").contains("# pmcptask\r\n"));
    assert!(wire.run("INFO modules").contains("# pmcptask\r\n"));
    assert!(!wire.run("INFO replication").contains("pmcptask"));
}

// Without the module.

#[test]
fn data_is_plain_redis_without_the_module_and_served_again_once_it_is_back() {
    let options = ServerOptions::default().set("appendonly", "yes");
    let mut server = Server::start_with(&options);
    let mut wire = server.wire();
    wire.run("PMCPTASK.PUT p:tasks:o:t p:idx:o d PXAT 4102444800123 CREATED 5");
    wire.run("PMCPTASK.PUT p:tasks:o:u p:idx:o e CREATED 6");
    server.stop();
    server.restart_with(&options.clone().without_module());
    let mut wire = server.wire();
    assert!(wire.run("PMCPTASK.GET p:tasks:o:t").starts_with("-ERR unknown command"));
    let mut connection = resp3(&server);
    assert_eq!(
        ask(&mut connection, "HGETALL p:tasks:o:t"),
        json!({"version": "1", "data": "d", "expires_at": "4102444801"})
    );
    assert_eq!(ask(&mut connection, "HGETALL p:tasks:o:u"), json!({"version": "1", "data": "e"}));
    assert_eq!(ask(&mut connection, "PEXPIRETIME p:tasks:o:t"), 4_102_444_800_123_i64);
    assert_eq!(
        wire.run("ZRANGE p:idx:o 0 -1 WITHSCORES"),
        "*4\r\n$1\r\nt\r\n$1\r\n5\r\n$1\r\nu\r\n$1\r\n6\r\n"
    );
    assert_eq!(ask(&mut connection, "CONFIG GET pmcptask.*"), json!({}));
    // Keys that go while the module is away have no consequence.
    wire.run("DEL p:tasks:o:u");
    server.stop();
    server.restart_with(&options);
    let mut wire = server.wire();
    assert_eq!(wire.run("PMCPTASK.LIST p:idx:o"), "*1\r\n*4\r\n$1\r\nt\r\n:1\r\n:5\r\n$1\r\nd\r\n");
    assert_eq!(wire.run("PMCPTASK.CAS p:tasks:o:t p:idx:o 1 f"), "*2\r\n+OK\r\n:2\r\n");
}

/// Most servers crash if a module is unloaded whose command an ACL rule or a queued call names.
#[test]
fn module_is_never_unloaded() {
    let server = Server::start_with(&ServerOptions::default().set("enable-module-command", "local"));
    let mut wire = server.wire();
    wire.run("PMCPTASK.PUT p:tasks:o:t p:idx:o d");
    assert!(wire.run("MODULE UNLOAD pmcptask").starts_with("-ERR Error unloading module"));
    assert!(server.log().contains("the module is never unloaded"), "{}", server.log());
    wire.run("ACL SETUSER tasks on nopass ~* +pmcptask.get +pmcptask.put|p:tasks:o:t");
    let mut queued = server.wire();
    assert_eq!(queued.run("MULTI"), "+OK\r\n");
    assert_eq!(queued.run("PMCPTASK.GET p:tasks:o:t"), "+QUEUED\r\n");
    let reply = wire.run("MODULE UNLOAD pmcptask");
    assert!(reply.starts_with("-ERR Error unloading module"), "{reply}");
    assert!(queued.run("EXEC").starts_with("*1\r\n*2\r\n:1"));
    assert!(wire.run("ACL LIST").contains("+pmcptask.get"));
}

#[test]
fn load_that_the_server_takes_back_leaves_the_server_as_it_was() {
    let library = library();
    let options = ServerOptions::default().without_module().set("enable-module-command", "local");
    let server = Server::start_with(&options);
    let mut wire = server.wire();
    let reply = wire.run(&format!("MODULE LOADEX {library} CONFIG pmcptask.nonsense 1"));
    assert!(reply.starts_with('-'), "{reply}");
    // Some servers bring their own modules.
    assert!(!wire.run("MODULE LIST").contains("pmcptask"));
    assert!(wire.run(&format!("MODULE LOADEX {library} CONFIG pmcptask.reclaim no")).starts_with("+OK"));
    assert_eq!(wire.run("PMCPTASK.PUT p:tasks:o:t p:idx:o d"), ":1\r\n");
    let reply = wire.run("CONFIG GET pmcptask.reclaim");
    assert!(reply.contains("no"), "{reply}");
}
