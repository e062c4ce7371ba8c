//! The slots of a submission ring and the tickets on them: who may touch which slot.

use crossbeam_utils::CachePadded;

use crate::prefetch::Lines;
use crate::slot::Slot;
use crate::sync::{Arc, AtomicUsize, Ordering, shared_slice};

/// What all ends share.
pub(super) struct Ring<T> {
    /// A position up to which all are claimed. Producers only.
    pub(super) tail: Arc<CachePadded<AtomicUsize>>,
    /// A power of two of them.
    slots: Arc<[TicketedSlot<T>]>,
}

impl<T> Ring<T> {
    /// `capacity` slots, a power of two, all free for the first lap.
    pub(super) fn new(capacity: usize) -> Self {
        let ring = Self {
            tail: Arc::new(CachePadded::new(AtomicUsize::new(0))),
            slots: shared_slice((0..capacity).map(|_| TicketedSlot::new())),
        };
        for position in 0..capacity {
            ring.slot(position).free(position);
        }
        ring
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Positions next to each other in order are this many slots apart in memory: at least 64 bytes,
    /// and an odd number, so that a lap visits each slot once.
    const STRIDE: usize = (64 / size_of::<TicketedSlot<T>>()) | 1;

    #[inline(always)]
    pub(super) fn slot(&self, position: usize) -> &TicketedSlot<T> {
        let index = position.wrapping_mul(Self::STRIDE) & (self.slots.len() - 1);
        // SAFETY: there is a power of two of slots, so what is left of a product below their number is
        // the number of one: `tests::positions_wrap` finds other entries otherwise, and
        // under Miri looks outside of them.
        unsafe { self.slots.get_unchecked(index) }
    }

    #[inline(always)]
    pub(super) fn next_lap(&self, position: usize) -> usize {
        position.wrapping_add(self.slots.len())
    }

    /// Claims the first unclaimed position and those after it, as many as `count` says when it is
    /// given that position. Returns the position and the count; `None` if the ring is full.
    #[inline(always)]
    pub(super) fn claim(&self, count: impl Fn(usize) -> usize) -> Option<(usize, usize)> {
        // Acquire: pairs with the release store in `hint`. The claims before the hint are visible to
        // us and, through ours, to who sees it: the consumer relies on claims being in order.
        let mut position = self.tail.load(Ordering::Acquire);
        // Acquire: pairs with the release in `TicketedSlot::free`, so the last entry has been moved
        // out, and with the other releases of the ticket for the order of claims.
        let mut ticket = self.slot(position).ticket.load(Ordering::Acquire);
        loop {
            if ticket == free(position) {
                let count = count(position);
                // Release: pairs with the acquire loads of the ticket, for the order of claims and,
                // with a run, for its slots having been free. Acquire on failure: as the load above.
                match self.slot(position).ticket.compare_exchange_weak(
                    ticket,
                    claimed_until(position.wrapping_add(count)),
                    Ordering::Release,
                    Ordering::Acquire,
                ) {
                    Ok(_) => return Some((position, count)),
                    Err(current) => ticket = current,
                }
            } else {
                position = self.next_to_claim(position, ticket)?;
                // Acquire: as the first load.
                ticket = self.slot(position).ticket.load(Ordering::Acquire);
            }
        }
    }

    /// Where to look next after `position`, whose slot has `ticket` and so is not free. `None` if the
    /// slot is still in use for an earlier lap.
    #[inline(always)]
    fn next_to_claim(&self, position: usize, ticket: usize) -> Option<usize> {
        let ahead = match ticket & STATE {
            // Free for a later lap: this slot was claimed in the lap before that.
            FREE => named_distance(position, ticket) - self.slots.len() as isize + 1,
            _ => named_distance(position, ticket),
        };
        (ahead > 0).then(|| position.wrapping_add_signed(ahead))
    }

    /// How many slots from `position` are free in a row, at most `wanted`. The first one is.
    ///
    /// Every slot is looked at, since slots are not freed in order when there are holes. What is free
    /// stays so until somebody claims `position`, and that fails the caller's claim.
    #[inline(always)]
    pub(super) fn free_run(&self, position: usize, wanted: usize) -> usize {
        let is_free = |ahead: &usize| {
            let position = position.wrapping_add(*ahead);
            // Acquire: pairs with the release in `TicketedSlot::free`.
            self.slot(position).ticket.load(Ordering::Acquire) == free(position)
        };
        1 + (1..wanted.min(self.slots.len())).take_while(is_free).count()
    }

    /// The lines of the slot at `position`, with the ticket of the one behind it where that is next to it.
    pub(super) fn lines(&self, position: usize) -> Lines {
        let slot = Lines::of(self.slot(position));
        if Self::STRIDE == 1 { slot.and_behind(size_of::<AtomicUsize>()) } else { slot }
    }

    /// Asks for the lines of the slot that is `ahead` of the first unclaimed one.
    #[inline(always)]
    pub(super) fn prefetch(&self, ahead: usize) {
        // Relaxed: a hint.
        let position = self.tail.load(Ordering::Relaxed).wrapping_add(ahead);
        Lines::of(self.slot(position)).prefetch();
    }

    /// Whether that many positions from the first unclaimed one on are free.
    pub(super) fn has_room(&self, wanted: usize) -> bool {
        // Acquire: as in `claim`.
        let mut position = self.tail.load(Ordering::Acquire);
        loop {
            // Acquire: as in `claim`.
            let ticket = self.slot(position).ticket.load(Ordering::Acquire);
            if ticket == free(position) {
                return wanted <= self.slots.len() && self.free_run(position, wanted) >= wanted;
            }
            match self.next_to_claim(position, ticket) {
                Some(next) => position = next,
                None => return wanted == 0,
            }
        }
    }

    /// Marks the positions of a claimed run after its first one.
    #[inline(always)]
    pub(super) fn mark_claimed(&self, mut position: usize, end: usize) {
        while position != end {
            // Relaxed: others come here only after they saw the first position published, and the
            // release of that comes after. Before, its claim makes them jump to the end.
            self.slot(position).ticket.store(claimed_until(end), Ordering::Relaxed);
            position = position.wrapping_add(1);
        }
    }

    /// Notes that all positions before `end` are claimed.
    #[inline(always)]
    pub(super) fn hint(&self, end: usize) {
        // Relaxed: only to keep a producer that was away for long from setting the hint far back. The
        // race that remains does no harm but a longer walk.
        let hinted = self.tail.load(Ordering::Relaxed);
        if end.wrapping_sub(hinted).cast_signed() > 0 {
            // Release: pairs with the acquire load in `claim`.
            self.tail.store(end, Ordering::Release);
        }
    }

    /// The hint: the end of the claims, or some way before it.
    pub(super) fn hinted(&self) -> usize {
        // Relaxed: a figure.
        self.tail.load(Ordering::Relaxed)
    }

    /// How far the consumer's `position` is.
    #[inline(always)]
    pub(super) fn stage(&self, position: usize) -> Stage {
        // Acquire: pairs with the releases of the producers: with `TicketedSlot::publish` for the
        // entry, with the claim for the order of claims.
        let ticket = self.slot(position).ticket.load(Ordering::Acquire);
        if ticket == published(position) {
            return Stage::Published;
        }
        let distance = named_distance(position, ticket);
        match ticket & STATE {
            FREE if distance == 0 => Stage::Unclaimed,
            // In use for an earlier lap: that is a hole, and all after it has been given back.
            CLAIMED | PUBLISHED if distance <= 0 => Stage::Unclaimed,
            CLAIMED if distance <= self.slots.len() as isize => {
                Stage::Claimed { end: position.wrapping_add_signed(distance) }
            }
            _ => Stage::Over,
        }
    }

    /// Moves out the entry at `position`, which the only consumer has seen published.
    #[inline(always)]
    pub(super) fn take(&self, position: usize) -> T {
        let slot = self.slot(position);
        // SAFETY: only `Intake`, of which there is one, calls this, once for a position it saw
        // published; no producer touches the slot until it is free again. A second take fails
        // `tests::undrained_entries_are_dropped_once`, a racing one `loom_model::two_producers`.
        let value = unsafe { slot.entry.take() };
        slot.free(self.next_lap(position));
        value
    }
}

impl<T> Clone for Ring<T> {
    fn clone(&self) -> Self {
        Self { tail: Arc::clone(&self.tail), slots: Arc::clone(&self.slots) }
    }
}

/// How far a position is, as the consumer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody has claimed it, nor any after it. Or it is within a run whose first position is not
    /// published: the consumer comes to such a one only through its memory of holes.
    Unclaimed,
    /// Its owner has not published it, nor the rest of the run up to `end`.
    Claimed { end: usize },
    /// Its entry can be taken.
    Published,
    /// Its owner gave it back, and the slot has moved on to a later lap.
    Over,
}

/// Room for an entry, and the ticket that says how far it is.
pub(super) struct TicketedSlot<T> {
    ticket: AtomicUsize,
    pub(super) entry: Slot<T>,
}

impl<T> TicketedSlot<T> {
    fn new() -> Self {
        Self { ticket: AtomicUsize::new(free(0)), entry: Slot::vacant() }
    }

    #[inline(always)]
    pub(super) fn publish(&self, position: usize) {
        // Release: pairs with the consumer's acquire loads in `Ring::stage`.
        self.ticket.store(published(position), Ordering::Release);
    }

    /// Offers the slot to whoever claims `position`.
    #[inline(always)]
    pub(super) fn free(&self, position: usize) {
        // Release: pairs with the producers' acquire loads in `Ring::claim` and `Ring::free_run`.
        self.ticket.store(free(position), Ordering::Release);
    }
}

impl<T> Drop for TicketedSlot<T> {
    fn drop(&mut self) {
        // Relaxed: the last `Arc` to go has synchronised with all ends.
        if self.ticket.load(Ordering::Relaxed) & STATE == PUBLISHED {
            // SAFETY: it was published and not taken, and nobody else is left;
            // `tests::undrained_entries_are_dropped_once` counts the drops.
            drop(unsafe { self.entry.take() });
        }
    }
}

// A ticket is a position, shifted, and a state in the low bits. Shifting drops the top bits of the
// position, so tickets give distances only, and those are right as long as they are below 2^61.

const STATE: usize = 0b11;
const FREE: usize = 0;
const CLAIMED: usize = 1;
const PUBLISHED: usize = 2;

#[inline(always)]
fn free(position: usize) -> usize {
    position << 2 | FREE
}

#[inline(always)]
fn claimed_until(end: usize) -> usize {
    end << 2 | CLAIMED
}

#[inline(always)]
fn published(position: usize) -> usize {
    position.wrapping_add(1) << 2 | PUBLISHED
}

/// How far the position that `ticket` names is ahead of `position`.
#[inline(always)]
fn named_distance(position: usize, ticket: usize) -> isize {
    (ticket & !STATE).wrapping_sub(position << 2).cast_signed() >> 2
}
