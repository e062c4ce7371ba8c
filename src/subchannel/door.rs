//! The way from vCPUs to a shard.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_queue::SegQueue;
use quanta::Clock;
use vfio_ccw_queues::Doorbell;

use crate::architecture::Function;

use super::{Origin, Request, Shared};

/// The doorbell's bit for the shard itself; subchannels have the others.
pub(crate) const MAILBOX: usize = 0;

/// A shard's doorbell, and what must not wait behind the starts in a subchannel's ring.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) doorbell: Doorbell,
    /// What submissions are stamped with.
    pub(crate) clock: Clock,
    urgent: SegQueue<Urgent>,
    /// Nobody answers any more.
    closed: AtomicBool,
}

/// HALT or CLEAR of a subchannel that delivers to a ring: it overtakes the starts.
#[derive(Debug)]
pub(crate) struct Urgent {
    pub(crate) shared: Arc<Shared>,
    pub(crate) function: Function,
    pub(crate) user_data: u64,
    /// It overtakes the starts of earlier epochs.
    pub(crate) epoch: u32,
}

impl Urgent {
    /// Whether it overtakes a start of this epoch.
    pub(crate) fn is_after(&self, epoch: u32) -> bool {
        self.epoch.wrapping_sub(epoch).cast_signed() > 0
    }

    /// Whether it overtakes this start.
    pub(crate) fn overtakes(&self, request: &Request) -> bool {
        matches!(request.origin, Origin::Ring { epoch, .. } if self.is_after(epoch))
    }
}

/// That of the doorbell.
impl AsRawFd for Door {
    fn as_raw_fd(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }
}

impl Door {
    /// A door for `subchannels`.
    ///
    /// # Errors
    ///
    /// No eventfd.
    pub(crate) fn new(subchannels: usize) -> io::Result<Self> {
        Ok(Door {
            doorbell: Doorbell::new(subchannels + 1)?,
            clock: Clock::new(),
            urgent: SegQueue::new(),
            closed: AtomicBool::new(false),
        })
    }

    /// Hands something urgent in and rings.
    pub(crate) fn push(&self, urgent: Urgent) {
        self.urgent.push(urgent);
        self.doorbell.ring(MAILBOX);
        // The ring's full fence stands between the push and this look, and another in `close`: either
        // the look there finds what was pushed, or it is refused here.
        // Relaxed: ordered by the fences.
        if self.closed.load(Ordering::Relaxed) {
            self.refuse();
        }
    }

    /// Takes the oldest of what is urgent.
    pub(crate) fn pop(&self) -> Option<Urgent> {
        self.urgent.pop()
    }

    /// Nobody answers from now on: what is urgent is refused by whoever brings it.
    pub(crate) fn close(&self) {
        // Relaxed: ordered by the fence.
        self.closed.store(true, Ordering::Relaxed);
        // SeqCst: pairs with the fence of the doorbell in `push`.
        fence(Ordering::SeqCst);
        self.refuse();
    }

    fn refuse(&self) {
        while let Some(urgent) = self.pop() {
            urgent.shared.refuse_urgent(&urgent);
        }
    }
}
