//! The figures next to their targets.

use maud::{Markup, html};

use crate::fields::FIELDS;
use crate::report::bar::{Bar, Side, reach};
use crate::report::number::plain;
use crate::report::page::section;
use crate::report::read::{Content, RatioFigure, RatioRow, Source};
use crate::report::table::{Table, cell};

/// Of all files of figures, a table for each.
pub(in crate::report) fn markup(sources: &[Source]) -> Option<Markup> {
    let files: Vec<(&Source, &Vec<RatioRow>)> = (sources.iter())
        .filter_map(|source| match &source.content {
            Content::Ratios(rows) => Some((source, rows)),
            _ => None,
        })
        .collect();
    if files.is_empty() {
        return None;
    }
    let bars = files.iter().flat_map(|(_, rows)| rows.iter());
    let reach = reach(bars.filter_map(|row| Some(bar(&row.figure)?.0)), 4.0);
    let how = html! {
        "Each figure is the median of its rounds with the 95 % interval. Bars are relative to the target, which is the line in "
        "the middle, and go from 1/" (reach) " to " (reach) " of it on a logarithmic scale; the shaded side is the one that is "
        "asked for."
    };
    let content = html! {
        @for (source, rows) in &files {
            @let held = rows.iter().filter(|row| row.figure.holds).count();
            h3 { (source.name) ": " (held) " of " (rows.len()) " hold" }
            (table(rows, reach).markup())
        }
    };
    Some(section("ratios", "Figures and their targets", &how, &content))
}

fn table(rows: &[RatioRow], reach: f64) -> Table {
    let mut table = Table::new(&["figure"], &["value", "95 % interval", "target"])
        .and_words(&["", "target", "measures"]);
    for RatioRow { name, figure } in rows {
        let interval = format!("{} to {}", plain(figure.low), plain(figure.high));
        let (class, word) = if figure.holds { ("better", "holds") } else { ("worse", "misses") };
        let title = format!("{} ({interval}), {}: {word}", plain(figure.value), figure.target);
        let measures = FIELDS.iter().find(|field| field.name == name).map(|field| field.measures);
        table.row([
            cell(name),
            cell(plain(figure.value)),
            cell(interval),
            cell(&figure.target),
            html! {
                @if let Some((bar, good)) = bar(figure) {
                    (bar.markup(reach, good, class, &title))
                }
            },
            html! { span class={ "verdict " (class) } { (word) } },
            cell(measures.unwrap_or("a figure that this version does not have")),
        ]);
    }
    table
}

/// The figure relative to its target. None where the target is 0, which is a multiple of nothing.
fn bar(figure: &RatioFigure) -> Option<(Bar, Side)> {
    let (relation, bound) = figure.target.split_once(' ')?;
    let side = match relation {
        "<=" => Side::Below,
        ">=" => Side::Above,
        _ => Side::Neither,
    };
    // `<= 0.8, or 1.0` has its exception behind the comma.
    let bound: f64 = bound.split(',').next()?.trim().parse().ok()?;
    let of_target = |value: f64| value / bound;
    (bound > 0.0 && bound.is_finite()).then(|| {
        let bar = Bar {
            ratio: of_target(figure.value),
            low: of_target(figure.low),
            high: of_target(figure.high),
        };
        (bar, side)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_relative_to_the_target() {
        let figure = |target: &str| RatioFigure {
            value: 0.4,
            low: 0.2,
            high: 0.8,
            target: target.to_owned(),
            holds: true,
        };
        let bar = |target| bar(&figure(target));
        let half = Bar { ratio: 0.5, low: 0.25, high: 1.0 };
        assert_eq!(bar("<= 0.8"), Some((half, Side::Below)));
        assert_eq!(bar("<= 0.8, or 1.0"), Some((half, Side::Below)));
        assert_eq!(bar(">= 0.8"), Some((half, Side::Above)));
        assert_eq!(bar("== 0"), None);
        for unreadable in ["", "<=", "about one", ">= NaN", "<= inf", "<= -1"] {
            assert_eq!(bar(unreadable), None);
        }
    }
}
