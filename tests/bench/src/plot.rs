//! Bar charts, as SVG.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Result;
use crate::figures::short;

/// A bar and its label.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) figure: f64,
}

const ROW: i32 = 26;
const LABELS: i32 = 250;
const BARS: i32 = 430;
const HEAD: i32 = 56;

/// Draws horizontal bars, the longest across the whole width, each with its figure and unit.
#[allow(clippy::cast_possible_truncation, reason = "pixels")]
pub(crate) fn bars(folder: &Path, name: &str, title: &str, unit: &str, bars: &[Bar]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let height = HEAD + ROW * i32::try_from(bars.len())? + 12;
    let path = folder.join(name);
    let root = SVGBackend::new(&path, ((LABELS + BARS + 90).unsigned_abs(), height.unsigned_abs()))
        .into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32| ("sans-serif", size).into_font().color(&RGBColor(40, 40, 40));
    root.draw(&Text::new(title.to_owned(), (12, 14), text(17)))?;
    let longest = bars.iter().map(|bar| bar.figure).fold(f64::MIN_POSITIVE, f64::max);
    for (row, bar) in bars.iter().enumerate() {
        let top = HEAD + ROW * i32::try_from(row)?;
        let middle = top + ROW / 2;
        let length = (f64::from(BARS) * bar.figure / longest).max(1.0) as i32;
        let right = text(14).pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(bar.label.clone(), (LABELS - 10, middle), right))?;
        let corners = [(LABELS, top + 4), (LABELS + length, top + ROW - 4)];
        root.draw(&Rectangle::new(corners, RGBColor(46, 110, 166).filled()))?;
        let left = text(14).pos(Pos::new(HPos::Left, VPos::Center));
        let figure = format!("{} {unit}", short(bar.figure));
        root.draw(&Text::new(figure, (LABELS + length + 6, middle), left))?;
    }
    root.present()?;
    Ok(())
}
