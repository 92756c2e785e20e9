//! What the command `pmcptask` does beyond looking: moves the tasks of a data set to keys with hash tags, or back.

mod key_move;

pub use key_move::{KeyMove, MoveError, move_keys};
