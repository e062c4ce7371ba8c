//! Where results go: to the guest's interrupt, to a completion ring, or to a future.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vfio_ccw_queues::WaitStrategy;
use vfio_ccw_queues::completion::{self, CompletionReceiver, CompletionSender};
use vmm_sys_util::eventfd::EventFd;

use crate::architecture::{IoInterruption, IrbHead};

/// Tells the guest of something, as vm-superio's trait of that name does: of an [`IoInterruption`] that
/// has become pending, or with a [`Crw`](crate::architecture::Crw) that channel reports are (the first
/// of them).
///
/// An eventfd is one, and so is a closure:
///
/// ```
/// use vfio_ccw::architecture::IoInterruption;
/// use vfio_ccw::{Delivery, Silent};
/// use vmm_sys_util::eventfd::EventFd;
///
/// let by_descriptor = Delivery::interrupt(EventFd::new(0)?);
/// let by_callback = Delivery::interrupt(|interruption: &IoInterruption| {
///     // For KVM: an ioctl KVM_S390_INTERRUPT with these.
///     let [_word, _parameter, _identification] =
///         [interruption.subchannel.into(), interruption.intparm, interruption.identification()];
///     Ok(())
/// });
/// let by_asking = Delivery::interrupt(Silent); // with Service::tpi, or TSCH
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// It is called once for each interruption that becomes pending, and once more for the end of a program
/// whose intermediate status nobody has fetched yet: on a shard's thread (for channel
/// reports, and interruptions that were held back, on that of whoever caused it): it must not block.
pub trait Trigger<T>: Send + Sync {
    /// Tells of `what`.
    ///
    /// # Errors
    ///
    /// What the VMM's side says; it is logged, and what is pending stays so.
    fn trigger(&self, what: &T) -> io::Result<()>;
}

impl<T> Trigger<T> for EventFd {
    fn trigger(&self, _what: &T) -> io::Result<()> {
        self.write(1)
    }
}

impl<T, F: Fn(&T) -> io::Result<()> + Send + Sync> Trigger<T> for F {
    fn trigger(&self, what: &T) -> io::Result<()> {
        self(what)
    }
}

impl<T, U: Trigger<T> + ?Sized> Trigger<T> for Arc<U> {
    fn trigger(&self, what: &T) -> io::Result<()> {
        (**self).trigger(what)
    }
}

/// Tells nobody: whoever wants to know asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl<T> Trigger<T> for Silent {
    fn trigger(&self, _what: &T) -> io::Result<()> {
        Ok(())
    }
}

/// How a subchannel is driven, and where the results of its programs go.
#[derive(Clone)]
pub enum Delivery {
    /// By instruction: status becomes pending at the subchannel, an interruption with it, the trigger
    /// is told, and TEST SUBCHANNEL fetches the IRB. One program at a time, as in hardware.
    Interrupt(Arc<dyn Trigger<IoInterruption>>),
    /// By submission: to a completion ring, with the `user_data` of the submission. As many programs
    /// may wait as the submission ring has entries. See [`Completions::ring`].
    Ring(CompletionSender<Completion>),
    /// By [`Subchannel::start`](crate::Subchannel::start): to the future that it gives.
    Future,
}

impl Delivery {
    /// By instruction, with interruptions told to `trigger`.
    pub fn interrupt(trigger: impl Trigger<IoInterruption> + 'static) -> Self {
        Delivery::Interrupt(Arc::new(trigger))
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Delivery::Interrupt(_) => "Interrupt",
            Delivery::Ring(_) => "Ring",
            Delivery::Future => "Future",
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
    ///
    /// The function control of its SCSW says what is over: a start, a halt or clear
    /// ([`Subchannel::submit_halt`](crate::Subchannel::submit_halt)), or a start that was halted or
    /// cleared, with both.
    pub fn is_final(&self) -> bool {
        self.irb.scsw.is_final()
    }
}

/// The consuming end of a completion ring.
///
/// Several threads that take completions have a ring each, or share one behind a lock, that they take for a
/// burst at a time:
///
/// ```
/// # use std::sync::Arc;
/// # use vfio_ccw::architecture::{Ccw, Orb};
/// # use vfio_ccw::{Completions, DeviceSpec, Service};
/// # use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
/// # let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// # memory.write_slice(&Ccw::new(0x02, 0x8000, 512).to_format_1(), GuestAddress(0x1000))?;
/// # let service = Service::builder().build(memory)?;
/// use parking_lot::Mutex;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// let (delivery, completions) = Completions::ring(64)?;
/// let device = service.attach(DeviceSpec::Null, delivery)?;
/// for number in 0..16 {
///     device.submit(&Orb::new(0x1000), number)?;
/// }
/// let (completions, taken) = (Mutex::new(completions), AtomicU64::new(0));
/// std::thread::scope(|scope| {
///     for _ in 0..2 {
///         scope.spawn(|| {
///             while taken.load(Ordering::Relaxed) < 16 {
///                 let reaped = completions.lock().reap(4, |done| assert!(done.is_final()));
///                 taken.fetch_add(reaped as u64, Ordering::Relaxed);
///                 std::thread::yield_now();
///             }
///         });
///     }
/// });
/// assert_eq!(taken.into_inner(), 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
        let (sender, mut receiver) = completion::ring(entries)?;
        receiver.wait_by(WaitStrategy::default().on_this_machine());
        Ok((Delivery::Ring(sender), Completions { receiver }))
    }

    /// Takes up to `most` completions and gives each to `take`. Returns how many.
    pub fn reap(&mut self, most: usize, take: impl FnMut(Completion)) -> usize {
        self.receiver.pop_burst(most, take)
    }

    /// How [`Completions::wait`] waits from now on. Default: adaptive, as
    /// [`ServiceBuilder::wait`](crate::ServiceBuilder::wait).
    pub fn wait_by(&mut self, strategy: WaitStrategy) {
        self.receiver.wait_by(strategy);
    }

    /// Waits until there is a completion or the time is over. Returns whether there is one.
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
