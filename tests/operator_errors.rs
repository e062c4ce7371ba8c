//! What an operator gets wrong, and what the machine does not give: one line that names the value,
//! the limit and the remedy, exit status 2, and never a panic.
#![cfg(feature = "cli")]

pub mod command_line;
pub mod confinement;

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use command_line::{Ended, PROGRAM, SMALL_JOB, SMALL_VOLUME, call, end, run, vfio_ccw, wait};
use tempfile::TempDir;

/// Asserts that a message has all of `words`.
#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no '{word}' in: {message}");
    }
}

/// The small job without some of its arguments: an option and its value each.
fn small_job_without(options: &[&str]) -> Vec<&'static str> {
    let (pairs, quiet) = SMALL_JOB.as_chunks::<2>();
    let kept = pairs.iter().filter(|[option, _]| !options.contains(option));
    kept.flatten().chain(quiet).copied().collect()
}

/// The error of a small job with more arguments, which replace those of the same name.
#[track_caller]
fn job_error(more: &[&str]) -> String {
    run(small_job_without(more).iter().chain(more)).error()
}

#[test]
fn images_that_cannot_be_volumes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let name = path.to_str().unwrap();
    let error = || job_error(&["--image", name]);

    assert_says(&error(), &[name, "No such file", "truncate -s 64M"]);
    fs::write(&path, [0; 1000]).unwrap();
    assert_says(&error(), &[name, "1000 bytes", "block size 512", "truncate -s 1024"]);
    fs::write(&path, []).unwrap();
    assert_says(&error(), &[name, "empty", "truncate -s 64M"]);
}

#[test]
fn a_directory_is_no_image() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().to_str().unwrap();
    let words = [name, "not a regular file or block device"];
    assert_says(&job_error(&["--image", name]), &words);
    // Opened for writing the system refuses it first.
    assert_says(&job_error(&["--image", name, "--overwrite"]), &[name, "directory"]);
}

/// A place where nobody can reach the command and write: programs that are not root see neither the
/// build's folders nor, perhaps, each other's temporary ones.
struct Open {
    folder: TempDir,
    program: PathBuf,
}

impl Open {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let program = folder.path().join("vfio-ccw");
        fs::copy(PROGRAM, &program).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        Open { folder, program }
    }

    fn call(&self, arguments: &[&str]) -> Command {
        let mut command = call(&self.program, arguments);
        command.env("TMPDIR", self.folder.path()).current_dir(self.folder.path());
        command
    }
}

#[test]
fn an_image_that_may_not_be_read() {
    let open = Open::new();
    let path = open.folder.path().join("secret.img");
    fs::write(&path, [0; 4096]).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    let name = path.to_str().unwrap();
    let arguments = [&SMALL_JOB[..], &["--image", name]].concat();
    let mut command = open.call(&arguments);
    confinement::become_nobody(&mut command);
    assert_says(&end(&mut command).error(), &[name, "Permission denied", "check its permissions"]);
}

#[test]
fn an_image_that_may_not_be_written() {
    let open = Open::new();
    let path = open.folder.path().join("read-only.img");
    fs::write(&path, vec![3; 1 << 20]).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    let arguments = [&SMALL_JOB[..], &["--image", path.to_str().unwrap()]].concat();
    let mut reads = open.call(&arguments);
    confinement::become_nobody(&mut reads);
    end(&mut reads).with_code(0);
    let mut writes = open.call(&[&arguments[..], &["--overwrite"]].concat());
    confinement::become_nobody(&mut writes);
    assert_says(&end(&mut writes).error(), &["Permission denied", "check its permissions"]);
}

#[test]
fn numbers_out_of_range() {
    let rows: [(&[&str], &[&str]); 13] = [
        (&["--block", "1000"], &["--block is 1000", "multiple of 512", "1048576"]),
        (&["--block", "2MiB"], &["--block is 2097152", "1048576"]),
        (&["--subchannels", "0"], &["--subchannels is 0", "between 1 and 65536"]),
        (&["--subchannels", "65537"], &["--subchannels is 65537", "65536"]),
        (&["--seconds", "0"], &["--seconds is 0", "above 0"]),
        (&["--seconds", "nan"], &["--seconds is NaN", "above 0"]),
        (&["--budget", "100"], &["100 bytes", "at least 4096"]),
        (&["--granule", "5000"], &["5000 bytes", "power of two", "4096"]),
        (&["--granule", "4MiB", "--budget", "1MiB"], &["1048576 bytes", "at least 4194304"]),
        (&["--shards", "0"], &["shards is 0", "between 1 and 64"]),
        (&["--memory", "4097"], &["--memory is 4097", "multiple of 4096"]),
        (&["--size", "1000"], &["--size is 1000", "multiple of 512"]),
        (&["--memory", "64KiB"], &["--memory is 65536", "16 subchannels", "--buffers"]),
    ];
    for (arguments, words) in rows {
        assert_says(&job_error(arguments), words);
    }
}

#[test]
fn a_guest_that_exceeds_its_budget() {
    let message = job_error(&["--mode", "pinned", "--budget", "1MiB"]);
    assert_says(&message, &["4194304", "1048576", "raise the budget", "mode cached"]);
}

#[test]
fn a_pinner_that_lacks_its_driver() {
    let message = job_error(&["--pinner", "registered", "--driver", "epoll"]);
    assert_says(&message, &["pinner registered", "io_uring", "pinner resident"]);
}

#[test]
fn a_volume_too_small_for_its_subchannels() {
    let message = job_error(&["--size", "4KiB"]);
    assert_says(&message, &["4 KiB", "16", "--subchannels", "larger volume"]);
}

#[test]
fn a_report_that_cannot_be_written() {
    let ended = run(SMALL_JOB.iter().chain(&SMALL_VOLUME).chain(&["--json", "/nowhere/run.json"]));
    assert_says(&ended.error(), &["/nowhere/run.json", "No such file"]);
}

#[test]
fn unknown_words() {
    let rows = [
        ("--mode", "pin", "pinned, on-demand or cached"),
        ("--driver", "aio", "auto, io_uring or epoll"),
        ("--pinner", "mlock", "resident or registered"),
        ("--access", "zip", "uniform, sequential, zipf:THETA"),
        ("--interrupts", "irq", "direct or eventfd"),
        ("--metrics", "9464", "IP:PORT"),
        ("--budget", "12parsecs", "12parsecs"),
    ];
    for (option, word, choices) in rows {
        let Ended { stderr, .. } = run([option, word]).with_code(2);
        assert_says(&stderr, &[option, word, choices]);
    }
    let Ended { stderr, .. } = run(["--overwrite"]).with_code(2);
    assert_says(&stderr, &["--image"]);
}

#[test]
fn a_port_that_was_asked_for_and_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let message = job_error(&["--metrics", &address]);
    assert_says(&message, &[&address, "in use", "--metrics ADDR", "--metrics off"]);
}

#[test]
fn a_device_of_the_kernels_that_is_not_there() {
    let rows = [
        ("0313", "use a subchannel (0.0.0313)"),
        ("../../etc/passwd", "use a subchannel (0.0.0313)"),
        ("f.3.fffe", "there is no subchannel f.3.fffe"),
        ("/dev/vfio/devices/vfio4711", "/sys/class/vfio-dev"),
        ("5e5bbff1-3c2e-4b9c-8f5e-0a1b2c3d4e5f", "see /sys/bus/mdev/devices"),
    ];
    for (device, remedy) in rows {
        let Ended { stderr, .. } = run(["sense-id", device]).with_code(2);
        assert_says(&stderr, &[device, remedy]);
        let Ended { stderr, .. } = run(["--kernel", device, "--seconds", "1", "-q"]).with_code(2);
        assert_says(&stderr, &[device, remedy]);
    }
    let Ended { stderr, .. } = run(["sense-id", "0.0.0313", "--interface", "vfio"]).with_code(2);
    assert_says(&stderr, &["'vfio'", "type1, iommufd or auto"]);
}

/// The default port is taken from here on, for all tests: by this process or by somebody else, both will do.
fn take_default_port() {
    static TAKEN: OnceLock<Option<TcpListener>> = OnceLock::new();
    TAKEN.get_or_init(|| TcpListener::bind("127.0.0.1:9464").ok());
}

#[test]
fn a_default_port_that_is_taken_gives_way() {
    take_default_port();
    let job = small_job_without(&["--metrics"]);
    let arguments = job.iter().filter(|word| **word != "--quiet").chain(&SMALL_VOLUME);
    let Ended { stderr, .. } = run(arguments.chain(&["--json", "-"])).with_code(0);
    assert_says(&stderr, &["127.0.0.1:9464 is taken", "--metrics", "metrics: http://127.0.0.1:"]);
    assert!(!stderr.contains("http://127.0.0.1:9464/"), "{stderr}");
}

/// A small job with `more` arguments that may lock 1 MiB, a quarter of its guest.
fn with_small_memlock(more: &[&str]) -> Ended {
    let open = Open::new();
    let mut command = open.call(&[&SMALL_JOB[..], &SMALL_VOLUME, &["--json", "-"], more].concat());
    confinement::limit_locked_memory(&mut command, 1 << 20);
    end(&mut command)
}

#[test]
fn a_small_memlock_limit_is_lived_with() {
    let ended = with_small_memlock(&[]).with_code(0);
    let report = ended.report();
    assert_eq!(report["budget_bytes"], 768 << 10);
    assert!(report["pinned_peak_bytes"].as_u64() <= Some(768 << 10), "{report:#}");
    assert_eq!((&report["lost"], &report["errors"]), (&0.into(), &0.into()));
    let words = ["RLIMIT_MEMLOCK is 1048576", "786432 instead of 4194304", "ulimit -l"];
    assert_says(&ended.stderr, &words);
}

#[test]
fn a_small_memlock_limit_against_a_demand_is_an_error() {
    let budget = with_small_memlock(&["--budget", "64MiB"]).error();
    assert_says(&budget, &["67108864", "limit 1048576", "ulimit -l 65536", "lower the budget"]);
    let pinned = with_small_memlock(&["--mode", "pinned"]).error();
    assert_says(&pinned, &["4194304", "limit 1048576", "ulimit -l 4096"]);
}

/// Runs the command with one of its outputs closed at the other end.
#[track_caller]
fn with_nobody_listening(mut command: Command, close: impl FnOnce(&mut std::process::Child)) {
    let mut child = command.spawn().unwrap();
    close(&mut child);
    let status = wait(&mut child);
    let mut stderr = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        std::io::Read::read_to_string(&mut pipe, &mut stderr).unwrap();
    }
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let jobs: [&[&str]; 2] = [&[], &["--json", "-"]];
    for more in jobs {
        let arguments = SMALL_JOB.iter().chain(&SMALL_VOLUME).chain(more);
        with_nobody_listening(vfio_ccw(arguments), |child| drop(child.stdout.take()));
    }
}

#[test]
fn a_closed_standard_error_is_no_error() {
    // The job has something to say there, and a warning to log.
    take_default_port();
    let job = small_job_without(&["--metrics"]);
    let arguments: Vec<_> =
        job.into_iter().filter(|word| *word != "--quiet").chain(SMALL_VOLUME).collect();
    let mut command = vfio_ccw(&arguments);
    command.stdout(std::process::Stdio::null());
    with_nobody_listening(command, |child| drop(child.stderr.take()));
}
