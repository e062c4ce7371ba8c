//! Programs whose ORB forbids prefetching, because they store into themselves as IPL programs do,
//! through a whole service.

pub mod bench_guest;

use bench_guest::fba::{self, Image, ONLY_READ, READ, extent, locate, put_transfer};
use bench_guest::{Bench, Device, on_each_driver_of};
use vfio_ccw::architecture::{
    Ccw, CcwFlags, DeviceStatus, IrbHead, Orb, OrbFlags, SubchannelStatus, command,
};
use vfio_ccw::{DeviceSpec, Service, Unfetched};
use vfio_ccw_metrics::{CounterKind, Outcome};

const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;

const MEMORY: usize = 1 << 20;
const PROGRAM: u32 = 0x1000;
const AREA: u32 = 0x2000;
/// Where a program reads the rest of itself, and the block of the disk that has it.
const REST: u32 = 0x4000;
const REST_BLOCK: u32 = 7;
/// Where the rest that is in memory before, and the rest that is on the disk, have the device say
/// what it is.
const OLD: u32 = 0x1_0000;
const NEW: u32 = 0x1_1000;

/// The ORB of a program that may change itself.
fn orb(cpa: u32) -> Orb {
    let orb = Orb::new(cpa);
    orb.with_flags(orb.flags() - OrbFlags::PREFETCH)
}

fn on_each_driver(unfetched: Unfetched, test: impl Fn(&Bench)) {
    on_each_driver_of(|| Service::builder().unfetched(unfetched), MEMORY, test);
}

fn identify(buffer: u32) -> Ccw {
    Ccw::new(command::SENSE_ID, buffer, 7)
}

/// A disk with a program that reads [`REST_BLOCK`] and goes on in it, as a loader's first one does.
/// In memory the rest has the device identify itself to [`OLD`], on the disk to [`NEW`].
fn disk_with_loader(bench: &Bench) -> Device {
    let mut disk = bench.attach(Image::new(16).disk());
    bench.put_program(REST, &[identify(NEW)]);
    put_transfer(bench, AREA, command::FBA_WRITE, REST_BLOCK, 1, REST);
    assert!(disk.run(&Orb::new(AREA + fba::CCWS)).scsw.is_clean_end());
    bench.put_program(REST, &[identify(OLD)]);
    bench.put(AREA.into(), &extent(ONLY_READ, REST_BLOCK, 0, 0));
    bench.put(u64::from(AREA) + 16, &locate(READ, 1, 0));
    bench.put_program(
        PROGRAM,
        &[
            Ccw::new(command::DEFINE_EXTENT, AREA, 16).with(CC),
            Ccw::new(command::FBA_LOCATE, AREA + 16, 8).with(CC),
            Ccw::new(command::FBA_READ, REST, 512).with(CC),
            Ccw::new(command::TIC, REST, 0),
        ],
    );
    disk
}

/// Whether the device identified itself to the old place and to the new.
fn identified(bench: &Bench) -> (bool, bool) {
    let is_there = |at: u32| match &bench.peek(at.into(), 7)[..] {
        [0xff, 0x63, 0x10, 0x80, 0x93, 0x36, 0x10] => true,
        other => {
            assert_eq!(other, [0; 7]);
            false
        }
    };
    (is_there(OLD), is_there(NEW))
}

#[track_caller]
fn assert_clean(irb: &IrbHead, cpa: u32) {
    assert!(irb.scsw.is_clean_end() && irb.scsw.cpa() == cpa, "{irb:?}");
}

/// Starts without prefetch, and program checks, that the service has counted.
fn counted(bench: &Bench) -> (u64, u64) {
    let totals = bench.service.totals();
    (totals.counter(CounterKind::Unfetched), totals.completions(Outcome::ProgramCheck))
}

#[test]
fn a_program_goes_on_in_what_it_has_read() {
    on_each_driver(Unfetched::Execute, |bench| {
        let mut disk = disk_with_loader(bench);
        assert_clean(&disk.run(&orb(PROGRAM)), REST + 8);
        assert_eq!(identified(bench), (false, true), "what was read was executed");
        assert_eq!(counted(bench), (1, 0), "the write before could be prefetched");
    });
}

#[test]
fn a_program_that_may_be_prefetched_goes_on_in_what_was_there() {
    on_each_driver(Unfetched::Execute, |bench| {
        let mut disk = disk_with_loader(bench);
        assert_clean(&disk.run(&Orb::new(PROGRAM)), REST + 8);
        assert_eq!(identified(bench), (true, false));
        assert_eq!(counted(bench), (0, 0));
    });
}

#[test]
fn prefetched_all_the_same_it_runs_what_was_there() {
    on_each_driver(Unfetched::Prefetch, |bench| {
        let mut disk = disk_with_loader(bench);
        assert_clean(&disk.run(&orb(PROGRAM)), REST + 8);
        assert_eq!(identified(bench), (true, false));
        assert_eq!(counted(bench), (1, 0));
    });
}

#[test]
fn refused_it_is_a_program_check_and_the_device_is_not_told() {
    on_each_driver(Unfetched::Refuse, |bench| {
        let mut disk = disk_with_loader(bench);
        let irb = disk.run(&orb(PROGRAM));
        assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CHECK, "{irb:?}");
        assert_eq!(irb.scsw.device_status(), DeviceStatus::empty(), "{irb:?}");
        assert_eq!(identified(bench), (false, false));
        assert_eq!(counted(bench), (1, 1));
        assert_clean(&disk.run(&Orb::new(PROGRAM)), REST + 8);
    });
}

#[test]
fn ccws_that_a_read_has_cleared_are_no_commands() {
    for (unfetched, goes_on) in [(Unfetched::Execute, false), (Unfetched::Prefetch, true)] {
        on_each_driver(unfetched, |bench| {
            let mut device = bench.attach(DeviceSpec::Null);
            // The null device gives zeros.
            let clear = Ccw::new(command::READ_IPL, PROGRAM + 8, 8).with(CC);
            bench.put_program(PROGRAM, &[clear, identify(NEW)]);
            let irb = device.run(&orb(PROGRAM));
            assert_eq!((irb.scsw.is_clean_end(), irb.scsw.cpa()), (goes_on, PROGRAM + 16));
            if !goes_on {
                let check = SubchannelStatus::PROGRAM_CHECK;
                assert_eq!(irb.scsw.subchannel_status(), check, "{irb:?}");
            }
            assert_eq!(bench.peek(NEW.into(), 1), [if goes_on { 0xff } else { 0 }]);
            assert_eq!(counted(bench), (1, u64::from(!goes_on)));
        });
    }
}

#[test]
fn a_format_0_loader_at_address_0_chains_into_what_it_reads() {
    on_each_driver(Unfetched::Execute, |bench| {
        let mut device = bench.attach(DeviceSpec::Null);
        // As IPL does: 24 bytes to 0, which is a PSW and two CCWs, and on at 8. The second CCW of
        // the program in memory is not the one that is executed.
        let into_itself = Ccw::new(command::READ_IPL, 0, 24).with(CC);
        let elsewhere = Ccw::new(command::TIC, 8, 0);
        for (at, ccw) in [(0x300, into_itself), (0x308, elsewhere), (8, identify(OLD))] {
            bench.put(at, &ccw.to_format_0());
        }
        let flags = OrbFlags::FORMAT_2_IDAWS;
        let irb = device.run(&Orb::new(0x300).with_flags(flags));
        assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CHECK, "{irb:?}");
        assert_eq!(irb.scsw.cpa(), 0x10, "at the zeros that were read over the CCW at 8");
        assert_eq!(bench.peek(OLD.into(), 7), [0; 7]);
    });
}

#[test]
fn data_of_a_program_that_may_change_itself_pins_no_pages() {
    on_each_driver(Unfetched::Execute, |bench| {
        let mut disk = bench.attach(Image::new(16).disk());
        put_transfer(bench, AREA, command::FBA_READ, 3, 2, NEW);
        assert_clean(&disk.run(&orb(AREA + fba::CCWS)), AREA + fba::CCWS + 24);
        assert_eq!(bench.peek(NEW.into(), 1024), fba::blocks(3, 2));
        assert_eq!(bench.service.totals().counter(CounterKind::PinGets), 0);
        assert_eq!(bench.service.pool().peak_bytes(), 0);
    });
}
