//! What the starter of programs and an in-process device share: the I/O region, and how far the device
//! is with what stands in it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use vmm_sys_util::eventfd::EventFd;

use crate::architecture::{Irb, IrbHead, Orb, OrbFlags, Scsw, ScswFlags};
use crate::channel_subsystem::{DmaSpace, Entry, Stop};
use crate::sleeper::Sleeper;

use super::{Errno, IoRegion};

/// How far the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for a start.
    Idle,
    /// A program was started, which it has not begun.
    Started,
    /// It executes one.
    Runs,
    /// The program has ended, and the starter has not seen it yet.
    Ended,
}

/// What the device is to do.
#[derive(Debug)]
pub(super) enum Order {
    /// It sees other memory from now on.
    See(Arc<DmaSpace>),
    /// A program was started, or is resumed.
    Execute(Orb, Entry),
}

/// One device's region, in pieces.
#[derive(Debug)]
pub(super) struct Port {
    orb: Cell<Orb>,
    /// Function control of the last start.
    scsw: Cell<Scsw>,
    pub(super) irb: Cell<IrbHead>,
    ret_code: Cell<i32>,
    pub(super) stage: Cell<Stage>,
    pub(super) stop: Stop,
    /// Intermediate status that the starter has not seen.
    told: RefCell<VecDeque<IrbHead>>,
    /// The policy ended the last program, which came untranslated.
    pub(super) refused: Cell<bool>,
    /// Bytes read from and written to the medium, not asked for yet.
    pub(super) moved: Cell<(u64, u64)>,
    memory: RefCell<Arc<DmaSpace>>,
    /// The device has not been shown the memory yet.
    is_memory_new: Cell<bool>,
    irq: RefCell<Option<EventFd>>,
    /// Why the interrupt could not be signalled.
    failure: Cell<Option<Errno>>,
    /// The device has a task of its own; else the starter polls it.
    pub(super) is_alone: Cell<bool>,
    /// That task.
    task: Sleeper,
}

/// Intermediate status that is kept for a starter who does not come to see it: the first, and the
/// last.
const MOST_TOLD: usize = 64;

impl Port {
    pub(super) fn new(memory: Arc<DmaSpace>) -> Self {
        Port {
            orb: Cell::default(),
            scsw: Cell::default(),
            irb: Cell::default(),
            ret_code: Cell::new(0),
            stage: Cell::new(Stage::Idle),
            stop: Stop::default(),
            told: RefCell::default(),
            refused: Cell::new(false),
            moved: Cell::new((0, 0)),
            memory: RefCell::new(memory),
            is_memory_new: Cell::new(false),
            irq: RefCell::new(None),
            failure: Cell::new(None),
            is_alone: Cell::new(false),
            task: Sleeper::default(),
        }
    }

    /// Shows the device other memory.
    pub(super) fn set_memory(&self, memory: Arc<DmaSpace>) {
        *self.memory.borrow_mut() = memory;
        self.is_memory_new.set(true);
        self.wake();
    }

    /// The memory that the device sees, or is about to see.
    pub(super) fn memory(&self) -> Arc<DmaSpace> {
        self.memory.borrow().clone()
    }

    pub(super) fn set_irq(&self, irq: Option<EventFd>) {
        *self.irq.borrow_mut() = irq;
    }

    /// The bytes of the region, as they would be read now.
    pub(super) fn region(&self) -> IoRegion {
        let irb = Irb { head: self.irb.get(), emw: [0; 32] };
        let ret_code = self.ret_code.get().into();
        IoRegion { orb: self.orb.get(), scsw: self.scsw.get(), irb, ret_code }
    }

    /// Whether a program was started and has not ended.
    pub(super) fn is_pending(&self) -> bool {
        matches!(self.stage.get(), Stage::Started | Stage::Runs)
    }

    /// The kernel's `vfio_ccw_mdev_write_io_region` and `fsm_io_request`, for a region as it is after
    /// the write.
    pub(super) fn write(&self, region: &IoRegion) -> Result<(), Errno> {
        if self.is_pending() {
            return self.answer(Err(Errno::BUSY));
        }
        self.orb.set(region.orb);
        self.scsw.set(region.scsw);
        let functions = region.scsw.flags();
        if functions.contains(ScswFlags::START_FUNCTION) {
            if region.orb.flags().contains(OrbFlags::TRANSPORT_MODE) {
                return self.answer(Err(Errno::NOT_SUPPORTED));
            }
            self.begin();
            self.answer(Ok(()))
        } else if functions.intersects(ScswFlags::HALT_FUNCTION | ScswFlags::CLEAR_FUNCTION) {
            self.answer(Err(Errno::NOT_SUPPORTED))
        } else {
            match region.ret_code.get() {
                0 => self.answer(Ok(())),
                left => self.answer(Err(Errno(left.wrapping_neg()))),
            }
        }
    }

    /// What a write of [`IoRegion::start`] or [`IoRegion::resume`] does, without the detour over the
    /// bytes of a region.
    #[inline(always)]
    pub(super) fn start(&self, orb: &Orb, entry: Entry) -> Result<(), Errno> {
        if self.is_pending() || orb.flags().contains(OrbFlags::TRANSPORT_MODE) {
            return self.write(&IoRegion::of(*orb, entry));
        }
        self.orb.set(*orb);
        self.scsw.set(IoRegion::function(entry));
        self.ret_code.set(0);
        self.begin();
        Ok(())
    }

    fn begin(&self) {
        self.stop.reset();
        self.stage.set(Stage::Started);
        self.wake();
    }

    fn answer(&self, result: Result<(), Errno>) -> Result<(), Errno> {
        self.ret_code.set(result.map_or_else(|errno| errno.0.wrapping_neg(), |()| 0));
        result
    }

    /// The device waits for something to do.
    #[inline(always)]
    pub(super) fn poll_order(&self, cx: &Context<'_>) -> Poll<Order> {
        if self.is_memory_new.take() {
            return Poll::Ready(Order::See(self.memory.borrow().clone()));
        }
        if self.stage.get() != Stage::Started {
            if self.is_alone.get() {
                self.task.remember(cx.waker());
            }
            return Poll::Pending;
        }
        self.stage.set(Stage::Runs);
        let resumed = self.scsw.get().flags().contains(ScswFlags::RESUME_PENDING);
        let entry = if resumed { Entry::Resume } else { Entry::Start };
        Poll::Ready(Order::Execute(self.orb.get(), entry))
    }

    /// The program goes on, and says so.
    pub(super) fn tell(&self, irb: IrbHead) {
        self.irb.set(irb);
        let mut told = self.told.borrow_mut();
        if told.len() == MOST_TOLD {
            told.pop_back();
        }
        told.push_back(irb);
        drop(told);
        self.signal();
    }

    /// The program has ended; its IRB is there.
    #[inline]
    pub(super) fn end(&self) {
        self.stage.set(Stage::Ended);
        self.signal();
    }

    /// Gives intermediate status to `each`.
    #[inline]
    pub(super) fn take_told(&self, each: &mut dyn FnMut(IrbHead)) {
        while let Some(irb) = self.next_told() {
            each(irb);
        }
    }

    fn next_told(&self) -> Option<IrbHead> {
        self.told.borrow_mut().pop_front()
    }

    /// The starter sees that the program has ended.
    #[inline]
    pub(super) fn take_end(&self) -> Option<Result<(), Errno>> {
        if self.stage.get() != Stage::Ended {
            return None;
        }
        self.stage.set(Stage::Idle);
        Some(self.failure.take().map_or(Ok(()), Err))
    }

    /// After the IRB: who sees the signal must find it.
    fn signal(&self) {
        if let Some(irq) = self.irq.borrow().as_ref()
            && let Err(error) = irq.write(1)
        {
            self.failure.set(Some(Errno::from(&error)));
        }
    }

    /// Lets the device look, where it runs by itself.
    fn wake(&self) {
        if self.is_alone.get() {
            self.task.wake();
        }
    }
}
