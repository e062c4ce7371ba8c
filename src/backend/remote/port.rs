//! How far a program is on a device in another process: what its starter and its link share.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::AbortHandle;
use tokio::time::Instant;
use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_queues::prefetch::Lines;

use crate::architecture::{Function, IrbHead, Orb, OrbFlags, ScswFlags, SubchannelStatus};
use crate::backend::{Backend, Errno};
use crate::channel_subsystem::{DeviceState, DeviceStateError, DmaSpace, Entry};
use crate::sleeper::Sleeper;
use crate::vfio_user::lane::{Order, Report};

use super::link::Owner;
use super::trunk::Trunk;

/// Unsolicited status that waits to be told. More of it comes with the last.
const MOST_UNSOLICITED: usize = 16;

/// Intermediate status that waits to be told: the first, and the last.
const MOST_TOLD: usize = 64;

/// How orders reach the device.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// The device was attached just now, and is being set up.
    Coming,
    /// There is no server.
    Down,
    /// By messages, which the link sends.
    Messages,
    /// Over a lane, as device number so and so.
    Lane(Rc<Trunk>, u16),
}

/// How far a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// It cannot be started just now.
    Waits,
    Runs,
    Ended,
}

/// Which order status is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// The one with this tag.
    Order(u32),
    /// The one with this tag, or one before it: it was the last that the device had when the status was asked for.
    UpTo(u32),
}

impl About {
    /// Whether it may be about the order `tag`.
    fn may_be(self, tag: u32) -> bool {
        match self {
            About::Order(other) => other == tag,
            // Tags go round.
            About::UpTo(last) => last.wrapping_sub(tag) as i32 >= 0,
        }
    }
}

/// HALT or CLEAR that the device is performing.
#[derive(Clone, Copy, Debug)]
struct Asked {
    function: Function,
    tag: u32,
    since: Instant,
}

/// What the two halves of the back end share.
pub(crate) struct Port {
    class: DeviceClass,
    owner: Box<dyn Owner>,
    way: RefCell<Way>,
    stage: Cell<Stage>,
    /// What is to be started, or was.
    order: Cell<(Orb, Entry)>,
    /// The guest does not want to hear of suspension.
    hides_suspension: Cell<bool>,
    /// Of the last start, and of the last order.
    tag: Cell<u32>,
    last_tag: Cell<u32>,
    asked: Cell<Option<Asked>>,
    /// The device has a suspended program, and on which connection that came about.
    suspended: Cell<Option<u32>>,
    /// Connections so far.
    connection: Cell<u32>,
    irb: Cell<IrbHead>,
    /// Why the program ended without status.
    failure: Cell<Option<Errno>>,
    told: RefCell<VecDeque<IrbHead>>,
    unsolicited: RefCell<VecDeque<IrbHead>>,
    /// Memory that programs see, and whether the device sees it, too.
    memory: RefCell<Arc<DmaSpace>>,
    is_shown: Cell<bool>,
    /// For the link to send.
    orders: RefCell<VecDeque<(u32, Order)>>,
    /// Since when the program is to end by itself.
    released: Cell<Option<Instant>>,
    /// The server has broken the protocol of the lane.
    fault: Cell<Option<&'static str>>,
    link: Sleeper,
}

impl Port {
    pub(crate) fn new(
        class: DeviceClass,
        owner: Box<dyn Owner>,
        memory: Arc<DmaSpace>,
    ) -> Rc<Self> {
        Rc::new(Port {
            class,
            owner,
            way: RefCell::new(Way::Coming),
            stage: Cell::new(Stage::Idle),
            order: Cell::new((Orb::default(), Entry::Start)),
            hides_suspension: Cell::new(false),
            tag: Cell::new(0),
            last_tag: Cell::new(0),
            asked: Cell::new(None),
            suspended: Cell::new(None),
            connection: Cell::new(0),
            irb: Cell::default(),
            failure: Cell::new(None),
            told: RefCell::default(),
            unsolicited: RefCell::default(),
            memory: RefCell::new(memory),
            is_shown: Cell::new(false),
            orders: RefCell::default(),
            released: Cell::new(None),
            fault: Cell::new(None),
            link: Sleeper::default(),
        })
    }

    pub(super) fn owner(&self) -> &dyn Owner {
        &*self.owner
    }

    // ---- the starter's side

    fn start(&self, orb: &Orb, entry: Entry) -> Result<(), Errno> {
        if matches!(*self.way.borrow(), Way::Down) {
            return Err(Errno::NO_DEVICE);
        }
        if entry == Entry::Resume && self.suspended.get() != Some(self.connection.get()) {
            // What it was in the middle of went with its server.
            return Err(Errno::IO);
        }
        // Of a suspension that is not signalled nobody would hear here.
        let hidden = OrbFlags::SUPPRESS_SUSPENDED;
        self.hides_suspension.set(orb.flags().contains(hidden));
        self.order.set((orb.with_flags(orb.flags() - hidden), entry));
        self.failure.set(None);
        self.stage.set(Stage::Waits);
        if entry == Entry::Start && self.suspended.take().is_some() && self.asked.get().is_none() {
            // The device still has the program that was given up here.
            self.ask(Function::Clear);
        }
        self.go_on();
        Ok(())
    }

    /// Starts what waits for that, if it can be started now.
    pub(super) fn go_on(&self) {
        if self.stage.get() != Stage::Waits || !self.is_shown.get() || self.asked.get().is_some() {
            return;
        }
        let (orb, entry) = self.order.get();
        if entry == Entry::Resume {
            self.suspended.set(None);
        }
        self.stage.set(Stage::Runs);
        self.send(Order::Start(orb, entry));
    }

    /// Sends an order, under a new tag.
    fn send(&self, order: Order) -> u32 {
        // 0 is never one.
        let tag = self.last_tag.get().wrapping_add(1).max(1);
        self.last_tag.set(tag);
        match &*self.way.borrow() {
            Way::Lane(trunk, number) => {
                if trunk.push(*number, tag, &order).is_err() {
                    self.break_off("its lane is full or broken");
                }
            }
            Way::Messages => {
                self.orders.borrow_mut().push_back((tag, order));
                self.wake_link();
            }
            Way::Coming | Way::Down => {}
        }
        if let Order::Start(..) = order {
            self.tag.set(tag);
        }
        tag
    }

    fn ask(&self, function: Function) {
        let tag = self.send(Order::Perform(function));
        self.asked.set(Some(Asked { function, tag, since: Instant::now() }));
    }

    fn stop(&self, function: Function) {
        match self.stage.get() {
            // It never begins.
            Stage::Waits => self.end(Some(Errno::CANCELED)),
            Stage::Runs => self.ask(function),
            Stage::Idle | Stage::Ended => {}
        }
    }

    fn wake_link(&self) {
        self.link.wake();
    }

    fn next_told(&self) -> Option<IrbHead> {
        self.told.borrow_mut().pop_front()
    }

    // ---- the link's side

    /// The link's task is that of `cx`.
    pub(super) fn remember_link(&self, cx: &Context<'_>) {
        self.link.remember(cx.waker());
    }

    /// There is a server that sees `memory`, and orders go this way.
    pub(super) fn up(&self, way: Way, memory: &Arc<DmaSpace>) {
        self.connection.set(self.connection.get().wrapping_add(1));
        *self.way.borrow_mut() = way;
        // There may be other memory by now.
        self.shown(memory);
    }

    /// There is none any more: what it had is over.
    pub(super) fn down(&self) {
        let way = self.way.borrow().clone();
        if let Way::Lane(trunk, number) = way {
            // What it has reported before it went counts.
            trunk.drain();
            trunk.leave(number);
        }
        *self.way.borrow_mut() = Way::Down;
        self.orders.borrow_mut().clear();
        self.asked.set(None);
        self.is_shown.set(false);
        self.fault.set(None);
        match self.stage.get() {
            Stage::Runs => self.end(Some(Errno::IO)),
            Stage::Waits => self.end(Some(Errno::NO_DEVICE)),
            Stage::Idle | Stage::Ended => {}
        }
    }

    /// The server cannot be believed any more: the link closes the connection.
    pub(super) fn break_off(&self, why: &'static str) {
        self.fault.set(Some(why));
        self.wake_link();
    }

    pub(super) fn take_fault(&self) -> Option<&'static str> {
        self.fault.take()
    }

    pub(super) fn next_order(&self) -> Option<(u32, Order)> {
        self.orders.borrow_mut().pop_front()
    }

    /// The server ends a suspended program with what is unmapped.
    pub(super) fn forget_suspension(&self) {
        self.suspended.set(None);
    }

    /// Memory that the device does not see yet.
    pub(super) fn unshown(&self) -> Option<Arc<DmaSpace>> {
        (!self.is_shown.get()).then(|| self.memory())
    }

    pub(super) fn memory(&self) -> Arc<DmaSpace> {
        self.memory.borrow().clone()
    }

    /// The device sees `memory`.
    pub(super) fn shown(&self, memory: &Arc<DmaSpace>) {
        if Arc::ptr_eq(memory, &self.memory.borrow()) {
            self.is_shown.set(true);
            self.go_on();
        }
    }

    /// Since when a program that runs is to end by itself.
    pub(super) fn released(&self) -> Option<Instant> {
        self.released.get().filter(|_| self.stage.get() == Stage::Runs)
    }

    /// It has had its time: it is cleared.
    pub(super) fn clear_released(&self) {
        self.released.set(None);
        self.ask(Function::Clear);
    }

    /// Since when the device has been performing HALT or CLEAR.
    pub(super) fn performs_since(&self) -> Option<Instant> {
        self.asked.get().map(|asked| asked.since)
    }

    /// Whether a program runs.
    pub(super) fn runs(&self) -> bool {
        self.stage.get() == Stage::Runs
    }

    /// Whether a program runs that may be meant with `about`.
    pub(super) fn runs_since(&self, about: About) -> bool {
        self.runs() && about.may_be(self.tag.get())
    }

    /// The tag of the last order so far.
    pub(super) fn last_tag(&self) -> u32 {
        self.last_tag.get()
    }

    /// What the server says of an order.
    pub(super) fn take_report(&self, tag: u32, report: &Report) {
        match report {
            Report::Refused(errno) => self.refused(tag, *errno),
            Report::Status(irb) => self.take_status(About::Order(tag), irb),
        }
    }

    /// An order was refused.
    pub(super) fn refused(&self, tag: u32, errno: Errno) {
        if self.asked.get().is_some_and(|asked| asked.tag == tag) {
            // Performed without the device: what runs ends by itself.
            tracing::warn!(%errno, "the server does not perform HALT or CLEAR");
            self.asked.set(None);
            self.go_on();
        } else if self.stage.get() == Stage::Runs && self.tag.get() == tag {
            self.end(Some(errno));
        }
    }

    /// Status of the device's.
    pub(super) fn take_status(&self, about: About, irb: &IrbHead) {
        let flags = irb.scsw.flags();
        if flags.intersects(ScswFlags::HALT_FUNCTION | ScswFlags::CLEAR_FUNCTION) {
            // CLEAR takes the place of a HALT before it.
            let is_it = |asked: Asked| {
                about.may_be(asked.tag)
                    && (asked.function == Function::Halt
                        || flags.contains(ScswFlags::CLEAR_FUNCTION))
            };
            if self.asked.get().is_some_and(is_it) {
                self.asked.set(None);
                match self.stage.get() {
                    Stage::Runs => self.end_with(irb),
                    _ => self.go_on(),
                }
            }
        } else if flags.contains(ScswFlags::START_FUNCTION) {
            if self.runs_since(about) {
                self.take_start_status(irb);
            }
        } else if flags.contains(ScswFlags::STATUS_PENDING) {
            let mut unsolicited = self.unsolicited.borrow_mut();
            if unsolicited.len() == MOST_UNSOLICITED {
                unsolicited.pop_back();
            }
            unsolicited.push_back(*irb);
            drop(unsolicited);
            self.owner.ring();
        }
    }

    fn take_start_status(&self, irb: &IrbHead) {
        let flags = irb.scsw.flags();
        let is_active = flags.intersects(ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE);
        if is_active {
            let mut told = self.told.borrow_mut();
            if told.len() == MOST_TOLD {
                told.pop_back();
            }
            told.push_back(*irb);
            drop(told);
            return self.owner.look();
        }
        if self.asked.get().is_some() {
            // It has ended by itself just when it was told to: the status of that comes, too, and nothing
            // that is started before could be told from it.
            return;
        }
        if flags.contains(ScswFlags::SUSPENDED) {
            self.suspended.set(Some(self.connection.get()));
            // A CCW that tells of itself, and suspends the program, is told of all the same.
            let tells = irb.scsw.subchannel_status().contains(SubchannelStatus::PROGRAM_CONTROLLED);
            if self.hides_suspension.get() && !tells {
                let told = ScswFlags::STATUS_CONTROL;
                let scsw = irb.scsw.without_flags(told);
                return self.end_with(&IrbHead { scsw, ..*irb });
            }
        }
        self.end_with(irb);
    }

    fn end_with(&self, irb: &IrbHead) {
        self.irb.set(*irb);
        self.end(None);
    }

    fn end(&self, failure: Option<Errno>) {
        self.failure.set(failure);
        self.released.set(None);
        self.stage.set(Stage::Ended);
        self.owner.look();
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("stage", &self.stage)
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

/// The side of the one who starts programs.
pub(crate) struct Remote {
    port: Rc<Port>,
    link: AbortHandle,
}

impl Remote {
    /// `link`: the task of the other half.
    pub(crate) fn new(port: Rc<Port>, link: AbortHandle) -> Self {
        Remote { port, link }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.link.abort();
        self.port.stage.set(Stage::Idle);
        self.port.down();
    }
}

impl Backend for Remote {
    fn class(&self) -> DeviceClass {
        self.port.class
    }

    fn see(&mut self, memory: &Arc<DmaSpace>) {
        *self.port.memory.borrow_mut() = memory.clone();
        self.port.is_shown.set(false);
        self.port.wake_link();
    }

    fn save(&self) -> Option<DeviceState> {
        // The protocol does not carry it.
        None
    }

    fn restore(&mut self, _state: &DeviceState) -> Result<(), DeviceStateError> {
        Err(DeviceStateError::Kind)
    }

    #[inline]
    fn start(&mut self, orb: &Orb, entry: Entry) -> Result<(), Errno> {
        self.port.start(orb, entry)
    }

    fn lines(&self) -> [Lines; 2] {
        [Lines::of(&*self.port), Lines::default()]
    }

    fn is_apart(&self) -> bool {
        true
    }

    fn is_looked_at(&self) -> bool {
        // Who drains the lane, or the link, calls.
        false
    }

    #[inline]
    fn poll_interrupt(
        &mut self,
        _cx: &mut Context<'_>,
        _looks: bool,
        intermediate: &mut dyn FnMut(IrbHead),
    ) -> Poll<Result<(), Errno>> {
        let port = &*self.port;
        while let Some(irb) = port.next_told() {
            intermediate(irb);
        }
        if port.stage.get() != Stage::Ended {
            // Whoever has news of it lets this be polled.
            return Poll::Pending;
        }
        port.stage.set(Stage::Idle);
        Poll::Ready(port.failure.take().map_or(Ok(()), Err))
    }

    fn poll_idle(&mut self, _cx: &mut Context<'_>, tell: &mut dyn FnMut(&IrbHead) -> bool) {
        let mut unsolicited = self.port.unsolicited.borrow_mut();
        while let Some(irb) = unsolicited.front()
            && tell(irb)
        {
            unsolicited.pop_front();
        }
    }

    fn runs_unfetched(&self) -> bool {
        // Addresses are not the guest's there.
        false
    }

    fn stop(&mut self, function: Function) {
        self.port.stop(function);
    }

    fn release(&mut self) {
        if self.port.released.get().is_none() {
            self.port.released.set(Some(Instant::now()));
            self.port.wake_link();
        }
    }

    #[inline]
    fn irb(&mut self) -> Result<IrbHead, Errno> {
        Ok(self.port.irb.get())
    }

    fn was_refused(&self) -> bool {
        false
    }

    fn take_moved(&mut self) -> (u64, u64) {
        // The server counts that.
        (0, 0)
    }
}
