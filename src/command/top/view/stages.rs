//! The table of stages.

use ratatui::text::{Line, Span};

use super::super::figures::Stage;
use super::super::quantile::Quantile;
use super::cell;
use super::palette::Palette;

/// Columns before the bar.
const TABLE_WIDTH: usize = 11 + 9 + 5 * 9;

/// Widest bar.
const BAR_WIDTH: usize = 40;

/// A line for each stage, under one with their names.
pub(super) fn lines(stages: &[Stage], palette: Palette, width: usize) -> Vec<Line<'static>> {
    let names = format!(
        "{:<11}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}  of total",
        "stage", "requests", "p50", "p99", "p99.9", "mean", "share"
    );
    let bar_width = width.saturating_sub(TABLE_WIDTH + 2).min(BAR_WIDTH);
    let quantile =
        |quantile: Option<Quantile>| quantile.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let row = |stage: &Stage| {
        let mean = cell::seconds(stage.mean_s);
        let bar = if stage.name == "total" { None } else { stage.share };
        Line::from(vec![
            Span::styled(format!("{:<11}", stage.name), palette.name()),
            Span::raw(format!("{:>9}", cell::rate(stage.requests_per_s))),
            Span::raw(format!("{:>9}", quantile(stage.p50))),
            Span::styled(format!("{:>9}", quantile(stage.p99)), palette.first()),
            Span::raw(format!("{:>9}{mean:>9}", quantile(stage.p999))),
            Span::raw(format!("{:>9}  ", cell::percent(stage.share))),
            Span::styled(cell::bar(bar, bar_width), palette.bar()),
        ])
    };
    let names = Line::from(Span::styled(names, palette.title()));
    std::iter::once(names).chain(stages.iter().map(row)).collect()
}
