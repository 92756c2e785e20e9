//! The module acknowledges no write that cannot reach replicas and the append-only file. It warns the
//! operator if a restart would lose what the file holds.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use pmcptask_tests::{Cluster, INDEX, Server, ServerOptions, StartError, TASK, Wire, holds_within, skipped};

/// The module checks the ACL rules once a second.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn module_refuses_a_server_that_lacks_a_command_by_which_others_are_told_of_writes() {
    for command in ["HSET", "HDEL", "PEXPIREAT", "PERSIST", "DEL", "ZADD", "ZREM", "MULTI", "EXEC"] {
        for new_name in ["", "elsewhere"] {
            let options = ServerOptions::default().set("rename-command", &format!("{command} {new_name}"));
            let Err(StartError::Ended(log)) = Server::try_start_with(&options) else {
                panic!("the module loads without {command}");
            };
            assert!(log.contains(&format!("got a server without {command};")), "{log}");
        }
    }
    let options = Cluster::node_options().set("rename-command", "CLUSTER ");
    let Err(StartError::Ended(log)) = Server::try_start_with(&options) else {
        panic!("the module loads in a cluster without CLUSTER");
    };
    assert!(log.contains("got a server without CLUSTER;"), "{log}");
}

#[test]
fn module_loads_where_other_commands_are_renamed() {
    let options =
        ServerOptions::default().set("rename-command", "FLUSHALL ").set("rename-command", "CLUSTER ");
    let server = Server::start_with(&options);
    let mut wire = server.wire();
    assert_eq!(wire.call(&["PMCPTASK.PUT", TASK, INDEX, "x"]), ":1\r\n");
    assert!(wire.call(&["PMCPTASK.LIST", INDEX]).starts_with("*1\r\n"));
}

/// Whether this server restores tasks from the append-only file although the default user may not write.
fn replays_whatever_the_default_user_may() -> bool {
    let mut server = with_users("user default off");
    let mut wire = admin(&server);
    assert_eq!(wire.call(&["PMCPTASK.PUT", TASK, INDEX, "x"]), ":1\r\n");
    server.stop();
    server.restart();
    // With the default user off, a server answers a PING, with an error, before it has loaded its data.
    let mut size = String::new();
    assert!(holds_within(PATIENCE, || {
        size = admin(&server).call(&["DBSIZE"]);
        !size.starts_with("-LOADING")
    }));
    size == ":2\r\n"
}

/// A server with an append-only file, these rules for the default user, and a user `admin` with
/// all permissions.
fn with_users(default: &str) -> Server {
    let admin = "user admin on >pw ~* &* +@all";
    let words = |rules: &str| rules.strip_prefix("user ").unwrap().to_owned();
    let options = ServerOptions::default().with_aof();
    Server::start_with(&options.set("user", &words(admin)).set("user", &words(default)))
}

fn admin(server: &Server) -> Wire {
    let mut wire = server.wire();
    assert_eq!(wire.call(&["AUTH", "admin", "pw"]), "+OK\r\n");
    wire
}

fn would_lose(wire: &mut Wire) -> bool {
    let info = wire.call(&["INFO", "pmcptask"]);
    info.contains("pmcptask_default_user_would_lose_writes:1\r\n")
}

#[test]
fn operator_hears_where_a_restart_would_lose_what_the_append_only_file_holds() {
    let is_right = replays_whatever_the_default_user_may();
    let server = with_users("user default on nopass ~* &* +@all");
    let mut wire = admin(&server);
    for (rules, is_safe) in [
        ("off resetkeys ~* &* +@all", true),
        ("off", true),
        ("reset off", false),
        ("reset off ~* &* +@all", true),
        ("reset on nopass ~other:* &* +@all", false),
        ("reset off ~pmcp:* +@all", true),
        ("reset off ~pmcp:* +@all -persist", false),
        ("reset off %R~pmcp:idx:* ~pmcp:tasks:* +@all", false),
        ("reset off ~* +@all", true),
        // The server adds these commands to the file.
        ("reset off ~* +@all -select", false),
        ("reset off ~* +@all -unlink", false),
    ] {
        assert_eq!(wire.run(&format!("ACL SETUSER default {rules}")), "+OK\r\n");
        let expected = !is_safe && !is_right;
        assert!(holds_within(PATIENCE, || would_lose(&mut wire) == expected), "{rules}");
    }
    // Prefixes count that a command has written with, and those of the settings. Without a file nothing can
    // be lost.
    wire.run("ACL SETUSER default reset off ~pmcp:* +@all");
    assert!(holds_within(PATIENCE, || !would_lose(&mut wire)));
    assert_eq!(wire.run("PMCPTASK.PUT shop:tasks:o:t shop:idx:o x"), ":1\r\n");
    assert!(holds_within(PATIENCE, || would_lose(&mut wire) != is_right));
    wire.run("ACL SETUSER default ~shop:*");
    assert!(holds_within(PATIENCE, || !would_lose(&mut wire)));
    wire.run("CONFIG SET pmcptask.prefixes jobs");
    assert!(holds_within(PATIENCE, || would_lose(&mut wire) != is_right));
    wire.run("CONFIG SET appendonly no");
    assert!(holds_within(PATIENCE, || !would_lose(&mut wire)));
    // One warning each time that the state changes to unsafe.
    let warnings = server.log().matches("a safe form is: ACL SETUSER default off ~* &* +@all").count();
    assert_eq!(warnings, if is_right { 0 } else { 6 }, "{}", server.log());
}

#[test]
fn server_that_is_about_to_drop_what_its_file_holds_says_so_first() {
    if replays_whatever_the_default_user_may() {
        skipped("server_that_is_about_to_drop_what_its_file_holds", "the server drops nothing");
        return;
    }
    let mut server = with_users("user default off");
    admin(&server).call(&["PMCPTASK.PUT", TASK, INDEX, "x"]);
    server.stop();
    let before = server.log().len();
    server.restart();
    // With the default user off, a server answers a PING, with an error, before it has loaded its data.
    let dropped = || server.log()[before..].find("NOPERM");
    assert!(holds_within(PATIENCE, || dropped().is_some()));
    let warned = server.log()[before..].find("a restart loses the tasks");
    assert!(warned.is_some() && warned < dropped(), "{}", server.log());
}
