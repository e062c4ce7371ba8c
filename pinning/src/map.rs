//! Guest memory regions: guest absolute address to host address and frame number.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{Address, FileOffset, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::granule::{Granule, GranuleError};
use crate::{FRAME, HostRange};

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
    /// There are not as many frame numbers.
    #[error(
        "a guest region needs {frames} frame numbers, more than are free in a row: use larger frames"
    )]
    TooLarge {
        /// Frames in the region.
        frames: u64,
    },
    /// There is no memory.
    #[error("guest memory has no regions: add memory before devices")]
    Empty,
    /// The frame size cannot be had.
    #[error(transparent)]
    Granule(#[from] GranuleError),
}

/// One contiguous run of guest memory. It keeps the mapping alive that its bytes are in.
#[derive(Clone)]
pub struct Region {
    start: u64,
    len: u64,
    host: HostRange,
    first_frame: u32,
    frame_shift: u32,
    file: Option<FileOffset>,
    _mapping: Arc<dyn Any + Send + Sync>,
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
        self.first_frame + ((address - self.start) >> self.frame_shift) as u32
    }

    /// Number of its first frame; the others follow.
    #[inline]
    pub fn first_frame(&self) -> u32 {
        self.first_frame
    }

    /// Frames in it.
    pub fn frames(&self) -> u32 {
        (self.len >> self.frame_shift) as u32
    }

    /// log2 of [`Region::frame_bytes`].
    #[inline]
    pub fn frame_shift(&self) -> u32 {
        self.frame_shift
    }

    /// Bytes in each of its frames: [`FRAME`] or a larger power of two.
    pub fn frame_bytes(&self) -> u64 {
        1 << self.frame_shift
    }

    /// The file it is mapped from and where in it, if the VMM has said so.
    pub fn file(&self) -> Option<&FileOffset> {
        self.file.as_ref()
    }

    /// The numbers of its frames.
    pub fn frame_numbers(&self) -> Range<u32> {
        self.first_frame..self.first_frame + self.frames()
    }

    /// The bytes of `count` frames from number `first` on, with their guest address; `None` where they
    /// are not all in this region.
    pub(crate) fn frames_at(&self, first: u32, count: u32) -> Option<(u64, HostRange)> {
        let offset = u64::from(first.checked_sub(self.first_frame)?) << self.frame_shift;
        let bytes = u64::from(count) << self.frame_shift;
        Some((self.start + offset, self.host.part(offset as usize, bytes as usize)?))
    }

    fn offset(&self, address: u64) -> Option<u64> {
        address.checked_sub(self.start).filter(|offset| *offset < self.len)
    }

    /// Whether it is the same memory at the same place.
    pub(crate) fn is_same_place(&self, other: &Region) -> bool {
        (self.start, self.len, self.host.as_ptr()) == (other.start, other.len, other.host.as_ptr())
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region {:#x}+{:#x}, frames of {}", self.start, self.len, self.frame_bytes())
    }
}

/// A snapshot of the VMM's guest memory. Cheap to share, never changed; it keeps the mappings alive.
pub struct GuestMap {
    regions: Box<[Region]>,
    granule: Granule,
    frames: u32,
    bytes: u64,
}

impl GuestMap {
    /// Takes the regions of `memory`, and a reference to it so that they stay mapped. Frames are as
    /// large as the pages behind them.
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
        Self::with_granule(memory, Granule::default())
    }

    /// The same with frames of another size.
    ///
    /// # Errors
    ///
    /// As [`GuestMap::new`], and for a size that frames cannot have.
    pub fn with_granule<M>(memory: Arc<M>, granule: Granule) -> Result<Self, MapError>
    where
        M: GuestMemoryBackend + Send + Sync + 'static,
    {
        Self::build(memory, granule, &[])
    }

    /// The snapshot that follows this one when the VMM has added or removed regions: those that are
    /// in both keep their frame numbers, new ones get numbers that neither uses.
    ///
    /// # Errors
    ///
    /// As [`GuestMap::new`].
    pub fn replaced_by<M>(&self, memory: Arc<M>) -> Result<Self, MapError>
    where
        M: GuestMemoryBackend + Send + Sync + 'static,
    {
        Self::build(memory, self.granule, &self.regions)
    }

    fn build<M>(memory: Arc<M>, granule: Granule, known: &[Region]) -> Result<Self, MapError>
    where
        M: GuestMemoryBackend + Send + Sync + 'static,
    {
        let mut regions = Vec::with_capacity(memory.num_regions());
        let mut taken: Vec<Range<u32>> = known.iter().map(Region::frame_numbers).collect();
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
            if len == 0 {
                continue;
            }
            // SAFETY: the region stays mapped while `memory` lives, which `_mapping` of every region
            // holds; ranges are handed out only by borrowing it or with a clone of its Arc.
            // Test: `addresses_resolve_inside_regions_only`.
            let host = unsafe { HostRange::new(host, len as usize) };
            let file = region.file_offset().cloned();
            let mut region = Region {
                start,
                len,
                host,
                first_frame: 0,
                frame_shift: granule.frame_shift(host, file.as_ref())?,
                file,
                _mapping: memory.clone(),
            };
            match known.iter().find(|known| known.is_same_place(&region)) {
                Some(known) => {
                    (region.first_frame, region.frame_shift) =
                        (known.first_frame, known.frame_shift);
                }
                None => {
                    let frames = len >> region.frame_shift;
                    region.first_frame =
                        free_numbers(&taken, frames).ok_or(MapError::TooLarge { frames })?;
                    taken.push(region.frame_numbers());
                }
            }
            regions.push(region);
        }
        if regions.is_empty() {
            return Err(MapError::Empty);
        }
        regions.sort_by_key(|region| region.start);
        let frames = regions.iter().map(|region| region.frame_numbers().end).max().unwrap_or(0);
        let bytes = regions.iter().map(Region::len).sum();
        Ok(GuestMap { regions: regions.into(), granule, frames, bytes })
    }

    /// Regions in ascending order of address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Frame numbers are below this.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Bytes in all regions.
    pub fn bytes(&self) -> u64 {
        self.bytes
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
}

/// The lowest number from which `frames` numbers are in none of `taken`.
fn free_numbers(taken: &[Range<u32>], frames: u64) -> Option<u32> {
    let is_free = |first: u64| {
        let last = first + frames;
        last <= u64::from(u32::MAX)
            && taken.iter().all(|other| last <= other.start.into() || first >= other.end.into())
    };
    let ends = taken.iter().map(|other| u64::from(other.end));
    let first = ends.chain([0]).filter(|first| is_free(*first)).min()?;
    u32::try_from(first).ok()
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
        let last = &map.regions()[2];
        assert_eq!(last.frames_at(6, 1).map(|(address, _)| address), Some(0x20000));
        assert!(last.frames_at(5, 1).is_none() && last.frames_at(6, 2).is_none());
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
    fn regions_that_stay_keep_their_frame_numbers() {
        let first = GuestMemoryMmap::<()>::from_ranges(&[
            (GuestAddress(0), 0x4000),
            (GuestAddress(0x10000), 0x2000),
        ])
        .unwrap();
        let map = GuestMap::new(Arc::new(first.clone())).unwrap();
        let (without, gone) = first.remove_region(GuestAddress(0), 0x4000).unwrap();
        let shrunk = map.replaced_by(Arc::new(without.clone())).unwrap();
        assert_eq!((shrunk.frame(0x10000), shrunk.frame(0)), (Some(4), None));
        assert_eq!(shrunk.bytes(), 0x2000);
        let back = without.insert_region(gone).unwrap();
        let grown = shrunk.replaced_by(Arc::new(back)).unwrap();
        assert_eq!((grown.frame(0x10000), grown.frame(0x3000)), (Some(4), Some(3)));
    }

    #[test]
    fn frame_numbers_are_found_between_others() {
        assert_eq!(free_numbers(&[], 10), Some(0));
        assert_eq!(free_numbers(&[0..4, 10..12], 6), Some(4));
        assert_eq!(free_numbers(&[0..4, 10..12], 7), Some(12));
        assert_eq!(free_numbers(&[5..9, 9..10], 5), Some(0));
        assert_eq!(free_numbers(&[1..9, 9..u32::MAX], 2), None);
        assert_eq!(free_numbers(&[], u64::from(u32::MAX) + 1), None);
    }

    #[test]
    fn larger_frames_hold_more_pages() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x1000), 0x8000)]).unwrap();
        let map = GuestMap::with_granule(Arc::new(memory), Granule::Bytes(0x4000)).unwrap();
        let region = &map.regions()[0];
        assert_eq!((region.frame_bytes(), region.frames()), (0x4000, 2));
        assert_eq!(map.frame(0x4fff), Some(0), "counted from the region's start");
        assert_eq!(map.frame(0x5000), Some(1));
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
