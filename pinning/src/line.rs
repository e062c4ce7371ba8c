//! Who waits: the line of those who need room, the bystanders who need a frame that somebody else is
//! pinning or unpinning just now, and those outside who need one that is withdrawn.

use std::collections::VecDeque;
use std::task::Waker;

/// Waiting programs, first come first served.
#[derive(Debug, Default)]
pub(crate) struct Line {
    queue: VecDeque<Waiter>,
    next_ticket: u64,
    bystanders: Vec<Waker>,
    outside: Vec<Waker>,
    /// Times that those outside were called in.
    calls: u64,
}

/// A place outside: valid until the next call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Barred {
    call: u64,
    place: usize,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    waker: Waker,
}

impl Line {
    /// Whether somebody else is ahead of the holder of `ticket`.
    pub(crate) fn is_behind(&self, ticket: Option<u64>) -> bool {
        self.queue.front().is_some_and(|first| Some(first.ticket) != ticket)
    }

    /// Lines up for room, or renews the waker of a place already held. Returns the ticket.
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

    /// Gives up a place in line.
    pub(crate) fn leave(&mut self, ticket: u64) {
        self.queue.retain(|waiter| waiter.ticket != ticket);
    }

    /// Programs in line.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Wakes the one who is next for room.
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

    /// Waits for a frame that is withdrawn, which may take long: others' pins and unpins do not wake
    /// those who do. `place` is theirs from the last time.
    pub(crate) fn wait_outside(&mut self, place: &mut Option<Barred>, waker: &Waker) {
        match place {
            Some(Barred { call, place }) if *call == self.calls => {
                self.outside[*place].clone_from(waker);
            }
            _ => {
                *place = Some(Barred { call: self.calls, place: self.outside.len() });
                self.outside.push(waker.clone());
            }
        }
    }

    /// Wakes everybody who waits for a withdrawn frame.
    pub(crate) fn call_in(&mut self) {
        self.calls += 1;
        for waker in self.outside.drain(..) {
            waker.wake();
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

    #[test]
    fn one_place_outside_until_called_in() {
        let mut line = Line::default();
        let (mut one, mut other) = (None, None);
        for _ in 0..3 {
            line.wait_outside(&mut one, Waker::noop());
            line.wait_outside(&mut other, Waker::noop());
        }
        assert_eq!(line.outside.len(), 2);
        line.call_in();
        assert!(line.outside.is_empty());
        line.wait_outside(&mut other, Waker::noop());
        line.wait_outside(&mut one, Waker::noop());
        assert_eq!(line.outside.len(), 2, "a place from before the call is nobody's");
    }

    #[test]
    fn the_line_keeps_order_and_places() {
        let mut line = Line::default();
        let waker = Waker::noop();
        let first = line.queue_up(None, waker);
        let second = line.queue_up(None, waker);
        assert_eq!(line.queue_up(Some(first), waker), first, "a place is kept");
        assert!(!line.is_behind(Some(first)));
        assert!(line.is_behind(Some(second)) && line.is_behind(None));
        line.leave(first);
        assert!(!line.is_behind(Some(second)));
        assert_eq!(line.len(), 1);
    }
}
