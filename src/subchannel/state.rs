//! The state of a subchannel, in one word of 128 bits: everything that an I/O instruction looks at
//! before it decides, and everything that it changes.
//!
//! ```text
//! control    15   function, activity and status control, as in the SCSW
//! flags      11   of the PMCW: interruption subclass, E, limit mode, measurement mode, D, T, V
//! buffer      1   which of two buffers holds the rest of the status
//! interrupts  1   an interruption is pending
//! told        1   and whoever delivers interruptions was told of it
//! lpm         8   logical-path mask
//! mbi        16   measurement-block index
//! intparm    32   interruption parameter
//! tag        13   number of the last start function
//! version    30   changes
//! ```
//!
//! Each method here is one instruction, or one step of the channel: a pure function from the state
//! before to the state after. The rules are QEMU's (`hw/s390x/css.c`, `css_do_*`); the words for them
//! are those of the architecture. That whole steps are atomic is the business of `cell.rs`.
//!
//! The tag tells starts apart: a start that was cancelled or cleared, and whose request is still on
//! its way, is not taken for the one that was started after it. The version makes every state of the
//! word a new one, so that "nothing has changed since" can be seen from it.

use std::fmt;

use crate::architecture::{Function, IoInterruption, Pmcw, PmcwFlags, ScswFlags, SubchannelId};

use super::Cc;
use super::cell::Saved;

/// State of a subchannel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State(u128);

/// Number of a start function; only so many are on their way at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tag(u16);

/// A run of bits of the word.
#[derive(Clone, Copy)]
struct Field {
    shift: u32,
    bits: u32,
}

impl Field {
    const fn first(bits: u32) -> Self {
        Field { shift: 0, bits }
    }

    const fn then(self, bits: u32) -> Self {
        Field { shift: self.shift + self.bits, bits }
    }

    const fn mask(self) -> u128 {
        (1 << self.bits) - 1
    }
}

const CONTROL: Field = Field::first(15);
const FLAGS: Field = CONTROL.then(11);
const BUFFER: Field = FLAGS.then(1);
const INTERRUPTS: Field = BUFFER.then(1);
const TOLD: Field = INTERRUPTS.then(1);
const LPM: Field = TOLD.then(8);
const MBI: Field = LPM.then(16);
const INTPARM: Field = MBI.then(32);
const TAG: Field = INTPARM.then(13);
const VERSION: Field = TAG.then(30);

const _: () = assert!(VERSION.shift + VERSION.bits == 128);

/// Requests that may be under way at a time, so that a tag names only one of them.
pub(crate) const MOST_STARTS: usize = 1 << 12;

const _: () = assert!(2 * MOST_STARTS == 1 << TAG.bits);

/// Flags of the PMCW that MODIFY SUBCHANNEL takes over, beside the interruption subclass.
const MODIFIABLE: PmcwFlags = PmcwFlags::ENABLED
    .union(PmcwFlags::LIMIT_LOW)
    .union(PmcwFlags::LIMIT_HIGH)
    .union(PmcwFlags::MEASURE_BLOCK)
    .union(PmcwFlags::MEASURE_CONNECT)
    .union(PmcwFlags::MULTIPATH);

const OPERATIONAL: PmcwFlags = PmcwFlags::ENABLED.union(PmcwFlags::DEVICE_VALID);

const PENDING: ScswFlags = ScswFlags::STATUS_PENDING;
const ACTIVE: ScswFlags = ScswFlags::SUBCHANNEL_ACTIVE.union(ScswFlags::DEVICE_ACTIVE);
/// Status of a program that goes on.
const INTERMEDIATE: ScswFlags = ScswFlags::INTERMEDIATE.union(ScswFlags::STATUS_PENDING);

impl State {
    /// At rest, with what `pmcw` says.
    pub(super) fn new(pmcw: &Pmcw) -> Self {
        State(0)
            .with_flags(pmcw.flags(), pmcw.isc())
            .with_intparm(pmcw.intparm.get())
            .with(LPM, pmcw.lpm.into())
            .with(MBI, pmcw.mbi.get().into())
    }

    /// As it was saved: at rest, with no start but one numbered 0.
    pub(super) fn restored(pmcw: &Pmcw, saved: &Saved) -> Self {
        State::new(pmcw)
            .with_control(saved.control)
            .with(INTERRUPTS, saved.interrupts.into())
            .with(TOLD, saved.told.into())
    }

    pub(super) fn from_bits(bits: u128) -> Self {
        State(bits)
    }

    pub(super) fn bits(self) -> u128 {
        self.0
    }

    fn field(self, field: Field) -> u128 {
        self.0 >> field.shift & field.mask()
    }

    fn with(self, field: Field, value: u128) -> Self {
        let rest = self.0 & !(field.mask() << field.shift);
        State(rest | (value & field.mask()) << field.shift)
    }

    /// The state that counts as another one.
    pub(super) fn stepped(self) -> Self {
        self.with(VERSION, self.field(VERSION) + 1)
    }

    /// Function, activity and status control.
    pub(super) fn control(self) -> ScswFlags {
        ScswFlags::from_bits_retain(self.field(CONTROL) as u32)
    }

    pub(super) fn with_control(self, control: ScswFlags) -> Self {
        self.with(CONTROL, control.bits().into())
    }

    fn flags(self) -> PmcwFlags {
        PmcwFlags::from_bits_retain(self.field(FLAGS) as u16 & 0xff)
    }

    /// Interruption subclass.
    pub(super) fn isc(self) -> u8 {
        (self.field(FLAGS) >> 8) as u8 & 7
    }

    fn with_flags(self, flags: PmcwFlags, isc: u8) -> Self {
        let bits = flags.bits() & 0xff | u16::from(isc & 7) << 8;
        self.with(FLAGS, bits.into())
    }

    fn with_intparm(self, intparm: u32) -> Self {
        self.with(INTPARM, intparm.into())
    }

    /// Buffer that the status is in, 0 or 1.
    pub(super) fn buffer(self) -> usize {
        self.field(BUFFER) as usize
    }

    /// The other buffer holds the status.
    pub(super) fn with_other_buffer(self) -> Self {
        self.with(BUFFER, 1 - self.field(BUFFER))
    }

    pub(super) fn tag(self) -> Tag {
        Tag(self.field(TAG) as u16)
    }

    /// The word with what can be in it.
    pub(super) fn pmcw(self, fixed: &Pmcw) -> Pmcw {
        let mut pmcw = fixed.with(self.flags(), self.isc());
        pmcw.intparm = (self.field(INTPARM) as u32).into();
        pmcw.lpm = self.field(LPM) as u8;
        pmcw.mbi = (self.field(MBI) as u16).into();
        pmcw
    }

    /// Whether there is a device, and the guest has enabled the subchannel.
    pub(super) fn is_operational(self) -> bool {
        self.flags().contains(OPERATIONAL)
    }

    /// Whether there is a device.
    pub(super) fn has_device(self) -> bool {
        self.flags().contains(PmcwFlags::DEVICE_VALID)
    }

    fn function(self) -> ScswFlags {
        self.control() & ScswFlags::FUNCTION_CONTROL
    }

    fn status(self) -> ScswFlags {
        self.control() & ScswFlags::STATUS_CONTROL
    }

    fn has(self, flags: ScswFlags) -> bool {
        self.control().contains(flags)
    }

    pub(super) fn is_pending(self) -> bool {
        self.has(PENDING)
    }

    pub(super) fn interrupts(self) -> bool {
        self.field(INTERRUPTS) == 1
    }

    /// Whether whoever delivers interruptions was told of the one that is pending.
    pub(super) fn is_told(self) -> bool {
        self.field(TOLD) == 1
    }

    fn without_interruption(self) -> Self {
        self.with(INTERRUPTS, 0).with(TOLD, 0)
    }

    /// Intermediate status pending: an interruption, if there is none yet.
    fn interrupting(self, told: bool) -> Self {
        if self.interrupts() { self } else { self.interrupting_anew(told) }
    }

    /// Status of an end pending: an interruption. A guest that has taken the one for intermediate
    /// status, and left that status where it is, waits for this one.
    fn interrupting_anew(self, told: bool) -> Self {
        self.with(INTERRUPTS, 1).with(TOLD, told.into())
    }

    /// Whether the step from `before` has made an interruption pending, of which nobody knows.
    pub(super) fn interrupts_after(self, before: State) -> bool {
        self.interrupts() && (!before.interrupts() || self.status() != INTERMEDIATE)
    }

    /// What the guest is told by the interruption that is pending.
    pub(super) fn interruption(self, subchannel: SubchannelId) -> IoInterruption {
        IoInterruption { subchannel, intparm: self.field(INTPARM) as u32, isc: self.isc() }
    }
}

/// Instructions. Each gives the state after it, with condition code 0, or the condition code of an
/// instruction that changes nothing.
impl State {
    /// Not operational: cc 3.
    fn operational(self) -> Result<Self, Cc> {
        if self.is_operational() { Ok(self) } else { Err(Cc::Cc3) }
    }

    /// Status pending: cc 1.
    fn without_status(self) -> Result<Self, Cc> {
        if self.is_pending() { Err(Cc::Cc1) } else { Ok(self) }
    }

    /// A function in progress: cc 2.
    fn without_function(self) -> Result<Self, Cc> {
        if self.function().is_empty() { Ok(self) } else { Err(Cc::Cc2) }
    }

    /// START SUBCHANNEL (`css_do_ssch`).
    pub(super) fn ssch(self, intparm: u32) -> Result<Self, Cc> {
        self.operational()?.without_status()?.without_function()?;
        let started = ScswFlags::START_FUNCTION | ScswFlags::START_PENDING;
        Ok(self.with_control(started).with_intparm(intparm).with(TAG, self.field(TAG) + 1))
    }

    /// TEST SUBCHANNEL: the state behind it, where status was pending (cc 0), or cc 1 or 3
    /// (`css_do_tsch_get_irb`, `css_do_tsch_update_subch`). The status of a device that is gone can
    /// still be fetched: its start was accepted.
    pub(super) fn tsch(self) -> Result<Self, Cc> {
        if !self.is_operational() && (self.has_device() || !self.is_pending()) {
            return Err(Cc::Cc3);
        }
        if !self.is_pending() {
            return Err(Cc::Cc1);
        }
        let control = self.control();
        let mut after = control - ScswFlags::STATUS_CONTROL;
        let waiting = ScswFlags::RESUME_PENDING
            | ScswFlags::START_PENDING
            | ScswFlags::HALT_PENDING
            | ScswFlags::CLEAR_PENDING
            | ScswFlags::SUSPENDED;
        if self.function_pending().is_some() {
            // QEMU performs HALT and CLEAR at once; here they may be on their way still, and what is
            // fetched is word of the program's progress from before.
        } else if self.status() != INTERMEDIATE {
            after -= ScswFlags::FUNCTION_CONTROL | waiting;
        } else if control.contains(ScswFlags::START_FUNCTION | ScswFlags::SUSPENDED) {
            after -= ScswFlags::RESUME_PENDING;
        }
        Ok(self.with_control(after).without_interruption())
    }

    /// MODIFY SUBCHANNEL (`css_do_msch`): without a device nothing is modified, and that is cc 0.
    pub(super) fn msch(self, pmcw: &Pmcw) -> Result<Self, Cc> {
        if !self.has_device() {
            return Err(Cc::Cc0);
        }
        self.without_status()?.without_function()?;
        let flags = (self.flags() - MODIFIABLE) | (pmcw.flags() & MODIFIABLE);
        let modified = self.with_flags(flags, pmcw.isc()).with_intparm(pmcw.intparm.get());
        Ok(modified.with(LPM, pmcw.lpm.into()).with(MBI, pmcw.mbi.get().into()))
    }

    /// HALT SUBCHANNEL (`css_do_hsch`).
    pub(super) fn hsch(self) -> Result<Self, Cc> {
        self.operational()?;
        let ending = ScswFlags::ALERT | ScswFlags::PRIMARY | ScswFlags::SECONDARY;
        if self.status() == PENDING || self.status().intersects(ending) {
            return Err(Cc::Cc1);
        }
        if self.function().intersects(ScswFlags::HALT_FUNCTION | ScswFlags::CLEAR_FUNCTION) {
            return Err(Cc::Cc2);
        }
        let mut control = self.control() - ScswFlags::START_FUNCTION;
        control |= ScswFlags::HALT_FUNCTION | ScswFlags::HALT_PENDING;
        let mut halted = self;
        if self.has(ACTIVE | INTERMEDIATE) {
            // Its program is about to end: what it had to tell of its progress is told no more.
            control -= INTERMEDIATE;
            halted = self.without_interruption();
        }
        Ok(halted.with_control(control))
    }

    /// CLEAR SUBCHANNEL (`css_do_csch`): status, and whatever function was in progress, are gone.
    pub(super) fn csch(self) -> Result<Self, Cc> {
        self.operational()?;
        let control = ScswFlags::CLEAR_FUNCTION | ScswFlags::CLEAR_PENDING;
        Ok(self.with_control(control).without_interruption())
    }

    /// RESUME SUBCHANNEL (`css_do_rsch`).
    pub(super) fn rsch(self) -> Result<Self, Cc> {
        self.operational()?.without_status()?;
        let resumable = self.function() == ScswFlags::START_FUNCTION
            && self.has(ScswFlags::SUSPENDED)
            && !self.has(ScswFlags::RESUME_PENDING);
        match resumable {
            true => Ok(self.with_control(self.control() | ScswFlags::RESUME_PENDING)),
            false => Err(Cc::Cc2),
        }
    }

    /// CANCEL SUBCHANNEL (`css_do_xsch`). `begins`: a start that waits begins instead, and is in progress
    /// afterwards. A suspended program does not wait, its request was taken.
    pub(super) fn xsch(self, begins: bool) -> Result<Self, Cc> {
        self.operational()?;
        if !self.status().is_empty() {
            return Err(Cc::Cc1);
        }
        let waits = ScswFlags::RESUME_PENDING | ScswFlags::START_PENDING | ScswFlags::SUSPENDED;
        let cancellable = self.function() == ScswFlags::START_FUNCTION
            && self.control().intersects(waits)
            && !self.has(ScswFlags::SUBCHANNEL_ACTIVE);
        match cancellable {
            true if begins && self.has(ScswFlags::START_PENDING) => Ok(self.running()),
            true => Ok(self.with_control(ScswFlags::empty())),
            false => Err(Cc::Cc2),
        }
    }

    /// TEST PENDING INTERRUPTION takes the interruption; the status stays. `None`: there is none.
    pub(super) fn tpi(self) -> Option<Self> {
        self.interrupts().then(|| self.without_interruption())
    }
}

/// Steps of the channel. `None`: things have changed, there is no such step any more.
impl State {
    /// HALT or CLEAR that waits to be performed.
    pub(super) fn function_pending(self) -> Option<Function> {
        if self.has(ScswFlags::CLEAR_PENDING) {
            Some(Function::Clear)
        } else {
            self.has(ScswFlags::HALT_PENDING).then_some(Function::Halt)
        }
    }

    /// Whether a function is in progress that has no status yet.
    pub(super) fn is_in_progress(self) -> bool {
        !self.function().is_empty() && (!self.is_pending() || self.status() == INTERMEDIATE)
    }

    /// Whether start `tag` is in progress: neither over, nor cancelled, halted or cleared.
    pub(super) fn is_started(self, tag: Tag) -> bool {
        self.function() == ScswFlags::START_FUNCTION && self.tag() == tag
    }

    /// The program of start `tag` begins, or goes on after it was suspended.
    pub(super) fn begin(self, tag: Tag) -> Option<Self> {
        self.is_started(tag).then(|| self.running())
    }

    fn running(self) -> Self {
        let waiting = ScswFlags::START_PENDING | ScswFlags::RESUME_PENDING | ScswFlags::SUSPENDED;
        self.with_control((self.control() - waiting) | ACTIVE)
    }

    /// Whether the suspended program of start `tag` is to go on.
    pub(super) fn is_resumed(self, tag: Tag) -> bool {
        self.is_started(tag) && self.has(ScswFlags::RESUME_PENDING)
    }

    /// The program of start `tag` goes on and says so.
    pub(super) fn progress(self, tag: Tag, told: bool) -> Option<Self> {
        let control = self.control() | INTERMEDIATE;
        self.is_started(tag).then(|| self.with_control(control).interrupting(told))
    }

    /// The program of start `tag` has suspended itself, and says so if `tells`.
    pub(super) fn suspend(self, tag: Tag, tells: bool, told: bool) -> Option<Self> {
        let suspended = self.with_control((self.control() - ACTIVE) | ScswFlags::SUSPENDED);
        let suspended = match tells {
            true => suspended.with_control(suspended.control() | INTERMEDIATE).interrupting(told),
            false => suspended,
        };
        self.is_started(tag).then_some(suspended)
    }

    /// The program of a ring or a future has suspended itself.
    pub(super) fn begin_suspension(self) -> Self {
        let suspended = ScswFlags::START_FUNCTION | ScswFlags::SUSPENDED;
        self.with_control(suspended).with(TAG, self.field(TAG) + 1)
    }

    /// It goes on, or is over.
    pub(super) fn end_suspension(self, tag: Tag) -> Option<Self> {
        self.is_started(tag).then(|| self.with_control(ScswFlags::empty()))
    }

    /// The program of start `tag` has ended, or could not be started, with the status control of
    /// `status`.
    pub(super) fn end(self, tag: Tag, status: ScswFlags, told: bool) -> Option<Self> {
        let earlier = self.status() & ScswFlags::INTERMEDIATE;
        let status = status & ScswFlags::STATUS_CONTROL | PENDING | earlier;
        let ended = self.with_control(ScswFlags::START_FUNCTION | status);
        self.is_started(tag).then(|| ended.interrupting_anew(told))
    }

    /// HALT or CLEAR is performed: status is pending, with nothing else of status control but what
    /// `status` has.
    pub(super) fn perform(self, function: Function, status: ScswFlags, told: bool) -> Option<Self> {
        let status = status & ScswFlags::STATUS_CONTROL | PENDING;
        let performed = self.with_control(function.control() | status).interrupting_anew(told);
        (self.function_pending() == Some(function)).then_some(performed)
    }

    /// The device has status of its own accord, with the status control of `status`: only where nothing is
    /// in progress or pending.
    pub(super) fn alert(self, status: ScswFlags, told: bool) -> Option<Self> {
        let rests = self.is_operational() && self.function().is_empty() && self.status().is_empty();
        let status = status & ScswFlags::STATUS_CONTROL | PENDING;
        rests.then(|| self.with_control(status).interrupting_anew(told))
    }

    /// The device is gone: nothing can be started any more.
    pub(super) fn leave(self) -> Option<Self> {
        let flags = self.flags() - PmcwFlags::DEVICE_VALID;
        self.has_device().then(|| self.with_flags(flags, self.isc()))
    }

    /// Whoever delivers interruptions is told of this one now. `None`: there is none, or he was.
    pub(super) fn tell(self) -> Option<Self> {
        let news = self.interrupts() && !self.is_told();
        news.then(|| self.with(TOLD, 1))
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of start {}", self.control(), self.field(TAG))?;
        if self.interrupts() {
            write!(f, ", interrupts")?;
        }
        if !self.is_operational() {
            write!(f, ", not operational: {:?}", self.flags())?;
        }
        Ok(())
    }
}
