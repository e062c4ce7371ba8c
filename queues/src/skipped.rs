//! The positions that a consumer has gone past without taking them.

/// A set of ring positions, at most one for each slot, walked oldest first.
///
/// One bit for each slot of the ring, so that a set for a small ring is one word and a walk over a
/// large one reads 64 slots at a time. Members lie within one lap of the oldest, which is what makes
/// a bit mean one position.
#[derive(Debug)]
pub(crate) struct Skipped {
    bits: Box<[u64]>,
    count: usize,
    /// The oldest member, while there is one.
    oldest: usize,
    /// Ring capacity minus one.
    mask: usize,
}

impl Skipped {
    /// An empty set for a ring of `capacity` slots, a power of two.
    pub(crate) fn new(capacity: usize) -> Self {
        let words = capacity.div_ceil(u64::BITS as usize);
        Self { bits: vec![0; words].into(), count: 0, oldest: 0, mask: capacity - 1 }
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The members older than `end`, oldest first. `end` is at most a lap after the oldest member.
    pub(crate) fn older_than(&self, end: usize) -> impl Iterator<Item = usize> {
        let first = (self.count > 0 && distance(self.oldest, end) > 0).then_some(self.oldest);
        std::iter::successors(first, move |&member| self.next(member.wrapping_add(1), end))
    }

    /// Adds `position`, younger than every member and less than a lap after the oldest.
    pub(crate) fn insert(&mut self, position: usize) {
        if self.count == 0 {
            self.oldest = position;
        }
        debug_assert!(
            position.wrapping_sub(self.oldest) <= self.mask,
            "position {position} is a lap or more after {}",
            self.oldest
        );
        let (word, bit) = self.place(position);
        self.bits[word] |= bit;
        self.count += 1;
    }

    /// Removes `position` if it is a member; `end` is younger than all members.
    pub(crate) fn remove(&mut self, position: usize, end: usize) {
        let (word, bit) = self.place(position);
        if self.bits[word] & bit == 0 {
            return;
        }
        self.bits[word] &= !bit;
        self.count -= 1;
        if position == self.oldest
            && let Some(next) = self.next(position.wrapping_add(1), end)
        {
            self.oldest = next;
        }
    }

    /// The first member in `from..end`.
    fn next(&self, from: usize, end: usize) -> Option<usize> {
        let mut position = from;
        while distance(position, end) > 0 {
            let (word, bit) = self.place(position);
            let rest = self.bits[word] & !(bit - 1);
            if rest != 0 {
                let member =
                    position.wrapping_add((rest.trailing_zeros() - bit.trailing_zeros()) as usize);
                return (distance(member, end) > 0).then_some(member);
            }
            // On to the next word, or around to the first one.
            let index = position & self.mask;
            let word_end = ((index | 63) + 1).min(self.mask + 1);
            position = position.wrapping_add(word_end - index);
        }
        None
    }

    fn place(&self, position: usize) -> (usize, u64) {
        let index = position & self.mask;
        (index / 64, 1 << (index % 64))
    }
}

/// How far `to` is ahead of `from`; negative when it is behind. Positions wrap, distances do not.
fn distance(from: usize, to: usize) -> isize {
    to.wrapping_sub(from).cast_signed()
}
