//! The channel subsystem's data structures, byte for byte as the architecture lays them out.
//!
//! Every type here is a zero-copy view: big-endian fields, no padding, alignment 1, a size that is
//! asserted at compile time, and a `Debug` that reads like an operator's console. Nothing here
//! interprets a program: translation and [`crate::channel_subsystem`] do that.
//!
//! | type | bytes | what it is |
//! |---|---|---|
//! | [`Orb`] | 12 | operation-request block, the operand of START SUBCHANNEL |
//! | [`Ccw0`], [`Ccw1`] | 8 | channel-command word, format 0 (24-bit) and format 1 (31-bit) |
//! | [`Idaw1`], [`Idaw2`] | 4, 8 | indirect-data-address word, 31-bit and 64-bit |
//! | [`Midaw`] | 16 | modified indirect-data-address word |
//! | [`Scsw`] | 12 | subchannel-status word |
//! | [`Irb`] | 96 | interruption-response block: SCSW, ESW, ECW, EMW |
//! | [`Pmcw`], [`Schib`] | 28, 52 | path-management control word, subchannel-information block |
//! | [`Crw`] | 4 | channel-report word |
//! | [`SubchannelId`] | 4 | subchannel-identification word |
//! | [`IoInterruption`] | 12 | I/O-interruption code |
//!
//! Sources: z/Architecture layouts as restated by Linux `arch/s390/include/asm/{cio,scsw,idals,crw}.h`,
//! `drivers/s390/cio/orb.h` and QEMU `include/hw/s390x/ioinst.h`.

mod ccw;
mod crw;
pub mod decode;
mod function;
mod idaw;
mod interruption;
mod irb;
mod midaw;
mod orb;
mod schib;
mod scsw;
mod subchannel_id;

pub use ccw::{Ccw, Ccw0, Ccw1, CcwFlags, CommandClass, command};
pub use crw::{Crw, CrwFlags, ReportingSource};
pub use function::Function;
pub use idaw::{Idaw1, Idaw2, IdawFormat};
pub use interruption::IoInterruption;
pub use irb::{Ecw, Erw, Esw, Irb, IrbHead};
pub use midaw::{Midaw, MidawFlags};
pub use orb::{Orb, OrbError, OrbFlags};
pub use schib::{Pmcw, PmcwFlags, Schib, SchibError};
pub use scsw::{DeviceStatus, Scsw, ScswFlags, SubchannelStatus};
pub use subchannel_id::{NoSubchannelId, SubchannelId, SubchannelIdError};
