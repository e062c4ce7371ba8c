//! A set of indices that many threads add to and take from, as a bitmap of two levels.
//!
//! The second level has one bit for each 64-bit word of the first, so that a look for what is marked
//! costs one load for each 4,096 indices plus the marks found.
//!
//! # Why a mark is never missed
//!
//! Who marks sets the bit, then looks at the summary bit and sets it if it is not. Who takes clears
//! the summary bit, then takes from the word. Both change the one word with read-modify-write
//! operations, so one of them comes first. If the mark does, the take has it. If the take does, the
//! mark has acquired it and with it the cleared summary bit: whoever marks sees it clear and sets it
//! again.
//!
//! Who marks looks at the summary even when its bit was set already: the thread that set it may have
//! been descheduled before it came to the summary, and must not hold up others.

use crate::sync::{AtomicU64, Ordering};

/// The most indices one set can have: 16 times the subchannels of a channel-subsystem image with all
/// four subchannel sets, in 512 KiB of bitmap.
pub const MAX_BITS: usize = 1 << 22;

/// A set of indices below a limit.
#[derive(Debug)]
pub struct Marks {
    bits: usize,
    /// Bit `i % 64` of word `i / 64`: index `i` is marked.
    words: Box<[AtomicU64]>,
    /// Bit `w % 64` of word `w / 64`: `words[w]` may be non-zero.
    summary: Box<[AtomicU64]>,
}

impl Marks {
    /// A set for the indices below `bits`, empty; at most [`MAX_BITS`] are used.
    pub fn new(bits: usize) -> Self {
        let words = bits.min(MAX_BITS).div_ceil(64);
        let zeros = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self { bits, words: zeros(words), summary: zeros(words.div_ceil(64)) }
    }

    /// How many indices there are.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// Marks `index`. What the caller did before is visible to whoever takes the mark. One or two
    /// read-modify-write operations; marks that were not taken yet merge into one.
    ///
    /// # Panics
    /// If `index` is not below the number of bits.
    #[inline]
    pub fn set(&self, index: usize) {
        assert!(index < self.bits, "index {index} of a set of {} indices", self.bits);
        self.set_word(index / 64, 1 << (index % 64));
    }

    /// Marks the indices `word * 64 + b` for each bit `b` of `marks`, for the price of one.
    #[inline]
    pub(crate) fn set_word(&self, word: usize, marks: u64) {
        // Release: pairs with the acquire of the take in `Drain::next_word` and `take_first`, for the
        // caller's work. Acquire: pairs with the release of that take; if it came first, the summary
        // is seen clear. It must be done also for a bit that is set, since the take may be about to
        // happen.
        self.words[word].fetch_or(marks, Ordering::AcqRel);
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

    /// Whether nothing was marked just now.
    #[inline]
    pub fn is_empty(&self) -> bool {
        // Relaxed: for a hint that is enough, and where more is needed a fence orders it.
        self.summary.iter().all(|summary| summary.load(Ordering::Relaxed) == 0)
    }

    /// Takes one mark: the lowest index at or above `from`, else the lowest of all. Any number of
    /// threads may do so at once; each mark goes to one of them.
    pub fn take_first(&self, from: usize) -> Option<usize> {
        self.take_from(from).or_else(|| self.take_from(0))
    }

    /// Takes one mark: the lowest index at or above `from`.
    pub fn take_from(&self, from: usize) -> Option<usize> {
        let mut word = from / 64;
        // Marks of the first word that are below `from` do not count.
        let mut counted = u64::MAX << (from % 64);
        while word < self.words.len() {
            // Acquire: pairs with the release of the summary's `fetch_or` in `set_word`.
            let ahead = self.summary[word / 64].load(Ordering::Acquire) >> (word % 64);
            let skipped = ahead.trailing_zeros() as usize;
            if skipped > 0 {
                // Nothing here: on to the next word that has something, or the next summary word.
                word = if ahead == 0 { (word / 64 + 1) * 64 } else { word + skipped };
                counted = u64::MAX;
                continue;
            }
            if let Some(bit) = self.take_in_word(word, counted) {
                return Some(word * 64 + bit);
            }
            word += 1;
            counted = u64::MAX;
        }
        None
    }

    /// Takes the lowest mark of a word among `counted`; clears the summary's bit where the word has
    /// none at all.
    fn take_in_word(&self, word: usize, counted: u64) -> Option<usize> {
        // Acquire: pairs with the release of the mark in `set_word`, as does the one below.
        let mut marks = self.words[word].load(Ordering::Acquire);
        loop {
            while marks & counted != 0 {
                let bit = 1u64 << (marks & counted).trailing_zeros();
                // Acquire: as above. Release: pairs with the acquire of the mark, see `Drain`.
                let before = self.words[word].fetch_and(!bit, Ordering::AcqRel);
                if before & bit != 0 {
                    return Some(bit.trailing_zeros() as usize);
                }
                marks = before & !bit;
            }
            if marks != 0 {
                return None;
            }
            let (summary, bit) = (&self.summary[word / 64], 1 << (word % 64));
            // Relaxed: what follows is a read-modify-write of the word with release.
            summary.fetch_and(!bit, Ordering::Relaxed);
            // A read-modify-write that changes nothing: a mark comes before it and is seen here, or
            // after it, has acquired the cleared summary bit, and sets it again.
            marks = self.words[word].fetch_or(0, Ordering::AcqRel);
            if marks == 0 {
                return None;
            }
            // Release: pairs with the acquire of whoever looks at the summary.
            summary.fetch_or(bit, Ordering::Release);
        }
    }

    /// A pass that takes all marks. For one consumer at a time.
    pub(crate) fn drain(&self) -> Drain<'_> {
        Drain { marks: self, block: 0, marked_words: 0, word: 0, rest: 0 }
    }
}

/// One pass over the set. What it has taken and not given out goes back when it is dropped.
pub(crate) struct Drain<'a> {
    marks: &'a Marks,
    /// The next summary word to take.
    block: usize,
    /// Bits of the last summary word taken whose words have not been taken yet.
    marked_words: u64,
    /// The last word taken.
    word: usize,
    /// Its bits that have not been given out.
    rest: u64,
}

impl Drain<'_> {
    /// The next index, in ascending order.
    #[inline(always)]
    pub(crate) fn next_index(&mut self) -> Option<usize> {
        while self.rest == 0 {
            self.take_word()?;
        }
        Some(self.word * 64 + take_lowest(&mut self.rest))
    }

    /// The next word with marks: the index of its first bit, and the marks.
    #[inline(always)]
    pub(crate) fn next_word(&mut self) -> Option<(usize, u64)> {
        while self.rest == 0 {
            self.take_word()?;
        }
        Some((self.word * 64, std::mem::take(&mut self.rest)))
    }

    #[inline(always)]
    fn take_word(&mut self) -> Option<()> {
        while self.marked_words == 0 {
            let summary = self.marks.summary.get(self.block)?;
            self.block += 1;
            // Relaxed: only to save the swap. A mark missed here stays for the next pass, or for
            // the look after the fence in `Doorbell::prepare_sleep`.
            if summary.load(Ordering::Relaxed) != 0 {
                // Acquire: pairs with the release of the summary's `fetch_or` in `set_word`.
                self.marked_words = summary.swap(0, Ordering::Acquire);
            }
        }
        self.word = (self.block - 1) * 64 + take_lowest(&mut self.marked_words);
        // Acquire: pairs with the release of the mark in `set_word`, for the work of who marked.
        // Release: pairs with its acquire, for the summary bit that was cleared before. Always a
        // swap, even if the word looks empty: only read-modify-writes have the order that
        // `set_word` relies on.
        self.rest = self.marks.words[self.word].swap(0, Ordering::AcqRel);
        Some(())
    }
}

impl Drop for Drain<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // Normally nothing is left: only after a panic of who is given the marks.
        if self.rest | self.marked_words != 0 {
            self.put_back();
        }
    }
}

impl Drain<'_> {
    #[cold]
    fn put_back(&mut self) {
        if self.rest != 0 {
            // Release: pairs with the acquire of the next take, as if it was marked again.
            self.marks.words[self.word].fetch_or(self.rest, Ordering::Release);
            self.marked_words |= 1 << (self.word % 64);
        }
        // Release: pairs with the acquire of the next swap in `take_word`.
        self.marks.summary[self.block - 1].fetch_or(self.marked_words, Ordering::Release);
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
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_from_a_place_on_comes_first_and_then_around() {
        let marks = Marks::new(70_000);
        assert_eq!(marks.take_first(0), None);
        for index in [5, 130, 4096, 69_999] {
            marks.set(index);
        }
        assert_eq!((marks.take_from(131), marks.take_from(70_001)), (Some(4096), None));
        marks.set(4096);
        assert_eq!(marks.take_first(128), Some(130));
        assert_eq!(marks.take_first(60_000), Some(69_999));
        assert_eq!(marks.take_first(60_000), Some(5), "around the end");
        assert_eq!(marks.take_first(usize::MAX), Some(4096));
        assert!(marks.take_first(0).is_none() && marks.is_empty());
    }

    #[test]
    #[should_panic(expected = "index 64 of a set of 64 indices")]
    fn an_index_outside_is_a_bug() {
        Marks::new(64).set(64);
    }

    #[test]
    fn each_mark_is_taken_by_one_thread() {
        const MARKS: usize = 40_000;
        let (marks, taken) = (Arc::new(Marks::new(MARKS)), Arc::new(AtomicUsize::new(0)));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut from = 0;
                    // Relaxed: a count.
                    while taken.load(Ordering::Relaxed) < MARKS {
                        match marks.take_first(from) {
                            Some(index) => {
                                taken.fetch_add(1, Ordering::Relaxed);
                                from = index + 1;
                            }
                            None => thread::yield_now(),
                        }
                    }
                });
            }
            (0..MARKS).for_each(|index| marks.set(index));
        });
        assert_eq!(taken.load(Ordering::Relaxed), MARKS, "none twice, none missed");
        assert!(marks.take_first(0).is_none() && marks.is_empty());
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(
            bits in 1..10_000usize,
            steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..100),
        ) {
            let (marks, mut model) = (Marks::new(bits), BTreeSet::new());
            for (place, mark) in steps {
                let place = place.index(bits);
                if mark {
                    marks.set(place);
                    model.insert(place);
                } else {
                    let next = model.range(place..).next().or(model.iter().next()).copied();
                    prop_assert_eq!(marks.take_first(place), next);
                    next.map(|next| model.remove(&next));
                }
                prop_assert!(model.is_empty() || !marks.is_empty());
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

    /// One marks, two take: no mark is missed or taken twice, and what was written before a mark is
    /// visible to who takes it.
    #[test]
    fn a_mark_goes_to_one_taker() {
        check(3, || {
            let marks = Arc::new(Marks::new(64));
            let posted = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let takers = [(); 2].map(|()| {
                let (marks, posted) = (Arc::clone(&marks), Arc::clone(&posted));
                thread::spawn(move || {
                    let taken = marks.take_first(0);
                    if let Some(index) = taken {
                        assert_eq!(posted[index].load(Ordering::Relaxed), 1);
                    }
                    usize::from(taken.is_some())
                })
            });
            for index in 0..2 {
                posted[index].store(1, Ordering::Relaxed);
                marks.set(index);
            }
            let mut taken: usize = takers.map(|taker| taker.join().unwrap()).iter().sum();
            while marks.take_first(0).is_some() {
                taken += 1;
            }
            assert_eq!(taken, 2);
        });
    }
}
