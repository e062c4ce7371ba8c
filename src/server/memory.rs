//! Memory of a client, mapped as it hands it over.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_ccw_pinning::HostRange;

use crate::backend::Errno;
use crate::channel_subsystem::{Window, WindowAccess};
use crate::confinement::truncation::Guarded;

/// File systems whose pages others bring: FUSE, NFS, SMB (three names), 9P, Ceph, AFS (`include/uapi/linux/magic.h`).
const ELSEWHERE: [u32; 8] =
    [0x6573_5546, 0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400, 0x5346_414f];

/// Memory of a client's that is mapped here, for as long as this lives.
#[derive(Debug)]
pub(super) struct Mapped {
    /// None once it is about to be unmapped.
    guard: Option<Guarded>,
    host: HostRange,
}

impl Mapped {
    /// Maps `len` bytes of `file` from `offset` on, no more than that, for what `access` says. The descriptor
    /// is not kept.
    ///
    /// # Errors
    ///
    /// `EINVAL`: it is no file in memory or on a disk of this machine, or not as long as that; else what the system says:
    /// `EACCES` where the descriptor does not allow it, `ENOMEM` where there are too many.
    pub(super) fn new(
        file: &OwnedFd,
        offset: u64,
        len: u64,
        access: WindowAccess,
    ) -> Result<Self, Errno> {
        let stat = fstat(file).map_err(errno)?;
        // Where a page comes from another process, or another machine, touching it waits for that.
        let kind = fstatfs(file).map_err(errno)?.f_type as u32;
        if ELSEWHERE.contains(&kind) {
            return Err(Errno::INVALID);
        }
        let end = offset.checked_add(len).ok_or(Errno::INVALID)?;
        // Devices and dma-bufs would bring memory whose like is not known here.
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file || u64::try_from(stat.st_size).map_or(true, |size| end > size) {
            return Err(Errno::INVALID);
        }
        let size = usize::try_from(len).map_err(|_| Errno::INVALID)?;
        let is_writable = access.contains(WindowAccess::WRITE);
        let protection =
            if is_writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping, at an address that the kernel chooses. Test: `what_is_mapped_is_shared`.
        let start = unsafe {
            mmap(null_mut(), size, protection, MapFlags::SHARED | MapFlags::NORESERVE, file, offset)
        };
        let start = NonNull::new(start.map_err(errno)?.cast()).ok_or(Errno(libc::ENOMEM))?;
        // SAFETY: mapped until this is dropped, and windows hold this. What may not be written is in windows
        // only that say so, and is not. Test: `what_is_read_only_stays_so`.
        let host = unsafe { HostRange::new(start, size) };
        Ok(Mapped { guard: Some(Guarded::register(start, size, is_writable)), host })
    }

    /// The bytes.
    pub(super) fn host(&self) -> HostRange {
        self.host
    }

    /// Whether its file has become shorter: what is gone reads as zeros.
    pub(super) fn is_broken(&self) -> bool {
        self.guard.as_ref().is_some_and(Guarded::is_broken)
    }

    /// A window over all of it.
    pub(super) fn window(self: &Arc<Self>, iova: u64, access: WindowAccess) -> Window {
        Window::new(iova, self.host, self.clone()).with_access(access)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // First: nobody guards what is not mapped any more.
        self.guard = None;
        // SAFETY: mapped by `new`, unmapped once, and nobody has a window over it any more, as windows hold
        // this. Test: `what_is_mapped_is_shared`.
        let unmapped = unsafe { munmap(self.host.as_ptr().cast(), self.host.len()) };
        debug_assert!(unmapped.is_ok(), "it is a whole mapping");
    }
}

/// Whether a file cannot become shorter any more.
pub(super) fn is_sealed(file: &impl AsFd) -> bool {
    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno(error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const PAGE: u64 = 4096;

    fn memfd(pages: u64) -> OwnedFd {
        let memfd = memfd_create("client", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memfd, pages * PAGE).unwrap();
        memfd
    }

    #[test]
    fn what_is_mapped_is_shared() {
        let memfd = memfd(4);
        let mapped = Mapped::new(&memfd, PAGE, 2 * PAGE, WindowAccess::all()).unwrap();
        assert!(mapped.host().store_doubleword(8, *b"written!"));
        let file = File::from(memfd);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, PAGE + 8).unwrap();
        assert_eq!(&bytes, b"written!");
        assert_eq!(mapped.host().len() as u64, 2 * PAGE);
        assert!(!mapped.is_broken());
    }

    #[test]
    fn what_is_read_only_stays_so() {
        let memfd = memfd(1);
        let mapped = Arc::new(Mapped::new(&memfd, 0, PAGE, WindowAccess::READ).unwrap());
        assert_eq!(mapped.window(0, WindowAccess::READ).access(), WindowAccess::READ);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = format!("{:x}-", mapped.host().as_ptr().addr());
        let line = maps.lines().find(|line| line.trim_start_matches('0').starts_with(&start));
        assert!(line.unwrap().contains(" r--s "), "{line:?}");
    }

    #[test]
    fn more_than_there_is_cannot_be_mapped_nor_what_is_no_file() {
        let two = memfd(2);
        let mapped = |file: &OwnedFd, offset, len| {
            Mapped::new(file, offset, len, WindowAccess::all()).map(drop)
        };
        assert_eq!(mapped(&two, 0, 3 * PAGE), Err(Errno::INVALID));
        assert_eq!(mapped(&two, PAGE, 2 * PAGE), Err(Errno::INVALID));
        assert_eq!(mapped(&two, u64::MAX, PAGE), Err(Errno::INVALID));
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert_eq!(mapped(&null.into(), 0, PAGE), Err(Errno::INVALID));
        let read_only = File::open("/proc/self/exe").unwrap();
        assert_eq!(mapped(&read_only.into(), 0, PAGE), Err(Errno(libc::EACCES)));
    }

    #[test]
    fn only_a_sealed_file_cannot_become_shorter() {
        let memfd = memfd_create("lane", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(!is_sealed(&memfd));
        rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK).unwrap();
        assert!(is_sealed(&memfd));
        assert!(!is_sealed(&File::open("/dev/null").unwrap()));
    }
}
