//! `hash-tags`: what [`move_keys`] does, for the shell.

use std::collections::BTreeSet;

use pmcptask_client::RedisBackend;
use pmcptask_schema::Keyspace;
use serde::Serialize;

use crate::arguments::Switch;
use crate::failure::Failure;
use crate::key_move::{KeyMove, move_keys};
use crate::output::{Output, Row};
use crate::printable::{in_line, say};
use crate::servers::Servers;

#[derive(Serialize)]
struct Moved {
    moved: u64,
    left: BTreeSet<String>,
}

impl Row for Moved {
    fn header() -> Option<String> {
        None
    }

    fn line(&self) -> String {
        format!("{} tasks moved", self.moved)
    }
}

pub(crate) async fn move_all(
    servers: &Servers,
    to: Switch,
    url: String,
    output: &mut Output,
) -> Result<(), Failure> {
    let keyspace = Keyspace::new(servers.prefix())?;
    let target = if to == Switch::On { keyspace.with_hash_tags()? } else { keyspace };
    let mut connection = RedisBackend::builder(url).open_connection().await?;
    let KeyMove { moved, left } = move_keys(&mut connection, &target).await?;
    for key in &left {
        say(&format!("left as it is, because another key is in the way: {}", in_line(key)));
    }
    let count = left.len();
    output.row(&Moved { moved, left })?;
    output.flush()?;
    if count == 0 { Ok(()) } else { Err(Failure::Left(count)) }
}
