//! Disks: one FBA disk a slot, one channel program a request.
//!
//! It does what a guest's driver does: writes DEFINE EXTENT, LOCATE and READ or WRITE with their
//! IDALs into guest memory, submits, and looks at the status. Linux's `dasd_fba` sends the same
//! commands.

use std::sync::Arc;
use std::time::Duration;

use vfio_ccw_load::{Completion, Direction, Engine, EngineError, Request};

use super::ports::{EngineSetupError, Ports};
use crate::architecture::{Ccw, CcwFlags, Orb, command};
use crate::service::{DeviceSpec, Service};
use crate::volume::{BLOCK, Volume};

/// Guest address of the first slot's program area.
const PROGRAMS: u64 = 0x1_0000;

/// Bytes of guest memory that a slot's program takes.
const PROGRAM_BYTES: u64 = 4096;

/// Most bytes that one request moves.
pub const MAX_TRANSFER: u32 = 1 << 20;

/// Bytes of one CCW of a data chain: eight pages, and well below the 65,535 that a count can say.
const CCW_BYTES: u32 = 32 << 10;

/// Where things stand in a program area.
mod at {
    pub(super) const EXTENT: u64 = 0x000;
    pub(super) const LOCATE: u64 = 0x010;
    pub(super) const CCWS: u64 = 0x020;
    pub(super) const IDAL: u64 = 0x200;
    pub(super) const CHARACTERISTICS: u64 = 0xc00;
}

/// Disks on one volume, one a slot.
#[derive(Debug)]
pub struct DiskEngine {
    ports: Ports,
}

impl DiskEngine {
    /// Attaches `slots` disks on `volume` to `service`.
    ///
    /// # Errors
    ///
    /// The service is full, or no eventfd is left.
    pub fn attach(
        service: &Service,
        volume: &Arc<Volume>,
        slots: usize,
    ) -> Result<Self, EngineSetupError> {
        DiskEngine::over(service, (0..slots).map(|_| DeviceSpec::Fba(volume.clone())))
    }

    /// Attaches these disks, which are all on one volume, to `service`.
    ///
    /// # Errors
    ///
    /// As [`DiskEngine::attach`].
    pub fn over(
        service: &Service,
        disks: impl ExactSizeIterator<Item = DeviceSpec>,
    ) -> Result<Self, EngineSetupError> {
        Ok(DiskEngine { ports: Ports::attach(service, disks)? })
    }

    /// Asks the disk of `slot`, which does nothing else, how many blocks it has.
    ///
    /// # Errors
    ///
    /// It does not say, or not within `patience`.
    pub fn blocks(&mut self, slot: usize, patience: Duration) -> Result<u32, EngineError> {
        let area = PROGRAMS + slot as u64 * PROGRAM_BYTES;
        let data = area + at::CHARACTERISTICS;
        let ccw = Ccw::new(command::READ_DEVICE_CHARACTERISTICS, data as u32, 32);
        self.put(area + at::CCWS, &ccw.to_format_1())?;
        let orb = Orb::new((area + at::CCWS) as u32);
        let closed = |reason: &str| EngineError::Closed { reason: reason.to_owned() };
        self.ports.start(slot, &orb);
        let mut done = Vec::new();
        self.reap(&mut done, Some(patience))?;
        match done.pop() {
            None => return Err(closed("the disk does not answer")),
            Some(Completion { outcome: Err(failure), .. }) => {
                let failure = format!("the disk does not say how large it is: {failure}");
                return Err(closed(&failure));
            }
            Some(Completion { outcome: Ok(()), .. }) => {}
        }
        let mut characteristics = [0; 32];
        self.read_guest(data, &mut characteristics)?;
        let word = |at: usize| characteristics[at..at + 4].try_into().map(u32::from_be_bytes);
        match (u16::from_be_bytes([characteristics[4], characteristics[5]]), word(14)) {
            (block, Ok(blocks)) if u64::from(block) == BLOCK && blocks > 0 => Ok(blocks),
            (block, _) => {
                Err(closed(&format!("no FBA disk with blocks of {BLOCK} bytes, but {block}")))
            }
        }
    }

    /// First guest address behind the program areas of `slots` slots: buffers may start there.
    pub fn buffers_base(slots: usize) -> u64 {
        PROGRAMS + slots as u64 * PROGRAM_BYTES
    }

    fn put(&self, gpa: u64, bytes: &[u8]) -> Result<(), EngineError> {
        self.ports.write_guest(gpa, bytes)
    }

    /// Writes the program of `request` and returns the ORB that starts it.
    fn write_program(&self, request: &Request) -> Result<Orb, EngineError> {
        let area = PROGRAMS + request.slot as u64 * PROGRAM_BYTES;
        let first = (request.offset / BLOCK) as u32;
        let blocks = request.bytes.div_ceil(BLOCK as u32);
        let (mask, operation, code) = match request.direction {
            Direction::Read => (0x40, 0x06, command::FBA_READ),
            Direction::Write => (0x00, 0x01, command::FBA_WRITE),
        };
        let mut parameters = [0; 24];
        let (extent, locate) = parameters.split_at_mut(at::LOCATE as usize);
        extent[0] = mask;
        extent[2..4].copy_from_slice(&(BLOCK as u16).to_be_bytes());
        extent[4..8].copy_from_slice(&first.to_be_bytes());
        extent[12..16].copy_from_slice(&(blocks - 1).to_be_bytes());
        locate[0] = operation;
        locate[2..4].copy_from_slice(&(blocks as u16).to_be_bytes());
        self.put(area + at::EXTENT, &parameters)?;

        let chain = CcwFlags::CHAIN_COMMAND;
        let address = |offset: u64| (area + offset) as u32;
        self.put(
            area + at::CCWS,
            &Ccw::new(command::DEFINE_EXTENT, address(at::EXTENT), 16).with(chain).to_format_1(),
        )?;
        self.put(
            area + at::CCWS + 8,
            &Ccw::new(command::FBA_LOCATE, address(at::LOCATE), 8).with(chain).to_format_1(),
        )?;
        self.write_data_chain(request, area, code)?;
        Ok(Orb::new(address(at::CCWS)))
    }

    /// READ or WRITE with IDALs, data-chained where one CCW does not reach.
    fn write_data_chain(&self, request: &Request, area: u64, code: u8) -> Result<(), EngineError> {
        let (mut ccw_at, mut idal_at) = (area + at::CCWS + 16, area + at::IDAL);
        let mut done = 0;
        while done < request.bytes {
            let now = CCW_BYTES.min(request.bytes - done);
            let mut ccw = Ccw::new(code, idal_at as u32, now as u16).with(CcwFlags::INDIRECT);
            if done + now < request.bytes {
                ccw = ccw.with(CcwFlags::CHAIN_DATA);
            }
            self.put(ccw_at, &ccw.to_format_1())?;
            ccw_at += 8;
            for page in (0..now).step_by(4096) {
                self.put(idal_at, &(request.buffer + u64::from(done + page)).to_be_bytes())?;
                idal_at += 8;
            }
            done += now;
        }
        Ok(())
    }
}

impl Engine for DiskEngine {
    fn slots(&self) -> usize {
        self.ports.slots()
    }

    fn submit(&mut self, requests: &[Request]) -> Result<(), EngineError> {
        for request in requests {
            if request.bytes > MAX_TRANSFER || request.bytes == 0 {
                let reason = format!(
                    "a transfer of {} bytes: between 1 and {MAX_TRANSFER} are possible",
                    request.bytes
                );
                return Err(EngineError::Closed { reason });
            }
            let orb = self.write_program(request)?;
            self.ports.start(request.slot, &orb);
        }
        Ok(())
    }

    fn reap(
        &mut self,
        done: &mut Vec<Completion>,
        wait: Option<Duration>,
    ) -> Result<(), EngineError> {
        self.ports.reap(done, wait)
    }

    fn write_guest(&self, gpa: u64, bytes: &[u8]) -> Result<(), EngineError> {
        self.put(gpa, bytes)
    }

    fn read_guest(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), EngineError> {
        self.ports.read_guest(gpa, bytes)
    }
}
