//! The pool held against a simple model: in order with exact expectations, and by several threads at
//! once.

mod model;

use model::guest::BankShape;
use model::pinner::Character;
use model::sequence::play;
use model::steps::{Act, Pages, Setup, Step, setups, steps};
use model::threads::{Load, run};
use proptest::prelude::*;
use vfio_ccw_pinning::{FRAME, Mode};

/// A pinner that an IOMMU needs, and that takes runs of any length.
const NEEDED: Character =
    Character { joins_frames: true, is_needed: true, most_runs: None, lingers: None };

proptest! {
    #![proptest_config(ProptestConfig { cases: 40_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_step_has_the_expected_outcome(setup in setups(), steps in steps()) {
        play(&setup, &steps);
    }
}

/// Plays `steps` with all kinds of pinners over slots of so many frames of 4 KiB, in frames of
/// `granule`, with a budget of so many frames of 4 KiB.
fn play_with_all_pinners(granule: u64, slots: &[u64], budget: u64, steps: &[Step]) {
    for (joins_frames, is_needed) in [(false, false), (false, true), (true, false), (true, true)] {
        let character = Character { joins_frames, is_needed, ..NEEDED };
        let banks = slots.iter().map(|frames| BankShape { frames: *frames, skew: 0 }).collect();
        let setup = Setup { character, granule, banks, budget: budget * FRAME };
        play(&setup, steps);
    }
}

fn pages((slot, first, count): (usize, u64, u64)) -> Pages {
    Pages { slot, first, count }
}

/// A program starts and wants runs of pages: slot, first page, pages.
fn start(program: usize, wants: &[(usize, u64, u64)]) -> Act {
    Act::Start { program, wants: wants.iter().copied().map(pages).collect(), share: None }
}

fn end(program: usize) -> Act {
    Act::End { program, mode: Mode::Cached }
}

/// Two frames of 16 KiB and 4 KiB are cached, and that is the budget. Then a program wants 4 KiB
/// more, for which the large one goes, and `act` comes while it is unpinned.
fn while_a_large_victim_goes(act: Act) {
    let steps = [
        Step::Act(start(0, &[(0, 0, 1), (1, 0, 1)])),
        Step::Act(end(0)),
        Step::Interrupt { after: 0, act },
        Step::Act(start(1, &[(1, 1, 1)])),
    ];
    play_with_all_pinners(4 * FRAME, &[12, 5], 5, &steps);
}

#[test]
fn the_place_of_a_large_victim_is_not_free_before_it_has_gone() {
    while_a_large_victim_goes(start(2, &[(1, 2, 3)]));
}

#[test]
fn what_a_large_victim_leaves_over_goes_to_the_first_in_line() {
    while_a_large_victim_goes(start(2, &[(0, 4, 1)]));
}

#[test]
fn a_refused_pin_lets_the_first_in_line_pass() {
    let steps = [
        Step::RefusePins { after: 0, times: 1 },
        Step::Interrupt { after: 0, act: start(0, &[(1, 0, 5)]) },
        Step::Act(start(1, &[(0, 0, 1)])),
    ];
    play_with_all_pinners(FRAME, &[4, 5], 5, &steps);
}

#[test]
fn a_larger_budget_is_in_force_at_once() {
    let steps = [
        Step::Act(start(0, &[(0, 0, 2)])),
        Step::Act(start(1, &[(0, 2, 2)])),
        Step::Budget { bytes: 4 * FRAME },
        Step::Act(Act::Look { program: 1 }),
    ];
    play_with_all_pinners(FRAME, &[4], 2, &steps);
}

#[test]
fn memory_that_could_not_be_added_in_mode_pinned_leaves_nothing_behind() {
    let steps = [
        Step::Lease,
        Step::RefusePins { after: 1, times: 1 },
        Step::Plug { slot: 1, shape: BankShape { frames: 3, skew: 0 } },
    ];
    play_with_all_pinners(FRAME, &[2], 8, &steps);
}

#[test]
fn memory_in_use_keeps_its_frame_numbers_though_it_was_removed() {
    let steps = [
        Step::Act(start(0, &[(1, 0, 1)])),
        Step::Unplug { slot: 1 },
        Step::Plug { slot: 2, shape: BankShape { frames: 2, skew: 0 } },
        Step::Act(start(1, &[(1, 0, 2)])),
        Step::Act(end(0)),
        Step::Settle,
        Step::Plug { slot: 2, shape: BankShape { frames: 2, skew: 0 } },
        Step::Act(start(2, &[(1, 0, 2)])),
    ];
    play_with_all_pinners(FRAME, &[2, 2], 8, &steps);
}

#[test]
fn memory_can_be_withdrawn_where_older_memory_is_still_known() {
    let steps = [
        Step::Act(start(0, &[(1, 0, 1)])),
        Step::Unplug { slot: 1 },
        Step::Plug { slot: 1, shape: BankShape { frames: 4, skew: 0 } },
        Step::Withdraw(pages((1, 1, 2))),
    ];
    play_with_all_pinners(FRAME, &[2, 2], 8, &steps);
}

#[test]
fn who_waits_for_withdrawn_memory_is_in_nobodys_way() {
    let steps = [
        Step::Act(start(0, &[(0, 0, 2)])),
        Step::Act(start(1, &[(1, 0, 3)])),
        Step::Act(start(2, &[(0, 2, 1)])),
        Step::Act(Act::Look { program: 1 }),
        Step::Withdraw(pages((1, 0, 1))),
        Step::Act(Act::Look { program: 1 }),
        Step::Act(Act::Look { program: 2 }),
    ];
    play_with_all_pinners(FRAME, &[4, 4], 3, &steps);
}

/// 23 frames in the main circle are in use; the only idle one is on probation, was taken twice, and
/// moves to the main circle when the hand has passed it by.
#[test]
fn the_last_idle_frame_is_found() {
    let mut steps = Vec::new();
    for (program, wants) in [(0, (0, 0, 24)), (0, (0, 0, 24)), (1, (0, 30, 1)), (1, (0, 30, 1))] {
        steps.extend([start(program, &[wants]), end(program)].map(Step::Act));
    }
    steps.push(Step::Act(start(0, &[(0, 1, 23)])));
    steps.push(Step::Budget { bytes: 23 * FRAME });
    play_with_all_pinners(FRAME, &[40], 24, &steps);
}

/// Runs the load with several seeds and numbers of threads.
fn run_all(granule: u64, character: Character, refuses: bool, turns_knobs: bool) {
    for (seed, threads) in [(1, 2), (2, 3), (3, 4)] {
        let character = Character { lingers: Some(seed), ..character };
        run(Load { seed, threads, steps: 12_000, granule, character, refuses, turns_knobs });
    }
}

#[test]
fn threads_keep_to_the_books() {
    run_all(FRAME, NEEDED, false, false);
}

#[test]
fn threads_keep_to_the_books_while_knobs_turn() {
    run_all(FRAME, NEEDED, false, true);
}

#[test]
fn threads_keep_to_the_books_with_frames_of_several_sizes() {
    run_all(4 * FRAME, NEEDED, false, true);
}

#[test]
fn threads_keep_to_the_books_with_a_pinner_that_maps_single_frames() {
    let character = Character { joins_frames: false, most_runs: Some(30), ..NEEDED };
    run_all(4 * FRAME, character, false, true);
}

#[test]
fn threads_keep_to_the_books_with_a_pinner_that_is_not_needed() {
    run_all(4 * FRAME, Character { is_needed: false, ..NEEDED }, false, true);
}

#[test]
fn threads_keep_to_the_books_with_a_pinner_that_refuses() {
    run_all(2 * FRAME, NEEDED, true, true);
}
