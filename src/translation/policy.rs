//! Policy: which commands a guest may send to a device.
//!
//! Rules see every CCW before the device does. A refused command ends its program, when execution
//! gets there, with a unit check whose sense data says why; what was chained before it has run.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use vfio_ccw_metrics::DeviceClass;

use crate::architecture::{CommandClass, command};

use super::extent::defines_extent;

/// One command that a guest wants to send.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Access {
    /// Class of the device.
    pub class: DeviceClass,
    /// Command code.
    pub command: u8,
    /// Which way the code says that data goes.
    pub direction: CommandClass,
    /// Bytes that the CCW designates, without those of data chaining.
    pub count: u16,
    /// For a command that defines an extent, where a rule [`sees`](Rule::sees_extents) them: the
    /// 512-byte blocks (FBA) or tracks (ECKD) that it opens. `None` where the parameters give none.
    pub extent: Option<Range<u64>>,
    /// An extent that every rule allowed was defined by the first command of the program, so the
    /// device holds this command to it.
    pub bounded: bool,
}

impl Access {
    /// A command, with nothing known of extents.
    pub fn new(class: DeviceClass, command: u8, count: u16) -> Self {
        let direction = CommandClass::of(command);
        Access { class, command, direction, count, extent: None, bounded: false }
    }

    /// Whether it defines an extent.
    pub fn defines_extent(&self) -> bool {
        defines_extent(self.class, self.command)
    }

    /// Whether it can change what is on the medium.
    pub fn writes(&self) -> bool {
        let code = self.command;
        match self.class {
            DeviceClass::Fba => code == command::FBA_WRITE,
            // ERASE and all kinds of WRITE are of the write class, and so are the searches.
            // PERFORM SUBSYSTEM FUNCTION can ask for copies between volumes, but not with the
            // orders that Linux sends to learn what the control unit can do: it is left to an
            // allow-list.
            DeviceClass::Eckd => self.direction == CommandClass::Write && !command::is_search(code),
            DeviceClass::Tape => {
                // WRITE TAPE MARK, ERASE GAP and DATA SECURITY ERASE are control commands.
                self.direction == CommandClass::Write || matches!(code, 0x1f | 0x17 | 0x97)
            }
            // Of an unknown device everything may, that does not only read.
            DeviceClass::Null | DeviceClass::Other => {
                !self.direction.stores() && code != command::NOP
            }
        }
    }

    /// Whether it only asks what the device is or how it is: it moves no data of the volume.
    fn asks(&self) -> bool {
        const SENSE_PATH_GROUP: u8 = 0x34;
        const SET_PATH_GROUP: u8 = 0xaf;
        const SUSPEND_MULTIPATH: u8 = 0x5b;
        const READ_CONFIGURATION_DATA: u8 = 0xfa;
        const PERFORM_SUBSYSTEM_FUNCTION: u8 = 0x27;
        const READ_SUBSYSTEM_DATA: u8 = 0x3e;
        match self.command {
            command::NOP
            | command::SENSE
            | command::SENSE_ID
            | command::READ_DEVICE_CHARACTERISTICS => true,
            SENSE_PATH_GROUP
            | SET_PATH_GROUP
            | SUSPEND_MULTIPATH
            | READ_CONFIGURATION_DATA
            | PERFORM_SUBSYSTEM_FUNCTION
            | READ_SUBSYSTEM_DATA => self.class == DeviceClass::Eckd,
            _ => false,
        }
    }
}

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The device gets it.
    Allow,
    /// Unit check, file protected (sense byte 1, bit 5): not here.
    Protect,
    /// Unit check, command reject (sense byte 0, bit 0): not at all.
    Reject,
}

impl Verdict {
    /// Sense data of a refusal, as DASD presents it: 24 bytes.
    pub(crate) fn sense(self) -> [u8; 24] {
        let mut sense = [0; 24];
        match self {
            Verdict::Allow => {}
            Verdict::Protect => sense[1] = 0x04,
            Verdict::Reject => sense[0] = 0x80,
        }
        sense
    }
}

/// A rule over commands. The strictest verdict of all rules holds.
pub trait Rule: Send + Sync {
    /// What becomes of `access`. Called on the shard for every CCW: it must be quick.
    fn judge(&self, access: &Access) -> Verdict;

    /// Whether it needs [`Access::extent`]. The parameters of commands that define extents are then
    /// copied, and the device gets the copy: the guest cannot change them after they were judged.
    fn sees_extents(&self) -> bool {
        false
    }
}

/// The rules of one device. Without any, everything is allowed.
///
/// ```
/// use vfio_ccw::translation::{Access, Policy, Verdict};
/// use vfio_ccw_metrics::DeviceClass;
///
/// let policy = Policy::read_only().and(Policy::extents(0..1000));
/// let write = Access::new(DeviceClass::Fba, 0x41, 512);
/// assert_eq!(policy.judge(&write), Verdict::Protect);
/// ```
#[derive(Clone, Default)]
pub struct Policy {
    rules: Vec<Arc<dyn Rule>>,
    sees_extents: bool,
}

impl Policy {
    /// One rule of your own.
    pub fn of(rule: impl Rule + 'static) -> Self {
        Policy { sees_extents: rule.sees_extents(), rules: vec![Arc::new(rule)] }
    }

    /// Commands that can change the medium are refused as file-protected.
    ///
    /// On DASD and tape these are the commands that write or erase; on a device of another class,
    /// all but reads, senses and CONTROL NO-OPERATION.
    pub fn read_only() -> Self {
        Policy::of(ReadOnly)
    }

    /// Only these command codes reach the device; others get command reject.
    pub fn allow_list(commands: impl IntoIterator<Item = u8>) -> Self {
        let mut allowed = [false; 256];
        commands.into_iter().for_each(|code| allowed[usize::from(code)] = true);
        Policy::of(AllowList(allowed))
    }

    /// On DASD, only these 512-byte blocks (FBA) or tracks (ECKD) can be reached. Every program that
    /// moves data must begin with a DEFINE EXTENT or PREFIX whose extent lies inside, as the drivers'
    /// programs do; other programs, and programs without prefetch, may only ask the device what it
    /// is. Refusals are file-protected.
    pub fn extents(allowed: Range<u64>) -> Self {
        Policy::of(Extents(allowed))
    }

    /// These rules and those of `other`.
    pub fn and(mut self, other: Policy) -> Self {
        self.rules.extend(other.rules);
        self.sees_extents |= other.sees_extents;
        self
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a rule needs [`Access::extent`].
    pub fn sees_extents(&self) -> bool {
        self.sees_extents
    }

    /// The strictest verdict of all rules.
    pub fn judge(&self, access: &Access) -> Verdict {
        self.rules.iter().map(|rule| rule.judge(access)).max().unwrap_or(Verdict::Allow)
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Policy of {} rules", self.rules.len())
    }
}

struct ReadOnly;

impl Rule for ReadOnly {
    fn judge(&self, access: &Access) -> Verdict {
        if access.writes() { Verdict::Protect } else { Verdict::Allow }
    }
}

struct AllowList([bool; 256]);

impl Rule for AllowList {
    fn judge(&self, access: &Access) -> Verdict {
        if self.0[usize::from(access.command)] { Verdict::Allow } else { Verdict::Reject }
    }
}

struct Extents(Range<u64>);

impl Rule for Extents {
    fn judge(&self, access: &Access) -> Verdict {
        let allowed = if access.defines_extent() {
            let inside = |extent: &Range<u64>| {
                self.0.start <= extent.start && extent.end <= self.0.end && !extent.is_empty()
            };
            access.extent.as_ref().is_some_and(inside)
        } else {
            access.bounded || access.asks()
        };
        if allowed { Verdict::Allow } else { Verdict::Protect }
    }

    fn sees_extents(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeviceClass::{Eckd, Fba, Null, Other, Tape};

    #[test]
    fn a_read_only_device_keeps_its_medium() {
        let policy = Policy::read_only();
        for (class, code, verdict) in [
            (Fba, command::FBA_WRITE, Verdict::Protect),
            (Fba, command::FBA_READ, Verdict::Allow),
            (Fba, command::FBA_LOCATE, Verdict::Allow),
            (Fba, command::DEFINE_EXTENT, Verdict::Allow),
            (Eckd, 0x85, Verdict::Protect),
            (Eckd, 0x11, Verdict::Protect),
            (Eckd, 0x31, Verdict::Allow),
            (Eckd, 0x86, Verdict::Allow),
            (Eckd, 0x47, Verdict::Allow),
            (Tape, 0x01, Verdict::Protect),
            (Tape, 0x1f, Verdict::Protect),
            (Tape, 0x97, Verdict::Protect),
            (Tape, 0x07, Verdict::Allow),
            (Null, 0x02, Verdict::Allow),
            (Null, 0x03, Verdict::Allow),
            (Other, 0x07, Verdict::Protect),
        ] {
            assert_eq!(policy.judge(&Access::new(class, code, 1)), verdict, "{class:?} {code:02x}");
        }
    }

    #[test]
    fn only_what_is_listed_is_allowed() {
        let policy = Policy::allow_list([0x03, 0xe4]);
        assert_eq!(policy.judge(&Access::new(Other, 0xe4, 7)), Verdict::Allow);
        assert_eq!(policy.judge(&Access::new(Other, 0x02, 7)), Verdict::Reject);
        assert_eq!(Policy::default().judge(&Access::new(Other, 0x02, 7)), Verdict::Allow);
        let both = policy.and(Policy::read_only());
        assert_eq!(both.judge(&Access::new(Other, 0x01, 7)), Verdict::Reject, "the strictest");
    }

    #[test]
    fn data_moves_inside_the_allowed_extent_only() {
        let policy = Policy::extents(100..200);
        assert!(policy.sees_extents() && !Policy::read_only().sees_extents());
        let define = |extent| Access { extent, ..Access::new(Fba, command::DEFINE_EXTENT, 16) };
        for (extent, verdict) in [
            (Some(100..200), Verdict::Allow),
            (Some(150..151), Verdict::Allow),
            (Some(99..101), Verdict::Protect),
            (Some(199..201), Verdict::Protect),
            (None, Verdict::Protect),
        ] {
            assert_eq!(policy.judge(&define(extent.clone())), verdict, "{extent:?}");
        }
        let read = Access::new(Fba, command::FBA_READ, 512);
        assert_eq!(policy.judge(&read), Verdict::Protect);
        assert_eq!(policy.judge(&Access { bounded: true, ..read }), Verdict::Allow);
        assert_eq!(policy.judge(&Access::new(Fba, command::SENSE_ID, 7)), Verdict::Allow);
        assert_eq!(policy.judge(&Access::new(Fba, 0x27, 7)), Verdict::Protect);
    }
}
