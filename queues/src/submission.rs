//! A bounded ring with several producers and one consumer.
//!
//! # How it works
//!
//! Each slot carries a ticket that says how far the slot is. Tickets per slot are Dmitry Vyukov's idea
//! (<https://www.1024cores.net/home/lock-free-algorithms/queues/bounded-mpmc-queue>); what is
//! different here is that producers claim in the ticket and not by moving a shared tail. For position
//! `p` of a ring with `n` slots the ticket goes through
//!
//! | ticket | set by | meaning |
//! |---|---|---|
//! | free, `p` | | `p` can be claimed once all positions before it are |
//! | claimed, `e` | producer | `p` and all positions up to `e` have an owner, who is writing |
//! | published, `p + 1` | producer | the entry can be taken |
//! | free, `p + n` | consumer | the same slot, a lap later |
//!
//! A producer starts at the shared `tail`, goes on past what is claimed or published, and claims the
//! first free position with one compare-and-swap. A burst claims a run in the same way: the ticket of
//! its first slot names the end of the run, so others jump over it, and the owner marks the rest of the
//! run before it publishes the first. `tail` is only a hint that saves walking. It may lag behind, also
//! for long when a producer stops before it has updated it, and the walk makes up for that.
//!
//! Positions are claimed strictly in order. So a free slot at the consumer's position means that
//! there is nothing further on either, and the consumer learns that the ring is empty from a line that
//! it has in its cache. It never reads `tail`, and needs no compare-and-swap.
//!
//! # Producers that stop half-way
//!
//! A vCPU thread can be descheduled between its claim and its publication, for milliseconds. Its
//! slot is then a hole. The consumer goes past holes, remembers them, and takes what other producers
//! published after them. So that every producer's own order holds, an entry is taken only after
//! the remembered positions before it have been read *again* and found unpublished:
//!
//! * Say a producer published `h` before `j`. The consumer saw `j` published with an acquire load,
//!   so a later load of `h` sees it published too. If that load says unpublished, the hole belongs to
//!   someone else.
//! * If it says published, `h` is taken instead of `j`, by the same rule: the holes before `h` are
//!   read once more. Each round ends at an older position, so this ends.
//!
//! A hole holds up nobody, but its slot is not reusable, so the ring is full when the claims are one
//! lap ahead of the oldest hole.
//!
//! # Order
//!
//! If one push happens before another (same thread, or ordered through other synchronisation), the
//! first is taken first.
//!
//! # Memory
//!
//! One cache line for `tail` and one for its reference count, then `size_of::<T>()` plus 8 bytes for
//! each slot, without padding: a service has one such ring for each of up to 65,536 subchannels.
//! Entries smaller than a cache line are spread over lines by a stride instead.
//!
//! # Measured
//!
//! 2026-11-22, two vCPUs of a shared Intel Xeon (family 6, model 207), 1,024 slots, interleaved rounds
//! with crossbeam-queue 0.3.14's `ArrayQueue`, nanoseconds for an entry of 8 / 40 bytes:
//!
//! | | this ring | `ArrayQueue` |
//! |---|---|---|
//! | push and pop on one thread, 10th percentile | 9.0 / 17.5 | 14.7 / 21.9 |
//! | two producers and a consumer, median | 32 / 34 | 55 / 56 |
//! | one producer and a consumer, median | 31 / 39 | 66 / 73 |
//!
//! Claiming by a compare-and-swap on `tail`, as Vyukov's queue does, was tried first: 11.8 ns on one
//! thread, and up to 140 ns between threads while the consumer keeps up with the producers, because
//! each look into the empty ring then takes the line of `tail` away from them.

#[cfg(all(test, loom))]
mod loom_model;
#[cfg(all(test, not(loom)))]
mod tests;
mod ticket;

use std::fmt;

use self::ticket::{Ring, Stage};
use crate::full::Full;
use crate::prefetch::Lines;
use crate::skipped::Skipped;

/// Creates a ring with room for `capacity` entries, rounded up to a power of two (0 becomes 1).
///
/// # Panics
/// If the slots need more than `isize::MAX` bytes.
pub fn ring<T: Send>(capacity: usize) -> (Submitter<T>, Intake<T>) {
    let ring = Ring::new(capacity.next_power_of_two());
    let intake = Intake { ring: ring.clone(), cursor: 0, skipped: Skipped::new(ring.capacity()) };
    (Submitter { ring }, intake)
}

/// The end that puts entries in. Clone it, or share it by reference, to have several producers.
pub struct Submitter<T> {
    ring: Ring<T>,
}

impl<T> Submitter<T> {
    /// Appends one entry.
    ///
    /// Lock-free: a compare-and-swap is repeated only when another producer's has succeeded.
    ///
    /// # Errors
    /// [`Full`] gives the entry back when no slot is free. Also when nobody takes entries any more:
    /// the ring does not tell whether the [`Intake`] still exists.
    #[inline]
    pub fn push(&self, value: T) -> Result<(), Full<T>> {
        let Some((position, _)) = self.ring.claim(|_| 1) else {
            return Err(Full(value));
        };
        let slot = self.ring.slot(position);
        // SAFETY: the slot was free for this position and the claim made the position ours alone;
        // `loom_model::two_producers` fails otherwise.
        unsafe { slot.entry.put(value) };
        slot.publish(position);
        self.ring.hint(position.wrapping_add(1));
        Ok(())
    }

    /// Appends as many of `entries` as fit next to each other and returns how many that were. The
    /// whole run costs one compare-and-swap, and no other producer's entry comes between.
    ///
    /// Pass `&mut iterator` to keep the entries that did not fit. If the iterator panics or ends
    /// before its `len()`, the entries it gave before are in the ring.
    #[inline]
    pub fn push_burst(&self, entries: impl ExactSizeIterator<Item = T>) -> usize {
        let wanted = entries.len();
        if wanted == 0 {
            return 0;
        }
        let Some((position, count)) = self.ring.claim(|start| self.ring.free_run(start, wanted))
        else {
            return 0;
        };
        let end = position.wrapping_add(count);
        self.ring.mark_claimed(position.wrapping_add(1), end);
        self.ring.hint(end);
        ClaimedRun { ring: &self.ring, position, left: count }.publish_each(entries)
    }

    /// Asks for the lines of the entry that will come `ahead` others after the next one: a hint, for a
    /// producer that is about to push that many.
    #[inline]
    pub fn prefetch(&self, ahead: usize) {
        self.ring.prefetch(ahead);
    }

    /// Whether there was room for `entries` more just now.
    pub fn has_room(&self, entries: usize) -> bool {
        self.ring.has_room(entries)
    }

    /// How many entries were put in so far, to wrap, or somewhat less while others are being put in: a figure
    /// to look at, not one to rely on.
    pub fn pushed(&self) -> usize {
        self.ring.hinted()
    }

    /// How many entries the ring can hold.
    pub fn capacity(&self) -> usize {
        self.ring.capacity()
    }
}

impl<T> Clone for Submitter<T> {
    fn clone(&self) -> Self {
        Self { ring: self.ring.clone() }
    }
}

impl<T> fmt::Debug for Submitter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitter").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// Positions that a burst has claimed and not yet published. Gives back those it cannot fill.
struct ClaimedRun<'a, T> {
    ring: &'a Ring<T>,
    position: usize,
    left: usize,
}

impl<T> ClaimedRun<'_, T> {
    #[inline(always)]
    fn publish_each(mut self, mut entries: impl Iterator<Item = T>) -> usize {
        let mut published = 0;
        while self.left > 0
            && let Some(value) = entries.next()
        {
            let slot = self.ring.slot(self.position);
            // SAFETY: `free_run` saw this slot free for its position, and the claim made the
            // position ours alone; `loom_model::bursts` fails otherwise.
            unsafe { slot.entry.put(value) };
            // One by one and in order, so that a later entry of this producer is never visible
            // before an earlier one.
            slot.publish(self.position);
            self.position = self.position.wrapping_add(1);
            self.left -= 1;
            published += 1;
        }
        published
    }
}

impl<T> Drop for ClaimedRun<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // Normally none are left: only after an iterator that panicked or was shorter than it said.
        for _ in 0..self.left {
            self.ring.slot(self.position).free(self.ring.next_lap(self.position));
            self.position = self.position.wrapping_add(1);
        }
    }
}

/// The end that takes entries out. There is one for each ring.
pub struct Intake<T> {
    ring: Ring<T>,
    /// The first position not looked at yet. Each one before it was taken, or is in `skipped`, or
    /// was given back by its producer.
    cursor: usize,
    /// Positions before the cursor that were still unpublished when last seen.
    skipped: Skipped,
}

impl<T> Intake<T> {
    /// Takes the oldest entry that is published, going past claims that are not.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<T> {
        let position = self.cursor;
        if self.skipped.is_empty() {
            match self.ring.stage(position) {
                Stage::Published => {
                    self.cursor = position.wrapping_add(1);
                    return Some(self.ring.take(position));
                }
                Stage::Unclaimed => return None,
                Stage::Claimed { .. } | Stage::Over => {}
            }
        }
        self.pop_around_holes()
    }

    /// Hands up to `max` entries to `take`, in the order of [`pop`](Self::pop). Returns how many it
    /// handed over.
    ///
    /// If `take` panics, the entry it was given is gone and the later ones stay in the ring.
    #[inline]
    pub fn pop_burst(&mut self, max: usize, mut take: impl FnMut(T)) -> usize {
        let mut taken = 0;
        while taken < max
            && let Some(value) = self.pop()
        {
            taken += 1;
            take(value);
        }
        taken
    }

    /// Whether there was nothing to take just now. A claim that is not published does not count: its
    /// producer has yet to publish, and to ring.
    pub fn is_empty(&self) -> bool {
        self.first_published().is_none()
            && !self
                .skipped
                .older_than(self.cursor)
                .any(|hole| matches!(self.ring.stage(hole), Stage::Published))
    }

    /// Where the next entry comes to lie, and whether there is one behind it. Who is going to look into
    /// many rings asks for all their lines first, and waits for none of them alone.
    #[inline]
    pub fn next_entry(&self) -> Lines {
        self.ring.lines(self.cursor)
    }

    /// How many entries the ring can hold.
    pub fn capacity(&self) -> usize {
        self.ring.capacity()
    }

    /// The slot at the cursor is claimed, or there are holes before it.
    #[inline(never)]
    fn pop_around_holes(&mut self) -> Option<T> {
        let mut found = match self.published_hole(self.cursor) {
            Some(hole) => hole,
            None => self.published_ahead()?,
        };
        while let Some(older) = self.published_hole(found) {
            found = older;
        }
        self.skipped.remove(found, self.cursor);
        Some(self.ring.take(found))
    }

    /// The oldest remembered position before `end` that is published by now. Forgets those that
    /// their producers gave back.
    fn published_hole(&mut self, end: usize) -> Option<usize> {
        loop {
            let (hole, stage) = self
                .skipped
                .older_than(end)
                .map(|hole| (hole, self.ring.stage(hole)))
                .find(|(_, stage)| matches!(stage, Stage::Published | Stage::Over))?;
            if stage == Stage::Published {
                return Some(hole);
            }
            self.skipped.remove(hole, self.cursor);
        }
    }

    /// The first published position at or after the cursor, or a remembered one that is published by
    /// now. What was passed is remembered, and the position found too, since an older one may have to
    /// go first. Without one nothing changes, so that a consumer that catches up with a producer in
    /// mid-push stays on the fast path.
    fn published_ahead(&mut self) -> Option<usize> {
        let ahead = self.first_published()?;
        // A producer may have given a remembered position back, and another may have claimed the
        // same slot for the next lap, which is perhaps about to be remembered too. Its claim was
        // acquired above, so the slot is seen given back here, and is forgotten in time.
        if let Some(hole) = self.published_hole(self.cursor) {
            return Some(hole);
        }
        while self.cursor != ahead.wrapping_add(1) {
            if self.ring.stage(self.cursor) != Stage::Over {
                self.skipped.insert(self.cursor);
            }
            self.cursor = self.cursor.wrapping_add(1);
        }
        Some(ahead)
    }

    /// The first published position at or after the cursor. Ends at the first one that nobody
    /// claimed.
    fn first_published(&self) -> Option<usize> {
        let mut position = self.cursor;
        loop {
            position = match self.ring.stage(position) {
                Stage::Unclaimed => return None,
                // A run is published in order: none of it is, if this one is not.
                Stage::Claimed { end } => end,
                Stage::Published => return Some(position),
                Stage::Over => position.wrapping_add(1),
            }
        }
    }
}

impl<T> fmt::Debug for Intake<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake")
            .field("capacity", &self.capacity())
            .field("skipped", &self.skipped)
            .finish_non_exhaustive()
    }
}
