//! The `sync-epoll` baseline: vfio-ccw driven the straightforward way from one thread.
//!
//! For each I/O the VMM writes the 124 bytes of the I/O region, waits in epoll for the interrupt's
//! eventfd, reads that to clear it, and reads the 124 bytes back for the interruption-response block;
//! this is how QEMU drives vfio-ccw (`hw/vfio/ccw.c`). The device is as cheap as can be, so that only
//! the path is measured: the region is a memfd, and the "device" raises the interrupt with a write to
//! the eventfd from the same thread.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::retry_on_intr;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

pub use super::region::IO_REGION_BYTES;
use super::region::{RETURN_CODE, Region};

/// Subchannels, each with a region and an interrupt of its own, under one epoll.
#[derive(Debug)]
pub struct SyncEpoll {
    epoll: OwnedFd,
    subchannels: Vec<Region>,
    next: usize,
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
                let subchannel = Region::new()?;
                let data = EventData::new_u64(index);
                epoll::add(&epoll, &subchannel.interrupt, data, EventFlags::IN)?;
                Ok(subchannel)
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
            self.subchannels[self.next].start(&request)?;
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

    /// Waits for an interrupt, clears it, and reads the region of the subchannel that raised it.
    fn finish(&self, response: &mut [u8; IO_REGION_BYTES]) -> io::Result<()> {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(u64::MAX) }];
        // A machine that was stopped and goes on interrupts it, without any signal handler.
        retry_on_intr(|| epoll::wait(&self.epoll, &mut events, None))?;
        let index = events[0].data.u64();
        let Some(subchannel) = self.subchannels.get(index as usize) else {
            return Err(io::Error::other(format!(
                "an interrupt of subchannel {index}, which is not there"
            )));
        };
        subchannel.finish(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

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
