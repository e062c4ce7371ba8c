//! Many subchannels: what each costs when it is used, when it is not, and what its neighbours notice.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};
use std::time::Duration;

use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, command};
use vfio_ccw::channel_subsystem::{Data, Device, Ending, Sense};
use vfio_ccw::{DeviceSpec, Service};
use vfio_ccw_metrics::DeviceClass;

use crate::ratio::{FieldError, Round, Sample};
use crate::service_load::NullLoad;

/// As many as there can be in one subchannel set.
const MANY: usize = 65_536;
/// Subchannels that are in use, where few are.
const FEW: usize = 64;
/// Subchannels that are in use, where many are.
const BUSY: usize = 4_096;

/// I/Os of one measurement: some tenths of a second.
const IOS: u64 = 400_000;
/// Programs of each subchannel before one: each slot of its ring has been used by then, and the machine
/// under this one has given the memory that they are in.
const WARM_UP: u64 = 64;

/// Nanoseconds per I/O at 4,096 active subchannels / at 64.
pub fn busy_4096_vs_64(round: &Round) -> Result<Sample, FieldError> {
    let cost_at = |subchannels| {
        let mut load = NullLoad::new(subchannels)?;
        load.run(WARM_UP * subchannels as u64)?;
        Ok(load.run(IOS)?.as_nanos() as f64 / IOS as f64)
    };
    round.compare(|| cost_at(BUSY), || cost_at(FEW))
}

/// Resident bytes per idle subchannel, of 65,536. Counted once: what a process has freed stays its own,
/// so later rounds would count less.
pub fn idle_subchannel_bytes(_round: &Round) -> Result<Sample, FieldError> {
    static BYTES: OnceLock<f64> = OnceLock::new();
    if let Some(bytes) = BYTES.get() {
        return Ok(Sample::absolute(*bytes));
    }
    let mut load = NullLoad::with(Service::builder().subchannels(MANY), 1)?;
    load.run(10)?;
    let before = resident_bytes()?;
    load.attach_idle(MANY - 1)?;
    // The shard has made them when it has run something that came after them.
    load.run(10)?;
    let bytes = (resident_bytes()?.saturating_sub(before)) as f64 / (MANY - 1) as f64;
    Ok(Sample::absolute(*BYTES.get_or_init(|| bytes)))
}

fn resident_bytes() -> Result<u64, FieldError> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').nth(1).ok_or("/proc/self/statm has no resident size")?;
    Ok(pages.parse::<u64>()? * rustix::param::page_size() as u64)
}

/// I/Os a second of 64 active subchannels among 65,536 / of 64 alone.
pub fn few_among_many(round: &Round) -> Result<Sample, FieldError> {
    let iops_among = |idle| {
        let mut load = NullLoad::among(FEW, idle)?;
        // All tasks have begun, and wait.
        load.run(IOS)?;
        Ok(IOS as f64 / load.run(IOS)?.as_secs_f64())
    };
    round.compare(|| iops_among(MANY - FEW), || iops_among(0))
}

/// Neighbours on the same shard, and programs of theirs.
const NEIGHBOURS: usize = 8;
const PROGRAMS: usize = 100_000;

/// The 99th percentile of these times, in nanoseconds.
pub(super) fn p99_ns(mut times: Vec<Duration>) -> f64 {
    let at = times.len() / 100 * 99;
    times.select_nth_unstable(at).1.as_nanos() as f64
}

/// 99th percentile of the time that programs take next to a subchannel whose device never answers and
/// one whose device takes a millisecond for each command / without these.
pub fn neighbour_p99(round: &Round) -> Result<Sample, FieldError> {
    let new = || NullLoad::with(Service::builder().subchannels(NEIGHBOURS + 2), NEIGHBOURS);
    let p99 = |load: &mut NullLoad| {
        load.latencies(PROGRAMS / 10)?;
        Ok::<f64, FieldError>(p99_ns(load.latencies(PROGRAMS)?))
    };
    round.compare(
        || {
            let mut load = new()?;
            // WRITE, and a TIC back to it.
            let program = NullLoad::ROOM;
            let write = Ccw::new(0x01, program + 0x100, 8).with(CcwFlags::CHAIN_COMMAND);
            load.put(program, &[write, Ccw::new(command::TIC, program, 0)])?;
            let timer = Timer::start()?;
            let slow = move || Slow { timer: timer.clone() };
            for device in [
                DeviceSpec::model(DeviceClass::Other, || Stalled),
                DeviceSpec::model(DeviceClass::Other, slow),
            ] {
                load.attach(device)?.submit(&Orb::new(program), 0)?;
            }
            p99(&mut load)
        },
        || p99(&mut new()?),
    )
}

/// A device that never answers.
struct Stalled;

impl Device for Stalled {
    fn class(&self) -> DeviceClass {
        DeviceClass::Other
    }

    fn begin(&mut self) {}

    async fn command(&mut self, _code: u8, data: &mut Data<'_>) -> Ending {
        data.stopped().await;
        Ending::unit_check()
    }

    fn take_sense(&mut self) -> Sense {
        Sense::new(Sense::EQUIPMENT_CHECK, 0, 24)
    }
}

/// A device that takes a millisecond for each command.
struct Slow {
    timer: Timer,
}

impl Device for Slow {
    fn class(&self) -> DeviceClass {
        DeviceClass::Other
    }

    fn begin(&mut self) {}

    async fn command(&mut self, _code: u8, data: &mut Data<'_>) -> Ending {
        {
            let (mut stopped, mut asked) = (pin!(data.stopped()), None);
            poll_fn(|cx| {
                let done = asked.get_or_insert_with(|| self.timer.ask(cx.waker()));
                // Acquire: pairs with the Release of the timer.
                match stopped.as_mut().poll(cx).is_ready() || done.load(Ordering::Acquire) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
        }
        data.fetch(&mut [0; 8]);
        Ending::done()
    }

    fn take_sense(&mut self) -> Sense {
        Sense::none(24)
    }
}

/// Wakes whoever asks after a millisecond.
#[derive(Clone)]
struct Timer(Sender<(Waker, Arc<AtomicBool>)>);

impl Timer {
    fn start() -> Result<Self, FieldError> {
        let (ask, asked) = channel::<(Waker, Arc<AtomicBool>)>();
        std::thread::Builder::new().name("slow-device".into()).spawn(move || {
            for (waker, done) in asked {
                std::thread::sleep(Duration::from_millis(1));
                // Release: pairs with the Acquire of the device.
                done.store(true, Ordering::Release);
                waker.wake();
            }
        })?;
        Ok(Timer(ask))
    }

    fn ask(&self, waker: &Waker) -> Arc<AtomicBool> {
        let done = Arc::new(AtomicBool::new(false));
        // Its thread ends with the last device only.
        drop(self.0.send((waker.clone(), done.clone())));
        done
    }
}
