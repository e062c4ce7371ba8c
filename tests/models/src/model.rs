//! A subchannel as one thread sees it: the rules of QEMU's `hw/s390x/css.c`, with plain fields.
//!
//! It is written from the rules, not from the code that is checked against it. Where that has rules of
//! its own, they are those that its documentation has:
//!
//! * HALT and CLEAR are performed by the channel, some time after the instruction; until then, TEST
//!   SUBCHANNEL takes status and leaves them where they are;
//! * a function that ends over intermediate status that was not fetched has that in its status, and
//!   interrupts anew;
//! * HALT SUBCHANNEL takes back intermediate status of a program that runs;
//! * CANCEL SUBCHANNEL may be told that a start that waits counts as begun;
//! * without a device nothing is operational, but status can still be fetched.

use std::fmt;

use zerocopy::{FromBytes, IntoBytes};

use crate::architecture::{
    Function, IoInterruption, IrbHead, Pmcw, PmcwFlags, Scsw, ScswFlags, SubchannelStatus,
};
use crate::history::{Operation, Said, Start};
use crate::status::{CONTROL, number_of};
use crate::subject::{Cc, Step, id, pmcw};

/// A subchannel between two operations.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Model {
    has_device: bool,
    is_enabled: bool,
    /// Limit, measurement and multipath mode, as the PMCW has them.
    modes: u16,
    isc: u8,
    lpm: u8,
    mbi: u16,
    intparm: u32,
    function: Option<InProgress>,
    /// The last start that was accepted.
    start: Start,
    activity: Activity,
    status: Option<Status>,
    interruption: Option<Interruption>,
}

/// Function control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum InProgress {
    Start,
    Halt,
    Clear,
}

/// Activity control. The subchannel and the device are active together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Activity {
    resume_pending: bool,
    start_pending: bool,
    halt_pending: bool,
    clear_pending: bool,
    active: bool,
    suspended: bool,
}

/// Status that is pending.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Status {
    alert: bool,
    intermediate: bool,
    primary: bool,
    secondary: bool,
    /// The status block, but for what the rest of the state says.
    block: [u8; size_of::<IrbHead>()],
}

/// An interruption that is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Interruption {
    /// Whoever delivers interruptions knows of it.
    told: bool,
}

const MODES: PmcwFlags = PmcwFlags::LIMIT_LOW
    .union(PmcwFlags::LIMIT_HIGH)
    .union(PmcwFlags::MEASURE_BLOCK)
    .union(PmcwFlags::MEASURE_CONNECT)
    .union(PmcwFlags::MULTIPATH);

impl Model {
    /// At rest, with what `pmcw` says.
    pub fn new(pmcw: &Pmcw) -> Self {
        Model {
            has_device: pmcw.flags().contains(PmcwFlags::DEVICE_VALID),
            is_enabled: pmcw.flags().contains(PmcwFlags::ENABLED),
            modes: (pmcw.flags() & MODES).bits(),
            isc: pmcw.isc(),
            lpm: pmcw.lpm,
            mbi: pmcw.mbi.get(),
            intparm: pmcw.intparm.get(),
            function: None,
            start: 0,
            activity: Activity::default(),
            status: None,
            interruption: None,
        }
    }

    /// The state after `operation`, if it can have gone as it says.
    pub fn after(&self, operation: &Operation) -> Option<Model> {
        let mut next = self.clone();
        next.allows(operation).then_some(next)
    }

    /// Does `operation`. Whether it can have gone as it says.
    fn allows(&mut self, operation: &Operation) -> bool {
        match *operation {
            Operation::Ssch { start, has_path, cc } => self.ssch(start, has_path) == cc,
            Operation::Tsch { cc, irb } => self.tsch() == (cc, irb),
            Operation::Stsch { pmcw, scsw } => (self.pmcw(), self.shown().scsw) == (pmcw, scsw),
            Operation::Msch { pmcw, cc } => self.msch(&pmcw) == cc,
            Operation::Hsch { cc } => self.hsch() == cc,
            Operation::Csch { cc } => self.csch() == cc,
            Operation::Rsch { cc } => self.rsch() == cc,
            Operation::Xsch { begins, cc } => self.xsch(begins) == cc,
            Operation::Tpi { mask, taken } => self.tpi(mask) == taken,
            Operation::Tell { mask, told } => self.tell(mask) == told,
            Operation::Leave => {
                self.has_device = false;
                true
            }
            Operation::IsStarted { start, is } => self.is_started(start) == is,
            Operation::IsResumed { start, is } => self.is_resumed(start) == is,
            Operation::FunctionPending { pending } => {
                self.function_pending().map(|function| (function, self.control())) == pending
            }
            Operation::Begin { start, begun } => self.begin(start) == begun,
            Operation::Alert { said } => self.alert(&said) == said.step,
            Operation::Progress { start, said } => self.progress(start, &said) == said.step,
            Operation::Suspend { start, said } => self.suspend(start, &said) == said.step,
            Operation::End { start, said } => self.end(start, &said) == said.step,
            Operation::Perform { function, said } => self.perform(function, &said) == said.step,
        }
    }

    fn is_operational(&self) -> bool {
        self.has_device && self.is_enabled
    }

    /// `css_do_ssch`.
    fn ssch(&mut self, start: Start, has_path: bool) -> Cc {
        if !self.is_operational() {
            return Cc::Cc3;
        }
        if self.status.is_some() {
            return Cc::Cc1;
        }
        if self.function.is_some() {
            return Cc::Cc2;
        }
        if !has_path {
            return Cc::Cc3;
        }
        self.function = Some(InProgress::Start);
        self.activity = Activity { start_pending: true, ..Activity::default() };
        self.start = start;
        self.intparm = start;
        Cc::Cc0
    }

    /// `css_do_tsch_get_irb`, `css_do_tsch_update_subch`.
    fn tsch(&mut self) -> (Cc, IrbHead) {
        let stored = self.shown();
        let Some(status) = self.status else {
            return match self.is_operational() {
                true => (Cc::Cc1, stored),
                false => (Cc::Cc3, IrbHead::default()),
            };
        };
        if self.has_device && !self.is_enabled {
            return (Cc::Cc3, IrbHead::default());
        }
        self.status = None;
        self.interruption = None;
        if self.function_pending().is_some() {
            // Its own status is still to come.
        } else if !status.is_intermediate_only() {
            self.function = None;
            self.activity = Activity { active: self.activity.active, ..Activity::default() };
        } else if self.function == Some(InProgress::Start) && self.activity.suspended {
            self.activity.resume_pending = false;
        }
        (Cc::Cc0, stored)
    }

    /// `css_do_msch`.
    fn msch(&mut self, pmcw: &Pmcw) -> Cc {
        if !self.has_device {
            return Cc::Cc0;
        }
        if self.status.is_some() {
            return Cc::Cc1;
        }
        if self.function.is_some() {
            return Cc::Cc2;
        }
        self.is_enabled = pmcw.flags().contains(PmcwFlags::ENABLED);
        self.modes = (pmcw.flags() & MODES).bits();
        self.isc = pmcw.isc();
        self.lpm = pmcw.lpm;
        self.mbi = pmcw.mbi.get();
        self.intparm = pmcw.intparm.get();
        Cc::Cc0
    }

    /// `css_do_hsch`.
    fn hsch(&mut self) -> Cc {
        if !self.is_operational() {
            return Cc::Cc3;
        }
        if self.status.is_some_and(|status| !status.is_intermediate_only()) {
            return Cc::Cc1;
        }
        if matches!(self.function, Some(InProgress::Halt | InProgress::Clear)) {
            return Cc::Cc2;
        }
        self.function = Some(InProgress::Halt);
        self.activity.halt_pending = true;
        if self.activity.active && self.status.is_some() {
            self.status = None;
            self.interruption = None;
        }
        Cc::Cc0
    }

    /// `css_do_csch`.
    fn csch(&mut self) -> Cc {
        if !self.is_operational() {
            return Cc::Cc3;
        }
        self.function = Some(InProgress::Clear);
        self.activity = Activity { clear_pending: true, ..Activity::default() };
        self.status = None;
        self.interruption = None;
        Cc::Cc0
    }

    /// `css_do_rsch`.
    fn rsch(&mut self) -> Cc {
        if !self.is_operational() {
            return Cc::Cc3;
        }
        if self.status.is_some() {
            return Cc::Cc1;
        }
        let is_started = self.function == Some(InProgress::Start);
        if !is_started || !self.activity.suspended || self.activity.resume_pending {
            return Cc::Cc2;
        }
        self.activity.resume_pending = true;
        Cc::Cc0
    }

    /// `css_do_xsch`. With `begins`, a start that waits is taken for one whose program has begun. A
    /// suspended program has no request that waits.
    fn xsch(&mut self, begins: bool) -> Cc {
        if !self.is_operational() {
            return Cc::Cc3;
        }
        if self.status.is_some() {
            return Cc::Cc1;
        }
        let Activity { resume_pending, start_pending, active, suspended, .. } = self.activity;
        let waits = start_pending || resume_pending || suspended;
        if self.function != Some(InProgress::Start) || !waits || active {
            return Cc::Cc2;
        }
        if begins && start_pending {
            self.run();
            return Cc::Cc2;
        }
        self.function = None;
        self.activity = Activity::default();
        Cc::Cc0
    }

    fn tpi(&mut self, mask: u8) -> Option<IoInterruption> {
        if !self.is_of(mask) {
            return None;
        }
        self.interruption.take().map(|_| self.interruption_code())
    }

    fn tell(&mut self, mask: u8) -> Option<IoInterruption> {
        if !self.is_of(mask) {
            return None;
        }
        let news = self.interruption.as_mut().filter(|interruption| !interruption.told)?;
        news.told = true;
        Some(self.interruption_code())
    }

    /// Whether the interruption subclass is of `mask`, as control register 6 has them.
    fn is_of(&self, mask: u8) -> bool {
        mask << self.isc & 0x80 != 0
    }

    fn interruption_code(&self) -> IoInterruption {
        IoInterruption { subchannel: id(), intparm: self.intparm, isc: self.isc }
    }

    fn function_pending(&self) -> Option<Function> {
        match (self.activity.clear_pending, self.activity.halt_pending) {
            (true, _) => Some(Function::Clear),
            (false, true) => Some(Function::Halt),
            (false, false) => None,
        }
    }

    fn is_started(&self, start: Start) -> bool {
        self.function == Some(InProgress::Start) && self.start == start
    }

    fn is_resumed(&self, start: Start) -> bool {
        self.is_started(start) && self.activity.resume_pending
    }

    fn begin(&mut self, start: Start) -> bool {
        let is_started = self.is_started(start);
        if is_started {
            self.run();
        }
        is_started
    }

    fn run(&mut self) {
        self.activity = Activity { active: true, ..Activity::default() };
    }

    /// As QEMU's `css_conditional_io_interrupt`, and only where no function is in progress.
    fn alert(&mut self, said: &Said) -> Step {
        if !self.is_operational() || self.function.is_some() || self.status.is_some() {
            return Step::Gone;
        }
        self.status = Some(self.status(said));
        self.interrupt(said)
    }

    fn progress(&mut self, start: Start, said: &Said) -> Step {
        if !self.is_started(start) {
            return Step::Gone;
        }
        self.intermediate(said)
    }

    fn suspend(&mut self, start: Start, said: &Said) -> Step {
        if !self.is_started(start) {
            return Step::Gone;
        }
        self.activity.active = false;
        self.activity.suspended = true;
        if said.irb.scsw.flags().contains(ScswFlags::STATUS_PENDING) {
            return self.intermediate(said);
        }
        // Nobody need be told, but what is still to be fetched is news of now.
        if self.status.is_some() {
            self.status = Some(self.status(said));
        }
        Step::Quiet
    }

    /// Status of a program that goes on: one interruption, however much of it there is.
    fn intermediate(&mut self, said: &Said) -> Step {
        self.status = Some(Status { intermediate: true, ..self.status(said) });
        match self.interruption {
            Some(_) => Step::Quiet,
            None => self.interrupt(said),
        }
    }

    fn end(&mut self, start: Start, said: &Said) -> Step {
        if !self.is_started(start) {
            return Step::Gone;
        }
        self.activity = Activity::default();
        self.status = Some(self.status(said));
        self.interrupt(said)
    }

    fn perform(&mut self, function: Function, said: &Said) -> Step {
        if self.function_pending() != Some(function) {
            return Step::Gone;
        }
        self.activity = Activity::default();
        // Of what a halted program had to say, only its PCI remains.
        self.status = Some(Status { intermediate: false, ..self.status(said) });
        self.interrupt(said)
    }

    /// What `said` says, as one with what was to be fetched before.
    fn status(&self, said: &Said) -> Status {
        let flags = said.irb.scsw.flags();
        let earlier = self.status.as_ref();
        let mut irb = said.irb;
        if earlier.is_some_and(Status::is_program_controlled) {
            irb.scsw = with_program_controlled(irb.scsw);
        }
        let mut block = [0; size_of::<IrbHead>()];
        block.copy_from_slice(irb.as_bytes());
        Status {
            alert: flags.contains(ScswFlags::ALERT),
            intermediate: earlier.is_some_and(|earlier| earlier.intermediate),
            primary: flags.contains(ScswFlags::PRIMARY),
            secondary: flags.contains(ScswFlags::SECONDARY),
            block,
        }
    }

    fn interrupt(&mut self, said: &Said) -> Step {
        let told = self.is_of(said.tell);
        self.interruption = Some(Interruption { told });
        Step::Interrupts { intparm: self.intparm, isc: self.isc, told }
    }

    /// The path-management control word that is stored.
    fn pmcw(&self) -> Pmcw {
        let mut flags = PmcwFlags::from_bits_retain(self.modes);
        flags.set(PmcwFlags::ENABLED, self.is_enabled);
        flags.set(PmcwFlags::DEVICE_VALID, self.has_device);
        let mut pmcw = pmcw().with(flags, self.isc);
        pmcw.lpm = self.lpm;
        pmcw.mbi = self.mbi.into();
        pmcw.intparm = self.intparm.into();
        pmcw
    }

    /// The status that is stored.
    fn shown(&self) -> IrbHead {
        let control = self.control();
        match &self.status {
            None => IrbHead { scsw: Scsw::new(control), ..IrbHead::default() },
            Some(status) => {
                let irb = status.irb();
                let scsw = irb.scsw.without_flags(CONTROL).with_flags(control);
                IrbHead { scsw, ..irb }
            }
        }
    }

    /// Function, activity and status control.
    fn control(&self) -> ScswFlags {
        let mut control = match self.function {
            None => ScswFlags::empty(),
            Some(InProgress::Start) => ScswFlags::START_FUNCTION,
            Some(InProgress::Halt) => ScswFlags::HALT_FUNCTION,
            Some(InProgress::Clear) => ScswFlags::CLEAR_FUNCTION,
        };
        let Activity { resume_pending, start_pending, halt_pending, clear_pending, .. } =
            self.activity;
        control.set(ScswFlags::RESUME_PENDING, resume_pending);
        control.set(ScswFlags::START_PENDING, start_pending);
        control.set(ScswFlags::HALT_PENDING, halt_pending);
        control.set(ScswFlags::CLEAR_PENDING, clear_pending);
        let active = ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE;
        control.set(active, self.activity.active);
        control.set(ScswFlags::SUSPENDED, self.activity.suspended);
        if let Some(status) = &self.status {
            control |= ScswFlags::STATUS_PENDING;
            control.set(ScswFlags::ALERT, status.alert);
            control.set(ScswFlags::INTERMEDIATE, status.intermediate);
            control.set(ScswFlags::PRIMARY, status.primary);
            control.set(ScswFlags::SECONDARY, status.secondary);
        }
        control
    }
}

impl Status {
    /// The program goes on.
    fn is_intermediate_only(&self) -> bool {
        self.intermediate && !self.alert && !self.primary && !self.secondary
    }

    fn is_program_controlled(&self) -> bool {
        let scsw = self.irb().scsw;
        scsw.subchannel_status().contains(SubchannelStatus::PROGRAM_CONTROLLED)
    }

    fn irb(&self) -> IrbHead {
        IrbHead::read_from_bytes(&self.block).unwrap_or_default()
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let irb = self.irb();
        match number_of(&irb) {
            Some(number) => write!(f, "status {number}"),
            None => irb.fmt(f),
        }
    }
}

fn with_program_controlled(scsw: Scsw) -> Scsw {
    let subchannel = scsw.subchannel_status() | SubchannelStatus::PROGRAM_CONTROLLED;
    scsw.with_status(scsw.device_status(), subchannel, scsw.count())
}
