//! Writing a program, CCW by CCW, into segments that transfers in channel connect.

use vfio_ccw::architecture::{Ccw, CcwFlags, CommandClass, Orb, OrbFlags, command};

use super::device::SIZES;
use super::dice::Dice;
use super::lists::{self, LISTS, PROGRAM};
use super::{Data, HOLE, SEAM};

/// A CCW whose address may be that of another CCW.
#[derive(Clone, Copy)]
struct Line {
    ccw: Ccw,
    /// Number of the CCW that this one transfers to, and an offset.
    target: Option<(usize, u32)>,
}

/// Where the segments of a program lie.
#[derive(Clone, Copy)]
enum Place {
    /// From this address on.
    At(u64),
    /// In the middle over this address.
    Over(u64),
    /// Up to this address.
    UpTo(u64),
}

/// A program in the making.
pub(super) struct Writer {
    orb: Orb,
    data: Data,
    segments: Vec<Vec<Line>>,
    lists: Vec<(u64, Vec<u8>)>,
    next_list: u64,
}

/// The end of a program in the making: address of its first CCW, its CCWs, its lists.
type Written = (u32, Vec<(u64, [u8; 8])>, Vec<(u64, Vec<u8>)>);

/// Commands, often used ones first and often.
const COMMANDS: [u8; 64] = [
    0x02, 0x01, 0x02, 0x01, 0x03, 0x42, 0x41, 0x06, 0x05, 0x02, 0x01, 0x04, 0x07, 0x0c, 0x63, 0xe4,
    0x86, 0x85, 0x0c, 0x03, 0x1a, 0x1d, 0x64, 0x0b, 0xff, 0x9c, 0x31, 0x12, 0x02, 0x01, 0x0c, 0x29,
    0x02, 0x01, 0x02, 0x01, 0x03, 0x42, 0x41, 0x06, 0x05, 0x02, 0x01, 0x04, 0x07, 0x0c, 0x63, 0xe4,
    0x02, 0x01, 0x02, 0x01, 0x03, 0x42, 0x41, 0x06, 0x05, 0x02, 0x01, 0x04, 0x07, 0x0c, 0x18, 0x10,
];

/// Commands that look for something.
const SEARCHES: [u8; 6] = [0x31, 0x29, 0x49, 0x51, 0x69, 0x39];

/// Segments of a program at most: as many as there are places.
const SEGMENTS: usize = 8;

impl Writer {
    pub(super) fn new(orb: Orb, data: Data) -> Self {
        Writer { orb, data, segments: vec![Vec::new()], lists: Vec::new(), next_list: LISTS }
    }

    /// Writes what the dice say: a command, a loop, a transfer.
    pub(super) fn write(&mut self, dice: &mut Dice<'_>, last: bool) {
        // A program that begins with a transfer ends there.
        let kinds = if self.lines() == 0 { 210 } else { 256 };
        match dice.below(kinds) {
            0..200 => self.command(dice, last),
            200..216 => self.search(dice),
            216..218 => self.data_loop(dice),
            218..222 => self.tangle(dice),
            222..240 => self.new_segment(),
            240..253 => {
                let line = self.transfer(dice);
                self.push(line);
            }
            253..255 => self.odd_transfer(dice),
            _ => {
                let bytes = std::array::from_fn(|_| dice.byte());
                self.push(Line { ccw: Ccw::decode(bytes, true), target: None });
            }
        }
    }

    /// Writes a command that ends the program, if it does not end yet.
    pub(super) fn end(&mut self) {
        let last = self.segments.last().and_then(|segment| segment.last());
        if last.is_none_or(|line| line.ccw.chains() || line.target.is_some()) {
            let ccw = Ccw::new(0x02, lists::DATA as u32, 8).with(CcwFlags::SUPPRESS_LENGTH);
            self.push(Line { ccw, target: None });
        }
    }

    /// Places the segments, beginning at place `first`, and resolves the transfers.
    pub(super) fn finish(self, first: u32) -> Written {
        let orb = self.orb;
        let places: [Place; SEGMENTS] = [
            Place::At(PROGRAM),
            Place::At(PROGRAM + 0x400),
            Place::UpTo(HOLE),
            Place::At(PROGRAM + 0x800),
            Place::Over(SEAM),
            Place::At(0x1_6000),
            Place::UpTo(lists::limit(&orb)),
            Place::At(PROGRAM + 0xc00),
        ];
        let starts = self.segments.iter().enumerate().map(|(index, segment)| {
            let bytes = segment.len() as u64 * 8;
            match places[(first as usize + index) % SEGMENTS] {
                Place::At(start) => start,
                Place::Over(middle) => middle - bytes / 16 * 8,
                Place::UpTo(end) => end - bytes,
            }
        });
        let lines: Vec<(u64, Line)> = starts
            .zip(&self.segments)
            .flat_map(|(start, segment)| (start..).step_by(8).zip(segment.iter().copied()))
            .collect();
        let ccw = |line: &Line| match line.target {
            Some((target, offset)) => {
                let address = lines[target % lines.len()].0 as u32 + offset;
                encode(Ccw { address, ..line.ccw }, &orb)
            }
            None => encode(line.ccw, &orb),
        };
        let ccws = lines.iter().map(|(at, line)| (*at, ccw(line))).collect();
        (lines.first().map_or(0, |(at, _)| *at as u32), ccws, self.lists)
    }

    fn push(&mut self, line: Line) {
        if let Some(segment) = self.segments.last_mut() {
            segment.push(line);
        }
    }

    fn lines(&self) -> usize {
        self.segments.iter().map(Vec::len).sum()
    }

    fn command(&mut self, dice: &mut Dice<'_>, last: bool) {
        let code = dice.of(&COMMANDS);
        let chain = dice.below(100);
        let mut flags = match chain {
            0..78 => CcwFlags::CHAIN_COMMAND,
            78..94 => CcwFlags::CHAIN_DATA,
            94..96 => CcwFlags::CHAIN_COMMAND | CcwFlags::CHAIN_DATA,
            _ => CcwFlags::empty(),
        };
        if last && chain < 70 {
            flags = CcwFlags::empty();
        }
        let suspends = if self.orb.flags().contains(OrbFlags::SUSPEND_CONTROL) { 9 } else { 0 };
        for (flag, percent) in [
            (CcwFlags::SUPPRESS_LENGTH, 60),
            (CcwFlags::SKIP, 7),
            (CcwFlags::PROGRAM_CONTROLLED, 8),
            (CcwFlags::SUSPEND, suspends),
        ] {
            flags.set(flag, dice.chance(percent));
        }
        let count = match dice.below(100) {
            0..70 => dice.of(&SIZES),
            70..95 => 1 + dice.word() % 300,
            95..99 => dice.word(),
            _ => 0xffff,
        };
        let midaws = if self.orb.flags().contains(OrbFlags::MIDAW) { 20 } else { 0 };
        let kind = dice.below(100);
        let address = if kind >= 100 - midaws {
            flags |= CcwFlags::MODIFIED_INDIRECT;
            let list = lists::midaws(dice, &self.orb, self.data, count);
            self.list(dice, list, 16)
        } else if kind >= 50 {
            flags |= CcwFlags::INDIRECT;
            let backward = self.is_backward(code);
            let list = lists::idaws(dice, &self.orb, self.data, count, backward);
            self.list(dice, list, u64::from(self.orb.idaw_format().size()))
        } else {
            lists::direct(dice, &self.orb, self.data, count)
        };
        let ccw = Ccw { command: code, flags, count, address: address as u32 };
        self.push(Line { ccw, target: None });
    }

    /// Whether data of a CCW with this command code goes backward: in a data chain the first
    /// CCW's code decides.
    fn is_backward(&self, code: u8) -> bool {
        let lines = self.segments.last().map_or(&[][..], Vec::as_slice);
        let chained =
            lines.iter().rev().take_while(|line| line.ccw.flags.contains(CcwFlags::CHAIN_DATA));
        let leader = chained.last().map_or(code, |line| line.ccw.command);
        CommandClass::of(leader) == CommandClass::ReadBackward
    }

    /// Puts a list into memory, `size` bytes an entry: mostly where there is room.
    fn list(&mut self, dice: &mut Dice<'_>, list: Vec<u8>, size: u64) -> u64 {
        let len = list.len() as u64;
        let at = match dice.below(100) {
            0..94 => {
                let aligned = self.next_list.next_multiple_of(size);
                let crosses = size == 16 && aligned / 4096 != (aligned + len - 1) / 4096;
                let start = if crosses { aligned.next_multiple_of(4096) } else { aligned };
                if start + len > lists::DATA { LISTS } else { start }
            }
            94..95 => SEAM - size,
            95..96 => HOLE - size,
            96..97 => lists::limit(&self.orb) - size,
            97..98 => lists::limit(&self.orb),
            98..99 => dice.of(&[HOLE + 0x100, 0x3000 - size]),
            _ => self.next_list.next_multiple_of(size) + u64::from(dice.byte() % 16),
        };
        if (LISTS..lists::DATA).contains(&at) {
            self.next_list = at + len;
        }
        self.lists.push((at, list));
        at
    }

    /// Goes on somewhere else.
    fn new_segment(&mut self) {
        if self.segments.len() == SEGMENTS {
            return;
        }
        let target = Some((self.lines() + 1, 0));
        self.push(Line { ccw: Ccw::new(command::TIC, 0, 0), target });
        self.segments.push(Vec::new());
    }

    /// A search, and a transfer back to it, or elsewhere, for when it does not find.
    fn search(&mut self, dice: &mut Dice<'_>) {
        let target = self.lines();
        let address = lists::direct(dice, &self.orb, self.data, 5) as u32;
        let mut flags = CcwFlags::CHAIN_COMMAND;
        flags.set(CcwFlags::SUPPRESS_LENGTH, dice.chance(70));
        let ccw = Ccw::new(dice.of(&SEARCHES), address, 5).with(flags);
        self.push(Line { ccw, target: None });
        let transfer = if dice.chance(40) {
            self.transfer(dice)
        } else {
            Line { ccw: Ccw::new(command::TIC, 0, 0), target: Some((target, 0)) }
        };
        self.push(transfer);
    }

    /// A data chain without an end.
    fn data_loop(&mut self, dice: &mut Dice<'_>) {
        let target = Some((self.lines(), 0));
        let address = lists::DATA as u32 + u32::from(dice.byte());
        let code = dice.of(&[0x07, 0x04, 0x07, 0x04, 0x07, 0x04, 0x07, 0x02]);
        let ccw =
            Ccw::new(code, address, 1 + u16::from(dice.byte() % 4)).with(CcwFlags::CHAIN_DATA);
        self.push(Line { ccw, target: None });
        self.push(Line { ccw: Ccw::new(command::TIC, 0, 0), target });
    }

    /// Data chains which a transfer leads into the middle of, so that one CCW serves several commands.
    fn tangle(&mut self, dice: &mut Dice<'_>) {
        let first = self.lines();
        let count = 2 + dice.below(3) as usize;
        for _ in 0..count {
            let code = dice.of(&[0x02, 0x01, 0x31, 0x0c, 0x29, 0x04]);
            let mut flags =
                if dice.chance(35) { CcwFlags::CHAIN_COMMAND } else { CcwFlags::CHAIN_DATA };
            flags.set(CcwFlags::SUPPRESS_LENGTH, dice.chance(80));
            flags.set(CcwFlags::SKIP, dice.chance(20));
            let address = lists::DATA as u32 + 0x100;
            self.push(Line { ccw: Ccw::new(code, address, 8).with(flags), target: None });
        }
        let target = Some((first + dice.below(count as u32) as usize, 0));
        self.push(Line { ccw: Ccw::new(command::TIC, 0, 0), target });
    }

    /// A transfer to some CCW of the program.
    fn transfer(&self, dice: &mut Dice<'_>) -> Line {
        let code = if self.orb.is_format_1() { 0x08 } else { dice.of(&[0x08, 0x58]) };
        Line { ccw: Ccw::new(code, 0, 0), target: Some((usize::from(dice.byte()), 0)) }
    }

    /// A transfer that is wrong in format 1, or everywhere.
    fn odd_transfer(&mut self, dice: &mut Dice<'_>) {
        let mut line = self.transfer(dice);
        match dice.below(4) {
            0 => line.ccw.count = dice.word(),
            1 => line.ccw.flags = CcwFlags::from_bits_retain(dice.byte()),
            2 => line.target = Some((usize::from(dice.byte()), 4)),
            _ => {
                let limit = lists::limit(&self.orb) as u32;
                line.target = None;
                line.ccw.address = dice.of(&[HOLE as u32, limit, 0xffff_fff8, 0x6000]);
            }
        }
        self.push(line);
    }
}

/// CONTROL NO-OPERATION that goes on to the next command.
pub(super) fn no_operation() -> Ccw {
    Ccw::new(command::NOP, 0, 1).with(CcwFlags::CHAIN_COMMAND | CcwFlags::SUPPRESS_LENGTH)
}

/// The bytes of a CCW in the format that `orb` says.
pub(super) fn encode(ccw: Ccw, orb: &Orb) -> [u8; 8] {
    if orb.is_format_1() { ccw.to_format_1() } else { ccw.to_format_0() }
}
