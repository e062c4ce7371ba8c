//! One device that is served, and whoever uses it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use vfio_ccw_metrics::{Kind, Operation, Outcome, Stage};
use vfio_ccw_queues::WaitStrategy;

use crate::architecture::ScswFlags;
use crate::backend::{Errno, VfioDevice};
use crate::service::refusal::outcome;
use crate::sleeper::Sleeper;
use crate::vfio_user::lane::{Order, Report};

use super::lanes::{Berth, Lanes};
use super::tally::Tally;

/// What the devices of a server share.
pub(super) struct House {
    /// Drawn at random: clients go by it where they let devices share a lane.
    pub(super) number: u64,
    pub(super) tally: Option<Tally>,
    pub(super) lanes: Lanes,
    /// Windows that one client may have.
    pub(super) most_windows: usize,
    /// It is to end: no program begins any more.
    pub(super) draining: Cell<bool>,
    /// File I/O under way.
    pub(super) file_io: Rc<Cell<usize>>,
    pub(super) wait: WaitStrategy,
}

impl House {
    /// For so many devices.
    pub(super) fn new(tally: Option<Tally>, wait: WaitStrategy, devices: usize) -> Rc<Self> {
        Rc::new(House {
            // The seed of a hash map is random, and is not given out as it is.
            number: RandomState::new().hash_one(std::process::id()),
            tally,
            lanes: Lanes::default(),
            most_windows: most_windows(devices),
            draining: Cell::new(false),
            file_io: Rc::default(),
            wait,
        })
    }
}

/// The share of each of so many clients in what a process may map (`vm.max_map_count`), of which a quarter is kept
/// for everything else: none can take it all. The protocol's own limit holds, too.
fn most_windows(devices: usize) -> usize {
    const PROTOCOL: usize = 65_535;
    /// The kernel's default.
    const MAPPINGS: usize = 65_530;
    let mappings = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let mappings = mappings.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(MAPPINGS);
    (mappings / 4 * 3 / devices.max(1)).clamp(4, PROTOCOL)
}

/// A device that is served.
pub(super) struct Seat {
    pub(super) name: String,
    pub(super) house: Rc<House>,
    pub(super) device: RefCell<VfioDevice>,
    /// The one that has its connection.
    task: Sleeper,
    /// Where its programs come from, if over a lane.
    berth: RefCell<Option<Berth>>,
    started: Cell<Option<Instant>>,
}

impl Seat {
    pub(super) fn new(name: String, device: VfioDevice, house: Rc<House>) -> Rc<Self> {
        Rc::new(Seat {
            name,
            house,
            device: RefCell::new(device),
            task: Sleeper::default(),
            berth: RefCell::new(None),
            started: Cell::new(None),
        })
    }

    /// The task that has the connection is the one of `cx`.
    pub(super) fn remember(&self, cx: &Context<'_>) {
        self.task.remember(cx.waker());
    }

    /// Lets that task run.
    pub(super) fn wake(&self) {
        self.task.wake();
    }

    /// It takes orders over a lane from now on.
    pub(super) fn take_berth(&self, berth: Berth) {
        self.device.borrow_mut().gather();
        *self.berth.borrow_mut() = Some(berth);
    }

    pub(super) fn has_berth(&self) -> bool {
        self.berth.borrow().is_some()
    }

    /// Whether it is on a lane whose client does not read what is reported there.
    pub(super) fn is_held_up(&self) -> bool {
        self.berth.borrow().as_ref().is_some_and(Berth::is_held_up)
    }

    /// It takes none any more.
    pub(super) fn leave_berth(&self) {
        if let Some(berth) = self.berth.take() {
            berth.leave();
        }
    }

    /// An order that came over the lane. What comes of it at once is on its way back when this returns; who has
    /// called this wakes the client.
    pub(super) fn carry_out(&self, tag: u32, order: &Order) {
        let berth = self.berth.borrow();
        let Some(berth) = berth.as_ref() else { return };
        let mut device = self.device.borrow_mut();
        let done = match order {
            Order::Start(..) if self.house.draining.get() => Err(Errno::NO_DEVICE),
            Order::Start(orb, way) => {
                // Before the start: where no path is left, it has its status at once.
                let before = berth.starts.replace(tag);
                let started = device.start_program(orb, *way);
                match started {
                    Ok(()) => self.note_start(),
                    Err(_) => berth.starts.set(before),
                }
                started
            }
            Order::Perform(function) => {
                let before = berth.functions.replace(tag);
                let performed = device.perform(*function);
                if performed.is_err() {
                    berth.functions.set(before);
                }
                performed
            }
        };
        if let Err(errno) = done {
            berth.report(tag, &Report::Refused(errno));
        }
        drop(device);
        self.task.with(|waker| self.advance(berth, &mut Context::from_waker(waker)).is_ready());
    }

    /// A program was started.
    pub(super) fn note_start(&self) {
        if let Some(tally) = &self.house.tally {
            tally.shard.counters().starts.add(1);
            self.started.set(Some(Instant::now()));
        }
    }

    /// Lets the program in flight, if there is one, come as far as it can. Ready: there is none.
    pub(super) fn poll_device(&self, cx: &mut Context<'_>) -> Poll<()> {
        let berth = self.berth.borrow();
        let Some(berth) = berth.as_ref() else { return self.run(cx) };
        let polled = self.advance(berth, cx);
        if berth.must_wake() {
            self.device.borrow().signal_io();
        }
        polled
    }

    /// The same with its status on its way over the lane.
    fn advance(&self, berth: &Berth, cx: &mut Context<'_>) -> Poll<()> {
        let polled = self.run(cx);
        let mut device = self.device.borrow_mut();
        while let Some(irb) = device.take_irb() {
            let flags = irb.scsw.flags();
            let tag = if flags.intersects(ScswFlags::HALT_FUNCTION | ScswFlags::CLEAR_FUNCTION) {
                berth.functions.get()
            } else if flags.contains(ScswFlags::START_FUNCTION) {
                berth.starts.get()
            } else {
                0
            };
            berth.report(tag, &Report::Status(irb));
        }
        polled
    }

    fn run(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut device = self.device.borrow_mut();
        if !device.is_pending() {
            return Poll::Ready(());
        }
        let polled = device.poll_run(cx);
        if polled.is_ready()
            && let Some(tally) = &self.house.tally
        {
            let counters = tally.shard.counters();
            counters.interrupts.add(1);
            let irb = device.last_irb();
            let outcome = outcome(&irb.scsw);
            tally.shard.complete(outcome);
            if outcome == Outcome::UnitCheck {
                tally.shard.unit_check(irb.sense());
            }
            let (read, written) = device.take_moved();
            counters.read_bytes.add(read);
            counters.written_bytes.add(written);
            if let Some(started) = self.started.take() {
                let nanos = started.elapsed().as_nanos() as u64;
                let operation = Operation::of_bytes(read, written);
                let kind = Kind { class: device.class(), operation };
                tally.shard.durations(kind).record(Stage::Device, nanos);
            }
        }
        polled
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("name", &self.name).finish_non_exhaustive()
    }
}
