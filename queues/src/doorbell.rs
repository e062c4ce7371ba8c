//! Which of many rings have something in them, and waking the one thread that serves them.
//!
//! A shard serves up to 65,536 subchannels and cannot look at each ring. Producers mark the
//! subchannel in a set ([`marks`](crate::marks)); the shard drains the set.
//!
//! When the shard sleeps, a producer wakes it by the protocol of [`wakeup`](crate::wakeup): there is
//! the account of its two fences. "Publish work" is [`Doorbell::set`] here, and "is there work" is
//! [`Doorbell::is_idle`].

use std::fmt;
use std::io;
#[cfg(not(loom))]
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crossbeam_utils::CachePadded;

pub use crate::marks::MAX_BITS;
use crate::marks::Marks;
use crate::sync::{AtomicU64, Ordering};
use crate::wakeup::Wakeup;

/// A set of ready indices with a wake-up for the thread that serves them.
///
/// Shared by reference or `Arc`. Producers call [`ring`](Self::ring), or [`set`](Self::set) several
/// times and [`wake_if_asleep`](Self::wake_if_asleep) once. The other methods that change something
/// belong to one consumer thread at a time.
pub struct Doorbell {
    marks: Marks,
    /// Apart from the fields above, which producers read: the consumer writes it at each drain.
    rung: CachePadded<AtomicU64>,
    wakeup: Wakeup,
}

impl Doorbell {
    /// Creates a doorbell for the indices below `bits`, none of them ready.
    ///
    /// # Errors
    /// `InvalidInput` if `bits` is 0 or above [`MAX_BITS`]; else those of eventfd(2).
    pub fn new(bits: usize) -> io::Result<Self> {
        if bits == 0 || bits > MAX_BITS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a doorbell for {bits} indices: ask for 1 to {MAX_BITS}, or use several doorbells"
                ),
            ));
        }
        Ok(Self {
            marks: Marks::new(bits),
            rung: CachePadded::new(AtomicU64::new(0)),
            wakeup: Wakeup::new()?,
        })
    }

    /// Marks `index` as ready and wakes the consumer if it sleeps. Returns whether this call woke
    /// it.
    ///
    /// # Panics
    /// If `index` is not below the number of bits.
    #[inline]
    pub fn ring(&self, index: usize) -> bool {
        self.set(index);
        self.wake_if_asleep()
    }

    /// Marks `index` as ready and wakes nobody. What the caller did before is visible to the
    /// consumer when it drains the mark.
    ///
    /// One or two read-modify-write operations; marks that were not drained yet merge into one.
    ///
    /// # Panics
    /// If `index` is not below the number of bits.
    #[inline]
    pub fn set(&self, index: usize) {
        self.marks.set(index);
    }

    /// Wakes the consumer if it sleeps or is about to. At most one system call. Returns whether this
    /// call woke it.
    #[inline]
    pub fn wake_if_asleep(&self) -> bool {
        self.wakeup.wake_if_asleep()
    }

    /// Takes all marks and calls `ready` with each index, in ascending order. Returns how many there
    /// were.
    ///
    /// A mark is cleared before `ready` sees it, so one that is set meanwhile is found by the next
    /// drain. If `ready` panics, the marks it has not seen are kept.
    pub fn drain(&self, mut ready: impl FnMut(usize)) -> usize {
        let mut tally = Tally { doorbell: self, taken: 0 };
        let mut drain = self.marks.drain();
        while let Some(index) = drain.next_index() {
            tally.taken += 1;
            ready(index);
        }
        tally.taken
    }

    /// The same, up to 64 marks at a time: `ready` gets the lowest index of a word and a bit for each
    /// mark in it, so that it can look ahead. Marks that it was given count as seen.
    #[inline]
    pub fn drain_words(&self, mut ready: impl FnMut(usize, u64)) -> usize {
        let mut tally = Tally { doorbell: self, taken: 0 };
        let mut drain = self.marks.drain();
        while let Some((first, marks)) = drain.next_word() {
            tally.taken += marks.count_ones() as usize;
            ready(first, marks);
        }
        tally.taken
    }

    /// Whether nothing was marked just now.
    pub fn is_idle(&self) -> bool {
        // A hint; in `prepare_sleep` the fence orders it.
        self.marks.is_empty()
    }

    /// Announces that the consumer will sleep, unless something is marked.
    ///
    /// `true`: wait for the descriptor to become readable, then call [`awake`](Self::awake).
    /// `false`: drain instead.
    pub fn prepare_sleep(&self) -> bool {
        self.wakeup.prepare_sleep(|| self.is_idle())
    }

    /// Ends a sleep, whatever ended it. Reads the eventfd only if someone rang.
    pub fn awake(&self) {
        self.wakeup.awake();
    }

    /// Nanoseconds since it was made.
    #[cfg(not(loom))]
    pub fn elapsed(&self) -> u64 {
        self.wakeup.elapsed()
    }

    /// When a producer last woke the consumer, in nanoseconds since this was made; 0: never.
    #[cfg(not(loom))]
    pub fn rang(&self) -> u64 {
        self.wakeup.rang()
    }

    /// How many indices there are.
    pub fn bits(&self) -> usize {
        self.marks.bits()
    }

    /// How often the eventfd was written.
    pub fn sent(&self) -> u64 {
        self.wakeup.sent()
    }

    /// How many marks were drained. `rung() / sent()` is what suppression saves.
    pub fn rung(&self) -> u64 {
        // Relaxed: a statistic.
        self.rung.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell")
            .field("bits", &self.bits())
            .field("idle", &self.is_idle())
            .field("rung", &self.rung())
            .field("wakeup", &self.wakeup)
            .finish_non_exhaustive()
    }
}

#[cfg(not(loom))]
impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.wakeup.as_raw_fd()
    }
}

#[cfg(not(loom))]
impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }
}

/// Counts the marks of one drain, also where it ends by a panic.
struct Tally<'a> {
    doorbell: &'a Doorbell,
    taken: usize,
}

impl Drop for Tally<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.taken > 0 {
            // Relaxed: only the consumer writes it, and for readers it is a statistic.
            let rung = self.doorbell.rung.load(Ordering::Relaxed) + self.taken as u64;
            self.doorbell.rung.store(rung, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::sync::AtomicUsize;

    fn drained(doorbell: &Doorbell) -> Vec<usize> {
        let mut indices = Vec::new();
        let count = doorbell.drain(|index| indices.push(index));
        assert_eq!(count, indices.len());
        indices
    }

    fn readable(doorbell: &Doorbell) -> bool {
        let mut descriptor =
            libc::pollfd { fd: doorbell.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live pollfd; a bad pointer gives -1, which fails the test.
        let ready = unsafe { libc::poll(&mut descriptor, 1, 0) };
        assert!(ready >= 0);
        ready == 1
    }

    #[test]
    fn marks_merge_and_come_in_order() {
        let doorbell = Doorbell::new(65_536).unwrap();
        assert!(doorbell.is_idle());
        for index in [65_535, 0, 63, 64, 4095, 4096, 64, 30_000] {
            doorbell.set(index);
        }
        assert!(!doorbell.is_idle());
        assert_eq!(drained(&doorbell), [0, 63, 64, 4095, 4096, 30_000, 65_535]);
        assert!(doorbell.is_idle());
        assert_eq!(drained(&doorbell), []);
        assert_eq!((doorbell.rung(), doorbell.sent()), (7, 0));
    }

    #[test]
    fn limits_are_named() {
        for bits in [0, MAX_BITS + 1] {
            let error = Doorbell::new(bits).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&bits.to_string()), "{error}");
        }
        let doorbell = Doorbell::new(MAX_BITS).unwrap();
        doorbell.set(MAX_BITS - 1);
        assert_eq!(drained(&doorbell), [MAX_BITS - 1]);
    }

    #[test]
    #[should_panic = "index 10 of a set of 10 indices"]
    fn an_index_beyond_the_end_is_refused() {
        Doorbell::new(10).unwrap().set(10);
    }

    #[test]
    fn a_mark_set_while_draining_is_kept() {
        let doorbell = Doorbell::new(128).unwrap();
        doorbell.set(5);
        doorbell.drain(|index| doorbell.set(index));
        assert_eq!(drained(&doorbell), [5]);
    }

    #[test]
    fn a_panicking_callback_loses_only_its_own_mark() {
        let doorbell = Doorbell::new(20_000).unwrap();
        let marks = [1, 2, 3, 100, 5_000];
        for (failing, _) in marks.iter().enumerate() {
            for index in marks {
                doorbell.set(index);
            }
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                doorbell.drain(|index| assert_ne!(index, marks[failing]));
            }));
            assert!(outcome.is_err());
            assert_eq!(drained(&doorbell), marks[failing + 1..]);
        }
    }

    #[test]
    fn descriptor_is_readable_once_rung() {
        let doorbell = Doorbell::new(64).unwrap();
        assert!(!doorbell.ring(3));
        assert!(!doorbell.prepare_sleep(), "a mark is there");
        assert_eq!(drained(&doorbell), [3]);

        assert!(doorbell.prepare_sleep());
        assert!(!readable(&doorbell));
        assert!(doorbell.ring(3));
        assert!(!doorbell.ring(4), "woken already");
        assert!(readable(&doorbell));
        doorbell.awake();
        assert!(!readable(&doorbell));
        assert_eq!(drained(&doorbell), [3, 4]);
        assert_eq!((doorbell.rung(), doorbell.sent()), (3, 1));
    }

    #[test]
    fn every_mark_arrives_between_threads() {
        const PRODUCERS: usize = 3;
        const MARKS: usize = 20_000;
        const BITS: usize = 300;
        let doorbell = Arc::new(Doorbell::new(BITS).unwrap());
        let posted: Arc<[AtomicUsize]> = (0..BITS).map(|_| AtomicUsize::new(0)).collect();
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let (doorbell, posted) = (Arc::clone(&doorbell), Arc::clone(&posted));
                thread::spawn(move || {
                    for mark in 0..MARKS {
                        let index = (mark * 7 + producer * 31) % BITS;
                        posted[index].fetch_add(1, Ordering::Relaxed);
                        doorbell.ring(index);
                    }
                })
            })
            .collect();
        let mut served = 0;
        while served < PRODUCERS * MARKS {
            doorbell.drain(|index| served += posted[index].swap(0, Ordering::Relaxed));
            if served < PRODUCERS * MARKS && doorbell.prepare_sleep() {
                doorbell.wakeup.wait(None).unwrap();
                doorbell.awake();
            }
        }
        for producer in producers {
            producer.join().unwrap();
        }
        assert_eq!(served, PRODUCERS * MARKS);
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(
            bits in 1..10_000usize,
            rounds in prop::collection::vec(
                prop::collection::vec(any::<prop::sample::Index>(), 0..40),
                0..10,
            ),
        ) {
            let doorbell = Doorbell::new(bits).unwrap();
            for marks in rounds {
                let marks: BTreeSet<_> = marks.iter().map(|mark| mark.index(bits)).collect();
                for &mark in &marks {
                    doorbell.set(mark);
                }
                prop_assert_eq!(doorbell.is_idle(), marks.is_empty());
                prop_assert_eq!(drained(&doorbell), Vec::from_iter(marks));
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::sync::check;

    /// Two producers mark the same word while the consumer drains it: no mark is missed, and what
    /// was written before a mark is visible to who drains it.
    #[test]
    fn no_mark_is_missed() {
        check(3, || {
            let doorbell = Arc::new(Doorbell::new(64).unwrap());
            let posted = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let producers = [0, 1].map(|index| {
                let (doorbell, posted) = (Arc::clone(&doorbell), Arc::clone(&posted));
                thread::spawn(move || {
                    posted[index].store(1, Ordering::Relaxed);
                    doorbell.set(index);
                })
            });
            let mut marks = 0;
            let mut drain = || {
                doorbell.drain(|index| {
                    assert_eq!(posted[index].load(Ordering::Relaxed), 1);
                    marks |= 1 << index;
                });
            };
            drain();
            for producer in producers {
                producer.join().unwrap();
            }
            drain();
            assert_eq!(marks, 0b11);
            assert!(doorbell.is_idle());
        });
    }

    /// The same bit twice: the second mark is for work that the first drain may not have seen.
    #[test]
    fn a_repeated_mark_is_not_swallowed() {
        check(3, || {
            let doorbell = Arc::new(Doorbell::new(64).unwrap());
            let posted = Arc::new(AtomicU64::new(0));
            let producers = [(); 2].map(|()| {
                let (doorbell, posted) = (Arc::clone(&doorbell), Arc::clone(&posted));
                thread::spawn(move || {
                    posted.fetch_add(1, Ordering::Relaxed);
                    doorbell.set(7);
                })
            });
            let mut served = 0;
            let mut drain = || {
                doorbell.drain(|_| served = posted.load(Ordering::Relaxed));
            };
            drain();
            for producer in producers {
                producer.join().unwrap();
            }
            drain();
            assert_eq!(served, 2);
        });
    }

    /// A consumer that sleeps although something is marked has been woken.
    #[test]
    fn no_sleep_over_a_mark() {
        check(3, || {
            let doorbell = Arc::new(Doorbell::new(64).unwrap());
            let producers = [0, 1].map(|index| {
                let doorbell = Arc::clone(&doorbell);
                thread::spawn(move || doorbell.ring(index))
            });
            let drained = doorbell.drain(|_| ());
            let sleeps = doorbell.prepare_sleep();
            let woken = producers.map(|producer| producer.join().unwrap());
            if sleeps && drained < 2 {
                assert_eq!(doorbell.sent(), 1);
                assert_ne!(woken, [true, true]);
            }
            doorbell.awake();
            assert_eq!(drained + doorbell.drain(|_| ()), 2);
        });
    }
}
