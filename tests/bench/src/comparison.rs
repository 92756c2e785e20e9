//! The results of the contestants at the same operation, repeat by repeat.

use std::collections::BTreeMap;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::Result;
use crate::contest::OURS;
use crate::figures::Spread;
use crate::load::Sample;

/// The samples of each contestant, in the order of the repeats.
#[derive(Default)]
pub(crate) struct Comparison(BTreeMap<&'static str, Vec<Sample>>);

impl Comparison {
    pub(crate) fn add(&mut self, contestant: &'static str, sample: Sample) {
        self.0.entry(contestant).or_default().push(sample);
    }

    /// Calls per second of this project as a multiple of another contestant's, for each repeat.
    pub(crate) fn ratio(&self, other: &str) -> Option<Spread> {
        let (ours, other) = (self.0.get(OURS)?, self.0.get(other)?);
        let ratios: Vec<_> =
            ours.iter().zip(other).map(|(ours, other)| ours.throughput / other.throughput).collect();
        Some(Spread::of(&ratios))
    }

    pub(crate) fn median(&self, contestant: &str, of: fn(&Sample) -> Option<f64>) -> Option<f64> {
        Some(Spread::of(&self.0.get(contestant)?.iter().filter_map(of).collect::<Vec<_>>()).median)
    }

    /// All samples.
    pub(crate) fn raw(&self) -> Value {
        let raw = |sample: &Sample| {
            json!({ "per_second": sample.throughput.round(), "p50_us": sample.p50.round(),
                    "p99_us": sample.p99.map(f64::round), "client_us": (sample.client_us * 100.0).round() / 100.0 })
        };
        self.0.iter().map(|(name, samples)| (*name, samples.iter().map(raw).collect::<Value>())).collect()
    }
}

/// A progress bar for a measurement of this many steps.
pub(crate) fn progress_bar(steps: usize) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {eta} {msg}")?;
    Ok(ProgressBar::new(u64::try_from(steps)?).with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::{BARE, LUA};

    #[test]
    fn ratio_is_taken_repeat_by_repeat() {
        let mut comparison = Comparison::default();
        for (ours, lua) in [(20.0, 10.0), (60.0, 10.0), (8.0, 2.0)] {
            let of = |throughput| Sample { throughput, p50: 1.0, p99: None, client_us: 0.0 };
            comparison.add(OURS, of(ours));
            comparison.add(LUA, of(lua));
        }
        assert_eq!(comparison.ratio(LUA), Some(Spread { least: 2.0, median: 4.0, greatest: 6.0 }));
        assert_eq!(comparison.ratio(BARE), None);
    }
}
