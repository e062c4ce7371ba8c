//! HALT, CLEAR and CANCEL SUBCHANNEL, by instruction, through a ring, and by dropping a future: what is
//! stopped ends once, what comes after is not touched, and what was transferred into is left alone.

pub mod bench_guest;

use std::sync::Arc;
use std::thread;

use bench_guest::gated::{Gate, TRANSFER};
use bench_guest::wired::Wired;
use bench_guest::{Bench, Device, STALL};
use vfio_ccw::architecture::{
    Ccw, CcwFlags, DeviceStatus, IrbHead, Orb, OrbFlags, ScswFlags, command,
};
use vfio_ccw::{Cc, Completion, Delivery, DeviceSpec, Interrupts, Service, SubmitError};
use vfio_ccw_metrics::{CounterKind, Outcome};

const MEMORY: usize = 1 << 20;
/// A NOP, a transfer and another transfer.
const PROGRAM: u32 = 0x1000;
const BUFFER: u32 = 0x1_0000;
/// A NOP alone.
const SHORT: u32 = 0x2000;
/// A NOP, and a NOP that suspends the program.
const SUSPENDING: u32 = 0x3000;

/// What in-process devices report with.
const BOTH_WAYS: [Interrupts; 2] = [Interrupts::Direct, Interrupts::EventFd];

fn bench(interrupts: Interrupts) -> Bench {
    println!("{interrupts:?}");
    let bench = Bench::with(Service::builder().interrupts(interrupts), MEMORY);
    let (cc, nop) = (CcwFlags::CHAIN_COMMAND, Ccw::new(command::NOP, 0, 0));
    let read = |at| Ccw::new(command::READ_IPL, at, TRANSFER as u16);
    bench.put_program(PROGRAM, &[nop.with(cc), read(BUFFER).with(cc), read(BUFFER + 0x1000)]);
    bench.put_program(SHORT, &[nop]);
    bench.put_program(SUSPENDING, &[nop.with(cc), nop.with(CcwFlags::SUSPEND)]);
    bench
}

fn suspending() -> Orb {
    let orb = Orb::new(SUSPENDING);
    orb.with_flags(orb.flags() | OrbFlags::SUSPEND_CONTROL)
}

/// Status of a function that was performed, and nothing else of function and activity control.
#[track_caller]
fn assert_performed(irb: &IrbHead, function: ScswFlags) {
    let flags = irb.scsw.flags();
    let controls = ScswFlags::FUNCTION_CONTROL | ScswFlags::ACTIVITY_CONTROL;
    assert_eq!(flags & controls, function, "{irb:?}");
    assert_eq!(flags & ScswFlags::STATUS_CONTROL, ScswFlags::STATUS_PENDING, "{irb:?}");
    assert_eq!(irb.esw.logout.get(), 0x0080_0000, "last path used: the one there is");
}

#[test]
fn a_program_that_runs_is_halted_at_its_next_command() {
    for interrupts in BOTH_WAYS {
        let (bench, gate) = (bench(interrupts), Gate::shut());
        let wired = Wired::attach(&bench.service, gate.device());
        let subchannel = &wired.subchannel;
        assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        gate.wait_for_arrivals(1);
        assert_eq!(subchannel.hsch(), Cc::Cc0);
        let cc = subchannel.hsch();
        assert!(cc == Cc::Cc2 || cc == Cc::Cc1, "halted already: {cc:?}");
        drop(wired.interruption());
        let irb = wired.status();
        assert_performed(&irb, ScswFlags::HALT_FUNCTION);
        assert_eq!(irb.scsw.device_status(), DeviceStatus::DEVICE_END);
        assert_eq!(irb.scsw.cpa(), PROGRAM + 16, "behind the command that was under way");
        assert_eq!(subchannel.tsch().0, Cc::Cc1);
        assert!(!wired.is_interrupted(), "one interruption for both");
        assert_eq!(bench.peek(BUFFER.into(), 1), [1], "the transfer was brought to its end");
        assert_eq!(bench.peek(u64::from(BUFFER) + 0x1000, 1), [0], "the next one never began");
        let totals = bench.service.totals();
        assert_eq!(totals.counter(CounterKind::Halts), 1);
        assert_eq!(totals.completions(Outcome::Stopped), 1);
    }
}

#[test]
fn clearing_takes_status_and_program() {
    for interrupts in BOTH_WAYS {
        let (bench, gate) = (bench(interrupts), Gate::shut());
        let wired = Wired::attach(&bench.service, gate.device());
        let subchannel = &wired.subchannel;
        // A program that runs.
        assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        gate.wait_for_arrivals(1);
        assert_eq!(subchannel.csch(), Cc::Cc0);
        drop(wired.interruption());
        let irb = wired.status();
        assert_performed(&irb, ScswFlags::CLEAR_FUNCTION);
        assert_eq!((irb.scsw.cpa(), irb.scsw.device_status()), (0, DeviceStatus::empty()));
        // Status that is pending.
        assert_eq!(subchannel.ssch(&Orb::new(SHORT)), Ok(Cc::Cc0));
        drop(wired.interruption());
        assert_eq!(subchannel.csch(), Cc::Cc0);
        drop(wired.interruption());
        assert_performed(&wired.status(), ScswFlags::CLEAR_FUNCTION);
        // Nothing.
        assert_eq!(subchannel.csch(), Cc::Cc0);
        drop(wired.interruption());
        assert_performed(&wired.status(), ScswFlags::CLEAR_FUNCTION);
        assert!(!wired.is_interrupted());
        assert_eq!(bench.service.totals().counter(CounterKind::Clears), 3);
    }
}

#[test]
fn halting_an_idle_subchannel_signals_its_device() {
    let bench = bench(Interrupts::Direct);
    let wired = Wired::attach(&bench.service, DeviceSpec::Null);
    assert_eq!(wired.subchannel.hsch(), Cc::Cc0);
    drop(wired.interruption());
    assert_eq!(wired.subchannel.hsch(), Cc::Cc1, "status is pending");
    let irb = wired.status();
    assert_performed(&irb, ScswFlags::HALT_FUNCTION);
    assert_eq!(irb.scsw.device_status(), DeviceStatus::DEVICE_END);
}

#[test]
fn a_suspended_program_is_halted_cleared_and_cancelled() {
    for interrupts in BOTH_WAYS {
        let bench = bench(interrupts);
        let wired = Wired::attach(&bench.service, DeviceSpec::Null);
        let subchannel = &wired.subchannel;
        let suspend = || {
            assert_eq!(subchannel.ssch(&suspending()), Ok(Cc::Cc0));
            drop(wired.interruption());
            assert!(wired.status().scsw.flags().contains(ScswFlags::SUSPENDED));
            assert_eq!(subchannel.ssch(&Orb::new(SHORT)), Ok(Cc::Cc2));
        };
        suspend();
        assert_eq!(subchannel.hsch(), Cc::Cc0);
        drop(wired.interruption());
        let irb = wired.status();
        assert_performed(&irb, ScswFlags::HALT_FUNCTION);
        assert_eq!(irb.scsw.device_status(), DeviceStatus::empty(), "the device was not active");
        assert_eq!(irb.scsw.cpa(), SUSPENDING + 16);
        suspend();
        assert_eq!(subchannel.csch(), Cc::Cc0);
        drop(wired.interruption());
        assert_performed(&wired.status(), ScswFlags::CLEAR_FUNCTION);
        suspend();
        assert_eq!(subchannel.xsch(), Cc::Cc0);
        assert_eq!(subchannel.xsch(), Cc::Cc2, "there is nothing to cancel any more");
        assert_eq!(subchannel.rsch(), Cc::Cc2);
        assert_eq!(subchannel.tsch().0, Cc::Cc1, "no status follows");
        // What follows is not touched by what was cancelled.
        assert_eq!(subchannel.ssch(&Orb::new(SHORT)), Ok(Cc::Cc0));
        drop(wired.interruption());
        assert!(wired.status().scsw.is_clean_end());
        assert!(!wired.is_interrupted());
    }
}

#[test]
fn the_end_of_a_cleared_start_is_not_taken_for_that_of_the_next() {
    // The known race of vfio-ccw: SSCH, CSCH, SSCH, and then the first one's interrupt.
    for interrupts in BOTH_WAYS {
        let bench = bench(interrupts);
        let wired = Wired::attach(&bench.service, DeviceSpec::Null);
        let subchannel = &wired.subchannel;
        for round in 0..2000u32 {
            assert_eq!(subchannel.ssch(&Orb::new(PROGRAM).with_intparm(1)), Ok(Cc::Cc0));
            if round % 3 == 0 {
                thread::yield_now();
            }
            assert_eq!(subchannel.csch(), Cc::Cc0);
            let irb = wired.next_status();
            assert_performed(&irb, ScswFlags::CLEAR_FUNCTION);
            assert_eq!(subchannel.ssch(&Orb::new(SHORT).with_intparm(2)), Ok(Cc::Cc0));
            let irb = wired.next_status();
            assert!(
                irb.scsw.is_clean_end() && irb.scsw.cpa() == SHORT + 8,
                "round {round}: {irb:?}"
            );
        }
    }
}

#[test]
fn what_waits_in_line_for_its_pages_is_stopped_there() {
    let bench = bench_with_narrow_budget();
    let wired = Wired::attach(&bench.service, DeviceSpec::Null);
    let pool = bench.service.pool();
    for clear in [false, true] {
        let dam = bench.dam();
        assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        dam.wait_for_programs(1);
        let function = if clear {
            assert_eq!(wired.subchannel.csch(), Cc::Cc0);
            ScswFlags::CLEAR_FUNCTION
        } else {
            assert_eq!(wired.subchannel.hsch(), Cc::Cc0);
            ScswFlags::HALT_FUNCTION
        };
        drop(wired.interruption());
        let irb = wired.status();
        assert_performed(&irb, function);
        assert_eq!(irb.scsw.device_status(), DeviceStatus::empty(), "it had not begun");
        assert_eq!(pool.waiting(), 0);
        drop(dam);
    }
}

fn bench_with_narrow_budget() -> Bench {
    let bench = Bench::with(Service::builder().budget(16 * 4096), MEMORY);
    bench.put_program(PROGRAM, &[Ccw::new(command::READ_IPL, BUFFER, TRANSFER as u16)]);
    bench
}

#[test]
fn a_start_that_waits_is_cancelled_and_leaves_no_trace() {
    let bench = bench_with_narrow_budget();
    let wired = Wired::attach(&bench.service, DeviceSpec::Null);
    let dam = bench.dam();
    // Many more than the ring has entries: what is cancelled must not fill it up for good.
    for _ in 0..1000 {
        assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        let cc = wired.subchannel.xsch();
        if cc == Cc::Cc2 {
            // Half of the ring is cancelled starts: this one counts as begun.
            assert_eq!(wired.subchannel.csch(), Cc::Cc0);
            drop(wired.interruption());
            assert_performed(&wired.status(), ScswFlags::CLEAR_FUNCTION);
        } else {
            assert_eq!(cc, Cc::Cc0);
        }
    }
    assert!(!wired.is_interrupted(), "a cancelled start does not interrupt");
    assert_eq!(wired.subchannel.tsch().0, Cc::Cc1);
    drop(dam);
    assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
    drop(wired.interruption());
    assert!(wired.status().scsw.is_clean_end());
}

/// What a completion is about: its user data, and the functions in its SCSW.
fn about(completion: &Completion) -> (u64, ScswFlags) {
    (completion.user_data, completion.irb.scsw.flags() & ScswFlags::FUNCTION_CONTROL)
}

#[test]
fn halt_and_clear_overtake_what_waits_in_the_ring() {
    let start = ScswFlags::START_FUNCTION;
    for interrupts in BOTH_WAYS {
        for function in [ScswFlags::HALT_FUNCTION, ScswFlags::CLEAR_FUNCTION] {
            let (bench, gate) = (bench(interrupts), Gate::shut());
            let mut device = bench.attach(gate.device());
            let submit = |user_data| device.subchannel.submit(&Orb::new(PROGRAM), user_data);
            for user_data in 1..=5 {
                submit(user_data).unwrap();
            }
            gate.wait_for_arrivals(1);
            match function {
                ScswFlags::HALT_FUNCTION => device.subchannel.submit_halt(100).unwrap(),
                _ => device.subchannel.submit_clear(100).unwrap(),
            }
            submit(6).unwrap();
            gate.wait_for_arrivals(2);
            gate.open();
            let seen: Vec<_> = (0..7).map(|_| device.completion()).collect();
            let expected = [
                (1, start | function),
                (2, start | function),
                (3, start | function),
                (4, start | function),
                (5, start | function),
                (100, function),
                (6, start),
            ];
            assert_eq!(seen.iter().map(about).collect::<Vec<_>>(), expected);
            assert!(seen.iter().all(Completion::is_final));
            assert_eq!(seen[0].irb.scsw.cpa(), PROGRAM + 16, "it ran so far");
            assert_eq!(seen[1].irb.scsw.cpa(), PROGRAM, "it never began");
            assert_performed(&seen[5].irb, function);
            assert!(seen[6].irb.scsw.is_clean_end(), "{:?}", seen[6]);
            let totals = bench.service.totals();
            assert_eq!(totals.completions(Outcome::Stopped), 5);
            assert_eq!(totals.completions(Outcome::Ok), 1);
        }
    }
}

#[test]
fn functions_of_a_ring_complete_in_their_order() {
    let bench = bench(Interrupts::Direct);
    let mut device = bench.attach(DeviceSpec::Null);
    for user_data in 0..500 {
        match user_data % 5 {
            0 => device.subchannel.submit_clear(user_data).unwrap(),
            3 => device.subchannel.submit_halt(user_data).unwrap(),
            _ => device.subchannel.submit(&Orb::new(SHORT), user_data).unwrap(),
        }
        if user_data % 5 == 4 {
            let mut of_functions = Vec::new();
            let mut all: Vec<_> = (0..5)
                .map(|_| {
                    let (user_data, flags) = about(&device.completion());
                    if !flags.contains(ScswFlags::START_FUNCTION) {
                        of_functions.push(user_data);
                    }
                    user_data
                })
                .collect();
            all.sort_unstable();
            assert_eq!(all, (user_data - 4..=user_data).collect::<Vec<_>>(), "each once");
            assert_eq!(of_functions, [user_data - 4, user_data - 1]);
        }
    }
}

#[test]
fn a_suspended_program_of_a_ring_is_stopped() {
    for interrupts in BOTH_WAYS {
        let bench = bench(interrupts);
        let mut device = bench.attach(DeviceSpec::Null);
        device.subchannel.submit(&suspending(), 1).unwrap();
        assert!(!device.completion().is_final());
        device.subchannel.submit_clear(2).unwrap();
        let ends = [device.completion(), device.completion()];
        let both = ScswFlags::START_FUNCTION | ScswFlags::CLEAR_FUNCTION;
        assert_eq!(ends.each_ref().map(about), [(1, both), (2, ScswFlags::CLEAR_FUNCTION)]);
        assert_eq!(device.subchannel.rsch(), Cc::Cc2, "nothing is suspended");
        assert!(device.run(&Orb::new(SHORT)).scsw.is_clean_end());
    }
}

#[test]
fn each_way_to_start_has_its_own_way_to_stop() {
    let bench = bench(Interrupts::Direct);
    let wired = Wired::attach(&bench.service, DeviceSpec::Null);
    let Device { subchannel: ring, .. } = bench.attach(DeviceSpec::Null);
    let futures = bench.service.attach(DeviceSpec::Null, Delivery::Future).unwrap();
    assert_eq!(wired.subchannel.submit_halt(1), Err(SubmitError::NotARing));
    assert_eq!(futures.submit_clear(1), Err(SubmitError::NotARing));
    for other in [&ring, &futures] {
        assert_eq!((other.hsch(), other.csch(), other.xsch()), (Cc::Cc3, Cc::Cc3, Cc::Cc3));
        assert_eq!(other.ssch(&Orb::new(SHORT)), Ok(Cc::Cc3));
    }
    assert!(matches!(ring.start(&Orb::new(SHORT)), Err(SubmitError::NotAFuture)));
    bench.service.detach(ring.clone());
    assert_eq!(ring.submit_halt(1), Err(SubmitError::Detached));
    bench.service.detach(wired.subchannel.clone());
    assert_eq!((wired.subchannel.hsch(), wired.subchannel.csch()), (Cc::Cc3, Cc::Cc3));
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(STALL, future).await.expect("it ends") })
}

#[test]
fn futures_end_with_their_own_status_in_any_order() {
    for interrupts in BOTH_WAYS {
        let bench = bench(interrupts);
        let disk = bench.service.attach(DeviceSpec::Null, Delivery::Future).unwrap();
        let starts: Vec<_> = (0..12)
            .map(|index| {
                let program = if index % 2 == 0 { SHORT } else { PROGRAM };
                (program, disk.start(&Orb::new(program)).unwrap())
            })
            .collect();
        for (program, start) in starts.into_iter().rev() {
            let irb = block_on(start);
            assert!(irb.scsw.is_clean_end(), "{irb:?}");
            assert_eq!(irb.scsw.cpa() & !0xfff, program);
        }
    }
}

#[test]
fn as_many_futures_are_under_way_as_the_ring_has_entries() {
    let (bench, gate) = (bench(Interrupts::Direct), Gate::shut());
    let disk = bench.service.attach(gate.device(), Delivery::Future).unwrap();
    let orb = Orb::new(PROGRAM);
    let starts: Vec<_> = (0..16).map(|_| disk.start(&orb).unwrap()).collect();
    let error = disk.start(&orb).expect_err("all places are taken");
    assert_eq!(error, SubmitError::Full { entries: 16 });
    gate.open();
    for start in starts {
        assert!(block_on(start).scsw.is_clean_end());
    }
    assert!(block_on(disk.start(&orb).unwrap()).scsw.is_clean_end());
}

#[test]
fn a_future_that_is_dropped_clears_its_program_and_no_other() {
    for interrupts in BOTH_WAYS {
        let (bench, gate) = (bench(interrupts), Gate::shut());
        let disk = bench.service.attach(gate.device(), Delivery::Future).unwrap();
        let orb = Orb::new(PROGRAM);
        let [runs, waits, stays] = [(); 3].map(|()| disk.start(&orb).unwrap());
        gate.wait_for_arrivals(1);
        // In this order: the one that waits must not get its turn.
        drop(waits);
        drop(runs);
        // The one that stays runs now.
        gate.wait_for_arrivals(2);
        gate.open();
        assert!(block_on(stays).scsw.is_clean_end());
        assert_eq!(
            bench.peek(BUFFER.into(), 1),
            [2],
            "the dropped one's transfer was ended, not cut"
        );
        let totals = bench.service.totals();
        assert_eq!(totals.completions(Outcome::Stopped), 2);
        assert_eq!(totals.completions(Outcome::Ok), 1);
        assert_eq!(totals.counter(CounterKind::Starts), 3);
    }
}

#[test]
fn futures_dropped_at_any_moment_leave_a_subchannel_that_works() {
    for interrupts in BOTH_WAYS {
        let bench = bench(interrupts);
        let disk = Arc::new(bench.service.attach(DeviceSpec::Null, Delivery::Future).unwrap());
        let threads: Vec<_> = (0..3)
            .map(|seed| {
                let disk = disk.clone();
                thread::spawn(move || {
                    let mut started = 0;
                    for round in 0..3000u64 {
                        let Ok(start) = disk.start(&Orb::new(PROGRAM)) else { continue };
                        started += 1;
                        match (round * 7 + seed) % 4 {
                            0 => drop(start),
                            1 => {
                                thread::yield_now();
                                drop(start);
                            }
                            _ => assert!(block_on(start).scsw.is_clean_end()),
                        }
                    }
                    started
                })
            })
            .collect();
        let started: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(block_on(disk.start(&Orb::new(SHORT)).unwrap()).scsw.is_clean_end());
        // Each once: a dropped one may still be on its way, so the count is taken at the end.
        let registry = bench.service.registry().clone();
        drop(bench);
        let totals = registry.snapshot();
        assert_eq!(totals.all_completions(), started + 1);
        assert_eq!(totals.counter(CounterKind::Starts), started + 1);
    }
}

#[test]
fn what_a_future_waits_for_ends_with_its_service() {
    let (bench, gate) = (bench(Interrupts::Direct), Gate::shut());
    let disk = bench.service.attach(gate.device(), Delivery::Future).unwrap();
    let [runs, waits] = [(); 2].map(|()| disk.start(&Orb::new(PROGRAM)).unwrap());
    gate.wait_for_arrivals(1);
    drop(bench);
    assert!(block_on(runs).scsw.is_clean_end(), "the device was let go and went on to the end");
    let irb = block_on(waits);
    assert_eq!(irb.scsw.deferred_cc(), 3, "{irb:?}");
    assert_eq!(disk.start(&Orb::new(SHORT)).expect_err("no service"), SubmitError::Detached);
}
