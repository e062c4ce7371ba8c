//! The data area of a CCW as an IDAL over I/O virtual addresses: cut into blocks if it is direct,
//! copied if the guest has an IDAL, rebuilt if it has MIDAWs.
//!
//! An address that cannot be used becomes a word that fails when the channel gets there.

use crate::architecture::command;
use crate::architecture::{Ccw, CcwFlags, CommandClass, Idaw1, IdawFormat, Midaw};
use crate::shadow::{GUEST_IOVA, PROTECTED_IOVA, UNMAPPED_IOVA};

use super::extent::{self, PARAMETER_BYTES};
use super::fetch::Fetch;
use super::midaw_list;
use super::program::{PARAMETER_SLOT, Program};

/// How a CCW's data moves, as far as its place in the program says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Movement {
    /// Into memory.
    pub(super) stores: bool,
    /// Down from the address.
    pub(super) backward: bool,
    /// At all.
    pub(super) moves: bool,
}

impl Movement {
    /// Of a CCW with these flags, in a data chain that began with `command` (or its own).
    pub(super) fn of(command: u8, flags: CcwFlags) -> Self {
        let class = CommandClass::of(command);
        let stores = class.stores();
        // The kernel's `ccw_does_data_transfer`.
        let moves = command != command::NOP && !(stores && flags.contains(CcwFlags::SKIP));
        Movement { stores, backward: class == CommandClass::ReadBackward, moves }
    }
}

impl Fetch<'_> {
    /// Appends the IDAL of a CCW whose count is not zero. `None`: its MIDAWs cannot be used.
    pub(super) fn data_area(
        &mut self,
        program: &mut Program,
        ccw: &Ccw,
        movement: Movement,
    ) -> Option<()> {
        if ccw.flags.contains(CcwFlags::MODIFIED_INDIRECT) {
            return self.modified_indirect(program, ccw, movement);
        }
        match (ccw.flags.contains(CcwFlags::INDIRECT), movement.backward) {
            (false, false) => {
                let start = u64::from(ccw.address);
                self.ascending(program, start, start + u64::from(ccw.count), movement);
            }
            (false, true) => self.descending(program, ccw, movement),
            (true, _) => self.indirect(program, ccw, movement),
        }
        Some(())
    }

    /// Cuts a direct area into blocks.
    fn ascending(&mut self, program: &mut Program, start: u64, end: u64, movement: Movement) {
        let block = u64::from(self.idaw_format.block());
        let limit = self.address_limit();
        let mut at = start;
        while at < end {
            let Some(region) = self.map.region(at).filter(|_| at < limit) else {
                // Nothing behind it can be reached, but the list keeps its length.
                let words = end.div_ceil(block) - at / block;
                return self.fail(program, UNMAPPED_IOVA, words, movement);
            };
            let here = end.min(limit).min(region.end());
            while at < here {
                self.word(program, at, region.frame(at), movement);
                at = (at | (block - 1)) + 1;
            }
        }
    }

    /// Cuts a direct area that is read backward into blocks: each word designates a block's last
    /// byte, the first one the area's.
    fn descending(&mut self, program: &mut Program, ccw: &Ccw, movement: Movement) {
        let block = u64::from(self.idaw_format.block());
        let list = program.idaws.len();
        let mut at = Some(u64::from(ccw.address));
        let mut left = u64::from(ccw.count);
        while left > 0 {
            let found = at
                .filter(|at| *at < self.address_limit())
                .and_then(|at| Some((at, self.map.frame(at)?)));
            let Some((address, frame)) = found else {
                return self.fail(program, UNMAPPED_IOVA, left.div_ceil(block), movement);
            };
            self.word(program, address, frame, movement);
            let offset = address % block;
            left = left.saturating_sub(offset + 1);
            at = (address - offset).checked_sub(1);
        }
        self.pad(program, list, u64::from(ccw.address), ccw.count);
    }

    /// Copies a guest IDAL.
    fn indirect(&mut self, program: &mut Program, ccw: &Ccw, movement: Movement) {
        let format = self.idaw_format;
        let (block, size) = (u64::from(format.block()), u64::from(format.size()));
        let list = u64::from(ccw.address);
        let mut left = u64::from(ccw.count);
        if !list.is_multiple_of(size) || list >= self.address_limit() {
            return self.fail(program, UNMAPPED_IOVA, left.div_ceil(block), movement);
        }
        let mut at = list;
        let start = program.idaws.len();
        while left > 0 {
            let first = at == list;
            let found = self.idaw(at).and_then(|address| {
                let offset = address % block;
                let (at_edge, bytes) = match movement.backward {
                    false => (offset == 0, block - offset),
                    true => (offset == block - 1, offset + 1),
                };
                let frame = self.map.frame(address).filter(|_| first || at_edge);
                Ok((address, frame.ok_or(UNMAPPED_IOVA)?, bytes))
            });
            match found {
                Ok((address, frame, bytes)) => {
                    self.word(program, address, frame, movement);
                    left = left.saturating_sub(bytes);
                }
                // Nothing behind it can be reached, but the list keeps its length.
                Err(fault) => {
                    return self.fail(program, fault, left.div_ceil(block), movement);
                }
            }
            at += size;
        }
        if movement.backward {
            let first = program.idaws.get(start).map_or(0, |first| u64::from_be_bytes(*first));
            self.pad(program, start, first, ccw.count);
        }
    }

    /// Lengthens the list of an area that is read backward: the kernel driver counts its words as if
    /// data went up from `first` (`ccw_count_idaws`), and uses what it finds there.
    fn pad(&self, program: &mut Program, list: usize, first: u64, count: u16) {
        let block = u64::from(self.idaw_format.block());
        let counted = (first % block + u64::from(count)).div_ceil(block) as usize;
        if let Some(word) = program.idaws.get(list).copied() {
            let len = program.idaws.len().max(list + counted);
            program.idaws.resize(len, word);
        }
    }

    /// The guest IDAW at `address`, or the I/O virtual address that fails as it does.
    fn idaw(&self, address: u64) -> Result<u64, u64> {
        if self.is_fetch_protected(address) {
            return Err(PROTECTED_IOVA);
        }
        let idaw = match self.idaw_format {
            IdawFormat::Format1 => {
                self.map.load_word(address).and_then(|word| Idaw1(word.into()).address())
            }
            _ => self.map.load_doubleword(address).map(u64::from_be_bytes),
        };
        idaw.ok_or(UNMAPPED_IOVA)
    }

    /// Makes an IDAL of MIDAWs, where it has an equal.
    fn modified_indirect(
        &mut self,
        program: &mut Program,
        ccw: &Ccw,
        movement: Movement,
    ) -> Option<()> {
        let list = u64::from(ccw.address);
        if movement.backward || list >= self.address_limit() {
            return None;
        }
        let (map, block) = (self.map, self.idaw_format.block().into());
        let protected = self.is_fetch_protected(list);
        let load = |at| {
            let high = map.load_doubleword(at)?;
            Some(Midaw::decode(high, map.load_doubleword(at + 8)?))
        };
        midaw_list::pieces(list, ccw.count, block, load, |start, end| {
            self.piece(program, start, end, movement)
        })
        .filter(|()| !protected)
    }

    /// Words for `start..end`, which lies in one page; there is no limit of 31 bits.
    fn piece(&mut self, program: &mut Program, start: u64, end: u64, movement: Movement) {
        let block = u64::from(self.idaw_format.block());
        let mut at = start;
        while at < end {
            match self.map.frame(at) {
                Some(frame) => self.word(program, at, frame, movement),
                None => self.fail(program, UNMAPPED_IOVA, 1, movement),
            }
            let Some(next) = (at | (block - 1)).checked_add(1) else { return };
            at = next;
        }
    }

    /// Appends the word for the block at guest address `address` in `frame`. Regions are whole
    /// frames, so a block is all there.
    #[inline]
    fn word(&mut self, program: &mut Program, address: u64, frame: u32, movement: Movement) {
        if self.key != 0 {
            let allowed = match movement.stores {
                true => self.rules.may_store(self.key, address),
                false => self.rules.may_fetch(self.key, address),
            };
            if !allowed {
                return self.fail(program, PROTECTED_IOVA, 1, movement);
            }
        }
        if movement.moves {
            self.hold.want(frame);
        } else {
            program.doubtful.push(frame);
        }
        program.idaws.push((address + GUEST_IOVA).to_be_bytes());
    }

    /// Appends `words` words that fail where the channel gets to them, and not for lack of alignment.
    #[cold]
    fn fail(&self, program: &mut Program, iova: u64, words: u64, movement: Movement) {
        let edge = if movement.backward { u64::from(self.idaw_format.block()) - 1 } else { 0 };
        program.idaws.extend((0..words).map(|_| (iova | edge).to_be_bytes()));
    }

    /// Copies the parameters of a command that defines an extent, whose IDAL starts at index `list`,
    /// gives the device the copy, and tells the extent. `None`: they have none, or cannot be copied.
    pub(super) fn copy_parameters(
        &mut self,
        program: &mut Program,
        ccw: &Ccw,
        list: usize,
    ) -> Option<std::ops::Range<u64>> {
        let count = usize::from(ccw.count);
        if ccw.flags.contains(CcwFlags::CHAIN_DATA) || count == 0 || count > PARAMETER_BYTES {
            return None;
        }
        let mut bytes = [0; PARAMETER_BYTES];
        let block = u64::from(self.idaw_format.block());
        let mut done = 0;
        for word in &program.idaws[list..] {
            let address = u64::from_be_bytes(*word).checked_sub(GUEST_IOVA)?;
            let here = (count - done).min((block - address % block) as usize);
            self.map.read(address, &mut bytes[done..done + here]).then_some(())?;
            done += here;
        }
        program.idaws.truncate(list);
        program.parameter_idaws.push(list as u32);
        program.idaws.push(UNMAPPED_IOVA.to_be_bytes());
        program.parameters.extend_from_slice(&bytes);
        extent::extent(self.rules.class, ccw.command, &bytes[..count])
    }
}

const _: () = assert!(PARAMETER_BYTES == PARAMETER_SLOT);
