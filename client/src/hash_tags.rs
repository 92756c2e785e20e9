//! [`HashTags`]: whether the keys of an owner share a slot.

use pmcptask_schema::{Keyspace, PrefixError};

use crate::address::Address;

/// Whether keys carry their owner as a hash tag. All clients of one data set need the same setting.
///
/// ```no_run
/// # use pmcptask_client::{HashTags, RedisBackend};
/// # async fn example() -> Result<(), pmcp_tasks::StorageError> {
/// // On by default: all tasks of an owner are on one node, and owners are spread over the nodes.
/// let backend = RedisBackend::new("redis+cluster://node-1:7000,node-2:7000").await?;
/// // One server with the keys of a cluster: the data can move into a cluster as it is.
/// let backend =
///     RedisBackend::builder("redis://127.0.0.1:6379").hash_tags(HashTags::On).connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HashTags {
    /// `pmcp:tasks:alice:t1`: the keys that `pmcp-tasks` writes. The default outside a cluster. A cluster
    /// needs [`HashTags::On`], unless the prefix itself is a hash tag.
    #[default]
    Off,
    /// `pmcp:tasks:{alice}:t1`, braces literal: all keys of an owner share a slot. The default in a cluster.
    ///
    /// A hash tag cannot be empty or start with `}`. The keys of an owner like that carry `_{_}` before
    /// the owner.
    On,
}

impl HashTags {
    /// The default for an address. In a cluster, a task's key and its index key have to share a slot.
    pub(crate) fn default_for(address: &Address) -> Self {
        if matches!(address, Address::Cluster(_)) { Self::On } else { Self::Off }
    }

    pub(crate) fn keyspace(self, prefix: impl Into<String>) -> Result<Keyspace, PrefixError> {
        let keyspace = Keyspace::new(prefix)?;
        match self {
            Self::Off => Ok(keyspace),
            Self::On => keyspace.with_hash_tags(),
        }
    }
}
