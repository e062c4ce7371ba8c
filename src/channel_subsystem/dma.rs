//! Memory as a device may address it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use vfio_ccw_pinning::{GuestMap, HostRange};
use vm_memory::FileOffset;

use crate::architecture::SubchannelStatus;
use crate::shadow::{Arena, GUEST_IOVA, PROTECTED_IOVA};

/// Why a window cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// It overlaps a window that is there.
    #[error("window {iova:#x} of {len:#x} bytes overlaps window {other:#x}: unmap that first")]
    Overlap {
        /// I/O virtual address of the new window.
        iova: u64,
        /// Its length in bytes.
        len: u64,
        /// I/O virtual address of the window in its way.
        other: u64,
    },
    /// It is empty or reaches past the end of the address space.
    #[error("window {iova:#x} of {len:#x} bytes is empty or wraps around")]
    Wraps {
        /// I/O virtual address of the new window.
        iova: u64,
        /// Its length in bytes.
        len: u64,
    },
}

bitflags::bitflags! {
    /// What programs may do with the memory of a window; the bits are those of the kernel's
    /// `VFIO_DMA_MAP_FLAG_READ` and `_WRITE`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct WindowAccess: u32 {
        /// Fetch from it: CCWs, IDAWs, data that goes to the device.
        const READ = 1;
        /// Store into it: data that comes from the device.
        const WRITE = 2;
    }
}

/// A run of I/O virtual addresses and the memory behind it.
#[derive(Clone)]
pub struct Window {
    iova: u64,
    host: HostRange,
    access: WindowAccess,
    /// The file that `host` is mapped from, and where in it, where that is known.
    file: Option<FileOffset>,
    /// Keeps `host` mapped.
    _mapping: Arc<dyn Any + Send + Sync>,
}

impl Window {
    /// A window at `iova` over `host`, which `mapping` keeps mapped. Programs may fetch and store.
    pub fn new(iova: u64, host: HostRange, mapping: Arc<dyn Any + Send + Sync>) -> Self {
        Window { iova, host, access: WindowAccess::all(), file: None, _mapping: mapping }
    }

    /// The same window, over memory that another process can map from `file`.
    pub(crate) fn with_file(mut self, file: Option<FileOffset>) -> Self {
        self.file = file;
        self
    }

    /// What another process can map.
    pub(crate) fn file(&self) -> Option<&FileOffset> {
        self.file.as_ref()
    }

    /// Whether the other one is at the same address over the same memory.
    pub(crate) fn is_same(&self, other: &Window) -> bool {
        (self.iova, self.host.as_ptr(), self.host.len(), self.access)
            == (other.iova, other.host.as_ptr(), other.host.len(), other.access)
    }

    /// The same window where programs may do only this. What else they try is a protection check.
    pub fn with_access(mut self, access: WindowAccess) -> Self {
        self.access = access;
        self
    }

    /// Its first I/O virtual address.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// The memory behind it.
    pub fn host(&self) -> HostRange {
        self.host
    }

    /// What programs may do with it.
    pub fn access(&self) -> WindowAccess {
        self.access
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window {:#x}+{:#x}", self.iova, self.host.len())
    }
}

/// The windows of one device: I/O virtual addresses to memory of this process.
#[derive(Debug, Default)]
pub struct DmaSpace {
    windows: Vec<Window>,
    /// There are windows where programs may not do everything.
    restricted: bool,
}

impl DmaSpace {
    /// The space of an in-process device: guest memory at its offset, which `mapping` keeps mapped,
    /// and a shadow arena.
    pub(crate) fn in_process(
        map: &GuestMap,
        mapping: Arc<dyn Any + Send + Sync>,
        arena: &Arena,
    ) -> Result<Self, WindowError> {
        let mut space = DmaSpace::default();
        let shadows = Window::new(arena.iova(), arena.host(), arena.mapping());
        space.map(shadows.with_file(arena.mapping().file_offset().cloned()))?;
        for region in map.regions() {
            let (iova, len) = (region.start(), region.len());
            let iova = iova.checked_add(GUEST_IOVA).ok_or(WindowError::Wraps { iova, len })?;
            let window = Window::new(iova, region.host(), mapping.clone());
            space.map(window.with_file(region.file().cloned()))?;
        }
        Ok(space)
    }

    /// Its windows, by address.
    pub(crate) fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Adds a window.
    ///
    /// # Errors
    ///
    /// It overlaps another, is empty, or wraps around.
    pub fn map(&mut self, window: Window) -> Result<(), WindowError> {
        let (iova, len) = (window.iova, window.host.len() as u64);
        let Some(last) = len.checked_sub(1).and_then(|more| iova.checked_add(more)) else {
            return Err(WindowError::Wraps { iova, len });
        };
        let at = self.windows.partition_point(|known| known.iova <= iova);
        let before = at.checked_sub(1).map(|index| &self.windows[index]);
        if let Some(before) =
            before.filter(|before| before.iova + (before.host.len() as u64 - 1) >= iova)
        {
            return Err(WindowError::Overlap { iova, len, other: before.iova });
        }
        if let Some(after) = self.windows.get(at).filter(|after| after.iova <= last) {
            return Err(WindowError::Overlap { iova, len, other: after.iova });
        }
        self.restricted |= window.access != WindowAccess::all();
        self.windows.insert(at, window);
        Ok(())
    }

    /// Whether a program may not store at `iova`, or not fetch from there. It is in a window.
    #[inline(always)]
    pub(super) fn withholds(&self, iova: u64, stores: bool) -> bool {
        self.restricted && self.is_withheld(iova, stores)
    }

    #[cold]
    fn is_withheld(&self, iova: u64, stores: bool) -> bool {
        let wanted = if stores { WindowAccess::WRITE } else { WindowAccess::READ };
        self.find(iova).is_some_and(|(window, _)| !window.access.contains(wanted))
    }

    /// The bytes from `iova` to the end of its window, at most `most`; `None` where nothing is mapped.
    #[inline(always)]
    pub fn bytes_from(&self, iova: u64, most: usize) -> Option<HostRange> {
        let (window, offset) = self.find(iova)?;
        window.host.part(offset, most.min(window.host.len() - offset))
    }

    /// The bytes up to and with `iova` from the start of its window, at most `most`; `None` where
    /// nothing is mapped.
    #[inline]
    pub fn bytes_up_to(&self, iova: u64, most: usize) -> Option<HostRange> {
        let (window, offset) = self.find(iova)?;
        let len = most.min(offset + 1);
        window.host.part(offset + 1 - len, len)
    }

    /// What a program has done that got to `iova`, where nothing is mapped.
    #[cold]
    pub(super) fn fault(iova: u64) -> SubchannelStatus {
        if iova & !0xfff == PROTECTED_IOVA {
            SubchannelStatus::PROTECTION_CHECK
        } else {
            SubchannelStatus::PROGRAM_CHECK
        }
    }

    /// Loads a doubleword in one access; `None` where it is not mapped or not aligned.
    #[inline]
    pub fn load_doubleword(&self, iova: u64) -> Option<[u8; 8]> {
        let (window, offset) = self.find(iova)?;
        window.host.load_doubleword(offset)
    }

    /// Loads a word in one access; `None` where it is not mapped or not aligned.
    #[inline]
    pub fn load_word(&self, iova: u64) -> Option<[u8; 4]> {
        let (window, offset) = self.find(iova)?;
        window.host.load_word(offset)
    }

    /// The window that holds `iova`, or none.
    #[inline(always)]
    pub(super) fn near(&self, iova: u64) -> Near {
        match self.find(iova) {
            Some((window, _)) => Near { iova: window.iova, host: Some(window.host) },
            None => Near { iova: 0, host: None },
        }
    }

    #[inline(always)]
    fn find(&self, iova: u64) -> Option<(&Window, usize)> {
        let after = self.windows.partition_point(|window| window.iova <= iova);
        let window = self.windows.get(after.checked_sub(1)?)?;
        let offset = iova - window.iova;
        (offset < window.host.len() as u64).then_some((window, offset as usize))
    }
}

/// The window that the next address is probably in, found without a search.
#[derive(Clone, Copy, Debug)]
pub(super) struct Near {
    iova: u64,
    host: Option<HostRange>,
}

impl Near {
    /// [`DmaSpace::load_doubleword`] from this window; `None` also where it is in another.
    #[inline]
    pub(super) fn load_doubleword(&self, iova: u64) -> Option<[u8; 8]> {
        let offset = usize::try_from(iova.wrapping_sub(self.iova)).ok()?;
        self.host.as_ref()?.load_doubleword(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn map() -> Arc<GuestMap> {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[
            (GuestAddress(0), 0x2000),
            (GuestAddress(0x4000), 0x1000),
        ]);
        Arc::new(GuestMap::new(Arc::new(memory.unwrap())).unwrap())
    }

    #[test]
    fn guest_memory_and_arena_are_there_and_nothing_else() {
        let (map, arena) = (map(), Arena::new(0, 64).unwrap());
        let space = DmaSpace::in_process(&map, map.clone(), &arena).unwrap();
        map.write(0x1000, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(space.load_doubleword(GUEST_IOVA + 0x1000), Some([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(space.load_word(GUEST_IOVA + 0x1004), Some([5, 6, 7, 8]));
        assert_eq!(space.bytes_from(GUEST_IOVA + 0x1ff0, 64).map(|range| range.len()), Some(16));
        assert!(space.bytes_from(arena.iova(), 8).is_some());
        assert_eq!(space.bytes_up_to(GUEST_IOVA + 9, 64).map(|range| range.len()), Some(10));
        assert_eq!(space.bytes_up_to(GUEST_IOVA + 0x1fff, 64).map(|range| range.len()), Some(64));
        for nowhere in
            [0, 0x1000, GUEST_IOVA - 1, GUEST_IOVA + 0x2000, GUEST_IOVA + 0x5000, u64::MAX]
        {
            assert!(space.bytes_from(nowhere, 1).is_none(), "{nowhere:#x}");
        }
    }

    #[test]
    fn overlaps_and_wraps_are_refused() {
        let map = map();
        let host = map.regions()[0].host();
        let mut space = DmaSpace::default();
        space.map(Window::new(0x4000, host, map.clone())).unwrap();
        for iova in [0x3000, 0x4000, 0x5000, 0x5fff] {
            let error = space.map(Window::new(iova, host, map.clone())).unwrap_err();
            assert!(
                matches!(error, WindowError::Overlap { other: 0x4000, .. }),
                "{iova:#x}: {error}"
            );
        }
        space.map(Window::new(0x6000, host, map.clone())).unwrap();
        space.map(Window::new(0x2000, host, map.clone())).unwrap();
        assert!(matches!(
            space.map(Window::new(u64::MAX - 0x100, host, map.clone())),
            Err(WindowError::Wraps { .. })
        ));
        let empty = host.part(0, 0).unwrap();
        assert!(matches!(
            space.map(Window::new(0x9000, empty, map.clone())),
            Err(WindowError::Wraps { .. })
        ));
    }
}
