//! What the tasks of one shard share. One thread: cells instead of locks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::task::Waker;

use quanta::Clock;
use vfio_ccw_metrics::{DeviceClass, Kind, RECORDING, ShardMetrics, Stage};

use crate::backend::remote::Trunks;
use crate::shadow::Arena;
use crate::sleeper::Sleeper;
use crate::subchannel::Shared;
use crate::translation::{Policy, Rules};
use crate::volume::Fixed;

use super::attach::attach;
use super::delivery::{Completion, Delivery};
use super::drain::take_away;
use super::flight::Flight;
use super::in_flight::InFlight;
use super::outbox::Outbox;
use super::quiesce::Hold;
use super::recorder::Recorder;
use super::runner::Runner;
use super::save::SavedTask;
use super::shard::{Common, Mail, Plan};
use super::task::Seat;
use super::view::View;

/// What the tasks of a shard share.
pub(super) struct Context {
    pub(super) plan: Plan,
    /// Guest memory for programs that start now.
    view: RefCell<Rc<View>>,
    /// Changes of the layout that it knows of.
    version: Cell<u64>,
    /// The ring for registered frames.
    fixed: Option<Rc<Fixed>>,
    pub(super) arena: RefCell<Arena>,
    pub(super) metrics: Arc<ShardMetrics>,
    pub(super) clock: Clock,
    pub(super) sampling: Sampling,
    pub(super) in_flight: InFlight,
    pub(super) recorder: Recorder,
    /// Raw clock value when the clock was last read.
    pub(super) lately: Cell<u64>,
    pub(super) hold: Hold,
    /// Lanes to servers of devices.
    pub(super) trunks: Rc<Trunks>,
    /// Buffers of programs that have ended, for the next ones.
    #[expect(
        clippy::vec_box,
        reason = "a flight moves to its task and back: a pointer, not 300 bytes"
    )]
    pub(super) flights: RefCell<Vec<Box<Flight>>>,
    /// Programs refused so far; decides which refusals are worth a line in the log.
    pub(super) refusals: Cell<u64>,
    common: Arc<Common>,
    /// The subchannels by their bits.
    runners: RefCell<Vec<Option<Rc<Runner>>>>,
    outboxes: RefCell<Vec<Rc<Outbox>>>,
    /// Rules of devices without a policy of their own, one for each class.
    rules: RefCell<Vec<Arc<Rules>>>,
    /// Those with something in them.
    full: RefCell<Vec<Rc<Outbox>>>,
    /// Rings that were answered, to wrap.
    rings: Cell<u32>,
    dispatcher: Sleeper,
    /// The dispatcher is what runs.
    dispatches: Cell<bool>,
    file_io: Rc<Cell<usize>>,
    live: Cell<usize>,
}

impl Context {
    pub(super) fn new(
        common: Arc<Common>,
        plan: Plan,
        view: View,
        arena: Arena,
        fixed: Option<Rc<Fixed>>,
        metrics: Arc<ShardMetrics>,
        recorder: Recorder,
    ) -> Self {
        let bits = common.door.doorbell.bits();
        Context {
            plan,
            view: RefCell::new(Rc::new(view)),
            version: Cell::new(0),
            fixed,
            arena: RefCell::new(arena),
            metrics,
            clock: Clock::new(),
            sampling: Sampling::default(),
            in_flight: InFlight::default(),
            recorder,
            lately: Cell::new(0),
            hold: Hold::default(),
            trunks: Rc::default(),
            flights: RefCell::default(),
            refusals: Cell::new(0),
            common,
            runners: RefCell::new(vec![None; bits]),
            outboxes: RefCell::default(),
            rules: RefCell::default(),
            full: RefCell::default(),
            rings: Cell::new(0),
            dispatcher: Sleeper::default(),
            dispatches: Cell::new(false),
            file_io: Rc::new(Cell::new(0)),
            live: Cell::new(0),
        }
    }

    /// Guest memory for programs that start now.
    pub(super) fn view(&self) -> Rc<View> {
        self.view.borrow().clone()
    }

    /// Guest memory for programs that start now, if that is not `view`.
    pub(super) fn moved_on_from(&self, view: &Rc<View>) -> Option<Rc<View>> {
        if self.is_outdated() {
            self.catch_up();
        }
        let now = self.view.borrow();
        (!Rc::ptr_eq(view, &now)).then(|| now.clone())
    }

    /// Whether guest memory has another layout, of which the shard does not know yet.
    #[inline]
    pub(super) fn is_outdated(&self) -> bool {
        self.common.latest.version() != self.version.get()
    }

    fn catch_up(&self) {
        self.version.set(self.common.latest.version());
        let Some(layout) = self.common.latest.take() else { return };
        match layout.view(&self.arena.borrow()) {
            Ok(view) => *self.view.borrow_mut() = Rc::new(view),
            // The service has checked it before it sent it.
            Err(error) => tracing::error!(%error, "guest memory stays as it was"),
        }
    }

    /// Guest memory has another layout: every task sees it now, if no program of its runs.
    fn show_memory(&self) {
        self.catch_up();
        self.for_each_runner(|runner| runner.tell_news());
    }

    fn for_each_runner(&self, mut each: impl FnMut(&Runner)) {
        let bits = self.runners.borrow().len();
        for bit in 0..bits {
            let runner = self.runners.borrow()[bit].clone();
            runner.iter().for_each(|runner| each(runner));
        }
    }

    /// No program begins from now on; `coming` is held until none runs.
    fn hold(&self, coming: mpsc::Sender<()>) {
        self.for_each_runner(Runner::be_restless);
        self.hold.begin(self.live(), coming);
        self.publish_restless();
        self.for_each_runner(Runner::tell_news);
    }

    fn let_go(&self) {
        self.hold.end();
        self.publish_restless();
        self.for_each_runner(Runner::tell_news);
    }

    /// The subchannel that `runner` runs has nothing that runs.
    pub(super) fn rests(&self, runner: &Runner) {
        self.hold.rests(runner);
        self.publish_restless();
    }

    fn publish_restless(&self) {
        // Relaxed: for the message of an error.
        self.common.restless.store(self.hold.restless(), Ordering::Relaxed);
    }

    fn save(&self, answer: &mpsc::Sender<SavedTask>) {
        self.for_each_runner(|runner| {
            runner.ask(answer.clone());
            runner.tell_news();
        });
    }

    /// Takes a subchannel in: it is rung for at `bit`.
    pub(super) fn seat(&self, bit: usize, runner: Rc<Runner>) {
        self.runners.borrow_mut()[bit] = Some(runner);
        self.live.set(self.live.get() + 1);
    }

    /// The task of `shared` is over.
    pub(super) fn ended(&self, shared: &Shared) {
        // Whoever waits for the end then finds the last of its completions.
        self.deliver();
        let runner = self.runners.borrow_mut()[shared.bit()].take();
        runner.iter().for_each(|runner| self.rests(runner));
        shared.end();
        self.common.free_bits.lock().push(shared.bit());
        self.common.table.give_back(shared.number());
        self.live.set(self.live.get() - 1);
        self.wake_dispatcher();
    }

    /// The device of `shared` is gone, as the host wants: as if it had been detached.
    pub(super) fn give_up(&self, shared: &Arc<Shared>) {
        take_away(shared, &self.common.table, &self.plan.reports);
    }

    /// Subchannels on this shard.
    pub(super) fn live(&self) -> usize {
        self.live.get()
    }

    /// Runs the subchannel that was rung for at `bit`.
    #[inline]
    pub(super) fn ring(&self, bit: usize) {
        let runner = self.runners.borrow()[bit].clone();
        if let Some(runner) = runner {
            let now = self.rings.get().wrapping_add(1);
            self.rings.set(now);
            runner.ring_at(now);
        }
    }

    /// Asks for the next request of the subchannel at `bit`. Whether what it works with has probably left
    /// the cache: so many others have run since it last did.
    #[inline]
    pub(super) fn prefetch(&self, bit: usize) -> bool {
        let runners = self.runners.borrow();
        let Some(runner) = &runners[bit] else { return false };
        runner.prefetch();
        self.rings.get().wrapping_sub(runner.ran()) > CACHED
    }

    /// Asks for what the subchannel at `bit` works with.
    #[inline]
    pub(super) fn prefetch_work(&self, bit: usize) {
        if let Some(runner) = &self.runners.borrow()[bit] {
            runner.prefetch_work();
        }
    }

    /// Does what the service has sent, and hands on what overtakes starts.
    pub(super) fn read_mail(self: &Rc<Self>) {
        self.read_urgent();
        let mails = std::mem::take(&mut *self.common.mailbox.lock());
        mails.into_iter().for_each(|mail| self.read(mail));
    }

    fn read_urgent(&self) {
        while let Some(urgent) = self.common.door.pop() {
            match self.runner_of(&urgent.shared) {
                Some(runner) => {
                    runner.push_urgent(urgent);
                    runner.ring();
                }
                None => urgent.shared.refuse_urgent(&urgent),
            }
        }
    }

    /// What runs `shared`, if it is not over.
    fn runner_of(&self, shared: &Arc<Shared>) -> Option<Rc<Runner>> {
        let runner = self.runners.borrow()[shared.bit()].clone();
        runner.filter(|runner| runner.is_of(shared))
    }

    fn read(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Attach(attachment) => attach(self, *attachment),
            Mail::Memory => self.show_memory(),
            Mail::Hold(coming) => self.hold(coming),
            Mail::LetGo => self.let_go(),
            Mail::Save(answer) => self.save(&answer),
            // Whoever asked may have lost patience.
            Mail::Recall(answer) => drop(answer.send(self.recorder.recall(&self.clock))),
            Mail::Switch(shared, switch) => match self.runner_of(&shared) {
                Some(runner) => {
                    runner.switch.put(switch, &self.plan.aside);
                    runner.tell_news();
                }
                // Detached.
                None => self.plan.aside.put(switch.pinning),
            },
        }
    }

    /// Whether the service wants the shard to end and has nothing more to say.
    pub(super) fn is_ending(&self) -> bool {
        // Acquire: pairs with the Release in `ShardLink::end`.
        self.common.ending.load(Ordering::Acquire) && self.common.mailbox.lock().is_empty()
    }

    /// What programs of a device are held to. Devices without a policy share theirs, and the cache lines
    /// that it is in.
    pub(super) fn rules(&self, class: DeviceClass, policy: Policy, pins_areas: bool) -> Arc<Rules> {
        let is_plain = policy.is_empty();
        let mut known = self.rules.borrow_mut();
        let is_same = |rules: &&Arc<Rules>| rules.class == class && rules.pins_areas == pins_areas;
        if is_plain && let Some(rules) = known.iter().find(is_same) {
            return rules.clone();
        }
        let (limits, keys) = (self.plan.limits, self.plan.keys.clone());
        let rules = Arc::new(Rules { limits, class, policy, keys, pins_areas });
        if is_plain {
            known.push(rules.clone());
        }
        rules
    }

    /// Where completions gather that go where `delivery` says.
    pub(super) fn outbox_of(&self, delivery: &Delivery) -> Option<Rc<Outbox>> {
        let Delivery::Ring(sender) = delivery else {
            return None;
        };
        let mut outboxes = self.outboxes.borrow_mut();
        if let Some(known) = outboxes.iter().find(|outbox| outbox.is_for(sender)) {
            return Some(known.clone());
        }
        let outbox = Rc::new(Outbox::new(sender.clone()));
        outboxes.push(outbox.clone());
        Some(outbox)
    }

    /// Puts a completion on its way; `of`: when its request was submitted, if this is the end of it.
    #[inline(always)]
    pub(super) fn send(&self, outbox: &Rc<Outbox>, completion: Completion, of: Option<Ended>) {
        if outbox.push(completion, of, self) {
            self.full.borrow_mut().push(outbox.clone());
            self.wake_dispatcher();
        }
    }

    /// Records how long the request of subchannel `number` took that is over now.
    #[inline]
    pub(super) fn record_total(&self, number: u32, ended: Ended) {
        self.took(number, ended, self.now());
    }

    /// The time, as a raw clock value.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        let now = self.clock.raw();
        self.lately.set(now);
        now
    }

    /// A request was over at `now`, a raw clock value.
    #[inline(always)]
    pub(super) fn took(&self, number: u32, ended: Ended, now: u64) {
        let Ended { submitted, kind, weight } = ended;
        if weight > 0 {
            let nanos = self.clock.delta_as_nanos(submitted, now);
            self.metrics.durations(kind).record_for(Stage::Total, nanos, weight.into());
        }
        if self.recorder.is_slow(submitted, now) {
            let nanos = self.clock.delta_as_nanos(submitted, now);
            self.recorder.was_slow(number, submitted, nanos, &self.clock, &self.metrics);
        }
    }

    /// Delivers all completions that are on their way, and wakes servers for what was started.
    pub(super) fn deliver(&self) {
        self.trunks.flush();
        let mut full = self.full.borrow_mut();
        full.drain(..).for_each(|outbox| outbox.deliver(self));
    }

    /// How file I/O under way is counted.
    pub(super) fn file_io(&self) -> Rc<Cell<usize>> {
        self.file_io.clone()
    }

    /// Whether file I/O is under way.
    pub(super) fn has_file_io(&self) -> bool {
        self.file_io.get() > 0
    }

    pub(super) fn fixed(&self) -> Option<Rc<Fixed>> {
        self.fixed.clone()
    }

    /// The dispatcher's waker is `waker`.
    pub(super) fn remember_dispatcher(&self, waker: &Waker) {
        self.dispatcher.remember(waker);
    }

    /// The dispatcher runs, and sees to all there is before it returns to the runtime.
    pub(super) fn dispatches(&self, now: bool) {
        self.trunks.gather(now);
        self.dispatches.set(now);
    }

    /// Lets the dispatcher run, where it does not.
    fn wake_dispatcher(&self) {
        // It would run once more for nothing, and look for other work before it sleeps: a system call.
        if !self.dispatches.get() {
            self.dispatcher.wake();
        }
    }
}

/// Subchannels of which the cache of a core holds all that they work with, some 3 KiB each.
const CACHED: u32 = 256;

/// Which requests are timed stage by stage.
///
/// A stamp costs as much as a whole stage of a request on a fast device. So while a shard has little
/// to do, every request is timed; while it is rung for many subchannels at a time, one in
/// [`Sampling::BUSY`] on average, which counts for all since the one before.
#[derive(Debug)]
pub(super) struct Sampling {
    /// One in so many is timed.
    period: Cell<u32>,
    /// Requests until the next one is timed.
    left: Cell<u32>,
    /// Requests since the last one that was timed.
    since: Cell<u32>,
    /// For how far the next one is from one in so many: or it would be the same subchannels' all the time.
    jitter: Cell<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        // The first request is timed, however few there will be.
        Sampling {
            period: Cell::new(1),
            left: Cell::new(0),
            since: Cell::new(0),
            jitter: Cell::new(1),
        }
    }
}

impl Sampling {
    /// Requests for one that is timed on a busy shard.
    const BUSY: u32 = 16;

    /// Marks in one word of the doorbell from which on a shard is busy.
    const MANY: u32 = 8;

    /// The doorbell had so many marks.
    #[inline]
    pub(super) fn rang(&self, marks: u32) {
        let period = if marks >= Self::MANY { Self::BUSY } else { 1 };
        self.period.set(period);
        self.left.set(self.left.get().min(Self::most(period) - 1));
    }

    /// The farthest that one in `period` may be from the next.
    const fn most(period: u32) -> u32 {
        period + period / 2
    }

    /// How far the next one is: the period, or up to half of it more or less.
    fn distance(&self) -> u32 {
        let (period, half) = (self.period.get(), self.period.get() / 2);
        // Numerical Recipes' generator; the high bits are the good ones.
        let next = self.jitter.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.jitter.set(next);
        let drawn = (u64::from(next) * u64::from(2 * half + 1)) >> 32;
        period - half + drawn as u32
    }

    /// How many requests the next one stands for, if it is timed.
    #[inline]
    pub(super) fn next(&self) -> Option<u32> {
        if !RECORDING {
            return None;
        }
        let since = self.since.get() + 1;
        match self.left.get() {
            0 => {
                self.left.set(self.distance() - 1);
                self.since.set(0);
                Some(since)
            }
            left => {
                self.left.set(left - 1);
                self.since.set(since);
                None
            }
        }
    }
}

/// What is known of a request when it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// Raw clock value when it was submitted.
    pub(super) submitted: u64,
    pub(super) kind: Kind,
    /// Requests that its time stands for; 0: none.
    pub(super) weight: u32,
}

/// Raw clock values at the ends of the stages of one request, if it is timed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamps {
    /// Requests that this one stands for; 0: it is not timed.
    weight: u32,
    pub(super) taken: u64,
    pub(super) translated: u64,
    pub(super) pinned: u64,
    pub(super) started: u64,
    pub(super) interrupted: u64,
}

impl Stamps {
    /// Those of a request that is taken now.
    #[inline]
    pub(super) fn take(context: &Context) -> Self {
        let weight = context.sampling.next().unwrap_or(0);
        let mut stamps = Stamps { weight, ..Stamps::default() };
        stamps.taken = stamps.now(context);
        stamps
    }

    /// The time, if the request is timed.
    #[inline]
    pub(super) fn now(&self, context: &Context) -> u64 {
        if self.weight > 0 { context.now() } else { 0 }
    }

    /// Requests that its time stands for; 0: it is not timed.
    #[inline]
    pub(super) fn weight(&self) -> u32 {
        self.weight
    }

    /// Records all stages of a request that was submitted at `submitted` and is over.
    #[inline]
    pub(super) fn record(&self, seat: &Seat, kind: Kind, submitted: u64) {
        if self.weight > 0 {
            self.record_stages(seat, kind, submitted);
        }
    }

    fn record_stages(&self, seat: &Seat, kind: Kind, submitted: u64) {
        let context = &*seat.context;
        let delivered = self.now(context);
        let nanos = context.clock.delta_as_nanos(self.taken, delivered);
        context.plan.activities.of(seat.number).was_busy(nanos);
        let durations = context.metrics.durations(kind);
        let deliver = [(Stage::Deliver, self.interrupted, delivered)];
        for (stage, from, to) in self.stages(submitted).into_iter().chain(deliver) {
            let nanos = context.clock.delta_as_nanos(from, to);
            durations.record_for(stage, nanos, self.weight.into());
        }
    }

    /// Begin and end of each stage up to the interrupt, of a request that was submitted at `submitted`.
    pub(super) fn stages(&self, submitted: u64) -> [(Stage, u64, u64); 5] {
        [
            (Stage::Queue, submitted, self.taken),
            (Stage::Translate, self.taken, self.translated),
            (Stage::Pin, self.translated, self.pinned),
            (Stage::Start, self.pinned, self.started),
            (Stage::Device, self.started, self.interrupted),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_of_all_subchannels_alike() {
        const SUBCHANNELS: u32 = 16;
        const ROUNDS: u32 = 10_000;
        let sampling = Sampling::default();
        let mut timed = [0u32; SUBCHANNELS as usize];
        for _ in 0..ROUNDS {
            sampling.rang(SUBCHANNELS);
            for subchannel in &mut timed {
                *subchannel += u32::from(sampling.next().is_some());
            }
        }
        let each = if RECORDING { ROUNDS / Sampling::BUSY } else { 0 };
        let is_fair = |times: &u32| times.abs_diff(each) <= each / 4;
        assert!(timed.iter().all(is_fair), "{each} each: {timed:?}");
    }

    #[test]
    fn samples_stand_for_all_requests() {
        if !RECORDING {
            assert_eq!(Sampling::default().next(), None);
            return;
        }
        let sampling = Sampling::default();
        let (mut requests, mut counted) = (0, 0);
        // Whatever comes in between, each request is counted once; the first at once.
        for (marks, more) in [(1, 10), (8, 160), (64, 1603), (3, 7), (64, 5), (1, 1), (8, 33)] {
            sampling.rang(marks);
            counted += (0..more).filter_map(|_| sampling.next()).sum::<u32>();
            requests += more;
            assert!(
                counted <= requests && requests - counted < Sampling::most(Sampling::BUSY),
                "{marks} marks"
            );
            assert!(marks >= Sampling::MANY || counted == requests, "{marks} marks");
        }
    }
}
