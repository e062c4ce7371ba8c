//! The slots of a table that are free.

use std::ops::Range;

/// Runs of free slots that are looked at before the longest of them is taken as it is. Bounds the
/// search in a table full of holes.
const LOOKS: usize = 32;

/// A set of free slots. It gives out adjacent ones where it can: they change in one system call.
#[derive(Debug)]
pub(super) struct Slots {
    /// A bit a slot, one where it is free.
    free: Box<[u64]>,
    count: usize,
    /// No slot below is free.
    low: usize,
}

impl Slots {
    pub(super) fn all_free(count: u16) -> Self {
        let count = usize::from(count);
        let mut slots = Slots { free: vec![0; count.div_ceil(64)].into(), count, low: 0 };
        slots.give_back(0..count);
        slots
    }

    /// Takes up to `most` adjacent slots: the first run of so many, or else the longest of the first
    /// [`LOOKS`] runs. `None` where no slot is free; `most` is not zero.
    pub(super) fn take(&mut self, most: usize) -> Option<Range<usize>> {
        let first = self.run_from(self.low)?;
        self.low = first.start;
        let (mut best, mut run) = (first.clone(), first);
        for _ in 1..LOOKS {
            if best.len() >= most {
                break;
            }
            let Some(next) = self.run_from(run.end) else {
                break;
            };
            run = next;
            if run.len() > best.len() {
                best = run.clone();
            }
        }
        best.end = best.end.min(best.start + most);
        best.clone().for_each(|slot| self.free[slot / 64] &= !(1 << (slot % 64)));
        Some(best)
    }

    pub(super) fn give_back(&mut self, slots: Range<usize>) {
        self.low = if slots.is_empty() { self.low } else { self.low.min(slots.start) };
        for slot in slots {
            debug_assert!(!self.is_free(slot), "slot {slot} was free already");
            self.free[slot / 64] |= 1 << (slot % 64);
        }
    }

    fn is_free(&self, slot: usize) -> bool {
        self.free[slot / 64] >> (slot % 64) & 1 == 1
    }

    /// The first run of free slots that has none before `from`.
    fn run_from(&self, from: usize) -> Option<Range<usize>> {
        let start = self.seek(from, |word| word)?;
        let end = self.seek(start, |word| !word).unwrap_or(self.count);
        Some(start..end)
    }

    /// The first slot from `from` on whose bit is set in its word as `seen` shows it.
    fn seek(&self, from: usize, seen: impl Fn(u64) -> u64) -> Option<usize> {
        let mut mask = u64::MAX << (from % 64);
        for (index, word) in self.free.iter().enumerate().skip(from / 64) {
            let bits = seen(*word) & mask;
            if bits != 0 {
                let slot = index * 64 + bits.trailing_zeros() as usize;
                return (slot < self.count).then_some(slot);
            }
            mask = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// What `take` must answer, from a plain set.
    fn expected(free: &BTreeSet<usize>, most: usize) -> Option<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for &slot in free {
            match runs.last_mut() {
                Some(run) if run.end == slot => run.end += 1,
                _ => runs.push(slot..slot + 1),
            }
        }
        runs.truncate(LOOKS);
        let enough = runs.iter().find(|run| run.len() >= most);
        // `max_by_key` prefers the last of equals, the table the first.
        let run = enough.or(runs.iter().rev().max_by_key(|run| run.len()))?;
        Some(run.start..run.end.min(run.start + most))
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize),
        GiveBack(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..70usize).prop_map(Step::Take),
            (0..1000usize, 1..40usize).prop_map(|(which, len)| Step::GiveBack(which, len)),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(count in 1..400u16, steps in prop::collection::vec(step(), 1..120)) {
            let mut slots = Slots::all_free(count);
            let mut free: BTreeSet<usize> = (0..count.into()).collect();
            let mut taken = Vec::new();
            for step in steps {
                match step {
                    Step::Take(most) => {
                        let run = slots.take(most);
                        prop_assert_eq!(&run, &expected(&free, most));
                        for slot in run.into_iter().flatten() {
                            free.remove(&slot);
                            taken.push(slot);
                        }
                    }
                    Step::GiveBack(which, len) => {
                        for _ in 0..len.min(taken.len()) {
                            let slot = taken.swap_remove(which % taken.len());
                            slots.give_back(slot..slot + 1);
                            free.insert(slot);
                        }
                    }
                }
            }
            for slot in 0..count.into() {
                prop_assert_eq!(slots.is_free(slot), free.contains(&slot));
            }
        }
    }

    #[test]
    fn a_long_run_is_preferred_to_a_low_one() {
        let mut slots = Slots::all_free(200);
        assert_eq!(slots.take(200), Some(0..200));
        assert_eq!(slots.take(1), None);
        slots.give_back(3..5);
        slots.give_back(60..70);
        slots.give_back(199..200);
        assert_eq!(slots.take(8), Some(60..68));
        assert_eq!(slots.take(8), Some(3..5), "the longest there is, and the first of them");
        assert_eq!(slots.take(8), Some(68..70));
        assert_eq!(slots.take(8), Some(199..200));
        assert_eq!(slots.take(8), None);
    }
}
