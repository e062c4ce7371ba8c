//! A look at the machine: can it run software devices, and the kernel's vfio-ccw; what is missing for
//! either, and what to type.
//!
//! | file | what it looks at |
//! |---|---|
//! | `software.rs`, `limits.rs` | this process: a service and a program, io_uring, what it may lock and open |
//! | `kernel.rs`, `parts.rs`, `subchannels.rs` | the kernel's vfio-ccw: version, drivers and modules, devices |
//! | `check.rs`, `tree.rs` | one thing that was looked at; reading files that may be strange |
//!
//! Nothing is changed, and no device is opened: an open takes a group, and one that is in use would look
//! broken.
//!
//! With `--json` one object is printed:
//!
//! ```text
//! software     what software devices need
//!   usable     whether they can run
//!   summary    the same as a sentence
//!   checks     each with name, verdict (ok, note, warning or missing), found, remedy (lines to type)
//! kernel       what the kernel's vfio-ccw needs
//!   usable     whether a device of it that has all it needs could be driven by this user
//!   summary, checks
//!   set_up     how many subchannels vfio_ccw has, or is meant to have
//!   ready      how many of these this user can use
//!   subchannels  every one for I/O: subchannel, device, driver, device_driver, online, usable, and
//!              mdevs, each with uuid, group and cdev, each of these null or path, usable, error
//! ```

mod check;
mod kernel;
mod limits;
#[cfg(test)]
mod machine;
mod parts;
mod software;
mod subchannels;
mod tree;

use std::fmt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Failure, say};
use check::{Check, Lines};
use kernel::Kernel;
use parts::Parts;
use subchannels::Subchannels;
use tree::Tree;

/// Look at this machine: what can run here, what is missing, and what to type.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        vfio-ccw doctor                          a list, and a line for each kind of device\n  \
        sudo -u qemu vfio-ccw doctor             what another user may use\n  \
        vfio-ccw doctor --json | jq -r '.kernel.checks[].remedy[]'\n\n\
        It changes nothing and opens no device: whether somebody else has one open, or a control\n\
        group forbids it, is not known before it is opened.\n\n\
        Verdicts: ok; note: worth knowing; warning: works, not as well as it could; missing:\n\
        something does not work without it. What is to be typed needs root, but for ulimit, sudo\n\
        and docker.\n\n\
        --json prints {software: {usable, summary, checks},\n               \
        kernel: {usable, summary, checks, set_up, ready, subchannels}}\n\
        A check has name, verdict, found, and remedy, a list of lines to type. A subchannel has\n\
        subchannel, device, driver, device_driver, online, usable, mdevs; an mdev has uuid, group\n\
        and cdev, each of these null or {path, usable, error}.\n\n\
        Exit status: 0 software devices can run, and so can all devices that are set up for\n\
        vfio_ccw; 1 one of them cannot; 2 could not be done as asked.")]
pub(super) struct Doctor {
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Where the files lie that describe the machine, for tests; limits are those of this process.
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    root: PathBuf,
}

impl Doctor {
    /// Runs it. `false`: something that should run does not.
    pub(super) fn run(&self) -> Result<bool, Failure> {
        let tree = self.root.read_dir().map(|_| Tree::new(&self.root));
        let tree = tree.map_err(|error| format!("{}: {error}", self.root.display()))?;
        let report = Report::of(&tree);
        match self.json {
            true => say(serde_json::to_string_pretty(&report.json())?)?,
            false => say(&report)?,
        }
        Ok(report.is_well())
    }
}

/// What was found.
#[derive(Debug)]
struct Report {
    software: Vec<Check>,
    kernel: Vec<Check>,
    architecture: String,
    /// Driver and one way to memory.
    kernel_usable: bool,
    set_up: usize,
    ready: usize,
    subchannels: Vec<Value>,
}

impl Report {
    fn of(tree: &Tree) -> Self {
        let kernel = Kernel::of(tree);
        let mut report = Report {
            software: Vec::new(),
            kernel: kernel.checks(tree),
            architecture: kernel.architecture.clone(),
            kernel_usable: false,
            set_up: 0,
            ready: 0,
            subchannels: Vec::new(),
        };
        // Elsewhere there is nothing to be missed.
        if kernel.is_s390x() {
            let parts = Parts::of(tree);
            let subchannels = Subchannels::of(tree, &parts);
            report.kernel_usable = parts.are_enough();
            report.set_up = subchannels.set_up;
            report.ready = subchannels.usable;
            report.kernel.extend(parts.checks.into_iter().chain(subchannels.checks));
            report.subchannels = subchannels.json;
        }
        let trial = software::trial();
        report.software = vec![
            trial.check,
            software::io_uring(tree),
            software::eventfd(),
            limits::locked_memory(trial.budget),
            limits::open_files(report.set_up as u64),
            software::processors(),
        ];
        report
    }

    fn software_usable(&self) -> bool {
        !self.software.iter().any(Check::is_missing)
    }

    fn is_well(&self) -> bool {
        self.software_usable() && self.ready == self.set_up
    }

    fn software_summary(&self) -> &'static str {
        match self.software_usable() {
            true => "can run",
            false => "cannot run: see 'missing' above",
        }
    }

    fn kernel_summary(&self) -> String {
        match (self.kernel_usable, self.ready, self.set_up) {
            _ if self.architecture != "s390x" => {
                format!("not on {}, where it is not needed either", self.architecture)
            }
            (false, _, 0) => "not ready: see 'missing' above".to_owned(),
            (true, _, 0) => "ready, and no device is set up for it".to_owned(),
            (_, ready, set_up) => {
                let found = format!("this user can use {ready} of {set_up} devices set up for it");
                let hint = if ready == set_up { "" } else { ": see 'missing' above" };
                found + hint
            }
        }
    }

    fn json(&self) -> Value {
        let checks = |checks: &[Check]| checks.iter().map(Check::json).collect::<Vec<_>>();
        json!({
            "software": {
                "usable": self.software_usable(),
                "summary": self.software_summary(),
                "checks": checks(&self.software),
            },
            "kernel": {
                "usable": self.kernel_usable,
                "summary": self.kernel_summary(),
                "checks": checks(&self.kernel),
                "set_up": self.set_up,
                "ready": self.ready,
                "subchannels": self.subchannels,
            },
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.software.iter().chain(&self.kernel);
        let width = all.map(|check| check.name.len()).max().unwrap_or(0);
        writeln!(f, "software devices")?;
        writeln!(f, "{}", Lines { checks: &self.software, width })?;
        writeln!(f, "the kernel's vfio-ccw")?;
        writeln!(f, "{}", Lines { checks: &self.kernel, width })?;
        writeln!(f, "software devices: {}", self.software_summary())?;
        write!(f, "the kernel's vfio-ccw: {}", self.kernel_summary())
    }
}

#[cfg(test)]
mod tests {
    use super::machine::Machine;
    use super::*;

    fn report(machine: &Machine) -> Report {
        Report::of(&machine.tree())
    }

    #[test]
    fn a_machine_of_another_architecture_is_well() {
        let machine = Machine::empty();
        machine.write("proc/sys/kernel/arch", "riscv64\n");
        let report = report(&machine);
        assert!(report.is_well(), "{report}");
        assert_eq!(report.kernel_summary(), "not on riscv64, where it is not needed either");
        assert!(report.kernel.iter().all(|check| !check.is_missing()), "{report}");
    }

    #[test]
    fn a_machine_with_nothing_is_well_but_not_ready() {
        let machine = Machine::empty();
        machine.write("proc/sys/kernel/arch", "s390x\n");
        let report = report(&machine);
        assert!(report.is_well() && !report.kernel_usable, "{report}");
        assert_eq!(report.kernel_summary(), "not ready: see 'missing' above");
    }

    #[test]
    fn a_machine_with_devices() {
        let machine = Machine::s390x();
        assert!(report(&machine).kernel_summary().starts_with("ready, and no device"));
        machine.device("0.0.0002", "0.0.0010", "vfio_ccw");
        machine.mdev("0.0.0002", Machine::UUID, 7);
        let all = report(&machine);
        assert!(all.is_well(), "{all}");
        assert!(all.kernel_summary().contains("can use 1 of 1 devices"), "{all}");
        machine.device("0.0.0003", "0.0.0011", "vfio_ccw");
        let half = report(&machine);
        assert!(!half.is_well(), "{half}");
        assert!(half.kernel_summary().contains("can use 1 of 2"), "{half}");
    }

    #[test]
    fn text_ends_with_a_line_for_each_kind_of_device() {
        let text = report(&Machine::s390x()).to_string();
        let lines: Vec<&str> = text.lines().rev().take(2).collect();
        assert!(lines[1].starts_with("software devices: "), "{text}");
        assert!(lines[0].starts_with("the kernel's vfio-ccw: "), "{text}");
        assert!(text.lines().all(|line| line.trim_end() == line), "{text}");
    }
}
