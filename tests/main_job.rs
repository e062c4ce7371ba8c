//! The main job from the outside: what it reports, what it leaves alone, how it ends.
#![cfg(feature = "cli")]

pub mod command_line;
pub mod confinement;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use command_line::{Running, SMALL_JOB, SMALL_VOLUME, assert_nothing_wrong, number, run};
use serde_json::Value;
use vfio_ccw::{Driver, DriverChoice, Service, ServiceError};
use vfio_ccw_pinning::memlock::Memlock;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const STAGES: [&str; 7] = ["queue", "translate", "pin", "start", "device", "deliver", "total"];
/// Most shards of a job here.
const SHARDS: f64 = 2.0;
const QUANTILES: [&str; 5] = ["p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"];

/// Asserts that a report has every figure, and figures as a good run has them.
#[track_caller]
fn assert_clean(report: &Value) {
    assert_nothing_wrong(report);
    let number = |key: &str| number(report, key);
    assert!(number("pinned_peak_bytes") <= number("budget_bytes"), "{report:#}");
    assert!(number("pinned_peak_bytes") > 0.0, "{report:#}");
    assert!((0.0..=1.0).contains(&number("cache_hit_rate")), "{report:#}");
    for stage in STAGES {
        let row = &report["stages"][stage];
        // Where one in 16 is timed, or one in 24 at most, it counts for those since the one before, which may
        // have been of the job's verification.
        let astray = 23.0 * SHARDS;
        let missing = number("ios") - row["count"].as_f64().expect("a count");
        assert!(missing.abs() <= astray, "{stage}: {report:#}");
        let quantiles = QUANTILES.map(|name| row[name].as_u64().expect(name));
        assert!(quantiles.is_sorted(), "{stage}: {quantiles:?}");
        assert!(stage != "total" || quantiles[0] > 0, "{stage}: {quantiles:?}");
    }
}

/// Runs a small job with `--json -` and more arguments.
#[track_caller]
fn clean_report(more: &[&str]) -> Value {
    let json = ["--json", "-"];
    let arguments = SMALL_JOB.iter().chain(&SMALL_VOLUME).chain(&json).chain(more);
    let ended = run(arguments).with_code(0);
    let report = ended.report();
    assert_clean(&report);
    report
}

fn io_uring_works() -> bool {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let only = DriverChoice::Only(Driver::IoUring);
    match Service::builder().driver(only).build(std::sync::Arc::new(memory)) {
        Err(ServiceError::IoUring(error)) => {
            println!("SKIPPED: io_uring is refused here: {error}");
            false
        }
        _ => true,
    }
}

fn can_lock(bytes: u64) -> bool {
    let room = Memlock::of_this_process().unwrap().room();
    let enough = room.is_none_or(|room| room >= bytes);
    if !enough {
        println!("SKIPPED: RLIMIT_MEMLOCK leaves {room:?} bytes, {bytes} are needed");
    }
    enough
}

#[test]
fn every_mode_reports_itself() {
    for mode in ["cached", "on-demand", "pinned"] {
        if mode == "pinned" && !can_lock(4 << 20) {
            continue;
        }
        assert_eq!(clean_report(&["--mode", mode])["mode"], mode);
    }
}

#[test]
fn every_driver_reports_itself() {
    assert_eq!(clean_report(&["--driver", "epoll"])["driver"], "epoll");
    if io_uring_works() {
        assert_eq!(clean_report(&["--driver", "io_uring"])["driver"], "io_uring");
        assert_eq!(clean_report(&[])["driver"], "io_uring", "what auto chooses");
    }
}

#[test]
fn both_kinds_of_interrupts_work_on_both_drivers() {
    for interrupts in ["direct", "eventfd"] {
        for driver in ["auto", "epoll"] {
            clean_report(&["--interrupts", interrupts, "--driver", driver, "--shards", "2"]);
        }
    }
}

#[test]
fn a_tight_budget_is_kept_and_evicts() {
    let report = clean_report(&["--budget", "256KiB"]);
    assert_eq!(report["budget_bytes"], 256 << 10);
    assert!(report["cache_hit_rate"].as_f64() < Some(1.0), "{report:#}");
}

#[test]
fn a_report_file_is_written_beside_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    let file = ["--json", path.to_str().unwrap()];
    let ended = run(SMALL_JOB.iter().chain(&SMALL_VOLUME).chain(&file)).with_code(0);
    assert_clean(&serde_json::from_slice(&fs::read(&path).unwrap()).unwrap());
    for words in ["IOPS", "0 lost, 0 duplicate, 0 miscompares", "p99.9", "translate", "hit rate"] {
        assert!(ended.stdout.contains(words), "no '{words}' in {}", ended.stdout);
    }
}

#[test]
fn every_pinner_serves_every_mode() {
    for pinner in ["resident", "registered"] {
        if pinner == "registered" && !io_uring_works() {
            continue;
        }
        for mode in ["pinned", "on-demand", "cached"] {
            if mode == "pinned" && !can_lock(4 << 20) {
                continue;
            }
            let report = clean_report(&["--pinner", pinner, "--mode", mode]);
            assert_eq!((&report["pinner"], &report["mode"]), (&pinner.into(), &mode.into()));
            assert_eq!(report["unpinned_pages"], 0, "{report:#}");
        }
    }
}

#[test]
fn a_report_says_what_other_budgets_would_hit() {
    let report = clean_report(&["--budget", "256KiB"]);
    let rows = report["other_budgets"].as_array().unwrap();
    let budgets: Vec<u64> = rows.iter().filter_map(|row| row["budget_bytes"].as_u64()).collect();
    assert!(budgets.contains(&(256 << 10)) && budgets.is_sorted(), "{report:#}");
    let rates: Vec<f64> = rows.iter().filter_map(|row| row["hit_rate"].as_f64()).collect();
    assert!(rates.is_sorted() && rates.iter().all(|rate| (0.0..=1.0).contains(rate)), "{rates:?}");
}

/// A raw image with contents that no job would write.
fn image(folder: &Path) -> (String, Vec<u8>) {
    let path = folder.join("disk.img");
    let contents: Vec<u8> = (0..2u32 << 20).map(|index| ((index * 31) >> 7) as u8).collect();
    fs::write(&path, &contents).unwrap();
    (path.to_str().unwrap().to_owned(), contents)
}

#[test]
fn an_image_is_only_read_without_overwrite() {
    let folder = tempfile::tempdir().unwrap();
    let (path, contents) = image(folder.path());
    let arguments = ["--image", &path, "--json", "-"];
    let report = run(SMALL_JOB.iter().chain(&arguments)).with_code(0).report();
    assert_clean(&report);
    assert_eq!(report["bytes_written"], 0);
    assert!(fs::read(&path).unwrap() == contents, "the image was written to");
}

#[test]
fn an_image_is_written_and_verified_with_overwrite() {
    let folder = tempfile::tempdir().unwrap();
    let (path, contents) = image(folder.path());
    let arguments = ["--image", &path, "--overwrite", "--json", "-"];
    let ended = run(SMALL_JOB.iter().chain(&arguments)).with_code(0);
    let report = ended.report();
    assert_clean(&report);
    assert!(report["bytes_written"].as_u64() > Some(0));
    assert!(report["checked"].as_u64() > Some(0), "reads were compared: {report:#}");
    let now = fs::read(&path).unwrap();
    assert_eq!(now.len(), contents.len());
    let untouched = now.chunks(512).zip(contents.chunks(512)).filter(|(now, was)| now == was);
    assert_eq!(untouched.count(), 0, "blocks that the whole-volume pass did not write");
}

/// Arguments of a job that goes on until it is told to end.
fn endless(more: &[&str]) -> Vec<String> {
    let small = SMALL_JOB.iter().filter(|word| !["0.5", "--seconds", "--quiet"].contains(*word));
    let mut words: Vec<&str> = small.copied().collect();
    // What is not asked for here has its small default there.
    if more.contains(&"--metrics") {
        words.retain(|word| !["--metrics", "off"].contains(word));
    }
    let volume = SMALL_VOLUME.into_iter().filter(|_| !more.contains(&"--size"));
    let all = words.into_iter().chain(volume).chain(["--seconds", "600"]);
    all.chain(more.iter().copied()).map(str::to_owned).collect()
}

#[test]
fn a_signal_ends_the_job_with_its_report() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // Once in the pass over a volume that is too large for it to end, and once in the load.
        for more in [&["--size", "64GiB"][..], &["--size", "16MiB", "--skip-verify"][..]] {
            let more = [&["--json", "-"], more].concat();
            let mut job = Running::start(endless(&more));
            job.until_it_says("FBA disks on").expect("the job says what it runs on");
            std::thread::sleep(Duration::from_millis(200));
            confinement::send(job.id(), signal);
            let report = job.end().with_code(0).report();
            assert_eq!((&report["lost"], &report["miscompares"]), (&0.into(), &0.into()));
        }
    }
}

/// Starts an endless job that serves metrics on a port that was free a moment ago.
fn job_with_metrics() -> (Running, String) {
    for _ in 0..5 {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let address = free.to_string();
        let mut job = Running::start(endless(&["--metrics", &address, "--json", "-"]));
        if let Some(line) = job.until_it_says("metrics: http://") {
            assert!(line.contains(&format!("http://{address}/metrics")), "{line}");
            return (job, address);
        }
        let ended = job.end();
        assert!(ended.stderr.contains("in use"), "{ended:#?}");
    }
    panic!("every free port was taken before the job had it");
}

fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the endpoint listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("a page of text");
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    page
}

fn sample(page: &str, name: &str) -> f64 {
    let line = page
        .lines()
        .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    let line = line.unwrap_or_else(|| panic!("no {name} in {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn metrics_are_served_while_the_job_runs() {
    let (job, address) = job_with_metrics();
    let page = loop {
        let page = scrape(&address);
        if sample(&page, "vfio_ccw_pinned_peak_bytes") > 0.0 {
            break page;
        }
    };
    for stage in STAGES {
        let bucket = page.lines().any(|line| {
            line.contains("_bucket{")
                && line.contains(&format!("stage=\"{stage}\""))
                && line.contains("le=\"+Inf\"")
        });
        assert!(bucket, "no bucket of stage {stage} in {page}");
    }
    let (pinned, budget) =
        (sample(&page, "vfio_ccw_pinned_bytes"), sample(&page, "vfio_ccw_pin_budget_bytes"));
    assert!(pinned > 0.0 && pinned <= budget, "{pinned} of {budget}");
    confinement::send(job.id(), libc::SIGINT);
    job.end().with_code(0);
    assert!(TcpStream::connect(&address).is_err(), "nothing listens after the end");
}
