//! What the host does to devices of its vfio-ccw while a guest has them: channel paths go and come, and a device
//! is pulled out.
//!
//! `tests/s390x` runs this on the real driver, with `tests/s390x/unplug` beside it; elsewhere it is SKIPPED.

mod host;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use host::{Guest, INTERFACES, Known, PROGRAM, Ring, devices, sense_id, tell};
use vfio_ccw::architecture::{Crw, ScswFlags};
use vfio_ccw::backend::kernel::Interface;
use vfio_ccw::{Cc, Completions, Delivery, Service, SubmitError};

/// The kernel's way of making channel reports up (`CONFIG_CIO_INJECT`).
const CIO: &str = "/sys/kernel/debug/s390/cio";

/// The devices, where somebody is there to pull one out.
fn with_events() -> Option<(Vec<Known>, std::sync::MutexGuard<'static, ()>)> {
    let (known, turn) = devices()?;
    if std::env::var_os("EVENTS").is_none() {
        println!("SKIPPED: nobody pulls a device out; tests/s390x/run events sees to that");
        return None;
    }
    Some((known, turn))
}

/// A service that counts how often its guest is told of channel reports.
fn telling(told: &Arc<AtomicUsize>) -> vfio_ccw::ServiceBuilder {
    let told = told.clone();
    Service::builder().channel_reports(move |_: &Crw| {
        told.fetch_add(1, Ordering::SeqCst);
        Ok(())
    })
}

/// The next channel report.
fn report(service: &Service) -> Crw {
    let patience = Instant::now() + Duration::from_secs(30);
    loop {
        let (cc, crw) = service.stcrw();
        if cc == Cc::Cc0 {
            return crw;
        }
        assert!(Instant::now() < patience, "no channel report in 30 s");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_channel_path_that_goes_and_comes_is_reported_to_the_guest() {
    let Some((known, _turn)) = with_events() else { return };
    // The terminal has a path of its own: the machine itself lives off the other.
    let terminal: Vec<_> = known.into_iter().filter(|known| known.devno == 0x0040).collect();
    let chpids = format!("/sys/bus/css/devices/{}/chpids", terminal[0].subchannel);
    let chpids = fs::read_to_string(chpids).expect("it has paths");
    let chpid = u16::from_str_radix(chpids.split(' ').next().expect("one"), 16).expect("a number");
    fs::write(format!("{CIO}/enable_inject"), "1").expect("the kernel can");
    for interface in INTERFACES {
        let told = Arc::new(AtomicUsize::new(0));
        let mut ring = Ring::new();
        let (guest, subchannels) = Guest::new(interface, telling(&told), &terminal, &ring.delivery);
        let pmcw = subchannels[0].stsch().pmcw;
        assert_eq!((pmcw.pim, u16::from(pmcw.chpid[0])), (0x80, chpid), "the host's paths");
        for (round, (what, erc)) in [("gone", 6), ("back", 2)].into_iter().enumerate() {
            // Solicited, overflow, chaining, source 4, ancillary, error-recovery code, identifier.
            let crw = format!("0 0 0 4 0 {erc:x} {chpid:x}");
            fs::write(format!("{CIO}/crw_inject"), crw).expect("it is taken");
            let crw = report(&guest.service);
            assert_eq!((crw.source(), crw.erc(), crw.id()), (4, erc, chpid), "{what}: {crw:?}");
            assert_eq!(guest.service.stcrw().0, Cc::Cc1, "one report");
            assert_eq!(told.load(Ordering::SeqCst), round + 1);
            let irb = ring.run(&subchannels[0], &guest.program(PROGRAM, &[sense_id()]));
            assert!(irb.scsw.is_clean_end(), "QEMU's path works all the same: {irb:?}");
        }
    }
}

#[test]
fn the_path_masks_of_stsch_are_those_of_the_host() {
    let Some((known, _turn)) = with_events() else { return };
    let terminal: Vec<_> = known.into_iter().filter(|known| known.devno == 0x0040).collect();
    let ring = Ring::new();
    let (_guest, subchannels) =
        Guest::new(Interface::Type1, Service::builder(), &terminal, &ring.delivery);
    let host = |file: &str| {
        let path = format!("/sys/bus/css/devices/{}/{file}", terminal[0].subchannel);
        fs::read_to_string(path).expect("sysfs has it").trim().to_owned()
    };
    let pmcw = subchannels[0].stsch().pmcw;
    let masks = format!("{:02x} {:02x} {:02x}", pmcw.pim, pmcw.pam, pmcw.pom);
    assert_eq!(masks, host("pimpampom"));
    let chpids: Vec<_> = pmcw.chpid.iter().map(|chpid| format!("{chpid:02x}")).collect();
    assert_eq!(chpids.join(" "), host("chpids"));
}

#[test]
fn when_a_device_is_pulled_out_its_programs_end_and_its_neighbours_go_on() {
    let Some((known, _turn)) = with_events() else { return };
    let two: Vec<_> = known.into_iter().filter(|known| known.devno <= 0x0020).collect();
    assert_eq!(two[0].devno, 0x0010, "the one that is pulled out");
    let told = Arc::new(AtomicUsize::new(0));
    let (delivery, mut completions) = Completions::ring(64).expect("an eventfd");
    let delivery: Delivery = delivery;
    let (guest, subchannels) = Guest::new(Interface::Type1, telling(&told), &two, &delivery);
    let orb = guest.program(PROGRAM, &[sense_id()]);
    let mut under_way = [0_i64; 2];
    let (mut clean, mut deferred) = ([0_u64; 2], 0);
    let patience = Instant::now() + Duration::from_secs(60);
    tell("events: unplug");
    // Until the guest finds the subchannel closed, and for a while after that.
    let mut closed_at = None;
    while closed_at.is_none_or(|closed: Instant| closed.elapsed() < Duration::from_secs(1)) {
        assert!(Instant::now() < patience, "it is still there after 60 s");
        for (index, subchannel) in subchannels.iter().enumerate() {
            while under_way[index] < 4 {
                match subchannel.submit(&orb, index as u64) {
                    Ok(()) => under_way[index] += 1,
                    Err(SubmitError::Detached) if index == 0 => {
                        closed_at.get_or_insert_with(Instant::now);
                        break;
                    }
                    Err(error) => panic!("device {index}: {error}"),
                }
            }
        }
        completions.wait(Some(Duration::from_millis(100))).expect("an eventfd");
        completions.reap(usize::MAX, |completion| {
            let index = completion.user_data as usize;
            under_way[index] -= 1;
            let scsw = completion.irb.scsw;
            if scsw.is_clean_end() {
                clean[index] += 1;
            } else {
                assert_eq!((index, scsw.deferred_cc()), (0, 3), "{completion:?}");
                assert!(scsw.flags().contains(ScswFlags::ALERT));
                deferred += 1;
            }
        });
    }
    assert_eq!(under_way[0], 0, "each has completed");
    println!("{clean:?} ended well, {deferred} with deferred condition code 3");
    assert!(clean[1] > 0);
    // The guest is told that the subchannel is not what it was.
    let crw = report(&guest.service);
    assert_eq!((crw.source(), u32::from(crw.id())), (3, subchannels[0].number()), "{crw:?}");
    assert!(told.load(Ordering::SeqCst) > 0);
    let left = two[0].subchannel.clone();
    drop((subchannels, guest));
    let patience = Instant::now() + Duration::from_secs(30);
    while fs::metadata(format!("/sys/bus/css/devices/{left}")).is_ok() {
        assert!(Instant::now() < patience, "the host still waits for the device");
        thread::sleep(Duration::from_millis(10));
    }
}
