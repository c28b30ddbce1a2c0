//! Dropout of the inputs of low-rank updates.

use alluvium_core::{DType, Result, Tensor};
use alluvium_ops::{cast, mul};
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The switch that all updates of a model share: off, or the number of a draw.
///
/// The elements that are dropped depend on the seed, the module, the draw and their place alone, so a layer that is
/// computed again in the backward pass drops the same ones, and a resumed run those of a run without a stop.
#[derive(Clone, Debug, Default)]
pub struct DropoutSwitch(Arc<AtomicU64>);

impl DropoutSwitch {
    /// Drops elements from now on; another number drops others.
    pub fn draw(&self, number: u64) {
        self.0.store(number.wrapping_add(1).max(1), Ordering::Relaxed);
    }

    /// Drops nothing from now on: for validation and generation.
    pub fn off(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn number(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&number| number > 0)
    }
}

/// The dropout of one module.
#[derive(Clone, Debug)]
pub(super) struct Dropout {
    probability: f32,
    key: u64,
    pub(super) switch: DropoutSwitch,
}

impl Dropout {
    /// Of the module of this name.
    pub(super) fn new(probability: f32, seed: u64, module: &str, switch: &DropoutSwitch) -> Self {
        let step = |key: u64, byte: u8| (key ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let key = module.bytes().fold(mixed(seed), step);
        Dropout { probability, key, switch: switch.clone() }
    }

    /// `x` with elements that are 0 with the probability, and the others divided by its complement.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let Some(number) = self.switch.number() else { return Ok(x.clone()) };
        let key = mixed(self.key ^ mixed(number));
        // of 2^32
        let threshold = (f64::from(self.probability) * 4_294_967_296.0) as u64;
        let kept = (1.0 - self.probability).recip();
        let factor = |i: u64| if mixed(key.wrapping_add(i)) >> 32 < threshold { 0.0 } else { kept };
        let factors: Vec<f32> = (0..x.elements() as u64).into_par_iter().map(factor).collect();
        let factors = Tensor::from_slice(&factors, x.shape(), x.device())?;
        mul(x, &if x.dtype() == DType::F32 { factors } else { cast(&factors, x.dtype())? })
    }
}

/// SplitMix64: each result is as good as a random number.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Device;

    #[test]
    fn a_share_is_dropped_the_mean_stays_and_a_draw_is_repeatable() {
        let x = Tensor::full([100, 300], 1.0, &Device::cpu()).unwrap();
        let (switch, other) = (DropoutSwitch::default(), DropoutSwitch::default());
        let dropout = Dropout::new(0.3, 7, "layers.0.q_proj", &switch);
        let values = |dropout: &Dropout| dropout.apply(&x).unwrap().to_vec::<f32>().unwrap();
        assert!(values(&dropout).iter().all(|&x| x == 1.0));
        switch.draw(0);
        let first = values(&dropout);
        let dropped = first.iter().filter(|&&x| x == 0.0).count() as f64 / 30_000.0;
        // five standard deviations of the share of 30 000 draws
        assert!((dropped - 0.3).abs() < 5.0 * (0.21f64 / 30_000.0).sqrt(), "{dropped}");
        assert!(first.iter().all(|&x| x == 0.0 || (x - 1.0 / 0.7).abs() < 1e-6));
        assert_eq!(values(&dropout), first);
        switch.draw(1);
        assert_ne!(values(&dropout), first);
        switch.draw(0);
        for (seed, module) in [(8, "layers.0.q_proj"), (7, "layers.1.q_proj")] {
            let another = Dropout::new(0.3, seed, module, &other);
            other.draw(0);
            assert_ne!(values(&another), first);
        }
        switch.off();
        assert!(values(&dropout).iter().all(|&x| x == 1.0));
    }
}
