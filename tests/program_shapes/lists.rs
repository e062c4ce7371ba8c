//! Data areas, and the lists that designate them.

use vfio_ccw::architecture::{IdawFormat, Midaw, MidawFlags, Orb};

use super::dice::Dice;
use super::{Data, HIGH, HOLE, SEAM};

/// Ordinary data lies from here to [`SEAM`].
pub(super) const DATA: u64 = 0x6000;
/// Lists lie from here to [`DATA`].
pub(super) const LISTS: u64 = 0x2000;
/// Programs lie from here to [`LISTS`].
pub(super) const PROGRAM: u64 = 0x1000;

/// CCWs, lists and direct data of this program lie below this.
pub(super) fn limit(orb: &Orb) -> u64 {
    if orb.is_format_1() { 1 << 31 } else { 1 << 24 }
}

/// Address for a direct area of `count` bytes: ordinary, or at the edge of something.
pub(super) fn direct(dice: &mut Dice<'_>, orb: &Orb, data: Data, count: u16) -> u64 {
    if data == Data::InTheProgram && dice.chance(35) {
        return PROGRAM + u64::from(dice.below(160));
    }
    let before = u64::from(count) * u64::from(dice.below(5)) / 4;
    match dice.below(100) {
        0..92 => DATA + u64::from(dice.byte()) * 0x80 + u64::from(dice.byte()),
        92..93 => SEAM - before,
        93..94 => HOLE - before,
        94..95 => HOLE + 0x800,
        95..96 => limit(orb) - before,
        96..97 => limit(orb),
        97..98 => u64::from(dice.byte()),
        98..99 => PROGRAM + u64::from(dice.byte()) * 8,
        _ => dice.of(&[0xffff_ff00, limit(orb) / 2]),
    }
}

/// A block that IDAWs or MIDAWs may designate: 4 KiB-aligned, mostly ordinary.
fn block(dice: &mut Dice<'_>, data: Data) -> u64 {
    if data == Data::InTheProgram && dice.chance(20) {
        return dice.of(&[PROGRAM, LISTS]);
    }
    match dice.below(100) {
        0..80 => DATA + u64::from(dice.below(10)) * 0x1000,
        80..83 => SEAM,
        83..86 => HOLE - 0x1000,
        86..87 => HOLE,
        87..89 => 0x1_6000,
        89..92 => dice.of(&[0xff_f000, 0x100_0000]),
        92..94 => dice.of(&[0x7fff_f000, 0x8000_0000]),
        94..99 => HIGH + u64::from(dice.below(4)) * 0x1000,
        _ => dice.of(&[u64::MAX - 0xfff, 1 << 63, HIGH + 0x4000]),
    }
}

/// The IDAWs of an area of `count` bytes, as they lie in memory.
pub(super) fn idaws(
    dice: &mut Dice<'_>,
    orb: &Orb,
    data: Data,
    count: u16,
    backward: bool,
) -> Vec<u8> {
    let format = orb.idaw_format();
    let size = u64::from(format.block());
    let half = if dice.chance(30) { size % 4096 } else { 0 };
    let offset = match dice.below(4) {
        0 => 0,
        1 => u64::from(dice.byte()),
        2 => size - 1 - u64::from(dice.byte()),
        _ => size / 2,
    };
    let offset = if backward { size - 1 - offset } else { offset };
    let first = block(dice, data) + half + offset;
    let room = if backward { offset + 1 } else { size - offset };
    let more = u64::from(count).saturating_sub(room).div_ceil(size);
    let edge = if backward { size - 1 } else { 0 };
    // Few choices, for many blocks.
    let blocks = [block(dice, data), DATA, DATA + 0x2000, block(dice, data)];
    let following = (0..more).map(|index| {
        let block = blocks[index as usize % blocks.len()];
        block + if index % 3 == 1 { size % 4096 } else { 0 } + edge
    });
    let odd = if dice.chance(4) { u64::from(dice.byte()) } else { 0 };
    let addresses =
        std::iter::once(first).chain(following.map(|address| address.wrapping_add(odd)));
    match format {
        IdawFormat::Format1 => {
            addresses.flat_map(|address| (address as u32).to_be_bytes()).collect()
        }
        _ => addresses.flat_map(u64::to_be_bytes).collect(),
    }
}

/// The MIDAWs of an area of `count` bytes, as they lie in memory: mostly such as could be IDAWs.
pub(super) fn midaws(dice: &mut Dice<'_>, orb: &Orb, data: Data, count: u16) -> Vec<u8> {
    let size = u64::from(orb.idaw_format().block());
    let mut left = u64::from(count);
    let mut list = Vec::new();
    let offset = if dice.chance(50) { u64::from(dice.byte()) * 8 % size } else { 0 };
    let ragged = dice.chance(10);
    let mut at = block(dice, data) + offset;
    loop {
        let to_block = size - at % size;
        // A piece may be as long as a page.
        let most = if at.is_multiple_of(4096) && dice.chance(30) { 4096 } else { to_block };
        let most = if ragged { most.min(1 + u64::from(dice.byte())) } else { most };
        let piece = left.min(most);
        left -= piece;
        let midaw = Midaw::new(at, piece as u16);
        if left == 0 || list.len() >= 48 {
            let end = if dice.chance(6) { MidawFlags::empty() } else { MidawFlags::LAST };
            list.push(midaw.with(end));
            break;
        }
        list.push(midaw);
        at = if ragged && dice.chance(50) { at.wrapping_add(piece) } else { block(dice, data) };
    }
    if dice.chance(8) {
        let odd = [MidawFlags::SKIP, MidawFlags::INTERRUPT, MidawFlags::LAST];
        let index = usize::from(dice.byte()) % list.len();
        list[index] = list[index].with(dice.of(&odd));
    }
    list.iter().flat_map(|midaw| midaw.to_bytes()).collect()
}
