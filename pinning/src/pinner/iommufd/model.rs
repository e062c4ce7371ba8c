//! An address space as `iopt_map_user_pages()` and `iopt_unmap_iova_range()` of
//! `drivers/iommu/iommufd/io_pagetable.c` make it: the same checks in the same order.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::pinner::{Iommu, UnmapError};
use crate::{FRAME, HostRange};

/// Shared with the test, which looks inside and meddles.
#[derive(Clone, Debug)]
pub(in crate::pinner) struct Model {
    state: Arc<Mutex<State>>,
    /// Whether a failed unmap says how far it came: as in type1's place, not by its own ioctl.
    says_how_far: bool,
}

#[derive(Debug)]
struct State {
    /// Length by IOVA.
    windows: BTreeMap<u64, u64>,
    /// Bytes that may still be locked.
    memlock_left: Option<u64>,
    /// First IOVA that no device reaches.
    reach: u64,
}

impl Model {
    pub(in crate::pinner) fn new(memlock_left: Option<u64>) -> Self {
        let state = State { windows: BTreeMap::new(), memlock_left, reach: u64::MAX };
        Model { state: Arc::new(Mutex::new(state)), says_how_far: false }
    }

    /// The address space behind type1's ioctls (`drivers/iommu/iommufd/vfio_compat.c`).
    pub(in crate::pinner) fn in_place_of_type1() -> Self {
        Model { says_how_far: true, ..Model::new(None) }
    }

    pub(in crate::pinner) fn windows(&self) -> BTreeMap<u64, u64> {
        self.state.lock().windows.clone()
    }

    /// Another user of the address space makes a window.
    pub(in crate::pinner) fn insert(&self, iova: u64, len: u64) {
        self.state.lock().windows.insert(iova, len);
    }

    /// Another user of the address space takes one away.
    pub(in crate::pinner) fn remove(&self, iova: u64) {
        self.state.lock().windows.remove(&iova).expect("a window there");
    }

    /// A device is attached that reaches no IOVA from `reach` on.
    pub(in crate::pinner) fn narrow(&self, reach: u64) {
        self.state.lock().reach = reach;
    }
}

impl State {
    /// The lowest window that has a byte in `first..=last`.
    fn lowest(&self, first: u64, last: u64) -> Option<(u64, u64)> {
        let before = self.windows.range(..=first).next_back().map(|(iova, len)| (*iova, *len));
        before
            .filter(|(iova, len)| first - iova < *len)
            .or_else(|| self.windows.range(first..=last).next().map(|(iova, len)| (*iova, *len)))
    }

    fn map(&mut self, iova: u64, address: u64, len: u64) -> Result<(), i32> {
        // iommufd_ioas_map(), iopt_alloc_pages()
        if iova == u64::MAX || len == u64::MAX || address.checked_add(len).is_none() {
            return Err(libc::EOVERFLOW);
        }
        // iopt_alloc_area_pages(), then iopt_check_iova()
        if len == 0 || !(len | iova).is_multiple_of(FRAME) {
            return Err(libc::EINVAL);
        }
        let last = iova.checked_add(len - 1).ok_or(libc::EOVERFLOW)?;
        if last >= self.reach {
            return Err(libc::EINVAL);
        }
        if self.lowest(iova, last).is_some() {
            return Err(libc::EEXIST);
        }
        // iopt_insert_area()
        if !address.is_multiple_of(FRAME) {
            return Err(libc::EINVAL);
        }
        // iopt_fill_domains_pages()
        if let Some(left) = &mut self.memlock_left {
            *left = left.checked_sub(len).ok_or(libc::ENOMEM)?;
        }
        self.windows.insert(iova, len);
        Ok(())
    }

    /// The error, if any, and how many bytes went before it.
    fn unmap(&mut self, iova: u64, len: u64) -> (u64, Result<(), i32>) {
        if iova == u64::MAX || len == u64::MAX {
            return (0, Err(libc::EOVERFLOW));
        }
        if len == 0 {
            return (0, Err(libc::EINVAL));
        }
        let Some(last) = iova.checked_add(len - 1) else {
            return (0, Err(libc::EOVERFLOW));
        };
        let mut unmapped = 0;
        while let Some((start, len)) = self.lowest(iova, last) {
            if start < iova || start + (len - 1) > last {
                return (unmapped, Err(libc::ENOENT));
            }
            self.windows.remove(&start);
            unmapped += len;
            if let Some(left) = &mut self.memlock_left {
                *left += len;
            }
        }
        (unmapped, if unmapped > 0 { Ok(()) } else { Err(libc::ENOENT) })
    }
}

impl Iommu for Model {
    fn map(&self, iova: u64, host: HostRange) -> io::Result<()> {
        let (address, len) = (host.as_ptr().addr() as u64, host.len() as u64);
        self.state.lock().map(iova, address, len).map_err(io::Error::from_raw_os_error)
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<u64, UnmapError> {
        let (unmapped, result) = self.state.lock().unmap(iova, len);
        result.map(|()| unmapped).map_err(|errno| UnmapError {
            unmapped: if self.says_how_far { unmapped } else { 0 },
            source: io::Error::from_raw_os_error(errno),
        })
    }

    fn remedy(&self, errno: i32) -> &'static str {
        super::remedy(errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_answers_as_the_kernel_does() {
        let mut state = State { windows: BTreeMap::new(), memlock_left: None, reach: 1 << 40 };
        assert_eq!(state.map(0, FRAME, 0), Err(libc::EINVAL), "nothing");
        assert_eq!(state.map(0x800, FRAME, FRAME), Err(libc::EINVAL), "IOVA not on a page");
        assert_eq!(state.map(0, 0x800, FRAME), Err(libc::EINVAL), "address not on a page");
        assert_eq!(state.map(u64::MAX - 0xfff, FRAME, 2 * FRAME), Err(libc::EOVERFLOW), "wraps");
        assert_eq!(state.map(0, u64::MAX - 0xfff, FRAME), Err(libc::EOVERFLOW), "address wraps");
        assert_eq!(state.map(1 << 40, FRAME, FRAME), Err(libc::EINVAL), "no device reaches it");
        for (iova, pages) in [(0x4000, 4), (0x9000, 1), (0xa000, 1)] {
            assert_eq!(state.map(iova, FRAME, pages * FRAME), Ok(()));
        }
        for (iova, pages) in [(0x4000, 4), (0x3000, 2), (0x7000, 1), (0x3000, 8)] {
            assert_eq!(state.map(iova, FRAME, pages * FRAME), Err(libc::EEXIST), "{iova:#x}");
        }
        assert_eq!(state.unmap(0, FRAME), (0, Err(libc::ENOENT)), "nothing there");
        assert_eq!(state.unmap(0, 0), (0, Err(libc::EINVAL)));
        assert_eq!(state.unmap(u64::MAX - 0xfff, 2 * FRAME), (0, Err(libc::EOVERFLOW)));
        assert_eq!(state.unmap(0x5000, 3 * FRAME), (0, Err(libc::ENOENT)), "cuts the first");
        assert_eq!(state.windows.len(), 3);
        assert_eq!(state.unmap(0x8000, 3 * FRAME), (2 * FRAME, Ok(())), "with holes");
        assert_eq!(state.map(0x3000, FRAME, FRAME), Ok(()));
        assert_eq!(state.unmap(0x3000, 2 * FRAME), (FRAME, Err(libc::ENOENT)), "cuts the last");
        assert_eq!(state.windows, BTreeMap::from([(0x4000, 4 * FRAME)]), "the one before it went");
    }
}
