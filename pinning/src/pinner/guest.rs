//! A small guest whose frames the tests of pinners pin.

use std::fs::File;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::{FRAME, GuestMap, Run};

/// Guest address of the first frame.
pub(super) const START: u64 = 0x10_0000;
/// Where in its file the guest's memory begins.
pub(super) const FILE_START: u64 = 3 * FRAME;

/// One region of 4 KiB frames.
#[derive(Debug)]
pub(super) struct Guest(Arc<GuestMap>);

impl Guest {
    /// In memory that no file backs.
    pub(super) fn new(frames: u32) -> Self {
        Guest::backed(frames, None)
    }

    /// In a file that a device in another process can map too.
    pub(super) fn in_file(frames: u32) -> Self {
        let name = "guest of a test";
        let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(FILE_START + u64::from(frames) * FRAME).unwrap();
        Guest::backed(frames, Some(FileOffset::new(file, FILE_START)))
    }

    fn backed(frames: u32, file: Option<FileOffset>) -> Self {
        let region = (GuestAddress(START), frames as usize * FRAME as usize, file);
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([region]).unwrap();
        Guest(Arc::new(GuestMap::new(Arc::new(memory)).unwrap()))
    }

    pub(super) fn map(&self) -> Arc<GuestMap> {
        self.0.clone()
    }

    /// Frames `first..first + frames`, counted from the start of memory, as one run.
    pub(super) fn run(&self, first: u32, frames: u32) -> Run<'_> {
        let region = &self.0.regions()[0];
        let (offset, len) = (u64::from(first) * FRAME, u64::from(frames) * FRAME);
        let host = region.host().part(offset as usize, len as usize).unwrap();
        let frame = region.first_frame() + first;
        Run { address: region.start() + offset, host, frame, frames, region }
    }

    /// A run for each (first, frames).
    pub(super) fn runs(&self, spans: &[(u32, u32)]) -> Vec<Run<'_>> {
        spans.iter().map(|&(first, frames)| self.run(first, frames)).collect()
    }
}
