//! `busy`: who does not wait for the interrupt. What comes of it depends on who is faster: each outcome must
//! be one of those that are allowed, and every start that was accepted must end.

use vfio_ccw::architecture::{Ccw, Orb, command};
use vfio_ccw::backend::{Errno, IoRegion, Irq};
use zerocopy::IntoBytes;

use crate::suite::session::{Expect, IOVA, Session};
use crate::suite::target::{Answer, Failure};

const ROUNDS: usize = 200;

pub fn run(session: &mut Session) {
    session.section("busy");
    session.put_program(0, &[Ccw::new(command::NOP, 0, 0)]);
    two_starts(session);
    for (case, command) in [("start, then HALT", 1), ("start, then CLEAR", 2)] {
        start_and(session, case, command);
    }
    session.works("start after that");
}

fn start(session: &mut Session) -> Answer<usize> {
    session.target.write(0, IoRegion::start(Orb::new(IOVA)).as_bytes())
}

/// Refused, because something is in flight or the driver is in the region.
fn is_refused(answer: &Answer<usize>) -> bool {
    let again = Errno(libc::EAGAIN);
    matches!(answer, Err(Failure::Errno(errno)) if [Errno::BUSY, again].contains(errno))
}

/// Interrupts until none comes any more.
fn all_interrupts(session: &mut Session, least: u64) -> u64 {
    let mut count = 0;
    while count < least {
        match session.interrupts(Irq::Io, Expect::Interrupt) {
            0 => break,
            more => count += more,
        }
    }
    count
}

/// Each start that was accepted interrupts once, and another is refused while it is in flight.
fn two_starts(session: &mut Session) {
    let mut problems = Vec::new();
    for _ in 0..ROUNDS {
        let answers = [start(session), start(session)];
        let accepted = answers.iter().filter(|answer| **answer == Ok(124)).count() as u64;
        let others = answers.iter().filter(|answer| !is_refused(answer)).count() as u64;
        let interrupts = all_interrupts(session, accepted);
        if answers[0] != Ok(124) || others != accepted || interrupts != accepted {
            problems.push(format!("{answers:?} irq {interrupts}"));
        }
    }
    // One too many would come late.
    let stray = session.interrupts(Irq::Io, Expect::Silence);
    report(session, "two starts", &problems, stray);
}

/// The start ends by itself, or by what followed it, or with it in one IRB; never without an interrupt.
fn start_and(session: &mut Session, case: &str, command: u32) {
    let function = if command == 1 { 0x2000 } else { 0x1000 };
    let mut problems = Vec::new();
    for _ in 0..ROUNDS {
        let started = start(session);
        let stopped = session.target.write(1 << 10, &command.to_ne_bytes());
        // Both may meet in one interrupt; a second one may come.
        let mut interrupts = session.interrupts(Irq::Io, Expect::Interrupt);
        let status = loop {
            let status =
                u32::from_be_bytes(session.irb().head.scsw.as_bytes()[..4].try_into().unwrap());
            // What was accepted last has the last word.
            if stopped != Ok(4) || status & function != 0 || interrupts > 1 {
                break status;
            }
            match session.interrupts(Irq::Io, Expect::Interrupt) {
                0 => break status,
                more => interrupts += more,
            }
        };
        let last = if stopped == Ok(4) { function } else { 0x4000 };
        let known = stopped == Ok(4) || is_refused(&stopped);
        if started != Ok(124) || !known || !(1..=2).contains(&interrupts) || status & last == 0 {
            problems.push(format!("{started:?} {stopped:?} irq {interrupts} {status:08x}"));
        }
    }
    let stray = session.interrupts(Irq::Io, Expect::Silence);
    report(session, case, &problems, stray);
}

fn report(session: &mut Session, case: &str, problems: &[String], stray: u64) {
    let first = problems.first().map_or("as allowed", String::as_str);
    session.note(case, format!("{first}, not so {} times; irq {stray}", problems.len()));
}
