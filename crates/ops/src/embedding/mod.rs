//! Embedding: rows of a table, gathered by id.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{FLOATS, IDS};
use alluvium_core::{Arg, Backward, Contract, DType, Device, Result, Shape, Tensor, tape};

/// The contract of `embedding`.
static CONTRACT: Contract = Contract {
    op: "embedding",
    args: &[Arg::new("table", "V D", FLOATS).weight(), Arg::new("ids", "R..", IDS)],
    rules: &[],
};

/// The rows of `table` that `ids` name.
///
/// | tensor  | shape   | dtype           | gradient            |
/// |---------|---------|-----------------|---------------------|
/// | `table` | `V D`   | f32, f16, bf16  | yes, not rounded    |
/// | `ids`   | `R..`   | u32             |                     |
/// | result  | `R.. D` | that of `table` |                     |
///
/// The gradient is a whole table: the rows of `dy` are summed in f32, in an order that `ids` alone decide; the other
/// rows are zero. The backward pass keeps `ids`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when an id
/// is `V` or more. An id that a GPU made is not waited for: where it is `V` or more the row is NaN and
/// nobody gets its gradient.
///
/// # Source
/// The layer that checkpoints store as `embed_tokens.weight`; same values as `mlx.nn.Embedding`.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let dims = CONTRACT.check(&[table, ids])?;
    let y = match table.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, table, ids, &dims)?,
        Device::Gpu(gpu) => gpu::forward(gpu, table, ids, &dims)?,
    };
    tape::record([table], y, || Grad { ids: ids.clone(), shape: table.shape(), dtype: table.gradient_dtype() })
}

/// `dtable[v] = Σ dy[r]` over the places `r` where `ids[r] = v`.
struct Grad {
    ids: Tensor,
    shape: Shape,
    /// That of the gradient.
    dtype: DType,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        match dy.device() {
            Device::Cpu(cpu) => Ok([Some(cpu::backward(cpu, &self, &dy)?)]),
            Device::Gpu(gpu) => Ok([Some(gpu::backward(gpu, &self, &dy)?)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Tape;

    #[test]
    fn an_id_outside_the_table_is_named_with_its_place() {
        let device = Device::cpu();
        let table = Tensor::full([5, 2], 1.0, &device).unwrap();
        let ids = Tensor::from_slice(&[0u32, 1, 2, 4, 5, 9], [2, 3], &device).unwrap();
        let error = embedding(&table, &ids).unwrap_err().to_string();
        assert_eq!(error, "embedding: `ids` holds 5 at [1, 1], expected less than V = 5");
    }

    #[test]
    fn rows_that_are_used_twice_sum_and_rows_that_are_not_stay_zero() {
        let device = Device::cpu();
        let tape = Tape::new();
        let table = tape.watch(&Tensor::full([4, 2], 1.0, &device).unwrap());
        let ids = Tensor::from_slice(&[3u32, 1, 3], [3], &device).unwrap();
        let y = embedding(&table, &ids).unwrap();
        let dy = Tensor::from_slice(&[1.0f32, 2.0, 4.0, 8.0, 16.0, 32.0], [3, 2], &device).unwrap();
        let grads = tape.backward(&[(&y, &dy)]).unwrap();
        let want = [0.0, 0.0, 4.0, 8.0, 0.0, 0.0, 17.0, 34.0];
        assert_eq!(grads.get(&table).unwrap().to_vec::<f32>().unwrap(), want);
    }
}
