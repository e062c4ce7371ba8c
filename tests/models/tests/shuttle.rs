//! Random interleavings of vCPUs and the channel, every access to the state a step.
//!
//! A history that fails is printed, with what makes shuttle run it again: a seed for
//! `SHUTTLE_RANDOM_SEED`, or a schedule for `shuttle::replay`.
#![cfg(shuttle)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use shuttle::rand::{RngCore, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

use vfio_ccw_models::checker::{Refutation, linearise};
use vfio_ccw_models::execution::{Plan, run};
use vfio_ccw_models::history::{History, Operation};
use vfio_ccw_models::model::Model;
use vfio_ccw_models::properties::{self, fetched_status, said};
use vfio_ccw_models::status::number_of;
use vfio_ccw_models::subject::{Cc, Flaw, Step, Subject, flawed, pmcw, sound};
use vfio_ccw_models::vcpus::Instruction::{
    self, Csch, Hsch, Leave, Rsch, Ssch, Stsch, Tell, Tpi, Tsch, Xsch,
};

/// Runs `model` under `scheduler`.
fn explore(scheduler: impl Scheduler + 'static, model: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    // It warns that orderings other than SeqCst count as SeqCst: they are for loom.
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(model);
}

/// Runs `model` in `times` random interleavings.
fn at_random(times: usize, model: impl Fn() + Send + Sync + 'static) {
    explore(RandomScheduler::new(times), model);
}

/// Runs `model` in `times` interleavings with few preemptions: those that are rare among random ones.
fn with_preemptions(preemptions: usize, times: usize, model: impl Fn() + Send + Sync + 'static) {
    explore(PctScheduler::new(preemptions + 1, times), model);
}

/// The history of `plan` on `subject`, and whether it is linearisable.
fn history_of(subject: impl Subject, plan: &Plan) -> (History, Result<(), Box<Refutation>>) {
    let history = run(subject, plan);
    let checked = linearise(&history, &Model::new(&pmcw())).map(drop);
    (history, checked)
}

/// The same for the project's cell, which must be.
fn sound_history_of(plan: &Plan) -> History {
    let (history, checked) = history_of(sound(), plan);
    if let Err(refutation) = checked {
        panic!("{refutation}");
    }
    properties::check(&history);
    history
}

/// The history of these programs, and whatever the channel does.
fn history_of_programs(programs: &[&[Instruction]]) -> History {
    sound_history_of(&Plan::of(programs, thread_rng().next_u64()))
}

/// Instructions with each of their condition codes, steps of the channel with each of their outcomes.
const EVERYTHING: &[&str] = &[
    "SSCH Cc0",
    "SSCH Cc1",
    "SSCH Cc2",
    "SSCH Cc3",
    "TSCH Cc0",
    "TSCH Cc1",
    "TSCH Cc3",
    "STSCH",
    "MSCH Cc0",
    "MSCH Cc1",
    "MSCH Cc2",
    "HSCH Cc0",
    "HSCH Cc1",
    "HSCH Cc2",
    "HSCH Cc3",
    "CSCH Cc0",
    "CSCH Cc3",
    "RSCH Cc0",
    "RSCH Cc1",
    "RSCH Cc2",
    "RSCH Cc3",
    "XSCH Cc0",
    "XSCH Cc1",
    "XSCH Cc2",
    "XSCH Cc3",
    "TPI true",
    "TPI false",
    "Tell true",
    "Tell false",
    "Leave",
    "IsStarted true",
    "IsStarted false",
    "IsResumed true",
    "IsResumed false",
    "FunctionPending true",
    "FunctionPending false",
    "Begin true",
    "Begin false",
    "Progress gone",
    "Progress quiet",
    "Progress interrupts",
    "Suspend gone",
    "Suspend quiet",
    "Suspend interrupts",
    "End gone",
    "End interrupts",
    "Alert gone",
    "Alert interrupts",
    "Perform gone",
    "Perform interrupts",
];

fn kind_of(operation: &Operation) -> String {
    let outcome = |step| match step {
        Step::Gone => "gone",
        Step::Quiet => "quiet",
        Step::Interrupts { .. } => "interrupts",
    };
    match operation {
        Operation::Ssch { cc, .. } => format!("SSCH {cc:?}"),
        Operation::Tsch { cc, .. } => format!("TSCH {cc:?}"),
        Operation::Stsch { .. } => "STSCH".to_owned(),
        Operation::Msch { cc, .. } => format!("MSCH {cc:?}"),
        Operation::Hsch { cc } => format!("HSCH {cc:?}"),
        Operation::Csch { cc } => format!("CSCH {cc:?}"),
        Operation::Rsch { cc } => format!("RSCH {cc:?}"),
        Operation::Xsch { cc, .. } => format!("XSCH {cc:?}"),
        Operation::Tpi { taken, .. } => format!("TPI {}", taken.is_some()),
        Operation::Tell { told, .. } => format!("Tell {}", told.is_some()),
        Operation::Leave => "Leave".to_owned(),
        Operation::IsStarted { is, .. } => format!("IsStarted {is}"),
        Operation::IsResumed { is, .. } => format!("IsResumed {is}"),
        Operation::FunctionPending { pending } => format!("FunctionPending {}", pending.is_some()),
        Operation::Begin { begun, .. } => format!("Begin {begun}"),
        Operation::Progress { said, .. } => format!("Progress {}", outcome(said.step)),
        Operation::Suspend { said, .. } => format!("Suspend {}", outcome(said.step)),
        Operation::End { said, .. } => format!("End {}", outcome(said.step)),
        Operation::Alert { said } => format!("Alert {}", outcome(said.step)),
        Operation::Perform { said, .. } => format!("Perform {}", outcome(said.step)),
    }
}

/// All instructions, at random, in random interleavings; and there is nothing that never happens.
#[test]
fn random_programs() {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let see = Arc::clone(&seen);
    at_random(100_000, move || {
        let history = sound_history_of(&Plan::random(thread_rng().next_u64()));
        see.lock().unwrap().extend(history.operations().map(kind_of));
    });
    let seen = seen.lock().unwrap();
    let unseen: Vec<_> = EVERYTHING.iter().filter(|kind| !seen.contains(**kind)).collect();
    assert!(unseen.is_empty(), "never happened: {unseen:?}");
}

/// The same with few preemptions.
#[test]
fn random_programs_with_few_preemptions() {
    for preemptions in 1..=4 {
        with_preemptions(preemptions, 20_000, || {
            sound_history_of(&Plan::random(thread_rng().next_u64()));
        });
    }
}

/// However many START SUBCHANNEL there are, one has condition code 0.
#[test]
fn one_start_is_accepted() {
    at_random(20_000, || {
        let history = history_of_programs(&[
            &[Ssch(1, true)],
            &[Ssch(2, true)],
            &[Ssch(3, true)],
            &[Ssch(4, true)],
        ]);
        let accepted =
            |operation: &&Operation| matches!(operation, Operation::Ssch { cc: Cc::Cc0, .. });
        assert_eq!(history.operations().filter(accepted).count(), 1, "{history}");
    });
}

/// Where nothing takes status back, one TEST SUBCHANNEL gets each that a function ends with.
#[test]
fn each_end_is_fetched_by_one() {
    at_random(20_000, || {
        let history = history_of_programs(&[
            &[Ssch(1, true), Tsch, Ssch(2, true), Tsch],
            &[Tsch, Tsch, Tsch],
            &[Tsch, Hsch, Tsch],
        ]);
        let fetched: BTreeSet<_> = fetched_status(&history).collect();
        let ends = history.operations().filter(|operation| {
            matches!(operation, Operation::End { .. } | Operation::Perform { .. })
        });
        for said in ends.filter_map(said).filter(|said| said.step != Step::Gone) {
            let number = number_of(&said.irb).unwrap();
            assert!(fetched.contains(&number), "nobody got status {number}\n{history}");
        }
    });
}

/// The status of a start that was cleared, or cancelled, does not become that of the next.
#[test]
fn a_cleared_start_says_nothing_more() {
    let programs: [&[&[Instruction]]; 3] = [
        &[&[Ssch(1, true), Csch, Tsch, Ssch(2, true), Tsch], &[Tsch, Tsch, Tsch], &[Ssch(3, true)]],
        &[
            &[Ssch(1, true), Xsch(false), Ssch(2, true), Tsch],
            &[Ssch(3, true), Tsch],
            &[Tsch, Csch],
        ],
        &[
            &[Ssch(1, true), Xsch(true), Ssch(2, true), Tsch],
            &[Xsch(false), Ssch(3, true)],
            &[Csch],
        ],
    ];
    for programs in programs {
        at_random(10_000, || drop(history_of_programs(programs)));
        with_preemptions(2, 10_000, || drop(history_of_programs(programs)));
    }
}

/// Many STORE SUBCHANNEL while the channel writes.
const STORES: &[&[Instruction]] = &[
    &[Ssch(1, true), Tsch, Tsch, Ssch(2, true)],
    &[Stsch, Stsch, Stsch, Stsch],
    &[Stsch, Rsch, Stsch, Stsch],
];

/// STORE SUBCHANNEL, whatever the channel writes meanwhile.
#[test]
fn stored_status_is_whole() {
    at_random(20_000, || drop(history_of_programs(STORES)));
    with_preemptions(2, 20_000, || drop(history_of_programs(STORES)));
}

/// Interruptions, and several who take them.
#[test]
fn interruptions_are_taken_once() {
    // Its own subclass among others, and others.
    const ALL: u8 = 0xff;
    const OTHERS: u8 = 0xe0;
    let programs: &[&[Instruction]] = &[
        &[Ssch(1, true), Tpi(ALL), Tpi(OTHERS), Tsch, Ssch(2, true)],
        &[Tpi(ALL), Tpi(ALL), Tsch, Tpi(ALL)],
        &[Tell(ALL), Tpi(ALL), Hsch, Tpi(ALL)],
    ];
    at_random(20_000, || drop(history_of_programs(programs)));
}

/// Suspended programs, and several who resume, halt or cancel them.
#[test]
fn suspensions() {
    let programs: &[&[Instruction]] = &[
        &[Ssch(1, true), Rsch, Rsch, Tsch, Rsch],
        &[Tsch, Rsch, Xsch(false), Ssch(2, true), Tsch],
        &[Rsch, Tsch, Hsch, Tsch],
    ];
    at_random(20_000, || drop(history_of_programs(programs)));
}

/// A device that leaves while its subchannel is at work.
#[test]
fn a_device_leaves() {
    let programs: &[&[Instruction]] =
        &[&[Ssch(1, true), Tsch, Hsch, Tsch], &[Csch, Ssch(2, true), Tsch], &[Leave, Stsch]];
    at_random(20_000, || drop(history_of_programs(programs)));
}

/// What is run for a seed.
type Plans = fn(u64) -> Plan;

/// In which history of programs that `plan` makes from a seed, counted from 1, a check first finds
/// `flaw`, in random interleavings or in ones with few preemptions; `None`: in none of `times` of each.
fn found(flaw: Option<Flaw>, plan: Plans, times: usize) -> Option<usize> {
    let histories = Arc::new(AtomicUsize::new(0));
    let found = Arc::new(AtomicUsize::new(0));
    let model = {
        let (histories, found) = (Arc::clone(&histories), Arc::clone(&found));
        move || {
            // Relaxed, here and below: one thread runs all of this.
            if found.load(Ordering::Relaxed) != 0 {
                return;
            }
            let number = histories.fetch_add(1, Ordering::Relaxed) + 1;
            if history_of(flawed(flaw), &plan(thread_rng().next_u64())).1.is_err() {
                found.store(number, Ordering::Relaxed);
            }
        }
    };
    // The same interleavings each time: this is about the check, and must not depend on luck.
    explore(RandomScheduler::new_from_seed(0, times), model.clone());
    if found.load(Ordering::Relaxed) == 0 {
        explore(PctScheduler::new_from_seed(0, 3, times), model);
    }
    Some(found.load(Ordering::Relaxed)).filter(|number| *number != 0)
}

/// The check finds what is wrong with a cell that is not atomic in one way or another.
#[test]
fn flaws_are_found() {
    let flaws: [(Flaw, Plans); 6] = [
        (Flaw::FetchesUnchecked, Plan::random),
        (Flaw::StoresUnchecked, |seed| Plan::of(STORES, seed)),
        (Flaw::WritesInPlace, Plan::random),
        (Flaw::StartsUnchecked, Plan::random),
        (Flaw::StartsAlike, Plan::random),
        (Flaw::TakesNothing, Plan::random),
    ];
    for (flaw, plan) in flaws {
        let number = found(Some(flaw), plan, 20_000);
        assert!(number.is_some(), "{flaw:?} was not found");
        println!("{flaw:?} is found in history {}", number.unwrap_or_default());
    }
}

/// And nothing where nothing is wrong.
#[test]
fn no_flaw_is_found_where_there_is_none() {
    assert_eq!(found(None, Plan::random, 10_000), None);
    assert_eq!(found(None, |seed| Plan::of(STORES, seed), 10_000), None);
}
