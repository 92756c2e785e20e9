//! The command `pmcptask`. What it does is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    pmcptask_cli::run()
}
