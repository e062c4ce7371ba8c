//! Programs that wait for their pages.

use std::thread;
use std::time::Instant;

use vfio_ccw_pinning::{FRAME, Hold};

use super::{Bench, STALL};

/// Holds the whole pin budget: what is started meanwhile waits for its pages, until this is dropped.
#[derive(Debug)]
pub struct Dam<'b> {
    bench: &'b Bench,
    hold: Hold,
}

impl Dam<'_> {
    /// Waits until so many programs wait.
    #[track_caller]
    pub fn wait_for_programs(&self, programs: usize) {
        let (pool, begin) = (self.bench.service.pool(), Instant::now());
        while pool.waiting() < programs {
            assert!(begin.elapsed() < STALL, "{pool:?}");
            thread::yield_now();
        }
    }
}

impl Drop for Dam<'_> {
    fn drop(&mut self) {
        self.bench.service.pool().release(&mut self.hold, self.bench.service.mode());
    }
}

impl Bench {
    /// Holds the whole budget, in the last frames of guest memory.
    pub fn dam(&self) -> Dam<'_> {
        let pool = self.service.pool();
        let frames = self.service.memory().frames();
        let budget = (pool.budget_bytes() / FRAME) as u32;
        let mut hold = Hold::default();
        hold.want_run(frames - budget, budget);
        pool.hold_blocking(&mut hold).expect("nothing else runs");
        Dam { bench: self, hold }
    }
}
