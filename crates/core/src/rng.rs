//! Random numbers that are a function of a seed and a name.

use rand::{Rng as _, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A stream of random numbers.
///
/// Streams of different names are independent, so the order of initialization does not matter:
/// `Rng::new(seed, "model.norm.weight")`.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The stream called `name` of this seed.
    pub fn new(seed: u64, name: &str) -> Self {
        // FNV-1a spreads names over ChaCha's 2^64 streams of one seed
        let stream =
            name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Rng(rng)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Standard normal, by Box and Muller's method.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A uniform integer below `n`; 0 for `n` = 0.
    pub fn below(&mut self, n: usize) -> usize {
        // the product's high half is uniform enough: the bias is n / 2^64
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// Shuffles a slice.
    pub fn shuffle<T>(&mut self, slice: &mut [T]) {
        for i in (1..slice.len()).rev() {
            slice.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_independent_streams_and_the_same_name_the_same() {
        let draw = |seed, name| Rng::new(seed, name).uniform();
        assert_eq!(draw(1, "a").to_bits(), draw(1, "a").to_bits());
        assert_ne!(draw(1, "a").to_bits(), draw(1, "b").to_bits());
        assert_ne!(draw(1, "a").to_bits(), draw(2, "a").to_bits());
    }

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let mut rng = Rng::new(7, "normal");
        let draws: Vec<f64> = (0..100_000).map(|_| rng.normal()).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn a_shuffle_keeps_every_element() {
        let mut numbers: Vec<usize> = (0..100).collect();
        Rng::new(3, "shuffle").shuffle(&mut numbers);
        assert_ne!(numbers, (0..100).collect::<Vec<_>>());
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    }
}
