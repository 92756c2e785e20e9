//! How often something is done in a second, measured in turn.

use std::collections::BTreeMap;

use crate::comparison::progress_bar;
use crate::contest::Servers;
use crate::figures::{Spread, short};
use crate::{Result, repeats};

/// How often in a second, for each cell of a table and each name, repeat by repeat.
pub(crate) struct Rates<C>(BTreeMap<(C, &'static str), Vec<f64>>);

impl<C: Copy + Ord> Rates<C> {
    /// Measures all names in turn. Each time another one begins. The servers are empty before each.
    pub(crate) async fn measure(
        servers: &Servers,
        cells: &[C],
        names: &[&'static str],
        per_second: impl AsyncFn(&'static str, C) -> Result<f64>,
    ) -> Result<Self> {
        let progress = progress_bar(repeats() * cells.len() * names.len())?;
        let mut rates = BTreeMap::<_, Vec<_>>::new();
        for repeat in 0..repeats() {
            for cell in cells {
                for turn in 0..names.len() {
                    let name = names[(repeat + turn) % names.len()];
                    servers.empty()?;
                    rates.entry((*cell, name)).or_default().push(per_second(name, *cell).await?);
                    progress.inc(1);
                }
            }
        }
        progress.finish_and_clear();
        Ok(Self(rates))
    }

    /// The rate as a multiple of another name's, for each repeat.
    pub(crate) fn ratio(&self, cell: C, name: &'static str, to: &'static str) -> Option<Spread> {
        let (rates, others) = (self.0.get(&(cell, name))?, self.0.get(&(cell, to))?);
        Some(Spread::of(&rates.iter().zip(others).map(|(rate, other)| rate / other).collect::<Vec<_>>()))
    }

    pub(crate) fn median(&self, cell: C, name: &'static str) -> f64 {
        self.0.get(&(cell, name)).map_or(f64::NAN, |rates| Spread::of(rates).median)
    }

    /// The median of the rate, and the ratio, for a table.
    pub(crate) fn shown(&self, cell: C, name: &'static str, to: &'static str) -> String {
        let ratio = self.ratio(cell, name, to).map(|ratio| ratio.to_string());
        format!("{} / s, {}", short(self.median(cell, name)), ratio.unwrap_or_default())
    }
}
