//! Writing the shadow program.

use vfio_ccw_pinning::HostRange;

use crate::architecture::{Ccw, Orb, OrbFlags};

use super::program::{Program, ShadowCcw, Target};

impl Program {
    /// Writes the shadow program into `host`, which the device sees at `iova` (below 2 GiB): the
    /// CCWs, then the IDALs. Returns the ORB to start it with, or `None` where `host` is too small.
    pub(crate) fn emit(&mut self, host: HostRange, iova: u32) -> Option<Orb> {
        self.iova = iova;
        let idals = iova + self.ccws.len() as u32 * 8;
        let mut words = std::mem::take(&mut self.words);
        words.clear();
        words.extend(self.ccws.iter().map(|ccw| self.word(ccw, idals)));
        words.extend_from_slice(&self.idaws);
        let written = host.write(0, words.as_flattened());
        self.words = words;
        written.then(|| self.shadow_orb())
    }

    fn word(&self, ccw: &ShadowCcw, idals: u32) -> [u8; 8] {
        let (ccw, address) = match ccw.target {
            Target::Nothing => (*ccw, self.iova),
            Target::Idal(index) => (*ccw, idals + index * 8),
            Target::Transfer(guest) => match self.index_of(guest) {
                Some(index) => (*ccw, self.iova + index * 8),
                // Beyond the segment limit: nothing was read there.
                None => (ShadowCcw::stop(0), self.iova),
            },
        };
        Ccw { command: ccw.command, flags: ccw.flags, count: ccw.count, address }.to_format_1()
    }

    /// The guest's ORB with what the shadow needs: format 1, format-2 IDAWs of the guest's block
    /// size, the shadow's address. Key, path mask and the length, status and synchronisation
    /// controls stay the guest's (the kernel's `cp_get_orb` does the same).
    fn shadow_orb(&self) -> Orb {
        let kept = self.orb.flags()
            - (OrbFlags::IDAW_2K | OrbFlags::SUSPEND_CONTROL | OrbFlags::SUPPRESS_SUSPENDED);
        let mut flags = kept | OrbFlags::FORMAT_1 | OrbFlags::FORMAT_2_IDAWS | OrbFlags::PREFETCH;
        if !self.orb.is_format_1() {
            // Format 0 reports no incorrect length for immediate operations.
            flags |= OrbFlags::SUPPRESS_LENGTH;
        }
        flags.set(OrbFlags::IDAW_2K, self.orb.idaw_format().block() == 2048);
        self.orb.with_flags(flags).with_cpa(self.iova)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{CcwFlags, command};
    use crate::shadow::{Arena, GUEST_IOVA};
    use crate::translation::Limits;
    use std::sync::Arc;
    use vfio_ccw_pinning::{GuestMap, Hold};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    #[test]
    fn the_shadow_points_into_itself_and_at_guest_memory() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let map = GuestMap::new(Arc::new(memory)).unwrap();
        let ccws = [
            Ccw::new(command::FBA_READ, 0x1000, 0x2000)
                .with(CcwFlags::CHAIN_COMMAND | CcwFlags::SUPPRESS_LENGTH),
            Ccw::new(command::TIC, 0x200, 0),
        ];
        ccws.iter()
            .zip([0x100, 0x108])
            .for_each(|(ccw, at)| assert!(map.write(at, &ccw.to_format_1())));
        map.write(0x200, &Ccw::new(command::NOP, 0, 0).to_format_1());
        let (mut program, mut hold) = (Program::default(), Hold::default());
        program.fetch(&Orb::new(0x100).with_intparm(9), &map, &Limits::default(), &mut hold);
        let mut arena = Arena::new(0, 1).unwrap();
        let slot = arena.take(program.bytes()).unwrap();
        let (host, iova) = (arena.slot_host(&slot).unwrap(), arena.slot_iova(&slot));
        let orb = program.emit(host, iova).unwrap();
        assert_eq!((orb.cpa(), orb.intparm()), (iova, 9));
        let ccw = |index: usize| Ccw::decode(host.load_doubleword(index * 8).unwrap(), true);
        assert_eq!(ccw(0).address, iova + 4 * 8, "four CCWs: read, TIC, its stop, NOP");
        assert!(
            ccw(0)
                .flags
                .contains(CcwFlags::INDIRECT | CcwFlags::CHAIN_COMMAND | CcwFlags::SUPPRESS_LENGTH)
        );
        assert_eq!(ccw(1).address, iova + 3 * 8);
        assert_eq!(ccw(3).command, command::NOP);
        let idaw =
            |index: usize| u64::from_be_bytes(host.load_doubleword((4 + index) * 8).unwrap());
        assert_eq!([idaw(0), idaw(1)], [0x1000 + GUEST_IOVA, 0x2000 + GUEST_IOVA]);
        assert!(program.emit(host.part(0, 8).unwrap(), iova).is_none(), "too small a slot");
    }
}
