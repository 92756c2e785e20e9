//! What the demos share: one process runs some steps and is killed, and another one goes on.

use std::env;
use std::error::Error;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};

use pmcptask_tests::{Server, ServerOptions, now_ms};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

pub(crate) const STEPS: [&str; 4] = ["gather", "draft", "review", "publish"];
/// The first process is killed in here.
const KILLED_IN: &str = "review";
/// The start of the line with which a process says that it is at a step.
const AT: &str = "at: ";
/// The start of a line of what is stored at the end.
const STORED: &str = "stored: ";

/// What a process is told to do.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) redis_url: String,
    pub(crate) thread: String,
    stops_in: Option<String>,
}

impl Run {
    /// Does the work of a step, and returns what is to be stored of it.
    pub(crate) async fn step(&self, name: &str) -> String {
        println!("{AT}{name}");
        if self.stops_in.as_deref() == Some(name) {
            // As if the work took for ever, so that the process is in the middle of it when it is killed.
            std::future::pending::<()>().await;
        }
        format!("{name} by process {}", std::process::id())
    }
}

/// Starts a server if there is none, and this program as two processes, one after the other. `run` is what they do; it
/// returns what is stored at the end.
pub(crate) async fn demo<R: Future<Output = Result<Vec<String>>>>(
    what: &str,
    run: impl FnOnce(Run) -> R,
) -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let outcome = match arguments.as_slice() {
        [redis_url, thread, rest @ ..] => {
            let stops_in = rest.first().cloned();
            let run = run(Run { redis_url: redis_url.clone(), thread: thread.clone(), stops_in }).await;
            run.map(|stored| stored.iter().for_each(|line| println!("{STORED}{line}")))
        }
        _ => kill_and_resume(what),
    };
    if let Err(error) = outcome {
        eprintln!("FAILED: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn kill_and_resume(what: &str) -> Result<()> {
    println!("{what} of the steps {}. Its state is kept in a server with the module.", STEPS.join(", "));
    // Held to the end, because the server ends with its handle.
    let (_server, redis_url) = if let Ok(url) = env::var("REDIS_URL") {
        (None, url)
    } else {
        let server = Server::try_start_with(&ServerOptions::default())?;
        let url = server.url();
        (Some(server), url)
    };
    let thread = format!("demo:{}", now_ms());

    println!("\n1. A process runs it, and is killed in the middle of the step {KILLED_IN}.");
    let mut first = Process::start(&[&redis_url, &thread, KILLED_IN])?;
    while first.at.last().is_none_or(|step| step != KILLED_IN) {
        first.read_line()?.ok_or("the first process ended by itself")?;
    }
    first.child.kill()?;
    let status = first.child.wait()?;
    println!("   process {} killed: {status}", first.child.id());
    check("the steps of the first process", &first.at, &["gather", "draft", "review"])?;

    println!(
        "\n2. Another process knows only the server and the name. It goes on, and repeats no finished step."
    );
    let mut second = Process::start(&[&redis_url, &thread])?;
    while second.read_line()?.is_some() {}
    let status = second.child.wait()?;
    if !status.success() {
        return Err(format!("the second process: {status}").into());
    }
    check("the steps of the second process", &second.at, &["review", "publish"])?;

    let by = |step: &str, process: &Process| format!("{step} by process {}", process.child.id());
    let expected = [by("gather", &first), by("draft", &first), by("review", &second), by("publish", &second)];
    check("what is stored", &second.stored, &expected.each_ref().map(String::as_str))?;
    println!("\nEverything was as it should be.");
    Ok(())
}

fn check(what: &str, got: &[String], expected: &[&str]) -> Result<()> {
    if got == expected { Ok(()) } else { Err(format!("{what}: expected {expected:?}, got {got:?}").into()) }
}

/// This program, told what to do.
struct Process {
    child: Child,
    output: Box<dyn Iterator<Item = std::io::Result<String>>>,
    at: Vec<String>,
    stored: Vec<String>,
}

impl Process {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?).args(arguments).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().ok_or("the process has no output")?;
        let output = Box::new(BufReader::new(stdout).lines());
        Ok(Self { child, output, at: Vec::new(), stored: Vec::new() })
    }

    /// Shows the next line, and keeps what it says. None at the end.
    fn read_line(&mut self) -> Result<Option<()>> {
        let Some(line) = self.output.next().transpose()? else { return Ok(None) };
        println!("   process {}  {line}", self.child.id());
        if let Some(step) = line.strip_prefix(AT) {
            self.at.push(step.to_owned());
        }
        if let Some(stored) = line.strip_prefix(STORED) {
            self.stored.push(stored.to_owned());
        }
        Ok(Some(()))
    }
}
