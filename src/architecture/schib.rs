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

/// Why MODIFY SUBCHANNEL ends with an operand exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchibError {
    /// PMCW flags have one of the bits 5 to 7 set.
    #[error("PMCW flags are {flags:#06x}: bits {RESERVED_FLAGS:#06x} must be zero")]
    ReservedFlags {
        /// The halfword.
        flags: u16,
    },
    /// PMCW characteristics have a reserved bit set.
    #[error("PMCW characteristics are {chars:#010x}: bits {RESERVED_CHARS:#010x} must be zero")]
    ReservedChars {
        /// The word.
        chars: u32,
    },
    /// Extended measurement words are asked for: the facility is not offered.
    #[error(
        "PMCW characteristics {chars:#010x} ask for extended measurement words: not offered; clear bit 0x2"
    )]
    ExtendedMeasurement {
        /// The word.
        chars: u32,
    },
    /// A format-1 measurement block does not lie on a 64-byte boundary.
    #[error("measurement-block address {address:#x} is not a multiple of 64")]
    MeasurementBlock {
        /// The address.
        address: u64,
    },
}

/// Bits of the PMCW's flags that must be zero in MODIFY SUBCHANNEL (QEMU `PMCW_FLAGS_MASK_INVALID`).
const RESERVED_FLAGS: u16 = 0x0700;

/// Bits of its characteristics that must be zero (QEMU `PMCW_CHARS_MASK_INVALID`).
const RESERVED_CHARS: u32 = 0xff1f_fff8;

impl Pmcw {
    /// Concurrent sense in [`Pmcw::chars`].
    pub const CONCURRENT_SENSE: u32 = 0x0000_0001;

    /// Extended measurement words in [`Pmcw::chars`].
    pub const EXTENDED_MEASUREMENT: u32 = 0x0000_0002;

    /// Measurement-block format control in [`Pmcw::chars`]: one for format 1.
    pub const MEASUREMENT_FORMAT: u32 = 0x0000_0004;

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

    /// The same word where no path is available.
    pub(crate) fn without_paths(mut self) -> Self {
        self.pam = 0;
        self
    }

    /// The same word with the channel paths of `other`: those that there are, their masks and their
    /// identifiers.
    pub fn with_paths_of(mut self, other: &Pmcw) -> Self {
        (self.lpm, self.pim, self.chpid) = (other.lpm, other.pim, other.chpid);
        self.with_path_states_of(other)
    }

    /// The same word with what is known of its paths elsewhere: not operational, last used, operational,
    /// available.
    pub fn with_path_states_of(mut self, other: &Pmcw) -> Self {
        (self.pnom, self.lpum) = (other.pnom, other.lpum);
        (self.pom, self.pam) = (other.pom, other.pam);
        self
    }

    /// Flags.
    pub fn flags(&self) -> PmcwFlags {
        PmcwFlags::from_bits_truncate(self.flags.get())
    }

    /// Interruption subclass, 0 to 7.
    pub fn isc(&self) -> u8 {
        (self.flags.get() >> 11) as u8 & 7
    }

    /// The halfword of flags and interruption subclass.
    pub(crate) fn flag_bits(&self) -> u16 {
        self.flags.get()
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

impl Schib {
    /// The operand checks of MODIFY SUBCHANNEL, in QEMU's order (`ioinst_schib_valid`).
    ///
    /// # Errors
    ///
    /// Each error is an operand exception for the guest; the subchannel is not looked at.
    pub fn check(&self) -> Result<(), SchibError> {
        let (flags, chars) = (self.pmcw.flag_bits(), self.pmcw.chars.get());
        if flags & RESERVED_FLAGS != 0 {
            return Err(SchibError::ReservedFlags { flags });
        }
        if chars & RESERVED_CHARS != 0 {
            return Err(SchibError::ReservedChars { chars });
        }
        if chars & Pmcw::EXTENDED_MEASUREMENT != 0 {
            return Err(SchibError::ExtendedMeasurement { chars });
        }
        let address = self.measurement_block.get();
        if chars & Pmcw::MEASUREMENT_FORMAT != 0 && !address.is_multiple_of(64) {
            return Err(SchibError::MeasurementBlock { address });
        }
        Ok(())
    }
}

/// A block to modify a subchannel with: only what is modifiable matters.
impl From<Pmcw> for Schib {
    fn from(pmcw: Pmcw) -> Self {
        Schib { pmcw, ..Schib::default() }
    }
}

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
    fn reserved_bits_are_operand_exceptions() {
        let flags = |bits: u16| Schib::from(Pmcw { flags: bits.into(), ..Pmcw::default() });
        for bits in [0x0100, 0x0200, 0x0400] {
            assert_eq!(flags(bits).check(), Err(SchibError::ReservedFlags { flags: bits }));
        }
        assert_eq!(flags(0xf8ff).check(), Ok(()));
        let chars = |bits: u32| Schib::from(Pmcw { chars: bits.into(), ..Pmcw::default() });
        for bits in [0x8000_0000, 0x0010_0000, 0x8] {
            assert_eq!(chars(bits).check(), Err(SchibError::ReservedChars { chars: bits }));
        }
        assert_eq!(chars(2).check(), Err(SchibError::ExtendedMeasurement { chars: 2 }));
        let block = |address: u64| Schib { measurement_block: address.into(), ..chars(4) };
        assert_eq!(block(64).check(), Ok(()));
        assert_eq!(block(65).check(), Err(SchibError::MeasurementBlock { address: 65 }));
        assert_eq!(Schib { measurement_block: 65.into(), ..chars(1) }.check(), Ok(()));
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
