//! The stores that a pmcp server can have for its tasks.

use std::sync::Arc;

use pmcp::server::task_store::{InMemoryTaskStore, StoreConfig, TaskStore as Store};
use pmcp_tasks::store::backend::StorageBackend;
use pmcp_tasks::store::memory::InMemoryBackend;
use pmcp_tasks::{GenericTaskStore, ServerTaskStore, TaskSecurityConfig};
use pmcptask_client::{RedisBackend, TaskStore};
use pmcptask_tests::{Server, lua_backend};

use crate::Result;
use crate::contest::{LUA, OURS, Servers};

pub(crate) const MEMORY: &str = "InMemoryTaskStore";
pub(crate) const NEAR: &str = "TaskStore, near cache";
pub(crate) const STORE: &str = "TaskStore";
pub(crate) const GENERIC: &str = "pmcp's store over RedisBackend";

/// More tasks than any owner has here.
const MAX_TASKS: usize = 10_000;

/// The server of a store.
pub(crate) fn server_of<'s>(name: &str, servers: &'s Servers) -> &'s Server {
    servers.of(if name == LUA { LUA } else { OURS })
}

/// The store of this name, over the server at this URL.
pub(crate) async fn store(name: &str, url: &str) -> Result<Arc<dyn Store>> {
    let security = security();
    let ours = async || RedisBackend::new(url).await;
    Ok(match name {
        MEMORY => Arc::new(InMemoryTaskStore::with_config(StoreConfig {
            max_tasks_per_owner: MAX_TASKS,
            ..StoreConfig::default()
        })),
        NEAR => Arc::new(TaskStore::new(ours().await?).with_security(security).near_cache(64 << 20)),
        STORE => Arc::new(TaskStore::new(ours().await?).with_security(security)),
        GENERIC => over(ours().await?, security),
        _ => over(lua_backend(url).await?, security),
    })
}

/// The store that pmcp has over any backend, over one in memory.
pub(crate) fn in_memory() -> Arc<dyn Store> {
    over(InMemoryBackend::new(), security())
}

fn security() -> TaskSecurityConfig {
    TaskSecurityConfig::default().with_max_tasks_per_owner(MAX_TASKS).with_allow_anonymous(true)
}

fn over<B: StorageBackend + 'static>(backend: B, security: TaskSecurityConfig) -> Arc<dyn Store> {
    Arc::new(ServerTaskStore::new(GenericTaskStore::new(backend).with_security(security)))
}
