//! Policies on an FBA volume, through a whole service: what is refused, how the guest is told, and
//! that what is allowed still works.

pub mod bench_guest;

use std::ops::Range;

use bench_guest::fba::{self, Image, ONLY_READ, READ, extent, locate, put_transfer};
use bench_guest::{Bench, Device, on_each_driver};
use vfio_ccw::architecture::{
    Ccw, CcwFlags, DeviceStatus, IrbHead, Orb, OrbFlags, ScswFlags, command,
};
use vfio_ccw::translation::{Access, Rule, Verdict};
use vfio_ccw::{Cc, DeviceSpec, Policy};
use vfio_ccw_metrics::{CounterKind, Outcome};

const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;

const MEMORY: usize = 1 << 20;
const BLOCKS: u32 = 128;

/// Where [`put_transfer`] puts parameters and program.
const AREA: u32 = 0x2000;
const PROGRAM: u32 = AREA + fba::CCWS;
const BUFFER: u32 = 0x1_0000;

/// Sense bytes 0 and 1 of the two refusals.
const PROTECTED: [u8; 2] = [0, 0x04];
const REJECTED: [u8; 2] = [0x80, 0];

/// A disk under a policy.
struct Rig<'a> {
    bench: &'a Bench,
    image: Image,
    disk: Device,
}

impl<'a> Rig<'a> {
    fn new(bench: &'a Bench, policy: Policy) -> Self {
        let image = Image::new(BLOCKS);
        let disk = bench.attach_with(image.disk(), policy);
        bench.put(BUFFER.into(), &[0xee; 0x1000]);
        Rig { bench, image, disk }
    }

    /// DEFINE EXTENT of just these blocks, LOCATE, and READ or WRITE.
    fn transfer(&mut self, code: u8, first: u32, blocks: u16) -> IrbHead {
        put_transfer(self.bench, AREA, code, first, blocks, BUFFER);
        self.disk.run(&Orb::new(PROGRAM))
    }

    fn run(&mut self, program: &[Ccw]) -> IrbHead {
        self.bench.put_program(PROGRAM, program);
        self.disk.run(&Orb::new(PROGRAM))
    }

    fn buffer(&self, len: usize) -> Vec<u8> {
        self.bench.peek(BUFFER.into(), len)
    }

    fn completions(&self, outcome: Outcome) -> u64 {
        self.bench.service.totals().completions(outcome)
    }

    #[track_caller]
    fn assert_untouched(&self) {
        assert!(self.image.blocks(0, BLOCKS) == fba::blocks(0, BLOCKS), "the image was written to");
        assert_eq!(self.bench.service.totals().counter(CounterKind::WrittenBytes), 0);
    }
}

/// Channel end and device end after `ccws` CCWs.
#[track_caller]
fn assert_clean(irb: &IrbHead, ccws: u32) {
    assert!(irb.scsw.is_clean_end() && irb.scsw.cpa() == PROGRAM + ccws * 8, "{irb:?}");
}

/// Refused at CCW number `ccws`, of whose `count` bytes none moved.
#[track_caller]
fn assert_refused(irb: &IrbHead, ccws: u32, count: u16, sense: [u8; 2]) {
    let ended = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END;
    assert_eq!(irb.scsw.device_status(), ended | DeviceStatus::UNIT_CHECK, "{irb:?}");
    assert!(irb.scsw.subchannel_status().is_empty(), "{irb:?}");
    assert!(irb.scsw.flags().contains(ScswFlags::ALERT | ScswFlags::PRIMARY), "{irb:?}");
    assert_eq!((irb.sense().len(), &irb.sense()[..2]), (24, &sense[..]), "{irb:?}");
    assert_eq!((irb.scsw.cpa(), irb.scsw.count()), (PROGRAM + ccws * 8, count), "{irb:?}");
}

#[test]
fn a_read_only_volume_is_read_and_not_written() {
    on_each_driver(MEMORY, |bench| {
        let mut rig = Rig::new(bench, Policy::read_only());
        assert_refused(&rig.transfer(command::FBA_WRITE, 9, 2), 3, 1024, PROTECTED);
        rig.assert_untouched();
        assert_eq!(rig.completions(Outcome::RefusedPolicy), 1);
        assert_clean(&rig.transfer(command::FBA_READ, 9, 2), 3);
        assert_eq!(rig.buffer(1024), fba::blocks(9, 2));
        assert_eq!(rig.completions(Outcome::Ok), 1);
        assert_eq!(rig.completions(Outcome::UnitCheck), 0, "counted once");
    });
}

#[test]
fn what_is_chained_before_a_refused_command_runs_and_nothing_behind_it() {
    on_each_driver(MEMORY, |bench| {
        let mut rig = Rig::new(bench, Policy::read_only());
        put_transfer(bench, AREA, command::FBA_READ, 4, 1, BUFFER);
        let second = PROGRAM + 3 * 8;
        let relocate = AREA + 0x200;
        bench.put(relocate.into(), &locate(READ, 1, 0));
        bench.put_program(
            second - 8,
            &[
                Ccw::new(command::FBA_READ, BUFFER, 512).with(CC),
                Ccw::new(command::FBA_WRITE, BUFFER, 512).with(CC),
                Ccw::new(command::FBA_LOCATE, relocate, 8).with(CC),
                Ccw::new(command::FBA_READ, BUFFER + 512, 512),
            ],
        );
        assert_refused(&rig.disk.run(&Orb::new(PROGRAM)), 4, 512, PROTECTED);
        assert_eq!(rig.buffer(512), fba::block(4), "the read before it");
        assert_eq!(rig.buffer(1024)[512..], [0xee; 512], "the read behind it");
        rig.assert_untouched();
    });
}

#[test]
fn commands_that_are_not_listed_are_rejected() {
    on_each_driver(MEMORY, |bench| {
        let mut rig = Rig::new(bench, Policy::allow_list([command::SENSE_ID, command::NOP]));
        let identify = Ccw::new(command::SENSE_ID, BUFFER, 7);
        assert_clean(&rig.run(&[Ccw::new(command::NOP, 0, 0).with(CC), identify]), 2);
        assert_eq!(rig.buffer(2), [0xff, 0x63]);
        let characteristics = Ccw::new(command::READ_DEVICE_CHARACTERISTICS, BUFFER + 64, 32);
        assert_refused(&rig.run(&[identify.with(CC), characteristics]), 2, 32, REJECTED);
        assert_refused(&rig.transfer(command::FBA_READ, 0, 1), 1, 16, REJECTED);
        assert_eq!(bench.peek(u64::from(BUFFER) + 64, 32), [0xee; 32]);
        assert_eq!(rig.completions(Outcome::RefusedPolicy), 2);
    });
}

#[test]
fn extents_are_reached_inside_and_refused_outside() {
    const ALLOWED: Range<u64> = 32..64;
    on_each_driver(MEMORY, |bench| {
        let mut rig = Rig::new(bench, Policy::extents(ALLOWED));
        for (first, blocks) in [(31, 2), (63, 2), (0, 8), (64, 1), (120, 8)] {
            for code in [command::FBA_READ, command::FBA_WRITE] {
                assert_refused(&rig.transfer(code, first, blocks), 1, 16, PROTECTED);
            }
        }
        // An extent inside, but a LOCATE that leaves it: the disk holds it to its extent.
        put_transfer(bench, AREA, command::FBA_READ, 40, 4, BUFFER);
        bench.put(u64::from(AREA) + 16, &locate(READ, 4, 2));
        assert_refused(&rig.disk.run(&Orb::new(PROGRAM)), 2, 0, REJECTED);
        assert_eq!(rig.buffer(0x1000), [0xee; 0x1000]);
        rig.assert_untouched();

        assert_clean(&rig.transfer(command::FBA_WRITE, 32, 8), 3);
        assert_clean(&rig.transfer(command::FBA_WRITE, 63, 1), 3);
        assert_eq!(rig.image.blocks(32, 8), [0xee; 8 * 512]);
        assert!(rig.image.blocks(40, 23) == fba::blocks(40, 23));
        assert_eq!(rig.image.blocks(63, 1), [0xee; 512]);
        assert!(rig.image.blocks(0, 32) == fba::blocks(0, 32));
        assert!(rig.image.blocks(64, 64) == fba::blocks(64, 64));
        assert_clean(&rig.transfer(command::FBA_READ, 40, 4), 3);
        assert_eq!(rig.buffer(2048), fba::blocks(40, 4));
    });
}

#[test]
fn without_an_allowed_extent_a_program_may_only_ask() {
    on_each_driver(MEMORY, |bench| {
        let mut rig = Rig::new(bench, Policy::extents(0..64));
        let identify = Ccw::new(command::SENSE_ID, BUFFER, 7);
        bench.put(AREA.into(), &extent(ONLY_READ, 0, 0, 7));
        bench.put(u64::from(AREA) + 16, &locate(READ, 1, 0));
        let define = Ccw::new(command::DEFINE_EXTENT, AREA, 16).with(CC);
        let find = Ccw::new(command::FBA_LOCATE, AREA + 16, 8).with(CC);
        let read = Ccw::new(command::FBA_READ, BUFFER, 512);
        assert_clean(&rig.run(&[identify]), 1);
        assert_refused(&rig.run(&[read]), 1, 512, PROTECTED);
        assert_refused(&rig.run(&[find, read]), 1, 8, PROTECTED);
        let late = [identify.with(CC), define, find, read];
        assert_refused(&rig.run(&late), 3, 8, PROTECTED);

        // Programs that may change themselves may only ask, whatever they define.
        let orb = Orb::new(PROGRAM);
        let orb = orb.with_flags(orb.flags() - OrbFlags::PREFETCH);
        assert_refused(&rig.disk.run(&orb), 2, 16, PROTECTED);
        assert_clean(&rig.run(&[define, find, read]), 3);
        assert_refused(&rig.disk.run(&orb), 1, 16, PROTECTED);
        bench.put_program(PROGRAM, &[identify]);
        assert_clean(&rig.disk.run(&orb), 1);
        assert_eq!(rig.completions(Outcome::RefusedPolicy), 5);
    });
}

#[test]
fn an_extent_holds_over_a_suspension() {
    on_each_driver(MEMORY, |bench| {
        let mut rig = Rig::new(bench, Policy::extents(0..64));
        let orb = Orb::new(PROGRAM);
        let orb = orb.with_flags(orb.flags() | OrbFlags::SUSPEND_CONTROL);
        let find = Ccw::new(command::FBA_LOCATE, AREA + 16, 8).with(CC);
        let outside = AREA + 0x200;
        bench.put(outside.into(), &extent(ONLY_READ, 64, 0, 7));
        let redefine = Ccw::new(command::DEFINE_EXTENT, outside, 16).with(CC);
        for (resumed, count) in [(find, None), (redefine, Some(16))] {
            put_transfer(bench, AREA, command::FBA_READ, 9, 1, BUFFER);
            bench.put_program(PROGRAM + 8, &[find.with(CcwFlags::SUSPEND)]);
            rig.disk.subchannel.submit(&orb, 1).expect("an empty ring takes a request");
            let told = rig.disk.completion();
            assert!(told.irb.scsw.flags().contains(ScswFlags::SUSPENDED), "{told:?}");
            bench.put_program(PROGRAM + 8, &[resumed]);
            assert_eq!(rig.disk.subchannel.rsch(), Cc::Cc0);
            let irb = rig.disk.completion().irb;
            match count {
                None => assert_clean(&irb, 3),
                Some(count) => assert_refused(&irb, 2, count, PROTECTED),
            }
        }
        assert_eq!(rig.buffer(512), fba::block(9));
        assert_eq!(rig.completions(Outcome::RefusedPolicy), 1);
    });
}

#[test]
fn programs_that_may_change_themselves_are_judged_too() {
    on_each_driver(MEMORY, |bench| {
        let mut rig = Rig::new(bench, Policy::read_only());
        put_transfer(bench, AREA, command::FBA_WRITE, 9, 2, BUFFER);
        let orb = Orb::new(PROGRAM);
        let irb = rig.disk.run(&orb.with_flags(orb.flags() - OrbFlags::PREFETCH));
        assert_refused(&irb, 3, 1024, PROTECTED);
        rig.assert_untouched();
        assert_eq!(rig.completions(Outcome::RefusedPolicy), 1);
    });
}

/// At most this many bytes to the disk at a time; extents are not looked at.
struct SmallWrites(u16);

impl Rule for SmallWrites {
    fn judge(&self, access: &Access) -> Verdict {
        assert_eq!(access.extent, None, "not asked for");
        match access.writes() && access.count > self.0 {
            true => Verdict::Reject,
            false => Verdict::Allow,
        }
    }
}

#[test]
fn a_rule_of_ones_own_joins_the_others() {
    on_each_driver(MEMORY, |bench| {
        let mut rig = Rig::new(bench, Policy::of(SmallWrites(1024)));
        assert_refused(&rig.transfer(command::FBA_WRITE, 5, 3), 3, 1536, REJECTED);
        rig.assert_untouched();
        assert_clean(&rig.transfer(command::FBA_WRITE, 5, 2), 3);
        assert_eq!(rig.image.blocks(5, 2), [0xee; 1024]);

        let policy = Policy::extents(0..8).and(Policy::allow_list([
            command::DEFINE_EXTENT,
            command::FBA_LOCATE,
            command::FBA_READ,
        ]));
        let mut rig = Rig::new(bench, policy);
        assert_clean(&rig.transfer(command::FBA_READ, 0, 8), 3);
        assert_refused(&rig.transfer(command::FBA_READ, 1, 8), 1, 16, PROTECTED);
        assert_refused(&rig.transfer(command::FBA_WRITE, 0, 8), 3, 4096, REJECTED);
    });
}

#[test]
fn a_null_device_under_read_only_still_gives_its_zeros() {
    on_each_driver(MEMORY, |bench| {
        let mut device = bench.attach_with(DeviceSpec::Null, Policy::read_only());
        bench.put(BUFFER.into(), &[0xee; 8]);
        bench.put_program(PROGRAM, &[Ccw::new(command::READ_IPL, BUFFER, 8)]);
        assert_clean(&device.run(&Orb::new(PROGRAM)), 1);
        assert_eq!(bench.peek(BUFFER.into(), 8), [0; 8]);
        bench.put_program(PROGRAM, &[Ccw::new(0x01, BUFFER, 8)]);
        assert_refused(&device.run(&Orb::new(PROGRAM)), 1, 8, PROTECTED);
    });
}
