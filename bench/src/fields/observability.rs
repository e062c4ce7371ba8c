//! What it costs to be seen.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vfio_ccw_metrics::Endpoint;

use crate::peer_process::LoadProcess;
use crate::ratio::{FieldError, Round, Sample};
use crate::service_load::NullLoad;

use super::Lacking;
use super::scale::p99_ns;

/// Subchannels of the load, as in `null_iops_vs_sync`.
const SUBCHANNELS: u16 = 64;

/// I/Os of one measurement.
const IOS: u64 = 400_000;

/// Any free port.
const ANYWHERE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

/// Programs whose times are taken, and pauses between scrapes meanwhile.
const LATENCIES: usize = 4_000_000;
const BETWEEN_SCRAPES: Duration = Duration::from_secs(1);

/// I/Os a second of null devices: all that is measured is on / compiled out. Each in a process of its own that
/// stays from round to round.
pub fn metrics_overhead(round: &Round) -> Result<Sample, FieldError> {
    thread_local! {
        static PROCESSES: RefCell<Option<[LoadProcess; 2]>> = const { RefCell::new(None) };
    }
    PROCESSES.with_borrow_mut(|processes| {
        let [on, out] = match processes {
            Some(processes) => processes,
            None => {
                let without = unrecorded()?;
                let on = LoadProcess::null(&std::env::current_exe()?, SUBCHANNELS)?;
                processes.insert([on, LoadProcess::null(&without, SUBCHANNELS)?])
            }
        };
        round.compare(|| on.iops(IOS), || out.iops(IOS))
    })
}

/// Subchannels of the service that is scraped.
const SCRAPED: usize = 4096;

/// Programs before a service is scraped, so that there is something to tell.
const BEFORE: u64 = 100_000;

/// Milliseconds of one scrape, from the request to the last byte of the page.
pub fn scrape_4096_ms(_round: &Round) -> Result<Sample, FieldError> {
    let mut load = NullLoad::new(SCRAPED)?;
    load.run(BEFORE)?;
    let endpoint = Endpoint::bind(ANYWHERE, load.registry().clone())?;
    let begin = Instant::now();
    let bytes = scrape(endpoint.local_addr())?;
    let took = begin.elapsed();
    if bytes < 10_000 {
        return Err(format!("a page of {bytes} bytes is none").into());
    }
    Ok(Sample::absolute(took.as_secs_f64() * 1e3))
}

/// 99th percentile of the time from submission to completion with 4,096 subchannels: scraped once a
/// second / not scraped.
pub fn scrape_p99(round: &Round) -> Result<Sample, FieldError> {
    thread_local! {
        static LOAD: RefCell<Option<NullLoad>> = const { RefCell::new(None) };
    }
    LOAD.with_borrow_mut(|load| {
        let load = match load {
            Some(load) => load,
            None => {
                let load = load.insert(NullLoad::new(SCRAPED)?);
                load.run(BEFORE)?;
                load
            }
        };
        let load = RefCell::new(load);
        round.compare(
            || {
                let endpoint = Endpoint::bind(ANYWHERE, load.borrow().registry().clone())?;
                let address = endpoint.local_addr();
                let is_over = AtomicBool::new(false);
                thread::scope(|scope| {
                    let scraper = scope.spawn(|| {
                        // Relaxed: it hears of it soon enough.
                        while !is_over.load(Ordering::Relaxed) {
                            scrape(address)?;
                            thread::sleep(BETWEEN_SCRAPES);
                        }
                        Ok::<_, io::Error>(())
                    });
                    let times = load.borrow_mut().latencies(LATENCIES);
                    is_over.store(true, Ordering::Relaxed);
                    scraper.join().map_err(|_| "the scraper has panicked")??;
                    Ok(p99_ns(times?))
                })
            },
            || Ok(p99_ns(load.borrow_mut().latencies(LATENCIES)?)),
        )
    })
}

/// Reads a whole page, and returns how many bytes it has.
fn scrape(address: SocketAddr) -> io::Result<usize> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page)
}

/// This program built without recording. It is built where it was built before, beside this one.
fn unrecorded() -> Result<PathBuf, FieldError> {
    if cfg!(test) {
        // What it takes there is a minute, for no figure.
        return Err(
            Lacking("a program without recording, which tests do not build".to_owned()).into()
        );
    }
    build().map_err(|error| Lacking(error.to_string()).into())
}

fn build() -> Result<PathBuf, FieldError> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ours = std::env::current_exe()?;
    // target/PROFILE/vfio-ccw-bench, or target/PROFILE/deps/... of a test.
    let folder = ours.ancestors().find(|folder| folder.ends_with("target"));
    let folder = folder.unwrap_or(crate_folder).join("unrecorded");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(crate_folder);
    command.args(["build", "--quiet", "--release", "--locked", "--no-default-features"]);
    command.args(["--bin", "vfio-ccw-bench", "--target-dir"]).arg(&folder);
    // This program's own features are none of the other's.
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    let output = command.output().map_err(|error| {
        format!("cargo, to build this program without recording, cannot be run: {error}")
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.lines().take(3).collect::<Vec<_>>().join("; ");
        return Err(format!("this program cannot be built without recording: {said}").into());
    }
    Ok(folder.join("release/vfio-ccw-bench"))
}
