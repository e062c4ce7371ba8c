//! The pages of one channel program: wanted, then held, then released.

use crate::ledger::Room;
use crate::line::Barred;

/// What holding a program's pages took; for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames asked for.
    pub gets: u32,
    /// Frames that were pinned already.
    pub hits: u32,
    /// Frames that had to be pinned.
    pub misses: u32,
    /// Frames unpinned to make room.
    pub evictions: u32,
    /// Runs of frames that the pinner was given to pin.
    pub pin_calls: u32,
    /// Times the program waited for room or for somebody else's pin.
    pub waits: u32,
    /// Frames that it runs with although they are not pinned.
    pub unpinned: u32,
}

/// Sampled uses that a hold keeps until they are counted; more are dropped.
const MOST_SAMPLES: usize = 128;

/// The frames of one program. Made once, reused for request after request: its buffers grow to the
/// largest program seen and stay.
#[derive(Debug)]
pub struct Hold {
    pub(crate) wanted: Vec<u32>,
    pub(crate) held: Vec<u32>,
    pub(crate) missing: Vec<u32>,
    pub(crate) fresh: Vec<u32>,
    pub(crate) victims: Vec<u32>,
    /// What the victims have more than the fresh frames need.
    pub(crate) excess: Room,
    /// Some of the frames taken by the last look are for the sample.
    pub(crate) has_sampled: bool,
    /// Uses for the sample of reuse distances, not counted yet.
    pub(crate) sampled: Vec<u32>,
    /// All uses since samples were last counted.
    pub(crate) uses: u32,
    pub(crate) ticket: Option<u64>,
    /// It was polled and must be polled again for the same program.
    pub(crate) is_waiting: bool,
    /// Its place among those who wait for withdrawn frames.
    pub(crate) barred: Option<Barred>,
    /// Pages of 4 KiB that a program may have pinned.
    pub(crate) limit: Option<u32>,
    /// The frames must be pinned, whatever the pinner says.
    pub(crate) must: bool,
    pub(crate) tally: Tally,
}

impl Default for Hold {
    fn default() -> Self {
        Hold {
            wanted: Vec::new(),
            held: Vec::new(),
            missing: Vec::new(),
            fresh: Vec::new(),
            victims: Vec::new(),
            excess: Room::default(),
            has_sampled: false,
            // All at once: a sampled frame may come late, and must not allocate then.
            sampled: Vec::with_capacity(MOST_SAMPLES),
            uses: 0,
            ticket: None,
            is_waiting: false,
            barred: None,
            limit: None,
            must: false,
            tally: Tally::default(),
        }
    }
}

impl Hold {
    /// Limits every later program of this hold to `bytes` of distinct frames.
    pub fn limit_bytes(&mut self, bytes: Option<u64>) {
        self.limit =
            bytes.map(|bytes| u32::try_from(bytes >> crate::FRAME_SHIFT).unwrap_or(u32::MAX));
    }

    /// Wants a frame. The same frame twice in a row counts once; elsewhere it may be wanted again.
    #[inline]
    pub fn want(&mut self, frame: u32) {
        debug_assert!(self.held.is_empty(), "a hold takes no new wishes while it holds");
        if self.wanted.last() != Some(&frame) {
            self.wanted.push(frame);
        }
    }

    /// Wishes for `count` frames from `first` on.
    #[inline]
    pub fn want_run(&mut self, first: u32, count: u32) {
        debug_assert!(self.held.is_empty(), "a hold takes no new wishes while it holds");
        let known = u32::from(self.wanted.last() == Some(&first) && count > 0);
        self.wanted.extend(first + known..first + count);
    }

    /// Forgets what was wanted, for the next program.
    pub fn clear(&mut self) {
        debug_assert!(
            self.held.is_empty(),
            "cleared a hold that still holds {} frames",
            self.held.len()
        );
        self.wanted.clear();
    }

    /// Frames wanted, adjacent repeats counted once.
    pub fn wanted(&self) -> usize {
        self.wanted.len()
    }

    /// Whether frames are held now.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// What the last holding took.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// A use of a frame whose reuse distances are sampled.
    pub(crate) fn sample(&mut self, frame: u32) {
        if self.sampled.len() < MOST_SAMPLES {
            self.sampled.push(frame);
        }
    }

    /// Distinct frames wanted, in `fresh`. Sorts a copy, so only where the plain count does not
    /// decide.
    pub(crate) fn distinct(&mut self) -> &[u32] {
        self.fresh.clear();
        self.fresh.extend_from_slice(&self.wanted);
        self.fresh.sort_unstable();
        self.fresh.dedup();
        &self.fresh
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Held frames may be under a device's hands: never released here, only by `Pool::release`.
        // What remains stays pinned for good, which is safe, and is said.
        if !self.held.is_empty() {
            tracing::error!(
                frames = self.held.len(),
                "a hold was dropped while holding: its frames stay pinned"
            );
            debug_assert!(
                std::thread::panicking(),
                "a hold was dropped while holding {} frames",
                self.held.len()
            );
        }
    }
}
