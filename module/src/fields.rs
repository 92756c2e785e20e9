//! The names of a hash's fields and the first version, as server strings that are created once.

use pmcptask_schema::fields;

use crate::server::Literal;

pub(crate) static VERSION: Literal = Literal::new(fields::VERSION);
pub(crate) static DATA: Literal = Literal::new(fields::DATA);
pub(crate) static EXPIRES_AT: Literal = Literal::new(fields::EXPIRES_AT);
/// The version of each new task.
pub(crate) static FIRST_VERSION: Literal = Literal::new("1");
