//! The I/O interruptions of all subchannels, by subclass.
//!
//! Whether an interruption is pending is known to the subchannel's own state: that is where it comes
//! about and where TEST SUBCHANNEL and TEST PENDING INTERRUPTION take it. Beside that there is a set of
//! subchannels for each subclass, to find it: a mark in it says "look there". A mark is set after the
//! interruption has become pending and may outlive it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};

use vfio_ccw_queues::Marks;

use crate::architecture::IoInterruption;

use super::Shared;
use super::cell::Step;
use super::table::Table;

/// Interruption subclasses.
const SUBCLASSES: usize = 8;

/// What is pending, and who is told.
#[derive(Debug)]
pub(crate) struct Interruptions {
    table: Arc<Table>,
    /// Subchannels to look at, by subclass.
    pending: [Marks; SUBCLASSES],
    /// Where the last one was found, by subclass: the search goes on behind it, so that no subchannel
    /// keeps the others from their turn.
    last: [AtomicUsize; SUBCLASSES],
    /// Subclasses that are delivered to triggers, a bit each as in control register 6.
    enabled: AtomicU8,
}

impl Interruptions {
    pub(crate) fn new(table: Arc<Table>) -> Self {
        let places = table.places();
        Interruptions {
            table,
            pending: std::array::from_fn(|_| Marks::new(places)),
            last: std::array::from_fn(|_| AtomicUsize::new(0)),
            enabled: AtomicU8::new(0xff),
        }
    }

    /// Subclasses that are delivered to triggers.
    pub(crate) fn enabled(&self) -> u8 {
        // Relaxed: who must not miss a change looks again, in `post`.
        self.enabled.load(Ordering::Relaxed)
    }

    /// What a step of the channel at `shared` has brought about becomes known.
    #[inline]
    pub(crate) fn post(&self, shared: &Shared, step: Step) {
        if let Step::Interrupts { interruption, told } = step {
            self.interrupt(shared, &interruption, told);
        }
    }

    /// The interruption that is pending at `shared`, if one is, can be found from now on.
    pub(crate) fn find(&self, shared: &Shared) {
        if let Some(isc) = shared.cell().interrupting_subclass() {
            self.pending[usize::from(isc & 7)].set(shared.place());
        }
    }

    fn interrupt(&self, shared: &Shared, interruption: &IoInterruption, told: bool) {
        self.pending[usize::from(interruption.isc & 7)].set(shared.place());
        if told {
            return shared.trigger(interruption);
        }
        // SeqCst: pairs with the fence in `enable`. Either that sees the mark, or we see the subclass
        // enabled.
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence.
        tell(shared, self.enabled.load(Ordering::Relaxed));
    }

    /// Delivers the interruptions of `subclasses` to triggers from now on, and those of others no more;
    /// what was held back and is not now is delivered.
    pub(crate) fn enable(&self, subclasses: u8) {
        // Relaxed: ordered by the fence.
        let before = self.enabled.swap(subclasses, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `interrupt`.
        fence(Ordering::SeqCst);
        let news = subclasses & !before;
        for isc in (0..SUBCLASSES).filter(|isc| news & 0x80 >> isc != 0) {
            self.look_through(isc, |shared| {
                tell(shared, subclasses);
                false
            });
        }
    }

    /// TEST PENDING INTERRUPTION: takes the interruption of the first subclass of `subclasses` that has
    /// one.
    pub(crate) fn take(&self, subclasses: u8) -> Option<IoInterruption> {
        let enabled = (0..SUBCLASSES).filter(|isc| subclasses & 0x80 >> isc != 0);
        enabled.into_iter().find_map(|isc| {
            let marks = &self.pending[isc];
            loop {
                // Relaxed: a hint for fairness.
                let place = marks.take_first(self.last[isc].load(Ordering::Relaxed))?;
                self.last[isc].store(place + 1, Ordering::Relaxed);
                let shared = self.table.look_up(place as u32);
                let taken = shared.and_then(|shared| shared.cell().tpi(0x80 >> isc));
                if taken.is_some() {
                    return taken;
                }
            }
        })
    }

    /// Whether an interruption of `subclasses` is pending.
    pub(crate) fn any(&self, subclasses: u8) -> bool {
        let enabled = (0..SUBCLASSES).filter(|isc| subclasses & 0x80 >> isc != 0);
        enabled.into_iter().any(|isc| self.look_through(isc, |_| true))
    }

    /// Gives the subchannels with an interruption pending in subclass `isc` to `enough`, each at most
    /// once, until it has had enough; whether it had.
    fn look_through(&self, isc: usize, mut enough: impl FnMut(&Shared) -> bool) -> bool {
        let marks = &self.pending[isc];
        let mut from = 0;
        while let Some(place) = marks.next_from(from) {
            from = place + 1;
            let shared = self.table.look_up(place as u32);
            let interrupts = || {
                let shared = shared.as_ref();
                shared.and_then(|shared| shared.cell().interrupting_subclass()) == Some(isc as u8)
            };
            if !interrupts() {
                marks.unmark_unless(place, interrupts);
            } else if shared.as_ref().is_some_and(|shared| enough(shared)) {
                return true;
            }
        }
        false
    }
}

/// Tells whoever delivers the interruptions of `shared` of the one that is pending, once, if its subclass
/// is of `mask`.
fn tell(shared: &Shared, mask: u8) {
    if let Some(interruption) = shared.cell().tell(mask) {
        shared.trigger(&interruption);
    }
}
