//! The target of a connection: one server, or the server that Sentinels name.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::endpoint::Endpoint;
use super::live::Live;
use super::sentinel::Sentinels;
use super::waiters::Waiters;
use crate::error::Error;
use crate::settings::Settings;

/// The share of the connect timeout that finding the cause of a failure may take.
const EXPLANATION: f32 = 0.25;
/// How often Sentinels are asked whether the connected server is still the right one.
const SENTINEL_CHECK: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) enum Target {
    /// One server.
    Server(Endpoint),
    /// The primary that Sentinels monitor, or one of its replicas.
    Monitored(Sentinels),
}

impl Target {
    pub(super) fn settings(&self) -> Arc<Settings> {
        match self {
            Self::Server(endpoint) => endpoint.settings.clone(),
            Self::Monitored(sentinels) => sentinels.settings(),
        }
    }

    pub(super) fn waiters(&self) -> Arc<Waiters> {
        match self {
            Self::Server(endpoint) => endpoint.waiters.clone(),
            Self::Monitored(sentinels) => sentinels.waiters(),
        }
    }

    /// For connections whose loss wakes nobody, because no waiter reads from them.
    pub(super) fn without_waiters(self) -> Self {
        match self {
            Self::Server(endpoint) => Self::Server(endpoint.without_waiters()),
            Self::Monitored(sentinels) => Self::Monitored(sentinels.without_waiters()),
        }
    }

    pub(super) fn takes_writes(&self) -> bool {
        match self {
            Self::Server(endpoint) => !endpoint.is_for_reads(),
            Self::Monitored(sentinels) => sentinels.is_for_writes(),
        }
    }

    /// Whether a primary that has become a replica is replaced by another server.
    pub(super) fn follows_primary(&self) -> bool {
        matches!(self, Self::Monitored(_))
    }

    /// The host; empty with Sentinels, where the host may change.
    pub(super) fn host(&self) -> String {
        match self {
            Self::Server(endpoint) => endpoint.host(),
            Self::Monitored(_) => String::new(),
        }
    }

    /// The address, for errors.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Server(endpoint) => endpoint.address(),
            Self::Monitored(sentinels) => sentinels.address(),
        }
    }

    /// The address and, unless the URL names it, who announced it.
    pub(super) fn address_and_origin(&self) -> String {
        match self {
            Self::Server(endpoint) => endpoint.address_and_origin(),
            Self::Monitored(sentinels) => sentinels.address(),
        }
    }

    /// Connects once, and finds the cause of a failure. For `on_loss`, see [`Endpoint::connect`].
    pub(super) async fn connect_or_explain(
        &mut self,
        limit: Duration,
        on_loss: impl Fn() + Send + Sync + 'static,
    ) -> Result<Live, Error> {
        match self.connect(limit, on_loss).await {
            Ok(connection) => Ok(connection),
            Err(failure) => Err(self.explain(failure, limit).await),
        }
    }

    /// Connects once. For `on_loss`, see [`Endpoint::connect`].
    pub(super) async fn connect(
        &mut self,
        limit: Duration,
        on_loss: impl Fn() + Send + Sync + 'static,
    ) -> Result<Live, Error> {
        match self {
            Self::Server(endpoint) => endpoint.connect(limit, on_loss).await,
            Self::Monitored(sentinels) => sentinels.connect(limit, on_loss).await,
        }
    }

    /// The cause of a failure to connect, if the failure does not name it.
    pub(super) async fn explain(&self, failure: Error, limit: Duration) -> Error {
        let limit = limit.mul_f32(EXPLANATION);
        match self {
            Self::Server(endpoint) => endpoint.explain(failure, limit).await,
            Self::Monitored(sentinels) => sentinels.explain(failure, limit).await,
        }
    }

    /// Returns when Sentinels name another server than the connected one. Never returns if the URL names
    /// the server.
    pub(super) async fn until_replaced(&mut self, connection: &Live) {
        let keep_alive = self.settings().timeouts.keep_alive;
        match self {
            Self::Server(_) => std::future::pending().await,
            Self::Monitored(sentinels) => loop {
                sleep(SENTINEL_CHECK.min(keep_alive)).await;
                if !sentinels.is_still_right(connection).await {
                    break;
                }
            },
        }
    }
}
