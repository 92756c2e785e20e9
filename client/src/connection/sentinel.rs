//! Sentinels: which server is the primary, and which are its replicas.
//!
//! The redis crate's own Sentinel client believes the first Sentinel that answers, which may not know about
//! the last failover. [`Survey`] asks all of them.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, ProtocolVersion, RedisError, RedisResult, Value, cmd};
use tokio::time::{Instant, timeout};

use super::endpoint::Endpoint;
use super::live::Live;
use super::retry::until_ready;
use super::survey::{Answer, HostAndPort, NoAnswer, Survey};
use super::waiters::Waiters;
use crate::address::SentinelAddress;
use crate::error::{self, Error};
use crate::settings::Settings;

/// The maximum time for the Sentinels' answers, however long calls may wait.
const LONGEST_ANSWER: Duration = Duration::from_secs(2);

/// Which server is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Primary,
    Replica,
}

/// The way to one of the servers that Sentinels monitor.
pub(super) struct Sentinels {
    service: Arc<str>,
    endpoints: Vec<Endpoint>,
    survey: Survey,
    /// How to connect to a server. Host and port are replaced.
    server: Endpoint,
    wanted: Wanted,
    /// The answer that the last connection was made to.
    current: Option<Answer>,
    /// The server that the last attempt to connect went to.
    tried: Option<Box<Endpoint>>,
}

impl Clone for Sentinels {
    /// The connections are not cloned: they stay on the runtime that made them.
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            endpoints: self.endpoints.clone(),
            survey: Survey::of(self.endpoints.len()),
            server: self.server.clone(),
            wanted: self.wanted,
            current: None,
            tried: None,
        }
    }
}

impl Sentinels {
    pub(super) fn new(
        address: &SentinelAddress,
        wanted: Wanted,
        settings: Arc<Settings>,
        waiters: &Arc<Waiters>,
    ) -> Result<Self, Error> {
        let endpoints = address.sentinels.iter().map(|info| {
            let mut login = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
            if let Some((user, password)) = &settings.sentinel_login {
                login = login.set_password(password);
                if let Some(user) = user {
                    login = login.set_username(user);
                }
            }
            Endpoint::new(info.clone().set_redis_settings(login), settings.clone(), waiters.clone())
        });
        let endpoints: Vec<_> = endpoints.collect::<Result<_, Error>>()?;
        let no_sentinel = || Error::Settings("URL: expected at least one Sentinel, got none".to_owned());
        let like = address.sentinels.first().ok_or_else(no_sentinel)?;
        let server = like.clone().set_redis_settings(address.login.clone());
        let server = Endpoint::new(server, settings, waiters.clone())?;
        Ok(Self {
            service: address.service.as_str().into(),
            survey: Survey::of(endpoints.len()),
            endpoints,
            server,
            wanted,
            current: None,
            tried: None,
        })
    }

    pub(super) fn is_for_writes(&self) -> bool {
        self.wanted == Wanted::Primary
    }

    pub(super) fn settings(&self) -> Arc<Settings> {
        self.server.settings.clone()
    }

    /// For connections whose loss wakes nobody, because no waiter reads from them.
    pub(super) fn without_waiters(self) -> Self {
        Self { server: self.server.without_waiters(), ..self }
    }

    pub(super) fn waiters(&self) -> Arc<Waiters> {
        self.server.waiters.clone()
    }

    /// The service and its Sentinels, for errors.
    pub(super) fn address(&self) -> String {
        let sentinels: Vec<_> = self.endpoints.iter().map(Endpoint::address).collect();
        format!("{} (Sentinels {})", self.service, sentinels.join(", "))
    }

    /// How long Sentinels may take to answer. One attempt to connect takes half of the connect timeout, and
    /// the Sentinels half of that, but not so long that a failover is found out too late.
    fn time_for_answers(&self) -> Duration {
        self.server.settings.timeouts.connect.mul_f32(0.25).min(LONGEST_ANSWER)
    }

    /// Connects to the server that the Sentinels name, and checks that it has the wanted role.
    pub(super) async fn connect(
        &mut self,
        limit: Duration,
        on_loss: impl Fn() + Send + Sync + 'static,
    ) -> Result<Live, Error> {
        let started = Instant::now();
        self.tried = None;
        let answer = self.locate().await.map_err(|why| why.into_error(self.address()))?;
        let (host, port) = &answer.location;
        let what = if self.is_for_writes() { "the primary" } else { "a replica" };
        let announced_by = format!("the Sentinel {} as {what} of {}", answer.from, self.service);
        let endpoint = self.tried.insert(Box::new(self.server.at(host, *port, &announced_by)?));
        let left = || limit.saturating_sub(started.elapsed());
        let connection = endpoint.connect(left(), on_loss).await?;
        let of_role = |error| error::of_connecting(error, endpoint.address_and_origin());
        if !has_role(&connection, self.wanted, left()).await.map_err(of_role)? {
            let why = (
                ErrorKind::MasterNameNotFoundBySentinel,
                "the server does not have the role that the Sentinels announce",
            );
            return Err(of_role(why.into()));
        }
        self.current = Some(answer);
        Ok(connection)
    }

    /// The reason for the last failure to connect, if the failure itself does not say.
    pub(super) async fn explain(&self, failure: Error, limit: Duration) -> Error {
        match &self.tried {
            Some(endpoint) => endpoint.explain(failure, limit).await,
            None => failure,
        }
    }

    /// Whether the connected server is still the right one.
    pub(super) async fn is_still_right(&mut self, connection: &Live) -> bool {
        // Any replica will do, as long as it is a replica. The keep-alive finds a silent one.
        if self.wanted == Wanted::Replica {
            return has_role(connection, self.wanted, self.time_for_answers()).await.unwrap_or(true);
        }
        let (Ok(answer), Some(current)) = (self.locate().await, &self.current) else { return true };
        match answer.epoch.cmp(&current.epoch) {
            _ if answer.location == current.location => true,
            // A Sentinel that has not heard of the last failover.
            Ordering::Less => true,
            Ordering::Greater => false,
            // Perhaps another name of the same server. The server knows its role, but does not answer while
            // it waits for replicas.
            Ordering::Equal => {
                let busy = self.server.settings.acknowledgement.map_or(Duration::ZERO, |wait| wait.within);
                let limit = self.time_for_answers().saturating_add(busy);
                matches!(has_role(connection, self.wanted, limit).await, Ok(true))
            }
        }
    }

    /// Asks all Sentinels where the server is.
    async fn locate(&mut self) -> Result<Answer, NoAnswer> {
        let (limit, wanted) = (self.time_for_answers(), self.wanted);
        let Self { survey, endpoints, service, .. } = self;
        let ask_one = |number: usize, connection| {
            let (endpoint, service) = (endpoints.get(number).cloned(), service.clone());
            async move {
                match endpoint {
                    Some(endpoint) => ask(endpoint, connection, &service, wanted, limit).await,
                    None => (None, Err(NoAnswer::too_late())),
                }
            }
        };
        survey.run(limit, ask_one).await
    }
}

/// Asks one Sentinel. Also returns the connection to ask it again.
async fn ask(
    endpoint: Endpoint,
    connection: Option<Live>,
    service: &str,
    wanted: Wanted,
    limit: Duration,
) -> (Option<Live>, Result<Answer, NoAnswer>) {
    let connected = match connection {
        Some(connection) => Ok(connection),
        None => endpoint.connect(limit, || ()).await,
    };
    let mut connection = match connected {
        Ok(connection) => connection,
        Err(failure) => return (None, Err(of_login(endpoint.explain(failure, limit).await))),
    };
    let from = endpoint.address();
    match timeout(limit, ask_for(&mut connection, service, wanted, from)).await {
        Ok(Ok(answer)) => (Some(connection), answer),
        Ok(Err(error)) if error.clone().into_server_errors().is_some() => {
            (Some(connection), Err(no_answer(&error)))
        }
        Ok(Err(error)) => (None, Err(no_answer(&error))),
        Err(_) => (None, Err(NoAnswer::too_late())),
    }
}

/// What a failure to connect to a Sentinel means.
fn of_login(error: Error) -> NoAnswer {
    match error {
        Error::Settings(why) => NoAnswer::Settings(why),
        Error::Authentication { cause, .. }
        | Error::NoPermission { cause, .. }
        | Error::Refused { cause, .. } => NoAnswer::Refusal(cause.to_string()),
        failure => NoAnswer::Silence(failure.to_string()),
    }
}

/// What the error of a command or a pipeline means.
fn no_answer(error: &RedisError) -> NoAnswer {
    let replies = error.clone().into_server_errors();
    let Some([(_, reply), ..]) = replies.as_deref() else { return NoAnswer::Silence(error.to_string()) };
    let text = reply.details().unwrap_or_default();
    if text.contains("No such master") {
        NoAnswer::UnknownService
    } else if text.starts_with("unknown command") {
        NoAnswer::NoSentinel
    } else {
        NoAnswer::Refusal(format!("{} {text}", reply.code()))
    }
}

async fn ask_for(
    connection: &mut Live,
    service: &str,
    wanted: Wanted,
    from: String,
) -> RedisResult<Result<Answer, NoAnswer>> {
    let (location, master): (Option<HostAndPort>, HashMap<String, String>) = redis::pipe()
        // During a failover, this is already the new primary.
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
        return Ok(location.map(|location| Answer { epoch, location, from }).ok_or(NoAnswer::UnknownService));
    }
    let replicas: Vec<HashMap<String, String>> =
        cmd("SENTINEL").arg("REPLICAS").arg(service).query_async(connection).await?;
    let healthy: Vec<_> = replicas.iter().filter_map(location_of_healthy_replica).collect();
    let location = healthy.get(fastrand::usize(..healthy.len().max(1))).cloned();
    Ok(location.map(|location| Answer { epoch, location, from }).ok_or(NoAnswer::NoHealthyReplica))
}

fn location_of_healthy_replica(replica: &HashMap<String, String>) -> Option<HostAndPort> {
    let is = |field: &str, value: &str| replica.get(field).is_some_and(|got| got == value);
    if !is("flags", "slave") || !is("master-link-status", "ok") {
        return None;
    }
    Some((replica.get("ip")?.clone(), replica.get("port")?.parse().ok()?))
}

/// Asks the server itself for its role: Sentinels that have not heard of a failover still name the
/// old primary.
async fn has_role(connection: &Live, wanted: Wanted, limit: Duration) -> RedisResult<bool> {
    let ask = || {
        let mut connection = connection.clone();
        async move { cmd("ROLE").query_async::<Vec<Value>>(&mut connection).await }
    };
    match until_ready(limit, ask).await {
        Ok(role) => {
            let says = |place: usize, word: &str| matches!(role.get(place), Some(Value::BulkString(said)) if said == word.as_bytes());
            Ok(match wanted {
                Wanted::Primary => says(0, "master"),
                // The data of a replica whose link is cut is stale.
                Wanted::Replica => says(0, "slave") && says(3, "connected"),
            })
        }
        // If the user may not ask, or the server has no such command, the first write will tell.
        Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => Ok(true),
        Err(error) => Err(error),
    }
}
