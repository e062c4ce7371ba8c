//! Guest memory that a balloon takes: withdrawn from the pool, discarded, given back.
//!
//! The kernel refuses to discard locked pages (`mm/madvise.c`, EINVAL), so a discard that works says
//! that nothing there is pinned; `/proc/self/smaps` says it once more.

pub mod bench_guest;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use bench_guest::fba::{self, Image};
use bench_guest::wired::Wired;
use bench_guest::{Bench, Device, STALL};
use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, command};
use vfio_ccw::{Cc, DeviceOptions, DeviceSpec, MemoryError, Mode, PinnerChoice, Service};
use vfio_ccw_pinning::WithdrawError;
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestRegionMmap};

const MEMORY: usize = 2 << 20;
const FRAME: u64 = 4096;

/// Parameters and programs, one frame a disk.
const PROGRAMS: u64 = 0x1_0000;
/// Buffers, one frame a disk, with a frame between them and the next disk's.
const BUFFERS: u64 = 0x10_0000;
/// Blocks of a frame.
const BLOCKS: u16 = 8;

/// Host addresses of guest addresses.
fn host(bench: &Bench, guest: &Range<u64>) -> Range<usize> {
    let start = bench.memory.get_host_address(GuestAddress(guest.start)).expect("guest memory");
    start.addr()..start.addr() + (guest.end - guest.start) as usize
}

/// Discards the pages of guest memory at `guest`, whole frames, as a balloon does.
///
/// # Errors
///
/// What the kernel says: `EINVAL` where pages are locked.
fn discard(bench: &Bench, guest: &Range<u64>) -> io::Result<()> {
    let start = bench.memory.get_host_address(GuestAddress(guest.start)).expect("guest memory");
    let len = host(bench, guest).len();
    // SAFETY: the range lies in the guest's memory, which `bench` keeps mapped and which only the
    // guest's programs and volatile accesses use; they may find zeros at any time.
    // Test: `discarded_memory_is_served_again_when_it_is_given_back`.
    match unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a page of guest memory at `guest` is locked: some mapping that reaches into it has locked
/// pages. The kernel cuts mappings where locking begins and ends.
fn is_locked(bench: &Bench, guest: &Range<u64>) -> bool {
    let range = host(bench, guest);
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("/proc is there");
    let mut inside = false;
    for line in smaps.lines() {
        let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let bounds = first.split_once('-').and_then(|(start, end)| {
            let number = |hex| usize::from_str_radix(hex, 16).ok();
            Some(number(start)?..number(end)?)
        });
        if let Some(mapping) = bounds {
            inside = mapping.start < range.end && range.start < mapping.end;
        } else if inside && first == "Locked:" {
            let kib: u64 = rest.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
            if kib > 0 {
                return true;
            }
        }
    }
    false
}

#[track_caller]
fn assert_discarded(bench: &Bench, guest: &Range<u64>) {
    assert!(!is_locked(bench, guest), "{guest:x?} is locked");
    discard(bench, guest).expect("nothing there is locked");
    let bytes = bench.peek(guest.start, (guest.end - guest.start) as usize);
    assert!(bytes.iter().all(|byte| *byte == 0), "{guest:x?} is written to");
}

/// A disk that reads a frame's worth of blocks into a frame of its own.
struct Reader {
    device: Device,
    index: u32,
}

impl Reader {
    fn attach(bench: &Bench, image: &Image, index: u32) -> Self {
        let reader = Reader { device: bench.attach(image.disk()), index };
        let area = PROGRAMS as u32 + index * 0x1000;
        let first = index * u32::from(BLOCKS);
        fba::put_transfer(bench, area, command::FBA_READ, first, BLOCKS, reader.start() as u32);
        reader
    }

    fn start(&self) -> u64 {
        BUFFERS + u64::from(self.index) * 2 * FRAME
    }

    fn buffer(&self) -> Range<u64> {
        self.start()..self.start() + FRAME
    }

    fn orb(&self) -> Orb {
        Orb::new(PROGRAMS as u32 + self.index * 0x1000 + fba::CCWS)
    }

    fn expected(&self) -> Vec<u8> {
        fba::blocks(self.index * u32::from(BLOCKS), BLOCKS.into())
    }

    #[track_caller]
    fn assert_read(&self, bench: &Bench) {
        assert_eq!(bench.peek(self.start(), FRAME as usize), self.expected());
    }

    #[track_caller]
    fn read(&mut self, bench: &Bench) {
        let irb = self.device.run(&self.orb());
        assert!(irb.scsw.is_clean_end(), "{irb:?}");
        self.assert_read(bench);
    }

    fn submit(&self) {
        self.device.subchannel.submit(&self.orb(), 7).expect("an empty ring");
    }

    fn has_ended(&mut self) -> bool {
        self.device.completions.reap(1, |_| {}) > 0
    }

    /// Takes the end of what was submitted.
    #[track_caller]
    fn assert_ends(&mut self, bench: &Bench) {
        let ended = self.device.completion();
        assert!(ended.irb.scsw.is_clean_end(), "{ended:?}");
        self.assert_read(bench);
    }
}

/// Reads often enough that every other task of the shard has had its turn.
fn let_others_run(reader: &mut Reader, bench: &Bench) {
    (0..100).for_each(|_| reader.read(bench));
}

#[test]
fn discarded_memory_is_served_again_when_it_is_given_back() {
    let image = Image::new(256);
    bench_guest::on_each_driver(MEMORY, |bench| {
        let pool = bench.service.pool();
        let mut readers: Vec<_> =
            (0..4).map(|index| Reader::attach(bench, &image, index)).collect();
        let mut other = Reader::attach(bench, &image, 4);
        readers.iter_mut().for_each(|reader| reader.read(bench));
        other.read(bench);
        let taken = readers[0].start()..readers[3].buffer().end;
        // What this test is about, without the pool's leave.
        assert!(is_locked(bench, &taken));
        let refused = discard(bench, &readers[0].buffer()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        let pinned = pool.pinned_bytes();

        let withdrawn = pool.withdraw(taken.start, taken.end - taken.start, STALL).unwrap();
        assert_eq!(withdrawn.frames(), 7);
        assert_eq!(pool.pinned_bytes(), pinned - 4 * FRAME);
        assert_discarded(bench, &taken);
        readers.iter().for_each(Reader::submit);
        let_others_run(&mut other, bench);
        assert!(!readers.iter_mut().any(Reader::has_ended), "programs wait for what was taken");
        assert_discarded(bench, &taken);
        assert_eq!(pool.pinned_bytes(), pinned - 4 * FRAME, "who waits holds nothing");

        drop(withdrawn);
        readers.iter_mut().for_each(|reader| reader.assert_ends(bench));
        assert!(is_locked(bench, &readers[0].buffer()), "it is pinned as before");
        assert_eq!(pool.pinned_bytes(), pinned);
    });
}

#[test]
fn every_frame_that_is_touched_is_withdrawn_and_no_other() {
    let image = Image::new(256);
    let bench = Bench::new(MEMORY);
    let pool = bench.service.pool();
    let mut device = bench.attach(DeviceSpec::Null);
    let mut reader = Reader::attach(&bench, &image, 0);
    // Six frames from BUFFERS on.
    bench.put_program(0x1000, &[Ccw::new(command::READ_IPL, BUFFERS as u32, 6 * 4096)]);
    let frame = |number: u64| BUFFERS + number * FRAME..BUFFERS + (number + 1) * FRAME;
    for (start, len, touched) in [
        (0, 4096, 0..1),
        (1, 1, 0..1),
        (4095, 1, 0..1),
        (4095, 2, 0..2),
        (4096 + 4000, 200, 1..3),
        (2 * 4096 + 1, 3 * 4096 - 1, 2..5),
        (2 * 4096 + 1, 3 * 4096, 2..6),
    ] {
        assert!(device.run(&Orb::new(0x1000)).scsw.is_clean_end());
        let withdrawn = pool.withdraw(BUFFERS + start, len, STALL).unwrap();
        let unlocked: Vec<_> =
            (0..6).filter(|number| !is_locked(&bench, &frame(*number))).collect();
        assert_eq!(unlocked, touched.clone().collect::<Vec<_>>(), "{start}, {len}");
        assert_eq!(withdrawn.frames() as u64, touched.end - touched.start);
    }
    for (start, len) in [(0, 0), (MEMORY as u64, 1), (MEMORY as u64 - 1, 2), (1, u64::MAX)] {
        let error = pool.withdraw(start, len, STALL).unwrap_err();
        assert!(matches!(error, WithdrawError::NotMemory { .. }), "{error}");
    }
    reader.read(&bench);
}

#[test]
fn a_frame_is_withdrawn_by_one_at_a_time() {
    let image = Image::new(256);
    let bench = Bench::new(MEMORY);
    let pool = bench.service.pool().clone();
    let mut readers: Vec<_> = (0..3).map(|index| Reader::attach(&bench, &image, index)).collect();
    let mut other = Reader::attach(&bench, &image, 3);
    let [first, second, third] = [0, 1, 2].map(|index: usize| readers[index].start());
    // The second buffer lies in both.
    let one = pool.withdraw(first, second + FRAME - first, STALL).unwrap();
    let two = |patience| pool.withdraw(second, third + FRAME - second, patience);
    let error = two(Duration::ZERO).unwrap_err();
    assert!(matches!(error, WithdrawError::StillInUse { frames: 1, .. }), "{error}");
    readers[2].read(&bench);
    readers[..2].iter().for_each(Reader::submit);
    let_others_run(&mut other, &bench);
    assert!(!readers[..2].iter_mut().any(Reader::has_ended));
    let two = thread::scope(|scope| {
        let two = scope.spawn(|| two(STALL));
        drop(one);
        two.join().unwrap().unwrap()
    });
    readers[0].assert_ends(&bench);
    readers[2].submit();
    let_others_run(&mut other, &bench);
    assert!(!readers[2].has_ended());
    drop(two);
    readers[1].assert_ends(&bench);
    readers[2].assert_ends(&bench);
}

/// A program at 0x1000 that reads into a frame twice, and tells that it has begun.
fn put_long_program(bench: &Bench, at: u64) {
    let read = Ccw::new(command::READ_IPL, at as u32, 64);
    let pci = CcwFlags::CHAIN_COMMAND | CcwFlags::PROGRAM_CONTROLLED;
    bench.put_program(0x1000, &[read.with(pci), read]);
}

#[test]
fn memory_in_use_is_not_taken_and_not_lost() {
    let bench = Bench::with(Service::builder().shards(2), MEMORY);
    let pool = bench.service.pool();
    let frame = BUFFERS..BUFFERS + FRAME;
    let wired = Wired::attach(&bench.service, DeviceSpec::Null);
    let mut elsewhere = bench.attach(DeviceSpec::Null);
    put_long_program(&bench, BUFFERS);
    bench.put_program(0x2000, &[Ccw::new(command::READ_IPL, BUFFERS as u32, 64)]);
    assert_eq!(wired.subchannel.ssch(&Orb::new(0x1000)), Ok(Cc::Cc0));
    let held = wired.interruption();
    for _ in 0..3 {
        let error = pool.withdraw(BUFFERS, FRAME, Duration::ZERO).unwrap_err();
        assert!(matches!(error, WithdrawError::StillInUse { frames: 1, .. }), "{error}");
        assert!(is_locked(&bench, &frame), "the program still has it");
        // Nothing has changed for others: they use it beside the program.
        assert!(elsewhere.run(&Orb::new(0x2000)).scsw.is_clean_end());
    }
    // Around what is in use all is taken and given back.
    let error = pool.withdraw(0, MEMORY as u64, Duration::ZERO).unwrap_err();
    assert!(matches!(error, WithdrawError::StillInUse { frames: 1, .. }), "{error}");
    thread::scope(|scope| {
        let patient = scope.spawn(|| pool.withdraw(BUFFERS, FRAME, STALL).map(drop));
        drop(held);
        drop(wired.interruption());
        assert!(wired.status().scsw.is_clean_end());
        patient.join().unwrap().unwrap();
    });
    let idle = pool.withdraw(BUFFERS, FRAME, Duration::ZERO).unwrap();
    assert_discarded(&bench, &frame);
    drop(idle);
    assert!(elsewhere.run(&Orb::new(0x2000)).scsw.is_clean_end());
}

#[test]
fn a_guest_that_is_pinned_has_nothing_to_give() {
    let image = Image::new(256);
    let bench = Bench::with(Service::builder().budget(MEMORY as u64), MEMORY);
    let pool = bench.service.pool();
    let mut reader = Reader::attach(&bench, &image, 0);
    let handle = reader.device.subchannel.clone();
    let set = |mode, patience| bench.service.set_mode(&handle, mode, patience);
    set(Mode::Pinned, STALL).unwrap();
    for patience in [Duration::ZERO, STALL] {
        let error = pool.withdraw(BUFFERS, FRAME, patience).unwrap_err();
        assert!(matches!(error, WithdrawError::WholeGuest), "{error}");
        assert!(error.to_string().contains("mode pinned"), "{error}");
    }
    assert_eq!(pool.pinned_bytes(), MEMORY as u64);
    assert!(is_locked(&bench, &(BUFFERS..BUFFERS + FRAME)));
    reader.read(&bench);

    set(Mode::Cached, STALL).unwrap();
    let withdrawn = pool.withdraw(BUFFERS, FRAME, STALL).unwrap();
    let error = set(Mode::Pinned, Duration::ZERO).expect_err("memory is withdrawn");
    assert_eq!(handle.mode(), Mode::Cached, "{error}");
    let (delivery, _completions) = vfio_ccw::Completions::ring(4).unwrap();
    let pinned = DeviceOptions::default().mode(Mode::Pinned);
    bench
        .service
        .attach_with(DeviceSpec::Null, delivery, pinned)
        .expect_err("nor is a pinned device attached");
    assert_discarded(&bench, &(BUFFERS..BUFFERS + FRAME));
    drop(withdrawn);
    set(Mode::Pinned, STALL).unwrap();
    assert_eq!(pool.pinned_bytes(), MEMORY as u64);
    reader.read(&bench);
}

#[test]
fn what_is_asked_of_a_device_that_waits_is_done_after_its_program() {
    let image = Image::new(256);
    let mut bench = Bench::with(Service::builder().budget(MEMORY as u64), MEMORY);
    let pool = bench.service.pool().clone();
    let mut reader = Reader::attach(&bench, &image, 0);
    let mut other = Reader::attach(&bench, &image, 1);
    let handle = reader.device.subchannel.clone();
    let withdrawn = pool.withdraw(reader.start(), FRAME, STALL).unwrap();
    reader.submit();
    let_others_run(&mut other, &bench);
    let set = |mode, patience| bench.service.set_mode(&handle, mode, patience);
    set(Mode::OnDemand, Duration::ZERO).expect_err("its program waits");
    let_others_run(&mut other, &bench);
    assert_eq!((handle.mode(), reader.has_ended()), (Mode::Cached, false));
    drop(withdrawn);
    reader.assert_ends(&bench);
    let begun = Instant::now();
    while handle.mode() != Mode::OnDemand {
        assert!(begun.elapsed() < STALL, "the switch was forgotten");
        thread::yield_now();
    }

    // The same for a change of memory.
    let withdrawn = pool.withdraw(reader.start(), FRAME, STALL).unwrap();
    reader.submit();
    let_others_run(&mut other, &bench);
    let more = GuestRegionMmap::new(MmapRegion::new(MEMORY).unwrap(), GuestAddress(1 << 30));
    let memory = bench.memory.insert_region(Arc::new(more.unwrap())).unwrap();
    bench.memory = Arc::new(memory);
    let error = bench.service.replace_memory(bench.memory.clone(), Duration::ZERO).unwrap_err();
    assert!(matches!(error, MemoryError::StillInUse { .. }), "{error}");
    let_others_run(&mut other, &bench);
    drop(withdrawn);
    reader.assert_ends(&bench);
    bench.service.settle_memory(STALL).expect("the old layout has no user");
    reader.read(&bench);
}

#[test]
fn a_service_ends_over_a_program_that_waits_for_withdrawn_memory() {
    let image = Image::new(256);
    for detached in [true, false] {
        let bench = Bench::new(MEMORY);
        let pool = bench.service.pool().clone();
        let mut reader = Reader::attach(&bench, &image, 0);
        let mut other = Reader::attach(&bench, &image, 1);
        let withdrawn = pool.withdraw(reader.start(), FRAME, STALL).unwrap();
        reader.submit();
        let_others_run(&mut other, &bench);
        assert!(!reader.has_ended());
        let (gone, word) = channel();
        let ending = thread::spawn(move || {
            if detached {
                bench.service.detach(other.device.subchannel);
            }
            drop(bench);
            gone.send(()).unwrap();
        });
        let ended = word.recv_timeout(STALL);
        // Lets the thread go also where the service does not end by itself.
        drop(withdrawn);
        ending.join().unwrap();
        ended.expect("the service waits for memory that its VMM keeps");
        let irb = reader.device.completion().irb;
        assert!(irb.scsw.is_final() && irb.scsw.deferred_cc() == 3, "{irb:?}");
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

/// What balloon and readers share.
struct Ballooned<'a> {
    bench: &'a Bench,
    over: AtomicBool,
    reads: AtomicU64,
    /// Times that each reader's buffer was discarded, counted before it is.
    discards: Vec<AtomicU64>,
}

impl Ballooned<'_> {
    fn is_over(&self) -> bool {
        // Relaxed: nothing is read because of it.
        self.over.load(Ordering::Relaxed)
    }

    /// Reads until it is over. The data must be right, unless it was discarded since the start.
    fn read(&self, readers: &mut [Reader]) {
        let _over = Over(&self.over);
        while !self.is_over() {
            // Acquire: pairs with the Release in `inflate`.
            let counts =
                |reader: &Reader| self.discards[reader.index as usize].load(Ordering::Acquire);
            let before: Vec<_> = readers.iter().map(counts).collect();
            readers.iter().for_each(Reader::submit);
            for (reader, before) in readers.iter_mut().zip(before) {
                let ended = reader.device.completion();
                assert!(ended.irb.scsw.is_clean_end(), "{ended:?}");
                let read = self.bench.peek(reader.start(), FRAME as usize);
                let is_right = read == reader.expected();
                assert!(is_right || counts(reader) != before, "disk {}", reader.index);
                // Relaxed: a count.
                self.reads.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes `buffers` of neighbouring readers, from `first` on, and gives them back.
    fn inflate(&self, first: u64, buffers: u64) {
        let pool = self.bench.service.pool();
        let start = BUFFERS + first * 2 * FRAME;
        let taken = start..start + buffers * 2 * FRAME;
        // Some frames only in part: they are withdrawn as a whole.
        let withdrawn = pool.withdraw(taken.start + 5, taken.end - taken.start - 10, STALL);
        let withdrawn = withdrawn.expect("programs end");
        for discards in &self.discards[first as usize..(first + buffers) as usize] {
            // Release: pairs with the Acquire in `read`.
            discards.fetch_add(1, Ordering::Release);
        }
        assert_discarded(self.bench, &taken);
        assert_discarded(self.bench, &taken);
        drop(withdrawn);
    }

    /// Waits until some more reads have ended than now.
    fn wait_for(&self, more: u64) {
        // Relaxed: a count.
        let now = self.reads.load(Ordering::Relaxed);
        while self.reads.load(Ordering::Relaxed) < now + more && !self.is_over() {
            thread::yield_now();
        }
    }
}

/// Takes memory of busy readers again and again.
fn inflate_under_load(bench: &Bench, image: &Image, budget: u64) {
    const READERS: u32 = 16;
    let mut readers: Vec<_> =
        (0..READERS).map(|index| Reader::attach(bench, image, index)).collect();
    let ballooned = &Ballooned {
        bench,
        over: AtomicBool::new(false),
        reads: AtomicU64::new(0),
        discards: (0..READERS).map(|_| AtomicU64::new(0)).collect(),
    };
    thread::scope(|scope| {
        for half in readers.chunks_mut(READERS as usize / 2) {
            scope.spawn(move || ballooned.read(half));
        }
        let _over = Over(&ballooned.over);
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..60 {
            dice = dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let first = (dice >> 40) % u64::from(READERS);
            let buffers = 1 + (dice >> 50) % (u64::from(READERS) - first).min(6);
            ballooned.inflate(first, buffers);
            ballooned.wait_for(u64::from(READERS));
        }
    });
    readers.iter_mut().for_each(|reader| reader.read(bench));
    let pool = bench.service.pool();
    assert!(pool.peak_bytes() <= budget);
    pool.unpin_all_idle().unwrap();
    assert_eq!((pool.pinned_bytes(), pool.waiting()), (0, 0));
    assert!(!is_locked(bench, &(0..MEMORY as u64)));
}

/// Not enough for all readers at once: there are evictions and lines beside the balloon.
const TIGHT: u64 = 12 * FRAME;

#[test]
fn a_balloon_takes_memory_under_load() {
    let image = Image::new(256);
    for mode in [Mode::Cached, Mode::OnDemand] {
        let builder = || Service::builder().mode(mode).shards(2).budget(TIGHT);
        bench_guest::on_each_driver_of(builder, MEMORY, |bench| {
            inflate_under_load(bench, &image, TIGHT);
        });
    }
}

/// The kernel lets registered pages be discarded, but a device that still had them would then read
/// into pages that the guest has no more.
#[test]
fn a_balloon_takes_registered_memory_under_load() {
    let image = Image::new(256);
    for mode in [Mode::Cached, Mode::OnDemand] {
        let registered = Service::builder().pinner(PinnerChoice::Registered);
        let builder = registered.mode(mode).shards(2).budget(TIGHT);
        let memory = bench_guest::memory(MEMORY);
        match builder.build(memory.clone()) {
            Ok(service) => inflate_under_load(&Bench { memory, service }, &image, TIGHT),
            Err(error) => println!("SKIPPED: {error}"),
        }
    }
}
