//! A completion ring: several producers, one consumer, and no entry is ever refused or lost.
//!
//! # Overflow
//!
//! A producer that finds the ring full puts its entry on a list behind a lock and raises a counter.
//! io_uring does the same with `IORING_FEAT_NODROP`. A service is meant to size the ring so that this
//! does not happen; the counter says whether it does.
//!
//! So that every producer's order holds, the first entry on the list sets the *spilling* flag, and
//! while it is set all pushes go to the list. The receiver takes from the ring first. When that is
//! empty it takes the whole list, then the ring again, and only then what was on the list:
//!
//! * An entry that its producer put in the ring *before* one on the list is visible in the ring once
//!   the receiver has had the lock. It is taken in the second look.
//! * An entry pushed *after* one on the list goes to the list too, until the receiver finds the list
//!   empty, with everything it took from there delivered, and clears the flag.
//!
//! Pushes that had read the flag before it was set may still arrive in the ring. Their producers have
//! nothing on the list, so their order does not matter.
//!
//! # Wake-ups
//!
//! [`CompletionSender::push`] only publishes. [`CompletionSender::notify`] then wakes the receiver if
//! it asked for it, by the protocol of [`wakeup`](crate::wakeup): one eventfd write for each
//! [`CompletionReceiver::arm`].

use std::collections::VecDeque;
use std::fmt;
use std::io;
#[cfg(not(loom))]
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
#[cfg(not(loom))]
use std::time::Duration;

use crate::full::Full;
use crate::submission::{self, Intake, Submitter};
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering};
#[cfg(not(loom))]
use crate::wait::{Advice, Spent, WaitStrategy, Waiter};
use crate::wakeup::Wakeup;

/// Creates a ring with room for `capacity` entries before overflow, rounded up to a power of two (0
/// becomes 1).
///
/// # Errors
/// Those of eventfd(2): no free descriptor in the process or the system, or no memory.
///
/// # Panics
/// If the slots need more than `isize::MAX` bytes.
pub fn ring<T: Send>(capacity: usize) -> io::Result<(CompletionSender<T>, CompletionReceiver<T>)> {
    let (submitter, intake) = submission::ring(capacity);
    let shared = Arc::new(Shared {
        wakeup: Wakeup::new()?,
        spilling: AtomicBool::new(false),
        spilled: Mutex::new(VecDeque::new()),
        overflowed: AtomicU64::new(0),
    });
    let sender = CompletionSender { submitter, shared: Arc::clone(&shared) };
    let receiver = CompletionReceiver {
        intake,
        recovered: VecDeque::new(),
        #[cfg(not(loom))]
        waiter: Waiter::new(WaitStrategy::Sleep, shared.wakeup.elapsed()),
        shared,
    };
    Ok((sender, receiver))
}

/// The end that reports completions. Clone it, or share it by reference.
pub struct CompletionSender<T> {
    submitter: Submitter<T>,
    shared: Arc<Shared<T>>,
}

impl<T> CompletionSender<T> {
    /// Publishes one entry and wakes nobody: call [`notify`](Self::notify) after the last of a batch.
    ///
    /// Never fails. When the ring is full it takes a lock and may allocate, and
    /// [`overflowed`](CompletionReceiver::overflowed) counts it.
    #[inline]
    pub fn push(&self, value: T) {
        let refused = if self.shared.is_spilling() {
            value
        } else {
            match self.submitter.push(value) {
                Ok(()) => return,
                Err(Full(value)) => value,
            }
        };
        self.shared.spill(refused);
    }

    /// Asks for the lines of the entry that will come `ahead` others after the next one: a hint, for a
    /// producer that gathers a burst.
    #[inline]
    pub fn prefetch(&self, ahead: usize) {
        self.submitter.prefetch(ahead);
    }

    /// Publishes several entries next to each other, for the price of one; as [`push`](Self::push)
    /// otherwise. Returns how many of them found the ring full.
    pub fn push_burst(&self, mut entries: impl ExactSizeIterator<Item = T>) -> usize {
        while entries.len() > 0 && !self.shared.is_spilling() {
            if self.submitter.push_burst(&mut entries) == 0 {
                break;
            }
        }
        entries.map(|entry| self.shared.spill(entry)).count()
    }

    /// Wakes the receiver if it is armed. At most one system call, and one for each time it arms.
    /// Returns whether this call woke it.
    #[inline]
    pub fn notify(&self) -> bool {
        self.shared.wakeup.wake_if_asleep()
    }

    /// Whether both senders feed the same ring, so that one notification serves for both.
    pub fn is_same_ring(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// How many entries had to go to the overflow list so far.
    pub fn overflowed(&self) -> u64 {
        self.shared.overflowed()
    }
}

impl<T> Clone for CompletionSender<T> {
    fn clone(&self) -> Self {
        Self { submitter: self.submitter.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<T> fmt::Debug for CompletionSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionSender")
            .field("capacity", &self.submitter.capacity())
            .field("shared", &self.shared)
            .finish()
    }
}

/// The end that takes completions.
///
/// To wait in an event loop: [`arm`](Self::arm); if that is `true`, wait for the descriptor to become
/// readable; then [`disarm`](Self::disarm) and take. [`wait`](Self::wait) does all that in one call.
pub struct CompletionReceiver<T> {
    intake: Intake<T>,
    /// Entries taken off the overflow list, older than what is on it now.
    recovered: VecDeque<T>,
    shared: Arc<Shared<T>>,
    #[cfg(not(loom))]
    waiter: Waiter,
}

/// Looks into the ring between two looks at the clock, in [`CompletionReceiver::wait`].
#[cfg(not(loom))]
const LOOKS: u32 = 32;

impl<T> CompletionReceiver<T> {
    /// Takes the oldest entry.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        self.intake.pop().or_else(|| self.pop_overflow())
    }

    /// Hands up to `max` entries to `take`, oldest first. Returns how many it handed over.
    ///
    /// If `take` panics, the entry it was given is gone and the later ones stay.
    #[inline]
    pub fn pop_burst(&mut self, max: usize, mut take: impl FnMut(T)) -> usize {
        let mut taken = self.intake.pop_burst(max, &mut take);
        while taken < max
            && let Some(value) = self.pop_overflow()
        {
            taken += 1;
            take(value);
        }
        taken
    }

    /// The ring had nothing: takes what overflowed, if anything did.
    #[inline]
    fn pop_overflow(&mut self) -> Option<T> {
        if self.recovered.is_empty() && !self.shared.is_spilling() {
            return None;
        }
        self.recover()
    }

    #[cold]
    fn recover(&mut self) -> Option<T> {
        self.settle();
        // The lock has made visible what went to the ring before the entries now recovered.
        self.intake.pop().or_else(|| self.recovered.pop_front())
    }

    /// Whether there was nothing to take just now.
    pub fn is_empty(&mut self) -> bool {
        self.settle();
        self.nothing_seen()
    }

    fn nothing_seen(&self) -> bool {
        self.intake.is_empty() && self.recovered.is_empty() && !self.shared.is_spilling()
    }

    /// Ends an overflow whose last entry was delivered, which the flag still shows.
    fn settle(&mut self) {
        if self.recovered.is_empty() && self.shared.is_spilling() {
            self.shared.unspill(&mut self.recovered);
        }
    }

    /// Asks for a wake-up: `true` means that the descriptor becomes readable at the next
    /// [`notify`](CompletionSender::notify). `false` means that entries are there already; nothing is
    /// armed then.
    pub fn arm(&mut self) -> bool {
        self.settle();
        self.shared.wakeup.prepare_sleep(|| self.nothing_seen())
    }

    /// Takes the request back and resets the descriptor. Reads the eventfd only if someone notified.
    pub fn disarm(&mut self) {
        self.shared.wakeup.awake();
    }

    /// How [`wait`](Self::wait) waits from now on. A new receiver sleeps.
    #[cfg(not(loom))]
    pub fn wait_by(&mut self, strategy: WaitStrategy) {
        self.waiter = Waiter::new(strategy, self.shared.wakeup.elapsed());
    }

    /// Waits until there is an entry or `timeout` has passed (`None`: no limit). Returns whether
    /// there is one. On return nothing is armed.
    ///
    /// # Errors
    /// Those of ppoll(2) except EINTR, after which it goes on waiting.
    #[cfg(not(loom))]
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        if !self.is_empty() {
            return Ok(true);
        }
        let now = self.shared.wakeup.elapsed();
        // A timeout beyond what the clock can express is no limit.
        let nanos = timeout.and_then(|timeout| u64::try_from(timeout.as_nanos()).ok());
        let deadline = nanos.and_then(|nanos| now.checked_add(nanos)).unwrap_or(u64::MAX);
        if self.look(now, deadline) {
            return Ok(true);
        }
        self.sleep(deadline)
    }

    /// Looks for an entry for as long as that pays, and no longer than to `deadline`; whether there is
    /// one.
    #[cfg(not(loom))]
    fn look(&mut self, mut now: u64, deadline: u64) -> bool {
        while now < deadline && self.waiter.idle(now, None) == Advice::Look {
            for _ in 0..LOOKS {
                if !self.nothing_seen() {
                    self.settle();
                    self.waiter.found(self.shared.wakeup.elapsed());
                    return true;
                }
                std::hint::spin_loop();
            }
            now = self.shared.wakeup.elapsed();
        }
        false
    }

    #[cfg(not(loom))]
    fn sleep(&mut self, deadline: u64) -> io::Result<bool> {
        let shared = Arc::clone(&self.shared);
        self.waiter.sleep(shared.wakeup.elapsed());
        let there_is_one = loop {
            if !self.arm() {
                break true;
            }
            let left = deadline.saturating_sub(shared.wakeup.elapsed());
            let limit = (deadline < u64::MAX).then(|| Duration::from_nanos(left));
            let waited = shared.wakeup.wait(limit);
            self.disarm();
            waited?;
            if left == 0 {
                break !self.is_empty();
            }
        };
        if there_is_one {
            self.waiter.wake(shared.wakeup.elapsed(), Some(shared.wakeup.rang()));
        }
        Ok(there_is_one)
    }

    /// How long [`wait`](Self::wait) has waited in each way since this was last asked.
    #[cfg(not(loom))]
    pub fn take_spent(&mut self) -> Spent {
        self.waiter.take_spent()
    }

    /// How many entries had to go to the overflow list so far. None of them is lost.
    pub fn overflowed(&self) -> u64 {
        self.shared.overflowed()
    }

    /// How often the eventfd was written.
    pub fn wakeups(&self) -> u64 {
        self.shared.wakeup.sent()
    }
}

impl<T> fmt::Debug for CompletionReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionReceiver")
            .field("capacity", &self.intake.capacity())
            .field("recovered", &self.recovered.len())
            .field("shared", &self.shared)
            .finish()
    }
}

#[cfg(not(loom))]
impl<T> AsRawFd for CompletionReceiver<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.wakeup.as_raw_fd()
    }
}

#[cfg(not(loom))]
impl<T> AsFd for CompletionReceiver<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.wakeup.as_fd()
    }
}

/// What both ends share besides the ring.
struct Shared<T> {
    wakeup: Wakeup,
    /// Set while entries of the overflow list are undelivered. Written under the list's lock.
    spilling: AtomicBool,
    spilled: Mutex<VecDeque<T>>,
    overflowed: AtomicU64,
}

impl<T> Shared<T> {
    #[cold]
    fn spill(&self, value: T) {
        let mut spilled = self.spilled.lock();
        spilled.push_back(value);
        // Relaxed: the receiver acts on it under the lock, later pushes of this thread see it by
        // coherence, and a sleeping receiver is told after the fence in `notify`.
        self.spilling.store(true, Ordering::Relaxed);
        // Relaxed: a statistic.
        self.overflowed.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves the list to `recovered`, which is empty. If there is nothing on it, overflow is over.
    fn unspill(&self, recovered: &mut VecDeque<T>) {
        let mut spilled = self.spilled.lock();
        std::mem::swap(&mut *spilled, recovered);
        if recovered.is_empty() {
            // Relaxed: a push that sees it goes to the ring, behind all that was delivered.
            self.spilling.store(false, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn is_spilling(&self) -> bool {
        // Relaxed: a producer must see the flag that an earlier push of its own set, which is
        // coherence; the receiver reads the list itself under the lock, and before it sleeps the
        // fence in `Wakeup::prepare_sleep` orders this load.
        self.spilling.load(Ordering::Relaxed)
    }

    fn overflowed(&self) -> u64 {
        // Relaxed: a statistic.
        self.overflowed.load(Ordering::Relaxed)
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("wakeup", &self.wakeup)
            .field("overflowed", &self.overflowed())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn all<T: Send>(receiver: &mut CompletionReceiver<T>) -> Vec<T> {
        let mut taken = Vec::new();
        receiver.pop_burst(usize::MAX, |entry| taken.push(entry));
        taken
    }

    #[test]
    fn overflow_keeps_order_and_is_counted() {
        let (sender, mut receiver) = ring(4).unwrap();
        (0..6).for_each(|entry| sender.push(entry));
        assert_eq!((receiver.pop(), receiver.overflowed()), (Some(0), 2));
        sender.push(6);
        assert_eq!(sender.overflowed(), 3, "there is room, but older entries are on the list");
        let mut taken = Vec::new();
        assert_eq!(receiver.pop_burst(4, |entry| taken.push(entry)), 4);
        sender.push(7);
        taken.extend(all(&mut receiver));
        assert_eq!(taken, [1, 2, 3, 4, 5, 6, 7]);
        assert!(receiver.is_empty());
        sender.push(8);
        assert_eq!(all(&mut receiver), [8]);
        assert_eq!(receiver.overflowed(), 4, "overflow is over");
    }

    #[test]
    fn a_burst_overflows_like_single_entries() {
        let (sender, mut receiver) = ring(4).unwrap();
        assert_eq!(sender.push_burst(0..3), 0);
        assert_eq!((receiver.pop(), receiver.overflowed()), (Some(0), 0));
        assert_eq!(sender.push_burst(3..9), 4);
        assert_eq!(receiver.overflowed(), 4);
        assert_eq!(receiver.pop(), Some(1));
        sender.push_burst(9..11);
        assert_eq!(receiver.overflowed(), 6, "there is room, but older entries are on the list");
        assert_eq!(all(&mut receiver), Vec::from_iter(2..11));
        sender.push_burst(std::iter::empty());
        assert!(receiver.is_empty());
    }

    #[test]
    fn undrained_entries_are_dropped_once() {
        let entry = Arc::new(());
        let (sender, mut receiver) = ring(2).unwrap();
        (0..6).for_each(|_| sender.push(Arc::clone(&entry)));
        assert_eq!(receiver.pop_burst(3, drop), 3);
        sender.push(Arc::clone(&entry));
        assert_eq!(Arc::strong_count(&entry), 5);
        drop((receiver, sender));
        assert_eq!(Arc::strong_count(&entry), 1);
    }

    #[test]
    fn a_panicking_callback_loses_only_its_own_entry() {
        for failing in [1, 4] {
            let (sender, mut receiver) = ring(2).unwrap();
            (0..6).for_each(|entry| sender.push(entry));
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                receiver.pop_burst(8, |entry| assert_ne!(entry, failing));
            }));
            assert!(outcome.is_err());
            assert_eq!(all(&mut receiver), Vec::from_iter(failing + 1..6));
        }
    }

    #[test]
    fn one_write_for_each_arm() {
        let (sender, mut receiver) = ring(4).unwrap();
        sender.push(1);
        assert!(!sender.notify(), "nobody asked");
        assert!(!receiver.arm(), "an entry is there");
        assert_eq!(receiver.pop(), Some(1));

        assert!(receiver.arm());
        sender.push(2);
        assert!(sender.notify());
        sender.push(3);
        assert!(!sender.notify());
        receiver.disarm();
        assert_eq!((all(&mut receiver), receiver.wakeups()), (vec![2, 3], 1));
    }

    #[test]
    fn entries_on_the_list_prevent_arming() {
        let (sender, mut receiver) = ring(1).unwrap();
        (0..3).for_each(|entry| sender.push(entry));
        for entry in 0..3 {
            assert!(!receiver.arm());
            assert_eq!(receiver.pop(), Some(entry));
        }
        assert!(receiver.arm());
    }

    #[test]
    fn waiting_ends_at_the_timeout() {
        let (sender, mut receiver) = ring(4).unwrap();
        assert!(!receiver.wait(Some(Duration::from_millis(2))).unwrap());
        assert!(!sender.notify(), "not armed any more");
        sender.push(1);
        assert!(receiver.wait(Some(Duration::ZERO)).unwrap());
        assert!(receiver.wait(Some(Duration::MAX)).unwrap());
    }

    #[test]
    fn waiting_goes_on_after_a_needless_wakeup() {
        let (sender, mut receiver) = ring::<u8>(4).unwrap();
        assert!(receiver.arm());
        assert!(sender.notify());
        assert!(!receiver.wait(Some(Duration::from_millis(2))).unwrap());
        assert!(receiver.arm());
        assert!(sender.notify());
    }

    #[test]
    fn each_producers_order_holds_through_overflow() {
        const PRODUCERS: usize = 4;
        const ENTRIES: u32 = 5_000;
        let (sender, mut receiver) = ring(8).unwrap();
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for entry in 0..ENTRIES {
                        sender.push((producer, entry));
                        sender.notify();
                        if entry % 64 == 63 {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut expected = [0; PRODUCERS];
        while expected != [ENTRIES; PRODUCERS] {
            assert!(receiver.wait(None).unwrap());
            receiver.pop_burst(5, |(producer, entry)| {
                assert_eq!(entry, expected[producer], "producer {producer}");
                expected[producer] += 1;
            });
        }
        for producer in producers {
            producer.join().unwrap();
        }
        assert!(receiver.is_empty());
        assert!(!receiver.wait(Some(Duration::ZERO)).unwrap());
    }

    proptest! {
        #[test]
        fn behaves_like_an_unbounded_deque(
            capacity in 0..10usize,
            steps in prop::collection::vec((any::<bool>(), 0..8usize), 0..200),
        ) {
            let (sender, mut receiver) = ring(capacity).unwrap();
            let mut model = VecDeque::new();
            let mut next = 0;
            for (push, count) in steps {
                if push {
                    for _ in 0..count {
                        sender.push(next);
                        model.push_back(next);
                        next += 1;
                    }
                } else if count == 0 {
                    prop_assert_eq!(receiver.pop(), model.pop_front());
                } else {
                    let mut taken = Vec::new();
                    receiver.pop_burst(count, |entry| taken.push(entry));
                    let expected: Vec<_> = model.drain(..count.min(model.len())).collect();
                    prop_assert_eq!(taken, expected);
                }
                prop_assert_eq!(receiver.is_empty(), model.is_empty());
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_model {
    use loom::thread;

    use super::*;
    use crate::sync::check;

    /// One slot, two producers: entries go through the ring and through the list.
    #[test]
    fn order_holds_through_overflow() {
        check(2, || {
            let (sender, mut receiver) = ring(1).unwrap();
            let other = sender.clone();
            let first = thread::spawn(move || {
                for entry in [10, 11, 12] {
                    sender.push(entry);
                }
            });
            let second = thread::spawn(move || other.push(20));
            let mut pop = |tries| (0..tries).filter_map(|_| receiver.pop()).collect::<Vec<_>>();
            let mut taken = pop(3);
            first.join().unwrap();
            second.join().unwrap();
            taken.extend(pop(4));
            assert_eq!(taken.len(), 4);
            assert!(receiver.is_empty());
            taken.retain(|entry| *entry < 20);
            assert_eq!(taken, [10, 11, 12]);
        });
    }

    /// A receiver that armed although something was pushed has been woken, through ring and list.
    #[test]
    fn no_completion_is_slept_over() {
        check(3, || {
            let (sender, mut receiver) = ring(1).unwrap();
            sender.push(0);
            assert_eq!(receiver.pop(), Some(0));
            let producer = thread::spawn(move || {
                sender.push(1);
                sender.push(2);
                sender.notify()
            });
            let armed = receiver.arm();
            let notified = producer.join().unwrap();
            assert!(notified || !armed);
            receiver.disarm();
            assert_eq!([receiver.pop(), receiver.pop(), receiver.pop()], [Some(1), Some(2), None]);
        });
    }
}
