//! Embedding from a quantized table.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::quantized::{Packed, PackedLayout, Quantized, SCALES};
use alluvium_core::contract::{FLOATS, IDS};
use alluvium_core::{Arg, Backward, Contract, DType, Device, Error, Result, Tensor, tape};

/// The contract of `quantized_embedding`.
static CONTRACT: Contract = Contract {
    op: "quantized_embedding",
    args: &[
        Arg::new("w", "V W", IDS),
        Arg::new("scales", "V G", SCALES),
        Arg::new("biases", "V G", FLOATS).optional(),
        Arg::new("ids", "R..", IDS),
    ],
    rules: &[],
};

/// The rows of a quantized table that `ids` name, as floats: [`embedding`](crate::embedding) with packed weights.
///
/// | tensor   | shape   | dtype                                     | gradient         |
/// |----------|---------|-------------------------------------------|------------------|
/// | `w`      | `V W`   | u32                                       |                  |
/// | `scales` | `V G`   | f32, f16, bf16; u8 for packings of floats | yes, if floating |
/// | `biases` | `V G`   | f32, f16, bf16; affine packing only       | yes              |
/// | `ids`    | `R..`   | u32                                       |                  |
/// | result   | `R.. D` | `dtype`                                   |                  |
///
/// `D` is `32·W / bits` and `G` is `D / group`. Only the rows that are named are read. The backward pass keeps the
/// codes and `ids`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when an id
/// is `V` or more, for bits or groups that do not exist, for biases that are missing or too many, or when `dtype` is
/// none of floating values. An id that a GPU made is not waited for: where it is `V` or more the row is NaN.
///
/// # Source
/// `mlx.nn.QuantizedEmbedding`.
pub fn quantized_embedding(q: &Quantized<'_>, ids: &Tensor, dtype: DType) -> Result<Tensor> {
    CONTRACT.check(&[Some(q.w), Some(q.scales), q.biases, Some(ids)])?;
    let layout = q.layout(CONTRACT.op)?;
    if !dtype.is_float() {
        return Err(Error::value(CONTRACT.op, format!("{dtype} is not a floating dtype")));
    }
    let shape = ids.shape().and(&[layout.inner])?;
    let y = match q.w.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, q, layout, ids, (shape, dtype))?,
        Device::Gpu(gpu) => gpu::forward(gpu, q, layout, ids, (shape, dtype))?,
    };
    tape::record([Some(q.scales), q.biases], y, || Grad { q: q.detach(), layout, ids: ids.clone() })
}

/// `dscale = Σ dy · code` and `dbias = Σ dy` over each group of the rows that were named.
struct Grad {
    q: Packed,
    layout: PackedLayout,
    ids: Tensor,
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
    fn an_id_outside_the_table_is_named_with_its_place() {
        let device = Device::cpu();
        let w = Tensor::zeros([5, 4], DType::U32, &device).unwrap();
        let scales = Tensor::full([5, 1], 1.0, &device).unwrap();
        let ids = Tensor::from_slice(&[0u32, 1, 2, 4, 5, 9], [2, 3], &device).unwrap();
        let packing = Packing::Affine { bits: 4, group: 32 };
        let q = Quantized { w: &w, scales: &scales, biases: Some(&scales), packing };
        let error = quantized_embedding(&q, &ids, DType::F32).unwrap_err().to_string();
        assert_eq!(error, "quantized_embedding: `ids` holds 5 at [1, 1], expected less than V = 5");
    }
}
