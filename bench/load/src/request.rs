//! What goes into a slot and what comes out of it.

use crate::failure::Failure;

/// Which way the data of a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the volume to guest memory.
    Read,
    /// From guest memory to the volume.
    Write,
}

/// One transfer for one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The slot that carries it, below [`Engine::slots`](crate::Engine::slots).
    pub slot: usize,
    /// Which way the data goes.
    pub direction: Direction,
    /// Where on the volume it begins, in bytes; a multiple of 512.
    pub offset: u64,
    /// How much is transferred, in bytes; a multiple of 512, never 0.
    pub bytes: u32,
    /// Guest address of the data; aligned to 4 KiB.
    pub buffer: u64,
}

/// The end of the request that a slot carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The slot that is free again.
    pub slot: usize,
    /// Whether all bytes were transferred.
    pub outcome: Result<(), Failure>,
}
