//! Guest memory in slots, as a machine with memory slots has it: banks are plugged and unplugged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use vfio_ccw_pinning::FRAME;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress,
};

/// Bytes in the largest frame of these tests.
pub const LARGEST_FRAME: u64 = 4 * FRAME;

/// Guest addresses from one slot to the next.
const SLOT: u64 = 1 << 20;

/// Slots of a guest.
pub const SLOTS: usize = 4;

/// Host memory whose address is a multiple of [`LARGEST_FRAME`] in every run, so that frames have the
/// same sizes in every run, and a failure shrinks to something that fails again.
#[repr(C, align(0x4000))]
struct Page([AtomicU8; LARGEST_FRAME as usize]);

/// What is plugged into a slot.
#[derive(Clone, Copy, Debug)]
pub struct BankShape {
    /// Length in frames of 4 KiB, at least one.
    pub frames: u64,
    /// Its host address lies this many frames of 4 KiB behind one that suits the largest frame.
    pub skew: u64,
}

/// One region of guest memory.
pub struct Bank {
    start: u64,
    shape: BankShape,
    pages: Box<[Page]>,
}

impl GuestMemoryRegion for Bank {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.shape.frames * FRAME
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        let offset = (self.shape.skew * FRAME + address.0) as usize;
        Ok(self.pages.as_ptr().cast::<u8>().cast_mut().wrapping_add(offset))
    }
}

impl GuestMemoryRegionBytes for Bank {}

/// The memory that a VMM has plugged.
#[derive(Clone, Default)]
pub struct Guest {
    banks: BTreeMap<usize, Arc<Bank>>,
}

impl Guest {
    /// Guest address of frame `frame` (of 4 KiB) in `slot`.
    pub fn address(slot: usize, frame: u64) -> u64 {
        slot as u64 * SLOT + frame * FRAME
    }

    /// Puts fresh memory into `slot`.
    pub fn plug(&mut self, slot: usize, shape: BankShape) {
        let pages = (shape.frames + shape.skew).div_ceil(LARGEST_FRAME / FRAME);
        let pages = (0..pages).map(|_| Page([const { AtomicU8::new(0) }; LARGEST_FRAME as usize]));
        let bank = Bank { start: Self::address(slot, 0), shape, pages: pages.collect() };
        self.banks.insert(slot, Arc::new(bank));
    }

    /// Takes the memory out of `slot`.
    pub fn unplug(&mut self, slot: usize) {
        self.banks.remove(&slot);
    }

    /// Slots with memory, in ascending order.
    pub fn plugged(&self) -> Vec<usize> {
        self.banks.keys().copied().collect()
    }

    /// Frames of 4 KiB in `slot`; none where nothing is plugged.
    pub fn frames(&self, slot: usize) -> u64 {
        self.banks.get(&slot).map_or(0, |bank| bank.shape.frames)
    }

    /// The regions as vm-memory has them.
    pub fn memory(&self) -> Arc<GuestRegionCollection<Bank>> {
        let banks = self.banks.values().cloned().collect();
        Arc::new(
            GuestRegionCollection::from_arc_regions(banks).expect("one bank at least, in order"),
        )
    }
}
