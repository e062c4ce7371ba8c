//! The submission ring on real threads, and against a model with holes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use crossbeam_utils::CachePadded;
use proptest::prelude::*;

use super::ticket::TicketedSlot;
use super::*;
use crate::sync::{AtomicUsize, Ordering};

/// An entry claimed by a producer that was then descheduled.
struct Stuck<T> {
    ring: Ring<T>,
    position: usize,
}

impl<T> Stuck<T> {
    fn claim(submitter: &Submitter<T>) -> Option<Self> {
        let ring = submitter.ring.clone();
        ring.claim(|_| 1).map(|(position, _)| Self { ring, position })
    }

    fn publish(self, value: T) {
        let slot = self.ring.slot(self.position);
        // SAFETY: as in `Submitter::push`, whose two halves this is.
        unsafe { slot.entry.put(value) };
        slot.publish(self.position);
        self.ring.hint(self.position.wrapping_add(1));
    }
}

/// Says it has one entry more than it gives.
struct Short<I>(I);

impl<I: ExactSizeIterator> Iterator for Short<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len() + 1, Some(self.0.len() + 1))
    }
}

impl<I: ExactSizeIterator> ExactSizeIterator for Short<I> {}

fn all<T: Send>(intake: &mut Intake<T>) -> Vec<T> {
    let mut taken = Vec::new();
    intake.pop_burst(usize::MAX, |entry| taken.push(entry));
    taken
}

#[test]
fn room_is_what_pushes_find() {
    let (submitter, mut intake) = ring(4);
    assert!(submitter.has_room(4) && !submitter.has_room(5));
    submitter.push(1).unwrap();
    submitter.push(2).unwrap();
    assert!(submitter.has_room(2) && !submitter.has_room(3));
    submitter.push_burst([3, 4].into_iter());
    assert!(submitter.has_room(0) && !submitter.has_room(1));
    assert_eq!(intake.pop(), Some(1));
    assert!(submitter.has_room(1) && !submitter.has_room(2));
}

#[test]
fn capacity_is_rounded_up() {
    for (asked, given) in [(0, 1), (1, 1), (2, 2), (3, 4), (1000, 1024)] {
        let (submitter, intake) = ring::<u8>(asked);
        assert_eq!((submitter.capacity(), intake.capacity()), (given, given));
    }
}

#[test]
fn a_lap_visits_each_slot_once() {
    fn visited<T: Send>() {
        let (submitter, _intake) = ring::<T>(64);
        let mut slots: Vec<_> =
            (0..64).map(|position| &raw const *submitter.ring.slot(position)).collect();
        slots.sort();
        slots.dedup();
        assert_eq!(slots.len(), 64);
    }
    visited::<()>();
    visited::<u64>();
    visited::<[u64; 2]>();
    visited::<[u64; 5]>();
    visited::<[u64; 50]>();
}

/// 65,536 idle rings of 8 entries of 40 bytes must stay small.
#[test]
fn an_idle_ring_is_small() {
    let line = align_of::<CachePadded<u8>>();
    let slots = 8 * size_of::<TicketedSlot<[u64; 5]>>();
    let counts = 2 * size_of::<usize>();
    assert_eq!(slots, 8 * 48);
    let tail = line + size_of::<CachePadded<AtomicUsize>>();
    let holes = size_of::<u64>();
    assert!(tail + counts + slots + holes <= 1024);
    assert_eq!(size_of::<Submitter<[u64; 5]>>(), 24);
    assert_eq!(size_of::<Intake<[u64; 5]>>(), 72);
}

#[test]
fn full_gives_the_entry_back() {
    for capacity in [1, 2, 4] {
        let (submitter, mut intake) = ring(capacity);
        for lap in 0..3 {
            for entry in 0..capacity {
                submitter.push(entry).unwrap();
            }
            assert_eq!(submitter.push(99), Err(Full(99)), "lap {lap}");
            assert_eq!(submitter.push_burst([1, 2].into_iter()), 0, "lap {lap}");
            assert_eq!(all(&mut intake), (0..capacity).collect::<Vec<_>>());
            assert!(intake.is_empty());
        }
    }
}

#[test]
fn bursts_take_what_fits_and_leave_the_rest() {
    let (submitter, mut intake) = ring(4);
    let mut entries = [1, 2, 3, 4, 5, 6].into_iter();
    assert_eq!(submitter.push_burst(&mut entries), 4);
    assert_eq!(entries.as_slice(), [5, 6]);
    let mut taken = Vec::new();
    assert_eq!(intake.pop_burst(3, |entry| taken.push(entry)), 3);
    assert_eq!(submitter.push_burst(&mut entries), 2);
    assert_eq!(submitter.push_burst(std::iter::empty()), 0);
    taken.extend(all(&mut intake));
    assert_eq!(taken, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn positions_wrap() {
    let (submitter, mut intake) = ring(4);
    let start = usize::MAX - 1;
    submitter.ring.tail.store(start, Ordering::Relaxed);
    intake.cursor = start;
    for ahead in 0..4 {
        let position = start.wrapping_add(ahead);
        submitter.ring.slot(position).free(position);
    }
    for lap in 0..4 {
        let hole = Stuck::claim(&submitter).unwrap();
        assert_eq!(submitter.push_burst(1..9), 3, "lap {lap}");
        assert_eq!(all(&mut intake), [1, 2, 3], "lap {lap}");
        assert_eq!(submitter.push(4), Err(Full(4)), "lap {lap}");
        hole.publish(0);
        assert_eq!(all(&mut intake), [0], "lap {lap}");
    }
}

#[test]
fn a_stuck_producer_holds_up_nobody() {
    let (submitter, mut intake) = ring(8);
    let first = Stuck::claim(&submitter).unwrap();
    submitter.push("a").unwrap();
    let second = Stuck::claim(&submitter).unwrap();
    submitter.push("b").unwrap();
    assert!(!intake.is_empty());
    assert_eq!(all(&mut intake), ["a", "b"]);
    assert!(intake.is_empty());

    submitter.push("c").unwrap();
    second.publish("second");
    assert!(!intake.is_empty());
    assert_eq!(all(&mut intake), ["second", "c"]);
    first.publish("first");
    assert_eq!(all(&mut intake), ["first"]);
    assert!(intake.skipped.is_empty());
}

#[test]
fn a_hole_limits_the_ring_to_one_lap() {
    let (submitter, mut intake) = ring(4);
    let hole = Stuck::claim(&submitter).unwrap();
    assert_eq!(submitter.push_burst(0..9), 3);
    assert_eq!(all(&mut intake), [0, 1, 2]);
    assert_eq!(submitter.push(3), Err(Full(3)));
    hole.publish(7);
    assert_eq!(all(&mut intake), [7]);
    assert_eq!(submitter.push_burst(0..9), 4);
}

/// A producer that was away for laps sets the hint, which all others have passed.
#[test]
fn a_stale_hint_is_walked_past() {
    let (submitter, mut intake) = ring(4);
    for lap in 0..5 {
        for stale in 0..lap * 4 {
            submitter.push(0).unwrap();
            intake.pop().unwrap();
            submitter.ring.tail.store(stale, Ordering::Relaxed);
            submitter.push(1).unwrap();
            assert_eq!(all(&mut intake), [1], "hint {stale}");
            submitter.ring.tail.store(stale, Ordering::Relaxed);
            assert_eq!(submitter.push_burst(0..9), 4, "hint {stale}");
            submitter.ring.tail.store(stale, Ordering::Relaxed);
            assert_eq!(submitter.push(0), Err(Full(0)), "hint {stale}");
            assert_eq!(all(&mut intake), [0, 1, 2, 3], "hint {stale}");
        }
    }
}

/// The consumer and another producer run while a burst is half published.
#[test]
fn a_burst_in_progress_is_taken_as_far_as_it_is() {
    let (submitter, intake) = ring(8);
    let intake = RefCell::new(intake);
    let seen = RefCell::new(Vec::new());
    let entries = [1, 2, 3].into_iter().inspect(|entry| {
        submitter.push(10 * entry).unwrap();
        seen.borrow_mut().push(all(&mut intake.borrow_mut()));
    });
    assert_eq!(submitter.push_burst(entries), 3);
    assert_eq!(seen.into_inner(), [vec![10], vec![1, 20], vec![2, 30]]);
    assert_eq!(all(&mut intake.borrow_mut()), [3]);
}

#[test]
fn a_short_iterator_gives_its_claim_back() {
    let (submitter, mut intake) = ring(2);
    for lap in 0..10 {
        assert_eq!(submitter.push_burst(Short([lap].into_iter())), 1);
        assert_eq!(all(&mut intake), [lap]);
    }
    let stuck = Stuck::claim(&submitter).unwrap();
    assert_eq!(submitter.push_burst(Short(std::iter::empty())), 0);
    assert_eq!(submitter.push(5), Err(Full(5)));
    assert_eq!(intake.pop(), None);
    stuck.publish(6);
    assert_eq!(all(&mut intake), [6]);
    submitter.push(7).unwrap();
    assert_eq!(all(&mut intake), [7]);
}

#[test]
fn a_panicking_iterator_gives_its_claim_back() {
    let (submitter, mut intake) = ring(8);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        submitter.push_burst((0..5).inspect(|number| assert_ne!(*number, 3)));
    }));
    assert!(outcome.is_err());
    submitter.push(9).unwrap();
    assert_eq!(all(&mut intake), [0, 1, 2, 9]);
    assert_eq!(submitter.push_burst(0..9), 8);
}

#[test]
fn a_panicking_callback_loses_only_its_own_entry() {
    let (submitter, mut intake) = ring(8);
    submitter.push_burst(0..5);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        intake.pop_burst(8, |number| assert_ne!(number, 2));
    }));
    assert!(outcome.is_err());
    assert_eq!(all(&mut intake), [3, 4]);
}

#[test]
fn undrained_entries_are_dropped_once() {
    let entry = Arc::new(());
    let (submitter, mut intake) = ring(8);
    let other = submitter.clone();
    submitter.push_burst([Arc::clone(&entry), Arc::clone(&entry)].into_iter());
    drop(intake.pop());
    let hole = Stuck::claim(&submitter).unwrap();
    other.push(Arc::clone(&entry)).unwrap();
    other.push(Arc::clone(&entry)).unwrap();
    assert_eq!(intake.pop_burst(2, drop), 2);
    assert_eq!(Arc::strong_count(&entry), 2);
    drop((intake, submitter, hole));
    assert_eq!(Arc::strong_count(&entry), 2);
    drop(other);
    assert_eq!(Arc::strong_count(&entry), 1);
}

#[test]
fn entries_of_no_size_and_of_large_size() {
    let (submitter, mut intake) = ring(2);
    assert_eq!(submitter.push_burst([(), (), ()].into_iter()), 2);
    assert_eq!(all(&mut intake), [(), ()]);
    let (submitter, mut intake) = ring(2);
    submitter.push([7u64; 512]).unwrap();
    assert_eq!(intake.pop(), Some([7; 512]));
}

#[test]
fn each_producers_order_holds_between_threads() {
    const ENTRIES: u32 = 10_000;
    const PRODUCERS: usize = 4;
    for capacity in [4, 64] {
        let (submitter, mut intake) = ring(capacity);
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let submitter = submitter.clone();
                thread::spawn(move || {
                    let mut next = 0;
                    while next < ENTRIES {
                        let count = (ENTRIES - next).min(1 + next % 3);
                        let sent = match count {
                            1 => usize::from(submitter.push((producer, next)).is_ok()),
                            _ => submitter
                                .push_burst((0..count).map(|ahead| (producer, next + ahead))),
                        };
                        next += sent as u32;
                        if sent == 0 {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut expected = [0; PRODUCERS];
        while expected != [ENTRIES; PRODUCERS] {
            let taken = intake.pop_burst(16, |(producer, entry)| {
                assert_eq!(entry, expected[producer], "producer {producer}");
                expected[producer] += 1;
            });
            if taken == 0 {
                thread::yield_now();
            }
        }
        for producer in producers {
            producer.join().unwrap();
        }
        assert!(intake.is_empty());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push,
    Burst(usize),
    /// A burst whose iterator ends one entry early.
    ShortBurst(usize),
    Claim,
    /// Publishes one of the open claims.
    Publish(prop::sample::Index),
    Pop,
    PopBurst(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Push),
        (0..9usize).prop_map(Step::Burst),
        (0..4usize).prop_map(Step::ShortBurst),
        Just(Step::Claim),
        any::<prop::sample::Index>().prop_map(Step::Publish),
        Just(Step::Pop),
        (0..9usize).prop_map(Step::PopBurst),
    ]
}

/// What a position of the model holds; the front of the model is the oldest.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Open,
    Entry(u32),
    Done,
}

/// The ring of the proptest, and what it should do: positions in order, of which the front ones
/// leave when they are done.
struct Model {
    places: VecDeque<Place>,
    /// Number of the front position.
    first: usize,
    capacity: usize,
}

impl Model {
    fn room(&self) -> usize {
        self.capacity - self.places.len()
    }

    /// The first positions that are done make room.
    fn settle(&mut self) {
        while self.places.front() == Some(&Place::Done) {
            self.places.pop_front();
            self.first += 1;
        }
    }

    fn pop(&mut self) -> Option<u32> {
        let taken = self.places.iter_mut().find_map(|place| match *place {
            Place::Entry(entry) => {
                *place = Place::Done;
                Some(entry)
            }
            _ => None,
        });
        self.settle();
        taken
    }
}

proptest! {
    #[test]
    fn behaves_like_a_bounded_deque_with_holes(
        capacity in 0..140usize,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let (submitter, mut intake) = ring(capacity);
        let capacity = submitter.capacity();
        let mut model = Model { places: VecDeque::new(), first: 0, capacity };
        let mut open: Vec<(Stuck<u32>, usize)> = Vec::new();
        let mut next = 0u32;
        for step in steps {
            next += 100;
            match step {
                Step::Push => {
                    let fits = model.room() > 0;
                    prop_assert_eq!(submitter.push(next).is_ok(), fits);
                    if fits {
                        model.places.push_back(Place::Entry(next));
                    }
                }
                Step::Burst(count) => {
                    let fits = count.min(model.room());
                    let entries = (0..count as u32).map(|ahead| next + ahead);
                    prop_assert_eq!(submitter.push_burst(entries), fits);
                    let entries = (0..fits as u32).map(|ahead| Place::Entry(next + ahead));
                    model.places.extend(entries);
                }
                Step::ShortBurst(count) => {
                    let claimed = (count + 1).min(model.room());
                    let fits = count.min(claimed);
                    let entries = Short((0..count as u32).map(|ahead| next + ahead));
                    prop_assert_eq!(submitter.push_burst(entries), fits);
                    let entries = (0..fits as u32).map(|ahead| Place::Entry(next + ahead));
                    model.places.extend(entries);
                    model.places.extend((fits..claimed).map(|_| Place::Done));
                    model.settle();
                }
                Step::Claim => {
                    let claim = Stuck::claim(&submitter);
                    prop_assert_eq!(claim.is_some(), model.room() > 0);
                    if let Some(claim) = claim {
                        open.push((claim, model.first + model.places.len()));
                        model.places.push_back(Place::Open);
                    }
                }
                Step::Publish(which) => {
                    if !open.is_empty() {
                        let (claim, number) = open.swap_remove(which.index(open.len()));
                        claim.publish(next);
                        model.places[number - model.first] = Place::Entry(next);
                    }
                }
                Step::Pop => prop_assert_eq!(intake.pop(), model.pop()),
                Step::PopBurst(max) => {
                    let mut taken = Vec::new();
                    intake.pop_burst(max, |entry| taken.push(entry));
                    let expected: Vec<_> =
                        std::iter::from_fn(|| model.pop()).take(max).collect();
                    prop_assert_eq!(taken, expected);
                }
            }
            let nothing = !model.places.iter().any(|place| matches!(place, Place::Entry(_)));
            prop_assert_eq!(intake.is_empty(), nothing);
        }
    }
}
