//! Pinning by registration: frames stand in the registered-buffer tables of the shards' rings.
//!
//! io_uring pins a buffer when it enters a ring's table (`pin_user_pages` with `FOLL_LONGTERM`,
//! `io_uring/rsrc.c`) and unpins it when it leaves and no operation uses it any more. So one system
//! call pins a frame and makes it a target of READ_FIXED and WRITE_FIXED.
//!
//! * A *slot* is a place in the table, the same in every ring. One frame takes one slot.
//! * A *ring* is a shard's. It comes with [`Registered::join`] and goes with the [`Member`] that
//!   this returns. Each frame is registered in every ring: its pages are pinned, and charged to
//!   RLIMIT_MEMLOCK, once a ring. Cloning the table of one ring into the others
//!   (IORING_REGISTER_CLONE_BUFFERS) would charge once, but copies the whole table for each change:
//!   about 15 µs against 0.1 µs.
//! * A [`Member`] finds the slot of some bytes without a lock. What it finds may be old news when
//!   the kernel acts on it, and that is harmless: the kernel checks every fixed operation against
//!   the buffer in the slot and answers EFAULT where the bytes are not inside.
//!
//! Nothing is pinned while there is no ring: a pool that pins earlier is told so.

mod places;
mod slots;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Pinner, Run, Stopped};
use crate::HostRange;
use places::Places;
use slots::Slots;

/// Frames that change their place in the tables in one system call at most. The call holds the
/// ring's lock, which that shard's submissions wait for: 256 frames take some 20 µs.
const BATCH: usize = 256;

/// Why frames cannot be pinned by registration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisteredError {
    /// A number of slots that no table has.
    #[error(
        "a table of {slots} registered buffers: it must have between 1 and {} slots",
        Registered::MOST_SLOTS
    )]
    Slots {
        /// Slots asked for.
        slots: u32,
    },
    /// There is no ring to be had.
    #[error("io_uring makes no ring: {source}{}; or use pinner resident", remedy(.source))]
    Ring {
        /// What the system said.
        source: io::Error,
    },
    /// A ring takes no table.
    #[error("io_uring takes no table of {slots} registered buffers: {source}{}; or use pinner resident", remedy(.source))]
    Table {
        /// Slots asked for.
        slots: u32,
        /// What the system said.
        source: io::Error,
    },
    /// A ring that came late could not take what is pinned already.
    #[error("a ring could not take the {frames} frames that are pinned already: {source}{}", remedy(.source))]
    Late {
        /// Frames that are pinned.
        frames: u32,
        /// What the system said.
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
            " (allow io_uring_setup and io_uring_register in the seccomp profile, and see \
             /proc/sys/kernel/io_uring_disabled)"
        }
        Some(libc::EINVAL) => " (sparse tables need Linux 5.19 or newer)",
        Some(libc::ENOMEM | libc::EAGAIN) => {
            " (raise RLIMIT_MEMLOCK with 'ulimit -l', grant CAP_IPC_LOCK, or lower the pin budget; \
             each shard counts)"
        }
        _ => "",
    }
}

/// The pinner *registered*. Its clones are the same pinner: the pool has one, each shard another.
#[derive(Clone, Debug)]
pub struct Registered(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tables: Mutex<Tables>,
    /// Goes up when the list of regions changes, so that members look again.
    generation: AtomicU64,
}

/// What stands in the tables. All rings have the same, but for a failure to take a frame out, which
/// leaves its slot taken and some rings without it.
#[derive(Debug)]
struct Tables {
    slots: Slots,
    /// What stands in each slot.
    occupants: Box<[Buffer]>,
    rings: Vec<Ring>,
    next_key: u64,
    regions: Vec<Known>,
}

/// A region of which frames are or were pinned.
#[derive(Debug)]
struct Known {
    places: Arc<Places>,
    /// Its frames that have a slot.
    standing: u32,
}

/// A buffer as the kernel's `struct iovec` has it; empty means that nothing stands in the slot.
/// Plain numbers instead of `libc::iovec`, whose pointer is not `Send`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Buffer {
    start: usize,
    len: usize,
}

const NOTHING: Buffer = Buffer { start: 0, len: 0 };

// `Buffer` is handed to the kernel in place of it.
const _: () = assert!(
    size_of::<Buffer>() == size_of::<libc::iovec>()
        && std::mem::offset_of!(Buffer, len) == std::mem::offset_of!(libc::iovec, iov_len)
);

impl From<HostRange> for Buffer {
    fn from(range: HostRange) -> Self {
        Buffer { start: range.as_ptr().addr(), len: range.len() }
    }
}

impl Registered {
    /// Most slots that a table has (IORING_MAX_REG_BUFFERS, `io_uring/rsrc.c`).
    pub const MOST_SLOTS: u32 = 1 << 14;

    /// A pinner of at most `slots` frames, after a try whether this machine has such tables. A slot
    /// costs 8 bytes in each ring and 16 here, used or not.
    ///
    /// # Errors
    ///
    /// A number out of range; io_uring is refused, too old or short of memory.
    pub fn new(slots: u32) -> Result<Self, RegisteredError> {
        if !(1..=Self::MOST_SLOTS).contains(&slots) {
            return Err(RegisteredError::Slots { slots });
        }
        let ring = bare_ring().map_err(|source| RegisteredError::Ring { source })?;
        make_table(&ring, slots).map_err(|source| RegisteredError::Table { slots, source })?;
        Ok(Registered(Arc::new(Shared {
            tables: Mutex::new(Tables {
                slots: Slots::all_free(slots as u16),
                occupants: vec![NOTHING; slots as usize].into(),
                rings: Vec::new(),
                next_key: 0,
                regions: Vec::new(),
            }),
            generation: AtomicU64::new(0),
        })))
    }

    /// Makes a table in `ring`, which must have none, and registers in it what is pinned, now and
    /// until the member is dropped. The ring stays open as long.
    ///
    /// The ring must not be bound to one thread (IORING_SETUP_SINGLE_ISSUER): whoever pins changes
    /// every ring's table.
    ///
    /// # Errors
    ///
    /// The ring takes no table, or not what is pinned already. The ring is as good as before, but
    /// may have a table.
    pub fn join(&self, ring: BorrowedFd<'_>) -> Result<Member, RegisteredError> {
        let mut tables = self.0.tables.lock();
        let slots = tables.occupants.len() as u32;
        let fd =
            ring.try_clone_to_owned().map_err(|source| RegisteredError::Table { slots, source })?;
        make_table(&fd, slots).map_err(|source| RegisteredError::Table { slots, source })?;
        let ring = Ring { fd, key: tables.next_key };
        for first in (0..slots as usize).step_by(BATCH) {
            let batch = &tables.occupants[first..slots.min((first + BATCH) as u32) as usize];
            if batch.iter().all(|buffer| *buffer == NOTHING) {
                continue;
            }
            if let (_, Err(source)) = ring.update(first, batch) {
                let frames = tables.regions.iter().map(|known| known.standing).sum();
                return Err(RegisteredError::Late { frames, source });
            }
        }
        let key = ring.key;
        tables.next_key += 1;
        tables.rings.push(ring);
        drop(tables);
        Ok(Member { shared: self.0.clone(), key, generation: u64::MAX, regions: Vec::new() })
    }
}

impl Pinner for Registered {
    fn name(&self) -> &'static str {
        "registered"
    }

    fn pin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        // Locked batch by batch: the whole guest is not in everybody's way.
        in_batches(runs, |runs| self.0.tables.lock().pin_some(runs, &self.0.generation))
    }

    fn unpin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        in_batches(runs, |runs| self.0.tables.lock().unpin_some(runs))
    }

    /// A device in this process reaches memory that is not registered by plain operations.
    fn is_needed(&self) -> bool {
        false
    }

    fn joins_frames(&self) -> bool {
        false
    }

    fn most_runs(&self) -> Option<u32> {
        Some(self.0.tables.lock().occupants.len() as u32)
    }

    fn keeps_place(&self) -> bool {
        true
    }
}

/// Has `some` do the first few of `runs` until all are done or it fails; it returns how many it did.
fn in_batches(
    runs: &[Run<'_>],
    mut some: impl FnMut(&[Run<'_>]) -> (usize, io::Result<()>),
) -> Result<(), Stopped> {
    let mut done = 0;
    while done < runs.len() {
        let (more, result) = some(&runs[done..]);
        done += more;
        result.map_err(|source| Stopped { done, source })?;
    }
    Ok(())
}

impl Tables {
    /// Registers the first few of `runs` in adjacent slots of all rings.
    fn pin_some(&mut self, runs: &[Run<'_>], generation: &AtomicU64) -> (usize, io::Result<()>) {
        if self.rings.is_empty() {
            let why = "no shard has added its ring yet: pin after the shards have started";
            return (0, Err(io::Error::new(io::ErrorKind::NotConnected, why)));
        }
        let Some(slots) = self.slots.take(runs.len().min(BATCH)) else {
            let why = format!(
                "all {} registered buffers are taken: lower the pin budget to that many frames",
                self.occupants.len()
            );
            return (0, Err(io::Error::new(io::ErrorKind::QuotaExceeded, why)));
        };
        let mut result = Ok(());
        let mut count = 0;
        for (slot, run) in slots.clone().zip(runs) {
            if let Err(error) = self.admit(run, generation) {
                result = Err(error);
                break;
            }
            self.occupants[slot] = run.host.into();
            count += 1;
        }
        let (good, filled) = self.fill(slots.start, count);
        for (slot, run) in slots.clone().zip(&runs[..good]) {
            self.places(run).publish(run.frame, slot as u16);
        }
        runs[good..count].iter().for_each(|run| self.dismiss(run));
        let rest = slots.start + good..slots.end;
        self.occupants[rest.clone()].fill(NOTHING);
        self.slots.give_back(rest);
        (good, filled.map_err(explained).and(result))
    }

    /// Takes out of all rings the first few of `runs`, as far as their slots are adjacent.
    fn unpin_some(&mut self, runs: &[Run<'_>]) -> (usize, io::Result<()>) {
        let slot_of = |run: &Run<'_>| {
            self.known(run).and_then(|known| self.regions[known].places.slot_of(run.frame))
        };
        let Some(first) = runs.first().and_then(slot_of).map(usize::from) else {
            return (0, Err(misuse("unpinned a frame that is not registered", runs)));
        };
        let adjacent = |(ahead, run): &(usize, &Run<'_>)| {
            slot_of(run).is_some_and(|slot| usize::from(slot) == first + ahead)
        };
        let count = runs.iter().take(BATCH).enumerate().take_while(adjacent).count();
        for run in &runs[..count] {
            // Before the kernel lets go, so that few operations are sent in vain.
            self.places(run).withdraw(run.frame);
        }
        let (mut gone, mut result) = (count, Ok(()));
        for ring in &self.rings {
            let (done, cleared) = ring.update(first, &[NOTHING; BATCH][..count]);
            if done < gone {
                (gone, result) = (done, cleared);
            }
        }
        runs[..gone].iter().for_each(|run| self.dismiss(run));
        for (ahead, run) in runs[..count].iter().enumerate().skip(gone) {
            // Still pinned, at least in one ring; in those without it the kernel says EFAULT.
            self.places(run).publish(run.frame, (first + ahead) as u16);
        }
        let free = first..first + gone;
        self.occupants[free.clone()].fill(NOTHING);
        self.slots.give_back(free);
        (gone, result)
    }

    /// Registers what `occupants` has for `count` slots from `first` on. Returns how many of them
    /// all rings have; the others are in none.
    fn fill(&self, first: usize, count: usize) -> (usize, io::Result<()>) {
        let (mut good, mut result) = (count, Ok(()));
        for ring in &self.rings {
            let (done, filled) = ring.update(first, &self.occupants[first..first + good]);
            if done < good {
                (good, result) = (done, filled);
            }
        }
        for ring in self.rings.iter().filter(|_| good < count) {
            if let (_, Err(error)) = ring.update(first + good, &[NOTHING; BATCH][..count - good]) {
                // The slot's next frame replaces what stays behind.
                tracing::error!(%error, "registered buffers stay pinned until their slots are used again");
            }
        }
        (good, result)
    }

    /// Checks a run, makes its region known, and counts it there.
    fn admit(&mut self, run: &Run<'_>, generation: &AtomicU64) -> io::Result<()> {
        let runs = std::slice::from_ref(run);
        if run.frames != 1 || run.host.is_empty() {
            return Err(misuse("a registered buffer is exactly one frame", runs));
        }
        let known = match self.known(run) {
            Some(known) => known,
            None => {
                // Regions that nobody uses any more make way: their memory may be gone.
                self.regions.retain(|known| known.standing > 0);
                let places = Arc::new(Places::of(run.region)?);
                self.regions.push(Known { places, standing: 0 });
                // Release: pairs with the Acquire in `Member::slot`; the list itself is under the
                // lock, which a member takes when it sees the new number.
                generation.fetch_add(1, Ordering::Release);
                self.regions.len() - 1
            }
        };
        let known = &mut self.regions[known];
        if !known.places.has(run.frame) || known.places.slot_of(run.frame).is_some() {
            return Err(misuse("pinned a frame twice, or outside its region", runs));
        }
        known.standing += 1;
        Ok(())
    }

    /// Takes a run off the count of its region.
    fn dismiss(&mut self, run: &Run<'_>) {
        if let Some(known) = self.known(run) {
            self.regions[known].standing -= 1;
        }
    }

    /// The places of a run that is counted: its region is known for as long as it is.
    fn places(&self, run: &Run<'_>) -> &Places {
        let known = self.known(run).expect("a counted run keeps its region known");
        &self.regions[known].places
    }

    fn known(&self, run: &Run<'_>) -> Option<usize> {
        self.regions.iter().position(|known| known.places.are_of(run.region))
    }
}

/// The pool has broken the contract of [`Pinner`].
fn misuse(what: &str, runs: &[Run<'_>]) -> io::Error {
    let frame = runs.first().map_or(0, |run| run.frame);
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what} (frame {frame})"))
}

/// Adds the remedy where the kernel's word for it is obscure. ENOMEM stays: whoever reports it knows.
fn explained(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EFAULT | libc::EOPNOTSUPP) => io::Error::new(
            error.kind(),
            format!(
                "{error}: this memory cannot be pinned for long; back the guest by anonymous \
                 memory, memfd or hugetlbfs, or use pinner resident"
            ),
        ),
        _ => error,
    }
}

/// A ring's part in a [`Registered`], and its way to find slots. It leaves when dropped.
#[derive(Debug)]
pub struct Member {
    shared: Arc<Shared>,
    key: u64,
    /// Of the list of regions that was copied last.
    generation: u64,
    regions: Vec<Arc<Places>>,
}

impl Member {
    /// The slot of the frame that holds the `len` bytes at host address `start`; `None` where it is
    /// not registered, or where they are not all in one frame.
    ///
    /// Takes no lock, but for the first call after a region was added. The answer may be outdated at
    /// once: an operation that uses it must bear EFAULT.
    #[inline]
    pub fn slot(&mut self, start: usize, len: usize) -> Option<u16> {
        // Acquire: pairs with the Release in `Tables::admit`: whoever holds a frame, and so has
        // synchronised with its pinning, sees its region here.
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.look_again();
        }
        self.regions.iter().find_map(|places| places.slot(start, len))
    }

    #[cold]
    fn look_again(&mut self) {
        let tables = self.shared.tables.lock();
        // Relaxed: it changes under the lock only.
        self.generation = self.shared.generation.load(Ordering::Relaxed);
        self.regions.clear();
        self.regions.extend(tables.regions.iter().map(|known| known.places.clone()));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shared.tables.lock().rings.retain(|ring| ring.key != self.key);
    }
}

/// A ring with a table. The descriptor is a duplicate: the ring stays open while it is here.
#[derive(Debug)]
struct Ring {
    fd: OwnedFd,
    key: u64,
}

impl Ring {
    /// Puts `buffers` into the slots from `first` on. Returns how many are in; with all of them
    /// there is no error.
    fn update(&self, first: usize, buffers: &[Buffer]) -> (usize, io::Result<()>) {
        let mut done = 0;
        while done < buffers.len() {
            match update_table(&self.fd, first + done, &buffers[done..]) {
                Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
                Ok(more) => done += more.min(buffers.len() - done),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (done, Err(error)),
            }
        }
        (done, Ok(()))
    }
}

/// Operations of io_uring_register(2) (`include/uapi/linux/io_uring.h`).
mod register {
    pub(super) const BUFFERS2: libc::c_uint = 15;
    pub(super) const BUFFERS_UPDATE: libc::c_uint = 16;
    /// Flag of `Table`: the table is empty and has no list of buffers.
    pub(super) const SPARSE: u32 = 1;
}

/// `struct io_uring_rsrc_register`.
#[repr(C)]
struct Table {
    slots: u32,
    flags: u32,
    reserved: u64,
    data: u64,
    tags: u64,
}

/// `struct io_uring_rsrc_update2`.
#[repr(C)]
struct Update {
    first: u32,
    reserved: u32,
    data: u64,
    tags: u64,
    count: u32,
    reserved2: u32,
}

/// Bytes of `struct io_uring_params`, of which a ring that is never entered needs none.
const PARAMETERS: usize = 120;

/// A ring without mappings: enough to try what the kernel allows.
fn bare_ring() -> io::Result<OwnedFd> {
    let mut parameters = [0u64; PARAMETERS / size_of::<u64>()];
    // SAFETY: the kernel reads and writes PARAMETERS bytes, which the array has and which outlive
    // the call. Test: `tests::frames_stand_in_every_ring_until_they_are_unpinned`.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us, and nobody else knows it. Test: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn make_table(ring: &OwnedFd, slots: u32) -> io::Result<()> {
    let table = Table { slots, flags: register::SPARSE, reserved: 0, data: 0, tags: 0 };
    // SAFETY: the kernel reads one `Table`, which outlives the call, and with SPARSE follows no
    // address in it. Test: `tests::frames_stand_in_every_ring_until_they_are_unpinned`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            register::BUFFERS2,
            &raw const table,
            size_of::<Table>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One system call; it may stop short of all buffers.
fn update_table(ring: &OwnedFd, first: usize, buffers: &[Buffer]) -> io::Result<usize> {
    let update = Update {
        first: first as u32,
        reserved: 0,
        data: buffers.as_ptr().addr() as u64,
        tags: 0,
        count: buffers.len() as u32,
        reserved2: 0,
    };
    // SAFETY: the kernel reads one `Update` and the buffers that it names, which outlive the call.
    // It pins the pages of those buffers and reads and writes none of them here; where a buffer is
    // not mapped it says EFAULT. Test: `tests::frames_stand_in_every_ring_until_they_are_unpinned`.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            register::BUFFERS_UPDATE,
            &raw const update,
            size_of::<Update>(),
        )
    };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}
