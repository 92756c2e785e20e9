//! Moves the tasks of a server to keys with hash tags, as a cluster needs them, or back.

use std::process::ExitCode;

use pmcptask_client::{HashTags, RedisBackend};

const USAGE: &str = "usage: pmcptask-hash-tags on|off URL [PREFIX]

Renames pmcp:tasks:alice:t1 to pmcp:tasks:{alice}:t1 (on), or back (off), for all tasks of the prefix (pmcp).
Stop the clients of the old names first. If it is interrupted, run it again.
URL: redis://host:port/database, rediss://…, redis+unix://… or redis+sentinel://host:port,…/service";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (hash_tags, url, prefix) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["on", url] => (HashTags::On, url, "pmcp"),
        ["off", url] => (HashTags::Off, url, "pmcp"),
        ["on", url, prefix] => (HashTags::On, url, prefix),
        ["off", url, prefix] => (HashTags::Off, url, prefix),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let moving = RedisBackend::builder(url).prefix(prefix).hash_tags(hash_tags).move_keys();
    let moved = match runtime {
        Ok(runtime) => runtime.block_on(moving).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match moved {
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
