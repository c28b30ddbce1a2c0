//! Packed codes back to floats.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::quantized::{Packed, PackedLayout, Quantized, SCALES};
use alluvium_core::contract::{FLOATS, IDS};
use alluvium_core::{Arg, Backward, Contract, DType, Device, Error, Result, Tensor, tape};

/// The contract of `dequantize`.
static CONTRACT: Contract = Contract {
    op: "dequantize",
    args: &[
        Arg::new("w", "R.. W", IDS),
        Arg::new("scales", "R.. G", SCALES),
        Arg::new("biases", "R.. G", FLOATS).optional(),
    ],
    rules: &[],
};

/// The values that quantized codes stand for, rounded to `dtype` once: `scale · code + bias`.
///
/// | tensor   | shape   | dtype                                     | gradient         |
/// |----------|---------|-------------------------------------------|------------------|
/// | `w`      | `R.. W` | u32                                       |                  |
/// | `scales` | `R.. G` | f32, f16, bf16; u8 for packings of floats | yes, if floating |
/// | `biases` | `R.. G` | f32, f16, bf16; affine packing only       | yes              |
/// | result   | `R.. I` | `dtype`                                   |                  |
///
/// `I` is `32·W / bits` and `G` is `I / group`. The backward pass keeps the codes.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` for bits or
/// groups that do not exist, for biases that are missing or too many, or when `dtype` is not a floating dtype.
///
/// # Source
/// The layout of `mlx.core.quantize`. MX formats: Open Compute Project, Microscaling Formats v1.0.
pub fn dequantize(q: &Quantized<'_>, dtype: DType) -> Result<Tensor> {
    let dims = CONTRACT.check(&[Some(q.w), Some(q.scales), q.biases])?;
    let layout = q.layout(CONTRACT.op)?;
    if !dtype.is_float() {
        return Err(Error::value(CONTRACT.op, format!("{dtype} is not a floating dtype")));
    }
    let shape = q.w.shape().with(dims.leading().rank(), layout.inner);
    let y = match q.w.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, q, layout, (shape, dtype))?,
        Device::Gpu(gpu) => gpu::forward(gpu, q, (shape, dtype))?,
    };
    tape::record([Some(q.scales), q.biases], y, || Grad { q: q.detach(), layout })
}

/// `dscale = Σ dw · code` and `dbias = Σ dw` over each group.
struct Grad {
    q: Packed,
    layout: PackedLayout,
}

impl Backward<2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        match dy.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dy, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dy, need),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Packing;

    #[test]
    fn arguments_that_do_not_fit_each_other_are_errors() {
        let device = Device::cpu();
        let tensor = |shape: [usize; 2], dtype| Tensor::zeros(shape, dtype, &device).unwrap();
        let (w, f32s, u8s) = (tensor([2, 8], DType::U32), tensor([2, 1], DType::F32), tensor([2, 2], DType::U8));
        let (affine, biases) = (Packing::Affine { bits: 4, group: 64 }, tensor([2, 2], DType::F32));
        let error = |scales, biases, packing| {
            let q = Quantized { w: &w, scales, biases, packing };
            dequantize(&q, DType::F32).unwrap_err().to_string()
        };
        assert_eq!(error(&f32s, None, affine), "dequantize: `biases` is missing");
        let why = "dequantize: `biases` came, but only affine packing has them";
        assert_eq!(error(&u8s, Some(&biases), Packing::Mxfp4), why);
        let why = "dequantize: `scales` is u8, expected a floating dtype, the packing is affine";
        assert_eq!(error(&u8s, Some(&biases), affine), why);
        assert_eq!(error(&f32s, None, Packing::Mxfp4), "dequantize: `scales` is f32, expected u8");
        let why = "dequantize: `scales` is [2, 1], expected 2 groups a row, as `w` [2, 8] has";
        assert_eq!(error(&f32s, Some(&f32s), Packing::Affine { bits: 4, group: 32 }), why);
        let why = "dequantize: `w` is [2, 8], expected rows of whole groups of 64 codes of 3 bits";
        assert_eq!(error(&f32s, Some(&f32s), Packing::Affine { bits: 3, group: 64 }), why);
    }

    #[test]
    fn the_four_bit_floats_are_those_of_the_standard() {
        let device = Device::cpu();
        let words = [0x7654_3210u32, 0xfedc_ba98, 0, 0];
        let w = Tensor::from_slice(&words, [1, 4], &device).unwrap();
        let scales = Tensor::from_slice(&[128u8], [1, 1], &device).unwrap();
        let q = Quantized { w: &w, scales: &scales, biases: None, packing: Packing::Mxfp4 };
        let y = dequantize(&q, DType::F32).unwrap().to_vec::<f32>().unwrap();
        let want = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];
        assert_eq!(y[..8], want);
        assert_eq!(y[8..16], want.map(|x| -x));
    }
}
