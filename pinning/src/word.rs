//! The state word: everything the hit path has to know about a frame, in one atomic.
//!
//! ```text
//!  63            32 31  28 27   25  24  23             0
//! +----------------+------+-------+----+----------------+
//! |      slot      |  0   | state | R  |  in-use count  |
//! +----------------+------+-------+----+----------------+
//!
//!            claim               ready
//!  Absent ----------> Pinning ----------> Ready  <---+
//!    ^                   |                 |  \      | take, release
//!    |       fail        |           evict |   +-----+
//!    +-------------------+                 v
//!    +------------------------------- Evicting --> Ready
//!                 vacate                    restore
//! ```
//!
//! `take` and `release` are open to every thread and touch nothing but the word. The other
//! transitions belong to whoever moved the word into Pinning or Evicting: a frame has one owner at
//! a time, so they need no retry. Eviction is a compare-and-swap on the *whole* word with an in-use
//! count of zero; it and `take` cannot both win.

use crate::sync::{AtomicU64, Ordering};

const COUNT: u64 = (1 << 24) - 1;
const REFERENCED: u64 = 1 << 24;
const STATE: u64 = 0b111 << 25;
const ABSENT: u64 = 0 << 25;
const PINNING: u64 = 1 << 25;
const READY: u64 = 2 << 25;
const EVICTING: u64 = 3 << 25;
const SLOT_SHIFT: u32 = 32;

/// Outcome of [`StateWord::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The frame is pinned and now counts one more user.
    Hit,
    /// The frame is not pinned.
    Absent,
    /// Somebody is pinning or unpinning it at this moment.
    Busy,
    /// It has as many users as can be counted.
    Saturated,
}

/// Outcome of [`StateWord::try_evict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// The word is in Evicting and belongs to the caller.
    Claimed,
    /// It had been used since the last look: that is forgotten now, come back later.
    SecondChance,
    /// In use, or in another owner's hands.
    Refused,
}

/// One frame's state. All zeros is "absent", so a fresh table is just zeroed memory.
#[derive(Debug)]
#[cfg_attr(not(loom), derive(zerocopy::FromZeros))]
#[repr(transparent)]
pub(crate) struct StateWord(AtomicU64);

impl StateWord {
    #[cfg(loom)]
    pub(crate) fn absent() -> Self {
        StateWord(AtomicU64::new(ABSENT))
    }

    /// Adds a user if the frame is pinned. The hit path: one load and one compare-and-swap.
    #[inline]
    pub(crate) fn take(&self) -> Taken {
        // Relaxed: only a guess for the compare-and-swap below.
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            match word & STATE {
                READY if word & COUNT == COUNT => return Taken::Saturated,
                READY => {}
                ABSENT => return Taken::Absent,
                _ => return Taken::Busy,
            }
            // Acquire: pairs with the Release in `ready`, so the pin is complete for whoever takes.
            match self.0.compare_exchange_weak(
                word,
                (word + 1) | REFERENCED,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Taken::Hit,
                Err(now) => word = now,
            }
        }
    }

    /// Removes a user. Returns whether it was the last one.
    #[inline]
    pub(crate) fn release(&self) -> bool {
        // SeqCst: Release so that the user's accesses happen before an eviction, which acquires;
        // and totally ordered with `Pool::waiting`, which the releaser reads next: either it sees
        // the waiter, or the waiter's retry sees this count (see `Pool::release`).
        let before = self.0.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(
            before & COUNT != 0 && before & STATE == READY,
            "released a frame that was not held"
        );
        before & COUNT == 1
    }

    /// Absent to Pinning, owned by the caller, who remembers the frame in `slot`.
    pub(crate) fn claim(&self, slot: u32) -> bool {
        let claimed = PINNING | u64::from(slot) << SLOT_SHIFT;
        // Acquire on success: pairs with the Release in `vacate` and `fail`, so that the unpin
        // by a former owner happens before our pin.
        self.0.compare_exchange(ABSENT, claimed, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Pinning to Ready with one user, the caller.
    pub(crate) fn ready(&self) {
        // Relaxed load: the owner alone may change the word now.
        let slot = self.0.load(Ordering::Relaxed) >> SLOT_SHIFT << SLOT_SHIFT;
        // Release: pairs with the Acquire in `take` and `try_evict`.
        self.0.store(slot | READY | 1, Ordering::Release);
    }

    /// Pinning to Absent: it could not be pinned.
    pub(crate) fn fail(&self) {
        // Release: pairs with the Acquire in `claim`.
        self.0.store(ABSENT, Ordering::Release);
    }

    /// Ready and unused to Evicting, owned by the caller. With `second_chance`, a frame used since
    /// the last look is spared once.
    pub(crate) fn try_evict(&self, second_chance: bool) -> Eviction {
        // Relaxed: only a guess for the compare-and-swaps below.
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if word & STATE != READY || word & COUNT != 0 {
                return Eviction::Refused;
            }
            let spare = second_chance && word & REFERENCED != 0;
            let next =
                if spare { word & !REFERENCED } else { word & !STATE & !REFERENCED | EVICTING };
            // SeqCst: Acquire pairs with `release`: the last user is done with the page.
            match self.0.compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) if spare => return Eviction::SecondChance,
                Ok(_) => return Eviction::Claimed,
                Err(now) => word = now,
            }
        }
    }

    /// Evicting to Ready, unused: the eviction is called off.
    pub(crate) fn restore(&self) {
        // Relaxed load: the owner alone may change the word now.
        let slot = self.0.load(Ordering::Relaxed) >> SLOT_SHIFT << SLOT_SHIFT;
        // Release: pairs with the Acquire in `take`.
        self.0.store(slot | READY, Ordering::Release);
    }

    /// Evicting to Ready, unused, remembered in another slot: it could not be unpinned.
    pub(crate) fn restore_in(&self, slot: u32) {
        // Release: pairs with the Acquire in `take`.
        self.0.store(u64::from(slot) << SLOT_SHIFT | READY, Ordering::Release);
    }

    /// Evicting to Absent: it is unpinned.
    pub(crate) fn vacate(&self) {
        // Release: pairs with the Acquire in `claim`.
        self.0.store(ABSENT, Ordering::Release);
    }

    /// Whether it is not pinned and nobody is about to. Stable only under the pool's lock.
    pub(crate) fn is_absent(&self) -> bool {
        // Relaxed: `claim` decides.
        self.0.load(Ordering::Relaxed) & STATE == ABSENT
    }

    /// Whether somebody is pinning or unpinning it.
    pub(crate) fn is_owned(&self) -> bool {
        // Relaxed: the pool's lock orders this with the owner's report.
        matches!(self.0.load(Ordering::Relaxed) & STATE, PINNING | EVICTING)
    }

    /// The slot its owner remembered; meaningful to an owner only.
    pub(crate) fn slot(&self) -> u32 {
        // Relaxed: only the owner asks, and the slot does not change under it.
        (self.0.load(Ordering::Relaxed) >> SLOT_SHIFT) as u32
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// What the word protects: a page that is pinned or not. Loom reports a race if a user's access
    /// and an owner's change are not ordered by the word.
    struct Page {
        word: StateWord,
        pinned: loom::cell::UnsafeCell<bool>,
    }

    fn pinned_page() -> Arc<Page> {
        let page = Page { word: StateWord::absent(), pinned: loom::cell::UnsafeCell::new(true) };
        assert!(page.word.claim(7));
        page.word.ready();
        Arc::new(page)
    }

    fn use_page(page: &Page) {
        // SAFETY: read only while taken, when no owner may change it; loom checks exactly that.
        page.pinned.with(|pinned| assert!(unsafe { *pinned }, "a page in use was unpinned"));
    }

    fn evict(page: &Page) -> bool {
        if page.word.try_evict(false) != Eviction::Claimed {
            return false;
        }
        // SAFETY: written only in Evicting, by its owner; loom checks exactly that.
        page.pinned.with_mut(|pinned| unsafe { *pinned = false });
        page.word.vacate();
        true
    }

    #[test]
    fn loom_a_page_in_use_is_never_unpinned() {
        loom::model(|| {
            let page = pinned_page();
            let user = {
                let page = page.clone();
                thread::spawn(move || {
                    if page.word.take() == Taken::Hit {
                        use_page(&page);
                        page.word.release();
                    }
                })
            };
            use_page(&page);
            page.word.release();
            evict(&page);
            user.join().unwrap();
        });
    }

    #[test]
    fn loom_one_owner_repins_after_an_eviction() {
        loom::model(|| {
            let page = pinned_page();
            page.word.release();
            let other = {
                let page = page.clone();
                thread::spawn(move || {
                    if page.word.claim(9) {
                        // SAFETY: written only in Pinning, by its owner.
                        page.pinned.with_mut(|pinned| unsafe { *pinned = true });
                        page.word.ready();
                        use_page(&page);
                        page.word.release();
                    }
                })
            };
            evict(&page);
            if page.word.take() == Taken::Hit {
                use_page(&page);
                page.word.release();
            }
            other.join().unwrap();
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn life_of_a_frame() {
        let word = StateWord::new_zeroed();
        assert_eq!(word.take(), Taken::Absent);
        assert!(word.claim(5));
        assert!(!word.claim(6), "one owner at a time");
        assert_eq!(word.take(), Taken::Busy);
        assert_eq!(word.try_evict(false), Eviction::Refused);
        word.ready();
        assert_eq!(word.take(), Taken::Hit);
        assert!(!word.release());
        assert_eq!(word.try_evict(false), Eviction::Refused, "still one user");
        assert!(word.release());
        assert_eq!(word.slot(), 5);
        assert_eq!(word.try_evict(true), Eviction::SecondChance);
        assert_eq!(word.try_evict(true), Eviction::Claimed);
        assert_eq!(word.take(), Taken::Busy);
        word.restore();
        assert_eq!(word.take(), Taken::Hit);
        assert!(word.release());
        assert_eq!(word.try_evict(false), Eviction::Claimed);
        word.vacate();
        assert_eq!(word.take(), Taken::Absent);
    }

    #[test]
    fn a_failed_pin_leaves_it_absent() {
        let word = StateWord::new_zeroed();
        assert!(word.claim(0));
        word.fail();
        assert!(word.claim(1));
    }

    #[test]
    fn the_count_saturates_instead_of_wrapping() {
        let word = StateWord::new_zeroed();
        assert!(word.claim(0));
        word.ready();
        word.0.fetch_or(COUNT, Ordering::Relaxed);
        assert_eq!(word.take(), Taken::Saturated);
    }
}
