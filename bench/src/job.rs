//! One job of a job file: guests under the load that it describes.
//!
//! Each of its `numjobs` is a guest of its own: a thread, an engine, and subchannels.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use vfio_ccw::engine::stage_row;
use vfio_ccw_load::closed_loop::{self, ClosedLoop, Limit, LoadReport};
use vfio_ccw_load::open_loop::{self, OpenLoop};
use vfio_ccw_load::{Access, Progress, Quiet, StageRow};
use vfio_ccw_metrics::{CounterKind, Registry, Stage, Totals};

use crate::engines::{Driven, EngineKind, Plan, ProgramKind, Refused};
use crate::ratio::FieldError;
use crate::run::JobRecord;

/// What became of a job: of all its guests together.
#[derive(Debug)]
pub struct Outcome<'s> {
    plan: Plan<'s>,
    /// One for each guest.
    guests: Vec<Guest>,
}

/// What became of a guest.
#[derive(Debug)]
struct Guest {
    report: LoadReport,
    guest_bytes: u64,
    moved: u32,
    service: Option<ServiceFacts>,
}

/// What its service knows.
#[derive(Debug)]
struct ServiceFacts {
    totals: Totals,
    driver: &'static str,
    pinner: String,
    pinned_peak: u64,
    budget: u64,
}

/// Runs the job of `plan`. `progress` sees the first of its guests; all of them tell `registry` what they measure.
///
/// # Errors
/// [`Refused`] for what the plan could not know; a volume or service that cannot be had; an engine that fails as a
/// whole.
pub fn run<'s>(
    plan: &Plan<'s>,
    registry: &Registry,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome<'s>, FieldError> {
    let guests = thread::scope(|scope| {
        let others: Vec<_> = (1..plan.spec.numjobs)
            .map(|number| scope.spawn(move || guest(plan, number, registry, &mut Quiet, stop)))
            .collect();
        let mut guests = vec![guest(plan, 0, registry, progress, stop)];
        for other in others {
            guests
                .push(other.join().unwrap_or_else(|_| Err("a guest's thread has panicked".into())));
        }
        guests.into_iter().collect::<Result<Vec<_>, FieldError>>()
    })?;
    Ok(Outcome { plan: *plan, guests })
}

/// One guest's share.
fn guest(
    plan: &Plan<'_>,
    number: u32,
    registry: &Registry,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Guest, FieldError> {
    let spec = plan.spec;
    let mut driven = Driven::new(plan, number, registry.clone())?;
    let (engine, workload) = driven.parts();
    let load = ClosedLoop {
        limit: Limit { duration: spec.runtime, ios: spec.number_ios },
        verify: spec.verify,
        ramp: spec.ramp_time,
        ..ClosedLoop::new(workload.clone())
    };
    let report = match spec.rate_iops {
        None => closed_loop::run(engine, &load, progress, stop)?,
        Some(requests_per_second) => {
            let job = OpenLoop { load, requests_per_second };
            open_loop::run(engine, &job, progress, stop)?
        }
    };
    let service = driven.service().map(|service| ServiceFacts {
        totals: service.totals(),
        driver: service.driver().name(),
        pinner: service.pool().pinner().to_owned(),
        pinned_peak: service.pool().peak_bytes(),
        budget: service.pool().budget_bytes(),
    });
    let (guest_bytes, moved) = (driven.guest_bytes(), driven.moved());
    Ok(Guest { report, guest_bytes, moved, service })
}

impl Outcome<'_> {
    /// The first wrong reads, in words.
    pub fn first_miscompares(&self) -> impl Iterator<Item = &String> {
        self.guests.iter().flat_map(|guest| &guest.report.first_miscompares)
    }

    /// What is left of it, for programs.
    pub fn record(&self) -> JobRecord {
        let (plan, spec) = (&self.plan, self.plan.spec);
        let reports = || self.guests.iter().map(|guest| &guest.report);
        let sum = |of: fn(&LoadReport) -> u64| reports().map(of).sum::<u64>();
        let first = &self.guests[0];
        let mut latency = first.report.latency.clone();
        // Nothing is recorded beyond what they all hold.
        reports().skip(1).for_each(|report| latency += &report.latency);
        let behind = reports().map(|report| report.behind).max().unwrap_or(Duration::ZERO);
        let iops: f64 = reports().map(LoadReport::iops).sum();
        let facts = || self.guests.iter().filter_map(|guest| guest.service.as_ref());
        let mut totals = Totals::default();
        facts().for_each(|facts| totals.merge(&facts.totals));
        let gets = totals.counter(CounterKind::PinGets);
        let hits = totals.counter(CounterKind::PinHits);
        let waits = !matches!(
            plan.kind,
            EngineKind::SyncEpoll | EngineKind::QemuShape | EngineKind::PerRequestPin
        );
        JobRecord {
            name: spec.name.clone(),
            engine: plan.kind.name().to_owned(),
            program: plan.program.name().to_owned(),
            mode: first.service.is_some().then(|| plan.mode.to_string()),
            wait: waits.then(|| plan.wait.to_string()),
            driver: facts().next().map(|facts| facts.driver.to_owned()),
            pinner: facts().next().map(|facts| facts.pinner.clone()),
            guests: spec.numjobs,
            subchannels: spec.iodepth,
            block_bytes: first.moved,
            read_percent: spec.read_percent(),
            access: (plan.program == ProgramKind::Disk).then(|| match spec.access() {
                Access::Zipf(theta) => format!("zipf:{theta}"),
                Access::Sequential => "in order".to_owned(),
                _ => "random".to_owned(),
            }),
            rate_iops: spec.rate_iops,
            seconds: reports().map(|report| report.seconds).fold(0.0, f64::max),
            ios: sum(|report| report.ios),
            reads: sum(|report| report.reads),
            writes: sum(|report| report.writes),
            warm_up: sum(|report| report.warm_up),
            iops,
            slowest_iops: reports().map(LoadReport::iops).fold(f64::INFINITY, f64::min),
            mib_per_s: match plan.program {
                ProgramKind::Disk => iops * f64::from(first.moved) / f64::from(1 << 20),
                ProgramKind::Shape(_) => 0.0,
            },
            errors: sum(|report| report.errors),
            lost: sum(|report| report.lost),
            duplicate: sum(|report| report.duplicate),
            checked: sum(|report| report.checked),
            miscompares: sum(|report| report.miscompares),
            behind_ns: behind.as_nanos() as u64,
            latency: StageRow::of_histogram("latency", &latency),
            buckets: latency
                .iter_recorded()
                .map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()))
                .collect(),
            stages: match facts().next() {
                None => Vec::new(),
                Some(_) => Stage::ALL.iter().map(|stage| stage_row(*stage, &totals)).collect(),
            },
            guest_bytes: first.guest_bytes,
            pinned_peak_bytes: facts().map(|facts| facts.pinned_peak).max(),
            budget_bytes: facts().map(|facts| facts.budget).max(),
            hit_rate: (gets > 0).then(|| hits as f64 / gets as f64),
            stopped: reports().any(|report| report.stopped),
        }
    }
}

/// The line of the job file that an error is about.
pub fn line_of(error: &FieldError) -> Option<usize> {
    error.downcast_ref::<Refused>().and_then(|refused| refused.line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_ccw::WaitStrategy;
    use vfio_ccw_load::job_file::JobSpec;

    fn job(options: &[(&str, &str)]) -> JobSpec {
        let mut spec = JobSpec::new("job");
        options.iter().for_each(|(name, value)| spec.set(name, value).unwrap());
        spec
    }

    fn record(options: &[(&str, &str)]) -> JobRecord {
        let spec = job(options);
        let plan = Plan::of(&spec).unwrap();
        let registry = Registry::new();
        let outcome = run(&plan, &registry, &mut Quiet, &AtomicBool::new(false)).unwrap();
        let record = outcome.record();
        assert!(record.is_clean(), "{outcome:?}");
        record
    }

    #[test]
    fn guests_do_what_the_job_says() {
        let record = record(&[
            ("rw", "randrw"),
            ("rwmixread", "60"),
            ("iodepth", "4"),
            ("numjobs", "2"),
            ("number_ios", "300"),
            ("size", "1M"),
            ("verify", "pattern"),
            ("wait", "sleep"),
            ("budget", "16M"),
        ]);
        assert_eq!((record.ios, record.lost, record.miscompares), (600, 0, 0));
        assert!(record.checked > 0 && record.writes > 100 && record.reads > 200, "{record:?}");
        assert_eq!(record.latency.count, 600);
        assert_eq!(record.buckets.iter().map(|bucket| bucket.1).sum::<u64>(), 600);
        assert_eq!(record.budget_bytes, Some(16 << 20));
        assert_eq!(record.access.as_deref(), Some("random"));
        assert!(record.pinned_peak_bytes.is_some_and(|bytes| bytes > 0), "{record:?}");
        let total = record.stages.last().unwrap();
        assert_eq!(total.name, "total");
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["subchannels"], 4);
        assert!(json["latency"]["p99_ns"].as_u64().is_some_and(|p99| p99 > 0));
        assert_eq!(serde_json::from_value::<JobRecord>(json).unwrap(), record);
    }

    #[test]
    fn every_engine_of_this_process_runs_every_program_it_knows() {
        for kind in EngineKind::ALL {
            if matches!(kind, EngineKind::Remote | EngineKind::Kernel) {
                continue;
            }
            let mut shapes: Vec<&str> =
                crate::engines::Shape::ALL.iter().map(|shape| shape.name()).collect();
            if kind == EngineKind::InProcess {
                shapes = vec!["disk"];
            }
            for shape in shapes {
                let options = [
                    ("ioengine", kind.name()),
                    ("program", shape),
                    ("iodepth", "5"),
                    ("number_ios", "40"),
                ];
                let record = record(&options);
                assert_eq!((record.ios, record.latency.count), (40, 40), "{record:?}");
                assert_eq!(record.stages.is_empty(), kind.is_baseline(), "{record:?}");
                assert_eq!((record.engine.as_str(), record.program.as_str()), (kind.name(), shape));
            }
        }
    }

    #[test]
    fn devices_of_another_process_are_driven_as_those_of_this_one() {
        let server =
            crate::peer_process::ServerProcess::start_with(3, WaitStrategy::Sleep).unwrap();
        let folder = server.folder().to_str().unwrap();
        let options = [
            ("ioengine", "remote"),
            ("filename", folder),
            ("program", "idal"),
            ("iodepth", "3"),
            ("number_ios", "60"),
        ];
        let record = record(&options);
        assert_eq!((record.ios, record.stages.is_empty()), (60, false), "{record:?}");
    }

    #[test]
    fn a_rate_is_kept_from_above() {
        let options =
            [("rw", "randread"), ("number_ios", "100"), ("rate_iops", "2000"), ("iodepth", "8")];
        let record = record(&options);
        assert_eq!(record.ios, 100);
        // 99 intervals of half a millisecond at least.
        assert!(record.seconds >= 0.0495, "{record:?}");
    }

    #[test]
    fn what_turns_out_not_to_be_is_refused_with_a_remedy() {
        let refused = |options: &[(&str, &str)]| {
            let spec = job(options);
            let plan = Plan::of(&spec).unwrap();
            let error = run(&plan, &Registry::new(), &mut Quiet, &AtomicBool::new(false));
            error.expect_err("refused").to_string()
        };
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let path = image.path().to_str().unwrap();
        let small = refused(&[("filename", path), ("size", "2M"), ("number_ios", "1")]);
        assert!(small.contains("has 1048576 bytes"), "{small}");
        let many = refused(&[("filename", path), ("iodepth", "1024"), ("number_ios", "1")]);
        assert!(many.contains("1024"), "{many}");
        let remote =
            refused(&[("ioengine", "remote"), ("filename", "/nowhere"), ("number_ios", "1")]);
        assert!(remote.contains("vfio-ccw serve"), "{remote}");
    }
}
