//! The way to the servers: the client's, and a connection to each primary for what no key routes.

use pmcp_tasks::StorageError;
use pmcptask_client::{HashTags, Primary, RedisBackend};

use crate::arguments::{Global, Switch};

/// What the options say about the servers. Nothing is connected yet.
pub(crate) struct Servers {
    url: String,
    prefix: String,
    hash_tags: Option<HashTags>,
}

impl Servers {
    pub(crate) fn new(global: &Global) -> Self {
        let hash_tags = global.hash_tags.map(|switch| match switch {
            Switch::On => HashTags::On,
            Switch::Off => HashTags::Off,
        });
        Self { url: global.url.clone(), prefix: global.prefix.clone(), hash_tags }
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn builder(&self) -> pmcptask_client::RedisBackendBuilder {
        let builder = RedisBackend::builder(&self.url).prefix(&self.prefix).client_name("pmcptask");
        match self.hash_tags {
            Some(hash_tags) => builder.hash_tags(hash_tags),
            None => builder,
        }
    }

    /// For everything that has an owner. Follows redirects and failovers.
    pub(crate) async fn backend(&self) -> Result<RedisBackend, StorageError> {
        self.builder().connect().await
    }

    /// For walks through the keys, and for `INFO`.
    pub(crate) async fn primaries(&self) -> Result<Vec<Primary>, StorageError> {
        self.builder().open_primaries().await
    }
}
