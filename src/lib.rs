//! Channel I/O for s390x guests, asynchronously and fast, on any Linux.
//!
//! On s390x every device is driven by channel programs. A guest issues START SUBCHANNEL with an
//! [`Orb`](architecture::Orb); a chain of CCWs in guest memory says what to transfer; an
//! [`Irb`](architecture::Irb) tells how it ended. This crate is what a VMM embeds to do that work:
//! it copies and checks the guest's program, translates it over pinned pages, starts it on a
//! device, and brings the result back to an interrupt or a completion ring.
//!
//! ```
//! use std::sync::Arc;
//! use vfio_ccw::architecture::{Ccw, Orb, command};
//! use vfio_ccw::{Completions, DeviceSpec, Service};
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//!
//! let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
//! let service = Service::builder().build(memory.clone())?;
//! let (delivery, mut completions) = Completions::ring(64)?;
//! let disk = service.attach(DeviceSpec::Null, delivery)?;
//!
//! // The guest's program: SENSE ID, seven bytes to 0x2000.
//! let ccw = Ccw::new(command::SENSE_ID, 0x2000, 7);
//! memory.write_slice(&ccw.to_format_1(), GuestAddress(0x1000))?;
//! disk.submit(&Orb::new(0x1000), 42)?;
//!
//! completions.wait(None)?;
//! completions.reap(1, |completion| {
//!     assert_eq!(completion.user_data, 42);
//!     assert!(completion.irb.scsw.is_clean_end());
//! });
//! assert_eq!(memory.read_obj::<u8>(GuestAddress(0x2000))?, 0xff);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | what is in it |
//! |---|---|
//! | [`architecture`] | ORB, CCW, IDAW, SCSW, IRB, SCHIB, CRW, byte for byte |
//! | [`channel_subsystem`] | the software channel subsystem and its device models |
//! | [`backend`] | the vfio-ccw contract: regions, `ret_code`, interrupt |
//! | [`translation`] | guest program in, shadow program out; policy |
//! | [`volume`] | image files |
//! | [`service`] | shards, delivery, and what a VMM does with all devices |
//! | [`subchannel`] | one device's instructions, ring and futures |
//! | [`engine`] | a service as the load generator drives it (feature `load`) |
//!
//! Features: `record` (default) measures; `load` and `cli` (default) bring the `vfio-ccw` command.
//! A VMM that wants none of them depends on the crate with `default-features = false`.

pub mod architecture;
pub mod backend;
pub mod channel_subsystem;
pub mod confinement;
#[cfg(feature = "load")]
pub mod engine;
pub mod server;
pub mod service;
mod shadow;
mod sleeper;
pub mod subchannel;
pub mod translation;
mod turn;
pub mod vfio_user;
pub mod volume;
mod watch;

pub use service::{
    AttachError, Completion, Completions, Delivery, DeviceOptions, DeviceSpec, DrainError, Driver,
    DriverChoice, FlightRecord, FlightRecorder, FlownCcw, Interrupts, MemoryError, ModeError,
    Model, OperandError, PinnerChoice, QuiesceError, SaveError, Service, ServiceBuilder,
    ServiceError, ServiceState, Silent, StartState, StateError, SubchannelSeries, SubchannelState,
    SuspendedState, Trigger, Unfetched,
};
pub use shadow::{GUEST_IOVA, SHADOW_IOVA};
pub use subchannel::{Cc, Start, Subchannel, SubmitError};
pub use translation::{Limits, Policy};
pub use vfio_ccw_pinning::{Granule, Mode};
pub use vfio_ccw_queues::wait::{Adaptive, WaitStrategy};
