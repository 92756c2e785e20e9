//! What the suites of savers share.
// Each suite uses its part.
#![allow(dead_code)]

pub(crate) mod savers;

use adk_graph::error::GraphError;
use adk_graph::state::{Checkpoint, State};
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_tests::{Dice, Server, integer};
use serde_json::{Value, json};

pub(crate) async fn saver(server: &Server) -> RedisCheckpointer {
    RedisCheckpointer::new(&server.url()).await.unwrap()
}

/// A checkpoint that is created now.
pub(crate) fn checkpoint(thread: &str, step: usize) -> Checkpoint {
    Checkpoint::new(thread, State::from([("step".to_owned(), json!(step))]), step, vec!["next".to_owned()])
}

pub(crate) fn named(thread: &str, id: &str, step: usize) -> Checkpoint {
    Checkpoint { checkpoint_id: id.to_owned(), ..checkpoint(thread, step) }
}

/// A checkpoint whose state has this many characters, none of which JSON escapes. No compression sees that they repeat,
/// because they do so only after a million.
pub(crate) fn of_noise(thread: &str, id: &str, characters: usize) -> Checkpoint {
    let mut dice = Dice::new(1);
    let character = |_| char::from(b'0' + u8::try_from(dice.roll(40)).unwrap());
    let noise: String = (0..characters.min(1_000_000)).map(character).collect();
    let noise: String = noise.chars().cycle().take(characters).collect();
    Checkpoint { state: State::from([("noise".to_owned(), noise.into())]), ..named(thread, id, 0) }
}

/// All that a checkpoint holds.
pub(crate) fn all_of(checkpoint: &Checkpoint) -> Value {
    serde_json::to_value(checkpoint).unwrap()
}

pub(crate) fn all_of_each(checkpoints: &[Checkpoint]) -> Vec<Value> {
    checkpoints.iter().map(all_of).collect()
}

pub(crate) fn steps(checkpoints: &[Checkpoint]) -> Vec<usize> {
    checkpoints.iter().map(|checkpoint| checkpoint.step).collect()
}

/// The step of what a load has found.
pub(crate) fn step(found: Result<Option<Checkpoint>, GraphError>) -> Option<usize> {
    found.unwrap().map(|checkpoint| checkpoint.step)
}

/// How many keys a server has.
pub(crate) fn keys(server: &Server) -> i64 {
    integer(&server.wire().call(&["DBSIZE"]))
}
