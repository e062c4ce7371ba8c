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

impl Instruction {
    /// Carries it out on `subject`. With the operation comes the tag of a start that was accepted.
    pub fn carry_out<S: Subject>(self, subject: &S) -> (Operation, Option<S::Tag>) {
        let operation = match self {
            Instruction::Ssch(start, has_path) => {
                let started = subject.ssch(start, has_path);
                let cc = started.err().unwrap_or(Cc::Cc0);
                return (Operation::Ssch { start, has_path, cc }, started.ok());
            }
            Instruction::Tsch => {
                let (cc, irb) = subject.tsch();
                Operation::Tsch { cc, irb }
            }
            Instruction::Stsch => {
                let (pmcw, scsw) = subject.stsch(&pmcw());
                Operation::Stsch { pmcw, scsw }
            }
            Instruction::Msch(pmcw) => Operation::Msch { pmcw, cc: subject.msch(&pmcw) },
            Instruction::Hsch => Operation::Hsch { cc: subject.hsch() },
            Instruction::Csch => Operation::Csch { cc: subject.csch() },
            Instruction::Rsch => Operation::Rsch { cc: subject.rsch() },
            Instruction::Xsch(begins) => Operation::Xsch { begins, cc: subject.xsch(begins) },
            Instruction::Tpi(mask) => Operation::Tpi { mask, taken: subject.tpi(mask) },
            Instruction::Tell(mask) => Operation::Tell { mask, told: subject.tell(mask) },
            Instruction::Leave => {
                subject.leave();
                Operation::Leave
            }
        };
        (operation, None)
    }
}

impl<S: Subject> Vcpu<'_, S> {
    /// Carries `instruction` out, and lets the channel hear of it where it has to.
    pub(crate) fn issue(&mut self, instruction: Instruction) -> Operation {
        let (operation, tag) = self.recorder.record(|| {
            let (operation, tag) = instruction.carry_out(self.subject);
            (operation, (operation, tag))
        });
        match operation {
            Operation::Ssch { start, .. } => {
                if let Some(tag) = tag {
                    self.push(Request { start, tag });
                }
            }
            Operation::Hsch { cc: Cc::Cc0 }
            | Operation::Csch { cc: Cc::Cc0 }
            | Operation::Rsch { cc: Cc::Cc0 }
            | Operation::Xsch { cc: Cc::Cc0, .. } => self.ring.ring(),
            Operation::Leave => self.ring.leave(),
            _ => {}
        }
        operation
    }

    fn push(&mut self, request: Request<S::Tag>) {
        let Vcpu { subject, statuses, recorder, ring } = self;
        ring.push(request, |Request { start, tag }| {
            recorder.record(|| {
                let irb = statuses.detached();
                let step = subject.end(tag, &irb, 0);
                (Operation::End { start, said: Said { irb, tell: 0, step } }, ())
            });
        });
    }
}
