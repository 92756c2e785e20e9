//! What the suites of `RedisSessionStorage` share.

use graph_flow::{GraphError, Session};

/// A session as a run has it that has read or saved this version.
pub(crate) fn session(id: &str, version: u64) -> Session {
    let mut session = Session::new_from_task(id.to_owned(), "start");
    session.version = version;
    session
}

/// The numbers in the text of a conflict; none if it is another outcome.
pub(crate) fn numbers_of_conflict(saved: &Result<(), GraphError>) -> Option<Vec<u64>> {
    let Err(GraphError::SessionConflict(text)) = saved else { return None };
    let numbers = text.split(|letter: char| !letter.is_ascii_digit());
    Some(numbers.filter_map(|number| number.parse().ok()).collect())
}
