//! Rows times a transposed quantized matrix.

mod cpu;
mod entry;
mod gpu;
pub(crate) mod reference;

pub(crate) use entry::OP;

use crate::quantized::{Packed, PackedLayout, Quantized, SCALES};
use alluvium_core::contract::{FLOATS, IDS};
use alluvium_core::{Arg, Backward, Contract, Device, Result, Tensor, tape};

/// The contract of `quantized_matmul`.
static CONTRACT: Contract = Contract {
    op: "quantized_matmul",
    args: &[
        Arg::new("x", "R.. I", FLOATS),
        Arg::new("w", "O W", IDS),
        Arg::new("scales", "O G", SCALES),
        Arg::new("biases", "O G", FLOATS).optional(),
    ],
    rules: &[],
};

/// Every row of `x` times the transpose of a quantized matrix: [`linear`](crate::linear) with packed weights.
///
/// With `s`, `b` and `c` the scales, biases and codes: `y[o] = Σ_g (s[o,g] · Σ_{i∈g} c[o,i]·x[i] + b[o,g] · Σ_{i∈g}
/// x[i])`.
///
/// | tensor   | shape   | dtype                                     | gradient         |
/// |----------|---------|-------------------------------------------|------------------|
/// | `x`      | `R.. I` | f32, f16, bf16                            | yes              |
/// | `w`      | `O W`   | u32                                       |                  |
/// | `scales` | `O G`   | f32, f16, bf16; u8 for packings of floats | yes, if floating |
/// | `biases` | `O G`   | f32, f16, bf16; affine packing only       | yes              |
/// | result   | `R.. O` | that of `x`                               |                  |
///
/// `I` is `32·W / bits` and `G` is `I / group`; the dtype of scales and biases need not be that of `x`. Products are
/// summed in f32. The backward pass keeps `x` and the codes. Weights are dequantized block by block;
/// the full matrix is never materialized.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` for bits or
/// groups that do not exist, or for biases that are missing or too many.
///
/// # Source
/// `mlx.core.quantized_matmul(transpose=True)`, which on the CPU sums in the dtype of `x`: in half precision this
/// one is nearer the truth.
pub fn quantized_matmul(x: &Tensor, q: &Quantized<'_>) -> Result<Tensor> {
    let dims = CONTRACT.check(&[Some(x), Some(q.w), Some(q.scales), q.biases])?;
    let layout = q.layout(CONTRACT.op)?;
    layout.fits(CONTRACT.op, "x", x.shape())?;
    let y = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x, q, layout, &dims)?,
        Device::Gpu(gpu) => gpu::forward(gpu, x, q, layout, &dims)?,
    };
    tape::record([Some(x), Some(q.scales), q.biases], y, || Grad { x: x.detach(), q: q.detach(), layout })
}

/// `dx = dy · w`; with `dw = dyᵀ · x`: `dscale = Σ dw · code` and `dbias = Σ dw` over each group.
struct Grad {
    x: Tensor,
    q: Packed,
    layout: PackedLayout,
}

impl Backward<3> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        match self.x.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dy, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dy, need),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dequantize, linear, quantize_affine};
    use alluvium_core::rng::Rng;
    use alluvium_core::{DType, Tape};

    fn random(shape: [usize; 2], seed: u64) -> Tensor {
        let mut rng = Rng::new(seed, "quantized");
        let data: Vec<f32> = (0..shape[0] * shape[1]).map(|_| rng.normal() as f32).collect();
        Tensor::from_slice(&data, shape, &Device::cpu()).unwrap()
    }

    #[test]
    fn few_rows_and_many_give_the_same_product() {
        let packed = quantize_affine(&random([67, 192], 1), 4, 64).unwrap();
        let x = random([40, 192], 2);
        let all = quantized_matmul(&x, &packed.quantized()).unwrap().to_vec::<f32>().unwrap();
        for rows in [1, 2, 3, 8] {
            let y = quantized_matmul(&x.rows(5, rows).unwrap(), &packed.quantized()).unwrap();
            for (a, b) in y.to_vec::<f32>().unwrap().iter().zip(&all[5 * 67..]) {
                assert!((a - b).abs() < 1e-4, "{rows} rows: {a} {b}");
            }
        }
    }

    #[test]
    fn a_frozen_matrix_costs_no_gradient_and_passes_one_on() {
        let packed = quantize_affine(&random([24, 64], 3), 8, 32).unwrap();
        let tape = Tape::new();
        let x = tape.watch(&random([3, 64], 4));
        let dy = random([3, 24], 5);
        let y = quantized_matmul(&x, &packed.quantized()).unwrap();
        let got = tape.backward(&[(&y, &dy)]).unwrap().get(&x).unwrap().to_vec::<f32>().unwrap();
        let x = tape.watch(&x.detach());
        let y = linear(&x, &dequantize(&packed.quantized(), DType::F32).unwrap()).unwrap();
        let want = tape.backward(&[(&y, &dy)]).unwrap().get(&x).unwrap().to_vec::<f32>().unwrap();
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4), "{got:?} {want:?}");
    }

    #[test]
    fn a_row_of_another_length_is_refused() {
        let packed = quantize_affine(&random([24, 64], 3), 4, 32).unwrap();
        let error = quantized_matmul(&random([3, 32], 4), &packed.quantized()).unwrap_err().to_string();
        let want = "quantized_matmul: `x` is [3, 32], expected [R.., I] with I = 64 from `w`, 8 words of 4 bits";
        assert_eq!(error, want);
    }
}
