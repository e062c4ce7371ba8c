//! Where the files are from, and all jobs.

use maud::{Markup, html};
use vfio_ccw_load::units::{Bytes, Nanos};

use crate::machine::Machine;
use crate::report::number::{bytes, count, percent};
use crate::report::page::section;
use crate::report::read::{Content, Source};
use crate::report::series::Job;
use crate::report::table::{Table, cell};
use crate::run::JobRecord;

/// The files with their dates, versions and machines.
pub(in crate::report) fn provenance(sources: &[Source]) -> Markup {
    let mut table = Table::new(&["file", "holds", "began", "version", "machine"], &[]);
    let mut machines: Vec<&Machine> = Vec::new();
    for source in sources {
        let (holds, ran_on) = match &source.content {
            Content::Load(run) => {
                (number_of(run.jobs.len(), "job"), Some((&run.date, &run.version, &run.machine)))
            }
            Content::Compare(run) => (
                number_of(run.rows.len(), "comparison"),
                Some((&run.date, &run.version, &run.machine)),
            ),
            Content::Ratios(rows) => (number_of(rows.len(), "figure"), None),
            Content::Modes(run) => {
                (number_of(run.workloads.len(), "workload") + " of the modes", None)
            }
        };
        let (date, version, machine) = match ran_on {
            Some((date, version, machine)) => {
                if !machines.contains(&machine) {
                    machines.push(machine);
                }
                (date.as_str(), version.as_str(), machine.to_string())
            }
            None => ("not recorded", "–", "–".to_owned()),
        };
        table.row([cell(&source.name), cell(holds), cell(date), cell(version), cell(machine)]);
    }
    html! {
        (table.markup())
        @if machines.len() > 1 {
            p.warning {
                "The files are of " (machines.len()) " different machines or kernels. "
                "Compare only what is of the same."
            }
        }
    }
}

fn number_of(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

/// All jobs.
pub(in crate::report) fn markup(jobs: &[Job], left_out: usize) -> Option<Markup> {
    if jobs.is_empty() {
        return None;
    }
    let mut table = Table::new(
        &["job", "engine", "program", "mode"],
        &[
            "guests",
            "sub-channels",
            "block",
            "reads",
            "due IOPS",
            "IOPS",
            "p50",
            "p99",
            "p99.9",
            "pinned at most",
            "pin hits",
        ],
    )
    .and_words(&["data and requests"]);
    let mut unclean = 0usize;
    for job in jobs {
        let record = job.record;
        let latency = &record.latency;
        let time = |nanos: u64| match latency.count {
            0 => cell("–"),
            _ => cell(Nanos(nanos).to_string()),
        };
        unclean += usize::from(!faults(record).is_empty());
        table.row([
            cell(&job.label),
            cell(&record.engine),
            cell(&record.program),
            cell(record.mode.as_deref().unwrap_or("–")),
            cell(record.guests.to_string()),
            cell(record.subchannels.to_string()),
            cell(Bytes(record.block_bytes.into()).to_string()),
            cell(match &record.access {
                Some(access) => format!("{} %, {access}", record.read_percent),
                None => "–".to_owned(),
            }),
            cell(record.due_iops().map_or_else(|| "–".to_owned(), count)),
            cell(count(record.iops)),
            time(latency.p50_ns),
            time(latency.p99_ns),
            time(latency.p999_ns),
            cell(bytes(record.pinned_peak_bytes)),
            cell(record.hit_rate.map_or_else(|| "–".to_owned(), percent)),
            state(record),
        ]);
    }
    let how = html! {
        "A line is a job, all its guests together. Without due IOPS it is a closed loop, which makes a request "
        "when one has come back; with it, requests are made by the clock, and latency is counted from when each was due. "
        "Pinned is the most of one guest."
    };
    let content = html! {
        @if unclean > 0 {
            p.warning {
                (unclean) " of " (jobs.len()) " jobs "
                (if unclean == 1 { "is" } else { "are" })
                " not clean: data was wrong, or requests failed, were lost or came back twice. "
                "Other figures of such a job mean nothing."
            }
        }
        (table.markup())
        @if left_out > 0 { p.note { (left_out) " jobs more are left out of the whole page. Give fewer files to see them." } }
    };
    Some(section("jobs", "Jobs", &how, &content))
}

/// What went wrong, as words; nothing where nothing did.
fn faults(record: &JobRecord) -> Vec<String> {
    [
        (record.miscompares, "wrong"),
        (record.lost, "lost"),
        (record.duplicate, "doubled"),
        (record.errors, "failed"),
    ]
    .into_iter()
    .filter(|(number, _)| *number > 0)
    .map(|(number, what)| format!("{} {what}", count(number as f64)))
    .collect()
}

fn state(record: &JobRecord) -> Markup {
    let faults = faults(record);
    html! {
        @if !faults.is_empty() {
            strong.bad { "NOT CLEAN: " (faults.join(", ")) }
        } @else if record.checked > 0 {
            "clean, " (count(record.checked as f64)) " reads compared"
        } @else {
            "clean"
        }
        @if !record.kept_its_rate() { ", " strong.bad { "rate not kept" } }
        @if record.stopped { ", " strong.bad { "stopped early" } }
    }
}
