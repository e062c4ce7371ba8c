//! Which block comes next: access distributions over a numbered set of blocks.

use crate::random::{GOLDEN, SplitMix64};
use crate::zipf::Zipf;

/// How accesses spread over the blocks of an extent (or over the buffers of a buffer area).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Access {
    /// Every block alike.
    Uniform,
    /// Few blocks often: the block of rank `k` with a frequency proportional to `k^-theta`, the ranks
    /// scattered so that neighbours in rank are not neighbours on the volume. Real traces lie between
    /// 0.6 and 1.2; accepted is above 0 up to [`Access::MAX_THETA`].
    Zipf(f64),
    /// One after the other, from the start again at the end.
    Sequential,
    /// `percent_hot_accesses` of the accesses go to `percent_hot_blocks` of the blocks, uniformly
    /// within both parts. The hot blocks are scattered over the extent.
    WorkingSet {
        /// Share of the accesses that go to hot blocks, 0 to 100.
        percent_hot_accesses: u8,
        /// Share of the blocks that are hot, 1 to 100; at least one block is.
        percent_hot_blocks: u8,
    },
}

impl Access {
    /// The largest Zipf exponent accepted: from here on practically all accesses hit one block.
    pub const MAX_THETA: f64 = 8.0;

    /// What is wrong with the parameters, as an operator would want to read it.
    pub(crate) fn fault(&self) -> Option<String> {
        match *self {
            Self::Zipf(theta) if !(theta > 0.0 && theta <= Self::MAX_THETA) => Some(format!(
                "zipf exponent {theta} is not above 0 and at most {}; 0.99 is usual",
                Self::MAX_THETA
            )),
            Self::WorkingSet { percent_hot_accesses, .. } if percent_hot_accesses > 100 => {
                Some(format!("hot accesses of {percent_hot_accesses} % exceed 100 %"))
            }
            Self::WorkingSet { percent_hot_blocks, .. }
                if !(1..=100).contains(&percent_hot_blocks) =>
            {
                Some(format!("hot blocks of {percent_hot_blocks} % are not within 1 % to 100 %"))
            }
            _ => None,
        }
    }
}

/// An [`Access`] prepared for `count` blocks: immutable, shared by all slots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selector {
    count: u64,
    shape: Shape,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Uniform,
    Zipf(Zipf, Scatter),
    Sequential,
    WorkingSet { percent_hot_accesses: u8, hot: u64, scatter: Scatter },
}

impl Selector {
    pub(crate) fn new(access: Access, count: u64) -> Self {
        let shape = match access {
            Access::Uniform => Shape::Uniform,
            Access::Zipf(theta) => Shape::Zipf(Zipf::new(count, theta), Scatter::new(count)),
            Access::Sequential => Shape::Sequential,
            Access::WorkingSet { percent_hot_accesses, percent_hot_blocks } => {
                let hot = u128::from(count) * u128::from(percent_hot_blocks) / 100;
                Shape::WorkingSet {
                    percent_hot_accesses,
                    hot: (hot as u64).max(1),
                    scatter: Scatter::new(count),
                }
            }
        };
        Self { count, shape }
    }

    /// The next index in `0..count`. `cursor` belongs to the slot and is where a sequential run stands.
    #[inline]
    pub(crate) fn draw(&self, random: &mut SplitMix64, cursor: &mut u64) -> u64 {
        match &self.shape {
            Shape::Uniform => random.below(self.count),
            Shape::Zipf(zipf, scatter) => scatter.place(zipf.draw(random)),
            Shape::Sequential => {
                let index = *cursor;
                *cursor = if index + 1 < self.count { index + 1 } else { 0 };
                index
            }
            Shape::WorkingSet { percent_hot_accesses, hot, scatter } => {
                let cold = self.count - hot;
                let rank = if cold == 0 || random.percent(*percent_hot_accesses) {
                    random.below(*hot)
                } else {
                    hot + random.below(cold)
                };
                scatter.place(rank)
            }
        }
    }
}

/// A fixed permutation of `0..count` that puts consecutive ranks far apart: multiplication, modulo
/// `count`, by a number prime to it near `count` divided by the golden ratio (the multiplier whose
/// multiples are spaced most evenly, Knuth, "The Art of Computer Programming" 3, section 6.4).
#[derive(Debug, Clone, Copy)]
struct Scatter {
    count: u64,
    multiplier: u64,
}

impl Scatter {
    fn new(count: u64) -> Self {
        let golden = ((u128::from(count) * u128::from(GOLDEN)) >> 64) as u64;
        // 1 is prime to everything, so the search ends.
        let multiplier = (1..=golden.max(1))
            .rev()
            .find(|&candidate| greatest_common_divisor(candidate, count) == 1);
        Self { count, multiplier: multiplier.unwrap_or(1) }
    }

    #[inline]
    fn place(&self, rank: u64) -> u64 {
        match rank.checked_mul(self.multiplier) {
            Some(product) => product % self.count,
            None => {
                (u128::from(rank) * u128::from(self.multiplier) % u128::from(self.count)) as u64
            }
        }
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(access: Access, blocks: u64, draws: u32) -> Vec<u32> {
        let selector = Selector::new(access, blocks);
        let mut random = SplitMix64::new(3);
        let mut cursor = 0;
        let mut counts = vec![0; blocks as usize];
        for _ in 0..draws {
            counts[selector.draw(&mut random, &mut cursor) as usize] += 1;
        }
        counts
    }

    #[test]
    fn sequential_visits_each_block_in_order_and_wraps() {
        let selector = Selector::new(Access::Sequential, 3);
        let (mut random, mut cursor) = (SplitMix64::new(0), 0);
        let seen: Vec<u64> = (0..7).map(|_| selector.draw(&mut random, &mut cursor)).collect();
        assert_eq!(seen, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn uniform_is_flat() {
        let counts = counts(Access::Uniform, 100, 100_000);
        assert!(counts.iter().all(|&count| count.abs_diff(1000) < 160), "{counts:?}");
    }

    #[test]
    fn working_set_splits_accesses_as_asked() {
        let counts = counts(
            Access::WorkingSet { percent_hot_accesses: 90, percent_hot_blocks: 10 },
            1000,
            200_000,
        );
        // A hot block gets 1,800 accesses, a cold one 22.
        let (hot, cold): (Vec<u32>, Vec<u32>) = counts.iter().partition(|&&count| count > 500);
        assert_eq!(hot.len(), 100);
        assert!(hot.iter().sum::<u32>().abs_diff(180_000) < 700);
        assert!(cold.iter().all(|&count| count > 0));
    }

    #[test]
    fn zipf_hot_blocks_are_spread_over_the_extent() {
        let counts = counts(Access::Zipf(0.99), 1024, 400_000);
        let mut blocks: Vec<usize> = (0..1024).collect();
        blocks.sort_unstable_by_key(|&block| std::cmp::Reverse(counts[block]));
        // The 16 hottest blocks lie in at least 12 of 16 equal parts of the extent.
        let parts: std::collections::HashSet<usize> =
            blocks[..16].iter().map(|block| block / 64).collect();
        assert!(parts.len() >= 12, "{parts:?}");
        assert!(counts[blocks[0]] > 20 * counts[blocks[512]]);
    }

    #[test]
    fn one_block_is_enough_for_every_access() {
        for access in [
            Access::Uniform,
            Access::Zipf(1.0),
            Access::Sequential,
            Access::WorkingSet { percent_hot_accesses: 50, percent_hot_blocks: 1 },
        ] {
            assert_eq!(counts(access, 1, 10), [10]);
        }
    }

    #[test]
    fn faults_name_the_value() {
        for (access, part) in [
            (Access::Zipf(f64::NAN), "NaN"),
            (Access::Zipf(0.0), "exponent 0"),
            (Access::Zipf(9.0), "exponent 9"),
            (Access::WorkingSet { percent_hot_accesses: 101, percent_hot_blocks: 1 }, "101 %"),
            (Access::WorkingSet { percent_hot_accesses: 1, percent_hot_blocks: 0 }, "0 %"),
        ] {
            assert!(access.fault().unwrap().contains(part), "{access:?}");
        }
        assert_eq!(Access::Zipf(0.99).fault(), None);
    }

    proptest! {
        #[test]
        fn scatter_is_a_permutation(count in 1u64..2000) {
            let scatter = Scatter::new(count);
            let mut seen = vec![false; count as usize];
            for rank in 0..count {
                let place = scatter.place(rank) as usize;
                prop_assert!(!std::mem::replace(&mut seen[place], true));
            }
        }

        #[test]
        fn scatter_stays_in_range_for_huge_counts(count in 1u64.., rank in any::<u64>()) {
            prop_assert!(Scatter::new(count).place(rank % count) < count);
        }
    }
}
