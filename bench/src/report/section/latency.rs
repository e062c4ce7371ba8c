//! Latency against load: what requests by the clock had to wait.

use maud::{Markup, html};
use vfio_ccw_load::StageRow;
use vfio_ccw_load::units::Nanos;

use crate::report::chart::{Axis, Chart, Key, Line, Marks, Point, Series};
use crate::report::number::{Unit, count, percent};
use crate::report::page::section;
use crate::report::scale::Scale;
use crate::report::series::{Group, Job, groups};
use crate::report::table::{Table, cell};
use crate::run::{JobRecord, KEPT};

/// Rates that differ by more go on a logarithmic axis.
const WIDE: f64 = 50.0;

/// Of jobs with a rate in which any request came back.
pub(in crate::report) fn markup(jobs: &[Job]) -> Option<Markup> {
    let is_open = |job: &&Job| job.record.rate_iops.is_some() && job.record.latency.count > 0;
    let open: Vec<&Job> = jobs.iter().filter(is_open).collect();
    if open.is_empty() {
        return None;
    }
    let groups = groups(&open, load, true);
    let rates = || open.iter().map(|job| load(job.record));
    let (least, most) = (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max));
    let x = match most > WIDE * least.max(1.0) {
        true => Scale::decades(rates(), Unit::Count),
        false => Scale::from_zero(rates(), Unit::Count),
    };
    let latencies = (open.iter())
        .flat_map(|job| [job.record.latency.p50_ns as f64, job.record.latency.p99_ns as f64]);
    let is_any_late = open.iter().any(|job| !job.record.kept_its_rate());
    let mut keys = vec![Key::Solid("p99"), Key::Dashed("p50")];
    if is_any_late {
        keys.push(Key::Ring("rate not kept"));
    }
    let chart = Chart {
        id: "latency-chart".to_owned(),
        title: "Latency against offered load".to_owned(),
        is_titled: false,
        description: format!(
            "Median and 99th percentile of {} jobs at {} to {} requests due a second, in {} series.",
            open.len(),
            count(least),
            count(most),
            groups.len()
        ),
        x: Axis { name: "requests due a second, all guests", scale: x },
        y: Axis { name: "latency from when due", scale: Scale::decades(latencies, Unit::Nanos) },
        series: groups.iter().map(series).collect(),
        ties: Vec::new(),
        keys,
    };
    let mut table = Table::new(
        &["series", "job"],
        &["due IOPS", "IOPS", "p50", "p99", "p99.9", "latest began"],
    )
    .and_words(&["rate"]);
    for group in &groups {
        for job in &group.jobs {
            let record = job.record;
            table.row([
                cell(&group.name),
                cell(&job.label),
                cell(count(load(record))),
                cell(count(record.iops)),
                cell(Nanos(record.latency.p50_ns).to_string()),
                cell(Nanos(record.latency.p99_ns).to_string()),
                cell(Nanos(record.latency.p999_ns).to_string()),
                cell(Nanos(record.behind_ns).to_string()),
                cell(if record.kept_its_rate() { "kept" } else { "not kept" }),
            ]);
        }
    }
    let how = html! {
        "To the right more requests are due a second; solid lines are the 99th percentile, dashed ones the median. "
        "Where a line turns upwards a system has reached what it carries. "
        @if is_any_late {
            "A ring marks jobs of which a guest did less than " (percent(KEPT))
            " of what was due: there the latency says how long the job lasted, not how good the system is."
        }
    };
    let content = html! { (chart.markup()) (table.behind()) };
    Some(section("latency", "Latency against load", &how, &content))
}

fn load(record: &JobRecord) -> f64 {
    record.due_iops().unwrap_or(0.0)
}

fn series(group: &Group) -> Series {
    let line = |of: fn(&StageRow) -> u64, what: &str, dashed: bool| Line {
        points: (group.jobs.iter())
            .map(|job| {
                let record = job.record;
                let nanos = of(&record.latency);
                Point {
                    x: load(record),
                    y: nanos as f64,
                    title: format!(
                        "{}: {what} {} at {} a second due, {} a second done, behind at most {}",
                        job.label,
                        Nanos(nanos),
                        count(load(record)),
                        count(record.iops),
                        Nanos(record.behind_ns)
                    ),
                    ringed: !dashed && !record.kept_its_rate(),
                }
            })
            .collect(),
        joined: group.is_line,
        dashed,
        marks: if dashed { Marks::Hollow } else { Marks::Filled },
    };
    Series {
        name: group.name.clone(),
        lines: vec![
            line(|latency| latency.p50_ns, "p50", true),
            line(|latency| latency.p99_ns, "p99", false),
        ],
    }
}
