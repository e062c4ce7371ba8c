//! Steps in order, each with what has to come of it.
//!
//! The expectations are simple because one thread does everything: between two steps nothing is in
//! anybody's hands. So a program runs at once if its frames are pinned, or if nobody is ahead of it
//! and the frames in use, its own among them, fit into the budget; else it waits.
//!
//! An interruption acts inside a call of the pinner, where the pool has to expect other threads.
//! What comes of an interrupted step depends on it; but when the step is over everything has to be
//! as it should be again, and whoever need not wait any more has to know.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use vfio_ccw_pinning::{
    FRAME, Granule, GuestMap, Hold, HoldError, Mode, Pool, PoolError, PoolOptions, WholeGuest,
    Withdrawn,
};

use super::guest::{BankShape, Guest};
use super::pinner::{BookKeeper, Character};
use super::steps::{Act, PROGRAMS, Pages, Setup, Step};

/// Plays `steps` and then winds everything down.
pub fn play(setup: &Setup, steps: &[Step]) {
    let mut guest = Guest::default();
    setup.banks.iter().enumerate().for_each(|(slot, shape)| guest.plug(slot, *shape));
    let map = GuestMap::with_granule(guest.memory(), Granule::Bytes(setup.granule)).unwrap();
    let map = Arc::new(map);
    let model = BookKeeper::new(setup.character, setup.budget);
    let options = PoolOptions { max_memory: Some(1 << 20), ..PoolOptions::default() };
    let pool = match Pool::with_options(map.clone(), Box::new(model.clone()), setup.budget, options)
    {
        Ok(pool) => Arc::new(pool),
        Err(error) => {
            let largest = places(&map).into_values().map(|place| place.bytes).max();
            assert!(largest > Some(setup.budget), "a budget of {}: {error}", setup.budget);
            return;
        }
    };
    let world = World::new(model.clone(), setup.character, guest, map);
    let programs = Programs { pool: Arc::downgrade(&pool), world: Arc::new(Mutex::new(world)) };
    let (weak_pool, weak_world) = (programs.pool.clone(), Arc::downgrade(&programs.world));
    // Weak, since the world has the pinner, and that has this.
    model.interrupt_with(move || {
        if let Some(world) = weak_world.upgrade() {
            Programs { pool: weak_pool.clone(), world }.interrupt();
        }
    });
    let mut player = Player { pool: &pool, programs, guards: VecDeque::new(), leases: Vec::new() };
    for step in steps {
        player.take(step);
        player.check();
    }
    player.wind_down();
    drop(player);
    drop(pool);
    model.check();
    assert_eq!(model.bytes(), 0, "the pool is gone");
}

/// Whether somebody was woken since last asked.
#[derive(Debug, Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // Relaxed: one thread does everything.
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    /// In line, behind those who came before.
    InLine { since: u64 },
    /// Until frames are given back that are withdrawn or in somebody's hands; in nobody's way.
    Aside,
    /// With its frames pinned.
    Running,
    /// Without: its device can do without.
    Unpinned,
}

#[derive(Default)]
struct Program {
    /// `None` while the pool has it.
    hold: Option<Hold>,
    share: Option<u64>,
    wants: BTreeSet<u32>,
    stage: Stage,
    bell: Arc<Bell>,
}

impl Program {
    fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::InLine { .. } | Stage::Aside)
    }

    fn was_woken(&self) -> bool {
        // Relaxed: one thread does everything.
        self.bell.0.load(Ordering::Relaxed)
    }
}

/// Where a frame is.
#[derive(Clone, Copy, Debug)]
struct Place {
    address: u64,
    bytes: u64,
}

impl Place {
    fn touches(&self, start: u64, len: u64) -> bool {
        self.address < start + len && start < self.address + self.bytes
    }
}

/// All frames of a map.
fn places(map: &GuestMap) -> BTreeMap<u32, Place> {
    let mut places = BTreeMap::new();
    for region in map.regions() {
        let bytes = region.frame_bytes();
        for index in 0..region.frames() {
            let address = region.start() + u64::from(index) * bytes;
            places.insert(region.first_frame() + index, Place { address, bytes });
        }
    }
    places
}

/// What has been refused and who has interrupted, up to some moment.
#[derive(Clone, Copy)]
struct Mark {
    pins: u64,
    unpins: u64,
    interruptions: u64,
}

/// What happened since a mark.
struct Since {
    /// A pin was refused.
    pins: bool,
    /// An unpin was refused.
    unpins: bool,
    /// Nobody interrupted, and this is no interruption itself: expectations are exact.
    is_quiet: bool,
}

/// What should be so.
struct World {
    model: BookKeeper,
    character: Character,
    guest: Guest,
    map: Arc<GuestMap>,
    /// Every frame that the pool knows, also those that could not be retired yet.
    known: BTreeMap<u32, Place>,
    is_unsettled: bool,
    programs: [Program; PROGRAMS],
    /// Frames of each balloon.
    balloons: VecDeque<BTreeSet<u32>>,
    is_leased: bool,
    /// While it shrinks, the budget itself stands in line.
    is_budget_in_line: bool,
    arrivals: u64,
    /// Acts to come inside calls of the pinner, each when so many runs more have passed.
    to_come: VecDeque<(u32, Act)>,
    interruptions: u64,
    /// Interruptions going on, one inside the other.
    depth: u32,
}

impl World {
    fn new(model: BookKeeper, character: Character, guest: Guest, map: Arc<GuestMap>) -> Self {
        let program = || Program { hold: Some(Hold::default()), ..Program::default() };
        World {
            model,
            character,
            guest,
            known: places(&map),
            map,
            is_unsettled: false,
            programs: std::array::from_fn(|_| program()),
            balloons: VecDeque::new(),
            is_leased: false,
            is_budget_in_line: false,
            arrivals: 0,
            to_come: VecDeque::new(),
            interruptions: 0,
            depth: 0,
        }
    }

    fn mark(&self) -> Mark {
        let (pins, unpins) = self.model.refusals();
        Mark { pins, unpins, interruptions: self.interruptions }
    }

    fn since(&self, mark: Mark) -> Since {
        let (pins, unpins) = self.model.refusals();
        let is_quiet = self.depth == 0 && self.interruptions == mark.interruptions;
        Since { pins: pins != mark.pins, unpins: unpins != mark.unpins, is_quiet }
    }

    /// Guest address and length in bytes of `pages`, which are all there.
    fn span(&self, pages: Pages) -> (u64, u64) {
        let plugged = self.guest.plugged();
        let slot = plugged[pages.slot % plugged.len()];
        let there = self.guest.frames(slot);
        let first = pages.first % there;
        (Guest::address(slot, first), pages.count.min(there - first) * FRAME)
    }

    /// The frames of `pages`.
    fn frames(&self, pages: Pages) -> Vec<u32> {
        let (start, len) = self.span(pages);
        let addresses = (start..start + len).step_by(FRAME as usize);
        addresses.filter_map(|address| self.map.frame(address)).collect()
    }

    /// The frames that programs and leases use.
    fn in_use(&self) -> BTreeSet<u32> {
        let running = self.programs.iter().filter(|program| program.stage == Stage::Running);
        let mut frames: BTreeSet<u32> =
            running.flat_map(|program| program.wants.iter().copied()).collect();
        if self.is_leased {
            frames.extend(places(&self.map).into_keys());
        }
        frames
    }

    /// The numbers of the programs in line, in its order.
    fn line(&self) -> Vec<usize> {
        let mut line = Vec::new();
        for (number, program) in self.programs.iter().enumerate() {
            if let Stage::InLine { since } = program.stage {
                line.push((since, number));
            }
        }
        line.sort_unstable();
        line.into_iter().map(|(_, number)| number).collect()
    }

    fn bytes<'a>(&self, frames: impl IntoIterator<Item = &'a u32>) -> u64 {
        frames.into_iter().map(|frame| self.known[frame].bytes).sum()
    }

    fn is_kept_out(&self, frames: &BTreeSet<u32>) -> bool {
        self.balloons.iter().any(|balloon| !balloon.is_disjoint(frames))
    }

    /// Whether so many frames may be pinned at one time.
    fn may_run(&self, frames: usize) -> bool {
        self.character.most_runs.is_none_or(|most| frames <= most as usize)
    }

    /// Whether a program could never hold its frames.
    fn is_too_large(&self, program: &Program, budget: u64) -> bool {
        let need = self.bytes(&program.wants);
        need > budget
            || program.share.is_some_and(|share| need > share)
            || !self.may_run(program.wants.len())
    }

    /// Whether `wants` can be pinned beside what is in use.
    fn fits(&self, wants: &BTreeSet<u32>, budget: u64) -> bool {
        let mut frames = self.in_use();
        frames.extend(wants);
        self.bytes(&frames) <= budget && self.may_run(frames.len())
    }

    /// Whoever need not wait any more has been told so.
    fn check_wakes(&self, budget: u64) {
        if let Some(first) = self.line().first() {
            let program = &self.programs[*first];
            let would_not_wait = self.is_kept_out(&program.wants)
                || self.is_too_large(program, budget)
                || self.fits(&program.wants, budget);
            assert!(
                !would_not_wait || program.was_woken(),
                "program {first} is first in line, would not wait there and was not woken"
            );
        }
        for (number, program) in self.programs.iter().enumerate() {
            let is_free = program.stage == Stage::Aside && !self.is_kept_out(&program.wants);
            assert!(!is_free || program.was_woken(), "program {number} waits for what is there");
        }
    }
}

/// The programs, as steps and as interruptions.
struct Programs {
    pool: Weak<Pool>,
    world: Arc<Mutex<World>>,
}

impl Programs {
    /// Called inside calls of the pinner: acts if it is time.
    fn interrupt(&self) {
        let act = {
            let mut world = self.world.lock();
            match world.to_come.front_mut() {
                None => return,
                Some((0, _)) => {}
                Some((after, _)) => {
                    *after -= 1;
                    return;
                }
            }
            world.depth += 1;
            world.interruptions += 1;
            world.to_come.pop_front().map(|(_, act)| act)
        };
        if let (Some(act), Some(pool)) = (act, self.pool.upgrade()) {
            self.act(&pool, &act);
        }
        self.world.lock().depth -= 1;
    }

    fn act(&self, pool: &Pool, act: &Act) {
        match *act {
            Act::Start { program, ref wants, share } => self.start(pool, program, wants, share),
            Act::Look { program } => self.look_again(pool, program),
            Act::End { program, mode } => self.end(pool, program, mode),
            Act::GiveUp { program } => self.give_up(pool, program),
            Act::UnpinIdle => self.unpin_idle(pool),
        }
    }

    fn start(&self, pool: &Pool, number: usize, wants: &[Pages], share: Option<u64>) {
        let mut world = self.world.lock();
        let frames: Vec<u32> = wants.iter().flat_map(|pages| world.frames(*pages)).collect();
        let program = &mut world.programs[number];
        let Some(hold) = program.hold.as_mut() else { return };
        if program.stage != Stage::Idle {
            return;
        }
        program.share = share.map(|pages| pages * FRAME);
        hold.limit_bytes(program.share);
        hold.clear();
        frames.iter().for_each(|frame| hold.want(*frame));
        program.wants = frames.into_iter().collect();
        self.look(pool, number, world);
    }

    fn look_again(&self, pool: &Pool, number: usize) {
        let world = self.world.lock();
        if world.programs[number].is_waiting() {
            self.look(pool, number, world);
        }
    }

    /// A program that starts or waits asks for its frames.
    fn look(&self, pool: &Pool, number: usize, mut world: MutexGuard<'_, World>) {
        let budget = pool.budget_bytes();
        let program = &world.programs[number];
        let is_kept_out = world.is_kept_out(&program.wants);
        let is_too_large = world.is_too_large(program, budget);
        let fits = world.fits(&program.wants, budget);
        let was_pinned = world.model.count_pinned(&program.wants) == program.wants.len();
        let place = world.line().iter().position(|other| *other == number);
        let has_turn = place == Some(0) || place.is_none() && world.line().is_empty();
        let mark = world.mark();
        let program = &mut world.programs[number];
        let Some(mut hold) = program.hold.take() else { return };
        let bell = program.bell.clone();
        drop(world);

        // Relaxed: one thread does everything.
        bell.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(bell);
        let outcome = pool.poll_hold(&mut hold, &mut Context::from_waker(&waker));

        let mut world = self.world.lock();
        let Since { pins, unpins, is_quiet } = world.since(mark);
        let unpinned = hold.tally().unpinned;
        world.programs[number].hold = Some(hold);
        let stage = match outcome {
            Poll::Ready(Ok(())) if unpinned > 0 => {
                assert!(!world.character.is_needed, "a device needs its frames");
                assert!(is_too_large || pins || unpins, "runs unpinned and could be served");
                Stage::Unpinned
            }
            Poll::Ready(Ok(())) => {
                assert!(!is_kept_out, "runs on withdrawn frames");
                assert!(!is_too_large, "runs with more than it may hold");
                assert!(was_pinned || has_turn || !is_quiet, "overtakes");
                world.model.enter(&world.programs[number].wants);
                Stage::Running
            }
            Poll::Ready(Err(error)) => {
                assert!(world.character.is_needed, "it could run unpinned: {error}");
                match error {
                    HoldError::TooLarge { .. } | HoldError::TooManyFrames { .. } => {
                        assert!(is_too_large, "{error}");
                    }
                    HoldError::Pin { .. } => assert!(pins, "no pin was refused: {error}"),
                    HoldError::Unpin { .. } => assert!(unpins, "no unpin was refused: {error}"),
                    _ => panic!("{error}"),
                }
                Stage::Idle
            }
            Poll::Pending => {
                assert!(!is_too_large, "waits for what will never be");
                if is_quiet && !is_kept_out {
                    assert!(!was_pinned, "waits, and its frames are pinned");
                    assert!(!has_turn || !fits, "waits, and could be served");
                }
                let others = world.line().iter().filter(|other| **other != number).count()
                    + usize::from(world.is_budget_in_line);
                match world.programs[number].stage {
                    _ if pool.waiting() == others => {
                        assert!(is_kept_out || !is_quiet, "stands aside for nobody");
                        Stage::Aside
                    }
                    Stage::InLine { since } => Stage::InLine { since },
                    _ => {
                        world.arrivals += 1;
                        Stage::InLine { since: world.arrivals }
                    }
                }
            }
        };
        world.programs[number].stage = stage;
    }

    fn end(&self, pool: &Pool, number: usize, mode: Mode) {
        let mut world = self.world.lock();
        let mark = world.mark();
        let program = &mut world.programs[number];
        let stage = program.stage;
        if !matches!(stage, Stage::Running | Stage::Unpinned) {
            return;
        }
        let Some(mut hold) = program.hold.take() else { return };
        program.stage = Stage::Idle;
        let mut ended = std::mem::take(&mut program.wants);
        match stage {
            Stage::Running => world.model.leave(&ended),
            // It had none.
            _ => ended.clear(),
        }
        drop(world);

        pool.release(&mut hold, mode);

        let mut world = self.world.lock();
        world.programs[number].hold = Some(hold);
        let since = world.since(mark);
        if mode == Mode::OnDemand && since.is_quiet && !since.unpins {
            let unused: Vec<u32> = ended.difference(&world.in_use()).copied().collect();
            assert_eq!(world.model.count_pinned(&unused), 0, "on-demand left frames pinned");
        }
    }

    fn give_up(&self, pool: &Pool, number: usize) {
        let mut world = self.world.lock();
        let program = &mut world.programs[number];
        if !program.is_waiting() {
            return;
        }
        // No call to the pinner comes of this, so nobody interrupts.
        if let Some(hold) = program.hold.as_mut() {
            pool.forget(hold);
            program.stage = Stage::Idle;
            program.wants.clear();
        }
    }

    fn unpin_idle(&self, pool: &Pool) {
        let world = self.world.lock();
        let (mark, before) = (world.mark(), world.model.bytes());
        drop(world);

        let result = pool.unpin_all_idle();

        let world = self.world.lock();
        let since = world.since(mark);
        match result {
            Ok(freed) if since.is_quiet => {
                assert_eq!(freed, before - world.model.bytes());
                let in_use = world.bytes(&world.in_use());
                assert_eq!(world.model.bytes(), in_use, "idle and pinned");
            }
            Ok(_) => {}
            Err(error) => assert!(since.unpins, "no unpin was refused: {error}"),
        }
    }
}

/// The thread that does everything.
struct Player<'p> {
    pool: &'p Arc<Pool>,
    programs: Programs,
    /// Guards of the balloons.
    guards: VecDeque<Withdrawn<'p>>,
    leases: Vec<WholeGuest>,
}

impl Player<'_> {
    /// Never kept over a call of the pool: that may be interrupted.
    fn world(&self) -> MutexGuard<'_, World> {
        self.programs.world.lock()
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Act(ref act) => self.programs.act(self.pool, act),
            Step::Interrupt { after, ref act } => {
                self.world().to_come.push_back((after, act.clone()));
            }
            Step::Withdraw(pages) => self.withdraw(pages),
            Step::GiveBack { guard } => self.give_back(guard),
            Step::Budget { bytes } => self.set_budget(bytes),
            Step::Lease => self.lease(),
            Step::EndLease => self.end_lease(),
            Step::Plug { slot, shape } => self.plug(slot, shape),
            Step::Unplug { slot } => self.unplug(slot),
            Step::Settle => self.settle(),
            Step::RefusePins { after, times } => self.world().model.refuse_pins(after, times),
            Step::RefuseUnpins { after, times } => self.world().model.refuse_unpins(after, times),
        }
    }

    /// What is so after every step.
    fn check(&self) {
        let world = self.world();
        world.model.check();
        let (pinned, budget) = (self.pool.pinned_bytes(), self.pool.budget_bytes());
        assert_eq!(pinned, world.model.bytes(), "bytes on the pool's account");
        assert!(pinned <= budget, "{pinned} bytes are pinned, {budget} may be");
        assert!(self.pool.peak_bytes() >= world.model.peak());
        for (number, program) in world.programs.iter().enumerate() {
            let is_running = program.stage == Stage::Running;
            let is_holding = program.hold.as_ref().is_some_and(Hold::is_holding);
            assert_eq!(is_holding, is_running, "program {number} holds frames");
            let lost = program.wants.len() - world.model.count_pinned(&program.wants);
            assert!(!is_running || lost == 0, "program {number} lost {lost} frames");
        }
        for balloon in &world.balloons {
            assert_eq!(world.model.count_pinned(balloon), 0, "withdrawn and pinned");
        }
        assert_eq!(self.pool.waiting(), world.line().len(), "programs in line");
        world.check_wakes(budget);
    }

    fn withdraw(&mut self, pages: Pages) {
        let world = self.world();
        let (start, len) = world.span(pages);
        // Also those of memory that was at the same addresses and is not retired yet.
        let touched = world.known.iter().filter(|(_, place)| place.touches(start, len));
        let frames: BTreeSet<u32> = touched.map(|(frame, _)| *frame).collect();
        let was_in_use = !frames.is_disjoint(&world.in_use());
        let is_twice = world.is_kept_out(&frames);
        let mark = world.mark();
        drop(world);

        let result = self.pool.withdraw(start, len, Duration::ZERO);

        let mut world = self.programs.world.lock();
        let since = world.since(mark);
        match result {
            Ok(guard) => {
                assert!(frames.is_disjoint(&world.in_use()), "withdrew frames in use");
                assert!(!is_twice, "withdrew frames twice");
                assert!(!world.is_leased, "withdrew from a guest that is pinned");
                world.model.keep_out(&frames);
                world.balloons.push_back(frames);
                self.guards.push_back(guard);
            }
            Err(error) => {
                let may_fail = was_in_use || is_twice || world.is_leased;
                assert!(
                    may_fail || since.unpins || !since.is_quiet,
                    "nothing is in the way: {error}"
                );
            }
        }
    }

    fn give_back(&mut self, guard: usize) {
        let mut world = self.programs.world.lock();
        if let Some(frames) = world.balloons.remove(guard) {
            world.model.let_in(&frames);
            drop(world);
            drop(self.guards.remove(guard));
        }
    }

    fn set_budget(&mut self, bytes: u64) {
        let before = self.pool.budget_bytes();
        let mut world = self.programs.world.lock();
        world.is_budget_in_line = true;
        let was_in_use = world.bytes(&world.in_use());
        let guest = world.bytes(world.known.keys());
        let was_line = !world.line().is_empty();
        let least = world.known.values().map(|place| place.bytes).max().unwrap_or(FRAME);
        world.model.set_ceiling(before.max(bytes));
        let mark = world.mark();
        drop(world);

        let result = self.pool.set_budget(bytes, Duration::ZERO);

        let now = self.pool.budget_bytes();
        let mut world = self.programs.world.lock();
        world.is_budget_in_line = false;
        let since = world.since(mark);
        match result {
            Ok(()) => {
                assert!(bytes >= least, "a budget of {bytes} bytes, frames of {least}");
                assert!(now <= bytes && bytes - now < FRAME, "{now} instead of {bytes}");
                let in_use = world.bytes(&world.in_use());
                assert!(in_use <= now, "{in_use} bytes are in use, {now} may be");
            }
            Err(error) => {
                assert_eq!(now, before, "the budget stays after: {error}");
                let is_in_way = was_line || was_in_use > bytes || since.unpins || !since.is_quiet;
                let may_fail = bytes < least
                    || bytes < before && is_in_way
                    || world.is_leased && (guest > bytes || world.is_unsettled);
                assert!(may_fail, "nothing is in the way: {error}");
            }
        }
        world.model.set_ceiling(now);
    }

    /// Only where it can be had at once: it would wait, and nobody else is there to make room.
    fn lease(&mut self) {
        let world = self.world();
        if !world.line().is_empty() || world.is_unsettled {
            return;
        }
        let guest = world.bytes(world.known.keys());
        let may_run = world.may_run(world.known.len());
        let is_withdrawn = !world.balloons.is_empty();
        let mark = world.mark();
        drop(world);

        let is_too_large = guest > self.pool.budget_bytes() || !may_run;
        let result = self.pool.lease_whole_guest();

        let mut world = self.programs.world.lock();
        let since = world.since(mark);
        match result {
            Ok(lease) => {
                assert!(!is_too_large, "leased more than may be pinned");
                assert!(!is_withdrawn, "leased withdrawn frames");
                assert_eq!(world.model.bytes(), guest, "the whole guest is pinned");
                world.is_leased = true;
                self.leases.push(lease);
            }
            Err(error) => {
                let was_refused = since.pins || since.unpins;
                let is_hold = matches!(error, PoolError::Hold(_));
                let may_fail = is_too_large || is_withdrawn || was_refused && is_hold;
                assert!(may_fail, "nothing is in the way: {error}");
            }
        }
    }

    fn end_lease(&mut self) {
        let lease = self.leases.pop();
        self.world().is_leased = !self.leases.is_empty();
        drop(lease);
    }

    fn plug(&mut self, slot: usize, shape: BankShape) {
        let world = self.world();
        // In mode pinned it would wait in line, and nobody else is there to make room.
        let would_wait = world.is_leased && !world.line().is_empty();
        if world.guest.frames(slot) > 0 || would_wait {
            return;
        }
        let mut guest = world.guest.clone();
        guest.plug(slot, shape);
        let map = Arc::new(world.map.replaced_by(guest.memory()).unwrap());
        let mark = world.mark();
        drop(world);

        let result = self.pool.extend(&map);

        let mut world = self.programs.world.lock();
        let since = world.since(mark);
        let frames = places(&map);
        match result {
            Ok(()) => {
                if world.is_leased {
                    let pinned = world.model.count_pinned(frames.keys());
                    assert_eq!(pinned, frames.len(), "mode pinned pins what comes");
                }
                let before = places(&world.map);
                for (frame, place) in frames {
                    let known = world.known.insert(frame, place);
                    let is_new = !before.contains_key(&frame);
                    assert!(!is_new || known.is_none(), "frame {frame} is not retired yet");
                }
                (world.guest, world.map) = (guest, map);
            }
            Err(error) => {
                let is_too_large =
                    map.bytes() > self.pool.budget_bytes() || !world.may_run(frames.len());
                let is_refused = is_too_large || since.pins || since.unpins;
                let may_fail = world.is_unsettled || world.is_leased && is_refused;
                assert!(may_fail, "nothing is in the way: {error}");
                // What was pinned of it before a refusal may not have been unpinned: it stays known.
                world.is_unsettled |= since.unpins || !since.is_quiet;
            }
        }
    }

    fn unplug(&mut self, slot: usize) {
        let mut world = self.programs.world.lock();
        let is_last = world.guest.plugged().len() == 1;
        if world.guest.frames(slot) == 0 || is_last || world.is_unsettled {
            return;
        }
        world.guest.unplug(slot);
        world.map = Arc::new(world.map.replaced_by(world.guest.memory()).unwrap());
        let remaining = places(&world.map);
        world.is_unsettled = true;
        // Nobody may ask for its frames any more.
        let asks = |program: &Program| {
            program.is_waiting() && program.wants.iter().any(|frame| !remaining.contains_key(frame))
        };
        let asking: Vec<usize> =
            (0..PROGRAMS).filter(|number| asks(&world.programs[*number])).collect();
        drop(world);
        asking.into_iter().for_each(|number| self.programs.give_up(self.pool, number));
        self.settle();
    }

    fn settle(&mut self) {
        let world = self.world();
        if !world.is_unsettled {
            return;
        }
        let map = world.map.clone();
        let remaining = places(&map);
        let is_gone = |frame: &u32| !remaining.contains_key(frame);
        let was_in_use = world.in_use().iter().any(is_gone);
        let is_kept_out = world.balloons.iter().flatten().any(is_gone);
        let mark = world.mark();
        drop(world);

        let result = self.pool.retire(&map, Duration::ZERO);

        let mut world = self.programs.world.lock();
        let since = world.since(mark);
        match result {
            Ok(()) => {
                assert!(!world.in_use().iter().any(is_gone), "retired frames in use");
                let gone: Vec<u32> = world.known.keys().copied().filter(is_gone).collect();
                assert_eq!(world.model.count_pinned(&gone), 0, "retired and pinned");
                let model = world.model.clone();
                for balloon in &mut world.balloons {
                    let (go, stay): (BTreeSet<u32>, _) =
                        balloon.iter().partition(|frame| is_gone(frame));
                    *balloon = stay;
                    model.let_in(&go);
                }
                world.known = remaining;
                world.is_unsettled = false;
            }
            Err(error) => {
                let may_fail = was_in_use || is_kept_out || since.unpins || !since.is_quiet;
                assert!(may_fail, "nothing is in the way: {error}");
            }
        }
    }

    /// Everything ends in order: what waited runs, what ran ends, and nothing stays pinned.
    fn wind_down(&mut self) {
        let mut world = self.programs.world.lock();
        world.model.refuse_pins(0, 0);
        world.model.refuse_unpins(0, 0);
        world.to_come.clear();
        drop(world);
        while !self.guards.is_empty() {
            self.take_and_check(Step::GiveBack { guard: 0 });
        }
        while !self.leases.is_empty() {
            self.take_and_check(Step::EndLease);
        }
        for program in 0..PROGRAMS {
            self.take_and_check(Step::Act(Act::End { program, mode: Mode::Cached }));
        }
        // Those aside come after those in line, as they do when they look again themselves.
        let line = self.world().line();
        for program in line.into_iter().chain(0..PROGRAMS) {
            self.take_and_check(Step::Act(Act::Look { program }));
            assert!(!self.world().programs[program].is_waiting(), "program {program} still waits");
            self.take_and_check(Step::Act(Act::End { program, mode: Mode::Cached }));
        }
        self.take_and_check(Step::Settle);
        assert!(!self.world().is_unsettled);
        assert_eq!(self.pool.waiting(), 0);
        self.pool.unpin_all_idle().expect("nothing is refused");
        self.check();
        assert_eq!(self.world().model.bytes(), 0, "nothing is in use");
    }

    fn take_and_check(&mut self, step: Step) {
        self.take(&step);
        self.check();
    }
}
