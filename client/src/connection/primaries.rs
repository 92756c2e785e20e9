//! Connections to the primaries one by one, for commands that no key routes: `SCAN`, `INFO`.

use std::sync::Arc;

use pmcp_tasks::StorageError;
use redis::{Cmd, FromRedisValue, Pipeline, RedisResult};

use super::cluster;
use super::endpoint::Endpoint;
use super::live::Live;
use super::target::Target;
use super::{Connection, Waiters};
use crate::address::Address;
use crate::error::{self, CallKind, Error};
use crate::settings::Settings;

/// A connection to one primary, which does not reconnect.
#[derive(Clone)]
pub struct Primary {
    connection: Live,
    address: String,
}

impl Primary {
    /// Connects to every primary that the address leads to.
    ///
    /// # Errors
    ///
    /// Those of [`Connection::open`].
    pub(crate) async fn open_all(address: Address, settings: Settings) -> Result<Vec<Self>, Error> {
        let Address::Cluster(seeds) = address else {
            let target = Connection::one_target(address, settings)?;
            return Ok(vec![Self::open(target).await?]);
        };
        settings.check()?;
        let (settings, nobody) = (Arc::new(settings), Arc::<Waiters>::default());
        let seeds = seeds.into_iter().map(|seed| Endpoint::new(seed, settings.clone(), nobody.clone()));
        let seeds: Vec<_> = seeds.collect::<Result<_, _>>()?;
        let mut primaries = Vec::new();
        for primary in cluster::primaries(&seeds, settings.timeouts.connect).await? {
            primaries.push(Self::open(Target::Server(primary)).await?);
        }
        Ok(primaries)
    }

    async fn open(mut target: Target) -> Result<Self, Error> {
        let connection = target.connect_or_explain(target.settings().timeouts.connect, || ()).await?;
        Ok(Self { connection, address: target.address_and_origin() })
    }

    /// Host and port, or the path of the socket. With Sentinels, the service.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends a command that changes nothing, and reads its reply. `what` is what it reads, for errors.
    ///
    /// # Errors
    ///
    /// Those of `get`.
    pub async fn read<T: FromRedisValue>(&self, what: &str, command: &Cmd) -> Result<T, StorageError> {
        let mut connection = self.connection.clone();
        command.query_async(&mut connection).await.map_err(|error| self.failed(what, error))
    }

    /// The same for several commands at once. None in the place of a key that another node has, that is on its way, or that
    /// the user may not read.
    ///
    /// # Errors
    ///
    /// Those of `get`.
    pub async fn read_all<T: FromRedisValue>(
        &self,
        what: &str,
        mut commands: Pipeline,
    ) -> Result<Vec<Option<T>>, StorageError> {
        let mut connection = self.connection.clone();
        let replies: RedisResult<Vec<RedisResult<T>>> =
            commands.ignore_errors().query_async(&mut connection).await;
        let replies = replies.map_err(|error| self.failed(what, error))?;
        let of_readable_key = |reply: RedisResult<T>| match reply {
            Ok(reply) => Ok(Some(reply)),
            Err(error) if matches!(error.code(), Some("MOVED" | "ASK" | "TRYAGAIN" | "NOPERM")) => Ok(None),
            Err(error) => Err(self.failed(what, error)),
        };
        replies.into_iter().map(of_readable_key).collect()
    }

    fn failed(&self, what: &str, error: redis::RedisError) -> StorageError {
        if error.code().is_some() {
            return error::of_reply(error, self.address.clone());
        }
        error::of_loss(error, CallKind::Read, what, self.address.clone()).into()
    }
}
