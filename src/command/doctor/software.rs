//! What software devices need: a service is made and a program run, and where something is less than it
//! could be, this says what.

use std::io;
use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use tracing::subscriber::{self, NoSubscriber};
use vfio_ccw::architecture::{Ccw, Orb, command};
use vfio_ccw::{Completions, DeviceSpec, Driver, DriverChoice, Service, ServiceBuilder};
use vfio_ccw_queues::WaitStrategy;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::check::Check;
use super::tree::Tree;
use crate::command::{Failure, guest};

/// A program that takes longer does not end.
const STALL: Duration = Duration::from_secs(10);

/// What a service of this process is like.
#[derive(Debug)]
pub(super) struct Trial {
    /// Whether a program has run, and how.
    pub(super) check: Check,
    /// The pin budget that the service took, where there was one.
    pub(super) budget: Option<u64>,
}

/// Makes a service and runs a program on a software device.
pub(super) fn trial() -> Trial {
    let name = "a program";
    // What the service warns of, the other checks say with more words.
    match subscriber::with_default(NoSubscriber::new(), sense_id) {
        Ok((driver, budget)) => Trial {
            check: Check::ok(name, format!("SENSE ID ran on a software device (driver {driver})")),
            budget: Some(budget),
        },
        Err(error) => Trial { check: Check::missing(name, error.to_string()), budget: None },
    }
}

/// Runs SENSE ID on a null device. Gives driver and pin budget of its service.
fn sense_id() -> Result<(Driver, u64), Failure> {
    // As large as the default budget, or the budget would be smaller. Nothing of it is touched but this.
    let memory = guest::memory(ServiceBuilder::DEFAULT_BUDGET)?;
    let (program, sense) = (GuestAddress(0x1000), GuestAddress(0x2000));
    let service = Service::builder().subchannels(1).build(memory.clone())?;
    let (delivery, mut completions) = Completions::ring(1)?;
    let device = service.attach(DeviceSpec::Null, delivery)?;
    memory.write_slice(&Ccw::new(command::SENSE_ID, 0x2000, 7).to_format_1(), program)?;
    device.submit(&Orb::new(0x1000), 0)?;
    completions.wait(Some(STALL))?;
    let mut ended = None;
    completions.reap(1, |completion| ended = Some(completion.irb));
    let irb = ended.ok_or_else(|| format!("no interruption within {} s", STALL.as_secs()))?;
    if !irb.scsw.is_clean_end() || memory.read_obj::<u8>(sense)? != 0xff {
        return Err(format!("SENSE ID ended with {:?}", irb.scsw).into());
    }
    Ok((service.driver(), service.pool().budget_bytes()))
}

/// Whether file I/O goes through io_uring, as the service decides it, and why not.
pub(super) fn io_uring(tree: &Tree) -> Check {
    let setting = tree.line("/proc/sys/kernel/io_uring_disabled").ok();
    let status = tree.text("/proc/self/status").unwrap_or_default();
    let seccomp = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    let filtered = seccomp.is_some_and(|mode| mode.trim() == "2");
    let decision = DriverChoice::Only(Driver::IoUring).decide();
    judge_io_uring(decision, setting.as_deref(), filtered)
}

fn judge_io_uring(decision: io::Result<Driver>, setting: Option<&str>, filtered: bool) -> Check {
    let error = match decision {
        Ok(_) => return Check::ok("io_uring", "works"),
        Err(error) => error,
    };
    let found = |why: String| format!("{error}: {why}; file I/O runs on epoll and threads");
    match (error.raw_os_error(), setting) {
        (Some(libc::EPERM), Some(value @ ("1" | "2"))) => {
            let why = format!("kernel.io_uring_disabled is {value}");
            Check::warning("io_uring", found(why)).remedy("sysctl -w kernel.io_uring_disabled=0")
        }
        (Some(libc::EPERM | libc::ENOSYS | libc::EACCES), _) if filtered => {
            let why = "a seccomp filter refuses it, and would have to allow io_uring_setup, io_uring_enter \
                       and io_uring_register";
            Check::warning("io_uring", found(why.to_owned()))
                .remedy("docker run --security-opt seccomp=PROFILE.json ...")
        }
        (Some(libc::ENOSYS), _) => {
            Check::warning("io_uring", found("the kernel was built without it".to_owned()))
                .remedy("grep CONFIG_IO_URING /boot/config-$(uname -r)")
        }
        (Some(libc::ENOMEM), _) => {
            let why = "before Linux 5.12 rings count as locked memory";
            Check::warning("io_uring", found(why.to_owned())).remedy("ulimit -l unlimited")
        }
        _ => Check::warning("io_uring", found("no ring could be made".to_owned())),
    }
}

/// Whether an eventfd can be made.
pub(super) fn eventfd() -> Check {
    match EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) {
        Ok(_) => Check::ok("eventfd", "works"),
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
            Check::missing("eventfd", error.to_string()).remedy("ulimit -n 1024")
        }
        Err(error) => Check::missing("eventfd", error.to_string()),
    }
}

/// What the number of processors means for waiting.
pub(super) fn processors() -> Check {
    let strategy = WaitStrategy::default().on_this_machine();
    judge_processors(thread::available_parallelism(), strategy)
}

fn judge_processors(count: io::Result<NonZeroUsize>, strategy: WaitStrategy) -> Check {
    match count.map(NonZeroUsize::get) {
        Ok(1) => Check::note(
            "processors",
            format!(
                "1: shards wait with {strategy}, whatever --wait says; two would save wake-ups"
            ),
        ),
        Ok(count) => Check::ok(
            "processors",
            format!("{count}: shards wait with {strategy}; --wait spin takes a whole one each"),
        ),
        Err(error) => Check::note("processors", format!("their number is not known: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    fn refused(errno: i32, setting: Option<&str>, filtered: bool) -> Check {
        judge_io_uring(Err(io::Error::from_raw_os_error(errno)), setting, filtered)
    }

    #[test]
    fn a_refused_io_uring_has_its_reason() {
        let by_setting = refused(libc::EPERM, Some("2"), true);
        assert_eq!(by_setting.verdict, Verdict::Warning);
        assert!(by_setting.found.contains("kernel.io_uring_disabled is 2"), "{by_setting:?}");
        assert_eq!(by_setting.remedy, ["sysctl -w kernel.io_uring_disabled=0"]);
        for errno in [libc::EPERM, libc::ENOSYS] {
            let by_filter = refused(errno, Some("0"), true);
            assert!(by_filter.found.contains("seccomp"), "{by_filter:?}");
            assert!(by_filter.remedy[0].contains("--security-opt"), "{by_filter:?}");
        }
        let not_built = refused(libc::ENOSYS, None, false);
        assert!(not_built.found.contains("built without"), "{not_built:?}");
        assert!(refused(libc::ENOMEM, Some("0"), false).remedy[0].contains("ulimit -l"));
        let other = refused(libc::EMFILE, Some("0"), false);
        assert!(other.found.contains("no ring") && other.remedy.is_empty(), "{other:?}");
        assert_eq!(judge_io_uring(Ok(Driver::IoUring), Some("1"), true).verdict, Verdict::Ok);
    }

    #[test]
    fn one_processor_is_worth_a_note() {
        let count = |number| Ok(NonZeroUsize::new(number).unwrap());
        let one = judge_processors(count(1), WaitStrategy::Sleep);
        assert_eq!(one.verdict, Verdict::Note);
        assert!(one.found.contains("wait with sleep"), "{one:?}");
        let four = judge_processors(count(4), WaitStrategy::default());
        assert_eq!(four.verdict, Verdict::Ok);
        assert!(four.found.contains("4: shards wait with adaptive:50:25"), "{four:?}");
        let unknown =
            judge_processors(Err(io::Error::from_raw_os_error(libc::EPERM)), WaitStrategy::Sleep);
        assert_eq!(unknown.verdict, Verdict::Note);
    }

    #[test]
    fn a_program_runs() {
        let trial = trial();
        assert_eq!(trial.check.verdict, Verdict::Ok, "{:?}", trial.check);
        assert!((4096..=ServiceBuilder::DEFAULT_BUDGET).contains(&trial.budget.unwrap()));
    }
}
