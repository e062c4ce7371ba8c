//! I/O interruptions and channel reports, as a VMM's intercept handlers and its interrupt controller see
//! them: by subclass, masked, taken by TEST PENDING INTERRUPTION; subchannels that come and go.

pub mod bench_guest;

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use bench_guest::{Bench, STALL};
use vfio_ccw::architecture::{
    Ccw, Crw, CrwFlags, IoInterruption, Orb, OrbFlags, PmcwFlags, Schib, SubchannelId, command,
};
use vfio_ccw::{
    AttachError, Cc, Delivery, DeviceOptions, DeviceSpec, OperandError, Service, Silent, Subchannel,
};

const MEMORY: usize = 1 << 20;
const PROGRAM: u32 = 0x1000;

fn bench(builder: vfio_ccw::ServiceBuilder) -> Bench {
    let bench = Bench::with(builder, MEMORY);
    bench.put_program(PROGRAM, &[Ccw::new(command::NOP, 0, 0)]);
    bench
}

/// A null device that tells nobody, with interruptions of subclass `isc`.
fn silent(bench: &Bench, isc: u8) -> Subchannel {
    let delivery = Delivery::interrupt(Silent);
    let subchannel = bench.service.attach(DeviceSpec::Null, delivery).expect("room for a device");
    set_isc(&subchannel, isc);
    subchannel
}

fn set_isc(subchannel: &Subchannel, isc: u8) {
    let pmcw = subchannel.stsch().pmcw;
    assert_eq!(subchannel.msch(&pmcw.with(pmcw.flags(), isc).into()), Ok(Cc::Cc0));
}

/// Runs a program to its end, whose interruption is then pending.
#[track_caller]
fn run(bench: &Bench, subchannel: &Subchannel, intparm: u32) {
    let orb = Orb::new(PROGRAM).with_intparm(intparm);
    assert_eq!(subchannel.ssch(&orb), Ok(Cc::Cc0));
    let isc = subchannel.stsch().pmcw.isc();
    wait_until(|| {
        subchannel.stsch().scsw.is_final() && bench.service.has_interruption(0x80 >> isc)
    });
}

#[track_caller]
fn wait_until(mut happened: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(begin.elapsed() < STALL, "it never happens");
        thread::yield_now();
    }
}

#[test]
fn interruptions_are_taken_in_the_order_of_their_subclasses() {
    let bench = bench(Service::builder());
    let service = &bench.service;
    let subchannels: Vec<_> = [3, 0, 7, 3].map(|isc| silent(&bench, isc)).into();
    assert!(!service.has_interruption(0xff) && service.tpi(0xff).is_none());
    for (subchannel, intparm) in subchannels.iter().zip(10..) {
        run(&bench, subchannel, intparm);
    }
    assert!(service.has_interruption(0x80) && !service.has_interruption(0x40));
    assert_eq!(service.tpi(0x6e), None, "no subclass of these is pending");
    let take = |mask| service.tpi(mask).map(|taken| (taken.isc, taken.intparm, taken.subchannel));
    assert_eq!(take(0xff), Some((0, 11, subchannels[1].id())));
    assert_eq!(take(0x01), Some((7, 12, subchannels[2].id())), "the others are masked");
    assert_eq!(take(0xff), Some((3, 10, subchannels[0].id())));
    // Status that is fetched takes its interruption with it.
    assert_eq!(subchannels[3].tsch().0, Cc::Cc0);
    assert_eq!(take(0xff), None);
    assert!(!service.has_interruption(0xff));
    // Status whose interruption was taken stays.
    for subchannel in &subchannels[..3] {
        assert_eq!(subchannel.tsch().0, Cc::Cc0);
        assert_eq!(subchannel.tsch().0, Cc::Cc1);
    }
}

#[test]
fn subchannels_of_one_subclass_take_turns() {
    let bench = bench(Service::builder());
    let subchannels: Vec<_> = (0..4).map(|_| silent(&bench, 5)).collect();
    let mut taken = [0; 4];
    for _ in 0..400 {
        for subchannel in &subchannels {
            if subchannel.tsch().0 == Cc::Cc0 || subchannel.stsch().scsw.flags().is_empty() {
                run(&bench, subchannel, 0);
            }
        }
        let interruption = bench.service.tpi(0xff).expect("all four are pending");
        let at = usize::from(interruption.subchannel.number());
        assert_eq!(subchannels[at].tsch().0, Cc::Cc0);
        taken[at] += 1;
    }
    assert_eq!(taken, [100; 4]);
}

#[test]
fn a_mark_of_an_earlier_subclass_finds_nothing() {
    let bench = bench(Service::builder());
    let subchannel = silent(&bench, 2);
    run(&bench, &subchannel, 1);
    assert_eq!(subchannel.tsch().0, Cc::Cc0);
    set_isc(&subchannel, 6);
    run(&bench, &subchannel, 2);
    assert!(!bench.service.has_interruption(0x20), "it is of another subclass now");
    assert_eq!(bench.service.tpi(0x20), None);
    assert_eq!(bench.service.tpi(0x02).map(|taken| (taken.isc, taken.intparm)), Some((6, 2)));
}

/// An interrupt controller that remembers.
#[derive(Default)]
struct Told(Mutex<Vec<IoInterruption>>);

impl Told {
    fn taken(&self) -> Vec<(u8, u32)> {
        let told = std::mem::take(&mut *self.0.lock().unwrap());
        told.into_iter().map(|one| (one.isc, one.intparm)).collect()
    }
}

#[test]
fn triggers_are_told_of_enabled_subclasses_and_of_others_later() {
    let bench = bench(Service::builder());
    let told = Arc::new(Told::default());
    let attach = |isc| {
        let told = told.clone();
        let delivery = Delivery::interrupt(move |interruption: &IoInterruption| {
            told.0.lock().unwrap().push(*interruption);
            Ok(())
        });
        let subchannel = bench.service.attach(DeviceSpec::Null, delivery).unwrap();
        set_isc(&subchannel, isc);
        subchannel
    };
    let (first, second, third) = (attach(1), attach(4), attach(4));
    bench.service.enable_interruptions(0x40);
    run(&bench, &first, 1);
    run(&bench, &second, 2);
    run(&bench, &third, 3);
    wait_until(|| told.0.lock().unwrap().len() == 1);
    assert_eq!(told.taken(), [(1, 1)], "subclass 4 is held back");
    // What was fetched meanwhile is not told of any more.
    assert_eq!(third.tsch().0, Cc::Cc0);
    bench.service.enable_interruptions(0xff);
    assert_eq!(told.taken(), [(4, 2)]);
    bench.service.enable_interruptions(0x00);
    bench.service.enable_interruptions(0xff);
    assert_eq!(told.taken(), [], "each once");
}

#[test]
fn nothing_is_lost_while_subclasses_are_masked_and_enabled() {
    let bench = bench(Service::builder());
    let told = Arc::new(Told::default());
    let here = told.clone();
    let delivery = Delivery::interrupt(move |interruption: &IoInterruption| {
        here.0.lock().unwrap().push(*interruption);
        Ok(())
    });
    let subchannel = bench.service.attach(DeviceSpec::Null, delivery).unwrap();
    thread::scope(|scope| {
        let stop = Arc::new(Mutex::new(false));
        let toggling = stop.clone();
        let service = &bench.service;
        scope.spawn(move || {
            while !*toggling.lock().unwrap() {
                service.enable_interruptions(0x00);
                service.enable_interruptions(0xff);
            }
        });
        for intparm in 0..3000 {
            let orb = Orb::new(PROGRAM).with_intparm(intparm);
            assert_eq!(subchannel.ssch(&orb), Ok(Cc::Cc0));
            wait_until(|| !told.0.lock().unwrap().is_empty());
            assert_eq!(told.taken(), [(0, intparm)]);
            assert_eq!(subchannel.tsch().0, Cc::Cc0);
        }
        *stop.lock().unwrap() = true;
    });
}

#[test]
fn instructions_look_at_operands_then_for_the_subchannel() {
    let bench = bench(Service::builder());
    let service = &bench.service;
    let there = u32::from(silent(&bench, 0).id());
    let nowhere = there + 1;
    let bad_word = 0;
    let bad_orb = Orb::new(PROGRAM).with_flags(OrbFlags::TRANSPORT_MODE);
    let schib = service.stsch(there).unwrap().1;
    let mut bad_schib = schib;
    // Reserved bits of word 6.
    bad_schib.pmcw.chars = 0xff00_0000.into();
    for word in [there, nowhere] {
        assert!(matches!(service.ssch(word, &bad_orb), Err(OperandError::Orb(_))));
    }
    assert!(matches!(service.ssch(bad_word, &bad_orb), Err(OperandError::Id(_))));
    assert!(matches!(service.tsch(bad_word), Err(OperandError::Id(_))));
    for word in [there, nowhere] {
        assert!(matches!(service.msch(word, &bad_schib), Err(OperandError::Schib(_))));
    }
    assert!(matches!(service.msch(bad_word, &bad_schib), Err(OperandError::Id(_))));
    assert_eq!(service.ssch(nowhere, &Orb::new(PROGRAM)), Ok(Cc::Cc3));
    assert_eq!(service.tsch(nowhere).unwrap().0, Cc::Cc3);
    assert_eq!(service.msch(nowhere, &schib), Ok(Cc::Cc3));
    for instruction in [Service::hsch, Service::csch, Service::rsch, Service::xsch] {
        assert_eq!(instruction(service, nowhere), Ok(Cc::Cc3));
        assert!(matches!(instruction(service, bad_word), Err(OperandError::Id(_))));
    }
    assert_eq!(service.rsch(there), Ok(Cc::Cc2));
    assert_eq!(service.xsch(there), Ok(Cc::Cc2));
    assert_eq!(service.msch(there, &schib), Ok(Cc::Cc0));
    assert_eq!(service.ssch(there, &Orb::new(PROGRAM)), Ok(Cc::Cc0));
    wait_until(|| service.tsch(there).unwrap().0 == Cc::Cc0);
    assert_eq!(service.csch(there), Ok(Cc::Cc0));
    wait_until(|| service.tsch(there).unwrap().0 == Cc::Cc0);
    assert_eq!(service.hsch(there), Ok(Cc::Cc0));
}

#[test]
fn a_guest_finds_its_subchannels_with_stsch() {
    let bench = bench(Service::builder());
    let service = &bench.service;
    let attach = |number, devno| {
        let options = DeviceOptions::default()
            .subchannel(SubchannelId::new(0, number))
            .devno(devno)
            .disabled();
        service.attach_with(DeviceSpec::Null, Delivery::interrupt(Silent), options)
    };
    attach(2, 0x1234).unwrap();
    attach(5, 0xabcd).unwrap();
    let error = attach(2, 0x1111).expect_err("it is taken");
    assert!(matches!(error, AttachError::Taken { places: 1024, .. }), "{error}");
    assert!(error.to_string().contains("0.0.0002"), "{error}");
    let store = |number| service.stsch(SubchannelId::new(0, number).into()).unwrap();
    let found: Vec<_> = (0..).map(store).take_while(|(cc, _)| *cc == Cc::Cc0).collect();
    assert_eq!(found.len(), 6, "behind the last one there is nothing");
    for (number, (_, schib)) in found.iter().enumerate() {
        match number {
            2 | 5 => {
                let devno = if number == 2 { 0x1234 } else { 0xabcd };
                assert_eq!(schib.pmcw.devno.get(), devno);
                assert_eq!(schib.pmcw.flags(), PmcwFlags::DEVICE_VALID, "not enabled");
            }
            _ => assert_eq!(*schib, Schib::default(), "no subchannel {number}"),
        }
    }
    let other_set = SubchannelId::new(1, 0);
    assert_eq!(service.stsch(other_set.into()).unwrap().0, Cc::Cc3, "no such set");
}

fn reports(service: &Service) -> Vec<(Crw, u16)> {
    std::iter::from_fn(|| match service.stcrw() {
        (Cc::Cc0, word) => Some((word, word.id())),
        (cc, word) => {
            assert_eq!((cc, word), (Cc::Cc1, Crw::default()));
            None
        }
    })
    .collect()
}

#[test]
fn devices_that_come_and_go_are_reported() {
    let told = Arc::new(Mutex::new(0));
    let here = told.clone();
    let builder = Service::builder().channel_reports(move |_: &Crw| {
        *here.lock().unwrap() += 1;
        Ok(())
    });
    let bench = bench(builder);
    let service = &bench.service;
    let attach =
        |options| service.attach_with(DeviceSpec::Null, Delivery::interrupt(Silent), options);
    let cold = attach(DeviceOptions::default()).unwrap();
    assert_eq!((reports(service), *told.lock().unwrap()), (vec![], 0), "it was there before");
    let hot = attach(DeviceOptions::default().hot_plugged()).unwrap();
    assert_eq!(*told.lock().unwrap(), 1);
    let found = reports(service);
    assert_eq!(found.iter().map(|(_, id)| *id).collect::<Vec<_>>(), [1]);
    assert_eq!((found[0].0.source(), found[0].0.flags()), (3, CrwFlags::empty()));
    // The guest looks, and finds it.
    assert_eq!(service.stsch(hot.id().into()).unwrap().0, Cc::Cc0);

    service.detach(cold);
    service.detach(hot.clone());
    assert_eq!(*told.lock().unwrap(), 2, "once for both: it has not found none yet");
    let first = service.stcrw().1;
    service.undo_stcrw(first);
    let ids: Vec<_> = reports(service).iter().map(|(_, id)| *id).collect();
    assert_eq!(ids, [0, 1], "what could not be stored comes again");
    assert_eq!(service.stsch(hot.id().into()).unwrap().0, Cc::Cc3);
    assert!(!hot.stsch().pmcw.flags().contains(PmcwFlags::DEVICE_VALID));
}

#[test]
fn numbers_are_given_again_when_their_device_is_gone() {
    let bench = bench(Service::builder().subchannels(3));
    let service = &bench.service;
    let attach = || service.attach(DeviceSpec::Null, Delivery::interrupt(Silent));
    for _ in 0..200 {
        let all: Vec<_> = (0..3).map(|_| attach().expect("all have gone")).collect();
        assert!(matches!(attach(), Err(AttachError::Full { attached: 3 })));
        for (subchannel, number) in all.iter().zip(0..) {
            assert_eq!(subchannel.number(), number);
            run(&bench, subchannel, number);
        }
        for subchannel in all {
            service.drain(subchannel, STALL).expect("status that is pending is no program");
        }
    }
}
