//! From status of the shadow back to status of the guest program.

use crate::architecture::{DeviceStatus, IrbHead, Scsw, ScswFlags, SubchannelStatus};

use super::program::{Cause, Program};

impl Program {
    /// The status as the guest must see it.
    ///
    /// * The CCW address, which is 8 past a CCW of the shadow, becomes 8 past the guest CCW that it
    ///   stands for. Addresses outside the shadow (such as 0 with a deferred condition code) stay.
    /// * A program check at a CCW that was made to fail becomes what the guest's CCW fails with: a
    ///   program or protection check with the guest's count, or the unit check of the policy.
    /// * Format, prefetch control and the other controls are those of the guest's ORB.
    ///
    /// Residual counts need nothing: they count the same bytes.
    #[inline(always)]
    pub fn back_map(&self, irb: IrbHead) -> IrbHead {
        let scsw = irb.scsw.with_controls_of(&self.orb);
        let Some(used) = self.used(scsw.cpa()) else {
            return IrbHead { scsw, ..irb };
        };
        let scsw = scsw.with_cpa(self.guest_address(used));
        let mut mapped = IrbHead { scsw, ..irb };
        if scsw.subchannel_status().contains(SubchannelStatus::PROGRAM_CHECK) {
            self.explain_check(&mut mapped, used.saturating_sub(1));
        }
        mapped
    }

    /// A program check at CCW `used` of the shadow: that of the guest's CCW, if it was made to fail.
    #[cold]
    fn explain_check(&self, irb: &mut IrbHead, used: u32) {
        let Some(stop) = self.stops.iter().find(|stop| stop.index == used) else { return };
        match stop.cause {
            Cause::Program => irb.scsw = with_count(irb.scsw, stop.count),
            Cause::Protection => irb.scsw = protection_check(with_count(irb.scsw, stop.count)),
            // With device status, the CCW was data-chained to, where its command means nothing, and
            // its data failed.
            Cause::Refused(verdict) if irb.scsw.device_status().is_empty() => {
                irb.scsw = unit_check(irb.scsw);
                *irb = irb.with_sense(&verdict.sense());
            }
            Cause::Refused(_) => {}
        }
    }

    /// Whether this is the status of a program that the policy ended.
    pub(crate) fn is_refusal(&self, irb: &IrbHead) -> bool {
        let refused = |stop: &super::program::Stop| matches!(stop.cause, Cause::Refused(_));
        let unit_check = irb.scsw.device_status().contains(DeviceStatus::UNIT_CHECK);
        unit_check
            && self
                .stops
                .iter()
                .any(|stop| refused(stop) && self.guest_address(stop.index + 1) == irb.scsw.cpa())
    }

    /// CCWs of the shadow up to the address `cpa`.
    fn used(&self, cpa: u32) -> Option<u32> {
        let offset = cpa.checked_sub(self.iova)?;
        let used = offset / 8;
        (offset % 8 == 0 && used as usize <= self.ccws.len()).then_some(used)
    }

    /// Guest address behind the CCW whose shadow is the last of the first `used`.
    pub(super) fn guest_address(&self, used: u32) -> u32 {
        // 8 past the last CCW of one segment is the first of the next: what counts is the CCW
        // before, since that is the one that was used.
        let Some(last) = used.checked_sub(1) else { return self.orb.cpa() };
        let after = self.segments.partition_point(|segment| segment.first <= last);
        let Some(segment) = after.checked_sub(1).map(|index| &self.segments[index]) else {
            // The very first CCW could not be read.
            return self.orb.cpa().wrapping_add(used * 8);
        };
        segment.start.wrapping_add((used - segment.first) * 8)
    }
}

fn with_count(scsw: Scsw, count: u16) -> Scsw {
    scsw.with_status(scsw.device_status(), scsw.subchannel_status(), count)
}

fn protection_check(scsw: Scsw) -> Scsw {
    let status = scsw.subchannel_status() - SubchannelStatus::PROGRAM_CHECK;
    let status = status | SubchannelStatus::PROTECTION_CHECK;
    scsw.with_status(scsw.device_status(), status, scsw.count())
}

fn unit_check(scsw: Scsw) -> Scsw {
    let ended = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END | DeviceStatus::UNIT_CHECK;
    let status = scsw.subchannel_status() - SubchannelStatus::PROGRAM_CHECK;
    scsw.with_status(ended, status, scsw.count()).with_flags(ScswFlags::ALERT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{CcwFlags, Orb, OrbFlags};
    use crate::translation::Verdict;
    use crate::translation::program::{Segment, ShadowCcw, Stop, Target};

    fn program() -> Program {
        let (command, flags, target) = (3, CcwFlags::empty(), Target::Nothing);
        let nop = ShadowCcw { command, flags, count: 0, leader: command, target };
        Program {
            orb: Orb::new(0x1000),
            ccws: vec![nop; 5],
            segments: vec![
                Segment { start: 0x1000, first: 0, len: 2 },
                Segment { start: 0x8000, first: 3, len: 2 },
            ],
            iova: 0x10000,
            ..Program::default()
        }
    }

    fn irb(scsw: Scsw) -> IrbHead {
        IrbHead { scsw, ..IrbHead::default() }
    }

    #[test]
    fn every_shadow_address_maps_to_its_guest_ccw() {
        let program = program();
        let mapped =
            |shadow: u32| program.back_map(irb(Scsw::default().with_cpa(shadow))).scsw.cpa();
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

    #[test]
    fn a_program_of_nothing_readable_still_has_its_address() {
        let program = Program { segments: Vec::new(), ..program() };
        assert_eq!(program.back_map(irb(Scsw::default().with_cpa(0x10008))).scsw.cpa(), 0x1008);
    }

    #[test]
    fn stops_show_the_guests_count_and_cause() {
        let pci = SubchannelStatus::PROGRAM_CONTROLLED;
        let check = |device, count| {
            let status = SubchannelStatus::PROGRAM_CHECK | pci;
            irb(Scsw::default().with_cpa(0x10010).with_status(device, status, count))
        };
        let none = DeviceStatus::empty();
        let stopped =
            |cause| Program { stops: vec![Stop { index: 1, count: 77, cause }], ..program() };
        let program = stopped(Cause::Program);
        assert_eq!(program.back_map(check(none, 0)).scsw.count(), 77);
        let seen = stopped(Cause::Protection).back_map(check(none, 0)).scsw;
        let protection = SubchannelStatus::PROTECTION_CHECK | pci;
        assert_eq!((seen.subchannel_status(), seen.count()), (protection, 77));
        let program = stopped(Cause::Refused(Verdict::Reject));
        let seen = program.back_map(check(none, 77));
        assert!(seen.scsw.device_status().contains(DeviceStatus::UNIT_CHECK));
        assert_eq!(seen.scsw.subchannel_status(), pci);
        assert_eq!(seen.sense()[..2], [0x80, 0]);
        assert!(program.is_refusal(&seen));
        let data_failed = program.back_map(check(DeviceStatus::CHANNEL_END, 70));
        assert!(!program.is_refusal(&data_failed), "data-chained to, and its data failed");
        assert_eq!(data_failed.scsw.count(), 70);
    }

    #[test]
    fn controls_are_those_of_the_guests_orb() {
        let orb = Orb::new(0x1000).with_flags(OrbFlags::ADDRESS_LIMIT).with_key(3);
        let program = Program { orb, ..program() };
        let shadow = Scsw::new(ScswFlags::FORMAT_1 | ScswFlags::PREFETCH | ScswFlags::PRIMARY);
        let seen = program.back_map(irb(shadow)).scsw;
        assert_eq!(seen.flags(), ScswFlags::ADDRESS_LIMIT | ScswFlags::PRIMARY);
        assert_eq!(seen.key(), 3);
    }
}
