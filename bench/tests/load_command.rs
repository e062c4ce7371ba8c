//! `load` and `compare` as a user meets them: mistakes, results, a clean end.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use vfio_ccw_bench::run::{CompareRun, LoadRun, Run, Verdict};

fn bench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vfio-ccw-bench"))
}

fn load(arguments: &[&str]) -> Output {
    bench().arg("load").args(arguments).output().expect("it starts")
}

/// With `text` on standard input.
fn told(arguments: &[&str], text: &str) -> Output {
    let mut child = bench()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // Whoever refuses the command line does not read.
    let _ = child.stdin.take().expect("a pipe").write_all(text.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn loaded(output: &Output) -> LoadRun {
    match serde_json::from_slice(&output.stdout).expect("JSON") {
        Run::Load(run) => run,
        Run::Compare(run) => panic!("{run:?}"),
    }
}

fn compared(output: &Output) -> CompareRun {
    match serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", errors(output))) {
        Run::Compare(run) => run,
        Run::Load(run) => panic!("{run:?}"),
    }
}

#[test]
fn mistakes_are_told_with_line_limit_and_remedy_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("small.img");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let small = format!("[a]\nruntime=1\nfilename={}\nsize=2M\n", image.display());
    for (text, says) in [
        (
            "[a]\nruntime=1\niodpeth=4\n",
            "line 3: there is no option 'iodpeth'; is 'iodepth' meant?",
        ),
        ("[a]\nruntime=1\nlatency_target=4\n", "line 3: there is no option 'latency_target'"),
        ("[a]\nrw=randread\n", "line 1: job 'a' has no end: give runtime or number_ios"),
        (
            "[a]\nruntime=1\nrate_iops=2e9\n",
            "line 3: rate_iops=2e9: rate_iops is requests a second",
        ),
        ("[a]\nruntime=1\nrate_iops=0.5\n", "line 3: rate_iops=0.5: not one request is due"),
        ("[a]\nruntime=1\n[b]\nruntime=1\nioengine=nul\n", "job 'b': line 5: ioengine=nul"),
        ("[a]\nruntime=1\nbs=4000\n", "line 3: bs=4000: bs is a multiple of 512 bytes"),
        (&small, "line 4: size=2097152"),
    ] {
        let output = told(&["load", "-"], text);
        assert_eq!(output.status.code(), Some(2), "{text:?}");
        assert!(errors(&output).contains(says), "{text:?}: {}", errors(&output));
        assert!(output.stdout.is_empty(), "{text:?}: nothing has run");
    }
    for (arguments, says) in [
        (&["--runtime", "1", "--iodpeth", "4"][..], "'--iodepth'"),
        (&["--rw", "randread"], "--runtime or --number_ios"),
        (&["/nowhere.fio"], "/nowhere.fio"),
        (&["--runtime", "1", "--ioengine", "remote", "--filename", "/nowhere"], "vfio-ccw serve"),
        (
            &["--runtime", "1", "--ioengine", "kernel", "--filename", "0.0.ffff"],
            "filename=0.0.ffff",
        ),
    ] {
        let output = load(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", errors(&output));
        assert!(errors(&output).contains(says), "{arguments:?}: {}", errors(&output));
    }
}

#[test]
fn jobs_of_a_file_leave_records_and_logs() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("latencies.hlog");
    let text = "[global]\nnumber_ios=500\niodepth=3\n[disk]\nrw=randrw\nverify\nsize=1M\n\
                [programs]\nioengine=null\nprogram=chain\n[least]\nioengine=sync-epoll\n";
    let log_path = log.to_str().unwrap();
    let output = told(&["load", "-", "--json", "-", "--quiet", "--hdr", log_path], text);
    assert!(output.status.success(), "{}", errors(&output));
    let run = loaded(&output);
    let names: Vec<_> = run.jobs.iter().map(|job| (job.name.as_str(), job.ios)).collect();
    assert_eq!(names, [("disk", 500), ("programs", 500), ("least", 500)]);
    assert!(run.jobs[0].checked > 0 && run.jobs[0].mib_per_s > 0.0, "{:?}", run.jobs[0]);
    assert!(run.machine.processors > 0 && run.date.ends_with('Z'), "{run:?}");
    let log = fs::read_to_string(log).unwrap();
    assert!(["Tag=disk,", "Tag=programs,", "Tag=least,"].iter().all(|tag| log.contains(tag)));

    let output = told(&["load", "-", "--section", "least", "--json", "-"], text);
    assert_eq!(loaded(&output).jobs.len(), 1);
    let output = told(&["load", "-", "--section", "most"], text);
    assert!(errors(&output).contains("disk, programs, least"), "{}", errors(&output));
    let output = told(&["load", "-", "--check"], text);
    assert!(String::from_utf8_lossy(&output.stdout).contains("3 jobs, nothing wrong"));
}

/// A request each nanosecond: nobody carries that.
#[test]
fn a_rate_that_is_not_kept_is_told() {
    let output = load(&["--ioengine", "null", "--number_ios", "20000", "--rate_iops", "1e9"]);
    assert!(output.status.success(), "{}", errors(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("THE RATE WAS NOT KEPT"), "{said}");
}

/// Somebody writes to the image behind the disks' back.
#[test]
fn wrong_data_makes_it_fail() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    let file = File::create(&image).unwrap();
    file.set_len(1 << 20).unwrap();
    let mut child = bench()
        .args(["load", "--rw", "randrw", "--verify", "pattern", "--iodepth", "4", "--runtime", "2"])
        .arg("--filename")
        .arg(&image)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let junk = vec![0x5a; 1 << 20];
    while child.try_wait().unwrap().is_none() {
        file.write_all_at(&junk, 0).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(" wrong; 0 failed"), "{said}");
    assert!(!said.contains(" 0 wrong"), "{said}");
}

#[test]
fn an_interrupt_ends_it_with_what_was_done() {
    let child = bench()
        .args(["load", "--ioengine", "null", "--runtime", "1h", "--json", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    // A signal that comes before it listens would end it as any program.
    while !listens(child.id()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    let run = loaded(&output);
    assert!(run.jobs.iter().all(|job| job.stopped && job.lost == 0), "{run:?}");
}

/// Whether the process `pid` catches SIGINT.
fn listens(pid: u32) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let status = status.expect("it is there until somebody waits for it");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
    u64::from_str_radix(caught.trim(), 16).expect("a mask") & 1 << (2 - 1) != 0
}

#[test]
fn a_comparison_has_an_interval_for_each_ratio() {
    let text = "[global]\niodepth=2\n[base]\nioengine=null\nnumber_ios=300\n\
                [slow]\nnumber_ios=300\nioengine=null\nprogram=chain\n";
    let output = told(&["compare", "-", "--rounds", "9", "--json", "-"], text);
    let run = compared(&output);
    let measures: Vec<_> = run.rows.iter().map(|row| row.measure.as_str()).collect();
    assert_eq!((measures, run.rounds), (vec!["iops", "p50_ns", "p99_ns"], 9));
    for row in &run.rows {
        assert_eq!((row.base.as_str(), row.other.as_str()), ("base", "slow"));
        assert!(row.low <= row.ratio && row.ratio <= row.high && row.low > 0.0, "{row:?}");
        let is_same = row.low <= 1.0 && row.high >= 1.0;
        assert_eq!(row.verdict == Verdict::Same, is_same, "{row:?}");
    }
    // Which of the two is faster is the machine's business; what the status says of it is not.
    let gated = told(&["compare", "-", "--rounds", "9", "--gate"], text);
    let table = String::from_utf8_lossy(&gated.stdout).into_owned();
    assert!(table.contains("99 % interval") && table.contains("9 rounds"), "{table}");
    let iops = table.lines().find(|line| line.contains(" iops ")).expect(&table);
    let code = i32::from(iops.ends_with("WORSE"));
    assert_eq!(gated.status.code(), Some(code), "{table}");
}

#[test]
fn a_comparison_says_what_it_lacks() {
    for (arguments, text, says) in [
        (&["compare", "-"][..], "[a]\nruntime=1\n", "nothing to compare it with"),
        (&["compare", "-", "--rounds", "3"], "[a]\nruntime=1\n", "9..=10000"),
        (
            &["compare", "-", "--base", "/bin/true"],
            "[a]\nruntime=1\n",
            "is it a build of this program?",
        ),
        (&["compare", "-", "--base", "/bin/false"], "[a]\nruntime=1\n", "exit status: 1"),
        (&["compare", "-", "--base", "/nowhere"], "[a]\nruntime=1\n", "'a' by /nowhere"),
    ] {
        let output = told(arguments, text);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(errors(&output).contains(says), "{arguments:?}: {}", errors(&output));
    }
}
