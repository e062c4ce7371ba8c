//! Self-check: is what the pool calls pinned still the page that it pinned?
//!
//! For tests. When a frame is pinned, the entries of `/proc/self/pagemap` for its pages are kept as
//! a digest; every hit reads them again, and a difference is a panic: somebody has unmapped, replaced
//! or discarded memory behind the pool's back. Other pin caches have found their worst bugs so.
//!
//! Page frame numbers show with CAP_SYS_ADMIN only; without it the check sees only whether pages are
//! there. A page that is merely resident may be moved by the kernel (compaction, NUMA balancing),
//! which looks the same as a replaced one: tests run on quiet memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromZeros, IntoBytes};

use crate::frame_table::FrameTable;

/// Bits of a pagemap entry that matter: the page frame number (0-54) and "present" (63). Soft-dirty
/// and "exclusive" change while a page stays.
const MATTERS: u64 = 1 << 63 | ((1 << 55) - 1);

/// Entries read at once.
const ENTRIES: usize = 512;

/// Digests of what stood behind frames when they were pinned.
#[derive(Debug)]
pub(crate) struct SelfCheck {
    pagemap: File,
    keeps_place: bool,
    digests: Box<[AtomicU64]>,
}

impl SelfCheck {
    /// For frame numbers below `frames`, and a pinner that keeps pages in their place or not.
    pub(crate) fn new(frames: u32, keeps_place: bool) -> io::Result<Self> {
        let digests = <[AtomicU64]>::new_box_zeroed_with_elems(frames as usize)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(SelfCheck { pagemap: File::open("/proc/self/pagemap")?, keeps_place, digests })
    }

    /// Remembers what stands behind frames that were just pinned.
    pub(crate) fn remember(&self, frames: &[u32], table: &FrameTable) {
        for frame in frames {
            let (_, digest) = self.digest(*frame, table);
            // Relaxed: the frame's state word is published after this, and taken before a check.
            self.digests[*frame as usize].store(digest, Ordering::Relaxed);
        }
    }

    /// Looks again at frames that are held.
    ///
    /// # Panics
    ///
    /// If something else stands behind one.
    pub(crate) fn check(&self, frames: &[u32], table: &FrameTable) {
        for frame in frames {
            let (address, now) = self.digest(*frame, table);
            // Relaxed: as above.
            let then = self.digests[*frame as usize].load(Ordering::Relaxed);
            assert!(
                now == then,
                "self-check: frame {frame} at guest address {address:#x} was pinned as host page {then:#x} \
                 but now {now:#x} stands there: its memory was replaced or discarded while it was pinned{}",
                if self.keeps_place {
                    ""
                } else {
                    ", or moved by the kernel, which this pinner allows"
                }
            );
        }
    }

    /// Guest address of a frame and the digest of its pages: the entry itself where it has one page.
    fn digest(&self, frame: u32, table: &FrameTable) -> (u64, u64) {
        let mut digest = 0u64;
        let mut address = 0;
        for run in &table.runs(&[frame], false) {
            address = run.address;
            let page = run.host.as_ptr().addr() as u64 >> crate::FRAME_SHIFT;
            let pages = run.host.len() as u64 >> crate::FRAME_SHIFT;
            let mut entries = [0u64; ENTRIES];
            let mut done = 0;
            while done < pages {
                let count = ENTRIES.min((pages - done) as usize);
                let bytes = entries[..count].as_mut_bytes();
                if let Err(error) = self.pagemap.read_exact_at(bytes, (page + done) * 8) {
                    panic!("self-check: /proc/self/pagemap cannot be read: {error}");
                }
                for entry in &entries[..count] {
                    digest = digest.rotate_left(7) ^ (entry & MATTERS);
                }
                done += count as u64;
            }
        }
        (address, digest)
    }
}
