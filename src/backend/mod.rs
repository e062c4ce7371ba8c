//! What runs shadow programs. Every back end speaks the contract of the kernel's vfio-ccw device:
//! write an I/O region to start, wait for the I/O interrupt, read the region to see the IRB.
//!
//! | back end | file |
//! |---|---|
//! | software channel subsystem in this process, driven by whoever waits for it | `in_process.rs` |
//! | the same, running on its own and signalling an eventfd | `signalled.rs` |
//! | what both share with their starter | `port.rs` |
//! | devices of the kernel's vfio-ccw | `kernel/` |
//! | devices in another process, over vfio-user | `remote/` |
//! | driving a device over regions and interrupts that somebody else serves | `regions.rs`, `passthrough.rs` |
//!
//! [`VfioDevice`] (`vfio_device.rs`) is the software channel subsystem as a whole VFIO device, for users of
//! the kernel's interface: its ioctls, its four regions and its three interrupts. How it compares with
//! Linux's driver, answer by answer, is in `docs/DIFFERENCES.md`.

pub(crate) mod bell;
mod channel_reports;
mod in_process;
mod info;
mod irqs;
pub mod kernel;
mod passthrough;
mod port;
pub mod region;
mod regions;
pub mod remote;
mod signalled;
mod vfio_device;
mod windows;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_queues::prefetch::Lines;

use crate::architecture::{Function, IrbHead, Orb};
use crate::channel_subsystem::{DeviceState, DeviceStateError, DmaSpace, Entry};

pub use in_process::InProcess;
pub use info::{DeviceInfo, IrqInfo, RegionIndex, RegionInfo, RegionType};
pub use irqs::{Irq, IrqData, IrqSet, IrqSetFlags};
pub(crate) use passthrough::{Host, Passthrough};
pub use region::{AsyncRegion, CrwRegion, IoRegion, SchibRegion};
pub(crate) use regions::{Regions, watch};
pub(crate) use signalled::Signalled;
pub use vfio_device::VfioDevice;

/// An errno that a region access ended with. It is kept as data: it is the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", io::Error::from(*self))]
pub struct Errno(pub i32);

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        io::Error::from_raw_os_error(errno.0)
    }
}

impl From<&io::Error> for Errno {
    /// `EIO` for an error that is none of the system's.
    fn from(error: &io::Error) -> Self {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl Errno {
    /// The driver is in the region at this moment.
    pub const AGAIN: Errno = Errno(libc::EAGAIN);
    /// A program is running already.
    pub const BUSY: Errno = Errno(libc::EBUSY);
    /// Not a request that can be made this way.
    pub const NOT_SUPPORTED: Errno = Errno(libc::EOPNOTSUPP);
    /// Wrong length, offset or region.
    pub const INVALID: Errno = Errno(libc::EINVAL);
    /// The device is not there any more.
    pub const NO_DEVICE: Errno = Errno(libc::ENODEV);
    /// A start that was not made, as the program was halted or cleared before.
    pub(crate) const CANCELED: Errno = Errno(libc::ECANCELED);

    /// Whether the same may go well a little later: the region is in use, or status is on its way.
    pub(crate) fn passes(self) -> bool {
        matches!(self.0, libc::EAGAIN | libc::EBUSY | libc::EINTR)
    }

    /// The device does no I/O any more.
    pub const IO: Errno = Errno(libc::EIO);
    /// Something is mapped there already.
    pub const EXISTS: Errno = Errno(libc::EEXIST);
    /// There are as many as there may be.
    pub const NO_SPACE: Errno = Errno(libc::ENOSPC);

    /// As it stands in the `ret_code` of a region.
    fn to_ret_code(self) -> i32 {
        self.0.wrapping_neg()
    }
}

/// A device that is started through an I/O region.
pub(crate) trait Backend {
    /// Class of the device.
    fn class(&self) -> DeviceClass;

    /// The memory that programs reach from now on; none is running.
    fn see(&mut self, memory: &Arc<DmaSpace>);

    /// What the device keeps between programs; none is running. `None`: nobody knows.
    fn save(&self) -> Option<DeviceState>;

    /// The device, which is new, goes on from what another one of its kind kept.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError>;

    /// Writes the I/O region: START SUBCHANNEL of `orb`, or for software devices the resumption of a
    /// program that has suspended itself.
    fn start(&mut self, orb: &Orb, entry: Entry) -> Result<(), Errno>;

    /// What a program makes it look at.
    fn lines(&self) -> [Lines; 2];

    /// Whether the device runs by itself and interrupts, so that it may be looked at meanwhile.
    fn is_apart(&self) -> bool;

    /// Whether a device that is apart has to be looked at one by one.
    fn is_looked_at(&self) -> bool {
        self.is_apart()
    }

    /// Waits for the I/O interrupt that tells of the program's end or suspension. `looks`: asks the
    /// device, also where it seems not to have interrupted yet. `intermediate` is given the status of
    /// a program that goes on; of several that come at once, perhaps the last.
    fn poll_interrupt(
        &mut self,
        cx: &mut Context<'_>,
        looks: bool,
        intermediate: &mut dyn FnMut(IrbHead),
    ) -> Poll<Result<(), Errno>>;

    /// HALT or CLEAR SUBCHANNEL: the program that runs comes to an end, of which the I/O interrupt
    /// tells.
    fn stop(&mut self, function: Function);

    /// No program runs: sees what the device has to say by itself, and gives unsolicited status to `tell`,
    /// which says whether it could be told; if not, it comes again. Wakes the task when there is more.
    fn poll_idle(&mut self, _cx: &mut Context<'_>, _tell: &mut dyn FnMut(&IrbHead) -> bool) {}

    /// Whether the device performs HALT and CLEAR itself, also where no program runs.
    fn performs_functions(&self) -> bool {
        false
    }

    /// Whether the device can run a program straight from guest memory.
    fn runs_unfetched(&self) -> bool {
        true
    }

    /// No program runs: waits until the device has performed `function`.
    fn poll_function(&mut self, _cx: &mut Context<'_>, _function: Function) -> Poll<()> {
        Poll::Ready(())
    }

    /// Whatever the program waits for outside will not come: it ends, or goes on by itself to its end.
    fn release(&mut self);

    /// Reads the I/O region: the last IRB.
    fn irb(&mut self) -> Result<IrbHead, Errno>;

    /// Whether the last program was one that nobody had translated, and the policy ended it.
    fn was_refused(&self) -> bool;

    /// Bytes read from and written to the medium since this was last asked.
    fn take_moved(&mut self) -> (u64, u64);
}
