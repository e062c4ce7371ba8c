//! CCWs with the PCI flag, through a whole service: a guest hears of the progress of its program, by
//! interruption or in a completion ring.

pub mod bench_guest;

use bench_guest::wired::Wired;
use bench_guest::{Bench, Device};
use vfio_ccw::architecture::{Ccw, CcwFlags, IrbHead, Orb, ScswFlags, SubchannelStatus, command};
use vfio_ccw::{Cc, DeviceSpec, Interrupts, Service};
use vfio_ccw_metrics::CounterKind;

const MEMORY: usize = 1 << 20;
const PROGRAM: u32 = 0x1000;

fn bench(interrupts: Interrupts) -> Bench {
    println!("{interrupts:?}");
    Bench::with(Service::builder().interrupts(interrupts), MEMORY)
}

/// The clean end of a program of `ccws` CCWs, with nothing else in its status.
#[track_caller]
fn assert_ended(irb: &IrbHead, ccws: u32) {
    assert!(irb.scsw.is_clean_end() && irb.scsw.is_final(), "{irb:?}");
    assert!(irb.scsw.subchannel_status().is_empty(), "{irb:?}");
    assert_eq!(irb.scsw.cpa(), PROGRAM + ccws * 8, "{irb:?}");
}

/// `count` CCWs with the flag, and one without.
fn put_controlled_nops(bench: &Bench, count: usize) {
    let nop = Ccw::new(command::NOP, 0, 0);
    let told = CcwFlags::PROGRAM_CONTROLLED | CcwFlags::CHAIN_COMMAND;
    let mut program = vec![nop.with(told); count];
    program.push(nop);
    bench.put_program(PROGRAM, &program);
}

/// Runs the program and returns the CCW addresses of its intermediate status, and its end.
fn run_telling(device: &mut Device) -> (Vec<u32>, IrbHead) {
    device.subchannel.submit(&Orb::new(PROGRAM), 3).unwrap();
    let mut told = Vec::new();
    loop {
        let completion = device.completion();
        let scsw = completion.irb.scsw;
        assert_eq!(completion.user_data, 3);
        if completion.is_final() {
            return (told, completion.irb);
        }
        let flags =
            ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::INTERMEDIATE | ScswFlags::STATUS_PENDING;
        assert!(scsw.flags().contains(flags), "{scsw:?}");
        assert_eq!(scsw.subchannel_status(), SubchannelStatus::PROGRAM_CONTROLLED);
        told.push(scsw.cpa());
    }
}

#[test]
fn a_ring_is_told_of_each_controlled_ccw_but_not_flooded() {
    let bench = bench(Interrupts::Direct);
    let mut device = bench.attach(DeviceSpec::Null);
    put_controlled_nops(&bench, 3);
    let (told, end) = run_telling(&mut device);
    assert_eq!(told, [PROGRAM + 8, PROGRAM + 16, PROGRAM + 24]);
    assert_ended(&end, 4);

    put_controlled_nops(&bench, 16);
    let (told, end) = run_telling(&mut device);
    assert_eq!(told.len(), 16);
    assert_ended(&end, 17);

    put_controlled_nops(&bench, 40);
    let (told, end) = run_telling(&mut device);
    assert_eq!((told.len(), told[15]), (16, PROGRAM + 16 * 8), "the first sixteen");
    assert!(end.scsw.is_clean_end() && end.scsw.cpa() == PROGRAM + 41 * 8, "{end:?}");
    assert_eq!(end.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CONTROLLED);
    assert_eq!(bench.service.totals().counter(CounterKind::Intermediate), 3 + 16 + 16);
}

#[test]
fn signals_that_run_together_tell_of_the_last() {
    let bench = bench(Interrupts::EventFd);
    let mut device = bench.attach(DeviceSpec::Null);
    put_controlled_nops(&bench, 3);
    let (told, end) = run_telling(&mut device);
    assert!(told.is_sorted() && told.last() == Some(&(PROGRAM + 24)), "{told:x?}");
    assert_ended(&end, 4);
}

#[test]
fn intermediate_status_is_fetched_while_the_program_goes_on() {
    let bench = bench(Interrupts::Direct);
    let wired = Wired::attach(&bench.service, DeviceSpec::Null);
    let subchannel = &wired.subchannel;
    put_controlled_nops(&bench, 1);
    assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
    let held = wired.interruption();
    assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc1), "status is pending");
    assert_eq!(subchannel.rsch(), Cc::Cc1);
    let irb = wired.status();
    assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CONTROLLED);
    assert!(!irb.scsw.is_final() && irb.scsw.cpa() == PROGRAM + 8, "{irb:?}");
    assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc2), "the program goes on");
    assert_eq!(subchannel.rsch(), Cc::Cc2);
    drop(held);
    drop(wired.interruption());
    assert_ended(&wired.status(), 2);
}

#[test]
fn intermediate_status_that_nobody_fetched_comes_with_the_end() {
    for interrupts in [Interrupts::Direct, Interrupts::EventFd] {
        let bench = bench(interrupts);
        let wired = Wired::attach(&bench.service, DeviceSpec::Null);
        put_controlled_nops(&bench, 5);
        assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        drop(wired.interruption());
        // One more, however many CCWs have the flag: the first is still pending.
        drop(wired.interruption());
        let irb = wired.status();
        assert!(irb.scsw.is_clean_end() && irb.scsw.cpa() == PROGRAM + 6 * 8, "{irb:?}");
        assert!(irb.scsw.flags().contains(ScswFlags::INTERMEDIATE | ScswFlags::PRIMARY));
        assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CONTROLLED);
        assert_eq!(wired.subchannel.tsch().0, Cc::Cc1);
        assert!(!wired.is_interrupted());
    }
}
