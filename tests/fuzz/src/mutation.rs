//! Changes to a case that know what a channel program is: half of what a fuzzer tries, the other
//! half being bytes.

use std::ops::Range;

use vfio_ccw::architecture::{Ccw, CcwFlags, command};

use crate::guest::{self, GUEST_BYTES, REGIONS};

/// Commands of every class, of DASD, and none.
const COMMANDS: [u8; 20] = [
    0x01,
    0x02,
    0x03,
    0x04,
    0x05,
    0x06,
    0x0c,
    0x29,
    0x31,
    0x85,
    0x86,
    0xe4,
    0xe7,
    0x00,
    command::FBA_READ,
    command::FBA_WRITE,
    command::FBA_LOCATE,
    command::DEFINE_EXTENT,
    command::TIC,
    command::TIC,
];

/// Counts around what matters.
const COUNTS: [u16; 12] = [0, 1, 6, 8, 16, 28, 512, 2047, 2048, 4096, 4097, u16::MAX];

/// A small generator, so that a seed says what is tried.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) as usize % sides
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())]
    }
}

/// Changes something in one CCW or list entry of a case whose first `header` bytes end with the ORB,
/// or puts one more in. `bytes` has room for more than the case's `size`; returns its new size.
pub fn mutate(header: usize, bytes: &mut [u8], size: usize, seed: u32) -> usize {
    let mut dice = Dice(seed.into());
    let pieces = pieces(&bytes[..size], header);
    let words: Vec<usize> =
        pieces.iter().flat_map(|piece| piece.bytes.clone().step_by(8)).collect();
    let words: Vec<usize> = words.into_iter().filter(|at| at + 8 <= size).collect();
    if words.is_empty() {
        return size;
    }
    let format_1 = bytes[header - 7] & 0x80 != 0;
    let at = dice.pick(&words);
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    let mut ccw = Ccw::decode(word, format_1);
    let encode = |ccw: Ccw| if format_1 { ccw.to_format_1() } else { ccw.to_format_0() };
    match dice.roll(10) {
        0 | 1 => ccw.command = dice.pick(&COMMANDS),
        2 | 3 => ccw.flags ^= CcwFlags::from_bits_retain(1 << dice.roll(8)),
        4 => ccw.count = dice.pick(&COUNTS),
        5 | 6 => ccw.address = address(&mut dice, &pieces),
        7 => {
            let leads_to = address(&mut dice, &pieces);
            ccw = Ccw::new(command::TIC, leads_to, 0);
        }
        8 => {
            let idaw = u64::from(address(&mut dice, &pieces)) + [0, 1 << 31][dice.roll(2)];
            bytes[at..at + 8].copy_from_slice(&idaw.to_be_bytes());
            return size;
        }
        _ => return insert(bytes, size, &pieces, at),
    }
    bytes[at..at + 8].copy_from_slice(&encode(ccw));
    size
}

/// Doubles a word within its piece.
fn insert(bytes: &mut [u8], size: usize, pieces: &[Piece], at: usize) -> usize {
    let Some(piece) = pieces.iter().find(|piece| piece.bytes.contains(&at)) else { return size };
    // The length stands before the bytes, and may say more than there are.
    let length = piece.bytes.start - 1;
    let Some(longer) = bytes[length].checked_add(8).filter(|_| size + 8 <= bytes.len()) else {
        return size;
    };
    bytes[length] = longer;
    bytes.copy_within(at..size, at + 8);
    size + 8
}

/// An address that means something: in a piece, or where memory begins or ends.
fn address(dice: &mut Dice, pieces: &[Piece]) -> u32 {
    if dice.roll(4) > 0 {
        let piece = &pieces[dice.roll(pieces.len())];
        return piece.address as u32 + 8 * dice.roll(piece.bytes.len() / 8 + 3) as u32;
    }
    let (start, len) = dice.pick(&REGIONS);
    let edges = [0, 8, 16, 0x7f8, 0xff0, 0xfff, len as u64 - 8, len as u64 - 1, len as u64];
    (start + dice.pick(&edges)) as u32
}

/// Bytes that a case puts into memory, and where.
#[derive(Debug)]
struct Piece {
    address: u64,
    bytes: Range<usize>,
}

fn pieces(case: &[u8], header: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = header;
    while let Some([high, low, len]) = case.get(at..at + 3) {
        let slot = usize::from(u16::from_be_bytes([*high, *low]));
        let start = at + 3;
        at = (start + usize::from(*len)).min(case.len());
        pieces.push(Piece { address: guest::address(slot * 8 % GUEST_BYTES), bytes: start..at });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Case;
    use crate::seeds;

    #[test]
    fn a_case_stays_a_case_of_as_many_pieces() {
        for (target, _, case) in seeds::all() {
            if target != "channel_program" {
                continue;
            }
            for seed in 0..500 {
                let mut bytes = case.clone();
                bytes.resize(case.len() + 16, 0);
                let size = mutate(Case::HEADER, &mut bytes, case.len(), seed);
                assert!(size == case.len() || size == case.len() + 8);
                let count = |case: &[u8]| pieces(case, Case::HEADER).len();
                assert_eq!(count(&bytes[..size]), count(&case));
                assert_eq!(bytes[..Case::HEADER], case[..Case::HEADER]);
            }
        }
    }
}
