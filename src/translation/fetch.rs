//! Reading and checking the guest program, segment by segment.

use vfio_ccw_pinning::{GuestMap, Hold};

use crate::architecture::{Ccw, CcwFlags, CommandClass, Idaw1, IdawFormat, Orb, command};
use crate::shadow::{GUEST_IOVA, UNMAPPED_IOVA};

use super::Limits;
use super::program::{Program, Segment, ShadowCcw, Target};

impl Program {
    /// Reads the program that `orb` designates, and puts the frames its data touches into `hold`.
    /// `orb` has passed [`Orb::check`].
    pub(crate) fn fetch(&mut self, orb: &Orb, map: &GuestMap, limits: &Limits, hold: &mut Hold) {
        self.orb = *orb;
        self.ccws.clear();
        self.idaws.clear();
        self.segments.clear();
        hold.clear();
        let mut fetch = Fetch {
            map,
            limits,
            hold,
            format_1: orb.is_format_1(),
            idaws: orb.idaw_format(),
            leader: command::NOP,
        };
        self.segments.push(Segment { start: orb.cpa(), first: 0, len: 0 });
        let mut next = 0;
        while next < self.segments.len() {
            fetch.segment(self, next);
            next += 1;
        }
    }
}

struct Fetch<'a> {
    map: &'a GuestMap,
    limits: &'a Limits,
    hold: &'a mut Hold,
    format_1: bool,
    idaws: IdawFormat,
    /// Command of the CCW that a run of data chaining began with: the later ones' is ignored.
    leader: u8,
}

impl Fetch<'_> {
    /// Addresses of CCWs and direct data lie below this.
    fn address_limit(&self) -> u64 {
        if self.format_1 { 1 << 31 } else { 1 << 24 }
    }

    /// Reads segment `index` to its end and opens segments for what its TICs lead to.
    fn segment(&mut self, program: &mut Program, index: usize) {
        let start = program.segments[index].start;
        let first = program.ccws.len() as u32;
        program.segments[index].first = first;
        let mut chained = false;
        loop {
            let len = program.segments[index].len;
            let address = u64::from(start) + u64::from(len) * 8;
            let Some(ccw) = self.ccw(address).filter(|_| program.ccws.len() < self.limits.ccws)
            else {
                program.ccws.push(ShadowCcw::stop(0));
                break;
            };
            program.segments[index].len += 1;
            if ccw.is_tic(self.format_1) {
                let shadow = self.transfer(&ccw);
                program.ccws.push(shadow);
                if self.goes_on_after(&shadow, &program.segments[index]) {
                    continue;
                }
                // Behind a transfer out of the segment only a status modifier can lead.
                program.ccws.push(ShadowCcw::stop(0));
                break;
            }
            if !chained {
                self.leader = ccw.command;
            }
            chained = ccw.flags.contains(CcwFlags::CHAIN_DATA);
            let shadow = self.command(program, &ccw);
            program.ccws.push(shadow);
            if !ccw.chains() {
                break;
            }
        }
        self.open_targets(program, first as usize);
    }

    /// The CCW at `address`; `None` where there can be none.
    fn ccw(&self, address: u64) -> Option<Ccw> {
        if !address.is_multiple_of(8) || address >= self.address_limit() {
            return None;
        }
        Some(Ccw::decode(self.map.load_doubleword(address)?, self.format_1))
    }

    /// A TIC; one with an impossible target or, in format 1, with flags or count is a stop.
    fn transfer(&self, ccw: &Ccw) -> ShadowCcw {
        let target = u64::from(ccw.address);
        let odd = self.format_1 && (!ccw.flags.is_empty() || ccw.count != 0);
        if odd || !target.is_multiple_of(8) || target >= self.address_limit() {
            return ShadowCcw::stop(ccw.count);
        }
        ShadowCcw {
            command: command::TIC,
            flags: CcwFlags::empty(),
            count: 0,
            target: Target::Transfer(ccw.address),
        }
    }

    /// Whether the CCW behind a TIC belongs to the segment: after a search loop (TIC *-8) it does,
    /// since the device's status modifier skips the TIC. The kernel's rule (`ccwchain_calc_length`).
    fn goes_on_after(&self, tic: &ShadowCcw, segment: &Segment) -> bool {
        matches!(tic.target, Target::Transfer(target) if segment.index_of(target).is_some())
    }

    /// Opens a segment for every TIC since `first` that leads to CCWs not read yet.
    fn open_targets(&mut self, program: &mut Program, first: usize) {
        for index in first..program.ccws.len() {
            let Target::Transfer(target) = program.ccws[index].target else {
                continue;
            };
            let known = program.index_of(target).is_some()
                || program.segments.iter().any(|segment| segment.start == target);
            if !known && program.segments.len() < self.limits.segments {
                program.segments.push(Segment { start: target, first: 0, len: 0 });
            }
        }
    }

    /// A CCW that is not a TIC, with its IDAL.
    fn command(&mut self, program: &mut Program, ccw: &Ccw) -> ShadowCcw {
        let unsupported = ccw.flags.intersects(CcwFlags::SUSPEND | CcwFlags::MODIFIED_INDIRECT);
        let empty_format_0 = !self.format_1 && ccw.count == 0;
        if unsupported || empty_format_0 {
            return ShadowCcw::stop(ccw.count);
        }
        let shadow = ShadowCcw {
            command: ccw.command,
            flags: ccw.flags - CcwFlags::INDIRECT,
            count: ccw.count,
            target: Target::Nothing,
        };
        if ccw.count == 0 {
            return shadow;
        }
        let list = program.idaws.len();
        let complete = if ccw.flags.contains(CcwFlags::INDIRECT) {
            self.indirect_data(program, ccw)
        } else {
            self.direct_data(program, ccw);
            true
        };
        if !complete || program.idaws.len() > self.limits.idaws {
            program.idaws.truncate(list);
            return ShadowCcw::stop(ccw.count);
        }
        ShadowCcw {
            flags: shadow.flags | CcwFlags::INDIRECT,
            target: Target::Idal(list as u32),
            ..shadow
        }
    }

    /// Cuts a direct data area into blocks.
    fn direct_data(&mut self, program: &mut Program, ccw: &Ccw) {
        let block = u64::from(self.idaws.block());
        let moves = self.moves_data(ccw);
        let end = u64::from(ccw.address) + u64::from(ccw.count);
        let mut at = u64::from(ccw.address);
        while at < end {
            let valid = at < self.address_limit();
            self.word(program, valid.then_some(at), moves);
            at = (at / block + 1) * block;
        }
    }

    /// Copies a guest IDAL; `false` where the list itself cannot be used.
    fn indirect_data(&mut self, program: &mut Program, ccw: &Ccw) -> bool {
        let format = self.idaws;
        let block = u64::from(format.block());
        let list = u64::from(ccw.address);
        if !list.is_multiple_of(u64::from(format.size())) || list >= self.address_limit() {
            return false;
        }
        let moves = self.moves_data(ccw);
        let first = self.idaw(list);
        let offset = first.map_or(0, |first| first % block);
        let words = (offset + u64::from(ccw.count)).div_ceil(block);
        self.word(program, first, moves);
        for index in 1..words {
            let idaw = self.idaw(list + index * u64::from(format.size()));
            // All but the first must designate the start of a block.
            self.word(program, idaw.filter(|idaw| idaw % block == 0), moves);
        }
        true
    }

    /// The guest IDAW at `address`, or `None` where there is none or it is not valid.
    fn idaw(&self, address: u64) -> Option<u64> {
        match self.idaws {
            IdawFormat::Format1 => Idaw1(self.map.load_word(address)?.into()).address(),
            _ => Some(u64::from_be_bytes(self.map.load_doubleword(address)?)),
        }
    }

    /// Appends the IDAW for a block at guest address `address`; where there is no memory, one that
    /// fails when the channel gets there. Regions are whole frames, so a block is all there or not.
    fn word(&mut self, program: &mut Program, address: Option<u64>, moves: bool) {
        let frame = address.and_then(|address| self.map.frame(address));
        let iova = match (address, frame) {
            (Some(address), Some(frame)) => {
                if moves {
                    self.hold.want(frame);
                }
                address + GUEST_IOVA
            }
            _ => UNMAPPED_IOVA,
        };
        program.idaws.push(iova.to_be_bytes());
    }

    /// Whether the CCW's area is touched at all (the kernel's `ccw_does_data_transfer`).
    fn moves_data(&self, ccw: &Ccw) -> bool {
        if self.leader == command::NOP {
            return false;
        }
        !(ccw.flags.contains(CcwFlags::SKIP) && CommandClass::of(self.leader).stores())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::OrbFlags;
    use std::sync::Arc;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn guest() -> GuestMap {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[
            (GuestAddress(0), 0x10000),
            (GuestAddress(0x20000), 0x4000),
        ]);
        GuestMap::new(Arc::new(memory.unwrap())).unwrap()
    }

    fn put(map: &GuestMap, address: u32, ccws: &[Ccw]) {
        for (index, ccw) in ccws.iter().enumerate() {
            assert!(map.write(u64::from(address) + index as u64 * 8, &ccw.to_format_1()));
        }
    }

    fn fetch(map: &GuestMap, orb: Orb) -> (Program, Hold) {
        let (mut program, mut hold) = (Program::default(), Hold::default());
        program.fetch(&orb, map, &Limits::default(), &mut hold);
        (program, hold)
    }

    fn iovas(program: &Program) -> Vec<u64> {
        program.idaws.iter().map(|idaw| u64::from_be_bytes(*idaw)).collect()
    }

    const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;

    #[test]
    fn direct_data_is_cut_at_block_boundaries() {
        let map = guest();
        put(&map, 0x100, &[Ccw::new(command::FBA_READ, 0x1800, 0x1900)]);
        let (program, hold) = fetch(&map, Orb::new(0x100));
        assert_eq!(iovas(&program), [0x1800, 0x2000, 0x3000].map(|gpa| gpa + GUEST_IOVA));
        assert_eq!(hold.wanted(), 3);
        let two_k = Orb::new(0x100)
            .with_flags(OrbFlags::FORMAT_1 | OrbFlags::FORMAT_2_IDAWS | OrbFlags::IDAW_2K);
        let (program, hold) = fetch(&map, two_k);
        assert_eq!(iovas(&program), [0x1800, 0x2000, 0x2800, 0x3000].map(|gpa| gpa + GUEST_IOVA));
        assert_eq!(hold.wanted(), 3, "two blocks of one frame are one frame");
    }

    #[test]
    fn idals_of_both_formats_are_copied() {
        let map = guest();
        let ida = CcwFlags::INDIRECT;
        put(&map, 0x100, &[Ccw::new(command::FBA_READ, 0x200, 0x1000).with(ida)]);
        map.write(0x200, &0x20_0010u64.to_be_bytes());
        map.write(0x200, &0x2_0010u64.to_be_bytes());
        map.write(0x208, &0x3000u64.to_be_bytes());
        let (program, _) = fetch(&map, Orb::new(0x100));
        assert_eq!(iovas(&program), [0x2_0010 + GUEST_IOVA, 0x3000 + GUEST_IOVA]);
        map.write(0x200, &[0, 0, 0x18, 0, 0, 0, 0x28, 0]);
        let (program, _) = fetch(&map, Orb::new(0x100).with_flags(OrbFlags::FORMAT_1));
        assert_eq!(iovas(&program), [0x1800 + GUEST_IOVA, 0x2800 + GUEST_IOVA]);
    }

    #[test]
    fn bad_addresses_become_idaws_that_fail() {
        let map = guest();
        put(&map, 0x100, &[Ccw::new(command::FBA_READ, 0xf800, 0x1000)]);
        assert_eq!(iovas(&fetch(&map, Orb::new(0x100)).0), [0xf800 + GUEST_IOVA, UNMAPPED_IOVA]);
        put(&map, 0x100, &[Ccw::new(command::FBA_READ, 0xffff_f000, 0x1fff)]);
        assert_eq!(iovas(&fetch(&map, Orb::new(0x100)).0), [UNMAPPED_IOVA; 2]);
        put(&map, 0x100, &[Ccw::new(command::FBA_READ, 0x200, 0x1800).with(CcwFlags::INDIRECT)]);
        map.write(0x200, &0x1000u64.to_be_bytes());
        map.write(0x208, &0x2004u64.to_be_bytes());
        let (program, hold) = fetch(&map, Orb::new(0x100));
        assert_eq!(
            iovas(&program),
            [0x1000 + GUEST_IOVA, UNMAPPED_IOVA],
            "second IDAW off its block"
        );
        assert_eq!(hold.wanted(), 1);
        put(&map, 0x100, &[Ccw::new(command::FBA_READ, 0xfff8, 0x2000).with(CcwFlags::INDIRECT)]);
        map.write(0xfff8, &0x1000u64.to_be_bytes());
        let (program, _) = fetch(&map, Orb::new(0x100));
        assert_eq!(iovas(&program)[1], UNMAPPED_IOVA, "the list runs out of memory");
    }

    #[test]
    fn a_chain_that_runs_out_of_memory_ends_in_a_stop() {
        let map = guest();
        put(&map, 0xfff8, &[Ccw::new(command::NOP, 0, 0).with(CC)]);
        let (program, _) = fetch(&map, Orb::new(0xfff8));
        assert_eq!(program.ccws.len(), 2);
        assert_eq!(program.ccws[1], ShadowCcw::stop(0));
        for cpa in [0x101, 0x1_8000, 0x7fff_fff8] {
            let (program, _) = fetch(&map, Orb::new(cpa));
            assert_eq!(program.ccws, [ShadowCcw::stop(0)]);
        }
    }

    #[test]
    fn transfers_open_segments_once() {
        let map = guest();
        put(
            &map,
            0x100,
            &[Ccw::new(command::NOP, 0, 0).with(CC), Ccw::new(command::TIC, 0x300, 0)],
        );
        put(
            &map,
            0x300,
            &[Ccw::new(command::NOP, 0, 0).with(CC), Ccw::new(command::TIC, 0x100, 0)],
        );
        let (program, _) = fetch(&map, Orb::new(0x100));
        assert_eq!(program.segments.len(), 2);
        assert_eq!(program.index_of(0x300), Some(program.segments[1].first));
        assert_eq!(program.index_of(0x304), None);
    }

    #[test]
    fn a_search_loop_keeps_what_follows_it() {
        let map = guest();
        let program = [
            Ccw::new(0x31, 0x1000, 5).with(CC),
            Ccw::new(command::TIC, 0x100, 0),
            Ccw::new(0x06, 0x2000, 512),
        ];
        put(&map, 0x100, &program);
        let (program, hold) = fetch(&map, Orb::new(0x100));
        assert_eq!((program.segments.len(), program.ccws.len()), (1, 3));
        assert_eq!(hold.wanted(), 2);
    }

    #[test]
    fn odd_transfers_are_stops() {
        let map = guest();
        for tic in [
            Ccw::new(command::TIC, 0x304, 0),
            Ccw::new(command::TIC, 0x8000_0300, 0),
            Ccw::new(command::TIC, 0x300, 1),
            Ccw::new(command::TIC, 0x300, 0).with(CC),
        ] {
            put(&map, 0x100, &[Ccw::new(command::NOP, 0, 0).with(CC), tic]);
            let (program, _) = fetch(&map, Orb::new(0x100));
            assert_eq!(program.segments.len(), 1, "{tic:?}");
            assert_eq!(program.ccws[1].target, Target::Nothing, "{tic:?}");
        }
    }

    #[test]
    fn limits_end_in_stops_not_in_growth() {
        let map = guest();
        let endless = [Ccw::new(command::NOP, 0, 0).with(CC); 64];
        put(&map, 0x100, &endless);
        let (mut program, mut hold) = (Program::default(), Hold::default());
        let limits = Limits { ccws: 10, idaws: 3, segments: 1 };
        program.fetch(&Orb::new(0x100), &map, &limits, &mut hold);
        assert_eq!((program.ccws.len(), program.ccws[10]), (11, ShadowCcw::stop(0)));
        put(&map, 0x100, &[Ccw::new(command::FBA_READ, 0x1000, 0x4000)]);
        program.fetch(&Orb::new(0x100), &map, &limits, &mut hold);
        assert_eq!((program.ccws[0], program.idaws.len()), (ShadowCcw::stop(0x4000), 0));
        put(
            &map,
            0x100,
            &[Ccw::new(command::NOP, 0, 0).with(CC), Ccw::new(command::TIC, 0x300, 0)],
        );
        program.fetch(&Orb::new(0x100), &map, &limits, &mut hold);
        assert_eq!(program.segments.len(), 1, "no room for the target's segment");
    }

    #[test]
    fn only_data_that_moves_is_wanted() {
        let map = guest();
        let skip = CcwFlags::SKIP;
        for (ccw, frames) in [
            (Ccw::new(command::NOP, 0x1000, 4096), 0),
            (Ccw::new(command::FBA_READ, 0x1000, 4096).with(skip), 0),
            (Ccw::new(command::FBA_WRITE, 0x1000, 4096).with(skip), 1),
            (Ccw::new(command::FBA_READ, 0x1000, 0), 0),
            (Ccw::new(0x07, 0x1000, 6), 1),
        ] {
            put(&map, 0x100, &[ccw]);
            assert_eq!(fetch(&map, Orb::new(0x100)).1.wanted(), frames, "{ccw:?}");
        }
        // Data-chained: the first command decides, the second's code is ignored.
        let read = Ccw::new(command::FBA_READ, 0x1000, 512).with(CcwFlags::CHAIN_DATA);
        put(&map, 0x100, &[read, Ccw::new(command::NOP, 0x2000, 512)]);
        assert_eq!(fetch(&map, Orb::new(0x100)).1.wanted(), 2);
    }

    #[test]
    fn format_0_programs_have_24_bit_addresses() {
        let map = guest();
        map.write(0x100, &Ccw::new(command::FBA_READ, 0x1000, 16).with(CC).to_format_0());
        map.write(0x108, &Ccw::new(0x58, 0x300, 9).to_format_0());
        map.write(0x300, &Ccw::new(command::NOP, 0, 0).to_format_0());
        let flags = OrbFlags::FORMAT_2_IDAWS;
        let (program, hold) = fetch(&map, Orb::new(0x100).with_flags(flags));
        assert_eq!(program.segments.len(), 2, "0x58 is a TIC in format 0");
        assert_eq!(hold.wanted(), 1);
        assert_eq!(program.ccws[3], ShadowCcw::stop(0), "count 0 is refused in format 0");
        assert_eq!(
            fetch(&map, Orb::new(0x100_0000).with_flags(flags)).0.ccws,
            [ShadowCcw::stop(0)]
        );
    }
}
