//! Guest memory that changes while it is looked at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use vfio_ccw::architecture::{Ccw, DeviceStatus, IrbHead};
use vfio_ccw::translation::{Access, Rule, Verdict};
use vfio_ccw_pinning::GuestMap;

/// A doubleword of guest memory and the values that it takes in turn.
#[derive(Debug)]
pub struct Flip {
    /// Its guest address.
    pub at: u32,
    /// The values, as memory holds them.
    pub values: Vec<[u8; 8]>,
}

impl Flip {
    /// Format-1 CCWs.
    pub fn ccws(at: u32, ccws: &[Ccw]) -> Self {
        Flip { at, values: ccws.iter().map(|ccw| ccw.to_format_1()).collect() }
    }

    /// Words as the guest sees them.
    pub fn words(at: u32, words: &[u64]) -> Self {
        Flip { at, values: words.iter().map(|word| word.to_be_bytes()).collect() }
    }
}

/// Tells the other thread to stop, also when this one panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        // Relaxed: orders nothing.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs rounds while another thread, a vCPU, gives each doubleword its values in turn, each at a
/// pace of its own.
///
/// `round` is run `least` times, and then until it says that the race has gone every way: on a busy
/// machine the vCPU may not run for long.
pub fn while_rewritten(
    map: &GuestMap,
    flips: &[Flip],
    least: usize,
    mut round: impl FnMut(usize) -> bool,
) {
    let (stop, started) = (AtomicBool::new(false), Barrier::new(2));
    let memory = map.regions()[0].host();
    let rewrite = |turn: usize| {
        for (pace, flip) in (1..).zip(flips) {
            let value = flip.values[turn / pace % flip.values.len()];
            assert!(memory.store_doubleword(flip.at as usize, value));
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            rewrite(0);
            started.wait();
            let turns = (1..).take_while(|_| !stop.load(Ordering::Relaxed));
            turns.for_each(rewrite);
        });
        let _stop = Stop(&stop);
        started.wait();
        for number in 0.. {
            if round(number) && number >= least {
                break;
            }
            assert!(number < 1000 * least, "there was no race in {number} rounds");
            if number >= least {
                thread::yield_now();
            }
        }
    });
}

/// A rule that allows everything, and gives each doubleword its last value when it is asked: a vCPU
/// that stores as soon as a command was read.
#[derive(Debug)]
pub struct Meddler {
    memory: Arc<GuestMap>,
    flips: Vec<Flip>,
}

impl Meddler {
    /// One for this guest memory.
    pub fn new(memory: Arc<GuestMap>, flips: impl Into<Vec<Flip>>) -> Self {
        Meddler { memory, flips: flips.into() }
    }
}

impl Rule for Meddler {
    fn judge(&self, _access: &Access) -> Verdict {
        let memory = self.memory.regions()[0].host();
        for flip in &self.flips {
            let last = flip.values.last().expect("a value");
            assert!(memory.store_doubleword(flip.at as usize, *last));
        }
        Verdict::Allow
    }
}

/// How often programs ended in each of the ways that a race may go.
#[derive(Debug, Default)]
pub struct Tally {
    /// Clean ends.
    pub clean: usize,
    /// Refusals.
    pub refused: usize,
}

impl Tally {
    /// Counts an end that is clean, or a refusal with one of these pairs of sense bytes.
    #[track_caller]
    pub fn count(&mut self, irb: &IrbHead, senses: &[[u8; 2]]) {
        if irb.scsw.is_clean_end() {
            self.clean += 1;
        } else {
            assert!(irb.scsw.device_status().contains(DeviceStatus::UNIT_CHECK), "{irb:?}");
            assert!(senses.iter().any(|sense| irb.sense().starts_with(sense)), "{irb:?}");
            self.refused += 1;
        }
    }

    /// Whether it has gone both ways.
    pub fn both(&self) -> bool {
        self.clean > 0 && self.refused > 0
    }
}
