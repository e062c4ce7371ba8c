//! Execution of a channel program: CCW by CCW, with the architecture's rules for chaining, checks
//! and ending status.
//!
//! The checks and their order follow Hercules `execute_ccw_chain` and QEMU `css_interpret_ccw`;
//! incorrect length follows the table that Hercules implements (S/370 Principles of Operation,
//! "Incorrect Length").

use zerocopy::big_endian::U32;

use crate::architecture::{
    Ccw, CcwFlags, CommandClass, DeviceStatus, Erw, Esw, IdawFormat, IrbHead, Orb, OrbFlags, Scsw,
    ScswFlags, SubchannelStatus,
};

use crate::turn;

use super::data::{Data, Used};
use super::{Device, DmaSpace, Ending};

/// CCWs that one start may execute, TICs and data-chained ones included. A program that loops longer
/// ends in a program check: there is no operator here to notice it, and whoever waits for its end
/// (a detach, the end of the service) must not wait for hours. At 65,535 bytes a CCW this is 4 GiB.
pub const CCW_LIMIT: u32 = 1 << 16;

/// Commands between two chances for the other subchannels of the shard.
const COMMANDS_A_TURN: u32 = 64;

/// Where the channel stands in a program.
#[derive(Debug)]
pub(super) struct Channel<'a> {
    pub(super) dma: &'a DmaSpace,
    pub(super) format_1: bool,
    pub(super) idaws: IdawFormat,
    /// Address of the next CCW: 8 past the current one.
    pub(super) next: u32,
    /// A CCW with the PCI flag has taken control.
    program_controlled: bool,
    /// CCWs read so far.
    executed: u32,
}

/// What the channel found at its place in the program.
enum Found {
    Command(Ccw),
    /// A program check; the residual count is that of the CCW.
    Check(u16),
}

impl Channel<'_> {
    /// Addresses of CCWs and direct data lie below this.
    pub(super) fn address_limit(&self) -> u64 {
        if self.format_1 { 1 << 31 } else { 1 << 24 }
    }

    /// Reads the CCW at `next` and moves past it; `None` where there can be none.
    fn fetch(&mut self) -> Option<Ccw> {
        let at = u64::from(self.next);
        self.next = self.next.wrapping_add(8);
        self.executed += 1;
        if !at.is_multiple_of(8) || at >= self.address_limit() || self.executed > CCW_LIMIT {
            return None;
        }
        Some(Ccw::decode(self.dma.load_doubleword(at)?, self.format_1))
    }

    /// Follows TICs to the next command. `first`: no TIC may come before the first command.
    fn fetch_command(&mut self, first: bool) -> Found {
        let Some(mut ccw) = self.fetch() else {
            return Found::Check(0);
        };
        if ccw.is_tic(self.format_1) {
            if first {
                return Found::Check(ccw.count);
            }
            match self.transfer(&ccw) {
                // A TIC may not lead to a TIC.
                Some(next) if next.is_tic(self.format_1) => return Found::Check(next.count),
                Some(next) => ccw = next,
                None => return Found::Check(ccw.count),
            }
        }
        if CommandClass::of(ccw.command) == CommandClass::Invalid
            || CommandClass::of(ccw.command) == CommandClass::Transfer
            || !self.is_sound(&ccw)
        {
            return Found::Check(ccw.count);
        }
        self.take_control(&ccw);
        Found::Command(ccw)
    }

    /// The next CCW of a data chain; its command code means nothing.
    pub(super) fn fetch_data_chained(&mut self) -> Option<Ccw> {
        let mut ccw = self.fetch()?;
        if ccw.is_tic(self.format_1) {
            ccw = self.transfer(&ccw).filter(|next| !next.is_tic(self.format_1))?;
        }
        if !self.is_sound(&ccw) || ccw.count == 0 {
            return None;
        }
        self.take_control(&ccw);
        Some(ccw)
    }

    /// Goes where a TIC leads and reads what stands there.
    fn transfer(&mut self, tic: &Ccw) -> Option<Ccw> {
        let odd = self.format_1 && (!tic.flags.is_empty() || tic.count != 0);
        if odd || !tic.address.is_multiple_of(8) {
            return None;
        }
        self.next = tic.address;
        self.fetch()
    }

    /// Checks that hold for every CCW that is not a TIC.
    fn is_sound(&self, ccw: &Ccw) -> bool {
        // MIDAWs need ORB.D, which is never on; suspension is refused before programs get here.
        let refused = CcwFlags::MODIFIED_INDIRECT | CcwFlags::SUSPEND;
        let empty = ccw.count == 0 && (!self.format_1 || ccw.flags.contains(CcwFlags::CHAIN_DATA));
        !ccw.flags.intersects(refused) && !empty
    }

    fn take_control(&mut self, ccw: &Ccw) {
        self.program_controlled |= ccw.flags.contains(CcwFlags::PROGRAM_CONTROLLED);
    }
}

/// Executes the program that `orb` designates on `device`, in memory as `dma` shows it, and returns
/// the SCSW, ESW and ECW that it ends with.
///
/// The ORB has passed [`Orb::check`]. Other work of the thread gets its turn every few commands, so
/// a long program delays its neighbours by microseconds.
pub async fn execute<D: Device>(orb: &Orb, dma: &DmaSpace, device: &mut D) -> IrbHead {
    let mut channel = Channel {
        dma,
        format_1: orb.is_format_1(),
        idaws: orb.idaw_format(),
        next: orb.cpa(),
        program_controlled: false,
        executed: 0,
    };
    device.begin();
    for command in 0u32.. {
        if command > 0 && command.is_multiple_of(COMMANDS_A_TURN) {
            turn::pass().await;
        }
        let ccw = match channel.fetch_command(command == 0) {
            Found::Command(ccw) => ccw,
            Found::Check(count) => {
                return end(
                    &channel,
                    orb,
                    DeviceStatus::empty(),
                    SubchannelStatus::PROGRAM_CHECK,
                    count,
                );
            }
        };
        let mut data = Data::new(channel, ccw);
        let ending = device.command(ccw.command, &mut data).await;
        let used;
        (channel, used) = data.finish();
        let status = used.check | incorrect_length(orb, &used, ending);
        if status.is_empty() && goes_on(&used, ending) {
            if ending.status.contains(DeviceStatus::STATUS_MODIFIER) {
                channel.next = channel.next.wrapping_add(8);
            }
            continue;
        }
        let mut irb = end(&channel, orb, ending.status, status, used.residual);
        if ending.status.contains(DeviceStatus::UNIT_CHECK) {
            present_sense(&mut irb, device.take_sense().as_bytes());
        }
        return irb;
    }
    // 2^32 commands: no program that CCW_LIMIT lets run gets here.
    end(&channel, orb, DeviceStatus::empty(), SubchannelStatus::PROGRAM_CHECK, 0)
}

/// Whether the next command of the chain follows: CC without CD, and the device said channel end
/// and device end, perhaps with status modifier, and nothing else.
fn goes_on(used: &Used, ending: Ending) -> bool {
    let chained = used.ccw.flags & (CcwFlags::CHAIN_COMMAND | CcwFlags::CHAIN_DATA)
        == CcwFlags::CHAIN_COMMAND;
    let status = ending.status - DeviceStatus::STATUS_MODIFIER;
    chained && status == DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END
}

/// Incorrect length, where the counts of CCW and device differ and the CCW does not say that they may.
fn incorrect_length(orb: &Orb, used: &Used, ending: Ending) -> SubchannelStatus {
    let flags = used.ccw.flags;
    let chains_data = flags.contains(CcwFlags::CHAIN_DATA);
    let suppressed = flags.contains(CcwFlags::SUPPRESS_LENGTH) && !chains_data;
    let differs = if ending.immediate {
        // Format 1 reports it for a count that an immediate operation did not use, unless ORB.L
        // says not to, or the command chains.
        used.residual > 0
            && orb.is_format_1()
            && !orb.flags().contains(OrbFlags::SUPPRESS_LENGTH)
            && !flags.contains(CcwFlags::CHAIN_COMMAND)
    } else {
        used.residual > 0 || used.wanted_more
    };
    if differs && !suppressed && used.check.is_empty() {
        SubchannelStatus::INCORRECT_LENGTH
    } else {
        SubchannelStatus::empty()
    }
}

/// Ending status: primary, secondary and pending; alert where anything is out of the ordinary.
fn end(
    channel: &Channel<'_>,
    orb: &Orb,
    device: DeviceStatus,
    mut subchannel: SubchannelStatus,
    count: u16,
) -> IrbHead {
    if channel.program_controlled {
        // No intermediate interruption was taken: the bit is presented with the ending status.
        subchannel |= SubchannelStatus::PROGRAM_CONTROLLED;
    }
    let clean = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END;
    let mut flags = ScswFlags::START_FUNCTION
        | ScswFlags::PRIMARY
        | ScswFlags::SECONDARY
        | ScswFlags::STATUS_PENDING;
    flags.set(
        ScswFlags::ALERT,
        device != clean || !(subchannel - SubchannelStatus::PROGRAM_CONTROLLED).is_empty(),
    );
    flags.set(ScswFlags::FORMAT_1, orb.is_format_1());
    flags.set(ScswFlags::PREFETCH, orb.flags().contains(OrbFlags::PREFETCH));
    let scsw = Scsw::new(flags)
        .with_key(orb.key())
        .with_cpa(channel.next)
        .with_status(device, subchannel, count);
    // Last-path-used mask: the one path there is.
    let esw = Esw { logout: U32::new(0x0080_0000), ..Esw::default() };
    IrbHead { scsw, esw, ecw: [0; 32] }
}

/// Concurrent sense: the sense data goes into the ECW with the unit check.
fn present_sense(irb: &mut IrbHead, sense: &[u8]) {
    irb.ecw[..sense.len()].copy_from_slice(sense);
    irb.esw.erw = Erw::concurrent_sense(sense.len() as u8);
    irb.scsw = irb.scsw.with_flags(ScswFlags::EXTENDED_CONTROL | ScswFlags::ESW_FORMAT);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::command;
    use crate::channel_subsystem::{Extent, Sense, Window};
    use std::sync::Arc;
    use vfio_ccw_metrics::DeviceClass;
    use vfio_ccw_pinning::GuestMap;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;
    const CD: CcwFlags = CcwFlags::CHAIN_DATA;
    const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;

    /// A device that stores or takes `size` bytes a command and remembers what it was asked.
    #[derive(Default)]
    struct Probe {
        size: usize,
        seen: Vec<u8>,
        taken: Vec<u8>,
        modifier_on: Option<u8>,
    }

    impl Device for Probe {
        fn class(&self) -> DeviceClass {
            DeviceClass::Other
        }

        fn begin(&mut self) {
            self.seen.clear();
        }

        async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
            self.seen.push(code);
            if code == command::NOP {
                return Ending::immediate();
            }
            if code == 0xff {
                return Ending::unit_check();
            }
            if CommandClass::of(code).stores() {
                let pattern: Vec<u8> =
                    (0..self.size).map(|index| (index as u8).wrapping_add(1)).collect();
                data.store(&pattern);
            } else {
                let mut buffer = vec![0; self.size];
                let taken = data.fetch(&mut buffer);
                self.taken.extend_from_slice(&buffer[..taken]);
            }
            let mut ending = Ending::done();
            if self.modifier_on == Some(code) {
                ending.status |= DeviceStatus::STATUS_MODIFIER;
            }
            ending
        }

        fn take_sense(&mut self) -> Sense {
            Sense::new(Sense::COMMAND_REJECT, 0, 24)
        }
    }

    struct Bench {
        map: Arc<GuestMap>,
        dma: DmaSpace,
        probe: Probe,
    }

    impl Bench {
        fn new(size: usize) -> Self {
            let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
            let map = Arc::new(GuestMap::new(Arc::new(memory)).unwrap());
            let mut dma = DmaSpace::default();
            dma.map(Window::new(0, map.regions()[0].host(), map.clone())).unwrap();
            Bench { map, dma, probe: Probe { size, ..Probe::default() } }
        }

        fn run(&mut self, orb: Orb, program: &[Ccw]) -> Scsw {
            for (index, ccw) in program.iter().enumerate() {
                let bytes = if orb.is_format_1() { ccw.to_format_1() } else { ccw.to_format_0() };
                assert!(self.map.write(u64::from(orb.cpa()) + index as u64 * 8, &bytes));
            }
            self.irb(orb).scsw
        }

        fn irb(&mut self, orb: Orb) -> IrbHead {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(execute(&orb, &self.dma, &mut self.probe))
        }
    }

    fn summary(scsw: Scsw) -> (DeviceStatus, SubchannelStatus, u16, u32) {
        (scsw.device_status(), scsw.subchannel_status(), scsw.count(), scsw.cpa())
    }

    const CLEAN: DeviceStatus = DeviceStatus::CHANNEL_END.union(DeviceStatus::DEVICE_END);
    const NONE: SubchannelStatus = SubchannelStatus::empty();
    const IL: SubchannelStatus = SubchannelStatus::INCORRECT_LENGTH;
    const PGM: SubchannelStatus = SubchannelStatus::PROGRAM_CHECK;

    #[test]
    fn an_exact_read_ends_cleanly() {
        let mut bench = Bench::new(16);
        let scsw = bench.run(Orb::new(0x100), &[Ccw::new(0x02, 0x1000, 16)]);
        assert_eq!(summary(scsw), (CLEAN, NONE, 0, 0x108));
        assert!(scsw.is_clean_end() && !scsw.flags().contains(ScswFlags::ALERT));
        let mut stored = [0; 16];
        bench.map.read(0x1000, &mut stored);
        assert_eq!(stored[15], 16);
    }

    #[test]
    fn incorrect_length_follows_the_table() {
        // (flags, count, device size, status, residual, commands seen)
        let rows = [
            (CcwFlags::empty(), 24, 16, IL, 8, 1),
            (CcwFlags::empty(), 8, 16, IL, 0, 1),
            (SLI, 24, 16, NONE, 8, 1),
            (SLI, 8, 16, NONE, 0, 1),
            (CC, 24, 16, IL, 8, 1),
            (CC, 8, 16, IL, 0, 1),
            (CC | SLI, 24, 16, NONE, 0, 2),
            (CC | SLI, 8, 16, NONE, 0, 2),
            (CC, 16, 16, NONE, 0, 2),
            (CD, 24, 16, IL, 8, 1),
            (CD | SLI, 24, 16, IL, 8, 1),
        ];
        for (flags, count, size, status, residual, commands) in rows {
            let mut bench = Bench::new(size);
            let program = [Ccw::new(0x02, 0x1000, count).with(flags), Ccw::new(0x02, 0x2000, 16)];
            let scsw = bench.run(Orb::new(0x100), &program);
            let case = format!("{flags:?} count {count} device {size}: {scsw:?}");
            assert_eq!((scsw.subchannel_status(), scsw.count()), (status, residual), "{case}");
            assert_eq!(bench.probe.seen.len(), commands, "{case}");
        }
    }

    #[test]
    fn immediate_operations_follow_the_hercules_cases() {
        let nop = [Ccw::new(command::NOP, 0, 0x500)];
        let format_0 = OrbFlags::FORMAT_2_IDAWS;
        let format_1 = format_0 | OrbFlags::FORMAT_1;
        let rows = [(format_0, NONE), (format_1, IL), (format_1 | OrbFlags::SUPPRESS_LENGTH, NONE)];
        for (flags, status) in rows {
            let scsw = Bench::new(0).run(Orb::new(0x500).with_flags(flags), &nop);
            assert_eq!(summary(scsw), (CLEAN, status, 0x500, 0x508), "{flags:?}");
        }
    }

    #[test]
    fn data_chaining_is_one_area() {
        let mut bench = Bench::new(40);
        let program = [
            Ccw::new(0x02, 0x1000, 10).with(CD),
            Ccw::new(0x00, 0x2000, 20).with(CD),
            Ccw::new(0x77, 0x3000, 10),
        ];
        let scsw = bench.run(Orb::new(0x100), &program);
        assert_eq!(summary(scsw), (CLEAN, NONE, 0, 0x118));
        let mut last = [0; 10];
        bench.map.read(0x3000, &mut last);
        assert_eq!(last[9], 40);
        assert_eq!(bench.probe.seen, [0x02]);
    }

    #[test]
    fn skipped_bytes_are_not_stored() {
        let mut bench = Bench::new(8);
        bench.map.write(0x1000, &[0xee; 16]);
        let program = [Ccw::new(0x02, 0x1000, 4).with(CD | CcwFlags::SKIP), Ccw::new(0, 0x1008, 4)];
        assert_eq!(summary(bench.run(Orb::new(0x100), &program)), (CLEAN, NONE, 0, 0x110));
        let mut stored = [0; 12];
        bench.map.read(0x1000, &mut stored);
        assert_eq!(stored, [0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 5, 6, 7, 8]);
    }

    #[test]
    fn program_checks_show_the_ccw_they_are_about() {
        let nop = Ccw::new(command::NOP, 0, 0).with(CC);
        let rows: [(&[Ccw], u16, u32); 7] = [
            (&[Ccw::new(0x10, 0, 7)], 7, 0x108),
            (&[nop, Ccw::new(0x20, 0, 5)], 5, 0x110),
            (&[Ccw::new(command::TIC, 0x100, 0)], 0, 0x108),
            (&[nop, Ccw::new(command::TIC, 0x10c, 0)], 0, 0x110),
            (&[nop, Ccw::new(command::TIC, 0x200, 3)], 3, 0x110),
            (&[nop, Ccw::new(command::TIC, 0x110, 0), Ccw::new(command::TIC, 0x100, 0)], 0, 0x118),
            (&[Ccw::new(0x02, 0x1000, 4).with(CcwFlags::MODIFIED_INDIRECT)], 4, 0x108),
        ];
        for (program, residual, cpa) in rows {
            let scsw = Bench::new(4).run(Orb::new(0x100), program);
            assert_eq!(summary(scsw), (DeviceStatus::empty(), PGM, residual, cpa), "{program:?}");
            assert!(scsw.flags().contains(ScswFlags::ALERT));
        }
        for cpa in [0x104, 0x7fff_fff8] {
            let scsw = Bench::new(4).irb(Orb::new(cpa)).scsw;
            assert_eq!(summary(scsw), (DeviceStatus::empty(), PGM, 0, cpa + 8));
        }
    }

    #[test]
    fn memory_that_is_not_there_is_a_program_check_with_the_residual() {
        let mut bench = Bench::new(64);
        let scsw = bench.run(Orb::new(0x100), &[Ccw::new(0x02, 0xfff0, 64)]);
        assert_eq!(summary(scsw), (CLEAN, PGM, 48, 0x108));
        let indirect = [Ccw::new(0x02, 0x200, 64).with(CcwFlags::INDIRECT)];
        bench.map.write(0x200, &0x9999_0000u64.to_be_bytes());
        assert_eq!(summary(bench.run(Orb::new(0x100), &indirect)), (CLEAN, PGM, 64, 0x108));
        let odd_list = [Ccw::new(0x02, 0x204, 64).with(CcwFlags::INDIRECT)];
        assert_eq!(bench.run(Orb::new(0x100), &odd_list).subchannel_status(), PGM);
    }

    #[test]
    fn idaws_scatter_in_every_format() {
        let indirect = |count| [Ccw::new(0x02, 0x200, count).with(CcwFlags::INDIRECT)];
        let mut bench = Bench::new(100);
        bench.map.write(0x200, &0x1fd0u64.to_be_bytes());
        bench.map.write(0x208, &0x5000u64.to_be_bytes());
        assert_eq!(summary(bench.run(Orb::new(0x100), &indirect(100))), (CLEAN, NONE, 0, 0x108));
        let mut byte = [0];
        bench.map.read(0x5000, &mut byte);
        assert_eq!(byte, [49], "0x30 bytes fitted into the first block");
        bench.map.write(0x200, &[0, 0, 0x17, 0xf0, 0, 0, 0x48, 0]);
        let orb = Orb::new(0x100).with_flags(OrbFlags::FORMAT_1);
        assert_eq!(summary(bench.run(orb, &indirect(100))), (CLEAN, NONE, 0, 0x108));
        bench.map.read(0x4800, &mut byte);
        assert_eq!(byte, [17]);
        bench.map.write(0x204, &[0x80, 0, 0x48, 0]);
        assert_eq!(
            summary(bench.run(orb, &indirect(100))),
            (CLEAN, PGM, 84, 0x108),
            "IDAW with bit 0"
        );
    }

    #[test]
    fn a_status_modifier_skips_one_ccw() {
        let mut bench = Bench::new(4);
        bench.probe.modifier_on = Some(0x31);
        let program = [
            Ccw::new(0x31, 0x1000, 4).with(CC),
            Ccw::new(command::TIC, 0x100, 0),
            Ccw::new(0x06, 0x2000, 4),
        ];
        assert_eq!(summary(bench.run(Orb::new(0x100), &program)), (CLEAN, NONE, 0, 0x118));
        assert_eq!(bench.probe.seen, [0x31, 0x06]);
    }

    #[test]
    fn unit_check_ends_the_chain_and_brings_its_sense() {
        let mut bench = Bench::new(4);
        bench.run(
            Orb::new(0x100),
            &[Ccw::new(0xff, 0, 1).with(CC | SLI), Ccw::new(0x02, 0x1000, 4)],
        );
        let irb = bench.irb(Orb::new(0x100));
        assert_eq!(irb.scsw.device_status(), CLEAN | DeviceStatus::UNIT_CHECK);
        assert_eq!((irb.sense().len(), irb.sense()[0]), (24, Sense::COMMAND_REJECT));
        assert_eq!(bench.probe.seen, [0xff]);
    }

    #[test]
    fn an_endless_loop_ends() {
        let mut bench = Bench::new(0);
        let program = [Ccw::new(command::NOP, 0, 0).with(CC), Ccw::new(command::TIC, 0x100, 0)];
        let scsw = bench.run(Orb::new(0x100), &program);
        assert_eq!(scsw.subchannel_status(), PGM);
        assert_eq!(bench.probe.seen.len(), CCW_LIMIT as usize / 2);
        // The same within one data chain, where the device never gets to say stop.
        let mut bench = Bench::new(1 << 20);
        let program = [Ccw::new(0x02, 0x1000, 1).with(CD), Ccw::new(command::TIC, 0x100, 0)];
        let scsw = bench.run(Orb::new(0x100), &program);
        assert_eq!((scsw.subchannel_status(), bench.probe.seen.len()), (PGM, 1));
    }

    #[test]
    fn program_controlled_interruption_is_presented_with_the_end() {
        let pci = Ccw::new(command::NOP, 0, 0).with(CcwFlags::PROGRAM_CONTROLLED);
        let scsw = Bench::new(0).run(Orb::new(0x100), &[pci]);
        assert_eq!(scsw.subchannel_status(), SubchannelStatus::PROGRAM_CONTROLLED);
        assert!(scsw.is_clean_end());
    }

    #[test]
    fn going_back_gives_everything_back() {
        let mut bench = Bench::new(0);
        let program = [Ccw::new(0x02, 0x1000, 8).with(CD), Ccw::new(0, 0x2000, 8)];
        bench.run(Orb::new(0x100), &program);
        let channel = Channel {
            dma: &bench.dma,
            format_1: true,
            idaws: IdawFormat::Format2Blocks4K,
            next: 0x108,
            program_controlled: false,
            executed: 0,
        };
        let mut data = Data::new(channel, program[0]);
        assert!(matches!(data.next(4), Some(Extent::Memory(_))));
        let mark = data.mark();
        while data.next(4).is_some() {}
        assert!(data.is_at_end());
        data.go_back(mark);
        let (channel, used) = data.finish();
        assert_eq!((used.residual, used.ccw, channel.next), (4, program[0], 0x108));
    }
}
