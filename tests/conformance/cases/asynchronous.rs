//! `async`: HALT and CLEAR SUBCHANNEL with nothing in flight, and what else stands in their region.

use vfio_ccw::architecture::{Ccw, Orb, command};
use vfio_ccw::backend::IrqSetFlags;

use crate::suite::session::{Expect, IOVA, Session, trigger};
use crate::suite::target::{Signal, done};

pub fn run(session: &mut Session) {
    session.section("async");
    let region = |command: u32| {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&command.to_ne_bytes());
        bytes
    };
    for (case, command) in [("HALT", 1), ("HALT again", 1), ("CLEAR", 2), ("CLEAR again", 2)] {
        let outcome = session.function(&region(command), Expect::Interrupt);
        session.note(case, outcome);
        session.works(&format!("start after {case}"));
    }
    for command in [0, 3, 4, u32::MAX] {
        let outcome = session.function(&region(command), Expect::Silence);
        session.note(&format!("command {command:#x}"), outcome);
    }
    let outcome = session.function(&1u32.to_ne_bytes(), Expect::Interrupt);
    session.note("HALT, 4 bytes", outcome);
    for ret_code in [0, -5] {
        let outcome = session.write((1 << 10) + 4, &i32::to_ne_bytes(ret_code), Expect::Interrupt);
        session.note(&format!("ret_code {ret_code} alone"), outcome);
    }
    let outcome = session.write(1 << 10, &[], Expect::Interrupt);
    session.note("nothing", outcome);
    session.works("start after that");
    let reset = session.target.reset();
    session.note("reset", done(&reset));
    session.works("start after reset");
    let off = trigger(IrqSetFlags::DATA_EVENTFD, 0);
    session.target.set_irqs(&off, Signal::Number(-1)).unwrap();
    session.put_program(0, &[Ccw::new(command::NOP, 0, 0)]);
    let outcome = session.start(Orb::new(IOVA), Expect::Silence);
    session.note("start without an eventfd", format!("{outcome} {}", outcome.status()));
    session.connect();
    session.works("start with an eventfd again");
}
