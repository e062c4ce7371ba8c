//! The whole pipeline on devices of the kernel's vfio-ccw: rings, translation to a shadow, windows, eventfd.
//!
//! `tests/s390x` runs this where the driver has a virtio-rng, a virtio-blk, a virtio-net and a 3270, and says so
//! with `REAL_DEVICES`. Elsewhere the tests are SKIPPED.

mod host;

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use host::{DATA, Guest, INTERFACES, Known, PROGRAM, Ring, builders, devices, sense_id};
use vfio_ccw::architecture::{Ccw, CcwFlags, Orb};
use vfio_ccw::backend::kernel::{AddressSpace, Location};
use vfio_ccw::{AttachError, DeviceSpec, SaveError, Service, Subchannel};
use vfio_ccw_metrics::DeviceClass;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;

/// Types in what SENSE ID says: control unit, and its model.
fn identity(devno: u16) -> [u8; 4] {
    match devno {
        0x0010 => [0xff, 0x38, 0x32, 4],
        0x0020 => [0xff, 0x38, 0x32, 2],
        0x0030 => [0xff, 0x38, 0x32, 1],
        0x0040 => [0xff, 0x32, 0x70, 0],
        _ => panic!("device {devno:04x} is not known"),
    }
}

/// Runs `test` with every interface and every mode.
fn everywhere(test: impl Fn(&Guest, &[Subchannel], &[Known], &mut Ring)) {
    let Some((known, _turn)) = devices() else { return };
    for interface in INTERFACES {
        for (mode, builder) in builders() {
            println!("{interface}, {mode}");
            let mut ring = Ring::new();
            let (guest, subchannels) = Guest::new(interface, builder, &known, &ring.delivery);
            test(&guest, &subchannels, &known, &mut ring);
        }
    }
}

#[test]
fn devices_say_what_they_are() {
    everywhere(|guest, subchannels, known, ring| {
        for (subchannel, known) in subchannels.iter().zip(known) {
            guest.write(DATA, &[0xaa; 16]);
            let orb = guest.program(PROGRAM, &[sense_id()]);
            let irb = ring.run(subchannel, &orb);
            assert!(irb.scsw.is_clean_end(), "{known:?}: {irb:?}");
            assert_eq!(irb.scsw.cpa(), PROGRAM + 8);
            assert_eq!(guest.read(DATA, 4)[..3], identity(known.devno)[..3]);
            if known.devno != 0x0040 {
                assert_eq!(guest.read(DATA, 4), identity(known.devno));
            }
            assert_eq!(guest.read(DATA + 7, 1), [0xaa], "seven bytes, no more");
            assert_eq!(subchannel.stsch().pmcw.devno.get(), known.devno);
        }
    });
}

#[test]
fn virtio_control_commands_go_both_ways() {
    everywhere(|guest, subchannels, known, ring| {
        let virtio = subchannels.iter().zip(known).filter(|(_, known)| known.devno < 0x0040);
        for (subchannel, known) in virtio {
            // SET VIRTIO REVISION 2; reset; status ACKNOWLEDGE and DRIVER; feature VERSION_1 (bit 32).
            guest.write(DATA, &[0, 2, 0, 0]);
            guest.write(DATA + 0x100, &[3]);
            guest.write(DATA + 0x200, &[1, 0, 0, 0, 1]);
            let orb = guest.program(
                PROGRAM,
                &[
                    Ccw::new(0x83, DATA, 4),
                    Ccw::new(0x33, 0, 0),
                    Ccw::new(0x31, DATA + 0x100, 1),
                    Ccw::new(0x11, DATA + 0x200, 5),
                ],
            );
            let irb = ring.run(subchannel, &orb);
            assert!(irb.scsw.is_clean_end(), "{known:?}: {irb:?}");
            assert_eq!(irb.scsw.cpa(), PROGRAM + 32);
            // Features, 32 to 63: what is written is which, and VERSION_1 (bit 32) is among them.
            guest.write(DATA, &[0, 0, 0, 0, 1]);
            let orb = guest.program(PROGRAM, &[Ccw::new(0x12, DATA, 5)]);
            let irb = ring.run(subchannel, &orb);
            assert!(irb.scsw.is_clean_end(), "{known:?}: {irb:?}");
            assert_eq!(guest.read(DATA, 1)[0] & 1, 1, "little-endian, {:?}", guest.read(DATA, 5));
            // The first queue has places.
            guest.write(DATA, &[0; 4]);
            let orb = guest.program(PROGRAM, &[Ccw::new(0x32, DATA, 4)]);
            assert!(ring.run(subchannel, &orb).scsw.is_clean_end());
            assert_ne!(guest.read(DATA + 2, 2), [0, 0]);
            // What is configured, over an IDAL.
            guest.write(DATA, &[0xaa; 64]);
            guest.write(PROGRAM + 0x100, &u64::from(DATA).to_be_bytes());
            let config = Ccw::new(0x22, PROGRAM + 0x100, 64).with(SLI | CcwFlags::INDIRECT);
            let orb = guest.program(PROGRAM, &[config]);
            let irb = ring.run(subchannel, &orb);
            assert!(irb.scsw.is_clean_end(), "{known:?}: {irb:?}");
            match known.devno {
                0x0020 => {
                    assert_eq!(guest.read(DATA, 8), (8u64 << 11).to_le_bytes(), "8 MiB in sectors")
                }
                0x0030 => assert_eq!(guest.read(DATA, 6), [0x52, 0x54, 0, 0x12, 0x34, 0x56], "MAC"),
                _ => {}
            }
        }
    });
}

#[test]
fn what_cannot_run_ends_as_on_any_channel() {
    everywhere(|guest, subchannels, _known, ring| {
        let subchannel = &subchannels[0];
        // An unknown command: unit check with concurrent sense, command reject.
        let orb = guest.program(PROGRAM, &[Ccw::new(0xc3, DATA, 4).with(SLI)]);
        let irb = ring.run(subchannel, &orb);
        assert!(irb.scsw.device_status().bits() & 0x02 != 0, "{irb:?}");
        // (QEMU counts sense bytes in another place of the ERW than Linux reads them from.)
        assert_eq!(irb.ecw[0], 0x80);
        // Data behind the guest's memory: the driver never sees it.
        let orb = guest.program(PROGRAM, &[Ccw::new(0xe4, 0x7000_0000, 7).with(SLI)]);
        let irb = ring.run(subchannel, &orb);
        assert_eq!(irb.scsw.subchannel_status().bits(), 0x20, "program check: {irb:?}");
        assert_eq!(irb.scsw.cpa(), PROGRAM + 8);
        // A program that lies where there is nothing.
        let irb = ring.run(subchannel, &Orb::new(0x7000_0000));
        assert_eq!(irb.scsw.subchannel_status().bits(), 0x20, "{irb:?}");
        // The driver's limits are nobody's: 1,000 CCWs, the last in the last doubleword of memory.
        let mut ccws = vec![Ccw::new(0x03, 0, 0).with(SLI); 999];
        ccws.push(sense_id());
        let at = host::MEMORY as u32 - 8000;
        let irb = ring.run(subchannel, &guest.program(at, &ccws));
        assert!(irb.scsw.is_clean_end(), "{irb:?}");
        assert_eq!(irb.scsw.cpa(), host::MEMORY as u32);
        // And after all that a good one.
        let irb = ring.run(subchannel, &guest.program(PROGRAM, &[sense_id()]));
        assert!(irb.scsw.is_clean_end(), "{irb:?}");
    });
}

#[test]
fn a_device_is_found_by_any_of_its_names() {
    let Some((known, _turn)) = devices() else { return };
    let known = &known[1];
    let number = known.group.strip_prefix("/dev/vfio/").expect("a node of VFIO");
    let names = [
        known.subchannel.clone(),
        known.uuid.clone(),
        format!("{number}:{}", known.uuid),
        format!("{}:{}", known.group, known.uuid),
        known.cdev.clone(),
        format!("/sys/bus/mdev/devices/{}", known.uuid),
        format!("/sys/devices/css0/{}/{}", known.subchannel, known.uuid),
    ];
    for name in names {
        let location = Location::find(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(location.subchannel, known.subchannel);
        assert_eq!(location.uuid, known.uuid);
        assert_eq!(location.group.as_deref(), Some(known.group.as_ref()));
        assert_eq!(location.cdev.as_deref(), Some(known.cdev.as_ref()));
    }
    let console = fs::read_link("/sys/bus/ccw/devices/0.0.0001").expect("the console's device");
    let subchannel = console.parent().and_then(|path| path.file_name()).expect("its subchannel");
    let error = Location::find(&subchannel.to_string_lossy()).unwrap_err().to_string();
    assert!(error.contains("io_subchannel's") && error.contains("driver_override"), "{error}");
}

#[test]
fn open_descriptors_are_taken_over() {
    let Some((known, _turn)) = devices() else { return };
    for interface in INTERFACES {
        let space = AddressSpace::new(interface).expect("the kernel offers it");
        let opened = space.open(&known[0].location()).expect("opens");
        // What a VMM would hand over: the device's file, and nothing that says where it is.
        let adopted = space.adopt(opened.as_fd().try_clone_to_owned().expect("a descriptor"));
        let adopted = adopted.expect("a device of VFIO");
        assert!(adopted.location().is_none() && adopted.class() == DeviceClass::Other);
        let mut ring = Ring::new();
        let (guest, subchannel) = Guest::with_device(space, adopted, &ring.delivery);
        let irb = ring.run(&subchannel, &guest.program(PROGRAM, &[sense_id()]));
        assert!(irb.scsw.is_clean_end(), "{irb:?}");
        assert_eq!(guest.read(DATA, 3), identity(known[0].devno)[..3]);
        drop((subchannel, guest));
        drop(opened);
        let error = AddressSpace::new(interface)
            .expect("offered")
            .adopt(fs::File::open("/dev/null").expect("there is one").into());
        assert!(error.unwrap_err().to_string().contains("did not say what it is"));
    }
}

#[test]
fn a_device_belongs_to_one_service_and_cannot_be_saved() {
    let Some((known, _turn)) = devices() else { return };
    let ring = Ring::new();
    let space = AddressSpace::container().expect("the kernel offers it");
    let device = space.open(&known[0].location()).expect("opens");
    let busy = AddressSpace::iommufd().expect("offered").open(&known[0].location()).unwrap_err();
    assert!(
        busy.to_string().contains("cannot be opened") || busy.to_string().contains("busy"),
        "{busy}"
    );
    let (guest, subchannel) = Guest::with_device(space, device, &ring.delivery);
    let other = AddressSpace::container().expect("the kernel offers it");
    let stranger = other.open(&known[1].location()).expect("opens");
    let spec = DeviceSpec::kernel(stranger);
    let error = guest.service.attach(spec.clone(), ring.delivery.clone()).unwrap_err();
    assert!(matches!(error, AttachError::OtherAddressSpace), "{error}");
    let mine = guest.service.address_space().expect("it has one");
    let second = DeviceSpec::kernel(mine.open(&known[2].location()).expect("opens"));
    let attached = guest.service.attach(second.clone(), ring.delivery.clone()).expect("attaches");
    let error = guest.service.attach(second, ring.delivery.clone()).unwrap_err();
    assert!(matches!(error, AttachError::AttachedBefore), "{error}");
    guest.service.quiesce(Duration::from_secs(10)).expect("nothing runs");
    let error = guest.service.save().unwrap_err();
    assert!(
        matches!(error, SaveError::Host { number } if number == subchannel.number()),
        "{error}"
    );
    guest.service.resume();
    drop((attached, spec));
}

#[test]
fn a_container_without_a_device_cannot_be_built_on() {
    let Some((_known, _turn)) = devices() else { return };
    let space = AddressSpace::container().expect("the kernel offers it");
    let memory =
        Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let error = Service::builder().address_space(space).build(memory).unwrap_err().to_string();
    assert!(error.contains("has no IOMMU"), "{error}");
}
