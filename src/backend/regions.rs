//! The regions and interrupts of a vfio-ccw device that somebody else runs: what its driver is asked.

use std::io;

use tokio::io::unix::AsyncFd;
use vfio_ccw_metrics::DeviceClass;
use vmm_sys_util::eventfd::EventFd;

use crate::architecture::{Crw, Function, IrbHead, Schib};

use super::{Errno, IoRegion, Irq};

/// Gives a device an eventfd for one of its interrupts, and watches it.
///
/// # Errors
///
/// No eventfd, it cannot be watched, or the driver does not take it.
pub(crate) fn watch(regions: &impl Regions, irq: Irq) -> io::Result<AsyncFd<EventFd>> {
    let eventfd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    regions.set_eventfd(irq, Some(&eventfd))?;
    crate::watch::eventfd(eventfd)
}

/// A device as its driver shows it. Each call is one access; none waits for the device.
pub(crate) trait Regions: std::fmt::Debug + Send + Sync + 'static {
    /// Class of the device.
    fn class(&self) -> DeviceClass;

    /// Whether the device has this interrupt.
    fn has(&self, irq: Irq) -> bool;

    /// Sets the eventfd of an interrupt, or takes it away.
    fn set_eventfd(&self, irq: Irq, eventfd: Option<&EventFd>) -> Result<(), Errno>;

    /// Writes the I/O region: START SUBCHANNEL.
    fn write_io(&self, region: &IoRegion) -> Result<(), Errno>;

    /// Reads the last IRB, or what was written in its place since.
    fn read_irb(&self) -> Result<IrbHead, Errno>;

    /// Writes the asynchronous-command region: HALT or CLEAR SUBCHANNEL.
    fn write_command(&self, function: Function) -> Result<(), Errno>;

    /// Reads the SCHIB, fresh from STORE SUBCHANNEL.
    fn read_schib(&self) -> Result<Schib, Errno>;

    /// Takes a channel-report word; zero where there is none.
    fn read_crw(&self) -> Result<Crw, Errno>;

    /// Resets the device: what it runs is over, and no interrupt tells of that.
    fn reset(&self) -> Result<(), Errno>;
}
