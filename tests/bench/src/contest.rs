//! The contestants: this project's client, the Lua backend, and bare commands, which are the upper bound
//! for both.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::{StorageBackend, VersionedRecord};
use pmcptask_client::RedisBackend;
use pmcptask_tests::{Server, ServerOptions, Wire, holds_within, lua_backend};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;

use crate::Result;

#[derive(Clone)]
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) backend: Arc<dyn StorageBackend>,
}

/// Names of the contestants.
pub(crate) const OURS: &str = "pmcptask";
pub(crate) const LUA: &str = "Lua";
pub(crate) const BARE: &str = "HSET / HGETALL";
pub(crate) const TRIO: &str = "HSET + ZADD + PEXPIREAT";

/// Enough for 256 records of 1 MB in flight.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);

/// A server with the module, and one without it for the other contestants: the module hears of what they
/// change, and that takes time.
pub(crate) struct Servers {
    with_module: Server,
    without_module: Server,
}

impl Servers {
    pub(crate) fn start(options: &ServerOptions) -> Result<Self> {
        let with_module = Server::try_start_with(options)?;
        let without_module = Server::try_start_with(&options.clone().without_module())?;
        Ok(Self { with_module, without_module })
    }

    /// The server of the contestant of this name.
    pub(crate) fn of(&self, contestant: &str) -> &Server {
        if contestant == OURS { &self.with_module } else { &self.without_module }
    }

    /// Deletes all data on both servers, and empties their AOF if they have one.
    pub(crate) fn empty(&self) -> Result<()> {
        for server in [&self.with_module, &self.without_module] {
            let mut wire = server.wire();
            wire.call(&["FLUSHALL"]);
            if wire.call(&["CONFIG", "GET", "appendonly"]).contains("yes") {
                empty_log(&mut wire)?;
            }
        }
        Ok(())
    }
}

fn empty_log(wire: &mut Wire) -> Result<()> {
    let reply = wire.call(&["BGREWRITEAOF"]);
    if !reply.contains("started") {
        return Err(format!("the log is not to be rewritten: {reply}").into());
    }
    if log_is_written(wire) { Ok(()) } else { Err("the log is not rewritten".into()) }
}

/// Waits until the server is not rewriting its AOF and is not about to; false if that takes too long.
pub(crate) fn log_is_written(wire: &mut Wire) -> bool {
    holds_within(Duration::from_mins(1), || {
        let persistence = wire.call(&["INFO", "persistence"]);
        persistence.contains("aof_rewrite_in_progress:0") && persistence.contains("aof_rewrite_scheduled:0")
    })
}

/// All contestants, each connected to its server once. The bare commands share a connection.
pub(crate) async fn contestants(servers: &Servers) -> Result<Vec<Contestant>> {
    let (ours, lua) = (ours(servers.of(OURS)).await?, lua(servers.of(LUA)).await?);
    let bare = connection(&servers.of(BARE).url()).await?;
    Ok(vec![
        Contestant { name: OURS, backend: Arc::new(ours) },
        Contestant { name: LUA, backend: Arc::new(lua) },
        Contestant { name: BARE, backend: Arc::new(Bare { connection: bare.clone(), keeps_index: false }) },
        Contestant { name: TRIO, backend: Arc::new(Bare { connection: bare, keeps_index: true }) },
    ])
}

pub(crate) async fn ours(server: &Server) -> Result<RedisBackend> {
    Ok(RedisBackend::builder(server.url()).response_timeout(RESPONSE_TIMEOUT).connect().await?)
}

pub(crate) async fn lua(server: &Server) -> Result<pmcp_tasks::RedisBackend> {
    Ok(lua_backend(&server.url()).await?)
}

/// A connection that waits for slow replies.
pub(crate) async fn connection(url: &str) -> Result<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE_TIMEOUT));
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?)
}

/// Commands that store and read the same bytes, with no version, no condition and no check.
struct Bare {
    connection: MultiplexedConnection,
    keeps_index: bool,
}

/// Any time in the future.
pub(crate) const EXPIRES_AT_MS: i64 = 4_102_444_800_000;

fn failed(error: redis::RedisError) -> StorageError {
    StorageError::Backend { message: error.to_string(), source: Some(Box::new(error)) }
}

#[async_trait]
impl StorageBackend for Bare {
    async fn get(&self, key: &str) -> std::result::Result<VersionedRecord, StorageError> {
        let fields: Vec<Vec<u8>> =
            redis::cmd("HGETALL").arg(key).query_async(&mut self.connection.clone()).await.map_err(failed)?;
        let data = fields.into_iter().nth(3).unwrap_or_default();
        Ok(VersionedRecord { data, version: 1 })
    }

    async fn put(&self, key: &str, data: &[u8]) -> std::result::Result<u64, StorageError> {
        let mut connection = self.connection.clone();
        let mut hset = redis::cmd("HSET");
        hset.arg(key).arg("version").arg(1).arg("data").arg(data).arg("expires_at").arg("4102444800");
        if self.keeps_index {
            let mut trio = redis::pipe();
            trio.add_command(hset);
            trio.cmd("ZADD").arg("idx").arg("NX").arg(EXPIRES_AT_MS).arg(key);
            trio.cmd("PEXPIREAT").arg(key).arg(EXPIRES_AT_MS);
            trio.exec_async(&mut connection).await.map_err(failed)?;
        } else {
            hset.exec_async(&mut connection).await.map_err(failed)?;
        }
        Ok(1)
    }

    async fn put_if_version(&self, key: &str, data: &[u8], _: u64) -> std::result::Result<u64, StorageError> {
        self.put(key, data).await
    }

    async fn delete(&self, key: &str) -> std::result::Result<bool, StorageError> {
        let mut both = redis::pipe();
        both.cmd("DEL").arg(key);
        if self.keeps_index {
            both.cmd("ZREM").arg("idx").arg(key);
        }
        both.exec_async(&mut self.connection.clone()).await.map_err(failed)?;
        Ok(true)
    }

    async fn list_by_prefix(
        &self,
        _: &str,
    ) -> std::result::Result<Vec<(String, VersionedRecord)>, StorageError> {
        Ok(Vec::new())
    }

    async fn cleanup_expired(&self) -> std::result::Result<usize, StorageError> {
        Ok(0)
    }
}
