//! Channel programs and status blocks as text, for logs, tests and the `decode` subcommand.

use std::fmt;

use zerocopy::FromBytes;

use super::{Ccw, CcwFlags, CommandClass, Idaw1, Idaw2, IdawFormat, Orb};

/// Most CCWs a listing shows; a loop or hostile program ends there.
pub const MAX_LISTED: usize = 512;

/// Most IDAWs shown for one CCW.
const MAX_IDAWS: u64 = 64;

/// A channel program as text, one CCW a line, IDAWs indented below.
///
/// `read` copies memory at an absolute address into the buffer and says whether all of it was there.
///
/// ```
/// use vfio_ccw::architecture::{decode::Listing, Ccw, Orb, command};
/// let memory = Ccw::new(command::NOP, 0, 0).to_format_1();
/// let text = Listing::new(Orb::new(0), |address, buffer: &mut [u8]| {
///     let from = address as usize;
///     memory.get(from..from + buffer.len()).map(|bytes| buffer.copy_from_slice(bytes)).is_some()
/// })
/// .to_string();
/// assert!(text.contains("00000000: 03 NOP"));
/// ```
pub struct Listing<R> {
    orb: Orb,
    read: R,
}

impl<R: Fn(u64, &mut [u8]) -> bool> Listing<R> {
    /// A listing of the program that `orb` designates.
    pub fn new(orb: Orb, read: R) -> Self {
        Listing { orb, read }
    }

    fn ccw(&self, address: u32) -> Option<Ccw> {
        let mut bytes = [0; 8];
        (self.read)(u64::from(address), &mut bytes)
            .then(|| Ccw::decode(bytes, self.orb.is_format_1()))
    }

    fn idaw(&self, list: u32, index: u64) -> Option<u64> {
        let format = self.orb.idaw_format();
        let address = u64::from(list) + index * u64::from(format.size());
        let mut bytes = [0; 8];
        let word = &mut bytes[..format.size() as usize];
        if !(self.read)(address, word) {
            return None;
        }
        match format {
            IdawFormat::Format1 => Idaw1::read_from_bytes(word).ok()?.address(),
            _ => Some(Idaw2::read_from_bytes(word).ok()?.0.get()),
        }
    }

    fn write_idaws(&self, f: &mut fmt::Formatter<'_>, ccw: &Ccw) -> fmt::Result {
        let block = u64::from(self.orb.idaw_format().block());
        let first = self.idaw(ccw.address, 0);
        let spanned = first.map_or(0, |first| first % block) + u64::from(ccw.count.max(1));
        let words = spanned.div_ceil(block);
        for index in 0..words.min(MAX_IDAWS) {
            match self.idaw(ccw.address, index) {
                Some(idaw) => writeln!(f, "              IDAW {index}: {idaw:#018x}")?,
                None => {
                    return writeln!(f, "              IDAW {index}: not readable or not valid");
                }
            }
        }
        if words > MAX_IDAWS {
            writeln!(f, "              and {} more", words - MAX_IDAWS)?;
        }
        Ok(())
    }
}

impl<R: Fn(u64, &mut [u8]) -> bool> fmt::Display for Listing<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format_1 = self.orb.is_format_1();
        writeln!(f, "{:?}", self.orb)?;
        let mut address = self.orb.cpa();
        for listed in 0.. {
            if listed == MAX_LISTED {
                return writeln!(f, "stopped after {MAX_LISTED} CCWs");
            }
            let Some(ccw) = self.ccw(address) else {
                return writeln!(f, "{address:08x}: not in memory");
            };
            write!(f, "{address:08x}: {:02x} {:<8}", ccw.command, name(&ccw, format_1))?;
            if ccw.is_tic(format_1) {
                writeln!(f, "to {:08x}", ccw.address)?;
                // A backward transfer is a loop: what it leads to stands above already.
                if ccw.address <= address {
                    address = address.wrapping_add(8);
                    continue;
                }
                address = ccw.address;
                continue;
            }
            writeln!(f, "count {:5} data {:08x} {:?}", ccw.count, ccw.address, ccw.flags)?;
            if ccw.flags.contains(CcwFlags::INDIRECT) {
                self.write_idaws(f, &ccw)?;
            }
            if !ccw.chains() {
                return Ok(());
            }
            address = address.wrapping_add(8);
        }
        Ok(())
    }
}

impl<R> fmt::Debug for Listing<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listing of {:?}", self.orb)
    }
}

/// What a command is called.
pub(crate) fn name(ccw: &Ccw, format_1: bool) -> &'static str {
    use super::command as c;
    if ccw.is_tic(format_1) {
        return "TIC";
    }
    match ccw.command {
        c::NOP => "NOP",
        c::SENSE => "SENSE",
        c::SENSE_ID => "SENSEID",
        c::READ_DEVICE_CHARACTERISTICS => "RDC",
        c::DEFINE_EXTENT => "DEFEXT",
        c::FBA_LOCATE => "LOCATE",
        other => match CommandClass::of(other) {
            CommandClass::Write => "write",
            CommandClass::Read => "read",
            CommandClass::Control => "control",
            CommandClass::Sense => "sense",
            CommandClass::ReadBackward => "readback",
            CommandClass::Transfer | CommandClass::Invalid => "invalid",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::command;
    use super::*;

    fn listing(memory: &[u8], orb: Orb) -> String {
        Listing::new(orb, |address, buffer: &mut [u8]| {
            let from = address as usize;
            match memory.get(from..from + buffer.len()) {
                Some(bytes) => {
                    buffer.copy_from_slice(bytes);
                    true
                }
                None => false,
            }
        })
        .to_string()
    }

    #[test]
    fn an_indirect_read_shows_its_idaws() {
        let mut memory = vec![0; 64];
        let read = Ccw::new(command::FBA_READ, 16, 8192).with(CcwFlags::INDIRECT);
        memory[..8].copy_from_slice(&read.to_format_1());
        memory[16..24].copy_from_slice(&0x1_0000_0000u64.to_be_bytes());
        memory[24..32].copy_from_slice(&0x1_0000_5000u64.to_be_bytes());
        let text = listing(&memory, Orb::new(0));
        assert!(text.contains("42 read    count  8192"), "{text}");
        assert!(text.contains("IDAW 1: 0x0000000100005000"), "{text}");
        assert!(!text.contains("IDAW 2"), "{text}");
    }

    #[test]
    fn loops_and_holes_end_the_listing() {
        let tic_to_self = Ccw::new(command::TIC, 0, 0).to_format_1();
        let text = listing(&tic_to_self, Orb::new(0));
        assert!(
            text.contains("TIC     to 00000000") && text.contains("00000008: not in memory"),
            "{text}"
        );
        let mut forward = Vec::new();
        for index in 0..=MAX_LISTED as u32 {
            forward.extend(Ccw::new(command::TIC, (index + 1) * 8, 0).to_format_1());
        }
        assert!(listing(&forward, Orb::new(0)).ends_with("stopped after 512 CCWs\n"));
    }
}
