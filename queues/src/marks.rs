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
//!
//! # Why "there is none" is true
//!
//! Several threads may look at once, and one that tidies up takes a summary bit or a mark away for a
//! moment, and sets it again if it was needed after all. Another that looks at that moment must not
//! conclude that nothing is there. So tidying is counted when it begins and when it has ended, and who
//! finds nothing while one was under way looks again. (Who only drains, alone, is not concerned.)

use crate::sync::{AtomicU64, AtomicUsize, Ordering};

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
    /// Times that somebody has begun to tidy up, and was done.
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Marks {
    /// A set for the indices below `bits`, empty; at most [`MAX_BITS`] are used.
    pub fn new(bits: usize) -> Self {
        let words = bits.min(MAX_BITS).div_ceil(64);
        let zeros = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            bits,
            words: zeros(words),
            summary: zeros(words.div_ceil(64)),
            begun: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
        }
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
        self.look(|| {
            let take =
                |from| self.first_in_words(from, |word, counted| self.take_in(word, counted));
            take(from).or_else(|| take(0))
        })
    }

    /// The lowest index at or above `from` that is marked. The mark stays.
    pub fn next_from(&self, from: usize) -> Option<usize> {
        self.look(|| {
            self.first_in_words(from, |word, counted| {
                // Acquire: pairs with the release of the mark in `set_word`.
                let marks = self.words[word].load(Ordering::Acquire) & counted;
                (marks != 0).then(|| marks.trailing_zeros() as usize)
            })
        })
    }

    /// Takes the mark of `index` away, unless `is_wanted`, which is asked when it is gone: then it stays,
    /// and nobody has missed it meanwhile.
    ///
    /// # Panics
    /// If `index` is not below the number of bits.
    pub fn unmark_unless(&self, index: usize, is_wanted: impl FnOnce() -> bool) {
        let _tidying = self.tidy();
        // Release: pairs with the acquire of whoever looks, who sees that this is going on. Acquire:
        // pairs with the release of the mark in `set_word`, so that `is_wanted` sees what it was for.
        self.words[index / 64].fetch_and(!(1 << (index % 64)), Ordering::AcqRel);
        if is_wanted() {
            self.set(index);
        }
    }

    /// What `look` finds. That it finds nothing counts only where nobody tidied up meanwhile.
    fn look(&self, look: impl Fn() -> Option<usize>) -> Option<usize> {
        loop {
            // Acquire: pairs with the release in `Tidying::drop`: what was set again before is seen.
            let ended = self.ended.load(Ordering::Acquire);
            let found = look();
            // Relaxed: who has seen something taken away has acquired that it had begun.
            if found.is_some() || self.begun.load(Ordering::Relaxed) == ended {
                return found;
            }
            crate::sync::spin_loop();
        }
    }

    fn tidy(&self) -> Tidying<'_> {
        // Relaxed: what is taken away afterwards is released with it.
        self.begun.fetch_add(1, Ordering::Relaxed);
        Tidying(self)
    }

    /// The first index at or above `from` that `in_word` finds, which is asked for words that may have
    /// marks, and for which bits of each count.
    fn first_in_words(
        &self,
        from: usize,
        in_word: impl Fn(usize, u64) -> Option<usize>,
    ) -> Option<usize> {
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
            if let Some(bit) = in_word(word, counted) {
                return Some(word * 64 + bit);
            }
            word += 1;
            counted = u64::MAX;
        }
        None
    }

    /// Takes the lowest mark of a word among `counted`; clears the summary's bit where the word has
    /// none at all.
    fn take_in(&self, word: usize, counted: u64) -> Option<usize> {
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
            let _tidying = self.tidy();
            let (summary, bit) = (&self.summary[word / 64], 1 << (word % 64));
            // Release: pairs with the acquire of whoever looks, who sees that this is going on.
            summary.fetch_and(!bit, Ordering::Release);
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

/// Somebody takes away what may be needed after all.
struct Tidying<'a>(&'a Marks);

impl Drop for Tidying<'_> {
    fn drop(&mut self) {
        // Release: pairs with the acquire in `Marks::look`.
        self.0.ended.fetch_add(1, Ordering::Release);
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
        assert_eq!((marks.next_from(131), marks.next_from(70_001)), (Some(4096), None));
        assert_eq!(marks.take_first(128), Some(130));
        assert_eq!(marks.take_first(60_000), Some(69_999));
        assert_eq!(marks.take_first(60_000), Some(5), "around the end");
        assert_eq!(marks.take_first(usize::MAX), Some(4096));
        assert!(marks.take_first(0).is_none() && marks.is_empty());
    }

    #[test]
    fn a_mark_goes_unless_it_is_wanted() {
        let marks = Marks::new(100);
        marks.set(70);
        marks.unmark_unless(70, || true);
        assert_eq!(marks.next_from(0), Some(70));
        marks.unmark_unless(70, || false);
        assert_eq!(marks.next_from(0), None);
        marks.unmark_unless(3, || false);
        assert_eq!(marks.take_first(0), None);
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

    /// Whoever looks after two marks were set finds one, while another takes one of them, and had found
    /// their word empty before.
    #[test]
    fn what_is_there_is_found() {
        check(3, || {
            let marks = Arc::new(Marks::new(64));
            marks.set(5);
            assert_eq!(marks.take_first(0), Some(5), "the summary stays as it was");
            let posted = Arc::new(AtomicUsize::new(0));
            let poster = {
                let (marks, posted) = (Arc::clone(&marks), Arc::clone(&posted));
                thread::spawn(move || {
                    marks.set(0);
                    marks.set(1);
                    posted.store(1, Ordering::Release);
                })
            };
            let other = {
                let marks = Arc::clone(&marks);
                thread::spawn(move || marks.take_first(0))
            };
            if posted.load(Ordering::Acquire) == 1 {
                assert!(marks.take_first(0).is_some());
            }
            poster.join().unwrap();
            other.join().unwrap();
        });
    }

    /// Whoever looks after what a mark is for has come about finds the mark, while another tidies it up,
    /// since it was for nothing before.
    #[test]
    fn what_is_tidied_up_is_found() {
        check(3, || {
            let marks = Arc::new(Marks::new(64));
            marks.set(0);
            let [wanted, posted] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
            let poster = {
                let (marks, wanted, posted) =
                    (Arc::clone(&marks), Arc::clone(&wanted), Arc::clone(&posted));
                thread::spawn(move || {
                    wanted.store(1, Ordering::Relaxed);
                    marks.set(0);
                    posted.store(1, Ordering::Release);
                })
            };
            let other = {
                let marks = Arc::clone(&marks);
                thread::spawn(move || {
                    marks.unmark_unless(0, || wanted.load(Ordering::Relaxed) == 1);
                })
            };
            if posted.load(Ordering::Acquire) == 1 {
                assert_eq!(marks.next_from(0), Some(0));
            }
            poster.join().unwrap();
            other.join().unwrap();
            assert_eq!(marks.take_first(0), Some(0));
        });
    }

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
