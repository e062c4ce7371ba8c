//! The client's end of lanes: one for all devices of a server's process that are on this shard.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tokio::io::unix::AsyncFd;
use vfio_ccw_queues::lane::{Entry, LaneError, LaneReceiver, LaneSender, Track};
use vm_memory::{FileOffset, MmapRegion};

use crate::sleeper::Sleeper;
use crate::vfio_user::lane::{self, Order};

use super::port::Port;

/// Reports that are taken from one lane before another has its turn.
const TOGETHER: usize = 256;

/// Who is at the other end. Devices of one server may disturb each other; those of two must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its process, as the kernel says; of no use where that cannot be seen from here, as in another container.
    pub(super) process: Option<i32>,
    /// The number that it says it has drawn, which other servers do not know.
    pub(super) number: u64,
}

/// The lanes of a shard.
#[derive(Debug, Default)]
pub(crate) struct Trunks {
    all: RefCell<Vec<Rc<Trunk>>>,
    /// Whoever pushes will flush.
    gathers: Cell<bool>,
    /// Whoever sleeps over them.
    sleeper: Sleeper,
}

impl Trunks {
    /// The lane to `peer`, and a number on it for `port`.
    ///
    /// # Errors
    ///
    /// No descriptor or memory is left.
    pub(super) fn join(
        self: &Rc<Self>,
        peer: &Peer,
        port: &Rc<Port>,
    ) -> io::Result<(Rc<Trunk>, u16)> {
        let mut all = self.all.borrow_mut();
        all.retain(|trunk| !trunk.is_left());
        for trunk in all.iter().filter(|trunk| trunk.peer == *peer) {
            if let Some(number) = trunk.seat(port) {
                return Ok((trunk.clone(), number));
            }
        }
        let trunk = Rc::new(Trunk::new(peer.clone(), Rc::downgrade(self))?);
        let number = trunk.seat(port).ok_or(io::ErrorKind::OutOfMemory)?;
        all.push(trunk.clone());
        // A sleep that began before it was there was not announced to its server.
        self.sleeper.wake();
        Ok((trunk, number))
    }

    /// Whoever pushes from now on will flush, or will not.
    pub(crate) fn gather(&self, now: bool) {
        self.gathers.set(now);
    }

    /// Wakes servers that sleep over what was pushed.
    #[inline]
    pub(crate) fn flush(&self) {
        let all = self.all.borrow();
        all.iter().for_each(|trunk| trunk.flush());
    }

    /// Hands reports to their ports; whether there were any.
    #[inline]
    pub(crate) fn drain(&self) -> bool {
        let mut any = false;
        let mut index = 0;
        loop {
            // A port that is told something may leave, or let others join.
            let Some(trunk) = self.all.borrow().get(index).cloned() else { return any };
            any |= trunk.drain();
            index += 1;
        }
    }

    /// Whether no report is there.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.all.borrow().iter().all(|trunk| trunk.receiver.borrow().is_idle())
    }

    /// Announces sleep to all servers. `false`: there is a report after all, and nothing is announced.
    pub(crate) fn prepare_sleep(&self) -> bool {
        let all = self.all.borrow();
        let sleeps = all.iter().all(|trunk| trunk.receiver.borrow().prepare_sleep());
        if !sleeps {
            all.iter().for_each(|trunk| trunk.receiver.borrow().awake());
        }
        sleeps
    }

    /// Ends the sleep.
    pub(crate) fn awake(&self) {
        self.all.borrow().iter().for_each(|trunk| trunk.receiver.borrow().awake());
    }

    /// Has the task woken when a server calls. Ready: one has called since the last time.
    pub(crate) fn poll_called(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.sleeper.remember(cx.waker());
        let mut called = Poll::Pending;
        for trunk in self.all.borrow().iter() {
            while let Poll::Ready(Ok(mut ready)) = trunk.call.poll_read_ready(cx) {
                // A new signal is a new edge: the counter need not be read.
                ready.clear_ready();
                called = Poll::Ready(());
            }
        }
        called
    }
}

/// The client's end of one lane.
#[derive(Debug)]
pub(crate) struct Trunk {
    peer: Peer,
    sender: RefCell<LaneSender>,
    receiver: RefCell<LaneReceiver>,
    /// The first entry of a report whose second one was not there yet.
    half: Cell<Option<Entry>>,
    memory: OwnedFd,
    /// The server writes to it when this side sleeps.
    call: AsyncFd<OwnedFd>,
    /// Wakes the server.
    kick: RefCell<Option<OwnedFd>>,
    ports: RefCell<Vec<Option<Rc<Port>>>>,
    is_dirty: Cell<bool>,
    trunks: Weak<Trunks>,
}

impl Trunk {
    fn new(peer: Peer, trunks: Weak<Trunks>) -> io::Result<Self> {
        let bytes = lane::bytes(lane::ENTRIES);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = memfd_create("vfio-ccw-lane", flags)?;
        ftruncate(&memory, bytes as u64)?;
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = FileOffset::new(memory.try_clone()?.into(), 0);
        let mapping = MmapRegion::<()>::from_file(file, bytes).map_err(io::Error::other)?;
        let mapping = Arc::new(mapping);
        let track = |at: usize| {
            let start = NonNull::new(mapping.as_ptr().wrapping_add(at));
            let start = start.ok_or(io::ErrorKind::OutOfMemory)?;
            // SAFETY: inside the mapping, which the track keeps, page-aligned, and of a file that cannot become
            // shorter. Test: `remote_device::devices_of_a_server_share_a_lane_and_do_not_disturb_each_other`.
            let track = unsafe { Track::new(start, lane::ENTRIES, mapping.clone()) };
            track.map_err(io::Error::other)
        };
        let call = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Trunk {
            peer,
            sender: RefCell::new(track(0)?.sender()),
            receiver: RefCell::new(track(lane::second_track(lane::ENTRIES))?.receiver()),
            half: Cell::new(None),
            memory,
            call: crate::watch::descriptor(call)?,
            kick: RefCell::new(None),
            ports: RefCell::default(),
            is_dirty: Cell::new(false),
            trunks,
        })
    }

    /// The memory, to be handed to the server.
    pub(super) fn memory(&self) -> io::Result<OwnedFd> {
        self.memory.try_clone()
    }

    /// The eventfd that tells this side of reports, to be handed to the server.
    pub(super) fn call(&self) -> io::Result<OwnedFd> {
        self.call.get_ref().try_clone()
    }

    /// What wakes the server.
    pub(super) fn set_kick(&self, kick: OwnedFd) {
        let mut known = self.kick.borrow_mut();
        if known.is_none() {
            *known = Some(kick);
        }
    }

    fn seat(&self, port: &Rc<Port>) -> Option<u16> {
        // A number is not given twice: reports for its last device may be on their way.
        let mut ports = self.ports.borrow_mut();
        if ports.len() >= lane::MOST_DEVICES {
            return None;
        }
        ports.push(Some(port.clone()));
        Some((ports.len() - 1) as u16)
    }

    /// The device of this number is not on the lane any more.
    pub(super) fn leave(&self, number: u16) {
        if let Some(port) = self.ports.borrow_mut().get_mut(usize::from(number)) {
            *port = None;
        }
    }

    fn is_left(&self) -> bool {
        self.ports.borrow().iter().all(Option::is_none)
    }

    /// Puts an order on its way.
    ///
    /// # Errors
    ///
    /// The lane is full, or the server has broken it.
    pub(super) fn push(&self, number: u16, tag: u32, order: &Order) -> Result<(), LaneError> {
        self.sender.borrow_mut().push(&lane::order(number, tag, order))?;
        self.is_dirty.set(true);
        if !self.trunks.upgrade().is_some_and(|trunks| trunks.gathers.get()) {
            self.flush();
        }
        Ok(())
    }

    fn flush(&self) {
        if self.is_dirty.take()
            && self.sender.borrow().must_wake()
            && let Some(kick) = &*self.kick.borrow()
        {
            // A counter that is full wakes it as well.
            let _ = rustix::io::write(kick.as_fd(), &1u64.to_ne_bytes());
        }
    }

    pub(super) fn drain(&self) -> bool {
        let mut taken = 0;
        while taken < TOGETHER {
            let mut receiver = self.receiver.borrow_mut();
            let Some(entry) = self.half.take().or_else(|| receiver.pop()) else { break };
            let second = lane::has_second(&entry).then(|| receiver.pop());
            if second == Some(None) {
                // The server is just about to put it there, or waits for room.
                self.half.set(Some(entry));
                break;
            }
            taken += 1;
            let report = lane::read_report(&entry, second.flatten().as_ref());
            drop(receiver);
            let Some((number, tag, report)) = report else {
                self.break_off("its lane has what is no report");
                break;
            };
            let port = self.ports.borrow().get(usize::from(number)).cloned().flatten();
            // Of a device that has left: it was on its way.
            if let Some(port) = port {
                port.take_report(tag, &report);
            }
        }
        // Also of what is kept.
        self.receiver.borrow_mut().release();
        taken > 0
    }

    fn break_off(&self, why: &'static str) {
        let ports: Vec<_> = self.ports.borrow().iter().flatten().cloned().collect();
        ports.iter().for_each(|port| port.break_off(why));
    }
}
