//! Where results go: to the guest's interrupt, or to a completion ring.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vfio_ccw_queues::completion::{self, CompletionReceiver, CompletionSender};
use vmm_sys_util::eventfd::EventFd;

use crate::architecture::IrbHead;

/// Makes an I/O interruption pending in the guest. One method, as vm-superio's trait of that name.
///
/// It is called on a shard's thread: it must not block.
pub trait Trigger: Send + Sync {
    /// Tells the VMM that subchannel `number` has status pending.
    ///
    /// # Errors
    ///
    /// What the VMM's side says; it is logged, and the status stays pending for TEST SUBCHANNEL.
    fn trigger(&self, number: u32) -> io::Result<()>;
}

impl Trigger for EventFd {
    fn trigger(&self, _number: u32) -> io::Result<()> {
        self.write(1)
    }
}

impl<T: Trigger + ?Sized> Trigger for Arc<T> {
    fn trigger(&self, number: u32) -> io::Result<()> {
        (**self).trigger(number)
    }
}

/// Where the results of a subchannel's programs go.
#[derive(Clone)]
pub enum Delivery {
    /// Architected: status becomes pending at the subchannel, the trigger is pulled, and TEST
    /// SUBCHANNEL fetches the IRB. One program at a time, as in hardware.
    Interrupt(Arc<dyn Trigger>),
    /// To a completion ring, with the `user_data` of the submission. As many programs may wait as
    /// the submission ring has entries.
    Ring(CompletionSender<Completion>),
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Delivery::Interrupt(_) => "Interrupt",
            Delivery::Ring(_) => "Ring",
        })
    }
}

/// The end of one program that was submitted through a ring, or word of its progress.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// As given with the submission.
    pub user_data: u64,
    /// Number of the subchannel.
    pub subchannel: u32,
    /// Status as TEST SUBCHANNEL would store it.
    pub irb: IrbHead,
}

impl Completion {
    /// Whether the request is over. If not, the IRB holds intermediate status (a CCW with the PCI
    /// flag took control, or the program has suspended itself) and more completions with the same
    /// `user_data` follow, the last of them final.
    pub fn is_final(&self) -> bool {
        self.irb.scsw.is_final()
    }
}

/// The consuming end of a completion ring.
#[derive(Debug)]
pub struct Completions {
    receiver: CompletionReceiver<Completion>,
}

impl Completions {
    /// A ring of `entries` entries, and the delivery that puts results into it. Results that find it
    /// full are kept aside and counted, never lost.
    ///
    /// # Errors
    ///
    /// No eventfd.
    pub fn ring(entries: usize) -> io::Result<(Delivery, Completions)> {
        let (sender, receiver) = completion::ring(entries)?;
        Ok((Delivery::Ring(sender), Completions { receiver }))
    }

    /// Takes up to `most` completions and gives each to `take`. Returns how many.
    pub fn reap(&mut self, most: usize, take: impl FnMut(Completion)) -> usize {
        self.receiver.pop_burst(most, take)
    }

    /// Sleeps until there is a completion or the time is over. Returns whether there is one.
    ///
    /// # Errors
    ///
    /// What poll(2) says.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.receiver.wait(timeout)
    }

    /// Asks for one signal on the descriptor when the next completion comes. `false`: there are
    /// completions already, reap them first.
    pub fn arm(&mut self) -> bool {
        self.receiver.arm()
    }

    /// Completions that found the ring full so far.
    pub fn overflowed(&self) -> u64 {
        self.receiver.overflowed()
    }
}

/// The eventfd to wait for in an epoll loop, after [`Completions::arm`].
impl AsRawFd for Completions {
    fn as_raw_fd(&self) -> RawFd {
        self.receiver.as_raw_fd()
    }
}
