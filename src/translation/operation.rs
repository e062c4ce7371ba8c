//! What a program does, as it is counted: by the commands of its CCWs.

use vfio_ccw_metrics::Operation;

use crate::architecture::{CommandClass, command};

use super::program::{Program, ShadowCcw};

/// CCWs that are looked at: what a program is for is among its first ones.
const LOOKED_AT: usize = 16;

impl Program {
    /// Whether it reads, writes, or neither. SEARCH commands move keys to a device of key data, and write
    /// nothing.
    #[inline]
    pub fn operation(&self) -> Operation {
        let mut reads = false;
        for ccw in self.ccws.iter().take(LOOKED_AT) {
            match CommandClass::of(ccw.command) {
                CommandClass::Write if !command::is_search(ccw.command) => return Operation::Write,
                CommandClass::Read | CommandClass::ReadBackward => reads = true,
                _ => {}
            }
        }
        if reads { Operation::Read } else { Operation::Control }
    }
}

impl Program {
    /// How many CCWs it has, without those at which the channel is made to stop, and command, flags and count
    /// of each.
    #[inline]
    pub(crate) fn commands(&self) -> (usize, impl Iterator<Item = (u8, u8, u16)> + '_) {
        let short = |ccw: &ShadowCcw| (ccw.command, ccw.flags.bits(), ccw.count);
        let ccws = self.ccws.iter().filter(|ccw| !ccw.is_stop());
        (self.ccws.len() - self.stops.len(), ccws.map(short))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::CcwFlags;
    use crate::translation::program::Target;

    fn operation(commands: &[u8]) -> Operation {
        let ccw = |command: &u8| ShadowCcw {
            command: *command,
            flags: CcwFlags::empty(),
            count: 8,
            leader: *command,
            target: Target::Nothing,
        };
        Program { ccws: commands.iter().map(ccw).collect(), ..Program::default() }.operation()
    }

    #[test]
    fn programs_are_told_apart_by_what_they_move() {
        let (define, locate) = (command::DEFINE_EXTENT, 0x43);
        assert_eq!(operation(&[]), Operation::Control);
        assert_eq!(operation(&[command::NOP, command::SENSE_ID]), Operation::Control);
        assert_eq!(operation(&[define, locate, 0x42]), Operation::Read);
        assert_eq!(operation(&[define, locate, command::FBA_WRITE]), Operation::Write);
        assert_eq!(operation(&[0x0c]), Operation::Read, "read backward");
        // SEEK, SEARCH ID EQUAL, TIC, READ DATA of a disk with key data; and WRITE DATA.
        assert_eq!(operation(&[0x07, 0x31, command::TIC, 0x06]), Operation::Read);
        assert_eq!(operation(&[0x07, 0x31, command::TIC, 0x05]), Operation::Write);
        assert_eq!(operation(&[0x42, 0x41]), Operation::Write, "both");
        let mut long = [command::NOP; LOOKED_AT + 1];
        long[LOOKED_AT] = 0x41;
        assert_eq!(operation(&long), Operation::Control);
    }
}
