use std::fs;

use super::super::check::Verdict;
use super::super::machine::Machine;
use super::*;

const UUID: &str = Machine::UUID;

fn look(machine: &Machine) -> Subchannels {
    let tree = machine.tree();
    Subchannels::of(&tree, &Parts::of(&tree))
}

/// A machine with one device that vfio_ccw has, ready for use.
fn with_device() -> Machine {
    let machine = Machine::s390x();
    machine.device("0.0.0002", "0.0.0010", "vfio_ccw");
    machine.mdev("0.0.0002", UUID, 7);
    machine
}

/// Asserts that the one device that is set up cannot be used, and gives its check.
#[track_caller]
fn unusable(machine: &Machine) -> Check {
    let found = look(machine);
    assert_eq!((found.set_up, found.usable), (1, 0), "{found:#?}");
    assert_eq!(found.checks[1].verdict, Verdict::Missing, "{found:#?}");
    found.checks[1].clone()
}

/// Makes a node that nobody can open, root included.
fn spoil(machine: &Machine, path: &str) {
    machine.link(path, path.rsplit('/').next().unwrap());
}

#[test]
fn a_bound_device_is_found_with_all_its_names() {
    let found = look(&with_device());
    assert_eq!((found.set_up, found.usable), (1, 1), "{found:#?}");
    let check = &found.checks[1];
    assert_eq!((check.name.as_str(), check.verdict), ("0.0.0002", Verdict::Ok));
    let names = format!("device 0.0.0010, mdev {UUID}, /dev/vfio/7 and /dev/vfio/devices/vfio7");
    assert_eq!(check.found, names);
    let node = |path: &str| json!({ "path": path, "usable": true, "error": null });
    let json = json!({
        "subchannel": "0.0.0002", "device": "0.0.0010", "driver": "vfio_ccw",
        "device_driver": null, "online": false, "usable": true,
        "mdevs": [{
            "uuid": UUID,
            "group": node("/dev/vfio/7"),
            "cdev": node("/dev/vfio/devices/vfio7"),
        }],
    });
    assert_eq!(found.json, [json]);
}

#[test]
fn one_node_of_two_is_enough() {
    for node in ["dev/vfio/7", "dev/vfio/devices/vfio7"] {
        let machine = with_device();
        spoil(&machine, node);
        assert_eq!(look(&machine).usable, 1, "{node}");
    }
    // But not the node of the way to memory that is not there.
    let machine = with_device();
    spoil(&machine, "dev/vfio/7");
    machine.remove("dev/iommu");
    unusable(&machine);
}

#[test]
fn nodes_that_this_user_may_not_open() {
    let machine = with_device();
    spoil(&machine, "dev/vfio/7");
    spoil(&machine, "dev/vfio/devices/vfio7");
    let check = unusable(&machine);
    assert!(check.found.contains("/dev/vfio/7: "), "{check:?}");
    assert_eq!(check.remedy, [format!("chown {} /dev/vfio/7", user())]);
    // Without containers the character device is the way.
    machine.remove("dev/vfio/vfio");
    assert_eq!(unusable(&machine).remedy, [format!("chown {} /dev/vfio/devices/vfio7", user())]);
}

#[test]
fn a_right_that_is_missing_can_be_had_for_good() {
    let denied = |access: Option<io::ErrorKind>| Subchannel {
        id: "0.0.0002".to_owned(),
        device: None,
        driver: Some(DRIVER.to_owned()),
        chosen: None,
        device_driver: None,
        online: false,
        mdevs: vec![Mdev {
            uuid: UUID.to_owned(),
            group: Some(Node {
                path: "/dev/vfio/7".to_owned(),
                access: access.map_or(Ok(()), |kind| Err(kind.into())),
            }),
            cdev: None,
        }],
    };
    let parts = Parts::of(&Machine::s390x().tree());
    let usable = denied(None);
    let forbidden = denied(Some(io::ErrorKind::PermissionDenied));
    let absent = denied(Some(io::ErrorKind::NotFound));
    assert!(ownership(&[&usable, &absent], &parts).is_none());
    let check = ownership(&[&usable, &forbidden], &parts).unwrap();
    assert!(check.remedy[0].contains(&format!("OWNER=\"{}\"", user())), "{check:?}");
    // Where groups cannot be used, a right to one is worth nothing.
    let parts = Parts { groups: false, ..parts };
    assert!(ownership(&[&forbidden], &parts).is_none());
}

#[test]
fn nodes_that_are_not_there() {
    let machine = with_device();
    machine.remove("dev/vfio/7");
    machine.remove("dev/vfio/devices/vfio7");
    let check = unusable(&machine);
    assert_eq!(check.remedy[0], "udevadm trigger --action=add /sys/class/vfio/7");
    assert!(check.remedy[1].contains("--device /dev/vfio/7"), "{check:?}");
}

#[test]
fn a_kernel_without_character_devices_has_groups() {
    let machine = with_device();
    machine.remove("dev/iommu");
    // The name is there, since Linux 6.1, and no node of it.
    machine.remove(&format!("sys/devices/css0/0.0.0002/{UUID}/vfio-dev/vfio7/dev"));
    let found = look(&machine);
    assert_eq!((found.usable, &found.json[0]["mdevs"][0]["cdev"]), (1, &Value::Null));
}

#[test]
fn no_way_to_memory() {
    let machine = with_device();
    machine.remove("dev/iommu");
    machine.remove("dev/vfio/vfio");
    let check = unusable(&machine);
    assert!(check.found.contains("neither type1 nor iommufd"), "{check:?}");
}

#[test]
fn a_bound_device_without_mdev() {
    let machine = Machine::s390x();
    machine.device("0.0.0002", "0.0.0010", "vfio_ccw");
    let check = unusable(&machine);
    let create = "/sys/bus/css/devices/0.0.0002/mdev_supported_types/vfio_ccw-io/create";
    assert_eq!(check.remedy, [format!("cat /proc/sys/kernel/random/uuid > {create}")]);
}

#[test]
fn an_mdev_without_group() {
    let machine = with_device();
    machine.remove(&format!("sys/devices/css0/0.0.0002/{UUID}/iommu_group"));
    machine.remove(&format!("sys/devices/css0/0.0.0002/{UUID}/vfio-dev/vfio7/dev"));
    let check = unusable(&machine);
    assert_eq!(check.remedy, [format!("echo {UUID} > /sys/bus/mdev/drivers/vfio_ccw_mdev/bind")]);
}

#[test]
fn a_device_that_is_meant_for_vfio_ccw_and_is_elsewhere() {
    let machine = Machine::s390x();
    machine.device("0.0.0002", "0.0.0010", "io_subchannel");
    machine.write("sys/devices/css0/0.0.0002/driver_override", "vfio_ccw\n");
    let check = unusable(&machine);
    assert!(check.found.contains("but io_subchannel has it"), "{check:?}");
    assert_eq!(check.remedy[0], "echo 0.0.0002 > /sys/bus/css/devices/0.0.0002/driver/unbind");
    assert_eq!(check.remedy[1], "echo 0.0.0002 > /sys/bus/css/drivers/vfio_ccw/bind");
}

#[test]
fn other_devices_are_listed_and_an_idle_one_can_be_had() {
    let machine = Machine::s390x();
    for (subchannel, device) in [("0.0.0000", "0.0.0001"), ("0.0.0001", "0.0.0002")] {
        machine.device(subchannel, device, "io_subchannel");
        let own = "../../../../bus/ccw/drivers/virtio_ccw";
        machine.link(&format!("sys/devices/css0/{subchannel}/{device}/driver"), own);
    }
    machine.write("sys/devices/css0/0.0.0000/0.0.0001/online", "1\n");
    machine.write("sys/devices/css0/0.0.0001/0.0.0002/online", "0\n");
    let found = look(&machine);
    assert_eq!((found.set_up, found.usable), (0, 0));
    // The first is in use.
    let recipe = [
        "echo vfio_ccw > /sys/bus/css/devices/0.0.0001/driver_override",
        "echo 0.0.0001 > /sys/bus/css/devices/0.0.0001/driver/unbind",
        "echo 0.0.0001 > /sys/bus/css/drivers/vfio_ccw/bind",
        "cat /proc/sys/kernel/random/uuid > /sys/bus/css/devices/0.0.0001/mdev_supported_types/vfio_ccw-io/create",
    ];
    assert_eq!(found.checks[0].remedy, recipe);
    let lines: Vec<&str> = found.checks[1..].iter().map(|check| check.found.as_str()).collect();
    let expected = [
        "device 0.0.0001, io_subchannel, virtio_ccw, online",
        "device 0.0.0002, io_subchannel, virtio_ccw, offline",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn where_all_devices_are_in_use_none_is_offered() {
    let machine = Machine::s390x();
    machine.device("0.0.0000", "0.0.0001", "io_subchannel");
    machine.write("sys/devices/css0/0.0.0000/0.0.0001/online", "1\n");
    let overview = &look(&machine).checks[0];
    assert!(overview.remedy.is_empty() && overview.found.contains("none of their devices is idle"));
}

#[test]
fn of_many_devices_a_few_are_listed_and_scripts_get_all() {
    let machine = Machine::s390x();
    for number in 0..20 {
        let device = format!("0.0.{:04x}", 0x1000 + number);
        machine.device(&format!("0.0.{number:04x}"), &device, "io_subchannel");
    }
    let found = look(&machine);
    assert_eq!((found.json.len(), found.checks.len()), (20, 1 + MOST_LISTED + 1));
    assert_eq!(found.checks.last().unwrap().found, "12 others: --json lists them");
}

#[test]
fn subchannels_for_other_things_do_not_count() {
    let machine = with_device();
    machine.device("0.0.00ff", "none", "chsc_subchannel");
    machine.write("sys/devices/css0/0.0.00ff/type", "1\n");
    machine.device("0.0.00fe", "none", "io_subchannel");
    let found = look(&machine);
    let overview = "2 for I/O: 1 set up for vfio_ccw, 0 with a device that others have, 1 without";
    assert_eq!(found.checks[0].found, overview);
    assert_eq!(found.checks.len(), 2);
}

#[test]
fn older_kernels_do_not_tell_the_device_number() {
    let machine = Machine::s390x();
    machine.device("0.0.0001", "0.0.0009", "io_subchannel");
    machine.remove("sys/devices/css0/0.0.0001/dev_busid");
    machine.folder("sys/devices/css0/0.0.0001/0.0.0009");
    assert_eq!(look(&machine).json[0]["device"], "0.0.0009");
}

#[test]
fn strange_content_does_no_harm_and_gets_into_no_command_line() {
    let evil = "$(reboot)";
    let machine = with_device();
    let folder = "sys/devices/css0/0.0.0002";
    // Names that look like nothing of the kernel's.
    machine.folder("sys/bus/css/devices/defunct");
    machine.link(&format!("sys/bus/css/devices/{evil}"), "../../../devices/css0/0.0.0002");
    machine.link("sys/bus/css/devices/0.0.0bad", "0.0.0bad");
    machine.folder(&format!("{folder}/e78f619d-4ec1-4b7f-b627-`reboot`xxxx"));
    machine.write(&format!("{folder}/dev_busid"), [0xff; 200_000]);
    machine.write(&format!("{folder}/driver_override"), evil);
    machine.link(&format!("{folder}/{UUID}/iommu_group"), &format!("../{evil}"));
    machine.folder(&format!("{folder}/{UUID}/vfio-dev/vfio{evil}"));
    machine.write(&format!("{folder}/{UUID}/vfio-dev/vfio{evil}/dev"), "1:1");
    // A file where a folder should be.
    fs::write(machine.root().join("sys/bus/css/devices/0.0.0003"), "x").unwrap();
    machine.device("0.0.0004", "0.0.0012", evil);

    let found = look(&machine);
    let subchannels: Vec<_> = found.json.iter().map(|json| &json["subchannel"]).collect();
    assert_eq!(subchannels, ["0.0.0002", "0.0.0004"]);
    assert_eq!((found.set_up, found.usable), (1, 1), "the character device will do: {found:#?}");
    assert!(found.checks[1].found.starts_with("no device, mdev"), "{found:#?}");
    assert!(!format!("{found:?}").contains("reboot"), "{found:#?}");
}

#[test]
fn shapes_of_names() {
    assert!(is_bus_id("0.0.1f3a") && is_bus_id("fe.3.0000"));
    for wrong in
        ["", "none", "0.0", "0.0.1", "0.0.00001", "0.0.zzzz", "0.0.0001.1", "../0.0", "0.0.00 1"]
    {
        assert!(!is_bus_id(wrong), "{wrong}");
    }
    assert!(is_uuid(UUID) && !is_uuid(&UUID[1..]) && !is_uuid(&UUID.replace('-', "0")));
    assert!(is_number("0") && !is_number("") && !is_number("-1") && !is_number("12345678901"));
    assert!(is_driver("dasd-eckd") && !is_driver("(null)") && !is_driver("") && !is_driver("a;b"));
}
