//! The ioctls of VFIO groups, containers and devices, and nothing else: structs as the kernel has
//! them, request numbers, and the one call.
//!
//! `include/uapi/linux/vfio.h`. All fields are in the byte order of the machine. Those that map
//! memory are in the pinning crate.

use std::ffi::{CStr, c_ulong};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::backend::{DeviceInfo, IrqInfo, IrqSetFlags};

/// The letter and the first number of the interface (`VFIO_TYPE`, `VFIO_BASE`).
const fn request(number: u32) -> libc::Ioctl {
    libc::_IO(b';' as u32, 100 + number)
}

const GET_API_VERSION: libc::Ioctl = request(0);
const CHECK_EXTENSION: libc::Ioctl = request(1);
const SET_IOMMU: libc::Ioctl = request(2);
const GROUP_SET_CONTAINER: libc::Ioctl = request(4);
const GROUP_GET_DEVICE_FD: libc::Ioctl = request(6);
const DEVICE_GET_INFO: libc::Ioctl = request(7);
const DEVICE_GET_REGION_INFO: libc::Ioctl = request(8);
const DEVICE_GET_IRQ_INFO: libc::Ioctl = request(9);
const DEVICE_SET_IRQS: libc::Ioctl = request(10);
const DEVICE_RESET: libc::Ioctl = request(11);
const DEVICE_BIND_IOMMUFD: libc::Ioctl = request(18);
const DEVICE_ATTACH_IOMMUFD_PT: libc::Ioctl = request(19);

/// `VFIO_API_VERSION`: the only one there ever was.
const API_VERSION: i32 = 0;
/// `VFIO_TYPE1v2_IOMMU`.
const TYPE1_V2: c_ulong = 3;

/// `struct vfio_region_info`, in front of its capabilities.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RegionHead {
    /// Bytes there are room for; the kernel puts here how many it needs.
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    /// Where in the answer the first capability is; 0 for none.
    pub(super) cap_offset: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
}

/// `struct vfio_irq_set` with one eventfd.
#[derive(Debug)]
#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    eventfd: i32,
}

/// `struct vfio_device_bind_iommufd`.
#[derive(Debug)]
#[repr(C)]
struct BindIommufd {
    argsz: u32,
    flags: u32,
    iommufd: i32,
    out_devid: u32,
}

/// `struct vfio_device_attach_iommufd_pt`.
#[derive(Debug)]
#[repr(C)]
struct AttachIommufd {
    argsz: u32,
    flags: u32,
    pt_id: u32,
}

// What the kernel's headers come to, on every architecture that this is built for.
const _: () = {
    assert!(size_of::<DeviceInfo>() == 24 && size_of::<IrqInfo>() == 16);
    assert!(size_of::<RegionHead>() == 32);
    assert!(size_of::<IrqSet>() == 24 && size_of::<BindIommufd>() == 16);
    assert!(size_of::<AttachIommufd>() == 12);
};

/// Whether a container speaks this interface and has type1 version 2.
pub(super) fn has_type1_v2(container: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: neither request has an argument that points anywhere.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe {
        Ok(call(container, GET_API_VERSION, 0)? == API_VERSION
            && call(container, CHECK_EXTENSION, TYPE1_V2)? > 0)
    }
}

/// Gives a container its IOMMU, after the first group is in it.
pub(super) fn set_type1_v2(container: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is a number. Test: `a_wrong_descriptor_is_refused`.
    unsafe { call(container, SET_IOMMU, TYPE1_V2) }.map(drop)
}

/// Puts a group into a container.
pub(super) fn join(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let number = container.as_raw_fd();
    // SAFETY: the kernel reads one int. Test: `a_wrong_descriptor_is_refused`.
    unsafe { call_with(group, GROUP_SET_CONTAINER, (&raw const number).cast_mut()) }.map(drop)
}

/// Opens a device of a group.
pub(super) fn device_of(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a string that ends with a zero.
    // Test: `a_wrong_descriptor_is_refused`.
    let device = unsafe { call_with(group, GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut()) }?;
    // SAFETY: a new descriptor, which nobody else knows. Test: as above, it never comes to this there;
    // the tests of `tests/s390x` close what this opens.
    Ok(unsafe { OwnedFd::from_raw_fd(device) })
}

/// Binds a character device to an iommufd and attaches it to address space `ioas` there.
pub(super) fn attach(device: BorrowedFd<'_>, iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
    let (argsz, iommufd) = (size_of::<BindIommufd>() as u32, iommufd.as_raw_fd());
    let mut bind = BindIommufd { argsz, flags: 0, iommufd, out_devid: 0 };
    // SAFETY: the struct is what the request reads and writes.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe { call_with(device, DEVICE_BIND_IOMMUFD, &raw mut bind) }?;
    let mut attach =
        AttachIommufd { argsz: size_of::<AttachIommufd>() as u32, flags: 0, pt_id: ioas };
    // SAFETY: the struct is what the request reads and writes.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe { call_with(device, DEVICE_ATTACH_IOMMUFD_PT, &raw mut attach) }.map(drop)
}

/// What a device is.
pub(super) fn device_info(device: BorrowedFd<'_>) -> io::Result<DeviceInfo> {
    let argsz = (size_of::<DeviceInfo>() as u32).into();
    let mut info = DeviceInfo { argsz, ..DeviceInfo::default() };
    // SAFETY: the struct is what the request reads and writes.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe { call_with(device, DEVICE_GET_INFO, &raw mut info) }?;
    Ok(info)
}

/// Asks for a region. `answer` begins with a [`RegionHead`], which is set here, and capabilities follow
/// where they fit: if not, its `argsz` says how long the answer would be.
pub(super) fn region_info(device: BorrowedFd<'_>, index: u32, answer: &mut [u8]) -> io::Result<()> {
    let argsz = u32::try_from(answer.len()).unwrap_or(u32::MAX);
    RegionHead { argsz, index, ..RegionHead::default() }
        .write_to_prefix(answer)
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `argsz` bytes, and the slice has as many.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe { call_with(device, DEVICE_GET_REGION_INFO, answer.as_mut_ptr()) }.map(drop)
}

/// Asks for an interrupt.
pub(super) fn irq_info(device: BorrowedFd<'_>, index: u32) -> io::Result<IrqInfo> {
    let argsz = (size_of::<IrqInfo>() as u32).into();
    let mut info = IrqInfo { argsz, index: index.into(), ..IrqInfo::default() };
    // SAFETY: the struct is what the request reads and writes.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe { call_with(device, DEVICE_GET_IRQ_INFO, &raw mut info) }?;
    Ok(info)
}

/// Sets the eventfd of an interrupt, or takes it away.
pub(super) fn set_eventfd(
    device: BorrowedFd<'_>,
    index: u32,
    eventfd: Option<RawFd>,
) -> io::Result<()> {
    let mut set = IrqSet {
        argsz: size_of::<IrqSet>() as u32,
        flags: (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits(),
        index,
        start: 0,
        count: 1,
        eventfd: eventfd.unwrap_or(-1),
    };
    // SAFETY: the struct is what the request reads, with the data that its flags and count say.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe { call_with(device, DEVICE_SET_IRQS, &raw mut set) }.map(drop)
}

/// Resets a device: what it runs is over, and no interrupt tells of that.
pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no argument. Test: `a_wrong_descriptor_is_refused`.
    unsafe { call(device, DEVICE_RESET, 0) }.map(drop)
}

/// Issues one request whose argument is a number.
///
/// # Safety
///
/// `request` is one that takes a number.
unsafe fn call(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: c_ulong) -> io::Result<i32> {
    // SAFETY: the caller vouches for the request; the descriptor is open while borrowed.
    // Test: `a_wrong_descriptor_is_refused`.
    answer(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) })
}

/// Issues one request whose argument is a pointer.
///
/// # Safety
///
/// `argument` points to what the kernel reads and writes for `request`. A descriptor of another
/// kind answers ENOTTY: nobody else has these numbers (`ioctl-number.rst`).
unsafe fn call_with<T>(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    argument: *mut T,
) -> io::Result<i32> {
    // SAFETY: the caller vouches for the argument; the descriptor is open while borrowed.
    // Test: `a_wrong_descriptor_is_refused`.
    answer(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) })
}

fn answer(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    /// The numbers that the C macros give, on x86-64 and on s390x alike.
    #[test]
    fn request_numbers_are_the_kernels() {
        let numbers = [
            (GET_API_VERSION, 0x3b64),
            (CHECK_EXTENSION, 0x3b65),
            (SET_IOMMU, 0x3b66),
            (GROUP_SET_CONTAINER, 0x3b68),
            (GROUP_GET_DEVICE_FD, 0x3b6a),
            (DEVICE_GET_INFO, 0x3b6b),
            (DEVICE_GET_REGION_INFO, 0x3b6c),
            (DEVICE_GET_IRQ_INFO, 0x3b6d),
            (DEVICE_SET_IRQS, 0x3b6e),
            (DEVICE_RESET, 0x3b6f),
            (DEVICE_BIND_IOMMUFD, 0x3b76),
            (DEVICE_ATTACH_IOMMUFD_PT, 0x3b77),
        ];
        for (number, expected) in numbers {
            assert_eq!(number, expected);
        }
    }

    #[test]
    fn a_wrong_descriptor_is_refused() {
        let file = File::open("/dev/null").unwrap();
        let fd = file.as_fd();
        let refusals = [
            has_type1_v2(fd).map(drop),
            set_type1_v2(fd),
            join(fd, fd),
            device_of(fd, c"name").map(drop),
            attach(fd, fd, 1),
            device_info(fd).map(drop),
            region_info(fd, 0, &mut [0; 64]),
            irq_info(fd, 0).map(drop),
            set_eventfd(fd, 0, Some(0)),
            reset(fd),
        ];
        for refusal in refusals {
            assert_eq!(refusal.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        }
        let error = region_info(fd, 0, &mut [0; 31]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "no room for an answer");
    }
}
