//! What must hold of every history, said without the model: these find a model that allows too much.

use std::collections::{HashMap, HashSet};

use crate::history::{History, Operation, Said};
use crate::status::{CONTROL, number_of, number_of_scsw};
use crate::subject::{Cc, Step};

/// Checks all of them.
///
/// # Panics
///
/// One does not hold.
pub fn check(history: &History) {
    status_is_whole(history);
    status_is_fetched_once(history);
    status_that_was_not_presented_is_not_fetched(history);
    what_is_over_says_nothing_more(history);
    interruptions_are_taken_once(history);
    nothing_is_left(history);
}

/// Status that is fetched or stored is that of one step of the channel, every word of it.
fn status_is_whole(history: &History) {
    for operation in history.operations() {
        match operation {
            Operation::Tsch { cc: Cc::Cc0, irb } => {
                assert!(number_of(irb).is_some(), "torn: {operation}\n{history}");
            }
            Operation::Stsch { scsw, .. } if scsw.cpa() != 0 => {
                assert!(number_of_scsw(scsw).is_some(), "torn: {operation}\n{history}");
            }
            _ => {}
        }
    }
}

/// One TEST SUBCHANNEL gets a status, and no other does.
fn status_is_fetched_once(history: &History) {
    let mut fetched = HashSet::new();
    for number in fetched_status(history) {
        assert!(fetched.insert(number), "status {number:#x} is fetched again\n{history}");
    }
}

/// What a step has said that came too late is never seen.
fn status_that_was_not_presented_is_not_fetched(history: &History) {
    let steps = history.operations().filter_map(said);
    let presented: HashSet<_> = steps
        .filter(|said| said.step != Step::Gone)
        .filter_map(|said| number_of(&said.irb))
        .collect();
    for number in fetched_status(history) {
        assert!(presented.contains(&number), "status {number:#x} came too late\n{history}");
    }
}

/// Once a START, CLEAR or CANCEL SUBCHANNEL is accepted, the status of no start from before is fetched.
fn what_is_over_says_nothing_more(history: &History) {
    let events = || history.threads.iter().flatten();
    let starts: HashMap<_, _> = events()
        .filter_map(|event| match event.operation {
            Operation::Ssch { start, cc: Cc::Cc0, .. } => Some((start, event)),
            _ => None,
        })
        .collect();
    let speakers: HashMap<_, _> = events()
        .filter_map(|event| match event.operation {
            Operation::Progress { start, said }
            | Operation::Suspend { start, said }
            | Operation::End { start, said } => Some((number_of(&said.irb)?, start)),
            _ => None,
        })
        .collect();
    let ends_others = |operation: &Operation| match operation {
        Operation::Ssch { cc, .. } | Operation::Csch { cc } | Operation::Xsch { cc, .. } => {
            *cc == Cc::Cc0
        }
        _ => false,
    };
    for fetch in events() {
        let Operation::Tsch { cc: Cc::Cc0, irb } = fetch.operation else { continue };
        let speaker = number_of(&irb).and_then(|number| speakers.get(&number));
        let Some(started) = speaker.and_then(|start| starts.get(start)) else { continue };
        for end in events().filter(|event| ends_others(&event.operation)) {
            let is_over = started.responded < end.invoked && end.responded < fetch.invoked;
            let (started, end, fetch) = (started.operation, end.operation, fetch.operation);
            assert!(!is_over, "{started}, and after {end} comes {fetch}\n{history}");
        }
    }
}

/// When all is fetched at the end, nothing is in progress: nothing was lost.
fn nothing_is_left(history: &History) {
    let last = history.threads.last().and_then(|thread| thread.last());
    if let Some(Operation::Stsch { scsw, .. }) = last.map(|event| event.operation) {
        assert!(!scsw.flags().intersects(CONTROL), "something is left\n{history}");
    }
}

/// No more interruptions are taken, and told of, than there were.
fn interruptions_are_taken_once(history: &History) {
    let count =
        |counts: fn(&Operation) -> bool| history.operations().filter(|it| counts(it)).count();
    let interruptions = count(|operation| {
        said(operation).is_some_and(|said| matches!(said.step, Step::Interrupts { .. }))
    });
    let taken = count(|operation| matches!(operation, Operation::Tpi { taken: Some(_), .. }));
    let untold = count(|operation| {
        said(operation)
            .is_some_and(|said| matches!(said.step, Step::Interrupts { told: false, .. }))
    });
    let told = count(|operation| matches!(operation, Operation::Tell { told: Some(_), .. }));
    assert!(
        taken <= interruptions,
        "{taken} of {interruptions} interruptions are taken\n{history}"
    );
    assert!(told <= untold, "{told} of {untold} interruptions are told of\n{history}");
}

/// The numbers of the status that TEST SUBCHANNEL has fetched.
pub fn fetched_status(history: &History) -> impl Iterator<Item = u32> {
    history.operations().filter_map(|operation| match operation {
        Operation::Tsch { cc: Cc::Cc0, irb } => number_of(irb),
        _ => None,
    })
}

/// What the channel says with `operation`.
pub fn said(operation: &Operation) -> Option<&Said> {
    match operation {
        Operation::Progress { said, .. }
        | Operation::Suspend { said, .. }
        | Operation::End { said, .. }
        | Operation::Perform { said, .. }
        | Operation::Alert { said } => Some(said),
        _ => None,
    }
}
