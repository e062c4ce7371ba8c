//! Where shadow programs live: private memory that the device reads and the guest cannot write.
//!
//! One arena a shard, so nothing here is shared between threads. Slots come in a few sizes from
//! free lists; a slot returns to its list when the program has ended. The memory is a memfd, so
//! that a device in another process can be given it, and sparse: what was never used costs nothing.
//!
//! | IOVA | what |
//! |---|---|
//! | 0 .. 64 KiB | never mapped: an IDAW that must fail points to 0, or to 4 KiB if with a protection check |
//! | 64 KiB .. 1 GiB | shadow arenas, one after the other |
//! | 4 GiB + guest address | guest memory |
//!
//! CCWs and IDALs need 31-bit addresses, guest data does not; so guest memory stands at an offset
//! and the low 2 GiB of I/O address space are ours.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use vfio_ccw_pinning::HostRange;
use vm_memory::{FileOffset, MmapRegion};

/// I/O virtual address of guest absolute address 0.
pub const GUEST_IOVA: u64 = 4 << 30;

/// I/O virtual address of the first shadow arena.
pub const SHADOW_IOVA: u64 = 64 << 10;

/// An I/O virtual address that is never mapped.
pub const UNMAPPED_IOVA: u64 = 0;

/// An I/O virtual address that is never mapped and stands for storage that a key protects.
pub const PROTECTED_IOVA: u64 = 4 << 10;

/// Bytes that all shadow arenas of a service share.
const ALL_ARENAS: u64 = (1 << 30) - SHADOW_IOVA;

/// Bytes after the last slot: the kernel driver reads 2 KiB wherever a chain starts.
const TAIL: u64 = 2048;

/// Slot sizes in bytes. Most programs are a few CCWs and a page or two of data.
const SIZES: [u64; 5] = [512, 4 << 10, 32 << 10, 256 << 10, 1 << 20];

/// The shadow memory of one shard.
#[derive(Debug)]
pub(crate) struct Arena {
    mapping: Arc<MmapRegion>,
    host: HostRange,
    iova: u64,
    fresh: u64,
    free: [Vec<u32>; SIZES.len()],
}

/// A piece of an arena: `offset` bytes into it, of the size `class` says.
#[derive(Debug)]
#[must_use = "a slot that is dropped is lost to its arena"]
pub(crate) struct Slot {
    offset: u32,
    class: u8,
}

impl Slot {
    /// Whether it is one of those that there are not many of: it goes back to its arena at once.
    #[inline]
    pub(crate) fn is_large(&self) -> bool {
        self.class > 0
    }
}

impl Arena {
    /// The arena of shard `index` of `shards`.
    ///
    /// # Errors
    ///
    /// No memfd or no address space.
    pub(crate) fn new(index: usize, shards: usize) -> io::Result<Self> {
        let bytes = (ALL_ARENAS / shards as u64) & !0xfff;
        let memfd = rustix::fs::memfd_create("vfio-ccw-shadow", rustix::fs::MemfdFlags::CLOEXEC)?;
        let file = File::from(memfd);
        file.set_len(bytes)?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, 0), bytes as usize)
            .map_err(io::Error::other)?;
        let start = NonNull::new(mapping.as_ptr()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: mapped for as long as `mapping`, which the arena and every window made from it
        // hold. Test: `slots_do_not_overlap`.
        let host = unsafe { HostRange::new(start, bytes as usize) };
        Ok(Arena {
            mapping: Arc::new(mapping),
            host,
            iova: SHADOW_IOVA + index as u64 * bytes,
            fresh: 0,
            free: Default::default(),
        })
    }

    /// Its bytes in this process.
    pub(crate) fn host(&self) -> HostRange {
        self.host
    }

    /// I/O virtual address of its first byte.
    pub(crate) fn iova(&self) -> u64 {
        self.iova
    }

    /// What keeps it mapped.
    pub(crate) fn mapping(&self) -> Arc<MmapRegion> {
        self.mapping.clone()
    }

    /// Takes a slot of at least `bytes` bytes; `None` where the arena is full or has none so large.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<Slot> {
        let class = SIZES.iter().position(|size| bytes as u64 <= *size)?;
        if let Some(offset) = self.free[class].pop() {
            return Some(Slot { offset, class: class as u8 });
        }
        let end = self.fresh + SIZES[class];
        if end + TAIL > self.host.len() as u64 {
            return None;
        }
        let offset = self.fresh as u32;
        self.fresh = end;
        Some(Slot { offset, class: class as u8 })
    }

    /// The slot in `place` if it has room for `bytes` bytes, or another one in its place; `None` as in
    /// [`Arena::take`].
    #[inline]
    pub(crate) fn slot_for<'a>(
        &mut self,
        bytes: usize,
        place: &'a mut Option<Slot>,
    ) -> Option<&'a Slot> {
        let fits = |slot: &Slot| bytes as u64 <= SIZES[usize::from(slot.class)];
        if !place.as_ref().is_some_and(fits) {
            if let Some(small) = place.take() {
                self.give_back(small);
            }
            *place = Some(self.take(bytes)?);
        }
        place.as_ref()
    }

    /// Gives a slot back: no device reads it any more.
    pub(crate) fn give_back(&mut self, slot: Slot) {
        self.free[usize::from(slot.class)].push(slot.offset);
    }

    /// I/O virtual address of a slot; always below 2 GiB.
    pub(crate) fn slot_iova(&self, slot: &Slot) -> u32 {
        self.iova as u32 + slot.offset
    }

    /// The bytes of a slot.
    pub(crate) fn slot_host(&self, slot: &Slot) -> Option<HostRange> {
        self.host.part(slot.offset as usize, SIZES[usize::from(slot.class)] as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap() {
        let mut arena = Arena::new(1, 4).unwrap();
        let mut taken: Vec<(u32, u64)> = Vec::new();
        for bytes in [1, 512, 513, 4096, 5000, 100_000, 1 << 20, 16] {
            let slot = arena.take(bytes).unwrap();
            let size = SIZES[usize::from(slot.class)];
            assert!(size >= bytes as u64);
            let host = arena.slot_host(&slot).unwrap();
            assert!(host.store_doubleword(host.len() - 8, [1; 8]));
            taken.push((arena.slot_iova(&slot), size));
        }
        taken.sort_unstable();
        assert!(
            taken.windows(2).all(|pair| u64::from(pair[0].0) + pair[0].1 <= u64::from(pair[1].0))
        );
        assert!(taken.iter().all(|(iova, _)| iova % 512 == 0 && *iova < 1 << 31));
    }

    #[test]
    fn a_slot_comes_back_and_too_large_ones_are_refused() {
        let mut arena = Arena::new(0, 1).unwrap();
        let slot = arena.take(100).unwrap();
        let first = arena.slot_iova(&slot);
        arena.give_back(slot);
        assert_eq!(arena.take(200).map(|slot| arena.slot_iova(&slot)), Some(first));
        assert!(arena.take((1 << 20) + 1).is_none());
    }

    #[test]
    fn a_slot_is_kept_while_it_fits() {
        let mut arena = Arena::new(0, 1).unwrap();
        let mut place = None;
        let first = arena.slot_for(100, &mut place).map(|slot| slot.offset);
        assert_eq!(arena.slot_for(512, &mut place).map(|slot| slot.offset), first);
        assert!(!place.as_ref().unwrap().is_large());
        assert_ne!(arena.slot_for(513, &mut place).map(|slot| slot.offset), first);
        assert!(place.as_ref().unwrap().is_large());
        assert_eq!(arena.take(1).map(|slot| slot.offset), first, "it went back");
        assert!(arena.slot_for(2 << 20, &mut place).is_none() && place.is_none());
    }

    #[test]
    fn a_full_arena_says_so() {
        let mut arena = Arena::new(0, 512).unwrap();
        let mut taken = 0;
        while arena.take(1 << 20).is_some() {
            taken += 1;
        }
        assert_eq!(taken, 1, "two slots of 1 MiB do not fit into 2 MiB less the tail");
    }
}
