//! Devices whose mode of pinning is changed while they work, and devices with a mode and a budget
//! of their own.

pub mod bench_guest;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bench_guest::fba::{self, Image};
use bench_guest::wired::Wired;
use bench_guest::{Bench, Device, STALL};
use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, OrbFlags, ScswFlags, command};
use vfio_ccw::{
    AttachError, Cc, Completions, DeviceOptions, DeviceSpec, Mode, ModeError, Policy, Service,
    ServiceBuilder,
};
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
const WHOLE_GUEST: u64 = MEMORY as u64;
const FRAME: u64 = 4096;

/// Each disk's parameters and program, one frame a disk.
const PROGRAMS: u32 = 0x1_0000;
/// Each disk's buffer of four frames.
const BUFFERS: u32 = 0x8_0000;
/// Blocks that a program reads: four frames of data.
const BLOCKS: u16 = 32;
/// Frames that a program needs: its data and its parameters.
const NEEDED: u64 = 5 * FRAME;

/// A disk that reads the same blocks into the same buffer again and again.
struct Reader {
    device: Device,
    index: u32,
}

impl Reader {
    fn attach(bench: &Bench, image: &Image, index: u32, options: impl Into<DeviceOptions>) -> Self {
        let (delivery, completions) = Completions::ring(64).unwrap();
        let subchannel = bench.service.attach_with(image.disk(), delivery, options).unwrap();
        let area = PROGRAMS + index * 0x1000;
        let buffer = BUFFERS + index * 0x4000;
        fba::put_transfer(bench, area, command::FBA_READ, index * 32, BLOCKS, buffer);
        Reader { device: Device { subchannel, completions }, index }
    }

    /// Reads the blocks into a blank buffer, and looks at them.
    #[track_caller]
    fn read(&mut self, bench: &Bench) {
        let buffer = u64::from(BUFFERS + self.index * 0x4000);
        bench.put(buffer, &[0xee; 4 * 4096]);
        let irb = self.device.run(&Orb::new(PROGRAMS + self.index * 0x1000 + fba::CCWS));
        assert!(irb.scsw.is_clean_end() && irb.scsw.count() == 0, "{irb:?}");
        let read = bench.peek(buffer, 4 * 4096);
        assert_eq!(
            read,
            fba::blocks(self.index * 32, BLOCKS.into()),
            "data of disk {}",
            self.index
        );
    }
}

/// Frames that programs ran with although they were not pinned, as the metrics say.
fn unpinned(bench: &Bench) -> u64 {
    let text = bench.service.registry().render();
    let samples = text.lines().filter(|line| line.starts_with("vfio_ccw_pin_unpinned_total"));
    let values: Vec<u64> = samples
        .map(|line| line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number"))
        .collect();
    assert!(!values.is_empty(), "the metric is there");
    values.iter().sum()
}

#[track_caller]
fn assert_names(error: &dyn std::error::Error, numbers: [u64; 2]) {
    let text = error.to_string();
    for number in numbers {
        assert!(text.contains(&number.to_string()), "{number} is not in: {text}");
    }
}

#[test]
fn what_is_pinned_follows_the_mode() {
    let _alone = alone();
    let image = Image::new(256);
    let builder = || Service::builder().budget(WHOLE_GUEST);
    bench_guest::on_each_driver_of(builder, MEMORY, |bench| {
        let before = locked_bytes();
        let pool = bench.service.pool();
        let mut reader =
            Reader::attach(bench, &image, 0, DeviceOptions::default().mode(Mode::OnDemand));
        // Each mode after each other one, with what is pinned right after the switch and after a
        // program. The last device in mode pinned leaves nothing, nor does the last one that caches.
        let steps = [
            (Mode::OnDemand, 0, 0),
            (Mode::Cached, 0, NEEDED),
            (Mode::Pinned, WHOLE_GUEST, WHOLE_GUEST),
            (Mode::Cached, 0, NEEDED),
            (Mode::OnDemand, 0, 0),
            (Mode::Pinned, WHOLE_GUEST, WHOLE_GUEST),
            (Mode::OnDemand, 0, 0),
            (Mode::Pinned, WHOLE_GUEST, WHOLE_GUEST),
            (Mode::Pinned, WHOLE_GUEST, WHOLE_GUEST),
        ];
        for (step, (mode, switched, run)) in steps.into_iter().enumerate() {
            bench.service.set_mode(&reader.device.subchannel, mode, STALL).unwrap();
            assert_eq!(reader.device.subchannel.mode(), mode);
            assert_eq!(pool.pinned_bytes(), switched, "step {step}, {mode}");
            assert_eq!(locked_bytes() - before, switched, "step {step}, {mode}");
            reader.read(bench);
            assert_eq!(pool.pinned_bytes(), run, "step {step}, {mode}, after a program");
            assert_eq!(locked_bytes() - before, run, "step {step}, {mode}, after a program");
        }
        assert!(pool.peak_bytes() <= WHOLE_GUEST);
        assert_eq!(bench.service.mode(), Mode::Cached, "the service's own is what it was");
    });
}

#[test]
fn the_guest_is_pinned_for_as_long_as_one_device_wants_it() {
    let _alone = alone();
    let image = Image::new(256);
    let bench = Bench::with(Service::builder().budget(WHOLE_GUEST), MEMORY);
    let pool = bench.service.pool();
    let pinned = || DeviceOptions::default().mode(Mode::Pinned);
    let mut first = Reader::attach(&bench, &image, 0, pinned());
    let mut second = Reader::attach(&bench, &image, 1, pinned());
    assert_eq!(pool.pinned_bytes(), WHOLE_GUEST);
    first.read(&bench);
    second.read(&bench);
    bench.service.set_mode(&first.device.subchannel, Mode::OnDemand, STALL).unwrap();
    assert_eq!(pool.pinned_bytes(), WHOLE_GUEST, "the second still wants it");
    first.read(&bench);
    assert_eq!(pool.pinned_bytes(), WHOLE_GUEST);
    // A device that is detached wants nothing any more; its end is seen by those that follow.
    bench.service.detach(second.device.subchannel);
    drop(bench);
    assert_eq!(locked_bytes(), 0);
}

/// Tells threads to stop when it is dropped, so also when an assertion fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        // Relaxed: orders nothing.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Readers that go on reading, each on a thread, and how often each has.
struct Traffic {
    over: AtomicBool,
    reads: Vec<AtomicU64>,
}

impl Traffic {
    /// Lets `readers` read while `beside` runs, and sees that what is pinned stays within `budget`.
    fn run(
        bench: &Bench,
        readers: &mut [Reader],
        budget: u64,
        beside: impl FnOnce(&Traffic) + Send,
    ) {
        let before = locked_bytes() - bench.service.pool().pinned_bytes();
        let traffic = &Traffic {
            over: AtomicBool::new(false),
            reads: readers.iter().map(|_| AtomicU64::new(0)).collect(),
        };
        thread::scope(|scope| {
            for (index, reader) in readers.iter_mut().enumerate() {
                scope.spawn(move || {
                    let _over = Over(&traffic.over);
                    while !traffic.is_over() {
                        reader.read(bench);
                        // Relaxed: a count.
                        traffic.reads[index].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            scope.spawn(move || {
                let _over = Over(&traffic.over);
                let pool = bench.service.pool();
                while !traffic.is_over() {
                    let (pinned, locked) = (pool.pinned_bytes(), locked_bytes() - before);
                    assert!(pinned <= budget && locked <= budget, "{pinned}, {locked} locked");
                    thread::yield_now();
                }
            });
            let _over = Over(&traffic.over);
            beside(traffic);
        });
        assert!(bench.service.pool().peak_bytes() <= budget);
    }

    fn is_over(&self) -> bool {
        // Relaxed: nothing is read because of it.
        self.over.load(Ordering::Relaxed)
    }

    /// Waits until every reader has read once more.
    fn wait_for_each(&self) {
        for reads in &self.reads {
            // Relaxed: a count.
            let now = reads.load(Ordering::Relaxed);
            while reads.load(Ordering::Relaxed) == now && !self.is_over() {
                thread::yield_now();
            }
        }
    }
}

/// A bench with two shards, and four readers of which the second is on demand.
fn readers(builder: ServiceBuilder, image: &Image) -> (Bench, Vec<Reader>) {
    let bench = Bench::with(builder.shards(2), MEMORY);
    let readers = (0..4).map(|index| {
        let mode = if index == 1 { Mode::OnDemand } else { Mode::Cached };
        Reader::attach(&bench, image, index, DeviceOptions::default().mode(mode))
    });
    let readers = readers.collect();
    (bench, readers)
}

#[test]
fn one_device_goes_through_all_modes_under_load() {
    let _alone = alone();
    let image = Image::new(256);
    let (bench, mut readers) = readers(Service::builder().budget(WHOLE_GUEST), &image);
    let handles: Vec<_> = readers.iter().map(|reader| reader.device.subchannel.clone()).collect();
    let before = locked_bytes() - bench.service.pool().pinned_bytes();
    Traffic::run(&bench, &mut readers, WHOLE_GUEST, |traffic| {
        for round in 0..30 {
            for mode in [Mode::Pinned, Mode::Cached, Mode::OnDemand, Mode::Pinned] {
                bench.service.set_mode(&handles[0], mode, STALL).unwrap();
                traffic.wait_for_each();
                let modes: Vec<_> = handles.iter().map(|handle| handle.mode()).collect();
                assert_eq!(modes, [mode, Mode::OnDemand, Mode::Cached, Mode::Cached]);
                if mode == Mode::Pinned {
                    let pinned = bench.service.pool().pinned_bytes();
                    assert_eq!(pinned, WHOLE_GUEST, "round {round}");
                    assert_eq!(locked_bytes() - before, WHOLE_GUEST, "round {round}");
                }
                assert!(!traffic.is_over(), "a reader or the sampler has failed");
            }
        }
    });
    for handle in &handles {
        bench.service.set_mode(handle, Mode::OnDemand, STALL).unwrap();
    }
    bench.service.pool().unpin_all_idle().unwrap();
    assert_eq!((bench.service.pool().pinned_bytes(), locked_bytes() - before), (0, 0));
}

#[test]
fn a_switch_to_pinned_beyond_the_budget_is_refused() {
    let _alone = alone();
    let image = Image::new(256);
    let half = WHOLE_GUEST / 2;
    let (bench, mut readers) = readers(Service::builder().budget(half), &image);
    let handles: Vec<_> = readers.iter().map(|reader| reader.device.subchannel.clone()).collect();
    Traffic::run(&bench, &mut readers, half, |traffic| {
        for handle in handles.iter().cycle().take(20) {
            let mode = handle.mode();
            let error = bench.service.set_mode(handle, Mode::Pinned, STALL).unwrap_err();
            assert_names(&error, [WHOLE_GUEST, half]);
            assert_eq!(handle.mode(), mode);
            traffic.wait_for_each();
        }
    });
    let (delivery, _completions) = Completions::ring(64).unwrap();
    let pinned = DeviceOptions::default().mode(Mode::Pinned);
    let error = bench.service.attach_with(DeviceSpec::Null, delivery, pinned).unwrap_err();
    assert_names(&error, [WHOLE_GUEST, half]);

    // With room for it it is allowed, and then the room cannot be taken away.
    let pool = bench.service.pool();
    pool.set_budget(WHOLE_GUEST, STALL).unwrap();
    bench.service.set_mode(&handles[0], Mode::Pinned, STALL).unwrap();
    readers[0].read(&bench);
    let error = pool.set_budget(half, Duration::ZERO).unwrap_err();
    assert_names(&error, [WHOLE_GUEST, half]);
    assert_eq!((pool.pinned_bytes(), pool.budget_bytes()), (WHOLE_GUEST, WHOLE_GUEST));
    bench.service.set_mode(&handles[0], Mode::Cached, STALL).unwrap();
    pool.set_budget(half, STALL).unwrap();
    assert!(pool.pinned_bytes() <= half);
    readers.iter_mut().for_each(|reader| reader.read(&bench));
    assert!(pool.pinned_bytes() <= half);
}

#[test]
fn a_program_above_its_share_runs_unpinned() {
    let _alone = alone();
    let image = Image::new(256);
    let share = 2 * FRAME;
    let own = || DeviceOptions::default().budget(share);
    let cases = [
        ("the device's budget", Service::builder(), own()),
        (
            "the subchannels' budget",
            Service::builder().subchannel_budget(share),
            Default::default(),
        ),
        ("the whole budget", Service::builder().budget(share), Default::default()),
        ("on demand", Service::builder(), own().mode(Mode::OnDemand)),
        ("judged", Service::builder(), own().policy(Policy::read_only())),
    ];
    for (what, builder, options) in cases {
        let before = locked_bytes();
        let bench = Bench::with(builder, MEMORY);
        let mut reader = Reader::attach(&bench, &image, 0, options);
        assert_eq!(unpinned(&bench), 0, "{what}");
        let mut earlier = 0;
        for _ in 0..5 {
            reader.read(&bench);
            let now = unpinned(&bench);
            assert!(now > earlier && now - earlier <= NEEDED / FRAME, "{what}: {earlier}, {now}");
            earlier = now;
        }
        assert!(bench.service.pool().peak_bytes() <= share, "{what}");
        assert!(locked_bytes() - before <= share, "{what}");
        assert_eq!(bench.service.pool().waiting(), 0, "{what}");
    }
}

#[test]
fn a_device_with_a_small_budget_does_not_lessen_the_others() {
    let _alone = alone();
    let image = Image::new(256);
    let bench = Bench::with(Service::builder(), MEMORY);
    let mut small = Reader::attach(&bench, &image, 0, DeviceOptions::default().budget(FRAME));
    let mut other = Reader::attach(&bench, &image, 1, DeviceOptions::default());
    let mut exact = Reader::attach(&bench, &image, 2, DeviceOptions::default().budget(NEEDED));
    other.read(&bench);
    exact.read(&bench);
    assert_eq!(unpinned(&bench), 0, "there is room for what they need");
    assert_eq!(bench.service.pool().pinned_bytes(), 2 * NEEDED);
    small.read(&bench);
    assert!(unpinned(&bench) > 0);
    other.read(&bench);
    exact.read(&bench);
    assert!(bench.service.pool().pinned_bytes() >= 2 * NEEDED, "theirs stays");
}

/// A program that reads twice, and tells that it has begun.
fn put_long_program(bench: &Bench) {
    let read = Ccw::new(command::READ_IPL, BUFFERS, 64);
    bench.put_program(
        0x1000,
        &[read.with(CcwFlags::CHAIN_COMMAND | CcwFlags::PROGRAM_CONTROLLED), read],
    );
}

#[test]
fn a_switch_waits_for_the_program_and_nobody_waits_for_the_switch() {
    let _alone = alone();
    let image = Image::new(256);
    let bench = Bench::with(Service::builder().shards(2).budget(WHOLE_GUEST), MEMORY);
    let wired = Wired::attach(&bench.service, DeviceSpec::Null);
    let mut elsewhere = Reader::attach(&bench, &image, 0, DeviceOptions::default());
    put_long_program(&bench);
    assert_eq!(wired.subchannel.ssch(&Orb::new(0x1000)), Ok(Cc::Cc0));
    let held = wired.interruption();
    let set = |mode, patience| bench.service.set_mode(&wired.subchannel, mode, patience);
    for mode in [Mode::OnDemand, Mode::Pinned] {
        let error = set(mode, Duration::ZERO).expect_err("its program is under way");
        assert!(matches!(error, ModeError::StillRunning { .. }), "{error}");
        assert_eq!(wired.subchannel.mode(), Mode::Cached);
    }
    elsewhere.read(&bench);
    let run_on = |held| {
        drop(held);
        drop(wired.interruption());
        assert!(wired.status().scsw.is_clean_end());
    };
    run_on(held);
    // The switch that was asked for last follows.
    let begun = Instant::now();
    while wired.subchannel.mode() != Mode::Pinned {
        assert!(begun.elapsed() < STALL, "the switch was forgotten");
        thread::yield_now();
    }
    assert_eq!(wired.subchannel.ssch(&Orb::new(0x1000)), Ok(Cc::Cc0));
    let held = wired.interruption();
    assert_eq!(bench.service.pool().pinned_bytes(), WHOLE_GUEST);
    thread::scope(|scope| {
        let switch = scope.spawn(|| set(Mode::OnDemand, STALL));
        elsewhere.read(&bench);
        run_on(held);
        switch.join().unwrap().unwrap();
    });
    assert_eq!(wired.subchannel.mode(), Mode::OnDemand);
    assert_eq!(wired.subchannel.ssch(&Orb::new(0x1000)), Ok(Cc::Cc0));
    run_on(wired.interruption());
    set(Mode::Cached, STALL).unwrap();
    assert_eq!(bench.service.pool().pinned_bytes(), 0, "it was on demand");
}

#[test]
fn a_suspended_program_does_not_hold_up_a_switch() {
    let _alone = alone();
    let bench = Bench::with(Service::builder().budget(WHOLE_GUEST), MEMORY);
    let mut device = bench.attach(DeviceSpec::Null);
    let read = Ccw::new(command::READ_IPL, BUFFERS, 64);
    let put = |flags| {
        bench.put_program(0x1000, &[read.with(CcwFlags::CHAIN_COMMAND), read.with(flags)]);
    };
    let orb = Orb::new(0x1000);
    let orb = orb.with_flags(orb.flags() | OrbFlags::SUSPEND_CONTROL);
    for mode in [Mode::OnDemand, Mode::Pinned, Mode::Cached] {
        put(CcwFlags::SUSPEND);
        device.subchannel.submit(&orb, 1).unwrap();
        assert!(device.completion().irb.scsw.flags().contains(ScswFlags::SUSPENDED));
        // It holds nothing, and nobody can say when it will be resumed.
        bench.service.set_mode(&device.subchannel, mode, STALL).unwrap();
        assert_eq!(device.subchannel.mode(), mode);
        put(CcwFlags::empty());
        assert_eq!(device.subchannel.rsch(), Cc::Cc0);
        assert!(device.completion().irb.scsw.is_clean_end());
        let expected = match mode {
            Mode::OnDemand => 0,
            Mode::Pinned => WHOLE_GUEST,
            Mode::Cached => FRAME,
        };
        assert_eq!(bench.service.pool().pinned_bytes(), expected, "{mode}");
    }
}

#[test]
fn a_detached_device_has_no_mode_to_set() {
    let _alone = alone();
    let bench = Bench::with(Service::builder().budget(WHOLE_GUEST), MEMORY);
    let device = bench.attach(DeviceSpec::Null);
    let handle = device.subchannel.clone();
    bench.service.detach(device.subchannel);
    let error = bench.service.set_mode(&handle, Mode::Pinned, STALL).unwrap_err();
    assert!(error.to_string().contains("detached"), "{error}");
    assert_eq!(bench.service.pool().pinned_bytes(), 0, "and nothing is pinned for it");
}

#[test]
fn a_handle_that_was_kept_changes_nobody_elses_mode() {
    let _alone = alone();
    let builder = Service::builder().budget(WHOLE_GUEST).subchannels(1);
    let bench = Bench::with(builder, MEMORY);
    let first = bench.attach(DeviceSpec::Null);
    let kept = first.subchannel.clone();
    bench.service.detach(first.subchannel);
    // There is one place, which becomes free when the first device has ended.
    let begun = Instant::now();
    let (delivery, _completions) = Completions::ring(4).unwrap();
    let second = loop {
        match bench.service.attach(DeviceSpec::Null, delivery.clone()) {
            Ok(second) => break second,
            Err(error @ AttachError::Full { .. }) => {
                assert!(begun.elapsed() < STALL, "{error}");
                thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    };
    for mode in Mode::ALL {
        let error = bench.service.set_mode(&kept, mode, STALL).unwrap_err();
        assert!(matches!(error, ModeError::Detached), "{error}");
        assert_eq!(second.mode(), Mode::Cached);
    }
}

#[test]
fn devices_of_every_mode_share_a_guest() {
    let _alone = alone();
    let image = Image::new(256);
    let bench = Bench::with(Service::builder().budget(WHOLE_GUEST).shards(2), MEMORY);
    let mut readers: Vec<_> = (0..)
        .zip(Mode::ALL)
        .map(|(index, mode)| {
            let options = DeviceOptions::default().mode(mode);
            let reader = Reader::attach(&bench, &image, index, options);
            assert_eq!(reader.device.subchannel.mode(), mode);
            reader
        })
        .collect();
    for _ in 0..20 {
        readers.iter_mut().for_each(|reader| reader.read(&bench));
    }
    assert_eq!(bench.service.pool().pinned_bytes(), WHOLE_GUEST, "one of them is pinned");
}
