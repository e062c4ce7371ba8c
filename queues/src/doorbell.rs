//! Which of many rings have something in them, and waking the one thread that serves them.
//!
//! A shard serves up to 65,536 subchannels and cannot look at each ring. Producers mark the
//! subchannel in a bitmap; the shard drains the bitmap. A second level has one bit for each 64-bit
//! word of the first, so that draining costs one load for each 4,096 subchannels plus the marks
//! found.
//!
//! When the shard sleeps, a producer wakes it by the protocol of [`wakeup`](crate::wakeup): there is
//! the account of its two fences. "Publish work" is [`Doorbell::set`] here, and "is there work" is
//! [`Doorbell::is_idle`].
//!
//! # Why a mark is never missed
//!
//! The producer sets the bit, then looks at the summary bit and sets it if it is not. The consumer
//! clears the summary bit, then takes the word. Mark and take are read-modify-write operations on one
//! word, so one of them comes first. If the mark does, the take has it. If the take does, the mark
//! has acquired it and with it the cleared summary bit: the producer sees it clear and sets it again.
//!
//! A producer looks at the summary even when its bit was set already: the thread that set it may have
//! been descheduled before it came to the summary, and must not hold up others.

use std::fmt;
use std::io;
#[cfg(not(loom))]
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Ordering};
use crate::wakeup::Wakeup;

/// The most indices one doorbell can have: 16 times the subchannels of a channel-subsystem image
/// with all four subchannel sets, in 512 KiB of bitmap.
pub const MAX_BITS: usize = 1 << 22;

/// A set of ready indices with a wake-up for the thread that serves them.
///
/// Shared by reference or `Arc`. Producers call [`ring`](Self::ring), or [`set`](Self::set) several
/// times and [`wake_if_asleep`](Self::wake_if_asleep) once. The other methods that change something
/// belong to one consumer thread at a time.
pub struct Doorbell {
    bits: usize,
    /// Bit `i % 64` of word `i / 64`: index `i` is ready.
    words: Box<[AtomicU64]>,
    /// Bit `w % 64` of word `w / 64`: `words[w]` may be non-zero.
    summary: Box<[AtomicU64]>,
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
        let words = bits.div_ceil(64);
        let zeros = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Ok(Self {
            bits,
            words: zeros(words),
            summary: zeros(words.div_ceil(64)),
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
        assert!(index < self.bits, "index {index} at a doorbell for {} indices", self.bits);
        let word = index / 64;
        // Release: pairs with the acquire of the take in `Drain::next_word`, for the caller's work.
        // Acquire: pairs with the release of that take; if it came first, the summary is seen clear.
        // It must be done also for a bit that is set, since the take may be about to happen.
        self.words[word].fetch_or(1 << (index % 64), Ordering::AcqRel);
        let (summary, bit) = (&self.summary[word / 64], 1 << (word % 64));
        // Relaxed: if it is set, some take of the word comes after the mark above (module
        // documentation).
        if summary.load(Ordering::Relaxed) & bit == 0 {
            // Release: pairs with the acquire of the swap in `Drain::next_word`, so that the take
            // finds the word marked. No model shows that: loom's read-modify-writes see the last
            // value anyway, which the language promises only with this order.
            summary.fetch_or(bit, Ordering::Release);
        }
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
        let mut drain =
            Drain { doorbell: self, block: 0, marked_words: 0, word: 0, marks: 0, taken: 0 };
        while let Some(index) = drain.next() {
            ready(index);
        }
        drain.taken
    }

    /// Whether nothing was marked just now.
    pub fn is_idle(&self) -> bool {
        // Relaxed: for a hint that is enough, and in `prepare_sleep` the fence orders it.
        self.summary.iter().all(|summary| summary.load(Ordering::Relaxed) == 0)
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

    /// How many indices there are.
    pub fn bits(&self) -> usize {
        self.bits
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
            .field("bits", &self.bits)
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

/// One pass over the bitmap. What it has taken and not given out goes back when it is dropped.
struct Drain<'a> {
    doorbell: &'a Doorbell,
    /// The next summary word to take.
    block: usize,
    /// Bits of the last summary word taken whose words have not been taken yet.
    marked_words: u64,
    /// The last word taken.
    word: usize,
    /// Its bits that have not been given out.
    marks: u64,
    taken: usize,
}

impl Drain<'_> {
    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        while self.marks == 0 {
            self.next_word()?;
        }
        let bit = take_lowest(&mut self.marks);
        self.taken += 1;
        Some(self.word * 64 + bit)
    }

    #[inline(always)]
    fn next_word(&mut self) -> Option<()> {
        while self.marked_words == 0 {
            let summary = self.doorbell.summary.get(self.block)?;
            self.block += 1;
            // Relaxed: only to save the swap. A mark missed here stays for the next drain, or for
            // the look after the fence in `prepare_sleep`.
            if summary.load(Ordering::Relaxed) != 0 {
                // Acquire: pairs with the release of the summary's `fetch_or` in `set`.
                self.marked_words = summary.swap(0, Ordering::Acquire);
            }
        }
        self.word = (self.block - 1) * 64 + take_lowest(&mut self.marked_words);
        // Acquire: pairs with the release of the mark in `set`, for the producer's work. Release:
        // pairs with its acquire, for the summary bit that was cleared before. Always a swap, even
        // if the word looks empty: only read-modify-writes have the order that `set` relies on.
        self.marks = self.doorbell.words[self.word].swap(0, Ordering::AcqRel);
        Some(())
    }
}

impl Drop for Drain<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.taken == 0 {
            return;
        }
        // Relaxed: only the consumer writes it, and for readers it is a statistic.
        let rung = self.doorbell.rung.load(Ordering::Relaxed) + self.taken as u64;
        self.doorbell.rung.store(rung, Ordering::Relaxed);
        // Normally nothing is left: only after a panic in the callback.
        if self.marks | self.marked_words != 0 {
            self.put_back();
        }
    }
}

impl Drain<'_> {
    #[cold]
    fn put_back(&mut self) {
        if self.marks != 0 {
            // Release: pairs with the acquire of the next take, as if the producers marked again.
            self.doorbell.words[self.word].fetch_or(self.marks, Ordering::Release);
            self.marked_words |= 1 << (self.word % 64);
        }
        // Release: pairs with the acquire of the next swap in `next_word`.
        self.doorbell.summary[self.block - 1].fetch_or(self.marked_words, Ordering::Release);
    }
}

/// Clears the lowest bit that is set and returns its number.
#[inline(always)]
fn take_lowest(bits: &mut u64) -> usize {
    let lowest = bits.trailing_zeros() as usize;
    *bits &= *bits - 1;
    lowest
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
    #[should_panic = "index 10 at a doorbell for 10 indices"]
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
