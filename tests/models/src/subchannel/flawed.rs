//! A cell with a flaw, or without: whether a check finds the flaw is what shows that it checks.
//!
//! It has the rules of `state.rs`, and does without whatever a flaw leaves out of `cell.rs`.

use zerocopy::IntoBytes;

use crate::architecture::{Function, IoInterruption, IrbHead, Pmcw, Scsw, ScswFlags};
use crate::status::CONTROL;
use crate::subject::{Step, Subject, id, pmcw};

use super::Cc;
use super::state::{State, Tag};
use super::sync::{AtomicU64, AtomicU128, Ordering};

/// What a cell does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// TEST SUBCHANNEL reads the status, and clears what is pending then, whether it is that status or
    /// not.
    FetchesUnchecked,
    /// STORE SUBCHANNEL does not look whether the status that it has read is still there.
    StoresUnchecked,
    /// Status is written where the one that is pending stands.
    WritesInPlace,
    /// START SUBCHANNEL decides by a state that may be another's meanwhile.
    StartsUnchecked,
    /// The status of a start is taken for that of whichever is in progress.
    StartsAlike,
    /// TEST PENDING INTERRUPTION leaves the interruption there.
    TakesNothing,
}

/// A cell with a flaw, or without.
pub(crate) struct Flawed {
    flaw: Option<Flaw>,
    word: AtomicU128,
    status: [[AtomicU64; WORDS]; 2],
}

const WORDS: usize = size_of::<IrbHead>() / 8;

/// SeqCst, and every access is with every other: it is about the order of accesses, and shuttle has
/// nothing weaker.
const ORDER: Ordering = Ordering::SeqCst;

impl Flawed {
    /// At rest.
    pub(crate) fn new(flaw: Option<Flaw>) -> Self {
        let word = AtomicU128::new(State::new(&pmcw()).bits());
        let buffer = |_| std::array::from_fn(|_| AtomicU64::new(0));
        Flawed { flaw, word, status: std::array::from_fn(buffer) }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn load(&self) -> State {
        State::from_bits(self.word.load(ORDER))
    }

    fn exchange(&self, now: State, next: State) -> Result<State, State> {
        let next = next.stepped();
        let exchanged = self.word.compare_exchange(now.bits(), next.bits(), ORDER, ORDER);
        exchanged.map(|_| next).map_err(State::from_bits)
    }

    fn step(&self, step: impl Fn(State) -> Result<State, Cc>) -> Result<State, Cc> {
        let mut now = self.load();
        loop {
            match self.exchange(now, step(now)?) {
                Ok(next) => return Ok(next),
                Err(other) => now = other,
            }
        }
    }

    fn cc(&self, step: impl Fn(State) -> Result<State, Cc>) -> Cc {
        self.step(step).err().unwrap_or(Cc::Cc0)
    }

    fn try_step(&self, step: impl Fn(State) -> Option<State>) -> Option<State> {
        self.step(|now| step(now).ok_or(Cc::Cc3)).ok()
    }

    /// Makes a state of one that may have become another, of which nobody asks.
    fn overwrite(&self, next: State) {
        let mut now = self.load();
        while let Err(other) = self.exchange(now, next) {
            now = other;
        }
    }

    fn read(&self, state: State) -> IrbHead {
        let mut irb = IrbHead::default();
        let status = &self.status[state.buffer()];
        for (place, bytes) in status.iter().zip(irb.as_mut_bytes().as_chunks_mut::<8>().0) {
            *bytes = place.load(ORDER).to_ne_bytes();
        }
        let scsw = irb.scsw.without_flags(CONTROL).with_flags(state.control());
        IrbHead { scsw, ..irb }
    }

    fn write(&self, state: State, irb: &IrbHead) {
        let status = &self.status[state.buffer()];
        for (place, bytes) in status.iter().zip(irb.as_bytes().as_chunks::<8>().0) {
            place.store(u64::from_ne_bytes(*bytes), ORDER);
        }
    }

    fn present(
        &self,
        irb: &IrbHead,
        tell: u8,
        step: impl Fn(State, bool) -> Option<State>,
    ) -> Step {
        let mut now = self.load();
        loop {
            let Some(next) = step(now, includes(tell, now)) else { return Step::Gone };
            let next = if self.has(Flaw::WritesInPlace) { next } else { next.with_other_buffer() };
            let scsw = match now.is_pending() {
                true => irb.scsw.merged_with(self.read(now).scsw),
                false => irb.scsw,
            };
            self.write(next, &IrbHead { scsw, ..*irb });
            match self.exchange(now, next) {
                Ok(next) if next.interrupts_after(now) => {
                    let IoInterruption { intparm, isc, .. } = next.interruption(id());
                    return Step::Interrupts { intparm, isc, told: next.tell().is_none() };
                }
                Ok(_) => return Step::Quiet,
                Err(other) => now = other,
            }
        }
    }

    /// The start that is meant.
    fn meant(&self, now: State, tag: Tag) -> Tag {
        if self.has(Flaw::StartsAlike) { now.tag() } else { tag }
    }
}

/// Whether the interruption subclass of state `now` is of `mask`.
fn includes(mask: u8, now: State) -> bool {
    mask & 0x80 >> now.isc() != 0
}

impl Subject for Flawed {
    type Tag = Tag;

    fn ssch(&self, intparm: u32, has_path: bool) -> Result<Tag, Cc> {
        let start = |now: State| {
            let next = now.ssch(intparm)?;
            if has_path { Ok(next) } else { Err(Cc::Cc3) }
        };
        if self.has(Flaw::StartsUnchecked) {
            let next = start(self.load())?;
            self.overwrite(next);
            return Ok(next.tag());
        }
        self.step(start).map(State::tag)
    }

    fn tsch(&self) -> (Cc, IrbHead) {
        let mut now = self.load();
        loop {
            let next = match now.tsch() {
                Ok(next) => next,
                Err(Cc::Cc1) => {
                    let scsw = Scsw::new(now.control());
                    return (Cc::Cc1, IrbHead { scsw, ..IrbHead::default() });
                }
                Err(cc) => return (cc, IrbHead::default()),
            };
            let irb = self.read(now);
            if self.has(Flaw::FetchesUnchecked) {
                return (self.cc(State::tsch), irb);
            }
            match self.exchange(now, next) {
                Ok(_) => return (Cc::Cc0, irb),
                Err(other) => now = other,
            }
        }
    }

    fn stsch(&self, fixed: &Pmcw) -> (Pmcw, Scsw) {
        loop {
            let now = self.load();
            let scsw = match now.is_pending() {
                true => self.read(now).scsw,
                false => Scsw::new(now.control()),
            };
            if self.has(Flaw::StoresUnchecked) || self.load() == now {
                return (now.pmcw(fixed), scsw);
            }
        }
    }

    fn msch(&self, pmcw: &Pmcw) -> Cc {
        self.cc(|now| now.msch(pmcw))
    }

    fn hsch(&self) -> Cc {
        self.cc(State::hsch)
    }

    fn csch(&self) -> Cc {
        self.cc(State::csch)
    }

    fn rsch(&self) -> Cc {
        self.cc(State::rsch)
    }

    fn xsch(&self, begins: bool) -> Cc {
        match self.step(|now| now.xsch(begins)) {
            Ok(begun) if begun.is_in_progress() => Cc::Cc2,
            Ok(_) => Cc::Cc0,
            Err(cc) => cc,
        }
    }

    fn tpi(&self, mask: u8) -> Option<IoInterruption> {
        if self.has(Flaw::TakesNothing) {
            let now = self.load();
            return (now.interrupts() && includes(mask, now)).then(|| now.interruption(id()));
        }
        let taken = self.try_step(|now| now.tpi().filter(|_| includes(mask, now)));
        taken.map(|state| state.interruption(id()))
    }

    fn tell(&self, mask: u8) -> Option<IoInterruption> {
        let told = self.try_step(|now| now.tell().filter(|_| includes(mask, now)));
        told.map(|state| state.interruption(id()))
    }

    fn leave(&self) {
        self.try_step(State::leave);
    }

    fn function_pending(&self) -> Option<(Function, ScswFlags)> {
        let now = self.load();
        now.function_pending().map(|function| (function, now.control()))
    }

    fn is_started(&self, tag: Tag) -> bool {
        let now = self.load();
        now.is_started(self.meant(now, tag))
    }

    fn is_resumed(&self, tag: Tag) -> bool {
        let now = self.load();
        now.is_resumed(self.meant(now, tag))
    }

    fn begin(&self, tag: Tag) -> bool {
        self.try_step(|now| now.begin(self.meant(now, tag))).is_some()
    }

    fn progress(&self, tag: Tag, irb: &IrbHead, tell: u8) -> Step {
        self.present(irb, tell, |now, told| now.progress(self.meant(now, tag), told))
    }

    fn suspend(&self, tag: Tag, irb: &IrbHead, tell: u8) -> Step {
        let says_so = irb.scsw.flags().contains(ScswFlags::STATUS_PENDING);
        self.present(irb, tell, |now, told| now.suspend(self.meant(now, tag), says_so, told))
    }

    fn end(&self, tag: Tag, irb: &IrbHead, tell: u8) -> Step {
        let status = irb.scsw.flags();
        self.present(irb, tell, |now, told| now.end(self.meant(now, tag), status, told))
    }

    fn perform(&self, function: Function, irb: &IrbHead, tell: u8) -> Step {
        let status = irb.scsw.flags();
        self.present(irb, tell, |now, told| now.perform(function, status, told))
    }

    fn alert(&self, irb: &IrbHead, tell: u8) -> Step {
        let status = irb.scsw.flags();
        self.present(irb, tell, |now, told| now.alert(status, told))
    }
}
