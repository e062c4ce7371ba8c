//! What holds for every status word, whatever the program was.

use vfio_ccw::architecture::{DeviceStatus, IrbHead, Orb, OrbFlags, ScswFlags, SubchannelStatus};

use crate::reachable::Reachable;

/// Flags of the ORB that its status shows.
const ECHOED: [(OrbFlags, ScswFlags); 6] = [
    (OrbFlags::SUSPEND_CONTROL, ScswFlags::SUSPEND_CONTROL),
    (OrbFlags::FORMAT_1, ScswFlags::FORMAT_1),
    (OrbFlags::PREFETCH, ScswFlags::PREFETCH),
    (OrbFlags::INITIAL_STATUS, ScswFlags::INITIAL_STATUS),
    (OrbFlags::ADDRESS_LIMIT, ScswFlags::ADDRESS_LIMIT),
    (OrbFlags::SUPPRESS_SUSPENDED, ScswFlags::SUPPRESS_SUSPENDED),
];

/// What a program can do wrong.
const CHECKS: SubchannelStatus =
    SubchannelStatus::PROGRAM_CHECK.union(SubchannelStatus::PROTECTION_CHECK);

const ACTIVE: ScswFlags = ScswFlags::SUBCHANNEL_ACTIVE.union(ScswFlags::DEVICE_ACTIVE);

/// Whether the program waits for RESUME SUBCHANNEL.
pub fn is_suspended(irb: &IrbHead) -> bool {
    irb.scsw.flags().contains(ScswFlags::SUSPENDED)
}

/// Asserts what holds for the status that a run ends with, suspended or for good.
pub fn check_end(orb: &Orb, irb: &IrbHead, reached: Option<&Reachable>) {
    check_any(orb, irb, reached);
    let scsw = &irb.scsw;
    let (flags, device, channel) = (scsw.flags(), scsw.device_status(), scsw.subchannel_status());
    assert!(!flags.intersects(ACTIVE | ScswFlags::START_PENDING), "{irb:?}");
    if is_suspended(irb) {
        assert!(orb.flags().contains(OrbFlags::SUSPEND_CONTROL), "{irb:?}");
        let quiet = orb.flags().contains(OrbFlags::SUPPRESS_SUSPENDED) && channel.is_empty();
        let status = ScswFlags::INTERMEDIATE | ScswFlags::STATUS_PENDING;
        assert_eq!(status_control(flags), if quiet { ScswFlags::empty() } else { status });
        assert!(device.is_empty() && (channel - SubchannelStatus::PROGRAM_CONTROLLED).is_empty());
        return;
    }
    let mut expected = ScswFlags::PRIMARY | ScswFlags::SECONDARY | ScswFlags::STATUS_PENDING;
    let clean = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END;
    let checks = channel - SubchannelStatus::PROGRAM_CONTROLLED;
    expected.set(ScswFlags::ALERT, device != clean || !checks.is_empty());
    assert_eq!(status_control(flags), expected, "{irb:?}");
    assert_eq!(scsw.deferred_cc(), 0, "it was started");
    let unit_check = device.contains(DeviceStatus::UNIT_CHECK);
    assert_eq!(!irb.sense().is_empty(), unit_check, "concurrent sense: {irb:?}");
    let possible = CHECKS | SubchannelStatus::INCORRECT_LENGTH;
    assert!((checks - possible).is_empty(), "{irb:?}");
    let excluded = checks.contains(SubchannelStatus::INCORRECT_LENGTH) && checks.intersects(CHECKS);
    assert!(!excluded && !checks.contains(CHECKS), "one error at a time: {irb:?}");
}

/// Asserts what holds for the status of a CCW with the PCI flag.
pub fn check_intermediate(orb: &Orb, irb: &IrbHead, reached: Option<&Reachable>) {
    check_any(orb, irb, reached);
    let scsw = &irb.scsw;
    assert_eq!(
        status_control(scsw.flags()),
        ScswFlags::INTERMEDIATE | ScswFlags::STATUS_PENDING,
        "{irb:?}"
    );
    assert!(scsw.flags().contains(ACTIVE), "{irb:?}");
    assert_eq!(scsw.subchannel_status(), SubchannelStatus::PROGRAM_CONTROLLED);
    assert!(scsw.device_status().is_empty() && irb.sense().is_empty());
    assert_eq!(scsw.count(), 0);
}

fn check_any(orb: &Orb, irb: &IrbHead, reached: Option<&Reachable>) {
    let scsw = &irb.scsw;
    assert_eq!(scsw.key(), orb.key());
    for (asked, shown) in ECHOED {
        assert_eq!(
            scsw.flags().contains(shown),
            orb.flags().contains(asked),
            "{shown:?} of {orb:?} in {irb:?}"
        );
    }
    let functions =
        ScswFlags::START_FUNCTION | ScswFlags::HALT_FUNCTION | ScswFlags::CLEAR_FUNCTION;
    assert_eq!(scsw.flags() & functions, ScswFlags::START_FUNCTION, "{irb:?}");
    match reached {
        Some(reached) => assert!(
            reached.allows(scsw.cpa()),
            "no CCW of the program stands 8 before the CCW address of {irb:?}"
        ),
        // A program that may change under the channel: it goes in steps of 8 all the same.
        None => assert!(
            scsw.cpa().is_multiple_of(8) || scsw.cpa() == orb.cpa().wrapping_add(8),
            "{irb:?} of {orb:?}"
        ),
    }
}

fn status_control(flags: ScswFlags) -> ScswFlags {
    flags
        & (ScswFlags::ALERT
            | ScswFlags::INTERMEDIATE
            | ScswFlags::PRIMARY
            | ScswFlags::SECONDARY
            | ScswFlags::STATUS_PENDING)
}
