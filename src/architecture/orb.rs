//! Operation-request block: what START SUBCHANNEL is given.

use std::fmt;

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::idaw::IdawFormat;

bitflags::bitflags! {
    /// Flags of ORB word 1, without the key (bits 0-3) and the logical-path mask (bits 16-23).
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct OrbFlags: u32 {
        /// S: the program may suspend itself.
        const SUSPEND_CONTROL = 0x0800_0000;
        /// C: streaming-mode control.
        const STREAMING = 0x0400_0000;
        /// M: modification control.
        const MODIFICATION = 0x0200_0000;
        /// Y: synchronisation control.
        const SYNCHRONISATION = 0x0100_0000;
        /// F: CCWs are format 1 (31-bit); else format 0 (24-bit).
        const FORMAT_1 = 0x0080_0000;
        /// P: the channel may prefetch CCWs, IDAWs and data.
        const PREFETCH = 0x0040_0000;
        /// I: initial-status-interruption control.
        const INITIAL_STATUS = 0x0020_0000;
        /// A: address-limit checking.
        const ADDRESS_LIMIT = 0x0010_0000;
        /// U: suppress the suspended interruption.
        const SUPPRESS_SUSPENDED = 0x0008_0000;
        /// B: transport mode (the CPA designates a TCW).
        const TRANSPORT_MODE = 0x0004_0000;
        /// H: IDAWs are format 2 (64-bit).
        const FORMAT_2_IDAWS = 0x0002_0000;
        /// T: format-2 IDAWs designate 2 KiB blocks; else 4 KiB.
        const IDAW_2K = 0x0001_0000;
        /// L: suppress incorrect length for immediate operations (format 1).
        const SUPPRESS_LENGTH = 0x0000_0080;
        /// D: modified indirect-data-address words allowed.
        const MIDAW = 0x0000_0040;
        /// X: the ORB is extended to 32 bytes.
        const EXTENSION = 0x0000_0001;
    }
}

/// Bits of word 1 that must be zero.
const RESERVED: u32 = 0x0000_003e;

/// Why an ORB is refused with an operand exception before it reaches the subchannel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrbError {
    /// Word 1 has bits in 0x3e.
    #[error("ORB word 1 is {word:#010x}: reserved bits {RESERVED:#x} must be zero")]
    ReservedBits {
        /// The whole of word 1.
        word: u32,
    },
    /// B = 1: no transport-mode facility is offered to the guest.
    #[error(
        "ORB asks for transport mode: only command mode is offered; clear bit B (0x00040000 of word 1)"
    )]
    TransportMode,
    /// X = 1: the ORB-extension facility is not offered.
    #[error("ORB asks for the extension: the facility is not offered; clear bit X (0x1 of word 1)")]
    Extension,
    /// Bit 0 of the channel-program address is one.
    #[error("channel-program address {cpa:#010x} has bit 0 set: addresses have 31 bits")]
    CpaBit0 {
        /// The address as given.
        cpa: u32,
    },
}

/// Operation-request block, words 0 to 2 (12 bytes, big-endian).
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Orb {
    intparm: U32,
    word1: U32,
    cpa: U32,
}

const _: () = assert!(size_of::<Orb>() == 12);

impl Orb {
    /// A command-mode ORB for a format-1 program at `cpa` with format-2 IDAWs over 4 KiB blocks,
    /// prefetch allowed and path 0x80: what Linux's drivers send.
    ///
    /// ```
    /// use vfio_ccw::architecture::Orb;
    /// let orb = Orb::new(0x1000);
    /// assert_eq!(orb.cpa(), 0x1000);
    /// assert!(orb.check().is_ok());
    /// ```
    pub fn new(cpa: u32) -> Self {
        let flags = OrbFlags::FORMAT_1 | OrbFlags::PREFETCH | OrbFlags::FORMAT_2_IDAWS;
        Orb { intparm: U32::ZERO, word1: U32::new(flags.bits() | 0x8000), cpa: U32::new(cpa) }
    }

    /// The same ORB with another interruption parameter.
    pub fn with_intparm(mut self, intparm: u32) -> Self {
        self.intparm.set(intparm);
        self
    }

    /// The same ORB with exactly these flags; key and path mask stay.
    pub fn with_flags(mut self, flags: OrbFlags) -> Self {
        let kept = self.word1.get() & 0xf000_ff00;
        self.word1.set(kept | flags.bits());
        self
    }

    /// The same ORB with another logical-path mask.
    pub fn with_lpm(mut self, lpm: u8) -> Self {
        self.word1.set(self.word1.get() & !0xff00 | u32::from(lpm) << 8);
        self
    }

    /// The same ORB with another subchannel key (0 to 15).
    pub fn with_key(mut self, key: u8) -> Self {
        self.word1.set(self.word1.get() & 0x0fff_ffff | u32::from(key) << 28);
        self
    }

    /// The same ORB with another channel-program address.
    pub fn with_cpa(mut self, cpa: u32) -> Self {
        self.cpa.set(cpa);
        self
    }

    /// Interruption parameter: returned in the interruption code, not interpreted.
    pub fn intparm(&self) -> u32 {
        self.intparm.get()
    }

    pub(super) fn word1(&self) -> u32 {
        self.word1.get()
    }

    /// Subchannel key, 0 to 15.
    pub fn key(&self) -> u8 {
        (self.word1.get() >> 28) as u8
    }

    /// Flags of word 1; reserved bits are dropped.
    pub fn flags(&self) -> OrbFlags {
        OrbFlags::from_bits_truncate(self.word1.get())
    }

    /// Logical-path mask: the paths the program may use.
    pub fn lpm(&self) -> u8 {
        (self.word1.get() >> 8) as u8
    }

    /// Channel-program address: absolute address of the first CCW.
    pub fn cpa(&self) -> u32 {
        self.cpa.get()
    }

    /// Whether CCWs are format 1.
    pub fn is_format_1(&self) -> bool {
        self.flags().contains(OrbFlags::FORMAT_1)
    }

    /// Which IDAWs the program's CCWs use when they have the IDA flag.
    pub fn idaw_format(&self) -> IdawFormat {
        let flags = self.flags();
        if !flags.contains(OrbFlags::FORMAT_2_IDAWS) {
            IdawFormat::Format1
        } else if flags.contains(OrbFlags::IDAW_2K) {
            IdawFormat::Format2Blocks2K
        } else {
            IdawFormat::Format2Blocks4K
        }
    }

    /// The operand checks of START SUBCHANNEL, in QEMU's order (`ioinst_orb_valid`). Bit D is
    /// accepted, unlike there: MIDAWs are translated.
    ///
    /// # Errors
    ///
    /// Each error is an operand exception for the guest; the subchannel is not looked at.
    pub fn check(&self) -> Result<(), OrbError> {
        let word = self.word1.get();
        let flags = self.flags();
        if flags.contains(OrbFlags::TRANSPORT_MODE) {
            return Err(OrbError::TransportMode);
        }
        if word & RESERVED != 0 {
            return Err(OrbError::ReservedBits { word });
        }
        if flags.contains(OrbFlags::EXTENSION) {
            return Err(OrbError::Extension);
        }
        if self.cpa() & 0x8000_0000 != 0 {
            return Err(OrbError::CpaBit0 { cpa: self.cpa() });
        }
        Ok(())
    }
}

impl fmt::Debug for Orb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ORB cpa={:#010x} intparm={:#010x} key={} lpm={:#04x} ",
            self.cpa(),
            self.intparm(),
            self.key(),
            self.lpm()
        )?;
        bitflags::parser::to_writer(&self.flags(), &mut *f)?;
        match self.word1.get() & RESERVED {
            0 => Ok(()),
            bits => write!(f, " reserved={bits:#x}"),
        }
    }
}

impl fmt::Debug for OrbFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linux_style_orb_has_the_bytes_linux_sends() {
        let orb = Orb::new(0x0001_2340).with_intparm(0xdead_beef);
        assert_eq!(
            orb.as_bytes(),
            [0xde, 0xad, 0xbe, 0xef, 0x00, 0xc2, 0x80, 0x00, 0x00, 0x01, 0x23, 0x40]
        );
        assert_eq!(orb.idaw_format(), IdawFormat::Format2Blocks4K);
    }

    #[test]
    fn operand_exceptions_come_in_order() {
        let all_ones = Orb::read_from_bytes(&[0xff; 12]).unwrap();
        assert_eq!(all_ones.check(), Err(OrbError::TransportMode));
        let reserved = Orb { word1: U32::new(0x0080_8002), ..Orb::new(8) };
        assert_eq!(reserved.check(), Err(OrbError::ReservedBits { word: 0x0080_8002 }));
        let base = Orb::new(8);
        assert_eq!(base.with_flags(OrbFlags::FORMAT_1 | OrbFlags::MIDAW).check(), Ok(()));
        assert_eq!(
            base.with_flags(OrbFlags::FORMAT_1 | OrbFlags::EXTENSION).check(),
            Err(OrbError::Extension)
        );
        assert_eq!(base.with_cpa(0x8000_0000).check(), Err(OrbError::CpaBit0 { cpa: 0x8000_0000 }));
    }

    #[test]
    fn debug_reads_like_a_console() {
        let text = format!("{:?}", Orb::new(0x2000));
        assert_eq!(
            text,
            "ORB cpa=0x00002000 intparm=0x00000000 key=0 lpm=0x80 FORMAT_1 | PREFETCH | FORMAT_2_IDAWS"
        );
    }
}
