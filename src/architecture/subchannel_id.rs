//! Subchannel-identification word.

use std::fmt;
use std::str::FromStr;

/// Names a subchannel: channel-subsystem image, subchannel set, number.
///
/// In the word that I/O instructions have in general register 1: bits 0-7 CSSID, bit 12 the M bit
/// (the CSSID counts), bits 13-14 the subchannel-set identifier, bit 15 one, bits 16-31 the number
/// (QEMU `include/hw/s390x/ioinst.h`).
///
/// ```
/// use vfio_ccw::architecture::SubchannelId;
/// let id = SubchannelId::try_from(0x0003_1234)?;
/// assert_eq!((id.set(), id.number(), id.to_string()), (1, 0x1234, "0.1.1234".to_owned()));
/// assert_eq!(u32::from(id), 0x0003_1234);
/// # Ok::<(), vfio_ccw::architecture::SubchannelIdError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubchannelId {
    image: u8,
    has_image: bool,
    set: u8,
    number: u16,
}

/// Why a word names no subchannel: an operand exception for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubchannelIdError {
    /// Bit 15 (0x00010000) is not one.
    #[error("subchannel-identification word {word:#010x}: bit 15 (0x00010000) must be one")]
    OnesBit {
        /// The whole word.
        word: u32,
    },
    /// There is a CSSID, but the M bit says that there is none.
    #[error("subchannel-identification word {word:#010x}: a CSSID needs bit M (0x00080000)")]
    ImageWithoutM {
        /// The whole word.
        word: u32,
    },
}

impl SubchannelId {
    const ONE: u32 = 0x0001_0000;
    const M: u32 = 0x0008_0000;

    /// Subchannel `number` of set `set` (0 to 3) in the default image.
    pub fn new(set: u8, number: u16) -> Self {
        SubchannelId { image: 0, has_image: false, set: set & 3, number }
    }

    /// The subchannel with this number over all sets of the default image: set 0 has the first
    /// 65,536, and so on.
    pub(crate) fn of(number: u32) -> Self {
        SubchannelId::new((number >> 16) as u8, number as u16)
    }

    /// Channel-subsystem image; 0 also where the word does not name one.
    pub fn image(&self) -> u8 {
        self.image
    }

    /// Subchannel set, 0 to 3.
    pub fn set(&self) -> u8 {
        self.set
    }

    /// Number in its set.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Number over all sets, where it is in the default image: the only one that a service has.
    pub(crate) fn index(&self) -> Option<u32> {
        (self.image == 0).then_some(u32::from(self.set) << 16 | u32::from(self.number))
    }
}

/// The checks of QEMU's `ioinst_disassemble_sch_ident`.
impl TryFrom<u32> for SubchannelId {
    type Error = SubchannelIdError;

    fn try_from(word: u32) -> Result<Self, SubchannelIdError> {
        if word & Self::ONE == 0 {
            return Err(SubchannelIdError::OnesBit { word });
        }
        let (image, has_image) = ((word >> 24) as u8, word & Self::M != 0);
        if image != 0 && !has_image {
            return Err(SubchannelIdError::ImageWithoutM { word });
        }
        Ok(SubchannelId { image, has_image, set: (word >> 17) as u8 & 3, number: word as u16 })
    }
}

impl From<SubchannelId> for u32 {
    fn from(id: SubchannelId) -> u32 {
        let m = if id.has_image { SubchannelId::M } else { 0 };
        let image = u32::from(id.image) << 24;
        image | m | u32::from(id.set) << 17 | SubchannelId::ONE | u32::from(id.number)
    }
}

/// As Linux writes it: image, set and number.
impl fmt::Display for SubchannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}.{:04x}", self.image, self.set, self.number)
    }
}

/// As Linux writes it, in the default image: `0.1.00a3`.
impl FromStr for SubchannelId {
    type Err = NoSubchannelId;

    fn from_str(word: &str) -> Result<Self, NoSubchannelId> {
        let wrong = || NoSubchannelId { word: word.chars().take(32).collect() };
        let mut parts = word.split('.');
        let mut next = |most: usize| {
            let part = parts.next().filter(|part| (1..=most).contains(&part.len()))?;
            let is_hex = part.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_hex.then(|| u16::from_str_radix(part, 16).ok()).flatten()
        };
        match (next(1), next(1), next(4)) {
            (Some(0), Some(set @ 0..=3), Some(number)) if parts.next().is_none() => {
                Ok(SubchannelId::new(set as u8, number))
            }
            _ => Err(wrong()),
        }
    }
}

/// What is no subchannel of the default image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{word}' is no subchannel: use image, set and number in hexadecimal, such as 0.0.0005")]
pub struct NoSubchannelId {
    /// The word, or its beginning.
    pub word: String,
}

impl fmt::Debug for SubchannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "subchannel {self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_as_linux_writes_them_are_read() {
        for id in
            [SubchannelId::new(0, 0), SubchannelId::new(3, 0xffff), SubchannelId::new(1, 0xa3)]
        {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert_eq!("0.0.5".parse(), Ok(SubchannelId::new(0, 5)));
        for word in
            ["", "5", "0.0", "1.0.0005", "0.4.0005", "0.0.00005", "0.0.+5", "0.0.5.6", "0..5"]
        {
            let error = word.parse::<SubchannelId>().expect_err(word);
            assert!(error.to_string().contains("such as 0.0.0005"), "{error}");
        }
    }

    #[test]
    fn words_that_name_nothing_are_operand_exceptions() {
        let word = 0x0000_0001;
        assert_eq!(SubchannelId::try_from(word), Err(SubchannelIdError::OnesBit { word }));
        let word = 0x0101_0001;
        assert_eq!(SubchannelId::try_from(word), Err(SubchannelIdError::ImageWithoutM { word }));
    }

    #[test]
    fn words_come_back_as_they_went_in() {
        for word in [0x0001_0000, 0x0007_ffff, 0xfe09_0001, 0x0009_0001] {
            assert_eq!(SubchannelId::try_from(word).map(u32::from), Ok(word), "{word:#x}");
        }
        let id = SubchannelId::try_from(0xfe0d_0002).unwrap();
        assert_eq!((id.image(), id.set(), id.number(), id.index()), (0xfe, 2, 2, None));
        assert_eq!(id.to_string(), "fe.2.0002");
    }

    #[test]
    fn numbers_go_on_over_the_sets() {
        let id = SubchannelId::of(0x2_0007);
        assert_eq!((id.set(), id.number(), id.index()), (2, 7, Some(0x2_0007)));
        assert_eq!(u32::from(id), 0x0005_0007);
    }
}
