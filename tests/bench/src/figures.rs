//! Figures: their spread, their format, and the files that keep them.

use std::fs;
use std::path::Path;

use crate::Result;

/// Writes figures, or a table of them, to a file.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(folder)?;
    Ok(fs::write(folder.join(name), text)?)
}

/// The minimum, the median and the maximum of several figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) greatest: f64,
}

impl Spread {
    pub(crate) fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part: usize, of: usize| sorted.get((sorted.len().saturating_sub(1)) * part / of);
        let figure = |part, of| at(part, of).copied().unwrap_or(f64::NAN);
        Self { least: figure(0, 1), median: figure(1, 2), greatest: figure(1, 1) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} to {})", short(self.median), short(self.least), short(self.greatest))
    }
}

/// The figure that so many percent of the figures do not exceed.
pub(crate) fn percentile(figures: &mut [f64], percent: usize) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) * percent / 100).copied().unwrap_or(f64::NAN)
}

/// Three significant digits.
pub(crate) fn short(figure: f64) -> String {
    match figure.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_least_median_and_greatest() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { least: 1.0, median: 2.0, greatest: 3.0 });
        assert_eq!(Spread::of(&[2.0]).to_string(), "2.00 (2.00 to 2.00)");
        assert!(Spread::of(&[]).median.is_nan());
    }
}
