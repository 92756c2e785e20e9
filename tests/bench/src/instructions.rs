//! Instructions of the server per command, counted by callgrind: the same however busy the machine is.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pmcptask_client::RedisBackend;
use pmcptask_tests::{Server, ServerOptions, holds_within};
use serde_json::json;
use tempfile::TempDir;

use crate::Result;
use crate::figures::write;
use crate::machine;
use crate::pipeline::{Pipeline, Words, batches, words};
use crate::records::record;
use crate::watched::{Commands, OWNER};

/// Commands sent before their replies are read, as busy clients do.
const DEPTH: usize = 16;
/// Commands of each kind.
const COMMANDS: usize = 1_600;
/// Tasks of the owner: many enough for the server to keep the index as a skiplist.
const TASKS: usize = 1_000;
/// Size of a record in bytes, about.
const RECORD: usize = 500;

/// A server that counts.
struct CountingServer {
    server: Server,
    folder: TempDir,
    pipeline: Pipeline,
}

impl CountingServer {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/server-under-callgrind.sh");
        let options = ServerOptions::default();
        let real = options.server_program().to_owned();
        let options = options
            .program(script)
            .variable("CALLGRIND_SERVER", real)
            .variable("CALLGRIND_FOLDER", folder.path());
        let server = Server::try_start_with(&options)?;
        let pipeline = Pipeline::open(server.port())?;
        let counting = Self { server, folder, pipeline };
        counting.wait_until_settled();
        Ok(counting)
    }

    /// Has the module look at all keys now, often, so that it need not while commands are counted.
    fn wait_until_settled(&self) {
        let mut wire = self.server.wire();
        wire.call(&["CONFIG", "SET", "hz", "500"]);
        let is_settled = || wire.call(&["INFO", "pmcptask"]).contains("verification_pending:0");
        assert!(holds_within(Duration::from_mins(2), is_settled), "the module does not settle");
        // Housekeeping once a second.
        wire.call(&["CONFIG", "SET", "hz", "1"]);
    }

    fn run(&mut self, commands: &[Words]) -> Result<()> {
        Ok(self.pipeline.run(&batches(commands, DEPTH))?)
    }

    /// Instructions per command.
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn count(&mut self, commands: &[Words]) -> Result<f64> {
        let batches = batches(commands, DEPTH);
        self.control("--zero")?;
        self.pipeline.run(&batches)?;
        self.control("--dump")?;
        let total = newest_total(self.folder.path())?;
        Ok(total as f64 / commands.len() as f64)
    }

    fn control(&self, what: &str) -> Result<()> {
        let process = self.server.process_id().to_string();
        let output = Command::new("callgrind_control").args([what, &process]).output()?;
        if output.status.success() { Ok(()) } else { Err(format!("callgrind_control {what} failed").into()) }
    }
}

/// The total of the only dump that has one, which is removed.
fn newest_total(folder: &Path) -> Result<u64> {
    let mut total = None;
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        let text = fs::read_to_string(&path)?;
        let counted = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<u64>().ok());
        if let Some(counted) = counted.filter(|counted| *counted > 0) {
            total = Some(counted);
            fs::remove_file(&path)?;
        }
    }
    total.ok_or_else(|| "callgrind has written no total".into())
}

/// One line of the table.
struct Row {
    name: &'static str,
    instructions: f64,
}

/// Counts everything, prints the table and writes the figures to a file.
///
/// # Errors
///
/// What went wrong: no valgrind, say.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Err("valgrind is not installed: it counts the instructions".into());
    }
    let mut server = CountingServer::start()?;
    let rows = count_all(&mut server).await?;
    let get = |name: &str| rows.iter().find(|row| row.name == name).map_or(f64::NAN, |row| row.instructions);
    for Row { name, instructions } in &rows {
        println!("{name:<34} {instructions:>12.0}");
    }
    let trio_over = get("HSET over") + get("ZADD NX, member there") + get("PEXPIREAT");
    let trio_new = get("HSET new") + get("ZADD NX, member new") + get("PEXPIREAT");
    let hgetall = get("HGETALL") - get("PING");
    let ratios = [
        ("PUT over : Lua", get("PUT over") / get("Lua put over"), "0.28"),
        ("PUT over : trio", get("PUT over") / trio_over, "1"),
        ("PUT new : Lua", get("PUT new") / get("Lua put new"), "0.28"),
        ("PUT new : trio", get("PUT new") / trio_new, "1"),
        ("CAS won : Lua", get("CAS won") / get("Lua CAS won"), "0.28"),
        ("CAS won : trio", get("CAS won") / trio_over, "1"),
        ("PUT over, JSON : Lua", get("PUT over, JSON") / get("Lua put over"), "0.40"),
        ("PUT new, JSON : Lua", get("PUT new, JSON") / get("Lua put new"), "0.40"),
        ("CAS won, JSON : Lua", get("CAS won, JSON") / get("Lua CAS won"), "0.40"),
        ("GET : HGETALL", get("GET") / get("HGETALL"), "1.15"),
        ("LIST of 100, per record : HGETALL less PING", get("LIST of 100") / 100.0 / hgetall, "1.3"),
        ("LIST of 1,000, per record : the same", get("LIST of 1,000") / 1_000.0 / hgetall, "1.3"),
        ("PUT 100 KB : HSET", get("PUT 100 KB") / get("HSET 100 KB"), "1.15"),
        ("PUT 1 MB : HSET", get("PUT 1 MB") / get("HSET 1 MB"), "1.15"),
        ("GET : Lua backend's HGETALL", get("GET") / get("Lua get"), "-"),
        ("DEL : Lua", get("DEL") / get("Lua delete"), "-"),
    ];
    println!("\n{:<44} {:>6}  at most", "ratio", "");
    for (name, ratio, target) in ratios {
        println!("{name:<44} {ratio:>6.2}  {target}");
    }
    let figures = json!({
        "machine": machine::described(&server.server),
        "record_bytes": RECORD,
        "instructions": rows.iter().map(|row| (row.name, row.instructions.round())).collect::<std::collections::BTreeMap<_, _>>(),
        "ratios": ratios.map(|(name, ratio, target)| json!({ "name": name, "ratio": ratio, "at_most": target })),
    });
    write(folder, "instructions.json", &(serde_json::to_string_pretty(&figures)? + "\n"))
}

async fn count_all(server: &mut CountingServer) -> Result<Vec<Row>> {
    let data = record(OWNER, RECORD);
    let ours =
        Commands::of(&RedisBackend::new(&server.server.url()).await?, server.server.port(), &data).await?;
    let lua = pmcp_tasks::RedisBackend::new(&server.server.url()).await?.with_prefix("lua");
    let lua = Commands::of(&lua, server.server.port(), &data).await?;
    let put_json = ours.put.without_options(&data);
    let cas_json = ours.put_if_version.without_options(&data);
    let id = |n: usize| format!("task-{n:07}");
    let there = |n: usize| id(n % TASKS);
    let all = |command: &dyn Fn(usize) -> Words| (0..COMMANDS).map(command).collect::<Vec<_>>();

    let mut rows = Vec::new();
    let mut count = |server: &mut CountingServer, name: &'static str, commands: &[Words]| -> Result<()> {
        server.wait_until_settled();
        rows.push(Row { name, instructions: server.count(commands)? });
        Ok(())
    };

    // Both backends' tasks and their bare likeness.
    let expiry = (pmcptask_tests::now_ms() + 3_600_000).to_string();
    let seconds = "4102444800";
    let hset = |key: &str, data: &[u8]| -> Words {
        let mut command = words(&["HSET", key, "version", "12", "data"]);
        command.extend([data.to_vec(), b"expires_at".to_vec(), seconds.as_bytes().to_vec()]);
        command
    };
    let zadd = |member: &str| words(&["ZADD", "bare:idx", "NX", "1795215600000", member]);
    for n in 0..TASKS {
        let pexpireat = words(&["PEXPIREAT", &format!("bare:{}", id(n)), &expiry]);
        let bare = [hset(&format!("bare:{}", id(n)), &data), zadd(&id(n)), pexpireat];
        server.run(&[&bare[..], &[ours.put.fill(&id(n), 0), lua.put.fill(&id(n), 0)]].concat())?;
    }

    count(server, "PING", &all(&|_| words(&["PING"])))?;
    count(server, "HSET over", &all(&|n| hset(&format!("bare:{}", there(n)), &data)))?;
    count(server, "HSET new", &all(&|n| hset(&format!("bare:new-{}", id(n)), &data)))?;
    count(server, "ZADD NX, member there", &all(&|n| zadd(&there(n))))?;
    count(server, "ZADD NX, member new", &all(&|n| zadd(&format!("new-{}", id(n)))))?;
    let pexpireat = |n| words(&["PEXPIREAT", &format!("bare:{}", there(n)), &expiry]);
    count(server, "PEXPIREAT", &all(&pexpireat))?;
    count(server, "HGETALL", &all(&|n| words(&["HGETALL", &format!("bare:{}", there(n))])))?;

    count(server, "PUT over", &all(&|n| ours.put.fill(&there(n), 0)))?;
    count(server, "PUT new", &all(&|n| ours.put.fill(&format!("new-{}", id(n)), 0)))?;
    count(server, "PUT over, JSON", &all(&|n| put_json.fill(&there(n), 0)))?;
    count(server, "PUT new, JSON", &all(&|n| put_json.fill(&format!("json-{}", id(n)), 0)))?;
    // Tasks of their own, whose versions are known.
    let (cas_tasks, version) = (100, |n: usize| (n / 100 + 1) as u64);
    for prefix in ["cas", "cas-json"] {
        let fresh: Vec<_> =
            (0..cas_tasks).map(|n| ours.put.fill(&format!("{prefix}-{}", id(n)), 0)).collect();
        server.run(&fresh)?;
    }
    let cas_id = |prefix: &str, n: usize| format!("{prefix}-{}", id(n % cas_tasks));
    count(server, "CAS won", &all(&|n| ours.put_if_version.fill(&cas_id("cas", n), version(n))))?;
    count(server, "CAS won, JSON", &all(&|n| cas_json.fill(&cas_id("cas-json", n), version(n))))?;
    count(server, "CAS lost", &all(&|n| ours.put_if_version.fill(&there(n), 999_999)))?;
    count(server, "GET", &all(&|n| ours.get.fill(&there(n), 0)))?;
    count(server, "DEL", &all(&|n| ours.delete.fill(&format!("new-{}", id(n)), 0)))?;

    count(server, "Lua put over", &all(&|n| lua.put.fill(&there(n), 0)))?;
    count(server, "Lua put new", &all(&|n| lua.put.fill(&format!("new-{}", id(n)), 0)))?;
    let fresh: Vec<_> = (0..cas_tasks).map(|n| lua.put.fill(&format!("cas-{}", id(n)), 0)).collect();
    server.run(&fresh)?;
    count(server, "Lua CAS won", &all(&|n| lua.put_if_version.fill(&cas_id("cas", n), version(n))))?;
    count(server, "Lua CAS lost", &all(&|n| lua.put_if_version.fill(&there(n), 999_999)))?;
    count(server, "Lua get", &all(&|n| lua.get.fill(&there(n), 0)))?;
    count(server, "Lua delete", &all(&|n| lua.delete.fill(&format!("new-{}", id(n)), 0)))?;

    // The server keeps a short index otherwise than a long one.
    for (tasks, owner, name) in [(100, "few", "LIST of 100"), (1_000, "many", "LIST of 1,000")] {
        let put = |n| {
            let mut put = words(&[
                "PMCPTASK.PUT",
                &format!("pmcp:tasks:{owner}:{}", id(n)),
                &format!("pmcp:idx:{owner}"),
            ]);
            put.extend([data.clone(), b"PXAT".to_vec(), expiry.clone().into_bytes()]);
            put
        };
        server.run(&(0..tasks).map(put).collect::<Vec<_>>())?;
        let list = words(&["PMCPTASK.LIST", &format!("pmcp:idx:{owner}")]);
        count(server, name, &vec![list; 10_000 / tasks])?;
    }

    for (bytes, put_name, hset_name) in
        [(100_000, "PUT 100 KB", "HSET 100 KB"), (1_000_000, "PUT 1 MB", "HSET 1 MB")]
    {
        let data = record(OWNER, bytes);
        let ours = RedisBackend::new(&server.server.url()).await?;
        let put = Commands::of(&ours, server.server.port(), &data).await?.put.fill("large", 0);
        let hset = hset("bare:large", &data);
        server.run(&[put.clone(), hset.clone()])?;
        count(server, put_name, &vec![put; 100])?;
        count(server, hset_name, &vec![hset; 100])?;
    }
    Ok(rows)
}
