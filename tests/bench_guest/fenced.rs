//! Guest memory between two fences: who writes past its ends is found out.

use std::sync::Arc;

use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MemoryRegionAddress};

/// Bytes of each fence.
const FENCE: usize = 1 << 20;
/// What a fence is made of.
const PICKET: u8 = 0x5f;

/// One mapping: fence, guest memory, fence.
#[derive(Debug)]
pub struct Fenced {
    whole: GuestRegionMmap,
    /// The middle part, at guest address 0.
    pub memory: Arc<GuestMemoryMmap>,
    bytes: usize,
}

impl Fenced {
    /// `bytes` of guest memory, a multiple of 4,096. Does not own the middle: it must outlive every
    /// service on [`Fenced::memory`].
    pub fn new(bytes: usize) -> Self {
        let whole = MmapRegion::new(bytes + 2 * FENCE).expect("address space");
        let (protection, flags) = (whole.prot(), whole.flags());
        let start = whole.as_ptr().wrapping_add(FENCE);
        let whole = GuestRegionMmap::new(whole, GuestAddress(0)).expect("no wrap-around");
        // SAFETY: `bytes` bytes from `start` lie in the middle of `whole`, which has these
        // protection and flags and, by the contract of this function, stays mapped while the
        // middle is used. Test: `hostile_programs::programs_of_random_bytes`.
        let middle = unsafe { MmapRegion::build_raw(start, bytes, protection, flags) };
        let middle = GuestRegionMmap::new(middle.expect("on pages"), GuestAddress(0));
        let memory = GuestMemoryMmap::from_regions(vec![middle.expect("no wrap-around")]);
        let fenced = Fenced { whole, memory: Arc::new(memory.expect("one region")), bytes };
        for at in fenced.fences() {
            fenced.whole.write_slice(&[PICKET; FENCE], at).expect("inside the mapping");
        }
        fenced
    }

    fn fences(&self) -> [MemoryRegionAddress; 2] {
        [0, FENCE + self.bytes].map(|at| MemoryRegionAddress(at as u64))
    }

    /// Whether nothing has written on the fences.
    pub fn is_intact(&self) -> bool {
        self.fences().into_iter().all(|at| {
            let mut fence = vec![0; FENCE];
            self.whole.read_slice(&mut fence, at).expect("inside the mapping");
            fence.iter().all(|byte| *byte == PICKET)
        })
    }
}
