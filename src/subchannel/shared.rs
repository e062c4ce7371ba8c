//! What vCPU threads and the shard share of one subchannel.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use vfio_ccw_pinning::Mode;
use vfio_ccw_queues::prefetch::Lines;
use vfio_ccw_queues::submission::{self, Intake, Submitter};

use crate::architecture::{Function, IoInterruption, IrbHead, Orb, Pmcw, Schib, ScswFlags};
use crate::backend::Regions;
use crate::service::delivery::{Completion, Delivery};
use crate::service::refusal::Refusal;

use super::cell::{Cell, Saved, Step};
use super::{Door, Interruptions, Starts, Tag, Urgent};

/// A program on its way to the shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) orb: Orb,
    pub(crate) origin: Origin,
    /// Raw clock value when it was submitted.
    pub(crate) submitted: u64,
}

/// Who has started a program, and so who is told of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// START SUBCHANNEL number so and so.
    Instruction(Tag),
    /// A submission. `epoch`: HALTs and CLEARs of the subchannel that were submitted before.
    Ring { user_data: u64, epoch: u32 },
    /// The future that waits in this place.
    Future { place: u32 },
}

/// What vCPU threads and the shard share of one subchannel.
#[derive(Debug)]
pub(crate) struct Shared {
    cell: Cell,
    /// What of its PMCW never changes.
    fixed: Pmcw,
    place: usize,
    bit: usize,
    /// Index of its shard.
    shard: usize,
    door: Arc<Door>,
    submitter: Submitter<Request>,
    /// Starts that found no room in the ring: there were that many cancelled ones in it.
    late: Mutex<Vec<Request>>,
    /// How many of them there have been.
    late_ever: AtomicU32,
    delivery: Delivery,
    interruptions: Arc<Interruptions>,
    /// Futures that wait, where there are any.
    starts: Option<Arc<Starts>>,
    /// HALTs and CLEARs that were submitted to the ring.
    epoch: AtomicU32,
    /// Pinning mode that is in effect, as its place in [`Mode::ALL`].
    mode: AtomicU8,
    /// No more is accepted; what was accepted goes on.
    draining: AtomicBool,
    leaving: AtomicBool,
    /// Its task has ended.
    over: AtomicBool,
    /// The host's device behind it, if it is one.
    host: Option<Weak<dyn Regions>>,
    /// Its device may have status of its own accord.
    has_alerts: bool,
    /// Its device has status that cannot be told yet.
    alerting: AtomicBool,
    /// There is no way to its device at present.
    is_cut: AtomicBool,
    /// The other end of the ring, once the task has ended: what comes in then is refused by whoever
    /// brings it.
    orphan: Mutex<Option<Box<Intake<Request>>>>,
}

/// What a subchannel is made of.
pub(crate) struct Parts {
    pub(crate) cell: Cell,
    pub(crate) fixed: Pmcw,
    /// Place in the table of subchannels.
    pub(crate) place: usize,
    /// Its bit of the shard's doorbell.
    pub(crate) bit: usize,
    /// Index of its shard.
    pub(crate) shard: usize,
    pub(crate) door: Arc<Door>,
    pub(crate) delivery: Delivery,
    pub(crate) interruptions: Arc<Interruptions>,
    /// Entries of its ring.
    pub(crate) entries: usize,
    pub(crate) mode: Mode,
    /// The host's device behind it, if it is one.
    pub(crate) host: Option<Weak<dyn Regions>>,
    /// Its device may have status of its own accord.
    pub(crate) has_alerts: bool,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> (Arc<Self>, Intake<Request>) {
        let Parts {
            cell,
            fixed,
            place,
            bit,
            shard,
            door,
            delivery,
            interruptions,
            entries,
            mode,
            host,
            has_alerts,
        } = parts;
        let (submitter, intake) = submission::ring(entries);
        let starts = matches!(delivery, Delivery::Future)
            .then(|| Arc::new(Starts::new(submitter.capacity())));
        let shared = Shared {
            cell,
            fixed,
            place,
            bit,
            shard,
            door,
            submitter,
            late: Mutex::default(),
            late_ever: AtomicU32::new(0),
            delivery,
            interruptions,
            starts,
            epoch: AtomicU32::new(0),
            mode: AtomicU8::new(mode as u8),
            draining: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            over: AtomicBool::new(false),
            host,
            has_alerts,
            alerting: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
            orphan: Mutex::new(None),
        };
        (Arc::new(shared), intake)
    }

    /// What its task reads of it for each program.
    pub(crate) fn lines(&self) -> Lines {
        Lines::of(&self.leaving)
    }

    pub(crate) fn cell(&self) -> &Cell {
        &self.cell
    }

    pub(super) fn fixed(&self) -> &Pmcw {
        &self.fixed
    }

    /// Its number over all subchannel sets: its place in the table.
    pub(crate) fn number(&self) -> u32 {
        self.place as u32
    }

    pub(crate) fn place(&self) -> usize {
        self.place
    }

    pub(crate) fn bit(&self) -> usize {
        self.bit
    }

    pub(crate) fn shard(&self) -> usize {
        self.shard
    }

    pub(crate) fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    pub(crate) fn starts(&self) -> Option<&Arc<Starts>> {
        self.starts.as_ref()
    }

    pub(crate) fn mode(&self) -> Mode {
        // Relaxed: for those who want to know.
        Mode::ALL[usize::from(self.mode.load(Ordering::Relaxed))]
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        // Relaxed: as above.
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Raw clock value of now.
    pub(super) fn now(&self) -> u64 {
        self.door.clock.raw()
    }

    /// Lets the shard look.
    pub(super) fn ring(&self) {
        self.door.doorbell.ring(self.bit);
    }

    /// What is saved of it, with its PMCW. Nothing may change it meanwhile.
    pub(crate) fn save(&self) -> (Pmcw, Saved) {
        self.cell.save(&self.fixed)
    }

    /// Asks the task to end when all that was accepted is over; no more is.
    pub(crate) fn drain(&self) {
        self.cell.leave();
        // Relaxed: the doorbell orders it for the task; what a submitter does not see yet is accepted.
        self.draining.store(true, Ordering::Relaxed);
        self.ring();
    }

    /// Whether the task is to end when all that was accepted is over.
    pub(crate) fn is_draining(&self) -> bool {
        // Relaxed: as above.
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether starts are refused.
    pub(super) fn is_closed(&self) -> bool {
        self.is_draining() || self.is_leaving()
    }

    /// Its task has ended.
    pub(crate) fn end(&self) {
        // Release: pairs with the acquire in `is_over`.
        self.over.store(true, Ordering::Release);
    }

    /// Whether its task has ended.
    pub(crate) fn is_over(&self) -> bool {
        // Acquire: pairs with the release in `end`.
        self.over.load(Ordering::Acquire)
    }

    /// Asks the task to end: there is no device any more.
    pub(crate) fn leave(&self) {
        self.cell.leave();
        // SeqCst: totally ordered with the push in `push`: see there.
        self.leaving.store(true, Ordering::SeqCst);
        self.ring();
    }

    pub(crate) fn is_leaving(&self) -> bool {
        // SeqCst: pairs with the store in `leave`.
        self.leaving.load(Ordering::SeqCst)
    }

    /// HALTs and CLEARs that were submitted to the ring so far.
    pub(super) fn epoch(&self) -> u32 {
        // Relaxed: who submits after a HALT or CLEAR has seen that; between others there is no order.
        self.epoch.load(Ordering::Relaxed)
    }

    /// Number of the epoch that a HALT or CLEAR begins: what was submitted before belongs to the past.
    pub(super) fn begin_epoch(&self) -> u32 {
        // Relaxed: as above.
        self.epoch.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    pub(super) fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// Requests that were submitted so far, to wrap.
    pub(crate) fn submitted(&self) -> usize {
        // Relaxed: a figure.
        self.submitter.pushed().wrapping_add(self.late_ever.load(Ordering::Relaxed) as usize)
    }

    pub(super) fn ring_entries(&self) -> usize {
        self.submitter.capacity()
    }

    /// Whether so many more requests would find room in the ring.
    pub(super) fn has_room(&self, requests: usize) -> bool {
        self.submitter.has_room(requests)
    }

    /// Puts a request into the ring and rings. `false`: full.
    #[inline]
    pub(super) fn push(&self, request: Request) -> bool {
        if self.submitter.push(request).is_err() {
            return false;
        }
        self.ring();
        self.look_after_push();
        true
    }

    /// Puts the request of a start that was accepted where the task finds it, whatever the ring is
    /// full of.
    pub(super) fn push_start(&self, request: Request) {
        if !self.push(request) {
            self.push_late(request);
        }
    }

    #[cold]
    fn push_late(&self, request: Request) {
        self.late.lock().push(request);
        // Relaxed: a figure.
        self.late_ever.fetch_add(1, Ordering::Relaxed);
        self.ring();
        self.look_after_push();
    }

    /// Takes the starts that found no room in the ring.
    pub(crate) fn take_late(&self) -> Vec<Request> {
        std::mem::take(&mut *self.late.lock())
    }

    #[inline]
    fn look_after_push(&self) {
        // The ring's full fence stands between the push and this look. If the subchannel is not
        // leaving yet, its task sees the request after it has seen that it must leave (`abandon`
        // has the other fence); if it is, the task may be gone, and the request is refused here.
        if self.is_leaving() {
            self.refuse_orphans();
        }
    }

    /// The task's last act: leaves the ring to whoever still puts something in, and refuses what is
    /// in it.
    pub(crate) fn abandon(&self, intake: Intake<Request>) {
        *self.orphan.lock() = Some(Box::new(intake));
        // Pairs with the fence of the doorbell in `push`: a request whose bringer did not see the
        // subchannel leave is seen by the look that follows.
        fence(Ordering::SeqCst);
        self.refuse_orphans();
    }

    #[cold]
    fn refuse_orphans(&self) {
        let mut orphan = self.orphan.lock();
        let Some(intake) = orphan.as_mut() else { return };
        let mut told = false;
        let rest = || intake.pop().or_else(|| self.late.lock().pop());
        for request in std::iter::from_fn(rest) {
            told |= self.complete(request.origin, &Refusal::Detached.irb(&request.orb));
        }
        if told && let Delivery::Ring(sender) = &self.delivery {
            sender.notify();
        }
    }

    /// A HALT or CLEAR that comes too late.
    pub(crate) fn refuse_urgent(&self, urgent: &Urgent) {
        if let Delivery::Ring(sender) = &self.delivery {
            let irb = Refusal::Detached.irb_of(urgent.function);
            let (user_data, subchannel) = (urgent.user_data, self.number());
            sender.push(Completion { user_data, subchannel, irb });
            sender.notify();
        }
    }

    /// Gives the end of a program to whoever started it. Whether that was a ring, whose consumer must
    /// be told. The end of a start that was cancelled, halted or cleared is given to nobody: that has
    /// an end of its own, or needs none.
    pub(crate) fn complete(&self, origin: Origin, irb: &IrbHead) -> bool {
        match origin {
            Origin::Instruction(tag) => {
                let step = self.cell.end(tag, irb, self.interruptions.enabled());
                self.interruptions.post(self, step);
                false
            }
            Origin::Ring { user_data, .. } => {
                if let Delivery::Ring(sender) = &self.delivery {
                    sender.push(Completion { user_data, subchannel: self.number(), irb: *irb });
                }
                true
            }
            Origin::Future { place } => {
                if let Some(starts) = &self.starts {
                    starts.complete(place, irb);
                }
                false
            }
        }
    }

    /// The program that was started by instruction goes on, or has suspended itself, and says so.
    pub(crate) fn progress(&self, tag: Tag, irb: &IrbHead) {
        let enabled = self.interruptions.enabled();
        let step = match irb.scsw.flags().contains(ScswFlags::SUSPENDED) {
            true => self.cell.suspend(tag, irb, enabled),
            false => self.cell.progress(tag, irb, enabled),
        };
        self.interruptions.post(self, step);
    }

    /// The device has status of its own accord. `false`: something else is in progress or pending, and when
    /// that is over the task will hear of it.
    pub(crate) fn alert(&self, irb: &IrbHead) -> bool {
        // Relaxed: ordered by the fence, which pairs with that in `look_for_alert`: either the status is
        // found cleared here, or the mark is found set there.
        self.alerting.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let step = self.cell.alert(irb, self.interruptions.enabled());
        let is_told = !matches!(step, Step::Gone);
        if is_told {
            // Relaxed: where there is more, this comes again.
            self.alerting.store(false, Ordering::Relaxed);
        }
        self.interruptions.post(self, step);
        is_told
    }

    /// Status was fetched, or the subchannel enabled: its device may have more to tell.
    pub(super) fn look_for_alert(&self) {
        if !self.has_alerts {
            return;
        }
        // Pairs with the fence in `alert`.
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence.
        if self.alerting.load(Ordering::Relaxed) {
            self.ring();
        }
    }

    /// There is no way to its device from now on, or there is one again.
    pub(crate) fn set_cut(&self, is_cut: bool) {
        // Relaxed: a start that does not see it yet ends with a deferred condition code instead.
        self.is_cut.store(is_cut, Ordering::Relaxed);
    }

    /// Whether there is no way to its device.
    pub(super) fn is_cut(&self) -> bool {
        // Relaxed: as above.
        self.is_cut.load(Ordering::Relaxed)
    }

    /// Whether the device behind it is the host's.
    pub(super) fn is_of_host(&self) -> bool {
        self.host.is_some()
    }

    /// What the host says of the subchannel now; `None` where the device is not the host's, or gone.
    pub(super) fn host_schib(&self) -> Option<Schib> {
        let regions = self.host.as_ref()?.upgrade()?;
        regions.read_schib().ok()
    }

    /// HALT or CLEAR that was issued by instruction is performed.
    pub(crate) fn perform(&self, function: Function, irb: &IrbHead) {
        let step = self.cell.perform(function, irb, self.interruptions.enabled());
        self.interruptions.post(self, step);
    }

    /// The task's end, for HALT and CLEAR by instruction: there are no more, and those that wait are
    /// over. (A start that waits is one whose request is on its way: see `refuse_orphans`.)
    pub(crate) fn settle(&self) {
        while let Some((function, _)) = self.cell.function_pending() {
            self.perform(function, &Refusal::Detached.irb_of(function));
        }
    }

    /// Tells whoever delivers its interruptions.
    pub(super) fn trigger(&self, interruption: &IoInterruption) {
        if let Delivery::Interrupt(trigger) = &self.delivery
            && let Err(error) = trigger.trigger(interruption)
        {
            tracing::error!(%error, subchannel = %interruption.subchannel, "the interruption could not be delivered");
        }
    }
}
