//! Short names for the commands, flags and status that programs in tests are made of.

use vfio_ccw::architecture::{CcwFlags, DeviceStatus, SubchannelStatus};

/// WRITE.
pub const WRITE: u8 = 0x01;
/// READ.
pub const READ: u8 = 0x02;
/// BASIC SENSE.
pub const SENSE: u8 = 0x04;
/// READ BACKWARD.
pub const READ_BACKWARD: u8 = 0x0c;
/// A command of the search family: write class, and the device may give status modifier.
pub const SEARCH: u8 = 0x31;

/// Chain data.
pub const CD: CcwFlags = CcwFlags::CHAIN_DATA;
/// Chain command.
pub const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;
/// Suppress length indication.
pub const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;
/// Do not store.
pub const SKIP: CcwFlags = CcwFlags::SKIP;
/// Program-controlled interruption.
pub const PCI: CcwFlags = CcwFlags::PROGRAM_CONTROLLED;
/// Indirect data address.
pub const IDA: CcwFlags = CcwFlags::INDIRECT;
/// Suspend before this CCW.
pub const SUSPEND: CcwFlags = CcwFlags::SUSPEND;
/// Modified indirect data address.
pub const MIDA: CcwFlags = CcwFlags::MODIFIED_INDIRECT;

/// The device was not told, or has not ended.
pub const NOTHING: DeviceStatus = DeviceStatus::empty();
/// Channel end and device end.
pub const ENDED: DeviceStatus = DeviceStatus::CHANNEL_END.union(DeviceStatus::DEVICE_END);

/// No channel status.
pub const CLEAN: SubchannelStatus = SubchannelStatus::empty();
/// Incorrect length.
pub const IL: SubchannelStatus = SubchannelStatus::INCORRECT_LENGTH;
/// Program check.
pub const PGM: SubchannelStatus = SubchannelStatus::PROGRAM_CHECK;
/// Protection check.
pub const PROT: SubchannelStatus = SubchannelStatus::PROTECTION_CHECK;
