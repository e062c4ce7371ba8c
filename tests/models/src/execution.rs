//! One run: vCPUs and the channel at one subchannel, each a thread.

use std::sync::Arc;

use crate::channel::{Channel, Statuses};
use crate::history::{Clock, Event, History, Operation, Recorder};
use crate::random::Random;
use crate::ring::Ring;
use crate::subject::{Cc, Subject};
use crate::threads::{Barrier, pause, thread};
use crate::vcpus::{Instruction, Vcpu, program};

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What each vCPU issues.
    pub programs: Vec<Vec<Instruction>>,
    /// What the channel and the vCPUs' pauses are drawn from.
    pub random: Random,
    /// How often a program says that it goes on, at most, until it suspends itself or ends.
    pub progress: usize,
    /// Whether the device has status of its own accord now and then.
    pub alerts: bool,
}

/// Steps that a vCPU pauses for at most: a program that runs takes as many.
const LONGEST_PAUSE: usize = 64;

impl Plan {
    /// Three or four vCPUs with three to five instructions each.
    pub fn random(seed: u64) -> Self {
        Plan::of_length(3, seed)
    }

    /// Three or four vCPUs with `length` instructions each, or up to two more. In every fourth plan, the
    /// device is taken away.
    pub fn of_length(length: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let vcpus = 3 + random.below(2);
        let mut programs: Vec<_> = (0..vcpus)
            .map(|vcpu| {
                let length = length + random.below(3);
                program(&mut random, vcpu, length)
            })
            .collect();
        if random.once_in(4) {
            let program = &mut programs[0];
            let place = random.below(program.len());
            program[place] = Instruction::Leave;
        }
        let progress = random.one_of(&[1, 2, 6]);
        Plan { programs, random, progress, alerts: true }
    }

    /// These programs. What the channel does, and pauses, are drawn from `seed`.
    pub fn of(programs: &[&[Instruction]], seed: u64) -> Self {
        let mut random = Random::new(seed);
        let programs = programs.iter().map(|program| program.to_vec()).collect();
        let progress = random.one_of(&[1, 2, 6]);
        Plan { programs, random, progress, alerts: false }
    }
}

/// Runs `plan` on `subject`, and then fetches all the status that is left.
///
/// # Panics
///
/// A thread has panicked.
pub fn run<S: Subject>(subject: S, plan: &Plan) -> History {
    let shared = Arc::new(Shared {
        subject,
        ring: Ring::default(),
        statuses: Statuses::default(),
        clock: Arc::default(),
        start: Barrier::new(plan.programs.len() + 1),
    });
    let mut random = plan.random.clone();
    let channel = thread::spawn({
        let (shared, random) = (Arc::clone(&shared), random.fork());
        let (progress, alerts) = (plan.progress, plan.alerts);
        move || shared.serve(random, progress, alerts)
    });
    let vcpus: Vec<_> = (plan.programs.iter().cloned())
        .map(|program| {
            let (shared, random) = (Arc::clone(&shared), random.fork());
            thread::spawn(move || shared.issue(program, random))
        })
        .collect();
    let mut threads: Vec<_> =
        vcpus.into_iter().map(|vcpu| vcpu.join().expect("it checks nothing")).collect();
    shared.ring.ring_last();
    threads.push(channel.join().expect("it checks nothing"));
    let mut last = shared.vcpu();
    last.issue(Instruction::Tpi(0xff));
    while let Operation::Tsch { cc: Cc::Cc0, .. } = last.issue(Instruction::Tsch) {}
    last.issue(Instruction::Stsch);
    threads.push(last.recorder.into_events());
    History { threads }
}

/// What the threads of a run share.
struct Shared<S: Subject> {
    subject: S,
    ring: Ring<S::Tag>,
    statuses: Statuses,
    clock: Arc<Clock>,
    /// All threads are there.
    start: Barrier,
}

impl<S: Subject> Shared<S> {
    fn vcpu(&self) -> Vcpu<'_, S> {
        let Shared { subject, ring, statuses, clock, .. } = self;
        Vcpu { subject, ring, statuses, recorder: Recorder::new(clock) }
    }

    /// Pauses in between: else all is issued before the channel has done anything.
    fn issue(&self, program: Vec<Instruction>, mut random: Random) -> Vec<Event> {
        self.start.wait();
        let mut vcpu = self.vcpu();
        for instruction in program {
            if random.once_in(2) {
                pause(random.below(LONGEST_PAUSE));
            }
            vcpu.issue(instruction);
        }
        vcpu.recorder.into_events()
    }

    fn serve(&self, random: Random, progress: usize, alerts: bool) -> Vec<Event> {
        let Shared { subject, ring, statuses, clock, start } = self;
        start.wait();
        let recorder = Recorder::new(clock);
        let mut channel = Channel { subject, ring, statuses, random, recorder, progress, alerts };
        channel.serve();
        channel.recorder.into_events()
    }
}
