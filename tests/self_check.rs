//! The pool looks again at what it calls pinned: a load on quiet memory runs clean, and a page that
//! is replaced behind the pool's back is found out at its next use.
//!
//! Who finds out panics, so that happens in a child process: this test program, started once more.

pub mod bench_guest;

use std::io;
use std::os::unix::fs::FileExt;
use std::process::Command;

use bench_guest::Bench;
use bench_guest::fba::{self, Image};
use bench_guest::wired::Wired;
use vfio_ccw::architecture::{Ccw, IrbHead, Orb, command};
use vfio_ccw::{Cc, DeviceSpec, Mode, PinnerChoice, Service, ServiceBuilder};
use vfio_ccw_metrics::CounterKind;
use vm_memory::{GuestAddress, GuestMemoryBackend};

const MEMORY: usize = 1 << 20;
const FRAME: usize = 4096;
const PROGRAM: u32 = 0x1000;
/// The page that is meddled with, and its frame number: the guest has one region, from 0.
const PAGE: u32 = 0x8_0000;
const PAGE_FRAME: u32 = PAGE / FRAME as u32;

/// Tells a child what to do to the page, and what has pinned it.
const MEDDLING: &str = "SELF_CHECK_MEDDLING";
const PINNER: &str = "SELF_CHECK_PINNER";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meddling {
    /// Another page is put in its place.
    Replace,
    /// Its memory is mapped anew and not touched.
    Remove,
    /// None: the check finds nothing.
    Nothing,
}

impl Meddling {
    const ALL: [Meddling; 3] = [Meddling::Replace, Meddling::Remove, Meddling::Nothing];

    fn of_this_process() -> Option<Self> {
        let word = std::env::var(MEDDLING).ok()?;
        Meddling::ALL.into_iter().find(|meddling| format!("{meddling:?}") == word)
    }

    fn meddle(self, bench: &Bench) {
        let page = bench.memory.get_host_address(GuestAddress(PAGE.into())).expect("guest memory");
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: new memory at an address of the kernel's choice, or in the place of one page of
        // guest memory, which stays mapped and accessible throughout; the test's own memory is not
        // touched. Test: `a_page_that_is_replaced_is_found_out`.
        let result = unsafe {
            match self {
                Meddling::Nothing => return,
                Meddling::Remove => {
                    libc::mmap(page.cast(), FRAME, access, anonymous | libc::MAP_FIXED, -1, 0)
                }
                Meddling::Replace => {
                    // Both pages are there at one time, so that they cannot be the same.
                    let other = libc::mmap(
                        std::ptr::null_mut(),
                        FRAME,
                        access,
                        anonymous | libc::MAP_POPULATE,
                        -1,
                        0,
                    );
                    assert_ne!(other, libc::MAP_FAILED, "{}", io::Error::last_os_error());
                    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                    libc::mremap(other, FRAME, FRAME, flags, page)
                }
            }
        };
        assert_ne!(result, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        assert_eq!(result, page.cast());
    }
}

/// The page frame number behind guest address `at`; `None` where this process is not shown it.
fn host_frame(bench: &Bench, at: u32) -> io::Result<Option<u64>> {
    let page = bench.memory.get_host_address(GuestAddress(at.into())).expect("guest memory");
    let mut entry = [0; 8];
    let pagemap = std::fs::File::open("/proc/self/pagemap")?;
    pagemap.read_exact_at(&mut entry, (page.addr() / FRAME * 8) as u64)?;
    // Documentation/admin-guide/mm/pagemap.rst: bits 0-54.
    let frame = u64::from_ne_bytes(entry) & ((1 << 55) - 1);
    Ok((frame != 0).then_some(frame))
}

/// A bench whose pool checks itself, and whose memory the kernel leaves where it is; `None` where
/// the machine cannot have one.
fn checked_bench(builder: ServiceBuilder) -> Option<Bench> {
    let memory = bench_guest::memory(MEMORY);
    let start = memory.get_host_address(GuestAddress(0)).expect("guest memory");
    // SAFETY: advice only: pages are not gathered into huge ones, which would move them.
    // Test: `a_load_runs_clean`.
    let result = unsafe { libc::madvise(start.cast(), MEMORY, libc::MADV_NOHUGEPAGE) };
    if result != 0 {
        println!("huge pages: {}", io::Error::last_os_error());
    }
    let bench = match builder.self_check(true).build(memory.clone()) {
        Ok(service) => Bench { memory, service },
        Err(error) => {
            println!("SKIPPED: {error}");
            return None;
        }
    };
    bench.put(PAGE.into(), &[1]);
    match host_frame(&bench, PAGE) {
        Ok(Some(_)) => Some(bench),
        Ok(None) => {
            println!("SKIPPED: frame numbers are hidden from this process (CAP_SYS_ADMIN)");
            None
        }
        Err(error) => {
            println!("SKIPPED: /proc/self/pagemap: {error}");
            None
        }
    }
}

#[test]
fn a_load_runs_clean() {
    let image = Image::new(256);
    let pinners = PinnerChoice::ALL.into_iter();
    for (pinner, mode) in pinners.flat_map(|pinner| Mode::ALL.map(|mode| (pinner, mode))) {
        let budget = if mode == Mode::Pinned { MEMORY } else { 20 * FRAME };
        println!("{pinner}, {mode}");
        let builder = Service::builder().pinner(pinner).mode(mode).budget(budget as u64);
        let Some(bench) = checked_bench(builder) else { continue };
        let mut devices: Vec<_> = (0..8).map(|_| bench.attach(image.disk())).collect();
        for round in 0..40u32 {
            for (index, device) in (0..).zip(&mut devices) {
                // Other buffers each round, some of them used before.
                let buffer = PAGE + (index * 3 + round) % 32 * 0x2000;
                let area = 0x1_0000 + index * 0x1000;
                fba::put_transfer(&bench, area, command::FBA_READ, index * 16, 16, buffer);
                let irb = device.run(&Orb::new(area + fba::CCWS));
                assert!(irb.scsw.is_clean_end(), "{irb:?}");
                assert_eq!(bench.peek(buffer.into(), 0x2000), fba::blocks(index * 16, 16));
            }
        }
        if mode != Mode::Pinned {
            // Pages were looked at again: hits, and pages that came back after an eviction.
            let totals = bench.service.totals();
            assert!(totals.counter(CounterKind::PinHits) > 0 || mode == Mode::OnDemand);
            assert!(totals.counter(CounterKind::PinMisses) > 20);
        }
    }
}

/// Runs a program over the page twice, with the meddling between. The second end.
fn run_meddled(bench: &Bench, meddling: Meddling) -> IrbHead {
    let wired = Wired::attach(&bench.service, DeviceSpec::Null);
    bench.put_program(PROGRAM, &[Ccw::new(command::READ_IPL, PAGE, 64)]);
    let run = || {
        assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
        drop(wired.interruption());
        wired.status()
    };
    assert!(run().scsw.is_clean_end());
    println!("host frame {:#x}", host_frame(bench, PAGE).unwrap().expect("it is shown"));
    meddling.meddle(bench);
    println!("host frame {:#x}", host_frame(bench, PAGE).unwrap().unwrap_or_default());
    run()
}

/// What children do; by itself it does nothing.
#[test]
fn child() {
    let Some(meddling) = Meddling::of_this_process() else { return };
    let pinner: PinnerChoice = std::env::var(PINNER).unwrap().parse().unwrap();
    let Some(bench) = checked_bench(Service::builder().pinner(pinner)) else { return };
    let irb = run_meddled(&bench, meddling);
    println!("ended: clean {}", irb.scsw.is_clean_end());
    // The service ends in order although one of its tasks has panicked.
}

#[test]
fn a_page_that_is_replaced_is_found_out() {
    for (pinner, meddling) in PinnerChoice::ALL
        .into_iter()
        .flat_map(|pinner| Meddling::ALL.map(|meddling| (pinner, meddling)))
    {
        println!("{pinner}, {meddling:?}");
        let program = std::env::current_exe().expect("this program");
        let output = Command::new(program)
            .args(["--exact", "child", "--nocapture"])
            .env(MEDDLING, format!("{meddling:?}"))
            .env(PINNER, pinner.name())
            .output()
            .expect("a child process");
        let [said, complained] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        // The name of the test may stand before what the child says.
        let words = |key| said.lines().filter_map(move |line| Some(line.split_once(key)?.1));
        if let Some(reason) = words("SKIPPED: ").next() {
            println!("SKIPPED: {reason}");
            continue;
        }
        let frames: Vec<_> = words("host frame ").collect();
        let &[before, after] = &frames[..] else { panic!("{said}\n{complained}") };
        let report = complained.lines().find(|line| line.contains("self-check"));
        if meddling == Meddling::Nothing {
            assert_eq!((report, before), (None, after), "{complained}");
            assert!(said.contains("ended: clean true"), "{said}");
            continue;
        }
        assert_ne!(before, after);
        let report = report.unwrap_or_else(|| panic!("{meddling:?}: {said}\n{complained}"));
        assert!(report.contains(&format!("frame {PAGE_FRAME}")), "{report}");
        assert!(report.contains(&format!("{PAGE:#x}")), "{report}");
        // Entries are shown whole, with "present" in front.
        let digits = |frame: &str| frame.trim_start_matches("0x").to_owned();
        let now = match meddling {
            Meddling::Remove => "now 0x0".to_owned(),
            _ => digits(after),
        };
        assert!(report.contains(&digits(before)) && report.contains(&now), "{report}");
        // The guest hears of it: its program does not end as if all were well.
        assert!(said.contains("ended: clean false"), "{said}");
    }
}
