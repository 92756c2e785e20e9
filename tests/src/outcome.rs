//! What a test has to say besides whether it passed.

use std::io::Write as _;

use pmcp_tasks::StorageError;
use pmcptask_client::Error;

/// Why a call of this project's backend failed.
///
/// # Panics
///
/// Where the error is one of the trait's own.
#[must_use]
pub fn reason(error: &StorageError) -> &Error {
    Error::of(error).unwrap_or_else(|| panic!("an error of the trait: {error}"))
}

/// Shows a line whether or not the test passes: test programs keep back what is printed.
pub fn show(line: &str) {
    // One write, so that lines of tests which run at the same time stay whole.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Says that a test has nothing to look at with this server, and why.
pub fn skipped(test: &str, why: &str) {
    show(&format!("skipped: {test}: {why}"));
}
