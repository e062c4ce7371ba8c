//! Three counts of locked memory agree: the pool's, the process's and that of each mapping.
//!
//! A test binary of its own with one test: nothing else in the process may lock memory meanwhile.

#[path = "model/draw.rs"]
mod draw;

use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use draw::Draw;
use vfio_ccw_pinning::memlock::Memlock;
use vfio_ccw_pinning::{
    FRAME, Granule, GuestMap, Hold, HoldError, Mode, Pool, PoolOptions, Resident,
};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

/// Guest addresses of the regions; the last of them comes and goes.
const REGIONS: [(GuestAddress, usize); 3] = [
    (GuestAddress(0), 1 << 20),
    (GuestAddress(1 << 30), 0x33000),
    (GuestAddress(2 << 30), 0x50000),
];

/// Budgets are below this: everything fits.
const LARGEST_BUDGET: u64 = 2 << 20;

const HUGE: u64 = 2 << 20;

#[test]
fn the_pool_the_process_and_its_mappings_agree() {
    let memlock = Memlock::of_this_process().unwrap();
    if memlock.room().is_some_and(|room| room < LARGEST_BUDGET) {
        println!("SKIPPED: RLIMIT_MEMLOCK leaves no room for {LARGEST_BUDGET} bytes");
        return;
    }
    for granule in [Granule::Backing, Granule::Bytes(4 * FRAME)] {
        small_pages(granule);
    }
    match HugePages::raise(4) {
        Ok(_huge_pages) => huge_pages(),
        Err(error) => println!("SKIPPED: no huge pages to test with: {error}"),
    }
}

/// A random load with everything that a service does in between.
fn small_pages(granule: Granule) {
    let before = locked_in_process();
    let mut memory = GuestMemoryMmap::<()>::from_ranges(&REGIONS).unwrap();
    let mut map = Arc::new(GuestMap::with_granule(Arc::new(memory.clone()), granule).unwrap());
    let options = PoolOptions { max_memory: Some(16 << 20), ..PoolOptions::default() };
    let pool = Pool::with_options(map.clone(), Box::new(Resident), 64 * FRAME, options).unwrap();
    let pool = Arc::new(pool);
    let mut draw = Draw::new(7);
    let mut most = 0;
    for round in 0..24 {
        run_programs(&pool, &map, &mut draw);
        // A program is under way while we look; most pages were left by others.
        let mut hold = Hold::default();
        want(&mut hold, &map, &mut draw);
        let is_holding = pool.hold_blocking(&mut hold).is_ok();
        let check = |map: &GuestMap, when: &str| {
            let mappings = ranges(map);
            let locked = locked_in_process() - before;
            let context = format!("round {round}, {when}, {granule:?}");
            assert_eq!(pool.pinned_bytes(), locked, "VmLck in {context}");
            assert_eq!(pool.pinned_bytes(), field_of(&mappings, "Locked"), "Locked in {context}");
            locked
        };
        most = most.max(check(&map, "a program runs"));
        assert!(!is_holding || pool.pinned_bytes() > 0);
        if is_holding {
            let mode = if round % 2 == 0 { Mode::OnDemand } else { Mode::Cached };
            pool.release(&mut hold, mode);
        }
        check(&map, "a program has ended");
        match round % 6 {
            0 => drop(pool.set_budget(draw.of(8..200) * FRAME, Duration::ZERO)),
            1 => {
                let (start, len) = (draw.of(0..128) * 2 * FRAME, draw.of(1..16) * FRAME);
                let len = len.min((1 << 20) - start);
                let guard = pool.withdraw(start, len, Duration::ZERO).expect("nobody uses it");
                check(&map, "pages are withdrawn");
                drop(guard);
            }
            2 => {
                pool.set_budget(LARGEST_BUDGET, Duration::ZERO).expect("nothing is in the way");
                let lease = pool.lease_whole_guest().expect("it fits");
                assert_eq!(check(&map, "the whole guest is pinned"), map.bytes());
                drop(lease);
            }
            3 | 5 => {
                let (start, len) = REGIONS[2];
                memory = match memory.find_region(start) {
                    Some(_) => memory.remove_region(start, len as u64).unwrap().0,
                    None => {
                        let fresh = GuestRegionMmap::from_range(start, len, None).unwrap();
                        memory.insert_region(Arc::new(fresh)).unwrap()
                    }
                };
                let next = Arc::new(map.replaced_by(Arc::new(memory.clone())).unwrap());
                pool.extend(&next).expect("it is small");
                pool.retire(&next, Duration::ZERO).expect("nobody uses it");
                let (left, now) = (locked_in_process() - before, pool.pinned_bytes());
                assert_eq!(left, now, "the old mapping is still there and not locked");
                map = next;
            }
            _ => drop(pool.unpin_all_idle().unwrap()),
        }
        check(&map, "in between");
    }
    assert!(most > 0, "nothing was ever locked");
    pool.unpin_all_idle().unwrap();
    assert_eq!((pool.pinned_bytes(), locked_in_process()), (0, before));
    assert_eq!(field_of(&ranges(&map), "Locked"), 0);
}

/// The kernel keeps huge pages in memory anyway: `mlock` brings them there, and neither VmLck nor
/// `Locked` counts them (`mlock_fixup` in mm/mlock.c passes over them). So the pool counts more than the
/// process, by whole huge pages, and not more of them than are there.
fn huge_pages() {
    let before = locked_in_process();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    let builder = MmapRegionBuilder::new(4 * HUGE as usize);
    let huge = match builder.with_mmap_prot(protection).with_mmap_flags(flags).build() {
        Ok(mapping) => GuestRegionMmap::<()>::new(mapping, GuestAddress(1 << 30)).unwrap(),
        Err(error) => {
            println!("SKIPPED: no mapping of huge pages: {error}");
            return;
        }
    };
    let small = GuestRegionMmap::from_range(GuestAddress(0), 1 << 20, None).unwrap();
    let memory = GuestMemoryMmap::from_regions(vec![small, huge]).unwrap();
    let map = Arc::new(GuestMap::new(Arc::new(memory)).unwrap());
    let huge = map.regions().iter().find(|region| region.start() != 0).unwrap();
    assert_eq!((huge.frame_bytes(), huge.frames()), (HUGE, 4));
    let mapping = [addresses(huge)];

    let budget = 2 * HUGE + 64 * FRAME;
    let pool = Arc::new(Pool::new(map.clone(), Box::new(Resident), budget).unwrap());
    let mut draw = Draw::new(11);
    let mut hold = Hold::default();
    for frame in huge.first_frame()..huge.first_frame() + 4 {
        hold.clear();
        hold.want(frame);
        hold.want(map.frame(0x5000).unwrap());
        pool.hold_blocking(&mut hold).unwrap();
        let there = field_of(&mapping, "Private_Hugetlb");
        assert!(there >= u64::from(frame - huge.first_frame() + 1) * HUGE, "not in memory");
        pool.release(&mut hold, Mode::Cached);
    }
    for round in 0..8 {
        run_programs(&pool, &map, &mut draw);
        let (pinned, locked) = (pool.pinned_bytes(), locked_in_process() - before);
        assert!(pinned <= budget, "{pinned} bytes in round {round}");
        let huge = pinned - locked;
        assert!(huge % HUGE == 0 && huge <= 2 * HUGE, "{pinned} pinned, {locked} locked");
    }
    pool.unpin_all_idle().unwrap();
    assert_eq!((pool.pinned_bytes(), locked_in_process()), (0, before));
}

/// Two threads run programs for a while.
fn run_programs(pool: &Pool, map: &GuestMap, draw: &mut Draw) {
    thread::scope(|scope| {
        for _ in 0..2 {
            let mut draw = Draw::new(draw.of(0..u64::MAX));
            scope.spawn(move || {
                let mut hold = Hold::default();
                for _ in 0..60 {
                    want(&mut hold, map, &mut draw);
                    match pool.hold_blocking(&mut hold) {
                        Ok(()) => {}
                        Err(HoldError::TooLarge { .. }) => continue,
                        Err(error) => panic!("{error}"),
                    }
                    let mode = if draw.once_in(3) { Mode::OnDemand } else { Mode::Cached };
                    pool.release(&mut hold, mode);
                }
            });
        }
    });
}

/// Wants some runs of frames, half of them near the start of a region.
fn want(hold: &mut Hold, map: &GuestMap, draw: &mut Draw) {
    hold.clear();
    for _ in 0..draw.of(1..4) {
        let region = draw.pick(map.regions());
        let pages = region.len() / FRAME;
        let first = if draw.once_in(2) { draw.of(0..pages.min(16)) } else { draw.of(0..pages) };
        for page in first..pages.min(first + draw.of(1..5)) {
            hold.want(region.frame(region.start() + page * FRAME));
        }
    }
}

fn locked_in_process() -> u64 {
    Memlock::of_this_process().unwrap().locked
}

/// Host addresses of the guest's regions.
fn ranges(map: &GuestMap) -> Vec<Range<usize>> {
    map.regions().iter().map(addresses).collect()
}

fn addresses(region: &vfio_ccw_pinning::Region) -> Range<usize> {
    let start = region.host().as_ptr().addr();
    start..start + region.host().len()
}

/// Bytes in `field` of /proc/self/smaps, summed over all mappings that touch `ranges`. The kernel
/// cuts a mapping where locked pages meet others.
fn field_of(ranges: &[Range<usize>], field: &str) -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut counts = false;
    let mut kib = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let start = usize::from_str_radix(start, 16).unwrap();
            let end = usize::from_str_radix(end, 16).unwrap();
            counts = ranges.iter().any(|range| start < range.end && range.start < end);
        } else if counts && first.strip_suffix(':') == Some(field) {
            kib += words.next().and_then(|number| number.parse::<u64>().ok()).unwrap();
        }
    }
    kib << 10
}

/// More huge pages in the system, while it lives.
struct HugePages {
    before: u64,
}

impl HugePages {
    fn raise(by: u64) -> io::Result<Self> {
        let before = Self::number()?;
        fs::write(Self::file(), (before + by).to_string())?;
        let raised = HugePages { before };
        match Self::number()? {
            now if now >= before + by => Ok(raised),
            now => Err(io::Error::other(format!("the system has {now} of {}", before + by))),
        }
    }

    fn file() -> PathBuf {
        format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", HUGE >> 10).into()
    }

    fn number() -> io::Result<u64> {
        fs::read_to_string(Self::file())?.trim().parse().map_err(io::Error::other)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::file(), self.before.to_string()) {
            println!("the system keeps {} huge pages or more: {error}", self.before);
        }
    }
}
