//! What a run leaves behind: the JSON that `load` and `compare` write and `report` reads.
//!
//! Times are nanoseconds, sizes bytes. What an engine does not have (a baseline has no pin cache) is null.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use vfio_ccw_load::StageRow;

use crate::machine::Machine;

/// What a file holds, by its field `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Run {
    /// Loads, one after the other.
    Load(LoadRun),
    /// Loads in turns, and what they are to each other.
    Compare(CompareRun),
}

impl Run {
    /// Writes it to the file at `path`, or to standard output for `-`.
    ///
    /// # Errors
    /// What the system says; the file is named.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        if path == Path::new("-") {
            return io::stdout().write_all(text.as_bytes());
        }
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        fs::write(path, text).map_err(named)
    }
}

/// Loads, one after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadRun {
    /// Of this program.
    pub version: String,
    /// When it began: UTC, as in 2026-01-31T23:59:59Z.
    pub date: String,
    /// Where it ran.
    pub machine: Machine,
    /// What was done, in its order.
    pub jobs: Vec<JobRecord>,
}

/// Loads in turns, and what they are to each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompareRun {
    /// Of this program.
    pub version: String,
    /// When it began: UTC, as in 2026-01-31T23:59:59Z.
    pub date: String,
    /// Where it ran.
    pub machine: Machine,
    /// Rounds of each pair.
    pub rounds: u32,
    /// Of the intervals, such as 0.99.
    pub confidence: f64,
    /// Each measure of each pair.
    pub rows: Vec<CompareRow>,
}

/// One measure of two loads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompareRow {
    /// Name of the load that the other is compared with.
    pub base: String,
    /// Name of the other.
    pub other: String,
    /// `iops`, `p50_ns` or `p99_ns`.
    pub measure: String,
    /// Median over the rounds of the base's measure.
    pub base_value: f64,
    /// Median over the rounds of the other's.
    pub other_value: f64,
    /// Median over the rounds of other / base.
    pub ratio: f64,
    /// Lower end of the ratio's interval.
    pub low: f64,
    /// Upper end of it.
    pub high: f64,
    /// `better`, `worse`, or `same` where the interval has 1 in it.
    pub verdict: Verdict,
}

/// What an interval says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// More I/Os a second, or less time.
    Better,
    /// The opposite.
    Worse,
    /// No difference is shown, which does not show that there is none.
    Same,
}

/// What a job did, in one object: all guests together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Name of the job.
    pub name: String,
    /// What was driven: `inprocess`, `remote`, `kernel`, `null` or a baseline.
    pub engine: String,
    /// Shape of the channel programs: `disk` for transfers of a disk, or the shape's name.
    pub program: String,
    /// `pinned`, `on-demand` or `cached`.
    pub mode: Option<String>,
    /// How shards wait for work.
    pub wait: Option<String>,
    /// What waits for files and devices: `io_uring` or `epoll`.
    pub driver: Option<String>,
    /// What pins pages.
    pub pinner: Option<String>,
    /// Guests.
    pub guests: u32,
    /// Subchannels of each.
    pub subchannels: u32,
    /// Bytes of one transfer.
    pub block_bytes: u32,
    /// Percent of reads.
    pub read_percent: u8,
    /// Where a disk's transfers go: `in order`, `random` or `zipf:THETA`.
    pub access: Option<String>,
    /// Requests that were due a second, of each guest; none: a closed loop.
    pub rate_iops: Option<f64>,
    /// How long the longest of them was measured.
    pub seconds: f64,
    /// Requests that completed without failure, after the ramp.
    pub ios: u64,
    /// Reads among them.
    pub reads: u64,
    /// Writes among them.
    pub writes: u64,
    /// Those of the ramp.
    pub warm_up: u64,
    /// Requests a second.
    pub iops: f64,
    /// Those of the guest that did the fewest.
    pub slowest_iops: f64,
    /// MiB a second to and from disks; 0 where a device takes data, or makes it up, and nothing is moved.
    pub mib_per_s: f64,
    /// Requests that failed.
    pub errors: u64,
    /// Requests that never came back.
    pub lost: u64,
    /// Requests that came back twice.
    pub duplicate: u64,
    /// Reads that were compared with what was written.
    pub checked: u64,
    /// Reads with wrong data.
    pub miscompares: u64,
    /// The longest that a request began after it was due.
    pub behind_ns: u64,
    /// Latency: of an open loop from when a request was due.
    pub latency: StageRow,
    /// All latencies: the highest of each bucket in nanoseconds, and how many there are.
    pub buckets: Vec<(u64, u64)>,
    /// Latencies of the service's stages, in the order in which requests go through them, `total` last; the
    /// ramp included. Empty for baselines.
    pub stages: Vec<StageRow>,
    /// Memory of each guest.
    pub guest_bytes: u64,
    /// Most that a guest has had pinned.
    pub pinned_peak_bytes: Option<u64>,
    /// Most that a guest may have pinned.
    pub budget_bytes: Option<u64>,
    /// Share of pages that were pinned already, 0 to 1.
    pub hit_rate: Option<f64>,
    /// It was stopped before its end.
    pub stopped: bool,
}

/// A rate counts as kept when so much of it was done.
pub const KEPT: f64 = 0.98;

impl JobRecord {
    /// Requests that were due a second, of all guests together; none: a closed loop.
    pub fn due_iops(&self) -> Option<f64> {
        self.rate_iops.map(|rate| rate * f64::from(self.guests))
    }

    /// Whether every request completed once, without failure and with the right data.
    pub fn is_clean(&self) -> bool {
        [self.errors, self.lost, self.duplicate, self.miscompares] == [0; 4]
    }

    /// Whether every guest did about as much a second as was due. Always of a closed loop.
    pub fn kept_its_rate(&self) -> bool {
        self.rate_iops.is_none_or(|due| self.slowest_iops >= due * KEPT)
    }
}
