//! The connections to the servers: how they are opened and kept, and what a call does while a connection
//! is lost.

mod cluster;
mod diagnosis;
mod endpoint;
mod first_answer;
mod live;
mod node;
mod primaries;
mod reconnecting;
mod replica_read;
mod replicated_writes;
mod request;
mod retry;
mod runtime;
mod sentinel;
mod survey;
mod target;
mod topology;
mod waiters;

use std::sync::Arc;

use pmcp_tasks::StorageError;
use tokio::runtime::Handle;
use tokio::time::Instant;

use self::cluster::Cluster;
use self::endpoint::Endpoint;
use self::node::Node;
use self::request::Attempt;
use self::runtime::{OnRuntime, Revived};
use self::sentinel::{Sentinels, Wanted};
use self::target::Target;
use crate::address::Address;
use crate::error::{self, CallKind, Error};
use crate::settings::Settings;

pub(crate) use live::Live;
pub use primaries::Primary;
pub(crate) use request::{Reply, Request};
pub(crate) use waiters::{Moment, Waiter, Waiters};

/// Connections that all clones of a backend share. Concurrent calls are pipelined on them.
#[derive(Clone)]
pub(crate) enum Connection {
    /// One server, with reconnects.
    Server(Arc<Revived<Node>>),
    /// The servers that Sentinels monitor.
    Sentinel(Arc<Revived<Monitored>>),
    /// The nodes of a cluster.
    Cluster(Arc<Revived<Cluster>>),
    /// The connection of [`RedisBackend::with_connection`](crate::RedisBackend::with_connection),
    /// without reconnects.
    Given(Live),
}

/// The primary that Sentinels monitor, and one of its replicas if reads may go there.
pub(crate) struct Monitored {
    primary: Node,
    replica: Option<Node>,
}

impl Connection {
    /// Connects once, so that a wrong address or password is an error at once. `waiters` are woken when their
    /// tasks change.
    pub(crate) async fn open(
        address: Address,
        settings: Settings,
        waiters: &Arc<Waiters>,
    ) -> Result<Self, Error> {
        let settings = Arc::new(settings);
        match address {
            Address::Server(_) if settings.reads_from_replicas => Err(Error::Settings(
                "reads from replicas: expected a cluster or Sentinels, got one server".to_owned(),
            )),
            Address::Server(info) => {
                let target = Target::Server(Endpoint::new(info, settings, waiters.clone())?);
                Ok(Self::Server(Arc::new(Revived::new(Node::open(target).await?))))
            }
            Address::Sentinel(address) => {
                let to = |wanted| Sentinels::new(&address, wanted, settings.clone(), waiters);
                let primary = Node::open(Target::Monitored(to(Wanted::Primary)?)).await?;
                let replica = if settings.reads_from_replicas {
                    let replica = Target::Monitored(to(Wanted::Replica)?).without_waiters();
                    Some(Node::start(replica, &Handle::current()))
                } else {
                    None
                };
                Ok(Self::Sentinel(Arc::new(Revived::new(Monitored { primary, replica }))))
            }
            Address::Cluster(seeds) => {
                let seeds = seeds.into_iter();
                let seeds = seeds.map(|seed| Endpoint::new(seed, settings.clone(), waiters.clone()));
                let seeds = seeds.collect::<Result<_, _>>()?;
                let cluster = Cluster::open(seeds, settings, waiters.clone()).await?;
                Ok(Self::Cluster(Arc::new(Revived::new(cluster))))
            }
        }
    }

    /// Connects to one server, or to the primary that Sentinels name. The connection does not reconnect.
    ///
    /// # Errors
    ///
    /// Those of [`Connection::open`]; [`Error::Settings`] for a cluster.
    pub(crate) async fn open_once(address: Address, settings: Settings) -> Result<Live, Error> {
        let mut target = Self::one_target(address, settings)?;
        target.connect_or_explain(target.settings().timeouts.connect, || ()).await
    }

    /// One server, or the primary that Sentinels name. Nothing waits on its connection.
    fn one_target(address: Address, settings: Settings) -> Result<Target, Error> {
        settings.check()?;
        let (settings, nobody) = (Arc::new(settings), Arc::default());
        match address {
            Address::Server(info) => Ok(Target::Server(Endpoint::new(info, settings, nobody)?)),
            Address::Sentinel(address) => {
                Ok(Target::Monitored(Sentinels::new(&address, Wanted::Primary, settings, &nobody)?))
            }
            Address::Cluster(_) => {
                Err(Error::Settings("URL: expected one server or Sentinels, got a cluster".to_owned()))
            }
        }
    }

    /// Sends a command and waits for its reply.
    ///
    /// A write is sent at most once, unless the server says that it did nothing. While nothing can have been
    /// carried out, the call waits for the server until the connect timeout is over. A read that lost its
    /// connection is sent once more, unless the caller gave the connection: that one is not opened again.
    pub(crate) async fn call(&self, request: &Request<'_>) -> Result<Reply, StorageError> {
        let started = Instant::now();
        let mut attempt = self.attempt(request).await;
        // The runtime of the connections has ended, and so have they.
        if attempt.may_be_made_again(request) && self.has_ended() {
            attempt = Box::pin(self.attempt(request)).await;
        }
        match attempt {
            Attempt::Replied(reply) => reply.map_err(|error| match self {
                Self::Cluster(_) => error::of_reply_in_cluster(error, self.address()),
                _ => error::of_reply(error, self.address()),
            }),
            Attempt::Lost(error) => {
                Err(error::of_loss(error, request.kind, request.key, self.address()).into())
            }
            Attempt::NotSent(cause) => {
                Err(Error::NotConnected { address: self.address(), waited: started.elapsed(), cause }.into())
            }
            Attempt::Refused(error) => Err((*error).into()),
            Attempt::Outdated => {
                Err(Error::Outdated { address: self.address(), key: request.key.to_owned() }.into())
            }
        }
    }

    async fn attempt(&self, request: &Request<'_>) -> Attempt {
        match self {
            Self::Given(connection) => request.send(connection, false).await,
            Self::Server(server) => server.get().call(request).await,
            // Boxed, so that the future of a call to one server stays small.
            Self::Sentinel(monitored) => Box::pin(async { monitored.get().call(request).await }).await,
            Self::Cluster(cluster) => Box::pin(async { cluster.get().call(request).await }).await,
        }
    }

    fn has_ended(&self) -> bool {
        match self {
            Self::Given(_) => false,
            Self::Server(server) => server.last().has_ended(),
            Self::Sentinel(monitored) => monitored.last().has_ended(),
            Self::Cluster(cluster) => cluster.last().has_ended(),
        }
    }

    /// Whether an epoch ends when the connection leads to another server. See [`Waiters::epoch`].
    pub(crate) fn has_epochs(&self) -> bool {
        !matches!(self, Self::Given(_))
    }

    /// Where calls go, for errors.
    fn address(&self) -> String {
        match self {
            Self::Given(_) => "the server of the given connection".to_owned(),
            Self::Server(server) => server.last().address_and_origin().to_owned(),
            Self::Sentinel(monitored) => monitored.last().primary.address_and_origin().to_owned(),
            Self::Cluster(cluster) => cluster.last().address(),
        }
    }

    /// The first of these keys for each shard. Without a cluster, all keys are in one shard.
    pub(crate) fn one_key_of_each_shard(&self, mut keys: impl Iterator<Item = String>) -> Vec<String> {
        match self {
            Self::Cluster(cluster) => cluster.last().one_key_of_each_shard(keys),
            _ => keys.next().into_iter().collect(),
        }
    }

    /// Whether writes wait for replicas.
    pub(crate) fn waits_for_replicas(&self) -> bool {
        match self {
            Self::Server(server) => server.last().settings().acknowledgement.is_some(),
            Self::Sentinel(monitored) => monitored.last().primary.settings().acknowledgement.is_some(),
            Self::Cluster(cluster) => cluster.last().settings().acknowledgement.is_some(),
            Self::Given(_) => false,
        }
    }
}

impl Monitored {
    async fn call(&self, request: &Request<'_>) -> Attempt {
        match &self.replica {
            Some(replica) if request.kind == CallKind::Read => {
                replica_read::read(replica, request, || self.primary.call(request)).await
            }
            _ => self.primary.call(request).await,
        }
    }
}

impl OnRuntime for Monitored {
    fn has_ended(&self) -> bool {
        self.primary.has_ended()
    }

    fn restarted_on(&self, runtime: &Handle) -> Self {
        let replica = self.replica.as_ref().map(|replica| replica.restarted_on(runtime));
        Self { primary: self.primary.restarted_on(runtime), replica }
    }
}
