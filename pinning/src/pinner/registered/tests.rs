//! The tables as the kernel sees them: `/proc/self/fdinfo` lists the buffers of a ring.

use super::*;
use crate::{FRAME, Granule, GuestMap, Region};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use vm_memory::mmap::{GuestRegionMmap, MmapRegion};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Frames of the guest in [`Bench`].
const FRAMES: u32 = 24;

/// A guest, a pinner, and rings that stand for shards.
struct Bench {
    map: GuestMap,
    pinner: Registered,
    shards: Vec<(OwnedFd, Member)>,
}

impl Bench {
    fn new(slots: u32, shards: usize) -> Option<Self> {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[
            (GuestAddress(0), 16 * FRAME as usize),
            (GuestAddress(0x100_0000), (FRAMES as usize - 16) * FRAME as usize),
        ]);
        let map = GuestMap::new(Arc::new(memory.unwrap())).unwrap();
        let pinner = pinner(slots)?;
        let mut bench = Bench { map, pinner, shards: Vec::new() };
        (0..shards).for_each(|_| bench.add_shard());
        Some(bench)
    }

    fn add_shard(&mut self) {
        let ring = bare_ring().unwrap();
        let member = self.pinner.join(ring.as_fd()).unwrap();
        self.shards.push((ring, member));
    }

    fn runs(&self, frames: impl IntoIterator<Item = u32>) -> Vec<Run<'_>> {
        frames.into_iter().map(|frame| run(&self.map, frame)).collect()
    }

    fn start(&self, frame: u32) -> usize {
        run(&self.map, frame).host.as_ptr().addr()
    }

    fn slot(&mut self, frame: u32) -> Option<u16> {
        let start = self.start(frame);
        self.shards[0].1.slot(start, FRAME as usize)
    }
}

fn run(map: &GuestMap, frame: u32) -> Run<'_> {
    let is_of = |region: &&Region| region.frame_numbers().contains(&frame);
    let region = map.regions().iter().find(is_of).unwrap();
    let bytes = 1usize << region.frame_shift();
    let offset = (frame - region.first_frame()) as usize * bytes;
    let host = region.host().part(offset, bytes).unwrap();
    Run { address: region.start() + offset as u64, host, frame, frames: 1, region }
}

fn pinner(slots: u32) -> Option<Registered> {
    match Registered::new(slots) {
        Ok(pinner) => Some(pinner),
        Err(error) => {
            println!("SKIPPED: {error}");
            None
        }
    }
}

/// What the kernel has in each slot of a ring's table: host address and bytes.
fn table(ring: &OwnedFd) -> BTreeMap<u16, (usize, usize)> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", ring.as_raw_fd())).unwrap();
    let after = info.lines().skip_while(|line| !line.starts_with("UserBufs:")).skip(1);
    after
        .map_while(|line| line.split_once(": "))
        .filter_map(|(slot, buffer)| {
            let (start, len) = buffer.trim().strip_prefix("0x")?.split_once('/')?;
            // Before Linux 6.13 an empty slot is shown as one at the end of all addresses.
            let start =
                usize::from_str_radix(start, 16).ok().filter(|start| *start != usize::MAX)?;
            Some((slot.trim().parse().ok()?, (start, len.parse().ok()?)))
        })
        .collect()
}

#[test]
fn frames_stand_in_every_ring_until_they_are_unpinned() {
    let Some(mut bench) = Bench::new(32, 2) else { return };
    bench.pinner.pin(&bench.runs([3, 4, 5, 18])).unwrap();
    let slot = bench.slot(3).unwrap();
    assert_eq!(bench.slot(5), Some(slot + 2), "adjacent slots, so one call a ring");
    assert_eq!(bench.slot(18), Some(slot + 3), "of another region");
    for (ring, _) in &bench.shards {
        let table = table(ring);
        assert_eq!(table.len(), 4);
        assert_eq!(table[&slot], (bench.start(3), FRAME as usize));
        assert_eq!(table[&(slot + 3)], (bench.start(18), FRAME as usize));
    }
    bench.pinner.unpin(&bench.runs([4, 18])).unwrap();
    assert_eq!((bench.slot(4), bench.slot(18)), (None, None));
    for (ring, _) in &bench.shards {
        assert_eq!(table(ring).keys().copied().collect::<Vec<_>>(), [slot, slot + 2]);
    }
}

#[test]
fn bytes_have_a_slot_where_one_frame_holds_them_all() {
    let Some(mut bench) = Bench::new(32, 1) else { return };
    bench.pinner.pin(&bench.runs([3, 4])).unwrap();
    let start = bench.start(3);
    let member = &mut bench.shards[0].1;
    let first = member.slot(start, 1).unwrap();
    assert_eq!(member.slot(start + 4095, 1), Some(first));
    assert_eq!(member.slot(start + 1, 4095), Some(first));
    assert_eq!(member.slot(start + 1, 4096), None, "both are registered, each for itself");
    assert_eq!(member.slot(start + 4096, 4096), Some(first + 1));
    assert_eq!(member.slot(start - 1, 1), None, "not registered");
    assert_eq!(member.slot(start, 0), None);
    for hostile in [0, 1, usize::MAX] {
        assert_eq!(member.slot(hostile, 1), None);
        assert_eq!(member.slot(start, usize::MAX - hostile), None);
    }
}

#[test]
fn a_large_frame_takes_one_slot() {
    let Some(mut bench) = Bench::new(32, 1) else { return };
    // Mappings lie side by side: small ones between them move the next one until it is aligned.
    let mut spacers = Vec::new();
    let map = (0..64).find_map(|_| {
        spacers.push(MmapRegion::<()>::new(FRAME as usize).unwrap());
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 64 << 10)]).unwrap();
        let map = GuestMap::with_granule(Arc::new(memory), Granule::Bytes(16 << 10)).unwrap();
        (map.regions()[0].frame_bytes() == 16 << 10).then_some(map)
    });
    let Some(map) = map else {
        println!("SKIPPED: no mapping came to lie on 16 KiB");
        return;
    };
    bench.map = map;
    bench.pinner.pin(&bench.runs([1, 2])).unwrap();
    let start = bench.start(1);
    let slot = bench.slot(1).unwrap();
    assert_eq!(table(&bench.shards[0].0)[&slot], (start, 16 << 10));
    let member = &mut bench.shards[0].1;
    assert_eq!(member.slot(start + 4095, 8192), Some(slot), "small frames would part these bytes");
    assert_eq!(member.slot(start + 4096, 16 << 10), None);
    assert_eq!(member.slot(start + (16 << 10), 1), Some(slot + 1));
    assert_eq!(member.slot(start + (32 << 10), 1), None);
}

#[test]
fn a_late_ring_gets_what_is_pinned_and_one_that_leaves_keeps_nothing_new() {
    let Some(mut bench) = Bench::new(32, 1) else { return };
    bench.pinner.pin(&bench.runs([7, 20])).unwrap();
    bench.add_shard();
    assert_eq!(table(&bench.shards[1].0), table(&bench.shards[0].0));
    let (first, member) = bench.shards.remove(0);
    drop(member);
    bench.pinner.pin(&bench.runs([8])).unwrap();
    assert_eq!((table(&first).len(), table(&bench.shards[0].0).len()), (2, 3));
}

#[test]
fn nothing_is_pinned_before_the_first_ring_and_after_the_last() {
    let Some(mut bench) = Bench::new(32, 0) else { return };
    let refused = bench.pinner.pin(&bench.runs([1])).unwrap_err();
    assert_eq!((refused.done, refused.source.kind()), (0, io::ErrorKind::NotConnected));
    bench.add_shard();
    bench.pinner.pin(&bench.runs([1])).unwrap();
    bench.shards.clear();
    bench.pinner.unpin(&bench.runs([1])).unwrap();
    bench.add_shard();
    assert!(table(&bench.shards[0].0).is_empty());
    assert_eq!(bench.slot(1), None);
}

#[test]
fn a_full_table_stops_at_the_frame_that_has_no_slot() {
    let Some(mut bench) = Bench::new(5, 2) else { return };
    assert_eq!(bench.pinner.most_runs(), Some(5));
    bench.pinner.pin(&bench.runs([9, 1])).unwrap();
    let full = bench.pinner.pin(&bench.runs(10..15)).unwrap_err();
    assert_eq!(full.done, 3);
    assert!(full.source.to_string().contains("all 5 registered buffers"), "{}", full.source);
    assert!(bench.slot(12).is_some() && bench.slot(13).is_none());
    bench.pinner.unpin(&bench.runs([1])).unwrap();
    bench.pinner.pin(&bench.runs([13])).unwrap();
    assert_eq!(table(&bench.shards[1].0).len(), 5);
}

#[test]
fn memory_that_cannot_be_pinned_stops_the_list_there() {
    let Some(mut bench) = Bench::new(32, 2) else { return };
    // A region whose fifth frame nobody may read or write.
    let region = MmapRegion::<()>::new(8 * FRAME as usize).unwrap();
    let hole = region.as_ptr().wrapping_add(4 * FRAME as usize).cast();
    // SAFETY: a page of the mapping above, which nothing here reads or writes.
    // Test: this one, which expects the kernel to refuse the page.
    assert_eq!(unsafe { libc::mprotect(hole, FRAME as usize, libc::PROT_NONE) }, 0);
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
    bench.map = GuestMap::new(Arc::new(memory)).unwrap();
    let stopped = bench.pinner.pin(&bench.runs(0..8)).unwrap_err();
    assert_eq!(stopped.done, 4);
    assert!(stopped.source.to_string().contains("memfd"), "{}", stopped.source);
    assert!(bench.slot(3).is_some() && bench.slot(4).is_none() && bench.slot(5).is_none());
    for (ring, _) in &bench.shards {
        assert_eq!(table(ring).len(), 4, "what came before stays, what came after is in no ring");
    }
    bench.pinner.pin(&bench.runs(5..8)).unwrap();
    bench.pinner.unpin(&bench.runs((0..4).chain(5..8))).unwrap();
    assert!(table(&bench.shards[0].0).is_empty());
}

#[test]
fn a_frame_that_one_ring_keeps_counts_as_pinned() {
    let Some(mut bench) = Bench::new(32, 2) else { return };
    bench.pinner.pin(&bench.runs([1, 2])).unwrap();
    let slot = bench.slot(1);
    // The second ring loses its table behind the pinner's back, so that it refuses updates.
    let unregister_buffers = 1;
    // SAFETY: plain integers and an open descriptor; no operation uses the buffers.
    // Test: this one, which counts what is left in the other ring.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            bench.shards[1].0.as_raw_fd(),
            unregister_buffers,
            0,
            0,
        )
    };
    assert_eq!(result, 0);
    let stopped = bench.pinner.unpin(&bench.runs([1, 2])).unwrap_err();
    assert_eq!(stopped.done, 0);
    assert_eq!(bench.slot(1), slot, "its slot is not given to another frame");
    let stopped = bench.pinner.pin(&bench.runs([3])).unwrap_err();
    assert_eq!(stopped.done, 0);
    assert!(table(&bench.shards[0].0).is_empty(), "frame 3 is in no ring");
    bench.shards.truncate(1);
    bench.pinner.unpin(&bench.runs([1, 2])).unwrap();
    bench.pinner.pin(&bench.runs([3])).unwrap();
    assert_eq!(table(&bench.shards[0].0).len(), 1);
}

#[test]
fn a_region_that_went_makes_way_for_its_successor() {
    let Some(mut bench) = Bench::new(32, 1) else { return };
    bench.pinner.pin(&bench.runs([2, 17])).unwrap();
    // A second guest memory, whose frames have the numbers of the first.
    let other = Bench::new(32, 0).unwrap().map;
    bench.pinner.pin(&[run(&other, 2)]).unwrap();
    assert_eq!(table(&bench.shards[0].0).len(), 3);
    let start = run(&other, 2).host.as_ptr().addr();
    assert!(bench.shards[0].1.slot(start, 1).is_some() && bench.slot(2).is_some());
    bench.pinner.unpin(&bench.runs([2, 17])).unwrap();
    assert!(bench.shards[0].1.slot(start, 1).is_some() && bench.slot(2).is_none());
    bench.pinner.pin(&[run(&other, 17)]).unwrap();
    assert_eq!(bench.pinner.0.tables.lock().regions.len(), 2, "those of the other map only");
}

#[test]
fn broken_promises_are_refused() {
    let Some(bench) = Bench::new(32, 1) else { return };
    bench.pinner.pin(&bench.runs([1])).unwrap();
    let refused = |result: Result<(), Stopped>| {
        let stopped = result.unwrap_err();
        (stopped.done, stopped.source.kind())
    };
    let invalid = io::ErrorKind::InvalidInput;
    assert_eq!(refused(bench.pinner.pin(&bench.runs([0, 1, 2]))), (1, invalid));
    assert_eq!(refused(bench.pinner.unpin(&bench.runs([0, 2]))), (1, invalid));
    let two = Run { frames: 2, ..run(&bench.map, 4) };
    assert_eq!(refused(bench.pinner.pin(&[two])), (0, invalid));
    let outside = Run { frame: 17, ..run(&bench.map, 4) };
    assert_eq!(refused(bench.pinner.pin(&[outside])), (0, invalid));
    assert_eq!(table(&bench.shards[0].0).len(), 1);
}

#[test]
fn sizes_of_tables_are_checked() {
    for slots in [0, Registered::MOST_SLOTS + 1, u32::MAX] {
        let error = Registered::new(slots).unwrap_err().to_string();
        assert!(error.contains(&slots.to_string()) && error.contains("16384"), "{error}");
    }
    let Some(pinner) = pinner(Registered::MOST_SLOTS) else { return };
    let ring = bare_ring().unwrap();
    let _member = pinner.join(ring.as_fd()).unwrap();
    let error = pinner.join(ring.as_fd()).unwrap_err().to_string();
    assert!(error.contains("16384 registered buffers"), "it has a table already: {error}");
}

#[test]
fn refusals_name_a_remedy() {
    let ring =
        |errno| RegisteredError::Ring { source: io::Error::from_raw_os_error(errno) }.to_string();
    assert!(ring(libc::EPERM).contains("seccomp") && ring(libc::ENOSYS).contains("resident"));
    let source = io::Error::from_raw_os_error(libc::EINVAL);
    assert!(RegisteredError::Table { slots: 8, source }.to_string().contains("5.19"));
    let source = io::Error::from_raw_os_error(libc::ENOMEM);
    assert!(RegisteredError::Late { frames: 9, source }.to_string().contains("ulimit -l"));
}

/// Gives up CAP_IPC_LOCK for this thread: rings that it makes are charged to RLIMIT_MEMLOCK.
fn give_up_ipc_lock() -> bool {
    const VERSION_3: u32 = 0x2008_0522;
    const IPC_LOCK: u32 = 1 << 14;
    let header = [VERSION_3, 0];
    // Effective, permitted and inheritable, first of capabilities 0 to 31, then of 32 to 63.
    let mut sets = [0u32; 6];
    // SAFETY: capget(2) and capset(2) read the header and read or write 24 bytes, which outlive the
    // calls; they change the credentials of this thread only.
    // Test: `a_limit_on_locked_memory_stops_the_list`.
    unsafe {
        if libc::syscall(libc::SYS_capget, &raw const header, &raw mut sets) != 0 {
            return false;
        }
        sets[0] &= !IPC_LOCK;
        libc::syscall(libc::SYS_capset, &raw const header, &raw const sets) == 0
    }
}

#[test]
fn a_limit_on_locked_memory_stops_the_list() {
    let limit = memlock_limit();
    const MOST: u64 = 32 << 20;
    let Some(limit) = limit.filter(|limit| *limit < MOST) else {
        println!("SKIPPED: RLIMIT_MEMLOCK is {limit:?}: more than this test wants to pin");
        return;
    };
    let frames = (limit / FRAME + 16) as u32;
    let thread = std::thread::spawn(move || {
        if !give_up_ipc_lock() {
            println!("SKIPPED: the capabilities of this thread cannot be changed");
            return;
        }
        let Some(pinner) = pinner(frames) else { return };
        let ring = bare_ring().unwrap();
        let _member = pinner.join(ring.as_fd()).unwrap();
        let memory =
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), frames as usize * 4096)]);
        let map = GuestMap::new(Arc::new(memory.unwrap())).unwrap();
        let runs: Vec<_> = (0..frames).map(|frame| run(&map, frame)).collect();
        let stopped = pinner.pin(&runs).unwrap_err();
        // Others of this user may have locked memory as well: where it stops is the kernel's to say.
        assert_eq!(stopped.source.raw_os_error(), Some(libc::ENOMEM));
        assert!(stopped.done < frames as usize);
        assert_eq!(table(&ring).len(), stopped.done);
        pinner.unpin(&runs[..stopped.done]).unwrap();
        assert!(table(&ring).is_empty());
    });
    thread.join().unwrap();
}

fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is valid for writing and outlives the call.
    // Test: `a_limit_on_locked_memory_stops_the_list`.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (result == 0).then_some(limit.rlim_cur)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random lists of frames, against a plain set and against what the kernel has.
    #[test]
    fn any_order_of_pins_and_unpins(
        slots in 1..30u32,
        shards in 1..3usize,
        steps in prop::collection::vec(prop::collection::btree_set(0..FRAMES, 1..8), 1..40),
    ) {
        let Some(mut bench) = Bench::new(slots, shards) else { return Ok(()) };
        let mut pinned = std::collections::BTreeSet::new();
        for frames in steps {
            let (out, mut new): (Vec<u32>, Vec<u32>) =
                frames.iter().partition(|frame| pinned.contains(*frame));
            bench.pinner.unpin(&bench.runs(out.iter().copied())).unwrap();
            pinned.retain(|frame| !out.contains(frame));
            let room = slots as usize - pinned.len();
            match bench.pinner.pin(&bench.runs(new.iter().copied())) {
                Ok(()) => prop_assert!(new.len() <= room),
                Err(stopped) => {
                    prop_assert_eq!(stopped.done, room);
                    new.truncate(room);
                }
            }
            pinned.extend(new);
            let expected: BTreeMap<u16, (usize, usize)> = pinned
                .iter()
                .map(|frame| (bench.slot(*frame).unwrap(), (bench.start(*frame), FRAME as usize)))
                .collect();
            prop_assert_eq!(expected.len(), pinned.len(), "no slot has two frames");
            for (ring, _) in &bench.shards {
                prop_assert_eq!(&table(ring), &expected);
            }
            for frame in (0..FRAMES).filter(|frame| !pinned.contains(frame)) {
                prop_assert_eq!(bench.slot(frame), None);
            }
        }
    }
}
