//! A subchannel as the VMM sees it: the instructions that a vCPU issues, and the ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};

use parking_lot::Mutex;
use quanta::Clock;
use vfio_ccw_pinning::Mode;
use vfio_ccw_queues::Doorbell;
use vfio_ccw_queues::submission::{self, Intake, Submitter};

use crate::architecture::{IrbHead, Orb, OrbError, Pmcw, PmcwFlags, Schib, Scsw, ScswFlags};

use super::delivery::{Completion, Delivery};
use super::refusal::Refusal;

/// Condition code of an I/O instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cc {
    /// The function was started, or the information stored.
    Cc0 = 0,
    /// Status pending (SSCH); no status pending (TSCH).
    Cc1 = 1,
    /// A function is in progress.
    Cc2 = 2,
    /// Not operational.
    Cc3 = 3,
}

/// Why a ring submission is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The ORB is one that START SUBCHANNEL answers with an operand exception.
    #[error(transparent)]
    Operand(#[from] OrbError),
    /// The submission ring is full: reap completions, then submit again.
    #[error(
        "the submission ring is full ({entries} entries): reap completions first, or build the service with more"
    )]
    Full {
        /// Its capacity.
        entries: usize,
    },
    /// The subchannel is detached, or its service has ended.
    #[error("the subchannel is detached")]
    Detached,
    /// Its results go to interruptions: it is started with SSCH.
    #[error(
        "the subchannel delivers interruptions: start it with ssch, or attach it with a completion ring"
    )]
    NotARing,
}

/// A program on its way to the shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) orb: Orb,
    pub(super) user_data: u64,
    /// Raw clock value when it was submitted.
    pub(super) submitted: u64,
}

/// State of a subchannel. One that delivers to a completion ring is idle unless its program is
/// suspended.
mod state {
    /// No function, no status.
    pub(super) const IDLE: u8 = 0;
    /// The start function is in progress.
    pub(super) const STARTED: u8 = 1;
    /// Status is pending.
    pub(super) const PENDING: u8 = 2;
    /// TEST SUBCHANNEL is fetching the status.
    pub(super) const FETCHING: u8 = 3;
    /// The program has suspended itself.
    pub(super) const SUSPENDED: u8 = 4;
    /// RESUME SUBCHANNEL was issued, and the shard has not seen it yet.
    pub(super) const RESUMED: u8 = 5;
}

/// What vCPU threads and the shard share of one subchannel.
#[derive(Debug)]
pub(super) struct Shared {
    number: u32,
    bit: usize,
    doorbell: Arc<Doorbell>,
    submitter: Submitter<Request>,
    delivery: Delivery,
    clock: Clock,
    state: AtomicU8,
    /// Pinning mode that is in effect, as its place in [`Mode::ALL`].
    mode: AtomicU8,
    leaving: AtomicBool,
    /// Written by the shard before state PENDING, taken by TEST SUBCHANNEL after it.
    irb: Mutex<IrbHead>,
    /// Status of a program that goes on or is suspended, until TEST SUBCHANNEL takes it.
    intermediate: Mutex<Option<IrbHead>>,
    /// Whether there is some.
    has_intermediate: AtomicBool,
    pmcw: Mutex<Pmcw>,
    /// The other end of the ring, once the task has ended: what comes in then is refused by whoever
    /// brings it.
    orphan: Mutex<Option<Intake<Request>>>,
}

impl Shared {
    pub(super) fn new(
        number: u32,
        bit: usize,
        doorbell: Arc<Doorbell>,
        delivery: Delivery,
        entries: usize,
        mode: Mode,
    ) -> (Arc<Self>, Intake<Request>) {
        let (submitter, intake) = submission::ring(entries);
        let pmcw = Pmcw::single_path(number as u16);
        let shared = Shared {
            number,
            bit,
            doorbell,
            submitter,
            delivery,
            clock: Clock::new(),
            state: AtomicU8::new(state::IDLE),
            mode: AtomicU8::new(mode as u8),
            leaving: AtomicBool::new(false),
            irb: Mutex::new(IrbHead::default()),
            intermediate: Mutex::new(None),
            has_intermediate: AtomicBool::new(false),
            orphan: Mutex::new(None),
            pmcw: Mutex::new(pmcw.with(PmcwFlags::ENABLED | PmcwFlags::DEVICE_VALID, 0)),
        };
        (Arc::new(shared), intake)
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn bit(&self) -> usize {
        self.bit
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// Asks the task to end.
    pub(super) fn leave(&self) {
        // SeqCst: totally ordered with the push in `push`: see there.
        self.leaving.store(true, Ordering::SeqCst);
        self.doorbell.ring(self.bit);
    }

    pub(super) fn mode(&self) -> Mode {
        // Relaxed: for those who want to know.
        Mode::ALL[usize::from(self.mode.load(Ordering::Relaxed))]
    }

    pub(super) fn set_mode(&self, mode: Mode) {
        // Relaxed: as above.
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    pub(super) fn is_leaving(&self) -> bool {
        // SeqCst: pairs with the store in `leave`.
        self.leaving.load(Ordering::SeqCst)
    }

    /// Puts a request into the ring and rings. `false`: full.
    fn push(&self, request: Request) -> bool {
        if self.submitter.push(request).is_err() {
            return false;
        }
        self.doorbell.ring(self.bit);
        // The ring's full fence stands between the push and this look. If the subchannel is not
        // leaving yet, its task sees the request after it has seen that it must leave (`abandon`
        // has the other fence); if it is, the task may be gone, and the request is refused here.
        if self.is_leaving() {
            self.refuse_orphans();
        }
        true
    }

    /// The task's last act: leaves the ring to whoever still puts something in, and refuses what is
    /// in it.
    pub(super) fn abandon(&self, intake: Intake<Request>) {
        *self.orphan.lock() = Some(intake);
        // Pairs with the fence of the doorbell in `push`: a request whose bringer did not see the
        // subchannel leave is seen by the look that follows.
        fence(Ordering::SeqCst);
        self.refuse_orphans();
    }

    fn refuse_orphans(&self) {
        let mut orphan = self.orphan.lock();
        let Some(intake) = orphan.as_mut() else { return };
        while let Some(request) = intake.pop() {
            deliver(self, request.user_data, Refusal::Detached.irb(&request.orb));
        }
        if let Delivery::Ring(sender) = &self.delivery {
            sender.notify();
        }
    }

    /// The shard's side: status of the program becomes pending.
    pub(super) fn present(&self, irb: IrbHead) {
        *self.irb.lock() = irb;
        // Release: pairs with the Acquire in `tsch`.
        self.state.store(state::PENDING, Ordering::Release);
    }

    /// The shard's side: status of a program that goes on, or is suspended, becomes pending, as one
    /// with what was not taken yet. Whether the guest must be told.
    pub(super) fn present_intermediate(&self, irb: IrbHead) -> bool {
        let mut slot = self.intermediate.lock();
        let news = slot.is_none() || irb.scsw.flags().contains(ScswFlags::SUSPENDED);
        let scsw = slot.map_or(irb.scsw, |earlier| irb.scsw.merged_with(earlier.scsw));
        *slot = Some(IrbHead { scsw, ..irb });
        // Release: pairs with the Acquire in `take_intermediate`; the lock orders the rest.
        self.has_intermediate.store(true, Ordering::Release);
        news
    }

    fn has_intermediate(&self) -> bool {
        // Acquire: pairs with the Release in `present_intermediate`.
        self.has_intermediate.load(Ordering::Acquire)
    }

    fn peek_intermediate(&self) -> Option<IrbHead> {
        self.has_intermediate().then(|| *self.intermediate.lock()).flatten()
    }

    /// The shard's side: the program has suspended itself and the guest is not to be told; but what it
    /// has yet to fetch says so now.
    pub(super) fn update_intermediate(&self, irb: IrbHead) {
        if let Some(earlier) = self.intermediate.lock().as_mut() {
            let scsw = irb.scsw.merged_with(earlier.scsw).with_flags(ScswFlags::STATUS_PENDING);
            *earlier = IrbHead { scsw, ..irb };
        }
    }

    fn take_intermediate(&self) -> Option<IrbHead> {
        if !self.has_intermediate() {
            return None;
        }
        let mut slot = self.intermediate.lock();
        // Release: only ordered with the other side's store, by the lock.
        self.has_intermediate.store(false, Ordering::Release);
        slot.take()
    }

    /// The shard's side: the program has suspended itself.
    pub(super) fn suspend(&self) {
        // Release: pairs with the Acquire in `rsch`.
        self.state.store(state::SUSPENDED, Ordering::Release);
    }

    /// The shard's side: whether RESUME SUBCHANNEL was issued; the program then goes on.
    pub(super) fn take_resumption(&self) -> bool {
        let state = match self.delivery {
            Delivery::Interrupt(_) => state::STARTED,
            Delivery::Ring(_) => state::IDLE,
        };
        // Acquire: pairs with the Release in `rsch`: what the guest changed before is seen.
        let resumed = self.state.compare_exchange(
            state::RESUMED,
            state,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        resumed.is_ok()
    }
}

/// A device's subchannel. Clones are handles on the same one; any thread may use them.
#[derive(Clone, Debug)]
pub struct Subchannel {
    shared: Arc<Shared>,
}

impl Subchannel {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Subchannel { shared }
    }

    /// Number of the subchannel in its service, from 0.
    pub fn number(&self) -> u32 {
        self.shared.number
    }

    /// When pages are pinned for its programs.
    pub fn mode(&self) -> Mode {
        self.shared.mode()
    }

    pub(super) fn bit(&self) -> usize {
        self.shared.bit
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.shared.is_leaving()
    }

    pub(super) fn leave(&self) {
        self.shared.leave();
    }

    /// START SUBCHANNEL.
    ///
    /// Never blocks; wakes the shard with one system call if it sleeps. What goes wrong later shows
    /// in the IRB: channel status, or a deferred condition code.
    ///
    /// * cc 0: the start function is in progress;
    /// * cc 1: status is pending, fetch it with [`Subchannel::tsch`];
    /// * cc 2: a start function is in progress;
    /// * cc 3: not enabled, detached, no path left in ORB.LPM, or attached to a completion ring.
    ///
    /// # Errors
    ///
    /// An operand exception of the guest; the subchannel was not looked at.
    pub fn ssch(&self, orb: &Orb) -> Result<Cc, OrbError> {
        orb.check()?;
        let shared = &self.shared;
        let (enabled, pam) = {
            let pmcw = shared.pmcw.lock();
            (pmcw.flags().contains(PmcwFlags::ENABLED | PmcwFlags::DEVICE_VALID), pmcw.pam)
        };
        let ring = matches!(shared.delivery, Delivery::Ring(_));
        if ring || !enabled || orb.lpm() & pam == 0 || shared.is_leaving() {
            return Ok(Cc::Cc3);
        }
        if shared.has_intermediate() {
            return Ok(Cc::Cc1);
        }
        // Acquire: pairs with the Release in `tsch`: the last program's status is gone.
        match shared.state.compare_exchange(
            state::IDLE,
            state::STARTED,
            Ordering::Acquire,
            Ordering::Relaxed,
        ) {
            Ok(_) => {}
            Err(state::PENDING | state::FETCHING) => return Ok(Cc::Cc1),
            Err(_) => return Ok(Cc::Cc2),
        }
        shared.pmcw.lock().intparm = orb.intparm().into();
        let pushed =
            shared.push(Request { orb: *orb, user_data: 0, submitted: shared.clock.raw() });
        debug_assert!(pushed, "one program at a time always finds a free entry");
        Ok(Cc::Cc0)
    }

    /// TEST SUBCHANNEL: the IRB, and whether it had status (cc 0) or not (cc 1). Status is cleared.
    ///
    /// Intermediate status (PCI, suspension) that was not fetched before the program ended comes with
    /// the ending status, as one.
    ///
    /// cc 3: not enabled.
    pub fn tsch(&self) -> (Cc, IrbHead) {
        let shared = &self.shared;
        if !shared.pmcw.lock().flags().contains(PmcwFlags::ENABLED | PmcwFlags::DEVICE_VALID) {
            return (Cc::Cc3, IrbHead::default());
        }
        // Acquire: pairs with the Release in `present`. One of several callers wins.
        match shared.state.compare_exchange(
            state::PENDING,
            state::FETCHING,
            Ordering::Acquire,
            Ordering::Relaxed,
        ) {
            Ok(_) => {
                let mut irb = std::mem::take(&mut *shared.irb.lock());
                if let Some(earlier) = shared.take_intermediate() {
                    irb.scsw = irb.scsw.merged_with(earlier.scsw);
                }
                // Release: pairs with the Acquire in `ssch`.
                shared.state.store(state::IDLE, Ordering::Release);
                (Cc::Cc0, irb)
            }
            Err(_) => match shared.take_intermediate() {
                Some(irb) => (Cc::Cc0, irb),
                None => (Cc::Cc1, IrbHead { scsw: self.scsw(), ..IrbHead::default() }),
            },
        }
    }

    /// RESUME SUBCHANNEL: a program that has suspended itself goes on, and its suspending CCW is
    /// fetched again. For either kind of delivery.
    ///
    /// * cc 0: it will go on;
    /// * cc 1: status is pending, fetch it with [`Subchannel::tsch`];
    /// * cc 2: nothing is suspended, or it was resumed already;
    /// * cc 3: not enabled, or detached.
    pub fn rsch(&self) -> Cc {
        let shared = &self.shared;
        let enabled = PmcwFlags::ENABLED | PmcwFlags::DEVICE_VALID;
        if !shared.pmcw.lock().flags().contains(enabled) || shared.is_leaving() {
            return Cc::Cc3;
        }
        // Acquire: pairs with the Release in `present`, as in `tsch`.
        let state = shared.state.load(Ordering::Acquire);
        if matches!(state, state::PENDING | state::FETCHING) || shared.has_intermediate() {
            return Cc::Cc1;
        }
        // Release: pairs with the Acquire in `take_resumption`. Acquire: with the Release in
        // `suspend`. One of several callers wins.
        match shared.state.compare_exchange(
            state::SUSPENDED,
            state::RESUMED,
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            Ok(_) => {
                shared.doorbell.ring(shared.bit);
                Cc::Cc0
            }
            Err(_) => Cc::Cc2,
        }
    }

    /// STORE SUBCHANNEL: a copy of the subchannel-information block.
    pub fn stsch(&self) -> Schib {
        Schib { pmcw: *self.shared.pmcw.lock(), scsw: self.scsw(), ..Schib::default() }
    }

    /// MODIFY SUBCHANNEL: takes over enablement, interruption subclass, interruption parameter and
    /// logical-path mask from `pmcw`.
    ///
    /// * cc 0: done;
    /// * cc 1: status is pending;
    /// * cc 2: a function is in progress.
    pub fn msch(&self, pmcw: &Pmcw) -> Cc {
        let shared = &self.shared;
        let mut own = shared.pmcw.lock();
        // Acquire: pairs with the Release in `tsch` and `present`.
        match shared.state.load(Ordering::Acquire) {
            state::PENDING | state::FETCHING => return Cc::Cc1,
            _ if shared.has_intermediate() => return Cc::Cc1,
            state::IDLE => {}
            _ => return Cc::Cc2,
        }
        own.intparm = pmcw.intparm;
        own.lpm = pmcw.lpm;
        let enabled = pmcw.flags() & PmcwFlags::ENABLED;
        *own = own.with(enabled | PmcwFlags::DEVICE_VALID, pmcw.isc());
        Cc::Cc0
    }

    /// Submits a program to the ring. Never blocks; at most one system call, to wake a sleeping shard.
    /// Several may be under way; they run in order, and each gives one [`Completion`] with this
    /// `user_data`.
    ///
    /// # Errors
    ///
    /// See [`SubmitError`]; nothing was submitted then.
    pub fn submit(&self, orb: &Orb, user_data: u64) -> Result<(), SubmitError> {
        orb.check()?;
        let shared = &self.shared;
        if !matches!(shared.delivery, Delivery::Ring(_)) {
            return Err(SubmitError::NotARing);
        }
        if shared.is_leaving() {
            return Err(SubmitError::Detached);
        }
        if !shared.push(Request { orb: *orb, user_data, submitted: shared.clock.raw() }) {
            return Err(SubmitError::Full { entries: shared.submitter.capacity() });
        }
        Ok(())
    }

    fn scsw(&self) -> Scsw {
        let earlier = self.shared.peek_intermediate().map(|irb| irb.scsw);
        // Acquire: pairs with the Release in `present`.
        let scsw = match self.shared.state.load(Ordering::Acquire) {
            state::PENDING => {
                let scsw = self.shared.irb.lock().scsw;
                return earlier.map_or(scsw, |earlier| scsw.merged_with(earlier));
            }
            state::STARTED => Scsw::new(ScswFlags::START_FUNCTION | ScswFlags::START_PENDING),
            state::SUSPENDED => Scsw::new(ScswFlags::START_FUNCTION | ScswFlags::SUSPENDED),
            state::RESUMED => Scsw::new(ScswFlags::START_FUNCTION | ScswFlags::RESUME_PENDING),
            _ => Scsw::default(),
        };
        earlier.unwrap_or(scsw)
    }
}

/// Puts a result where the subchannel's results go.
pub(super) fn deliver(shared: &Shared, user_data: u64, irb: IrbHead) {
    match shared.delivery() {
        Delivery::Ring(sender) => {
            sender.push(Completion { user_data, subchannel: shared.number, irb })
        }
        Delivery::Interrupt(trigger) => {
            let news = if irb.scsw.is_final() {
                shared.present(irb);
                true
            } else {
                shared.present_intermediate(irb)
            };
            if news && let Err(error) = trigger.trigger(shared.number) {
                tracing::error!(%error, subchannel = shared.number, "the interruption could not be made pending");
            }
        }
    }
}
