//! The whole distribution of latencies, as HdrHistogram's plots show it.

use maud::{Markup, html};
use vfio_ccw_load::units::Nanos;

use crate::report::chart::{Axis, Chart, Line, MOST_SERIES, Marks, Point, Series};
use crate::report::number::{Unit, count};
use crate::report::page::section;
use crate::report::scale::Scale;
use crate::report::series::{Group, Job, groups};
use crate::report::table::{Table, cell};

/// Points of a curve for each further nine.
const POINTS: i32 = 10;

/// Nines that are drawn; a histogram that has more requests ends there.
const NINES: i32 = 9;

/// Charts of a kind of loop, where its jobs do not go into one.
const MOST_CHARTS: usize = 6;

/// The latencies of a job, sorted.
struct Latencies {
    /// The highest of each bucket, and how many are in it or before it.
    up_to: Vec<(u64, u64)>,
    count: u64,
}

/// Of jobs with buckets: closed loops and those by the clock apart.
pub(in crate::report) fn markup(jobs: &[Job]) -> Option<Markup> {
    let with_buckets = |is_open: bool| -> Vec<&Job> {
        let is_one = |job: &&Job| {
            job.record.rate_iops.is_some() == is_open
                && job.record.buckets.iter().any(|&(_, number)| number > 0)
        };
        jobs.iter().filter(is_one).collect()
    };
    let (closed, open) = (with_buckets(false), with_buckets(true));
    if closed.is_empty() && open.is_empty() {
        return None;
    }
    let mut table =
        Table::new(&["job"], &["requests", "50 %", "90 %", "99 %", "99.9 %", "99.99 %", "longest"]);
    for job in closed.iter().chain(&open) {
        let latencies = Latencies::of(&job.record.buckets);
        let quantiles = [2.0, 1e1, 1e2, 1e3, 1e4, f64::INFINITY];
        let cells = quantiles.map(|inverse| cell(Nanos(latencies.at(inverse)).to_string()));
        let first = [cell(&job.label), cell(count(latencies.count as f64))];
        table.row(first.into_iter().chain(cells));
    }
    let closed = charts(&closed, "closed", "Closed loop, latency from submission", |jobs| {
        groups(jobs, |record| record.subchannels.into(), false)
    });
    let open = charts(&open, "open", "By the clock, latency from when due", |jobs| {
        groups(jobs, |record| record.due_iops().unwrap_or(0.0), true)
    });
    let how = html! {
        "To the right are fewer and fewer of the slowest requests: from one nine to the next a tenth of those before. A "
        "curve ends at the longest, and a step in it is a pause that a few requests met."
    };
    let content = html! { (closed) (open) (table.behind()) };
    Some(section("distribution", "Latency distribution", &how, &content))
}

/// One chart where the curves of all jobs have room in it, else one for each line of them.
fn charts<'j, 'a>(
    jobs: &[&'j Job<'a>],
    id: &str,
    title: &str,
    lines: fn(&[&'j Job<'a>]) -> Vec<Group<'j, 'a>>,
) -> Markup {
    let groups = match jobs.len() <= MOST_SERIES {
        true => Vec::from_iter((!jobs.is_empty()).then(|| (title.to_owned(), jobs.to_vec()))),
        false => (lines(jobs).into_iter())
            .map(|group| (format!("{title}: {}", group.name), group.jobs))
            .collect(),
    };
    let drawn = &groups[..groups.len().min(MOST_CHARTS)];
    html! {
        @for (number, (title, jobs)) in drawn.iter().enumerate() {
            (chart(format!("distribution-{id}-{number}"), title, jobs).markup())
        }
        @if groups.len() > drawn.len() {
            p.note {
                "The first " (drawn.len()) " of " (groups.len()) " such charts are drawn. The table has more."
            }
        }
    }
}

fn chart(id: String, title: &str, jobs: &[&Job]) -> Chart {
    let drawn: Vec<(&str, Latencies)> = (jobs.iter().take(MOST_SERIES))
        .map(|job| (job.label.as_str(), Latencies::of(&job.record.buckets)))
        .collect();
    let most = drawn.iter().map(|(_, latencies)| latencies.count as f64).fold(1.0, f64::max);
    let ends = drawn
        .iter()
        .flat_map(|(_, latencies)| [latencies.at(1.0) as f64, latencies.at(f64::INFINITY) as f64]);
    let y = Scale::decades(ends, Unit::Nanos);
    let curves =
        drawn.iter().map(|(label, latencies)| ((*label).to_owned(), vec![latencies.line(label)]));
    // Those without a colour are only counted.
    let others = jobs.iter().skip(MOST_SERIES).map(|job| (job.label.clone(), Vec::new()));
    let series = curves.chain(others).map(|(name, lines)| Series { name, lines });
    Chart {
        id,
        title: title.to_owned(),
        is_titled: true,
        description: format!("Latency of {} jobs by percentile.", drawn.len()),
        x: Axis { name: "percentile", scale: Scale::percentiles(most) },
        y: Axis { name: "latency", scale: y },
        series: series.collect(),
        ties: Vec::new(),
        keys: Vec::new(),
    }
}

impl Latencies {
    fn of(buckets: &[(u64, u64)]) -> Self {
        let mut up_to = buckets.to_vec();
        up_to.retain(|&(_, number)| number > 0);
        up_to.sort_unstable();
        let mut count = 0u64;
        for (_, number) in &mut up_to {
            count = count.saturating_add(*number);
            *number = count;
        }
        Self { up_to, count }
    }

    /// The latency at quantile q, which is given as 1 / (1 - q).
    fn at(&self, inverse: f64) -> u64 {
        let rank = (self.count as f64 * (1.0 - 1.0 / inverse)).ceil().max(1.0) as u64;
        let index = self.up_to.partition_point(|&(_, number)| number < rank.min(self.count));
        self.up_to.get(index).map_or(0, |&(nanos, _)| nanos)
    }

    fn line(&self, label: &str) -> Line {
        let last = (self.count as f64).min(10f64.powi(NINES));
        let steps = (0..).map(|step| 10f64.powf(f64::from(step) / f64::from(POINTS)));
        let mut inverses: Vec<f64> = steps.take_while(|inverse| *inverse < last).collect();
        inverses.push(last);
        let point = |inverse: f64| {
            // The one at the end is the longest of all.
            let nanos = self.at(if inverse >= self.count as f64 { f64::INFINITY } else { inverse });
            let quantile = 100.0 - 100.0 / inverse;
            Point {
                x: inverse,
                y: nanos as f64,
                title: format!("{label}: {quantile:.4} % took at most {}", Nanos(nanos)),
                ringed: false,
            }
        };
        Line {
            points: inverses.into_iter().map(point).collect(),
            joined: true,
            dashed: false,
            marks: Marks::Every(POINTS as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_buckets() {
        // In no order, one empty.
        let latencies = Latencies::of(&[(900, 10), (100, 980), (500, 0), (5_000, 1), (300, 9)]);
        assert_eq!(latencies.count, 1000);
        for (inverse, nanos) in
            [(1.0, 100), (2.0, 100), (10.0, 100), (100.0, 900), (1e3, 900), (f64::INFINITY, 5_000)]
        {
            assert_eq!(latencies.at(inverse), nanos, "{inverse}");
        }
        let line = latencies.line("x");
        assert_eq!(line.points.len(), 3 * POINTS as usize + 1);
        assert_eq!(line.points.last().map(|point| point.y), Some(5_000.0));
        assert!(line.points.is_sorted_by(|a, b| a.x < b.x && a.y <= b.y));
    }

    #[test]
    fn nothing_and_too_much_are_no_trouble() {
        assert_eq!([Latencies::of(&[]), Latencies::of(&[(1, 0)])].map(|none| none.at(2.0)), [0, 0]);
        let most = Latencies::of(&[(u64::MAX, u64::MAX), (0, u64::MAX)]);
        assert_eq!(most.count, u64::MAX);
        assert_eq!(most.line("x").points.len(), (NINES * POINTS) as usize + 1);
        assert_eq!(Latencies::of(&[(7, 1)]).line("x").points.len(), 1);
    }
}
