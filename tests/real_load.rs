//! Devices of the kernel's vfio-ccw under load, with HALT and CLEAR at any moment, a driver that is busy, and
//! a host that takes its devices back and gives them again: each request completes once, and nothing is left.
//!
//! `tests/s390x` runs this on the real driver; elsewhere it is SKIPPED.

mod descriptors;
mod host;

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use descriptors::descriptors;
use host::{DATA, Guest, INTERFACES, Known, PROGRAM, devices};
use vfio_ccw::architecture::{Ccw, CcwFlags, Orb};
use vfio_ccw::backend::kernel::{AddressSpace, Interface};
use vfio_ccw::{Completions, DeviceOptions, DeviceSpec, Mode, Service, Subchannel};

const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;

/// Starts, HALTs and CLEARs under way at one subchannel.
const DEPTH: usize = 8;

/// Starts of one run.
fn starts() -> u64 {
    std::env::var("STARTS").map_or(100_000, |word| word.parse().expect("a number"))
}

/// A stream of numbers (xorshift) that is the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Start,
    Halt,
    Clear,
}

/// What is under way, and what became of the rest.
#[derive(Default)]
struct Account {
    under_way: HashMap<u64, (u32, Kind)>,
    next: u64,
    ended: HashMap<&'static str, u64>,
    starts: u64,
}

impl Account {
    fn begin(&mut self, subchannel: &Subchannel, kind: Kind) -> u64 {
        let user_data = self.next;
        self.next += 1;
        self.under_way.insert(user_data, (subchannel.number(), kind));
        user_data
    }

    fn at(&self, subchannel: &Subchannel) -> usize {
        self.under_way.values().filter(|(number, _)| *number == subchannel.number()).count()
    }

    fn reap(&mut self, completions: &mut Completions) {
        completions.reap(usize::MAX, |completion| {
            let scsw = completion.irb.scsw;
            let known = self.under_way.remove(&completion.user_data);
            let (number, kind) = known.unwrap_or_else(|| panic!("not under way: {completion:?}"));
            assert_eq!(number, completion.subchannel);
            assert!(completion.is_final(), "{completion:?}");
            let status = scsw.subchannel_status().bits();
            let outcome = match kind {
                Kind::Halt => "halted",
                Kind::Clear => "cleared",
                Kind::Start if scsw.deferred_cc() == 3 => "deferred cc 3",
                Kind::Start if scsw.is_clean_end() => "clean",
                Kind::Start if scsw.device_status().bits() == 0x02 => "unit check",
                Kind::Start if scsw.flags().bits() & 0x3000 != 0 => "ended by a function",
                Kind::Start => panic!("status {status:#04x}: {completion:?}"),
            };
            *self.ended.entry(outcome).or_default() += 1;
            self.starts += u64::from(kind == Kind::Start);
        });
    }
}

/// Programs: short and long, with and without data, and one that the devices do not know.
fn programs(guest: &Guest) -> Vec<Orb> {
    let nop = Ccw::new(0x03, DATA, 1).with(SLI);
    let sense_id = Ccw::new(0xe4, DATA, 7).with(SLI);
    let elsewhere = |page: u32| Ccw::new(0xe4, DATA + page * 0x1000, 7).with(SLI);
    let far: Vec<_> = (0..24).map(elsewhere).collect();
    let all = [
        vec![nop],
        vec![sense_id],
        vec![Ccw::new(0x04, DATA + 0x2000, 32).with(SLI)],
        vec![Ccw::new(0xc3, DATA, 1).with(SLI)],
        vec![nop; 300],
        far,
    ];
    let places = (PROGRAM..).step_by(0x1000);
    all.iter().zip(places).map(|(ccws, at)| guest.program(at, ccws)).collect()
}

/// Descriptors of this process, and memory that is locked or pinned for it.
fn holdings() -> (Vec<String>, Vec<String>) {
    let status = fs::read_to_string("/proc/self/status").expect("there is /proc");
    let pinned =
        status.lines().filter(|line| line.starts_with("VmLck") || line.starts_with("VmPin"));
    (descriptors(), pinned.map(str::to_owned).collect())
}

/// Takes the mediated device away, as an administrator does, and makes another one on its subchannel.
fn replug(known: &Known) {
    let uuid = known.location().uuid;
    fs::write(format!("/sys/bus/mdev/devices/{uuid}/remove"), "1").expect("removed");
    let create = format!(
        "/sys/bus/css/devices/{}/mdev_supported_types/vfio_ccw-io/create",
        known.subchannel
    );
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("random");
    fs::write(create, uuid.trim()).expect("created");
    let patience = Instant::now() + Duration::from_secs(10);
    while !known.location().group.is_some_and(|group| group.exists()) {
        assert!(Instant::now() < patience, "no group for {known:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Says at the end, also of a panic, that it is one.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn load(interface: Interface, mode: Mode, known: &[Known], starts: u64) {
    let (delivery, mut completions) = Completions::ring(256).expect("an eventfd");
    let builder = Service::builder().mode(mode).budget(if mode == Mode::Pinned {
        4 << 20
    } else {
        128 << 10
    });
    let (guest, mut subchannels) = Guest::new(interface, builder, known, &delivery);
    let space = guest.service.address_space().expect("it has one").clone();
    let programs = programs(&guest);
    let (mut numbers, mut account) = (Numbers(0x5eed_0001), Account::default());
    // The last device is taken back now and then: it has no other use.
    let mut replugs = 0;
    let mut away = None;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // STORE SUBCHANNEL takes the region's lock for a moment, again and again: starts find the driver busy.
        let first = subchannels[0].clone();
        let over = &over;
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                first.stsch();
            }
        });
        let _ends = Ends(over);
        while account.starts < starts {
            for subchannel in &subchannels {
                if account.at(subchannel) >= DEPTH {
                    continue;
                }
                let kind = match numbers.next(64) {
                    0 => Kind::Halt,
                    1 => Kind::Clear,
                    _ => Kind::Start,
                };
                let user_data = account.begin(subchannel, kind);
                let accepted = match kind {
                    Kind::Start => {
                        let orb = &programs[numbers.next(programs.len() as u64) as usize];
                        subchannel.submit(orb, user_data).is_ok()
                    }
                    Kind::Halt => subchannel.submit_halt(user_data).is_ok(),
                    Kind::Clear => subchannel.submit_clear(user_data).is_ok(),
                };
                if !accepted {
                    account.under_way.remove(&user_data);
                }
            }
            account.reap(&mut completions);
            if account.under_way.len() >= DEPTH * 3 {
                completions.wait(Some(Duration::from_millis(100))).expect("an eventfd");
            }
            if away.is_none() && account.starts >= (replugs + 1) * starts / 6 {
                let known = known[known.len() - 1].clone();
                away = Some(thread::spawn(move || replug(&known)));
            }
            if away.as_ref().is_some_and(|away| away.is_finished()) {
                away.take().map(thread::JoinHandle::join).transpose().expect("it is back");
                replugs += 1;
                attach_again(&guest, &space, &known[known.len() - 1], &mut subchannels, &delivery);
            }
        }
        if let Some(away) = away {
            away.join().expect("it is back");
        }
    });
    let patience = Instant::now() + Duration::from_secs(60);
    while !account.under_way.is_empty() {
        assert!(Instant::now() < patience, "never completed: {:?}", account.under_way);
        completions.wait(Some(Duration::from_secs(1))).expect("an eventfd");
        account.reap(&mut completions);
    }
    completions.wait(Some(Duration::from_millis(200))).expect("an eventfd");
    account.reap(&mut completions);
    println!(
        "{interface}, {mode}: {} starts, {replugs} times taken back; {:?}",
        account.starts, account.ended
    );
    assert!(replugs >= 1, "the host has taken its device back");
    assert!(account.ended["ended by a function"] > 0 && account.ended["clean"] > 0);
    let windows_at_first = guest.windows_at_first;
    drop((subchannels, guest));
    assert_eq!(
        space.windows_left().expect("a group stays in it"),
        windows_at_first,
        "windows are left"
    );
}

fn attach_again(
    guest: &Guest,
    space: &AddressSpace,
    known: &Known,
    subchannels: &mut Vec<Subchannel>,
    delivery: &vfio_ccw::Delivery,
) {
    let device = space.open(&known.location()).expect("it is there again");
    let options = DeviceOptions::default().hot_plugged();
    let attached = guest.service.attach_with(DeviceSpec::kernel(device), delivery.clone(), options);
    subchannels.pop();
    subchannels.push(attached.expect("attaches"));
}

#[test]
fn every_request_completes_once_and_nothing_is_left() {
    let Some((known, _turn)) = devices() else { return };
    for interface in INTERFACES {
        let (starts, modes) = (starts(), [Mode::Cached, Mode::OnDemand, Mode::Pinned]);
        let shares = [starts * 8 / 10, starts / 10, starts / 10];
        for (mode, share) in modes.into_iter().zip(shares) {
            let before = holdings();
            load(interface, mode, &known, share);
            assert_eq!(holdings(), before, "{interface}, {mode}: (descriptors, memory)");
        }
    }
}
