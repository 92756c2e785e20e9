//! What one can write behind `pmcptask`.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use pmcp_tasks::TaskStatus;
use pmcptask_schema::Keyspace;

/// Looks at the tasks of a Redis or Valkey server with the module pmcptask.
///
/// Only `cancel`, `trim` and `hash-tags` change anything.
#[derive(Debug, Parser)]
#[command(name = "pmcptask", version, max_term_width = 110)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const FORMS_OF_URLS: &str = "The server or servers: redis://[user:password@]host[:port][/database], \
                             redis+unix:///path, redis+cluster://host:port,… or \
                             redis+sentinel://host,…/service; rediss for TLS";
const STATUSES: &str = "Only tasks of this status: working, input_required, completed, failed or cancelled";

/// What every subcommand takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    #[arg(
        long,
        help = FORMS_OF_URLS,
        global = true,
        env = "REDIS_URL",
        hide_env_values = true,
        default_value = "redis://127.0.0.1:6379"
    )]
    pub(crate) url: String,
    /// The start of all keys
    #[arg(long, global = true, value_parser = prefix, default_value = Keyspace::DEFAULT_PREFIX)]
    pub(crate) prefix: String,
    /// Whether keys carry their owner as a hash tag [default: on in a cluster, off elsewhere]
    #[arg(long, global = true, value_name = "ON|OFF", hide_possible_values = true)]
    pub(crate) hash_tags: Option<Switch>,
    /// Print one JSON object per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// Names one task.
#[derive(Debug, Args)]
pub(crate) struct TaskName {
    /// The owner, as `pmcptask owners` prints it
    pub(crate) owner: String,
    /// The task's id
    #[arg(value_name = "TASK", value_parser = task_id)]
    pub(crate) id: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the owners and how many tasks each has
    ///
    /// Walks through all keys, 500 at a time. A key that the server moves meanwhile can come twice.
    Owners {
        /// Stop after so many owners
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// List an owner's tasks, newest first
    Tasks {
        /// The owner, as `pmcptask owners` prints it
        owner: String,
        /// Stop after so many tasks
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[arg(long, help = STATUSES, value_parser = status)]
        status: Option<TaskStatus>,
    },
    /// Show a task with its record
    Show {
        #[command(flatten)]
        task: TaskName,
    },
    /// Print a line for each change of an owner's tasks, until interrupted
    ///
    /// Follows the newest tasks and those that come.
    Watch {
        /// The owner, as `pmcptask owners` prints it
        owner: String,
        /// How many tasks to follow at once. The oldest are given up for new ones
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = watched)]
        tasks: usize,
    },
    /// List the tasks that are not finished and have not changed for a while
    ///
    /// Reads the records of all tasks, of one owner or of all.
    Stuck {
        /// How long their record has not changed, such as 90s, 10m or 2h
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        older: Duration,
        /// Only the tasks of this owner
        owner: Option<String>,
    },
    /// Show tasks by owner and status, rates and waiting clients in the terminal, until q is pressed
    ///
    /// Reads the records of all tasks again and again, a limited number per second.
    Top {
        /// How many records to read per second at most
        #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = at_least_one)]
        records: usize,
    },
    /// Cancel a task, by the rules of pmcp-tasks
    Cancel {
        #[command(flatten)]
        task: TaskName,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Remove all tasks of an owner but the newest
    Trim {
        /// The owner, as `pmcptask owners` prints it
        owner: String,
        /// How many tasks stay
        #[arg(long, value_name = "N")]
        keep: usize,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Move all tasks of the prefix to keys with hash tags, as a cluster needs them, or back
    ///
    /// Renames pmcp:tasks:alice:t1 to pmcp:tasks:{alice}:t1 (on), or back (off). Stop the clients of the
    /// old names first. If it is interrupted, run it again. It does not ask.
    #[command(override_usage = "pmcptask hash-tags [OPTIONS] <on|off> <URL>")]
    HashTags {
        /// Which keys the tasks are to have
        to: Switch,
        /// The server, or the primary that Sentinels monitor. Counts instead of --url
        #[arg(value_name = "URL")]
        server: String,
    },
    /// Print a script that makes a shell complete the arguments
    Completions {
        /// The shell
        shell: Shell,
    },
}

fn prefix(text: &str) -> Result<String, String> {
    Keyspace::new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn task_id(text: &str) -> Result<String, &'static str> {
    // With a colon, the id would name a task of another owner.
    if text.is_empty() || text.contains(':') {
        Err("expected an id without a colon")
    } else {
        Ok(text.to_owned())
    }
}

fn status(text: &str) -> Result<TaskStatus, &'static str> {
    let name = serde_json::Value::String(text.to_owned());
    serde_json::from_value(name)
        .map_err(|_| "expected working, input_required, completed, failed or cancelled")
}

fn at_least_one(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|number| *number > 0).ok_or("expected a number of at least 1")
}

/// So many are listed at once, and each change is a walk through all.
fn watched(text: &str) -> Result<usize, &'static str> {
    let number = text.parse().ok();
    number.filter(|number| (1..=1_000).contains(number)).ok_or("expected a number from 1 to 1000")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn definition_has_no_contradictions() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn statuses_have_the_names_of_pmcp_tasks() {
        for of_upstream in [
            TaskStatus::Working,
            TaskStatus::InputRequired,
            TaskStatus::Completed,
            TaskStatus::Failed,
            TaskStatus::Cancelled,
        ] {
            assert_eq!(status(&of_upstream.to_string()), Ok(of_upstream));
        }
        assert!(status("done").is_err());
    }

    #[test]
    fn global_options_are_taken_on_both_sides_of_the_subcommand() {
        for line in ["pmcptask --json --prefix x owners", "pmcptask owners --json --prefix x"] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert!(arguments.global.json && arguments.global.prefix == "x");
        }
    }

    #[test]
    fn arguments_that_mean_nothing_are_refused() {
        for line in [
            "show alice a:b",
            "--prefix a:tasks:b owners",
            "stuck --older soon",
            "watch alice --tasks 0",
            "watch alice --tasks 1001",
            "tasks alice --status done",
            "trim alice",
        ] {
            let words = ["pmcptask"].into_iter().chain(line.split(' '));
            assert!(Arguments::try_parse_from(words).is_err(), "{line}");
        }
    }
}
