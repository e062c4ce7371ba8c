//! Loads in turns, and what they are to each other.

use maud::{Markup, html};
use vfio_ccw_load::units::Nanos;

use crate::report::bar::{Bar, Side, reach};
use crate::report::number::{count, percent, plain};
use crate::report::page::section;
use crate::report::read::{Content, Source};
use crate::report::table::{Table, cell};
use crate::run::{CompareRow, Verdict};

/// Of all comparisons, a table for each file.
pub(in crate::report) fn markup(sources: &[Source]) -> Option<Markup> {
    let runs: Vec<_> = (sources.iter())
        .filter_map(|source| match &source.content {
            Content::Compare(run) if !run.rows.is_empty() => Some((source, run)),
            _ => None,
        })
        .collect();
    if runs.is_empty() {
        return None;
    }
    let how = html! {
        "The ratio is other / base, both measured in turns, with its interval. Bars are on a logarithmic scale: the line in the middle is 1, and the shaded side is better; what goes beyond ends at the edge. Where the interval has 1 in it, "
        "no difference is shown, which does not show that there is none."
    };
    let content = html! {
        @for (source, run) in &runs {
            @let reach = reach(run.rows.iter().map(bar), 8.0);
            h3 {
                (source.name) ": " (run.rounds) " rounds, " (percent(run.confidence)) " intervals"
                ", bars from 1/" (reach) " to " (reach)
            }
            (table(&run.rows, reach).markup())
        }
    };
    Some(section("compare", "Comparisons", &how, &content))
}

fn bar(row: &CompareRow) -> Bar {
    Bar { ratio: row.ratio, low: row.low, high: row.high }
}

fn table(rows: &[CompareRow], reach: f64) -> Table {
    let mut table =
        Table::new(&["base", "other", "measure"], &["of base", "of other", "ratio", "interval"])
            .and_words(&["", "verdict"]);
    for row in rows {
        let is_time = row.measure.ends_with("_ns");
        let value = |value: f64| match is_time {
            // A cast keeps within what there is.
            true => Nanos(value as u64).to_string(),
            false => count(value),
        };
        let (class, word) = match row.verdict {
            Verdict::Better => ("better", "better"),
            Verdict::Worse => ("worse", "worse"),
            Verdict::Same => ("same", "no difference shown"),
        };
        let interval = format!("{} to {}", plain(row.low), plain(row.high));
        let title = format!("{} ({interval}): {word}", plain(row.ratio));
        let good = if is_time { Side::Below } else { Side::Above };
        table.row([
            cell(&row.base),
            cell(&row.other),
            cell(row.measure.trim_end_matches("_ns")),
            cell(value(row.base_value)),
            cell(value(row.other_value)),
            cell(plain(row.ratio)),
            cell(interval),
            bar(row).markup(reach, good, class, &title),
            html! { span class={ "verdict " (class) } { (word) } },
        ]);
    }
    table
}
