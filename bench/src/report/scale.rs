//! From values to places along an axis, and the ticks in between.

use super::number::Unit;

/// Most ticks of an axis that have room for their labels.
const MOST_TICKS: usize = 9;

/// An axis: a range with round ends, and ticks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    ticks: Vec<f64>,
    unit: Unit,
}

impl Scale {
    /// Logarithmic, from and to a 1, 2 or 5 with zeros. What is less than 1 is shown as 1.
    pub(super) fn decades(values: impl IntoIterator<Item = f64>, unit: Unit) -> Self {
        Self::few_decades(values, MOST_TICKS, unit)
    }

    /// The same with at most about so many ticks, for drawings with less room.
    pub(super) fn few_decades(
        values: impl IntoIterator<Item = f64>,
        most_ticks: usize,
        unit: Unit,
    ) -> Self {
        let (low, high) = range(values, 1.0);
        let (low, above) = (step(low, f64::floor), step(high, f64::ceil));
        let high = if above > low { above } else { step(low * 1.01, f64::ceil) };
        let first = low.log10().floor() as i32;
        let last = high.log10().ceil() as i32;
        let all = |digits: &'static [f64], stride: usize| -> Vec<f64> {
            (first..=last)
                .step_by(stride)
                .flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)))
                .filter(|tick| (low * 0.999..=high * 1.001).contains(tick))
                .collect()
        };
        let fine = all(&[1.0, 2.0, 5.0], 1);
        let stride = ((last - first) as usize).div_ceil(most_ticks).max(1);
        let ticks = if fine.len() <= most_ticks { fine } else { all(&[1.0], stride) };
        Self { low, high, logarithmic: true, ticks, unit }
    }

    /// Logarithmic, with powers of two. What is less than `least` is shown there.
    pub(super) fn doublings(values: impl IntoIterator<Item = f64>, least: f64, unit: Unit) -> Self {
        let (low, high) = range(values, least);
        let first = low.log2().floor() as i32;
        let last = (high.log2().ceil() as i32).max(first + 1);
        let stride = ((last - first + 1) as usize).div_ceil(MOST_TICKS);
        let ticks = (first..=last).step_by(stride).map(|power| 2f64.powi(power)).collect();
        Self { low: 2f64.powi(first), high: 2f64.powi(last), logarithmic: true, ticks, unit }
    }

    /// Linear, from nothing to a round end.
    pub(super) fn from_zero(values: impl IntoIterator<Item = f64>, unit: Unit) -> Self {
        let (_, most) = range(values, f64::MIN_POSITIVE);
        // At most so many steps, each a 1, 2 or 5 with zeros.
        let stride = step((most / (MOST_TICKS - 2) as f64).max(f64::MIN_POSITIVE), f64::ceil);
        let steps = (most / stride).ceil().max(1.0);
        let ticks = (0..=steps as usize).map(|number| number as f64 * stride).collect();
        Self { low: 0.0, high: steps * stride, logarithmic: false, ticks, unit }
    }

    /// Quantiles as 1 / (1 - q), logarithmic: as much room for each further nine.
    pub(super) fn percentiles(most: f64) -> Self {
        let last = (most.max(10.0).log10().ceil() as i32).min(MOST_TICKS as i32);
        let mut ticks = vec![2.0];
        ticks.extend((1..=last).map(|power| 10f64.powi(power)));
        let high = 10f64.powi(last);
        Self { low: 1.0, high, logarithmic: true, ticks, unit: Unit::Percentile }
    }

    /// Where `value` is: 0 at the lower end, 1 at the upper, and never beyond.
    pub(super) fn share(&self, value: f64) -> f64 {
        let (low, high, value) = match self.logarithmic {
            true => (self.low.ln(), self.high.ln(), value.max(self.low).ln()),
            false => (self.low, self.high, value),
        };
        let share = (value - low) / (high - low);
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Places and labels of the ticks.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        self.ticks.iter().map(|&tick| (self.share(tick), self.unit.tick(tick)))
    }
}

/// Least and greatest of the finite values, both at least `least`, and at most what has a logarithm
/// with room above.
fn range(values: impl IntoIterator<Item = f64>, least: f64) -> (f64, f64) {
    let most = f64::MAX / 1e12;
    let (low, high) = (values.into_iter())
        .filter(|value| value.is_finite())
        .map(|value| value.clamp(least, most))
        .fold((f64::INFINITY, least), |(low, high), value| (low.min(value), high.max(value)));
    (low.min(high), high)
}

/// The next of 1, 2 and 5 with zeros, down or up.
fn step(value: f64, towards: fn(f64) -> f64) -> f64 {
    let zeros = 10f64.powi(value.log10().floor() as i32);
    let digit = value / zeros;
    // Division leaves 4.999 for 5.
    let is_up = towards(0.5) > 0.0;
    let digit = match is_up {
        true => [1.0, 2.0, 5.0].into_iter().find(|step| *step >= digit * 0.999_999),
        false => [5.0, 2.0, 1.0].into_iter().find(|step| *step <= digit * 1.000_001),
    };
    // Above 5 the next is 10; nothing is below 1.
    digit.unwrap_or(if is_up { 10.0 } else { 1.0 }) * zeros
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(scale: &Scale) -> Vec<String> {
        scale.ticks().map(|(_, label)| label).collect()
    }

    #[test]
    fn ends_are_round() {
        let scale = Scale::decades([41_000.0, 43_000.0], Unit::Nanos);
        assert_eq!(labels(&scale), ["20 µs", "50 µs"]);
        let scale = Scale::decades([1e3, 1e6], Unit::Nanos);
        assert_eq!(labels(&scale), ["1 µs", "10 µs", "100 µs", "1 ms"]);
        assert_eq!((scale.share(1e3), scale.share(1e6)), (0.0, 1.0));
        let scale = Scale::decades([100.0], Unit::Nanos);
        assert_eq!(labels(&scale), ["100 ns", "200 ns"]);
        let scale = Scale::doublings([1.0, 48.0], 1.0, Unit::Count);
        assert_eq!(labels(&scale), ["1", "2", "4", "8", "16", "32", "64"]);
        let scale = Scale::from_zero([61_000.0, 12.0], Unit::Count);
        assert_eq!(labels(&scale), ["0", "10k", "20k", "30k", "40k", "50k", "60k", "70k"]);
        let scale = Scale::percentiles(5_000.0);
        assert_eq!(labels(&scale), ["50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }

    #[test]
    fn nothing_to_show_is_no_trouble() {
        for scale in [
            Scale::decades([], Unit::Nanos),
            Scale::decades([0.0], Unit::Nanos),
            Scale::doublings([], 1.0, Unit::Bytes),
            Scale::from_zero([], Unit::Count),
            Scale::from_zero([0.0, -3.0, f64::NAN], Unit::Count),
            Scale::percentiles(0.0),
        ] {
            assert!(scale.low < scale.high && scale.ticks.len() >= 2, "{scale:?}");
        }
    }

    proptest! {
        #[test]
        fn every_value_has_a_place(values in prop::collection::vec(any::<f64>(), 0..20)) {
            let all = || values.iter().copied();
            for scale in [
                Scale::decades(all(), Unit::Nanos),
                Scale::doublings(all(), 1.0, Unit::Bytes),
                Scale::from_zero(all(), Unit::Count),
                Scale::percentiles(values.first().copied().unwrap_or(1.0)),
            ] {
                prop_assert!(scale.low < scale.high, "{scale:?}");
                prop_assert!((2..=MOST_TICKS + 3).contains(&scale.ticks.len()), "{scale:?}");
                for value in all() {
                    prop_assert!((0.0..=1.0).contains(&scale.share(value)), "{value} {scale:?}");
                }
                let places: Vec<f64> = scale.ticks().map(|(place, _)| place).collect();
                prop_assert!(places.is_sorted(), "{places:?}");
            }
        }
    }
}
