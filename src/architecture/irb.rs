//! Interruption-response block: what TEST SUBCHANNEL stores.

use std::fmt;

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::scsw::{Scsw, ScswFlags};

/// Extended-control word: 32 bytes, sense data when the ERW says so.
pub type Ecw = [u8; 32];

/// Extended-report word, word 1 of the ESW.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Erw(pub U32);

impl Erw {
    /// The word that says `bytes` bytes of concurrent sense stand in the ECW.
    pub fn concurrent_sense(bytes: u8) -> Self {
        Erw(U32::new(0x0100_0000 | u32::from(bytes & 0x3f) << 16))
    }

    /// Bytes of concurrent sense in the ECW, or `None` without concurrent sense.
    pub fn sense_count(self) -> Option<u8> {
        let word = self.0.get();
        (word & 0x0100_0000 != 0).then_some((word >> 16) as u8 & 0x3f)
    }
}

impl fmt::Debug for Erw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sense_count() {
            Some(count) => write!(f, "ERW concurrent-sense={count}"),
            None => write!(f, "ERW {:#010x}", self.0.get()),
        }
    }
}

/// Extended-status word, format 0 (20 bytes).
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Esw {
    /// Subchannel logout; byte 1 is the last-path-used mask.
    pub logout: U32,
    /// Extended-report word.
    pub erw: Erw,
    /// Failing-storage address.
    pub failing_address: U64,
    /// Secondary CCW address.
    pub secondary_ccw: U32,
}

const _: () = assert!(size_of::<Esw>() == 20);

impl fmt::Debug for Esw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ESW lpum={:#04x} {:?}", (self.logout.get() >> 16) as u8, self.erw)
    }
}

/// The 64 bytes of an IRB that carry status: SCSW, ESW and ECW.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct IrbHead {
    /// Subchannel-status word.
    pub scsw: Scsw,
    /// Extended-status word.
    pub esw: Esw,
    /// Extended-control word.
    pub ecw: Ecw,
}

const _: () = assert!(size_of::<IrbHead>() == 64);

impl IrbHead {
    /// The same block with concurrent sense: at most 32 bytes, in the ECW.
    pub fn with_sense(mut self, sense: &[u8]) -> Self {
        let len = sense.len().min(self.ecw.len());
        self.ecw[..len].copy_from_slice(&sense[..len]);
        self.esw.erw = Erw::concurrent_sense(len as u8);
        self.scsw = self.scsw.with_flags(ScswFlags::EXTENDED_CONTROL | ScswFlags::ESW_FORMAT);
        self
    }

    /// Sense bytes presented together with unit check, or an empty slice.
    pub fn sense(&self) -> &[u8] {
        match self.esw.erw.sense_count() {
            Some(count) if self.scsw.flags().contains(ScswFlags::EXTENDED_CONTROL) => {
                &self.ecw[..usize::from(count).min(self.ecw.len())]
            }
            _ => &[],
        }
    }
}

impl fmt::Debug for IrbHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IRB {:?}; {:?}", self.scsw, self.esw)?;
        if !self.sense().is_empty() {
            write!(f, "; sense")?;
            for byte in self.sense() {
                write!(f, " {byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Interruption-response block with the extended-measurement word (96 bytes), as it lies in the
/// vfio-ccw I/O region.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Irb {
    /// SCSW, ESW and ECW.
    pub head: IrbHead,
    /// Extended-measurement word; zero unless extended measurement is on.
    pub emw: [u8; 32],
}

const _: () = assert!(size_of::<Irb>() == 96);

impl fmt::Debug for Irb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sense_is_there_only_with_the_extended_control_flag() {
        let mut irb = IrbHead::default();
        irb.esw.erw = Erw::concurrent_sense(24);
        irb.ecw[0] = 0x80;
        assert!(irb.sense().is_empty());
        irb.scsw = Scsw::new(ScswFlags::EXTENDED_CONTROL);
        assert_eq!(irb.sense().len(), 24);
        assert!(format!("{irb:?}").contains("sense 80 00"));
    }

    #[test]
    fn a_hostile_sense_count_stays_inside_the_ecw() {
        let mut irb =
            IrbHead { scsw: Scsw::new(ScswFlags::EXTENDED_CONTROL), ..IrbHead::default() };
        irb.esw.erw = Erw(U32::new(0x013f_0000));
        assert_eq!(irb.sense().len(), 32);
    }

    #[test]
    fn erw_has_qemus_bytes() {
        assert_eq!(Erw::concurrent_sense(32).as_bytes(), [0x01, 0x20, 0x00, 0x00]);
    }
}
