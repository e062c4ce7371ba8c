//! One request, from the ring to its end: fetch, check, emit; hold; start; interrupt; finish.
//!
//! Each step is a plain function; what has to be waited for is polled (`task.rs` awaits it).

use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, ready};

use vfio_ccw_metrics::{DeviceClass, Kind, Operation, Outcome, RECORDING};
use vfio_ccw_pinning::Hold;

use crate::architecture::{
    DeviceStatus, Function, IrbHead, Orb, OrbFlags, Scsw, ScswFlags, SubchannelStatus,
};
use crate::backend::{Backend, Errno};
use crate::channel_subsystem::Entry;
use crate::shadow::Slot;
use crate::subchannel::{Origin, Request, Tag};
use crate::translation::Program;

use super::context::{Context, Ended, Stamps};
use super::delivery::Completion;
use super::refusal::{Refusal, outcome};
use super::state::{StartState, Suspended, SuspendedState, words};
use super::task::{Parked, Seat};
use super::unfetched::Unfetched;
use super::view::View;

/// Completions that one program may have in a ring for its PCI flags. More are told with its end,
/// so that a program cannot flood the ring.
const PROGRESS_REPORTS: u32 = 16;

/// The buffers that one program needs while it runs. They go from program to program.
#[derive(Debug, Default)]
pub(super) struct Flight {
    program: Program,
    hold: Hold,
    slot: Option<Slot>,
    irb: IrbHead,
}

/// What a passage waits for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Its pages: [`Passage::poll_pages`].
    Hold,
    /// That programs may begin: [`Passage::poll_let_go`].
    LetGo,
    /// The device: [`Passage::poll_end`].
    Interrupt,
    /// RESUME SUBCHANNEL: [`Passage::poll_resumption`].
    Resumption,
    /// Nothing: it is over, but for [`Passage::finish`].
    Over,
}

/// A flight's buffers while a program has them.
struct Lent<'a> {
    context: &'a Context,
    flight: Option<Box<Flight>>,
}

impl std::ops::Deref for Lent<'_> {
    type Target = Flight;

    #[inline(always)]
    fn deref(&self) -> &Flight {
        self.flight.as_deref().expect("there until it is dropped")
    }
}

impl std::ops::DerefMut for Lent<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Flight {
        self.flight.as_deref_mut().expect("there until it is dropped")
    }
}

impl Drop for Lent<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(mut flight) = self.flight.take() {
            // Normally it is neither in line nor holds anything: only after a panic. What it holds then
            // stays pinned, and `Hold` says so.
            self.context.plan.pool.forget(&mut flight.hold);
            if !flight.hold.is_holding() {
                self.context.flights.borrow_mut().push(flight);
            }
        }
    }
}

/// A request that was accepted and must be completed exactly once.
struct Accepted<'a> {
    seat: &'a Seat,
    /// What it does is found out where it is timed.
    kind: Kind,
    /// Requests that its time stands for.
    weight: u32,
    request: Request,
    completed: bool,
}

/// A request on its way.
#[must_use]
pub(super) struct Passage<'a> {
    accepted: Accepted<'a>,
    /// The program as it is entered: the request's, or from where it was suspended.
    orb: Orb,
    entry: Entry,
    /// The device itself fetches the program, since that may change itself.
    unfetched: bool,
    /// The program was fetched here.
    fetched: bool,
    flight: Lent<'a>,
    /// Guest memory that the program was fetched under: it stays until the program has ended.
    view: Option<Rc<View>>,
    stamps: Stamps,
    /// HALT, CLEAR or a dropped future: the device was told.
    stopping: Option<Function>,
    /// What it goes by among those in flight, while a device apart has it.
    in_flight: Option<usize>,
    /// Number of the start function that a suspended program of a ring or a future is.
    suspended: Option<Tag>,
    /// Times that word of progress was delivered.
    reports: u32,
    /// Why it never ran to an end of its own.
    refusal: Option<Box<Refusal>>,
}

impl<'a> Passage<'a> {
    #[inline(always)]
    pub(super) fn of(seat: &'a Seat, class: DeviceClass, request: Request) -> Self {
        let context = &*seat.context;
        context.metrics.counters().starts.add(1);
        context.plan.activities.of(seat.number).begin(request.submitted);
        // Until its commands are known.
        let kind = Kind { class, operation: Operation::Control };
        let stamps = Stamps::take(context);
        let flight = context.flights.borrow_mut().pop().unwrap_or_default();
        Passage {
            accepted: Accepted { seat, kind, weight: stamps.weight(), request, completed: false },
            orb: request.orb,
            entry: Entry::Start,
            unfetched: false,
            fetched: false,
            flight: Lent { context, flight: Some(flight) },
            view: None,
            stamps,
            stopping: None,
            in_flight: None,
            suspended: None,
            reports: 0,
            refusal: None,
        }
    }

    /// A program that was suspended when it was saved.
    pub(super) fn restored(seat: &'a Seat, class: DeviceClass, suspended: &Suspended) -> Self {
        let Suspended { orb, user_data, irb, bounded } = *suspended;
        let origin = match user_data {
            Some(user_data) => Origin::Ring { user_data, epoch: 0 },
            None => Origin::Instruction(Tag::default()),
        };
        let submitted = seat.context.clock.raw();
        let mut passage = Passage::of(seat, class, Request { orb, origin, submitted });
        seat.context.plan.activities.of(seat.number).was_elsewhere();
        let policy = seat.context.plan.unfetched;
        passage.unfetched =
            !orb.flags().contains(OrbFlags::PREFETCH) && policy == Unfetched::Execute;
        passage.suspended = user_data.map(|_| Tag::default());
        passage.flight.irb = irb;
        passage.flight.program.set_bounded(bounded);
        passage
    }

    /// It will not run to an end of its own.
    #[cold]
    fn refused(&mut self, refusal: Refusal) -> Next {
        self.refusal = Some(Box::new(refusal));
        Next::Over
    }

    #[inline(always)]
    fn seat(&self) -> &'a Seat {
        self.accepted.seat
    }

    fn request(&self) -> &Request {
        &self.accepted.request
    }

    /// Up to the start, or to what has to be waited for before.
    #[inline(always)]
    pub(super) fn prepare<B: Backend>(&mut self, backend: &mut B) -> Next {
        if !self.orb.flags().contains(OrbFlags::PREFETCH) {
            match self.seat().context.plan.unfetched {
                Unfetched::Execute => self.unfetched = backend.runs_unfetched(),
                Unfetched::Prefetch => {}
                Unfetched::Refuse => {
                    self.count_unfetched();
                    return self.refused(Refusal::Unfetched);
                }
            }
            self.count_unfetched();
        }
        self.leg(backend)
    }

    fn count_unfetched(&self) {
        self.seat().context.metrics.counters().unfetched.add(1);
    }

    /// From the CCW that it is entered at.
    #[inline(always)]
    fn leg<B: Backend>(&mut self, backend: &mut B) -> Next {
        if self.unfetched {
            // The device reaches guest memory through its own view, which it keeps while it runs.
            (self.stamps.translated, self.stamps.pinned) = (self.stamps.taken, self.stamps.taken);
            return self.start(backend, self.orb);
        }
        let (seat, context) = (self.seat(), &*self.seat().context);
        let Flight { program, hold, slot, .. } = &mut *self.flight;
        let view = self.view.insert(seat.view.borrow().clone());
        match self.entry {
            Entry::Start => program.fetch(&self.orb, &view.map, &seat.rules, hold),
            Entry::Resume => program.refetch(&self.orb, &view.map, &seat.rules, hold),
        }
        self.fetched = true;
        let Some(shadow) = emit(context, program, slot) else {
            let bytes = program.bytes();
            return self.refused(Refusal::NoShadow { bytes });
        };
        if self.accepted.weight > 0 {
            self.accepted.kind.operation = program.operation();
        }
        self.stamps.translated = self.stamps.now(context);

        let is_covered = (seat.pinning.borrow().whole_guest.as_ref())
            .map(|whole_guest| whole_guest.cover(hold))
            .is_some();
        hold.limit_bytes(seat.share);
        if !is_covered && !context.plan.pool.try_hold(hold) {
            return Next::Hold;
        }
        count_hold(context, hold);
        self.start(backend, shadow)
    }

    /// Waits for `next`; what comes then.
    #[inline(always)]
    pub(super) fn poll_next<B: Backend>(
        &mut self,
        next: Next,
        backend: &mut B,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Next> {
        match next {
            Next::Interrupt => self.poll_end(backend, cx),
            Next::Hold => self.poll_pages(backend, cx),
            Next::LetGo => self.poll_let_go(backend),
            Next::Resumption => self.poll_resumption(backend),
            Next::Over => Poll::Ready(Next::Over),
        }
    }

    /// Waits for its pages, however long that takes, unless it is stopped.
    fn poll_pages<B: Backend>(&mut self, backend: &mut B, cx: &mut TaskContext<'_>) -> Poll<Next> {
        let (seat, context) = (self.seat(), &*self.seat().context);
        let pool = &context.plan.pool;
        if let Poll::Ready(held) = pool.poll_hold(&mut self.flight.hold, cx) {
            count_hold(context, &self.flight.hold);
            return Poll::Ready(match held {
                Err(error) => self.refused(error.into()),
                Ok(()) => {
                    let shadow = self.flight.program.shadow();
                    self.start(backend, shadow)
                }
            });
        }
        let mut rung = false;
        let refusal = loop {
            if seat.shared.is_leaving() {
                break Some(Refusal::Detached);
            }
            if let Some(refusal) = seat.stopped(self.request()) {
                break Some(refusal);
            }
            if context.hold.is_on() {
                break None;
            }
            if seat.runner.poll_rung().is_pending() {
                if rung {
                    // Whatever else it was for is looked at after this program.
                    seat.runner.keep();
                }
                return Poll::Pending;
            }
            rung = true;
        };
        pool.forget(&mut self.flight.hold);
        count_hold(context, &self.flight.hold);
        Poll::Ready(match refusal {
            Some(refusal) => self.refused(refusal),
            None => {
                self.land();
                Next::LetGo
            }
        })
    }

    /// Waits until programs may begin. It has given up its place in line for its pages, and is fetched
    /// anew.
    fn poll_let_go<B: Backend>(&mut self, backend: &mut B) -> Poll<Next> {
        let seat = self.seat();
        loop {
            if seat.has_news() {
                seat.take_up_news(Some(backend), Some(Parked::Start(*self.request())));
            }
            if seat.shared.is_leaving() {
                return Poll::Ready(self.refused(Refusal::Detached));
            }
            if let Some(refusal) = seat.stopped(self.request()) {
                return Poll::Ready(self.refused(refusal));
            }
            if !seat.context.hold.is_on() {
                return Poll::Ready(self.leg(backend));
            }
            seat.rest();
            ready!(seat.runner.poll_rung());
        }
    }

    /// Writes the I/O region.
    #[inline(always)]
    fn start<B: Backend>(&mut self, backend: &mut B, orb: Orb) -> Next {
        let seat = self.seat();
        self.stamps.pinned = self.stamps.now(&seat.context);
        // From here on it cannot be cancelled.
        if let Origin::Instruction(tag) = self.request().origin
            && !seat.shared.cell().begin(tag)
        {
            let refusal = seat.stopped(self.request()).unwrap_or(Refusal::Cancelled);
            return self.refused(refusal);
        }
        if let Err(errno) = backend.start(&orb, self.entry) {
            return self.refused(errno.into());
        }
        self.stamps.started = self.stamps.now(&seat.context);
        Next::Interrupt
    }

    /// Waits for the interrupt that tells of its end or suspension. Where it is stopped meanwhile, the
    /// device hears of it.
    #[inline(always)]
    fn poll_end<B: Backend>(&mut self, backend: &mut B, cx: &mut TaskContext<'_>) -> Poll<Next> {
        let mut rung = false;
        let looks = backend.is_apart() && self.seat().runner.looks();
        let ended = loop {
            let polled = {
                let mut progress = |irb| self.progress(irb);
                backend.poll_interrupt(cx, looks, &mut progress)
            };
            if let Poll::Ready(ended) = polled {
                break ended;
            }
            if backend.is_apart() && self.in_flight.is_none() {
                self.take_off(backend.is_looked_at());
            }
            if self.seat().runner.poll_rung().is_pending() {
                if rung {
                    self.seat().runner.keep();
                }
                return Poll::Pending;
            }
            rung = true;
            self.attend(backend);
        };
        if rung {
            self.seat().runner.keep();
        }
        Poll::Ready(match ended {
            Ok(()) => self.arrive(backend),
            Err(errno) => self.arrive_without_status(errno),
        })
    }

    /// A device has the program, and whoever waits may look at it.
    fn take_off(&mut self, is_looked_at: bool) {
        let (seat, context) = (self.seat(), &*self.seat().context);
        let (runner, now) = (is_looked_at.then(|| seat.runner.clone()), context.clock.raw());
        self.in_flight = Some(context.in_flight.take_off(runner, self.accepted.kind.class, now));
    }

    /// It was rung for while its program runs.
    #[cold]
    fn attend<B: Backend>(&mut self, backend: &mut B) {
        if self.seat().shared.is_leaving() {
            backend.release();
        }
        // CLEAR goes further than the HALT before it.
        if self.stopping != Some(Function::Clear)
            && let Some(Refusal::Stopped(function)) = self.seat().stopped(self.request())
            && self.stopping != Some(function)
        {
            self.stopping = Some(function);
            backend.stop(function);
        }
    }

    /// The device has ended, or suspended, the program.
    #[inline(always)]
    fn arrive<B: Backend>(&mut self, backend: &mut B) -> Next {
        let context = &*self.seat().context;
        self.stamps.interrupted = self.stamps.now(context);
        context.metrics.counters().interrupts.add(1);
        // The device is done with its pages and its shadow. That comes first: the status was written
        // just now, piece by piece, and is read as a whole, for which a processor waits until it is
        // all in its cache.
        self.land();
        let (read, written) = backend.take_moved();
        if read | written != 0 {
            context.metrics.counters().read_bytes.add(read);
            context.metrics.counters().written_bytes.add(written);
        }
        if self.unfetched && self.accepted.weight > 0 {
            self.accepted.kind.operation = Operation::of_bytes(read, written);
        }
        let irb = match backend.irb() {
            Ok(irb) if self.unfetched => irb,
            Ok(irb) => self.flight.program.back_map(irb),
            Err(errno) => return self.refused(errno.into()),
        };
        let usual = self.stopping.is_none()
            && !irb.scsw.flags().contains(ScswFlags::SUSPENDED)
            && self.seat().rules.policy.is_empty();
        if usual {
            self.complete(&irb, outcome(&irb.scsw));
            self.stamps.record(self.seat(), self.accepted.kind, self.request().submitted);
            return Next::Over;
        }
        self.flight.irb = irb;
        self.arrive_unusually(backend)
    }

    /// The device could not run the program to any end.
    #[cold]
    fn arrive_without_status(&mut self, errno: Errno) -> Next {
        match self.stopping.take() {
            Some(function) if errno == Errno::CANCELED => self.refused(Refusal::Stopped(function)),
            _ => self.refused(errno.into()),
        }
    }

    #[cold]
    fn arrive_unusually<B: Backend>(&mut self, backend: &B) -> Next {
        if let Some(function) = self.stopping {
            return self.refused(Refusal::Stopped(function));
        }
        if self.flight.irb.scsw.flags().contains(ScswFlags::SUSPENDED) {
            // The device is at rest, and when the program goes on it is fetched anew: nothing is kept.
            self.suspend();
            return Next::Resumption;
        }
        let (irb, outcome) = (self.flight.irb, self.judged_outcome(backend));
        self.complete(&irb, outcome);
        Next::Over
    }

    /// Waits until it is resumed. Meanwhile it is not running: it goes on with the memory and the
    /// pinning mode that there are then.
    fn poll_resumption<B: Backend>(&mut self, backend: &mut B) -> Poll<Next> {
        let seat = self.seat();
        loop {
            if seat.has_news() {
                let parked = Parked::Suspended(self.request().origin, self.suspended_state());
                seat.take_up_news(Some(backend), Some(parked));
            }
            let held = seat.context.hold.is_on();
            let refusal = match seat.stopped(self.request()) {
                _ if seat.shared.is_leaving() => Refusal::Detached,
                Some(refusal) => refusal,
                None if !held && seat.shared.cell().is_resumed(self.tag()) => break,
                None => {
                    seat.rest();
                    ready!(seat.runner.poll_rung());
                    continue;
                }
            };
            self.end_suspension();
            seat.ended.set(Some(Box::new(self.flight.irb)));
            return Poll::Ready(self.refused(refusal));
        }
        self.end_suspension();
        self.orb = self.orb.with_cpa(self.flight.irb.scsw.cpa().wrapping_sub(8));
        self.entry = Entry::Resume;
        Poll::Ready(self.leg(backend))
    }

    /// What of it is saved.
    fn suspended_state(&self) -> SuspendedState {
        let user_data = match self.request().origin {
            Origin::Ring { user_data, .. } => Some(user_data),
            Origin::Instruction(_) | Origin::Future { .. } => None,
        };
        SuspendedState {
            start: StartState::new(&self.request().orb, user_data),
            status: words(&self.flight.irb),
            bounded: self.flight.program.is_bounded(),
        }
    }

    /// Number of the start function of the subchannel that the suspended program is.
    fn tag(&self) -> Tag {
        match self.request().origin {
            Origin::Instruction(tag) => tag,
            _ => self.suspended.unwrap_or_default(),
        }
    }

    /// For a ring or a future the subchannel has a start function only while it is suspended.
    fn end_suspension(&mut self) {
        if let Some(tag) = self.suspended.take() {
            self.seat().shared.cell().end_suspension(tag);
        }
    }

    /// The device is done with the program: its pages and its shadow are free.
    #[inline(always)]
    fn land(&mut self) {
        let context = &self.seat().context;
        if let Some(key) = self.in_flight.take() {
            context.in_flight.land(key, &context.clock);
        }
        let mode = self.seat().pinning.borrow().mode;
        context.plan.pool.release(&mut self.flight.hold, mode);
        if self.flight.slot.as_ref().is_some_and(Slot::is_large)
            && let Some(slot) = self.flight.slot.take()
        {
            context.arena.borrow_mut().give_back(slot);
        }
        self.view = None;
    }

    /// The end of a request that never began.
    #[cold]
    pub(super) fn refuse(mut self, refusal: Refusal) {
        self.refused(refusal);
        self.finish();
    }

    /// The end is delivered, where it was not yet.
    #[inline(always)]
    pub(super) fn finish(&mut self) {
        if let Some(refusal) = self.refusal.take() {
            self.land();
            self.end_with(&refusal);
        }
    }

    /// How a program is counted whose commands were judged.
    #[cold]
    fn judged_outcome<B: Backend>(&self, backend: &B) -> Outcome {
        let refused = match self.unfetched {
            true => backend.was_refused(),
            false => self.flight.program.is_refusal(&self.flight.irb),
        };
        if refused { Outcome::RefusedPolicy } else { outcome(&self.flight.irb.scsw) }
    }

    #[cold]
    fn end_with(&mut self, refusal: &Refusal) {
        let seat = self.seat();
        if !refusal.is_wished() {
            report(&seat.context, refusal, seat.number);
        }
        let mut irb = refusal.irb(&self.request().orb);
        if self.stopping.is_some() {
            // It ran: how far it came is known.
            let ended = self.flight.irb;
            let (device, none) = (DeviceStatus::empty(), SubchannelStatus::empty());
            let scsw = irb.scsw.with_cpa(ended.scsw.cpa());
            irb.scsw = scsw.with_status(device, none, ended.scsw.count());
            seat.ended.set(Some(Box::new(ended)));
        }
        self.complete(&irb, refusal.outcome());
    }

    /// A CCW with the PCI flag took control.
    #[cold]
    fn progress(&mut self, irb: IrbHead) {
        let irb = if self.unfetched { irb } else { self.flight.program.back_map(irb) };
        self.reports += 1;
        let is_ring = matches!(self.request().origin, Origin::Ring { .. });
        if !is_ring || self.reports <= PROGRESS_REPORTS {
            self.seat().context.metrics.counters().intermediate.add(1);
            self.tell(&irb);
        }
    }

    /// The program is suspended, and the guest is told unless it asked not to be.
    #[cold]
    fn suspend(&mut self) {
        self.seat().context.metrics.counters().suspensions.add(1);
        if !matches!(self.request().origin, Origin::Instruction(_)) {
            // Before anybody hears of it: it may be resumed at once.
            self.suspended = Some(self.seat().shared.cell().begin_suspension());
        }
        let irb = self.flight.irb;
        self.tell(&irb);
    }

    /// Word of what is not the end.
    fn tell(&self, irb: &IrbHead) {
        let seat = self.seat();
        let says_so = irb.scsw.flags().contains(ScswFlags::STATUS_PENDING);
        match (self.request().origin, &seat.outbox) {
            (Origin::Instruction(tag), _) => seat.shared.progress(tag, irb),
            (Origin::Ring { user_data, .. }, Some(outbox)) if says_so => {
                let subchannel = seat.number;
                seat.context.send(outbox, Completion { user_data, subchannel, irb: *irb }, None);
            }
            // A future hears of its end only.
            _ => {}
        }
    }

    /// The flight recorder hears of it.
    fn record(&self, irb: &IrbHead, outcome: Outcome) {
        let Accepted { seat, request, .. } = &self.accepted;
        let mut kind = self.accepted.kind;
        // One that was not read has another's CCWs in its buffers.
        let program = self.fetched.then_some(&self.flight.program);
        // What is timed was asked before.
        if self.accepted.weight == 0
            && let Some(program) = program
        {
            kind.operation = program.operation();
        }
        let recorder = &seat.context.recorder;
        recorder.record(seat.number, kind, request, &self.stamps, program, irb, outcome);
    }

    /// The end is delivered, as the IRB has it.
    #[inline(always)]
    fn complete(&mut self, irb: &IrbHead, outcome: Outcome) {
        let untold = self.reports > 0
            && match self.request().origin {
                Origin::Instruction(_) => false,
                Origin::Ring { .. } => self.reports > PROGRESS_REPORTS,
                Origin::Future { .. } => true,
            };
        // Of a busy shard's requests those that are timed, and those that somebody may ask for.
        let watched = self.accepted.is_watched();
        if RECORDING && (outcome != Outcome::Ok || watched) {
            self.record(irb, outcome);
        }
        match untold {
            false => self.accepted.complete(irb, outcome, watched),
            true => {
                let scsw = irb.scsw.merged_with(program_controlled());
                self.accepted.complete(&IrbHead { scsw, ..*irb }, outcome, watched);
            }
        }
    }
}

/// Status with which a CCW with the PCI flag has taken control.
fn program_controlled() -> Scsw {
    let pci = SubchannelStatus::PROGRAM_CONTROLLED;
    Scsw::default().with_status(DeviceStatus::empty(), pci, 0)
}

impl Accepted<'_> {
    /// Whether somebody wants to know its time: it is timed, or it is slow by the clock's last reading.
    #[inline(always)]
    fn is_watched(&self) -> bool {
        let Context { recorder, lately, .. } = &*self.seat.context;
        RECORDING && (self.weight > 0 || recorder.is_slow(self.request.submitted, lately.get()))
    }

    /// `watched`: somebody wants to know its time.
    #[inline(always)]
    fn complete(&mut self, irb: &IrbHead, outcome: Outcome, watched: bool) {
        self.completed = true;
        let (seat, context) = (self.seat, &*self.seat.context);
        context.metrics.complete(outcome);
        context.plan.activities.of(seat.number).end(outcome == Outcome::Ok);
        if outcome == Outcome::UnitCheck {
            context.metrics.unit_check(irb.sense());
        }
        let (submitted, kind) = (self.request.submitted, self.kind);
        let of = watched.then_some(Ended { submitted, kind, weight: self.weight });
        match (self.request.origin, &seat.outbox) {
            (Origin::Ring { user_data, .. }, Some(outbox)) => {
                let subchannel = seat.number;
                context.send(outbox, Completion { user_data, subchannel, irb: *irb }, of);
            }
            (origin, _) => {
                seat.shared.complete(origin, irb);
                if let Some(ended) = of {
                    context.record_total(seat.number, ended);
                }
            }
        }
    }
}

impl Drop for Accepted<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.completed {
            self.lost();
        }
    }
}

impl Accepted<'_> {
    /// A request must not vanish, whatever bug brought us here: the guest gets an interface-control
    /// check, a debug build stops.
    #[cold]
    fn lost(&mut self) {
        tracing::error!(subchannel = self.seat.number, "a request was dropped without completion");
        let refusal = Refusal::Device(Errno(libc::EIO));
        let (irb, outcome) = (refusal.irb(&self.request.orb), refusal.outcome());
        let Context { recorder, clock, .. } = &*self.seat.context;
        let (number, stamps) = (self.seat.number, Stamps::default());
        recorder.record(number, self.kind, &self.request, &stamps, None, &irb, outcome);
        if std::thread::panicking() {
            recorder.last_words(clock);
        }
        self.complete(&irb, outcome, self.is_watched());
        debug_assert!(std::thread::panicking(), "a request was dropped without completion");
    }
}

/// Writes the shadow program into a slot of the arena.
#[inline(always)]
fn emit(context: &Context, program: &mut Program, slot: &mut Option<Slot>) -> Option<Orb> {
    let mut arena = context.arena.borrow_mut();
    let slot = arena.slot_for(program.bytes(), slot)?;
    let host = arena.slot_host(slot)?;
    program.emit(host, arena.slot_iova(slot))
}

#[inline(always)]
fn count_hold(context: &Context, hold: &Hold) {
    let tally = hold.tally();
    let counters = context.metrics.counters();
    counters.pin_gets.add(tally.gets.into());
    counters.pin_hits.add(tally.hits.into());
    if tally.hits != tally.gets {
        counters.pin_misses.add(tally.misses.into());
        counters.pin_evictions.add(tally.evictions.into());
        counters.pin_waits.add(tally.waits.into());
        counters.pin_calls.add(tally.pin_calls.into());
        counters.pin_unpinned.add(tally.unpinned.into());
    }
}

/// Logs the first refusal and then ever fewer: a guest that sends what cannot run must not fill the
/// log.
fn report(context: &Context, refusal: &Refusal, subchannel: u32) {
    let count = context.refusals.get() + 1;
    context.refusals.set(count);
    if count.is_power_of_two() {
        tracing::warn!(subchannel, refusals = count, "{refusal}");
    }
}
