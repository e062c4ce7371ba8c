//! Throughput against subchannels: what more requests in flight are worth.

use maud::{Markup, html};
use vfio_ccw_load::units::Nanos;

use crate::report::chart::{Axis, Chart, Line, Marks, Point, Series};
use crate::report::number::{Unit, count};
use crate::report::page::section;
use crate::report::scale::Scale;
use crate::report::series::{Group, Job, groups};
use crate::report::table::{Table, cell};
use crate::run::JobRecord;

/// Of closed loops, where some differ in nothing but their subchannels.
pub(in crate::report) fn markup(jobs: &[Job]) -> Option<Markup> {
    let closed: Vec<&Job> = jobs.iter().filter(|job| job.record.rate_iops.is_none()).collect();
    let groups: Vec<Group> = (groups(&closed, subchannels, false).into_iter())
        .filter(|group| {
            // They are in order.
            let ends = (group.jobs.first(), group.jobs.last());
            matches!(ends, (Some(a), Some(b)) if subchannels(a.record) != subchannels(b.record))
        })
        .collect();
    if groups.is_empty() {
        return None;
    }
    let records = || groups.iter().flat_map(|group| &group.jobs).map(|job| job.record);
    let chart = Chart {
        id: "throughput-chart".to_owned(),
        title: "Throughput against subchannels".to_owned(),
        is_titled: false,
        description: format!(
            "Requests a second of {} closed loops, in {} series.",
            records().count(),
            groups.len()
        ),
        x: Axis {
            name: "subchannels of a guest",
            scale: Scale::doublings(records().map(subchannels), 1.0, Unit::Count),
        },
        y: Axis {
            name: "requests a second, all guests",
            scale: Scale::from_zero(records().map(|record| record.iops), Unit::Count),
        },
        series: groups.iter().map(series).collect(),
        ties: Vec::new(),
        keys: Vec::new(),
    };
    let mut table = Table::new(&["series", "job"], &["subchannels", "IOPS", "MiB/s", "p50", "p99"]);
    for group in &groups {
        for job in &group.jobs {
            let record = job.record;
            table.row([
                cell(&group.name),
                cell(&job.label),
                cell(record.subchannels.to_string()),
                cell(count(record.iops)),
                cell(count(record.mib_per_s)),
                cell(Nanos(record.latency.p50_ns).to_string()),
                cell(Nanos(record.latency.p99_ns).to_string()),
            ]);
        }
    }
    let how = html! {
        "Each subchannel has one request in flight, and each step to the right doubles them. Where a line is flat, "
        "more of them only wait longer."
        @if groups.iter().any(|group| !group.is_line) {
            " Points are not joined where a series has several at one place."
        }
    };
    let content = html! { (chart.markup()) (table.behind()) };
    Some(section("throughput", "Throughput against subchannels", &how, &content))
}

fn subchannels(record: &JobRecord) -> f64 {
    record.subchannels.into()
}

fn series(group: &Group) -> Series {
    let point = |job: &&Job| Point {
        x: subchannels(job.record),
        y: job.record.iops,
        title: format!(
            "{}: {} a second with {} subchannels, p99 {}",
            job.label,
            count(job.record.iops),
            job.record.subchannels,
            Nanos(job.record.latency.p99_ns)
        ),
        ringed: false,
    };
    Series {
        name: group.name.clone(),
        lines: vec![Line {
            points: group.jobs.iter().map(point).collect(),
            joined: group.is_line,
            dashed: false,
            marks: Marks::Filled,
        }],
    }
}
