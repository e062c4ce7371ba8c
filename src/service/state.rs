//! What of a service can be taken to another one: plain structs of words, which a VMM stores as it
//! likes, and what is checked before they are believed.

use vfio_ccw_queues::submission;
use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::architecture::{
    IrbHead, Orb, OrbError, Pmcw, PmcwFlags, Schib, SchibError, ScswFlags, SubchannelId,
};
use crate::channel_subsystem::DeviceState;
use crate::subchannel::{Cell, Saved};

use super::delivery::Delivery;

/// Version of the structs in this file.
const VERSION: u32 = 1;

/// What a quiesced service consists of, apart from what its VMM knows: guest memory, images, and where
/// results go.
///
/// Words are numbers, most significant byte first in the architecture's layouts. With feature `serde`
/// the structs can be serialised.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ServiceState {
    /// 1.
    pub version: u32,
    /// The subchannels, in the order of their numbers.
    pub subchannels: Vec<SubchannelState>,
    /// Channel-report words that wait for the guest.
    pub reports: Vec<u32>,
    /// Interruption subclasses that are delivered, a bit each as in control register 6.
    pub enabled_subclasses: u8,
}

/// One subchannel with its device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SubchannelState {
    /// Its number over all subchannel sets.
    pub number: u32,
    /// Path-management-control word: the first 28 bytes of the SCHIB.
    pub pmcw: [u32; 7],
    /// Function, activity and status control: bits 17 to 31 of word 0 of the SCSW.
    pub control: u32,
    /// SCSW, ESW and ECW of the status that is pending; zeros if none is.
    pub status: [u32; 16],
    /// An interruption is pending.
    pub interrupts: bool,
    /// Whoever delivers interruptions was told of it.
    pub told: bool,
    /// Programs that were started and have not begun, in their order.
    pub starts: Vec<StartState>,
    /// The program that has suspended itself.
    pub suspended: Option<SuspendedState>,
    /// What the device keeps between programs.
    pub device: DeviceState,
}

/// A program that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StartState {
    /// Words 0 to 2 of the ORB.
    pub orb: [u32; 3],
    /// Of its submission; `None`: it was started by instruction.
    pub user_data: Option<u64>,
}

/// A program that waits to be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SuspendedState {
    /// How it was started.
    pub start: StartState,
    /// SCSW, ESW and ECW that it was suspended with.
    pub status: [u32; 16],
    /// A command has bounded it to an extent that its policy allows.
    pub bounded: bool,
}

/// What is wrong with a state that is to be restored.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It was saved by a version that is not known here.
    #[error("version {found} of a saved service is not known: this one restores version {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// There is no subchannel of that number.
    #[error("subchannel number {number:#x}: subchannels go to {last:#x}", last = 0x3_ffff)]
    Number {
        /// The number.
        number: u32,
    },
    /// The PMCW is one that MODIFY SUBCHANNEL would refuse.
    #[error(transparent)]
    Schib(#[from] SchibError),
    /// The PMCW has paths that this subchannel does not have.
    #[error("the PMCW has other paths than device {devno:#06x} has here: one, 0x80")]
    Paths {
        /// Device number in the PMCW.
        devno: u16,
    },
    /// Function, activity, status control and what belongs to them do not go together.
    #[error("control {control:#010x} of subchannel {number:#x} does not go together: {why}")]
    Control {
        /// Number of the subchannel.
        number: u32,
        /// The word.
        control: u32,
        /// What does not.
        why: &'static str,
    },
    /// A program has an ORB that START SUBCHANNEL would refuse.
    #[error(transparent)]
    Orb(#[from] OrbError),
    /// More programs wait than the ring has entries.
    #[error("{starts} programs wait, the ring has {entries} entries: build the service with more")]
    Starts {
        /// Programs that wait.
        starts: usize,
        /// Entries of the ring.
        entries: usize,
    },
    /// It is started in another way than it was.
    #[error(
        "subchannel {number:#x} has programs that were started {}: attach it with such a delivery",
        if *.by_instruction { "by instruction" } else { "by submission" }
    )]
    Delivery {
        /// Number of the subchannel.
        number: u32,
        /// How they were started.
        by_instruction: bool,
    },
    /// The device cannot go on from there.
    #[error(transparent)]
    Device(#[from] crate::channel_subsystem::DeviceStateError),
}

/// A subchannel's state that was checked.
#[derive(Debug)]
pub(super) struct Restored {
    pmcw: Pmcw,
    saved: Saved,
    pub(super) starts: Vec<(Orb, Option<u64>)>,
    pub(super) suspended: Option<Suspended>,
    pub(super) device: DeviceState,
}

/// A program that waits to be resumed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspended {
    pub(super) orb: Orb,
    pub(super) user_data: Option<u64>,
    pub(super) irb: IrbHead,
    pub(super) bounded: bool,
}

impl ServiceState {
    pub(super) fn new(
        subchannels: Vec<SubchannelState>,
        reports: Vec<u32>,
        enabled_subclasses: u8,
    ) -> Self {
        ServiceState { version: VERSION, subchannels, reports, enabled_subclasses }
    }

    pub(super) fn check_version(&self) -> Result<(), StateError> {
        match self.version {
            VERSION => Ok(()),
            found => Err(StateError::Version { found }),
        }
    }
}

impl SubchannelState {
    /// Checks all but the device, for a subchannel with a ring of `entries` whose results go where
    /// `delivery` says.
    pub(super) fn check(
        &self,
        entries: usize,
        delivery: &Delivery,
    ) -> Result<Restored, StateError> {
        let number = self.number;
        let id = SubchannelId::of(number);
        if id.index() != Some(number) {
            return Err(StateError::Number { number });
        }
        let pmcw: Pmcw = structure(&self.pmcw);
        Schib::from(pmcw).check()?;
        self.check_paths(&pmcw)?;
        let status: IrbHead = structure(&self.status);
        let by_instruction = matches!(delivery, Delivery::Interrupt(_));
        let (starts, suspended) = self.programs()?;
        let all = starts.iter().map(|(_, user_data)| user_data);
        let mut all = all.chain(suspended.as_ref().map(|suspended| &suspended.user_data));
        let is_ring = matches!(delivery, Delivery::Ring(_));
        if all.any(|user_data| if user_data.is_none() { !by_instruction } else { !is_ring }) {
            return Err(StateError::Delivery { number, by_instruction: !by_instruction });
        }
        let entries = submission::ring::<()>(entries).0.capacity();
        if starts.len() > entries {
            return Err(StateError::Starts { starts: starts.len(), entries });
        }
        let control = self.check_control(by_instruction)?;
        let saved = Saved { control, status, interrupts: self.interrupts, told: self.told };
        let device = self.device.clone();
        Ok(Restored { pmcw, saved, starts, suspended, device })
    }

    fn check_paths(&self, pmcw: &Pmcw) -> Result<(), StateError> {
        let here = Pmcw::single_path(pmcw.devno.get());
        let paths = |pmcw: &Pmcw| (pmcw.pim, pmcw.pam, pmcw.pom, pmcw.chpid);
        match paths(pmcw) == paths(&here) && pmcw.flags().contains(PmcwFlags::DEVICE_VALID) {
            true => Ok(()),
            false => Err(StateError::Paths { devno: pmcw.devno.get() }),
        }
    }

    #[expect(clippy::type_complexity, reason = "the programs: those that wait, and one suspended")]
    fn programs(&self) -> Result<(Vec<(Orb, Option<u64>)>, Option<Suspended>), StateError> {
        let start = |start: &StartState| {
            let orb: Orb = structure(&start.orb);
            orb.check().map(|()| (orb, start.user_data))
        };
        let starts = self.starts.iter().map(start).collect::<Result<_, _>>()?;
        let suspended = self.suspended.as_ref().map(|suspended| {
            let (orb, user_data) = start(&suspended.start)?;
            let (irb, bounded) = (structure(&suspended.status), suspended.bounded);
            Ok::<_, StateError>(Suspended { orb, user_data, irb, bounded })
        });
        Ok((starts, suspended.transpose()?))
    }

    /// Whether the control word is one that a quiesced subchannel can have.
    fn check_control(&self, by_instruction: bool) -> Result<ScswFlags, StateError> {
        let control = ScswFlags::from_bits_retain(self.control);
        let wrong = |why| StateError::Control { number: self.number, control: self.control, why };
        let all =
            ScswFlags::FUNCTION_CONTROL | ScswFlags::ACTIVITY_CONTROL | ScswFlags::STATUS_CONTROL;
        if !all.contains(control) {
            return Err(wrong("there are bits of no control"));
        }
        let function = control & ScswFlags::FUNCTION_CONTROL;
        let status = control & ScswFlags::STATUS_CONTROL;
        let (start, halt, clear) =
            (ScswFlags::START_FUNCTION, ScswFlags::HALT_FUNCTION, ScswFlags::CLEAR_FUNCTION);
        if function.bits().count_ones() > 1 {
            return Err(wrong("there are several functions"));
        }
        if control.intersects(ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE) {
            return Err(wrong("a program runs"));
        }
        let pending = status.contains(ScswFlags::STATUS_PENDING);
        let says_more = !status.is_empty() || self.interrupts;
        if says_more && !pending || self.told && !self.interrupts {
            return Err(wrong("no status is pending for it"));
        }
        let waits = ScswFlags::START_PENDING | ScswFlags::SUSPENDED | ScswFlags::RESUME_PENDING;
        let of_function = match function {
            function if function == start => waits,
            function if function == halt => ScswFlags::HALT_PENDING,
            function if function == clear => ScswFlags::CLEAR_PENDING,
            _ => ScswFlags::empty(),
        };
        let activity = control & ScswFlags::ACTIVITY_CONTROL;
        if !of_function.contains(activity) {
            return Err(wrong("the activity is not that of the function"));
        }
        if function.is_empty() && !status.is_empty() {
            return Err(wrong("status of no function"));
        }
        let suspended = control.contains(ScswFlags::SUSPENDED);
        if suspended != self.suspended.is_some()
            || control.contains(ScswFlags::RESUME_PENDING) && !suspended
            || suspended && control.contains(ScswFlags::START_PENDING)
        {
            return Err(wrong("it is suspended, or resumed, and there is no suspended program"));
        }
        let waiting = usize::from(control.contains(ScswFlags::START_PENDING));
        if by_instruction && self.starts.len() != waiting || !by_instruction && waiting > 0 {
            return Err(wrong("the programs that wait are not the start that is pending"));
        }
        Ok(control)
    }
}

impl Restored {
    /// The subchannel's state, and what of its PMCW never changes.
    pub(super) fn cell(&self, id: SubchannelId) -> (Cell, Pmcw) {
        let fixed = Pmcw::single_path(self.pmcw.devno.get());
        (Cell::restored(id, &self.pmcw, &self.saved), fixed)
    }
}

impl StartState {
    pub(super) fn new(orb: &Orb, user_data: Option<u64>) -> Self {
        StartState { orb: words(orb), user_data }
    }
}

/// A structure of the architecture as numbers.
pub(super) fn words<const N: usize>(structure: &(impl IntoBytes + Immutable)) -> [u32; N] {
    let words = <[U32; N]>::read_from_bytes(structure.as_bytes());
    words.expect("a structure of as many words").map(U32::get)
}

fn structure<T: FromBytes, const N: usize>(words: &[u32; N]) -> T {
    let words = words.map(U32::new);
    T::read_from_bytes(words.as_bytes()).expect("as many words as the structure has")
}
