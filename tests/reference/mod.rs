//! A channel that does one thing after the other: the architecture's rules, slowly.
//!
//! It shares no code with the channel subsystem or the translator: it takes the ORB's, the CCWs' and
//! the lists' bytes apart itself, moves one byte at a time, and puts the IRB together from bytes.
//! The rules are those that `docs/TRANSLATION.md` describes.

pub mod facts;
pub mod memory;
pub mod ways;

mod area;

use std::fmt;

use crate::translated::{Answer, Executed, pattern};

use area::Area;
use facts::Facts;
use memory::{Keys, Memory};
use ways::Program;

/// Subchannel status.
const PCI: u8 = 0x80;
const INCORRECT_LENGTH: u8 = 0x40;
const PROGRAM_CHECK: u8 = 0x20;
const PROTECTION_CHECK: u8 = 0x10;

/// CCW flags.
const CD: u8 = 0x80;
const CC: u8 = 0x40;
const SLI: u8 = 0x20;
const SKIP: u8 = 0x10;
const INTERRUPT: u8 = 0x08;
const IDA: u8 = 0x04;
const SUSPEND: u8 = 0x02;
const MIDA: u8 = 0x01;

/// Backward transfers in channel without a command that moves data between them.
const BACKWARD_LIMIT: u32 = 255;
/// CCWs of one start.
const CCW_LIMIT: u32 = 1 << 16;

/// What the guest sees of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// SCSW, ESW and ECW of each intermediate status.
    pub intermediate: Vec<[u8; 64]>,
    /// Those of the end, or of the suspension.
    pub end: [u8; 64],
    /// The program waits to be resumed.
    pub suspended: bool,
    /// The program ran into a limit on loops.
    pub limited: bool,
    /// It went through so many TICs without a command that moves data that a channel may end it.
    pub loops: bool,
    /// What was started.
    pub program: Program,
}

/// The guest's memory, the device and what a channel remembers between suspension and resumption.
pub struct Reference<'a> {
    /// Memory as it is now.
    pub memory: Memory,
    /// Protection, if there is any.
    pub keys: Option<Keys>,
    /// The device's answers.
    pub script: &'a dyn Fn(u8, usize) -> Answer,
    /// Commands that the device was given.
    pub log: Vec<Executed>,
    /// Commands since the last start.
    pub commands: usize,
    /// What happened so far.
    pub facts: Facts,
}

impl fmt::Debug for Reference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reference {:?} {:?}", self.facts, self.log)
    }
}

/// Operation-request block, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Orb {
    word_1: u32,
    cpa: u32,
}

impl Orb {
    fn has(&self, bit: u32) -> bool {
        self.word_1 & bit != 0
    }

    fn key(&self) -> u8 {
        (self.word_1 >> 28) as u8
    }

    fn format_1(&self) -> bool {
        self.has(0x0080_0000)
    }

    fn prefetch(&self) -> bool {
        self.has(0x0040_0000)
    }

    fn format_2_idaws(&self) -> bool {
        self.has(0x0002_0000)
    }

    /// Bytes in the block that an IDAW designates.
    fn block(&self) -> u64 {
        if self.format_2_idaws() && !self.has(0x0001_0000) { 4096 } else { 2048 }
    }

    /// CCWs, lists and direct data lie below this.
    fn limit(&self) -> u64 {
        if self.format_1() { 1 << 31 } else { 1 << 24 }
    }
}

/// A CCW and where it stands.
#[derive(Clone, Copy, Debug)]
struct Ccw {
    at: u32,
    command: u8,
    flags: u8,
    count: u16,
    address: u32,
}

impl Ccw {
    fn decode(at: u32, bytes: [u8; 8], format_1: bool) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        if format_1 {
            let (count, address) = (u16::from_be_bytes([c, d]), u32::from_be_bytes([e, f, g, h]));
            Ccw { at, command: a, flags: b, count, address }
        } else {
            let (count, address) = (u16::from_be_bytes([g, h]), u32::from_be_bytes([0, b, c, d]));
            Ccw { at, command: a, flags: e, count, address }
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn is_tic(&self, format_1: bool) -> bool {
        if format_1 { self.command == 0x08 } else { self.command & 0x0f == 0x08 }
    }

    /// A check at this CCW, of which nothing was done.
    fn refused(&self, check: u8) -> Stop {
        Stop { check, cpa: self.at.wrapping_add(8), residual: self.count, limited: false }
    }
}

/// Device to memory: read, sense, read backward.
fn stores(command: u8) -> bool {
    command & 3 == 2 || is_backward(command) || command & 0x0f == 4
}

fn is_backward(command: u8) -> bool {
    command & 0x0f == 0x0c
}

/// The SEARCH family, whose commands alone may end with status modifier.
fn is_search(command: u8) -> bool {
    command & 0x60 != 0 && matches!(command & 0x1f, 0x09 | 0x0d | 0x11 | 0x15 | 0x19)
}

/// A channel error and what the SCSW says of the place.
#[derive(Clone, Copy, Debug)]
struct Stop {
    check: u8,
    cpa: u32,
    residual: u16,
    limited: bool,
}

/// What stands where the program has come to.
enum Found {
    /// A command or a data-chained CCW, with its data area.
    Ccw(Ccw, Area),
    /// The program suspends itself before this CCW.
    Suspension(Ccw),
}

/// How a command went.
struct Transfer {
    /// The last CCW of the data chain.
    ccw: Ccw,
    /// Its residual count.
    left: u32,
    moved: usize,
    taken: Vec<u8>,
    wanted_more: bool,
    stop: Option<Stop>,
}

/// One start or resumption.
struct Channel<'r, 'a> {
    guest: &'r mut Reference<'a>,
    orb: Orb,
    /// Memory as it was when the program was prefetched, or would have been.
    before: Memory,
    intermediate: Vec<[u8; 64]>,
    ccws: u32,
    /// Backward TICs since the last command that moves data or forward TIC.
    backward: u32,
    /// TICs since the last command that moves data.
    tics: u32,
    loops: bool,
}

impl Reference<'_> {
    /// START SUBCHANNEL.
    pub fn start(&mut self, orb: [u8; 12]) -> Story {
        self.commands = 0;
        self.run(orb, true)
    }

    /// RESUME SUBCHANNEL for the program that `suspended` tells of.
    pub fn resume(&mut self, mut orb: [u8; 12], suspended: &Story) -> Story {
        orb[8..].copy_from_slice(&suspended.ccw().to_be_bytes());
        self.run(orb, false)
    }

    fn run(&mut self, orb: [u8; 12], starts: bool) -> Story {
        let [_, _, _, _, a, b, c, d, e, f, g, h] = orb;
        let orb =
            Orb { word_1: u32::from_be_bytes([a, b, c, d]), cpa: u32::from_be_bytes([e, f, g, h]) };
        let before = self.memory.clone();
        let intermediate = Vec::new();
        Channel {
            guest: self,
            orb,
            before,
            intermediate,
            ccws: 0,
            backward: 0,
            tics: 0,
            loops: false,
        }
        .run(starts)
    }
}

impl Story {
    /// Address of the CCW that the status speaks of.
    pub fn ccw(&self) -> u32 {
        let [_, _, _, _, a, b, c, d] = *self.end.first_chunk().expect("64 bytes");
        u32::from_be_bytes([a, b, c, d]).wrapping_sub(8)
    }
}

impl Channel<'_, '_> {
    fn run(mut self, starts: bool) -> Story {
        let mut at = self.orb.cpa;
        let mut first = starts;
        loop {
            let (leader, area) = match self.next(at, first, None) {
                Ok(Found::Ccw(ccw, area)) => (ccw, area),
                Ok(Found::Suspension(ccw)) => return self.suspended(&ccw),
                Err(stop) => {
                    self.reached(Facts::CHECK_BEFORE_COMMAND);
                    return self.ended(0, stop);
                }
            };
            first = false;
            self.reached(if self.orb.format_1() { Facts::FORMAT_1 } else { Facts::FORMAT_0 });
            let number = self.guest.commands;
            self.guest.commands += 1;
            let answer = (self.guest.script)(leader.command, number);
            let transfer = self.transfer(leader, area, answer, number);
            let Transfer { ccw, left, moved, taken, wanted_more, stop } = transfer;
            self.guest.log.push(Executed { code: leader.command, moved, taken });
            if moved > 65_535 {
                self.reached(Facts::LARGE);
            }
            let status = answer.status.bits();
            if let Some(stop) = stop {
                return self.ended(status, stop);
            }
            let differs = left > 0 || wanted_more;
            let check = self.incorrect_length(&ccw, left, wanted_more, answer.immediate);
            let goes_on = check == 0 && ccw.has(CC) && !ccw.has(CD) && status & !0x40 == 0x0c;
            if !goes_on {
                if check == 0 && left == 0 && !wanted_more && ccw.has(CD) && !answer.immediate {
                    self.reached(Facts::STOPPED_AT_CHAIN);
                }
                return self.ended(status, Stop { residual: left as u16, ..ccw.refused(check) });
            }
            self.reached(Facts::COMMAND_CHAINED);
            if differs && !answer.immediate {
                self.reached(Facts::SUPPRESSED);
            }
            let skips = status & 0x40 != 0;
            if skips {
                self.reached(Facts::SKIPPED_CCW);
            }
            at = ccw.at.wrapping_add(if skips { 16 } else { 8 });
        }
    }

    fn reached(&mut self, facts: Facts) {
        self.guest.facts |= facts;
    }

    /// The CCW at `at`, or the one that the TIC there leads to, ready to take control. `leader` is
    /// the command whose data chain this is part of.
    fn next(&mut self, at: u32, first: bool, leader: Option<u8>) -> Result<Found, Stop> {
        let ccw = self.reach(at, first, leader.is_some())?;
        if matches!(ccw.command & 3, 1 | 2) || is_backward(ccw.command) {
            (self.backward, self.tics) = (0, 0);
        }
        let area = self.validate(&ccw, leader);
        if area.is_ok() && ccw.has(SUSPEND) {
            return Ok(Found::Suspension(ccw));
        }
        if ccw.has(INTERRUPT) {
            self.reached(Facts::INTERRUPTED);
            if leader.is_some() {
                self.reached(Facts::INTERRUPTED_IN_DATA_CHAIN);
            }
            // Start function; subchannel and device active; intermediate, pending.
            let cpa = ccw.at.wrapping_add(8);
            self.intermediate.push(self.irb(0x4000 | 0x00c0 | 0x0009, cpa, 0, PCI, 0));
        }
        match area {
            Ok(area) => Ok(Found::Ccw(ccw, area)),
            Err(check) => Err(ccw.refused(check)),
        }
    }

    /// The CCW at `at`, or the one that the TIC there leads to.
    fn reach(&mut self, at: u32, first: bool, in_data_chain: bool) -> Result<Ccw, Stop> {
        let format_1 = self.orb.format_1();
        let nothing = Ccw { at, command: 0, flags: 0, count: 0, address: 0 };
        let ccw = self.fetch(at).map_err(|check| self.limit(nothing.refused(check)))?;
        if !ccw.is_tic(format_1) {
            return Ok(ccw);
        }
        let odd = format_1 && (ccw.flags != 0 || ccw.count != 0);
        if first || odd {
            return Err(ccw.refused(PROGRAM_CHECK));
        }
        self.tics += 1;
        self.loops |= self.tics > BACKWARD_LIMIT;
        if ccw.address < at.wrapping_add(8) {
            self.backward += 1;
            self.reached(Facts::BACKWARD);
        } else {
            self.backward = 0;
            self.reached(Facts::FORWARD);
        }
        let target = self.fetch(ccw.address);
        let target = target.map_err(|check| self.limit(ccw.refused(check)))?;
        if target.is_tic(format_1) {
            return Err(target.refused(PROGRAM_CHECK));
        }
        if self.backward > BACKWARD_LIMIT {
            self.reached(Facts::LOOP_LIMIT);
            return Err(Stop { limited: true, ..ccw.refused(PROGRAM_CHECK) });
        }
        if in_data_chain {
            self.reached(Facts::TRANSFER_IN_DATA_CHAIN);
        }
        Ok(target)
    }

    fn limit(&mut self, stop: Stop) -> Stop {
        let limited = self.ccws > CCW_LIMIT;
        if limited {
            self.reached(Facts::LOOP_LIMIT);
        }
        Stop { limited, ..stop }
    }

    /// Reads a CCW.
    fn fetch(&mut self, at: u32) -> Result<Ccw, u8> {
        self.ccws += 1;
        if self.ccws > CCW_LIMIT || !at.is_multiple_of(8) || u64::from(at) >= self.orb.limit() {
            return Err(PROGRAM_CHECK);
        }
        let bytes = self.word(u64::from(at), Facts::PROTECTED_CCW)?;
        Ok(Ccw::decode(at, bytes, self.orb.format_1()))
    }

    /// Reads `N` bytes of the program: a CCW or a word of a list.
    fn word<const N: usize>(&mut self, at: u64, protected: Facts) -> Result<[u8; N], u8> {
        let old = self.before.bytes(at).ok_or(PROGRAM_CHECK)?;
        if !self.may_fetch(at) {
            self.reached(protected);
            return Err(PROTECTION_CHECK);
        }
        if self.orb.prefetch() {
            return Ok(old);
        }
        let now = self.guest.memory.bytes(at).ok_or(PROGRAM_CHECK)?;
        if now != old {
            self.reached(Facts::SELF_MODIFIED);
        }
        Ok(now)
    }

    fn may_fetch(&self, at: u64) -> bool {
        self.access(at).is_none_or(|(matches, fetch_protected)| matches || !fetch_protected)
    }

    fn may_store(&self, at: u64) -> bool {
        self.access(at).is_none_or(|(matches, _)| matches)
    }

    /// Whether the keys match, and whether that matters to a fetch; `None` where nothing is
    /// protected.
    fn access(&self, at: u64) -> Option<(bool, bool)> {
        let key = self.orb.key();
        let keys = self.guest.keys.as_ref().filter(|_| key != 0)?;
        let (access, fetch_protected) = keys.of(at);
        Some((access == key, fetch_protected))
    }

    /// The checks of a CCW that is not a TIC, in the order of Hercules' `execute_ccw_chain`, and the
    /// area that it designates.
    fn validate(&mut self, ccw: &Ccw, leader: Option<u8>) -> Result<Area, u8> {
        let chained = leader.is_some();
        let command = leader.unwrap_or(ccw.command);
        let invalid = matches!(ccw.command & 0x0f, 0 | 8) && !chained;
        let empty = ccw.count == 0 && (!self.orb.format_1() || ccw.has(CD) || chained);
        let bad_midaws = ccw.has(MIDA) && (!self.orb.has(0x40) || ccw.has(IDA) || ccw.has(SKIP));
        if invalid || empty || ccw.has(CD) && ccw.has(SUSPEND) || bad_midaws {
            return Err(PROGRAM_CHECK);
        }
        let area = self.area(ccw, is_backward(command))?;
        if ccw.has(SUSPEND) && (!self.orb.has(0x0800_0000) || chained) {
            return Err(PROGRAM_CHECK);
        }
        Ok(area)
    }

    /// Moves what the device has or wants, chaining data as it goes.
    fn transfer(&mut self, leader: Ccw, area: Area, answer: Answer, number: usize) -> Transfer {
        let mut area = area;
        let stores = stores(leader.command);
        let mut transfer = Transfer {
            ccw: leader,
            left: u32::from(leader.count),
            moved: 0,
            taken: Vec::new(),
            wanted_more: false,
            stop: None,
        };
        loop {
            let ccw = transfer.ccw;
            let at_end = transfer.left == 0 && !ccw.has(CD);
            if !answer.goes_on(transfer.moved, at_end) {
                return transfer;
            }
            if at_end {
                transfer.wanted_more = true;
                return transfer;
            }
            if transfer.left == 0 {
                match self.next(ccw.at.wrapping_add(8), false, Some(leader.command)) {
                    Ok(Found::Ccw(next, its)) => {
                        self.reached(Facts::DATA_CHAINED);
                        (transfer.ccw, transfer.left, area) = (next, u32::from(next.count), its);
                    }
                    Ok(Found::Suspension(_)) => unreachable!("refused in a data chain"),
                    Err(stop) => {
                        self.reached(Facts::CHECK_IN_DATA_CHAIN);
                        transfer.stop = Some(stop);
                        return transfer;
                    }
                }
                continue;
            }
            if stores && ccw.has(SKIP) {
                self.reached(Facts::SKIPPED_DATA);
            } else {
                let moved = self.step(&mut area).and_then(|at| {
                    if stores {
                        self.store(at, pattern(number, transfer.moved))
                    } else {
                        transfer.taken.push(self.load(at)?);
                        Ok(())
                    }
                });
                if let Err(check) = moved {
                    if check == PROGRAM_CHECK {
                        self.reached(Facts::CHECK_AT_DATA);
                        if transfer.left < u32::from(ccw.count) {
                            self.reached(Facts::CHECK_AFTER_DATA);
                        }
                    }
                    let residual = transfer.left as u16;
                    transfer.stop = Some(Stop { residual, ..ccw.refused(check) });
                    return transfer;
                }
            }
            transfer.left -= 1;
            transfer.moved += 1;
        }
    }

    fn store(&mut self, at: u64, byte: u8) -> Result<(), u8> {
        self.guest.memory.byte(at).ok_or(PROGRAM_CHECK)?;
        if !self.may_store(at) {
            self.reached(Facts::PROTECTED_STORE);
            return Err(PROTECTION_CHECK);
        }
        self.guest.memory.store(at, byte);
        self.reached(Facts::STORED);
        Ok(())
    }

    fn load(&mut self, at: u64) -> Result<u8, u8> {
        let byte = self.guest.memory.byte(at).ok_or(PROGRAM_CHECK)?;
        if !self.may_fetch(at) {
            self.reached(Facts::PROTECTED_FETCH);
            return Err(PROTECTION_CHECK);
        }
        self.reached(Facts::FETCHED);
        Ok(byte)
    }

    fn incorrect_length(&mut self, ccw: &Ccw, left: u32, wanted_more: bool, immediate: bool) -> u8 {
        let suppressed = ccw.has(SLI) && !ccw.has(CD);
        let reports_immediate = self.orb.format_1() && !self.orb.has(0x80) && !ccw.has(CC);
        let (differs, fact) = match (immediate, wanted_more) {
            (true, _) => (left > 0 && reports_immediate, Facts::IMMEDIATE_LENGTH),
            (false, true) => (true, Facts::LONG),
            (false, false) => (left > 0, Facts::SHORT),
        };
        if !differs || suppressed {
            return 0;
        }
        self.reached(fact);
        INCORRECT_LENGTH
    }

    fn suspended(mut self, ccw: &Ccw) -> Story {
        let check = if ccw.has(INTERRUPT) { PCI } else { 0 };
        let silent = self.orb.has(0x0008_0000) && check == 0;
        self.reached(if silent { Facts::SUSPENDED_SILENTLY } else { Facts::SUSPENDED });
        // Start function; suspended; intermediate and pending.
        let flags = 0x4000 | 0x0020 | if silent { 0 } else { 0x0009 };
        let end = self.irb(flags, ccw.at.wrapping_add(8), 0, check, ccw.count);
        self.story(end, true, false)
    }

    fn ended(mut self, status: u8, stop: Stop) -> Story {
        let clean = status == 0x0c && stop.check == 0;
        // Start function; primary, secondary and pending; alert.
        let flags = 0x4000 | 0x0007 | if clean { 0 } else { 0x0010 };
        let mut end = self.irb(flags, stop.cpa, status, stop.check, stop.residual);
        if clean {
            self.reached(Facts::CLEAN_END);
        }
        if status & 0x02 != 0 {
            self.reached(Facts::UNIT_CHECK);
            // ESW format and extended control; 24 bytes of concurrent sense.
            end[0] |= 0x04;
            end[1] |= 0x02;
            end[16..20].copy_from_slice(&[0x01, 24, 0, 0]);
            end[32] = 0x80;
            end[33] = self.guest.log.last().map_or(0, |executed| executed.code);
        } else if !matches!(status, 0 | 0x0c) {
            self.reached(Facts::ODD_STATUS);
        }
        self.story(end, false, stop.limited)
    }

    fn story(self, end: [u8; 64], suspended: bool, limited: bool) -> Story {
        let Channel { orb, before, intermediate, loops, .. } = self;
        let program = Program { orb, memory: before };
        Story { intermediate, end, suspended, limited, loops, program }
    }

    fn irb(&self, flags: u16, cpa: u32, device: u8, subchannel: u8, count: u16) -> [u8; 64] {
        let mut irb = [0; 64];
        // Key and the controls S, F, P, I, A and U are the ORB's.
        let word_0 = self.orb.word_1 & 0xf8f8_0000 | u32::from(flags);
        irb[..4].copy_from_slice(&word_0.to_be_bytes());
        irb[4..8].copy_from_slice(&cpa.to_be_bytes());
        irb[8] = device;
        irb[9] = subchannel;
        irb[10..12].copy_from_slice(&count.to_be_bytes());
        // Last-path-used mask.
        irb[13] = 0x80;
        irb
    }
}
