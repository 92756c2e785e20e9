//! `owners`, and the walk through the keys that finds them.

use pmcp_tasks::StorageError;
use pmcptask_client::{Primary, RedisBackend};
use redis::{cmd, pipe};
use serde::Serialize;

use crate::failure::Failure;
use crate::key_move;
use crate::output::{Output, Row};
use crate::printable::in_line;
use crate::servers::Servers;

/// How many keys one `SCAN` looks at. It takes the server about a millisecond.
pub(crate) const KEYS_AT_ONCE: u64 = 500;

/// An owner with the number of entries in its index. The entry of a task that something else than the module
/// has ended stays until the module's walks find it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Owner {
    pub(crate) owner: String,
    pub(crate) tasks: u64,
}

impl Row for Owner {
    fn header() -> Option<String> {
        Some(format!("{:>9}  OWNER", "TASKS"))
    }

    fn line(&self) -> String {
        format!("{:>9}  {}", self.tasks, in_line(&self.owner))
    }
}

/// Prints the owners as they are found.
pub(crate) async fn list(
    servers: &Servers,
    limit: Option<usize>,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut walk = OwnerWalk::new(servers.backend().await?, servers.primaries().await?, servers.prefix());
    let mut left = limit.unwrap_or(usize::MAX);
    while let Some(found) = walk.next().await? {
        for owner in found.iter().take(left) {
            output.row(owner)?;
        }
        output.flush()?;
        left = left.saturating_sub(found.len());
        if left == 0 {
            break;
        }
    }
    Ok(())
}

/// Goes through the keys of all primaries, one primary after the other. Keeps a cursor, and nothing of what
/// it found.
///
/// An owner who is there all the time is found at least once. While a server changes the size of its table,
/// an owner can be found twice, and while slots move, also not at all.
pub(crate) struct OwnerWalk {
    backend: RedisBackend,
    /// The last one is at work.
    primaries: Vec<Primary>,
    cursor: u64,
    pattern: String,
}

impl OwnerWalk {
    pub(crate) fn new(backend: RedisBackend, mut primaries: Vec<Primary>, prefix: &str) -> Self {
        primaries.reverse();
        Self { backend, primaries, cursor: 0, pattern: key_move::escape(prefix) + ":idx:*" }
    }

    /// The owners among the next [`KEYS_AT_ONCE`] keys, perhaps none of them. None: all keys were looked at.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Owner>>, StorageError> {
        let Some(primary) = self.primaries.last() else { return Ok(None) };
        let mut scan = cmd("SCAN");
        scan.arg(self.cursor)
            .arg("MATCH")
            .arg(&self.pattern)
            .arg("COUNT")
            .arg(KEYS_AT_ONCE)
            .arg("TYPE")
            .arg("zset");
        let (cursor, keys): (u64, Vec<Vec<u8>>) = primary.read("the keys", &scan).await?;
        let mut owners = Vec::new();
        let mut sizes = pipe();
        for key in &keys {
            // The client can name no owner that is not UTF-8.
            let key = str::from_utf8(key).ok();
            let owner = key.map(|key| self.backend.owner_of_index(key)).transpose()?.flatten();
            if let (Some(key), Some(owner)) = (key, owner) {
                sizes.zcard(key);
                owners.push(owner);
            }
        }
        let sizes: Vec<Option<u64>> =
            if owners.is_empty() { Vec::new() } else { primary.read_all("the indexes", sizes).await? };
        self.cursor = cursor;
        if cursor == 0 {
            self.primaries.pop();
        }
        let owners = owners.into_iter().zip(sizes);
        // An index that is on its way to another node is found there, or was. Another one may have gone meanwhile. What the
        // user may not read is not shown.
        let owners = owners.filter_map(|(owner, tasks)| Some(Owner { owner, tasks: tasks? }));
        Ok(Some(owners.filter(|owner| owner.tasks > 0).collect()))
    }
}
