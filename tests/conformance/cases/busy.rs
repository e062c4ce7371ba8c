//! `busy`: who does not wait for the interrupt. What comes of it depends on who is faster: each outcome must
//! be one of those that are allowed, and every start that was accepted must end.

use std::time::{Duration, Instant};

use vfio_ccw::architecture::{Ccw, Orb, command};
use vfio_ccw::backend::{Errno, IoRegion, Irq};
use zerocopy::IntoBytes;

use crate::suite::session::{Expect, IOVA, Session};
use crate::suite::target::{Answer, Failure};

const ROUNDS: usize = 200;

/// Function control in word 0 of an SCSW.
const START: u32 = 0x4000;
const HALT: u32 = 0x2000;
const CLEAR: u32 = 0x1000;

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
    match session.interrupts(Irq::Io, Expect::Silence) {
        0 => {}
        stray => problems.push(format!("{stray} interrupts too many")),
    }
    report(session, "two starts", &problems);
}

/// The start ends by itself, or by what followed it, or with it in one IRB; what was accepted last has the
/// last word. There is an interrupt for either, or one for both.
fn start_and(session: &mut Session, case: &str, command: u32) {
    let function = if command == 1 { HALT } else { CLEAR };
    let (mut problems, mut interrupts) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        forget_status(session);
        let started = patient(|| start(session), |answer| !is_refused(answer));
        let stopped = session.target.write(1 << 10, &command.to_ne_bytes());
        let last = if stopped == Ok(4) { function } else { START };
        let status = patient(|| status(session), |status| status & last != 0);
        if started != Ok(124) || stopped != Ok(4) && !is_refused(&stopped) || status & last == 0 {
            problems.push(format!("{started:?} {stopped:?} {status:08x}"));
        }
        interrupts += session.counted(Irq::Io);
    }
    // The last signal comes after its IRB.
    interrupts += session.interrupts(Irq::Io, Expect::Silence);
    if !(ROUNDS as u64..=2 * ROUNDS as u64).contains(&interrupts) {
        problems.push(format!("{interrupts} interrupts"));
    }
    report(session, case, &problems);
}

/// Asks until the answer will do, or no better one is to be expected.
fn patient<T>(mut ask: impl FnMut() -> T, will_do: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = ask();
        if will_do(&answer) || Instant::now() > end {
            return answer;
        }
        std::thread::yield_now();
    }
}

/// Writes an I/O region without status that asks for nothing. It is stored even where it is refused, unless
/// the driver is in there.
fn forget_status(session: &mut Session) {
    let again = Err(Failure::Errno(Errno(libc::EAGAIN)));
    let nothing = IoRegion::default();
    patient(|| session.target.write(0, nothing.as_bytes()), |answer| *answer != again).ok();
}

/// Word 0 of the last SCSW.
fn status(session: &mut Session) -> u32 {
    session.target.settle();
    u32::from_be_bytes(session.irb().head.scsw.as_bytes()[..4].try_into().unwrap())
}

fn report(session: &mut Session, case: &str, problems: &[String]) {
    match problems.first() {
        None => session.note(case, "as allowed"),
        Some(first) => session.note(case, format!("{first}, and {} in all", problems.len())),
    }
}
