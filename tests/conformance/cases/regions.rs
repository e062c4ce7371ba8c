//! `regions`: reading and writing them, bounds, and what a write is.

use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, Scsw, ScswFlags, command};
use vfio_ccw::backend::{IoRegion, Irq};
use zerocopy::IntoBytes;

use crate::suite::session::{Expect, IOVA, Session, hex};
use crate::suite::target::show;

pub fn run(session: &mut Session) {
    session.section("regions");
    reads(session);
    writes(session);
    starts(session);
    without_start(session);
}

fn reads(session: &mut Session) {
    for (offset, len) in [
        (0, 124),
        (0, 125),
        (24, 96),
        (120, 4),
        (1, 1),
        (124, 0),
        (124, 1),
        (0x3ff, 1),
        (0x400, 8),
        (0x400, 9),
        (0x404, 4),
        (0x800, 52),
        (0x800, 53),
        (0xc00, 8),
        (0xc00, 9),
        (0xc00, 4),
        (0x1000, 4),
        (1 << 40, 4),
    ] {
        let mut bytes = vec![0; len];
        let read = session.target.read(offset, &mut bytes);
        session.note(&format!("read {offset:#x}+{len}"), show(&read));
    }
    let mut bytes = [0xff; 8];
    let read = session.target.read(0xc00, &mut bytes);
    session.note("read the CRW region, no report", format!("{} {}", show(&read), hex(&bytes)));
    // The interruption parameter is the driver's own; which path was last used depends on what ran before.
    let mut schib = session.schib().schib;
    schib.pmcw.lpum = 0;
    session.note("read the SCHIB region, PMCW", hex(&schib.as_bytes()[4..28]));
}

fn writes(session: &mut Session) {
    for (offset, len) in [(0x800, 52), (0xc00, 8), (0x1000, 4), (0, 125), (121, 4), (0x400, 9)] {
        let written = session.target.write(offset, &vec![0; len]);
        let interrupts = session.interrupts(Irq::Io, Expect::Silence);
        session.note(
            &format!("write {offset:#x}+{len}"),
            format!("{} irq {interrupts}", show(&written)),
        );
    }
}

fn nop(session: &mut Session) -> IoRegion {
    session.put_program(0, &[Ccw::new(command::NOP, 0, 0).with(CcwFlags::SUPPRESS_LENGTH)]);
    IoRegion::start(Orb::new(IOVA).with_intparm(0x1234_5678))
}

/// Every write to the I/O region is a start.
fn starts(session: &mut Session) {
    let whole = nop(session);
    let mut written = |case: &str, offset: usize, bytes: &[u8]| {
        let outcome = session.write(offset as u64, bytes, Expect::Interrupt);
        session.note(case, outcome);
    };
    let bytes = whole.as_bytes();
    written("write all", 0, bytes);
    written("write ORB and SCSW", 0, &bytes[..24]);
    written("write the ORB", 0, &bytes[..12]);
    written("write the SCSW", 12, &bytes[12..24]);
    written("write a byte", 23, &bytes[23..24]);
    written("write nothing", 0, &[]);
    written("write nothing at the end", 124, &[]);
    written("write ret_code alone", 120, &(-5i32).to_ne_bytes());
    let mut region = whole;
    region.ret_code.set(-77);
    written("write ret_code, too", 0, region.as_bytes());
    region = whole;
    region.irb.head.ecw = [0xee; 32];
    region.irb.emw = [0xee; 32];
    written("write an IRB, too", 0, region.as_bytes());
    region.scsw = Scsw::new(ScswFlags::START_FUNCTION | ScswFlags::HALT_FUNCTION);
    written("write START and HALT", 0, region.as_bytes());
    let io = session.io();
    session.note("read back ORB and SCSW", hex(&io.as_bytes()[..24]));
    session.note("read back the IRB behind its SCSW", hex(&io.irb.as_bytes()[12..]));
}

/// And is none, where it does not ask for it.
fn without_start(session: &mut Session) {
    let mut region = nop(session);
    let mut written = |case: &str, region: &IoRegion| {
        let outcome = session.write(0, region.as_bytes(), Expect::Silence);
        session.note(case, outcome);
    };
    region.irb.head.ecw = [0xdd; 32];
    region.scsw = Scsw::default();
    for left in [0, -77, 77, 3000] {
        region.ret_code.set(left);
        written(&format!("no function, ret_code {left}"), &region);
    }
    for (case, function) in [
        ("HALT", ScswFlags::HALT_FUNCTION),
        ("CLEAR", ScswFlags::CLEAR_FUNCTION),
        ("HALT and CLEAR", ScswFlags::HALT_FUNCTION | ScswFlags::CLEAR_FUNCTION),
    ] {
        region.scsw = Scsw::new(function);
        written(case, &region);
    }
    let io = session.io();
    session.note("refused, and read back", hex(&io.irb.head.ecw));
    session.works("start after that");
}
