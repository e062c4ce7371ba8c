//! The end of a track that takes entries out.

use std::fmt;

use super::Entry;
use super::memory::{ASLEEP, AWAKE, Memory, is_there};
use crate::sync::{Ordering, fence};

/// The end that takes entries out.
///
/// Nothing about an entry can be relied on. A hostile peer has one there each time, so callers take no
/// more than they have set themselves before they do something else.
pub struct LaneReceiver {
    /// Shared: the peer may have written anything.
    memory: Memory,
    /// Own: how many entries were taken, which is the next position to take.
    head: u32,
    /// Own: how many of them the producer was told of.
    released: u32,
}

impl LaneReceiver {
    pub(super) fn starting_at(memory: Memory, position: u32) -> Self {
        LaneReceiver { memory, head: position, released: position }
    }

    /// Takes the oldest entry, if there is one: a copy, which nobody changes any more. Its slot stays in
    /// use until [`release`](Self::release).
    #[inline]
    pub fn pop(&mut self) -> Option<Entry> {
        let slot = self.memory.slot(self.head);
        // Acquire: pairs with the release store in `LaneSender::push`. The body was written before.
        let first = slot.first().load(Ordering::Acquire);
        if !is_there(first, self.head) {
            return None;
        }
        let entry = Entry { head: (first >> 32) as u32, body: slot.read_body() };
        self.head = self.head.wrapping_add(1);
        Some(entry)
    }

    /// Gives the slots of the entries taken so far back to the producer. Once for a batch; costs nothing
    /// if nothing was taken.
    #[inline]
    pub fn release(&mut self) {
        if self.released != self.head {
            self.released = self.head;
            // Release: pairs with the acquire load in `LaneSender::room`. The entries were read before.
            self.memory.taken().store(self.head.into(), Ordering::Release);
        }
    }

    /// Whether there was nothing to take just now.
    #[inline]
    pub fn is_idle(&self) -> bool {
        let first = self.memory.slot(self.head).first();
        // Relaxed: who takes the entry acquires it in `pop`, and in `prepare_sleep` the fence orders it.
        !is_there(first.load(Ordering::Relaxed), self.head)
    }

    /// Announces that the consumer will sleep, unless there is an entry after all.
    ///
    /// `true`: wait until the eventfd is signalled, then call [`awake`](Self::awake). `false`: there was
    /// an entry, and the announcement is taken back. A hostile peer can have it gone again, so a `false`
    /// does not promise one.
    ///
    /// It does not give slots back: [`release`](Self::release) first.
    pub fn prepare_sleep(&self) -> bool {
        // Relaxed: the fence orders it. Also in place of a "rung" that was not collected.
        self.memory.state().store(ASLEEP, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `LaneSender::must_wake`. Puts the announcement before the look
        // for an entry.
        fence(Ordering::SeqCst);
        let sleep = self.is_idle();
        if !sleep {
            self.awake();
        }
        sleep
    }

    /// Ends a sleep, whatever ended it. Nothing happens if there was none.
    pub fn awake(&self) {
        // Relaxed: an honest producer changes only "asleep" to "rung", and neither is "awake".
        if self.memory.state().load(Ordering::Relaxed) != AWAKE {
            // Acquire: pairs with the store of "rung" in `LaneSender::ring` after the fence, so that
            // what was pushed before is seen also where the signal came by a way that orders nothing.
            // Relaxed would do for the write: what the producer has to see is ordered by the fences.
            self.memory.state().swap(AWAKE, Ordering::Acquire);
        }
    }
}

impl fmt::Debug for LaneReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneReceiver")
            .field("entries", &self.memory.entries())
            .field("head", &self.head)
            .field("released", &self.released)
            .finish_non_exhaustive()
    }
}
