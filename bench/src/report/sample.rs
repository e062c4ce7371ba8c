//! Results as the commands write them, for tests.

use serde_json::{Value, json};

use crate::machine::Machine;
use crate::run::{CompareRow, CompareRun, JobRecord, LoadRun, Run, Verdict};
use vfio_ccw_load::StageRow;

/// A closed loop of one guest.
pub(super) fn job(name: &str) -> JobRecord {
    JobRecord {
        name: name.to_owned(),
        engine: "inprocess".to_owned(),
        program: "disk".to_owned(),
        mode: Some("cached".to_owned()),
        wait: Some("sleep".to_owned()),
        driver: Some("epoll".to_owned()),
        pinner: Some("resident".to_owned()),
        guests: 1,
        subchannels: 8,
        block_bytes: 4096,
        read_percent: 70,
        access: Some("random".to_owned()),
        rate_iops: None,
        seconds: 10.0,
        ios: 1_000_000,
        reads: 700_000,
        writes: 300_000,
        warm_up: 1000,
        iops: 100_000.0,
        slowest_iops: 100_000.0,
        mib_per_s: 390.6,
        errors: 0,
        lost: 0,
        duplicate: 0,
        checked: 700_000,
        miscompares: 0,
        behind_ns: 0,
        latency: stage("latency", 60_000),
        buckets: vec![(50_000, 400_000), (70_000, 550_000), (200_000, 49_000), (3_000_000, 1000)],
        stages: [("queue", 4_000), ("translate", 900), ("device", 40_000), ("total", 52_000)]
            .map(|(name, p50)| stage(name, p50))
            .to_vec(),
        guest_bytes: 1 << 30,
        pinned_peak_bytes: Some(64 << 20),
        budget_bytes: Some(64 << 20),
        hit_rate: Some(0.93),
        stopped: false,
    }
}

/// One by the clock.
pub(super) fn by_the_clock(name: &str, rate: f64) -> JobRecord {
    JobRecord { rate_iops: Some(rate), iops: rate, slowest_iops: rate, ..job(name) }
}

/// A baseline, which has neither stages nor pinned memory.
pub(super) fn baseline(name: &str) -> JobRecord {
    JobRecord {
        engine: "null".to_owned(),
        mode: None,
        wait: None,
        driver: None,
        pinner: None,
        stages: Vec::new(),
        pinned_peak_bytes: None,
        budget_bytes: None,
        hit_rate: None,
        ..job(name)
    }
}

pub(super) fn stage(name: &str, p50_ns: u64) -> StageRow {
    StageRow {
        name: name.to_owned(),
        count: 1_000_000,
        p50_ns,
        p90_ns: p50_ns * 2,
        p99_ns: p50_ns * 4,
        p999_ns: p50_ns * 20,
        max_ns: p50_ns * 90,
    }
}

pub(super) fn machine() -> Machine {
    Machine {
        model: "Model 7".to_owned(),
        processors: 4,
        governor: None,
        memory_bytes: 16 << 30,
        kernel: "6.12.0".to_owned(),
        architecture: "s390x".to_owned(),
        container: false,
    }
}

pub(super) fn load(jobs: Vec<JobRecord>) -> LoadRun {
    LoadRun {
        version: "0.1.0".to_owned(),
        date: "2026-01-31T23:59:59Z".to_owned(),
        machine: machine(),
        jobs,
    }
}

pub(super) fn compare() -> CompareRun {
    let row = |measure: &str, ratio: f64, verdict| CompareRow {
        base: "epoll".to_owned(),
        other: "uring".to_owned(),
        measure: measure.to_owned(),
        base_value: 50_000.0,
        other_value: 50_000.0 * ratio,
        ratio,
        low: ratio * 0.97,
        high: ratio * 1.02,
        verdict,
    };
    CompareRun {
        version: "0.1.0".to_owned(),
        date: "2026-01-31T23:59:59Z".to_owned(),
        machine: machine(),
        rounds: 15,
        confidence: 0.99,
        rows: vec![
            row("iops", 1.2, Verdict::Better),
            row("p50_ns", 1.3, Verdict::Worse),
            row("p99_ns", 1.0, Verdict::Same),
        ],
    }
}

pub(super) fn load_json(jobs: usize) -> String {
    let jobs = (0..jobs).map(|number| job(&format!("job{number}"))).collect();
    serde_json::to_string_pretty(&Run::Load(load(jobs))).unwrap()
}

pub(super) fn compare_json() -> String {
    serde_json::to_string(&Run::Compare(compare())).unwrap()
}

pub(super) fn ratios_json() -> String {
    let figure = |value: f64, target: &str, holds: bool| -> Value {
        json!({"value": value, "low": value * 0.97, "high": value * 1.03, "target": target, "holds": holds})
    };
    json!({
        "a_figure_of_another_version": figure(3.0, "== 0", false),
        "ring_mpsc_vs_arrayqueue": figure(1.08, "<= 1.0", false),
        "ring_spsc_vs_rtrb": figure(0.85, "<= 1.0", true),
    })
    .to_string()
}

pub(super) fn modes_json() -> String {
    let row = |mode: &str, pinned: u64, p99: u64| -> Value {
        json!({
            "mode": mode, "ios": 9, "iops": 1e5, "iops_low": 9e4, "iops_high": 1.1e5, "p50_ns": p99 / 3,
            "p99_ns": p99, "pinned_now_bytes": 0, "pinned_peak_bytes": pinned, "hit_rate": 0.5,
            "pin_calls_per_io": 0.5, "unpinned_per_io": 0.0
        })
    };
    let workload = |access: &str, p99: u64| -> Value {
        json!({"access": access, "modes": [
            row("pinned", 256 << 20, p99),
            row("on-demand", 512 << 10, p99 * 2),
            row("cached", 25 << 20, p99 * 5 / 4),
        ]})
    };
    json!({
        "guest_bytes": 256 << 20, "budget_bytes": 25 << 20, "working_set_bytes": 192 << 20,
        "volume_bytes": 64 << 20, "subchannels": 64, "seconds": 3.0, "rounds": 9, "seed": 1,
        "pinner": "resident", "driver": "epoll",
        "workloads": [workload("uniform", 900_000), workload("hot:90/10", 700_000)]
    })
    .to_string()
}
