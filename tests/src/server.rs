//! Real servers, each on a port from the OS and in a temporary folder. A server stops when its handle
//! is dropped.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, io, thread};

use redis::Client;
use tempfile::TempDir;

use crate::port::Port;
use crate::wire::Wire;
use crate::{holds_within, slowness};

/// Path of the server to test with. Default: `redis-server` from the search path.
const SERVER_VARIABLE: &str = "PMCPTASK_SERVER";
/// Path of the `redis-cli` for the server. Default: the one beside the server.
const CLI_VARIABLE: &str = "PMCPTASK_CLI";
/// Path of the module to test. Default: the module is built from this workspace.
const MODULE_VARIABLE: &str = "PMCPTASK_MODULE";

/// How long a server may take to answer its first PING. Generous: only a broken server needs all of it.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a server may take to stop when asked to.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Why there is no server to test with.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program cannot be run.
    #[error(
        "no server to test with: '{0}' cannot be run. Install one (on Debian: apt-get install redis-server) \
         or set {SERVER_VARIABLE} to the path of a redis-server or valkey-server"
    )]
    NoServer(PathBuf, #[source] io::Error),
    /// The server ended before it answered.
    #[error("the server ended before it answered; its log:\n{0}")]
    Ended(String),
    /// The server does not answer.
    #[error("the server does not answer; its log:\n{0}")]
    Silent(String),
    /// The folder or the log cannot be created.
    #[error("cannot prepare the server's folder")]
    Folder(#[from] io::Error),
}

/// The program, the module and the settings of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    program: PathBuf,
    module: Option<PathBuf>,
    settings: Vec<(String, String)>,
    variables: Vec<(String, OsString)>,
    login: Option<(String, String)>,
    is_in_file: bool,
    is_sentinel: bool,
}

impl Default for ServerOptions {
    /// The server to test with, with the module; nothing is saved to disk.
    fn default() -> Self {
        let program = env::var_os(SERVER_VARIABLE).unwrap_or_else(|| OsString::from("redis-server"));
        Self {
            program: program.into(),
            module: Some(module()),
            settings: Vec::new(),
            variables: Vec::new(),
            login: None,
            is_in_file: false,
            is_sentinel: false,
        }
    }
}

impl ServerOptions {
    /// Adds a line of `redis.conf`: name and value.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs the server as a Sentinel, without the module. Its settings go into a file, because a Sentinel
    /// writes what it learns into that file.
    #[must_use]
    pub fn sentinel(mut self) -> Self {
        self.is_sentinel = true;
        self.without_module().in_file()
    }

    /// Writes the settings into a file at the first start. From then on the file counts, whoever changes it.
    #[must_use]
    pub fn in_file(mut self) -> Self {
        self.is_in_file = true;
        self
    }

    /// A user with all permissions, for a server that accepts no connection without a login.
    #[must_use]
    pub fn login(mut self, user: &str, password: &str) -> Self {
        self.login = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// Writes every command to the AOF, and the AOF to the disk, before the reply.
    #[must_use]
    pub fn with_aof(self) -> Self {
        self.set("appendonly", "yes").set("appendfsync", "always")
    }

    /// Runs the server as a replica.
    #[must_use]
    pub fn replica_of(self, primary: &Server) -> Self {
        self.set("replicaof", &format!("127.0.0.1 {}", primary.port()))
    }

    /// Does not load the module.
    #[must_use]
    pub fn without_module(mut self) -> Self {
        self.module = None;
        self
    }

    /// Runs the server with a variable in its environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(its, _)| its == name).map(|(_, value)| value.as_str())
    }

    /// The server program.
    #[must_use]
    pub fn server_program(&self) -> &Path {
        &self.program
    }

    /// The path of `redis-cli` or `valkey-cli`: beside the server, unless `PMCPTASK_CLI` is set.
    #[must_use]
    pub fn cli_program(&self) -> PathBuf {
        if let Some(program) = env::var_os(CLI_VARIABLE) {
            return program.into();
        }
        let name = self.program.file_name().unwrap_or_default().to_string_lossy().replace("-server", "-cli");
        self.program.with_file_name(name)
    }

    /// Runs another program than the server to test with.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }
}

/// Path of the module's library, built once for each test program.
fn module() -> PathBuf {
    static MODULE: OnceLock<PathBuf> = OnceLock::new();
    let build = || built(&["--package", "pmcptask"], "libpmcptask.so");
    MODULE.get_or_init(|| env::var_os(MODULE_VARIABLE).map_or_else(build, PathBuf::from)).clone()
}

/// Path of the program `pmcptask`, built once for each test program.
#[must_use]
pub fn pmcptask_program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    // With the features of the tests, so that little has to be rebuilt.
    let features = ["--workspace", "--all-features", "--bin", "pmcptask"];
    PROGRAM.get_or_init(|| built(&features, "pmcptask")).clone()
}

/// Builds a part of this workspace. Returns the path of the file that cargo makes under this name.
fn built(what: &[&str], file: &str) -> PathBuf {
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    build.args(["build", "--quiet", "--message-format=json-render-diagnostics"]).args(what);
    build.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit());
    // With the variables that cargo sets for this package, build scripts and everything that depends on them
    // would be rebuilt.
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG") || name.starts_with("CARGO_MANIFEST"))
        {
            build.env_remove(name);
        }
    }
    let output = build.output().expect("cargo can be run");
    assert!(output.status.success(), "{what:?} does not build; see above");
    let messages = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let files = messages.flat_map(|message| {
        let message: serde_json::Value = serde_json::from_slice(message).expect("cargo writes JSON");
        let files = message["filenames"].as_array().cloned().unwrap_or_default();
        files.into_iter().filter_map(|file| file.as_str().map(PathBuf::from))
    });
    let built = files.into_iter().find(|path| path.file_name().is_some_and(|name| name == file));
    built.unwrap_or_else(|| panic!("expected {file} from cargo build {what:?}, got none"))
}

/// Path of the library of another module, which calls commands: `calling_module.rs` of the examples.
///
/// # Panics
///
/// If the module does not build.
#[must_use]
pub fn calling_module() -> PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    let what = ["--workspace", "--all-features", "--example", "calling_module"];
    LIBRARY.get_or_init(|| built(&what, "libcalling_module.so")).clone()
}

/// A server for an example in the docs. None where there is no server to run: the example then only compiles.
#[must_use]
pub fn server_for_example() -> Option<Server> {
    match Server::try_start_with(&ServerOptions::default()) {
        Err(StartError::NoServer(..)) => None,
        started => Some(started.unwrap_or_else(|error| panic!("{error}"))),
    }
}

/// A running server. It is shut down when the handle is dropped; its log is shown if the test has failed.
#[derive(Debug)]
pub struct Server {
    options: ServerOptions,
    folder: TempDir,
    process: Child,
    port: Port,
    /// The ports of its settings.
    more_ports: Vec<Port>,
}

impl Server {
    /// Starts the server to test with, with the module.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&ServerOptions::default())
    }

    /// Starts a server and waits until it answers.
    ///
    /// # Panics
    ///
    /// With the message of a [`StartError`].
    #[must_use]
    pub fn start_with(options: &ServerOptions) -> Self {
        Self::try_start_with(options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn try_start_with(options: &ServerOptions) -> Result<Self, StartError> {
        let folder = tempfile::Builder::new().prefix("pmcptask-").tempdir()?;
        let (port, mut more_ports) = (Port::free()?, Vec::new());
        let options = with_free_ports(options, &mut more_ports)?;
        let process = spawn(&options, folder.path(), port.number())?;
        let mut server = Self { options, folder, process, port, more_ports };
        server.wait_until_ready(0).map(|()| server)
    }

    /// `logged` is the length of the log when the process started.
    fn wait_until_ready(&mut self, logged: usize) -> Result<(), StartError> {
        let started = Instant::now();
        loop {
            if self.process.try_wait()?.is_some() {
                return Err(StartError::Ended(self.log()));
            }
            let log = self.log();
            let news = log.get(logged..).unwrap_or_default();
            if LISTENS.iter().any(|line| news.contains(line)) && self.answers() {
                return Ok(());
            }
            if started.elapsed() > START_LIMIT * slowness() {
                return Err(StartError::Silent(self.log()));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the server has loaded its data, even if it refuses the command.
    fn answers(&self) -> bool {
        self.try_wire()
            .and_then(|mut wire| wire.try_call(&["PING"]))
            .is_ok_and(|reply| !reply.starts_with("-LOADING"))
    }

    /// The server's port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The port on which the nodes of a cluster talk to this node.
    ///
    /// # Panics
    ///
    /// If the server is not a node of a cluster.
    #[must_use]
    pub fn cluster_port(&self) -> &str {
        self.options.setting("cluster-port").expect("the server is a node of a cluster")
    }

    /// The server's TLS port.
    ///
    /// # Panics
    ///
    /// If the server has no certificate.
    #[must_use]
    pub fn tls_port(&self) -> &str {
        self.options.setting("tls-port").expect("the server has a certificate")
    }

    /// Runs `redis-cli` with the server.
    ///
    /// # Panics
    ///
    /// If there is no `redis-cli`.
    #[must_use]
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.cli_answering(arguments, "")
    }

    /// Runs `redis-cli` with the server and answers its questions.
    ///
    /// # Panics
    ///
    /// If there is no `redis-cli`.
    #[must_use]
    pub fn cli_answering(&self, arguments: &[&str], answers: &str) -> Output {
        let mut cli = Command::new(self.options.cli_program());
        if let Some((user, password)) = &self.options.login {
            cli.args(["--user", user]).env("REDISCLI_AUTH", password);
        }
        let mut cli = cli
            .args(["-p", &self.port().to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("redis-cli can be run");
        // A `redis-cli` that asks nothing may have ended already.
        let _ = cli.stdin.take().expect("it is piped").write_all(answers.as_bytes());
        cli.wait_with_output().expect("the process is ours")
    }

    /// One counter of `INFO pmcptask`.
    ///
    /// # Panics
    ///
    /// If there is no counter with this name.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        self.wire().info_number("pmcptask", &format!("pmcptask_{name}"))
    }

    /// The reply to `INFO replication`; empty if the server does not answer. Sentinels close the connections
    /// to a primary that they replace.
    #[must_use]
    pub fn replication(&self) -> String {
        let asked = self.try_wire().and_then(|mut wire| wire.try_call(&["INFO", "replication"]));
        asked.unwrap_or_default()
    }

    /// True for a primary, and for a replica that is connected to its primary.
    #[must_use]
    pub fn follows_or_leads(&self) -> bool {
        let replication = self.replication();
        replication.contains("role:master") || replication.contains("master_link_status:up")
    }

    /// The process id.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// The URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port())
    }

    /// A connection that shows replies byte by byte.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    #[must_use]
    pub fn wire(&self) -> Wire {
        self.try_wire().expect("the server accepts connections")
    }

    fn try_wire(&self) -> io::Result<Wire> {
        let mut wire = Wire::open(self.port())?;
        if let Some((user, password)) = &self.options.login {
            wire.try_call(&["AUTH", user, password])?;
        }
        Ok(wire)
    }

    /// A connection of the redis crate.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    #[must_use]
    pub fn connection(&self) -> redis::Connection {
        let url = self.options.login.as_ref().map_or_else(
            || self.url(),
            |(user, password)| self.url().replace("//", &format!("//{user}:{password}@")),
        );
        let client = Client::open(url).expect("the URL is well formed");
        client.get_connection().expect("the server accepts connections")
    }

    /// The server's folder, with its log, AOF and RDB file.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The part of the AOF that the server appends to.
    ///
    /// # Panics
    ///
    /// If the server has no AOF.
    #[must_use]
    pub fn aof(&self) -> PathBuf {
        let parts = fs::read_dir(self.folder().join("appendonlydir")).expect("the server has an AOF");
        let parts = parts.map(|part| part.expect("the folder is ours").path());
        let appended = parts.filter(|part| part.to_string_lossy().ends_with(".incr.aof"));
        // Parts are numbered without leading zeros.
        appended.max_by_key(|part| (part.as_os_str().len(), part.clone())).expect("the AOF is open")
    }

    /// The commands in the part of the AOF that the server appends to, their words joined by spaces. Only
    /// with `appendfsync always` does the AOF contain the commands of a call before the reply.
    ///
    /// # Panics
    ///
    /// If the server has no AOF.
    #[must_use]
    pub fn appended(&self) -> Vec<String> {
        let aof = fs::read(self.aof()).expect("the AOF is ours");
        let (mut rest, mut commands) = (aof.as_slice(), Vec::new());
        while !rest.is_empty() {
            let words: Vec<_> = (0..take_length(&mut rest)).map(|_| take_word(&mut rest)).collect();
            commands.push(words.join(" "));
        }
        commands
    }

    /// Starts a server whose AOF contains the commands of each call before the reply.
    ///
    /// # Panics
    ///
    /// With the message of a [`StartError`].
    #[must_use]
    pub fn start_recorded() -> Self {
        let server = Self::start_with(&ServerOptions::default().with_aof());
        // The AOF starts with a SELECT, which is not part of a call.
        let mut wire = server.wire();
        assert_eq!(wire.call(&["SET", "first", "x"]), "+OK\r\n");
        assert_eq!(wire.call(&["DEL", "first"]), ":1\r\n");
        server
    }

    /// Makes the module walk through all indexes exactly once more, as its first walk: it forgets what earlier walks
    /// have found.
    ///
    /// # Panics
    ///
    /// If the walk takes longer than half a minute.
    pub fn have_indexes_walked_once_anew(&self) {
        let walks = || self.counter("index_walks");
        // No other walk follows for a quarter of an hour.
        let is_at_rest = holds_within(Duration::from_secs(30), || walks() > 0);
        let before = walks();
        assert_eq!(self.wire().call(&["SWAPDB", "8", "9"]), "+OK\r\n");
        let is_done = || walks() > before;
        assert!(is_at_rest && holds_within(Duration::from_secs(30), is_done), "the module does not walk");
    }

    /// Makes the module walk through all indexes this many times, without its pauses of a quarter of an hour.
    ///
    /// # Panics
    ///
    /// If a walk takes longer than half a minute.
    pub fn have_indexes_walked(&self, times: u64) {
        let mut wire = self.wire();
        assert_eq!(wire.call(&["CONFIG", "SET", "pmcptask.debug-walk-rest-ms", "1"]), "+OK\r\n");
        // A walk in progress has already seen a part of the indexes.
        for _ in 0..=times {
            let before = self.counter("index_walks");
            let is_done = || self.counter("index_walks") > before;
            assert!(
                holds_within(Duration::from_secs(30), is_done),
                "the module does not walk through the indexes"
            );
        }
        assert_eq!(wire.call(&["CONFIG", "SET", "pmcptask.debug-walk-rest-ms", "0"]), "+OK\r\n");
    }

    /// Every key of a database, with its value from DUMP and its expiry in ms since the epoch.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    #[must_use]
    pub fn dump(&self, database: u8) -> BTreeMap<String, (Option<Vec<u8>>, i64)> {
        let mut connection = self.connection();
        redis::cmd("SELECT").arg(database).exec(&mut connection).expect("the database exists");
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).expect("keys are text");
        let dumped = |key: String| {
            let value = redis::cmd("DUMP").arg(&key).query(&mut connection).expect("a key has a value");
            let expiry = redis::cmd("PEXPIRETIME").arg(&key).query(&mut connection).expect("an integer");
            (key, (value, expiry))
        };
        keys.into_iter().map(dumped).collect()
    }

    /// The value of a key of database 0, from DUMP.
    ///
    /// # Panics
    ///
    /// If there is no such key.
    #[must_use]
    pub fn dump_of(&self, key: &str) -> Vec<u8> {
        redis::cmd("DUMP").arg(key).query(&mut self.connection()).expect("a key has a value")
    }

    /// The server's log.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.folder.path().join(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Stops the server as an operator would: it saves what its settings say. The folder stays.
    ///
    /// # Panics
    ///
    /// If the server does not stop.
    pub fn stop(&mut self) {
        self.shut_down(&[]);
        let started = Instant::now();
        while self.process.try_wait().expect("the process is ours").is_none() {
            assert!(started.elapsed() < STOP_LIMIT, "the server does not stop; its log:\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn shut_down(&self, how: &[&str]) {
        let Ok(mut wire) = self.try_wire() else { return };
        let _ = self.options.setting("requirepass").map(|password| wire.try_call(&["AUTH", password]));
        // A server that stops does not reply. A server that refuses the connection is stopped by a signal.
        if wire.try_call(&[&["SHUTDOWN"], how].concat()).is_ok() {
            self.signal("-TERM");
        }
    }

    /// Kills the server with SIGKILL, as a crash would. The folder stays.
    ///
    /// # Panics
    ///
    /// If the process does not belong to this test any more.
    pub fn kill(&mut self) {
        self.process.kill().expect("the process is ours");
        self.process.wait().expect("the process is ours");
    }

    /// See [`Wire::calls_of`].
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    #[must_use]
    pub fn calls_of(&self, command: &str) -> u64 {
        self.wire().calls_of(command)
    }

    /// Suspends the process: its port stays open, but nothing answers there until [`Server::go_on`].
    ///
    /// # Panics
    ///
    /// If the process does not belong to this test any more.
    pub fn hang(&self) {
        self.signal("-STOP");
    }

    /// Resumes a process that [`Server::hang`] suspended.
    ///
    /// # Panics
    ///
    /// If the process does not belong to this test any more.
    pub fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.process_id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "the process is ours");
    }

    /// Restarts a stopped server, in its folder and on its port.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    pub fn restart(&mut self) {
        self.restart_with(&self.options.clone());
    }

    /// Restarts a stopped server with other settings, in its folder and on its port.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    pub fn restart_with(&mut self, options: &ServerOptions) {
        self.options = with_free_ports(options, &mut self.more_ports).expect("the OS has free ports");
        let logged = self.log().len();
        self.process =
            spawn(&self.options, self.folder.path(), self.port()).expect("the server has run before");
        self.wait_until_ready(logged).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("log of the server on port {}:\n{}", self.port(), self.log());
        }
        self.shut_down(&["NOSAVE"]);
        let started = Instant::now();
        while started.elapsed() < STOP_LIMIT {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const LOG: &str = "server.log";
/// What a server or a Sentinel logs once it listens on its port.
const LISTENS: [&str; 2] = ["eady to accept connections", "Sentinel ID is"];
/// Name of the file for [`ServerOptions::in_file`], in the server's folder.
pub const FILE: &str = "redis.conf";

fn spawn(options: &ServerOptions, folder: &Path, port: u16) -> Result<Child, StartError> {
    let log = File::options().create(true).append(true).open(folder.join(LOG))?;
    let mut command = Command::new(&options.program);
    command.envs(options.variables.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    if options.is_in_file {
        command.arg(write_file(options, folder, port)?);
        command.args(options.is_sentinel.then_some("--sentinel"));
    } else {
        add_settings(&mut command, options, folder, port);
    }
    command.spawn().map_err(|error| StartError::NoServer(options.program.clone(), error))
}

fn add_settings(command: &mut Command, options: &ServerOptions, folder: &Path, port: u16) {
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder);
    for (name, value) in &options.settings {
        command.arg(format!("--{name}"));
        // Each word of a setting is a separate argument; an empty value is one empty argument.
        if value.is_empty() {
            command.arg("");
        } else {
            command.args(value.split(' '));
        }
    }
    if let Some(module) = &options.module {
        command.arg("--loadmodule").arg(module);
    }
}

/// Writes the settings file of a server, unless the file exists.
fn write_file(options: &ServerOptions, folder: &Path, port: u16) -> io::Result<PathBuf> {
    let path = folder.join(FILE);
    if !path.exists() {
        let settings = options.settings.iter().map(|(name, value)| format!("{name} {value}\n"));
        let module = options.module.iter().map(|module| format!("loadmodule {}\n", module.display()));
        let own = format!("port {port}\nbind 127.0.0.1\ndir {}\n", folder.display());
        // A Sentinel saves nothing and does not know this setting.
        let save = if options.is_sentinel { "" } else { "save \"\"\n" };
        fs::write(&path, settings.chain(module).fold(own + save, |file, line| file + &line))?;
    }
    Ok(path)
}

/// Gives a server the other ports that it needs, unless it has them. They are added to `ports`.
fn with_free_ports(options: &ServerOptions, ports: &mut Vec<Port>) -> io::Result<ServerOptions> {
    let mut options = options.clone();
    // By default the cluster port is 10000 above the server's port, which can exceed the range of ports.
    for (name, is_needed) in [
        ("cluster-port", options.setting("cluster-enabled") == Some("yes")),
        ("tls-port", options.setting("tls-cert-file").is_some()),
    ] {
        if is_needed && options.setting(name).is_none() {
            let port = Port::free()?;
            options = options.set(name, &port.number().to_string());
            ports.push(port);
        }
    }
    Ok(options)
}

/// Takes a length such as `*3` or `$10` from the front of an AOF.
fn take_length(aof: &mut &[u8]) -> usize {
    let end = aof.iter().position(|byte| *byte == b'\n').expect("lines end");
    let line = String::from_utf8_lossy(&aof[1..end]).trim().parse();
    *aof = &aof[end + 1..];
    line.expect("lengths are decimal")
}

fn take_word(aof: &mut &[u8]) -> String {
    let length = take_length(aof);
    let word = aof[..length].escape_ascii().to_string();
    *aof = &aof[length + 2..];
    word
}
