//! An FBA disk as its guest sees it: data where it belongs, and the architected status for what is
//! wrong, on both drivers.

pub mod bench_guest;

use bench_guest::fba::{
    self, Image, MAY_WRITE, ONLY_READ, READ, WRITE, WRITE_VERIFY, extent, locate,
};
use bench_guest::{Bench, Device};
use vfio_ccw::architecture::{
    Ccw, CcwFlags, DeviceStatus, IrbHead, Orb, OrbFlags, SubchannelStatus, command,
};
use vfio_ccw::{DeviceSpec, Driver, DriverChoice, Service, ServiceError};

const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;
const CD: CcwFlags = CcwFlags::CHAIN_DATA;
const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;
const IDA: CcwFlags = CcwFlags::INDIRECT;

/// Where things stand in guest memory.
const PROGRAM: u32 = 0x1000;
const EXTENT: u32 = 0x2000;
const LOCATE: u32 = 0x2100;
const IDAL: u32 = 0x3000;
const BUFFER: u32 = 0x1_0000;

const BLOCKS: u32 = 128;
const MEMORY: usize = 1 << 20;

/// A disk with its image, in a guest.
struct Rig {
    bench: Bench,
    image: Image,
    disk: Device,
}

impl Rig {
    fn new(driver: Driver, read_only: bool) -> Option<Self> {
        let memory = bench_guest::memory(MEMORY);
        let builder = Service::builder().driver(DriverChoice::Only(driver));
        let service = match builder.build(memory.clone()) {
            Err(error @ ServiceError::IoUring(_)) => {
                println!("SKIPPED: {error}");
                return None;
            }
            service => service.expect("the service starts"),
        };
        let bench = Bench { memory, service };
        let image = Image::new(BLOCKS);
        let disk = bench.attach(DeviceSpec::Fba(image.volume(read_only)));
        Some(Rig { bench, image, disk })
    }

    /// Runs a program; its first CCW stands at [`PROGRAM`].
    fn run(&mut self, program: &[Ccw]) -> IrbHead {
        self.bench.put_program(PROGRAM, program);
        self.disk.run(&Orb::new(PROGRAM))
    }

    fn parameters(&self, extent: [u8; 16], locate: [u8; 8]) {
        self.bench.put(EXTENT.into(), &extent);
        self.bench.put(LOCATE.into(), &locate);
    }

    /// DEFINE EXTENT and LOCATE for `count` blocks from `first`, then `rest`.
    fn transfer(&mut self, operation: u8, first: u32, count: u16, rest: &[Ccw]) -> IrbHead {
        let mask = if operation == READ { ONLY_READ } else { MAY_WRITE };
        let last = u32::from(count) - 1;
        self.parameters(extent(mask, first, 0, last), locate(operation, count, 0));
        self.run(&[&[define_extent(), locate_ccw()], rest].concat())
    }

    fn buffer(&self, len: usize) -> Vec<u8> {
        self.bench.peek(BUFFER.into(), len)
    }

    /// Asserts that the disk works and that its image is untouched.
    #[track_caller]
    fn assert_untouched(&mut self) {
        assert!(self.image.blocks(0, BLOCKS) == fba::blocks(0, BLOCKS), "the image was written to");
        let read = Ccw::new(command::FBA_READ, BUFFER, 512);
        assert_clean(&self.transfer(READ, 5, 1, &[read]), 3);
        assert_eq!(self.buffer(512), fba::block(5));
    }
}

fn define_extent() -> Ccw {
    Ccw::new(command::DEFINE_EXTENT, EXTENT, 16).with(CC)
}

fn locate_ccw() -> Ccw {
    Ccw::new(command::FBA_LOCATE, LOCATE, 8).with(CC)
}

/// Runs `test` on a fresh disk on each driver.
fn on_both_drivers(read_only: bool, test: impl Fn(&mut Rig)) {
    for driver in [Driver::IoUring, Driver::Epoll] {
        if let Some(mut rig) = Rig::new(driver, read_only) {
            println!("on {driver}");
            test(&mut rig);
        }
    }
}

/// Channel end and device end after `ccws` CCWs, nothing left over.
#[track_caller]
fn assert_clean(irb: &IrbHead, ccws: u32) {
    assert!(irb.scsw.is_clean_end(), "{irb:?}");
    assert_eq!((irb.scsw.count(), irb.scsw.cpa()), (0, PROGRAM + ccws * 8), "{irb:?}");
}

/// Unit check at CCW number `ccws` with these sense bytes.
#[track_caller]
fn assert_unit_check(irb: &IrbHead, ccws: u32, sense: [u8; 2]) {
    let ended = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END;
    assert_eq!(irb.scsw.device_status(), ended | DeviceStatus::UNIT_CHECK, "{irb:?}");
    assert_eq!(irb.sense().len(), 24, "{irb:?}");
    assert_eq!(irb.sense()[..2], sense, "{irb:?}");
    assert_eq!(irb.scsw.cpa(), PROGRAM + ccws * 8, "{irb:?}");
}

const REJECTED: [u8; 2] = [0x80, 0];

#[test]
fn it_says_what_it_is() {
    on_both_drivers(false, |rig| {
        let irb = rig.run(&[
            Ccw::new(command::SENSE_ID, BUFFER, 7).with(CC),
            Ccw::new(command::READ_DEVICE_CHARACTERISTICS, BUFFER + 16, 32),
        ]);
        assert_clean(&irb, 2);
        assert_eq!(rig.buffer(7), [0xff, 0x63, 0x10, 0x80, 0x93, 0x36, 0x10]);
        let rdc = rig.bench.peek(u64::from(BUFFER) + 16, 32);
        assert_eq!(rdc[..4], [0x30, 0x08, 0x21, 0x11], "modes, features, class, type");
        assert_eq!(rdc[4..6], [2, 0], "bytes of a block");
        assert_eq!(rdc[14..18], BLOCKS.to_be_bytes());
        assert_eq!(rdc[18..], [0; 14]);

        // Asking for more than there is: an incorrect length, unless it is suppressed.
        let irb = rig.run(&[Ccw::new(command::SENSE_ID, BUFFER, 12)]);
        assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::INCORRECT_LENGTH);
        assert_eq!(irb.scsw.count(), 5);
        let irb = rig.run(&[Ccw::new(command::SENSE_ID, BUFFER, 12).with(SLI)]);
        assert!(irb.scsw.is_clean_end() && irb.scsw.count() == 5, "{irb:?}");
    });
}

#[test]
fn linux_reads_with_one_ccw_a_block_data_chained() {
    on_both_drivers(false, |rig| {
        // Backwards in memory, so that no two pieces run together.
        let address = |index: u32| BUFFER + (8 - index) * 0x1000;
        let mut reads: Vec<_> =
            (0..8).map(|index| Ccw::new(command::FBA_READ, address(index), 512).with(CD)).collect();
        reads[7].flags = CcwFlags::empty();
        assert_clean(&rig.transfer(READ, 40, 8, &reads), 10);
        for index in 0..8 {
            assert_eq!(rig.bench.peek(address(index).into(), 512), fba::block(40 + index));
        }
    });
}

#[test]
fn linux_reads_and_writes_with_a_locate_a_block() {
    on_both_drivers(false, |rig| {
        for (operation, code, mask) in
            [(WRITE_VERIFY, command::FBA_WRITE, MAY_WRITE), (READ, command::FBA_READ, ONLY_READ)]
        {
            rig.bench.put(EXTENT.into(), &extent(mask, 64, 0, 3));
            let mut program = vec![define_extent()];
            for index in 0..4 {
                let parameters = LOCATE + index * 8;
                rig.bench.put(parameters.into(), &locate(operation, 1, index));
                program.push(Ccw::new(command::FBA_LOCATE, parameters, 8).with(CC));
                program.push(Ccw::new(code, BUFFER + index * 512, 512).with(CC));
            }
            program[8].flags = CcwFlags::empty();
            if operation == WRITE_VERIFY {
                rig.bench.put(BUFFER.into(), &fba::blocks(1000, 4));
            } else {
                rig.bench.put(BUFFER.into(), &[0; 2048]);
            }
            assert_clean(&rig.run(&program), 9);
            assert_eq!(rig.buffer(2048), fba::blocks(1000, 4), "operation {operation}");
        }
        assert_eq!(rig.image.blocks(64, 4), fba::blocks(1000, 4));
        assert_eq!(rig.image.blocks(63, 1), fba::block(63));
        assert_eq!(rig.image.blocks(68, 1), fba::block(68));
    });
}

#[test]
fn direct_data_may_lie_anywhere() {
    on_both_drivers(false, |rig| {
        for address in [BUFFER, BUFFER + 1, BUFFER + 0xfff] {
            let read = Ccw::new(command::FBA_READ, address, 16 * 512);
            assert_clean(&rig.transfer(READ, 7, 16, &[read]), 3);
            assert_eq!(rig.bench.peek(address.into(), 16 * 512), fba::blocks(7, 16));
            assert_eq!(rig.bench.peek(u64::from(address) + 16 * 512, 1), [0]);
        }
        rig.bench.put(u64::from(BUFFER) + 3, &fba::blocks(500, 16));
        let write = Ccw::new(command::FBA_WRITE, BUFFER + 3, 16 * 512);
        assert_clean(&rig.transfer(WRITE, 30, 16, &[write]), 3);
        assert_eq!(rig.image.blocks(30, 16), fba::blocks(500, 16));
    });
}

#[test]
fn idals_of_every_format_scatter_and_gather() {
    on_both_drivers(false, |rig| {
        let base = OrbFlags::FORMAT_1 | OrbFlags::PREFETCH;
        let formats = [
            (base, 4, 2048),
            (base | OrbFlags::FORMAT_2_IDAWS | OrbFlags::IDAW_2K, 8, 2048),
            (base | OrbFlags::FORMAT_2_IDAWS, 8, 4096),
        ];
        for (round, (flags, size, block)) in formats.into_iter().enumerate() {
            // The first IDAW points into its block, the others to every other block, downwards.
            let mut bytes = vec![];
            let mut pieces: Vec<(u32, usize)> = vec![(BUFFER + 0x2_0000 + 0x200, block - 0x200)];
            let mut left = 16 * 512 - (block - 0x200);
            while left > 0 {
                let at = BUFFER + 0x2_0000 - pieces.len() as u32 * 2 * block as u32;
                pieces.push((at, left.min(block)));
                left -= left.min(block);
            }
            for (address, _) in &pieces {
                let word = u64::from(*address).to_be_bytes();
                bytes.extend_from_slice(&word[8 - size..]);
            }
            rig.bench.put(IDAL.into(), &bytes);
            let data: Vec<u8> = fba::blocks(700 + round as u32 * 16, 16);
            let mut rest = &data[..];
            for (address, len) in &pieces {
                rig.bench.put(u64::from(*address), &rest[..*len]);
                rest = &rest[*len..];
            }
            let orb = Orb::new(PROGRAM).with_flags(flags);
            rig.parameters(extent(MAY_WRITE, 48, 0, 15), locate(WRITE, 16, 0));
            let write = Ccw::new(command::FBA_WRITE, IDAL, 16 * 512).with(IDA);
            rig.bench.put_program(PROGRAM, &[define_extent(), locate_ccw(), write]);
            assert_clean(&rig.disk.run(&orb), 3);
            assert!(rig.image.blocks(48, 16) == data, "{flags:?}");

            for (address, len) in &pieces {
                rig.bench.put(u64::from(*address), &vec![0; *len]);
            }
            rig.parameters(extent(ONLY_READ, 48, 0, 15), locate(READ, 16, 0));
            let read = Ccw::new(command::FBA_READ, IDAL, 16 * 512).with(IDA);
            rig.bench.put_program(PROGRAM, &[define_extent(), locate_ccw(), read]);
            assert_clean(&rig.disk.run(&orb), 3);
            let back: Vec<u8> =
                pieces.iter().flat_map(|(at, len)| rig.bench.peek(u64::from(*at), *len)).collect();
            assert!(back == data, "{flags:?}");
        }
    });
}

#[test]
fn format_0_programs_run_too() {
    on_both_drivers(false, |rig| {
        rig.parameters(extent(ONLY_READ, 9, 0, 1), locate(READ, 2, 0));
        let read = Ccw::new(command::FBA_READ, BUFFER, 1024);
        for (index, ccw) in [define_extent(), locate_ccw(), read].into_iter().enumerate() {
            rig.bench.put(u64::from(PROGRAM) + index as u64 * 8, &ccw.to_format_0());
        }
        let flags = OrbFlags::PREFETCH | OrbFlags::FORMAT_2_IDAWS;
        assert_clean(&rig.disk.run(&Orb::new(PROGRAM).with_flags(flags)), 3);
        assert_eq!(rig.buffer(1024), fba::blocks(9, 2));
    });
}

#[test]
fn extents_must_lie_on_the_volume() {
    let extents = [
        extent(MAY_WRITE, 0, 0, BLOCKS),
        extent(MAY_WRITE, BLOCKS, 0, 0),
        extent(MAY_WRITE, BLOCKS - 1, 0, 1),
        extent(MAY_WRITE, 0, 5, 4),
        extent(MAY_WRITE, u32::MAX, 0, 0),
        extent(MAY_WRITE, u32::MAX, 0, 1),
        extent(MAY_WRITE, u32::MAX, 1, u32::MAX),
        extent(MAY_WRITE, 1, 0, u32::MAX),
        extent(MAY_WRITE, 0x8000_0000, 0, 0x8000_0000),
        // Masks: a reserved control, the customer engineer's field, reserved bits.
        extent(0x80, 0, 0, 0),
        extent(0x08, 0, 0, 0),
        extent(0x01, 0, 0, 0),
    ];
    on_both_drivers(false, |rig| {
        for extent in extents {
            rig.parameters(extent, locate(WRITE, 1, 0));
            let write = Ccw::new(command::FBA_WRITE, BUFFER, 512);
            let irb = rig.run(&[define_extent(), locate_ccw(), write]);
            assert_unit_check(&irb, 1, REJECTED);
        }
        rig.assert_untouched();
    });
}

#[test]
fn the_last_blocks_can_be_reached() {
    on_both_drivers(false, |rig| {
        let read = Ccw::new(command::FBA_READ, BUFFER, 1024);
        assert_clean(&rig.transfer(READ, BLOCKS - 2, 2, &[read]), 3);
        assert_eq!(rig.buffer(1024), fba::blocks(BLOCKS - 2, 2));
        // Logical block numbers may be anything that fits.
        let (first, last) = (u32::MAX - 1, u32::MAX);
        rig.parameters(extent(ONLY_READ, 3, first, last), locate(READ, 2, first));
        assert_clean(&rig.run(&[define_extent(), locate_ccw(), read]), 3);
        assert_eq!(rig.buffer(1024), fba::blocks(3, 2));
    });
}

#[test]
fn locates_must_lie_in_the_extent() {
    on_both_drivers(false, |rig| {
        let rows = [
            locate(READ, 5, 10),
            locate(READ, 1, 14),
            locate(READ, 1, 9),
            locate(READ, 0, 10),
            locate(READ, u16::MAX, 10),
            locate(READ, 2, u32::MAX),
            // Operations that are none.
            locate(0x00, 1, 10),
            locate(0x16, 1, 10),
            locate(0x0f, 1, 10),
        ];
        for located in rows {
            rig.parameters(extent(MAY_WRITE, 20, 10, 13), located);
            let read = Ccw::new(command::FBA_READ, BUFFER, 512);
            let irb = rig.run(&[define_extent(), locate_ccw(), read]);
            assert_unit_check(&irb, 2, REJECTED);
        }
        rig.assert_untouched();
    });
}

#[test]
fn commands_out_of_order_are_rejected() {
    on_both_drivers(false, |rig| {
        rig.parameters(extent(MAY_WRITE, 0, 0, 7), locate(READ, 1, 0));
        let read = Ccw::new(command::FBA_READ, BUFFER, 512);
        let write = Ccw::new(command::FBA_WRITE, BUFFER, 512);
        let nop = Ccw::new(command::NOP, 0, 0).with(CC);
        let rows: [(&str, &[Ccw], u32, u16); 8] = [
            ("LOCATE without an extent", &[locate_ccw(), read], 1, 0),
            ("READ without LOCATE", &[define_extent(), read], 2, 512),
            ("READ alone", &[read], 1, 512),
            ("WRITE after LOCATE for READ", &[define_extent(), locate_ccw(), write], 3, 512),
            ("READ not right after LOCATE", &[define_extent(), locate_ccw(), nop, read], 4, 512),
            ("two extents", &[define_extent(), define_extent(), locate_ccw(), read], 2, 0),
            (
                "two READs for one LOCATE",
                &[define_extent(), locate_ccw(), read.with(CC), read],
                4,
                512,
            ),
            (
                "a short DEFINE EXTENT",
                &[Ccw::new(command::DEFINE_EXTENT, EXTENT, 15).with(CC | SLI), locate_ccw()],
                1,
                0,
            ),
        ];
        for (what, program, ccws, residual) in rows {
            let irb = rig.run(program);
            assert_unit_check(&irb, ccws, REJECTED);
            assert_eq!(irb.scsw.count(), residual, "{what}: {irb:?}");
        }
        rig.parameters(extent(MAY_WRITE, 0, 0, 7), locate(WRITE, 1, 0));
        let irb = rig.run(&[define_extent(), locate_ccw(), read]);
        assert_unit_check(&irb, 3, REJECTED);
        // An extent does not live on into the next program.
        assert_unit_check(&rig.run(&[locate_ccw(), read]), 1, REJECTED);
        rig.assert_untouched();
    });
}

#[test]
fn unknown_commands_are_rejected_and_sense_tells_once() {
    on_both_drivers(false, |rig| {
        for code in [0x05, 0x0b, 0x12, 0x21, 0xa4, 0xff] {
            assert_unit_check(&rig.run(&[Ccw::new(code, BUFFER, 8).with(SLI)]), 1, REJECTED);
        }
        // The sense went with the unit check: there is none left to ask for.
        rig.bench.put(BUFFER.into(), &[0xee; 24]);
        assert_clean(&rig.run(&[Ccw::new(command::SENSE, BUFFER, 24)]), 1);
        assert_eq!(rig.buffer(24), [0; 24]);
    });
}

#[test]
fn a_read_only_volume_is_file_protected() {
    on_both_drivers(true, |rig| {
        for operation in [WRITE, WRITE_VERIFY] {
            let write = Ccw::new(command::FBA_WRITE, BUFFER, 512);
            let irb = rig.transfer(operation, 5, 1, &[write]);
            assert_unit_check(&irb, 2, [0x80, 0x04]);
        }
        rig.assert_untouched();
    });
}

#[test]
fn a_mask_that_inhibits_writes_does() {
    on_both_drivers(false, |rig| {
        for operation in [WRITE, WRITE_VERIFY] {
            rig.parameters(extent(ONLY_READ, 0, 0, 7), locate(operation, 1, 0));
            let write = Ccw::new(command::FBA_WRITE, BUFFER, 512);
            let irb = rig.run(&[define_extent(), locate_ccw(), write]);
            assert_unit_check(&irb, 2, REJECTED);
        }
        rig.assert_untouched();
    });
}

#[test]
fn a_write_of_nothing_makes_zeros() {
    on_both_drivers(false, |rig| {
        let write = Ccw::new(command::FBA_WRITE, 0, 0).with(SLI);
        assert_clean(&rig.transfer(WRITE_VERIFY, 16, 9, &[write]), 3);
        assert_eq!(rig.image.blocks(16, 9), [0; 9 * 512]);
        assert_eq!(rig.image.blocks(15, 1), fba::block(15));
        assert_eq!(rig.image.blocks(25, 1), fba::block(25));
        assert_eq!(std::fs::metadata(rig.image.path()).unwrap().len(), u64::from(BLOCKS) * 512);
    });
}

#[test]
fn a_short_write_pads_its_last_block() {
    on_both_drivers(false, |rig| {
        rig.bench.put(BUFFER.into(), &[0xab; 700]);
        let irb = rig.transfer(WRITE, 16, 3, &[Ccw::new(command::FBA_WRITE, BUFFER, 700)]);
        assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::INCORRECT_LENGTH, "{irb:?}");
        assert_eq!((irb.scsw.count(), irb.scsw.cpa()), (0, PROGRAM + 24), "{irb:?}");
        let written = rig.image.blocks(16, 2);
        assert_eq!(written[..700], [0xab; 700]);
        assert_eq!(written[700..], [0; 324]);
        assert_eq!(rig.image.blocks(18, 1), fba::block(18), "located, but not reached");
    });
}

#[test]
fn a_long_read_stops_at_the_located_blocks() {
    on_both_drivers(false, |rig| {
        rig.bench.put(BUFFER.into(), &[0xee; 1000]);
        let irb = rig.transfer(READ, 6, 1, &[Ccw::new(command::FBA_READ, BUFFER, 1000)]);
        assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::INCORRECT_LENGTH, "{irb:?}");
        assert_eq!((irb.scsw.count(), irb.scsw.cpa()), (488, PROGRAM + 24), "{irb:?}");
        let read = rig.buffer(1000);
        assert_eq!(read[..512], fba::block(6));
        assert_eq!(read[512..], [0xee; 488]);
    });
}

#[test]
fn data_outside_memory_is_a_program_check() {
    on_both_drivers(false, |rig| {
        let end = MEMORY as u32;
        let irb = rig.transfer(READ, 6, 4, &[Ccw::new(command::FBA_READ, end - 512, 2048)]);
        assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CHECK, "{irb:?}");
        assert_eq!((irb.scsw.count(), irb.scsw.cpa()), (1536, PROGRAM + 24), "{irb:?}");
        assert_eq!(rig.bench.peek(u64::from(end) - 512, 512), fba::block(6));
        rig.assert_untouched();
    });
}

#[test]
fn an_image_that_was_cut_off_is_an_equipment_check() {
    on_both_drivers(false, |rig| {
        rig.image.truncate(64);
        for (first, count) in [(100, 4), (62, 4)] {
            let read = Ccw::new(command::FBA_READ, BUFFER, count * 512);
            let irb = rig.transfer(READ, first, count, &[read]);
            assert_unit_check(&irb, 3, [0x10, 0]);
            assert_eq!(irb.scsw.count(), count * 512, "nothing was transferred: {irb:?}");
        }
        let read = Ccw::new(command::FBA_READ, BUFFER, 512);
        assert_clean(&rig.transfer(READ, 63, 1, &[read]), 3);
        assert_eq!(rig.buffer(512), fba::block(63));
    });
}

#[test]
fn the_address_in_the_status_is_the_guests_own_after_a_transfer_in_channel() {
    on_both_drivers(false, |rig| {
        let elsewhere = PROGRAM + 0x400;
        rig.bench.put_program(elsewhere, &[Ccw::new(command::FBA_READ, BUFFER, 100)]);
        let irb = rig.transfer(READ, 6, 1, &[Ccw::new(command::TIC, elsewhere, 0)]);
        assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::INCORRECT_LENGTH, "{irb:?}");
        assert_eq!((irb.scsw.count(), irb.scsw.cpa()), (0, elsewhere + 8), "{irb:?}");
    });
}
