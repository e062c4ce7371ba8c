//! What engines have in common: subchannels, and the ring that brings what became of their programs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vfio_ccw_load::{self as load, EngineError, Failure};
use vfio_ccw_pinning::GuestMap;

use crate::architecture::{IrbHead, Orb};
use crate::service::{AttachError, Completions, DeviceSpec, Service};
use crate::subchannel::Subchannel;

/// Why an engine cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineSetupError {
    /// The service takes no more devices.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// No eventfd for the completion ring.
    #[error(
        "no eventfd for the completion ring: {0}; raise the limit of open files with 'ulimit -n'"
    )]
    Ring(#[from] io::Error),
}

/// Subchannels by slot, with one ring of completions.
#[derive(Debug)]
pub(super) struct Ports {
    memory: Arc<GuestMap>,
    subchannels: Vec<Subchannel>,
    completions: Completions,
    /// Starts that were refused, and not yet told.
    refused: Vec<load::Completion>,
}

impl Ports {
    pub(super) fn attach(
        service: &Service,
        devices: impl ExactSizeIterator<Item = DeviceSpec>,
    ) -> Result<Self, EngineSetupError> {
        let slots = devices.len();
        let (delivery, completions) = Completions::ring(slots.next_power_of_two())?;
        let attach = |device| service.attach(device, delivery.clone());
        Ok(Ports {
            memory: service.memory(),
            subchannels: devices.map(attach).collect::<Result<_, _>>()?,
            completions,
            refused: Vec::with_capacity(slots),
        })
    }

    pub(super) fn slots(&self) -> usize {
        self.subchannels.len()
    }

    /// Starts `orb` on `slot`. Where it is refused, the next completions tell.
    pub(super) fn start(&mut self, slot: usize, orb: &Orb) {
        if self.subchannels[slot].submit(orb, slot as u64).is_err() {
            let outcome = Err(Failure::Refused { condition_code: 3 });
            self.refused.push(load::Completion { slot, outcome });
        }
    }

    /// As [`Engine::reap`](load::Engine::reap).
    pub(super) fn reap(
        &mut self,
        done: &mut Vec<load::Completion>,
        wait: Option<Duration>,
    ) -> Result<(), EngineError> {
        let before = done.len();
        done.append(&mut self.refused);
        let take = |completions: &mut Completions, done: &mut Vec<load::Completion>| {
            completions.reap(usize::MAX, |completion| {
                done.push(load::Completion {
                    slot: completion.user_data as usize,
                    outcome: outcome(&completion.irb),
                });
            });
        };
        take(&mut self.completions, done);
        if let Some(wait) = wait
            && done.len() == before
        {
            self.completions.wait(Some(wait)).map_err(EngineError::Io)?;
            take(&mut self.completions, done);
        }
        Ok(())
    }

    /// As [`Engine::write_guest`](load::Engine::write_guest).
    pub(super) fn write_guest(&self, gpa: u64, bytes: &[u8]) -> Result<(), EngineError> {
        if self.memory.write(gpa, bytes) { Ok(()) } else { Err(nowhere(gpa, bytes.len())) }
    }

    /// As [`Engine::read_guest`](load::Engine::read_guest).
    pub(super) fn read_guest(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), EngineError> {
        if self.memory.read(gpa, bytes) { Ok(()) } else { Err(nowhere(gpa, bytes.len())) }
    }
}

fn nowhere(gpa: u64, bytes: usize) -> EngineError {
    let reason = "the guest's regions do not reach there".into();
    EngineError::Memory { gpa, bytes, reason }
}

fn outcome(irb: &IrbHead) -> Result<(), Failure> {
    let scsw = &irb.scsw;
    if scsw.is_clean_end() {
        return match scsw.count() {
            0 => Ok(()),
            residual => Err(Failure::Short { residual: residual.into() }),
        };
    }
    match scsw.deferred_cc() {
        0 => Err(Failure::Status {
            device: scsw.device_status().bits(),
            subchannel: scsw.subchannel_status().bits(),
            sense: irb.sense().first().copied().unwrap_or(0),
        }),
        condition_code => Err(Failure::Deferred { condition_code }),
    }
}
