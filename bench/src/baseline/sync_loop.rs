//! Synchronous users of vfio-ccw, as engines of the load generator: one thread starts I/Os by writing regions, and
//! waits for the eventfds of their interrupts.
//!
//! | baseline | waits by | before each start |
//! |---|---|---|
//! | `sync-epoll` | epoll | nothing: the least that can be done from user space |
//! | `per-request-pin` | epoll | reads, checks and translates the program, and pins its pages; unpins them behind it |
//! | `qemu-shape` | one ppoll over all devices, as QEMU's main loop | the same: there the kernel does it, in the region write |
//!
//! The device behind them costs nothing (`region.rs`), and no data is moved. Programs are translated by this
//! project's own code, and pages are pinned by its pool in mode on-demand, so that only the way differs.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use vfio_ccw::SHADOW_IOVA;
use vfio_ccw::architecture::Orb;
use vfio_ccw::backend::IoRegion;
use vfio_ccw::translation::{Program, Rules};
use vfio_ccw_load::{Completion, Engine, EngineError, Request};
use vfio_ccw_pinning::{GuestMap, Hold, Mode, Pool, Resident};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use zerocopy::IntoBytes;

use super::region::{IO_REGION_BYTES, Region};
use crate::ratio::FieldError;

/// Bytes that one shadow program may take.
const SHADOW: u64 = 16 << 10;

/// Interrupts that one wait can tell of.
const EVENTS: usize = 256;

/// How the thread waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// An epoll that knows all interrupts.
    Epoll,
    /// One ppoll with all interrupts in its list, each time.
    Ppoll,
}

/// Subchannels with one program each, on one thread.
#[derive(Debug)]
pub struct SyncLoop {
    memory: Arc<GuestMap>,
    subchannels: Vec<Region>,
    orbs: Vec<Orb>,
    /// An epoll, unless it is ppoll that waits.
    epoll: Option<OwnedFd>,
    pinning: Option<Pinning>,
    ready: Vec<usize>,
}

/// What is done to a program before it starts.
struct Pinning {
    pool: Pool,
    rules: Rules,
    program: Program,
    /// One a slot.
    holds: Vec<Hold>,
    shadow: GuestMap,
}

impl std::fmt::Debug for Pinning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinning").field("holds", &self.holds.len()).finish_non_exhaustive()
    }
}

impl SyncLoop {
    /// One that starts the programs of `orbs`, which stand in `memory`, each on a subchannel of its own.
    ///
    /// # Errors
    /// Where the kernel refuses a descriptor.
    pub fn new(memory: Arc<GuestMap>, orbs: Vec<Orb>, waiting: Waiting) -> io::Result<Self> {
        let regions = orbs.iter().map(|_| Region::new());
        let subchannels = regions.collect::<io::Result<Vec<_>>>().map_err(|error| {
            let reason = format!("{error}; each of {} subchannels takes two descriptors: raise the limit with 'ulimit -n'", orbs.len());
            io::Error::new(error.kind(), reason)
        })?;
        let epoll = match waiting {
            Waiting::Ppoll => None,
            Waiting::Epoll => {
                let epoll = epoll::create(CreateFlags::CLOEXEC)?;
                for (index, subchannel) in (0..).zip(&subchannels) {
                    let data = EventData::new_u64(index);
                    epoll::add(&epoll, &subchannel.interrupt, data, EventFlags::IN)?;
                }
                Some(epoll)
            }
        };
        Ok(Self { memory, subchannels, orbs, epoll, pinning: None, ready: Vec::new() })
    }

    /// The same, and each start translates its program and pins its pages, of which at most `budget` bytes are
    /// pinned at a time.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn pinning(self, budget: u64) -> Result<Self, FieldError> {
        let bytes = usize::try_from(self.orbs.len() as u64 * SHADOW)?;
        let shadow = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), bytes)])?;
        let pinning = Pinning {
            pool: Pool::new(self.memory.clone(), Box::new(Resident), budget)?,
            rules: Rules::default(),
            program: Program::default(),
            holds: self.orbs.iter().map(|_| Hold::default()).collect(),
            shadow: GuestMap::new(Arc::new(shadow))?,
        };
        Ok(Self { pinning: Some(pinning), ..self })
    }

    fn start(&mut self, slot: usize) -> Result<(), EngineError> {
        let orb = match &mut self.pinning {
            Some(pinning) => pinning.prepare(slot, &self.orbs[slot], &self.memory)?,
            None => self.orbs[slot],
        };
        let region = IoRegion::start(orb);
        let mut request = [0; IO_REGION_BYTES];
        request.copy_from_slice(region.as_bytes());
        Ok(self.subchannels[slot].start(&request)?)
    }

    /// Notes whose interrupts there are, after `wait` at the latest.
    fn wait(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let wait = wait.unwrap_or_default();
        let limit = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        self.ready.clear();
        match &self.epoll {
            Some(epoll) => {
                let none = Event { flags: EventFlags::empty(), data: EventData::new_u64(u64::MAX) };
                let mut events = [none; EVENTS];
                let count = match epoll::wait(epoll, &mut events, Some(&limit)) {
                    // The machine was stopped and goes on.
                    Err(Errno::INTR) => 0,
                    count => count?,
                };
                self.ready.extend(events[..count].iter().map(|event| event.data.u64() as usize));
            }
            None => {
                let mut fds: Vec<PollFd<'_>> = (self.subchannels.iter())
                    .map(|subchannel| PollFd::new(&subchannel.interrupt, PollFlags::IN))
                    .collect();
                retry_on_intr(|| poll(&mut fds, Some(&limit)))?;
                let ready = fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty());
                self.ready.extend(ready.map(|(slot, _)| slot));
            }
        }
        Ok(())
    }
}

impl Pinning {
    fn prepare(&mut self, slot: usize, orb: &Orb, memory: &GuestMap) -> Result<Orb, EngineError> {
        let closed = |reason: String| EngineError::Closed { reason };
        let hold = &mut self.holds[slot];
        self.program.fetch(orb, memory, &self.rules, hold);
        self.pool.hold_blocking(hold).map_err(|error| closed(error.to_string()))?;
        let at = slot as u64 * SHADOW;
        let host = self.shadow.regions()[0].host().part(at as usize, SHADOW as usize);
        // The next line cannot exceed 31 bits: guest programs do not.
        let iova = SHADOW_IOVA as u32 + at as u32;
        host.and_then(|host| self.program.emit(host, iova))
            .ok_or_else(|| closed(format!("a shadow of more than {SHADOW} bytes")))
    }
}

impl Engine for SyncLoop {
    fn slots(&self) -> usize {
        self.orbs.len()
    }

    fn submit(&mut self, requests: &[Request]) -> Result<(), EngineError> {
        requests.iter().try_for_each(|request| self.start(request.slot))
    }

    fn reap(
        &mut self,
        done: &mut Vec<Completion>,
        wait: Option<Duration>,
    ) -> Result<(), EngineError> {
        self.wait(wait)?;
        let mut response = [0; IO_REGION_BYTES];
        for &slot in &self.ready {
            self.subchannels[slot].finish(&mut response)?;
            if let Some(pinning) = &mut self.pinning {
                pinning.pool.release(&mut pinning.holds[slot], Mode::OnDemand);
            }
            done.push(Completion { slot, outcome: Ok(()) });
        }
        Ok(())
    }

    fn write_guest(&self, gpa: u64, bytes: &[u8]) -> Result<(), EngineError> {
        if self.memory.write(gpa, bytes) { Ok(()) } else { Err(nowhere(gpa, bytes.len())) }
    }

    fn read_guest(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), EngineError> {
        if self.memory.read(gpa, bytes) { Ok(()) } else { Err(nowhere(gpa, bytes.len())) }
    }
}

/// There is no memory.
pub(super) fn nowhere(gpa: u64, bytes: usize) -> EngineError {
    EngineError::Memory { gpa, bytes, reason: "the guest's regions do not reach there".into() }
}
