//! FBA disks with known contents, and the parameters of their commands.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use tempfile::NamedTempFile;
use vfio_ccw::DeviceSpec;
use vfio_ccw::architecture::{Ccw, CcwFlags, command};
use vfio_ccw::volume::{BLOCK, Volume};

use super::Bench;

/// LOCATE operation: read.
pub const READ: u8 = 0x06;
/// LOCATE operation: write.
pub const WRITE: u8 = 0x01;
/// LOCATE operation: write and verify, which is what Linux writes with.
pub const WRITE_VERIFY: u8 = 0x05;

/// DEFINE EXTENT mask that allows writes.
pub const MAY_WRITE: u8 = 0x00;
/// DEFINE EXTENT mask that inhibits writes.
pub const ONLY_READ: u8 = 0x40;

/// A scratch image in which every block names itself.
#[derive(Debug)]
pub struct Image {
    file: NamedTempFile,
}

impl Image {
    /// An image of `blocks` blocks, block `n` with the contents [`block`]`(n)`.
    pub fn new(blocks: u32) -> Self {
        let mut file = NamedTempFile::new().expect("room for a scratch image");
        let contents: Vec<u8> = (0..blocks).flat_map(block).collect();
        file.write_all(&contents).expect("room for a scratch image");
        Image { file }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Opens it as a volume.
    pub fn volume(&self, read_only: bool) -> Arc<Volume> {
        Arc::new(Volume::open(self.path(), read_only).expect("a whole number of blocks"))
    }

    /// A writable disk on it.
    pub fn disk(&self) -> DeviceSpec {
        DeviceSpec::Fba(self.volume(false))
    }

    /// `count` blocks from `first` as they are in the file now.
    pub fn blocks(&self, first: u32, count: u32) -> Vec<u8> {
        let bytes = std::fs::read(self.path()).expect("the image can be read");
        let start = (u64::from(first) * BLOCK) as usize;
        bytes[start..start + (u64::from(count) * BLOCK) as usize].to_vec()
    }

    /// Makes the file shorter under the volume's feet.
    pub fn truncate(&self, blocks: u32) {
        self.file.as_file().set_len(u64::from(blocks) * BLOCK).expect("truncate");
    }
}

/// What block `number` of a fresh [`Image`] holds: its number and the position in it, again and again.
pub fn block(number: u32) -> [u8; BLOCK as usize] {
    let mut bytes = [0; BLOCK as usize];
    for (position, word) in bytes.chunks_exact_mut(4).enumerate() {
        word.copy_from_slice(&(number << 8 | position as u32).to_be_bytes());
    }
    bytes
}

/// `count` blocks of a fresh [`Image`].
pub fn blocks(first: u32, count: u32) -> Vec<u8> {
    (first..first + count).flat_map(block).collect()
}

/// Parameters of DEFINE EXTENT: logical blocks `first..=last` stand at physical block `at`.
pub fn extent(mask: u8, at: u32, first: u32, last: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = mask;
    bytes[2..4].copy_from_slice(&(BLOCK as u16).to_be_bytes());
    bytes[4..8].copy_from_slice(&at.to_be_bytes());
    bytes[8..12].copy_from_slice(&first.to_be_bytes());
    bytes[12..].copy_from_slice(&last.to_be_bytes());
    bytes
}

/// Parameters of LOCATE: `count` logical blocks from `first`.
pub fn locate(operation: u8, count: u16, first: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[0] = operation;
    bytes[2..4].copy_from_slice(&count.to_be_bytes());
    bytes[4..].copy_from_slice(&first.to_be_bytes());
    bytes
}

/// Offset of the first CCW in what [`put_transfer`] writes.
pub const CCWS: u32 = 0x20;

/// Writes parameters to `area`, and to `area + CCWS` a program that moves `blocks` blocks from
/// `first` between the disk and guest address `buffer`, with one direct READ or WRITE.
pub fn put_transfer(bench: &Bench, area: u32, code: u8, first: u32, blocks: u16, buffer: u32) {
    let (mask, operation) = match code {
        command::FBA_READ => (ONLY_READ, READ),
        _ => (MAY_WRITE, WRITE_VERIFY),
    };
    bench.put(area.into(), &extent(mask, first, 0, u32::from(blocks) - 1));
    bench.put(u64::from(area) + 16, &locate(operation, blocks, 0));
    let chain = CcwFlags::CHAIN_COMMAND;
    bench.put_program(
        area + CCWS,
        &[
            Ccw::new(command::DEFINE_EXTENT, area, 16).with(chain),
            Ccw::new(command::FBA_LOCATE, area + 16, 8).with(chain),
            Ccw::new(code, buffer, blocks * BLOCK as u16),
        ],
    );
}
