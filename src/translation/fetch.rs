//! Following and reading the guest program, segment by segment.
//!
//! Each CCW is read once. A TIC to CCWs not seen before is left out, and its target follows in its
//! place; so chains that the guest keeps in pieces are one for the device. What cannot be left out
//! stays a TIC: loops, jumps to where others lead too, and what a SEARCH may skip.

use vfio_ccw_pinning::{GuestMap, Hold};

use crate::architecture::{Ccw, CcwFlags, CommandClass, IdawFormat, Orb, OrbFlags, command};

use super::data_area::Movement;
use super::extent::defines_extent;
use super::plain::{Near, Run};
use super::program::{
    Cause, Disguised, Elided, Program, Segment, ShadowCcw, Stop, Target, Transfer,
};
use super::{Access, Rules, Verdict};

impl Program {
    /// Reads the program that `orb` designates and puts the frames its data touches into `hold`,
    /// which must be free. `orb` has passed [`Orb::check`].
    pub fn fetch(&mut self, orb: &Orb, map: &GuestMap, rules: &Rules, hold: &mut Hold) {
        #[cfg(feature = "planted-slowdown")]
        super::planted::slow_down();
        self.bounded = false;
        self.read_all(orb, true, map, rules, hold);
    }

    /// The same for a suspended program that is resumed: `orb` designates the CCW that suspended it.
    /// An extent that was defined before is still in force.
    pub fn refetch(&mut self, orb: &Orb, map: &GuestMap, rules: &Rules, hold: &mut Hold) {
        self.read_all(orb, false, map, rules, hold);
    }

    #[inline(always)]
    fn read_all(
        &mut self,
        orb: &Orb,
        starts: bool,
        map: &GuestMap,
        rules: &Rules,
        hold: &mut Hold,
    ) {
        self.orb = *orb;
        self.ccws.clear();
        self.idaws.clear();
        self.segments.clear();
        self.chains.clear();
        self.transfers.clear();
        self.elided.clear();
        self.stops.clear();
        self.doubtful.clear();
        self.disguised.clear();
        self.parameters.clear();
        self.parameter_idaws.clear();
        self.data_bytes = 0;
        hold.clear();
        let mut fetch = Fetch {
            map,
            rules,
            hold,
            starts,
            is_plain: orb.is_format_1()
                && orb.idaw_format() == IdawFormat::Format2Blocks4K
                && rules.policy.is_empty()
                && (rules.keys.is_none() || orb.key() == 0),
            near: Near::of(map, orb.cpa().into()),
            key: if rules.keys.is_some() { orb.key() } else { 0 },
            format_1: orb.is_format_1(),
            idaw_format: orb.idaw_format(),
            midaws: orb.flags().contains(OrbFlags::MIDAW),
            leader: None,
            taken: 0,
            horizon: u64::MAX,
            searches: false,
            contested: false,
        };
        if let Err(cause) = fetch.follow(self, orb.cpa(), None) {
            self.push_stop(CcwFlags::empty(), 0, cause);
        }
        let mut next = 0;
        while let Some(transfer) = self.transfers.get(next).copied() {
            if self.index_of(transfer.address).is_none() {
                // A target that cannot be read is settled below.
                let _ = fetch.follow(self, transfer.address, transfer.leader);
            }
            next += 1;
        }
        self.break_chains();
        fetch.settle(self);
    }
}

/// What the reader carries from CCW to CCW.
pub(super) struct Fetch<'a> {
    pub(super) map: &'a GuestMap,
    pub(super) rules: &'a Rules,
    pub(super) hold: &'a mut Hold,
    /// The program is started, not resumed: its first CCW may not be a TIC.
    starts: bool,
    /// Format 1 with blocks of 4 KiB; no keys are checked and no policy judges.
    pub(super) is_plain: bool,
    /// The region that was last used.
    pub(super) near: Near,
    /// Subchannel key; 0 also where keys are not checked.
    pub(super) key: u8,
    pub(super) format_1: bool,
    pub(super) idaw_format: IdawFormat,
    midaws: bool,
    /// Command of the CCW that the data chaining under way began with; the later ones' is ignored.
    pub(super) leader: Option<u8>,
    /// CCWs of the guest that have their shadow.
    pub(super) taken: usize,
    /// Guest address below which nothing was read before, from the current one on.
    pub(super) horizon: u64,
    /// There is a SEARCH, so CCWs can be reached in other ways than one after the other.
    searches: bool,
    /// The next CCW is reached by data chaining, and as a command by a skip.
    contested: bool,
}

/// What stands at a place of the guest program.
enum Found {
    /// A CCW, read now.
    Ccw(Ccw),
    /// One that was read before: its shadow.
    Shadow(u32),
    /// A TIC that was read before and left out: its index in [`Program::elided`].
    Elided(usize),
}

/// Where the chain goes after a CCW.
enum Flow {
    /// To the next CCW; `skips`: the CCW may also end with status modifier.
    On { skips: bool },
    /// To the target of a TIC that was left out, where this CCW stands.
    To(u32, Ccw),
    /// Nowhere.
    End,
}

impl Fetch<'_> {
    /// Addresses of CCWs and direct data lie below this.
    pub(super) fn address_limit(&self) -> u64 {
        if self.format_1 { 1 << 31 } else { 1 << 24 }
    }

    /// Reads from `start` to the end of the chain. `leader`: the command that data chaining carries
    /// there. An error says why nothing could be read at all.
    #[inline(always)]
    fn follow(
        &mut self,
        program: &mut Program,
        start: u32,
        leader: Option<u8>,
    ) -> Result<(), Cause> {
        let mut at = u64::from(start);
        self.horizon = if program.segments.is_empty() { u64::MAX } else { 0 };
        let mut found = self.find(program, at)?;
        if !self.open_segment(program, start) {
            return Err(Cause::Program);
        }
        program.chains.push(program.ccws.len() as u32);
        self.leader = leader;
        self.contested = false;
        // The CCW before may skip this one, so the one behind it may be the next.
        let mut skippable = false;
        loop {
            if self.taken >= self.rules.limits.ccws {
                program.push_stop(CcwFlags::empty(), 0, Cause::Program);
                return Ok(());
            }
            if let Found::Ccw(ccw) = found
                && self.is_plain
                && self.leader.is_none()
                && !skippable
            {
                match self.plain_run(program, ccw, &mut at) {
                    Run::Ccw(ccw) => found = Found::Ccw(ccw),
                    Run::Place => {
                        let Some(place) = self.arrive(program, &mut at, &mut skippable) else {
                            return Ok(());
                        };
                        found = place;
                        continue;
                    }
                    Run::End => {
                        program.ccws.push(ShadowCcw::stop(CcwFlags::empty()));
                        return Ok(());
                    }
                }
            }
            let flow = match found {
                Found::Ccw(ccw) if ccw.is_tic(self.format_1) => {
                    self.transfer(program, &ccw, at as u32, skippable)
                }
                Found::Ccw(ccw) => self.command(program, &ccw),
                Found::Shadow(index) => self.repeat(program, index),
                Found::Elided(index) => match program.elided[index] {
                    Elided { leads: true, address, count, .. } => {
                        self.keep_transfer(program, address, count)
                    }
                    Elided { count, .. } => self.stop_at_transfer(program, count),
                },
            };
            let skips = match flow {
                Flow::To(address, ccw) => {
                    at = address.into();
                    found = Found::Ccw(ccw);
                    continue;
                }
                Flow::On { skips } => skips,
                // Only a status modifier leads on.
                Flow::End if skippable => {
                    self.leader = None;
                    false
                }
                Flow::End => {
                    // If a device skips where none should, it stops here.
                    program.ccws.push(ShadowCcw::stop(CcwFlags::empty()));
                    return Ok(());
                }
            };
            self.contested = skippable && self.leader.is_some();
            self.searches |= skips;
            skippable = skips;
            at += 8;
            let Some(place) = self.arrive(program, &mut at, &mut skippable) else {
                return Ok(());
            };
            found = place;
        }
    }

    /// What stands at guest address `at`, where a CCW is to follow, or behind it, if only that can be
    /// read and is where a skip leads. `None`: the chain has a stop there.
    #[inline]
    fn arrive(
        &mut self,
        program: &mut Program,
        at: &mut u64,
        skippable: &mut bool,
    ) -> Option<Found> {
        loop {
            match self.find(program, *at) {
                Ok(found) => return Some(found),
                Err(cause) => program.push_stop(CcwFlags::empty(), 0, cause),
            }
            *at += 8;
            if !std::mem::take(skippable) || !self.open_segment(program, *at as u32) {
                return None;
            }
            self.leader = None;
            self.contested = false;
        }
    }

    /// Starts a segment at guest address `start`. `false`: there are as many as there may be.
    #[inline(always)]
    fn open_segment(&mut self, program: &mut Program, start: u32) -> bool {
        if program.segments.len() >= self.rules.limits.segments {
            return false;
        }
        let first = program.ccws.len() as u32;
        program.segments.push(Segment { start, first, len: 0 });
        self.look_ahead(program, start.into());
        true
    }

    /// Finds the next place at or behind `at` that was read before.
    fn look_ahead(&mut self, program: &Program, at: u64) {
        if program.segments.len() < 2 && program.elided.is_empty() {
            self.horizon = u64::MAX;
            return;
        }
        let earlier = &program.segments[..program.segments.len().saturating_sub(1)];
        let segments = earlier.iter().filter(|known| known.end() > at && known.len > 0);
        let starts = segments.map(|known| u64::from(known.start).max(at));
        let elided = program.elided.iter().map(|known| u64::from(known.at));
        let next = starts.chain(elided.filter(|known| *known >= at)).min();
        self.horizon = next.unwrap_or(u64::MAX);
    }

    /// What stands at guest address `at`; an error says why nothing can.
    #[inline(always)]
    fn find(&mut self, program: &Program, at: u64) -> Result<Found, Cause> {
        if at >= self.horizon {
            if let Some(index) = program.index_of(at as u32) {
                return Ok(Found::Shadow(index));
            }
            if let Some(index) = program.elided.iter().position(|tic| u64::from(tic.at) == at) {
                return Ok(Found::Elided(index));
            }
            self.look_ahead(program, at);
        }
        self.read(at).map(Found::Ccw)
    }

    /// Reads the CCW at guest address `at`.
    #[inline(always)]
    fn read(&self, at: u64) -> Result<Ccw, Cause> {
        if at >= self.address_limit() {
            return Err(Cause::Program);
        }
        let near = self.near.load_doubleword(at);
        let bytes = near.or_else(|| self.map.load_doubleword(at)).ok_or(Cause::Program)?;
        if self.is_fetch_protected(at) {
            return Err(Cause::Protection);
        }
        Ok(Ccw::decode(bytes, self.format_1))
    }

    /// Whether the key forbids fetching from guest address `address`, which has memory.
    #[inline]
    pub(super) fn is_fetch_protected(&self, address: u64) -> bool {
        self.key != 0
            && self.map.region(address).is_some()
            && !self.rules.may_fetch(self.key, address)
    }

    /// Appends the shadow of the CCW of the current segment that was just read.
    fn push(&mut self, program: &mut Program, ccw: ShadowCcw) {
        program.ccws.push(ccw);
        self.taken += 1;
        program.measure_segment();
    }

    /// The same for one at which the channel stops.
    fn push_stop(&mut self, program: &mut Program, flags: CcwFlags, count: u16, cause: Cause) {
        program.push_stop(flags, count, cause);
        self.taken += 1;
        program.measure_segment();
    }

    /// A TIC at guest address `at`, read now.
    fn transfer(&mut self, program: &mut Program, tic: &Ccw, at: u32, skippable: bool) -> Flow {
        let first = program.ccws.is_empty() && self.starts;
        if first || !self.leads(tic) {
            return self.stop_at_transfer(program, tic.count);
        }
        let reached_by_tic = program.segments.last().is_none_or(|segment| segment.len == 0);
        let known = tic.address == at
            || program.index_of(tic.address).is_some()
            || program.elided.iter().any(|known| known.at == tic.address);
        let full = program.segments.len() >= self.rules.limits.segments;
        if skippable || reached_by_tic || known || full {
            return self.keep_transfer(program, tic.address, tic.count);
        }
        let Ok(next) = self.read(tic.address.into()) else {
            // Settled at the end.
            return self.keep_transfer(program, tic.address, tic.count);
        };
        program.elided.push(Elided { at, address: tic.address, count: tic.count, leads: true });
        self.open_segment(program, tic.address);
        if next.is_tic(self.format_1) {
            // A TIC may not lead to a TIC; other ways to this one are its own affair.
            let Ccw { address, count, .. } = next;
            let leads = self.leads(&next);
            program.elided.push(Elided { at: tic.address, address, count, leads });
            program.push_stop(CcwFlags::empty(), count, Cause::Program);
            return Flow::End;
        }
        Flow::To(tic.address, next)
    }

    /// Whether a TIC, wherever it is reached from, may lead anywhere.
    fn leads(&self, tic: &Ccw) -> bool {
        let odd = self.format_1 && (!tic.flags.is_empty() || tic.count != 0);
        let target = u64::from(tic.address);
        !odd && target.is_multiple_of(8) && target < self.address_limit()
    }

    /// A TIC that leads nowhere.
    fn stop_at_transfer(&mut self, program: &mut Program, count: u16) -> Flow {
        self.push_stop(program, CcwFlags::empty(), count, Cause::Program);
        Flow::End
    }

    /// A TIC that stays one.
    fn keep_transfer(&mut self, program: &mut Program, address: u32, count: u16) -> Flow {
        let index = program.ccws.len() as u32;
        let target = Target::Transfer(program.transfers.len() as u32);
        let (leader, contested) = (self.leader, self.contested);
        program.transfers.push(Transfer { index, address, leader, contested, count });
        self.push(program, ShadowCcw::transfer(target));
        Flow::End
    }

    /// The CCW at index `index`, at its guest address once more: another segment runs into it.
    fn repeat(&mut self, program: &mut Program, index: u32) -> Flow {
        let shadow = program.ccws[index as usize];
        if let Target::Transfer(transfer) = shadow.target {
            let Transfer { address, count, .. } = program.transfers[transfer as usize];
            return self.keep_transfer(program, address, count);
        }
        // Where a skip leads here, too, it is reached as a command as well.
        if !self.fits(&shadow, self.leader) || self.contested && !self.fits(&shadow, None) {
            self.push_stop(program, shadow.flags, shadow.count, Cause::Program);
            return Flow::End;
        }
        // Until the TICs are settled, stops are in the order of their indices.
        if let Ok(found) = program.stops.binary_search_by_key(&index, |stop| stop.index) {
            let stop = Stop { index: program.ccws.len() as u32, ..program.stops[found] };
            program.stops.push(stop);
        }
        self.push(program, shadow);
        if shadow.is_stop() {
            return Flow::End;
        }
        self.flow(shadow.command, shadow.flags)
    }

    /// A CCW that is not a TIC, with its IDAL.
    fn command(&mut self, program: &mut Program, ccw: &Ccw) -> Flow {
        let limits = &self.rules.limits;
        let leader = self.leader.unwrap_or(ccw.command);
        let movement = Movement::of(leader, ccw.flags);
        let indirect = CcwFlags::INDIRECT | CcwFlags::MODIFIED_INDIRECT;
        let mut shadow = ShadowCcw {
            command: ccw.command,
            flags: ccw.flags - indirect,
            count: ccw.count,
            leader,
            target: Target::Nothing,
        };
        let list = program.idaws.len();
        program.data_bytes += u64::from(ccw.count);
        let alone = Movement::of(ccw.command, ccw.flags);
        // What is data-chained to it goes both ways, too: then the ways must be one.
        let chains_data = ccw.flags.contains(CcwFlags::CHAIN_DATA);
        let two_ways = alone.backward != movement.backward
            || (self.is_strict() || chains_data) && alone.stores != movement.stores
            || chains_data && command::is_search(ccw.command) != command::is_search(leader);
        let refused = self.is_refused(ccw) || self.contested && two_ways;
        let sound = !refused
            && program.data_bytes <= limits.bytes
            && (ccw.count == 0 || self.data_area(program, ccw, movement).is_some())
            && program.idaws.len() <= limits.idaws;
        if !sound {
            program.idaws.truncate(list);
            self.push_stop(program, ccw.flags, ccw.count, Cause::Program);
            return Flow::End;
        }
        if self.rules.pins_areas
            && (movement.moves || alone.moves)
            && let Some(cause) = Cause::of_area(&program.idaws[list..])
        {
            program.idaws.truncate(list);
            self.push_stop(program, ccw.flags, ccw.count, cause);
            return Flow::End;
        }
        if !self.rules.policy.is_empty() {
            shadow.command = self.judge(program, ccw, list);
        }
        if ccw.count != 0 {
            shadow.flags |= CcwFlags::INDIRECT;
            let list = list as u32;
            shadow.target = match movement {
                Movement { backward: true, .. } => Target::StoreBackward(list),
                Movement { stores: true, .. } => Target::Store(list),
                _ => Target::Fetch(list),
            };
        }
        if let Some(leader) = self.leader
            && movement.moves
            && !alone.moves
            && !self.contested
        {
            // The kernel driver goes by a CCW's own command, data-chained or not, when it decides
            // whether to pin (`ccw_does_data_transfer`).
            let index = program.ccws.len() as u32;
            program.disguised.push(Disguised { index, leader: Some(leader) });
        }
        self.push(program, shadow);
        self.flow(ccw.command, ccw.flags)
    }

    /// What the shadow, whose CCWs are format 1 without MIDAWs, would not refuse by itself.
    fn is_refused(&self, ccw: &Ccw) -> bool {
        let midaws = ccw.flags.contains(CcwFlags::MODIFIED_INDIRECT);
        let unsuited = CcwFlags::INDIRECT | CcwFlags::SKIP;
        let empty = ccw.count == 0 && (!self.format_1 || midaws);
        empty || midaws && (!self.midaws || ccw.flags.intersects(unsuited))
    }

    /// The command code that the policy leaves: a refused command becomes an invalid one, which ends
    /// the program unless the CCW is data-chained to; then its command means nothing.
    fn judge(&mut self, program: &mut Program, ccw: &Ccw, list: usize) -> u8 {
        let Rules { class, policy, .. } = self.rules;
        // What the channel refuses or suspends at never reaches the device.
        let empty = ccw.count == 0 && ccw.flags.contains(CcwFlags::CHAIN_DATA);
        if !ccw.class().is_command() || empty || ccw.flags.contains(CcwFlags::SUSPEND) {
            return ccw.command;
        }
        let first = program.ccws.is_empty();
        let defines = policy.sees_extents() && defines_extent(*class, ccw.command);
        // Where it is data-chained to, its command means nothing, and its data may be anything.
        let leads = defines && self.leader.is_none();
        let extent = if leads { self.copy_parameters(program, ccw, list) } else { None };
        let access = Access {
            extent,
            bounded: program.bounded,
            ..Access::new(*class, ccw.command, ccw.count)
        };
        let verdict = policy.judge(&access);
        if verdict == Verdict::Allow {
            program.bounded |= first && defines;
            return ccw.command;
        }
        let index = program.ccws.len() as u32;
        let cause = Cause::Refused(verdict);
        program.stops.push(Stop { index, count: ccw.count, cause });
        0
    }

    /// Where a CCW with these flags leads; keeps track of data chaining.
    fn flow(&mut self, command: u8, flags: CcwFlags) -> Flow {
        let leader = self.leader.unwrap_or(command);
        let chains_data = flags.contains(CcwFlags::CHAIN_DATA);
        let chains_command = flags.contains(CcwFlags::CHAIN_COMMAND);
        self.leader = chains_data.then_some(leader);
        if chains_data || chains_command {
            // Reached by data chaining here, it may yet be reached as a command.
            let search = command::is_search(leader) || command::is_search(command);
            Flow::On { skips: !chains_data && search }
        } else {
            Flow::End
        }
    }

    /// Whether it matters that an area is stored into that was meant to be fetched from, or the other
    /// way round: keys tell the two apart, and nothing may store into judged parameters.
    fn is_strict(&self) -> bool {
        self.key != 0 || self.rules.policy.sees_extents()
    }

    /// Whether a CCW was read in a way that also holds if it is reached with this `leader`: its data,
    /// and that of what is data-chained to it, goes the same way and was checked to be allowed to, and
    /// what a skip leads to was looked for.
    fn fits(&self, shadow: &ShadowCcw, leader: Option<u8>) -> bool {
        if shadow.is_stop() || shadow.command == command::TIC {
            return true;
        }
        let (new, known) = (leader.unwrap_or(shadow.command), shadow.leader);
        let (class, known_class) = (CommandClass::of(new), CommandClass::of(known));
        let backward = CommandClass::ReadBackward;
        // What is no command, or was refused, stops the channel before any data moves.
        !class.is_command()
            || (class == backward) == (known_class == backward)
                && (!self.is_strict() || class.stores() == known_class.stores())
                && (!command::is_search(new)
                    || command::is_search(known)
                    || !shadow.flags.contains(CcwFlags::CHAIN_DATA)
                        && command::is_search(shadow.command))
    }

    /// Resolves the TICs, and decides on the frames that are only touched on other ways than the one
    /// each CCW was read on.
    fn settle(&mut self, program: &mut Program) {
        let mut chained_transfer = false;
        // Behind these come those of stops, where no TIC leads.
        let read = program.segments.len();
        for index in 0..program.transfers.len() {
            let Transfer { index, address, leader, contested, count } = program.transfers[index];
            let place = index as usize;
            let mut segments = program.segments[..read].iter();
            let target = segments.find_map(|segment| segment.index_of(address));
            let fitting = target.filter(|target| {
                let ccw = &program.ccws[*target as usize];
                self.fits(ccw, leader) && (!contested || self.fits(ccw, None))
            });
            let landing = fitting.unwrap_or_else(|| {
                // A stop that seems to stand where the TIC does: a check because nothing can be at a
                // TIC's target is shown at the TIC.
                let protected = target.is_none() && self.is_fetch_protected(address.into());
                let cause = if protected { Cause::Protection } else { Cause::Program };
                let (first, behind) = (program.ccws.len() as u32, program.guest_address(index + 1));
                program.segments.push(Segment { start: behind.wrapping_sub(8), first, len: 0 });
                program.push_stop(CcwFlags::empty(), count, cause);
                first
            });
            program.ccws[place].target = Target::Ccw(landing);
            program.reveal(landing);
            let leads = program.ccws[landing as usize].flags.contains(CcwFlags::CHAIN_DATA);
            chained_transfer |= leader.is_some() || leads;
            // Where another TIC leads to this one, its own count is shown.
            program.stops.push(Stop { index, count, cause: Cause::Program });
        }
        if !program.transfers.is_empty() || self.searches {
            program.doubtful.iter().for_each(|frame| self.hold.want(*frame));
        }
        for Disguised { index, leader } in &program.disguised {
            // Data chaining over a TIC may bring another leader.
            let Some(leader) = leader.filter(|_| !chained_transfer) else { continue };
            let ccw = &mut program.ccws[*index as usize];
            ccw.command = leader;
            if !CommandClass::of(leader).stores() {
                ccw.flags -= CcwFlags::SKIP;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shadow::{GUEST_IOVA, UNMAPPED_IOVA};
    use crate::translation::{Limits, Policy, StorageKey, StorageKeys};
    use std::sync::Arc;
    use vfio_ccw_metrics::DeviceClass;
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
        program.fetch(&orb, map, &Rules::default(), &mut hold);
        (program, hold)
    }

    fn stop() -> ShadowCcw {
        ShadowCcw::stop(CcwFlags::empty())
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
    fn a_driver_that_pins_first_finds_no_area_that_is_not_all_there() {
        let map = guest();
        let rules = Rules { pins_areas: true, ..Rules::default() };
        let (mut program, mut hold) = (Program::default(), Hold::default());
        let ida = CcwFlags::INDIRECT;
        map.write(0x200, &0x1000u64.to_be_bytes());
        map.write(0x208, &0x7fff_0000u64.to_be_bytes());
        let areas = [
            Ccw::new(command::FBA_READ, 0xf800, 0x1000),
            Ccw::new(command::FBA_READ, 0x7000_0000, 1),
            Ccw::new(command::FBA_WRITE, 0x200, 0x1800).with(ida),
            Ccw::new(command::SENSE, 0x7000_0000, 1),
        ];
        for area in areas {
            put(&map, 0x100, &[Ccw::new(0x07, 0x1000, 4).with(CC), area]);
            hold.clear();
            program.fetch(&Orb::new(0x100), &map, &rules, &mut hold);
            assert_eq!(program.ccws[1], stop(), "{area:?}");
            assert_eq!(iovas(&program), [0x1000 + GUEST_IOVA], "{area:?}");
            assert_eq!(program.stops[0].count, area.count);
        }
        // Where no data moves, nothing is pinned.
        let nop = Ccw::new(command::NOP, 0x7000_0000, 1);
        let skip = Ccw::new(command::FBA_READ, 0x7000_0000, 1).with(CcwFlags::SKIP);
        for still in [nop, skip] {
            put(&map, 0x100, &[still]);
            hold.clear();
            program.fetch(&Orb::new(0x100), &map, &rules, &mut hold);
            assert_eq!(program.ccws[0].command, still.command);
        }
    }

    #[test]
    fn a_chain_that_runs_out_of_memory_ends_in_a_stop() {
        let map = guest();
        put(&map, 0xfff8, &[Ccw::new(command::NOP, 0, 0).with(CC)]);
        let (program, _) = fetch(&map, Orb::new(0xfff8));
        assert_eq!(program.ccws.len(), 2);
        assert_eq!(program.ccws[1], stop());
        for cpa in [0x101, 0x1_8000, 0x7fff_fff8] {
            let (program, _) = fetch(&map, Orb::new(cpa));
            assert_eq!((&program.ccws[..], program.segments.len()), (&[stop()][..], 0));
        }
    }

    /// All of storage has key 1.
    struct KeyOne;

    impl StorageKeys for KeyOne {
        fn key(&self, _address: u64) -> StorageKey {
            StorageKey { access: 1, fetch_protected: false }
        }
    }

    fn commands(program: &Program) -> Vec<u8> {
        program.ccws.iter().map(|ccw| ccw.command).collect()
    }

    #[test]
    fn what_a_transfer_leads_to_follows_in_its_place() {
        let map = guest();
        let nop = Ccw::new(command::NOP, 0, 0);
        put(&map, 0x100, &[nop.with(CC), Ccw::new(command::TIC, 0x300, 0)]);
        put(&map, 0x300, &[Ccw::new(0x07, 0, 0).with(CC), Ccw::new(command::TIC, 0x100, 0)]);
        let (program, _) = fetch(&map, Orb::new(0x100));
        assert_eq!(commands(&program), [command::NOP, 0x07, command::TIC, 0]);
        assert_eq!(program.ccws[2].target, Target::Ccw(0), "back to the first");
        assert_eq!(program.index_of(0x300), Some(1));
        assert_eq!(program.index_of(0x304), None);
    }

    #[test]
    fn a_search_loop_keeps_its_transfer_and_what_follows_it() {
        let map = guest();
        let program = [
            Ccw::new(0x31, 0x1000, 5).with(CC),
            Ccw::new(command::TIC, 0x100, 0),
            Ccw::new(0x06, 0x2000, 512),
        ];
        put(&map, 0x100, &program);
        let (program, hold) = fetch(&map, Orb::new(0x100));
        assert_eq!((program.segments.len(), program.ccws.len()), (1, 4));
        assert_eq!(program.ccws[1].target, Target::Ccw(0));
        assert_eq!(hold.wanted(), 2);
        // The same where the search ends a chain, or leads elsewhere: what it may skip to is there.
        put(&map, 0x108, &[Ccw::new(0x07, 0, 0), Ccw::new(0x06, 0x2000, 512)]);
        assert_eq!(commands(&fetch(&map, Orb::new(0x100)).0), [0x31, 0x07, 0x06, 0]);
        put(&map, 0x108, &[Ccw::new(command::TIC, 0x400, 0)]);
        put(&map, 0x400, &[Ccw::new(command::NOP, 0, 0)]);
        let (program, _) = fetch(&map, Orb::new(0x100));
        assert_eq!(commands(&program), [0x31, command::TIC, 0x06, 0, command::NOP, 0]);
        assert_eq!(program.ccws[1].target, Target::Ccw(4));
    }

    #[test]
    fn a_segment_that_runs_into_another_repeats_its_snapshot() {
        let map = guest();
        let nop = |address| Ccw::new(command::NOP, address, 0).with(CC);
        put(
            &map,
            0x200,
            &[nop(1), Ccw::new(0x07, 0x1000, 4).with(CC), Ccw::new(command::TIC, 0x1f8, 0)],
        );
        put(&map, 0x1f8, &[nop(2)]);
        let (program, _) = fetch(&map, Orb::new(0x200));
        assert_eq!(commands(&program), [3, 7, 3, 3, 7, command::TIC, 0]);
        assert_eq!(program.ccws[1], program.ccws[4], "with the same IDAL");
        assert_eq!(program.ccws[5].target, Target::Ccw(2));
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
            assert_eq!(program.ccws[1], stop(), "{tic:?}");
        }
    }

    #[test]
    fn an_odd_transfer_is_a_stop_whichever_way_it_is_reached() {
        let map = guest();
        let nop = Ccw::new(command::NOP, 0, 0).with(CC);
        let search = Ccw::new(0x31, 0x1000, 5).with(CC);
        let tic = |address| Ccw::new(command::TIC, address, 0);
        // Behind the search's own TIC one leads to the odd one, and a chain runs into it.
        put(&map, 0x100, &[search, tic(0x118), tic(0x120), nop, Ccw::new(command::TIC, 0x100, 1)]);
        let (program, _) = fetch(&map, Orb::new(0x100));
        let nop = program.index_of(0x118).expect("the search's own TIC leads there") as usize;
        assert_eq!(program.ccws[nop + 1], stop(), "{:?}", program.ccws);
    }

    #[test]
    fn what_a_skip_leads_to_fits_as_a_command_too() {
        let map = guest();
        let chain_data = CcwFlags::CHAIN_DATA;
        // The search fetches data from 0x1000 and 0x2000, and then from 0x3000, where it goes on to the
        // first part: a skip comes to the second part, which as a command is a read.
        put(
            &map,
            0x100,
            &[Ccw::new(command::NOP, 0, 0).with(CC), Ccw::new(command::TIC, 0x208, 0)],
        );
        let search = Ccw::new(0x31, 0x1000, 8).with(chain_data);
        let middle = Ccw::new(command::FBA_READ, 0x2000, 8).with(chain_data);
        let last = Ccw::new(command::FBA_READ, 0x3000, 8).with(CC);
        put(&map, 0x200, &[last, search, middle, Ccw::new(command::TIC, 0x200, 0)]);
        let rules = Rules { keys: Some(Arc::new(KeyOne)), ..Rules::default() };
        let (mut program, mut hold) = (Program::default(), Hold::default());
        program.fetch(&Orb::new(0x100).with_key(1), &map, &rules, &mut hold);
        let code = commands(&program);
        assert_eq!(code, [command::NOP, 0x31, command::FBA_READ, command::FBA_READ, 0x31, 0, 0]);
    }

    #[test]
    fn a_transfer_to_nowhere_leads_to_a_stop_in_its_own_place() {
        let map = guest();
        put(
            &map,
            0x100,
            &[Ccw::new(command::NOP, 0, 0).with(CC), Ccw::new(command::TIC, 0x1_8000, 0)],
        );
        let (program, _) = fetch(&map, Orb::new(0x100));
        assert_eq!(commands(&program), [command::NOP, command::TIC, 0, 0]);
        assert_eq!(program.ccws[1].target, Target::Ccw(3));
        assert_eq!(program.guest_address(4), 0x110, "8 past the TIC");
    }

    #[test]
    fn nothing_stores_into_judged_parameters() {
        let map = guest();
        let rules =
            Rules { class: DeviceClass::Fba, policy: Policy::extents(0..8), ..Rules::default() };
        let define = Ccw::new(command::DEFINE_EXTENT, 0x1000, 16).with(CC);
        map.write(0x100c, &7u32.to_be_bytes());
        let read = |ccws: &[Ccw]| {
            put(&map, 0x100, ccws);
            let (mut program, mut hold) = (Program::default(), Hold::default());
            program.fetch(&Orb::new(0x100), &map, &rules, &mut hold);
            program
        };
        let data = Ccw::new(command::FBA_READ, 0x2000, 8).with(CcwFlags::CHAIN_DATA);
        let chained = read(&[data, define]);
        assert_eq!(chained.parameters.len(), 0, "data-chained to");
        let program = read(&[define, data, Ccw::new(command::TIC, 0x100, 0)]);
        assert_eq!(
            (program.parameters.len(), program.ccws[0].command),
            (64, command::DEFINE_EXTENT)
        );
        let Target::Ccw(landing) = program.ccws[2].target else { panic!("{:?}", program.ccws[2]) };
        assert!(program.ccws[landing as usize].is_stop(), "the read would fill the parameters");
    }

    #[test]
    fn long_chains_are_broken_where_the_kernel_stops_reading() {
        let map = guest();
        put(&map, 0x100, &[Ccw::new(command::NOP, 0, 0).with(CC); 600]);
        put(&map, 0x100 + 600 * 8, &[Ccw::new(command::NOP, 0, 0)]);
        let (program, _) = fetch(&map, Orb::new(0x100));
        let breaks: Vec<usize> = commands(&program)
            .iter()
            .enumerate()
            .filter_map(|(index, code)| (*code == command::TIC).then_some(index))
            .collect();
        assert_eq!(breaks.len(), 2);
        assert!(breaks[0] < 256 && breaks[1] - breaks[0] <= 256, "{breaks:?}");
        for index in 0..601 {
            let shadow = program.index_of(0x100 + index * 8).unwrap();
            assert_eq!(program.ccws[shadow as usize].command, command::NOP);
        }
    }

    #[test]
    fn limits_end_in_stops_not_in_growth() {
        let map = guest();
        let endless = [Ccw::new(command::NOP, 0, 0).with(CC); 64];
        put(&map, 0x100, &endless);
        let (mut program, mut hold) = (Program::default(), Hold::default());
        let limits = Limits { ccws: 10, idaws: 3, segments: 1, bytes: 1 << 20 };
        let mut fetch = |map, limits| {
            let rules = Rules { limits, ..Rules::default() };
            program.fetch(&Orb::new(0x100), map, &rules, &mut hold);
            (program.ccws.clone(), program.idaws.len(), program.segments.len())
        };
        let (ccws, ..) = fetch(&map, limits);
        assert_eq!((ccws.len(), ccws[10]), (11, stop()));
        put(&map, 0x100, &[Ccw::new(command::FBA_READ, 0x1000, 0x4000)]);
        let (ccws, idaws, _) = fetch(&map, limits);
        assert_eq!((ccws[0], idaws), (stop(), 0));
        let (ccws, ..) = fetch(&map, Limits { bytes: 0x3fff, ..Limits::default() });
        assert_eq!(ccws[0], stop());
        put(
            &map,
            0x100,
            &[Ccw::new(command::NOP, 0, 0).with(CC), Ccw::new(command::TIC, 0x300, 0)],
        );
        let (ccws, _, segments) = fetch(&map, limits);
        assert_eq!((ccws[1].target, ccws[3]), (Target::Ccw(3), stop()));
        assert_eq!(segments, 2, "no room for the target's segment, only for the stop");
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
        assert_eq!(program.ccws[1], stop(), "count 0 is refused in format 0");
        assert_eq!(fetch(&map, Orb::new(0x100_0000).with_flags(flags)).0.ccws, [stop()]);
    }
}
