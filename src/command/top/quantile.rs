//! Quantiles from the cumulative buckets of a Prometheus histogram, as `histogram_quantile` has them.

use std::fmt;

use vfio_ccw_load::units::Nanos;

/// Most bounds of a histogram; further ones are not taken.
const MOST_BOUNDS: usize = 1024;

/// A duration below which a share of all requests stayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Quantile {
    /// About so many seconds.
    Seconds(f64),
    /// More seconds than this, the last bound: how many is not known.
    Beyond(f64),
}

impl Quantile {
    /// In nanoseconds; of one beyond the last bound, that bound.
    pub(super) fn ns(self) -> u64 {
        let (Quantile::Seconds(seconds) | Quantile::Beyond(seconds)) = self;
        (seconds * 1e9).round() as u64
    }
}

impl fmt::Display for Quantile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quantile::Seconds(_) => Nanos(self.ns()).fmt(f),
            Quantile::Beyond(bound) => f.pad(&format!("> {bound} s")),
        }
    }
}

/// Buckets by their upper bounds, in seconds; each counts all that lie below it, too.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Buckets(Vec<(f64, f64)>);

impl Buckets {
    /// Adds a bucket, or to the one that is there with this bound.
    pub(super) fn add(&mut self, bound: f64, count: f64) {
        if bound.is_nan() || !count.is_finite() {
            return;
        }
        match self.0.binary_search_by(|(other, _)| other.total_cmp(&bound)) {
            Ok(at) => self.0[at].1 += count,
            Err(at) if self.0.len() < MOST_BOUNDS => self.0.insert(at, (bound, count)),
            Err(_) => {}
        }
    }

    /// How many there were in all. `None` without the bucket that has no bound.
    pub(super) fn count(&self) -> Option<f64> {
        self.0.last().filter(|(bound, _)| *bound == f64::INFINITY).map(|(_, count)| *count)
    }

    /// The quantile `q`, 0 to 1, by linear interpolation inside a bucket. `None` where there is nothing.
    pub(super) fn quantile(&self, q: f64) -> Option<Quantile> {
        let total = self.count().filter(|total| *total > 0.0)?;
        let rank = q * total;
        let (mut lower, mut below) = (0.0, 0.0_f64);
        for &(bound, count) in &self.0 {
            // Counts that were not taken at one moment may fall from a bound to the next.
            let count = count.max(below);
            if bound == f64::INFINITY {
                break;
            }
            if count >= rank && count > 0.0 {
                let inside = count - below;
                let part = if inside > 0.0 { (rank - below) / inside } else { 1.0 };
                return Some(Quantile::Seconds(lower + (bound - lower) * part.clamp(0.0, 1.0)));
            }
            (lower, below) = (bound, count);
        }
        Some(Quantile::Beyond(lower))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use vfio_ccw_metrics::PROMETHEUS_BOUNDS_NS;

    use super::*;

    fn buckets(samples: &[u64]) -> Buckets {
        let mut buckets = Buckets::default();
        for bound in PROMETHEUS_BOUNDS_NS {
            let count = samples.iter().filter(|ns| **ns <= bound).count();
            buckets.add(bound as f64 / 1e9, count as f64);
        }
        buckets.add(f64::INFINITY, samples.len() as f64);
        buckets
    }

    #[test]
    fn values_lie_evenly_in_a_bucket() {
        let hundred = buckets(&[1_500; 100]);
        assert_eq!(hundred.quantile(0.5).unwrap().ns(), 1_750);
        assert_eq!(hundred.quantile(1.0).unwrap().ns(), 2_500);
        assert_eq!(buckets(&[100; 4]).quantile(0.5).unwrap().ns(), 125);
    }

    #[test]
    fn beyond_the_last_bound_nothing_is_known() {
        let mut samples = vec![1_000; 90];
        samples.extend([20_000_000_000; 10]);
        let buckets = buckets(&samples);
        assert_eq!(buckets.quantile(0.99), Some(Quantile::Beyond(10.0)));
        assert_eq!(buckets.quantile(0.99).unwrap().to_string(), "> 10 s");
        assert!(matches!(buckets.quantile(0.9), Some(Quantile::Seconds(_))));
    }

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Buckets::default().quantile(0.5), None);
        assert_eq!(buckets(&[]).quantile(0.5), None);
        let mut unbounded = Buckets::default();
        unbounded.add(1.0, 5.0);
        assert_eq!(unbounded.quantile(0.5), None);
        unbounded.add(f64::NAN, 5.0);
        unbounded.add(f64::INFINITY, f64::NAN);
        assert_eq!(unbounded.count(), None);
    }

    proptest! {
        #[test]
        fn an_exact_quantile_lies_in_the_same_bucket(
            samples in vec(0u64..9_000_000_000, 1..200),
            q in 0.01..1.0f64,
        ) {
            let mut sorted = samples.clone();
            sorted.sort_unstable();
            let rank = ((q * samples.len() as f64).ceil() as usize).clamp(1, samples.len());
            let exact = sorted[rank - 1];
            let bucket = |ns: u64| PROMETHEUS_BOUNDS_NS.partition_point(|bound| *bound < ns);
            let found = buckets(&samples).quantile(q).unwrap().ns();
            prop_assert!(bucket(found).abs_diff(bucket(exact)) <= 1, "{found} {exact}");
        }

        #[test]
        fn any_counts_have_a_quantile_or_none(
            pairs in vec((any::<f64>(), any::<f64>()), 0..50),
            q in 0.0..=1.0f64,
        ) {
            let mut buckets = Buckets::default();
            for (bound, count) in pairs {
                buckets.add(bound, count);
            }
            let _ = buckets.quantile(q).map(|quantile| (quantile.ns(), quantile.to_string()));
        }
    }
}
