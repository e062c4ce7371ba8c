//! Zipf-distributed ranks in constant time and without tables.
//!
//! Rank `k` (from 1) of `n` has a probability proportional to `k^-theta`. Drawing is by
//! rejection-inversion (Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone
//! discrete distributions", TOMACS 1996): invert the integral of the continuous density, round, and
//! reject the little that the rounding put on the wrong side. Fewer than 1.5 tries a draw for any `n`
//! and `theta`, and set-up is four evaluations, so a volume of any size starts at once.

use crate::random::SplitMix64;

/// The distribution of ranks `0..n`, rank 0 the most frequent.
#[derive(Debug, Clone, Copy)]
pub struct Zipf {
    theta: f64,
    ranks: u64,
    /// The integral just before rank 1 and just after rank `n`: draws are uniform between the two.
    first: f64,
    last: f64,
    /// A rounded rank this near to its draw is accepted without evaluating the integral again.
    shortcut: f64,
}

impl Zipf {
    /// Ranks `0..ranks` with exponent `theta`; `ranks` of 0 counts as 1.
    ///
    /// `theta` must be finite and above 0: [`Access`](crate::Access) checks what operators give.
    pub fn new(ranks: u64, theta: f64) -> Self {
        let ranks = ranks.max(1);
        Self {
            theta,
            ranks,
            first: integral(1.5, theta) - 1.0,
            last: integral(ranks as f64 + 0.5, theta),
            shortcut: 2.0 - inverse(integral(2.5, theta) - density(2.0, theta), theta),
        }
    }

    /// Draws one rank.
    #[inline]
    pub fn draw(&self, random: &mut SplitMix64) -> u64 {
        loop {
            let area = self.last + random.unit() * (self.first - self.last);
            let point = inverse(area, self.theta);
            let rank = point.round().clamp(1.0, self.ranks as f64);
            if rank - point <= self.shortcut
                || area >= integral(rank + 0.5, self.theta) - density(rank, self.theta)
            {
                return rank as u64 - 1;
            }
        }
    }
}

/// `x^-theta`.
fn density(x: f64, theta: f64) -> f64 {
    (-theta * x.ln()).exp()
}

/// The integral of the density from 1 to `x`: `(x^(1-theta) - 1) / (1-theta)`, and `ln x` at `theta` 1.
fn integral(x: f64, theta: f64) -> f64 {
    let log = x.ln();
    let power = (1.0 - theta) * log;
    // Near theta = 1 the quotient loses its digits, so its series takes over.
    let quotient = if power.abs() > 1e-8 { power.exp_m1() / power } else { 1.0 + power / 2.0 };
    quotient * log
}

/// The `x` whose [`integral`] is `area`.
fn inverse(area: f64, theta: f64) -> f64 {
    // Rounding may step past the pole at -1 by one unit in the last place.
    let scaled = (area * (1.0 - theta)).max(-1.0);
    let quotient = if scaled.abs() > 1e-8 { scaled.ln_1p() / scaled } else { 1.0 - scaled / 2.0 };
    (quotient * area).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts of `draws` draws against the exact probabilities: chi-squared over all ranks.
    fn chi_squared(ranks: u64, theta: f64, draws: u32) -> f64 {
        let zipf = Zipf::new(ranks, theta);
        let mut random = SplitMix64::new(42);
        let mut counts = vec![0u32; ranks as usize];
        for _ in 0..draws {
            counts[zipf.draw(&mut random) as usize] += 1;
        }
        let norm: f64 = (1..=ranks).map(|k| (k as f64).powf(-theta)).sum();
        (1..=ranks)
            .map(|k| {
                let expected = f64::from(draws) * (k as f64).powf(-theta) / norm;
                (f64::from(counts[k as usize - 1]) - expected).powi(2) / expected
            })
            .sum()
    }

    #[test]
    fn frequencies_match_the_definition() {
        // 49 degrees of freedom: 99.99 % of chi-squared values lie below 96.
        for theta in [0.2, 0.5, 0.99, 1.0, 1.000_000_1, 1.2, 2.0] {
            let value = chi_squared(50, theta, 200_000);
            assert!(value < 96.0, "theta {theta}: chi squared {value}");
        }
    }

    #[test]
    fn extremes_stay_in_range() {
        let mut random = SplitMix64::new(1);
        for (ranks, theta) in
            [(1, 0.99), (2, 8.0), (u64::from(u32::MAX), 0.99), (1 << 50, 1.2), (0, 1.0)]
        {
            let zipf = Zipf::new(ranks, theta);
            assert!((0..10_000).all(|_| zipf.draw(&mut random) < ranks.max(1)), "{ranks} {theta}");
        }
    }

    #[test]
    fn integral_and_inverse_cancel() {
        for theta in [0.3, 0.99, 1.0, 1.7] {
            for x in [1.0f64, 1.5, 10.0, 1e6] {
                let back = inverse(integral(x, theta), theta);
                assert!((back / x - 1.0).abs() < 1e-6, "theta {theta}, {x} became {back}");
            }
        }
    }
}
