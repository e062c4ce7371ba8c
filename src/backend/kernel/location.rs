//! Where a passed-through device is: its subchannel, its mediated device, its group, its character
//! device.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// A device that vfio_ccw has, as sysfs shows it.
///
/// Found by any of these words:
///
/// | word | what it is |
/// |---|---|
/// | `0.0.0313` | subchannel: cssid, ssid and number, as in `/sys/bus/css/devices` |
/// | `5e5bbff1-...` | UUID of the mediated device |
/// | `3:5e5bbff1-...`, `/dev/vfio/3:5e5bbff1-...` | group and UUID |
/// | `/sys/devices/css0/0.0.0313/...`, `/sys/bus/mdev/devices/...` | path in sysfs |
/// | `/dev/vfio/devices/vfio0` | character device |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Subchannel, such as `0.0.0313`.
    pub subchannel: String,
    /// UUID of the mediated device.
    pub uuid: String,
    /// `/dev/vfio/N`; `None` where the kernel has no groups.
    pub group: Option<PathBuf>,
    /// `/dev/vfio/devices/vfioN`; `None` where the kernel has no character devices.
    pub cdev: Option<PathBuf>,
}

/// Why there is no such device, or not yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    /// The word is none of those that can name a device.
    #[error(
        "'{word}' names no device: use a subchannel (0.0.0313), the UUID of its mediated device, GROUP:UUID, a path in \
         /sys, or /dev/vfio/devices/vfioN"
    )]
    Word {
        /// The word.
        word: String,
    },
    /// There is no such subchannel.
    #[error("there is no subchannel {subchannel}: see /sys/bus/css/devices")]
    NoSubchannel {
        /// The subchannel.
        subchannel: String,
    },
    /// Another driver has the subchannel.
    #[error(
        "subchannel {subchannel} is {}: give it to vfio_ccw with 'echo vfio_ccw > {dir}/driver_override; \
         echo {subchannel} > {dir}/driver/unbind; echo {subchannel} > /sys/bus/css/drivers/vfio_ccw/bind'",
        match .driver { Some(driver) => format!("the driver {driver}'s"), None => "no driver's".to_owned() },
        dir = format_args!("/sys/bus/css/devices/{subchannel}")
    )]
    OtherDriver {
        /// The subchannel.
        subchannel: String,
        /// The driver that has it.
        driver: Option<String>,
    },
    /// The subchannel has no mediated device.
    #[error(
        "subchannel {subchannel} has no mediated device: make one with \
         'cat /proc/sys/kernel/random/uuid > /sys/bus/css/devices/{subchannel}/mdev_supported_types/vfio_ccw-io/create'"
    )]
    NoMediatedDevice {
        /// The subchannel.
        subchannel: String,
    },
    /// There is no mediated device of that name, or it is not on a subchannel.
    #[error("there is no mediated device {uuid} on a subchannel: see /sys/bus/mdev/devices")]
    NoUuid {
        /// The UUID.
        uuid: String,
    },
    /// There is no such character device, or it is not that of a mediated device.
    #[error("{node} is no mediated device's character device: see /sys/class/vfio-dev")]
    NoNode {
        /// The node.
        node: String,
    },
    /// The device has another group than the word says.
    #[error("mediated device {uuid} is not in group {wanted}, but in {}", .found.as_deref().unwrap_or("none"))]
    OtherGroup {
        /// The UUID.
        uuid: String,
        /// The group that was given.
        wanted: String,
        /// The group that it has.
        found: Option<String>,
    },
    /// Sysfs cannot be read.
    #[error("{}: {source}", .path.display())]
    Sysfs {
        /// What was to be read.
        path: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
}

impl Location {
    /// Finds the device that `word` names on this machine.
    ///
    /// # Errors
    ///
    /// See [`LocationError`]: each says what to do about it.
    pub fn find(word: &str) -> Result<Self, LocationError> {
        Location::find_below(Path::new("/"), word)
    }

    /// The same where `/sys` and `/dev` are below `root`.
    fn find_below(root: &Path, word: &str) -> Result<Self, LocationError> {
        if let Some((group, uuid)) = word.rsplit_once(':') {
            let group = group.strip_prefix("/dev/vfio/").unwrap_or(group);
            if !group.bytes().all(|byte| byte.is_ascii_digit())
                || group.is_empty()
                || !is_uuid(uuid)
            {
                return Err(unknown(word));
            }
            let found = Location::of_uuid(root, uuid)?;
            let number = found.group.as_deref().and_then(last).map(str::to_owned);
            if number.as_deref() != Some(group) {
                let (uuid, wanted) = (uuid.to_owned(), group.to_owned());
                return Err(LocationError::OtherGroup { uuid, wanted, found: number });
            }
            return Ok(found);
        }
        if is_uuid(word) {
            return Location::of_uuid(root, word);
        }
        if is_subchannel(word) {
            return Location::of_subchannel(root, word);
        }
        let path = Path::new(word);
        if let Ok(node) = path.strip_prefix("/dev/vfio/devices")
            && let Some(name) = single(node)
        {
            let device = root.join("sys/class/vfio-dev").join(name).join("device");
            let device = fs::canonicalize(&device).ok();
            let uuid = device.as_deref().and_then(last).filter(|name| is_uuid(name));
            return match uuid {
                Some(uuid) => Location::of_uuid(root, uuid),
                None => Err(LocationError::NoNode { node: word.to_owned() }),
            };
        }
        if path.starts_with("/sys") {
            // The deepest part that names something: what lies below it belongs to it.
            let named = path.iter().rev().filter_map(|part| part.to_str());
            for part in named {
                if is_uuid(part) {
                    return Location::of_uuid(root, part);
                }
                if is_subchannel(part) {
                    return Location::of_subchannel(root, part);
                }
            }
        }
        Err(unknown(word))
    }

    fn of_subchannel(root: &Path, subchannel: &str) -> Result<Self, LocationError> {
        let subchannel = subchannel.to_ascii_lowercase();
        let dir = root.join("sys/bus/css/devices").join(&subchannel);
        if !dir.exists() {
            return Err(LocationError::NoSubchannel { subchannel });
        }
        let driver = fs::read_link(dir.join("driver")).ok();
        let driver = driver.as_deref().and_then(last).map(str::to_owned);
        if driver.as_deref() != Some("vfio_ccw") {
            return Err(LocationError::OtherDriver { subchannel, driver });
        }
        let entries =
            fs::read_dir(&dir).map_err(|source| LocationError::Sysfs { path: dir, source })?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut mediated: Vec<String> = names.filter(|name| is_uuid(name)).collect();
        // The driver allows one; should there ever be more, always the same is taken.
        mediated.sort_unstable();
        match mediated.first() {
            Some(uuid) => Location::of_uuid(root, uuid),
            None => Err(LocationError::NoMediatedDevice { subchannel }),
        }
    }

    fn of_uuid(root: &Path, uuid: &str) -> Result<Self, LocationError> {
        let uuid = uuid.to_ascii_lowercase();
        let device = root.join("sys/bus/mdev/devices").join(&uuid);
        let parent = fs::canonicalize(&device).ok();
        let subchannel = parent.as_deref().and_then(Path::parent).and_then(last);
        let Some(subchannel) = subchannel.filter(|name| is_subchannel(name)) else {
            return Err(LocationError::NoUuid { uuid });
        };
        let group = fs::read_link(device.join("iommu_group")).ok();
        let group =
            group.as_deref().and_then(last).map(|number| Path::new("/dev/vfio").join(number));
        let nodes = fs::read_dir(device.join("vfio-dev")).into_iter().flatten().flatten();
        let cdev = nodes
            .filter_map(|entry| entry.file_name().into_string().ok())
            .map(|name| Path::new("/dev/vfio/devices").join(name))
            .find(|node| node.strip_prefix("/").is_ok_and(|node| root.join(node).exists()));
        Ok(Location { subchannel: subchannel.to_owned(), uuid, group, cdev })
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(word: &str) -> Result<Self, LocationError> {
        Location::find(word)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "subchannel {}, mediated device {}", self.subchannel, self.uuid)
    }
}

fn unknown(word: &str) -> LocationError {
    LocationError::Word { word: word.to_owned() }
}

/// The last part of a path.
fn last(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// The only part of a path.
fn single(path: &Path) -> Option<&str> {
    let mut parts = path.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(part)), None) => part.to_str(),
        _ => None,
    }
}

/// Whether this is eight, four, four, four and twelve hexadecimal digits.
fn is_uuid(word: &str) -> bool {
    let groups = [8, 4, 4, 4, 12];
    word.split('-').map(|group| if is_hex(group) { group.len() } else { 0 }).eq(groups)
}

/// Whether this is `cssid.ssid.number`.
fn is_subchannel(word: &str) -> bool {
    let mut parts = word.split('.');
    let [Some(cssid), Some(ssid), Some(number), None] =
        [parts.next(), parts.next(), parts.next(), parts.next()]
    else {
        return false;
    };
    (1..=2).contains(&cssid.len())
        && ssid.len() == 1
        && number.len() == 4
        && [cssid, ssid, number].into_iter().all(is_hex)
}

fn is_hex(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const UUID: &str = "5e5bbff1-3c2e-4b9c-8f5e-0a1b2c3d4e5f";

    /// A machine with subchannel 0.0.0313 that vfio_ccw has, with a mediated device; 0.0.0314 that it has,
    /// without one; 0.0.0315 that io_subchannel has; and 0.0.0316 that nobody has.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(root.path().join(path)).unwrap();
        let link = |to: &str, at: &str| {
            let at = root.path().join(at);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            symlink(root.path().join(to), at).unwrap();
        };
        for (number, driver) in
            [("0313", "vfio_ccw"), ("0314", "vfio_ccw"), ("0315", "io_subchannel"), ("0316", "")]
        {
            let dir = format!("sys/devices/css0/0.0.{number}");
            make(&dir);
            link(&dir, &format!("sys/bus/css/devices/0.0.{number}"));
            if !driver.is_empty() {
                link(&format!("sys/bus/css/drivers/{driver}"), &format!("{dir}/driver"));
            }
        }
        let mediated = format!("sys/devices/css0/0.0.0313/{UUID}");
        make(&format!("{mediated}/vfio-dev/vfio7"));
        link(&mediated, &format!("sys/bus/mdev/devices/{UUID}"));
        link("sys/kernel/iommu_groups/3", &format!("{mediated}/iommu_group"));
        link(&mediated, "sys/class/vfio-dev/vfio7/device");
        make("dev/vfio/devices");
        fs::write(root.path().join("dev/vfio/devices/vfio7"), "").unwrap();
        root
    }

    #[test]
    fn every_word_finds_the_same_device() {
        let root = machine();
        let words = [
            "0.0.0313".to_owned(),
            UUID.to_owned(),
            UUID.to_ascii_uppercase(),
            format!("3:{UUID}"),
            format!("/dev/vfio/3:{UUID}"),
            "/dev/vfio/devices/vfio7".to_owned(),
            format!("/sys/bus/mdev/devices/{UUID}"),
            "/sys/devices/css0/0.0.0313".to_owned(),
            format!("/sys/devices/css0/0.0.0313/{UUID}/vfio-dev"),
        ];
        for word in words {
            let found = Location::find_below(root.path(), &word).unwrap();
            let expected = Location {
                subchannel: "0.0.0313".to_owned(),
                uuid: UUID.to_owned(),
                group: Some("/dev/vfio/3".into()),
                cdev: Some("/dev/vfio/devices/vfio7".into()),
            };
            assert_eq!(found, expected, "{word}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_type() {
        let root = machine();
        let error = |word: &str| Location::find_below(root.path(), word).unwrap_err().to_string();
        assert!(error("0.0.0314").contains("mdev_supported_types/vfio_ccw-io/create"));
        assert!(error("0.0.0315").contains("the driver io_subchannel's"));
        assert!(error("0.0.0315").contains("echo 0.0.0315 > /sys/bus/css/drivers/vfio_ccw/bind"));
        assert!(error("0.0.0316").contains("no driver's"));
        assert!(error("0.0.0317").contains("no subchannel 0.0.0317"));
        assert!(error(&UUID.replace('5', "6")).contains("no mediated device"));
        assert!(error(&format!("4:{UUID}")).contains("not in group 4, but in 3"));
        assert!(error("/dev/vfio/devices/vfio8").contains("vfio8"));
    }

    #[test]
    fn words_that_name_nothing_are_refused() {
        let root = machine();
        for word in [
            "",
            "0313",
            "0.0.313",
            "0.0.0313.0",
            "0.0.031g",
            "../../etc",
            "/sys",
            "/etc/passwd",
            "/dev/vfio/devices",
            "/dev/vfio/devices/../vfio7",
            ":",
            "3:",
            "x:5e5bbff1-3c2e-4b9c-8f5e-0a1b2c3d4e5f",
            "5e5bbff1-3c2e-4b9c-8f5e-0a1b2c3d4e5",
            "5e5bbff1--3c2e-4b9c-8f5e-0a1b2c3d4e5f",
        ] {
            let error = Location::find_below(root.path(), word).unwrap_err();
            assert!(matches!(error, LocationError::Word { .. }), "{word}: {error}");
        }
    }

    #[test]
    fn a_kernel_without_groups_or_character_devices_has_none() {
        let root = machine();
        fs::remove_file(root.path().join("dev/vfio/devices/vfio7")).unwrap();
        let device = root.path().join("sys/devices/css0/0.0.0313").join(UUID);
        fs::remove_file(device.join("iommu_group")).unwrap();
        let found = Location::find_below(root.path(), "0.0.0313").unwrap();
        assert_eq!((found.group, found.cdev), (None, None));
        let error = Location::find_below(root.path(), &format!("3:{UUID}")).unwrap_err();
        assert!(error.to_string().contains("but in none"), "{error}");
    }
}
