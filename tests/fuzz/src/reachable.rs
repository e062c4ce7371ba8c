//! Which CCWs a program may reach: a plain walk that follows every way at once.
//!
//! It knows nothing of devices, counts or checks, so it reaches too much and never too little.

use std::collections::HashSet;

use vfio_ccw::architecture::{Ccw, CcwFlags, IdawFormat, Orb};

use crate::guest::{GUEST_BYTES, Guest, REGIONS, address};
use crate::scripted::Scripted;

/// More CCWs than this are not followed.
pub const MOST: usize = 2000;

/// The CCWs of a program.
#[derive(Debug, Default)]
pub struct Reachable {
    /// Addresses where the channel may look for a CCW.
    pub addresses: HashSet<u32>,
    /// Addresses that TICs lead to.
    pub targets: HashSet<u32>,
    /// Some TIC leads back.
    pub loops: bool,
    /// Some CCW can be reached in several ways: as a command, or data-chained to several.
    pub ambiguous: bool,
    /// There are more than [`MOST`].
    pub cut_off: bool,
    /// Doublewords, counted through all regions, that hold CCWs, IDAWs or MIDAWs.
    words: Vec<bool>,
}

impl Reachable {
    /// Walks the program that `orb` designates in memory as it is expected now.
    pub fn of(orb: &Orb, guest: &Guest) -> Self {
        let mut found = Reachable { words: vec![false; GUEST_BYTES / 8], ..Reachable::default() };
        let limit = if orb.is_format_1() { 1 << 31 } else { 1 << 24 };
        // Each CCW with the command that leads it, where it is part of a data chain.
        let mut seen = HashSet::new();
        let mut open = vec![(orb.cpa(), None)];
        while let Some((address, leader)) = open.pop() {
            if !seen.insert((address, leader)) {
                continue;
            }
            if seen.len() > MOST {
                found.cut_off = true;
                break;
            }
            found.ambiguous |= !found.addresses.insert(address);
            if !address.is_multiple_of(8) || address >= limit {
                continue;
            }
            let Some(bytes) = guest.expected(address.into()) else {
                continue;
            };
            found.mark(address.into(), 8);
            let ccw = Ccw::decode(bytes, orb.is_format_1());
            if ccw.is_tic(orb.is_format_1()) {
                found.loops |= ccw.address <= address;
                found.targets.insert(ccw.address);
                open.push((ccw.address, leader));
                continue;
            }
            found.lists(&ccw, orb);
            if ccw.flags.contains(CcwFlags::CHAIN_DATA) {
                open.push((address.wrapping_add(8), leader.or(Some(ccw.command))));
            } else if ccw.chains() {
                open.push((address.wrapping_add(8), None));
                // A status modifier skips a CCW.
                open.push((address.wrapping_add(16), None));
            }
        }
        found
    }

    /// Whether CCW address `cpa` of a status word is 8 past a CCW of this program.
    pub fn allows(&self, cpa: u32) -> bool {
        self.cut_off || self.addresses.contains(&cpa.wrapping_sub(8))
    }

    /// Whether `len` bytes at `offset` in all regions overlap the program.
    pub fn overlaps(&self, offset: usize, len: usize) -> bool {
        self.words[offset / 8..(offset + len).div_ceil(8)].contains(&true)
    }

    /// Overwrites the program, as a guest may at any time.
    pub fn scribble(&self, guest: &mut Guest) -> Kept {
        let mut words = Vec::new();
        for offset in (0..GUEST_BYTES).step_by(8).filter(|offset| self.words[offset / 8]) {
            let address = address(offset);
            let Some(bytes) = guest.expected(address) else { continue };
            words.push((offset, bytes));
            guest.put(address, &[0x55; 8]);
        }
        Kept(words)
    }

    fn lists(&mut self, ccw: &Ccw, orb: &Orb) {
        let size: u64 = match ccw.flags {
            flags if flags.contains(CcwFlags::MODIFIED_INDIRECT) => 4096,
            flags if flags.contains(CcwFlags::INDIRECT) => {
                let format = orb.idaw_format();
                let words = u64::from(ccw.count) / u64::from(format.block()) + 2;
                words * if format == IdawFormat::Format1 { 4 } else { 8 }
            }
            _ => return,
        };
        self.mark(ccw.address.into(), size);
    }

    /// Notes that the program has `len` bytes at `address`, as far as there is memory.
    fn mark(&mut self, address: u64, len: u64) {
        let mut before = 0;
        for (start, bytes) in REGIONS {
            let end = start + bytes as u64;
            let (from, to) = (address.clamp(start, end), (address + len).clamp(start, end));
            if from < to {
                let offset = |address: u64| before + (address - start) as usize;
                self.words[offset(from) / 8..offset(to).div_ceil(8)].fill(true);
            }
            before += bytes;
        }
    }
}

/// What stood where a program was overwritten.
#[derive(Debug)]
pub struct Kept(Vec<(usize, [u8; 8])>);

impl Kept {
    /// Puts it back, but for what the device has stored there since.
    pub fn put_back(&self, device: &mut Scripted<'_>) {
        let mut stored = vec![false; GUEST_BYTES];
        for (start, len, _) in device.touches.iter().filter(|(_, _, stores)| *stores) {
            stored[*start..start + len].fill(true);
        }
        for (offset, bytes) in &self.0 {
            if !stored[*offset..offset + 8].contains(&true) {
                device.guest().put(address(*offset), bytes);
                continue;
            }
            for (at, byte) in (*offset..).zip(bytes).filter(|(at, _)| !stored[*at]) {
                device.guest().put(address(at), &[*byte]);
            }
        }
    }
}
