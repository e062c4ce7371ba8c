//! Every slot busy all the time, with a workload, until a time or a count is reached.
//!
//! A closed loop measures what a system can carry: a slot makes its next request when its last has
//! completed. Latency is from just before the submission of a batch to the reaping that brought the
//! completion, as the submitting thread sees it.

use crate::driver::{Driver, Job, LoadError, STALL_LIMIT, Tally};
use crate::engine::{Engine, EngineError};
use crate::failure::ErrorRow;
use crate::pattern::{self, Miscompares};
use crate::progress::Progress;
use crate::report::StageRow;
use crate::request::{Direction, Request};
use crate::workload::{Generator, SECTOR, Workload};
use hdrhistogram::Histogram;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A closed-loop job.
#[derive(Debug, Clone, PartialEq)]
pub struct ClosedLoop {
    /// Which requests to make.
    pub workload: Workload,
    /// When to end.
    pub limit: Limit,
    /// Whether writes carry a [`pattern`] and reads of what this job has written are compared with
    /// it, byte by byte. Takes 4 bytes of memory for each block of the volume.
    ///
    /// Without it buffers are left as they are: writes put whatever is in them on the volume.
    pub verify: bool,
    /// How long a request may take before it counts as lost and its slot is given up.
    pub stall_limit: Duration,
    /// Time before the measured part: requests that begin in it are made, and verified, but not counted.
    pub ramp: Duration,
}

impl ClosedLoop {
    /// `workload` without verification and ramp, until stopped.
    pub fn new(workload: Workload) -> Self {
        Self {
            workload,
            limit: Limit::default(),
            verify: false,
            stall_limit: STALL_LIMIT,
            ramp: Duration::ZERO,
        }
    }
}

/// When a job ends: at whichever comes first; neither means when stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    /// After this time, not counting the ramp, no more requests are made.
    pub duration: Option<Duration>,
    /// This many requests are made in all.
    pub ios: Option<u64>,
}

impl Limit {
    /// Ends after `duration`.
    pub fn duration(duration: Duration) -> Self {
        Self { duration: Some(duration), ios: None }
    }

    /// Ends after `ios` requests.
    pub fn ios(ios: u64) -> Self {
        Self { duration: None, ios: Some(ios) }
    }
}

/// Runs `job` on all slots of `engine`; `stop` ends it early, with a report of what was done.
///
/// When no more requests are to be made, those in flight are waited for, each for at most the stall
/// limit.
///
/// # Errors
/// Where the workload can not be, or the engine as a whole fails. Failed, lost and duplicate requests
/// are no errors but part of the report.
pub fn run<E: Engine + ?Sized>(
    engine: &mut E,
    job: &ClosedLoop,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<LoadReport, LoadError> {
    run_at(None, engine, job, progress, stop)
}

/// The same, with a request each time that `interval` has passed where there is one.
pub(crate) fn run_at<E: Engine + ?Sized>(
    interval: Option<f64>,
    engine: &mut E,
    job: &ClosedLoop,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<LoadReport, LoadError> {
    let slots = engine.slots();
    let generator = job.workload.generator(slots)?;
    let mut source = Source {
        issued: 0,
        interval,
        limit: job.limit.ios,
        verifier: job.verify.then(|| Verifier::new(&job.workload, &generator, slots)),
        generator,
    };
    let mut driver = Driver::new(engine, job.stall_limit);
    driver.ramp(job.ramp);
    let limit = job.limit.duration.map(|duration| duration + job.ramp);
    let ended = driver.phase("load", &mut source, limit, progress, stop)?;
    progress.finish();
    Ok(LoadReport::new(driver.into_tally(), source, ended.elapsed, ended.stopped))
}

/// What a closed loop did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadReport {
    /// Requests submitted; equal to `ios + warm_up + errors + lost`.
    pub submitted: u64,
    /// Requests that completed without failure and began in the ramp: they count nowhere else.
    pub warm_up: u64,
    /// The longest that a request began after it was due; 0 in a closed loop.
    pub behind: Duration,
    /// Requests that completed without failure: `reads + writes`.
    pub ios: u64,
    /// Reads among these.
    pub reads: u64,
    /// Writes among these.
    pub writes: u64,
    /// Bytes these reads transferred.
    pub bytes_read: u64,
    /// Bytes these writes transferred.
    pub bytes_written: u64,
    /// Requests that completed with a failure.
    pub errors: u64,
    /// These by kind.
    pub error_kinds: Vec<ErrorRow>,
    /// Requests that did not complete within the stall limit.
    pub lost: u64,
    /// Completions of such requests after they were given up.
    pub late: u64,
    /// Completions of slots that had no request in flight.
    pub duplicate: u64,
    /// Reads whose data was compared; a read of what this job has not written can not be.
    pub checked: u64,
    /// Reads among these whose data was wrong.
    pub miscompares: u64,
    /// The first of these in words.
    pub first_miscompares: Vec<String>,
    /// From the end of the ramp to the last completion, in seconds.
    pub seconds: f64,
    /// Whether the job was stopped before its limit.
    pub stopped: bool,
    /// Latency of the requests that completed without failure, in nanoseconds.
    pub latency: Histogram<u64>,
}

impl LoadReport {
    fn new(tally: Tally, source: Source, elapsed: Duration, stopped: bool) -> Self {
        let verifier = source.verifier.as_ref();
        Self {
            submitted: source.issued,
            warm_up: tally.warm_up,
            behind: tally.behind,
            ios: tally.ios(),
            reads: tally.reads,
            writes: tally.writes,
            bytes_read: tally.bytes_read,
            bytes_written: tally.bytes_written,
            errors: tally.failures.total(),
            error_kinds: tally.failures.rows(),
            lost: tally.lost,
            late: tally.late,
            duplicate: tally.duplicate,
            checked: verifier.map_or(0, |verifier| verifier.checked),
            miscompares: verifier.map_or(0, |verifier| verifier.miscompares.count()),
            first_miscompares: verifier
                .map_or_else(Vec::new, |verifier| verifier.miscompares.described()),
            seconds: elapsed.as_secs_f64(),
            stopped,
            latency: tally.latency,
        }
    }

    /// Whether every request completed once, without failure and with the right data.
    pub fn is_clean(&self) -> bool {
        self.errors + self.lost + self.duplicate + self.miscompares == 0
    }

    /// Completions without failure a second; 0 where there was none.
    pub fn iops(&self) -> f64 {
        self.per_second(self.ios as f64)
    }

    /// Data transferred, in MiB (2^20 bytes) a second.
    pub fn mib_per_s(&self) -> f64 {
        self.per_second((self.bytes_read + self.bytes_written) as f64 / f64::from(1 << 20))
    }

    /// The latency as a row of a report.
    pub fn latency_row(&self, name: &str) -> StageRow {
        StageRow::of_histogram(name, &self.latency)
    }

    fn per_second(&self, amount: f64) -> f64 {
        if self.seconds > 0.0 { amount / self.seconds } else { 0.0 }
    }
}

/// Requests from the generator, up to a count.
struct Source {
    generator: Generator,
    issued: u64,
    /// Seconds from one request to the next.
    interval: Option<f64>,
    limit: Option<u64>,
    verifier: Option<Verifier>,
}

impl Job for Source {
    #[inline]
    fn next<E: Engine + ?Sized>(
        &mut self,
        engine: &E,
        slot: usize,
    ) -> Result<Option<Request>, EngineError> {
        if self.limit.is_some_and(|limit| self.issued >= limit) {
            return Ok(None);
        }
        let request = self.generator.next(slot);
        if let Some(verifier) = &mut self.verifier {
            verifier.prepare(engine, &request)?;
        }
        self.issued += 1;
        Ok(Some(request))
    }

    #[inline]
    fn completed<E: Engine + ?Sized>(
        &mut self,
        engine: &E,
        request: &Request,
    ) -> Result<(), EngineError> {
        match &mut self.verifier {
            Some(verifier) => verifier.completed(engine, request),
            None => Ok(()),
        }
    }

    fn due(&self) -> Option<Duration> {
        let seconds = self.interval? * self.issued as f64;
        // Beyond what a duration holds nobody waits.
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// Nothing to note: a block is unknown from the start of a write until its success.
    fn failed(&mut self, _request: &Request) {}

    fn fraction(&self) -> Option<f64> {
        self.limit.map(|limit| self.issued as f64 / limit.max(1) as f64)
    }

    fn faults(&self) -> u64 {
        self.verifier.as_ref().map_or(0, |verifier| verifier.miscompares.count())
    }
}

/// Remembers what each block holds and compares what is read.
struct Verifier {
    seed: u64,
    /// The version of each block, or [`UNKNOWN`].
    versions: Vec<u32>,
    /// The version that each slot's last write carried. Counting by slot, not by block, keeps versions
    /// apart even where a failed write has made a block's own count unknown.
    written: Vec<u32>,
    scratch: Vec<u8>,
    poison: Vec<u8>,
    checked: u64,
    miscompares: Miscompares,
}

/// The version of a block that was not written yet, is being written, or whose last write did not
/// succeed.
const UNKNOWN: u32 = 0;

impl Verifier {
    fn new(workload: &Workload, generator: &Generator, slots: usize) -> Self {
        let block_bytes = workload.block_bytes as usize;
        Self {
            seed: workload.seed,
            versions: vec![UNKNOWN; generator.blocks() as usize],
            written: vec![UNKNOWN; slots],
            scratch: vec![0; block_bytes],
            poison: vec![pattern::POISON; block_bytes],
            checked: 0,
            miscompares: Miscompares::default(),
        }
    }

    fn prepare<E: Engine + ?Sized>(
        &mut self,
        engine: &E,
        request: &Request,
    ) -> Result<(), EngineError> {
        match request.direction {
            // The buffer may hold this very block from before.
            Direction::Read => engine.write_guest(request.buffer, &self.poison),
            Direction::Write => {
                *self.version(request) = UNKNOWN;
                let version = &mut self.written[request.slot];
                *version = version.wrapping_add(1).max(UNKNOWN + 1);
                pattern::fill(
                    self.seed,
                    request.offset / u64::from(SECTOR),
                    *version,
                    &mut self.scratch,
                );
                engine.write_guest(request.buffer, &self.scratch)
            }
        }
    }

    fn completed<E: Engine + ?Sized>(
        &mut self,
        engine: &E,
        request: &Request,
    ) -> Result<(), EngineError> {
        let version = *self.version(request);
        match request.direction {
            Direction::Write => *self.version(request) = self.written[request.slot],
            Direction::Read if version == UNKNOWN => {}
            Direction::Read => {
                engine.read_guest(request.buffer, &mut self.scratch)?;
                self.checked += 1;
                let first_block = request.offset / u64::from(SECTOR);
                if let Err(miscompare) =
                    pattern::check(self.seed, first_block, version, &self.scratch)
                {
                    self.miscompares.add(request.slot, miscompare);
                }
            }
        }
        Ok(())
    }

    fn version(&mut self, request: &Request) -> &mut u32 {
        &mut self.versions[(request.offset / u64::from(request.bytes)) as usize]
    }
}
