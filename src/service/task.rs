//! One subchannel's task: takes requests from the ring and sees each through to its end.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use vfio_ccw_metrics::{Outcome, RECORDING, Stage};
use vfio_ccw_pinning::Hold;
use vfio_ccw_queues::submission::Intake;

use crate::architecture::{IrbHead, Orb};
use crate::backend::{Backend, Errno, IoRegion};
use crate::shadow::Slot;
use crate::translation::Program;
use crate::turn;

use super::refusal::{Refusal, outcome};
use super::shard::{Context, Signal};
use super::subchannel::{Request, Shared, deliver};

/// Requests served in a row before the neighbours get their turn.
const REQUESTS_A_TURN: usize = 32;

/// What a task works with, apart from its device.
pub(super) struct Seat {
    pub(super) context: Rc<Context>,
    pub(super) shared: Arc<Shared>,
    pub(super) intake: Intake<Request>,
    pub(super) signal: Rc<Signal>,
    /// Index of the completion ring, if results go to one.
    pub(super) ring: Option<usize>,
}

/// The buffers that one program needs while it runs.
#[derive(Debug, Default)]
pub(super) struct Flight {
    program: Program,
    hold: Hold,
    slot: Option<Slot>,
}

/// Raw clock values at the ends of the stages.
#[derive(Clone, Copy, Debug, Default)]
struct Stamps {
    taken: u64,
    translated: u64,
    pinned: u64,
    started: u64,
    interrupted: u64,
}

/// Serves requests until the subchannel leaves.
pub(super) async fn run<B: Backend>(mut seat: Seat, mut backend: B) {
    loop {
        let mut served = 0;
        while !seat.shared.is_leaving()
            && let Some(request) = seat.intake.pop()
        {
            serve(&seat, &mut backend, request).await;
            served += 1;
            if served % REQUESTS_A_TURN == 0 {
                turn::pass().await;
            }
        }
        if seat.shared.is_leaving() {
            break;
        }
        poll_fn(|cx| seat.signal.poll(cx)).await;
    }
    end(seat);
}

/// Refuses every request until the subchannel leaves: its device could not be made.
pub(super) async fn run_absent(mut seat: Seat) {
    while !seat.shared.is_leaving() {
        refuse_rest(&mut seat);
        poll_fn(|cx| seat.signal.poll(cx)).await;
    }
    end(seat);
}

/// Refuses what is left, and leaves the ring to whoever still puts something in.
fn end(mut seat: Seat) {
    refuse_rest(&mut seat);
    let Seat { context, shared, intake, .. } = seat;
    shared.abandon(intake);
    context.ended(&shared);
}

fn refuse_rest(seat: &mut Seat) {
    while let Some(request) = seat.intake.pop() {
        let accepted = Accepted::new(seat, request);
        seat.context.metrics.counters().starts.add(1);
        let refusal = Refusal::Detached;
        accepted.complete(refusal.irb(&request.orb), refusal.outcome());
    }
}

/// One request, from the ring to its completion.
async fn serve<B: Backend>(seat: &Seat, backend: &mut B, request: Request) {
    let context = &*seat.context;
    let accepted = Accepted::new(seat, request);
    let mut stamps = Stamps { taken: now(context), ..Stamps::default() };
    context.metrics.counters().starts.add(1);
    let mut flight = context.flights.borrow_mut().pop().unwrap_or_default();
    let result = fly(seat, backend, &request.orb, &mut flight, &mut stamps).await;
    context.plan.pool.release(&mut flight.hold, context.plan.mode);
    if let Some(slot) = flight.slot.take() {
        context.arena.borrow_mut().give_back(slot);
    }
    context.flights.borrow_mut().push(flight);
    match result {
        Ok(irb) => {
            accepted.complete(irb, outcome(&irb.scsw));
            record(context, backend, &request, &stamps);
        }
        Err(refusal) => {
            report(context, &refusal, seat.shared.number());
            accepted.complete(refusal.irb(&request.orb), refusal.outcome());
        }
    }
}

/// Fetch, check, emit; hold; start; interrupt; finish.
async fn fly<B: Backend>(
    seat: &Seat,
    backend: &mut B,
    orb: &Orb,
    flight: &mut Flight,
    stamps: &mut Stamps,
) -> Result<IrbHead, Refusal> {
    let context = &*seat.context;
    let plan = &context.plan;
    let Flight { program, hold, slot } = flight;
    program.fetch(orb, &plan.map, &plan.limits, hold);
    let shadow =
        emit(context, program, slot).ok_or(Refusal::NoShadow { bytes: program.bytes() })?;
    stamps.translated = now(context);

    hold.limit_bytes(plan.share);
    let held = plan.pool.hold(hold).await;
    count_hold(context, hold);
    held?;
    stamps.pinned = now(context);

    let mut region = IoRegion::start(shadow);
    backend.start(&mut region)?;
    stamps.started = now(context);

    backend.interrupt().await?;
    stamps.interrupted = now(context);
    context.metrics.counters().interrupts.add(1);

    backend.read(&mut region)?;
    let mut irb = region.irb.head;
    irb.scsw = program.back_map(irb.scsw);
    Ok(irb)
}

/// Writes the shadow program into a slot of the arena.
fn emit(context: &Context, program: &mut Program, slot: &mut Option<Slot>) -> Option<Orb> {
    let mut arena = context.arena.borrow_mut();
    let taken = slot.insert(arena.take(program.bytes())?);
    let host = arena.slot_host(taken)?;
    program.emit(host, arena.slot_iova(taken))
}

fn now(context: &Context) -> u64 {
    if RECORDING { context.clock.raw() } else { 0 }
}

fn count_hold(context: &Context, hold: &Hold) {
    let tally = hold.tally();
    let counters = context.metrics.counters();
    counters.pin_gets.add(tally.gets.into());
    counters.pin_hits.add(tally.hits.into());
    if tally.hits != tally.gets {
        counters.pin_misses.add(tally.misses.into());
        counters.pin_evictions.add(tally.evictions.into());
        counters.pin_waits.add(tally.waits.into());
    }
}

fn record<B: Backend>(context: &Context, backend: &mut B, request: &Request, stamps: &Stamps) {
    let (read, written) = backend.take_moved();
    let counters = context.metrics.counters();
    counters.read_bytes.add(read);
    counters.written_bytes.add(written);
    if !RECORDING {
        return;
    }
    let delivered = now(context);
    let class = context.metrics.class(backend.class());
    let nanos = |from, to| context.clock.delta_as_nanos(from, to);
    class.record(Stage::Queue, nanos(request.submitted, stamps.taken));
    class.record(Stage::Translate, nanos(stamps.taken, stamps.translated));
    class.record(Stage::Pin, nanos(stamps.translated, stamps.pinned));
    class.record(Stage::Start, nanos(stamps.pinned, stamps.started));
    class.record(Stage::Device, nanos(stamps.started, stamps.interrupted));
    class.record(Stage::Deliver, nanos(stamps.interrupted, delivered));
    class.record(Stage::Total, nanos(request.submitted, delivered));
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

/// A request that was accepted and must be completed exactly once.
#[must_use]
struct Accepted<'a> {
    context: &'a Context,
    shared: &'a Shared,
    ring: Option<usize>,
    request: Request,
    completed: bool,
}

impl<'a> Accepted<'a> {
    fn new(seat: &'a Seat, request: Request) -> Self {
        Accepted {
            context: &seat.context,
            shared: &seat.shared,
            ring: seat.ring,
            request,
            completed: false,
        }
    }

    fn complete(mut self, irb: IrbHead, outcome: Outcome) {
        self.completed = true;
        self.deliver(irb, outcome);
    }

    fn deliver(&self, irb: IrbHead, outcome: Outcome) {
        self.context.metrics.complete(outcome);
        deliver(self.shared, self.request.user_data, irb);
        if let Some(ring) = self.ring {
            self.context.delivered_to(ring);
        }
    }
}

impl Drop for Accepted<'_> {
    fn drop(&mut self) {
        if self.completed {
            return;
        }
        // A request must not vanish, whatever bug brought us here: the guest gets an
        // interface-control check, a debug build stops.
        tracing::error!(
            subchannel = self.shared.number(),
            "a request was dropped without completion"
        );
        let refusal = Refusal::Device(Errno(libc::EIO));
        self.deliver(refusal.irb(&self.request.orb), refusal.outcome());
        debug_assert!(std::thread::panicking(), "a request was dropped without completion");
    }
}
