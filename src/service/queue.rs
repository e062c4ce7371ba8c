//! The requests of one subchannel that wait, in the order in which they are served.

use std::collections::VecDeque;

use vfio_ccw_queues::prefetch::Lines;
use vfio_ccw_queues::submission::Intake;

use crate::subchannel::{Request, Shared};

/// Requests that wait.
pub(super) struct Queue {
    /// Those that were taken out of the ring before their turn, or restored.
    earlier: VecDeque<Request>,
    /// The ring; `None` once it was left to whoever still puts something in.
    intake: Option<Intake<Request>>,
    /// Cancelled starts had filled the ring: those that found no room, the oldest last.
    late: Vec<Request>,
    /// Started by instruction: the ring may not be all.
    is_by_instruction: bool,
}

impl Queue {
    pub(super) fn new(
        earlier: VecDeque<Request>,
        intake: Intake<Request>,
        is_by_instruction: bool,
    ) -> Self {
        Queue { earlier, intake: Some(intake), late: Vec::new(), is_by_instruction }
    }

    /// Takes the next one.
    #[inline(always)]
    pub(super) fn pop(&mut self, shared: &Shared) -> Option<Request> {
        if !self.earlier.is_empty() {
            return self.earlier.pop_front();
        }
        let request = self.intake.as_mut()?.pop();
        if request.is_none() && self.is_by_instruction {
            return self.pop_late(shared);
        }
        request
    }

    #[cold]
    fn pop_late(&mut self, shared: &Shared) -> Option<Request> {
        if self.late.is_empty() {
            self.late = shared.take_late();
            self.late.reverse();
        }
        self.late.pop()
    }

    /// One that was taken comes next after all.
    pub(super) fn put_back(&mut self, request: Request) {
        self.earlier.push_front(request);
    }

    /// All that wait. They stay.
    pub(super) fn all(&mut self, shared: &Shared) -> impl Iterator<Item = &Request> {
        let mut all = VecDeque::new();
        while let Some(request) = self.pop(shared) {
            all.push_back(request);
        }
        self.earlier = all;
        self.earlier.iter()
    }

    /// Where the next one will come to lie in the ring.
    pub(super) fn next_entry(&self) -> Option<Lines> {
        self.intake.as_ref().map(Intake::next_entry)
    }

    /// Leaves the ring.
    pub(super) fn take_intake(&mut self) -> Option<Intake<Request>> {
        self.intake.take()
    }
}
