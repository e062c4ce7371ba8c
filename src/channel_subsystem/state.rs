//! What a device keeps between programs.

use super::Sense;

/// What a device model keeps between programs, for a model of the same kind to go on with elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum DeviceState {
    /// Nothing.
    #[default]
    Nothing,
    /// A [`Null`](super::Null).
    Null {
        /// Sense that was not fetched.
        sense: SenseState,
    },
    /// An [`Fba`](super::Fba).
    Fba(FbaState),
    /// A model of the VMM's own, which knows what these bytes are.
    Other(Vec<u8>),
}

/// Sense data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SenseState {
    /// At most 32.
    pub bytes: Vec<u8>,
}

/// An FBA disk. Extent and location are those of a program that is suspended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FbaState {
    /// Blocks of the volume.
    pub blocks: u32,
    /// Sense that was not fetched.
    pub sense: SenseState,
    /// What DEFINE EXTENT has set up.
    pub extent: Option<ExtentState>,
    /// What LOCATE has set up.
    pub located: Option<LocatedState>,
}

/// Logical blocks `first..=last` stand at physical block `at`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExtentState {
    /// Writes are allowed.
    pub may_write: bool,
    /// First physical block.
    pub at: u32,
    /// First logical block.
    pub first: u32,
    /// Last logical block.
    pub last: u32,
}

/// Physical blocks that the next command transfers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LocatedState {
    /// To the volume.
    pub writes: bool,
    /// First physical block.
    pub at: u32,
    /// How many.
    pub blocks: u32,
}

/// Why a device cannot go on from a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceStateError {
    /// It is that of a device of another kind.
    #[error("the saved state is that of another kind of device: attach the kind that was saved")]
    Kind,
    /// The volume is another one.
    #[error(
        "the saved state is that of a disk of {saved} blocks, this one has {here}: attach the same volume"
    )]
    Blocks {
        /// Blocks of the saved one.
        saved: u32,
        /// Blocks of this one.
        here: u32,
    },
    /// Extent or location lie outside of the volume.
    #[error("the saved state designates blocks outside of the volume, which has {blocks}")]
    Outside {
        /// Blocks of the volume.
        blocks: u32,
    },
    /// A write is located on a volume that is write-protected here.
    #[error("the saved state is about to write, and the volume is write-protected here")]
    WriteProtected,
    /// More sense than there is room for.
    #[error("the saved state has {bytes} bytes of sense: there are at most 32")]
    Sense {
        /// How many.
        bytes: usize,
    },
    /// What a model of the VMM's own says.
    #[error("the device cannot go on from its saved state: {0}")]
    Other(String),
}

impl From<&Sense> for SenseState {
    fn from(sense: &Sense) -> Self {
        SenseState { bytes: sense.as_bytes().to_vec() }
    }
}

impl TryFrom<&SenseState> for Sense {
    type Error = DeviceStateError;

    fn try_from(state: &SenseState) -> Result<Self, DeviceStateError> {
        Sense::of_bytes(&state.bytes).ok_or(DeviceStateError::Sense { bytes: state.bytes.len() })
    }
}
