//! What the pool counts on, checked for any pinner: what it says is pinned is, and nothing else is.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::guest::{Guest, START};
use super::{Pinner, Stopped, WindowError};
use crate::FRAME;

/// What a device reaches: length by guest address.
pub(super) type Windows = BTreeMap<u64, u64>;

/// What stopped a pinner that maps windows.
pub(super) fn window_error(stopped: &Stopped) -> &WindowError {
    stopped.source.get_ref().and_then(|error| error.downcast_ref()).expect("a WindowError")
}

/// One call of the pool.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Pins these runs (first frame, frames), but for those that something pinned is in the way of.
    Pin(Vec<(u32, u32)>),
    /// Unpins what is pinned and chosen: run `n` is, where bit `n % 64` is set.
    Unpin(u64),
}

/// Calls on a guest of `frames` frames. Most runs are of one frame, as the pool makes them.
pub(super) fn steps(frames: u32) -> impl Strategy<Value = Vec<Step>> {
    let run = (0..frames, prop_oneof![3 => Just(1u32), 1 => 2..5u32])
        .prop_map(move |(first, count)| (first, count.min(frames - first)));
    let step = prop_oneof![
        3 => prop::collection::vec(run, 1..12).prop_map(Step::Pin),
        2 => any::<u64>().prop_map(Step::Unpin),
    ];
    prop::collection::vec(step, 1..24)
}

/// Takes the steps, and compares after each one what the pinner says with what `windows` has. A
/// refusal is fine, as long as `done` is exact. At the end nothing is pinned.
pub(super) fn holds(
    pinner: &impl Pinner,
    guest: &Guest,
    steps: &[Step],
    windows: impl Fn() -> Windows,
) -> Result<(), TestCaseError> {
    let mut pinned = BTreeMap::new();
    for step in steps {
        match step {
            Step::Pin(wanted) => {
                let fresh = without_overlaps(wanted, &pinned);
                let done = done(pinner.pin(&guest.runs(&fresh)), fresh.len())?;
                pinned.extend(fresh[..done].iter().copied());
            }
            Step::Unpin(choice) => {
                let chosen = |n: &usize| choice >> (n % 64) & 1 == 1;
                let gone: Vec<_> = (0..pinned.len())
                    .filter(chosen)
                    .filter_map(|n| pinned.iter().nth(n).map(|(first, frames)| (*first, *frames)))
                    .collect();
                let done = done(pinner.unpin(&guest.runs(&gone)), gone.len())?;
                prop_assert_eq!(done, gone.len(), "nothing is in the way of an unpin here");
                pinned.retain(|first, _| !gone[..done].iter().any(|(gone, _)| gone == first));
            }
        }
        prop_assert_eq!(windows(), expected(&pinned));
    }
    let rest: Vec<_> = pinned.into_iter().collect();
    pinner
        .unpin(&guest.runs(&rest))
        .map_err(|stopped| TestCaseError::fail(format!("{stopped:?}")))?;
    prop_assert_eq!(windows(), Windows::new());
    Ok(())
}

fn done(result: Result<(), Stopped>, runs: usize) -> Result<usize, TestCaseError> {
    match result {
        Ok(()) => Ok(runs),
        Err(stopped) => {
            prop_assert!(stopped.done < runs, "{:?} of {} runs", stopped, runs);
            Ok(stopped.done)
        }
    }
}

fn expected(pinned: &BTreeMap<u32, u32>) -> Windows {
    let window = |(first, frames): (&u32, &u32)| {
        (START + u64::from(*first) * FRAME, u64::from(*frames) * FRAME)
    };
    pinned.iter().map(window).collect()
}

/// Those of `wanted` that overlap neither what is pinned nor one before them.
fn without_overlaps(wanted: &[(u32, u32)], pinned: &BTreeMap<u32, u32>) -> Vec<(u32, u32)> {
    let mut taken: Vec<(u32, u32)> =
        pinned.iter().map(|(first, frames)| (*first, *frames)).collect();
    let before = taken.len();
    for &(first, frames) in wanted {
        let clear =
            |&(other, others): &(u32, u32)| first + frames <= other || other + others <= first;
        if taken.iter().all(clear) {
            taken.push((first, frames));
        }
    }
    taken.split_off(before)
}
