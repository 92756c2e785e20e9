//! One call at a time, with client and server on the same processor, and on one processor each. The time of a
//! round trip decides how much faster a list in one round trip is. Without fixed processors, the kernel
//! decides how long a round trip takes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use pmcptask_tests::{Server, ServerOptions};
use serde_json::json;

use crate::comparison::{Comparison, progress_bar};
use crate::contest::{Contestant, LUA, OURS, Servers, contestants};
use crate::figures::{short, write};
use crate::load::{Operation, Sample, run};
use crate::machine;
use crate::plot::{Bar, bars};
use crate::records::record;
use crate::versus::{CREATE, LIST, LIST_LENGTHS, lists_and_creates_of, ours_and_lua};
use crate::{Result, repeats};

const GETS: usize = 3_000;

/// Where client and server run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Placement {
    OneProcessor,
    OneEach,
}

impl Placement {
    const ALL: [Self; 2] = [Self::OneProcessor, Self::OneEach];

    const fn name(self) -> &'static str {
        match self {
            Self::OneProcessor => "one for both",
            Self::OneEach => "one each",
        }
    }

    /// Pins all threads of this process and of a server to their processors.
    fn take(self, server: &Server) -> Result<()> {
        let processor_of_client = if self == Self::OneProcessor { "0" } else { "1" };
        keep_on("0", server.process_id())?;
        keep_on(processor_of_client, std::process::id())
    }
}

fn keep_on(processor: &str, process: u32) -> Result<()> {
    let arguments = ["--all-tasks", "--cpu-list", "--pid", processor, &process.to_string()];
    let output = Command::new("taskset").args(arguments).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("processor {processor}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
    }
}

/// By placement, number of tasks, and operation.
type Figures = BTreeMap<(Placement, usize, String), Comparison>;

/// Measures everything and writes table, raw figures and a plot to a folder.
///
/// # Errors
///
/// If a step fails, for example because there is only one processor.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let servers = Servers::start(&ServerOptions::default())?;
    let contestants = contestants(&servers).await?;
    let data = record("owner", 500);
    let mut figures = Figures::new();
    let progress = progress_bar(repeats() * Placement::ALL.len() * 2)?;
    for repeat in 0..repeats() {
        for placement in Placement::ALL {
            for contestant in ours_and_lua(repeat).iter().filter_map(|name| named(&contestants, name)) {
                let name = contestant.name;
                let mut add = |tasks: usize, what: String, sample: Sample| {
                    figures.entry((placement, tasks, what)).or_default().add(name, sample);
                };
                placement.take(servers.of(name))?;
                servers.empty()?;
                let get = run(contestant, Operation::Get, GETS, 1, &data).await?;
                add(0, Operation::Get.name().to_owned(), get);
                for tasks in LIST_LENGTHS {
                    servers.empty()?;
                    let [list, create] = lists_and_creates_of(name, &servers, tasks, 1).await?;
                    add(tasks, format!("{LIST} {tasks}"), list);
                    add(tasks, format!("{CREATE} {tasks}"), create);
                }
                progress.inc(1);
            }
        }
    }
    progress.finish_and_clear();
    let described = machine::described(servers.of(OURS));
    let table = table(&figures, &described);
    println!("{table}");
    write(folder, "placement.md", &table)?;
    let raw = json!({ "machine": described, "rows": figures.iter().map(raw).collect::<Vec<_>>() });
    write(folder, "placement.json", &(serde_json::to_string(&raw)? + "\n"))?;
    draw(folder, &figures)
}

fn named<'c>(contestants: &'c [Contestant], name: &str) -> Option<&'c Contestant> {
    contestants.iter().find(|contestant| contestant.name == name)
}

fn table(figures: &Figures, described: &serde_json::Value) -> String {
    let text = |name: &str| described[name].as_str().unwrap_or_default().to_owned();
    let mut table = format!(
        "# One call at a time, by processors\n\n{}, {}; pmcptask {}, pmcp-tasks {}. Records of 0.5 KB. Client and server kept \
         on one processor, or on one each. Latency in µs; how many times as fast as the Lua backend, median of {} \
         repeats (least to greatest).\n\n\
         | processors | operation | p50 | p99 | Lua p50 | Lua p99 | times as fast |\n|---|---|---|---|---|---|---|\n",
        text("processor"),
        text("server"),
        text("pmcptask"),
        text("pmcp-tasks"),
        repeats(),
    );
    for ((placement, _, what), comparison) in figures {
        let median = |name, of| comparison.median(name, of).map_or("-".to_owned(), short);
        let _ = writeln!(
            table,
            "| {} | {what} | {} | {} | {} | {} | {} |",
            placement.name(),
            median(OURS, |sample| Some(sample.p50)),
            median(OURS, |sample| sample.p99),
            median(LUA, |sample| Some(sample.p50)),
            median(LUA, |sample| sample.p99),
            comparison.ratio(LUA).map_or("-".to_owned(), |ratio| ratio.to_string()),
        );
    }
    table
}

fn raw(((placement, _, what), comparison): (&(Placement, usize, String), &Comparison)) -> serde_json::Value {
    json!({ "processors": placement.name(), "operation": what, "contestants": comparison.raw() })
}

fn draw(folder: &Path, figures: &Figures) -> Result<()> {
    let lists = figures.iter().filter(|((_, tasks, _), _)| *tasks > 0);
    let lists = lists.filter_map(|((placement, _, what), comparison)| {
        let label = format!("{what}, {}", placement.name());
        Some(Bar { label, figure: comparison.ratio(LUA)?.median })
    });
    bars(
        folder,
        "lists.svg",
        "Speed by that of the Lua backend, one call at a time: one processor for both, or one each",
        "x",
        &lists.collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use std::process::Child;

    use super::*;

    /// A process that does nothing. It is killed when dropped.
    struct Idle(Child);

    impl Drop for Idle {
        fn drop(&mut self) {
            let _ = (self.0.kill(), self.0.wait());
        }
    }

    #[test]
    fn process_is_kept_on_its_processor() {
        let idle = Idle(Command::new("sleep").arg("60").spawn().expect("sleep is there"));
        keep_on("0", idle.0.id()).expect("there is a first processor");
        let status = std::fs::read_to_string(format!("/proc/{}/status", idle.0.id())).expect("it runs");
        assert!(status.lines().any(|line| line == "Cpus_allowed_list:\t0"), "{status}");
        let error = keep_on("65535", idle.0.id()).expect_err("there are not as many");
        assert!(error.to_string().starts_with("processor 65535: "), "{error}");
    }
}
