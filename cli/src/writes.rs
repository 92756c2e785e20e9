//! `cancel` and `trim`: what changes tasks, and asks before it does.

use std::io::{self, IsTerminal as _, Write as _};

use pmcp_tasks::{TaskStatus, TaskStore as _};
use pmcptask_client::TaskStore;
use serde::Serialize;

use crate::arguments::TaskName;
use crate::failure::Failure;
use crate::output::{Output, Row};
use crate::printable::in_line;
use crate::servers::Servers;

/// Goes on if the user says so, by `--yes` or at the terminal.
fn ask(yes: bool, what: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::NotAllowed(what.to_owned()));
    }
    let mut terminal = io::stderr();
    write!(terminal, "{what}? [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(Failure::Terminal)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::Declined),
    }
}

#[derive(Serialize)]
struct Cancelled<'a> {
    owner: &'a str,
    id: &'a str,
    status: TaskStatus,
    version: u64,
}

impl Row for Cancelled<'_> {
    fn header() -> Option<String> {
        None
    }

    fn line(&self) -> String {
        format!(
            "task {} of {} is {}, version {}",
            in_line(self.id),
            in_line(self.owner),
            self.status,
            self.version
        )
    }
}

/// Cancels a task by the rules of `pmcp-tasks`, which refuse it for a task that is finished.
pub(crate) async fn cancel(
    servers: &Servers,
    task: &TaskName,
    yes: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let TaskName { owner, id } = task;
    ask(yes, &format!("cancel task {} of {}", in_line(id), in_line(owner)))?;
    let store = TaskStore::new(servers.backend().await?);
    let record = store.cancel(id, owner).await?;
    output.row(&Cancelled { owner, id, status: record.task.status, version: record.version })
}

#[derive(Serialize)]
struct Trimmed<'a> {
    owner: &'a str,
    removed: usize,
}

impl Row for Trimmed<'_> {
    fn header() -> Option<String> {
        None
    }

    fn line(&self) -> String {
        format!("{} tasks removed", self.removed)
    }
}

/// Removes an owner's oldest tasks, a thousand or more per command.
pub(crate) async fn trim(
    servers: &Servers,
    owner: &str,
    keep: usize,
    yes: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    ask(yes, &format!("remove all tasks of {} but the newest {keep}", in_line(owner)))?;
    let removed = servers.backend().await?.trim(owner, keep).await?;
    output.row(&Trimmed { owner, removed })
}
