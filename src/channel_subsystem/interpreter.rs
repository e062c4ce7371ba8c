//! Execution of a channel program: CCW by CCW, with the architecture's rules for chaining, checks
//! and ending status.
//!
//! The checks and their order follow Hercules `execute_ccw_chain` and QEMU `css_interpret_ccw`;
//! incorrect length follows the table that Hercules implements (S/370 Principles of Operation,
//! "Incorrect Length").

use std::cell::{Cell, RefCell};

use zerocopy::big_endian::U32;

use crate::architecture::{
    CcwFlags, DeviceStatus, Esw, Function, IrbHead, Orb, OrbFlags, Scsw, ScswFlags,
    SubchannelStatus,
};
use crate::translation::{Access, Rules, Verdict};
use crate::turn;

use super::channel::{Channel, Found, Place};
use super::data::{Data, Used};
use super::{Device, DmaSpace, Ending, Stop};

/// Commands between two chances for the other subchannels of the shard.
const COMMANDS_A_TURN: u32 = 64;

/// How a program is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// By START SUBCHANNEL: the ORB designates its first CCW.
    Start,
    /// By RESUME SUBCHANNEL: the ORB designates the CCW that suspended it.
    Resume,
}

/// One execution of a channel program.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The ORB, which has passed [`Orb::check`].
    ///
    /// With P = 1 the program is a translated one: its addresses are I/O virtual. With P = 0 it is
    /// the guest's own: each address is a guest absolute one, for which the device has memory at
    /// [`GUEST_IOVA`](crate::GUEST_IOVA), and each CCW and IDAW is fetched when it is used, so the
    /// program may change itself.
    pub orb: Orb,
    /// How it is entered.
    pub entry: Entry,
    /// Memory as the device sees it.
    pub dma: &'a DmaSpace,
    /// What a program with P = 0 is held to; nobody has checked it before.
    pub rules: Option<&'a Rules>,
    /// Ends it before its end.
    pub stop: Option<&'a Stop>,
}

impl<'a> Run<'a> {
    /// The start of a translated program.
    pub fn new(orb: Orb, dma: &'a DmaSpace) -> Self {
        Run { orb, entry: Entry::Start, dma, rules: None, stop: None }
    }
}

/// Executes a program on `device` and returns the SCSW, ESW and ECW that it ends with, or is
/// suspended with ([`ScswFlags::SUSPENDED`]).
///
/// `intermediate` is given the status of each CCW with the PCI flag when it takes control, before
/// anything of it is validated. Other work of the thread gets its turn every few commands, so a long
/// program delays its neighbours by microseconds.
pub async fn execute<D: Device>(
    run: &Run<'_>,
    device: &mut D,
    intermediate: &mut dyn FnMut(IrbHead),
) -> IrbHead {
    let irb = Cell::default();
    execute_judged(run, device, intermediate, &irb).await;
    irb.get()
}

/// What ended a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The channel or the device.
    Own,
    /// The policy of [`Run::rules`].
    Policy,
    /// [`Run::stop`]; the status says how far it came.
    Stopped,
}

/// [`execute`] that leaves the status in `irb`.
pub(crate) async fn execute_judged<D: Device>(
    run: &Run<'_>,
    device: &mut D,
    intermediate: &mut dyn FnMut(IrbHead),
    irb: &Cell<IrbHead>,
) -> End {
    let orb = &run.orb;
    let intermediate = RefCell::new(intermediate);
    let intermediate = |irb| (intermediate.borrow_mut())(irb);
    let channel = Channel::new(run, &intermediate);
    let mut place = Place::at(orb.cpa());
    if run.entry == Entry::Start {
        device.begin();
    }
    for command in 0u32.. {
        if command > 0 && command.is_multiple_of(COMMANDS_A_TURN) {
            turn::pass().await;
        }
        if run.stop.is_some_and(|stop| stop.asked().is_some()) {
            irb.set(stopped(orb, place.next, 0));
            return End::Stopped;
        }
        let ccw = match channel.fetch_command(&mut place, command == 0 && run.entry == Entry::Start)
        {
            Found::Command(ccw) => ccw,
            Found::Check(check) => {
                let none = DeviceStatus::empty();
                irb.set(ended(orb, place.next, none, check.status, check.count));
                return End::Own;
            }
            Found::Suspended(ccw) => {
                let program_controlled = ccw.flags.contains(CcwFlags::PROGRAM_CONTROLLED);
                irb.set(suspended(orb, place.next, program_controlled, ccw.count));
                return End::Own;
            }
        };
        if let Some(verdict) = channel.refuses(device.class(), &ccw) {
            let status = Ending::unit_check().status;
            let refused = ended(orb, place.next, status, SubchannelStatus::empty(), ccw.count);
            irb.set(refused.with_sense(&verdict.sense()));
            return End::Policy;
        }
        let mut data = Data::new(&channel, &mut place, ccw);
        let ending = device.command(ccw.command, &mut data).await;
        let used = data.finish();
        if run.stop.is_some_and(|stop| stop.asked().is_some()) {
            irb.set(stopped(orb, place.next, used.residual));
            return End::Stopped;
        }
        let status = used.check | incorrect_length(orb, &used, ending);
        if status.is_empty() && goes_on(&used, ending) {
            if ending.status.contains(DeviceStatus::STATUS_MODIFIER) {
                place.next = place.next.wrapping_add(8);
            }
            continue;
        }
        irb.set(ended(orb, place.next, ending.status, status, used.residual));
        if ending.status.contains(DeviceStatus::UNIT_CHECK) {
            irb.set(irb.get().with_sense(device.take_sense().as_bytes()));
        }
        return End::Own;
    }
    // 2^32 commands: no program that CCW_LIMIT lets run gets here.
    irb.set(ended(orb, orb.cpa(), DeviceStatus::empty(), SubchannelStatus::PROGRAM_CHECK, 0));
    End::Own
}

impl Channel<'_> {
    /// The policy's verdict over a command that nobody has judged yet, if it is a refusal.
    fn refuses(
        &self,
        class: vfio_ccw_metrics::DeviceClass,
        ccw: &crate::architecture::Ccw,
    ) -> Option<Verdict> {
        let rules = self.rules.filter(|rules| !rules.policy.is_empty())?;
        let verdict = rules.policy.judge(&Access::new(class, ccw.command, ccw.count));
        (verdict != Verdict::Allow).then_some(verdict)
    }
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
fn ended(
    orb: &Orb,
    cpa: u32,
    device: DeviceStatus,
    subchannel: SubchannelStatus,
    count: u16,
) -> IrbHead {
    let clean = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END;
    let mut flags = ScswFlags::PRIMARY | ScswFlags::SECONDARY | ScswFlags::STATUS_PENDING;
    flags.set(ScswFlags::ALERT, device != clean || !subchannel.is_empty());
    irb(orb, flags, Scsw::default().with_cpa(cpa).with_status(device, subchannel, count))
}

/// Status of a program that was stopped behind the CCW before `cpa`.
fn stopped(orb: &Orb, cpa: u32, count: u16) -> IrbHead {
    let (device, none) = (DeviceStatus::DEVICE_END, SubchannelStatus::empty());
    let scsw = Scsw::default().with_cpa(cpa).with_status(device, none, count);
    irb(orb, ScswFlags::STATUS_PENDING, scsw)
}

/// Status of HALT or CLEAR when it is performed, as QEMU gives it (`sch_handle_halt_func`,
/// `sch_handle_clear_func`). `control`: what was in progress, of which `ended` says how far it came.
pub(crate) fn performed(
    function: Function,
    control: ScswFlags,
    ended: Option<&IrbHead>,
) -> IrbHead {
    let esw = Esw { logout: U32::new(0x0080_0000), ..Esw::default() };
    let pending = Scsw::new(ScswFlags::STATUS_PENDING);
    let scsw = match function {
        Function::Clear => pending.with_flags(ScswFlags::CLEAR_FUNCTION),
        Function::Halt => {
            let active = ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE;
            let waits = ScswFlags::START_PENDING | ScswFlags::SUSPENDED;
            let signalled = control.intersects(active) || !control.intersects(waits);
            let device = if signalled { DeviceStatus::DEVICE_END } else { DeviceStatus::empty() };
            let (cpa, count) = ended.map_or((0, 0), |ended| (ended.scsw.cpa(), ended.scsw.count()));
            let pending = pending.with_flags(ScswFlags::HALT_FUNCTION).with_cpa(cpa);
            pending.with_status(device, SubchannelStatus::empty(), count)
        }
    };
    IrbHead { scsw, esw, ecw: [0; 32] }
}

/// Status of a program that goes on: a CCW with the PCI flag has taken control.
pub(super) fn program_controlled(orb: &Orb, cpa: u32) -> IrbHead {
    let flags = ScswFlags::SUBCHANNEL_ACTIVE
        | ScswFlags::DEVICE_ACTIVE
        | ScswFlags::INTERMEDIATE
        | ScswFlags::STATUS_PENDING;
    let status = SubchannelStatus::PROGRAM_CONTROLLED;
    irb(orb, flags, Scsw::default().with_cpa(cpa).with_status(DeviceStatus::empty(), status, 0))
}

/// Status of a program that waits to be resumed. The guest is told unless it asked not to be and
/// there is no PCI to tell it of (Hercules `execute_ccw_chain`).
fn suspended(orb: &Orb, cpa: u32, program_controlled: bool, count: u16) -> IrbHead {
    let mut flags = ScswFlags::SUSPENDED;
    if program_controlled || !orb.flags().contains(OrbFlags::SUPPRESS_SUSPENDED) {
        flags |= ScswFlags::INTERMEDIATE | ScswFlags::STATUS_PENDING;
    }
    let mut status = SubchannelStatus::empty();
    status.set(SubchannelStatus::PROGRAM_CONTROLLED, program_controlled);
    irb(orb, flags, Scsw::default().with_cpa(cpa).with_status(DeviceStatus::empty(), status, count))
}

fn irb(orb: &Orb, flags: ScswFlags, scsw: Scsw) -> IrbHead {
    let scsw = scsw.with_flags(flags | ScswFlags::START_FUNCTION).with_controls_of(orb);
    // Last-path-used mask: the one path there is.
    let esw = Esw { logout: U32::new(0x0080_0000), ..Esw::default() };
    IrbHead { scsw, esw, ecw: [0; 32] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{Ccw, CommandClass, command};
    use crate::channel_subsystem::{CCW_LIMIT, Extent, Sense, Window, WindowAccess};
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
        progress: Vec<Scsw>,
    }

    impl Bench {
        fn new(size: usize) -> Self {
            let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
            let map = Arc::new(GuestMap::new(Arc::new(memory)).unwrap());
            let mut dma = DmaSpace::default();
            dma.map(Window::new(0, map.regions()[0].host(), map.clone())).unwrap();
            let probe = Probe { size, ..Probe::default() };
            Bench { map, dma, probe, progress: Vec::new() }
        }

        fn run(&mut self, orb: Orb, program: &[Ccw]) -> Scsw {
            for (index, ccw) in program.iter().enumerate() {
                let bytes = if orb.is_format_1() { ccw.to_format_1() } else { ccw.to_format_0() };
                assert!(self.map.write(u64::from(orb.cpa()) + index as u64 * 8, &bytes));
            }
            self.irb(orb).scsw
        }

        fn irb(&mut self, orb: Orb) -> IrbHead {
            self.enter(orb, Entry::Start)
        }

        fn enter(&mut self, orb: Orb, entry: Entry) -> IrbHead {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let run = Run { entry, ..Run::new(orb, &self.dma) };
            let progress = &mut self.progress;
            runtime.block_on(execute(&run, &mut self.probe, &mut |irb| progress.push(irb.scsw)))
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
        let format_0 = OrbFlags::FORMAT_2_IDAWS | OrbFlags::PREFETCH;
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
    fn windows_withhold_what_was_not_granted() {
        let mut bench = Bench::new(8);
        let (map, host) = (bench.map.clone(), bench.map.regions()[0].host());
        let part = |offset, access| {
            let part = host.part(offset, 0x1000).unwrap();
            Window::new(0x10_0000 + offset as u64, part, map.clone()).with_access(access)
        };
        bench.dma.map(part(0x2000, WindowAccess::READ)).unwrap();
        bench.dma.map(part(0x4000, WindowAccess::WRITE)).unwrap();
        bench.map.write(0x2000, &Ccw::new(0x02, 0x1000, 8).to_format_1());
        bench.map.write(0x4000, &Ccw::new(0x02, 0x1000, 8).to_format_1());
        let protected = SubchannelStatus::PROTECTION_CHECK;
        // (command, where its data is, status)
        for (command, address, status) in [
            (0x02, 0x10_2000, protected),
            (0x01, 0x10_2000, NONE),
            (0x02, 0x10_4008, NONE),
            (0x01, 0x10_4000, protected),
        ] {
            let scsw = bench.run(Orb::new(0x100), &[Ccw::new(command, address, 8)]);
            assert_eq!(scsw.subchannel_status(), status, "{command:#x} {address:#x}");
        }
        assert_eq!(bench.irb(Orb::new(0x10_2000)).scsw.subchannel_status(), NONE);
        let irb = bench.irb(Orb::new(0x10_4000));
        assert_eq!(irb.scsw.subchannel_status(), protected, "CCWs are fetched");
        bench.map.write(0x200, &0x1000u64.to_be_bytes());
        bench.map.write(0x4200, &0x1000u64.to_be_bytes());
        for (list, status) in [(0x200, NONE), (0x10_4200, protected)] {
            let read = Ccw::new(0x02, list, 8).with(CcwFlags::INDIRECT);
            assert_eq!(bench.run(Orb::new(0x100), &[read]).subchannel_status(), status);
        }
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
        let orb = Orb::new(0x100).with_flags(OrbFlags::FORMAT_1 | OrbFlags::PREFETCH);
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
        let tic = Ccw::new(command::TIC, 0x100, 0);
        let mut bench = Bench::new(0);
        let scsw = bench.run(Orb::new(0x100), &[Ccw::new(command::NOP, 0, 0).with(CC), tic]);
        assert_eq!(summary(scsw), (DeviceStatus::empty(), PGM, 0, 0x110));
        assert_eq!(bench.probe.seen.len(), 256, "255 backward TICs");
        // With a command that reads, only the number of CCWs ends it.
        let mut bench = Bench::new(1);
        let scsw = bench.run(Orb::new(0x100), &[Ccw::new(0x02, 0x1000, 1).with(CC), tic]);
        assert_eq!(scsw.subchannel_status(), PGM);
        assert_eq!(bench.probe.seen.len(), CCW_LIMIT as usize / 2);
        // The same within one data chain, where the device never gets to say stop.
        let mut bench = Bench::new(1 << 20);
        let program = [Ccw::new(0x02, 0x1000, 1).with(CD), Ccw::new(command::TIC, 0x100, 0)];
        let scsw = bench.run(Orb::new(0x100), &program);
        assert_eq!((scsw.subchannel_status(), bench.probe.seen.len()), (PGM, 1));
    }

    #[test]
    fn the_pci_flag_tells_of_progress_before_anything_is_checked() {
        let pci = CcwFlags::PROGRAM_CONTROLLED;
        let mut bench = Bench::new(0);
        let program = [Ccw::new(command::NOP, 0, 0).with(CC | pci), Ccw::new(0x00, 0, 7).with(pci)];
        let scsw = bench.run(Orb::new(0x100), &program);
        assert_eq!(summary(scsw), (DeviceStatus::empty(), PGM, 7, 0x110));
        let told: Vec<u32> = bench.progress.iter().map(Scsw::cpa).collect();
        assert_eq!(told, [0x108, 0x110]);
        let flags = bench.progress[0].flags();
        let active = ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE;
        assert!(flags.contains(ScswFlags::INTERMEDIATE | ScswFlags::STATUS_PENDING | active));
        assert!(!bench.progress[0].is_final() && scsw.is_final());
    }

    #[test]
    fn a_program_suspends_and_is_resumed() {
        let suspend = CcwFlags::SUSPEND;
        let mut bench = Bench::new(0);
        let orb = Orb::new(0x100);
        let orb = orb.with_flags(orb.flags() | OrbFlags::SUSPEND_CONTROL);
        let nop = Ccw::new(command::NOP, 0, 0);
        let scsw = bench.run(orb, &[nop.with(CC), nop.with(suspend)]);
        assert_eq!((scsw.cpa(), scsw.is_final()), (0x110, false));
        assert!(scsw.flags().contains(ScswFlags::SUSPENDED | ScswFlags::STATUS_PENDING));
        assert_eq!(bench.probe.seen.len(), 1);
        let again = bench.enter(orb.with_cpa(0x108), Entry::Resume).scsw;
        assert!(again.flags().contains(ScswFlags::SUSPENDED), "the flag is still on");
        bench.map.write(0x108, &nop.to_format_1());
        let scsw = bench.enter(orb.with_cpa(0x108), Entry::Resume).scsw;
        assert_eq!(summary(scsw), (CLEAN, NONE, 0, 0x110));
        assert_eq!(bench.probe.seen.len(), 2, "the device did not begin anew");
        let quiet = orb.with_flags(orb.flags() | OrbFlags::SUPPRESS_SUSPENDED);
        let scsw = bench.run(quiet, &[nop.with(suspend)]);
        assert!(!scsw.flags().contains(ScswFlags::STATUS_PENDING));
        for (orb, ccw) in [(Orb::new(0x100), nop.with(suspend)), (orb, nop.with(suspend | CD))] {
            assert_eq!(bench.run(orb, &[ccw]).subchannel_status(), PGM, "{ccw:?}");
        }
    }

    #[test]
    fn read_backward_fills_from_the_end() {
        let mut bench = Bench::new(4);
        let scsw = bench.run(Orb::new(0x100), &[Ccw::new(0x0c, 0x1003, 4)]);
        assert_eq!(summary(scsw), (CLEAN, NONE, 0, 0x108));
        let mut bytes = [0; 4];
        bench.map.read(0x1000, &mut bytes);
        assert_eq!(bytes, [4, 3, 2, 1]);
        bench.map.write(0x200, &0x2001u64.to_be_bytes());
        bench.map.write(0x208, &0x4fffu64.to_be_bytes());
        let read = Ccw::new(0x0c, 0x200, 4).with(CcwFlags::INDIRECT);
        assert_eq!(summary(bench.run(Orb::new(0x100), &[read])), (CLEAN, NONE, 0, 0x108));
        bench.map.read(0x4ffe, &mut bytes[..2]);
        assert_eq!(bytes[..2], [4, 3]);
        bench.map.write(0x208, &0x4ffeu64.to_be_bytes());
        assert_eq!(bench.run(Orb::new(0x100), &[read]).subchannel_status(), PGM);
        let below = bench.run(Orb::new(0x100), &[Ccw::new(0x0c, 1, 4)]);
        assert_eq!((below.subchannel_status(), below.count()), (PGM, 2), "below address 0");
    }

    #[test]
    fn going_back_gives_everything_back() {
        let mut bench = Bench::new(0);
        let program = [Ccw::new(0x02, 0x1000, 8).with(CD), Ccw::new(0, 0x2000, 8)];
        bench.run(Orb::new(0x100), &program);
        let run = Run::new(Orb::new(0x108), &bench.dma);
        let (channel, mut place) = (Channel::new(&run, &|_| {}), Place::at(0x108));
        let mut data = Data::new(&channel, &mut place, program[0]);
        assert!(matches!(data.next(4), Some(Extent::Memory(_))));
        let mark = data.mark();
        while data.next(4).is_some() {}
        assert!(data.is_at_end());
        data.go_back(mark);
        let used = data.finish();
        assert_eq!((used.residual, used.ccw, place.next), (4, program[0], 0x108));
    }
}
