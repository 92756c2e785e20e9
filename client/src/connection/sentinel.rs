//! Sentinels: who the primary is, and who its replicas are.
//!
//! All Sentinels are asked at once, and the one with the latest configuration is believed: a Sentinel that
//! was cut off from the others does not know of a failover. The redis crate's own Sentinel client believes the
//! first that answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, ProtocolVersion, RedisError, RedisResult, Value, cmd};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::endpoint::Endpoint;
use super::settings::Settings;
use crate::address::SentinelAddress;
use crate::error::Error;

/// How long Sentinels may take to answer. They do nothing else, and one of them is as good as another.
const ANSWER: Duration = Duration::from_millis(500);

/// Which of the servers is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Primary,
    Replica,
}

/// A way to one of the servers that Sentinels watch.
pub(super) struct Sentinels {
    service: Arc<str>,
    asked: Vec<Sentinel>,
    /// A server as it is to be connected to, but for host and port.
    server: Endpoint,
    wanted: Wanted,
    /// Where the last connection went to.
    current: Option<Location>,
}

#[derive(Clone)]
struct Sentinel {
    endpoint: Endpoint,
    connection: Option<MultiplexedConnection>,
}

/// Host and port.
type Location = (String, u16);

/// What a Sentinel says.
struct Answer {
    /// The configuration's number: it grows with each failover.
    epoch: u64,
    location: Location,
}

impl Sentinels {
    pub(super) fn new(
        address: &SentinelAddress,
        wanted: Wanted,
        settings: Arc<Settings>,
    ) -> Result<Self, Error> {
        let own = Arc::new(Settings { reads_from_replicas: false, ..Settings::clone(&settings) });
        let sentinels = address.sentinels.iter().map(|info| {
            let mut login = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
            if let Some((user, password)) = &settings.sentinel_login {
                login = login.set_password(password);
                if let Some(user) = user {
                    login = login.set_username(user);
                }
            }
            let endpoint = Endpoint::new(info.clone().set_redis_settings(login), own.clone())?;
            Ok(Sentinel { endpoint, connection: None })
        });
        let sentinels: Vec<_> = sentinels.collect::<Result<_, Error>>()?;
        let no_sentinel = || Error::Settings("URL: expected at least one Sentinel, came none".to_owned());
        let like = address.sentinels.first().ok_or_else(no_sentinel)?;
        let server = Endpoint::new(like.clone().set_redis_settings(address.login.clone()), settings)?;
        Ok(Self { service: address.service.as_str().into(), asked: sentinels, server, wanted, current: None })
    }

    pub(super) fn settings(&self) -> Arc<Settings> {
        self.server.settings.clone()
    }

    /// For errors: the service and who is asked for it.
    pub(super) fn address(&self) -> String {
        let sentinels: Vec<_> = self.asked.iter().map(|sentinel| sentinel.endpoint.address()).collect();
        format!("{} (Sentinels {})", self.service, sentinels.join(", "))
    }

    /// Connects to the server of the moment, and makes sure that it is what is wanted.
    pub(super) async fn connect(
        &mut self,
        limit: Duration,
        on_loss: impl Fn() + Send + Sync + 'static,
    ) -> RedisResult<MultiplexedConnection> {
        let location = self.locate().await?;
        let endpoint = self.server.at(&location.0, location.1);
        let endpoint = endpoint.map_err(|error| {
            RedisError::from((ErrorKind::InvalidClientConfig, "a Sentinel's answer", error.to_string()))
        })?;
        let mut connection = endpoint.connect(limit, on_loss).await?;
        if !has_role(&mut connection, self.wanted).await? {
            return Err(unknown("the server is not what the Sentinels say"));
        }
        self.current = Some(location);
        Ok(connection)
    }

    /// True once the Sentinels name another primary than the one that was connected to.
    pub(super) async fn name_another(&mut self) -> bool {
        // Replicas are as good as each other.
        self.wanted == Wanted::Primary
            && self.locate().await.is_ok_and(|location| self.current.as_ref() != Some(&location))
    }

    async fn locate(&mut self) -> RedisResult<Location> {
        let mut asking = JoinSet::new();
        for (number, sentinel) in self.asked.iter().cloned().enumerate() {
            let (service, wanted) = (self.service.clone(), self.wanted);
            asking.spawn(async move { (number, ask(sentinel, &service, wanted).await) });
        }
        let started = Instant::now();
        let (mut best, mut answers) = (None, 0_usize);
        while let Ok(Some(answered)) =
            timeout(ANSWER.saturating_sub(started.elapsed()), asking.join_next()).await
        {
            let Ok((number, (connection, answer))) = answered else { continue };
            if let Some(sentinel) = self.asked.get_mut(number) {
                sentinel.connection = connection;
            }
            let Some(answer) = answer else { continue };
            answers = answers.saturating_add(1);
            if best.as_ref().is_none_or(|best: &Answer| best.epoch < answer.epoch) {
                best = Some(answer);
            }
            // No failover happens without a majority, so one of these knows of the last.
            if answers > self.asked.len() / 2 {
                break;
            }
        }
        best.map(|best| best.location).ok_or_else(|| unknown("no Sentinel knows the server"))
    }
}

fn unknown(why: &'static str) -> RedisError {
    (ErrorKind::MasterNameNotFoundBySentinel, why).into()
}

/// Asks one Sentinel; what comes back besides is the connection to ask again.
async fn ask(
    sentinel: Sentinel,
    service: &str,
    wanted: Wanted,
) -> (Option<MultiplexedConnection>, Option<Answer>) {
    let connection = match sentinel.connection {
        Some(connection) => Some(connection),
        None => sentinel.endpoint.connect(ANSWER, || ()).await.ok(),
    };
    let Some(mut connection) = connection else { return (None, None) };
    let asked = timeout(ANSWER, ask_for(&mut connection, service, wanted)).await;
    match asked {
        Ok(Ok(answer)) => (Some(connection), answer),
        // It does not know the service.
        Ok(Err(error)) if error.code().is_some() => (Some(connection), None),
        _ => (None, None),
    }
}

async fn ask_for(
    connection: &mut MultiplexedConnection,
    service: &str,
    wanted: Wanted,
) -> RedisResult<Option<Answer>> {
    let (location, master): (Option<Location>, HashMap<String, String>) = redis::pipe()
        // In the middle of a failover this is the new primary already.
        .cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg(service)
        .cmd("SENTINEL")
        .arg("MASTER")
        .arg(service)
        .query_async(connection)
        .await?;
    let epoch = master.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    if wanted == Wanted::Primary {
        return Ok(location.map(|location| Answer { epoch, location }));
    }
    let replicas: Vec<HashMap<String, String>> =
        cmd("SENTINEL").arg("REPLICAS").arg(service).query_async(connection).await?;
    let healthy: Vec<_> = replicas.iter().filter_map(location_of_healthy_replica).collect();
    let location = healthy.get(fastrand::usize(..healthy.len().max(1))).cloned();
    Ok(location.map(|location| Answer { epoch, location }))
}

fn location_of_healthy_replica(replica: &HashMap<String, String>) -> Option<Location> {
    let is = |field: &str, value: &str| replica.get(field).is_some_and(|came| came == value);
    if !is("flags", "slave") || !is("master-link-status", "ok") {
        return None;
    }
    Some((replica.get("ip")?.clone(), replica.get("port")?.parse().ok()?))
}

/// Asks the server itself: a primary that has been down longer than the others waited comes back as one, and
/// Sentinels that have not heard of a failover take it for theirs.
async fn has_role(connection: &mut MultiplexedConnection, wanted: Wanted) -> RedisResult<bool> {
    match cmd("ROLE").query_async::<Vec<Value>>(connection).await {
        Ok(role) => {
            let name = if wanted == Wanted::Primary { "master" } else { "slave" };
            Ok(matches!(role.first(), Some(Value::BulkString(role)) if role == name.as_bytes()))
        }
        // A user who may not ask is told by the first write.
        Err(error) if error.code() == Some("NOPERM") => Ok(true),
        Err(error) => Err(error),
    }
}
