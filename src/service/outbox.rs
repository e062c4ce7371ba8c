//! Completions on their way to a ring, gathered for the price of one.

use std::cell::{Cell, RefCell};

use vfio_ccw_metrics::{Kind, RECORDING, Stage};
use vfio_ccw_queues::completion::CompletionSender;

use super::context::Context;
use super::delivery::Completion;

/// Completions that go to the ring together at most; whoever waits for the first of them must not
/// wait for long.
const TOGETHER: usize = 32;

/// A completion, and when its request was submitted; `None` where it is not the last of the request.
type Waiting = (Completion, Option<(u64, Kind)>);

/// Completions of one shard for one ring.
pub(super) struct Outbox {
    sender: CompletionSender<Completion>,
    waiting: RefCell<Vec<Waiting>>,
    /// Something was added since its consumer was last told.
    fresh: Cell<bool>,
}

impl Outbox {
    pub(super) fn new(sender: CompletionSender<Completion>) -> Self {
        Outbox { sender, waiting: RefCell::default(), fresh: Cell::new(false) }
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
        of: Option<(u64, Kind)>,
        context: &Context,
    ) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        self.sender.prefetch(waiting.len());
        waiting.push((completion, of));
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

    fn publish(&self, waiting: &mut Vec<Waiting>, context: &Context) {
        let Context { clock, metrics, recorder, .. } = context;
        if RECORDING && !waiting.is_empty() {
            // One stamp for all: they get there together.
            let now = clock.raw();
            for (completion, of) in waiting.iter() {
                let Some((submitted, kind)) = *of else { continue };
                let nanos = clock.delta_as_nanos(submitted, now);
                metrics.durations(kind).record(Stage::Total, nanos);
                if nanos >= recorder.slow {
                    recorder.was_slow(completion.subchannel, submitted, nanos, clock, metrics);
                }
            }
        }
        let aside = self.sender.push_burst(waiting.drain(..).map(|(completion, _)| completion));
        metrics.counters().overflows.add(aside as u64);
    }
}

/// What waits is delivered when the shard ends, whatever ends it.
impl Drop for Outbox {
    fn drop(&mut self) {
        let waiting = self.waiting.get_mut();
        if !waiting.is_empty() {
            self.sender.push_burst(waiting.drain(..).map(|(completion, _)| completion));
            self.sender.notify();
        }
    }
}
