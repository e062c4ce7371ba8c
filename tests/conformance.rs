//! One suite for what answers as a vfio-ccw device: Linux's driver, through type1 containers and through
//! iommufd, the in-process device, and the same device behind a vfio-user server.
//!
//! The cases (`conformance/cases/`) make one line each. What Linux's driver gave stands in
//! `conformance/linux-6.12.txt` and `linux-6.12-iommufd.txt`, and it must give that again; where another one
//! gives something else, `docs/DIFFERENCES.md` says so, with both lines and the reason.
//!
//! `tests/s390x/run conformance` runs this beside devices of the real driver, and says so with
//! `REAL_DEVICES`: then nothing may be missing. Elsewhere the driver's part is SKIPPED. With
//! `CONFORMANCE_WRITE=FOLDER` the driver's lines are written there instead of compared.

mod plain_client;
#[path = "conformance/mod.rs"]
mod suite;

use suite::differences::{Table, unlisted};
use suite::driver::{Driver, Memory};
use suite::lines::Lines;
use suite::session::Session;
use suite::{cases, in_process::InProcess, remote::Remote};

/// What Linux's driver gives, with a type1v2 container and with iommufd.
const TYPE1: &str = include_str!("conformance/linux-6.12.txt");
const IOMMUFD: &str = include_str!("conformance/linux-6.12-iommufd.txt");

/// The lists of differences.
const DIFFERENCES: &str = include_str!("../docs/DIFFERENCES.md");

/// The lines of the in-process device against those of the driver.
#[test]
fn the_in_process_device_differs_as_listed() {
    let mut session = Session::new(InProcess::open);
    cases::all(&mut session);
    let table = Table::read(DIFFERENCES, "The in-process device");
    let problems = unlisted(&Lines::read(TYPE1), &session.into_lines(), &table);
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The lines of a device behind a vfio-user server against those of the driver. It is the in-process device
/// there, so that its list is about the way to it.
#[test]
fn the_remote_device_differs_as_listed() {
    let mut session = Session::new(Remote::open);
    cases::all(&mut session);
    let device = Table::read(DIFFERENCES, "The in-process device");
    let table = device.overlaid(Table::read(DIFFERENCES, "The remote device"));
    let problems = unlisted(&Lines::read(TYPE1), &session.into_lines(), &table);
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The driver's two kinds of memory, as they were found.
#[test]
fn iommufd_differs_from_type1_as_listed() {
    let table = Table::read(DIFFERENCES, "iommufd");
    let type1 = Lines::read(TYPE1).without(cases::MARKING);
    let problems = unlisted(&type1, &Lines::read(IOMMUFD), &table);
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The driver itself. One test: there is one device.
#[test]
fn the_driver_gives_what_it_gave() {
    // Type1 last: a start without a path leaves its mark in QEMU's subchannel for good.
    for (memory, golden, file) in [
        (Memory::Iommufd, IOMMUFD, "linux-6.12-iommufd.txt"),
        (Memory::Type1, TYPE1, "linux-6.12.txt"),
    ] {
        if let Some(missing) = Driver::missing() {
            assert!(std::env::var_os("REAL_DEVICES").is_none(), "{missing}");
            println!("SKIPPED: {missing}");
            return;
        }
        let mut session = Session::new(|map| Driver::open(map, memory));
        cases::repeatable(&mut session);
        if memory == Memory::Type1 {
            cases::marking(&mut session);
        }
        let lines = session.into_lines();
        if let Some(folder) = std::env::var_os("CONFORMANCE_WRITE") {
            let path = std::path::Path::new(&folder).join(file);
            std::fs::write(&path, lines.to_string()).expect("a folder to write to");
            continue;
        }
        let problems = unlisted(&Lines::read(golden), &lines, &Table::default());
        assert!(problems.is_empty(), "{memory:?}\n{}", problems.join("\n"));
    }
}
