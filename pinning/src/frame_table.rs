//! Which region a frame number belongs to: what the pool has to know of a guest's layout.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::pinner::Run;
use crate::{FRAME_SHIFT, GuestMap, Region};

/// Runs that a list of frames makes; few enough in most programs to stay off the heap.
pub(crate) type Runs<'a> = SmallVec<[Run<'a>; 16]>;

/// Regions by frame number. Cheap to clone, never changed.
#[derive(Clone, Debug)]
pub(crate) struct FrameTable(Arc<[Region]>);

impl FrameTable {
    pub(crate) fn of(map: &GuestMap) -> Self {
        Self::from_regions(map.regions().iter().cloned())
    }

    /// Whether a region of `map` has frame numbers that this table knows for another place.
    pub(crate) fn contradicts(&self, map: &GuestMap) -> bool {
        let overlap = |one: &Region, other: &Region| {
            let (one, other) = (one.frame_numbers(), other.frame_numbers());
            one.start < other.end && other.start < one.end
        };
        let contradict = |new: &Region| {
            self.0.iter().any(|known| overlap(known, new) && !known.is_same_place(new))
        };
        map.regions().iter().any(contradict)
    }

    /// The regions of `map`, and those of this table that are not in it.
    pub(crate) fn with(&self, map: &GuestMap) -> Self {
        Self::from_regions(map.regions().iter().cloned().chain(self.without(map).cloned()))
    }

    /// The regions of this table that are not in `map`.
    pub(crate) fn without(&self, map: &GuestMap) -> impl Iterator<Item = &Region> {
        let stays = |region: &Region| {
            map.regions().iter().any(|other| other.frame_numbers() == region.frame_numbers())
        };
        self.0.iter().filter(move |region| !stays(region))
    }

    /// Whether somebody else holds it, too.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn from_regions(regions: impl Iterator<Item = Region>) -> Self {
        let mut regions: Vec<Region> = regions.collect();
        regions.sort_by_key(Region::first_frame);
        FrameTable(regions.into())
    }

    pub(crate) fn regions(&self) -> &[Region] {
        &self.0
    }

    /// Bytes in all regions.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(Region::len).sum()
    }

    /// log2 of the largest frame's size.
    pub(crate) fn widest_shift(&self) -> u32 {
        self.0.iter().map(Region::frame_shift).max().unwrap_or(FRAME_SHIFT)
    }

    /// All frame numbers.
    pub(crate) fn frames(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flat_map(Region::frame_numbers)
    }

    /// Weight of a frame: its size in pages of 4 KiB. A number of no region weighs nothing.
    pub(crate) fn pages(&self, frame: u32) -> u32 {
        self.region(frame).map_or(0, |region| 1 << (region.frame_shift() - FRAME_SHIFT))
    }

    /// Numbers of the frames that touch the guest addresses `start..=last`, and whether all of those
    /// addresses are memory.
    pub(crate) fn frames_touching(&self, start: u64, last: u64) -> (Vec<u32>, bool) {
        let mut frames = Vec::new();
        let mut parts: Vec<(u64, u64)> = Vec::new();
        for region in self.0.iter() {
            let (from, to) = (start.max(region.start()), last.min(region.end() - 1));
            if from <= to {
                parts.push((from, to));
                frames.extend(region.frame(from)..=region.frame(to));
            }
        }
        // While a region is replaced, two of them may be at the same addresses.
        parts.sort_unstable();
        let (mut covered, mut next) = (0u64, start);
        for (from, to) in parts {
            let from = from.max(next);
            if to >= from {
                covered += to - from + 1;
                next = to + 1;
            }
        }
        (frames, covered == (last - start).saturating_add(1))
    }

    /// The runs that sorted `frames` make: adjacent frames of a region joined, or each by itself.
    pub(crate) fn runs(&self, frames: &[u32], join: bool) -> Runs<'_> {
        let mut runs = Runs::new();
        let mut rest = frames;
        while let [first, ..] = *rest {
            let Some(region) = self.region(first) else {
                rest = &rest[1..];
                continue;
            };
            let end = region.frame_numbers().end;
            let adjacent = |(index, frame): &(u32, &u32)| {
                **frame < end && first.checked_add(*index) == Some(**frame)
            };
            let most = if join { u32::MAX } else { 1 };
            let count = (0..most).zip(rest).take_while(adjacent).count();
            if let Some((address, host)) = region.frames_at(first, count as u32) {
                runs.push(Run { address, host, frame: first, frames: count as u32, region });
            }
            rest = &rest[count..];
        }
        runs
    }

    fn region(&self, frame: u32) -> Option<&Region> {
        let after = self.0.partition_point(|region| region.first_frame() <= frame);
        let region = &self.0[after.checked_sub(1)?];
        region.frame_numbers().contains(&frame).then_some(region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn table() -> FrameTable {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[
            (GuestAddress(0), 0x4000),
            (GuestAddress(0x10000), 0x2000),
        ]);
        FrameTable::of(&GuestMap::new(Arc::new(memory.unwrap())).unwrap())
    }

    #[test]
    fn runs_end_at_gaps_and_regions() {
        let table = table();
        let runs = |frames: &[u32], join| -> Vec<(u64, u32)> {
            table.runs(frames, join).iter().map(|run| (run.address, run.frames)).collect()
        };
        assert_eq!(runs(&[0, 1, 3, 4, 5], true), [(0, 2), (0x3000, 1), (0x10000, 2)]);
        assert_eq!(runs(&[0, 1], false), [(0, 1), (0x1000, 1)]);
        assert!(runs(&[6, 7], true).is_empty(), "numbers of no region");
    }

    #[test]
    fn addresses_find_their_frames() {
        let table = table();
        assert_eq!(table.frames_touching(0x1fff, 0x2000), (vec![1, 2], true));
        assert_eq!(table.frames_touching(0x3000, 0x10fff), (vec![3, 4], false));
        assert!(!table.frames_touching(0, u64::MAX).1);
        assert_eq!((table.pages(5), table.pages(6)), (1, 0));
        assert_eq!(table.frames().count(), 6);
    }
}
