//! Guest memory that goes away while programs use it, and comes back.
//!
//! The guest's first region stays; the second, the *stick*, is pulled out and plugged in with
//! `Service::replace_memory`. What was pulled is fenced off at once (`PROT_NONE`): whatever still
//! touched it would crash this test, and a kernel that still did would fail its I/O with EFAULT.

pub mod bench_guest;

use std::collections::HashMap;
use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use bench_guest::fba::{self, Image};
use bench_guest::wired::{Interruption, Wired};
use bench_guest::{Bench, Device, STALL};
use tempfile::NamedTempFile;
use vfio_ccw::architecture::{
    Ccw, CcwFlags, DeviceStatus, IrbHead, Orb, OrbFlags, ScswFlags, SubchannelStatus, command,
};
use vfio_ccw::volume::{BLOCK, Volume};
use vfio_ccw::{
    Cc, Completions, DeviceOptions, DeviceSpec, Driver, DriverChoice, Granule, Interrupts,
    MemoryError, Mode, PinnerChoice, Service, ServiceBuilder, Subchannel, SubmitError,
};
use vfio_ccw_metrics::CounterKind;
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MemoryRegionAddress,
};

/// Bytes of the memory that stays, and so the address of the stick behind it.
const KEPT_BYTES: usize = 8 << 20;
const STICK: u32 = KEPT_BYTES as u32;
const STICK_BYTES: usize = 6 << 20;

const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;
const PGM: SubchannelStatus = SubchannelStatus::PROGRAM_CHECK;
const ENDED: DeviceStatus = DeviceStatus::CHANNEL_END.union(DeviceStatus::DEVICE_END);

/// What buffers hold before anything is read into them.
const BLANK: u8 = 0xee;

/// A guest with its stick plugged in.
fn plugged(builder: ServiceBuilder) -> Result<(Bench, Arc<GuestRegionMmap>), io::Error> {
    let stick = new_stick();
    let memory = bench_guest::memory(KEPT_BYTES).insert_region(stick.clone());
    let memory = Arc::new(memory.expect("the stick lies behind what stays"));
    let service = builder.build(memory.clone()).map_err(io::Error::other)?;
    Ok((Bench { memory, service }, stick))
}

/// A stick that was never plugged in: its bytes are zeros.
fn new_stick() -> Arc<GuestRegionMmap> {
    let mapping = MmapRegion::new(STICK_BYTES).expect("address space");
    let stick = GuestRegionMmap::new(mapping, GuestAddress(STICK.into()));
    Arc::new(stick.expect("no wrap-around"))
}

/// The guest's memory without its stick.
fn without_stick(memory: &GuestMemoryMmap) -> Arc<GuestMemoryMmap> {
    let (rest, _) = memory
        .remove_region(GuestAddress(STICK.into()), STICK_BYTES as u64)
        .expect("the stick is plugged in");
    Arc::new(rest)
}

/// The guest's memory with this stick.
fn with_stick(memory: &GuestMemoryMmap, stick: &Arc<GuestRegionMmap>) -> Arc<GuestMemoryMmap> {
    Arc::new(memory.insert_region(stick.clone()).expect("no stick is plugged in"))
}

/// Pulls the stick of an idle or busy guest, and fences it off as soon as the service says that it
/// may be.
fn pull(service: &Service, memory: &mut Arc<GuestMemoryMmap>, stick: &Arc<GuestRegionMmap>) {
    *memory = without_stick(memory);
    service.replace_memory(memory.clone(), STALL).expect("programs end");
    assert_let_go(stick);
}

/// Plugs a stick in.
fn plug(service: &Service, memory: &mut Arc<GuestMemoryMmap>, stick: &Arc<GuestRegionMmap>) {
    *memory = with_stick(memory, stick);
    service.replace_memory(memory.clone(), STALL).expect("programs end");
}

/// Nothing of a stick that was pulled is pinned or kept mapped by the service, and nothing may touch
/// it from now on.
#[track_caller]
fn assert_let_go(stick: &Arc<GuestRegionMmap>) {
    protect(stick, libc::PROT_NONE);
    assert_eq!(Arc::strong_count(stick), 1, "the service keeps what was removed");
    assert!(!is_locked(stick), "pages that were removed are still locked");
}

/// Sets what may be done with a stick's bytes.
fn protect(stick: &GuestRegionMmap, protection: i32) {
    // SAFETY: changes access to a mapping that `stick` owns; the test itself looks at its bytes only
    // while they may be read. Test: `ten_thousand_devices_lose_their_memory_and_get_it_back`.
    let result = unsafe { libc::mprotect(stick.as_ptr().cast(), STICK_BYTES, protection) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Whether some page of the stick is locked: the kernel refuses to call locked pages cold
/// (`mm/madvise.c`, `can_madv_lru_vma`).
fn is_locked(stick: &GuestRegionMmap) -> bool {
    // SAFETY: MADV_COLD changes neither contents nor access.
    // Test: `a_guest_that_is_pinned_as_a_whole_stays_pinned`.
    let result = unsafe { libc::madvise(stick.as_ptr().cast(), STICK_BYTES, libc::MADV_COLD) };
    if result == 0 {
        return false;
    }
    let error = io::Error::last_os_error();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
    true
}

fn peek_stick(stick: &GuestRegionMmap, at: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stick.read_slice(&mut bytes, MemoryRegionAddress((at - STICK).into())).expect("in the stick");
    bytes
}

/// The four ways to run a service, where this machine has them.
fn builders() -> Vec<ServiceBuilder> {
    let mut builders = Vec::new();
    for driver in [Driver::IoUring, Driver::Epoll] {
        for interrupts in [Interrupts::Direct, Interrupts::EventFd] {
            let builder =
                Service::builder().driver(DriverChoice::Only(driver)).interrupts(interrupts);
            match builder.clone().build(bench_guest::memory(4096)) {
                Ok(_) => builders.push(builder),
                Err(error) => println!("SKIPPED: {driver}: {error}"),
            }
        }
    }
    builders
}

fn unfetched(orb: Orb) -> Orb {
    orb.with_flags(orb.flags() - OrbFlags::PREFETCH)
}

/// Device status, subchannel status, residual count and CCW address.
type End = (DeviceStatus, SubchannelStatus, u16, u32);

/// The end that an IRB tells of; word of progress that was not fetched does not count.
fn end_of(irb: &IrbHead) -> End {
    let channel = irb.scsw.subchannel_status() - SubchannelStatus::PROGRAM_CONTROLLED;
    (irb.scsw.device_status(), channel, irb.scsw.count(), irb.scsw.cpa())
}

/// What one device of the large load does: always the same 512 bytes at places of its own.
#[derive(Clone, Copy, Debug)]
struct Job {
    number: u32,
    work: Work,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// A null device reads zeros.
    Zeros,
    /// A disk reads the block with the device's number.
    Read,
    /// A disk writes a block of its own.
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// All of it in the memory that stays.
    Kept,
    /// Half of the data in the memory that stays, half in the stick.
    Across,
    /// The data in the stick.
    Data,
    /// The program in the stick.
    Program,
}

/// Devices at most.
const DEVICES: u32 = 10_000;
/// Where the device with a number has its program and its data, in either region.
const PROGRAMS: u32 = 0x1_0000;
const STICK_PROGRAMS: u32 = STICK + 0x50_0000;
const KEPT_DATA: u32 = 0x20_0000;
/// From here on, programs of the wires that hold the shards.
const WIRES: u32 = 0x1000;
/// Bytes of a program with its parameters.
const PROGRAM_BYTES: u32 = 0x40;
const BLOCK_BYTES: u32 = BLOCK as u32;

impl Job {
    fn of(number: u32) -> Self {
        let work = match number % 4 {
            0 | 2 => Work::Zeros,
            1 => Work::Read,
            _ => Work::Write,
        };
        let place = match number / 4 % 8 {
            0 => Place::Kept,
            1 => Place::Program,
            // A disk would fill up a block of which it gets only half.
            2 | 3 if work != Work::Write => Place::Across,
            _ => Place::Data,
        };
        Job { number, work, place }
    }

    fn spec(&self, volume: &Arc<Volume>) -> DeviceSpec {
        match self.work {
            Work::Zeros => DeviceSpec::Null,
            _ => DeviceSpec::Fba(volume.clone()),
        }
    }

    /// A few have a budget of one frame, so that most of their programs run unpinned.
    fn options(&self) -> DeviceOptions {
        match self.number / 64 % 8 {
            1 => DeviceOptions::default().budget(4096),
            _ => DeviceOptions::default(),
        }
    }

    fn area(&self) -> u32 {
        let base = if self.place == Place::Program { STICK_PROGRAMS } else { PROGRAMS };
        base + self.number * PROGRAM_BYTES
    }

    /// A quarter of the programs forbids prefetching.
    fn orb(&self) -> Orb {
        let orb = Orb::new(self.area() + fba::CCWS);
        if self.number / 32 % 4 == 3 { unfetched(orb) } else { orb }
    }

    /// Where the data is: guest addresses and lengths.
    fn pieces(&self) -> Vec<(u32, u32)> {
        let offset = self.number * BLOCK_BYTES;
        let half = BLOCK_BYTES / 2;
        match self.place {
            Place::Kept | Place::Program => vec![(KEPT_DATA + offset, BLOCK_BYTES)],
            Place::Across => vec![(KEPT_DATA + offset, half), (STICK + offset, half)],
            Place::Data => vec![(STICK + offset, BLOCK_BYTES)],
        }
    }

    /// The block that it reads or writes.
    fn block(&self) -> u32 {
        match self.work {
            Work::Write => DEVICES + self.number,
            _ => self.number,
        }
    }

    fn ccws(&self) -> Vec<Ccw> {
        let code = match self.work {
            Work::Zeros => command::READ_IPL,
            Work::Read => command::FBA_READ,
            Work::Write => command::FBA_WRITE,
        };
        let pieces = self.pieces();
        let data = pieces.iter().enumerate().map(|(index, &(at, len))| {
            let last = index + 1 == pieces.len();
            let flags = if last { CcwFlags::empty() } else { CcwFlags::CHAIN_DATA };
            Ccw::new(code, at, len as u16).with(flags)
        });
        match self.work {
            Work::Zeros => data.collect(),
            _ => [
                Ccw::new(command::DEFINE_EXTENT, self.area(), 16).with(CC),
                Ccw::new(command::FBA_LOCATE, self.area() + 16, 8).with(CC),
            ]
            .into_iter()
            .chain(data)
            .collect(),
        }
    }

    fn lay_out(&self, bench: &Bench) {
        let (mask, operation) = match self.work {
            Work::Write => (fba::MAY_WRITE, fba::WRITE),
            _ => (fba::ONLY_READ, fba::READ),
        };
        bench.put(self.area().into(), &fba::extent(mask, self.block(), 0, 0));
        bench.put(u64::from(self.area()) + 16, &fba::locate(operation, 1, 0));
        bench.put_program(self.area() + fba::CCWS, &self.ccws());
    }

    /// What the data is before the program runs: what a disk is to write in this generation, else
    /// blank.
    fn before(&self, generation: u32) -> [u8; BLOCK as usize] {
        match self.work {
            Work::Write => fba::block(DEVICES * (generation + 1) + self.number),
            _ => [BLANK; BLOCK as usize],
        }
    }

    /// What it is after it.
    fn after(&self, generation: u32) -> [u8; BLOCK as usize] {
        match self.work {
            Work::Zeros => [0; BLOCK as usize],
            Work::Read => fba::block(self.block()),
            Work::Write => self.before(generation),
        }
    }

    fn ends_served(&self) -> End {
        (ENDED, SubchannelStatus::empty(), 0, self.orb().cpa() + 8 * self.ccws().len() as u32)
    }

    /// How it ends without the stick.
    fn ends_without(&self) -> End {
        let (.., behind) = self.ends_served();
        match self.place {
            Place::Kept => self.ends_served(),
            Place::Program => (DeviceStatus::empty(), PGM, 0, self.orb().cpa() + 8),
            Place::Across => (ENDED, PGM, BLOCK_BYTES as u16 / 2, behind),
            Place::Data => (ENDED, PGM, BLOCK_BYTES as u16, behind),
        }
    }
}

/// A number for every request of the process, with the device's number in it.
fn user_data(device: u32) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Relaxed: only distinct.
    NEXT.fetch_add(1, Ordering::Relaxed) << 16 | u64::from(device)
}

/// Tells threads to stop when it is dropped, so also when an assertion fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        // Relaxed: orders nothing.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What goes on beside a change of memory.
struct Traffic<'a> {
    devices: &'a [Subchannel],
    /// Requests that had ended when it began.
    ended_before: u64,
    over: AtomicBool,
    accepted: AtomicU64,
}

impl Traffic<'_> {
    fn is_over(&self) -> bool {
        // Relaxed: nothing is read because of it.
        self.over.load(Ordering::Relaxed)
    }

    /// Submits to one device after the other until it is over; returns what was accepted.
    fn submit(&self, start: usize) -> Vec<u64> {
        let _over = Over(&self.over);
        let mut accepted = Vec::new();
        let mut number = start;
        while !self.is_over() {
            // A prime that divides no number of devices: all get their turn.
            number = (number + 7919) % self.devices.len();
            let request = user_data(number as u32);
            match self.devices[number].submit(&Job::of(number as u32).orb(), request) {
                Ok(()) => {
                    accepted.push(request);
                    // Relaxed: a count.
                    self.accepted.fetch_add(1, Ordering::Relaxed);
                }
                Err(SubmitError::Full { .. }) => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        accepted
    }

    /// Waits until as many more were accepted as there are devices.
    fn wait_for_more(&self) {
        // Relaxed: a count.
        let accepted = || self.accepted.load(Ordering::Relaxed);
        let enough = accepted() + self.devices.len() as u64;
        while accepted() < enough && !self.is_over() {
            thread::yield_now();
        }
    }

    /// Waits until a quarter of as many have ended.
    fn wait_for_ends(&self, service: &Service) {
        let enough = self.ended_before + self.devices.len() as u64 / 4;
        while service.totals().all_completions() < enough && !self.is_over() {
            thread::yield_now();
        }
    }
}

/// Devices by the thousand, and what they have done.
struct Load {
    bench: Bench,
    stick: Arc<GuestRegionMmap>,
    /// Sticks that were pulled: they stay where they are, fenced off.
    pulled: Vec<Arc<GuestRegionMmap>>,
    /// One device a shard that can hold it.
    wires: Vec<Wired>,
    devices: Vec<Subchannel>,
    completions: Completions,
    disk: NamedTempFile,
    /// Times that buffers were filled.
    generation: u32,
    /// The generation in which each device was last served.
    written: Vec<u32>,
    /// Requests so far.
    requests: usize,
}

/// What goes on when memory changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Midst {
    /// Requests by the thousand, some of which have ended.
    Running,
    /// Every shard is held in the middle of a program over the stick. An impatient change finds it
    /// still in use; then the shards are let go.
    Held,
}

impl Load {
    fn new(builder: ServiceBuilder, devices: u32) -> Self {
        let builder =
            builder.shards(2).subchannels(DEVICES as usize).ring_entries(4).budget(1 << 20);
        let (bench, stick) = plugged(builder).expect("it was built before");
        let wires = (0..2).map(|_| Wired::attach(&bench.service, DeviceSpec::Null)).collect();
        let (delivery, completions) = Completions::ring(1 << 14).unwrap();
        let disk = disk();
        let volume = Arc::new(Volume::open(disk.path(), false).unwrap());
        let devices: Vec<_> = (0..devices)
            .map(|number| {
                let job = Job::of(number);
                let (spec, delivery) = (job.spec(&volume), delivery.clone());
                bench.service.attach_with(spec, delivery, job.options()).unwrap()
            })
            .collect();
        let written = vec![0; devices.len()];
        let load = Load {
            bench,
            stick,
            pulled: Vec::new(),
            wires,
            devices,
            completions,
            disk,
            generation: 0,
            written,
            requests: 0,
        };
        load.lay_out(|_| true);
        load
    }

    fn jobs(&self) -> impl Iterator<Item = Job> + use<> {
        (0..self.devices.len() as u32).map(Job::of)
    }

    fn lay_out(&self, of: impl Fn(&Job) -> bool) {
        self.jobs().filter(of).for_each(|job| job.lay_out(&self.bench));
    }

    /// Fills the buffers that are there with what they have before a program runs.
    fn fill(&mut self) {
        self.generation += 1;
        for job in self.jobs() {
            let mut bytes = &job.before(self.generation)[..];
            for (at, len) in job.pieces() {
                let (piece, rest) = bytes.split_at(len as usize);
                if at < STICK || self.bench.memory.num_regions() == 2 {
                    self.bench.put(at.into(), piece);
                }
                bytes = rest;
            }
        }
    }

    /// Every device gets one request and ends as it should with or without the stick.
    fn one_each(&mut self, ends: impl Fn(&Job) -> End) {
        self.fill();
        let accepted = self.submit_to_each();
        self.each_ends_once(&accepted, |job, irb| assert_eq!(end_of(irb), ends(job), "{job:?}"));
    }

    fn submit_to_each(&self) -> Vec<u64> {
        let submit = |(number, device): (usize, &Subchannel)| {
            let request = user_data(number as u32);
            device.submit(&Job::of(number as u32).orb(), request).expect("an empty ring");
            request
        };
        self.devices.iter().enumerate().map(submit).collect()
    }

    /// Takes completions until there are as many as `accepted`, each of them once.
    fn each_ends_once(&mut self, accepted: &[u64], mut look: impl FnMut(&Job, &IrbHead)) {
        let mut open: HashMap<u64, u32> = accepted.iter().map(|request| (*request, 0)).collect();
        let mut left = accepted.len();
        while left > 0 {
            let news = self.completions.wait(Some(STALL)).unwrap();
            assert!(news, "{left} of {} requests are lost", accepted.len());
            left -= self.completions.reap(left, |completion| {
                let times = open.get_mut(&completion.user_data).expect("it was submitted");
                *times += 1;
                assert_eq!(*times, 1, "a request ended twice");
                let job = Job::of(completion.user_data as u32 & 0xffff);
                if end_of(&completion.irb) == job.ends_served() {
                    self.written[job.number as usize] = self.generation;
                }
                look(&job, &completion.irb);
            });
        }
        self.requests += accepted.len();
    }

    /// Makes `memory` the guest's, and then does what `then` says at once, while every device has a
    /// request in flight and two threads go on submitting. Returns, for each device, whether a
    /// request was served.
    fn change_under_load(
        &mut self,
        midst: Midst,
        memory: Arc<GuestMemoryMmap>,
        then: impl FnOnce() + Send,
    ) -> Vec<bool> {
        let service = &self.bench.service;
        let held = match midst {
            Midst::Running => Vec::new(),
            Midst::Held => self.hold_shards(),
        };
        let traffic = Traffic {
            devices: &self.devices,
            ended_before: service.totals().all_completions(),
            over: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
        };
        let mut accepted = self.submit_to_each();
        thread::scope(|scope| {
            let over = Over(&traffic.over);
            let submitters: Vec<_> = [0, 1]
                .map(|start| {
                    let traffic = &traffic;
                    scope.spawn(move || traffic.submit(start))
                })
                .into();
            let (let_go, word) = channel();
            let traffic = &traffic;
            let changer = scope.spawn(move || {
                match midst {
                    Midst::Running => {
                        traffic.wait_for_ends(service);
                        service.replace_memory(memory, STALL).expect("programs end");
                    }
                    Midst::Held => {
                        assert_still_in_use(service.replace_memory(memory, Duration::ZERO));
                        let_go.send(()).unwrap();
                        service.settle_memory(STALL).expect("programs end");
                    }
                }
                then();
                traffic.wait_for_more();
            });
            if midst == Midst::Held {
                // Ends with an error where the thread has panicked.
                let _ = word.recv();
                self.let_shards_go(held);
            }
            changer.join().unwrap();
            drop(over);
            for submitter in submitters {
                accepted.extend(submitter.join().unwrap());
            }
        });
        let mut served = vec![false; self.devices.len()];
        // Requests that need the stick.
        let (mut found, mut missed) = (0, 0);
        self.each_ends_once(&accepted, |job, irb| {
            let end = end_of(irb);
            if end == job.ends_served() {
                served[job.number as usize] = true;
                found += u32::from(job.place != Place::Kept);
            } else {
                assert_eq!(end, job.ends_without(), "{job:?}");
                missed += 1;
            }
        });
        println!("{midst:?}: {found} found the stick, {missed} missed it");
        assert!(midst == Midst::Held || found > 0 && missed > 0, "there was no change in between");
        served
    }

    /// Starts a program over the stick on each shard, which it does not end.
    fn hold_shards(&self) -> Vec<Interruption> {
        for (wire, area) in self.wires.iter().zip((WIRES..).step_by(0x100)) {
            let pci = CC | CcwFlags::PROGRAM_CONTROLLED;
            let read = Ccw::new(command::READ_IPL, STICK + STICK_BYTES as u32 - 512, 64);
            self.bench.put_program(area, &[read.with(pci), read]);
            assert_eq!(wire.subchannel.ssch(&Orb::new(area)), Ok(Cc::Cc0));
        }
        self.wires.iter().map(Wired::interruption).collect()
    }

    fn let_shards_go(&self, held: Vec<Interruption>) {
        drop(held);
        for wire in &self.wires {
            drop(wire.interruption());
            assert!(is_clean_or_program_check(&wire.status()));
        }
    }

    /// Pulls the stick under load, and looks at what was done with it before.
    fn pull(&mut self, midst: Midst) {
        self.fill();
        let stick = self.stick.clone();
        let rest = without_stick(&self.bench.memory);
        let served = self.change_under_load(midst, rest.clone(), move || {
            // At once: whoever is late meets the fence.
            protect(&stick, libc::PROT_NONE);
            assert!(!is_locked(&stick), "pages that were removed are still locked");
        });
        self.bench.memory = rest;
        assert_eq!(Arc::strong_count(&self.stick), 1, "the service keeps what was removed");
        protect(&self.stick, libc::PROT_READ);
        self.assert_data(&served);
        protect(&self.stick, libc::PROT_NONE);
        let pool = self.bench.service.pool();
        assert!(pool.peak_bytes() <= 1 << 20);
        pool.unpin_all_idle().unwrap();
        assert_eq!(pool.pinned_bytes(), 0, "of the memory that stays nothing is left");
    }

    /// Plugs a new stick in under load.
    fn plug(&mut self, midst: Midst) {
        self.pulled.push(std::mem::replace(&mut self.stick, new_stick()));
        let memory = with_stick(&self.bench.memory, &self.stick);
        self.bench.memory = memory.clone();
        self.lay_out(|job| job.place == Place::Program);
        self.fill();
        let served = self.change_under_load(midst, memory, || {});
        self.assert_data(&served);
    }

    /// The data of every device that was served is as it should be, and that of the others in the
    /// stick is untouched.
    fn assert_data(&self, served: &[bool]) {
        let disk = std::fs::read(self.disk.path()).unwrap();
        for job in self.jobs() {
            let number = job.number as usize;
            let expected = match served[number] {
                true => job.after(self.generation),
                false => job.before(self.generation),
            };
            let mut bytes = &expected[..];
            for (at, len) in job.pieces() {
                let (piece, rest) = bytes.split_at(len as usize);
                if at >= STICK {
                    assert_eq!(peek_stick(&self.stick, at, piece.len()), piece, "{job:?}");
                } else if served[number] {
                    assert_eq!(self.bench.peek(at.into(), piece.len()), piece, "{job:?}");
                }
                bytes = rest;
            }
            if job.work == Work::Write {
                let at = job.block() as usize * BLOCK as usize;
                let written = job.before(self.written[number]);
                assert_eq!(disk[at..at + BLOCK as usize], written, "{job:?} on the disk");
            }
        }
    }
}

/// A removal for which a program must be waited.
#[track_caller]
fn assert_still_in_use(result: Result<(), MemoryError>) {
    let error = result.expect_err("a program is using the stick");
    assert!(matches!(error, MemoryError::StillInUse { .. }), "{error}");
}

fn is_clean_or_program_check(irb: &IrbHead) -> bool {
    irb.scsw.is_clean_end() || end_of(irb).1 == PGM
}

/// An image in memory, where there is such a file system: block `n` holds [`fba::block`]`(n)`.
fn disk() -> NamedTempFile {
    let mut builder = tempfile::Builder::new();
    let file = builder.prefix("stick").tempfile_in("/dev/shm");
    let mut file = file.or_else(|_| builder.tempfile()).expect("room for an image");
    file.write_all(&fba::blocks(0, 2 * DEVICES)).expect("room for an image");
    file
}

/// Changes memory again and again under a load of `devices` devices.
fn lose_and_regain(builder: ServiceBuilder, devices: u32, mode: Mode) {
    println!("{devices} devices, {mode}, {builder:?}");
    let mut load = Load::new(builder.mode(mode), devices);
    let all = vec![true; load.devices.len()];
    load.one_each(Job::ends_served);
    load.assert_data(&all);
    for midst in [Midst::Running, Midst::Held, Midst::Running] {
        load.pull(midst);
        load.one_each(Job::ends_without);
        load.plug(midst);
        load.one_each(Job::ends_served);
        load.assert_data(&all);
    }
    assert_eq!(load.pulled.len(), 3);
    let Load { bench, mut completions, requests, wires, .. } = load;
    let totals = bench.service.totals();
    for kind in [CounterKind::PinUnpinned, CounterKind::Unfetched] {
        assert!(totals.counter(kind) > 0, "{kind:?} is not tried");
    }
    // What few devices use fits the budget.
    let evicts = mode == Mode::Cached && devices == DEVICES;
    assert!(totals.counter(CounterKind::PinEvictions) > 0 || !evicts, "nothing is evicted");
    // Each wire ran for two changes of memory.
    assert_eq!(totals.all_completions(), (requests + 2 * wires.len()) as u64);
    drop(bench);
    let late = completions.reap(usize::MAX, |late| panic!("nobody waits for {late:?}"));
    assert_eq!(late, 0);
}

#[test]
fn ten_thousand_devices_lose_their_memory_and_get_it_back() {
    for (index, builder) in builders().into_iter().enumerate() {
        let mode = if index < 2 { Mode::Cached } else { Mode::OnDemand };
        if index % 2 == 0 {
            lose_and_regain(builder, DEVICES, mode);
        } else {
            // Each device that interrupts by eventfd takes two descriptors, and a process has 1,024.
            lose_and_regain(builder.granule(Granule::Bytes(64 << 10)), 400, mode);
        }
    }
}

#[test]
fn registered_pages_are_lost_and_come_back() {
    let builder = Service::builder().pinner(PinnerChoice::Registered);
    match builder.clone().build(bench_guest::memory(4096)) {
        Ok(_) => lose_and_regain(builder, DEVICES, Mode::Cached),
        Err(error) => println!("SKIPPED: {error}"),
    }
}

/// Where small tests have programs, lists and data, in either region.
const PROGRAM: u32 = 0x1_0000;
const LIST: u32 = 0x2_0000;
const BUFFER: u32 = 0x10_0000;

/// One way to need the stick: a program for a disk that reads one block.
struct Way {
    what: &'static str,
    program: u32,
    /// Where DEFINE EXTENT and LOCATE have their parameters.
    parameters: u32,
    read: Ccw,
    /// IDAWs, where there are some.
    list: Vec<u64>,
    /// Where the block arrives: addresses and lengths.
    pieces: Vec<(u32, u32)>,
    /// How it ends without the stick: device status, subchannel status and residual count, and by how
    /// many CCWs the address is behind the first.
    without: (DeviceStatus, SubchannelStatus, u16, u32),
}

/// All ways; what is in the stick differs between generations.
fn ways(generation: u32) -> Vec<Way> {
    let none = DeviceStatus::empty();
    let buffer = BUFFER + generation * BLOCK_BYTES;
    let read = |at| Ccw::new(command::FBA_READ, at, BLOCK_BYTES as u16);
    let way = |what, at: u32, without| Way {
        what,
        program: PROGRAM,
        parameters: PROGRAM - 0x20,
        read: read(at),
        list: Vec::new(),
        pieces: vec![(at, BLOCK_BYTES)],
        without,
    };
    let listed = |what, list, first: u32, pieces: Vec<(u32, u32)>, without| Way {
        read: read(list).with(CcwFlags::INDIRECT),
        list: pieces.iter().map(|piece| piece.0.into()).collect(),
        pieces,
        ..way(what, first, without)
    };
    let (half, page) = (BLOCK_BYTES / 2, BUFFER + 0x1000);
    let halves = vec![(page - half, half), (STICK + 0x1000, half)];
    vec![
        way("data", STICK + 0x2000, (ENDED, PGM, 512, 3)),
        way("data across the border", STICK - half, (ENDED, PGM, 256, 3)),
        listed("data through a list", LIST, page - half, halves, (ENDED, PGM, 256, 3)),
        listed("a list", STICK + 0x3000, buffer, vec![(buffer, BLOCK_BYTES)], (ENDED, PGM, 512, 3)),
        Way {
            parameters: STICK + 0x4000,
            ..way("parameters", buffer, (ENDED | DeviceStatus::UNIT_CHECK, PGM, 16, 1))
        },
        Way { program: STICK + 0x5000, ..way("a program", buffer, (none, PGM, 0, 1)) },
        Way { program: STICK - 16, ..way("the end of a program", buffer, (none, PGM, 0, 3)) },
    ]
}

impl Way {
    /// Writes the program for reading `block`, as far as there is memory for it, and runs it.
    fn run(&self, bench: &Bench, disk: &mut Device, prefetch: bool, block: u32) -> IrbHead {
        let plugged = bench.memory.num_regions() == 2;
        let put = |at: u32, bytes: &[u8]| {
            if at < STICK || plugged {
                bench.put(at.into(), bytes);
            }
        };
        put(self.parameters, &fba::extent(fba::ONLY_READ, block, 0, 0));
        put(self.parameters + 16, &fba::locate(fba::READ, 1, 0));
        let extent = Ccw::new(command::DEFINE_EXTENT, self.parameters, 16).with(CC);
        let locate = Ccw::new(command::FBA_LOCATE, self.parameters + 16, 8).with(CC);
        for (at, ccw) in (self.program..).step_by(8).zip([extent, locate, self.read]) {
            put(at, &ccw.to_format_1());
        }
        for (at, word) in (self.read.address..).step_by(8).zip(&self.list) {
            put(at, &word.to_be_bytes());
        }
        let orb = Orb::new(self.program);
        disk.run(&if prefetch { orb } else { unfetched(orb) })
    }

    fn ends_without(&self) -> End {
        let (device, channel, count, ccws) = self.without;
        (device, channel, count, self.program + 8 * ccws)
    }

    #[track_caller]
    fn assert_read(&self, bench: &Bench, block: u32) {
        let read: Vec<u8> =
            self.pieces.iter().flat_map(|&(at, len)| bench.peek(at.into(), len as usize)).collect();
        assert_eq!(read, fba::block(block), "{}", self.what);
    }
}

/// Runs every way both with and without prefetching, each with a block of its own.
fn each_way(generation: u32, mut run: impl FnMut(&Way, bool, u32)) {
    for (number, way) in (generation * 32..).step_by(2).zip(ways(generation)) {
        run(&way, true, number);
        run(&way, false, number + 1);
    }
}

#[test]
fn what_was_removed_is_missed_as_if_it_had_never_been_there() {
    for builder in builders() {
        println!("{builder:?}");
        let image = Image::new(256);
        let (mut bench, mut stick) = plugged(builder.clone()).unwrap();
        let mut disk = bench.attach(image.disk());
        // The same guest without a stick from the start.
        let never = bench_guest::memory(KEPT_BYTES);
        let never = Bench { service: builder.build(never.clone()).unwrap(), memory: never };
        let mut never_disk = never.attach(image.disk());
        let mut fenced = Vec::new();
        for generation in 0..4 {
            each_way(generation, |way, prefetch, block| {
                let irb = way.run(&bench, &mut disk, prefetch, block);
                assert!(irb.scsw.is_clean_end(), "{}: {irb:?}", way.what);
                way.assert_read(&bench, block);
            });
            let other = new_stick();
            if generation % 2 == 0 {
                pull(&bench.service, &mut bench.memory, &stick);
                assert!(bench.service.memory().region(STICK.into()).is_none());
                each_way(generation, |way, prefetch, block| {
                    let irb = way.run(&bench, &mut disk, prefetch, block);
                    assert_eq!(end_of(&irb), way.ends_without(), "{}", way.what);
                    assert_eq!(
                        irb,
                        way.run(&never, &mut never_disk, prefetch, block),
                        "{}",
                        way.what
                    );
                });
                plug(&bench.service, &mut bench.memory, &other);
            } else {
                // One stick for the other, in one step.
                bench.memory = with_stick(&without_stick(&bench.memory), &other);
                bench.service.replace_memory(bench.memory.clone(), STALL).unwrap();
                assert_let_go(&stick);
            }
            assert!(bench.service.memory().region(STICK.into()).is_some());
            fenced.push(std::mem::replace(&mut stick, other));
        }
    }
}

/// A program that reads into the stick twice, and tells that it has begun.
fn put_long_program(bench: &Bench) {
    let read = Ccw::new(command::READ_IPL, STICK, 64);
    bench.put_program(PROGRAM, &[read.with(CC | CcwFlags::PROGRAM_CONTROLLED), read]);
}

/// A program that reads into the stick once.
const SHORT_PROGRAM: u32 = PROGRAM + 0x100;
const SHORT_ENDS_WITHOUT: End = (ENDED, PGM, 64, SHORT_PROGRAM + 8);

fn put_short_program(bench: &Bench) {
    bench.put_program(SHORT_PROGRAM, &[Ccw::new(command::READ_IPL, STICK, 64)]);
}

/// What a program can be held in the middle of: translated or not, with the device in the task or
/// beside it. A device beside it is done with an unfetched program before the shard can be held.
const UNDER_WAY: [(Interrupts, bool); 3] =
    [(Interrupts::Direct, true), (Interrupts::Direct, false), (Interrupts::EventFd, true)];

fn long_orb(prefetch: bool) -> Orb {
    let orb = Orb::new(PROGRAM);
    if prefetch { orb } else { unfetched(orb) }
}

#[test]
fn a_program_under_way_keeps_what_it_uses() {
    for (interrupts, prefetch) in UNDER_WAY {
        println!("{interrupts:?}, prefetch {prefetch}");
        let builder = Service::builder().shards(2).interrupts(interrupts);
        let (mut bench, stick) = plugged(builder).unwrap();
        let wired = Wired::attach(&bench.service, DeviceSpec::Null);
        let mut elsewhere = bench.attach(DeviceSpec::Null);
        let mut behind = bench.attach(DeviceSpec::Null);
        put_long_program(&bench);
        put_short_program(&bench);
        let short = Orb::new(SHORT_PROGRAM);
        // Neither has its first look at its ring still before it.
        for device in [&mut elsewhere, &mut behind] {
            assert!(device.run(&short).scsw.is_clean_end());
        }
        assert_eq!(wired.subchannel.ssch(&long_orb(prefetch)), Ok(Cc::Cc0));
        let held = wired.interruption();

        bench.memory = without_stick(&bench.memory);
        let rest = bench.memory.clone();
        assert_still_in_use(bench.service.replace_memory(rest, Duration::ZERO));
        assert!(Arc::strong_count(&stick) > 1, "the stick could be unmapped under the program");
        // The new layout is in force for everybody else.
        assert!(bench.service.memory().region(STICK.into()).is_none());
        assert_eq!(end_of(&elsewhere.run(&short)), SHORT_ENDS_WITHOUT);
        behind.subchannel.submit(&short, 1).unwrap();
        assert_still_in_use(bench.service.settle_memory(Duration::ZERO));

        thread::scope(|scope| {
            let settling = scope.spawn(|| bench.service.settle_memory(STALL));
            // Nobody else waits for that.
            assert!(bench.service.memory().region(STICK.into()).is_none());
            assert_eq!(end_of(&bench.attach(DeviceSpec::Null).run(&short)), SHORT_ENDS_WITHOUT);
            drop(held);
            drop(wired.interruption());
            let irb = wired.status();
            assert!(irb.scsw.is_clean_end(), "the program had the stick to its end: {irb:?}");
            settling.join().unwrap().unwrap();
        });
        assert_let_go(&stick);
        assert_eq!(end_of(&behind.completion().irb), SHORT_ENDS_WITHOUT);
        assert_eq!(wired.subchannel.ssch(&long_orb(prefetch)), Ok(Cc::Cc0));
        drop(wired.interruption());
        drop(wired.interruption());
        assert_eq!(end_of(&wired.status()), (ENDED, PGM, 64, PROGRAM + 8));
        bench.service.settle_memory(Duration::ZERO).expect("nothing is left to settle");
    }
}

#[test]
fn another_stick_waits_until_the_first_is_not_in_use() {
    for (interrupts, prefetch) in UNDER_WAY {
        println!("{interrupts:?}, prefetch {prefetch}");
        let builder = Service::builder().shards(2).interrupts(interrupts);
        let (mut bench, stick) = plugged(builder).unwrap();
        let wired = Wired::attach(&bench.service, DeviceSpec::Null);
        let mut elsewhere = bench.attach(DeviceSpec::Null);
        put_long_program(&bench);
        put_short_program(&bench);
        assert!(elsewhere.run(&Orb::new(SHORT_PROGRAM)).scsw.is_clean_end());
        bench.put(STICK.into(), &[BLANK; 64]);
        assert_eq!(wired.subchannel.ssch(&long_orb(prefetch)), Ok(Cc::Cc0));
        let held = wired.interruption();

        let rest = without_stick(&bench.memory);
        assert_still_in_use(bench.service.replace_memory(rest.clone(), Duration::ZERO));
        let other = new_stick();
        bench.memory = with_stick(&rest, &other);
        bench.put(STICK.into(), &[BLANK; 64]);
        let memory = bench.memory.clone();
        let replace = |patience| bench.service.replace_memory(memory.clone(), patience);
        // One change after the other: nothing of this one has happened.
        let error = replace(Duration::ZERO).unwrap_err();
        assert!(matches!(error, MemoryError::Unsettled { .. }), "{error}");
        assert!(bench.service.memory().region(STICK.into()).is_none());
        assert_eq!(end_of(&elsewhere.run(&Orb::new(SHORT_PROGRAM))), SHORT_ENDS_WITHOUT);

        thread::scope(|scope| {
            let plugging = scope.spawn(|| replace(STALL));
            drop(held);
            drop(wired.interruption());
            assert!(wired.status().scsw.is_clean_end());
            plugging.join().unwrap().unwrap();
        });
        assert_eq!(peek_stick(&stick, STICK, 64), [0; 64], "it ended where it began");
        assert_eq!(bench.peek(STICK.into(), 64), [BLANK; 64]);
        assert_let_go(&stick);
        assert!(elsewhere.run(&Orb::new(SHORT_PROGRAM)).scsw.is_clean_end());
        assert_eq!(bench.peek(STICK.into(), 64), [0; 64], "served from the new stick");
        assert_eq!(wired.subchannel.ssch(&long_orb(prefetch)), Ok(Cc::Cc0));
        drop(wired.interruption());
        drop(wired.interruption());
        assert!(wired.status().scsw.is_clean_end());
    }
}

/// A program at `at` whose second read, into the stick, suspends it.
fn put_suspending_program(bench: &Bench, at: u32, suspends: bool) {
    let flags = if suspends { CcwFlags::SUSPEND } else { CcwFlags::empty() };
    let reads = [BUFFER, STICK].map(|at| Ccw::new(command::READ_IPL, at, 64));
    bench.put_program(at, &[reads[0].with(CC), reads[1].with(flags)]);
}

#[test]
fn a_program_that_is_resumed_finds_the_memory_of_now() {
    let none = DeviceStatus::empty();
    // Where it stands, whether another stick is there when it is resumed, and its end.
    let cases = [
        (PROGRAM, false, (ENDED, PGM, 64, PROGRAM + 16)),
        (PROGRAM, true, (ENDED, SubchannelStatus::empty(), 0, PROGRAM + 16)),
        (STICK + 0x1000, false, (none, PGM, 0, STICK + 0x1010)),
        (STICK + 0x1000, true, (ENDED, SubchannelStatus::empty(), 0, STICK + 0x1010)),
    ];
    for interrupts in [Interrupts::Direct, Interrupts::EventFd] {
        for ((at, replaced, end), prefetch) in
            cases.into_iter().flat_map(|case| [(case, true), (case, false)])
        {
            println!("{interrupts:?}, program at {at:#x}, replaced {replaced}, {prefetch}");
            let (mut bench, stick) = plugged(Service::builder().interrupts(interrupts)).unwrap();
            let mut device = bench.attach(DeviceSpec::Null);
            put_suspending_program(&bench, at, true);
            let orb = Orb::new(at);
            let orb = orb.with_flags(orb.flags() | OrbFlags::SUSPEND_CONTROL);
            device.subchannel.submit(&if prefetch { orb } else { unfetched(orb) }, 1).unwrap();
            let told = device.completion();
            assert!(told.irb.scsw.flags().contains(ScswFlags::SUSPENDED), "{told:?}");

            // Nobody can say when it will be resumed: nothing waits for it.
            pull(&bench.service, &mut bench.memory, &stick);
            let other = new_stick();
            if replaced {
                plug(&bench.service, &mut bench.memory, &other);
                bench.put(STICK.into(), &[BLANK; 64]);
            }
            if at < STICK || replaced {
                put_suspending_program(&bench, at, false);
            }
            assert_eq!(device.subchannel.rsch(), Cc::Cc0);
            let ended = device.completion();
            assert!(ended.is_final() && ended.user_data == 1, "{ended:?}");
            assert_eq!(end_of(&ended.irb), end);
            if replaced {
                assert_eq!(bench.peek(STICK.into(), 64), [0; 64]);
            }
        }
    }
}

#[test]
fn a_program_in_line_for_room_does_not_bring_back_what_was_removed() {
    for prefetch in [true, false] {
        let builder = Service::builder().shards(2).budget(2 * 4096);
        let (mut bench, stick) = plugged(builder).unwrap();
        let wired = Wired::attach(&bench.service, DeviceSpec::Null);
        let mut waiting = bench.attach(DeviceSpec::Null);
        // The next but one is on the same shard.
        let [_, mut beside] = [(); 2].map(|()| bench.attach(DeviceSpec::Null));
        // It holds all the room there is, and none of the stick.
        let read = Ccw::new(command::READ_IPL, BUFFER, 2 * 4096);
        bench.put_program(PROGRAM, &[read.with(CC | CcwFlags::PROGRAM_CONTROLLED), read]);
        put_short_program(&bench);
        assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        let held = wired.interruption();
        let short = Orb::new(SHORT_PROGRAM);
        let short = if prefetch { short } else { unfetched(short) };
        waiting.subchannel.submit(&short, 1).unwrap();
        // It waits in line, or was served without being pinned.
        let pool = bench.service.pool().clone();
        let begun = Instant::now();
        let mut ended = None;
        while pool.waiting() == 0 && ended.is_none() {
            waiting.completions.reap(1, |completion| ended = Some(completion));
            assert!(begun.elapsed() < STALL, "neither in line nor served");
            thread::yield_now();
        }
        bench.memory = without_stick(&bench.memory);
        assert_still_in_use(bench.service.replace_memory(bench.memory.clone(), Duration::ZERO));
        // Its shard hears of it while the program is still in line.
        bench.put_program(SHORT_PROGRAM + 8, &[Ccw::new(command::NOP, 0, 0)]);
        (0..100)
            .for_each(|_| assert!(beside.run(&Orb::new(SHORT_PROGRAM + 8)).scsw.is_clean_end()));
        drop(held);
        drop(wired.interruption());
        assert!(wired.status().scsw.is_clean_end());
        bench.service.settle_memory(STALL).expect("programs end");
        assert_let_go(&stick);
        let irb = ended.unwrap_or_else(|| waiting.completion()).irb;
        assert!(irb.scsw.is_clean_end() || end_of(&irb) == SHORT_ENDS_WITHOUT, "{irb:?}");
        assert_eq!(end_of(&waiting.run(&short)), SHORT_ENDS_WITHOUT);
        pool.unpin_all_idle().unwrap();
        assert_eq!((pool.pinned_bytes(), pool.waiting()), (0, 0));
    }
}

/// A service in mode pinned with room for this many bytes, unless the machine has none.
fn pinned(bytes: usize) -> Option<(Bench, Arc<GuestRegionMmap>)> {
    match plugged(Service::builder().mode(Mode::Pinned).budget(bytes as u64)) {
        Ok(plugged) => Some(plugged),
        Err(error) if error.to_string().contains("RLIMIT_MEMLOCK") => {
            println!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_guest_that_is_pinned_as_a_whole_stays_pinned() {
    let Some((mut bench, mut stick)) = pinned(KEPT_BYTES + STICK_BYTES) else { return };
    let pool = bench.service.pool().clone();
    let mut device = bench.attach(DeviceSpec::Null);
    put_short_program(&bench);
    for _ in 0..3 {
        assert_eq!(pool.pinned_bytes(), (KEPT_BYTES + STICK_BYTES) as u64);
        assert!(is_locked(&stick));
        assert!(device.run(&Orb::new(SHORT_PROGRAM)).scsw.is_clean_end());
        pull(&bench.service, &mut bench.memory, &stick);
        assert_eq!(pool.pinned_bytes(), KEPT_BYTES as u64);
        assert_eq!(end_of(&device.run(&Orb::new(SHORT_PROGRAM))), SHORT_ENDS_WITHOUT);
        stick = new_stick();
        plug(&bench.service, &mut bench.memory, &stick);
    }
    assert!(pool.peak_bytes() <= (KEPT_BYTES + STICK_BYTES) as u64);
}

#[test]
fn memory_that_would_have_to_be_pinned_and_does_not_fit_is_refused() {
    let Some((mut bench, stick)) = pinned(KEPT_BYTES + STICK_BYTES) else { return };
    let pool = bench.service.pool().clone();
    let mut device = bench.attach(DeviceSpec::Null);
    put_short_program(&bench);
    pull(&bench.service, &mut bench.memory, &stick);
    pool.set_budget(KEPT_BYTES as u64, STALL).unwrap();
    let other = new_stick();
    let memory = with_stick(&bench.memory, &other);
    let error = bench.service.replace_memory(memory, STALL).expect_err("it does not fit");
    let (whole, room) = ((KEPT_BYTES + STICK_BYTES).to_string(), KEPT_BYTES.to_string());
    let text = error.to_string();
    assert!(text.contains(&whole) && text.contains(&room), "{text}");
    assert_let_go(&other);
    assert!(bench.service.memory().region(STICK.into()).is_none());
    assert_eq!(pool.pinned_bytes(), KEPT_BYTES as u64);
    assert_eq!(end_of(&device.run(&Orb::new(SHORT_PROGRAM))), SHORT_ENDS_WITHOUT);
}

#[test]
fn a_layout_that_cannot_be_served_changes_nothing() {
    let (bench, stick) = plugged(Service::builder()).unwrap();
    let mut device = bench.attach(DeviceSpec::Null);
    put_short_program(&bench);
    let odd = MmapRegion::new(0x1800).unwrap();
    let odd = GuestRegionMmap::new(odd, GuestAddress(STICK.into())).unwrap();
    let memory = without_stick(&bench.memory).insert_region(Arc::new(odd)).unwrap();
    let error = bench.service.replace_memory(Arc::new(memory), STALL).unwrap_err();
    assert!(error.to_string().contains(&format!("{STICK:#x}")), "{error}");
    assert_eq!(bench.service.memory().bytes(), (KEPT_BYTES + STICK_BYTES) as u64);
    bench.put(STICK.into(), &[BLANK; 64]);
    assert!(device.run(&Orb::new(SHORT_PROGRAM)).scsw.is_clean_end());
    assert_eq!(peek_stick(&stick, STICK, 64), [0; 64]);
}

#[test]
fn frame_numbers_of_what_was_removed_are_given_again() {
    let whole = KEPT_BYTES + STICK_BYTES;
    let (mut bench, mut stick) = plugged(Service::builder().max_memory(whole as u64)).unwrap();
    let mut device = bench.attach(DeviceSpec::Null);
    put_short_program(&bench);
    for _ in 0..50 {
        assert!(device.run(&Orb::new(SHORT_PROGRAM)).scsw.is_clean_end());
        pull(&bench.service, &mut bench.memory, &stick);
        stick = new_stick();
        plug(&bench.service, &mut bench.memory, &stick);
    }
    // But there are no more than were asked for.
    let more = MmapRegion::new(4096).unwrap();
    let more = GuestRegionMmap::new(more, GuestAddress(whole as u64)).unwrap();
    let memory = Arc::new(bench.memory.insert_region(Arc::new(more)).unwrap());
    let error = bench.service.replace_memory(memory, STALL).expect_err("no number is left");
    let text = error.to_string();
    let frames = |bytes: usize| (bytes / 4096).to_string();
    assert!(text.contains(&frames(whole)) && text.contains(&frames(whole + 4096)), "{text}");
    assert_eq!(bench.service.memory().bytes(), whole as u64);
    assert!(device.run(&Orb::new(SHORT_PROGRAM)).scsw.is_clean_end());
}

#[test]
fn modes_are_switched_while_memory_comes_and_goes() {
    let Some((bench, mut stick)) = pinned(KEPT_BYTES + STICK_BYTES) else { return };
    put_short_program(&bench);
    bench.put_program(PROGRAM, &[Ccw::new(command::READ_IPL, BUFFER, 4096)]);
    let [mut staying, mut moving] = [(); 2].map(|()| bench.attach(DeviceSpec::Null));
    let handles = [staying.subchannel.clone(), moving.subchannel.clone()];
    let Bench { service, mut memory } = bench;
    let over = AtomicBool::new(false);
    // Relaxed: nothing is read because of it.
    let is_over = || over.load(Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _over = Over(&over);
            while !is_over() {
                assert!(staying.run(&Orb::new(PROGRAM)).scsw.is_clean_end());
            }
        });
        scope.spawn(|| {
            let _over = Over(&over);
            while !is_over() {
                let irb = moving.run(&Orb::new(SHORT_PROGRAM));
                assert!(irb.scsw.is_clean_end() || end_of(&irb) == SHORT_ENDS_WITHOUT, "{irb:?}");
            }
        });
        scope.spawn(|| {
            let _over = Over(&over);
            for (handle, mode) in handles.iter().cycle().zip(Mode::ALL.into_iter().cycle()) {
                if is_over() {
                    break;
                }
                service.set_mode(handle, mode, STALL).unwrap();
                assert_eq!(handle.mode(), mode);
            }
        });
        let _over = Over(&over);
        for _ in 0..20 {
            pull(&service, &mut memory, &stick);
            stick = new_stick();
            plug(&service, &mut memory, &stick);
            assert!(!is_over(), "another thread has failed");
        }
    });
    for handle in &handles {
        service.set_mode(handle, Mode::OnDemand, STALL).unwrap();
    }
    assert_eq!(service.pool().pinned_bytes(), 0);
    assert!(service.pool().peak_bytes() <= (KEPT_BYTES + STICK_BYTES) as u64);
}
