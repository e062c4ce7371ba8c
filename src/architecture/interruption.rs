//! I/O-interruption code.

use super::SubchannelId;

/// What a vCPU is told with an I/O interruption, and what TEST PENDING INTERRUPTION stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoInterruption {
    /// The subchannel that has status pending.
    pub subchannel: SubchannelId,
    /// Its interruption parameter.
    pub intparm: u32,
    /// Its interruption subclass, 0 to 7; 0 comes first.
    pub isc: u8,
}

impl IoInterruption {
    /// I/O-interruption-identification word: the subclass in bits 2-4.
    pub fn identification(&self) -> u32 {
        u32::from(self.isc & 7) << 27
    }

    /// The interruption code, 12 bytes, big-endian: subchannel-identification word, interruption
    /// parameter, identification word. TEST PENDING INTERRUPTION stores all of it in the lowcore
    /// (address 184), or the first two words at an operand.
    pub fn to_bytes(&self) -> [u8; 12] {
        let words = [u32::from(self.subchannel), self.intparm, self.identification()];
        let mut bytes = [0; 12];
        for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_be_bytes();
        }
        bytes
    }

    /// The bit of its subclass in an interruption-subclass mask as control register 6 has it: 0x80
    /// for subclass 0.
    pub fn mask(&self) -> u8 {
        0x80 >> (self.isc & 7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_laid_out_as_in_the_lowcore() {
        let interruption =
            IoInterruption { subchannel: SubchannelId::new(1, 7), intparm: 0x1234_5678, isc: 3 };
        assert_eq!(
            interruption.to_bytes(),
            [0x00, 0x03, 0x00, 0x07, 0x12, 0x34, 0x56, 0x78, 0x18, 0x00, 0x00, 0x00]
        );
        assert_eq!(interruption.mask(), 0x10);
    }
}
