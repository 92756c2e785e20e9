//! A primary and its replicas, and the Sentinels that watch them.

use std::time::Duration;

use crate::holds_within;
use crate::server::{Server, ServerOptions};
use crate::wire::Wire;

/// The name of the primary in the Sentinels' configuration.
const SERVICE: &str = "tasks";
/// How long the Sentinels may take to find each other. Generous: only broken ones need all of it.
const AGREEMENT: Duration = Duration::from_mins(1);
/// How many Sentinels must agree that the primary is down.
const QUORUM: usize = 2;

/// Servers and the Sentinels that watch them. All stop when this is dropped.
#[derive(Debug)]
pub struct SentinelGroup {
    /// The first is the primary at the start.
    pub servers: Vec<Server>,
    /// The Sentinels.
    pub sentinels: Vec<Server>,
}

impl SentinelGroup {
    /// Starts one primary, `replicas` replicas, and three Sentinels.
    #[must_use]
    pub fn start(replicas: usize) -> Self {
        // A replica need not wait for other replicas.
        let options = ServerOptions::default().set("repl-diskless-sync-delay", "0");
        Self::start_with(&options, &ServerOptions::default().sentinel(), replicas)
    }

    /// Like [`SentinelGroup::start`], with other settings for servers and Sentinels.
    #[must_use]
    pub fn start_with(server: &ServerOptions, sentinel: &ServerOptions, replicas: usize) -> Self {
        let mut servers = vec![Server::start_with(server)];
        let primary = servers[0].port().to_string();
        let replica = server.clone().replica_of(&servers[0]);
        servers.extend((0..replicas).map(|_| Server::start_with(&replica)));
        let sentinel = sentinel
            .clone()
            .set("sentinel monitor", &format!("{SERVICE} 127.0.0.1 {primary} {QUORUM}"))
            .set("sentinel down-after-milliseconds", &format!("{SERVICE} 1500"))
            .set("sentinel failover-timeout", &format!("{SERVICE} 10000"));
        let sentinels = (0..=QUORUM).map(|_| Server::start_with(&sentinel)).collect();
        let watched = Self { servers, sentinels };
        watched.wait_until_settled();
        watched
    }

    /// The URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/{SERVICE}", self.hosts().join(","))
    }

    /// Host and port of each Sentinel.
    #[must_use]
    pub fn hosts(&self) -> Vec<String> {
        self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect()
    }

    /// Waits until each Sentinel knows all servers and all other Sentinels, and all servers but one are
    /// replicas that follow it.
    ///
    /// # Panics
    ///
    /// If that does not happen.
    pub fn wait_until_settled(&self) {
        let others = self.sentinels.len() - 1;
        let replicas = self.servers.len() - 1;
        let is_settled = || {
            let all_follow = self.servers.iter().filter(|server| server.is_primary()).count() == 1
                && self.servers.iter().all(Server::follows_or_leads);
            let known = format!("slaves={replicas},sentinels={}", others + 1);
            let all_know = self.sentinels.iter().all(|sentinel| {
                let mut wire = sentinel.wire();
                // A Sentinel with its own password is not checked.
                let info = wire.call(&["INFO", "sentinel"]);
                info.starts_with("-NOAUTH") || (info.contains("status=ok") && info.contains(&known))
            });
            all_follow && all_know
        };
        assert!(
            holds_within(AGREEMENT, is_settled),
            "not settled: {}",
            self.sentinels[0].wire().call(&["INFO", "sentinel"])
        );
    }

    /// Makes the Sentinels promote a replica, as an operator would, and waits for it.
    ///
    /// # Panics
    ///
    /// If they do not.
    pub fn fail_over(&self) {
        let before = self.primary();
        // For a short time after another failover, the Sentinel refuses.
        let asked = || self.sentinels[0].wire().call(&["SENTINEL", "FAILOVER", SERVICE]) == "+OK\r\n";
        assert!(holds_within(AGREEMENT, asked), "{}", self.sentinels[0].log());
        assert!(holds_within(AGREEMENT, || self.primary() != before), "{}", self.sentinels[0].log());
    }

    /// Makes a server a primary without the knowledge of the Sentinels.
    ///
    /// # Panics
    ///
    /// If the server does not become a primary.
    pub fn make_primary(&self, server: usize) {
        let port = self.servers[server].port();
        // A Sentinel that has just made the server a replica closes its connections.
        let made = || {
            let reply = Wire::open(port).and_then(|mut wire| wire.try_call(&["REPLICAOF", "NO", "ONE"]));
            reply.is_ok_and(|reply| reply == "+OK\r\n")
        };
        assert!(holds_within(AGREEMENT, made), "{}", self.servers[server].log());
    }

    /// The port of the primary, as the first Sentinel knows it.
    #[must_use]
    pub fn primary(&self) -> String {
        let reply = self.sentinels[0].wire().call(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]);
        reply.lines().last().unwrap_or_default().to_owned()
    }
}
