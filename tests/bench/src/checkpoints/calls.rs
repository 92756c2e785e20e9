//! Single calls of the savers, and a load against an `HGETALL` of the same record.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use adk_graph::checkpoint::{Checkpointer, RetentionPolicy};
use adk_graph::state::{Checkpoint, State};
use pmcptask_checkpoint::Compression;
use pmcptask_checkpoint::adk::RedisCheckpointer;
use pmcptask_tests::{Server, ServerOptions};

use crate::comparison::{Comparison, progress_bar};
use crate::contest::{OURS, Servers, connection};
use crate::figures::short;
use crate::load::{Sample, at_once, processor_time, sample};
use crate::savers::{LC, SQLITE, Saver, Whole};
use crate::{Result, is_quick, repeats, states};

/// Bytes of a state, and the same in words.
const SIZES: [(usize, &str); 2] = [(1_000, "1 KB"), (10_000, "10 KB")];
const LENGTHS: [usize; 3] = [10, 100, 1_000];
const KEPT: usize = 10;
const IN_FLIGHT: usize = 16;

/// This project's, on a server that writes each save to the disk before the reply, as `SQLite` does.
const OURS_AOF: &str = "pmcptask, appendfsync always";
const HGETALL: &str = "HGETALL";
const HGETALL_PARSED: &str = "HGETALL, parsed";

fn calls() -> usize {
    if is_quick() { 200 } else { 1_000 }
}

/// Size, operation, calls in flight.
type Case = (&'static str, String, usize);
type Rows = Vec<(Case, Comparison)>;

/// Adds a sample to the row of its case.
fn add(rows: &mut Rows, case: Case, name: &'static str, sample: Sample) {
    if let Some((_, comparison)) = rows.iter_mut().find(|(its, _)| *its == case) {
        comparison.add(name, sample);
    } else {
        let mut comparison = Comparison::default();
        comparison.add(name, sample);
        rows.push((case, comparison));
    }
}

/// Times calls, each with an argument of its own, several in flight.
async fn timed<A, C>(
    arguments: Vec<A>,
    in_flight: usize,
    call: impl Fn(A) -> C + Clone + Send + 'static,
) -> Result<Sample>
where
    A: Send + 'static,
    C: Future<Output = Result<()>> + Send + 'static,
{
    let each = arguments.len().div_ceil(in_flight);
    let mut arguments = arguments.into_iter();
    let shares: Vec<Vec<A>> = (0..in_flight).map(|_| arguments.by_ref().take(each).collect()).collect();
    let (started, processor_before) = (Instant::now(), processor_time());
    let latencies = at_once(shares.into_iter().map(|share| {
        let call = call.clone();
        async move {
            let mut latencies = Vec::with_capacity(share.len());
            for argument in share {
                let started = Instant::now();
                call(argument).await?;
                latencies.push(started.elapsed());
            }
            Ok(latencies)
        }
    }));
    let latencies = latencies.await?;
    let (took, processor) = (started.elapsed(), processor_time().saturating_sub(processor_before));
    Ok(sample(latencies.concat(), took, processor))
}

/// Times the same call many times.
async fn repeated<C>(
    calls: usize,
    in_flight: usize,
    call: impl Fn() -> C + Clone + Send + 'static,
) -> Result<Sample>
where
    C: Future<Output = Result<()>> + Send + 'static,
{
    timed(vec![(); calls], in_flight, move |()| call()).await
}

/// A table of the calls of all savers.
pub(super) async fn of_savers(servers: &Servers) -> Result<String> {
    let with_log = Server::try_start_with(&ServerOptions::default().with_aof())?;
    let folder = tempfile::tempdir()?;
    let names = [OURS, OURS_AOF, SQLITE, LC];
    let progress = progress_bar(repeats() * SIZES.len() * names.len())?;
    let mut rows = Rows::new();
    for repeat in 0..repeats() {
        for size in SIZES {
            for turn in 0..names.len() {
                let name = names[(repeat + turn) % names.len()];
                servers.empty()?;
                with_log.wire().call(&["FLUSHALL"]);
                let saver = if name == OURS_AOF {
                    Saver::named(OURS, &with_log, folder.path()).await?
                } else {
                    Saver::named(name, servers.of(name), folder.path()).await?
                };
                let mut add = |what: String, in_flight, sample| {
                    add(&mut rows, (size.1, what, in_flight), name, sample);
                };
                let state = states::of_text(size.0, 1);
                saves(&saver, &state, &mut add).await?;
                if name != OURS_AOF {
                    reads(&saver, &state, &mut add).await?;
                }
                progress.inc(1);
            }
        }
    }
    progress.finish_and_clear();
    Ok(shown(&rows, &names, &[SQLITE, LC]))
}

/// A checkpoint that is saved to one of as many threads as there are calls in flight.
fn new(thread: &str, number: usize, state: &State) -> Whole {
    Whole(Checkpoint::new(thread, state.clone(), number, vec!["next".to_owned()]))
}

async fn fill(saver: &Saver, thread: &str, state: &State, count: usize) -> Result<()> {
    for number in 0..count {
        saver.save(&new(thread, number, state)).await?;
    }
    Ok(())
}

async fn saves(saver: &Saver, state: &State, add: &mut impl FnMut(String, usize, Sample)) -> Result<()> {
    fill(saver, "first", state, 20).await?;
    for in_flight in [1, IN_FLIGHT] {
        let thread = |number: usize| format!("saved-{}", number % IN_FLIGHT);
        let checkpoints = (0..calls()).map(|number| new(&thread(number), number, state)).collect();
        let saver = saver.clone();
        let save = move |checkpoint| {
            let saver = saver.clone();
            async move { saver.save(&checkpoint).await }
        };
        add("save".to_owned(), in_flight, timed(checkpoints, in_flight, save).await?);
    }
    Ok(())
}

async fn reads(saver: &Saver, state: &State, add: &mut impl FnMut(String, usize, Sample)) -> Result<()> {
    for in_flight in [1, IN_FLIGHT] {
        let loads = repeated(calls(), in_flight, load_of(&saver.checkpointer, "first"));
        add("load latest".to_owned(), in_flight, loads.await?);
    }
    for length in LENGTHS {
        let thread = format!("listed-{length}");
        fill(saver, &thread, state, length).await?;
        let checkpointer = Arc::clone(&saver.checkpointer);
        let list = move || {
            let (checkpointer, thread) = (Arc::clone(&checkpointer), thread.clone());
            async move {
                let listed = checkpointer.list(&thread).await?.len();
                if listed == length { Ok(()) } else { Err(format!("{listed} of {length} are listed").into()) }
            }
        };
        add(format!("list of {length}"), 1, repeated(calls() / 10, 1, list).await?);
    }
    let checkpointer = Arc::clone(&saver.checkpointer);
    let prune = move || {
        let (checkpointer, policy) = (Arc::clone(&checkpointer), RetentionPolicy::keep_last(KEPT));
        async move {
            let removed = checkpointer.prune("listed-1000", &policy).await?;
            if removed == 1_000 - KEPT { Ok(()) } else { Err(format!("{removed} are removed").into()) }
        }
    };
    add(format!("prune, keep {KEPT} of 1000"), 1, repeated(1, 1, prune).await?);
    Ok(())
}

/// A call that loads the latest checkpoint of a thread.
fn load_of(
    checkpointer: &Arc<dyn Checkpointer>,
    thread: &'static str,
) -> impl Fn() -> futures_util::future::BoxFuture<'static, Result<()>> + Clone + Send + 'static {
    let checkpointer = Arc::clone(checkpointer);
    move || {
        let checkpointer = Arc::clone(&checkpointer);
        Box::pin(async move {
            checkpointer.load(thread).await?.ok_or("nothing is loaded")?;
            Ok(())
        })
    }
}

/// A table of loads, and of an `HGETALL` of the record that they read.
pub(super) async fn of_bare_commands(server: &Server) -> Result<String> {
    let forms = [("JSON", Compression::Off), ("compressed", Compression::default())];
    let progress = progress_bar(repeats() * SIZES.len() * forms.len())?;
    let plain = connection(server).await?;
    let names = [OURS, HGETALL, HGETALL_PARSED];
    let mut rows = Rows::new();
    for repeat in 0..repeats() {
        for size in SIZES {
            for (form, compression) in forms {
                server.wire().call(&["FLUSHALL"]);
                let saver = RedisCheckpointer::builder(&server.url()).compression(compression).connect();
                let saver = Saver::of(saver.await?);
                fill(&saver, "first", &states::of_text(size.0, 1), 10).await?;
                let keys: Vec<String> =
                    redis::cmd("KEYS").arg("checkpoints:tasks:*").query_async(&mut plain.clone()).await?;
                let key = keys.into_iter().next().ok_or("no record is found")?;
                for in_flight in [1, IN_FLIGHT] {
                    for turn in 0..names.len() {
                        let name = names[(repeat + turn) % names.len()];
                        let (plain, key) = (plain.clone(), key.clone());
                        let hgetall = move || {
                            let (mut plain, key) = (plain.clone(), key.clone());
                            async move {
                                let fields: Vec<Vec<u8>> =
                                    redis::cmd("HGETALL").arg(key).query_async(&mut plain).await?;
                                if name == HGETALL_PARSED {
                                    parse(fields.iter().skip_while(|field| *field != b"data").nth(1))?;
                                }
                                Ok(())
                            }
                        };
                        let sample = if name == OURS {
                            repeated(calls() * 2, in_flight, load_of(&saver.checkpointer, "first")).await?
                        } else {
                            repeated(calls() * 2, in_flight, hgetall).await?
                        };
                        add(&mut rows, (size.1, form.to_owned(), in_flight), name, sample);
                    }
                }
                progress.inc(1);
            }
        }
    }
    progress.finish_and_clear();
    Ok(shown(&rows, &names, &[HGETALL, HGETALL_PARSED]))
}

/// Makes a checkpoint of a stored record, as a load does.
fn parse(record: Option<&Vec<u8>>) -> Result<()> {
    /// What a compressed record has before its frame: a tag and its length.
    const HEADER: usize = 12;
    let record = record.ok_or("the record has no data")?;
    if record.first() == Some(&b'{') {
        drop(serde_json::from_slice::<Checkpoint>(record)?);
    } else {
        let frame = record.get(HEADER..).ok_or("the record is too short")?;
        drop(serde_json::from_slice::<Checkpoint>(&zstd::decode_all(frame)?)?);
    }
    Ok(())
}

fn shown(rows: &Rows, names: &[&'static str], others: &[&'static str]) -> String {
    let mut table = "| state | call | in flight |".to_owned();
    for name in names {
        let _ = write!(table, " {name} |");
    }
    for other in others {
        let _ = write!(table, " as fast as {other} |");
    }
    let _ = writeln!(table, "\n|---|---|---|{}", "---|".repeat(names.len() + others.len()));
    for ((size, what, in_flight), comparison) in rows {
        let _ = write!(table, "| {size} | {what} | {in_flight} |");
        for name in names {
            let _ = write!(table, " {} |", figures(comparison, name, *in_flight));
        }
        for other in others {
            let ratio = comparison.ratio(other).map_or("-".to_owned(), |ratio| ratio.to_string());
            let _ = write!(table, " {ratio} |");
        }
        table.push('\n');
    }
    table
}

/// Median and 99th percentile of one call at a time; calls per second of several.
fn figures(comparison: &Comparison, name: &str, in_flight: usize) -> String {
    let median = |of: fn(&Sample) -> Option<f64>| {
        comparison.median(name, of).filter(|figure| !figure.is_nan()).map_or("-".to_owned(), short)
    };
    if in_flight == 1 {
        format!("{}, {}", median(|sample| Some(sample.p50)), median(|sample| sample.p99))
    } else {
        format!("{} / s", median(|sample| Some(sample.throughput)))
    }
}
