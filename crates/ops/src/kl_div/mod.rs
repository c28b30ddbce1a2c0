//! The Kullback-Leibler divergence of a student from a teacher, from logits.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, Device, Result, Tensor, tape};

/// The contract of `kl_div`.
static CONTRACT: Contract = Contract {
    op: "kl_div",
    args: &[Arg::new("logits", "R.. V", FLOATS), Arg::new("teacher", "R.. V", FLOATS)],
    rules: &[],
};

/// The Kullback-Leibler divergence of a student from a teacher in nats: the loss of distillation.
///
/// The mean over rows of `Σ_v p_t[v]·(log p_t[v] − log p_s[v])`, with `p_t` the softmax of the teacher's row and `p_s`
/// that of the student's. For a temperature, divide both by it first. A token to which the teacher gives probability 0
/// adds 0.
///
/// | tensor    | shape   | dtype          | gradient |
/// |-----------|---------|----------------|----------|
/// | `logits`  | `R.. V` | f32, f16, bf16 | yes      |
/// | `teacher` | `R.. V` | f32, f16, bf16 | yes      |
/// | result    | `[]`    | f32            |          |
///
/// The backward pass keeps both arguments and three f32 a row.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
///
/// # Source
/// Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
pub fn kl_div(logits: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let dims = CONTRACT.check(&[logits, teacher])?;
    let (loss, rows) = match logits.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, logits, teacher, &dims)?,
        Device::Gpu(gpu) => gpu::forward(gpu, logits, teacher, &dims)?,
    };
    tape::record([logits, teacher], loss, || Grad { logits: logits.detach(), teacher: teacher.detach(), rows })
}

/// With `c = dy / rows` and `kl` the row's own divergence:
/// `d logits = c·(p_s − p_t)` and `d teacher = c·p_t·(log p_t − log p_s − kl)`.
struct Grad {
    logits: Tensor,
    teacher: Tensor,
    /// `[R, 3]`: log Σ exp of the student's row, of the teacher's, and the divergence.
    rows: Tensor,
}

impl Backward<2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        match self.logits.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, dy.item()?, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dy, need),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_are_no_distance_apart_whatever_is_added_to_them() {
        let device = Device::cpu();
        let row: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * 4.0).collect();
        let moved: Vec<f32> = row.iter().map(|x| x + 3.0).collect();
        let (a, b) = (Tensor::from_slice(&row, [1, 100], &device).unwrap(), moved);
        let b = Tensor::from_slice(&b, [1, 100], &device).unwrap();
        assert!(kl_div(&a, &b).unwrap().item().unwrap().abs() < 1e-6);
    }

    #[test]
    fn a_word_that_neither_takes_adds_nothing() {
        let device = Device::cpu();
        let none = f32::NEG_INFINITY;
        let a = Tensor::from_slice(&[0.0, 0.0, none], [1, 3], &device).unwrap();
        let b = Tensor::from_slice(&[3f32.ln(), 0.0, none], [1, 3], &device).unwrap();
        let want = 0.75 * (0.75f32 / 0.5).ln() + 0.25 * (0.25f32 / 0.5).ln();
        let tape = alluvium_core::Tape::new();
        let (a, b) = (tape.watch(&a), tape.watch(&b));
        let loss = kl_div(&a, &b).unwrap();
        assert!((loss.item().unwrap() - want).abs() < 1e-6);
        let grads = loss.backward().unwrap();
        for x in [&a, &b] {
            let grad = grads.get(x).unwrap().to_vec::<f32>().unwrap();
            assert!(grad[2] == 0.0 && grad[0] != 0.0 && grad[1].is_finite());
        }
    }
}
