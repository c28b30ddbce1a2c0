//! Quantization of rows in any packing.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::quantize_affine;
use crate::quantized::{Packed, Packing};
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Device, Kind, Result, Tensor, tape};

/// The contract of `quantize`.
static CONTRACT: Contract = Contract { op: "quantize", args: &[Arg::new("w", "R.. I", FLOATS)], rules: &[] };

/// Why it has no gradient.
const NO_GRADIENT: &str = "codes are integers";

/// Packs rows as `packing` says: [`quantize_affine`](crate::quantize_affine), or codes of small floats with a scale for
/// each group.
///
/// With `a` the largest size in a group and `t` the largest float of the codes (6 for e2m1, 448 for e4m3), the scale is
/// the least power of two that is not below `a / t`, or for [`Packing::Nvfp4`] `a / t` itself, rounded to e4m3. The
/// codes are the floats nearest to `w / scale`: e4m3 to even, of two e2m1 the smaller, which is never −0. A group of
/// zeros has the scale 1 (for [`Packing::Nvfp4`] 0).
///
/// | tensor   | shape                    | dtype          | gradient |
/// |----------|--------------------------|----------------|----------|
/// | `w`      | `R.. I`                  | f32, f16, bf16 | none     |
/// | codes    | `R.. W`, W = I·bits / 32 | u32            |          |
/// | `scales` | `R.. G`, G = I / group   | u8             |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold, or where `I` is no multiple of
/// the group; `NoGradient` when `w` is traced; for affine packing those of `quantize_affine`.
///
/// # Source
/// Open Compute Project, Microscaling Formats v1.0, with the scales of `mlx.core.quantize`, which do not let the
/// largest number overflow; the results are bit-identical to those of MLX on the CPU, on every device.
pub fn quantize(w: &Tensor, packing: Packing) -> Result<Packed> {
    if let Packing::Affine { bits, group } = packing {
        return quantize_affine(w, bits, group);
    }
    let dims = CONTRACT.check(&[w])?;
    tape::no_gradient(CONTRACT.op, NO_GRADIENT, [w])?;
    if dims['I'] % packing.group() != 0 {
        let want = format!("[R.., I] with I a multiple of the group, {}", packing.group());
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

    #[test]
    fn values_that_a_packing_represents_are_unchanged() {
        let data: Vec<f32> = (0..64).map(|i| [0.0, 0.5, 1.0, -1.5, 2.0, -3.0, 4.0, 6.0][i % 8]).collect();
        let w = Tensor::from_slice(&data, [1, 64], &Device::cpu()).unwrap();
        for packing in [Packing::Mxfp4, Packing::Mxfp8, Packing::Nvfp4] {
            let packed = quantize(&w, packing).unwrap();
            let back = dequantize(&packed.quantized(), DType::F32).unwrap();
            assert_eq!(back.to_vec::<f32>().unwrap(), data, "{packing:?}");
        }
    }

    #[test]
    fn a_group_of_zeros_has_the_scale_one_and_codes_of_zero() {
        let zeros = Tensor::from_slice(&[0.0f32; 64], [1, 64], &Device::cpu()).unwrap();
        for (packing, scale) in [(Packing::Mxfp4, 127), (Packing::Mxfp8, 127), (Packing::Nvfp4, 0)] {
            let packed = quantize(&zeros, packing).unwrap();
            assert!(packed.scales.to_bytes().unwrap().iter().all(|&code| code == scale), "{packing:?}");
            assert!(packed.w.to_bytes().unwrap().iter().all(|&code| code == 0), "{packing:?}");
        }
    }

    #[test]
    fn affine_packing_is_that_of_its_own_operation() {
        let data: Vec<f32> = (0..64).map(|i| (i as f32).sin()).collect();
        let w = Tensor::from_slice(&data, [1, 64], &Device::cpu()).unwrap();
        let (a, b) =
            (quantize(&w, Packing::Affine { bits: 4, group: 32 }).unwrap(), quantize_affine(&w, 4, 32).unwrap());
        assert_eq!(a.w.to_bytes().unwrap(), b.w.to_bytes().unwrap());
        assert!(a.biases.is_some());
    }
}
