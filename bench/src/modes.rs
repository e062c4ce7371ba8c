//! The three pinning modes side by side: what each costs, and what it leaves pinned.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use vfio_ccw::{Mode, Service};
use vfio_ccw_bench::ratio::{FieldError, interval_of_median, median};
use vfio_ccw_bench::service_load::{DiskLoad, DiskShape, VOLUME};
use vfio_ccw_load::random::SplitMix64;
use vfio_ccw_load::units::{Bytes, Count, Nanos};
use vfio_ccw_load::{Access, LoadReport, parse_bytes};
use vfio_ccw_metrics::{CounterKind, Totals};

const EXAMPLES: &str = "\
Each mode has a service and a guest of its own; they are measured in turns, with the same requests.
A request is a channel program that reads 4 KiB. It needs two pages pinned: one with its parameters,
the same each time, and one that the data goes to, chosen by the access pattern. The hit rate counts
both. Where the budget has no room for a program, it runs with its pages unpinned.

Examples:
  vfio-ccw-bench modes                                    four workloads, about 40 s
  vfio-ccw-bench modes --access hot:90/10 --seconds 10    one workload, longer
  vfio-ccw-bench modes --working-set 16MiB                all that is used fits into the budget
  vfio-ccw-bench modes --guest 2GiB --budget 64MiB --json > modes.json";

/// What is compared.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Modes {
    /// Print one JSON object instead of the table.
    #[arg(long)]
    json: bool,
    /// Which pages: uniform, sequential, zipf:THETA or hot:ACCESSES/PAGES; can be given several times
    /// [default: uniform, zipf:0.99, sequential and hot:90/10].
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    access: Vec<Pattern>,
    /// Most guest memory that is pinned in the modes on-demand and cached [default: a tenth of the guest].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    budget: Option<u64>,
    /// Guest memory; mode pinned pins it all.
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = parse_bytes)]
    guest: u64,
    /// Guest memory that data is read into, pages at random places [default: three quarters of the guest].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    working_set: Option<u64>,
    /// Disks, each with one request under way.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    subchannels: u16,
    /// How long each mode is measured under each workload, all rounds together.
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    seconds: Duration,
    /// Rounds of each workload; the modes take turns in each.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Seed of all random choices.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// An access pattern and the word for it.
#[derive(Debug, Clone, PartialEq)]
struct Pattern {
    word: String,
    access: Access,
}

/// Why the modes could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ModesError {
    /// A service did not start, or its load failed.
    #[error("mode {mode} under {access}: {source}")]
    Load {
        /// The mode.
        mode: Mode,
        /// The access pattern's word.
        access: String,
        /// What went wrong.
        source: FieldError,
    },
    /// Nowhere to print.
    #[error("the comparison could not be written: {0}")]
    Output(#[from] io::Error),
    /// The JSON could not be made.
    #[error("the comparison could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Modes {
    /// Measures and prints.
    ///
    /// # Errors
    /// Where a service does not start, a request fails, or nobody takes the output.
    pub fn run(&self) -> Result<(), ModesError> {
        let mut comparison = Comparison::new(self);
        for pattern in self.patterns() {
            eprintln!("{}: {} rounds of each mode", pattern.word, self.rounds);
            comparison.workloads.push(self.workload(&pattern, &mut comparison.service)?);
        }
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &comparison)?;
            writeln!(out)?;
        } else {
            out.write_all(comparison.text().as_bytes())?;
        }
        Ok(())
    }

    fn patterns(&self) -> Vec<Pattern> {
        if !self.access.is_empty() {
            return self.access.clone();
        }
        ["uniform", "zipf:0.99", "sequential", "hot:90/10"]
            .into_iter()
            .filter_map(|word| pattern(word).ok())
            .collect()
    }

    fn shape(&self, mode: Mode, access: Access) -> DiskShape {
        let shape = DiskShape::new(self.subchannels.into(), self.guest, self.seed);
        DiskShape {
            mode,
            access,
            budget: self.budget.unwrap_or(shape.budget),
            working_set: self.working_set.unwrap_or((self.guest / 4 * 3).min(shape.room())),
            ..shape
        }
    }

    /// All modes under one pattern, in interleaved rounds.
    fn workload(
        &self,
        pattern: &Pattern,
        service: &mut Option<ServiceRow>,
    ) -> Result<Workload, ModesError> {
        let failed = |mode| {
            let access = pattern.word.clone();
            move |source| ModesError::Load { mode, access, source }
        };
        let mut contenders = Vec::with_capacity(Mode::ALL.len());
        for mode in Mode::ALL {
            let contender = Contender::new(&self.shape(mode, pattern.access));
            contenders.push(contender.map_err(failed(mode))?);
        }
        *service = contenders.first().map(|contender| ServiceRow::of(contender.load.service()));
        let mut seeds = SplitMix64::new(self.seed);
        let count = contenders.len();
        for round in 0..self.rounds as usize {
            let seed = seeds.next_u64();
            for turn in 0..count {
                // Who goes first changes, so that a machine that warms up favours none.
                let contender = &mut contenders[(round + turn) % count];
                contender
                    .measure(self.seconds / self.rounds, seed)
                    .map_err(failed(contender.mode))?;
            }
        }
        let access = pattern.word.clone();
        let rows = contenders.into_iter().map(|contender| contender.row(self.seed)).collect();
        Ok(Workload { access, modes: rows })
    }
}

/// A mode with its service under load.
struct Contender {
    mode: Mode,
    load: DiskLoad,
    reports: Vec<LoadReport>,
    totals: Totals,
}

impl Contender {
    fn new(shape: &DiskShape) -> Result<Self, FieldError> {
        let mut load = DiskLoad::of(shape)?;
        load.warm_up()?;
        Ok(Self { mode: shape.mode, load, reports: Vec::new(), totals: Totals::default() })
    }

    fn measure(&mut self, time: Duration, seed: u64) -> Result<(), FieldError> {
        let before = self.load.service().totals();
        self.reports.push(self.load.run_for(time, seed)?);
        self.totals.merge(&self.load.service().totals().minus(&before));
        Ok(())
    }

    fn row(self, seed: u64) -> ModeRow {
        let pool = self.load.service().pool();
        let mut iops: Vec<f64> = self.reports.iter().map(LoadReport::iops).collect();
        let interval = interval_of_median(&iops, seed);
        let ios: u64 = self.reports.iter().map(|report| report.ios).sum();
        let mut reports = self.reports.iter();
        let latency = reports.next().map(|first| {
            let mut latency = first.latency.clone();
            // Histograms of one shape always add.
            reports.for_each(|report| latency.add(&report.latency).unwrap_or_default());
            latency
        });
        let quantile = |q| latency.as_ref().map_or(0, |latency| latency.value_at_quantile(q));
        let share = |part, whole| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let counted = |kind| self.totals.counter(kind);
        ModeRow {
            mode: self.mode.name(),
            iops: median(&mut iops).unwrap_or(0.0),
            iops_low: interval.low,
            iops_high: interval.high,
            p50_ns: quantile(0.5),
            p99_ns: quantile(0.99),
            pinned_now_bytes: pool.pinned_bytes(),
            pinned_peak_bytes: pool.peak_bytes(),
            hit_rate: share(counted(CounterKind::PinHits), counted(CounterKind::PinGets)),
            pin_calls_per_io: share(counted(CounterKind::PinCalls), ios),
            unpinned_per_io: share(counted(CounterKind::PinUnpinned), ios),
            ios,
        }
    }
}

/// All that was measured, and with what.
#[derive(Debug, Serialize)]
struct Comparison {
    guest_bytes: u64,
    budget_bytes: u64,
    working_set_bytes: u64,
    volume_bytes: u64,
    subchannels: u16,
    seconds: f64,
    rounds: u32,
    seed: u64,
    #[serde(flatten)]
    service: Option<ServiceRow>,
    workloads: Vec<Workload>,
}

/// What the services chose themselves.
#[derive(Debug, Serialize)]
struct ServiceRow {
    pinner: &'static str,
    driver: &'static str,
}

impl ServiceRow {
    fn of(service: &Service) -> Self {
        Self { pinner: service.pool().pinner(), driver: service.driver().name() }
    }
}

/// The modes under one access pattern.
#[derive(Debug, Serialize)]
struct Workload {
    access: String,
    modes: Vec<ModeRow>,
}

/// One mode under one access pattern.
#[derive(Debug, Serialize)]
struct ModeRow {
    mode: &'static str,
    /// Requests in all rounds.
    ios: u64,
    /// Requests a second: median of the rounds, and its 95 % interval.
    iops: f64,
    iops_low: f64,
    iops_high: f64,
    /// From submission to completion, as the load generator sees it.
    p50_ns: u64,
    p99_ns: u64,
    /// With no request under way any more.
    pinned_now_bytes: u64,
    pinned_peak_bytes: u64,
    /// Pages that were pinned already, of those that programs needed.
    hit_rate: f64,
    /// Runs of pages that were pinned in one call, a request.
    pin_calls_per_io: f64,
    /// Pages that were used without being pinned, a request: there was no room for them.
    unpinned_per_io: f64,
}

impl Comparison {
    fn new(modes: &Modes) -> Self {
        let shape = modes.shape(Mode::Cached, Access::Uniform);
        Self {
            guest_bytes: shape.guest,
            budget_bytes: shape.budget,
            working_set_bytes: shape.working_set,
            volume_bytes: VOLUME,
            subchannels: modes.subchannels,
            seconds: modes.seconds.as_secs_f64(),
            rounds: modes.rounds,
            seed: modes.seed,
            service: None,
            workloads: Vec::new(),
        }
    }

    /// The comparison as a table, for people.
    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string can not fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{} disks on a volume of {} in the page cache, 4 KiB reads into {} of a guest of {}",
            self.subchannels,
            Bytes(self.volume_bytes),
            Bytes(self.working_set_bytes),
            Bytes(self.guest_bytes)
        )?;
        write!(out, "budget {}", Bytes(self.budget_bytes))?;
        if let Some(ServiceRow { pinner, driver }) = &self.service {
            write!(out, ", pinner {pinner}, driver {driver}")?;
        }
        writeln!(out, "; {} s each in {} rounds, seed {}\n", self.seconds, self.rounds, self.seed)?;
        writeln!(
            out,
            "{:<12} {:<10} {:>7} {:>15} {:>9} {:>9} {:>9} {:>10} {:>10} {:>9} {:>12} {:>11}",
            "access",
            "mode",
            "IOPS",
            "95 % interval",
            "/ pinned",
            "p50",
            "p99",
            "pinned now",
            "at most",
            "hit rate",
            "pin calls/IO",
            "unpinned/IO"
        )?;
        for workload in &self.workloads {
            let pinned = workload.modes.iter().find(|row| row.mode == Mode::Pinned.name());
            for row in &workload.modes {
                let interval = format!("{} to {}", Count(row.iops_low), Count(row.iops_high));
                let ratio = pinned.map_or(f64::NAN, |pinned| row.iops / pinned.iops);
                writeln!(
                    out,
                    "{:<12} {:<10} {:>7} {interval:>15} {ratio:>9.3} {:>9} {:>9} {:>10} {:>10} {:>7.2} % {:>12.3} {:>11.3}",
                    workload.access,
                    row.mode,
                    Count(row.iops),
                    Nanos(row.p50_ns),
                    Nanos(row.p99_ns),
                    Bytes(row.pinned_now_bytes),
                    Bytes(row.pinned_peak_bytes),
                    row.hit_rate * 100.0,
                    row.pin_calls_per_io,
                    row.unpinned_per_io
                )?;
            }
        }
        Ok(())
    }
}

/// Reads an access pattern, the words of the main job's `--access`.
fn pattern(word: &str) -> Result<Pattern, String> {
    let access = match word.split_once(':') {
        None if word == "uniform" => Some(Access::Uniform),
        None if word == "sequential" => Some(Access::Sequential),
        Some(("zipf", theta)) => theta.parse().ok().map(Access::Zipf),
        Some(("hot", share)) => share.split_once('/').and_then(|(accesses, pages)| {
            Some(Access::WorkingSet {
                percent_hot_accesses: accesses.parse().ok()?,
                percent_hot_blocks: pages.parse().ok()?,
            })
        }),
        _ => None,
    };
    let wrong = || {
        format!(
            "'{word}' is no access pattern: use uniform, sequential, zipf:THETA or hot:ACCESSES/PAGES"
        )
    };
    Ok(Pattern { word: word.to_owned(), access: access.ok_or_else(wrong)? })
}

/// Reads a time in seconds that a measurement can last.
fn seconds(word: &str) -> Result<Duration, String> {
    let wrong = || format!("'{word}' is no time: use seconds, above 0 and at most 100000");
    let seconds: f64 = word.parse().map_err(|_| wrong())?;
    if seconds > 0.0 && seconds <= 1e5 {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        modes: Modes,
    }

    fn modes(words: &str) -> Modes {
        Cli::try_parse_from(["modes"].into_iter().chain(words.split_whitespace())).unwrap().modes
    }

    #[test]
    fn defaults_are_four_workloads_and_a_tenth_of_the_guest() {
        let modes = modes("");
        let words: Vec<String> = modes.patterns().into_iter().map(|pattern| pattern.word).collect();
        assert_eq!(words, ["uniform", "zipf:0.99", "sequential", "hot:90/10"]);
        let shape = modes.shape(Mode::Cached, Access::Uniform);
        assert_eq!((shape.budget, shape.working_set), ((256 << 20) / 10, 192 << 20));
    }

    #[test]
    fn words_are_read_or_refused_with_the_choices() {
        assert_eq!(pattern("zipf:0.5").unwrap().access, Access::Zipf(0.5));
        for wrong in ["zip", "zipf", "zipf:x", "hot:90", "uniform:1"] {
            assert!(pattern(wrong).unwrap_err().contains("use uniform"), "{wrong}");
        }
        for wrong in ["0", "-1", "NaN", "inf", "x"] {
            assert!(seconds(wrong).unwrap_err().contains("above 0"), "{wrong}");
        }
    }

    /// A comparison small enough for any machine.
    fn small() -> Comparison {
        let modes = modes(
            "--guest 4MiB --budget 512KiB --working-set 2MiB --subchannels 4 --seconds 0.2 --rounds 2",
        );
        let mut comparison = Comparison::new(&modes);
        let hot = pattern("hot:90/10").unwrap();
        comparison.workloads.push(modes.workload(&hot, &mut comparison.service).unwrap());
        comparison
    }

    #[test]
    fn each_mode_pins_as_it_says() {
        let comparison = small();
        let [pinned, on_demand, cached] = &comparison.workloads[0].modes[..] else {
            panic!("three modes");
        };
        assert_eq!((pinned.pinned_now_bytes, pinned.pinned_peak_bytes), (4 << 20, 4 << 20));
        assert_eq!((pinned.hit_rate, pinned.pin_calls_per_io), (1.0, 0.0));

        assert_eq!((on_demand.pinned_now_bytes, on_demand.hit_rate), (0, 0.0));
        assert!(on_demand.pinned_peak_bytes <= 8 * 4096, "two pages a disk");
        assert!(on_demand.pin_calls_per_io > 1.0, "{on_demand:?}");

        assert_eq!(
            cached.pinned_peak_bytes,
            512 << 10,
            "the budget, which the working set exceeds"
        );
        assert!(cached.hit_rate > 0.5 && cached.hit_rate < 1.0, "{cached:?}");
        assert!(comparison.workloads[0].modes.iter().all(|row| row.unpinned_per_io == 0.0));
        assert!(cached.pin_calls_per_io > 0.0 && cached.pin_calls_per_io < 1.0, "{cached:?}");
    }

    #[test]
    fn table_and_json_have_every_mode() {
        let comparison = small();
        let text = comparison.text();
        assert!(text.contains("4 KiB reads into 2 MiB of a guest of 4 MiB"), "{text}");
        assert!(text.contains("budget 512 KiB, pinner ") && text.contains("seed 1"), "{text}");
        let table = text.lines().skip(3).collect::<Vec<_>>();
        assert_eq!(table.len(), 4, "{text}");
        let width = table[0].chars().count();
        assert!(table.iter().all(|line| line.chars().count() == width), "{text}");

        let json = serde_json::to_value(&comparison).unwrap();
        assert_eq!((&json["seed"], &json["budget_bytes"]), (&1.into(), &(512 << 10).into()));
        assert!(json["pinner"].is_string(), "{json}");
        for (row, mode) in json["workloads"][0]["modes"].as_array().unwrap().iter().zip(Mode::ALL) {
            assert_eq!(row["mode"], mode.name());
            assert!(row["iops"].as_f64().unwrap() > 0.0 && row["p99_ns"].is_u64(), "{row}");
        }
    }
}
