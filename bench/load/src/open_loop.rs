//! Requests by the clock, whether those before them have completed or not.
//!
//! A closed loop asks less of a system that stalls, and so hides its stalls: while it waits it makes no
//! requests, which would all have waited, too. Here each request is due at a time of its own, and what it
//! takes is counted from that time on, also where no slot was free by then. So latency at a rate is that of users
//! who do not wait for each other; at a rate that the system cannot carry it grows without end, which
//! [`LoadReport::behind`] tells.

use crate::closed_loop::{self, ClosedLoop, LoadReport};
use crate::driver::LoadError;
use crate::engine::Engine;
use crate::progress::Progress;
use std::sync::atomic::AtomicBool;

/// The most requests a second: one each nanosecond.
const MOST: f64 = 1e9;

/// An open-loop job.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenLoop {
    /// What to do, and until when.
    pub load: ClosedLoop,
    /// Requests that are due each second, over all slots, evenly spaced. More than 0, at most 10^9.
    pub requests_per_second: f64,
}

/// Runs `job` on all slots of `engine`; as [`closed_loop::run`].
///
/// # Errors
/// As there, and where the rate can not be.
pub fn run<E: Engine + ?Sized>(
    engine: &mut E,
    job: &OpenLoop,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<LoadReport, LoadError> {
    let rate = job.requests_per_second;
    if !(rate > 0.0 && rate <= MOST) {
        return Err(LoadError::Rate { rate });
    }
    closed_loop::run_at(Some(1.0 / rate), engine, &job.load, progress, stop)
}
