//! What checkpoints cost with this project's saver, those of adk-graph, and the Redis saver of lc-langgraph.

mod calls;
mod compression;
mod connections;
mod graphs;
mod leftovers;

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use pmcptask_tests::ServerOptions;

use crate::contest::{OURS, Servers};
use crate::figures::{short, write};
use crate::load::at_once;
use crate::machine;
use crate::rates::Rates;
use crate::{Result, is_quick, repeats};

/// Measures everything, and writes a page. Each row is printed once it is measured.
///
/// # Errors
///
/// If a step fails.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let servers = Servers::start(&ServerOptions::default())?;
    let ours = servers.of(OURS);
    let mut page = Page::default();
    page.line("# Checkpoints\n");
    page.line(
        "Savers as checkpointers of adk-graph 2.3: this project's `RedisCheckpointer`, with its default settings; \
         `SqliteCheckpointer` and `MemoryCheckpointer` of adk-graph; the `RedisCheckpointer` of lc-langgraph 0.28, \
         on a server without this project's module. Its state is the whole checkpoint, which is copied before a \
         save. Its list is `snapshots`, its prune that of its trait. SQLite in WAL mode does not wait for the disk \
         (`synchronous = NORMAL`), nor do the servers, unless said.\n",
    );
    page.line(&format!(
        "\"Times\" is how many times as fast as another saver this project's is: median of {} repeats (least to \
         greatest). Each figure is measured for {} ms. Client and servers share the processors. States are \
         messages of made-up words.\n",
        repeats(),
        span().as_millis(),
    ));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown");
    page.line(&format!("`{}`, load {load} at the start", machine::described(ours)));
    calls::compare_savers(&mut page, &servers).await?;
    calls::compare_on_disk(&mut page).await?;
    calls::compare_with_bare_command(&mut page, &servers).await?;
    calls::compare_over_network(&mut page, &servers).await?;
    graphs::compare(&mut page, &servers).await?;
    leftovers::count(&mut page, &servers).await?;
    connections::measure(&mut page, ours).await?;
    compression::measure(&mut page, ours).await?;
    write(folder, "checkpoints.md", &page.0)
}

/// Markdown that is printed as it comes.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, line: &str) {
        println!("{line}");
        self.0.push_str(line);
        self.0.push('\n');
    }

    /// Begins a section with a table.
    fn section(&mut self, title: &str, about: &str, columns: &[impl AsRef<str>]) {
        self.line(&format!("\n## {title}\n\n{about}\n"));
        self.row(columns);
        self.line(&format!("|{}", "---|".repeat(columns.len())));
    }

    fn row(&mut self, cells: &[impl AsRef<str>]) {
        let cells: Vec<_> = cells.iter().map(AsRef::as_ref).collect();
        self.line(&format!("| {} |", cells.join(" | ")));
    }
}

/// A section on how often this project and others, named after it, do the same in a second.
async fn compare<C: Copy + Ord + Display>(
    page: &mut Page,
    (title, about, cell): (&str, &str, &str),
    servers: &Servers,
    names: &[&'static str],
    cells: &[C],
    per_second: impl AsyncFn(&'static str, C) -> Result<f64>,
) -> Result<()> {
    let others = || names.iter().copied().filter(|name| *name != OURS);
    let mut columns = vec![cell.to_owned()];
    columns.extend(names.iter().map(ToString::to_string));
    columns.extend(others().map(|other| format!("times {other}")));
    page.section(title, about, &columns);
    for cell in cells {
        let rates = Rates::measure(servers, &[*cell], names, &per_second).await?;
        let mut row = vec![cell.to_string()];
        row.extend(names.iter().map(|name| short(rates.median(*cell, name))));
        row.extend(others().filter_map(|other| Some(rates.ratio(*cell, OURS, other)?.to_string())));
        page.row(&row);
    }
    Ok(())
}

/// How long the calls of one figure go on. A number of calls would take minutes with the slowest saver.
fn span() -> Duration {
    Duration::from_millis(if is_quick() { 100 } else { 500 })
}

/// Calls in a second, so many in flight. A call gets the number of its worker.
#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
async fn calls_per_second<F>(
    in_flight: usize,
    call: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Result<f64>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    // The first calls open connections and prepare statements.
    calls_for(Duration::ZERO, in_flight, call.clone()).await?;
    let started = Instant::now();
    let calls = calls_for(span(), in_flight, call).await?;
    Ok(calls as f64 / started.elapsed().as_secs_f64())
}

/// Calls until the time is over, at least once per worker. Returns how often.
async fn calls_for<F>(
    time: Duration,
    in_flight: usize,
    call: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Result<usize>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let started = Instant::now();
    let workers = (0..in_flight).map(|worker| {
        let call = call.clone();
        async move {
            let mut calls = 0;
            loop {
                call(worker).await?;
                calls += 1;
                if started.elapsed() >= time {
                    return Ok(calls);
                }
            }
        }
    });
    Ok(at_once(workers).await?.into_iter().sum())
}
