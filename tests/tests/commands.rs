//! The commands as any client sees them: arguments, replies byte by byte, and the keys that they leave.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use pmcptask_tests::refusals::{
    A_TASK_KEY, CORRUPT_DATA, CORRUPT_VERSION, CREATED_TIME, INTEGER, LARGEST_VERSION, LISTED_MS, MS,
    NO_INDEX_KEY, NO_TASK_ID, NO_TASK_KEY, NONE_NEWER, OF_CAS, OF_DEL, OF_EXPIRE, OF_LIST, OF_PUT, OF_TRIM,
    OTHER_INDEX, TWO_EXPIRIES, WRONG_TYPE, no_room, not_held,
};
use pmcptask_tests::{
    Clock, EMPTY, INDEX, NIL, PROMISED, Server, ServerOptions, TASK, Wire, holds_within, integer, now_ms,
    sleep_until,
};

/// Far enough in the future for every test, and not a whole second.
const FUTURE: i64 = 4_102_444_800_123;

/// A connection and its own server.
struct Session {
    wire: Wire,
    server: Server,
}

impl Session {
    fn start() -> Self {
        let server = Server::start();
        Self { wire: server.wire(), server }
    }

    /// On two servers: one stores a short index as a listpack, the other stores every index as a skiplist.
    fn of_each_encoding() -> [Self; 2] {
        ["128", "0"].map(|longest| {
            let server =
                Server::start_with(&ServerOptions::default().set("zset-max-listpack-entries", longest));
            Self { wire: server.wire(), server }
        })
    }

    fn run(&mut self, line: &str) -> String {
        self.wire.run(line)
    }

    /// Sends a command whose reply is an integer.
    fn number(&mut self, line: &str) -> i64 {
        integer(&self.run(line))
    }

    fn put_json(&mut self, json: &str) -> String {
        self.wire.call(&["PMCPTASK.PUT", TASK, INDEX, json])
    }

    /// The ids of the tasks in a reply to LIST.
    fn ids(&mut self, line: &str) -> Vec<String> {
        let reply = self.run(line);
        assert!(reply.starts_with('*'), "{line}: {reply}");
        // For each task: its array, the length and text of the id, version, creation time, and unless the
        // list has no data, the length and text of the data.
        let lines_of_one = if line.contains("NODATA") { 5 } else { 7 };
        let lines: Vec<_> = reply.lines().skip(1).collect();
        assert_eq!(lines.len() % lines_of_one, 0, "{line}: {reply}");
        lines.chunks(lines_of_one).map(|task| task[2].to_owned()).collect()
    }

    /// Everything about both keys: values, expiry, and the number of keys.
    fn everything(&mut self) -> Vec<String> {
        ["DUMP T", "DUMP I", "PEXPIRETIME T", "PEXPIRETIME I", "DBSIZE"].map(|line| self.run(line)).to_vec()
    }

    /// The ids in the index, whether or not their tasks exist.
    fn entries(&mut self) -> Vec<String> {
        let reply = self.run("ZRANGE I 0 -1");
        reply.lines().skip(2).step_by(2).map(str::to_owned).collect()
    }

    /// Stores tasks of owner `o`, in this order of creation.
    fn store_all(&mut self, task_ids: &[&str]) {
        for (task_id, created_ms) in task_ids.iter().zip(1..) {
            self.store(task_id, created_ms);
        }
    }

    /// Stores a task of owner `o` with this creation time.
    fn store(&mut self, task_id: &str, created_ms: i64) {
        let reply = self.run(&format!("PMCPTASK.PUT pmcp:tasks:o:{task_id} I d CREATED {created_ms}"));
        assert_eq!(reply, ":1\r\n", "{task_id}");
    }
}

fn int(value: i64) -> String {
    format!(":{value}\r\n")
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

fn array(elements: &[String]) -> String {
    format!("*{}\r\n{}", elements.len(), elements.concat())
}

fn cas_reply(outcome: &str, version: i64) -> String {
    array(&[format!("+{outcome}\r\n"), int(version)])
}

fn record(version: i64, data: &str) -> String {
    array(&[int(version), bulk(data)])
}

fn listed(task_id: &str, version: i64, created_ms: i64, data: &str) -> String {
    array(&[bulk(task_id), int(version), int(created_ms), bulk(data)])
}

fn listed_without_data(task_id: &str, version: i64, created_ms: i64) -> String {
    array(&[bulk(task_id), int(version), int(created_ms)])
}

// Replies.

#[test]
fn every_reply_is_what_the_contract_says_in_resp2() {
    let mut session = Session::start();
    assert_eq!(session.run("PMCPTASK.GET T"), NIL);
    assert_eq!(session.run("PMCPTASK.LIST I"), EMPTY);
    assert_eq!(session.run("PMCPTASK.DEL T I"), int(0));
    assert_eq!(session.run("PMCPTASK.DEL T I VERSION 0"), cas_reply("MISSING", 0));
    assert_eq!(session.run("PMCPTASK.EXPIRE T I PERSIST"), int(0));
    assert_eq!(session.run("PMCPTASK.TRIM I KEEP 0"), int(0));
    assert_eq!(session.run("PMCPTASK.CAS T I 1 x"), cas_reply("MISSING", 0));
    assert_eq!(session.run("PMCPTASK.CAS T I 0 x"), cas_reply("MISSING", 0));
    every_reply_of_a_task(&mut session);
    assert_eq!(session.run("PMCPTASK.GET T"), NIL);
}

#[test]
fn every_reply_is_what_the_contract_says_in_resp3() {
    let mut session = Session::start();
    assert!(session.run("HELLO 3").starts_with('%'));
    assert_eq!(session.run("PMCPTASK.GET T"), "_\r\n");
    assert_eq!(session.run("PMCPTASK.LIST I"), EMPTY);
    assert_eq!(session.run("PMCPTASK.DEL T I"), int(0));
    assert_eq!(session.run("PMCPTASK.DEL T I VERSION 0"), cas_reply("MISSING", 0));
    assert_eq!(session.run("PMCPTASK.EXPIRE T I PERSIST"), int(0));
    assert_eq!(session.run("PMCPTASK.TRIM I KEEP 0"), int(0));
    assert_eq!(session.run("PMCPTASK.CAS T I 1 x"), cas_reply("MISSING", 0));
    every_reply_of_a_task(&mut session);
    assert_eq!(session.run("PMCPTASK.GET T"), "_\r\n");
}

/// The replies that are the same in both protocols.
fn every_reply_of_a_task(session: &mut Session) {
    assert_eq!(session.run("PMCPTASK.PUT T I one CREATED 5"), int(1));
    assert_eq!(session.run("PMCPTASK.PUT T I two"), int(2));
    assert_eq!(session.run("PMCPTASK.GET T"), record(2, "two"));
    assert_eq!(session.run("PMCPTASK.CAS T I 2 three"), cas_reply("OK", 3));
    for other in [0, 1, 2, 4, i64::MAX] {
        assert_eq!(session.run(&format!("PMCPTASK.CAS T I {other} x")), cas_reply("CONFLICT", 3));
    }
    assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 3, 5, "three")]));
    assert_eq!(session.run("PMCPTASK.LIST I NODATA"), array(&[listed_without_data("t", 3, 5)]));
    assert_eq!(session.run("PMCPTASK.PUT T I x NX"), int(0));
    for lifetime in ["PXAT 4102444800123", "PERSIST"] {
        assert_eq!(session.run(&format!("PMCPTASK.EXPIRE T I {lifetime}")), int(1));
    }
    assert_eq!(session.run("PMCPTASK.DEL T I VERSION 2"), cas_reply("CONFLICT", 3));
    assert_eq!(session.run("PMCPTASK.DEL T I VERSION 3"), cas_reply("OK", 3));
    assert_eq!(session.run("PMCPTASK.DEL T I VERSION 3"), cas_reply("MISSING", 0));
    assert_eq!(session.run("PMCPTASK.PUT T I x NX"), int(1));
    assert_eq!(session.run("PMCPTASK.TRIM I KEEP 1"), int(0));
    assert_eq!(session.run("PMCPTASK.TRIM I KEEP 0"), int(1));
    assert_eq!(session.run("PMCPTASK.PUT T I x"), int(1));
    assert_eq!(session.run("PMCPTASK.DEL T I"), int(1));
    assert_eq!(session.run("PMCPTASK.DEL T I"), int(0));
    assert_eq!(session.run("PMCPTASK.LIST I"), EMPTY);
    assert_eq!(session.run("EXISTS T I"), int(0));
}

#[test]
fn a_task_is_a_hash_and_an_index_entry() {
    let mut session = Session::start();
    session.run("PMCPTASK.PUT T I data CREATED 1700000000123");
    assert_eq!(session.run("HLEN T"), int(2));
    assert_eq!(session.run("HMGET T version data"), array(&[bulk("1"), bulk("data")]));
    assert_eq!(session.run("ZRANGE I 0 -1 WITHSCORES"), array(&[bulk("t"), bulk("1700000000123")]));
    assert_eq!(session.run("DBSIZE"), int(2));
}

#[test]
fn command_and_option_names_are_known_in_any_case() {
    let mut session = Session::start();
    assert_eq!(session.run("pmcptask.put T I d pxat 4102444800123 created 7 maxtasks 1"), int(1));
    assert_eq!(session.run("Pmcptask.Cas T I 1 d PerSist cReAtEd 9"), cas_reply("OK", 2));
    assert_eq!(session.run("PMCPTASK.list I rev Count 1 aFTER 8 x"), array(&[listed("t", 2, 7, "d")]));
    assert_eq!(session.run("pmcptask.get T"), record(2, "d"));
    assert_eq!(session.run("pmcptask.put T I d nX hElD T created Newest"), int(0));
    assert_eq!(session.run("PMCPTASK.LIST I NoData"), array(&[listed_without_data("t", 2, 7)]));
    assert_eq!(session.run("PMCPTASK.expire T I pxAT 4102444800123"), int(1));
    assert_eq!(session.run("pmcptask.Expire T I persist"), int(1));
    assert_eq!(session.run("pmcptask.trim I keep 1 Count 5"), int(0));
    assert_eq!(session.run("pmcptask.del T I Version 1"), cas_reply("CONFLICT", 2));
    assert_eq!(session.run("pmcptask.del T I"), int(1));
}

#[test]
fn options_of_put_mean_the_same_in_any_order() {
    let mut session = Session::start();
    for expiry in ["PXAT 4102444800123", "PERSIST"] {
        let [e, c, m, n, held] = [expiry, "CREATED 7", "MAXTASKS 1", "NX", "HELD pmcp:tasks:p:lease"];
        session.run("PMCPTASK.PUT pmcp:tasks:p:lease pmcp:idx:p d");
        for order in [
            [e, c, m, n, held],
            [held, e, n, m, c],
            [c, e, n, held, m],
            [n, c, held, m, e],
            [m, held, n, e, c],
            [n, m, c, e, held],
        ] {
            let options = order.join(" ");
            assert_eq!(session.run(&format!("PMCPTASK.PUT T I d {options}")), int(1), "{options}");
            assert_eq!(session.run(&format!("PMCPTASK.PUT T I d {options}")), int(0), "{options}");
            assert_eq!(session.run("ZSCORE I t"), bulk("7"), "{options}");
            let expected = if expiry == "PERSIST" { -1 } else { FUTURE };
            assert_eq!(session.number("PEXPIRETIME T"), expected, "{options}");
            let full = session.run(&format!("PMCPTASK.PUT pmcp:tasks:o:t2 I d {options}"));
            assert!(full.starts_with("-CAPACITY "), "{options}: {full}");
            assert_eq!(session.run("PMCPTASK.DEL T I"), int(1));
        }
    }
}

#[test]
fn options_of_list_mean_the_same_in_any_order() {
    let mut session = Session::start();
    for n in 1..=5 {
        session.store(&format!("t{n}"), n);
    }
    let [r, a, c] = ["REV", "AFTER 4 t4", "COUNT 2"];
    for order in [[r, a, c], [r, c, a], [a, r, c], [a, c, r], [c, r, a], [c, a, r]] {
        let options = order.join(" ");
        for options in [options.clone(), format!("NODATA {options}"), format!("{options} NODATA")] {
            assert_eq!(session.ids(&format!("PMCPTASK.LIST I {options}")), ["t3", "t2"], "{options}");
        }
    }
    // A task id can be the name of an option.
    assert_eq!(session.ids("PMCPTASK.LIST I AFTER 3 NODATA COUNT 1 NODATA"), ["t3"]);
}

#[test]
fn options_of_trim_mean_the_same_in_any_order() {
    let mut session = Session::start();
    for options in ["KEEP 1 COUNT 2", "COUNT 2 KEEP 1"] {
        session.store_all(&["a", "b", "c", "d"]);
        assert_eq!(session.run(&format!("PMCPTASK.TRIM I {options}")), int(2), "{options}");
        assert_eq!(session.ids("PMCPTASK.LIST I"), ["c", "d"], "{options}");
        session.run("PMCPTASK.TRIM I KEEP 0");
    }
}

#[test]
fn data_is_kept_byte_for_byte() {
    let mut session = Session::start();
    let every_byte: Vec<u8> = (0..=255).collect();
    for data in [&b""[..], b"\0", b"a\0b", b"%s%n%d%", b"\r\n", b"PXAT", b"\xff\xfe\0{", &every_byte] {
        let put: [&[u8]; 4] = [b"PMCPTASK.PUT", TASK.as_bytes(), INDEX.as_bytes(), data];
        assert_eq!(session.wire.call(&put), int(1), "{data:?}");
        let cas: [&[u8]; 5] = [b"PMCPTASK.CAS", TASK.as_bytes(), INDEX.as_bytes(), b"1", data];
        assert_eq!(session.wire.call(&cas), cas_reply("OK", 2), "{data:?}");
        let expected = [format!("*2\r\n:2\r\n${}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
        assert_eq!(session.run("PMCPTASK.GET T"), as_received(&expected));
        let stored = [format!("${}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
        assert_eq!(session.run("HGET T data"), as_received(&stored));
        assert_eq!(session.run("PMCPTASK.DEL T I"), int(1));
    }
}

/// Bytes as [`Wire::receive`] shows them.
fn as_received(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| bytes.escape_ascii().to_string())
}

// Order and parts of a list.

#[test]
fn list_is_in_order_of_creation_and_ties_are_in_order_of_the_id() {
    for mut session in Session::of_each_encoding() {
        for (task_id, created_ms) in [("b", 2), ("z", 1), ("c", 2), ("a", 2), ("B", 2), ("y", 3)] {
            session.store(task_id, created_ms);
        }
        assert_eq!(session.ids("PMCPTASK.LIST I"), ["z", "B", "a", "b", "c", "y"]);
        assert_eq!(session.ids("PMCPTASK.LIST I REV"), ["y", "c", "b", "a", "B", "z"]);
        // The order is numeric, not by text.
        session.store("ten", 10);
        assert_eq!(session.ids("PMCPTASK.LIST I AFTER 3 a"), ["y", "ten"]);
    }
}

#[test]
fn after_is_what_follows_a_position_in_the_order_asked_for() {
    for mut session in Session::of_each_encoding() {
        for (task_id, created_ms) in [("a", 1), ("b", 2), ("c", 2), ("d", 2), ("REV", 3)] {
            session.store(task_id, created_ms);
        }
        assert_eq!(session.ids("PMCPTASK.LIST I AFTER 2 c"), ["d", "REV"]);
        assert_eq!(session.ids("PMCPTASK.LIST I REV AFTER 2 c"), ["b", "a"]);
        assert_eq!(session.ids("PMCPTASK.LIST I AFTER 3 REV"), Vec::<String>::new());
        assert_eq!(session.ids("PMCPTASK.LIST I AFTER 3 REV REV"), ["d", "c", "b", "a"]);
        assert_eq!(session.ids("PMCPTASK.LIST I REV AFTER 1 a"), Vec::<String>::new());
        // An empty task id is allowed here: it means the start of a millisecond.
        let start: [&str; 5] = ["PMCPTASK.LIST", INDEX, "AFTER", "3", ""];
        assert_eq!(session.wire.call(&start), array(&[listed("REV", 1, 3, "d")]));
        assert_eq!(session.ids("PMCPTASK.LIST I AFTER 9007199254740991 x"), Vec::<String>::new());
        assert_eq!(session.ids("PMCPTASK.LIST I AFTER 9007199254740991 x REV").len(), 5);
    }
}

#[test]
fn after_means_the_same_once_the_task_there_has_gone() {
    for mut session in Session::of_each_encoding() {
        for (task_id, created_ms) in [("a", 1), ("b", 2), ("c", 2), ("d", 3)] {
            session.store(task_id, created_ms);
        }
        session.run("PMCPTASK.DEL pmcp:tasks:o:b I");
        assert_eq!(session.ids("PMCPTASK.LIST I AFTER 2 b"), ["c", "d"]);
        assert_eq!(session.ids("PMCPTASK.LIST I REV AFTER 2 b"), ["a"]);
        assert_eq!(session.ids("PMCPTASK.LIST I AFTER 0 zzz"), ["a", "c", "d"]);
    }
}

#[test]
fn pages_of_any_size_make_the_whole_list() {
    for mut session in Session::of_each_encoding() {
        let created = |n: i64| n / 3;
        for n in 0..20 {
            session.store(&format!("t{n:02}"), created(n));
        }
        for order in ["", " REV"] {
            let whole = session.ids(&format!("PMCPTASK.LIST I{order}"));
            assert_eq!(whole.len(), 20);
            for size in [1, 2, 7, 20, 21] {
                let (mut pages, mut after) = (Vec::new(), String::new());
                loop {
                    let page = session.ids(&format!("PMCPTASK.LIST I{order} COUNT {size}{after}"));
                    let Some(last) = page.last() else { break };
                    after = format!(" AFTER {} {last}", created(last[1..].parse().unwrap()));
                    pages.extend(page);
                    assert!(pages.len() <= whole.len(), "{order} pages of {size} do not end: {pages:?}");
                }
                assert_eq!(pages, whole, "{order} pages of {size}");
            }
        }
    }
}

#[test]
fn count_is_of_records_and_not_of_index_entries() {
    for mut session in Session::of_each_encoding() {
        for n in 0..4 {
            session.store(&format!("t{n}"), 10 + n);
        }
        // Entries without a task, before, between and after the others.
        session.run("ZADD I 1 s1 2 s2 11 t0s 12 s12 12.0 s12b 50 s50 51 s51");
        assert_eq!(session.ids("PMCPTASK.LIST I COUNT 1"), ["t0"]);
        assert_eq!(session.ids("PMCPTASK.LIST I COUNT 3"), ["t0", "t1", "t2"]);
        assert_eq!(session.ids("PMCPTASK.LIST I COUNT 4"), ["t0", "t1", "t2", "t3"]);
        assert_eq!(session.ids("PMCPTASK.LIST I COUNT 9223372036854775807").len(), 4);
        assert_eq!(session.ids("PMCPTASK.LIST I REV COUNT 1"), ["t3"]);
        assert_eq!(session.ids("PMCPTASK.LIST I REV COUNT 3 AFTER 13 t3"), ["t2", "t1", "t0"]);
        assert_eq!(session.run("PMCPTASK.LIST I COUNT 0"), EMPTY);
        assert_eq!(session.ids("PMCPTASK.LIST I COUNT 3 NODATA"), ["t0", "t1", "t2"]);
        // The command only reads; it removes nothing.
        assert_eq!(session.run("ZCARD I"), int(11));
    }
}

#[test]
fn pages_lose_no_task_where_others_have_written_fractions_as_scores() {
    for mut session in Session::of_each_encoding() {
        for (score, task_id) in [("5", "z"), ("5.25", "y"), ("5.5", "a"), ("6", "b")] {
            session.run(&format!("ZADD I {score} {task_id}"));
            session.run(&format!("HSET pmcp:tasks:o:{task_id} version 1 data d"));
        }
        // The first entry has no task, so a page must continue from the position that the walk has reached.
        session.run("DEL pmcp:tasks:o:z pmcp:tasks:o:b");
        assert_eq!(session.ids("PMCPTASK.LIST I COUNT 1"), ["y"]);
        assert_eq!(session.ids("PMCPTASK.LIST I COUNT 2"), ["y", "a"]);
        assert_eq!(session.ids("PMCPTASK.LIST I REV COUNT 1"), ["a"]);
    }
}

#[test]
fn expiry_before_the_epoch_is_past() {
    let mut session = Session::start();
    session.run("HSET T version 3 data d expires_at -5");
    assert_eq!(session.run("PMCPTASK.GET T"), NIL);
    assert_eq!(session.number("PMCPTASK.PUT T I d"), 1);
}

#[test]
fn record_tells_its_creation_time_beside_an_unreadable_expiry() {
    let mut session = Session::start();
    let record = r#"{"task":{"createdAt":"2023-11-14T22:13:20Z"},"expiresAt":"soon"}"#;
    session.wire.call(&["PMCPTASK.PUT", TASK, INDEX, record, "PERSIST"]);
    assert_eq!(session.run("ZSCORE I t"), bulk("1700000000000"));
}

#[test]
fn list_skips_entries_that_name_no_task_of_the_owner() {
    let mut session = Session::start();
    session.store("t", 1);
    // With a colon, the entry would name a task of the owner `o:x`.
    assert_eq!(session.run("PMCPTASK.PUT pmcp:tasks:o:x:secret pmcp:idx:o:x theirs"), int(1));
    session.run("ZADD I 2 x:secret 3 text 4 list");
    assert_eq!(session.wire.call(&["ZADD", INDEX, "5", ""]), int(1));
    session.run("SET pmcp:tasks:o:text value");
    session.run("RPUSH pmcp:tasks:o:list value");
    assert_eq!(session.ids("PMCPTASK.LIST I"), ["t"]);
    assert_eq!(session.ids("PMCPTASK.LIST I REV COUNT 1"), ["t"]);
}

#[test]
fn list_without_data_shows_the_same_tasks_in_the_same_order() {
    for mut session in Session::of_each_encoding() {
        for (task_id, created_ms) in [("b", 2), ("z", 1), ("c", 2), ("a", 2), ("y", 3)] {
            session.store(task_id, created_ms);
        }
        session.run("PMCPTASK.PUT pmcp:tasks:o:z I again");
        session.run("ZADD I 2 aa 2 b1 2 x:secret");
        // A hash without data is skipped, although its data is not asked for.
        session.run("HSET pmcp:tasks:o:b1 version 1");
        assert_eq!(
            session.run("PMCPTASK.LIST I NODATA COUNT 2"),
            array(&[listed_without_data("z", 2, 1), listed_without_data("a", 1, 2)])
        );
        for options in ["", " REV", " COUNT 3", " AFTER 2 b", " REV AFTER 2 b", " REV COUNT 2", " COUNT 0"] {
            let with_data = session.ids(&format!("PMCPTASK.LIST I{options}"));
            let without_data = session.ids(&format!("PMCPTASK.LIST I{options} NODATA"));
            assert_eq!(without_data, with_data, "{options}");
        }
    }
}

// Creation time.

#[test]
fn creation_time_is_the_option_else_the_record_else_the_clock() {
    let mut session = Session::start();
    let json = r#"{"task":{"createdAt":"2023-11-14T22:13:20.123999Z"}}"#;
    assert_eq!(session.wire.call(&["PMCPTASK.PUT", TASK, INDEX, json, "CREATED", "5"]), int(1));
    assert_eq!(session.run("ZSCORE I t"), bulk("5"));
    session.run("PMCPTASK.DEL T I");
    session.put_json(json);
    assert_eq!(session.run("ZSCORE I t"), bulk("1700000000123"));
    session.run("PMCPTASK.DEL T I");
    session.wire.call(&["PMCPTASK.PUT", TASK, INDEX, json, "PERSIST"]);
    assert_eq!(session.run("ZSCORE I t"), bulk("1700000000123"));
    session.run("PMCPTASK.DEL T I");
    for data in
        ["text", "{}", r#"{"task":{"createdAt":"yesterday"}}"#, r#"{"createdAt":"2023-11-14T22:13:20Z"}"#]
    {
        let before = now_ms();
        session.put_json(data);
        let score = session.run("ZSCORE I t");
        let created: i64 = score.lines().nth(1).unwrap().parse().unwrap();
        assert!((before..=now_ms()).contains(&created), "{data}: {created}");
        session.run("PMCPTASK.DEL T I");
    }
}

#[test]
fn creation_time_never_changes_while_the_task_is_in_the_index() {
    let mut session = Session::start();
    session.run("PMCPTASK.PUT T I d CREATED 5");
    session.run("PMCPTASK.PUT T I d CREATED 9");
    session.put_json(r#"{"task":{"createdAt":"2023-11-14T22:13:20.123Z"}}"#);
    session.run("PMCPTASK.CAS T I 3 d CREATED 1");
    assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 4, 5, "d")]));
    // A task that left the index enters it again with the next write, a CAS too.
    session.run("ZREM I t");
    session.run("PMCPTASK.CAS T I 4 d CREATED 8");
    assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 5, 8, "d")]));
    session.run("PMCPTASK.DEL T I");
    session.run("PMCPTASK.PUT T I d CREATED 9");
    assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 1, 9, "d")]));
}

#[test]
fn entry_of_a_task_that_has_gone_gives_a_new_one_no_creation_time() {
    let mut session = Session::start();
    session.run("ZADD I 5 t");
    session.run("PMCPTASK.PUT T I d CREATED 9");
    assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 1, 9, "d")]));
}

#[test]
fn largest_creation_time_is_exact() {
    let mut session = Session::start();
    session.store("t", 9_007_199_254_740_991);
    session.store("u", 9_007_199_254_740_990);
    assert_eq!(session.ids("PMCPTASK.LIST I"), ["u", "t"]);
    assert_eq!(session.ids("PMCPTASK.LIST I AFTER 9007199254740990 u"), ["t"]);
    assert_eq!(
        session.run("PMCPTASK.LIST I REV COUNT 1"),
        array(&[listed("t", 1, 9_007_199_254_740_991, "d")])
    );
}

/// Runs commands as one transaction, so that most of them run in the same millisecond.
fn at_once(session: &mut Session, lines: &[String]) -> String {
    session.run("MULTI");
    for line in lines {
        assert_eq!(session.run(line), "+QUEUED\r\n", "{line}");
    }
    session.run("EXEC")
}

#[test]
fn newest_puts_tasks_in_the_order_of_their_writes_within_one_millisecond_too() {
    for mut session in Session::of_each_encoding() {
        // The order of the ids is another.
        let ids: Vec<_> = (0..50).map(|n| format!("t{:02}", n * 7 % 50)).collect();
        let record = r#"{"task":{"createdAt":"2023-11-14T22:13:20.123Z"}}"#;
        let put = |id: &String| format!("PMCPTASK.PUT pmcp:tasks:o:{id} I {record} CREATED NEWEST");
        let before = now_ms();
        at_once(&mut session, &ids.iter().map(put).collect::<Vec<_>>());
        let after = now_ms();
        assert_eq!(session.ids("PMCPTASK.LIST I"), ids);
        let oldest = session.number("ZCOUNT I -inf +inf");
        assert_eq!(oldest, 50);
        // Each is one millisecond after the one before, or at the clock.
        let in_time = format!("ZCOUNT I {before} {}", after + 49);
        assert_eq!(session.number(&in_time), 50);
    }
}

#[test]
fn newest_is_the_clock_or_one_more_than_the_greatest_score() {
    let ahead = now_ms() + 3_600_000;
    for mut session in Session::of_each_encoding() {
        for (scores, expected) in [
            ("-inf dead".to_owned(), None),
            ("-5 dead".to_owned(), None),
            ("0.5 dead 7 dead2".to_owned(), None),
            (format!("{ahead} dead 3 dead2"), Some(ahead + 1)),
            (format!("{ahead}.25 dead {ahead} dead2"), Some(ahead + 1)),
            (format!("{ahead}.99 a:b"), Some(ahead + 1)),
            // The entry that the task itself has left.
            (format!("{ahead} t 5 dead"), Some(ahead + 1)),
            ("9007199254740990 dead".to_owned(), Some(9_007_199_254_740_991)),
        ] {
            session.run(&format!("ZADD I {scores}"));
            let before = now_ms();
            assert_eq!(session.run("PMCPTASK.PUT T I d CREATED NEWEST"), int(1), "{scores}");
            let score = session.run("ZSCORE I t");
            let created: i64 = score.lines().nth(1).unwrap().parse().unwrap();
            match expected {
                Some(expected) => assert_eq!(created, expected, "{scores}"),
                None => assert!((before..=now_ms()).contains(&created), "{scores}: {created}"),
            }
            assert_eq!(session.entries().last().unwrap(), "t", "{scores}");
            session.run("DEL T I");
        }
    }
}

#[test]
fn newest_changes_no_creation_time_of_a_task_that_is_in_the_index() {
    let mut session = Session::start();
    session.store_all(&["t", "u"]);
    session.run("PMCPTASK.PUT T I d CREATED NEWEST");
    session.run("PMCPTASK.CAS T I 2 d CREATED NEWEST");
    assert_eq!(session.run("PMCPTASK.PUT T I d NX CREATED NEWEST"), int(0));
    assert_eq!(session.run("PMCPTASK.LIST I COUNT 1"), array(&[listed("t", 3, 1, "d")]));
    // A task that left the index enters it as the newest.
    session.run("ZREM I t");
    session.run("ZADD I 4102444800123 dead");
    assert_eq!(session.run("PMCPTASK.CAS T I 3 d CREATED NEWEST"), cas_reply("OK", 4));
    assert_eq!(session.run("ZSCORE I t"), bulk("4102444800124"));
}

#[test]
fn newest_is_refused_where_no_creation_time_is_later() {
    for mut session in Session::of_each_encoding() {
        session.run("PMCPTASK.PUT T I d CREATED 5");
        for score in ["9007199254740991", "9007199254740992", "1e300", "+inf"] {
            session.run(&format!("ZADD I {score} dead"));
            let before = session.everything();
            let new = "PMCPTASK.PUT pmcp:tasks:o:new I d CREATED NEWEST";
            for options in ["", " NX", " PXAT 1", " MAXTASKS 9"] {
                let reply = session.run(&format!("{new}{options}"));
                assert_eq!(reply, format!("-{NONE_NEWER}\r\n"), "{score}{options}");
            }
            assert_eq!(session.everything(), before, "{score}");
        }
        // A task in the index needs no creation time.
        assert_eq!(session.run("PMCPTASK.PUT T I d CREATED NEWEST"), int(2));
        session.run("ZREM I t");
        let before = session.everything();
        let reply = session.run("PMCPTASK.CAS T I 2 d CREATED NEWEST");
        assert_eq!(reply, format!("-{NONE_NEWER}\r\n"));
        assert_eq!(session.everything(), before);
        assert_eq!(session.server.counter("refused_err"), 17);
    }
}

#[test]
fn newest_is_last_after_the_clock_was_set_back() {
    let clock = Clock::new();
    let server = Server::start_with(&clock.of(ServerOptions::default()));
    let mut session = Session { wire: server.wire(), server };
    let mut expected = Vec::new();
    for (id, ahead) in [("c", 0), ("b", -3_600), ("a", -7_200), ("d", 60), ("e", -60)] {
        clock.set_ahead(ahead);
        let shown = |session: &mut Session| {
            let time: i64 = session.run("TIME").lines().nth(2).unwrap().parse().unwrap();
            (time - now_ms() / 1_000 - ahead).abs() < 30
        };
        assert!(holds_within(PROMISED, || shown(&mut session)), "the server's clock");
        session.run(&format!("PMCPTASK.PUT pmcp:tasks:o:{id} I d CREATED NEWEST"));
        expected.push(id);
        assert_eq!(session.ids("PMCPTASK.LIST I"), expected, "{ahead}");
    }
    // Without NEWEST, the clock decides.
    session.run("PMCPTASK.PUT pmcp:tasks:o:z I d");
    assert_ne!(session.ids("PMCPTASK.LIST I").last().unwrap(), "z");
}

// Expiry.

#[test]
fn pxat_sets_the_expiry_to_the_millisecond_and_the_field_in_seconds_rounded_up() {
    let mut session = Session::start();
    for (at_ms, field) in [
        (FUTURE, "4102444801"),
        (4_102_444_800_000, "4102444800"),
        (4_102_444_800_999, "4102444801"),
        (4_102_444_801_000, "4102444801"),
        (i64::MAX, "9223372036854776"),
    ] {
        session.run(&format!("PMCPTASK.PUT T I d PXAT {at_ms}"));
        assert_eq!(session.number("PEXPIRETIME T"), at_ms);
        assert_eq!(session.run("HGET T expires_at"), bulk(field), "{at_ms}");
        assert_eq!(session.run("PEXPIRETIME I"), int(-1));
    }
    session.run(&format!("PMCPTASK.CAS T I 5 d PXAT {FUTURE}"));
    assert_eq!(session.number("PEXPIRETIME T"), FUTURE);
    assert_eq!(session.run("HGET T expires_at"), bulk("4102444801"));
}

#[test]
fn expiry_comes_from_the_record_where_no_option_says_it() {
    let mut session = Session::start();
    for (text, at_ms) in [
        ("2100-01-01T00:00:00.123Z", FUTURE),
        ("2100-01-01T00:00:00.122000001Z", FUTURE),
        ("2100-01-01T00:00:00.1220Z", FUTURE - 1),
        ("2100-01-01T02:00:00.123+02:00", FUTURE),
    ] {
        let json = format!(r#"{{"expiresAt":"{text}"}}"#);
        session.put_json(&json);
        assert_eq!(session.number("PEXPIRETIME T"), at_ms, "{text}");
        assert_eq!(session.run("HGET T expires_at"), bulk("4102444801"), "{text}");
        session.run("PMCPTASK.PUT T I d");
        let version = session.run("HGET T version").lines().nth(1).unwrap().to_owned();
        session.wire.call(&["PMCPTASK.CAS", TASK, INDEX, &version, &json]);
        assert_eq!(session.number("PEXPIRETIME T"), at_ms, "{text}");
    }
}

#[test]
fn options_of_expiry_win_over_the_record() {
    let mut session = Session::start();
    let json = r#"{"expiresAt":"2100-01-01T00:00:00.123Z"}"#;
    session.wire.call(&["PMCPTASK.PUT", TASK, INDEX, json, "PERSIST"]);
    assert_eq!(session.run("PEXPIRETIME T"), int(-1));
    session.wire.call(&["PMCPTASK.PUT", TASK, INDEX, json, "PXAT", "4102444800999"]);
    assert_eq!(session.number("PEXPIRETIME T"), 4_102_444_800_999);
    let unreadable = r#"{"expiresAt":"soon"}"#;
    assert_eq!(session.wire.call(&["PMCPTASK.PUT", TASK, INDEX, unreadable, "PERSIST"]), int(3));
    assert_eq!(session.run("PEXPIRETIME T"), int(-1));
}

#[test]
fn write_that_names_no_expiry_removes_it() {
    let mut session = Session::start();
    let writes: [&[&str]; 6] = [
        &["PMCPTASK.PUT", TASK, INDEX, "text"],
        &["PMCPTASK.PUT", TASK, INDEX, "{}"],
        &["PMCPTASK.PUT", TASK, INDEX, r#"{"expiresAt":null}"#],
        &["PMCPTASK.PUT", TASK, INDEX, "text", "PERSIST"],
        &["PMCPTASK.CAS", TASK, INDEX, "1", "text"],
        &["PMCPTASK.CAS", TASK, INDEX, "1", "text", "PERSIST"],
    ];
    for write in writes {
        session.run(&format!("PMCPTASK.PUT T I d PXAT {FUTURE}"));
        assert!(session.wire.call(write).ends_with(":2\r\n"), "{write:?}");
        assert_eq!(session.run("PEXPIRETIME T"), int(-1), "{write:?}");
        assert_eq!(session.run("HEXISTS T expires_at"), int(0), "{write:?}");
        session.run("PMCPTASK.DEL T I");
    }
}

#[test]
fn task_ends_at_its_millisecond() {
    let mut session = Session::start();
    let at_ms = now_ms() + 150;
    session.run(&format!("PMCPTASK.PUT T I d PXAT {at_ms}"));
    loop {
        let before = now_ms();
        let reply = session.run("PMCPTASK.GET T");
        if reply == NIL {
            assert!(now_ms() >= at_ms);
            break;
        }
        // The server's rule: a key has expired once the clock is past its expiry.
        assert!(before <= at_ms, "{before} {at_ms}");
    }
    assert_eq!(session.run("PMCPTASK.LIST I"), EMPTY);
    assert_eq!(session.run("PMCPTASK.CAS T I 1 d"), cas_reply("MISSING", 0));
    assert_eq!(session.run("PMCPTASK.DEL T I"), int(0));
    assert_eq!(session.run("PMCPTASK.PUT T I d"), int(1));
}

#[test]
fn write_with_an_expiry_already_past_leaves_nothing_and_tells_its_version() {
    let mut session = Session::start();
    let past = r#"{"expiresAt":"1999-01-01T00:00:00Z"}"#;
    for options in [&["d", "PXAT", "0"][..], &["d", "PXAT", "946684800000"], &[past]] {
        for versions in 0..3 {
            for _ in 0..versions {
                session.run("PMCPTASK.PUT T I d");
            }
            let put = [&["PMCPTASK.PUT", TASK, INDEX], options].concat();
            assert_eq!(session.wire.call(&put), int(versions + 1), "{options:?}");
            assert_eq!(session.run("EXISTS T I"), int(0), "{options:?}");
        }
        session.run("PMCPTASK.PUT T I d");
        let cas = [&["PMCPTASK.CAS", TASK, INDEX, "1"], options].concat();
        assert_eq!(session.wire.call(&cas), cas_reply("OK", 2), "{options:?}");
        assert_eq!(session.run("EXISTS T I"), int(0), "{options:?}");
    }
    // Other tasks stay in the index.
    session.store("other", 1);
    session.run("PMCPTASK.PUT T I d");
    session.run("PMCPTASK.PUT T I d PXAT 1");
    assert_eq!(session.ids("PMCPTASK.LIST I"), ["other"]);
    assert_eq!(session.run("ZCARD I"), int(1));
}

#[test]
fn hash_that_has_lost_its_expiry_is_gone_at_its_expires_at_all_the_same() {
    let mut session = Session::start();
    // Otherwise the module removes the hash soon after a command has met it.
    session.run("CONFIG SET pmcptask.reclaim no");
    let lapse = |session: &mut Session| {
        session.run("DEL T I");
        session.run(&format!("PMCPTASK.PUT T I d PXAT {FUTURE} CREATED 5"));
        session.run("PMCPTASK.PUT T I d CREATED 5 PXAT 4102444800123");
        session.run("PERSIST T");
        session.run("HSET T expires_at 946684800");
    };
    lapse(&mut session);
    assert_eq!(session.run("PMCPTASK.GET T"), NIL);
    assert_eq!(session.run("PMCPTASK.LIST I"), EMPTY);
    assert_eq!(session.run("PMCPTASK.CAS T I 2 d"), cas_reply("MISSING", 0));
    assert_eq!(session.run("EXISTS T"), int(1), "reads and failed writes have removed nothing");
    assert_eq!(session.run("PMCPTASK.DEL T I"), int(0));
    assert_eq!(session.run("EXISTS T I"), int(0));
    lapse(&mut session);
    session.run("HSET T note kept?");
    assert_eq!(session.run("PMCPTASK.PUT T I new CREATED 9"), int(1));
    assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 1, 9, "new")]));
    assert_eq!(session.run("HLEN T"), int(2));
    // An `expires_at` in the future changes nothing.
    session.run("HSET T expires_at 4102444801");
    assert_eq!(session.run("PMCPTASK.GET T"), record(1, "new"));
}

#[test]
fn expire_sets_the_expiry_and_leaves_version_data_and_entry_as_they_are() {
    let mut session = Session::start();
    session.run("PMCPTASK.PUT T I d CREATED 5");
    session.run("PMCPTASK.PUT T I e");
    for (at_ms, field) in [
        (FUTURE, "4102444801"),
        (4_102_444_800_000, "4102444800"),
        (4_102_444_801_000, "4102444801"),
        (4_102_444_801_000, "4102444801"),
        (i64::MAX, "9223372036854776"),
    ] {
        assert_eq!(session.run(&format!("PMCPTASK.EXPIRE T I PXAT {at_ms}")), int(1));
        assert_eq!(session.number("PEXPIRETIME T"), at_ms);
        assert_eq!(session.run("HGET T expires_at"), bulk(field), "{at_ms}");
        assert_eq!(session.run("PEXPIRETIME I"), int(-1));
        assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 2, 5, "e")]));
    }
    for _ in 0..2 {
        assert_eq!(session.run("PMCPTASK.EXPIRE T I PERSIST"), int(1));
        assert_eq!(session.run("PEXPIRETIME T"), int(-1));
        assert_eq!(session.run("HGETALL T"), array(&["version", "2", "data", "e"].map(bulk)));
        assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 2, 5, "e")]));
    }
    // The next write says anew when the task expires.
    session.run(&format!("PMCPTASK.EXPIRE T I PXAT {FUTURE}"));
    session.run("PMCPTASK.CAS T I 2 f");
    assert_eq!(session.run("PEXPIRETIME T"), int(-1));
    assert_eq!(session.server.counter("expires"), 8);
}

#[test]
fn expire_wins_over_what_the_record_says() {
    let mut session = Session::start();
    let json = r#"{"expiresAt":"2100-01-01T00:00:00.123Z"}"#;
    session.put_json(json);
    assert_eq!(session.run("PMCPTASK.EXPIRE T I PERSIST"), int(1));
    assert_eq!(session.run("PEXPIRETIME T"), int(-1));
    assert_eq!(session.run("PMCPTASK.EXPIRE T I PXAT 4102444800999"), int(1));
    assert_eq!(session.number("PEXPIRETIME T"), 4_102_444_800_999);
    assert_eq!(session.run("PMCPTASK.GET T"), record(1, json));
}

#[test]
fn expire_leaves_the_index_as_it_is() {
    let mut session = Session::start();
    session.run("PMCPTASK.PUT T I d CREATED 5");
    session.store("u", 6);
    // Another client has removed the entry.
    session.run("ZREM I t");
    let before = session.run("DUMP I");
    assert_eq!(session.run(&format!("PMCPTASK.EXPIRE T I PXAT {FUTURE}")), int(1));
    assert_eq!(session.run("DUMP I"), before);
    assert_eq!(session.run("PMCPTASK.EXPIRE T I PXAT 1"), int(1));
    assert_eq!(session.run("EXISTS T"), int(0));
    assert_eq!(session.entries(), ["u"]);
}

#[test]
fn expire_to_a_time_already_past_ends_the_task() {
    let mut session = Session::start();
    session.store("other", 1);
    for at_ms in [0, 1, 946_684_800_000, now_ms() - 1] {
        session.run(&format!("PMCPTASK.PUT T I d PXAT {FUTURE}"));
        assert_eq!(session.run(&format!("PMCPTASK.EXPIRE T I PXAT {at_ms}")), int(1), "{at_ms}");
        assert_eq!(session.run("EXISTS T"), int(0), "{at_ms}");
        assert_eq!(session.entries(), ["other"], "{at_ms}");
        assert_eq!(session.run(&format!("PMCPTASK.EXPIRE T I PXAT {at_ms}")), int(0), "{at_ms}");
    }
    assert_eq!(session.run("PMCPTASK.EXPIRE pmcp:tasks:o:other I PXAT 1"), int(1));
    assert_eq!(session.run("EXISTS I"), int(0));
}

#[test]
fn task_ends_at_the_millisecond_that_expire_has_set() {
    let mut session = Session::start();
    session.run(&format!("PMCPTASK.PUT T I d PXAT {FUTURE}"));
    let at_ms = now_ms() + 100;
    assert_eq!(session.run(&format!("PMCPTASK.EXPIRE T I PXAT {at_ms}")), int(1));
    let found = session.run("PMCPTASK.GET T");
    // A read that a busy machine answers after the task's end says nothing.
    assert!(found == record(1, "d") || now_ms() > at_ms, "{found}");
    sleep_until(at_ms + 1);
    assert_eq!(session.run("PMCPTASK.GET T"), NIL);
    assert_eq!(session.run(&format!("PMCPTASK.EXPIRE T I PXAT {FUTURE}")), int(0));
    assert_eq!(session.run("PMCPTASK.EXPIRE T I PERSIST"), int(0));
    assert_eq!(session.run("PMCPTASK.LIST I"), EMPTY);
}

#[test]
fn expire_of_no_live_task_changes_nothing() {
    let mut session = Session::start();
    session.run("ZADD I 5 t");
    let before = session.everything();
    for lifetime in ["PERSIST", "PXAT 1", "PXAT 4102444800123"] {
        assert_eq!(session.run(&format!("PMCPTASK.EXPIRE T I {lifetime}")), int(0), "{lifetime}");
        assert_eq!(session.everything(), before, "{lifetime}");
    }
    for lifetime in ["PERSIST", "PXAT 1", "PXAT 4102444800123"] {
        // The module removes the hash soon after it has met it.
        session.run("HSET T version 1 data d expires_at 946684800");
        assert_eq!(session.run(&format!("PMCPTASK.EXPIRE T I {lifetime}")), int(0), "{lifetime}");
        assert_eq!(session.run("PMCPTASK.GET T"), NIL, "{lifetime}");
        assert!(holds_within(PROMISED, || session.run("EXISTS T") == int(0)), "{lifetime}");
    }
    assert_eq!(session.server.counter("expires"), 0);
}

// A write to a new task only.

#[test]
fn put_nx_writes_a_new_task_and_never_an_existing_one() {
    let mut session = Session::start();
    assert_eq!(session.run(&format!("PMCPTASK.PUT T I one NX PXAT {FUTURE} CREATED 5")), int(1));
    let before = session.everything();
    for options in
        ["", " PERSIST", " PXAT 1", " PXAT 4102444800999", " CREATED 9", " MAXTASKS 0", " MAXTASKS 9"]
    {
        assert_eq!(session.run(&format!("PMCPTASK.PUT T I two NX{options}")), int(0), "{options}");
        assert_eq!(session.everything(), before, "{options}");
    }
    assert_eq!(session.server.counter("puts"), 1);
    assert_eq!(session.server.counter("put_exists"), 7);
    session.run("PMCPTASK.DEL T I");
    assert_eq!(session.run("PMCPTASK.PUT T I two NX CREATED 9"), int(1));
    assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 1, 9, "two")]));
}

#[test]
fn put_nx_that_finds_a_task_does_not_look_at_the_record() {
    let mut session = Session::start();
    session.run("CONFIG SET pmcptask.max-record-bytes 64");
    session.run("PMCPTASK.PUT T I one");
    let before = session.everything();
    let [unreadable, past, large] =
        [r#"{"expiresAt":"soon"}"#, r#"{"expiresAt":"1999-01-01T00:00:00Z"}"#, &"x".repeat(65)];
    for record in [unreadable, past, large] {
        assert_eq!(session.wire.call(&["PMCPTASK.PUT", TASK, INDEX, record, "NX"]), int(0), "{record}");
        assert_eq!(session.everything(), before, "{record}");
    }
    // It is looked at where it would be written.
    for (record, code) in [(unreadable, "-ERR "), (large, "-CAPACITY ")] {
        let reply = session.wire.call(&["PMCPTASK.PUT", "pmcp:tasks:o:new", INDEX, record, "NX"]);
        assert!(reply.starts_with(code), "{record}: {reply}");
    }
    assert_eq!(session.everything(), before);
    session.run("HSET T version 9223372036854775807");
    assert_eq!(session.run("PMCPTASK.PUT T I two NX"), int(0));
}

#[test]
fn put_nx_takes_a_task_that_has_ended_for_none() {
    let mut session = Session::start();
    session.run("ZADD I 5 t");
    assert_eq!(session.run("PMCPTASK.PUT T I d NX CREATED 9"), int(1));
    assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 1, 9, "d")]));
    session.run("PMCPTASK.PUT T I d");
    session.run("HSET T expires_at 946684800 note kept?");
    assert_eq!(session.run("PMCPTASK.PUT T I new NX CREATED 11"), int(1));
    assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 1, 11, "new")]));
    assert_eq!(session.run("HLEN T"), int(2));
    let at_ms = now_ms() + 50;
    session.run(&format!("PMCPTASK.EXPIRE T I PXAT {at_ms}"));
    sleep_until(at_ms + 1);
    assert_eq!(session.run("PMCPTASK.PUT T I newer NX"), int(1));
    // A new task whose expiry is past is gone at once.
    assert_eq!(session.run("PMCPTASK.PUT pmcp:tasks:o:u I d NX PXAT 1"), int(1));
    assert_eq!(session.entries(), ["t"]);
}

#[test]
fn put_nx_counts_the_tasks_of_the_owner_like_any_put() {
    let mut session = Session::start();
    assert_eq!(session.run("PMCPTASK.PUT T I d NX MAXTASKS 0"), format!("-{}\r\n", no_room(0)));
    assert_eq!(session.run("PMCPTASK.PUT T I d NX MAXTASKS 1"), int(1));
    assert_eq!(session.run("PMCPTASK.PUT T I d NX MAXTASKS 1"), int(0));
    let before = session.everything();
    let full = session.run("PMCPTASK.PUT pmcp:tasks:o:u I d NX MAXTASKS 1");
    assert_eq!(full, format!("-{}\r\n", no_room(1)));
    assert_eq!(session.everything(), before);
}

// A write only while another task lives.

#[test]
fn held_writes_only_while_the_other_task_lives() {
    let mut session = Session::start();
    // Neither owner nor prefix has to be the same.
    for (lease, index) in [
        ("pmcp:tasks:o:lease", "pmcp:idx:o"),
        ("pmcp:tasks:p:q:lease", "pmcp:idx:p:q"),
        ("app:lease:tasks:name:x", "app:lease:idx:name"),
    ] {
        session.run("DEL T I");
        let put = format!("PMCPTASK.PUT T I d HELD {lease}");
        let refusal = format!("-{}\r\n", not_held(lease));
        let before = session.everything();
        assert_eq!(session.run(&put), refusal);
        assert_eq!(session.everything(), before);
        session.run(&format!("PMCPTASK.PUT {lease} {index} held PXAT {FUTURE} CREATED 1"));
        let lease_before = session.run(&format!("DUMP {lease}"));
        assert_eq!(session.run(&put), int(1));
        assert_eq!(session.run(&format!("{put} NX")), int(0));
        assert_eq!(session.run(&format!("{put} MAXTASKS 0")), int(2));
        assert_eq!(session.run(&format!("DUMP {lease}")), lease_before);
        assert_eq!(session.number(&format!("PEXPIRETIME {lease}")), FUTURE);
        session.run(&format!("PMCPTASK.DEL {lease} {index}"));
        let before = session.everything();
        // This comes before what the other options say.
        for options in ["", " NX", " MAXTASKS 0", " PXAT 1", " CREATED NEWEST"] {
            assert_eq!(session.run(&format!("{put}{options}")), refusal, "{options}");
        }
        assert_eq!(session.everything(), before);
    }
    assert_eq!(session.server.counter("refused_notheld"), 18);
    assert_eq!(session.server.counter("puts"), 9);
}

#[test]
fn held_ends_at_the_millisecond_of_the_other_task() {
    let mut session = Session::start();
    let at_ms = now_ms() + 150;
    session.run(&format!("PMCPTASK.PUT pmcp:tasks:o:lease I d PXAT {at_ms}"));
    loop {
        let before = now_ms();
        let reply = session.run("PMCPTASK.PUT T I d HELD pmcp:tasks:o:lease");
        if reply.starts_with("-NOTHELD ") {
            assert!(now_ms() >= at_ms);
            break;
        }
        // The server's rule: a key has expired once the clock is past its expiry.
        assert!(before <= at_ms, "{before} {at_ms}");
    }
}

#[test]
fn held_is_a_task_that_could_be_read_and_no_remains_of_one() {
    let mut session = Session::start();
    session.run("CONFIG SET pmcptask.reclaim no");
    session.run("PMCPTASK.PUT T I d");
    let lease = "pmcp:tasks:o:lease";
    let before = session.run("DUMP T");
    for (make, error) in [
        (format!("HSET {lease} version 1 data d expires_at 946684800"), not_held(lease)),
        (format!("HSET {lease} version 1"), not_held(lease)),
        (format!("HSET {lease} data d"), not_held(lease)),
        (format!("HSET {lease} version 01 data d"), not_held(lease)),
        (format!("ZADD I 5 {lease}"), not_held(lease)),
        (format!("SET {lease} text"), WRONG_TYPE.to_owned()),
        (format!("ZADD {lease} 1 a"), WRONG_TYPE.to_owned()),
    ] {
        session.run(&make);
        let made = session.run(&format!("DUMP {lease}"));
        let reply = session.run(&format!("PMCPTASK.PUT T I x HELD {lease}"));
        assert_eq!(reply, format!("-{error}\r\n"), "{make}");
        assert_eq!(session.run("DUMP T"), before, "{make}");
        assert_eq!(session.run(&format!("DUMP {lease}")), made, "{make}");
        session.run(&format!("DEL {lease}"));
    }
}

#[test]
fn held_with_the_key_of_the_task_itself_writes_an_existing_task_only() {
    let mut session = Session::start();
    let refusal = format!("-{}\r\n", not_held(TASK));
    assert_eq!(session.run("PMCPTASK.PUT T I d HELD T"), refusal);
    assert_eq!(session.run("PMCPTASK.PUT T I d NX HELD T"), refusal);
    assert_eq!(session.run("EXISTS T I"), int(0));
    session.run("PMCPTASK.PUT T I d CREATED 5");
    assert_eq!(session.run("PMCPTASK.PUT T I x HELD T"), int(2));
    assert_eq!(session.run("PMCPTASK.PUT T I y NX HELD T"), int(0));
    assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", 2, 5, "x")]));
    session.run("HSET T expires_at 946684800");
    assert_eq!(session.run("PMCPTASK.PUT T I y HELD T"), refusal);
    let at_ms = now_ms() + 50;
    session.run(&format!("PMCPTASK.PUT T I d PXAT {at_ms}"));
    sleep_until(at_ms + 1);
    assert_eq!(session.run("PMCPTASK.PUT T I y HELD T"), refusal);
}

#[test]
fn word_held_is_data_and_an_owner_like_any_other() {
    let mut session = Session::start();
    assert_eq!(session.run("PMCPTASK.PUT T I HELD"), int(1));
    assert_eq!(session.run("PMCPTASK.GET T"), record(1, "HELD"));
    assert_eq!(session.run("PMCPTASK.PUT T I HELD HELD T"), int(2));
    assert_eq!(session.run("PMCPTASK.GET T"), record(2, "HELD"));
    assert_eq!(session.run("PMCPTASK.PUT HELD:tasks:HELD:HELD HELD:idx:HELD HELD HELD T"), int(1));
    assert_eq!(session.run("PMCPTASK.PUT T I d HELD HELD:tasks:HELD:HELD"), int(3));
}

// A deletion of one version only.

#[test]
fn del_of_a_version_deletes_that_version_only() {
    let mut session = Session::start();
    session.run(&format!("PMCPTASK.PUT T I one PXAT {FUTURE}"));
    session.run("PMCPTASK.PUT T I two");
    session.store("other", 1);
    let before = session.everything();
    for other in [0, 1, 3, i64::MAX] {
        let reply = session.run(&format!("PMCPTASK.DEL T I VERSION {other}"));
        assert_eq!(reply, cas_reply("CONFLICT", 2), "{other}");
        assert_eq!(session.everything(), before, "{other}");
    }
    assert_eq!(session.run("PMCPTASK.DEL T I VERSION 2"), cas_reply("OK", 2));
    assert_eq!(session.run("EXISTS T"), int(0));
    assert_eq!(session.entries(), ["other"]);
    assert_eq!(session.run("PMCPTASK.DEL pmcp:tasks:o:other I VERSION 1"), cas_reply("OK", 1));
    assert_eq!(session.run("EXISTS I"), int(0));
    let counted = ["deletes", "del_conflict", "del_missing"].map(|name| session.server.counter(name));
    assert_eq!(counted, [2, 4, 0]);
}

#[test]
fn del_of_a_version_changes_nothing_where_there_is_no_task() {
    let mut session = Session::start();
    // Plain DEL would remove the entry.
    session.run("ZADD I 5 t");
    let before = session.everything();
    for version in [0, 1] {
        let reply = session.run(&format!("PMCPTASK.DEL T I VERSION {version}"));
        assert_eq!(reply, cas_reply("MISSING", 0), "{version}");
        assert_eq!(session.everything(), before, "{version}");
    }
    session.run("HSET T version 1 data d expires_at 946684800");
    assert_eq!(session.run("PMCPTASK.DEL T I VERSION 1"), cas_reply("MISSING", 0));
    assert_eq!(session.server.counter("del_missing"), 3);
    assert_eq!(session.server.counter("deletes"), 0);
}

// A trim.

#[test]
fn trim_keeps_the_newest_and_removes_the_oldest_first() {
    for mut session in Session::of_each_encoding() {
        session.store_all(&["e", "d", "c", "b", "a"]);
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 5"), int(0));
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 6"), int(0));
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 9223372036854775807"), int(0));
        assert_eq!(session.ids("PMCPTASK.LIST I"), ["e", "d", "c", "b", "a"]);
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 4"), int(1));
        assert_eq!(session.ids("PMCPTASK.LIST I"), ["d", "c", "b", "a"]);
        assert_eq!(session.run("EXISTS pmcp:tasks:o:e"), int(0));
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 1"), int(3));
        assert_eq!(session.ids("PMCPTASK.LIST I"), ["a"]);
        assert_eq!(session.run("DBSIZE"), int(2));
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 0"), int(1));
        assert_eq!(session.run("DBSIZE"), int(0));
        assert_eq!(session.server.counter("tasks_trimmed"), 5);
        assert_eq!(session.server.counter("trims"), 6);
    }
}

#[test]
fn trim_keeps_what_the_newest_page_of_a_list_shows_where_creation_times_are_equal() {
    for mut session in Session::of_each_encoding() {
        for (task_id, created_ms) in [("b", 2), ("z", 1), ("c", 2), ("a", 2), ("B", 2), ("y", 3)] {
            session.store(task_id, created_ms);
        }
        for keep in (0..6).rev() {
            let kept = session.ids(&format!("PMCPTASK.LIST I REV COUNT {keep}"));
            assert_eq!(session.run(&format!("PMCPTASK.TRIM I KEEP {keep}")), int(1), "{keep}");
            assert_eq!(session.ids("PMCPTASK.LIST I REV"), kept, "{keep}");
        }
    }
}

#[test]
fn trim_removes_as_many_as_count_says_and_the_rest_in_further_calls() {
    for mut session in Session::of_each_encoding() {
        session.store_all(&["a", "b", "c", "d", "e", "f"]);
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 1 COUNT 0"), int(0));
        assert_eq!(session.ids("PMCPTASK.LIST I").len(), 6);
        for (left, removed) in [(&["c", "d", "e", "f"][..], 2), (&["e", "f"], 2), (&["f"], 1), (&["f"], 0)] {
            assert_eq!(session.run("PMCPTASK.TRIM I KEEP 1 COUNT 2"), int(removed), "{left:?}");
            assert_eq!(session.ids("PMCPTASK.LIST I"), left);
        }
        assert_eq!(session.run("PMCPTASK.TRIM I COUNT 9223372036854775807 KEEP 0"), int(1));
    }
}

#[test]
fn trim_removes_a_thousand_tasks_at_most_where_it_is_not_told_how_many() {
    for mut session in Session::of_each_encoding() {
        for n in 0..2_010 {
            // The same creation time for many tasks.
            session.store(&format!("t{n:04}"), n / 700);
        }
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 5"), int(1_000));
        assert_eq!(session.ids("PMCPTASK.LIST I COUNT 1"), ["t1000"]);
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 5"), int(1_000));
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 5"), int(5));
        assert_eq!(session.ids("PMCPTASK.LIST I"), ["t2005", "t2006", "t2007", "t2008", "t2009"]);
        assert_eq!(session.run("DBSIZE"), int(6));
    }
}

#[test]
fn trim_neither_counts_nor_keeps_entries_and_hashes_that_have_outlived_their_task() {
    for mut session in Session::of_each_encoding() {
        session.run("CONFIG SET pmcptask.reclaim no");
        session.store_all(&["a", "b", "c"]);
        // Between the tasks, and newer than all of them.
        session.run("ZADD I 1.5 dead1 2.5 dead2 7 dead3 8 dead4");
        session.run("HSET pmcp:tasks:o:lapsed version 1 data d expires_at 946684800");
        session.run("HSET pmcp:tasks:o:lapsed-too version 1 data d expires_at 946684800");
        session.run("ZADD I 1.7 lapsed 9 lapsed-too");
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 3"), int(0));
        assert_eq!(session.ids("PMCPTASK.LIST I"), ["a", "b", "c"]);
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 1"), int(2));
        assert_eq!(session.ids("PMCPTASK.LIST I"), ["c"]);
        // What is older than the last task that went has gone too.
        let entries = session.entries();
        for gone in ["a", "b", "dead1", "lapsed"] {
            assert!(!entries.contains(&gone.to_owned()), "{entries:?}");
            assert_eq!(session.run(&format!("EXISTS pmcp:tasks:o:{gone}")), int(0), "{gone}");
        }
        // What is newer than a task that stays is not looked at for removal.
        assert_eq!(&entries[entries.len() - 3..], ["dead3", "dead4", "lapsed-too"]);
        assert_eq!(session.run("EXISTS pmcp:tasks:o:lapsed-too"), int(1));
        assert_eq!(session.server.counter("tasks_trimmed"), 2);
    }
}

#[test]
fn trim_of_dead_entries_only_removes_no_task() {
    let mut session = Session::start();
    session.run("CONFIG SET pmcptask.reclaim no");
    session.run("ZADD I 1 dead1 2 dead2");
    session.run("HSET pmcp:tasks:o:lapsed version 1 data d expires_at 946684800");
    session.run("ZADD I 3 lapsed");
    assert_eq!(session.run("PMCPTASK.TRIM I KEEP 0"), int(0));
    assert_eq!(session.run("DBSIZE"), int(0));
    assert_eq!(session.server.counter("tasks_trimmed"), 0);
}

#[test]
fn trim_counts_a_corrupt_hash_as_a_task() {
    for mut session in Session::of_each_encoding() {
        session.store_all(&["a", "b", "c", "d"]);
        session.run("HDEL pmcp:tasks:o:a data");
        session.run("HSET pmcp:tasks:o:d version 0");
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 2"), int(2));
        assert_eq!(session.entries(), ["c", "d"]);
        assert_eq!(session.run("EXISTS pmcp:tasks:o:a"), int(0));
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 1"), int(1));
        assert_eq!(session.entries(), ["d"]);
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 0"), int(1));
        assert_eq!(session.run("DBSIZE"), int(0));
        assert_eq!(session.server.counter("refused_corrupt"), 0);
    }
}

#[test]
fn trim_leaves_alone_what_is_no_task_of_the_owner() {
    for mut session in Session::of_each_encoding() {
        session.store_all(&["a", "b"]);
        // What the Lua backend writes into the index of `o` for a task of `o:x`.
        assert_eq!(session.run("PMCPTASK.PUT pmcp:tasks:o:x:t pmcp:idx:o:x theirs"), int(1));
        session.run("ZADD I 0 x:t 1.5 x:u 9 x:v");
        session.run("ZADD I 0.5 text");
        session.run("SET pmcp:tasks:o:text value");
        session.run("PMCPTASK.PUT pmcp:tasks:p:t pmcp:idx:p theirs");
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 2"), int(0));
        assert_eq!(session.run("PMCPTASK.TRIM I KEEP 0"), int(2));
        let left: Vec<_> = session.entries().into_iter().filter(|entry| entry != "text").collect();
        assert_eq!(left, ["x:t", "x:u", "x:v"]);
        assert_eq!(session.run("PMCPTASK.GET pmcp:tasks:o:x:t"), record(1, "theirs"));
        assert_eq!(session.run("PMCPTASK.GET pmcp:tasks:p:t"), record(1, "theirs"));
        assert_eq!(session.run("GET pmcp:tasks:o:text"), bulk("value"));
    }
}

#[test]
fn trim_removes_tasks_whose_scores_others_have_written() {
    for mut session in Session::of_each_encoding() {
        let scores = ["-62135596800000", "-0.7", "-0.2", "10.2", "10.7", "9007199254740993", "inf"];
        let ids = ["a", "b", "c", "d", "e", "f", "g"];
        for (score, task_id) in scores.iter().zip(ids) {
            session.run(&format!("ZADD I {score} {task_id}"));
            session.run(&format!("HSET pmcp:tasks:o:{task_id} version 1 data d"));
        }
        for (n, gone) in ids.iter().enumerate() {
            assert_eq!(session.run("PMCPTASK.TRIM I KEEP 0 COUNT 1"), int(1), "{gone}");
            assert_eq!(session.entries(), ids[n + 1..], "{gone}");
        }
    }
}

// Capacity.

#[test]
fn maxtasks_refuses_a_new_task_and_never_an_existing_one() {
    let mut session = Session::start();
    let refusal = |max_tasks| format!("-{}\r\n", no_room(max_tasks));
    assert_eq!(session.run("PMCPTASK.PUT T I d MAXTASKS 0"), refusal(0));
    assert_eq!(session.run("EXISTS T I"), int(0));
    assert_eq!(session.run("PMCPTASK.PUT T I d MAXTASKS 1"), int(1));
    assert_eq!(session.run("PMCPTASK.PUT T I d MAXTASKS 1"), int(2));
    assert_eq!(session.run("PMCPTASK.PUT T I d MAXTASKS 0"), int(3));
    let before = session.everything();
    assert_eq!(session.run("PMCPTASK.PUT pmcp:tasks:o:t2 I d MAXTASKS 1"), refusal(1));
    assert_eq!(session.everything(), before);
    assert_eq!(session.run("PMCPTASK.PUT pmcp:tasks:o:t2 I d MAXTASKS 2"), int(1));
    assert_eq!(session.run("PMCPTASK.PUT pmcp:tasks:o:t3 I d MAXTASKS 2"), refusal(2));
    // The limit is per owner.
    assert_eq!(session.run("PMCPTASK.PUT pmcp:tasks:p:t pmcp:idx:p d MAXTASKS 1"), int(1));
    session.run("PMCPTASK.DEL T I");
    assert_eq!(session.run("PMCPTASK.PUT pmcp:tasks:o:t3 I d MAXTASKS 2"), int(1));
    assert_eq!(session.server.counter("refused_capacity"), 3);
}

#[test]
fn maxtasks_counts_neither_expired_tasks_nor_entries_without_one() {
    let mut session = Session::start();
    session.store("live", 1);
    session.run("PMCPTASK.PUT T I d CREATED 2");
    session.run("HSET T expires_at 946684800");
    session.run("ZADD I 3 stale 4 a:b");
    assert_eq!(session.run("PMCPTASK.PUT pmcp:tasks:o:new I d MAXTASKS 2"), int(1));
    assert!(session.run("PMCPTASK.PUT pmcp:tasks:o:newer I d MAXTASKS 2").starts_with("-CAPACITY "));
    // An expired task counts as new, even if its entry still exists.
    assert!(session.run("PMCPTASK.PUT T I d MAXTASKS 2").starts_with("-CAPACITY "));
    assert_eq!(session.run("PMCPTASK.PUT T I d MAXTASKS 3"), int(1));
}

#[test]
fn record_beyond_the_setting_is_refused() {
    let mut session = Session::start();
    session.run("CONFIG SET pmcptask.max-record-bytes 10");
    assert_eq!(session.run("PMCPTASK.PUT T I 0123456789"), int(1));
    let before = session.everything();
    let refusal = "-CAPACITY data: expected at most 10 bytes (pmcptask.max-record-bytes), got 11\r\n";
    assert_eq!(session.run("PMCPTASK.PUT T I 0123456789a"), refusal);
    assert_eq!(session.run("PMCPTASK.CAS T I 1 0123456789a"), refusal);
    assert_eq!(session.everything(), before);
    session.run("CONFIG SET pmcptask.max-record-bytes 11");
    assert_eq!(session.run("PMCPTASK.CAS T I 1 0123456789a"), cas_reply("OK", 2));
    // A stored record is read whatever the setting says.
    session.run("CONFIG SET pmcptask.max-record-bytes 1");
    assert_eq!(session.run("PMCPTASK.GET T"), record(2, "0123456789a"));
    assert_eq!(session.server.counter("refused_capacity"), 2);
}

// Keys that hold something else.

#[test]
fn key_of_another_type_is_refused_in_the_servers_words() {
    let mut session = Session::start();
    let writes = [
        "PMCPTASK.PUT T I d",
        "PMCPTASK.PUT T I d NX",
        "PMCPTASK.CAS T I 1 d",
        "PMCPTASK.DEL T I",
        "PMCPTASK.DEL T I VERSION 1",
        "PMCPTASK.EXPIRE T I PERSIST",
        "PMCPTASK.EXPIRE T I PXAT 1",
    ];
    let of_task = &["PMCPTASK.GET T"][..];
    let of_index = &["PMCPTASK.LIST I", "PMCPTASK.LIST I NODATA", "PMCPTASK.TRIM I KEEP 0"][..];
    let mut refused = 0;
    for (key, make, others) in [
        ("T", "SET T text", of_task),
        ("T", "ZADD T 1 a", of_task),
        ("T", "XADD T * f v", of_task),
        ("I", "SET I text", of_index),
        ("I", "HSET I f v", of_index),
    ] {
        session.run(make);
        let before = session.everything();
        for line in writes.iter().chain(others) {
            refused += 1;
            assert_eq!(session.run(line), format!("-{WRONG_TYPE}\r\n"), "{make}: {line}");
        }
        assert_eq!(session.everything(), before, "{make}");
        session.run(&format!("DEL {key}"));
    }
    assert_eq!(session.server.counter("refused_wrongtype"), refused);
}

#[test]
fn corrupt_hash_is_refused_by_its_key_and_removed_by_del() {
    let mut session = Session::start();
    let versions = ["0", "-1", "abc", "01", "1.0", "9223372036854775808"];
    let mut hashes: Vec<_> = versions
        .iter()
        .map(|version| (format!("HSET T version {version} data d"), CORRUPT_VERSION))
        .collect();
    hashes.push(("HSET T data d".to_owned(), CORRUPT_VERSION));
    hashes.push(("HSET T version 1".to_owned(), CORRUPT_DATA));
    hashes.push(("HSET T version 1 Data d".to_owned(), CORRUPT_DATA));
    let cases = u64::try_from(hashes.len()).unwrap();
    let mut refusals = 0;
    for (make, refusal) in hashes {
        session.run(&make);
        session.run("ZADD I 5 t");
        session.store("sound", 6);
        let before = session.everything();
        let refused = [
            "PMCPTASK.GET T",
            "PMCPTASK.PUT T I d",
            "PMCPTASK.PUT T I d PXAT 1",
            "PMCPTASK.PUT T I d NX",
            "PMCPTASK.CAS T I 1 d",
            "PMCPTASK.DEL T I VERSION 1",
            "PMCPTASK.DEL T I VERSION 0",
            "PMCPTASK.EXPIRE T I PERSIST",
            "PMCPTASK.EXPIRE T I PXAT 1",
        ];
        for line in refused {
            assert_eq!(session.run(line), format!("-{refusal}\r\n"), "{make}: {line}");
        }
        refusals += refused.len();
        assert_eq!(session.ids("PMCPTASK.LIST I"), ["sound"], "{make}");
        assert_eq!(session.everything(), before, "{make}");
        assert_eq!(session.run("PMCPTASK.DEL T I"), int(1), "{make}");
        assert_eq!(session.run("EXISTS T"), int(0), "{make}");
        assert_eq!(session.run("ZRANGE I 0 -1"), array(&[bulk("sound")]), "{make}");
        session.run("PMCPTASK.DEL pmcp:tasks:o:sound I");
    }
    assert_eq!(session.server.counter("refused_corrupt"), u64::try_from(refusals).unwrap());
    assert_eq!(session.server.counter("corrupt_records_skipped"), cases);
}

#[test]
fn version_is_exact_to_the_largest_and_does_not_wrap() {
    let mut session = Session::start();
    for write in ["PMCPTASK.PUT T I new", "PMCPTASK.CAS T I 9223372036854775806 new"] {
        session.run("HSET T version 9223372036854775806 data d");
        session.run("ZADD I 5 t");
        let reply = session.run(write);
        assert!(reply.ends_with(&int(i64::MAX)), "{reply}");
        assert_eq!(session.run("PMCPTASK.GET T"), record(i64::MAX, "new"));
        assert_eq!(session.run("PMCPTASK.LIST I"), array(&[listed("t", i64::MAX, 5, "new")]));
        let before = session.everything();
        assert_eq!(session.run("PMCPTASK.PUT T I x"), format!("-{LARGEST_VERSION}\r\n"));
        assert_eq!(session.run("PMCPTASK.CAS T I 9223372036854775807 x"), format!("-{LARGEST_VERSION}\r\n"));
        let conflict = session.run("PMCPTASK.CAS T I 9223372036854775806 x");
        assert_eq!(conflict, cas_reply("CONFLICT", i64::MAX));
        assert_eq!(session.everything(), before);
        session.run("PMCPTASK.DEL T I");
    }
    // More than a double can hold exactly.
    session.run("HSET T version 9007199254740993 data d");
    assert_eq!(
        session.run("PMCPTASK.CAS T I 9007199254740992 x"),
        cas_reply("CONFLICT", 9_007_199_254_740_993)
    );
    assert_eq!(session.run("PMCPTASK.PUT T I x"), int(9_007_199_254_740_994));
}

// Arguments.

#[test]
fn keys_that_do_not_belong_together_are_refused() {
    let mut session = Session::start();
    session.run("PMCPTASK.PUT T I d");
    let before = session.everything();
    let mut refused = 0;
    for (task, index, refusal) in [
        ("t", "I", NO_TASK_KEY),
        ("pmcp:tasks:t", "I", NO_TASK_KEY),
        ("pmcp:idx:o", "I", NO_TASK_KEY),
        ("pmcp:idx:x:tasks:o:t", "I", NO_TASK_KEY),
        ("pmcp:tasks:o:", "I", NO_TASK_ID),
        ("T", "o", NO_INDEX_KEY),
        ("T", "T", NO_INDEX_KEY),
        ("T", "pmcp:index:o", NO_INDEX_KEY),
        ("T", "pmcp:idx:p", OTHER_INDEX),
        ("T", "pmcp:idx:", OTHER_INDEX),
        ("T", "pmcp:idx:o:t", OTHER_INDEX),
        ("T", "PMCP:idx:o", OTHER_INDEX),
        ("T", "other:idx:o", OTHER_INDEX),
        ("pmcp:tasks:o:x:t", "I", OTHER_INDEX),
    ] {
        for line in [
            format!("PMCPTASK.PUT {task} {index} d"),
            format!("PMCPTASK.CAS {task} {index} 1 d"),
            format!("PMCPTASK.DEL {task} {index}"),
            format!("PMCPTASK.EXPIRE {task} {index} PERSIST"),
        ] {
            assert_eq!(session.run(&line), format!("-{refusal}\r\n"), "{line}");
            refused += 1;
        }
    }
    assert_eq!(session.run("PMCPTASK.GET I"), format!("-{NO_TASK_KEY}\r\n"));
    assert_eq!(session.run("PMCPTASK.GET pmcp:tasks:o:"), format!("-{NO_TASK_ID}\r\n"));
    assert_eq!(session.run("PMCPTASK.LIST T"), format!("-{NO_INDEX_KEY}\r\n"));
    assert_eq!(session.run("PMCPTASK.LIST o"), format!("-{NO_INDEX_KEY}\r\n"));
    assert_eq!(session.run("PMCPTASK.TRIM T KEEP 0"), format!("-{NO_INDEX_KEY}\r\n"));
    assert_eq!(session.run("PMCPTASK.TRIM o KEEP 0"), format!("-{NO_INDEX_KEY}\r\n"));
    assert_eq!(session.everything(), before);
    assert_eq!(session.server.counter("refused_err"), refused + 6);
}

#[test]
fn owners_and_prefixes_are_any_bytes() {
    let mut session = Session::start();
    for (prefix, owner) in
        [("pmcp", "tenant:alice"), ("a:b", "urn:x:y"), ("", ""), ("{p}", "{a} b"), ("é", "auth0|x\0\u{7f}")]
    {
        let (task, index) = (format!("{prefix}:tasks:{owner}:t"), format!("{prefix}:idx:{owner}"));
        assert_eq!(
            session.wire.call(&["PMCPTASK.PUT", &task, &index, "d", "CREATED", "5"]),
            int(1),
            "{task:?}"
        );
        assert_eq!(session.wire.call(&["PMCPTASK.LIST", &index]), array(&[listed("t", 1, 5, "d")]));
        assert_eq!(session.wire.call(&["PMCPTASK.GET", &task]), record(1, "d"));
        assert_eq!(session.wire.call(&["PMCPTASK.EXPIRE", &task, &index, "PERSIST"]), int(1));
        assert_eq!(session.wire.call(&["PMCPTASK.DEL", &task, &index]), int(1));
        assert_eq!(session.wire.call(&["PMCPTASK.PUT", &task, &index, "d", "NX"]), int(1));
        assert_eq!(session.wire.call(&["PMCPTASK.TRIM", &index, "KEEP", "0"]), int(1));
    }
    assert_eq!(session.run("DBSIZE"), int(0));
}

#[test]
fn argument_error_names_the_argument_what_was_expected_and_what_came() {
    let mut session = Session::start();
    session.run("PMCPTASK.PUT T I d");
    let before = session.everything();
    let refusals: Vec<(&str, String)> = vec![
        ("PUT T I d PXAT", format!("ERR PXAT: expected {MS}, got nothing")),
        ("PUT T I d PXAT soon", format!("ERR PXAT: expected {MS}, got 'soon'")),
        ("PUT T I d PXAT -1", format!("ERR PXAT: expected {MS}, got '-1'")),
        ("PUT T I d PXAT 1.5", format!("ERR PXAT: expected {MS}, got '1.5'")),
        ("PUT T I d PXAT 01", format!("ERR PXAT: expected {MS}, got '01'")),
        ("PUT T I d PXAT 9223372036854775808", format!("ERR PXAT: expected {MS}, got '9223372036854775808'")),
        ("PUT T I d PXAT PERSIST", format!("ERR PXAT: expected {MS}, got 'PERSIST'")),
        ("PUT T I d PXAT 1 PERSIST", TWO_EXPIRIES.to_owned()),
        ("PUT T I d PERSIST pxat 1", TWO_EXPIRIES.to_owned()),
        ("PUT T I d PXAT 1 PXAT 1", TWO_EXPIRIES.to_owned()),
        ("PUT T I d PERSIST PERSIST", TWO_EXPIRIES.to_owned()),
        ("PUT T I d CREATED", format!("ERR CREATED: expected {CREATED_TIME}, got nothing")),
        ("PUT T I d CREATED -1", format!("ERR CREATED: expected {CREATED_TIME}, got '-1'")),
        (
            "PUT T I d CREATED 9007199254740992",
            format!("ERR CREATED: expected {CREATED_TIME}, got '9007199254740992'"),
        ),
        ("PUT T I d CREATED 1 CREATED 1", "ERR CREATED: expected one, got two".to_owned()),
        ("PUT T I d CREATED newer", format!("ERR CREATED: expected {CREATED_TIME}, got 'newer'")),
        ("PUT T I d CREATED NEWEST CREATED 1", "ERR CREATED: expected one, got two".to_owned()),
        ("PUT T I d NEWEST", format!("{OF_PUT} 'NEWEST'")),
        ("PUT T I d HELD", format!("ERR HELD: expected {A_TASK_KEY}, got nothing")),
        ("PUT T I d HELD lease", format!("ERR HELD: expected {A_TASK_KEY}, got 'lease'")),
        ("PUT T I d HELD T HELD T", "ERR HELD: expected one, got two".to_owned()),
        ("CAS T I 1 d HELD T", format!("{OF_CAS} 'HELD'")),
        ("PUT T I d MAXTASKS", format!("ERR MAXTASKS: expected {INTEGER}, got nothing")),
        ("PUT T I d MAXTASKS -1", format!("ERR MAXTASKS: expected {INTEGER}, got '-1'")),
        ("PUT T I d MAXTASKS many", format!("ERR MAXTASKS: expected {INTEGER}, got 'many'")),
        ("PUT T I d MAXTASKS 1 MAXTASKS 1", "ERR MAXTASKS: expected one, got two".to_owned()),
        ("PUT T I d TTL 5", format!("{OF_PUT} 'TTL'")),
        ("PUT T I d {}", format!("{OF_PUT} 2 bytes that are not shown")),
        ("PUT T I d NX NX", "ERR NX: expected one, got two".to_owned()),
        ("PUT T I d NX 1", format!("{OF_PUT} '1'")),
        ("PUT T I d XX", format!("{OF_PUT} 'XX'")),
        // Also where the options say not to write.
        ("PUT T I d NX PXAT soon", format!("ERR PXAT: expected {MS}, got 'soon'")),
        ("CAS T I one d", format!("ERR expected-version: expected {INTEGER}, got 'one'")),
        ("CAS T I -1 d", format!("ERR expected-version: expected {INTEGER}, got '-1'")),
        (
            "CAS T I 9223372036854775808 d",
            format!("ERR expected-version: expected {INTEGER}, got '9223372036854775808'"),
        ),
        ("CAS T I 1 d PXAT x", format!("ERR PXAT: expected {MS}, got 'x'")),
        ("CAS T I 1 d PERSIST PXAT 1", TWO_EXPIRIES.to_owned()),
        ("CAS T I 1 d CREATED x", format!("ERR CREATED: expected {CREATED_TIME}, got 'x'")),
        ("CAS T I 1 d MAXTASKS 5", format!("{OF_CAS} 'MAXTASKS'")),
        ("CAS T I 1 d NX", format!("{OF_CAS} 'NX'")),
        ("DEL T I x", format!("{OF_DEL} 'x'")),
        ("DEL T I 1", format!("{OF_DEL} '1'")),
        ("DEL T I VERSION", format!("ERR VERSION: expected {INTEGER}, got nothing")),
        ("DEL T I VERSION -1", format!("ERR VERSION: expected {INTEGER}, got '-1'")),
        ("DEL T I VERSION one", format!("ERR VERSION: expected {INTEGER}, got 'one'")),
        ("DEL T I VERSION 1 VERSION 1", "ERR VERSION: expected one, got two".to_owned()),
        ("DEL T I VERSION 1 1", format!("{OF_DEL} '1'")),
        ("EXPIRE T I PXAT", format!("ERR PXAT: expected {MS}, got nothing")),
        ("EXPIRE T I PXAT soon", format!("ERR PXAT: expected {MS}, got 'soon'")),
        ("EXPIRE T I PXAT -1", format!("ERR PXAT: expected {MS}, got '-1'")),
        ("EXPIRE T I PXAT 1 PERSIST", TWO_EXPIRIES.to_owned()),
        ("EXPIRE T I PERSIST PERSIST", TWO_EXPIRIES.to_owned()),
        ("EXPIRE T I PXAT 1 PXAT 1", TWO_EXPIRIES.to_owned()),
        ("EXPIRE T I 4102444800123", format!("{OF_EXPIRE} '4102444800123'")),
        ("EXPIRE T I PERSIST NX", format!("{OF_EXPIRE} 'NX'")),
        ("TRIM I COUNT 1", format!("ERR KEEP: expected {INTEGER}, got nothing")),
        ("TRIM I KEEP -1", format!("ERR KEEP: expected {INTEGER}, got '-1'")),
        ("TRIM I KEEP COUNT 1", format!("ERR KEEP: expected {INTEGER}, got 'COUNT'")),
        ("TRIM I KEEP 1 KEEP 1", "ERR KEEP: expected one, got two".to_owned()),
        ("TRIM I COUNT 1 KEEP", format!("ERR KEEP: expected {INTEGER}, got nothing")),
        ("TRIM I KEEP 1 COUNT", format!("ERR COUNT: expected {INTEGER}, got nothing")),
        ("TRIM I KEEP 1 COUNT few", format!("ERR COUNT: expected {INTEGER}, got 'few'")),
        ("TRIM I KEEP 1 COUNT 1 COUNT 1", "ERR COUNT: expected one, got two".to_owned()),
        ("TRIM I 5 5", format!("{OF_TRIM} '5'")),
        ("TRIM I KEEP 5 REV", format!("{OF_TRIM} 'REV'")),
        ("LIST I REV REV", "ERR REV: expected one, got two".to_owned()),
        ("LIST I AFTER", format!("ERR AFTER: expected {LISTED_MS}, got nothing")),
        ("LIST I AFTER x t", format!("ERR AFTER: expected {LISTED_MS}, got 'x'")),
        ("LIST I AFTER 5", "ERR AFTER: expected a task id after the creation time, got nothing".to_owned()),
        ("LIST I AFTER 5 t AFTER 5 t", "ERR AFTER: expected one, got two".to_owned()),
        ("LIST I COUNT", format!("ERR COUNT: expected {INTEGER}, got nothing")),
        ("LIST I COUNT -1", format!("ERR COUNT: expected {INTEGER}, got '-1'")),
        ("LIST I COUNT 1 COUNT 1", "ERR COUNT: expected one, got two".to_owned()),
        ("LIST I LIMIT 1", format!("{OF_LIST} 'LIMIT'")),
        ("LIST I NODATA NODATA", "ERR NODATA: expected one, got two".to_owned()),
    ];
    for (line, refusal) in &refusals {
        assert_eq!(session.run(&format!("PMCPTASK.{line}")), format!("-{refusal}\r\n"), "{line}");
    }
    let empty = session.wire.call(&["PMCPTASK.PUT", TASK, INDEX, "d", "PXAT", ""]);
    assert_eq!(empty, format!("-ERR PXAT: expected {MS}, got an empty string\r\n"));
    assert_eq!(session.everything(), before);
    assert_eq!(session.server.counter("refused_err"), u64::try_from(refusals.len()).unwrap() + 1);
}

#[test]
fn option_that_a_command_cannot_do_without_is_named_where_it_is_missing() {
    let mut session = Session::start();
    session.run("PMCPTASK.PUT T I d");
    let before = session.everything();
    let no_keep = format!("ERR KEEP: expected {INTEGER}, got nothing");
    assert_eq!(session.run("PMCPTASK.TRIM I COUNT 5"), format!("-{no_keep}\r\n"));
    for (name, line) in [("expire", "EXPIRE T I"), ("trim", "TRIM I"), ("trim", "TRIM I KEEP")] {
        let refusal = format!("-ERR wrong number of arguments for 'pmcptask.{name}' command\r\n");
        assert_eq!(session.run(&format!("PMCPTASK.{line}")), refusal, "{line}");
    }
    assert_eq!(session.everything(), before);
}

#[test]
fn wrong_number_of_arguments_is_refused_in_the_servers_words() {
    let mut session = Session::start();
    for line in [
        "PMCPTASK.PUT",
        "PMCPTASK.PUT T I",
        "PMCPTASK.CAS T I 1",
        "PMCPTASK.GET",
        "PMCPTASK.GET T x",
        "PMCPTASK.DEL T",
        "PMCPTASK.LIST",
        "PMCPTASK.EXPIRE",
        "PMCPTASK.EXPIRE T",
        "PMCPTASK.TRIM",
    ] {
        let name = line.split(' ').next().unwrap().to_lowercase();
        let refusal = format!("-ERR wrong number of arguments for '{name}' command\r\n");
        assert_eq!(session.run(line), refusal, "{line}");
    }
}

#[test]
fn expiry_that_is_no_timestamp_is_refused_and_never_repeated() {
    let mut session = Session::start();
    session.run("PMCPTASK.PUT T I d");
    let before = session.everything();
    for (value, came) in [
        (r#""secret""#, "another string"),
        (r#""""#, "another string"),
        (r#""2026-11-21""#, "another string"),
        ("5", "a number"),
        ("-5", "a number"),
        ("1.5", "a number"),
        ("true", "a boolean"),
        ("[]", "an array"),
        (r#"{"secret":1}"#, "an object"),
    ] {
        let json = format!(r#"{{"expiresAt":{value}}}"#);
        let refusal =
            format!("-ERR expiresAt of the record: expected an RFC 3339 timestamp or null, got {came}\r\n");
        assert_eq!(session.put_json(&json), refusal, "{value}");
        assert_eq!(session.wire.call(&["PMCPTASK.CAS", TASK, INDEX, "1", &json]), refusal, "{value}");
    }
    assert_eq!(session.everything(), before);
    assert_eq!(session.server.counter("refused_err"), 18);
}

// What others notice.

#[test]
fn refused_and_lost_calls_do_not_end_a_watch() {
    let mut session = Session::start();
    let mut other = session.server.wire();
    session.run("PMCPTASK.PUT T I d");
    session.run("WATCH T I");
    for command in [
        &["PMCPTASK.CAS", TASK, INDEX, "7", "x"][..],
        &["PMCPTASK.PUT", TASK, INDEX, "x", "PXAT", "y"],
        &["PMCPTASK.PUT", TASK, INDEX, r#"{"expiresAt":5}"#],
        &["PMCPTASK.PUT", "pmcp:tasks:o:t2", INDEX, "x", "MAXTASKS", "1"],
        &["PMCPTASK.DEL", "pmcp:tasks:o:t2", INDEX],
        &["PMCPTASK.PUT", TASK, INDEX, "x", "NX"],
        &["PMCPTASK.PUT", TASK, INDEX, "x", "HELD", "pmcp:tasks:o:t2"],
        &["PMCPTASK.PUT", TASK, INDEX, "x", "NX", "HELD", TASK],
        &["PMCPTASK.DEL", TASK, INDEX, "VERSION", "7"],
        &["PMCPTASK.DEL", "pmcp:tasks:o:t2", INDEX, "VERSION", "1"],
        &["PMCPTASK.EXPIRE", "pmcp:tasks:o:t2", INDEX, "PERSIST"],
        &["PMCPTASK.EXPIRE", TASK, INDEX, "PXAT", "y"],
        &["PMCPTASK.TRIM", INDEX, "KEEP", "1"],
        &["PMCPTASK.TRIM", INDEX, "KEEP", "0", "COUNT", "0"],
        &["PMCPTASK.GET", TASK],
        &["PMCPTASK.LIST", INDEX],
        &["PMCPTASK.LIST", INDEX, "NODATA"],
    ] {
        other.call(command);
    }
    session.run("MULTI");
    session.run("PING");
    assert_eq!(session.run("EXEC"), "*1\r\n+PONG\r\n");
    session.run("WATCH T");
    other.call(&["PMCPTASK.CAS", TASK, INDEX, "1", "x"]);
    session.run("MULTI");
    session.run("PING");
    assert_eq!(session.run("EXEC"), "*-1\r\n");
}

#[test]
fn keyspace_events_tell_of_every_change_and_of_no_refusal() {
    let mut session = Session::start();
    session.run("CONFIG SET notify-keyspace-events KEAd");
    let mut events = session.server.wire();
    events.call(&["PSUBSCRIBE", "__key*__:*"]);
    for line in [
        "PMCPTASK.PUT T I d PXAT",
        "PMCPTASK.PUT T I d MAXTASKS 0",
        "PMCPTASK.PUT T I d HELD T",
        "PMCPTASK.CAS T I 1 d",
        "PMCPTASK.DEL T I",
        "PMCPTASK.PUT T I d PXAT 1",
        "PMCPTASK.PUT T I d",
        "PMCPTASK.CAS T I 7 d",
        "PMCPTASK.GET T",
        "PMCPTASK.LIST I",
        "PMCPTASK.CAS T I 1 d PXAT 4102444800123",
        "PMCPTASK.DEL T I",
        "PMCPTASK.DEL T I",
        "PMCPTASK.PUT T I d",
        "PMCPTASK.PUT T I d PXAT 1",
        "PMCPTASK.EXPIRE T I PERSIST",
        "PMCPTASK.DEL T I VERSION 1",
        "PMCPTASK.TRIM I KEEP 0",
        "PMCPTASK.PUT T I d NX",
        "PMCPTASK.PUT T I d NX",
        "PMCPTASK.EXPIRE T I PXAT 4102444800123",
        // The time is the same as before.
        "PMCPTASK.EXPIRE T I PXAT 4102444800123",
        "PMCPTASK.EXPIRE T I PERSIST",
        "PMCPTASK.EXPIRE T I PXAT",
        "PMCPTASK.EXPIRE T I PXAT 1",
        "PMCPTASK.PUT T I d",
        "PMCPTASK.DEL T I VERSION 2",
        "PMCPTASK.DEL T I VERSION 1",
        "PMCPTASK.PUT T I d",
        "PMCPTASK.TRIM I KEEP 1",
        "PMCPTASK.TRIM I KEEP 0",
        "PMCPTASK.TRIM I KEEP 0",
    ] {
        session.run(line);
    }
    let of_expire = ["put", "expire", "expire", "expire", "del"];
    let of_others = ["put", "del", "put", "del"];
    for event in ["put", "cas", "del", "put", "del"].into_iter().chain(of_expire).chain(of_others) {
        let event = format!("pmcptask.{event}");
        let by_key = [format!("__keyspace@0__:{TASK}"), event.clone()];
        let by_event = [format!("__keyevent@0__:{event}"), TASK.to_owned()];
        for [channel, message] in [by_key, by_event] {
            let expected = array(&[bulk("pmessage"), bulk("__key*__:*"), bulk(&channel), bulk(&message)]);
            assert_eq!(events.receive().unwrap(), expected);
        }
    }
    // There was no other message.
    session.run("PUBLISH __key__:end end");
    assert!(events.receive().unwrap().contains("__key__:end"));
}

#[test]
fn events_of_this_module_are_of_class_module() {
    let mut session = Session::start();
    session.run("CONFIG SET notify-keyspace-events Kgh");
    let mut events = session.server.wire();
    events.call(&["PSUBSCRIBE", "__key*__:*"]);
    session.run("PMCPTASK.PUT T I d");
    session.run("CONFIG SET notify-keyspace-events Kd");
    session.run("PMCPTASK.PUT T I d");
    session.run("PUBLISH __key__:end end");
    assert!(events.receive().unwrap().contains("pmcptask.put"));
    assert!(events.receive().unwrap().contains("__key__:end"));
}
