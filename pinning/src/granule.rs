//! How large the frames of a region are.

use std::fs;
use std::io;
use std::num::ParseIntError;

use vm_memory::FileOffset;

use crate::{FRAME, FRAME_SHIFT, HostRange};

/// Largest frame, in bytes: the largest page of any machine this runs on.
const LARGEST: u64 = 1 << 30;

/// `HUGETLBFS_MAGIC` of `include/uapi/linux/magic.h`.
const HUGETLBFS: u64 = 0x9584_58f6;

/// What /proc/self/maps calls private huge pages without a file.
const ANONYMOUS_HUGE: &str = "/anon_hugepage";

/// How large the frames of a region are. Small ones keep the footprint close to what is used, large
/// ones need fewer calls to pin and fewer mappings of a pinner that has only so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Granule {
    /// As large as the pages behind the region: those of hugetlbfs, else 4 KiB. To pin a part of such
    /// a page costs as much as all of it.
    #[default]
    Backing,
    /// This many bytes, a power of two from 4 KiB to 1 GiB. A region whose length is no multiple
    /// of it gets the largest size that fits; one of hugetlbfs at least its page, if that
    /// fits.
    Bytes(u64),
}

/// Why frames cannot have a size.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GranuleError {
    /// No power of two, or too small or large.
    #[error("frames of {bytes} bytes: use a power of two from {FRAME} to {LARGEST}")]
    Size {
        /// Bytes asked for.
        bytes: u64,
    },
    /// The system does not tell the page size of a mapping.
    #[error("page size of the mapping at {address:#x} is not known: {source}")]
    Unknown {
        /// Its host address.
        address: usize,
        /// What failed.
        source: io::Error,
    },
}

impl Granule {
    /// log2 of the frame size for a region.
    pub(crate) fn frame_shift(
        self,
        host: HostRange,
        file: Option<&FileOffset>,
    ) -> Result<u32, GranuleError> {
        let wanted = match self {
            Granule::Backing => FRAME,
            Granule::Bytes(bytes)
                if bytes.is_power_of_two() && (FRAME..=LARGEST).contains(&bytes) =>
            {
                bytes
            }
            Granule::Bytes(bytes) => return Err(GranuleError::Size { bytes }),
        };
        let address = host.as_ptr().addr();
        let backing =
            huge_page(host, file).map_err(|source| GranuleError::Unknown { address, source })?;
        let wanted = wanted.max(backing.unwrap_or(FRAME)).trailing_zeros();
        Ok(wanted.min(host.len().trailing_zeros()).max(FRAME_SHIFT))
    }
}

/// Bytes of the huge pages behind a mapping, if it has such.
fn huge_page(host: HostRange, file: Option<&FileOffset>) -> io::Result<Option<u64>> {
    if let Some(file) = file {
        let system = rustix::fs::fstatfs(file.file())?;
        // The type is a signed long on some machines and an unsigned int on others.
        let is_huge = system.f_type as u64 & 0xffff_ffff == HUGETLBFS;
        return Ok(is_huge.then_some(system.f_bsize as u64));
    }
    let address = host.as_ptr().addr();
    // The cheap file first: smaps walks the page tables of the whole process.
    let maps = fs::read_to_string("/proc/self/maps")?;
    let is_huge = maps.lines().any(|line| {
        line.contains(ANONYMOUS_HUGE)
            && range_of(line).is_ok_and(|(start, end)| (start..end).contains(&address))
    });
    if !is_huge {
        return Ok(None);
    }
    kernel_page_size(&fs::read_to_string("/proc/self/smaps")?, address)
        .map(Some)
        .ok_or_else(|| io::Error::other("/proc/self/smaps has no KernelPageSize for it"))
}

/// The address range at the start of a line of maps or smaps.
fn range_of(line: &str) -> Result<(usize, usize), ParseIntError> {
    let (range, _) = line.split_once(' ').unwrap_or((line, ""));
    let (start, end) = range.split_once('-').unwrap_or((range, ""));
    Ok((usize::from_str_radix(start, 16)?, usize::from_str_radix(end, 16)?))
}

/// `KernelPageSize` in bytes of the mapping that holds `address`.
fn kernel_page_size(smaps: &str, address: usize) -> Option<u64> {
    let mut inside = false;
    for line in smaps.lines() {
        if let Ok((start, end)) = range_of(line) {
            inside = (start..end).contains(&address);
        } else if inside && let Some(size) = line.strip_prefix("KernelPageSize:") {
            let bytes = size.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)?;
            return bytes.is_power_of_two().then_some(bytes);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::NonNull;

    fn range(address: usize, len: usize) -> HostRange {
        let start = NonNull::new(std::ptr::without_provenance_mut(address)).unwrap();
        // SAFETY: never accessed, only its numbers are looked at.
        // Test: `frames_are_as_large_as_the_region_allows`.
        unsafe { HostRange::new(start, len) }
    }

    #[test]
    fn frames_are_as_large_as_the_region_allows() {
        let shift = |granule: Granule, address, len| {
            granule.frame_shift(range(address, len), None).unwrap()
        };
        assert_eq!(shift(Granule::Backing, 1 << 30, 1 << 30), 12);
        assert_eq!(shift(Granule::Bytes(2 << 20), 1 << 30, 1 << 30), 21);
        assert_eq!(shift(Granule::Bytes(2 << 20), 0x5000, 1 << 30), 21, "wherever it is mapped");
        assert_eq!(shift(Granule::Bytes(2 << 20), 0x5000, 3 << 20), 20);
        assert_eq!(shift(Granule::Bytes(2 << 20), 1 << 30, 0x3000), 12);
        for bytes in [0, 2048, 12288, 2 << 30] {
            let error =
                Granule::Bytes(bytes).frame_shift(range(1 << 30, 1 << 30), None).unwrap_err();
            assert!(error.to_string().contains("power of two"), "{error}");
        }
    }

    #[test]
    fn page_sizes_are_read_from_smaps() {
        let smaps = "7f00-7f10 rw-p 0 00:00 0\nKernelPageSize:        4 kB\n\
            80000000-80200000 rw-p 0 00:0f 12 /anon_hugepage (deleted)\nSize: 2048 kB\nKernelPageSize:     2048 kB\n\
            90000000-90001000 rw-p 0 00:0f 12 /x\nKernelPageSize:     3 kB\n";
        assert_eq!(kernel_page_size(smaps, 0x8000_0000), Some(2 << 20));
        assert_eq!(kernel_page_size(smaps, 0x7f01), Some(4096));
        assert_eq!(kernel_page_size(smaps, 0x8020_0000), None);
        assert_eq!(kernel_page_size(smaps, 0x9000_0000), None, "no power of two");
    }
}
