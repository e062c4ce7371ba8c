//! Image files that device models keep their data in, and the two ways to do I/O on them without
//! blocking a shard.
//!
//! [`Volume`] is the file; `Spans` says which memory a transfer moves; `FileIo` moves it: through
//! the shard's tokio-uring ring where there is one, else with a non-blocking attempt on the shard
//! and a small pool of threads for what would block. Where frames are pinned by registration, a
//! transfer that lies in one of them goes through `Fixed`, a ring that knows them.

mod file_io;
mod fixed;
mod spans;
mod uring;
mod workers;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

pub(crate) use file_io::FileIo;
pub(crate) use fixed::Fixed;
pub(crate) use spans::Spans;
pub(crate) use workers::Workers;

/// Bytes in a block of a volume; the size Linux's dasd_fba works with.
pub const BLOCK: u64 = 512;

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// File to memory.
    Read,
    /// Memory to file.
    Write,
}

/// Why an image file cannot be a volume.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// It cannot be opened.
    #[error("image {}: {source}{}", .path.display(), open_remedy(.source))]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is neither a regular file nor a block device.
    #[error("image {}: not a regular file or block device", .path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Its size is not a whole number of blocks.
    #[error(
        "image {}: {bytes} bytes is not a multiple of the block size {BLOCK}: pad it with 'truncate -s {} {}'",
        .path.display(), .bytes.next_multiple_of(BLOCK), .path.display()
    )]
    Ragged {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
    },
    /// It has no blocks.
    #[error("image {}: empty: make it with 'truncate -s 64M {}'", .path.display(), .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It has more blocks than block numbers.
    #[error("image {}: {bytes} bytes is more than the {} that 32-bit block numbers reach", .path.display(), u64::from(u32::MAX) * BLOCK)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
    },
}

fn open_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => " (check the path, or make it with 'truncate -s 64M FILE')",
        io::ErrorKind::PermissionDenied => " (check its permissions, or open it read-only)",
        io::ErrorKind::ReadOnlyFilesystem => " (open it read-only)",
        _ => "",
    }
}

/// A raw image file, in blocks of 512 bytes. Shared by every subchannel that serves it.
#[derive(Debug)]
pub struct Volume {
    file: File,
    path: PathBuf,
    blocks: u32,
    read_only: bool,
}

impl Volume {
    /// Opens an image file or block device.
    ///
    /// # Errors
    ///
    /// See [`VolumeError`]; each names the file, what is wrong and what to do.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, VolumeError> {
        let open_error = |source| VolumeError::Open { path: path.to_owned(), source };
        let file =
            OpenOptions::new().read(true).write(!read_only).open(path).map_err(open_error)?;
        let kind = file.metadata().map_err(open_error)?.file_type();
        let bytes = if kind.is_file() {
            file.metadata().map_err(open_error)?.len()
        } else if kind.is_block_device() {
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
                .map_err(|errno| open_error(errno.into()))?
        } else {
            return Err(VolumeError::NotAFile { path: path.to_owned() });
        };
        if bytes == 0 {
            return Err(VolumeError::Empty { path: path.to_owned() });
        }
        if !bytes.is_multiple_of(BLOCK) {
            return Err(VolumeError::Ragged { path: path.to_owned(), bytes });
        }
        let blocks = u32::try_from(bytes / BLOCK)
            .map_err(|_| VolumeError::TooLarge { path: path.to_owned(), bytes })?;
        Ok(Volume { file, path: path.to_owned(), blocks, read_only })
    }

    /// Blocks of 512 bytes.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The file's path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until everything written is on the medium. Blocks: for the end of a job, not a shard.
    ///
    /// # Errors
    ///
    /// What the system says, such as a delayed write that failed.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl AsRawFd for Volume {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_volume_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let text = |result: Result<Volume, VolumeError>| result.unwrap_err().to_string();
        assert!(text(Volume::open(&path, false)).contains("truncate -s 64M"));
        std::fs::write(&path, [0; 1000]).unwrap();
        let ragged = text(Volume::open(&path, false));
        assert!(ragged.contains("1000 bytes") && ragged.contains("truncate -s 1024"), "{ragged}");
        std::fs::write(&path, []).unwrap();
        assert!(text(Volume::open(&path, false)).contains("empty"));
        assert!(text(Volume::open(folder.path(), true)).contains("not a regular file"));
        let file = File::create(&path).unwrap();
        file.set_len((u64::from(u32::MAX) + 1) * BLOCK).unwrap();
        assert!(text(Volume::open(&path, false)).contains("32-bit block numbers"));
        file.set_len(5 * BLOCK).unwrap();
        let volume = Volume::open(&path, true).unwrap();
        assert_eq!((volume.blocks(), volume.bytes(), volume.is_read_only()), (5, 2560, true));
    }
}
