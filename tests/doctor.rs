//! What `vfio-ccw doctor` tells an operator of this machine, and of trees that look like another one.
#![cfg(feature = "cli")]

pub mod command_line;
pub mod confinement;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use command_line::{Ended, PROGRAM, call, end, run};
use serde_json::Value;
use tempfile::TempDir;

/// The check of this name.
#[track_caller]
fn check<'a>(report: &'a Value, part: &str, name: &str) -> &'a Value {
    let checks = report[part]["checks"].as_array().expect("a list of checks");
    let found = checks.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no check '{name}': {report:#}"))
}

/// The report of this machine, whose exit status says the same. Not every machine is well.
#[track_caller]
fn of_this_machine() -> Value {
    let ended = run(["doctor", "--json"]);
    let report = ended.report();
    let is_well = report["software"]["usable"] == true
        && report["kernel"]["ready"] == report["kernel"]["set_up"];
    ended.with_code(if is_well { 0 } else { 1 });
    report
}

#[test]
fn this_machine_runs_software_devices() {
    let report = of_this_machine();
    assert_eq!(report["software"]["usable"], true, "{report:#}");
    assert_eq!(check(&report, "software", "a program")["verdict"], "ok");
    for part in ["software", "kernel"] {
        for check in report[part]["checks"].as_array().unwrap() {
            let verdict = check["verdict"].as_str().unwrap();
            assert!(["ok", "note", "warning", "missing"].contains(&verdict), "{check:#}");
            assert!(check["found"].as_str().is_some_and(|found| !found.is_empty()), "{check:#}");
            assert!(check["remedy"].is_array(), "{check:#}");
        }
    }
}

#[test]
fn text_says_what_json_says() {
    let report = of_this_machine();
    let Ended { stdout, .. } = run(["doctor"]);
    for (part, title) in [("software", "software devices"), ("kernel", "the kernel's vfio-ccw")] {
        let line = format!("{title}: {}", report[part]["summary"].as_str().unwrap());
        assert!(stdout.lines().rev().take(2).any(|last| last == line), "no '{line}': {stdout}");
        for check in report[part]["checks"].as_array().unwrap() {
            let found = check["found"].as_str().unwrap();
            assert!(stdout.contains(found), "no '{found}': {stdout}");
        }
    }
}

#[test]
fn help_has_examples_and_the_schema() {
    let Ended { stdout, .. } = run(["doctor", "--help"]).with_code(0);
    for words in ["Examples:", "vfio-ccw doctor --json | jq", "Exit status: 0", "remedy"] {
        assert!(stdout.contains(words), "no '{words}': {stdout}");
    }
}

#[test]
fn what_cannot_be_done_as_asked() {
    assert!(run(["doctor", "--jsno"]).with_code(2).stderr.contains("--jsno"));
    assert!(run(["doctor", "0.0.0010"]).with_code(2).stderr.contains("0.0.0010"));
    let error = run(["doctor", "--root", "/nowhere"]).error();
    assert!(error.contains("/nowhere") && error.contains("No such file"), "{error}");
}

/// A place that everybody can read, with a copy of the command and a machine's files: one device that
/// vfio_ccw has, with a group and no character device.
struct Elsewhere {
    folder: TempDir,
    program: PathBuf,
}

const UUID: &str = "e78f619d-4ec1-4b7f-b627-751cfc8452c9";

impl Elsewhere {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let program = folder.path().join("vfio-ccw");
        fs::copy(PROGRAM, &program).unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join("root").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/sys/kernel/arch", "s390x\n");
        write("proc/sys/kernel/osrelease", "6.12.100\n");
        write("sys/bus/mdev/x", "");
        write("sys/bus/css/drivers/vfio_ccw/x", "");
        write("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n");
        write("sys/bus/css/devices/0.0.0002/type", "0\n");
        write("sys/bus/css/devices/0.0.0002/dev_busid", "0.0.0010\n");
        write(&format!("sys/bus/css/devices/0.0.0002/{UUID}/uevent"), "");
        write("dev/vfio/vfio", "");
        write("dev/vfio/3", "");
        let elsewhere = Elsewhere { folder, program };
        let bus = elsewhere.at("sys/bus/css/devices/0.0.0002");
        symlink("../../drivers/vfio_ccw", bus.join("driver")).unwrap();
        let group = bus.join(UUID).join("iommu_group");
        symlink("../../../../../kernel/iommu_groups/3", group).unwrap();
        elsewhere.permit("dev/vfio/vfio", 0o666);
        elsewhere
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join("root").join(path)
    }

    fn permit(&self, path: &str, mode: u32) {
        fs::set_permissions(self.at(path), Permissions::from_mode(mode)).unwrap();
    }

    /// A look at it by somebody who is not root.
    fn doctor(&self) -> Command {
        let root: &Path = &self.folder.path().join("root");
        let mut command = call(
            &self.program,
            ["doctor".as_ref(), "--json".as_ref(), "--root".as_ref(), root.as_os_str()],
        );
        command.current_dir(self.folder.path());
        confinement::become_nobody(&mut command);
        command
    }
}

#[test]
fn a_device_that_this_user_may_not_open() {
    let elsewhere = Elsewhere::new();
    elsewhere.permit("dev/vfio/3", 0o000);
    let refused = end(&mut elsewhere.doctor()).with_code(1).report();
    assert_eq!((&refused["kernel"]["set_up"], &refused["kernel"]["ready"]), (&1.into(), &0.into()));
    let device = check(&refused, "kernel", "0.0.0002");
    assert_eq!(device["verdict"], "missing");
    assert!(
        device["found"].as_str().unwrap().contains("/dev/vfio/3: Permission denied"),
        "{device:#}"
    );
    assert!(device["remedy"][0].as_str().unwrap().starts_with("chown "), "{device:#}");

    elsewhere.permit("dev/vfio/3", 0o666);
    let allowed = end(&mut elsewhere.doctor()).with_code(0).report();
    assert_eq!((&allowed["kernel"]["set_up"], &allowed["kernel"]["ready"]), (&1.into(), &1.into()));
    assert_eq!(allowed["kernel"]["subchannels"][0]["mdevs"][0]["uuid"], UUID);
}

#[test]
fn files_that_this_user_may_not_read() {
    let elsewhere = Elsewhere::new();
    elsewhere.permit("dev/vfio/3", 0o666);
    let files = [
        "sys/bus/css/devices/0.0.0002/dev_busid",
        "sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
    ];
    files.iter().for_each(|path| elsewhere.permit(path, 0o000));
    let report = end(&mut elsewhere.doctor()).with_code(0).report();
    assert_eq!(report["kernel"]["subchannels"][0]["device"], Value::Null);
    assert_eq!(check(&report, "kernel", "windows")["verdict"], "note");
}

#[test]
fn a_kernel_with_a_known_flaw() {
    let elsewhere = Elsewhere::new();
    elsewhere.permit("dev/vfio/3", 0o666);
    let report = end(&mut elsewhere.doctor()).with_code(0).report();
    let flaw = check(&report, "kernel", "CVE-2026-80553");
    assert_eq!(flaw["verdict"], "warning");
    assert!(flaw["found"].as_str().unwrap().contains("6.12.105"), "{flaw:#}");
}

#[test]
fn a_small_memlock_limit_is_a_warning_with_its_remedy() {
    let elsewhere = Elsewhere::new();
    elsewhere.permit("dev/vfio/3", 0o666);
    let mut command = elsewhere.doctor();
    confinement::limit_locked_memory(&mut command, 1 << 20);
    let ended = end(&mut command).with_code(0);
    let report = ended.report();
    let limit = check(&report, "software", "locked memory");
    assert_eq!(limit["verdict"], "warning");
    assert!(limit["found"].as_str().unwrap().contains("786432 instead of 67108864"), "{limit:#}");
    assert!(limit["remedy"][0].as_str().unwrap().contains("--memlock=67108864"), "{limit:#}");
    // It is told once, in its place.
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_refused_io_uring_is_a_warning_and_programs_run() {
    let mut command = command_line::vfio_ccw(["doctor", "--json"]);
    confinement::refuse_io_uring(&mut command, libc::EPERM);
    let report = end(&mut command).report();
    assert_eq!(report["software"]["usable"], true, "{report:#}");
    let ring = check(&report, "software", "io_uring");
    assert_eq!(ring["verdict"], "warning");
    assert!(ring["found"].as_str().unwrap().contains("Operation not permitted"), "{ring:#}");
    let program = check(&report, "software", "a program")["found"].as_str().unwrap();
    assert!(program.contains("driver epoll"), "{program}");
}
