//! Failures that no client is told of.

use crate::server::{Context, Failed};
use crate::statistics;

/// Counts and logs an unexpected failure.
pub(crate) fn report(context: &Context, result: Result<(), Failed>, during: &str) {
    if let Err(failed) = result {
        statistics::FAILED_CALLS.increment();
        context.log_warning(&format!("{failed} while {during}"));
    }
}
