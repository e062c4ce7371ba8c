//! What the host says of a device of its own, beside the status of programs: reports about channel paths,
//! and that it wants the device back.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use vmm_sys_util::eventfd::EventFd;

use crate::backend::{self, Errno, Host, Irq, Regions};
use crate::subchannel::Shared;

use super::context::Context;
use super::runner::Runner;
use super::task::Seat;

/// How long programs may go on when the host wants the device back.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether they are over.
const LOOK: Duration = Duration::from_millis(20);

/// Reports that are read for one signal at most: a host that never runs out of them must not keep the
/// shard.
const MOST_REPORTS: usize = 64;

/// Listens to the host for one device.
pub(super) struct Listener<R: Regions> {
    regions: Arc<R>,
    host: Rc<Host>,
    context: Rc<Context>,
    shared: Arc<Shared>,
    runner: Rc<Runner>,
    reports: Option<AsyncFd<EventFd>>,
    requests: Option<AsyncFd<EventFd>>,
}

impl<R: Regions> Listener<R> {
    /// Gives the device eventfds for what it interrupts for beside I/O.
    ///
    /// # Errors
    ///
    /// No eventfd, it cannot be watched, or the driver does not take it.
    pub(super) fn new(regions: &Arc<R>, host: Rc<Host>, seat: &Seat) -> io::Result<Self> {
        let watch = |interrupt| {
            if !regions.has(interrupt) {
                return Ok(None);
            }
            backend::watch(&**regions, interrupt).map(Some)
        };
        Ok(Listener {
            reports: watch(Irq::Crw)?,
            requests: watch(Irq::Request)?,
            regions: regions.clone(),
            host,
            context: seat.context.clone(),
            shared: seat.shared.clone(),
            runner: seat.runner.clone(),
        })
    }

    /// Starts the task that listens.
    pub(super) fn spawn(self) -> AbortHandle {
        tokio::task::spawn_local(self.listen()).abort_handle()
    }

    async fn listen(self) {
        // What came before there was an eventfd was not signalled.
        self.read_reports();
        loop {
            match poll_fn(|cx| self.poll_signal(cx)).await {
                Ok(Irq::Request) => return self.give_back().await,
                Ok(_) => self.read_reports(),
                Err(error) => return tracing::error!(%error, "the host is listened to no more"),
            }
        }
    }

    /// Waits for a signal of either kind.
    fn poll_signal(&self, cx: &mut TaskContext<'_>) -> Poll<io::Result<Irq>> {
        let watched = [(&self.requests, Irq::Request), (&self.reports, Irq::Crw)];
        for (eventfd, interrupt) in watched {
            if let Some(eventfd) = eventfd
                && let Poll::Ready(ready) = eventfd.poll_read_ready(cx)
            {
                ready?.clear_ready();
                return Poll::Ready(Ok(interrupt));
            }
        }
        Poll::Pending
    }

    /// Hands reports on to the guest.
    fn read_reports(&self) {
        for _ in 0..MOST_REPORTS {
            match self.regions.read_crw() {
                Ok(crw) if !crw.is_none() => {
                    tracing::info!(subchannel = %self.shared.cell().id(), ?crw, "the host reports");
                    self.context.plan.reports.report(crw);
                }
                _ => return,
            }
        }
        // There is more: the driver has signalled again, for which this comes back.
    }

    /// The host wants the device: what was started may come to an end, for a while; nothing more is.
    async fn give_back(&self) {
        let id = self.shared.cell().id();
        tracing::info!(subchannel = %id, "the host wants the device back");
        self.context.metrics.counters().requests.add(1);
        self.shared.drain();
        let since = Instant::now();
        while !self.is_gone() && since.elapsed() < PATIENCE && !self.shared.is_over() {
            sleep(LOOK).await;
        }
        if self.is_gone() {
            tracing::warn!(subchannel = %id, "the device is gone");
            self.host.lose();
            self.runner.ring();
        }
        self.context.give_up(&self.shared);
    }

    /// Whether the host has lost the device itself.
    fn is_gone(&self) -> bool {
        self.host.is_gone() || self.regions.read_schib() == Err(Errno::NO_DEVICE)
    }
}
