//! The end of a program: from the status of its shadow to the status that the guest sees.

use std::hint::black_box;

use vfio_ccw::SHADOW_IOVA;
use vfio_ccw::architecture::{DeviceStatus, IrbHead, Scsw, ScswFlags, SubchannelStatus};
use vfio_ccw::translation::Program;

use super::translation::{SMALL, Translation};
use crate::ratio::FieldError;

/// A program of [`SMALL`] CCWs whose shadow has ended as it should.
#[derive(Debug)]
pub struct Finished {
    program: Program,
    irb: IrbHead,
}

impl Finished {
    /// Translates it, and makes the status.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn new() -> Result<Self, FieldError> {
        let mut translation = Translation::new(1, SMALL)?;
        translation.translate_all()?;
        let flags = ScswFlags::FORMAT_1
            | ScswFlags::PREFETCH
            | ScswFlags::PRIMARY
            | ScswFlags::SECONDARY
            | ScswFlags::STATUS_PENDING;
        let device = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END;
        let behind = SHADOW_IOVA as u32 + SMALL as u32 * 8;
        let scsw =
            Scsw::new(flags).with_cpa(behind).with_status(device, SubchannelStatus::empty(), 0);
        translation.release_all();
        Ok(Self { program: translation.program, irb: IrbHead { scsw, ..IrbHead::default() } })
    }

    /// The status as the guest sees it.
    #[inline]
    pub fn back_map(&self) -> IrbHead {
        black_box(&self.program).back_map(black_box(self.irb))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_sees_a_clean_end_of_its_own_program() {
        let finished = Finished::new().unwrap();
        assert!(finished.irb.scsw.is_clean_end());
        let seen = finished.back_map().scsw;
        // The program begins at 0.
        assert!(seen.is_clean_end());
        assert_eq!((seen.cpa(), seen.count()), (SMALL as u32 * 8, 0));
    }
}
