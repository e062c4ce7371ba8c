//! Frames that are pinned already, taken for a program and released behind it.

use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use vfio_ccw_load::random::SplitMix64;
use vfio_ccw_pinning::{FRAME, GuestMap, Hold, Mode, Pinner, Pool, Run, Stopped};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::ratio::FieldError;

/// Frames of the pool.
pub const ENTRIES: u32 = 65_536;

/// Accesses of one measurement.
pub const ACCESSES: usize = 1 << 18;

/// Pages of one channel program: what a request takes and releases together.
pub const PAGES: usize = 16;

/// Pins nothing: what is measured are hits.
pub(crate) struct Nothing;

impl Pinner for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
    }

    fn pin(&self, _runs: &[Run<'_>]) -> Result<(), Stopped> {
        Ok(())
    }

    fn unpin(&self, _runs: &[Run<'_>]) -> Result<(), Stopped> {
        Ok(())
    }

    fn joins_frames(&self) -> bool {
        true
    }

    fn keeps_place(&self) -> bool {
        true
    }
}

/// A pool in which every frame is pinned and idle.
///
/// # Errors
/// Where there is no memory for it.
pub fn warm_pool() -> Result<Pool, FieldError> {
    let bytes = u64::from(ENTRIES) * FRAME;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), bytes as usize)])?;
    let pool = Pool::new(Arc::new(GuestMap::new(Arc::new(memory))?), Box::new(Nothing), bytes)?;
    let mut hold = Hold::default();
    (0..ENTRIES).for_each(|frame| hold.want(frame));
    pool.hold_blocking(&mut hold)?;
    pool.release(&mut hold, Mode::Cached);
    Ok(pool)
}

/// [`ACCESSES`] frames of `range`.
pub fn random_frames(seed: u64, range: Range<u32>) -> Vec<u32> {
    let mut random = SplitMix64::new(seed);
    let span = u64::from(range.end - range.start);
    (0..ACCESSES).map(|_| range.start + (random.next_u64() % span) as u32).collect()
}

/// Takes and releases the frames of one program; whether all of them were there.
#[inline]
pub fn take_and_release(pool: &Pool, hold: &mut Hold, program: &[u32]) -> bool {
    hold.clear();
    program.iter().for_each(|frame| hold.want(*frame));
    let taken = pool.poll_hold(hold, &mut Context::from_waker(Waker::noop()));
    pool.release(hold, Mode::Cached);
    matches!(taken, Poll::Ready(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_pool_has_every_frame_and_gets_it_back() {
        let (pool, mut hold) = (warm_pool().unwrap(), Hold::default());
        let before = pool.pinned_bytes();
        assert_eq!(before, u64::from(ENTRIES) * FRAME);
        for program in random_frames(1, 0..ENTRIES).chunks(PAGES).take(100) {
            assert!(take_and_release(&pool, &mut hold, program));
            assert_eq!(hold.tally().misses, 0);
        }
        assert_eq!(pool.pinned_bytes(), before);
        assert_eq!(pool.unpin_all_idle().unwrap(), before, "nothing is held any more");
    }
}
