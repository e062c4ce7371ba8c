//! One subchannel's task: takes requests from the ring and sees each through to its end.
//!
//! The task is one future that stays: what it awaits are polls of things that stay, too (the doorbell,
//! the pool, the device), so nothing is made for a request. What lies between is in plain functions:
//! `flight.rs` has those for one request.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Context as TaskContext, Poll, ready};

use crate::architecture::{Function, IrbHead, ScswFlags};
use crate::backend::Backend;
use crate::channel_subsystem::{DeviceState, performed};
use crate::subchannel::{Origin, Request, Shared, Urgent};
use crate::translation::Rules;
use crate::turn;

use super::context::Context;
use super::delivery::Completion;
use super::flight::{Next, Passage};
use super::mode_switch::{Pinning, Switch};
use super::outbox::Outbox;
use super::queue::Queue;
use super::refusal::Refusal;
use super::runner::Runner;
use super::save::SavedTask;
use super::state::{StartState, Suspended, SuspendedState};
use super::view::View;

/// Requests served in a row before the neighbours get their turn.
const REQUESTS_A_TURN: usize = 32;

/// What a task works with, apart from its device.
pub(super) struct Seat {
    pub(super) context: Rc<Context>,
    pub(super) shared: Arc<Shared>,
    /// Number of the subchannel.
    pub(super) number: u32,
    pub(super) queue: RefCell<Queue>,
    /// Started by instruction.
    pub(super) is_by_instruction: bool,
    /// A program that was suspended when it was saved.
    pub(super) restored: Option<Box<Suspended>>,
    /// What the program ended with, or was suspended with, that a function has stopped.
    pub(super) ended: Cell<Option<Box<IrbHead>>>,
    pub(super) runner: Rc<Runner>,
    /// Where completions gather, if results go to a ring.
    pub(super) outbox: Option<Rc<Outbox>>,
    pub(super) rules: Arc<Rules>,
    /// Guest memory as its programs and its device see it.
    pub(super) view: RefCell<Rc<View>>,
    pub(super) pinning: RefCell<Pinning>,
    /// Most bytes that are pinned for one program.
    pub(super) share: Option<u64>,
    /// What completions with unsolicited status carry, if a ring wants them.
    pub(super) unsolicited: Option<u64>,
}

/// A program that a task has and that does not run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Parked {
    /// It has not begun.
    Start(Request),
    /// It has suspended itself.
    Suspended(Origin, SuspendedState),
}

/// Serves requests until the subchannel leaves.
#[expect(clippy::manual_async_fn, reason = "such a function keeps what it is given twice")]
pub(super) fn run<B: Backend>(mut seat: Seat, mut backend: B) -> impl Future<Output = ()> {
    // There are very many of these: they are as small as can be.
    async move {
        if let Some(suspended) = seat.restored.take() {
            // On the heap, for the same reason.
            Box::pin(resume(&seat, &mut backend, &suspended)).await;
        }
        loop {
            let mut served = 0;
            seat.keep_up(&mut backend);
            while !seat.shared.is_leaving() {
                let request = match seat.next(backend.performs_functions()) {
                    Work::Serve(request) => request,
                    Work::Perform(function) => {
                        poll_fn(|cx| seat.poll_function(function, &mut backend, cx)).await;
                        continue;
                    }
                    Work::Nothing => break,
                };
                seat.keep_up(&mut backend);
                // From here to its end, as in `flight.rs`.
                let mut passage = Passage::of(&seat, backend.class(), request);
                let mut next = passage.prepare(&mut backend);
                while next != Next::Over {
                    next = poll_fn(|cx| passage.poll_next(next, &mut backend, cx)).await;
                }
                passage.finish();
                served += 1;
                if served % REQUESTS_A_TURN == 0 {
                    turn::pass().await;
                }
            }
            if seat.shared.is_leaving() || seat.is_drained() {
                break;
            }
            seat.rest();
            seat.expect_next();
            poll_fn(|cx| {
                backend.poll_idle(cx, &mut |irb| seat.tell_unsolicited(irb));
                seat.runner.poll_rung()
            })
            .await;
        }
    }
}

/// Sees a program through that was suspended when it was saved.
async fn resume<B: Backend>(seat: &Seat, backend: &mut B, suspended: &Suspended) {
    let mut passage = Passage::restored(seat, backend.class(), suspended);
    let mut next = Next::Resumption;
    while next != Next::Over {
        next = poll_fn(|cx| passage.poll_next(next, backend, cx)).await;
    }
    passage.finish();
}

/// Refuses every request until the subchannel leaves: its device could not be made.
pub(super) async fn run_absent(seat: Seat) {
    while !seat.shared.is_leaving() && !seat.is_drained() {
        if seat.has_news() {
            seat.take_up_news(None, None);
        }
        seat.refuse_rest();
        seat.rest();
        poll_fn(|_| seat.runner.poll_rung()).await;
    }
}

/// What a task does next.
enum Work {
    /// Sees a request through.
    Serve(Request),
    /// Waits until the device has performed HALT or CLEAR.
    Perform(Function),
    /// Waits.
    Nothing,
}

impl Seat {
    /// What to do next. What was halted, cleared or cancelled while it waited is over with this.
    /// `device_performs`: HALT and CLEAR are for the device, too.
    #[inline(always)]
    fn next(&self, device_performs: bool) -> Work {
        loop {
            if self.runner.has_urgent()
                || self.is_by_instruction && self.shared.cell().function_pending().is_some()
            {
                match self.first_function() {
                    Some(function) if device_performs => return Work::Perform(function),
                    _ => self.perform_functions(),
                }
            }
            if self.context.hold.is_on() {
                return Work::Nothing;
            }
            let Some(request) = self.next_request() else { return Work::Nothing };
            match self.stopped(&request) {
                None => return Work::Serve(request),
                Some(refusal) => self.refuse(request, refusal),
            }
        }
    }

    /// HALT or CLEAR that is performed next.
    #[cold]
    fn first_function(&self) -> Option<Function> {
        match self.is_by_instruction {
            true => self.shared.cell().function_pending().map(|(function, _)| function),
            false => self.runner.first_urgent(),
        }
    }

    /// Waits until the device has performed `function`, and tells of it.
    fn poll_function<B: Backend>(
        &self,
        function: Function,
        backend: &mut B,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        if !self.shared.is_leaving() {
            ready!(backend.poll_function(cx, function));
        }
        let ended = self.ended.take();
        match self.is_by_instruction {
            true => self.perform_pending(function, ended.as_deref()),
            false => {
                if let Some(urgent) = self.runner.take_urgent() {
                    self.perform_urgent(&urgent, ended.as_deref());
                }
            }
        }
        Poll::Ready(())
    }

    /// Unsolicited status of the device; whether it could be told, or nobody wants it.
    #[cold]
    fn tell_unsolicited(&self, irb: &IrbHead) -> bool {
        let told = match (&self.outbox, self.unsolicited) {
            _ if self.is_by_instruction => self.shared.alert(irb),
            (Some(outbox), Some(user_data)) => {
                let completion = Completion { user_data, subchannel: self.number, irb: *irb };
                self.context.send(outbox, completion, None);
                true
            }
            _ => {
                tracing::debug!(subchannel = self.number, status = ?irb.scsw, "unsolicited status that nobody wants");
                true
            }
        };
        if told {
            self.context.metrics.counters().unsolicited.add(1);
        }
        told
    }

    #[inline(always)]
    fn next_request(&self) -> Option<Request> {
        self.queue.borrow_mut().pop(&self.shared)
    }

    /// Whether all that was accepted is over, and no more will be.
    fn is_drained(&self) -> bool {
        self.shared.is_draining()
            && !self.context.hold.is_on()
            && !self.shared.cell().is_in_progress()
    }

    /// Why the request must not begin, or go on, if it must not.
    #[inline(always)]
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
    pub(super) fn perform_functions(&self) {
        let ended = self.ended.take();
        if self.is_by_instruction {
            while let Some((function, _)) = self.shared.cell().function_pending() {
                self.perform_pending(function, ended.as_deref());
            }
        }
        while let Some(urgent) = self.runner.take_urgent() {
            self.perform_urgent(&urgent, ended.as_deref());
        }
    }

    /// HALT or CLEAR by instruction is performed, unless it is another one by now.
    fn perform_pending(&self, function: Function, ended: Option<&IrbHead>) {
        if let Some((pending, control)) = self.shared.cell().function_pending()
            && pending == function
        {
            self.count(function);
            self.shared.perform(function, &performed(function, control, ended));
        }
    }

    /// HALT or CLEAR that was submitted to a ring is performed.
    fn perform_urgent(&self, urgent: &Urgent, ended: Option<&IrbHead>) {
        // The starts that it has overtaken end before it does.
        while let Some(request) = self.next_request() {
            if !urgent.overtakes(&request) {
                self.queue.borrow_mut().put_back(request);
                break;
            }
            self.refuse(request, Refusal::Stopped(urgent.function));
        }
        self.count(urgent.function);
        let active = ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE;
        let control = if ended.is_some() { active } else { ScswFlags::empty() };
        self.complete_urgent(urgent, &performed(urgent.function, control, ended));
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
            let (user_data, subchannel) = (urgent.user_data, self.number);
            let completion = Completion { user_data, subchannel, irb: *irb };
            self.context.send(outbox, completion, None);
        }
    }

    /// Between two programs: does what the service wants.
    #[inline]
    fn keep_up(&self, backend: &mut dyn Backend) {
        if self.has_news() {
            self.take_up_news(Some(backend), None);
        }
    }

    /// Whether the service wants something.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        self.runner.take_news() || self.context.is_outdated()
    }

    /// Sees the memory that there is now, changes the pinning mode, and says what it consists of, with
    /// the program that is parked.
    #[cold]
    pub(super) fn take_up_news(
        &self,
        mut backend: Option<&mut dyn Backend>,
        parked: Option<Parked>,
    ) {
        let moved_on = self.context.moved_on_from(&self.view.borrow());
        if let Some(view) = moved_on {
            if let Some(backend) = &mut backend {
                backend.see(&view.dma);
            }
            *self.view.borrow_mut() = view;
        }
        if let Some(switch) = self.runner.switch.take() {
            self.switch(*switch);
        }
        if let Some(answer) = self.runner.take_question() {
            let device = backend.map_or(Some(DeviceState::Nothing), |backend| backend.save());
            // Whoever asked may have lost patience.
            drop(answer.send(self.saved(device, parked)));
        }
    }

    /// What the subchannel consists of, apart from its state word.
    fn saved(&self, device: Option<DeviceState>, parked: Option<Parked>) -> SavedTask {
        let (mut starts, mut suspended, mut has_futures) = (Vec::new(), None, false);
        let mut start = |request: &Request| match request.origin {
            Origin::Future { .. } => has_futures = true,
            Origin::Ring { user_data, .. } => {
                starts.push(StartState::new(&request.orb, Some(user_data)));
            }
            Origin::Instruction(_) => starts.push(StartState::new(&request.orb, None)),
        };
        if let Some(Parked::Start(request)) = &parked {
            start(request);
        }
        let mut queue = self.queue.borrow_mut();
        let waiting = queue.all(&self.shared).filter(|request| self.stopped(request).is_none());
        waiting.for_each(start);
        if let Some(Parked::Suspended(origin, state)) = parked {
            has_futures |= matches!(origin, Origin::Future { .. });
            suspended = Some(state);
        }
        SavedTask { number: self.number, starts, suspended, device, has_futures }
    }

    /// Nothing of it runs.
    #[inline]
    pub(super) fn rest(&self) {
        if self.context.hold.is_on() {
            self.context.rests(&self.runner);
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
        if let Some(next_entry) = self.queue.borrow().next_entry() {
            self.runner.expect(next_entry);
        }
    }

    fn refuse_rest(&self) {
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
        let intake = self.queue.borrow_mut().take_intake();
        if let Some(intake) = intake {
            self.shared.abandon(intake);
        }
        self.context.ended(&self.shared);
    }
}
