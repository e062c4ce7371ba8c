//! The checker itself: histories that are written out, some of which nobody could explain.
#![cfg(not(any(loom, shuttle)))]

use vfio_ccw_models::architecture::{Function, IoInterruption, IrbHead, Scsw, ScswFlags};
use vfio_ccw_models::checker::linearise;
use vfio_ccw_models::history::{Event, History, Operation, Said};
use vfio_ccw_models::model::Model;
use vfio_ccw_models::status::{CONTROL, block, number_of, number_of_scsw};
use vfio_ccw_models::subject::{Cc, Step, id, pmcw};

const ENDED: ScswFlags = ScswFlags::START_FUNCTION
    .union(ScswFlags::PRIMARY)
    .union(ScswFlags::SECONDARY)
    .union(ScswFlags::STATUS_PENDING);

/// What was done from one moment to another.
fn at(invoked: u64, responded: u64, operation: Operation) -> Event {
    Event { operation, invoked, responded }
}

/// Whether what these threads did follows the rules.
fn is_linearisable(threads: &[&[Event]]) -> bool {
    let threads = threads.iter().map(|events| events.to_vec()).collect();
    linearise(&History { threads }, &Model::new(&pmcw())).is_ok()
}

fn ssch(start: u32, cc: Cc) -> Operation {
    Operation::Ssch { start, has_path: true, cc }
}

fn begin(start: u32, begun: bool) -> Operation {
    Operation::Begin { start, begun }
}

/// Start `start` ends with status `number`.
fn end(start: u32, number: u32) -> Operation {
    let step = Step::Interrupts { intparm: start, isc: 3, told: true };
    Operation::End { start, said: Said { irb: block(number, ENDED, false), tell: 0xff, step } }
}

/// The same, but too late.
fn end_too_late(start: u32, number: u32) -> Operation {
    let irb = block(number, ENDED, false);
    Operation::End { start, said: Said { irb, tell: 0xff, step: Step::Gone } }
}

/// Status `number` of an end is fetched.
fn tsch(number: u32) -> Operation {
    Operation::Tsch { cc: Cc::Cc0, irb: block(number, ENDED, false) }
}

/// There is no status; this is in progress.
fn tsch_in_vain(control: ScswFlags) -> Operation {
    Operation::Tsch { cc: Cc::Cc1, irb: IrbHead { scsw: Scsw::new(control), ..IrbHead::default() } }
}

fn stsch(intparm: u32, scsw: Scsw) -> Operation {
    let mut pmcw = pmcw();
    pmcw.intparm = intparm.into();
    Operation::Stsch { pmcw, scsw }
}

fn tpi(intparm: u32) -> Operation {
    let interruption = IoInterruption { subchannel: id(), intparm, isc: 3 };
    Operation::Tpi { mask: 0xff, taken: Some(interruption) }
}

#[test]
fn one_thing_after_the_other() {
    let waits = ScswFlags::START_FUNCTION | ScswFlags::START_PENDING;
    assert!(is_linearisable(&[&[
        at(0, 1, tsch_in_vain(ScswFlags::empty())),
        at(2, 3, ssch(7, Cc::Cc0)),
        at(4, 5, ssch(8, Cc::Cc2)),
        at(6, 7, stsch(7, Scsw::new(waits))),
        at(8, 9, begin(7, true)),
        at(10, 11, end(7, 1)),
        at(12, 13, ssch(8, Cc::Cc1)),
        at(14, 15, tpi(7)),
        at(16, 17, stsch(7, block(1, ENDED, false).scsw)),
        at(18, 19, tsch(1)),
        at(20, 21, ssch(8, Cc::Cc0)),
    ]]));
}

#[test]
fn what_overlaps_may_have_come_in_any_order() {
    // The channel has heard of a start whose instruction is not over yet, and so has another vCPU.
    let vcpus: [&[Event]; 2] = [&[at(0, 9, ssch(7, Cc::Cc0))], &[at(5, 8, tsch(1))]];
    let channel: &[Event] = &[at(1, 2, begin(7, true)), at(3, 6, end(7, 1))];
    assert!(is_linearisable(&[vcpus[0], vcpus[1], channel]));
}

#[test]
fn what_is_over_stays_before_what_comes_after() {
    let started: &[Event] = &[at(0, 1, ssch(7, Cc::Cc0)), at(2, 3, begin(7, true))];
    assert!(is_linearisable(&[started, &[at(4, 7, end(7, 1))], &[at(5, 6, tsch(1))]]));
    assert!(!is_linearisable(&[started, &[at(6, 7, end(7, 1))], &[at(4, 5, tsch(1))]]));
}

#[test]
fn two_starts_are_not_accepted() {
    let [first, second] = [at(0, 3, ssch(7, Cc::Cc0)), at(1, 2, ssch(8, Cc::Cc0))];
    assert!(!is_linearisable(&[&[first], &[second]]));
}

#[test]
fn none_of_two_starts_is_refused_before_the_other_is_accepted() {
    let [first, second] = [at(0, 1, ssch(7, Cc::Cc2)), at(2, 3, ssch(8, Cc::Cc0))];
    assert!(!is_linearisable(&[&[first], &[second]]));
}

#[test]
fn status_is_not_fetched_twice() {
    let started: &[Event] =
        &[at(0, 1, ssch(7, Cc::Cc0)), at(2, 3, begin(7, true)), at(4, 5, end(7, 1))];
    let nothing = tsch_in_vain(ScswFlags::empty());
    assert!(is_linearisable(&[started, &[at(6, 9, tsch(1))], &[at(7, 8, nothing)]]));
    assert!(!is_linearisable(&[started, &[at(6, 9, tsch(1))], &[at(7, 8, tsch(1))]]));
}

#[test]
fn a_cleared_start_does_not_end_the_next() {
    let performed = ScswFlags::CLEAR_FUNCTION | ScswFlags::STATUS_PENDING;
    let cleared = Said {
        irb: block(1, performed, false),
        tell: 0xff,
        step: Step::Interrupts { intparm: 7, isc: 3, told: true },
    };
    let vcpu: &[Event] = &[
        at(0, 1, ssch(7, Cc::Cc0)),
        at(2, 3, Operation::Csch { cc: Cc::Cc0 }),
        at(6, 7, Operation::Tsch { cc: Cc::Cc0, irb: cleared.irb }),
        at(8, 9, ssch(8, Cc::Cc0)),
    ];
    let perform = at(4, 5, Operation::Perform { function: Function::Clear, said: cleared });
    // The device is done with the first start only now.
    let late = at(10, 11, end_too_late(7, 2));
    assert!(is_linearisable(&[vcpu, &[perform, late]]));
    let taken_for_the_second = at(10, 11, end(7, 2));
    assert!(!is_linearisable(&[vcpu, &[perform, taken_for_the_second]]));
}

#[test]
fn an_interruption_is_not_taken_twice() {
    let started: &[Event] =
        &[at(0, 1, ssch(7, Cc::Cc0)), at(2, 3, begin(7, true)), at(4, 5, end(7, 1))];
    let [first, second] = [at(6, 9, tpi(7)), at(7, 8, tpi(7))];
    assert!(is_linearisable(&[started, &[first]]));
    assert!(!is_linearisable(&[started, &[first], &[second]]));
}

#[test]
fn an_interruption_goes_with_its_status() {
    let started: &[Event] =
        &[at(0, 1, ssch(7, Cc::Cc0)), at(2, 3, begin(7, true)), at(4, 5, end(7, 1))];
    assert!(is_linearisable(&[started, &[at(6, 9, tsch(1))], &[at(7, 8, tpi(7))]]));
    assert!(!is_linearisable(&[started, &[at(6, 7, tsch(1))], &[at(8, 9, tpi(7))]]));
}

#[test]
fn what_is_stored_is_of_one_moment() {
    let waits = ScswFlags::START_FUNCTION | ScswFlags::START_PENDING;
    let started = at(0, 3, ssch(7, Cc::Cc0));
    for (intparm, control) in [(0, ScswFlags::empty()), (7, waits)] {
        assert!(is_linearisable(&[&[started], &[at(1, 2, stsch(intparm, Scsw::new(control)))]]));
    }
    for (intparm, control) in [(7, ScswFlags::empty()), (0, waits)] {
        assert!(!is_linearisable(&[&[started], &[at(1, 2, stsch(intparm, Scsw::new(control)))]]));
    }
}

#[test]
fn what_was_seen_is_not_unseen() {
    let started = at(0, 9, ssch(7, Cc::Cc0));
    let waits = Scsw::new(ScswFlags::START_FUNCTION | ScswFlags::START_PENDING);
    let [before, after] = [stsch(0, Scsw::default()), stsch(7, waits)];
    assert!(is_linearisable(&[&[started], &[at(1, 2, before), at(3, 4, after)]]));
    assert!(!is_linearisable(&[&[started], &[at(1, 2, after), at(3, 4, before)]]));
}

#[test]
fn torn_status_is_status_of_nobody() {
    let [older, newer] = [block(1, ENDED, false), block(2, ENDED, false)];
    assert_eq!((number_of(&older), number_of(&newer)), (Some(1), Some(2)));
    let torn = [
        IrbHead { scsw: newer.scsw, ..older },
        IrbHead { esw: newer.esw, ..older },
        IrbHead { ecw: newer.ecw, ..older },
    ];
    let started: &[Event] =
        &[at(0, 1, ssch(7, Cc::Cc0)), at(2, 3, begin(7, true)), at(4, 5, end(7, 1))];
    for irb in torn {
        assert_eq!(number_of(&irb), None);
        let fetched = at(6, 7, Operation::Tsch { cc: Cc::Cc0, irb });
        assert!(!is_linearisable(&[started, &[fetched]]));
    }
    let torn = older.scsw.with_cpa(newer.scsw.cpa());
    assert_eq!(number_of_scsw(&torn), None);
    assert!(!is_linearisable(&[started, &[at(6, 7, stsch(7, torn))]]));
}

#[test]
fn control_does_not_change_whose_status_it_is() {
    for control in [ENDED, CONTROL, ScswFlags::empty()] {
        for program_controlled in [false, true] {
            let irb = block(5, control, program_controlled);
            assert_eq!((number_of(&irb), number_of_scsw(&irb.scsw)), (Some(5), Some(5)));
        }
    }
}

#[test]
fn a_refutation_tells_how_far_it_goes() {
    let threads = vec![vec![at(0, 3, ssch(7, Cc::Cc0))], vec![at(1, 2, ssch(8, Cc::Cc0))]];
    let refutation = linearise(&History { threads }, &Model::new(&pmcw())).unwrap_err();
    let text = refutation.to_string();
    assert!(text.contains("SSCH 0x7: Cc0") && text.contains("SSCH 0x8: Cc0"), "{text}");
    assert!(text.contains("goes on with"), "{text}");
}
