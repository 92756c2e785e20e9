//! What a test reports besides pass or fail.

use std::io::Write as _;

use pmcp_tasks::StorageError;
use pmcptask_client::Error;

/// The client's error inside an error of the trait.
///
/// # Panics
///
/// If the error has no error of the client in it.
#[must_use]
pub fn reason(error: &StorageError) -> &Error {
    Error::of(error).unwrap_or_else(|| panic!("an error of the trait: {error}"))
}

/// Shows a line whether or not the test passes. The test runner captures what is printed otherwise.
pub fn show(line: &str) {
    // One write, so that lines of tests that run at the same time do not mix.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Reports that a test cannot run with this server, and why.
pub fn skipped(test: &str, why: &str) {
    show(&format!("skipped: {test}: {why}"));
}
