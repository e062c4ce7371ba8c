//! The table of the busiest subchannels.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::super::figures::{Sort, Subchannel};
use super::cell;
use super::palette::Palette;

const BAR_WIDTH: usize = 20;

/// What stands over the columns; the one that is sorted by has a mark.
pub(super) fn names(sort: Sort, attached: Option<f64>, palette: Palette) -> Line<'static> {
    let mark = |column: &str, by: Sort| {
        if by == sort { format!("{column}▼") } else { column.to_owned() }
    };
    let attached =
        attached.map_or_else(String::new, |all| format!("  of {}", cell::count(Some(all))));
    let names = format!(
        "{:<13}{:<8}{:>10}{:>10}{:>11}  {:>BAR_WIDTH$}{:>10}{attached}",
        "subchannel",
        "class",
        mark("requests", Sort::Requests),
        mark("errors", Sort::Errors),
        "oldest",
        "",
        mark("busy", Sort::Busy),
    );
    Line::from(Span::styled(names, palette.title()))
}

/// A line for each subchannel.
pub(super) fn rows(
    subchannels: &[Subchannel],
    palette: Palette,
) -> impl Iterator<Item = Line<'static>> {
    subchannels.iter().map(move |subchannel| {
        let trouble = subchannel.errors_per_s.is_some_and(|errors| errors > 0.0);
        let errors = if trouble { palette.trouble() } else { Style::new() };
        let class = subchannel.class.as_deref().unwrap_or("-");
        // A cell that looks different must not touch its neighbour.
        let count = cell::rate(subchannel.errors_per_s);
        let gap = " ".repeat(10_usize.saturating_sub(count.len()));
        Line::from(vec![
            Span::styled(format!("{:<13}", subchannel.name), palette.name()),
            Span::raw(format!("{class:<8}{:>10}", cell::rate(subchannel.requests_per_s))),
            Span::raw(gap),
            Span::styled(count, errors),
            Span::raw(format!("{:>11}  ", cell::seconds(subchannel.oldest_s))),
            Span::styled(cell::bar(subchannel.busy, BAR_WIDTH), palette.bar()),
            Span::raw(format!("{:>10}", cell::percent(subchannel.busy))),
        ])
    })
}
