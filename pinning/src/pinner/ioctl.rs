//! The ioctls of VFIO containers and of iommufd, and nothing else: structs as the kernel has them,
//! request numbers, and the one call.
//!
//! `include/uapi/linux/vfio.h` and `include/uapi/linux/iommufd.h`. All fields are in the byte order
//! of the machine. The request numbers carry no size, so each struct says its own.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::HostRange;

/// The letter of both interfaces (`VFIO_TYPE`, `IOMMUFD_TYPE`).
const LETTER: u32 = b';' as u32;
/// First number of VFIO (`VFIO_BASE`).
const VFIO: u32 = 100;
/// First number of iommufd (`IOMMUFD_CMD_BASE`).
const IOMMUFD: u32 = 0x80;

const VFIO_IOMMU_GET_INFO: libc::Ioctl = libc::_IO(LETTER, VFIO + 12);
const VFIO_IOMMU_MAP_DMA: libc::Ioctl = libc::_IO(LETTER, VFIO + 13);
const VFIO_IOMMU_UNMAP_DMA: libc::Ioctl = libc::_IO(LETTER, VFIO + 14);
const VFIO_IOMMU_DIRTY_PAGES: libc::Ioctl = libc::_IO(LETTER, VFIO + 17);
const IOMMU_IOAS_ALLOC: libc::Ioctl = libc::_IO(LETTER, IOMMUFD + 1);
const IOMMU_IOAS_IOVA_RANGES: libc::Ioctl = libc::_IO(LETTER, IOMMUFD + 4);
const IOMMU_IOAS_MAP: libc::Ioctl = libc::_IO(LETTER, IOMMUFD + 5);
const IOMMU_IOAS_UNMAP: libc::Ioctl = libc::_IO(LETTER, IOMMUFD + 6);

const VFIO_DMA_MAP_FLAG_READ: u32 = 1 << 0;
const VFIO_DMA_MAP_FLAG_WRITE: u32 = 1 << 1;
const IOMMU_IOAS_MAP_FIXED_IOVA: u32 = 1 << 0;
const IOMMU_IOAS_MAP_WRITEABLE: u32 = 1 << 1;
const IOMMU_IOAS_MAP_READABLE: u32 = 1 << 2;

/// `struct vfio_iommu_type1_info`, in front of its capabilities.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Type1Info {
    /// Bytes there are room for; the kernel puts here how many it needs.
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) iova_pgsizes: u64,
    /// Where in the answer the first capability is; 0 for none.
    pub(super) cap_offset: u32,
    pub(super) pad: u32,
}

/// `struct vfio_iommu_type1_dma_map`.
#[derive(Debug)]
#[repr(C)]
struct DmaMap {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

/// `struct vfio_iommu_type1_dma_unmap` without a bitmap.
#[derive(Debug)]
#[repr(C)]
struct DmaUnmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

/// The fixed part of `struct vfio_iommu_type1_dirty_bitmap`.
#[derive(Debug, Default)]
#[repr(C)]
struct DirtyPages {
    argsz: u32,
    flags: u32,
}

/// `struct iommu_ioas_alloc`.
#[derive(Debug)]
#[repr(C)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}

/// `struct iommu_ioas_iova_ranges`.
#[derive(Debug)]
#[repr(C)]
struct IovaRanges {
    size: u32,
    ioas_id: u32,
    num_iovas: u32,
    reserved: u32,
    allowed_iovas: u64,
    out_iova_alignment: u64,
}

/// `struct iommu_ioas_map`.
#[derive(Debug)]
#[repr(C)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

/// `struct iommu_ioas_unmap`.
#[derive(Debug)]
#[repr(C)]
struct IoasUnmap {
    size: u32,
    ioas_id: u32,
    iova: u64,
    length: u64,
}

// What the kernel's headers come to, on every architecture that this is built for.
const _: () = {
    assert!(size_of::<Type1Info>() == 24 && offset_of!(Type1Info, cap_offset) == 16);
    assert!(offset_of!(Type1Info, iova_pgsizes) == 8);
    assert!(size_of::<DmaMap>() == 32 && offset_of!(DmaMap, vaddr) == 8);
    assert!(offset_of!(DmaMap, iova) == 16 && offset_of!(DmaMap, size) == 24);
    assert!(size_of::<DmaUnmap>() == 24 && offset_of!(DmaUnmap, iova) == 8);
    assert!(offset_of!(DmaUnmap, size) == 16);
    assert!(size_of::<DirtyPages>() == 8);
    assert!(size_of::<IoasAlloc>() == 12 && offset_of!(IoasAlloc, out_ioas_id) == 8);
    assert!(size_of::<IovaRanges>() == 32 && offset_of!(IovaRanges, num_iovas) == 8);
    assert!(offset_of!(IovaRanges, allowed_iovas) == 16);
    assert!(size_of::<IoasMap>() == 40 && offset_of!(IoasMap, ioas_id) == 8);
    assert!(offset_of!(IoasMap, user_va) == 16 && offset_of!(IoasMap, iova) == 32);
    assert!(size_of::<IoasUnmap>() == 24 && offset_of!(IoasUnmap, iova) == 8);
    assert!(offset_of!(IoasUnmap, length) == 16);
};

/// Asks a type1 container what it is. `answer` begins with a [`Type1Info`], which is set here, and
/// capabilities follow where they fit: if not, its `argsz` says how long the answer would be.
///
/// `answer` has at least [`size_of::<Type1Info>()`](Type1Info) bytes; with fewer nothing is asked.
pub(super) fn type1_info(container: BorrowedFd<'_>, answer: &mut [u8]) -> io::Result<()> {
    let argsz = u32::try_from(answer.len()).unwrap_or(u32::MAX);
    Type1Info { argsz, ..Type1Info::default() }
        .write_to_prefix(answer)
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `argsz` bytes, and the slice has as many.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe { call(container, VFIO_IOMMU_GET_INFO, answer.as_mut_ptr()) }
}

/// Whether a type1 container is of version 2, which never takes away part of a mapping; `None`
/// where the kernel cannot tell (before 5.8, or iommufd in its place, which is as exact).
pub(super) fn type1_is_v2(container: BorrowedFd<'_>) -> Option<bool> {
    // vfio_iommu_type1_dirty_pages() refuses version 1 first of all, and then an argsz of 0.
    let mut nothing = DirtyPages::default();
    // SAFETY: with an argsz of 0 the kernel reads the struct and writes nothing.
    // Test: `a_wrong_descriptor_is_refused`.
    let refusal = unsafe { call(container, VFIO_IOMMU_DIRTY_PAGES, &raw mut nothing) }.err()?;
    match refusal.raw_os_error()? {
        libc::EACCES => Some(false),
        libc::EINVAL => Some(true),
        _ => None,
    }
}

/// Maps `host` at `iova`, for reading and writing.
pub(super) fn type1_map(container: BorrowedFd<'_>, iova: u64, host: HostRange) -> io::Result<()> {
    let mut map = DmaMap {
        argsz: size_of::<DmaMap>() as u32,
        flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: host.as_ptr().addr() as u64,
        iova,
        size: host.len() as u64,
    };
    // SAFETY: the struct is what the request reads. That a device then writes to `host` is what a
    // `HostRange` allows; that it is unmapped in time is the pool's promise to its pinner.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe { call(container, VFIO_IOMMU_MAP_DMA, &raw mut map) }
}

/// Unmaps what lies in `len` bytes from `iova`. Returns how many bytes had been mapped, or the
/// error with how many went before it.
pub(super) fn type1_unmap(
    container: BorrowedFd<'_>,
    iova: u64,
    len: u64,
) -> Result<u64, (u64, io::Error)> {
    let mut unmap = DmaUnmap { argsz: size_of::<DmaUnmap>() as u32, flags: 0, iova, size: len };
    // SAFETY: the struct is what the request reads and writes.
    // Test: `a_wrong_descriptor_is_refused`.
    match unsafe { call(container, VFIO_IOMMU_UNMAP_DMA, &raw mut unmap) } {
        Ok(()) => Ok(unmap.size),
        // Type1 itself leaves the struct alone when it fails, and has unmapped nothing then.
        // iommufd in its place says how far it came (drivers/iommu/iommufd/vfio_compat.c).
        Err(error) => Err((if unmap.size < len { unmap.size } else { 0 }, error)),
    }
}

/// Makes an address space in an iommufd and returns its number.
pub(super) fn ioas_alloc(iommufd: BorrowedFd<'_>) -> io::Result<u32> {
    let size = size_of::<IoasAlloc>() as u32;
    let mut alloc = IoasAlloc { size, flags: 0, out_ioas_id: 0 };
    // SAFETY: the struct is what the request reads and writes.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe { call(iommufd, IOMMU_IOAS_ALLOC, &raw mut alloc) }?;
    Ok(alloc.out_ioas_id)
}

/// Asks for the address space `ioas` of an iommufd: an error where there is none.
pub(super) fn ioas_exists(iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
    let mut ranges = IovaRanges {
        size: size_of::<IovaRanges>() as u32,
        ioas_id: ioas,
        num_iovas: 0,
        reserved: 0,
        allowed_iovas: 0,
        out_iova_alignment: 0,
    };
    // SAFETY: the struct is what the request reads and writes; with no ranges asked for, the kernel
    // follows no pointer. Test: `a_wrong_descriptor_is_refused`.
    match unsafe { call(iommufd, IOMMU_IOAS_IOVA_RANGES, &raw mut ranges) } {
        // There are ranges, and no room for them was given.
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(()),
        other => other,
    }
}

/// Maps `host` at `iova`, for reading and writing.
pub(super) fn ioas_map(
    iommufd: BorrowedFd<'_>,
    ioas: u32,
    iova: u64,
    host: HostRange,
) -> io::Result<()> {
    let mut map = IoasMap {
        size: size_of::<IoasMap>() as u32,
        flags: IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
        ioas_id: ioas,
        reserved: 0,
        user_va: host.as_ptr().addr() as u64,
        length: host.len() as u64,
        iova,
    };
    // SAFETY: the struct is what the request reads and writes; as for type1 otherwise.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe { call(iommufd, IOMMU_IOAS_MAP, &raw mut map) }
}

/// Unmaps what lies in `len` bytes from `iova`. Returns how many bytes had been mapped.
pub(super) fn ioas_unmap(
    iommufd: BorrowedFd<'_>,
    ioas: u32,
    iova: u64,
    len: u64,
) -> io::Result<u64> {
    let size = size_of::<IoasUnmap>() as u32;
    let mut unmap = IoasUnmap { size, ioas_id: ioas, iova, length: len };
    // SAFETY: the struct is what the request reads and writes.
    // Test: `a_wrong_descriptor_is_refused`.
    unsafe { call(iommufd, IOMMU_IOAS_UNMAP, &raw mut unmap) }?;
    Ok(unmap.length)
}

/// Issues one request, again where a signal came first: map and unmap then did nothing yet.
///
/// # Safety
///
/// `argument` points to what the kernel reads and writes for `request`. A descriptor of another
/// kind answers ENOTTY: nobody else has these numbers (`ioctl-number.rst`).
unsafe fn call<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: *mut T) -> io::Result<()> {
    loop {
        // SAFETY: the caller vouches for the argument; the descriptor is open while borrowed.
        // Test: `a_wrong_descriptor_is_refused`.
        if unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    use crate::pinner::guest::Guest;

    /// The numbers that the C macros give, on x86-64 and on s390x alike.
    #[test]
    fn request_numbers_are_the_kernels() {
        assert_eq!(VFIO_IOMMU_GET_INFO, 0x3b70);
        assert_eq!(VFIO_IOMMU_MAP_DMA, 0x3b71);
        assert_eq!(VFIO_IOMMU_UNMAP_DMA, 0x3b72);
        assert_eq!(VFIO_IOMMU_DIRTY_PAGES, 0x3b75);
        assert_eq!(IOMMU_IOAS_ALLOC, 0x3b81);
        assert_eq!(IOMMU_IOAS_IOVA_RANGES, 0x3b84);
        assert_eq!(IOMMU_IOAS_MAP, 0x3b85);
        assert_eq!(IOMMU_IOAS_UNMAP, 0x3b86);
    }

    #[test]
    fn a_wrong_descriptor_is_refused() {
        let file = File::open("/dev/null").unwrap();
        let fd = file.as_fd();
        let guest = Guest::new(1);
        let host = guest.map().regions()[0].host();
        let enotty = |error: io::Error| assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        enotty(type1_info(fd, &mut [0; 64]).unwrap_err());
        assert_eq!(type1_is_v2(fd), None);
        enotty(type1_map(fd, 0, host).unwrap_err());
        let (unmapped, error) = type1_unmap(fd, 0, 0x1000).unwrap_err();
        assert_eq!(unmapped, 0);
        enotty(error);
        enotty(ioas_alloc(fd).unwrap_err());
        enotty(ioas_exists(fd, 1).unwrap_err());
        enotty(ioas_map(fd, 1, 0, host).unwrap_err());
        enotty(ioas_unmap(fd, 1, 0, 0x1000).unwrap_err());
    }

    #[test]
    fn an_answer_without_room_is_not_asked_for() {
        let file = File::open("/dev/null").unwrap();
        let error = type1_info(file.as_fd(), &mut [0; 23]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
