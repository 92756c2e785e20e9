//! The stores that a pmcp server can have for its tasks, and how fast they are, measured in turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use pmcp::server::task_store::{InMemoryTaskStore, StoreConfig, TaskStore as Store};
use pmcp_tasks::store::backend::StorageBackend;
use pmcp_tasks::{GenericTaskStore, ServerTaskStore, TaskSecurityConfig};
use pmcptask_client::{RedisBackend, TaskStore};
use pmcptask_tests::{Server, lua_backend};

use crate::comparison::progress_bar;
use crate::contest::{LUA, OURS, Servers};
use crate::figures::{Spread, short};
use crate::{Result, repeats};

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
    let security =
        TaskSecurityConfig::default().with_max_tasks_per_owner(MAX_TASKS).with_allow_anonymous(true);
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

fn over<B: StorageBackend + 'static>(backend: B, security: TaskSecurityConfig) -> Arc<dyn Store> {
    Arc::new(ServerTaskStore::new(GenericTaskStore::new(backend).with_security(security)))
}

/// How often in a second, for each cell of a table and each name, repeat by repeat.
pub(crate) struct Rates<C>(BTreeMap<(C, &'static str), Vec<f64>>);

impl<C: Copy + Ord> Rates<C> {
    /// Measures all names in turn. Each time another one begins. The servers are empty before each.
    pub(crate) async fn measure(
        servers: &Servers,
        cells: &[C],
        names: &[&'static str],
        per_second: impl AsyncFn(&'static str, C) -> Result<f64>,
    ) -> Result<Self> {
        let progress = progress_bar(repeats() * cells.len() * names.len())?;
        let mut rates = BTreeMap::<_, Vec<_>>::new();
        for repeat in 0..repeats() {
            for cell in cells {
                for turn in 0..names.len() {
                    let name = names[(repeat + turn) % names.len()];
                    servers.empty()?;
                    rates.entry((*cell, name)).or_default().push(per_second(name, *cell).await?);
                    progress.inc(1);
                }
            }
        }
        progress.finish_and_clear();
        Ok(Self(rates))
    }

    /// The rate as a multiple of another name's, for each repeat.
    pub(crate) fn ratio(&self, cell: C, name: &'static str, to: &'static str) -> Option<Spread> {
        let (rates, others) = (self.0.get(&(cell, name))?, self.0.get(&(cell, to))?);
        Some(Spread::of(&rates.iter().zip(others).map(|(rate, other)| rate / other).collect::<Vec<_>>()))
    }

    /// The median of the rate, and the ratio, for a table.
    pub(crate) fn shown(&self, cell: C, name: &'static str, to: &'static str) -> String {
        let rate = self.0.get(&(cell, name)).map_or(f64::NAN, |rates| Spread::of(rates).median);
        let ratio = self.ratio(cell, name, to).map(|ratio| ratio.to_string());
        format!("{} / s, {}", short(rate), ratio.unwrap_or_default())
    }
}
