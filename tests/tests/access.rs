//! What users with ACL rules may do, and how the client names each refusal of the server.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs;
use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{Error, RedisBackend};
use pmcptask_tests::refusals::OTHER_INDEX;
use pmcptask_tests::{
    Dice, EMPTY, OK, Server, ServerOptions, Wire, calling_module, holds_within, reason, skipped,
};

/// The rules that a user needs for the tasks of one owner.
const ALICE: &str = "~pmcp:tasks:alice:* ~pmcp:idx:alice -@all +pmcptask.put +pmcptask.cas +pmcptask.get \
                     +pmcptask.del +pmcptask.list +pmcptask.expire +pmcptask.trim +pmcptask.wait";

/// A server with one task each of `alice` and `bob`.
struct Guarded {
    admin: Wire,
    server: Server,
}

impl Guarded {
    fn start() -> Self {
        let server = Server::start();
        let mut guarded = Self { admin: server.wire(), server };
        for owner in ["alice", "bob"] {
            assert_eq!(
                guarded
                    .run(&format!("PMCPTASK.PUT pmcp:tasks:{owner}:t pmcp:idx:{owner} {owner}s CREATED 5")),
                ":1\r\n"
            );
        }
        guarded
    }

    fn run(&mut self, line: &str) -> String {
        self.admin.run(line)
    }

    /// A connection of a new user with these rules.
    fn user(&mut self, rules: &str) -> Wire {
        self.user_if_allowed(rules).unwrap_or_else(|| panic!("{rules}"))
    }

    /// The same, if the server takes the rules. Some exclude each other, such as a pattern after one for all keys.
    fn user_if_allowed(&mut self, rules: &str) -> Option<Wire> {
        if self.run(&format!("ACL SETUSER limited reset on >pw {rules}")) != "+OK\r\n" {
            return None;
        }
        let mut wire = self.server.wire();
        assert_eq!(wire.run("AUTH limited pw"), "+OK\r\n");
        Some(wire)
    }

    /// Everything that the server holds of both owners.
    fn everything(&mut self) -> Vec<String> {
        let mut state: Vec<_> = ["alice", "bob"]
            .iter()
            .flat_map(|owner| [format!("DUMP pmcp:tasks:{owner}:t"), format!("DUMP pmcp:idx:{owner}")])
            .map(|line| self.run(&line))
            .collect();
        state.push(self.run("DBSIZE"));
        state
    }

    /// A URL with the name and password of [`Guarded::user`].
    fn url(&self) -> String {
        self.server.url().replace("//", "//limited:pw@")
    }
}

/// The first rules, and four more at random.
fn random_rules(first: &str, more: &[&str], dice: &mut Dice) -> String {
    let mut rules = first.to_owned();
    for _ in 0..4 {
        rules = format!("{rules} {}", dice.pick(more));
    }
    rules
}

/// Every command on the task `t` of an owner, reads first.
fn all_commands(owner: &str) -> [String; 8] {
    let (task, index) = (format!("pmcp:tasks:{owner}:t"), format!("pmcp:idx:{owner}"));
    [
        format!("PMCPTASK.GET {task}"),
        format!("PMCPTASK.LIST {index}"),
        format!("PMCPTASK.WAIT {task} 0 0"),
        format!("PMCPTASK.PUT {task} {index} data"),
        format!("PMCPTASK.CAS {task} {index} 2 data"),
        format!("PMCPTASK.EXPIRE {task} {index} PERSIST"),
        format!("PMCPTASK.TRIM {index} KEEP 1"),
        format!("PMCPTASK.DEL {task} {index}"),
    ]
}

/// Every option on the task `t` of an owner that makes another call of a command, reads first.
fn all_options(owner: &str) -> [String; 6] {
    let (task, index) = (format!("pmcp:tasks:{owner}:t"), format!("pmcp:idx:{owner}"));
    [
        format!("PMCPTASK.LIST {index} NODATA"),
        format!("PMCPTASK.PUT {task} {index} data NX"),
        format!("PMCPTASK.PUT {task} {index} data CREATED NEWEST"),
        format!("PMCPTASK.PUT {task} {index} data HELD {task}"),
        format!("PMCPTASK.EXPIRE {task} {index} PXAT 1"),
        format!("PMCPTASK.DEL {task} {index} VERSION 1"),
    ]
}

fn is_denied(reply: &str) -> bool {
    reply.starts_with("-NOPERM ")
}

// Users.

#[test]
fn user_of_one_owner_can_do_everything_with_that_owners_tasks() {
    let mut guarded = Guarded::start();
    let mut alice = guarded.user(ALICE);
    let replies = all_commands("alice").map(|line| alice.run(&line));
    let expected = [
        "*2\r\n:1\r\n$6\r\nalices\r\n",
        "*1\r\n*4\r\n$1\r\nt\r\n:1\r\n:5\r\n$6\r\nalices\r\n",
        "*3\r\n+OK\r\n:1\r\n$6\r\nalices\r\n",
        ":2\r\n",
        "*2\r\n+OK\r\n:3\r\n",
        ":1\r\n",
        ":0\r\n",
        ":1\r\n",
    ];
    assert_eq!(replies, expected);
    assert_eq!(guarded.run("EXISTS pmcp:tasks:alice:t pmcp:idx:alice"), ":0\r\n");
    let replies = all_options("alice").map(|line| alice.run(&line));
    let expected = ["*0\r\n", ":1\r\n", ":2\r\n", ":3\r\n", ":1\r\n", "*2\r\n+MISSING\r\n:0\r\n"];
    assert_eq!(replies, expected);
}

#[test]
fn user_of_one_owner_can_do_nothing_with_the_tasks_of_another() {
    let mut guarded = Guarded::start();
    let mut alice = guarded.user(ALICE);
    let before = guarded.everything();
    for line in all_commands("bob").into_iter().chain(all_options("bob")) {
        let reply = alice.run(&line);
        assert!(is_denied(&reply), "{line}: {reply}");
        assert!(!reply.contains("bobs"), "{line}: {reply}");
    }
    assert_eq!(guarded.everything(), before);
    // The commands themselves work: the admin gets the list.
    assert!(guarded.run(&all_commands("bob")[1]).contains("bobs"));
}

#[test]
fn user_cannot_reach_another_owner_through_one_key_of_each() {
    let mut guarded = Guarded::start();
    let mut alice = guarded.user(ALICE);
    let before = guarded.everything();
    for (task, index) in [("alice", "bob"), ("bob", "alice")] {
        let keys = format!("pmcp:tasks:{task}:t pmcp:idx:{index}");
        for line in [
            format!("PMCPTASK.PUT {keys} data"),
            format!("PMCPTASK.CAS {keys} 1 data"),
            format!("PMCPTASK.DEL {keys}"),
            format!("PMCPTASK.DEL {keys} VERSION 1"),
            format!("PMCPTASK.EXPIRE {keys} PXAT 1"),
        ] {
            let reply = alice.run(&line);
            assert!(is_denied(&reply), "{line}: {reply}");
            // A user who may use both keys is refused as well, because the keys do not belong together.
            assert_eq!(guarded.run(&line), format!("-{OTHER_INDEX}\r\n"), "{line}");
        }
    }
    assert_eq!(guarded.everything(), before);
}

#[test]
fn user_may_run_only_the_commands_that_the_acl_names() {
    let mut guarded = Guarded::start();
    for allowed in ["put", "cas", "get", "del", "list", "expire", "trim", "wait"] {
        let mut user = guarded.user(&format!("~* -@all +pmcptask.{allowed}"));
        for line in all_commands("alice") {
            let is_allowed = line.to_lowercase().starts_with(&format!("pmcptask.{allowed} "));
            let reply = user.run(&line);
            assert_eq!(is_denied(&reply), !is_allowed, "+pmcptask.{allowed}: {line}: {reply}");
        }
    }
}

#[test]
fn user_who_may_only_read_keys_can_get_list_and_wait_and_not_write() {
    let mut guarded = Guarded::start();
    let mut reader = guarded.user("%R~pmcp:* +@all");
    let before = guarded.everything();
    let [get, list, wait, writes @ ..] = all_commands("alice");
    assert_eq!(reader.run(&get), "*2\r\n:1\r\n$6\r\nalices\r\n");
    assert!(reader.run(&list).starts_with("*1\r\n"));
    assert_eq!(reader.run(&wait), "*3\r\n+OK\r\n:1\r\n$6\r\nalices\r\n");
    for line in writes {
        let reply = reader.run(&line);
        assert!(is_denied(&reply), "{line}: {reply}");
    }
    assert_eq!(guarded.everything(), before);
}

#[test]
fn user_who_may_only_write_keys_can_put_and_del_and_learns_no_version_or_record() {
    let mut guarded = Guarded::start();
    let mut writer = guarded.user("%W~pmcp:* +@all");
    let [get, list, wait, put, cas, expire, trim, del] = all_commands("alice");
    for line in [get, list, wait, cas] {
        let reply = writer.run(&line);
        assert!(is_denied(&reply), "{line}: {reply}");
    }
    assert_eq!(writer.run(&put), ":2\r\n");
    assert_eq!(writer.run(&expire), ":1\r\n");
    assert_eq!(writer.run(&trim), ":0\r\n");
    assert_eq!(writer.run(&del), ":1\r\n");
    assert_eq!(writer.run(&put), ":1\r\n");
    assert_eq!(writer.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 0"), ":1\r\n");
}

#[test]
fn categories_cover_the_commands_where_the_server_has_them_for_modules() {
    let mut guarded = Guarded::start();
    let has_categories = !guarded.run("INFO server").contains("redis_version:7.0.");
    let all = all_commands("alice");
    for (category, allowed) in [
        ("+@read", [true, true, true, false, false, false, false, false]),
        ("+@write", [false, false, false, true, true, true, true, true]),
        ("+@fast", [true, false, false, false, false, false, false, false]),
        ("+@slow", [false, true, true, true, true, true, true, true]),
        ("+@blocking", [false, false, true, false, false, false, false, false]),
    ] {
        let mut user = guarded.user(&format!("~* -@all {category}"));
        for (line, allowed) in all.iter().zip(allowed) {
            let reply = user.run(line);
            // Redis 7.0 has no ACL categories for the commands of modules: only their names allow them.
            assert_eq!(!is_denied(&reply), allowed && has_categories, "{category}: {line}: {reply}");
        }
    }
    let [get, _, _, put, ..] = all;
    let mut user = guarded.user("~* -@all +@write -pmcptask.put +pmcptask.get");
    assert!(!is_denied(&user.run(&get)));
    assert!(is_denied(&user.run(&put)));
}

// Lists.

const NO_READ: &str = "NOPERM No permissions to read the key 'pmcp:tasks:alice:t2'";
/// May read the index of alice and one of her two tasks, and may use MULTI and scripts to try to get
/// around that.
const READS_ONE: &str =
    "~pmcp:idx:alice ~pmcp:tasks:alice:t -@all +pmcptask.list +pmcptask.get +multi +exec +eval +eval_ro";

#[test]
fn list_is_denied_by_the_name_of_the_first_task_that_the_user_may_not_read() {
    let mut guarded = Guarded::start();
    guarded.run("PMCPTASK.PUT pmcp:tasks:alice:t2 pmcp:idx:alice hidden CREATED 6");
    guarded.run("PMCPTASK.PUT pmcp:tasks:alice:t3 pmcp:idx:alice hidden CREATED 7");
    let before = guarded.everything();
    let denied = format!("-{NO_READ}\r\n");
    let mut user = guarded.user(READS_ONE);
    assert_eq!(user.run("PMCPTASK.LIST pmcp:idx:alice"), denied);
    assert_eq!(user.run("PMCPTASK.LIST pmcp:idx:alice AFTER 5 t COUNT 1"), denied);
    // Without data, a list still tells which tasks there are, and their versions.
    assert_eq!(user.run("PMCPTASK.LIST pmcp:idx:alice NODATA"), denied);
    // Tasks that the command does not look at need no permission.
    let first = user.run("PMCPTASK.LIST pmcp:idx:alice COUNT 1");
    assert_eq!(first, "*1\r\n*4\r\n$1\r\nt\r\n:1\r\n:5\r\n$6\r\nalices\r\n");
    assert!(user.run("PMCPTASK.LIST pmcp:idx:alice REV COUNT 1").contains("'pmcp:tasks:alice:t3'"));
    // Permission to write a key does not include reading it.
    let mut user = guarded
        .user("~pmcp:idx:alice ~pmcp:tasks:alice:t %W~pmcp:tasks:alice:t2 +pmcptask.list +pmcptask.get");
    assert_eq!(user.run("PMCPTASK.LIST pmcp:idx:alice"), denied);
    let info = guarded.run("INFO pmcptask");
    assert!(info.contains("pmcptask_refused_noperm:5\r\n"), "{info}");
    assert_eq!(guarded.everything(), before);
}

#[test]
fn list_shows_no_record_that_the_selector_with_its_key_may_not_get() {
    let mut guarded = Guarded::start();
    // The user may run EXISTS and TTL on the task's key, but not PMCPTASK.GET.
    let rules = "-@all (+pmcptask.list %R~pmcp:idx:*) (+exists +ttl %R~pmcp:tasks:*)";
    let mut user = guarded.user(rules);
    assert!(is_denied(&user.run("PMCPTASK.GET pmcp:tasks:alice:t")));
    let listed = user.run("PMCPTASK.LIST pmcp:idx:alice");
    assert!(is_denied(&listed) && listed.contains("'pmcp:tasks:alice:t'"), "{listed}");
    let mut user = guarded.user(&format!("{rules} (+pmcptask.get %R~pmcp:tasks:alice:*)"));
    assert!(user.run("PMCPTASK.LIST pmcp:idx:alice").contains("alices"));
}

/// With random rules, LIST shows a task exactly when GET returns it.
#[test]
fn list_shows_a_record_exactly_where_get_does() {
    const TASKS: [&str; 4] = ["t", "t1", "t2", "u"];
    const RULES: [&str; 20] = [
        "~*",
        "~pmcp:*",
        "%R~pmcp:tasks:alice:*",
        "%W~pmcp:tasks:alice:*",
        "~pmcp:tasks:?lice:*",
        "~pmcp:tasks:alice:t",
        "~pmcp:tasks:alice:t*",
        "%R~pmcp:tasks:alice:t1",
        "~pmcp:tasks:alice:",
        "~pmcp:tasks:[a-b]lice:*",
        "~pmcp:tasks:alice:*2",
        "+@all",
        "+pmcptask.get",
        "+pmcptask.get",
        "-pmcptask.get",
        "+pmcptask.get|pmcp:tasks:alice:t",
        "+PMCPTASK.GET|pmcp:tasks:alice:t1",
        "(+pmcptask.get ~pmcp:tasks:alice:t2)",
        "(+pmcptask.get ~pmcp:tasks:alice:*)",
        "(+exists ~pmcp:*)",
    ];
    let mut guarded = Guarded::start();
    for (task, created) in TASKS.iter().zip(5..) {
        guarded.run(&format!("PMCPTASK.PUT pmcp:tasks:alice:{task} pmcp:idx:alice x CREATED {created}"));
    }
    let (mut shown, mut denied) = (0, 0);
    let mut dice = Dice::new(20_261_126);
    for _ in 0..600 {
        let rules = random_rules("~pmcp:idx:* -@all +pmcptask.list", &RULES, &mut dice);
        let Some(mut user) = guarded.user_if_allowed(&rules) else { continue };
        let first_denied =
            TASKS.iter().find(|task| is_denied(&user.run(&format!("PMCPTASK.GET pmcp:tasks:alice:{task}"))));
        let listed = user.run("PMCPTASK.LIST pmcp:idx:alice");
        if let Some(task) = first_denied {
            denied += 1;
            assert!(listed.contains(&format!("'pmcp:tasks:alice:{task}'")), "{rules}: {listed}");
        } else {
            shown += 1;
            assert!(listed.starts_with("*4\r\n"), "{rules}: {listed}");
        }
    }
    println!("{shown} users see the list, {denied} do not");
    assert!(shown > 50 && denied > 50, "{shown} users see the list, {denied} do not");
}

#[test]
fn list_that_another_module_asks_for_is_checked_where_the_module_acts_for_a_user() {
    let options = ServerOptions::default().set("loadmodule", calling_module().to_str().unwrap());
    let server = Server::start_with(&options);
    let mut admin = server.wire();
    assert_eq!(admin.run("PMCPTASK.PUT pmcp:tasks:alice:t pmcp:idx:alice x"), ":1\r\n");
    let listed = "$8\r\nlisted 1\r\n";
    for (rules, may) in [
        ("~* -@all +pmcptask.list +caller.foruser +caller.byitself +eval", false),
        ("~pmcp:idx:* -@all +pmcptask.list +pmcptask.get +caller.foruser +caller.byitself +eval", false),
        ("~* -@all +pmcptask.list +pmcptask.get +caller.foruser +caller.byitself +eval", true),
    ] {
        assert_eq!(admin.run(&format!("ACL SETUSER limited reset on >pw {rules}")), "+OK\r\n");
        let mut user = server.wire();
        assert_eq!(user.run("AUTH limited pw"), "+OK\r\n");
        let for_user = user.run("CALLER.FORUSER PMCPTASK.LIST pmcp:idx:alice");
        assert_eq!(for_user == listed, may, "{rules}: {for_user}");
        assert!(may || for_user.contains("NOPERM"), "{rules}: {for_user}");
        // On its own behalf, the module may run any command, even if a script of the user asks for it.
        assert_eq!(user.run("CALLER.BYITSELF PMCPTASK.LIST pmcp:idx:alice"), listed, "{rules}");
        for (command, may) in [("CALLER.FORUSER", may), ("CALLER.BYITSELF", true)] {
            let script = format!("return redis.call('{command}', 'PMCPTASK.LIST', KEYS[1])");
            let reply = user.call(&["EVAL", &script, "1", "pmcp:idx:alice"]);
            assert_eq!(reply == listed, may, "{rules}: {command} in a script: {reply}");
        }
    }
}

#[test]
fn list_in_a_transaction_or_script_of_a_limited_user_is_checked_too() {
    let mut guarded = Guarded::start();
    guarded.run("PMCPTASK.PUT pmcp:tasks:alice:t2 pmcp:idx:alice hidden CREATED 6");
    let mut user = guarded.user(READS_ONE);
    user.run("MULTI");
    user.run("PMCPTASK.LIST pmcp:idx:alice");
    user.run("PMCPTASK.LIST pmcp:idx:alice COUNT 1");
    let exec = user.run("EXEC");
    assert!(exec.starts_with(&format!("*2\r\n-{NO_READ}\r\n*1\r\n")), "{exec}");
    for eval in ["EVAL", "EVAL_RO"] {
        for script in [
            "return redis.call('PMCPTASK.LIST', KEYS[1])",
            "return redis.pcall('PMCPTASK.LIST', KEYS[1])",
            "local r = redis.pcall('PMCPTASK.LIST', KEYS[1]); return r['err'] or 'listed ' .. r[1][4]",
        ] {
            let reply = user.call(&[eval, script, "1", "pmcp:idx:alice"]);
            assert!(reply.contains(NO_READ), "{eval} {script}: {reply}");
            assert!(!reply.contains("hidden") && !reply.contains("alices"), "{eval} {script}: {reply}");
            let admins = guarded.admin.call(&[eval, script, "1", "pmcp:idx:alice"]);
            assert!(admins.contains("alices"), "{eval} {script}: {admins}");
        }
    }
}

#[test]
fn list_is_checked_when_it_runs_and_not_when_it_was_queued() {
    let mut guarded = Guarded::start();
    guarded.run("PMCPTASK.PUT pmcp:tasks:alice:t2 pmcp:idx:alice hidden CREATED 6");
    let mut user = guarded.user(&format!("{READS_ONE} ~pmcp:tasks:alice:t2"));
    assert!(user.run("PMCPTASK.LIST pmcp:idx:alice").contains("hidden"));
    user.run("MULTI");
    user.run("PMCPTASK.LIST pmcp:idx:alice");
    assert_eq!(guarded.run(&format!("ACL SETUSER limited resetkeys {READS_ONE}")), "+OK\r\n");
    let exec = user.run("EXEC");
    assert!(exec.contains(NO_READ), "{exec}");
}

// Trims.

/// May trim the index of alice and delete the first of her three tasks, and may use MULTI and scripts to try
/// to get around that.
const DELETES_ONE: &str =
    "~pmcp:idx:alice ~pmcp:tasks:alice:t -@all +pmcptask.trim +pmcptask.del +multi +exec +eval";

impl Guarded {
    /// Three tasks of alice, `t` first.
    fn with_three_tasks() -> Self {
        let mut guarded = Self::start();
        for (task, created) in [("t2", 6), ("t3", 7)] {
            let put = format!("PMCPTASK.PUT pmcp:tasks:alice:{task} pmcp:idx:alice x CREATED {created}");
            assert_eq!(guarded.run(&put), ":1\r\n");
        }
        guarded
    }
}

fn is_denied_key(reply: &str, key: &str) -> bool {
    is_denied(reply) && reply.contains(&format!("'{key}'"))
}

#[test]
fn trim_removes_nothing_where_its_user_may_not_delete_one_of_the_tasks() {
    let mut guarded = Guarded::with_three_tasks();
    let mut user = guarded.user(DELETES_ONE);
    let before = guarded.everything();
    for line in [
        "PMCPTASK.TRIM pmcp:idx:alice KEEP 0",
        "PMCPTASK.TRIM pmcp:idx:alice KEEP 1",
        "PMCPTASK.TRIM pmcp:idx:alice KEEP 0 COUNT 2",
    ] {
        let reply = user.run(line);
        assert!(is_denied_key(&reply, "pmcp:tasks:alice:t2"), "{line}: {reply}");
        assert_eq!(guarded.everything(), before, "{line}");
    }
    assert_eq!(guarded.server.counter("refused_noperm"), 3);
    assert_eq!(guarded.server.counter("trims"), 0);
    // Tasks that stay need no permission.
    assert_eq!(user.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 3"), ":0\r\n");
    assert_eq!(user.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 0 COUNT 0"), ":0\r\n");
    assert_eq!(user.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 2"), ":1\r\n");
    assert_eq!(guarded.run("EXISTS pmcp:tasks:alice:t pmcp:tasks:alice:t2 pmcp:tasks:alice:t3"), ":2\r\n");
    // Permission to read a key does not include deleting it.
    let mut user = guarded.user(&format!("{DELETES_ONE} %R~pmcp:tasks:alice:*"));
    let reply = user.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 1");
    assert!(is_denied_key(&reply, "pmcp:tasks:alice:t2"), "{reply}");
}

#[test]
fn trim_that_is_denied_says_what_its_user_may_not_do() {
    let mut guarded = Guarded::with_three_tasks();
    let mut user = guarded.user(DELETES_ONE);
    let reply = user.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 1");
    assert!(is_denied_key(&reply, "pmcp:tasks:alice:t2"), "{reply}");
    assert!(!reply.contains(" read ") && !reply.contains(" list "), "{reply}");
}

#[test]
fn trim_removes_no_task_that_the_selector_with_its_key_may_not_delete() {
    let mut guarded = Guarded::with_three_tasks();
    // The user may run DEL and EXPIRE on the task's key, but not PMCPTASK.DEL.
    let rules = "-@all (+pmcptask.trim ~pmcp:idx:*) (+del +pmcptask.put +pmcptask.expire ~pmcp:*)";
    let mut user = guarded.user(rules);
    let before = guarded.everything();
    assert!(is_denied(&user.run("PMCPTASK.DEL pmcp:tasks:alice:t pmcp:idx:alice")));
    let reply = user.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 2");
    assert!(is_denied_key(&reply, "pmcp:tasks:alice:t"), "{reply}");
    assert_eq!(guarded.everything(), before);
    let mut user = guarded.user(&format!("{rules} (+pmcptask.del ~pmcp:tasks:alice:*)"));
    assert_eq!(user.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 2"), ":1\r\n");
}

/// With random rules, TRIM removes a task exactly when DEL could.
#[test]
fn trim_removes_a_task_exactly_where_del_does() {
    const RULES: [&str; 14] = [
        "~*",
        "~pmcp:tasks:alice:*",
        "%R~pmcp:tasks:alice:*",
        "%W~pmcp:tasks:alice:*",
        "~pmcp:tasks:alice:t",
        "~pmcp:tasks:alice:t?",
        "~pmcp:tasks:bob:*",
        "+@all",
        "+pmcptask.del",
        "+pmcptask.del",
        "-pmcptask.del",
        "(+pmcptask.del ~pmcp:*)",
        "(+pmcptask.del ~pmcp:tasks:alice:t2 ~pmcp:idx:*)",
        "(+del ~pmcp:*)",
    ];
    let mut guarded = Guarded::start();
    let (mut removed, mut denied) = (0, 0);
    let mut dice = Dice::new(20_261_127);
    for _ in 0..400 {
        for (task, created) in [("t", 5), ("t2", 6)] {
            guarded.run(&format!("PMCPTASK.PUT pmcp:tasks:alice:{task} pmcp:idx:alice x CREATED {created}"));
        }
        let rules = random_rules("~pmcp:idx:* -@all +pmcptask.trim", &RULES, &mut dice);
        let Some(mut user) = guarded.user_if_allowed(&rules) else { continue };
        // These delete nothing, whether or not they are allowed.
        let first_denied = ["t", "t2"].into_iter().find(|task| {
            let del = format!("PMCPTASK.DEL pmcp:tasks:alice:{task} pmcp:idx:alice VERSION 0");
            is_denied(&user.run(&del))
        });
        let reply = user.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 0");
        let left = guarded.run("EXISTS pmcp:tasks:alice:t pmcp:tasks:alice:t2");
        if let Some(task) = first_denied {
            denied += 1;
            assert!(is_denied_key(&reply, &format!("pmcp:tasks:alice:{task}")), "{rules}: {reply}");
            assert_eq!(left, ":2\r\n", "{rules}");
        } else {
            removed += 1;
            assert_eq!((reply.as_str(), left.as_str()), (":2\r\n", ":0\r\n"), "{rules}");
        }
    }
    println!("{removed} users trim, {denied} do not");
    assert!(removed > 40 && denied > 40, "{removed} users trim, {denied} do not");
}

#[test]
fn trim_in_a_transaction_or_script_of_a_limited_user_is_checked_too() {
    let mut guarded = Guarded::with_three_tasks();
    let mut user = guarded.user(DELETES_ONE);
    let before = guarded.everything();
    user.run("MULTI");
    user.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 1");
    user.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 3");
    let exec = user.run("EXEC");
    assert!(exec.starts_with("*2\r\n-NOPERM ") && exec.ends_with("\r\n:0\r\n"), "{exec}");
    for script in [
        "return redis.call('PMCPTASK.TRIM', KEYS[1], 'KEEP', 0)",
        "return redis.pcall('PMCPTASK.TRIM', KEYS[1], 'KEEP', 0)",
    ] {
        let reply = user.call(&["EVAL", script, "1", "pmcp:idx:alice"]);
        assert!(reply.contains("NOPERM") && reply.contains("'pmcp:tasks:alice:t2'"), "{script}: {reply}");
    }
    assert_eq!(guarded.everything(), before);
    let trim = "return redis.call('PMCPTASK.TRIM', KEYS[1], 'KEEP', 0)";
    assert_eq!(guarded.admin.call(&["EVAL", trim, "1", "pmcp:idx:alice"]), ":3\r\n");
}

#[test]
fn trim_that_is_denied_a_task_is_in_the_acl_log() {
    let mut guarded = Guarded::with_three_tasks();
    let mut user = guarded.user(DELETES_ONE);
    guarded.run("ACL LOG RESET");
    assert!(is_denied(&user.run("PMCPTASK.TRIM pmcp:idx:alice KEEP 1")));
    let log = guarded.run("ACL LOG");
    assert!(log.contains("\r\npmcp:tasks:alice:t2\r\n") && log.contains("\r\nlimited\r\n"), "{log}");
}

#[test]
fn expire_needs_permission_to_write_the_task_and_the_index() {
    let mut guarded = Guarded::start();
    let before = guarded.everything();
    for (rules, may) in [
        ("~pmcp:tasks:alice:t", false),
        ("~pmcp:idx:alice", false),
        ("%R~pmcp:tasks:alice:t ~pmcp:idx:alice", false),
        ("~pmcp:tasks:alice:t %R~pmcp:idx:alice", false),
        ("%W~pmcp:tasks:alice:t %W~pmcp:idx:alice", true),
    ] {
        let mut user = guarded.user(&format!("-@all +pmcptask.expire {rules}"));
        // An index need not be written where the time is ahead, but the server looks at the keys only.
        for lifetime in ["PXAT 4102444800123", "PERSIST"] {
            let reply = user.run(&format!("PMCPTASK.EXPIRE pmcp:tasks:alice:t pmcp:idx:alice {lifetime}"));
            assert_eq!(is_denied(&reply), !may, "{rules}: {reply}");
            assert!(is_denied(&reply) || reply == ":1\r\n", "{rules}: {reply}");
        }
        if !may {
            assert_eq!(guarded.everything(), before, "{rules}");
        }
    }
}

#[test]
fn held_needs_permission_to_read_the_task_that_has_to_live() {
    let mut guarded = Guarded::start();
    let before = guarded.everything();
    let own = "-@all +pmcptask.put %W~pmcp:tasks:alice:t %W~pmcp:idx:alice";
    for (rules, may) in [
        ("", false),
        ("%W~pmcp:tasks:bob:*", false),
        ("%R~pmcp:tasks:bob:x", false),
        ("%R~pmcp:tasks:bob:*", true),
    ] {
        let mut user = guarded.user(&format!("{own} {rules}"));
        // Otherwise the reply would tell whether there is such a task.
        for (held, reply) in [("t", ":"), ("none", "-NOTHELD ")] {
            for options in ["", "MAXTASKS 9 ", "NX CREATED NEWEST "] {
                let put = "PMCPTASK.PUT pmcp:tasks:alice:t pmcp:idx:alice HELD";
                let line = format!("{put} {options}held pmcp:tasks:bob:{held}");
                let came = user.run(&line);
                assert_eq!(is_denied(&came), !may, "{rules}: {line}: {came}");
                assert!(!may || came.starts_with(reply), "{rules}: {line}: {came}");
            }
        }
        if !may {
            assert_eq!(guarded.everything(), before, "{rules}");
        }
        // The word is no key where it is data.
        let reply = user.run("PMCPTASK.PUT pmcp:tasks:alice:t pmcp:idx:alice HELD NX");
        assert_eq!(reply, ":0\r\n", "{rules}");
    }
}

#[test]
fn denied_commands_are_in_the_acl_log() {
    let mut guarded = Guarded::start();
    let mut alice = guarded.user(ALICE);
    for line in all_commands("bob") {
        assert_eq!(guarded.run("ACL LOG RESET"), "+OK\r\n");
        let denied = alice.run(&line);
        assert!(is_denied(&denied), "{line}: {denied}");
        let log = guarded.run("ACL LOG");
        let keys: Vec<_> = line.split(' ').filter(|word| word.starts_with("pmcp:")).collect();
        assert!(log.contains("\r\nlimited\r\n") && log.contains("\r\nkey\r\n"), "{line}: {log}");
        assert!(keys.iter().any(|key| log.contains(&format!("\r\n{key}\r\n"))), "{line}: {log}");
    }
    guarded.run("ACL LOG RESET");
    let mut reader = guarded.user("~* -@all +pmcptask.get");
    reader.run("PMCPTASK.LIST pmcp:idx:alice");
    let log = guarded.run("ACL LOG");
    assert!(log.contains("\r\ncommand\r\n") && log.contains("\r\npmcptask.list\r\n"), "{log}");
}

#[test]
fn list_that_is_denied_a_task_is_in_the_acl_log() {
    let mut guarded = Guarded::start();
    guarded.run("PMCPTASK.PUT pmcp:tasks:alice:t2 pmcp:idx:alice hidden CREATED 6");
    let mut user = guarded.user(READS_ONE);
    guarded.run("ACL LOG RESET");
    assert_eq!(user.run("PMCPTASK.LIST pmcp:idx:alice"), format!("-{NO_READ}\r\n"));
    let log = guarded.run("ACL LOG");
    assert!(log.contains("\r\npmcp:tasks:alice:t2\r\n") && log.contains("\r\nlimited\r\n"), "{log}");
}

// The same through the client.

/// The errors of the three writes to a task. None may contain the record.
async fn write_errors(backend: &RedisBackend, key: &str) -> [StorageError; 3] {
    let errors = [
        backend.put(key, b"secret").await.unwrap_err(),
        backend.put_if_version(key, b"secret", 1).await.unwrap_err(),
        backend.delete(key).await.unwrap_err(),
    ];
    for error in &errors {
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        assert!(!Error::of(error).is_some_and(Error::outcome_is_unknown), "{error}");
    }
    errors
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_a_limited_user_works_for_its_owner_and_names_the_refusal_for_another() {
    let mut guarded = Guarded::start();
    guarded.user(ALICE);
    let backend = RedisBackend::new(&guarded.url()).await.unwrap();
    assert_eq!(backend.put("alice:t", b"mine").await.unwrap(), 2);
    assert_eq!(backend.put_if_version("alice:t", b"mine", 2).await.unwrap(), 3);
    assert_eq!(backend.get("alice:t").await.unwrap().data, b"mine");
    assert_eq!(backend.list_by_prefix("alice:").await.unwrap().len(), 1);
    assert!(backend.delete("alice:t").await.unwrap());
    let mut errors = Vec::from(write_errors(&backend, "bob:t").await);
    errors.push(backend.get("bob:t").await.unwrap_err());
    errors.push(backend.list_by_prefix("bob:").await.unwrap_err());
    for error in errors {
        assert!(matches!(reason(&error), Error::NoPermission { .. }), "{error}");
        assert!(error.to_string().contains("the Redis user has no permission for this"), "{error}");
    }
    let mut wire = guarded.server.wire();
    wire.run("PMCPTASK.PUT pmcp:tasks:alice:t2 pmcp:idx:alice hidden");
    guarded.user(READS_ONE);
    // New rules of a user apply to existing connections.
    let error = backend.list_by_prefix("alice:").await.unwrap_err();
    assert!(matches!(reason(&error), Error::NoPermission { .. }), "{error}");
    assert!(error.to_string().contains("'pmcp:tasks:alice:t2'"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn full_server_is_at_capacity_for_writes_and_still_reads_and_deletes() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    backend.put("o:t", b"one").await.unwrap();
    server.wire().call(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    server.wire().call(&["CONFIG", "SET", "maxmemory", "1"]);
    for error in [backend.put("o:t", b"two").await, backend.put_if_version("o:t", b"two", 1).await]
        .map(Result::unwrap_err)
    {
        let StorageError::CapacityExceeded { message } = &error else { panic!("{error:?}") };
        assert!(message.contains("maxmemory"), "{message}");
    }
    let task = backend.get("o:t").await.unwrap();
    assert_eq!((task.version, task.data.as_slice()), (1, &b"one"[..]));
    assert_eq!(backend.list_by_prefix("o:").await.unwrap().len(), 1);
    assert!(backend.delete("o:t").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_reads_and_says_that_writes_belong_on_the_primary() {
    let primary = Server::start();
    primary.wire().call(&["PMCPTASK.PUT", "pmcp:tasks:o:t", "pmcp:idx:o", "one"]);
    let replica = Server::start_with(&ServerOptions::default().replica_of(&primary));
    let mut wire = replica.wire();
    assert!(holds_within(Duration::from_secs(20), || wire.exists("pmcp:tasks:o:t")));
    let backend = RedisBackend::new(&replica.url()).await.unwrap();
    for error in write_errors(&backend, "o:t").await {
        assert!(matches!(reason(&error), Error::ReadOnly { .. }), "{error}");
        assert!(error.to_string().contains("read-only replica, write to its primary"), "{error}");
    }
    assert_eq!(backend.get("o:t").await.unwrap().data, b"one");
    assert_eq!(backend.list_by_prefix("o:").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_loads_its_data_says_so_and_then_answers() {
    // Loading takes ten seconds unless the test ends it, and the server answers every few keys meanwhile.
    let options = ServerOptions::default()
        .set("key-load-delay", "2000")
        .set("loading-process-events-interval-bytes", "1024");
    let mut server = Server::start_with(&options);
    let waiting = |limit| RedisBackend::builder(server.url()).connect_timeout(limit).connect();
    // This client gives up sooner than a busy machine connects.
    let started = Instant::now();
    let impatient = || waiting(Duration::from_millis(100));
    let mut backend = impatient().await;
    while backend.is_err() && started.elapsed() < Duration::from_secs(20) {
        backend = impatient().await;
    }
    let backend = backend.unwrap();
    let patient = waiting(Duration::from_secs(30)).await.unwrap();
    let mut filling = redis::pipe();
    for n in 0..5_000 {
        filling.cmd("PMCPTASK.PUT").arg(format!("pmcp:tasks:o:t{n}")).arg("pmcp:idx:o").arg("d".repeat(500));
    }
    filling.exec(&mut server.connection()).unwrap();
    assert_eq!(server.wire().call(&["SAVE"]), "+OK\r\n");
    server.kill();
    let port = server.port();
    let restarting = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    });
    let mut kinds = Vec::new();
    let loading = |kinds: &[StorageError]| {
        kinds.iter().filter(|error| matches!(reason(error), Error::Loading { .. })).count()
    };
    // A caller that can wait loses no call to a restart.
    let in_the_end = tokio::spawn(async move { patient.get("o:t7").await });
    while !restarting.is_finished() {
        for error in [backend.get("o:t7").await.err(), backend.put("o:new", b"secret").await.err()] {
            let Some(error) = error else { continue };
            assert!(!error.to_string().contains("secret"), "{error}");
            if matches!(reason(&error), Error::Loading { .. }) {
                assert!(error.to_string().contains("loading its data"), "{error}");
            }
            kinds.push(error);
        }
        if loading(&kinds) >= 2 {
            Wire::open(port).unwrap().run("CONFIG SET key-load-delay 0");
        }
    }
    let server = restarting.await.unwrap();
    assert!(loading(&kinds) >= 2, "{kinds:?}");
    assert_eq!(in_the_end.await.unwrap().unwrap().version, 1);
    // The other client recovers by itself, too.
    let started = Instant::now();
    let mut last = backend.get("o:t7").await;
    while last.is_err() && started.elapsed() < Duration::from_secs(20) {
        last = backend.get("o:t7").await;
    }
    assert_eq!(last.unwrap().version, 1);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_cannot_save_refuses_writes_in_words_that_say_so() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    backend.put("o:t", b"one").await.unwrap();
    // The server cannot write a file where there is a folder.
    fs::create_dir(server.folder().join("dump.rdb")).unwrap();
    let mut wire = server.wire();
    wire.call(&["CONFIG", "SET", "save", "3600 1"]);
    wire.call(&["BGSAVE"]);
    assert!(holds_within(Duration::from_secs(20), || {
        wire.call(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:err")
    }));
    for error in write_errors(&backend, "o:t").await {
        assert!(matches!(reason(&error), Error::CannotPersist { .. }), "{error}");
        assert!(error.to_string().contains("cannot save to disk"), "{error}");
    }
    assert_eq!(backend.get("o:t").await.unwrap().version, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn password_that_a_running_server_has_got_meanwhile_is_asked_for() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    backend.put("o:t", b"one").await.unwrap();
    let mut wire = server.wire();
    wire.call(&["CONFIG", "SET", "requirepass", "pw"]);
    // Existing connections still work.
    assert_eq!(backend.get("o:t").await.unwrap().version, 1);
    wire.call(&["CLIENT", "KILL", "TYPE", "normal"]);
    let mut errors =
        vec![backend.get("o:t").await.unwrap_err(), backend.list_by_prefix("o:").await.unwrap_err()];
    errors.extend(write_errors(&backend, "o:t").await);
    for error in errors {
        assert!(matches!(reason(&error), Error::Authentication { .. }), "{error}");
        assert!(error.to_string().contains("user name or password"), "{error}");
    }
    let error = RedisBackend::new(&server.url()).await.unwrap_err();
    assert!(matches!(reason(&error), Error::Authentication { .. }), "{error}");
    wire.call(&["CONFIG", "SET", "requirepass", ""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_task_is_named_and_its_content_is_not() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    for fields in [&["version", "secret", "data", "secret"][..], &["data", "secret"], &["version", "1"]] {
        let mut wire = server.wire();
        wire.call(&["DEL", "pmcp:tasks:o:t"]);
        wire.call(&[&["HSET", "pmcp:tasks:o:t"], fields].concat());
        for error in [
            backend.get("o:t").await.map(|task| task.version),
            backend.put("o:t", b"secret").await,
            backend.put_if_version("o:t", b"secret", 1).await,
        ]
        .map(Result::unwrap_err)
        {
            assert!(matches!(reason(&error), Error::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("'pmcp:tasks:o:t'"), "{error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
        assert!(backend.delete("o:t").await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_another_type_is_refused_in_the_servers_words() {
    let server = Server::start();
    let backend = RedisBackend::new(&server.url()).await.unwrap();
    server.wire().call(&["SET", "pmcp:tasks:o:t", "secret"]);
    server.wire().call(&["SET", "pmcp:idx:other", "secret"]);
    let mut errors = Vec::from(write_errors(&backend, "o:t").await);
    errors.extend(write_errors(&backend, "other:t").await);
    errors.push(backend.get("o:t").await.unwrap_err());
    errors.push(backend.list_by_prefix("other:").await.unwrap_err());
    for error in errors {
        assert!(matches!(reason(&error), Error::Refused { .. }), "{error}");
        assert!(error.to_string().contains("WRONGTYPE"), "{error}");
    }
}

/// Valkey 9.1 limits users to databases.
#[test]
fn user_of_some_databases_lists_there_what_get_shows_and_nowhere_else() {
    let server = Server::start();
    let mut wire = server.wire();
    if wire.call(&["ACL", "SETUSER", "u", "reset", "+@all", "db=0"]).starts_with('-') {
        skipped("user_of_some_databases_lists_there", "the server limits no user to databases");
        return;
    }
    assert_eq!(wire.call(&["PMCPTASK.PUT", "pmcp:tasks:alice:t", "pmcp:idx:alice", "x"]), ":1\r\n");
    for (rules, is_allowed) in [
        ("+@all ~* db=0", true),
        ("+@all ~* db=0,1", true),
        ("-@all (+@all ~* db=0)", true),
        ("+@all ~* db=1", false),
    ] {
        let words = format!("ACL SETUSER u reset on nopass {rules}");
        let words: Vec<_> = match words.split_once('(') {
            Some((before, selector)) => {
                before.split_whitespace().map(str::to_owned).chain([format!("({selector}")]).collect()
            }
            None => words.split(' ').map(str::to_owned).collect(),
        };
        assert_eq!(wire.call(&words.iter().map(String::as_str).collect::<Vec<_>>()), "+OK\r\n", "{rules}");
        let mut user = server.wire();
        assert_eq!(user.call(&["AUTH", "u", "any"]), "+OK\r\n");
        let [got, listed] = [&["PMCPTASK.GET", "pmcp:tasks:alice:t"], &["PMCPTASK.LIST", "pmcp:idx:alice"]]
            .map(|words| user.call(words));
        assert_eq!(
            (got.starts_with("*2"), listed.starts_with("*1")),
            (is_allowed, is_allowed),
            "{rules}: {listed}"
        );
    }
}

/// A script and another module act for a user whom the module has to find out.
#[test]
fn check_of_permissions_in_a_script_runs_nothing_and_logs_no_denial() {
    let server = Server::start();
    let (mut admin, mut user) = (server.wire(), server.wire());
    for task in ["t", "u"] {
        let put = format!("PMCPTASK.PUT pmcp:tasks:alice:{task} pmcp:idx:alice x");
        assert_eq!(admin.run(&put), ":1\r\n");
    }
    // May not GET.
    let rules = "ACL SETUSER trimmer on nopass ~pmcp:* -@all +eval +pmcptask.trim +pmcptask.del";
    assert_eq!(admin.run(rules), OK);
    assert_eq!(user.run("AUTH trimmer any"), OK);
    let script = "return redis.call('PMCPTASK.TRIM', KEYS[1], 'KEEP', 1)";
    assert_eq!(user.call(&["EVAL", script, "1", "pmcp:idx:alice"]), ":1\r\n");
    assert_eq!(admin.run("ACL LOG"), EMPTY);
    let list = "return #redis.call('PMCPTASK.LIST', KEYS[1])";
    assert_eq!(admin.call(&["EVAL", list, "1", "pmcp:idx:alice"]), ":1\r\n");
    for counter in ["get_hits", "get_misses", "refused_err", "deletes", "del_missing"] {
        assert_eq!(server.counter(counter), 0, "{counter}");
    }
}
