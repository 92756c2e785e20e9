//! The server's instructions per command, counted by callgrind. The counts do not depend on how busy the
//! machine is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pmcptask_client::RedisBackend;
use pmcptask_schema::Keyspace;
use pmcptask_tests::{INDEX, Server, ServerOptions, TASK, Wire, holds_within};
use serde_json::json;
use tempfile::TempDir;

use crate::Result;
use crate::contest::{EXPIRES_AT_MS, log_is_written};
use crate::figures::{Spread, write};
use crate::machine;
use crate::pipeline::{Pipeline, Words, batches, words};
use crate::records::record;
use crate::watched::{Commands, OWNER};

/// Commands sent before their replies are read, as busy clients do.
const DEPTH: usize = 16;
/// Commands of each kind: few enough that most counts miss the server's housekeeping, which runs once
/// a second.
const COMMANDS: usize = 640;
/// The minimum of this many counts is taken, to leave the housekeeping out.
const REPEATS: usize = 3;
/// Each server seeds its hash tables at random. If fields of a task share a bucket, every command that reads
/// them takes longer. So the median of several rounds is taken, each on two new servers.
const ROUNDS: usize = 3;
/// Tasks of the owner: enough for the server to keep the index as a skiplist.
const TASKS: usize = 1_000;
/// Approximate size of a record, in bytes.
const RECORD: usize = 500;

/// A server under callgrind.
struct CountingServer {
    server: Server,
    folder: TempDir,
    pipeline: Pipeline,
    /// Always open, because closing it would be counted.
    wire: Wire,
}

impl CountingServer {
    fn start(options: ServerOptions) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/server-under-callgrind.sh");
        let real = options.server_program().to_owned();
        let options = options
            .program(script)
            .variable("CALLGRIND_SERVER", real)
            .variable("CALLGRIND_FOLDER", folder.path());
        let server = Server::try_start_with(&options)?;
        let pipeline = Pipeline::open(server.port())?;
        let wire = server.wire();
        let mut counting = Self { server, folder, pipeline, wire };
        counting.wait_until_settled();
        Ok(counting)
    }

    /// Waits until the module, if loaded, has looked at all keys. Otherwise it would do so while commands
    /// are counted.
    fn wait_until_settled(&mut self) {
        let wire = &mut self.wire;
        wire.call(&["CONFIG", "SET", "hz", "500"]);
        let is_settled = || !wire.call(&["INFO", "pmcptask"]).contains("index_walks:0");
        assert!(holds_within(Duration::from_mins(2), is_settled), "the module does not settle");
        // Housekeeping once a second.
        wire.call(&["CONFIG", "SET", "hz", "1"]);
    }

    /// Turns on the server's AOF.
    fn log(&mut self) -> Result<()> {
        self.wire.call(&["CONFIG", "SET", "appendonly", "yes"]);
        if log_is_written(&mut self.wire) { Ok(()) } else { Err("the log is not begun".into()) }
    }

    fn run(&mut self, commands: &[Words]) -> Result<()> {
        Ok(self.pipeline.run(&batches(commands, DEPTH))?)
    }

    /// Instructions per command.
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn count(&mut self, commands: &[Words]) -> Result<f64> {
        let batches = batches(commands, DEPTH);
        // The server's child processes leave their counts here too.
        for file in fs::read_dir(self.folder.path())? {
            fs::remove_file(file?.path())?;
        }
        self.control("--zero")?;
        self.pipeline.run(&batches)?;
        self.control("--dump")?;
        let total = total(self.folder.path())?;
        Ok(total as f64 / commands.len() as f64)
    }

    fn control(&self, what: &str) -> Result<()> {
        let process = self.server.process_id().to_string();
        let output = Command::new("callgrind_control").args([what, &process]).output()?;
        if output.status.success() { Ok(()) } else { Err(format!("callgrind_control {what} failed").into()) }
    }
}

/// The total of the only dump that has one.
fn total(folder: &Path) -> Result<u64> {
    for file in fs::read_dir(folder)? {
        let text = fs::read_to_string(file?.path())?;
        let counted = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<u64>().ok());
        if let Some(counted) = counted.filter(|counted| *counted > 0) {
            return Ok(counted);
        }
    }
    Err("callgrind has written no total".into())
}

/// What one command took on one server.
struct Row {
    name: &'static str,
    instructions: f64,
}

/// The ratio of two counts.
struct Ratio {
    name: &'static str,
    figure: f64,
    at_most: &'static str,
}

/// Counts everything, prints the table and writes the figures to a file.
///
/// # Errors
///
/// If a step fails, for example because valgrind is not installed.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Err("valgrind is not installed: it counts the instructions".into());
    }
    let mut machine = None;
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        eprintln!("servers {round} of {ROUNDS}");
        // The module hears of what other commands change, and that takes time, so those commands are counted
        // on a server without it.
        let mut server = CountingServer::start(ServerOptions::default())?;
        let mut without = CountingServer::start(ServerOptions::default().without_module())?;
        let mut rows = count_bare(&mut without)?;
        rows.extend(count_lua(&mut without).await?);
        rows.extend(count_ours(&mut server).await?);
        machine.get_or_insert_with(|| machine::described(&server.server));
        rounds.push(rows);
    }
    let counts = of_each_round(&rounds, |row| row.instructions);
    println!("{:<44} median (least to greatest)", "instructions");
    for (row, figures) in &counts {
        println!("{:<44} {}", row.name, Spread::of(figures));
    }
    let ratios: Vec<_> = rounds.iter().map(|rows| ratios_of(rows)).collect();
    let ratios = of_each_round(&ratios, |ratio| ratio.figure);
    println!("\n{:<44} {:<26} at most", "ratio", "median (least to greatest)");
    for (ratio, figures) in &ratios {
        println!("{:<44} {:<26} {}", ratio.name, Spread::of(figures).to_string(), ratio.at_most);
    }
    let median = |figures: &[f64]| Spread::of(figures).median;
    let instructions: BTreeMap<_, _> =
        counts.iter().map(|(row, figures)| (row.name, median(figures).round())).collect();
    let ratios = ratios.iter().map(|(ratio, figures)| {
        json!({ "name": ratio.name, "ratio": median(figures), "of_each_round": figures, "at_most": ratio.at_most })
    });
    let figures = json!({
        "machine": machine,
        "record_bytes": RECORD,
        "rounds": ROUNDS,
        "instructions": instructions,
        "ratios": ratios.collect::<Vec<_>>(),
    });
    write(folder, "instructions.json", &(serde_json::to_string_pretty(&figures)? + "\n"))
}

/// Each item that all rounds have in common, with its figures from all rounds.
fn of_each_round<T>(rounds: &[Vec<T>], figure: impl Fn(&T) -> f64) -> Vec<(&T, Vec<f64>)> {
    let figures = |n: usize| rounds.iter().map(|round| figure(&round[n])).collect();
    rounds.first().into_iter().flatten().enumerate().map(|(n, one)| (one, figures(n))).collect()
}

fn ratios_of(rows: &[Row]) -> Vec<Ratio> {
    let get = |name: &str| rows.iter().find(|row| row.name == name).map_or(f64::NAN, |row| row.instructions);
    let trio_over = get("HSET over") + get("ZADD NX, member there") + get("PEXPIREAT");
    let trio_new = get("HSET new") + get("ZADD NX, member new") + get("PEXPIREAT, the first");
    let hgetall = get("HGETALL") - get("PING");
    let ratio = |name, figure, at_most| Ratio { name, figure, at_most };
    vec![
        ratio("PUT over : Lua", get("PUT over") / get("Lua put over"), "0.28"),
        ratio("PUT over : trio", get("PUT over") / trio_over, "1"),
        ratio("PUT new : Lua", get("PUT new") / get("Lua put new"), "0.28"),
        ratio("PUT new : trio", get("PUT new") / trio_new, "1"),
        ratio("CAS won : Lua", get("CAS won") / get("Lua CAS won"), "0.28"),
        ratio("CAS won : trio", get("CAS won") / trio_over, "1"),
        ratio("PUT over, JSON : Lua", get("PUT over, JSON") / get("Lua put over"), "0.40"),
        ratio("PUT new, JSON : Lua", get("PUT new, JSON") / get("Lua put new"), "0.40"),
        ratio("CAS won, JSON : Lua", get("CAS won, JSON") / get("Lua CAS won"), "0.40"),
        ratio("PUT over, AOF : Lua", get("PUT over, AOF") / get("Lua put over, AOF"), "-"),
        ratio("PUT new, AOF : Lua", get("PUT new, AOF") / get("Lua put new, AOF"), "-"),
        ratio("CAS won, AOF : Lua", get("CAS won, AOF") / get("Lua CAS won, AOF"), "-"),
        ratio("GET : HGETALL", get("GET") / get("HGETALL"), "1.15"),
        ratio("LIST of 100, per record : HGETALL less PING", get("LIST of 100") / 100.0 / hgetall, "1.3"),
        ratio("LIST of 1,000, per record : the same", get("LIST of 1,000") / 1_000.0 / hgetall, "1.3"),
        ratio("LIST of 1,000, NODATA : with data", get("LIST of 1,000, NODATA") / get("LIST of 1,000"), "-"),
        ratio("TRIM of 100, per task : DEL", get("TRIM of 100") / 100.0 / get("DEL"), "-"),
        ratio("PUT 100 KB : HSET", get("PUT 100 KB") / get("HSET 100 KB"), "1.15"),
        ratio("PUT 1 MB : HSET", get("PUT 1 MB") / get("HSET 1 MB"), "1.15"),
        ratio("GET : Lua backend's HGETALL", get("GET") / get("Lua get"), "-"),
        ratio("DEL : Lua", get("DEL") / get("Lua delete"), "-"),
        ratio(
            "HSET of others : without the module",
            get("HSET of others, with the module") / get("HSET of others"),
            "1",
        ),
    ]
}

/// Counts kinds of commands, each from the same state, so that none finds a table half resized by another.
struct Counting<'a> {
    server: &'a mut CountingServer,
    tasks: Vec<Words>,
    rows: Vec<Row>,
}

impl Counting<'_> {
    fn count(&mut self, name: &'static str, command: impl Fn(usize) -> Words) -> Result<()> {
        self.count_times(COMMANDS, name, command)
    }

    fn count_times(
        &mut self,
        times: usize,
        name: &'static str,
        command: impl Fn(usize) -> Words,
    ) -> Result<()> {
        let commands: Vec<_> = (0..times).map(command).collect();
        let mut instructions = f64::INFINITY;
        for _ in 0..REPEATS {
            self.server.run(&[words(&["FLUSHALL"])])?;
            self.server.run(&self.tasks)?;
            self.server.wait_until_settled();
            instructions = instructions.min(self.server.count(&commands)?);
        }
        self.rows.push(Row { name, instructions });
        Ok(())
    }
}

impl Counting<'_> {
    /// Counts an `HSET` of a key that no command of the module touches, without emptying the server before.
    fn count_as_it_is(&mut self, name: &'static str) -> Result<()> {
        let commands = vec![words(&["HSET", "other", "field", "value"]); COMMANDS];
        let mut instructions = f64::INFINITY;
        for _ in 0..REPEATS {
            instructions = instructions.min(self.server.count(&commands)?);
        }
        self.rows.push(Row { name, instructions });
        Ok(())
    }

    /// The same while a client waits for a task, and when it waits no more.
    fn count_beside_a_waiter(&mut self) -> Result<()> {
        let waiting = |server: &Server, clients: u64| {
            assert!(holds_within(Duration::from_mins(1), || server.counter("waiting_clients") == clients));
        };
        self.server.wire.call(&["CONFIG", "SET", "appendonly", "no"]);
        self.server.run(&[words(&["PMCPTASK.PUT", TASK, INDEX, "data"])])?;
        let mut waiter = self.server.server.wire();
        waiter.send(&["PMCPTASK.WAIT", TASK, "1", "0"])?;
        waiting(&self.server.server, 1);
        self.count_as_it_is("HSET of others, a client waits")?;
        self.server.run(&[words(&["DEL", TASK])])?;
        waiting(&self.server.server, 0);
        self.count_as_it_is("HSET of others, after the last waiter")
    }
}

/// As long as the ids of `pmcp-tasks`, and in order of creation.
fn id(n: usize) -> String {
    format!("{n:08x}-0000-4000-8000-000000000000")
}

/// The id of an existing task.
fn there(n: usize) -> String {
    id(n % TASKS)
}

fn new(n: usize) -> String {
    id(TASKS + n)
}

/// The version that the n-th call finds at [`there`], if the calls before wrote one task after another.
fn version(n: usize) -> u64 {
    (n / TASKS + 1) as u64
}

/// Plain commands with the same keys and values.
fn count_bare(server: &mut CountingServer) -> Result<Vec<Row>> {
    let data = record(OWNER, RECORD);
    let (keys, index) = (Keyspace::default(), Keyspace::default().index_key(OWNER));
    let key = |task: &str| keys.task_key(OWNER, task);
    let hset = |task: &str, data: &[u8]| -> Words {
        let mut command = words(&["HSET", &key(task), "version", "12", "data"]);
        command.extend([data.to_vec(), b"expires_at".to_vec(), b"4102444800".to_vec()]);
        command
    };
    let zadd = |task: &str| words(&["ZADD", &index, "NX", "1795215600000", task]);
    let pexpireat = |task: &str| words(&["PEXPIREAT", &key(task), &EXPIRES_AT_MS.to_string()]);
    let tasks = (0..TASKS).flat_map(|n| [hset(&id(n), &data), zadd(&id(n)), pexpireat(&id(n))]).collect();
    let mut bare = Counting { server, tasks, rows: Vec::new() };

    bare.count("PING", |_| words(&["PING"]))?;
    bare.count_as_it_is("HSET of others")?;
    bare.count("HSET over", |n| hset(&there(n), &data))?;
    bare.count("HSET new", |n| hset(&new(n), &data))?;
    bare.count("ZADD NX, member there", |n| zadd(&there(n)))?;
    bare.count("ZADD NX, member new", |n| zadd(&new(n)))?;
    bare.count("PEXPIREAT", |n| pexpireat(&there(n)))?;
    bare.count("HGETALL", |n| words(&["HGETALL", &key(&there(n))]))?;
    for (bytes, name) in [(100_000, "HSET 100 KB"), (1_000_000, "HSET 1 MB")] {
        let large = record(OWNER, bytes);
        bare.count_times(100, name, |_| hset(&there(0), &large))?;
    }
    bare.tasks.extend((0..COMMANDS).map(|n| hset(&new(n), &data)));
    bare.count("PEXPIREAT, the first", |n| pexpireat(&new(n)))?;
    Ok(bare.rows)
}

async fn count_lua(server: &mut CountingServer) -> Result<Vec<Row>> {
    let lua = pmcp_tasks::RedisBackend::new(&server.server.url()).await?;
    let lua = Commands::of(&lua, server.server.port(), &record(OWNER, RECORD)).await?;
    let tasks = (0..TASKS).map(|n| lua.put.fill(&id(n), 0)).collect();
    let mut counting = Counting { server, tasks, rows: Vec::new() };

    counting.count("Lua put over", |n| lua.put.fill(&there(n), 0))?;
    counting.count("Lua put new", |n| lua.put.fill(&new(n), 0))?;
    counting.count("Lua CAS won", |n| lua.put_if_version.fill(&there(n), version(n)))?;
    counting.count("Lua CAS lost", |n| lua.put_if_version.fill(&there(n), 999_999))?;
    counting.count("Lua get", |n| lua.get.fill(&there(n), 0))?;
    counting.count_times(TASKS, "Lua delete", |n| lua.delete.fill(&id(n), 0))?;
    counting.server.log()?;
    counting.count("Lua put over, AOF", |n| lua.put.fill(&there(n), 0))?;
    counting.count("Lua put new, AOF", |n| lua.put.fill(&new(n), 0))?;
    counting.count("Lua CAS won, AOF", |n| lua.put_if_version.fill(&there(n), version(n)))?;
    Ok(counting.rows)
}

async fn count_ours(server: &mut CountingServer) -> Result<Vec<Row>> {
    let data = record(OWNER, RECORD);
    let backend = RedisBackend::new(&server.server.url()).await?;
    let port = server.server.port();
    let ours = Commands::of(&backend, port, &data).await?;
    let put_json = ours.put.without_options(&data);
    let cas_json = ours.put_if_version.without_options(&data);
    let tasks = (0..TASKS).map(|n| ours.put.fill(&id(n), 0)).collect();
    let mut counting = Counting { server, tasks, rows: Vec::new() };

    counting.count_as_it_is("HSET of others, with the module")?;
    counting.count("PUT over", |n| ours.put.fill(&there(n), 0))?;
    counting.count("PUT new", |n| ours.put.fill(&new(n), 0))?;
    counting.count("PUT over, JSON", |n| put_json.fill(&there(n), 0))?;
    counting.count("PUT new, JSON", |n| put_json.fill(&new(n), 0))?;
    counting.count("CAS won", |n| ours.put_if_version.fill(&there(n), version(n)))?;
    counting.count("CAS won, JSON", |n| cas_json.fill(&there(n), version(n)))?;
    counting.count("CAS lost", |n| ours.put_if_version.fill(&there(n), 999_999))?;
    counting.count("GET", |n| ours.get.fill(&there(n), 0))?;
    counting.count_times(TASKS, "DEL", |n| ours.delete.fill(&id(n), 0))?;
    let (keys, index) = (Keyspace::default(), Keyspace::default().index_key(OWNER));
    let list = words(&["PMCPTASK.LIST", &index]);
    counting.count_times(10, "LIST of 1,000", |_| list.clone())?;
    let without_data = words(&["PMCPTASK.LIST", &index, "NODATA"]);
    counting.count_times(10, "LIST of 1,000, NODATA", |_| without_data.clone())?;
    let trim = words(&["PMCPTASK.TRIM", &index, "KEEP", "0", "COUNT", "100"]);
    counting.count_times(10, "TRIM of 100", |_| trim.clone())?;
    let on_task = |name: &str, n: usize, options: &[&str]| {
        words(&[&[name, &keys.task_key(OWNER, &there(n)), &index], options].concat())
    };
    counting.count("EXPIRE", |n| {
        let at_ms = EXPIRES_AT_MS + i64::try_from(n).unwrap_or(0);
        on_task("PMCPTASK.EXPIRE", n, &["PXAT", &at_ms.to_string()])
    })?;
    counting.count("PUT NX, task there", |n| on_task("PMCPTASK.PUT", n, &["a record", "NX"]))?;
    counting.count("WAIT, another version", |n| {
        words(&["PMCPTASK.WAIT", &keys.task_key(OWNER, &there(n)), "7", "0"])
    })?;
    counting.count_times(TASKS, "DEL VERSION", |n| on_task("PMCPTASK.DEL", n, &["VERSION", "1"]))?;
    for (bytes, name) in [(100_000, "PUT 100 KB"), (1_000_000, "PUT 1 MB")] {
        let large = Commands::of(&backend, port, &record(OWNER, bytes)).await?.put;
        counting.count_times(100, name, |_| large.fill(&there(0), 0))?;
    }
    counting.server.log()?;
    counting.count("PUT over, AOF", |n| ours.put.fill(&there(n), 0))?;
    counting.count("PUT new, AOF", |n| ours.put.fill(&new(n), 0))?;
    counting.count("CAS won, AOF", |n| ours.put_if_version.fill(&there(n), version(n)))?;
    // The server encodes a short index differently from a long one.
    counting.tasks.truncate(100);
    counting.count_times(100, "LIST of 100", |_| list.clone())?;
    // Last, because some servers tell the module of every change from then on.
    counting.count_beside_a_waiter()?;
    Ok(counting.rows)
}
