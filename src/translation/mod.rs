//! Guest program in, shadow program out.
//!
//! The guest's CCWs and IDALs are read once, into a [`Program`]; the device runs what is written
//! from there. Errors are **lazy**: a CCW that cannot be translated becomes a CCW that the channel
//! refuses when, and only when, execution reaches it; an address that cannot be translated becomes
//! an IDAW that fails when data gets there. So translation itself never fails, and a guest sees its
//! mistakes where the architecture shows them.
//!
//! | stage | file |
//! |---|---|
//! | follow the guest program and read each CCW once | `fetch.rs` |
//! | turn data areas into IDALs | `data_area.rs`, `midaw_list.rs`; the usual ones `plain.rs` |
//! | judge commands | `policy.rs`, `extent.rs` |
//! | break chains that are too long for the kernel driver | `chain_breaks.rs` |
//! | write the shadow program | `emit.rs` |
//! | map status of the shadow back | `back_map.rs` |
//!
//! What the shadow looks like, and where Linux, QEMU, Hercules and this translator differ, is in
//! `docs/TRANSLATION.md`.
//!
//! ```
//! use std::sync::Arc;
//! use vfio_ccw::architecture::{Ccw, Orb, command};
//! use vfio_ccw::translation::{Program, Rules};
//! use vfio_ccw_pinning::{GuestMap, Hold};
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
//! let map = GuestMap::new(Arc::new(memory))?;
//! map.write(0x1000, &Ccw::new(command::SENSE_ID, 0x2000, 7).to_format_1());
//! let (mut program, mut hold) = (Program::default(), Hold::default());
//! program.fetch(&Orb::new(0x1000), &map, &Rules::default(), &mut hold);
//! assert_eq!(hold.wanted(), 1, "the frame at 0x2000");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod back_map;
mod chain_breaks;
mod data_area;
mod emit;
mod extent;
mod fetch;
mod keys;
pub(crate) mod midaw_list;
mod operation;
mod plain;
#[cfg(feature = "planted-slowdown")]
mod planted;
mod policy;
mod program;

use std::sync::Arc;

use vfio_ccw_metrics::DeviceClass;

pub use keys::{StorageKey, StorageKeys};
pub use policy::{Access, Policy, Rule, Verdict};
pub use program::Program;

/// Bounds on one channel program. What exceeds them ends in a program check at that CCW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// CCWs in all segments.
    pub ccws: usize,
    /// IDAWs of the shadow program.
    pub idaws: usize,
    /// Runs of CCWs at ascending addresses: the first, and one for every TIC that leaves a run.
    pub segments: usize,
    /// Bytes of all data areas.
    pub bytes: u64,
}

impl Default for Limits {
    /// 4,096 CCWs (what the kernel driver takes), 64 segments, 65,536 IDAWs and 256 MiB of data.
    fn default() -> Self {
        Limits { ccws: 4096, idaws: 65_536, segments: 64, bytes: 256 << 20 }
    }
}

/// What programs of one device are held to.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Bounds on a program.
    pub limits: Limits,
    /// Class of the device, which the policy sees.
    pub class: DeviceClass,
    /// Which commands are allowed.
    pub policy: Policy,
    /// Storage keys; without them keys are not checked.
    pub keys: Option<Arc<dyn StorageKeys>>,
    /// The driver pins the area of every command before the program starts, as the kernel's does, and
    /// refuses the program where it cannot. Then the channel stops at a command whose area is not all
    /// there, before it moves any of its data, and what comes before that command runs.
    pub pins_areas: bool,
}

impl Default for Rules {
    /// Any program within the default limits, for a device of any class.
    fn default() -> Self {
        Rules {
            limits: Limits::default(),
            class: DeviceClass::Other,
            policy: Policy::default(),
            keys: None,
            pins_areas: false,
        }
    }
}

impl Rules {
    /// Whether subchannel key `key` may store at `address`.
    pub(crate) fn may_store(&self, key: u8, address: u64) -> bool {
        key == 0 || self.keys.as_ref().is_none_or(|keys| keys.key(address).allows_store(key))
    }

    /// Whether subchannel key `key` may fetch from `address`.
    pub(crate) fn may_fetch(&self, key: u8, address: u64) -> bool {
        key == 0 || self.keys.as_ref().is_none_or(|keys| keys.key(address).allows_fetch(key))
    }
}
