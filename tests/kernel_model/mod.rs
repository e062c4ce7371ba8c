//! What Linux's vfio-ccw makes of a channel program before the channel sees it, as a model: the
//! rules of `drivers/s390/cio/vfio_ccw_cp.c` as they are since August 2026, over windows in place
//! of a VFIO container.
//!
//! The kernel copies a program segment by segment, gives every CCW with data a format-2 IDAL of its
//! own, and pins the pages that it believes the CCW touches. What it believes is decided by the
//! CCW's own command code. An IDAW whose page is not pinned keeps the address that user space
//! wrote, which means nothing to the channel: in the model guest memory stands elsewhere in the
//! channel's address space, so that a data transfer through such an IDAW fails and is noticed.

use std::sync::Arc;

use vfio_ccw::architecture::{Ccw, CcwFlags, CommandClass, IrbHead, Orb, OrbFlags, command};
use vfio_ccw::channel_subsystem::{DmaSpace, Window};
use vfio_ccw_pinning::{GuestMap, HostRange};

/// `CCWCHAIN_LEN_MAX`: CCWs in one segment, and what is read wherever a segment starts.
pub const SEGMENT_CCWS: usize = 256;

/// `CCWCHAIN_COUNT_MAX`: segments in one program.
pub const SEGMENTS: usize = 16;

/// Where the channel sees a page that user space has mapped at an I/O virtual address.
const PINNED: u64 = 1 << 40;

/// Bytes between two pieces of kernel memory: the chain's header lies before its CCWs.
const HEADER: usize = 64;

/// Why the kernel refuses a program, each with its errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// EINVAL: CCWs, an IDAL or data lie outside what is mapped.
    NotMapped(u64),
    /// EINVAL: a segment of more than [`SEGMENT_CCWS`] CCWs.
    SegmentTooLong(u32),
    /// EINVAL: more than [`SEGMENTS`] segments.
    TooManySegments,
    /// EFAULT: a TIC leads into no segment.
    NoSuchTarget(u32),
    /// EOPNOTSUPP: ORB.B.
    TransportMode,
}

/// The VFIO container: what user space has mapped for the device.
#[derive(Default)]
pub struct Container {
    windows: Vec<(u64, HostRange, Arc<GuestMap>)>,
}

impl Container {
    /// Maps all regions of `memory`, each at its address plus `offset`.
    pub fn map(&mut self, offset: u64, memory: &Arc<GuestMap>) {
        for region in memory.regions() {
            self.windows.push((region.start() + offset, region.host(), memory.clone()));
        }
    }

    /// `vfio_dma_rw`: all bytes or none.
    fn read(&self, iova: u64, bytes: &mut [u8]) -> Result<(), Refusal> {
        let mut at = iova;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (start, host) = self.window(at).ok_or(Refusal::NotMapped(at))?;
            let offset = (at - start) as usize;
            let (now, later) = rest.split_at_mut(rest.len().min(host.len() - offset));
            assert!(host.read(offset, now), "the window holds it");
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn window(&self, iova: u64) -> Option<(u64, HostRange)> {
        self.windows
            .iter()
            .find(|(start, host, _)| iova >= *start && iova - start < host.len() as u64)
            .map(|(start, host, _)| (*start, *host))
    }

    /// What the channel sees: pinned pages, and the kernel's own memory at `kernel`.
    pub fn channel_space(&self, kernel: u32, memory: &Arc<GuestMap>) -> DmaSpace {
        let mut space = DmaSpace::default();
        for (iova, host, mapping) in &self.windows {
            let window = Window::new(PINNED + iova, *host, mapping.clone());
            space.map(window).expect("windows do not overlap");
        }
        let host = memory.regions()[0].host();
        let window = Window::new(u64::from(kernel), host, memory.clone());
        space.map(window).expect("kernel memory is apart");
        space
    }
}

/// A segment: where user space had it, and the copy.
struct Segment {
    iova: u32,
    ccws: Vec<Ccw>,
    /// Where the channel finds the copy.
    copy: u32,
}

impl Segment {
    /// `is_cpa_within_range`: no look at the alignment.
    fn holds(iova: u32, len: usize, address: u32) -> bool {
        let last = iova.wrapping_add((len as u32 - 1) * 8);
        (iova..=last).contains(&address)
    }
}

/// `struct channel_program`, copied and pinned.
pub struct KernelProgram<'a> {
    container: &'a Container,
    orb: Orb,
    segments: Vec<Segment>,
}

impl<'a> KernelProgram<'a> {
    /// `cp_init`: copies the segments of the program that `orb` designates.
    pub fn copy(container: &'a Container, orb: Orb) -> Result<Self, Refusal> {
        if orb.flags().contains(OrbFlags::TRANSPORT_MODE) {
            return Err(Refusal::TransportMode);
        }
        let mut program = KernelProgram { container, orb, segments: Vec::new() };
        program.copy_segment(orb.cpa())?;
        Ok(program)
    }

    /// CCWs in each segment.
    pub fn lengths(&self) -> Vec<usize> {
        self.segments.iter().map(|segment| segment.ccws.len()).collect()
    }

    /// `ccwchain_handle_ccw` and `ccwchain_loop_tic`.
    fn copy_segment(&mut self, iova: u32) -> Result<(), Refusal> {
        let mut bytes = [0; SEGMENT_CCWS * 8];
        self.container.read(u64::from(iova), &mut bytes)?;
        let mut ccws: Vec<Ccw> =
            bytes.as_chunks::<8>().0.iter().map(|bytes| self.converted(*bytes)).collect();
        let len = segment_length(iova, &ccws).ok_or(Refusal::SegmentTooLong(iova))?;
        if self.segments.len() == SEGMENTS {
            return Err(Refusal::TooManySegments);
        }
        ccws.truncate(len);
        self.segments.push(Segment { iova, ccws: ccws.clone(), copy: 0 });
        for tic in ccws.iter().filter(|ccw| ccw.command == command::TIC) {
            if self.segment_of(tic.address).is_none() {
                self.copy_segment(tic.address)?;
            }
        }
        Ok(())
    }

    /// `convert_ccw0_to_ccw1`.
    fn converted(&self, bytes: [u8; 8]) -> Ccw {
        let ccw = Ccw::decode(bytes, self.orb.is_format_1());
        if !self.orb.is_format_1() && ccw.is_tic(false) {
            return Ccw::new(command::TIC, ccw.address, 0);
        }
        ccw
    }

    /// The first segment that holds `address`.
    fn segment_of(&self, address: u32) -> Option<&Segment> {
        self.segments
            .iter()
            .find(|segment| Segment::holds(segment.iova, segment.ccws.len(), address))
    }

    /// `cp_prefetch` and `cp_get_orb`: writes what the channel runs into `memory`, which it sees at
    /// `kernel`, and returns the ORB to start it with.
    pub fn translate(&mut self, memory: HostRange, kernel: u32) -> Result<Orb, Refusal> {
        let mut used = 0;
        for segment in &mut self.segments {
            used += HEADER;
            segment.copy = kernel + used as u32;
            used += segment.ccws.len() * 8;
        }
        for segment in &self.segments {
            for (index, ccw) in segment.ccws.iter().enumerate() {
                let translated = if ccw.command == command::TIC {
                    self.transfer(ccw)?
                } else {
                    let idal = self.idal(ccw)?;
                    let at = used + HEADER;
                    assert!(memory.write(at, idal.as_flattened()), "kernel memory is large enough");
                    used = at + idal.len() * 8;
                    Ccw { address: kernel + at as u32, ..*ccw }.with(CcwFlags::INDIRECT)
                };
                let at = (segment.copy - kernel) as usize + index * 8;
                assert!(
                    memory.write(at, &translated.to_format_1()),
                    "kernel memory is large enough"
                );
            }
        }
        Ok(self.channel_orb())
    }

    /// `ccwchain_fetch_tic`.
    fn transfer(&self, tic: &Ccw) -> Result<Ccw, Refusal> {
        let segment = self.segment_of(tic.address).ok_or(Refusal::NoSuchTarget(tic.address))?;
        Ok(Ccw { address: segment.copy + (tic.address - segment.iova), ..*tic })
    }

    /// `ccwchain_fetch_ccw`: the IDAL over pinned pages.
    fn idal(&self, ccw: &Ccw) -> Result<Vec<[u8; 8]>, Refusal> {
        let block = u64::from(self.orb.idaw_format().block());
        let size = u64::from(self.orb.idaw_format().size());
        let indirect = ccw.flags.contains(CcwFlags::INDIRECT);
        let list = u64::from(ccw.address);
        let first = if indirect { self.word(list)? } else { list };
        let words = (first % block + u64::from(ccw.count.max(1))).div_ceil(block);
        let mut idaws = vec![first];
        for index in 1..words {
            idaws.push(if indirect {
                self.word(list + index * size)?
            } else {
                first - first % block + index * block
            });
        }
        if pins(ccw) {
            for idaw in &mut idaws {
                self.container.window(*idaw).ok_or(Refusal::NotMapped(*idaw))?;
                *idaw += PINNED;
            }
        }
        Ok(idaws.into_iter().map(u64::to_be_bytes).collect())
    }

    /// One IDAW of the list that user space gave; bit 0 of a format-1 IDAW is not looked at.
    fn word(&self, address: u64) -> Result<u64, Refusal> {
        let mut bytes = [0; 8];
        let size = self.orb.idaw_format().size() as usize;
        self.container.read(address, &mut bytes[8 - size..])?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// `cp_get_orb`.
    fn channel_orb(&self) -> Orb {
        let mut flags = self.orb.flags();
        if !flags.contains(OrbFlags::FORMAT_2_IDAWS) {
            flags |= OrbFlags::IDAW_2K;
        }
        flags |= OrbFlags::FORMAT_1 | OrbFlags::FORMAT_2_IDAWS;
        self.orb.with_flags(flags).with_cpa(self.segments[0].copy)
    }

    /// `cp_update_scsw`: the CCW address in user space's terms; one past a segment's end is its own.
    pub fn update_scsw(&self, mut irb: IrbHead) -> IrbHead {
        let cpa = irb.scsw.cpa();
        let found = self.segments.iter().find(|segment| {
            (segment.copy..=segment.copy + segment.ccws.len() as u32 * 8).contains(&cpa)
        });
        if let Some(segment) = found {
            irb.scsw = irb.scsw.with_cpa(segment.iova + (cpa - segment.copy));
        }
        irb
    }
}

/// `ccwchain_calc_length`: to the first CCW that neither chains nor is a TIC back into what was
/// counted so far; `None` where there is none.
fn segment_length(iova: u32, ccws: &[Ccw]) -> Option<usize> {
    let ends = |(index, ccw): (usize, &Ccw)| {
        let loops = ccw.command == command::TIC && Segment::holds(iova, index + 1, ccw.address);
        !ccw.chains() && !loops
    };
    ccws.iter().enumerate().position(ends).map(|index| index + 1)
}

/// `ccw_does_data_transfer`.
fn pins(ccw: &Ccw) -> bool {
    if ccw.count == 0 || ccw.command == command::NOP {
        return false;
    }
    !ccw.flags.contains(CcwFlags::SKIP) || !CommandClass::of(ccw.command).stores()
}
