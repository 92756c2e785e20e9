//! Why a subcommand ends early, and the exit code for it.

use std::io;
use std::process::ExitCode;

use pmcp_tasks::{StorageError, TaskError};
use pmcptask_client::Error;
use pmcptask_schema::PrefixError;

use crate::key_move::MoveError;
use crate::printable::say;

/// The exit code for arguments that cannot be obeyed; clap has the same.
const USAGE: u8 = 2;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Its own words are those of the client, which name the address.
    #[error("{}", Error::of(.0).map_or_else(|| .0.to_string(), ToString::to_string))]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Move(#[from] MoveError),
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// What was to be left as it is. The keys that were in the way are named already.
    #[error("{0} tasks were left as they are")]
    Left(usize),
    /// Their failures are told already.
    #[error("the tasks of {0} owners could not be read")]
    Unread(usize),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("{0}: expected --yes, or a terminal to ask at, got neither; nothing was changed")]
    NotAllowed(String),
    #[error("nothing was changed")]
    Declined,
    #[error("the client no longer looks for new tasks")]
    TailEnded,
    #[error("cannot use the terminal: {0}")]
    Terminal(io::Error),
    #[error("cannot start: {0}")]
    Start(io::Error),
    #[error("top: expected a terminal, or --json, got neither")]
    NoTerminal,
}

impl Failure {
    /// Whether the same may succeed for another owner at once: the server has answered.
    pub(crate) fn is_of_one_owner(&self) -> bool {
        let Self::Storage(error) = self else { return false };
        matches!(
            Error::of(error),
            Some(
                Error::Corrupt { .. }
                    | Error::NoPermission { .. }
                    | Error::Refused { .. }
                    | Error::SlotMoving { .. }
            )
        )
    }

    /// Says what is wrong, and returns the exit code. A reader that has seen enough, such as `head`, is no
    /// failure.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            _ => say(&format!("pmcptask: {self}")),
        }
        match self {
            Self::NotAllowed(_) | Self::NoTerminal => ExitCode::from(USAGE),
            _ => ExitCode::FAILURE,
        }
    }
}
