//! All figures, in several passes.
//!
//! Where threads and memory happen to lie in a process, and what the machine's other guests do for a minute, moves a
//! figure further than its rounds within that minute differ. So a figure's rounds are spread over passes: each pass
//! goes over all figures, with a new process for each, and a figure's interval is that of its passes. It then covers
//! what another run would meet.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Field, FieldError, Figure, Figures, RatioError};

/// Passes over all figures, as far as there are rounds for them. With nine, the 95 % interval of the median leaves out
/// one at each end; fewer than six have no such interval.
pub const PASSES: usize = 9;

/// Who is told how far it has come.
pub trait Progress {
    /// `done` of a pass's rounds of this figure have ended, and perhaps none.
    fn round(&mut self, pass: Pass, name: &str, done: usize, rounds: usize);

    /// A figure has been measured, or could not be.
    fn figure(&mut self, name: &str, result: Result<&Figure, &RatioError>);

    /// A pass has ended, and not as the last: the others will take about so long.
    fn pass(&mut self, pass: Pass, left: Duration);
}

/// Which pass, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// Its number, from 1.
    pub number: usize,
    /// How many there are.
    pub of: usize,
}

/// Rounds of a figure in one pass.
#[derive(Debug)]
pub struct Rounds<'f> {
    /// The figure.
    pub field: &'f Field,
    /// Their numbers, from 1 in the first pass on.
    pub numbers: Range<usize>,
    /// What the seed of each is made from.
    pub seed: u64,
}

/// What came of measuring.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The figures that could be measured.
    pub figures: Figures,
    /// Whether one is absent although this machine has what it takes.
    pub has_failed: bool,
    /// In which pass it was stopped; figures are of those so far.
    pub stopped: Option<Pass>,
}

/// Measures `fields`: each in as many rounds as it needs, or in `rounds`. `take` measures the rounds of a pass, gives
/// each value to whom it is told, and ends with the first that fails; that figure is then absent. Once `stop` is set
/// no more rounds begin.
pub fn measure(
    fields: &[&Field],
    rounds: Option<usize>,
    seed: u64,
    mut take: impl FnMut(&Rounds<'_>, &mut dyn FnMut(f64)) -> Result<(), FieldError>,
    progress: &mut impl Progress,
    stop: &AtomicBool,
) -> Measured {
    let rounds_of = |field: &Field| rounds.unwrap_or(field.rounds);
    let of = fields.iter().map(|field| passes_for(rounds_of(field))).max().unwrap_or(0);
    let mut measured: Vec<Result<Vec<Vec<f64>>, RatioError>> =
        fields.iter().map(|_| Ok(Vec::new())).collect();
    let begin = Instant::now();
    let mut stopped = None;
    'passes: for number in 1..=of {
        let pass = Pass { number, of };
        for (field, passes) in fields.iter().zip(&mut measured) {
            // Relaxed: it hears of it soon enough.
            if stop.load(Ordering::Relaxed) {
                stopped = Some(pass);
                break 'passes;
            }
            let numbers = share(rounds_of(field), number - 1);
            let Ok(values) = passes else { continue };
            if numbers.is_empty() {
                continue;
            }
            match one_pass(&Rounds { field, numbers, seed }, &mut take, pass, progress) {
                Ok(new) => values.push(new),
                Err(error) => {
                    progress.figure(field.name, Err(&error));
                    *passes = Err(error);
                }
            }
        }
        if number < of {
            progress.pass(pass, begin.elapsed() / number as u32 * (of - number) as u32);
        }
    }
    let mut figures = Figures::default();
    let mut has_failed = false;
    for (field, passes) in fields.iter().zip(measured) {
        // What has failed in a pass has been told.
        let figure = match passes {
            // Its turn has not come.
            Ok(passes) if stopped.is_some() && passes.is_empty() => continue,
            Ok(passes) => Figure::of(field.target, passes, seed).inspect_err(|error| {
                progress.figure(field.name, Err(error));
            }),
            Err(error) => Err(error),
        };
        match figure {
            Ok(figure) => {
                progress.figure(field.name, Ok(&figure));
                figures.push(field.name, figure);
            }
            Err(error) => has_failed |= !error.is_lack(),
        }
    }
    Measured { figures, has_failed, stopped }
}

/// The values of these rounds.
fn one_pass(
    rounds: &Rounds<'_>,
    take: &mut impl FnMut(&Rounds<'_>, &mut dyn FnMut(f64)) -> Result<(), FieldError>,
    pass: Pass,
    progress: &mut impl Progress,
) -> Result<Vec<f64>, RatioError> {
    let (name, count) = (rounds.field.name, rounds.numbers.len());
    let mut values = Vec::with_capacity(count);
    progress.round(pass, name, 0, count);
    let taken = take(rounds, &mut |value| {
        values.push(value);
        progress.round(pass, name, values.len(), count);
    });
    let failed_at = |index: usize| rounds.numbers.start + index;
    taken.map_err(|source| RatioError::Round { round: failed_at(values.len()), source })?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(RatioError::NotFinite { round: failed_at(index), value: values[index] }),
        None => Ok(values),
    }
}

fn passes_for(rounds: usize) -> usize {
    rounds.min(PASSES)
}

/// Numbers of the rounds of a pass, itself counted from 0: as even as can be, one after the other.
fn share(rounds: usize, pass: usize) -> Range<usize> {
    let passes = passes_for(rounds);
    if pass >= passes {
        return 0..0;
    }
    let before = |pass: usize| rounds * pass / passes + 1;
    before(pass)..before(pass + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::{Round, Sample, Target};

    /// What was told.
    #[derive(Default)]
    struct Told(Vec<String>);

    impl Progress for Told {
        fn round(&mut self, pass: Pass, name: &str, done: usize, rounds: usize) {
            self.0.push(format!("{}/{} {name} {done}/{rounds}", pass.number, pass.of));
        }

        fn figure(&mut self, name: &str, result: Result<&Figure, &RatioError>) {
            self.0.push(match result {
                Ok(figure) => format!("{name} = {}", figure.value),
                Err(error) => format!("{name}: {error}"),
            });
        }

        fn pass(&mut self, pass: Pass, _left: Duration) {
            self.0.push(format!("pass {} of {}", pass.number, pass.of));
        }
    }

    fn field(name: &'static str, rounds: usize) -> Field {
        fn numbered(round: &Round) -> Result<Sample, FieldError> {
            Ok(Sample::absolute(round.number as f64))
        }
        Field { name, measures: "", target: Target::Le(5.0), rounds, round: numbered }
    }

    static GO_ON: AtomicBool = AtomicBool::new(false);

    fn here(rounds: &Rounds<'_>, each: &mut dyn FnMut(f64)) -> Result<(), FieldError> {
        rounds.field.each_round(rounds.numbers.clone(), rounds.seed, each)
    }

    #[test]
    fn passes_have_each_round_once_and_as_many() {
        for rounds in [1, 2, 8, 9, 10, 17, 198] {
            let shares: Vec<_> = (0..PASSES).map(|pass| share(rounds, pass)).collect();
            let all: Vec<usize> = shares.iter().cloned().flatten().collect();
            assert_eq!(all, (1..=rounds).collect::<Vec<_>>());
            let used = shares.iter().map(Range::len).filter(|len| *len > 0);
            assert_eq!(used.clone().count(), rounds.min(PASSES));
            assert!(used.clone().max().unwrap() - used.min().unwrap() <= 1);
        }
        assert!(share(0, 0).is_empty());
    }

    #[test]
    fn each_pass_goes_over_all_figures() {
        let (a, b) = (field("a", 3), field("b", 1));
        let mut told = Told::default();
        let measured = measure(&[&a, &b], None, 1, here, &mut told, &GO_ON);
        assert_eq!(
            told.0,
            [
                "1/3 a 0/1",
                "1/3 a 1/1",
                "1/3 b 0/1",
                "1/3 b 1/1",
                "pass 1 of 3",
                "2/3 a 0/1",
                "2/3 a 1/1",
                "pass 2 of 3",
                "3/3 a 0/1",
                "3/3 a 1/1",
                "a = 2",
                "b = 1"
            ]
        );
        assert!(!measured.has_failed && measured.stopped.is_none());
        assert_eq!(measured.figures.table().lines().count(), 3);
    }

    #[test]
    fn a_figure_that_fails_is_told_once_and_absent_and_the_others_go_on() {
        let (a, b) = (field("a", 27), field("b", 27));
        let mut told = Told::default();
        let fails = |rounds: &Rounds<'_>, each: &mut dyn FnMut(f64)| {
            let fails = rounds.field.name == "a" && rounds.numbers.contains(&5);
            here(rounds, each).and(if fails { Err("no luck".into()) } else { Ok(()) })
        };
        let measured = measure(&[&a, &b], None, 1, fails, &mut told, &GO_ON);
        let of_a: Vec<&String> = told.0.iter().filter(|line| line.starts_with("a:")).collect();
        assert_eq!(of_a, ["a: not measured, round 7 failed: no luck"]);
        assert!(measured.has_failed && !measured.figures.table().contains("\na "));
        assert!(told.0.contains(&"b = 14".to_owned()), "{:?}", told.0);
    }

    #[test]
    fn no_rounds_and_values_that_are_no_numbers_are_refused() {
        let a = field("a", 9);
        let mut told = Told::default();
        assert!(measure(&[&a], Some(0), 1, here, &mut told, &GO_ON).has_failed);
        assert!(told.0[0].contains("0 rounds"), "{:?}", told.0);
        let infinite = |_: &Rounds<'_>, each: &mut dyn FnMut(f64)| {
            each(f64::INFINITY);
            Ok(())
        };
        let mut told = Told::default();
        assert!(measure(&[&a], None, 1, infinite, &mut told, &GO_ON).has_failed);
        assert!(told.0[2].contains("round 1 gave inf"), "{:?}", told.0);
    }

    #[test]
    fn what_is_stopped_has_the_passes_so_far() {
        let (a, b) = (field("a", 9), field("b", 9));
        let stop = AtomicBool::new(false);
        let stopping_at = |name: &'static str, number: usize| {
            stop.store(false, Ordering::Relaxed);
            let take = |rounds: &Rounds<'_>, each: &mut dyn FnMut(f64)| {
                let is_last = rounds.field.name == name && rounds.numbers.contains(&number);
                stop.store(is_last, Ordering::Relaxed);
                here(rounds, each)
            };
            let mut told = Told::default();
            let measured = measure(&[&a, &b], None, 1, take, &mut told, &stop);
            assert!(!measured.has_failed);
            (measured.stopped.map(|pass| pass.number), told.0.split_off(told.0.len() - 2))
        };
        assert_eq!(stopping_at("a", 5), (Some(5), vec!["a = 3".into(), "b = 2.5".into()]));
        assert_eq!(stopping_at("b", 5), (Some(6), vec!["a = 3".into(), "b = 3".into()]));
        // The other's turn has not come.
        assert_eq!(stopping_at("a", 1), (Some(1), vec!["1/9 a 1/1".into(), "a = 1".into()]));
        // There was nothing left to stop.
        assert_eq!(stopping_at("b", 9).0, None);
    }
}
