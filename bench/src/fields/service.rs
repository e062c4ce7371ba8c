//! The whole path against what a plain program does, and what it costs the heap.

use crate::allocations;
use crate::baseline::sync_epoll::SyncEpoll;
use crate::ratio::{FieldError, Round, Sample};
use crate::service_load::{DiskLoad, NullLoad};

/// Subchannels of the null load.
const SUBCHANNELS: usize = 64;
/// I/Os of one measurement: some tenths of a second.
const IOS: u64 = 200_000;
/// I/Os before the first measurement, and before allocations are counted.
const WARM_UP: u64 = 20_000;

/// I/Os a second of the null device on one shard, and of the synchronous loop.
pub fn null_iops_vs_sync(round: &Round) -> Result<Sample, FieldError> {
    round.compare(
        || {
            let mut load = NullLoad::new(SUBCHANNELS)?;
            load.run(WARM_UP)?;
            Ok(IOS as f64 / load.run(IOS)?.as_secs_f64())
        },
        || {
            let mut baseline = SyncEpoll::new(SUBCHANNELS)?;
            baseline.run(WARM_UP)?;
            Ok(1e9 / baseline.ns_per_io(IOS)?)
        },
    )
}

/// I/Os a second of the null device on one shard.
pub fn null_iops_per_core(_round: &Round) -> Result<Sample, FieldError> {
    let mut load = NullLoad::new(SUBCHANNELS)?;
    load.run(WARM_UP)?;
    Ok(Sample::absolute(IOS as f64 / load.run(IOS)?.as_secs_f64()))
}

/// Allocations per request in the steady state, null devices and disks together.
///
/// The disks' load generator is in the same process, so its few allocations a run (buffers, threads'
/// first use) are taken out by comparing a long run with a short one.
pub fn allocs_per_io(round: &Round) -> Result<Sample, FieldError> {
    let mut null = NullLoad::new(SUBCHANNELS)?;
    null.run(WARM_UP)?;
    let before = allocations::count();
    null.run(IOS)?;
    let of_null = allocations::count() - before;

    let mut disks = DiskLoad::new(SUBCHANNELS, round.seed)?;
    disks.run(WARM_UP)?;
    let mut counted = |ios| -> Result<u64, FieldError> {
        let before = allocations::count();
        disks.run(ios)?;
        Ok(allocations::count() - before)
    };
    let (short, long) = (counted(WARM_UP)?, counted(2 * WARM_UP)?);
    let of_disks = long.saturating_sub(short);
    if allocations::count() == 0 {
        return Err("allocations are not counted in this program".into());
    }
    Ok(Sample::absolute((of_null + of_disks) as f64 / (IOS + WARM_UP) as f64))
}
