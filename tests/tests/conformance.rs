//! Every backend keeps the rules of `StorageBackend`: this project's, the Lua backend that it replaces, and
//! the one in memory. Differences are declared below.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::env;
use std::sync::OnceLock;

use pmcp_tasks::InMemoryBackend;
use pmcptask_tests::conformance::{Difference, Subject};
use pmcptask_tests::{Server, conformance_suite, lua_backend};
use uuid::Uuid;

/// The user's server from `REDIS_URL`, or a server for each test, which stops with the test's thread.
fn url() -> String {
    static OWN: OnceLock<Option<String>> = OnceLock::new();
    thread_local! { static SERVER: Server = Server::start(); }
    match OWN.get_or_init(|| env::var("REDIS_URL").ok()) {
        Some(url) => url.clone(),
        None => SERVER.with(Server::url),
    }
}

fn prefix() -> String {
    format!("test-{}", Uuid::new_v4())
}

/// The backend of this project.
struct Native;

impl Subject for Native {
    type Backend = pmcptask_client::RedisBackend;

    async fn backend() -> Self::Backend {
        pmcptask_client::RedisBackend::new(&url()).await.unwrap().with_prefix(prefix())
    }

    fn why_it_differs(_: Difference) -> Option<&'static str> {
        None
    }
}

/// The backend of this project with the owner as a hash tag.
struct HashTagged;

impl Subject for HashTagged {
    type Backend = pmcptask_client::RedisBackend;

    async fn backend() -> Self::Backend {
        let builder = pmcptask_client::RedisBackend::builder(url()).prefix(prefix());
        builder.hash_tags(pmcptask_client::HashTags::On).connect().await.unwrap()
    }

    fn why_it_differs(_: Difference) -> Option<&'static str> {
        None
    }
}

/// The backend of `pmcp-tasks` that works with Lua scripts.
struct Lua;

impl Subject for Lua {
    type Backend = pmcp_tasks::RedisBackend;

    async fn backend() -> Self::Backend {
        lua_backend(&url()).await.unwrap().with_prefix(prefix())
    }

    fn why_it_differs(difference: Difference) -> Option<&'static str> {
        match difference {
            Difference::OnlyTextIsStored => Some("it reads and writes data as a Rust string"),
            Difference::OwnersWithColonsMix => Some("it splits keys at the first colon"),
            Difference::ExpiryIsFloored => Some("it sets the expiry with EXPIREAT, in whole seconds"),
            Difference::UnreadableExpiryIsIgnored => Some("it takes what it cannot parse for no expiry"),
            _ => None,
        }
    }
}

/// The backend of `pmcp-tasks` that keeps records in the process.
struct InMemory;

impl Subject for InMemory {
    type Backend = InMemoryBackend;

    async fn backend() -> Self::Backend {
        InMemoryBackend::new()
    }

    fn why_it_differs(difference: Difference) -> Option<&'static str> {
        match difference {
            Difference::MissingCasIsNotFound => Some("the trait allows both"),
            Difference::ListsAreUnordered => Some("it is a hash map"),
            Difference::OwnersWithColonsMix => Some("it lists keys by their start"),
            Difference::ExpiredRecordsAreRead | Difference::CleanupRemoves => {
                Some("it has no clock of its own: expired records stay until they are cleaned up")
            }
            Difference::UnreadableExpiryIsIgnored => Some("it never looks into a record but to clean up"),
            _ => None,
        }
    }
}

conformance_suite!(redis_native, Native);
conformance_suite!(redis_hash_tagged, HashTagged);
conformance_suite!(redis_lua, Lua);
conformance_suite!(redis_in_memory, InMemory);
