//! The memory ordering of the state word, and of the status buffers beside it: every interleaving with
//! so many preemptions, and every value that a load may have in it.
//!
//! Models are of a few steps, and no thread waits for another. Two status blocks that follow on the one
//! that is pending are enough: the second goes where a vCPU may still read.
#![cfg(loom)]

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use loom::model::Builder;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use vfio_ccw_models::architecture::ScswFlags;
use vfio_ccw_models::status::{block, number_of, number_of_scsw};
use vfio_ccw_models::subject::{Cc, Step, Subject, pmcw, sound};

const INTERMEDIATE: ScswFlags = ScswFlags::INTERMEDIATE.union(ScswFlags::STATUS_PENDING);
const ENDED: ScswFlags =
    ScswFlags::PRIMARY.union(ScswFlags::SECONDARY).union(ScswFlags::STATUS_PENDING);

/// Number of the start, and of its status blocks.
const START: u32 = 7;
const FIRST: u32 = 1;
const SECOND: u32 = 2;
const LAST: u32 = 3;

/// Runs `model` in every interleaving with so many preemptions, or in every one.
fn check(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(move || {
        // Relaxed, here and below: one thread runs all of this.
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{} executions", executions.load(Ordering::Relaxed));
}

/// A program that runs, and its first status is pending.
fn running<S: Subject>(cell: S) -> (Arc<S>, S::Tag) {
    let tag = cell.ssch(START, true).unwrap();
    assert!(cell.begin(tag));
    let cell = Arc::new(cell);
    goes_on(&cell, tag, FIRST);
    (cell, tag)
}

/// The program goes on.
fn goes_on<S: Subject>(cell: &Arc<S>, tag: S::Tag, number: u32) {
    let step = cell.progress(tag, &block(number, INTERMEDIATE, true), 0);
    assert_ne!(step, Step::Gone);
}

/// The program ends.
fn ends<S: Subject>(cell: &Arc<S>, tag: S::Tag) {
    let step = cell.end(tag, &block(LAST, ENDED, false), 0);
    assert_ne!(step, Step::Gone);
}

/// Does `act` on another thread.
fn beside<S: Subject, T: 'static>(
    cell: &Arc<S>,
    act: impl FnOnce(&Arc<S>) -> T + 'static,
) -> thread::JoinHandle<T> {
    let cell = Arc::clone(cell);
    thread::spawn(move || act(&cell))
}

/// The channel, with two more status blocks: the second is written where the first one stands.
fn channel<S: Subject>(cell: &Arc<S>, tag: S::Tag) -> thread::JoinHandle<()> {
    beside(cell, move |cell| {
        goes_on(cell, tag, SECOND);
        ends(cell, tag);
    })
}

/// Status is that of one step, and it is the step that the state word tells of.
fn check_status(number: Option<u32>, control: ScswFlags) -> u32 {
    let number = number.expect("every word is that of one status");
    assert_eq!(number == LAST, control.contains(ScswFlags::PRIMARY));
    number
}

/// TEST SUBCHANNEL. `None`: no status is pending.
fn fetch<S: Subject>(cell: &Arc<S>) -> Option<u32> {
    let (cc, irb) = cell.tsch();
    assert!(matches!(cc, Cc::Cc0 | Cc::Cc1));
    (cc == Cc::Cc0).then(|| check_status(number_of(&irb), irb.scsw.flags()))
}

/// STORE SUBCHANNEL. `None`: no status is pending.
fn store<S: Subject>(cell: &Arc<S>) -> Option<u32> {
    let (_, scsw) = cell.stsch(&pmcw());
    let is_pending = scsw.flags().contains(ScswFlags::STATUS_PENDING);
    is_pending.then(|| check_status(number_of_scsw(&scsw), scsw.flags()))
}

/// The channel writes status while a vCPU fetches it.
#[test]
fn fetched_status_is_whole() {
    check(Some(5), || {
        let (cell, tag) = running(sound());
        let channel = channel(&cell, tag);
        let fetched = fetch(&cell);
        assert!(fetched.is_some());
        channel.join().unwrap();
        let left = (fetched != Some(LAST)).then_some(LAST);
        assert_eq!(fetch(&cell), left);
    });
}

/// The channel writes status while a vCPU stores it.
#[test]
fn stored_status_is_whole() {
    check(Some(4), || {
        let (cell, tag) = running(sound());
        let channel = channel(&cell, tag);
        assert!(store(&cell).is_some());
        channel.join().unwrap();
        assert_eq!(store(&cell), Some(LAST));
    });
}

/// The channel writes status while a vCPU fetches it and another stores it.
#[test]
fn fetched_and_stored_status_is_whole() {
    check(Some(1), || {
        let (cell, tag) = running(sound());
        let channel = channel(&cell, tag);
        let other = beside(&cell, store);
        assert!(fetch(&cell).is_some());
        other.join().unwrap();
        channel.join().unwrap();
    });
}

/// The same with one status block, in every interleaving.
#[test]
fn fetched_and_stored_status_of_an_end_is_whole() {
    check(None, || {
        let (cell, tag) = running(sound());
        let channel = beside(&cell, move |cell| ends(cell, tag));
        let other = beside(&cell, store);
        assert!(fetch(&cell).is_some());
        other.join().unwrap();
        channel.join().unwrap();
    });
}

/// The channel writes status while two vCPUs fetch it: each status is for one of them.
#[test]
fn status_is_fetched_once() {
    check(None, || {
        let (cell, tag) = running(sound());
        let channel = beside(&cell, move |cell| ends(cell, tag));
        let other = beside(&cell, fetch);
        let one = fetch(&cell);
        let other = other.join().unwrap();
        channel.join().unwrap();
        let fetched: Vec<_> = [one, other, fetch(&cell)].into_iter().flatten().collect();
        let times = |number| fetched.iter().filter(|fetched| **fetched == number).count();
        assert_eq!(times(LAST), 1, "{fetched:?}");
        assert!(times(FIRST) <= 1, "{fetched:?}");
    });
}

/// What a guest writes before RESUME SUBCHANNEL is there for the program that goes on.
#[test]
fn a_resumed_program_sees_what_the_guest_wrote() {
    check(None, || {
        let (cell, tag) = running(sound());
        assert_eq!(fetch(&cell), Some(FIRST));
        assert_eq!(cell.suspend(tag, &block(SECOND, ScswFlags::SUSPENDED, false), 0), Step::Quiet);
        let memory = Arc::new(AtomicU32::new(0));
        let vcpu = beside(&cell, {
            let memory = Arc::clone(&memory);
            move |cell| {
                // Relaxed: the instruction orders it.
                memory.store(1, Ordering::Relaxed);
                assert_eq!(cell.rsch(), Cc::Cc0);
            }
        });
        if cell.is_resumed(tag) {
            // Relaxed: ordered by what was just seen.
            assert_eq!(memory.load(Ordering::Relaxed), 1);
        }
        vcpu.join().unwrap();
    });
}

/// What a program has written is there for the guest that fetches the status of its end, or takes the
/// interruption.
#[test]
fn a_guest_sees_what_its_program_wrote() {
    for takes_interruption in [false, true] {
        check(None, move || {
            let cell = sound();
            let tag = cell.ssch(START, true).unwrap();
            assert!(cell.begin(tag));
            let cell = Arc::new(cell);
            let memory = Arc::new(AtomicU32::new(0));
            let channel = beside(&cell, {
                let memory = Arc::clone(&memory);
                move |cell| {
                    // Relaxed: presenting the status orders it.
                    memory.store(1, Ordering::Relaxed);
                    ends(cell, tag);
                }
            });
            let has_ended = match takes_interruption {
                true => cell.tpi(0xff).is_some(),
                false => fetch(&cell).is_some(),
            };
            if has_ended {
                // Relaxed: ordered by what was just seen.
                assert_eq!(memory.load(Ordering::Relaxed), 1);
            }
            channel.join().unwrap();
        });
    }
}
