//! Where the channel stands in a program: fetching CCWs, following TICs, and the checks that hold
//! before the device hears of a command.

use std::fmt;

use crate::architecture::{
    Ccw, CcwFlags, CommandClass, IdawFormat, IrbHead, Midaw, Orb, OrbFlags, SubchannelStatus,
};
use crate::shadow::GUEST_IOVA;
use crate::translation::{Rules, midaw_list};

use super::dma::Near;
use super::interpreter::{Run, program_controlled};
use super::{DmaSpace, Stop};

/// CCWs that one start may execute, TICs and data-chained ones included. A program that loops longer
/// ends in a program check: there is no operator here to notice it, and whoever waits for its end
/// (a detach, the end of the service) must not wait for hours. At 65,535 bytes a CCW this is 4 GiB.
pub const CCW_LIMIT: u32 = 1 << 16;

/// TICs to lower addresses that may come without a command that reads or writes between them (the
/// architecture lets a channel check at 256 such CCWs; Hercules counts the same way).
const BACKWARD_TICS: u32 = 255;

/// What a channel executes, and what it reaches.
pub(super) struct Channel<'a> {
    pub(super) dma: &'a DmaSpace,
    /// Where the program itself lies, or most of it.
    near: Near,
    /// What a program is held to that nobody has translated.
    pub(super) rules: Option<&'a Rules>,
    /// Added to every address of the program.
    base: u64,
    /// Subchannel key; 0 also where keys are not checked here.
    key: u8,
    orb: Orb,
    pub(super) format_1: bool,
    pub(super) idaws: IdawFormat,
    /// Ends the program before its end.
    pub(super) stop: Option<&'a Stop>,
    /// Hears of the CCWs with the PCI flag.
    intermediate: &'a dyn Fn(IrbHead),
}

/// How far a channel is in its program.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Address of the next CCW: 8 past the current one.
    pub(super) next: u32,
    /// Pieces of the current CCW's data, where it has MIDAWs.
    pub(super) pieces: Vec<(u64, u64)>,
    /// Backward TICs since the last command that reads or writes.
    backward: u32,
    /// CCWs read so far.
    executed: u32,
}

impl fmt::Debug for Channel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel for {:?}", self.orb)
    }
}

/// What the channel found at its place in the program.
pub(super) enum Found {
    Command(Ccw),
    /// This CCW suspends the program.
    Suspended(Ccw),
    Check(Check),
}

/// A check at a CCW, with the residual count to show.
pub(super) struct Check {
    pub(super) status: SubchannelStatus,
    pub(super) count: u16,
}

impl Check {
    fn program(count: u16) -> Self {
        Check { status: SubchannelStatus::PROGRAM_CHECK, count }
    }
}

impl<'a> Channel<'a> {
    #[inline(always)]
    pub(super) fn new(run: &Run<'a>, intermediate: &'a dyn Fn(IrbHead)) -> Self {
        let flags = run.orb.flags();
        let translated = flags.contains(OrbFlags::PREFETCH);
        let rules = run.rules.filter(|_| !translated);
        let base = if translated { 0 } else { GUEST_IOVA };
        Channel {
            dma: run.dma,
            near: run.dma.near(base + u64::from(run.orb.cpa())),
            rules,
            base,
            key: rules.filter(|rules| rules.keys.is_some()).map_or(0, |_| run.orb.key()),
            orb: run.orb,
            format_1: flags.contains(OrbFlags::FORMAT_1),
            idaws: run.orb.idaw_format(),
            stop: run.stop,
            intermediate,
        }
    }

    /// Addresses of CCWs and direct data lie below this.
    pub(super) fn address_limit(&self) -> u64 {
        if self.format_1 { 1 << 31 } else { 1 << 24 }
    }

    /// The I/O virtual address of an address of the program.
    #[inline]
    pub(super) fn iova(&self, address: u64) -> Option<u64> {
        address.checked_add(self.base)
    }

    /// Bytes from `address`, which is in memory, on that have one key: all where none is checked.
    #[inline]
    pub(super) fn reach(&self, address: u64, most: usize, backward: bool) -> usize {
        if self.key == 0 {
            return most;
        }
        let offset = address as usize % 4096;
        most.min(if backward { offset + 1 } else { 4096 - offset })
    }

    /// Whether the key, or the window that it is in, forbids the program to use `address`.
    #[inline]
    pub(super) fn is_protected(&self, address: u64, stores: bool) -> bool {
        let by_key = self.key != 0
            && self.rules.is_some_and(|rules| match stores {
                true => !rules.may_store(self.key, address),
                false => !rules.may_fetch(self.key, address),
            });
        by_key || self.iova(address).is_some_and(|iova| self.dma.withholds(iova, stores))
    }

    /// A doubleword of the program (a CCW, an IDAW).
    #[inline(always)]
    pub(super) fn doubleword(&self, address: u64) -> Result<[u8; 8], SubchannelStatus> {
        let load = |iova| match self.near.load_doubleword(iova) {
            None => self.dma.load_doubleword(iova),
            found => found,
        };
        let word = self.iova(address).and_then(load);
        let word = word.ok_or(SubchannelStatus::PROGRAM_CHECK)?;
        if self.is_protected(address, false) {
            return Err(SubchannelStatus::PROTECTION_CHECK);
        }
        Ok(word)
    }

    /// A word of the program (a format-1 IDAW).
    pub(super) fn word(&self, address: u64) -> Result<[u8; 4], SubchannelStatus> {
        let word = self.iova(address).and_then(|iova| self.dma.load_word(iova));
        let word = word.ok_or(SubchannelStatus::PROGRAM_CHECK)?;
        if self.is_protected(address, false) {
            return Err(SubchannelStatus::PROTECTION_CHECK);
        }
        Ok(word)
    }

    /// Reads the CCW at `next` and moves past it.
    #[inline(always)]
    fn fetch(&self, place: &mut Place) -> Result<Ccw, SubchannelStatus> {
        let at = u64::from(place.next);
        place.next = place.next.wrapping_add(8);
        place.executed += 1;
        if !at.is_multiple_of(8) || at >= self.address_limit() || place.executed > CCW_LIMIT {
            return Err(SubchannelStatus::PROGRAM_CHECK);
        }
        Ok(Ccw::decode(self.doubleword(at)?, self.format_1))
    }

    /// Follows TICs to the next command. `first`: no TIC may come before the first command.
    #[inline(always)]
    pub(super) fn fetch_command(&self, place: &mut Place, first: bool) -> Found {
        let ccw = match self.fetch_past_tic(place, first) {
            Ok(ccw) => ccw,
            Err(check) => return Found::Check(check),
        };
        let suspends = ccw.flags.contains(CcwFlags::SUSPEND);
        let sound = ccw.class().is_command() && self.is_sound(place, &ccw, None);
        if sound && suspends {
            return Found::Suspended(ccw);
        }
        self.take_control(place, &ccw);
        if !sound {
            return Found::Check(Check::program(ccw.count));
        }
        Found::Command(ccw)
    }

    /// The next CCW of a data chain that began with `command`; its own command code means nothing.
    pub(super) fn fetch_data_chained(&self, place: &mut Place, command: u8) -> Result<Ccw, Check> {
        let ccw = self.fetch_past_tic(place, false)?;
        self.take_control(place, &ccw);
        if !self.is_sound(place, &ccw, Some(command)) {
            return Err(Check::program(ccw.count));
        }
        Ok(ccw)
    }

    /// The next CCW, or the one that a TIC there leads to.
    #[inline(always)]
    fn fetch_past_tic(&self, place: &mut Place, first: bool) -> Result<Ccw, Check> {
        let ccw = self.fetch(place).map_err(|status| Check { status, count: 0 })?;
        if !ccw.is_tic(self.format_1) {
            place.count_data(&ccw);
            return Ok(ccw);
        }
        if first {
            return Err(Check::program(ccw.count));
        }
        let next = self.transfer(place, &ccw)?;
        if next.is_tic(self.format_1) {
            // A TIC may not lead to a TIC.
            return Err(Check::program(next.count));
        }
        place.count_data(&next);
        Ok(next)
    }

    /// Goes where a TIC leads and reads what stands there. A check because nothing can be there is
    /// shown at the TIC.
    fn transfer(&self, place: &mut Place, tic: &Ccw) -> Result<Ccw, Check> {
        let behind = place.next;
        let odd = self.format_1 && (!tic.flags.is_empty() || tic.count != 0);
        if odd || !tic.address.is_multiple_of(8) {
            return Err(Check::program(tic.count));
        }
        place.backward = if tic.address < behind { place.backward + 1 } else { 0 };
        if place.backward > BACKWARD_TICS {
            return Err(Check::program(tic.count));
        }
        place.next = tic.address;
        self.fetch(place).map_err(|status| {
            place.next = behind;
            Check { status, count: tic.count }
        })
    }

    /// Checks that hold for every CCW that is not a TIC; `chained`: the command of the data chain
    /// that it is part of.
    #[inline(always)]
    fn is_sound(&self, place: &mut Place, ccw: &Ccw, chained: Option<u8>) -> bool {
        let flags = ccw.flags;
        let chains_data = flags.contains(CcwFlags::CHAIN_DATA);
        if ccw.count == 0 && (!self.format_1 || chains_data || chained.is_some()) {
            return false;
        }
        if flags.contains(CcwFlags::SUSPEND) {
            let allowed = self.orb.flags().contains(OrbFlags::SUSPEND_CONTROL);
            if !allowed || chains_data || chained.is_some() {
                return false;
            }
        }
        if flags.contains(CcwFlags::MODIFIED_INDIRECT) {
            let unsuited = flags.intersects(CcwFlags::INDIRECT | CcwFlags::SKIP)
                || CommandClass::of(chained.unwrap_or(ccw.command)) == CommandClass::ReadBackward;
            return !unsuited && self.load_pieces(place, ccw);
        }
        true
    }

    /// Reads the MIDAWs of a CCW. `false`: they cannot be used, by the same rules as in translation.
    pub(super) fn load_pieces(&self, place: &mut Place, ccw: &Ccw) -> bool {
        let list = u64::from(ccw.address);
        if !self.orb.flags().contains(OrbFlags::MIDAW) || list >= self.address_limit() {
            return false;
        }
        let pieces = &mut place.pieces;
        pieces.clear();
        let load = |at| {
            let high = self.doubleword(at).ok()?;
            Some(Midaw::decode(high, self.doubleword(at + 8).ok()?))
        };
        let block = self.idaws.block().into();
        let found = midaw_list::pieces(list, ccw.count, block, load, |start, end| {
            pieces.push((start, end));
        });
        found.is_some()
    }

    /// A CCW with the PCI flag tells the guest that the program has come so far; before anything is
    /// validated, as in Hercules.
    fn take_control(&self, place: &Place, ccw: &Ccw) {
        if ccw.flags.contains(CcwFlags::PROGRAM_CONTROLLED) {
            (self.intermediate)(program_controlled(&self.orb, place.next));
        }
    }
}

impl Place {
    /// At the start of a program.
    pub(super) fn at(next: u32) -> Self {
        Place { next, ..Place::default() }
    }

    #[inline]
    fn count_data(&mut self, ccw: &Ccw) {
        let class = ccw.class();
        if matches!(class, CommandClass::Read | CommandClass::Write | CommandClass::ReadBackward) {
            self.backward = 0;
        }
    }
}
