//! Holding pinned pages against the caches that others would use for it.

use super::huge_pages::{HUGE_PAGE, HugeMemory};
use crate::parts::pin_hit::{ENTRIES, PAGES, random_frames, take_and_release, warm_pool};
use crate::ratio::{FieldError, Round, Sample};
use crate::service_load::{DiskLoad, DiskShape};
use lru::LruCache;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};
use vfio_ccw_metrics::CounterKind;
use vfio_ccw_pinning::{FRAME, Granule, GuestMap, Hold, Mode, Pool, Resident};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Take and release of a cached frame / get on a mutex around an LRU map.
pub fn hit_vs_mutex_lru(round: &Round) -> Result<Sample, FieldError> {
    let frames = random_frames(round.seed, 0..ENTRIES);
    round.compare(
        || Ok(hits(&warm_pool()?, &frames)),
        || {
            let capacity = NonZeroUsize::new(ENTRIES as usize).ok_or("no entries")?;
            let cache = Mutex::new(LruCache::new(capacity));
            if let Ok(mut cache) = cache.lock() {
                (0..ENTRIES).for_each(|frame| {
                    cache.put(frame, u64::from(frame));
                });
            }
            Ok(gets(&frames, |frame| cache.lock().ok()?.get(&frame).copied()))
        },
    )
}

/// Take and release of a cached frame / get on quick_cache.
pub fn hit_vs_quick_cache(round: &Round) -> Result<Sample, FieldError> {
    let frames = random_frames(round.seed, 0..ENTRIES);
    round.compare(
        || Ok(hits(&warm_pool()?, &frames)),
        || {
            let cache = quick_cache::sync::Cache::new(2 * ENTRIES as usize);
            (0..ENTRIES).for_each(|frame| cache.insert(frame, u64::from(frame)));
            Ok(gets(&frames, |frame| cache.get(&frame)))
        },
    )
}

/// Cost for each of two threads on distinct frames / for one thread alone.
pub fn hit_two_threads(round: &Round) -> Result<Sample, FieldError> {
    let pool = warm_pool()?;
    let halves = [0..ENTRIES / 2, ENTRIES / 2..ENTRIES].map(|half| random_frames(round.seed, half));
    round.compare(
        || {
            let barrier = Barrier::new(2);
            let costs: Vec<f64> = std::thread::scope(|scope| {
                let threads = halves.each_ref().map(|frames| {
                    let (pool, barrier) = (&pool, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        hits(pool, frames)
                    })
                });
                threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
            });
            Ok(costs.iter().sum::<f64>() / costs.len() as f64)
        },
        || Ok(hits(&pool, &halves[0])),
    )
}

/// Nanoseconds to take and release one of `frames`, in programs of [`PAGES`] pages.
fn hits(pool: &Pool, frames: &[u32]) -> f64 {
    let mut hold = Hold::default();
    let mut missed = 0;
    let start = Instant::now();
    for program in frames.chunks(PAGES) {
        missed += u32::from(!take_and_release(pool, &mut hold, program));
    }
    let cost = start.elapsed().as_nanos() as f64 / frames.len() as f64;
    assert_eq!(missed, 0, "a warm pool has every frame");
    cost
}

/// Nanoseconds to get one of `frames`.
fn gets(frames: &[u32], get: impl Fn(u32) -> Option<u64>) -> f64 {
    let start = Instant::now();
    for frame in frames {
        black_box(get(*frame));
    }
    start.elapsed().as_nanos() as f64 / frames.len() as f64
}

/// Frames of one measurement of misses, and of a program that misses on many.
const MISSES: usize = 1 << 13;
const BATCH: u32 = 64;

/// Cost per page of a miss in programs of 64 adjacent pages / in programs of one page.
pub fn batch64_vs_single(round: &Round) -> Result<Sample, FieldError> {
    let pool = resident_pool(populated(ENTRIES)?, Granule::Backing)?;
    let batches = random_frames(round.seed, 0..ENTRIES / BATCH);
    let batches: Vec<u32> =
        batches[..MISSES / BATCH as usize].iter().map(|at| at * BATCH).collect();
    let singles = random_frames(round.seed, 0..ENTRIES);
    round.compare(
        || Ok(misses(&pool, &batches, BATCH)? / f64::from(BATCH)),
        || misses(&pool, &singles[..MISSES], 1),
    )
}

/// Cost per 4 KiB of a miss on a frame of 2 MiB on a huge page / of a miss on one of 4 KiB.
pub fn huge_vs_single(round: &Round) -> Result<Sample, FieldError> {
    const PAGES: u32 = 16;
    let huge = HugeMemory::new(PAGES.into())?;
    if round.number == 1 {
        eprintln!("pin_huge_vs_single: the huge pages are {}", huge.source);
    }
    let huge_pool = resident_pool(huge.memory.clone(), Granule::Bytes(HUGE_PAGE))?;
    let frames = random_frames(round.seed, 0..PAGES);
    let pool = resident_pool(populated(ENTRIES)?, Granule::Backing)?;
    let singles = random_frames(round.seed, 0..ENTRIES);
    let pages = (HUGE_PAGE / FRAME) as f64;
    round.compare(
        || {
            let cost = misses(&huge_pool, &frames[..MISSES], 1)?;
            assert_eq!(huge_pool.peak_bytes(), HUGE_PAGE, "a program pins one frame, a huge page");
            Ok(cost / pages)
        },
        || misses(&pool, &singles[..MISSES], 1),
    )
}

/// Guest memory of `pages` pages that are there already: a fault is not part of a miss.
fn populated(pages: u32) -> Result<Arc<GuestMemoryMmap>, FieldError> {
    let bytes = u64::from(pages) * FRAME;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)])?;
    for page in (0..bytes).step_by(FRAME as usize) {
        memory.write_obj(1u8, GuestAddress(page))?;
    }
    Ok(Arc::new(memory))
}

/// A pool that really pins, with nothing pinned yet.
fn resident_pool(memory: Arc<GuestMemoryMmap>, granule: Granule) -> Result<Pool, FieldError> {
    let map = Arc::new(GuestMap::with_granule(memory, granule)?);
    let budget = map.bytes();
    Ok(Pool::new(map, Box::new(Resident), budget)?)
}

/// Nanoseconds of a program whose `count` frames from each of `firsts` on are pinned for it and
/// unpinned behind it.
fn misses(pool: &Pool, firsts: &[u32], count: u32) -> Result<f64, FieldError> {
    let mut hold = Hold::default();
    let mut missed = 0;
    let start = Instant::now();
    for first in firsts {
        hold.clear();
        hold.want_run(*first, count);
        pool.hold_blocking(&mut hold)?;
        missed += hold.tally().misses as usize;
        pool.release(&mut hold, Mode::OnDemand);
    }
    let cost = start.elapsed().as_nanos() as f64 / firsts.len() as f64;
    assert_eq!(missed, firsts.len() * count as usize, "nothing stays pinned between programs");
    Ok(cost)
}

/// Disks of the load that compares modes, and the guest memory that it has.
const DISKS: usize = 64;
const GUEST: u64 = 256 << 20;
/// How long a mode is measured at a time, and how often in a round.
const SLICE: Duration = Duration::from_millis(100);
const SLICES: usize = 4;

/// I/Os a second in mode cached / in mode pinned.
pub fn cached_vs_pinned_iops(round: &Round) -> Result<Sample, FieldError> {
    iops_of_cached_and(Mode::Pinned, round)
}

/// I/Os a second in mode cached / in mode on-demand.
pub fn cached_vs_ondemand_iops(round: &Round) -> Result<Sample, FieldError> {
    iops_of_cached_and(Mode::OnDemand, round)
}

/// Most bytes pinned in mode cached / in mode pinned.
pub fn cached_vs_pinned_bytes(round: &Round) -> Result<Sample, FieldError> {
    let pinned_bytes = |mode| -> Result<f64, FieldError> {
        let mut load = warm_disks(mode, round.seed)?;
        iops(&mut load, round.seed)?;
        Ok(load.service().pool().peak_bytes() as f64)
    };
    round.compare(|| pinned_bytes(Mode::Cached), || pinned_bytes(Mode::Pinned))
}

/// Measures both modes in short turns: two threads on a shared machine differ more from second to
/// second than the modes do.
fn iops_of_cached_and(peer: Mode, round: &Round) -> Result<Sample, FieldError> {
    let mut loads = [warm_disks(Mode::Cached, round.seed)?, warm_disks(peer, round.seed)?];
    let mut sums = [0.0; 2];
    for slice in 0..SLICES {
        let first = (round.number + slice) % 2;
        for which in [first, 1 - first] {
            sums[which] += iops(&mut loads[which], round.seed.wrapping_add(slice as u64))?;
        }
    }
    let [ours, peer] = sums;
    Ok(Sample::Ratio { ours, peer })
}

/// Disks that have met their whole working set, which the budget has room for.
fn warm_disks(mode: Mode, seed: u64) -> Result<DiskLoad, FieldError> {
    let mut load = DiskLoad::of(&DiskShape { mode, ..DiskShape::new(DISKS, GUEST, seed) })?;
    load.warm_up()?;
    Ok(load)
}

/// I/Os a second, all of them with their pages pinned.
fn iops(load: &mut DiskLoad, seed: u64) -> Result<f64, FieldError> {
    let iops = load.run_for(SLICE, seed)?.iops();
    match load.service().totals().counter(CounterKind::PinUnpinned) {
        0 => Ok(iops),
        pages => Err(format!("{pages} pages were not pinned when a device used them").into()),
    }
}
