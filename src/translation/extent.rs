//! What a DEFINE EXTENT asks for: the part of a DASD volume that the rest of its program may touch.

use std::ops::Range;

use vfio_ccw_metrics::DeviceClass;

use crate::architecture::command;

/// The most parameter bytes that are looked at; PREFIX has the longest: 12 of its own, then those
/// of DEFINE EXTENT.
pub(super) const PARAMETER_BYTES: usize = 64;

/// PREFIX: DEFINE EXTENT and LOCATE RECORD in one command (ECKD).
const PREFIX: u8 = 0xe7;

/// Heads of a 3390, the only geometry there is: tracks in a cylinder.
const TRACKS_A_CYLINDER: u64 = 15;

/// Whether a command defines an extent on a device of this class.
pub(super) fn defines_extent(class: DeviceClass, code: u8) -> bool {
    match class {
        DeviceClass::Fba => code == command::DEFINE_EXTENT,
        DeviceClass::Eckd => matches!(code, command::DEFINE_EXTENT | PREFIX),
        _ => false,
    }
}

/// The extent that the parameters of a DEFINE EXTENT or PREFIX give: 512-byte blocks of an FBA
/// volume, tracks of an ECKD volume. `None`: too short, the other way round, or none given.
///
/// Layouts as in Linux `dasd_fba.h` (`struct DE_fba_data`) and `dasd_eckd.h` (`struct DE_eckd_data`,
/// `struct PFX_eckd_data`).
pub(super) fn extent(class: DeviceClass, code: u8, parameters: &[u8]) -> Option<Range<u64>> {
    match (class, code) {
        (DeviceClass::Fba, _) => {
            let (at, first, last) =
                (word(parameters, 4)?, word(parameters, 8)?, word(parameters, 12)?);
            let blocks = last.checked_sub(first)? + 1;
            Some(at..at + blocks)
        }
        (_, PREFIX) => {
            let defined = parameters.get(1)? & 0x80 != 0;
            tracks(parameters.get(12..)?).filter(|_| defined)
        }
        _ => tracks(parameters),
    }
}

/// First and last track of an ECKD DEFINE EXTENT, bytes 8 to 15.
fn tracks(parameters: &[u8]) -> Option<Range<u64>> {
    let (first, last) = (track(word(parameters, 8)?)?, track(word(parameters, 12)?)?);
    (first <= last).then(|| first..last + 1)
}

/// A track address CCCCcccH: 16 low bits of the cylinder, 12 high bits of it, the head.
fn track(address: u64) -> Option<u64> {
    let cylinder = address >> 16 | (address & 0xfff0) << 12;
    let head = address & 0xf;
    (head < TRACKS_A_CYLINDER).then(|| cylinder * TRACKS_A_CYLINDER + head)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let word: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(word).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fba_extent_stands_where_it_is_mapped_to() {
        let mut bytes = [0; 16];
        bytes[4..8].copy_from_slice(&100u32.to_be_bytes());
        bytes[8..12].copy_from_slice(&2u32.to_be_bytes());
        bytes[12..16].copy_from_slice(&9u32.to_be_bytes());
        assert_eq!(extent(DeviceClass::Fba, command::DEFINE_EXTENT, &bytes), Some(100..108));
        assert_eq!(extent(DeviceClass::Fba, command::DEFINE_EXTENT, &bytes[..15]), None);
        bytes[12..16].copy_from_slice(&1u32.to_be_bytes());
        assert_eq!(extent(DeviceClass::Fba, command::DEFINE_EXTENT, &bytes), None);
        bytes[4..16].fill(0xff);
        bytes[8..12].fill(0);
        let all = extent(DeviceClass::Fba, command::DEFINE_EXTENT, &bytes).unwrap();
        assert_eq!(all.end, 0x1_ffff_ffff, "64-bit sums do not wrap");
    }

    #[test]
    fn eckd_extents_are_tracks_also_of_large_volumes() {
        let mut bytes = [0; 28];
        bytes[8..12].copy_from_slice(&[0, 1, 0, 3]);
        // Cylinder 0x10002: its high bits stand above the head.
        bytes[12..16].copy_from_slice(&[0, 2, 0, 0x1e]);
        let tracks = extent(DeviceClass::Eckd, command::DEFINE_EXTENT, &bytes).unwrap();
        assert_eq!(tracks, 18..0x1_0002 * 15 + 15);
        let mut prefix = [0; 28];
        prefix[12..].copy_from_slice(&bytes[..16]);
        assert_eq!(extent(DeviceClass::Eckd, PREFIX, &prefix), None, "says it has no extent");
        prefix[1] = 0x80;
        assert_eq!(extent(DeviceClass::Eckd, PREFIX, &prefix), Some(tracks));
        bytes[11] = 0x0f;
        assert_eq!(extent(DeviceClass::Eckd, command::DEFINE_EXTENT, &bytes), None, "head 15");
    }
}
