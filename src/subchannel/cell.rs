//! A subchannel that vCPUs and the channel change at the same time.
//!
//! Every instruction, and every step of the channel, is one compare-and-swap of the state word
//! (`state.rs`): it takes effect at one moment, nothing of it is seen before, and none waits for
//! another thread. It is tried again only where another has taken effect meanwhile.
//!
//! # Status beside the word
//!
//! The rest of the status (CCW address, device and subchannel status, counts, sense) does not fit into
//! the word. It stands in one of two buffers, and the word says which. Only the channel writes it:
//! always the buffer that the word does not name, which it then names with the compare-and-swap that
//! makes the status pending. A vCPU reads the buffer that the word names, and then sees from the word
//! whether that is still so: TEST SUBCHANNEL with the compare-and-swap that clears the status, STORE
//! SUBCHANNEL by loading the word again. A buffer is written anew only after the word has changed
//! twice, and every change makes it a word that never was before, so what was read from an unchanged
//! word is whole.

use std::fmt;

use zerocopy::IntoBytes;

use crate::architecture::{Function, IoInterruption, IrbHead, Pmcw, Scsw, ScswFlags, SubchannelId};

use super::Cc;
use super::state::{State, Tag};
use super::sync::{AtomicU64, AtomicU128, Ordering, fence};

/// A subchannel's state and status.
pub(crate) struct Cell {
    id: SubchannelId,
    word: AtomicU128,
    status: [Status; 2],
}

/// Room for an IRB that one thread writes while others read it.
struct Status([AtomicU64; WORDS]);

const WORDS: usize = size_of::<IrbHead>() / 8;

/// What a step of the channel has brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: the function it belongs to was cancelled, halted or cleared.
    Gone,
    /// The status has changed; nobody need be told.
    Quiet,
    /// An interruption has become pending. `told`: whoever took the step delivers it now.
    Interrupts { interruption: IoInterruption, told: bool },
}

/// What is saved of a subchannel, beside its PMCW.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Saved {
    /// Function, activity and status control.
    pub(crate) control: ScswFlags,
    /// The status that is pending.
    pub(crate) status: IrbHead,
    /// An interruption is pending.
    pub(crate) interrupts: bool,
    /// Whoever delivers interruptions was told of it.
    pub(crate) told: bool,
}

impl Cell {
    /// As it was saved; nothing runs. A start that it had has number 0.
    pub(crate) fn restored(id: SubchannelId, pmcw: &Pmcw, saved: &Saved) -> Self {
        let cell = Cell::new(id, pmcw);
        let state = State::restored(pmcw, saved);
        cell.status[state.buffer()].write(&saved.status);
        Cell { word: AtomicU128::new(state.bits()), ..cell }
    }

    /// What it is now, with the PMCW over `fixed`. Nothing may change it meanwhile.
    pub(crate) fn save(&self, fixed: &Pmcw) -> (Pmcw, Saved) {
        let now = self.load();
        let status = match now.is_pending() {
            true => self.status[now.buffer()].read(),
            false => IrbHead::default(),
        };
        let control = now.control();
        let (interrupts, told) = (now.interrupts(), now.is_told());
        (now.pmcw(fixed), Saved { control, status, interrupts, told })
    }

    /// At rest.
    pub(crate) fn new(id: SubchannelId, pmcw: &Pmcw) -> Self {
        let word = AtomicU128::new(State::new(pmcw).bits());
        Cell { id, word, status: std::array::from_fn(|_| Status::empty()) }
    }

    /// Which subchannel it is.
    pub(crate) fn id(&self) -> SubchannelId {
        self.id
    }

    fn load(&self) -> State {
        // Acquire: pairs with the release of the exchange in `exchange`, so that the buffer that the
        // word names is written.
        State::from_bits(self.word.load(Ordering::Acquire))
    }

    /// Makes `next` of `now`; an error says what it is instead.
    fn exchange(&self, now: State, next: State) -> Result<State, State> {
        let next = next.stepped();
        // Release: pairs with the acquire in `load` and here, for the status that was written; and
        // what was read of a buffer before stays before. Acquire: also for what the guest wrote before
        // its instruction.
        let exchanged = self.word.compare_exchange(
            now.bits(),
            next.bits(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        exchanged.map(|_| next).map_err(State::from_bits)
    }

    /// Takes one step from whatever state there is.
    fn step<E>(&self, step: impl Fn(State) -> Result<State, E>) -> Result<State, E> {
        let mut now = self.load();
        loop {
            match self.exchange(now, step(now)?) {
                Ok(next) => return Ok(next),
                Err(other) => now = other,
            }
        }
    }

    /// The same for a step that may have become pointless.
    fn try_step(&self, step: impl Fn(State) -> Option<State>) -> Option<State> {
        self.step(|now| step(now).ok_or(())).ok()
    }
}

/// Instructions, see `instructions.rs`.
impl Cell {
    /// START SUBCHANNEL with this interruption parameter: the number of the start. `has_path`: there is
    /// a path that it may use.
    pub(crate) fn ssch(&self, intparm: u32, has_path: bool) -> Result<Tag, Cc> {
        self.step(|now| {
            now.ssch(intparm).and_then(|next| if has_path { Ok(next) } else { Err(Cc::Cc3) })
        })
        .map(State::tag)
    }

    /// TEST SUBCHANNEL.
    pub(crate) fn tsch(&self) -> (Cc, IrbHead) {
        let mut now = self.load();
        loop {
            let next = match now.tsch() {
                Ok(next) => next,
                Err(Cc::Cc1) => {
                    return (Cc::Cc1, IrbHead { scsw: quiet(now), ..IrbHead::default() });
                }
                Err(cc) => return (cc, IrbHead::default()),
            };
            let irb = self.status[now.buffer()].read();
            match self.exchange(now, next) {
                Ok(_) => return (Cc::Cc0, IrbHead { scsw: shown(now, irb.scsw), ..irb }),
                Err(other) => now = other,
            }
        }
    }

    /// STORE SUBCHANNEL: what can be modified over `fixed`, and the SCSW.
    pub(crate) fn stsch(&self, fixed: &Pmcw) -> (Pmcw, Scsw) {
        let mut now = self.load();
        loop {
            let scsw = match now.is_pending() {
                true => shown(now, self.status[now.buffer()].read().scsw),
                false => quiet(now),
            };
            // Acquire: what was read of the buffer comes before the load that follows. Pairs with the
            // release fence in `Status::write`: who saw a newer word there sees a newer one here.
            fence(Ordering::Acquire);
            // Relaxed: ordered by the fence.
            let again = State::from_bits(self.word.load(Ordering::Relaxed));
            if again == now {
                return (now.pmcw(fixed), scsw);
            }
            now = self.load();
        }
    }

    /// MODIFY SUBCHANNEL.
    pub(crate) fn msch(&self, pmcw: &Pmcw) -> Cc {
        cc(self.step(|now| now.msch(pmcw)))
    }

    /// HALT SUBCHANNEL. With cc 0, [`Cell::function_pending`] says so to the channel.
    pub(crate) fn hsch(&self) -> Cc {
        cc(self.step(State::hsch))
    }

    /// CLEAR SUBCHANNEL, likewise.
    pub(crate) fn csch(&self) -> Cc {
        cc(self.step(State::csch))
    }

    /// RESUME SUBCHANNEL. With cc 0, [`Cell::is_resumed`] says so to the channel.
    pub(crate) fn rsch(&self) -> Cc {
        cc(self.step(State::rsch))
    }

    /// CANCEL SUBCHANNEL. `begins`: a start that waits cannot be cancelled any more, although its program
    /// has not begun; it does now, as far as anybody can see.
    pub(crate) fn xsch(&self, begins: bool) -> Cc {
        match self.step(|now| now.xsch(begins)) {
            Ok(begun) if begun.is_in_progress() => Cc::Cc2,
            cancelled => cc(cancelled),
        }
    }

    /// TEST PENDING INTERRUPTION of this subchannel, for subclasses of `mask`, a bit each as in control
    /// register 6.
    pub(crate) fn tpi(&self, mask: u8) -> Option<IoInterruption> {
        // What it changes is not what the code is made of.
        let taken = self.try_step(|now| now.tpi().filter(|_| includes(mask, now)));
        taken.map(|state| state.interruption(self.id))
    }
}

/// The channel's side. One thread at a time takes these steps.
impl Cell {
    /// HALT or CLEAR that waits to be performed, and what is in progress.
    pub(crate) fn function_pending(&self) -> Option<(Function, ScswFlags)> {
        let now = self.load();
        now.function_pending().map(|function| (function, now.control()))
    }

    /// Whether a function is in progress.
    pub(crate) fn is_in_progress(&self) -> bool {
        self.load().is_in_progress()
    }

    /// Whether start `tag` is in progress.
    pub(crate) fn is_started(&self, tag: Tag) -> bool {
        self.load().is_started(tag)
    }

    /// Whether the suspended program of start `tag` is to go on.
    pub(crate) fn is_resumed(&self, tag: Tag) -> bool {
        self.load().is_resumed(tag)
    }

    /// The program of start `tag` begins or goes on, if it was not cancelled, halted or cleared.
    pub(crate) fn begin(&self, tag: Tag) -> bool {
        self.try_step(|now| now.begin(tag)).is_some()
    }

    /// The program of start `tag` goes on and says so with `irb`. `tell`: interruptions of which
    /// subclasses are delivered at once, a bit each as in control register 6.
    pub(crate) fn progress(&self, tag: Tag, irb: &IrbHead, tell: u8) -> Step {
        self.present(irb, |now| now.progress(tag, includes(tell, now)))
    }

    /// The program of start `tag` has suspended itself, with `irb`.
    pub(crate) fn suspend(&self, tag: Tag, irb: &IrbHead, tell: u8) -> Step {
        let says_so = irb.scsw.flags().contains(ScswFlags::STATUS_PENDING);
        self.present(irb, |now| now.suspend(tag, says_so, includes(tell, now)))
    }

    /// The program of a ring or a future has suspended itself: until it is resumed it is a start
    /// function of the subchannel, of this number.
    pub(crate) fn begin_suspension(&self) -> Tag {
        self.step(|now| Ok::<_, ()>(now.begin_suspension()))
            .map_or_else(|()| Tag::default(), State::tag)
    }

    /// It goes on, or is over.
    pub(crate) fn end_suspension(&self, tag: Tag) {
        self.try_step(|now| now.end_suspension(tag));
    }

    /// Start `tag` has ended with `irb`.
    pub(crate) fn end(&self, tag: Tag, irb: &IrbHead, tell: u8) -> Step {
        let status = irb.scsw.flags();
        self.present(irb, |now| now.end(tag, status, includes(tell, now)))
    }

    /// HALT or CLEAR is performed, with `irb`.
    pub(crate) fn perform(&self, function: Function, irb: &IrbHead, tell: u8) -> Step {
        let status = irb.scsw.flags();
        self.present(irb, |now| now.perform(function, status, includes(tell, now)))
    }

    /// The device has status of its own accord. [`Step::Gone`]: something else is in progress or pending.
    pub(crate) fn alert(&self, irb: &IrbHead, tell: u8) -> Step {
        let status = irb.scsw.flags();
        self.present(irb, |now| now.alert(status, includes(tell, now)))
    }

    /// Subclass of the interruption that is pending, if one is.
    pub(crate) fn interrupting_subclass(&self) -> Option<u8> {
        let now = self.load();
        now.interrupts().then(|| now.isc())
    }

    /// There is no device any more.
    pub(crate) fn leave(&self) {
        self.try_step(State::leave);
    }

    /// Whoever delivers interruptions is told of the one that is pending, if its subclass is of `mask`
    /// and he was not before.
    pub(crate) fn tell(&self, mask: u8) -> Option<IoInterruption> {
        let told = self.try_step(|now| now.tell().filter(|_| includes(mask, now)));
        told.map(|state| state.interruption(self.id))
    }

    /// Writes the status and makes it pending in one step; as one with status that was pending before.
    fn present(&self, irb: &IrbHead, step: impl Fn(State) -> Option<State>) -> Step {
        let mut now = self.load();
        loop {
            let Some(next) = step(now) else { return Step::Gone };
            let next = next.with_other_buffer();
            let scsw = match now.is_pending() {
                true => irb.scsw.merged_with(self.status[now.buffer()].read().scsw),
                false => irb.scsw,
            };
            self.status[next.buffer()].write(&IrbHead { scsw, ..*irb });
            match self.exchange(now, next) {
                Ok(next) if next.interrupts_after(now) => {
                    let interruption = next.interruption(self.id);
                    return Step::Interrupts { interruption, told: next.tell().is_none() };
                }
                Ok(_) => return Step::Quiet,
                Err(other) => now = other,
            }
        }
    }
}

/// Whether the interruption subclass of state `now` is of `mask`.
fn includes(mask: u8, now: State) -> bool {
    mask & 0x80 >> now.isc() != 0
}

fn cc(result: Result<State, Cc>) -> Cc {
    result.map_or_else(|cc| cc, |_| Cc::Cc0)
}

/// The SCSW where no status is pending.
fn quiet(state: State) -> Scsw {
    Scsw::new(state.control())
}

/// Status that was written when it became pending, with what has changed since.
fn shown(state: State, scsw: Scsw) -> Scsw {
    let control =
        ScswFlags::FUNCTION_CONTROL | ScswFlags::ACTIVITY_CONTROL | ScswFlags::STATUS_CONTROL;
    scsw.without_flags(control).with_flags(state.control())
}

impl Status {
    fn empty() -> Self {
        Status(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn write(&self, irb: &IrbHead) {
        // Release: pairs with the acquire fence in `Cell::stsch`: who reads what is written here sees
        // that the word names this buffer no more.
        fence(Ordering::Release);
        for (place, bytes) in self.0.iter().zip(irb.as_bytes().as_chunks::<8>().0) {
            // Relaxed: ordered by the fence above and by the exchange that follows.
            place.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    }

    fn read(&self) -> IrbHead {
        let mut irb = IrbHead::default();
        for (place, bytes) in self.0.iter().zip(irb.as_mut_bytes().as_chunks_mut::<8>().0) {
            // Relaxed: ordered by the load of the word before, and by whatever finds out afterwards that
            // the word has not changed.
            *bytes = place.load(Ordering::Relaxed).to_ne_bytes();
        }
        irb
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load().fmt(f)
    }
}
