//! The CCWs that nearly all programs are made of, translated with the fewest instructions: one
//! command without data chaining, data upward in one region, no keys, no policy.
//!
//! Everything here is also done, case by case, by the general code in `fetch.rs` and `data_area.rs`;
//! what is not plain is left to it before anything was read.

use vfio_ccw_pinning::{FRAME_SHIFT, Region};

use crate::architecture::{Ccw, CcwFlags, IdawFormat, command};
use crate::shadow::{GUEST_IOVA, UNMAPPED_IOVA};

use super::fetch::Fetch;
use super::program::{Program, ShadowCcw, Target};

/// Flags that do not keep a CCW from being plain.
const PLAIN: CcwFlags = CcwFlags::CHAIN_COMMAND
    .union(CcwFlags::SUPPRESS_LENGTH)
    .union(CcwFlags::PROGRAM_CONTROLLED)
    .union(CcwFlags::INDIRECT);

/// Where a run of plain CCWs has led.
pub(super) enum Run {
    /// To the end of the chain.
    End,
    /// To a CCW that is not plain; it was read.
    Ccw(Ccw),
    /// To a place that has to be looked at.
    Place,
}

impl Fetch<'_> {
    /// Translates plain CCWs from `ccw` on, which was read at guest address `at`; that moves to where
    /// the run has led.
    pub(super) fn plain_run(&mut self, program: &mut Program, mut ccw: Ccw, at: &mut u64) -> Run {
        let Some(region) = self.map.region(*at) else { return Run::Ccw(ccw) };
        let host = region.host();
        let end = self.horizon.min(region.end()).min(self.address_limit());
        let most = self.rules.limits.ccws;
        let led_to = loop {
            if !self.plain(program, &ccw) {
                break Run::Ccw(ccw);
            }
            self.taken += 1;
            *at += 8;
            if !ccw.flags.contains(CcwFlags::CHAIN_COMMAND) {
                break Run::End;
            }
            if *at >= end || self.taken >= most {
                break Run::Place;
            }
            match host.load_doubleword((*at - region.start()) as usize) {
                Some(word) => ccw = Ccw::decode(word, self.format_1),
                None => break Run::Place,
            }
        };
        program.measure_segment();
        led_to
    }

    /// Translates `ccw` if it is plain; whether it was.
    #[inline(always)]
    fn plain(&mut self, program: &mut Program, ccw: &Ccw) -> bool {
        // A read, a write or a control command that moves data; no search, sense or read backward.
        let transfers = ccw.command & 3 != 0 && ccw.count != 0 && ccw.command != command::NOP;
        let plain = transfers
            && PLAIN.contains(ccw.flags)
            && !command::is_search(ccw.command)
            && program.data_bytes + u64::from(ccw.count) <= self.rules.limits.bytes
            // Even if it takes as many words as a CCW can need.
            && program.idaws.len() + 34 <= self.rules.limits.idaws;
        if !plain {
            return false;
        }
        let list = program.idaws.len() as u32;
        let done = if ccw.flags.contains(CcwFlags::INDIRECT) {
            self.plain_list(program, ccw)
        } else {
            self.plain_area(program, ccw)
        };
        if !done {
            return false;
        }
        program.data_bytes += u64::from(ccw.count);
        let stores = ccw.command & 3 == 2;
        program.ccws.push(ShadowCcw {
            command: ccw.command,
            flags: ccw.flags | CcwFlags::INDIRECT,
            count: ccw.count,
            leader: ccw.command,
            target: if stores { Target::Store(list) } else { Target::Fetch(list) },
        });
        true
    }

    /// Cuts a direct area that lies in one region into blocks; `false` where it does not.
    #[inline(always)]
    fn plain_area(&mut self, program: &mut Program, ccw: &Ccw) -> bool {
        let start = u64::from(ccw.address);
        let end = start + u64::from(ccw.count);
        let Some(region) = self.region_of(start).filter(|region| end <= region.end()) else {
            return false;
        };
        if end > self.address_limit() {
            return false;
        }
        let (first, last) = (region.frame(start), region.frame(end - 1));
        self.hold.want_run(first, last - first + 1);
        program.idaws.push((start + GUEST_IOVA).to_be_bytes());
        let shift = self.idaw_format.block().trailing_zeros();
        let blocks = (start >> shift) + 1..((end - 1) >> shift) + 1;
        program.idaws.extend(blocks.map(|block| ((block << shift) + GUEST_IOVA).to_be_bytes()));
        true
    }

    /// Copies an IDAL of doublewords; `false` where it does not begin in memory, or not on one.
    #[inline(always)]
    fn plain_list(&mut self, program: &mut Program, ccw: &Ccw) -> bool {
        let list = u64::from(ccw.address);
        if self.idaw_format == IdawFormat::Format1
            || !list.is_multiple_of(8)
            || list >= self.address_limit()
        {
            return false;
        }
        let Some(region) = self.region_of(list) else { return false };
        let shift = self.idaw_format.block().trailing_zeros();
        let within = (1u64 << shift) - 1;
        // The longest list that the count allows, so that no word is read twice.
        let most = (u64::from(ccw.count) >> shift) + 2;
        if list + most * 8 > region.end() {
            return false;
        }
        let (host, offset) = (region.host(), (list - region.start()) as usize);
        let mut words = 1;
        let mut index = 0;
        while index < words {
            let word = host.load_doubleword(offset + index * 8).unwrap_or_default();
            let address = u64::from_be_bytes(word);
            let aligned = index == 0 || address & within == 0;
            if index == 0 {
                let bytes = (address & within) + u64::from(ccw.count);
                words = ((bytes + within) >> shift) as usize;
            }
            match self.region_of(address).filter(|_| aligned) {
                Some(region) => {
                    self.hold.want(region.frame(address));
                    program.idaws.push((address + GUEST_IOVA).to_be_bytes());
                }
                None => {
                    // Nothing behind it can be reached, but the list keeps its length.
                    let rest = (index..words).map(|_| UNMAPPED_IOVA.to_be_bytes());
                    program.idaws.extend(rest);
                    return true;
                }
            }
            index += 1;
        }
        true
    }

    /// The region that holds guest address `address`: mostly the same as the last time.
    #[inline(always)]
    fn region_of(&mut self, address: u64) -> Option<Region> {
        if address.wrapping_sub(self.region.start()) < self.region.len() {
            return Some(self.region);
        }
        self.region = *self.map.region(address)?;
        Some(self.region)
    }
}

const _: () = assert!(FRAME_SHIFT == 12, "no block is larger than a frame");
