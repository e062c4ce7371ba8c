//! Subchannel-information block and the path-management control word in it.

use std::fmt;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::scsw::Scsw;

bitflags::bitflags! {
    /// PMCW flags (16 bits) without the interruption subclass (bits 2-4).
    #[derive(Clone, Copy, Default, PartialEq, Eq)]
    pub struct PmcwFlags: u16 {
        /// E: the subchannel is enabled.
        const ENABLED = 0x0080;
        /// LM: low limit.
        const LIMIT_LOW = 0x0020;
        /// LM: high limit.
        const LIMIT_HIGH = 0x0040;
        /// MM: measurement-block update.
        const MEASURE_BLOCK = 0x0010;
        /// MM: device-connect-time measurement.
        const MEASURE_CONNECT = 0x0008;
        /// D: multipath mode.
        const MULTIPATH = 0x0004;
        /// T: timing facility.
        const TIMING = 0x0002;
        /// V: the device number is valid.
        const DEVICE_VALID = 0x0001;
    }
}

impl fmt::Debug for PmcwFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

/// Path-management control word (28 bytes, big-endian).
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Pmcw {
    /// Interruption parameter, as MODIFY SUBCHANNEL or START SUBCHANNEL last set it.
    pub intparm: U32,
    flags: U16,
    /// Device number.
    pub devno: U16,
    /// Logical-path mask.
    pub lpm: u8,
    /// Path-not-operational mask.
    pub pnom: u8,
    /// Last-path-used mask.
    pub lpum: u8,
    /// Path-installed mask.
    pub pim: u8,
    /// Measurement-block index.
    pub mbi: U16,
    /// Path-operational mask.
    pub pom: u8,
    /// Path-available mask.
    pub pam: u8,
    /// Channel-path identifiers, one for each path.
    pub chpid: [u8; 8],
    /// Characteristics: measurement format, extended measurement, concurrent sense.
    pub chars: U32,
}

const _: () = assert!(size_of::<Pmcw>() == 28);

impl Pmcw {
    /// Concurrent sense in [`Pmcw::chars`].
    pub const CONCURRENT_SENSE: u32 = 0x0000_0001;

    /// The word of a device that is reached over one path, 0x80, and presents concurrent sense.
    pub fn single_path(devno: u16) -> Self {
        Pmcw {
            devno: devno.into(),
            lpm: 0x80,
            pim: 0x80,
            pom: 0xff,
            pam: 0x80,
            chars: Pmcw::CONCURRENT_SENSE.into(),
            ..Pmcw::default()
        }
    }

    /// Flags.
    pub fn flags(&self) -> PmcwFlags {
        PmcwFlags::from_bits_truncate(self.flags.get())
    }

    /// Interruption subclass, 0 to 7.
    pub fn isc(&self) -> u8 {
        (self.flags.get() >> 11) as u8 & 7
    }

    /// The same word with these flags and this interruption subclass (0 to 7).
    pub fn with(mut self, flags: PmcwFlags, isc: u8) -> Self {
        self.flags.set(flags.bits() | u16::from(isc & 7) << 11);
        self
    }
}

impl fmt::Debug for Pmcw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PMCW devno={:04x} isc={} lpm={:#04x} pim={:#04x} pam={:#04x} pom={:#04x} pnom={:#04x} lpum={:#04x} ",
            self.devno.get(),
            self.isc(),
            self.lpm,
            self.pim,
            self.pam,
            self.pom,
            self.pnom,
            self.lpum
        )?;
        bitflags::parser::to_writer(&self.flags(), f)
    }
}

/// Subchannel-information block (52 bytes, big-endian).
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Schib {
    /// Path-management control word.
    pub pmcw: Pmcw,
    /// Subchannel-status word.
    pub scsw: Scsw,
    /// Measurement-block address (format 1).
    pub measurement_block: U64,
    /// Model-dependent area.
    pub model_dependent: [u8; 4],
}

const _: () = assert!(size_of::<Schib>() == 52);

impl fmt::Debug for Schib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SCHIB {:?}; {:?}", self.pmcw, self.scsw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isc_and_flags_share_a_halfword() {
        let pmcw = Pmcw::default().with(PmcwFlags::ENABLED | PmcwFlags::DEVICE_VALID, 3);
        assert_eq!(pmcw.as_bytes()[4..6], [0x18, 0x81]);
        assert_eq!(pmcw.isc(), 3);
        assert!(format!("{pmcw:?}").ends_with("ENABLED | DEVICE_VALID"));
    }

    #[test]
    fn path_masks_stand_where_linux_reads_them() {
        let schib = Schib {
            pmcw: Pmcw { pim: 0x80, pam: 0x40, pom: 0x20, ..Pmcw::default() },
            ..Schib::default()
        };
        let bytes = schib.as_bytes();
        assert_eq!((bytes[11], bytes[15], bytes[14]), (0x80, 0x40, 0x20));
    }
}
