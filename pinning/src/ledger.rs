//! Who counts: the budget, the slots that pinned frames stand in, the CLOCK hand, and the queue of
//! programs that wait for room. All behind the pool's one lock, which no hit takes and which is
//! never held across a call to a pinner.

use std::collections::VecDeque;
use std::task::Waker;

use crate::word::{Eviction, StateWord};

/// A slot that no frame stands in.
const VACANT: u32 = u32::MAX;

/// The accounts of a pool.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Frames that may be pinned.
    limit: u32,
    /// Frames pinned, being pinned or being unpinned.
    pinned: u32,
    peak: u32,
    /// Frame in each slot; the CLOCK hand walks over these.
    slots: Vec<u32>,
    vacant: Vec<u32>,
    hand: usize,
    queue: VecDeque<Waiter>,
    next_ticket: u64,
    /// Programs that wait for a frame somebody else is pinning or unpinning.
    bystanders: Vec<Waker>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    waker: Waker,
}

impl Ledger {
    pub(crate) fn new(limit: u32) -> Self {
        Ledger { limit, ..Ledger::default() }
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    pub(crate) fn pinned(&self) -> u32 {
        self.pinned
    }

    pub(crate) fn peak(&self) -> u32 {
        self.peak
    }

    /// The frames on the accounts.
    pub(crate) fn frames(&self) -> Vec<u32> {
        self.slots.iter().copied().filter(|frame| *frame != VACANT).collect()
    }

    /// Makes room for `need` more frames: claims idle ones for eviction into `victims` until the
    /// sum fits. `false`, and nothing claimed, where too many are in use.
    pub(crate) fn make_room(
        &mut self,
        need: u32,
        words: &[StateWord],
        victims: &mut Vec<u32>,
    ) -> bool {
        let short = (self.pinned + need).saturating_sub(self.limit) as usize;
        if short > 0 {
            self.sweep(short, words, victims);
        }
        if victims.len() < short {
            for frame in victims.drain(..) {
                words[frame as usize].restore();
            }
            return false;
        }
        true
    }

    /// Moves the CLOCK hand until `count` idle frames are claimed, at most twice around: the first
    /// round takes away second chances, the second finds what is left.
    fn sweep(&mut self, count: usize, words: &[StateWord], victims: &mut Vec<u32>) {
        for _ in 0..self.slots.len() * 2 {
            if victims.len() == count {
                return;
            }
            let frame = self.slots[self.hand];
            self.hand = (self.hand + 1) % self.slots.len();
            if frame != VACANT && words[frame as usize].try_evict(true) == Eviction::Claimed {
                victims.push(frame);
            }
        }
    }

    /// Enters `frame` into a slot; the caller has made room.
    pub(crate) fn enter(&mut self, frame: u32) -> u32 {
        self.pinned += 1;
        self.peak = self.peak.max(self.pinned);
        match self.vacant.pop() {
            Some(slot) => {
                self.slots[slot as usize] = frame;
                slot
            }
            None => {
                self.slots.push(frame);
                (self.slots.len() - 1) as u32
            }
        }
    }

    /// Takes a frame off the accounts; its slot is the next to be used.
    pub(crate) fn leave(&mut self, slot: u32) {
        debug_assert!(self.slots[slot as usize] != VACANT, "slot {slot} left twice");
        self.slots[slot as usize] = VACANT;
        self.vacant.push(slot);
        self.pinned -= 1;
    }

    /// Whether somebody else is ahead of the holder of `ticket` in the queue.
    pub(crate) fn is_behind(&self, ticket: Option<u64>) -> bool {
        self.queue.front().is_some_and(|first| Some(first.ticket) != ticket)
    }

    /// Queues for room, or renews the waker of a place already held. Returns the ticket.
    pub(crate) fn queue_up(&mut self, ticket: Option<u64>, waker: &Waker) -> u64 {
        if let Some(waiter) = self.queue.iter_mut().find(|waiter| Some(waiter.ticket) == ticket) {
            waiter.waker.clone_from(waker);
            return waiter.ticket;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue.push_back(Waiter { ticket, waker: waker.clone() });
        ticket
    }

    /// Gives up a place in the queue.
    pub(crate) fn leave_queue(&mut self, ticket: u64) {
        self.queue.retain(|waiter| waiter.ticket != ticket);
    }

    /// Programs waiting for room.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Wakes the program that is next for room.
    pub(crate) fn wake_first(&self) {
        if let Some(first) = self.queue.front() {
            first.waker.wake_by_ref();
        }
    }

    /// Waits for a frame in another owner's hands.
    pub(crate) fn stand_by(&mut self, waker: &Waker) {
        if !self.bystanders.iter().any(|known| known.will_wake(waker)) {
            self.bystanders.push(waker.clone());
        }
    }

    /// Wakes everybody who waits for a frame in another owner's hands.
    pub(crate) fn wake_bystanders(&mut self) {
        for waker in self.bystanders.drain(..) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn words(count: usize) -> Box<[StateWord]> {
        <[StateWord]>::new_box_zeroed_with_elems(count).unwrap()
    }

    fn pin(ledger: &mut Ledger, words: &[StateWord], frame: u32) {
        let slot = ledger.enter(frame);
        assert!(words[frame as usize].claim(slot));
        words[frame as usize].ready();
    }

    #[test]
    fn the_hand_spares_used_frames_once_and_busy_ones_always() {
        let words = words(4);
        let mut ledger = Ledger::new(3);
        for frame in 0..3 {
            pin(&mut ledger, &words, frame);
            words[frame as usize].release();
        }
        words[0].take();
        words[0].release();
        words[1].take();
        let mut victims = Vec::new();
        assert!(ledger.make_room(1, &words, &mut victims));
        assert_eq!(victims, [2], "0 was used again, 1 is in use");
        words[2].restore();
        victims.clear();
        assert!(ledger.make_room(2, &words, &mut victims));
        assert_eq!(victims.len(), 2);
        assert!(!victims.contains(&1));
    }

    #[test]
    fn no_room_claims_nothing() {
        let words = words(4);
        let mut ledger = Ledger::new(2);
        pin(&mut ledger, &words, 0);
        pin(&mut ledger, &words, 1);
        words[1].release();
        let mut victims = Vec::new();
        assert!(!ledger.make_room(2, &words, &mut victims));
        assert!(victims.is_empty());
        assert_eq!(words[1].try_evict(false), Eviction::Claimed, "1 was put back");
    }

    #[test]
    fn the_queue_keeps_order_and_places() {
        let mut ledger = Ledger::new(0);
        let waker = Waker::noop();
        let first = ledger.queue_up(None, waker);
        let second = ledger.queue_up(None, waker);
        assert_eq!(ledger.queue_up(Some(first), waker), first, "a place is kept");
        assert!(!ledger.is_behind(Some(first)));
        assert!(ledger.is_behind(Some(second)) && ledger.is_behind(None));
        ledger.leave_queue(first);
        assert!(!ledger.is_behind(Some(second)));
        assert_eq!(ledger.queued(), 1);
    }

    #[test]
    fn slots_are_reused() {
        let mut ledger = Ledger::new(9);
        let slot = ledger.enter(3);
        ledger.leave(slot);
        assert_eq!(ledger.enter(4), slot);
        assert_eq!((ledger.pinned(), ledger.peak()), (1, 1));
    }
}
