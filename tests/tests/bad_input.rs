//! Malformed calls. Each gets its documented error, changes nothing and replicates nothing, the error shows
//! nothing of a record, and the server stays alive.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::iter;

use pmcptask_tests::refusals::{
    A_TASK_KEY, CORRUPT_DATA, CORRUPT_VERSION, CREATED_TIME, INTEGER, LARGEST_VERSION, LISTED_MS, MS,
    NO_INDEX_KEY, NO_TASK_ID, NO_TASK_KEY, NONE_NEWER, OF_CAS, OF_DEL, OF_EXPIRE, OF_LIST, OF_PUT, OF_TRIM,
    OTHER_INDEX, TIMEOUT, TWO_EXPIRIES, WRONG_TYPE, no_room, not_held,
};
use pmcptask_tests::{INDEX, Server, ServerOptions, TASK, Wire};

/// The record that is stored, and that calls bring. An error must never contain its word `secret`.
const RECORD: &str = r#"{"note":"secret"}"#;
const MEGABYTE: usize = 1 << 20;

/// One call that must fail.
struct BadCall {
    /// Commands that run before the call, in addition to the one that makes the task.
    before: Vec<String>,
    words: Vec<Vec<u8>>,
    error: String,
}

/// The words of a line. `T`, `I` and `R` alone stand for the two keys and the record, `''` for an empty word.
fn words(line: &str) -> Vec<Vec<u8>> {
    let word = |word: &str| match word {
        "T" => TASK.into(),
        "I" => INDEX.into(),
        "R" => RECORD.into(),
        "''" => Vec::new(),
        other => other.into(),
    };
    line.split(' ').map(word).collect()
}

fn bad(line: &str, error: &str) -> BadCall {
    BadCall { before: Vec::new(), words: words(line), error: error.to_owned() }
}

fn bad_after(before: &str, line: &str, error: &str) -> BadCall {
    BadCall { before: before.split("; ").map(str::to_owned).collect(), ..bad(line, error) }
}

/// A call in which the word `HERE` stands for these bytes.
fn bad_bytes(line: &str, here: &[u8], error: &str) -> BadCall {
    let mut call = bad(line, error);
    for word in call.words.iter_mut().filter(|word| *word == b"HERE") {
        *word = here.to_vec();
    }
    call
}

/// Runs each call on a server that holds one task with an expiry and its index.
fn each_fails_and_changes_nothing(calls: &[BadCall]) {
    // What is replicated is in the append-only file too. Each command is written there before its reply.
    let options = ServerOptions::default().set("appendonly", "yes").set("appendfsync", "no");
    let server = Server::start_with(&options);
    let mut wire = server.wire();
    for call in calls {
        assert_eq!(wire.call(&["FLUSHALL"]), "+OK\r\n");
        let put = "PMCPTASK.PUT T I R PXAT 4102444800123 CREATED 5".to_owned();
        // In one transaction, so that the module does not repair in between what these lines break.
        assert_eq!(wire.call(&["MULTI"]), "+OK\r\n");
        for line in iter::once(&put).chain(&call.before) {
            assert_eq!(wire.call(&words(line)), "+QUEUED\r\n", "{line}");
        }
        let replies = wire.call(&["EXEC"]);
        assert!(replies.starts_with('*') && !replies.contains("\n-"), "{:?}: {replies}", call.before);
        let shown = shown(&call.words);
        let (before, written) = (everything(&mut wire), aof_bytes(&mut wire));
        assert_eq!(wire.call(&call.words), format!("-{}\r\n", call.error), "{shown}");
        assert_eq!(wire.call(&["PING"]), "+PONG\r\n", "{shown}");
        assert_eq!(everything(&mut wire), before, "{shown}");
        assert_eq!(aof_bytes(&mut wire), written, "{shown}");
        assert!(!call.error.contains("secret"), "{shown}");
    }
    assert_eq!(server.log().matches("panicked").count(), 0);
    let info = wire.call(&["INFO", "pmcptask"]);
    assert!(info.contains("pmcptask_panics:0\r\n"), "{info}");
}

fn everything(wire: &mut Wire) -> [String; 5] {
    ["DUMP T", "DUMP I", "PEXPIRETIME T", "PEXPIRETIME I", "DBSIZE"].map(|line| wire.call(&words(line)))
}

fn aof_bytes(wire: &mut Wire) -> u64 {
    wire.info_number("persistence", "aof_current_size")
}

fn shown(words: &[Vec<u8>]) -> String {
    let short = |word: &Vec<u8>| word[..word.len().min(60)].escape_ascii().to_string();
    words.iter().map(short).collect::<Vec<_>>().join(" ")
}

#[test]
fn wrong_number_of_arguments() {
    let mut calls = Vec::new();
    for (command, lines) in [
        ("put", &["", " T", " T I"][..]),
        ("cas", &["", " T", " T I", " T I 1"]),
        ("get", &["", " T T", " T I R"]),
        ("del", &["", " T"]),
        ("list", &[""]),
        ("expire", &["", " T"]),
        ("trim", &[""]),
        ("wait", &["", " T", " T 1", " T 1 0 0"]),
    ] {
        let error = format!("ERR wrong number of arguments for 'pmcptask.{command}' command");
        calls.extend(lines.iter().map(|line| bad(&format!("PMCPTASK.{command}{line}"), &error)));
    }
    each_fails_and_changes_nothing(&calls);
}

#[test]
fn option_that_is_unknown_comes_twice_or_stands_in_the_wrong_place() {
    let mut calls = Vec::new();
    for (line, error) in [
        ("PUT T I R TTL 5", format!("{OF_PUT} 'TTL'")),
        ("PUT T I R EX", format!("{OF_PUT} 'EX'")),
        ("PUT T I R ''", format!("{OF_PUT} an empty string")),
        ("PUT T I R R", format!("{OF_PUT} 17 bytes that are not shown")),
        ("PUT T I R %s%n%s%n", format!("{OF_PUT} 8 bytes that are not shown")),
        ("PUT T I R PXAT", format!("ERR PXAT: expected {MS}, got nothing")),
        ("PUT T I R PXAT PERSIST", format!("ERR PXAT: expected {MS}, got 'PERSIST'")),
        ("PUT T I R PXAT R", format!("ERR PXAT: expected {MS}, got 17 bytes that are not shown")),
        ("PUT T I R PXAT 1 PXAT 1", TWO_EXPIRIES.into()),
        ("PUT T I R PXAT 1 pxat 2", TWO_EXPIRIES.into()),
        ("PUT T I R PXAT 1 PERSIST", TWO_EXPIRIES.into()),
        ("PUT T I R PERSIST PXAT 1", TWO_EXPIRIES.into()),
        ("PUT T I R PERSIST PERSIST", TWO_EXPIRIES.into()),
        ("PUT T I R PERSIST 5", format!("{OF_PUT} '5'")),
        ("PUT T I R CREATED 1 CREATED 1", "ERR CREATED: expected one, got two".into()),
        ("PUT T I R MAXTASKS 9 MAXTASKS 9", "ERR MAXTASKS: expected one, got two".into()),
        ("PUT T I R MAXTASKS", format!("ERR MAXTASKS: expected {INTEGER}, got nothing")),
        ("PUT T I R NX NX", "ERR NX: expected one, got two".into()),
        ("PUT T I R NX nx", "ERR NX: expected one, got two".into()),
        ("PUT T I R NX R", format!("{OF_PUT} 17 bytes that are not shown")),
        ("PUT T I R NX PXAT", format!("ERR PXAT: expected {MS}, got nothing")),
        ("PUT T I R PXAT NX", format!("ERR PXAT: expected {MS}, got 'NX'")),
        ("PUT T I R NX PXAT 1 PERSIST", TWO_EXPIRIES.into()),
        ("PUT T I R CREATED NX", format!("ERR CREATED: expected {CREATED_TIME}, got 'NX'")),
        ("PUT T I R MAXTASKS NX", format!("ERR MAXTASKS: expected {INTEGER}, got 'NX'")),
        ("PUT T I R XX", format!("{OF_PUT} 'XX'")),
        ("PUT T I R VERSION 1", format!("{OF_PUT} 'VERSION'")),
        ("PUT T I R COUNT 1", format!("{OF_PUT} 'COUNT'")),
        ("CAS T I 1 R MAXTASKS 9", format!("{OF_CAS} 'MAXTASKS'")),
        ("CAS T I 1 R REV", format!("{OF_CAS} 'REV'")),
        ("CAS T I 1 R NX", format!("{OF_CAS} 'NX'")),
        ("CAS T I VERSION 1 R", format!("ERR expected-version: expected {INTEGER}, got 'VERSION'")),
        ("DEL T I R", format!("{OF_DEL} 17 bytes that are not shown")),
        ("DEL T I T I", format!("{OF_DEL} 14 bytes that are not shown")),
        ("DEL T I ''", format!("{OF_DEL} an empty string")),
        ("DEL T I 1", format!("{OF_DEL} '1'")),
        ("DEL T I NX", format!("{OF_DEL} 'NX'")),
        ("DEL T I VERSION", format!("ERR VERSION: expected {INTEGER}, got nothing")),
        ("DEL T I VERSION VERSION", format!("ERR VERSION: expected {INTEGER}, got 'VERSION'")),
        ("DEL T I VERSION R", format!("ERR VERSION: expected {INTEGER}, got 17 bytes that are not shown")),
        ("DEL T I VERSION 1 version 2", "ERR VERSION: expected one, got two".into()),
        ("DEL T I VERSION 1 2", format!("{OF_DEL} '2'")),
        ("EXPIRE T I R", format!("{OF_EXPIRE} 17 bytes that are not shown")),
        ("EXPIRE T I ''", format!("{OF_EXPIRE} an empty string")),
        ("EXPIRE T I 1", format!("{OF_EXPIRE} '1'")),
        ("EXPIRE T I EXAT 1", format!("{OF_EXPIRE} 'EXAT'")),
        ("EXPIRE T I PXAT", format!("ERR PXAT: expected {MS}, got nothing")),
        ("EXPIRE T I PXAT PERSIST", format!("ERR PXAT: expected {MS}, got 'PERSIST'")),
        ("EXPIRE T I PXAT R", format!("ERR PXAT: expected {MS}, got 17 bytes that are not shown")),
        ("EXPIRE T I PXAT 1 PXAT 1", TWO_EXPIRIES.into()),
        ("EXPIRE T I PXAT 1 pxat 2", TWO_EXPIRIES.into()),
        ("EXPIRE T I PXAT 1 PERSIST", TWO_EXPIRIES.into()),
        ("EXPIRE T I PERSIST PXAT 1", TWO_EXPIRIES.into()),
        ("EXPIRE T I persist PERSIST", TWO_EXPIRIES.into()),
        ("EXPIRE T I PXAT 1 2", format!("{OF_EXPIRE} '2'")),
        ("EXPIRE T I PERSIST CREATED 1", format!("{OF_EXPIRE} 'CREATED'")),
        ("EXPIRE T I NX PXAT 1", format!("{OF_EXPIRE} 'NX'")),
        ("TRIM I COUNT 1", format!("ERR KEEP: expected {INTEGER}, got nothing")),
        ("TRIM I COUNT 1 KEEP", format!("ERR KEEP: expected {INTEGER}, got nothing")),
        ("TRIM I KEEP KEEP", format!("ERR KEEP: expected {INTEGER}, got 'KEEP'")),
        ("TRIM I KEEP COUNT 1", format!("ERR KEEP: expected {INTEGER}, got 'COUNT'")),
        ("TRIM I KEEP 0 COUNT", format!("ERR COUNT: expected {INTEGER}, got nothing")),
        ("TRIM I KEEP 0 COUNT KEEP", format!("ERR COUNT: expected {INTEGER}, got 'KEEP'")),
        ("TRIM I KEEP 0 keep 0", "ERR KEEP: expected one, got two".into()),
        ("TRIM I KEEP 0 COUNT 1 KEEP 1", "ERR KEEP: expected one, got two".into()),
        ("TRIM I COUNT 1 KEEP 0 count 1", "ERR COUNT: expected one, got two".into()),
        ("TRIM I 0 0", format!("{OF_TRIM} '0'")),
        ("TRIM I KEEP 0 0", format!("{OF_TRIM} '0'")),
        ("TRIM I KEEP 0 REV", format!("{OF_TRIM} 'REV'")),
        ("TRIM I KEEP 0 T", format!("{OF_TRIM} 14 bytes that are not shown")),
        ("TRIM I LIMIT 0 10", format!("{OF_TRIM} 'LIMIT'")),
        ("CAS T I 1 R PXAT 1 PERSIST", TWO_EXPIRIES.into()),
        ("CAS T I 1 R CREATED 1 CREATED 1", "ERR CREATED: expected one, got two".into()),
        ("CAS T I R 1", format!("ERR expected-version: expected {INTEGER}, got 17 bytes that are not shown")),
        ("LIST I REV REV", "ERR REV: expected one, got two".into()),
        ("LIST I COUNT 1 count 2", "ERR COUNT: expected one, got two".into()),
        ("LIST I AFTER 1 a AFTER 1 a", "ERR AFTER: expected one, got two".into()),
        ("LIST I AFTER 1", "ERR AFTER: expected a task id after the creation time, got nothing".into()),
        ("LIST I AFTER 1 REV COUNT", format!("ERR COUNT: expected {INTEGER}, got nothing")),
        ("LIST I LIMIT 0 10", format!("{OF_LIST} 'LIMIT'")),
        ("LIST I T", format!("{OF_LIST} 14 bytes that are not shown")),
        ("LIST I 5", format!("{OF_LIST} '5'")),
        ("LIST I NODATA NODATA", "ERR NODATA: expected one, got two".into()),
        ("LIST I NODATA REV nodata", "ERR NODATA: expected one, got two".into()),
        ("LIST I NODATA 1", format!("{OF_LIST} '1'")),
        ("LIST I DATA", format!("{OF_LIST} 'DATA'")),
        ("LIST I COUNT NODATA", format!("ERR COUNT: expected {INTEGER}, got 'NODATA'")),
        ("LIST I AFTER NODATA t", format!("ERR AFTER: expected {LISTED_MS}, got 'NODATA'")),
    ] {
        calls.push(bad(&format!("PMCPTASK.{line}"), &error));
    }
    each_fails_and_changes_nothing(&calls);
}

#[test]
fn newest_and_held_that_are_malformed_or_stand_in_the_wrong_place() {
    let lines = [
        ("PUT T I R CREATED", format!("ERR CREATED: expected {CREATED_TIME}, got nothing")),
        ("PUT T I R CREATED NEWEST CREATED NEWEST", "ERR CREATED: expected one, got two".into()),
        ("PUT T I R CREATED NEWEST created 1", "ERR CREATED: expected one, got two".into()),
        ("PUT T I R CREATED 1 CREATED newest", "ERR CREATED: expected one, got two".into()),
        ("PUT T I R CREATED NEWEST 1", format!("{OF_PUT} '1'")),
        ("PUT T I R CREATED NEWEST NEWEST", format!("{OF_PUT} 'NEWEST'")),
        ("PUT T I R CREATED HELD T", format!("ERR CREATED: expected {CREATED_TIME}, got 'HELD'")),
        ("PUT T I R NEWEST", format!("{OF_PUT} 'NEWEST'")),
        ("PUT T I R PXAT NEWEST", format!("ERR PXAT: expected {MS}, got 'NEWEST'")),
        ("PUT T I R MAXTASKS HELD T", format!("ERR MAXTASKS: expected {INTEGER}, got 'HELD'")),
        ("PUT T I R PXAT HELD T", format!("ERR PXAT: expected {MS}, got 'HELD'")),
        ("PUT T I R HELD", format!("ERR HELD: expected {A_TASK_KEY}, got nothing")),
        ("PUT T I R NX HELD", format!("ERR HELD: expected {A_TASK_KEY}, got nothing")),
        ("PUT T I R HELD ''", format!("ERR HELD: expected {A_TASK_KEY}, got an empty string")),
        ("PUT T I R HELD I", format!("ERR HELD: expected {A_TASK_KEY}, got 10 bytes that are not shown")),
        ("PUT T I R HELD t", format!("ERR HELD: expected {A_TASK_KEY}, got 't'")),
        (
            "PUT T I R HELD pmcp:tasks:o:",
            format!("ERR HELD: expected {A_TASK_KEY}, got 13 bytes that are not shown"),
        ),
        ("PUT T I R HELD R", format!("ERR HELD: expected {A_TASK_KEY}, got 17 bytes that are not shown")),
        ("PUT T I R HELD HELD T", format!("ERR HELD: expected {A_TASK_KEY}, got 'HELD'")),
        ("PUT T I R HELD NX T", format!("ERR HELD: expected {A_TASK_KEY}, got 'NX'")),
        ("PUT T I R HELD T held T", "ERR HELD: expected one, got two".into()),
        ("PUT T I R HELD T T", format!("{OF_PUT} 14 bytes that are not shown")),
        ("PUT T I R HELD T PXAT", format!("ERR PXAT: expected {MS}, got nothing")),
        ("CAS T I 1 R HELD T", format!("{OF_CAS} 'HELD'")),
        ("CAS T I 1 R CREATED NEWEST CREATED NEWEST", "ERR CREATED: expected one, got two".into()),
        ("DEL T I HELD T", format!("{OF_DEL} 'HELD'")),
        ("EXPIRE T I PERSIST HELD T", format!("{OF_EXPIRE} 'HELD'")),
    ];
    let calls: Vec<_> = lines.iter().map(|(line, error)| bad(&format!("PMCPTASK.{line}"), error)).collect();
    each_fails_and_changes_nothing(&calls);
}

#[test]
fn option_of_another_command_is_refused_and_so_is_a_wrong_one_after_nodata() {
    let lines = [
        ("EXPIRE T I PXAT 1 VERSION 1", format!("{OF_EXPIRE} 'VERSION'")),
        ("DEL T I VERSION 1 NX", format!("{OF_DEL} 'NX'")),
        ("DEL T I PERSIST", format!("{OF_DEL} 'PERSIST'")),
        ("TRIM I KEEP 0 NODATA", format!("{OF_TRIM} 'NODATA'")),
        ("TRIM I MAXTASKS 0", format!("{OF_TRIM} 'MAXTASKS'")),
        ("PUT T I R NX NODATA", format!("{OF_PUT} 'NODATA'")),
        ("LIST I NODATA T", format!("{OF_LIST} 14 bytes that are not shown")),
        ("LIST I NODATA ''", format!("{OF_LIST} an empty string")),
        ("LIST I NODATA REV REV", "ERR REV: expected one, got two".into()),
        ("LIST I NODATA KEEP 1", format!("{OF_LIST} 'KEEP'")),
        ("LIST I NODATA VERSION 1", format!("{OF_LIST} 'VERSION'")),
        ("LIST I NODATA COUNT", format!("ERR COUNT: expected {INTEGER}, got nothing")),
        ("LIST I NODATA AFTER", format!("ERR AFTER: expected {LISTED_MS}, got nothing")),
        (
            "LIST I NODATA AFTER 1",
            "ERR AFTER: expected a task id after the creation time, got nothing".into(),
        ),
    ];
    let calls: Vec<_> = lines.iter().map(|(line, error)| bad(&format!("PMCPTASK.{line}"), error)).collect();
    each_fails_and_changes_nothing(&calls);
}

#[test]
fn text_that_is_not_a_number_and_number_out_of_range() {
    let nines = "9".repeat(MEGABYTE);
    let odd: [(&[u8], &str); 20] = [
        (b"", "an empty string"),
        (b"-1", "'-1'"),
        (b"-0", "'-0'"),
        (b"+1", "'+1'"),
        (b"01", "'01'"),
        (b"00", "'00'"),
        (b"1.0", "'1.0'"),
        (b"1e3", "'1e3'"),
        (b"0x10", "'0x10'"),
        (b"inf", "'inf'"),
        (b"NaN", "'NaN'"),
        (b" 1", "2 bytes that are not shown"),
        (b"1 ", "2 bytes that are not shown"),
        (b"1\r\n", "3 bytes that are not shown"),
        (b"1\0", "2 bytes that are not shown"),
        (b"1_000", "5 bytes that are not shown"),
        (b"%d%n", "4 bytes that are not shown"),
        (b"\xff1", "2 bytes that are not shown"),
        ("\u{661}".as_bytes(), "2 bytes that are not shown"),
        (b"9223372036854775808", "'9223372036854775808'"),
    ];
    let places = [
        ("PMCPTASK.PUT T I R PXAT HERE", "PXAT", MS),
        ("PMCPTASK.PUT T I R CREATED HERE", "CREATED", CREATED_TIME),
        ("PMCPTASK.PUT T I R MAXTASKS HERE", "MAXTASKS", INTEGER),
        ("PMCPTASK.CAS T I HERE R", "expected-version", INTEGER),
        ("PMCPTASK.CAS T I 1 R PXAT HERE", "PXAT", MS),
        ("PMCPTASK.CAS T I 1 R CREATED HERE", "CREATED", CREATED_TIME),
        ("PMCPTASK.LIST I AFTER HERE t", "AFTER", LISTED_MS),
        ("PMCPTASK.LIST I COUNT HERE", "COUNT", INTEGER),
        ("PMCPTASK.PUT T I R NX PXAT HERE", "PXAT", MS),
        ("PMCPTASK.DEL T I VERSION HERE", "VERSION", INTEGER),
        ("PMCPTASK.EXPIRE T I PXAT HERE", "PXAT", MS),
        ("PMCPTASK.TRIM I KEEP HERE", "KEEP", INTEGER),
        ("PMCPTASK.TRIM I KEEP 0 COUNT HERE", "COUNT", INTEGER),
        ("PMCPTASK.WAIT T HERE 0", "version", INTEGER),
        ("PMCPTASK.WAIT T 1 HERE", "timeout-ms", TIMEOUT),
    ];
    let mut calls = Vec::new();
    for (line, argument, expected) in places {
        // LIST replies with negative times if others have written some, so AFTER takes them.
        let odd = odd.into_iter().filter(|(number, _)| expected != LISTED_MS || *number != b"-1");
        for (number, got) in odd {
            let error = format!("ERR {argument}: expected {expected}, got {got}");
            calls.push(bad_bytes(line, number, &error));
        }
        let error = format!("ERR {argument}: expected {expected}, got {MEGABYTE} bytes that are not shown");
        calls.push(bad_bytes(line, nines.as_bytes(), &error));
        if expected == CREATED_TIME {
            let error = format!("ERR {argument}: expected {expected}, got '9007199254740992'");
            calls.push(bad_bytes(line, b"9007199254740992", &error));
        }
    }
    each_fails_and_changes_nothing(&calls);
}

#[test]
fn key_that_does_not_match_the_schema() {
    let megabyte = vec![b'k'; MEGABYTE];
    let no_task_keys: [&[u8]; 14] = [
        b"",
        b":",
        b"\0",
        b"t",
        b"pmcp",
        b"pmcp:tasks:t",
        b"pmcp:task:o:t",
        b"pmcp:idx:o",
        b"a:idx:pmcp:tasks:o:t",
        b"pmcp\0tasks\0o\0t",
        b"\xff\xfe\xfd:\xff",
        b"%s%n%s%n%s%n",
        b"\r\n+OK\r\n",
        &megabyte,
    ];
    let no_index_keys: [&[u8]; 10] = [
        b"",
        b"\0",
        b"pmcp:idx",
        b"pmcp:tasks:o:t",
        b"a:tasks:pmcp:idx:o",
        b"pmcp\0idx\0o",
        b"\xff:\xfe",
        b"%n%n%n",
        b"\r\n",
        &megabyte,
    ];
    let owner_of_a_megabyte = [b"pmcp:idx:", megabyte.as_slice()].concat();
    let other_indexes: [&[u8]; 8] = [
        b"pmcp:idx:",
        b"pmcp:idx:o:",
        b"pmcp:idx:o:t",
        b"pmcp:idx:O",
        b"other:idx:o",
        b"pmcp:idx:o\0",
        b"pmcp:idx:\xff",
        &owner_of_a_megabyte,
    ];
    let mut calls = Vec::new();
    let of_task = [
        "GET HERE",
        "PUT HERE I R",
        "PUT HERE I R NX",
        "CAS HERE I 1 R",
        "DEL HERE I",
        "DEL HERE I VERSION 1",
        "EXPIRE HERE I PXAT 1",
        "WAIT HERE 1 0",
    ];
    let of_index = [
        "LIST HERE",
        "LIST HERE NODATA",
        "TRIM HERE KEEP 0",
        "PUT T HERE R",
        "CAS T HERE 1 R",
        "DEL T HERE",
        "DEL T HERE VERSION 1",
        "EXPIRE T HERE PXAT 1",
    ];
    for key in no_task_keys {
        for line in of_task {
            calls.push(bad_bytes(&format!("PMCPTASK.{line}"), key, NO_TASK_KEY));
        }
    }
    for line in of_task {
        calls.push(bad_bytes(&format!("PMCPTASK.{line}"), b"pmcp:tasks:o:", NO_TASK_ID));
    }
    for key in no_index_keys {
        for line in of_index {
            calls.push(bad_bytes(&format!("PMCPTASK.{line}"), key, NO_INDEX_KEY));
        }
    }
    for key in other_indexes {
        for line in of_index.into_iter().filter(|line| line.contains(" T HERE")) {
            calls.push(bad_bytes(&format!("PMCPTASK.{line}"), key, OTHER_INDEX));
        }
    }
    calls.push(bad("PMCPTASK.PUT I T R", NO_TASK_KEY));
    each_fails_and_changes_nothing(&calls);
}

#[test]
fn expiry_in_the_record_that_is_no_timestamp() {
    let deep_array = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_object = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    let long_string = format!("\"{}\"", "9".repeat(MEGABYTE));
    let values = [
        ("0", "a number"),
        ("-1", "a number"),
        ("1795255200000", "a number"),
        ("1e300", "a number"),
        ("1e400", "a number"),
        ("123456789012345678901234567890", "a number"),
        ("true", "a boolean"),
        ("false", "a boolean"),
        ("[]", "an array"),
        (r#"["2026-11-21T10:00:00Z"]"#, "an array"),
        ("{}", "an object"),
        (r#"{"expiresAt":null}"#, "an object"),
        (&deep_array, "an array"),
        (&deep_object, "an object"),
        (&long_string, "another string"),
    ];
    let strings = [
        "",
        " ",
        "soon",
        "now",
        "null",
        "secret",
        "%s%n%s%n",
        "\\u0000",
        "0",
        "1795255200",
        "2026",
        "2026-11-21",
        "10:00:00Z",
        "2026-11-21T10:00Z",
        "2026-11-21T10:00:00",
        "2026-11-21T10:00:00.Z",
        "2026-11-21T10:00:00,5Z",
        "2026-11-21T10:00:00 UTC",
        "2026-11-21T10:00:00+01",
        "2026-11-21T10:00:00+0100",
        "2026-11-21T10:00:00+25:00",
        "2026-11-21T10:00:00+01:60",
        "2026-11-21T10:00:00ZZ",
        " 2026-11-21T10:00:00Z",
        "2026-11-21T10:00:00Z ",
        "2026-11-21T10:00:00Z\\u0000",
        "2026-1-1T10:00:00Z",
        "2026-00-10T10:00:00Z",
        "2026-13-10T10:00:00Z",
        "2026-11-00T10:00:00Z",
        "2026-02-29T10:00:00Z",
        "2026-11-31T10:00:00Z",
        "2026-11-21T24:00:00Z",
        "2026-11-21T10:60:00Z",
        "2026-11-21T10:00:61Z",
        "+2026-11-21T10:00:00Z",
        "-2026-11-21T10:00:00Z",
        "10000-01-01T00:00:00Z",
        "26-11-21T10:00:00Z",
        "20261121T100000Z",
        "2026-W47-6T10:00:00Z",
        "2026-325T10:00:00Z",
        "2026/11/21T10:00:00Z",
        "21.11.2026 10:00:00",
        "Sat, 21 Nov 2026 10:00:00 GMT",
        "+02026-11-21T10:00:00Z",
        "2026\u{2010}11\u{2010}21T10:00:00Z",
        "\\ud800",
        "\u{ff12}026-11-21T10:00:00Z",
    ]
    .map(|text| (format!("\"{text}\""), "another string"));
    let values = values.iter().map(|(value, came)| ((*value).to_owned(), *came)).chain(strings);
    let mut calls = Vec::new();
    for (value, came) in values {
        let error =
            format!("ERR expiresAt of the record: expected an RFC 3339 timestamp or null, got {came}");
        let record = format!(r#"{{"note":"secret","expiresAt":{value}}}"#);
        for line in [
            "PMCPTASK.PUT T I HERE",
            "PMCPTASK.CAS T I 1 HERE",
            "PMCPTASK.PUT pmcp:tasks:o:new I HERE",
            "PMCPTASK.PUT pmcp:tasks:o:new I HERE NX",
        ] {
            calls.push(bad_bytes(line, record.as_bytes(), &error));
        }
    }
    each_fails_and_changes_nothing(&calls);
}

#[test]
fn key_of_another_type() {
    let mut calls = Vec::new();
    for make in [
        "SET T secret",
        "SET T 17",
        "RPUSH T secret",
        "SADD T secret",
        "ZADD T 1 secret",
        "XADD T 1-1 f secret",
        "SETBIT T 7 1",
        "PFADD T secret",
        "GEOADD T 1 1 secret",
    ] {
        for line in [
            "GET T",
            "PUT T I R",
            "PUT T I R NX",
            "CAS T I 1 R",
            "DEL T I",
            "DEL T I VERSION 1",
            "EXPIRE T I PERSIST",
            "EXPIRE T I PXAT 1",
            "WAIT T 1 0",
        ] {
            calls.push(bad_after(&format!("DEL T; {make}"), &format!("PMCPTASK.{line}"), WRONG_TYPE));
        }
    }
    for make in ["SET I secret", "HSET I t secret", "SADD I t", "RPUSH I t", "XADD I 1-1 f secret"] {
        for line in [
            "LIST I",
            "LIST I COUNT 0",
            "LIST I NODATA",
            "TRIM I KEEP 0",
            "TRIM I KEEP 9",
            "TRIM I KEEP 0 COUNT 0",
            "PUT T I R",
            "CAS T I 1 R",
            "DEL T I",
            "DEL T I VERSION 1",
            "EXPIRE T I PXAT 1",
        ] {
            calls.push(bad_after(&format!("DEL I; {make}"), &format!("PMCPTASK.{line}"), WRONG_TYPE));
        }
    }
    each_fails_and_changes_nothing(&calls);
}

#[test]
fn hash_that_others_have_made() {
    let mut calls = Vec::new();
    let long = "9".repeat(5_000);
    for version in [
        "''",
        "0",
        "00",
        "01",
        "-1",
        "+1",
        "1.0",
        "1e0",
        "0x1",
        "one",
        "9223372036854775808",
        "18446744073709551616",
        "nan",
        "%s%n",
        "1\0",
        "\u{661}",
        "secret",
        &long,
    ] {
        for line in [
            "GET T",
            "WAIT T 1 0",
            "PUT T I R",
            "PUT T I R PXAT 1",
            "PUT T I R NX",
            "CAS T I 1 R",
            "CAS T I 0 R",
            "DEL T I VERSION 0",
            "DEL T I VERSION 1",
            "EXPIRE T I PERSIST",
            "EXPIRE T I PXAT 1",
        ] {
            let make = format!("HSET T version {version}");
            calls.push(bad_after(&make, &format!("PMCPTASK.{line}"), CORRUPT_VERSION));
        }
    }
    for (make, error) in [
        ("HDEL T version", CORRUPT_VERSION),
        ("HDEL T version data", CORRUPT_VERSION),
        ("HDEL T data", CORRUPT_DATA),
        ("HDEL T data; HSET T Data secret", CORRUPT_DATA),
        ("HDEL T data expires_at; HSET T other secret", CORRUPT_DATA),
        ("DEL T; HSET T f secret", CORRUPT_VERSION),
    ] {
        for line in [
            "GET T",
            "WAIT T 1 0",
            "PUT T I R",
            "PUT T I R NX",
            "CAS T I 1 R",
            "DEL T I VERSION 1",
            "EXPIRE T I PXAT 4102444800999",
        ] {
            calls.push(bad_after(make, &format!("PMCPTASK.{line}"), error));
        }
    }
    for line in ["PUT T I R", "CAS T I 9223372036854775807 R"] {
        let make = "HSET T version 9223372036854775807";
        calls.push(bad_after(make, &format!("PMCPTASK.{line}"), LARGEST_VERSION));
    }
    each_fails_and_changes_nothing(&calls);
}

#[test]
fn record_or_task_for_which_there_is_no_room() {
    let too_large = vec![b'x'; 16 * MEGABYTE + 1];
    let error = "CAPACITY data: expected at most 16777216 bytes (pmcptask.max-record-bytes), got 16777217";
    each_fails_and_changes_nothing(&[
        bad_bytes("PMCPTASK.PUT T I HERE", &too_large, error),
        bad_bytes("PMCPTASK.PUT pmcp:tasks:o:new I HERE", &too_large, error),
        bad_bytes("PMCPTASK.CAS T I 1 HERE", &too_large, error),
        bad_bytes("PMCPTASK.PUT pmcp:tasks:o:new I HERE NX", &too_large, error),
        bad("PMCPTASK.PUT pmcp:tasks:o:new I R NX MAXTASKS 1", &no_room(1)),
        bad("PMCPTASK.PUT pmcp:tasks:o:new I R MAXTASKS 0", &no_room(0)),
        bad("PMCPTASK.PUT pmcp:tasks:o:new I R MAXTASKS 1", &no_room(1)),
        // Even if the new task would be gone at once.
        bad("PMCPTASK.PUT pmcp:tasks:o:new I R PXAT 1 MAXTASKS 1", &no_room(1)),
        bad_after(
            "PMCPTASK.PUT pmcp:tasks:o:2 I R",
            "PMCPTASK.PUT pmcp:tasks:o:3 I R MAXTASKS 2",
            &no_room(2),
        ),
    ]);
}

#[test]
fn write_without_the_task_that_has_to_live_and_new_task_that_cannot_be_the_newest() {
    let lease = "pmcp:tasks:o:lease";
    let error = not_held(lease);
    let mut calls = Vec::new();
    for line in ["PUT T I R", "PUT T I R NX", "PUT T I R PXAT 1", "PUT pmcp:tasks:o:new I R MAXTASKS 0"] {
        calls.push(bad(&format!("PMCPTASK.{line} HELD {lease}"), &error));
    }
    for make in ["HSET L version 1", "HSET L data d", "HSET L version 01 data d", "HSET L f v"] {
        let make = make.replace('L', lease);
        calls.push(bad_after(&make, &format!("PMCPTASK.PUT T I R HELD {lease}"), &error));
    }
    for make in ["SET L text", "ZADD L 1 a", "RPUSH L v"] {
        let make = make.replace('L', lease);
        calls.push(bad_after(&make, &format!("PMCPTASK.PUT T I R HELD {lease}"), WRONG_TYPE));
    }
    let new = "PMCPTASK.PUT pmcp:tasks:o:new I R CREATED NEWEST";
    for score in ["9007199254740991", "9007199254740991.5", "1e308", "inf"] {
        calls.push(bad_after(&format!("ZADD I {score} dead"), new, NONE_NEWER));
    }
    each_fails_and_changes_nothing(&calls);
}

// What looks bad and is not.

#[test]
fn data_of_any_bytes_is_kept_as_it_is_and_never_expires() {
    let server = Server::start();
    let mut wire = server.wire();
    let deep = |open: &str| open.repeat(300_000).into_bytes();
    let records: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0; 100],
        b"%s%n%s%n".to_vec(),
        b"\xff\xfe\xc3\x28".to_vec(),
        b"\r\n+OK\r\n".to_vec(),
        b"null".to_vec(),
        b"{".to_vec(),
        br#"{"expiresAt""#.to_vec(),
        br#"{"expiresAt":"soon""#.to_vec(),
        br#"{"expiresAt":"soon"}}"#.to_vec(),
        br#"[{"expiresAt":"soon"}]"#.to_vec(),
        br#"{"expiresAt":tru}"#.to_vec(),
        b"\xef\xbb\xbf{\"expiresAt\":\"soon\"}".to_vec(),
        b"{\"expiresAt\":\"\xff\"}".to_vec(),
        br#"{"expiresAt":"soon","a":NaN}"#.to_vec(),
        br#"{"task":{"expiresAt":"soon"},"ExpiresAt":"soon","expires_at":"soon"}"#.to_vec(),
        deep("["),
        deep(r#"{"a":"#),
        deep(r#"{"task":"#),
        deep(r#"{"expiresAt":"#),
        vec![b' '; MEGABYTE],
        vec![b'{'; MEGABYTE],
    ];
    for record in records {
        let shown = shown(std::slice::from_ref(&record));
        wire.call(&["DEL", TASK, INDEX]);
        let put: [&[u8]; 4] = [b"PMCPTASK.PUT", TASK.as_bytes(), INDEX.as_bytes(), &record];
        assert_eq!(wire.call(&put), ":1\r\n", "{shown}");
        let mut connection = server.connection();
        let stored: Vec<u8> = redis::cmd("HGET").arg(TASK).arg("data").query(&mut connection).unwrap();
        let (version, read): (i64, Vec<u8>) =
            redis::cmd("PMCPTASK.GET").arg(TASK).query(&mut connection).unwrap();
        assert!(version == 1 && stored == record && read == record, "{shown}");
        assert_eq!(wire.call(&["PTTL", TASK]), ":-1\r\n", "{shown}");
    }
}

#[test]
fn owner_and_task_id_of_any_bytes_make_a_task_like_any_other() {
    let server = Server::start();
    let mut connection = server.connection();
    let megabyte = vec![b'k'; MEGABYTE];
    let names: [&[u8]; 9] = [
        b"\0",
        b"a\0b",
        b"%s%n%s%n",
        b"\xff\xfe\xc3\x28",
        b"\r\n+OK\r\n",
        b" ",
        b"{}*?[a-z]\\",
        "ключ\u{200b}\u{202e}".as_bytes(),
        &megabyte,
    ];
    for name in names {
        let shown = shown(&[name.to_vec()]);
        for (owner, task_id) in [(name, &b"t"[..]), (b"o", name), (name, name)] {
            let task = [b"pmcp:tasks:", owner, b":", task_id].concat();
            let index = [b"pmcp:idx:", owner].concat();
            let mut call = |command: &str, arguments: &[&[u8]]| -> redis::Value {
                redis::cmd(command).arg(arguments).query(&mut connection).unwrap()
            };
            let data = redis::Value::BulkString(RECORD.into());
            let int = redis::Value::Int;
            assert_eq!(
                call("PMCPTASK.PUT", &[&task, &index, RECORD.as_bytes(), b"CREATED", b"5"]),
                int(1),
                "{shown}"
            );
            let record = redis::Value::Array(vec![int(1), data.clone()]);
            assert_eq!(call("PMCPTASK.GET", &[&task]), record, "{shown}");
            let listed = vec![redis::Value::BulkString(task_id.to_vec()), int(1), int(5), data];
            let list = redis::Value::Array(vec![redis::Value::Array(listed)]);
            assert_eq!(call("PMCPTASK.LIST", &[&index]), list, "{shown}");
            assert_eq!(call("PMCPTASK.DEL", &[&task, &index]), int(1), "{shown}");
            assert_eq!(call("DBSIZE", &[]), int(0), "{shown}");
        }
    }
}

#[test]
fn nothing_else_in_a_record_hides_when_it_expires() {
    let server = Server::start();
    let mut wire = server.wire();
    let expiry = r#""expiresAt":"2020-01-01T00:00:00Z""#;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for value in ["1e400", &"9".repeat(100_000), &deep, r#""\ud800""#, r#"{"\udc00":"\u0000"}"#] {
        let shown = shown(&[value.as_bytes().to_vec()]);
        for record in [
            format!(r#"{{{expiry},"task":{{"createdAt":{value}}}}}"#),
            format!(r#"{{{expiry},"task":{value}}}"#),
            format!(r#"{{"expiresAt":{value},"a":{value},{expiry}}}"#),
        ] {
            wire.call(&["PMCPTASK.PUT", TASK, INDEX, "before"]);
            assert_eq!(wire.call(&["PMCPTASK.PUT", TASK, INDEX, &record]), ":2\r\n", "{shown}");
            assert_eq!(wire.call(&["DBSIZE"]), ":0\r\n", "{shown}");
        }
    }
}

#[test]
fn odd_timestamps_that_rfc_3339_or_chrono_allows_are_understood() {
    let server = Server::start();
    let mut wire = server.wire();
    for (text, expires_at_ms) in [
        ("2100-01-01T00:00:00Z", 4_102_444_800_000_i64),
        ("2100-01-01t00:00:00z", 4_102_444_800_000),
        ("2100-01-01T00:00:00-00:00", 4_102_444_800_000),
        ("2100-01-01T23:59:00+23:59", 4_102_444_800_000),
        ("2099-12-31T00:01:00-23:59", 4_102_444_800_000),
        ("2099-12-31T23:59:60Z", 4_102_444_800_000),
        ("2100-01-01T00:00:00.5Z", 4_102_444_800_500),
        ("2100-01-01T00:00:00.000000001Z", 4_102_444_800_001),
        ("2100-01-01T00:00:00.00000000000000000000Z", 4_102_444_800_000),
        ("2096-02-29T00:00:00Z", 3_981_312_000_000),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
        ("+10000-01-01T00:00:00.000000001+00:00", 253_402_300_800_001),
        ("+262142-12-31T23:59:59.999Z", 8_210_266_876_799_999),
    ] {
        let record = format!(r#"{{"expiresAt":"{text}"}}"#);
        let reply = wire.call(&["PMCPTASK.PUT", TASK, INDEX, &record]);
        assert!(reply.starts_with(':'), "{text}: {reply}");
        assert_eq!(wire.call(&["PEXPIRETIME", TASK]), format!(":{expires_at_ms}\r\n"), "{text}");
    }
    for past in ["0000-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "1969-12-31T23:59:59Z"] {
        wire.call(&["DEL", TASK, INDEX]);
        let record = format!(r#"{{"expiresAt":"{past}"}}"#);
        assert_eq!(wire.call(&["PMCPTASK.PUT", TASK, INDEX, &record]), ":1\r\n", "{past}");
        assert_eq!(wire.call(&["DBSIZE"]), ":0\r\n", "{past}");
    }
}
