//! `ioctls`: what the device says of itself, SET_IRQS, windows.

use vfio_ccw::backend::{Irq, IrqSet, IrqSetFlags};

use crate::suite::session::{Expect, MAIN, PART, Session, trigger};
use crate::suite::target::{CLOSED, Signal, done, show};

pub fn run(session: &mut Session) {
    session.section("ioctls");
    information(session);
    interrupts(session);
    windows(session);
    let reset = session.target.reset();
    session.note("reset", done(&reset));
    let unknown = session.target.unknown_ioctl();
    session.note("unknown ioctl", done(&unknown));
}

fn information(session: &mut Session) {
    let info = session.target.info().map(|info| {
        format!("flags {:#x} regions {} irqs {}", info.flags, info.num_regions, info.num_irqs)
    });
    session.note("device info", show(&info));
    for (index, argsz) in
        [(0, 64), (1, 64), (2, 64), (3, 64), (4, 64), (u32::MAX, 64), (1, 32), (1, 47), (0, 16)]
    {
        let info = session.target.region_info(index, argsz).map(|info| {
            let kind = info.capability;
            format!(
                "argsz {} flags {:#x} size {} offset {:#x} cap {} id {} ver {} next {} type {} subtype {}",
                info.argsz,
                info.flags,
                info.size,
                info.offset,
                info.cap_offset,
                kind.id,
                kind.version,
                kind.next,
                kind.kind,
                kind.subtype
            )
        });
        session.note(&format!("region {index:#x} argsz {argsz}"), show(&info));
    }
    for index in [0, 1, 2, 3] {
        let info = session.target.irq_info(index);
        let info = info.map(|info| format!("flags {:#x} count {}", info.flags, info.count));
        session.note(&format!("irq {index}"), show(&info));
    }
}

fn interrupts(session: &mut Session) {
    let eventfd = trigger(IrqSetFlags::DATA_EVENTFD, 0);
    let none = trigger(IrqSetFlags::DATA_NONE, 0);
    let byte = trigger(IrqSetFlags::DATA_BOOL, 0);
    for index in [0, 1, 2, 3] {
        let set = session.set_own(&IrqSet { index, ..eventfd }, 0);
        session.note(&format!("eventfd of irq {index}"), done(&set));
    }
    session.connect();
    let mask = IrqSet { flags: 1 | IrqSetFlags::ACTION_MASK.bits(), ..none };
    let rows = [
        ("eventfd off", eventfd, Signal::Number(-1)),
        ("trigger without an eventfd", none, Signal::None),
        ("eventfd -2", eventfd, Signal::Number(-2)),
        ("eventfd closed", eventfd, Signal::Number(CLOSED)),
    ];
    for (case, set, signal) in rows {
        answer(session, case, &set, signal);
    }
    let file = std::fs::File::open("/dev/null").unwrap().into();
    answer(session, "eventfd that is none", &eventfd, Signal::Descriptor(&file));
    let again = session.set_own(&eventfd, 0);
    session.note("eventfd on again", done(&again));
    let rows = [
        ("trigger", none, Signal::None),
        ("trigger, count 0", IrqSet { count: 0, ..none }, Signal::None),
        ("trigger again", none, Signal::None),
        ("trigger by 1", byte, Signal::Bool(1)),
        ("trigger by 0", byte, Signal::Bool(0)),
        ("mask", mask, Signal::None),
        ("no action", IrqSet { flags: 1, ..none }, Signal::None),
        ("two kinds of data", IrqSet { flags: 3 | 32, ..none }, Signal::Bool(1)),
        ("unknown flag", IrqSet { flags: 1 | 32 | 64, ..none }, Signal::None),
        ("start 1", IrqSet { start: 1, ..none }, Signal::None),
        ("count 2", IrqSet { count: 2, ..none }, Signal::None),
        ("start and count wrap", IrqSet { start: u32::MAX, ..none }, Signal::None),
    ];
    for (case, set, signal) in rows {
        answer(session, case, &set, signal);
    }
    // One of them may have taken an eventfd away.
    session.connect();
}

/// What SET_IRQS gives, and how often it signals.
fn answer(session: &mut Session, case: &str, set: &IrqSet, signal: Signal<'_>) {
    let answer = session.target.set_irqs(set, signal);
    let signalled = session.interrupts(Irq::Io, Expect::Silence);
    session.note(case, format!("{} irq {signalled}", done(&answer)));
}

fn windows(session: &mut Session) {
    const AT: u64 = 0x3000_0000;
    let rows = [
        ("map", AT, MAIN, PART, 3),
        ("map the same again", AT, MAIN, PART, 3),
        ("map over its end", AT + 0x8000, MAIN, PART, 3),
        ("map over its start", AT - 0x8000, MAIN, PART, 3),
        ("map, iova odd", AT + 0x10_0010, MAIN, 0x1000, 3),
        ("map, size odd", AT + 0x10_0000, MAIN, 0x800, 3),
        ("map, address odd", AT + 0x10_0000, MAIN + 16, 0x1000, 3),
        ("map nothing", AT + 0x10_0000, MAIN, 0, 3),
        ("map for nothing", AT + 0x10_0000, MAIN, 0x1000, 0),
        ("map at 0", 0, MAIN, 0x1000, 3),
        ("map at 4 GiB", 1 << 32, MAIN, 0x1000, 3),
        ("map, iova wraps", u64::MAX - 0xfff, MAIN, 0x2000, 3),
        ("map the second half", AT + PART as u64, MAIN, PART, 3),
    ];
    for (case, iova, at, len, access) in rows {
        let mapped = session.target.map(iova, at, len, access);
        session.note(case, done(&mapped));
    }
    let rows = [
        ("unmap half of a window", AT, 0x8000),
        ("unmap one and a half", AT, 0x1_8000),
        ("unmap, iova odd", AT + 16, 0x1000),
        ("unmap, size odd", AT, 0x800),
        ("unmap of size 0", AT, 0),
        ("unmap, iova wraps", u64::MAX - 0xfff, 0x2000),
        ("unmap where nothing is", 0x4000_0000, 0x1000),
        ("unmap two windows", AT, 0x2_0000),
        ("unmap at 0", 0, 0x1000),
        ("unmap at 4 GiB", 1 << 32, 0x1000),
    ];
    for (case, iova, len) in rows {
        let unmapped = session.target.unmap(iova, len).map(|bytes| format!("{bytes:#x}"));
        session.note(case, show(&unmapped));
    }
}
