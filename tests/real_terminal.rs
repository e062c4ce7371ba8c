//! A terminal of the kernel's vfio-ccw: data both ways, and status that nobody has asked for.
//!
//! `tests/s390x` runs this on the real driver with a 3270, at whose other end `tests/s390x/terminal` sits; elsewhere
//! it is SKIPPED.

mod host;

use std::sync::Arc;
use std::time::{Duration, Instant};

use host::{DATA, Guest, INTERFACES, Known, PROGRAM, Ring, UNSOLICITED, builders, devices, tell};
use vfio_ccw::architecture::{Ccw, CcwFlags, DeviceStatus, IrbHead, Scsw, ScswFlags};
use vfio_ccw::backend::kernel::Interface;
use vfio_ccw::{Cc, Delivery, Mode, Service, Subchannel};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;
/// How long anything may take, and how long the terminal may take from one step to the next.
const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(300);

const WRITE: u8 = 0x01;
const ERASE_WRITE: u8 = 0x05;
const READ_MODIFIED: u8 = 0x06;

/// The device, where somebody sits at its other end.
fn terminal() -> Option<(Vec<Known>, std::sync::MutexGuard<'static, ()>)> {
    let (known, turn) = devices()?;
    if std::env::var_os("TERMINAL").is_none() {
        println!("SKIPPED: nobody sits at the terminal; tests/s390x/run terminal sees to that");
        return None;
    }
    let terminal = known.into_iter().filter(|known| known.devno == 0x0040).collect();
    Some((terminal, turn))
}

/// Whether this is status that the device has of its own accord.
fn is_unsolicited(irb: &IrbHead, status: DeviceStatus) -> bool {
    let flags = irb.scsw.flags();
    flags.contains(ScswFlags::ALERT | ScswFlags::STATUS_PENDING)
        && !flags.intersects(ScswFlags::FUNCTION_CONTROL)
        && irb.scsw.device_status() == status
}

/// Whether nobody sits at the terminal: all that a unit check means here.
fn requires_intervention(scsw: &Scsw) -> bool {
    scsw.device_status().contains(DeviceStatus::UNIT_CHECK)
}

/// What round `number` writes, and what its other end answers.
fn screen(number: u8) -> [u8; 10] {
    [0xc3, 0x11, 0x40, 0x40, 0xc8, 0xc5, 0xd3, 0xd3, 0xd6, 0xf0 + number]
}

fn answer(number: u8) -> [u8; 9] {
    [0x7d, 0x40, 0xc1, 0x11, 0x40, 0x40, 0xc1, 0xc2, 0xf0 + number]
}

fn by_ring(number: u8, interface: Interface, mode: Mode, known: &[Known]) {
    let mut ring = Ring::new();
    let (_, builder) = builders().find(|(known, _)| *known == mode).expect("every mode");
    let (guest, subchannels) = Guest::new(interface, builder, known, &ring.delivery);
    let subchannel = &subchannels[0];
    tell(&format!("terminal: connect {number}"));
    guest.write(DATA, &screen(number));
    let write = guest.program(PROGRAM, &[Ccw::new(ERASE_WRITE, DATA, 10).with(SLI)]);
    let patience = Instant::now() + PATIENCE;
    let mut word = Some(ring.next());
    loop {
        if let Some((user_data, irb)) = word {
            assert_eq!(user_data, UNSOLICITED);
            assert!(is_unsolicited(&irb, DeviceStatus::DEVICE_END), "it is there: {irb:?}");
        }
        let irb = ring.run(subchannel, &write);
        if irb.scsw.is_clean_end() {
            break;
        }
        // It comes in steps, and QEMU drops its word of the next while other status is pending.
        assert!(requires_intervention(&irb.scsw) && Instant::now() < patience, "{irb:?}");
        word = ring.next_within(STEP);
    }
    tell(&format!("terminal: written {number}"));
    let (user_data, irb) = ring.next();
    assert_eq!(user_data, UNSOLICITED);
    assert!(is_unsolicited(&irb, DeviceStatus::ATTENTION), "ENTER: {irb:?}");

    guest.write(DATA, &[0xaa; 1000]);
    let read = guest.program(PROGRAM, &[Ccw::new(READ_MODIFIED, DATA, 1000).with(SLI)]);
    let irb = ring.run(subchannel, &read);
    assert!(irb.scsw.is_clean_end(), "{irb:?}");
    assert_eq!(irb.scsw.count(), 991);
    assert_eq!(guest.read(DATA, 9), answer(number));
    assert_eq!(guest.read(DATA + 9, 1), [0xaa]);
    tell(&format!("terminal: done {number}"));
    let (user_data, irb) = ring.next();
    assert_eq!(user_data, UNSOLICITED);
    assert!(is_unsolicited(&irb, DeviceStatus::DEVICE_END), "it has gone: {irb:?}");
    // Without it: intervention required.
    let write = guest.program(PROGRAM, &[Ccw::new(WRITE, DATA, 10).with(SLI)]);
    let irb = ring.run(subchannel, &write);
    assert!(irb.scsw.device_status().contains(DeviceStatus::UNIT_CHECK), "{irb:?}");
    assert_eq!(irb.ecw[0], 0x40);
}

/// As a guest's driver has it: interrupts and TEST SUBCHANNEL.
fn by_instruction(number: u8, interface: Interface, known: &[Known]) {
    let interrupt = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    let delivery = Delivery::interrupt(interrupt.clone());
    let (guest, subchannels) = Guest::new(interface, Service::builder(), known, &delivery);
    let subchannel = &subchannels[0];
    tell(&format!("terminal: connect {number}"));
    guest.write(DATA, &screen(number));
    let write = guest.program(PROGRAM, &[Ccw::new(ERASE_WRITE, DATA, 10).with(SLI)]);
    let patience = Instant::now() + PATIENCE;
    let mut irb = Some(interruption(&interrupt, subchannel));
    loop {
        if let Some(irb) = irb {
            assert!(is_unsolicited(&irb, DeviceStatus::DEVICE_END), "it is there: {irb:?}");
        }
        assert_eq!(subchannel.ssch(&write), Ok(Cc::Cc0));
        assert!(is_told(&interrupt, PATIENCE), "the end of the write");
        // Looked at, and not fetched.
        let scsw = subchannel.stsch().scsw;
        if scsw.is_clean_end() {
            break;
        }
        assert!(requires_intervention(&scsw) && Instant::now() < patience, "{scsw:?}");
        fetch(subchannel);
        irb = is_told(&interrupt, STEP).then(|| fetch(subchannel));
    }
    // Its end stays pending for a while: ENTER is told when that was fetched.
    tell(&format!("terminal: written {number}"));
    std::thread::sleep(Duration::from_millis(1000));
    let irb = fetch(subchannel);
    assert!(irb.scsw.is_clean_end(), "{irb:?}");
    let irb = interruption(&interrupt, subchannel);
    assert!(is_unsolicited(&irb, DeviceStatus::ATTENTION), "ENTER: {irb:?}");
    // HALT and CLEAR where nothing runs go to the device, and each has its interruption.
    assert_eq!(subchannel.hsch(), Cc::Cc0);
    let irb = interruption(&interrupt, subchannel);
    assert!(irb.scsw.flags().contains(ScswFlags::HALT_FUNCTION), "{irb:?}");
    assert_eq!(subchannel.csch(), Cc::Cc0);
    let irb = interruption(&interrupt, subchannel);
    assert!(irb.scsw.flags().contains(ScswFlags::CLEAR_FUNCTION), "{irb:?}");
    let read = guest.program(PROGRAM, &[Ccw::new(READ_MODIFIED, DATA, 1000).with(SLI)]);
    assert_eq!(subchannel.ssch(&read), Ok(Cc::Cc0));
    let irb = interruption(&interrupt, subchannel);
    assert!(irb.scsw.is_clean_end(), "{irb:?}");
    assert_eq!(guest.read(DATA, 9), answer(number));
    tell(&format!("terminal: done {number}"));
    let irb = interruption(&interrupt, subchannel);
    assert!(is_unsolicited(&irb, DeviceStatus::DEVICE_END), "it has gone: {irb:?}");
}

/// Waits for an interruption, and fetches its status.
fn interruption(interrupt: &EventFd, subchannel: &Subchannel) -> IrbHead {
    assert!(is_told(interrupt, PATIENCE), "no interruption in {PATIENCE:?}");
    fetch(subchannel)
}

/// Whether there is an interruption in so much time.
fn is_told(interrupt: &EventFd, patience: Duration) -> bool {
    let begin = Instant::now();
    while interrupt.read().is_err() {
        if begin.elapsed() >= patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// TEST SUBCHANNEL, with status that is pending or about to be.
fn fetch(subchannel: &Subchannel) -> IrbHead {
    let patience = Instant::now() + PATIENCE;
    loop {
        match subchannel.tsch() {
            (Cc::Cc0, irb) => return irb,
            (cc, _) => assert!(cc == Cc::Cc1 && Instant::now() < patience, "{cc:?}"),
        }
    }
}

#[test]
fn a_terminal_is_written_to_and_read_from_and_says_when_a_key_is_pressed() {
    let Some((known, _turn)) = terminal() else { return };
    let mut number = 0;
    for interface in INTERFACES {
        for mode in Mode::ALL {
            by_ring(number, interface, mode, &known);
            number += 1;
        }
        by_instruction(number, interface, &known);
        number += 1;
    }
    tell("terminal: over");
}
