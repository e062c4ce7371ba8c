//! A bounded ring for exactly one producer and one consumer.
//!
//! Positions count up forever and wrap with `usize`; the slot of a position is its low bits. The
//! producer alone writes `tail`, the consumer alone writes `head`, each on a cache line of its own.
//! Each side keeps its own position in its handle together with the last value it saw of the other
//! side's, and looks again only when that value says there is nothing to do. While the ring is
//! neither full nor empty a push or a pop thus touches no line that the other side writes, except
//! the slots.
//!
//! Bursts publish once: one release store hands over all entries of the burst.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;

use crossbeam_utils::CachePadded;

use crate::full::Full;
use crate::slot::Slot;
use crate::sync::{Arc, AtomicUsize, Ordering};

/// Creates a ring with room for `capacity` entries, rounded up to a power of two (0 becomes 1).
///
/// # Panics
/// If the slots need more than `isize::MAX` bytes.
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let slots = (0..capacity.next_power_of_two()).map(|_| Slot::vacant()).collect();
    let shared = Arc::new(Shared {
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
        slots,
    });
    let limit = shared.slots.len();
    let producer = Producer { shared: Share::of(Arc::clone(&shared)), tail: 0, limit };
    let consumer = Consumer { shared: Share::of(shared), head: 0, seen_tail: 0 };
    (producer, consumer)
}

/// The end that puts entries in.
pub struct Producer<T> {
    shared: Share<T>,
    /// The next position to fill; equal to the shared `tail`, which only this handle writes.
    tail: usize,
    /// Where the ring was full when this side last looked: a lap ahead of the consumer's position, which
    /// can only have grown since.
    limit: usize,
}

impl<T> Producer<T> {
    /// Appends one entry.
    ///
    /// # Errors
    /// [`Full`] gives the entry back when no slot is free.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), Full<T>> {
        if self.known_room() == 0 && self.room() == 0 {
            return Err(Full(value));
        }
        // SAFETY: position `tail` is free, so the consumer does not look at its slot before the
        // store in `publish`; `loom_model::hand_over` fails if it does.
        unsafe { self.shared.slot(self.tail).put(value) };
        self.publish(1);
        Ok(())
    }

    /// Appends as many of `entries` as fit and publishes them together. Returns how many it took.
    ///
    /// Pass `&mut iterator` to keep the entries that did not fit. If the iterator panics, the
    /// entries it gave before are in the ring.
    #[inline]
    pub fn push_burst(&mut self, entries: impl ExactSizeIterator<Item = T>) -> usize {
        let wanted = entries.len();
        let mut room = self.known_room();
        if room < wanted {
            room = self.room();
        }
        let mut burst = PushBurst { producer: self, filled: 0 };
        burst.fill(entries, wanted.min(room));
        burst.filled
    }

    /// How many entries the ring can hold.
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// How many slots are free at least; the consumer may free more at any time.
    pub fn room(&mut self) -> usize {
        // Acquire: pairs with the release store of `head` in `Consumer::release`. The consumer has
        // moved the values out of the slots that this makes free.
        let head = self.shared.head.load(Ordering::Acquire);
        self.limit = head.wrapping_add(self.capacity());
        self.known_room()
    }

    #[inline(always)]
    fn known_room(&self) -> usize {
        self.limit.wrapping_sub(self.tail)
    }

    #[inline(always)]
    fn publish(&mut self, count: usize) {
        self.tail = self.tail.wrapping_add(count);
        // Release: pairs with the acquire load of `tail` in `Consumer::len`. The values were
        // written before.
        self.shared.tail.store(self.tail, Ordering::Release);
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// A burst being pushed. Publishes what was filled when it goes, also on unwinding.
struct PushBurst<'a, T> {
    producer: &'a mut Producer<T>,
    filled: usize,
}

impl<T> PushBurst<'_, T> {
    #[inline(always)]
    fn fill(&mut self, mut entries: impl Iterator<Item = T>, count: usize) {
        let (first, second) = self.producer.shared.run(self.producer.tail, count);
        for run in [first, second] {
            // The run goes first in the zip: when it ends, no entry has been asked for in vain.
            for (slot, value) in run.iter().zip(&mut entries) {
                // SAFETY: `count` free positions start at `tail`, and the consumer does not look
                // at their slots before `publish`; `loom_model::bursts` fails if it does.
                unsafe { slot.put(value) };
                self.filled += 1;
            }
        }
    }
}

impl<T> Drop for PushBurst<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.filled > 0 {
            self.producer.publish(self.filled);
        }
    }
}

/// The end that takes entries out.
pub struct Consumer<T> {
    shared: Share<T>,
    /// The next position to take; equal to the shared `head`, which only this handle writes.
    head: usize,
    /// The producer's position when this side last looked; it can only have grown since.
    seen_tail: usize,
}

impl<T> Consumer<T> {
    /// Takes the oldest entry.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.known_len() == 0 && self.is_empty() {
            return None;
        }
        // SAFETY: position `head` was published and `len` acquired it, and the producer does not
        // reuse its slot before the store in `release`; `loom_model::hand_over` fails if it does.
        let value = unsafe { self.shared.slot(self.head).take() };
        self.release(1);
        Some(value)
    }

    /// Hands up to `max` entries to `take`, oldest first, and frees their slots together. Returns
    /// how many it handed over.
    ///
    /// If `take` panics, the entry it was given is gone and the later ones stay in the ring.
    #[inline]
    pub fn pop_burst(&mut self, max: usize, take: impl FnMut(T)) -> usize {
        let mut ready = self.known_len();
        if ready < max {
            ready = self.len();
        }
        let mut burst = PopBurst { consumer: self, taken: 0 };
        burst.hand_over(ready.min(max), take);
        burst.taken
    }

    /// How many entries the ring can hold.
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// How many entries can be taken at least; the producer may add more at any time.
    pub fn len(&mut self) -> usize {
        // Acquire: pairs with the release store of `tail` in `Producer::publish`. The values below
        // `tail` are visible after it.
        self.seen_tail = self.shared.tail.load(Ordering::Acquire);
        self.known_len()
    }

    /// Whether there was nothing to take just now.
    pub fn is_empty(&mut self) -> bool {
        self.len() == 0
    }

    #[inline(always)]
    fn known_len(&self) -> usize {
        self.seen_tail.wrapping_sub(self.head)
    }

    #[inline(always)]
    fn release(&mut self, count: usize) {
        self.head = self.head.wrapping_add(count);
        // Release: pairs with the acquire load of `head` in `Producer::room`. The values were
        // moved out before.
        self.shared.head.store(self.head, Ordering::Release);
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// A burst being taken. Frees the slots that were emptied when it goes, also on unwinding.
struct PopBurst<'a, T> {
    consumer: &'a mut Consumer<T>,
    taken: usize,
}

impl<T> PopBurst<'_, T> {
    #[inline(always)]
    fn hand_over(&mut self, count: usize, mut take: impl FnMut(T)) {
        let (first, second) = self.consumer.shared.run(self.consumer.head, count);
        for run in [first, second] {
            for slot in run {
                // SAFETY: `count` published positions start at `head`, and the producer does not
                // reuse their slots before `release`; `loom_model::bursts` fails if it does. Counted
                // before the callback runs, so a panic there does not offer the value again:
                // `tests::a_panicking_callback_loses_only_its_own_entry`.
                let value = unsafe { slot.take() };
                self.taken += 1;
                take(value);
            }
        }
    }
}

impl<T> Drop for PopBurst<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.taken > 0 {
            self.consumer.release(self.taken);
        }
    }
}

/// One end's share in what both share.
///
/// An `Arc` that is dropped in place gives its address away, and with it that of the whole handle, so
/// that positions would be written to memory and read back for each entry. One that is moved out first
/// does not: a push and a pop in a loop that has the handle for its own take a third less time.
struct Share<T>(ManuallyDrop<Arc<Shared<T>>>);

impl<T> Share<T> {
    fn of(shared: Arc<Shared<T>>) -> Self {
        Share(ManuallyDrop::new(shared))
    }
}

impl<T> Deref for Share<T> {
    type Target = Shared<T>;

    #[inline(always)]
    fn deref(&self) -> &Shared<T> {
        &self.0
    }
}

impl<T> Drop for Share<T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: taken here only, and nothing comes after a drop; taken twice, or used later, it fails
        // `tests::undrained_entries_are_dropped_once`, which counts the drops.
        drop(unsafe { ManuallyDrop::take(&mut self.0) });
    }
}

/// What the two ends share.
struct Shared<T> {
    head: CachePadded<AtomicUsize>,
    tail: CachePadded<AtomicUsize>,
    /// A power of two of them.
    slots: Box<[Slot<T>]>,
}

impl<T> Shared<T> {
    #[inline(always)]
    fn slot(&self, position: usize) -> &Slot<T> {
        let index = position & (self.slots.len() - 1);
        // SAFETY: there is a power of two of slots, so what is left of a position below their number
        // is the number of one: `tests::positions_wrap` reads other entries than it wrote otherwise,
        // and under Miri outside of them.
        unsafe { self.slots.get_unchecked(index) }
    }

    /// The slots of `count` positions from `start`: up to the end of the array, then from its
    /// beginning.
    #[inline(always)]
    fn run(&self, start: usize, count: usize) -> (&[Slot<T>], &[Slot<T>]) {
        let index = start & (self.slots.len() - 1);
        let first = count.min(self.slots.len() - index);
        (&self.slots[index..index + first], &self.slots[..count - first])
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Relaxed: both ends are gone, and the last `Arc` to go has synchronised with them.
        let mut position = self.head.load(Ordering::Relaxed);
        let tail = self.tail.load(Ordering::Relaxed);
        while position != tail {
            // SAFETY: exactly the positions from head to tail hold values, and nobody else is
            // left; `tests::undrained_entries_are_dropped_once` counts the drops.
            drop(unsafe { self.slot(position).take() });
            position = position.wrapping_add(1);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn capacity_is_rounded_up() {
        for (asked, given) in [(0, 1), (1, 1), (2, 2), (3, 4), (1000, 1024)] {
            let (producer, consumer) = ring::<u8>(asked);
            assert_eq!((producer.capacity(), consumer.capacity()), (given, given));
        }
    }

    #[test]
    fn full_gives_the_entry_back() {
        let (mut producer, mut consumer) = ring(2);
        producer.push("a").unwrap();
        producer.push("b").unwrap();
        assert_eq!(producer.push("c"), Err(Full("c")));
        assert_eq!(consumer.pop(), Some("a"));
        producer.push("c").unwrap();
        assert_eq!((consumer.pop(), consumer.pop(), consumer.pop()), (Some("b"), Some("c"), None));
    }

    #[test]
    fn bursts_take_what_fits_and_leave_the_rest() {
        let (mut producer, mut consumer) = ring(4);
        let mut entries = [1, 2, 3, 4, 5, 6].into_iter();
        assert_eq!(producer.push_burst(&mut entries), 4);
        assert_eq!(entries.as_slice(), [5, 6]);

        let mut taken = Vec::new();
        assert_eq!(consumer.pop_burst(3, |entry| taken.push(entry)), 3);
        assert_eq!(producer.push_burst(&mut entries), 2);
        assert_eq!(consumer.pop_burst(usize::MAX, |entry| taken.push(entry)), 3);
        assert_eq!(taken, [1, 2, 3, 4, 5, 6]);
        assert_eq!(consumer.pop_burst(usize::MAX, drop), 0);
    }

    #[test]
    fn positions_wrap() {
        let (mut producer, mut consumer) = ring(4);
        let start = usize::MAX - 2;
        (producer.tail, producer.limit) = (start, start.wrapping_add(4));
        (consumer.head, consumer.seen_tail) = (start, start);
        producer.shared.head.store(start, Ordering::Relaxed);
        producer.shared.tail.store(start, Ordering::Relaxed);
        for round in 0..4 {
            assert_eq!(producer.push_burst(0..5u8), 4, "round {round}");
            let mut taken = Vec::new();
            consumer.pop_burst(5, |entry| taken.push(entry));
            assert_eq!(taken, [0, 1, 2, 3], "round {round}");
        }
    }

    #[test]
    fn undrained_entries_are_dropped_once() {
        let entry = Arc::new(());
        let (mut producer, mut consumer) = ring(4);
        for _ in 0..3 {
            producer.push(Arc::clone(&entry)).unwrap();
        }
        drop(consumer.pop());
        producer.push_burst([Arc::clone(&entry), Arc::clone(&entry)].into_iter());
        assert_eq!(Arc::strong_count(&entry), 5);
        drop(producer);
        assert_eq!(Arc::strong_count(&entry), 5);
        drop(consumer);
        assert_eq!(Arc::strong_count(&entry), 1);
    }

    #[test]
    fn a_panicking_callback_loses_only_its_own_entry() {
        let entry = Arc::new(());
        let (mut producer, mut consumer) = ring(8);
        producer.push_burst((0..5).map(|number| (number, Arc::clone(&entry))));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            consumer.pop_burst(8, |(number, _)| assert_ne!(number, 2));
        }));
        assert!(outcome.is_err());
        assert_eq!(Arc::strong_count(&entry), 3);
        assert_eq!(consumer.pop().map(|(number, _)| number), Some(3));
        assert_eq!(producer.room(), 7);
    }

    #[test]
    fn a_panicking_iterator_publishes_what_it_gave() {
        let (mut producer, mut consumer) = ring(8);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            producer.push_burst((0..5).inspect(|number| assert_ne!(*number, 3)));
        }));
        assert!(outcome.is_err());
        producer.push(9).unwrap();
        let mut taken = Vec::new();
        consumer.pop_burst(8, |number| taken.push(number));
        assert_eq!(taken, [0, 1, 2, 9]);
    }

    #[test]
    fn entries_of_no_size_and_of_large_size() {
        let (mut producer, mut consumer) = ring(2);
        assert_eq!(producer.push_burst([(), (), ()].into_iter()), 2);
        assert_eq!((consumer.pop(), consumer.pop(), consumer.pop()), (Some(()), Some(()), None));

        let (mut producer, mut consumer) = ring(2);
        producer.push([7u64; 512]).unwrap();
        assert_eq!(consumer.pop(), Some([7; 512]));
    }

    #[test]
    fn order_holds_between_threads() {
        const ENTRIES: u64 = 200_000;
        let (mut producer, mut consumer) = ring(64);
        let sender = thread::spawn(move || {
            let mut next = 0;
            while next < ENTRIES {
                let burst = (ENTRIES - next).min(1 + next % 40) as u32;
                let sent = match burst {
                    1 => usize::from(producer.push(next).is_ok()),
                    _ => producer.push_burst((0..burst).map(|ahead| next + u64::from(ahead))),
                };
                next += sent as u64;
                if sent == 0 {
                    thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        while expected < ENTRIES {
            let before = expected;
            let check = |entry: u64| {
                assert_eq!(entry, expected);
                expected += 1;
            };
            match before % 3 {
                0 => consumer.pop().map_or((), check),
                _ => _ = consumer.pop_burst(17, check),
            }
            if expected == before {
                thread::yield_now();
            }
        }
        sender.join().unwrap();
        assert!(consumer.is_empty());
    }

    proptest! {
        #[test]
        fn behaves_like_a_bounded_deque(
            capacity in 0..20usize,
            steps in prop::collection::vec((any::<bool>(), 0..12usize), 0..200),
        ) {
            let (mut producer, mut consumer) = ring(capacity);
            let capacity = producer.capacity();
            let mut model = VecDeque::new();
            let mut next = 0u32;
            for (push, count) in steps {
                match (push, count) {
                    (true, 0) => {
                        let pushed = producer.push(next).is_ok();
                        prop_assert_eq!(pushed, model.len() < capacity);
                        if pushed {
                            model.push_back(next);
                        }
                    }
                    (true, _) => {
                        let fits = count.min(capacity - model.len());
                        let entries = (0..count as u32).map(|ahead| next + ahead);
                        prop_assert_eq!(producer.push_burst(entries), fits);
                        model.extend((0..fits as u32).map(|ahead| next + ahead));
                    }
                    (false, 0) => prop_assert_eq!(consumer.pop(), model.pop_front()),
                    (false, _) => {
                        let mut taken = Vec::new();
                        consumer.pop_burst(count, |entry| taken.push(entry));
                        let expected: Vec<_> = model.drain(..count.min(model.len())).collect();
                        prop_assert_eq!(taken, expected);
                    }
                }
                next += count as u32 + 1;
                prop_assert_eq!(consumer.len(), model.len());
                prop_assert_eq!(producer.room(), capacity - model.len());
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_model {
    use loom::thread;

    use super::*;
    use crate::sync::check;

    /// Three entries through two slots, one at a time: slots are reused while both sides run.
    #[test]
    fn hand_over() {
        check(3, || {
            let (mut producer, mut consumer) = ring(2);
            let sender = thread::spawn(move || {
                for mut entry in 0..3 {
                    while let Err(full) = producer.push(entry) {
                        entry = full.into_inner();
                        thread::yield_now();
                    }
                }
            });
            for expected in 0..3 {
                let entry = loop {
                    match consumer.pop() {
                        Some(entry) => break entry,
                        None => thread::yield_now(),
                    }
                };
                assert_eq!(entry, expected);
            }
            sender.join().unwrap();
            assert!(consumer.is_empty());
        });
    }

    /// Bursts that wrap around the end of the slots.
    #[test]
    fn bursts() {
        check(3, || {
            let (mut producer, mut consumer) = ring(2);
            let sender = thread::spawn(move || {
                let mut entries = [0, 1, 2].into_iter();
                while entries.len() > 0 {
                    if producer.push_burst(&mut entries) == 0 {
                        thread::yield_now();
                    }
                }
            });
            let mut expected = 0;
            while expected < 3 {
                let taken = consumer.pop_burst(2, |entry| {
                    assert_eq!(entry, expected);
                    expected += 1;
                });
                if taken == 0 {
                    thread::yield_now();
                }
            }
            sender.join().unwrap();
        });
    }

    /// Entries left behind are dropped by whichever end goes last.
    #[test]
    fn dropped_from_either_side() {
        check(3, || {
            let entry = Arc::new(());
            let (mut producer, mut consumer) = ring(2);
            let copy = Arc::clone(&entry);
            let sender = thread::spawn(move || {
                producer.push(Arc::clone(&copy)).unwrap();
                producer.push(copy).unwrap();
            });
            drop(consumer.pop());
            drop(consumer);
            sender.join().unwrap();
            assert_eq!(Arc::strong_count(&entry), 1);
        });
    }
}
