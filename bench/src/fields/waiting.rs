//! One program at a time: what waiting costs, awake and asleep.

use std::sync::OnceLock;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vfio_ccw::{Adaptive, Service, WaitStrategy};

use crate::baseline::sync_pair::SyncPair;
use crate::ratio::{FieldError, Round, Sample};
use crate::service_load::NullLoad;

use super::remote::median_ns;

/// Programs of one measurement, and before it.
const PROGRAMS: usize = 10_000;
const WARM_UP: usize = 1_000;

/// Subchannels of the idle service, and how long it is watched.
const IDLE_SUBCHANNELS: usize = 1024;
const WATCHED: Duration = Duration::from_secs(10);

/// Median time from submission to completion where both sides look while that pays / the synchronous
/// pair's.
pub fn polled_vs_sync(round: &Round) -> Result<Sample, FieldError> {
    depth_1_vs_sync(round, WaitStrategy::Adaptive(Adaptive::default()))
}

/// The same where both sides sleep at once.
pub fn sleep_vs_sync(round: &Round) -> Result<Sample, FieldError> {
    depth_1_vs_sync(round, WaitStrategy::Sleep)
}

fn depth_1_vs_sync(round: &Round, strategy: WaitStrategy) -> Result<Sample, FieldError> {
    round.compare(
        || {
            let mut load = NullLoad::with(Service::builder().wait(strategy), 1)?;
            load.wait_by(strategy);
            load.round_trips(WARM_UP)?;
            Ok(median_ns(load.round_trips(PROGRAMS)?))
        },
        || {
            let mut pair = SyncPair::new()?;
            pair.round_trips(WARM_UP)?;
            Ok(median_ns(pair.round_trips(PROGRAMS)?))
        },
    )
}

/// Share of a core that an idle service with 1,024 subchannels takes over 10 s. Watched once: further
/// rounds would only take time.
pub fn idle_core_share(_round: &Round) -> Result<Sample, FieldError> {
    static SHARE: OnceLock<f64> = OnceLock::new();
    if let Some(share) = SHARE.get() {
        return Ok(Sample::absolute(*share));
    }
    let mut load = NullLoad::among(1, IDLE_SUBCHANNELS - 1)?;
    load.run(WARM_UP as u64)?;
    // Whatever it does last is done.
    std::thread::sleep(Duration::from_millis(100));
    let before = processor_time();
    std::thread::sleep(WATCHED);
    let spent = processor_time().saturating_sub(before);
    let share = spent.as_secs_f64() / WATCHED.as_secs_f64();
    Ok(Sample::absolute(*SHARE.get_or_init(|| share)))
}

/// Processor time that this process has taken.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
