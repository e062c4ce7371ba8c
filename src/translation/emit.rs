//! Writing the shadow program.

use vfio_ccw_pinning::HostRange;

use crate::architecture::{Ccw, Orb, OrbFlags};

use super::program::{PARAMETER_SLOT, Program, ShadowCcw, Target};

impl Program {
    /// Writes the shadow program into `host`, which the device sees at `iova`: the CCWs, the IDALs,
    /// then private copies of parameters. `iova` is a multiple of 64 below 2 GiB. Returns the ORB to
    /// start it with, or `None` where `host` is too small for [`Program::bytes`].
    #[inline(always)]
    pub fn emit(&mut self, host: HostRange, iova: u32) -> Option<Orb> {
        self.iova = iova;
        let idals = iova + self.ccws.len() as u32 * 8;
        if !self.parameters.is_empty() {
            self.designate_parameters();
            if !host.write(self.parameters_at(), &self.parameters) {
                return None;
            }
        }
        let room = host.part(0, (self.ccws.len() + self.idaws.len()) * 8)?;
        let ccws = self.ccws.iter().map(|ccw| self.word(ccw, idals));
        let stored = ccws.chain(self.idaws.iter().copied()).enumerate();
        // They go one by one: most programs have a few, for which a copy takes longer to set up.
        let stored = stored
            .fold(true, |stored, (index, word)| stored & room.store_doubleword(index * 8, word));
        stored.then(|| self.shadow_orb())
    }

    /// The ORB that starts the shadow as it was written last.
    pub(crate) fn shadow(&self) -> Orb {
        self.shadow_orb()
    }

    /// Points the IDAWs of judged parameters to their private copies.
    fn designate_parameters(&mut self) {
        let mut iova = u64::from(self.iova) + self.parameters_at() as u64;
        for index in &self.parameter_idaws {
            self.idaws[*index as usize] = iova.to_be_bytes();
            iova += PARAMETER_SLOT as u64;
        }
    }

    #[inline(always)]
    fn word(&self, ccw: &ShadowCcw, idals: u32) -> [u8; 8] {
        let address = match ccw.target {
            Target::Nothing | Target::Transfer(_) => self.iova,
            Target::Fetch(index) | Target::Store(index) | Target::StoreBackward(index) => {
                idals + index * 8
            }
            Target::Ccw(index) => self.iova + index * 8,
        };
        Ccw { command: ccw.command, flags: ccw.flags, count: ccw.count, address }.to_format_1()
    }

    /// The guest's ORB with what the shadow needs: format 1, format-2 IDAWs of the guest's block
    /// size, the shadow's address. Key, path mask and the length, status, suspension and
    /// synchronisation controls stay the guest's (the kernel's `cp_get_orb` does the same). MIDAWs
    /// are gone, and the address limit would be held against addresses that are not the guest's.
    #[inline(always)]
    fn shadow_orb(&self) -> Orb {
        let kept =
            self.orb.flags() - (OrbFlags::IDAW_2K | OrbFlags::MIDAW | OrbFlags::ADDRESS_LIMIT);
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
    use crate::translation::{Policy, Rules};
    use std::sync::Arc;
    use vfio_ccw_metrics::DeviceClass;
    use vfio_ccw_pinning::{GuestMap, Hold};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn guest(ccws: &[(u64, Ccw)]) -> GuestMap {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let map = GuestMap::new(Arc::new(memory)).unwrap();
        ccws.iter().for_each(|(at, ccw)| assert!(map.write(*at, &ccw.to_format_1())));
        map
    }

    #[test]
    fn the_shadow_points_into_itself_and_at_guest_memory() {
        let chain = CcwFlags::CHAIN_COMMAND;
        let map = guest(&[
            (
                0x100,
                Ccw::new(command::FBA_READ, 0x1000, 0x2000).with(chain | CcwFlags::SUPPRESS_LENGTH),
            ),
            (0x108, Ccw::new(command::NOP, 0, 0).with(chain)),
            (0x110, Ccw::new(command::TIC, 0x108, 0)),
        ]);
        let (mut program, mut hold) = (Program::default(), Hold::default());
        let orb = Orb::new(0x100).with_intparm(9);
        program.fetch(&orb, &map, &Rules::default(), &mut hold);
        let mut arena = Arena::new(0, 1).unwrap();
        let slot = arena.take(program.bytes()).unwrap();
        let (host, iova) = (arena.slot_host(&slot).unwrap(), arena.slot_iova(&slot));
        let orb = program.emit(host, iova).unwrap();
        assert_eq!((orb.cpa(), orb.intparm()), (iova, 9));
        let ccw = |index: usize| Ccw::decode(host.load_doubleword(index * 8).unwrap(), true);
        assert_eq!(ccw(0).address, iova + 4 * 8, "four CCWs: read, NOP, TIC, its stop");
        assert!(
            ccw(0)
                .flags
                .contains(CcwFlags::INDIRECT | CcwFlags::CHAIN_COMMAND | CcwFlags::SUPPRESS_LENGTH)
        );
        assert_eq!(ccw(1).command, command::NOP);
        assert_eq!(ccw(2).address, iova + 8);
        let idaw =
            |index: usize| u64::from_be_bytes(host.load_doubleword((4 + index) * 8).unwrap());
        assert_eq!([idaw(0), idaw(1)], [0x1000 + GUEST_IOVA, 0x2000 + GUEST_IOVA]);
        assert!(program.emit(host.part(0, 8).unwrap(), iova).is_none(), "too small a slot");
    }

    #[test]
    fn judged_parameters_are_the_devices_private_copy() {
        let map = guest(&[(0x100, Ccw::new(command::DEFINE_EXTENT, 0x200, 16))]);
        map.write(0x204, &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
        let rules =
            Rules { class: DeviceClass::Fba, policy: Policy::extents(8..10), ..Rules::default() };
        let (mut program, mut hold) = (Program::default(), Hold::default());
        program.fetch(&Orb::new(0x100), &map, &rules, &mut hold);
        map.write(0x204, &[0xff; 12]);
        let mut arena = Arena::new(0, 1).unwrap();
        let slot = arena.take(program.bytes()).unwrap();
        let (host, iova) = (arena.slot_host(&slot).unwrap(), arena.slot_iova(&slot));
        program.emit(host, iova).unwrap();
        assert_eq!(program.bytes(), 128);
        let idaw = u64::from_be_bytes(host.load_doubleword(16).unwrap());
        assert_eq!(idaw, u64::from(iova) + 64);
        let mut copy = [0; 16];
        host.read(64, &mut copy);
        assert_eq!(copy, [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
