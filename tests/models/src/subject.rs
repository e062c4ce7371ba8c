//! What is checked: a subchannel's state, with what vCPUs and the channel do to it.

use std::fmt::Debug;

use crate::architecture::{
    Function, IoInterruption, IrbHead, Pmcw, PmcwFlags, Scsw, ScswFlags, SubchannelId,
};
use crate::subchannel::flawed::Flawed;
use crate::subchannel::{Cell, Tag};

pub use crate::subchannel::Cc;
pub use crate::subchannel::flawed::Flaw;

/// What a step of the channel has brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Nothing: the function that it belongs to is over.
    Gone,
    /// Status that nobody need be told of.
    Quiet,
    /// An interruption.
    Interrupts {
        /// Its interruption parameter.
        intparm: u32,
        /// Its subclass.
        isc: u8,
        /// Whether whoever took the step delivers it.
        told: bool,
    },
}

/// A subchannel's state. The methods are those of the project's cell, and are documented there.
#[allow(missing_docs, reason = "they are documented where they are from")]
pub trait Subject: Send + Sync + 'static {
    /// Names a start.
    type Tag: Copy + PartialEq + Debug + Send + 'static;

    fn ssch(&self, intparm: u32, has_path: bool) -> Result<Self::Tag, Cc>;
    fn tsch(&self) -> (Cc, IrbHead);
    fn stsch(&self, fixed: &Pmcw) -> (Pmcw, Scsw);
    fn msch(&self, pmcw: &Pmcw) -> Cc;
    fn hsch(&self) -> Cc;
    fn csch(&self) -> Cc;
    fn rsch(&self) -> Cc;
    fn xsch(&self, begins: bool) -> Cc;
    fn tpi(&self, mask: u8) -> Option<IoInterruption>;

    fn tell(&self, mask: u8) -> Option<IoInterruption>;
    fn leave(&self);

    fn function_pending(&self) -> Option<(Function, ScswFlags)>;
    fn is_started(&self, tag: Self::Tag) -> bool;
    fn is_resumed(&self, tag: Self::Tag) -> bool;
    fn begin(&self, tag: Self::Tag) -> bool;
    fn progress(&self, tag: Self::Tag, irb: &IrbHead, tell: u8) -> Step;
    fn suspend(&self, tag: Self::Tag, irb: &IrbHead, tell: u8) -> Step;
    fn end(&self, tag: Self::Tag, irb: &IrbHead, tell: u8) -> Step;
    fn perform(&self, function: Function, irb: &IrbHead, tell: u8) -> Step;
    fn alert(&self, irb: &IrbHead, tell: u8) -> Step;
}

/// Which subchannel it is.
pub fn id() -> SubchannelId {
    SubchannelId::new(1, 0x0042)
}

/// Its path-management control word at first: enabled.
pub fn pmcw() -> Pmcw {
    Pmcw::single_path(0x1234).with(PmcwFlags::ENABLED | PmcwFlags::DEVICE_VALID, 3)
}

/// The project's own cell.
pub fn sound() -> impl Subject {
    Cell::new(id(), &pmcw())
}

/// A copy of it with a flaw, or, to compare, without.
pub fn flawed(flaw: Option<Flaw>) -> impl Subject {
    Flawed::new(flaw)
}

impl Subject for Cell {
    type Tag = Tag;

    fn ssch(&self, intparm: u32, has_path: bool) -> Result<Tag, Cc> {
        self.ssch(intparm, has_path)
    }

    fn tsch(&self) -> (Cc, IrbHead) {
        self.tsch()
    }

    fn stsch(&self, fixed: &Pmcw) -> (Pmcw, Scsw) {
        self.stsch(fixed)
    }

    fn msch(&self, pmcw: &Pmcw) -> Cc {
        self.msch(pmcw)
    }

    fn hsch(&self) -> Cc {
        self.hsch()
    }

    fn csch(&self) -> Cc {
        self.csch()
    }

    fn rsch(&self) -> Cc {
        self.rsch()
    }

    fn xsch(&self, begins: bool) -> Cc {
        self.xsch(begins)
    }

    fn tpi(&self, mask: u8) -> Option<IoInterruption> {
        self.tpi(mask)
    }

    fn tell(&self, mask: u8) -> Option<IoInterruption> {
        self.tell(mask)
    }

    fn leave(&self) {
        self.leave();
    }

    fn function_pending(&self) -> Option<(Function, ScswFlags)> {
        self.function_pending()
    }

    fn is_started(&self, tag: Tag) -> bool {
        self.is_started(tag)
    }

    fn is_resumed(&self, tag: Tag) -> bool {
        self.is_resumed(tag)
    }

    fn begin(&self, tag: Tag) -> bool {
        self.begin(tag)
    }

    fn progress(&self, tag: Tag, irb: &IrbHead, tell: u8) -> Step {
        self.progress(tag, irb, tell).into()
    }

    fn suspend(&self, tag: Tag, irb: &IrbHead, tell: u8) -> Step {
        self.suspend(tag, irb, tell).into()
    }

    fn end(&self, tag: Tag, irb: &IrbHead, tell: u8) -> Step {
        self.end(tag, irb, tell).into()
    }

    fn perform(&self, function: Function, irb: &IrbHead, tell: u8) -> Step {
        self.perform(function, irb, tell).into()
    }

    fn alert(&self, irb: &IrbHead, tell: u8) -> Step {
        self.alert(irb, tell).into()
    }
}

impl From<crate::subchannel::Step> for Step {
    fn from(step: crate::subchannel::Step) -> Self {
        use crate::subchannel::Step as Taken;
        match step {
            Taken::Gone => Step::Gone,
            Taken::Quiet => Step::Quiet,
            Taken::Interrupts { interruption, told } => {
                assert_eq!(interruption.subchannel, id());
                Step::Interrupts { intparm: interruption.intparm, isc: interruption.isc, told }
            }
        }
    }
}
