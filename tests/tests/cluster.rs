//! A cluster is a backend like any other: every owner works, the nodes share the owners, and the same
//! rules hold.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{Error, HashTags, RedisBackend};
use pmcptask_schema::Keyspace;
use pmcptask_tests::conformance::{Difference, Subject};
use pmcptask_tests::{Cluster, Fault, Port, Proxy, Server, conformance_suite, holds_within, integer, reason};
use tokio::task::JoinSet;
use uuid::Uuid;

struct InCluster;

impl Subject for InCluster {
    type Backend = RedisBackend;

    async fn backend() -> Self::Backend {
        // Ends with the test's thread.
        thread_local! { static CLUSTER: Arc<Cluster> = Cluster::shared(); }
        let url = CLUSTER.with(|cluster| cluster.url());
        RedisBackend::builder(url).prefix(format!("test-{}", Uuid::new_v4())).connect().await.unwrap()
    }

    fn why_it_differs(_: Difference) -> Option<&'static str> {
        None
    }
}

conformance_suite!(in_cluster, InCluster);

/// Three primaries with a replica each, and a backend that reads from the replicas.
async fn with_replicas() -> (Cluster, RedisBackend) {
    let cluster = Cluster::start(3, 1);
    // The cluster does not announce a replica that has received no data.
    let writing = RedisBackend::new(&cluster.url()).await.unwrap();
    for owner in 0..20 {
        writing.put(&format!("{owner}:first"), b"data").await.unwrap();
    }
    let slots = || cluster.servers[0].wire().call(&["CLUSTER", "SLOTS"]);
    let ports: Vec<_> = cluster.servers.iter().map(|server| format!(":{}\r\n", server.port())).collect();
    assert!(holds_within(Duration::from_secs(20), || ports.iter().all(|port| slots().contains(port))));
    let builder = RedisBackend::builder(cluster.url()).wait_for_replicas(1, Duration::from_secs(1));
    let backend = builder.read_from_replicas(true).connect().await.unwrap();
    // Connections to replicas are made in the background. Reads of other tasks show when the connections
    // are ready.
    let reads = |server: &Server| server.counter("get_hits") > 0;
    let started = Instant::now();
    while !cluster.servers[3..].iter().all(reads) {
        assert!(started.elapsed() < Duration::from_secs(20), "no replica is read from");
        for owner in 0..20 {
            backend.get(&format!("{owner}:first")).await.unwrap();
        }
    }
    (cluster, backend)
}

#[tokio::test(flavor = "multi_thread")]
async fn read_goes_to_a_replica_where_that_is_wanted() {
    let (cluster, backend) = with_replicas().await;
    let reads = |servers: &[Server]| -> u64 {
        servers.iter().map(|server| server.counter("get_hits") + server.counter("lists")).sum()
    };
    let (primaries, replicas) = cluster.servers.split_at(3);
    let before = (reads(primaries), reads(replicas));
    for owner in 0..20 {
        let (key, prefix) = (format!("{owner}:t"), format!("{owner}:"));
        backend.put(&key, b"data").await.unwrap();
        assert_eq!(backend.get(&key).await.unwrap().data, b"data");
        assert_eq!(backend.list_by_prefix(&prefix).await.unwrap().len(), 2);
        // A task that the replica does not have may be new, so the primary is asked too.
        assert!(matches!(backend.get("none:t").await, Err(StorageError::NotFound { .. })));
    }
    assert_eq!((reads(primaries), reads(replicas)), (before.0, before.1 + 40));
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_never_lists_less_than_there_is_while_a_slot_moves() {
    let (cluster, backend) = with_replicas().await;
    backend.put("owner:a", b"data").await.unwrap();
    backend.put("owner:b", b"data").await.unwrap();
    let number = (0..3).find(|number| cluster.servers[*number].has_slot_of("{owner}")).unwrap();
    let [from, replica, to] = [number, number + 3, (number + 1) % 3].map(|number| &cluster.servers[number]);
    let slot = from.slot_of("owner");
    from.start_moving(&slot, to);
    from.migrate(&["pmcp:tasks:{owner}:a"], to);
    // The replica is told that the hash has gone, but not that it has moved.
    let mut wire = replica.wire();
    assert_eq!(wire.call(&["READONLY"]), "+OK\r\n");
    let list = || wire.call(&["PMCPTASK.LIST", "pmcp:idx:{owner}"]).starts_with("-TRYAGAIN ");
    assert!(holds_within(Duration::from_secs(5), list));
    assert_eq!(backend.get("owner:a").await.unwrap().data, b"data");
    from.migrate(&["pmcp:tasks:{owner}:b", "pmcp:idx:{owner}"], to);
    assert_eq!(backend.list_by_prefix("owner:").await.unwrap().len(), 2);
    from.stop_moving(&slot, to);
    assert_eq!(backend.list_by_prefix("owner:").await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_that_hangs_costs_one_read_its_time() {
    const PATIENCE: Duration = Duration::from_millis(500);
    let cluster = Cluster::start(3, 1);
    let builder = RedisBackend::builder(cluster.url()).read_from_replicas(true).connect_timeout(PATIENCE);
    let backend = builder.wait_for_replicas(1, Duration::from_secs(1)).connect().await.unwrap();
    backend.put("owner:t", b"data").await.unwrap();
    let number = (0..3).find(|number| cluster.servers[*number].has_slot_of("{owner}")).unwrap();
    let [primary, replica] = [number, number + 3].map(|number| &cluster.servers[number]);
    until_it_is_read_from(replica, &backend).await;
    replica.hang();
    let took = async || {
        let started = Instant::now();
        assert_eq!(backend.get("owner:t").await.unwrap().data, b"data");
        started.elapsed()
    };
    let first = took().await;
    assert!((PATIENCE..PATIENCE * 2).contains(&first), "{first:?}");
    for _ in 0..20 {
        let next = took().await;
        assert!(next < PATIENCE / 2, "{next:?}");
    }
    replica.go_on();
    until_it_is_read_from(replica, &backend).await;

    // If the primary is no faster, a slow replica is as good.
    primary.hang();
    replica.hang();
    let reading = tokio::spawn(async move { backend.get("owner:t").await });
    tokio::time::sleep(PATIENCE * 2).await;
    replica.go_on();
    assert_eq!(reading.await.unwrap().unwrap().data, b"data");
    primary.go_on();
}

async fn until_it_is_read_from(replica: &Server, backend: &RedisBackend) {
    let (started, before) = (Instant::now(), replica.counter("get_hits"));
    while replica.counter("get_hits") == before {
        assert!(started.elapsed() < Duration::from_secs(20), "the replica is not read from");
        backend.get("owner:t").await.unwrap();
    }
}

// Calls that wait for the cluster do not burden it.

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_ask_for_the_slots_now_and_then() {
    const WAIT: Duration = Duration::from_secs(3);
    let mut cluster = Cluster::start(3, 0);
    let backend = RedisBackend::builder(cluster.url()).connect_timeout(WAIT).connect().await.unwrap();
    let number = (0..3).find(|number| cluster.servers[*number].has_slot_of("{owner}")).unwrap();
    let others: Vec<_> = (0..3).filter(|other| *other != number).collect();
    let surveys_while_calls_wait = async |cluster: &Cluster, asked: &[usize]| {
        let surveys = || asked.iter().map(|number| cluster.servers[*number].calls_of("cluster|slots"));
        let before: Vec<_> = surveys().collect();
        let mut calls = JoinSet::new();
        for task in 0..8 {
            let backend = backend.clone();
            calls.spawn(async move { backend.put(&format!("owner:new-{task}"), b"data").await });
        }
        while let Some(call) = calls.join_next().await {
            call.unwrap().unwrap_err();
        }
        // If a node takes long, another one is asked too, so the counts are not added up.
        surveys().zip(before).map(|(after, before)| after - before).max().unwrap()
    };
    // A slot that stays half moved: the node that says so still has the slot.
    let [from, to] = [number, others[0]].map(|number| &cluster.servers[number]);
    let slot = from.slot_of("owner");
    from.start_moving(&slot, to);
    let surveys = surveys_while_calls_wait(&cluster, &[0, 1, 2]).await;
    assert!(surveys <= 2, "{surveys} surveys");
    from.stop_moving(&slot, to);
    to.start_moving(&slot, from);
    to.stop_moving(&slot, from);
    // A shard with no node left.
    cluster.servers[number].kill();
    let surveys = surveys_while_calls_wait(&cluster, &others).await;
    assert!((1..=16).contains(&surveys), "{surveys} surveys");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_to_a_node_that_nobody_knows_is_waited_out() {
    let (_cluster, proxies, backend) = behind_proxies().await;
    set_all(&proxies, &Fault::Answer { command: "PMCPTASK.PUT", reply: b"-MOVED 1 ?:7000\r\n".to_vec() });
    let writing = tokio::spawn(async move { backend.put("owner:t", b"data").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    set_all(&proxies, &Fault::None);
    assert_eq!(writing.await.unwrap().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn seeds_that_hang_delay_no_connection() {
    const LIMIT: Duration = Duration::from_secs(20);
    let cluster = Cluster::start(3, 0);
    let silent = [(); 2].map(|()| Proxy::to_nobody(Fault::Silence));
    let [one, other] = silent.each_ref().map(Proxy::port);
    let url =
        format!("redis+cluster://127.0.0.1:{one},127.0.0.1:{other},127.0.0.1:{}", cluster.servers[0].port());
    let started = Instant::now();
    RedisBackend::builder(&url).connect_timeout(LIMIT).connect().await.unwrap();
    // Less than the attempt to connect to one of them.
    assert!(started.elapsed() < LIMIT / 2, "{:?}", started.elapsed());
}

// A write is made once, whatever happens to its reply.

/// A cluster behind proxies, and a backend that gives up soon.
async fn behind_proxies() -> (Cluster, Vec<Proxy>, RedisBackend) {
    let cluster = Cluster::start(3, 0);
    let proxies = cluster.put_behind_proxies();
    let seed = format!("redis+cluster://127.0.0.1:{}", proxies[0].port());
    let backend = RedisBackend::builder(seed).response_timeout(Duration::from_millis(300));
    (cluster, proxies, backend.connect().await.unwrap())
}

fn set_all(proxies: &[Proxy], fault: &Fault) {
    for proxy in proxies {
        proxy.set(fault.clone());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_whose_reply_is_lost_is_made_once_and_its_outcome_is_unknown() {
    let (cluster, proxies, backend) = behind_proxies().await;
    // A late reply is as good as lost: no caller waits for it any more.
    for fault in [Fault::LoseReply(1), Fault::Hold] {
        for owner in 0..6 {
            let key = format!("{owner}:t");
            let has_slot = |server: &Server| server.has_slot_of(&format!("{{{owner}}}"));
            let proxy = &proxies[cluster.servers.iter().position(has_slot).unwrap()];
            let before = backend.put(&key, b"before").await.unwrap();
            proxy.set(fault.clone());
            let error = backend.put(&key, b"put").await.unwrap_err();
            assert!(reason(&error).outcome_is_unknown(), "{error}");
            proxy.set(Fault::None);
            assert_eq!(backend.get(&key).await.unwrap().version, before + 1);
            proxy.set(fault.clone());
            // It does not conflict with itself.
            let error = backend.put_if_version(&key, b"cas", before + 1).await.unwrap_err();
            assert!(reason(&error).outcome_is_unknown(), "{error}");
            proxy.set(Fault::None);
            let task = backend.get(&key).await.unwrap();
            assert_eq!((task.version, task.data.as_slice()), (before + 2, &b"cas"[..]));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_reconnects_with_pauses_to_a_cluster_that_closes_connections() {
    let (_cluster, proxies, backend) = behind_proxies().await;
    set_all(&proxies, &Fault::Close);
    proxies.iter().for_each(Proxy::cut);
    let is_away = |error: &Error| matches!(error, Error::NotConnected { .. });
    for owner in 0..6 {
        let key = format!("{owner}:t");
        // The first call to each node may be the one that detects the lost connection.
        let first = backend.put(&key, b"data").await.unwrap_err();
        let error =
            if is_away(reason(&first)) { first } else { backend.put(&key, b"data").await.unwrap_err() };
        assert!(is_away(reason(&error)), "{error}");
    }
    let before = proxies[0].accepted();
    let calls: Vec<_> = (0..64)
        .map(|n| {
            let backend = backend.clone();
            tokio::spawn(async move { backend.put(&format!("{n}:t"), b"data").await })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap().is_err());
    }
    let attempts = proxies[0].accepted() - before;
    // All calls together, in two seconds, for the node's own connection and for queries about the
    // other nodes.
    assert!((1..20).contains(&attempts), "{attempts} attempts to connect");
    set_all(&proxies, &Fault::None);
    backend.put("owner:t", b"data").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_was_redirected_is_made_once_too() {
    let (cluster, proxies, backend) = behind_proxies().await;
    let [from, to] = [0, 1].map(|number| &cluster.servers[number]);
    let owner =
        (0..1_000).map(|n| n.to_string()).find(|owner| from.has_slot_of(&format!("{{{owner}}}"))).unwrap();
    let key = format!("{owner}:t");
    assert_eq!(backend.put(&key, b"one").await.unwrap(), 1);
    let slot = from.slot_of(&owner);
    from.start_moving(&slot, to);
    let [task, index] = [format!("pmcp:tasks:{{{owner}}}:t"), format!("pmcp:idx:{{{owner}}}")];
    from.migrate(&[&task, &index], to);
    // With ASK first, and with MOVED once the slot has moved.
    for version in [2, 4] {
        assert_eq!(backend.put_if_version(&key, b"here", version - 1).await.unwrap(), version);
        proxies[1].set(Fault::LoseReply(1));
        let error = backend.put_if_version(&key, b"lost", version).await.unwrap_err();
        assert!(reason(&error).outcome_is_unknown(), "{error}");
        assert_eq!(backend.get(&key).await.unwrap().version, version + 1);
        from.stop_moving(&slot, to);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_whose_reply_is_lost_is_read_again() {
    let (_cluster, proxies, backend) = behind_proxies().await;
    for owner in 0..6 {
        let key = format!("{owner}:t");
        backend.put(&key, b"data").await.unwrap();
        set_all(&proxies, &Fault::LoseReply(1));
        assert_eq!(backend.get(&key).await.unwrap().data, b"data");
        set_all(&proxies, &Fault::LoseReply(1));
        assert_eq!(backend.list_by_prefix(&format!("{owner}:")).await.unwrap().len(), 1);
        set_all(&proxies, &Fault::None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn list_of_a_slot_on_its_way_waits_until_it_is_whole_at_its_new_node() {
    let cluster = Cluster::start(3, 0);
    let backend = RedisBackend::builder(cluster.url()).connect_timeout(Duration::from_secs(10));
    let backend = backend.connect().await.unwrap();
    for task in ["a", "b"] {
        backend.put(&format!("owner:{task}"), b"data").await.unwrap();
    }
    let number = (0..3).find(|number| cluster.servers[*number].has_slot_of("{owner}")).unwrap();
    let [from, to] = [number, (number + 1) % 3].map(|number| &cluster.servers[number]);
    from.start_moving(&from.slot_of("owner"), to);
    from.migrate(&["pmcp:tasks:{owner}:a", "pmcp:idx:{owner}"], to);
    let waiting = tokio::spawn({
        let backend = backend.clone();
        async move { backend.list_by_prefix("owner:").await }
    });
    // By then there were many redirects.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    from.migrate(&["pmcp:tasks:{owner}:b"], to);
    assert_eq!(waiting.await.unwrap().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn prefix_that_is_a_hash_tag_puts_all_owners_at_one_node() {
    let cluster = Cluster::start(3, 0);
    let backend = RedisBackend::builder(cluster.url()).prefix("{app}").connect().await.unwrap();
    // No owner has a key at the other nodes, so the client does not look for such owners. Even to name them
    // would take longer.
    let started = Instant::now();
    (0..200_000).for_each(|owner| drop(Keyspace::default().task_key(&owner.to_string(), "health-check")));
    let naming = started.elapsed();
    let mut fastest = Duration::MAX;
    for _ in 0..10 {
        let started = Instant::now();
        backend.check_health().await.unwrap();
        fastest = fastest.min(started.elapsed());
    }
    assert!(fastest < naming, "{fastest:?}, {naming:?}");
    for owner in 0..10 {
        backend.put(&format!("{owner}:t"), b"data").await.unwrap();
    }
    assert_eq!(cluster.servers.iter().filter(|server| keys_of(server) > 0).count(), 1);
}

/// The server lets no call with several keys create a key in a slot that is moving.
#[tokio::test(flavor = "multi_thread")]
async fn new_task_waits_for_its_slot_and_says_so_if_it_waits_in_vain() {
    let cluster = Cluster::start(3, 0);
    let builder = RedisBackend::builder(cluster.url()).connect_timeout(Duration::from_millis(500));
    let backend = builder.connect().await.unwrap();
    let number = (0..3).find(|number| cluster.servers[*number].has_slot_of("{owner}")).unwrap();
    let [from, to] = [number, (number + 1) % 3].map(|number| &cluster.servers[number]);
    let slot = from.slot_of("owner");
    from.start_moving(&slot, to);
    for asked in [backend.put("owner:t", b"data").await, backend.put_if_version("owner:t", b"data", 1).await]
    {
        let error = asked.unwrap_err();
        assert!(matches!(reason(&error), Error::SlotMoving { .. }), "{error}");
    }
    let waiting = tokio::spawn({
        let backend = RedisBackend::new(&cluster.url()).await.unwrap();
        async move { backend.put("owner:t", b"data").await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    from.stop_moving(&slot, to);
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
}

fn keys_of(server: &Server) -> usize {
    usize::try_from(integer(&server.wire().call(&["DBSIZE"]))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_owner_works_and_owners_share_the_nodes() {
    let cluster = Cluster::start(3, 0);
    let backend = RedisBackend::new(&cluster.url()).await.unwrap();
    let strange = ["", "}", "{", "{}", "{a}", "}{", "a{b}c", "x}y{z", "{{a}}", "tenant:alice", "ö |", "_{_}"];
    let many = (0..200).map(|n| format!("owner-{n}"));
    let owners: Vec<_> = strange.map(str::to_owned).into_iter().chain(many).collect();
    for owner in &owners {
        for task in ["a", "b"] {
            assert_eq!(backend.put(&format!("{owner}:{task}"), owner.as_bytes()).await.unwrap(), 1);
        }
        let one = format!("{owner}:a");
        assert_eq!(backend.put_if_version(&one, b"again", 1).await.unwrap(), 2, "{owner}");
    }
    for owner in &owners {
        let listed = backend.list_by_prefix(&format!("{owner}:")).await.unwrap();
        let listed: Vec<_> = listed.iter().map(|(key, task)| (key.as_str(), task.version)).collect();
        assert_eq!(listed, [(&*format!("{owner}:a"), 2), (&*format!("{owner}:b"), 1)]);
        assert!(backend.delete(&format!("{owner}:a")).await.unwrap());
    }
    // Each owner has a task and an index.
    let shares: Vec<_> = cluster.servers.iter().map(keys_of).collect();
    assert_eq!(shares.iter().sum::<usize>(), 2 * owners.len());
    assert!(shares.iter().all(|share| *share > owners.len() / 3), "{shares:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_that_answers_is_enough_to_find_the_others() {
    let cluster = Cluster::start(3, 0);
    let seed = cluster.servers[1].port();
    let nobody = Port::free().unwrap();
    for url in [
        format!("redis+cluster://{},127.0.0.1:{seed}", nobody.address()),
        format!("redis://127.0.0.1:{seed}?cluster"),
        format!("redis://127.0.0.1:{seed}/0?cluster=true&protocol=resp2"),
    ] {
        let backend = RedisBackend::new(&url).await.unwrap();
        for owner in 0..20 {
            backend.put(&format!("{owner}:t"), b"data").await.unwrap();
        }
        backend.check_health().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_shows_at_construction() {
    let connect = async |url: String| RedisBackend::new(&url).await.unwrap_err();
    let server = Server::start();
    let error = connect(format!("redis+cluster://127.0.0.1:{}", server.port())).await;
    assert!(matches!(reason(&error), Error::NotACluster { .. }), "{error}");
    let nobody = [(); 2].map(|()| Port::free().unwrap());
    let [one, other] = nobody.each_ref().map(Port::address);
    let error = connect(format!("redis+cluster://{one},{other}")).await;
    assert!(matches!(reason(&error), Error::NoServer { .. }), "{error}");
    let lone = Server::start_with(&Cluster::node_options());
    let error = connect(format!("redis+cluster://127.0.0.1:{}", lone.port())).await;
    assert!(error.to_string().contains("is not a cluster node with slots"), "{error}");
    let locked = Server::start_with(&Cluster::node_options().set("requirepass", "secret"));
    let error = connect(format!("redis+cluster://:wrong@127.0.0.1:{}", locked.port())).await;
    assert!(matches!(reason(&error), Error::Authentication { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn url_of_one_server_that_is_a_node_is_refused_at_once_with_the_url_to_use() {
    let cluster = Cluster::start(1, 0);
    for protocol in ["", "?protocol=2"] {
        let url = format!("{}{protocol}", cluster.servers[0].url());
        let error = RedisBackend::new(&url).await.unwrap_err();
        let to_use = format!("redis+cluster://127.0.0.1:{}", cluster.servers[0].port());
        assert!(matches!(reason(&error), Error::Settings(_)), "{error:?}");
        assert!(error.to_string().contains(&to_use), "{error}");
        RedisBackend::new(&to_use).await.unwrap();
    }
}

/// Data of one server that was brought into a cluster without hash tags.
#[test]
fn index_of_tasks_in_many_slots_is_neither_listed_nor_trimmed_in_part() {
    let cluster = Cluster::shared();
    let number = (0..3).find(|number| cluster.servers[*number].has_slot_of("many-slots:idx:o")).unwrap();
    let node = &cluster.servers[number];
    let id = |is_here: bool| {
        let mut ids = (0..1_000).map(|n| format!("t{n}"));
        ids.find(|id| node.has_slot_of(&format!("many-slots:tasks:o:{id}")) == is_here).unwrap()
    };
    let mut wire = node.wire();
    // The older one has no task. The other one may have a task at another node.
    for (score, is_here) in [("1", true), ("2", false)] {
        assert_eq!(wire.call(&["ZADD", "many-slots:idx:o", score, &id(is_here)]), ":1\r\n");
    }
    for command in
        [&["PMCPTASK.LIST", "many-slots:idx:o"][..], &["PMCPTASK.TRIM", "many-slots:idx:o", "KEEP", "0"]]
    {
        let reply = wire.call(command);
        assert!(reply.starts_with("-TRYAGAIN "), "{command:?}: {reply}");
    }
    assert_eq!(wire.call(&["ZCARD", "many-slots:idx:o"]), ":2\r\n");
    assert_eq!(wire.call(&["DEL", "many-slots:idx:o"]), ":1\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn hash_tags_that_are_off_are_refused_where_they_are_needed() {
    let cluster = Cluster::shared();
    let builder = || RedisBackend::builder(cluster.url()).hash_tags(HashTags::Off);
    let error = builder().connect().await.unwrap_err();
    assert!(matches!(reason(&error), Error::Settings(_)), "{error:?}");
    assert!(error.to_string().contains("HashTags::On"), "{error}");
    // All keys have the slot of the prefix.
    let backend = builder().prefix("{app}").connect().await.unwrap();
    backend.put("owner:hash-tags-off", b"data").await.unwrap();
    // The server reports a key in another slot.
    let backend = backend.with_prefix("app");
    let mut owners = (0..20).map(|owner| format!("{owner}:t"));
    let error = loop {
        if let Err(error) = backend.put(&owners.next().unwrap(), b"data").await {
            break error;
        }
    };
    assert!(error.to_string().contains("HashTags::On"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_cannot_be_reached_is_named_with_who_announces_it() {
    // Nothing listens at this address.
    let options = Cluster::node_options().set("cluster-announce-ip", "127.0.0.9");
    let cluster = Cluster::start_with(&options, 1, 0);
    let port = cluster.servers[0].port();
    let builder = RedisBackend::builder(cluster.url()).connect_timeout(Duration::from_millis(500));
    let error = builder.connect().await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(reason(&error), Error::NotConnected { .. }), "{error:?}");
    for part in
        [&format!("127.0.0.9:{port}"), "announced by", &format!("127.0.0.1:{port}"), "Connection refused"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_without_the_module_is_found_at_construction() {
    let mut cluster = Cluster::start(2, 0);
    let bare = Server::start_with(&Cluster::node_options().without_module());
    cluster.servers[0].meet(&bare);
    cluster.servers.push(bare);
    let id = cluster.servers[2].node_id();
    let knows = |server: &Server| server.nodes().contains(&id);
    assert!(holds_within(Duration::from_secs(20), || cluster.servers.iter().all(knows)));
    for server in &cluster.servers {
        assert_eq!(server.wire().call(&["CLUSTER", "SETSLOT", "0", "NODE", &id]), "+OK\r\n");
    }
    cluster.wait_until_settled();
    let error = RedisBackend::new(&cluster.url()).await.unwrap_err();
    assert!(matches!(reason(&error), Error::ModuleNotLoaded { .. }), "{error}");
}
