//! Single calls of the savers, and a load beside an `HGETALL` of the same record.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adk_graph::checkpoint::{Checkpointer, RetentionPolicy};
use adk_graph::state::{Checkpoint, State};
use futures_util::future::BoxFuture;
use pmcptask_checkpoint::Compression;
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_tests::{Fault, Proxy, ServerOptions};

use super::{Page, calls_per_second, compare};
use crate::contest::{OURS, Servers, connection};
use crate::figures::short;
use crate::savers::{LC, SQLITE, SQLITE_WAL, saver};
use crate::{Result, states};

const KILOBYTES: [usize; 2] = [1, 10];
const IN_FLIGHT: [usize; 2] = [1, 16];
const LISTED: [usize; 3] = [10, 100, 1_000];
const PRUNED: usize = 1_000;
const KEPT: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    Save,
    LoadLatest,
    /// Of a thread with so many checkpoints.
    List(usize),
    Prune,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    call: Call,
    /// Of a state.
    kilobytes: usize,
    in_flight: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.call {
            Call::Save => write!(f, "save")?,
            Call::LoadLatest => write!(f, "load latest")?,
            Call::List(length) => write!(f, "list of {length}")?,
            Call::Prune => write!(f, "prune {PRUNED} to {KEPT}")?,
        }
        write!(f, ", {} KB", self.kilobytes)?;
        if self.in_flight > 1 { write!(f, ", {} in flight", self.in_flight) } else { Ok(()) }
    }
}

/// A call with states of so many KB, so many in flight.
fn cases(call: Call, sizes: &[usize], in_flight: &[usize]) -> Vec<Case> {
    let of_size = |kilobytes| in_flight.iter().map(move |&in_flight| Case { call, kilobytes, in_flight });
    sizes.iter().flat_map(|&kilobytes| of_size(kilobytes)).collect()
}

pub(super) async fn compare_savers(page: &mut Page, servers: &Servers) -> Result<()> {
    let mut all = [Call::Save, Call::LoadLatest].map(|call| cases(call, &KILOBYTES, &IN_FLIGHT)).concat();
    for call in LISTED.map(Call::List).into_iter().chain([Call::Prune]) {
        all.extend(cases(call, &KILOBYTES, &[1]));
    }
    let text = (
        "Calls",
        "Per second, one in flight unless said. A saver has one connection to its server, or a pool of 10 to SQLite.",
        "call",
    );
    let names = [OURS, SQLITE_WAL, LC];
    compare(page, text, servers, &names, &all, async |name, case| {
        measured(name, &servers.of(name).url(), case).await
    })
    .await
}

pub(super) async fn compare_on_disk(page: &mut Page) -> Result<()> {
    let servers = Servers::start(&ServerOptions::default().with_aof())?;
    let text = (
        "Saves that are on the disk",
        "Each save is on the disk before it returns: servers with `appendfsync always`, SQLite as \
         `SqliteCheckpointer::new` opens it. Its connections sleep while another one writes, so many saves at once \
         take longer than one after the other.",
        "call",
    );
    let (names, cases) = ([OURS, SQLITE, LC], cases(Call::Save, &[1], &IN_FLIGHT));
    compare(page, text, &servers, &names, &cases, async |name, case| {
        measured(name, &servers.of(name).url(), case).await
    })
    .await
}

/// How often in a second the saver of this name makes the call.
async fn measured(name: &str, url: &str, case: Case) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let saver = saver(name, url, folder.path()).await?;
    let state = states::of_text(case.kilobytes * 1_000);
    fill(
        &saver,
        &state,
        match case.call {
            Call::List(length) => length,
            Call::Prune => PRUNED,
            Call::Save | Call::LoadLatest => 1,
        },
    )
    .await?;
    match case.call {
        Call::Save => {
            calls_per_second(case.in_flight, move |worker| {
                let (saver, checkpoint) = (Arc::clone(&saver), new(&format!("thread-{worker}"), &state));
                async move { Ok(saver.save(&checkpoint).await.map(drop)?) }
            })
            .await
        }
        Call::LoadLatest => calls_per_second(case.in_flight, load(saver)).await,
        Call::List(length) => {
            calls_per_second(case.in_flight, move |_| {
                let saver = Arc::clone(&saver);
                async move { expect(length, saver.list(THREAD).await?.len()) }
            })
            .await
        }
        Call::Prune => {
            let started = Instant::now();
            let removed = saver.prune(THREAD, &RetentionPolicy::keep_last(KEPT)).await?;
            let took = started.elapsed();
            expect(PRUNED - KEPT, removed)?;
            Ok(took.as_secs_f64().recip())
        }
    }
}

/// The thread of all reads.
const THREAD: &str = "thread";

fn new(thread: &str, state: &State) -> Checkpoint {
    Checkpoint::new(thread, state.clone(), 0, vec!["next".to_owned()])
}

async fn fill(saver: &Arc<dyn Checkpointer>, state: &State, count: usize) -> Result<()> {
    for _ in 0..count {
        saver.save(&new(THREAD, state)).await?;
    }
    Ok(())
}

/// A saver that does less than the others must not look faster.
fn expect(expected: usize, got: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(format!("expected {expected} checkpoints, got {got}").into()) }
}

fn load(
    saver: Arc<dyn Checkpointer>,
) -> impl Fn(usize) -> BoxFuture<'static, Result<()>> + Clone + Send + 'static {
    move |_| {
        let saver = Arc::clone(&saver);
        Box::pin(async move { expect(1, usize::from(saver.load(THREAD).await?.is_some())) })
    }
}

/// Round trips that are timed.
const PINGS: u32 = 100;

const HGETALL: &str = "HGETALL";
const HGETALL_PARSED: &str = "HGETALL, parsed";

/// A load beside the bare command that reads the same bytes over the same client library.
pub(super) async fn compare_with_bare_command(page: &mut Page, servers: &Servers) -> Result<()> {
    let text = (
        "A load and the bare command",
        "`HGETALL` of the record that a load reads, not compressed. A load makes a checkpoint of the JSON; \
         \"parsed\" does so with the reply to `HGETALL`.",
        "call",
    );
    let names = [OURS, HGETALL, HGETALL_PARSED];
    let cases = cases(Call::LoadLatest, &KILOBYTES, &IN_FLIGHT);
    compare(page, text, servers, &names, &cases, async |name, case| {
        loads(name, &servers.of(OURS).url(), case).await
    })
    .await
}

/// How often in a second the record is read in the way of this name.
async fn loads(name: &'static str, url: &str, case: Case) -> Result<f64> {
    let ours = RedisCheckpointer::builder(url).compression(Compression::Off).connect().await?;
    let ours: Arc<dyn Checkpointer> = Arc::new(ours);
    fill(&ours, &states::of_text(case.kilobytes * 1_000), 1).await?;
    if name == OURS {
        return calls_per_second(case.in_flight, load(ours)).await;
    }
    let mut plain = connection(url).await?;
    let keys: Vec<String> = redis::cmd("KEYS").arg("checkpoints:tasks:*").query_async(&mut plain).await?;
    let key = keys.into_iter().next().ok_or("no record is found")?;
    calls_per_second(case.in_flight, move |_| {
        let (mut plain, key) = (plain.clone(), key.clone());
        async move {
            let fields: HashMap<String, Vec<u8>> =
                redis::cmd("HGETALL").arg(key).query_async(&mut plain).await?;
            let record = fields.get("data").ok_or("the record has no data")?;
            if name == HGETALL_PARSED {
                serde_json::from_slice::<Checkpoint>(record)?;
            }
            Ok(())
        }
    })
    .await
}

/// What a round trip of a network takes longer than here.
const AWAY: Duration = Duration::from_millis(1);

/// Reads over a network, where a round trip takes longer than all work.
pub(super) async fn compare_over_network(page: &mut Page, servers: &Servers) -> Result<()> {
    let away = |name| {
        let proxy = Proxy::to(servers.of(name).port());
        proxy.set(Fault::Delay(AWAY));
        proxy
    };
    let (ours, others) = (away(OURS), away(LC));
    let url = |name| if name == OURS { ours.url() } else { others.url() };
    let mut plain = connection(&ours.url()).await?;
    let started = Instant::now();
    for _ in 0..PINGS {
        redis::cmd("PING").exec_async(&mut plain).await?;
    }
    let about = format!(
        "The same through proxies that hold each reply up for {} ms. A `PING` takes {} ms with them.",
        AWAY.as_millis(),
        short(started.elapsed().div_f64(f64::from(PINGS)).as_secs_f64() * 1e3),
    );
    let lists = LISTED.map(|length| cases(Call::List(length), &KILOBYTES, &[1])).concat();
    let cells = [cases(Call::LoadLatest, &KILOBYTES, &[1]), lists].concat();
    let text = ("Over a network", about.as_str(), "call");
    compare(page, text, servers, &[OURS, LC], &cells, async |name, case| {
        measured(name, &url(name), case).await
    })
    .await?;
    let text = ("A load and the bare command over a network", about.as_str(), "call");
    let names = [OURS, HGETALL, HGETALL_PARSED];
    let cells = cases(Call::LoadLatest, &KILOBYTES, &[1]);
    compare(page, text, servers, &names, &cells, async |name, case| loads(name, &url(OURS), case).await).await
}
