//! One call at a time, with client and server on one processor and on one each: what a round trip takes decides how
//! much faster a list in one round trip is, and without this, the kernel decides what it takes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use pmcptask_tests::{Server, ServerOptions};
use serde_json::json;

use crate::Result;
use crate::contest::{LUA, OURS, Servers, contestants};
use crate::figures::{Spread, short, write};
use crate::load::{Operation, Sample, run};
use crate::machine;
use crate::plot::{Bar, bars};
use crate::records::record;
use crate::versus::{CREATE, LIST, LIST_LENGTHS, lists_and_creates_of, ours_and_lua};

const REPEATS: usize = 5;
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

    /// Moves all threads of this process and of a server to their processors.
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

/// Samples of ours and of the Lua backend, in the order of the repeats.
type Samples = BTreeMap<&'static str, Vec<Sample>>;

/// Where, with how many tasks, and what was done.
type Rows = BTreeMap<(Placement, usize, String), Samples>;

/// Measures everything and writes table, raw figures and a plot to a folder.
///
/// # Errors
///
/// What went wrong: there are no two processors, say.
pub(crate) async fn measure(folder: &Path) -> Result<()> {
    let servers = Servers::start(&ServerOptions::default())?;
    let data = record("owner", 500);
    let mut rows = Rows::new();
    for repeat in 0..REPEATS {
        for placement in Placement::ALL {
            for name in ours_and_lua(repeat) {
                placement.take(servers.of(name))?;
                servers.empty()?;
                let mut add = |place: usize, what: String, sample: Sample| {
                    let samples = rows.entry((placement, place, what)).or_default();
                    samples.entry(name).or_default().push(sample);
                };
                let contestants = contestants(&servers).await?;
                let contestant = contestants.iter().find(|contestant| contestant.name == name);
                let contestant = contestant.ok_or("nobody is called so")?;
                let get = run(contestant, Operation::Get, GETS, 1, &data).await?;
                add(0, Operation::Get.name().to_owned(), get);
                for tasks in LIST_LENGTHS {
                    servers.empty()?;
                    let [list, create] = lists_and_creates_of(name, &servers, tasks, 1).await?;
                    add(tasks, format!("{LIST} {tasks}"), list);
                    add(tasks, format!("{CREATE} {tasks}"), create);
                }
            }
        }
    }
    let described = machine::described(servers.of(OURS));
    let table = table(&rows, &described);
    println!("{table}");
    write(folder, "placement.md", &table)?;
    let raw: Vec<_> =
        rows.iter().map(|((placement, _, what), samples)| raw(*placement, what, samples)).collect();
    let figures = json!({ "machine": described, "rows": raw });
    write(folder, "placement.json", &(serde_json::to_string(&figures)? + "\n"))?;
    draw(folder, &rows)
}

fn figures(samples: &Samples, name: &str, of: fn(&Sample) -> f64) -> Vec<f64> {
    samples.get(name).into_iter().flatten().map(of).collect()
}

fn table(rows: &Rows, described: &serde_json::Value) -> String {
    let text = |name: &str| described[name].as_str().unwrap_or_default().to_owned();
    let mut table = format!(
        "# One call at a time, by processors\n\n{}, {}; pmcptask {}, pmcp-tasks {}. Records of 0.5 KB. Client and server kept \
         on one processor, or on one each. Latency in µs; how many times as fast as the Lua backend, median of {REPEATS} \
         repeats (least to greatest).\n\n\
         | processors | operation | p50 | Lua p50 | times as fast |\n|---|---|---|---|---|\n",
        text("processor"),
        text("server"),
        text("pmcptask"),
        text("pmcp-tasks"),
    );
    for ((placement, _, what), samples) in rows {
        let p50 = |name| Spread::of(&figures(samples, name, |sample| sample.p50)).median;
        let _ = writeln!(
            table,
            "| {} | {what} | {} | {} | {} |",
            placement.name(),
            short(p50(OURS)),
            short(p50(LUA)),
            ratio(samples)
        );
    }
    table
}

/// How many times as many calls per second ours makes as the Lua backend, repeat by repeat.
fn ratio(samples: &Samples) -> Spread {
    let rates = |name| figures(samples, name, |sample| sample.throughput);
    let ratios: Vec<_> = rates(OURS).iter().zip(rates(LUA)).map(|(ours, lua)| ours / lua).collect();
    Spread::of(&ratios)
}

fn draw(folder: &Path, rows: &Rows) -> Result<()> {
    let lists = rows.iter().filter(|((_, tasks, _), _)| *tasks > 0).map(|((placement, _, what), samples)| {
        let label = format!("{what}, {}", placement.name());
        Bar { label, figure: ratio(samples).median }
    });
    bars(
        folder,
        "lists.svg",
        "Speed by that of the Lua backend, one call at a time: one processor for both, or one each",
        "x",
        &lists.collect::<Vec<_>>(),
    )
}

fn raw(placement: Placement, what: &str, samples: &Samples) -> serde_json::Value {
    let p50s = |name| figures(samples, name, |sample| sample.p50.round());
    let rates = |name| figures(samples, name, |sample| sample.throughput.round());
    json!({ "processors": placement.name(), "operation": what,
            "p50_us": { OURS: p50s(OURS), LUA: p50s(LUA) }, "per_second": { OURS: rates(OURS), LUA: rates(LUA) } })
}

#[cfg(test)]
mod tests {
    use std::process::Child;

    use super::*;

    /// A process that does nothing, ended with the handle.
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

    #[test]
    fn ratio_is_taken_repeat_by_repeat() {
        let of = |throughput| Sample { throughput, p50: 1.0, p99: None, client_us: 0.0 };
        let samples: Samples =
            [(OURS, vec![of(20.0), of(60.0), of(8.0)]), (LUA, vec![of(10.0), of(10.0), of(2.0)])].into();
        assert_eq!(ratio(&samples), Spread { least: 2.0, median: 4.0, greatest: 6.0 });
    }
}
