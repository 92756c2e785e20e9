//! [`SaverBuilder`]: the settings of a saver.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use futures_util::future::try_join_all;
use pmcptask_client::{RedisBackend, RedisBackendBuilder};

use crate::compression::Compression;
use crate::error::Error;
use crate::threads::{Policy, Threads};

/// The longest JSON of a checkpoint that is read by default.
const LONGEST_RECORD: u64 = 256 * 1_024 * 1_024;

/// Settings of a saver that is not connected yet.
#[must_use = "a builder does nothing before connect()"]
pub struct SaverBuilder<S> {
    client: RedisBackendBuilder,
    connections: usize,
    policy: Policy,
    saver: PhantomData<S>,
}

impl<S> fmt::Debug for SaverBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaverBuilder")
            .field("client", &self.client)
            .field("connections", &self.connections)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Policy {
    pub(crate) fn new() -> Self {
        Self { ttl: None, refresh_on_read: false, compression: Compression::default(), limit: LONGEST_RECORD }
    }
}

#[allow(private_bounds, reason = "savers of this crate only")]
impl<S: From<Threads>> SaverBuilder<S> {
    pub(crate) fn new(url: &str, prefix: &str) -> Self {
        let client = RedisBackend::builder(url).prefix(prefix);
        Self { client, connections: 1, policy: Policy::new(), saver: PhantomData }
    }

    /// Sets the start of all keys. See [`RedisBackendBuilder::prefix`].
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.client = self.client.prefix(prefix);
        self
    }

    /// Sets how long each record lives after it was saved, by the clocks of client and server. Must be more than 0.
    /// Default: for ever.
    pub fn default_ttl(mut self, ttl: Duration) -> Self {
        self.policy.ttl = Some(ttl);
        self
    }

    /// Makes each read give what it has read its whole TTL again, which costs the read one more round trip.
    /// Default: no. Changes nothing without a TTL.
    pub fn refresh_on_read(mut self, yes: bool) -> Self {
        self.policy.refresh_on_read = yes;
        self
    }

    /// Sets how records are compressed. Default: Zstandard, from 1 KB on.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.policy.compression = compression;
        self
    }

    /// Limits the JSON of a record, in bytes. Default: 256 MiB. A longer one is neither saved nor read. A compressed record
    /// that says or turns out to be longer is refused before it takes more memory than this.
    pub fn longest_record(mut self, bytes: u64) -> Self {
        self.policy.limit = bytes;
        self
    }

    /// Sets how many connections each server gets. Must be more than 0. Default: 1. Each call takes the connection with
    /// the fewest calls in flight. So with more connections, a small checkpoint does not wait until a large one has
    /// passed.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// Changes the settings of the client, for example `.client(|client| client.client_name("agents"))`: timeouts,
    /// replicas that writes wait for, TLS, and all others. Savers always read from the primary.
    pub fn client(mut self, change: impl FnOnce(RedisBackendBuilder) -> RedisBackendBuilder) -> Self {
        self.client = change(self.client);
        self
    }

    /// Connects, and checks that each server has the module.
    ///
    /// # Errors
    ///
    /// [`Error::Settings`]; otherwise those of [`RedisBackendBuilder::connect`].
    pub async fn connect(self) -> Result<S, Error> {
        if self.policy.ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(Error::Settings("default TTL: expected more than 0, got 0".to_owned()));
        }
        if self.connections == 0 {
            return Err(Error::Settings("connections: expected 1 or more, got 0".to_owned()));
        }
        // A replica may be behind: a run would go on from a state that is not the last one.
        let client = self.client.read_from_replicas(false);
        let others = try_join_all((1..self.connections).map(|_| client.clone().connect()));
        let (first, others) = futures_util::future::try_join(client.clone().connect(), others).await?;
        Ok(Threads::new(first, others, self.policy).into())
    }
}
