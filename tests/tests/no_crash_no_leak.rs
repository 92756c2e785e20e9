//! Whatever happens inside the module, the server goes on, and no memory leaks.
//!
//! `PMCPTASK_LEAK_OPERATIONS` sets for how many operations memory is watched; the default is a million.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects)]

use std::env;
use std::time::Duration;

use pmcptask_tests::{INDEX, PROMISED, Server, ServerOptions, TASK, Wire, holds_within, now_ms};

#[test]
fn panic_in_a_command_is_an_error_reply_and_the_server_goes_on() {
    let server = Server::start();
    let mut wire = server.wire();
    assert_eq!(wire.call(&["PMCPTASK.PUT", TASK, INDEX, "data"]), ":1\r\n");
    assert_eq!(wire.call(&["CONFIG", "SET", "pmcptask.debug-panic", "1"]), "+OK\r\n");
    for (n, command) in [
        &["PMCPTASK.PUT", TASK, INDEX, "data"][..],
        &["PMCPTASK.CAS", TASK, INDEX, "1", "data"],
        &["PMCPTASK.GET", TASK],
        &["PMCPTASK.DEL", TASK, INDEX],
        &["PMCPTASK.LIST", INDEX],
        &["PMCPTASK.EXPIRE", TASK, INDEX, "PXAT", "1"],
        &["PMCPTASK.TRIM", INDEX, "KEEP", "0"],
        &["PMCPTASK.DEL", TASK, INDEX, "VERSION", "1"],
        &["PMCPTASK.WAIT", TASK, "1", "0"],
    ]
    .iter()
    .enumerate()
    {
        let reply = wire.call(command);
        assert!(reply.starts_with("-DEFECT the pmcptask module failed to run this command"), "{reply}");
        assert_eq!(wire.info_number("pmcptask", "pmcptask_panics"), u64::try_from(n).unwrap() + 1);
    }
    wire.call(&["CONFIG", "SET", "pmcptask.debug-panic", "0"]);
    assert_eq!(wire.call(&["PMCPTASK.GET", TASK]), "*2\r\n:1\r\n$4\r\ndata\r\n");
    // The log names the place. It does not contain the message, which could contain data.
    let log = server.log();
    assert!(log.contains("pmcptask: a panic at module/src/settings.rs:"), "{log}");
    assert!(!log.contains("asked for with"), "{log}");
}

#[test]
fn panic_behind_an_event_or_a_timer_is_logged_and_the_work_goes_on() {
    let server = Server::start();
    let mut wire = server.wire();
    wire.call(&["PMCPTASK.PUT", TASK, INDEX, "data"]);
    wire.call(&["PMCPTASK.PUT", "pmcp:tasks:o:u", INDEX, "data"]);
    wire.expire_soon(TASK);
    wire.call(&["CONFIG", "SET", "pmcptask.debug-panic", "1"]);
    assert!(holds_within(Duration::from_secs(5), || !wire.exists(TASK)));
    let logged = |what: &str| holds_within(Duration::from_secs(2), || server.log().contains(what));
    assert!(logged("the handler of a key event panicked"));
    assert!(logged("the handler of a server event panicked"));
    wire.call(&["CONFIG", "SET", "pmcptask.debug-panic", "0"]);
    wire.expire_soon("pmcp:tasks:o:u");
    assert!(holds_within(Duration::from_secs(5), || !wire.exists("pmcp:tasks:o:u")));
    assert!(holds_within(PROMISED, || { wire.call(&["ZSCORE", INDEX, "u"]).starts_with("$-1") }));
}

/// One round of all commands, with refused ones and expiries. It leaves the keys as they were.
fn round(wire: &mut Wire, n: usize) -> usize {
    let owner = format!("o{}", n % 50);
    let (task, index) = (format!("pmcp:tasks:{owner}:t{}", n % 1_000), format!("pmcp:idx:{owner}"));
    let json = r#"{"task":{"createdAt":"2026-01-01T00:00:00Z"},"expiresAt":"2099-01-01T00:00:00Z"}"#;
    let soon = (now_ms() + 20).to_string();
    let commands: [&[&str]; 28] = [
        &["PMCPTASK.PUT", &task, &index, json],
        &["PMCPTASK.PUT", &task, &index, "data", "PXAT", &soon],
        &["PMCPTASK.GET", &task],
        &["PMCPTASK.CAS", &task, &index, "7", "data"],
        &["PMCPTASK.CAS", &task, &index, "2", json, "CREATED", "5"],
        &["PMCPTASK.LIST", &index, "REV", "COUNT", "3"],
        &["PMCPTASK.LIST", &index, "AFTER", "5", "t"],
        &["PMCPTASK.PUT", &task, "pmcp:idx:other", "data"],
        &["PMCPTASK.PUT", &task, &index, r#"{"expiresAt":5}"#],
        &["PMCPTASK.PUT", &task, &index, "data", "PXAT", "soon"],
        &["PMCPTASK.PUT", &task, &index, "data", "MAXTASKS", "0", "PXAT", "1"],
        &["PMCPTASK.DEL", &task, &index],
        &["PMCPTASK.GET", &task],
        &["PMCPTASK.LIST", "pmcp:idx:nobody"],
        &["PMCPTASK.PUT", &task, &index, json, "NX"],
        &["PMCPTASK.PUT", &task, &index, json, "NX"],
        &["PMCPTASK.LIST", &index, "NODATA"],
        &["PMCPTASK.EXPIRE", &task, &index, "PXAT", &soon],
        &["PMCPTASK.EXPIRE", &task, &index, "PERSIST"],
        &["PMCPTASK.EXPIRE", &task, &index, "PXAT", "soon"],
        &["PMCPTASK.DEL", &task, &index, "VERSION", "7"],
        &["PMCPTASK.DEL", &task, &index, "VERSION", "1"],
        &["PMCPTASK.EXPIRE", &task, &index, "PERSIST"],
        &["PMCPTASK.PUT", &task, &index, "data"],
        &["PMCPTASK.TRIM", &index, "KEEP", "0", "COUNT", "9"],
        &["PMCPTASK.TRIM", &index, "KEEP", "few"],
        &["PMCPTASK.WAIT", &task, "1", "0"],
        &["PMCPTASK.WAIT", &task, "1", "never"],
    ];
    for command in commands {
        wire.send(command).unwrap();
    }
    commands.len()
}

fn run(wire: &mut Wire, operations: usize) {
    let mut done = 0;
    let mut n = 0;
    while done < operations {
        let mut sent = 0;
        for _ in 0..50 {
            n += 1;
            sent += round(wire, n);
        }
        // Too long for each round: an idle server looks for what has timed out `hz` times a second.
        let waits =
            ["PUT pmcp:tasks:w:t pmcp:idx:w x", "WAIT pmcp:tasks:w:t 1 1", "DEL pmcp:tasks:w:t pmcp:idx:w"];
        for line in waits {
            wire.send_line(&format!("PMCPTASK.{line}"));
            sent += 1;
        }
        for _ in 0..sent {
            wire.receive().unwrap();
        }
        done += sent;
    }
}

/// Used memory once all short-lived tasks have expired: the minimum over a second, because the module drops
/// its notes about tasks step by step.
fn settled_memory(wire: &mut Wire) -> u64 {
    assert!(holds_within(Duration::from_secs(5), || wire.call(&["DBSIZE"]) == ":0\r\n"));
    // The server creates a histogram for each command with its first call.
    wire.info_number("memory", "used_memory");
    let mut least = u64::MAX;
    holds_within(Duration::from_secs(1), || {
        least = least.min(wire.info_number("memory", "used_memory"));
        false
    });
    least
}

#[test]
fn a_million_operations_leave_used_memory_where_it_was() {
    let operations = env::var("PMCPTASK_LEAK_OPERATIONS").map_or(1_000_000, |number| number.parse().unwrap());
    // On a busy machine any command can be slow, and the server keeps the latest slow ones. Waits of 1 ms take 1/`hz` s.
    let options = ServerOptions::default().set("slowlog-log-slower-than", "-1").set("hz", "500");
    let server = Server::start_with(&options);
    let mut wire = server.wire();
    // Buffers and tables reach their size first.
    run(&mut wire, operations / 10);
    let before = settled_memory(&mut wire);
    run(&mut wire, operations);
    let after = settled_memory(&mut wire);
    // A leak of one allocation per hundred operations would be more.
    let allowed = u64::try_from(operations).unwrap() / 100;
    println!("{operations} operations; used memory before {before}, after {after}");
    assert!(after < before + allowed, "{before} bytes before, {after} after");
}
