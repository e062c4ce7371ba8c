//! The instructions of a vCPU, with the condition codes that the architecture gives them.

pub mod bench_guest;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Barrier};
use std::thread;

use bench_guest::{Bench, STALL};
use vfio_ccw::architecture::{
    Ccw, IoInterruption, IrbHead, Orb, OrbError, OrbFlags, Pmcw, PmcwFlags, ScswFlags, command,
};
use vfio_ccw::{Cc, Completions, Delivery, DeviceSpec, Service, Subchannel, SubmitError, Trigger};

const MEMORY: usize = 1 << 20;
const PROGRAM: u32 = 0x1000;
const BUFFER: u32 = 0x2000;

/// An interrupt controller that counts, and passes on which subchannel interrupts.
struct Line {
    pulled: AtomicU32,
    out: SyncSender<IoInterruption>,
    broken: AtomicBool,
}

impl Trigger<IoInterruption> for Line {
    fn trigger(&self, interruption: &IoInterruption) -> io::Result<()> {
        // Relaxed: the channel orders what is looked at.
        self.pulled.fetch_add(1, Ordering::Relaxed);
        self.out.send(*interruption).map_err(io::Error::other)?;
        match self.broken.load(Ordering::Relaxed) {
            true => Err(io::Error::other("no wire")),
            false => Ok(()),
        }
    }
}

/// A null device that interrupts, and a program that reads 64 bytes.
struct Rig {
    bench: Bench,
    line: Arc<Line>,
    interrupts: Receiver<IoInterruption>,
    subchannel: Subchannel,
}

impl Rig {
    fn new() -> Self {
        let bench = Bench::with(Service::builder().budget(16 * 4096), MEMORY);
        bench.put_program(PROGRAM, &[Ccw::new(command::READ_IPL, BUFFER, 64)]);
        let (out, interrupts) = sync_channel(16);
        let line =
            Arc::new(Line { pulled: AtomicU32::new(0), out, broken: AtomicBool::new(false) });
        let delivery = Delivery::Interrupt(line.clone());
        let subchannel = bench.service.attach(DeviceSpec::Null, delivery).unwrap();
        Rig { bench, line, interrupts, subchannel }
    }

    fn ssch(&self) -> Cc {
        self.subchannel.ssch(&Orb::new(PROGRAM)).unwrap()
    }

    #[track_caller]
    fn interrupt(&self) {
        let interruption = self.interrupts.recv_timeout(STALL).expect("a program never ended");
        assert_eq!(interruption.subchannel, self.subchannel.id());
    }

    fn pulled(&self) -> u32 {
        self.line.pulled.load(Ordering::Relaxed)
    }
}

#[test]
fn a_start_goes_through_its_states() {
    let rig = Rig::new();
    let subchannel = &rig.subchannel;
    assert_eq!(subchannel.tsch().0, Cc::Cc1, "nothing is pending yet");

    let dam = rig.bench.dam();
    assert_eq!(rig.ssch(), Cc::Cc0);
    assert_eq!(rig.ssch(), Cc::Cc2, "a start function is in progress");
    assert_eq!(subchannel.msch(&subchannel.stsch()), Ok(Cc::Cc2));
    let (cc, irb) = subchannel.tsch();
    assert_eq!(cc, Cc::Cc1);
    let progress = ScswFlags::START_FUNCTION | ScswFlags::START_PENDING;
    assert_eq!(irb.scsw.flags(), progress);
    assert_eq!(subchannel.stsch().scsw.flags(), progress);
    assert_eq!(rig.pulled(), 0);
    drop(dam);

    rig.interrupt();
    assert_eq!(rig.ssch(), Cc::Cc1, "status is pending");
    assert_eq!(subchannel.msch(&subchannel.stsch()), Ok(Cc::Cc1));
    let stored = subchannel.stsch().scsw;
    assert_eq!(subchannel.stsch().scsw, stored, "STSCH does not clear status");
    let (cc, irb) = subchannel.tsch();
    assert_eq!(cc, Cc::Cc0);
    assert_eq!(irb.scsw, stored);
    assert!(irb.scsw.is_clean_end() && irb.scsw.cpa() == PROGRAM + 8, "{irb:?}");
    assert!(irb.scsw.flags().contains(ScswFlags::STATUS_PENDING | ScswFlags::PRIMARY));
    assert_eq!(subchannel.tsch().0, Cc::Cc1, "TSCH clears status");
    assert_eq!(subchannel.stsch().scsw.flags(), ScswFlags::empty());
    assert_eq!(rig.pulled(), 1);
}

#[test]
fn each_program_interrupts_once() {
    let rig = Rig::new();
    for started in 1..=500 {
        assert_eq!(rig.ssch(), Cc::Cc0);
        rig.interrupt();
        assert_eq!(rig.subchannel.tsch().0, Cc::Cc0);
        assert_eq!(rig.pulled(), started);
    }
    drop(rig.bench);
    assert_eq!(rig.line.pulled.load(Ordering::Relaxed), 500);
}

#[test]
fn of_several_vcpus_one_starts_and_one_gets_the_status() {
    const VCPUS: usize = 4;
    let rig = Rig::new();
    let all = Barrier::new(VCPUS + 1);
    thread::scope(|scope| {
        let vcpus: Vec<_> = (0..VCPUS)
            .map(|_| {
                let (subchannel, all) = (rig.subchannel.clone(), &all);
                scope.spawn(move || {
                    let (mut started, mut fetched) = (0, 0);
                    for _ in 0..200 {
                        all.wait();
                        started += usize::from(subchannel.ssch(&Orb::new(PROGRAM)) == Ok(Cc::Cc0));
                        all.wait();
                        all.wait();
                        fetched += usize::from(subchannel.tsch().0 == Cc::Cc0);
                        all.wait();
                    }
                    (started, fetched)
                })
            })
            .collect();
        for _ in 0..200 {
            all.wait();
            all.wait();
            rig.interrupt();
            all.wait();
            all.wait();
        }
        let sum = vcpus.into_iter().map(|vcpu| vcpu.join().unwrap());
        let sum = sum.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        assert_eq!(sum, (200, 200), "starts, statuses");
    });
}

#[test]
fn operand_exceptions_come_before_the_subchannel_is_looked_at() {
    let rig = Rig::new();
    let base = Orb::new(PROGRAM);
    let flags = base.flags();
    let bad = [
        (base.with_flags(flags | OrbFlags::TRANSPORT_MODE), OrbError::TransportMode),
        (base.with_flags(flags | OrbFlags::EXTENSION), OrbError::Extension),
        (base.with_cpa(0x8000_1000), OrbError::CpaBit0 { cpa: 0x8000_1000 }),
    ];
    for (orb, error) in &bad {
        assert_eq!(rig.subchannel.ssch(orb), Err(*error));
    }
    let disabled = rig.subchannel.stsch().pmcw.with(PmcwFlags::empty(), 0);
    assert_eq!(rig.subchannel.msch(&disabled.into()), Ok(Cc::Cc0));
    for (orb, error) in &bad {
        assert_eq!(rig.subchannel.ssch(orb), Err(*error), "also where it would be cc 3");
    }
    assert_eq!(rig.ssch(), Cc::Cc3);
    assert_eq!(rig.pulled(), 0);
}

#[test]
fn msch_takes_over_what_it_may_and_nothing_else() {
    let rig = Rig::new();
    let before = rig.subchannel.stsch().pmcw;
    assert!(before.flags().contains(PmcwFlags::ENABLED | PmcwFlags::DEVICE_VALID));
    assert_eq!((before.isc(), before.pim, before.pam), (0, 0x80, 0x80));

    let mut wish = Pmcw::single_path(0x1234);
    wish.intparm = 0xdead_beef.into();
    (wish.lpm, wish.pim, wish.pam, wish.pom, wish.chpid) = (0xc0, 0xff, 0xff, 0, [9; 8]);
    assert_eq!(rig.subchannel.msch(&wish.with(PmcwFlags::ENABLED, 5).into()), Ok(Cc::Cc0));
    let after = rig.subchannel.stsch().pmcw;
    assert_eq!((after.intparm.get(), after.lpm, after.isc()), (0xdead_beef, 0xc0, 5));
    assert_eq!(after.flags(), PmcwFlags::ENABLED | PmcwFlags::DEVICE_VALID);
    let unchanged = |pmcw: &Pmcw| (pmcw.devno, pmcw.pim, pmcw.pam, pmcw.pom, pmcw.chpid);
    assert_eq!(unchanged(&after), unchanged(&before));

    assert_eq!(rig.subchannel.msch(&wish.with(PmcwFlags::empty(), 5).into()), Ok(Cc::Cc0));
    assert_eq!(rig.ssch(), Cc::Cc3, "not enabled");
    assert_eq!(rig.subchannel.tsch().0, Cc::Cc3, "not enabled");
    assert!(!rig.subchannel.stsch().pmcw.flags().contains(PmcwFlags::ENABLED));
    assert_eq!(rig.subchannel.msch(&wish.with(PmcwFlags::ENABLED, 1).into()), Ok(Cc::Cc0));
    assert_eq!(rig.ssch(), Cc::Cc0);
    rig.interrupt();
}

#[test]
fn ssch_replaces_the_interruption_parameter() {
    let rig = Rig::new();
    assert_eq!(rig.subchannel.ssch(&Orb::new(PROGRAM).with_intparm(0x1357_9bdf)), Ok(Cc::Cc0));
    rig.interrupt();
    assert_eq!(rig.subchannel.stsch().pmcw.intparm.get(), 0x1357_9bdf);
}

#[test]
fn a_start_without_a_path_is_cc_3() {
    let rig = Rig::new();
    for lpm in [0x00, 0x40, 0x7f] {
        assert_eq!(rig.subchannel.ssch(&Orb::new(PROGRAM).with_lpm(lpm)), Ok(Cc::Cc3), "{lpm:#x}");
    }
    assert_eq!(rig.pulled(), 0);
    assert_eq!(rig.subchannel.ssch(&Orb::new(PROGRAM).with_lpm(0xc0)), Ok(Cc::Cc0));
    rig.interrupt();
}

#[test]
fn rings_are_not_started_by_instruction_nor_interrupts_by_submission() {
    let rig = Rig::new();
    assert_eq!(rig.subchannel.submit(&Orb::new(PROGRAM), 1), Err(SubmitError::NotARing));
    let (delivery, mut completions) = Completions::ring(4).unwrap();
    let ring = rig.bench.service.attach(DeviceSpec::Null, delivery).unwrap();
    assert_eq!(ring.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc3));
    drop(rig.bench);
    assert_eq!(completions.reap(4, |completion| panic!("{completion:?}")), 0);
}

#[test]
fn an_interrupt_that_cannot_be_raised_leaves_the_status_pending() {
    let rig = Rig::new();
    rig.line.broken.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        assert_eq!(rig.ssch(), Cc::Cc0);
        rig.interrupt();
        assert_eq!(rig.subchannel.tsch().0, Cc::Cc0);
    }
}

/// A trigger that stands on the shard's thread until it is let go.
struct Blocking {
    reached: SyncSender<()>,
    go: parking::Gate,
}

/// A gate that opens once.
mod parking {
    use std::sync::{Condvar, Mutex};

    #[derive(Default)]
    pub struct Gate(Mutex<bool>, Condvar);

    impl Gate {
        pub fn pass(&self) {
            let open = self.0.lock().unwrap();
            drop(self.1.wait_while(open, |open| !*open).unwrap());
        }

        pub fn open(&self) {
            *self.0.lock().unwrap() = true;
            self.1.notify_all();
        }
    }
}

impl Trigger<IoInterruption> for Blocking {
    fn trigger(&self, _interruption: &IoInterruption) -> io::Result<()> {
        self.reached.send(()).map_err(io::Error::other)?;
        self.go.pass();
        Ok(())
    }
}

#[track_caller]
fn assert_deferred(irb: &IrbHead) {
    assert_eq!((irb.scsw.deferred_cc(), irb.scsw.cpa()), (3, PROGRAM), "{irb:?}");
    let expected = ScswFlags::START_FUNCTION | ScswFlags::ALERT | ScswFlags::STATUS_PENDING;
    assert!(irb.scsw.flags().contains(expected), "{irb:?}");
}

#[test]
fn what_waits_when_it_is_detached_gets_deferred_cc_3() {
    let rig = Rig::new();
    // The neighbour's interrupt keeps the shard from taking the program before it is detached.
    let (reached, standing) = sync_channel(1);
    let blocking = Arc::new(Blocking { reached, go: parking::Gate::default() });
    let delivery = Delivery::Interrupt(blocking.clone());
    let neighbour = rig.bench.service.attach(DeviceSpec::Null, delivery).unwrap();
    assert_eq!(neighbour.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
    standing.recv_timeout(STALL).expect("the neighbour interrupts");

    assert_eq!(rig.ssch(), Cc::Cc0);
    rig.bench.service.detach(rig.subchannel.clone());
    blocking.go.open();
    rig.interrupt();
    let (cc, irb) = rig.subchannel.tsch();
    assert_eq!(cc, Cc::Cc0);
    assert_deferred(&irb);
    assert_eq!(rig.ssch(), Cc::Cc3, "detached");
    assert_eq!(rig.pulled(), 1);
    assert_eq!(neighbour.tsch().0, Cc::Cc0, "the neighbour's program was not touched");
}

#[test]
fn what_waits_for_its_pages_when_it_is_detached_gets_deferred_cc_3() {
    let rig = Rig::new();
    let dam = rig.bench.dam();
    assert_eq!(rig.ssch(), Cc::Cc0);
    while rig.bench.service.pool().waiting() == 0 {
        thread::yield_now();
    }
    rig.bench.service.detach(rig.subchannel.clone());
    rig.interrupt();
    let (cc, irb) = rig.subchannel.tsch();
    assert_eq!(cc, Cc::Cc0);
    assert_deferred(&irb);
    assert_eq!((rig.ssch(), rig.bench.service.pool().waiting()), (Cc::Cc3, 0));
    drop(dam);
}

#[test]
fn a_subchannel_outlives_its_service_as_not_operational() {
    let rig = Rig::new();
    assert_eq!(rig.ssch(), Cc::Cc0);
    rig.interrupt();
    let subchannel = rig.subchannel.clone();
    drop(rig.bench);
    assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc3));
    let (cc, irb) = subchannel.tsch();
    assert!(cc == Cc::Cc0 && irb.scsw.is_clean_end(), "status that was pending stays: {irb:?}");
    assert_eq!(subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc3));
    assert_eq!(subchannel.tsch().0, Cc::Cc3, "no status, and no device");
}
