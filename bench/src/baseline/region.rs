//! A subchannel as a user of vfio-ccw sees it, with a device behind it that costs nothing: an I/O region, which is a
//! memfd, and the eventfd of its interrupt, which the start raises at once.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Size of the I/O region (`struct ccw_io_region` in `include/uapi/linux/vfio_ccw.h`): ORB and SCSW of
/// 12 bytes each, IRB of 96, return code of 4.
pub const IO_REGION_BYTES: usize = 124;

/// Offset of the return code in the region.
pub(super) const RETURN_CODE: usize = IO_REGION_BYTES - 4;

#[derive(Debug)]
pub(super) struct Region {
    pub(super) region: File,
    pub(super) interrupt: OwnedFd,
}

impl Region {
    pub(super) fn new() -> io::Result<Self> {
        let region = File::from(memfd_create("vfio-ccw-region", MemfdFlags::CLOEXEC)?);
        region.set_len(IO_REGION_BYTES as u64)?;
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { region, interrupt })
    }

    /// The region write that starts an I/O, and the interrupt that its end raises.
    pub(super) fn start(&self, request: &[u8; IO_REGION_BYTES]) -> io::Result<()> {
        loop {
            // The driver says EAGAIN while somebody else is in the region, and QEMU tries again at once
            // (`vfio_ccw_handle_request` in `hw/vfio/ccw.c`). A memfd never does.
            match self.region.write_all_at(request, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result?,
            }
        }
        rustix::io::write(&self.interrupt, &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// After its interrupt: clears it, and reads the region.
    pub(super) fn finish(&self, response: &mut [u8; IO_REGION_BYTES]) -> io::Result<()> {
        let mut count = [0; 8];
        rustix::io::read(&self.interrupt, &mut count)?;
        if u64::from_ne_bytes(count) != 1 {
            let reason = "a subchannel had another number of interrupts than 1";
            return Err(io::Error::other(reason));
        }
        self.region.read_exact_at(response, 0)
    }
}
