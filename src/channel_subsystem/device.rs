//! What a device model is to the channel.

use std::future::Future;
use std::sync::Arc;

use vfio_ccw_metrics::DeviceClass;

use crate::architecture::DeviceStatus;

use super::{Data, DeviceState, DeviceStateError, DmaSpace};

/// A device model: it gets commands with their data areas and answers with device status.
///
/// One program runs at a time, so methods have the device to themselves. A future may wait for file
/// I/O; it is never dropped before it is done.
pub trait Device {
    /// Class, for metrics and policy.
    fn class(&self) -> DeviceClass;

    /// A channel program starts: what the last one set up (extent, position) is gone.
    fn begin(&mut self);

    /// Executes one command. What [`Data`] hands out is used up in order; what is left is the
    /// residual count.
    fn command(&mut self, code: u8, data: &mut Data<'_>) -> impl Future<Output = Ending>;

    /// The memory that its programs reach from now on, where it does I/O on its own.
    fn see(&mut self, _memory: &Arc<DmaSpace>) {}

    /// Sense data for the unit check just given; it is presented with it (concurrent sense).
    fn take_sense(&mut self) -> Sense;

    /// What it keeps between programs; none is running.
    fn save(&self) -> DeviceState {
        DeviceState::Nothing
    }

    /// Goes on from what another one of its kind kept; it is new.
    ///
    /// # Errors
    ///
    /// The state is not one that it could have had: it comes from a file, which may be anybody's.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Nothing => Ok(()),
            _ => Err(DeviceStateError::Kind),
        }
    }

    /// Bytes read from and written to the medium since this was last asked, for metrics.
    fn take_moved(&mut self) -> (u64, u64) {
        (0, 0)
    }
}

/// How a command ended at the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Device status: channel end and device end, and what else there is.
    pub status: DeviceStatus,
    /// The command ended as soon as it began, without data (as CONTROL NO-OPERATION does).
    pub immediate: bool,
}

impl Ending {
    /// Channel end and device end after a transfer.
    pub fn done() -> Self {
        Ending { status: DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END, immediate: false }
    }

    /// Channel end and device end at once.
    pub fn immediate() -> Self {
        Ending { immediate: true, ..Ending::done() }
    }

    /// The same ending with unit check; sense data is there to be taken.
    pub fn unit_check() -> Self {
        let done = Ending::done();
        Ending { status: done.status | DeviceStatus::UNIT_CHECK, ..done }
    }
}

/// Sense data: up to 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    bytes: [u8; 32],
    len: u8,
}

impl Sense {
    /// Byte 0: the command is not one this device knows, or not now.
    pub const COMMAND_REJECT: u8 = 0x80;
    /// Byte 0: somebody must do something to the device.
    pub const INTERVENTION_REQUIRED: u8 = 0x40;
    /// Byte 0: the device is broken.
    pub const EQUIPMENT_CHECK: u8 = 0x10;
    /// Byte 1: the volume is write-protected.
    pub const FILE_PROTECTED: u8 = 0x04;

    /// No sense: `len` zeros, at most 32.
    pub fn none(len: u8) -> Self {
        Sense { bytes: [0; 32], len: len.min(32) }
    }

    /// `len` bytes (at most 32), of which the first two are given.
    pub fn new(byte0: u8, byte1: u8, len: u8) -> Self {
        let mut sense = Sense::none(len);
        sense.bytes[0] = byte0;
        sense.bytes[1] = byte1;
        sense
    }

    /// These bytes; `None`: more than there is room for.
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let mut sense = Sense::none(u8::try_from(bytes.len()).ok().filter(|len| *len <= 32)?);
        sense.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(sense)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What SENSE ID answers: control unit and device, without command-information words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenseId {
    /// Control-unit type.
    pub cu_type: u16,
    /// Control-unit model.
    pub cu_model: u8,
    /// Device type.
    pub dev_type: u16,
    /// Device model.
    pub dev_model: u8,
}

impl SenseId {
    /// The seven bytes as SENSE ID presents them.
    pub fn to_bytes(self) -> [u8; 7] {
        let [cu0, cu1] = self.cu_type.to_be_bytes();
        let [dev0, dev1] = self.dev_type.to_be_bytes();
        [0xff, cu0, cu1, self.cu_model, dev0, dev1, self.dev_model]
    }
}
