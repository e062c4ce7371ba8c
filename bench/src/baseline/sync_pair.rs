//! The `sync-epoll` baseline across two threads: one I/O at a time goes from a vCPU's thread to a
//! device's and back, and both sleep in epoll meanwhile.
//!
//! The vCPU's side is that of [`SyncEpoll`](super::sync_epoll::SyncEpoll). The device's is as short as
//! can be: it waits in epoll for a kick, clears it, and raises the interrupt.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::retry_on_intr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::sync_epoll::IO_REGION_BYTES;

/// A device on a thread of its own, and the region and eventfds between it and this one.
#[derive(Debug)]
pub struct SyncPair {
    region: File,
    kick: Arc<OwnedFd>,
    interrupt: Bell,
    ending: Arc<AtomicBool>,
    device: Option<JoinHandle<io::Result<()>>>,
}

/// An eventfd, and an epoll that waits for it.
#[derive(Debug)]
struct Bell {
    event: Arc<OwnedFd>,
    epoll: OwnedFd,
}

impl Bell {
    fn new() -> io::Result<Self> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*event, EventData::new_u64(0), EventFlags::IN)?;
        Ok(Bell { event, epoll })
    }

    fn wait(&self) -> io::Result<()> {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }];
        // A machine that was stopped and goes on interrupts it, without any signal handler.
        retry_on_intr(|| epoll::wait(&self.epoll, &mut events, None))?;
        let mut count = [0; 8];
        rustix::io::read(&*self.event, &mut count)?;
        Ok(())
    }
}

fn ring(event: &OwnedFd) -> io::Result<()> {
    rustix::io::write(event, &1u64.to_ne_bytes())?;
    Ok(())
}

impl SyncPair {
    /// Starts the device.
    ///
    /// # Errors
    /// Where the kernel refuses a descriptor or a thread.
    pub fn new() -> io::Result<Self> {
        let region = File::from(memfd_create("sync-pair-region", MemfdFlags::CLOEXEC)?);
        region.set_len(IO_REGION_BYTES as u64)?;
        let (kick, interrupt) = (Bell::new()?, Bell::new()?);
        let ending = Arc::new(AtomicBool::new(false));
        let (kicked, raised) = (kick.event.clone(), interrupt.event.clone());
        let device = std::thread::Builder::new().name("sync-device".into()).spawn({
            let ending = ending.clone();
            move || {
                loop {
                    kick.wait()?;
                    // Acquire: pairs with the Release in `drop`.
                    if ending.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    ring(&raised)?;
                }
            }
        })?;
        Ok(Self { region, kick: kicked, interrupt, ending, device: Some(device) })
    }

    /// Runs one I/O after the other and returns how long each took, in order.
    ///
    /// # Errors
    /// Where a system call fails.
    pub fn round_trips(&mut self, count: usize) -> io::Result<Vec<Duration>> {
        let mut region = [0; IO_REGION_BYTES];
        (0..count)
            .map(|_| {
                let start = Instant::now();
                self.region.write_all_at(&region, 0)?;
                ring(&self.kick)?;
                self.interrupt.wait()?;
                self.region.read_exact_at(&mut region, 0)?;
                Ok(start.elapsed())
            })
            .collect()
    }
}

impl Drop for SyncPair {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in the device's thread.
        self.ending.store(true, Ordering::Release);
        let rung = ring(&self.kick);
        if let Some(device) = self.device.take()
            && rung.is_ok()
        {
            // An error of its own would have shown as an I/O that never ends.
            drop(device.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_io_goes_there_and_back() {
        let mut pair = SyncPair::new().unwrap();
        assert_eq!(pair.round_trips(50).unwrap().len(), 50);
    }
}
