//! The loop under every job: keeps slots busy, takes completions, and accounts for every request.
//!
//! A slot is free, in flight, or lost. It is lost when its request has not completed within the stall
//! limit; from then on it is left alone, for its buffer may still be written to. A completion for a
//! slot that is not in flight is a duplicate, or late where the slot was given up. So the loop always
//! ends, and at its end `submitted = completed + failed + lost` holds.

use crate::engine::{Engine, EngineError};
use crate::failure::FailureTally;
use crate::progress::{Progress, Tick};
use crate::request::{Completion, Direction, Request};
use crate::workload::WorkloadError;
use hdrhistogram::Histogram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a request may take before it counts as lost, unless a job says otherwise: far longer than
/// any device takes, short enough to wait for.
pub const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Time between ticks; also the longest wait for a completion, so that stops and stalls are noticed.
const PULSE: Duration = Duration::from_millis(250);

/// So long before a request is due the loop looks instead of sleeping: longer than it takes to wake up.
const LOOKING: Duration = Duration::from_micros(200);

/// Latencies above this count as this: 2 minutes, in nanoseconds.
const LATENCY_CEILING_NS: u64 = 120_000_000_000;

const MIB: f64 = (1u64 << 20) as f64;

/// Why a job could not run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The workload can not be.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// No rate.
    #[error("{rate} requests a second can not be: give more than 0 and at most 10^9")]
    Rate {
        /// What was asked for.
        rate: f64,
    },
    /// The engine gave up.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What a loop over all slots does: where requests come from and what becomes of them.
pub(crate) trait Job {
    /// The next request of `slot`, its buffer prepared; `None` retires the slot from this phase.
    fn next<E: Engine + ?Sized>(
        &mut self,
        engine: &E,
        slot: usize,
    ) -> Result<Option<Request>, EngineError>;

    /// `request` has transferred all its bytes.
    fn completed<E: Engine + ?Sized>(
        &mut self,
        engine: &E,
        request: &Request,
    ) -> Result<(), EngineError>;

    /// `request` has failed; what it should have written is in an unknown state.
    fn failed(&mut self, request: &Request);

    /// When the next request is to begin, from the start of the phase; `None`: as soon as a slot is free.
    fn due(&self) -> Option<Duration> {
        None
    }

    /// Share that is done, 0 to 1, where the end is known by work; time limits are the driver's.
    fn fraction(&self) -> Option<f64>;

    /// What the job itself has found wrong so far.
    fn faults(&self) -> u64;
}

/// What all phases of a job together have done.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    pub(crate) failures: FailureTally,
    pub(crate) lost: u64,
    pub(crate) late: u64,
    pub(crate) duplicate: u64,
    /// Requests that completed without failure and began before anything was measured.
    pub(crate) warm_up: u64,
    /// The longest that a request began after it was due.
    pub(crate) behind: Duration,
    pub(crate) latency: Histogram<u64>,
}

impl Tally {
    pub(crate) fn ios(&self) -> u64 {
        self.reads + self.writes
    }

    fn bytes(&self) -> u64 {
        self.bytes_read + self.bytes_written
    }

    fn faults(&self) -> u64 {
        self.failures.total() + self.lost + self.duplicate
    }

    fn add(&mut self, request: &Request) {
        match request.direction {
            Direction::Read => {
                self.reads += 1;
                self.bytes_read += u64::from(request.bytes);
            }
            Direction::Write => {
                self.writes += 1;
                self.bytes_written += u64::from(request.bytes);
            }
        }
    }
}

/// How a phase ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// From the start of measuring to the last completion.
    pub(crate) elapsed: Duration,
    /// Whether somebody asked to stop before the end.
    pub(crate) stopped: bool,
}

/// Drives one engine through the phases of one job.
pub(crate) struct Driver<'e, E: ?Sized> {
    engine: &'e mut E,
    stall_limit: Duration,
    slots: Vec<Slot>,
    in_flight: usize,
    /// Slots to ask the job about.
    free: Vec<usize>,
    batch: Vec<Request>,
    /// When those of the batch were due.
    dues: Vec<Option<Duration>>,
    /// When the next request is due, where that is not now.
    next_due: Option<Duration>,
    /// Requests that begin earlier are not measured.
    measured_from: Duration,
    done: Vec<Completion>,
    /// Latencies since the last tick.
    recent: Histogram<u64>,
    tally: Tally,
}

#[derive(Debug, Clone, Copy)]
enum Slot {
    Free,
    InFlight { request: Request, since: Duration },
    Lost,
}

impl<'e, E: Engine + ?Sized> Driver<'e, E> {
    /// All memory that the loop needs is allocated here.
    pub(crate) fn new(engine: &'e mut E, stall_limit: Duration) -> Self {
        let slots = engine.slots();
        Self {
            engine,
            stall_limit,
            slots: vec![Slot::Free; slots],
            in_flight: 0,
            free: Vec::with_capacity(slots),
            batch: Vec::with_capacity(slots),
            dues: Vec::with_capacity(slots),
            next_due: None,
            measured_from: Duration::ZERO,
            done: Vec::with_capacity(slots),
            recent: latency_histogram(),
            tally: Tally {
                reads: 0,
                writes: 0,
                bytes_read: 0,
                bytes_written: 0,
                failures: FailureTally::default(),
                lost: 0,
                late: 0,
                duplicate: 0,
                warm_up: 0,
                behind: Duration::ZERO,
                latency: latency_histogram(),
            },
        }
    }

    /// Lets phases begin with so long in which nothing is measured.
    pub(crate) fn ramp(&mut self, ramp: Duration) {
        self.measured_from = ramp;
    }

    /// Runs `job` on all slots until it has no more requests, `limit` has passed or `stop` is set;
    /// then waits for what is in flight.
    pub(crate) fn phase(
        &mut self,
        name: &'static str,
        job: &mut impl Job,
        limit: Option<Duration>,
        progress: &mut dyn Progress,
        stop: &AtomicBool,
    ) -> Result<Ended, EngineError> {
        let start = Instant::now();
        let mut pulse = Pulse::new(name, limit, PULSE.min(self.stall_limit), &self.tally);
        let mut ended = Ended { elapsed: Duration::ZERO, stopped: false };
        let mut feeding = true;
        let mut now = Duration::ZERO;
        self.free.clear();
        self.free
            .extend((0..self.slots.len()).filter(|&slot| matches!(self.slots[slot], Slot::Free)));
        loop {
            if feeding {
                // Relaxed: pairs with the store of whoever asks to stop; no data travels with it.
                ended.stopped = stop.load(Ordering::Relaxed);
                feeding = !ended.stopped && limit.is_none_or(|limit| now < limit);
            }
            self.next_due = None;
            if feeding {
                self.launch(job, start)?;
            }
            if self.in_flight == 0 && self.next_due.is_none() {
                break;
            }
            let due = self.next_due.map_or(pulse.next, |due| due.saturating_sub(LOOKING));
            let wait = pulse.next.min(due).saturating_sub(now);
            self.engine.reap(&mut self.done, (!wait.is_zero()).then_some(wait))?;
            now = start.elapsed();
            if !self.done.is_empty() {
                ended.elapsed = now.saturating_sub(self.measured_from);
                self.land(job, now)?;
            }
            if now >= pulse.next {
                self.give_up_on_stalled(now);
                let since = pulse.last;
                progress.tick(&pulse.tick(now, job, &self.tally, &self.recent));
                self.fold_recent(since, now, progress);
            }
        }
        // Whatever is still there belongs to no request.
        self.engine.reap(&mut self.done, None)?;
        self.land(job, now)?;
        self.fold_recent(pulse.last, now, progress);
        Ok(ended)
    }

    /// Ends the job.
    pub(crate) fn into_tally(self) -> Tally {
        self.tally
    }

    /// Submits the next requests of free slots in one batch: all of them, or those that are due.
    fn launch(&mut self, job: &mut impl Job, start: Instant) -> Result<(), EngineError> {
        let mut asked = 0;
        let now = start.elapsed();
        while let Some(&slot) = self.free.get(asked) {
            let due = job.due();
            if due.is_some_and(|due| due > now) {
                self.next_due = due;
                break;
            }
            asked += 1;
            if let Some(request) = job.next(&*self.engine, slot)? {
                self.batch.push(request);
                self.dues.push(due);
            }
        }
        self.free.drain(..asked);
        if self.batch.is_empty() {
            return Ok(());
        }
        let begin = start.elapsed();
        for (&request, due) in self.batch.iter().zip(self.dues.drain(..)) {
            // Where there was no slot for it in time, it has taken since then all the same.
            let since = due.unwrap_or(begin);
            self.tally.behind = self.tally.behind.max(begin.saturating_sub(since));
            self.slots[request.slot] = Slot::InFlight { request, since };
        }
        self.in_flight += self.batch.len();
        self.engine.submit(&self.batch)?;
        self.batch.clear();
        Ok(())
    }

    /// Takes what the engine reports done.
    fn land(&mut self, job: &mut impl Job, now: Duration) -> Result<(), EngineError> {
        for Completion { slot, outcome } in self.done.drain(..) {
            let (request, since) = match self.slots.get(slot) {
                Some(&Slot::InFlight { request, since }) => (request, since),
                Some(Slot::Lost) => {
                    self.tally.late += 1;
                    continue;
                }
                Some(Slot::Free) | None => {
                    self.tally.duplicate += 1;
                    continue;
                }
            };
            self.slots[slot] = Slot::Free;
            self.in_flight -= 1;
            self.free.push(slot);
            match outcome {
                Ok(()) => {
                    if since >= self.measured_from {
                        self.recent.saturating_record((now - since).as_nanos() as u64);
                        self.tally.add(&request);
                    } else {
                        self.tally.warm_up += 1;
                    }
                    job.completed(&*self.engine, &request)?;
                }
                Err(failure) => {
                    self.tally.failures.add(slot, failure);
                    job.failed(&request);
                }
            }
        }
        Ok(())
    }

    /// Gives up what has been in flight for the stall limit; looked at once a pulse, so the limit is
    /// exceeded by at most that.
    fn give_up_on_stalled(&mut self, now: Duration) {
        for slot in &mut self.slots {
            if matches!(slot, Slot::InFlight { since, .. } if now - *since >= self.stall_limit) {
                *slot = Slot::Lost;
                self.in_flight -= 1;
                self.tally.lost += 1;
            }
        }
    }

    /// Adds the latencies since `since` to the others.
    fn fold_recent(&mut self, since: Duration, now: Duration, progress: &mut dyn Progress) {
        if !self.recent.is_empty() {
            let measured = |time: Duration| time.saturating_sub(self.measured_from);
            progress.latencies(measured(since), measured(now), &self.recent);
        }
        self.tally.latency += &self.recent;
        self.recent.reset();
    }
}

/// When to tick, and what is new since the last tick.
struct Pulse {
    name: &'static str,
    limit: Option<Duration>,
    period: Duration,
    /// When the next tick is due, from the start of the phase.
    next: Duration,
    last: Duration,
    ios_before_phase: u64,
    ios: u64,
    bytes: u64,
}

impl Pulse {
    fn new(name: &'static str, limit: Option<Duration>, period: Duration, tally: &Tally) -> Self {
        Self {
            name,
            limit,
            period,
            next: period,
            last: Duration::ZERO,
            ios_before_phase: tally.ios(),
            ios: tally.ios(),
            bytes: tally.bytes(),
        }
    }

    fn tick(
        &mut self,
        now: Duration,
        job: &impl Job,
        tally: &Tally,
        recent: &Histogram<u64>,
    ) -> Tick {
        let seconds = (now - self.last).as_secs_f64();
        let by_time = self.limit.map(|limit| (now.as_secs_f64() / limit.as_secs_f64()).min(1.0));
        let fraction = match (by_time, job.fraction()) {
            (Some(time), Some(work)) => Some(time.max(work)),
            (time, work) => time.or(work),
        };
        let tick = Tick {
            phase: self.name,
            elapsed: now,
            total: self.limit,
            fraction,
            ios: tally.ios() - self.ios_before_phase,
            iops: (tally.ios() - self.ios) as f64 / seconds,
            mib_per_s: (tally.bytes() - self.bytes) as f64 / MIB / seconds,
            p50_ns: recent.value_at_quantile(0.5),
            p99_ns: recent.value_at_quantile(0.99),
            faults: tally.faults() + job.faults(),
            // Before anything is done there is no rate to reckon with.
            eta: fraction.filter(|&fraction| fraction > 0.0).and_then(|fraction| {
                Duration::try_from_secs_f64(now.as_secs_f64() * (1.0 / fraction - 1.0)).ok()
            }),
        };
        self.last = now;
        self.next = now + self.period;
        (self.ios, self.bytes) = (tally.ios(), tally.bytes());
        tick
    }
}

/// Three significant digits up to [`LATENCY_CEILING_NS`], allocated once.
fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_CEILING_NS, 3)
        .expect("the bounds are constants in the accepted range")
}
