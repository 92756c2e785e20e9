//! Workers: a task has one at most, learns of its death within the lease, and a cancel reaches it without polling.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use pmcp::server::task_store::TaskStore as _;
use pmcp::types::tasks::TaskStatus as ServerStatus;
use pmcp::types::{CallToolResult, Content};
use pmcp_tasks::store::backend::StorageBackend;
use pmcp_tasks::{GenericTaskStore, ListTasksOptions, TaskError, TaskRecord, TaskStatus};
use pmcptask_client::{RedisBackend, TaskStore, Worker, WorkerError};
use pmcptask_tests::{
    Cluster, Fault, Proxy, SentinelGroup, Server, ServerOptions, holds_within, lua_backend, show, slowness,
};
use tokio::time::{sleep, timeout};

const OWNER: &str = "alice";
/// A lease that no test sees the end of.
const LONG: Duration = Duration::from_mins(5);
/// A lease that ends soon.
const SHORT: Duration = Duration::from_secs(2);
/// How long something takes at most that a busy machine does now.
const SOON: Duration = Duration::from_secs(5);

async fn store(url: &str, lease: Duration) -> TaskStore {
    TaskStore::new(RedisBackend::new(url).await.unwrap()).with_worker_lease(lease)
}

async fn new_task(store: &TaskStore) -> String {
    store.create(OWNER, None).await.unwrap().task_id
}

async fn record(store: &TaskStore, id: &str) -> TaskRecord {
    pmcp_tasks::TaskStore::get(store, id, OWNER).await.unwrap()
}

fn result(text: &str) -> CallToolResult {
    CallToolResult::new(vec![Content::text(text)])
}

/// The words of a failure, if the task has failed because its worker has died.
fn has_died(record: &TaskRecord) -> bool {
    let message = record.task.status_message.as_deref().unwrap_or_default();
    record.task.status == TaskStatus::Failed && message.contains("process that worked on the task")
}

fn is_lost<T>(written: &Result<T, WorkerError>) -> bool {
    matches!(written, Err(WorkerError::Lost { .. }))
}

/// True for the refusal of a change of a task with this status.
fn is_refused<T>(written: &Result<T, WorkerError>, status: TaskStatus) -> bool {
    matches!(written, Err(WorkerError::Task(TaskError::InvalidTransition { from, .. })) if *from == status)
}

fn lease_keys(server: &Server) -> Vec<String> {
    redis::cmd("KEYS").arg("pmcp:lease:tasks:*").query(&mut server.connection()).unwrap()
}

// Processes.

/// What the process [`process_that_works`] is told: the server's URL, the lease in ms and the tasks, separated by spaces.
const TOLD: &str = "PMCPTASK_TESTS_WORK_ON";

/// This test program in another process, which works on tasks until it is killed.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Returns once it works on all tasks.
    fn that_works_on(url: &str, tasks: &[&str]) -> Self {
        Self::with_lease(url, SHORT, tasks)
    }

    fn with_lease(url: &str, lease: Duration, tasks: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process_that_works", "--nocapture"])
            .env(TOLD, [&[url, &lease.as_millis().to_string()], tasks].concat().join(" "))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut process = Self { child, output };
        process.read_until("works");
        process
    }

    /// Reads what it says up to a line that starts like this, and returns the rest of that line.
    fn read_until(&mut self, start: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the process has ended");
            // The test runner writes the test's name before it.
            if let Some((_, rest)) = line.split_once(start) {
                return rest.trim().to_owned();
            }
        }
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test by itself: see [`Process`].
#[tokio::test(flavor = "multi_thread")]
async fn process_that_works() {
    let Ok(told) = std::env::var(TOLD) else { return };
    let mut told = told.split(' ');
    let url = told.next().unwrap();
    let store = store(url, Duration::from_millis(told.next().unwrap().parse().unwrap())).await;
    let mut workers = Vec::new();
    for id in told {
        workers.push(store.work_on(id, OWNER).await.unwrap());
    }
    println!("works");
    // Until it is killed, or has lost its lease.
    workers[0].cancelled().await;
    for worker in &workers {
        let written = worker.complete(result("done")).await;
        println!("written {written:?}");
    }
    sleep(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn task_of_a_killed_process_fails_within_the_lease_whoever_looks_at_it_first() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for url in [server.url(), cluster.url()] {
        let store = store(&url, SHORT).await;
        let unmarked = new_task(&store).await;
        let mut ids = Vec::new();
        for _ in 0..8 {
            ids.push(new_task(&store).await);
        }
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        let process = Process::that_works_on(&url, &ids);
        let [waited, changed, streamed, results, got, got_record, cancelled, listed] = ids[..] else {
            panic!()
        };

        let waiting = |limit| {
            let (store, id) = (store.clone(), waited.to_owned());
            tokio::spawn(async move { store.wait_until_terminal(&id, OWNER, limit).await })
        };
        let many: Vec<_> = (0..20).map(|_| waiting(LONG)).collect();
        let version = record(&store, changed).await.version;
        let change = {
            let (store, id) = (store.clone(), changed.to_owned());
            tokio::spawn(async move { store.changed(&id, OWNER, version).await })
        };
        let mut stream = store.changes(OWNER).await.unwrap();
        let waits_for_results = store.clone().wait_for_results(LONG);
        let no_result = {
            let id = results.to_owned();
            tokio::spawn(async move { waits_for_results.get_result(&id, OWNER).await })
        };
        // Nothing ends while the process lives.
        sleep(2 * SHORT).await;
        assert!(many.iter().all(|waiting| !waiting.is_finished()) && !change.is_finished());
        assert!(!no_result.is_finished());
        assert_eq!(store.get(got, OWNER).await.unwrap().status, ServerStatus::Working);

        let killed = Instant::now();
        drop(process);
        for waiting in many {
            assert!(has_died(&waiting.await.unwrap().unwrap()));
        }
        let noticed = killed.elapsed();
        assert!(noticed < SHORT + SOON * slowness(), "{noticed:?}");
        show(&format!("a lease of {SHORT:?}: waiters learn of the killed process after {noticed:?}"));
        let change = timeout(SOON, change).await.expect("the change is told");
        assert!(has_died(&change.unwrap().unwrap().unwrap()));
        assert!(timeout(SOON, no_result).await.expect("the result is not awaited").unwrap().is_err());
        let mut yielded = false;
        while !yielded {
            let task = timeout(SOON, stream.next()).await.expect("the stream tells").unwrap().unwrap();
            yielded = task.task.task_id == streamed && has_died(&task);
        }
        let task = store.get(got, OWNER).await.unwrap();
        assert_eq!(task.status, ServerStatus::Failed, "{task:?}");
        assert!(has_died(&record(&store, got_record).await));
        let error = pmcp_tasks::TaskStore::cancel(&store, cancelled, OWNER).await.unwrap_err();
        assert!(matches!(error, TaskError::InvalidTransition { from: TaskStatus::Failed, .. }), "{error}");
        let options = ListTasksOptions { owner_id: OWNER.to_owned(), cursor: None, limit: None };
        let page = pmcp_tasks::TaskStore::list(&store, options).await.unwrap();
        let by_id: BTreeMap<_, _> =
            page.tasks.iter().map(|task| (task.task.task_id.as_str(), task)).collect();
        assert!(ids.iter().all(|id| has_died(by_id[id])));
        assert_eq!(by_id[unmarked.as_str()].task.status, TaskStatus::Working);
        // A stream that is not polled holds nobody up.
        drop(stream);
        // For good, and once.
        let plain = RedisBackend::new(&url).await.unwrap();
        let stored = plain.get(&format!("{OWNER}:{listed}")).await.unwrap();
        assert_eq!(stored.version, by_id[listed].version);
        assert!(is_refused(&store.work_on(got, OWNER).await, TaskStatus::Failed));
    }
}

/// What is in memory was read while the worker lived.
#[tokio::test(flavor = "multi_thread")]
async fn task_of_a_killed_process_fails_for_a_store_that_has_it_in_memory() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let near = store(&proxy.url(), SHORT).await.near_cache(1 << 20);
    let ids = [new_task(&near).await, new_task(&near).await];
    let process = Process::that_works_on(&server.url(), &[&ids[0], &ids[1]]);
    for id in &ids {
        for _ in 0..3 {
            near.get(id, OWNER).await.unwrap();
        }
    }
    // What is in memory is not asked for. The process does ask, at times of its own.
    proxy.set(Fault::Answer { command: "PMCPTASK.GET", reply: b"-ERR asked for\r\n".to_vec() });
    for id in &ids {
        assert_eq!(near.get(id, OWNER).await.unwrap().status, ServerStatus::Working);
    }
    proxy.set(Fault::None);
    drop(process);
    assert!(holds_within(SHORT + SOON * slowness(), || lease_keys(&server).is_empty()));
    // A look at the lease counts in whole ms, as `PTTL` does: the store may take the lease for alive 1 ms longer.
    sleep(Duration::from_millis(2)).await;
    let error = pmcp_tasks::TaskStore::cancel(&near, &ids[0], OWNER).await.unwrap_err();
    assert!(matches!(error, TaskError::InvalidTransition { from: TaskStatus::Failed, .. }), "{error}");
    assert_eq!(near.get(&ids[1], OWNER).await.unwrap().status, ServerStatus::Failed);
    assert_eq!(near.get(&ids[0], OWNER).await.unwrap().status, ServerStatus::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_of_a_killed_process_fail_after_few_looks_at_its_lease() {
    const TASKS: usize = 90;
    let server = Server::start();
    let store = store(&server.url(), SHORT).await;
    let mut ids = Vec::new();
    for _ in 0..TASKS {
        ids.push(new_task(&store).await);
    }
    let process = Process::that_works_on(&server.url(), &ids.iter().map(String::as_str).collect::<Vec<_>>());
    let reads = server.calls_of("pmcptask.get");
    let waiting: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let store = store.clone();
            tokio::spawn(async move { store.wait_until_terminal(&id, OWNER, LONG).await })
        })
        .collect();
    // Each waiter reads before it waits, and twice to wait.
    assert!(holds_within(LONG, || server.calls_of("pmcptask.get") >= reads + 3 * TASKS as u64));
    let looks = server.calls_of("pttl");
    drop(process);
    for waiting in waiting {
        assert!(has_died(&waiting.await.unwrap().unwrap()));
    }
    let looks = server.calls_of("pttl") - looks;
    assert!(looks < 10, "{looks}");
}

/// How long a store behind [`loading`] waits for its server.
const PATIENCE: Duration = Duration::from_secs(2);

/// A store whose server refuses this command, as one that loads its data.
async fn loading(server: &Server, command: &'static str) -> (Proxy, TaskStore) {
    let proxy = Proxy::to(server.port());
    let backend = RedisBackend::builder(proxy.url()).connect_timeout(PATIENCE).connect().await.unwrap();
    proxy.set(Fault::Answer { command, reply: b"-LOADING is loading\r\n".to_vec() });
    (proxy, TaskStore::new(backend))
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_that_cannot_be_looked_at_holds_up_many_readers_no_longer_than_one() {
    const READERS: usize = 10;
    let server = Server::start();
    let owner = store(&server.url(), LONG).await;
    let id = new_task(&owner).await;
    let _worker = owner.work_on(&id, OWNER).await.unwrap();
    let (_proxy, reader) = loading(&server, "PTTL").await;
    let begun = Instant::now();
    let reads: Vec<_> = (0..READERS)
        .map(|_| {
            let (reader, id) = (reader.clone(), id.clone());
            tokio::spawn(async move { reader.get(&id, OWNER).await })
        })
        .collect();
    for read in reads {
        assert_eq!(read.await.unwrap().unwrap().status, ServerStatus::Working);
    }
    assert!(begun.elapsed() < 2 * PATIENCE * slowness(), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_workers_without_a_lease_fail_no_later_than_one() {
    const WORKERS: usize = 20;
    let server = Server::start();
    let (proxy, store) = loading(&server, "TIME").await;
    let id = new_task(&store).await;
    let started = Instant::now();
    let begin = async || store.work_on(&id, OWNER).await;
    for begun in futures_util::future::join_all((0..WORKERS).map(|_| begin())).await {
        let message = begun.unwrap_err().to_string();
        assert!(message.contains("no lease for a worker") && message.contains("is loading"), "{message}");
    }
    assert!(started.elapsed() < 2 * PATIENCE * slowness(), "{:?}", started.elapsed());
    proxy.set(Fault::None);
    begin().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn process_that_stood_still_changes_nothing_after_its_lease() {
    let server = Server::start();
    let store = store(&server.url(), SHORT).await;
    let (failed, unseen) = (new_task(&store).await, new_task(&store).await);
    let mut process = Process::that_works_on(&server.url(), &[&failed, &unseen]);
    process.signal("-STOP");
    assert!(has_died(&store.wait_until_terminal(&failed, OWNER, LONG).await.unwrap()));
    process.signal("-CONT");
    for _ in 0..2 {
        let written = process.read_until("written ");
        assert!(written.starts_with("Err(Lost"), "{written}");
    }
    for id in [failed, unseen] {
        let record = record(&store, &id).await;
        assert!(has_died(&record) && record.result.is_none(), "{record:?}");
    }
}

// One worker.

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_work_on_a_task_one_does_while_it_lives() {
    let (server, cluster) = (Server::start(), Cluster::shared());
    for url in [server.url(), cluster.url()] {
        let stores = [store(&url, LONG).await, store(&url, LONG).await];
        let id = new_task(&stores[0]).await;
        let racers: Vec<_> = (0..64)
            .map(|n| {
                let (store, id) = (stores[n % 2].clone(), id.clone());
                tokio::spawn(async move { store.work_on(&id, OWNER).await })
            })
            .collect();
        let mut workers = Vec::new();
        for racer in racers {
            match racer.await.unwrap() {
                Ok(worker) => workers.push(worker),
                Err(error) => assert!(matches!(error, WorkerError::Taken { .. }), "{error}"),
            }
        }
        assert_eq!(workers.len(), 1);
        assert_eq!((workers[0].task_id(), workers[0].owner_id()), (id.as_str(), OWNER));
        for store in &stores {
            assert!(matches!(store.work_on(&id, OWNER).await, Err(WorkerError::Taken { .. })));
        }
        workers[0].complete(result("done")).await.unwrap();
        for store in &stores {
            assert!(is_refused(&store.work_on(&id, OWNER).await, TaskStatus::Completed));
            let missing = store.work_on("no-such-task", OWNER).await;
            assert!(matches!(missing, Err(WorkerError::Task(TaskError::NotFound { .. }))));
            let of_another = store.work_on(&id, "bob").await;
            assert!(matches!(of_another, Err(WorkerError::Task(TaskError::NotFound { .. }))));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_reports_completes_and_fails_its_task() {
    let server = Server::start();
    let store = store(&server.url(), LONG).await;
    let id = new_task(&store).await;
    let worker = store.work_on(&id, OWNER).await.unwrap();
    worker.progress("one of two").await.unwrap();
    let task = store.get(&id, OWNER).await.unwrap();
    assert_eq!((task.status, task.status_message.as_deref()), (ServerStatus::Working, Some("one of two")));
    let writes = || server.calls_of("pmcptask.cas");
    let before = writes();
    worker.complete(result("42")).await.unwrap();
    assert_eq!(writes(), before + 1);
    let task = store.get(&id, OWNER).await.unwrap();
    assert_eq!(task.status, ServerStatus::Completed);
    assert_eq!(store.get_result(&id, OWNER).await.unwrap().content.len(), 1);
    for written in [worker.progress("late").await, worker.fail("late").await] {
        assert!(is_refused(&written, TaskStatus::Completed), "{written:?}");
    }
    timeout(SOON, worker.cancelled()).await.unwrap();
    drop(worker);

    let id = new_task(&store).await;
    let worker = store.work_on(&id, OWNER).await.unwrap();
    worker.fail("no luck").await.unwrap();
    let task = store.get(&id, OWNER).await.unwrap();
    assert_eq!((task.status, task.status_message.as_deref()), (ServerStatus::Failed, Some("no luck")));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_worker_fails_its_task_also_by_a_panic_and_after_the_server_was_away() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let (store, direct) = (store(&proxy.url(), LONG).await, store(&server.url(), LONG).await);
    let mut ids = Vec::new();
    for way in ["drop", "panic", "away"] {
        let id = new_task(&store).await;
        let worker = store.work_on(&id, OWNER).await.unwrap();
        match way {
            "drop" => drop(worker),
            "panic" => {
                let work = tokio::spawn(async move {
                    worker.progress("half done").await.unwrap();
                    panic!("the tool panics");
                });
                assert!(work.await.is_err());
            }
            _ => {
                proxy.set(Fault::Close);
                proxy.cut();
                drop(worker);
                sleep(SOON).await;
                assert_eq!(record(&direct, &id).await.task.status, TaskStatus::Working);
                proxy.set(Fault::None);
            }
        }
        let task = direct.wait_until_terminal(&id, OWNER, 4 * SOON).await.unwrap();
        assert_eq!(task.task.status, TaskStatus::Failed, "{way}");
        assert!(task.task.status_message.unwrap().contains("without a result"), "{way}");
        ids.push(id);
    }
    // A worker whose beginning was given up leaves no task to nobody either.
    let id = new_task(&store).await;
    proxy.set(Fault::Delay(Duration::from_millis(300)));
    assert!(timeout(Duration::from_millis(100), store.work_on(&id, OWNER)).await.is_err());
    let task = direct.wait_until_terminal(&id, OWNER, SOON).await.unwrap();
    assert_eq!(task.task.status, TaskStatus::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_outcomes_leave_no_task_without_a_worker_and_no_result_twice() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let (store, direct) = (store(&proxy.url(), LONG).await, store(&server.url(), LONG).await);
    // The lease of the process.
    let first = new_task(&store).await;
    let _first = store.work_on(&first, OWNER).await.unwrap();

    let id = new_task(&store).await;
    proxy.set(Fault::LoseReplyTo("PMCPTASK.CAS"));
    let error = store.work_on(&id, OWNER).await.unwrap_err();
    assert!(error.to_string().contains("unknown"), "{error}");
    let task = direct.wait_until_terminal(&id, OWNER, 2 * SOON).await.unwrap();
    assert_eq!(task.task.status, TaskStatus::Failed);

    let id = new_task(&store).await;
    let worker = store.work_on(&id, OWNER).await.unwrap();
    proxy.set(Fault::LoseReplyTo("PMCPTASK.CAS"));
    let error = worker.complete(result("42")).await.unwrap_err();
    assert!(error.to_string().contains("unknown"), "{error}");
    assert!(is_refused(&worker.complete(result("43")).await, TaskStatus::Completed));
    drop(worker);
    // What a dropped worker writes would be there.
    sleep(Duration::from_millis(200)).await;
    let task = record(&direct, &id).await;
    assert_eq!(task.task.status, TaskStatus::Completed);
    assert!(task.result.unwrap().to_string().contains("42"));
}

/// The mark may be on its way yet, and nobody would work on the task.
#[tokio::test(flavor = "multi_thread")]
async fn mark_that_comes_after_its_worker_gave_up_meets_a_conflict() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let (store, direct) = (store(&proxy.url(), LONG).await, store(&server.url(), LONG).await);
    let first = new_task(&store).await;
    let _first = store.work_on(&first, OWNER).await.unwrap();

    let id = new_task(&store).await;
    let before = record(&direct, &id).await.version;
    proxy.set(Fault::LoseRequest);
    let error = store.work_on(&id, OWNER).await.unwrap_err();
    assert!(error.to_string().contains("unknown"), "{error}");
    let changed = timeout(SOON, direct.changed(&id, OWNER, before)).await.expect("the mark could still come");
    let task = changed.unwrap().unwrap();
    assert!(task.task.status == TaskStatus::Working && task.variables.is_empty(), "{task:?}");
    direct.work_on(&id, OWNER).await.unwrap().complete(result("done")).await.unwrap();
}

// Cancels.

#[tokio::test(flavor = "multi_thread")]
async fn cancel_at_another_instance_reaches_the_worker_in_two_round_trips_and_without_polling() {
    const ROUND_TRIP: Duration = Duration::from_secs(1);
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    // No PING of the client's comes in between.
    let here = RedisBackend::builder(proxy.url()).keep_alive(LONG).connect().await.unwrap();
    let here = TaskStore::new(here).with_worker_lease(LONG);
    let there = store(&server.url(), LONG).await;
    let id = new_task(&here).await;
    let worker = Arc::new(here.work_on(&id, OWNER).await.unwrap());
    let reads = || server.calls_of("pmcptask.get");
    let all = || server.wire().info_number("stats", "total_commands_processed");
    let before = reads();
    let waiting = tokio::spawn({
        let worker = worker.clone();
        async move { worker.cancelled().await }
    });
    assert!(holds_within(SOON, || reads() == before + 2), "the worker does not wait");
    let own = {
        let before = all();
        all() - before
    };
    let commands = all();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(all() - commands, own, "the worker polls");

    proxy.set(Fault::Delay(ROUND_TRIP));
    let before = reads();
    there.cancel(&id, OWNER).await.unwrap();
    let cancelled = Instant::now();
    timeout(SOON, waiting).await.unwrap().unwrap();
    let took = cancelled.elapsed();
    show(&format!("cancel to worker: {took:?} with round trips of {ROUND_TRIP:?}"));
    // The proxy delays the server's message as well as the reply to the read.
    assert!(took < 2 * ROUND_TRIP + ROUND_TRIP / 2, "{took:?}");
    // One by who cancels, one by the worker.
    assert!(reads() <= before + 2, "{}", reads() - before);
    proxy.set(Fault::None);
    for written in [worker.progress("late").await, worker.complete(result("late")).await] {
        assert!(is_refused(&written, TaskStatus::Cancelled), "{written:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_reaches_a_worker_that_reports_all_the_time() {
    let server = Server::start();
    let (here, there) = (store(&server.url(), LONG).await, store(&server.url(), LONG).await);
    let id = new_task(&here).await;
    let worker = here.work_on(&id, OWNER).await.unwrap();
    let report = async {
        for n in 0.. {
            if worker.progress(n.to_string()).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(2)).await;
        }
        std::future::pending::<()>().await;
    };
    let started = Instant::now();
    let cancel = async {
        sleep(Duration::from_secs(3)).await;
        let reads = server.calls_of("pmcptask.get");
        there.cancel(&id, OWNER).await.unwrap();
        (Instant::now(), reads)
    };
    let work = async {
        tokio::select! {
            () = worker.cancelled() => Instant::now(),
            () = report => panic!("it never ends"),
        }
    };
    let ((cancelled, reads), stopped) = tokio::join!(cancel, work);
    let took = stopped.saturating_duration_since(cancelled);
    assert!(stopped >= started + Duration::from_secs(3));
    assert!(took < Duration::from_millis(300) * slowness(), "{took:?}");
    // Two to begin with, and a few until the pauses have their full length.
    assert!(reads <= 24, "{reads} reads");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_task_gets_no_result_whoever_is_first() {
    let server = Server::start();
    let (here, there) = (store(&server.url(), LONG).await, store(&server.url(), LONG).await);
    let mut cancels = 0;
    for round in 0..60 {
        let id = new_task(&here).await;
        let worker = here.work_on(&id, OWNER).await.unwrap();
        // A cancel reads first, so it needs a start.
        let complete = async {
            for _ in 0..round * 50 {
                tokio::task::yield_now().await;
            }
            worker.complete(result("done")).await
        };
        let cancel = pmcp_tasks::TaskStore::cancel(&there, &id, OWNER);
        let (completed, cancelled) = tokio::join!(complete, cancel);
        let task = record(&there, &id).await;
        match cancelled {
            Ok(_) => {
                cancels += 1;
                assert!(is_refused(&completed, TaskStatus::Cancelled), "{completed:?}");
                assert!(task.task.status == TaskStatus::Cancelled && task.result.is_none(), "{task:?}");
                assert!(there.get_result(&id, OWNER).await.is_err());
            }
            Err(error) => {
                assert!(completed.is_ok(), "{error} {completed:?}");
                assert!(task.task.status == TaskStatus::Completed && task.result.is_some(), "{task:?}");
            }
        }
    }
    show(&format!("{cancels} of 60 cancels came before the result"));
}

/// A task that has ended stays as it is: its worker's last words change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn ended_task_gets_no_error_of_its_worker() {
    let server = Server::start();
    let (here, there) = (store(&server.url(), LONG).await, store(&server.url(), LONG).await);
    for way in ["dropped", "fails"] {
        let id = new_task(&here).await;
        let worker = here.work_on(&id, OWNER).await.unwrap();
        let cancelled = pmcp_tasks::TaskStore::cancel(&there, &id, OWNER).await.unwrap();
        let reads = server.calls_of("pmcptask.get");
        match way {
            "dropped" => drop(worker),
            _ => assert!(is_refused(&worker.fail("late").await, TaskStatus::Cancelled)),
        }
        // The write over the remembered record meets a conflict, and the task is read.
        assert!(holds_within(SOON, || server.calls_of("pmcptask.get") > reads));
        let writes = server.calls_of("pmcptask.cas");
        // Time for a write that must not come.
        sleep(Duration::from_millis(300)).await;
        assert_eq!(server.calls_of("pmcptask.cas"), writes, "{way}");
        let task = record(&there, &id).await;
        assert_eq!((task.version, task.error), (cancelled.version, None), "{way}");
    }
    let id = new_task(&here).await;
    let worker = here.work_on(&id, OWNER).await.unwrap();
    worker.complete(result("done")).await.unwrap();
    let version = record(&there, &id).await.version;
    assert!(is_refused(&worker.fail("late").await, TaskStatus::Completed));
    let task = record(&there, &id).await;
    assert_eq!((task.version, task.error), (version, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn task_of_a_dead_worker_fails_although_no_replica_has_the_write() {
    let primary = Server::start();
    let replica = Server::start_with(&ServerOptions::default().replica_of(&primary));
    assert!(holds_within(6 * SOON, || replica.follows_or_leads()));
    let waits = RedisBackend::builder(primary.url()).wait_for_replicas(1, Duration::from_millis(500));
    let there = TaskStore::new(waits.connect().await.unwrap());
    let here = store(&primary.url(), SHORT).await;
    let id = new_task(&here).await;
    let process = Process::that_works_on(&primary.url(), &[&id]);
    replica.hang();
    drop(process);
    let task = there.wait_until_terminal(&id, OWNER, LONG).await;
    replica.go_on();
    assert!(has_died(&task.unwrap()));
}

// Leases.

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_workers_renew_with_one_command_per_period_and_their_waiters_ask_once_per_lease() {
    const TASKS: usize = 1_000;
    const LEASE: Duration = Duration::from_secs(6);
    let server = Server::start();
    let (here, there) = (store(&server.url(), LEASE).await, store(&server.url(), LEASE).await);
    let reads = || server.calls_of("pmcptask.get");
    let connected = reads();
    let mut workers = Vec::new();
    let mut waiting = Vec::new();
    for n in 0..TASKS {
        let owner = format!("owner-{}", n % 20);
        let id = here.create(&owner, None).await.unwrap().task_id;
        workers.push(here.work_on(&id, &owner).await.unwrap());
        let there = there.clone();
        waiting
            .push(tokio::spawn(async move { there.wait_until_terminal(&id, &owner, LONG).await.unwrap() }));
    }
    assert_eq!(lease_keys(&server).len(), 1);
    assert!(holds_within(LONG, || reads() == connected + 3 * TASKS as u64), "{}", reads());
    // Three periods.
    let calls = ["pexpire", "pttl", "pmcptask.get", "pmcptask.cas", "hdel"];
    let before = calls.map(|call| server.calls_of(call));
    sleep(LEASE).await;
    let after = calls.map(|call| server.calls_of(call));
    let made: Vec<_> =
        calls.iter().zip(before).zip(after).map(|((call, before), after)| (*call, after - before)).collect();
    show(&format!("{TASKS} workers and {TASKS} waiters in a lease of {LEASE:?}: {made:?}"));
    assert!((2..=4).contains(&made[0].1), "{made:?}");
    assert!(made[1].1 <= 3, "{made:?}");
    assert_eq!(made[2..].iter().map(|(_, calls)| calls).sum::<u64>(), 0, "{made:?}");
    for (n, worker) in workers.iter().enumerate() {
        worker.complete(result(&n.to_string())).await.unwrap();
    }
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().task.status, TaskStatus::Completed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_of_a_task_with_a_worker_cost_one_read_each() {
    let server = Server::start();
    let (here, there) = (store(&server.url(), LONG).await, store(&server.url(), LONG).await);
    let id = new_task(&here).await;
    let _worker = here.work_on(&id, OWNER).await.unwrap();
    let asked = || ["pmcptask.get", "pmcptask.list", "pttl"].map(|call| server.calls_of(call));
    there.get(&id, OWNER).await.unwrap();
    let [gets, lists, looks] = asked();
    for _ in 0..50 {
        there.get(&id, OWNER).await.unwrap();
        there.list(OWNER, None).await.unwrap();
    }
    assert_eq!(asked(), [gets + 50, lists + 50, looks]);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_that_lost_its_lease_learns_it_and_writes_nothing_more() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    for way in ["no connection", "silence", "record deleted", "everything flushed"] {
        proxy.set(Fault::None);
        let (here, there) = (store(&proxy.url(), SHORT).await, store(&server.url(), SHORT).await);
        let id = new_task(&here).await;
        let worker: Worker = here.work_on(&id, OWNER).await.unwrap();
        match way {
            "no connection" => {
                proxy.set(Fault::Close);
                proxy.cut();
            }
            "silence" => proxy.set(Fault::Silence),
            "record deleted" => {
                let keys = lease_keys(&server);
                assert_eq!(keys.len(), 1);
                redis::cmd("DEL").arg(keys).exec(&mut server.connection()).unwrap();
            }
            _ => redis::cmd("FLUSHALL").exec(&mut server.connection()).unwrap(),
        }
        timeout(SHORT + SOON, worker.cancelled()).await.expect(way);
        proxy.set(Fault::None);
        proxy.cut();
        if way != "everything flushed" {
            assert!(is_lost(&worker.progress("late").await), "{way}");
            assert!(is_lost(&worker.complete(result("late")).await), "{way}");
            let task = there.wait_until_terminal(&id, OWNER, SOON).await.unwrap();
            assert!(has_died(&task) && task.result.is_none(), "{way}: {task:?}");
        }
        assert!(worker.fail("late").await.is_err(), "{way}");
        drop(worker);
        // The next worker gets a lease of its own.
        let id = new_task(&here).await;
        let worker = here.work_on(&id, OWNER).await.expect(way);
        worker.complete(result("done")).await.unwrap();
        redis::cmd("FLUSHALL").exec(&mut server.connection()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_of_a_process_without_workers_is_given_up() {
    let server = Server::start();
    let store = store(&server.url(), SHORT).await;
    for _ in 0..2 {
        let id = new_task(&store).await;
        let worker = store.work_on(&id, OWNER).await.unwrap();
        sleep(2 * SHORT).await;
        assert_eq!(lease_keys(&server).len(), 1);
        worker.complete(result("done")).await.unwrap();
        drop(worker);
        // By a release: the next renewal is not made.
        let released = || server.calls_of("pmcptask.del");
        let before = released();
        assert!(holds_within(SHORT, || released() > before || lease_keys(&server).is_empty()));
        assert!(holds_within(SOON, || lease_keys(&server).is_empty()));
    }
    assert_eq!(server.calls_of("pmcptask.del"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_worker_that_cannot_write_keeps_the_lease_for_no_longer_than_its_duration() {
    let server = Server::start();
    let store = store(&server.url(), SHORT).await;
    let id = new_task(&store).await;
    let worker = store.work_on(&id, OWNER).await.unwrap();
    assert_eq!(server.wire().run("CONFIG SET maxmemory 1"), pmcptask_tests::OK);
    drop(worker);
    assert!(holds_within(2 * SHORT + SOON, || lease_keys(&server).is_empty()), "the lease is kept");
    assert_eq!(server.wire().run("CONFIG SET maxmemory 0"), pmcptask_tests::OK);
    let task = store.wait_until_terminal(&id, OWNER, SOON).await.unwrap();
    assert_eq!(task.task.status, TaskStatus::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_that_is_away_costs_no_worker_its_lease() {
    const LEASE: Duration = Duration::from_secs(6);
    let primary = Server::start();
    let replica = Server::start_with(&ServerOptions::default().replica_of(&primary));
    let waits = RedisBackend::builder(primary.url()).wait_for_replicas(1, Duration::from_secs(1));
    let here = TaskStore::new(waits.connect().await.unwrap()).with_worker_lease(LEASE);
    let there = store(&primary.url(), LEASE).await;
    assert!(holds_within(6 * SOON, || replica.follows_or_leads()));
    let id = new_task(&here).await;
    let worker = here.work_on(&id, OWNER).await.unwrap();
    replica.hang();
    let cancelled = timeout(2 * LEASE, worker.cancelled()).await;
    replica.go_on();
    assert!(cancelled.is_err(), "the lease is lost");
    assert_eq!(there.get(&id, OWNER).await.unwrap().status, ServerStatus::Working);
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_that_is_lost_while_a_task_is_read_marks_no_task() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let slow = RedisBackend::builder(proxy.url()).response_timeout(6 * SOON).connect().await.unwrap();
    let (here, there) = (TaskStore::new(slow).with_worker_lease(SHORT), store(&server.url(), SHORT).await);
    let first = new_task(&here).await;
    let first = here.work_on(&first, OWNER).await.unwrap();
    let id = new_task(&there).await;
    let version = record(&there, &id).await.version;
    proxy.set(Fault::Hold);
    let (begun, ()) = tokio::join!(here.work_on(&id, OWNER), async {
        timeout(SHORT + SOON, first.cancelled()).await.expect("the lease ends");
        proxy.set(Fault::None);
    });
    assert!(is_lost(&begun), "{begun:?}");
    assert_eq!(record(&there, &id).await.version, version);
}

/// A worker that stands still between its look at the clock and its write: here the clock still says that the lease lives.
#[tokio::test(flavor = "multi_thread")]
async fn failed_task_refuses_a_worker_that_believes_in_its_lease() {
    let server = Server::start();
    let (here, there) = (store(&server.url(), LONG).await, store(&server.url(), LONG).await);
    let id = new_task(&here).await;
    let worker = here.work_on(&id, OWNER).await.unwrap();
    redis::cmd("DEL").arg(lease_keys(&server)).exec(&mut server.connection()).unwrap();
    assert_eq!(there.get(&id, OWNER).await.unwrap().status, ServerStatus::Failed);
    for written in [worker.progress("late").await, worker.complete(result("late")).await] {
        assert!(is_refused(&written, TaskStatus::Failed), "{written:?}");
    }
    let task = record(&there, &id).await;
    assert!(has_died(&task) && task.result.is_none(), "{task:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mark_survives_writers_that_do_not_know_it_and_is_in_no_task_of_pmcp() {
    let server = Server::start();
    let store = store(&server.url(), SHORT).await;
    let id = new_task(&store).await;
    let process = Process::that_works_on(&server.url(), &[&id]);
    let old = GenericTaskStore::new(lua_backend(&server.url()).await.unwrap());
    let generic = GenericTaskStore::new(RedisBackend::new(&server.url()).await.unwrap());
    old.set_status_message(&id, OWNER, Some("by the old backend".to_owned())).await.unwrap();
    generic.update_status(&id, OWNER, TaskStatus::InputRequired, None).await.unwrap();
    let wire = serde_json::to_string(&store.get(&id, OWNER).await.unwrap()).unwrap();
    assert!(!wire.contains("pmcptask"), "{wire}");
    assert!(matches!(store.work_on(&id, OWNER).await, Err(WorkerError::Taken { .. })));
    drop(process);
    assert!(has_died(&store.wait_until_terminal(&id, OWNER, LONG).await.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_without_permission_to_write_or_to_look_at_leases_reads_the_task_as_it_is() {
    let server = Server::start();
    let store = store(&server.url(), SHORT).await;
    let (one, other) = (new_task(&store).await, new_task(&store).await);
    let process = Process::that_works_on(&server.url(), &[&one, &other]);
    drop(process);
    assert!(holds_within(SHORT + SOON, || lease_keys(&server).is_empty()));
    for rules in ["+pmcptask.get", "+pmcptask.get +pttl", "+pmcptask.get +pmcptask.cas"] {
        let rules = format!("ACL SETUSER limited reset on >pw ~pmcp:* -@all {rules}");
        assert_eq!(server.wire().run(&rules), pmcptask_tests::OK);
        let limited = self::store(&server.url().replace("//", "//limited:pw@"), SHORT).await;
        assert_eq!(limited.get(&one, OWNER).await.unwrap().status, ServerStatus::Working, "{rules}");
        // Who waits reads about once a second.
        let all = || server.wire().info_number("stats", "total_commands_processed");
        let before = all();
        assert!(timeout(SOON, limited.changed(&one, OWNER, 2)).await.is_err(), "{rules}");
        let commands = all() - before;
        assert!(commands <= 100, "{commands} commands with {rules}");
    }
    assert_eq!(store.get(&one, OWNER).await.unwrap().status, ServerStatus::Failed);
}

// Primaries that are replaced, slots that move.

#[tokio::test(flavor = "multi_thread")]
async fn workers_keep_their_tasks_over_a_failover_by_sentinels() {
    /// Longer than the time without a primary.
    const LEASE: Duration = Duration::from_secs(15);
    let watched = SentinelGroup::start(1);
    let (here, there) = (store(&watched.url(), LONG).await, store(&watched.url(), LONG).await);
    let (done, stopped, killed) = (new_task(&here).await, new_task(&here).await, new_task(&here).await);
    let (completes, stops) =
        (here.work_on(&done, OWNER).await.unwrap(), here.work_on(&stopped, OWNER).await.unwrap());
    let process = Process::with_lease(&watched.url(), LEASE, &[&killed]);
    let [waits, waits_for_dead] = [&done, &killed].map(|id| {
        let (there, id) = (there.clone(), id.clone());
        tokio::spawn(async move { there.wait_until_terminal(&id, OWNER, LONG).await.unwrap() })
    });
    let [old, new] = [0, 1].map(|number| &watched.servers[number]);
    // What the replica does not have yet, a failover loses.
    let offset = |server: &Server| server.wire().info_number("replication", "master_repl_offset");
    assert!(holds_within(SOON, || offset(new) == offset(old)));
    watched.fail_over();
    // Until the old primary is a replica, it takes writes that are lost.
    watched.wait_until_settled();
    // A write that meets the old primary fails.
    let started = Instant::now();
    while let Err(error) = completes.complete(result("done")).await {
        assert!(matches!(error, WorkerError::Task(TaskError::StoreError(_))), "{error}");
        assert!(started.elapsed() < 6 * SOON * slowness(), "{error}");
    }
    assert_eq!(timeout(SOON, waits).await.expect("woken").unwrap().task.status, TaskStatus::Completed);
    there.cancel(&stopped, OWNER).await.unwrap();
    timeout(SOON, stops.cancelled()).await.expect("the cancel reaches the worker");
    let late = stops.progress("late").await;
    assert!(is_refused(&late, TaskStatus::Cancelled), "{late:?}");
    // The process renews its lease at the new primary.
    let before = new.calls_of("pexpire");
    assert!(holds_within(LEASE, || new.calls_of("pexpire") > before));
    assert_eq!(there.get(&killed, OWNER).await.unwrap().status, ServerStatus::Working);
    drop(process);
    let task = timeout(LEASE + SOON, waits_for_dead).await.expect("the lease ends").unwrap();
    assert!(has_died(&task), "{task:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_keep_their_tasks_while_the_slots_of_tasks_and_leases_move() {
    const LEASE: Duration = Duration::from_secs(6);
    let cluster = Cluster::start(2, 0);
    let (here, there) = (store(&cluster.url(), LEASE).await, store(&cluster.url(), LEASE).await);
    let id = new_task(&here).await;
    let worker = here.work_on(&id, OWNER).await.unwrap();
    let (task, index) = (format!("pmcp:tasks:{{{OWNER}}}:{id}"), format!("pmcp:idx:{{{OWNER}}}"));
    let lease = cluster.servers.iter().flat_map(lease_keys).next().unwrap();
    let (owner, _) = lease.rsplit_once(':').unwrap();
    let lease_index = owner.replace(":tasks:", ":idx:");
    let renewals = || cluster.servers.iter().map(|server| server.calls_of("pexpire")).sum::<u64>();
    for (key, index) in [(&task, &index), (&lease, &lease_index)] {
        let source = cluster.servers.iter().position(|server| server.has_slot_of(index)).unwrap();
        for round in 0..2 {
            let [from, to] = [source ^ round, source ^ 1 ^ round].map(|number| &cluster.servers[number]);
            let slot = from.slot_of(index);
            for step in 0..4 {
                match step {
                    0 => from.start_moving(&slot, to),
                    1 => from.migrate(&[key], to),
                    2 => from.migrate(&[index], to),
                    _ => from.stop_moving(&slot, to),
                }
                if key == &lease {
                    // A renewal of the lease, wherever its slot is.
                    let before = renewals();
                    assert!(holds_within(LEASE, || renewals() > before), "round {round}, step {step}");
                }
                // A task whose index is at another node cannot be written.
                if step != 1 || key != &task {
                    worker.progress(format!("{key} {round} {step}")).await.unwrap();
                }
                let seen = there.get(&id, OWNER).await.unwrap();
                assert_eq!(seen.status, ServerStatus::Working, "round {round}, step {step}");
            }
        }
    }
    worker.complete(result("done")).await.unwrap();
    assert_eq!(there.get(&id, OWNER).await.unwrap().status, ServerStatus::Completed);
}
