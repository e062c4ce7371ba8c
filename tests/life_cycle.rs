//! Devices and services that come to rest, go on, go elsewhere, and end.

pub mod bench_guest;

use std::thread;
use std::time::Duration;

use bench_guest::fba::{self, Image};
use bench_guest::gated::{Gate, TRANSFER};
use bench_guest::wired::Wired;
use bench_guest::{Bench, Device, STALL};
use vfio_ccw::architecture::{
    Ccw, CcwFlags, DeviceStatus, Orb, OrbFlags, PmcwFlags, ScswFlags, SubchannelId, command,
};
use vfio_ccw::channel_subsystem::{DeviceState, DeviceStateError, ExtentState, FbaState};
use vfio_ccw::{
    AttachError, Cc, Completions, Delivery, DeviceOptions, DeviceSpec, DrainError, Interrupts,
    QuiesceError, SaveError, Service, ServiceBuilder, ServiceState, Silent, StateError, Subchannel,
    SubchannelState, SubmitError,
};
use vfio_ccw_metrics::DeviceClass;

const MEMORY: usize = 1 << 20;
/// A transfer.
const PROGRAM: u32 = 0x1000;
const BUFFER: u32 = 0x1_0000;
/// A NOP that suspends the program, and a transfer.
const SUSPENDING: u32 = 0x3000;

const BOTH_WAYS: [Interrupts; 2] = [Interrupts::Direct, Interrupts::EventFd];

fn bench(builder: ServiceBuilder) -> Bench {
    let bench = Bench::with(builder, MEMORY);
    let (cc, nop) = (CcwFlags::CHAIN_COMMAND, Ccw::new(command::NOP, 0, 0));
    let read = Ccw::new(command::READ_IPL, BUFFER, TRANSFER as u16);
    bench.put_program(PROGRAM, &[read]);
    bench.put_program(SUSPENDING, &[nop.with(cc), nop.with(cc | CcwFlags::SUSPEND), read]);
    bench
}

fn suspending() -> Orb {
    let orb = Orb::new(SUSPENDING);
    orb.with_flags(orb.flags() | OrbFlags::SUSPEND_CONTROL)
}

/// The guest clears the suspend flag, so that the program goes on when it is resumed.
fn let_go_on(bench: &Bench) {
    let nop = Ccw::new(command::NOP, 0, 0).with(CcwFlags::CHAIN_COMMAND);
    bench.put_program(SUSPENDING + 8, &[nop]);
}

#[test]
fn a_quiet_service_begins_nothing_and_loses_nothing() {
    for interrupts in BOTH_WAYS {
        println!("{interrupts:?}");
        let bench = bench(Service::builder().shards(2).interrupts(interrupts));
        let service = &bench.service;
        let gate = Gate::shut();
        let wired = Wired::attach(service, gate.device());
        let mut ring = bench.attach(DeviceSpec::Null);
        assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        gate.wait_for_arrivals(1);

        let error = service.quiesce(Duration::from_millis(20)).expect_err("a program runs");
        let QuiesceError::StillRunning { subchannels, .. } = error else { panic!("{error}") };
        assert_eq!(subchannels, 1, "{error}");
        assert!(!service.is_quiet());
        // None begins any more, also where nothing runs.
        for user_data in 0..3 {
            ring.subchannel.submit(&Orb::new(PROGRAM), user_data).unwrap();
        }
        gate.open();
        drop(wired.interruption());
        service.quiesce(STALL).expect("the program has ended");
        service.quiesce(Duration::ZERO).expect("it is quiet already");
        assert!(service.is_quiet());
        assert!(wired.status().scsw.is_clean_end());
        assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc2));
        thread::sleep(Duration::from_millis(20));
        assert!(!ring.completions.wait(Some(Duration::ZERO)).unwrap(), "nothing begins");
        let waits = ScswFlags::START_FUNCTION | ScswFlags::START_PENDING;
        assert_eq!(wired.subchannel.stsch().scsw.flags(), waits);

        service.resume();
        assert!(!service.is_quiet());
        let ended: Vec<_> = (0..3).map(|_| ring.completion().user_data).collect();
        assert_eq!(ended, [0, 1, 2]);
        drop(wired.interruption());
        assert!(wired.status().scsw.is_clean_end());
        service.resume();
    }
}

#[test]
fn functions_are_performed_while_a_service_is_quiet() {
    for interrupts in BOTH_WAYS {
        let bench = bench(Service::builder().interrupts(interrupts));
        let wired = Wired::attach(&bench.service, DeviceSpec::Null);
        let mut ring = bench.attach(DeviceSpec::Null);
        bench.service.quiesce(STALL).unwrap();
        assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        assert_eq!(wired.subchannel.hsch(), Cc::Cc0);
        drop(wired.interruption());
        assert!(wired.status().scsw.flags().contains(ScswFlags::HALT_FUNCTION));
        ring.subchannel.submit(&Orb::new(PROGRAM), 1).unwrap();
        ring.subchannel.submit_clear(2).unwrap();
        assert_eq!([ring.completion().user_data, ring.completion().user_data], [1, 2]);
        bench.service.detach(wired.subchannel.clone());
        bench.service.resume();
    }
}

#[test]
fn programs_in_line_for_pages_give_up_their_place() {
    let bench = bench(Service::builder().budget(16 * 4096));
    let wired = Wired::attach(&bench.service, DeviceSpec::Null);
    let pool = bench.service.pool();
    let dam = bench.dam();
    assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
    dam.wait_for_programs(1);
    bench.service.quiesce(STALL).expect("it has not begun");
    assert_eq!(pool.waiting(), 0);
    drop(dam);
    thread::sleep(Duration::from_millis(10));
    assert!(!wired.is_interrupted(), "there is room now, but it must not begin");
    let saved = bench.service.save().unwrap();
    assert_eq!(saved.subchannels[0].starts.len(), 1, "it is one that waits: {saved:?}");
    bench.service.resume();
    drop(wired.interruption());
    assert!(wired.status().scsw.is_clean_end());
}

#[test]
fn services_come_to_rest_under_load() {
    for interrupts in BOTH_WAYS {
        let bench = bench(Service::builder().shards(2).interrupts(interrupts));
        let mut devices: Vec<Device> = (0..8).map(|_| bench.attach(DeviceSpec::Null)).collect();
        thread::scope(|scope| {
            for device in &mut devices {
                scope.spawn(|| {
                    let (mut submitted, mut ended) = (0, 0);
                    while ended < 4000 {
                        while submitted < 4000
                            && device.subchannel.submit(&Orb::new(PROGRAM), submitted).is_ok()
                        {
                            submitted += 1;
                        }
                        assert!(device.completions.wait(Some(STALL)).unwrap());
                        device.completions.reap(usize::MAX, |completion| {
                            assert_eq!(completion.user_data, ended);
                            ended += 1;
                        });
                    }
                });
            }
            for _ in 0..50 {
                bench.service.quiesce(STALL).unwrap();
                let before = bench.service.totals().all_completions();
                thread::yield_now();
                assert_eq!(bench.service.totals().all_completions(), before);
                bench.service.resume();
                thread::yield_now();
            }
        });
        assert_eq!(bench.service.totals().all_completions(), 8 * 4000);
    }
}

/// Saves a service at rest, and restores it over a copy of its memory.
fn migrate(bench: &Bench, builder: ServiceBuilder) -> (ServiceState, Bench) {
    bench.service.quiesce(STALL).expect("programs end");
    let state = bench.service.save().expect("it is quiet");
    let there = Bench::with(builder, MEMORY);
    there.put(0, &bench.peek(0, MEMORY));
    there.service.quiesce(STALL).expect("nothing runs");
    (state, there)
}

#[test]
fn status_starts_and_settings_go_elsewhere() {
    for interrupts in BOTH_WAYS {
        println!("{interrupts:?}");
        let builder = || Service::builder().interrupts(interrupts);
        let here = bench(builder());
        let options = DeviceOptions::default().subchannel(SubchannelId::new(0, 7)).devno(0xbeef);
        let attach = |options| {
            let delivery = Delivery::interrupt(Silent);
            here.service.attach_with(DeviceSpec::Null, delivery, options).unwrap()
        };
        let ended = attach(options);
        let waits = attach(DeviceOptions::default().hot_plugged());
        let pmcw = ended.stsch().pmcw;
        ended.msch(&pmcw.with(pmcw.flags(), 5).into()).unwrap();
        ended.ssch(&Orb::new(PROGRAM).with_intparm(0x1234)).unwrap();
        while !ended.stsch().scsw.is_final() {
            thread::yield_now();
        }
        here.service.quiesce(STALL).unwrap();
        waits.ssch(&Orb::new(PROGRAM).with_intparm(0x5678)).unwrap();
        here.service.enable_interruptions(0x04);

        let (state, there) = migrate(&here, builder());
        assert_eq!((state.version, state.subchannels.len()), (1, 2));
        assert_eq!((state.reports.len(), state.enabled_subclasses), (1, 0x04));
        let [ended_there, waits_there] =
            [&state.subchannels[1], &state.subchannels[0]].map(|saved| {
                let options = DeviceOptions::default().restore(saved.clone());
                let delivery = Delivery::interrupt(Silent);
                there.service.attach_with(DeviceSpec::Null, delivery, options).unwrap()
            });
        there.service.restore(&state).unwrap();
        assert_eq!(there.service.save().unwrap(), state, "nothing is lost on the way");

        assert_eq!(ended_there.id(), SubchannelId::new(0, 7));
        assert_eq!(ended_there.stsch().pmcw, ended.stsch().pmcw);
        assert_eq!(ended_there.stsch().scsw, ended.stsch().scsw);
        let interruption = there.service.tpi(0xff).expect("it was pending");
        assert_eq!((interruption.isc, interruption.intparm), (5, 0x1234));
        assert_eq!(ended_there.tsch(), ended.tsch());
        there.service.resume();
        while !waits_there.stsch().scsw.is_final() {
            thread::yield_now();
        }
        assert_eq!(there.service.tpi(0xff).map(|taken| taken.intparm), Some(0x5678));
        assert!(waits_there.tsch().1.scsw.is_clean_end());
        assert_eq!(there.service.stcrw().0, Cc::Cc0);
        assert_eq!(there.service.stcrw().0, Cc::Cc1);
        // The one that was saved goes on, too.
        here.service.resume();
        while !waits.stsch().scsw.is_final() {
            thread::yield_now();
        }
    }
}

#[test]
fn suspended_programs_and_rings_go_elsewhere() {
    for interrupts in BOTH_WAYS {
        println!("{interrupts:?}");
        let builder = || Service::builder().interrupts(interrupts);
        let here = bench(builder());
        let gate = Gate::shut();
        gate.open();
        let wired = Wired::attach(&here.service, gate.device());
        let mut ring = here.attach(gate.device());
        // Two transfers so far, which the device remembers.
        for _ in 0..2 {
            assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
            drop(wired.interruption());
            assert!(wired.status().scsw.is_clean_end());
        }
        assert_eq!(wired.subchannel.ssch(&suspending()), Ok(Cc::Cc0));
        drop(wired.interruption());
        assert!(wired.status().scsw.flags().contains(ScswFlags::SUSPENDED));
        ring.subchannel.submit(&suspending(), 10).unwrap();
        assert!(!ring.completion().is_final());
        ring.subchannel.submit(&Orb::new(PROGRAM), 11).unwrap();
        ring.subchannel.submit(&Orb::new(PROGRAM), 12).unwrap();

        let (state, there) = migrate(&here, builder());
        let [first, second] = [0, 1].map(|index| state.subchannels[index].clone());
        assert!(first.suspended.is_some() && second.suspended.is_some(), "{state:?}");
        assert_eq!(
            second.starts.iter().map(|start| start.user_data).collect::<Vec<_>>(),
            [Some(11), Some(12)]
        );
        assert_eq!(first.device, DeviceState::Other(vec![2]));
        let wired_there = Wired::attach_with(
            &there.service,
            gate.device(),
            DeviceOptions::default().restore(first),
        );
        let (delivery, completions) = Completions::ring(8).unwrap();
        let options = DeviceOptions::default().restore(second);
        let subchannel = there.service.attach_with(gate.device(), delivery, options).unwrap();
        let mut ring_there = Device { subchannel, completions };
        assert_eq!(there.service.save().unwrap(), state, "nothing is lost on the way");
        there.service.resume();

        let_go_on(&there);
        assert_eq!(wired_there.subchannel.rsch(), Cc::Cc0);
        drop(wired_there.interruption());
        let irb = wired_there.status();
        assert!(irb.scsw.is_clean_end() && irb.scsw.cpa() == SUSPENDING + 24, "{irb:?}");
        assert_eq!(there.peek(BUFFER.into(), 1), [3], "its third transfer");
        assert_eq!(ring_there.subchannel.rsch(), Cc::Cc0);
        let ended: Vec<_> = (0..3).map(|_| ring_there.completion().user_data).collect();
        assert_eq!(ended, [10, 11, 12]);
    }
}

#[test]
fn a_disk_goes_on_in_the_middle_of_a_program() {
    let here = bench(Service::builder());
    let image = Image::new(64);
    // DEFINE EXTENT and LOCATE, then suspended before the READ of block 5.
    let (cc, parameters) = (CcwFlags::CHAIN_COMMAND, 0x5000);
    here.put(parameters, &[0x40, 0, 2, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0]);
    here.put(parameters + 16, &[0x06, 0, 0, 1, 0, 0, 0, 0]);
    let read = Ccw::new(command::FBA_READ, BUFFER, 512);
    let program = [
        Ccw::new(command::DEFINE_EXTENT, parameters as u32, 16).with(cc),
        Ccw::new(command::FBA_LOCATE, parameters as u32 + 16, 8).with(cc),
        read.with(CcwFlags::SUSPEND),
    ];
    here.put_program(SUSPENDING, &program);
    let wired = Wired::attach(&here.service, image.disk());
    assert_eq!(wired.subchannel.ssch(&suspending()), Ok(Cc::Cc0));
    drop(wired.interruption());
    assert!(wired.status().scsw.flags().contains(ScswFlags::SUSPENDED));

    let (state, there) = migrate(&here, Service::builder());
    let saved = state.subchannels[0].clone();
    let DeviceState::Fba(kept) = &saved.device else { panic!("{saved:?}") };
    assert_eq!((kept.blocks, kept.extent.map(|extent| extent.at)), (64, Some(5)));
    assert_eq!(kept.located.map(|located| (located.at, located.blocks)), Some((5, 1)));
    // A disk of another size, or a state that reaches beyond the volume, is not believed.
    let attach = |image: &Image, saved: SubchannelState| {
        let options = DeviceOptions::default().restore(saved);
        there.service.attach_with(image.disk(), Delivery::interrupt(Silent), options)
    };
    let other = Image::new(65);
    let error = attach(&other, saved.clone()).expect_err("another disk");
    assert!(matches!(
        error,
        AttachError::State(StateError::Device(DeviceStateError::Blocks { saved: 64, here: 65 }))
    ));
    let extent = ExtentState { may_write: true, at: 60, first: 0, last: 4 };
    let hostile = FbaState { extent: Some(extent), ..kept.clone() };
    let hostile = SubchannelState { device: DeviceState::Fba(hostile), ..saved.clone() };
    let error = attach(&image, hostile).expect_err("beyond the volume");
    assert!(error.to_string().contains("outside of the volume"), "{error}");

    let options = DeviceOptions::default().restore(saved);
    let wired_there = Wired::attach_with(&there.service, image.disk(), options);
    there.service.resume();
    there.put_program(SUSPENDING + 16, &[read]);
    assert_eq!(wired_there.subchannel.rsch(), Cc::Cc0);
    drop(wired_there.interruption());
    let irb = wired_there.status();
    assert!(irb.scsw.is_clean_end(), "{irb:?}");
    assert_eq!(there.peek(BUFFER.into(), 512), fba::block(5));
}

#[test]
fn states_that_cannot_be_are_refused() {
    let here = bench(Service::builder().ring_entries(4));
    let subchannel = here.service.attach(DeviceSpec::Null, Delivery::interrupt(Silent)).unwrap();
    here.service.quiesce(STALL).unwrap();
    subchannel.ssch(&Orb::new(PROGRAM)).unwrap();
    let state = here.service.save().unwrap();
    let good = state.subchannels[0].clone();
    here.service.detach(subchannel);
    here.service.resume();
    let attach = |change: &dyn Fn(&mut SubchannelState), delivery: Delivery| {
        let mut saved = good.clone();
        saved.number = 3;
        change(&mut saved);
        let options = DeviceOptions::default().restore(saved);
        here.service.attach_with(DeviceSpec::Null, delivery, options).map(drop)
    };
    let refused =
        |change: &dyn Fn(&mut SubchannelState)| match attach(change, Delivery::interrupt(Silent))
            .expect_err("it is not possible")
        {
            AttachError::State(error) => error,
            other => panic!("{other}"),
        };
    let control = |flags: ScswFlags| {
        let error = refused(&|saved| saved.control = flags.bits());
        assert!(matches!(error, StateError::Control { number: 3, .. }), "{flags:?}: {error}");
    };
    assert!(matches!(refused(&|saved| saved.number = 1 << 18), StateError::Number { .. }));
    assert!(matches!(refused(&|saved| saved.pmcw[6] = 0xffff_ffff), StateError::Schib(_)));
    assert!(matches!(refused(&|saved| saved.pmcw[2] ^= 0x0000_00ff), StateError::Paths { .. }));
    assert!(matches!(refused(&|saved| saved.starts[0].orb[2] = 1 << 31), StateError::Orb(_)));
    assert!(matches!(
        refused(&|saved| saved.starts[0].user_data = Some(1)),
        StateError::Delivery { by_instruction: false, .. }
    ));
    assert!(matches!(
        refused(&|saved| saved.device = DeviceState::Nothing),
        StateError::Device(DeviceStateError::Kind)
    ));
    control(ScswFlags::empty());
    control(ScswFlags::START_FUNCTION);
    control(ScswFlags::START_FUNCTION | ScswFlags::HALT_FUNCTION | ScswFlags::START_PENDING);
    control(ScswFlags::START_FUNCTION | ScswFlags::START_PENDING | ScswFlags::DEVICE_ACTIVE);
    control(ScswFlags::START_FUNCTION | ScswFlags::START_PENDING | ScswFlags::SUSPENDED);
    control(ScswFlags::START_FUNCTION | ScswFlags::START_PENDING | ScswFlags::PRIMARY);
    control(ScswFlags::START_FUNCTION | ScswFlags::START_PENDING | ScswFlags::HALT_PENDING);
    control(ScswFlags::from_bits_retain(1 << 31));
    let error = refused(&|saved| saved.interrupts = true);
    assert!(error.to_string().contains("no status is pending"), "{error}");
    // A ring with more than fits into it, and one for what was started by instruction.
    let (delivery, _completions) = Completions::ring(4).unwrap();
    let many = |saved: &mut SubchannelState| {
        saved.control = 0;
        saved.starts[0].user_data = Some(9);
        saved.starts = vec![saved.starts[0]; 5];
    };
    let error = attach(&many, delivery.clone()).expect_err("a ring of 4");
    assert!(error.to_string().contains("5 programs wait, the ring has 4 entries"), "{error}");
    let error = attach(&|_| {}, delivery).expect_err("started by instruction");
    assert!(error.to_string().contains("by instruction"), "{error}");
    let future = ServiceState { version: 2, ..state };
    let error = here.service.restore(&future).expect_err("not known here");
    assert_eq!(error, StateError::Version { found: 2 });
    // Nothing of all this has left anything behind: the number is free.
    attach(&|_| {}, Delivery::interrupt(Silent)).expect("the good one");
}

#[test]
fn what_cannot_be_saved_is_said() {
    let bench = bench(Service::builder());
    let disk = bench.service.attach(DeviceSpec::Null, Delivery::Future).unwrap();
    assert!(matches!(bench.service.save(), Err(SaveError::NotQuiet)));
    bench.service.quiesce(STALL).unwrap();
    bench.service.save().expect("no future waits");
    let start = disk.start(&Orb::new(PROGRAM)).unwrap();
    let error = bench.service.save().expect_err("a future waits");
    assert!(matches!(error, SaveError::Futures { number: 0 }), "{error}");
    drop(start);
    bench.service.save().expect("nobody waits any more");
}

/// On a shard that has others to look after before it delivers what has ended.
#[test]
fn what_has_ended_is_there_when_draining_is_over() {
    const OTHERS: u64 = 32;
    for interrupts in BOTH_WAYS {
        let bench = bench(Service::builder().shards(1).interrupts(interrupts));
        let mut others: Vec<_> = (0..OTHERS).map(|_| bench.attach(DeviceSpec::Null)).collect();
        for _ in 0..200 {
            let mut ring = bench.attach(DeviceSpec::Null);
            for user_data in 0..4 {
                ring.subchannel.submit(&Orb::new(PROGRAM), user_data).unwrap();
            }
            for (other, user_data) in others.iter().zip(0..) {
                other.subchannel.submit(&Orb::new(PROGRAM), user_data).unwrap();
            }
            bench.service.drain(ring.subchannel, STALL).expect("all that was started ends");
            let mut ended = 0;
            ring.completions.reap(5, |_| ended += 1);
            assert_eq!(ended, 4);
            for (other, user_data) in others.iter_mut().zip(0..) {
                assert_eq!(other.completion().user_data, user_data);
            }
        }
    }
}

#[test]
fn draining_waits_for_all_that_was_started() {
    for interrupts in BOTH_WAYS {
        let bench = bench(Service::builder().interrupts(interrupts));
        let gate = Gate::shut();
        let mut ring = bench.attach(gate.device());
        for user_data in 0..4 {
            ring.subchannel.submit(&Orb::new(PROGRAM), user_data).unwrap();
        }
        gate.wait_for_arrivals(1);
        thread::scope(|scope| {
            let draining = scope.spawn(|| bench.service.drain(ring.subchannel.clone(), STALL));
            while ring.subchannel.submit(&Orb::new(PROGRAM), 9) != Err(SubmitError::Detached) {
                thread::yield_now();
            }
            gate.open();
            draining.join().unwrap().expect("all that was started ends");
        });
        let ended = std::iter::from_fn(|| {
            let mut one = None;
            ring.completions.reap(1, |completion| one = Some(completion));
            one
        });
        let ended: Vec<_> = ended.map(|end| (end.user_data, end.irb.scsw.is_clean_end())).collect();
        assert_eq!(ended[..4], [(0, true), (1, true), (2, true), (3, true)]);
        assert!(ended[4..].iter().all(|end| *end == (9, true)), "accepted, so it ran: {ended:?}");
        let id = ring.subchannel.id();
        assert_eq!(bench.service.stsch(id.into()).unwrap().0, Cc::Cc3, "it is gone");
        assert_eq!(bench.service.stcrw().1.id(), id.number());
    }
}

#[test]
fn draining_ends_at_its_deadline() {
    let bench = bench(Service::builder());
    let gate = Gate::shut();
    let mut ring = bench.attach(gate.device());
    for user_data in 0..3 {
        ring.subchannel.submit(&Orb::new(PROGRAM), user_data).unwrap();
    }
    gate.wait_for_arrivals(1);
    let error = bench.service.drain(ring.subchannel.clone(), Duration::from_millis(10));
    assert!(matches!(error, Err(DrainError::NotOver { .. })), "{error:?}");
    // The device is let go, and what waited is refused.
    let ends: Vec<_> = (0..3).map(|_| ring.completion().irb.scsw).collect();
    assert!(ends[0].is_clean_end(), "{ends:?}");
    assert_eq!([ends[1].deferred_cc(), ends[2].deferred_cc()], [3, 3]);
    // A suspended program cannot go on either.
    let wired = Wired::attach(&bench.service, DeviceSpec::Null);
    assert_eq!(wired.subchannel.ssch(&suspending()), Ok(Cc::Cc0));
    drop(wired.interruption());
    assert!(!wired.status().scsw.is_final());
    let error = bench.service.drain(wired.subchannel.clone(), Duration::from_millis(10));
    assert!(matches!(error, Err(DrainError::NotOver { .. })), "{error:?}");
    drop(wired.interruption());
    assert_eq!(wired.status().scsw.deferred_cc(), 3);
}

#[test]
fn a_service_ends_over_devices_that_never_answer() {
    for interrupts in BOTH_WAYS {
        let bench = bench(Service::builder().interrupts(interrupts));
        let gate = Gate::shut();
        let mut devices: Vec<_> = (0..10).map(|_| bench.attach(gate.device())).collect();
        for device in &devices {
            device.subchannel.submit(&Orb::new(PROGRAM), 1).unwrap();
            device.subchannel.submit(&Orb::new(PROGRAM), 2).unwrap();
        }
        gate.wait_for_arrivals(10);
        drop(bench);
        for device in &mut devices {
            let ends = [device.completion(), device.completion()];
            assert!(ends[0].irb.scsw.is_clean_end(), "{ends:?}");
            assert_eq!(ends[1].irb.scsw.deferred_cc(), 3, "{ends:?}");
        }
    }
}

#[test]
fn devices_come_and_go_while_others_work() {
    let bench = bench(Service::builder().shards(2).subchannels(64));
    let service = &bench.service;
    let mut worker = bench.attach(DeviceSpec::Null);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for round in 0..300 {
                        let mut device = bench.attach(DeviceSpec::Null);
                        device.subchannel.submit(&Orb::new(PROGRAM), 1).unwrap();
                        match round % 3 {
                            0 => service.detach(device.subchannel.clone()),
                            1 => service.drain(device.subchannel.clone(), STALL).unwrap(),
                            _ => {}
                        }
                        let irb = device.completion().irb;
                        let clean = irb.scsw.is_clean_end();
                        assert!(clean || round % 3 == 0 && irb.scsw.deferred_cc() == 3, "{irb:?}");
                        if round % 3 == 2 {
                            service.drain(device.subchannel, STALL).unwrap();
                        }
                    }
                })
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            assert!(worker.run(&Orb::new(PROGRAM)).scsw.is_clean_end());
        }
    });
    assert_eq!(service.attach(DeviceSpec::Null, Delivery::interrupt(Silent)).unwrap().number(), 1);
}

/// What a guest sees of a device that was attached by itself.
fn senses_id(bench: &Bench, subchannel: &Subchannel) -> Vec<u8> {
    bench.put_program(0x4000, &[Ccw::new(command::SENSE_ID, BUFFER, 7)]);
    assert_eq!(subchannel.ssch(&Orb::new(0x4000)), Ok(Cc::Cc0));
    while !subchannel.stsch().scsw.is_final() {
        thread::yield_now();
    }
    let (_, irb) = subchannel.tsch();
    let check = DeviceStatus::UNIT_CHECK;
    if irb.scsw.device_status().contains(check) {
        irb.sense().to_vec()
    } else {
        bench.peek(BUFFER.into(), 7)
    }
}

#[test]
fn a_model_of_the_vmm_is_a_device_like_others() {
    use vfio_ccw::channel_subsystem::{Data, Device as Model, Ending, Sense};

    /// Says that it needs somebody, whatever it is told.
    struct Offline;

    impl Model for Offline {
        fn class(&self) -> DeviceClass {
            DeviceClass::Tape
        }

        fn begin(&mut self) {}

        async fn command(&mut self, _code: u8, _data: &mut Data<'_>) -> Ending {
            Ending::unit_check()
        }

        fn take_sense(&mut self) -> Sense {
            Sense::new(Sense::INTERVENTION_REQUIRED, 0, 4)
        }
    }

    for interrupts in BOTH_WAYS {
        let bench = bench(Service::builder().interrupts(interrupts));
        let model = DeviceSpec::model(DeviceClass::Tape, || Offline);
        let delivery = Delivery::interrupt(Silent);
        let offline = bench.service.attach(model, delivery.clone()).unwrap();
        let null = bench.service.attach(DeviceSpec::Null, delivery).unwrap();
        assert_eq!(senses_id(&bench, &offline), [0x40, 0, 0, 0]);
        assert_eq!(senses_id(&bench, &null), [0xff, 0xf0, 0xf0, 1, 0xf0, 0xf0, 1]);
        assert!(offline.stsch().pmcw.flags().contains(PmcwFlags::ENABLED));
        let stages = bench.service.totals();
        let stage = vfio_ccw_metrics::Stage::Total;
        let count = |class| stages.stage_of(class, stage).map(|snapshot| snapshot.count());
        assert_eq!((count(DeviceClass::Tape), count(DeviceClass::Null)), (Some(1), Some(1)));
    }
}
