//! Devices of the kernel's vfio-ccw driver.
//!
//! | part | file |
//! |---|---|
//! | finding a device | `location.rs` |
//! | the container or iommufd through which devices see memory | `address_space.rs` |
//! | an opened device: regions, interrupts, reset | `device.rs`, `region_info.rs` |
//! | the ioctls, the only unsafe code here | `ioctl.rs` |
//!
//! What drives an opened device on its shard is in `passthrough.rs`, one folder up.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use vm_memory::{GuestAddress, GuestMemoryMmap};
//! use vfio_ccw::backend::kernel::{AddressSpace, Location};
//! use vfio_ccw::{Completions, DeviceSpec, Service};
//!
//! # let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
//! let space = AddressSpace::iommufd()?;
//! let device = space.open(&Location::find("0.0.0313")?)?;
//! let service = Service::builder().address_space(space).build(memory)?;
//! let (delivery, completions) = Completions::ring(64)?;
//! let disk = service.attach(DeviceSpec::kernel(device), delivery)?;
//! # let _ = (disk, completions);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address_space;
mod device;
mod ioctl;
mod location;
mod region_info;

pub use address_space::{AddressSpace, Interface, Mapped, SpaceError};
pub use device::{Device, DeviceError};
pub use location::{Location, LocationError};
