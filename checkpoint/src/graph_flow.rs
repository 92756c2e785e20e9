//! A session storage for [graph-flow](https://docs.rs/graph-flow).

use async_trait::async_trait;
use graph_flow::{GraphError, Session, SessionStorage};
use pmcptask_client::RedisBackend;

use crate::builder::SaverBuilder;
use crate::compression::RecordError;
use crate::error::Error;
use crate::threads::{Policy, Stored, Threads, Written, unreadable};

/// The start of all keys, unless another one is set.
const PREFIX: &str = "sessions";

/// The first incarnation of a session, which starts at version 0.
const FIRST: u64 = 0;

/// Keeps the sessions of graph-flow. Takes the place of `InMemorySessionStorage` and `PostgresSessionStorage`.
///
/// | call | round trips |
/// |---|---|
/// | `save` | 1; 2 if the session was deleted or has expired meanwhile, and 4 from then on; 2 for a creation that comes too late |
/// | `get` | 1, and another one if reads refresh the TTL |
/// | `delete` | 1 |
///
/// ```
/// use graph_flow::{GraphError, Session, SessionStorage as _};
/// use pmcptask_checkpoint::graph_flow::RedisSessionStorage;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let storage = RedisSessionStorage::new(&url).await?;
/// storage.save(Session::new_from_task("session-1".to_owned(), "ask")).await?;
///
/// let session = storage.get("session-1").await?.expect("it was saved");
/// storage.save(session.clone()).await?;
/// let conflict = storage.save(session).await.unwrap_err();
/// assert!(matches!(conflict, GraphError::SessionConflict(_)));
/// # Ok(())
/// # }
/// ```
///
/// # What holds
///
/// - A session is saved only over the version that it was read at, decided by the server. Otherwise the error is
///   [`GraphError::SessionConflict`], with both versions. A session that does not exist is created, once.
/// - A session that was deleted or has expired, and is saved again by a run that still had it, goes on with the next version.
///   A run with an older version conflicts then, too.
/// - Session ids may hold any text.
///
/// # Keys
///
/// `sessions:tasks:<session>:<first version>` and `sessions:idx:<session>`, as for tasks.
#[derive(Debug, Clone)]
pub struct RedisSessionStorage {
    threads: Threads,
}

impl From<Threads> for RedisSessionStorage {
    fn from(threads: Threads) -> Self {
        Self { threads }
    }
}

impl RedisSessionStorage {
    /// Connects to the servers at `url`, with the default settings. [`RedisBackend::new`] explains the URL.
    ///
    /// # Errors
    ///
    /// Those of [`SaverBuilder::connect`].
    pub async fn new(url: &str) -> Result<Self, Error> {
        Self::builder(url).connect().await
    }

    /// Returns a builder, for settings other than the defaults.
    pub fn builder(url: &str) -> SaverBuilder<Self> {
        SaverBuilder::new(url, PREFIX)
    }

    /// Uses the connections and the prefix of a backend. That prefix should be used for nothing else, and the backend must not
    /// read from replicas, which may be behind.
    #[must_use]
    pub fn from_backend(backend: RedisBackend) -> Self {
        Threads::new(backend, Vec::new(), Policy::new()).into()
    }

    /// Checks that each server answers and has the module.
    ///
    /// # Errors
    ///
    /// Those of [`RedisBackend::check_health`].
    pub async fn check_health(&self) -> Result<(), Error> {
        self.threads.check_health().await
    }

    /// Writes a session over its version.
    async fn write(&self, session: &Session) -> Result<Saved, Error> {
        let json = serde_json::to_vec(session).map_err(Error::Unstorable)?;
        let id = &session.id;
        if session.version > FIRST {
            match self.threads.replace(id, &task_id(FIRST), json.clone(), session.version).await? {
                Written::Yes { .. } => return Ok(Saved::Yes),
                Written::Conflict { actual } => return Ok(Saved::Conflict { stored: actual }),
                Written::Missing => {}
            }
        }
        // A new session, or a later incarnation, whose first version its task id says.
        if self.threads.create_only(id, &task_id(session.version), &json).await? {
            return Ok(Saved::Yes);
        }
        let Some(stored) = self.threads.newest(id).await? else { return Ok(Saved::Unsettled) };
        let first = first_version(id, &stored)?;
        let behind_first = session.version.checked_sub(first).filter(|version| *version > 0);
        let Some(expected) = behind_first else {
            return Ok(Saved::Conflict { stored: first.saturating_add(stored.version) });
        };
        Ok(match self.threads.replace(id, &stored.task_id, json, expected).await? {
            Written::Yes { .. } => Saved::Yes,
            Written::Conflict { actual } => Saved::Conflict { stored: first.saturating_add(actual) },
            Written::Missing => Saved::Unsettled,
        })
    }
}

enum Saved {
    Yes,
    Conflict {
        stored: u64,
    },
    /// The session came or went between two looks.
    Unsettled,
}

/// The task id of the incarnation of a session that was created from this version.
fn task_id(first: u64) -> String {
    first.to_string()
}

fn first_version(session: &str, stored: &Stored) -> Result<u64, Error> {
    stored.task_id.parse().map_err(|_| unreadable(session, &stored.task_id, RecordError::ForeignId))
}

impl From<Error> for GraphError {
    fn from(error: Error) -> Self {
        Self::StorageError(error.to_string())
    }
}

#[async_trait]
impl SessionStorage for RedisSessionStorage {
    async fn save(&self, session: Session) -> Result<(), GraphError> {
        /// Each further one needs a deletion and a save of others in between.
        const MOST_LOOKS: usize = 8;
        for _ in 0..MOST_LOOKS {
            match self.write(&session).await? {
                Saved::Yes => return Ok(()),
                Saved::Conflict { stored } => {
                    return Err(GraphError::SessionConflict(format!(
                        "session {:?}: expected the stored version to be {}, got {stored}",
                        session.id, session.version
                    )));
                }
                Saved::Unsettled => {}
            }
        }
        Err(GraphError::SessionConflict(format!(
            "session {:?}, to be saved from version {}, was created and deleted all the time",
            session.id, session.version
        )))
    }

    async fn get(&self, id: &str) -> Result<Option<Session>, GraphError> {
        let Some(stored) = self.threads.newest(id).await? else { return Ok(None) };
        let read = serde_json::from_slice(&stored.json).map_err(RecordError::from);
        let mut session: Session = read.map_err(|cause| unreadable(id, &stored.task_id, cause))?;
        let first = first_version(id, &stored)?;
        session.version = first.saturating_add(stored.version);
        self.threads.refresh(id, &[stored.task_id]).await?;
        Ok(Some(session))
    }

    async fn delete(&self, id: &str) -> Result<(), GraphError> {
        self.threads.trim(id, 0).await?;
        Ok(())
    }
}
