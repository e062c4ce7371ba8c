//! What a system must offer to be driven.

use crate::request::{Completion, Request};
use std::time::Duration;

/// A system under load: slots that carry one request each, over one volume and one guest memory.
///
/// One thread drives an engine. For vfio-ccw the slots are subchannels, the volume is the device's
/// data, and guest memory is that of the (real or pretended) VM.
pub trait Engine {
    /// How many slots there are; the same for the life of the engine.
    fn slots(&self) -> usize;

    /// Starts requests, at most one a slot, each on a slot that is free.
    ///
    /// A request that can not be started because of what it asks for ends in a [`Completion`] with a
    /// failure like any other.
    ///
    /// # Errors
    /// Only where the engine as a whole is of no use any more; this ends the job.
    fn submit(&mut self, requests: &[Request]) -> Result<(), EngineError>;

    /// Appends the completions there are to `done`. With none there, waits for the first for at most
    /// `wait`, and not at all with `None`. Returning without any is no error.
    ///
    /// # Errors
    /// Only where the engine as a whole is of no use any more; this ends the job.
    fn reap(
        &mut self,
        done: &mut Vec<Completion>,
        wait: Option<Duration>,
    ) -> Result<(), EngineError>;

    /// Copies `bytes` to guest memory at `gpa`.
    ///
    /// # Errors
    /// [`EngineError::Memory`] where the range is not all guest memory.
    fn write_guest(&self, gpa: u64, bytes: &[u8]) -> Result<(), EngineError>;

    /// Copies guest memory at `gpa` to `bytes`.
    ///
    /// # Errors
    /// [`EngineError::Memory`] where the range is not all guest memory.
    fn read_guest(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), EngineError>;
}

/// Why an engine is of no use any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Buffers lie where there is no guest memory.
    #[error(
        "guest memory has no {bytes} bytes at {gpa:#x}: {reason}; \
         give the guest more memory or move the buffers"
    )]
    Memory {
        /// Guest address.
        gpa: u64,
        /// Length in bytes.
        bytes: usize,
        /// What the memory map says.
        reason: String,
    },
    /// The system behind the engine ended or refuses all work.
    #[error("the engine takes no more work: {reason}")]
    Closed {
        /// What is known of the cause.
        reason: String,
    },
    /// A system call of the engine failed.
    #[error("the engine failed: {0}")]
    Io(#[from] std::io::Error),
}
