//! Holding pinned pages against the caches that others would use for it.

use crate::ratio::{FieldError, Round, Sample};
use lru::LruCache;
use std::hint::black_box;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use vfio_ccw_load::random::SplitMix64;
use vfio_ccw_pinning::{FRAME, GuestMap, Hold, HostRange, Mode, Pinner, Pool};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Entries of each cache.
const ENTRIES: u32 = 65_536;
/// Accesses of one measurement.
const ACCESSES: usize = 1 << 18;
/// Pages of one channel program: what a request takes and releases together.
const PAGES: usize = 16;

/// Pins nothing: what is measured are hits.
pub(super) struct Nothing;

impl Pinner for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
    }

    fn pin(&self, _address: u64, _frames: HostRange) -> io::Result<()> {
        Ok(())
    }

    fn unpin(&self, _address: u64, _frames: HostRange) -> io::Result<()> {
        Ok(())
    }
}

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

/// A pool in which every frame is pinned and idle.
fn warm_pool() -> Result<Pool, FieldError> {
    let bytes = u64::from(ENTRIES) * FRAME;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), bytes as usize)])?;
    let pool = Pool::new(Arc::new(GuestMap::new(Arc::new(memory))?), Box::new(Nothing), bytes)?;
    let mut hold = Hold::default();
    (0..ENTRIES).for_each(|frame| hold.want(frame));
    pool.hold_blocking(&mut hold)?;
    pool.release(&mut hold, Mode::Cached);
    Ok(pool)
}

fn random_frames(seed: u64, range: std::ops::Range<u32>) -> Vec<u32> {
    let mut random = SplitMix64::new(seed);
    let span = u64::from(range.end - range.start);
    (0..ACCESSES).map(|_| range.start + (random.next_u64() % span) as u32).collect()
}

/// Nanoseconds to take and release one of `frames`, in programs of [`PAGES`] pages.
fn hits(pool: &Pool, frames: &[u32]) -> f64 {
    let mut hold = Hold::default();
    let mut cx = Context::from_waker(Waker::noop());
    let mut missed = 0;
    let start = Instant::now();
    for program in frames.chunks(PAGES) {
        hold.clear();
        program.iter().for_each(|frame| hold.want(*frame));
        if !matches!(pool.poll_hold(&mut hold, &mut cx), Poll::Ready(Ok(()))) {
            missed += 1;
        }
        pool.release(&mut hold, Mode::Cached);
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
