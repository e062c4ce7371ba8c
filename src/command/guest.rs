//! Guest memory for jobs that have no guest.

use std::fs::File;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::Failure;

/// `bytes` of guest memory from address 0, in a memfd, so that a device in another process could map
/// it too.
pub(super) fn memory(bytes: u64) -> Result<Arc<GuestMemoryMmap>, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        format!("no guest memory of {bytes} bytes: {error}; give less with --memory")
    };
    let memfd = rustix::fs::memfd_create("vfio-ccw-guest", rustix::fs::MemfdFlags::CLOEXEC);
    let file = File::from(memfd.map_err(|error| failed(&error))?);
    file.set_len(bytes).map_err(|error| failed(&error))?;
    let range = (GuestAddress(0), bytes as usize, Some(FileOffset::new(file, 0)));
    let memory =
        GuestMemoryMmap::from_ranges_with_files([range]).map_err(|error| failed(&error))?;
    Ok(Arc::new(memory))
}
