//! Guest memory regions: guest absolute address to host address and frame number.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::{FRAME, FRAME_SHIFT, HostRange};

/// Why a memory layout cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// A region does not start or end on a frame, in guest or host addresses.
    #[error(
        "guest region {start:#x} of {len:#x} bytes is not on 4 KiB frames: align its start, size and mapping"
    )]
    Unaligned {
        /// Guest address of the region.
        start: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A region has no host mapping.
    #[error(
        "guest region {start:#x} has no address in this process: only mapped regions can be served"
    )]
    NotMapped {
        /// Guest address of the region.
        start: u64,
    },
    /// There are more frames than frame numbers.
    #[error(
        "guest memory has {frames} frames of 4 KiB: at most {} (16 TiB) can be served",
        u32::MAX
    )]
    TooLarge {
        /// Frames in all regions.
        frames: u64,
    },
    /// There is no memory.
    #[error("guest memory has no regions: add memory before devices")]
    Empty,
}

/// One contiguous run of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    start: u64,
    len: u64,
    host: HostRange,
    first_frame: u32,
}

impl Region {
    /// Guest absolute address of the first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Length in bytes, a multiple of [`FRAME`].
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: empty regions are not kept.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes in this process.
    pub fn host(&self) -> HostRange {
        self.host
    }

    /// Guest address behind its last byte.
    #[inline]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// Number of the frame that holds guest address `address`, which is in the region.
    #[inline]
    pub fn frame(&self, address: u64) -> u32 {
        self.first_frame + ((address - self.start) >> FRAME_SHIFT) as u32
    }

    fn offset(&self, address: u64) -> Option<u64> {
        address.checked_sub(self.start).filter(|offset| *offset < self.len)
    }
}

/// A snapshot of the VMM's guest memory. Cheap to share, never changed; it keeps the mappings alive.
pub struct GuestMap {
    regions: Box<[Region]>,
    frames: u32,
    _mappings: Arc<dyn Any + Send + Sync>,
}

impl GuestMap {
    /// Takes the regions of `memory`, and a reference to it so that they stay mapped.
    ///
    /// A VMM whose memory is behind `GuestMemoryAtomic` passes `atomic.memory().into_inner()`.
    ///
    /// # Errors
    ///
    /// See [`MapError`]: unaligned, unmapped, too many frames, none at all.
    pub fn new<M>(memory: Arc<M>) -> Result<Self, MapError>
    where
        M: GuestMemoryBackend + Send + Sync + 'static,
    {
        let mut regions = Vec::with_capacity(memory.num_regions());
        let mut frames = 0u64;
        for region in memory.iter() {
            let (start, len) = (region.start_addr().raw_value(), region.len());
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .ok()
                .and_then(NonNull::new)
                .ok_or(MapError::NotMapped { start })?;
            if !(start | len | host.as_ptr().addr() as u64).is_multiple_of(FRAME) {
                return Err(MapError::Unaligned { start, len });
            }
            let first_frame = u32::try_from(frames).map_err(|_| MapError::TooLarge { frames })?;
            // SAFETY: the region stays mapped while `memory` lives, which `_mappings` holds for as
            // long as this map; ranges are handed out only by borrowing it or with a clone of its
            // Arc. Test: `addresses_resolve_inside_regions_only`.
            let host = unsafe { HostRange::new(host, len as usize) };
            regions.push(Region { start, len, host, first_frame });
            frames += len >> FRAME_SHIFT;
        }
        let frames = u32::try_from(frames).map_err(|_| MapError::TooLarge { frames })?;
        if frames == 0 {
            return Err(MapError::Empty);
        }
        regions.sort_by_key(|region| region.start);
        Ok(GuestMap { regions: regions.into(), frames, _mappings: memory })
    }

    /// Regions in ascending order of address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Frames in all regions.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Bytes in all regions.
    pub fn bytes(&self) -> u64 {
        u64::from(self.frames) << FRAME_SHIFT
    }

    /// The region that holds `address`.
    #[inline]
    pub fn region(&self, address: u64) -> Option<&Region> {
        // Most guests have one or two regions: the first test usually decides.
        let first = &self.regions[0];
        if first.offset(address).is_some() {
            return Some(first);
        }
        let after = self.regions.partition_point(|region| region.start <= address);
        let region = self.regions.get(after.checked_sub(1)?)?;
        region.offset(address).map(|_| region)
    }

    /// Frame number of the frame that holds `address`.
    #[inline]
    pub fn frame(&self, address: u64) -> Option<u32> {
        Some(self.region(address)?.frame(address))
    }

    /// Guest address of a frame, the inverse of [`GuestMap::frame`].
    pub fn frame_address(&self, frame: u32) -> Option<u64> {
        let region = self.region_of_frame(frame)?;
        Some(region.start + (u64::from(frame - region.first_frame) << FRAME_SHIFT))
    }

    /// The bytes of `count` adjacent frames in this process; `None` where they are not in one region.
    pub fn frames_host(&self, first: u32, count: u32) -> Option<HostRange> {
        let region = self.region_of_frame(first)?;
        let offset = u64::from(first - region.first_frame) << FRAME_SHIFT;
        region.host.part(offset as usize, (u64::from(count) << FRAME_SHIFT) as usize)
    }

    /// The bytes from `address` to the end of its region, at most `most`; `None` outside memory.
    #[inline]
    pub fn bytes_from(&self, address: u64, most: usize) -> Option<HostRange> {
        let region = self.region(address)?;
        let offset = (address - region.start) as usize;
        region.host.part(offset, most.min(region.host.len() - offset))
    }

    /// Loads a doubleword in one access; `None` outside memory or off a doubleword boundary.
    #[inline]
    pub fn load_doubleword(&self, address: u64) -> Option<[u8; 8]> {
        let region = self.region(address)?;
        region.host.load_doubleword((address - region.start) as usize)
    }

    /// Loads a word in one access; `None` outside memory or off a word boundary.
    #[inline]
    pub fn load_word(&self, address: u64) -> Option<[u8; 4]> {
        let region = self.region(address)?;
        region.host.load_word((address - region.start) as usize)
    }

    /// Copies from guest memory, across adjacent regions; `false` where some of it is not there
    /// (bytes before the hole may have been copied).
    pub fn read(&self, mut address: u64, mut bytes: &mut [u8]) -> bool {
        while !bytes.is_empty() {
            let Some(host) = self.bytes_from(address, bytes.len()) else {
                return false;
            };
            let (now, later) = bytes.split_at_mut(host.len());
            host.read(0, now);
            address = address.wrapping_add(now.len() as u64);
            bytes = later;
        }
        true
    }

    /// Copies into guest memory, as [`GuestMap::read`] out of it.
    pub fn write(&self, mut address: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Some(host) = self.bytes_from(address, bytes.len()) else {
                return false;
            };
            let (now, later) = bytes.split_at(host.len());
            host.write(0, now);
            address = address.wrapping_add(now.len() as u64);
            bytes = later;
        }
        true
    }

    fn region_of_frame(&self, frame: u32) -> Option<&Region> {
        // Frame numbers follow the order in which the VMM listed its regions, not addresses.
        self.regions.iter().find(|region| {
            frame
                .checked_sub(region.first_frame)
                .is_some_and(|index| u64::from(index) < region.len >> FRAME_SHIFT)
        })
    }
}

impl fmt::Debug for GuestMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestMap").field("regions", &self.regions).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn map(ranges: &[(u64, usize)]) -> GuestMap {
        let ranges: Vec<_> =
            ranges.iter().map(|(start, len)| (GuestAddress(*start), *len)).collect();
        GuestMap::new(Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap())).unwrap()
    }

    #[test]
    fn addresses_resolve_inside_regions_only() {
        let map = map(&[(0, 0x4000), (0x10000, 0x2000), (0x20000, 0x1000)]);
        assert_eq!(map.frames(), 7);
        assert_eq!(map.frame(0x3fff), Some(3));
        assert_eq!(map.frame(0x4000), None);
        assert_eq!(map.frame(0x10000), Some(4));
        assert_eq!(map.frame(0x20fff), Some(6));
        assert_eq!(map.frame(0x21000), None);
        assert_eq!(map.frame(u64::MAX), None);
        for frame in 0..7 {
            assert_eq!(map.frame(map.frame_address(frame).unwrap()), Some(frame));
        }
        assert_eq!(map.frame_address(7), None);
        assert!(map.frames_host(3, 2).is_none(), "frames 3 and 4 are in different regions");
        assert_eq!(map.bytes_from(0x3ff0, 64).map(|range| range.len()), Some(16));
    }

    #[test]
    fn copies_cross_adjacent_regions_but_not_holes() {
        let map = map(&[(0, 0x1000), (0x1000, 0x1000), (0x3000, 0x1000)]);
        assert!(map.write(0xffe, &[1, 2, 3, 4]));
        let mut back = [0; 4];
        assert!(map.read(0xffe, &mut back));
        assert_eq!(back, [1, 2, 3, 4]);
        assert!(!map.read(0x1ffe, &mut back));
        assert!(!map.write(u64::MAX - 1, &[0; 4]));
        assert_eq!(map.load_doubleword(0xff8).map(|bytes| bytes[6]), Some(1));
        assert_eq!(map.load_word(0x2000), None);
    }

    #[test]
    fn odd_layouts_are_refused() {
        let odd = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x800), 0x1000)]).unwrap();
        let error = GuestMap::new(Arc::new(odd)).unwrap_err();
        assert!(error.to_string().contains("0x800"), "{error}");
        let none = GuestMemoryMmap::<()>::new();
        assert!(matches!(GuestMap::new(Arc::new(none)), Err(MapError::Empty)));
    }
}
