//! AdamW: Adam with decoupled weight decay.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{F32, FLOATS};
use alluvium_core::{Arg, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `adamw`.
static CONTRACT: Contract = Contract {
    op: "adamw",
    args: &[
        Arg::new("p", "R..", FLOATS),
        Arg::new("grad", "R..", FLOATS),
        Arg::new("m", "R..", F32),
        Arg::new("v", "R..", F32),
    ],
    rules: &[],
};

/// Why there is no gradient.
const WHY: &str = "a step of the optimizer is not differentiated";

/// The settings of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// The learning rate.
    pub learning_rate: f32,
    /// The decay of the running mean of the gradient, below 1.
    pub beta1: f32,
    /// The decay of the running mean of the squared gradient, below 1.
    pub beta2: f32,
    /// Added to the root of the mean square.
    pub eps: f32,
    /// The share of a parameter that each step subtracts, times the learning rate.
    pub weight_decay: f32,
    /// The number of this step, from 1.
    pub step: u32,
    /// Whether the running means, which begin at zero, are divided by `1 − βᵗ` as in the paper. MLX's optimizers do not
    /// do so by default; their first steps are then up to three times as long.
    pub bias_correction: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            step: 1,
            bias_correction: true,
        }
    }
}

impl AdamW {
    /// The divisor that corrects a running mean for its start at zero.
    fn bias(&self, beta: f64) -> f64 {
        if self.bias_correction { 1.0 - beta.powf(f64::from(self.step)) } else { 1.0 }
    }

    /// Refuses settings outside of their range.
    fn check(&self) -> Result<()> {
        let within = |x: f32, below: f32| x >= 0.0 && x < below;
        let settings = [
            ("learning_rate", self.learning_rate, f32::INFINITY, "a finite number, 0 or more"),
            ("beta1", self.beta1, 1.0, "a number from 0 to below 1"),
            ("beta2", self.beta2, 1.0, "a number from 0 to below 1"),
            ("eps", self.eps, f32::INFINITY, "a finite number, 0 or more"),
            ("weight_decay", self.weight_decay, f32::INFINITY, "a finite number, 0 or more"),
        ];
        for (name, x, below, want) in settings {
            if !within(x, below) {
                return Err(Error::value(CONTRACT.op, format!("{name} is {x}, expected {want}")));
            }
        }
        if self.step == 0 {
            return Err(Error::value(CONTRACT.op, "step is 0, but steps are counted from 1"));
        }
        Ok(())
    }
}

/// A parameter and what the optimizer remembers of it.
#[derive(Clone, Debug)]
pub struct AdamWState {
    /// The parameter.
    pub p: Tensor,
    /// The running mean of its gradient.
    pub m: Tensor,
    /// The running mean of its gradient's square.
    pub v: Tensor,
}

/// One step of AdamW; `p`, `m` and `v` are given away and updated in place if they are not shared.
///
/// `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`,
/// `p ← p·(1 − lr·decay) − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + eps)`. Arithmetic in f32; a half-precision `p` is rounded
/// once.
///
/// | tensor    | shape | dtype          | gradient |
/// |-----------|-------|----------------|----------|
/// | `p`       | `R..` | f32, f16, bf16 | no       |
/// | `grad`    | `R..` | f32, f16, bf16 | no       |
/// | `m`, `v`  | `R..` | f32            | no       |
/// | result    | `R..` | those of the arguments |  |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when a
/// setting is out of range; `NoGradient` when a traced tensor comes: detach it.
///
/// # Source
/// Loshchilov and Hutter 2019, arXiv:1711.05101. Same values as `torch.optim.AdamW` and as `mlx.optimizers.AdamW` with
/// `bias_correction=True`; its default, `bias_correction=False`, sets both divisors `1 − βᵗ` to 1.
pub fn adamw(p: Tensor, grad: &Tensor, m: Tensor, v: Tensor, settings: &AdamW) -> Result<AdamWState> {
    CONTRACT.check(&[&p, grad, &m, &v])?;
    settings.check()?;
    tape::no_gradient(CONTRACT.op, WHY, [&p, grad, &m, &v])?;
    match grad.device() {
        Device::Cpu(cpu) => cpu::step(cpu, AdamWState { p, m, v }, grad, settings),
        Device::Gpu(gpu) => gpu::step(gpu, AdamWState { p, m, v }, grad, settings),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::{DType, Tape};

    fn state(n: usize) -> (Tensor, Tensor, Tensor, Tensor) {
        let make = |seed: f32| {
            let data: Vec<f32> = (0..n).map(|i| ((i as f32 + seed) * 0.7).sin().abs()).collect();
            Tensor::from_slice(&data, [n], &Device::cpu()).unwrap()
        };
        (make(0.1), make(0.2), make(0.3), make(0.4))
    }

    #[test]
    fn an_update_in_place_is_bit_identical_to_that_of_a_copy() {
        let (p, grad, m, v) = state(70_001);
        let copied = adamw(p.clone(), &grad, m.clone(), v.clone(), &AdamW::default()).unwrap();
        let (before, at) = (p.to_vec::<f32>().unwrap(), p.slice::<f32>().unwrap().as_ptr());
        assert_ne!(copied.p.to_vec::<f32>().unwrap(), before);
        let moved = adamw(p, &grad, m, v, &AdamW::default()).unwrap();
        assert_eq!(moved.p.slice::<f32>().unwrap().as_ptr(), at);
        for (a, b) in [(&copied.p, &moved.p), (&copied.m, &moved.m), (&copied.v, &moved.v)] {
            assert_eq!(a.to_bytes().unwrap(), b.to_bytes().unwrap());
        }
    }

    #[test]
    fn the_first_step_moves_each_weight_by_the_learning_rate() {
        let (p, grad, _, _) = state(5);
        let zeros = || Tensor::zeros([5], DType::F32, &Device::cpu()).unwrap();
        let settings = AdamW { weight_decay: 0.0, learning_rate: 0.125, ..AdamW::default() };
        let after = adamw(p.clone(), &grad, zeros(), zeros(), &settings).unwrap();
        for (before, after) in p.to_vec::<f32>().unwrap().iter().zip(after.p.to_vec::<f32>().unwrap()) {
            assert!((before - after - 0.125).abs() < 1e-5);
        }
    }

    #[test]
    fn settings_out_of_range_and_traced_tensors_are_errors() {
        let (p, grad, m, v) = state(3);
        let error = |settings: AdamW| adamw(p.clone(), &grad, m.clone(), v.clone(), &settings).unwrap_err().to_string();
        assert_eq!(error(AdamW { step: 0, ..AdamW::default() }), "adamw: step is 0, but steps are counted from 1");
        assert_eq!(
            error(AdamW { beta2: 1.0, ..AdamW::default() }),
            "adamw: beta2 is 1, expected a number from 0 to below 1"
        );
        let tape = Tape::new();
        let traced = tape.watch(&p);
        assert!(adamw(traced, &grad, m, v, &AdamW::default()).unwrap_err().to_string().contains("not differentiated"));
    }
}
