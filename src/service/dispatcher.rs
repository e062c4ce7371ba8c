//! Decides when a shard's thread looks, runs and sleeps.
//!
//! The dispatcher is the thread's main future. It drains the doorbell, runs what was rung for, wakes
//! the consumers of completion rings once a round, and decides what to do when nothing is left: look
//! again for a while, or sleep.
//!
//! A shard with file I/O in flight always goes to sleep: tokio-uring hands operations to the kernel
//! when its thread parks, so a thread that never parks would never submit. Sleeping costs a system
//! call that file I/O pays anyway.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use tokio::io::unix::AsyncFd;
use vfio_ccw_metrics::Waiting;
use vfio_ccw_queues::Doorbell;
use vfio_ccw_queues::wait::{Advice, Spent, WaitStrategy, Waiter};
use vmm_sys_util::eventfd::EventFd;

use crate::subchannel::{Door, MAILBOX};
use crate::watch;

use super::context::Context;

/// Looks at the doorbell between two looks at devices and at the clock, and two returns to the runtime,
/// which has other tasks to run: a microsecond or two.
const LOOKS: u32 = 32;

/// Subchannels whose work comes into the cache while others run: enough for a line from memory.
const AHEAD: usize = 3;

/// Rounds of doorbell work between two chances for the kernel to get file I/O.
const ROUNDS: u32 = 8;

/// Decides when the shard's thread looks, runs and sleeps.
pub(super) struct Dispatcher {
    door: AsyncFd<Arc<Door>>,
    /// Written to make the thread return at once from a park that is only there to submit file I/O.
    nudge: AsyncFd<EventFd>,
    asleep: bool,
    waiter: Waiter,
    /// Doorbells sent and rung at the last look, for metrics.
    sent: u64,
    rung: u64,
}

impl Dispatcher {
    pub(super) fn new(door: &Arc<Door>, strategy: WaitStrategy) -> io::Result<Self> {
        let nudge = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Dispatcher {
            door: watch::door(door.clone())?,
            nudge: watch::eventfd(nudge)?,
            asleep: false,
            waiter: Waiter::new(strategy, door.doorbell.elapsed()),
            sent: 0,
            rung: 0,
        })
    }

    pub(super) fn poll(&mut self, context: &Rc<Context>, cx: &mut TaskContext<'_>) -> Poll<()> {
        context.remember_dispatcher(cx.waker());
        context.dispatches(true);
        let polled = self.dispatch(context, cx);
        context.dispatches(false);
        polled
    }

    fn dispatch(&mut self, context: &Rc<Context>, cx: &mut TaskContext<'_>) -> Poll<()> {
        if self.asleep {
            self.wake_up(context);
            self.forget_readiness(cx);
        }
        context.deliver();
        for _ in 0..ROUNDS {
            if self.drain(context) {
                self.found();
                if !context.has_file_io() {
                    continue;
                }
            } else if context.live() == 0 && context.is_ending() {
                return Poll::Ready(());
            } else if self.keeps_looking(context) {
                if self.look_around(context) {
                    continue;
                }
                context.metrics.counters().wasted_polls.add(1);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.go_to_sleep(context, cx) {
                self.count_doorbells(context);
                return Poll::Pending;
            }
        }
        if !context.has_file_io() {
            // Let the tasks run that wait for something else, then look again.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Doorbells ring on and on while file I/O waits to be submitted: park for a moment.
        match self.nudge.get_ref().write(1) {
            Ok(()) => match self.nudge.poll_read_ready(cx) {
                Poll::Ready(Ok(mut ready)) => {
                    ready.clear_ready();
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Err(_)) => cx.waker().wake_by_ref(),
                Poll::Pending => {}
            },
            Err(_) => cx.waker().wake_by_ref(),
        }
        Poll::Pending
    }

    fn doorbell(&self) -> &Doorbell {
        &self.door.get_ref().doorbell
    }

    /// Nanoseconds since the doorbell was made.
    fn now(&self) -> u64 {
        self.doorbell().elapsed()
    }

    /// Runs what was rung for; whether there was anything.
    fn drain(&self, context: &Rc<Context>) -> bool {
        let mut mailbox = false;
        let rung = self.doorbell().drain_words(|first, marks| {
            context.sampling.rang(marks.count_ones());
            // The lines of all their requests come over while the first of them is served.
            let mut cold = 0;
            for bit in bits(first, marks) {
                cold |= u64::from(context.prefetch(bit)) << (bit - first);
            }
            // So does what those work with that have not run for long, a few ahead of their turn.
            let mut ahead = bits(first, cold);
            ahead.by_ref().take(AHEAD).for_each(|bit| context.prefetch_work(bit));
            for bit in bits(first, marks) {
                if let Some(bit) = ahead.next() {
                    context.prefetch_work(bit);
                }
                match bit {
                    MAILBOX => mailbox = true,
                    bit => context.ring(bit),
                }
            }
            context.deliver();
        });
        if mailbox {
            context.read_mail();
            context.deliver();
        }
        let reported = context.trunks.drain();
        if reported {
            context.deliver();
        }
        rung > usize::from(mailbox) || mailbox && context.live() > 0 || reported
    }

    /// There is work: a look that was taken for it ends.
    #[inline]
    fn found(&mut self) {
        if self.waiter.is_waiting() {
            self.waiter.found(self.now());
        }
    }

    /// Whether to look on for work without sleeping.
    fn keeps_looking(&mut self, context: &Context) -> bool {
        if context.has_file_io() || context.live() == 0 {
            return false;
        }
        let now = self.now();
        let expected = match self.waiter.is_waiting() {
            true => None,
            false => context.in_flight.expected_in(&context.clock).map(|left| now + left),
        };
        self.waiter.idle(now, expected) == Advice::Look
    }

    /// Looks at the doorbell for a microsecond or two, and at the devices that have programs.
    fn look_around(&mut self, context: &Context) -> bool {
        let looks = if context.in_flight.is_unlooked() { LOOKS } else { 1 };
        for _ in 0..looks {
            if !self.doorbell().is_idle() || !context.trunks.is_idle() {
                return true;
            }
            std::hint::spin_loop();
        }
        if context.in_flight.is_unlooked() || !context.in_flight.look() {
            return false;
        }
        self.found();
        context.deliver();
        true
    }

    /// Announces sleep and waits for the doorbell's eventfd. `false`: something came meanwhile.
    fn go_to_sleep(&mut self, context: &Context, cx: &mut TaskContext<'_>) -> bool {
        if !self.doorbell().prepare_sleep() {
            return false;
        }
        if !context.trunks.prepare_sleep() {
            self.doorbell().awake();
            return false;
        }
        self.asleep = true;
        let called = context.trunks.poll_called(cx).is_ready();
        match self.door.poll_read_ready(cx) {
            Poll::Pending if called => {
                // Left over, most likely.
                self.wake_up(context);
                false
            }
            Poll::Pending => {
                self.waiter.sleep(self.now());
                context.metrics.counters().sleeps.add(1);
                self.count_waits(context);
                true
            }
            Poll::Ready(ready) => {
                // Left over from a ring that was seen in another way.
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
                self.wake_up(context);
                false
            }
        }
    }

    /// The runtime takes the eventfd, which was read just now, for readable until it is told
    /// otherwise: better now than when the thread is about to sleep.
    fn forget_readiness(&self, cx: &mut TaskContext<'_>) {
        if let Poll::Ready(Ok(mut ready)) = self.door.poll_read_ready(cx) {
            ready.clear_ready();
        }
    }

    fn wake_up(&mut self, context: &Context) {
        self.asleep = false;
        self.doorbell().awake();
        context.trunks.awake();
        if self.waiter.is_waiting() {
            self.waiter.wake(self.now(), Some(self.doorbell().rang()));
            self.count_waits(context);
        }
    }

    fn count_waits(&mut self, context: &Context) {
        let Spent { looking, in_vain, asleep } = self.waiter.take_spent();
        context.metrics.waited(Waiting::Looking, looking);
        context.metrics.waited(Waiting::InVain, in_vain);
        context.metrics.waited(Waiting::Asleep, asleep);
    }

    fn count_doorbells(&mut self, context: &Context) {
        let doorbell = self.doorbell();
        let (sent, rung) = (doorbell.sent(), doorbell.rung());
        let submitters = context.metrics.submitters();
        let (new_sent, new_rung) = (sent - self.sent, rung - self.rung);
        submitters.doorbells_sent.add(new_sent);
        submitters.doorbells_suppressed.add(new_rung.saturating_sub(new_sent));
        (self.sent, self.rung) = (sent, rung);
    }
}

/// The indices that `marks` stands for, whose first bit is `first`.
fn bits(first: usize, mut marks: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = marks.checked_ilog2().map(|_| marks.trailing_zeros())?;
        marks &= marks - 1;
        Some(first + bit as usize)
    })
}
