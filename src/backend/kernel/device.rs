//! An opened vfio-ccw device of the kernel's: its four regions, its three interrupts, its reset.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vfio_ccw_metrics::DeviceClass;
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::architecture::{Crw, Function, IrbHead, Schib};
use crate::backend::{
    AsyncRegion, CrwRegion, DeviceInfo, Errno, IoRegion, Irq, IrqInfo, RegionType, Regions,
    SchibRegion,
};

use super::address_space::{AddressSpace, Group};
use super::ioctl;
use super::location::Location;
use super::region_info::Region;

/// More regions than any driver has: what a device says of more is not looked at.
const MOST_REGIONS: u32 = 64;

/// A device on a subchannel of the host's, opened and alone in this process's hands.
///
/// To be attached with [`DeviceSpec::kernel`](crate::DeviceSpec::kernel), once. Dropping it closes
/// it: the driver halts and clears what runs, and disables the subchannel.
#[derive(Debug)]
pub struct Device {
    /// First: the device is closed before its group.
    file: File,
    io: u64,
    command: Option<u64>,
    schib: Option<u64>,
    crw: Option<u64>,
    interrupts: u32,
    class: DeviceClass,
    location: Option<Location>,
    group: Option<Arc<Group>>,
    space: AddressSpace,
    is_attached: AtomicBool,
}

/// Why a descriptor is no device that can be driven.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The kernel does not say what it is.
    #[error(
        "the device did not say what it is: {0} (is it a device of VFIO, in a container with an IOMMU or bound to an iommufd?)"
    )]
    Info(#[source] io::Error),
    /// It is a device of VFIO, but not a channel device.
    #[error("the device has flags {flags:#x}, without that of a channel device (0x10)")]
    NotCcw {
        /// Its flags.
        flags: u32,
    },
    /// A region is not what it must be.
    #[error(
        "the {name} region has {size} bytes, and not {expected}: the kernel speaks another version"
    )]
    RegionSize {
        /// Which region.
        name: &'static str,
        /// Its bytes.
        size: u64,
        /// Bytes that it should have.
        expected: usize,
    },
    /// It has no I/O interrupt.
    #[error("the device has no eventfd for its I/O interrupt")]
    NoInterrupt,
}

impl Device {
    pub(super) fn new(
        device: OwnedFd,
        space: AddressSpace,
        group: Option<Arc<Group>>,
        location: Option<Location>,
    ) -> Result<Self, DeviceError> {
        let file = File::from(device);
        let fd = file.as_fd();
        let info = ioctl::device_info(fd).map_err(DeviceError::Info)?;
        let flags = info.flags.get();
        if flags & DeviceInfo::CCW == 0 {
            return Err(DeviceError::NotCcw { flags });
        }
        let region = |index| Region::read(|answer| ioctl::region_info(fd, index, answer));
        let io = region(0).map_err(DeviceError::Info)?;
        let io = sized::<IoRegion>("I/O", io)?;
        let (mut command, mut schib, mut crw) = (None, None, None);
        for index in 1..info.num_regions.get().min(MOST_REGIONS) {
            let found = region(index).map_err(DeviceError::Info)?;
            match found.kind {
                Some((RegionType::CCW, RegionType::ASYNC)) => {
                    command = Some(sized::<AsyncRegion>("asynchronous-command", found)?);
                }
                Some((RegionType::CCW, RegionType::SCHIB)) => {
                    schib = Some(sized::<SchibRegion>("SCHIB", found)?)
                }
                Some((RegionType::CCW, RegionType::CRW)) => {
                    crw = Some(sized::<CrwRegion>("CRW", found)?)
                }
                // A later kernel's.
                _ => {}
            }
        }
        let has_eventfd = |index: u32| {
            index < info.num_irqs.get()
                && ioctl::irq_info(fd, index)
                    .is_ok_and(|irq| irq.flags.get() & IrqInfo::EVENTFD != 0 && irq.count == 1)
        };
        if !has_eventfd(Irq::Io as u32) {
            return Err(DeviceError::NoInterrupt);
        }
        let all = [Irq::Io, Irq::Crw, Irq::Request].map(|irq| irq as u32);
        let interrupts =
            all.into_iter().filter(|irq| has_eventfd(*irq)).fold(0, |set, irq| set | 1 << irq);
        let class = DeviceClass::Other;
        let is_attached = AtomicBool::new(false);
        let device = Device {
            file,
            io,
            command,
            schib,
            crw,
            interrupts,
            class,
            location,
            group,
            space,
            is_attached,
        };
        if flags & DeviceInfo::RESET != 0 {
            // The region still has what an earlier user left there.
            device.reset().map_err(|errno| DeviceError::Info(errno.into()))?;
        }
        Ok(device)
    }

    /// Says what kind of device it is: policies and metrics go by that. Default: other.
    pub fn with_class(mut self, class: DeviceClass) -> Self {
        self.class = class;
        self
    }

    /// What kind of device it is taken for.
    pub fn class(&self) -> DeviceClass {
        self.class
    }

    /// Where it was found; `None` if the VMM has opened it.
    pub fn location(&self) -> Option<&Location> {
        self.location.as_ref()
    }

    /// The address space that it sees memory through.
    pub fn address_space(&self) -> &AddressSpace {
        &self.space
    }

    /// Where the I/O region begins in the device's file, for who reads and writes that file itself.
    pub fn io_offset(&self) -> u64 {
        self.io
    }

    /// Sets the eventfd of the I/O interrupt, or takes it away.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn set_io_eventfd(&self, eventfd: Option<&dyn AsRawFd>) -> Result<(), Errno> {
        self.set_irq(Irq::Io, eventfd)
    }

    /// Writes the whole I/O region: START SUBCHANNEL of the ORB in it, whose addresses are those of the
    /// address space. It has started when this returns; the eventfd tells of the end.
    ///
    /// # Errors
    ///
    /// The driver's, see `docs/KERNEL.md`: `EBUSY` while a program runs, `EAGAIN` while the driver is in the
    /// region, `EINVAL` where memory is not mapped or the program exceeds the driver's limits, `ENODEV` and
    /// `EACCES` for condition code 3, `EIO` when the device is gone.
    pub fn write_io(&self, region: &IoRegion) -> Result<(), Errno> {
        Regions::write_io(self, region)
    }

    /// Reads the IRB in the I/O region: the last one, or what was written in its place since.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn read_irb(&self) -> Result<IrbHead, Errno> {
        Regions::read_irb(self)
    }

    /// Writes the asynchronous-command region: HALT or CLEAR SUBCHANNEL.
    ///
    /// # Errors
    ///
    /// The driver's: `EBUSY` for condition codes 1 and 2, `EAGAIN` while the driver is in the region, `ENODEV`
    /// for condition code 3, `EOPNOTSUPP` where the driver has no such region.
    pub fn write_command(&self, function: Function) -> Result<(), Errno> {
        Regions::write_command(self, function)
    }

    /// Reads the SCHIB region: STORE SUBCHANNEL on the host.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the device is gone, `EOPNOTSUPP` where the driver has no such region.
    pub fn read_schib(&self) -> Result<Schib, Errno> {
        Regions::read_schib(self)
    }

    /// Takes the next channel-report word; zero where there is none.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` where the driver has no such region.
    pub fn read_crw(&self) -> Result<Crw, Errno> {
        Regions::read_crw(self)
    }

    /// Resets the device: a program that runs is over, and no interrupt tells of that.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the device is gone.
    pub fn reset(&self) -> Result<(), Errno> {
        Regions::reset(self)
    }

    /// It is attached to a service from now on; `false` if it was before.
    pub(crate) fn attach(&self) -> bool {
        // Relaxed: nothing else goes by it.
        !self.is_attached.swap(true, Ordering::Relaxed)
    }

    fn set_irq(&self, irq: Irq, eventfd: Option<&dyn AsRawFd>) -> Result<(), Errno> {
        let eventfd = eventfd.map(AsRawFd::as_raw_fd);
        ioctl::set_eventfd(self.file.as_fd(), irq as u32, eventfd)
            .map_err(|error| Errno::from(&error))
    }

    fn read<T: FromBytes + IntoBytes>(&self, offset: u64) -> Result<T, Errno> {
        let mut block = T::new_zeroed();
        let bytes = block.as_mut_bytes();
        match self.file.read_at(bytes, offset) {
            Ok(read) if read == size_of::<T>() => Ok(block),
            // The driver gives what was asked for, or nothing.
            Ok(_) => Err(Errno(libc::EIO)),
            Err(error) => Err(Errno::from(&error)),
        }
    }

    fn write<T: IntoBytes + Immutable + KnownLayout>(
        &self,
        offset: u64,
        block: &T,
    ) -> Result<(), Errno> {
        match self.file.write_at(block.as_bytes(), offset) {
            Ok(written) if written == size_of::<T>() => Ok(()),
            Ok(_) => Err(Errno(libc::EIO)),
            Err(error) => Err(Errno::from(&error)),
        }
    }
}

/// The offset of a region that holds a `T` and nothing else.
fn sized<T>(name: &'static str, region: Region) -> Result<u64, DeviceError> {
    let expected = size_of::<T>();
    match region.size == expected as u64 {
        true => Ok(region.offset),
        false => Err(DeviceError::RegionSize { name, size: region.size, expected }),
    }
}

impl Regions for Device {
    fn class(&self) -> DeviceClass {
        self.class
    }

    fn has(&self, irq: Irq) -> bool {
        self.interrupts & 1 << irq as u32 != 0
    }

    fn set_eventfd(&self, irq: Irq, eventfd: Option<&EventFd>) -> Result<(), Errno> {
        self.set_irq(irq, eventfd.map(|eventfd| eventfd as &dyn AsRawFd))
    }

    fn write_io(&self, region: &IoRegion) -> Result<(), Errno> {
        // The whole region in one write: every write starts what the region then holds.
        self.write(self.io, region)
    }

    fn read_irb(&self) -> Result<IrbHead, Errno> {
        self.read(self.io + IoRegion::IRB)
    }

    fn write_command(&self, function: Function) -> Result<(), Errno> {
        let offset = self.command.ok_or(Errno::NOT_SUPPORTED)?;
        self.write(offset, &AsyncRegion::ask(function))
    }

    fn read_schib(&self) -> Result<Schib, Errno> {
        let offset = self.schib.ok_or(Errno::NOT_SUPPORTED)?;
        self.read::<SchibRegion>(offset).map(|region| region.schib)
    }

    fn read_crw(&self) -> Result<Crw, Errno> {
        let offset = self.crw.ok_or(Errno::NOT_SUPPORTED)?;
        self.read::<CrwRegion>(offset).map(|region| region.crw)
    }

    fn reset(&self) -> Result<(), Errno> {
        ioctl::reset(self.file.as_fd()).map_err(|error| Errno::from(&error))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(group) = &self.group {
            self.space.leave(group);
        }
    }
}
