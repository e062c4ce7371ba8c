//! The memory of one file transfer: a list of iovecs over device-visible memory.

use std::sync::Arc;

use vfio_ccw_pinning::HostRange;

use crate::channel_subsystem::DmaSpace;

use super::{BLOCK, Volume};

/// Most pieces one transfer has (the kernel's UIO_MAXIOV is 1,024).
const MOST: usize = 512;

/// The pieces of memory that a transfer moves, in order. Owned by the device, lent to the transfer
/// while it runs: it keeps file and memory alive for as long as the kernel may use them.
#[derive(Debug)]
pub(crate) struct Spans {
    iovecs: Vec<libc::iovec>,
    /// Pieces before this one are done.
    first: usize,
    bytes: usize,
    zeros: Box<[u8; BLOCK as usize]>,
    volume: Arc<Volume>,
    memory: Arc<DmaSpace>,
}

// SAFETY: the pointers name memory that `memory` and `zeros` keep mapped, which any thread may
// access (`HostRange` is Send for the same reason). Test: `workers::tests::both_directions_move_data`.
unsafe impl Send for Spans {}

impl Spans {
    pub(crate) fn new(volume: Arc<Volume>, memory: Arc<DmaSpace>) -> Box<Self> {
        Box::new(Spans {
            iovecs: Vec::with_capacity(32),
            first: 0,
            bytes: 0,
            zeros: Box::new([0; BLOCK as usize]),
            volume,
            memory,
        })
    }

    /// The memory that the pieces to come are in.
    pub(crate) fn see(&mut self, memory: Arc<DmaSpace>) {
        // No piece of the old memory may outlive it.
        self.clear();
        self.memory = memory;
    }

    /// Forgets all pieces.
    pub(crate) fn clear(&mut self) {
        self.iovecs.clear();
        self.first = 0;
        self.bytes = 0;
    }

    /// Appends memory; a piece that continues the last one lengthens it.
    pub(crate) fn push(&mut self, range: HostRange) {
        self.bytes += range.len();
        if let Some(last) = self.iovecs.last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == range.as_ptr()
        {
            last.iov_len += range.len();
            return;
        }
        self.iovecs.push(libc::iovec { iov_base: range.as_ptr().cast(), iov_len: range.len() });
    }

    /// Appends up to a block of zeros, to be written.
    pub(crate) fn push_zeros(&mut self, len: usize) {
        let len = len.min(self.zeros.len());
        self.bytes += len;
        self.iovecs
            .push(libc::iovec { iov_base: self.zeros.as_ptr().cast_mut().cast(), iov_len: len });
    }

    /// Bytes still to move.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether another piece might exceed what one transfer can have. One place is kept for zeros.
    pub(crate) fn is_full(&self) -> bool {
        self.iovecs.len() >= MOST - 1
    }

    /// The pieces still to move, as the kernel wants them.
    pub(crate) fn remaining(&self) -> &[libc::iovec] {
        &self.iovecs[self.first..]
    }

    /// The file that they belong to.
    pub(crate) fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// The first `moved` bytes are done.
    pub(crate) fn advance(&mut self, mut moved: usize) {
        self.bytes -= moved.min(self.bytes);
        while let Some(piece) = self.iovecs.get_mut(self.first) {
            if moved < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(moved);
                piece.iov_len -= moved;
                return;
            }
            moved -= piece.iov_len;
            self.first += 1;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::channel_subsystem::Window;
    use vfio_ccw_pinning::GuestMap;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    /// Spans over a fresh volume of `blocks` blocks, and 64 KiB of guest memory for them.
    pub(crate) fn fixture(blocks: u64) -> (tempfile::NamedTempFile, Arc<GuestMap>, Box<Spans>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(blocks * BLOCK).unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let map = Arc::new(GuestMap::new(Arc::new(memory)).unwrap());
        let mut dma = DmaSpace::default();
        dma.map(Window::new(0, map.regions()[0].host(), map.clone())).unwrap();
        let volume = Arc::new(Volume::open(file.path(), false).unwrap());
        let spans = Spans::new(volume, Arc::new(dma));
        (file, map, spans)
    }

    #[test]
    fn pieces_merge_and_advance() {
        let (_file, map, mut spans) = fixture(1);
        let host = map.regions()[0].host();
        spans.push(host.part(0, 100).unwrap());
        spans.push(host.part(100, 100).unwrap());
        spans.push(host.part(300, 50).unwrap());
        spans.push_zeros(10_000);
        assert_eq!((spans.remaining().len(), spans.bytes()), (3, 250 + 512));
        spans.advance(220);
        assert_eq!((spans.remaining().len(), spans.bytes()), (2, 30 + 512));
        assert_eq!(spans.remaining()[0].iov_len, 30);
        spans.advance(542);
        assert!(spans.remaining().is_empty());
        spans.clear();
        assert_eq!(spans.bytes(), 0);
    }
}
