//! What pinned memory buys.

use maud::{Markup, html};
use vfio_ccw_load::units::{Bytes, Nanos};

use crate::report::chart::{Axis, Chart, Key, Line, MOST_SERIES, Marks, Point, Series, Tie};
use crate::report::number::{Unit, count, percent};
use crate::report::page::section;
use crate::report::read::{Content, Source};
use crate::report::scale::Scale;
use crate::report::series::Job;
use crate::report::table::{MOST_ROWS, Table, cell};

/// Less than a page is not pinned.
const PAGE: f64 = 4096.0;

/// The modes that there are, always in the same colours.
const MODES: [&str; 3] = ["pinned", "on-demand", "cached"];

/// One mode under one load.
struct Measured {
    load: String,
    mode: String,
    pinned: u64,
    p99_ns: u64,
    iops: f64,
    hit_rate: Option<f64>,
}

/// Of jobs with a mode that kept their rate, if they had one, and of comparisons of the modes.
pub(in crate::report) fn markup(jobs: &[Job], sources: &[Source]) -> Option<Markup> {
    let (measured, ties) = all(jobs, sources);
    if measured.is_empty() {
        return None;
    }
    let (pinned, p99) = (
        || measured.iter().map(|one| one.pinned as f64),
        || measured.iter().map(|one| one.p99_ns as f64),
    );
    let is_tied = !ties.is_empty();
    // For the names of workloads, to the right of what pins most.
    let room = is_tied.then(|| pinned().fold(PAGE, f64::max) * 8.0);
    let chart = Chart {
        id: "footprint-chart".to_owned(),
        title: "Pinned memory against latency".to_owned(),
        is_titled: false,
        description: format!(
            "99th percentile of latency and most pinned memory of {} loads.",
            measured.len()
        ),
        x: Axis {
            name: "pinned at most, each guest",
            scale: Scale::doublings(pinned().chain(room), PAGE, Unit::Bytes),
        },
        y: Axis { name: "p99 latency", scale: Scale::decades(p99(), Unit::Nanos) },
        series: series(&measured),
        ties,
        keys: if is_tied { vec![Key::Tie("one workload")] } else { Vec::new() },
    };
    let mut table =
        Table::new(&["load", "mode"], &["pinned at most", "p99", "IOPS", "pages pinned already"]);
    for one in &measured {
        table.row([
            cell(&one.load),
            cell(&one.mode),
            cell(Bytes(one.pinned).to_string()),
            cell(Nanos(one.p99_ns).to_string()),
            cell(count(one.iops)),
            cell(one.hit_rate.map_or_else(|| "–".to_owned(), percent)),
        ]);
    }
    let how = html! {
        "Left is less pinned memory, down is less latency, both logarithmic. Mode " code { "pinned" }
        " pins the whole guest; the others buy back memory at the price of pinning while requests wait. "
        @if jobs.iter().any(|job| !job.record.kept_its_rate()) {
            "Jobs that did not keep their rate are left out. "
        }
        @if is_tied { "A grey line joins the modes under one workload of " code { "modes" } ". " }
        @if pinned().any(|bytes| bytes < PAGE) { "What had no page pinned stands at the left edge." }
    };
    let content = html! { (chart.markup()) (table.behind()) };
    Some(section("footprint", "Footprint against latency", &how, &content))
}

/// All points, at most as many as a table has rows, and what ties some of them.
fn all(jobs: &[Job], sources: &[Source]) -> (Vec<Measured>, Vec<Tie>) {
    let of_job = |job: &Job| {
        let is_told = job.record.kept_its_rate() && job.record.latency.count > 0;
        is_told.then_some(Measured {
            load: job.label.clone(),
            mode: job.record.mode.clone()?,
            pinned: job.record.pinned_peak_bytes?,
            p99_ns: job.record.latency.p99_ns,
            iops: job.record.iops,
            hit_rate: job.record.hit_rate,
        })
    };
    let mut measured: Vec<Measured> = jobs.iter().filter_map(of_job).take(MOST_ROWS).collect();
    let mut ties = Vec::new();
    let runs = || {
        sources.iter().filter_map(|source| match &source.content {
            Content::Modes(run) => Some((source, run)),
            _ => None,
        })
    };
    let is_one_file = runs().count() == 1;
    for (source, workload) in runs()
        .flat_map(|(source, run)| run.workloads.iter().map(move |workload| (source, workload)))
    {
        if measured.len() >= MOST_ROWS {
            break;
        }
        let load = match is_one_file {
            true => workload.access.clone(),
            false => format!("{} ({})", workload.access, source.name),
        };
        let rows = &workload.modes[..workload.modes.len().min(MODES.len())];
        measured.extend(rows.iter().map(|row| Measured {
            load: load.clone(),
            mode: row.mode.clone(),
            pinned: row.pinned_peak_bytes,
            p99_ns: row.p99_ns,
            iops: row.iops,
            hit_rate: Some(row.hit_rate),
        }));
        if ties.len() < MOST_SERIES && rows.len() > 1 {
            let mut points: Vec<(f64, f64)> = (rows.iter())
                .map(|row| (row.pinned_peak_bytes as f64, row.p99_ns as f64))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            ties.push(Tie { name: load, points });
        }
    }
    (measured, ties)
}

fn series(measured: &[Measured]) -> Vec<Series> {
    let mut names: Vec<&str> = MODES.to_vec();
    for one in measured {
        if !names.contains(&one.mode.as_str()) {
            names.push(&one.mode);
        }
    }
    let point = |one: &Measured| Point {
        x: one.pinned as f64,
        y: one.p99_ns as f64,
        title: format!(
            "{}, {}: {} pinned at most, p99 {}, {} a second",
            one.load,
            one.mode,
            Bytes(one.pinned),
            Nanos(one.p99_ns),
            count(one.iops)
        ),
        ringed: false,
    };
    let line = |name: &str| Line {
        points: measured.iter().filter(|one| one.mode == name).map(point).collect(),
        joined: false,
        dashed: false,
        marks: Marks::Filled,
    };
    names
        .into_iter()
        .map(|name| Series { name: name.to_owned(), lines: vec![line(name)] })
        .collect()
}
