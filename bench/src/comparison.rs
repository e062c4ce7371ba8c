//! Two loads, in turns: what one is to the other, and whether that can be chance.
//!
//! A machine that is shared slows down and speeds up from second to second, by more than most changes to a program do. So
//! the two run one right after the other, round by round, and what counts is the ratio within each round. Its median has a
//! bootstrap interval; where 1 is outside of it, the two differ.

use crate::ratio::{Interval, interval_with, median};
use crate::run::{CompareRow, JobRecord, Verdict};

/// How often an interval has the true ratio in it. Of a hundred comparisons of a thing with itself, one finds a
/// difference.
pub const CONFIDENCE: f64 = 0.99;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Requests a second.
    Iops,
    /// Median of the latency.
    P50,
    /// 99th percentile of the latency.
    P99,
}

impl Measure {
    /// All, the one that is judged by first.
    pub const ALL: [Measure; 3] = [Measure::Iops, Measure::P50, Measure::P99];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Measure::Iops => "iops",
            Measure::P50 => "p50_ns",
            Measure::P99 => "p99_ns",
        }
    }

    /// Its value in a round.
    pub fn of(self, record: &JobRecord) -> f64 {
        match self {
            Measure::Iops => record.iops,
            // A histogram counts a time of 0 as 0.
            Measure::P50 => record.latency.p50_ns.max(1) as f64,
            Measure::P99 => record.latency.p99_ns.max(1) as f64,
        }
    }

    /// What `interval` of other / base says.
    fn verdict(self, Interval { low, high }: Interval) -> Verdict {
        let (more, less) = match self {
            Measure::Iops => (Verdict::Better, Verdict::Worse),
            Measure::P50 | Measure::P99 => (Verdict::Worse, Verdict::Better),
        };
        if low > 1.0 {
            more
        } else if high < 1.0 {
            less
        } else {
            Verdict::Same
        }
    }
}

/// The rounds of one load.
#[derive(Debug, Clone, Default)]
pub struct Rounds {
    /// What it is called.
    pub name: String,
    /// A record a round.
    pub records: Vec<JobRecord>,
}

/// What `other` is to `base`, measure by measure: the first rounds that both have. The same for the same `seed`.
/// Empty where a measure is 0 in some round, as where nothing completed.
pub fn judge(base: &Rounds, other: &Rounds, seed: u64) -> Vec<CompareRow> {
    let judge = |measure: Measure| {
        let values = |rounds: &Rounds| rounds.records.iter().map(|it| measure.of(it)).collect();
        judge_values(measure, values(base), values(other), seed).map(|judged| CompareRow {
            base: base.name.clone(),
            other: other.name.clone(),
            measure: measure.name().to_owned(),
            ..judged
        })
    };
    Measure::ALL.into_iter().filter_map(judge).collect()
}

fn judge_values(
    measure: Measure,
    mut base: Vec<f64>,
    mut other: Vec<f64>,
    seed: u64,
) -> Option<CompareRow> {
    let mut ratios: Vec<f64> = base.iter().zip(&other).map(|(base, other)| other / base).collect();
    if ratios.iter().any(|ratio| !ratio.is_finite() || *ratio <= 0.0) {
        return None;
    }
    let interval = interval_with(CONFIDENCE, &ratios, seed);
    Some(CompareRow {
        base: String::new(),
        other: String::new(),
        measure: measure.name().to_owned(),
        base_value: median(&mut base)?,
        other_value: median(&mut other)?,
        ratio: median(&mut ratios)?,
        low: interval.low,
        high: interval.high,
        verdict: measure.verdict(interval),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_ccw_load::random::SplitMix64;

    /// Rounds of a machine that drifts: both of a round are near each other, rounds are not.
    fn rounds(other: f64, seed: u64) -> (Vec<f64>, Vec<f64>) {
        let mut random = SplitMix64::new(seed);
        let drift: Vec<f64> = (0..31).map(|_| 1e6 * (0.6 + 0.8 * random.unit())).collect();
        let mut noisy = |value: f64| value * (0.96 + 0.08 * random.unit());
        drift.iter().map(|&speed| (noisy(speed), noisy(speed * other))).unzip()
    }

    fn verdict(measure: Measure, other: f64, seed: u64) -> Verdict {
        let (base, other) = rounds(other, seed);
        judge_values(measure, base, other, seed).unwrap().verdict
    }

    #[test]
    fn a_tenth_is_found_through_drift_that_is_larger() {
        for seed in 0..50 {
            assert_eq!(verdict(Measure::Iops, 0.9, seed), Verdict::Worse, "{seed}");
            assert_eq!(verdict(Measure::Iops, 1.1, seed), Verdict::Better, "{seed}");
            assert_eq!(verdict(Measure::P50, 0.9, seed), Verdict::Better, "{seed}");
            assert_eq!(verdict(Measure::P99, 1.1, seed), Verdict::Worse, "{seed}");
        }
    }

    #[test]
    fn a_thing_is_the_same_as_itself_about_as_often_as_is_said() {
        let found = (0..1000).filter(|&seed| verdict(Measure::Iops, 1.0, seed) != Verdict::Same);
        let found = found.count();
        // A percentile bootstrap of 31 values covers a little less than it says.
        assert!((1..=25).contains(&found), "{found} of 1000");
    }

    #[test]
    fn nothing_is_said_where_nothing_completed() {
        assert!(judge_values(Measure::Iops, vec![0.0, 1.0], vec![1.0, 1.0], 1).is_none());
        assert!(judge_values(Measure::Iops, vec![1.0], vec![0.0], 1).is_none());
        assert!(judge_values(Measure::Iops, Vec::new(), Vec::new(), 1).is_none());
    }
}
