//! What the channel does: it takes starts from the ring and sees each through to its end, as a
//! subchannel's task does (`src/service/task.rs`, `src/service/flight.rs`), with a device that draws at
//! random what a program does.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::architecture::{Function, IrbHead, ScswFlags};
use crate::history::{Operation, Recorder, Said};
use crate::random::Random;
use crate::ring::{Request, Ring};
use crate::status;
use crate::subject::{Step, Subject};

const PENDING: ScswFlags = ScswFlags::STATUS_PENDING;
const INTERMEDIATE: ScswFlags = ScswFlags::INTERMEDIATE.union(PENDING);
const ACTIVE: ScswFlags = ScswFlags::SUBCHANNEL_ACTIVE.union(ScswFlags::DEVICE_ACTIVE);
const ENDED: ScswFlags =
    ScswFlags::START_FUNCTION.union(ScswFlags::PRIMARY).union(ScswFlags::SECONDARY).union(PENDING);
/// Deferred condition code.
const DEFERRED: ScswFlags = ScswFlags::START_FUNCTION.union(ScswFlags::ALERT).union(PENDING);
/// Halted or cleared.
const STOPPED: ScswFlags = ScswFlags::START_FUNCTION.union(PENDING);

/// Times that a program suspends itself at most.
const SUSPENSIONS: usize = 2;

/// Makes status blocks, no two alike.
#[derive(Debug)]
pub struct Statuses {
    next: AtomicU32,
}

impl Default for Statuses {
    fn default() -> Self {
        // Number 0 is that of a block of zeros.
        Statuses { next: AtomicU32::new(1) }
    }
}

impl Statuses {
    fn block(&self, control: ScswFlags, program_controlled: bool) -> IrbHead {
        // Relaxed: numbers that differ.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        status::block(number, control, program_controlled)
    }

    /// Of a start that comes when the device is gone.
    pub(crate) fn detached(&self) -> IrbHead {
        self.block(DEFERRED, false)
    }
}

/// The channel's side of a subchannel.
#[derive(Debug)]
pub(crate) struct Channel<'a, S: Subject> {
    pub(crate) subject: &'a S,
    pub(crate) ring: &'a Ring<S::Tag>,
    pub(crate) statuses: &'a Statuses,
    pub(crate) random: Random,
    pub(crate) recorder: Recorder,
    /// How often a program says that it goes on, at most, until it suspends itself or ends.
    pub(crate) progress: usize,
    /// Whether the device has status of its own accord now and then.
    pub(crate) alerts: bool,
}

/// How a suspension ends.
enum Resumption {
    Resumed,
    Stopped,
    /// The device is gone, or nobody is left who could resume it.
    Detached,
}

impl<S: Subject> Channel<'_, S> {
    /// Serves starts until nobody rings any more, or the device is gone.
    pub(crate) fn serve(&mut self) {
        loop {
            while !self.ring.is_leaving()
                && let Some(request) = self.next_request()
            {
                self.run(request);
            }
            if self.ring.is_leaving() {
                return self.leave();
            }
            if self.alerts && self.random.once_in(4) {
                self.alert();
            }
            if !self.ring.wait() {
                return;
            }
        }
    }

    /// The device has status of its own accord, where nothing runs.
    fn alert(&mut self) {
        self.present(
            ScswFlags::ALERT | PENDING,
            |subject, irb, tell| subject.alert(irb, tell),
            |said| Operation::Alert { said },
        );
    }

    /// The device is gone: nothing is left undone.
    fn leave(&mut self) {
        self.perform_functions(PENDING);
        while let Some(request) = self.ring.pop() {
            self.end(request, DEFERRED);
        }
        self.perform_functions(PENDING | ScswFlags::ALERT);
        let ring = self.ring;
        ring.abandon(|request| self.end(request, DEFERRED));
    }

    fn next_request(&mut self) -> Option<Request<S::Tag>> {
        self.perform_functions(PENDING);
        self.ring.pop()
    }

    fn perform_functions(&mut self, status: ScswFlags) {
        while let Some(function) = self.function_pending() {
            self.present(
                status | function.control(),
                |subject, irb, tell| subject.perform(function, irb, tell),
                |said| Operation::Perform { function, said },
            );
        }
    }

    /// A program, from where it was taken out of the ring to its end.
    fn run(&mut self, request: Request<S::Tag>) {
        if !self.is_started(request) {
            return self.end(request, STOPPED);
        }
        if self.random.once_in(8) {
            // What cannot be run ends before it has begun.
            return self.end(request, DEFERRED);
        }
        for leg in 0..=SUSPENSIONS {
            if !self.begin(request) {
                let _ = self.is_started(request);
                return self.end(request, STOPPED);
            }
            for _ in 0..self.random.below(self.progress + 1) {
                if self.random.once_in(2) && self.ring.has_rung() && !self.is_started(request) {
                    return self.end(request, STOPPED);
                }
                self.progress(request);
            }
            if leg == SUSPENSIONS || !self.random.once_in(2) {
                break;
            }
            self.suspend(request);
            match self.wait_for_resumption(request) {
                Resumption::Resumed => {}
                Resumption::Stopped => return self.end(request, STOPPED),
                Resumption::Detached => return self.end(request, DEFERRED),
            }
        }
        let alert = if self.random.once_in(3) { ScswFlags::ALERT } else { ScswFlags::empty() };
        self.end(request, ENDED | alert);
    }

    fn wait_for_resumption(&mut self, request: Request<S::Tag>) -> Resumption {
        loop {
            let is_started = self.is_started(request);
            if self.ring.is_leaving() {
                return Resumption::Detached;
            }
            if !is_started {
                return Resumption::Stopped;
            }
            if self.is_resumed(request) {
                return Resumption::Resumed;
            }
            if !self.ring.wait() {
                return Resumption::Detached;
            }
        }
    }

    fn is_started(&mut self, Request { start, tag }: Request<S::Tag>) -> bool {
        self.recorder.record(|| {
            let is = self.subject.is_started(tag);
            (Operation::IsStarted { start, is }, is)
        })
    }

    fn is_resumed(&mut self, Request { start, tag }: Request<S::Tag>) -> bool {
        self.recorder.record(|| {
            let is = self.subject.is_resumed(tag);
            (Operation::IsResumed { start, is }, is)
        })
    }

    fn function_pending(&mut self) -> Option<Function> {
        self.recorder.record(|| {
            let pending = self.subject.function_pending();
            (Operation::FunctionPending { pending }, pending.map(|(function, _)| function))
        })
    }

    fn begin(&mut self, Request { start, tag }: Request<S::Tag>) -> bool {
        self.recorder.record(|| {
            let begun = self.subject.begin(tag);
            (Operation::Begin { start, begun }, begun)
        })
    }

    /// A CCW with the PCI flag.
    fn progress(&mut self, Request { start, tag }: Request<S::Tag>) {
        self.present(
            ScswFlags::START_FUNCTION | ACTIVE | INTERMEDIATE,
            |subject, irb, tell| subject.progress(tag, irb, tell),
            |said| Operation::Progress { start, said },
        );
    }

    /// A CCW with the suspend flag, of a program that may say so, or not.
    fn suspend(&mut self, Request { start, tag }: Request<S::Tag>) {
        let says_so = if self.random.once_in(2) { INTERMEDIATE } else { ScswFlags::empty() };
        self.present(
            ScswFlags::START_FUNCTION | ScswFlags::SUSPENDED | says_so,
            |subject, irb, tell| subject.suspend(tag, irb, tell),
            |said| Operation::Suspend { start, said },
        );
    }

    fn end(&mut self, Request { start, tag }: Request<S::Tag>, control: ScswFlags) {
        self.present(
            control,
            |subject, irb, tell| subject.end(tag, irb, tell),
            |said| Operation::End { start, said },
        );
    }

    /// Presents status; if that interrupts and whoever delivers interruptions was not told, he is told
    /// now, or not.
    fn present(
        &mut self,
        control: ScswFlags,
        present: impl FnOnce(&S, &IrbHead, u8) -> Step,
        operation: impl FnOnce(Said) -> Operation,
    ) {
        let says_progress = control.contains(ACTIVE);
        let may_say_progress = control.contains(ScswFlags::INTERMEDIATE) && self.random.once_in(2);
        let irb = self.statuses.block(control, says_progress || may_say_progress);
        let tell = self.random.one_of(&[0xff, 0xff, 0x0f, 0x00]);
        let step = self.recorder.record(|| {
            let step = present(self.subject, &irb, tell);
            (operation(Said { irb, tell, step }), step)
        });
        if matches!(step, Step::Interrupts { told: false, .. }) && self.random.once_in(2) {
            self.recorder.record(|| {
                let (mask, told) = (0xff, self.subject.tell(0xff));
                (Operation::Tell { mask, told }, ())
            });
        }
    }
}
