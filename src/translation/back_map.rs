//! From addresses of the shadow back to addresses of the guest program.

use crate::architecture::Scsw;

use super::program::Program;

impl Program {
    /// The status word as the guest must see it: the CCW address, which is 8 past a CCW of the
    /// shadow, becomes 8 past the guest CCW that it stands for. Addresses outside the shadow (such
    /// as 0 with a deferred condition code) stay as they are.
    pub(crate) fn back_map(&self, scsw: Scsw) -> Scsw {
        match self.guest_address(scsw.cpa()) {
            Some(cpa) => scsw.with_cpa(cpa),
            None => scsw,
        }
    }

    fn guest_address(&self, shadow: u32) -> Option<u32> {
        let offset = shadow.checked_sub(self.iova)?;
        if !offset.is_multiple_of(8) || offset / 8 > self.ccws.len() as u32 {
            return None;
        }
        // 8 past the last CCW of one segment is the first of the next: what counts is the CCW
        // before, since that is the one that was used.
        let used = (offset / 8).saturating_sub(1);
        let segment = self.segments.iter().rev().find(|segment| segment.first <= used)?;
        let start = segment.start.wrapping_add((used - segment.first) * 8);
        Some(if offset == 0 { start } else { start.wrapping_add(8) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{CcwFlags, Orb};
    use crate::translation::program::{Segment, ShadowCcw, Target};

    #[test]
    fn every_shadow_address_maps_to_its_guest_ccw() {
        let nop =
            ShadowCcw { command: 3, flags: CcwFlags::empty(), count: 0, target: Target::Nothing };
        let program = Program {
            orb: Orb::new(0x1000),
            ccws: vec![nop; 5],
            segments: vec![
                Segment { start: 0x1000, first: 0, len: 2 },
                Segment { start: 0x8000, first: 3, len: 2 },
            ],
            iova: 0x10000,
            ..Program::default()
        };
        let mapped = |shadow: u32| program.back_map(Scsw::default().with_cpa(shadow)).cpa();
        assert_eq!(mapped(0x10000), 0x1000, "nothing was used");
        assert_eq!(mapped(0x10008), 0x1008);
        assert_eq!(mapped(0x10010), 0x1010);
        assert_eq!(
            mapped(0x10018),
            0x1018,
            "8 past the stop behind the first segment, not the second segment"
        );
        assert_eq!(mapped(0x10020), 0x8008);
        assert_eq!(mapped(0x10028), 0x8010);
        assert_eq!(mapped(0x10030), 0x10030, "not of this program");
        assert_eq!(mapped(0), 0);
    }
}
