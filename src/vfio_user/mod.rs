//! vfio-user: VFIO as messages over a Unix socket, for devices in another process.
//!
//! The protocol is that of QEMU's `docs/interop/vfio-user.rst`, version 0.1. Two things are ours, as the protocol
//! knows devices of PCI only: the device's flags say that it is one of channel I/O, as the kernel's do, and
//! a capability that both sides have to name brings the lane, over which programs go without a system call.
//! Both are written down in `docs/REMOTE.md`.
//!
//! | part | file |
//! |---|---|
//! | header and payloads | `message.rs` |
//! | what the sides agree upon first | `version.rs` |
//! | bytes and descriptors to messages | `inbox.rs` |
//! | the socket | `wire.rs` |
//! | programs and status in memory that both sides have | `lane.rs` |
//!
//! Integers are in the byte order of the machine, which both sides run on; what stands in regions has that of
//! [`IoRegion`](crate::backend::IoRegion) and its like.

mod inbox;
pub(crate) mod lane;
mod message;
mod version;
mod wire;

pub use inbox::{FrameError, Inbox, MOST_FILES, MOST_PAYLOAD, Message};
pub use message::{
    Access, Command, DeviceInfo, DmaMap, DmaUnmap, HEADER, Header, IrqSetHead, LaneOffer,
};
pub use version::{Capabilities, Version, VersionError};
pub(crate) use wire::{Outbox, Wire, WireError};
