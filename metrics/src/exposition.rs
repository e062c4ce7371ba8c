//! Stage histograms and times of waiting in Prometheus' text format, version 0.0.4.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.

use std::fmt::{self, Write};

use crate::shard::Waiting;
use crate::snapshot::Snapshot;
use crate::stage::{Kind, Stage};
use crate::totals::Totals;

/// The name of the histogram of stage durations.
pub(crate) const STAGE_DURATION: &str = "vfio_ccw_stage_duration_seconds";

pub(crate) const STAGE_DURATION_HELP: &str = "Time that requests spent in each stage. A sample counts for a \
     bound when its histogram bucket, at most 3.2 % wide, lies wholly at or below it.";

/// The name of the times of waiting.
pub(crate) const WAIT: &str = "vfio_ccw_wait_seconds_total";

pub(crate) const WAIT_HELP: &str =
    "Time that shards without work spent waiting for some, by how they waited.";

/// The bounds of the buckets that Prometheus sees: 250 ns to 10 s in steps of 1, 2.5 and 5.
///
/// Round decimal bounds, so that an objective such as "99 % within 1 ms" has a bucket of its own.
/// They are not edges of our own much finer buckets; see [`Snapshot::cumulative`] for what that
/// means: a count is exact within one of those, and never flatters.
pub const PROMETHEUS_BOUNDS_NS: [u64; BOUNDS.len()] = {
    let mut bounds = [0; BOUNDS.len()];
    let mut n = 0;
    while n < bounds.len() {
        bounds[n] = BOUNDS[n].0;
        n += 1;
    }
    bounds
};

/// Each bound in nanoseconds with its `le` label in seconds.
///
/// The labels are spelled as Prometheus 3 normalises them on ingestion, so that a query that names
/// one matches in version 2, which takes them as they are, and in version 3
/// (<https://prometheus.io/docs/prometheus/3.0/migration/>, "le and quantile label values").
const BOUNDS: [(u64, &str); 24] = [
    (250, "2.5e-07"),
    (500, "5e-07"),
    (1_000, "1e-06"),
    (2_500, "2.5e-06"),
    (5_000, "5e-06"),
    (10_000, "1e-05"),
    (25_000, "2.5e-05"),
    (50_000, "5e-05"),
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1.0"),
    (2_500_000_000, "2.5"),
    (5_000_000_000, "5.0"),
    (10_000_000_000, "10.0"),
];

/// Appends the stage durations of all kinds of requests to `text`.
pub(crate) fn write_stage_durations(totals: &Totals, text: &mut String) -> fmt::Result {
    writeln!(text, "# HELP {STAGE_DURATION} {STAGE_DURATION_HELP}")?;
    writeln!(text, "# TYPE {STAGE_DURATION} histogram")?;
    for kind in totals.kinds() {
        for stage in Stage::ALL {
            if let Some(snapshot) = totals.stage_in(kind, stage) {
                let Kind { class, operation } = kind;
                let labels =
                    format!("stage=\"{stage}\",class=\"{class}\",operation=\"{operation}\"");
                write_histogram(snapshot, &labels, text)?;
            }
        }
    }
    Ok(())
}

/// Appends the times of waiting to `text`. The exporter's counters are whole numbers; these are not.
pub(crate) fn write_waits(totals: &Totals, text: &mut String) -> fmt::Result {
    writeln!(text, "# HELP {WAIT} {WAIT_HELP}")?;
    writeln!(text, "# TYPE {WAIT} counter")?;
    for how in Waiting::ALL {
        writeln!(text, "{WAIT}{{how=\"{how}\"}} {}", totals.waited(how) as f64 / 1e9)?;
    }
    Ok(())
}

fn write_histogram(snapshot: &Snapshot, labels: &str, text: &mut String) -> fmt::Result {
    let counts = snapshot.cumulative(&PROMETHEUS_BOUNDS_NS);
    for ((_, le), count) in BOUNDS.iter().zip(counts) {
        writeln!(text, "{STAGE_DURATION}_bucket{{{labels},le=\"{le}\"}} {count}")?;
    }
    let count = snapshot.count();
    let sum_s = snapshot.sum_ns() as f64 / 1e9;
    writeln!(text, "{STAGE_DURATION}_bucket{{{labels},le=\"+Inf\"}} {count}")?;
    writeln!(text, "{STAGE_DURATION}_sum{{{labels}}} {sum_s}")?;
    writeln!(text, "{STAGE_DURATION}_count{{{labels}}} {count}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_label_spells_its_bound_in_seconds() {
        for (ns, le) in BOUNDS {
            assert_eq!(le.parse::<f64>().expect(le), ns as f64 / 1e9, "{le}");
        }
        assert!(PROMETHEUS_BOUNDS_NS.is_sorted());
        assert_eq!(PROMETHEUS_BOUNDS_NS[0], 250);
        assert_eq!(PROMETHEUS_BOUNDS_NS[23], 10_000_000_000);
    }
}
