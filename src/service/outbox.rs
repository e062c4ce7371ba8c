//! Completions on their way to a ring, gathered for the price of one.

use std::cell::{Cell, RefCell};

use vfio_ccw_queues::completion::CompletionSender;

use super::context::{Context, Ended};
use super::delivery::Completion;

/// Completions that go to the ring together at most; whoever waits for the first of them must not
/// wait for long.
const TOGETHER: usize = 32;

/// Completions of one shard for one ring.
pub(super) struct Outbox {
    sender: CompletionSender<Completion>,
    waiting: RefCell<Vec<Completion>>,
    /// Subchannels and times of those that somebody wants to know the time of: few, on a busy shard.
    timed: RefCell<Vec<(u32, Ended)>>,
    /// Something was added since its consumer was last told.
    fresh: Cell<bool>,
}

impl Outbox {
    pub(super) fn new(sender: CompletionSender<Completion>) -> Self {
        Outbox {
            sender,
            waiting: RefCell::default(),
            timed: RefCell::default(),
            fresh: Cell::new(false),
        }
    }

    pub(super) fn is_for(&self, sender: &CompletionSender<Completion>) -> bool {
        self.sender.is_same_ring(sender)
    }

    /// Adds a completion. Whether it is the first one since [`Outbox::deliver`], which the caller sees
    /// to then.
    #[inline(always)]
    pub(super) fn push(
        &self,
        completion: Completion,
        of: Option<Ended>,
        context: &Context,
    ) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        self.sender.prefetch(waiting.len());
        if let Some(ended) = of {
            let mut timed = self.timed.borrow_mut();
            if timed.capacity() == 0 {
                // As many as there ever are: none is allocated for a request.
                timed.reserve_exact(TOGETHER);
            }
            timed.push((completion.subchannel, ended));
        }
        waiting.push(completion);
        if waiting.len() >= TOGETHER {
            self.publish(&mut waiting, context);
        }
        !self.fresh.replace(true)
    }

    /// Puts what waits into the ring and wakes whoever sleeps over it.
    pub(super) fn deliver(&self, context: &Context) {
        self.fresh.set(false);
        self.publish(&mut self.waiting.borrow_mut(), context);
        self.sender.notify();
    }

    fn publish(&self, waiting: &mut Vec<Completion>, context: &Context) {
        let mut timed = self.timed.borrow_mut();
        if !timed.is_empty() {
            // One stamp for all: they get there together.
            let now = context.now();
            timed.drain(..).for_each(|(number, ended)| context.took(number, ended, now));
        }
        let aside = self.sender.push_burst(waiting.drain(..));
        context.metrics.counters().overflows.add(aside as u64);
    }
}

/// What waits is delivered when the shard ends, whatever ends it.
impl Drop for Outbox {
    fn drop(&mut self) {
        let waiting = self.waiting.get_mut();
        if !waiting.is_empty() {
            self.sender.push_burst(waiting.drain(..));
            self.sender.notify();
        }
    }
}
