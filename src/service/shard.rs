//! A shard: one thread, one runtime, and the tasks of its subchannels.
//!
//! The dispatcher is the thread's main future. It drains the doorbell, wakes the tasks that were
//! rung for, wakes the consumers of completion rings once a round, and decides what to do when
//! nothing is left: look again for a while, or sleep.
//!
//! A shard with file I/O in flight always goes to sleep: tokio-uring hands operations to the kernel
//! when its thread parks, so a thread that never parks would never submit. Sleeping costs a system
//! call that file I/O pays anyway.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use quanta::Clock;
use tokio::io::unix::AsyncFd;
use vfio_ccw_metrics::{DeviceClass, ShardMetrics};
use vfio_ccw_pinning::{Pool, Registered};
use vfio_ccw_queues::Doorbell;
use vfio_ccw_queues::completion::CompletionSender;
use vfio_ccw_queues::submission::Intake;
use vmm_sys_util::eventfd::EventFd;

use crate::backend::{InProcess, Signalled};
use crate::channel_subsystem::{Device, Fba, Null};
use crate::shadow::Arena;
use crate::translation::{Limits, Policy, Rules, StorageKeys};
use crate::volume::{FileIo, Fixed, Spans, Volume, Workers};
use crate::watch;

use super::delivery::{Completion, Delivery};
use super::mode_switch::{Aside, Pinning, Switch, SwitchBox};
use super::runtime::{Driver, Runtime};
use super::subchannel::{Request, Shared};
use super::task::{self, Flight};
use super::unfetched::Unfetched;
use super::view::{Layout, View};

/// The doorbell's bit for the shard itself; subchannels have the others.
const MAILBOX: usize = 0;

/// Looks at the doorbell between two returns to the runtime, which has other tasks to run.
const LOOKS: u32 = 256;

/// Rounds of doorbell work between two chances for the kernel to get file I/O.
const ROUNDS: u32 = 8;

/// What is attached.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// The null device.
    Null,
    /// An FBA disk on this volume.
    Fba(Arc<Volume>),
}

impl DeviceSpec {
    fn class(&self) -> DeviceClass {
        match self {
            DeviceSpec::Null => DeviceClass::Null,
            DeviceSpec::Fba(_) => DeviceClass::Fba,
        }
    }
}

/// How a subchannel's task learns that its in-process device has ended a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interrupts {
    /// The task runs the device itself: no switch, no system call.
    #[default]
    Direct,
    /// The device runs as a task of its own and signals an eventfd, as a device elsewhere would.
    EventFd,
}

/// What every shard of a service is made from.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) pool: Arc<Pool>,
    pub(super) aside: Arc<Aside>,
    /// The pool's pinner, where it is this one: each shard adds its ring.
    pub(super) registered: Option<Registered>,
    pub(super) limits: Limits,
    pub(super) keys: Option<Arc<dyn StorageKeys>>,
    pub(super) unfetched: Unfetched,
    pub(super) driver: Driver,
    pub(super) interrupts: Interrupts,
    pub(super) spin: Duration,
    pub(super) workers: Option<Arc<Workers>>,
}

/// A device on its way to its shard.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) shared: Arc<Shared>,
    pub(super) intake: Intake<Request>,
    pub(super) device: DeviceSpec,
    pub(super) policy: Policy,
    pub(super) pinning: Pinning,
    /// Most bytes that are pinned for one program.
    pub(super) share: Option<u64>,
}

/// What a service sends to a shard.
#[derive(Debug)]
enum Mail {
    Attach(Box<Attachment>),
    /// The layout of guest memory from now on.
    Memory(Layout),
    /// For the subchannel of this bit and number.
    Switch(usize, u32, Switch),
}

/// The service's end of a shard.
#[derive(Debug)]
pub(super) struct ShardLink {
    common: Arc<Common>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and the service share.
#[derive(Debug)]
struct Common {
    doorbell: Arc<Doorbell>,
    mailbox: Mutex<Vec<Mail>>,
    free_bits: Mutex<Vec<usize>>,
    ending: AtomicBool,
    ended: AtomicBool,
}

impl ShardLink {
    /// Starts shard `index` of `shards` with room for `subchannels`.
    ///
    /// # Errors
    ///
    /// No eventfd, thread, runtime or shadow memory.
    pub(super) fn start(
        index: usize,
        shards: usize,
        subchannels: usize,
        plan: Plan,
        layout: Layout,
        metrics: Arc<ShardMetrics>,
    ) -> io::Result<Self> {
        let common = Arc::new(Common {
            doorbell: Arc::new(Doorbell::new(subchannels + 1)?),
            mailbox: Mutex::new(Vec::new()),
            free_bits: Mutex::new((1..=subchannels).rev().collect()),
            ending: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let arena = Arena::new(index, shards)?;
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("ccw-shard-{index}")).spawn({
            let common = common.clone();
            move || {
                let _ended = Ended(common.clone());
                match Runtime::new(plan.driver) {
                    Ok(runtime) => {
                        runtime.block_on(run(common, plan, layout, arena, metrics, ready))
                    }
                    // The starter hears of it; if it is gone, nobody wants the shard.
                    Err(error) => drop(ready.send(Err(error))),
                }
            }
        })?;
        let link = ShardLink { common, thread: Some(thread) };
        started
            .recv()
            .map_err(|_| io::Error::other("the shard's thread ended before it was ready"))??;
        Ok(link)
    }

    pub(super) fn doorbell(&self) -> Arc<Doorbell> {
        self.common.doorbell.clone()
    }

    /// A bit for a new subchannel; `None` where all are taken.
    pub(super) fn take_bit(&self) -> Option<usize> {
        self.common.free_bits.lock().pop()
    }

    /// Sends a device to the shard. `false`: there is no thread any more.
    pub(super) fn attach(&self, attachment: Attachment) -> bool {
        self.send(Mail::Attach(Box::new(attachment)))
    }

    /// Shows the shard another layout of guest memory.
    pub(super) fn show(&self, layout: Layout) {
        self.send(Mail::Memory(layout));
    }

    /// Sends a switch to the subchannel of this bit and number.
    pub(super) fn switch(&self, bit: usize, number: u32, switch: Switch) {
        self.send(Mail::Switch(bit, number, switch));
    }

    fn send(&self, mail: Mail) -> bool {
        let mut mailbox = self.common.mailbox.lock();
        // Acquire: pairs with the Release in `Ended::drop`, which empties the box afterwards.
        if self.common.ended.load(Ordering::Acquire) {
            return false;
        }
        mailbox.push(mail);
        drop(mailbox);
        self.common.doorbell.ring(MAILBOX);
        true
    }

    /// Ends the shard when its last subchannel has left, and waits for that.
    pub(super) fn end(&mut self) {
        // Release: pairs with the Acquire in the dispatcher.
        self.common.ending.store(true, Ordering::Release);
        self.common.doorbell.ring(MAILBOX);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a shard's thread has panicked");
        }
    }
}

/// Says that the thread is over, also when it panics.
struct Ended(Arc<Common>);

impl Drop for Ended {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `ShardLink::send`.
        self.0.ended.store(true, Ordering::Release);
        // Nobody reads what is left: its senders must not wait for an answer.
        let unread = std::mem::take(&mut *self.0.mailbox.lock());
        drop(unread);
    }
}

/// What the tasks of a shard share. One thread: cells instead of locks.
pub(super) struct Context {
    pub(super) plan: Plan,
    /// Guest memory for programs that start now.
    view: RefCell<Rc<View>>,
    /// The ring for registered frames.
    fixed: Option<Rc<Fixed>>,
    pub(super) arena: RefCell<Arena>,
    pub(super) metrics: Arc<ShardMetrics>,
    pub(super) clock: Clock,
    /// Buffers of programs that have ended, for the next ones.
    #[expect(
        clippy::vec_box,
        reason = "a flight moves to its task and back: a pointer, not 300 bytes"
    )]
    pub(super) flights: RefCell<Vec<Box<Flight>>>,
    /// Programs refused so far; decides which refusals are worth a line in the log.
    pub(super) refusals: Cell<u64>,
    common: Arc<Common>,
    signals: RefCell<Vec<Option<Rc<Signal>>>>,
    rings: RefCell<Vec<Ring>>,
    dispatcher: RefCell<Option<Waker>>,
    file_io: Rc<Cell<usize>>,
    live: Cell<usize>,
}

/// A completion ring that tasks of this shard deliver to.
struct Ring {
    sender: CompletionSender<Completion>,
    /// Entries were pushed since its consumer was last told.
    fresh: Cell<bool>,
}

/// Tells one task that its subchannel was rung for.
#[derive(Debug)]
pub(super) struct Signal {
    /// Number of the subchannel: its bit may have been another's.
    number: u32,
    rung: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    pub(super) switch: SwitchBox,
}

impl Signal {
    fn ring(&self) {
        self.rung.set(true);
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Remembers a ring that was waited for but not answered.
    pub(super) fn keep(&self) {
        self.rung.set(true);
    }

    /// Waits until rung since the last time.
    pub(super) fn poll(&self, cx: &TaskContext<'_>) -> Poll<()> {
        if self.rung.replace(false) {
            return Poll::Ready(());
        }
        let mut waker = self.waker.borrow_mut();
        match waker.as_mut() {
            Some(known) => known.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Context {
    /// Guest memory for programs that start now.
    pub(super) fn view(&self) -> Rc<View> {
        self.view.borrow().clone()
    }

    /// Whether programs that start now see another memory than `view`.
    pub(super) fn has_moved_on_from(&self, view: &Rc<View>) -> bool {
        !Rc::ptr_eq(view, &self.view.borrow())
    }

    /// Guest memory has another layout: every task gets to see it before its next program.
    fn show(&self, layout: Layout) {
        match layout.view(&self.arena.borrow()) {
            Ok(view) => *self.view.borrow_mut() = Rc::new(view),
            // The service has checked it before it sent it.
            Err(error) => return tracing::error!(%error, "guest memory stays as it was"),
        }
        self.signals.borrow().iter().flatten().for_each(|signal| signal.ring());
    }

    /// A completion was pushed into ring `ring`: its consumer is told at the end of the round.
    pub(super) fn delivered_to(&self, ring: usize) {
        let rings = self.rings.borrow();
        if !rings[ring].fresh.replace(true)
            && let Some(dispatcher) = self.dispatcher.borrow().as_ref()
        {
            dispatcher.wake_by_ref();
        }
    }

    /// The task of `shared` is over.
    pub(super) fn ended(&self, shared: &Shared) {
        self.signals.borrow_mut()[shared.bit()] = None;
        self.common.free_bits.lock().push(shared.bit());
        self.live.set(self.live.get() - 1);
        if let Some(dispatcher) = self.dispatcher.borrow().as_ref() {
            dispatcher.wake_by_ref();
        }
    }

    fn tell_consumers(&self) {
        for ring in self.rings.borrow().iter().filter(|ring| ring.fresh.replace(false)) {
            ring.sender.notify();
        }
    }

    /// Index of the ring that a delivery goes to.
    fn ring_of(&self, delivery: &Delivery) -> Option<usize> {
        let Delivery::Ring(sender) = delivery else {
            return None;
        };
        let mut rings = self.rings.borrow_mut();
        let known = rings.iter().position(|ring| ring.sender.is_same_ring(sender));
        Some(known.unwrap_or_else(|| {
            rings.push(Ring { sender: sender.clone(), fresh: Cell::new(false) });
            rings.len() - 1
        }))
    }

    fn rung(&self, bit: usize) {
        if let Some(signal) = self.signals.borrow()[bit].as_ref() {
            signal.ring();
        }
    }
}

/// The thread's main future.
async fn run(
    common: Arc<Common>,
    plan: Plan,
    layout: Layout,
    arena: Arena,
    metrics: Arc<ShardMetrics>,
    ready: std::sync::mpsc::SyncSender<io::Result<()>>,
) {
    let prepared = (layout.view(&arena).map_err(io::Error::other)).and_then(|view| {
        let fixed = plan.registered.as_ref().map(Fixed::new).transpose();
        Ok((view, fixed.map_err(io::Error::other)?, Dispatcher::new(&common.doorbell)?))
    });
    let (view, fixed, mut dispatcher) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return drop(ready.send(Err(error))),
    };
    if let Some(fixed) = &fixed {
        tokio::task::spawn_local(fixed.clone().drive());
    }
    let bits = common.doorbell.bits();
    let context = Rc::new(Context {
        view: RefCell::new(Rc::new(view)),
        fixed,
        arena: RefCell::new(arena),
        metrics,
        clock: Clock::new(),
        flights: RefCell::default(),
        refusals: Cell::new(0),
        signals: RefCell::new(vec![None; bits]),
        rings: RefCell::default(),
        dispatcher: RefCell::new(None),
        file_io: Rc::new(Cell::new(0)),
        live: Cell::new(0),
        common,
        plan,
    });
    if ready.send(Ok(())).is_err() {
        return;
    }
    poll_fn(|cx| dispatcher.poll(&context, cx)).await;
}

/// Decides when the shard's thread looks, runs and sleeps.
struct Dispatcher {
    doorbell: AsyncFd<Arc<Doorbell>>,
    /// Written to make the thread return at once from a park that is only there to submit file I/O.
    nudge: AsyncFd<EventFd>,
    asleep: bool,
    last_work: u64,
    /// Doorbells sent and rung at the last look, for metrics.
    sent: u64,
    rung: u64,
}

impl Dispatcher {
    fn new(doorbell: &Arc<Doorbell>) -> io::Result<Self> {
        let nudge = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Dispatcher {
            doorbell: watch::doorbell(doorbell.clone())?,
            nudge: watch::eventfd(nudge)?,
            asleep: false,
            last_work: 0,
            sent: 0,
            rung: 0,
        })
    }

    fn poll(&mut self, context: &Rc<Context>, cx: &mut TaskContext<'_>) -> Poll<()> {
        remember(&mut context.dispatcher.borrow_mut(), cx.waker());
        if self.asleep {
            self.wake_up();
        }
        context.tell_consumers();
        for _ in 0..ROUNDS {
            if self.drain(context) {
                self.last_work = context.clock.raw();
                if context.file_io.get() == 0 {
                    // Let the tasks run, then look again.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            } else if context.live.get() == 0 && self.is_over(context) {
                return Poll::Ready(());
            } else if self.may_spin(context) {
                if self.look_around() {
                    continue;
                }
                context.metrics.counters().spins.add(1);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.go_to_sleep(cx) {
                context.metrics.counters().sleeps.add(1);
                self.count_doorbells(context);
                return Poll::Pending;
            }
        }
        // Doorbells ring on and on while file I/O waits to be submitted: park for a moment.
        match self.nudge.get_ref().write(1) {
            Ok(()) => match self.nudge.poll_read_ready(cx) {
                Poll::Ready(Ok(mut ready)) => {
                    ready.clear_ready();
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Err(_)) => cx.waker().wake_by_ref(),
                Poll::Pending => {}
            },
            Err(_) => cx.waker().wake_by_ref(),
        }
        Poll::Pending
    }

    /// Wakes what was rung for; whether there was anything.
    fn drain(&self, context: &Rc<Context>) -> bool {
        let mut mailbox = false;
        let rung = self.doorbell.get_ref().drain(|bit| match bit {
            MAILBOX => mailbox = true,
            bit => context.rung(bit),
        });
        if mailbox {
            let mails = std::mem::take(&mut *context.common.mailbox.lock());
            mails.into_iter().for_each(|mail| read(context, mail));
        }
        rung > usize::from(mailbox) || mailbox && context.live.get() > 0
    }

    fn is_over(&self, context: &Context) -> bool {
        // Acquire: pairs with the Release in `ShardLink::end`.
        context.common.ending.load(Ordering::Acquire) && context.common.mailbox.lock().is_empty()
    }

    /// Whether work is recent enough to wait for more without sleeping.
    fn may_spin(&self, context: &Context) -> bool {
        let spin = context.plan.spin;
        !spin.is_zero()
            && context.file_io.get() == 0
            && context.live.get() > 0
            && context.clock.delta(self.last_work, context.clock.raw()) < spin
    }

    /// Looks at the doorbell for a microsecond or so.
    fn look_around(&self) -> bool {
        for _ in 0..LOOKS {
            if !self.doorbell.get_ref().is_idle() {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Announces sleep and waits for the doorbell's eventfd. `false`: something came meanwhile.
    fn go_to_sleep(&mut self, cx: &mut TaskContext<'_>) -> bool {
        if !self.doorbell.get_ref().prepare_sleep() {
            return false;
        }
        self.asleep = true;
        match self.doorbell.poll_read_ready(cx) {
            Poll::Pending => true,
            Poll::Ready(ready) => {
                // Left over from a ring that was seen in another way.
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
                self.wake_up();
                false
            }
        }
    }

    fn wake_up(&mut self) {
        self.asleep = false;
        self.doorbell.get_ref().awake();
    }

    fn count_doorbells(&mut self, context: &Context) {
        let doorbell = self.doorbell.get_ref();
        let (sent, rung) = (doorbell.sent(), doorbell.rung());
        let submitters = context.metrics.submitters();
        let (new_sent, new_rung) = (sent - self.sent, rung - self.rung);
        submitters.doorbells_sent.add(new_sent);
        submitters.doorbells_suppressed.add(new_rung.saturating_sub(new_sent));
        (self.sent, self.rung) = (sent, rung);
    }
}

fn remember(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(known) => known.clone_from(waker),
        None => *place = Some(waker.clone()),
    }
}

fn read(context: &Rc<Context>, mail: Mail) {
    match mail {
        Mail::Attach(attachment) => attach(context, *attachment),
        Mail::Memory(layout) => context.show(layout),
        Mail::Switch(bit, number, switch) => match context.signals.borrow()[bit].as_ref() {
            Some(signal) if signal.number == number => {
                signal.switch.put(switch, &context.plan.aside);
                signal.ring();
            }
            // Detached; another may have its bit.
            _ => context.plan.aside.put(switch.pinning),
        },
    }
}

/// Starts the task of a subchannel.
fn attach(context: &Rc<Context>, attachment: Attachment) {
    let Attachment { shared, intake, device, policy, pinning, share } = attachment;
    let signal = Rc::new(Signal {
        number: shared.number(),
        // What was submitted before this moment rang for nobody: the task looks once by itself.
        rung: Cell::new(true),
        waker: RefCell::new(None),
        switch: SwitchBox::default(),
    });
    context.signals.borrow_mut()[shared.bit()] = Some(signal.clone());
    context.live.set(context.live.get() + 1);
    let ring = context.ring_of(shared.delivery());
    let rules = Arc::new(Rules {
        limits: context.plan.limits,
        class: device.class(),
        policy,
        keys: context.plan.keys.clone(),
    });
    let view = RefCell::new(context.view());
    let pinning = RefCell::new(pinning);
    let context = context.clone();
    let memory = context.view().dma.clone();
    let seat = task::Seat {
        context,
        shared,
        intake: Some(intake),
        signal,
        ring,
        rules,
        view,
        pinning,
        share,
    };
    match device {
        DeviceSpec::Null => start(seat, Null::default()),
        DeviceSpec::Fba(volume) => {
            let spans = Spans::new(volume.clone(), memory);
            let context = &seat.context;
            let io = FileIo::new(spans, context.plan.workers.clone(), context.file_io.clone())
                .with_fixed(context.fixed.clone());
            start(seat, Fba::new(io, volume.blocks(), volume.is_read_only()));
        }
    }
}

fn start<D: Device + 'static>(seat: task::Seat, device: D) {
    let context = seat.context.clone();
    // Its histograms are made now, not in the middle of the first request.
    let _ = context.metrics.class(device.class());
    let memory = seat.view.borrow().dma.clone();
    let device = InProcess::new(device, memory).held_to(seat.rules.clone());
    match context.plan.interrupts {
        Interrupts::Direct => drop(tokio::task::spawn_local(task::run(seat, device))),
        Interrupts::EventFd => match Signalled::new(device) {
            Ok(device) => drop(tokio::task::spawn_local(task::run(seat, device))),
            Err(error) => {
                tracing::error!(%error, "no eventfd for a device: its subchannel is not operational");
                drop(tokio::task::spawn_local(task::run_absent(seat)));
            }
        },
    }
}
