//! In the steady state a request allocates nothing, on no thread of the process.
//!
//! There is one test: whatever else ran in this process would be counted too. After a warm-up with
//! more subchannels than are measured, with all their programs under way at once, the count is
//! exactly zero.

pub mod bench_guest;
pub mod served;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::Instant;

use bench_guest::fba::{self, Image};
use bench_guest::{Bench, STALL};
use served::{BOTH_WAYS, Served};
use vfio_ccw::architecture::{
    Ccw, CcwFlags, IoInterruption, Midaw, MidawFlags, Orb, OrbFlags, command,
};
use vfio_ccw::server::{ServedDevice, Server};
use vfio_ccw::translation::{Program, Rules};
use vfio_ccw::{
    Cc, Completions, Delivery, DeviceSpec, Driver, DriverChoice, Interrupts, Mode, Policy, Service,
    ServiceError, Subchannel, Trigger,
};
use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_pinning::{GuestMap, Hold};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Counts what is allocated between [`armed`]'s begin and end.
struct Counting;

static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
/// Where the first counted allocation came from.
static FIRST: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    /// Taking a backtrace allocates too.
    static TRACING: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    // Relaxed: the threads that matter have been handed work, or have handed back results, through
    // rings since the flag was changed.
    if !ARMED.load(Ordering::Relaxed) || TRACING.get() {
        return;
    }
    // Relaxed: a counter, read when everything has ended.
    if COUNT.fetch_add(1, Ordering::Relaxed) == 0 {
        TRACING.set(true);
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let place = format!("on thread {thread}:\n{}", Backtrace::force_capture());
        *FIRST.lock().expect("nobody panics with it") = Some(place);
        TRACING.set(false);
    }
}

// SAFETY: every call goes to the system allocator unchanged; the counting neither unwinds nor frees
// what was given out. Test: `a_request_allocates_nothing` runs on it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of the method of the same name. Test: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as in `alloc`. Test: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: `memory` came from the methods above, so from `System`. Test: as above.
        unsafe { System.realloc(memory, layout, bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`. Test: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of all threads while `work` runs, and where the first of them was.
fn armed(work: impl FnOnce()) -> (u64, Option<String>) {
    // Relaxed: see `count`.
    COUNT.store(0, Ordering::Relaxed);
    ARMED.store(true, Ordering::Relaxed);
    work();
    ARMED.store(false, Ordering::Relaxed);
    let first = FIRST.lock().expect("nobody panics with it").take();
    (COUNT.load(Ordering::Relaxed), first)
}

/// Subchannels that carry the measured load.
const SUBCHANNELS: usize = 8;
/// Subchannels that carry the load before: buffers grow to the most that ever was at once, and what
/// is measured shall stay below.
const WARM_UP_SUBCHANNELS: usize = 32;
/// Programs that each subchannel runs in turn; each touches three frames.
const PROGRAMS: usize = 8;
const BUFFERS: u32 = 0x10_0000;
const MEMORY: usize = 8 << 20;
const WARM_UP: usize = 6_000;
const MEASURED: usize = 6_000;

/// One way to run a service.
struct Case {
    name: String,
    driver: DriverChoice,
    mode: Mode,
    interrupts: Interrupts,
    budget: u64,
    disk: bool,
    /// Its devices are those of a server, on a thread of this process.
    remote: Option<served::Way>,
}

const URING: DriverChoice = DriverChoice::Only(Driver::IoUring);
const EPOLL: DriverChoice = DriverChoice::Only(Driver::Epoll);
/// All that the programs touch, and less: then requests evict and wait.
const ROOMY: u64 = 2 << 20;
const TIGHT: u64 = 16 * 4096;

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (driver, driver_name) in [(URING, "io_uring"), (EPOLL, "epoll")] {
        for (disk, device) in [(false, "null"), (true, "fba")] {
            let case = |what: &str, mode, budget, interrupts| Case {
                name: format!("{driver_name} {device} {what}"),
                driver,
                mode,
                interrupts,
                budget,
                disk,
                remote: None,
            };
            cases.push(case("cached", Mode::Cached, ROOMY, Interrupts::Direct));
            cases.push(case("on-demand", Mode::OnDemand, ROOMY, Interrupts::Direct));
            cases.push(case("cached, tight", Mode::Cached, TIGHT, Interrupts::Direct));
            cases.push(case("cached, eventfd", Mode::Cached, ROOMY, Interrupts::EventFd));
            for way in BOTH_WAYS {
                let what = format!("cached, remote, {way:?}");
                let case = case(&what, Mode::Cached, ROOMY, Interrupts::Direct);
                cases.push(Case { remote: Some(way), ..case });
            }
        }
    }
    cases
}

/// Devices with programs in guest memory for them.
struct Rig {
    bench: Bench,
    image: Image,
    disk: bool,
    served: Option<(Served, served::Way)>,
}

impl Rig {
    /// `None`: this machine does not have what the case needs.
    fn new(case: &Case) -> Option<Self> {
        let builder = Service::builder()
            .driver(case.driver)
            .mode(case.mode)
            .interrupts(case.interrupts)
            .budget(case.budget);
        let region = served::region("guest", 0, MEMORY);
        let memory = GuestMemoryMmap::from_arc_regions(vec![region]).expect("one region");
        let memory = Arc::new(memory);
        let service = match builder.build(memory.clone()) {
            Ok(service) => service,
            Err(error @ (ServiceError::IoUring(_) | ServiceError::Memlock { .. })) => {
                println!("SKIPPED: {}: {error}", case.name);
                return None;
            }
            Err(error) => panic!("{}: {error}", case.name),
        };
        let bench = Bench { memory, service };
        let image = Image::new((WARM_UP_SUBCHANNELS * PROGRAMS * 8) as u32);
        for index in 0..(WARM_UP_SUBCHANNELS * PROGRAMS) as u32 {
            let code = [command::FBA_READ, command::FBA_WRITE][index as usize % 2];
            let buffer = BUFFERS + index * 0x2000 + 0x800;
            fba::put_transfer(&bench, area(index), code, index * 8, 8, buffer);
        }
        let device = |devno| match case.disk {
            true => ServedDevice::fba(devno, image.volume(false)),
            false => ServedDevice::null(devno),
        };
        let served = case.remote.map(|way| {
            let devices = (0..WARM_UP_SUBCHANNELS as u16).map(device).collect();
            let server = Server::new().driver(case.driver);
            (Served::with(server, devices).expect("the server starts"), way)
        });
        Some(Rig { bench, image, disk: case.disk, served })
    }

    fn attach(&self, delivery: &Delivery) -> Vec<Subchannel> {
        let spec = |number| match &self.served {
            Some((served, way)) => DeviceSpec::remote(served.connect(number, *way)),
            None if self.disk => self.image.disk(),
            None => DeviceSpec::Null,
        };
        let attach = |number| {
            self.bench.service.attach(spec(number), delivery.clone()).expect("room for it")
        };
        (0..WARM_UP_SUBCHANNELS).map(attach).collect()
    }

    /// Holds the whole budget until every subchannel has a program that waits for it.
    fn dam(&self, start: impl FnOnce()) {
        let dam = self.bench.dam();
        start();
        dam.wait_for_programs(WARM_UP_SUBCHANNELS);
    }
}

fn area(index: u32) -> u32 {
    0x1_0000 + index * 0x100
}

fn orb(subchannel: usize, round: usize) -> Orb {
    Orb::new(area((subchannel * PROGRAMS + round % PROGRAMS) as u32) + fba::CCWS)
}

/// How a job starts programs and learns of their ends.
trait Way {
    fn start(&mut self, subchannel: usize, orb: &Orb);
    /// Waits until something has ended and gives each subchannel it has ended on.
    fn ended(&mut self, each: impl FnMut(usize));
}

/// Keeps `subchannels` busy with one program each until `requests` have ended.
fn run(way: &mut impl Way, subchannels: usize, requests: usize, free: &mut Vec<usize>) {
    let (mut started, mut under_way) = (0, 0);
    free.clear();
    free.extend(0..subchannels);
    while started < requests || under_way > 0 {
        while started < requests
            && let Some(subchannel) = free.pop()
        {
            way.start(subchannel, &orb(subchannel, started / subchannels));
            started += 1;
            under_way += 1;
        }
        way.ended(|subchannel| {
            free.push(subchannel);
            under_way -= 1;
        });
    }
}

/// Submissions and completions.
struct Ring {
    disks: Vec<Subchannel>,
    completions: Completions,
}

impl Way for Ring {
    fn start(&mut self, subchannel: usize, orb: &Orb) {
        self.disks[subchannel].submit(orb, subchannel as u64).expect("an empty ring");
    }

    fn ended(&mut self, mut each: impl FnMut(usize)) {
        assert!(self.completions.wait(Some(STALL)).expect("poll"), "a request never ended");
        self.completions.reap(usize::MAX, |completion| {
            assert!(completion.irb.scsw.is_clean_end(), "{:?}", completion.irb);
            each(completion.user_data as usize);
        });
    }
}

/// SSCH, interrupt, TSCH.
struct Instructions {
    disks: Vec<Subchannel>,
    pending: Arc<Pending>,
}

/// An interrupt controller: one bit a subchannel, and a vCPU that sleeps.
struct Pending {
    bits: AtomicU64,
    vcpu: Thread,
}

impl Trigger<IoInterruption> for Pending {
    fn trigger(&self, interruption: &IoInterruption) -> io::Result<()> {
        // Release: pairs with the Acquire in `Instructions::ended`.
        self.bits.fetch_or(1 << interruption.subchannel.number(), Ordering::Release);
        self.vcpu.unpark();
        Ok(())
    }
}

impl Way for Instructions {
    fn start(&mut self, subchannel: usize, orb: &Orb) {
        assert_eq!(self.disks[subchannel].ssch(orb), Ok(Cc::Cc0));
    }

    fn ended(&mut self, mut each: impl FnMut(usize)) {
        let begin = Instant::now();
        let mut bits = 0;
        while bits == 0 {
            assert!(begin.elapsed() < STALL, "a program never ended");
            std::thread::park_timeout(STALL);
            // Acquire: pairs with the Release in `trigger`.
            bits = self.pending.bits.swap(0, Ordering::Acquire);
        }
        while bits != 0 {
            let number = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let (cc, irb) = self.disks[number].tsch();
            assert!(cc == Cc::Cc0 && irb.scsw.is_clean_end(), "{irb:?}");
            each(number);
        }
    }
}

/// Runs a case; what was allocated where, if anything was.
fn measure(name: &str, rig: &Rig, way: &mut impl Way) -> Option<String> {
    let mut free = Vec::with_capacity(WARM_UP_SUBCHANNELS);
    for round in 0..PROGRAMS {
        rig.dam(|| {
            (0..WARM_UP_SUBCHANNELS)
                .for_each(|subchannel| way.start(subchannel, &orb(subchannel, round)));
        });
        let mut ended = 0;
        while ended < WARM_UP_SUBCHANNELS {
            way.ended(|_| ended += 1);
        }
    }
    run(way, WARM_UP_SUBCHANNELS, WARM_UP, &mut free);
    let (allocations, first) = armed(|| run(way, SUBCHANNELS, MEASURED, &mut free));
    println!("{name}: {allocations} allocations in {MEASURED} requests");
    let place = innermost(&first?);
    Some(format!("{name}: {allocations} allocations in {MEASURED} requests, the first {place}"))
}

/// The frames next to the allocation.
fn innermost(place: &str) -> String {
    place.lines().take(48).collect::<Vec<_>>().join("\n")
}

fn ring_case(case: &Case) -> Option<String> {
    let rig = Rig::new(case)?;
    let (delivery, completions) = Completions::ring(64).expect("an eventfd");
    let disks = rig.attach(&delivery);
    measure(&case.name, &rig, &mut Ring { disks, completions })
}

fn instructions_case(case: &Case) -> Option<String> {
    let rig = Rig::new(case)?;
    let pending = Arc::new(Pending { bits: AtomicU64::new(0), vcpu: std::thread::current() });
    let disks = rig.attach(&Delivery::Interrupt(pending.clone()));
    let name = format!("{}, instructions", case.name);
    measure(&name, &rig, &mut Instructions { disks, pending })
}

/// Translates programs that take every path there is, once to warm up and once more.
fn translation_cases() -> Vec<String> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]);
    let map = GuestMap::new(Arc::new(memory.expect("address space"))).expect("frames");
    let put = |at: u64, ccws: &[Ccw]| {
        for (index, ccw) in ccws.iter().enumerate() {
            assert!(map.write(at + index as u64 * 8, &ccw.to_format_1()));
        }
    };
    let chain = CcwFlags::CHAIN_COMMAND;
    let read = Ccw::new(command::FBA_READ, 0x8_0000, 0x3000).with(chain);
    put(0x1000, &vec![read; 3000]);
    put(0x1000 + 3000 * 8, &[Ccw::new(command::TIC, 0x1_0000, 0)]);
    let (search, midaw) = (Ccw::new(0x31, 0x9_0000, 5), Ccw::new(command::FBA_READ, 0x200, 0x1008));
    let pieces = [
        Ccw::new(0x0c, 0x9_1fff, 0x1800).with(CcwFlags::CHAIN_DATA),
        Ccw::new(command::NOP, 0x9_2000, 16).with(CcwFlags::SKIP | CcwFlags::CHAIN_DATA),
        Ccw::new(0, u32::MAX, 16).with(chain),
        search.with(chain),
        Ccw::new(command::TIC, 0x1_0018, 0),
        midaw.with(CcwFlags::MODIFIED_INDIRECT | chain),
        Ccw::new(command::DEFINE_EXTENT, 0x9_0000, 16).with(chain),
        Ccw::new(command::FBA_WRITE, 0x300, 0x2000).with(CcwFlags::INDIRECT | chain),
        Ccw::new(command::TIC, 0x7fff_0000, 0),
    ];
    put(0x1_0000, &pieces);
    map.write(0x200, &Midaw::new(0x8_0000, 0x1000).to_bytes());
    map.write(0x210, &Midaw::new(0x8_4000, 8).with(MidawFlags::LAST).to_bytes());
    map.write(0x300, &0x8_5000u64.to_be_bytes());
    let shadow = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]);
    let shadow = GuestMap::new(Arc::new(shadow.expect("address space"))).expect("frames");
    let judged = Rules {
        class: DeviceClass::Fba,
        policy: Policy::extents(0..8).and(Policy::read_only()),
        ..Rules::default()
    };
    let orb = Orb::new(0x1000);
    let orb = orb.with_flags(orb.flags() | OrbFlags::MIDAW);
    let (mut program, mut hold) = (Program::default(), Hold::default());
    let mut translate = |rules: &Rules, cpa| {
        program.fetch(&orb.with_cpa(cpa), &map, rules, &mut hold);
        assert!(program.emit(shadow.regions()[0].host(), 0x1_0000).is_some());
    };
    let mut found = Vec::new();
    for rules in [&Rules::default(), &judged] {
        for cpa in [0x1000, 0x1_0000] {
            translate(rules, cpa);
            let (allocations, place) = armed(|| translate(rules, cpa));
            if allocations > 0 {
                let place = place.unwrap_or_default();
                found
                    .push(format!("translation from {cpa:#x}: {allocations} allocations\n{place}"));
            }
        }
    }
    found
}

#[test]
fn a_request_allocates_nothing() {
    let (allocations, place) = armed(|| drop(std::hint::black_box(Box::new(7))));
    assert!(allocations > 0 && place.is_some(), "the counter counts");

    let mut found = Vec::new();
    for case in cases() {
        found.extend(ring_case(&case));
        if case.mode == Mode::Cached && case.budget == ROOMY {
            found.extend(instructions_case(&case));
        }
    }
    found.extend(translation_cases());
    assert!(found.is_empty(), "{}", found.join("\n\n"));
}
