//! The ioctls of VFIO and iommufd that a vfio-ccw device needs, and the only unsafe code of the suite.
//!
//! `include/uapi/linux/vfio.h` and `iommufd.h`. Structures are given as their bytes, in the byte order of
//! the machine.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A request whose argument is a structure that begins with its own size.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    DeviceInfo,
    RegionInfo,
    IrqInfo,
    SetIrqs,
    MapDma,
    UnmapDma,
    BindIommufd,
    AttachIoas,
    IoasAllocate,
    IoasMap,
    IoasUnmap,
}

impl Request {
    fn number(self) -> libc::Ioctl {
        let vfio = |number: u32| libc::_IO(b';'.into(), 100 + number);
        let iommufd = |number: u32| libc::_IO(b';'.into(), 0x80 + number);
        match self {
            Request::DeviceInfo => vfio(7),
            Request::RegionInfo => vfio(8),
            Request::IrqInfo => vfio(9),
            Request::SetIrqs => vfio(10),
            Request::MapDma => vfio(13),
            Request::UnmapDma => vfio(14),
            Request::BindIommufd => vfio(18),
            Request::AttachIoas => vfio(19),
            Request::IoasAllocate => iommufd(1),
            Request::IoasMap => iommufd(5),
            Request::IoasUnmap => iommufd(6),
        }
    }

    /// Bytes that the kernel reads and writes whatever size the structure gives itself.
    fn least(self) -> usize {
        match self {
            Request::DeviceInfo => 24,
            Request::RegionInfo | Request::MapDma => 32,
            Request::IrqInfo | Request::BindIommufd => 16,
            // With room for a descriptor, which it reads behind the structure.
            Request::SetIrqs | Request::UnmapDma | Request::IoasUnmap => 24,
            Request::AttachIoas | Request::IoasAllocate => 12,
            Request::IoasMap => 40,
        }
    }
}

/// Performs a request; the answer stands in `argument` then.
pub fn call(file: &File, request: Request, argument: &mut [u8]) -> io::Result<()> {
    let size = u32::from_ne_bytes(argument[..4].try_into().unwrap()) as usize;
    assert!(argument.len() >= size.max(request.least()), "{request:?} of {size} bytes");
    // SAFETY: the kernel reads and writes no more than the size that the structure gives itself, or the
    // least there is: both are there. Test: `the_driver_gives_what_it_gave`; with less the assertion above
    // fails.
    result(unsafe { libc::ioctl(file.as_raw_fd(), request.number(), argument.as_mut_ptr()) })?;
    Ok(())
}

/// `VFIO_DEVICE_RESET`.
pub fn reset(device: &File) -> io::Result<()> {
    // SAFETY: the request has no argument. Test: `the_driver_gives_what_it_gave`, the case `held: reset`.
    result(unsafe { libc::ioctl(device.as_raw_fd(), libc::_IO(b';'.into(), 111), 0) })?;
    Ok(())
}

/// A request that there is none of.
pub fn unknown(device: &File) -> io::Result<()> {
    // SAFETY: a driver that knows it would get a null pointer, which faults. Test: the case
    // `ioctls: unknown ioctl`, which expects ENOTTY.
    result(unsafe { libc::ioctl(device.as_raw_fd(), libc::_IO(b';'.into(), 171), 0) })?;
    Ok(())
}

/// `VFIO_GROUP_SET_CONTAINER`, then `VFIO_SET_IOMMU` with type1v2.
pub fn join(group: &File, container: &File) -> io::Result<()> {
    let descriptor = container.as_raw_fd();
    // SAFETY: the request reads one int, which outlives the call. Test: `the_driver_gives_what_it_gave`; with
    // another pointer the kernel says EFAULT.
    result(unsafe {
        libc::ioctl(group.as_raw_fd(), libc::_IO(b';'.into(), 104), &raw const descriptor)
    })?;
    let type1_v2: libc::c_ulong = 3;
    // SAFETY: the request takes a plain number. Test: `the_driver_gives_what_it_gave`; another number is
    // EINVAL.
    result(unsafe { libc::ioctl(container.as_raw_fd(), libc::_IO(b';'.into(), 102), type1_v2) })?;
    Ok(())
}

/// `VFIO_GROUP_GET_DEVICE_FD`.
pub fn device_of(group: &File, name: &CStr) -> io::Result<File> {
    let request = libc::_IO(b';'.into(), 106);
    // SAFETY: the request reads a string that ends with zero. Test: `the_driver_gives_what_it_gave`; another
    // name is ENODEV.
    let descriptor = result(unsafe { libc::ioctl(group.as_raw_fd(), request, name.as_ptr()) })?;
    // SAFETY: the descriptor is new, and nobody else's. Test: the case `held: closed in flight`, which would
    // find the device open.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }.into())
}

/// The number of a descriptor, for a structure.
pub fn number_of(descriptor: BorrowedFd<'_>) -> [u8; 4] {
    descriptor.as_raw_fd().to_ne_bytes()
}

fn result(returned: libc::c_int) -> io::Result<libc::c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}
