//! One server: how a connection to it is opened.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::ConnectionLike as _;
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisResult, cmd,
};

use tokio::time::timeout;

use super::live::Live;
use super::settings::Settings;
use crate::address::{at, host_of};
use crate::error::Error;

/// Calls that may wait to be sent; beyond that, callers wait. The connection sends them in one go.
const CALLS_WAITING: usize = 1024;
/// Probes of the operating system to a host that is silent, a keep-alive's time apart, before it gives up.
const PROBES: u32 = 2;

/// What the operating system takes as the time of a keep-alive, in whole seconds.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(32_767));

/// Where and how to connect.
#[derive(Clone)]
pub(crate) struct Endpoint {
    client: Client,
    pub(super) settings: Arc<Settings>,
    /// For reads from a node of a cluster that is a replica. A primary is not asked like this: one that becomes a
    /// replica is to send its clients elsewhere.
    is_for_reads: bool,
}

impl Endpoint {
    pub(crate) fn new(info: ConnectionInfo, settings: Arc<Settings>) -> Result<Self, Error> {
        let redis =
            info.redis_settings().clone().set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let silence = settings.timeouts.keep_alive.clamp(KEEP_ALIVE.0, KEEP_ALIVE.1);
        let keep_alive = TcpKeepalive::new().with_time(silence).with_interval(silence).with_retries(PROBES);
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keep_alive);
        let client = client(info.set_redis_settings(redis).set_tcp_settings(tcp), &settings)?;
        Ok(Self { client, settings, is_for_reads: false })
    }

    pub(super) fn for_reads(self) -> Self {
        Self { is_for_reads: true, ..self }
    }

    pub(super) fn is_for_reads(&self) -> bool {
        self.is_for_reads
    }

    /// The same way to connect, to another host.
    pub(crate) fn at(&self, host: &str, port: u16) -> Result<Self, Error> {
        let info = self.client.get_connection_info();
        let addr = at(info.addr(), host, port);
        Self::new(info.clone().set_addr(addr), self.settings.clone())
    }

    /// Host and port, or the path of the socket.
    pub(crate) fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    pub(crate) fn host(&self) -> String {
        host_of(self.client.get_connection_info().addr())
    }

    /// Connects, and does all that is to be done before the first call. `on_loss` is called when the connection is
    /// found to be lost, which is before the next call with RESP3 only.
    pub(crate) async fn connect(
        &self,
        limit: Duration,
        on_loss: impl Fn() + Send + Sync + 'static,
    ) -> RedisResult<Live> {
        let too_late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        timeout(limit, self.connect_at_last(limit, on_loss)).await.map_err(too_late)?
    }

    async fn connect_at_last(
        &self,
        limit: Duration,
        on_loss: impl Fn() + Send + Sync + 'static,
    ) -> RedisResult<Live> {
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(CALLS_WAITING);
        if self.client.get_connection_info().redis_settings().protocol() == ProtocolVersion::RESP3 {
            config = config.set_push_sender(move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    on_loss();
                }
                Ok::<(), redis::aio::SendError>(())
            });
        }
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut connection = Live::new(connection, self.settings.timeouts.response);
        if let Some(name) = &self.settings.client_name {
            // A user who may not set a name has none.
            let named = connection.req_packed_command(cmd("CLIENT").arg("SETNAME").arg(name)).await?;
            drop(named);
        }
        if self.is_for_reads {
            cmd("READONLY")
                .exec_async(&mut connection)
                .await
                .or_else(|error| if error.code().is_some() { Ok(()) } else { Err(error) })?;
        }
        Ok(connection)
    }
}

#[cfg(feature = "tls")]
fn client(info: ConnectionInfo, settings: &Settings) -> Result<Client, Error> {
    let is_tls = matches!(info.addr(), redis::ConnectionAddr::TcpTls { .. });
    // The redis crate has rustls choose one, which panics where other crates of the program have brought a second.
    if is_tls && rustls::crypto::CryptoProvider::get_default().is_none() {
        // Somebody else may be faster, with one that is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    match &settings.certificates {
        Some(certificates) if is_tls => Client::build_with_tls(info, certificates.clone()),
        Some(_) => {
            return Err(Error::Settings("certificates: expected a rediss:// URL, came another".to_owned()));
        }
        None => Client::open(info),
    }
    .map_err(|error| Error::Settings(error.to_string()))
}

#[cfg(not(feature = "tls"))]
fn client(info: ConnectionInfo, _: &Settings) -> Result<Client, Error> {
    Client::open(info).map_err(|error| Error::Settings(error.to_string()))
}
