//! Which requests the slots make.

use crate::access::{Access, Selector};
use crate::random::SplitMix64;
use crate::request::{Direction, Request};
use crate::units::Bytes;

/// Granularity of everything on the volume, in bytes: an FBA block, and a block of the
/// [`pattern`](crate::pattern).
pub const SECTOR: u32 = 512;

/// Alignment of buffers, in bytes: pinning works in pages of this size.
pub const PAGE: u64 = 4096;

/// What a load consists of. The same workload and number of slots give the same requests each time.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Size of the volume in bytes. Slot `i` of `n` works on part `i` of `n` equal parts, so that each
    /// block has one writer; what does not fill a block in each part is left alone.
    pub volume_bytes: u64,
    /// Bytes of one transfer; a multiple of [`SECTOR`].
    pub block_bytes: u32,
    /// Share of reads, 0 to 100; the rest are writes.
    pub read_percent: u8,
    /// How accesses spread over a slot's part of the volume.
    pub access: Access,
    /// Where the data is in guest memory.
    pub buffers: Buffers,
    /// Seed of all draws and of the written data.
    pub seed: u64,
}

impl Workload {
    /// Uniform random reads of `block_bytes` over `volume_bytes`, to one buffer a slot from guest
    /// address 0, with seed 0.
    pub fn new(volume_bytes: u64, block_bytes: u32) -> Self {
        Self {
            volume_bytes,
            block_bytes,
            read_percent: 100,
            access: Access::Uniform,
            buffers: Buffers {
                base: 0,
                bytes_per_slot: u64::from(block_bytes).next_multiple_of(PAGE),
                access: Access::Uniform,
            },
            seed: 0,
        }
    }

    /// The requests of `slots` slots.
    ///
    /// # Errors
    /// Where a parameter is out of its range or the volume is too small for so many slots.
    pub fn generator(&self, slots: usize) -> Result<Generator, WorkloadError> {
        if slots == 0 {
            return Err(WorkloadError::NoSlots);
        }
        check_block_bytes(self.block_bytes)?;
        if self.read_percent > 100 {
            return Err(WorkloadError::ReadPercent(self.read_percent));
        }
        for access in [self.access, self.buffers.access] {
            if let Some(fault) = access.fault() {
                return Err(WorkloadError::Access(fault));
            }
        }
        let blocks_per_slot = self.volume_bytes / u64::from(self.block_bytes) / slots as u64;
        if blocks_per_slot == 0 {
            return Err(WorkloadError::VolumeTooSmall {
                volume_bytes: self.volume_bytes,
                block_bytes: self.block_bytes,
                slots,
            });
        }
        let buffers_per_slot = self.buffers.per_slot(slots, self.block_bytes)?;
        Ok(Generator {
            block_bytes: self.block_bytes,
            read_percent: self.read_percent,
            blocks_per_slot,
            blocks: Selector::new(self.access, blocks_per_slot),
            buffers: self.buffers,
            buffer_choice: Selector::new(self.buffers.access, buffers_per_slot),
            slots: (0..slots as u64)
                .map(|slot| SlotState {
                    random: SplitMix64::stream(self.seed, slot),
                    next_block: 0,
                    next_buffer: 0,
                })
                .collect(),
        })
    }
}

/// Where in guest memory the data of requests is: each slot has an area of its own, one after the
/// other, each divided into as many buffers as it holds.
///
/// A large area with uniform access makes a large working set for a cache of pinned pages; an area of
/// one buffer makes the smallest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Buffers {
    /// Guest address of the first slot's area; a multiple of [`PAGE`].
    pub base: u64,
    /// Size of each slot's area in bytes; a multiple of [`PAGE`].
    pub bytes_per_slot: u64,
    /// How requests choose among the buffers of an area.
    pub access: Access,
}

impl Buffers {
    /// Bytes from one buffer to the next, where each holds `block_bytes`.
    pub fn stride(block_bytes: u32) -> u64 {
        u64::from(block_bytes).next_multiple_of(PAGE)
    }

    /// Guest address of buffer number `index` in the area of `slot`.
    #[inline]
    pub fn address(&self, slot: usize, index: u64, block_bytes: u32) -> u64 {
        self.base + slot as u64 * self.bytes_per_slot + index * Self::stride(block_bytes)
    }

    /// How many buffers of `block_bytes` each of `slots` areas holds.
    ///
    /// # Errors
    /// Where the area is misaligned, holds none, or the areas end above the last address.
    pub fn per_slot(&self, slots: usize, block_bytes: u32) -> Result<u64, WorkloadError> {
        for address in [self.base, self.bytes_per_slot] {
            if !address.is_multiple_of(PAGE) {
                return Err(WorkloadError::BuffersMisaligned { value: address });
            }
        }
        let count = self.bytes_per_slot / Self::stride(block_bytes);
        if count == 0 {
            return Err(WorkloadError::BuffersTooSmall {
                bytes_per_slot: self.bytes_per_slot,
                block_bytes,
            });
        }
        let end = self
            .bytes_per_slot
            .checked_mul(slots as u64)
            .and_then(|all| all.checked_add(self.base));
        match end {
            Some(_) => Ok(count),
            None => {
                Err(WorkloadError::BuffersTooLarge { bytes_per_slot: self.bytes_per_slot, slots })
            }
        }
    }
}

pub(crate) fn check_block_bytes(block_bytes: u32) -> Result<(), WorkloadError> {
    if block_bytes == 0 || !block_bytes.is_multiple_of(SECTOR) {
        return Err(WorkloadError::BlockBytes(block_bytes));
    }
    Ok(())
}

/// Makes the requests of all slots.
#[derive(Debug, Clone)]
pub struct Generator {
    block_bytes: u32,
    read_percent: u8,
    blocks_per_slot: u64,
    blocks: Selector,
    buffers: Buffers,
    buffer_choice: Selector,
    slots: Vec<SlotState>,
}

/// All that a slot needs of its own; kept small, there may be tens of thousands.
#[derive(Debug, Clone)]
struct SlotState {
    random: SplitMix64,
    next_block: u64,
    next_buffer: u64,
}

impl Generator {
    /// The next request of `slot`.
    ///
    /// # Panics
    /// Where there is no such slot.
    #[inline]
    pub fn next(&mut self, slot: usize) -> Request {
        let state = &mut self.slots[slot];
        let direction = if state.random.percent(self.read_percent) {
            Direction::Read
        } else {
            Direction::Write
        };
        let block = slot as u64 * self.blocks_per_slot
            + self.blocks.draw(&mut state.random, &mut state.next_block);
        let buffer = self.buffer_choice.draw(&mut state.random, &mut state.next_buffer);
        Request {
            slot,
            direction,
            offset: block * u64::from(self.block_bytes),
            bytes: self.block_bytes,
            buffer: self.buffers.address(slot, buffer, self.block_bytes),
        }
    }

    /// How many blocks of the volume the slots reach together.
    pub fn blocks(&self) -> u64 {
        self.blocks_per_slot * self.slots.len() as u64
    }
}

/// A workload that can not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// An engine without slots.
    #[error("there are 0 slots and a load needs at least 1; attach a subchannel")]
    NoSlots,
    /// [`Workload::read_percent`] out of range.
    #[error("{0} % reads exceed 100 %; give the share of reads as 0 to 100")]
    ReadPercent(u8),
    /// [`Workload::block_bytes`] out of range.
    #[error("a transfer of {0} bytes is not a multiple of {SECTOR} above 0; try 4096")]
    BlockBytes(u32),
    /// A volume that ends within a sector.
    #[error("a volume of {0} bytes is not a multiple of {SECTOR} above 0; round it down to one")]
    VolumeBytes(u64),
    /// An [`Access`] with parameters out of range.
    #[error("{0}")]
    Access(String),
    /// Fewer blocks than slots.
    #[error(
        "a volume of {} has not one transfer of {} for each of {slots} slots; \
         use a larger volume, smaller transfers or fewer subchannels",
        Bytes(*.volume_bytes), Bytes(u64::from(*.block_bytes))
    )]
    VolumeTooSmall {
        /// Size of the volume.
        volume_bytes: u64,
        /// Size of a transfer.
        block_bytes: u32,
        /// Number of slots.
        slots: usize,
    },
    /// An area that does not begin or end on a page.
    #[error("{value:#x} in the buffer areas is not a multiple of {PAGE}; round it up to one")]
    BuffersMisaligned {
        /// The base or the size.
        value: u64,
    },
    /// An area without room for one transfer.
    #[error(
        "a buffer area of {} does not hold one transfer of {}; enlarge the area to at least that, in whole pages",
        Bytes(*.bytes_per_slot), Bytes(u64::from(*.block_bytes))
    )]
    BuffersTooSmall {
        /// Size of each area.
        bytes_per_slot: u64,
        /// Size of a transfer.
        block_bytes: u32,
    },
    /// Areas that end above the last guest address.
    #[error("{slots} buffer areas of {} end above 2^64; use smaller areas", Bytes(*.bytes_per_slot))]
    BuffersTooLarge {
        /// Size of each area.
        bytes_per_slot: u64,
        /// Number of slots.
        slots: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    fn workload() -> Workload {
        Workload {
            read_percent: 70,
            buffers: Buffers { base: 0x10_0000, bytes_per_slot: 64 << 10, access: Access::Uniform },
            seed: 11,
            ..Workload::new(1 << 20, 4096)
        }
    }

    #[test]
    fn slots_keep_to_their_own_parts_and_buffers() {
        let mut generator = workload().generator(4).unwrap();
        let (mut blocks, mut buffers) = (HashMap::new(), HashMap::new());
        for slot in (0..4).cycle().take(8000) {
            let request = generator.next(slot);
            assert_eq!((request.slot, request.bytes), (slot, 4096));
            assert!(request.offset.is_multiple_of(4096) && request.offset < 1 << 20);
            assert!(request.buffer.is_multiple_of(PAGE));
            assert_eq!(*blocks.entry(request.offset).or_insert(slot), slot);
            assert_eq!(*buffers.entry(request.buffer).or_insert(slot), slot);
        }
        assert_eq!((blocks.len(), buffers.len()), (256, 64));
        assert!(buffers.keys().all(|&gpa| (0x10_0000..0x10_0000 + (256 << 10)).contains(&gpa)));
    }

    #[test]
    fn directions_keep_their_share() {
        let mut generator = workload().generator(2).unwrap();
        let reads = (0..50_000)
            .filter(|draw| generator.next(draw % 2).direction == Direction::Read)
            .count();
        assert!(reads.abs_diff(35_000) < 513, "{reads}");
    }

    #[test]
    fn a_seed_fixes_everything_and_another_changes_it() {
        let requests = |seed| {
            let mut generator = Workload { seed, ..workload() }.generator(3).unwrap();
            (0..300).map(|draw| generator.next(draw % 3)).collect::<Vec<_>>()
        };
        assert_eq!(requests(5), requests(5));
        assert_ne!(requests(5), requests(6));
    }

    #[test]
    fn sequential_slots_walk_their_parts_in_step() {
        let mut generator =
            Workload { access: Access::Sequential, ..workload() }.generator(2).unwrap();
        let offsets: Vec<u64> = (0..6).map(|draw| generator.next(draw % 2).offset / 4096).collect();
        assert_eq!(offsets, [0, 128, 1, 129, 2, 130]);
    }

    #[test]
    fn small_transfers_still_get_page_aligned_buffers() {
        let mut generator = Workload {
            buffers: Buffers { base: 0, bytes_per_slot: 8192, access: Access::Sequential },
            ..Workload::new(1 << 20, 512)
        }
        .generator(1)
        .unwrap();
        let buffers: HashSet<u64> = (0..10).map(|_| generator.next(0).buffer).collect();
        assert_eq!(buffers, HashSet::from([0, 4096]));
    }

    #[test]
    fn what_can_not_be_is_refused_with_its_numbers() {
        let with = |change: fn(&mut Workload)| {
            let mut workload = workload();
            change(&mut workload);
            workload.generator(300).unwrap_err().to_string()
        };
        assert!(with(|w| w.read_percent = 101).contains("101 %"));
        assert!(with(|w| w.block_bytes = 1000).contains("1000 bytes"));
        assert!(with(|w| w.block_bytes = 0).contains("0 bytes"));
        assert!(with(|w| w.access = Access::Zipf(-1.0)).contains("-1"));
        assert!(with(|w| w.volume_bytes = 1 << 20).contains("300 slots"));
        assert!(with(|w| (w.volume_bytes, w.buffers.base) = (1 << 30, 5)).contains("0x5"));
        assert!(
            with(|w| (w.volume_bytes, w.buffers.bytes_per_slot) = (1 << 30, 0)).contains("4 KiB")
        );
        assert!(
            with(|w| (w.volume_bytes, w.buffers.bytes_per_slot) = (1 << 30, 1 << 63))
                .contains("2^64")
        );
        assert_eq!(workload().generator(0).unwrap_err(), WorkloadError::NoSlots);
    }
}
