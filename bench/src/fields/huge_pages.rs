//! Guest memory on huge pages, as far as this machine has any.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::mm::Advice;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress,
};

use super::Lacking;
use crate::ratio::FieldError;

/// Bytes of a huge page.
pub(super) const HUGE_PAGE: u64 = 2 << 20;

/// What the kernel knows of its huge pages of this size (Documentation/admin-guide/mm/hugetlbpage.rst).
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Where huge pages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The kernel's pool of huge pages.
    Hugetlb,
    /// Ordinary memory that the kernel joins, on advice.
    Transparent,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Hugetlb => "hugetlb",
            Source::Transparent => "transparent huge pages",
        })
    }
}

/// Guest memory all of whose pages are huge and there already.
#[derive(Debug)]
pub(super) struct HugeMemory {
    /// From guest address 0.
    pub memory: Arc<GuestMemoryMmap>,
    /// What it is made of.
    pub source: Source,
    /// After the memory, so that its pages are free by then.
    _loan: Option<Loan>,
}

impl HugeMemory {
    /// `pages` huge pages: the kernel's own where there are enough or the pool may be enlarged for as
    /// long as they are used, else transparent ones.
    ///
    /// # Errors
    /// [`Lacking`] where this machine has neither.
    pub(super) fn new(pages: u64) -> Result<Self, FieldError> {
        Self::hugetlb(pages).or_else(|hugetlb| {
            Self::transparent(pages)
                .map_err(|transparent| Lacking(format!("{hugetlb}; {transparent}")).into())
        })
    }

    fn hugetlb(pages: u64) -> Result<Self, FieldError> {
        let loan = Loan::of(Path::new(POOL), pages)
            .map_err(|error| format!("no hugetlb pages: {error}"))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let file = File::from(rustix::fs::memfd_create("huge-guest", flags)?);
        let bytes = pages * HUGE_PAGE;
        // Takes the pages now, or says that there are none: a page that is missing later is a SIGBUS.
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)
            .map_err(|error| format!("no {pages} hugetlb pages: {error}"))?;
        let range = (GuestAddress(0), bytes as usize, Some(FileOffset::new(file, 0)));
        let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([range])?);
        touch(&memory)?;
        Ok(Self { memory, source: Source::Hugetlb, _loan: loan })
    }

    fn transparent(pages: u64) -> Result<Self, FieldError> {
        let bytes = (pages * HUGE_PAGE) as usize;
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)])?);
        let start = host_address(&memory)?;
        if !(start as u64).is_multiple_of(HUGE_PAGE) {
            return Err("no transparent huge pages: the memory is not on a boundary of them".into());
        }
        // SAFETY: `memory` maps these bytes, and the advice changes how they are backed, not what
        // they hold. Test: `transparent_pages_are_huge`.
        unsafe { rustix::mm::madvise(start.cast(), bytes, Advice::LinuxHugepage) }
            .map_err(|error| format!("no transparent huge pages: {error}"))?;
        touch(&memory)?;
        let huge = huge_bytes_at(start as u64)?;
        if huge < bytes as u64 {
            return Err(format!(
                "no transparent huge pages: the kernel made {huge} of {bytes} bytes huge"
            )
            .into());
        }
        Ok(Self { memory, source: Source::Transparent, _loan: None })
    }
}

/// Writes to every page, so that it is there.
fn touch(memory: &GuestMemoryMmap) -> Result<(), FieldError> {
    let bytes = memory.iter().map(GuestMemoryRegion::len).sum();
    for page in (0..bytes).step_by(4096) {
        memory.get_slice(GuestAddress(page), 1)?.copy_from(&[1u8]);
    }
    Ok(())
}

fn host_address(memory: &GuestMemoryMmap) -> Result<*mut u8, FieldError> {
    let region = memory.iter().next().ok_or("guest memory has no region")?;
    Ok(region.get_host_address(MemoryRegionAddress(0))?)
}

/// Bytes on transparent huge pages in the mapping of this process that starts at `address`.
fn huge_bytes_at(address: u64) -> io::Result<u64> {
    let maps = fs::read_to_string("/proc/self/smaps")?;
    // A mapping's heading is "start-end flags ..."; the lines below it are "Name: value kB".
    let heading = format!("{address:x}-");
    let mut lines = maps.lines().skip_while(|line| !line.starts_with(&heading));
    let kib = lines
        .find_map(|line| line.strip_prefix("AnonHugePages:"))
        .and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.unwrap_or(0) << 10)
}

/// Huge pages that the kernel's pool was enlarged by. Dropping makes it as much smaller; pages that
/// are in use then are taken out when they are free.
#[derive(Debug)]
struct Loan {
    folder: PathBuf,
    pages: u64,
}

impl Loan {
    /// Sees to it that `pages` huge pages of the pool in `folder` are free; `None` where they are
    /// anyway.
    fn of(folder: &Path, pages: u64) -> io::Result<Option<Self>> {
        let mut loan = Loan { folder: folder.to_owned(), pages: 0 };
        let missing = pages.saturating_sub(loan.free()?);
        if missing == 0 {
            return Ok(None);
        }
        let before = loan.read("nr_hugepages")?;
        loan.write(before + missing)?;
        // Memory may be too fragmented for all of them.
        loan.pages = loan.read("nr_hugepages")?.saturating_sub(before);
        match loan.free()? {
            free if free < pages => Err(io::Error::other(format!(
                "{free} of {pages} are free, with the {} that could be added",
                loan.pages
            ))),
            _ => Ok(Some(loan)),
        }
    }

    /// Huge pages that nobody uses or has a right to.
    fn free(&self) -> io::Result<u64> {
        Ok(self.read("free_hugepages")?.saturating_sub(self.read("resv_hugepages")?))
    }

    fn read(&self, file: &str) -> io::Result<u64> {
        fs::read_to_string(self.folder.join(file))?.trim().parse().map_err(io::Error::other)
    }

    fn write(&self, pages: u64) -> io::Result<()> {
        fs::write(self.folder.join("nr_hugepages"), pages.to_string())
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if self.pages == 0 {
            return;
        }
        let smaller = |now: u64| self.write(now.saturating_sub(self.pages));
        if let Err(error) = self.read("nr_hugepages").and_then(smaller) {
            let file = self.folder.join("nr_hugepages");
            eprintln!("{} stays {} larger than it was: {error}", file.display(), self.pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the files of a pool that never has more free pages, whatever is asked of it.
    fn frozen_pool(free: u64, reserved: u64) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, value) in
            [("nr_hugepages", 9), ("free_hugepages", free), ("resv_hugepages", reserved)]
        {
            fs::write(folder.path().join(file), format!("{value}\n")).unwrap();
        }
        folder
    }

    #[test]
    fn enough_free_pages_need_no_loan() {
        let folder = frozen_pool(5, 2);
        assert!(Loan::of(folder.path(), 3).unwrap().is_none());
        assert_eq!(fs::read_to_string(folder.path().join("nr_hugepages")).unwrap(), "9\n");
    }

    #[test]
    fn a_loan_that_does_not_do_is_given_back() {
        let folder = frozen_pool(5, 2);
        let error = Loan::of(folder.path(), 7).unwrap_err().to_string();
        assert!(error.contains("3 of 7 are free, with the 4"), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join("nr_hugepages")).unwrap(), "9");
    }

    #[test]
    fn a_loan_is_given_back_at_its_end() {
        let folder = frozen_pool(0, 0);
        let file = folder.path().join("nr_hugepages");
        fs::write(&file, "13").unwrap();
        drop(Loan { folder: folder.path().to_owned(), pages: 4 });
        assert_eq!(fs::read_to_string(&file).unwrap(), "9");
    }

    #[test]
    fn transparent_pages_are_huge() {
        let huge = match HugeMemory::transparent(2) {
            Ok(huge) => huge,
            Err(error) => {
                println!("SKIPPED: {error}");
                return;
            }
        };
        let start = host_address(&huge.memory).unwrap() as u64;
        assert_eq!(huge_bytes_at(start).unwrap(), 2 * HUGE_PAGE);
        assert_eq!(huge_bytes_at(1).unwrap(), 0, "no mapping starts there");
    }
}
