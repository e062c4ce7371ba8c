//! What became of a start, as it stands in a line.

use std::fmt;

use vfio_ccw::architecture::Irb;

use super::target::{Answer, errno_name, show};

/// Key and controls S, P, I, A and U of the ORB in word 0 of an SCSW. QEMU does not show them; one case
/// does, the lines of the others go without.
const CONTROLS: u32 = 0xf878_0000;

/// Function control: start.
const START: u32 = 0x4000;

/// Activity control: start pending, so that no CCW was used.
const START_PENDING: u32 = 0x0400;

/// Of a write to the I/O or the asynchronous-command region.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// What the write gave.
    pub answer: Answer<usize>,
    /// What the region says of it.
    pub ret_code: i32,
    /// Interrupts since, and those that were there before.
    pub interrupts: u64,
    pub stray: u64,
    /// The IRB that was there then.
    pub irb: Irb,
    /// Where the program is that the IRB may be about.
    pub cpa: u32,
}

impl Outcome {
    /// The status, with the address relative to the program. That of anything but a start that was made
    /// means nothing: with the driver it may be a host address.
    pub fn status(&self) -> String {
        let scsw = zerocopy::IntoBytes::as_bytes(&self.irb.head.scsw);
        let word = |at: usize| u32::from_be_bytes(scsw[at..at + 4].try_into().unwrap());
        let controls = word(0) & !CONTROLS;
        let place = if controls & (START | START_PENDING) == START {
            format!("+{:x}", word(4).wrapping_sub(self.cpa))
        } else {
            "-".to_owned()
        };
        format!("{controls:08x} {place} {:08x}", word(8))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.stray > 0 {
            write!(f, "{} strayed; ", self.stray)?;
        }
        let ret_code = match self.ret_code {
            errno @ ..0 => format!("-{}", errno_name(errno.wrapping_neg())),
            left => left.to_string(),
        };
        write!(f, "{} ret {ret_code} irq {}", show(&self.answer), self.interrupts)?;
        if self.interrupts > 0 {
            write!(f, " {}", self.status())?;
        }
        Ok(())
    }
}
