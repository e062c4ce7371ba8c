//! Native histograms: our buckets as Prometheus' exponential ones.
//!
//! Specification: <https://prometheus.io/docs/specs/native_histograms/>. Bucket `i` of schema 3 takes
//! what is longer than 2^((i-1)/8) seconds and no longer than 2^(i/8): eight to each power of two, each
//! 9.1 % wide. Ours, 32 to each power of two, are finer, but their edges lie elsewhere (powers of two of
//! nanoseconds), so one of ours may reach into two of those. It goes to the one that holds its upper
//! end: no sample looks faster than it was, and one in an upper part looks at most 3.2 % slower before
//! the exponential bucket widens it.

use std::sync::LazyLock;

use crate::histogram::{BUCKETS, LIMIT_NS, bucket_top};
use crate::snapshot::Snapshot;

/// Says that a power of two has eight buckets.
pub(crate) const SCHEMA: i32 = 3;

/// Buckets of one power of two.
const STEPS: usize = 1 << SCHEMA;

/// What is not longer lies in the zero bucket: 2^-30 s, less than a nanosecond, so samples of 0 alone.
pub(crate) const ZERO_THRESHOLD: f64 = 1.0 / (1_u64 << 30) as f64;

/// The bucket of bucket `n` of ours, but for the first (samples of 0) and the last.
static PLACES: LazyLock<[i32; BUCKETS]> = LazyLock::new(|| {
    let steps = steps();
    std::array::from_fn(|bucket| place_of(bucket_top(bucket), &steps))
});

/// The exponential buckets of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NativeHistogram {
    /// Samples of 0.
    pub(crate) zero_count: u64,
    /// Runs of neighbouring buckets that have samples.
    pub(crate) spans: Vec<Span>,
    /// By how many samples each bucket of the runs has more than the one before; the first, than none.
    pub(crate) deltas: Vec<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Empty buckets since the end of the run before; of the first run, the number of its first bucket.
    pub(crate) offset: i32,
    /// Buckets in the run.
    pub(crate) length: u32,
}

impl NativeHistogram {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let [zero_count, counts @ .., beyond] = snapshot.buckets();
        let places = PLACES[1..].iter().copied().zip(counts.iter().copied());
        // The last bucket of ours has no upper end; no sample in it was longer than the maximum. A
        // snapshot beside the writer may have the sample and not yet the maximum.
        let longest = place_of(snapshot.max_ns().max(LIMIT_NS), &steps());

        let mut buckets: Vec<(i32, u64)> = Vec::new();
        // Places never fall from one of our buckets to the next, so those that share one are neighbours.
        for (place, samples) in places.chain([(longest, *beyond)]).filter(|&(_, n)| n > 0) {
            match buckets.last_mut() {
                Some((last, sum)) if *last == place => *sum += samples,
                _ => buckets.push((place, samples)),
            }
        }

        let mut native = Self { zero_count: *zero_count, spans: Vec::new(), deltas: Vec::new() };
        let mut end = 0;
        let mut before = 0;
        for (place, samples) in buckets {
            match native.spans.last_mut() {
                Some(span) if place == end => span.length += 1,
                _ => native.spans.push(Span { offset: place - end, length: 1 }),
            }
            // Two's complement: right for every pair of counts below 2^63.
            native.deltas.push(samples.wrapping_sub(before).cast_signed());
            (end, before) = (place + 1, samples);
        }
        native
    }
}

/// The upper ends of the buckets from 0.5 exclusive to 1 inclusive, the first at 0.5 itself.
///
/// Square roots are rounded alike on every machine, which no standard asks of powers and logarithms.
fn steps() -> [f64; STEPS] {
    let half = 2.0_f64.sqrt();
    let quarter = half.sqrt();
    let eighth = quarter.sqrt();
    std::array::from_fn(|step| {
        let part = |bit: usize, root: f64| if step & bit != 0 { root } else { 1.0 };
        0.5 * part(4, half) * part(2, quarter) * part(1, eighth)
    })
}

/// The bucket that takes a duration of `ns` nanoseconds, which are not 0.
fn place_of(ns: u64, steps: &[f64; STEPS]) -> i32 {
    let seconds = ns as f64 / 1e9;
    // In [0.5, 1) times two to the `exponent`. No duration is so short that it were subnormal.
    const MANTISSA: u32 = f64::MANTISSA_DIGITS - 1;
    let bits = seconds.to_bits();
    let exponent = (bits >> MANTISSA) as i32 - 1022;
    let fraction = f64::from_bits(bits & ((1 << MANTISSA) - 1) | 1022 << MANTISSA);
    let step = steps.partition_point(|end| *end < fraction);
    (exponent - 1) * STEPS as i32 + step as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition, with powers instead of a search.
    fn upper_end(place: i32) -> f64 {
        (f64::from(place) / 8.0).exp2()
    }

    #[test]
    fn each_bucket_of_ours_goes_where_its_upper_end_lies() {
        for bucket in 1..BUCKETS - 1 {
            let top = bucket_top(bucket) as f64 / 1e9;
            let place = PLACES[bucket];
            assert!(PLACES[bucket - 1] <= place || bucket == 1);
            // Nothing but powers of two lies on an end, and those are exact.
            assert!(top <= upper_end(place), "{top} above {place}");
            assert!(top > upper_end(place - 1), "{top} below {place}");
        }
    }

    #[test]
    fn powers_of_two_are_the_upper_ends_of_their_buckets() {
        let steps = steps();
        for (ns, place) in
            [(1_000_000_000, 0), (500_000_000, -8), (2_000_000_000, 8), (1_953_125, -72)]
        {
            assert_eq!(place_of(ns, &steps), place);
            assert_eq!(place_of(ns + 1, &steps), place + 1);
        }
        assert_eq!(place_of(u64::MAX, &steps), 273);
        assert_eq!(place_of(1, &steps), -239);
        const { assert!(ZERO_THRESHOLD < 1e-9) };
    }

    #[cfg(feature = "record")]
    #[test]
    fn spans_and_deltas_tell_of_every_sample() {
        let histogram = crate::Histogram::new();
        let none = NativeHistogram { zero_count: 0, spans: vec![], deltas: vec![] };
        assert_eq!(NativeHistogram::of(&histogram.snapshot()), none);
        histogram.record_for(0, 5);
        histogram.record_for(1_000_000_000, 3);
        histogram.record_for(1_060_000_000, 1);
        histogram.record_for(3 * LIMIT_NS, 7);
        let native = NativeHistogram::of(&histogram.snapshot());
        // The bucket of ours that has 1 s reaches beyond it; 3 * 67.6 s is 2^7.66.
        let spans = vec![Span { offset: 1, length: 1 }, Span { offset: 60, length: 1 }];
        let expected = NativeHistogram { zero_count: 5, spans, deltas: vec![4, 3] };
        assert_eq!(native, expected);
    }

    #[cfg(feature = "record")]
    #[test]
    fn a_sample_that_is_not_yet_the_maximum_lies_beyond_the_range_all_the_same() {
        let mut buckets = Box::new([0; BUCKETS]);
        buckets[BUCKETS - 1] = 1;
        let native = NativeHistogram::of(&Snapshot::from_parts(buckets, 0, 0));
        assert_eq!(native.spans, [Span { offset: 49, length: 1 }]);
    }
}
