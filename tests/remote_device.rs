//! Devices that a server has, through a whole service: programs over the lane and by messages, their status,
//! stopping and suspension, memory that comes and goes, and what is refused.

pub mod bench_guest;
pub mod served;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bench_guest::fba::{self, Image, MAY_WRITE, ONLY_READ, READ, WRITE, extent, locate};
use bench_guest::gated::{Gate, TRANSFER};
use bench_guest::rewriting::{Flip, Tally, while_rewritten};
use bench_guest::{Bench, Device, STALL};
use served::{BOTH_WAYS, Rig, Served, Way, mappings, region};
use vfio_ccw::architecture::{
    Ccw, CcwFlags, DeviceStatus, IrbHead, Orb, OrbFlags, PmcwFlags, ScswFlags, SubchannelStatus,
    command,
};
use vfio_ccw::backend::remote::{RemoteDevice, RemoteError, ServerFault};
use vfio_ccw::channel_subsystem::{Data, Device as Model, Ending, Sense};
use vfio_ccw::server::{ServedDevice, Server, ServerError};
use vfio_ccw::service::AttachError;
use vfio_ccw::{
    Cc, Completion, Completions, Delivery, DeviceSpec, Driver, DriverChoice, MemoryError, Policy,
    SaveError, Service, Silent, SubmitError, WaitStrategy,
};
use vfio_ccw_metrics::{CounterKind, DeviceClass, Outcome, Registry};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;
const CD: CcwFlags = CcwFlags::CHAIN_DATA;
const IDA: CcwFlags = CcwFlags::INDIRECT;
const PCI: CcwFlags = CcwFlags::PROGRAM_CONTROLLED;
const SUSPEND: CcwFlags = CcwFlags::SUSPEND;

const MEMORY: usize = 1 << 20;
const PROGRAM: u32 = 0x1000;
/// A NOP alone, where a test says so.
const SHORT: u32 = 0x8000;
const BUFFER: u32 = 0x1_0000;

/// What SENSE ID says of the null device.
const NULL: [u8; 7] = [0xff, 0xf0, 0xf0, 1, 0xf0, 0xf0, 1];

/// What buffers hold before anything is read into them.
const BLANK: u8 = 0xee;

const NOP: Ccw = Ccw { command: command::NOP, flags: CcwFlags::empty(), count: 0, address: 0 };

fn read(at: u32) -> Ccw {
    Ccw::new(command::READ_IPL, at, TRANSFER as u16)
}

/// Null devices from number 0x1000 on.
fn nulls(count: u16) -> Vec<ServedDevice> {
    (0..count).map(|number| ServedDevice::null(0x1000 + number)).collect()
}

fn null_rig(way: Way) -> Rig {
    Rig::new(way, MEMORY, nulls(1))
}

/// A rig with a device whose transfers wait at a gate. At [`PROGRAM`] stand a NOP and two transfers, at [`SHORT`] a
/// NOP.
fn gated_rig(way: Way) -> (Rig, Arc<Gate>) {
    let gate = Gate::shut();
    let rig = Rig::new(way, MEMORY, vec![gate.served(0x1000)]);
    let program = [NOP.with(CC), read(BUFFER).with(CC), read(BUFFER + 0x1000)];
    rig.bench.put_program(PROGRAM, &program);
    rig.bench.put_program(SHORT, &[NOP]);
    (rig, gate)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(STALL, future).await.expect("it ends") })
}

/// Channel end and device end behind `cpa`, nothing left over.
#[track_caller]
fn assert_clean(irb: &IrbHead, cpa: u32) {
    assert!(irb.scsw.is_clean_end() && irb.scsw.is_final(), "{irb:?}");
    assert!(irb.scsw.subchannel_status().is_empty(), "{irb:?}");
    assert_eq!((irb.scsw.count(), irb.scsw.cpa()), (0, cpa), "{irb:?}");
}

#[track_caller]
fn assert_program_check(irb: &IrbHead, cpa: u32) {
    assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CHECK, "{irb:?}");
    assert!(irb.scsw.is_final(), "{irb:?}");
    assert_eq!(irb.scsw.cpa(), cpa, "{irb:?}");
}

/// Status of a function that was performed, and nothing else of function and activity control.
#[track_caller]
fn assert_performed(irb: &IrbHead, function: ScswFlags) {
    let controls = ScswFlags::FUNCTION_CONTROL | ScswFlags::ACTIVITY_CONTROL;
    assert_eq!(irb.scsw.flags() & controls, function, "{irb:?}");
    let status = irb.scsw.flags() & ScswFlags::STATUS_CONTROL;
    assert_eq!(status, ScswFlags::STATUS_PENDING, "{irb:?}");
}

// Programs and their status.

#[test]
fn sense_id_by_instruction_by_ring_and_by_future() {
    for way in BOTH_WAYS {
        let rig = Rig::new(way, MEMORY, nulls(3));
        let identify = |at| {
            rig.bench.put(at, &[BLANK; 8]);
            rig.bench.put_program(PROGRAM, &[Ccw::new(command::SENSE_ID, at as u32, 7)]);
            Orb::new(PROGRAM)
        };
        let wired = rig.wire(0);
        assert_eq!(wired.subchannel.ssch(&identify(0x2000)), Ok(Cc::Cc0));
        drop(wired.interruption());
        assert_clean(&wired.status(), PROGRAM + 8);
        assert_eq!(wired.subchannel.tsch().0, Cc::Cc1);
        let mut ring = rig.attach(1);
        assert_clean(&ring.run(&identify(0x2100)), PROGRAM + 8);
        let future = rig.bench.service.attach(rig.device(2), Delivery::Future).unwrap();
        assert_clean(&block_on(future.start(&identify(0x2200)).unwrap()), PROGRAM + 8);
        for at in [0x2000, 0x2100, 0x2200] {
            assert_eq!(rig.bench.peek(at, 7), NULL);
            assert_eq!(rig.bench.peek(at + 7, 1), [BLANK]);
        }
    }
}

/// Threads that this one starts share a processor: who is sent something often runs before the sender goes on.
fn share_a_processor() {
    // SAFETY: a set of processors that is zeros is one without any.
    // Test: `what_is_started_before_a_device_is_set_up_runs_when_it_is`.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let bytes = size_of_val(&set);
    // SAFETY: both point to `bytes` bytes that outlive the calls. Test: as above.
    unsafe {
        assert_eq!(libc::sched_getaffinity(0, bytes, &mut set), 0);
        let first = (0..libc::CPU_SETSIZE as usize).find(|cpu| libc::CPU_ISSET(*cpu, &set));
        libc::CPU_ZERO(&mut set);
        libc::CPU_SET(first.expect("it runs on one"), &mut set);
        assert_eq!(libc::sched_setaffinity(0, bytes, &set), 0);
    }
}

#[test]
fn what_is_started_before_a_device_is_set_up_runs_when_it_is() {
    share_a_processor();
    for way in BOTH_WAYS {
        // The shard sleeps as soon as it can: who has the connection must see to it that it hears of the end.
        let served = Served::new(nulls(1));
        for _ in 0..100 {
            let builder = Service::builder().wait(WaitStrategy::Sleep);
            let bench = served::bench(builder, MEMORY);
            bench.put_program(SHORT, &[NOP]);
            let mut device = bench.attach(DeviceSpec::remote(served.connect(0, way)));
            assert_clean(&device.run(&Orb::new(SHORT)), SHORT + 8);
        }
    }
}

#[test]
fn number_and_path_are_those_of_the_server() {
    for way in BOTH_WAYS {
        let rig = Rig::new(way, MEMORY, nulls(2));
        let wired = rig.wire(1);
        let pmcw = wired.subchannel.stsch().pmcw;
        assert_eq!(pmcw.devno.get(), 0x1001);
        assert_eq!(pmcw.chpid, [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((pmcw.pim, pmcw.pam, pmcw.lpm), (0x80, 0x80, 0x80));
        assert!(pmcw.flags().contains(PmcwFlags::ENABLED | PmcwFlags::DEVICE_VALID));
    }
}

#[test]
fn sense_of_a_unit_check_arrives_whole() {
    /// Has always the same sense.
    struct Complaining;

    fn complaint() -> [u8; 24] {
        std::array::from_fn(|index| 0x40 | index as u8)
    }

    impl Model for Complaining {
        fn class(&self) -> DeviceClass {
            DeviceClass::Other
        }

        fn begin(&mut self) {}

        async fn command(&mut self, code: u8, _data: &mut Data<'_>) -> Ending {
            if code == command::NOP { Ending::immediate() } else { Ending::unit_check() }
        }

        fn take_sense(&mut self) -> Sense {
            Sense::of_bytes(&complaint()).expect("24 bytes")
        }
    }

    for way in BOTH_WAYS {
        let rig = Rig::new(way, MEMORY, vec![ServedDevice::model(0x1000, || Complaining)]);
        let mut device = rig.attach(0);
        rig.bench.put_program(PROGRAM, &[NOP.with(CC), read(BUFFER).with(CC), NOP]);
        rig.bench.put_program(SHORT, &[NOP]);
        for _ in 0..3 {
            let irb = device.run(&Orb::new(PROGRAM));
            let ended = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END;
            assert_eq!(irb.scsw.device_status(), ended | DeviceStatus::UNIT_CHECK, "{irb:?}");
            assert_eq!(irb.sense(), complaint());
            assert_eq!(irb.scsw.cpa(), PROGRAM + 16);
            // It does not stay for what comes next.
            let irb = device.run(&Orb::new(SHORT));
            assert_clean(&irb, SHORT + 8);
            assert!(irb.sense().is_empty(), "{irb:?}");
        }
    }
}

#[test]
fn sense_arrives_whole_from_many_devices_at_once() {
    for way in BOTH_WAYS {
        let builder = Service::builder().wait(WaitStrategy::Spin);
        let rig = Rig::with(way, builder, MEMORY, nulls(4));
        // No command of the null device.
        rig.bench.put_program(PROGRAM, &[NOP.with(CC), Ccw::new(0x14, BUFFER, 1)]);
        let mut devices: Vec<_> = (0..4).map(|number| rig.attach(number)).collect();
        thread::scope(|scope| {
            for device in &mut devices {
                scope.spawn(|| {
                    for round in 0..500 {
                        for turn in 0..16 {
                            device.subchannel.submit(&Orb::new(PROGRAM), turn).unwrap();
                        }
                        for turn in 0..16 {
                            let Completion { user_data, irb, .. } = device.completion();
                            let status = irb.scsw.device_status();
                            assert_eq!(user_data, turn);
                            assert!(status.contains(DeviceStatus::UNIT_CHECK), "{round}: {irb:?}");
                            assert_eq!((irb.sense().len(), irb.sense()[0]), (24, 0x80), "{irb:?}");
                        }
                    }
                });
            }
        });
    }
}

/// Runs `test` on a disk that a server with this driver has, where that works here.
fn on_each_driver(way: Way, test: impl Fn(&Rig, &Image)) {
    for driver in [Driver::IoUring, Driver::Epoll] {
        let image = Image::new(256);
        let devices = vec![ServedDevice::fba(0x1000, image.volume(false))];
        let served = Served::with(Server::new().driver(DriverChoice::Only(driver)), devices);
        let served = match served {
            Err(error @ ServerError::IoUring(_)) => {
                println!("SKIPPED: {error}");
                continue;
            }
            served => served.expect("the server starts"),
        };
        println!("{way:?}, server on {driver}");
        test(&Rig { bench: served::bench(Service::builder(), MEMORY), served, way }, &image);
    }
}

#[test]
fn blocks_go_to_the_volume_and_come_back_through_indirect_lists() {
    const BLOCKS: u16 = 32;
    const IDAL: u32 = 0x3000;
    for way in BOTH_WAYS {
        on_each_driver(way, |rig, image| {
            let (bench, mut disk) = (&rig.bench, rig.attach(0));
            let orb = Orb::new(PROGRAM);
            let orb = orb.with_flags(orb.flags() | OrbFlags::FORMAT_2_IDAWS);
            // Every other frame, downwards, the first one from its middle on.
            let pieces: Vec<(u32, usize)> = (0..5u32)
                .map(|index| (BUFFER + (5 - index) * 0x2000, 4096))
                .map(|(at, len)| if at == BUFFER + 0xa000 { (at + 2048, 2048) } else { (at, len) })
                .map(|(at, len)| if at == BUFFER + 0x2000 { (at, len / 2) } else { (at, len) })
                .collect();
            let idal: Vec<u8> =
                pieces.iter().flat_map(|(at, _)| u64::from(*at).to_be_bytes()).collect();
            bench.put(IDAL.into(), &idal);
            let put = |mask, operation, code| {
                bench.put(0x2000, &extent(mask, 64, 0, u32::from(BLOCKS) - 1));
                bench.put(0x2010, &locate(operation, BLOCKS, 0));
                let transfer = Ccw::new(code, IDAL, BLOCKS * 512).with(IDA);
                let program = [
                    Ccw::new(command::DEFINE_EXTENT, 0x2000, 16).with(CC),
                    Ccw::new(command::FBA_LOCATE, 0x2010, 8).with(CC),
                    transfer,
                ];
                bench.put_program(PROGRAM, &program);
            };
            let data = fba::blocks(7000, BLOCKS.into());
            let mut rest = &data[..];
            for (at, len) in &pieces {
                let (piece, more) = rest.split_at(*len);
                bench.put(u64::from(*at), piece);
                rest = more;
            }
            assert!(rest.is_empty());
            put(MAY_WRITE, WRITE, command::FBA_WRITE);
            assert_clean(&disk.run(&orb), PROGRAM + 24);
            assert!(image.blocks(64, BLOCKS.into()) == data);
            assert_eq!(image.blocks(63, 1), fba::block(63));
            assert_eq!(image.blocks(64 + u32::from(BLOCKS), 1), fba::block(64 + u32::from(BLOCKS)));

            pieces.iter().for_each(|(at, len)| bench.put(u64::from(*at), &vec![BLANK; *len]));
            put(ONLY_READ, READ, command::FBA_READ);
            assert_clean(&disk.run(&orb), PROGRAM + 24);
            let back: Vec<u8> =
                pieces.iter().flat_map(|(at, len)| bench.peek(u64::from(*at), *len)).collect();
            assert!(back == data);
        });
    }
}

#[test]
fn a_thousand_ccws_are_one_program() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let mut device = rig.attach(0);
        rig.bench.put(BUFFER.into(), &[BLANK; 16 * 1000 + 1]);
        for flags in [CC, CD] {
            let reads = (0..1000).map(|index| Ccw::new(command::READ_IPL, BUFFER + 16 * index, 16));
            let mut reads: Vec<_> = reads.map(|read| read.with(flags)).collect();
            reads[999].flags = CcwFlags::empty();
            rig.bench.put_program(PROGRAM, &reads);
            rig.bench.put(BUFFER.into(), &[BLANK; 16 * 1000]);
            assert_clean(&device.run(&Orb::new(PROGRAM)), PROGRAM + 8 * 1000);
            assert_eq!(rig.bench.peek(BUFFER.into(), 16 * 1000), [0; 16 * 1000]);
            assert_eq!(rig.bench.peek(u64::from(BUFFER) + 16 * 1000, 1), [BLANK]);
        }
    }
}

#[test]
fn a_program_check_names_the_guests_ccw() {
    let (elsewhere, outside) = (0x5000, MEMORY as u32);
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let (mut device, mut here) = (rig.attach(0), rig.bench.attach(DeviceSpec::Null));
        let mut run = |program: &[Ccw]| {
            rig.bench.put_program(PROGRAM, program);
            let irb = device.run(&Orb::new(PROGRAM));
            let local = here.run(&Orb::new(PROGRAM));
            assert_eq!((irb.scsw, irb.esw), (local.scsw, local.esw), "as of a device here");
            irb
        };
        // Data, half of it in memory.
        let irb = run(&[NOP.with(CC), read(outside - 32)]);
        assert_program_check(&irb, PROGRAM + 16);
        assert_eq!(irb.scsw.count(), 32, "{irb:?}");
        // A CCW behind a transfer in channel, in memory and not.
        rig.bench.put_program(elsewhere, &[NOP.with(CC), read(outside)]);
        let irb = run(&[read(BUFFER).with(CC), Ccw::new(command::TIC, elsewhere, 0)]);
        assert_program_check(&irb, elsewhere + 16);
        let irb = run(&[read(BUFFER).with(CC), Ccw::new(command::TIC, outside, 0)]);
        assert_program_check(&irb, PROGRAM + 16);
        // An address list.
        assert_program_check(&run(&[read(outside).with(IDA)]), PROGRAM + 8);
        // A command that is none.
        let irb = run(&[NOP.with(CC), NOP.with(CC), Ccw::new(0, 0, 1)]);
        assert_program_check(&irb, PROGRAM + 24);
        assert_clean(&run(&[NOP]), PROGRAM + 8);
    }
}

/// Attaches a disk that may only be read.
fn attach_protected(rig: &Rig) -> Device {
    let disk = rig.served.connect(0, rig.way).with_class(DeviceClass::Fba);
    rig.bench.attach_with(DeviceSpec::remote(disk), Policy::read_only())
}

#[test]
fn a_policy_protects_a_disk_that_is_elsewhere() {
    for way in BOTH_WAYS {
        let image = Image::new(64);
        let devices = vec![ServedDevice::fba(0x1000, image.volume(false))];
        let rig = Rig::new(way, MEMORY, devices);
        let mut disk = attach_protected(&rig);
        let orb = Orb::new(PROGRAM + fba::CCWS);
        fba::put_transfer(&rig.bench, PROGRAM, command::FBA_WRITE, 9, 2, BUFFER);
        let irb = disk.run(&orb);
        assert!(irb.scsw.device_status().contains(DeviceStatus::UNIT_CHECK), "{irb:?}");
        assert_eq!((irb.sense().len(), &irb.sense()[..2]), (24, &[0, 0x04][..]));
        assert_eq!((irb.scsw.cpa(), irb.scsw.count()), (orb.cpa() + 24, 1024));
        fba::put_transfer(&rig.bench, PROGRAM, command::FBA_READ, 9, 2, BUFFER);
        assert_clean(&disk.run(&orb), orb.cpa() + 24);
        assert_eq!(rig.bench.peek(BUFFER.into(), 1024), fba::blocks(9, 2));
        assert!(image.blocks(0, 64) == fba::blocks(0, 64));
        assert_eq!(rig.bench.service.totals().completions(Outcome::RefusedPolicy), 1);
    }
}

#[test]
fn what_was_judged_is_what_the_server_runs() {
    for way in BOTH_WAYS {
        let image = Image::new(64);
        let devices = vec![ServedDevice::fba(0x1000, image.volume(false))];
        let rig = Rig::new(way, MEMORY, devices);
        let mut disk = attach_protected(&rig);
        fba::put_transfer(&rig.bench, PROGRAM, command::FBA_READ, 9, 1, BUFFER);
        // What is read is block 9, or what would be written over it.
        let transfer = PROGRAM + fba::CCWS + 16;
        let both = [command::FBA_READ, command::FBA_WRITE].map(|code| Ccw::new(code, BUFFER, 512));
        let map = rig.bench.service.memory();
        let mut tally = Tally::default();
        while_rewritten(&map, &[Flip::ccws(transfer, &both)], 200, |_| {
            tally.count(&disk.run(&Orb::new(PROGRAM + fba::CCWS)), &[[0, 0x04]]);
            tally.both()
        });
        assert!(image.blocks(0, 64) == fba::blocks(0, 64), "a write got through");
    }
}

// Progress.

#[test]
fn intermediate_status_comes_while_the_program_goes_on() {
    for way in BOTH_WAYS {
        let (rig, gate) = gated_rig(way);
        rig.bench.put_program(PROGRAM, &[NOP.with(CC | PCI), read(BUFFER)]);
        let wired = rig.wire(0);
        let subchannel = &wired.subchannel;
        assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        drop(wired.interruption());
        assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc1), "status is pending");
        let irb = wired.status();
        assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CONTROLLED);
        assert!(!irb.scsw.is_final() && irb.scsw.cpa() == PROGRAM + 8, "{irb:?}");
        assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc2), "the program goes on");
        gate.open();
        drop(wired.interruption());
        assert_clean(&wired.status(), PROGRAM + 16);
    }
}

#[test]
fn a_ring_is_told_of_progress_in_its_order() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let mut device = rig.attach(0);
        let told = NOP.with(CC | PCI);
        rig.bench.put_program(PROGRAM, &[told, told, told, NOP]);
        for _ in 0..200 {
            device.subchannel.submit(&Orb::new(PROGRAM), 3).unwrap();
            let mut places = Vec::new();
            let end = loop {
                let Completion { user_data, irb, .. } = device.completion();
                assert_eq!(user_data, 3);
                if irb.scsw.is_final() {
                    break irb;
                }
                let status = irb.scsw.subchannel_status();
                assert_eq!(status, SubchannelStatus::PROGRAM_CONTROLLED, "{irb:?}");
                places.push(irb.scsw.cpa());
            };
            assert_clean(&end, PROGRAM + 32);
            match way {
                Way::Lane => assert_eq!(places, [PROGRAM + 8, PROGRAM + 16, PROGRAM + 24]),
                // One status takes the place of another that was not fetched, as with the kernel's driver.
                Way::Messages => {
                    assert!(places.is_sorted_by(|one, next| one < next), "{places:x?}")
                }
            }
        }
    }
}

#[test]
fn programs_that_tell_of_progress_end_with_their_own_status() {
    // Signals run together there, and an IRB may be read twice.
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let mut device = rig.attach(0);
        let told = NOP.with(CC | PCI);
        let places = [PROGRAM, PROGRAM + 0x100, PROGRAM + 0x200, PROGRAM + 0x300];
        for (at, length) in places.into_iter().zip(1..) {
            rig.bench.put_program(at, &[&vec![told; length][..], &[NOP]].concat());
        }
        for round in 0..500u64 {
            for turn in 0..8 {
                let program = places[turn as usize % 4];
                device.subchannel.submit(&Orb::new(program), round * 8 + turn).unwrap();
            }
            for turn in 0..8 {
                let program = places[turn as usize % 4];
                loop {
                    let completion = device.completion();
                    assert_eq!(completion.user_data, round * 8 + turn, "{completion:?}");
                    let cpa = completion.irb.scsw.cpa();
                    assert_eq!(cpa & !0xff, program, "of another program: {completion:?}");
                    if completion.is_final() {
                        assert_clean(&completion.irb, program + 16 + turn as u32 % 4 * 8);
                        break;
                    }
                }
            }
        }
    }
}

// Suspension.

fn suspending() -> Orb {
    let orb = Orb::new(PROGRAM);
    orb.with_flags(orb.flags() | OrbFlags::SUSPEND_CONTROL)
}

fn quiet() -> Orb {
    suspending().with_flags(suspending().flags() | OrbFlags::SUPPRESS_SUSPENDED)
}

/// Two reads, of which the second suspends the program if `suspends`.
fn put_two_reads(bench: &Bench, suspends: bool) {
    let flags = if suspends { SUSPEND } else { CcwFlags::empty() };
    bench.put_program(PROGRAM, &[read(BUFFER).with(CC), read(BUFFER + 0x1000).with(flags)]);
}

/// Suspended at the second CCW, with status pending.
#[track_caller]
fn assert_suspended(irb: &IrbHead) {
    let expected = ScswFlags::START_FUNCTION
        | ScswFlags::SUSPENDED
        | ScswFlags::INTERMEDIATE
        | ScswFlags::STATUS_PENDING;
    assert!(irb.scsw.flags().contains(expected) && !irb.scsw.is_final(), "{irb:?}");
    assert_eq!(irb.scsw.cpa(), PROGRAM + 16, "{irb:?}");
}

#[test]
fn a_program_suspends_itself_and_is_resumed() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let wired = rig.wire(0);
        let subchannel = &wired.subchannel;
        assert_eq!(subchannel.rsch(), Cc::Cc2, "nothing was started");
        put_two_reads(&rig.bench, true);
        rig.bench.put(BUFFER.into(), &[BLANK; 0x1001]);
        assert_eq!(subchannel.ssch(&suspending()), Ok(Cc::Cc0));
        for _ in 0..3 {
            drop(wired.interruption());
            assert_eq!(subchannel.rsch(), Cc::Cc1, "status is pending");
            assert_suspended(&wired.status());
            assert_eq!(subchannel.ssch(&suspending()), Ok(Cc::Cc2), "the start is not over");
            // With the flag still on it suspends once more.
            assert_eq!(subchannel.rsch(), Cc::Cc0);
        }
        drop(wired.interruption());
        assert_suspended(&wired.status());
        assert_eq!(rig.bench.peek(u64::from(BUFFER) + 0x1000, 1), [BLANK]);
        rig.bench.put(BUFFER.into(), &[BLANK]);
        put_two_reads(&rig.bench, false);
        assert_eq!(subchannel.rsch(), Cc::Cc0);
        drop(wired.interruption());
        assert_clean(&wired.status(), PROGRAM + 16);
        assert_eq!(rig.bench.peek(u64::from(BUFFER) + 0x1000, 1), [0]);
        assert_eq!(rig.bench.peek(BUFFER.into(), 1), [BLANK], "the first read did not run again");
        assert!(!wired.is_interrupted());
        assert_eq!(rig.bench.service.totals().counter(CounterKind::Suspensions), 4);
    }
}

#[test]
fn a_program_of_a_ring_suspends_itself_and_others_wait() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let mut device = rig.attach(0);
        rig.bench.put_program(SHORT, &[NOP]);
        for _ in 0..50 {
            put_two_reads(&rig.bench, true);
            device.subchannel.submit(&suspending(), 1).unwrap();
            device.subchannel.submit(&Orb::new(SHORT), 2).unwrap();
            let told = device.completion();
            assert!(!told.is_final() && told.user_data == 1, "{told:?}");
            assert_suspended(&told.irb);
            put_two_reads(&rig.bench, false);
            assert_eq!(device.subchannel.rsch(), Cc::Cc0);
            let ended = device.completion();
            assert!(ended.is_final() && ended.user_data == 1, "{ended:?}");
            assert_clean(&ended.irb, PROGRAM + 16);
            let next = device.completion();
            assert_eq!(next.user_data, 2);
            assert_clean(&next.irb, SHORT + 8);
        }
    }
}

#[test]
fn suspension_is_not_told_where_the_orb_says_so() {
    for way in BOTH_WAYS {
        let rig = Rig::new(way, MEMORY, nulls(2));
        let mut ring = rig.attach(0);
        let wired = rig.wire(1);
        put_two_reads(&rig.bench, true);
        ring.subchannel.submit(&quiet(), 7).unwrap();
        assert_eq!(wired.subchannel.ssch(&quiet()), Ok(Cc::Cc0));
        while rig.bench.service.totals().counter(CounterKind::Suspensions) < 2 {
            thread::yield_now();
        }
        put_two_reads(&rig.bench, false);
        assert!(!wired.is_interrupted());
        assert_eq!(wired.subchannel.tsch().0, Cc::Cc1);
        for subchannel in [&wired.subchannel, &ring.subchannel] {
            while subchannel.rsch() != Cc::Cc0 {
                thread::yield_now();
            }
        }
        drop(wired.interruption());
        let irb = wired.status();
        assert_clean(&irb, PROGRAM + 16);
        assert!(irb.scsw.flags().contains(ScswFlags::SUPPRESS_SUSPENDED), "as its ORB: {irb:?}");
        let first = ring.completion();
        assert!(first.is_final(), "{first:?}");
        assert_clean(&first.irb, PROGRAM + 16);
        // But a CCW that has both flags is told of.
        rig.bench.put_program(PROGRAM, &[NOP.with(CC), NOP.with(SUSPEND | PCI)]);
        ring.subchannel.submit(&quiet(), 8).unwrap();
        let told = ring.completion();
        assert!(!told.is_final() && told.user_data == 8, "{told:?}");
        assert_eq!(told.irb.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CONTROLLED);
        assert!(told.irb.scsw.flags().contains(ScswFlags::SUSPENDED), "{told:?}");
    }
}

#[test]
fn a_suspended_program_is_halted_cleared_and_cancelled_and_the_next_one_runs() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let wired = rig.wire(0);
        let subchannel = &wired.subchannel;
        rig.bench.put_program(SHORT, &[NOP]);
        put_two_reads(&rig.bench, true);
        let suspend = |orb| {
            assert_eq!(subchannel.ssch(&orb), Ok(Cc::Cc0));
            drop(wired.interruption());
            assert_suspended(&wired.status());
        };
        let run_short = || {
            assert_eq!(subchannel.ssch(&Orb::new(SHORT)), Ok(Cc::Cc0));
            drop(wired.interruption());
            assert_clean(&wired.status(), SHORT + 8);
        };
        for _ in 0..20 {
            suspend(suspending());
            assert_eq!(subchannel.hsch(), Cc::Cc0);
            drop(wired.interruption());
            let irb = wired.status();
            assert_performed(&irb, ScswFlags::HALT_FUNCTION);
            assert_eq!(irb.scsw.device_status(), DeviceStatus::empty(), "it was not active");
            assert_eq!(irb.scsw.cpa(), PROGRAM + 16);
            run_short();
            suspend(suspending());
            assert_eq!(subchannel.csch(), Cc::Cc0);
            drop(wired.interruption());
            assert_performed(&wired.status(), ScswFlags::CLEAR_FUNCTION);
            run_short();
            // One that suspends itself again right away, and no other in between.
            suspend(suspending());
            assert_eq!(subchannel.xsch(), Cc::Cc0);
            assert_eq!((subchannel.xsch(), subchannel.rsch()), (Cc::Cc2, Cc::Cc2));
        }
        run_short();
        assert!(!wired.is_interrupted());
    }
}

#[test]
fn a_suspended_program_of_a_ring_is_cleared_and_the_next_one_runs() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let mut device = rig.attach(0);
        put_two_reads(&rig.bench, true);
        rig.bench.put_program(SHORT, &[NOP]);
        for _ in 0..20 {
            device.subchannel.submit(&suspending(), 1).unwrap();
            assert_suspended(&device.completion().irb);
            device.subchannel.submit_clear(2).unwrap();
            let both = ScswFlags::START_FUNCTION | ScswFlags::CLEAR_FUNCTION;
            let ends = [device.completion(), device.completion()];
            assert_eq!(ends.map(|end| about(&end)), [(1, both), (2, ScswFlags::CLEAR_FUNCTION)]);
            assert_eq!(device.subchannel.rsch(), Cc::Cc2, "nothing is suspended");
            assert_clean(&device.run(&Orb::new(SHORT)), SHORT + 8);
        }
    }
}

// HALT, CLEAR, and futures that are dropped.

/// What a completion is about: its user data, and the functions in its SCSW.
fn about(completion: &Completion) -> (u64, ScswFlags) {
    (completion.user_data, completion.irb.scsw.flags() & ScswFlags::FUNCTION_CONTROL)
}

#[test]
fn a_program_that_runs_is_halted_at_its_next_command() {
    for way in BOTH_WAYS {
        let (rig, gate) = gated_rig(way);
        let wired = rig.wire(0);
        assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        gate.wait_for_arrivals(1);
        assert_eq!(wired.subchannel.hsch(), Cc::Cc0);
        drop(wired.interruption());
        let irb = wired.status();
        assert_performed(&irb, ScswFlags::HALT_FUNCTION);
        assert_eq!(irb.scsw.device_status(), DeviceStatus::DEVICE_END);
        assert_eq!(irb.scsw.cpa(), PROGRAM + 16, "behind the command that was under way");
        assert!(!wired.is_interrupted(), "one interruption for both");
        assert_eq!(rig.bench.peek(BUFFER.into(), 1), [1], "the transfer was brought to its end");
        assert_eq!(rig.bench.peek(u64::from(BUFFER) + 0x1000, 1), [0], "the next never began");
        assert_eq!(rig.bench.service.totals().completions(Outcome::Stopped), 1);
    }
}

#[test]
fn clearing_takes_status_and_program() {
    for way in BOTH_WAYS {
        let (rig, gate) = gated_rig(way);
        let wired = rig.wire(0);
        let subchannel = &wired.subchannel;
        assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        gate.wait_for_arrivals(1);
        assert_eq!(subchannel.csch(), Cc::Cc0);
        drop(wired.interruption());
        let irb = wired.status();
        assert_performed(&irb, ScswFlags::CLEAR_FUNCTION);
        assert_eq!((irb.scsw.cpa(), irb.scsw.device_status()), (0, DeviceStatus::empty()));
        // Status that is pending, and nothing.
        assert_eq!(subchannel.ssch(&Orb::new(SHORT)), Ok(Cc::Cc0));
        drop(wired.interruption());
        for _ in 0..2 {
            assert_eq!(subchannel.csch(), Cc::Cc0);
            drop(wired.interruption());
            assert_performed(&wired.status(), ScswFlags::CLEAR_FUNCTION);
        }
        assert_eq!(subchannel.hsch(), Cc::Cc0);
        drop(wired.interruption());
        assert_performed(&wired.status(), ScswFlags::HALT_FUNCTION);
        assert!(!wired.is_interrupted());
    }
}

#[test]
fn halt_and_clear_overtake_what_waits_in_the_ring() {
    let start = ScswFlags::START_FUNCTION;
    for way in BOTH_WAYS {
        for function in [ScswFlags::HALT_FUNCTION, ScswFlags::CLEAR_FUNCTION] {
            let (rig, gate) = gated_rig(way);
            let mut device = rig.attach(0);
            let submit = |user_data| device.subchannel.submit(&Orb::new(PROGRAM), user_data);
            (1..=3).for_each(|user_data| submit(user_data).unwrap());
            gate.wait_for_arrivals(1);
            match function {
                ScswFlags::HALT_FUNCTION => device.subchannel.submit_halt(100).unwrap(),
                _ => device.subchannel.submit_clear(100).unwrap(),
            }
            submit(4).unwrap();
            gate.wait_for_arrivals(2);
            gate.open();
            let seen: Vec<_> = (0..5).map(|_| device.completion()).collect();
            let both = start | function;
            let expected = [(1, both), (2, both), (3, both), (100, function), (4, start)];
            assert_eq!(seen.iter().map(about).collect::<Vec<_>>(), expected);
            assert_performed(&seen[3].irb, function);
            assert_clean(&seen[4].irb, PROGRAM + 24);
        }
    }
}

#[test]
fn what_was_not_started_yet_is_halted_and_cleared() {
    for way in BOTH_WAYS {
        let builder = Service::builder().budget(16 * 4096);
        let rig = Rig::with(way, builder, MEMORY, nulls(1));
        rig.bench.put_program(PROGRAM, &[read(BUFFER)]);
        let wired = rig.wire(0);
        for function in [ScswFlags::HALT_FUNCTION, ScswFlags::CLEAR_FUNCTION] {
            let dam = rig.bench.dam();
            assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
            dam.wait_for_programs(1);
            let cc = match function {
                ScswFlags::HALT_FUNCTION => wired.subchannel.hsch(),
                _ => wired.subchannel.csch(),
            };
            assert_eq!(cc, Cc::Cc0);
            drop(wired.interruption());
            let irb = wired.status();
            assert_performed(&irb, function);
            assert_eq!(irb.scsw.device_status(), DeviceStatus::empty(), "it had not begun");
            drop(dam);
            assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
            drop(wired.interruption());
            assert_clean(&wired.status(), PROGRAM + 8);
        }
    }
}

#[test]
fn a_future_that_is_dropped_clears_its_program_and_no_other() {
    for way in BOTH_WAYS {
        let (rig, gate) = gated_rig(way);
        let device = rig.bench.service.attach(rig.device(0), Delivery::Future).unwrap();
        let [runs, waits, stays] = [(); 3].map(|()| device.start(&Orb::new(PROGRAM)).unwrap());
        gate.wait_for_arrivals(1);
        drop((runs, waits));
        gate.wait_for_arrivals(2);
        gate.open();
        assert_clean(&block_on(stays), PROGRAM + 24);
        let totals = rig.bench.service.totals();
        assert_eq!(totals.completions(Outcome::Stopped), 2);
        assert_eq!(totals.completions(Outcome::Ok), 1);
    }
}

#[test]
fn futures_dropped_at_any_moment_leave_a_device_that_works() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        rig.bench.put_program(PROGRAM, &[NOP.with(CC), NOP]);
        rig.bench.put_program(SHORT, &[NOP]);
        let device = rig.bench.service.attach(rig.device(0), Delivery::Future).unwrap();
        let device = &device;
        let started: u64 = thread::scope(|scope| {
            let threads = [0, 1, 2].map(|seed| {
                scope.spawn(move || {
                    let mut started = 0;
                    for round in 0..700u64 {
                        let Ok(start) = device.start(&Orb::new(PROGRAM)) else { continue };
                        started += 1;
                        match (round * 7 + seed) % 4 {
                            0 => drop(start),
                            1 => {
                                thread::yield_now();
                                drop(start);
                            }
                            _ => assert_clean(&block_on(start), PROGRAM + 16),
                        }
                    }
                    started
                })
            });
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_clean(&block_on(device.start(&Orb::new(SHORT)).unwrap()), SHORT + 8);
        // Each once: a dropped one may still be on its way, so the count is taken at the end.
        let registry = rig.bench.service.registry().clone();
        drop(rig);
        assert_eq!(registry.snapshot().all_completions(), started + 1);
    }
}

#[test]
fn the_end_of_a_cleared_start_is_not_taken_for_that_of_the_next() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let wired = rig.wire(0);
        let subchannel = &wired.subchannel;
        rig.bench.put_program(PROGRAM, &[NOP.with(CC), read(BUFFER).with(CC), NOP]);
        rig.bench.put_program(SHORT, &[NOP]);
        for round in 0..1500u32 {
            assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
            // From at once to when it is long over.
            (0..round % 60 * 50).for_each(|_| std::hint::spin_loop());
            if round % 3 == 0 {
                thread::yield_now();
            }
            assert_eq!(subchannel.csch(), Cc::Cc0);
            assert_performed(&wired.next_status(), ScswFlags::CLEAR_FUNCTION);
            assert_eq!(subchannel.ssch(&Orb::new(SHORT)), Ok(Cc::Cc0));
            let irb = wired.next_status();
            assert!(irb.scsw.is_clean_end() && irb.scsw.cpa() == SHORT + 8, "{round}: {irb:?}");
        }
    }
}

#[test]
fn what_a_ring_starts_behind_a_clear_ends_once_and_with_its_own_status() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let mut device = rig.attach(0);
        let told = NOP.with(CC | PCI);
        rig.bench.put_program(PROGRAM, &[told, read(BUFFER).with(CC), told, NOP]);
        rig.bench.put_program(SHORT, &[NOP]);
        for round in 0..1500u64 {
            let subchannel = &device.subchannel;
            subchannel.submit(&Orb::new(PROGRAM), 1).unwrap();
            (0..round % 60 * 50).for_each(|_| std::hint::spin_loop());
            match round % 2 {
                0 => subchannel.submit_clear(2).unwrap(),
                _ => subchannel.submit_halt(2).unwrap(),
            }
            subchannel.submit(&Orb::new(SHORT), 3).unwrap();
            let mut ends = Vec::new();
            while ends.len() < 3 {
                let completion = device.completion();
                let (user_data, irb) = (completion.user_data, completion.irb);
                match user_data {
                    1 if !completion.is_final() => continue,
                    1 | 2 => {}
                    _ => assert_clean(&irb, SHORT + 8),
                }
                ends.push(user_data);
            }
            ends.sort_unstable();
            assert_eq!(ends, [1, 2, 3], "{round}: each once");
        }
        let nothing = device.completions.reap(1, |more| panic!("one too many: {more:?}"));
        assert_eq!(nothing, 0);
    }
}

// Many devices.

/// What a server's gauge says.
fn gauge(registry: &Registry, name: &str) -> f64 {
    let page = registry.render();
    let line = page.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {page}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

/// Waits until the other side has seen what happened here.
#[track_caller]
fn wait_until(happened: impl Fn() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(begin.elapsed() < STALL, "it never does");
        thread::yield_now();
    }
}

/// A rig whose server counts.
fn counted_rig(way: Way, devices: Vec<ServedDevice>) -> (Rig, Registry) {
    let registry = Registry::new();
    let server = Server::new().registry(registry.clone());
    let served = Served::with(server, devices).expect("the server starts");
    let builder = Service::builder().subchannels(512);
    println!("{way:?}");
    (Rig { bench: served::bench(builder, MEMORY), served, way }, registry)
}

#[test]
fn devices_of_a_server_share_a_lane_and_do_not_disturb_each_other() {
    for way in BOTH_WAYS {
        let image = Image::new(64);
        let volume = image.volume(false);
        let disk = |number: u16| ServedDevice::fba(0x1000 + number, volume.clone());
        let (rig, registry) = counted_rig(way, (0..8).map(disk).collect());
        let mut devices: Vec<_> = (0..8).map(|number| rig.attach(number)).collect();
        let area = |number: usize| (0x1000 * (number + 1)) as u32;
        for number in 0..8 {
            let (code, buffer) = (command::FBA_READ, BUFFER + 0x1000 * number as u32);
            fba::put_transfer(&rig.bench, area(number), code, 8 * number as u32, 8, buffer);
        }
        thread::scope(|scope| {
            for (number, device) in devices.iter_mut().enumerate() {
                let bench = &rig.bench;
                scope.spawn(move || {
                    let program = area(number) + fba::CCWS;
                    let buffer = u64::from(BUFFER) + 0x1000 * number as u64;
                    for _ in 0..200 {
                        bench.put(buffer, &[BLANK; 8 * 512]);
                        assert_clean(&device.run(&Orb::new(program)), program + 24);
                        assert!(bench.peek(buffer, 8 * 512) == fba::blocks(8 * number as u32, 8));
                    }
                });
            }
        });
        let lanes = if way == Way::Lane { 1.0 } else { 0.0 };
        assert_eq!(gauge(&registry, "vfio_ccw_server_lanes"), lanes);
        assert_eq!(gauge(&registry, "vfio_ccw_server_clients"), 8.0);
        assert_eq!(registry.snapshot().completions(Outcome::Ok), 8 * 200);
        assert_eq!(registry.snapshot().counter(CounterKind::ReadBytes), 8 * 200 * 8 * 512);
    }
}

#[test]
fn three_hundred_devices_do_a_program_each() {
    const DEVICES: u16 = 300;
    // A server and its clients in one process need seven descriptors a device.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    for way in BOTH_WAYS {
        let (rig, registry) = counted_rig(way, nulls(DEVICES));
        let (ring, mut completions) = Completions::ring(1024).unwrap();
        let subchannels: Vec<_> = (0..DEVICES)
            .map(|number| {
                let at = u64::from(BUFFER) + 16 * u64::from(number);
                let program = PROGRAM + 8 * u32::from(number);
                rig.bench.put(at, &[BLANK; 8]);
                rig.bench.put_program(program, &[Ccw::new(command::SENSE_ID, at as u32, 7)]);
                let device = rig.device(number.into());
                rig.bench.service.attach(device, ring.clone()).unwrap()
            })
            .collect();
        for (subchannel, number) in subchannels.iter().zip(0u32..) {
            let program = PROGRAM + 8 * number;
            subchannel.submit(&Orb::new(program), number.into()).unwrap();
        }
        let mut ended = vec![0; DEVICES.into()];
        while ended.iter().sum::<u32>() < DEVICES.into() {
            assert!(completions.wait(Some(STALL)).unwrap(), "{ended:?}");
            completions.reap(usize::MAX, |completion| {
                let number = completion.user_data as u32;
                assert_clean(&completion.irb, PROGRAM + 8 * number + 8);
                ended[number as usize] += 1;
            });
        }
        assert_eq!(ended, [1; DEVICES as usize]);
        for number in 0..u64::from(DEVICES) {
            assert_eq!(
                rig.bench.peek(u64::from(BUFFER) + 16 * number, 8),
                [&NULL[..], &[BLANK]].concat()
            );
        }
        let lanes = if way == Way::Lane { 2.0 } else { 0.0 };
        assert_eq!(gauge(&registry, "vfio_ccw_server_lanes"), lanes);
        assert_eq!(gauge(&registry, "vfio_ccw_server_clients"), f64::from(DEVICES));
        let Rig { bench, served, .. } = rig;
        drop(bench);
        wait_until(|| gauge(&registry, "vfio_ccw_server_clients") == 0.0);
        assert_eq!(gauge(&registry, "vfio_ccw_server_windows"), 0.0);
        assert_eq!(gauge(&registry, "vfio_ccw_server_window_bytes"), 0.0);
        wait_until(|| gauge(&registry, "vfio_ccw_server_lanes") == 0.0);
        drop(served);
    }
}

#[test]
fn devices_come_and_go_on_a_lane_that_others_use() {
    // A number on a lane is not used twice: more often than there are numbers.
    const ROUNDS: u64 = 300;
    for way in BOTH_WAYS {
        let rig = Rig::new(way, MEMORY, nulls(2));
        rig.bench.put_program(PROGRAM, &[NOP.with(CC), NOP]);
        let mut worker = rig.attach(0);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let mut device = rig.attach(1);
                    device.subchannel.submit(&Orb::new(PROGRAM), round).unwrap();
                    if round % 3 > 0 {
                        assert_clean(&device.completion().irb, PROGRAM + 16);
                    }
                    rig.bench.service.drain(device.subchannel, STALL).unwrap();
                }
                // Relaxed: orders nothing.
                over.store(true, Ordering::Relaxed);
            });
            while !over.load(Ordering::Relaxed) {
                assert_clean(&worker.run(&Orb::new(PROGRAM)), PROGRAM + 16);
            }
        });
        assert_eq!(rig.bench.service.totals().completions(Outcome::DeferredCc), 0);
    }
}

// Memory that comes and goes.

/// The address of the memory that comes and goes, and its bytes.
const STICK: u32 = MEMORY as u32;
const STICK_BYTES: usize = 256 << 10;

fn with_stick(memory: &GuestMemoryMmap, stick: &Arc<GuestRegionMmap>) -> Arc<GuestMemoryMmap> {
    Arc::new(memory.insert_region(stick.clone()).expect("no stick is plugged in"))
}

fn without_stick(memory: &GuestMemoryMmap) -> Arc<GuestMemoryMmap> {
    let removed = memory.remove_region(GuestAddress(STICK.into()), STICK_BYTES as u64);
    Arc::new(removed.expect("the stick is plugged in").0)
}

#[test]
fn a_server_follows_guest_memory() {
    for (number, way) in BOTH_WAYS.into_iter().enumerate() {
        let mut rig = Rig::new(way, MEMORY, nulls(2));
        let mut devices = [rig.attach(0), rig.attach(1)];
        rig.bench.put_program(PROGRAM, &[read(STICK)]);
        let replace = |bench: &mut Bench, memory: Arc<GuestMemoryMmap>| {
            bench.memory = memory.clone();
            bench.service.replace_memory(memory, STALL).expect("programs end");
        };
        for round in 0..20 {
            for device in &mut devices {
                assert_program_check(&device.run(&Orb::new(PROGRAM)), PROGRAM + 8);
            }
            let name = format!("stick-{number}-{round}");
            let stick = region(&name, STICK.into(), STICK_BYTES);
            assert_eq!(mappings(&name), 1);
            let memory = with_stick(&rig.bench.memory, &stick);
            replace(&mut rig.bench, memory);
            rig.bench.put(STICK.into(), &[BLANK; TRANSFER + 1]);
            for device in &mut devices {
                rig.bench.put(STICK.into(), &[BLANK; TRANSFER]);
                assert_clean(&device.run(&Orb::new(PROGRAM)), PROGRAM + 8);
                assert_eq!(rig.bench.peek(STICK.into(), TRANSFER), [0; TRANSFER]);
            }
            assert_eq!(rig.bench.peek(u64::from(STICK) + TRANSFER as u64, 1), [BLANK]);
            assert_eq!(mappings(&name), 3, "here, and at the server for each device");
            let memory = without_stick(&rig.bench.memory);
            replace(&mut rig.bench, memory);
            assert_eq!(Arc::strong_count(&stick), 1, "the service keeps what was removed");
            assert_eq!(mappings(&name), 1, "the server keeps what was removed");
        }
    }
}

#[test]
fn memory_that_changes_while_a_device_is_set_up_is_seen_by_its_first_program() {
    for way in BOTH_WAYS {
        let mut rig = null_rig(way);
        let stick = region("early", STICK.into(), STICK_BYTES);
        rig.bench.put_program(PROGRAM, &[read(STICK)]);
        for round in 0..40 {
            let mut device = rig.attach(0);
            rig.bench.memory = match round % 2 {
                0 => with_stick(&rig.bench.memory, &stick),
                _ => without_stick(&rig.bench.memory),
            };
            rig.bench.service.replace_memory(rig.bench.memory.clone(), STALL).unwrap();
            let irb = device.run(&Orb::new(PROGRAM));
            match round % 2 {
                0 => assert_clean(&irb, PROGRAM + 8),
                _ => assert_program_check(&irb, PROGRAM + 8),
            }
            rig.bench.service.drain(device.subchannel, STALL).unwrap();
        }
    }
}

#[test]
fn memory_goes_only_when_the_program_that_uses_it_has_ended() {
    for (number, way) in BOTH_WAYS.into_iter().enumerate() {
        let (mut rig, gate) = gated_rig(way);
        let mut device = rig.attach(0);
        let name = format!("late-{number}");
        let stick = region(&name, STICK.into(), STICK_BYTES);
        rig.bench.memory = with_stick(&rig.bench.memory, &stick);
        rig.bench.service.replace_memory(rig.bench.memory.clone(), STALL).unwrap();
        rig.bench.put_program(PROGRAM, &[read(BUFFER).with(CC), read(STICK)]);
        device.subchannel.submit(&Orb::new(PROGRAM), 1).unwrap();
        gate.wait_for_arrivals(1);
        rig.bench.memory = without_stick(&rig.bench.memory);
        let replaced = rig.bench.service.replace_memory(rig.bench.memory.clone(), Duration::ZERO);
        assert!(matches!(replaced, Err(MemoryError::StillInUse { .. })), "{replaced:?}");
        device.subchannel.submit(&Orb::new(PROGRAM), 2).unwrap();
        let settled = rig.bench.service.settle_memory(Duration::ZERO);
        assert!(matches!(settled, Err(MemoryError::StillInUse { .. })), "{settled:?}");
        assert_eq!(mappings(&name), 2);
        gate.open();
        // The first had the memory to its end, the second began without.
        assert_clean(&device.completion().irb, PROGRAM + 16);
        assert_program_check(&device.completion().irb, PROGRAM + 16);
        rig.bench.service.settle_memory(STALL).unwrap();
        assert_eq!((Arc::strong_count(&stick), mappings(&name)), (1, 1));
    }
}

/// Tells threads to stop when it is dropped, so also when an assertion fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        // Relaxed: orders nothing.
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn memory_comes_and_goes_under_programs_that_run() {
    for way in BOTH_WAYS {
        let rig = Rig::new(way, MEMORY, nulls(4));
        let devices: Vec<_> = (0..4).map(|number| rig.attach(number)).collect();
        let at = |number: u32| PROGRAM + number * 0x100;
        for number in 0..4 {
            let (kept, stick) = (BUFFER + number * 0x1000, STICK + number * 0x1000);
            rig.bench.put_program(at(number), &[read(kept).with(CC), read(stick)]);
        }
        let stick = region("busy", STICK.into(), STICK_BYTES);
        let layouts = [with_stick(&rig.bench.memory, &stick), rig.bench.memory.clone()];
        // Devices that have met both layouts.
        let (over, served_both) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            let _over = Over(&over);
            for (mut device, number) in devices.into_iter().zip(0..) {
                let (over, served_both, program) = (&over, &served_both, at(number));
                scope.spawn(move || {
                    let _over = Over(over);
                    let mut met = [false; 2];
                    // Relaxed here and below: orders nothing.
                    while !over.load(Ordering::Relaxed) {
                        let irb = device.run(&Orb::new(program));
                        let without = !irb.scsw.subchannel_status().is_empty();
                        match without {
                            true => assert_program_check(&irb, program + 16),
                            false => assert_clean(&irb, program + 16),
                        }
                        let new = !met[usize::from(without)];
                        met[usize::from(without)] = true;
                        served_both.fetch_add((new && met == [true; 2]).into(), Ordering::Relaxed);
                    }
                });
            }
            for (change, layout) in layouts.iter().cycle().enumerate() {
                let is_enough = change >= 100 && served_both.load(Ordering::Relaxed) == 4;
                if is_enough || over.load(Ordering::Relaxed) {
                    break;
                }
                rig.bench.service.replace_memory(layout.clone(), STALL).expect("programs end");
            }
        });
        assert_eq!(rig.bench.service.totals().completions(Outcome::OtherChannel), 0);
        assert_eq!(rig.bench.service.totals().completions(Outcome::DeferredCc), 0);
    }
}

// Rest, and leaving.

#[test]
fn a_device_that_is_elsewhere_comes_to_rest_and_cannot_be_saved() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let mut device = rig.attach(0);
        rig.bench.put_program(SHORT, &[NOP]);
        assert_clean(&device.run(&Orb::new(SHORT)), SHORT + 8);
        rig.bench.service.quiesce(STALL).unwrap();
        device.subchannel.submit(&Orb::new(SHORT), 1).unwrap();
        let error = rig.bench.service.save().expect_err("nobody knows its state");
        assert!(matches!(error, SaveError::Host { number: 0 }), "{error}");
        let text = error.to_string();
        assert!(text.contains("another process") && text.contains("detach it before"), "{text}");
        let nothing = device.completions.reap(1, |early| panic!("it is at rest: {early:?}"));
        assert_eq!(nothing, 0);
        rig.bench.service.resume();
        assert_clean(&device.completion().irb, SHORT + 8);
    }
}

#[test]
fn what_waits_for_ever_is_cleared_when_its_device_is_detached() {
    // Once: it takes its patience of five seconds.
    let (rig, gate) = gated_rig(Way::Lane);
    let mut device = rig.attach(0);
    device.subchannel.submit(&Orb::new(PROGRAM), 1).unwrap();
    device.subchannel.submit(&Orb::new(PROGRAM), 2).unwrap();
    gate.wait_for_arrivals(1);
    rig.bench.service.detach(device.subchannel.clone());
    let error = device.subchannel.submit(&Orb::new(PROGRAM), 3);
    assert_eq!(error, Err(SubmitError::Detached));
    let ends = [device.completion(), device.completion()];
    assert_eq!(ends.each_ref().map(|end| (end.user_data, end.is_final())), [(1, true), (2, true)]);
    assert!(!ends[0].irb.scsw.is_clean_end(), "{ends:?}");
    assert_eq!(ends[1].irb.scsw.deferred_cc(), 3, "{ends:?}");
    assert_eq!(rig.bench.peek(BUFFER.into(), 1), [1], "the transfer was brought to its end");
    // Its server has the device for the next one.
    let mut again = rig.attach(0);
    assert_clean(&again.run(&Orb::new(SHORT)), SHORT + 8);
}

#[test]
fn a_suspended_program_leaves_with_its_device() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        rig.bench.put_program(SHORT, &[NOP]);
        put_two_reads(&rig.bench, true);
        for _ in 0..3 {
            let mut device = rig.attach(0);
            device.subchannel.submit(&suspending(), 1).unwrap();
            assert_suspended(&device.completion().irb);
            rig.bench.service.detach(device.subchannel.clone());
            let ended = device.completion();
            assert_eq!((ended.user_data, ended.irb.scsw.deferred_cc()), (1, 3), "{ended:?}");
        }
        let mut device = rig.attach(0);
        assert_clean(&device.run(&Orb::new(SHORT)), SHORT + 8);
    }
}

// What is refused.

#[test]
fn a_connection_is_attached_once() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let device = rig.device(0);
        let attach =
            |spec: &DeviceSpec| rig.bench.service.attach(spec.clone(), Delivery::interrupt(Silent));
        let first = attach(&device).unwrap();
        let error = attach(&device).expect_err("it has the connection already");
        assert!(matches!(error, AttachError::AttachedBefore), "{error}");
        assert!(error.to_string().contains("connect to it, again"), "{error}");
        rig.bench.put_program(SHORT, &[NOP]);
        assert_eq!(first.ssch(&Orb::new(SHORT)), Ok(Cc::Cc0));
        while !first.stsch().scsw.is_final() {
            thread::yield_now();
        }
        assert_clean(&first.tsch().1, SHORT + 8);
    }
}

#[test]
fn guest_memory_that_nobody_else_can_map_is_refused() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let own = Bench::new(MEMORY);
        let device = rig.device(0);
        let attach =
            |bench: &Bench| bench.service.attach(device.clone(), Delivery::interrupt(Silent));
        let error = attach(&own).expect_err("anonymous memory");
        assert!(matches!(error, AttachError::NotShared { start: 0 }), "{error}");
        assert!(error.to_string().contains("shared memfd"), "{error}");
        // Nothing came of it: the device can be had by whoever can show it memory.
        attach(&rig.bench).expect("memory in a file");
    }
}

/// What becomes of connecting to a server that does what `serve` does with its first client.
fn connect_to(serve: impl FnOnce(UnixStream) + Send + 'static) -> RemoteError {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fake.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = thread::spawn(move || serve(listener.accept().unwrap().0));
    let error = RemoteDevice::connect(&path).expect_err("it is none");
    thread.join().unwrap();
    assert!(error.to_string().contains("fake.sock"), "{error}");
    error
}

/// Reads a message of a client's, and answers with this payload.
fn answer(stream: &mut UnixStream, payload: &[u8]) {
    let mut header = [0; 16];
    stream.read_exact(&mut header).unwrap();
    let size = u32::from_ne_bytes(header[4..8].try_into().unwrap());
    stream.read_exact(&mut vec![0; size as usize - 16]).unwrap();
    header[4..8].copy_from_slice(&(16 + payload.len() as u32).to_ne_bytes());
    // A reply, without an error.
    header[8..12].copy_from_slice(&1u32.to_ne_bytes());
    stream.write_all(&[&header, payload].concat()).unwrap();
}

/// A version message, of no capabilities.
fn version(major: u16, minor: u16) -> Vec<u8> {
    [&major.to_ne_bytes()[..], &minor.to_ne_bytes(), b"{}\0"].concat()
}

#[test]
fn what_is_no_server_of_channel_devices_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("null.sock");
    let connect = || RemoteDevice::connect(&path).expect_err("nobody is there");
    let error = connect();
    assert!(matches!(error, RemoteError::Connect { .. }), "{error}");
    assert!(error.to_string().contains("start the server: 'vfio-ccw serve"), "{error}");
    drop(UnixListener::bind(&path).unwrap());
    let error = connect();
    assert!(matches!(error, RemoteError::Connect { .. }), "{error}");
    assert!(error.to_string().contains("its server has ended: start it again"), "{error}");

    let server = |error: RemoteError| match error {
        RemoteError::Server { source, .. } => source,
        other => panic!("{other}"),
    };
    // A PCI device.
    let error = server(connect_to(|mut stream| {
        answer(&mut stream, &version(0, 1));
        let info = [16u32, 2, 9, 5];
        answer(&mut stream, &info.map(u32::to_ne_bytes).concat());
    }));
    assert!(matches!(error, ServerFault::NotCcw { flags: 2 }), "{error}");
    assert!(error.to_string().contains("channel device"), "{error}");
    // One that hangs up, one of another time, and one that speaks of something else.
    let error = server(connect_to(drop));
    assert!(matches!(error, ServerFault::Lost(_)), "{error}");
    let error = server(connect_to(|mut stream| answer(&mut stream, &version(1, 0))));
    assert!(matches!(error, ServerFault::Version(_)), "{error}");
    let error = server(connect_to(|mut stream| {
        // Perhaps the other side has hung up by then.
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    }));
    assert!(matches!(error, ServerFault::Lost(_) | ServerFault::Protocol { .. }), "{error}");
}

#[test]
fn a_server_that_ends_takes_its_socket_with_it() {
    for way in BOTH_WAYS {
        let rig = null_rig(way);
        let mut device = rig.attach(0);
        rig.bench.put_program(SHORT, &[NOP]);
        assert_clean(&device.run(&Orb::new(SHORT)), SHORT + 8);
        let Rig { bench, served, .. } = rig;
        let socket = served.socket(0);
        served.end().unwrap();
        assert!(!socket.exists());
        // Whatever is started now ends: perhaps on its way, and then because its device is not there.
        loop {
            let irb = device.run(&Orb::new(SHORT));
            if irb.scsw.deferred_cc() == 3 {
                break;
            }
            let lost = SubchannelStatus::INTERFACE_CONTROL_CHECK;
            assert_eq!(irb.scsw.subchannel_status(), lost, "{irb:?}");
        }
        drop(bench);
    }
}
