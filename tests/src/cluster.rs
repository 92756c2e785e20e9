//! Clusters of real servers.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::agreement::assert_hashes_and_entries_agree;
use crate::proxy::Proxy;
use crate::server::{Server, ServerOptions};
use crate::{holds_within, slowness};

const SLOTS: usize = 16_384;
/// How long nodes may take to agree. Generous: only a broken cluster needs all of it.
const AGREEMENT: Duration = Duration::from_mins(1);

/// Nodes that know each other. They stop when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// Primaries first, then their replicas in the same order.
    pub servers: Vec<Server>,
}

impl Cluster {
    /// Starts primaries with equal numbers of slots, each with `replicas` replicas.
    #[must_use]
    pub fn start(primaries: usize, replicas: usize) -> Self {
        Self::start_with(&Self::node_options(), primaries, replicas)
    }

    /// Like [`Cluster::start`], with other settings.
    #[must_use]
    pub fn start_with(options: &ServerOptions, primaries: usize, replicas: usize) -> Self {
        let bounds: Vec<_> = (0..=primaries).map(|number| SLOTS * number / primaries).collect();
        let slots = bounds.windows(2).map(|pair| Some((pair[0], pair[1] - 1))).collect::<Vec<_>>();
        Self::form(options, &slots, replicas)
    }

    /// Starts primaries of which the first has all slots.
    #[must_use]
    pub fn start_lopsided(primaries: usize) -> Self {
        let mut slots = vec![None; primaries];
        slots[0] = Some((0, SLOTS - 1));
        Self::form(&Self::node_options(), &slots, 0)
    }

    /// Three primaries that all tests running at this time share.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Self::start(3, 0));
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    fn form(options: &ServerOptions, slots: &[Option<(usize, usize)>], replicas: usize) -> Self {
        let count = slots.len() * (1 + replicas);
        let cluster = Self { servers: (0..count).map(|_| Server::start_with(options)).collect() };
        for (number, server) in cluster.servers.iter().enumerate() {
            let mut wire = server.wire();
            // Two nodes with the same epoch would have to resolve that first.
            wire.call(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
            if let Some(Some((first, last))) = slots.get(number) {
                let slots = ["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()];
                assert_eq!(wire.call(&slots), "+OK\r\n");
            }
            cluster.servers[0].meet(server);
        }
        cluster.wait_until_all_know(count);
        for (number, replica) in cluster.servers[slots.len()..].iter().enumerate() {
            replica.replicate(&cluster.servers[number / replicas]);
        }
        cluster.wait_until_settled();
        cluster
    }

    /// The settings that nodes are started with.
    #[must_use]
    pub fn node_options() -> ServerOptions {
        ServerOptions::default()
            .set("cluster-enabled", "yes")
            // A node forgets one that does not answer its first message for so long, and neither asks again.
            .set("cluster-node-timeout", &(2_000 * slowness()).to_string())
            // A replica need not wait for other replicas.
            .set("repl-diskless-sync-delay", "0")
    }

    /// The URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        let nodes: Vec<_> =
            self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    fn wait_until_all_know(&self, nodes: usize) {
        let know = || {
            self.servers.iter().all(|server| {
                server.wire().call(&["CLUSTER", "INFO"]).contains(&format!("cluster_known_nodes:{nodes}\r"))
            })
        };
        assert!(holds_within(AGREEMENT, know), "the nodes do not find each other");
    }

    /// Waits until all nodes agree about all slots, and all replicas follow their primaries.
    ///
    /// # Panics
    ///
    /// If they do not.
    pub fn wait_until_settled(&self) {
        let settled = || {
            let views: Vec<_> = self.servers.iter().map(Server::view_of_slots).collect();
            views.iter().all(|view| view.as_ref().is_some_and(|view| Some(view) == views[0].as_ref()))
        };
        assert!(holds_within(AGREEMENT, settled), "the nodes do not agree: {}", self.servers[0].nodes());
    }
}

impl Cluster {
    /// Puts a proxy before each node. The nodes announce the proxies to clients.
    ///
    /// # Panics
    ///
    /// If the nodes do not announce them.
    #[must_use]
    pub fn put_behind_proxies(&self) -> Vec<Proxy> {
        let proxies: Vec<_> = self.servers.iter().map(|server| Proxy::to(server.port())).collect();
        for (server, proxy) in self.servers.iter().zip(&proxies) {
            let port = proxy.port().to_string();
            let announced = server.wire().call(&["CONFIG", "SET", "cluster-announce-port", &port]);
            assert_eq!(announced, "+OK\r\n");
        }
        let all_tell = || {
            self.servers.iter().all(|server| {
                let nodes = server.nodes();
                proxies.iter().all(|proxy| nodes.contains(&format!(":{}@", proxy.port())))
            })
        };
        assert!(holds_within(AGREEMENT, all_tell), "{}", self.servers[0].nodes());
        proxies
    }

    /// Runs `redis-cli --cluster`, as an operator would.
    ///
    /// # Panics
    ///
    /// If the command fails.
    pub fn operate(&self, what: &str, options: &[&str]) {
        // redis-cli refuses to work while nodes disagree.
        self.wait_until_settled();
        let entry = format!("127.0.0.1:{}", self.servers[0].port());
        let mut arguments = vec!["--cluster", what];
        // Positional arguments, if any, come before the address of the node.
        let (before, after) =
            options.split_at(options.iter().take_while(|option| !option.starts_with("--")).count());
        arguments.extend(before);
        arguments.push(&entry);
        arguments.extend(after);
        let output = self.servers[0].cli(&arguments);
        let said = String::from_utf8_lossy(&output.stdout);
        let said = said.lines().rev().take(20).collect::<Vec<_>>();
        assert!(output.status.success(), "redis-cli --cluster {what}: {said:#?}");
    }

    /// Moves slots from one node to another, key by key.
    pub fn reshard(&self, slots: usize, from: &Server, to: &Server) {
        let (from, to, slots) = (from.node_id(), to.node_id(), slots.to_string());
        let options =
            ["--cluster-from", &from, "--cluster-to", &to, "--cluster-slots", &slots, "--cluster-yes"];
        self.operate("reshard", &options);
    }

    /// [`assert_hashes_and_entries_agree`] for all primaries together.
    pub fn assert_hashes_and_entries_agree(&self) {
        let primaries: Vec<_> = self.servers.iter().filter(|server| server.is_primary()).collect();
        assert_hashes_and_entries_agree(&primaries);
    }
}

impl Server {
    /// Whether the server takes writes.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.replication().contains("role:master")
    }

    /// Whether the slot of a key belongs to this node.
    #[must_use]
    pub fn has_slot_of(&self, key: &str) -> bool {
        !self.wire().call(&["GET", key]).starts_with("-MOVED")
    }

    /// The reply to `CLUSTER NODES`.
    #[must_use]
    pub fn nodes(&self) -> String {
        self.wire().call(&["CLUSTER", "NODES"])
    }

    /// The id by which other nodes know this node.
    #[must_use]
    pub fn node_id(&self) -> String {
        self.wire().call(&["CLUSTER", "MYID"]).lines().nth(1).unwrap().to_owned()
    }

    /// Makes another server a node of the same cluster.
    pub fn meet(&self, other: &Self) {
        let port = other.port().to_string();
        let met = self.wire().call(&["CLUSTER", "MEET", "127.0.0.1", &port, other.cluster_port()]);
        assert_eq!(met, "+OK\r\n");
    }

    /// Makes this node a replica of another node.
    pub fn replicate(&self, primary: &Self) {
        let id = primary.node_id();
        // The node refuses until it knows the primary.
        let replicates = || self.wire().call(&["CLUSTER", "REPLICATE", &id]) == "+OK\r\n";
        assert!(holds_within(AGREEMENT, replicates), "no replica: {}", self.nodes());
    }

    /// The slot of a key.
    #[must_use]
    pub fn slot_of(&self, key: &str) -> String {
        self.wire().call(&["CLUSTER", "KEYSLOT", key]).trim().trim_start_matches(':').to_owned()
    }

    /// Marks a slot as moving to another node.
    pub fn start_moving(&self, slot: &str, to: &Self) {
        let [from_id, to_id] = [self, to].map(Self::node_id);
        let importing = to.wire().call(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &from_id]);
        let migrating = self.wire().call(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &to_id]);
        assert_eq!((importing.as_str(), migrating.as_str()), ("+OK\r\n", "+OK\r\n"));
    }

    /// Moves keys of a slot that is moving, as `redis-cli --cluster reshard` does.
    pub fn migrate(&self, keys: &[&str], to: &Self) {
        assert!(self.migrate_what_is_left(keys, to), "none of the keys is there");
    }

    /// Like [`Server::migrate`], for tasks that may end at any time and take their keys with them; false if
    /// none of the keys was left.
    #[must_use]
    pub fn migrate_what_is_left(&self, keys: &[&str], to: &Self) -> bool {
        let port = to.port().to_string();
        let command = [&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"], keys].concat();
        match self.wire().call(&command).as_str() {
            "+OK\r\n" => true,
            "+NOKEY\r\n" => false,
            refusal => panic!("no migration: {refusal}"),
        }
    }

    /// The slots of the keys that match a pattern, each once.
    #[must_use]
    pub fn slots_of_keys(&self, pattern: &str) -> BTreeSet<String> {
        let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query(&mut self.connection()).unwrap();
        keys.iter().map(|key| self.slot_of(key)).collect()
    }

    /// Moves up to `most` keys of a slot that is moving; false if there were none. Each key may end before it is moved.
    #[must_use]
    pub fn migrate_up_to(&self, most: usize, slot: &str, to: &Self) -> bool {
        let mut keys = redis::cmd("CLUSTER");
        keys.arg("GETKEYSINSLOT").arg(slot).arg(most);
        let keys: Vec<String> = keys.query(&mut self.connection()).unwrap();
        if !keys.is_empty() {
            let _ = self.migrate_what_is_left(&keys.iter().map(String::as_str).collect::<Vec<_>>(), to);
        }
        !keys.is_empty()
    }

    /// Tells both nodes that a slot has arrived.
    pub fn stop_moving(&self, slot: &str, to: &Self) {
        let id = to.node_id();
        for server in [to, self] {
            assert_eq!(server.wire().call(&["CLUSTER", "SETSLOT", slot, "NODE", &id]), "+OK\r\n");
        }
    }

    /// Moves slots atomically; false if the server cannot do that. The other node's own slots must not adjoin these.
    ///
    /// # Panics
    ///
    /// If the move fails.
    #[must_use]
    pub fn move_at_once(&self, slots: Range<usize>, to: &Self) -> bool {
        let [first, last] = [slots.start, slots.end - 1].map(|slot| slot.to_string());
        let id = to.node_id();
        let valkey = self.wire().call(&["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", &first, &last, "NODE", &id]);
        if valkey != "+OK\r\n" {
            assert!(valkey.contains("nknown subcommand"), "{valkey}");
            let redis = to.wire().call(&["CLUSTER", "MIGRATION", "IMPORT", &first, &last]);
            if redis.starts_with('-') {
                assert!(redis.contains("nknown subcommand"), "{redis}");
                return false;
            }
        }
        let range = if first == last { first } else { format!("{first}-{last}") };
        let has = || {
            let nodes = to.nodes();
            nodes.lines().any(|line| line.contains("myself") && line.split(' ').any(|word| word == range))
        };
        assert!(holds_within(Duration::from_secs(30), has), "{}", to.nodes());
        true
    }

    /// Which node has which slots, as this node sees it; none while this node is not healthy.
    fn view_of_slots(&self) -> Option<Vec<String>> {
        let mut wire = self.wire();
        let is_ok = wire.call(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
        if !is_ok || !self.follows_or_leads() {
            return None;
        }
        let nodes = wire.call(&["CLUSTER", "NODES"]);
        let mut view: Vec<_> = nodes.lines().filter_map(owner_and_slots).collect();
        view.sort();
        Some(view)
    }
}

/// The id, role, primary and slots in a line of `CLUSTER NODES`.
fn owner_and_slots(line: &str) -> Option<String> {
    let words: Vec<_> = line.split(' ').collect();
    let [id, _, flags, primary, _, _, _, _, slots @ ..] = words.as_slice() else { return None };
    let flags = flags.trim_start_matches("myself,");
    Some(format!("{id} {flags} {primary} {}", slots.join(" ")))
}
