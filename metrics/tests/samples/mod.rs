//! Durations as devices have them, the same in every run.

/// A generator of numbers that look random: xorshift with a multiplication at the end.
#[derive(Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next, in [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Near the normal distribution: the sum of twelve has deviation 1.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// A typical latency: its logarithm is normal, around `median_ns`.
    pub fn latency_ns(&mut self, median_ns: f64, spread: f64) -> u64 {
        (median_ns * (self.normal() * spread).exp()) as u64
    }
}

/// The sample that the fraction `q` does not exceed. `sorted` is not empty.
pub fn exact_quantile(sorted: &[u64], q: f64) -> u64 {
    let rank = ((q * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
    sorted[rank - 1]
}
