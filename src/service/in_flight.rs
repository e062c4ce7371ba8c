//! Programs that devices outside the shard's thread have: a shard that waits may look at these, and only
//! these, instead of sleeping until one interrupts.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use quanta::Clock;
use slab::Slab;
use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_queues::wait::Forecast;

use super::runner::Runner;

/// The programs in flight on one shard, and how long devices take.
#[derive(Default)]
pub(super) struct InFlight {
    programs: RefCell<Slab<Started>>,
    /// Those that have to be looked at.
    looked: Cell<usize>,
    /// How long programs take, by class of device.
    services: [Cell<Forecast>; DeviceClass::COUNT],
    /// Programs that have ended.
    ended: Cell<u64>,
    /// Kept for [`InFlight::look`].
    looked_at: RefCell<Vec<Rc<Runner>>>,
}

struct Started {
    /// What is to be run to look at it, where that has to be done.
    runner: Option<Rc<Runner>>,
    class: DeviceClass,
    /// Raw clock value.
    at: u64,
}

impl InFlight {
    /// A program was started at raw clock value `at` and is waited for. Returns what it goes by.
    pub(super) fn take_off(
        &self,
        runner: Option<Rc<Runner>>,
        class: DeviceClass,
        at: u64,
    ) -> usize {
        self.looked.set(self.looked.get() + usize::from(runner.is_some()));
        self.programs.borrow_mut().insert(Started { runner, class, at })
    }

    /// It is over.
    pub(super) fn land(&self, key: usize, clock: &Clock) {
        if let Some(Started { runner, class, at }) = self.programs.borrow_mut().try_remove(key) {
            self.looked.set(self.looked.get() - usize::from(runner.is_some()));
            let service = &self.services[class.index()];
            let mut forecast = service.get();
            forecast.observe(clock.delta_as_nanos(at, clock.raw()));
            service.set(forecast);
            self.ended.set(self.ended.get() + 1);
        }
    }

    /// Whether there is none that has to be looked at.
    pub(super) fn is_unlooked(&self) -> bool {
        self.looked.get() == 0
    }

    /// In how many nanoseconds the first of them will probably end.
    pub(super) fn expected_in(&self, clock: &Clock) -> Option<u64> {
        let programs = self.programs.borrow();
        if programs.is_empty() {
            return None;
        }
        let now = clock.raw();
        let left = programs.iter().map(|(_, Started { class, at, .. })| {
            // Where nothing is known of a class, its first program may end at any moment.
            let service = self.services[class.index()].get().nanos().unwrap_or(0);
            service.saturating_sub(clock.delta_as_nanos(*at, now))
        });
        left.min()
    }

    /// Lets each that is waited for look at its device; whether one has ended.
    pub(super) fn look(&self) -> bool {
        let before = self.ended.get();
        let mut runners = self.looked_at.borrow_mut();
        runners.extend(
            self.programs.borrow().iter().filter_map(|(_, started)| started.runner.clone()),
        );
        runners.drain(..).for_each(|runner| runner.look());
        self.ended.get() != before
    }
}
