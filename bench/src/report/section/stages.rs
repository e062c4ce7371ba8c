//! Where the time of a request goes.

use maud::{Markup, html};
use vfio_ccw_load::units::Nanos;

use crate::report::chart::{clipped, px};
use crate::report::number::{Unit, count};
use crate::report::page::section;
use crate::report::scale::Scale;
use crate::report::series::Job;
use crate::report::table::{Table, cell};
use vfio_ccw_load::StageRow;

/// Jobs that are drawn.
const MOST_PANELS: usize = 12;

/// Stages of each; a service has fewer.
const MOST_STAGES: usize = 24;

/// Ticks whose labels have room in a panel.
const MOST_TICKS: usize = 6;

const WIDTH: f64 = 390.0;
const LEFT: f64 = 96.0;
const RIGHT: f64 = 14.0;
const ROW: f64 = 20.0;
const BOTTOM: f64 = 24.0;

/// A panel for each job that has stages, all with the same axis.
pub(in crate::report) fn markup(jobs: &[Job]) -> Option<Markup> {
    let jobs: Vec<(&Job, Vec<&StageRow>)> = (jobs.iter())
        .map(|job| {
            let timed = job.record.stages.iter().filter(|stage| stage.count > 0);
            (job, timed.take(MOST_STAGES).collect())
        })
        .filter(|(_, stages): &(_, Vec<_>)| !stages.is_empty())
        .collect();
    if jobs.is_empty() {
        return None;
    }
    let drawn = &jobs[..jobs.len().min(MOST_PANELS)];
    let values = (drawn.iter())
        .flat_map(|(_, stages)| stages)
        .flat_map(|stage| [stage.p50_ns, stage.max_ns.max(stage.p999_ns)])
        .map(|nanos| nanos as f64);
    let scale = Scale::few_decades(values, MOST_TICKS, Unit::Nanos);
    let mut table =
        Table::new(&["job", "stage"], &["requests", "p50", "p90", "p99", "p99.9", "longest"]);
    for (job, stages) in &jobs {
        for stage in stages {
            table.row([
                cell(&job.label),
                cell(&stage.name),
                cell(count(stage.count as f64)),
                cell(Nanos(stage.p50_ns).to_string()),
                cell(Nanos(stage.p90_ns).to_string()),
                cell(Nanos(stage.p99_ns).to_string()),
                cell(Nanos(stage.p999_ns).to_string()),
                cell(Nanos(stage.max_ns).to_string()),
            ]);
        }
    }
    let how = html! {
        "A bar goes from the median to the 99th percentile of a stage, the thin line on to the 99.9th (tick) and the "
        "longest (dot). The axis is the same in all panels, and logarithmic. Stages follow one another, and "
        code { "total" } " is the whole way."
    };
    let content = html! {
        div.panels {
            @for (number, (job, stages)) in drawn.iter().enumerate() {
                (panel(number, &job.label, stages, &scale))
            }
        }
        @if jobs.len() > drawn.len() {
            p.note {
                "The first " (drawn.len()) " of " (jobs.len()) " jobs are drawn. The table has more."
            }
        }
        (table.behind())
    };
    Some(section("stages", "Latency by stage", &how, &content))
}

fn panel(number: usize, label: &str, stages: &[&StageRow], scale: &Scale) -> Markup {
    let bottom = ROW * stages.len() as f64 + 4.0;
    let at = |nanos: u64| LEFT + scale.share(nanos as f64) * (WIDTH - LEFT - RIGHT);
    let id = format!("stages-{number}");
    let total = stages.last();
    html! {
        figure.panel {
            figcaption { (label) }
            svg viewBox={ "0 0 " (WIDTH) " " (bottom + BOTTOM) } role="img"
                aria-labelledby={ (id) "-t " (id) "-d" } {
                title id={ (id) "-t" } { "Latency by stage of " (label) }
                desc id={ (id) "-d" } {
                    (stages.len()) " stages"
                    @if let Some(last) = total {
                        "; " (last.name) " has a median of " (Nanos(last.p50_ns))
                        " and a 99th percentile of " (Nanos(last.p99_ns))
                    }
                    "."
                }
                g.axis {
                    @for (share, label) in scale.ticks() {
                        @let x = px(LEFT + share * (WIDTH - LEFT - RIGHT));
                        line.grid x1=(x) y1="0" x2=(x) y2=(bottom) {}
                        text x=(x) y=(bottom + 16.0) text-anchor="middle" { (label) }
                    }
                    line.edge x1=(LEFT) y1=(bottom) x2=(WIDTH - RIGHT) y2=(bottom) {}
                }
                @for (row, stage) in stages.iter().enumerate() {
                    @let y = ROW * row as f64 + ROW / 2.0 + 2.0;
                    @let (p50, p99) = (at(stage.p50_ns), at(stage.p99_ns));
                    @let (p999, most) = (at(stage.p999_ns), at(stage.max_ns));
                    g class=(if stage.name == "total" { "stage total" } else { "stage" }) {
                        title {
                            (stage.name) ": p50 " (Nanos(stage.p50_ns)) ", p90 " (Nanos(stage.p90_ns))
                            ", p99 " (Nanos(stage.p99_ns)) ", p99.9 " (Nanos(stage.p999_ns))
                            ", longest " (Nanos(stage.max_ns))
                        }
                        // All of the row can be pointed at.
                        rect.row x="0" y=(px(y - ROW / 2.0)) width=(WIDTH) height=(ROW) {}
                        text x=(LEFT - 8.0) y=(px(y + 4.0)) text-anchor="end" { (clipped(&stage.name, 14)) }
                        line.whisker x1=(px(p99)) y1=(px(y)) x2=(px(most)) y2=(px(y)) {}
                        rect.range x=(px(p50)) y=(px(y - 5.0)) width=(px((p99 - p50).max(2.0))) height="10" rx="1" {}
                        line.whisker x1=(px(p999)) y1=(px(y - 5.0)) x2=(px(p999)) y2=(px(y + 5.0)) {}
                        circle.most cx=(px(most)) cy=(px(y)) r="2.2" {}
                    }
                }
            }
        }
    }
}
