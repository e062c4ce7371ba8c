//! The least that a program does to run a channel program on the kernel's vfio-ccw, one at a time: write
//! the I/O region, wait for the eventfd, read the region. By three system calls, or through io_uring.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, command};
use vfio_ccw::backend::kernel::{AddressSpace, Device};
use vfio_ccw::backend::{Errno, IoRegion};
use vfio_ccw::{Driver, DriverChoice};
use vfio_ccw_pinning::GuestMap;
use zerocopy::IntoBytes;

use crate::command::{Failure, guest};

/// Where memory is for the device.
const IOVA: u32 = 16 << 20;

/// Bytes of it: the driver reads 2 KiB where a program begins.
const BYTES: u64 = 64 << 10;

/// Runs SENSE ID for `time` by system calls, and then for as long through io_uring; what each took. Nothing
/// of the latter, where there is no io_uring.
pub(super) fn run(
    space: &AddressSpace,
    device: &Device,
    time: Duration,
) -> Result<[Vec<u64>; 2], Failure> {
    let memory = GuestMap::new(guest::memory(BYTES)?)?;
    let _window = space.map(IOVA.into(), memory.regions()[0].host())?;
    let ccw = Ccw::new(command::SENSE_ID, IOVA + 0x8000, 7).with(CcwFlags::SUPPRESS_LENGTH);
    memory.write(0, &ccw.to_format_1());
    // It blocks: nothing but the three calls.
    let eventfd = File::from(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?);
    device.set_io_eventfd(Some(&eventfd))?;
    let region = IoRegion::start(Orb::new(IOVA));
    let by_calls = by_calls(device, &eventfd, &region, time)?;
    let by_uring = match DriverChoice::Only(Driver::IoUring).decide() {
        Ok(_) => tokio_uring::start(by_uring(device, &eventfd, &region, time))?,
        Err(_) => Vec::new(),
    };
    device.set_io_eventfd(None)?;
    Ok([by_calls, by_uring])
}

fn by_calls(
    device: &Device,
    mut eventfd: &File,
    region: &IoRegion,
    time: Duration,
) -> Result<Vec<u64>, Failure> {
    let mut took = Vec::with_capacity(1 << 20);
    let end = Instant::now() + time;
    while Instant::now() < end {
        let begin = Instant::now();
        start(device, region)?;
        eventfd.read_exact(&mut [0; 8])?;
        let irb = device.read_irb()?;
        took.push(begin.elapsed().as_nanos() as u64);
        if !irb.scsw.is_clean_end() {
            return Err(format!("SENSE ID ended with {irb:?}").into());
        }
    }
    Ok(took)
}

/// The same with an entry in an io_uring for each call. The driver cannot be asked without waiting, so the
/// kernel leaves its reads and writes to threads.
async fn by_uring(
    device: &Device,
    eventfd: &File,
    region: &IoRegion,
    time: Duration,
) -> Result<Vec<u64>, Failure> {
    let file = tokio_uring::fs::File::from_std(File::from(device.as_fd().try_clone_to_owned()?));
    let signals = tokio_uring::fs::File::from_std(eventfd.try_clone()?);
    let (mut start, mut count, mut irb) = (region.as_bytes().to_vec(), vec![0; 8], vec![0; 64]);
    let mut took = Vec::with_capacity(1 << 20);
    let end = Instant::now() + time;
    while Instant::now() < end {
        let begin = Instant::now();
        let (written, buffer) = file.write_at(start, device.io_offset()).submit().await;
        start = buffer;
        match written {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => continue,
            written => written.map(drop)?,
        }
        let (read, buffer) = signals.read_at(count, 0).await;
        (_, count) = (read?, buffer);
        let (read, buffer) = file.read_at(irb, device.io_offset() + IoRegion::IRB).await;
        (_, irb) = (read?, buffer);
        took.push(begin.elapsed().as_nanos() as u64);
    }
    file.close().await?;
    signals.close().await?;
    Ok(took)
}

/// Starts, again where the driver was just in the region.
fn start(device: &Device, region: &IoRegion) -> Result<(), Errno> {
    loop {
        match device.write_io(region) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}
