//! A histogram's numbers at one moment: merging, subtracting and asking for quantiles.

use crate::histogram::{BUCKETS, bucket_of, bucket_top};

/// The numbers of one or more [histograms](crate::Histogram) at one moment.
///
/// All durations are nanoseconds.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    buckets: Box<[u64; BUCKETS]>,
    sum_ns: u64,
    max_ns: u64,
}

impl Snapshot {
    pub(crate) fn from_parts(buckets: Box<[u64; BUCKETS]>, sum_ns: u64, max_ns: u64) -> Self {
        Self { buckets, sum_ns, max_ns }
    }

    /// How many samples there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum of all samples.
    ///
    /// Exact. It wraps after 584 years of summed time.
    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The longest sample, or 0 if there is none.
    ///
    /// Exact, but for a [difference](Self::minus) that did not set a new maximum.
    #[must_use]
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The duration that the fraction `q` of all samples did not exceed, or 0 if there is none.
    ///
    /// `q` outside 0 to 1 is taken as the nearer end, and not-a-number as 0. The answer is the
    /// upper end of the bucket in which the sample of that rank lies, and never above the longest
    /// sample: at most 3.2 % too long and never too short (within the
    /// [range](crate::LIMIT_NS)).
    #[must_use]
    pub fn quantile(&self, q: f64) -> u64 {
        let count = self.count();
        // The float-to-integer cast saturates, and takes not-a-number to 0.
        let rank = ((q * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        for (bucket, samples) in self.buckets.iter().enumerate() {
            seen += samples;
            if seen >= rank {
                return bucket_top(bucket).min(self.max_ns);
            }
        }
        0
    }

    /// For each bound, how many samples are known to be at most that long.
    ///
    /// A bucket counts for a bound when all of it lies at or below the bound. Where a bound falls
    /// inside a bucket, the samples of that one bucket go to the next bound: they are at most 3.2 %
    /// shorter than the bound that missed them. So the counts never make a sample look faster than
    /// it was. Bounds may come in any order.
    #[must_use]
    pub fn cumulative(&self, bounds_ns: &[u64]) -> Vec<u64> {
        let mut upto = [0; BUCKETS];
        let mut seen = 0;
        for (sum, samples) in upto.iter_mut().zip(self.buckets.iter()) {
            seen += samples;
            *sum = seen;
        }
        let known_within = |bound: &u64| {
            let bucket = bucket_of(*bound);
            if bucket_top(bucket) <= *bound {
                upto[bucket]
            } else if bucket > 0 {
                upto[bucket - 1]
            } else {
                0
            }
        };
        bounds_ns.iter().map(known_within).collect()
    }

    /// Adds the samples of `other`, as if one histogram had recorded both.
    pub fn merge(&mut self, other: &Self) {
        for (samples, more) in self.buckets.iter_mut().zip(other.buckets.iter()) {
            *samples += more;
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// The samples that came after `earlier`, a snapshot of the same histograms.
    ///
    /// The maximum is exact if it rose since; otherwise it is the upper end of the highest bucket
    /// with a new sample, at most 3.2 % too long. If `earlier` is in fact later, or of other
    /// histograms, the counts that would be negative are 0.
    #[must_use]
    pub fn minus(&self, earlier: &Self) -> Self {
        let mut buckets = self.buckets.clone();
        for (samples, before) in buckets.iter_mut().zip(earlier.buckets.iter()) {
            *samples = samples.saturating_sub(*before);
        }
        let highest = buckets.iter().rposition(|&samples| samples > 0);
        // A new maximum lies in that very bucket, so the lesser of the two is exactly it.
        let max_ns = highest.map_or(0, |bucket| bucket_top(bucket).min(self.max_ns));
        Self { buckets, sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns), max_ns }
    }

    /// How many samples each bucket has.
    #[cfg(feature = "protobuf")]
    pub(crate) fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// Writes the summary under `name`: a thousand buckets would drown every log line.
    pub(crate) fn fmt_as(&self, name: &str, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct(name)
            .field("count", &self.count())
            .field("sum_ns", &self.sum_ns)
            .field("p50_ns", &self.quantile(0.5))
            .field("p99_ns", &self.quantile(0.99))
            .field("max_ns", &self.max_ns)
            .finish_non_exhaustive()
    }
}

impl Default for Snapshot {
    /// No samples.
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), sum_ns: 0, max_ns: 0 }
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.fmt_as("Snapshot", f)
    }
}

#[cfg(all(test, feature = "record"))]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::{Histogram, LIMIT_NS, PROMETHEUS_BOUNDS_NS};

    fn recorded(samples: &[u64]) -> Snapshot {
        let histogram = Histogram::new();
        samples.iter().for_each(|&ns| histogram.record(ns));
        histogram.snapshot()
    }

    /// Durations of every magnitude, as likely short as long, now and then beyond the range.
    fn durations() -> impl Strategy<Value = Vec<u64>> {
        vec((any::<u64>(), 26..60_u32).prop_map(|(ns, shift)| ns >> shift), 0..400)
    }

    #[test]
    fn an_empty_snapshot_answers_zero_to_everything() {
        let empty = Snapshot::default();
        assert_eq!((empty.count(), empty.sum_ns(), empty.max_ns()), (0, 0, 0));
        assert_eq!(empty.quantile(0.99), 0);
        assert_eq!(empty.cumulative(&[0, 1, u64::MAX]), [0, 0, 0]);
    }

    #[test]
    fn a_single_sample_is_every_quantile_exactly() {
        let one = recorded(&[123_456_789]);
        for q in [0.0, 0.5, 0.999, 1.0, -3.0, 7.0, f64::NAN, f64::INFINITY] {
            assert_eq!(one.quantile(q), 123_456_789, "q = {q}");
        }
    }

    #[test]
    fn samples_beyond_the_range_keep_count_sum_and_maximum() {
        let long = recorded(&[LIMIT_NS, 3 * LIMIT_NS, 1000]);
        assert_eq!(long.count(), 3);
        assert_eq!(long.sum_ns(), 4 * LIMIT_NS + 1000);
        assert_eq!(long.max_ns(), 3 * LIMIT_NS);
        assert_eq!(long.quantile(1.0), 3 * LIMIT_NS);
        assert_eq!(long.cumulative(&[LIMIT_NS - 1, LIMIT_NS, u64::MAX]), [1, 1, 3]);
    }

    #[test]
    fn a_difference_without_a_new_maximum_bounds_it_by_the_bucket() {
        let earlier = recorded(&[1_000_000]);
        let later = recorded(&[1_000_000, 1000]);
        let between = later.minus(&earlier);
        assert_eq!((between.count(), between.sum_ns()), (1, 1000));
        assert!((1000..=1031).contains(&between.max_ns()), "{}", between.max_ns());
        assert_eq!(earlier.minus(&later).count(), 0);
    }

    #[test]
    fn a_difference_with_a_new_maximum_has_it_exactly() {
        let earlier = recorded(&[LIMIT_NS]);
        let later = recorded(&[LIMIT_NS, LIMIT_NS + 5, 1000]);
        assert_eq!(later.minus(&earlier).max_ns(), LIMIT_NS + 5);
    }

    proptest! {
        #[test]
        fn a_quantile_is_the_sorted_sample_within_one_bucket(
            mut samples in durations(), q in 0.0..=1.0_f64,
        ) {
            let snapshot = recorded(&samples);
            samples.sort_unstable();
            let Some(&longest) = samples.last() else { return Ok(()) };
            let rank = ((q * samples.len() as f64).ceil() as usize).max(1);
            let exact = samples[rank - 1];
            let answer = snapshot.quantile(q);
            prop_assert!(answer >= exact && answer <= longest);
            if exact < LIMIT_NS {
                prop_assert!(answer - exact <= exact / 32, "{answer} for {exact}");
            }
            prop_assert_eq!(snapshot.max_ns(), longest);
            prop_assert_eq!(snapshot.sum_ns(), samples.iter().sum::<u64>());
            prop_assert_eq!(snapshot.count(), samples.len() as u64);
        }

        #[test]
        fn cumulative_counts_agree_with_the_samples_within_one_bucket(samples in durations()) {
            let snapshot = recorded(&samples);
            let counts = snapshot.cumulative(&PROMETHEUS_BOUNDS_NS);
            prop_assert!(counts.is_sorted());
            for (&bound, &count) in PROMETHEUS_BOUNDS_NS.iter().zip(&counts) {
                let within = |limit: u64| samples.iter().filter(|&&ns| ns <= limit).count() as u64;
                prop_assert!(count <= within(bound), "le {bound} flatters");
                prop_assert!(count >= within(bound - bound / 32 - 1), "le {bound} misses a bucket");
            }
            prop_assert_eq!(snapshot.cumulative(&[u64::MAX])[0], snapshot.count());
        }

        #[test]
        fn merging_is_recording_both(left in durations(), right in durations()) {
            let mut merged = recorded(&left);
            merged.merge(&recorded(&right));
            prop_assert_eq!(merged, recorded(&[left, right].concat()));
        }

        #[test]
        fn subtracting_leaves_what_came_after(before in durations(), after in durations()) {
            let earlier = recorded(&before);
            let later = recorded(&[before, after.clone()].concat());
            let between = later.minus(&earlier);
            let exact = recorded(&after);
            prop_assert_eq!(&between.buckets, &exact.buckets);
            prop_assert_eq!(between.sum_ns(), exact.sum_ns());
            prop_assert!(between.max_ns() >= exact.max_ns());
            prop_assert!(between.max_ns() <= later.max_ns());
            if exact.max_ns() > earlier.max_ns() {
                prop_assert_eq!(between.max_ns(), exact.max_ns());
            }
        }
    }
}
