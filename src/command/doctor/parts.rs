//! What of the kernel the devices of vfio-ccw need beside themselves: the driver, mediated devices, and
//! one of two ways to let a device see memory.

use std::io;

use super::check::Check;
use super::tree::Tree;

/// The driver, and its folder.
pub(super) const DRIVER: &str = "vfio_ccw";
const DRIVER_FOLDER: &str = "/sys/bus/css/drivers/vfio_ccw";

/// Where its module lies, where it is one.
const MODULE_FOLDER: &str = "kernel/drivers/s390/cio";

/// What containers are made with.
const CONTAINER: &str = "/dev/vfio/vfio";

/// Windows that a default pin budget may have in a container: one for each 4 KiB of 64 MiB.
const WINDOWS: u64 = 16_384;

/// Which parts are there.
#[derive(Debug)]
pub(super) struct Parts {
    /// A check of each.
    pub(super) checks: Vec<Check>,
    /// Whether there is the driver.
    pub(super) driver: bool,
    /// Whether groups can be used: containers of type1.
    pub(super) groups: bool,
    /// Whether character devices can be used: iommufd.
    pub(super) cdevs: bool,
}

impl Parts {
    /// Those below `tree`.
    pub(super) fn of(tree: &Tree) -> Self {
        let (driver, mdev) = (driver(tree), mdev(tree));
        let node = tree.may_use("/dev/iommu");
        let cdevs = node.is_ok();
        let type1 = type1(tree, cdevs);
        let groups = tree.may_use(CONTAINER).is_ok() && has_type1(tree);
        let mut checks = vec![driver.clone(), mdev, type1];
        checks.extend(windows(tree));
        checks.push(iommufd(node, groups));
        Parts { checks, driver: !driver.is_missing(), groups, cdevs }
    }

    /// Whether a device that has what it needs could be driven.
    pub(super) fn are_enough(&self) -> bool {
        self.driver && (self.groups || self.cdevs)
    }
}

fn driver(tree: &Tree) -> Check {
    if tree.has(DRIVER_FOLDER) {
        return Check::ok(DRIVER, "there");
    }
    if !tree.has("/sys/bus") {
        return Check::missing(DRIVER, "not known: /sys is not there")
            .remedy("mount -t sysfs sysfs /sys");
    }
    let release = tree.line("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = tree.names(&format!("/lib/modules/{release}/{MODULE_FOLDER}"));
    if modules.iter().any(|name| name.starts_with("vfio_ccw.ko")) {
        return Check::missing(DRIVER, "its module is not loaded")
            .remedy(format!("modprobe {DRIVER}"))
            .remedy(format!("echo {DRIVER} > /etc/modules-load.d/{DRIVER}.conf"));
    }
    let found = "there is no module either: boot a kernel that was built with CONFIG_VFIO_CCW";
    Check::missing(DRIVER, found).remedy("grep VFIO_CCW /boot/config-$(uname -r)")
}

fn mdev(tree: &Tree) -> Check {
    match tree.has("/sys/bus/mdev") {
        true => Check::ok("mdev", "there"),
        false => Check::missing("mdev", "no mediated devices").remedy("modprobe mdev"),
    }
}

/// Modules that are built in and have parameters are there too.
fn has_type1(tree: &Tree) -> bool {
    tree.has("/sys/module/vfio_iommu_type1")
}

fn type1(tree: &Tree, cdevs: bool) -> Check {
    let (name, node) = ("type1", CONTAINER);
    // One of two ways is enough.
    let lacks = |found: String| match cdevs {
        true => Check::note(name, format!("{found}; iommufd does instead")),
        false => Check::missing(name, found),
    };
    match tree.may_use(node) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            lacks(format!("no {node}")).remedy("modprobe vfio vfio_iommu_type1")
        }
        Err(error) => lacks(format!("{node}: {error}")).remedy(format!("chmod 666 {node}")),
        Ok(()) if !has_type1(tree) => {
            lacks("vfio_iommu_type1 is not loaded".to_owned()).remedy("modprobe vfio_iommu_type1")
        }
        Ok(()) => Check::ok(name, format!("{node} may be opened")),
    }
}

/// How many windows a container may have, where there are containers.
fn windows(tree: &Tree) -> Option<Check> {
    let (name, path) = ("windows", "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit");
    if !has_type1(tree) {
        return None;
    }
    let Ok(text) = tree.line(path) else {
        return Some(Check::note(
            name,
            "dma_entry_limit cannot be read: 65535 unless it was changed",
        ));
    };
    Some(match text.parse::<u64>() {
        Ok(limit) if limit >= WINDOWS => {
            Check::ok(name, format!("dma_entry_limit is {limit} a container"))
        }
        Ok(limit) => {
            let found = format!(
                "dma_entry_limit is {limit}: a default pin budget may want {WINDOWS} windows in a container"
            );
            Check::warning(name, found).remedy(format!("echo 65535 > {path}"))
        }
        Err(_) => Check::note(name, format!("dma_entry_limit is no number: '{text}'")),
    })
}

fn iommufd(node: io::Result<()>, groups: bool) -> Check {
    let name = "iommufd";
    let lacks = |found: String| match groups {
        true => Check::note(name, format!("{found}; type1 does instead")),
        false => Check::missing(name, found),
    };
    match node {
        Ok(()) => Check::ok(name, "/dev/iommu may be opened"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            lacks("no /dev/iommu (Linux 6.2 and newer have it)".to_owned())
                .remedy("modprobe iommufd")
        }
        Err(error) => {
            let owner = rustix::process::geteuid().as_raw();
            lacks(format!("/dev/iommu: {error}")).remedy(format!("chown {owner} /dev/iommu"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::check::Verdict;
    use super::super::machine::Machine;
    use super::*;

    const LIMIT: &str = "sys/module/vfio_iommu_type1/parameters/dma_entry_limit";

    /// The verdicts on a complete machine after a change, and its parts.
    fn after(change: impl FnOnce(&Machine)) -> (Vec<(String, Verdict)>, Parts) {
        let machine = Machine::s390x();
        change(&machine);
        let parts = Parts::of(&machine.tree());
        let verdicts =
            parts.checks.iter().map(|check| (check.name.clone(), check.verdict)).collect();
        (verdicts, parts)
    }

    /// What is not ok after a change.
    fn faults(change: impl FnOnce(&Machine)) -> (Vec<(String, Verdict)>, Parts) {
        let (mut verdicts, parts) = after(change);
        verdicts.retain(|(_, verdict)| *verdict != Verdict::Ok);
        (verdicts, parts)
    }

    fn remove_folder(machine: &Machine, path: &str) {
        fs::remove_dir_all(machine.root().join(path)).unwrap();
    }

    fn named(name: &str, verdict: Verdict) -> (String, Verdict) {
        (name.to_owned(), verdict)
    }

    #[test]
    fn a_complete_machine() {
        let (verdicts, parts) = after(|_| ());
        let names: Vec<_> = verdicts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["vfio_ccw", "mdev", "type1", "windows", "iommufd"]);
        assert!(verdicts.iter().all(|(_, verdict)| *verdict == Verdict::Ok), "{verdicts:?}");
        assert!(parts.are_enough() && parts.groups && parts.cdevs);
    }

    #[test]
    fn one_way_to_memory_is_enough() {
        let remove = |paths: &'static [&str]| {
            move |machine: &Machine| paths.iter().for_each(|path| machine.remove(path))
        };
        let (faulty, parts) = faults(remove(&["dev/iommu"]));
        assert_eq!(faulty, [named("iommufd", Verdict::Note)]);
        assert!(parts.are_enough() && !parts.cdevs);
        let (faulty, parts) = faults(remove(&["dev/vfio/vfio"]));
        assert_eq!(faulty, [named("type1", Verdict::Note)]);
        assert!(parts.are_enough() && !parts.groups);
        let (faulty, parts) = faults(remove(&["dev/vfio/vfio", "dev/iommu"]));
        assert_eq!(faulty, [named("type1", Verdict::Missing), named("iommufd", Verdict::Missing)]);
        assert!(!parts.are_enough());
    }

    #[test]
    fn type1_is_a_node_and_a_module() {
        let (faulty, parts) =
            faults(|machine| remove_folder(machine, "sys/module/vfio_iommu_type1"));
        assert_eq!(faulty, [named("type1", Verdict::Note)]);
        assert!(!parts.groups && parts.are_enough());
    }

    #[test]
    fn a_driver_that_is_a_module_is_loaded_and_one_that_is_none_is_not() {
        let lost = |machine: &Machine| remove_folder(machine, "sys/bus/css/drivers/vfio_ccw");
        let remedy = |(_, parts): (_, Parts)| parts.checks[0].remedy[0].clone();
        assert_eq!(remedy(faults(lost)), "grep VFIO_CCW /boot/config-$(uname -r)");
        let module = |machine: &Machine| {
            lost(machine);
            machine.write("lib/modules/6.12.117-own/kernel/drivers/s390/cio/vfio_ccw.ko.xz", "");
        };
        assert_eq!(remedy(faults(module)), "modprobe vfio_ccw");
        let no_sysfs = |machine: &Machine| remove_folder(machine, "sys");
        assert_eq!(remedy(faults(no_sysfs)), "mount -t sysfs sysfs /sys");
    }

    #[test]
    fn few_windows_are_a_warning_and_nonsense_is_shown_short() {
        let (faulty, parts) = faults(|machine| machine.write(LIMIT, "16383\n"));
        assert_eq!(faulty, [named("windows", Verdict::Warning)]);
        assert!(parts.checks[3].remedy[0].starts_with("echo 65535 > /sys/module/"));
        let (faulty, parts) = faults(|machine| machine.write(LIMIT, "\x1b[31m".repeat(50_000)));
        assert_eq!(faulty, [named("windows", Verdict::Note)]);
        assert!(parts.checks[3].found.len() < 130, "{:?}", parts.checks[3]);
    }

    #[test]
    fn a_node_that_cannot_be_used() {
        let (faulty, parts) = faults(|machine| machine.link("dev/iommu", "iommu"));
        assert_eq!(faulty, [named("iommufd", Verdict::Note)]);
        assert!(parts.checks[4].remedy[0].starts_with("chown "), "{:?}", parts.checks[4]);
    }
}
