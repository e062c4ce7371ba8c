//! Channel-report word.

use std::fmt;

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

bitflags::bitflags! {
    /// CRW flags.
    #[derive(Clone, Copy, Default, PartialEq, Eq)]
    pub struct CrwFlags: u32 {
        /// S: solicited.
        const SOLICITED = 0x4000_0000;
        /// R: reports were lost before this one.
        const OVERFLOW = 0x2000_0000;
        /// C: another CRW belongs to this report.
        const CHAINED = 0x1000_0000;
        /// A: ancillary report.
        const ANCILLARY = 0x0080_0000;
    }
}

impl fmt::Debug for CrwFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

/// Reporting-source code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReportingSource {
    /// Monitoring facility.
    Monitoring = 2,
    /// Subchannel.
    Subchannel = 3,
    /// Channel path.
    ChannelPath = 4,
    /// Configuration-alert facility.
    ConfigurationAlert = 9,
    /// Channel subsystem.
    ChannelSubsystem = 11,
}

/// Channel-report word (4 bytes, big-endian).
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Crw(U32);

const _: () = assert!(size_of::<Crw>() == 4);

impl Crw {
    /// A report about `source`, error-recovery code `erc` (6 bits), identifier `id`.
    pub fn new(source: ReportingSource, erc: u8, id: u16, flags: CrwFlags) -> Self {
        Crw(U32::new(
            flags.bits() | (source as u32) << 24 | u32::from(erc & 0x3f) << 16 | u32::from(id),
        ))
    }

    /// The report that this word is.
    pub(crate) fn from_word(word: u32) -> Self {
        Crw(U32::new(word))
    }

    pub(crate) fn word(&self) -> u32 {
        self.0.get()
    }

    /// The same report with these flags added.
    pub(crate) fn with_flags(self, flags: CrwFlags) -> Self {
        Crw::from_word(self.0.get() | flags.bits())
    }

    /// Flags.
    pub fn flags(&self) -> CrwFlags {
        CrwFlags::from_bits_truncate(self.0.get())
    }

    /// Reporting-source code, 4 bits as stored.
    pub fn source(&self) -> u8 {
        (self.0.get() >> 24) as u8 & 0x0f
    }

    /// Error-recovery code, 6 bits.
    pub fn erc(&self) -> u8 {
        (self.0.get() >> 16) as u8 & 0x3f
    }

    /// Reporting-source identifier.
    pub fn id(&self) -> u16 {
        self.0.get() as u16
    }

    /// Whether there is no report (all zeros).
    pub fn is_none(&self) -> bool {
        self.0.get() == 0
    }
}

impl fmt::Debug for Crw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CRW source={} erc={} id={:04x}", self.source(), self.erc(), self.id())?;
        if self.flags().is_empty() {
            return Ok(());
        }
        f.write_str(" ")?;
        bitflags::parser::to_writer(&self.flags(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_report_round_trips() {
        let crw = Crw::new(ReportingSource::ChannelPath, 2, 0x42, CrwFlags::SOLICITED);
        assert_eq!(crw.as_bytes(), [0x44, 0x02, 0x00, 0x42]);
        assert_eq!((crw.source(), crw.erc(), crw.id()), (4, 2, 0x42));
        assert_eq!(format!("{crw:?}"), "CRW source=4 erc=2 id=0042 SOLICITED");
        assert!(Crw::default().is_none());
    }
}
