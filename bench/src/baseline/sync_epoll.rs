//! The `sync-epoll` baseline: vfio-ccw driven the straightforward way from one thread.
//!
//! For each I/O the VMM writes the 124 bytes of the I/O region, waits in epoll for the interrupt's
//! eventfd, reads that to clear it, and reads the 124 bytes back for the interruption-response block;
//! this is how QEMU drives vfio-ccw (`hw/vfio/ccw.c`). The device is as cheap as can be, so that only
//! the path is measured: the region is a memfd, and the "device" raises the interrupt with a write to
//! the eventfd from the same thread.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::retry_on_intr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Size of the I/O region (`struct ccw_io_region` in `include/uapi/linux/vfio_ccw.h`): ORB and SCSW of
/// 12 bytes each, IRB of 96, return code of 4.
pub const IO_REGION_BYTES: usize = 124;

/// Offset of the return code in the region.
const RETURN_CODE: usize = IO_REGION_BYTES - 4;

/// Subchannels, each with a region and an interrupt of its own, under one epoll.
#[derive(Debug)]
pub struct SyncEpoll {
    epoll: OwnedFd,
    subchannels: Vec<Subchannel>,
    next: usize,
}

#[derive(Debug)]
struct Subchannel {
    region: File,
    interrupt: OwnedFd,
}

impl SyncEpoll {
    /// `subchannels` subchannels; each takes two file descriptors.
    ///
    /// # Errors
    /// Where the kernel refuses a descriptor, or `subchannels` is 0.
    pub fn new(subchannels: usize) -> io::Result<Self> {
        if subchannels == 0 {
            let reason = "the baseline needs at least 1 subchannel, not 0";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let subchannels = (0..subchannels as u64)
            .map(|index| {
                let region = File::from(memfd_create("sync-epoll-region", MemfdFlags::CLOEXEC)?);
                region.set_len(IO_REGION_BYTES as u64)?;
                let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                epoll::add(&epoll, &interrupt, EventData::new_u64(index), EventFlags::IN)?;
                Ok(Subchannel { region, interrupt })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { epoll, subchannels, next: 0 })
    }

    /// Runs `ios` I/Os on the subchannels in turn and returns the time they took.
    ///
    /// # Errors
    /// Where a system call fails, or an interrupt or a region is not what was written.
    pub fn run(&mut self, ios: u64) -> io::Result<Duration> {
        let mut request = [0; IO_REGION_BYTES];
        let mut response = [0; IO_REGION_BYTES];
        let start = Instant::now();
        for io in 0..ios {
            request[RETURN_CODE..].copy_from_slice(&(io as u32).to_ne_bytes());
            self.start(&request)?;
            self.finish(&mut response)?;
            if response[RETURN_CODE..] != request[RETURN_CODE..] {
                return Err(io::Error::other(format!("I/O {io} read back another I/O's region")));
            }
            self.next = (self.next + 1) % self.subchannels.len();
        }
        Ok(start.elapsed())
    }

    /// Runs `ios` I/Os and returns the nanoseconds each took.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn ns_per_io(&mut self, ios: u64) -> io::Result<f64> {
        Ok(self.run(ios)?.as_nanos() as f64 / ios as f64)
    }

    /// The region write that starts the I/O, and the interrupt that its end raises.
    fn start(&self, request: &[u8; IO_REGION_BYTES]) -> io::Result<()> {
        let Subchannel { region, interrupt } = &self.subchannels[self.next];
        region.write_all_at(request, 0)?;
        rustix::io::write(interrupt, &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// Waits for an interrupt, clears it, and reads the region of the subchannel that raised it.
    fn finish(&self, response: &mut [u8; IO_REGION_BYTES]) -> io::Result<()> {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(u64::MAX) }];
        // A machine that was stopped and goes on interrupts it, without any signal handler.
        retry_on_intr(|| epoll::wait(&self.epoll, &mut events, None))?;
        let index = events[0].data.u64();
        let Some(Subchannel { region, interrupt }) = self.subchannels.get(index as usize) else {
            return Err(io::Error::other(format!(
                "an interrupt of subchannel {index}, which is not there"
            )));
        };
        let mut count = [0; 8];
        rustix::io::read(interrupt, &mut count)?;
        if u64::from_ne_bytes(count) != 1 {
            return Err(io::Error::other(format!(
                "subchannel {index} had another number of interrupts than 1"
            )));
        }
        region.read_exact_at(response, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_io_goes_round_and_the_subchannels_take_turns() {
        let mut baseline = SyncEpoll::new(3).unwrap();
        baseline.run(7).unwrap();
        // The last I/Os of subchannels 0, 1 and 2 were numbers 6, 4 and 5.
        let last = baseline.subchannels.iter().map(|subchannel| {
            let mut code = [0; 4];
            subchannel.region.read_exact_at(&mut code, RETURN_CODE as u64).unwrap();
            u32::from_ne_bytes(code)
        });
        assert_eq!(last.collect::<Vec<_>>(), [6, 4, 5]);
        assert_eq!(baseline.next, 1);
    }

    #[test]
    fn a_stray_interrupt_is_not_taken_for_an_answer() {
        let mut baseline = SyncEpoll::new(2).unwrap();
        rustix::io::write(&baseline.subchannels[0].interrupt, &1u64.to_ne_bytes()).unwrap();
        assert!(baseline.run(1).unwrap_err().to_string().contains("another number of interrupts"));
    }

    #[test]
    fn no_subchannels_are_refused() {
        assert_eq!(SyncEpoll::new(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_time_comes_out() {
        assert!(SyncEpoll::new(64).unwrap().ns_per_io(128).unwrap() > 0.0);
    }
}
