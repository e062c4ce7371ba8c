//! Random histories of threads of the machine, with the machine's atomics.
#![cfg(not(any(loom, shuttle)))]

use vfio_ccw_models::checker::linearise;
use vfio_ccw_models::execution::{Plan, run};
use vfio_ccw_models::model::Model;
use vfio_ccw_models::properties;
use vfio_ccw_models::subject::{Subject, flawed, pmcw, sound};

/// Histories of a few instructions: threads come to them one after the other, in every order.
const SHORT: u64 = 3000;
/// Histories that are long enough for threads to run beside each other.
const LONG: u64 = 1000;
const LENGTH: usize = 100;

fn check<S: Subject>(subject: fn() -> S, plan: &Plan) {
    let history = run(subject(), plan);
    if let Err(refutation) = linearise(&history, &Model::new(&pmcw())) {
        panic!("{refutation}");
    }
    properties::check(&history);
}

#[test]
fn short_histories_are_linearisable() {
    (0..SHORT).for_each(|seed| check(sound, &Plan::random(seed)));
}

#[test]
fn long_histories_are_linearisable() {
    (0..LONG).for_each(|seed| check(sound, &Plan::of_length(LENGTH, seed)));
}

/// The copy is refuted for its flaws, and for nothing else.
#[test]
fn the_copy_without_a_flaw_is_linearisable() {
    (0..LONG).for_each(|seed| check(|| flawed(None), &Plan::of_length(LENGTH, seed)));
}
