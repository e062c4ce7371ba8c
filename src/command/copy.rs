//! Copying a volume through channel programs: every byte takes the path that a guest's would.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vfio_ccw::engine::DiskEngine;
use vfio_ccw::volume::{BLOCK, Volume};
use vfio_ccw_load::units::Bytes;
use vfio_ccw_load::{Completion, Direction, Engine, Request};

use super::disks::{Disks, Remote};
use super::options::ServiceOptions;
use super::{Failure, guest, interrupt, say, tell};

/// Bytes of one transfer.
const CHUNK: u64 = 256 << 10;

/// A transfer that takes longer is given up.
const STALL: Duration = Duration::from_secs(30);

/// Read a whole volume through channel programs into a file.
#[derive(Debug, clap::Args)]
pub(super) struct CopyOut {
    /// The raw image that is the volume.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "remote",
        conflicts_with = "remote"
    )]
    image: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
    /// The file to write; what is in it is replaced.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    #[command(flatten)]
    how: How,
}

/// Write a file through channel programs onto a volume.
#[derive(Debug, clap::Args)]
pub(super) struct CopyIn {
    /// The raw image that is the volume; its first blocks are replaced.
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Make the image, as large as the input, if it is not there.
    #[arg(long)]
    create: bool,
    /// The file to read.
    #[arg(value_name = "IN")]
    input: PathBuf,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
struct How {
    /// Subchannels that copy side by side.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    subchannels: u16,
    #[command(flatten)]
    service: ServiceOptions,
    /// No progress on standard error.
    #[arg(long, short)]
    quiet: bool,
}

impl CopyOut {
    /// Runs it.
    pub(super) fn run(&self) -> Result<bool, Failure> {
        let volume = match &self.image {
            Some(image) => Some(Arc::new(Volume::open(image, true)?)),
            None => None,
        };
        let failed = |error: io::Error| format!("{}: {error}", self.out.display());
        // Not truncated before it is known to be another file than the image.
        let out = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.out)
            .map_err(failed)?;
        let disks = match (volume, &self.remote.remote) {
            (Some(volume), _) => {
                refuse_same(&volume, &out, &self.out)?;
                Disks::Local(volume)
            }
            (None, Some(path)) => self.remote.connect(path, self.how.subchannels.into())?,
            (None, None) => return Err("--image or --remote is needed".into()),
        };
        let done = self.how.copy(disks, Direction::Read, &out, &self.out, None)?;
        out.sync_data().map_err(failed)?;
        Ok(done)
    }
}

impl CopyIn {
    /// Runs it.
    pub(super) fn run(&self) -> Result<bool, Failure> {
        let failed = |error: io::Error| format!("{}: {error}", self.input.display());
        let input = File::open(&self.input).map_err(failed)?;
        let bytes = input.metadata().map_err(failed)?.len();
        if bytes == 0 || !bytes.is_multiple_of(BLOCK) {
            let padded = bytes.max(1).next_multiple_of(BLOCK);
            let path = self.input.display();
            return Err(format!("{path}: {bytes} bytes is not a positive multiple of {BLOCK}: pad it with 'truncate -s {padded} {path}'").into());
        }
        if self.create && !self.image.exists() {
            let image = File::create_new(&self.image)
                .map_err(|error| format!("{}: {error}", self.image.display()))?;
            image.set_len(bytes)?;
        }
        let volume = Arc::new(Volume::open(&self.image, false)?);
        let disks = Disks::Local(volume.clone());
        refuse_same(&volume, &input, &self.input)?;
        if volume.bytes() < bytes {
            return Err(format!(
                "{}: {bytes} bytes do not fit on {}, which has {}: grow it with 'truncate -s {bytes} {}'",
                self.input.display(),
                self.image.display(),
                volume.bytes(),
                self.image.display()
            )
            .into());
        }
        let done = self.how.copy(disks, Direction::Write, &input, &self.input, Some(bytes))?;
        volume.sync()?;
        Ok(done)
    }
}

fn refuse_same(volume: &Volume, file: &File, path: &Path) -> Result<(), Failure> {
    let (image, other) = (std::fs::metadata(volume.path())?, file.metadata()?);
    if (image.dev(), image.ino()) == (other.dev(), other.ino()) {
        return Err(format!(
            "{} and {} are the same file",
            volume.path().display(),
            path.display()
        )
        .into());
    }
    Ok(())
}

impl How {
    fn copy(
        &self,
        disks: Disks,
        direction: Direction,
        file: &File,
        path: &Path,
        bytes: Option<u64>,
    ) -> Result<bool, Failure> {
        let stop = interrupt::stop_flag()?;
        let slots = disks.count(self.subchannels.into());
        let base = DiskEngine::buffers_base(slots);
        let memory = guest::memory((base + slots as u64 * CHUNK).next_multiple_of(1 << 20))?;
        let service = self.service.builder(slots).build(memory)?;
        let (engine, volume_bytes) = disks.attach(&service, slots)?;
        let bytes = bytes.unwrap_or(volume_bytes);
        if direction == Direction::Read {
            file.set_len(bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let mut copy = Copy {
            engine,
            direction,
            file,
            path,
            base,
            bytes,
            taken: 0,
            moved: 0,
            progress: Progress::new(self.quiet, bytes),
        };
        let complete = copy.run(&stop)?;
        copy.progress.end(complete, path)?;
        Ok(complete)
    }
}

/// A copy under way.
struct Copy<'a> {
    engine: DiskEngine,
    direction: Direction,
    file: &'a File,
    path: &'a Path,
    /// Guest address of the first slot's buffer.
    base: u64,
    bytes: u64,
    /// Bytes handed to slots.
    taken: u64,
    /// Bytes that have arrived.
    moved: u64,
    progress: Progress,
}

impl Copy<'_> {
    /// Copies everything; `false` where the user ended it before.
    fn run(&mut self, stop: &AtomicBool) -> Result<bool, Failure> {
        let slots = self.engine.slots();
        let mut under_way: Vec<Option<Request>> = vec![None; slots];
        let mut done = Vec::with_capacity(slots);
        for (slot, request) in under_way.iter_mut().enumerate() {
            *request = self.next(slot)?;
        }
        let mut last = Instant::now();
        while under_way.iter().any(Option::is_some) {
            self.engine.reap(&mut done, Some(Duration::from_millis(250)))?;
            if done.is_empty() && last.elapsed() > STALL {
                return Err(format!(
                    "no transfer has ended for {} s: giving up at {} of {} bytes",
                    STALL.as_secs(),
                    self.moved,
                    self.bytes
                )
                .into());
            }
            for Completion { slot, outcome } in done.drain(..) {
                let request = under_way[slot].take().ok_or("a transfer ended twice")?;
                if let Err(failure) = outcome {
                    return Err(format!(
                        "transfer of {} bytes at {}: {failure}",
                        request.bytes, request.offset
                    )
                    .into());
                }
                self.arrived(&request)?;
                last = Instant::now();
                if !stop.load(Ordering::Relaxed) {
                    under_way[slot] = self.next(slot)?;
                }
            }
            self.progress.show(self.moved);
        }
        Ok(self.moved == self.bytes)
    }

    /// Starts the next transfer on `slot`.
    fn next(&mut self, slot: usize) -> Result<Option<Request>, Failure> {
        let bytes = CHUNK.min(self.bytes - self.taken);
        if bytes == 0 {
            return Ok(None);
        }
        let request = Request {
            slot,
            direction: self.direction,
            offset: self.taken,
            bytes: bytes as u32,
            buffer: self.base + slot as u64 * CHUNK,
        };
        self.taken += bytes;
        if self.direction == Direction::Write {
            let mut data = vec![0; request.bytes as usize];
            self.file
                .read_exact_at(&mut data, request.offset)
                .map_err(|error| self.named(&error))?;
            self.engine.write_guest(request.buffer, &data)?;
        }
        self.engine.submit(&[request])?;
        Ok(Some(request))
    }

    fn arrived(&mut self, request: &Request) -> Result<(), Failure> {
        if self.direction == Direction::Read {
            let mut data = vec![0; request.bytes as usize];
            self.engine.read_guest(request.buffer, &mut data)?;
            self.file.write_all_at(&data, request.offset).map_err(|error| self.named(&error))?;
        }
        self.moved += u64::from(request.bytes);
        Ok(())
    }

    fn named(&self, error: &io::Error) -> Failure {
        format!("{}: {error}", self.path.display()).into()
    }
}

/// What is shown meanwhile.
struct Progress {
    shown: bool,
    begin: Instant,
    last: Instant,
    bytes: u64,
}

impl Progress {
    fn new(quiet: bool, bytes: u64) -> Self {
        let now = Instant::now();
        Progress { shown: !quiet && io::stderr().is_terminal(), begin: now, last: now, bytes }
    }

    fn show(&mut self, moved: u64) {
        if !self.shown || self.last.elapsed() < Duration::from_millis(250) {
            return;
        }
        self.last = Instant::now();
        let percent = moved * 100 / self.bytes.max(1);
        // Nothing is lost where standard error is closed.
        let _ = write!(
            io::stderr(),
            "\r{percent:3} %  {} of {}\x1b[K",
            Bytes(moved),
            Bytes(self.bytes)
        );
    }

    fn end(&self, complete: bool, path: &Path) -> Result<(), Failure> {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
        let seconds = self.begin.elapsed().as_secs_f64();
        if complete {
            return say(format_args!(
                "{}: {} in {seconds:.1} s",
                path.display(),
                Bytes(self.bytes)
            ));
        }
        tell(format_args!("vfio-ccw: interrupted: {} is not complete", path.display()));
        Ok(())
    }
}
