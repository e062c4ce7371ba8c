//! `error`: programs that are wrong, and the driver's bounds.

use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, command};

use crate::suite::session::{DATA, Expect, IOVA, Session, hex, iova};

const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;
const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;

/// A command that the device does not know.
const UNKNOWN: u8 = 0xff;

fn nop() -> Ccw {
    Ccw::new(command::NOP, 0, 0).with(SLI)
}

fn chained() -> Ccw {
    nop().with(SLI | CC)
}

fn tic(at: usize) -> Ccw {
    Ccw::new(command::TIC, iova(at), 0)
}

pub fn run(session: &mut Session) {
    session.section("error");
    let unknown = Ccw::new(UNKNOWN, iova(DATA), 1).with(SLI);
    let zeros = Ccw::new(0, 0, 0);
    let sense_id = |flags| Ccw::new(command::SENSE_ID, iova(DATA), 7).with(flags);
    session.run("unknown command", &[unknown], &[]);
    let irb = zerocopy::IntoBytes::as_bytes(&session.irb()).to_vec();
    session.note("its ESW", hex(&irb[12..32]));
    session.note("its ECW", hex(&irb[32..64]));
    let rows: [(&str, &[Ccw]); 11] = [
        ("BASIC SENSE after it", &[Ccw::new(command::SENSE, iova(DATA), 8).with(SLI)]),
        ("command 0", &[Ccw::new(0, iova(DATA), 1).with(SLI)]),
        ("NOP, then an unknown command", &[chained(), unknown, nop()]),
        ("the chain ends in zeros", &[chained(), zeros]),
        ("TIC to itself", &[tic(0)]),
        ("NOP, then TIC to itself", &[chained(), tic(8)]),
        ("TIC to TIC", &[chained(), tic(24), zeros, tic(40), zeros, nop()]),
        (
            "TIC with count and flags",
            &[chained(), Ccw::new(command::TIC, iova(24), 9).with(CC | SLI), zeros, nop()],
        ),
        ("MIDA flag", &[sense_id(SLI | CcwFlags::MODIFIED_INDIRECT)]),
        ("all flags but chaining", &[sense_id(CcwFlags::from_bits_retain(0x3f))]),
        ("start after that", &[nop()]),
    ];
    for (case, program) in rows {
        let sense: &[_] = if case.starts_with("BASIC") { &[(DATA, 10)] } else { &[] };
        session.run(case, program, sense);
    }
    long_chains(session);
    segments(session);
}

fn long_chains(session: &mut Session) {
    for ccws in [255, 256, 257] {
        let mut program = vec![chained(); ccws];
        program[ccws - 1] = nop();
        session.run(&format!("{ccws} CCWs"), &program, &[]);
    }
}

/// Programs of runs of CCWs, each in a page of its own.
fn segments(session: &mut Session) {
    const FIRST: usize = 0x10_0000;
    for count in [2, 15, 16, 17, 130] {
        for index in 0..count - 1 {
            let at = FIRST + index * 0x1000;
            session.put_program(at, &[chained(), tic(at + 0x1000)]);
        }
        session.put_program(FIRST + (count - 1) * 0x1000, &[nop()]);
        let outcome = session.start(Orb::new(iova(FIRST)), Expect::Interrupt);
        session.note(&format!("{count} segments"), outcome);
    }
    assert!(IOVA < iova(FIRST));
    session.works("start after segments");
}
