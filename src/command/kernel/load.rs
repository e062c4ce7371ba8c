//! Devices of the kernel's vfio-ccw under SENSE ID, by the pipeline and by the fewest system calls, in turns.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, command};
use vfio_ccw::{Completions, DeviceSpec, Subchannel};
use vfio_ccw_load::units::Nanos;
use vfio_ccw_metrics::{Stage, Totals};

use super::{Reach, bare};
use crate::command::options::ServiceOptions;
use crate::command::{Failure, guest, tell};

/// Turns of each: what changes on the machine meanwhile changes both.
const TURNS: u32 = 5;

/// Guest memory in bytes.
const MEMORY: u64 = 16 << 20;

/// Where programs and data are, a page for each device.
const PROGRAMS: u32 = 0x1_0000;
const DATA: u32 = 0x10_0000;

/// Programs that are queued at one device at a time, where they need not wait for each other's results.
const QUEUED: usize = 16;

/// How long one program may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be loaded, and how.
#[derive(Debug)]
pub(in crate::command) struct KernelLoad<'a> {
    pub(in crate::command) devices: &'a [String],
    pub(in crate::command) reach: Reach,
    pub(in crate::command) service: &'a ServiceOptions,
    pub(in crate::command) time: Duration,
    pub(in crate::command) quiet: bool,
}

/// What came of it. Durations are in nanoseconds.
#[derive(Debug)]
pub(in crate::command) struct KernelReport {
    devices: usize,
    interface: String,
    mode: String,
    /// All devices at a time, one program each.
    pipeline: Rate,
    /// The first device alone, one program after the other.
    pipeline_alone: Rate,
    /// The same with so many queued: what one of them took.
    pipeline_queued: Rate,
    /// The first device alone, by three system calls.
    bare: Rate,
    /// The same through io_uring.
    uring: Rate,
    /// Of the medians, the first device alone: on the shard, from taking a request to its completion (there
    /// the medians of its stages, added); queued; and one after the other.
    shard_vs_bare_p50: f64,
    queued_vs_bare_p50: f64,
    alone_vs_bare_p50: f64,
    /// Share of translation, and of pins, in the pipeline's mean.
    translate_share: f64,
    pin_share: f64,
    stages_p50: BTreeMap<&'static str, u64>,
}

/// How long requests took, and how many there were in a second.
#[derive(Debug, Default)]
struct Rate {
    requests: usize,
    per_second: f64,
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
}

impl Rate {
    fn of(mut took: Vec<u64>, seconds: f64) -> Self {
        took.sort_unstable();
        let at = |share: f64| {
            took.get((took.len() as f64 * share) as usize).or(took.last()).copied().unwrap_or(0)
        };
        Rate {
            requests: took.len(),
            per_second: took.len() as f64 / seconds.max(1e-9),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "requests": self.requests,
            "per_second": self.per_second,
            "p50_ns": self.p50,
            "p90_ns": self.p90,
            "p99_ns": self.p99,
            "max_ns": self.max,
        })
    }
}

impl KernelLoad<'_> {
    /// Loads the devices, and compares.
    pub(in crate::command) fn run(&self, stop: &AtomicBool) -> Result<KernelReport, Failure> {
        let several = self.devices.len() > 1;
        let turn = self.time / TURNS / if several { 5 } else { 4 };
        let (mut all, mut alone, mut least) = (Vec::new(), Vec::new(), Vec::new());
        let (mut queued, mut by_uring) = (Vec::new(), Vec::new());
        let (mut totals, mut turns) = (Totals::default(), 0);
        let mut interface = None;
        while turns < TURNS && !stop.load(Ordering::Relaxed) {
            turns += 1;
            if !self.quiet {
                tell(format_args!("turn {turns} of {TURNS}"));
            }
            let first = &self.devices[..1];
            alone.extend(self.pipeline(first, 1, turn, stop)?.0);
            let (took, more) = self.pipeline(first, QUEUED, turn, stop)?;
            queued.extend(took);
            totals.merge(&more);
            let (space, devices) = self.reach.open(first)?;
            interface = Some(space.interface());
            let [calls, uring] = bare::run(&space, &devices[0], turn)?;
            least.extend(calls);
            by_uring.extend(uring);
            drop((devices, space));
            if several {
                all.extend(self.pipeline(self.devices, 1, turn, stop)?.0);
            }
        }
        let seconds = turn.as_secs_f64() * f64::from(turns);
        let (alone, bare) = (Rate::of(alone, seconds), Rate::of(least, seconds));
        let queued = Rate::of(queued, seconds);
        let to_bare = |rate: &Rate| rate.p50 as f64 / (bare.p50 as f64).max(1.0);
        let pipeline = if several { Rate::of(all, seconds) } else { Rate::of(Vec::new(), seconds) };
        // Without the queue: there, each waits for those before it.
        let shard = [Stage::Translate, Stage::Pin, Stage::Start, Stage::Device, Stage::Deliver];
        let sum = |stage| totals.stage(stage).sum_ns() as f64;
        let total: f64 = shard.into_iter().map(sum).sum();
        let share = |stage| sum(stage) / total.max(1.0);
        let on_shard: u64 = shard.into_iter().map(|stage| totals.stage(stage).quantile(0.5)).sum();
        Ok(KernelReport {
            shard_vs_bare_p50: on_shard as f64 / (bare.p50 as f64).max(1.0),
            devices: self.devices.len(),
            interface: interface.map(|interface| interface.to_string()).unwrap_or_default(),
            mode: self.service.mode.to_string(),
            queued_vs_bare_p50: to_bare(&queued),
            alone_vs_bare_p50: to_bare(&alone),
            pipeline,
            pipeline_alone: alone,
            pipeline_queued: queued,
            bare,
            uring: Rate::of(by_uring, seconds),
            translate_share: share(Stage::Translate),
            pin_share: share(Stage::Pin),
            stages_p50: (Stage::ALL.iter())
                .map(|stage| (stage.name(), totals.stage(*stage).quantile(0.5)))
                .collect(),
        })
    }

    /// SENSE ID on each of `devices` again and again, for `time`, `depth` of them queued; what each took, from
    /// the submission of its queue to the completion of that.
    fn pipeline(
        &self,
        devices: &[String],
        depth: usize,
        time: Duration,
        stop: &AtomicBool,
    ) -> Result<(Vec<u64>, Totals), Failure> {
        let (space, opened) = self.reach.open(devices)?;
        let service = self.service.builder(devices.len()).address_space(space).ring_entries(depth);
        let service = service.build(guest::memory(MEMORY)?)?;
        let (delivery, mut completions) =
            Completions::ring((devices.len() * depth).next_power_of_two().max(2))?;
        let attach = |device| service.attach(DeviceSpec::kernel(device), delivery.clone());
        let subchannels: Vec<_> = opened.into_iter().map(attach).collect::<Result<_, _>>()?;
        let orbs: Vec<_> =
            (0..devices.len() as u32).map(|number| PROGRAMS + number * 0x1000).collect();
        for (number, at) in orbs.iter().enumerate() {
            let data = DATA + number as u32 * 0x1000;
            let ccw = Ccw::new(command::SENSE_ID, data, 7).with(CcwFlags::SUPPRESS_LENGTH);
            if !service.memory().write((*at).into(), &ccw.to_format_1()) {
                return Err(format!("{} devices need more guest memory", devices.len()).into());
            }
        }
        let orbs: Vec<_> = orbs.into_iter().map(Orb::new).collect();
        let queue = Queue { subchannels, orbs, depth };
        let took = closed_loop(&queue, &mut completions, time, stop)?;
        Ok((took, service.totals()))
    }
}

/// What is submitted, and how much of it at a time.
struct Queue {
    subchannels: Vec<Subchannel>,
    orbs: Vec<Orb>,
    depth: usize,
}

fn closed_loop(
    queue: &Queue,
    completions: &mut Completions,
    time: Duration,
    stop: &AtomicBool,
) -> Result<Vec<u64>, Failure> {
    let mut took = Vec::with_capacity(1 << 20);
    let Queue { subchannels, orbs, depth } = queue;
    let mut begun = vec![Instant::now(); subchannels.len()];
    let mut left = vec![0; subchannels.len()];
    let mut done: Vec<usize> = (0..subchannels.len()).collect();
    let (begin, mut under_way) = (Instant::now(), 0);
    loop {
        let goes_on = begin.elapsed() < time && !stop.load(Ordering::Relaxed);
        for slot in done.drain(..).filter(|_| goes_on) {
            begun[slot] = Instant::now();
            for _ in 0..*depth {
                subchannels[slot].submit(&orbs[slot], slot as u64)?;
            }
            left[slot] = *depth;
            under_way += 1;
        }
        if under_way == 0 {
            return Ok(took);
        }
        completions.wait(Some(PATIENCE))?;
        let mut failed = None;
        let reaped = completions.reap(usize::MAX, |completion| {
            let slot = completion.user_data as usize;
            left[slot] -= 1;
            if left[slot] == 0 {
                took.push(begun[slot].elapsed().as_nanos() as u64 / *depth as u64);
                done.push(slot);
            }
            if !completion.irb.scsw.is_clean_end() {
                failed = Some(completion.irb);
            }
        });
        if let Some(irb) = failed {
            return Err(format!("SENSE ID ended with {irb:?}").into());
        }
        if reaped == 0 {
            return Err(format!("no device has answered in {PATIENCE:?}").into());
        }
        under_way -= done.len();
    }
}

impl KernelReport {
    /// For scripts.
    pub(in crate::command) fn json(&self) -> serde_json::Value {
        json!({
            "devices": self.devices,
            "interface": self.interface,
            "mode": self.mode,
            "pipeline": self.pipeline_alone.json(),
            "pipeline_queued": self.pipeline_queued.json(),
            "pipeline_all_at_once": (self.devices > 1).then(|| self.pipeline.json()),
            "bare": self.bare.json(),
            "bare_by_uring": (self.uring.requests > 0).then(|| self.uring.json()),
            "shard_vs_bare_p50": self.shard_vs_bare_p50,
            "queued_vs_bare_p50": self.queued_vs_bare_p50,
            "alone_vs_bare_p50": self.alone_vs_bare_p50,
            "translate_share": self.translate_share,
            "pin_share": self.pin_share,
            "stages_p50_ns": self.stages_p50,
        })
    }

    /// As a table.
    pub(in crate::command) fn text(&self) -> String {
        let mut text = format!(
            "SENSE ID on {} of vfio_ccw, {}, mode {}\n{:<22}{:>10}{:>12}{:>12}{:>12}\n",
            match self.devices {
                1 => "a device".to_owned(),
                several => format!("{several} devices"),
            },
            self.interface,
            self.mode,
            "",
            "per second",
            "p50",
            "p90",
            "p99"
        );
        let mut row = |name: &str, rate: &Rate| {
            let _ = writeln!(
                text,
                "{name:<22}{:>10.0}{:>12}{:>12}{:>12}",
                rate.per_second,
                Nanos(rate.p50).to_string(),
                Nanos(rate.p90).to_string(),
                Nanos(rate.p99).to_string()
            );
        };
        row("one after the other", &self.pipeline_alone);
        row(&format!("{QUEUED} queued, each"), &self.pipeline_queued);
        row("three system calls", &self.bare);
        if self.uring.requests > 0 {
            row("three uring entries", &self.uring);
        }
        if self.devices > 1 {
            row("all devices at once", &self.pipeline);
        }
        let _ = writeln!(
            text,
            "p50 against three system calls: {:.2} on the shard, of which translation {:.1} % and pins {:.1} %; with the \
             way there and back {:.2} queued, {:.2} one after the other",
            self.shard_vs_bare_p50,
            self.translate_share * 100.0,
            self.pin_share * 100.0,
            self.queued_vs_bare_p50,
            self.alone_vs_bare_p50
        );
        text.push_str("p50 by stage:");
        for stage in Stage::ALL {
            let nanos = self.stages_p50.get(stage.name()).copied().unwrap_or(0);
            let _ = write!(text, " {stage} {}", Nanos(nanos));
        }
        text
    }
}
