//! Breaking long chains for the kernel driver, which reads 256 CCWs from one place and not one more
//! (`CCWCHAIN_LEN_MAX` in `vfio_ccw_cp.c`).
//!
//! A break is a TIC to the CCW behind it. It stands where the guest cannot notice: not before a TIC,
//! not where a SEARCH would skip it, and not inside a loop that goes on behind its TIC, since the
//! driver reads on behind a TIC only if that leads back into what it has read from the same place.

use crate::architecture::{CcwFlags, command};

use super::program::{Program, Segment, ShadowCcw, Target};

/// CCWs that the kernel driver reads from one place.
const CHAIN: u32 = 256;

/// Breaks of one program: enough for any that the driver would take. A chain that has no place for
/// a break stays as it is; the software channel runs it, the driver refuses it.
const BREAKS: usize = 64;

impl Program {
    /// Breaks chains that are too long. Indices of CCWs known so far move along.
    pub(super) fn break_chains(&mut self) {
        if self.ccws.len() <= CHAIN as usize {
            return;
        }
        self.breaks.clear();
        for index in 0..self.chains.len() {
            let start = self.chains[index];
            let end = self.chains.get(index + 1).map_or(self.ccws.len() as u32, |next| *next);
            if end - start > CHAIN {
                self.find_breaks(start, end);
            }
        }
        if !self.breaks.is_empty() {
            self.insert_breaks();
        }
    }

    /// Finds places for breaks in the chain `start..end`.
    fn find_breaks(&mut self, start: u32, end: u32) {
        self.mark_loops(start, end);
        let mut from = start;
        while end - from > CHAIN && self.breaks.len() < BREAKS {
            // The TIC is the last of its 256, at most.
            let places = (from + 1..from + CHAIN).rev();
            let unseen = |place: &u32| self.has_room(*place);
            let outside = |place: &u32| self.loops[(*place - start) as usize] >= *place;
            let place = places.clone().filter(unseen).find(outside);
            let Some(place) = place.or_else(|| places.clone().find(unseen)) else { return };
            self.breaks.push(place);
            from = place;
        }
    }

    /// For each CCW of the chain `start..end`: the first CCW of it that a TIC there or behind leads
    /// back to, where the chain goes on behind that TIC.
    fn mark_loops(&mut self, start: u32, end: u32) {
        self.loops.clear();
        self.loops.resize((end - start) as usize, u32::MAX);
        for transfer in &self.transfers {
            let goes_on = transfer.index + 2 < end;
            if (start..end).contains(&transfer.index)
                && goes_on
                && let Some(target) = self.index_of(transfer.address)
                && target >= start
            {
                self.loops[(transfer.index - start) as usize] = target;
            }
        }
        let mut first = u32::MAX;
        for place in self.loops.iter_mut().rev() {
            first = first.min(*place);
            *place = first;
        }
    }

    /// Whether a break before the CCW `place` would not be noticed.
    fn has_room(&self, place: u32) -> bool {
        let ccw = &self.ccws[place as usize];
        let is_tic = matches!(ccw.target, Target::Transfer(_));
        !is_tic && self.segment_of(place).is_some() && !self.skips(place - 1)
    }

    /// Whether the CCW at `index` may end with status modifier.
    fn skips(&self, index: u32) -> bool {
        let ccw = &self.ccws[index as usize];
        let chain = ccw.flags & (CcwFlags::CHAIN_COMMAND | CcwFlags::CHAIN_DATA);
        // Also by its own command, if a TIC leads to it.
        let search = command::is_search(ccw.leader) || command::is_search(ccw.command);
        chain == CcwFlags::CHAIN_COMMAND && search
    }

    fn segment_of(&self, index: u32) -> Option<usize> {
        let after = self.segments.partition_point(|segment| segment.first <= index);
        let found = after.checked_sub(1)?;
        let Segment { first, len, .. } = self.segments[found];
        (index - first < len).then_some(found)
    }

    fn insert_breaks(&mut self) {
        for index in 0..self.breaks.len() {
            let place = self.breaks[index];
            let Some(found) = self.segment_of(place) else { continue };
            let segment = self.segments[found];
            let before = place - segment.first;
            self.segments[found].len = before;
            let start = segment.start.wrapping_add(before * 8);
            let rest = Segment { start, first: place, len: segment.len - before };
            self.segments.insert(found + 1, rest);
        }
        let breaks = &self.breaks;
        let moved = |index: u32| index + breaks.partition_point(|place| *place <= index) as u32;
        self.segments.iter_mut().for_each(|segment| segment.first = moved(segment.first));
        self.transfers.iter_mut().for_each(|transfer| transfer.index = moved(transfer.index));
        self.stops.iter_mut().for_each(|stop| stop.index = moved(stop.index));
        self.disguised.iter_mut().for_each(|disguised| disguised.index = moved(disguised.index));
        let mut behind = self.ccws.len();
        self.ccws.resize(behind + breaks.len(), ShadowCcw::stop(CcwFlags::empty()));
        // From the last to the first, each piece goes up by the breaks before it.
        for (earlier, place) in breaks.iter().enumerate().rev() {
            let place = *place as usize;
            let to = place + earlier + 1;
            self.ccws.copy_within(place..behind, to);
            self.ccws[to - 1] = ShadowCcw::transfer(Target::Ccw(to as u32));
            behind = place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translation::program::Transfer;

    /// A chain of one segment with these commands; a TIC leads as many CCWs back as `loops` says.
    fn chain(commands: &[u8], loops: &[(usize, usize)]) -> Program {
        let mut program = Program { chains: vec![0], ..Program::default() };
        for (index, code) in commands.iter().enumerate() {
            let mut ccw = ShadowCcw {
                command: *code,
                flags: CcwFlags::CHAIN_COMMAND,
                count: 0,
                leader: *code,
                target: Target::Nothing,
            };
            if let Some((_, back)) = loops.iter().find(|(at, _)| *at == index) {
                ccw.target = Target::Transfer(program.transfers.len() as u32);
                let address = 0x1000 + (index - back) as u32 * 8;
                let index = index as u32;
                program.transfers.push(Transfer {
                    index,
                    address,
                    leader: None,
                    contested: false,
                    count: 0,
                });
            }
            program.ccws.push(ccw);
        }
        let len = commands.len() as u32;
        program.segments.push(Segment { start: 0x1000, first: 0, len });
        program.ccws.push(ShadowCcw::stop(CcwFlags::empty()));
        program.break_chains();
        program
    }

    fn inserted(program: &Program) -> Vec<usize> {
        let breaks = program.ccws.iter().enumerate();
        let breaks = breaks.filter(|(_, ccw)| matches!(ccw.target, Target::Ccw(_)));
        breaks.map(|(index, _)| index).collect()
    }

    #[test]
    fn what_fits_is_left_alone() {
        assert!(inserted(&chain(&[3; 255], &[])).is_empty());
    }

    #[test]
    fn breaks_lead_to_the_ccw_behind_them() {
        let program = chain(&[3; 600], &[]);
        assert_eq!(inserted(&program), [255, 511]);
        assert_eq!(program.ccws[255].target, Target::Ccw(256));
        assert_eq!(program.segments.len(), 3);
        for (guest, shadow) in [(0, 0), (254, 254), (255, 256), (509, 510), (510, 512), (599, 601)]
        {
            assert_eq!(program.index_of(0x1000 + guest * 8), Some(shadow), "{guest}");
        }
    }

    #[test]
    fn a_loop_stays_in_one_piece() {
        let mut commands = [3; 300];
        // NOP; SEARCH; TIC *-16; READ around the place of a break.
        (commands[254], commands[255], commands[256]) = (0x31, 0x08, 0x06);
        let program = chain(&commands, &[(255, 2)]);
        assert_eq!(inserted(&program), [253]);
    }

    #[test]
    fn nothing_stands_where_a_search_skips() {
        let mut commands = [3; 300];
        commands[254] = 0x31;
        assert_eq!(inserted(&chain(&commands, &[])), [254]);
        // Where there is no other place, the chain stays whole.
        assert!(inserted(&chain(&[0x31; 300], &[])).is_empty());
    }
}
