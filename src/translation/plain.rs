//! The CCWs that nearly all programs are made of, translated with the fewest instructions: format 1,
//! blocks of 4 KiB, one command without data chaining, data upward in one region, no keys, no policy.
//!
//! Everything here is also done, case by case, by the general code in `fetch.rs` and `data_area.rs`;
//! what is not plain is left to it before anything was read.

use vfio_ccw_pinning::{FRAME, FRAME_SHIFT, GuestMap, HostRange};

use crate::architecture::{Ccw, CcwFlags, command};
use crate::shadow::{GUEST_IOVA, UNMAPPED_IOVA};

use super::fetch::Fetch;
use super::program::{Program, ShadowCcw, Target};

/// Flags that do not keep a CCW from being plain.
const PLAIN: CcwFlags = CcwFlags::CHAIN_COMMAND
    .union(CcwFlags::SUPPRESS_LENGTH)
    .union(CcwFlags::PROGRAM_CONTROLLED)
    .union(CcwFlags::INDIRECT);

/// Commands that can be plain: reads, writes and control commands; no search, sense, read backward,
/// or CONTROL NO-OPERATION, whose area is not touched.
const TRANSFERS: [bool; 256] = {
    let mut transfers = [false; 256];
    let mut code = 0;
    while code < 256 {
        let byte = code as u8;
        transfers[code] = byte & 3 != 0 && byte != command::NOP && !command::is_search(byte);
        code += 1;
    }
    transfers
};

/// The most words that the area of one CCW can need: 65,535 bytes in blocks of 4 KiB.
const MOST_WORDS: usize = 17;

/// Addresses of CCWs, IDALs and direct data lie below 2 GiB.
const ADDRESS_LIMIT: u64 = 1 << 31;

/// Where a run of plain CCWs has led.
pub(super) enum Run {
    /// To the end of the chain.
    End,
    /// To a CCW that is not plain; it was read.
    Ccw(Ccw),
    /// To a place that has to be looked at.
    Place,
}

/// The region that was used last: mostly the next address is in it, too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Near {
    start: u64,
    len: u64,
    first_frame: u32,
    frame_shift: u32,
    host: Option<HostRange>,
}

impl Near {
    /// The region that holds guest address `address`, or an empty one.
    pub(super) fn of(map: &GuestMap, address: u64) -> Self {
        match map.region(address) {
            Some(region) => Near {
                start: region.start(),
                len: region.len(),
                first_frame: region.first_frame(),
                frame_shift: region.frame_shift(),
                host: Some(region.host()),
            },
            None => Near { start: 0, len: 0, first_frame: 0, frame_shift: FRAME_SHIFT, host: None },
        }
    }

    /// The doubleword at a guest address in it.
    #[inline(always)]
    pub(super) fn load_doubleword(&self, address: u64) -> Option<[u8; 8]> {
        // Behind the region it is far behind its bytes, too.
        self.host?.load_doubleword(address.wrapping_sub(self.start) as usize)
    }

    /// The guest address behind it.
    fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Frame of a guest address in it.
    #[inline(always)]
    fn frame(&self, address: u64) -> Option<u32> {
        let offset = address.wrapping_sub(self.start);
        (offset < self.len).then(|| self.first_frame + (offset >> self.frame_shift) as u32)
    }
}

impl Fetch<'_> {
    /// Translates plain CCWs from `ccw` on, which was read at guest address `at`; that moves to where
    /// the run has led.
    #[inline(always)]
    pub(super) fn plain_run(&mut self, program: &mut Program, mut ccw: Ccw, at: &mut u64) -> Run {
        // Data may be in another region: then the rest is read there.
        let program_near = self.near;
        let end = self.horizon.min(program_near.end()).min(ADDRESS_LIMIT);
        let mut place = *at;
        let mut room = self.rules.limits.ccws.saturating_sub(self.taken);
        let led_to = loop {
            if !self.plain(program, &ccw) {
                break Run::Ccw(ccw);
            }
            room -= 1;
            place += 8;
            if !ccw.flags.contains(CcwFlags::CHAIN_COMMAND) {
                break Run::End;
            }
            if place >= end || room == 0 {
                break Run::Place;
            }
            match program_near.load_doubleword(place) {
                Some(word) => ccw = Ccw::decode(word, true),
                None => break Run::Place,
            }
        };
        *at = place;
        self.taken = self.rules.limits.ccws - room;
        program.measure_segment();
        led_to
    }

    /// Translates `ccw` if it is plain; whether it was.
    #[inline(always)]
    fn plain(&mut self, program: &mut Program, ccw: &Ccw) -> bool {
        let limits = &self.rules.limits;
        let list = program.idaws.len();
        let plain = TRANSFERS[usize::from(ccw.command)]
            && PLAIN.contains(ccw.flags)
            && ccw.count != 0
            && program.data_bytes + u64::from(ccw.count) <= limits.bytes
            && list + MOST_WORDS <= limits.idaws;
        let translated = plain
            && match ccw.flags.contains(CcwFlags::INDIRECT) {
                true => self.plain_list(program, ccw),
                false => self.plain_area(program, ccw),
            };
        if translated {
            program.data_bytes += u64::from(ccw.count);
            let (list, stores) = (list as u32, ccw.command & 3 == 2);
            program.ccws.push(ShadowCcw {
                command: ccw.command,
                flags: ccw.flags | CcwFlags::INDIRECT,
                count: ccw.count,
                leader: ccw.command,
                target: if stores { Target::Store(list) } else { Target::Fetch(list) },
            });
        }
        translated
    }

    /// Cuts a direct area that lies in one region into blocks; `false` where it does not.
    #[inline(always)]
    fn plain_area(&mut self, program: &mut Program, ccw: &Ccw) -> bool {
        let start = u64::from(ccw.address);
        let last = start + u64::from(ccw.count) - 1;
        let Some(frame) = self.frame_of(start) else { return false };
        let Some(last_frame) = self.near.frame(last) else { return false };
        if last >= ADDRESS_LIMIT {
            return false;
        }
        let iova = |block: u64| ((block << FRAME_SHIFT) + GUEST_IOVA).to_be_bytes();
        let (first, last) = (start >> FRAME_SHIFT, last >> FRAME_SHIFT);
        let start = (start + GUEST_IOVA).to_be_bytes();
        match last - first {
            0 => {
                self.hold.want(frame);
                program.idaws.push(start);
            }
            1 => {
                self.hold.want_run(frame, last_frame - frame + 1);
                program.idaws.extend([start, iova(last)]);
            }
            _ => {
                self.hold.want_run(frame, last_frame - frame + 1);
                program.idaws.push(start);
                program.idaws.extend((first + 1..=last).map(iova));
            }
        }
        true
    }

    /// Copies an IDAL of doublewords; `false` where it does not begin in memory, or not on one.
    #[inline(always)]
    fn plain_list(&mut self, program: &mut Program, ccw: &Ccw) -> bool {
        let list = u64::from(ccw.address);
        if !list.is_multiple_of(8) || list >= ADDRESS_LIMIT {
            return false;
        }
        let Some(region) = self.map.region(list) else { return false };
        let within = FRAME - 1;
        // The longest list that the count allows, so that no word is read twice.
        let most = (u64::from(ccw.count) >> FRAME_SHIFT) + 2;
        if list + most * 8 > region.end() {
            return false;
        }
        let before = program.idaws.len();
        let (host, mut offset) = (region.host(), (list - region.start()) as usize);
        let mut address = load(&host, offset);
        let mut words = ((address & within) + u64::from(ccw.count) + within) >> FRAME_SHIFT;
        while let Some(frame) = self.frame_of(address) {
            self.hold.want(frame);
            program.idaws.push((address + GUEST_IOVA).to_be_bytes());
            words -= 1;
            if words == 0 {
                return true;
            }
            offset += 8;
            address = load(&host, offset);
            if address & within != 0 {
                break;
            }
        }
        if self.rules.pins_areas {
            // The list is read anew, and what was read of it is forgotten.
            program.idaws.truncate(before);
            return false;
        }
        // Nothing behind it can be reached, but the list keeps its length.
        program.idaws.extend((0..words).map(|_| UNMAPPED_IOVA.to_be_bytes()));
        true
    }

    /// The frame that holds guest address `address`.
    #[inline(always)]
    fn frame_of(&mut self, address: u64) -> Option<u32> {
        self.near.frame(address).or_else(|| self.far_frame(address))
    }

    #[cold]
    fn far_frame(&mut self, address: u64) -> Option<u32> {
        self.near = Near::of(self.map, address);
        self.near.frame(address)
    }
}

/// An IDAW that was found to be in memory.
#[inline(always)]
fn load(host: &HostRange, offset: usize) -> u64 {
    u64::from_be_bytes(host.load_doubleword(offset).unwrap_or_default())
}

const _: () = assert!(FRAME == 4096, "a block is the smallest frame");
