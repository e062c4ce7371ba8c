//! One subchannel's task: takes requests from the ring and sees each through to its end.
//!
//! The task is one future that stays: what it awaits are polls of things that stay, too (the doorbell,
//! the pool, the device), so nothing is made for a request. What lies between is in plain functions:
//! `flight.rs` has those for one request.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, mpsc};

use vfio_ccw_queues::submission::Intake;

use crate::architecture::{Function, IrbHead, ScswFlags};
use crate::backend::Backend;
use crate::channel_subsystem::{DmaSpace, performed};
use crate::subchannel::{Origin, Request, Shared, Urgent};
use crate::translation::Rules;
use crate::turn;

use super::context::Context;
use super::delivery::Completion;
use super::flight::{Next, Passage};
use super::mode_switch::{Pinning, Switch};
use super::outbox::Outbox;
use super::refusal::Refusal;
use super::runner::Runner;
use super::view::View;

/// Requests served in a row before the neighbours get their turn.
const REQUESTS_A_TURN: usize = 32;

/// What a task works with, apart from its device.
pub(super) struct Seat {
    pub(super) context: Rc<Context>,
    pub(super) shared: Arc<Shared>,
    /// Until the seat is left.
    pub(super) intake: Option<Intake<Request>>,
    /// The request that comes next, where it was taken out of the ring already.
    pub(super) next: Cell<Option<Request>>,
    /// Cancelled starts had filled the ring: those that found no room.
    pub(super) late: Vec<Request>,
    /// Started by instruction.
    pub(super) is_by_instruction: bool,
    /// What the program ended with, or was suspended with, that a function has stopped.
    pub(super) ended: Cell<Option<IrbHead>>,
    pub(super) runner: Rc<Runner>,
    /// Where completions gather, if results go to a ring.
    pub(super) outbox: Option<Rc<Outbox>>,
    pub(super) rules: Arc<Rules>,
    /// Guest memory as its programs and its device see it.
    pub(super) view: RefCell<Rc<View>>,
    pub(super) pinning: RefCell<Pinning>,
    /// Most bytes that are pinned for one program.
    pub(super) share: Option<u64>,
}

/// Serves requests until the subchannel leaves.
pub(super) async fn run<B: Backend>(mut seat: Seat, mut backend: B) {
    loop {
        let mut served = 0;
        seat.keep_up(|memory| backend.see(memory));
        while !seat.shared.is_leaving()
            && let Some(request) = seat.pop()
        {
            seat.keep_up(|memory| backend.see(memory));
            // From here to its end, as in `flight.rs`.
            let mut passage = Passage::of(&seat, backend.class(), request);
            let mut next = passage.prepare(&mut backend);
            while next != Next::Over {
                next = match next {
                    Next::Hold => poll_fn(|cx| passage.poll_pages(&mut backend, cx)).await,
                    Next::Interrupt => poll_fn(|cx| passage.poll_end(&mut backend, cx)).await,
                    Next::Resumption => poll_fn(|_| passage.poll_resumption(&mut backend)).await,
                    Next::Over => break,
                };
            }
            passage.finish();
            served += 1;
            if served % REQUESTS_A_TURN == 0 {
                turn::pass().await;
            }
        }
        if seat.shared.is_leaving() {
            break;
        }
        seat.expect_next();
        poll_fn(|_| seat.runner.poll_rung()).await;
    }
}

/// Refuses every request until the subchannel leaves: its device could not be made.
pub(super) async fn run_absent(mut seat: Seat) {
    while !seat.shared.is_leaving() {
        seat.keep_up(|_| {});
        seat.refuse_rest();
        poll_fn(|_| seat.runner.poll_rung()).await;
    }
}

impl Seat {
    /// The next request to serve. What was halted, cleared or cancelled while it waited is over with
    /// this.
    #[inline]
    fn pop(&mut self) -> Option<Request> {
        loop {
            if self.runner.has_urgent()
                || self.is_by_instruction && self.shared.cell().function_pending().is_some()
            {
                self.perform_functions();
            }
            let request = self.next_request()?;
            match self.stopped(&request) {
                None => return Some(request),
                Some(refusal) => self.refuse(request, refusal),
            }
        }
    }

    #[inline]
    fn next_request(&mut self) -> Option<Request> {
        if let Some(request) = self.next.take() {
            return Some(request);
        }
        if let Some(request) = self.intake.as_mut()?.pop() {
            return Some(request);
        }
        self.late_request()
    }

    #[cold]
    fn late_request(&mut self) -> Option<Request> {
        if self.is_by_instruction && self.late.is_empty() {
            self.late = self.shared.take_late();
            self.late.reverse();
        }
        self.late.pop()
    }

    /// Why the request must not begin, or go on, if it must not.
    #[inline]
    pub(super) fn stopped(&self, request: &Request) -> Option<Refusal> {
        match request.origin {
            Origin::Instruction(tag) if self.shared.cell().is_started(tag) => None,
            Origin::Instruction(_) => Some(match self.shared.cell().function_pending() {
                Some((function, _)) => Refusal::Stopped(function),
                None => Refusal::Cancelled,
            }),
            Origin::Ring { epoch, .. } => match self.runner.has_urgent() {
                true => self.runner.overtakes(epoch).map(Refusal::Stopped),
                false => None,
            },
            Origin::Future { place } => {
                let abandoned =
                    self.shared.starts().is_some_and(|starts| starts.is_abandoned(place));
                abandoned.then_some(Refusal::Stopped(Function::Clear))
            }
        }
    }

    /// Ends a request that never began.
    fn refuse(&self, request: Request, refusal: Refusal) {
        let passage = Passage::of(self, self.rules.class, request);
        passage.refuse(refusal);
    }

    /// Performs HALT and CLEAR, now that nothing runs.
    #[cold]
    fn perform_functions(&mut self) {
        let ended = self.ended.take();
        if self.is_by_instruction {
            while let Some((function, control)) = self.shared.cell().function_pending() {
                self.count(function);
                self.shared.perform(function, &performed(function, control, ended.as_ref()));
            }
        }
        while let Some(urgent) = self.runner.take_urgent() {
            // The starts that it has overtaken end before it does.
            while let Some(request) = self.next_request() {
                if !urgent.overtakes(&request) {
                    self.next.set(Some(request));
                    break;
                }
                self.refuse(request, Refusal::Stopped(urgent.function));
            }
            self.count(urgent.function);
            let active = ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE;
            let control = if ended.is_some() { active } else { ScswFlags::empty() };
            self.complete_urgent(&urgent, &performed(urgent.function, control, ended.as_ref()));
        }
    }

    fn count(&self, function: Function) {
        let counters = self.context.metrics.counters();
        match function {
            Function::Halt => counters.halts.add(1),
            Function::Clear => counters.clears.add(1),
        }
    }

    fn complete_urgent(&self, urgent: &Urgent, irb: &IrbHead) {
        if let Some(outbox) = &self.outbox {
            let (user_data, subchannel) = (urgent.user_data, self.shared.number());
            let completion = Completion { user_data, subchannel, irb: *irb };
            self.context.send(outbox, completion, None);
        }
    }

    /// Between two programs: sees the memory that there is now, and changes the pinning mode if asked
    /// to.
    #[inline]
    pub(super) fn keep_up(&self, see: impl FnOnce(&Arc<DmaSpace>)) {
        if self.runner.take_news() || self.context.is_outdated() {
            self.take_up_news(see);
        }
    }

    #[cold]
    fn take_up_news(&self, see: impl FnOnce(&Arc<DmaSpace>)) {
        let moved_on = self.context.moved_on_from(&self.view.borrow());
        if let Some(view) = moved_on {
            see(&view.dma);
            *self.view.borrow_mut() = view;
        }
        if let Some(switch) = self.runner.switch.take() {
            self.switch(*switch);
        }
    }

    fn switch(&self, switch: Switch) {
        let Switch { pinning, done } = switch;
        self.shared.set_mode(pinning.mode);
        if let Err(mpsc::SendError(before)) = done.send(self.pinning.replace(pinning)) {
            // The one who asked has lost patience.
            self.context.plan.aside.put(before);
        }
    }

    /// Says where the next request will come to lie.
    fn expect_next(&self) {
        if let Some(intake) = &self.intake {
            self.runner.expect(intake.next_entry());
        }
    }

    fn refuse_rest(&mut self) {
        self.perform_functions();
        while let Some(request) = self.next_request() {
            let refusal = self.stopped(&request).unwrap_or(Refusal::Detached);
            self.refuse(request, refusal);
        }
    }
}

/// The task is over, also where it panicked: what is left is refused, and the ring is for whoever
/// still puts something in.
impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.leave();
        self.refuse_rest();
        self.shared.settle();
        let mode = self.shared.mode();
        let aside = &self.context.plan.aside;
        aside.put(self.pinning.replace(Pinning { mode, whole_guest: None }));
        if let Some(switch) = self.runner.switch.take() {
            aside.put(switch.pinning);
        }
        if let Some(intake) = self.intake.take() {
            self.shared.abandon(intake);
        }
        self.context.ended(&self.shared);
    }
}
