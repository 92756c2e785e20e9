//! A cluster: each call goes to the node that has the key's slot at that time.
//!
//! The redis crate's own cluster client is not used: while it renews its slot map, it serves no call, and one
//! hanging node delays the renewal. docs/architecture.md has the results of a trial.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::{ErrorKind, RedisError, ServerErrorKind, cmd};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::endpoint::Endpoint;
use super::first_answer::first_answer;
use super::node::Node;
use super::replica_read;
use super::request::{Attempt, Request};
use super::retry::{pauses, retry, until_ready};
use super::runtime::OnRuntime;
use super::target::Target;
use super::topology::{self, Location, SLOTS, Shard, slot_of};
use super::waiters::Waiters;
use crate::error::{self, CallKind, Error};
use crate::settings::Settings;

/// How often a node is asked for the slots without a reason: replicas come and go without redirects.
const SLOT_MAP_AGE: Duration = Duration::from_secs(10);
/// The minimum pause between two questions for the slots. The pause grows while the answers are nothing new.
const SLOT_MAP_PAUSE: Duration = Duration::from_millis(50);
/// After this long without a question, the pauses start over.
const PAUSES_FORGOTTEN: Duration = Duration::from_secs(1);
/// How long one node may take to say which node has which slots.
const SLOT_MAP_ANSWER: Duration = Duration::from_secs(1);
/// How long a call waits for the connection to a node before it looks the slot up again.
const NODE_WAIT: Duration = Duration::from_millis(200);
/// How many redirects in a row a call follows without a pause. Nodes that disagree about a slot soon agree.
const QUICK_REDIRECTS: usize = 4;
/// How long a node that a redirect named is kept although it has no slots (yet).
const KEPT_WITHOUT_SLOTS: Duration = Duration::from_mins(1);

/// The connections to a cluster's nodes.
pub(crate) struct Cluster {
    shared: Arc<Shared>,
    slot_map_task: AbortHandle,
}

struct Shared {
    settings: Arc<Settings>,
    /// The runtime of the connections, whichever call opens them.
    runtime: Handle,
    /// The nodes that the URL names; at least one.
    seeds: Vec<Endpoint>,
    view: ArcSwap<View>,
    /// All nodes with a connection. Locked when nodes come or go and for redirects, not for other calls.
    nodes: Mutex<HashMap<(Location, Purpose), KnownNode>>,
    /// A call has found that the view is outdated.
    outdated: Notify,
    /// There is a new view.
    renewed: Notify,
    /// Are woken when a slot has another primary.
    waiters: Arc<Waiters>,
}

/// What a connection to a node is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Purpose {
    Primary,
    Replica,
}

struct KnownNode {
    node: Arc<Node>,
    /// When a redirect or a view last named the node.
    named: Instant,
}

/// What the client knows about the cluster. It is replaced as a whole, so that a call reads it without
/// a lock.
#[derive(Default)]
struct View {
    shards: Vec<ShardNodes>,
    /// For each slot, the index of its shard.
    shard_of_slot: Vec<Option<usize>>,
    /// The answer that this view was made from.
    answer: NodeAnswer,
}

struct ShardNodes {
    primary: Arc<Node>,
    replicas: Vec<Arc<Node>>,
}

impl View {
    /// Who has which slots.
    fn primaries(&self) -> Vec<(&Location, &[(u16, u16)])> {
        self.answer.shards.iter().map(|shard| (&shard.primary, shard.slots.as_slice())).collect()
    }

    fn shard(&self, slot: u16) -> Option<&ShardNodes> {
        self.shards.get(self.shard_of_slot.get(usize::from(slot)).copied().flatten()?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.slot_map_task.abort();
    }
}

impl Cluster {
    /// Connects to the first seed that answers, and asks it for the other nodes.
    pub(super) async fn open(
        seeds: Vec<Endpoint>,
        settings: Arc<Settings>,
        waiters: Arc<Waiters>,
    ) -> Result<Self, Error> {
        let answer = ask_seeds(&seeds, settings.timeouts.connect).await?;
        Ok(Self::on(&Handle::current(), seeds, settings, waiters, answer))
    }

    fn on(
        runtime: &Handle,
        seeds: Vec<Endpoint>,
        settings: Arc<Settings>,
        waiters: Arc<Waiters>,
        answer: NodeAnswer,
    ) -> Self {
        let shared = Arc::new(Shared {
            settings,
            runtime: runtime.clone(),
            seeds,
            view: ArcSwap::default(),
            nodes: Mutex::default(),
            outdated: Notify::new(),
            renewed: Notify::new(),
            waiters,
        });
        shared.adopt(answer);
        let slot_map_task = runtime.spawn(keep_slot_map(shared.clone())).abort_handle();
        Self { shared, slot_map_task }
    }

    /// The nodes that the URL names, for errors.
    pub(super) fn address(&self) -> String {
        let seeds: Vec<_> = self.shared.seeds.iter().map(Endpoint::address).collect();
        format!("{} (cluster)", seeds.join(", "))
    }

    /// Sends a request to the node that has the slot of its key, or to a replica if reads may go there.
    pub(super) async fn call(&self, request: &Request<'_>) -> Attempt {
        let slot = slot_of(request.routed_by);
        let may_go_to_replica = self.shared.settings.reads_from_replicas && request.kind == CallKind::Read;
        match may_go_to_replica.then(|| self.connected_replica(slot)).flatten() {
            Some(replica) => replica_read::read(&replica, request, || self.call_primary(slot, request)).await,
            None => self.call_primary(slot, request).await,
        }
    }

    /// Sends a request to the node that has the slot, and waits for the reply. While nothing can have been
    /// changed, also waits for the cluster to be ready.
    ///
    /// A write is sent again only if it was not sent, or if the node said that it did nothing.
    async fn call_primary(&self, slot: u16, request: &Request<'_>) -> Attempt {
        let mut retry = retry(Instant::now(), self.shared.settings.timeouts.connect);
        let mut quick_redirects = QUICK_REDIRECTS;
        let mut target: Option<(Location, bool, String)> = None;
        loop {
            // From here on, no new view is missed.
            let mut renewed = pin!(self.shared.renewed.notified());
            renewed.as_mut().enable();
            let (node, asking) = match target.take() {
                Some((location, asking, sender)) => (self.shared.node(&location, &sender), asking),
                None => (self.primary(slot), false),
            };
            let attempt = match &node {
                Some(node) => node.attempt(request, asking, NODE_WAIT.min(retry.time_left())).await,
                None => Attempt::NotSent(Some(Box::new(self.no_node()))),
            };
            let redirect = redirect(&attempt, node.as_ref().map_or("", |node| node.host()));
            if says_slots_have_changed(&attempt, redirect.as_ref()) {
                self.shared.outdated.notify_one();
            }
            // A redirect may come from a primary that was deposed, and lead to another history of the task.
            if matches!(request.kind, CallKind::Replace { .. })
                && redirect.as_ref().is_some_and(|redirect| !redirect.asking)
            {
                // With an old view, the next attempt would be redirected too.
                let _ = timeout(retry.next_pause(), renewed).await;
                return Attempt::Outdated;
            }
            let may_pass = match &attempt {
                Attempt::Replied(Err(error)) => redirect.is_some() || error::is_transient_reply(error),
                _ => !self.has_ended(),
            };
            if !retry.allows(request, &attempt, may_pass) {
                return retry.outcome(attempt);
            }
            let is_redirected = redirect.is_some();
            let sender = node.as_ref().map_or_else(String::new, |node| node.address());
            target = redirect.and_then(|Redirect { to, asking }| Some((to?, asking, sender)));
            if target.is_some() && quick_redirects > 0 {
                quick_redirects = quick_redirects.saturating_sub(1);
                continue;
            }
            (target, quick_redirects) = (None, QUICK_REDIRECTS);
            // If the node that the redirect names cannot be reached, that says more than the redirect.
            if !is_redirected {
                retry.keep(attempt);
            }
            // A new view ends the pause. Then the slot is looked up again.
            let _ = timeout(retry.next_pause(), renewed).await;
        }
    }

    fn connected_replica(&self, slot: u16) -> Option<Arc<Node>> {
        let view = self.shared.view.load();
        let of_use = |replica: &&Arc<Node>| replica.ready().is_some();
        let replicas: Vec<_> = view.shard(slot)?.replicas.iter().filter(of_use).collect();
        replicas.get(fastrand::usize(..replicas.len().max(1))).map(|replica| Arc::clone(replica))
    }

    pub(super) fn settings(&self) -> Arc<Settings> {
        self.shared.settings.clone()
    }

    /// The error for a key whose slot no known node has.
    fn no_node(&self) -> Error {
        let why = "no known node serves the key's slot";
        let cause = RedisError::from((ErrorKind::ClusterConnectionNotFound, why));
        Error::NoPrimary { address: self.address(), cause }
    }

    fn primary(&self, slot: u16) -> Option<Arc<Node>> {
        self.shared.view.load().shard(slot).map(|shard| shard.primary.clone())
    }

    /// The first of these keys for each shard.
    pub(super) fn one_key_of_each_shard(&self, keys: impl Iterator<Item = String>) -> Vec<String> {
        let view = self.shared.view.load();
        let mut found = HashMap::new();
        for key in keys {
            if let Some(shard) = view.shard_of_slot.get(usize::from(slot_of(&key))).copied().flatten() {
                found.entry(shard).or_insert(key);
            }
            if found.len() == view.shards.len() {
                break;
            }
        }
        found.into_values().collect()
    }
}

impl OnRuntime for Cluster {
    fn has_ended(&self) -> bool {
        self.slot_map_task.is_finished()
    }

    fn restarted_on(&self, runtime: &Handle) -> Self {
        let Shared { seeds, settings, waiters, view, .. } = &*self.shared;
        let answer = view.load().answer.clone();
        Self::on(runtime, seeds.clone(), settings.clone(), waiters.clone(), answer)
    }
}

/// What a node says about all nodes.
#[derive(Clone, Default)]
struct NodeAnswer {
    shards: Vec<Shard>,
    /// The address of the node that says so.
    source: String,
}

/// Where a reply sends the request.
struct Redirect {
    /// `None` if the sender does not know the node's host.
    to: Option<Location>,
    /// Whether that node must be sent `ASKING` first.
    asking: bool,
}

fn redirect(attempt: &Attempt, sender: &str) -> Option<Redirect> {
    let Attempt::Replied(Err(error)) = attempt else { return None };
    let asking = match error.kind() {
        ErrorKind::Server(ServerErrorKind::Moved) => false,
        ErrorKind::Server(ServerErrorKind::Ask) => true,
        _ => return None,
    };
    let to = error.redirect_node().and_then(|(node, _)| Location::parse(node, sender));
    Some(Redirect { to, asking })
}

/// Whether the outcome of a request is a reason to ask for the slots.
fn says_slots_have_changed(attempt: &Attempt, redirect: Option<&Redirect>) -> bool {
    match attempt {
        // Of another epoch, the client knows already.
        Attempt::Replied(Ok(_)) | Attempt::Outdated => false,
        Attempt::Replied(Err(error)) => match redirect {
            // After ASK, the slot is still where it was.
            Some(redirect) => !redirect.asking,
            // A node that says so has the slot.
            None if matches!(error.code(), Some("TRYAGAIN" | "NOREPLICAS" | "BUSY")) => false,
            None => error::is_transient_reply(error),
        },
        Attempt::Lost(_) | Attempt::NotSent(_) | Attempt::Refused(_) => true,
    }
}

impl Shared {
    /// The connection to a node that another node's redirect names.
    fn node(&self, location: &Location, sender: &str) -> Option<Arc<Node>> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        self.node_of(&mut nodes, location, Purpose::Primary, sender)
    }

    fn node_of(
        &self,
        nodes: &mut HashMap<(Location, Purpose), KnownNode>,
        location: &Location,
        purpose: Purpose,
        announced_by: &str,
    ) -> Option<Arc<Node>> {
        let key = (location.clone(), purpose);
        if let Some(known) = nodes.get_mut(&key) {
            known.named = Instant::now();
            return Some(known.node.clone());
        }
        // An invalid host cannot be connected to. The next answer may name a valid one.
        let endpoint =
            self.seeds.first()?.at(&location.host, location.port, &format!("the node {announced_by}"));
        let endpoint = endpoint.ok()?;
        let endpoint = if purpose == Purpose::Replica { endpoint.for_reads() } else { endpoint };
        let node = Arc::new(Node::start(Target::Server(endpoint), &self.runtime));
        nodes.insert(key, KnownNode { node: node.clone(), named: Instant::now() });
        Some(node)
    }

    /// Makes a node's answer the view of all calls. Returns false if it is nothing new.
    fn adopt(&self, answer: NodeAnswer) -> bool {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut view = View { shards: Vec::new(), shard_of_slot: vec![None; usize::from(SLOTS)], answer };
        let source = view.answer.source.as_str();
        for shard in &view.answer.shards {
            let primary = self.node_of(&mut nodes, &shard.primary, Purpose::Primary, source);
            let Some(primary) = primary else { continue };
            let replicas = shard.replicas.iter().filter(|_| self.settings.reads_from_replicas);
            let replicas =
                replicas.filter_map(|replica| self.node_of(&mut nodes, replica, Purpose::Replica, source));
            let replicas = replicas.collect();
            for (first, last) in &shard.slots {
                let slots = view.shard_of_slot.get_mut(usize::from(*first)..=usize::from(*last));
                slots.unwrap_or_default().fill(Some(view.shards.len()));
            }
            view.shards.push(ShardNodes { primary, replicas });
        }
        // Calls in flight keep the connection of a removed node until they are done.
        nodes.retain(|_, known| known.named.elapsed() < KEPT_WITHOUT_SLOTS);
        let before = self.view.load();
        let is_new = before.answer.shards != view.answer.shards;
        let has_moved = before.primaries() != view.primaries();
        if has_moved {
            // Before any call can use the view.
            self.waiters.begin_epoch();
        }
        self.view.store(Arc::new(view));
        if is_new {
            self.renewed.notify_waiters();
        }
        if has_moved {
            self.waiters.wake_all();
        }
        is_new
    }

    /// Asks a random node for the slots, so that a stale node is not asked every time.
    async fn ask(&self) -> Option<NodeAnswer> {
        let mut nodes: Vec<_> = {
            let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            nodes.values().map(|known| known.node.clone()).filter(|node| node.is_connected()).collect()
        };
        fastrand::shuffle(&mut nodes);
        if let Ok(answer) = first_answer(nodes.into_iter().map(ask_node), ()).await {
            return Some(answer);
        }
        let seeds = self.seeds.iter().cloned();
        let attempts = seeds.map(|seed| async move { ask_seed(&seed, SLOT_MAP_ANSWER).await });
        first_answer(attempts, no_seed()).await.ok()
    }
}

/// Keeps the view up to date.
async fn keep_slot_map(shared: Arc<Shared>) {
    let (mut pauses, mut last) = (pauses(), Instant::now());
    loop {
        // Either ends the wait: a call has found the view outdated, or it is time.
        let _ = timeout(SLOT_MAP_AGE, shared.outdated.notified()).await;
        let is_first = last.elapsed() >= PAUSES_FORGOTTEN;
        let finds_news = shared.ask().await.is_some_and(|answer| shared.adopt(answer));
        if is_first || finds_news {
            pauses = self::pauses();
        }
        last = Instant::now();
        // All clients ask a cluster that is in trouble, so they must not ask too often.
        sleep(pauses.next().unwrap_or(SLOT_MAP_PAUSE).max(SLOT_MAP_PAUSE)).await;
    }
}

/// Asks a node that has a connection.
async fn ask_node(node: Arc<Node>) -> Result<NodeAnswer, ()> {
    let slots = cmd("CLUSTER").arg("SLOTS").to_owned();
    let request = Request { command: &slots, kind: CallKind::Read, key: "", routed_by: "" };
    match timeout(SLOT_MAP_ANSWER, node.attempt(&request, false, Duration::ZERO)).await {
        Ok(Attempt::Replied(Ok(reply))) => {
            let shards = topology::read(&reply.value, node.host()).ok_or(())?;
            Ok(NodeAnswer { shards, source: node.address() })
        }
        _ => Err(()),
    }
}

/// The primaries that have slots, by the first seed that answers.
pub(super) async fn primaries(seeds: &[Endpoint], limit: Duration) -> Result<Vec<Endpoint>, Error> {
    let answer = ask_seeds(seeds, limit).await?;
    let seed = seeds.first().ok_or_else(no_seed)?;
    let at = |shard: &Shard| {
        seed.at(&shard.primary.host, shard.primary.port, &format!("the node {}", answer.source))
    };
    answer.shards.iter().map(at).collect()
}

async fn ask_seeds(seeds: &[Endpoint], limit: Duration) -> Result<NodeAnswer, Error> {
    let attempts = seeds.iter().cloned().map(|seed| async move {
        match ask_seed(&seed, limit).await {
            Ok(answer) => Ok(answer),
            Err(failure) => Err(Target::Server(seed).explain(failure, limit).await),
        }
    });
    first_answer(attempts, no_seed()).await
}

fn no_seed() -> Error {
    Error::Settings("URL: expected at least one node, got none".to_owned())
}

/// Asks a node over a new connection.
async fn ask_seed(seed: &Endpoint, limit: Duration) -> Result<NodeAnswer, Error> {
    let of_connecting = |error| error::of_connecting(error, seed.address());
    let started = Instant::now();
    let connection = seed.connect(limit, || ()).await?;
    let left = limit.saturating_sub(started.elapsed());
    let asked = until_ready(left, || {
        let mut connection = connection.clone();
        async move { cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await }
    })
    .await;
    let not_a_cluster = |cause| Error::NotACluster { address: seed.address(), cause };
    match asked {
        Ok(reply) => {
            let shards = topology::read(&reply, &seed.host()).ok_or_else(|| not_a_cluster(None))?;
            Ok(NodeAnswer { shards, source: seed.address() })
        }
        Err(error)
            if error.code().is_some_and(|code| code != "NOPERM") && !error::is_transient_reply(&error) =>
        {
            Err(not_a_cluster(Some(error)))
        }
        Err(error) => Err(of_connecting(error)),
    }
}
