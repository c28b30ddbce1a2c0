//! Affine quantization: rows as integer codes with scales and biases.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::quantized::{Packed, Packing};
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Device, Kind, Result, Tensor, tape};

/// The contract of `quantize_affine`.
static CONTRACT: Contract = Contract { op: "quantize_affine", args: &[Arg::new("w", "R.. I", FLOATS)], rules: &[] };

/// Why it has no gradient.
const NO_GRADIENT: &str = "codes are integers";

/// Packs rows into codes of `bits` bits, with a scale and a bias for each `group` values: `w ≈ scale · code + bias`.
///
/// The end of a group that is larger in size is met exactly, and so is 0 where the group has both signs: the scale goes
/// from that end to the other, and is then moved so that 0 falls on a code. All arithmetic is in f32, whatever the
/// dtype; scales and biases are rounded to that of `w` once the codes are made.
///
/// | tensor             | shape                    | dtype          | gradient |
/// |--------------------|--------------------------|----------------|----------|
/// | `w`                | `R.. I`                  | f32, f16, bf16 | none     |
/// | codes              | `R.. W`, W = I·bits / 32 | u32            |          |
/// | `scales`, `biases` | `R.. G`, G = I / group   | that of `w`    |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold, or where `I` is no multiple of
/// `group`; `Value` for bits other than 1, 2, 3, 4, 5, 6, 8 or a group other than 32, 64, 128; `NoGradient` when `w` is
/// traced.
///
/// # Source
/// The layout and, bit for bit and on every device, the codes of `mlx.core.quantize` on the CPU; MLX's Metal kernel
/// rounds ties away from zero, so its codes may differ.
pub fn quantize_affine(w: &Tensor, bits: u32, group: usize) -> Result<Packed> {
    let dims = CONTRACT.check(&[w])?;
    let packing = Packing::Affine { bits, group };
    packing.check(CONTRACT.op)?;
    tape::no_gradient(CONTRACT.op, NO_GRADIENT, [w])?;
    if dims['I'] % group != 0 {
        let want = format!("[R.., I] with I a multiple of the group, {group}");
        return Err(Kind::Shape { op: CONTRACT.op, arg: "w", got: w.shape(), want }.into());
    }
    match w.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, w, packing),
        Device::Gpu(gpu) => gpu::forward(gpu, w, packing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dequantize;
    use alluvium_core::DType;

    fn row(data: &[f32]) -> Tensor {
        Tensor::from_slice(data, [1, data.len()], &Device::cpu()).unwrap()
    }

    #[test]
    fn the_larger_end_and_zero_are_met_exactly() {
        let data: Vec<f32> = (0..32).map(|i| i as f32 * 0.37 - 3.3).collect();
        let data = [&data[..], &[0.0; 32]].concat();
        let packed = quantize_affine(&row(&data), 4, 64).unwrap();
        let back = dequantize(&packed.quantized(), DType::F32).unwrap().to_vec::<f32>().unwrap();
        assert_eq!((back[31], back[40]), (data[31], 0.0));
    }

    #[test]
    fn rows_without_whole_groups_are_refused() {
        let error = quantize_affine(&row(&[1.0; 48]), 4, 32).unwrap_err().to_string();
        assert_eq!(error, "quantize_affine: `w` is [1, 48], expected [R.., I] with I a multiple of the group, 32");
        let error = quantize_affine(&row(&[1.0; 64]), 7, 32).unwrap_err().to_string();
        assert_eq!(error, "quantize_affine: codes of 7 bits, expected 1, 2, 3, 4, 5, 6 or 8");
        let error = quantize_affine(&row(&[1.0; 64]), 4, 16).unwrap_err().to_string();
        assert_eq!(error, "quantize_affine: groups of 16, expected 32, 64 or 128");
    }
}
