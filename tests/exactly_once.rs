//! Every accepted program completes exactly once, whatever ends meanwhile; a rejected one never
//! does; and what is pinned stays within the budget and goes away with the service.
//!
//! Dropping a service joins its shards: what has not completed by then never will, so nothing here
//! waits for what may not come.

pub mod bench_guest;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use bench_guest::Bench;
use bench_guest::fba::{self, Image};
use vfio_ccw::architecture::{Ccw, IrbHead, Orb, command};
use vfio_ccw::{
    Cc, Completions, DeviceSpec, Driver, DriverChoice, Interrupts, Mode, Service, ServiceBuilder,
    Subchannel, SubmitError,
};
use vfio_ccw_metrics::CounterKind;
use vfio_ccw_pinning::memlock::Memlock;

/// Locked memory is counted for the whole process, so tests of this file run one after another.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn locked_bytes() -> u64 {
    Memlock::of_this_process().expect("/proc is there").locked
}

const MEMORY: usize = 1 << 20;
/// Submissions of one thread at most, so that a test ends.
const ENOUGH: usize = 2_000;

/// A number for every submission of the process.
fn next_user_data() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Relaxed: only distinct.
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A bench with programs for null devices and for disks, and an image for the disks.
struct Rig {
    bench: Bench,
    image: Image,
}

const PROGRAMS: u32 = 0x1_0000;

impl Rig {
    fn new(builder: ServiceBuilder) -> Self {
        let bench = Bench::with(builder, MEMORY);
        let image = Image::new(256);
        for index in 0..8 {
            let code = [command::FBA_READ, command::FBA_WRITE][index as usize % 2];
            let buffer = 0x4_0000 + index * 0x2000;
            fba::put_transfer(&bench, PROGRAMS + index * 0x100, code, index * 8, 8, buffer);
        }
        Rig { bench, image }
    }

    /// A null device for even numbers, a disk for odd ones.
    fn spec(&self, number: usize) -> DeviceSpec {
        if number.is_multiple_of(2) { DeviceSpec::Null } else { self.image.disk() }
    }
}

fn orb(index: usize) -> Orb {
    Orb::new(PROGRAMS + (index as u32 % 8) * 0x100 + fba::CCWS)
}

/// Submits in bursts until the subchannel is detached; returns what was accepted.
fn submit_until_detached(subchannel: &Subchannel) -> Vec<u64> {
    let mut accepted = Vec::new();
    for index in 0..ENOUGH {
        let user_data = next_user_data();
        match subchannel.submit(&orb(index), user_data) {
            Ok(()) => accepted.push(user_data),
            Err(SubmitError::Full { .. }) => thread::yield_now(),
            Err(SubmitError::Detached) => break,
            Err(error) => panic!("{error}"),
        }
    }
    accepted
}

/// Bursts of one thread.
const BURSTS: usize = 60;

/// Submits bursts to one subchannel after the other, each as long as a ring and one more. Returns what
/// was accepted and how many were not.
fn bursts(subchannels: &[Subchannel], offset: usize) -> (Vec<u64>, usize) {
    let (mut accepted, mut rejected) = (Vec::new(), 0);
    for turn in 0..BURSTS {
        let subchannel = &subchannels[(turn * 7 + offset) % subchannels.len()];
        for index in 0..17 {
            let user_data = next_user_data();
            match subchannel.submit(&orb(index), user_data) {
                Ok(()) => accepted.push(user_data),
                Err(SubmitError::Full { entries }) => {
                    assert_eq!(entries, 16);
                    rejected += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    (accepted, rejected)
}

/// Takes everything from the ring and asserts that it is `accepted`, each once.
#[track_caller]
fn assert_each_once(accepted: &[u64], completions: &mut Completions) {
    let mut times: HashMap<u64, u32> = HashMap::new();
    completions.reap(usize::MAX, |completion| *times.entry(completion.user_data).or_default() += 1);
    let lost = accepted.iter().filter(|user_data| !times.contains_key(user_data)).count();
    let doubled = times.values().filter(|times| **times > 1).count();
    let completed = times.len();
    assert_eq!(
        (lost, doubled, completed),
        (0, 0, accepted.len()),
        "lost, doubled, completed; accepted were {}",
        accepted.len()
    );
}

/// The ways to run a service that this machine has.
fn builders() -> Vec<ServiceBuilder> {
    let mut builders = Vec::new();
    for driver in [Driver::IoUring, Driver::Epoll] {
        for interrupts in [Interrupts::Direct, Interrupts::EventFd] {
            let builder = Service::builder()
                .driver(DriverChoice::Only(driver))
                .interrupts(interrupts)
                .shards(2)
                .subchannels(4096);
            match builder.clone().build(bench_guest::memory(MEMORY)) {
                Ok(_) => builders.push(builder),
                Err(error) => println!("SKIPPED: {driver}: {error}"),
            }
        }
    }
    builders
}

#[test]
fn bursts_from_many_threads() {
    let _alone = alone();
    for builder in builders() {
        let rig = Rig::new(builder);
        let (delivery, mut completions) = Completions::ring(64).unwrap();
        let subchannels: &Vec<_> = &(0..24)
            .map(|number| rig.bench.service.attach(rig.spec(number), delivery.clone()).unwrap())
            .collect();
        let (mut accepted, mut rejected) = (Vec::new(), 0);
        thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|offset| scope.spawn(move || bursts(subchannels, offset))).collect();
            for thread in threads {
                let (more, refused) = thread.join().unwrap();
                accepted.extend(more);
                rejected += refused;
            }
        });
        assert_eq!(accepted.len() + rejected, 4 * BURSTS * 17);
        drop(rig);
        assert_each_once(&accepted, &mut completions);
    }
}

#[test]
fn subchannels_that_are_detached_under_load() {
    let _alone = alone();
    for builder in builders() {
        let rig = Rig::new(builder);
        let (delivery, mut completions) = Completions::ring(1 << 16).unwrap();
        let mut accepted = Vec::new();
        for round in 0..150 {
            let spec = rig.spec(round);
            let subchannel = rig.bench.service.attach(spec, delivery.clone()).unwrap();
            thread::scope(|scope| {
                let threads: Vec<_> = (0..3)
                    .map(|_| {
                        let subchannel = subchannel.clone();
                        scope.spawn(move || submit_until_detached(&subchannel))
                    })
                    .collect();
                (0..round % 50).for_each(|_| thread::yield_now());
                rig.bench.service.detach(subchannel);
                threads.into_iter().for_each(|thread| accepted.extend(thread.join().unwrap()));
            });
        }
        drop(rig);
        assert_each_once(&accepted, &mut completions);
    }
}

#[test]
fn a_service_that_is_dropped_under_load() {
    let _alone = alone();
    for builder in builders() {
        for round in 0..10 {
            let rig = Rig::new(builder.clone());
            let (delivery, mut completions) = Completions::ring(64).unwrap();
            let subchannels: Vec<_> = (0..6)
                .map(|number| rig.bench.service.attach(rig.spec(number), delivery.clone()).unwrap())
                .collect();
            let mut accepted = Vec::new();
            thread::scope(|scope| {
                let threads: Vec<_> = subchannels
                    .iter()
                    .map(|subchannel| scope.spawn(move || submit_until_detached(subchannel)))
                    .collect();
                (0..round * 3).for_each(|_| thread::yield_now());
                drop(rig);
                threads.into_iter().for_each(|thread| accepted.extend(thread.join().unwrap()));
            });
            assert_each_once(&accepted, &mut completions);
            let late = subchannels[0].submit(&orb(0), 1);
            assert_eq!(late, Err(SubmitError::Detached));
        }
    }
}

#[test]
fn requests_that_wait_when_the_service_is_dropped() {
    let _alone = alone();
    for builder in builders() {
        let rig = Rig::new(builder);
        let (delivery, mut completions) = Completions::ring(64).unwrap();
        let mut accepted = Vec::new();
        for number in 0..16 {
            let spec = rig.spec(number);
            let subchannel = rig.bench.service.attach(spec, delivery.clone()).unwrap();
            for index in 0..16 {
                let user_data = next_user_data();
                if subchannel.submit(&orb(index), user_data).is_ok() {
                    accepted.push(user_data);
                }
            }
        }
        drop(rig);
        assert!(accepted.len() >= 16 * 16 - 16, "rings of 16 took {} of 256", accepted.len());
        assert_each_once(&accepted, &mut completions);
    }
}

#[test]
fn a_completion_ring_that_overflows_loses_nothing() {
    let _alone = alone();
    let rig = Rig::new(Service::builder().shards(2));
    let (delivery, mut completions) = Completions::ring(2).unwrap();
    let mut accepted = Vec::new();
    for number in 0..32 {
        let subchannel = rig.bench.service.attach(rig.spec(number), delivery.clone()).unwrap();
        for index in 0..16 {
            let user_data = next_user_data();
            if subchannel.submit(&orb(index), user_data).is_ok() {
                accepted.push(user_data);
            }
        }
    }
    drop(rig);
    assert!(completions.overflowed() >= accepted.len() as u64 - 2, "{completions:?}");
    assert_each_once(&accepted, &mut completions);
}

/// A null device's program that reads `pages` whole pages.
fn pages_program(bench: &Bench, pages: u16) -> Orb {
    let at = 0x1000 + u32::from(pages) * 8;
    bench.put_program(at, &[Ccw::new(command::READ_IPL, 0x8_0000, pages * 4096)]);
    Orb::new(at)
}

#[track_caller]
fn assert_ends(pages: u64, irb: &IrbHead) {
    assert!(irb.scsw.is_clean_end() && irb.scsw.count() == 0, "{pages} pages: {irb:?}");
}

/// Tells threads that there is nothing to look at any more.
#[derive(Clone, Default)]
struct Over(Arc<AtomicBool>);

impl Over {
    fn is_set(&self) -> bool {
        // Relaxed: nothing is read because of it.
        self.0.load(Ordering::Relaxed)
    }
}

struct SetWhenDropped(Over);

impl Drop for SetWhenDropped {
    fn drop(&mut self) {
        // Relaxed: as in `is_set`.
        self.0.0.store(true, Ordering::Relaxed);
    }
}

const TWO_FRAMES: u64 = 2 * 4096;

#[test]
fn a_budget_of_two_frames_is_never_exceeded() {
    let _alone = alone();
    for mode in [Mode::Cached, Mode::OnDemand] {
        let before = locked_bytes();
        let builder = Service::builder().mode(mode).budget(TWO_FRAMES).shards(2);
        let bench = Bench::with(builder, MEMORY);
        let orbs: Vec<_> = (1..=4).map(|pages| (pages, pages_program(&bench, pages))).collect();
        let (delivery, mut completions) = Completions::ring(256).unwrap();
        let subchannels: Vec<_> = (0..6)
            .map(|_| bench.service.attach(DeviceSpec::Null, delivery.clone()).unwrap())
            .collect();
        let over = Over::default();
        let mut accepted = Vec::new();
        thread::scope(|scope| {
            // Set also where an assertion fails here, so that the samplers end.
            let over = SetWhenDropped(over);
            for pinned in [true, false] {
                let (over, pool) = (over.0.clone(), bench.service.pool());
                scope.spawn(move || {
                    while !over.is_set() {
                        let bytes =
                            if pinned { pool.pinned_bytes() } else { locked_bytes() - before };
                        assert!(bytes <= TWO_FRAMES, "{bytes} bytes, pinned as counted: {pinned}");
                        thread::yield_now();
                    }
                });
            }
            let mut count = 0;
            for turn in 0..400 {
                for subchannel in &subchannels {
                    let (pages, orb) = &orbs[turn % orbs.len()];
                    if subchannel.submit(orb, u64::from(*pages)).is_ok() {
                        accepted.push(*pages);
                    }
                }
                completions.reap(usize::MAX, |completion| {
                    assert_ends(completion.user_data, &completion.irb);
                    count += 1;
                });
            }
            while count < accepted.len() {
                assert!(completions.wait(Some(bench_guest::STALL)).unwrap(), "a program is lost");
                completions.reap(usize::MAX, |completion| {
                    assert_ends(completion.user_data, &completion.irb);
                    count += 1;
                });
            }
            assert_eq!(count, accepted.len());
            drop(over);
        });
        assert!(bench.service.pool().peak_bytes() <= TWO_FRAMES);
        assert!(bench.service.pool().peak_bytes() > 0, "something was pinned at all");
        let unpinned = bench.service.totals().counter(CounterKind::PinUnpinned);
        let too_large: u64 =
            accepted.iter().filter(|pages| **pages > 2).map(|pages| u64::from(*pages)).sum();
        assert_eq!(unpinned, too_large, "pages of programs that the budget has no room for");
    }
}

#[test]
fn nothing_stays_locked_when_the_service_has_gone() {
    let _alone = alone();
    let mut left = Vec::new();
    for mode in Mode::ALL {
        let before = locked_bytes();
        let bench = Bench::with(Service::builder().mode(mode), MEMORY);
        // The VMM keeps the guest's memory: it is not unlocked by being unmapped.
        let memory = bench.memory.clone();
        let orb = pages_program(&bench, 4);
        let mut device = bench.attach(DeviceSpec::Null);
        assert!(device.run(&orb).scsw.is_clean_end());
        if mode != Mode::OnDemand {
            assert!(locked_bytes() > before, "{mode}: nothing was locked, nothing is shown");
        }
        drop(bench);
        left.push((mode, locked_bytes() - before));
        drop(memory);
    }
    assert_eq!(left, Mode::ALL.map(|mode| (mode, 0)), "bytes still locked");
}

#[test]
fn starts_by_instruction_race_with_detaching() {
    let _alone = alone();
    let bench = Bench::new(MEMORY);
    let orb = pages_program(&bench, 1);
    let mut unfinished = Vec::new();
    for round in 0..2000 {
        let trigger = Arc::new(vmm_sys_util::eventfd::EventFd::new(0).unwrap());
        let delivery = vfio_ccw::Delivery::Interrupt(trigger);
        let subchannel = bench.service.attach(DeviceSpec::Null, delivery).unwrap();
        let vcpu = subchannel.clone();
        let started = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                (0..round % 20).for_each(|_| std::hint::spin_loop());
                vcpu.ssch(&orb).unwrap() == Cc::Cc0
            });
            bench.service.detach(subchannel);
            thread.join().unwrap()
        });
        if started {
            unfinished.push(vcpu);
        }
    }
    drop(bench);
    let lost = unfinished.iter().filter(|subchannel| subchannel.tsch().0 != Cc::Cc0).count();
    assert_eq!(lost, 0, "of {} accepted starts", unfinished.len());
}
