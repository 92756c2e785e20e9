//! [`RedisBackendBuilder`]: what a backend can be told before it connects.

use std::fmt;
use std::time::Duration;

use pmcp_tasks::StorageError;
use pmcptask_schema::Keyspace;

use crate::address::Address;
use crate::backend::{LIST_PAGE, RedisBackend};
use crate::breaker::Breaker;
use crate::connection::{Acknowledgement, Connection, Settings};
use crate::error::{self, Error};
use crate::hash_tags::HashTags;
use crate::session::Session;

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
    hash_tags: Option<HashTags>,
    settings: Settings,
    #[cfg(feature = "circuit-breaker")]
    circuit_breaker: Option<crate::CircuitBreaker>,
    list_page_size: usize,
}

impl fmt::Debug for RedisBackendBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password, and a certificate's key is one.
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

    /// What all keys start with; `pmcp` unless set. It must not contain, nor end in the start of,
    /// `:tasks:` or `:idx:`; with hash tags it must not hold `{`, unless it holds a whole hash tag.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Whether keys carry their owner as a hash tag; on in a cluster and off elsewhere unless set. All clients
    /// of one data set have to agree.
    pub fn hash_tags(mut self, hash_tags: HashTags) -> Self {
        self.hash_tags = Some(hash_tags);
        self
    }

    /// How long connecting may take at first, and how long a call waits for a connection that has been lost
    /// to come back; 2 s unless set. While a call waits, one attempt to connect takes at most half of it.
    ///
    /// In a cluster and with Sentinels a call waits so long for a failover too, or for a slot that is moving.
    /// A failover takes a little longer than `cluster-node-timeout` or `down-after-milliseconds`: set more than
    /// that, if calls are to ride it out.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeouts.connect = timeout;
        self
    }

    /// How long a call waits for the server's reply; 10 s unless set, enough for a list of hundreds of
    /// megabytes on a local network.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeouts.response = timeout;
        self
    }

    /// How long a connection may be left alone before the server is asked for a sign of life, and the
    /// operating system asks the host for one; 15 s unless set. A server that gives none within the response
    /// timeout has its connection replaced.
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.settings.timeouts.keep_alive = interval;
        self
    }

    /// The connections' name in `CLIENT LIST`: printable characters without spaces. None unless set.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.settings.client_name = Some(name.into());
        self
    }

    /// Has each write wait until so many replicas have it too, with `WAIT`. A write that too few have in time
    /// fails with [`Error::NotReplicated`], although it was made. Not done unless set.
    ///
    /// Replication is asynchronous: without this, the last writes before a failover may be lost. It costs each
    /// write a round trip to the replicas. Such writes have a connection of their own, so reads go on. Those that come
    /// while others wait go out together and wait together: while replicas are missing, a write takes up to twice
    /// `within`, and once more for each further thousand at once. A conflict, which changes nothing, waits for
    /// the group before it at most.
    pub fn wait_for_replicas(mut self, replicas: u16, within: Duration) -> Self {
        self.settings.acknowledgement = Some(Acknowledgement { replicas, within });
        self
    }

    /// Has `get` and `list_by_prefix` ask a replica, where there is one in reach, in a cluster and with
    /// Sentinels. Off unless set.
    ///
    /// What a replica replies may be behind by what has not been replicated yet: usually less than a millisecond,
    /// seconds under load, and without limit where its link to the primary is cut. A task or list that it does
    /// not have is looked for at the primary, and so is what a replica takes longer for than the connect timeout. A
    /// `put_if_version` with a version that was read from a replica
    /// may conflict once more than otherwise; nothing else is at stake, because writes go to the primary.
    pub fn read_from_replicas(mut self, yes: bool) -> Self {
        self.settings.reads_from_replicas = yes;
        self
    }

    /// How many tasks `list_by_prefix` reads in one go; 1,000 unless set. Of an owner who has no more, the list is one
    /// round trip and one snapshot. Of others it is read page by page, so that no list holds the server up for long: no
    /// task comes twice, and none is left out that was there all the time. Each page may take the response timeout.
    pub fn list_page_size(mut self, tasks: usize) -> Self {
        self.list_page_size = tasks;
        self
    }

    /// Has calls fail at once, with [`Error::CircuitOpen`], while the server does not answer. Off unless set.
    #[cfg(feature = "circuit-breaker")]
    pub fn circuit_breaker(mut self, breaker: crate::CircuitBreaker) -> Self {
        self.circuit_breaker = Some(breaker);
        self
    }

    /// User and password of the Sentinels themselves, if they have one: the URL's are those of the servers.
    pub fn sentinel_login(mut self, user: Option<&str>, password: impl Into<String>) -> Self {
        self.settings.sentinel_login = Some((user.map(str::to_owned), password.into()));
        self
    }

    /// Trusts servers whose certificate goes back to one of these authorities (PEM), and no others: not those
    /// of the operating system either. For `rediss://`.
    #[cfg(feature = "tls")]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates().root_cert = Some(pem.into());
        self
    }

    /// Shows this certificate to the server, which has been told to ask for one (`tls-auth-clients`). Both in
    /// PEM. For `rediss://`.
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

    /// Opens a connection for other commands, to the same server or to the primary that the Sentinels name. The server
    /// needs no module. The connection does not reconnect.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect), but not [`Error::ModuleNotLoaded`]; [`Error::Settings`] for a cluster.
    pub async fn open_connection(
        self,
    ) -> Result<impl redis::aio::ConnectionLike + Clone + Send + Sync + 'static, StorageError> {
        let (mut settings, url) = (self.settings, self.url);
        let address = Address::parse(&url, &mut settings)?;
        Ok(Connection::open_once(address, settings).await?)
    }

    /// Connects, and checks that the server, or each primary of a cluster, has the module.
    ///
    /// # Errors
    ///
    /// [`StorageError::Backend`] with one sentence that says what to do. [`Error::of`] finds its [`Error`]:
    /// [`Error::Settings`], [`Error::NoServer`], [`Error::Authentication`], [`Error::ModuleNotLoaded`], or
    /// whatever else the server answers.
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
        let connection = Connection::open(address, settings).await?;
        let session = Session::new(connection, breaker, keyspace, hash_tags);
        let backend = RedisBackend::from_parts(session, self.list_page_size);
        backend.check_health().await?;
        Ok(backend)
    }
}

impl RedisBackend {
    /// Connects to what is at `url` and checks that it has the module.
    ///
    /// | URL | what |
    /// |---|---|
    /// | `redis://[user:password@]host[:port][/database]` | one server |
    /// | `redis+unix:///path/to/socket` | one server, by its socket |
    /// | `redis+cluster://[user:password@]host[:port][,host[:port]…]`, or `redis://…?cluster` | a cluster, by any of its nodes |
    /// | `redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/database]` | the primary that these Sentinels watch as `service` |
    ///
    /// With the feature `tls`, `rediss` instead of `redis`. User, password and parameters are percent-encoded where they
    /// hold what means something in a URL.
    ///
    /// Parameters stand after a question mark, as `redis-py` and the `redis` crate have them. Any other is refused.
    ///
    /// | parameter | what |
    /// |---|---|
    /// | `db` | number of the database; counts more than that of the path |
    /// | `protocol` | `2` or `3`, the version of RESP; 3 unless set |
    /// | `user` or `username`, `pass` or `password` | the login, where there is none before the host |
    /// | `client_name` | as [`client_name`](RedisBackendBuilder::client_name) of the builder |
    /// | `socket_connect_timeout` | seconds, as [`connect_timeout`](RedisBackendBuilder::connect_timeout) |
    /// | `socket_timeout` | seconds, as [`response_timeout`](RedisBackendBuilder::response_timeout) |
    /// | `health_check_interval` | seconds, as [`keep_alive`](RedisBackendBuilder::keep_alive) |
    /// | `socket_keepalive` | `yes`, which it always is |
    /// | `cluster` | `yes`, or nothing: the server is a node of a cluster |
    ///
    /// All other settings have their defaults; see [`RedisBackend::builder`] for others. What the URL says counts more
    /// than what the builder was told.
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
