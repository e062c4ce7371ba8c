//! Programs that suspend themselves, through a whole service: what the guest sees of them by
//! instruction and in a completion ring.

pub mod bench_guest;

use std::thread;

use bench_guest::Bench;
use bench_guest::wired::Wired;
use vfio_ccw::architecture::{
    Ccw, CcwFlags, IrbHead, Orb, OrbFlags, ScswFlags, SubchannelStatus, command,
};
use vfio_ccw::{Cc, DeviceSpec, Interrupts, Mode, Service, Subchannel};
use vfio_ccw_metrics::{CounterKind, Outcome};

const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;
const PCI: CcwFlags = CcwFlags::PROGRAM_CONTROLLED;
const SUSPEND: CcwFlags = CcwFlags::SUSPEND;

const MEMORY: usize = 1 << 20;
const PROGRAM: u32 = 0x1000;
const BUFFER: u32 = 0x1_0000;

/// What in-process devices report with.
const BOTH_WAYS: [Interrupts; 2] = [Interrupts::Direct, Interrupts::EventFd];

fn bench(interrupts: Interrupts) -> Bench {
    println!("{interrupts:?}");
    Bench::with(Service::builder().interrupts(interrupts).mode(Mode::OnDemand), MEMORY)
}

fn orb() -> Orb {
    let orb = Orb::new(PROGRAM);
    orb.with_flags(orb.flags() | OrbFlags::SUSPEND_CONTROL)
}

fn quiet_orb() -> Orb {
    orb().with_flags(orb().flags() | OrbFlags::SUPPRESS_SUSPENDED)
}

fn nop() -> Ccw {
    Ccw::new(command::NOP, 0, 0)
}

fn read() -> Ccw {
    Ccw::new(command::READ_IPL, BUFFER, 64)
}

/// Two reads, of which the second suspends the program if `suspends`.
fn put_two_reads(bench: &Bench, suspends: bool) {
    let flags = if suspends { SUSPEND } else { CcwFlags::empty() };
    bench.put_program(PROGRAM, &[read().with(CC), read().with(flags)]);
}

/// Suspended at the second CCW, with status pending.
#[track_caller]
fn assert_suspended(irb: &IrbHead) {
    let expected = ScswFlags::START_FUNCTION
        | ScswFlags::SUSPENDED
        | ScswFlags::INTERMEDIATE
        | ScswFlags::STATUS_PENDING;
    assert!(irb.scsw.flags().contains(expected) && !irb.scsw.is_final(), "{irb:?}");
    assert_eq!(irb.scsw.cpa(), PROGRAM + 16, "{irb:?}");
    assert!(irb.scsw.subchannel_status().is_empty(), "{irb:?}");
}

/// The clean end of a program of `ccws` CCWs, with nothing else in its status.
#[track_caller]
fn assert_ended(irb: &IrbHead, ccws: u32) {
    assert!(irb.scsw.is_clean_end() && irb.scsw.is_final(), "{irb:?}");
    assert!(irb.scsw.subchannel_status().is_empty(), "{irb:?}");
    assert_eq!(irb.scsw.cpa(), PROGRAM + ccws * 8, "{irb:?}");
}

#[track_caller]
fn assert_deferred(irb: &IrbHead) {
    assert!(irb.scsw.is_final(), "{irb:?}");
    assert_eq!(irb.scsw.deferred_cc(), 3, "{irb:?}");
}

#[test]
fn a_suspended_program_goes_through_its_states() {
    for interrupts in BOTH_WAYS {
        let bench = bench(interrupts);
        let wired = Wired::attach(&bench.service, DeviceSpec::Null);
        let subchannel = &wired.subchannel;
        let pmcw = subchannel.stsch().pmcw;
        assert_eq!(subchannel.rsch(), Cc::Cc2, "nothing was started");

        put_two_reads(&bench, true);
        assert_eq!(subchannel.ssch(&orb()), Ok(Cc::Cc0));
        for _ in 0..3 {
            drop(wired.interruption());
            assert_eq!(subchannel.ssch(&orb()), Ok(Cc::Cc1), "status is pending");
            assert_eq!(subchannel.rsch(), Cc::Cc1);
            assert_eq!(subchannel.msch(&pmcw.into()), Ok(Cc::Cc1));
            assert_suspended(&wired.status());
            assert_eq!(subchannel.tsch().0, Cc::Cc1, "TSCH clears status");
            let stored = subchannel.stsch().scsw;
            assert_eq!(stored.flags(), ScswFlags::START_FUNCTION | ScswFlags::SUSPENDED);
            assert_eq!(subchannel.ssch(&orb()), Ok(Cc::Cc2), "the start function is not over");
            assert_eq!(subchannel.msch(&pmcw.into()), Ok(Cc::Cc2));
            // With the flag still on it suspends once more.
            assert_eq!(subchannel.rsch(), Cc::Cc0);
        }
        drop(wired.interruption());
        assert_suspended(&wired.status());
        put_two_reads(&bench, false);
        assert_eq!(subchannel.rsch(), Cc::Cc0);
        drop(wired.interruption());
        assert_eq!(subchannel.rsch(), Cc::Cc1, "status is pending");
        assert_ended(&wired.status(), 2);
        assert_eq!(subchannel.rsch(), Cc::Cc2, "nothing is suspended");
        assert_eq!(subchannel.msch(&pmcw.into()), Ok(Cc::Cc0));
        assert!(!wired.is_interrupted());

        let totals = bench.service.totals();
        assert_eq!(totals.counter(CounterKind::Suspensions), 4);
        assert_eq!((totals.all_completions(), totals.completions(Outcome::Ok)), (1, 1));
    }
}

#[test]
fn in_a_ring_word_of_suspension_is_not_final() {
    for interrupts in BOTH_WAYS {
        let bench = bench(interrupts);
        let mut device = bench.attach(DeviceSpec::Null);
        assert_eq!(device.subchannel.rsch(), Cc::Cc2);
        put_two_reads(&bench, true);
        let behind = PROGRAM + 0x100;
        bench.put_program(behind, &[nop()]);
        device.subchannel.submit(&orb(), 1).unwrap();
        device.subchannel.submit(&Orb::new(behind), 2).unwrap();

        let told = device.completion();
        assert!(!told.is_final() && told.user_data == 1, "{told:?}");
        assert_suspended(&told.irb);
        let nothing = device.completions.reap(1, |early| panic!("before its turn: {early:?}"));
        assert_eq!(nothing, 0);
        put_two_reads(&bench, false);
        assert_eq!(device.subchannel.rsch(), Cc::Cc0);
        let ended = device.completion();
        assert!(ended.is_final() && ended.user_data == 1, "{ended:?}");
        assert_ended(&ended.irb, 2);
        let next = device.completion();
        assert_eq!((next.user_data, next.irb.scsw.cpa()), (2, behind + 8), "{next:?}");
        assert_eq!(device.subchannel.rsch(), Cc::Cc2);
    }
}

/// Resumes a program of whose suspension nobody was told.
fn resume_when_suspended(subchannel: &Subchannel) {
    while subchannel.rsch() != Cc::Cc0 {
        thread::yield_now();
    }
}

#[test]
fn suspension_is_not_told_where_the_orb_says_so() {
    let bench = bench(Interrupts::Direct);
    let mut ring = bench.attach(DeviceSpec::Null);
    let wired = Wired::attach(&bench.service, DeviceSpec::Null);
    put_two_reads(&bench, true);
    ring.subchannel.submit(&quiet_orb(), 7).unwrap();
    assert_eq!(wired.subchannel.ssch(&quiet_orb()), Ok(Cc::Cc0));
    // Both suspend once before the flag is taken away.
    while bench.service.totals().counter(CounterKind::Suspensions) < 2 {
        thread::yield_now();
    }
    put_two_reads(&bench, false);
    assert!(!wired.is_interrupted());
    assert_eq!(wired.subchannel.tsch().0, Cc::Cc1);
    resume_when_suspended(&wired.subchannel);
    resume_when_suspended(&ring.subchannel);
    drop(wired.interruption());
    assert_ended(&wired.status(), 2);
    let first = ring.completion();
    assert!(first.is_final(), "{first:?}");
    assert_ended(&first.irb, 2);
    // But a CCW that has both flags is told of.
    bench.put_program(PROGRAM, &[read().with(CC), read().with(SUSPEND | PCI)]);
    ring.subchannel.submit(&quiet_orb(), 8).unwrap();
    let told = ring.completion();
    assert!(!told.is_final(), "{told:?}");
    assert_eq!(told.irb.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CONTROLLED);
}

#[test]
fn a_detached_subchannel_does_not_wait_to_be_resumed() {
    for interrupts in BOTH_WAYS {
        let bench = bench(interrupts);
        let mut ring = bench.attach(DeviceSpec::Null);
        let wired = Wired::attach(&bench.service, DeviceSpec::Null);
        put_two_reads(&bench, true);
        ring.subchannel.submit(&orb(), 1).unwrap();
        assert_suspended(&ring.completion().irb);
        assert_eq!(wired.subchannel.ssch(&orb()), Ok(Cc::Cc0));
        drop(wired.interruption());
        assert_suspended(&wired.status());

        for subchannel in [&ring.subchannel, &wired.subchannel] {
            bench.service.detach(subchannel.clone());
            assert_eq!(subchannel.rsch(), Cc::Cc3);
        }
        drop(wired.interruption());
        assert_deferred(&wired.status());
        let ended = ring.completion();
        assert!(ended.is_final() && ended.user_data == 1, "{ended:?}");
        assert_deferred(&ended.irb);
        assert_eq!(bench.service.totals().completions(Outcome::DeferredCc), 2);
    }
}

#[test]
fn a_service_ends_over_suspended_programs() {
    let bench = bench(Interrupts::Direct);
    let mut ring = bench.attach(DeviceSpec::Null);
    put_two_reads(&bench, true);
    ring.subchannel.submit(&orb(), 1).unwrap();
    assert_suspended(&ring.completion().irb);
    drop(bench);
    assert_deferred(&ring.completion().irb);
}

#[test]
fn a_suspended_program_holds_no_pages() {
    let bench = bench(Interrupts::Direct);
    let mut ring = bench.attach(DeviceSpec::Null);
    put_two_reads(&bench, true);
    ring.subchannel.submit(&orb(), 1).unwrap();
    assert_suspended(&ring.completion().irb);
    let pool = bench.service.pool();
    assert!(pool.peak_bytes() > 0, "its first read had a page");
    assert_eq!(pool.pinned_bytes(), 0);
    put_two_reads(&bench, false);
    assert_eq!(ring.subchannel.rsch(), Cc::Cc0);
    assert_ended(&ring.completion().irb, 2);
}

#[test]
fn what_changes_while_it_is_suspended_is_what_runs() {
    for flags in [OrbFlags::PREFETCH, OrbFlags::empty()] {
        let bench = bench(Interrupts::Direct);
        let mut ring = bench.attach(DeviceSpec::Null);
        let orb = orb().with_flags((orb().flags() - OrbFlags::PREFETCH) | flags);
        put_two_reads(&bench, true);
        ring.subchannel.submit(&orb, 1).unwrap();
        assert_suspended(&ring.completion().irb);
        bench.put(BUFFER.into(), &[0xee; 64]);
        let identify = Ccw::new(command::SENSE_ID, BUFFER + 0x100, 7);
        bench.put_program(PROGRAM, &[read().with(CC), identify.with(CC), nop()]);
        assert_eq!(ring.subchannel.rsch(), Cc::Cc0);
        assert_ended(&ring.completion().irb, 3);
        assert_eq!(bench.peek(u64::from(BUFFER) + 0x100, 3), [0xff, 0xf0, 0xf0]);
        assert_eq!(bench.peek(BUFFER.into(), 64), [0xee; 64], "the first CCW did not run again");
    }
}
