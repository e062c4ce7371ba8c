//! One figure: what it measures, how, and what is asked of it.

use crate::ratio::{RatioError, interval_of_median, median};
use serde::ser::{Serialize, Serializer};
use std::fmt;
use std::ops::Range;
use vfio_ccw_load::random::SplitMix64;

/// Whatever a figure's function may fail with.
pub type FieldError = Box<dyn std::error::Error + Send + Sync>;

/// A figure that can be measured.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Name in the output.
    pub name: &'static str,
    /// What is measured, "ours / peer" for ratios.
    pub measures: &'static str,
    /// What is asked of the value.
    pub target: Target,
    /// How many rounds give a narrow interval on a noisy machine; 1 where the value does not vary.
    pub rounds: usize,
    /// Measures one round, from nothing: it sets up what it needs and leaves nothing behind.
    pub round: fn(&Round) -> Result<Sample, FieldError>,
}

impl Field {
    /// Measures the rounds with these numbers in this process, and gives the value of each to `each`.
    ///
    /// # Errors
    /// What the first round that fails says.
    pub fn each_round(
        &self,
        numbers: Range<usize>,
        seed: u64,
        mut each: impl FnMut(f64),
    ) -> Result<(), FieldError> {
        for number in numbers {
            let seed = SplitMix64::new(seed.wrapping_add(number as u64)).next_u64();
            each((self.round)(&Round { number, seed })?.value());
        }
        Ok(())
    }
}

/// One round of measuring a figure.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Number of the round, from 1.
    pub number: usize,
    /// Seed of the random choices in this round.
    pub seed: u64,
}

impl Round {
    /// Takes both measurements of a ratio, one right after the other. Who goes first changes from
    /// round to round, so that a machine that warms up or slows down favours neither.
    ///
    /// # Errors
    /// Where either measurement fails.
    pub fn compare(
        &self,
        ours: impl FnOnce() -> Result<f64, FieldError>,
        peer: impl FnOnce() -> Result<f64, FieldError>,
    ) -> Result<Sample, FieldError> {
        if self.number.is_multiple_of(2) {
            let peer = peer()?;
            Ok(Sample::Ratio { ours: ours()?, peer })
        } else {
            Ok(Sample::Ratio { ours: ours()?, peer: peer()? })
        }
    }
}

/// What one round gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sample {
    /// Two measurements of the same unit, taken one right after the other.
    Ratio {
        /// Ours.
        ours: f64,
        /// The peer's or baseline's.
        peer: f64,
    },
    /// A value that stands by itself: a size or a count.
    Absolute(f64),
}

impl Sample {
    /// A value that stands by itself.
    pub fn absolute(value: f64) -> Self {
        Self::Absolute(value)
    }

    /// The value of the figure in this round.
    pub fn value(self) -> f64 {
        match self {
            Self::Ratio { ours, peer } => ours / peer,
            Self::Absolute(value) => value,
        }
    }
}

/// What is asked of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// At most this.
    Le(f64),
    /// At least this.
    Ge(f64),
    /// Just this.
    Eq(f64),
    /// At most `le`; or just `equal`, where ours and the peer are the same thing.
    LeOrEqual {
        /// The limit.
        le: f64,
        /// The exception.
        equal: f64,
    },
}

impl Target {
    /// Whether `value` is what is asked for.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::Le(limit) => value <= limit,
            Self::Ge(limit) => value >= limit,
            Self::Eq(equal) => value == equal,
            Self::LeOrEqual { le, equal } => value <= le || value == equal,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Le(limit) => write!(f, "<= {}", Bound(limit)),
            Self::Ge(limit) => write!(f, ">= {}", Bound(limit)),
            Self::Eq(equal) => write!(f, "== {}", Bound(equal)),
            Self::LeOrEqual { le, equal } => write!(f, "<= {}, or {}", Bound(le), Bound(equal)),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A bound as it is written: ratios with a decimal, counts and sizes without.
struct Bound(f64);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0.0 || self.0 >= 100.0 {
            write!(f, "{}", self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

/// A measured figure.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Figure {
    /// Median of the passes, with four significant digits.
    pub value: f64,
    /// Lower end of the 95 % interval of that.
    pub low: f64,
    /// Upper end of the 95 % interval of that.
    pub high: f64,
    /// What is asked of the value.
    pub target: Target,
    /// Whether `value`, as shown, is that.
    pub holds: bool,
}

impl Figure {
    /// Of the values of each pass: the median of their medians. Passes are what another run would have others of, so
    /// the interval is of them, and not of all their rounds.
    ///
    /// # Errors
    /// There is none, or one without values.
    pub fn of(target: Target, passes: Vec<Vec<f64>>, seed: u64) -> Result<Self, RatioError> {
        let medians: Option<Vec<f64>> =
            passes.into_iter().map(|mut values| median(&mut values)).collect();
        let mut medians = medians.ok_or(RatioError::NoRounds)?;
        let value = significant(median(&mut medians).ok_or(RatioError::NoRounds)?);
        let interval = interval_of_median(&medians, seed);
        Ok(Figure {
            value,
            low: significant(interval.low),
            high: significant(interval.high),
            target,
            holds: target.holds(value),
        })
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holds = if self.holds { "holds" } else { "DOES NOT HOLD" };
        write!(f, "{} ({} to {}), {} {holds}", self.value, self.low, self.high, self.target)
    }
}

/// `value` with four significant digits: more would only be noise.
fn significant(value: f64) -> f64 {
    const DIGITS: i32 = 4;
    if value == 0.0 {
        return 0.0;
    }
    let decimals = DIGITS - 1 - value.abs().log10().floor() as i32;
    if decimals >= 0 {
        let scale = 10f64.powi(decimals);
        (value * scale).round() / scale
    } else {
        let scale = 10f64.powi(-decimals);
        (value / scale).round() * scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn targets_hold_at_their_bounds_and_not_beyond() {
        for (target, yes, no) in [
            (Target::Le(1.0), 1.0, 1.0001),
            (Target::Ge(5.0), 5.0, 4.999),
            (Target::Eq(0.0), 0.0, 0.001),
            (Target::LeOrEqual { le: 0.8, equal: 1.0 }, 0.8, 0.9),
            (Target::LeOrEqual { le: 0.8, equal: 1.0 }, 1.0, 1.001),
        ] {
            assert!(target.holds(yes) && !target.holds(no), "{target}");
            assert!(!target.holds(f64::NAN));
        }
    }

    #[test]
    fn targets_are_written_as_in_the_table_of_figures() {
        for (target, text) in [
            (Target::Le(1.0), "<= 1.0"),
            (Target::LeOrEqual { le: 0.8, equal: 1.0 }, "<= 0.8, or 1.0"),
            (Target::Ge(0.95), ">= 0.95"),
            (Target::Ge(2_000_000.0), ">= 2000000"),
            (Target::Le(4096.0), "<= 4096"),
            (Target::Eq(0.0), "== 0"),
        ] {
            assert_eq!(target.to_string(), text);
        }
    }

    #[test]
    fn ours_and_the_peer_take_turns_to_go_first() {
        let order = RefCell::new(String::new());
        for number in 1..=3 {
            let note = |who, cost| {
                order.borrow_mut().push(who);
                Ok(cost)
            };
            let round = Round { number, seed: 0 };
            let sample = round.compare(|| note('o', 6.0), || note('p', 3.0)).unwrap();
            assert_eq!(sample, Sample::Ratio { ours: 6.0, peer: 3.0 });
            assert_eq!(sample.value(), 2.0);
        }
        assert_eq!(*order.borrow(), "oppoop");
    }

    #[test]
    fn rounds_have_numbers_and_seeds_of_their_own() {
        fn third_fails(round: &Round) -> Result<Sample, FieldError> {
            let odd = Sample::absolute(round.seed as f64);
            if round.number == 3 { Err("no luck".into()) } else { Ok(odd) }
        }
        let field = Field {
            name: "x",
            measures: "",
            target: Target::Le(5.0),
            rounds: 9,
            round: third_fails,
        };
        let seeds = |numbers| {
            let mut values = Vec::new();
            let ended = field.each_round(numbers, 1, |value| values.push(value));
            (values, ended.map_err(|error| error.to_string()))
        };
        let (values, ended) = seeds(1..9);
        assert_eq!((values.len(), ended), (2, Err("no luck".to_owned())));
        assert_ne!(values[0], values[1]);
        assert_eq!(seeds(2..3), (vec![values[1]], Ok(())));
    }

    #[test]
    fn a_figure_is_the_median_of_its_passes_within_their_interval() {
        let passes = |count: usize| -> Vec<Vec<f64>> {
            (1..=count).map(|pass| vec![pass as f64, 1e9, 0.0]).collect()
        };
        let figure = |count| Figure::of(Target::Le(5.0), passes(count), 1).unwrap();
        let nine = figure(9);
        assert_eq!((nine.value, nine.holds), (5.0, true));
        // All but one at each end.
        assert_eq!((nine.low, nine.high), (2.0, 8.0));
        assert!(!figure(11).holds);
        assert!(matches!(Figure::of(Target::Le(5.0), vec![], 1), Err(RatioError::NoRounds)));
        assert!(matches!(Figure::of(Target::Le(5.0), vec![vec![]], 1), Err(RatioError::NoRounds)));
    }

    #[test]
    fn values_are_shown_with_four_digits() {
        for (value, shown) in [
            (0.812_345, "0.8123"),
            (1.000_04, "1"),
            (12.345_67, "12.35"),
            (2_345_678.9, "2346000"),
            (0.0, "0"),
            (-1.234_56, "-1.235"),
        ] {
            assert_eq!(significant(value).to_string(), shown);
        }
    }
}
