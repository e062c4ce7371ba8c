//! Disks next to fio: the same reads of the same file, without a guest around them.
//!
//! fio is told what makes it fastest here: buffers and the file are registered with the ring, a batch of as
//! many requests as there are goes to the kernel in one system call, and no request is timed. Ours does what it
//! always does: each request is a channel program that is translated, its pages are taken and given back, and
//! it is timed.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use super::Lacking;
use crate::engines::scratch;
use crate::peer_process::LoadProcess;
use crate::processor;
use crate::ratio::{FieldError, Round, Sample};
use crate::service_load::{BLOCK, VOLUME};

/// Requests under way: subchannels of ours, depth of fio's.
const DEPTH: u16 = 32;

/// How long each side reads in a round.
const TIME: Duration = Duration::from_secs(1);

/// Reads a second of disks / of fio, each with all its threads on one processor.
pub fn randread_vs_fio(round: &Round) -> Result<Sample, FieldError> {
    let volume = scratch(VOLUME)?;
    // Nothing is left to be written while one of them reads.
    volume.as_file().sync_all()?;
    let processor = processor::last()?;
    round.compare(
        || {
            let mut load = LoadProcess::read(volume.path(), DEPTH, round.seed, processor)?;
            load.iops(TIME.as_millis() as u64)
        },
        || fio_iops(Command::new("fio"), volume.path(), round.seed, processor),
    )
}

/// The same with `fio`.
fn fio_iops(
    mut fio: Command,
    volume: &Path,
    seed: u64,
    processor: usize,
) -> Result<f64, FieldError> {
    let depth = DEPTH;
    fio.args(["--name=randread", "--rw=randread", "--ioengine=io_uring", "--readonly"]);
    fio.arg(format!("--filename={}", volume.display()));
    fio.args([format!("--size={VOLUME}"), format!("--bs={BLOCK}")]);
    // Of its type of number, which has a sign.
    fio.args([format!("--randseed={}", seed >> 1), "--norandommap".into()]);
    // From the page cache, as it is.
    fio.args(["--direct=0", "--invalidate=0"]);
    fio.args(["--fixedbufs=1", "--registerfiles=1", "--gtod_reduce=1"]);
    fio.arg(format!("--iodepth={depth}"));
    fio.args([
        format!("--iodepth_batch_submit={depth}"),
        format!("--iodepth_batch_complete_max={depth}"),
    ]);
    fio.args(["--time_based=1".to_owned(), format!("--runtime={}ms", TIME.as_millis())]);
    fio.arg(format!("--cpus_allowed={processor}"));
    fio.args(["--output-format=json", "--eta=never"]);
    let output = fio.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Lacking("fio is not there; install the package fio (3.33 is known to work)".to_owned())
                .into()
        }
        _ => FieldError::from(format!("fio cannot be run: {error}")),
    })?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // What it has to complain of comes on either.
        let said = said + String::from_utf8_lossy(&output.stderr);
        return Err(failure(&output.status.to_string(), &said));
    }
    iops_of(&said)
}

/// fio without io_uring, and kernels that refuse it, are the machine's own business; all else is a mistake here.
fn failure(status: &str, said: &str) -> FieldError {
    const NO_IO_URING: [&str; 3] =
        ["io_uring not loadable", "Operation not permitted", "Function not implemented"];
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("fio:")).collect();
    let reason = format!("fio fails ({status}): {}", lines.join("; "));
    if NO_IO_URING.iter().any(|words| reason.contains(words)) {
        let remedy = "fio must know io_uring ('fio --enghelp' lists it), and the kernel must allow it (sysctl kernel.io_uring_disabled, a container's seccomp profile)";
        return Lacking(format!("{reason}; {remedy}")).into();
    }
    reason.into()
}

/// What matters of fio's report.
#[derive(Deserialize)]
struct Report {
    jobs: Vec<JobReport>,
}

#[derive(Deserialize)]
struct JobReport {
    error: i32,
    read: ReadReport,
}

#[derive(Deserialize)]
struct ReadReport {
    iops: f64,
    total_ios: u64,
    io_bytes: u64,
}

fn iops_of(said: &str) -> Result<f64, FieldError> {
    // Notes come before it.
    let json = said.find('{').map_or("", |start| &said[start..]);
    let report: Report = serde_json::from_str(json)
        .map_err(|error| format!("fio's report cannot be read: {error}"))?;
    let [JobReport { error: 0, read }] = &report.jobs[..] else {
        let errors: Vec<i32> = report.jobs.iter().map(|job| job.error).collect();
        return Err(
            format!("fio was to run one job without error: its errors are {errors:?}").into()
        );
    };
    let expected = read.total_ios * u64::from(BLOCK);
    if read.io_bytes != expected {
        let (ios, bytes) = (read.total_ios, read.io_bytes);
        return Err(format!("fio has read {bytes} bytes in {ios} reads of {BLOCK}").into());
    }
    Ok(read.iops)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_fio_is_said() {
        let nowhere = Path::new("/nowhere");
        let error = fio_iops(Command::new("/nowhere/fio"), nowhere, 1, 0).unwrap_err();
        assert!(error.is::<Lacking>());
        assert!(error.to_string().contains("install the package fio"), "{error}");
    }

    #[test]
    fn only_a_missing_io_uring_is_a_lack() {
        let nowhere = Path::new("/nowhere");
        let error = fio_iops(Command::new("false"), nowhere, 1, 0).unwrap_err();
        assert!(!error.is::<Lacking>() && error.to_string().contains("exit status: 1"), "{error}");
        let refused = "fio: pid=7, err=1/file:engines/io_uring.c:998, func=io_queue_init, error=Operation not permitted";
        let error = failure("exit status: 1", refused);
        assert!(error.is::<Lacking>() && error.to_string().contains("io_uring_disabled"));
        assert!(failure("exit status: 1", "fio: engine io_uring not loadable").is::<Lacking>());
        let error = failure("exit status: 1", "{\nfio: failed parsing randseed=-\n}");
        assert!(!error.is::<Lacking>() && error.to_string().ends_with("randseed=-"), "{error}");
    }

    #[test]
    fn a_report_is_read_and_must_add_up() {
        let report = |error, bytes| {
            format!(
                r#"fio: a note
                {{ "fio version": "fio-3.33", "jobs": [{{ "jobname": "randread", "error": {error},
                "read": {{ "io_bytes": {bytes}, "total_ios": 3, "iops": 1234.5, "bw": 7 }} }}] }}"#
            )
        };
        assert_eq!(iops_of(&report(0, 3 * 4096)).unwrap(), 1234.5);
        assert!(iops_of(&report(5, 3 * 4096)).unwrap_err().to_string().contains("[5]"));
        assert!(iops_of(&report(0, 3 * 4095)).unwrap_err().to_string().contains("12285 bytes"));
        assert!(iops_of("fio: no").unwrap_err().to_string().contains("cannot be read"));
    }
}
