//! Both jobs against an engine that does right, and against one that does each thing wrong: whatever
//! it does must be in the report.

mod toy;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use toy::{Fault, Toy};
use vfio_ccw_load::closed_loop::{self, ClosedLoop, Limit, LoadReport};
use vfio_ccw_load::open_loop::{self, OpenLoop};
use vfio_ccw_load::verify::{self, VerifyReport, WholeVolume};
use vfio_ccw_load::{
    Access, Buffers, Direction, EngineError, Failure, JobReport, LoadError, Progress, Quiet, Tick,
    Workload, WorkloadError,
};

const BLOCK: u32 = 4096;
const VOLUME: usize = 1 << 20;
/// Short, so that tests of lost requests end soon. The toy completes at once whatever it completes, so
/// no slowness of the machine turns another request into a lost one.
const STALL: Duration = Duration::from_millis(20);

fn job(ios: u64, read_percent: u8, verify: bool) -> ClosedLoop {
    ClosedLoop {
        workload: Workload {
            read_percent,
            buffers: Buffers { base: 0, bytes_per_slot: 1 << 16, access: Access::Uniform },
            seed: 3,
            ..Workload::new(VOLUME as u64, BLOCK)
        },
        limit: Limit::ios(ios),
        verify,
        stall_limit: STALL,
        ramp: Duration::ZERO,
    }
}

fn load(toy: &mut Toy, job: &ClosedLoop) -> LoadReport {
    let report = closed_loop::run(toy, job, &mut Quiet, &AtomicBool::new(false)).unwrap();
    assert_eq!(report.submitted, report.ios + report.warm_up + report.errors + report.lost);
    assert_eq!(report.submitted, toy.requests.len() as u64);
    assert_eq!(report.latency.len(), report.ios);
    report
}

fn whole(volume_bytes: usize, block_bytes: u32) -> WholeVolume {
    WholeVolume { stall_limit: STALL, ..WholeVolume::new(volume_bytes as u64, block_bytes, 77) }
}

fn pass(toy: &mut Toy, whole: &WholeVolume) -> VerifyReport {
    verify::write_and_read_back(toy, whole, &mut Quiet, &AtomicBool::new(false)).unwrap()
}

/// The number of the first read of a block that was written before, and of that write.
fn first_verified_read(job: &ClosedLoop) -> (u64, u64) {
    let mut toy = Toy::new(1, VOLUME);
    load(&mut toy, job);
    let requests = toy.requests;
    let found = requests.iter().enumerate().find_map(|(read, request)| {
        let earlier = requests[..read].iter().rposition(|earlier| {
            earlier.offset == request.offset && earlier.direction == Direction::Write
        })?;
        (request.direction == Direction::Read).then_some((read as u64, earlier as u64))
    });
    found.expect("a load of this length reads something that it wrote")
}

#[test]
fn a_right_engine_gets_a_clean_report() {
    let mut toy = Toy::new(8, VOLUME);
    let report = load(&mut toy, &job(20_000, 60, true));
    assert!(report.is_clean() && !report.stopped, "{report:?}");
    assert_eq!((report.ios, report.late), (20_000, 0));
    let reads =
        toy.requests.iter().filter(|request| request.direction == Direction::Read).count() as u64;
    assert_eq!((report.reads, report.writes), (reads, 20_000 - reads));
    assert_eq!(report.bytes_read, reads * u64::from(BLOCK));
    assert_eq!(report.bytes_written, (20_000 - reads) * u64::from(BLOCK));
    // 256 blocks are soon all written, so that nearly every read can be compared.
    assert!(report.checked > reads * 9 / 10 && report.checked < reads);
    assert!(report.seconds > 0.0 && report.iops() > 0.0);
    let json = serde_json::to_value(JobReport::of(&report, 8)).unwrap();
    assert_eq!(json["ios"], 20_000);
    assert_eq!(json["stages"]["round_trip"]["count"], 20_000);
}

#[test]
fn every_access_shape_verifies() {
    for access in [
        Access::Zipf(0.99),
        Access::Sequential,
        Access::WorkingSet { percent_hot_accesses: 90, percent_hot_blocks: 10 },
    ] {
        let mut job = job(5000, 50, true);
        job.workload.access = access;
        let report = load(&mut Toy::new(4, VOLUME), &job);
        assert!(report.is_clean() && report.checked > 0, "{access:?}: {report:?}");
    }
}

#[test]
fn a_lost_request_is_reported_and_the_others_go_on() {
    let mut toy = Toy::new(4, VOLUME).with(10, Fault::Lose);
    let report = load(&mut toy, &job(1000, 50, true));
    assert_eq!((report.lost, report.late, report.duplicate), (1, 0, 0));
    assert_eq!((report.ios, report.miscompares), (999, 0));
    let lost = toy.requests[10];
    assert!(toy.requests[11..].iter().all(|request| request.slot != lost.slot));
}

#[test]
fn a_load_ends_when_all_slots_are_lost() {
    let mut toy = Toy::new(2, VOLUME).with(0, Fault::Lose).with(1, Fault::Lose);
    let report = load(&mut toy, &job(1000, 50, false));
    assert_eq!((report.submitted, report.lost, report.ios), (2, 2, 0));
    assert_eq!((report.iops(), report.mib_per_s()), (0.0, 0.0));
}

#[test]
fn a_completion_after_the_stall_limit_is_late_and_not_duplicate() {
    let mut toy = Toy::new(1, VOLUME).with(5, Fault::Delay);
    let mut given_up = toy.given_up();
    let job = job(1000, 50, false);
    let report = closed_loop::run(&mut toy, &job, &mut given_up, &AtomicBool::new(false)).unwrap();
    assert_eq!((report.lost, report.late, report.duplicate, report.ios), (1, 1, 0, 5));
}

#[test]
fn duplicate_completions_are_counted_each() {
    let mut toy = Toy::new(4, VOLUME)
        .with(7, Fault::Duplicate)
        .with(500, Fault::Phantom)
        .with(999, Fault::Duplicate);
    let report = load(&mut toy, &job(1000, 50, true));
    assert_eq!((report.duplicate, report.lost, report.ios, report.miscompares), (3, 0, 1000, 0));
    assert!(!report.is_clean());
}

#[test]
fn a_corrupted_read_is_found_and_described() {
    let job = job(1000, 50, true);
    let (read, _) = first_verified_read(&job);
    let report = load(&mut Toy::new(1, VOLUME).with(read, Fault::Corrupt), &job);
    assert_eq!(report.miscompares, 1, "{report:?}");
    assert!(report.first_miscompares[0].contains("corrupted from byte 300"), "{report:?}");
}

#[test]
fn wrong_writes_are_found_when_they_are_read() {
    let job = job(1000, 50, true);
    let (read, write) = first_verified_read(&job);
    for (fault, part) in [
        (Fault::Corrupt, "corrupted from byte 300"),
        (Fault::Skip, "found "),
        (Fault::Misdirect, "found "),
    ] {
        let report = load(&mut Toy::new(1, VOLUME).with(write, fault), &job);
        assert!(report.miscompares >= 1, "{fault:?} {report:?}");
        assert!(report.first_miscompares[0].contains(part), "{fault:?}: {report:?}");
    }
    let report = load(&mut Toy::new(1, VOLUME).with(read, Fault::Skip), &job);
    assert_eq!(report.miscompares, 1);
    assert!(report.first_miscompares[0].ends_with("the buffer untouched"), "{report:?}");
}

#[test]
fn after_a_failed_write_the_block_is_unknown_until_written_again() {
    let job = job(1000, 50, true);
    let (_, write) = first_verified_read(&job);
    let report = load(&mut Toy::new(1, VOLUME).with(write, Fault::Tear), &job);
    let sound = load(&mut Toy::new(1, VOLUME), &job);
    assert_eq!((report.errors, report.miscompares), (1, 0), "{report:?}");
    assert!(report.checked < sound.checked);
}

#[test]
fn failures_are_counted_by_kind_with_the_first_in_words() {
    let unit_check = Failure::Status { device: 0x0e, subchannel: 0, sense: 0x80 };
    let mut toy = Toy::new(4, VOLUME).failing(10, unit_check).with(0, Fault::Tear);
    let report = load(&mut toy, &job(1000, 50, true));
    assert_eq!((report.errors, report.ios, report.miscompares), (101, 899, 0));
    let kinds: Vec<(&str, u64)> =
        report.error_kinds.iter().map(|row| (row.kind.as_str(), row.count)).collect();
    assert_eq!(kinds, [("unit_check", 100), ("abandoned", 1)]);
    assert!(report.error_kinds[0].first.contains("command reject"));
}

#[test]
fn an_engine_that_dies_ends_the_job_with_its_reason() {
    let mut toy = Toy::new(4, VOLUME);
    toy.dies_after = 100;
    let ended =
        closed_loop::run(&mut toy, &job(1000, 50, false), &mut Quiet, &AtomicBool::new(false));
    assert!(matches!(ended, Err(LoadError::Engine(EngineError::Closed { .. }))));
}

#[test]
fn buffers_outside_of_guest_memory_are_an_error() {
    let mut job = job(1000, 50, true);
    job.workload.buffers.base = 1 << 40;
    let ended =
        closed_loop::run(&mut Toy::new(1, VOLUME), &job, &mut Quiet, &AtomicBool::new(false));
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("4096 bytes at 0x1000"), "{error}");
}

/// Sets the stop flag at the first tick.
struct StopAtTick<'a>(&'a AtomicBool, Vec<Tick>);

impl Progress for StopAtTick<'_> {
    fn tick(&mut self, tick: &Tick) {
        self.1.push(*tick);
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_load_without_limit_runs_until_stopped_and_ticks() {
    let stop = AtomicBool::new(false);
    let mut progress = StopAtTick(&stop, Vec::new());
    let job = ClosedLoop { limit: Limit::default(), ..job(0, 50, false) };
    let report = closed_loop::run(&mut Toy::new(4, VOLUME), &job, &mut progress, &stop).unwrap();
    assert!(report.stopped && report.is_clean());
    let tick = progress.1[0];
    assert!(tick.ios > 0 && tick.iops > 0.0 && tick.mib_per_s > 0.0 && tick.p99_ns >= tick.p50_ns);
    assert_eq!((tick.phase, tick.total, tick.fraction, tick.eta), ("load", None, None, None));
}

#[test]
fn a_time_limit_ends_the_load() {
    let job = ClosedLoop { limit: Limit::duration(Duration::from_millis(50)), ..job(0, 50, false) };
    let report = load(&mut Toy::new(4, VOLUME), &job);
    assert!(report.ios > 0 && !report.stopped && report.seconds >= 0.05);
}

#[test]
fn nothing_runs_when_stopped_beforehand() {
    let mut toy = Toy::new(4, VOLUME);
    let report =
        closed_loop::run(&mut toy, &job(1000, 50, false), &mut Quiet, &AtomicBool::new(true))
            .unwrap();
    assert!(report.stopped);
    assert_eq!((report.submitted, toy.requests.len()), (0, 0));
}

#[test]
fn a_whole_volume_verifies_whatever_its_size() {
    // Multiples of the transfer, a short tail, less than one transfer, fewer transfers than slots.
    for (volume, block) in
        [(VOLUME, BLOCK), (VOLUME + 512, BLOCK), (1536, BLOCK), (3 * 8192 - 512, 8192)]
    {
        for slots in [1, 3, 8] {
            let mut toy = Toy::new(slots, volume);
            let report = pass(&mut toy, &whole(volume, block));
            assert!(report.is_clean() && !report.stopped, "{volume} {slots}: {report}");
            assert_eq!(report.bytes_written, volume as u64);
            let transfers = 2 * volume.div_ceil(block as usize);
            assert_eq!(toy.requests.len(), transfers, "{volume} {block} {slots}");
        }
    }
}

#[test]
fn a_whole_volume_pass_finds_what_is_wrong() {
    let transfers = (VOLUME / BLOCK as usize) as u64;
    let wrong = |fault| pass(&mut Toy::new(4, VOLUME).with(20, fault), &whole(VOLUME, BLOCK));
    // A write that goes to the next block, which is written later: only its own place is wrong.
    for (fault, miscompares) in [(Fault::Corrupt, 1), (Fault::Skip, 1), (Fault::Misdirect, 1)] {
        let report = wrong(fault);
        assert_eq!(report.miscompares, miscompares, "{fault:?}: {report}");
        assert_eq!(report.bytes_checked, VOLUME as u64);
        assert!(
            !report.is_clean() && report.first_miscompares[0].starts_with("slot 0: block 40: ")
        );
    }
    let report = wrong(Fault::Tear);
    assert_eq!((report.errors, report.miscompares), (1, 0), "{report}");
    assert_eq!(report.bytes_checked, VOLUME as u64 - u64::from(BLOCK));
    assert!(!report.is_clean());

    let report = wrong(Fault::Duplicate);
    assert_eq!((report.duplicate, report.miscompares), (1, 0), "{report}");

    let read =
        pass(&mut Toy::new(4, VOLUME).with(transfers + 20, Fault::Skip), &whole(VOLUME, BLOCK));
    assert_eq!(read.miscompares, 1);
    assert!(read.first_miscompares[0].ends_with("the buffer untouched"), "{read}");
}

#[test]
fn a_lost_slot_leaves_its_part_unverified_and_says_so() {
    let report = pass(&mut Toy::new(4, VOLUME).with(20, Fault::Lose), &whole(VOLUME, BLOCK));
    assert_eq!((report.lost, report.miscompares), (1, 0), "{report}");
    assert_eq!(report.bytes_checked, VOLUME as u64 * 3 / 4);
    assert!(report.to_string().starts_with("NOT VERIFIED: 768 KiB of 1 MiB"), "{report}");
}

#[test]
fn a_stopped_pass_is_not_clean() {
    let stop = AtomicBool::new(true);
    let report = verify::write_and_read_back(
        &mut Toy::new(2, VOLUME),
        &whole(VOLUME, BLOCK),
        &mut Quiet,
        &stop,
    )
    .unwrap();
    assert!(report.stopped && !report.is_clean());
    assert_eq!((report.bytes_checked, report.miscompares), (0, 0));
}

#[test]
fn an_old_pass_with_another_seed_is_told_from_this_one() {
    let mut toy = Toy::new(1, 8192);
    assert!(pass(&mut toy, &whole(8192, BLOCK)).is_clean());
    // Request 4 is the first of the second pass: its write is skipped.
    let mut toy = toy.with(4, Fault::Skip);
    let report = pass(&mut toy, &WholeVolume { seed: 78, ..whole(8192, BLOCK) });
    assert_eq!(report.miscompares, 1);
    assert!(
        report.first_miscompares[0].ends_with("block 0 version 1 of a run with seed 77"),
        "{report}"
    );
}

#[test]
fn impossible_sizes_are_refused() {
    let refuse = |slots, whole: &WholeVolume| match verify::write_and_read_back(
        &mut Toy::new(slots, 512),
        whole,
        &mut Quiet,
        &AtomicBool::new(false),
    ) {
        Err(LoadError::Workload(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refuse(1, &whole(1000, BLOCK)), WorkloadError::VolumeBytes(1000));
    assert_eq!(refuse(1, &whole(0, BLOCK)), WorkloadError::VolumeBytes(0));
    assert_eq!(refuse(1, &whole(512, 100)), WorkloadError::BlockBytes(100));
    assert_eq!(refuse(0, &whole(512, BLOCK)), WorkloadError::NoSlots);
}

#[test]
fn an_open_loop_makes_each_request_when_it_is_due_and_counts_from_then() {
    let mut toy = Toy::new(2, VOLUME);
    let load = job(50, 100, true);
    let job = OpenLoop { load, requests_per_second: 10_000.0 };
    let begin = Instant::now();
    let report = open_loop::run(&mut toy, &job, &mut Quiet, &AtomicBool::new(false)).unwrap();
    // The last of them is due after 49 intervals, and none is early.
    assert!(begin.elapsed() >= Duration::from_micros(4900));
    assert_eq!((report.ios, report.lost, report.errors), (50, 0, 0));
    assert!(report.is_clean());
}

#[test]
fn what_waits_for_a_slot_has_taken_all_that_time() {
    // One slot, and a request that is given up only after the stall limit: those behind it were due meanwhile.
    let mut toy = Toy::new(2, VOLUME).with(0, Fault::Lose);
    let job = OpenLoop { load: job(40, 100, false), requests_per_second: 1e6 };
    let report = open_loop::run(&mut toy, &job, &mut Quiet, &AtomicBool::new(false)).unwrap();
    assert_eq!((report.ios, report.lost), (39, 1));
    let mut alone = Toy::new(1, VOLUME).with(0, Fault::Lose);
    let report = open_loop::run(&mut alone, &job, &mut Quiet, &AtomicBool::new(false)).unwrap();
    assert_eq!((report.ios, report.lost), (0, 1), "its only slot is gone");
}

#[test]
fn what_begins_in_the_ramp_is_done_and_not_counted() {
    let mut toy = Toy::new(2, VOLUME);
    let ramp = Duration::from_millis(30);
    let limit = Limit { duration: Some(Duration::from_millis(10)), ios: None };
    let job = ClosedLoop { ramp, limit, ..job(0, 50, true) };
    let report = load(&mut toy, &job);
    assert!(report.warm_up > 0 && report.ios > 0, "{report:?}");
    assert!(report.is_clean());
    // Of a job that ends within its ramp nothing counts.
    let job = ClosedLoop { ramp: Duration::from_secs(3600), limit: Limit::ios(20), ..job };
    let report = load(&mut Toy::new(2, VOLUME), &job);
    assert_eq!((report.warm_up, report.ios, report.latency.len()), (20, 0, 0));
}

#[test]
fn rates_that_cannot_be_are_refused() {
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e10] {
        let job = OpenLoop { load: job(1, 100, false), requests_per_second: rate };
        let stop = AtomicBool::new(false);
        let error = open_loop::run(&mut Toy::new(1, VOLUME), &job, &mut Quiet, &stop);
        assert!(matches!(error, Err(LoadError::Rate { .. })), "{rate}");
    }
}
