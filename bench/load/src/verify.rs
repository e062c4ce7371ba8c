//! A whole volume, written with a pattern and read back.
//!
//! All slots work at once, each over its own part of the volume from front to back: first all write,
//! then all read. Every byte of the volume is covered, also where its size is no multiple of the
//! transfer size: then the last transfer is shorter.

use crate::driver::{Driver, Job, LoadError, STALL_LIMIT};
use crate::engine::{Engine, EngineError};
use crate::failure::ErrorRow;
use crate::pattern::{self, Miscompares};
use crate::progress::Progress;
use crate::request::{Direction, Request};
use crate::units::Bytes;
use crate::workload::{Buffers, SECTOR, Workload, WorkloadError, check_block_bytes};
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A pass over a whole volume.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeVolume {
    /// Size of the volume in bytes; a multiple of [`SECTOR`].
    pub volume_bytes: u64,
    /// Bytes of one transfer; a multiple of [`SECTOR`].
    pub block_bytes: u32,
    /// Where the data is in guest memory. Buffers of an area are used in turn, whatever their access.
    pub buffers: Buffers,
    /// Seed of the data. Take a new one for each pass: with that of an earlier pass, a volume that
    /// ignores writes still reads as it should.
    pub seed: u64,
    /// How long a request may take before it counts as lost and its slot is given up.
    pub stall_limit: Duration,
}

impl WholeVolume {
    /// A pass in transfers of `block_bytes`, with one buffer a slot from guest address 0.
    pub fn new(volume_bytes: u64, block_bytes: u32, seed: u64) -> Self {
        let Workload { buffers, .. } = Workload::new(volume_bytes, block_bytes);
        Self { volume_bytes, block_bytes, buffers, seed, stall_limit: STALL_LIMIT }
    }
}

/// Writes the whole volume, reads it back and compares every byte; `stop` ends it early, with a report
/// of what was done.
///
/// # Errors
/// Where the sizes can not be, or the engine as a whole fails. Failed, lost and duplicate requests and
/// wrong data are no errors but part of the report.
pub fn write_and_read_back<E: Engine + ?Sized>(
    engine: &mut E,
    pass: &WholeVolume,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<VerifyReport, LoadError> {
    let mut sweep = Sweep::new(pass, engine.slots())?;
    let mut driver = Driver::new(engine, pass.stall_limit);
    let written = driver.phase("write", &mut sweep, None, progress, stop)?;
    sweep.turn_to_reading();
    let read = driver.phase("read back", &mut sweep, None, progress, stop)?;
    progress.finish();

    let tally = driver.into_tally();
    Ok(VerifyReport {
        volume_bytes: pass.volume_bytes,
        bytes_written: tally.bytes_written,
        bytes_checked: sweep.bytes_checked,
        miscompares: sweep.miscompares.count(),
        first_miscompares: sweep.miscompares.described(),
        errors: tally.failures.total(),
        error_kinds: tally.failures.rows(),
        lost: tally.lost,
        late: tally.late,
        duplicate: tally.duplicate,
        write_seconds: written.elapsed.as_secs_f64(),
        read_seconds: read.elapsed.as_secs_f64(),
        stopped: written.stopped || read.stopped,
    })
}

/// What a pass over a volume found.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Bytes written without failure.
    pub bytes_written: u64,
    /// Bytes read back and compared, right or wrong; less than the volume where requests failed or
    /// were lost, or the pass was stopped.
    pub bytes_checked: u64,
    /// Transfers that read wrong data.
    pub miscompares: u64,
    /// The first of these in words.
    pub first_miscompares: Vec<String>,
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
    /// Time the writing took, in seconds.
    pub write_seconds: f64,
    /// Time the reading took, in seconds.
    pub read_seconds: f64,
    /// Whether the pass was stopped before its end.
    pub stopped: bool,
}

impl VerifyReport {
    /// Whether the whole volume was written and read back, every request completed once, and every
    /// byte was right.
    pub fn is_clean(&self) -> bool {
        self.bytes_checked == self.volume_bytes
            && self.errors + self.lost + self.duplicate + self.miscompares == 0
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_clean() { "verified" } else { "NOT VERIFIED" };
        write!(
            f,
            "{verdict}: {} of {} checked (written in {:.1} s, read in {:.1} s); \
             {} miscompares, {} errors, {} lost, {} duplicate",
            Bytes(self.bytes_checked),
            Bytes(self.volume_bytes),
            self.write_seconds,
            self.read_seconds,
            self.miscompares,
            self.errors,
            self.lost,
            self.duplicate
        )?;
        if self.stopped {
            f.write_str("; stopped early")?;
        }
        let causes = self.error_kinds.iter().map(|row| &row.first);
        for line in self.first_miscompares.iter().chain(causes) {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

/// The version that a pass writes; passes differ by their seed.
const VERSION: u32 = 1;

/// The transfers of a pass, numbered from the front of the volume.
struct Sweep<'p> {
    pass: &'p WholeVolume,
    direction: Direction,
    transfers: u64,
    buffers_per_slot: u64,
    /// What is left to each slot of its part.
    left: Vec<Range<u64>>,
    /// Transfers whose write did not succeed: what they read back says nothing.
    unwritten: HashSet<u64>,
    ended: u64,
    bytes_checked: u64,
    miscompares: Miscompares,
    scratch: Vec<u8>,
    poison: Vec<u8>,
}

impl<'p> Sweep<'p> {
    fn new(pass: &'p WholeVolume, slots: usize) -> Result<Self, WorkloadError> {
        if slots == 0 {
            return Err(WorkloadError::NoSlots);
        }
        check_block_bytes(pass.block_bytes)?;
        if pass.volume_bytes == 0 || !pass.volume_bytes.is_multiple_of(u64::from(SECTOR)) {
            return Err(WorkloadError::VolumeBytes(pass.volume_bytes));
        }
        let transfers = pass.volume_bytes.div_ceil(u64::from(pass.block_bytes));
        Ok(Self {
            pass,
            direction: Direction::Write,
            transfers,
            buffers_per_slot: pass.buffers.per_slot(slots, pass.block_bytes)?,
            left: parts(transfers, slots as u64).collect(),
            unwritten: HashSet::new(),
            ended: 0,
            bytes_checked: 0,
            miscompares: Miscompares::default(),
            scratch: vec![0; pass.block_bytes as usize],
            poison: vec![pattern::POISON; pass.block_bytes as usize],
        })
    }

    /// Starts over, reading. What the write phase left undone is not there to be compared.
    fn turn_to_reading(&mut self) {
        self.direction = Direction::Read;
        self.ended = 0;
        let slots = self.left.len() as u64;
        for (left, part) in self.left.iter_mut().zip(parts(self.transfers, slots)) {
            *left = part.start..left.start;
        }
    }

    fn transfer_of(&self, request: &Request) -> u64 {
        request.offset / u64::from(self.pass.block_bytes)
    }
}

/// `transfers` divided into `slots` runs that differ in length by at most one.
fn parts(transfers: u64, slots: u64) -> impl Iterator<Item = Range<u64>> {
    let bound =
        move |slot: u64| (u128::from(transfers) * u128::from(slot) / u128::from(slots)) as u64;
    (0..slots).map(move |slot| bound(slot)..bound(slot + 1))
}

impl Job for Sweep<'_> {
    fn next<E: Engine + ?Sized>(
        &mut self,
        engine: &E,
        slot: usize,
    ) -> Result<Option<Request>, EngineError> {
        let Some(transfer) = self.left[slot].next() else {
            return Ok(None);
        };
        let offset = transfer * u64::from(self.pass.block_bytes);
        let bytes = (self.pass.volume_bytes - offset).min(u64::from(self.pass.block_bytes)) as u32;
        let buffer = transfer % self.buffers_per_slot;
        let request = Request {
            slot,
            direction: self.direction,
            offset,
            bytes,
            buffer: self.pass.buffers.address(slot, buffer, self.pass.block_bytes),
        };
        let length = bytes as usize;
        match self.direction {
            Direction::Write => {
                // Not known to be written until it succeeds; a lost write never does.
                self.unwritten.insert(transfer);
                let data = &mut self.scratch[..length];
                pattern::fill(self.pass.seed, offset / u64::from(SECTOR), VERSION, data);
                engine.write_guest(request.buffer, data)?;
            }
            // The buffer may hold the same data from the writing.
            Direction::Read => engine.write_guest(request.buffer, &self.poison[..length])?,
        }
        Ok(Some(request))
    }

    fn completed<E: Engine + ?Sized>(
        &mut self,
        engine: &E,
        request: &Request,
    ) -> Result<(), EngineError> {
        self.ended += 1;
        let transfer = self.transfer_of(request);
        match request.direction {
            Direction::Write => {
                self.unwritten.remove(&transfer);
            }
            Direction::Read if self.unwritten.contains(&transfer) => {}
            Direction::Read => {
                let data = &mut self.scratch[..request.bytes as usize];
                engine.read_guest(request.buffer, data)?;
                self.bytes_checked += u64::from(request.bytes);
                let first_block = request.offset / u64::from(SECTOR);
                if let Err(miscompare) = pattern::check(self.pass.seed, first_block, VERSION, data)
                {
                    self.miscompares.add(request.slot, miscompare);
                }
            }
        }
        Ok(())
    }

    fn failed(&mut self, _request: &Request) {
        self.ended += 1;
    }

    fn fraction(&self) -> Option<f64> {
        Some(self.ended as f64 / self.transfers as f64)
    }

    fn faults(&self) -> u64 {
        self.miscompares.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_transfers_once() {
        for (transfers, slots) in [(1, 4), (4, 4), (10, 3), (7, 8), (1 << 40, 65_536)] {
            let parts: Vec<Range<u64>> = parts(transfers, slots).collect();
            assert_eq!((parts[0].start, parts[slots as usize - 1].end), (0, transfers));
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
            let lengths = parts.iter().map(|part| part.end - part.start);
            assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
        }
    }
}
