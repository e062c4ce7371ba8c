//! Transfers straight into registered frames: READ_FIXED and WRITE_FIXED.
//!
//! The buffers that the pinner *registered* keeps stand in a ring's table, so the operations must go
//! through that ring. tokio-uring lets nobody at the descriptor of its own ring and keeps a table
//! that cannot change, so a shard has a second ring, this one, for nothing else.
//!
//! Entries are handed to the kernel by the ring's own task, [`Fixed::drive`]. The first entry wakes
//! it, and it runs behind the tasks that are ready by then, so their entries go in the same call; a
//! few dozen go at once. What the kernel finishes on the spot, which is most of what the page cache
//! has, is reaped right after that call; the rest wakes the task through epoll.
//!
//! A transfer comes here if all of it lies in one registered frame. Others take the plain path,
//! also those that touch several registered frames: they would need an operation a frame, and one
//! plain READV over sixteen frames takes half the time of sixteen READ_FIXED. (The vectored fixed
//! operations of Linux 6.15 do not help: all pieces must lie in one buffer.)

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::{IoUring, opcode, types};
use tokio::io::unix::AsyncFd;
use vfio_ccw_pinning::Registered;
use vfio_ccw_pinning::pinner::registered::{Member, RegisteredError};

use crate::sleeper::Sleeper;
use crate::watch;

use super::{Direction, Spans};

/// Entries of the submission queue.
const ENTRIES: u32 = 256;

/// Most transfers under way. The completion queue has a place for each, so none is ever lost.
const MOST: usize = 2048;

/// Entries that are handed to the kernel without waiting for more.
const BURST: usize = 32;

/// Why a shard has no ring for registered frames.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FixedError {
    /// There is no ring, or it cannot be watched.
    #[error("no io_uring for registered buffers: {0}; use pinner resident")]
    Ring(#[from] io::Error),
    /// The ring takes no table.
    #[error(transparent)]
    Table(#[from] RegisteredError),
}

/// A shard's ring for registered frames.
pub(crate) struct Fixed {
    core: RefCell<Core>,
}

struct Core {
    /// First: it leaves the pinner before the ring goes.
    member: Member,
    ring: AsyncFd<IoUring>,
    passages: Vec<Place>,
    vacant: Vec<u32>,
    /// Entries that the kernel has not been told of.
    queued: usize,
    /// Transfers that the kernel did not refuse, for diagnosis.
    moved: u64,
    /// The ring's task.
    driver: Sleeper,
}

/// One transfer: its memory and what became of it.
#[derive(Debug, Default)]
enum Place {
    #[default]
    Vacant,
    /// The kernel has it, or will; somebody waits, or is about to.
    Going(Box<Spans>, Option<Waker>),
    /// The same, and nobody waits any more.
    Abandoned(Box<Spans>),
    /// Its memory and what the kernel said.
    Done(Box<Spans>, i32),
}

impl Fixed {
    /// A ring that is part of `registered`. Must be called on the shard's runtime.
    ///
    /// # Errors
    ///
    /// No ring, no watch, no table.
    pub(crate) fn new(registered: &Registered) -> Result<Rc<Self>, FixedError> {
        let ring = IoUring::builder().setup_cqsize(MOST as u32).build(ENTRIES)?;
        let member = registered.join(ring.as_fd())?;
        Ok(Rc::new(Fixed {
            core: RefCell::new(Core {
                member,
                ring: watch::ring(ring)?,
                passages: (0..MOST).map(|_| Place::Vacant).collect(),
                vacant: (0..MOST as u32).rev().collect(),
                queued: 0,
                moved: 0,
                driver: Sleeper::default(),
            }),
        }))
    }

    /// Hands over entries and reaps completions, for as long as the shard lives. A task of its own.
    pub(crate) async fn drive(self: Rc<Self>) {
        let watched = poll_fn(|cx| {
            let mut core = self.core.borrow_mut();
            core.driver.remember(cx.waker());
            loop {
                core.submit();
                core.reap();
                match core.ring.poll_read_ready(cx) {
                    // Cleared before the next look, so that nothing slips in between.
                    Poll::Ready(Ok(mut ready)) => ready.clear_ready(),
                    Poll::Ready(Err(error)) => return Poll::Ready(error),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        let error: io::Error = watched.await;
        // The runtime is going away, and the shard with it.
        tracing::debug!(%error, "the ring for registered frames is watched no more");
    }

    /// Starts to move the spans, all of them, from or to `offset` in the file. Gives them back where
    /// they are not in one registered frame, or where too much is under way.
    pub(super) fn start(
        self: &Rc<Self>,
        spans: Box<Spans>,
        direction: Direction,
        offset: u64,
    ) -> Result<Passage, Box<Spans>> {
        match self.core.borrow_mut().start(spans, direction, offset) {
            Ok(index) => Ok(Passage { fixed: self.clone(), index: Some(index) }),
            Err(spans) => Err(spans),
        }
    }
}

impl Core {
    fn start(
        &mut self,
        spans: Box<Spans>,
        direction: Direction,
        offset: u64,
    ) -> Result<u32, Box<Spans>> {
        let &[piece] = spans.remaining() else {
            return Err(spans);
        };
        let Some(slot) = self.member.slot(piece.iov_base.addr(), piece.iov_len) else {
            return Err(spans);
        };
        if self.ring.get_mut().submission().is_full() {
            self.submit();
        }
        let Some(index) = self.vacant.pop() else {
            return Err(spans);
        };
        let fd = types::Fd(spans.volume().as_raw_fd());
        // A frame has at most 1 GiB.
        let (memory, len) = (piece.iov_base.cast::<u8>(), piece.iov_len as u32);
        let entry = match direction {
            Direction::Read => opcode::ReadFixed::new(fd, memory, len, slot).offset(offset).build(),
            Direction::Write => {
                opcode::WriteFixed::new(fd, memory, len, slot).offset(offset).build()
            }
        };
        let entry = entry.user_data(index.into());
        // SAFETY: file and memory are kept by the spans, which stay in their place until the kernel
        // has reported the end, also if nobody waits (`Drop for Core`).
        // Test: `an_abandoned_transfer_keeps_its_memory`.
        if unsafe { self.ring.get_mut().submission().push(&entry) }.is_err() {
            self.vacant.push(index);
            return Err(spans);
        }
        self.passages[index as usize] = Place::Going(spans, None);
        self.queued += 1;
        if self.queued >= BURST {
            self.submit();
            self.reap();
        } else if self.queued == 1 {
            self.wake_driver();
        }
        Ok(index)
    }

    /// Tells the kernel of the entries that are queued.
    fn submit(&mut self) {
        while self.queued > 0 {
            match self.ring.get_ref().submit() {
                Ok(taken) => {
                    self.queued = self.queued.saturating_sub(taken);
                    if taken == 0 {
                        return self.wake_driver();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // EAGAIN, EBUSY, ENOMEM: the kernel is short of something for the moment. The
                // entries stay in the queue, and the task comes again when the others had their turn.
                Err(_) => return self.wake_driver(),
            }
        }
    }

    fn wake_driver(&self) {
        self.driver.wake();
    }

    /// Takes what the kernel has finished; whether there was anything.
    fn reap(&mut self) -> bool {
        let Core { ring, passages, vacant, .. } = self;
        let mut any = false;
        for completion in ring.get_mut().completion() {
            let Some(place) = passages.get_mut(completion.user_data() as usize) else {
                continue;
            };
            any = true;
            match mem::take(place) {
                Place::Going(spans, waker) => {
                    *place = Place::Done(spans, completion.result());
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                Place::Abandoned(spans) => {
                    drop(spans);
                    vacant.push(completion.user_data() as u32);
                }
                unasked => *place = unasked,
            }
        }
        any
    }

    /// Whether the kernel has a transfer, or will.
    fn is_busy(&self) -> bool {
        let busy = |place: &Place| matches!(place, Place::Going(..) | Place::Abandoned(_));
        self.vacant.len() < MOST && self.passages.iter().any(busy)
    }
}

/// Waits for what the kernel still has: it may write that memory at any time.
impl Drop for Core {
    fn drop(&mut self) {
        while self.is_busy() {
            match self.ring.get_ref().submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted && !self.reap() => {
                    tracing::error!(%error, "transfers under way could not be waited for: their memory stays mapped");
                    return mem::forget(mem::take(&mut self.passages));
                }
                _ => drop(self.reap()),
            }
        }
    }
}

impl fmt::Debug for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = self.core.borrow();
        f.debug_struct("Fixed")
            .field("under_way", &(MOST - core.vacant.len()))
            .field("queued", &core.queued)
            .field("moved", &core.moved)
            .finish_non_exhaustive()
    }
}

/// A transfer that was started. Dropping it does not stop the kernel, which keeps the memory until
/// it is done.
pub(super) struct Passage {
    fixed: Rc<Fixed>,
    /// Its place, until its end has been seen.
    index: Option<u32>,
}

impl Future for Passage {
    type Output = (io::Result<usize>, Box<Spans>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let index = self.index.expect("polled again after its end");
        let (spans, result) = {
            let mut core = self.fixed.core.borrow_mut();
            let place = &mut core.passages[index as usize];
            match mem::take(place) {
                Place::Done(spans, result) => {
                    core.vacant.push(index);
                    core.moved += u64::from(result >= 0);
                    (spans, result)
                }
                mut going => {
                    if let Place::Going(_, waker) = &mut going {
                        *waker = Some(cx.waker().clone());
                    }
                    *place = going;
                    return Poll::Pending;
                }
            }
        };
        self.index = None;
        let moved = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        Poll::Ready((moved, spans))
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let Some(index) = self.index else {
            return;
        };
        let mut core = self.fixed.core.borrow_mut();
        let place = &mut core.passages[index as usize];
        match mem::take(place) {
            Place::Going(spans, _) => *place = Place::Abandoned(spans),
            _ => core.vacant.push(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel_subsystem::{DmaSpace, Window};
    use crate::volume::{BLOCK, FileIo, Volume};
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::fs;
    use std::ops::Range;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use vfio_ccw_pinning::{GuestMap, Pinner, Run};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    const FRAME: usize = 4096;
    const FRAMES: usize = 16;
    const BLOCKS: u64 = 128;

    /// A volume, guest memory, and a shard's ring in a pinner of `slots` frames.
    struct Bench {
        file: tempfile::NamedTempFile,
        volume: Arc<Volume>,
        map: Arc<GuestMap>,
        pinner: Registered,
        fixed: Rc<Fixed>,
    }

    /// Runs `test` on a shard's runtime, where the machine has what it needs.
    fn on_a_shard<F: Future>(slots: u32, test: impl FnOnce(Bench) -> F) {
        let pinner = match Registered::new(slots) {
            Ok(pinner) => pinner,
            Err(error) => return println!("SKIPPED: {error}"),
        };
        let Ok(runtime) = tokio_uring::Runtime::new(&tokio_uring::builder()) else {
            return println!("SKIPPED: io_uring is refused here");
        };
        runtime.block_on(async {
            let fixed = Fixed::new(&pinner).unwrap();
            tokio::task::spawn_local(fixed.clone().drive());
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(BLOCKS * BLOCK).unwrap();
            let volume = Arc::new(Volume::open(file.path(), false).unwrap());
            let ranges = [(GuestAddress(0), FRAMES * FRAME)];
            let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
            let map = Arc::new(GuestMap::new(Arc::new(memory)).unwrap());
            test(Bench { file, volume, map, pinner, fixed }).await;
        });
    }

    fn runs(map: &GuestMap, frames: impl IntoIterator<Item = usize>) -> Vec<Run<'_>> {
        let region = &map.regions()[0];
        let run = |frame: usize| Run {
            address: (frame * FRAME) as u64,
            host: region.host().part(frame * FRAME, FRAME).unwrap(),
            frame: frame as u32,
            frames: 1,
            region,
        };
        frames.into_iter().map(run).collect()
    }

    impl Bench {
        fn io(&self) -> FileIo {
            let mut dma = DmaSpace::default();
            dma.map(Window::new(0, self.map.regions()[0].host(), self.map.clone())).unwrap();
            let spans = Spans::new(self.volume.clone(), Arc::new(dma));
            FileIo::new(spans, None, Rc::new(Cell::new(0))).with_fixed(Some(self.fixed.clone()))
        }

        fn pin(&self, frames: impl IntoIterator<Item = usize>) {
            self.pinner.pin(&runs(&self.map, frames)).unwrap();
        }

        fn unpin(&self, frames: impl IntoIterator<Item = usize>) {
            self.pinner.unpin(&runs(&self.map, frames)).unwrap();
        }

        fn want_one(&self, io: &mut FileIo, piece: Range<usize>) {
            self.want(io, std::slice::from_ref(&piece));
        }

        fn want(&self, io: &mut FileIo, pieces: &[Range<usize>]) {
            let spans = io.spans().unwrap();
            spans.clear();
            for piece in pieces {
                spans.push(self.map.regions()[0].host().part(piece.start, piece.len()).unwrap());
            }
        }

        fn memory(&self, bytes: Range<usize>) -> Vec<u8> {
            let mut copy = vec![0; bytes.len()];
            assert!(self.map.read(bytes.start as u64, &mut copy));
            copy
        }

        /// Transfers that went through the ring for registered frames.
        fn straight(&self) -> u64 {
            self.fixed.core.borrow().moved
        }
    }

    /// Has a future run up to its first wait.
    async fn begin(future: &mut Pin<&mut impl Future>) {
        poll_fn(|cx| {
            assert!(future.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await
    }

    #[test]
    fn what_lies_in_one_registered_frame_goes_straight() {
        on_a_shard(8, async |bench: Bench| {
            bench.pin([1, 2]);
            let mut io = bench.io();
            assert!(bench.map.write(FRAME as u64, &[7; FRAME]));
            bench.want_one(&mut io, FRAME..2 * FRAME);
            io.transfer(Direction::Write, 512).await.unwrap();
            bench.want_one(&mut io, 2 * FRAME + 100..2 * FRAME + 612);
            io.transfer(Direction::Read, 4096).await.unwrap();
            assert_eq!(bench.straight(), 2);
            let file = fs::read(bench.file.path()).unwrap();
            assert_eq!((file[511], file[512], file[512 + FRAME]), (0, 7, 0));
            assert!(file[512..512 + FRAME].iter().all(|byte| *byte == 7));
            let read = bench.memory(2 * FRAME..3 * FRAME);
            assert_eq!((read[99], read[612]), (0, 0));
            assert!(read[100..612].iter().all(|byte| *byte == 7));
            let end = BLOCKS * BLOCK;
            bench.want_one(&mut io, FRAME..FRAME + 1024);
            let beyond = io.transfer(Direction::Read, end - 512).await.unwrap_err();
            assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
        });
    }

    #[test]
    fn what_does_not_goes_the_plain_way() {
        on_a_shard(8, async |bench: Bench| {
            bench.pin([1, 2]);
            let mut io = bench.io();
            let one = |piece: Range<usize>| vec![piece];
            let pieces = [
                // Of two registered frames, of one and its neighbour, of one twice, of none.
                one(FRAME + 512..2 * FRAME + 512),
                one(512..FRAME + 512),
                vec![FRAME..FRAME + 512, FRAME + 1024..FRAME + 1536],
                one(5 * FRAME..6 * FRAME),
            ];
            for (round, pieces) in pieces.iter().enumerate() {
                let byte = round as u8 + 1;
                pieces.iter().for_each(|piece| {
                    assert!(bench.map.write(piece.start as u64, &vec![byte; piece.len()]));
                });
                bench.want(&mut io, pieces);
                let bytes = io.spans().unwrap().bytes();
                io.transfer(Direction::Write, 0).await.unwrap();
                let file = fs::read(bench.file.path()).unwrap();
                assert!(file[..bytes].iter().all(|written| *written == byte));
            }
            bench.want_one(&mut io, FRAME..FRAME + 100);
            io.spans().unwrap().push_zeros(412);
            io.transfer(Direction::Write, 0).await.unwrap();
            let file = fs::read(bench.file.path()).unwrap();
            assert_eq!((file[99], file[100], file[511]), (3, 0, 0));
            assert_eq!(bench.straight(), 0);
        });
    }

    #[test]
    fn a_frame_that_is_unpinned_on_the_way_is_moved_all_the_same() {
        on_a_shard(1, async |bench: Bench| {
            fs::write(bench.file.path(), vec![9; FRAME * 2]).unwrap();
            let mut io = bench.io();
            for direction in [Direction::Read, Direction::Write] {
                bench.pin([1]);
                bench.want_one(&mut io, FRAME..2 * FRAME);
                let straight = bench.straight();
                {
                    let mut transfer = std::pin::pin!(io.transfer(direction, 0));
                    begin(&mut transfer).await;
                    // The entry is in the queue, with the slot that another frame now takes.
                    assert_eq!(bench.fixed.core.borrow().queued, 1);
                    bench.unpin([1]);
                    bench.pin([2]);
                    transfer.await.unwrap();
                }
                bench.unpin([2]);
                assert_eq!(bench.straight(), straight, "the kernel refused it");
                assert_eq!(bench.memory(FRAME..2 * FRAME), [9; FRAME]);
                assert_eq!(bench.memory(2 * FRAME..3 * FRAME), [0; FRAME], "{direction:?}");
                assert_eq!(fs::read(bench.file.path()).unwrap(), [9; 2 * FRAME]);
            }
        });
    }

    #[test]
    fn an_abandoned_transfer_keeps_its_memory() {
        on_a_shard(8, async |bench: Bench| {
            fs::write(bench.file.path(), vec![9; FRAME]).unwrap();
            bench.pin([1, 2]);
            for (frame, drive) in [(1, true), (2, false)] {
                let mut io = bench.io();
                bench.want_one(&mut io, frame * FRAME..(frame + 1) * FRAME);
                {
                    let mut transfer = std::pin::pin!(io.transfer(Direction::Read, 0));
                    begin(&mut transfer).await;
                }
                assert!(io.spans().is_err(), "the ring has them");
                drop(io);
                assert_eq!(Arc::strong_count(&bench.volume), 2);
                if drive {
                    while Arc::strong_count(&bench.volume) == 2 {
                        crate::turn::pass().await;
                    }
                } else {
                    // The end of the ring waits for what was only queued as well.
                    let successor = Fixed::new(&bench.pinner).unwrap();
                    let successor = Rc::into_inner(successor).unwrap().core.into_inner();
                    drop(bench.fixed.core.replace(successor));
                }
                assert_eq!(Arc::strong_count(&bench.volume), 1);
                assert_eq!(bench.memory(frame * FRAME..(frame + 1) * FRAME), [9; FRAME]);
            }
        });
    }

    #[test]
    fn a_shard_that_ends_leaves_the_pinner() {
        on_a_shard(8, async |bench: Bench| {
            bench.pin([1]);
            let second = Fixed::new(&bench.pinner).unwrap();
            bench.pin([2]);
            drop(second);
            bench.pin([3]);
            let mut io = bench.io();
            bench.want_one(&mut io, 3 * FRAME..4 * FRAME);
            io.transfer(Direction::Write, 0).await.unwrap();
            assert_eq!(bench.straight(), 1);
        });
    }

    #[test]
    fn more_transfers_than_the_queue_has_entries() {
        const TRANSFERS: usize = 3 * ENTRIES as usize;
        on_a_shard(FRAMES as u32, async |bench: Bench| {
            bench.pin(0..FRAMES);
            for frame in 0..FRAMES {
                assert!(bench.map.write((frame * FRAME) as u64, &[frame as u8 + 1; FRAME]));
            }
            let bench = Rc::new(bench);
            let writes: Vec<_> = (0..TRANSFERS)
                .map(|index| {
                    let mut io = bench.io();
                    let (frame, block) = (index % FRAMES, index % BLOCKS as usize);
                    bench.want_one(&mut io, frame * FRAME..frame * FRAME + 512);
                    tokio::task::spawn_local(async move {
                        io.transfer(Direction::Write, block as u64 * BLOCK).await.unwrap();
                    })
                })
                .collect();
            for write in writes {
                write.await.unwrap();
            }
            assert_eq!(bench.straight(), TRANSFERS as u64);
            let file = fs::read(bench.file.path()).unwrap();
            for (block, bytes) in file.chunks(512).enumerate() {
                assert_eq!(bytes, [(block % FRAMES) as u8 + 1; 512], "block {block}");
            }
        });
    }

    #[test]
    fn data_stay_right_while_frames_come_and_go() {
        const ROUNDS: usize = 2000;
        on_a_shard(4, async |bench: Bench| {
            let over = Arc::new(AtomicBool::new(false));
            let churn = std::thread::spawn({
                let (over, pinner, map) = (over.clone(), bench.pinner.clone(), bench.map.clone());
                move || {
                    let runs = runs(&map, 0..FRAMES);
                    // Relaxed: a wish to stop, which orders nothing.
                    while !over.load(Ordering::Relaxed) {
                        for runs in runs.chunks(4) {
                            pinner.pin(runs).unwrap();
                            pinner.unpin(runs).unwrap();
                        }
                    }
                }
            });
            let mut io = bench.io();
            for round in 0..ROUNDS {
                let (from, to) = (round * 7 % FRAMES, (round * 7 + 1) % FRAMES);
                let pattern = [(round % 251) as u8; 1024];
                let offset = (round as u64 * 5 % (BLOCKS - 1)) * BLOCK;
                assert!(bench.map.write((from * FRAME) as u64, &pattern));
                bench.want_one(&mut io, from * FRAME..from * FRAME + 1024);
                io.transfer(Direction::Write, offset).await.unwrap();
                bench.want_one(&mut io, to * FRAME + 8..to * FRAME + 1032);
                io.transfer(Direction::Read, offset).await.unwrap();
                assert_eq!(bench.memory(to * FRAME + 8..to * FRAME + 1032), pattern, "{round}");
            }
            over.store(true, Ordering::Relaxed);
            churn.join().unwrap();
        });
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// These frames are registered, and no others.
        Register(Vec<usize>),
        /// Pieces of 64 bytes times these, from these 64-byte places on, at this block.
        Move(Direction, Vec<(usize, usize)>, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let frames = prop::collection::btree_set(0..FRAMES, 0..8);
        let piece = (0..(FRAMES - 1) * 64, 1..64usize);
        let direction = prop_oneof![Just(Direction::Read), Just(Direction::Write)];
        prop_oneof![
            frames.prop_map(|frames| Step::Register(frames.into_iter().collect())),
            (direction, prop::collection::vec(piece, 1..4), 0..BLOCKS - 24)
                .prop_map(|(direction, pieces, block)| Step::Move(direction, pieces, block)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Memory and file are as a model of plain copies has them, whatever is registered.
        #[test]
        fn results_are_the_same_either_way(steps in prop::collection::vec(step(), 1..40)) {
            on_a_shard(8, async |bench: Bench| {
                let mut memory: Vec<u8> = (0..FRAMES * FRAME).map(|at| (at / 64) as u8).collect();
                let mut file: Vec<u8> =
                    (0..BLOCKS * BLOCK).map(|at| (at / 32) as u8 ^ 0x5a).collect();
                assert!(bench.map.write(0, &memory));
                fs::write(bench.file.path(), &file).unwrap();
                let mut io = bench.io();
                let mut registered = Vec::new();
                for step in &steps {
                    match step {
                        Step::Register(frames) => {
                            bench.unpin(registered);
                            bench.pin(frames.iter().copied());
                            registered = frames.clone();
                        }
                        Step::Move(direction, pieces, block) => {
                            let pieces: Vec<_> = pieces
                                .iter()
                                .map(|(start, len)| start * 64..(start + len) * 64)
                                .collect();
                            bench.want(&mut io, &pieces);
                            io.transfer(*direction, block * BLOCK).await.unwrap();
                            let mut at = (block * BLOCK) as usize;
                            for piece in pieces {
                                let bytes = at..at + piece.len();
                                at = bytes.end;
                                match direction {
                                    Direction::Read => memory[piece].copy_from_slice(&file[bytes]),
                                    Direction::Write => file[bytes].copy_from_slice(&memory[piece]),
                                }
                            }
                        }
                    }
                }
                assert_eq!(bench.memory(0..FRAMES * FRAME), memory);
                assert_eq!(fs::read(bench.file.path()).unwrap(), file);
            });
        }
    }
}
