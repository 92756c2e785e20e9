//! [`RedisBackendBuilder`]: what a backend can be told before it connects.

use std::fmt;
use std::time::Duration;

use pmcp_tasks::StorageError;
use pmcptask_schema::Keyspace;

use crate::backend::{HashTags, RedisBackend};
use crate::connection::{Connection, Timeouts};
use crate::error::Error;

/// Settings of a [`RedisBackend`] that is about to be connected; made by [`RedisBackend::builder`].
///
/// ```no_run
/// # use std::time::Duration;
/// # use pmcptask_client::RedisBackend;
/// # async fn example() -> Result<(), pmcp_tasks::StorageError> {
/// let backend = RedisBackend::builder("redis://127.0.0.1:6379/2")
///     .prefix("my-app")
///     .connect_timeout(Duration::from_secs(1))
///     .response_timeout(Duration::from_secs(30))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing before connect()"]
pub struct RedisBackendBuilder {
    url: String,
    prefix: String,
    hash_tags: HashTags,
    timeouts: Timeouts,
}

impl fmt::Debug for RedisBackendBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("RedisBackendBuilder")
            .field("prefix", &self.prefix)
            .field("hash_tags", &self.hash_tags)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

impl RedisBackendBuilder {
    fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            prefix: Keyspace::DEFAULT_PREFIX.to_owned(),
            hash_tags: HashTags::default(),
            timeouts: Timeouts::default(),
        }
    }

    /// What all keys start with; `pmcp` unless set. It must not contain, nor end in the start of,
    /// `:tasks:` or `:idx:`; with hash tags it must not hold `{`, unless it holds a whole hash tag.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Whether keys carry their owner as a hash tag. All clients of one data set have to agree.
    pub fn hash_tags(mut self, hash_tags: HashTags) -> Self {
        self.hash_tags = hash_tags;
        self
    }

    /// How long connecting may take at first, and how long a call waits for a connection that has been lost
    /// to come back; 2 s unless set. While a call waits, one attempt to connect takes at most half of it.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.connect = timeout;
        self
    }

    /// How long a call waits for the server's reply; 10 s unless set, enough for a list of hundreds of
    /// megabytes on a local network.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.response = timeout;
        self
    }

    /// Connects, and checks that the server has the module.
    ///
    /// # Errors
    ///
    /// [`StorageError::Backend`] with one sentence that says what to do, and an [`Error`] as its source:
    /// [`Error::Settings`], [`Error::NoServer`], [`Error::Authentication`], [`Error::ModuleNotLoaded`], or
    /// whatever else the server answers.
    pub async fn connect(self) -> Result<RedisBackend, StorageError> {
        let keyspace =
            self.hash_tags.keyspace(self.prefix).map_err(|error| Error::Settings(error.to_string()))?;
        let connection = Connection::open(&self.url, self.timeouts).await?;
        let backend = RedisBackend::from_parts(connection, keyspace, self.hash_tags);
        backend.check_module().await?;
        Ok(backend)
    }
}

impl RedisBackend {
    /// Connects to the server at `url` and checks that it has the module.
    ///
    /// The URL is that of the redis crate: `redis://[user:password@]host[:port][/database]`,
    /// `redis+unix:///path/to/socket`, and `rediss://…` with the feature `tls`. All settings have their
    /// defaults; see [`RedisBackend::builder`] for others.
    ///
    /// # Errors
    ///
    /// Those of [`RedisBackendBuilder::connect`].
    pub async fn new(url: &str) -> Result<Self, StorageError> {
        Self::builder(url).connect().await
    }

    /// Starts a backend with settings of one's own.
    pub fn builder(url: impl Into<String>) -> RedisBackendBuilder {
        RedisBackendBuilder::new(url)
    }
}
