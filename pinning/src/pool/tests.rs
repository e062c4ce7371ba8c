//! The pool against a pinner that checks the contract.

use super::*;
use crate::Resident;
use crate::memlock::Memlock;
use std::collections::BTreeSet;
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
}

impl Pinner for Model {
    fn name(&self) -> &'static str {
        "model"
    }

    fn pin(&self, address: u64, frames: HostRange) -> io::Result<()> {
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

    fn unpin(&self, address: u64, frames: HostRange) -> io::Result<()> {
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

fn pool(frames: usize, budget: usize) -> (Pool, Model) {
    let memory =
        GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), frames << FRAME_SHIFT)]).unwrap();
    let model = Model::default();
    let map = Arc::new(GuestMap::new(Arc::new(memory)).unwrap());
    (Pool::new(map, Box::new(model.clone()), (budget as u64) << FRAME_SHIFT).unwrap(), model)
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
    let error = small.pin_whole_guest().unwrap_err().to_string();
    assert!(error.contains("262144") && error.contains("32768"), "{error}");
    let (pool, model) = pool(64, 64);
    pool.pin_whole_guest().unwrap();
    assert_eq!(model.0.lock().calls, 1);
    let mut hold = Hold::default();
    want(&mut hold, 0..64);
    assert!(poll(&pool, &mut hold).is_ready());
    assert!(!hold.is_holding(), "nothing to release");
    assert!(Pool::new(pool.map().clone(), Box::new(Resident), 4095).is_err());
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
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let map = Arc::new(GuestMap::new(Arc::new(memory)).unwrap());
    let pool = Pool::new(map, Box::new(Resident), 4 * FRAME).unwrap();
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
            pool.pin_whole_guest().unwrap();
        } else {
            let mut hold = Hold::default();
            want(&mut hold, [1, 2, 9]);
            pool.hold_blocking(&mut hold).unwrap();
            pool.release(&mut hold, Mode::Cached);
        }
        assert!(!model.0.lock().pinned.is_empty());
        drop(pool);
        assert!(model.0.lock().pinned.is_empty(), "whole guest: {whole}");
    }
}
