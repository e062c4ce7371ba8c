//! One subchannel's task: takes requests from the ring and sees each through to its end.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Poll, ready};

use vfio_ccw_metrics::{DeviceClass, Outcome};
use vfio_ccw_pinning::Hold;
use vfio_ccw_queues::submission::Intake;

use crate::architecture::{
    DeviceStatus, IrbHead, Orb, OrbFlags, Scsw, ScswFlags, SubchannelStatus,
};
use crate::backend::{Backend, Errno};
use crate::channel_subsystem::{DmaSpace, Entry};
use crate::shadow::Slot;
use crate::translation::{Program, Rules};
use crate::turn;

use super::context::{Context, Stamps};
use super::delivery::Completion;
use super::mode_switch::{Pinning, Switch};
use super::outbox::Outbox;
use super::refusal::{Refusal, outcome};
use super::runner::Runner;
use super::subchannel::{Request, Shared, deliver};
use super::unfetched::Unfetched;
use super::view::View;

/// Requests served in a row before the neighbours get their turn.
const REQUESTS_A_TURN: usize = 32;

/// What a task works with, apart from its device.
pub(super) struct Seat {
    pub(super) context: Rc<Context>,
    pub(super) shared: Arc<Shared>,
    /// Until the seat is left.
    pub(super) intake: Option<Intake<Request>>,
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

/// The buffers that one program needs while it runs.
#[derive(Debug, Default)]
pub(super) struct Flight {
    program: Program,
    hold: Hold,
    slot: Option<Slot>,
}

/// Serves requests until the subchannel leaves.
pub(super) async fn run<B: Backend>(mut seat: Seat, mut backend: B) {
    loop {
        let mut served = 0;
        keep_up(&seat, |memory| backend.see(memory));
        while !seat.shared.is_leaving()
            && let Some(request) = seat.pop()
        {
            keep_up(&seat, |memory| backend.see(memory));
            serve(&seat, &mut backend, request).await;
            served += 1;
            if served % REQUESTS_A_TURN == 0 {
                turn::pass().await;
            }
        }
        if seat.shared.is_leaving() {
            break;
        }
        seat.wait().await;
    }
}

/// Between two programs: sees the memory that there is now, and changes the pinning mode if asked to.
fn keep_up(seat: &Seat, see: impl FnOnce(&Arc<DmaSpace>)) {
    let mut view = seat.view.borrow_mut();
    if seat.context.has_moved_on_from(&view) {
        *view = seat.context.view();
        see(&view.dma);
    }
    if let Some(switch) = seat.runner.switch.take() {
        let Switch { pinning, done } = *switch;
        seat.shared.set_mode(pinning.mode);
        if let Err(mpsc::SendError(before)) = done.send(seat.pinning.replace(pinning)) {
            // The one who asked has lost patience.
            seat.context.plan.aside.put(before);
        }
    }
}

/// Refuses every request until the subchannel leaves: its device could not be made.
pub(super) async fn run_absent(mut seat: Seat) {
    while !seat.shared.is_leaving() {
        keep_up(&seat, |_| {});
        refuse_rest(&mut seat);
        seat.wait().await;
    }
}

impl Seat {
    fn pop(&mut self) -> Option<Request> {
        self.intake.as_mut()?.pop()
    }

    /// Waits until rung for.
    async fn wait(&self) {
        if let Some(intake) = &self.intake {
            self.runner.expect(intake.next_entry());
        }
        poll_fn(|_| self.runner.poll_rung()).await;
    }
}

/// The task is over, also where it panicked: what is left is refused, and the ring is for whoever
/// still puts something in.
impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.leave();
        refuse_rest(self);
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

fn refuse_rest(seat: &mut Seat) {
    while let Some(request) = seat.pop() {
        let accepted = Accepted::new(seat, request, seat.rules.class);
        seat.context.metrics.counters().starts.add(1);
        let refusal = Refusal::Detached;
        accepted.complete(&mut refusal.irb(&request.orb), refusal.outcome());
    }
}

/// One request, from the ring to its completion.
async fn serve<B: Backend>(seat: &Seat, backend: &mut B, request: Request) {
    let context = &*seat.context;
    let mut accepted = Accepted::new(seat, request, backend.class());
    let mut stamps = Stamps::take(context);
    context.metrics.counters().starts.add(1);
    let mut flight = context.flights.borrow_mut().pop().unwrap_or_default();
    let flown = fly(seat, backend, &mut accepted, &mut flight, &mut stamps).await;
    let result = flown.and_then(|()| {
        let irb = &*backend.irb()?;
        Ok(match seat.rules.policy.is_empty() {
            true => outcome(&irb.scsw),
            false => judged_outcome(seat, backend, &flight, &accepted.request)?,
        })
    });
    land(seat, &mut flight);
    context.flights.borrow_mut().push(flight);
    match result {
        Ok(outcome) => {
            count_moved(context, backend);
            let submitted = accepted.request.submitted;
            if let Ok(irb) = backend.irb() {
                accepted.complete(irb, outcome);
            }
            stamps.record(context, backend.class(), submitted);
        }
        Err(refusal) => {
            report(context, &refusal, seat.shared.number());
            let mut irb = refusal.irb(&accepted.request.orb);
            accepted.complete(&mut irb, refusal.outcome());
        }
    }
}

/// Whether the device itself fetches the program, since that may change itself.
fn is_executed_unfetched(context: &Context, orb: &Orb) -> bool {
    !orb.flags().contains(OrbFlags::PREFETCH) && context.plan.unfetched == Unfetched::Execute
}

/// Runs the program, over its suspensions, to its end.
async fn fly<B: Backend>(
    seat: &Seat,
    backend: &mut B,
    accepted: &mut Accepted<'_>,
    flight: &mut Flight,
    stamps: &mut Stamps,
) -> Result<(), Refusal> {
    let mut orb = accepted.request.orb;
    let executes = is_executed_unfetched(seat.context.as_ref(), &orb);
    if !orb.flags().contains(OrbFlags::PREFETCH) {
        seat.context.metrics.counters().unfetched.add(1);
        if seat.context.plan.unfetched == Unfetched::Refuse {
            return Err(Refusal::Unfetched);
        }
    }
    let mut entry = Entry::Start;
    loop {
        if executes {
            unfetched_leg(seat, backend, accepted, stamps, orb, entry).await?;
        } else {
            leg(seat, backend, accepted, flight, stamps, orb, entry).await?;
        }
        let irb = backend.irb()?;
        if !irb.scsw.flags().contains(ScswFlags::SUSPENDED) {
            return Ok(());
        }
        let irb = *irb;
        // The device is at rest, and when the program goes on it is fetched anew: nothing is kept.
        land(seat, flight);
        accepted.suspend(irb);
        resumption(seat, backend).await?;
        orb = orb.with_cpa(irb.scsw.cpa().wrapping_sub(8));
        entry = Entry::Resume;
    }
}

/// Fetch, check, emit; hold; start; interrupt; finish.
async fn leg<B: Backend>(
    seat: &Seat,
    backend: &mut B,
    accepted: &mut Accepted<'_>,
    flight: &mut Flight,
    stamps: &mut Stamps,
    orb: Orb,
    entry: Entry,
) -> Result<(), Refusal> {
    let context = &*seat.context;
    let Flight { program, hold, slot } = flight;
    // Kept to the end: memory that leaves the layout stays until then.
    let view = seat.view.borrow().clone();
    match entry {
        Entry::Start => program.fetch(&orb, &view.map, &seat.rules, hold),
        Entry::Resume => program.refetch(&orb, &view.map, &seat.rules, hold),
    }
    let shadow =
        emit(context, program, slot).ok_or(Refusal::NoShadow { bytes: program.bytes() })?;
    stamps.translated = stamps.now(context);

    let is_covered = (seat.pinning.borrow().whole_guest.as_ref())
        .map(|whole_guest| whole_guest.cover(hold))
        .is_some();
    hold.limit_bytes(seat.share);
    let held = match is_covered || context.plan.pool.try_hold(hold) {
        true => Ok(()),
        false => hold_pages(seat, hold).await,
    };
    count_hold(context, hold);
    held?;
    stamps.pinned = stamps.now(context);

    backend.start(&shadow, entry)?;
    stamps.started = stamps.now(context);

    backend.interrupt(&mut |irb| accepted.progress(program.back_map(irb))).await?;
    stamps.interrupted = stamps.now(context);
    context.metrics.counters().interrupts.add(1);

    program.back_map_in_place(backend.irb()?);
    Ok(())
}

/// Holds the program's pages, however long that takes, unless the subchannel must leave.
async fn hold_pages(seat: &Seat, hold: &mut Hold) -> Result<(), Refusal> {
    let mut holding = pin!(seat.context.plan.pool.hold(hold));
    let mut rung = false;
    let held = poll_fn(|cx| {
        if let Poll::Ready(held) = holding.as_mut().poll(cx) {
            return Poll::Ready(held.map_err(Refusal::from));
        }
        loop {
            if seat.shared.is_leaving() {
                return Poll::Ready(Err(Refusal::Detached));
            }
            ready!(seat.runner.poll_rung());
            rung = true;
        }
    })
    .await;
    if rung {
        // Whatever else it was for is looked at after this program.
        seat.runner.keep();
    }
    held
}

/// Start; interrupt; finish: the device fetches the guest's own program.
async fn unfetched_leg<B: Backend>(
    seat: &Seat,
    backend: &mut B,
    accepted: &mut Accepted<'_>,
    stamps: &mut Stamps,
    orb: Orb,
    entry: Entry,
) -> Result<(), Refusal> {
    let context = &*seat.context;
    // The device reaches guest memory through its own view, which it keeps while it runs.
    (stamps.translated, stamps.pinned) = (stamps.taken, stamps.taken);
    backend.start(&orb, entry)?;
    stamps.started = stamps.now(context);
    backend.interrupt(&mut |irb| accepted.progress(irb)).await?;
    stamps.interrupted = stamps.now(context);
    context.metrics.counters().interrupts.add(1);
    Ok(())
}

/// The device is done with a program: its pages and its shadow are free.
fn land(seat: &Seat, flight: &mut Flight) {
    let context = &seat.context;
    context.plan.pool.release(&mut flight.hold, seat.pinning.borrow().mode);
    if let Some(slot) = flight.slot.take() {
        context.arena.borrow_mut().give_back(slot);
    }
}

/// Waits until a suspended program is resumed. Meanwhile it is not running: it goes on with the
/// memory and the pinning mode that there are then.
async fn resumption<B: Backend>(seat: &Seat, backend: &mut B) -> Result<(), Refusal> {
    loop {
        keep_up(seat, |memory| backend.see(memory));
        if seat.shared.is_leaving() {
            return Err(Refusal::Detached);
        }
        if seat.shared.take_resumption() {
            return Ok(());
        }
        seat.wait().await;
    }
}

/// Writes the shadow program into a slot of the arena.
fn emit(context: &Context, program: &mut Program, slot: &mut Option<Slot>) -> Option<Orb> {
    let mut arena = context.arena.borrow_mut();
    let taken = slot.insert(arena.take(program.bytes())?);
    let host = arena.slot_host(taken)?;
    program.emit(host, arena.slot_iova(taken))
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
        counters.pin_calls.add(tally.pin_calls.into());
        counters.pin_unpinned.add(tally.unpinned.into());
    }
}

/// How a program is counted whose commands were judged.
fn judged_outcome<B: Backend>(
    seat: &Seat,
    backend: &mut B,
    flight: &Flight,
    request: &Request,
) -> Result<Outcome, Refusal> {
    let refused = match is_executed_unfetched(&seat.context, &request.orb) {
        true => backend.was_refused(),
        false => flight.program.is_refusal(backend.irb()?),
    };
    let irb = &*backend.irb()?;
    Ok(if refused { Outcome::RefusedPolicy } else { outcome(&irb.scsw) })
}

fn count_moved<B: Backend>(context: &Context, backend: &mut B) {
    let (read, written) = backend.take_moved();
    let counters = context.metrics.counters();
    counters.read_bytes.add(read);
    counters.written_bytes.add(written);
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

/// Completions that one program may have in a ring for its PCI flags. More are told with its end,
/// so that a program cannot flood the ring.
const PROGRESS_REPORTS: u32 = 16;

/// A request that was accepted and must be completed exactly once.
#[must_use]
struct Accepted<'a> {
    context: &'a Context,
    shared: &'a Shared,
    outbox: Option<&'a Rc<Outbox>>,
    class: DeviceClass,
    request: Request,
    /// Times that word of progress was delivered.
    reports: u32,
    completed: bool,
}

impl<'a> Accepted<'a> {
    fn new(seat: &'a Seat, request: Request, class: DeviceClass) -> Self {
        Accepted {
            context: &seat.context,
            shared: &seat.shared,
            outbox: seat.outbox.as_ref(),
            class,
            request,
            reports: 0,
            completed: false,
        }
    }

    /// A CCW with the PCI flag took control.
    fn progress(&mut self, irb: IrbHead) {
        self.reports += 1;
        if self.outbox.is_none() || self.reports <= PROGRESS_REPORTS {
            self.context.metrics.counters().intermediate.add(1);
            self.send(&irb, None);
        }
    }

    /// The program is suspended, and the guest is told unless it asked not to be.
    fn suspend(&mut self, irb: IrbHead) {
        self.context.metrics.counters().suspensions.add(1);
        // Before the guest hears of it: it may resume at once.
        self.shared.suspend();
        if irb.scsw.flags().contains(ScswFlags::STATUS_PENDING) {
            self.send(&irb, None);
        } else {
            self.shared.update_intermediate(irb);
        }
    }

    #[inline(always)]
    fn complete(mut self, irb: &mut IrbHead, outcome: Outcome) {
        self.completed = true;
        if self.outbox.is_some() && self.reports > PROGRESS_REPORTS {
            let pci = SubchannelStatus::PROGRAM_CONTROLLED;
            let earlier = Scsw::default().with_status(DeviceStatus::empty(), pci, 0);
            irb.scsw = irb.scsw.merged_with(earlier);
        }
        self.deliver(irb, outcome);
    }

    #[inline(always)]
    fn deliver(&self, irb: &IrbHead, outcome: Outcome) {
        self.context.metrics.complete(outcome);
        self.send(irb, Some((self.request.submitted, self.class)));
    }

    /// `of`: when the request was submitted, where this is the end of it.
    #[inline(always)]
    fn send(&self, irb: &IrbHead, of: Option<(u64, DeviceClass)>) {
        let user_data = self.request.user_data;
        match self.outbox {
            Some(outbox) => {
                let completion = Completion { user_data, subchannel: self.shared.number(), irb: *irb };
                self.context.send(outbox, completion, of);
            }
            None => {
                deliver(self.shared, user_data, *irb);
                self.context.record_total(of);
            }
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
        self.deliver(&refusal.irb(&self.request.orb), refusal.outcome());
        debug_assert!(std::thread::panicking(), "a request was dropped without completion");
    }
}
