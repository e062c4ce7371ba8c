//! A device in another process, next to one in this, and to the least that two processes can do.

use std::time::{Duration, Instant};

use vfio_ccw::{Service, WaitStrategy};

use crate::peer_process::{Echo, ServerProcess};
use crate::ratio::{FieldError, Round, Sample};
use crate::service_load::NullLoad;

/// Subchannels of the load.
const SUBCHANNELS: usize = 64;
/// I/Os of one measurement, and before it.
const IOS: u64 = 200_000;
const WARM_UP: u64 = 20_000;

/// Programs of one measurement one by one, and before it.
const PROGRAMS: usize = 10_000;
const WARM_UP_PROGRAMS: usize = 1_000;

/// I/Os a second of null devices of another process, over a lane, and of this.
pub fn fast_vs_inprocess(round: &Round) -> Result<Sample, FieldError> {
    let iops = |load: &mut NullLoad| -> Result<f64, FieldError> {
        load.run(WARM_UP)?;
        Ok(IOS as f64 / load.run(IOS)?.as_secs_f64())
    };
    round.compare(
        || {
            let server = ServerProcess::start_with(SUBCHANNELS as u16, WaitStrategy::default())?;
            let mut load = NullLoad::of(Service::builder(), server.devices()?)?;
            iops(&mut load)
        },
        || iops(&mut NullLoad::new(SUBCHANNELS)?),
    )
}

/// Median time from submission to completion with a null device of another process / of a signal to another
/// process and back.
pub fn qd1_vs_pingpong(round: &Round) -> Result<Sample, FieldError> {
    round.compare(
        || {
            let strategy = WaitStrategy::default();
            let server = ServerProcess::start_with(1, strategy)?;
            let mut load = NullLoad::of(Service::builder().wait(strategy), server.devices()?)?;
            load.wait_by(strategy);
            load.round_trips(WARM_UP_PROGRAMS)?;
            Ok(median_ns(load.round_trips(PROGRAMS)?))
        },
        || {
            let mut echo = Echo::start()?;
            echo.round_trips(WARM_UP_PROGRAMS)?;
            Ok(median_ns(echo.round_trips(PROGRAMS)?))
        },
    )
}

/// Milliseconds from SIGKILL to a server that has a program of each of 64 devices to the last of their ends.
pub fn kill_to_end_ms(_round: &Round) -> Result<Sample, FieldError> {
    let mut server = ServerProcess::start_with(SUBCHANNELS as u16, WaitStrategy::default())?;
    let mut load = NullLoad::of(Service::builder(), server.devices()?)?;
    load.run(WARM_UP)?;
    server.stop()?;
    let mut killed = Instant::now();
    load.lose(|| {
        killed = Instant::now();
        server.kill()
    })?;
    Ok(Sample::absolute(killed.elapsed().as_secs_f64() * 1e3))
}

pub(super) fn median_ns(mut times: Vec<Duration>) -> f64 {
    let middle = times.len() / 2;
    times.select_nth_unstable(middle).1.as_nanos() as f64
}
