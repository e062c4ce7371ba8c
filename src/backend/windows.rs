//! The memory of a VFIO device, under the rules of the kernel's type1v2 containers.

use std::collections::BTreeMap;

use crate::channel_subsystem::{DmaSpace, Window};

use super::Errno;

/// Windows are made of these (`VFIO_IOMMU_TYPE1_INFO`'s smallest page size).
const PAGE: u64 = 4096;

/// Windows that there may be (the kernel's `dma_entry_limit`).
const MOST_WINDOWS: usize = 65_535;

/// The windows of one device, each as it was mapped.
#[derive(Debug, Default)]
pub(super) struct Windows {
    by_iova: BTreeMap<u64, Window>,
}

impl Windows {
    /// `VFIO_IOMMU_MAP_DMA`, in the kernel's order of checks (`vfio_dma_do_map`).
    pub(super) fn map(&mut self, window: Window) -> Result<(), Errno> {
        let (iova, host) = (window.iova(), window.host());
        let len = host.len() as u64;
        let bits = iova | len | host.as_ptr().addr() as u64;
        if window.access().is_empty() || !bits.is_multiple_of(PAGE) {
            return Err(Errno::INVALID);
        }
        let last = last_of(iova, len)?;
        if self.last_up_to(last).is_some_and(|other| end_of(other) >= iova) {
            return Err(Errno::EXISTS);
        }
        if self.by_iova.len() >= MOST_WINDOWS {
            return Err(Errno::NO_SPACE);
        }
        self.by_iova.insert(iova, window);
        Ok(())
    }

    /// Whether the windows from `iova` on for `len` bytes may be unmapped, and whether there are any.
    /// None may be cut in two (`vfio_dma_do_unmap`).
    pub(super) fn may_unmap(&self, iova: u64, len: u64) -> Result<bool, Errno> {
        if !(iova | len).is_multiple_of(PAGE) {
            return Err(Errno::INVALID);
        }
        let last = last_of(iova, len)?;
        let cut_before = self.by_iova.range(..iova).next_back();
        if cut_before.is_some_and(|(_, window)| end_of(window) >= iova) {
            return Err(Errno::INVALID);
        }
        let Some(window) = self.last_up_to(last).filter(|window| window.iova() >= iova) else {
            return Ok(false);
        };
        if end_of(window) > last { Err(Errno::INVALID) } else { Ok(true) }
    }

    /// Unmaps what lies there; the bytes that were mapped.
    pub(super) fn unmap(&mut self, iova: u64, len: u64) -> Result<u64, Errno> {
        self.may_unmap(iova, len)?;
        let mut bytes = 0;
        while let Some((&at, window)) = self.by_iova.range(iova..=last_of(iova, len)?).next() {
            bytes += window.host().len() as u64;
            self.by_iova.remove(&at);
        }
        Ok(bytes)
    }

    /// The windows as programs see them.
    pub(super) fn space(&self) -> DmaSpace {
        let mut space = DmaSpace::default();
        for window in self.by_iova.values() {
            let mapped = space.map(window.clone());
            debug_assert!(mapped.is_ok(), "none overlaps another");
        }
        space
    }

    /// The window with the highest address that is not above `last`.
    fn last_up_to(&self, last: u64) -> Option<&Window> {
        self.by_iova.range(..=last).next_back().map(|(_, window)| window)
    }
}

/// The last address of a window; none is empty, and none wraps around.
fn end_of(window: &Window) -> u64 {
    window.iova() + (window.host().len() as u64 - 1)
}

/// The last of `len` addresses from `iova` on.
fn last_of(iova: u64, len: u64) -> Result<u64, Errno> {
    len.checked_sub(1).and_then(|more| iova.checked_add(more)).ok_or(Errno::INVALID)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel_subsystem::WindowAccess;
    use std::sync::Arc;
    use vfio_ccw_pinning::GuestMap;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    const PAGES: usize = 8;

    /// A window of `len` bytes at `iova`, over memory from `offset` on.
    fn window(iova: u64, offset: usize, len: usize) -> Window {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), PAGES << 12)]);
        let map = Arc::new(GuestMap::new(Arc::new(memory.unwrap())).unwrap());
        Window::new(iova, map.regions()[0].host().part(offset, len).unwrap(), map)
    }

    #[test]
    fn mapping_follows_type1() {
        let mut windows = Windows::default();
        windows.map(window(0x10_0000, 0, 0x4000)).unwrap();
        for iova in [0xf_f000, 0x10_0000, 0x10_3000] {
            assert_eq!(windows.map(window(iova, 0, 0x2000)), Err(Errno::EXISTS), "{iova:#x}");
        }
        let none = window(0x20_0000, 0, 0x1000).with_access(WindowAccess::empty());
        for (case, wrong) in [
            ("iova", window(0x20_0010, 0, 0x1000)),
            ("size", window(0x20_0000, 0, 0x800)),
            ("address", window(0x20_0000, 16, 0x1000)),
            ("empty", window(0x20_0000, 0, 0)),
            ("wraps", window(u64::MAX - 0xfff, 0, 0x2000)),
            ("no access", none),
        ] {
            assert_eq!(windows.map(wrong), Err(Errno::INVALID), "{case}");
        }
        for iova in [0, 0x10_4000, 0xf_f000, 1 << 32, u64::MAX - 0xfff] {
            assert_eq!(windows.map(window(iova, 0, 0x1000)), Ok(()), "{iova:#x}");
        }
        assert!(windows.space().bytes_from(u64::MAX, 8).is_some());
        assert!(windows.space().bytes_from(0x20_0000, 8).is_none());
    }

    #[test]
    fn unmapping_takes_whole_windows() {
        let mut windows = Windows::default();
        windows.map(window(0x1_0000, 0, 0x2000)).unwrap();
        windows.map(window(0x1_2000, 0, 0x1000)).unwrap();
        windows.map(window(0x1_4000, 0, 0x2000)).unwrap();
        for (iova, len) in [
            (0x1_0000, 0x1000),
            (0x1_1000, 0x1000),
            (0x1_1000, 0x8000),
            (0x1_0000, 0x5000),
            (0x1_0000, 0),
            (0x1_0000, 0x800),
            (0x1_0800, 0x1000),
            (u64::MAX - 0xfff, 0x2000),
        ] {
            assert_eq!(windows.unmap(iova, len), Err(Errno::INVALID), "{iova:#x}+{len:#x}");
        }
        assert_eq!(windows.unmap(0x1_3000, 0x1000), Ok(0), "nothing is there");
        assert_eq!(windows.unmap(0xf000, 0x5000), Ok(0x3000));
        assert_eq!(windows.unmap(0, 1 << 40), Ok(0x2000));
        assert_eq!(windows.unmap(0, 1 << 40), Ok(0));
    }

    #[test]
    fn there_is_an_end_to_windows() {
        let mut windows = Windows::default();
        let one = window(0, 0, 0x1000);
        let at = |iova| Window::new(iova, one.host(), Arc::new(one.clone()));
        for index in 0..MOST_WINDOWS as u64 {
            windows.map(at(index << 12)).unwrap();
        }
        assert_eq!(windows.map(at(1 << 40)), Err(Errno::NO_SPACE));
        assert_eq!(windows.unmap(0, 0x1000), Ok(0x1000));
        assert_eq!(windows.map(at(1 << 40)), Ok(()));
    }
}
