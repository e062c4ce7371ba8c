//! Guest memory is hostile: whatever stands in it, and whoever rewrites it meanwhile, every start
//! ends once, nothing panics, and nothing outside the guest's memory is touched.

pub mod bench_guest;

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bench_guest::fba::{self, Image, MAY_WRITE, ONLY_READ, extent, locate};
use bench_guest::fenced::Fenced;
use bench_guest::{Bench, Device};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, OrbFlags, command};
use vfio_ccw::{DeviceSpec, Driver, DriverChoice, Service, ServiceError};
use vfio_ccw_metrics::CounterKind;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromBytes;

const MEMORY: usize = 64 << 10;
const BLOCKS: u32 = 64;

/// Devices over fenced guest memory. Fields drop in this order: the service before its memory.
struct Rig {
    devices: Vec<Device>,
    bench: Bench,
    fenced: Fenced,
    image: Image,
}

impl Rig {
    fn new(driver: Driver) -> Option<Self> {
        let fenced = Fenced::new(MEMORY);
        let builder = Service::builder().driver(DriverChoice::Only(driver));
        let service = match builder.build(fenced.memory.clone()) {
            Err(error @ ServiceError::IoUring(_)) => {
                println!("SKIPPED: {error}");
                return None;
            }
            service => service.expect("the service starts"),
        };
        let bench = Bench { memory: fenced.memory.clone(), service };
        let image = Image::new(BLOCKS);
        let devices = [DeviceSpec::Null, image.disk()].map(|spec| bench.attach(spec)).into();
        Some(Rig { devices, bench, fenced, image })
    }

    /// Asserts that the service still does its work, and that the fences stand.
    fn assert_healthy(&mut self) {
        let area = 0x2000;
        fba::put_transfer(&self.bench, area, command::FBA_WRITE, 3, 4, 0x8000);
        self.bench.put(0x8000, &fba::blocks(90, 4));
        for device in &mut self.devices {
            let irb = device.run(&Orb::new(area + fba::CCWS));
            assert!(irb.scsw.is_clean_end(), "{irb:?}");
        }
        assert_eq!(self.image.blocks(3, 4), fba::blocks(90, 4));
        let bytes = std::fs::metadata(self.image.path()).unwrap().len();
        assert_eq!(bytes, u64::from(BLOCKS) * 512, "the image has its size");
        assert!(self.fenced.is_intact(), "something wrote outside guest memory");
    }
}

/// An address that is likely to matter: on a CCW, at an edge of memory, or anything.
fn address() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => (0..32u32).prop_map(|index| 0x1000 + index * 8),
        3 => (0..16u32).prop_map(|page| page * 0x1000),
        2 => (0..64u32).prop_map(|back| MEMORY as u32 - back),
        1 => prop_oneof![Just(0x00ff_ffff), Just(0x0100_0000), Just(0x7fff_ffff), Just(u32::MAX)],
        1 => any::<u32>(),
    ]
}

/// A CCW that gets past the first look of the channel; a TIC leads onward, so that programs end.
fn likely_ccw(index: u32) -> impl Strategy<Value = Ccw> {
    let codes = prop_oneof![
        Just(command::NOP),
        Just(command::SENSE),
        Just(command::READ_IPL),
        Just(command::DEFINE_EXTENT),
        Just(command::FBA_LOCATE),
        Just(command::FBA_READ),
        Just(command::FBA_WRITE),
        Just(command::SENSE_ID),
        any::<u8>().prop_filter("no TIC", |code| code & 0x0f != 0x08),
    ];
    let counts = prop_oneof![Just(8), Just(16), Just(512), Just(0), Just(u16::MAX), any::<u16>()];
    let flags = prop_oneof![
        4 => Just(CcwFlags::CHAIN_COMMAND | CcwFlags::SUPPRESS_LENGTH),
        2 => Just(CcwFlags::CHAIN_DATA),
        2 => Just(CcwFlags::CHAIN_COMMAND | CcwFlags::INDIRECT),
        1 => any::<u8>().prop_map(CcwFlags::from_bits_retain),
    ];
    let other = (codes, address(), counts, flags)
        .prop_map(|(code, address, count, flags)| Ccw::new(code, address, count).with(flags));
    let chain = CcwFlags::CHAIN_COMMAND | CcwFlags::SUPPRESS_LENGTH;
    // What a disk expects here, so that some programs get as far as the data.
    let expected = match index {
        0 => Just(Ccw::new(command::DEFINE_EXTENT, 0x2000, 16)).boxed(),
        1 => Just(Ccw::new(command::FBA_LOCATE, 0x3000, 8)).boxed(),
        _ => prop_oneof![
            Just(Ccw::new(command::FBA_READ, 0x4000, 2048).with(CcwFlags::INDIRECT)),
            Just(Ccw::new(command::FBA_WRITE, 0x8000, 1024)),
        ]
        .boxed(),
    }
    .prop_map(move |ccw| ccw.with(chain));
    let onward =
        (1..8u32).prop_map(move |step| Ccw::new(command::TIC, 0x1000 + (index + step) * 8, 0));
    prop_oneof![3 => other, 8 => expected, 1 => onward]
}

/// Pieces of memory: where they go and what they are.
type Pieces = Vec<(u32, Vec<u8>)>;

/// A program at 0x1000 with likely CCWs, and parameters that a disk takes where commands look for them.
fn likely_program() -> impl Strategy<Value = Pieces> {
    let ccws: Vec<_> = (0..16).map(|index| likely_ccw(index).boxed()).collect();
    let operations = prop_oneof![Just(fba::READ), Just(fba::WRITE), any::<u8>()];
    let counts = prop_oneof![3 => 1..4u16, 1 => any::<u16>()];
    let parameters = (operations, 0..BLOCKS, 0..BLOCKS / 2, counts);
    let idaws = prop::collection::vec(prop_oneof![address().prop_map(u64::from), any::<u64>()], 8);
    (ccws, parameters, idaws).prop_map(|(ccws, (operation, at, last, count), idaws)| {
        let mut pieces: Pieces = ccws
            .iter()
            .enumerate()
            .map(|(index, ccw)| (0x1000 + index as u32 * 8, ccw.to_format_1().to_vec()))
            .collect();
        pieces.push((0x2000, extent(MAY_WRITE, at, 0, last).to_vec()));
        pieces.push((0x3000, locate(operation, count, 0).to_vec()));
        pieces.push((0x4000, idaws.iter().flat_map(|idaw| idaw.to_be_bytes()).collect()));
        pieces
    })
}

/// Bytes without any meaning, all over the place.
fn noise() -> impl Strategy<Value = Pieces> {
    let piece = (0..MEMORY as u32 / 8 - 16, prop::collection::vec(any::<u8>(), 8..128));
    prop::collection::vec(piece.prop_map(|(word, bytes)| (word * 8, bytes)), 0..24)
}

/// An ORB: mostly one that passes START SUBCHANNEL's checks, sometimes anything.
fn orb() -> impl Strategy<Value = Orb> {
    let cpa = prop_oneof![3 => Just(0x1000), 1 => address()];
    let orderly =
        (any::<u32>(), prop::bool::weighted(0.8), cpa).prop_map(|(word1, format_1, cpa)| {
            let word1 = (word1 & !0x0084_007f) | 0x8000 | u32::from(format_1) << 23;
            let words = [1, word1, cpa & 0x7fff_ffff];
            Orb::read_from_bytes(words.map(u32::to_be_bytes).as_flattened()).expect("12 bytes")
        });
    let anything = any::<[u8; 12]>().prop_map(|bytes| Orb::read_from_bytes(&bytes).expect("12"));
    // A program that suspends itself waits to be resumed, which nobody does here.
    prop_oneof![5 => orderly, 1 => anything]
        .prop_map(|orb: Orb| orb.with_flags(orb.flags() - OrbFlags::SUSPEND_CONTROL))
}

/// Runs programs on both devices and returns how many bytes the disk moved for them.
fn try_programs(driver: Driver, pieces: impl Strategy<Value = Pieces>, cases: u32) -> Option<u64> {
    let rig = Rig::new(driver)?;
    let rig = RefCell::new(rig);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&(pieces, orb()), |(pieces, orb)| {
        let Rig { devices, bench, .. } = &mut *rig.borrow_mut();
        for device in devices {
            for (at, bytes) in &pieces {
                bench.put((*at).into(), bytes);
            }
            if orb.check().is_err() {
                prop_assert!(device.subchannel.submit(&orb, 0).is_err());
                continue;
            }
            // It asserts that there is exactly one end.
            let irb = device.run(&orb);
            prop_assert!(irb.scsw.flags().bits() & 1 == 1, "status is pending: {:?}", irb);
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    let totals = rig.borrow().bench.service.totals();
    rig.borrow_mut().assert_healthy();
    Some(totals.counter(CounterKind::ReadBytes) + totals.counter(CounterKind::WrittenBytes))
}

#[test]
fn programs_of_random_bytes() {
    for driver in [Driver::IoUring, Driver::Epoll] {
        try_programs(driver, noise(), 400);
    }
}

#[test]
fn programs_that_are_nearly_right() {
    for driver in [Driver::IoUring, Driver::Epoll] {
        if let Some(moved) = try_programs(driver, likely_program(), 1500) {
            assert!(moved > 0, "no program got as far as the data");
            println!("{driver}: {moved} bytes moved");
        }
    }
}

/// What a hostile vCPU writes over programs that run: a small generator, so that a failure can be
/// repeated.
struct Scribbler(u64);

impl Scribbler {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    /// Changes one CCW, IDAW or parameter word to something else that is nearly right.
    fn scribble(&mut self, bench: &Bench) {
        let (at, word) = match self.next(4) {
            0 | 1 => {
                let index = self.next(8) as u32;
                let address = [0x4000, 0x8000, 0xfff8, 0x7fff_fff8, 0x2000][self.next(5) as usize];
                let codes =
                    [command::FBA_READ, command::FBA_WRITE, command::FBA_LOCATE, 0x63, 0x00];
                let ccw = match self.next(6) {
                    // Onward only: a program that loops would run, and be waited for, for long.
                    0 => Ccw::new(command::TIC, 0x1000 + (index + 1) * 8, 0),
                    _ => Ccw::new(codes[self.next(5) as usize], address, self.next(4096) as u16)
                        .with(CcwFlags::from_bits_retain(self.next(256) as u8)),
                };
                (0x1000 + u64::from(index) * 8, ccw.to_format_1())
            }
            2 => {
                let idaws = [0x5000, 0x6000, 0xf800, 0x1_0000, 0x6004, u64::MAX];
                (0x4000 + self.next(8) * 8, idaws[self.next(6) as usize].to_be_bytes())
            }
            _ => (0x2000 + self.next(3) * 8, self.next(u64::MAX).to_be_bytes()),
        };
        bench.memory.write_slice(&word, GuestAddress(at)).expect("inside guest memory");
    }
}

/// A program that is right: DEFINE EXTENT, LOCATE, READ through an IDAL, in two data-chained CCWs.
fn put_right_program(bench: &Bench) {
    bench.put(0x2000, &extent(ONLY_READ, 0, 0, 15));
    bench.put(0x2010, &locate(fba::READ, 16, 0));
    for index in 0..8u64 {
        bench.put(0x4000 + index * 8, &(0x5000 + index * 0x1000).to_be_bytes());
    }
    let chain = CcwFlags::CHAIN_COMMAND;
    let read = |idal| Ccw::new(command::FBA_READ, idal, 4096).with(CcwFlags::INDIRECT);
    bench.put_program(
        0x1000,
        &[
            Ccw::new(command::DEFINE_EXTENT, 0x2000, 16).with(chain),
            Ccw::new(command::FBA_LOCATE, 0x2010, 8).with(chain),
            read(0x4000).with(CcwFlags::CHAIN_DATA),
            read(0x4008),
        ],
    );
}

#[test]
fn programs_that_change_while_they_run() {
    for driver in [Driver::IoUring, Driver::Epoll] {
        let Some(mut rig) = Rig::new(driver) else {
            continue;
        };
        let over = AtomicBool::new(false);
        let Rig { devices, bench, .. } = &mut rig;
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut scribbler = Scribbler(0x9e37_79b9_7f4a_7c15);
                // Relaxed: the join orders what matters.
                while !over.load(Ordering::Relaxed) {
                    scribbler.scribble(bench);
                }
            });
            let _over = SetWhenDropped(&over);
            for start in 0..1000 {
                if start % 8 == 0 {
                    put_right_program(bench);
                }
                for device in &mut *devices {
                    device.run(&Orb::new(0x1000));
                }
            }
        });
        rig.assert_healthy();
    }
}

/// Ends the scribbling, also where an assertion fails.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        // Relaxed: as where it is read.
        self.0.store(true, Ordering::Relaxed);
    }
}
