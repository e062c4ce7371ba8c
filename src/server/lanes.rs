//! Programs that come over a lane, and their status on its way back.
//!
//! A lane is memory that a client hands over with the first device that is to use it; others of the same client
//! join it. Its task takes orders as long as there are any, looks for more while that pays, and sleeps until
//! the client wakes it.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::fstat;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;
use vfio_ccw_queues::lane::{Entry, LaneReceiver, LaneSender, Track};
use vfio_ccw_queues::wait::{Advice, Waiter};

use crate::backend::Errno;
use crate::channel_subsystem::WindowAccess;
use crate::vfio_user::LaneOffer;
use crate::vfio_user::lane::{self, Report};

use super::memory::{Mapped, is_sealed};
use super::seat::{House, Seat};
use super::tally;

/// Entries that a track may have.
const MOST_ENTRIES: u32 = 1 << 16;

/// Orders that are taken before their reports are shown to the client.
const TOGETHER: usize = 64;

/// Batches between two chances for other tasks.
const ROUNDS: u32 = 8;

/// Looks at an empty lane between two chances for other tasks: a microsecond or two.
const LOOKS: u32 = 32;

/// How often it is looked whether a client that has left no room for reports has made some. Nothing tells of that.
const HELD_UP: Duration = Duration::from_millis(1);

/// Which memory a lane is in: device and inode of the file, and where in it.
type Place = (u64, u64, u64);

/// The lanes of a server.
#[derive(Default)]
pub(super) struct Lanes {
    known: RefCell<HashMap<Place, Weak<Lane>>>,
}

impl Lanes {
    /// Lets `seat` take its orders from the lane that `offer` describes, in `file`. What wakes the server.
    ///
    /// # Errors
    ///
    /// `EINVAL`: this is no lane; `EPERM`: the file could become shorter; `EEXIST`: the lane has another device of
    /// this number, or another number of entries; `EBUSY`: the device has a lane already; else the system's.
    pub(super) fn join(
        &self,
        seat: &Rc<Seat>,
        offer: &LaneOffer,
        file: &OwnedFd,
    ) -> Result<OwnedFd, Errno> {
        if seat.has_berth() {
            return Err(Errno::BUSY);
        }
        let entries = offer.entries;
        let is_sound = entries.is_power_of_two()
            && (2..=MOST_ENTRIES).contains(&entries)
            && offer.number < entries.min(1 << 16)
            && offer.offset.is_multiple_of(4096)
            && offer.flags == 0;
        if !is_sound {
            return Err(Errno::INVALID);
        }
        if !is_sealed(file) {
            // Touching what has gone would end this process.
            return Err(Errno(libc::EPERM));
        }
        let stat = fstat(file).map_err(|error| Errno(error.raw_os_error()))?;
        let place = (stat.st_dev as u64, stat.st_ino as u64, offer.offset);
        let mut known = self.known.borrow_mut();
        let number = offer.number as u16;
        // One that the last device has left is over, though its task may not have heard.
        let lane = known.get(&place).and_then(Weak::upgrade).filter(|lane| !lane.is_over.get());
        let is_new = lane.is_none();
        let lane = match lane {
            Some(lane) if lane.entries != entries => return Err(Errno::EXISTS),
            Some(lane) => lane,
            None => {
                Lane::new(seat.house.clone(), file, offer).map_err(|error| Errno::from(&error))?
            }
        };
        if lane.seats.borrow().get(usize::from(number)).is_some_and(Option::is_some) {
            return Err(Errno::EXISTS);
        }
        let kick = lane.kick.get_ref().try_clone().map_err(|error| Errno::from(&error))?;
        // Nothing fails any more: a task without a device would never end.
        if is_new {
            known.retain(|_, lane| lane.strong_count() > 0);
            known.insert(place, Rc::downgrade(&lane));
            drop(tokio::task::spawn_local(lane.clone().run()));
        }
        drop(known);
        let mut seats = lane.seats.borrow_mut();
        if seats.len() <= usize::from(number) {
            seats.resize(usize::from(number) + 1, None);
        }
        seats[usize::from(number)] = Some(seat.clone());
        drop(seats);
        seat.take_berth(Berth { lane, number, starts: Cell::new(0), functions: Cell::new(0) });
        Ok(kick)
    }
}

/// A device's place on a lane.
pub(super) struct Berth {
    lane: Rc<Lane>,
    number: u16,
    /// Tags of what it was last told.
    pub(super) starts: Cell<u32>,
    pub(super) functions: Cell<u32>,
}

impl Berth {
    /// Puts a report on its way.
    pub(super) fn report(&self, tag: u32, report: &Report) {
        let (first, second) = lane::report(self.number, tag, report);
        self.lane.put(first, second);
    }

    /// Whether reports wait that the client leaves no room for.
    pub(super) fn is_held_up(&self) -> bool {
        !self.lane.waiting.borrow().is_empty()
    }

    /// Whether the client sleeps, and has to be woken for what was reported.
    pub(super) fn must_wake(&self) -> bool {
        self.lane.is_fresh.take() && self.lane.sender.borrow().must_wake()
    }

    /// The device is on the lane no more.
    pub(super) fn leave(&self) {
        let mut seats = self.lane.seats.borrow_mut();
        if let Some(seat) = seats.get_mut(usize::from(self.number)) {
            *seat = None;
        }
        if seats.iter().all(Option::is_none) {
            self.lane.is_over.set(true);
            // Its task sees to the rest.
            self.lane.nudge();
        }
    }
}

/// The server's end of a lane.
pub(super) struct Lane {
    house: Rc<House>,
    entries: u32,
    receiver: RefCell<LaneReceiver>,
    sender: RefCell<LaneSender>,
    /// Reports that found the track full: a client that does not read what it asked for.
    waiting: RefCell<VecDeque<Entry>>,
    /// There are reports that the client may not have seen.
    is_fresh: Cell<bool>,
    kick: AsyncFd<OwnedFd>,
    /// By their numbers.
    seats: RefCell<Vec<Option<Rc<Seat>>>>,
    is_over: Cell<bool>,
    is_asleep: Cell<bool>,
}

impl Lane {
    fn new(house: Rc<House>, file: &OwnedFd, offer: &LaneOffer) -> io::Result<Rc<Self>> {
        let bytes = lane::bytes(offer.entries) as u64;
        let mapped = Arc::new(Mapped::new(file, offer.offset, bytes, WindowAccess::all())?);
        let track = |at: usize| {
            let part = mapped.host().part(at, Track::bytes(offer.entries));
            let start = part.and_then(|part| std::ptr::NonNull::new(part.as_ptr()));
            let start = start.ok_or(io::ErrorKind::InvalidInput)?;
            // SAFETY: mapped for as long as `mapped`, page-aligned, and of a file that cannot become shorter.
            // Test: `remote_device::devices_of_a_server_share_a_lane_and_do_not_disturb_each_other`.
            let track = unsafe { Track::new(start, offer.entries, mapped.clone()) };
            track.map_err(io::Error::other)
        };
        let kick = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let lane = Lane {
            entries: offer.entries,
            receiver: RefCell::new(track(0)?.receiver()),
            sender: RefCell::new(track(lane::second_track(offer.entries))?.sender()),
            waiting: RefCell::default(),
            is_fresh: Cell::new(false),
            kick: crate::watch::descriptor(kick)?,
            seats: RefCell::default(),
            is_over: Cell::new(false),
            is_asleep: Cell::new(false),
            house,
        };
        if let Some(tally) = &lane.house.tally {
            tally::add(&tally.standing.lanes, 1);
        }
        Ok(Rc::new(lane))
    }

    /// Puts a report on its way.
    fn put(&self, first: Entry, second: Option<Entry>) {
        self.is_fresh.set(true);
        let mut waiting = self.waiting.borrow_mut();
        let mut sender = self.sender.borrow_mut();
        // None past those that wait, and of two both or none.
        let pushed = waiting.is_empty()
            && match &second {
                None => sender.push(&first).is_ok(),
                Some(second) => {
                    sender.room().is_ok_and(|room| room >= 2)
                        && sender.push(&first).and_then(|()| sender.push(second)).is_ok()
                }
            };
        if !pushed {
            waiting.extend([Some(first), second].into_iter().flatten());
        }
    }

    /// Wakes its task, as the client does.
    fn nudge(&self) {
        // A counter that is full wakes it as well.
        let _ = rustix::io::write(self.kick.get_ref(), &1u64.to_ne_bytes());
    }

    /// Reports that had to wait go on, as far as there is room. Whether none waits any more.
    fn go_on(&self) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            return true;
        }
        let mut sender = self.sender.borrow_mut();
        while let Some(entry) = waiting.front() {
            if sender.push(entry).is_err() {
                break;
            }
            waiting.pop_front();
        }
        let all = waiting.is_empty();
        drop((waiting, sender));
        self.flush();
        all
    }

    /// Wakes the client for what was reported, where it sleeps.
    fn flush(&self) {
        if self.is_fresh.take()
            && self.sender.borrow().must_wake()
            && let Some(seat) = self.seats.borrow().iter().flatten().next()
        {
            // They all have the same client.
            seat.device.borrow().signal_io();
        }
    }

    async fn run(self: Rc<Self>) {
        let made = Instant::now();
        let mut waiter = Waiter::new(self.house.wait, 0);
        loop {
            let is_over = poll_fn(|cx| self.poll(cx, &mut waiter, made)).await;
            if is_over {
                return;
            }
            sleep(HELD_UP).await;
        }
    }

    /// Ready: it is over (`true`), or held up by a client that does not read its reports.
    fn poll(&self, cx: &mut Context<'_>, waiter: &mut Waiter, made: Instant) -> Poll<bool> {
        let now = || made.elapsed().as_nanos() as u64;
        if self.is_over.get() {
            return Poll::Ready(true);
        }
        // Not where it looks: that would be a new look each time, and no end of it.
        if self.is_asleep.take() {
            self.receiver.borrow().awake();
            waiter.wake(now(), None);
        }
        for _ in 0..ROUNDS {
            if !self.go_on() {
                return Poll::Ready(false);
            }
            if self.drain() {
                if waiter.is_waiting() {
                    waiter.found(now());
                }
                if self.house.file_io.get() == 0 {
                    continue;
                }
            } else if self.house.file_io.get() == 0 && waiter.idle(now(), None) == Advice::Look {
                let receiver = self.receiver.borrow();
                if (0..LOOKS).any(|_| {
                    std::hint::spin_loop();
                    !receiver.is_idle()
                }) {
                    continue;
                }
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.receiver.borrow().prepare_sleep() {
                continue;
            }
            match self.kick.poll_read_ready(cx) {
                Poll::Pending => {
                    self.is_asleep.set(true);
                    waiter.sleep(now());
                    if let Some(tally) = &self.house.tally {
                        tally.shard.counters().sleeps.add(1);
                    }
                    return Poll::Pending;
                }
                Poll::Ready(ready) => {
                    if let Ok(mut ready) = ready {
                        // A new signal is a new edge: the counter need not be read.
                        ready.clear_ready();
                    }
                    self.receiver.borrow().awake();
                }
            }
        }
        if self.house.file_io.get() > 0 {
            // File I/O goes to the kernel when the thread parks: it does, for a moment, and comes back.
            self.nudge();
            if self.kick.poll_read_ready(cx).is_pending() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Carries out orders that are there; whether there were any.
    fn drain(&self) -> bool {
        let mut taken = 0;
        // Whoever does not read reports gives no orders.
        while taken < TOGETHER && self.waiting.borrow().is_empty() {
            let Some(entry) = self.receiver.borrow_mut().pop() else { break };
            taken += 1;
            let Some((number, tag, order)) = lane::read_order(&entry) else { continue };
            let seat = self.seats.borrow().get(usize::from(number)).cloned().flatten();
            if let Some(seat) = seat {
                seat.carry_out(tag, &order);
            }
        }
        if taken == 0 {
            return false;
        }
        self.receiver.borrow_mut().release();
        self.flush();
        true
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(tally) = &self.house.tally {
            tally::take(&tally.standing.lanes, 1);
        }
    }
}
