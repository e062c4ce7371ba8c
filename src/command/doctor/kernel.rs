//! The kernel: its architecture, its version, and what is known of vfio-ccw in that version.

use super::check::Check;
use super::tree::Tree;

/// The architecture that has vfio-ccw.
const S390X: &str = "s390x";

/// A version as kernel.org counts: major, minor, patch.
type Version = (u32, u32, u32);

/// The first version that takes all formats of IDAWs.
const ALL_IDAWS: Version = (6, 3, 0);

/// The hardening of vfio-ccw of August 2026.
const CVE: &str = "CVE-2026-80553";

/// The first version with it in each stable series.
const HARDENED: [Version; 7] =
    [(5, 10, 267), (5, 15, 218), (6, 1, 185), (6, 6, 153), (6, 12, 105), (6, 18, 46), (7, 1, 10)];

/// The first series that had it from the start.
const HARD_BORN: Version = (7, 2, 0);

/// What a kernel says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// Its architecture.
    pub(super) architecture: String,
    /// Its release, as `uname -r` prints it.
    release: String,
    version: Option<Version>,
    /// Whether its numbers are kernel.org's. Vendors keep the first and put fixes on top, so that
    /// the number does not say which are there.
    counts: bool,
}

impl Kernel {
    /// Of the machine below `tree`.
    pub(super) fn of(tree: &Tree) -> Self {
        let release = tree.line("/proc/sys/kernel/osrelease").unwrap_or_default();
        let banner = tree.text("/proc/version").unwrap_or_default();
        // The file is there since Linux 6.1.
        let architecture = tree.line("/proc/sys/kernel/arch").ok().filter(|name| !name.is_empty());
        Kernel {
            architecture: architecture.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            ..Kernel::parse(&release, &banner)
        }
    }

    fn parse(release: &str, banner: &str) -> Self {
        let named = version(release);
        let debian = banner.split("Debian ").skip(1).filter_map(version).last();
        // The compiler's version stands there too, and is of another series.
        let debian =
            debian.filter(|found| named.is_some_and(|named| series(named) == series(*found)));
        // Ubuntu, SUSE and Red Hat count after a patch level of 0.
        let vendor = release.contains('-') && named.is_some_and(|(_, _, patch)| patch == 0);
        Kernel {
            architecture: String::new(),
            release: release.to_owned(),
            version: debian.or(named),
            counts: debian.is_some() || named.is_some() && !vendor,
        }
    }

    /// Whether the architecture has vfio-ccw.
    pub(super) fn is_s390x(&self) -> bool {
        self.architecture == S390X
    }

    /// What is worth knowing, for `tree`'s distribution.
    pub(super) fn checks(&self, tree: &Tree) -> Vec<Check> {
        let release = if self.release.is_empty() { "of an unknown release" } else { &self.release };
        let name = "kernel";
        if !self.is_s390x() {
            let found = format!("{}: vfio-ccw is a driver of {S390X}", self.architecture);
            return vec![
                Check::note("architecture", found),
                Check::ok(name, format!("Linux {release}")),
            ];
        }
        let mut checks = vec![Check::ok("architecture", S390X)];
        let Some(version) = self.version else {
            let found =
                format!("Linux {release}: its version cannot be read, nor what is fixed in it");
            checks.push(Check::note(name, found).remedy("uname -r"));
            return checks;
        };
        checks.push(Check::ok(name, format!("Linux {release}")));
        checks.push(self.hardening(version, Distribution::of(tree)));
        if version < ALL_IDAWS {
            checks.push(Check::note(
                "IDAWs",
                "before Linux 6.3 vfio_ccw takes only IDAWs of format 2 with blocks of 4 KiB; the \
                 translation makes no others, whatever the guest's are",
            ));
        }
        checks
    }

    fn hardening(&self, version: Version, distribution: Distribution) -> Check {
        if !self.counts {
            let found = format!(
                "Linux {}: a vendor's number does not say whether the fix of vfio_ccw is in",
                self.release
            );
            return Check::note(CVE, found).remedy(distribution.changelog());
        }
        let (major, minor, patch) = version;
        if version >= HARD_BORN {
            return Check::ok(CVE, format!("fixed in Linux {major}.{minor}"));
        }
        let fixed = HARDENED.into_iter().find(|fixed| series(*fixed) == series(version));
        let problem = match fixed {
            Some(fixed) if version >= fixed => {
                return Check::ok(CVE, format!("fixed since Linux {}", dotted(fixed)));
            }
            Some(fixed) => format!(
                "Linux {major}.{minor}.{patch} has this flaw of vfio_ccw, which is fixed in {}",
                dotted(fixed)
            ),
            None => format!(
                "Linux {major}.{minor} has this flaw of vfio_ccw, and none of the series is known to have \
                 the fix: boot one of {}",
                HARDENED.map(dotted).join(", ")
            ),
        };
        let check = Check::warning(CVE, problem);
        match distribution.upgrade() {
            Some(line) => check.remedy(line),
            None => check,
        }
    }
}

/// The version that text begins with.
fn version(text: &str) -> Option<Version> {
    let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let mut numbers = text[..end].split('.').map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next().unwrap_or(0)))
}

fn series((major, minor, _): Version) -> (u32, u32) {
    (major, minor)
}

fn dotted((major, minor, patch): Version) -> String {
    format!("{major}.{minor}.{patch}")
}

/// Whose packages the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distribution {
    Debian,
    Ubuntu,
    RedHat,
    Suse,
    Other,
}

impl Distribution {
    fn of(tree: &Tree) -> Self {
        let text = tree.text("/etc/os-release").unwrap_or_default();
        let value = |line: &str| {
            let (key, value) = line.split_once('=')?;
            matches!(key, "ID" | "ID_LIKE").then(|| value.replace('"', ""))
        };
        let names = text.lines().filter_map(value).collect::<Vec<_>>().join(" ");
        let is = |wanted: &str| names.split_whitespace().any(|name| name == wanted);
        match () {
            () if is("ubuntu") => Distribution::Ubuntu,
            () if is("debian") => Distribution::Debian,
            () if is("rhel") || is("fedora") => Distribution::RedHat,
            () if is("suse") || is("sles") => Distribution::Suse,
            () => Distribution::Other,
        }
    }

    /// How a newer kernel is installed; it takes a restart.
    fn upgrade(self) -> Option<&'static str> {
        match self {
            Distribution::Debian => Some("apt-get install linux-image-s390x && reboot"),
            Distribution::Ubuntu => Some("apt-get install linux-image-generic && reboot"),
            Distribution::RedHat => Some("dnf upgrade kernel && reboot"),
            Distribution::Suse => Some("zypper update kernel-default && reboot"),
            Distribution::Other => None,
        }
    }

    /// How one looks whether the fix is in.
    fn changelog(self) -> String {
        match self {
            Distribution::RedHat => {
                format!("rpm -q --changelog kernel-core-$(uname -r) | grep {CVE}")
            }
            Distribution::Suse => format!("rpm -q --changelog kernel-default | grep {CVE}"),
            Distribution::Ubuntu => {
                format!("apt-get changelog linux-image-$(uname -r) | grep {CVE}")
            }
            Distribution::Debian | Distribution::Other => {
                format!("zgrep {CVE} /usr/share/doc/linux-image-$(uname -r)/changelog*")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    fn of(release: &str, banner: &str) -> Kernel {
        Kernel { architecture: S390X.to_owned(), ..Kernel::parse(release, banner) }
    }

    fn hardening(release: &str, banner: &str) -> Check {
        let kernel = of(release, banner);
        kernel.hardening(kernel.version.unwrap(), Distribution::Debian)
    }

    #[test]
    fn versions_are_found_where_they_stand() {
        assert_eq!(version("6.12.117-ccwlab"), Some((6, 12, 117)));
        assert_eq!(version("7.2"), Some((7, 2, 0)));
        assert_eq!(version("6.18.0-rc3"), Some((6, 18, 0)));
        for wrong in ["", "x", "6", "6.", ".6.1", "99999999999.1", "?[2J"] {
            assert_eq!(version(wrong), None, "{wrong}");
        }
        let banner = "Linux version 6.1.0-35-s390x (x@debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0, GNU ld \
                      (GNU Binutils for Debian) 2.40) #1 SMP Debian 6.1.137-1 (2025-05-07)";
        assert_eq!(of("6.1.0-35-s390x", banner).version, Some((6, 1, 137)));
        // The compiler is not the kernel.
        let own = "Linux version 6.12.117-ccwlab (x@y) (gcc (Debian 12.2.0-14) 12.2.0) #1 SMP";
        assert_eq!(of("6.12.117-ccwlab", own).version, Some((6, 12, 117)));
    }

    #[test]
    fn every_series_is_fixed_from_one_version_on() {
        for fixed @ (major, minor, patch) in HARDENED {
            assert_eq!(hardening(&dotted(fixed), "").verdict, Verdict::Ok, "{fixed:?}");
            let before = hardening(&dotted((major, minor, patch - 1)), "");
            assert_eq!(before.verdict, Verdict::Warning, "{before:?}");
            assert!(before.found.contains(&dotted(fixed)), "{before:?}");
            assert_eq!(before.remedy, ["apt-get install linux-image-s390x && reboot"]);
        }
        assert_eq!(hardening("7.2.0", "").verdict, Verdict::Ok);
        for ended in ["5.4.300", "6.3.1", "6.17.13", "7.0.5"] {
            let check = hardening(ended, "");
            assert_eq!(check.verdict, Verdict::Warning);
            assert!(check.found.contains("none of the series"), "{check:?}");
        }
    }

    #[test]
    fn a_vendors_number_says_nothing() {
        for release in ["5.14.0-427.el9.s390x", "6.8.0-60-generic", "6.4.0-150600.21-default"] {
            let check = hardening(release, "");
            assert_eq!(check.verdict, Verdict::Note, "{check:?}");
            assert!(check.remedy[0].contains(CVE), "{check:?}");
        }
        // Debian says which stable version it is.
        let banner = "#1 SMP Debian 6.1.185-1 (2026-08-20)";
        assert_eq!(hardening("6.1.0-50-s390x", banner).verdict, Verdict::Ok);
        let older = "#1 SMP Debian 6.1.184-1 (2026-08-01)";
        assert_eq!(hardening("6.1.0-49-s390x", older).verdict, Verdict::Warning);
    }

    #[test]
    fn distributions_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        let of = |text: &str| {
            std::fs::write(folder.path().join("etc/os-release"), text).unwrap();
            Distribution::of(&Tree::new(folder.path()))
        };
        assert_eq!(of("NAME=\"Debian\"\nID=debian\n"), Distribution::Debian);
        assert_eq!(of("ID=ubuntu\nID_LIKE=debian\n"), Distribution::Ubuntu);
        assert_eq!(of("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), Distribution::RedHat);
        assert_eq!(of("ID=\"sles\"\nID_LIKE=\"suse\"\n"), Distribution::Suse);
        assert_eq!(of("ID=gentoo\nVERSION_ID=debian"), Distribution::Other);
        assert_eq!(Distribution::Other.upgrade(), None);
    }

    #[test]
    fn old_kernels_have_fewer_formats_of_idaws() {
        let tree = Tree::new("/nowhere");
        let names = |release| {
            let checks = of(release, "").checks(&tree);
            checks.into_iter().map(|check| check.name).collect::<Vec<_>>()
        };
        assert_eq!(names("6.1.190"), ["architecture", "kernel", CVE, "IDAWs"]);
        assert_eq!(names("6.6.160"), ["architecture", "kernel", CVE]);
        assert_eq!(names("garbage"), ["architecture", "kernel"]);
    }
}
