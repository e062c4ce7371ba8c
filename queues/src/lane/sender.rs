//! The end of a track that puts entries in.

use std::fmt;

use super::memory::{ASLEEP, Memory, RUNG, first_word};
use super::{Entry, LaneError};
use crate::sync::{Ordering, fence};

/// The end that puts entries in.
///
/// It never reads back what it wrote to the shared memory.
pub struct LaneSender {
    /// Shared: the peer may have written anything.
    memory: Memory,
    /// Own: how many entries were put in, which is the next position to fill.
    tail: u32,
    /// Own: what the consumer had taken when last looked at, as far as that can be true. From there to
    /// `tail` are never more positions than there are slots.
    taken: u32,
}

impl LaneSender {
    pub(super) fn starting_at(memory: Memory, position: u32) -> Self {
        LaneSender { memory, tail: position, taken: position }
    }

    /// Appends one entry, which the consumer may take from now on. Call [`must_wake`](Self::must_wake)
    /// after a batch.
    ///
    /// # Errors
    /// [`LaneError::Full`] when no slot is free, also when the peer is gone: the memory does not tell,
    /// and nothing rings when there is room again. [`LaneError::Broken`] when the peer's count of
    /// entries taken cannot be. Nothing was put in then.
    #[inline]
    pub fn push(&mut self, entry: &Entry) -> Result<(), LaneError> {
        if self.known_room() == 0 && self.room()? == 0 {
            return Err(LaneError::Full);
        }
        let slot = self.memory.slot(self.tail);
        slot.write_body(&entry.body);
        // Release: pairs with the acquire load in `LaneReceiver::pop`. The body was written before.
        slot.first().store(first_word(self.tail, entry.head), Ordering::Release);
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// How many entries surely fit now; the consumer may make room for more at any time.
    ///
    /// Looks at what the consumer has taken, on a line that it writes. [`push`](Self::push) does so only
    /// when there seems to be no room.
    ///
    /// # Errors
    /// [`LaneError::Broken`] when the peer's count of entries taken cannot be.
    #[inline]
    pub fn room(&mut self) -> Result<u32, LaneError> {
        // Acquire: pairs with the release store in `LaneReceiver::release`. The consumer has read the
        // entries whose slots this makes free. Only the low half counts.
        let taken = self.memory.taken().load(Ordering::Acquire) as u32;
        // Entries that are still in the slots. There cannot be more than when last looked at.
        if self.tail.wrapping_sub(taken) > self.tail.wrapping_sub(self.taken) {
            return Err(self.broken(taken));
        }
        self.taken = taken;
        Ok(self.known_room())
    }

    /// Whether the caller has to wake the consumer, by a signal to its eventfd. Call it once after each
    /// batch of entries; without, a consumer that sleeps does not hear of them.
    ///
    /// `true` once for each sleep of an honest consumer, and never while it is running.
    #[inline]
    #[must_use = "the consumer sleeps on unless it is woken"]
    pub fn must_wake(&self) -> bool {
        // SeqCst: pairs with the fence in `LaneReceiver::prepare_sleep`. Puts the entries that were
        // pushed before the look at the state.
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders it.
        self.memory.state().load(Ordering::Relaxed) == ASLEEP && self.ring()
    }

    #[cold]
    fn ring(&self) -> bool {
        // Relaxed: the fence just before makes it a release, which pairs with the acquire of the swap in
        // `LaneReceiver::awake`. On failure the consumer is up, and nothing is to be done.
        self.memory
            .state()
            .compare_exchange(ASLEEP, RUNG, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    #[inline(always)]
    fn known_room(&self) -> u32 {
        // No overflow, by what `taken` is.
        self.memory.entries() - self.tail.wrapping_sub(self.taken)
    }

    #[cold]
    fn broken(&self, taken: u32) -> LaneError {
        LaneError::Broken { taken, before: self.taken, pushed: self.tail }
    }
}

impl fmt::Debug for LaneSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneSender")
            .field("entries", &self.memory.entries())
            .field("tail", &self.tail)
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}
