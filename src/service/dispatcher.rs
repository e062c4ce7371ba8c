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
use vfio_ccw_queues::Doorbell;
use vmm_sys_util::eventfd::EventFd;

use crate::subchannel::{Door, MAILBOX};
use crate::watch;

use super::context::Context;

/// Looks at the doorbell between two returns to the runtime, which has other tasks to run.
const LOOKS: u32 = 256;

/// Rounds of doorbell work between two chances for the kernel to get file I/O.
const ROUNDS: u32 = 8;

/// Decides when the shard's thread looks, runs and sleeps.
pub(super) struct Dispatcher {
    door: AsyncFd<Arc<Door>>,
    /// Written to make the thread return at once from a park that is only there to submit file I/O.
    nudge: AsyncFd<EventFd>,
    asleep: bool,
    last_work: u64,
    /// Doorbells sent and rung at the last look, for metrics.
    sent: u64,
    rung: u64,
}

impl Dispatcher {
    pub(super) fn new(door: &Arc<Door>) -> io::Result<Self> {
        let nudge = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Dispatcher {
            door: watch::door(door.clone())?,
            nudge: watch::eventfd(nudge)?,
            asleep: false,
            last_work: 0,
            sent: 0,
            rung: 0,
        })
    }

    pub(super) fn poll(&mut self, context: &Rc<Context>, cx: &mut TaskContext<'_>) -> Poll<()> {
        context.remember_dispatcher(cx.waker());
        if self.asleep {
            self.wake_up();
        }
        context.deliver();
        for _ in 0..ROUNDS {
            if self.drain(context) {
                self.last_work = context.clock.raw();
                if !context.has_file_io() {
                    continue;
                }
            } else if context.live() == 0 && self.is_over(context) {
                return Poll::Ready(());
            } else if self.may_spin(context) {
                if self.look_around() {
                    continue;
                }
                context.metrics.counters().spins.add(1);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.go_to_sleep(cx) {
                context.metrics.counters().sleeps.add(1);
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

    /// Runs what was rung for; whether there was anything.
    fn drain(&self, context: &Rc<Context>) -> bool {
        let mut mailbox = false;
        let rung = self.doorbell().drain_words(|first, marks| {
            context.sampling.rang(marks.count_ones());
            // The lines of all their requests come over while the first of them is served.
            for bit in bits(first, marks) {
                context.prefetch(bit);
            }
            for bit in bits(first, marks) {
                match bit {
                    MAILBOX => mailbox = true,
                    bit => context.ring(bit),
                }
            }
            context.deliver();
        });
        if mailbox {
            context.read_mail();
        }
        rung > usize::from(mailbox) || mailbox && context.live() > 0
    }

    fn is_over(&self, context: &Context) -> bool {
        context.is_ending()
    }

    /// Whether work is recent enough to wait for more without sleeping.
    fn may_spin(&self, context: &Context) -> bool {
        let spin = context.plan.spin;
        !spin.is_zero()
            && !context.has_file_io()
            && context.live() > 0
            && context.clock.delta(self.last_work, context.clock.raw()) < spin
    }

    /// Looks at the doorbell for a microsecond or so.
    fn look_around(&self) -> bool {
        for _ in 0..LOOKS {
            if !self.doorbell().is_idle() {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Announces sleep and waits for the doorbell's eventfd. `false`: something came meanwhile.
    fn go_to_sleep(&mut self, cx: &mut TaskContext<'_>) -> bool {
        if !self.doorbell().prepare_sleep() {
            return false;
        }
        self.asleep = true;
        match self.door.poll_read_ready(cx) {
            Poll::Pending => true,
            Poll::Ready(ready) => {
                // Left over from a ring that was seen in another way.
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
                self.wake_up();
                false
            }
        }
    }

    fn wake_up(&mut self) {
        self.asleep = false;
        self.doorbell().awake();
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
