//! `io`: programs that run.

use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, OrbFlags, command};
use zerocopy::IntoBytes;

use crate::suite::session::{DATA, Expect, IOVA, MAIN, PART, Session, Shown, hex, iova};

const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;
const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;
const CD: CcwFlags = CcwFlags::CHAIN_DATA;

/// Bytes of SENSE ID as the device gives it.
const WHOLE: u16 = 256;

fn nop() -> Ccw {
    Ccw::new(command::NOP, 0, 0).with(SLI)
}

fn sense_id(count: u16) -> Ccw {
    Ccw::new(command::SENSE_ID, iova(DATA), count)
}

fn tic(at: usize) -> Ccw {
    Ccw::new(command::TIC, iova(at), 0)
}

pub fn run(session: &mut Session) {
    session.section("io");
    let stray = Ccw::new(0xff, iova(DATA), 1);
    let head: Shown<'_> = &[(DATA, 8)];
    let rows: [(&str, &[Ccw], Shown<'_>); 17] = [
        ("NOP", &[nop()], &[]),
        ("NOP, count 1, SLI", &[Ccw::new(command::NOP, iova(DATA), 1).with(SLI)], &[]),
        ("NOP, count 1", &[Ccw::new(command::NOP, iova(DATA), 1)], &[]),
        ("SENSE ID, all", &[sense_id(WHOLE)], &[(DATA, 8), (DATA + 248, 16)]),
        ("SENSE ID, short, SLI", &[sense_id(4).with(SLI)], head),
        ("SENSE ID, short", &[sense_id(4)], head),
        ("SENSE ID, long", &[sense_id(300)], head),
        ("SENSE ID, long, SLI", &[sense_id(300).with(SLI)], &[(DATA + 248, 16)]),
        ("SENSE ID, count 0, SLI", &[sense_id(0).with(SLI)], head),
        ("SENSE ID, SKIP", &[sense_id(7).with(SLI | CcwFlags::SKIP)], head),
        ("BASIC SENSE", &[Ccw::new(command::SENSE, iova(DATA), 32).with(SLI)], &[(DATA, 34)]),
        ("NOP chained to SENSE ID", &[nop().with(SLI | CC), sense_id(7).with(SLI)], head),
        ("TIC over a CCW", &[nop().with(SLI | CC), tic(24), stray, sense_id(7).with(SLI)], head),
        // With one CCW behind it the driver may take its address for that of the TIC: a copy of 8 bytes
        // beside another one (`cp_update_scsw`).
        ("TIC first", &[tic(16), stray, nop().with(SLI | CC), nop()], &[]),
        (
            "PCI flag",
            &[nop().with(SLI | CC | CcwFlags::PROGRAM_CONTROLLED), sense_id(7).with(SLI)],
            head,
        ),
        (
            "suspend flag without suspend control",
            &[nop().with(SLI | CC), sense_id(7).with(SLI | CcwFlags::SUSPEND)],
            head,
        ),
        ("start after that", &[nop()], &[]),
    ];
    for (case, program, data) in rows {
        session.run(case, program, data);
    }
    let part = |index: usize, count| Ccw::new(command::SENSE_ID, iova(DATA + index * 0x200), count);
    session.run(
        "SENSE ID, data chained",
        &[part(0, 2).with(CD | SLI), part(1, 2).with(CD | SLI), part(2, 252)],
        &[(DATA, 3), (DATA + 0x200, 3), (DATA + 0x400, 3)],
    );
    session.run("count 65535, SLI", &[sense_id(65_535).with(SLI)], &[]);
    session.put_program(0x800, &[sense_id(7).with(SLI)]);
    session.run("TIC to another segment", &[nop().with(SLI | CC), tic(0x800)], head);
    orbs(session);
    format_0(session);
    irb(session);
}

/// What may stand in an ORB.
fn orbs(session: &mut Session) {
    let orb = Orb::new(IOVA);
    let with = |flags| orb.with_flags(orb.flags() | flags);
    for (case, orb) in [
        ("ORB without prefetch", orb.with_flags(orb.flags() - OrbFlags::PREFETCH)),
        ("ORB, no path", orb.with_lpm(0)),
        ("ORB, all paths", orb.with_lpm(0xff)),
        ("ORB, key 15", orb.with_key(15)),
        ("ORB, initial status", with(OrbFlags::INITIAL_STATUS)),
        ("ORB, streaming", with(OrbFlags::STREAMING)),
        ("ORB, extension", with(OrbFlags::EXTENSION)),
        ("ORB, suppressed length", with(OrbFlags::SUPPRESS_LENGTH)),
        ("ORB, transport mode", with(OrbFlags::TRANSPORT_MODE)),
        ("ORB after that", orb),
    ] {
        session.run_with(case, orb, &[sense_id(7).with(SLI)], &[(DATA, 8)]);
    }
}

/// Format-0 programs have 24-bit addresses.
fn format_0(session: &mut Session) {
    const LOW: u32 = 0x20_0000;
    session.target.map(LOW.into(), MAIN, PART, 3).unwrap();
    let sense_id = Ccw::new(command::SENSE_ID, LOW + 0x2000, 7).with(SLI);
    let nop = Ccw::new(command::NOP, LOW + 0x2000, 1).with(SLI | CC);
    session.put(MAIN, &nop.to_format_0());
    session.put(MAIN + 8, &Ccw::new(command::TIC, LOW + 0x100, 0).to_format_0());
    session.put(MAIN + 0x100, &sense_id.to_format_0());
    session.put(MAIN + 0x2000, &[0xaa; 16]);
    let flags = Orb::new(0).flags() - OrbFlags::FORMAT_1;
    let orb = Orb::new(LOW).with_flags(flags);
    session.start_showing("format 0: NOP, TIC, SENSE ID", orb, &[(MAIN + 0x2000, 8)]);
    session.put_program(MAIN, &[sense_id]);
    session.start_showing("format 0, and CCWs are format 1", orb, &[(MAIN + 0x2000, 8)]);
    session.target.unmap(LOW.into(), PART as u64).unwrap();
}

/// What the interrupt stores, byte for byte.
fn irb(session: &mut Session) {
    session.put_program(0, &[sense_id(WHOLE)]);
    let orb = Orb::new(IOVA).with_key(9);
    session.start(orb, Expect::Interrupt);
    let irb = session.irb();
    session.note("IRB, word 0 of the SCSW", hex(&irb.as_bytes()[..4]));
    session.note("IRB, ESW", hex(irb.head.esw.as_bytes()));
    session.note("IRB, ECW and EMW", hex(&irb.as_bytes()[32..]));
    let schib = session.schib().schib;
    let bytes = schib.scsw.as_bytes();
    let cpa = schib.scsw.cpa().wrapping_sub(IOVA);
    // The driver shows where its own copy of the program is.
    session.note("SCHIB then, SCSW", format!("{} {}", hex(&bytes[..4]), hex(&bytes[8..])));
    session.note("SCHIB then, CCW address", if cpa == 8 { "+8" } else { "not in the program" });
}
