//! What threads have done to a subchannel, and when.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::architecture::{
    Function, IoInterruption, IrbHead, Pmcw, Scsw, ScswFlags, SubchannelStatus,
};
use crate::status::{CONTROL, number_of, number_of_scsw};
use crate::subject::{Cc, Step};

/// Number of a start function: the interruption parameter of its START SUBCHANNEL, which no other has.
pub type Start = u32;

/// An operation on a subchannel, with what it was given and what it has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// START SUBCHANNEL.
    Ssch {
        /// Number of the start.
        start: Start,
        /// There is a path that it may use.
        has_path: bool,
        /// Condition code.
        cc: Cc,
    },
    /// TEST SUBCHANNEL.
    Tsch {
        /// Condition code.
        cc: Cc,
        /// What is stored.
        irb: IrbHead,
    },
    /// STORE SUBCHANNEL.
    Stsch {
        /// What is stored of the path-management control word.
        pmcw: Pmcw,
        /// And of the status.
        scsw: Scsw,
    },
    /// MODIFY SUBCHANNEL.
    Msch {
        /// What is asked for.
        pmcw: Pmcw,
        /// Condition code.
        cc: Cc,
    },
    /// HALT SUBCHANNEL.
    Hsch {
        /// Condition code.
        cc: Cc,
    },
    /// CLEAR SUBCHANNEL.
    Csch {
        /// Condition code.
        cc: Cc,
    },
    /// RESUME SUBCHANNEL.
    Rsch {
        /// Condition code.
        cc: Cc,
    },
    /// CANCEL SUBCHANNEL.
    Xsch {
        /// A start that waits counts as begun.
        begins: bool,
        /// Condition code.
        cc: Cc,
    },
    /// TEST PENDING INTERRUPTION.
    Tpi {
        /// Subclasses of which one may be taken, a bit each.
        mask: u8,
        /// What it has taken.
        taken: Option<IoInterruption>,
    },
    /// Whoever delivers interruptions is told.
    Tell {
        /// Subclasses of which he is told, a bit each.
        mask: u8,
        /// What he is told.
        told: Option<IoInterruption>,
    },
    /// The device is gone.
    Leave,
    /// The channel looks whether a start is in progress.
    IsStarted {
        /// Which.
        start: Start,
        /// Whether it is.
        is: bool,
    },
    /// The channel looks whether a suspended program is to go on.
    IsResumed {
        /// Of which start.
        start: Start,
        /// Whether it is.
        is: bool,
    },
    /// The channel looks for a HALT or CLEAR.
    FunctionPending {
        /// What is to be performed, and all that is in progress.
        pending: Option<(Function, ScswFlags)>,
    },
    /// A program begins or goes on.
    Begin {
        /// Of which start.
        start: Start,
        /// Whether it does.
        begun: bool,
    },
    /// The device has status of its own accord.
    Alert {
        /// What it says.
        said: Said,
    },
    /// A program goes on and says so.
    Progress {
        /// What it says.
        said: Said,
        /// Of which start.
        start: Start,
    },
    /// A program suspends itself.
    Suspend {
        /// What it says, if its status says that anything is pending.
        said: Said,
        /// Of which start.
        start: Start,
    },
    /// A program ends.
    End {
        /// With what.
        said: Said,
        /// Of which start.
        start: Start,
    },
    /// HALT or CLEAR is performed.
    Perform {
        /// With what status.
        said: Said,
        /// Which of them.
        function: Function,
    },
}

/// Status that the channel presents, and what comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// The status.
    pub irb: IrbHead,
    /// Interruption subclasses that are delivered at once, a bit each.
    pub tell: u8,
    /// What has come of it.
    pub step: Step,
}

/// As an operator's console would show it; status by its number.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Ssch { start, has_path, cc } => {
                let paths = if *has_path { "" } else { " without a path" };
                write!(f, "SSCH {start:#x}{paths}: {cc:?}")
            }
            Operation::Tsch { cc, irb } => {
                write!(f, "TSCH: {cc:?}, {}", Shown(number_of(irb), &irb.scsw))
            }
            Operation::Stsch { pmcw, scsw } => {
                let shown = Shown(number_of_scsw(scsw), scsw);
                write!(f, "STSCH: intparm {:#x}, {pmcw:?}; {shown}", pmcw.intparm.get())
            }
            Operation::Msch { pmcw, cc } => {
                write!(f, "MSCH intparm {:#x}, {pmcw:?}: {cc:?}", pmcw.intparm.get())
            }
            Operation::Hsch { cc } => write!(f, "HSCH: {cc:?}"),
            Operation::Csch { cc } => write!(f, "CSCH: {cc:?}"),
            Operation::Rsch { cc } => write!(f, "RSCH: {cc:?}"),
            Operation::Xsch { begins, cc } => {
                let begins = if *begins { ", what waits begins" } else { "" };
                write!(f, "XSCH{begins}: {cc:?}")
            }
            Operation::Tpi { mask, taken } => write!(f, "TPI of {mask:#04x}: {taken:x?}"),
            Operation::Tell { mask, told } => write!(f, "tells of {mask:#04x}: {told:x?}"),
            Operation::Leave => write!(f, "the device leaves"),
            Operation::IsStarted { start, is } => write!(f, "start {start:#x} in progress: {is}"),
            Operation::IsResumed { start, is } => write!(f, "start {start:#x} resumed: {is}"),
            Operation::FunctionPending { pending } => write!(f, "functions pending: {pending:?}"),
            Operation::Begin { start, begun } => write!(f, "start {start:#x} begins: {begun}"),
            Operation::Alert { said } => write!(f, "the device alerts: {said}"),
            Operation::Progress { start, said } => write!(f, "start {start:#x} goes on: {said}"),
            Operation::Suspend { start, said } => write!(f, "start {start:#x} suspends: {said}"),
            Operation::End { start, said } => write!(f, "start {start:#x} ends: {said}"),
            Operation::Perform { function, said } => write!(f, "performs {function}: {said}"),
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Said { irb, tell, step } = self;
        write!(f, "{}, telling of {tell:#04x}: {step:x?}", Shown(number_of(irb), &irb.scsw))
    }
}

/// Status by its number, where it is whole.
struct Shown<'a>(Option<u32>, &'a Scsw);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shown(number, scsw) = self;
        let program_controlled =
            scsw.subchannel_status().contains(SubchannelStatus::PROGRAM_CONTROLLED);
        match number {
            Some(number) if program_controlled => write!(f, "status {number} with PCI")?,
            Some(number) => write!(f, "status {number}")?,
            None if scsw.cpa() == 0 => write!(f, "no status")?,
            None => write!(f, "status of no step")?,
        }
        write!(f, " [{:?}]", scsw.flags() & CONTROL)
    }
}

/// An operation, and when it was under way.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// What was done.
    pub operation: Operation,
    /// It had not begun before.
    pub invoked: u64,
    /// It was over afterwards.
    pub responded: u64,
}

/// What was done to one subchannel: for each thread its events, one after the other.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// A list for each thread.
    pub threads: Vec<Vec<Event>>,
}

impl History {
    /// All that was done, in no order.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.threads.iter().flatten().map(|event| &event.operation)
    }
}

/// By the time at which each began.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<_> = (self.threads.iter().enumerate())
            .flat_map(|(thread, events)| events.iter().map(move |event| (thread, event)))
            .collect();
        lines.sort_by_key(|(_, event)| event.invoked);
        for (thread, event) in lines {
            let Event { operation, invoked, responded } = event;
            writeln!(f, "{invoked:5} to {responded:5}  thread {thread}: {operation}")?;
        }
        Ok(())
    }
}

/// Time that passes only when somebody looks: who looks later sees more.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    fn tick(&self) -> u64 {
        // AcqRel: pairs with itself on other threads. What was done before somebody looked happens
        // before what is done after somebody else has looked later, as with clocks on a wall.
        self.0.fetch_add(1, Ordering::AcqRel)
    }
}

/// Writes down what one thread does.
#[derive(Debug)]
pub struct Recorder {
    clock: Arc<Clock>,
    events: Vec<Event>,
}

impl Recorder {
    /// For a thread of those that look at `clock`.
    pub fn new(clock: &Arc<Clock>) -> Self {
        Recorder { clock: Arc::clone(clock), events: Vec::new() }
    }

    /// Does `operation`, which says what it has done and gives its result.
    pub fn record<T>(&mut self, operation: impl FnOnce() -> (Operation, T)) -> T {
        let invoked = self.clock.tick();
        let (operation, result) = operation();
        let responded = self.clock.tick();
        self.events.push(Event { operation, invoked, responded });
        result
    }

    /// All that was written down.
    pub fn into_events(self) -> Vec<Event> {
        self.events
    }
}
