//! The command `pmcptask`, which looks at the tasks of a server or cluster, and [`move_keys`], which moves
//! them to keys with hash tags, or back.
//!
//! One file per group of subcommands: `owners`, `tasks` (with `stuck`), `show`, `watch`, `top`, `writes` and
//! `hash_tags`. All of them print through `output`, and reach the servers through `servers`.

mod arguments;
mod failure;
mod hash_tags;
mod key_move;
mod output;
mod owners;
mod pages;
mod printable;
mod record;
mod servers;
mod show;
mod tasks;
mod times;
mod top;
mod watch;
mod writes;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use self::arguments::{Arguments, Command};
use self::failure::Failure;
pub use self::key_move::{KeyMove, MoveError, move_keys};
use self::output::Output;
use self::servers::Servers;

/// Runs the command with the arguments of this process.
#[doc(hidden)]
#[must_use]
pub fn run() -> ExitCode {
    // Wrong arguments end the process with 2, and --help with 0.
    let Arguments { global, command } = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::Start(error).exit_code(),
    };
    let mut output = Output::to_stdout(global.json);
    let servers = Servers::new(&global);
    let outcome = runtime.block_on(obey(command, &servers, &mut output)).and_then(|()| output.flush());
    // Not dropped: a thread of `top` may wait for a key that never comes.
    runtime.shutdown_background();
    outcome.map_or_else(|failure| failure.exit_code(), |()| ExitCode::SUCCESS)
}

async fn obey(command: Command, servers: &Servers, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Owners { limit } => owners::list(servers, limit, output).await,
        Command::Tasks { owner, limit, status } => tasks::list(servers, &owner, limit, status, output).await,
        Command::Stuck { older, owner } => tasks::stuck(servers, owner, older, output).await,
        Command::Show { task } => show::show(servers, &task, output).await,
        Command::Watch { owner, tasks } => watch::watch(servers, &owner, tasks, output).await,
        Command::Top { records } => top::top(servers, records, output).await,
        Command::Cancel { task, yes } => writes::cancel(servers, &task, yes, output).await,
        Command::Trim { owner, keep, yes } => writes::trim(servers, &owner, keep, yes, output).await,
        Command::HashTags { to, server } => hash_tags::move_all(servers, to, server, output).await,
        Command::Completions { shell } => {
            // It panics if it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "pmcptask", &mut script);
            output.raw(&script)
        }
    }
}
