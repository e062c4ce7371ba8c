//! Who counts: the budget, the places that pinned frames stand in, and who must go for others. All
//! behind the pool's one lock, which no hit takes and which is never held across a call to a pinner.
//!
//! Replacement is S3-FIFO in shape. A frame comes into *probation*, a FIFO of a twentieth of the budget,
//! and leaves it unpinned if nobody took it again meanwhile: pages that stream by once never push
//! out those in use. One that was taken again moves to the *main* CLOCK, and so does one that comes
//! back soon after it had left probation: the word of an absent frame remembers when it left, so the
//! list of ghosts costs no memory and no lookup. A hit sets a bit in the frame's own word and writes
//! nothing else.

use crate::clock::Clock;
use crate::frame_table::FrameTable;
use crate::line::Line;
use crate::word::{Eviction, StateWord};
use crate::{FRAME_SHIFT, Region};

/// The bit of a slot that says in which circle it is.
const MAIN: u32 = 1 << 31;

/// Share of the budget that probation has, as a divisor. A tenth, as the literature has it, loses up
/// to two points of hits where a working set just fits; smaller shares gain little more, and would be
/// slow to see that a working set has moved.
const PROBATION: u32 = 20;

/// The accounts of a pool.
#[derive(Debug)]
pub(crate) struct Ledger {
    table: FrameTable,
    /// Pages of 4 KiB that may be pinned.
    limit: u32,
    /// Frames that may be pinned, where a pinner has only so many places.
    most_frames: u32,
    /// Pages and frames pinned, being pinned or being unpinned.
    pages: u32,
    frames: u32,
    peak: u32,
    probation: Clock,
    main: Clock,
    /// Counts frames that left probation unused; the stamp of ghosts.
    departures: u32,
    pub(crate) line: Line,
    /// Withdrawals that are in force.
    pub(crate) withdrawals: u32,
}

/// Room in the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pages: u32,
    frames: u32,
}

/// Why a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// To make room.
    Evicted,
    /// It was not to stay.
    Released,
}

impl Ledger {
    pub(crate) fn new(table: FrameTable, limit: u32, most_frames: u32) -> Self {
        let mut ledger = Ledger {
            table,
            limit,
            most_frames,
            pages: 0,
            frames: 0,
            peak: 0,
            probation: Clock::default(),
            main: Clock::default(),
            departures: 0,
            line: Line::default(),
            withdrawals: 0,
        };
        ledger.reserve();
        ledger
    }

    /// Places for as many frames as there may ever be in either circle: their memory is touched when
    /// it is used, so it costs nothing before.
    fn reserve(&mut self) {
        let frames = |region: &Region| region.frames() as usize;
        let guest: usize = self.table.regions().iter().map(frames).sum();
        let most = guest.min(self.limit as usize).min(self.most_frames as usize);
        self.probation.reserve(most);
        self.main.reserve(most);
    }

    pub(crate) fn table(&self) -> &FrameTable {
        &self.table
    }

    pub(crate) fn set_table(&mut self, table: FrameTable) {
        self.table = table;
        self.reserve();
    }

    /// Pages of 4 KiB that may be pinned.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// The caller has seen to it that no more is pinned.
    pub(crate) fn set_limit(&mut self, pages: u32) {
        debug_assert!(self.pages <= pages, "{} pages are pinned of {pages}", self.pages);
        self.limit = pages;
        self.reserve();
    }

    /// Frames that may be pinned at one time.
    pub(crate) fn most_frames(&self) -> u32 {
        self.most_frames
    }

    /// Bytes pinned, being pinned or being unpinned.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        u64::from(self.pages) << FRAME_SHIFT
    }

    /// Most bytes that were pinned at one time.
    pub(crate) fn peak_bytes(&self) -> u64 {
        u64::from(self.peak) << FRAME_SHIFT
    }

    /// The frames on the accounts.
    pub(crate) fn frames(&self) -> Vec<u32> {
        self.probation.frames().chain(self.main.frames()).collect()
    }

    /// Makes room for `fresh` frames: claims idle ones for eviction into `victims` until the sum
    /// fits. `false`, and nothing claimed, where too many are in use.
    pub(crate) fn make_room(
        &mut self,
        fresh: &[u32],
        words: &[StateWord],
        victims: &mut Vec<u32>,
    ) -> bool {
        let pages: u32 = fresh.iter().map(|frame| self.table.pages(*frame)).sum();
        let short = Room {
            pages: self.pages.saturating_add(pages).saturating_sub(self.limit),
            frames: self.frames.saturating_add(fresh.len() as u32).saturating_sub(self.most_frames),
        };
        let left = self.sweep(short, words, victims);
        if left.pages == 0 && left.frames == 0 {
            return true;
        }
        for frame in victims.drain(..) {
            words[frame as usize].restore();
        }
        false
    }

    /// Claims idle frames until what is pinned without them is at most `limit` pages, or as many as
    /// there are.
    pub(crate) fn shed(&mut self, limit: u32, words: &[StateWord], victims: &mut Vec<u32>) {
        let short = Room { pages: self.pages.saturating_sub(limit), frames: 0 };
        self.sweep(short, words, victims);
    }

    /// Claims idle frames until they make up for what is `short`, and returns what is still short:
    /// from probation while that has more than its share, else from the main circle. Probation's
    /// hand goes around at most once; the main one twice, since the first round may only take away
    /// second chances, and twice more for those that came from probation meanwhile. So the cost is
    /// linear in the frames pinned.
    fn sweep(&mut self, mut short: Room, words: &[StateWord], victims: &mut Vec<u32>) -> Room {
        let mut on_probation = self.probation.places();
        let mut on_main = 2 * self.main.places();
        let mut promoted = false;
        while short.pages > 0 || short.frames > 0 {
            let over_share = self.probation.pages() > self.limit / PROBATION;
            let claimed = if on_probation > 0 && (over_share || on_main == 0) {
                on_probation -= 1;
                self.step_probation(words, &mut promoted)
            } else if on_main > 0 {
                on_main -= 1;
                self.main
                    .step()
                    .filter(|frame| words[*frame as usize].try_evict(true) == Eviction::Claimed)
            } else if promoted {
                promoted = false;
                on_main = 2 * self.main.places();
                None
            } else {
                break;
            };
            if let Some(frame) = claimed {
                short.pages = short.pages.saturating_sub(self.table.pages(frame));
                short.frames = short.frames.saturating_sub(1);
                victims.push(frame);
            }
        }
        short
    }

    /// The next on probation goes, or into the main circle if it was taken again.
    fn step_probation(&mut self, words: &[StateWord], promoted: &mut bool) -> Option<u32> {
        let frame = self.probation.step()?;
        let word = &words[frame as usize];
        match word.try_evict(true) {
            Eviction::Claimed => Some(frame),
            Eviction::SecondChance => {
                let pages = self.table.pages(frame);
                self.probation.leave(word.place(), pages);
                word.move_to(MAIN | self.main.enter(frame, pages));
                *promoted = true;
                None
            }
            Eviction::Refused => None,
        }
    }

    /// Enters an absent frame, for which there is room, and returns its slot.
    pub(crate) fn enter(&mut self, frame: u32, word: &StateWord) -> u32 {
        let stamp = word.place();
        let is_ghost = stamp != 0 && self.departures.wrapping_sub(stamp) < self.frames;
        self.admit(frame, is_ghost)
    }

    /// Enters a frame again that could not be unpinned.
    pub(crate) fn enter_again(&mut self, frame: u32, word: &StateWord) {
        word.move_to(self.admit(frame, false));
    }

    fn admit(&mut self, frame: u32, to_main: bool) -> u32 {
        let pages = self.table.pages(frame);
        self.frames += 1;
        self.pages += pages;
        self.peak = self.peak.max(self.pages);
        match to_main {
            true => MAIN | self.main.enter(frame, pages),
            false => self.probation.enter(frame, pages),
        }
    }

    /// What victims have more than fresh frames need: it stays on the accounts until the victims are
    /// really unpinned, since nobody may use it before.
    pub(crate) fn reserve_excess(&mut self, victims: &[u32], fresh: &[u32]) -> Room {
        let pages =
            |frames: &[u32]| frames.iter().map(|frame| self.table.pages(*frame)).sum::<u32>();
        let excess = Room {
            pages: pages(victims).saturating_sub(pages(fresh)),
            frames: (victims.len() as u32).saturating_sub(fresh.len() as u32),
        };
        self.pages += excess.pages;
        self.frames += excess.frames;
        excess
    }

    /// The reserved room is free.
    pub(crate) fn free(&mut self, reserved: Room) {
        self.pages -= reserved.pages;
        self.frames -= reserved.frames;
    }

    /// Takes a frame off the accounts; its word, which the caller owns, gets a stamp if it is a ghost
    /// from now on.
    pub(crate) fn leave(&mut self, word: &StateWord, departure: Departure) {
        let slot = word.place();
        let is_main = slot & MAIN != 0;
        let circle = if is_main { &mut self.main } else { &mut self.probation };
        let pages = self.table.pages(circle.frame(slot & !MAIN));
        circle.leave(slot & !MAIN, pages);
        self.frames -= 1;
        self.pages -= pages;
        if departure == Departure::Evicted && !is_main {
            self.departures = self.departures.wrapping_add(1).max(1);
            word.move_to(self.departures);
        } else {
            word.move_to(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestMap;
    use std::sync::Arc;
    use vm_memory::{GuestAddress, GuestMemoryMmap};
    use zerocopy::FromZeros;

    struct Fixture {
        ledger: Ledger,
        words: Box<[StateWord]>,
    }

    fn fixture(frames: usize, limit: u32) -> Fixture {
        let memory =
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), frames << FRAME_SHIFT)]);
        let map = GuestMap::new(Arc::new(memory.unwrap())).unwrap();
        Fixture {
            ledger: Ledger::new(FrameTable::of(&map), limit, u32::MAX),
            words: <[StateWord]>::new_box_zeroed_with_elems(frames).unwrap(),
        }
    }

    impl Fixture {
        /// Uses a frame for a moment; whether it was there.
        fn touch(&mut self, frame: u32) -> bool {
            let word = &self.words[frame as usize];
            if word.take() == crate::word::Taken::Hit {
                word.release();
                return true;
            }
            let mut victims = Vec::new();
            assert!(self.ledger.make_room(&[frame], &self.words, &mut victims));
            for victim in victims {
                self.ledger.leave(&self.words[victim as usize], Departure::Evicted);
                self.words[victim as usize].vacate();
            }
            assert!(word.claim(self.ledger.enter(frame, word), false));
            word.ready();
            word.release();
            false
        }

        fn is_pinned(&self, frame: u32) -> bool {
            !self.words[frame as usize].is_absent()
        }
    }

    #[test]
    fn frames_in_use_are_never_victims() {
        let mut f = fixture(8, 3);
        for frame in 0..3 {
            f.touch(frame);
        }
        f.words[0].take();
        let mut victims = Vec::new();
        assert!(f.ledger.make_room(&[3, 4], &f.words, &mut victims));
        assert_eq!(victims, [1, 2]);
        for victim in victims.drain(..) {
            f.words[victim as usize].restore();
        }
        assert!(!f.ledger.make_room(&[3, 4, 5], &f.words, &mut victims));
        assert!(victims.is_empty());
        assert_eq!(f.words[1].try_evict(false), Eviction::Claimed, "1 was put back");
    }

    #[test]
    fn a_stream_of_new_frames_leaves_the_used_ones_alone() {
        let mut f = fixture(1000, 100);
        for _ in 0..3 {
            for frame in 0..50 {
                f.touch(frame);
            }
        }
        for frame in 100..1000 {
            f.touch(frame);
        }
        let stayed = (0..50).filter(|frame| f.is_pinned(*frame)).count();
        assert_eq!(stayed, 50, "used frames went for a stream");
        assert_eq!(f.ledger.pinned_bytes(), 100 << FRAME_SHIFT);
    }

    #[test]
    fn what_comes_back_soon_goes_to_the_main_circle() {
        let mut f = fixture(100, 10);
        for frame in 0..11 {
            f.touch(frame);
        }
        assert!(!f.is_pinned(0), "first in, first out");
        f.touch(0);
        for frame in 20..60 {
            f.touch(frame);
        }
        assert!(f.is_pinned(0), "a ghost that came back is not on probation again");
    }

    #[test]
    fn everything_idle_can_go() {
        let mut f = fixture(20, 10);
        for _ in 0..2 {
            for frame in 0..10 {
                f.touch(frame);
            }
        }
        let mut victims = Vec::new();
        f.ledger.shed(0, &f.words, &mut victims);
        assert_eq!(victims.len(), 10, "second chances and promotions do not hide frames");
        for victim in victims {
            f.ledger.leave(&f.words[victim as usize], Departure::Released);
            f.words[victim as usize].vacate();
        }
        assert_eq!((f.ledger.pinned_bytes(), f.ledger.frames()), (0, vec![]));
        assert_eq!(f.ledger.peak_bytes(), 10 << FRAME_SHIFT);
    }

    #[test]
    fn a_pinner_with_few_places_is_respected() {
        let mut f = fixture(20, 10);
        f.ledger.most_frames = 2;
        f.touch(0);
        f.touch(1);
        f.touch(2);
        assert_eq!(f.ledger.frames().len(), 2);
        f.words[1].take();
        f.words[2].take();
        assert!(!f.ledger.make_room(&[3], &f.words, &mut Vec::new()));
    }
}
