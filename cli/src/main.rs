//! Moves the tasks of a server to keys with hash tags, as a cluster needs them, or back.

use std::error::Error;
use std::process::ExitCode;

use pmcptask_client::RedisBackend;
use pmcptask_hash_tags::{KeyMove, move_keys};
use pmcptask_schema::Keyspace;

const USAGE: &str = "usage: pmcptask-hash-tags on|off URL [PREFIX]

Renames pmcp:tasks:alice:t1 to pmcp:tasks:{alice}:t1 (on), or back (off), for all tasks of the prefix (pmcp).
Stop the clients of the old names first. If it is interrupted, run it again.
URL: redis://host:port/database, rediss://…, redis+unix://… or redis+sentinel://host:port,…/service";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (has_hash_tags, url, prefix) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["on", url] => (true, url, Keyspace::DEFAULT_PREFIX),
        ["off", url] => (false, url, Keyspace::DEFAULT_PREFIX),
        ["on", url, prefix] => (true, url, prefix),
        ["off", url, prefix] => (false, url, prefix),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(has_hash_tags, url, prefix) {
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        Ok(done) => {
            println!("{} tasks moved", done.moved);
            for key in &done.left {
                eprintln!("left as it is, because another key is in the way: {key}");
            }
            if done.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

fn run(has_hash_tags: bool, url: &str, prefix: &str) -> Result<KeyMove, Box<dyn Error>> {
    let keyspace = Keyspace::new(prefix)?;
    let target = if has_hash_tags { keyspace.with_hash_tags()? } else { keyspace };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connection = RedisBackend::builder(url).open_connection().await?;
        Ok(move_keys(&mut connection, &target).await?)
    })
}
