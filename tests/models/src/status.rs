//! Status blocks that can be told apart: every eight bytes of one, as which it is written and read,
//! say whose they are.

use zerocopy::{FromBytes, IntoBytes};

use crate::architecture::{IrbHead, Scsw, ScswFlags, SubchannelStatus};
use crate::random::mixed;

/// What the state word has of an SCSW: function, activity and status control.
pub const CONTROL: ScswFlags =
    ScswFlags::FUNCTION_CONTROL.union(ScswFlags::ACTIVITY_CONTROL).union(ScswFlags::STATUS_CONTROL);

const PROGRAM_CONTROLLED: SubchannelStatus = SubchannelStatus::PROGRAM_CONTROLLED;

/// Status number `number`, with this control, and with the status of a PCI or without.
pub fn block(number: u32, control: ScswFlags, program_controlled: bool) -> IrbHead {
    let mut bytes = [0; size_of::<IrbHead>()];
    for (place, eight) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let name = number << 3 | place as u32;
        let filling = mixed(u64::from(name)) << 32;
        *eight = (filling | u64::from(name)).to_be_bytes();
    }
    let mut irb = IrbHead::read_from_bytes(&bytes).unwrap_or_default();
    let scsw = irb.scsw.without_flags(CONTROL).with_flags(control & CONTROL);
    let mut subchannel = scsw.subchannel_status();
    subchannel.set(PROGRAM_CONTROLLED, program_controlled);
    irb.scsw = scsw.with_status(scsw.device_status(), subchannel, scsw.count());
    irb
}

/// The number of the status that all of `irb` belongs to; `None` if there is no such status.
pub fn number_of(irb: &IrbHead) -> Option<u32> {
    let number = claimed(&irb.scsw);
    (block_like(number, &irb.scsw).as_bytes() == irb.as_bytes()).then_some(number)
}

/// The same for an SCSW alone.
pub fn number_of_scsw(scsw: &Scsw) -> Option<u32> {
    let number = claimed(scsw);
    (block_like(number, scsw).scsw == *scsw).then_some(number)
}

/// The number that the first eight bytes have.
fn claimed(scsw: &Scsw) -> u32 {
    scsw.cpa() >> 3
}

/// Status number `number` with what `scsw` has of what changes.
fn block_like(number: u32, scsw: &Scsw) -> IrbHead {
    let program_controlled = scsw.subchannel_status().contains(PROGRAM_CONTROLLED);
    block(number, scsw.flags(), program_controlled)
}
