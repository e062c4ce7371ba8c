//! Subchannel-status word.

use std::fmt;

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::orb::Orb;

bitflags::bitflags! {
    /// SCSW word 0 without the key (bits 0-3) and the deferred condition code (bits 6-7).
    #[derive(Clone, Copy, Default, PartialEq, Eq)]
    pub struct ScswFlags: u32 {
        /// S: suspend control of the ORB.
        const SUSPEND_CONTROL = 0x0800_0000;
        /// L: the extended-status word has a format.
        const ESW_FORMAT = 0x0400_0000;
        /// F: CCW format 1.
        const FORMAT_1 = 0x0080_0000;
        /// P: prefetch was allowed.
        const PREFETCH = 0x0040_0000;
        /// I: initial-status interruption was asked for.
        const INITIAL_STATUS = 0x0020_0000;
        /// A: address-limit checking.
        const ADDRESS_LIMIT = 0x0010_0000;
        /// U: suppress the suspended interruption.
        const SUPPRESS_SUSPENDED = 0x0008_0000;
        /// Z: zero condition code (initial status).
        const ZERO_CC = 0x0004_0000;
        /// E: the extended-control word holds data.
        const EXTENDED_CONTROL = 0x0002_0000;
        /// N: a path was not operational.
        const PATH_NOT_OPERATIONAL = 0x0001_0000;
        /// FC: start function.
        const START_FUNCTION = 0x0000_4000;
        /// FC: halt function.
        const HALT_FUNCTION = 0x0000_2000;
        /// FC: clear function.
        const CLEAR_FUNCTION = 0x0000_1000;
        /// AC: resume pending.
        const RESUME_PENDING = 0x0000_0800;
        /// AC: start pending.
        const START_PENDING = 0x0000_0400;
        /// AC: halt pending.
        const HALT_PENDING = 0x0000_0200;
        /// AC: clear pending.
        const CLEAR_PENDING = 0x0000_0100;
        /// AC: subchannel active.
        const SUBCHANNEL_ACTIVE = 0x0000_0080;
        /// AC: device active.
        const DEVICE_ACTIVE = 0x0000_0040;
        /// AC: suspended.
        const SUSPENDED = 0x0000_0020;
        /// SC: alert status.
        const ALERT = 0x0000_0010;
        /// SC: intermediate status.
        const INTERMEDIATE = 0x0000_0008;
        /// SC: primary status.
        const PRIMARY = 0x0000_0004;
        /// SC: secondary status.
        const SECONDARY = 0x0000_0002;
        /// SC: status pending.
        const STATUS_PENDING = 0x0000_0001;
        /// All of function control.
        const FUNCTION_CONTROL = 0x0000_7000;
        /// All of activity control.
        const ACTIVITY_CONTROL = 0x0000_0fe0;
        /// All of status control.
        const STATUS_CONTROL = 0x0000_001f;
    }
}

bitflags::bitflags! {
    /// Device status (unit status).
    #[derive(Clone, Copy, Default, PartialEq, Eq)]
    pub struct DeviceStatus: u8 {
        /// Attention.
        const ATTENTION = 0x80;
        /// Status modifier: skip the next CCW of a command chain.
        const STATUS_MODIFIER = 0x40;
        /// Control-unit end.
        const CONTROL_UNIT_END = 0x20;
        /// Busy.
        const BUSY = 0x10;
        /// Channel end: the data transfer is over.
        const CHANNEL_END = 0x08;
        /// Device end: the device is free.
        const DEVICE_END = 0x04;
        /// Unit check: sense data says more.
        const UNIT_CHECK = 0x02;
        /// Unit exception: such as end of file.
        const UNIT_EXCEPTION = 0x01;
    }
}

bitflags::bitflags! {
    /// Subchannel status (channel status).
    #[derive(Clone, Copy, Default, PartialEq, Eq)]
    pub struct SubchannelStatus: u8 {
        /// A CCW with the PCI flag took control.
        const PROGRAM_CONTROLLED = 0x80;
        /// The counts of CCW and device differ.
        const INCORRECT_LENGTH = 0x40;
        /// The program is in error.
        const PROGRAM_CHECK = 0x20;
        /// The program touched protected storage.
        const PROTECTION_CHECK = 0x10;
        /// Data error in the channel.
        const CHANNEL_DATA_CHECK = 0x08;
        /// The channel malfunctioned.
        const CHANNEL_CONTROL_CHECK = 0x04;
        /// The path to the device malfunctioned.
        const INTERFACE_CONTROL_CHECK = 0x02;
        /// Chaining check.
        const CHAINING_CHECK = 0x01;
    }
}

macro_rules! debug_by_flag_names {
    ($($flags:ty),*) => {$(
        impl fmt::Debug for $flags {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                bitflags::parser::to_writer(self, f)
            }
        }
    )*};
}
debug_by_flag_names!(ScswFlags, DeviceStatus, SubchannelStatus);

/// Subchannel-status word (12 bytes, big-endian).
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Scsw {
    word0: U32,
    cpa: U32,
    device_status: u8,
    subchannel_status: u8,
    count: U16,
}

const _: () = assert!(size_of::<Scsw>() == 12);

impl Scsw {
    /// A status word with these flags and nothing else.
    pub fn new(flags: ScswFlags) -> Self {
        Scsw { word0: U32::new(flags.bits()), ..Scsw::default() }
    }

    /// The same word with another CCW address.
    pub fn with_cpa(mut self, cpa: u32) -> Self {
        self.cpa.set(cpa);
        self
    }

    /// The same word with this ending status and residual count in bytes.
    pub fn with_status(
        mut self,
        device: DeviceStatus,
        subchannel: SubchannelStatus,
        count: u16,
    ) -> Self {
        self.device_status = device.bits();
        self.subchannel_status = subchannel.bits();
        self.count.set(count);
        self
    }

    /// The same word with the key and the controls S, F, P, I, A and U of an ORB: they stand at the
    /// same places in both.
    pub fn with_controls_of(mut self, orb: &Orb) -> Self {
        let controls = 0xf8f8_0000;
        self.word0.set(self.word0.get() & !controls | orb.word1() & controls);
        self
    }

    /// The same word with this deferred condition code (0 to 3).
    pub fn with_deferred_cc(mut self, cc: u8) -> Self {
        self.word0.set(self.word0.get() & !0x0300_0000 | u32::from(cc & 3) << 24);
        self
    }

    /// The same word with these flags added.
    pub fn with_flags(mut self, flags: ScswFlags) -> Self {
        self.word0.set(self.word0.get() | flags.bits());
        self
    }

    /// The same word without these flags.
    pub fn without_flags(mut self, flags: ScswFlags) -> Self {
        self.word0.set(self.word0.get() & !flags.bits());
        self
    }

    /// This status together with intermediate status that was not fetched before.
    pub fn merged_with(mut self, earlier: Scsw) -> Self {
        let status = earlier.flags() & ScswFlags::INTERMEDIATE;
        self.subchannel_status |=
            earlier.subchannel_status & SubchannelStatus::PROGRAM_CONTROLLED.bits();
        self.with_flags(status)
    }

    /// Flags of word 0.
    pub fn flags(&self) -> ScswFlags {
        ScswFlags::from_bits_truncate(self.word0.get())
    }

    /// Subchannel key, 0 to 15.
    pub fn key(&self) -> u8 {
        (self.word0.get() >> 28) as u8
    }

    /// Deferred condition code: 0 none, 1 immediate status pending, 3 path not operational.
    pub fn deferred_cc(&self) -> u8 {
        (self.word0.get() >> 24) as u8 & 3
    }

    /// CCW address: normally 8 past the last CCW that the channel used.
    pub fn cpa(&self) -> u32 {
        self.cpa.get()
    }

    /// Device status.
    pub fn device_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.device_status)
    }

    /// Subchannel status.
    pub fn subchannel_status(&self) -> SubchannelStatus {
        SubchannelStatus::from_bits_retain(self.subchannel_status)
    }

    /// Residual count of the last CCW, in bytes.
    pub fn count(&self) -> u16 {
        self.count.get()
    }

    /// Whether this is the status that a function ends with: that of a program, of a start that
    /// failed, or, status pending alone, of HALT or CLEAR SUBCHANNEL. Else the program goes on
    /// (intermediate status), or waits to be resumed.
    pub fn is_final(&self) -> bool {
        let ending = ScswFlags::PRIMARY | ScswFlags::SECONDARY | ScswFlags::ALERT;
        let status = self.flags() & ScswFlags::STATUS_CONTROL;
        status.intersects(ending) || status == ScswFlags::STATUS_PENDING
    }

    /// Whether the program ended as a program should: channel end and device end, no channel
    /// status but perhaps PCI, no deferred condition code.
    pub fn is_clean_end(&self) -> bool {
        self.device_status() == DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END
            && (self.subchannel_status() - SubchannelStatus::PROGRAM_CONTROLLED).is_empty()
            && self.deferred_cc() == 0
    }
}

impl fmt::Debug for Scsw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SCSW cpa={:#010x} device=[{:?}] subchannel=[{:?}] residual={} cc={} ",
            self.cpa(),
            self.device_status(),
            self.subchannel_status(),
            self.count(),
            self.deferred_cc()
        )?;
        bitflags::parser::to_writer(&self.flags(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_land_where_the_architecture_puts_them() {
        let scsw =
            Scsw::new(ScswFlags::START_FUNCTION | ScswFlags::PRIMARY | ScswFlags::STATUS_PENDING)
                .with_cpa(0x1010)
                .with_status(
                    DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END,
                    SubchannelStatus::INCORRECT_LENGTH,
                    0x500,
                )
                .with_deferred_cc(3);
        assert_eq!(
            scsw.as_bytes(),
            [0x03, 0x00, 0x40, 0x05, 0x00, 0x00, 0x10, 0x10, 0x0c, 0x40, 0x05, 0x00]
        );
        assert_eq!(scsw.deferred_cc(), 3);
        assert!(!scsw.is_clean_end());
    }

    #[test]
    fn debug_names_the_status() {
        let scsw = Scsw::default().with_status(
            DeviceStatus::UNIT_CHECK,
            SubchannelStatus::PROGRAM_CHECK,
            7,
        );
        let text = format!("{scsw:?}");
        assert!(
            text.contains("device=[UNIT_CHECK] subchannel=[PROGRAM_CHECK] residual=7"),
            "{text}"
        );
    }
}
