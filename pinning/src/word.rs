//! The state word: everything the hit path has to know about a frame, in one atomic.
//!
//! ```text
//!  63            32 31 29 28  27   25  24  23             0
//! +----------------+-----+---+-------+----+----------------+
//! | slot or stamp  |  0  | S | state | R  |  in-use count  |
//! +----------------+-----+---+-------+----+----------------+
//!
//!            claim               ready
//!  Absent ----------> Pinning ----------> Ready  <---+
//!   ^  ^                 |                |  \  \    | take, release
//!   |  |      fail       |          evict |   \  +---+
//!   |  +-----------------+                |    \ withdraw, in use
//!   |             vacate                  v     v
//!   +--------------------------------- Evicting <-- Draining   (release, but no take)
//!   |                                     | withheld
//!   |   admit                             v
//!   +-------------------------------- Withdrawn  <-- Absent (withdraw)
//! ```
//!
//! `take` and `release` are open to every thread and touch nothing but the word. The other
//! transitions belong to whoever moved the word into Pinning or Evicting, so they need no retry, or
//! are made under the pool's lock. Eviction is a compare-and-swap on the *whole* word with an in-use
//! count of zero; it and `take` cannot both win.
//!
//! R says that the frame was taken since it was pinned or last looked at, S that its uses are
//! sampled for reuse distances. The upper half is the place in the ledger while the frame is there,
//! and afterwards when it left probation: the list of ghosts that other caches keep beside them.

use crate::sync::{AtomicU64, Ordering};

const COUNT: u64 = (1 << 24) - 1;
const REFERENCED: u64 = 1 << 24;
const STATE: u64 = 0b111 << 25;
const ABSENT: u64 = 0 << 25;
const PINNING: u64 = 1 << 25;
const READY: u64 = 2 << 25;
const EVICTING: u64 = 3 << 25;
const DRAINING: u64 = 4 << 25;
const WITHDRAWN: u64 = 5 << 25;
const SAMPLED: u64 = 1 << 28;
const UPPER_SHIFT: u32 = 32;

/// Outcome of [`StateWord::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The frame is pinned and now counts one more user.
    Hit,
    /// The same, and the use belongs into the sample.
    SampledHit,
    /// The frame is not pinned.
    Absent,
    /// Somebody is pinning, unpinning or withdrawing it at this moment.
    Busy,
    /// It has as many users as can be counted.
    Saturated,
}

/// Outcome of [`StateWord::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// Others use it still.
    InUse,
    /// That was the last use.
    Idle,
    /// That was the last use, and somebody waits for it to withdraw the frame.
    Drained,
}

/// Outcome of [`StateWord::try_evict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// The word is in Evicting and belongs to the caller.
    Claimed,
    /// It had been used since the last look: that is forgotten now.
    SecondChance,
    /// In use, or in another owner's hands.
    Refused,
}

/// Outcome of [`StateWord::withdraw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Withdrawal {
    /// It was not pinned and cannot be now.
    Withdrawn,
    /// It is pinned and idle: in Evicting, and the caller must unpin it.
    Claimed,
    /// It is in use, but nobody can take it any more.
    Draining,
    /// It is in another owner's hands.
    Busy,
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
                Ok(_) if word & SAMPLED != 0 => return Taken::SampledHit,
                Ok(_) => return Taken::Hit,
                Err(now) => word = now,
            }
        }
    }

    /// Removes a user.
    #[inline]
    pub(crate) fn release(&self) -> Released {
        // SeqCst: Release so that the user's accesses happen before an eviction, which acquires;
        // and totally ordered with `Pool::waiting`, which the releaser reads next: either it sees
        // the waiter, or the waiter's retry sees this count (see `Pool::release`).
        let before = self.0.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(
            before & COUNT != 0 && matches!(before & STATE, READY | DRAINING),
            "released a frame that was not held"
        );
        match before & COUNT == 1 {
            false => Released::InUse,
            true if before & STATE == DRAINING => Released::Drained,
            true => Released::Idle,
        }
    }

    /// Absent to Pinning, owned by the caller, who remembers the frame in `slot`.
    pub(crate) fn claim(&self, slot: u32, sampled: bool) -> bool {
        // Relaxed: only a guess for the compare-and-swap below.
        let word = self.0.load(Ordering::Relaxed);
        if word & STATE != ABSENT {
            return false;
        }
        let sample = if sampled { SAMPLED } else { 0 };
        let claimed = upper(slot) | sample | PINNING;
        // Acquire on success: pairs with the Release in `vacate`, `fail` and `admit`, so that what a
        // former owner did happens before our pin.
        self.0.compare_exchange(word, claimed, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Pinning to Ready with one user, the caller.
    pub(crate) fn ready(&self) {
        // Relaxed load: the owner alone may change the word now.
        let kept = self.0.load(Ordering::Relaxed) & !(STATE | COUNT | REFERENCED);
        // Release: pairs with the Acquire in `take` and `try_evict`.
        self.0.store(kept | READY | 1, Ordering::Release);
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
                if spare { word & !REFERENCED } else { word & !(STATE | REFERENCED) | EVICTING };
            // SeqCst: Acquire pairs with `release`: the last user is done with the page.
            match self.0.compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) if spare => return Eviction::SecondChance,
                Ok(_) => return Eviction::Claimed,
                Err(now) => word = now,
            }
        }
    }

    /// Remembers another place in the ledger, whose lock the caller holds: nobody else writes the
    /// upper half then.
    pub(crate) fn move_to(&self, slot: u32) {
        let moved = |word: u64| Some(word & u64::from(u32::MAX) | upper(slot));
        // Relaxed: the place is read under the same lock or by an owner who acquired the word; the
        // exchange carries on whatever release the word stood for.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved);
    }

    /// Evicting to Ready, unused: the eviction is called off.
    pub(crate) fn restore(&self) {
        // Relaxed load: the owner alone may change the word now.
        let kept = self.0.load(Ordering::Relaxed) & !(STATE | COUNT);
        // Release: pairs with the Acquire in `take`.
        self.0.store(kept | READY, Ordering::Release);
    }

    /// Evicting to Absent: it is unpinned. The upper half stays: the ledger has put a stamp there.
    pub(crate) fn vacate(&self) {
        let stamp = self.place();
        // Release: pairs with the Acquire in `claim`.
        self.0.store(upper(stamp) | ABSENT, Ordering::Release);
    }

    /// Takes the frame out of circulation, or begins to; under the pool's lock. Asked again until it
    /// is Withdrawn or Claimed.
    pub(crate) fn withdraw(&self) -> Withdrawal {
        // Relaxed: only a guess for the compare-and-swaps below.
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let in_use = word & COUNT != 0;
            let (next, outcome) = match word & STATE {
                ABSENT => (WITHDRAWN, Withdrawal::Withdrawn),
                READY if in_use => (word & !STATE | DRAINING, Withdrawal::Draining),
                DRAINING if in_use => return Withdrawal::Draining,
                READY | DRAINING => (word & !(STATE | REFERENCED) | EVICTING, Withdrawal::Claimed),
                _ => return Withdrawal::Busy,
            };
            // SeqCst: Acquire pairs with `release`: the last user is done with the page. A user who
            // releases later finds Draining, since both change the one word.
            match self.0.compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return outcome,
                Err(now) => word = now,
            }
        }
    }

    /// Evicting to Withdrawn: it is unpinned and stays so.
    pub(crate) fn withhold(&self) {
        // Release: pairs with the Acquire in whatever moves the word on.
        self.0.store(WITHDRAWN, Ordering::Release);
    }

    /// Withdrawn to Absent: it may be pinned again.
    pub(crate) fn admit(&self) {
        debug_assert!(
            self.0.load(Ordering::Relaxed) & STATE == WITHDRAWN,
            "admitted a frame that was not withdrawn"
        );
        // Release: pairs with the Acquire in `claim`.
        self.0.store(ABSENT, Ordering::Release);
    }

    /// Draining to Ready, if it is: the withdrawal is called off.
    pub(crate) fn stop_draining(&self) {
        let back = |word| (word & STATE == DRAINING).then_some(word & !STATE | READY);
        // Release: pairs with the Acquire in `take`; the word stands for the same pin as before.
        let _ = self.0.fetch_update(Ordering::Release, Ordering::Relaxed, back);
    }

    /// Whether it is not pinned and nobody is about to. Stable only under the pool's lock.
    pub(crate) fn is_absent(&self) -> bool {
        // Relaxed: `claim` decides.
        self.0.load(Ordering::Relaxed) & STATE == ABSENT
    }

    /// Whether somebody is pinning, unpinning or withdrawing it.
    pub(crate) fn is_owned(&self) -> bool {
        // Relaxed: the pool's lock orders this with the owner's report.
        !matches!(self.0.load(Ordering::Relaxed) & STATE, ABSENT | READY)
    }

    /// Whether it is withdrawn or about to be.
    pub(crate) fn is_withheld(&self) -> bool {
        // Relaxed: the pool's lock orders this with the owner's report.
        matches!(self.0.load(Ordering::Relaxed) & STATE, DRAINING | WITHDRAWN)
    }

    /// The place in the ledger of a frame that is there, or the stamp of one that is not. For owners
    /// and holders of the pool's lock.
    pub(crate) fn place(&self) -> u32 {
        // Relaxed: nobody else writes the upper half now.
        (self.0.load(Ordering::Relaxed) >> UPPER_SHIFT) as u32
    }
}

fn upper(value: u32) -> u64 {
    u64::from(value) << UPPER_SHIFT
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
        assert!(page.word.claim(7, false));
        page.word.ready();
        Arc::new(page)
    }

    fn use_page(page: &Page) {
        // SAFETY: read only while taken, when no owner may change it; loom checks exactly that.
        page.pinned.with(|pinned| assert!(unsafe { *pinned }, "a page in use was unpinned"));
    }

    /// Uses the page for a moment, if it is pinned.
    fn take_and_release(page: &Page) {
        if page.word.take() == Taken::Hit {
            use_page(page);
            page.word.release();
        }
    }

    fn unpin(page: &Page) {
        // SAFETY: written only in Evicting, by its owner; loom checks exactly that.
        page.pinned.with_mut(|pinned| unsafe { *pinned = false });
        page.word.withhold();
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
                thread::spawn(move || take_and_release(&page))
            };
            use_page(&page);
            page.word.release();
            evict(&page);
            user.join().unwrap();
        });
    }

    #[test]
    fn loom_a_page_is_withdrawn_only_when_its_last_user_has_gone() {
        loom::model(|| {
            let page = pinned_page();
            let user = {
                let page = page.clone();
                thread::spawn(move || {
                    take_and_release(&page);
                    use_page(&page);
                    page.word.release() == Released::Drained
                })
            };
            let first = page.word.withdraw();
            if first == Withdrawal::Claimed {
                unpin(&page);
            }
            let told = user.join().unwrap();
            if first == Withdrawal::Draining {
                assert!(told, "nobody was told that the page is idle");
                assert_eq!(page.word.withdraw(), Withdrawal::Claimed);
                unpin(&page);
            }
            assert_eq!(page.word.take(), Taken::Busy);
        });
    }

    #[test]
    fn loom_a_withdrawal_called_off_leaves_the_page_to_its_users() {
        loom::model(|| {
            let page = pinned_page();
            let user = {
                let page = page.clone();
                thread::spawn(move || take_and_release(&page))
            };
            assert_eq!(page.word.withdraw(), Withdrawal::Draining);
            page.word.stop_draining();
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
                    if page.word.claim(9, false) {
                        // SAFETY: written only in Pinning, by its owner.
                        page.pinned.with_mut(|pinned| unsafe { *pinned = true });
                        page.word.ready();
                        use_page(&page);
                        page.word.release();
                    }
                })
            };
            evict(&page);
            take_and_release(&page);
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
        assert!(word.claim(5, false));
        assert!(!word.claim(6, false), "one owner at a time");
        assert_eq!(word.take(), Taken::Busy);
        assert_eq!(word.try_evict(false), Eviction::Refused);
        word.ready();
        assert_eq!(word.take(), Taken::Hit);
        assert_eq!(word.release(), Released::InUse);
        assert_eq!(word.try_evict(false), Eviction::Refused, "still one user");
        assert_eq!(word.release(), Released::Idle);
        assert_eq!(word.place(), 5);
        word.move_to(6);
        assert_eq!(word.place(), 6);
        assert_eq!(word.try_evict(true), Eviction::SecondChance);
        assert_eq!(word.try_evict(true), Eviction::Claimed);
        assert_eq!(word.take(), Taken::Busy);
        word.restore();
        assert_eq!(word.take(), Taken::Hit);
        assert_eq!(word.release(), Released::Idle);
        assert_eq!(word.try_evict(false), Eviction::Claimed);
        word.move_to(77);
        word.vacate();
        assert_eq!(word.take(), Taken::Absent);
        assert_eq!(word.place(), 77, "when it left probation");
        assert!(word.claim(1, true));
        word.ready();
        assert_eq!(word.take(), Taken::SampledHit);
    }

    #[test]
    fn withdrawal_waits_for_users_and_lets_no_new_ones_in() {
        let word = StateWord::new_zeroed();
        assert_eq!(word.withdraw(), Withdrawal::Withdrawn);
        assert_eq!((word.take(), word.withdraw()), (Taken::Busy, Withdrawal::Busy));
        assert!(!word.claim(0, false));
        word.admit();
        assert!(word.claim(3, false));
        assert_eq!(word.withdraw(), Withdrawal::Busy);
        word.ready();
        assert_eq!((word.withdraw(), word.take()), (Withdrawal::Draining, Taken::Busy));
        assert!(word.is_withheld() && word.is_owned());
        word.stop_draining();
        assert_eq!(word.take(), Taken::Hit);
        assert_eq!((word.withdraw(), word.release()), (Withdrawal::Draining, Released::InUse));
        assert_eq!((word.withdraw(), word.release()), (Withdrawal::Draining, Released::Drained));
        assert_eq!((word.withdraw(), word.place()), (Withdrawal::Claimed, 3));
        word.withhold();
        word.admit();
        assert_eq!(word.take(), Taken::Absent);
    }

    #[test]
    fn a_failed_pin_leaves_it_absent() {
        let word = StateWord::new_zeroed();
        assert!(word.claim(0, false));
        word.fail();
        assert!(word.claim(1, false));
    }

    #[test]
    fn the_count_saturates_instead_of_wrapping() {
        let word = StateWord::new_zeroed();
        assert!(word.claim(0, false));
        word.ready();
        word.0.fetch_or(COUNT, Ordering::Relaxed);
        assert_eq!(word.take(), Taken::Saturated);
    }
}
