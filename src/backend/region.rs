//! The regions of a vfio-ccw device, as `include/uapi/linux/vfio_ccw.h` lays them out.
//!
//! Architecture structures in them are big-endian; `ret_code`, the command and padding are in the
//! byte order of the machine.

use std::fmt;

use zerocopy::native_endian::{I32, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::architecture::{Crw, Function, Irb, Orb, Schib, Scsw, ScswFlags};
use crate::channel_subsystem::Entry;

/// I/O region (124 bytes): a write starts a program, a read shows the last IRB.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct IoRegion {
    /// What to start.
    pub orb: Orb,
    /// Function control: only START may be set.
    pub scsw: Scsw,
    /// The last IRB.
    pub irb: Irb,
    /// 0, or an errno as a negative number.
    pub ret_code: I32,
}

const _: () = assert!(size_of::<IoRegion>() == 124);

impl IoRegion {
    /// Where the IRB begins in it, in bytes.
    pub const IRB: u64 = std::mem::offset_of!(IoRegion, irb) as u64;

    /// A region that asks for the start of `orb`.
    pub fn start(orb: Orb) -> Self {
        IoRegion::of(orb, Entry::Start)
    }

    /// A region that resumes a suspended program with `orb`. The kernel's driver does not know this:
    /// it looks at the function control only, and would start the program anew.
    pub fn resume(orb: Orb) -> Self {
        IoRegion::of(orb, Entry::Resume)
    }

    pub(super) fn of(orb: Orb, entry: Entry) -> Self {
        IoRegion { orb, scsw: IoRegion::function(entry), ..IoRegion::default() }
    }

    /// The function control that asks for it.
    pub(super) fn function(entry: Entry) -> Scsw {
        Scsw::new(match entry {
            Entry::Start => ScswFlags::START_FUNCTION,
            Entry::Resume => ScswFlags::START_FUNCTION | ScswFlags::RESUME_PENDING,
        })
    }
}

impl fmt::Debug for IoRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}; {:?}; {:?}; ret_code={}",
            self.orb,
            self.scsw,
            self.irb,
            self.ret_code.get()
        )
    }
}

/// Asynchronous-command region (8 bytes): HALT SUBCHANNEL and CLEAR SUBCHANNEL.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct AsyncRegion {
    /// [`AsyncRegion::HALT`] or [`AsyncRegion::CLEAR`].
    pub command: U32,
    /// 0, or an errno as a negative number.
    pub ret_code: I32,
}

const _: () = assert!(size_of::<AsyncRegion>() == 8);

impl AsyncRegion {
    /// HALT SUBCHANNEL.
    pub const HALT: u32 = 1;
    /// CLEAR SUBCHANNEL.
    pub const CLEAR: u32 = 2;

    /// A region that asks for `function`.
    pub fn ask(function: Function) -> Self {
        let command = match function {
            Function::Halt => AsyncRegion::HALT,
            Function::Clear => AsyncRegion::CLEAR,
        };
        AsyncRegion { command: command.into(), ret_code: 0.into() }
    }
}

/// SCHIB region (52 bytes), read only.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct SchibRegion {
    /// Fresh from STORE SUBCHANNEL.
    pub schib: Schib,
}

const _: () = assert!(size_of::<SchibRegion>() == 52);

/// CRW region (8 bytes), read only: one report, zero where there is none.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct CrwRegion {
    /// The report.
    pub crw: Crw,
    /// Zero.
    pub pad: U32,
}

const _: () = assert!(size_of::<CrwRegion>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_kernel_has_them() {
        let mut region = IoRegion::start(Orb::new(0x1000));
        region.ret_code.set(-libc::EBUSY);
        let bytes = region.as_bytes();
        assert_eq!(bytes[8..12], [0, 0, 0x10, 0]);
        assert_eq!(bytes[14], 0x40, "start function in the SCSW");
        assert_eq!(bytes[120..], (-libc::EBUSY).to_ne_bytes());
    }
}
