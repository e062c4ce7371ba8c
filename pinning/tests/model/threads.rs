//! Several threads at once: programs that come and go, one that turns every knob, one that watches.
//!
//! What happens in which order is up to the machine, so there are no exact expectations; but the
//! books know at every call of the pinner what is in use, what is withdrawn and how much may be
//! pinned. Steps are counted, not timed. A lost wake-up would be a thread that waits for ever: the
//! test then fails instead of hanging.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use parking_lot::RwLock;
use vfio_ccw_pinning::{
    FRAME, Granule, GuestMap, Hold, HoldError, Mode, Pool, PoolOptions, WholeGuest, Withdrawn,
};

use super::draw::Draw;
use super::guest::{BankShape, Guest, SLOTS};
use super::pinner::{BookKeeper, Character};

/// Far longer than any run takes: only a lost wake-up gets here.
const HANG: Duration = Duration::from_secs(120);

/// How long a knob may wait for programs to give way.
const PATIENCE: Duration = Duration::from_millis(2);

/// What the threads do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Where all choices come from.
    pub seed: u64,
    /// Threads that run programs.
    pub threads: u64,
    /// Steps of each of them.
    pub steps: u64,
    /// Frame size asked for.
    pub granule: u64,
    /// The pinner.
    pub character: Character,
    /// Whether the pinner refuses now and then.
    pub refuses: bool,
    /// Whether budget, layout, balloon and mode change meanwhile.
    pub turns_knobs: bool,
}

/// What is plugged into the slots: large frames fit into some only.
const SHAPES: [BankShape; SLOTS] = [
    BankShape { frames: 48, skew: 0 },
    BankShape { frames: 45, skew: 0 },
    BankShape { frames: 24, skew: 2 },
    BankShape { frames: 12, skew: 0 },
];

/// The budget at first, with which a few programs already wait for each other.
const SMALL_BUDGET: u64 = 24 * FRAME;

/// With budgets up to this, the whole guest fits.
const LARGEST_BUDGET: u64 = 140 * FRAME;

/// Most programs that a thread has under way.
const PROGRAMS: usize = 3;

/// What the threads share.
struct Ground {
    load: Load,
    pool: Arc<Pool>,
    model: BookKeeper,
    /// Programs choose and get their frames under a read guard, so that none asks for frames of a
    /// layout that is gone. They may hold them for longer.
    layout: RwLock<Layout>,
    is_over: AtomicBool,
}

#[derive(Clone)]
struct Layout {
    guest: Guest,
    map: Arc<GuestMap>,
}

/// The end of a thread: whether it ran programs, and how it ended.
type End = (bool, Result<(), Box<dyn Any + Send>>);

/// Runs `load` to its end and checks that nothing is left.
pub fn run(load: Load) {
    let mut guest = Guest::default();
    (0..2).for_each(|slot| guest.plug(slot, SHAPES[slot]));
    let map = GuestMap::with_granule(guest.memory(), Granule::Bytes(load.granule)).unwrap();
    let map = Arc::new(map);
    let model = BookKeeper::new(load.character, SMALL_BUDGET);
    let options = PoolOptions { max_memory: Some(1 << 20), ..PoolOptions::default() };
    let pool = Pool::with_options(map.clone(), Box::new(model.clone()), SMALL_BUDGET, options);
    let pool = Arc::new(pool.unwrap());
    let ground = Arc::new(Ground {
        load,
        pool: pool.clone(),
        model: model.clone(),
        layout: RwLock::new(Layout { guest, map }),
        is_over: AtomicBool::new(false),
    });
    run_threads(&ground);
    drop(ground);

    model.check();
    assert_eq!(pool.waiting(), 0);
    model.refuse_unpins(0, 0);
    pool.unpin_all_idle().expect("nothing is refused");
    model.check();
    assert_eq!((pool.pinned_bytes(), model.bytes()), (0, 0), "pinned for nobody");
    assert!(pool.peak_bytes() >= model.peak());
    drop(pool);
    model.check();
}

/// Runs all threads until those that run programs have made their steps.
fn run_threads(ground: &Arc<Ground>) {
    let load = ground.load;
    let (ended, ends) = channel();
    let mut draw = Draw::new(load.seed);
    for _ in 0..load.threads {
        let draw = Draw::new(draw.of(0..u64::MAX));
        spawn(ground, &ended, true, |ground| run_programs(ground, draw));
    }
    spawn(ground, &ended, false, watch);
    if load.turns_knobs {
        spawn(ground, &ended, false, |ground| Knobs::new(ground, draw).turn());
    }
    drop(ended);
    let mut busy = load.threads;
    loop {
        // The last sender is gone when the last thread has said how it ended.
        let (ran_programs, end): End = match ends.recv_timeout(HANG) {
            Ok(end) => end,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
            Err(_) => panic!("somebody waits for ever: {:?}", ground.pool),
        };
        // The others may wait for what this one held: they are left behind.
        end.unwrap_or_else(|panic| resume_unwind(panic));
        busy -= u64::from(ran_programs);
        if busy == 0 {
            // Relaxed: it only ends loops.
            ground.is_over.store(true, Ordering::Relaxed);
        }
    }
}

fn spawn(
    ground: &Arc<Ground>,
    ended: &Sender<End>,
    runs_programs: bool,
    act: impl FnOnce(&Ground) + Send + 'static,
) {
    let (ground, ended) = (ground.clone(), ended.clone());
    thread::spawn(move || {
        let end = catch_unwind(AssertUnwindSafe(|| act(&ground)));
        drop(ground);
        // Nobody listens any more where another thread has failed first.
        let _ = ended.send((runs_programs, end));
    });
}

/// A program under way.
struct Program {
    hold: Hold,
    frames: Vec<u32>,
}

/// A thread that starts programs, looks after them and ends them.
fn run_programs(ground: &Ground, mut draw: Draw) {
    let mut running: Vec<Program> = Vec::new();
    let mut idle: Vec<Hold> = (0..PROGRAMS).map(|_| Hold::default()).collect();
    for _ in 0..ground.load.steps {
        ground.model.check();
        if idle.is_empty() || !running.is_empty() && draw.once_in(2) {
            let program = running.swap_remove(draw.of(0..running.len() as u64) as usize);
            idle.push(end(ground, program, &mut draw));
            continue;
        }
        let mut hold = idle.pop().expect("one is idle");
        match start(ground, &mut hold, running.is_empty(), &mut draw) {
            Some(frames) => running.push(Program { hold, frames }),
            None => idle.push(hold),
        }
    }
    running.into_iter().for_each(|program| drop(end(ground, program, &mut draw)));
}

/// Starts a program that wants random frames, and returns them if it has got them. It waits for them
/// only where its thread holds none: threads that hold and wait would wait for each other.
fn start(ground: &Ground, hold: &mut Hold, may_wait: bool, draw: &mut Draw) -> Option<Vec<u32>> {
    let layout = match may_wait {
        true => ground.layout.read(),
        // Who changes the layout may wait for a thread that waits for frames that this one holds.
        false => ground.layout.try_read()?,
    };
    let mut frames = Vec::new();
    for _ in 0..draw.of(1..4) {
        let slot = *draw.pick(&layout.guest.plugged());
        let there = layout.guest.frames(slot);
        // Half of the uses go to a few frames, so that threads meet.
        let first = if draw.once_in(2) { draw.of(0..there) } else { draw.of(0..there.min(4)) };
        for page in first..there.min(first + draw.of(1..4)) {
            frames.push(layout.map.frame(Guest::address(slot, page)).expect("it is plugged"));
        }
    }
    hold.clear();
    frames.iter().for_each(|frame| hold.want(*frame));
    frames.sort_unstable();
    frames.dedup();
    let result = match may_wait && draw.once_in(2) {
        true => ground.pool.hold_blocking(hold),
        false => try_to_hold(ground, hold, draw.of(1..20))?,
    };
    if let Err(error) = result {
        assert!(!hold.is_holding(), "refused, and it holds frames");
        let character = ground.load.character;
        let is_legal = match error {
            // The budget may be small at the moment, the number of runs always is.
            HoldError::TooLarge { .. } => ground.load.turns_knobs,
            HoldError::TooManyFrames { .. } => character.most_runs.is_some(),
            HoldError::Pin { .. } | HoldError::Unpin { .. } => ground.load.refuses,
            _ => false,
        };
        assert!(is_legal && character.is_needed, "{error}");
        return None;
    }
    match hold.tally().unpinned {
        0 => ground.model.enter(&frames),
        unpinned => {
            assert!(!ground.load.character.is_needed, "{unpinned} frames are needed, not pinned");
        }
    }
    check_frames(ground, hold, &frames);
    Some(frames)
}

/// Looks `times` times whether the frames can be had, then leaves the line.
fn try_to_hold(ground: &Ground, hold: &mut Hold, times: u64) -> Option<Result<(), HoldError>> {
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..times {
        match ground.pool.poll_hold(hold, &mut context) {
            Poll::Ready(result) => return Some(result),
            Poll::Pending => assert!(!hold.is_holding(), "waits, and holds frames"),
        }
        thread::yield_now();
    }
    ground.pool.forget(hold);
    None
}

fn end(ground: &Ground, mut program: Program, draw: &mut Draw) -> Hold {
    (0..draw.of(0..8)).for_each(|_| thread::yield_now());
    check_frames(ground, &program.hold, &program.frames);
    if program.hold.tally().unpinned == 0 {
        ground.model.leave(&program.frames);
    }
    let mode = if draw.once_in(3) { Mode::OnDemand } else { Mode::Cached };
    ground.pool.release(&mut program.hold, mode);
    program.hold
}

/// A program's frames are all pinned, or it holds none.
fn check_frames(ground: &Ground, hold: &Hold, frames: &[u32]) {
    let is_unpinned = hold.tally().unpinned > 0;
    assert_ne!(hold.is_holding(), is_unpinned);
    let lost = frames.len() - ground.model.count_pinned(frames);
    assert!(is_unpinned || lost == 0, "{lost} of {} frames are not pinned", frames.len());
}

/// A thread that watches the budget.
fn watch(ground: &Ground) {
    // Relaxed: it only ends the loop.
    while !ground.is_over.load(Ordering::Relaxed) {
        ground.model.check();
        let before = ground.model.ceiling();
        let account = ground.pool.pinned_bytes();
        // Else the ceiling moved while we looked.
        if ground.model.ceiling() == before {
            assert!(account <= before.0, "{account} bytes on the account, {} may be", before.0);
        }
        thread::yield_now();
    }
}

/// Frames that a balloon has.
struct Balloon<'p> {
    frames: Vec<u32>,
    _guard: Withdrawn<'p>,
}

/// The thread that turns the knobs, one at a time.
struct Knobs<'p> {
    ground: &'p Ground,
    draw: Draw,
    balloon: Option<Balloon<'p>>,
    lease: Option<WholeGuest>,
    /// A layout was left of which the pool still knows frames.
    is_unsettled: bool,
}

impl<'p> Knobs<'p> {
    fn new(ground: &'p Ground, draw: Draw) -> Self {
        Knobs { ground, draw, balloon: None, lease: None, is_unsettled: false }
    }

    fn turn(mut self) {
        // Relaxed: it only ends the loop.
        while !self.ground.is_over.load(Ordering::Relaxed) {
            // Programs get on meanwhile, and wait, and evict each other's frames.
            (0..self.draw.of(0..64)).for_each(|_| thread::yield_now());
            match self.draw.of(0..16) {
                0..6 => self.set_budget(),
                6..9 => self.withdraw(),
                9..11 => self.give_back(),
                11 => self.lease(),
                12 => self.lease = None,
                13..15 => self.plug_or_unplug(),
                _ => self.unpin_idle(),
            }
            if self.is_unsettled {
                self.settle();
            }
            if self.ground.load.refuses {
                let (after, times) = (self.draw.of(0..40) as u32, self.draw.of(0..3) as u32);
                self.ground.model.refuse_pins(after, times);
                self.ground.model.refuse_unpins(after / 2, times / 2);
            }
            self.ground.model.check();
        }
        self.give_back();
        self.lease = None;
        self.ground.model.refuse_unpins(0, 0);
        if self.is_unsettled {
            self.settle();
            assert!(!self.is_unsettled, "nobody uses what should be retired");
        }
    }

    /// None, or some: a failure is as right as a success.
    fn patience(&mut self) -> Duration {
        if self.draw.once_in(2) { Duration::ZERO } else { PATIENCE }
    }

    fn set_budget(&mut self) {
        let Ground { pool, model, .. } = self.ground;
        let before = pool.budget_bytes();
        let bytes = match self.draw.once_in(4) {
            true => self.draw.of(SMALL_BUDGET..LARGEST_BUDGET),
            false => self.draw.of(SMALL_BUDGET / 2..2 * SMALL_BUDGET),
        };
        let patience = self.patience();
        model.set_ceiling(before.max(bytes));
        let result = pool.set_budget(bytes, patience);
        let now = pool.budget_bytes();
        match result {
            Ok(()) => assert!(now <= bytes && bytes - now < FRAME, "{now} instead of {bytes}"),
            Err(error) => assert_eq!(now, before, "the budget stays after: {error}"),
        }
        model.set_ceiling(now);
    }

    fn withdraw(&mut self) {
        self.give_back();
        let layout = self.ground.layout.read().clone();
        let slot = *self.draw.pick(&layout.guest.plugged());
        let there = layout.guest.frames(slot);
        let first = self.draw.of(0..there);
        let pages = first..there.min(first + self.draw.of(1..6));
        let start = Guest::address(slot, pages.start);
        let len = (pages.end - pages.start) * FRAME;
        let frames = pages.filter_map(|page| layout.map.frame(Guest::address(slot, page)));
        let mut frames: Vec<u32> = frames.collect();
        frames.dedup();
        let patience = self.patience();
        // A failure is right: the frames are in use, or the whole guest is pinned.
        if let Ok(guard) = self.ground.pool.withdraw(start, len, patience) {
            assert!(self.lease.is_none(), "withdrew from a guest that is pinned");
            self.ground.model.keep_out(&frames);
            self.balloon = Some(Balloon { frames, _guard: guard });
        }
    }

    fn give_back(&mut self) {
        if let Some(balloon) = self.balloon.take() {
            self.ground.model.let_in(&balloon.frames);
        }
    }

    fn lease(&mut self) {
        self.give_back();
        if let Ok(lease) = self.ground.pool.lease_whole_guest() {
            self.lease = Some(lease);
            let layout = self.ground.layout.read();
            let bytes = self.ground.model.bytes();
            assert!(bytes >= layout.map.bytes(), "the whole guest is not pinned: {bytes}");
        }
    }

    fn plug_or_unplug(&mut self) {
        if self.is_unsettled {
            return;
        }
        // Programs that wait for what the balloon has keep the layout.
        self.give_back();
        let slot = self.draw.of(1..SLOTS as u64) as usize;
        let mut layout = self.ground.layout.read().clone();
        let is_plugged = layout.guest.frames(slot) > 0;
        if is_plugged {
            layout.guest.unplug(slot);
        } else {
            layout.guest.plug(slot, SHAPES[slot]);
        }
        layout.map = Arc::new(layout.map.replaced_by(layout.guest.memory()).unwrap());
        match self.ground.pool.extend(&layout.map) {
            Ok(()) => *self.ground.layout.write() = layout,
            // The whole guest is pinned, and what comes has no room or was refused.
            Err(error) => {
                assert!(self.lease.is_some() && !is_plugged, "{error}");
                return;
            }
        }
        self.is_unsettled = is_plugged;
    }

    fn settle(&mut self) {
        let map = self.ground.layout.read().map.clone();
        let patience = self.patience();
        // A failure is right: programs that started before still run.
        self.is_unsettled = self.ground.pool.retire(&map, patience).is_err();
    }

    fn unpin_idle(&mut self) {
        if let Err(error) = self.ground.pool.unpin_all_idle() {
            assert!(self.ground.load.refuses, "{error}");
        }
    }
}
