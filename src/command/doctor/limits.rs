//! What this process may have: locked memory and file descriptors.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit};
use vfio_ccw::ServiceBuilder;
use vfio_ccw_load::units::Bytes;
use vfio_ccw_pinning::memlock::Memlock;

use super::check::Check;

/// Descriptors that a service has whatever its devices: shards, rings, images, metrics.
const OF_A_SERVICE: u64 = 64;

/// Descriptors of a device that the kernel drives: group or container, device, three interrupts.
const OF_A_KERNEL_DEVICE: u64 = 5;

/// Descriptors of a software device with `--interrupts eventfd`: both ends of an eventfd.
const OF_A_SIGNALLED_DEVICE: u64 = 2;

/// Whether the default pin budget may be locked. `budget` is what a service of this process took.
pub(super) fn locked_memory(budget: Option<u64>) -> Check {
    let hard = getrlimit(Resource::Memlock).maximum;
    judge_locked_memory(Memlock::of_this_process(), hard, budget)
}

fn judge_locked_memory(
    memlock: io::Result<Memlock>,
    hard: Option<u64>,
    budget: Option<u64>,
) -> Check {
    let name = "locked memory";
    let memlock = match memlock {
        Ok(memlock) => memlock,
        Err(error) => {
            return Check::missing(name, format!("/proc/self/status cannot be read: {error}"))
                .remedy("mount -t proc proc /proc");
        }
    };
    let wanted = ServiceBuilder::DEFAULT_BUDGET;
    let Some(limit) = memlock.limit else {
        return Check::ok(name, "no limit (RLIMIT_MEMLOCK is unlimited, or CAP_IPC_LOCK lifts it)");
    };
    if budget.is_some_and(|budget| budget >= wanted) {
        return Check::ok(
            name,
            format!("RLIMIT_MEMLOCK is {}, the default pin budget {}", Bytes(limit), Bytes(wanted)),
        );
    }
    let needed = wanted.saturating_add(memlock.locked);
    let limits = format!("RLIMIT_MEMLOCK is {limit} bytes, of which {} are locked", memlock.locked);
    let check = match budget {
        Some(budget) => Check::warning(
            name,
            format!("{limits}: the default pin budget is {budget} instead of {wanted}"),
        ),
        None => Check::missing(name, format!("{limits}: the default pin budget is {wanted}")),
    };
    let kib = needed.div_ceil(1024);
    let check = match hard {
        Some(hard) if hard < needed => {
            check.remedy(format!("sudo prlimit --pid $$ --memlock={needed}:{needed}"))
        }
        _ => check.remedy(format!("ulimit -l {kib}")),
    };
    check.remedy("setcap cap_ipc_lock+ep \"$(command -v vfio-ccw)\"")
}

/// Whether there are descriptors enough for as many devices as the kernel's vfio-ccw has.
pub(super) fn open_files(kernel_devices: u64) -> Check {
    judge_open_files(getrlimit(Resource::Nofile), kernel_devices)
}

fn judge_open_files(limit: Rlimit, kernel_devices: u64) -> Check {
    let name = "open files";
    let Some(soft) = limit.current else {
        return Check::ok(name, "no limit");
    };
    let needed = OF_A_SERVICE + OF_A_KERNEL_DEVICE * kernel_devices;
    if soft < needed {
        let raise = match limit.maximum {
            Some(hard) if hard < needed => {
                format!("sudo prlimit --pid $$ --nofile={needed}:{needed}")
            }
            _ => format!("ulimit -n {needed}"),
        };
        let found = format!(
            "RLIMIT_NOFILE is {soft}: a service and {kernel_devices} devices of vfio_ccw take up to {needed}"
        );
        return Check::warning(name, found).remedy(raise);
    }
    let room = soft - OF_A_SERVICE;
    let found = format!(
        "RLIMIT_NOFILE is {soft}: room for {} devices of vfio_ccw, or {} of --interrupts eventfd",
        room / OF_A_KERNEL_DEVICE,
        room / OF_A_SIGNALLED_DEVICE
    );
    Check::ok(name, found)
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn locked(limit: Option<u64>, hard: Option<u64>, budget: Option<u64>) -> Check {
        judge_locked_memory(Ok(Memlock { limit, locked: 4096 }), hard, budget)
    }

    #[test]
    fn a_limit_below_the_budget_names_both_and_a_remedy() {
        let small = locked(Some(8 * MIB), None, Some(6 * MIB));
        assert_eq!(small.verdict, Verdict::Warning);
        assert!(small.found.contains("8388608 bytes, of which 4096"), "{small:?}");
        assert!(small.found.contains("6291456 instead of 67108864"), "{small:?}");
        assert_eq!(small.remedy[0], "ulimit -l 65540");
        // `ulimit` cannot exceed the hard limit.
        let hard = locked(Some(8 * MIB), Some(8 * MIB), Some(6 * MIB));
        assert_eq!(hard.remedy[0], "sudo prlimit --pid $$ --memlock=67112960:67112960");
        let none = locked(Some(4096), Some(4096), None);
        assert_eq!(none.verdict, Verdict::Missing, "{none:?}");
    }

    #[test]
    fn a_limit_above_the_budget_is_fine() {
        assert_eq!(locked(None, None, Some(64 * MIB)).verdict, Verdict::Ok);
        let enough = locked(Some(128 * MIB), None, Some(64 * MIB));
        assert_eq!((enough.verdict, enough.remedy.len()), (Verdict::Ok, 0));
        let unknown = judge_locked_memory(Err(io::ErrorKind::NotFound.into()), None, None);
        assert_eq!(unknown.verdict, Verdict::Missing);
    }

    #[test]
    fn descriptors_are_counted_by_devices() {
        let limit = |soft, hard| Rlimit { current: Some(soft), maximum: hard };
        let enough = judge_open_files(limit(1024, Some(4096)), 192);
        assert_eq!(enough.verdict, Verdict::Ok);
        assert!(
            enough.found.contains("192 devices of vfio_ccw, or 480 of --interrupts"),
            "{enough:?}"
        );
        let few = judge_open_files(limit(1024, Some(4096)), 193);
        assert_eq!(few.verdict, Verdict::Warning);
        assert_eq!(few.remedy, ["ulimit -n 1029"]);
        let hard = judge_open_files(limit(1024, Some(1024)), 193);
        assert_eq!(hard.remedy, ["sudo prlimit --pid $$ --nofile=1029:1029"]);
        let none = judge_open_files(Rlimit { current: None, maximum: None }, 9999);
        assert_eq!(none.verdict, Verdict::Ok);
    }
}
