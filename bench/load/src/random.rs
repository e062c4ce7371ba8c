//! The deterministic generator behind all draws: SplitMix64.
//!
//! One word of state a stream, so that 65,536 slots with a stream each stay in the cache, and a full
//! period of 2^64. The generator and its constants are those of Steele, Lea and Flood, "Fast Splittable
//! Pseudorandom Number Generators", OOPSLA 2014.

/// The odd constant nearest to 2^64 divided by the golden ratio: the step of the sequence.
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads every input bit over the whole word; a bijection on 64-bit words.
#[inline]
pub(crate) const fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A stream of random words; the same seed gives the same stream on every machine.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// The stream of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Stream number `stream` of a family that shares `seed`. Seed and number are mixed, so that
    /// neighbouring numbers do not start at neighbouring states.
    pub const fn stream(seed: u64, stream: u64) -> Self {
        Self::new(mix(mix(seed).wrapping_add(stream.wrapping_mul(GOLDEN))))
    }

    /// The next word, uniform over all 64-bit values.
    #[inline]
    pub const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in `0..bound`, without bias; 0 where `bound` is 0.
    ///
    /// Multiplies instead of dividing and rejects the few products that would favour some results
    /// (Lemire, "Fast Random Integer Generation in an Interval", TOMACS 2019).
    #[inline]
    pub const fn below(&mut self, bound: u64) -> u64 {
        let mut product = self.next_u64() as u128 * bound as u128;
        if (product as u64) < bound {
            let threshold = bound.wrapping_neg() % bound;
            while (product as u64) < threshold {
                product = self.next_u64() as u128 * bound as u128;
            }
        }
        (product >> 64) as u64
    }

    /// Uniform in `[0, 1)`, with 53 random bits.
    #[inline]
    pub const fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// True in `percent` of 100 draws.
    #[inline]
    pub const fn percent(&mut self, percent: u8) -> bool {
        self.below(100) < percent as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_sequence_comes_out() {
        // First outputs for seed 1234567, as quoted by independent implementations of the algorithm.
        let mut random = SplitMix64::new(1_234_567);
        let words = [random.next_u64(), random.next_u64(), random.next_u64()];
        assert_eq!(
            words,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn below_is_uniform_and_in_range() {
        let mut random = SplitMix64::new(7);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[random.below(7) as usize] += 1;
        }
        // Five standard deviations of a binomial with n = 70,000 and p = 1/7 are 463.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 463), "{counts:?}");
        assert_eq!((random.below(1), random.below(0)), (0, 0));
    }

    #[test]
    fn percent_hits_its_share_and_its_ends() {
        let mut random = SplitMix64::new(8);
        let hits = (0..100_000).filter(|_| random.percent(30)).count();
        assert!(hits.abs_diff(30_000) < 725, "{hits}");
        assert!((0..1000).all(|_| random.percent(100) && !random.percent(0)));
    }

    #[test]
    fn unit_stays_below_one_and_has_the_right_mean() {
        let mut random = SplitMix64::new(9);
        let mut sum = 0.0;
        for _ in 0..100_000 {
            let value = random.unit();
            assert!((0.0..1.0).contains(&value));
            sum += value;
        }
        assert!((sum / 100_000.0 - 0.5).abs() < 0.005);
    }

    #[test]
    fn streams_of_one_seed_differ() {
        let firsts: std::collections::HashSet<u64> =
            (0..4096).map(|stream| SplitMix64::stream(1, stream).next_u64()).collect();
        assert_eq!(firsts.len(), 4096);
    }
}
