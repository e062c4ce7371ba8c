//! A type1 container of version 2 as `vfio_dma_do_map()` and `vfio_dma_do_unmap()` of
//! `drivers/vfio/vfio_iommu_type1.c` make it: the same checks in the same order.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::pinner::{Iommu, UnmapError};
use crate::{FRAME, HostRange};

/// Shared with the test, which looks inside and meddles.
#[derive(Clone, Debug)]
pub(in crate::pinner) struct Model(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Length by IOVA.
    windows: BTreeMap<u64, u64>,
    /// `dma_avail`.
    windows_left: u32,
    /// Bytes that RLIMIT_MEMLOCK still allows; only where a device has an IOMMU of its own.
    memlock_left: Option<u64>,
    /// Unmap calls so far.
    unmaps: usize,
}

impl Model {
    pub(in crate::pinner) fn new(windows_left: u32, memlock_left: Option<u64>) -> Self {
        let windows = BTreeMap::new();
        Model(Arc::new(Mutex::new(State { windows, windows_left, memlock_left, unmaps: 0 })))
    }

    pub(in crate::pinner) fn windows(&self) -> BTreeMap<u64, u64> {
        self.0.lock().windows.clone()
    }

    pub(in crate::pinner) fn unmaps(&self) -> usize {
        self.0.lock().unmaps
    }

    /// Another user of the container makes a window.
    pub(in crate::pinner) fn insert(&self, iova: u64, len: u64) {
        self.0.lock().windows.insert(iova, len);
    }

    /// Another user of the container takes one away.
    pub(in crate::pinner) fn remove(&self, iova: u64) {
        self.0.lock().windows.remove(&iova).expect("a window there");
    }
}

impl State {
    /// The window that has byte `iova` in it.
    fn window_over(&self, iova: u64) -> Option<(u64, u64)> {
        let (&start, &len) = self.windows.range(..=iova).next_back()?;
        (iova - start < len).then_some((start, len))
    }

    fn map(&mut self, iova: u64, vaddr: u64, len: u64) -> Result<(), i32> {
        let last = iova.checked_add(len.wrapping_sub(1)).ok_or(libc::EINVAL)?;
        vaddr.checked_add(len.wrapping_sub(1)).ok_or(libc::EINVAL)?;
        if len == 0 || !(iova | vaddr | len).is_multiple_of(FRAME) {
            return Err(libc::EINVAL);
        }
        if self.window_over(iova).is_some() || self.windows.range(iova..=last).next().is_some() {
            return Err(libc::EEXIST);
        }
        if self.windows_left == 0 {
            return Err(libc::ENOSPC);
        }
        if let Some(left) = &mut self.memlock_left {
            *left = left.checked_sub(len).ok_or(libc::ENOMEM)?;
        }
        self.windows_left -= 1;
        self.windows.insert(iova, len);
        Ok(())
    }

    fn unmap(&mut self, iova: u64, len: u64) -> Result<u64, i32> {
        self.unmaps += 1;
        if len == 0 || !(iova | len).is_multiple_of(FRAME) {
            return Err(libc::EINVAL);
        }
        let last = iova.checked_add(len - 1).ok_or(libc::EINVAL)?;
        let cut_at_start = self.window_over(iova).is_some_and(|(start, _)| start != iova);
        let cut_at_end =
            self.window_over(last).is_some_and(|(start, len)| start + (len - 1) != last);
        if cut_at_start || cut_at_end {
            return Err(libc::EINVAL);
        }
        let mut unmapped = 0;
        while let Some((&start, &len)) = self.windows.range(iova..=last).next() {
            self.windows.remove(&start);
            self.windows_left += 1;
            unmapped += len;
        }
        if let Some(left) = &mut self.memlock_left {
            *left += unmapped;
        }
        Ok(unmapped)
    }
}

impl Iommu for Model {
    fn map(&self, iova: u64, host: HostRange) -> io::Result<()> {
        let (vaddr, len) = (host.as_ptr().addr() as u64, host.len() as u64);
        self.0.lock().map(iova, vaddr, len).map_err(io::Error::from_raw_os_error)
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<u64, UnmapError> {
        let unmapped = self.0.lock().unmap(iova, len);
        unmapped.map_err(|errno| io::Error::from_raw_os_error(errno).into())
    }

    fn remedy(&self, errno: i32) -> &'static str {
        super::remedy(errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State { windows: BTreeMap::new(), windows_left: 3, memlock_left: None, unmaps: 0 }
    }

    #[test]
    fn the_model_refuses_what_the_kernel_refuses() {
        let mut state = state();
        assert_eq!(state.map(0, FRAME, 0), Err(libc::EINVAL), "nothing");
        assert_eq!(state.map(0x800, FRAME, FRAME), Err(libc::EINVAL), "IOVA not on a page");
        assert_eq!(state.map(0, 0x800, FRAME), Err(libc::EINVAL), "address not on a page");
        assert_eq!(state.map(0, FRAME, 0x800), Err(libc::EINVAL), "not whole pages");
        assert_eq!(state.map(u64::MAX - 0xfff, FRAME, 2 * FRAME), Err(libc::EINVAL), "wraps");
        assert_eq!(state.map(u64::MAX - 0xfff, FRAME, FRAME), Ok(()), "the last page there is");
        assert_eq!(state.map(0x4000, FRAME, 4 * FRAME), Ok(()));
        for (iova, pages) in [(0x4000, 4), (0x3000, 2), (0x7000, 1), (0x7000, 2), (0x3000, 8)] {
            assert_eq!(state.map(iova, FRAME, pages * FRAME), Err(libc::EEXIST), "{iova:#x}");
        }
        assert_eq!(state.map(0x3000, FRAME, FRAME), Ok(()), "up to the next one");
        assert_eq!(state.map(0x9000, FRAME, FRAME), Err(libc::ENOSPC));
        assert_eq!(state.unmap(0x3000, 2 * FRAME), Err(libc::EINVAL), "cuts the second");
        assert_eq!(state.unmap(0x5000, 3 * FRAME), Err(libc::EINVAL), "cuts the first");
        assert_eq!(state.unmap(0x3000, 0), Err(libc::EINVAL));
        assert_eq!(state.unmap(0x3001, FRAME), Err(libc::EINVAL));
        assert_eq!(state.unmap(u64::MAX - 0xfff, 2 * FRAME), Err(libc::EINVAL));
        assert_eq!(state.windows.len(), 3, "a refusal takes nothing away");
        assert_eq!(state.unmap(0, 0x10_0000), Ok(5 * FRAME), "all that lies in the range");
        assert_eq!(state.unmap(0, 0x10_0000), Ok(0), "nothing is no error");
        assert_eq!(state.windows_left, 2);
    }
}
