//! The flight recorder: the last requests of each shard, as they were.
//!
//! The shard writes one entry a request, in place, into a ring that was made with it: of a busy shard's requests one in
//! sixteen, those that are timed, and all that have failed or were slow. (An entry for each would cost 4 % of
//! the null device's I/Os a second.) It is read by mail, on the shard's own thread, so that nothing of it is
//! shared; and by the shard itself when a request was slow, or something panics.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::{Weak, mpsc};
use std::time::{Duration, Instant};

use quanta::Clock;
use vfio_ccw_metrics::{
    DeviceClass, Kind, Operation, Outcome, Page, PageError, RECORDING, Registry, ShardMetrics,
    Stage,
};

use crate::architecture::{Ccw, CcwFlags, IrbHead, Orb, SubchannelId, decode};
use crate::subchannel::Request;
use crate::translation::Program;

use super::context::Stamps;
use super::shard::{Common, Mail};

/// CCWs of a program that are kept: the first ones.
const CCWS: usize = 8;

/// Entries that are logged when something panics.
const LAST_WORDS: usize = 16;

/// The least time between two lines about slow requests.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// How long shards have to say what they have.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the flight recorder keeps, and what it takes for slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlightRecorder {
    /// Requests of each shard that are kept, at most [`FlightRecorder::MOST`]; 0: none. A busy shard keeps one
    /// in sixteen, and all that have failed or were slow.
    pub requests: usize,
    /// A request that takes longer, from its submission to its end, is counted as slow, and logged with its
    /// channel program: one a second at most.
    pub slow: Duration,
}

impl FlightRecorder {
    /// The most requests of a shard that may be kept: 8 MiB of them.
    pub const MOST: usize = 65_536;
}

/// 256 requests, and slow from one second on.
impl Default for FlightRecorder {
    fn default() -> Self {
        FlightRecorder { requests: 256, slow: Duration::from_secs(1) }
    }
}

/// A CCW as it was carried out: TICs that lead straight on are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlownCcw {
    /// Command code.
    pub command: u8,
    /// Its flags, as the program for the device has them.
    pub flags: CcwFlags,
    /// Byte count.
    pub count: u16,
}

/// One request, as the flight recorder has it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FlightRecord {
    /// The subchannel.
    pub subchannel: SubchannelId,
    /// Index of its shard.
    pub shard: usize,
    /// What it was by class of device and operation.
    pub kind: Kind,
    /// How it ended.
    pub outcome: Outcome,
    /// Its ORB, as the guest gave it.
    pub orb: Orb,
    /// How long before the look at the recorder it was submitted.
    pub age: Duration,
    /// How long each stage took, in the order of the stages, `Stage::Total` last; `None` where it was not timed:
    /// a busy shard times one request in sixteen, and of the others knows the total of slow ones only.
    pub stages: [Option<Duration>; Stage::COUNT],
    /// Status that the guest got.
    pub irb: IrbHead,
    /// The first CCWs of the program.
    pub ccws: Vec<FlownCcw>,
    /// CCWs that the program had; none where it was refused before it was read, or the device read it itself.
    pub all_ccws: usize,
}

/// What is written for each request.
#[derive(Clone, Copy)]
struct Entry {
    number: u32,
    kind: Kind,
    outcome: Outcome,
    ccws: u16,
    orb: Orb,
    submitted: u64,
    stamps: Stamps,
    /// Nanoseconds to its end, as far as known.
    total: u64,
    irb: IrbHead,
    first: [ShortCcw; CCWS],
}

/// A CCW without its address, which is of no use once the request is over.
#[derive(Clone, Copy, Default)]
struct ShortCcw {
    command: u8,
    flags: u8,
    count: u16,
}

/// The recorder of one shard.
pub(super) struct Recorder {
    entries: RefCell<Box<[Entry]>>,
    /// Entries so far.
    written: Cell<u64>,
    /// Ticks of the clock from which a request is slow.
    slow_ticks: u64,
    shard: usize,
    logged: Cell<Option<Instant>>,
    unlogged: Cell<u64>,
}

impl Recorder {
    pub(super) fn new(options: FlightRecorder, shard: usize, clock: &Clock) -> Self {
        let kind = Kind { class: DeviceClass::Other, operation: Operation::Control };
        let empty = Entry {
            number: 0,
            kind,
            outcome: Outcome::Ok,
            ccws: 0,
            orb: Orb::default(),
            submitted: 0,
            stamps: Stamps::default(),
            total: 0,
            irb: IrbHead::default(),
            first: [ShortCcw::default(); CCWS],
        };
        let slow = u64::try_from(options.slow.as_nanos()).unwrap_or(u64::MAX);
        let requests = if RECORDING { options.requests } else { 0 };
        Recorder {
            entries: RefCell::new(vec![empty; requests].into()),
            written: Cell::new(0),
            slow_ticks: ticks(slow, clock),
            shard,
            logged: Cell::new(None),
            unlogged: Cell::new(0),
        }
    }

    /// Whether a request is slow that was submitted then and ends now, or has ended somewhat later than `now`.
    #[inline(always)]
    pub(super) fn is_slow(&self, submitted: u64, now: u64) -> bool {
        now.saturating_sub(submitted) >= self.slow_ticks
    }

    /// A request is over.
    #[expect(clippy::too_many_arguments, reason = "what an entry has; it is written in place")]
    pub(super) fn record(
        &self,
        number: u32,
        kind: Kind,
        request: &Request,
        stamps: &Stamps,
        program: Option<&Program>,
        irb: &IrbHead,
        outcome: Outcome,
    ) {
        if !RECORDING {
            return;
        }
        let mut entries = self.entries.borrow_mut();
        let len = entries.len() as u64;
        if len == 0 {
            return;
        }
        let written = self.written.get();
        self.written.set(written + 1);
        let entry = &mut entries[(written % len) as usize];
        entry.number = number;
        entry.kind = kind;
        entry.outcome = outcome;
        entry.orb = request.orb;
        entry.submitted = request.submitted;
        entry.stamps = *stamps;
        entry.total = 0;
        entry.irb = *irb;
        entry.ccws = 0;
        if let Some(program) = program {
            let (all, first) = program.commands();
            entry.ccws = u16::try_from(all).unwrap_or(u16::MAX);
            for (place, (command, flags, count)) in entry.first.iter_mut().zip(first) {
                *place = ShortCcw { command, flags, count };
            }
        }
    }

    /// A request took so long, and that is slow.
    #[cold]
    pub(super) fn was_slow(
        &self,
        number: u32,
        submitted: u64,
        nanos: u64,
        clock: &Clock,
        metrics: &ShardMetrics,
    ) {
        metrics.counters().slow_requests.add(1);
        let record = self.find(number, submitted, nanos, clock);
        let now = Instant::now();
        if self.logged.get().is_some_and(|last| now.duration_since(last) < BETWEEN_LINES) {
            self.unlogged.set(self.unlogged.get() + 1);
            return;
        }
        self.logged.set(Some(now));
        let others = self.unlogged.take();
        match record {
            Some(record) => {
                tracing::warn!(others_since_the_last = others, "a slow request: {record}");
            }
            None => tracing::warn!(
                subchannel = %SubchannelId::of(number),
                took = ?Duration::from_nanos(nanos),
                others_since_the_last = others,
                "a slow request, which the flight recorder does not have any more"
            ),
        }
    }

    /// The newest entry of this request, which now knows its total.
    fn find(&self, number: u32, submitted: u64, total: u64, clock: &Clock) -> Option<FlightRecord> {
        let mut entries = self.entries.borrow_mut();
        let len = entries.len() as u64;
        let written = self.written.get();
        let places = (written.saturating_sub(len)..written).rev().map(|place| place % len);
        for place in places {
            let entry = &mut entries[place as usize];
            if entry.number == number && entry.submitted == submitted {
                entry.total = total;
                return Some(entry.record(self.shard, clock, clock.raw()));
            }
        }
        None
    }

    /// All that there is, the oldest first.
    pub(super) fn recall(&self, clock: &Clock) -> Vec<FlightRecord> {
        let (entries, written) = (self.entries.borrow(), self.written.get());
        let (len, now) = (entries.len() as u64, clock.raw());
        let places = written.saturating_sub(len)..written;
        places.map(|place| entries[(place % len) as usize].record(self.shard, clock, now)).collect()
    }

    /// Something panics: the last requests go to the log.
    pub(super) fn last_words(&self, clock: &Clock) {
        let records = self.recall(clock);
        for record in records.iter().rev().take(LAST_WORDS).rev() {
            tracing::error!("before the panic: {record}");
        }
    }
}

/// So many nanoseconds in ticks of the clock.
fn ticks(nanos: u64, clock: &Clock) -> u64 {
    /// Some minutes.
    const MANY: u64 = 1 << 40;
    let took = clock.delta_as_nanos(0, MANY).max(1);
    u64::try_from(u128::from(nanos) * u128::from(MANY) / u128::from(took)).unwrap_or(u64::MAX)
}

impl Entry {
    fn record(&self, shard: usize, clock: &Clock, now: u64) -> FlightRecord {
        let nanos = |from: u64, to: u64| Duration::from_nanos(clock.delta_as_nanos(from, to));
        let mut stages = [None; Stage::COUNT];
        // A stage that it has not come to has no stamp.
        for (stage, from, to) in self.stamps.stages(self.submitted) {
            stages[stage.index()] = (from > 0 && to >= from).then(|| nanos(from, to));
        }
        if self.total > 0 {
            let total = Duration::from_nanos(self.total);
            stages[Stage::Total.index()] = Some(total);
            let before: Option<Duration> = stages[..Stage::Deliver.index()].iter().copied().sum();
            stages[Stage::Deliver.index()] = before.map(|before| total.saturating_sub(before));
        }
        let ccw = |short: &ShortCcw| FlownCcw {
            command: short.command,
            flags: CcwFlags::from_bits_retain(short.flags),
            count: short.count,
        };
        let known = usize::from(self.ccws).min(CCWS);
        FlightRecord {
            subchannel: SubchannelId::of(self.number),
            shard,
            kind: self.kind,
            outcome: self.outcome,
            orb: self.orb,
            age: nanos(self.submitted.min(now), now),
            stages,
            irb: self.irb,
            ccws: self.first[..known].iter().map(ccw).collect(),
            all_ccws: self.ccws.into(),
        }
    }
}

/// One line.
impl fmt::Display for FlightRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kind { class, operation } = self.kind;
        write!(
            f,
            "{} shard {} {class} {operation}: {}",
            self.subchannel, self.shard, self.outcome
        )?;
        write!(f, ", submitted {:.3?} ago", self.age)?;
        for (stage, took) in Stage::ALL.into_iter().zip(self.stages) {
            if let Some(took) = took {
                write!(f, ", {stage} {took:.3?}")?;
            }
        }
        write!(f, "; {:?};", self.orb)?;
        for ccw in &self.ccws {
            let name = decode::name(&Ccw::new(ccw.command, 0, 0), true);
            write!(f, " {:02x} {name} count={}", ccw.command, ccw.count)?;
            if !ccw.flags.is_empty() {
                write!(f, " {:?}", ccw.flags)?;
            }
            f.write_str(",")?;
        }
        match self.all_ccws.saturating_sub(self.ccws.len()) {
            0 => {}
            more => write!(f, " and {more} more CCWs,")?,
        }
        write!(f, " {:?}", self.irb)
    }
}

impl FlightRecord {
    /// The same as JSON; times in nanoseconds, the ORB and status in hexadecimal words.
    pub fn json(&self) -> serde_json::Value {
        use zerocopy::IntoBytes;
        let words = |bytes: &[u8]| -> Vec<String> {
            bytes
                .chunks(4)
                .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect())
                .collect()
        };
        let nanos = |took: &Duration| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let stages: serde_json::Map<String, serde_json::Value> = (Stage::ALL
            .into_iter()
            .zip(&self.stages))
        .filter_map(|(stage, took)| Some((stage.name().to_owned(), nanos(took.as_ref()?).into())))
        .collect();
        let ccw = |ccw: &FlownCcw| {
            serde_json::json!({
                "command": format!("{:02x}", ccw.command),
                "name": decode::name(&Ccw::new(ccw.command, 0, 0), true),
                "flags": format!("{:02x}", ccw.flags.bits()),
                "count": ccw.count,
            })
        };
        serde_json::json!({
            "subchannel": self.subchannel.to_string(),
            "shard": self.shard,
            "class": self.kind.class.name(),
            "operation": self.kind.operation.name(),
            "outcome": self.outcome.name(),
            "age_ns": nanos(&self.age),
            "stages_ns": stages,
            "orb": words(self.orb.as_bytes()),
            "irb": words(self.irb.as_bytes()),
            "ccws": self.ccws.iter().map(ccw).collect::<Vec<_>>(),
            "all_ccws": self.all_ccws,
        })
    }
}

/// The last requests of these shards, the oldest first.
pub(super) fn recall(shards: &[Weak<Common>]) -> Vec<FlightRecord> {
    let (answer, answers) = mpsc::channel();
    let begin = Instant::now();
    for shard in shards.iter().filter_map(Weak::upgrade) {
        shard.send(Mail::Recall(answer.clone()));
    }
    drop(answer);
    let mut records = Vec::new();
    while let Ok(more) = answers.recv_timeout(PATIENCE.saturating_sub(begin.elapsed())) {
        records.extend(more);
    }
    records.sort_by_key(|record: &FlightRecord| std::cmp::Reverse(record.age));
    records
}

/// Adds the page `/requests` to `registry`: what these shards have, as text or JSON.
///
/// # Errors
///
/// None, as long as the path is right.
pub(super) fn register(registry: &Registry, shards: Vec<Weak<Common>>) -> Result<(), PageError> {
    let what = "the last requests, with their stages and channel programs (?format=json, too)";
    registry.page("/requests", what, move |query| {
        let records = || recall(&shards);
        match query {
            "" | "format=text" => {
                let line = |record: FlightRecord| format!("{record}\n");
                Ok(Page::text(records().into_iter().map(line).collect::<String>()))
            }
            "format=json" => {
                let all: Vec<_> = records().iter().map(FlightRecord::json).collect();
                Ok(Page::json(format!("{}\n", serde_json::Value::from(all))))
            }
            other => {
                Err(format!("{other:?} is not known; there are format=text and format=json\n"))
            }
        }
    })
}

#[cfg(all(test, feature = "record"))]
mod tests {
    use super::*;
    use crate::subchannel::Origin;

    fn fly(recorder: &Recorder, number: u32, submitted: u64) {
        let origin = Origin::Ring { user_data: 0, epoch: 0 };
        let request = Request { orb: Orb::new(0x1000 * number), origin, submitted };
        let kind = Kind { class: DeviceClass::Fba, operation: Operation::Read };
        let irb = IrbHead::default();
        recorder.record(number, kind, &request, &Stamps::default(), None, &irb, Outcome::Ok);
    }

    #[test]
    fn the_last_ones_are_kept_in_their_order() {
        let clock = Clock::new();
        let options = FlightRecorder { requests: 4, ..FlightRecorder::default() };
        let recorder = Recorder::new(options, 3, &clock);
        assert!(recorder.recall(&clock).is_empty());
        for number in 1..=6 {
            fly(&recorder, number, clock.raw());
        }
        let records = recorder.recall(&clock);
        let numbers: Vec<_> = records.iter().map(|record| record.subchannel.number()).collect();
        assert_eq!(numbers, [3, 4, 5, 6]);
        assert_eq!(records[3].orb, Orb::new(0x6000));
        assert_eq!(records[3].shard, 3);
        let line = records[3].to_string();
        assert!(line.starts_with("0.0.0006 shard 3 fba read: ok, submitted "), "{line}");
    }

    #[test]
    fn a_slow_request_gets_its_total() {
        let clock = Clock::new();
        let recorder = Recorder::new(FlightRecorder::default(), 0, &clock);
        let metrics = Registry::new().shard("0");
        fly(&recorder, 1, 77);
        fly(&recorder, 2, 78);
        recorder.was_slow(1, 77, 2_000_000_000, &clock, &metrics);
        recorder.was_slow(9, 77, 2_000_000_000, &clock, &metrics);
        let [one, two] = recorder.recall(&clock).try_into().expect("two");
        assert_eq!(one.stages[Stage::Total.index()], Some(Duration::from_secs(2)));
        assert_eq!(two.stages, [None; Stage::COUNT]);
        assert_eq!(metrics.counters().slow_requests.value(), 2);
        assert_eq!(one.json()["stages_ns"]["total"], 2_000_000_000u64);
        assert_eq!(one.json()["subchannel"], "0.0.0001");
    }

    #[test]
    fn ticks_are_nanoseconds_by_the_clock() {
        let clock = Clock::new();
        for nanos in [1_000, 1_000_000_000, 3_600_000_000_000] {
            let back = clock.delta_as_nanos(0, ticks(nanos, &clock));
            assert!(back.abs_diff(nanos) <= nanos / 1000 + 1, "{back} for {nanos}");
        }
        assert_eq!(ticks(u64::MAX, &clock).max(1 << 60), ticks(u64::MAX, &clock));
    }

    #[test]
    fn without_entries_nothing_is_kept() {
        let clock = Clock::new();
        let none = FlightRecorder { requests: 0, slow: Duration::ZERO };
        let recorder = Recorder::new(none, 0, &clock);
        fly(&recorder, 1, 1);
        assert!(recorder.recall(&clock).is_empty());
        assert!(recorder.find(1, 1, 5, &clock).is_none());
    }
}
