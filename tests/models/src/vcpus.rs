//! What vCPUs do: instructions, drawn at random, one after the other.

use crate::architecture::{Pmcw, PmcwFlags};
use crate::channel::Statuses;
use crate::history::{Operation, Recorder, Said, Start};
use crate::random::Random;
use crate::ring::{Request, Ring};
use crate::subject::{Cc, Subject, pmcw};

/// What a vCPU, or the VMM, does to the subchannel.
#[derive(Clone, Copy, Debug)]
pub enum Instruction {
    /// START SUBCHANNEL: the number of the start, and whether there is a path that it may use.
    Ssch(Start, bool),
    /// TEST SUBCHANNEL.
    Tsch,
    /// STORE SUBCHANNEL.
    Stsch,
    /// MODIFY SUBCHANNEL.
    Msch(Pmcw),
    /// HALT SUBCHANNEL.
    Hsch,
    /// CLEAR SUBCHANNEL.
    Csch,
    /// RESUME SUBCHANNEL.
    Rsch,
    /// CANCEL SUBCHANNEL: whether a start that waits counts as begun.
    Xsch(bool),
    /// TEST PENDING INTERRUPTION, of these subclasses.
    Tpi(u8),
    /// The VMM has interruptions of these subclasses delivered that were held back.
    Tell(u8),
    /// The VMM takes the device away.
    Leave,
}

/// `length` instructions for vCPU number `vcpu`.
pub fn program(random: &mut Random, vcpu: usize, length: usize) -> Vec<Instruction> {
    let first = (vcpu as Start + 1) * 0x100;
    (first..).take(length).map(|number| instruction(random, number)).collect()
}

fn instruction(random: &mut Random, number: u32) -> Instruction {
    match random.below(32) {
        0..8 => Instruction::Ssch(number, !random.once_in(8)),
        8..14 => Instruction::Tsch,
        14..18 => Instruction::Stsch,
        18 => Instruction::Msch(modification(random, number)),
        19..21 => Instruction::Hsch,
        21 => Instruction::Csch,
        22..27 => Instruction::Rsch,
        27..29 => Instruction::Xsch(random.once_in(3)),
        29..31 => Instruction::Tpi(random.one_of(MASKS)),
        _ => Instruction::Tell(random.one_of(MASKS)),
    }
}

/// Interruption subclasses: mostly all, else a part.
const MASKS: &[u8] = &[0xff, 0xff, 0xff, 0xf0, 0x0f];

/// What MODIFY SUBCHANNEL asks for; mostly it leaves the subchannel enabled.
fn modification(random: &mut Random, number: u32) -> Pmcw {
    let mut flags = PmcwFlags::from_bits_truncate(random.word() as u16);
    flags.set(PmcwFlags::ENABLED, !random.once_in(4));
    let mut pmcw = pmcw().with(flags, random.below(8) as u8);
    pmcw.intparm = (number | 0x8000_0000).into();
    pmcw.lpm = random.word() as u8;
    pmcw.mbi = (random.word() as u16).into();
    pmcw
}

/// Whoever issues instructions.
#[derive(Debug)]
pub(crate) struct Vcpu<'a, S: Subject> {
    pub(crate) subject: &'a S,
    pub(crate) ring: &'a Ring<S::Tag>,
    pub(crate) statuses: &'a Statuses,
    pub(crate) recorder: Recorder,
}

impl<S: Subject> Vcpu<'_, S> {
    pub(crate) fn issue(&mut self, instruction: Instruction) {
        match instruction {
            Instruction::Ssch(start, has_path) => self.ssch(start, has_path),
            Instruction::Tsch => drop(self.tsch()),
            Instruction::Stsch => self.stsch(),
            Instruction::Msch(pmcw) => self.recorder.record(|| {
                let cc = self.subject.msch(&pmcw);
                (Operation::Msch { pmcw, cc }, ())
            }),
            Instruction::Hsch => self.function(S::hsch, |cc| Operation::Hsch { cc }),
            Instruction::Csch => self.function(S::csch, |cc| Operation::Csch { cc }),
            Instruction::Rsch => self.function(S::rsch, |cc| Operation::Rsch { cc }),
            Instruction::Xsch(begins) => {
                self.function(|subject| subject.xsch(begins), |cc| Operation::Xsch { begins, cc });
            }
            Instruction::Tpi(mask) => self.recorder.record(|| {
                let taken = self.subject.tpi(mask);
                (Operation::Tpi { mask, taken }, ())
            }),
            Instruction::Tell(mask) => self.recorder.record(|| {
                let told = self.subject.tell(mask);
                (Operation::Tell { mask, told }, ())
            }),
            Instruction::Leave => {
                self.recorder.record(|| {
                    self.subject.leave();
                    (Operation::Leave, ())
                });
                self.ring.leave();
            }
        }
    }

    fn ssch(&mut self, start: Start, has_path: bool) {
        let (subject, recorder) = (self.subject, &mut self.recorder);
        let tag = recorder.record(|| {
            let started = subject.ssch(start, has_path);
            let cc = started.err().unwrap_or(Cc::Cc0);
            (Operation::Ssch { start, has_path, cc }, started.ok())
        });
        let Some(tag) = tag else { return };
        let statuses = self.statuses;
        self.ring.push(Request { start, tag }, |Request { start, tag }| {
            recorder.record(|| {
                let irb = statuses.detached();
                let step = subject.end(tag, &irb, 0);
                (Operation::End { start, said: Said { irb, tell: 0, step } }, ())
            });
        });
    }

    /// The condition code.
    pub(crate) fn tsch(&mut self) -> Cc {
        self.recorder.record(|| {
            let (cc, irb) = self.subject.tsch();
            (Operation::Tsch { cc, irb }, cc)
        })
    }

    fn stsch(&mut self) {
        self.recorder.record(|| {
            let (pmcw, scsw) = self.subject.stsch(&pmcw());
            (Operation::Stsch { pmcw, scsw }, ())
        });
    }

    /// An instruction of which the channel is to hear.
    fn function(&mut self, issue: impl FnOnce(&S) -> Cc, operation: impl FnOnce(Cc) -> Operation) {
        let cc = self.recorder.record(|| {
            let cc = issue(self.subject);
            (operation(cc), cc)
        });
        if cc == Cc::Cc0 {
            self.ring.ring();
        }
    }
}
