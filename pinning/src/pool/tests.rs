//! The pool against a pinner that checks the contract.

use super::*;
use crate::memlock::Memlock;
use crate::{Granule, HostRange, Resident, Run, Stopped};
use std::collections::BTreeSet;
use std::io;
use std::task::Waker;
use std::time::Duration;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Remembers what is pinned, refuses on request, and checks every call against the contract.
#[derive(Clone, Default)]
struct Model(Arc<Mutex<ModelState>>);

#[derive(Default)]
struct ModelState {
    pinned: BTreeSet<u64>,
    peak: usize,
    calls: usize,
    refuse_pin: bool,
    refuse_unpin: bool,
    is_optional: bool,
}

impl Pinner for Model {
    fn name(&self) -> &'static str {
        "model"
    }

    fn pin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        Stopped::at_first(runs, |run| self.pin_run(run.address, run.host))
    }

    fn unpin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        Stopped::at_first(runs, |run| self.unpin_run(run.address, run.host))
    }

    fn is_needed(&self) -> bool {
        !self.0.lock().is_optional
    }

    fn joins_frames(&self) -> bool {
        true
    }

    fn keeps_place(&self) -> bool {
        true
    }
}

impl Model {
    fn pin_run(&self, address: u64, frames: HostRange) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.refuse_pin {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        state.calls += 1;
        for frame in 0..frames.len() as u64 / FRAME {
            assert!(
                state.pinned.insert(address + frame * FRAME),
                "pinned twice: {address:#x}+{frame}"
            );
        }
        state.peak = state.peak.max(state.pinned.len());
        Ok(())
    }

    fn unpin_run(&self, address: u64, frames: HostRange) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.refuse_unpin {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        for frame in 0..frames.len() as u64 / FRAME {
            assert!(
                state.pinned.remove(&(address + frame * FRAME)),
                "unpinned what was not: {address:#x}+{frame}"
            );
        }
        Ok(())
    }
}

fn map(frames: usize) -> Arc<GuestMap> {
    let memory =
        GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), frames << FRAME_SHIFT)]).unwrap();
    Arc::new(GuestMap::new(Arc::new(memory)).unwrap())
}

fn pool(frames: usize, budget: usize) -> (Arc<Pool>, Model) {
    let model = Model::default();
    let budget = (budget as u64) << FRAME_SHIFT;
    let pool = Pool::new(map(frames), Box::new(model.clone()), budget).unwrap();
    (Arc::new(pool), model)
}

fn want(hold: &mut Hold, frames: impl IntoIterator<Item = u32>) {
    hold.clear();
    frames.into_iter().for_each(|frame| hold.want(frame));
}

fn poll(pool: &Pool, hold: &mut Hold) -> Poll<Result<(), HoldError>> {
    pool.poll_hold(hold, &mut Context::from_waker(Waker::noop()))
}

#[test]
fn adjacent_misses_are_one_call_and_hits_are_none() {
    let (pool, model) = pool(64, 16);
    let mut hold = Hold::default();
    want(&mut hold, [4, 5, 6, 20, 7, 4]);
    pool.hold_blocking(&mut hold).unwrap();
    assert_eq!(model.0.lock().calls, 2, "4-7 and 20");
    assert_eq!(
        hold.tally(),
        Tally { gets: 6, hits: 1, misses: 5, pin_calls: 2, ..Tally::default() }
    );
    pool.release(&mut hold, Mode::Cached);
    pool.hold_blocking(&mut hold).unwrap();
    assert_eq!(model.0.lock().calls, 2);
    assert_eq!(hold.tally(), Tally { gets: 6, hits: 6, ..Tally::default() });
    pool.release(&mut hold, Mode::Cached);
}

#[test]
fn room_is_made_from_idle_frames_only() {
    let (pool, model) = pool(64, 4);
    let (mut busy, mut next) = (Hold::default(), Hold::default());
    want(&mut busy, [0, 1]);
    pool.hold_blocking(&mut busy).unwrap();
    want(&mut next, [2, 3]);
    pool.hold_blocking(&mut next).unwrap();
    pool.release(&mut next, Mode::Cached);
    want(&mut next, [10, 11]);
    pool.hold_blocking(&mut next).unwrap();
    assert_eq!(next.tally().evictions, 2);
    assert_eq!(
        model.0.lock().pinned.iter().copied().collect::<Vec<_>>(),
        [0, 0x1000, 0xa000, 0xb000]
    );
    pool.release(&mut next, Mode::Cached);
    pool.release(&mut busy, Mode::Cached);
    assert_eq!(pool.peak_bytes(), 4 * FRAME);
}

#[test]
fn a_program_larger_than_the_budget_is_refused_with_both_numbers() {
    let (pool, _) = pool(64, 4);
    let mut hold = Hold::default();
    want(&mut hold, 0..5);
    let error = pool.hold_blocking(&mut hold).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the program needs 20480 bytes pinned at once but the pin budget allows 16384: raise it or send smaller programs"
    );
    assert!(!hold.is_holding());
    want(&mut hold, [0, 1, 0, 1, 0, 1]);
    pool.hold_blocking(&mut hold).expect("two distinct frames fit");
    pool.release(&mut hold, Mode::Cached);
    hold.limit_bytes(Some(FRAME));
    assert!(matches!(
        pool.hold_blocking(&mut hold),
        Err(HoldError::TooLarge { which: "the subchannel's share", .. })
    ));
}

#[test]
fn waiting_is_in_order_and_holds_nothing() {
    let (pool, _) = pool(64, 4);
    let mut running = Hold::default();
    want(&mut running, 0..3);
    pool.hold_blocking(&mut running).unwrap();
    let (mut first, mut second) = (Hold::default(), Hold::default());
    want(&mut first, [0, 10, 11, 12]);
    assert!(poll(&pool, &mut first).is_pending());
    assert!(!first.is_holding());
    want(&mut second, [20]);
    assert!(poll(&pool, &mut second).is_pending(), "there is room for one, but another is first");
    assert_eq!(pool.waiting(), 2);
    pool.release(&mut running, Mode::Cached);
    assert!(poll(&pool, &mut second).is_pending());
    assert!(poll(&pool, &mut first).is_ready());
    pool.release(&mut first, Mode::Cached);
    assert!(poll(&pool, &mut second).is_ready());
    pool.release(&mut second, Mode::Cached);
    assert_eq!(pool.waiting(), 0);
}

#[test]
fn a_waiter_that_gives_up_lets_the_next_pass() {
    let (pool, _) = pool(64, 2);
    let mut running = Hold::default();
    want(&mut running, [0]);
    pool.hold_blocking(&mut running).unwrap();
    let (mut first, mut second) = (Hold::default(), Hold::default());
    want(&mut first, [1, 2]);
    want(&mut second, [3]);
    assert!(poll(&pool, &mut first).is_pending());
    assert!(poll(&pool, &mut second).is_pending());
    pool.forget(&mut first);
    assert!(poll(&pool, &mut second).is_ready());
    pool.release(&mut second, Mode::Cached);
    pool.release(&mut running, Mode::Cached);
}

#[test]
fn on_demand_leaves_nothing_pinned() {
    let (pool, model) = pool(64, 8);
    let (mut one, mut two) = (Hold::default(), Hold::default());
    want(&mut one, 0..4);
    want(&mut two, 2..6);
    pool.hold_blocking(&mut one).unwrap();
    pool.hold_blocking(&mut two).unwrap();
    pool.release(&mut one, Mode::OnDemand);
    assert_eq!(model.0.lock().pinned.len(), 4, "2 and 3 are in use by the other");
    pool.release(&mut two, Mode::OnDemand);
    assert_eq!((model.0.lock().pinned.len(), pool.pinned_bytes()), (0, 0));
}

#[test]
fn a_failed_pin_books_nothing() {
    let (pool, model) = pool(64, 8);
    let mut hold = Hold::default();
    want(&mut hold, 0..4);
    model.0.lock().refuse_pin = true;
    let error = pool.hold_blocking(&mut hold).unwrap_err().to_string();
    assert!(error.contains("model") && error.contains("RLIMIT_MEMLOCK"), "{error}");
    assert_eq!(pool.pinned_bytes(), 0);
    model.0.lock().refuse_pin = false;
    pool.hold_blocking(&mut hold).unwrap();
    pool.release(&mut hold, Mode::Cached);
}

#[test]
fn a_failed_unpin_keeps_the_count_true() {
    let (pool, model) = pool(64, 4);
    let mut hold = Hold::default();
    want(&mut hold, 0..4);
    pool.hold_blocking(&mut hold).unwrap();
    pool.release(&mut hold, Mode::Cached);
    model.0.lock().refuse_unpin = true;
    want(&mut hold, 8..10);
    assert!(matches!(pool.hold_blocking(&mut hold), Err(HoldError::Unpin { .. })));
    assert_eq!(pool.pinned_bytes(), 4 * FRAME);
    model.0.lock().refuse_unpin = false;
    pool.hold_blocking(&mut hold).unwrap();
    pool.release(&mut hold, Mode::Cached);
    assert_eq!(pool.unpin_all_idle().unwrap(), 4 * FRAME);
    assert!(model.0.lock().pinned.is_empty());
}

#[test]
fn the_whole_guest_is_pinned_once_or_refused() {
    let (small, _) = pool(64, 8);
    let error = small.lease_whole_guest().unwrap_err().to_string();
    assert!(error.contains("262144") && error.contains("32768"), "{error}");
    let (pool, model) = pool(64, 64);
    let lease = pool.lease_whole_guest().unwrap();
    let second = pool.lease_whole_guest().unwrap();
    assert_eq!(model.0.lock().calls, 1);
    let mut hold = Hold::default();
    want(&mut hold, 0..64);
    lease.cover(&mut hold);
    assert_eq!((hold.tally().hits, hold.is_holding()), (64, false));
    drop(lease);
    assert_eq!(pool.pinned_bytes(), 64 * FRAME);
    want(&mut hold, [3, 4]);
    pool.hold_blocking(&mut hold).unwrap();
    drop(second);
    assert_eq!(model.0.lock().pinned.len(), 2, "what a program holds stays");
    pool.release(&mut hold, Mode::OnDemand);
    assert_eq!(pool.pinned_bytes(), 0);
    assert!(Pool::new(map(64), Box::new(Resident), 4095).is_err());
}

#[test]
fn where_pins_are_optional_a_program_without_room_runs_unpinned() {
    let (pool, model) = pool(64, 4);
    model.0.lock().is_optional = true;
    let mut hold = Hold::default();
    want(&mut hold, 0..5);
    pool.hold_blocking(&mut hold).unwrap();
    assert_eq!((hold.tally().unpinned, hold.is_holding(), pool.pinned_bytes()), (5, false, 0));
    want(&mut hold, 0..3);
    model.0.lock().refuse_pin = true;
    pool.hold_blocking(&mut hold).unwrap();
    assert_eq!((hold.tally().unpinned, pool.failures(), pool.pinned_bytes()), (3, 1, 0));
    model.0.lock().refuse_pin = false;
    pool.hold_blocking(&mut hold).unwrap();
    assert_eq!(hold.tally().unpinned, 0, "a failure is nobody's memory");
    pool.release(&mut hold, Mode::Cached);
    assert!(pool.lease_whole_guest().is_err(), "mode pinned pins or says that it cannot");
}

#[test]
fn a_frame_weighs_its_size() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[
        (GuestAddress(0), 4 << 20),
        (GuestAddress(8 << 20), 0x3000),
    ]);
    let granule = Granule::Bytes(0x4000);
    let map = Arc::new(GuestMap::with_granule(Arc::new(memory.unwrap()), granule).unwrap());
    let (large, small) = (map.frame(0).unwrap(), map.frame(8 << 20).unwrap());
    let size = map.regions()[0].frame_bytes();
    assert_eq!(map.regions()[1].frame_bytes(), FRAME, "12 KiB are no multiple of more");
    let model = Model::default();
    let pool = Pool::new(map, Box::new(model.clone()), 2 * size).unwrap();
    let mut hold = Hold::default();
    want(&mut hold, [large, small]);
    pool.hold_blocking(&mut hold).unwrap();
    assert_eq!(pool.pinned_bytes(), size + FRAME);
    pool.release(&mut hold, Mode::Cached);
    want(&mut hold, [large + 1, large + 2]);
    pool.hold_blocking(&mut hold).unwrap();
    assert_eq!(pool.pinned_bytes(), 2 * size);
    pool.release(&mut hold, Mode::OnDemand);
    hold.limit_bytes(Some(size));
    want(&mut hold, [large, large]);
    pool.hold_blocking(&mut hold).expect("one distinct frame");
    pool.release(&mut hold, Mode::OnDemand);
    want(&mut hold, [large, small]);
    assert!(matches!(pool.hold_blocking(&mut hold), Err(HoldError::TooLarge { .. })));
}

#[test]
fn withdrawn_memory_is_unpinned_and_stays_so() {
    let (pool, model) = pool(64, 64);
    let (mut idle, mut busy) = (Hold::default(), Hold::default());
    want(&mut idle, [1, 2]);
    pool.hold_blocking(&mut idle).unwrap();
    pool.release(&mut idle, Mode::Cached);
    want(&mut busy, [3]);
    pool.hold_blocking(&mut busy).unwrap();
    let error = pool.withdraw(0x1000, 0x3000, Duration::ZERO).unwrap_err();
    assert!(matches!(error, WithdrawError::StillInUse { frames: 1, .. }), "{error}");
    want(&mut idle, [3, 2]);
    assert!(poll(&pool, &mut idle).is_ready(), "called off: all is as before");
    pool.release(&mut idle, Mode::Cached);
    pool.release(&mut busy, Mode::Cached);

    let before = pool.invalidations();
    let guard = pool.withdraw(0x1800, 0x2000, Duration::ZERO).unwrap();
    assert_eq!(guard.frames(), 3, "all that the range touches");
    assert_eq!(pool.invalidations() - before, 2, "one of them was not pinned any more");
    assert!(model.0.lock().pinned.is_empty());
    want(&mut idle, [0, 2]);
    assert!(poll(&pool, &mut idle).is_pending());
    want(&mut busy, [5]);
    assert!(poll(&pool, &mut busy).is_ready(), "others do not wait behind it");
    assert!(matches!(pool.lease_whole_guest(), Err(PoolError::Withdrawn)));
    drop(guard);
    assert!(poll(&pool, &mut idle).is_ready());
    pool.release(&mut idle, Mode::Cached);
    pool.release(&mut busy, Mode::Cached);
    assert!(pool.withdraw(0x3f000, 0x2000, Duration::ZERO).is_err(), "not all memory");
    assert!(pool.withdraw(0, 0, Duration::ZERO).is_err());
    assert!(pool.withdraw(u64::MAX, 2, Duration::ZERO).is_err());
}

#[test]
fn a_withdrawal_is_told_of_the_last_user() {
    let (pool, _) = pool(64, 16);
    for mode in [Mode::Cached, Mode::OnDemand] {
        let mut busy = Hold::default();
        want(&mut busy, [3, 4]);
        pool.hold_blocking(&mut busy).unwrap();
        std::thread::scope(|scope| {
            let guard = scope.spawn(|| pool.withdraw(0x3000, 0x2000, Duration::MAX));
            while !pool.words[3].is_withheld() || !pool.words[4].is_withheld() {
                std::thread::yield_now();
            }
            pool.release(&mut busy, mode);
            assert_eq!(guard.join().unwrap().unwrap().frames(), 2);
        });
    }
}

#[test]
fn one_change_at_a_time_and_patience_for_the_others() {
    let (pool, _) = pool(64, 8);
    let changing = pool.leases.lock();
    let patience = Duration::ZERO;
    assert!(matches!(pool.withdraw(0, 4096, patience), Err(WithdrawError::Busy { .. })));
    assert!(matches!(pool.set_budget(4 * FRAME, patience), Err(BudgetError::Busy { .. })));
    assert!(matches!(pool.retire(&map(64), patience), Err(WithdrawError::Busy { .. })));
    drop(changing);
    assert!(pool.withdraw(0, 4096, patience).is_ok());
}

#[test]
fn the_budget_changes_while_programs_run() {
    let (pool, model) = pool(64, 8);
    let (mut idle, mut busy) = (Hold::default(), Hold::default());
    want(&mut idle, 0..4);
    pool.hold_blocking(&mut idle).unwrap();
    pool.release(&mut idle, Mode::Cached);
    want(&mut busy, 4..7);
    pool.hold_blocking(&mut busy).unwrap();
    pool.set_budget(4 * FRAME, Duration::ZERO).unwrap();
    assert!(model.0.lock().pinned.len() <= 4);
    let error = pool.set_budget(2 * FRAME, Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("12288 bytes are still pinned"), "{error}");
    assert_eq!((pool.budget_bytes(), pool.waiting()), (4 * FRAME, 0));
    std::thread::scope(|scope| {
        let shrink = scope.spawn(|| pool.set_budget(2 * FRAME, Duration::MAX));
        while pool.waiting() == 0 {
            std::thread::yield_now();
        }
        want(&mut idle, [20]);
        assert!(poll(&pool, &mut idle).is_pending(), "the smaller budget is first in line");
        pool.release(&mut busy, Mode::Cached);
        shrink.join().unwrap().unwrap();
    });
    assert!(pool.pinned_bytes() <= 2 * FRAME);
    assert!(poll(&pool, &mut idle).is_ready());
    pool.release(&mut idle, Mode::Cached);
    assert!(pool.set_budget(100, Duration::ZERO).is_err());
    pool.set_budget(64 * FRAME, Duration::ZERO).unwrap();
    let lease = pool.lease_whole_guest().unwrap();
    let error = pool.set_budget(8 * FRAME, Duration::ZERO).unwrap_err();
    assert!(matches!(error, BudgetError::WholeGuest { .. }), "{error}");
    drop(lease);
}

#[test]
fn regions_come_and_go() {
    let first = GuestMemoryMmap::<()>::from_ranges(&[
        (GuestAddress(0), 0x4000),
        (GuestAddress(0x10000), 0x4000),
    ])
    .unwrap();
    let before = Arc::new(GuestMap::new(Arc::new(first.clone())).unwrap());
    let (rest, gone) = first.remove_region(GuestAddress(0x10000), 0x4000).unwrap();
    let without = Arc::new(before.replaced_by(Arc::new(rest.clone())).unwrap());
    let model = Model::default();
    let pool = Pool::new(before.clone(), Box::new(model.clone()), 64 * FRAME).unwrap();
    let pool = Arc::new(pool);
    for leased in [false, true] {
        let lease = leased.then(|| pool.lease_whole_guest().unwrap());
        let (mut idle, mut busy) = (Hold::default(), Hold::default());
        want(&mut idle, [0, 5, 6]);
        pool.hold_blocking(&mut idle).unwrap();
        pool.release(&mut idle, Mode::Cached);
        want(&mut busy, [7]);
        pool.hold_blocking(&mut busy).unwrap();
        pool.extend(&without).unwrap();
        assert!(pool.retire(&without, Duration::ZERO).is_err(), "7 is in use");
        pool.release(&mut busy, Mode::Cached);
        pool.retire(&without, Duration::ZERO).unwrap();
        assert!(model.0.lock().pinned.iter().all(|address| *address < 0x4000));
        let back = rest.insert_region(gone.clone()).unwrap();
        let after = Arc::new(without.replaced_by(Arc::new(back)).unwrap());
        pool.extend(&after).unwrap();
        assert_eq!(pool.pinned_bytes() == 8 * FRAME, leased);
        pool.retire(&after, Duration::ZERO).unwrap();
        drop(lease);
    }
    pool.unpin_all_idle().unwrap();
    assert!(model.0.lock().pinned.is_empty());
    let huge = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let options = PoolOptions { max_memory: Some(0x8000), ..PoolOptions::default() };
    let pool = Pool::with_options(before.clone(), Box::new(model), FRAME, options).unwrap();
    let huge = Arc::new(before.replaced_by(Arc::new(huge)).unwrap());
    assert!(matches!(pool.extend(&huge), Err(PoolError::TooManyFrames { .. })));
}

#[test]
fn the_sizing_says_what_other_budgets_would_do() {
    let (pool, _) = pool(4096, 128);
    assert!(pool.sizing().is_empty());
    let mut hold = Hold::default();
    for _ in 0..40 {
        for frame in 0..256 {
            want(&mut hold, [frame]);
            pool.hold_blocking(&mut hold).unwrap();
            pool.release(&mut hold, Mode::Cached);
        }
    }
    let sizing = pool.sizing();
    let at =
        |pages: u64| sizing.iter().find(|sizing| sizing.budget == pages * FRAME).unwrap().hit_rate;
    assert!(at(64) < 0.1 && at(128) < 0.1, "a loop of 256 frames never hits: {sizing:?}");
    assert!(at(512) > 0.9, "{sizing:?}");
}

#[test]
fn several_threads_never_exceed_the_budget() {
    let (pool, model) = pool(256, 24);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let pool = &pool;
            scope.spawn(move || {
                let mut hold = Hold::default();
                let mut seed = thread + 1;
                for round in 0..400 {
                    hold.clear();
                    for _ in 0..1 + round % 16 {
                        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        hold.want((seed >> 16) % 256);
                    }
                    pool.hold_blocking(&mut hold).unwrap();
                    let mode = if round % 3 == 0 { Mode::OnDemand } else { Mode::Cached };
                    pool.release(&mut hold, mode);
                }
            });
        }
    });
    pool.unpin_all_idle().unwrap();
    let state = model.0.lock();
    assert!(state.peak <= 24, "{} frames were pinned at once", state.peak);
    assert!(state.pinned.is_empty(), "{} frames leaked", state.pinned.len());
    assert_eq!(pool.waiting(), 0);
}

#[test]
fn a_dropped_future_leaves_the_line() {
    let (pool, _) = pool(8, 2);
    let mut running = Hold::default();
    want(&mut running, [0, 1]);
    pool.hold_blocking(&mut running).unwrap();
    let mut waiting = Hold::default();
    want(&mut waiting, [2]);
    {
        let mut future = std::pin::pin!(pool.hold(&mut waiting));
        assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(pool.waiting(), 1);
    }
    assert_eq!(pool.waiting(), 0);
    pool.release(&mut running, Mode::Cached);
}

#[test]
fn locked_bytes_follow_the_pool() {
    // Other tests of this process use the model pinner, so VmLck moves only here.
    let before = Memlock::of_this_process().unwrap();
    if before.room().is_some_and(|room| room < 4 * FRAME) {
        println!("SKIPPED: RLIMIT_MEMLOCK leaves no room for 16 KiB");
        return;
    }
    let pool = Pool::new(map(256), Box::new(Resident), 4 * FRAME).unwrap();
    let mut hold = Hold::default();
    want(&mut hold, [1, 2, 9]);
    pool.hold_blocking(&mut hold).unwrap();
    assert_eq!(Memlock::of_this_process().unwrap().locked, before.locked + 3 * FRAME);
    pool.release(&mut hold, Mode::OnDemand);
    assert_eq!(Memlock::of_this_process().unwrap().locked, before.locked);
}

#[test]
fn a_dropped_pool_leaves_nothing_pinned() {
    for whole in [false, true] {
        let (pool, model) = pool(16, 16);
        if whole {
            let lease = pool.lease_whole_guest().unwrap();
            drop(pool);
            assert!(!model.0.lock().pinned.is_empty());
            drop(lease);
        } else {
            let mut hold = Hold::default();
            want(&mut hold, [1, 2, 9]);
            pool.hold_blocking(&mut hold).unwrap();
            pool.release(&mut hold, Mode::Cached);
            assert!(!model.0.lock().pinned.is_empty());
            drop(pool);
        }
        assert!(model.0.lock().pinned.is_empty(), "whole guest: {whole}");
    }
}
