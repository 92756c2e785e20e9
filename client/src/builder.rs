//! [`RedisBackendBuilder`]: the settings of a backend.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pmcp_tasks::StorageError;
use pmcptask_schema::Keyspace;

use crate::address::Address;
use crate::backend::{LIST_PAGE, RedisBackend};
use crate::breaker::Breaker;
use crate::connection::{Connection, Primary};
use crate::error::{self, Error};
use crate::hash_tags::HashTags;
use crate::session::Session;
use crate::settings::{Acknowledgement, Settings};

/// Settings of a [`RedisBackend`] that is not connected yet; made by [`RedisBackend::builder`].
///
/// ```
/// use std::time::Duration;
///
/// use pmcptask_client::RedisBackend;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let backend = RedisBackend::builder(&url)
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
    hash_tags: Option<HashTags>,
    settings: Settings,
    #[cfg(feature = "circuit-breaker")]
    circuit_breaker: Option<crate::CircuitBreaker>,
    list_page_size: usize,
}

impl fmt::Debug for RedisBackendBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password, and the certificates hold a private key.
        f.debug_struct("RedisBackendBuilder")
            .field("prefix", &self.prefix)
            .field("hash_tags", &self.hash_tags)
            .field("timeouts", &self.settings.timeouts)
            .field("client_name", &self.settings.client_name)
            .field("acknowledgement", &self.settings.acknowledgement)
            .field("reads_from_replicas", &self.settings.reads_from_replicas)
            .field("list_page_size", &self.list_page_size)
            .finish_non_exhaustive()
    }
}

impl RedisBackendBuilder {
    fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            prefix: Keyspace::DEFAULT_PREFIX.to_owned(),
            hash_tags: None,
            settings: Settings::default(),
            #[cfg(feature = "circuit-breaker")]
            circuit_breaker: None,
            list_page_size: LIST_PAGE,
        }
    }

    /// Sets the start of all keys. Must not contain `:tasks:` or `:idx:`, or end in the start of either. With
    /// hash tags, must not contain `{`, unless it contains a whole hash tag. Default: `pmcp`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets whether keys carry their owner as a hash tag. All clients of one data set need the same setting.
    /// Default: on in a cluster, off elsewhere.
    pub fn hash_tags(mut self, hash_tags: HashTags) -> Self {
        self.hash_tags = Some(hash_tags);
        self
    }

    /// Limits how long the first connection may take, and how long a call waits while the client reconnects.
    /// Must be more than 0. Default: 2 s. Each attempt to reconnect takes at most half of this time.
    ///
    /// In a cluster and with Sentinels, a call waits for a failover or a moving slot just as long. A failover
    /// takes a little longer than `cluster-node-timeout` or `down-after-milliseconds`. For calls to outlast a
    /// failover, set more than that.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeouts.connect = timeout;
        self
    }

    /// Limits how long a call waits for the server's reply. Must be more than 0. Default: 10 s, enough for a
    /// list of hundreds of megabytes on a local network.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeouts.response = timeout;
        self
    }

    /// Sets how often the client sends a `PING` on each connection, and after how much silence the operating
    /// system sends TCP keep-alive probes. Must be more than 0. Default: 15 s. If a `PING` gets no reply
    /// within the response timeout, the client reconnects.
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.settings.timeouts.keep_alive = interval;
        self
    }

    /// Sets the name of the connections in `CLIENT LIST`: printable ASCII characters without spaces.
    /// Default: none.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.settings.client_name = Some(name.into());
        self
    }

    /// Makes each write wait, with `WAIT`, until this many replicas have it too. `within` must be more than 0
    /// and less than the response timeout. If too few replicas have a write in time, the write was made but
    /// fails with [`Error::NotReplicated`]. Default: off.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pmcp_tasks::store::backend::StorageBackend;
    /// use pmcptask_client::{Applied, Error, RedisBackend};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
    /// # let url = server.url();
    /// let backend =
    ///     RedisBackend::builder(&url).wait_for_replicas(1, Duration::from_millis(50)).connect().await?;
    /// // This server has no replica.
    /// let error = backend.put("alice:t1", b"working").await.unwrap_err();
    /// assert_eq!(Error::of(&error).map(Error::was_applied), Some(Applied::Yes));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Replication is asynchronous: without this setting, a failover may lose the last writes. With it, each
    /// write costs one more round trip, to the replicas. Writes have a connection of their own, so reads do
    /// not wait. Writes that arrive while others wait form a group, which is sent together and waits
    /// together. While replicas are missing, a write takes up to twice `within`, and `within` more for each
    /// further thousand concurrent writes. A conflict changes nothing, so it waits only for the groups before
    /// its own.
    pub fn wait_for_replicas(mut self, replicas: u16, within: Duration) -> Self {
        self.settings.acknowledgement = Some(Acknowledgement { replicas, within });
        self
    }

    /// In a cluster and with Sentinels, makes `get` and `list_by_prefix` ask a replica if one is connected.
    /// With one server, [`connect`](Self::connect) fails with [`Error::Settings`]. Default: off.
    ///
    /// ```no_run
    /// # use pmcptask_client::RedisBackend;
    /// # async fn example() -> Result<(), pmcp_tasks::StorageError> {
    /// let url = "redis+sentinel://sentinel-1:26379,sentinel-2:26379,sentinel-3:26379/tasks";
    /// let backend = RedisBackend::builder(url).read_from_replicas(true).connect().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A replica's reply may be stale: usually by less than a millisecond, by seconds under load, and without
    /// limit while the replica's link to the primary is cut. The primary is asked too if the replica does not
    /// have the task or list, or takes longer than the connect timeout. A `put_if_version` with a version
    /// that was read from a replica may conflict once more than otherwise. Nothing else is at stake, because
    /// writes go to the primary.
    pub fn read_from_replicas(mut self, yes: bool) -> Self {
        self.settings.reads_from_replicas = yes;
        self
    }

    /// Sets how many tasks `list_by_prefix` reads at once. Must be more than 0. Default: 1,000. If the owner
    /// has no more tasks, the list is one round trip and one snapshot. A longer list is read page by page, so
    /// that it does not hold the server up. It contains no task twice, and every task that existed
    /// throughout. The response timeout applies to each page.
    pub fn list_page_size(mut self, tasks: usize) -> Self {
        self.list_page_size = tasks;
        self
    }

    /// Makes calls fail at once, with [`Error::CircuitOpen`], while the server does not answer. Default: off.
    #[cfg(feature = "circuit-breaker")]
    pub fn circuit_breaker(mut self, breaker: crate::CircuitBreaker) -> Self {
        self.circuit_breaker = Some(breaker);
        self
    }

    /// Sets user and password for the Sentinels themselves. The URL's login is for the servers.
    /// Default: none.
    pub fn sentinel_login(mut self, user: Option<&str>, password: impl Into<String>) -> Self {
        self.settings.sentinel_login = Some((user.map(str::to_owned), password.into()));
        self
    }

    /// For `rediss://` only. Trusts servers whose certificate chain ends at one of these authorities (PEM),
    /// and no others. Default: the authorities that the operating system trusts.
    ///
    /// ```no_run
    /// # use pmcptask_client::RedisBackend;
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let backend = RedisBackend::builder("rediss://redis.internal:6379")
    ///     .root_certificates(std::fs::read("authority.pem")?)
    ///     .client_certificate(std::fs::read("client.pem")?, std::fs::read("client.key")?)
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tls")]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates().root_cert = Some(pem.into());
        self
    }

    /// For `rediss://` only. Sets the certificate and private key, both PEM, for a server that asks clients
    /// for a certificate (`tls-auth-clients`). Default: none.
    #[cfg(feature = "tls")]
    pub fn client_certificate(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        let (client_cert, client_key) = (certificate.into(), key.into());
        self.certificates().client_tls = Some(redis::ClientTlsConfig { client_cert, client_key });
        self
    }

    #[cfg(feature = "tls")]
    fn certificates(&mut self) -> &mut redis::TlsCertificates {
        let none = redis::TlsCertificates { client_tls: None, root_cert: None };
        self.settings.certificates.get_or_insert(none)
    }

    /// Opens a connection for other commands, to the same server or to the primary that the Sentinels name.
    /// The server needs no module. The connection does not reconnect.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect), but not [`Error::ModuleNotLoaded`]; [`Error::Settings`] for
    /// a cluster.
    pub async fn open_connection(
        self,
    ) -> Result<impl redis::aio::ConnectionLike + Clone + Send + Sync + 'static, StorageError> {
        let (mut settings, url) = (self.settings, self.url);
        let address = Address::parse(&url, &mut settings)?;
        Ok(Connection::open_once(address, settings).await?)
    }

    /// Opens a connection to each primary, for commands that no key routes. For the command `pmcptask`.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect), but not [`Error::ModuleNotLoaded`].
    #[doc(hidden)]
    pub async fn open_primaries(self) -> Result<Vec<Primary>, StorageError> {
        let (mut settings, url) = (self.settings, self.url);
        let address = Address::parse(&url, &mut settings)?;
        Ok(Primary::open_all(address, settings).await?)
    }

    /// Connects, and checks that the server, or each primary of a cluster, has the module.
    ///
    /// # Errors
    ///
    /// [`StorageError::Backend`], whose message says what to do. [`Error::of`] returns the [`Error`] in it:
    /// [`Error::Settings`], [`Error::NoServer`], [`Error::Authentication`], [`Error::ModuleNotLoaded`], or
    /// another variant if the server refuses for another reason.
    pub async fn connect(self) -> Result<RedisBackend, StorageError> {
        let (mut settings, url) = (self.settings, self.url);
        let address = Address::parse(&url, &mut settings)?;
        let hash_tags = self.hash_tags.unwrap_or_else(|| HashTags::default_for(&address));
        let keyspace = hash_tags.keyspace(self.prefix).map_err(|error| Error::Settings(error.to_string()))?;
        let is_spread = matches!(address, Address::Cluster(_)) && !keyspace.prefix_is_hash_tag();
        if is_spread && hash_tags == HashTags::Off {
            return Err(error::hash_tags_are_off().into());
        }
        settings.check()?;
        if self.list_page_size == 0 {
            return Err(Error::Settings("list page size: expected more than 0, got 0".to_owned()).into());
        }
        #[cfg(feature = "circuit-breaker")]
        let breaker = match self.circuit_breaker {
            Some(circuit_breaker) => Breaker::new(circuit_breaker)?,
            None => Breaker::default(),
        };
        #[cfg(not(feature = "circuit-breaker"))]
        let breaker = Breaker::default();
        let waiters = Arc::default();
        let connection = Connection::open(address, settings, &waiters).await?;
        let session = Session::new(connection, waiters, breaker, keyspace, hash_tags);
        let backend = RedisBackend::from_parts(session, self.list_page_size);
        backend.check_health().await?;
        Ok(backend)
    }
}

impl RedisBackend {
    /// Connects to the server or servers at `url`, and checks that they have the module.
    ///
    /// | URL | connects to |
    /// |---|---|
    /// | `redis://[user:password@]host[:port][/database]` | one server |
    /// | `redis+unix:///path/to/socket` | one server, through its socket |
    /// | `redis+cluster://[user:password@]host[:port][,host[:port]…]`, or `redis://…?cluster` | a cluster, through any of its nodes |
    /// | `redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/database]` | the primary that these Sentinels monitor as `service` |
    ///
    /// `rediss` instead of `redis` means TLS, and needs the feature `tls`. Percent-encode special characters
    /// in user, password and parameters.
    ///
    /// Parameters follow a question mark. Their names are those of `redis-py` and the `redis` crate. All
    /// others are an [`Error::Settings`].
    ///
    /// | parameter | meaning |
    /// |---|---|
    /// | `db` | the database; overrides the one in the path |
    /// | `protocol` | RESP version `2` or `3`. Default: 3 |
    /// | `user` or `username`, `pass` or `password` | the login, if there is none before the host |
    /// | `client_name` | see [`client_name`](RedisBackendBuilder::client_name) |
    /// | `socket_connect_timeout` | seconds, such as `1.5`; see [`connect_timeout`](RedisBackendBuilder::connect_timeout) |
    /// | `socket_timeout` | seconds; see [`response_timeout`](RedisBackendBuilder::response_timeout) |
    /// | `health_check_interval` | seconds; see [`keep_alive`](RedisBackendBuilder::keep_alive) |
    /// | `socket_keepalive` | only `yes`, which is always on |
    /// | `cluster` | `yes` or no value: the server is a node of a cluster |
    ///
    /// All other settings have their defaults; [`RedisBackend::builder`] changes them. A URL parameter
    /// overrides the builder's setting.
    ///
    /// # Errors
    ///
    /// Those of [`RedisBackendBuilder::connect`].
    pub async fn new(url: &str) -> Result<Self, StorageError> {
        Self::builder(url).connect().await
    }

    /// Returns a builder, for settings other than the defaults.
    pub fn builder(url: impl Into<String>) -> RedisBackendBuilder {
        RedisBackendBuilder::new(url)
    }
}
