//! Guest memory in which every byte is accounted for.
//!
//! Guest regions and shadow memory stand in one mapping with fences between them. A second copy
//! says what guest memory must hold: what the case put there, and what the device stored.

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use vfio_ccw::channel_subsystem::{DmaSpace, Window};
use vfio_ccw::{GUEST_IOVA, SHADOW_IOVA};
use vfio_ccw_pinning::{FRAME, GuestMap, HostRange};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Guest memory as (start, length): three adjacent regions, a hole, one on each side of the limits
/// of format-0 and format-1 addresses, and one that only format-2 IDAWs reach.
pub const REGIONS: [(u64, usize); 8] = [
    (0, 0x8000),
    (0x8000, 0x2000),
    (0xa000, 0x1000),
    (0x1_0000, 0x4000),
    (0xff_e000, 0x2000),
    (0x100_0000, 0x1000),
    (0x7fff_e000, 0x2000),
    (0x8000_0000, 0x2000),
];

/// Bytes of guest memory in all regions.
pub const GUEST_BYTES: usize = {
    let (mut bytes, mut index) = (0, 0);
    while index < REGIONS.len() {
        bytes += REGIONS[index].1;
        index += 1;
    }
    bytes
};

/// Room for the shadow program: more than a program in so little memory can need.
const SHADOW_BYTES: usize = 1 << 20;
/// Bytes at the start of the shadow that [`Guest::put_shadow`] reaches.
pub const PROGRAM_BYTES: usize = 0x4000;
/// Bytes before, between and behind regions.
const FENCE: usize = FRAME as usize;
/// What a fence is made of, and shadow memory that nobody has written.
const PICKET: u8 = 0x5f;

/// Guest memory, shadow memory, and what they must hold.
pub struct Guest {
    /// Guest memory as a VMM has it.
    pub memory: Arc<GuestMemoryMmap>,
    /// Guest memory as the translator sees it.
    pub map: Arc<GuestMap>,
    /// Guest memory and shadow as the device sees them.
    pub dma: Arc<DmaSpace>,
    /// The same, with no more of the shadow than [`Guest::put_shadow`] reaches.
    pub small_dma: Arc<DmaSpace>,
    shadow: HostRange,
    /// Fence, region, fence, region, ... fence, shadow, fence.
    whole: HostRange,
    /// Offset of each region in `whole`.
    offsets: [usize; REGIONS.len()],
    /// What guest memory must hold, region after region.
    expected: Vec<u8>,
    /// What [`Guest::restore`] goes back to.
    initial: Vec<u8>,
    /// Frames of `expected` that are not zero, or not as in `initial`.
    touched: Vec<bool>,
    scratch: Vec<u8>,
    _mapping: Arc<MmapRegion>,
}

impl Default for Guest {
    fn default() -> Self {
        Guest::new()
    }
}

impl Guest {
    /// Zeros, and fences around them.
    pub fn new() -> Self {
        let fences = REGIONS.len() + 2;
        let bytes = GUEST_BYTES + SHADOW_BYTES + fences * FENCE;
        let mapping: Arc<MmapRegion> = Arc::new(MmapRegion::new(bytes).expect("address space"));
        let start = NonNull::new(mapping.as_ptr()).expect("mapped");
        // SAFETY: `mapping` stays mapped as long as this guest and every window made from it.
        // Test: `seeds::tests::channel_program`.
        let whole = unsafe { HostRange::new(start, bytes) };
        whole.write(0, &vec![PICKET; bytes]);
        let mut offsets = [0; REGIONS.len()];
        let mut next = FENCE;
        let mut regions = Vec::new();
        for ((address, len), offset) in REGIONS.into_iter().zip(&mut offsets) {
            *offset = next;
            let part = whole.part(next, len).expect("counted above");
            part.clear();
            // SAFETY: the bytes lie in `mapping`, which has this protection and these flags, and
            // which the guest keeps; whoever shares its memory or map ends before it does.
            // Test: `seeds::tests::fba_disk`.
            let region = unsafe {
                MmapRegion::build_raw(part.as_ptr(), len, mapping.prot(), mapping.flags())
            };
            let region = region.expect("on pages");
            regions.push(GuestRegionMmap::new(region, GuestAddress(address)).expect("no wrap"));
            next += len + FENCE;
        }
        let shadow = whole.part(next, SHADOW_BYTES).expect("counted above");
        let memory = Arc::new(GuestMemoryMmap::from_regions(regions).expect("no overlap"));
        let map = Arc::new(GuestMap::new(memory.clone()).expect("whole frames"));
        let dma = |shadow: Option<HostRange>| {
            let mut dma = DmaSpace::default();
            let shadow = Window::new(SHADOW_IOVA, shadow.expect("larger"), mapping.clone());
            dma.map(shadow).expect("a first window");
            for region in map.regions() {
                let iova = region.start() + GUEST_IOVA;
                let window = Window::new(iova, region.host(), mapping.clone());
                dma.map(window).expect("regions do not overlap");
            }
            Arc::new(dma)
        };
        Guest {
            memory,
            dma: dma(Some(shadow)),
            small_dma: dma(shadow.part(0, PROGRAM_BYTES)),
            map,
            shadow,
            whole,
            offsets,
            expected: vec![0; GUEST_BYTES],
            initial: vec![0; GUEST_BYTES],
            touched: vec![false; GUEST_BYTES / FENCE],
            scratch: vec![0; bytes],
            _mapping: mapping,
        }
    }

    /// Where shadow programs go.
    pub fn shadow(&self) -> HostRange {
        self.shadow
    }

    /// Zeros everywhere, for the next case.
    pub fn clear(&mut self) {
        self.initial.fill(0);
        self.restore();
    }

    /// What is put from now on is what [`Guest::restore`] goes back to.
    pub fn remember(&mut self) {
        self.initial.copy_from_slice(&self.expected);
    }

    /// Goes back to what was remembered, and the shadow to what it is made of.
    pub fn restore(&mut self) {
        for frame in 0..self.touched.len() {
            let bytes = frame * FENCE..(frame + 1) * FENCE;
            if !self.touched[frame] {
                continue;
            }
            self.expected[bytes.clone()].copy_from_slice(&self.initial[bytes.clone()]);
            self.touched[frame] = !is_zero(&self.initial[bytes.clone()]);
            self.host(bytes.start, FENCE).write(0, &self.expected[bytes]);
        }
    }

    /// Writes guest memory; what lies outside is dropped.
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        let (mut address, mut bytes) = (address, bytes);
        while !bytes.is_empty() {
            let here = self.map.bytes_from(address, bytes.len());
            let (now, later) = bytes.split_at(here.map_or(1, |host| host.len()));
            if let (Some(host), Some(offset)) = (here, linear(address)) {
                host.write(0, now);
                self.expect(offset, now);
            }
            address = address.wrapping_add(now.len() as u64);
            bytes = later;
        }
    }

    /// Writes shadow memory, `offset` bytes into it; what sticks out is dropped.
    pub fn put_shadow(&mut self, offset: usize, bytes: &[u8]) {
        let room = PROGRAM_BYTES.saturating_sub(offset);
        self.shadow.write(offset, &bytes[..room.min(bytes.len())]);
    }

    /// What guest memory must hold; `None` where it is not all there.
    pub fn expected<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        // No hole is as small as N bytes.
        let first = linear(address)?;
        let last = linear(address.checked_add(N as u64 - 1)?)?;
        let bytes = self.expected[first..=last].try_into().ok()?;
        Some(bytes)
    }

    /// The offset in all regions of bytes that a device was given; `None` if they are not guest
    /// memory.
    pub fn offset_of(&self, range: HostRange) -> Option<usize> {
        let at = range.as_ptr().addr().checked_sub(self.whole.as_ptr().addr())?;
        let mut before = 0;
        for (start, (_, len)) in self.offsets.into_iter().zip(REGIONS) {
            if start <= at && at + range.len() <= start + len {
                return Some(before + at - start);
            }
            before += len;
        }
        None
    }

    /// Whether the bytes that a device was given lie in the first `len` bytes of the shadow.
    pub fn is_shadow(&self, range: HostRange, len: usize) -> bool {
        let at = range.as_ptr().addr().checked_sub(self.shadow.as_ptr().addr());
        at.is_some_and(|at| at + range.len() <= len)
    }

    /// A device stored `bytes` at `offset`, the first `len` of all regions counted together.
    pub fn expect(&mut self, offset: usize, bytes: &[u8]) {
        self.expected[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.touched[offset / FENCE..(offset + bytes.len()).div_ceil(FENCE)].fill(true);
    }

    /// What guest memory must hold, region after region.
    pub fn contents(&self) -> &[u8] {
        &self.expected
    }

    /// Asserts that guest memory holds what it must, that the fences stand, and that the shadow
    /// behind its first `used` bytes was not written. The used bytes are then made new.
    pub fn check(&mut self, used: usize) {
        let shadow = self.whole.len() - FENCE - SHADOW_BYTES;
        // Behind the used part, a page shows whether something ran over.
        let end = (shadow + used + FENCE).min(self.whole.len());
        let last = self.whole.len() - FENCE;
        assert!(self.whole.read(0, &mut self.scratch[..end]));
        assert!(self.whole.read(last, &mut self.scratch[last..]));
        assert!(is_picket(&self.scratch[last..]), "the last fence was written");
        let mut behind = 0;
        let mut linear = 0;
        for (start, (address, len)) in self.offsets.into_iter().zip(REGIONS) {
            assert!(
                is_picket(&self.scratch[behind..start]),
                "something wrote below guest address {address:#x}"
            );
            assert!(
                self.scratch[start..start + len] == self.expected[linear..linear + len],
                "guest memory at {address:#x} holds what neither guest nor device wrote"
            );
            behind = start + len;
            linear += len;
        }
        assert!(is_picket(&self.scratch[behind..shadow]), "the fence below the shadow was written");
        assert!(is_picket(&self.scratch[shadow + used..end]), "the shadow was overrun");
        let part = self.shadow.part(0, used).expect("it was used");
        part.write(0, &vec![PICKET; used]);
    }

    /// Asserts that the fences stand, where nobody knows what a device has stored. Then all is new.
    pub fn check_fences(&mut self) {
        let mut linear = 0;
        for (start, (_, len)) in self.offsets.into_iter().zip(REGIONS) {
            assert!(self.whole.read(start, &mut self.expected[linear..linear + len]));
            linear += len;
        }
        self.touched.fill(true);
        self.check(PROGRAM_BYTES);
        self.clear();
    }

    fn host(&self, offset: usize, len: usize) -> HostRange {
        let (region, within) = place(offset);
        self.whole.part(self.offsets[region] + within, len).expect("in a region")
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("map", &self.map).finish_non_exhaustive()
    }
}

/// Bytes of memory, too many to print.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Contents(pub Vec<u8>);

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Offset of a guest address in all regions counted together; `None` in a hole.
pub fn linear(address: u64) -> Option<usize> {
    let mut before = 0;
    for (start, len) in REGIONS {
        if (start..start + len as u64).contains(&address) {
            return Some(before + (address - start) as usize);
        }
        before += len;
    }
    None
}

/// Guest address of an offset in all regions counted together, which is less than [`GUEST_BYTES`].
pub fn address(offset: usize) -> u64 {
    let (region, within) = place(offset);
    REGIONS[region].0 + within as u64
}

/// The offsets in all regions of the frame that holds an offset.
pub fn frame(offset: usize) -> Range<usize> {
    let start = offset / FENCE * FENCE;
    start..start + FENCE
}

fn place(mut offset: usize) -> (usize, usize) {
    for (index, (_, len)) in REGIONS.into_iter().enumerate() {
        if offset < len {
            return (index, offset);
        }
        offset -= len;
    }
    panic!("offset {offset:#x} behind guest memory");
}

/// Slices are compared as a whole: byte for byte, a fuzzer would watch every one.
fn is_picket(bytes: &[u8]) -> bool {
    bytes.chunks(FENCE).all(|bytes| bytes == &[PICKET; FENCE][..bytes.len()])
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes == &[0; FENCE][..bytes.len()]
}
