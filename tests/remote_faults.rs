//! Servers that die, stop, and come back; clients that die.
//!
//! The server is the command, in a process of its own. What is written is verified: a write that was acknowledged is
//! found by every read after it, whatever happened to the server meanwhile; one that failed may have happened or not.

pub mod command_line;
pub mod confinement;
pub mod serving;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use command_line::Running;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serving::{Serving, sockets};
use tempfile::TempDir;
use vfio_ccw::architecture::{Ccw, Orb, SubchannelStatus, command};
use vfio_ccw::backend::remote::RemoteDevice;
use vfio_ccw::engine::DiskEngine;
use vfio_ccw::{Cc, Completions, Delivery, DeviceSpec, Service, Silent, Subchannel};
use vfio_ccw_load::random::SplitMix64;
use vfio_ccw_load::{Completion, Direction, Engine, Failure, Request};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Nothing here takes this long: who waits longer waits for something that was lost.
const STALL: Duration = Duration::from_secs(60);

const DISKS: usize = 8;

/// Bytes of one transfer, and transfers that fit on a disk's part of the volume.
const BLOCK: u32 = 4096;
const BLOCKS: u64 = 64;

/// A folder for the sockets of servers that come and go.
fn folder() -> Arc<TempDir> {
    Arc::new(tempfile::tempdir().expect("a folder"))
}

/// `bytes` of guest memory from address 0, in a memfd.
fn guest(bytes: usize) -> Arc<GuestMemoryMmap> {
    let memfd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&memfd, bytes as u64).expect("room for it");
    let range = (GuestAddress(0), bytes, Some(FileOffset::new(memfd.into(), 0)));
    Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).expect("address space for it"))
}

/// How programs get to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Lane,
    Messages,
}

/// What may stand in a block.
#[derive(Clone, Debug, Default)]
struct Block {
    /// What was acknowledged last; zeros at first.
    known: u64,
    /// Of writes since that failed when they had begun: each may have happened.
    doubted: Vec<u64>,
}

/// A disk's part of the volume, and what is under way there.
struct Slot {
    blocks: Vec<Block>,
    under_way: Option<(Direction, u64, u64)>,
}

/// Disks under a load whose data is verified.
struct Load {
    engine: DiskEngine,
    slots: Vec<Slot>,
    random: SplitMix64,
    buffers: u64,
    next_value: u64,
    ended: u64,
    failed: HashMap<&'static str, u64>,
}

impl Load {
    fn new(service: &Service, folder: &Path, way: Way) -> Self {
        let connect = |path: PathBuf| {
            let device = RemoteDevice::connect(&path).expect("a device there");
            DeviceSpec::remote(if way == Way::Lane { device } else { device.without_lane() })
        };
        let devices: Vec<_> = sockets(folder).into_iter().map(connect).collect();
        assert_eq!(devices.len(), DISKS);
        let slot = || Slot { blocks: vec![Block::default(); BLOCKS as usize], under_way: None };
        Load {
            engine: DiskEngine::over(service, devices.into_iter()).expect("room for them"),
            slots: (0..DISKS).map(|_| slot()).collect(),
            random: SplitMix64::new(7),
            buffers: DiskEngine::buffers_base(DISKS),
            next_value: 1,
            ended: 0,
            failed: HashMap::new(),
        }
    }

    /// Starts a transfer on `slot`.
    fn start(&mut self, slot: usize) {
        let block = self.random.next_u64() % BLOCKS;
        let buffer = self.buffers + slot as u64 * u64::from(BLOCK);
        let writes = self.random.next_u64().is_multiple_of(2);
        let direction = if writes { Direction::Write } else { Direction::Read };
        let value = self.next_value;
        self.next_value += 1;
        // A read must not find what an earlier one has left.
        let filled = if writes { value } else { u64::MAX };
        let words: Vec<u8> = (0..BLOCK / 8).flat_map(|_| filled.to_be_bytes()).collect();
        self.engine.write_guest(buffer, &words).expect("guest memory");
        let offset = (slot as u64 * BLOCKS + block) * u64::from(BLOCK);
        let request = Request { slot, direction, offset, bytes: BLOCK, buffer };
        self.slots[slot].under_way = Some((direction, block, value));
        self.engine.submit(&[request]).expect("the service takes it");
    }

    /// Takes what has ended; which slots are free.
    fn reap(&mut self, wait: Duration) -> Vec<usize> {
        let mut done = Vec::new();
        self.engine.reap(&mut done, Some(wait)).expect("a completion ring");
        done.into_iter().map(|completion| self.take(completion)).collect()
    }

    fn take(&mut self, Completion { slot, outcome }: Completion) -> usize {
        self.ended += 1;
        let taken = self.slots[slot].under_way.take();
        let (direction, block, value) = taken.expect("something was under way: one end each");
        let at = &mut self.slots[slot].blocks[block as usize];
        match (outcome, direction) {
            (Ok(()), Direction::Write) => *at = Block { known: value, doubted: Vec::new() },
            (Ok(()), Direction::Read) => {
                let mut words = vec![0; BLOCK as usize];
                let buffer = self.buffers + slot as u64 * u64::from(BLOCK);
                self.engine.read_guest(buffer, &mut words).expect("guest memory");
                for word in words.chunks_exact(8) {
                    let found = u64::from_be_bytes(word.try_into().expect("eight bytes"));
                    // A write that failed may have been carried out in part, page by page of the file.
                    assert!(
                        found == at.known || at.doubted.contains(&found),
                        "slot {slot} block {block}: {found}, and not {at:?}"
                    );
                }
            }
            (Err(failure), _) => {
                *self.failed.entry(name(&failure)).or_default() += 1;
                // With condition code 3 nothing was begun, so nothing is in doubt. There are millions of those: were
                // they noted, the test's own memory would grow while a server is away.
                let begun = !matches!(failure, Failure::Deferred { .. });
                if direction == Direction::Write && begun {
                    at.doubted.push(value);
                }
            }
        }
        slot
    }

    /// Keeps all disks busy until `over`, then waits for the last.
    fn run_until(&mut self, over: &AtomicBool) {
        (0..DISKS).for_each(|slot| self.start(slot));
        let mut last = Instant::now();
        while self.slots.iter().any(|slot| slot.under_way.is_some()) {
            let free = self.reap(Duration::from_millis(100));
            if !free.is_empty() {
                last = Instant::now();
            }
            assert!(last.elapsed() < STALL, "nothing ends any more");
            if !over.load(Ordering::Relaxed) {
                free.into_iter().for_each(|slot| self.start(slot));
            }
        }
    }
}

/// What a server's death may look like; anything else is wrong.
fn name(failure: &Failure) -> &'static str {
    match failure {
        Failure::Deferred { condition_code: 3 } => "deferred condition code 3",
        Failure::Status { device: 0, subchannel, .. }
            if *subchannel == SubchannelStatus::INTERFACE_CONTROL_CHECK.bits() =>
        {
            "interface-control check"
        }
        other => panic!("{other}"),
    }
}

/// Resident bytes of this process, and its mappings.
fn footprint() -> (u64, usize) {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line of it");
    let kilobytes = line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is there");
    (kilobytes.expect("a number") << 10, maps.lines().count())
}

/// Kills and restarts the server `times` times under a load, at random moments.
fn killed_under_load(times: u32, way: Way) {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let bytes = DISKS as u64 * BLOCKS * u64::from(BLOCK);
    File::create(&image).and_then(|file| file.set_len(bytes)).expect("an image");
    let word = format!("fba:{},count={DISKS}", image.display());
    let serve = || Serving::start_in(&folder, &[&word], &[]);
    let server = serve();
    let service = Service::builder().build(guest(4 << 20)).expect("the service starts");
    let mut load = Load::new(&service, folder.path(), way);
    let over = AtomicBool::new(false);
    let (first, last, killed) = thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut random = SplitMix64::new(11);
            let (mut server, mut first) = (server, None);
            for kill in 0..times {
                // Anywhere: while it is set up, under load, and when it has just gone back to it.
                thread::sleep(Duration::from_micros(random.next_u64() % 60_000));
                server.kill();
                // Some find it gone for a while.
                thread::sleep(Duration::from_micros(random.next_u64() % 20_000));
                server = serve();
                if kill == times / 4 {
                    first = Some(footprint());
                }
            }
            let last = footprint();
            over.store(true, Ordering::Relaxed);
            (first.expect("a quarter of them"), last, server)
        });
        load.run_until(&over);
        killer.join().expect("the killer lives")
    });
    println!(
        "{times} kills, {} ends, {:?}; resident {} KiB then {} KiB, mappings {} then {}",
        load.ended,
        load.failed,
        first.0 >> 10,
        last.0 >> 10,
        first.1,
        last.1
    );
    assert!(load.failed.values().sum::<u64>() > 0, "kills were felt");
    // What a leak for each kill would cost: a lane alone has half a mebibyte.
    assert!(last.0 < first.0 + (8 << 20), "memory grows: {first:?} to {last:?}");
    assert!(last.1 < first.1 + 64, "mappings grow: {first:?} to {last:?}");
    // All of it once more, from the file: the server that lives has it.
    drop(load.engine);
    drop(service);
    // SIGTERM drains.
    killed.ends_well();
    let file = File::open(&image).expect("the image");
    for (slot, Slot { blocks, .. }) in load.slots.iter().enumerate() {
        for (block, Block { known, doubted }) in blocks.iter().enumerate() {
            let mut word = [0; 8];
            let at = (slot as u64 * BLOCKS + block as u64) * u64::from(BLOCK);
            file.read_exact_at(&mut word, at).expect("inside the image");
            let found = u64::from_be_bytes(word);
            assert!(found == *known || doubted.contains(&found), "slot {slot} block {block}");
        }
    }
}

#[test]
fn a_server_that_is_killed_under_load_costs_what_was_in_flight_and_nothing_else() {
    killed_under_load(200, Way::Lane);
}

#[test]
fn so_does_one_that_is_asked_by_messages() {
    killed_under_load(40, Way::Messages);
}

/// A null device at a socket, started by instruction.
fn null_device(service: &Service, socket: &Path) -> Subchannel {
    let device = RemoteDevice::connect(socket).expect("a device there");
    service.attach(DeviceSpec::remote(device), Delivery::interrupt(Silent)).expect("room for it")
}

/// Waits until TEST SUBCHANNEL has status.
fn status(subchannel: &Subchannel) -> vfio_ccw::architecture::IrbHead {
    let since = Instant::now();
    loop {
        match subchannel.tsch() {
            (Cc::Cc0, irb) => return irb,
            _ => assert!(since.elapsed() < STALL, "no status comes"),
        }
        thread::yield_now();
    }
}

/// Waits until `done`.
fn until(what: &str, done: impl Fn() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < STALL, "{what} never comes");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn while_the_server_is_gone_starts_get_condition_code_3_and_reports_tell() {
    let folder = folder();
    let serve = || Serving::start_in(&folder, &["null"], &[]);
    let server = serve();
    let socket = server.socket("null0");
    let memory = guest(1 << 20);
    let sense_id = Ccw::new(command::SENSE_ID, 0x2000, 7).to_format_1();
    memory.write_slice(&sense_id, GuestAddress(0x1000)).expect("guest memory");
    let service = Service::builder().build(memory).expect("the service starts");
    let device = null_device(&service, &socket);
    let orb = Orb::new(0x1000);
    assert_eq!(device.ssch(&orb), Ok(Cc::Cc0));
    assert!(status(&device).scsw.is_clean_end());
    assert_eq!(device.stsch().pmcw.pam, 0x80);
    assert_eq!(service.stcrw().0, Cc::Cc1, "nothing to report");

    server.kill();
    until("condition code 3", || {
        let cc = device.ssch(&orb).expect("a good ORB");
        if cc == Cc::Cc0 {
            // It was not known yet.
            let scsw = status(&device).scsw;
            let is_clean = scsw.is_clean_end();
            let channel = scsw.subchannel_status();
            let is_lost = channel == SubchannelStatus::INTERFACE_CONTROL_CHECK;
            assert!(is_clean || is_lost || scsw.deferred_cc() == 3, "{scsw:?}");
        }
        cc == Cc::Cc3
    });
    assert_eq!(device.stsch().pmcw.pam, 0, "no path is available");
    let (cc, crw) = service.stcrw();
    assert_eq!((cc, crw.source(), crw.id()), (Cc::Cc0, 3, device.id().number()), "{crw:?}");

    let server = serve();
    until("the device", || device.stsch().pmcw.pam == 0x80);
    let (cc, crw) = service.stcrw();
    assert_eq!((cc, crw.source(), crw.id()), (Cc::Cc0, 3, device.id().number()), "{crw:?}");
    assert_eq!(device.ssch(&orb), Ok(Cc::Cc0));
    assert!(status(&device).scsw.is_clean_end());
    drop(service);
    server.ends_well();
}

#[test]
fn a_server_that_does_nothing_costs_its_neighbours_nothing() {
    let stopped = Serving::start(&["null"], &[]);
    let runs = Serving::start(&["null"], &[]);
    let memory = guest(1 << 20);
    let nop = Ccw::new(command::NOP, 0, 0).to_format_1();
    memory.write_slice(&nop, GuestAddress(0x1000)).expect("guest memory");
    // One shard has both.
    let service = Service::builder().build(memory).expect("the service starts");
    let device = |server: &Serving| null_device(&service, &server.socket("null0"));
    let (stuck, neighbour) = (device(&stopped), device(&runs));
    let orb = Orb::new(0x1000);
    stopped.send(libc::SIGSTOP);
    assert_eq!(stuck.ssch(&orb), Ok(Cc::Cc0));
    for _ in 0..1000 {
        assert_eq!(neighbour.ssch(&orb), Ok(Cc::Cc0));
        assert!(status(&neighbour).scsw.is_clean_end());
    }
    assert_eq!(stuck.tsch().0, Cc::Cc1, "its program has not ended");
    stopped.send(libc::SIGCONT);
    assert!(status(&stuck).scsw.is_clean_end(), "and goes on where it stopped");
    drop(service);
    stopped.ends_well();
    runs.ends_well();
}

#[test]
fn a_client_that_dies_leaves_nothing_and_the_next_is_served() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("an image");
    let word = format!("fba:{},count=4", image.display());
    let server = Serving::start_in(&folder, &[&word], &[]);
    let resources = || {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.id()));
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.id()));
        let shared = |maps: String| maps.lines().filter(|line| line.contains("memfd:")).count();
        (descriptors.expect("root, or not confined").count(), maps.map(shared).expect("the same"))
    };
    if !confinement::is_root() {
        println!("SKIPPED: the descriptors of a confined process are root's to count");
        return;
    }
    let before = resources();
    for _ in 0..3 {
        let load = ["--seconds", "600", "--quiet", "--metrics", "off", "--remote"];
        let client = Running::start(load.into_iter().chain([server.folder()]));
        until("a client at work", || resources().1 > before.1);
        // It is killed.
        drop(client);
        until("its memory to be let go of", || resources() == before);
    }
    server.ends_well();
}

/// What ends a program is not mistaken for the device's own status.
#[test]
fn a_program_whose_server_dies_has_no_device_status() {
    let server = Serving::start(&["null"], &[]);
    let memory = guest(1 << 20);
    let nop = Ccw::new(command::NOP, 0, 0).to_format_1();
    memory.write_slice(&nop, GuestAddress(0x1000)).expect("guest memory");
    let service = Service::builder().build(memory).expect("the service starts");
    let (delivery, mut completions) = Completions::ring(64).expect("an eventfd");
    let device = RemoteDevice::connect(&server.socket("null0")).expect("a device there");
    let device = service.attach(DeviceSpec::remote(device), delivery).expect("room for it");
    let mut ends_of = |programs: usize| {
        let mut ends = Vec::new();
        while ends.len() < programs {
            assert!(completions.wait(Some(STALL)).expect("poll"), "only {} ended", ends.len());
            completions.reap(usize::MAX, |completion| ends.push(completion));
        }
        ends
    };
    let submit = |user_data| device.submit(&Orb::new(0x1000), user_data).expect("room in the ring");
    submit(7);
    assert!(ends_of(1)[0].irb.scsw.is_clean_end());
    // It takes what comes, and does nothing with it.
    server.send(libc::SIGSTOP);
    (0..4).for_each(submit);
    server.kill();
    let ends = ends_of(4);
    for (index, end) in ends.iter().enumerate() {
        let scsw = &end.irb.scsw;
        assert_eq!(end.user_data, index as u64);
        assert!(scsw.device_status().is_empty(), "{scsw:?}");
        let lost = scsw.subchannel_status() == SubchannelStatus::INTERFACE_CONTROL_CHECK;
        assert!(lost || scsw.deferred_cc() == 3, "{scsw:?}");
    }
    let first = &ends[0].irb.scsw;
    assert_eq!(first.subchannel_status(), SubchannelStatus::INTERFACE_CONTROL_CHECK);
}
