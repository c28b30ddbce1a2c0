//! Rows times a transposed weight matrix.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, DType, Device, Result, Tensor, tape};

/// The contract of `linear`.
static CONTRACT: Contract = Contract {
    op: "linear",
    args: &[Arg::new("x", "R.. I", FLOATS), Arg::new("w", "O I", FLOATS).weight()],
    rules: &[],
};

/// Every row of `x` times the transpose of `w`: `y = x · wᵀ`, without a bias.
///
/// | tensor | shape   | dtype          | gradient            |
/// |--------|---------|----------------|---------------------|
/// | `x`    | `R.. I` | f32, f16, bf16 | yes                 |
/// | `w`    | `O I`   | f32, f16, bf16 | yes, not rounded    |
/// | result | `R.. O` | that of `x`    |                     |
///
/// Products are summed in f32. `w` may be stored in less precision than `x`: it is widened as it is read, and no copy
/// of it is made. The backward pass keeps `x` and `w`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
///
/// # Source
/// The layer that checkpoints store as `weight [out, in]`; same values as `mlx.nn.Linear(bias=False)`.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let dims = CONTRACT.check(&[x, w])?;
    let y = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x, w, &dims)?,
        Device::Gpu(gpu) => gpu::forward(gpu, x, w, &dims)?,
    };
    tape::record([x, w], y, || Grad { x: x.detach(), w: w.detach(), dw_dtype: w.gradient_dtype() })
}

/// `dx = dy · w` and `dw = dyᵀ · x`.
struct Grad {
    x: Tensor,
    w: Tensor,
    dw_dtype: DType,
}

impl Backward<2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        match self.x.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dy, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dy, need),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cast;
    use alluvium_core::Tape;

    #[test]
    fn a_vector_is_a_row_without_leading_axes() {
        let device = Device::cpu();
        let x = Tensor::from_slice(&[1.0f32, 2.0], [2], &device).unwrap();
        let w = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 3.0, -1.0], [3, 2], &device).unwrap();
        let y = linear(&x, &w).unwrap();
        assert_eq!((y.shape()[..].to_vec(), y.to_vec::<f32>().unwrap()), (vec![3], vec![1.0, 2.0, 1.0]));
    }

    #[test]
    fn a_frozen_weight_costs_no_gradient() {
        let device = Device::cpu();
        let tape = Tape::new();
        let x = tape.watch(&Tensor::full([4, 8], 1.0, &device).unwrap());
        let w = Tensor::full([2, 8], 0.5, &device).unwrap();
        let y = linear(&x, &w).unwrap();
        let grads = tape.backward(&[(&y, &Tensor::full([4, 2], 1.0, &device).unwrap())]).unwrap();
        assert_eq!(grads.get(&x).unwrap().to_vec::<f32>().unwrap(), [1.0; 32]);
        assert!(grads.get(&w).is_none());
    }

    /// The product of a model in half precision: f32 rows, a weight in its stored dtype.
    #[test]
    fn a_weight_in_half_precision_gives_what_its_widened_copy_does() {
        let device = Device::cpu();
        let mut rng = alluvium_core::rng::Rng::new(1, "linear");
        let mut random = |shape: [usize; 2], dtype| {
            let data: Vec<f32> = (0..shape[0] * shape[1]).map(|_| rng.normal() as f32).collect();
            cast(&Tensor::from_slice(&data, shape, &device).unwrap(), dtype).unwrap()
        };
        // more than one block, and a last one that is not whole
        for (rows, inner, outer, dtype) in [
            (1, 1_031, 67, DType::BF16),
            (1, 300, 67, DType::F16),
            (5, 2_050, 1_100, DType::BF16),
            (3, 63, 65, DType::F16),
        ] {
            let (x, w, dy) =
                (random([rows, inner], DType::F32), random([outer, inner], dtype), random([rows, outer], DType::F32));
            let run = |w: &Tensor| {
                let tape = Tape::new();
                let (x, w) = (tape.watch(&x), tape.watch(w));
                let y = linear(&x, &w).unwrap();
                let grads = tape.backward(&[(&y, &dy)]).unwrap();
                let dw = grads.get(&w).unwrap();
                assert_eq!(dw.dtype(), DType::F32);
                [&y, grads.get(&x).unwrap(), dw].map(|t| t.to_floats().unwrap())
            };
            let (half, wide) = (run(&w), run(&cast(&w, DType::F32).unwrap()));
            for (name, bound, (a, b)) in [
                ("y", 1e-5, (&half[0], &wide[0])),
                ("dx", 1e-5, (&half[1], &wide[1])),
                ("dw", 1e-5, (&half[2], &wide[2])),
            ] {
                let size = b.iter().map(|x| x.abs()).fold(0.0, f32::max);
                let far = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(
                    f64::from(far) <= bound * f64::from(size),
                    "{rows} × {inner} × {outer}, {name}: {far} of {size}"
                );
            }
        }
    }
}
