//! Where the bytes of a CCW's data area lie.

use super::facts::Facts;
use super::{Ccw, Channel, IDA, MIDA, PROGRAM_CHECK};

/// A data area, used up byte by byte.
pub(super) struct Area {
    kind: Kind,
    backward: bool,
    /// Address of the next byte, where the current piece has one.
    at: u64,
    /// Bytes left in the current piece.
    left: u64,
    /// Pieces opened so far.
    opened: u64,
}

/// What the CCW's address designates.
enum Kind {
    /// The data.
    Direct(u32, u16),
    /// A list of IDAWs at this address.
    Idaws(u64),
    /// Pieces as (address, length).
    Midaws(Vec<(u64, u16)>),
}

impl Channel<'_, '_> {
    /// The area of `ccw`; what can be wrong before any byte moves is only a list of MIDAWs.
    pub(super) fn area(&mut self, ccw: &Ccw, backward: bool) -> Result<Area, u8> {
        let kind = if ccw.has(MIDA) {
            let list = if backward { Err(PROGRAM_CHECK) } else { self.midaws(ccw) };
            // A list that may not be fetched is refused like any other that cannot be used.
            Kind::Midaws(list.map_err(|_| {
                self.reached(Facts::MIDAWS_REFUSED);
                PROGRAM_CHECK
            })?)
        } else if ccw.has(IDA) {
            Kind::Idaws(u64::from(ccw.address))
        } else {
            Kind::Direct(ccw.address, ccw.count)
        };
        Ok(Area { kind, backward, at: 0, left: 0, opened: 0 })
    }

    /// Address of the next byte.
    pub(super) fn step(&mut self, area: &mut Area) -> Result<u64, u8> {
        if area.left == 0 {
            (area.at, area.left) = self.piece(area)?;
            area.opened += 1;
        }
        let at = area.at;
        if matches!(area.kind, Kind::Direct(..)) && at >= self.orb.limit() {
            self.reached(Facts::ADDRESS_LIMIT);
            return Err(PROGRAM_CHECK);
        }
        if at >> 32 != 0 {
            self.reached(Facts::HIGH_DATA);
        }
        if area.backward {
            self.reached(Facts::STORED_BACKWARD);
        }
        area.at = if area.backward { at.wrapping_sub(1) } else { at.wrapping_add(1) };
        area.left -= 1;
        Ok(at)
    }

    /// The next piece: address of its first byte, and its length.
    fn piece(&mut self, area: &Area) -> Result<(u64, u64), u8> {
        let following = area.opened > 0;
        match &area.kind {
            Kind::Direct(address, count) => Ok((u64::from(*address), u64::from(*count))),
            Kind::Idaws(list) => {
                let piece = self.idaw(*list, area.opened, area.backward)?;
                if following {
                    let format = match (self.orb.format_2_idaws(), self.orb.block()) {
                        (false, _) => Facts::IDAWS_1,
                        (true, 2048) => Facts::IDAWS_2_2K,
                        (true, _) => Facts::IDAWS_2_4K,
                    };
                    self.reached(format);
                    if area.backward {
                        self.reached(Facts::IDAWS_BACKWARD);
                    }
                }
                Ok(piece)
            }
            Kind::Midaws(pieces) => {
                if following {
                    self.reached(Facts::MIDAWS);
                }
                let (address, count) = pieces[area.opened as usize];
                Ok((address, u64::from(count)))
            }
        }
    }

    /// The block that IDAW `index` of a list designates.
    fn idaw(&mut self, list: u64, index: u64, backward: bool) -> Result<(u64, u64), u8> {
        let (block, format_2) = (self.orb.block(), self.orb.format_2_idaws());
        let size = if format_2 { 8 } else { 4 };
        if !list.is_multiple_of(size) || list >= self.orb.limit() {
            return Err(PROGRAM_CHECK);
        }
        let at = list + index * size;
        let address = if format_2 {
            u64::from_be_bytes(self.word(at, Facts::PROTECTED_IDAW)?)
        } else {
            u64::from(u32::from_be_bytes(self.word(at, Facts::PROTECTED_IDAW)?))
        };
        if !format_2 && address >= 1 << 31 {
            return Err(PROGRAM_CHECK);
        }
        // Towards the start of the block or towards its end.
        let left = if backward { address % block + 1 } else { block - address % block };
        if index > 0 && left != block {
            return Err(PROGRAM_CHECK);
        }
        Ok((address, left))
    }

    /// The pieces of a list of MIDAWs: one that could as well be a list of IDAWs.
    fn midaws(&mut self, ccw: &Ccw) -> Result<Vec<(u64, u16)>, u8> {
        let list = u64::from(ccw.address);
        if !list.is_multiple_of(16) || list >= self.orb.limit() {
            return Err(PROGRAM_CHECK);
        }
        let block = self.orb.block();
        let (mut pieces, mut total): (Vec<(u64, u16)>, u32) = (Vec::new(), 0);
        for at in (list..(list / 4096 + 1) * 4096).step_by(16) {
            let [reserved @ .., flags, high, low] = self.word::<8>(at, Facts::PROTECTED_IDAW)?;
            let address = u64::from_be_bytes(self.word(at + 8, Facts::PROTECTED_IDAW)?);
            let count = u16::from_be_bytes([high, low]);
            // Only the last flag is known: data that is skipped or interrupts is no list of IDAWs.
            if reserved != [0; 5] || flags & 0x7f != 0 || count == 0 {
                return Err(PROGRAM_CHECK);
            }
            // Into the next page, or past the last address there can be.
            let crosses = address % 4096 + u64::from(count) > 4096
                || address.checked_add(count.into()).is_none();
            let starts_inside = !pieces.is_empty() && !address.is_multiple_of(block);
            total += u32::from(count);
            if crosses || starts_inside || total > u32::from(ccw.count) {
                return Err(PROGRAM_CHECK);
            }
            pieces.push((address, count));
            if flags == 0x80 {
                return if total == u32::from(ccw.count) { Ok(pieces) } else { Err(PROGRAM_CHECK) };
            }
            if !(address % 4096 + u64::from(count)).is_multiple_of(block) {
                return Err(PROGRAM_CHECK);
            }
        }
        Err(PROGRAM_CHECK)
    }
}
