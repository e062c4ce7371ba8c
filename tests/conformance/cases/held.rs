//! `held`: what may be done to a device while a program is in flight. One that stays there is one that has
//! suspended itself.

use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, OrbFlags, ScswFlags, command};
use vfio_ccw::backend::Irq;
use zerocopy::IntoBytes;

use crate::suite::outcome::Outcome;
use crate::suite::session::{DATA, Expect, IOVA, MAIN, PART, Session, hex, iova};
use crate::suite::target::{done, show};

const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;

/// Where data of a program in flight is that is unmapped.
const AWAY: u32 = 0x2000_0000;

/// Starts a program that suspends itself at its second CCW, whose data is at `data`.
fn hold(session: &mut Session, flags: OrbFlags, data: u32) -> Outcome {
    let nop = Ccw::new(command::NOP, 0, 0).with(SLI | CcwFlags::CHAIN_COMMAND);
    let sense_id = Ccw::new(command::SENSE_ID, data, 7).with(SLI | CcwFlags::SUSPEND);
    session.put_program(0, &[nop, sense_id]);
    let orb = Orb::new(IOVA);
    session.start(orb.with_flags(orb.flags() | flags), Expect::Silence)
}

/// The same, without an interrupt for the suspension.
fn hold_quietly(session: &mut Session, case: &str) {
    let quiet = OrbFlags::SUSPEND_CONTROL | OrbFlags::SUPPRESS_SUSPENDED;
    let outcome = hold(session, quiet, iova(DATA));
    session.note(case, outcome);
}

fn start(session: &mut Session, case: &str) {
    let outcome = session.start(Orb::new(IOVA), Expect::Interrupt);
    session.note(case, outcome);
}

fn function(session: &mut Session, case: &str, command: u32, expect: Expect) {
    let outcome = session.function(&command.to_ne_bytes(), expect);
    session.note(case, outcome);
}

pub fn run(session: &mut Session) {
    session.section("held");
    stopped(session);
    reset(session);
    unmapped(session);
    closed(session);
    told(session);
}

fn stopped(session: &mut Session) {
    hold_quietly(session, "suspended");
    start(session, "second start");
    start(session, "third start");
    let io = session.io();
    session.note("I/O region meanwhile", hex(&io.as_bytes()[..24]));
    session.note("IRB meanwhile", hex(&io.irb.as_bytes()[..12]));
    let status = session.schib().schib.scsw.flags();
    let status = status & (ScswFlags::FUNCTION_CONTROL | ScswFlags::ACTIVITY_CONTROL);
    session.note("SCHIB meanwhile", format!("{:08x}", status.bits()));
    function(session, "HALT", 1, Expect::Interrupt);
    function(session, "HALT again", 1, Expect::Interrupt);
    session.works("start after HALT");
    hold_quietly(session, "suspended, to be cleared");
    function(session, "CLEAR", 2, Expect::Interrupt);
    function(session, "CLEAR again", 2, Expect::Interrupt);
    session.works("start after CLEAR");
}

fn reset(session: &mut Session) {
    hold_quietly(session, "suspended, to be reset");
    function(session, "command 3", 3, Expect::Silence);
    start(session, "start after command 3");
    let before = session.irb();
    let reset = session.target.reset();
    let interrupts = session.interrupts(Irq::Io, Expect::Silence);
    let same = if session.irb() == before { "IRB unchanged" } else { "another IRB" };
    session.note("reset", format!("{} irq {interrupts} {same}", done(&reset)));
    session.works("start after reset");
}

fn unmapped(session: &mut Session) {
    session.target.map(AWAY.into(), MAIN, PART, 3).unwrap();
    let quiet = OrbFlags::SUSPEND_CONTROL | OrbFlags::SUPPRESS_SUSPENDED;
    for (case, data) in [("its data", AWAY), ("other memory", iova(DATA))] {
        let outcome = hold(session, quiet, data);
        session.note(&format!("suspended, {case} to be unmapped"), outcome);
        let unmapped = session.target.unmap(AWAY.into(), PART as u64);
        let unmapped = show(&unmapped.map(|bytes| format!("{bytes:#x}")));
        let interrupts = session.interrupts(Irq::Io, Expect::Silence);
        session.note(&format!("unmap {case}"), format!("{unmapped} irq {interrupts}"));
        let in_flight = session.schib().schib.scsw.flags().contains(ScswFlags::START_FUNCTION);
        let then = if in_flight { "in flight" } else { "over" };
        session.note(&format!("the program then, {case}"), then);
        session.target.reset().unwrap();
        session.works(&format!("start after that, {case}"));
        session.target.map(AWAY.into(), MAIN, PART, 3).unwrap();
    }
    session.target.unmap(AWAY.into(), PART as u64).unwrap();
}

fn closed(session: &mut Session) {
    hold_quietly(session, "suspended, to be closed");
    let before = session.io();
    let opened = session.target.reopen();
    let interrupts = session.interrupts(Irq::Io, Expect::Silence);
    let same = if session.io() == before { "region unchanged" } else { "another region" };
    session.note("closed in flight", format!("{} irq {interrupts} {same}", done(&opened)));
    session.put_program(0, &[Ccw::new(command::NOP, 0, 0)]);
    let outcome = session.start(Orb::new(IOVA), Expect::Silence);
    session.note("start, and no eventfd was set again", outcome);
    session.connect();
    session.works("start after it was opened");
}

/// Whether there is an interrupt for the suspension.
fn told(session: &mut Session) {
    let outcome = hold(session, OrbFlags::SUSPEND_CONTROL, iova(DATA));
    session.note("suspended, and wants to be told", outcome);
    session.target.reset().unwrap();
    session.works("start after it was told");
}
