//! The I/O subchannels of the machine: who has each, and whether this user can use those that vfio_ccw
//! has.
//!
//! Names go into command lines that somebody types as root: those that have not the shape they should
//! have are left out.

use std::io;

use serde_json::{Value, json};

use super::check::Check;
use super::parts::{DRIVER, Parts};
use super::tree::Tree;

/// The bus of subchannels.
const BUS: &str = "/sys/bus/css/devices";

/// What `type` says of a subchannel for I/O.
const IO: &str = "0";

/// The type of mediated device that vfio_ccw makes.
const MDEV_TYPE: &str = "mdev_supported_types/vfio_ccw-io";

/// Most subchannels of other drivers that are listed one by one.
const MOST_LISTED: usize = 8;

/// A node that a device is opened with.
#[derive(Debug)]
pub(super) struct Node {
    path: String,
    /// Whether this user may open it.
    access: io::Result<()>,
}

impl Node {
    fn of(tree: &Tree, path: String) -> Self {
        let access = tree.may_use(&path);
        Node { path, access }
    }

    fn json(&self) -> Value {
        let error = self.access.as_ref().err().map(io::Error::to_string);
        json!({ "path": self.path, "usable": self.access.is_ok(), "error": error })
    }
}

/// A mediated device.
#[derive(Debug)]
pub(super) struct Mdev {
    uuid: String,
    group: Option<Node>,
    /// Where the kernel has character devices of VFIO.
    cdev: Option<Node>,
}

impl Mdev {
    /// That at `path`, whose last name is `uuid`.
    fn of(tree: &Tree, path: &str, uuid: String) -> Self {
        let group = tree.link(&format!("{path}/iommu_group")).filter(|name| is_number(name));
        let group = group.map(|number| Node::of(tree, format!("/dev/vfio/{number}")));
        let folder = format!("{path}/vfio-dev");
        // Without `dev` it is a name and no node: Linux before 6.6, or built so.
        let is_cdev = |name: &String| {
            name.strip_prefix("vfio").is_some_and(is_number)
                && tree.has(&format!("{folder}/{name}/dev"))
        };
        let cdev = tree.names(&folder).into_iter().find(is_cdev);
        let cdev = cdev.map(|name| Node::of(tree, format!("/dev/vfio/devices/{name}")));
        Mdev { uuid, group, cdev }
    }

    fn json(&self) -> Value {
        let node = |node: &Option<Node>| node.as_ref().map(Node::json);
        json!({ "uuid": self.uuid, "group": node(&self.group), "cdev": node(&self.cdev) })
    }

    /// Its nodes that `parts` can do something with.
    fn ways(&self, parts: &Parts) -> impl Iterator<Item = &Node> {
        let group = self.group.as_ref().filter(|_| parts.groups);
        let cdev = self.cdev.as_ref().filter(|_| parts.cdevs);
        group.into_iter().chain(cdev)
    }

    /// Whether one of them may be opened.
    fn is_usable(&self, parts: &Parts) -> bool {
        self.ways(parts).any(|node| node.access.is_ok())
    }

    /// Whether a right is all that is missing.
    fn is_forbidden(&self, parts: &Parts) -> bool {
        let denied = |node: &Node| {
            node.access.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        };
        !self.is_usable(parts) && self.ways(parts).any(denied)
    }
}

/// A subchannel for I/O.
#[derive(Debug)]
pub(super) struct Subchannel {
    id: String,
    /// The device's number on its bus, where there is a device.
    device: Option<String>,
    driver: Option<String>,
    /// The driver that it is meant for, where somebody has chosen one.
    chosen: Option<String>,
    /// The device's own driver, which `io_subchannel` hands it to.
    device_driver: Option<String>,
    online: bool,
    mdevs: Vec<Mdev>,
}

impl Subchannel {
    /// That of this name, if it is one for I/O.
    fn of(tree: &Tree, id: String) -> Option<Self> {
        let path = format!("{BUS}/{id}");
        if !is_bus_id(&id) || tree.line(&format!("{path}/type")).ok()? != IO {
            return None;
        }
        let names = tree.names(&path);
        let told = tree.line(&format!("{path}/dev_busid")).ok().filter(|name| is_bus_id(name));
        // Older kernels do not tell, but have the device there unless vfio_ccw has it.
        let device = told.or_else(|| names.iter().find(|name| is_bus_id(name)).cloned());
        let below = device.as_ref().map(|device| format!("{path}/{device}"));
        let named = |path: String| tree.link(&path).filter(|name| is_driver(name));
        let chosen = tree.line(&format!("{path}/driver_override")).ok();
        Some(Subchannel {
            driver: named(format!("{path}/driver")),
            chosen: chosen.filter(|name| is_driver(name)),
            device_driver: below.as_ref().and_then(|below| named(format!("{below}/driver"))),
            online: below.is_some_and(|below| {
                tree.line(&format!("{below}/online")).is_ok_and(|text| text == "1")
            }),
            mdevs: names
                .into_iter()
                .filter(|name| is_uuid(name))
                .map(|uuid| Mdev::of(tree, &format!("{path}/{uuid}"), uuid))
                .collect(),
            id,
            device,
        })
    }

    /// Whether vfio_ccw has it.
    fn is_bound(&self) -> bool {
        self.driver.as_deref() == Some(DRIVER)
    }

    /// Whether somebody wants vfio_ccw to have it.
    fn is_set_up(&self) -> bool {
        self.is_bound() || self.chosen.as_deref() == Some(DRIVER)
    }

    /// Whether its device could be opened as it stands.
    fn is_usable(&self, parts: &Parts) -> bool {
        self.is_bound() && self.mdevs.iter().any(|mdev| mdev.is_usable(parts))
    }

    fn json(&self, parts: &Parts) -> Value {
        json!({
            "subchannel": self.id,
            "device": self.device,
            "driver": self.driver,
            "device_driver": self.device_driver,
            "online": self.online,
            "usable": self.is_usable(parts),
            "mdevs": self.mdevs.iter().map(Mdev::json).collect::<Vec<_>>(),
        })
    }

    fn device_words(&self) -> String {
        match &self.device {
            Some(device) => format!("device {device}"),
            None => "no device".to_owned(),
        }
    }

    /// Command lines that give it to vfio_ccw.
    fn to_bind(&self) -> Vec<String> {
        let Subchannel { id, device, driver, online, .. } = self;
        let mut lines = Vec::new();
        if let (Some(device), true) = (device, online) {
            lines.push(format!("echo 0 > /sys/bus/ccw/devices/{device}/online"));
        }
        if self.chosen.as_deref() != Some(DRIVER) {
            lines.push(format!("echo {DRIVER} > {BUS}/{id}/driver_override"));
        }
        if driver.is_some() {
            lines.push(format!("echo {id} > {BUS}/{id}/driver/unbind"));
        }
        lines.push(format!("echo {id} > /sys/bus/css/drivers/{DRIVER}/bind"));
        lines.push(self.to_make_mdev());
        lines
    }

    fn to_make_mdev(&self) -> String {
        format!("cat /proc/sys/kernel/random/uuid > {BUS}/{}/{MDEV_TYPE}/create", self.id)
    }

    /// What becomes of it where it was set up for vfio_ccw.
    fn check(&self, parts: &Parts) -> Check {
        let name = self.id.as_str();
        let device = self.device_words();
        if !self.is_bound() {
            let has = self.driver.as_deref().unwrap_or("no driver");
            let found = format!("{device}, meant for {DRIVER}, but {has} has it");
            let check = Check::missing(name, found);
            return self.to_bind().into_iter().fold(check, Check::remedy);
        }
        let Some(mdev) = self.mdevs.first() else {
            return Check::missing(name, format!("{device}, {DRIVER}, no mdev"))
                .remedy(self.to_make_mdev());
        };
        let uuid = &mdev.uuid;
        let nodes: Vec<&Node> = mdev.group.iter().chain(&mdev.cdev).collect();
        let shown = nodes.iter().map(|node| node.path.as_str()).collect::<Vec<_>>().join(" and ");
        if mdev.is_usable(parts) {
            return Check::ok(name, format!("{device}, mdev {uuid}, {shown}"));
        }
        if nodes.is_empty() {
            let found = format!(
                "{device}, mdev {uuid}, in no group: its driver vfio_ccw_mdev has not got it"
            );
            return Check::missing(name, found)
                .remedy(format!("echo {uuid} > /sys/bus/mdev/drivers/vfio_ccw_mdev/bind"));
        }
        let refused: Vec<(&Node, &io::Error)> =
            mdev.ways(parts).filter_map(|node| Some((node, node.access.as_ref().err()?))).collect();
        if refused.is_empty() {
            let found =
                format!("{device}, mdev {uuid}, {shown}: neither type1 nor iommufd to go with it");
            return Check::missing(name, found);
        }
        let reasons: Vec<String> =
            refused.iter().map(|(node, error)| format!("{}: {error}", node.path)).collect();
        let found = format!("{device}, mdev {uuid}, {}", reasons.join(", "));
        // One of two is enough, and the group goes with more kernels.
        let (node, error) = refused[0];
        to_open(node, error).into_iter().fold(Check::missing(name, found), Check::remedy)
    }
}

/// Command lines after which this user may open a node.
fn to_open(node: &Node, error: &io::Error) -> Vec<String> {
    let path = &node.path;
    if error.kind() != io::ErrorKind::NotFound {
        return vec![format!("chown {} {path}", user())];
    }
    let class = if path.starts_with("/dev/vfio/devices/") { "vfio-dev" } else { "vfio" };
    let name = path.rsplit('/').next().unwrap_or_default();
    // In a container its engine makes the nodes.
    vec![
        format!("udevadm trigger --action=add /sys/class/{class}/{name}"),
        format!("docker run --device {path} ..."),
    ]
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// What lets this user open nodes also after they were made anew.
fn ownership(set_up: &[&Subchannel], parts: &Parts) -> Option<Check> {
    let mut mdevs = set_up.iter().flat_map(|subchannel| &subchannel.mdevs);
    if !mdevs.any(|mdev| mdev.is_forbidden(parts)) {
        return None;
    }
    let rules = "/etc/udev/rules.d/90-vfio-ccw.rules";
    let found =
        "chown lasts until a node is made anew; a rule gives all nodes of VFIO to this user";
    let rule = format!("echo 'SUBSYSTEM==\"vfio|vfio-dev\", OWNER=\"{}\"' > {rules}", user());
    let reload = "udevadm control --reload && udevadm trigger --action=add -s vfio -s vfio-dev";
    Some(Check::note("ownership", found).remedy(rule).remedy(reload))
}

/// All subchannels of a machine, and what was found.
#[derive(Debug)]
pub(super) struct Subchannels {
    /// One for each that was set up for vfio_ccw, and some for the others.
    pub(super) checks: Vec<Check>,
    /// All of them, for scripts.
    pub(super) json: Vec<Value>,
    /// How many are set up for vfio_ccw.
    pub(super) set_up: usize,
    /// How many of these can be used.
    pub(super) usable: usize,
}

impl Subchannels {
    /// Those below `tree`, where there are `parts`.
    pub(super) fn of(tree: &Tree, parts: &Parts) -> Self {
        let all: Vec<Subchannel> =
            tree.names(BUS).into_iter().filter_map(|id| Subchannel::of(tree, id)).collect();
        let (set_up, others): (Vec<_>, Vec<_>) = all.iter().partition(|it| it.is_set_up());
        let mut checks = vec![overview(tree, &all, &set_up, &others)];
        checks.extend(set_up.iter().map(|subchannel| subchannel.check(parts)));
        checks.extend(ownership(&set_up, parts));
        checks.extend(listed(&others));
        Subchannels {
            checks,
            json: all.iter().map(|subchannel| subchannel.json(parts)).collect(),
            set_up: set_up.len(),
            usable: set_up.iter().filter(|subchannel| subchannel.is_usable(parts)).count(),
        }
    }
}

/// How many there are, and how one is given to vfio_ccw where none is.
fn overview(
    tree: &Tree,
    all: &[Subchannel],
    set_up: &[&Subchannel],
    others: &[&Subchannel],
) -> Check {
    let name = "subchannels";
    if !tree.has(BUS) {
        return Check::missing(name, format!("no {BUS}")).remedy("mount -t sysfs sysfs /sys");
    }
    let with_device = others.iter().filter(|subchannel| subchannel.device.is_some()).count();
    let found = format!(
        "{} for I/O: {} set up for {DRIVER}, {with_device} with a device that others have, {} without",
        all.len(),
        set_up.len(),
        others.len() - with_device
    );
    if !set_up.is_empty() {
        return Check::ok(name, found);
    }
    // What is in use stays where it is.
    let idle = others.iter().find(|subchannel| subchannel.device.is_some() && !subchannel.online);
    match idle {
        Some(idle) => {
            let found = format!("{found}; to give it {}:", idle.device_words());
            idle.to_bind().into_iter().fold(Check::note(name, found), Check::remedy)
        }
        None => Check::note(name, format!("{found}; none of their devices is idle")),
    }
}

/// Those with a device that vfio_ccw has not got.
fn listed(others: &[&Subchannel]) -> Vec<Check> {
    let with_device = others.iter().filter(|subchannel| subchannel.device.is_some());
    let mut checks: Vec<Check> = with_device
        .clone()
        .take(MOST_LISTED)
        .map(|subchannel| {
            let words = subchannel.device_words();
            let driver = subchannel.driver.as_deref().unwrap_or("no driver");
            let own = subchannel.device_driver.as_deref().unwrap_or("no device driver");
            let online = if subchannel.online { "online" } else { "offline" };
            Check::ok(subchannel.id.as_str(), format!("{words}, {driver}, {own}, {online}"))
        })
        .collect();
    let more = with_device.count().saturating_sub(MOST_LISTED);
    if more > 0 {
        checks.push(Check::note("more", format!("{more} others: --json lists them")));
    }
    checks
}

fn is_number(text: &str) -> bool {
    (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether it looks like 0.0.1f3a: channel subsystem, subchannel set, number.
fn is_bus_id(text: &str) -> bool {
    let hex = |part: &str, most: usize| {
        (1..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let parts: Vec<&str> = text.split('.').collect();
    matches!(parts[..], [css, set, number] if hex(css, 2) && hex(set, 1) && number.len() == 4 && hex(number, 4))
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Whether it could be a driver's name; the kernel writes "(null)" for none.
fn is_driver(text: &str) -> bool {
    (1..=40).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

#[cfg(test)]
mod tests;
