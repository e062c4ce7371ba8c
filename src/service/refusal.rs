//! Status for programs that never reached a device.

use vfio_ccw_metrics::Outcome;
use vfio_ccw_pinning::HoldError;

use crate::architecture::{
    DeviceStatus, Function, IrbHead, Orb, Scsw, ScswFlags, SubchannelStatus,
};
use crate::backend::Errno;

/// What the guest is told about a program that was accepted with cc 0 and then could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Its pages cannot be pinned: the channel cannot do its work, channel-control check.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// Its shadow has no room: channel-control check.
    #[error(
        "no shadow memory for a program of {bytes} bytes: send smaller programs, or fewer at once"
    )]
    NoShadow {
        /// Bytes of the shadow program.
        bytes: usize,
    },
    /// It may change itself, and the service was told to refuse that: program check.
    #[error(
        "the ORB forbids prefetching (P = 0): let the guest set P, or build the service to execute or prefetch such programs"
    )]
    Unfetched,
    /// The device refused the start.
    #[error("the device refused the start: {0}")]
    Device(#[from] Errno),
    /// The subchannel was detached while the program waited: deferred condition code 3.
    #[error("the subchannel was detached")]
    Detached,
    /// HALT or CLEAR, or its future was dropped. Status is given to a ring only, or to nobody.
    #[error("the program was ended by a {0} function")]
    Stopped(Function),
    /// CANCEL SUBCHANNEL. Status is given to nobody.
    #[error("the start was cancelled")]
    Cancelled,
}

impl Refusal {
    /// The status that the guest sees.
    pub(crate) fn irb(&self, orb: &Orb) -> IrbHead {
        let ended = ScswFlags::START_FUNCTION | ScswFlags::ALERT | ScswFlags::STATUS_PENDING;
        let whole = ended | ScswFlags::PRIMARY | ScswFlags::SECONDARY;
        let none = DeviceStatus::empty();
        let scsw = match self {
            Refusal::Hold(_) | Refusal::NoShadow { .. } => {
                Scsw::new(whole).with_status(none, SubchannelStatus::CHANNEL_CONTROL_CHECK, 0)
            }
            Refusal::Unfetched => {
                let scsw = Scsw::new(whole).with_controls_of(orb);
                scsw.with_status(none, SubchannelStatus::PROGRAM_CHECK, 0)
            }
            Refusal::Device(Errno(libc::ENODEV | libc::EACCES)) | Refusal::Detached => {
                Scsw::new(ended).with_deferred_cc(3)
            }
            Refusal::Device(errno) => Scsw::new(whole).with_status(none, channel_status(*errno), 0),
            Refusal::Stopped(function) => {
                Scsw::new(stopped(*function)).with_flags(ScswFlags::START_FUNCTION)
            }
            Refusal::Cancelled => Scsw::new(stopped(Function::Clear)),
        };
        let cpa = match self {
            // Shown as if its first CCW were in error.
            Refusal::Unfetched => orb.cpa().wrapping_add(8),
            _ => orb.cpa(),
        };
        IrbHead { scsw: scsw.with_cpa(cpa), ..IrbHead::default() }
    }

    /// The status of a HALT or CLEAR that this befalls.
    pub(crate) fn irb_of(&self, function: Function) -> IrbHead {
        let ended = self.irb(&Orb::default());
        let other = ScswFlags::FUNCTION_CONTROL | ScswFlags::STATUS_CONTROL;
        let status = ended.scsw.flags() & ScswFlags::STATUS_CONTROL;
        let scsw = ended.scsw.without_flags(other).with_flags(stopped(function) | status);
        IrbHead { scsw, ..ended }
    }

    /// Whether it is the VMM's or the guest's own wish, of which the log need not tell.
    pub(super) fn is_wished(&self) -> bool {
        matches!(self, Refusal::Stopped(_) | Refusal::Cancelled)
    }

    /// How it is counted.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Refusal::Hold(_) | Refusal::NoShadow { .. } => Outcome::RefusedBudget,
            Refusal::Unfetched => Outcome::ProgramCheck,
            Refusal::Device(Errno(libc::ENODEV | libc::EACCES)) | Refusal::Detached => {
                Outcome::DeferredCc
            }
            Refusal::Device(_) => Outcome::OtherChannel,
            Refusal::Stopped(_) | Refusal::Cancelled => Outcome::Stopped,
        }
    }
}

/// What the SCSW says of a function that was performed.
fn stopped(function: Function) -> ScswFlags {
    ScswFlags::STATUS_PENDING | function.control()
}

/// What a start that the device's driver refused shows as. (QEMU shows unit exception for all of these,
/// which a guest's driver takes for something that the device has said: the table is in `docs/KERNEL.md`.)
fn channel_status(errno: Errno) -> SubchannelStatus {
    match errno.0 {
        // Transport mode: an operand exception that somebody has let through.
        libc::EOPNOTSUPP => SubchannelStatus::PROGRAM_CHECK,
        // Memory behind a window cannot be read.
        libc::EFAULT => SubchannelStatus::CHANNEL_DATA_CHECK,
        // The driver cannot follow the shadow program, or has no memory for its own copy.
        libc::EINVAL | libc::EPERM | libc::E2BIG | libc::ENOMEM => {
            SubchannelStatus::CHANNEL_CONTROL_CHECK
        }
        _ => SubchannelStatus::INTERFACE_CONTROL_CHECK,
    }
}

/// How a program that ran is counted.
pub(crate) fn outcome(scsw: &Scsw) -> Outcome {
    let channel = scsw.subchannel_status() - SubchannelStatus::PROGRAM_CONTROLLED;
    if scsw.deferred_cc() != 0 {
        Outcome::DeferredCc
    } else if scsw.device_status().contains(DeviceStatus::UNIT_CHECK) {
        Outcome::UnitCheck
    } else if channel.contains(SubchannelStatus::PROGRAM_CHECK) {
        Outcome::ProgramCheck
    } else if channel.contains(SubchannelStatus::PROTECTION_CHECK) {
        Outcome::ProtectionCheck
    } else if channel == SubchannelStatus::INCORRECT_LENGTH {
        Outcome::IncorrectLength
    } else if !channel.is_empty() {
        Outcome::OtherChannel
    } else {
        Outcome::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_architected_status() {
        let orb = Orb::new(0x1000);
        let budget = Refusal::Hold(HoldError::Saturated);
        assert_eq!(
            budget.irb(&orb).scsw.subchannel_status(),
            SubchannelStatus::CHANNEL_CONTROL_CHECK
        );
        assert_eq!(budget.outcome(), Outcome::RefusedBudget);
        let unfetched = Refusal::Unfetched.irb(&orb).scsw;
        assert_eq!(unfetched.subchannel_status(), SubchannelStatus::PROGRAM_CHECK);
        assert_eq!(unfetched.cpa(), 0x1008);
        for gone in [Refusal::Detached, Refusal::Device(Errno::NO_DEVICE)] {
            let scsw = gone.irb(&orb).scsw;
            assert_eq!((scsw.deferred_cc(), scsw.cpa()), (3, 0x1000));
            assert!(scsw.flags().contains(ScswFlags::ALERT | ScswFlags::STATUS_PENDING));
        }
        let broken = Refusal::Device(Errno(libc::EIO));
        assert_eq!(
            broken.irb(&orb).scsw.subchannel_status(),
            SubchannelStatus::INTERFACE_CONTROL_CHECK
        );
    }

    #[test]
    fn outcomes_follow_the_status() {
        let clean = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END;
        let count =
            |device, subchannel| outcome(&Scsw::default().with_status(device, subchannel, 0));
        assert_eq!(count(clean, SubchannelStatus::PROGRAM_CONTROLLED), Outcome::Ok);
        assert_eq!(
            count(clean | DeviceStatus::UNIT_CHECK, SubchannelStatus::empty()),
            Outcome::UnitCheck
        );
        assert_eq!(count(clean, SubchannelStatus::INCORRECT_LENGTH), Outcome::IncorrectLength);
        assert_eq!(count(clean, SubchannelStatus::PROGRAM_CHECK), Outcome::ProgramCheck);
        assert_eq!(count(clean, SubchannelStatus::PROTECTION_CHECK), Outcome::ProtectionCheck);
        assert_eq!(count(clean, SubchannelStatus::CHANNEL_DATA_CHECK), Outcome::OtherChannel);
    }
}
