//! The median and how far to trust it.
//!
//! The interval is the percentile bootstrap (Efron, "Bootstrap Methods: Another Look at the Jackknife",
//! Annals of Statistics 1979): draw as many values as there are, with repetition, take their median, do
//! so many times, and cut off 2.5 % at each end. It asks nothing of the distribution, which for times on
//! a shared machine is far from normal.

use vfio_ccw_load::random::SplitMix64;

/// Resamples: enough that the ends of a 95 % interval rest on 50 values each, and those of 99 % on 10.
const RESAMPLES: usize = 2000;

/// How often intervals of figures have the true median in them.
const CONFIDENCE: f64 = 0.95;

/// An interval, ends included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The median of `values`, which it sorts; the mean of the middle two where their number is even, none
/// where there are none.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

/// The 95 % bootstrap interval of the median of `values`; the same for the same `seed`. Without values
/// there is none, and both ends are NaN.
pub fn interval_of_median(values: &[f64], seed: u64) -> Interval {
    interval_with(CONFIDENCE, values, seed)
}

/// The same with another share than 95 %, `confidence` between 0 and 1.
pub fn interval_with(confidence: f64, values: &[f64], seed: u64) -> Interval {
    let mut random = SplitMix64::new(seed);
    let mut resample = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            resample.fill_with(|| values[random.below(values.len() as u64) as usize]);
            median(&mut resample)
        })
        .collect();
    medians.sort_unstable_by(f64::total_cmp);
    let cut = (RESAMPLES as f64 * (1.0 - confidence) / 2.0).round() as usize;
    let cut = cut.min(RESAMPLES / 2);
    let end = |index: usize| medians.get(index).copied().unwrap_or(f64::NAN);
    Interval { low: end(cut), high: end(RESAMPLES - 1 - cut) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&mut [7.0]), Some(7.0));
        assert_eq!(median(&mut []), None);
    }

    #[test]
    fn one_value_is_its_own_interval_and_none_has_none() {
        assert_eq!(interval_of_median(&[3.5], 1), Interval { low: 3.5, high: 3.5 });
        assert!(interval_of_median(&[], 1).low.is_nan());
    }

    #[test]
    fn more_confidence_is_a_wider_interval() {
        let values: Vec<f64> = (0..41).map(f64::from).collect();
        let [wide, narrow] = [0.99, 0.5].map(|confidence| interval_with(confidence, &values, 1));
        assert!(wide.low < narrow.low && narrow.high < wide.high, "{wide:?} {narrow:?}");
    }

    #[test]
    fn a_seed_fixes_the_interval() {
        let values: Vec<f64> = (0..20).map(f64::from).collect();
        assert_eq!(interval_of_median(&values, 4), interval_of_median(&values, 4));
    }

    #[test]
    fn outliers_do_not_widen_the_interval() {
        let mut values: Vec<f64> = (0..40).map(|step| 1.0 + f64::from(step) / 1000.0).collect();
        let calm = interval_of_median(&values, 2);
        values[0] = 1e6;
        values[1] = -1e6;
        let disturbed = interval_of_median(&values, 2);
        assert!(disturbed.low > calm.low - 0.005 && disturbed.high < calm.high + 0.005);
    }

    #[test]
    fn the_interval_covers_the_true_median_about_as_often_as_it_says() {
        // 400 samples of 25 exponentially distributed values with median ln 2: 95 % of the intervals
        // should cover it. A percentile bootstrap of so few values covers a little less or more.
        let mut random = SplitMix64::new(99);
        let covered = (0..400)
            .filter(|_| {
                let values: Vec<f64> = (0..25).map(|_| -(1.0 - random.unit()).ln()).collect();
                let Interval { low, high } = interval_of_median(&values, random.next_u64());
                (low..=high).contains(&std::f64::consts::LN_2)
            })
            .count();
        assert!((360..=396).contains(&covered), "{covered} of 400");
    }
}
