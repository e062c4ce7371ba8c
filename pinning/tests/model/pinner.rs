//! A pinner that keeps books and holds every call of the pool against them.
//!
//! It never panics inside a call: a pool under test would lose what it has booked, and its other
//! users would wait for ever. What it sees goes into a list of complaints that tests look at.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use vfio_ccw_pinning::{Pinner, Run, Stopped};

use super::draw::Draw;

/// What kind of pinner it is.
#[derive(Clone, Copy, Debug)]
pub struct Character {
    /// As [`Pinner::joins_frames`].
    pub joins_frames: bool,
    /// As [`Pinner::is_needed`].
    pub is_needed: bool,
    /// As [`Pinner::most_runs`]; only checked where frames are not joined.
    pub most_runs: Option<u32>,
    /// Gives other threads a turn in the middle of a call, from this seed.
    pub lingers: Option<u64>,
}

/// The pinner; clones share their books.
#[derive(Clone)]
pub struct BookKeeper {
    character: Character,
    books: Arc<Mutex<Books>>,
    /// What happens inside a call, before each run.
    interruption: Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>,
}

struct Books {
    pinned: BTreeMap<u32, Entry>,
    bytes: u64,
    peak: u64,
    /// Most bytes that may be pinned now, and how often that has changed.
    ceiling: (u64, u64),
    users: BTreeMap<u32, u32>,
    kept_out: BTreeMap<u32, u32>,
    refuse_pin: Refusal,
    refuse_unpin: Refusal,
    complaints: Vec<String>,
    draw: Option<Draw>,
}

/// How a frame is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    address: u64,
    host: usize,
    bytes: u64,
}

/// Runs that are refused by script.
#[derive(Clone, Copy, Debug, Default)]
struct Refusal {
    /// Runs that pass before.
    after: u32,
    /// Runs that are refused then.
    times: u32,
    /// How many have been, ever.
    fired: u64,
}

impl Refusal {
    fn is_due(&mut self) -> bool {
        if self.times == 0 {
            return false;
        }
        if self.after > 0 {
            self.after -= 1;
            return false;
        }
        self.times -= 1;
        self.fired += 1;
        true
    }
}

impl BookKeeper {
    /// A pinner that lets at most `ceiling` bytes be pinned.
    pub fn new(character: Character, ceiling: u64) -> Self {
        let books = Books {
            pinned: BTreeMap::new(),
            bytes: 0,
            peak: 0,
            ceiling: (ceiling, 0),
            users: BTreeMap::new(),
            kept_out: BTreeMap::new(),
            refuse_pin: Refusal::default(),
            refuse_unpin: Refusal::default(),
            complaints: Vec::new(),
            draw: character.lingers.map(Draw::new),
        };
        BookKeeper { character, books: Arc::new(Mutex::new(books)), interruption: Arc::default() }
    }

    /// Calls `act` inside every call, before each run: what others do while the pool waits for it.
    pub fn interrupt_with(&self, act: impl Fn() + Send + Sync + 'static) {
        assert!(self.interruption.set(Box::new(act)).is_ok(), "interrupted by somebody already");
    }

    /// Panics with the first complaint, if there is one.
    #[track_caller]
    pub fn check(&self) {
        let complaint = self.books.lock().complaints.first().cloned();
        if let Some(complaint) = complaint {
            panic!("the pinner complains: {complaint}");
        }
    }

    /// How many of `frames` are pinned.
    pub fn count_pinned<'a>(&self, frames: impl IntoIterator<Item = &'a u32>) -> usize {
        let books = self.books.lock();
        frames.into_iter().filter(|frame| books.pinned.contains_key(frame)).count()
    }

    /// Bytes pinned now.
    pub fn bytes(&self) -> u64 {
        self.books.lock().bytes
    }

    /// Most bytes that were pinned at one time.
    pub fn peak(&self) -> u64 {
        self.books.lock().peak
    }

    /// Most bytes that may be pinned, and a number that changes with it.
    pub fn ceiling(&self) -> (u64, u64) {
        self.books.lock().ceiling
    }

    /// Changes what may be pinned from now on.
    pub fn set_ceiling(&self, bytes: u64) {
        let mut books = self.books.lock();
        books.ceiling = (bytes, books.ceiling.1 + 1);
        if books.bytes > bytes {
            let complaint = format!("{} bytes are pinned, {bytes} may be", books.bytes);
            books.complaints.push(complaint);
        }
    }

    /// A device starts to use `frames`: they are pinned and stay so until [`BookKeeper::leave`].
    pub fn enter<'a>(&self, frames: impl IntoIterator<Item = &'a u32>) {
        let mut books = self.books.lock();
        for frame in frames {
            if !books.pinned.contains_key(frame) {
                books.complaints.push(format!("frame {frame} is used and not pinned"));
            }
            *books.users.entry(*frame).or_default() += 1;
        }
    }

    /// A device is done with `frames`.
    pub fn leave<'a>(&self, frames: impl IntoIterator<Item = &'a u32>) {
        let mut books = self.books.lock();
        for frame in frames {
            count_down(&mut books.users, *frame);
        }
    }

    /// Nobody may pin `frames` until [`BookKeeper::let_in`]; they are not pinned.
    pub fn keep_out<'a>(&self, frames: impl IntoIterator<Item = &'a u32>) {
        let mut books = self.books.lock();
        for frame in frames {
            if books.pinned.contains_key(frame) {
                books.complaints.push(format!("frame {frame} is withdrawn and still pinned"));
            }
            *books.kept_out.entry(*frame).or_default() += 1;
        }
    }

    /// Undoes one [`BookKeeper::keep_out`].
    pub fn let_in<'a>(&self, frames: impl IntoIterator<Item = &'a u32>) {
        let mut books = self.books.lock();
        for frame in frames {
            count_down(&mut books.kept_out, *frame);
        }
    }

    /// Lets `after` runs be pinned, then refuses `times` runs.
    pub fn refuse_pins(&self, after: u32, times: u32) {
        let refusal = &mut self.books.lock().refuse_pin;
        *refusal = Refusal { after, times, ..*refusal };
    }

    /// Lets `after` runs be unpinned, then refuses `times` runs.
    pub fn refuse_unpins(&self, after: u32, times: u32) {
        let refusal = &mut self.books.lock().refuse_unpin;
        *refusal = Refusal { after, times, ..*refusal };
    }

    /// Refusals up to now, of pins and of unpins.
    pub fn refusals(&self) -> (u64, u64) {
        let books = self.books.lock();
        (books.refuse_pin.fired, books.refuse_unpin.fired)
    }

    /// Calls `each` for one run after the other and stops where it refuses.
    fn for_runs(
        &self,
        runs: &[Run<'_>],
        refusal: io::ErrorKind,
        mut each: impl FnMut(&mut Books, &Run<'_>) -> bool,
    ) -> Result<(), Stopped> {
        if runs.is_empty() {
            self.books.lock().complaints.push("a call without runs".into());
        }
        for (done, run) in runs.iter().enumerate() {
            let turns = self.books.lock().draw.as_mut().map_or(0, |draw| draw.of(0..12));
            // Between what the pool has booked and what is so: others may come in here.
            (0..turns).for_each(|_| std::thread::yield_now());
            if let Some(interrupt) = self.interruption.get() {
                interrupt();
            }
            let mut books = self.books.lock();
            books.check_shape(run, self.character);
            if !each(&mut books, run) {
                return Err(Stopped { done, source: refusal.into() });
            }
        }
        Ok(())
    }
}

impl Pinner for BookKeeper {
    fn name(&self) -> &'static str {
        "book keeper"
    }

    fn pin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        self.for_runs(runs, io::ErrorKind::OutOfMemory, |books, run| {
            if books.refuse_pin.is_due() {
                return false;
            }
            entries(run).for_each(|(frame, entry)| books.pin(frame, entry));
            books.check_sums(self.character);
            true
        })
    }

    fn unpin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        self.for_runs(runs, io::ErrorKind::InvalidInput, |books, run| {
            if books.refuse_unpin.is_due() {
                return false;
            }
            entries(run).for_each(|(frame, entry)| books.unpin(frame, entry));
            true
        })
    }

    fn is_needed(&self) -> bool {
        self.character.is_needed
    }

    fn joins_frames(&self) -> bool {
        self.character.joins_frames
    }

    fn most_runs(&self) -> Option<u32> {
        self.character.most_runs
    }

    fn keeps_place(&self) -> bool {
        false
    }
}

impl Books {
    fn pin(&mut self, frame: u32, entry: Entry) {
        if let Some(before) = self.pinned.insert(frame, entry) {
            self.complaints.push(format!("frame {frame} is pinned as {before:x?}, and again"));
        }
        if self.kept_out.contains_key(&frame) {
            self.complaints.push(format!("frame {frame} is kept out and pinned"));
        }
        let host = entry.host..entry.host + entry.bytes as usize;
        let overlaps = |(other, there): (&u32, &Entry)| {
            *other != frame
                && host.start < there.host + there.bytes as usize
                && there.host < host.end
        };
        if self.pinned.iter().any(overlaps) {
            self.complaints.push(format!("memory of frame {frame} is pinned as another frame too"));
        }
        self.bytes += entry.bytes;
    }

    fn unpin(&mut self, frame: u32, entry: Entry) {
        match self.pinned.remove(&frame) {
            Some(before) if before == entry => {}
            Some(before) => self.complaints.push(format!(
                "frame {frame} was pinned as {before:x?} and is unpinned as {entry:x?}"
            )),
            None => self.complaints.push(format!("frame {frame} is unpinned and was not pinned")),
        }
        if self.users.contains_key(&frame) {
            self.complaints.push(format!("frame {frame} is unpinned and in use"));
        }
        self.bytes = self.bytes.saturating_sub(entry.bytes);
    }

    fn check_sums(&mut self, character: Character) {
        self.peak = self.peak.max(self.bytes);
        let (ceiling, _) = self.ceiling;
        if self.bytes > ceiling {
            self.complaints.push(format!("{} bytes are pinned, {ceiling} may be", self.bytes));
        }
        if let (false, Some(most)) = (character.joins_frames, character.most_runs)
            && self.pinned.len() > most as usize
        {
            let runs = self.pinned.len();
            self.complaints.push(format!("{runs} runs are pinned, {most} may be"));
        }
    }

    /// A run names whole frames of its region, by number, guest and host address alike.
    fn check_shape(&mut self, run: &Run<'_>, character: Character) {
        let region = run.region;
        let index = run.frame.checked_sub(region.first_frame());
        let is_inside = run.frames > 0
            && index.is_some_and(|index| {
                index.checked_add(run.frames).is_some_and(|end| end <= region.frames())
            });
        if !is_inside {
            self.complaints.push(format!("{run:?} is not inside its region"));
            return;
        }
        let offset = u64::from(run.frame - region.first_frame()) * region.frame_bytes();
        let host = region.host().as_ptr().wrapping_add(offset as usize);
        let len = u64::from(run.frames) * region.frame_bytes();
        if run.address != region.start() + offset
            || run.host.as_ptr() != host
            || run.host.len() as u64 != len
        {
            self.complaints.push(format!("{run:?} names different places"));
        }
        if !character.joins_frames && run.frames != 1 {
            self.complaints.push(format!("{run:?} joins frames"));
        }
    }
}

/// The frames of a run.
fn entries(run: &Run<'_>) -> impl Iterator<Item = (u32, Entry)> {
    let (first, bytes) = (run.frame, run.region.frame_bytes());
    let (address, host) = (run.address, run.host.as_ptr().addr());
    (0..run.frames).map(move |index| {
        let offset = u64::from(index) * bytes;
        (first + index, Entry { address: address + offset, host: host + offset as usize, bytes })
    })
}

fn count_down(counts: &mut BTreeMap<u32, u32>, frame: u32) {
    let count = counts.get_mut(&frame).expect("counted before");
    *count -= 1;
    if *count == 0 {
        counts.remove(&frame);
    }
}
