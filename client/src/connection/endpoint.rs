//! One server: how a connection to it is opened.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::ConnectionLike as _;
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisResult, Value, cmd, make_extension_error,
};
use tokio::time::{Instant, sleep, timeout};

use super::diagnosis::{Diagnosis, diagnose};
use super::live::Live;
use super::retry::until_ready;
use super::waiters::Waiters;
use crate::address::{at, host_of};
use crate::error::{self, Error};
use crate::settings::Settings;

/// How many calls can be queued to be sent; beyond that, callers wait. The connection sends all queued calls
/// at once.
const CALLS_WAITING: usize = 1024;
/// How many TCP keep-alive probes, one keep-alive interval apart, go unanswered before the operating system
/// gives up.
const PROBES: u32 = 2;

/// The range of the operating system's keep-alive interval, in whole seconds.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(32_767));

/// What else a URL with TLS needs, for errors.
const NEEDS_FEATURE: &str =
    if cfg!(feature = "tls") { "" } else { " (with the cargo feature `tls` of pmcptask-client)" };

/// Where and how to connect.
#[derive(Clone)]
pub(crate) struct Endpoint {
    info: ConnectionInfo,
    /// Connects, but does only the part of [`Endpoint::introduce`] that must come first.
    client: Client,
    pub(super) settings: Arc<Settings>,
    /// Who is woken when the server tells of a change.
    pub(super) waiters: Arc<Waiters>,
    /// Sends `READONLY`, for reads from a replica in a cluster. Not for a primary: if it becomes a replica,
    /// it must redirect its clients.
    is_for_reads: bool,
    /// Who announced this server, if the URL does not name it.
    announced_by: Option<Arc<str>>,
}

impl Endpoint {
    pub(crate) fn new(
        info: ConnectionInfo,
        settings: Arc<Settings>,
        waiters: Arc<Waiters>,
    ) -> Result<Self, Error> {
        let protocol = info.redis_settings().protocol();
        let first = match protocol {
            ProtocolVersion::RESP2 => RedisConnectionInfo::default().set_protocol(protocol),
            // HELLO, which chooses the protocol, also logs in.
            _ => info.redis_settings().clone().set_db(0),
        };
        let first = first.set_skip_set_lib_name();
        let silence = settings.timeouts.keep_alive.clamp(KEEP_ALIVE.0, KEEP_ALIVE.1);
        let keep_alive = TcpKeepalive::new().with_time(silence).with_interval(silence).with_retries(PROBES);
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keep_alive);
        let client = client(info.clone().set_redis_settings(first).set_tcp_settings(tcp), &settings)?;
        Ok(Self { info, client, settings, waiters, is_for_reads: false, announced_by: None })
    }

    pub(super) fn for_reads(self) -> Self {
        Self { is_for_reads: true, ..self.without_waiters() }
    }

    /// For connections whose loss wakes nobody, because no waiter reads from them.
    pub(super) fn without_waiters(self) -> Self {
        Self { waiters: self.waiters.nobody(), ..self }
    }

    pub(super) fn is_for_reads(&self) -> bool {
        self.is_for_reads
    }

    /// The same settings for another host, which `announced_by` names.
    pub(crate) fn at(&self, host: &str, port: u16, announced_by: &str) -> Result<Self, Error> {
        let addr = at(self.addr(), host, port);
        let info = self.info.clone().set_addr(addr);
        let endpoint = Self::new(info, self.settings.clone(), self.waiters.clone())?;
        Ok(Self { announced_by: Some(announced_by.into()), ..endpoint })
    }

    fn addr(&self) -> &ConnectionAddr {
        self.info.addr()
    }

    /// Host and port, or the path of the socket.
    pub(crate) fn address(&self) -> String {
        self.addr().to_string()
    }

    /// The address and, unless the URL names it, who announced it.
    pub(super) fn address_and_origin(&self) -> String {
        let address = self.addr();
        self.announced_by
            .as_ref()
            .map_or_else(|| address.to_string(), |by| format!("{address} (announced by {by})"))
    }

    pub(crate) fn host(&self) -> String {
        host_of(self.addr())
    }

    /// Whether the URL says TLS.
    pub(super) fn is_tls(&self) -> bool {
        matches!(self.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// Connects, and does everything that comes before the first call. `on_loss` is called when the
    /// connection is found to be lost, but only with RESP3. With RESP2, the next call or `PING` finds
    /// the loss.
    pub(crate) async fn connect(
        &self,
        limit: Duration,
        on_loss: impl Fn() + Send + Sync + 'static,
    ) -> Result<Live, Error> {
        let connecting = async {
            let connected = self.open(limit, on_loss).await.map_err(error::without_arguments);
            connected.map_err(|error| error::of_connecting(error, self.address_and_origin()))
        };
        tokio::select! {
            connected = connecting => connected,
            error = self.finds_no_tls(limit.mul_f32(0.5)) => Err(error),
        }
    }

    /// Returns an error if a server without TLS waits for more, because it takes the start of TLS for the
    /// start of a command.
    async fn finds_no_tls(&self, patience: Duration) -> Error {
        if self.is_tls() {
            sleep(patience).await;
            if let Some(Diagnosis::Plain) = diagnose(self.addr(), patience).await {
                return self.other_protocol();
            }
        }
        std::future::pending().await
    }

    /// The reason for a failure to connect, if the failure itself does not say.
    pub(super) async fn explain(&self, failure: Error, limit: Duration) -> Error {
        if !failure.gives_no_reason() {
            return failure;
        }
        match diagnose(self.addr(), limit).await {
            Some(Diagnosis::Refusal(code, words)) => {
                error::of_connecting(make_extension_error(code, Some(words)), self.address_and_origin())
            }
            Some(Diagnosis::Plain | Diagnosis::Tls) => self.other_protocol(),
            None => failure,
        }
    }

    fn other_protocol(&self) -> Error {
        let address = self.address_and_origin();
        Error::Settings(if self.is_tls() {
            format!("URL: {address} answers without TLS: expected a URL that starts with redis, got rediss")
        } else {
            format!(
                "URL: {address} speaks TLS: expected a URL that starts with rediss{NEEDS_FEATURE}, got redis"
            )
        })
    }

    async fn open(&self, limit: Duration, on_loss: impl Fn() + Send + Sync + 'static) -> RedisResult<Live> {
        let started = Instant::now();
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(CALLS_WAITING);
        let has_pushes = self.info.redis_settings().protocol() == ProtocolVersion::RESP3;
        if has_pushes {
            let waiters = self.waiters.clone();
            config = config.set_push_sender(move |push: PushInfo| {
                match push.kind {
                    PushKind::Disconnection => on_loss(),
                    PushKind::Invalidate => waiters.invalidated(&push.data),
                    _ => {}
                }
                Ok::<(), redis::aio::SendError>(())
            });
        }
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let too_late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        let connection = timeout(limit, connecting).await.unwrap_or_else(too_late)?;
        let database = self.info.redis_settings().db();
        let mut connection = Live::new(connection, self.settings.timeouts.response, database);
        if has_pushes {
            connection = connection.with_invalidations();
        }
        let left = limit.saturating_sub(started.elapsed());
        until_ready(left, || self.introduce(connection.clone())).await?;
        Ok(connection)
    }

    /// Logs in, unless `HELLO` did, selects the database, and says who the client is. The redis crate could
    /// do this too, but would drop the server's error codes.
    async fn introduce(&self, mut connection: Live) -> RedisResult<()> {
        let (login, mut pipeline) = (self.info.redis_settings(), redis::pipe());
        if let (ProtocolVersion::RESP2, Some(password)) = (login.protocol(), login.password()) {
            pipeline.cmd("AUTH").arg(login.username().unwrap_or("default")).arg(password);
        }
        if login.db() != 0 {
            pipeline.cmd("SELECT").arg(login.db());
        }
        let required = pipeline.len();
        // A user may lack the permission for the rest, and old servers do not know CLIENT SETINFO.
        for (name, value) in [("LIB-NAME", env!("CARGO_PKG_NAME")), ("LIB-VER", env!("CARGO_PKG_VERSION"))] {
            pipeline.cmd("CLIENT").arg("SETINFO").arg(name).arg(value);
        }
        if let Some(name) = &self.settings.client_name {
            pipeline.cmd("CLIENT").arg("SETNAME").arg(name);
        }
        if self.is_for_reads {
            pipeline.cmd("READONLY");
        }
        let replies = connection.req_packed_commands(&pipeline, 0, pipeline.len()).await?;
        for (number, reply) in replies.into_iter().enumerate() {
            match reply.extract_error() {
                Err(error) if number < required || error::is_transient_reply(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Refuses a cluster node or a Sentinel, and says which URL to use. A server that does not tell its
/// mode passes.
pub(super) async fn expect_one_server(
    connection: &mut Live,
    endpoint: &Endpoint,
    limit: Duration,
) -> Result<(), Error> {
    // Every user may call HELLO.
    let hello = timeout(limit, cmd("HELLO").query_async::<HashMap<String, Value>>(connection)).await;
    let Ok(Ok(hello)) = hello else { return Ok(()) };
    let (address, scheme) = (endpoint.address(), if endpoint.is_tls() { "rediss" } else { "redis" });
    let to_use = match endpoint.host() {
        // A socket.
        host if host.is_empty() => "host:port".to_owned(),
        host if host.contains(':') => address.replacen(&host, &format!("[{host}]"), 1),
        _ => address.clone(),
    };
    let is = |mode: &[u8]| matches!(hello.get("mode"), Some(Value::BulkString(came)) if came == mode);
    Err(Error::Settings(if is(b"cluster") {
        format!("URL: {address} is a node of a cluster: connect with {scheme}+cluster://{to_use}")
    } else if is(b"sentinel") {
        let asked = cmd("SENTINEL").arg("MASTERS").query_async(connection).await;
        let watched: Vec<HashMap<String, String>> = asked.unwrap_or_default();
        let service = watched.first().and_then(|watched| watched.get("name"));
        let service = service.map_or("service", String::as_str);
        format!("URL: {address} is a Sentinel: connect with {scheme}+sentinel://{to_use}/{service}")
    } else {
        return Ok(());
    }))
}

#[cfg(feature = "tls")]
fn client(info: ConnectionInfo, settings: &Settings) -> Result<Client, Error> {
    let is_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    // The redis crate lets rustls choose the provider, which panics if other crates of the program bring a
    // second one.
    if is_tls && rustls::crypto::CryptoProvider::get_default().is_none() {
        // If another thread installs one first, that one is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    match &settings.certificates {
        Some(certificates) if is_tls => Client::build_with_tls(info, certificates.clone()),
        Some(_) => {
            return Err(Error::Settings("certificates: expected a rediss:// URL, got another".to_owned()));
        }
        None => Client::open(info),
    }
    .map_err(|error| Error::Settings(error.to_string()))
}

#[cfg(not(feature = "tls"))]
fn client(info: ConnectionInfo, _: &Settings) -> Result<Client, Error> {
    Client::open(info).map_err(|error| Error::Settings(error.to_string()))
}
